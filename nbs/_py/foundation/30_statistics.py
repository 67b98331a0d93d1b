# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Statistics
#
# > Compute rates and intervals, cluster bootstraps, paired differences and p-values.

# %%
#| default_exp foundation.statistics

# %%
#| export
import warnings
from typing import NamedTuple

import numpy as np
from moral_sc.foundation.errors import DataError

# %%
#| hide
from itertools import product
from fastcore.test import *
import pandas as pd


# %% [markdown]
# Three mistakes are common in tables of model behaviour. The interval of a rate near 0 or 1 leaves $[0,1]$. Rows
# from one template are counted as independent evidence. Two conditions on the same items are compared as if the items
# were different. This page has one function against each mistake, and one for multiple comparisons.

# %%
#| export
class Estimate(NamedTuple):
    "A number and its interval"
    value:float        # Best single value
    low:float = np.nan # Lower end; nan if unknown
    high:float = np.nan

    def __repr__(self): return f'{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]'


# %%
Estimate(.5, .2366, .7634)

# %% [markdown]
# It is a tuple: you can write `value, low, high = estimate` or make a table of them.

# %%
pd.DataFrame([Estimate(.5, .24, .76), Estimate(.1, .05, .2)], index=['before', 'after'])


# %% [markdown]
# ## Rates
#
# A rate is a count over a count. With few trials the usual interval $\hat p \pm z\sqrt{\hat p(1-\hat p)/n}$ is too
# short, and has width zero at 0 of 10. Wilson's interval [@wilson1927] contains the rates for which the observed count
# is not surprising.

# %%
#| export
def wilson(
    k:int,           # Successes
    n:int,           # Trials
    level:float=.95, # Confidence
)->Estimate:
    "Return a rate and its Wilson interval"
    from statsmodels.stats.proportion import proportion_confint
    if n<1: raise DataError(f'A rate needs at least one trial; got {k} of {n}.')
    if not 0<=k<=n: raise DataError(f'A rate needs 0 <= k <= n; got {k} of {n}.')
    low,high = proportion_confint(k, n, 1-level, method='wilson')
    return Estimate(k/n, low if k else 0., high if k<n else 1.) # Exact at the ends


# %%
wilson(5, 10), wilson(500, 1000), wilson(0, 10)

# %% [markdown]
# The ends of the interval are the rates $p$ for which $k$ is exactly $z$ standard deviations away:
# $(\hat p-p)^2 = z^2 p(1-p)/n$.

# %%
for k,n in [(0,10), (3,10), (499,1000), (7,7)]:
    p,low,high = wilson(k, n)
    for end in (low,high): test_close((p-end)**2, 1.959964**2*end*(1-end)/n, eps=1e-8)

# %% [markdown]
# With 20 trials, Wilson's interval covers the true rate about as often as it should; the usual interval covers it far
# less often. Coverage is exact here, a sum over the binomial distribution.

# %%
from scipy.stats import binom

ks = np.arange(21)
ps = np.array([.02, .05, .1, .3, .5])
w = np.array([wilson(k, 20)[1:] for k in ks])
half = 1.96*np.sqrt(ks/20*(1-ks/20)/20)
usual = np.stack([ks/20-half, ks/20+half], 1)

def coverage(ci):
    return [binom.pmf(ks, 20, p)[(ci[:,0]<=p) & (p<=ci[:,1])].sum() for p in ps]
pd.DataFrame(dict(wilson=coverage(w), usual=coverage(usual)), index=ps).round(3)

# %%
assert min(coverage(w))>.92 and min(coverage(usual))<.35

# %%
with expect_fail(DataError, contains='at least one trial'): wilson(0, 0)


# %% [markdown]
# ## Means of a few trainings
#
# A bootstrap of three values cannot leave their range. Student's interval can, and it covers the mean of normal values
# at every number of them.

# %%
#| export
def t_interval(
    values,          # One value for each independent training
    level:float=.95, # Confidence
)->Estimate:
    "Return a mean of independent values and its Student interval"
    from scipy.stats import t
    v = np.asarray(values, float)
    if v.ndim!=1 or len(v)<2:
        raise DataError(f'An interval of a mean needs at least two values; got shape {v.shape}.')
    half = t.ppf((1+level)/2, len(v)-1)*v.std(ddof=1)/np.sqrt(len(v))
    return Estimate(float(v.mean()), float(v.mean()-half), float(v.mean()+half))


