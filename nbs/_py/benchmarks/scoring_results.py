# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Scoring speed
#
# > Option scoring is timed against lm-evaluation-harness and plain transformers.

# %% tags=["parameters"]
scale = 'quick'  # quick: a tiny model; cpu, gpu: the whole measurement
seed = 0         # unused: what is measured is time

# %%
#| hide
from time import perf_counter
import torch
import pandas as pd
from moral_sc.benchmarks.harness import load_record
from moral_sc.benchmarks.scoring import bench_scoring, scoring_ratios, scoring_table
from moral_sc.language.stub_models import random_model
began = perf_counter()

# %% [markdown]
# A bias benchmark consists of thousands of questions with shared prefixes: four questions share a
# scene, two conditions share a question, three option orders share both, and each of a thousand
# student profiles occurs in ten prompts. A tool that scores each string from its first token
# computes the same prefixes repeatedly. Computing each prefix once gives the same numbers in less
# time. The baselines are lm-evaluation-harness [@gao2024harness] and carefully batched
# transformers.
#
# The two sides run alternately in one process, each with the batch size that suits it best; a ratio
# is the median over turns, with its range. The page [Scoring benchmark](20_scoring.ipynb)
# describes both sides. All measurements so far were made on a CPU; the GPU row has not yet run.
# One command makes the record:
#
# ```sh
# pip install "moral_sc[bench]"
# moral_sc bench scoring
# ```
#
# ## Ratios
#
# The ratios use all threads. `floor` is the ratio that we require and `aim` the goal; both were
# fixed before the first measurement.

# %%
table = scoring_ratios()
table

# %%
#| hide
assert set(table.columns)=={'ratio','floor','aim'}

# %% [markdown]
# The first row does not compare engines. The harness's own task compares twelve strings, so it runs
# twelve texts where three letters need one; this is the cost of a BBQ score in the harness. The rows of
# letters give identical prompts to both sides, and `same` is the share of questions for which both
# choose the same letter.
#
# ## Machine and details
#
# Seconds are for all questions of the workload, scaled from those of a turn. `cpu_ratio` uses processor
# time instead of wall-clock time. `sizes` are the batch sizes that each side chose, in texts for the
# baseline and in tokens for ours.

# %%
for kind in ('cpu','gpu'):
    record = load_record('scoring', kind)
    if record is None: print(f'{kind}: not yet measured'); continue
    machine = record['provenance']
    print(kind, {k: machine[k] for k in ('cpu','gpu','threads','torch') if machine.get(k)})
    details = scoring_table(record).set_index('against')
    display(details[['theirs_s','ours_s','cpu_ratio']])
    display(details[['threads','same','sizes','measured']])

# %% [markdown]
# ## On this machine
#
# The next cell makes the same measurement on the machine that ran this page. At `quick` the model is
# tiny and random and turns take milliseconds, so these ratios are not meaningful.

# %%
size = dict(quick=dict(rows=['bfloat16','admissions'], repeats=2, threads=1, seconds=.3,
                       max_units=2, model=random_model('llama')),
            cpu=dict(), gpu=dict(device='cuda'))[scale]
measured = bench_scoring(**size)
measured.set_index('against').T

# %%
minutes = (perf_counter()-began)/60
f'{scale}: {minutes:.1f} minutes on {torch.get_num_threads()} thread(s)'
