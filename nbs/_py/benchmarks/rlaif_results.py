# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # How fast a constitution is trained in
#
# > Labels, revisions and steps of training beside transformers and TRL: same model, prompts and
# > threads.

# %% tags=["parameters"]
scale = 'quick'  # quick: a sign of life with a tiny model; cpu, gpu: rows that need no TRL
seed = 0         # unused: what is measured is time

# %%
#| hide
from time import perf_counter
import pandas as pd, torch
from moral_sc.benchmarks.rlaif import bench, comparison, gaps, recorded, rows
from moral_sc.language.stub_models import random_model
began = perf_counter()

# %% [markdown]
# A run of Constitutional AI asks a model the same things many times over. Every comparison
# stands behind the same worked examples, sixteen principles are asked about the same two
# answers, a critique is followed by a revision in the same dialogue [@bai2022constitutional].
# Reading what is shared once gives the same labels sooner. In training nothing is shared; what
# can be saved there is padding, logits that are stored and never read, and passes whose results
# were at hand while the answers were sampled. On a CPU three things are added that have nothing to
# do with language: matrices are [multiplied](../language/engine/30_onednn.ipynb) by the library that
# uses the processor best, weights are [packed](../language/engine/40_weight_packing.ipynb) in the order in which
# they are read, and memory is [kept](../language/engine/50_allocator.ipynb) from one step to the next. How
# much the first brings depends on the processor: on those for which torch's own library is as fast,
# nothing.
#
# How much sooner is measured against what one would otherwise run: transformers, batched with
# care, and the PPO and RLOO trainers of TRL. The sides take turns on the same threads; a ratio is
# the median over the turns with its range, and counts useful work only: labels, and tokens up to
# where an answer ends. [The page on measuring](30_rlaif.ipynb) says what exactly
# each side does, and how to make the two environments that have TRL. Then one command makes
# the record:
#
# ```sh
# moral_sc bench rlaif --ppo-python trl-ppo/bin/python --rloo-python trl-rloo/bin/python \
#     --out data/results/bench_rlaif_cpu.json
# ```
#
# ## Ratios
#
# Behind each ratio stand the least that this project asks of itself, and what it aims at.
# `cpu_ratio` is the same in processor time instead of time by the clock.

# %%
table = comparison()
table

# %%
#| hide
assert {'ratio','cpu_ratio','floor','aim'}<=set(table.columns)

# %% [markdown]
# `answers` says whether both sides come to the same: the largest difference between labels, and
# the share of texts that are the same to the letter. Labels of the other side leave out the
# closing bracket of ` (A)`, which would cost it a second pass; that is their difference.
#
# What bounds the ratios of texts is what is not shared. A question names the principle before the
# two answers, so the answers are read anew under each of sixteen principles and in both orders.
# Worked examples come before it, in one of four orders, and are shared by all pairs that have the
# same. In chains what remains is writing, a token at a time; there the packed weights do most.
# Tokens that the model is run on for all labels of a turn, padding included; what the ratio of
# times has beyond that of tokens is owed to products of matrices, and differs between processors:

# %%
runs = {k: r['tokens'] for k,r in (recorded() or dict(rows={}))['rows'].items() if 'tokens' in r}
pd.DataFrame({k: dict(transformers=a['mid'], ours=b['mid'], ratio=round(a['mid']/b['mid'], 2))
              for k,(a,b) in runs.items()}).T


# %% [markdown]
# Two rows put PPO beside TRL's, with the same separate critic and one pass over each batch.
# They do the same arithmetic, and where every answer meets the limit little of it can be saved.
# Answers of a real run end when they end, and TRL pads them to the longest. That setting,
# with short answers among long ones, was chosen after an early trial of the other had shown no gain;
# so the row in which every answer meets the limit is the one to judge by. Most of what it shows now
# is the same arithmetic done sooner.
#
# Useful tokens of a step with few answers vary by chance, and with them the ratio. Seconds of a
# step, median and range, with the useful tokens beside them:

# %%
def spent(r):
    cell = lambda x: '{mid:.4g} [{low:.4g}, {high:.4g}]'.format(**x)
    return {f'{side}, {what}': cell(r[what][i]) for what in ('seconds', 'units')
            for i,side in enumerate(('TRL', 'ours'))}

steps = {k: r for k,r in (recorded() or dict(rows={}))['rows'].items()
         if rows.get(k) and rows[k].python and rows[k].what=='units' and 'seconds' in r}
pd.DataFrame({k: spent(r) for k,r in steps.items()})


# %% [markdown]
# The memory of a rollout is what the process rises above where it stood before it, with the
# weights of policy, critic, reference and reward model in place: the sampled answers and
# everything that is computed about them before the first gradient.

# %%
def below(record):
    "Rows that miss their floor, and rows not measured"
    found = record['rows'] if record else {}
    seen = {k: found[k]['ratio']['mid'] for k in rows if 'ratio' in found.get(k, {})}
    apart = [f'first step, {k}' for k,g in gaps(record).gap.items() if g>1e-5] if record else []
    return dict(missed=[rows[k].against for k,v in seen.items() if v<rows[k].floor]+apart,
                open=[r.against for k,r in rows.items() if k not in seen])

below(recorded())

# %% [markdown]
# ## The first step
#
# Sampler and trainer must agree on the probability of what was sampled, or the ratio of PPO
# begins beside 1. The largest difference of log-probabilities, over the tokens of sixteen
# answers at two temperatures, is to be at most 1e-5 in float32. Beside it stands how far each of
# the two is from a reading in float64. Where each is farther from that than the limit, they keep it
# not because they are exact but because they add up
# [in the same order](../language/engine/60_batch_invariant.ipynb):

# %%
gaps() if recorded() else 'not yet measured'

# %% [markdown]
# ## What it was measured on

# %%
record = recorded()
names = 'cpu','cores','threads','torch','transformers','dtype','commit'
told = {k: record['provenance'].get(k) for k in names} if record else 'not yet measured'
told

# %% [markdown]
# ## Here and now
#
# What needs no TRL, on the machine that ran this page. At `quick` the model is tiny and random,
# reads bytes, and takes turns of milliseconds, so the ratios say nothing.

# %%
tiny = random_model('llama')
tiny.model.config.max_position_embeddings = 8192
size = dict(quick=dict(names=['labels','chains','gap'], repeats=1, threads=1, seconds=.3,
                       model=tiny, size=dict(prompts=2, works=1,
                                             chains=dict(rounds=1, new=6))),
            cpu=dict(names=['labels','chains','gap'], repeats=2),
            gpu=dict(names=['labels','ensemble','chains','gap']))[scale]
here = bench(**size)
here[here.ratio!='not yet measured']

# %%
minutes = (perf_counter()-began)/60
f'{scale}: {minutes:.1f} minutes on {torch.get_num_threads()} thread(s)'
