# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Calibration
#
# > Measure whether a label of .7 is right in seven cases of ten.

# %%
#| default_exp constitution.evaluation.calibration

# %%
#| export
import numpy as np, pandas as pd

# %%
#| export
from moral_sc.foundation.errors import DataError
from moral_sc.foundation.statistics import Estimate, cluster_bootstrap, wilson

# %%
#| hide
from fastcore.test import *


# %% [markdown]
# Soft labels are better than hard ones only if their probabilities are calibrated. The paper
# plots how often the preferred answer is right against its probability, and finds
# its labels near the diagonal [@bai2022constitutional]. Three numbers quantify this: the expected
# calibration error, the slope of a logistic regression on the logit of the label, and the Brier
# score.
#
# ## Mirrored pairs
#
# The order of the two answers of a pair is arbitrary, so every pair is entered twice, as
# $(p, y)$ and as $(1-p, 1-y)$. Otherwise the curve would depend on which answers stand first.
# The two entries are one observation, and intervals treat them as one.

# %%
#| export
def _data(p, y):
    p = np.asarray(p, float)
    y = np.asarray(y, float)
    if p.shape!=y.shape or p.ndim!=1 or not len(p):
        raise DataError(f'Calibration needs one outcome a label; got {p.shape} and {y.shape}.')
    if not ((0<=p)&(p<=1)).all() or not np.isin(y, (0, 1)).all():
        raise DataError('Labels lie between 0 and 1 and outcomes are 0 or 1.')
    return p,y

def mirror_pairs(
    p, # P(a is better)
    y, # 1 where a is better
)->tuple: # Twice as many of each
    "Return every pair and its mirror image"
    p,y = _data(p, y)
    return np.concatenate([p, 1-p]), np.concatenate([y, 1-y])


# %% [markdown]
# ## Reliability curve
#
# Bins of equal mass have equally many labels. Bins of equal width are empty where labels are
# rare, which for a small labeller is almost everywhere. An even number of bins is symmetric,
# so no bin contains a pair twice, except for labels tied at one half.

# %%
#| export
def _bins(p, n): # Of equal mass
    return np.argsort(np.argsort(p, kind='stable'), kind='stable')*n//len(p)

