# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Speed benchmarks
#
# > Speed of the package, measured against the tools that people otherwise use.

# %%
#| default_exp benchmarks.__init__

# %% [markdown]
# Each benchmark compares one part of the package with the usual tool for the same task, on the same
# machine, threads, weights and inputs. The two sides run alternately, and a ratio is the median over
# turns with its range. The smallest acceptable ratio and the target were fixed before
# the first measurement. All recorded measurements were made on a CPU; none has yet been made on a GPU.
#
# | what is measured | baseline | method | results |
# | --- | --- | --- | --- |
# | training of toy models | public notebook | [page](10_superposition.ipynb) | [ratios](superposition_results.ipynb) |
# | option scoring | lm-evaluation-harness, transformers | [page](20_scoring.ipynb) | [ratios](scoring_results.ipynb) |
# | labels, revisions, PPO steps | transformers, TRL | [page](30_rlaif.ipynb) | [ratios](rlaif_results.ipynb) |
# | training of toy-language models | Trainer of transformers | [page](40_toy_language.ipynb) | [ratios](40_toy_language.ipynb) |
#
# `moral_sc bench` runs all of them. The [harness](05_harness.ipynb) holds what they share: timing,
# baselines with plain transformers, and records on disk. A new benchmark is a module with a
# dictionary of rows, a function that measures one row, and a call of `measure_rows`.
