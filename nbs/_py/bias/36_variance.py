# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Wording variance
#
# > Variance of a score due to the condition, its wording and the questions.

# %%
#| default_exp bias.variance

# %% [markdown]
# An instruction is one of many sentences that ask for the same. If another of them would change the
# score as much as the instruction itself did, the experiment has measured a sentence. The paper uses
# one wording and leaves the question open [@ganguli2023]. With several wordings of each request on the
# same questions, the variance of the answers can be decomposed.

# %%
#| export
from dataclasses import replace

import numpy as np, pandas as pd
import plotly.graph_objects as go
from moral_sc.bias.asking import request_stub_model
from moral_sc.bias.conditions import load_stimuli, wordings
from moral_sc.bias.bbq.metrics import BBQ
from moral_sc.bias.evaluation import evaluate
from moral_sc.bias.plots import condition_style
from moral_sc.foundation.errors import ConfigError, DataError, unknown_name_message
from moral_sc.foundation.statistics import Estimate

# %%
#| hide
from fastcore.test import *
from moral_sc.bias import bbq
from moral_sc.bias.bbq.items import stratified
from moral_sc.bias.bbq.metrics import estimate_metric, asked_items, condition_probabilities

few = stratified(bbq.load(source='ours'), 48)

# %% [markdown]
# ## Values of questions
#
# Every metric here is a mean over questions, so it has a value for each row of the records. For BBQ the
# values are, from probabilities: the bias of an ambiguous question, whether it was declined, and for
# disambiguated questions whether the answer was correct or declined.

# %%
#| export
ITEM_METRICS = { # metric: context and value, from p[row, option] and the options of each row
    'bias_ambig':        ('ambig',    lambda p,o: p(o.biased)-p(o.counter)),
    'accuracy_ambig':    ('ambig',    lambda p,o: p(o.unknown)),
    'accuracy_disambig': ('disambig', lambda p,o: p(o.label)),
    'unknown_disambig':  ('disambig', lambda p,o: p(o.unknown))}

def item_values(
    records:pd.DataFrame, # Of BBQ, from `evaluate`
    metric:str,           # One of VALUES
)->pd.Series:             # [row] of the metric's context condition
    "Return the contribution of each answer to a metric, from probabilities"
    if metric not in ITEM_METRICS:
        raise ConfigError(unknown_name_message('metric', metric, list(ITEM_METRICS)))
    half,f = ITEM_METRICS[metric]
    d = records[(records.context_condition==half) & records.biased.notna()]
    p = d[['p0','p1','p2']].to_numpy()
    return f(lambda o: pd.Series(p[np.arange(len(d)), o.astype(int)], d.index), d)

def wording_table(
    records:pd.DataFrame,   # With `condition`, such as 'q+if:3'
    value:pd.Series,        # Of `item_values`, or of your own, by row of the records
    cluster:str='template', # What each row belongs to
)->pd.DataFrame:            # [cluster, (condition, wording)]
    "Return the mean value of each cluster under each wording of each condition"
    d = records.loc[value.index].assign(value=value)
    name = d.condition.str.partition(':')
    d['wording'] = name[2].replace('', '0').astype(int)
    return d.assign(condition=name[0]).pivot_table(
        index=cluster, columns=['condition','wording'], values='value', aggfunc='mean',
        sort=False, observed=True).dropna()


# %% [markdown]
# The tests use a stub model whose rule depends on the request. It recognises the request from the text,
# after prompt, tokens and decoding.

# %%
#| export
def wording_stub_model(
    rule,          # (item, condition) -> probabilities of its three options; 'q', 'q+if:3'
    items:list,    # Of BBQ: the questions it can answer
    name:str='',   # Default: that of the rule
):                 # An `LM`
    "Return a stub model whose answers depend on the question and on the wording"
    additions = [c for c in load_stimuli()['bbq']['conditions'] if c.count('+')==1]
    condition_of = {'':'q'} | {t:f'{c}:{k}' for c in additions
                               for k,t in enumerate(wordings('bbq', c))}
    def answer(item, request):
        text = max((t for t in condition_of if request.endswith(t)), key=len)
        return rule(item, condition_of[text])
    return request_stub_model(answer, items, name or rule.__name__)


# %% [markdown]
# Computing all metrics of [an evaluation](30_evaluation.ipynb), with intervals, for thirty conditions
# would take longer than the answers. Only the records are needed here.

