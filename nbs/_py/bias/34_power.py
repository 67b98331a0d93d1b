# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Statistical power
#
# > The smallest effect that an evaluation of a given size can detect.

# %%
#| default_exp bias.power

# %% [markdown]
# A result without a difference has two explanations: there is no effect, or the run was too small to
# detect it. The second is likely for small models, and for benchmarks made from a few templates. This
# page computes detectable effects for the three designs of the paper: templates, occupations, students.

# %%
#| export
import numpy as np, pandas as pd
from numbers import Real

from moral_sc.foundation.errors import ConfigError, DataError, short_repr
from moral_sc.foundation.statistics import holm, p_value
from moral_sc.foundation.tables import check_columns

# %%
#| hide
from fastcore.test import *
from moral_sc.foundation.statistics import cluster_test


# %% [markdown]
# ## Templates
#
# A paired difference has a value for each question. With $m$ questions per template and a correlation
# $\rho$ within a template, the mean over $C$ templates has the standard error
#
# $$ s_C = \frac{\sigma}{\sqrt C}\sqrt{\rho + \frac{1-\rho}{m}}, $$
#
# and the smallest difference that is detected four times in five is $(t_{.975} + t_{.8})\,s_C$, about
# $2.8\,s_C$. More questions of the same templates help only as far as $\rho$ lets them.

# %%
#| export
def _check_number(name, value, low, high=np.inf):
    if isinstance(value, Real) and not isinstance(value, bool) and not (value<low or value>high):
        return
    bounds = f'from {low:g} to {high:g}' if high<np.inf else f'of at least {low:g}'
    raise ConfigError(f'{name} is {short_repr(value)}; give a number {bounds}.')

def standard_error(
    sd:float,       # Of the difference over questions
    templates:int,
    rows:float=1,   # Questions per template
    icc:float=0.,   # Correlation of two questions of one template
)->float:
    "Return the standard error of a mean difference over templates"
    for name,value,low,high in (('sd', sd, 0, np.inf), ('templates', templates, 1, np.inf),
                                ('rows', rows, 1, np.inf), ('icc', icc, 0, 1)):
        _check_number(name, value, low, high)
    return float(sd*np.sqrt((icc + (1-icc)/rows)/templates))

def detectable_effect(
    se:float,          # Standard error
    df:float=np.inf,   # Degrees of freedom: templates minus strata
    power:float=.8,    # Probability of detection
    level:float=.05,   # Two-sided
)->float:
    "Return the smallest effect that a test detects with the given power"
    from scipy.stats import t
    for name,value,high in (('se', se, np.inf), ('df', df, np.inf), ('power', power, 1),
                            ('level', level, 1)): _check_number(name, value, 0, high)
    return float((t.ppf(1-level/2, df) + t.ppf(power, df))*se)


# %%
design = pd.DataFrame([
    dict(templates=C, questions=m, **{f'icc {r}':detectable_effect(standard_error(.5, C, m, r), C-1)
                                      for r in (0, .2, .5, 1)})
    for C in (25, 100, 343) for m in (1, 4, 24)]).set_index(['templates','questions'])
design.round(3)


# %% [markdown]
# For a difference with a standard deviation of 0.5 over questions, the 25 templates of one category
# cannot detect a change of 0.1 unless their questions are unrelated, and 24 questions per template
# instead of four help little once they are correlated. Simulated runs agree with the formula: at the
# effect that it gives, four in five detect it.

# %%
def found(C, m, icc, effect, runs=400, seed=0):
    rng = np.random.default_rng(seed)
    at = np.repeat(range(C), m)
    hits = 0
    for k in range(runs):
        shared = np.sqrt(icc)*rng.normal(size=(C,1))
        y = effect + .5*(shared + np.sqrt(1-icc)*rng.normal(size=(C,m)))
        hits += cluster_test(y.ravel(), at, n=800, seed=k)<.05
    return hits/runs

