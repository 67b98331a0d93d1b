# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Abstention and correction
#
# > Decompose changes of BBQ's ambiguous score into abstention and correction.

# %%
#| default_exp bias.abstention

# %% [markdown]
# A bias score on ambiguous questions falls if a model declines more often, and it falls if the model
# names the stereotyped person less often among those it names. This module separates the two, and
# measures whether a model declines where it should.

# %%
#| export
import numpy as np, pandas as pd
import plotly.graph_objects as go
from moral_sc.bias.plots import condition_style
from moral_sc.bias.variance import item_values, wording_table
from moral_sc.foundation.figures import INK
from moral_sc.foundation.statistics import cluster_bootstrap

# %%
#| hide
from fastcore.test import *
from moral_sc.bias import bbq
from moral_sc.bias.bbq.items import stratified
from moral_sc.bias.variance import collect_records, wording_stub_model

# %% [markdown]
# ## Decomposition of the score
#
# With $x$ the probability of naming a person and $y$ the bias among those answers, the score is
# $s=xy$. A change is the sum of two parts, $\Delta s = \bar y\,\Delta x + \bar x\,\Delta y$, with bars
# for the mean of before and after: the first part is abstention, the second correction.

# %%
#| export
CHANGE_PARTS = ['change of s', 'by abstention', 'by correction', 'change of x', 'change of y']

def answer_sums(
    records:pd.DataFrame, # Of BBQ, from `evaluate`
    condition:str,
)->pd.DataFrame:          # [template, (biased, counter, unknown)]
    "Sum the probabilities of the three answers of ambiguous questions, by template"
    d = records[(records.context_condition=='ambig') & records.biased.notna()
                & (records.condition==condition)]
    p = d[['p0','p1','p2']].to_numpy()
    rows = np.arange(len(d))
    columns = {k: p[rows, d[k].astype(int)] for k in ('biased','counter','unknown')}
    return pd.DataFrame(columns).groupby(d.template.to_numpy()).sum()

def naming_and_lean(
    sums, # Of the biased, the counter and the unknown answer
)->tuple: # Probability of naming a person, bias among those answers
    "Return the two factors of the score"
    biased,counter,unknown = sums
    named = biased+counter
    return named/(named+unknown), (biased-counter)/named

def decompose_sums(
    before, # Of the biased, the counter and the unknown answer
    after,
)->tuple:   # As CHANGE_PARTS
    "Return the change of the score, its two parts and the changes of both factors"
    x0,y0 = naming_and_lean(before)
    x1,y1 = naming_and_lean(after)
    dx = x1-x0
    dy = y1-y0
    return x1*y1-x0*y0, dx*(y0+y1)/2, dy*(x0+x1)/2, dx, dy

def decompose_change(
    records:pd.DataFrame,
    condition:str,
    against:str='q',
    seed:int=0,
)->pd.DataFrame:  # A row for each of CHANGE_PARTS: value, low, high
    "Estimate the parts of a change of the score, with intervals that draw templates"
    sums = pd.concat([answer_sums(records, against), answer_sums(records, condition)],
                     axis=1).to_numpy()
    def estimate(k):
        part = lambda v: decompose_sums(v.sum(0)[:3], v.sum(0)[3:])[k]
        return cluster_bootstrap(sums, range(len(sums)), part, seed=seed)
    return pd.DataFrame({n:estimate(k)._asdict() for k,n in enumerate(CHANGE_PARTS)}).T


# %% [markdown]
# The tests use stub models whose reason for a change is known.

# %%
#| export
def declining_rule(
    unknown:tuple,     # P(unknown) on ambiguous questions, without and with the instruction
    lean:tuple,        # Bias among answers that name a person, without and with it
    always:bool=False, # Decline disambiguated questions as well under the instruction
):                     # Rule for `wording_stub_model`
    "Return a rule that declines and leans with given probabilities"
    def rule(item, condition):
        instructed = condition.startswith('q+if')
        ambiguous = item.context_condition=='ambig'
        declines = unknown[instructed] if ambiguous or (always and instructed) else .1
        y = lean[instructed]
        named = {item.biased:(1+y)/2, item.counter:(1-y)/2} if ambiguous else {item.label:1.}
        p = {item.unknown:declines} | {k:(1-declines)*v for k,v in named.items()}
        return [p.get(k, 0.) for k in range(3)]
    return rule


# %%
questions = stratified(bbq.load(source='ours'), 32)
rules = dict(abstains=declining_rule((.3,.8), (.5,.5)), corrects=declining_rule((.3,.3), (.5,.1)),
             overdoes=declining_rule((.3,.9), (.5,.5), always=True))
records = {n: collect_records(wording_stub_model(f, questions, n), questions, ['q','q+if'])
           for n,f in rules.items()}
