# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Pareto frontiers
#
# > Compare runs by the helpfulness and harmlessness that their snapshots dominate.

# %%
#| default_exp constitution.evaluation.pareto

# %%
#| export
from dataclasses import dataclass

import numpy as np, pandas as pd

# %%
#| export
from moral_sc.constitution.evaluation.elo import (
    ELO_PER_NAT, Elo, WinCounts, bootstrap_counts, validate_votes)
from moral_sc.foundation.errors import ConfigError, DataError, unknown_name_message
from moral_sc.foundation.statistics import Estimate, lower_tail

# %%
#| hide
from itertools import combinations
from fastcore.test import *
from moral_sc.constitution.evaluation.elo import bradley_terry, tournament


# %% [markdown]
# A model that refuses everything does no harm and is of no use. The central figure of the paper
# [@bai2022constitutional] therefore plots two ratings against each other, from two sets of votes:
# helpfulness on ordinary requests, and harmlessness on requests that invite harm. Each run is
# a sequence of snapshots, and one run is better than another if its snapshots lie further out.
#
# ## Pareto set
#
# A point is dominated if another is at least as good on both axes and better on one. The other
# points are the Pareto set.

# %%
#| export
def pareto_mask(
    points,      # [point, axis], more is better
)->np.ndarray:   # [point], True where nothing dominates
    "Mark the points that no other point dominates"
    x = np.asarray(points, dtype=float)
    no_worse = (x[:,None]>=x[None]).all(-1)
    better = (x[:,None]>x[None]).any(-1)
    return ~(no_worse&better).any(0)


# %% [markdown]
# The hypervolume of a run is the area it dominates: all pairs of ratings above a reference
# point that some snapshot matches or exceeds. It is in square Elo, and every
# point of the Pareto set increases it. It depends on the reference point, which must be reported with it. Points
# below the reference on either axis add nothing.

# %%
#| export
def hypervolume(
    points,         # [..., point, 2], more is better
    reference,      # [2], where the area begins
)->np.ndarray:      # [...], product of the two units
    "Return the area between the reference point and the points that dominate it"
    x = np.maximum(np.asarray(points, dtype=float)-np.asarray(reference, dtype=float), 0)
    order = np.argsort(-x[...,0], axis=-1, kind='stable')
    x = np.take_along_axis(x, order[...,None], -2)
    top = np.maximum.accumulate(x[...,1], axis=-1)
    left = np.concatenate([x[...,1:,0], np.zeros_like(x[...,:1,0])], -1)
    return ((x[...,0]-left)*top).sum(-1)


# %%
trail = np.array([[0,0], [40,30], [60,10], [20,70], [20,20], [-90,90]])
pareto_mask(trail), hypervolume(trail, [-50,-50])

# %% [markdown]
# Counting cells of a grid gives the same area, for this run and for a hundred random
# ones. A dominated point adds nothing, and the order of points does not matter.

# %%
rng = np.random.default_rng(0)
def counted(points, reference, top=100, n=800):
    "Share of a fine grid that lies below some point"
    side = (np.arange(n)+.5)/n
    u,v = (r+side*(top-r) for r in reference)
    below = (u[:,None,None]<=points[:,0])&(v[None,:,None]<=points[:,1])
    return below.any(-1).mean()*np.prod(top-np.array(reference, dtype=float))

test_close(hypervolume(trail, [-50,-50]), counted(trail, [-50,-50]), 80)
test_eq(hypervolume(trail[pareto_mask(trail)], [-50,-50]), hypervolume(trail, [-50,-50]))
trails = rng.uniform(-60, 100, (100, 7, 2))
areas = hypervolume(trails, [-30, -20])
test_close(areas, hypervolume(trails[:,::-1], [-30, -20]), 1e-6)
brute = np.array([counted(t, [-30,-20], n=300) for t in trails])
abs(areas-brute).max()/areas.mean()

# %%
assert abs(areas-brute).max()/areas.mean()<.02


# %% [markdown]
# ## Joint bootstrap of two tournaments
#
# Errors come from prompts. If both tournaments used a prompt, a bootstrap draw must
# include it in both or in neither, because the helpfulness and harmlessness of an answer are correlated. Prompts of one
# tournament alone are drawn separately. The shared prompts and those of each tournament
# are thus three strata of one bootstrap.

# %%
#| export
def joint_draws(
    sets:list,   # Clusters of each tournament
    n:int,       # Draws
    seed:int=0,
)->tuple:        # Counts [draw, cluster] of each set, clusters in all, strata
    "Draw bootstrap samples of the clusters of several tournaments together"
    clusters = pd.Index(sorted({c for s in sets for c in s}, key=lambda c: (str(type(c)), c)))
    member = np.stack([clusters.isin(s) for s in sets])
    drawn = np.zeros((n, len(clusters)))
    strata = np.unique(member, axis=1).T
    for k,stratum in enumerate(strata):
        rows = np.flatnonzero((member==stratum[:,None]).all(0))
        if len(rows)<2: raise DataError('A frontier needs two prompts or more in each stratum.')
        drawn[:,rows] = bootstrap_counts(len(rows), n, [seed, k])
    return [drawn[:,clusters.get_indexer(list(s))] for s in sets], len(clusters), len(strata)


