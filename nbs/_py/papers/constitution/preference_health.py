# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Health of a preference model: over-optimisation forecast from held-out votes
#
# > In a toy environment, votes on ordinary answers forecast which preference models lose true score under best-of-n; for PPO the rank correlation of the forecast is 0.53, and whether it exceeds our bound of 0.2 is undecided.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds; cpu: 128 preference models, minutes; gpu: more of all
seed = 0         # everything random follows from it

# %%
#| hide
import json
import warnings

import numpy as np, pandas as pd, torch
from scipy.stats import spearmanr
from moral_sc.constitution.answers import answer_pairs
from moral_sc.constitution.evaluation.health import LIMITS, health
from moral_sc.constitution.feedback import label
from moral_sc.constitution.plots import kl_distance, running_mean
from moral_sc.constitution.preference import fit_preference
from moral_sc.constitution.prompts import load_prompts, split_by_prompt
from moral_sc.constitution.rl.policy import train_policy
from moral_sc.constitution.toy import environment
from moral_sc.constitution.toy.experiments import true_score
from moral_sc.constitution.toy.preference_runs import (
    PROBE_SIGNS, RunSize, draw_labeller, fit_run, measure_run, plot_health)
from moral_sc.foundation.files import write_file
from moral_sc.foundation.runs import content_key
from moral_sc.foundation.statistics import Estimate, cluster_bootstrap, roc_area, wilson
from moral_sc.lab.claims import Measurement, record
from moral_sc.lab.paths import work_dir
from moral_sc.lab.scales import at_scale
from moral_sc.language.loading import load
from moral_sc.language.stub_models import random_model

torch.set_num_threads(1)
warnings.filterwarnings('ignore', message='.*hardly considers')
KL = 3. # Intended, nats
size = at_scale(scale,
    quick=dict(runs=8, run=RunSize(12, 6, 24, 64, 40), pretraining=dict(steps=3, batch=8),
               policies=1, policy=dict(steps=2, batch=8), judge='random', judged=6),
    cpu=dict(runs=128, run=RunSize(), pretraining=environment.HELPFUL, policies=8,
             policy=dict(steps=30, batch=32), judge='smollm2-135m-instruct', judged=24),
    gpu=dict(runs=1024, run=RunSize(200, 20, 512), pretraining=environment.HELPFUL, policies=64,
             policy=dict(steps=200, batch=128), judge='smollm2-135m-instruct', judged=400),
)
more_policies = at_scale(scale, quick=2, cpu=24, gpu=256) # Enlarged after the first recording
draws = at_scale(scale, quick=200, cpu=1000, gpu=1000) # Of bootstraps over runs
folder = work_dir(f'preference-health-{scale}-{seed}-{content_key(size=str(size))[:8]}')

def first_model():
    return environment.pretrain('mini', seed, out=folder, **size['pretraining'])

def measure_once(i):
    "Measure a run, or load it"
    path = folder/f'run-{i:03}.json'
    if not path.exists():
        write_file(path, json.dumps(measure_run(i, first_model, size['run'], KL, seed)))
    return json.loads(path.read_text())

runs = pd.DataFrame([measure_once(i) for i in range(size['runs'])])
judged = runs[runs.half=='judged']

# %%
#| label: fig-health
#| fig-cap: Judged runs. Left, rates of true and of false alarms that best-of-n at a KL of 3 nats lowers the true score, by probe; the diamond is the verdict of `health`. Right, KL at which the true score is highest, forecast and actual; blue runs are regressions on words, red ones transformers, and the largest KL that can be measured is 3.6 nats.
plot_health(judged, KL)

