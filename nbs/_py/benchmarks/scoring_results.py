# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # How fast questions are scored
#
# > Our engine beside the public harness and plain transformers: same model, questions and threads.

# %% tags=["parameters"]
scale = 'quick'  # quick: a sign of life with a tiny model; cpu, gpu: the whole measurement
seed = 0         # unused: what is measured is time

# %%
#| hide
from time import perf_counter
import torch
from moral_sc.benchmarks.scoring import bench, comparison, frame, recorded
from moral_sc.language.stub_models import random_model
began = perf_counter()

# %% [markdown]
# A benchmark of bias is thousands of questions that repeat one another: four questions share a
# scene, two conditions share a question, three option orders share both, and a thousand students
# share their profile with ten others. A tool that scores each string from its first word reads
# the same words over and over. Reading what is shared once gives the same numbers sooner; how
# much sooner is measured here against what one would otherwise run: lm-evaluation-harness
# [@gao2024harness], and transformers used with care.
#
# The two sides take turns in one process, each with the batch size that suits it best; a ratio is
# the median over the turns, with its range. [The page on measuring](20_scoring.ipynb) says
# what exactly each side does. One command makes the record:
#
# ```sh
# pip install "moral_sc[bench]"
# moral_sc bench scoring
# ```
#
# ## Ratios
#
# With all threads; behind each ratio the least that this project asks of itself, and what it aims
# at.

# %%
table = comparison()
table

# %%
#| hide
assert set(table.columns)=={'ratio','floor','aim'}

# %% [markdown]
# The first row is no contest of engines. The harness's own task compares twelve strings, and so
# reads twelve texts where three letters need one; that is what a BBQ score costs in it. The rows
# of letters put identical prompts to both, and `same` says on how many of them both give the same
# letter.
#
# ## What it was measured on
#
# Seconds are for all the questions of the setting, scaled from those of a turn; `cpu_ratio` is
# the ratio in processor time instead of time by the clock; `sizes` are the batch sizes that each
# side chose, in texts and in tokens.

# %%
for kind in ('cpu','gpu'):
    record = recorded(kind)
    if record is None: print(f'{kind}: not yet measured'); continue
    told = record['provenance']
    names = 'cpu','gpu','threads','torch'
    print(kind, {k: told[k] for k in names if told.get(k)})
    display(frame(record).set_index('against'))

# %% [markdown]
# ## Here and now
#
# The same on the machine that ran this page, at this page's scale. At `quick` the model is tiny
# and random, turns last milliseconds, and the ratios say nothing.

# %%
size = dict(quick=dict(names=['bfloat16','admissions'], repeats=2, threads=1, seconds=.3,
                       model=random_model('llama')),
            cpu=dict(), gpu=dict(device='cuda'))[scale]
here = bench(**size)
here.set_index('against').T

# %%
minutes = (perf_counter()-began)/60
f'{scale}: {minutes:.1f} minutes on {torch.get_num_threads()} thread(s)'