# %%
#| export
def collect_records(
    lm,
    items:list,       # Of BBQ
    conditions:list,  # 'q', 'q+if:0', 'q+if:1', ...
    benchmark=BBQ,
    **kw,             # orders, mode, out, seed, ...: see `evaluate`
)->pd.DataFrame:      # As `Evaluation.records`
    "Return the records of an evaluation without computing its metrics"
    without_metrics = replace(benchmark, metrics=lambda *a, **k: pd.DataFrame())
    return evaluate(lm, without_metrics, items=items, conditions=list(conditions), **kw).records


# %% [markdown]
# This stub model has a bias of 0.3 under the plain question. It reacts to the instruction and to its
# wording, and wording 2 has the opposite effect.

# %%
LEAN = {'q':.3, 'q+if:0':.1, 'q+if:1':.16, 'q+if:2':.34,
        'q+anti:0':.4, 'q+anti:1':.44, 'q+anti:2':.36}

def heeds(item, condition):
    more = np.random.default_rng(sum(map(ord, item.template+condition))).normal(0, .03)
    lean = LEAN[condition] + more + .1*(sum(map(ord, item.template))%7-3)/3
    p = {item.unknown:.4, item.biased:.3+lean/2, item.counter:.3-lean/2}
    return [p[k] for k in range(3)]

records = collect_records(wording_stub_model(heeds, few), few, list(LEAN))
y = wording_table(records, item_values(records, 'bias_ambig'))
y.head(3).round(2)

# %% [markdown]
# Questions of one template share their scenario, so rows are averaged by template. The mean of a column
# is the bias score with every template counted once.

# %%
its = asked_items(records)
p = {c: condition_probabilities(records, c, True) for c in LEAN}
score = [estimate_metric(p[c], its, 'bias_ambig', n=99).value for c in LEAN]
test_close(y.mean().to_numpy(), score, eps=1e-9) # Templates are of equal size here
pd.DataFrame(dict(score=score, rule=list(LEAN.values())), list(LEAN)).round(3)

# %% [markdown]
# ## Variance components
#
# With $T$ templates $t$, $C$ conditions $c$ and $K$ wordings $k$ of each,
#
# $$y_{tck} = \mu + \gamma_c + w_{ck} + \tau_t + (\gamma\tau)_{ct} + e_{tck}.$$
#
# Conditions are fixed effects; wordings and templates are samples of many. Each sum of squares has an
# expectation in the variances, and solving for them gives the classical ANOVA estimator.

# %%
#| export
COMPONENTS = ['condition', 'wording', 'template', 'condition x template', 'rest']

def _cube(y):
    "Convert the table to an array [template, condition, wording]"
    sizes = y.columns.get_level_values(0).value_counts(sort=False)
    if sizes.nunique()>1 or sizes.iloc[0]<2 or len(y)<2:
        raise DataError('Variances need two templates, and two wordings of each condition, as '
                        f'many as of any other; got {len(y)} templates, {dict(sizes)}.')
    return np.stack([y[c].to_numpy(float) for c in sizes.index], 1)

def mean_squares(
    y:pd.DataFrame, # Of `wording_table`, conditions with equally many wordings
)->pd.DataFrame:    # A row for each of PARTS: mean square, degrees of freedom
    "Compute the analysis of variance of answers"
    x = _cube(y)
    T,C,K = x.shape
    m,c,t,w,ct = (x.mean(a, keepdims=True) for a in ((0,1,2), (0,2), (1,2), 0, 2))
    effects = dict(zip(COMPONENTS, [c-m, w-c, t-m, ct-c-t+m, x-w-ct+c]))
    df = dict(zip(COMPONENTS, [C-1, C*(K-1), T-1, (C-1)*(T-1), (T-1)*C*(K-1)]))
    ss = {k: (v**2).sum()*x.size/v.size for k,v in effects.items()}
    return pd.DataFrame(dict(ms={k: ss[k]/df[k] if df[k] else 0. for k in COMPONENTS}, df=df))


# %%
pair = y[['q+if','q+anti']]
mean_squares(pair)

# %% [markdown]
# The same numbers, computed by statsmodels from a formula:

# %%
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

long = pair.stack([0,1], future_stack=True).rename('y').reset_index()
form = 'y ~ C(condition)*C(template) + C(condition):C(wording)'
fit = anova_lm(ols(form, long).fit())
ours = mean_squares(pair)
order = ['condition','template','condition x template','wording','rest']
test_close(fit.mean_sq.to_numpy(), ours.ms[order].to_numpy(), eps=1e-9)
fit.round(4)


# %% [markdown]
# An estimate of a variance from nine wordings is imprecise, so it needs an interval. If effects are
# normal, a mean square is its expectation times $\chi^2_{df}/df$. Inverting this relation gives draws of
# the expectations that the data allow, and each draw is solved like the estimate. Conditions are fixed;
# for them the noncentral $\chi^2$ is inverted. These are generalised confidence intervals
# [@weerahandi1993].