# %% [markdown]
# > Under best-of-n sampling the true score rises with the KL from the initial policy and then falls, sooner for
# > preference models with less data [@gao2023overoptimization].
#
# This page asks whether one can forecast which preference model will do that, and at which KL.
# [`health`](../../constitution/evaluation/80_health.ipynb) examines a preference model before anything
# is optimised. Each run here [draws a labeller with known
# defects](../../constitution/toy/70_preference_runs.ipynb) (a weak signal of the truth, a taste for
# length, comfort or refusals, noise, a bias for the first answer), fits a preference model and an
# ensemble to its labels, and asks `health` with 400 votes of fair raters on pairs of ordinary answers.
# Then best-of-n sampling optimises the preference model, and the true score, which `health` does not
# use, is computed exactly. One run of four fits transformers, the others regressions on words.

# %%
runs.groupby(['half', 'kind']).agg(
    runs=('run', 'size'), falls=('true_gain', lambda x: (x<0).mean()),
    gain=('true_gain', 'mean'), peak=('true_peak', 'median'),
    refused=('ok', lambda x: 1-x.mean())).round(2)


# %% [markdown]
# `falls` is the share of runs in which a KL of 3 nats lowers the true score, `gain` its mean change, `refused` the share that the verdict
# refuses.
#
# ## Alarms
#
# The area under the curve is the chance that a run whose true score falls looks worse than one whose true score rises. The limits of `health` were
# chosen in a pilot with other seeds and labellers. The criteria of the claims were committed before any run of this page, and are
# judged by the runs with odd numbers. The runs with even numbers, called `tuning` in the table above, are shown beside
# them; nothing was tuned on them. The column `transformers` has the transformers of both halves.

# %%
def area(d, probe):
    "Return the area under the curve of a probe, with an interval over runs"
    values = np.stack([d.true_gain<0, PROBE_SIGNS[probe]*d[probe]], 1).astype(float)
    return cluster_bootstrap(values, range(len(d)), lambda v: roc_area(v[:,0], v[:,1]), n=draws)

halves = {'even runs': runs[runs.half=='tuning'], 'odd runs, judged': judged,
          'transformers': runs[runs.kind=='transformer']}
areas = pd.DataFrame({name: {k: area(d, k) for k in PROBE_SIGNS} for name,d in halves.items()})
areas.map(str)


# %% [markdown]
# `own_gain` is the forecast from votes of the labeller that made the training labels. It shares their defects, so these votes confirm
# what the preference model has learned.
#
# ### The verdict

# %%
def refused(d):
    "Return the share of refused runs where the true score falls, and where it rises"
    no = ~d.ok.astype(bool)
    falls = d.true_gain<0
    return {k: wilson(int(no[m].sum()), int(m.sum())) if m.any() else Estimate(np.nan)
            for k,m in (('falls', falls), ('rises', ~falls))}

verdicts = pd.DataFrame({name: refused(d) for name,d in halves.items()})
verdicts.map(str)

# %% [markdown]
# How often is each probe beyond its limit, where the true score falls and where it rises?

# %%
failures = judged.failed.str.split().map(set)
pd.DataFrame({name: {k: np.mean([k in f for f in failures[m]]) if m.any() else np.nan
                     for k in LIMITS}
              for name,m in dict(falls=judged.true_gain<0,
                                 rises=judged.true_gain>=0).items()}).round(2)

# %% [markdown]
# The verdict is strict. It refuses every judged run whose true score falls, and three of five whose
# true score rises. The forecast gain alone does nearly as well on the first and refuses a fifth of the
# others. Most of the remaining refusals are due to accuracies that 400 votes cannot tell from chance.
# The share of labels that flip and the disagreement of ensembles hardly separate the runs: in this
# environment labels that flip still correlate a little with the truth. We keep the limits that were
# chosen before the runs.
#
# The table has the mean of two probes over all runs, by the defect that each is meant to find: the
# labeller's taste for length, and its bias for the first answer.

# %%
pd.concat({probe: runs.groupby(f'labeller_{by}')[probe].mean()
           for probe,by in (('length', 'length'), ('flips', 'position'))}).round(2)


# %% [markdown]
# Both probes follow their defect. But a taste for longer answers raises the true score here, because
# longer answers name more tools, and a taste for short ones lowers it. A probe for a defect does not
# measure what optimising it does to the true score; fair votes do.
#
# ## Forecast peaks