share = {(C,m,r): found(C, m, r, detectable_effect(standard_error(.5, C, m, r), C-1))
         for C,m,r in ((25,4,.2), (25,1,0), (60,4,.8))}
share

# %%
assert all(.74<p<.86 for p in share.values())
test_close(standard_error(.5, 25, 1e9, .2), .5*np.sqrt(.2/25))
test_close(detectable_effect(1), 1.96+.8416, eps=1e-3)
for kw,said in ((dict(sd='a', templates=9), "sd is 'a'; give a number of at least 0"),
                (dict(sd=-1, templates=9), 'sd is -1'), (dict(sd=1, templates=0), 'templates is 0'),
                (dict(sd=1, templates=9, icc=2), 'icc is 2; give a number from 0 to 1')):
    with expect_fail(ConfigError, contains=said): standard_error(**kw)
with expect_fail(ConfigError, contains='power is 80'): detectable_effect(1, power=80)


# %% [markdown]
# A first run gives $\sigma$ and $\rho$. `cluster_components` estimates both from the values of its
# questions, by a one-way analysis of variance.

# %%
#| export
def cluster_components(
    values,     # [question] paired differences
    clusters,   # [question] templates
)->dict:        # sd, icc, templates, rows
    "Estimate how a difference varies within and between templates"
    y = np.asarray(values, float)
    code = pd.factorize(np.asarray(clusters))[0]
    n = np.bincount(code)
    if len(n)<2: raise DataError('Variance between templates needs two templates; got one.')
    means = np.bincount(code, y)/n
    rows = (n.sum() - (n**2).sum()/n.sum())/(len(n)-1)
    between_ms = (n*(means-y.mean())**2).sum()/(len(n)-1)
    within_ms = ((y-means[code])**2).sum()/max(1, n.sum()-len(n))
    var = max(0., (between_ms-within_ms)/rows) if n.sum()>len(n) else between_ms
    total = var + (within_ms if n.sum()>len(n) else 0)
    return dict(sd=float(np.sqrt(total)), icc=float(var/total) if total else 0.,
                templates=len(n), rows=float(rows))


# %%
rng = np.random.default_rng(0)
y = .5*(np.sqrt(.3)*rng.normal(size=(300,1)) + np.sqrt(.7)*rng.normal(size=(300,6)))
c = cluster_components(y.ravel(), np.repeat(range(300), 6))
c

# %%
assert abs(c['sd']-.5)<.03 and abs(c['icc']-.3)<.06
test_close(standard_error(**c), y.mean(1).std(ddof=1)/np.sqrt(300), eps=1e-4)


# %% [markdown]
# ## Occupations
#
# Winogender's metric is a correlation over 60 occupations. On Fisher's scale
# $z=\operatorname{artanh}\rho$ its standard error is $1/\sqrt{n-3}$ for every $\rho$, so the
# detectable difference from zero, or from another condition, does not depend on the model. Two
# conditions share their occupations; `shared` is the correlation of their two estimates, and zero is the
# conservative choice.

# %%
#| export
def detectable_correlation(
    n:int=60,          # Occupations
    against:float=0.,  # Correlation to be distinguished from
    two:bool=False,    # `against` is an estimate from as many occupations too
    shared:float=0.,   # Correlation of the two estimates
    **kw,              # power, level
)->float:
    "Return the nearest higher correlation that can be distinguished from another"
    _check_number('n', n, 4)
    _check_number('against', against, -1, 1)
    se = np.sqrt((2*(1-shared) if two else 1)/(n-3))
    return float(np.tanh(np.arctanh(against)+detectable_effect(se, **kw)))


# %%
pd.DataFrame([dict(from_=r, fixed=detectable_correlation(against=r),
                   estimated=detectable_correlation(against=r, two=True),
                   estimated_shared=detectable_correlation(against=r, two=True, shared=.8))
              for r in (0, .3, .5, .6)]).set_index('from_').round(2)


