# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # RLAIF speed
#
# > Labels, revisions and PPO steps are timed against transformers and TRL, with their memory.

# %% tags=["parameters"]
scale = 'quick'  # quick: a tiny model; cpu, gpu: the rows that need no TRL
seed = 0         # unused: what is measured is time

# %%
#| hide
from time import perf_counter
import pandas as pd, torch
from moral_sc.benchmarks.harness import format_summary, load_record
from moral_sc.benchmarks.rlaif import RLAIF_ROWS, bench_rlaif, rlaif_gaps, rlaif_ratios
from moral_sc.language.stub_models import random_model
began = perf_counter()

# %% [markdown]
# The prompts of Constitutional AI share long prefixes. Every comparison follows the same worked
# examples, sixteen principles apply to the same two answers, and a revision continues the dialogue
# of its critique [@bai2022constitutional]. Computing each shared prefix once gives the same labels in
# less time. In training no prefix is shared. There we save padding, stored logits that are never
# read, and forward passes whose results were available during sampling. On a CPU three more methods
# reduce the time: [oneDNN matrix products](../language/engine/30_onednn.ipynb),
# [prepacked weights](../language/engine/40_weight_packing.ipynb) and
# [memory retained](../language/engine/50_allocator.ipynb) between steps. The gain of the first
# depends on the processor: where PyTorch's own library is as fast, there is none.
#
# The baselines are carefully batched transformers, and the PPO and RLOO trainers of TRL. The two
# sides run alternately on the same threads. A ratio is the median over turns, with its range, and
# counts useful work only: labels, and tokens up to the end of an answer. The page
# [RLAIF benchmark](30_rlaif.ipynb) describes both sides and how to make the two environments with
# TRL. All measurements so far were made on a CPU; the benchmark has not yet run on a GPU. One
# command makes the record:
#
# ```sh
# moral_sc bench rlaif --ppo-python trl-ppo/bin/python --rloo-python trl-rloo/bin/python \
#     --out data/results/bench_rlaif_cpu.json
# ```
#
# ## Ratios
#
# `floor` is the ratio that we require and `aim` the goal; both were fixed before the
# first measurement. `cpu_ratio` uses processor time instead of wall-clock time.

# %%
table = rlaif_ratios()
table

# %%
#| hide
assert {'ratio','cpu_ratio','floor','aim'}<=set(table.columns)

# %% [markdown]
# The column `answers` compares the results of both sides: the largest difference between labels, or
# the share of identical texts. The baseline's labels leave out the closing bracket of ` (A)`, which
# would cost a second forward pass; that explains their difference.
#
# The ratios of labels and revisions are limited by what is not shared. A question names the
# principle before the two answers, so the answers are computed again for each of sixteen principles
# and both orders. Worked examples come before the principle, in one of four orders, and are shared by
# all pairs with the same order. In revisions most of the time goes into generating one token after
# another, where prepacked weights matter most. The next table counts the tokens of all forward passes
# of a turn, padding included; the part of the time ratio that exceeds the token ratio comes from
# faster matrix products and differs between processors:

# %%
record = load_record('rlaif')
entries = (record or dict(rows={}))['rows']
runs = {k: r['tokens'] for k,r in entries.items() if 'tokens' in r}
pd.DataFrame({k: dict(transformers=a['mid'], ours=b['mid'], ratio=round(a['mid']/b['mid'], 2))
              for k,(a,b) in runs.items()}).T


# %% [markdown]
# Two rows compare our PPO with TRL's, with the same separate critic and one epoch per batch. Both do
# the same arithmetic, and where every answer reaches the limit there is little padding to save.
# Answers of a real run end at different lengths, and TRL pads them to the longest. The setting with
# short and long answers was chosen after an early trial of the other had shown no gain, so judge by the row
# in which every answer reaches the limit. Its ratio comes mostly from faster
# matrix products.
#
# The useful tokens of a step with few answers vary by chance, and so does the ratio. The next table
# shows the seconds and useful tokens of a step, median and range:

# %%
def seconds_and_units(r):
    return {f'{side}, {quantity}': format_summary(r[quantity][i])
            for quantity in ('seconds', 'units') for i,side in enumerate(('TRL', 'ours'))}

steps = {k: r for k,r in entries.items() if k in RLAIF_ROWS and RLAIF_ROWS[k].python
         and RLAIF_ROWS[k].quantity=='units' and 'seconds' in r}
pd.DataFrame({k: seconds_and_units(r) for k,r in steps.items()})

# %% [markdown]
# The memory of a rollout is the rise of the process's memory above its value before the rollout, with
# the weights of policy, critic, reference and reward model in place. It includes the sampled answers
# and everything computed about them before the first gradient.

# %%
ratios = {k: entries[k]['ratio']['mid'] for k in RLAIF_ROWS if 'ratio' in entries.get(k, {})}
gaps = rlaif_gaps(record).gap if record else pd.Series(dtype=float)
dict(missed=[RLAIF_ROWS[k].against for k,x in ratios.items() if x<RLAIF_ROWS[k].floor]
            + [f'first step, {k}' for k,gap in gaps.items() if gap>1e-5],
     open=[r.against for k,r in RLAIF_ROWS.items() if k not in ratios])

# %% [markdown]
# ## Log-probabilities before the first step
#
# Sampler and trainer must agree on the log-probability of the sampled tokens, or PPO's ratio does
# not start at 1. The largest difference over the tokens of sixteen answers at two temperatures
# should be at most 1e-5 in float32. The last columns show the distance of each from float64. If
# both distances exceed the limit, the two agree because they [add in the same
# order](../language/engine/60_batch_invariant.ipynb), not because they are exact:

# %%
rlaif_gaps() if record else 'not yet measured'

# %% [markdown]
# ## Machine

# %%
names = 'cpu','cores','threads','torch','transformers','dtype','commit'
{k: record['provenance'].get(k) for k in names} if record else 'not yet measured'

# %% [markdown]
# ## On this machine
#
# The next cell measures the rows that need no TRL on the machine that ran this page. At `quick` the
# model is tiny and random and turns take milliseconds, so these ratios are not meaningful.

# %%
tiny = random_model('llama')
tiny.model.config.max_position_embeddings = 8192
size = dict(quick=dict(rows=['labels','chains','gap'], repeats=1, threads=1, seconds=.3,
                       model=tiny, size=dict(prompts=2, works=1,
                                             chains=dict(rounds=1, new=6))),
            cpu=dict(rows=['labels','chains','gap'], repeats=2),
            gpu=dict(rows=['labels','ensemble','chains','gap']))[scale]
measured = bench_rlaif(**size)
measured[measured.turns!='']

# %%
minutes = (perf_counter()-began)/60
f'{scale}: {minutes:.1f} minutes on {torch.get_num_threads()} thread(s)'