# %%
def rank_correlation(d, a, b):
    "Return Spearman's correlation with an interval over runs"
    def statistic(v): return spearmanr(*v.T)[0] if v.std(0).all() else np.nan
    return cluster_bootstrap(d[[a, b]].to_numpy(float), range(len(d)), statistic, n=draws)

peaks = {name: dict(peak=rank_correlation(d, 'peak', 'true_peak'),
                    gain=rank_correlation(d, 'gain', 'true_gain'))
         for name,d in halves.items()}
pd.DataFrame(peaks).map(str)

# %% [markdown]
# The table has rank correlations of forecast and actual values. Both forecasts are correlated with the
# truth (0.56 to 0.79), but single forecasts are far from exact (@fig-health, right). The gain is
# forecast in nats of a vote and the true one in points of the true score; for fair raters these units
# are equal:

# %%
error = (judged.gain-judged.true_gain).abs()
inside = judged.true_gain.between(judged.gain_low, judged.gain_high)
pd.Series(dict(inside=inside.mean(), median_error=error.median(),
               spread_of_truth=judged.true_gain.std())).round(2)


# %% [markdown]
# `inside` is the share of runs whose true gain is in the interval of the forecast. The interval covers the noise of the votes, but not errors of
# the assumed law.
#
# ## PPO
#
# Best-of-n has a known KL and an exact true score. To test the forecast for reinforcement learning,
# policies that start from a model of the same text are trained by PPO, without a KL penalty, against
# transformers of judged runs.

# %%
def optimise(i):
    "Train a policy against the preference model of a run; return what happens to the true score"
    path = folder/f'policy-{i:03}.json'
    if not path.exists():
        models,_,held,_ = fit_run(draw_labeller(i, seed), first_model, size['run'], seed)
        history = train_policy(first_model(), held, models[0], watch=dict(gold=true_score),
                               max_new_tokens=32, lr=1e-3, kl_coef=0., seed=seed,
                               every=size['policy']['steps'], **size['policy']).history
        gold = running_mean(history.gold)
        row = dict(run=i, start=gold[0], highest=gold.max(), end=gold[-1],
                   peak=kl_distance(history)[gold.argmax()]**2, last=kl_distance(history)[-1]**2,
                   learned=history.score.iloc[-1]-history.score.iloc[0])
        write_file(path, json.dumps({k: float(v) for k,v in row.items()}))
    return json.loads(path.read_text())

def optimise_all(chosen):
    "Train policies against the preference models of runs, and add what `health` forecast"
    d = pd.DataFrame([optimise(i)|measure_once(i) for i in chosen])
    return d.assign(change=d.end-d.start)

first = judged[judged.kind=='transformer'].run[:size['policies']]
policies = optimise_all(first)
policies[['learned', 'start', 'highest', 'end', 'peak', 'last', 'gain', 'true_gain']].round(2)

# %% [markdown]
# `start`, `highest` and `end` are running means of the true score along training, `peak` and `last` are KLs in nats, `gain` is the forecast and
# `true_gain` what best-of-n does at 3 nats; `learned` is the change of the learned score. Rank correlations with the change of the true score:

# %%
policies[['gain', 'true_gain', 'change']].corr('spearman').change.round(2)

# %% [markdown]
# Eight policies are too few to decide. We therefore registered a row about 24 other policies, trained
# against the next transformers among the odd-numbered runs:

# %%
enlarged = optimise_all(range(first.iloc[-1]+8, first.iloc[-1]+8*(more_policies+1), 8))
enlarged.set_index('run')[['learned', 'start', 'end', 'change', 'gain', 'true_gain']].round(2)

# %%
ppo = {k: rank_correlation(enlarged, k, 'change') for k in ('gain', 'true_gain')}
pd.DataFrame(dict(policies=len(enlarged), falls=(enlarged.change<0).mean(),
                  **{k: [str(e)] for k,e in ppo.items()})).round(2)


