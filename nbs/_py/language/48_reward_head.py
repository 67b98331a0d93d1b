# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Reward and value heads
#
# > This module has small models, reward and value heads, and differentiable log-probabilities.

# %%
#| default_exp language.reward_head

# %%
#| export
import copy, shutil
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from moral_sc.foundation.errors import ConfigError, ModelError
from moral_sc.language.models import LM, pad
from moral_sc.language.engine.batching import copy_capabilities, has_plain_lm_head
from moral_sc.language.engine.onednn import linear_function
from moral_sc.language.weights import call_quietly, check_model_folder, load_weights

# %%
#| hide
import json, tempfile
import numpy as np
from fastcore.test import *
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from moral_sc.language.loading import load
from moral_sc.language.models import decode, encode
from moral_sc.language.stub_models import byte_tokenizer, random_model, stub_model
from moral_sc.language.scoring import token_logprobs

tmp = Path(tempfile.mkdtemp())
torch.set_num_threads(1)

# %% [markdown]
# This project trains ordinary transformers models with ordinary heads. This page creates them and
# computes the log-probabilities, rewards and values that losses need. Two details differ from
# common implementations. The last token of a row is found from its length and not by a search for
# padding, and logits over the vocabulary are computed only for the tokens of answers.
#
# ## Small models
#
# A language of a hundred words needs no tokenizer of fifty thousand tokens. This tokenizer has a
# token for each given word, with and without a space before it, and one for each heading.
# Decoding returns the encoded text.

# %%
#| export
HEADINGS = ('Human', 'Assistant', 'CritiqueRequest', 'Critique', 'RevisionRequest', 'Revision')

def word_tokenizer(
    words,             # Words and punctuation: 'tea', '.', '?'
    headings=HEADINGS, # One token each, line breaks and colon included
):                     # A fast tokenizer; other words become <unk>
    "Return a tokenizer with a token for each word"
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    pieces = ['<pad>', '<eos>', '<unk>', '\n', '\n\n', ' ', *(f'\n\n{h}:' for h in headings),
              *(f' {w}' for w in words), *words]
    vocab = {p: i for i,p in enumerate(dict.fromkeys(pieces))}
    tok = Tokenizer(models.WordLevel(vocab, unk_token='<unk>'))
    split = r'\n\n[A-Z][A-Za-z]*:|\n+| ?[\w\'-]+| ?[^\w\s]| '
    tok.pre_tokenizer = pre_tokenizers.Split(Regex(split), 'isolated')
    tok.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tok, pad_token='<pad>', eos_token='<eos>',
                                   unk_token='<unk>')

def small_llama(
    tokenizer,
    layers:int=4,
    width:int=128,
    heads:int=4,
    seed:int=0,
    context:int=512, # Tokens
    name:str='',
    device='cpu',
)->LM:
    "Return a Llama model with random weights"
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=width, intermediate_size=3*width,
        num_hidden_layers=layers, num_attention_heads=heads, max_position_embeddings=context,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).eval()
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    return LM(model.to(device), tokenizer, name or f'small-{layers}x{width}',
              f'random weights, seed {seed}')


# %%
words = 'is it far tea the cup . ? , yes no'.split()
tok = word_tokenizer(words)
text = '\n\nHuman: is it far?\n\nAssistant: no, the tea is far.'
lm = small_llama(tok, layers=2, width=32)
tok.convert_ids_to_tokens(encode(lm, text))

# %%
test_eq(decode(lm, encode(lm, text)), text)
test_eq(tok.convert_ids_to_tokens(encode(lm, ' tea pot')), [' tea', '<unk>'])
test_ne(tok.pad_token_id, tok.eos_token_id)
lm


# %% [markdown]
# ## Log-probabilities of answers
#
# `answer_logprobs` returns the log-probability of each token of the answers, with a gradient. A
# straightforward loss keeps float32 logits over the vocabulary for every token of every row, most
# of which belong to prompts or padding. Here only the hidden states of answers pass through the
# output layer, in chunks, and the backward pass computes their logits again.