parts = pd.DataFrame({n: decompose_change(r, 'q+if').value for n,r in records.items()})
test_close(parts.loc['by correction','abstains'], 0, eps=1e-6)
test_close(parts.loc['by abstention','corrects'], 0, eps=1e-6)
test_close(parts.loc['change of s'], [.2*.5-.7*.5, .7*.1-.7*.5, .1*.5-.7*.5], eps=1e-6)
total = parts.loc['by abstention']+parts.loc['by correction']
test_close(parts.loc['change of s'], total, eps=1e-9)
parts.round(3)


# %% [markdown]
# The figure of both factors has lines of equal score:

# %%
#| export
def plot_naming_and_lean(
    records:dict, # Model -> records with the conditions Q and Q+IF
    stubs:dict,   # Stub model -> records
)->go.Figure:
    "Plot how often models name a person, and their bias among those answers"
    fig = go.Figure()
    x = np.linspace(.02, 1, 99)
    for s in (.05, .1, .2, .3, .5):
        fig.add_scatter(x=x, y=np.where(s/x<=.62, s/x, np.nan), mode='lines',
                        line=dict(color=INK, width=.5), hoverinfo='skip', showlegend=False)
        fig.add_annotation(x=1, y=s, text=f's = {s}', showarrow=False, xanchor='left',
                           font_size=11)
    styles = [condition_style(c) for c in ('q','q+if')]
    for k,(n,r) in enumerate({**stubs, **records}.items()):
        points = [naming_and_lean(answer_sums(r, c).sum()) for c in ('q','q+if')]
        fig.add_scatter(x=[p[0] for p in points], y=[p[1] for p in points],
            mode='lines+markers+text', showlegend=False,
            line=dict(color=INK, width=1.5, dash='dot' if n in stubs else 'solid'),
            marker=dict(size=10, symbol=[s[2] for s in styles], color=[s[1] for s in styles]),
            text=['', n], textposition=f'{["top","bottom"][k%2]} center')
    fig.update_xaxes(title_text='Probability of naming a person', range=[0,1.12])
    fig.update_yaxes(title_text='Bias among those answers', range=[-.06,.62])
    return fig


# %%
plot_naming_and_lean({}, records)


# %% [markdown]
# ## Declining where it is correct
#
# Declining is correct on ambiguous questions and wrong on disambiguated ones. A model that declines
# independently of the context is on the diagonal of the figure.

# %%
#| export
def declining_rates(
    records:pd.DataFrame,
    condition:str,
    seed:int=0,
)->dict:          # Metric -> Estimate
    "Estimate the probability of the unknown answer where it is correct and where it is wrong"
    rates = {}
    for metric in ('accuracy_ambig','unknown_disambig'):
        y = wording_table(records, item_values(records, metric))[condition][0]
        rates[metric] = cluster_bootstrap(y.to_numpy(), y.index, seed=seed)
    return rates

def _error_bar(e):
    return dict(type='data', symmetric=False, array=[e[2]-e[0]], arrayminus=[e[0]-e[1]],
                visible=e[2]-e[1]>1e-6)

def plot_declining(
    records:dict, # Model -> records
    stubs:dict,   # Stub model -> records
    seed:int=0,
)->go.Figure:
    "Plot the probability of declining ambiguous against disambiguated questions"
    fig = go.Figure(go.Scatter(x=[0,1], y=[0,1], mode='lines', showlegend=False,
                               line=dict(color=INK, width=1, dash='dot')))
    for n,r in {**stubs, **records}.items():
        for c in dict.fromkeys(r.condition):
            e,(name,colour,symbol) = declining_rates(r, c, seed), condition_style(c)
            ambiguous = e['accuracy_ambig']
            given = e['unknown_disambig']
            fig.add_scatter(x=[given[0]], y=[ambiguous[0]], mode='markers+text', name=name,
                text=[n if n in stubs and c!='q' else ''], textposition='middle right',
                legendgroup=c, hovertext=n, showlegend=n==list(records or stubs)[0],
                error_x=_error_bar(given), error_y=_error_bar(ambiguous),
                marker=dict(color=colour, symbol=symbol+'-open'*(n in stubs), size=9))
    fig.update_xaxes(title_text='Declines, answer given away', range=[-.02,1.1])
    fig.update_yaxes(title_text='Declines, answer left open', range=[-.02,1.02])
    return fig


# %%
rates = {n: declining_rates(r, 'q+if') for n,r in records.items()}
test_close(rates['abstains']['accuracy_ambig'].value, .8, eps=1e-6)
test_close(rates['abstains']['unknown_disambig'].value, .1, eps=1e-6)
test_close(rates['overdoes']['unknown_disambig'].value, .9, eps=1e-6)
plot_declining({}, records)
