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
# > This guide shows how to run a page in JupyterLab, on the command line, or from the package.

# %% [markdown]
# Every page is a notebook, and its outputs are those of a recorded run. There are two kinds. A *library
# page* belongs to a package; it explains, demonstrates and tests a module, and the cells with a rule on
# their left side are the source of the module. A *paper page* is in `nbs/papers`; it follows the
# section of the paper that it reproduces, and ends with the paper's claims and our results.
#
# The banner under the title of a paper page names the scale, the seed, the duration and the machine
# of the recorded run, and how many runs it read that had finished before. The outputs come from
# that scale, even though the page's own cell of parameters says `scale = 'quick'`.
#
# ## In JupyterLab
#
# Run JupyterLab in the root of the repository:
#
# ```sh
# pip install -e ".[nb]"
# jupyter lab
# ```
#
# ::: {.callout-warning}
# Do not run `jupyter lab nbs`. From there Jupytext does not find its configuration and never writes
# the text twin described below.
# :::
#
# Open a page and run it from top to bottom. A paper page has one cell of parameters near the top:
#
# ```python
# scale = 'quick'  # quick | cpu | gpu
# seed = 0
# ```
#
# `quick` takes seconds and needs no downloads, `cpu` takes at most an hour on a laptop, and `gpu` has
# the largest sizes and has not yet been run. The code is the same at each scale; only the sizes differ.
#
# ### The text twin
#
# Each notebook has a text twin, a plain Python file with the same cells and no outputs: the twin of
# `nbs/foundation/00_errors.ipynb` is `nbs/_py/foundation/00_errors.py`. Reviews show the twin, and you
# can edit it in any editor. JupyterLab writes the twin when you save the notebook. If you edit the
# twin, carry the edit into the notebook:
#
# ```sh
# python -m moral_sc.lab.hooks sync
# ```
#
# ::: {.callout-warning}
# Do not run the notebook in place between editing the twin and this command. If both files were
# edited, the command stops and names the first cell that differs.
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
# `moral_sc reproduce` reruns a paper page, or all pages of a paper, by name. It writes the executed
# pages into the folder `report`, or the folder given by `--out`, and leaves the pages in the
# repository unchanged.
#
# ```sh
# moral_sc reproduce demonstrating_superposition --scale cpu --out report-cpu
# moral_sc reproduce superposition
# ```
#
# The report opens with a count: how many of the run's estimates agree with the recorded ones. Each page
# shows its main figure as we recorded it and as your run drew it. Two estimates *agree* if the
# difference is compatible with their intervals, and *differ* if it is not. A run is *too small to tell*
# if its scale is below the one that the claim names, or if its interval is more than three times as
# wide as the recorded one and leaves the verdict open. The exit code is 1 if a page
# stops or an estimate differs.
#
# Pages on language models run on other models with `--model`, at every scale. `--set` changes any other
# parameter that a page declares. A claim about large models can fail only for models of a stated size
# or more; if you have such a model, you can decide it:
#
# ```sh
# moral_sc reproduce bbq_first_look --model smollm2-135m-instruct --out report-smollm2
# moral_sc claims --of report-smollm2
# ```
#
# One report has one scale, one seed and one set of models. To replace the outputs of a page in the repository, use
# `moral_sc record PATH --scale cpu`. It replaces outputs of a larger scale only with
# `--allow-smaller`.
#
# ## Verdicts
#
# The *ledger* is the table of all claims. Each row has a criterion that was fixed before the run that
# judges it. Rows are never edited: a changed criterion is a new row that names the old one. A row that
# cannot fail, cannot hold, or is not what the paper says is *closed*; it keeps its verdict and the
# reason for closing, and is counted separately.
#
# | Verdict | Meaning |
# | --- | --- |
# | holds | the whole interval meets the criterion |
# | fails | no part of the interval meets it; a claim of a paper fails only if further experiments, named in the verdict, confirm this |
# | undecided | the interval contains the bound, the run was too small, or a precondition of the paper is not met |
# | needs a larger model | a model below the row's number of parameters missed the criterion |
# | error | not a number, or not run |
#
# The column `whose` separates claims of the paper from claims of ours, and `draws` names the units that
# the interval resamples: trainings, prompts, templates, wordings.
#
# ## With papermill
#
# The command adds progress, resuming and the report to papermill, which you can also use directly. It
# works on any page and takes parameters one by one:
#
# ```sh
# papermill nbs/papers/superposition/demonstrating_superposition.ipynb out.ipynb -p seed 7
# papermill --help-notebook nbs/papers/superposition/demonstrating_superposition.ipynb
# ```
#
# Papermill inserts a cell with your values after the cell with the defaults:

# %%
from papermill.parameterize import parameterize_notebook

# %%
kernel = dict(name='python3', display_name='python3', language='python')
toy.cells = [cell]
toy.metadata = nbformat.from_dict(dict(kernelspec=kernel, papermill={}))
result = parameterize_notebook(toy, dict(seed=7))
print(*(c.source for c in result.cells), sep='\n---\n')

# %%
assert 'seed = 7' in result.cells[1].source

# %% [markdown]
# Every page also runs as a test at scale `quick`; the project has no other tests. This command tests
# one page:
#
# ```sh
# pytest nbs/foundation/00_errors.ipynb
# ```
#
# ## From the package
#
# A library page *is* a module, so you can import everything that it defines. The page on
# statistics, `nbs/foundation/30_statistics.ipynb`, explains this interval:

# %%
from moral_sc.foundation.statistics import wilson

wilson(5, 10), wilson(500, 1000)

# %% [markdown]
# Paper pages export nothing, but their results are stored as data. One call collects them:

# %%
from moral_sc.lab.claims import ledger

ledger()[['id', 'whose', 'verdict', 'scale']].head()

# %% [markdown]
# `recorded_figure` returns a figure of a recorded page without running the page. It takes the name of
# the page and the label of the figure, and returns a plotly figure that you can restyle or read numbers
# from. [The front page](../index.ipynb) uses it.

# %%
#| hide
from moral_sc.lab.site.papers import recorded_figure
