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
import json, numpy as np, pandas as pd, torch
from pathlib import Path
from time import perf_counter
from moral_sc.benchmarks.superposition import bench, comparison, frame, recorded, sizes
began = perf_counter()

# %% [markdown]
# Everything that the paper trains is small, and the public notebook's loop [@elhage2022]
# spends most of its time moving intermediate results through memory or, on a GPU, waiting
# to be told what to do. How much can be had by keeping a model where it is computed? The
# two sides take turns in one process, on the same threads; a ratio is the median over five
# turns, with its range. [The page on measuring](10_superposition.ipynb) has the
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
# ## Where the time goes
#
# The small sizes stay far below the peak because a model of five features draws, compares
# and squares as many numbers as it multiplies; the large ones are matrix products of thin
# matrices. A profile in three numbers, on one core of the machine that ran this page: what a
# step costs whatever its batch (the update, from batches of 1024 and 2048), what drawing the random
# numbers alone costs, and what the products would cost at the core's peak. The rest is the
# activation, the mask of active features, and waiting for the cache.

# %%
from moral_sc.superposition import ToyConfig, train
from moral_sc.benchmarks.superposition import peak
from moral_sc.superposition.engines.simd import hash_vector, iota, compile_kernel, loop, broadcast_scalar
from llvmlite import ir

@compile_kernel
def draws(b, out):
    key = broadcast_scalar(b, ir.Constant(ir.IntType(32), 12345))
    for i in loop(b, 100_000): out.put(0, out.get(0) + hash_vector(i.lanes() ^ iota(b), key, key))

def best(f, repeats=5):
    times = []
    for _ in range(repeats): t = perf_counter(); f(); times.append(perf_counter()-t)
    return min(times)

def step(n, m, I, batch, steps):
    "Microseconds for a step of one instance"
    c = ToyConfig(n, m, I, density=.2)
    go = lambda k: best(lambda: train(c, steps=k, batch_size=batch, log_every=10**6), 3)
    go(1)
    return (go(steps)-go(1))/(steps-1)/I*1e6

threads = torch.get_num_threads()
torch.set_num_threads(1)
out = np.zeros(16, np.float32)
draws(out); a_draw,top = best(lambda: draws(out))/1.6e6, peak()
rows = []
for n,m,I,steps in [(2,1,400,301),(5,2,200,301),(20,5,40,201),(400,30,2,21)]:
    one = step(n, m, I, 1024, steps)
    two = step(n, m, I, 2048, steps)
    rows.append(dict(n=n, m=m, step=one, update=max(2*one-two, 0.), draws=n*1024*a_draw*1e6,
                     products=10*n*m*1024/top*1e6))
torch.set_num_threads(threads)
pd.DataFrame(rows).round(2)

# %% [markdown]
# In microseconds. At two and five features drawing costs as much as the products would, or more,
# and no arrangement of the products can mend that; at four hundred, products of thirty columns
# are what there is.
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
