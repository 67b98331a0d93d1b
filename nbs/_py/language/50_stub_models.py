# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Oracles
#
# > Tiny models whose answers are known, behind the same interface as real ones.

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
# A bias score can be wrong in the metric, in the prompt, in the tokens, or in reading the
# logits, and a real model will not tell which: nobody knows its true answer. An oracle is a
# model whose answer is known because we wrote it down. It takes the whole path, from
# prompt to tokens to logits to metric, so that a number that comes out right proves every
# step. And where no weights are in reach, a page can still run on one.
#
# ## A tokenizer of bytes
#
# One token a byte: every text has exactly one tokenisation and comes back unchanged. Merges can
# be added to build the traps that real tokenizers set.

# %%
#| export
_special = ['<pad>', '<eos>', '<bos>', '<|im_start|>', '<|im_end|>']
_template = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
             "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")

def _letters():
    "The characters that stand for bytes 0 to 255 in byte-level vocabularies"
    keep = {*range(33,127), *range(161,173), *range(174,256)}
    other = iter(range(256, 512))
    return [chr(b if b in keep else next(other)) for b in range(256)]

def byte_tokenizer(
    merges=(),      # Pairs of pieces that become one token: [('(', 'a')]
    bos:bool=False, # Put a BOS token in front of every text
)->PreTrainedTokenizerFast:
    "A token for each byte, and one for each merge"
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


# %%
tok = byte_tokenizer([('(','a')])
ids = tok('naïve (a) ☂').input_ids
test_eq(tok.decode(ids), 'naïve (a) ☂')
tok.convert_ids_to_tokens(ids)


# %% [markdown]
# ## A model that says what a function says
#
# The model is an ordinary transformers model with an odd inside. Its hidden state at a token is
# the list of all tokens up to there, kept in an ordinary cache; its output layer turns
# that list back into text and asks a function. So batching, padding, caching and reading at few
# positions are exercised as with any model, and the function is called only where logits
# are read.

# %%
#| export
class StubConfig(PreTrainedConfig):
    "Settings of an oracle: those that samplers look at"
    model_type = 'moral_sc_stub'

_cache = next(k for k in ('cache', 'past_key_values') # Before transformers 5.24
              if k in BaseModelOutputWithPast.__dataclass_fields__)

class _History(nn.Module):
    "The hidden state of a token: all tokens up to it, -1 where there is none"
    def forward(self, input_ids, attention_mask=None, past_key_values=None, cache=None, **kw):
        cache = past_key_values if cache is None else cache
        n = input_ids.shape[1]
        ids = input_ids
        if cache is not None: # Token ids are kept where others keep keys
            k = ids[:,None,:,None].double()
            ids = cache.update(k, k, 0)[0][:,0,:,0].long()
        if attention_mask is not None: ids = ids.masked_fill(attention_mask==0, -1)
        T = ids.shape[1]
        h = nn.functional.pad(ids, (T-1, 0), value=-1).unfold(1, T, 1)[:,-n:]
        return BaseModelOutputWithPast(last_hidden_state=h, **{_cache: cache})

class _Head(nn.Module):
    "From lists of tokens to logits"
    def __init__(self, f): super().__init__(); self.f = f
    def forward(self, h):
        rows = h.reshape(-1, h.shape[-1]).tolist()
        out = torch.stack([self.f(tuple(i for i in r if i>=0)) for r in rows])
        return out.reshape(*h.shape[:-1], -1).to(h.device)


# %%
#| export
class StubModel(PreTrainedModel, GenerationMixin):
    "A causal language model whose next token follows from a Python function of the text"
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
        keep = logits_to_keep
        if isinstance(keep, int): keep = slice(-keep, None)
        return CausalLMOutputWithPast(logits=self.lm_head(o.last_hidden_state[:,keep]),
                                      **{_cache: getattr(o, _cache)})


# %% [markdown]
# The function speaks in pieces of text, `{'yes': .3, 'no, never': .7}`, while the model has to
# give one byte after another. While a piece is under way, the bytes so far are taken as known:
# if $P(c)$ is the probability of piece $c$ and $s$ the part already said, the next byte $b$ has
#
# $$p(b \mid s) = \frac{\sum_{c\,\text{begins with}\,sb} P(c)}{\sum_{c\,\text{begins with}\,s} P(c)}.$$
#
# The product over a piece is then $P(c)$, in scoring and in sampling. What probability the
# function leaves open is spread evenly over all tokens.