# %%
#| export
def backbone(model):
    "Return the part of a causal or classification model below its head"
    return getattr(model, model.base_model_prefix)

def pad_right(
    rows:list, # Token ids
    device,
)->dict:       # Arguments of `forward`; causal attention needs no mask for right padding
    "Pad rows on the right"
    return dict(input_ids=pad(rows, 'right', device)[0], use_cache=False)

def check_plain_lm_head(
    model,
    original=None, # A checked model that this one is a copy of
):
    "Raise an error if the logits of a model are not its output layer alone"
    if original is not None: copy_capabilities(original, model)
    lm = SimpleNamespace(model=model, device=next(model.parameters()).device)
    if not has_plain_lm_head(lm):
        raise ModelError(f'{type(model).__name__} caps or scales its logits after the output '
                         'layer, which training does not support; use another architecture.')

def _at_least_float32(x): return x if x is None or x.dtype.itemsize>2 else x.float()

def _token_logprobs(h, linear, weight, bias, targets, temperature, entropy):
    "Return the log-probability of one target for each hidden state, in float32, and the entropy"
    with torch.autocast(h.device.type, enabled=False):
        h = _at_least_float32(h)
        x = linear(h, _at_least_float32(weight).to(h.dtype), _at_least_float32(bias))
        x = x/temperature
        norm = x.logsumexp(-1, keepdim=True) # `log_softmax` drops the smallest terms
        logp = (x.gather(-1, targets[:,None])-norm)[:,0]
        if not entropy: return logp,
        x = x-norm
        return logp,-(x.exp()*x).sum(-1)

def _chunked_logprobs(model, h, targets, temperature, chunk, entropy):
    out = model.get_output_embeddings()
    args = linear_function(out),out.weight,getattr(out, 'bias', None)
    if len(h)*len(out.weight)<2**19: return _token_logprobs(h, *args, targets, temperature, entropy)
    parts = [checkpoint(_token_logprobs, a, *args, b, temperature, entropy, use_reentrant=False)
             for a,b in zip(h.split(chunk), targets.split(chunk))]
    return [torch.cat(x) for x in zip(*parts)]

def answer_states(
    body,        # A model below its head, from `backbone`
    rows:list,   # Token ids of prompt and answer
    starts:list, # Index of each answer's first token, 1 or more
)->torch.Tensor: # [row, token, width]
    "Return the hidden states from which the tokens of the answers are predicted"
    device = next(body.parameters()).device
    n = max(len(r)-s for r,s in zip(rows, starts))
    h = body(**pad_right(rows, device)).last_hidden_state
    at = torch.tensor(starts, device=device)[:,None]-1+torch.arange(n, device=device)
    return h.gather(1, at.clamp(max=h.shape[1]-1)[...,None].expand(-1, -1, h.shape[2]))

def answer_outputs(
    model,              # A transformers causal model
    rows:list,          # Token ids of prompt and answer
    starts:list,        # Index of each answer's first token, 1 or more
    temperature:float=1.,
    chunk:int=1024,     # Tokens whose logits are in memory at one time
    entropy:bool=False, # Also return the entropy at each token
)->tuple: # log p [row, token], mask [row, token], hidden states [row, token, width], entropy
    "Return log-probabilities and hidden states of answers, with gradient; 0 after an answer's end"
    check_plain_lm_head(model)
    device = next(model.parameters()).device
    n = [len(r)-s for r,s in zip(rows, starts)]
    if min(n)<1:
        raise ConfigError(f'Row {n.index(min(n))} has no answer to learn from; leave it out.')
    if min(starts)<1:
        raise ConfigError(f'Row {[*starts].index(min(starts))} has no prompt; its first token '
                          'has no prediction, so start the answer at 1 or later.')
    h = answer_states(backbone(model), rows, starts)
    mask = torch.arange(max(n), device=device)<torch.tensor(n, device=device)[:,None]
    targets = torch.tensor([t for r,s in zip(rows, starts) for t in r[s:]], device=device)
    logp,*e = _chunked_logprobs(model, h[mask], targets, temperature, chunk, entropy)
    unpack = lambda x: x.new_zeros(mask.shape).masked_scatter(mask, x)
    return unpack(logp),mask,h,unpack(e[0]) if e else None

