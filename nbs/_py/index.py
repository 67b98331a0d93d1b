# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # moral_sc
#
# > Three papers, one runnable laboratory: toy models of superposition, constitutional AI and
# > moral self-correction.
#
# For people who read these papers and want to run them. Each figure is a notebook that reads
# like the section it reproduces and says beforehand what would count against the paper. Each
# function is written on a page that explains it, shows it and tests it. Everything runs on a
# laptop, small and honest about it, and on a GPU at the papers' sizes.
#
# ```sh
# pip install . && moral_sc reproduce
# pip install ".[test]" && pytest
# ```
#
# The first command reruns the papers at scale `quick`, within ten minutes on two cores after a
# download of 93 MB, and ends with a folder to open in a browser: executed notebooks with live
# figures, the table of claims, and what ran where. It can be interrupted and started again.
# The second runs every page as a test.

# %%
#| hide
from moral_sc.lab.claims import ledger
from moral_sc.lab.site.build import figure, summary

# %%
#| label: fig-plane
#| fig-cap: Five features in two dimensions, from our run of the first experiment of
#|   Toy Models of Superposition. The sparser the features, the more of them share the plane.
#| echo: false
figure('superposition/demonstrating_superposition', 'fig-plane')

# %% [markdown]
# ## What was claimed, and what we found
#
# A claim is written down with its criterion before it is measured. One that fails is a finding
# and stays: those that did are in full below, the others on the papers' pages. What a laptop's
# models are too small to decide says *not at this size* until someone runs it larger.

# %%
#| echo: false
summary()

# %% [markdown]
# ## The rooms
#
# | | |
# | --- | --- |
# | [Papers](papers/superposition.md) | one notebook per figure: [superposition](papers/superposition.md), [constitution](papers/constitution.md), [self-correction](papers/self_correction.md) |
# | [Foundation](foundation/index.ipynb) | pinned files, resumable runs, intervals, figures |
# | [Language](language/index.ipynb) | models, turns, log-probabilities, samples |
# | [Superposition](superposition/index.ipynb) | the toy models, their exact losses, their geometry |
# | [Constitution](constitution/index.ipynb) | principles, revision, preference, behaviour |
# | [Bias](bias/index.ipynb) | BBQ and its kin, under question, instruction and reasoning |
# | [Lab](lab/index.ipynb) | the commands, the claims, this site |
#
# A room uses only the rooms above it in this list, and the three papers never use each other.
#
# ```sh
# moral_sc reproduce superposition --scale cpu   # one paper, larger
# moral_sc superposition phase                   # one experiment, at any size
# moral_sc bench                                 # speed, beside what one would otherwise run
# moral_sc data fetch --all                      # all data sets, verified
# moral_sc claims                                # every claim and what was found
# ```
#
# Without a network everything still runs at scale `quick`, on data of our own and on tiny
# models whose answers are known. An air-gapped machine sets `MORAL_SC_MIRROR` to a folder of
# files and `MORAL_SC_OFFLINE=1`. The guides begin with
# [reading and rerunning a page](guides/reading_and_rerunning.ipynb).
#
# ## Citing
#
# Please cite the papers first, and this repository by `CITATION.cff`. Code, prose and our data
# are under the Apache licence 2.0. Data and weights of others are fetched from their owners,
# under their own licences, which `moral_sc data list` shows. How this house works is written in
# [CONTRIBUTING.md](https://github.com/moral-sc/moral_sc/blob/main/CONTRIBUTING.md).
