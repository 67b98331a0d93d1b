# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Figures
#
# > How far each revision moves, and whether it resembles the answer or its critique.

# %%
#| default_exp constitution.plots

# %%
#| export
import plotly.graph_objects as go

# %%
#| export
from moral_sc.constitution.evaluation.refusals import group_means
from moral_sc.foundation.figures import COLOURS

# %%
#| hide
import numpy as np
import pandas as pd
from fastcore.test import *

from moral_sc.foundation.statistics import wilson

# %% [markdown]
# Two figures serve the pages about critique and revision. Both take the frame that
# `chain_measures` returns, with a column `condition`. The authors' chains are grey, as what a
# paper reports is everywhere in this book; a revision with a critique has the colour of a
# chain of thought, which it is, and a direct one that of a plain question.

# %%
#| export
CONDITION_COLOURS = dict(authors='paper', critique='cot', direct='q')

def _shade(condition): return COLOURS[CONDITION_COLOURS.get(condition, 'accent')]

def _bars(estimates, **kw): # Error bars from `Estimate`s
    up,down = ([abs(e[i]-e.value) for e in estimates] for i in (2, 1))
    return dict(type='data', array=up, arrayminus=down, symmetric=False, width=4,
                thickness=1.2, **kw)


# %% [markdown]
# ## Round by round

# %%
#| export
def plot_rounds(
    d,                          # From `chain_measures`, with a column `condition`
    column:str='distance',      # What to average in each round
    title:str='share of words changed',
)->go.Figure:
    "A measure against the round, one line per condition"
    fig = go.Figure()
    for name,g in d.groupby('condition', sort=False):
        e = group_means(g, [column], 'round')[column]
        fig.add_scatter(x=list(e.index), y=[v.value for v in e], error_y=_bars(e),
                        name=name, mode='lines+markers', line_color=_shade(name))
    fig.update_xaxes(title='revision', dtick=1)
    return fig.update_yaxes(title=title, rangemode='tozero')


# %%
#| hide
rng = np.random.default_rng(0)
toy = pd.DataFrame([dict(id=i, round=k, condition=c, distance=rng.beta(6, 4*k+3),
                         overlap=rng.beta(4, 2+m),
                         overlap_critique=rng.beta(2, 6) if m!=2 else np.nan)
                    for m,c in enumerate(['authors', 'critique', 'direct'])
                    for i in range(20) for k in (1, 2, 3)])

# %% [markdown]
# Made-up chains, whose later revisions change less:

# %%
plot_rounds(toy)

# %%
test_eq([t.name for t in plot_rounds(toy).data], ['authors', 'critique', 'direct'])
y = plot_rounds(toy).data[1].y
assert y[0]>y[1]>y[2]


# %% [markdown]
# ## Which neighbour a revision takes after

# %%
#| export
def plot_overlap(
    d, # From `chain_measures`, with a column `condition`
)->go.Figure:
    "Overlap of revisions with the answer and with the critique, per condition"
    s = group_means(d, ['overlap', 'overlap_critique'])
    fig = go.Figure()
    for c,name,symbol,shade in (('overlap', 'the answer', 'circle', 'q'),
                                ('overlap_critique', 'the critique', 'x', 'cot')):
        e = s[c][[bool(v) for v in s[c]]]
        fig.add_scatter(x=[v.value for v in e], y=list(e.index), error_x=_bars(e),
                        mode='markers', name=f'with {name}',
                        marker=dict(symbol=symbol, size=11, color=COLOURS[shade]))
    fig.update_xaxes(title='words in common, in order (1: a copy)', range=[0, 1],
                     showgrid=True)
    return fig.update_yaxes(autorange='reversed')


# %%
plot_overlap(toy)

# %%
test_eq(list(plot_overlap(toy).data[1].y), ['authors', 'critique'])

# %% [markdown]
# ## Rates
#
# Several models, several things their answers may do.

# %%
#| export
_marks = ('circle', 'x', 'diamond'), ('q', 'cot', 'if')

def plot_rates(
    rates, # `Estimate`s: one row a model, one column a kind of answer
)->go.Figure:
    "Rates with intervals, one line a model"
    fig = go.Figure()
    for c,symbol,shade in zip(rates, *_marks):
        e = list(rates[c])
        fig.add_scatter(x=[v.value for v in e], y=list(rates.index), error_x=_bars(e),
                        mode='markers', name=c,
                        marker=dict(symbol=symbol, size=11, color=COLOURS[shade]))
    fig.update_xaxes(title='share of answers', range=[-.02, 1], tickformat='.0%', showgrid=True)
    return fig.update_yaxes(autorange='reversed')

def plot_prompt_shares(
    shares:dict, # Name -> share of answers, one a prompt
)->go.Figure:
    "Prompts in the order of their share, one line a model"
    fig = go.Figure()
    lines = ['solid', 'dash', 'dot', 'dashdot']
    for (name,s),dash in zip(shares.items(), lines):
        y = sorted(s, reverse=True)
        fig.add_scatter(x=[(i+.5)/len(y) for i in range(len(y))], y=y, name=name, mode='lines',
                        line=dict(dash=dash, shape='hvh'))
    fig.update_xaxes(title='prompts', range=[0, 1], tickformat='.0%')
    return fig.update_yaxes(title='share of answers', range=[-.02, 1.02], tickformat='.0%')


# %%
#| hide
some = {k: wilson(n, 40) for k,n in dict(a=3, b=20, c=38).items()}
table = pd.DataFrame(dict(evades=some, comforts=dict(zip('abc', list(some.values())[::-1]))))

# %%
plot_rates(table)

# %%
plot_prompt_shares(dict(votes=rng.beta(.3, .9, 30), principles=rng.beta(.6, .3, 30)))

# %%
test_eq(list(plot_rates(table).data[0].y), ['a', 'b', 'c'])
y = plot_prompt_shares(dict(a=[.1, .9, .5])).data[0].y
test_eq(list(y), [.9, .5, .1])