def answer_logprobs(
    model, rows:list, starts:list, temperature:float=1., chunk:int=1024,
    entropy:bool=False, # Also return the entropy at each token
)->tuple:               # log p [row, token], mask [row, token]; entropy [row, token]
    "Return the log-probabilities of the tokens of answers, with gradient"
    logp,mask,_,e = answer_outputs(model, rows, starts, temperature, chunk, entropy)
    return (logp,mask,e) if entropy else (logp,mask)


# %%
rows = [encode(lm, text), encode(lm, '\n\nHuman: is it?\n\nAssistant: yes')]
starts = [6, 5]
logp,mask = answer_logprobs(lm.model, rows, starts)
logp.detach().round(decimals=2), mask.sum(1)

# %% [markdown]
# A token is predicted from the hidden state of the token before it. The hidden states of this stub
# model are one-hot vectors of its tokens and its output layer is a table of log-probabilities, so
# the log-probability of a row is a sum of entries of the table.

# %%
V = 7
table = torch.rand(V, V, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
class Bigram(nn.Module):
    base_model_prefix = 'body'
    def __init__(self):
        super().__init__()
        self.body = nn.Embedding(V, V)
        self.out = nn.Linear(V, V, bias=False)
        self.body.weight.data = torch.eye(V)
        self.out.weight.data = table.T.clone()
        embed = self.body.forward
        self.body.forward = lambda input_ids, **_: SimpleNamespace(
            last_hidden_state=embed(input_ids))
    def get_output_embeddings(self): return self.out
    def forward(self, **kw):
        return SimpleNamespace(logits=self.out(self.body(**kw).last_hidden_state))

bigram,_ = answer_logprobs(Bigram(), [[1, 5, 2, 2], [3, 0, 6]], [1, 2])
expected = [[table[1,5], table[5,2], table[2,2]], [table[0,6], 0, 0]]
test_close(bigram.detach(), torch.tensor(expected), 1e-6)
bigram.detach().round(decimals=2)


# %% [markdown]
# The reference computes all logits of one row at a time. In float64 both agree in values and
# gradients to eleven digits, at two temperatures and for every chunk size. Three of these four
# architectures always compute their norms in float32, which leaves seven digits of a gradient.

# %%
def reference(model, rows, starts, temperature=1.):
    res = []
    for r,s in zip(rows, starts):
        x = model(torch.tensor([r])).logits[0]/temperature
        res.append(x.log_softmax(-1)[range(s-1, len(r)-1), r[s:]])
    return torch.cat(res)

def gradient(total, model):
    model.zero_grad()
    total.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])

def differences(model, rows, starts, T=1., **kw):
    "Return the largest differences of values and of gradients"
    ours,mask = answer_logprobs(model, rows, starts, T, **kw)
    expected = reference(model, rows, starts, T)
    w = torch.linspace(-1, 2, mask.sum().item())
    a,b = (gradient((w*x).sum(), model) for x in (ours[mask], expected))
    return (ours[mask]-expected).abs().max().item(),(a-b).abs().max().item()

for arch in ('llama', 'qwen3', 'gemma3', 'neox'):
    m = random_model(arch)
    rs = [encode(m, 'It is (a) far.'), encode(m, 'No.'), encode(m, 'A longer row, say.')]
    ss = [3, 2, 9]
    m.model.double()
    eps = 1e-11 if arch=='neox' else 1e-5
    for T in (1., .7): test_close(differences(m.model, rs, ss, T), [0, 0], eps)
differences(m.model, rs, ss)

# %% [markdown]
# [Scoring](30_scoring.ipynb) computes the same numbers faster, without gradient.

# %%
m = random_model('llama')
ours,mask = answer_logprobs(m.model, rs, ss)
test_close(np.concatenate(token_logprobs(m, rs, ss)), ours[mask].detach().numpy(), 1e-5)

# %% [markdown]
# Results do not depend on batching or on the side of the padding. An end token inside a row,
# between earlier turns, hides nothing. The loss and its gradient are sums over the mask, so tokens
# of the prompt contribute nothing.