# %%
#| export
def _solve(ms, T, C, K):
    "Return variances from mean squares, and the variance of a condition's mean"
    c,w,t,ct,e = (ms[k] for k in COMPONENTS)
    noise = np.maximum(w+ct-e, np.maximum(w, ct))/(T*K) if C>1 else w*0+1
    return dict(zip(COMPONENTS, [(c-w-ct+e)/(T*K), (w-e)/T, (t-(ct if C>1 else e))/(C*K),
                            (ct-e)/K, e])), noise

def _variance_draws(y, n, seed):
    "Draw variances that the data allow, [draw, component]"
    from scipy.special import chndtrinc
    from scipy.stats import chi2
    T,C,K = _cube(y).shape
    a = mean_squares(y)
    rng = np.random.default_rng(seed)
    ms = {k: a.ms[k]*d/rng.chisquare(d, n) if d else np.zeros(n) for k,d in a.df.items()}
    v,noise = _solve(ms, T, C, K)
    if C>1:
        x = (C-1)*a.ms['condition']/(T*K)/noise
        u = rng.uniform(size=n)
        positive = chi2.cdf(x, C-1)>u
        v['condition'] = np.zeros(n)
        v['condition'][positive] = chndtrinc(x[positive], C-1, u[positive])*noise[positive]/(C-1)
    return pd.DataFrame(v).clip(lower=0)

def variance_components(
    y:pd.DataFrame,  # Of `wording_table`, conditions with equally many wordings
    level:float=.95,
    n:int=4000,      # Draws
    seed:int=0,
)->pd.DataFrame:     # A row for each of PARTS: variance and share, with their intervals
    "Estimate the variance components of answers"
    v = pd.Series(_solve(mean_squares(y).ms, *_cube(y).shape)[0])
    d = _variance_draws(y, n, seed)
    share = v.clip(lower=0)
    tails = [(1-level)/2, (1+level)/2]
    q = d.quantile(tails).T
    s = d.div(d.sum(axis=1), axis=0).quantile(tails).T
    cols = dict(variance=v, low=q.iloc[:,0], high=q.iloc[:,1], share=share/share.sum(),
                share_low=s.iloc[:,0], share_high=s.iloc[:,1])
    return pd.DataFrame(cols).loc[COMPONENTS if y.columns.get_level_values(0).nunique()>1 else
                                  ['wording','template','rest']]


# %%
variance_components(pair)


# %% [markdown]
# Most of the variance of single answers is between questions, and it cancels when two requests are
# compared on the same questions. The relevant number concerns requests alone: the share of wording in
# the variance *among requests*.

# %%
#| export
def wording_share(
    y:pd.DataFrame,  # As for `components`, two conditions or more
    level:float=.95, n:int=4000, seed:int=0,
)->Estimate:
    "Estimate the share of wording in the variance among requests"
    v = pd.Series(_solve(mean_squares(y).ms, *_cube(y).shape)[0]).clip(lower=0)
    d = _variance_draws(y, n, seed)
    share = lambda v: v['wording']/(v['wording']+v['condition'])
    ends = share(d).fillna(1).quantile([(1-level)/2, (1+level)/2])
    value = float(share(v)) if v['wording']+v['condition'] else np.nan
    return Estimate(value, *map(float, ends))

def mean_effect(
    d:pd.DataFrame,  # [template, wording]: values, or differences between two conditions
    level:float=.95,
)->Estimate:
    "Estimate a mean over wordings and templates, both random effects"
    from scipy.stats import t as student
    d = pd.concat({'':d}, axis=1)
    a,(T,_,K) = mean_squares(d), _cube(d).shape
    parts = a.loc[['wording','template','rest']]
    s = np.array([1,1,-1])*parts.ms
    var = max(s.sum(), parts.ms[:2].max())
    df = var**2/(parts.ms**2/parts.df).sum() if var else 1 # Satterthwaite
    df = max(df, parts.df.min())
    half = student.ppf((1+level)/2, df)*np.sqrt(var/(T*K))
    m = float(d.to_numpy().mean())
    return Estimate(m, m-half, m+half)


# %%
wording_share(pair), mean_effect(pair['q+if']-pair['q+anti'])


# %% [markdown]
# ## Coverage of the intervals
#
# The intervals are checked on simulated data with known variances: forty templates and three conditions
# in nine wordings. In the first design a third of the variance among requests is wording, in the second
# all of it is, and the third repeats the first with effects that are not normal.

