# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # How fast toy models train
#
# > Our engines beside the public notebook's loop, on the same machine and threads.

# %% tags=["parameters"]
scale = 'quick'  # quick: a sign of life; cpu, gpu: five minutes, the whole measurement
seed = 0         # unused: what is measured is time

# %%
#| hide
import json, pandas as pd, torch
from pathlib import Path
from time import perf_counter
from moral_sc.superposition.bench import bench, comparison, frame, recorded, sizes
began = perf_counter()

# %% [markdown]
# Everything that the paper trains is small, and the public notebook's loop [@elhage2022]
# spends most of its time moving intermediate results through memory or, on a GPU, waiting
# to be told what to do. How much can be had by keeping a model where it is computed? The
# two sides take turns in one process, on the same threads; a ratio is the median over five
# turns, with its range. [The page on measuring](../superposition/80_bench.ipynb) has the
# loop, the sizes and the check that both sides learn the same.
#
# One command makes the record, in about five minutes on either kind of device:
#
# ```sh
# moral_sc bench superposition
# ```
#
# ## Ratios
#
# Behind each ratio, the share of the machine's peak in float32 that our side reaches,
# counting only the operations of the matrix products; then the least ratio this project
# asks of itself, and what it aims at.

# %%
table = comparison()
table

# %%
#| hide
assert list(table.index) and set(table.columns) >= {'cpu','gpu'}

# %% [markdown]
# ## What it was measured on
#
# Times are microseconds for one step of one instance, with a batch of 1024. The last two
# columns are standard scores of the distance between the two sides, in $\|W\|_F^2$ and in
# the loss, after training from the same start on different data; beyond 4 something would
# be wrong.

# %%
for kind in ('cpu','gpu'):
    record = recorded(kind)
    if record is None: print(f'{kind}: not yet measured'); continue
    told = record['provenance']
    names = 'cpu','gpu','threads','torch','start'
    print(kind, {k: told[k] for k in names if told.get(k)})
    display(frame(record))

# %% [markdown]
# The small sizes stay far below the peak because a model of five features draws, compares
# and squares as many numbers as it multiplies; what is left is the random numbers and the
# activation. The large ones are matrix products of thin matrices, in which twenty or thirty
# columns leave the units of a processor partly idle.
#
# ## Here and now
#
# The same measurement on the machine that ran this page, at this page's scale. At `quick` a
# turn lasts milliseconds, and the range says so.

# %%
size = dict(quick=dict(rows=['n5'], repeats=3, seconds=.6, engine='eager'),
            cpu=dict(seconds=45.), gpu=dict(seconds=45.))[scale]
device = 'cuda' if scale=='gpu' and torch.cuda.is_available() else 'cpu'
here = bench(device=device, **size)
here.T

# %%
minutes = (perf_counter()-began)/60
f'{scale}: {minutes:.1f} minutes on {torch.get_num_threads()} thread(s), {device}'