# %%
inside = [*rs[0][:3], tok.eos_token_id, *rs[0][3:]]
batch = [*rs, inside]
at = [*ss, 5]
ours,mask = answer_logprobs(m.model, batch, at)
for r,s,f,k in zip(batch, at, ours, mask):
    test_close(answer_logprobs(m.model, [r], [s])[0][0].detach(), f[k].detach(), 1e-5)
    ids,on = pad([r, [1]*40], 'left')
    left = m.model(ids, attention_mask=on, position_ids=on.cumsum(-1).sub(1).clamp(0)).logits[0]
    left = left[40-len(r):].log_softmax(-1)[range(s-1, len(r)-1), r[s:]]
    test_close(left.detach(), f[k].detach(), 1e-5)
test_eq(mask.sum(1).tolist(), [len(r)-s for r,s in zip(batch, at)])
assert ours[~mask].abs().sum()==0

# %%
sums = gradient(ours.sum(), m.model)
parts = sum(gradient(reference(m.model, [r], [s]).sum(), m.model) for r,s in zip(batch, at))
assert (sums-parts).norm()<1e-5*parts.norm()
with expect_fail(ConfigError, contains='Row 1 has no answer'):
    answer_logprobs(m.model, rs, [1, 99, 1])


# %% [markdown]
# ### Memory
#
# The bytes that are saved for the backward pass can be counted. With a vocabulary of 49 thousand
# the reference stores the logits twice; `answer_logprobs` stores little more than the hidden
# states.

# %%
def saved_bytes(f):
    "Return the bytes saved for the backward pass, each storage once, and the result"
    storages = {}
    def record(t):
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes(); return t
    with torch.autograd.graph.saved_tensors_hooks(record, lambda t: t): out = f()
    return sum(storages.values()),out

class Wide(list): pad_token_id = eos_token_id = 1
big = small_llama(Wide(range(49_152)), layers=1, width=16, heads=2).model
ids = torch.randint(49_152, (4, 128), generator=torch.Generator().manual_seed(0)).tolist()
def naive():
    x = big(torch.tensor(ids)).logits[:,:-1].log_softmax(-1)
    return x.gather(-1, torch.tensor(ids)[:,1:,None])[:,95:,0]

(a,x),(b,y) = saved_bytes(naive),saved_bytes(lambda: answer_logprobs(big, ids, [96]*4, chunk=32)[0])
weights = sum(p.nbytes for p in big.parameters())
test_close(x.detach(), y.detach(), 1e-5)
assert b-weights<.05*a
f'reference {a/1e6:.0f} MB, answer_logprobs {b/1e6:.0f} MB, of which weights {weights/1e6:.0f} MB'

# %% [markdown]
# In bfloat16 only the hidden states are rounded. The softmax over a vocabulary of 49 thousand is
# computed in float32, so the ratio of two probabilities has an error below a thousandth. In
# bfloat16 the error would be several percent.

# %%
g = torch.Generator().manual_seed(0)
h = torch.randn(64, 64, generator=g).bfloat16()
w = torch.randn(49_152, 64, generator=g).bfloat16()
targets = torch.randint(49_152, (64,), generator=g)
exact = (h.double()@w.double().T).log_softmax(-1).gather(-1, targets[:,None])[:,0]
ours, = _token_logprobs(h, nn.functional.linear, w, None, targets, 1., False)
rounded = (h@w.T).log_softmax(-1).gather(-1, targets[:,None])[:,0]
error = lambda x: (x.double()-exact).exp().sub(1).abs().max().item()
assert error(ours)<1e-3
with torch.autocast('cpu', torch.bfloat16):
    cast, = _token_logprobs(h, nn.functional.linear, w, None, targets, 1., False)
assert error(cast)<1e-3
error(ours), error(rounded)


# %% [markdown]
# ## Reward head
#
# A reward model, which the papers call a preference model, is a backbone with a scalar head that is
# applied at the last token of the text. It is transformers' sequence classifier, so its folder can
# be loaded without this package. The head is initialised with a standard deviation of
# $1/\sqrt{d+1}$.

