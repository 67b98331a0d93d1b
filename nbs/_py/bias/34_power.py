# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What a run could have seen
#
# > The smallest effect that a run of a given size detects, before it and after it.

# %%
#| default_exp bias.power

# %% [markdown]
# A figure without a difference has two readings: there is none, or the run was too small to see
# it. Small models make the second one likely, and so do benchmarks made from a few templates.
# This page says how large an effect would have had to be, for the three designs of the paper:
# templates, occupations, students.

# %%
#| export
import numpy as np, pandas as pd
from moral_sc.foundation.errors import ConfigError, DataError
from moral_sc.foundation.statistics import holm, p_value

# %%
#| hide
from fastcore.test import *
from moral_sc.foundation.statistics import cluster_test


# %% [markdown]
# ## Templates
#
# A paired difference has a value for each question. With $m$ questions a template and a
# correlation $\rho$ inside it, the mean of $C$ templates has the standard error
#
# $$ s_C = \frac{\sigma}{\sqrt C}\sqrt{\rho + \frac{1-\rho}{m}}, $$
#
# and the smallest difference that is found four times in five is
# $(t_{.975} + t_{.8})\,s_C$, about $2.8\,s_C$. More questions of the same templates help only as
# far as $\rho$ lets them.

# %%
#| export
def standard_error(
    sd:float,       # Of the difference over questions
    templates:int,
    rows:float=1,   # Questions a template
    icc:float=0.,   # Correlation of two questions of one template
)->float:
    "Standard error of a mean difference over templates"
    return float(sd*np.sqrt((icc + (1-icc)/rows)/templates))

def detectable_effect(
    se:float,          # Standard error
    df:float=np.inf,   # Degrees of freedom: templates less strata
    power:float=.8,    # How often it shall be found
    level:float=.05,   # Two-sided
)->float:
    "The smallest effect that a test finds with the given power"
    from scipy.stats import t
    return float((t.ppf(1-level/2, df) + t.ppf(power, df))*se)


# %%
design = pd.DataFrame([
    dict(templates=C, questions=m, **{f'icc {r}':detectable_effect(standard_error(.5, C, m, r), C-1)
                                      for r in (0, .2, .5, 1)})
    for C in (25, 100, 343) for m in (1, 4, 24)]).set_index(['templates','questions'])
design.round(3)


# %% [markdown]
# For a difference that varies by 0.5 over questions, the 25 templates of one category are blind
# to a change of 0.1 unless their questions are unrelated, and 24 questions a template instead of
# four buy little once they are correlated. Simulated runs agree with the formula: at the effect it names, four in five find it.

# %%
def found(C, m, icc, effect, runs=400, seed=0):
    rng = np.random.default_rng(seed)
    at = np.repeat(range(C), m)
    hits = 0
    for k in range(runs):
        y = effect + .5*(np.sqrt(icc)*rng.normal(size=(C,1)) + np.sqrt(1-icc)*rng.normal(size=(C,m)))
        hits += cluster_test(y.ravel(), at, n=800, seed=k)<.05
    return hits/runs

share = {(C,m,r): found(C, m, r, detectable_effect(standard_error(.5, C, m, r), C-1))
         for C,m,r in ((25,4,.2), (25,1,0), (60,4,.8))}
share

# %%
assert all(.74<p<.86 for p in share.values())
test_close(standard_error(.5, 25, 1e9, .2), .5*np.sqrt(.2/25))
test_close(detectable_effect(1), 1.96+.8416, eps=1e-3)


# %% [markdown]
# What $\sigma$ and $\rho$ are is known after a first run. `cluster_components` takes both from the
# values of its questions, by the analysis of variance of a one-way layout.

# %%
#| export
def cluster_components(
    values,     # Of each question: a paired difference
    clusters,   # Template of each
)->dict:        # sd, icc, templates, rows
    "How a difference varies within and between templates"
    y = np.asarray(values, float)
    code = pd.factorize(np.asarray(clusters))[0]
    n = np.bincount(code)
    if len(n)<2: raise DataError('One template cannot show how templates differ.')
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
# Winogender's number is a correlation over 60 occupations. On Fisher's scale
# $z=\operatorname{artanh}\rho$ its standard error is $1/\sqrt{n-3}$ whatever $\rho$ is, so what
# can be told from zero, or from the correlation under another condition, does not depend on the
# model. Two conditions share their occupations; `shared` is the correlation of their two
# estimates, and zero the cautious choice.

# %%
#| export
def detectable_correlation(
    n:int=60,          # Occupations
    against:float=0.,  # Correlation to be told from
    two:bool=False,    # `against` is an estimate from as many occupations too
    shared:float=0.,   # Correlation of the two estimates
    **kw,              # power, level
)->float:
    "The nearest higher correlation that can be told from another"
    if n<4: raise ConfigError(f'A correlation needs at least 4 points; got {n}.')
    se = np.sqrt((2*(1-shared) if two else 1)/(n-3))
    return float(np.tanh(np.arctanh(against)+detectable_effect(se, **kw)))


