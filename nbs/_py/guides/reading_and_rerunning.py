# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Reading and rerunning a page
#
# > One page, three ways in: JupyterLab, the command line, the package.

# %% [markdown]
# Every page here is a notebook. What you read is what ran: the outputs in the repository are
# those of the recorded run, and each page says at its top how that run was made. There are two
# kinds. A *library page* lies in a room; it explains a module, shows it and tests it, and cells
# with a rule at their left side are the module. A *paper page* lies in `nbs/papers`; it reads
# like the section it reproduces and ends with what the paper claims and what was found.
#
# ## In JupyterLab
#
# ```sh
# pip install -e ".[nb]"
# jupyter lab nbs
# ```
#
# Open a page and run it from top to bottom. A paper page has one cell that is yours to change,
# near the top:
#
# ```python
# scale = 'quick'  # quick | cpu | gpu
# seed = 0
# ```
#
# `quick` takes seconds and needs nothing, `cpu` is a laptop's hour at most, `gpu` is the paper's
# size. The code is the same at each; only sizes differ.
#
# ### The text twin
#
# Beside each notebook there is a plain Python file with the same cells and no outputs:
# `nbs/foundation/00_errors.ipynb` has its twin in `nbs/_py/foundation/00_errors.py`. It is what
# reviews show and what an editor is good at. Change one of the two, then carry it over at once:
#
# ```sh
# jupytext --sync nbs/_py/foundation/00_errors.py
# ```
#
# ::: {.callout-warning}
# The newer file of a pair wins. Edit the twin, run the notebook in place before syncing, and the
# edit is gone.
# :::
#
# This is a cell in both forms:

# %%
import jupytext
import nbformat

# %%
values = "scale = 'quick'\nseed = 0"
cell = nbformat.v4.new_code_cell(values, metadata=dict(tags=['parameters']))
toy = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell('# Toy'), cell])
print(jupytext.writes(toy, fmt='py:percent').split('---\n')[-1])

# %% [markdown]
# ## From the command line
#
# A paper page, or all pages of a paper, is rerun by name. The report lands in a folder of its
# own; the pages in the repository are not touched.
#
# ```sh
# moral_sc reproduce demonstrating_superposition --scale cpu
# moral_sc reproduce superposition
# ```
#
# That command adds progress, resuming and the report. Underneath is papermill, which works on
# any page and takes its parameters one by one:
#
# ```sh
# papermill nbs/papers/superposition/demonstrating_superposition.ipynb out.ipynb -p seed 7
# papermill --help-notebook nbs/papers/superposition/demonstrating_superposition.ipynb
# ```
#
# What papermill does to a page is small. It puts a cell with your values after the one with
# the defaults:

# %%
from papermill.parameterize import parameterize_notebook

# %%
kernel = dict(name='python3', display_name='python3', language='python')
toy.cells = [cell]
toy.metadata = nbformat.from_dict(dict(kernelspec=kernel, papermill={}))
done = parameterize_notebook(toy, dict(seed=7))
print(*(c.source for c in done.cells), sep='\n---\n')

# %%
assert 'seed = 7' in done.cells[1].source

# %% [markdown]
# A page can also be run as a test, at scale `quick`, which is what our own tests are:
#
# ```sh
# pytest nbs/foundation/00_errors.ipynb
# ```
#
# ## From the package
#
# A library page *is* a module, so anything shown on one can be imported. The page on
# statistics, `nbs/foundation/30_statistics.ipynb`, explains this interval:

# %%
from moral_sc.foundation.statistics import wilson

wilson(5, 10), wilson(500, 1000)

# %% [markdown]
# Paper pages export nothing. What they found is data, though, and one call gathers it:

# %%
from moral_sc.lab.claims import ledger

ledger()[['id', 'verdict', 'scale']].head()

# %% [markdown]
# A figure of a recorded page can be had without running the page: `figure` takes a page's name and
# the label of the figure, and returns a plotly figure to restyle or to read numbers from.
# [The front page](../index.ipynb) does just that.

# %%
#| hide
from moral_sc.lab.site.build import figure
