# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A learned score is worth less the further it is pursued
#
# > Policies of the toy world trained against a preference model, with the world's truth
# > beside it. The last cell says at which scale, and in how many minutes, this page was
# > recorded.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds; cpu: six trainings and a sweep of prices; gpu: a larger model
seed = 0         # everything random follows from it

# %%
#| hide
from time import perf_counter

import numpy as np, pandas as pd, torch
from moral_sc.constitution.toy import environment
from moral_sc.constitution.plots import (
    kl_distance, linearity, plot_distance, plot_runs, plot_training, running_mean)
from moral_sc.constitution.rl.policy import train_policy
from moral_sc.constitution.preference import fit_preference
from moral_sc.constitution.prompts import render_prompt, split_by_prompt
from moral_sc.constitution.rl.rollouts import STOP_STRINGS
from moral_sc.foundation.runs import content_key
from moral_sc.foundation.statistics import Estimate, cluster_bootstrap
from moral_sc.lab.claims import record
from moral_sc.lab.paths import work_dir
from moral_sc.lab.scales import at_scale
from moral_sc.language.loading import load
from moral_sc.language.generation import sample

torch.set_num_threads(1)
began = perf_counter()

# %%
size = at_scale(scale, # trainings: of every model of this page
    quick=dict(model='tiny', read=60, asks=60, pairs=80, epochs=2, steps=10, batch=16,
               trainings=2, prices=[.2], held=30),
    cpu=dict(model='tiny', read=900, asks=300, pairs=300, epochs=4, steps=100, batch=64,
             trainings=6, prices=[.1, .3], held=200),
    gpu=dict(model='medium', read=None, asks=3000, pairs=3000, epochs=2, steps=600,
             batch=256, trainings=6, prices=[.01, .03, .1, .3], held=500),
)
on = 'auto' if scale=='gpu' else 'cpu'
learn = dict(steps=size['steps'], batch=size['batch'], max_new_tokens=32, lr=3e-4,
             every=max(1, size['steps']//8))
seeds = [seed+s for s in range(size['trainings'])]
place = work_dir(f'over-optimisation-{scale}-{seed}-{content_key(size=size)[:8]}')
size


# %% [markdown]
# > The preference model's score grows in proportion to the square root of the KL from the
# > first policy; late in training, score and truth part [@bai2022hh]. Trained for too long,
# > a policy under a constitution answers with phrases of comfort [@bai2022constitutional].
# > The true score falls as a known function of the distance, and a price of KL does what
# > stopping early does [@gao2023overoptimization].
#
# With real answers the truth has to be stood in for by a larger preference model. In the
# [toy world](../../constitution/toy/10_environment.ipynb) it is counted. The preference model is
# learned from few comparisons between answers of the first policy, which know nothing of
# answers that only a trained policy gives. Nothing else is wrong with it: its labels are
# the true probabilities.
#
# ## A proxy
#
# Truth is help and harmlessness together. Prompts of the comparisons, of training and of
# measurement are different by text. One training says [little](frontier.ipynb), so everything but
# the prompts is made anew from several seeds, first models and comparisons included.

# %%
def truth(prompts, answers):
    return environment.helpfulness(prompts, answers)+environment.harmlessness(prompts, answers)

n = size['pairs']+size['asks']+size['held']
rows = list({r['text']: r for r in environment.requests(2*n, seed=seed)}.values())[:n]
parts = (size[k]/n for k in ('pairs', 'asks', 'held'))
for_pairs,asks,held = split_by_prompt(rows, *parts, seed=seed)

def say(lm, rows, seed, key=''):
    "An answer to each prompt"
    out = sample(lm, [render_prompt(lm, r['text']) for r in rows], 32, stop=STOP_STRINGS['plain'], seed=seed,
                 keys=[f'{r["id"]}{key}' for r in rows], batch=128)
    return [s.text.strip() for s in out]

def compare(first, rows, seed):
    "Pairs of answers by a first policy"
    a,b = (say(first, rows, seed, f'/{k}') for k in 'ab')
    return [dict(id=r['id'], prompt=r['text'], a=x, b=y)
            for r,x,y in zip(rows, a, b) if x!=y]

def told(pairs, worth=truth):
    "Pairs with the probability that a is better"
    p,a,b = ([r[k] for r in pairs] for k in ('prompt', 'a', 'b'))
    share = 1/(1+np.exp(worth(p, b)-worth(p, a)))
    return [r | dict(p=float(x)) for r,x in zip(pairs, share)]

def prefer(s, pairs, name):
    return fit_preference(firsts[s], pairs, lr=1e-3, epochs=size['epochs'], seed=s,
                          out=place/f'{name}-{s}')

firsts = {s: environment.pretrain(size['model'], s, size['read'], place, on) for s in seeds}
pairs = {s: told(compare(first, for_pairs, s)) for s,first in firsts.items()}
proxies = {s: prefer(s, pairs[s], 'proxy') for s in seeds}
pd.DataFrame({s: dict(learned=str(proxy.accuracy(pairs[s])),
                      fresh=str(proxy.accuracy(told(compare(firsts[s], held, s)))))
              for s,proxy in proxies.items()}).T


# %% [markdown]
# Accuracies of each preference model: on the comparisons it learned from, and on fresh ones.
#
# ## Pursued
#
# PPO without any price. The score it is trained on is drawn with the true one.

# %%
def count(name): return lambda p,a: environment.features(p, a)[name].to_numpy(float)

watch = dict(gold=truth, kind=count('kind'), danger=count('danger'), useful=count('useful'))
def train(name, rewards=proxies, **kw):
    "A policy of each training"
    return {s: train_policy(firsts[s], asks, rewards[s], watch=watch, seed=s,
                            out=place/f'{name}-{s}', **learn | dict(kl_coef=0.) | kw)
            for s in seeds}

free = train('free')
shown = ['step', 'score', 'gold', 'kl3', 'entropy', 'length']
ends_of = pd.DataFrame({s: p.history[shown].iloc[-1] for s,p in free.items()}).T
ends_of.assign(stopped=[p.stopped or '' for p in free.values()]).round(2)

# %%
#| label: fig-training
#| fig-cap: Learned score, KL, entropy, tokens, and counts of useful and of kind words in the answers of each step, first training; points are steps, lines running means
plot_training(free[seed].history, ('score', 'kl3', 'entropy', 'length', 'useful', 'kind'))

# %%
#| label: fig-goodhart
#| fig-cap: Learned and true score against the square root of the KL from the first policy, first training without a price; points are steps, lines running means
plot_distance(free[seed].history, dict(score='preference model', gold='truth'))


# %% [markdown]
# How straight is the learned score against the root of the KL, over the first half of the
# way? Shares of its variance that are left by a straight line, by a parabola, and by a
# straight line in the KL itself:

# %%
def early(p): return linearity(p.history, upto=kl_distance(p.history).max()/2)

straight = pd.DataFrame({s: early(p) for s,p in free.items()}).T
straight.round(3)


# %% [markdown]
# In @fig-goodhart the two scores rise together at first. Then the preference model goes on
# rising and the truth falls. In this training useful words go first, and with them length
# (@fig-training): an answer with less in it harms less, and from so few comparisons the model has
# learned more of harm than of help. Later the answers grow again, without the useful words.
#
# Where a run goes is up to the training. The table above has ends of 12 to 25 tokens, 14 to 210 nats
# away, some truer than the beginning and some far worse. Recordings of first models that had
# read a quarter as long ended within thirty steps in answers with nothing in them, where an
# alarm stops a run.
#
# ## On prompts that training did not see
#
# Each snapshot answers held-out prompts once. Where a training's truth is highest is found on one
# half of them, and what is lost from there to the end is measured on the other half. If its
# learned score fell on that stretch, too, that fall is put in the place of the loss.

# %%
def measure(s, p):
    "Scores of each snapshot on the held-out prompts"
    texts = [r['text'] for r in held]
    res = []
    for d in p.snapshots:
        answers = say(load(d, 'float32', on), held, s)
        res.append(pd.DataFrame(dict(
            step=int(d.name[5:]), prompt=texts, proxy=proxies[s](texts, answers),
            gold=truth(texts, answers), kind=count('kind')(texts, answers)>0)))
    return pd.concat(res)

half = {t: i%2 for i,t in enumerate(sorted({r['text'] for r in held}))}
def way(d):
    "What one training gains, and what it loses after its top"
    a,b = (x.groupby('step')[['proxy', 'gold', 'kind']].mean()
           for _,x in d.groupby(d.prompt.map(half)))
    whole = (a+b)/2
    top = a.gold.idxmax()
    lost = b.gold[top]-b.gold.iloc[-1]
    on = b.proxy.iloc[-1]-b.proxy[top]
    return dict(top=top, lost=lost, proxy_after=on, turned=lost if on>=0 else min(lost, on),
                proxy=whole.proxy.iloc[-1]-whole.proxy.iloc[0],
                gold=whole.gold.iloc[-1]-whole.gold.iloc[0],
                kind_first=whole.kind.iloc[0], kind_last=whole.kind.iloc[-1])

seen = pd.DataFrame({s: way(measure(s, p)) for s,p in free.items()}).T
def mean(x): return Estimate(*cluster_bootstrap(np.asarray(x, float), range(len(x))))
seen.round(2)

# %%
pd.Series({k: str(mean(seen[k])) for k in seen})

# %% [markdown]
# ## A price, and another algorithm
#
# Priced runs stop somewhere on the same road. RLOO has no critic and four answers to each
# prompt.

# %%
priced = {k: train(f'price-{k}', kl_coef=k) for k in size['prices']}
rloo = train('rloo', algorithm='rloo')
runs = {'PPO, no price': free, **{f'PPO, λ = {k:g}': ps for k,ps in priced.items()},
        'RLOO, no price': rloo}

# %%
#| label: fig-prices
#| fig-cap: True score against the square root of the KL for several prices and for RLOO, first training of each; points are steps, lines running means
plot_runs({k: ps[seed].history for k,ps in runs.items()}, 'gold', title='truth')


# %% [markdown]
# A small price holds the policy near the best place it passes; a large one stops it before.
# RLOO without a price goes further than PPO in as many steps, and its truth falls further.
# The criterion compares whole curves, and the unpriced run falls where the priced one
# stays, which is one reason why a price may be more than a way of stopping early.

# %%
def apart(a, b, column):
    "Mean gap of two curves where both have points, per gain of the first"
    curve = lambda d: tuple(np.array(sorted(zip(kl_distance(d), running_mean(d[column])))).T)
    (x,y),(u,v) = curve(a),curve(b)
    grid = np.linspace(max(x[0], u[0]), min(x[-1], u[-1]), 20)
    gap = np.abs(np.interp(grid, x, y)-np.interp(grid, u, v)).mean()
    return gap/(y.max()-y[0])

def apart_from_free(others, column):
    return [apart(free[s].history, others[s].history, column) for s in seeds]

same_truth = np.max([apart_from_free(ps, 'gold') for ps in priced.values()], 0)
same_score = apart_from_free(rloo, 'score')
def late(p): return p.history[['score', 'gold']].assign(distance=kl_distance(p.history)).tail(5).mean()
pd.DataFrame({k: sum(map(late, ps.values()))/len(ps) for k,ps in runs.items()}).T.round(2)

# %% [markdown]
# Mean gap of true scores, the larger of the prices, and of learned scores of RLOO, training by
# training, as shares of the unpriced gain:

# %%
pd.DataFrame(dict(price=same_truth, rloo=same_score), seeds).round(2)

# %% [markdown]
# ## Estimators of the KL
#
# What the figures call distance is the root of the mean of $k_3$. The plain estimator $k_1$
# has the same mean. While policies are close, $k_3$ scatters less and cannot be negative.
# Far away its exponential takes over: a few answers carry most of the mean, and the
# rightmost points of the figures are such steps. Over all steps of all runs without a
# price:

# %%
d = pd.concat([p.history for p in free.values()])
pd.DataFrame(dict(k1=d.kl, k3=d.kl3)).agg(['mean', 'std', 'min']).round(3)

# %% [markdown]
# ## Comfort
#
# In the world a labelling model reads with one principle of several, and one of them sees
# warmth and thinks that more of it is better. A preference model of its labels, pursued in
# the same way:

# %%
texts = [r['text'] for r in held]
warm = {s: prefer(s, environment.model_labels(compare(firsts[s], for_pairs, s), seed=s), 'warm')
        for s in seeds}
cai = train('labels', rewards=warm)
def comfort(s, d):
    "Share of answers of a snapshot with a phrase of comfort"
    return float((count('kind')(texts, say(load(d, 'float32', on), held, s))>0).mean())
share = pd.DataFrame({s: dict(first=comfort(s, p.snapshots[0]), last=comfort(s, p.snapshots[-1]))
                      for s,p in cai.items()}).T
boiler = mean(share['last']-share['first'])
share.round(2), str(boiler)

# %%
#| label: fig-comfort
#| fig-cap: Phrases of comfort in an answer, and dangerous words in it, against the square root of the KL; labels of a model that reads with principles, first training
plot_distance(cai[seed].history, dict(kind='phrases of comfort', danger='dangerous words'),
              title='in an answer')

# %% [markdown]
# In five trainings of six every last answer has a phrase of comfort, or nearly every one. In
# @fig-comfort, the first of them, an answer has about four, and nothing dangerous is left. That is the
# paper's boilerplate, and all it takes is one principle of several that thinks more warmth is better.
# In the sixth training the phrases are gone at the end: its policy has found something that the
# preference model likes better still. That one training is why the interval reaches below twenty
# points. How much boilerplate one finds depends on where one stops.
#
# What this does not show: how any of it depends on the size of the preference model or of the
# policy; one world has one size of each here. And the truth of this world is simpler than the
# mistakes that a score of real answers can make.
#
# ## Claims
#
# Criteria were fixed before the first policy was trained in the world, in
# `data/claims/constitution_overoptimisation.toml`; that six trainings are made, and that intervals
# draw them, before this recording.

# %%
record(scale, {
    'constitution/overopt-root-kl': mean(straight.in_kl-straight.line),
    'constitution/overopt-proxy-rises': mean(seen.proxy),
    'constitution/overopt-turns': mean(seen.turned),
    'constitution/overopt-price': mean(same_truth),
    'constitution/overopt-boilerplate': boiler,
    'constitution/overopt-rloo': mean(same_score),
})

# %%
f'{scale}: {(perf_counter()-began)/60:.1f} minutes on {torch.get_num_threads()} thread(s)'
