# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Toy-model speed
#
# > Training of toy models is timed against the loop of the paper's public notebook.

# %% tags=["parameters"]
scale = 'quick'  # quick: half a second; cpu, gpu: five minutes, the whole measurement
seed = 0         # unused: what is measured is time

# %%
#| hide
import json, numpy as np, pandas as pd, torch
from pathlib import Path
from time import perf_counter
from moral_sc.benchmarks.harness import load_record
from moral_sc.benchmarks.superposition import (bench_superposition, superposition_ratios,
                                               superposition_table)
began = perf_counter()

# %% [markdown]
# The paper's models are small, and the public notebook's loop [@elhage2022] spends most of its time
# moving intermediate results through memory or, on a GPU, launching kernels. Our engines keep a model
# in registers and caches instead. The two sides run alternately in one process and on the same
# threads; a ratio is the median over five turns, with its range. The page
# [Toy-model benchmark](10_superposition.ipynb) has the loop, the sizes and the check that both sides
# learn the same. All measurements so far were made on a CPU; the benchmark has not yet run on a GPU.
#
# One command makes the record, in about five minutes on either kind of device:
#
# ```sh
# moral_sc bench superposition
# ```
#
# ## Ratios
#
# After each ratio comes the share of the machine's float32 peak that our side reaches, counting only
# the operations of the matrix products. `floor` is the ratio that we require and `aim` the goal; both were
# fixed before the first measurement.

# %%
table = superposition_ratios()
table

# %%
#| hide
assert list(table.index) and set(table.columns) >= {'cpu','gpu'}

# %% [markdown]
# ## Machine and details
#
# Times are microseconds for one step of one instance, with a batch of 1024. The last two columns are
# standard scores of the difference between the two sides, in $\|W\|_F^2$ and in the loss, after
# training from the same start on different data; a value beyond 4 would indicate an error.

# %%
for kind in ('cpu','gpu'):
    record = load_record('superposition', kind)
    if record is None: print(f'{kind}: not yet measured'); continue
    machine = record['provenance']
    names = 'cpu','gpu','threads','torch','start'
    print(kind, {k: machine[k] for k in names if machine.get(k)})
    details = superposition_table(record)
    display(details.drop(columns=['norm_z','loss_z']))
    display(details[['norm_z','loss_z']])

# %% [markdown]
# ## Profile of a training step
#
# The small sizes stay far below the peak because a model of five features draws, compares and squares
# as many numbers as it multiplies; the large ones are products of thin matrices. The next cell
# measures three parts of a step on one core: `update`, the cost that does not depend on the batch (from
# batches of 1024 and 2048); `draws`, the random numbers alone; and `products`, the matrix products at
# the core's peak. The rest is the activation, the mask of active features, and cache misses.

# %%
from moral_sc.superposition import ToyConfig, train
from moral_sc.benchmarks.superposition import peak_flops
from moral_sc.superposition.engines.simd import (broadcast_scalar, compile_kernel, hash_vector,
                                                 iota, loop)
from llvmlite import ir

@compile_kernel
def draws(b, out):
    key = broadcast_scalar(b, ir.Constant(ir.IntType(32), 12345))
    for i in loop(b, 100_000):
        out.store(0, out.load(0) + hash_vector(i.to_vector() ^ iota(b), key, key))

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
draws(out)
seconds_per_draw = best(lambda: draws(out))/1.6e6
peak = peak_flops()
rows = []
share = .1 if scale=='quick' else 1 # Of the instances
for n,m,I,steps in [(2,1,400,301),(5,2,200,301),(20,5,40,201),(400,30,2,21)]:
    I = max(1, int(I*share))
    single = step(n, m, I, 1024, steps)
    double = step(n, m, I, 2048, steps)
    rows.append(dict(n=n, m=m, step=single, update=max(2*single-double, 0.),
                     draws=n*1024*seconds_per_draw*1e6, products=10*n*m*1024/peak*1e6))
torch.set_num_threads(threads)
pd.DataFrame(rows).round(2)

# %% [markdown]
# All columns are in microseconds. At two and five features, drawing random numbers costs as much as the
# products or more, so faster products cannot help; at four hundred features the products dominate.
#
# ## On this machine
#
# The next cell makes the same measurement on the machine that ran this page. At `quick` a turn takes
# milliseconds, and the range is wide.

# %%
size = dict(quick=dict(rows=['n5'], repeats=3, seconds=.6, engine='eager'),
            cpu=dict(seconds=45.), gpu=dict(seconds=45.))[scale]
device = 'cuda' if scale=='gpu' and torch.cuda.is_available() else 'cpu'
measured = bench_superposition(device=device, **size)
measured.T

# %%
minutes = (perf_counter()-began)/60
f'{scale}: {minutes:.1f} minutes on {torch.get_num_threads()} thread(s), {device}'