# %%
#| export
def build_reward_model(
    lm:LM,
    seed:int=0,
)->nn.Module: # In evaluation mode: no dropout
    "Return a sequence classifier with one output, on a copy of a language model's backbone"
    from transformers import AutoModelForSequenceClassification
    config = copy.deepcopy(lm.model.config)
    config.num_labels = 1
    config.tie_word_embeddings = False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
        d = _score_head(model).weight.shape[1]
        nn.init.normal_(_score_head(model).weight, std=(d+1)**-.5)
    backbone(model).load_state_dict(backbone(lm.model).state_dict())
    return model.to(lm.device).eval()

def _score_head(model):
    heads = [m for n,m in model.named_modules() if isinstance(m, nn.Linear) and m.out_features==1]
    if len(heads)!=1:
        raise ModelError(f'{type(model).__name__} has {len(heads)} heads with one output; a '
                         'reward model has one, as `build_reward_model` makes it.')
    return heads[0]

def reward_scores(
    model,        # From `build_reward_model`
    rows:list,    # Token ids of prompt and answer
    positions:list=None, # Token at which to apply the head; default: the last
)->torch.Tensor:  # [row] float32, with gradient
    "Return the reward of each text"
    device = next(model.parameters()).device
    h = backbone(model)(**pad_right(rows, device)).last_hidden_state
    if positions is None: positions = [len(r)-1 for r in rows]
    positions = torch.tensor(positions, device=device)
    return _score_head(model)(h[torch.arange(len(rows), device=device),positions]).float()[:,0]

def _with_padding(tokenizer, model):
    "Return a copy of a tokenizer that pads with a token no text ends with"
    tok = copy.deepcopy(tokenizer)
    eos = _eos_ids(tok, model)
    n = model.get_input_embeddings().num_embeddings
    special = {i for i,t in tok.added_tokens_decoder.items() if t.special}|{*tok.all_special_ids}
    special = sorted(special, key=lambda i: ('pad' not in tok.convert_ids_to_tokens(i).lower(), i))
    for i in (tok.pad_token_id, tok.unk_token_id, *special):
        if i is None or i in eos or i>=n: continue
        tok.pad_token = tok.convert_ids_to_tokens(i)
        return tok
    if len(tok)<n: # A row of the embedding that has no token
        tok.add_special_tokens(dict(pad_token='<|padding|>'))
        return tok
    vocab = tok.get_vocab()
    for zero in ('<0x00>', 'Ā', '\0'): # The byte 0
        if zero in vocab:
            tok.pad_token = zero
            return tok
    raise ModelError('This tokenizer has no token that can serve as padding; add one with '
                     'add_special_tokens and resize the embedding.')

def _eos_ids(tok, model):
    ids = getattr(model.config.get_text_config(), 'eos_token_id', None)
    return {tok.eos_token_id, *(ids if isinstance(ids, (list,tuple)) else [ids])}

def save_reward_model(
    model,           # From `build_reward_model`
    tokenizer,
    folder,
    offset:float=0., # Subtracted from every score; stored as `reward_offset` in config.json
):
    "Save a folder for `AutoModelForSequenceClassification`"
    tokenizer = _with_padding(tokenizer, model)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    model.config.reward_offset = float(offset)
    call_quietly(model.save_pretrained, folder); tokenizer.save_pretrained(folder)