# %%
counts,total,strata = joint_draws([['p','q','r','s'], ['r','s','t','u']], 500)
assert (counts[0][:,2:]==counts[1][:,:2]).all()
[c.mean(0).round(2) for c in counts], total, strata

# %%
#| export
AXES = 'helpful', 'harmless'

@dataclass
class ParetoFrontier:
    "Snapshots of several runs on two axes, with draws of all of them together"
    runs:pd.DataFrame      # player, run, step
    ratings:np.ndarray     # [player, axis], Elo
    draws:np.ndarray       # [draw, player, axis]
    gauge:str
    reference:np.ndarray   # [axis], where areas begin
    tail:float             # Lower tail of the intervals

    def _estimate(self, value, draws):
        low,high = np.quantile(draws, [self.tail, 1-self.tail])
        return Estimate(float(value), float(low), float(high))

    @property
    def table(self): # run, step, player, both ratings with intervals, pareto
        "Return all snapshots with their ratings; `pareto` marks the undominated ones"
        out = self.runs.copy()
        for k,axis in enumerate(AXES):
            ends = np.quantile(self.draws[...,k], [self.tail, 1-self.tail], axis=0)
            out = out.assign(**{axis:self.ratings[:,k], f'{axis}_low':ends[0],
                                f'{axis}_high':ends[1]})
        return out.assign(pareto=pareto_mask(self.ratings))

    def _hypervolumes(self, run):
        known = list(dict.fromkeys(self.runs.run))
        if run not in known: raise ConfigError(unknown_name_message('run', run, known))
        rows = (self.runs.run==run).to_numpy()
        return (hypervolume(x[...,rows,:], self.reference) for x in (self.ratings, self.draws))

    def area(self, run):
        "Return the area that a run dominates, square Elo"
        return self._estimate(*self._hypervolumes(run))

    def gain(self, a, b):
        "Return the area of run `a` less that of run `b`, square Elo"
        (x,xs),(y,ys) = self._hypervolumes(a), self._hypervolumes(b)
        return self._estimate(x-y, xs-ys)

    def difference(self, a, b, axis):
        "Return the difference of two players on one axis, Elo"
        names = list(self.runs.player)
        for p in {a, b}-set(names): raise ConfigError(unknown_name_message('player', p, names))
        if axis not in AXES: raise ConfigError(unknown_name_message('axis', axis, AXES))
        i = names.index(a)
        j = names.index(b)
        k = AXES.index(axis)
        return self._estimate((self.ratings[i]-self.ratings[j])[k],
                              (self.draws[:,i]-self.draws[:,j])[:,k])


# %%
#| export
def _check_players(runs, sides, gauge):
    names = list(runs.player)
    if gauge not in names: raise ConfigError(unknown_name_message('player', gauge, names))
    for axis,v in zip(AXES, sides):
        missing = sorted(set(names)^{*v.a, *v.b})
        if missing:
            raise DataError(f'{missing[0]} is not in both the runs and the {axis} votes: give '
                            'every player a run, and votes on both axes.')

def pareto_frontier(
    helpful:pd.DataFrame,     # Votes on helpfulness, as `play_matches` returns them
    harmless:pd.DataFrame,    # Votes on harmlessness, of the same players
    runs:pd.DataFrame,        # player, run, step
    gauge:str,                # The player at (0, 0), such as the common start
    reference=None,           # Where areas begin, default: the lowest rating on each axis
    tie_margin:float=None,    # As in `tournament`
    level:float=.95, n:int=1000, seed:int=0,
)->ParetoFrontier:
    "Rate every snapshot on both axes"
    runs = pd.DataFrame(runs)[['run', 'step', 'player']]
    sides = [validate_votes(v, tie_margin) for v in (helpful, harmless)]
    _check_players(runs, sides, gauge)
    names = list(runs.player)
    counts = [WinCounts(v, names) for v in sides]
    drawn,C,K = joint_draws([list(c.clusters) for c in counts], n, seed)
    zero = lambda r: ELO_PER_NAT*(r-r[...,[names.index(gauge)]])
    best = np.stack([zero(c.fit()) for c in counts], -1)
    draws = np.stack([zero(c.refit(d)) for c,d in zip(counts, drawn)], -1)
    low = best.min(0) if reference is None else np.asarray(reference, dtype=float)
    return ParetoFrontier(runs, best, draws, gauge, low, lower_tail(level, C, K))


# %% [markdown]
# Two runs begin at one model. The first gains harmlessness and keeps its helpfulness; the
# second loses helpfulness. A prompt effect correlates the votes on one prompt.