# %%
def make(rng, w, c, T=40, K=9, t=.3, ct=.05, e=.1, heavy=False):
    C = len(c)
    z = lambda *s: rng.standard_t(5, s)/np.sqrt(5/3) if heavy else rng.standard_normal(s)
    x = (t*z(T,1,1) + ct*z(T,C,1) + e*z(T,C,K) + w*z(1,C,K) + np.array(c)[:,None])
    cols = pd.MultiIndex.from_product([range(C), range(K)])
    return pd.DataFrame(x.reshape(T,-1), columns=cols)

designs = {'a third':       dict(w=.05, c=[-.0707,0,.0707]),
           'wording alone': dict(w=.05, c=[0,0,0]),
           'heavy tails':   dict(w=.05, c=[-.0707,0,.0707], heavy=True)}
truth = lambda d: dict(condition=np.var(d['c'], ddof=1), wording=d['w']**2, template=.3**2,
                       **{'condition x template':.05**2}, rest=.1**2)
one = make(np.random.default_rng(0), **designs['a third'])
variance_components(one).assign(truth=truth(designs['a third'])).round(4)


# %%
def covers(name, runs=80, seed=0):
    "How often intervals contain the truth, and how far off the estimates are"
    rng = np.random.default_rng(seed)
    design = designs[name]
    v = pd.Series(truth(design))
    got = []
    est = []
    for _ in range(runs):
        y = make(rng, **design)
        r = variance_components(y, n=400, seed=rng)
        s = wording_share(y, n=400, seed=rng)
        d = mean_effect(y[0]-y[2])
        share = v['wording']/(v['wording']+v['condition'])
        got.append({**((r.low<=v)&(v<=r.high)), 'share of wording': s.low<=share<=s.high,
                    'effect': d.low<=design['c'][0]-design['c'][2]<=d.high})
        est.append(r.variance)
    est = pd.DataFrame(est)
    return pd.DataFrame(got).mean(), (est.mean()-v)/est.std()*runs**.5

found = {k: covers(k, seed=n) for n,k in enumerate(designs)}
coverage = pd.DataFrame({k:c for k,(c,_) in found.items()})
coverage.round(3)

# %% [markdown]
# The intervals contain the truth about as often as they should. With heavy tails the intervals of
# variances are too short, as expected; those of effects are not. The mean estimates are correct; their
# deviations from the truth, in standard errors, are

# %%
off = pd.DataFrame({k:z for k,(_,z) in found.items()})
assert off.abs().max().max()<4
assert (coverage.drop(columns='heavy tails')>.9).all().all()
assert coverage.loc['effect'].min()>.9
off.round(1)


# %% [markdown]
# ## Plot
#
# Each wording is a marker. A condition has an effect of its own if its markers are apart from those of
# the others.

# %%
#| export
def scores_by_wording(
    y:pd.DataFrame, # Of `wording_table`
)->pd.Series:       # By (condition, wording)
    "Return the score under each wording"
    return y.mean()

def plot_wordings(
    scores:pd.Series, # Of `scores_by_wording`
    title:str,        # Of the axis
):                    # A figure
    "Plot a marker per wording (the first one large) and a bar at the mean of each condition"
    fig = go.Figure()
    for n,(c,g) in enumerate(list(scores.groupby(level=0, sort=False))[::-1]):
        name,colour,symbol = condition_style(c)
        y = n + np.linspace(.25, -.25, len(g)) if len(g)>1 else [n]
        first = g.index.get_level_values(1)==0
        fig.add_scatter(x=g, y=y, mode='markers', name=name, showlegend=False,
                        marker=dict(color=colour, symbol=symbol,
                                    size=np.where(first, 13, 8)))
        fig.add_scatter(x=[g.mean()]*2, y=[n-.4,n+.4], mode='lines', showlegend=False,
                        line=dict(color=colour, width=1.5), hoverinfo='skip')
    names = [condition_style(c)[0] for c in dict.fromkeys(scores.index.get_level_values(0))][::-1]
    fig.update_yaxes(tickvals=list(range(len(names))), ticktext=names, showgrid=False,
                     zeroline=False)
    fig.update_xaxes(title_text=title, showgrid=True, zeroline=True)
    return fig


# %%
#| label: fig-wordings-example
#| fig-cap: Bias of the stub model under three wordings of two requests; bars are means of a condition, the large marker is the first wording.
plot_wordings(scores_by_wording(y), 'Bias score, ambiguous, from probabilities')

# %% [markdown]
# Designs in which the components cannot be identified raise an error.

# %%
with expect_fail(DataError, contains='two wordings'): variance_components(y)
with expect_fail(ConfigError, contains="mean 'bias_ambig'"): item_values(records, 'bias_ambg')
