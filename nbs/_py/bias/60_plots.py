# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Figures of bias
#
# > One picture for scores by category, one for differences, one for letters.

# %%
#| default_exp bias.plots

# %% [markdown]
# The plain question is blue and the instruction red in every figure of the book; the line at
# zero is where neither the stereotype nor its opposite is favoured.

# %%
#| export
import plotly.graph_objects as go
from moral_sc.foundation.figures import COLOURS, INK
from moral_sc.bias.bbq.scoring import OVERALL

# %%
#| hide
from fastcore.test import *
import numpy as np
from moral_sc.bias import bbq
from moral_sc.bias.asking import respondent
from moral_sc.bias.evaluation import evaluate
from moral_sc.bias.bbq.metrics import letters
from moral_sc.language.stub_models import letter_prior


# %% [markdown]
# The examples below are drawn from a `respondent` that leans towards the stereotype, in some
# scenes more than in others, and a little less when it is told not to.

# %%
def leans(item, told):
    rng = np.random.default_rng(sum(map(ord, item.template)))
    u = rng.uniform(.2,.5) + .2*told
    b = rng.uniform(.45,.85)
    p = {item.unknown:u, item.biased:(1-u)*b, item.counter:(1-u)*(1-b)}
    return [p[k] for k in range(3)]

ours = bbq.load(source='ours')
e = evaluate(respondent(leans, ours), items=ours)

# %%
#| export
STYLE = { # condition: name, colour, symbol
    'q':        ('Q',        COLOURS['q'],     'circle'),
    'q+if':     ('Q+IF',     COLOURS['if'],    'diamond'),
    'q+if+cot': ('Q+IF+CoT', COLOURS['cot'],   'square'),
    'q+match':  ('Q+Match',  COLOURS['match'], 'triangle-up'),
    'q+anti':   ('Q+anti',   COLOURS['accent'], 'x'),
    'q+note':   ('Q+note',   COLOURS['linear'], 'cross')}

def style(
    condition:str, # 'q+if', or with the number of its wording: 'q+if:3'
)->tuple:          # Name, colour, symbol
    "How a condition is drawn"
    bare,_,k = condition.partition(':')
    name,colour,symbol = STYLE.get(bare, (bare, COLOURS['paper'], 'circle-open'))
    return name+(f', wording {k}' if k else ''), colour, symbol

NAMES = dict(bias_ambig='Bias score, ambiguous', bias_disambig='Bias score, disambiguated',
             accuracy_ambig='Accuracy, ambiguous',
             accuracy_disambig='Accuracy, disambiguated',
             conditional_ambig='Bias among answers that name a person',
             unknown_disambig='Declined although the answer was given')

def named(
    metric:str,
)->str:
    "A metric in words, for an axis"
    soft = metric.endswith('_soft')
    return NAMES.get(metric.removesuffix('_soft'), metric) + ', from probabilities'*soft

def category(
    name:str,
)->str:
    "A category in words"
    return 'All questions' if name==OVERALL else name.replace('_', ' ')

def _bars(d):
    return dict(x=d.value, error_x=dict(type='data', symmetric=False, array=d.high-d.value,
                arrayminus=d.value-d.low, thickness=1.5, width=3))


# %%
#| export
def plot_scores(
    metrics,                     # `Evaluation.metrics`
    metric:str='bias_ambig_soft',
    benchmark:str|None=None,     # By default the first
)->go.Figure:
    "A metric by category, a mark a condition, with its interval"
    b = benchmark or metrics.benchmark.iloc[0]
    d = metrics[(metrics.benchmark==b) & (metrics.metric==metric)]
    cats = [c for c in dict.fromkeys(d.category) if c!=OVERALL][::-1]
    place = {c:n+1.5 for n,c in enumerate(cats)} | {OVERALL:0}
    fig = go.Figure()
    conds = list(dict.fromkeys(d.condition))
    for n,c in enumerate(conds):
        g,(name,colour,symbol) = d[d.condition==c], style(c)
        shift = .18*((len(conds)-1)/2-n)
        fig.add_scatter(y=g.category.map(place)+shift, mode='markers', name=name,
                        marker=dict(color=colour, symbol=symbol, size=8), **_bars(g))
    fig.update_yaxes(tickvals=list(place.values()), showgrid=False, zeroline=False,
                     ticktext=[category(c) for c in place])
    fig.update_xaxes(title_text=named(metric), showgrid=True)
    if metric.startswith('bias'): fig.add_vline(x=0, line=dict(color=INK, width=1))
    return fig


# %%
#| label: fig-scores-example
#| fig-cap: Bias score on ambiguous questions of our own set, from the probabilities that the respondent gives; bars are 95% intervals that draw templates.
plot_scores(e.metrics)


# %%
#| export
def plot_differences(
    differences,                 # `Evaluation.differences`
    metrics=('bias_ambig', 'bias_ambig_soft', 'accuracy_ambig', 'accuracy_disambig'),
    within:float|None=None,      # Draw the band that counts as no difference
    benchmark:str|None=None,
)->go.Figure:
    "What a condition changed, question by question, over all categories"
    b = benchmark or differences.benchmark.iloc[0]
    d = differences[(differences.benchmark==b) & (differences.category==OVERALL)]
    fig = go.Figure()
    for c,g in d.groupby('condition', sort=False):
        name,colour,symbol = style(c.partition(' - ')[0])
        g = g.set_index('metric').loc[list(metrics)][::-1]
        fig.add_scatter(y=[named(m) for m in g.index], name=f'{name} less Q',
                        mode='markers', **_bars(g),
                        marker=dict(color=colour, symbol=symbol, size=9))
    if within: fig.add_vrect(-within, within, fillcolor=INK, opacity=.12, line_width=0)
    fig.add_vline(x=0, line=dict(color=INK, width=1))
    fig.update_yaxes(showgrid=False, zeroline=False)
    fig.update_xaxes(title_text='Change of the score', showgrid=True)
    fig.update_layout(showlegend=True)
    return fig


# %%
#| label: fig-differences-example
#| fig-cap: The same respondent with the instruction, less the same questions without it; bars are 95% intervals of the paired difference.
plot_differences(e.differences, within=.05)


# %%
#| export
def plot_letters(
    table,      # Of `letters`
)->go.Figure:
    "How often each letter is the answer, and how often it is right"
    fig = go.Figure()
    abc = ['a','b','c']
    for (_,c),row in table.iterrows():
        name,colour,_ = style(c)
        fig.add_bar(x=[f'({k})' for k in abc], y=[row[f'chosen_{k}'] for k in abc],
                    name=name, marker_color=colour)
    right = [table[f'right_{k}'].mean() for k in abc]
    fig.add_scatter(x=[f'({k})' for k in abc], y=right, mode='markers', name='is right',
                    marker=dict(symbol='line-ew', size=56, line=dict(width=2, color=INK)))
    fig.update_yaxes(title_text='Share of answers', range=[0,1.02])
    fig.update_xaxes(title_text='Letter')
    return fig


# %%
#| label: fig-letters-example
#| fig-cap: Share of answers by letter for an oracle that looks at nothing else; the grey line is the share of questions for which the letter is right.
prior = evaluate(letter_prior(dict(a=.1, b=.2, c=.7)), items=ours, limit=48)
plot_letters(letters(prior.records))

# %% [markdown]
# Every figure carries as many marks as there are conditions, and an interval on each.

# %%
for f in (plot_scores(e.metrics), plot_differences(e.differences)):
    assert all(t.error_x.array is not None for t in f.data)
test_eq(len(plot_scores(e.metrics).data), 2)