# %%
def votes_of(skill, prompts, spread=.8, seed=0, name='p'):
    "Every pair once on every prompt"
    rng = np.random.default_rng(seed)
    names = list(skill)
    s = np.array(list(skill.values()))+spread*rng.normal(size=(prompts, len(names)))
    rows = [(a, b, f'{name}{p}', float(rng.random()<1/(1+np.exp(s[p,j]-s[p,i]))))
            for (i,a),(j,b) in combinations(enumerate(names), 2) for p in range(prompts)]
    return pd.DataFrame(rows, columns=['a', 'b', 'prompt', 'win'])

runs = pd.DataFrame([('start', 0), ('keeps', 1), ('keeps', 2), ('pays', 1), ('pays', 2)],
                    columns=['run', 'step']).assign(
    player=lambda d: d.run+'-'+d.step.astype(str))
good = dict(zip(runs.player, [0, 0, 0, -.4, -1.2]))
safe = dict(zip(runs.player, [0, .6, 1.2, .5, 1.1]))
f = pareto_frontier(votes_of(good, 100, name='h'), votes_of(safe, 100, name='r', seed=1), runs,
             gauge='start-0', reference=[-250, -50], n=400)
f.table.round(0)

# %%
f.area('keeps'), f.area('pays'), f.gain('keeps', 'pays')

# %%
test_eq(f.ratings[0], [0, 0])
assert f.gain('keeps', 'pays').low>0>f.difference('pays-2', 'keeps-2', 'helpful').high
with expect_fail(ConfigError, contains="did you mean 'pays'"): f.area('pay')
with expect_fail(DataError, contains='keeps-2 is not in both'):
    pareto_frontier(votes_of(good, 9), votes_of({k:safe[k] for k in list(safe) if k!='keeps-2'}, 9),
             runs, 'start-0')


# %% [markdown]
# The best of several noisy points is partly lucky, so an area is overestimated slightly, and more
# for a run with more snapshots. Compare runs with equally many snapshots, and use
# the difference, in which most of this bias cancels. Over a hundred simulations with these five models:

# %%
def expected(skill, spread=.8):
    "The ratings that an endless crowd would give"
    x,w = np.polynomial.hermite_e.hermegauss(61)
    d = np.subtract.outer(*[np.array(list(skill.values()))]*2)[...,None]+x*spread*2**.5
    return bradley_terry((w/w.sum()/(1+np.exp(-d))).sum(-1)*(1-np.eye(len(skill))))*ELO_PER_NAT

true = np.stack([expected(good), expected(safe)], -1)
true -= true[0]
goal = np.subtract(*[hypervolume(true[[i, i+1]], f.reference) for i in (1, 3)])
def gain(seed):
    sides = votes_of(good, 60, name='h', seed=seed), votes_of(safe, 60, seed=900+seed)
    return pareto_frontier(*sides, runs, 'start-0', f.reference, n=200).gain('keeps', 'pays')

found = np.array([gain(s) for s in range(100)])
held = ((found[:,1]<=goal)&(goal<=found[:,2])).mean()
pd.Series({'true gain':goal, 'mean estimate':found[:,0].mean(), 'interval holds it':held})

# %%
assert held>.88 and abs(found[:,0].mean()/goal-1)<.15


# %% [markdown]
# ## Tests of an order
#
# Several claims of the paper are orders of models, for instance by harmlessness. An order holds only if each of its
# steps holds, so its p-value is the largest of the
# steps' one-sided ones, and no correction for multiple tests is needed. The steps share players;
# their errors come from the joint covariance of all ratings.

# %%
#| export
def order_test(
    elo:Elo,         # From `tournament`
    names:list,      # From the lowest rating to the highest, as claimed
)->pd.DataFrame:     # One row per step: lower, higher, difference, low, high, p
    "Test whether each player of a claimed order beats the one before"
    from scipy.stats import t
    rows = []
    for a,b in zip(names[:-1], names[1:]):
        d = elo.difference(b, a)
        c = np.array([(p==b)-(p==a)*1. for p in elo.players])
        se = np.sqrt(c@elo.cov@c)
        rows.append((a, b, *d, float(t.sf(d.value/se, elo.df))))
    return pd.DataFrame(rows, columns=['lower', 'higher', 'difference', 'low', 'high', 'p'])


# %%
e = tournament(votes_of(safe, 100, seed=1))
steps = order_test(e, ['start-0', 'pays-1', 'keeps-2'])
steps.round(3)

# %% [markdown]
# If two of three models are equal, the claim of an order is accepted once in
# twenty times, and no more often because it is one of two steps.

# %%
level = [order_test(tournament(votes_of(dict(a=0., b=0., c=2.), 40, seed=s)),
                    ['a', 'b', 'c']).p.max()<.05 for s in range(300)]
np.mean(level)

# %%
assert .02<np.mean(level)<.08
