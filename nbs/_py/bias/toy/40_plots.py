# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Ladder plots
#
# > Figures of bias and its component abilities against the size of models of the toy language.

# %%
#| default_exp bias.toy.plots

# %%
#| export
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from moral_sc.bias.plots import condition_style
from moral_sc.bias.toy.ladder import (by_size, crossing_size, instruction_following,
                                      select_metric)
from moral_sc.foundation.figures import COLOURS, INK

# %%
#| hide
from fastcore.test import *


# %% [markdown]
# A curve is the mean over seeds, with the Student interval over seeds as bars. Dotted lines are the
# ideal reader of the documents, and dashes a 4-gram model of them.

# %%
#| export
def add_curve(
    fig:go.Figure,
    values:pd.DataFrame, # [seed, width], of `select`
    parameters:dict,     # Width -> number of parameters
    name:str, colour:str, symbol:str='circle', **panel,
):
    "Add means over seeds with intervals"
    d = by_size(values)
    x = [parameters[w] for w in d.index]
    bars = dict(type='data', symmetric=False, array=d.high-d.value, arrayminus=d.value-d.low,
                thickness=1.5, width=3)
    fig.add_scatter(x=x, y=d.value, error_y=bars, name=name, legendgroup=name,
                    mode='lines+markers', line_color=colour, marker_symbol=symbol,
                    showlegend=not any(t.name==name for t in fig.data), **panel)

def add_level(
    fig:go.Figure, y:float, colour:str=INK, dash:str='dot', **panel,
):
    "Add a horizontal line"
    fig.add_hline(y=y, line=dict(color=colour, dash=dash, width=1.5), **panel)

def size_of(
    table:pd.DataFrame, # Of `evaluate_ladder`
)->dict:
    "Return the number of parameters of each width"
    return table.groupby('width').parameters.first().astype(int).to_dict()

def plot_bias_by_size(
    table:pd.DataFrame,     # Of `evaluate_ladder`
    baselines:pd.DataFrame, # Of `baseline_table`
    conditions=('q', 'q+if', 'q+if+cot'),
    metric:str='bias_ambig_soft',
    log:bool=True,          # Logarithmic size axis
    **kw,                   # benchmark, category: see `select`
)->go.Figure:
    "Plot the bias score against size, one curve a condition"
    fig = go.Figure()
    base = baselines.set_index(['reader', 'condition']).bias
    for c in conditions:
        name,colour,symbol = condition_style(c)
        add_curve(fig, select_metric(table, c, metric, **kw), size_of(table), name, colour, symbol)
        add_level(fig, base['ideal', c], colour)
    add_level(fig, base['ngram', 'q'], INK, 'dash')
    fig.update_xaxes(title_text='Parameters', type='log' if log else 'linear')
    fig.update_yaxes(title_text='Bias score, ambiguous')
    return fig

ABILITIES = ('Accuracy with evidence', 'Stereotype knowledge', 'Instruction following')

def plot_abilities(
    table:pd.DataFrame,  # Of `evaluate_ladder`
    chance:float=.5,     # Accuracy of naming a person at random
    knowledge:float=1.,  # Stereotype knowledge of the ideal reader
)->go.Figure:
    "Plot three component abilities against size"
    fig = make_subplots(1, 3, subplot_titles=ABILITIES, horizontal_spacing=.08)
    n = size_of(table)
    for c in ('q', 'q+if'):
        name,colour,symbol = condition_style(c)
        found = select_metric(table, c, 'accuracy_disambig')
        add_curve(fig, found, n, name, colour, symbol, row=1, col=1)
    add_level(fig, chance, INK, 'dash', row=1, col=1)
    known = select_metric(table, 'statement', 'knowledge', 'statements')
    add_curve(fig, known, n, 'statements', COLOURS['paper'], row=1, col=2)
    add_level(fig, knowledge, row=1, col=2)
    add_curve(fig, instruction_following(table), n, '"unknown", Q+IF less Q+anti',
              COLOURS['accent'], row=1, col=3)
    add_level(fig, 1, row=1, col=3)
    fig.update_xaxes(type='log', title_text='Parameters')
    fig.update_layout(width=860, height=370, margin_t=80, legend_y=1.15)
    return fig

def plot_onset_map(
    panels:dict,    # Title -> {row of the panel: [seed, width] scores}
    rows:str,       # What the rows are
    level:float=.5, # Score at the onset
)->go.Figure:
    "Plot mean scores by width and another setting, one heat map a title, with the line of onset"
    fig = make_subplots(1, len(panels), subplot_titles=list(panels), shared_yaxes=True,
                        horizontal_spacing=.04)
    for col,scores in enumerate(panels.values(), 1):
        means = pd.DataFrame({str(k): v.mean() for k,v in scores.items()}).T
        at = {w: 10.**k for k,w in enumerate(means.columns)} # Columns are equally wide
        onset = np.log10(crossing_size(means, at, level))
        fig.add_heatmap(z=means.to_numpy(), y=means.index, coloraxis='coloraxis',
                        texttemplate='%{z:.2f}', textfont_size=11, row=1, col=col)
        fig.add_scatter(x=onset, y=means.index, mode='lines+markers', showlegend=False,
                        line=dict(color=COLOURS['accent'], width=2), row=1, col=col)
        fig.update_xaxes(title_text='Width', tickvals=list(range(len(at))), showgrid=False,
                         ticktext=[str(w) for w in means.columns], row=1, col=col)
    fig.update_yaxes(type='category', showgrid=False)
    fig.update_yaxes(title_text=rows, row=1, col=1)
    fig.update_layout(width=860, height=340, margin_t=60,
                      coloraxis=dict(colorscale='Blues', cmin=0, cmax=1))
    return fig


# %%
rng = np.random.default_rng(0)
rows = [dict(width=w, seed=s, parameters=100*w*w, benchmark=b, condition=c, category='micro',
             metric=m, value=y*w/32+rng.normal(0, .02))
        for w in (8, 16, 32) for s in (0, 1, 2)
        for b,c,m,y in [*(('toy', c, m, y) for c,y in (('q', .5), ('q+if', .1), ('q+if+cot', 0),
                                                       ('q+anti', .7))
                          for m in ('bias_ambig_soft', 'accuracy_disambig', 'accuracy_ambig_soft')),
                        ('statements', 'statement', 'knowledge', .6)]]
table = pd.DataFrame(rows)
base = pd.DataFrame([dict(reader=r, condition=c, bias=.4*(r=='ideal' and c=='q'))
                     for r in ('ideal', 'ngram') for c in ('q', 'q+if', 'q+if+cot')])
fig = plot_bias_by_size(table, base)
test_eq([t.name for t in fig.data], ['Q', 'Q+IF', 'Q+IF+CoT'])
test_close(fig.data[0].y, by_size(select_metric(table, 'q')).value)
fig

# %%
fig = plot_abilities(table)
test_eq([t.name for t in fig.data if t.showlegend][-1], '"unknown", Q+IF less Q+anti')
fig

# %%
columns = [8, 16, 32]
means = {8: [0, .3, .6], 24: [0, .6, .9], 72: [0, .1, .2]}
scores = {k: pd.DataFrame([v]*2, columns=columns) for k,v in means.items()}
fig = plot_onset_map({'one': scores, 'two': scores}, 'Facts')
test_close(fig.data[1].x[:2], [5/3, 5/6])
assert np.isnan(fig.data[1].x[2])
fig