# %%
pd.DataFrame([dict(from_=r, fixed=detectable_correlation(against=r),
                   estimated=detectable_correlation(against=r, two=True),
                   estimated_shared=detectable_correlation(against=r, two=True, shared=.8))
              for r in (0, .3, .5, .6)]).set_index('from_').round(2)


# %% [markdown]
# With 60 occupations a correlation below 0.35 is likely to pass for zero, and the paper's two
# statements of the plain condition, 0.5 in the caption and 0.6 in the text, could not be told
# apart. Simulated occupations say the same:

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
# ## Students
#
# The admissions gap is a mean over students of a difference that the model gives without any
# noise of its own. What limits it is how much that difference varies from one student to the
# next, and over 21,791 students hardly anything does.

# %%
#| export
def detectable_gap(
    sd:float,           # Of p(yes) Black less white, over students
    students:int=21791, # Of the law-school table
    **kw,               # power, level
)->float:
    "The smallest gap that a population of students can show"
    return detectable_effect(sd/np.sqrt(students), students-1, **kw)


# %%
pd.DataFrame([{n:detectable_gap(s, n) for n in (36, 500, 3888, 21791)}
              for s in (.005, .02, .1)], index=pd.Index([.005, .02, .1], name='sd')).round(5)


# %% [markdown]
# So the interval over students says nothing about whether the gap would survive another wording
# of the prompt. That is asked on [the page of wordings](36_variance.ipynb).
#
# ## After a run
#
# A run that was made tells its own power: the width of an interval is a standard error. `add_detectable`
# adds to a table of differences the smallest true change that a run as precise as this one
# would have found four times in five.

# %%
#| export
def add_detectable(
    differences:pd.DataFrame, # With low and high
    level:float=.95,          # Of the intervals
    **kw,                     # df, power
)->pd.DataFrame:              # The same with `detectable`
    "What each difference of a table could have been without being missed"
    from scipy.stats import norm
    se = (differences.high-differences.low)/2/norm.ppf((1+level)/2)
    return differences.assign(detectable=se*detectable_effect(1., level=1-level, **kw))


# %%
few = pd.DataFrame(dict(metric='bias', value=[.01, -.03], low=[-.05, -.04], high=[.07, -.02]))
add_detectable(few).round(3)

# %%
test_close(add_detectable(few).detectable[1], .01*(1.96+.8416)/1.96, eps=1e-4)


# %% [markdown]
# ## Many categories
#
# BBQ has up to eleven categories, and the question in which of them the instruction helps is
# eleven questions. `holm_by_category` gives each change its p-value, adjusts them over the categories
# by Holm's method [@holm1979], and says which remain. Models, conditions and metrics are
# families of their own.

# %%
#| export
def holm_by_category(
    differences:pd.DataFrame,   # Of an `Evaluation`, or of a sweep
    metric:str='bias_ambig_soft',
    condition:str='q+if - q',
    overall='micro',            # Rows over all categories, which are not adjusted
    level:float=.05,
)->pd.DataFrame:                # One row a model and category: p, adjusted, holds, detectable
    "In which categories a condition changed a score, after Holm's adjustment"
    d = differences.query('metric==@metric and condition==@condition and category!=@overall')
    if d.empty:
        raise DataError(f'No difference of {metric!r} under {condition!r} in this table.')
    d = add_detectable(d).assign(p=[p_value(x) for x in zip(d.value, d.low, d.high)])
    by = d.model if 'model' in d else pd.Series('', d.index)
    ok = d.p.notna()
    d['adjusted'] = d[ok].groupby(by[ok]).p.transform(lambda p: holm(p))
    return d.assign(holds=d.adjusted<level).reset_index(drop=True)


# %%
changes = pd.DataFrame(dict(
    metric='bias_ambig_soft', condition='q+if - q', model='m',
    category=['micro','Age','Religion','SES','Nationality'],
    value=[-.03,-.05,-.02,-.04,0], low=[-.05,-.07,-.05,-.075,-.03],
    high=[-.01,-.03,.01,-.005,.03]))
told = holm_by_category(changes)
told[['category','value','p','adjusted','holds','detectable']].round(4)

# %% [markdown]
# One change is large enough on its own and does not survive the company of the others.

# %%
test_eq(list(told.holds), [True, False, False, False])
assert told.p[2]<.05<told.adjusted[2]
with expect_fail(DataError, contains="under 'q+anti - q'"): holm_by_category(changes, condition='q+anti - q')