# %%
t_interval([1., 2., 3.])

# %%
draws = np.random.default_rng(0).normal(size=(2000,3))
ends = np.array([t_interval(v) for v in draws])
assert .94 < ((ends[:,1]<0) & (0<ends[:,2])).mean() < .96
with expect_fail(DataError, contains='at least two values'): t_interval([1.])


# %% [markdown]
# ## Cluster bootstrap
#
# BBQ has 58,492 rows and 343 templates. Rows from one template share their text, so a model that fails on one row fails
# on most of them, and the number of independent observations is nearer to 343. The bootstrap below draws whole clusters
# with replacement. If the design fixes strata, such as the categories of a benchmark, clusters are drawn within each
# stratum.

# %%
#| export
def _layout(clusters, strata):
    "Return the cluster index of each row and the number of clusters of each stratum"
    from pandas import Series, factorize
    pairs = Series(list(zip(strata, clusters, strict=True)), dtype=object)
    code,names = factorize(pairs, sort=True)
    return code, np.bincount(factorize(Series([s for s,_ in names], dtype=object))[0])

def _picks(sizes, n, rng):
    "Yield the drawn clusters, [draw, cluster], in blocks that fit in memory"
    first = np.cumsum([0, *sizes])
    step = max(1, 2**22//sum(sizes))
    for start in range(0, n, step):
        m = min(step, n-start)
        yield np.hstack([first[i]+rng.integers(0, c, (m, c)) for i,c in enumerate(sizes)])


# %% [markdown]
# Cluster numbers are unique within their stratum only: template 7 of one category is not template 7 of another. Each
# draw keeps the number of clusters of each stratum.

# %%
code,sizes = _layout([7, 7, 8, 7, 9], ['age', 'age', 'age', 'faith', 'faith'])
code, sizes, next(_picks(sizes, 3, np.random.default_rng(0)))

# %%
test_eq(code, [0, 0, 1, 2, 3])
picks = next(_picks([3, 5], 1000, np.random.default_rng(0)))
test_eq(((picks<3).sum(1)==3).all(), True)
test_close(np.bincount(picks.ravel())/1000, np.ones(8), eps=.1)


# %% [markdown]
# A percentile interval is too short if there are few clusters, for the same reason that Student's distribution replaces
# the normal one. We read the percentiles further out, by the factor that makes the interval of a mean equal to Student's.
# With hundreds of clusters this changes nothing. It is Hesterberg's expanded percentile
# interval [@hesterberg2015bootstrap].

# %%
#| export
def lower_tail(
    level:float, # Confidence
    C:int,       # Clusters
    K:int=1,     # Strata
)->float:
    "Return the lower percentile of a bootstrap interval of C clusters in K strata"
    from scipy.stats import norm, t
    return norm.cdf(t.ppf((1-level)/2, C-K)*np.sqrt(C/(C-K)))


# %%
[float(lower_tail(.95, C, 1).round(4)) for C in (5, 20, 343)]


# %% [markdown]
# The statistic is any function of rows. For the mean, each draw needs only the sum and size of each cluster, and
# likewise for a `FunctionOfMeans`, such as a ratio of sums; other statistics are evaluated for each draw. Draws in
# which the statistic is undefined, such as a rate of no rows, are left out.

# %%
#| export
class FunctionOfMeans:
    "A statistic that depends on the rows only by the means of their columns"
    def __init__(self,
        f, # [draw, column] means -> [draw] values
    ): self.f = f
    def __call__(self, values): return self.f(np.mean(values, 0)[None])[0]

def cluster_bootstrap(
    values,            # Row values, [row] or [row, column]
    clusters,          # Cluster of each row: template, prompt, pair
    statistic=np.mean, # Rows -> number
    strata=None,       # Stratum of each row, such as a category
    n:int=2000,        # Draws
    level:float=.95,   # Confidence
    seed:int=0,        # The same seed and rows give the same interval
)->Estimate:
    "Return a statistic of rows and its cluster bootstrap interval"
    value,draws,C,K = _sampled(values, clusters, statistic, strata, n, seed)
    if not len(draws): return Estimate(value)
    tail = lower_tail(level, C, K)
    return Estimate(value, *map(float, np.quantile(draws, [tail, 1-tail])))

def _sampled(values, clusters, statistic, strata, n, seed):
    "Return a statistic, its draws, and the numbers of clusters and strata"
    values = np.asarray(values)
    code,sizes = _layout(*_rows(values, clusters, strata))
    value = float(statistic(values))
    C = sum(sizes)
    K = len(sizes)
    if min(sizes)<2:
        warnings.warn('A stratum has a single cluster: there is no interval.',
                      stacklevel=3)
        return value, np.empty(0), C, K
    picks = _picks(sizes, n, np.random.default_rng(seed))
    if statistic is np.mean and values.ndim==1: draws = _means(values, code, picks)
    elif isinstance(statistic, FunctionOfMeans):
        draws = statistic.f(_column_means(values, code, picks))
    else: draws = _draws(values, code, picks, statistic)
    return value, draws[np.isfinite(draws)], C, K

def _rows(values, clusters, strata):
    if strata is None: strata = ['']*len(values)
    if not len(values): raise DataError('A bootstrap needs at least one row; got none.')
    if not len(values)==len(clusters)==len(strata):
        raise DataError(f'A bootstrap needs one cluster and one stratum a row; got {len(values)}'
                        f' rows, {len(clusters)} clusters, {len(strata)} strata.')
    return clusters, strata

def _means(values, code, picks):
    sums = np.bincount(code, values)
    rows = np.bincount(code)
    return np.concatenate([sums[p].sum(1)/rows[p].sum(1) for p in picks])

def _column_means(values, code, picks):
    C = code.max()+1
    sums = np.zeros((C, values[0].size))
    np.add.at(sums, code, values.reshape(len(values), -1))
    size = np.bincount(code)
    means = []
    for p in picks:
        cells = p+C*np.arange(len(p))[:,None]
        times = np.bincount(cells.ravel(), minlength=len(p)*C).reshape(len(p), C)
        means.append(times@sums/(times@size)[:,None])
    return np.concatenate(means).reshape(-1, *values.shape[1:])

def _draws(values, code, picks, statistic):
    rows = np.arange(len(code))
    C = code.max()+1
    return np.array([statistic(values[np.repeat(rows, np.bincount(p, minlength=C)[code])])
                     for ps in picks for p in ps], dtype=float)


# %% [markdown]
# Take 12 answers from four templates, of which the third is hard.

# %%
right    = [1,1,1, 1,1,0, 0,0,0, 1,0,1]
template = [1,1,1, 2,2,2, 3,3,3, 4,4,4]
cluster_bootstrap(right, template), cluster_bootstrap(right, range(12))

# %% [markdown]
# With 12 independent rows the interval would exclude low rates; with four templates it does not. Four templates can be
# drawn in $4^4=256$ equally likely ways. The random draws agree with the complete enumeration.

# %%
means = np.array(right).reshape(4,3).mean(1)
every = [means[list(i)].mean() for i in product(range(4), repeat=4)]
tail = lower_tail(.8, 4, 1)
low,high = np.quantile(every, [tail, 1-tail], method='inverted_cdf')
drawn = cluster_bootstrap(right, template, n=100_000, level=.8)
Estimate(means.mean(), low, high), drawn

# %%
test_close(drawn, (means.mean(), low, high), eps=1e-9)

# %% [markdown]
# The general code and the fast code for means and for functions of means give the same draws. The order of rows and
# the names of clusters do not matter.

# %%
rng = np.random.default_rng(1)
x = rng.normal(size=300)
c = rng.integers(0, 30, 300)
st = np.where(c<10, 'a', 'b')
fast = cluster_bootstrap(x, c, strata=st)
slow = cluster_bootstrap(x, c, lambda v: v.mean(), strata=st)
i = rng.permutation(300)
moved = cluster_bootstrap(x[i], [f't{k:02}' for k in c[i]], strata=st[i])
fast, slow, moved

# %%
test_close(fast, slow, eps=1e-12)
test_close(fast, moved, eps=1e-12)
xy = np.stack([x+2, rng.uniform(1, 2, 300)], 1)
ratio = FunctionOfMeans(lambda m: m[:,0]/m[:,1])
fast = cluster_bootstrap(xy, c, ratio, strata=st)
slow = cluster_bootstrap(xy, c, lambda v: v[:,0].sum()/v[:,1].sum(), strata=st)
test_close(fast, slow, eps=1e-12)
fast

# %% [markdown]
# With many clusters of equal size, the interval of a mean is the textbook interval of the cluster means.

# %%
x = rng.normal(size=(400, 5)) + rng.normal(size=(400, 1))
boot = cluster_bootstrap(x.ravel(), np.repeat(range(400), 5), n=20_000)
half = 1.966*x.mean(1).std(ddof=1)/20
test_close(boot, (x.mean(), x.mean()-half, x.mean()+half), eps=.01)
boot


# %% [markdown]
# ### Coverage
#
# How often does a 95% interval contain the truth? We simulate templates with random effects and 20 rows each. A bootstrap
# of rows, as if they were independent, misses the truth in more than half of the cases. The last column draws templates
# without the expansion. With fewer than six clusters, no bootstrap of clusters has the right coverage: a mean of
# draws cannot leave the range of the clusters, and the range of four clusters contains the truth in at most 7 of 8
# cases. If each cluster is a training run, use at least six.

# %%
def row_bootstrap(y, rng, n=500): # The sum of rows drawn from zeros and ones is binomial
    return np.quantile(rng.binomial(len(y), y.mean(), n)/len(y), [.025, .975])

def simulate(C, rows=20, runs=1000, truth=.5):
    hits = np.zeros(3)
    rng = np.random.default_rng(C)
    for _ in range(runs):
        y = rng.binomial(1, rng.beta(1, 1, C)[:,None], (C, rows)).ravel()
        cl = np.repeat(np.arange(C), rows)
        w = rng.multinomial(C, np.full(C, 1/C), 500)
        plain = np.quantile(w@y.reshape(C,rows).mean(1)/C, [.025, .975])
        for j,(lo,hi) in enumerate([cluster_bootstrap(y, cl, n=500, seed=rng)[1:],
                                    row_bootstrap(y, rng), plain]):
            hits[j] += lo<=truth<=hi
    return hits/runs


# %%
cover = pd.DataFrame([simulate(C) for C in (4, 6, 8, 40)], index=[4, 6, 8, 40],
                     columns=['clusters', 'rows', 'not expanded'])
cover

# %%
assert cover.clusters[6:].between(.92, .97).all() and cover.clusters[4]<=.9
assert (cover.rows<.6).all()

# %% [markdown]
# If the data cannot show their spread, the interval is `nan` and there is a warning.

# %%
with warnings.catch_warnings(record=True) as caught:
    single = cluster_bootstrap([1, 0, 1], ['a']*3)
single, str(caught[0].message)

# %%
test_eq(single.value, 2/3)
with expect_fail(DataError, contains='at least one row'): cluster_bootstrap([], [])
with expect_fail(DataError, contains='one cluster'): cluster_bootstrap([1, 2], ['a'])


# %% [markdown]
# ## Paired differences
#
# A hard item is hard under both conditions. Drawing each item together with both of its answers removes this
# shared difficulty from the interval of the difference.

# %%
#| export
def paired_difference(
    a,                 # Row values under one condition
    b,                 # The same rows under the other
    clusters,          # Cluster of each row
    statistic=np.mean, # Rows -> number
    **kw,              # strata, n, level, seed: see `cluster_bootstrap`
)->Estimate:           # Of statistic(a) - statistic(b)
    "Return the difference of a statistic between two conditions on the same rows"
    a = np.asarray(a)
    b = np.asarray(b)
    if a.shape!=b.shape:
        raise DataError(f'Paired values need the same rows; got {a.shape} and {b.shape}.')
    if statistic is np.mean and a.ndim==1: return cluster_bootstrap(a*1.-b, clusters, **kw)
    if isinstance(statistic, FunctionOfMeans):
        difference = FunctionOfMeans(lambda m: statistic.f(m[:,0])-statistic.f(m[:,1]))
    else: difference = lambda v: statistic(v[:,0])-statistic(v[:,1])
    return cluster_bootstrap(np.stack([a, b], 1), clusters, difference, **kw)


# %%
skill = rng.normal(size=100)
plain = skill + rng.normal(scale=.3, size=100)
instructed = skill + .2 + rng.normal(scale=.3, size=100)
paired = paired_difference(instructed, plain, range(100))
condition = ['with instruction']*100+['plain']*100
unpaired = cluster_bootstrap(np.r_[instructed, -plain]*2, range(200), strata=condition)
paired, unpaired

# %% [markdown]
# Both intervals have the same centre; only the paired interval excludes zero. Other statistics than the mean are
# computed for both sides of the same draws.

# %%
assert paired.low>0>unpaired.low
test_close(paired.value, unpaired.value, eps=1e-8)
slow = paired_difference(instructed, plain, range(100), lambda v: v.mean())
test_close(slow, paired, eps=1e-8)
both = np.stack([instructed, plain], 1)
pair = both, both+rng.normal(size=(100, 2)), range(100)
test_close(paired_difference(*pair, FunctionOfMeans(lambda m: np.exp(m[:,0])+m[:,1])),
           paired_difference(*pair, lambda v: np.exp(v[:,0].mean())+v[:,1].mean()), eps=1e-12)
paired_difference(instructed, plain, range(100), np.median)


# %% [markdown]
# ## Areas under ROC curves
#
# How well a score tells two kinds of rows apart is the chance that it is higher for a row of the first kind
# than for one of the second, where equal scores count one half.

# %%
#| export
def roc_area(
    positive, # Is a row of the first kind? [row]
    score,    # [row]
)->float:     # nan if all rows are of one kind
    "Return the area under the receiver operating characteristic of a score"
    from scipy.stats import rankdata
    positive = np.asarray(positive, bool)
    k = positive.sum()
    if not 0<k<len(positive): return np.nan
    rank_sum = rankdata(score)[positive].sum()
    return float((rank_sum-k*(k+1)/2)/(k*(len(positive)-k)))


# %%
noise = np.random.default_rng(2)
kind = noise.random(60)<.4
score = np.round(kind+noise.normal(0, 1, 60), 1)
wins = np.sign(score[kind][:,None]-score[~kind])
test_close(roc_area(kind, score), (1+wins.mean())/2, 1e-12)
test_eq([roc_area([1, 1, 0], [3, 2, 1]), roc_area([1, 0], [1, 1])], [1, .5])
assert np.isnan(roc_area([1, 1], [1, 2]))


# %% [markdown]
# ## P-values
#
# Multiple comparisons need a p-value for each comparison, and it should agree with the interval. `cluster_test`
# therefore uses the same draws: the p-value is the level at which the interval just touches the null value.

# %%
#| export
def cluster_test(
    values,            # Row values, [row] or [row, column]
    clusters,          # Cluster of each row
    statistic=np.mean, # Rows -> number
    null:float=0.,     # Value under the null hypothesis
    strata=None, n:int=2000, seed:int=0, # See `cluster_bootstrap`
)->float:              # Below .05 if the 95% interval excludes `null`
    "Return the two-sided p-value of a statistic from its bootstrap draws"
    from scipy.stats import norm, t
    _,draws,C,K = _sampled(values, clusters, statistic, strata, n, seed)
    if not len(draws): return np.nan
    beyond = max(1, min((draws<=null).sum(), (draws>=null).sum()))/len(draws)
    return float(min(1, 2*t.cdf(norm.ppf(min(beyond, .5))*np.sqrt((C-K)/C), C-K)))


# %%
d = instructed-plain
cluster_test(d, range(100)), cluster_test(d-d.mean(), range(100))

# %% [markdown]
# Interval and p-value agree at every level.

# %%
x = rng.normal(.25, 1, 120)
c = np.repeat(range(12), 10)
p = cluster_test(x, c, n=20_000)
for level in np.r_[.5:.995:40j]:
    if abs(1-level-p)<.004: continue # within the resolution of the draws
    test_eq(cluster_bootstrap(x, c, n=20_000, level=level).low>0, p<1-level)
p


# %% [markdown]
# A second test is independent of the bootstrap. If an instruction has no effect, the difference of each
# cluster could equally have the opposite sign. `sign_flip` computes how many choices of signs give a mean at least as far
# from zero. With few clusters it enumerates all choices, and the result is exact.

# %%
def sign_flip(
    differences,   # Row values of a paired difference
    clusters,      # Cluster of each row; the rows of a cluster share a sign
    n:int=10_000,  # Largest number of choices of signs
    seed:int=0,
)->float:
    "Return the two-sided p-value of a mean difference by flipping signs of clusters"
    from itertools import product
    code,sizes = _layout(*_rows(np.asarray(differences), clusters, None))
    sums = np.bincount(code, differences)
    C = int(sizes[0])
    if 2**C<=n: signs = np.array(list(product([1,-1], repeat=C)))
    else:
        signs = np.random.default_rng(seed).choice([1,-1], (n, C))
        signs[0] = 1 # the observed signs
    reached = abs(signs@sums)
    return float((reached>=reached[0]*(1-1e-12)).mean())


# %%
pair = [(cluster_test(y, c, n=4000), sign_flip(y, c)) for m in (0, .1, .2, .3)
        for y in [rng.normal(m, 1, 120)]]
pd.DataFrame(pair, columns=['bootstrap', 'signs'], index=[0, .1, .2, .3]).round(3)

# %%
assert max(abs(a-b) for a,b in pair)<.12
test_eq(sign_flip([1,1,1,1], range(4)), 2/16)

# %% [markdown]
# If there is no difference, both tests reject about as often as they should.

# %%
size = np.zeros(2)
for k in range(400):
    y = (rng.normal(size=(12,1)) + rng.normal(size=(12,4))).ravel()
    at = np.repeat(range(12), 4)
    size += cluster_test(y, at, n=400, seed=k)<.05, sign_flip(y, at, n=400, seed=k)<.05
size/400

# %%
assert ((size/400>.02) & (size/400<.09)).all()


# %% [markdown]
# Tables store values and intervals, not draws. `p_value` computes the p-value of a normal estimate from its
# interval, using the half that faces the null value. It is below 5% exactly if the 95% interval excludes the null
# value.

# %%
#| export
def p_value(
    estimate,         # (value, low, high)
    level:float=.95,  # Of the interval
    null:float=0.,
)->float:             # nan without an interval
    "Return the two-sided p-value of an estimate with an interval"
    from scipy.stats import norm
    value,low,high = estimate
    half = value-low if value>null else high-value
    if value==null: return 1. if half==half else np.nan
    if not half: return 0.
    return float(2*norm.sf(abs(value-null)/half*norm.ppf((1+level)/2)))


# %%
p_value(paired), cluster_test(d, range(100), n=20_000)

# %%
test_close(p_value(Estimate(1.96, 0, 3.92)), .05, eps=1e-4)
test_eq([p_value(Estimate(0, 0, 0)), p_value(Estimate(1, 1, 1))], [1, 0])
assert np.isnan(p_value(Estimate(.2)))


# %% [markdown]
# ## Multiple comparisons
#
# Twenty comparisons at 5% give at least one false finding in two of three papers. Holm's adjustment [@holm1979] multiplies
# the smallest p-value by the number of comparisons, the next one by one less, and so on, and keeps the order. Comparisons
# whose adjusted p-value is below 5% hold jointly, whatever the dependence between the tests.

# %%
#| export
def holm(
    p,           # P-values of one family of tests
)->np.ndarray:   # Adjusted p-values, in the order given
    "Adjust p-values for multiple comparisons by Holm's method"
    from statsmodels.stats.multitest import multipletests
    p = np.asarray(p, dtype=float)
    if not ((0<=p)&(p<=1)).all(): raise DataError(f'p-values lie between 0 and 1; got {p}.')
    return multipletests(p, method='holm')[1] if len(p) else p


# %%
holm([.01, .04, .03, .005])

# %%
test_close(holm([.01, .04, .03, .005]), [.03, .06, .06, .02])
with expect_fail(DataError, contains='between 0 and 1'): holm([.5, np.nan])

# %% [markdown]
# With twenty true null hypotheses, how often is at least one rejected? The smallest adjusted value is twenty times the
# smallest p-value (at most 1).

# %%
p = rng.uniform(size=(4000, 20))
test_close(holm(p[0]).min(), min(1, 20*p[0].min()), eps=1e-12)
raw = (p.min(1)<.05).mean()
adjusted = (20*p.min(1)<.05).mean()
float(raw), float(adjusted)

# %%
assert raw>.6 and abs(adjusted-.05)<.01