# %% [markdown]
# With 60 occupations a correlation below 0.35 is hard to distinguish from zero, and the paper's two
# values for the plain condition, 0.5 in the caption and 0.6 in the text, could not be distinguished.
# Simulated occupations agree:

# %%
def told_apart(rho, n=60, runs=4000, seed=0):
    x,e = np.random.default_rng(seed).normal(size=(2, runs, n))
    y = rho*x + np.sqrt(1-rho**2)*e
    r = [np.corrcoef(a, b)[0,1] for a,b in zip(x, y)]
    return float((abs(np.arctanh(r))*np.sqrt(n-3)>1.96).mean())
told_apart(detectable_correlation())

# %%
test_close(told_apart(detectable_correlation()), .8, eps=.02)
assert .5<.6<detectable_correlation(against=.5, two=True, shared=.8)


# %% [markdown]
# A criterion "the interval lies within these bounds" needs more than a value within them. `interval_power` is the
# share of samples in which it would: occupations are drawn from a normal distribution of the given
# correlation, and the interval is the bootstrap interval that the metric has.

# %%
#| export
def interval_power(
    rho:float,      # True correlation
    low:float,      # Bounds that the interval must lie within
    high:float,
    n:int=60,       # Occupations
    runs:int=1000,  # Samples
    draws:int=400,  # Of each sample's bootstrap
    level:float=.95,
    seed:int=0,
)->float:
    "Return how often the interval of a correlation lies within bounds"
    for name,value in dict(rho=rho, low=low, high=high).items(): _check_number(name, value, -1, 1)
    rng = np.random.default_rng(seed)
    hits = 0
    for _ in range(runs):
        x,e = rng.normal(size=(2, n))
        y = rho*x + np.sqrt(1-rho**2)*e
        rows = rng.integers(0, n, (draws, n))
        a,b = (v[rows]-v[rows].mean(1, keepdims=True) for v in (x, y))
        r = (a*b).sum(1)/np.sqrt((a**2).sum(1)*(b**2).sum(1))
        ends = np.quantile(r, [(1-level)/2, (1+level)/2])
        hits += low<=ends[0] and ends[1]<=high
    return hits/runs


# %%
within_quarter = interval_power(0, -.25, .25, runs=300)
pd.Series({'within 0.25 of zero, if it is zero': within_quarter,
           'within 0.40 of zero, if it is zero': interval_power(0, -.4, .4, runs=300)}).round(2)

# %% [markdown]
# Sixty occupations cannot show that a correlation lies within 0.25 of zero.

# %%
assert within_quarter<.2 and interval_power(.5, -.4, .4, runs=100)<.05

# %% [markdown]
# ## Students
#
# The admissions gap is a mean over students of a difference that the model gives without noise. Its
# precision depends on how much that difference varies between students, and over 21,791 students the
# standard error is tiny.

# %%
pd.DataFrame([{n:detectable_effect(s/np.sqrt(n), n-1) for n in (36, 500, 3888, 21791)}
              for s in (.005, .02, .1)], index=pd.Index([.005, .02, .1], name='sd')).round(5)


# %% [markdown]
# The interval over students therefore does not tell whether the gap would survive another wording of the
# prompt; the page [Wording variance](36_variance.ipynb) does.
#
# ## Detectable differences of a run
#
# The width of an interval gives a standard error. `add_detectable` adds to a table of differences the
# smallest true change that a run of the same precision would detect four times in five.

# %%
#| export
def add_detectable(
    differences:pd.DataFrame, # With low and high
    level:float=.95,          # Of the intervals
    **kw,                     # df, power
)->pd.DataFrame:              # The same with `detectable`
    "Add the smallest detectable difference to each row of a table"
    from scipy.stats import norm
    check_columns(differences, ('low', 'high'), '`differences` of an evaluation')
    se = (differences.high-differences.low)/2/norm.ppf((1+level)/2)
    return differences.assign(detectable=se*detectable_effect(1., level=1-level, **kw))