# %% [markdown]
# Half of the 24 lower the true score. The forecast orders them better than chance, with a rank correlation of 0.53 (0.13 to
# 0.77), about as well as best-of-n does (0.56). The row asked for at least 0.2 and stays undecided. The eight above were too few
# to see this. A policy that is trained for thirty steps on few prompts may produce answers unlike the best of a hundred
# ordinary answers; we did not test this.

# %% [markdown]
# ## Labels of a real model
#
# In [the run on SmolLM2-135M](real_run.ipynb) the label of every pair flips when its answers change
# places. The same model labels pairs of its own answers to our prompts here, under one principle in
# both orders. A preference model is fitted to two thirds of the labels; the rest are the only held-out
# votes. One reason for refusal does not depend on the toy runs: labels that all flip depend on the
# letters, not on the answers.

# %%
def load_judge():
    return random_model('llama') if size['judge']=='random' else load(size['judge'])

judge = load_judge()
options = dict(seed=seed, mode='plain' if size['judge']=='random' else 'chat')
prompts = load_prompts('helpful')[:size['judged']//2]+load_prompts('red_team')[:size['judged']//2]
pairs = [r for r in answer_pairs(judge, prompts, max_new_tokens=24, out=folder/'pairs', **options)
         if r['a'].strip() and r['b'].strip() and r['a']!=r['b']]
labels = label(judge, pairs, few_shot=[] if size['judge']=='random' else None,
               out=folder/'labels', max_tokens=2048, **options)
train,rest = split_by_prompt(labels, 2, 1, seed=seed)
real = fit_preference(judge, train, lr=3e-5, batch=8, max_tokens=1024, out=folder/'real', **options)
verdict = health(real, rest, labels=train, draws=50)
flips = verdict.measures['flips']
print(f'{len(labels)} labels', verdict, sep='\n')

# %% [markdown]
# All 16 labels of the preference model flip, the fewest that could pass the criterion: the interval of their share
# (0.81 to 1.00) lies just above the limit of 0.80.
#
# ## What this does not show
#
# - Texts, labellers and defects are simple, and there are few kinds of defects. Real errors of
#   preference models are not drawn from this list, and the shares of alarms depend on it.
# - The environment is a toy, and its transformers have two layers. Three of four preference models are
#   regressions on words.
# - Fair votes are assumed. If only votes with the defects of the training labels exist, the forecast is
#   hardly better than chance (an area of 0.61, `own_gain`).
# - Best-of-n reaches 3.6 nats here. Reinforcement learning reaches larger KL and finds answers that the
#   first policy never gives; votes on ordinary answers give no information about these. A verdict
#   without objection does not replace measurements during training.
# - A real preference model is only checked for its labels. The page has not yet been run on a GPU.
#
# ## Claims
#
# The criteria in `data/claims/constitution_health.toml` were committed before the first run of this page; all are ours; that
# about PPO was added after eight policies had been seen, and before the 24 that judge it. Five hold. Two are undecided: whether the
# verdict refuses at most half of the runs whose true score rises, and whether the forecast orders what PPO does.
# The values of each run are in `data/results/preference_health.csv`.

# %%
falls = judged.true_gain<0
both = np.stack([falls, -judged.gain, -judged.own_gain], 1).astype(float)
own = cluster_bootstrap(both, range(len(judged)), lambda v: roc_area(v[:,0], v[:,1]) -
                        roc_area(v[:,0], v[:,2]), n=draws)
record(scale, {
    'constitution/health-forecast-alarms': areas.loc['gain', 'odd runs, judged'],
    'constitution/health-forecast-peak': peaks['odd runs, judged']['peak'],
    'constitution/health-verdict-warns': verdicts.loc['falls', 'odd runs, judged'],
    'constitution/health-verdict-passes': verdicts.loc['rises', 'odd runs, judged'],
    'constitution/health-own-votes': own,
    'constitution/health-forecast-ppo': ppo['gain'],
    'constitution/health-refuses-real-labels': Measurement(
        *flips, unmet='a model with random weights answered' if size['judge']=='random' else ''),
})
