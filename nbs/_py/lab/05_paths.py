# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Paths
#
# > Locate the notebooks of the papers and guides, the claims, and the folders of pages.

# %%
#| default_exp lab.paths

# %%
#| export
import os
from pathlib import Path

import moral_sc
from moral_sc.foundation.errors import ConfigError, unknown_name_message

# %%
#| hide
import tempfile
from unittest import mock

from fastcore.test import *


# %% [markdown]
# The package works from a clone and from an installed wheel. In a clone the paper notebooks are in
# `nbs/papers`, the guides in `nbs/guides` and the claims in `data/claims`. In a wheel they are in
# `moral_sc/notebooks`, `moral_sc/guides` and `moral_sc/data`. The functions of this module and `data_dir` hide the difference.
#
# ## Folders of the package

# %%
#| export
def checkout_root()->Path|None: # Root of the clone, or None for an installed package
    "Return the clone that this package is imported from"
    root = Path(moral_sc.__file__).resolve().parents[1]
    return root if (root/'settings.ini').is_file() and (root/'nbs').is_dir() else None

def notebooks_dir()->Path:
    "Return the folder of the paper notebooks"
    root = checkout_root()
    if root: return root/'nbs'/'papers'
    return Path(moral_sc.__file__).resolve().parent/'notebooks'

def guides_dir()->Path:
    "Return the folder of the guides"
    root = checkout_root()
    return root/'nbs'/'guides' if root else Path(moral_sc.__file__).resolve().parent/'guides'


# %%
notebooks_dir().parts[-2:], guides_dir().parts[-2:]

# %% [markdown]
# ## Names of pages
#
# A paper page is named `paper/page`. `notebook_paths` lists the pages of a folder in reading order:
# the papers in their order, and the pages of each paper by name.

# %%
#| export
papers = ('superposition', 'self_correction', 'constitution')  # in reading order

def page_name(
    path, # A notebook
)->str:
    "Return the name `paper/page` of a notebook"
    path = Path(path).resolve()
    if path.is_relative_to(notebooks_dir()): path = path.relative_to(notebooks_dir())
    return '/'.join(p for p in path.with_suffix('').parts[-2:] if p!=path.anchor)

def _reading_order(path):
    name = page_name(path)
    paper = name.split('/')[0]
    return papers.index(paper) if paper in papers else len(papers), name

def visible_notebooks(
    folder,
)->list:    # Paths, sorted; without those in folders like `_py` and `.ipynb_checkpoints`
    "List the notebooks below a folder, except hidden ones"
    hidden = lambda p: any(part[0] in '_.' for part in p.relative_to(folder).parts)
    return sorted(p for p in Path(folder).rglob('*.ipynb') if not hidden(p))

def notebook_paths(
    folder=None, # Default: the paper pages of this package
)->list:
    "List the notebooks below a folder in reading order"
    return sorted(visible_notebooks(folder or notebooks_dir()), key=_reading_order)


# %%
names = [page_name(p) for p in notebook_paths()]
names[:2], len(names)

# %%
test_eq(page_name('/mine.ipynb'), 'mine')
first = [n.split('/')[0] for n in names]
test_eq(first, sorted(first, key=papers.index))

# %% [markdown]
# Folders and files whose name begins with `_` or `.` are left out.

# %%
tmp = Path(tempfile.mkdtemp())
for name in ['constitution/labels', 'superposition/collapse', '_drafts/labels']:
    (tmp/name).parent.mkdir(exist_ok=True)
    (tmp/f'{name}.ipynb').touch()
found = [page_name(p) for p in notebook_paths(tmp)]
test_eq(found, ['superposition/collapse', 'constitution/labels'])


# %% [markdown]
# ## Selection of pages
#
# You can name a paper, a page, `paper/page`, a guide, or a path.

