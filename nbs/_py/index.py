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
# > Toy models of superposition, constitutional AI and moral self-correction as runnable notebooks.
#
# `moral_sc` is a Python package for ML researchers that reproduces three papers: each figure is a
# notebook, and each claim has a criterion that was fixed before the run that judges it. It trains toy
# models of superposition, runs constitutional AI from critiques to PPO, and measures social bias of
# language models under instructions, on a laptop CPU at small scale (not yet run on a GPU).

# %%
#| hide
from moral_sc.lab.site.papers import ClaimsTable, claim_counts, side_by_side

# %%
#| label: fig-three-results
#| fig-cap: Three results, one after each paper, from transformers of 1,116 to 32,224 parameters trained on an invented language. Left, feature dimensionality of stereotypes, of the presence of evidence and of the meaning of the instruction, by size. Middle, bias under the plain question (Q) and under an instruction not to be biased (Q+IF) while the largest model is trained by PPO on preferences for fair answers; no constitution is used. Right, the same two scores by size, before preference training; dotted lines are an ideal reader, the dashed line a 4-gram model. Bars are 95 % intervals over five trainings.
#| echo: false
side_by_side({
    'Superposition': ('self_correction/toy_superposition', 'fig-dimensions'),
    'Constitutional AI': ('self_correction/toy_preference_training', 'fig-bias'),
    'Moral self-correction': ('self_correction/toy_size', 'fig-bias')},
    parts={'Superposition': dict(names=['stereotypes', 'evidence', 'meaning']),
           'Constitutional AI': dict(names=['Q', 'Q+IF'], axis='x3', x='PPO steps',
                                     y='Bias score, ambiguous'),
           'Moral self-correction': dict(names=['Q', 'Q+IF'])})

# %% [markdown]
# ## Install and run
#
# ```sh
# pip install . && moral_sc reproduce      # in a clone: rerun the papers, write a report
# pip install ".[test]" && pytest          # run every page as a test; pytest -m smoke takes a minute
# ```
#
# `reproduce` runs the pages at scale `quick`, compares their estimates with the recorded ones, and
# ends with a report to open in a browser. It continues where it was interrupted. Without a GPU,
# install the CPU build of torch first: it saves several gigabytes.
#
# ## Use
#
# One call per paper, on toy models and stub models that need no download:

# %%
from moral_sc import bias, constitution, superposition
from moral_sc.language import letter_prior_model  # for a real model: load('smollm2-135m-instruct')

config = superposition.ToyConfig(n_features=5, n_hidden=2, n_instances=20, density=.05)
models = superposition.train(config, steps=4000, lr=.01)
superposition.feature_dimensionality(models.W).mean(0)  # pentagons: two fifths of a dimension each

# %%
pair = dict(prompt='Why is the sky blue?', a='Air scatters blue light most.', b='Who cares?')
row, = constitution.label(letter_prior_model(dict(A=.3, B=.7)), [pair])
round(row['p'], 2)  # both orders are asked, so a preference for a letter cancels

# %%
lm = letter_prior_model(dict(a=.2, b=.7, c=.1))
evaluation = bias.evaluate(lm, ['bbq-like'], ['q'], limit=48, orders=3)
evaluation.score('q')[['questions', 'bias_ambig']].tail(1)

# %% [markdown]
# From the shell:
#
# ```sh
# moral_sc reproduce superposition --scale cpu   # one paper, larger
# moral_sc evaluate smollm2-135m-instruct --benchmark bbq-like
# moral_sc evaluate NAME --items mine.csv         # your own questions
# moral_sc claims                                # every claim and what was found
# moral_sc reproduce bbq_first_look --model NAME # a page on your own model
# ```
#
# ## Claims
#
# Each criterion was written down before the run that judges it. *Fails* means for a claim of a paper
# that further experiments, named in the verdict, confirm the miss. *Undecided* means that the interval
# contains the criterion's bound, or that one experiment missed it or a precondition is not met; *needs
# a larger model*, that a small model missed a claim about large ones; *error*, that the row was not
# run. Claims that the papers do not make are counted as ours. Some rows, among them most of those that
# hold for moral self-correction, test a paper's claim in a toy environment and are marked so. Closed
# rows are not counted in the other columns; the pages of the papers list all rows with their reasons,
# as does `moral_sc claims`.

# %%
#| echo: false
counts = claim_counts()
counts

# %% [markdown]
# Claims of the papers that fail here:

# %%
#| echo: false
rows = counts.rows
ClaimsTable(rows[(rows.whose=='paper') & (rows.verdict=='fails') & (rows.closed=='')])

# %% [markdown]
# ## Where to go
#
# - Papers, figure by figure: [superposition](papers/superposition.md), [constitutional
#   AI](papers/constitution.md), [moral self-correction](papers/self_correction.md)
# - Guides: [reading and rerunning a page](guides/reading_and_rerunning.ipynb), [your own model,
#   questions, benchmark or toy model](guides/your_own_model_and_data.ipynb), [without a
#   network](guides/without_a_network.ipynb), [a model behind an API](guides/an_api_model.ipynb), [many
#   GPUs](guides/many_gpus.ipynb) (not yet run on a GPU)
# - Packages: [foundation](foundation/index.ipynb), [language](language/index.ipynb),
#   [superposition](superposition/index.ipynb), [constitution](constitution/index.ipynb),
#   [bias](bias/index.ipynb), [lab](lab/index.ipynb)
# - [Glossary](glossary.md) and [references](references.md)
# - Speed [compared with other tools](benchmarks/index.ipynb): [toy
#   models](benchmarks/superposition_results.ipynb), [scoring](benchmarks/scoring_results.ipynb),
#   [RLAIF](benchmarks/rlaif_results.ipynb)
# - [Contributing](https://github.com/moral-sc/moral_sc/blob/main/CONTRIBUTING.md)
#
# ## Citing
#
# Please cite the papers first, and this repository with:
#
# ```bibtex
# @software{moral_sc,
#   author  = {{moral\_sc contributors}},
#   title   = {moral\_sc: toy models of superposition, constitutional AI and moral self-correction},
#   year    = {2026},
#   version = {0.1.0},
#   url     = {https://github.com/moral-sc/moral_sc}
# }
# ```
#
# Code, text and our data are under the Apache licence 2.0. Data and weights of others are fetched
# from their owners under their own licences; `moral_sc data list` shows them.