def reliability(
    p,                     # Labels
    y,                     # Outcomes, 0 or 1
    bins:int=10,
)->pd.DataFrame:           # One row per bin: p, y, low, high, n
    "Compute the share of true outcomes per bin of labels, over pairs and their mirror images"
    p,y = mirror_pairs(p, y)
    n = max(1, min(bins, len(p)//2))
    d = pd.DataFrame(dict(p=p, y=y, bin=_bins(p, n)))
    rows = [(g.p.mean(), *wilson(int(g.y.sum()), len(g)), len(g)) for _,g in d.groupby('bin')]
    return pd.DataFrame(rows, columns=['p', 'y', 'low', 'high', 'n'])


# %%
rng = np.random.default_rng(0)
p = rng.beta(2, 2, 2000)
y = rng.random(2000)<p
reliability(p, y, 6).round(3)

# %%
r = reliability(p, y, 6)
assert ((r.low<=r.p)&(r.p<=r.high)).sum()>=5
assert r.n.max()-r.n.min()<=1
test_close(r.y+r.y[::-1].to_numpy(), np.ones(6), .01)


# %% [markdown]
# ## Expected calibration error
#
# The expected calibration error is the mean distance of the curve from the diagonal. Noise alone
# makes it positive on any finite set. `ece_floor` computes its value for a calibrated labeller;
# it goes to zero as the set grows.

# %%
#| export
def _ece(p, y, bins):
    p,y = np.concatenate([p, 1-p]), np.concatenate([y, 1-y])
    b = _bins(p, max(1, min(bins, len(p)//2)))
    return float(abs(np.bincount(b, p-y)).sum()/len(p))

def ece(
    p, y,                     # Labels and outcomes
    bins:int=10,
    clusters=None,            # Cluster of each row; default: rows are independent
    n:int=1000, seed:int=0,
)->Estimate:
    "Return the expected calibration error, with a bootstrap interval"
    p,y = _data(p, y)
    stat = lambda v: _ece(v[:,0], v[:,1], bins)
    if clusters is None: clusters = range(len(p))
    return cluster_bootstrap(np.stack([p, y], 1), clusters, stat, n=n, seed=seed)

def ece_floor(
    p,                        # Labels
    bins:int=10, n:int=300, seed:int=0,
)->float:
    "Return the expected error of a calibrated labeller on as many rows"
    p = np.asarray(p, float)
    rng = np.random.default_rng(seed)
    draws = [_ece(p, (rng.random(len(p))<p)*1., bins) for _ in range(n)]
    return float(np.mean(draws))


# %%
errors = {n: (_ece(p[:n], y[:n]*1., 10), ece_floor(p[:n])) for n in (50, 200, 2000)}
p_many = rng.beta(2, 2, 200_000)
errors[200_000] = _ece(p_many, (rng.random(200_000)<p_many)*1., 10), np.nan
pd.DataFrame(errors, ['error', 'floor']).T.round(4)

# %%
e = [v for v,_ in errors.values()]
assert e[0]>e[2]>e[3] and e[3]<.005
assert abs(errors[2000][0]-errors[2000][1])<.02


# %% [markdown]
# An overconfident labeller has a larger error.

# %%
def logit(p): return np.log(p/(1-p))
def sigma(x): return 1/(1+np.exp(-x))

sure = sigma(3*logit(p))
ece(p, y), ece(sure, y)

# %%
assert ece(sure, y).low>ece(p, y).high


# %% [markdown]
# ## Calibration slope
#
# In a regression of outcomes on the logit of the label, $P(y) = \sigma(\alpha+\beta\,\mathrm{logit}\,p)$,
# a calibrated labeller has $\alpha=0$ and $\beta=1$. A slope below one means overconfidence, above one
# underconfidence. With mirrored pairs $\alpha$ is zero by symmetry, so the intercept is fitted to rows
# in their given order, where it shows a position bias. Labels of 0 and 1 have no logit and are
# moved by $10^{-6}$.

# %%
#| export
def _newton(X, y, steps=60):
    "Fit a logistic regression by Newton's method; None if the rows are separable"
    w = np.zeros(X.shape[1])
    for _ in range(steps):
        q = 1/(1+np.exp(-np.clip(X@w, -30, 30)))
        H = (X*(q*(1-q))[:,None]).T@X
        if np.linalg.cond(H)>1e12: return None
        d = np.linalg.solve(H, X.T@(y-q))
        w = w+d
        if abs(d).max()<1e-10: return w
    return None

def _robust(X, y, w, code):
    "Return cluster-robust standard errors"
    q = 1/(1+np.exp(-X@w))
    H = np.linalg.inv((X*(q*(1-q))[:,None]).T@X)
    score = np.zeros((code.max()+1, X.shape[1]))
    np.add.at(score, code, X*(y-q)[:,None])
    return np.sqrt(np.diag(H@score.T@score@H))

def logit_fit(
    p, y,           # Labels and outcomes
    clusters=None,  # Cluster of each row
)->dict:            # slope and intercept, `Estimate`s; nan if the rows are separable
    "Regress outcomes on the logit of labels"
    p,y = _data(p, y)
    p = np.clip(p, 1e-6, 1-1e-6)
    code = pd.factorize(np.asarray(range(len(p)) if clusters is None else clusters))[0]
    x = np.log(p/(1-p))
    X = np.stack([x, np.ones(len(x))], 1)
    res = {}
    mirrored = np.concatenate([x, -x])[:,None], np.concatenate([y, 1-y]), np.tile(code, 2)
    for name,(Z,t,c),k in (('slope', mirrored, 0), ('intercept', (X, y, code), 1)):
        w = _newton(Z, t)
        if w is None: res[name] = Estimate(np.nan)
        else:
            half = 1.96*_robust(Z, t, w, c)[k]
            res[name] = Estimate(float(w[k]), float(w[k]-half), float(w[k]+half))
    return res


# %%
shifted = sigma(logit(p)+.7)
pd.DataFrame({'calibrated': logit_fit(p, y), 'too sure': logit_fit(sure, y),
              'timid': logit_fit(sigma(.4*logit(p)), y), 'likes a': logit_fit(shifted, y)}).T

# %%
f = logit_fit(p, y)
assert f['slope'].low<1<f['slope'].high and f['intercept'].low<0<f['intercept'].high
test_close(logit_fit(sure, y)['slope'].value*3, f['slope'].value, .01) # But for the ends
assert logit_fit(shifted, y)['intercept'].high<-.5
assert np.isnan(logit_fit([.2, .8], [0, 1])['slope'].value)

# %% [markdown]
# Each pair counts once: entering all rows a second time as the same pairs changes no interval.

# %%
twice = logit_fit(np.tile(p, 2), np.tile(y, 2), np.tile(np.arange(len(p)), 2))
test_close(twice['slope'], f['slope'], 1e-9)


# %% [markdown]
# ## Brier score
#
# The Brier score is the mean squared distance of label and outcome; a constant label of one half scores .25.

# %%
#| export
def brier(
    p, y, clusters=None, **kw, # `kw`: n, level, seed of `cluster_bootstrap`
)->Estimate:
    "Return the mean squared error of labels"
    p,y = _data(p, y)
    return cluster_bootstrap((p-y)**2, range(len(p)) if clusters is None else clusters, **kw)

def calibration(
    p, y, bins:int=10, clusters=None,
)->pd.Series: # `Estimate`s, and the floor of the error
    "Compute all measures of this module"
    right = (np.asarray(p)>.5)==(np.asarray(y)>.5)
    return pd.Series(dict(rows=len(right), accuracy=wilson(int(right.sum()), len(right)),
                          ece=ece(p, y, bins, clusters), floor=ece_floor(p, bins),
                          brier=brier(p, y, clusters), **logit_fit(p, y, clusters)))


# %%
pd.DataFrame({'calibrated': calibration(p, y), 'too sure': calibration(sure, y)})

# %%
test_close(brier(np.full(50, .5), rng.random(50)<.5).value, .25)
assert brier(p, y).high<.25 and brier(sure, y).low>brier(p, y).high
with expect_fail(DataError, contains='between 0 and 1'): ece([1.2], [1])
with expect_fail(DataError, contains='one outcome'): ece([.2, .3], [1])