# %%
#| export
class _Pieces:
    "Next-token logits from a function that gives whole pieces of text"
    def __init__(self, fn, tok, reach):
        self.tok = tok
        self.reach = reach
        self.ask = lru_cache(20_000)(lambda text: self.check(fn(text)))
        n = len(_special) # The bytes have the ids after these
        self.bytes = {i: s.encode() for i,s in enumerate(_special)}
        self.bytes |= {n+b: bytes([b]) for b in range(256)} | {2: b''} # BOS is no text

    def check(self, d):
        if d and (min(d.values())<0 or sum(d.values())>1+1e-9):
            raise ConfigError(f'An oracle gave what are no probabilities: {d}.')
        return {k.encode(): v for k,v in d.items()} if d else {}

    def under_way(self, text):
        "The earliest piece in reach that is not finished: its rivals, and the part said"
        for k in range(min(self.reach, len(text)), 0, -1):
            if text[-k]&0xC0==0x80: continue # Inside a character
            pieces = self.ask(text[:-k].decode(errors='replace'))
            part = text[-k:]
            if any(len(c)>k and c.startswith(part) for c in pieces): return pieces,part
        return self.ask(text.decode(errors='replace')), b''

    def token(self, rest):
        if not rest: return self.tok.eos_token_id
        hit = [i for i,s in enumerate(_special) if rest.startswith(s.encode())]
        return hit[0] if hit else len(_special)+rest[0]

    def __call__(self, ids):
        pieces,part = self.under_way(b''.join(self.bytes[i] for i in ids))
        p = torch.zeros(len(self.tok), dtype=torch.float64)
        rest = {c[len(part):]: v for c,v in pieces.items() if c.startswith(part)}
        total = sum(rest.values()) if part else 1.
        for c,v in rest.items(): p[self.token(c)] += v/total
        p += (1-p.sum()).clamp(min=0)/len(p)
        return p.clamp(min=1e-12).log().float()


# %%
#| export
def stub_model(
    fn,                 # Text so far -> {continuation: probability}; '' ends the answer
    name:str='stub',
    bos:bool=False,     # With a tokenizer that puts a BOS in front
    reach:int=256,      # Length in bytes of the longest piece that `fn` gives
)->LM:
    "A model that says what a function says"
    tok = byte_tokenizer(bos=bos)
    cfg = StubConfig(vocab_size=len(tok), num_hidden_layers=1, eos_token_id=1)
    model = StubModel(cfg, _Pieces(fn, tok, reach)).eval()
    return LM(model, tok, name, 'a function', is_stub=True)


# %% [markdown]
# The function gets the decoded text, headings and all, and may parse it as it likes. This one
# reads who is asked about, refuses to say half of the time, and ends its answer there.

# %%
def shy(text):
    if not text.endswith('Assistant:'): return {'': 1.}
    who = text.split('Is it ')[1].split('?')[0]
    return {f' {who}, I think.': .3, f' {who}.': .2, ' I cannot say.': .5}

lm = stub_model(shy, 'shy')
asks = [render(lm, [('human', f'Is it {w}?')]) for w in ('Zoë', 'the nurse')]
known = ' {}, I think.', ' {}.', ' I cannot say.', ' Nobody.'
options = [[o.format(w) for o in known] for w in ('Zoë','the nurse')]
p = np.exp(option_logprobs(lm, asks, options))
test_close(p, [[.3, .2, .5, 0]]*2, 1e-6)
p.round(6)

# %%
said = sample(lm, asks*200, 40, keys=range(400))
count = Counter(s.text for s in said[::2])
assert abs(count[' I cannot say.']-100)<30 and {s.finish for s in said}=={'eos'}
count

# %% [markdown]
# `''` after a piece ends the answer, as an EOS token does. A piece may itself be a special token
# of the chat template, and a longer piece may begin with a shorter one.

# %%
given = {'yes': .5, 'yes<|im_end|>': .25, '': .25}
ends = stub_model(lambda text: given if text.endswith('?') else {'': 1.})
p = np.exp(option_logprobs(ends, ['So?'], ['yes', 'yes<|im_end|>', '<eos>']))
test_close(p, [[.75, .25, .25]], 1e-6) # 'yes' is also how 'yes<|im_end|>' begins
p

# %% [markdown]
# It does not matter how much is padding, nor that the cache holds part of the text.

# %%
both = ['So?', 'And is that so, or is it not, or may we never know?']
test_close(option_logprobs(ends, both, ['yes'], side='left'), np.log([[.75],[.75]]), 1e-6)
with expect_fail(ConfigError, contains='no probabilities'):
    option_logprobs(stub_model(lambda t: {'a': .7, 'b': .7}), ['x'], ['a'])


# %% [markdown]
# ## A letter, whatever is asked
#
# Small models answer multiple choice with a habit: mostly (a), or mostly (c). This oracle has
# nothing but that habit, so every measure of bias must say about it what it should say about
# a habit.

# %%
#| export
def letter_prior_model(
    prior:dict, # Letter -> probability: {'a': .2, 'b': .3, 'c': .5}
)->LM:
    "A model that answers with a letter, whatever is asked"
    done = lambda text: text[-1:] in prior and text[-2:-1]=='('
    return stub_model(lambda text: {'': 1.} if done(text) else prior, 'letter-prior', reach=1)


# %%
lm = letter_prior_model(dict(a=.2, b=.3, c=.5))
lp = option_logprobs(lm, ['Who was it?\n\nAssistant: The answer is ('], list('abc'))
test_close(option_mass(lp), [1], 1e-6)
np.exp(lp).round(6)


# %% [markdown]
# ## Real architectures, random weights
#
# What an oracle cannot show is that the code copes with real models: rotary positions, grouped
# heads, windows of attention. These are three layers deep and know nothing, but their
# log-probabilities are as much a fact as those of a large one.

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
)->LM:
    "A real architecture, three layers deep, with random weights"
    from transformers import AutoModelForCausalLM
    tok = byte_tokenizer(merges, bos=arch=='gemma3')
    makes = _configs(len(tok))
    if arch not in makes: raise ConfigError(unknown_name_message('architecture', arch, list(makes)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(makes[arch]()).eval()
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