# %%
#| export
def find_pages(
    names=(),    # Papers, pages ('bbq_first_look'), guides or paths; default: all papers' pages
    folder=None, # Of the pages; default: the paper pages of this package
)->list:
    "Return the paths of pages given by name"
    all_pages = notebook_paths(folder)
    guides = notebook_paths(guides_dir()) if folder is None else []
    names_of = lambda p: {page_name(p), *page_name(p).split('/')}
    res = [] if names else all_pages
    for n in map(str, [names] if isinstance(names, (str, Path)) else names):
        hits = [p for p in all_pages+guides if n.removesuffix('.ipynb') in names_of(p)]
        given = Path(n)
        if not hits and given.suffix=='.ipynb' and given.is_file(): hits = [given.resolve()]
        known = sorted({x for p in all_pages+guides for x in page_name(p).split('/')})
        if not hits: raise ConfigError(unknown_name_message('paper or notebook', n, known))
        res = res+[h for h in hits if h not in res]
    return res


# %%
#| hide
import nbformat
shelf = tmp/'shelf'
for p in ['superposition/pentagon', 'superposition/phases', 'constitution/revision']:
    (shelf/p).parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(), shelf/f'{p}.ipynb')

# %% [markdown]
# Three pages of an example:

# %%
short = lambda names: [p.stem for p in find_pages(names, shelf)]
short([]), short(['superposition']), short(['constitution/revision', 'phases'])

# %%
test_eq(short(['superposition', 'phases']), ['pentagon', 'phases'])
test_eq(short([str(shelf/'superposition'/'phases.ipynb')]), ['phases'])
with expect_fail(ConfigError, contains="did you mean 'superposition'?"):
    short(['superpositon'])
guide = 'your_own_model_and_data'
test_eq([page_name(p) for p in find_pages([guide])], [f'guides/{guide}'])
assert not any(page_name(p).startswith('guides') for p in find_pages())


# %% [markdown]
# ## Work folders
#
# A page never writes beside itself: an installed package can be read-only, and a clone should stay
# clean. `work_dir` returns a folder below `MORAL_SC_RUNS`. `moral_sc reproduce` sets this variable to
# the page's own folder inside the report, so an interrupted page finds its finished items again. A
# page that you run by hand writes below `_runs` at the root of the clone (git ignores it), or in the
# current folder.

# %%
#| export
def work_dir(
    name:str, # Include scale and seed: 'bbq-quick-0'
)->Path:      # Exists after the call
    "Return a folder that the calling page can write to"
    default = (checkout_root() or Path.cwd())/'_runs'/'pages'
    path = Path(os.environ.get('MORAL_SC_RUNS') or default)/name
    path.mkdir(parents=True, exist_ok=True)
    return path


# %%
with mock.patch.dict(os.environ, MORAL_SC_RUNS=str(tmp)): mine = work_dir('bbq-quick-0')
assert mine.is_dir()
mine.relative_to(tmp)


# %% [markdown]
# Several pages train the same first models. `moral_sc reproduce` sets `MORAL_SC_SHARED` to a folder of the report that
# belongs to one state of the package, so each of these models is trained once in a run. Whatever writes to this
# folder must name everything that determines a model, and lock it while it is trained, as `pretrain` of the toy environment does.
# Elsewhere the folder is an ordinary work folder.

# %%
#| export
def shared_dir(
    name:str, # Of the kind of models
)->Path:      # Exists after the call
    "Return a folder that the pages of one run share"
    shared = os.environ.get('MORAL_SC_SHARED')
    if not shared: return work_dir(name)
    path = Path(shared)/name
    path.mkdir(parents=True, exist_ok=True)
    return path


# %%
with mock.patch.dict(os.environ, MORAL_SC_RUNS=str(tmp/'page'), MORAL_SC_SHARED=str(tmp/'all')):
    ours = shared_dir('toy-models')
    os.environ['MORAL_SC_SHARED'] = ''
    alone = shared_dir('toy-models')
test_eq((ours, alone), (tmp/'all'/'toy-models', tmp/'page'/'toy-models'))
assert ours.is_dir() and alone.is_dir()
