# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Places
#
# > Where the paper notebooks lie, and where a page may write.

# %%
#| default_exp lab.paths

# %%
#| export
import os
from pathlib import Path

# %%
#| export
import moral_sc
from moral_sc.foundation.datasets import data_dir

# %%
#| hide
import tempfile

from fastcore.test import *


# %% [markdown]
# The same package is used in two shapes. In a clone the paper notebooks are `nbs/papers` and
# the claims are `data/claims`; in an installed package both travel inside the wheel, as
# `moral_sc/notebooks` and `moral_sc/data`. Everything in this room asks here, or asks
# `data_dir`, so that nothing else needs to know which of the two it is in.

# %%
#| export
def clone()->Path|None: # Root of the clone, or None for an installed package
    "The repository this package is imported from, if it is one"
    root = Path(moral_sc.__file__).resolve().parents[1]
    return root if (root/'settings.ini').is_file() and (root/'nbs').is_dir() else None

def notebooks_dir()->Path:
    "Folder of the paper notebooks"
    root = clone()
    if root: return root/'nbs'/'papers'
    return Path(moral_sc.__file__).resolve().parent/'notebooks'

def claims_dir()->Path:
    "Folder of the claims' criteria"
    return data_dir()/'claims'


# %%
notebooks_dir().parts[-2:], claims_dir().parts[-2:]


# %% [markdown]
# ## Where a page may write
#
# A page never writes beside itself: an installed package may lie in a read-only folder, and a
# clone should stay clean. It asks for a folder by name, and gets one below `MORAL_SC_RUNS`.
# `moral_sc reproduce` sets that variable to the page's own folder inside the report, so the
# records travel with the figures made from them and an interrupted page finds its finished
# items again. A page opened by hand writes below `_runs` at the root of the clone, which git
# ignores, or of the current folder.

# %%
#| export
def work_dir(
    name:str, # What is kept there; put scale and seed into it: 'bbq-quick-0'
)->Path:      # Exists after the call
    "A folder in which the page that calls may write"
    default = (clone() or Path.cwd())/'_runs'/'pages'
    path = Path(os.environ.get('MORAL_SC_RUNS') or default)/name
    path.mkdir(parents=True, exist_ok=True)
    return path


# %%
tmp = Path(tempfile.mkdtemp())
before = os.environ.get('MORAL_SC_RUNS')
os.environ['MORAL_SC_RUNS'] = str(tmp)
work_dir('bbq-quick-0').relative_to(tmp)

# %%
assert (tmp/'bbq-quick-0').is_dir()

# %%
#| hide
if before is None: del os.environ['MORAL_SC_RUNS']
else: os.environ['MORAL_SC_RUNS'] = before