# %%
few = pd.DataFrame(dict(metric='bias', value=[.01, -.03], low=[-.05, -.04], high=[.07, -.02]))
add_detectable(few).round(3)

# %%
test_close(add_detectable(few).detectable[1], .01*(1.96+.8416)/1.96, eps=1e-4)


# %% [markdown]
# ## Multiple comparisons
#
# BBQ has up to eleven categories, so "in which of them does the instruction help?" is eleven tests.
# `holm_by_category` computes the p-value of each change and adjusts it over the categories by Holm's
# method [@holm1979]. Models, conditions and metrics are separate families.

# %%
#| export
def holm_by_category(
    differences:pd.DataFrame,   # Of an `Evaluation`, or of a sweep
    metric:str='bias_ambig_soft',
    condition:str='q+if - q',
    overall='micro',            # Category of the rows over all questions, which are not adjusted
    level:float=.05,
)->pd.DataFrame:                # One row per model and category: p, adjusted, holds, detectable
    "Test in which categories a condition changed a score, with Holm's adjustment"
    check_columns(differences, ('metric', 'condition', 'category', 'value'),
                  '`differences` of an evaluation or the table of a sweep')
    d = differences.query('metric==@metric and condition==@condition and category!=@overall')
    if d.empty:
        raise DataError(f'The table has no difference of {metric!r} under {condition!r}; pass a '
                        'metric and condition that it has.')
    d = add_detectable(d).assign(p=[p_value(x) for x in zip(d.value, d.low, d.high)])
    by = d.model if 'model' in d else pd.Series('', d.index)
    ok = d.p.notna()
    d['adjusted'] = d[ok].groupby(by[ok]).p.transform(lambda p: holm(p))
    return d.assign(holds=d.adjusted<level).reset_index(drop=True)


# %% [markdown]
# A change that is not significant may still exist, and a smaller sample finds fewer. Bounds that
# hold for all tests at once are evidence of no change. `simultaneous_intervals` widens 95 %
# intervals to level $1-0.05/m$ for $m$ tests, as those of a normal estimate.

# %%
#| export
def simultaneous_intervals(
    differences:pd.DataFrame, # With value, low and high; one row per test
    level:float=.05,          # Of the given intervals, and of all widened ones together
)->pd.DataFrame:              # The same with wider intervals
    "Widen intervals so that all of them hold at once (Bonferroni)"
    from scipy.stats import norm
    d = differences
    check_columns(d, ('value', 'low', 'high'), '`differences` of an evaluation')
    factor = norm.ppf(1-level/2/len(d))/norm.ppf(1-level/2)
    return d.assign(low=d.value-(d.value-d.low)*factor, high=d.value+(d.high-d.value)*factor)


# %%
changes = pd.DataFrame(dict(
    metric='bias_ambig_soft', condition='q+if - q', model='m',
    category=['micro','Age','Religion','SES','Nationality'],
    value=[-.03,-.05,-.02,-.04,0], low=[-.05,-.07,-.05,-.075,-.03],
    high=[-.01,-.03,.01,-.005,.03]))
result = holm_by_category(changes)
result[['category','value','p','adjusted','holds','detectable']].round(4)

# %% [markdown]
# One change is significant on its own and no longer significant after the adjustment.

# %%
wide = simultaneous_intervals(result)
test_close(wide.high-wide.low, (result.high-result.low)*2.4977/1.96, eps=1e-4)
wide[['category','value','low','high']].round(4)

# %%
test_eq(list(result.holds), [True, False, False, False])
assert result.p[2]<.05<result.adjusted[2]
with expect_fail(DataError, contains="under 'q+anti - q'"):
    holm_by_category(changes, condition='q+anti - q')
for f in (holm_by_category, simultaneous_intervals, add_detectable):
    with expect_fail(DataError, contains='The table has no column'): f(changes[['model']])
    with expect_fail(ConfigError, contains='The table is None'): f(None)
