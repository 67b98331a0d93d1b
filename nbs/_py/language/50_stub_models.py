# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Stub models
#
# > Stub models give known answers through the same interface as real models.

# %%
#| default_exp language.stub_models

# %%
#| export
from functools import lru_cache

import torch
from torch import nn
from transformers import (GenerationConfig, GenerationMixin, PreTrainedConfig,
                          PreTrainedModel, PreTrainedTokenizerFast)
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from moral_sc.foundation.errors import ConfigError, unknown_name_message
from moral_sc.language.models import LM

# %%
#| hide
from collections import Counter

import numpy as np
from fastcore.test import *
from moral_sc.language.chat import render
from moral_sc.language.models import decode, encode
from moral_sc.language.generation import sample
from moral_sc.language.scoring import next_token_logprobs, option_logprobs, option_mass

# %% [markdown]
# A bias score can be wrong because of the metric, the prompt, the tokens or the use of the logits, and
# a real model cannot reveal which, since its true answer is unknown. A stub model has known answers. It
# passes through the whole path, from prompt to tokens to logits to metric, so a correct
# score checks every step. Pages also run on a stub where no weights can be had.
#
# ## Byte tokenizer
#
# One token a byte: every text has exactly one tokenisation and decodes unchanged. Merges can be
# added to reproduce the pitfalls of real tokenizers.

# %%
#| export
_special = ['<pad>', '<eos>', '<bos>', '<|im_start|>', '<|im_end|>']
_template = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
             "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")

def _letters():
    "Return the characters that stand for bytes 0 to 255 in byte-level vocabularies"
    printable = {*range(33,127), *range(161,173), *range(174,256)}
    other = iter(range(256, 512))
    return [chr(b if b in printable else next(other)) for b in range(256)]

def byte_tokenizer(
    merges=(),      # Pairs of pieces that become one token: [('(', 'a')]
    bos:bool=False, # Put a BOS token in front of every text
)->PreTrainedTokenizerFast:
    "Make a tokenizer with a token for each byte and for each merge"
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    pieces = [*_special, *_letters(), *(a+b for a,b in merges)]
    tok = Tokenizer(models.BPE({p: i for i,p in enumerate(pieces)}, list(merges)))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tok.decoder = decoders.ByteLevel()
    start = processors.TemplateProcessing('<bos> $A', special_tokens=[('<bos>', 2)])
    if bos: tok.post_processor = start
    return PreTrainedTokenizerFast(
        tokenizer_object=tok, pad_token='<pad>', eos_token='<eos>', chat_template=_template,
        bos_token='<bos>' if bos else None, additional_special_tokens=_special[3:])


# %% [markdown]
# Llama 2, Mistral and Gemma tokenise by SentencePiece, which writes a space as `▁` and puts one before
# each text. Fast tokenizers do so in three ways.

