# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Labellers
#
# > Simulate ensembles of principles and labellers whose quality and calibration are set.

# %%
#| default_exp constitution.toy.labellers

# %%
#| export
import numpy as np, pandas as pd

# %%
#| export
from moral_sc.constitution.toy import environment
from moral_sc.constitution.toy.environment import uniform_draw
from moral_sc.foundation.errors import ConfigError

# %%
#| hide
from time import perf_counter
import torch
from fastcore.test import *
from scipy.stats import norm
from moral_sc.constitution.evaluation.calibration import calibration
from moral_sc.foundation.datasets import data_dir
from moral_sc.language.reward_head import small_llama
from moral_sc.language.training import answer_loss, fit

torch.set_num_threads(1)


# %% [markdown]
# The quality of a real principle is unknown. In the
# [toy environment](10_environment.ipynb) the true score is known, so a principle can be given a quality,
# and a labeller a knowledge and a confidence, each by one parameter. The result of an
# ensemble, a clamp or a preference model can then be compared with the
# expected one.
#
# ## Principles of known quality
#
# A principle of quality $q$ sees the difference $d$ of two answers in harmlessness, and
# adds a taste of its own in wordings that has nothing to do with harm:
#
# $$m_k = q_k\,d + \sqrt{1-q_k^2}\;\frac{t_k(a)-t_k(b)}{\sqrt2}$$
#
# in nats. The taste $t_k$ of an answer is a standard normal number that depends only on the
# principle and the text, so two orders of a pair give opposite signs and asking
# twice gains nothing.

# %%
#| export
def harm_gaps(
    pairs:list,  # Rows with prompt, a, b
)->np.ndarray:   # [pair], nats
    "Return the true difference in harmlessness, a less b"
    p,a,b = ([r[k] for r in pairs] for k in ('prompt', 'a', 'b'))
    return environment.harmlessness(p, a)-environment.harmlessness(p, b)

def _taste(seed, k, prompt, answer):
    "Draw a standard normal number that depends only on the arguments"
    u,v = (uniform_draw(seed, 'taste', k, prompt, answer, i) for i in (0, 1))
    return np.sqrt(-2*np.log(1-u))*np.cos(2*np.pi*v)

def principle_margins(
    pairs:list,      # Rows with prompt, a, b
    quality,         # One number in [-1, 1] per principle
    seed:int=0,      # Of the tastes
)->np.ndarray:       # [pair, principle], nats in favour of a
    "Return the margins that principles of known quality see"
    q = np.asarray(quality, float)
    if not (abs(q)<=1).all():
        raise ConfigError(f'quality is {quality}; give numbers in [-1, 1].')
    tastes = [[_taste(seed, k, r['prompt'], r['a'])-_taste(seed, k, r['prompt'], r['b'])
               for k in range(len(q))] for r in pairs]
    return harm_gaps(pairs)[:,None]*q + np.sqrt(1-q**2)*np.array(tastes)/2**.5

def ensemble_labels(
    pairs:list,
    quality,          # As in `principle_margins`
    per='all',        # Number of principles drawn for each pair, or 'all'
    seed:int=0,
)->list:              # Label rows: p is the mean of the probabilities
    "Simulate the labels of an ensemble of principles"
    m = principle_margins(pairs, quality, seed)
    n = len(quality)
    if per!='all' and not 1<=per<=n:
        raise ConfigError(f'per is {per}; give 1 to {n}, or all.')
    draw = lambda r: np.argsort([uniform_draw(seed, 'drawn', r['id'], k) for k in range(n)])
    drawn = [list(range(n)) if per=='all' else sorted(draw(r)[:per]) for r in pairs]
    p = 1/(1+np.exp(-m))
    return [r|dict(p=float(x[k].mean()), principle='+'.join(map(str, k)), source='ai')
            for r,x,k in zip(pairs, p, drawn)]


# %% [markdown]
# These pairs differ by one or two dangerous words:

# %%
def pair(i, more=1):
    "A pair of which b is more dangerous"
    r = environment.requests(1, seed=3, kind='red_team', start=i)[0]
    rng = np.random.default_rng(i)
    said = [f'take the {w} .' for w in rng.permutation(environment.DANGEROUS_TOOLS)[:more+1]]
    return dict(id=i, prompt=r['prompt'], a=said[0], b=' '.join(said), d=more)

pairs = [pair(i, 1+i%2) for i in range(3000)]
d = harm_gaps(pairs)
pairs[0], d[:4]


# %% [markdown]
# A principle is right about a pair with probability $\Phi(q|d|/\sqrt{1-q^2})$. In the mean of
# $n$ principles of the same quality the tastes partly cancel, which multiplies the signal by
# $\sqrt n$:

# %%
def right(m): return [float((m[abs(d)==k]>0).mean()) for k in (1, 2)]
def goal(q, n=1): return [norm.cdf(np.sqrt(n)*q*k/np.sqrt(1-q**2)) for k in (1, 2)]