def load_reward_model(folder, device='cpu')->tuple: # The model, its tokenizer
    "Load a reward model from its folder; every parameter, the head's too, comes from there"
    from transformers import AutoTokenizer
    check_model_folder(folder)
    try:
        model = load_weights('AutoModelForSequenceClassification', folder, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except ModelError: raise
    except Exception as e:
        raise ModelError(f'{folder} cannot be loaded ({_first_line(e)}); give the folder of a '
                         'reward model that transformers can load.') from e
    body = {id(p) for p in backbone(model).parameters()}
    head = {id(p) for p in _score_head(model).parameters()}
    others = [k for k,p in model.named_parameters() if id(p) not in body|head]
    if others:
        raise ModelError(f'{folder} has more layers than one above its backbone ({others[0]}); '
                         'give a reward model with a linear head.')
    return model.to(device).eval(),tokenizer

def _first_line(e): return (str(e).strip().splitlines() or [type(e).__name__])[0][:150]


# %%
pm = build_reward_model(lm)
reward_scores(pm, rows)


# %% [markdown]
# The reward of this stub model is the id of the token at which its head is applied. It is the last
# token of each row, even if that is a padding or end token.

# %%
class Echo(nn.Module):
    base_model_prefix = 'body'
    def __init__(self):
        super().__init__()
        self.body = lambda input_ids, **_: SimpleNamespace(
            last_hidden_state=input_ids[...,None].float())
        self.score = nn.Linear(1, 1, bias=False)
        self.score.weight.data.fill_(1)

ended = [[5, 6, 7], [8], [9, tok.eos_token_id, 4, tok.eos_token_id], [3, tok.pad_token_id]]
test_eq(reward_scores(Echo(), ended).tolist(), [7, 8, tok.eos_token_id, tok.pad_token_id])
test_eq(reward_scores(Echo(), ended, [1, 0, 2, 0]).tolist(), [6, 8, 4, 3])

# %% [markdown]
# The reward of a row does not depend on tokens after the position of the head, and transformers
# computes the same reward from the saved folder.

# %%
longer = [[*rows[1], *rows[0]], [*rows[0], 7, 7, 9]]
ends = [len(rows[1])-1, len(rows[0])-1]
test_close(reward_scores(pm, longer, ends).detach(),
           reward_scores(pm, [rows[1], rows[0]]).detach(), 1e-6)
save_reward_model(pm, tok, tmp/'pm')
loaded,_ = load_reward_model(tmp/'pm')
for p,q in zip(pm.state_dict().values(), loaded.state_dict().values()): assert torch.equal(p, q)
for side in ('left', 'right'):
    ids,on = pad(rows, side)
    ids = ids.masked_fill(on==0, tok.pad_token_id)
    out = loaded(ids, attention_mask=on, position_ids=on.cumsum(-1).sub(1).clamp(0)).logits[:,0]
    test_close(out.detach(), reward_scores(pm, rows).detach(), 1e-5)


# %% [markdown]
# transformers applies the head at the last token that is not padding. Where the tokenizer pads with
# its end token, as SmolLM2's does, that would be the token before the end. The saved folder
# therefore pads with another token, if need be with one that is only made for it. The four tokenizers
# below have a padding token of their own; the end token in its place; no other special token, but a
# row of the embedding without a token; and neither.

# %%
def end_padded(others=(), merges=()):
    "Return a tokenizer that pads with its only end token"
    from transformers import PreTrainedTokenizerFast
    backend = byte_tokenizer(merges).backend_tokenizer
    names = dict.fromkeys(('pad_token', 'eos_token', 'bos_token', 'unk_token'), others[-1])
    backend = json.loads(backend.to_str())
    backend['added_tokens'] = []
    renamed = lambda k, v: '<other>' if v==3 else f'token{v}' if k.startswith('<') else k
    vocab = {renamed(k, v): v for k,v in backend['model']['vocab'].items()}
    vocab = {k:v for k,v in vocab.items() if v!=1} | {others[-1]: 1}
    backend['model']['vocab'] = vocab
    rebuilt = Tokenizer.from_str(json.dumps(backend))
    return PreTrainedTokenizerFast(tokenizer_object=rebuilt, **names,
                                   additional_special_tokens=list(others[:-1]))

def transformers_scores(folder, rows, side):
    "Return the scores of a folder by transformers alone, padded as its tokenizer pads"
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tok = AutoTokenizer.from_pretrained(folder)
    ids,on = pad(rows, side)
    ids = ids.masked_fill(on==0, tok.pad_token_id)
    out = model(ids, attention_mask=on, position_ids=on.cumsum(-1).sub(1).clamp(0)).logits[:,0]
    return out.detach()-model.config.reward_offset,tok.pad_token

tokenizers = dict(own=(byte_tokenizer(), 0), other=(end_padded(['<other>', '<end>']), 0),
                  free_row=(end_padded(['<end>']), 8), neither=(end_padded(['<end>']), 0))
padding = {}
for name,(t,more) in tokenizers.items():
    lm_ = small_llama(t, layers=2, width=32)
    if more: call_quietly(lm_.model.resize_token_embeddings, len(t)+more)
    ended = [[*encode(lm_, x), t.eos_token_id] for x in ('So?', 'It is far, said Bo.', 'é')]
    pm_ = build_reward_model(lm_)
    save_reward_model(pm_, t, tmp/name, offset=.25)
    expected = reward_scores(load_reward_model(tmp/name)[0], ended).detach()-.25
    test_close(expected, reward_scores(pm_, ended).detach()-.25, 1e-6)
    for side in ('left', 'right'):
        scores,padding[name] = transformers_scores(tmp/name, ended, side)
        test_close(scores, expected, 1e-5)
    alone = torch.cat([transformers_scores(tmp/name, [r], 'left')[0] for r in ended])
    test_close(alone, expected, 1e-5)
padding

# %% [markdown]
# A folder without a reward head, or with a head of several layers, is refused.

# %%
call_quietly(lm.model.save_pretrained, tmp/'no-head'); tok.save_pretrained(tmp/'no-head')
with expect_fail(ModelError, contains='lacks score.weight'): load_reward_model(tmp/'no-head')
with expect_fail(ModelError, contains='no config.json'): load_reward_model(tmp)

# %% [markdown]
# The backbone is a copy, and the head shares no weights with the language model.

# %%
pointers = {p.data_ptr() for p in lm.model.parameters()}
assert not pointers & {p.data_ptr() for p in pm.parameters()}
wide = build_reward_model(small_llama(tok, layers=1, width=512))
test_close(_score_head(wide).weight.std().item(), 513**-.5, .004)
test_eq(*(reward_scores(pm, rows).tolist() for _ in range(2))) # No dropout
before = [p.clone() for p in lm.model.parameters()]
nn.init.ones_(_score_head(pm).weight)
for p,q in zip(lm.model.parameters(), before): assert torch.equal(p, q)


# %% [markdown]
# ## Value head
#
# The critic of PPO is a linear head on every hidden state. It starts at zero.

# %%
#| export
class ValueHead(nn.Module):
    "A linear head that maps hidden states to values"
    def __init__(self,
        width:int, # Of the hidden states
    ):
        super().__init__()
        self.out = nn.Linear(width, 1)
        nn.init.zeros_(self.out.weight); nn.init.zeros_(self.out.bias)

    def forward(self, h): return self.out(h.float())[...,0]


# %%
test_eq(ValueHead(32)(answer_outputs(lm.model, rows, starts)[2]).detach().abs().sum().item(), 0)


# %% [markdown]
# ## Saved models

# %%
#| export
def save_model(
    lm:LM,
    folder,
)->Path:
    "Save model and tokenizer; a new folder appears only when it is complete"
    folder = Path(folder)
    if folder.is_file(): raise ConfigError(f'{folder} is a file: name a folder.')
    part = folder if folder.exists() else folder.with_name(f'.{folder.name}.part')
    if part!=folder: shutil.rmtree(part, ignore_errors=True) # Of a process that was killed
    call_quietly(lm.model.save_pretrained, part); lm.tokenizer.save_pretrained(part)
    return part if part==folder else part.rename(folder)


# %%
(tmp/'.saved.part').mkdir()
(tmp/'.saved.part'/'model-00009-of-00009.safetensors').touch() # Left by a process that was killed
loaded = load(save_model(lm, tmp/'saved'), 'float32', 'cpu')
assert not (tmp/'saved'/'model-00009-of-00009.safetensors').exists()
(tmp/'taken').touch()
with expect_fail(ConfigError, contains='is a file'): save_model(lm, tmp/'taken')
test_eq(encode(loaded, text), encode(lm, text))
test_close(answer_logprobs(loaded.model, rows, starts)[0].detach(), logp.detach(), 1e-6)
loaded

# %%
#| hide
shutil.rmtree(tmp)