# %%
#| export
def prefix_space_tokenizer(
    kind:str='always', # 'prepend' (Llama 2), 'always' or 'first' (not after special tokens)
    merges=(('▁','Y'), ('▁Y','e'), ('▁Ye','s')),
)->PreTrainedTokenizerFast:
    "Make a tokenizer of SentencePiece's kind, with a token for each character and each merge"
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    pieces = [*_special, *(f'<0x{i:02X}>' for i in range(256)), '▁', '\n',
              *map(chr, range(33, 127)), *(a+b for a,b in merges)]
    tok = Tokenizer(models.BPE({p: i for i,p in enumerate(pieces)}, list(merges),
                               byte_fallback=True))
    if kind=='prepend':
        tok.normalizer = normalizers.Sequence([normalizers.Prepend('▁'),
                                               normalizers.Replace(' ', '▁')])
    else: tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind, split=False)
    tok.decoder = decoders.Sequence([decoders.Replace('▁', ' '), decoders.ByteFallback(),
                                     decoders.Fuse(), decoders.Strip(' ', 1, 0)])
    tok.post_processor = processors.TemplateProcessing('<bos> $A', special_tokens=[('<bos>', 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tok, pad_token='<pad>', eos_token='<eos>', bos_token='<bos>',
        chat_template=_template, additional_special_tokens=_special[3:])


# %%
spaced = prefix_space_tokenizer()
test_eq(spaced.decode(spaced('Yes, naïve').input_ids, skip_special_tokens=True), 'Yes, naïve')
spaced.convert_ids_to_tokens(spaced('Yes, it is').input_ids)

# %%
tok = byte_tokenizer([('(','a')])
ids = tok('naïve (a) ☂').input_ids
test_eq(tok.decode(ids), 'naïve (a) ☂')
tok.convert_ids_to_tokens(ids)


# %% [markdown]
# ## Models from functions
#
# The stub is a transformers model with an unusual inside. Its hidden state at a token is the list of
# all tokens up to it, which it stores in an ordinary KV cache; its output layer decodes that list and
# calls a function of the text. Batching, padding, caching and selected logit positions are therefore
# tested as with any model, and the function is called only where logits are needed.

# %%
#| export
class StubConfig(PreTrainedConfig):
    "Configuration of a stub model: the fields that generation code uses"
    model_type = 'moral_sc_stub'

_cache = next(k for k in ('cache', 'past_key_values') # Before transformers 5.24
              if k in BaseModelOutputWithPast.__dataclass_fields__)

class _History(nn.Module):
    "Hidden state of a token: the ids of all tokens up to it, -1 for padding"
    def forward(self, input_ids, attention_mask=None, past_key_values=None, cache=None, **kw):
        cache = past_key_values if cache is None else cache
        n = input_ids.shape[1]
        ids = input_ids
        if cache is not None: # Token ids take the place of keys
            k = ids[:,None,:,None].double()
            ids = cache.update(k, k, 0)[0][:,0,:,0].long()
        if attention_mask is not None: ids = ids.masked_fill(attention_mask==0, -1)
        T = ids.shape[1]
        h = nn.functional.pad(ids, (T-1, 0), value=-1).unfold(1, T, 1)[:,-n:]
        return BaseModelOutputWithPast(last_hidden_state=h, **{_cache: cache})

class _Head(nn.Module):
    "Map lists of token ids to logits"
    def __init__(self, f): super().__init__(); self.f = f
    def forward(self, h):
        rows = h.reshape(-1, h.shape[-1]).tolist()
        out = torch.stack([self.f(tuple(i for i in r if i>=0)) for r in rows])
        return out.reshape(*h.shape[:-1], -1).to(h.device)


# %%
#| export
class StubModel(PreTrainedModel, GenerationMixin):
    "A causal language model whose next-token distribution is a Python function"
    config_class = StubConfig
    base_model_prefix = 'model'
    def __init__(self, config, f):
        super().__init__(config)
        self.model = _History()
        self.lm_head = _Head(f)
        self.anchor = nn.Parameter(torch.zeros(1)) # Gives the model a device and a dtype
        self.post_init()
    def _init_weights(self, m): pass
    def get_output_embeddings(self): return self.lm_head
    def forward(self, input_ids, attention_mask=None, past_key_values=None, cache=None,
                logits_to_keep=0, **kw):
        o = self.model(input_ids, attention_mask, past_key_values, cache)
        positions = logits_to_keep
        if isinstance(positions, int): positions = slice(-positions, None)
        return CausalLMOutputWithPast(logits=self.lm_head(o.last_hidden_state[:,positions]),
                                      **{_cache: getattr(o, _cache)})


# %% [markdown]
# The function returns pieces of text, `{'yes': .3, 'no, never': .7}`, while the model has to predict
# one byte after another. Inside a piece, the bytes so far are given: if $P(c)$ is the probability of
# piece $c$ and $s$ the part generated so far, the next byte $b$ has
#
# $$p(b \mid s) = \frac{\sum_{c\,\text{begins with}\,sb} P(c)}{\sum_{c\,\text{begins with}\,s} P(c)}.$$
#
# The product over a piece is then $P(c)$, in scoring and in sampling. Probability that the function
# does not assign is spread evenly over all tokens.

# %%
#| export
class _PieceLogits:
    "Next-token logits from a function that returns whole pieces of text"
    def __init__(self, fn, tok, max_bytes):
        self.tok = tok
        self.max_bytes = max_bytes
        self.pieces = lru_cache(20_000)(lambda text: self.check(fn(text)))
        self.starts = {} # Text to `openings` of it
        n = len(_special) # The bytes have the ids after these
        self.bytes = {i: s.encode() for i,s in enumerate(_special)}
        self.bytes |= {n+b: bytes([b]) for b in range(256)} | {2: b''} # BOS is no text

    def check(self, pieces):
        if pieces and (min(pieces.values())<0 or sum(pieces.values())>1+1e-9):
            raise ConfigError(f'The function of a stub model returned no probabilities: {pieces}; '
                              'return values of at least 0 with a sum of at most 1.')
        return {k.encode(): v for k,v in pieces.items()} if pieces else {}

    def openings(self, text):
        "Return where a piece may have begun in the last `max_bytes`, and which, earliest first"
        first = max(0, len(text)-self.max_bytes)
        known = lambda n: self.starts.get(text[:n], (len(text),))[0]<=first # All since `first`
        n = next((n for n in range(len(text), first, -1) if known(n)), first)
        found = self.starts[text[:n]][1] if n>first else ()
        if len(self.starts)>20_000: self.starts.clear()
        for i in range(n, len(text)):
            inside = text[i]&0xC0==0x80 # Of a character
            pieces = {} if inside else self.pieces(text[:i].decode(errors='replace'))
            if any(pieces): found = (*found, (i, pieces))
            self.starts[text[:i+1]] = first,found
        return [(i, pieces) for i,pieces in found if i>=first]

    def partial_piece(self, text):
        "Return the earliest distribution with an unfinished piece, and the part generated so far"
        for i,pieces in self.openings(text):
            part = text[i:]
            if any(len(c)>len(part) and c.startswith(part) for c in pieces): return pieces,part
        return self.pieces(text.decode(errors='replace')),b''

    def first_token(self, rest):
        if not rest: return self.tok.eos_token_id
        matches = [i for i,s in enumerate(_special) if rest.startswith(s.encode())]
        return matches[0] if matches else len(_special)+rest[0]

    def __call__(self, ids):
        pieces,part = self.partial_piece(b''.join(self.bytes[i] for i in ids))
        p = torch.zeros(len(self.tok), dtype=torch.float64)
        rest = {c[len(part):]: v for c,v in pieces.items() if c.startswith(part)}
        total = sum(rest.values()) if part else 1.
        for c,v in rest.items(): p[self.first_token(c)] += v/total
        p += (1-p.sum()).clamp(min=0)/len(p)
        return p.clamp(min=1e-12).log().float()


# %%
#| export
def stub_model(
    fn,                 # Text so far -> {continuation: probability}; '' ends the answer
    name:str='stub',
    bos:bool=False,     # Use a tokenizer that prepends a BOS
    max_bytes:int=256,  # Length in bytes of the longest continuation that `fn` returns
)->LM:
    "Make a stub model whose answers come from a function"
    tok = byte_tokenizer(bos=bos)
    config = StubConfig(vocab_size=len(tok), num_hidden_layers=1, eos_token_id=1)
    model = StubModel(config, _PieceLogits(fn, tok, max_bytes)).eval()
    return LM(model, tok, name, 'a function', is_stub=True)


# %% [markdown]
# The function gets the decoded text, headings included, and may parse it in any way. This one finds
# the person in the question, declines half of the time, and then ends its answer.

# %%
def shy(text):
    if not text.endswith('Assistant:'): return {'': 1.}
    person = text.split('Is it ')[1].split('?')[0]
    return {f' {person}, I think.': .3, f' {person}.': .2, ' I cannot say.': .5}

lm = stub_model(shy, 'shy')
prompts = [render(lm, [('human', f'Is it {p}?')]) for p in ('Zoë', 'the nurse')]
answers = ' {}, I think.', ' {}.', ' I cannot say.', ' Nobody.'
options = [[a.format(p) for a in answers] for p in ('Zoë','the nurse')]
p = np.exp(option_logprobs(lm, prompts, options))
test_close(p, [[.3, .2, .5, 0]]*2, 1e-6)
p.round(6)

# %%
samples = sample(lm, prompts*200, 40, keys=range(400))
count = Counter(s.text for s in samples[::2])
assert abs(count[' I cannot say.']-100)<30 and {s.finish for s in samples}=={'eos'}
count

# %% [markdown]
# `''` after a piece ends the answer, like an EOS token. A piece may itself be a special token
# of the chat template, and a longer piece may begin with a shorter one.

# %%
pieces = {'yes': .5, 'yes<|im_end|>': .25, '': .25}
ending = stub_model(lambda text: pieces if text.endswith('?') else {'': 1.})
p = np.exp(option_logprobs(ending, ['So?'], ['yes', 'yes<|im_end|>', '<eos>']))
test_close(p, [[.75, .25, .25]], 1e-6) # 'yes' is also the beginning of 'yes<|im_end|>'
p

# %% [markdown]
# The places where a piece may have begun are remembered from text to text. A search in each text
# alone finds the same piece, whatever was asked before, also where characters have two bytes and
# pieces are longer than `max_bytes`.

# %%
import random

def search(logits, text):
    "The same as `partial_piece`, from this text alone"
    for k in range(min(logits.max_bytes, len(text)), 0, -1):
        pieces = logits.pieces(text[:-k].decode(errors='replace')) if text[-k]&0xC0!=0x80 else {}
        if any(len(c)>k and c.startswith(text[-k:]) for c in pieces): return pieces,text[-k:]
    return logits.pieces(text.decode(errors='replace')),b''

def scattered(text):
    rng = random.Random(text[-3:])
    return {''.join(rng.choices('abé', k=rng.randrange(1, 9))): .5 for _ in range(rng.randrange(3))}

rng = random.Random(0)
texts = [''.join(rng.choices('abé', k=14)).encode() for _ in range(20)]
asked = [rng.choice(texts)[:rng.randrange(20)] for _ in range(2000)]
for max_bytes in (3, 6, 256):
    logits = _PieceLogits(scattered, byte_tokenizer(), max_bytes)
    for t in asked: test_eq(logits.partial_piece(t), search(logits, t))

# %% [markdown]
# The result does not depend on the amount of padding, nor on the part of the text that is in the KV
# cache.

# %%
prompts = ['So?', 'And is that so, or is it not, or may we never know?']
test_close(option_logprobs(ending, prompts, ['yes'], side='left'), np.log([[.75],[.75]]), 1e-6)
with expect_fail(ConfigError, contains='no probabilities'):
    option_logprobs(stub_model(lambda t: {'a': .7, 'b': .7}), ['x'], ['a'])


# %% [markdown]
# ## Fixed letter preferences
#
# Small models answer multiple choice mostly by position: often (a), or often (c). This stub has only
# that preference, so every bias measure has a known value for it.

# %%
#| export
def letter_prior_model(
    prior:dict, # Letter -> probability: {'a': .2, 'b': .3, 'c': .5}
)->LM:
    "Make a stub model that answers every question with a letter drawn from a fixed prior"
    def is_answered(text): return text[-1:] in prior and text[-2:-1]=='('
    return stub_model(lambda text: {'': 1.} if is_answered(text) else prior, 'letter-prior',
                      max_bytes=1)


# %%
lm = letter_prior_model(dict(a=.2, b=.3, c=.5))
lp = option_logprobs(lm, ['Who was it?\n\nAssistant: The answer is ('], list('abc'))
test_close(option_mass(lp), [1], 1e-6)
np.exp(lp).round(6)


# %% [markdown]
# ## Random models
#
# A stub cannot show that the code handles real architectures: rotary positions, grouped-query
# attention, sliding windows. These models have three layers and random weights, but their
# log-probabilities are as well defined as those of a large model.

# %%
#| export
def _configs(n):
    from transformers import (Gemma3TextConfig, GPTNeoXConfig, LlamaConfig, Qwen2Config,
                              Qwen3Config)
    kw = dict(vocab_size=n, hidden_size=64, intermediate_size=128, num_hidden_layers=3,
              num_attention_heads=4, max_position_embeddings=2048, initializer_range=.2,
              bos_token_id=2, eos_token_id=1, pad_token_id=0)
    gqa = dict(num_key_value_heads=2, tie_word_embeddings=True)
    window = ['sliding_attention', 'full_attention', 'sliding_attention']
    return dict(
        llama=lambda: LlamaConfig(**kw, **gqa), qwen2=lambda: Qwen2Config(**kw, **gqa),
        qwen3=lambda: Qwen3Config(**kw, **gqa, head_dim=16),
        neox=lambda: GPTNeoXConfig(**kw, use_parallel_residual=True),
        gemma3=lambda: Gemma3TextConfig(**kw, **gqa, head_dim=16, sliding_window=8,
                                        layer_types=window))

def random_model(
    arch:str='llama', # 'llama', 'neox', 'qwen2', 'qwen3' or 'gemma3'
    seed:int=0,       # Of the weights
    merges=(),        # As in `byte_tokenizer`
    tokenizer=None,   # In place of the byte tokenizer
)->LM:
    "Make a model of a real architecture with three layers and random weights"
    from transformers import AutoModelForCausalLM
    tok = tokenizer or byte_tokenizer(merges, bos=arch=='gemma3')
    configs = _configs(len(tok))
    if arch not in configs:
        raise ConfigError(unknown_name_message('architecture', arch, list(configs)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(configs[arch]()).eval()
    model.generation_config = GenerationConfig(eos_token_id=1)
    return LM(model, tok, f'random-{arch}', f'random weights, seed {seed}', is_stub=True)


# %%
one = random_model('qwen2')
same = random_model('qwen2')
other = random_model('qwen2', seed=1)
a,b,c = (next_token_logprobs(m, ['Well, '])[0] for m in (one, same, other))
test_eq(a, b)
test_ne(a, c)
one

# %%
test_close(np.exp(a).sum(), 1, 1e-9)
with expect_fail(ConfigError, contains='llama'): random_model('lama')