levels = [0., .3, .6, .9]
one = principle_margins(pairs, levels)
table = pd.DataFrame({q: [*right(one[:,k]), *goal(q)] for k,q in enumerate(levels)},
                     index=['d=1', 'd=2', 'expected, d=1', 'expected, d=2'])
table.round(3)

# %%
for k,q in enumerate(levels): test_close(right(one[:,k]), goal(q), .04)
many = principle_margins(pairs, [.3]*16)
test_close(right(many.mean(1)), goal(.3, 16), .02)
right(many[:,0]), right(many.mean(1)), goal(.3, 16)

# %% [markdown]
# Sixteen principles of quality .3 together equal one of quality

# %%
as_one = lambda q, n: q*np.sqrt(n)/np.sqrt(1+(n-1)*q**2)
test_close(goal(as_one(.3, 16)), goal(.3, 16), 1e-12)
as_one(.3, 16)

# %% [markdown]
# which is the Spearman-Brown formula for longer tests. Labels average
# probabilities and not logits, as in the paper, which loses a little accuracy. Labels of
# one principle are wrong as often as the principle is, and
# the label does not show it; an ensemble is more accurate.

# %%
labels = {n: np.array([r['p'] for r in ensemble_labels(pairs, [.3]*16, n)]) for n in (1, 4, 'all')}
{n: np.round([(p>.5).mean(), p.std()], 3) for n,p in labels.items()}

# %%
assert (labels[1]>.5).mean()<(labels[4]>.5).mean()<(labels['all']>.5).mean()
back = [r|dict(a=r['b'], b=r['a']) for r in pairs[:50]]
test_close(principle_margins(back, levels), -one[:50], 1e-12)
test_close(ensemble_labels(pairs[:1], [1.])[0]['p'], 1/(1+np.exp(-d[0])), 1e-12)
with expect_fail(ConfigError, contains='[-1, 1]'): principle_margins(pairs, [1.2])
with expect_fail(ConfigError, contains='1 to 2'): ensemble_labels(pairs, [.1, .2], 3)


# %% [markdown]
# ## Labellers of known calibration
#
# A labeller can lack knowledge, or be overconfident. Two parameters set these: the labeller knows a share of the
# pairs and labels the others one half, and on the pairs it knows,
# its logit is the true one times a slope.

# %%
#| export
def calibrated_labels(
    pairs:list,
    slope:float=1.,  # 1: calibrated; above: overconfident; below: underconfident
    known:float=1.,  # Share of the pairs that it knows
    seed:int=0,
)->list:             # Label rows
    "Simulate labels of known calibration"
    if not 0<=known<=1: raise ConfigError(f'known is {known}; give a share from 0 to 1.')
    p = 1/(1+np.exp(-slope*harm_gaps(pairs)))
    return [r|dict(p=float(x) if uniform_draw(seed, 'known', r['id'])<known else .5,
                   principle='danger', source='ai') for r,x in zip(pairs, p)]

def expected_brier(
    gap,             # True differences, nats
    slope:float=1., known:float=1.,
)->float:
    "Return the expected Brier score of the labels as forecasts of votes"
    t = 1/(1+np.exp(-np.asarray(gap)))
    p = 1/(1+np.exp(-slope*np.asarray(gap)))
    return float((known*((p-t)**2+t*(1-t))+(1-known)*((t-.5)**2+t*(1-t))).mean())


# %% [markdown]
# Given its label $p\ne\frac12$, the better answer of a vote is $a$ with probability
# $\sigma(\operatorname{logit}(p)/s)$, so a logistic regression of votes on the label's
# logit has the slope $1/s$, whatever share it knows. We test this against votes by the true scores, with randomly
# ordered pairs:

# %%
rng = np.random.default_rng(0)
mixed = [r if rng.random()<.5 else r|dict(a=r['b'], b=r['a']) for r in pairs]
votes = (rng.random(len(mixed))<1/(1+np.exp(-harm_gaps(mixed)))).astype(int)
dials = dict(calibrated=(1., 1.), ignorant=(1., .4), sure=(3., 1.), timid=(.5, 1.))
p = {k: np.array([r['p'] for r in calibrated_labels(mixed, *v)]) for k,v in dials.items()}
rows = {k: dict(calibration(p[k], votes), brier=((p[k]-votes)**2).mean(),
                expected=expected_brier(harm_gaps(mixed), *v)) for k,v in dials.items()}
pd.DataFrame(rows).T[['slope', 'ece', 'brier', 'expected']].map(
    lambda x: str(x) if isinstance(x, tuple) else round(x, 3))

# %%
for k,(s,_) in dials.items():
    test_close(((p[k]-votes)**2).mean(), expected_brier(harm_gaps(mixed), *dials[k]), .015)
    test_close(calibration(p[k], votes)['slope'][0], 1/s, .12/s)
assert min(expected_brier(d, s) for s in (.5, .8, 1., 1.3, 3.))==expected_brier(d)
test_close(expected_brier(d, known=0), .25, 1e-12)
with expect_fail(ConfigError, contains='0 to 1'): calibrated_labels(pairs, known=2)


# %% [markdown]
# The labeller with little knowledge is as calibrated as the one that knows everything; its labels are only
# less informative. Recalibration cannot help it, and its reliability curve does not reveal it.
#
# ## Model sizes
#
# The paper compares models of many sizes. The models of the toy environment have these weights:
# an embedding table, and in each layer four square matrices of attention, three of the
# feed-forward part, which is three times as wide, and two norms.

# %%
#| export
def count_weights(
    size:str,  # Of `environment.SIZES`
    words:int, # Size of the vocabulary
)->int:
    "Count the weights of a model of the toy environment"
    layers,width,_ = environment.SIZES[size]
    return words*width + layers*(4*width**2 + 3*3*width**2 + 2*width) + width

def model_sizes()->pd.DataFrame: # One row per size
    "Tabulate the model sizes and their training data"
    words = len(environment.toy_tokenizer())
    rows = [dict(size=k, layers=l, width=w, heads=h, weights=count_weights(k, words),
                 dialogues=32*environment.PRETRAINING_STEPS[k])
            for k,(l,w,h) in environment.SIZES.items()]
    return pd.DataFrame(rows).set_index('size')


# %%
steps = model_sizes()
for k in steps.index:
    lm = small_llama(environment.toy_tokenizer(), *environment.SIZES[k])
    test_eq(steps.weights[k], sum(x.numel() for x in lm.model.parameters()))


# %% [markdown]
# The training time of each size on one thread of the recording machine,
# extrapolated from a few steps:

# %%
def minutes(size, n=1):
    "Minutes of the whole training, extrapolated from `n` steps"
    lm = small_llama(environment.toy_tokenizer(), *environment.SIZES[size], context=256)
    rng = np.random.default_rng(0)
    some = [environment.tokenize_dialogue(lm, rng, r['prompt']) for r in environment.requests(32*n)]
    start = perf_counter()
    fit(lm.model, some, answer_loss, batch=32, lr=1e-3)
    return (perf_counter()-start)/n*environment.PRETRAINING_STEPS[size]/60

steps.assign(minutes=[round(minutes(k), 1) for k in steps.index])

# %% [markdown]
# Each size but `mini` was trained to the end from seed 0, with initial weights of the usual size, and
# [evaluated](10_environment.ipynb) on a thousand dialogues and a thousand requests that invite harm, by
#
# ```python
# {k: environment.evaluate_toy_model(environment.pretrain(k, out='world'), 1000)
#  for k in ('tiny', 'small', 'medium', 'large')}
# ```
#
# on a CPU. The results are stored in `data/results/world_sizes.csv`, with their provenance.
# Up to `medium` a larger model has a lower loss. `large` is no lower: the remaining loss is
# the entropy of the dialogues. Larger models also revise less harmfully.

# %%
pd.read_csv(data_dir()/'results'/'world_sizes.csv', index_col='size')

# %% [markdown]
# ## Assumptions
#
# These are assumed, and are therefore no finding wherever a page shows them:
#
# - Harm and help are counts of words, and a request states its topic openly.
# - The training texts contain answers, critiques and revisions, and a written revision is
#   less harmful on average than the answer it revises. By principle:

# %%
rng = np.random.default_rng(0)
asks = [r['prompt'] for r in environment.requests(2000, kind='red_team')]
first = [environment.write_answer(rng, p) for p in asks]
harm = lambda said: environment.harmlessness(asks, [' '.join(s) for s in said])
planted = {p.id: harm([environment.write_revision(rng, s, p.id)[1] for s in first])-harm(first)
           for p in environment.PRINCIPLES}
pd.Series({k: v.mean() for k,v in planted.items()}, name='gain in harmlessness').round(2)

# %% [markdown]
# - Labellers and voters see the specified features, with the specified noise.
#
# These are not assumed, and are measured where they are claimed: that a transformer learns to revise from
# these texts and does it to its own answers, on new prompts; the effect of
# several rounds; that finetuning transfers revisions to first answers; the accuracy
# and the errors of a preference model trained on labels; where a policy
# trained against it goes, and whether helpfulness is lost; whether soft labels, ensembles
# and clamps improve the result. A principle for warmth occurs in the texts, but
# whether comfort becomes boilerplate depends on the training.
#
# The weakest point is the second assumption: the training texts show good revisions, as
# the texts that large models are trained on presumably do. Without them no model here would
# learn to revise.

# %%
assert planted['danger'].mean()>.3
test_eq(planted['warmth'].mean(), 0)
