# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %%

# %% [markdown]
# # Figures of ratings
#
# > Elo against size, against steps of training, and helpfulness against harmlessness.

# %%
#| default_exp constitution.elo

# %%
#| export
import pandas as pd
import plotly.graph_objects as go

# %%
#| export
from moral_sc.foundation.figures import COLOURS

# %%
#| hide
import numpy as np
from fastcore.test import *
from moral_sc.constitution.evaluation.pareto import pareto_frontier
from moral_sc.constitution.evaluation.elo import score_judge, play_matches, tournament

# %% [markdown]
# The paper compares five kinds of model [@bai2022constitutional], and each keeps its colour and
# its mark on every page: trained by reinforcement on helpfulness alone, on helpfulness and human
# votes on harm, by supervision on revisions, and by reinforcement on a constitution, without and
# with a chain of thought.

# %%
#| export
MODEL_STYLES = {
    'helpful RL':    ('match', 'circle'),
    'HH RL':         ('if', 'square'),
    'SL-CAI':        ('paper', 'x'),
    'RL-CAI':        ('linear', 'diamond'),
    'RL-CAI, CoT':   ('cot', 'triangle-up'),
}

def model_style(kind):
    "Colour and marker of a kind of model"
    colour,symbol = MODEL_STYLES.get(kind, ('accent', 'star'))
    return COLOURS[colour], symbol

def _bar(value, low, high, **kw):
    "Error bars from three columns"
    return dict(type='data', array=high-value, arrayminus=value-low, symmetric=False, width=3,
                thickness=1, **kw)


# %% [markdown]
# ## Elo along an axis

# %%
#| export
def plot_ratings(
    d:pd.DataFrame,       # kind, x, elo, low, high
    x:str='size',         # Column along the axis
    title:str='parameters',
    axis:str='Elo',
    log:bool=False,
)->go.Figure:
    "Ratings with intervals, one line a kind of model"
    fig = go.Figure()
    for kind,g in d.groupby('kind', sort=False):
        colour,symbol = model_style(kind)
        fig.add_scatter(x=g[x], y=g.elo, error_y=_bar(g.elo, g.low, g.high), name=kind,
                        mode='lines+markers', line_color=colour,
                        marker=dict(symbol=symbol, size=9))
    fig.update_xaxes(title=title, type='log' if log else 'linear')
    return fig.update_yaxes(title=axis, zeroline=True)


# %% [markdown]
# Made-up votes of a judge who goes by a number, on models that grow better with steps:

# %%
rng = np.random.default_rng(0)
kinds = ['helpful RL', 'HH RL', 'RL-CAI']
runs = pd.DataFrame([(k, s, f'{k}/{s}') for k in kinds for s in (10, 20, 40, 80)]+
                    [('SL-CAI', 0, 'SL-CAI')], columns=['run', 'step', 'player'])
gain = dict(zip(kinds, [(.9, -.5), (.4, .8), (.6, 1.1)])) | {'SL-CAI':(0, 0)}
asks = [f'Request {i}' for i in range(60)]
def toy(axis):
    skill = {p: gain[r][axis]*np.log1p(s/10) for r,s,p in runs.itertuples(index=False)}
    said = {p: [str(v+rng.normal(0, .7)) for _ in asks] for p,v in skill.items()}
    return play_matches(said, asks, score_judge(lambda prompts, a: [float(x) for x in a], 2.))

helpful = toy(0)
harmless = toy(1)
e = tournament(harmless, gauge='SL-CAI').table.merge(runs)
e = e.rename(columns=dict(run='kind')).sort_values(['kind', 'step'])
plot_ratings(e, 'step', 'steps of training', 'harmlessness, Elo')

# %%
fig = plot_ratings(e, 'step')
test_eq({t.name for t in fig.data}, set(e.kind))
test_eq(len({t.line.color for t in fig.data}), 4)


# %% [markdown]
# ## Helpfulness against harmlessness
#
# Snapshots of a run are joined in the order of its steps, and the last one is filled. Up and to
# the right is better; the dotted line bounds what some snapshot matches on both axes.

# %%
#| export
def _stairs(f):
    "Corners of the area that all snapshots dominate together"
    d = f.table[f.table.pareto].sort_values('helpful')
    x = d.helpful.tolist()
    y = d.harmless.tolist()
    xs = [f.reference[0]] + [v for v in x for _ in (0, 1)]
    return xs, [v for v in y for _ in (0, 1)] + [f.reference[1]]

def plot_frontier(
    f, # `Frontier`
)->go.Figure:
    "Every snapshot on both axes, runs joined, with intervals"
    fig = go.Figure()
    x,y = _stairs(f)
    fig.add_scatter(x=x, y=y, mode='lines', showlegend=False, hoverinfo='skip',
                    line=dict(dash='dot', width=1, color=COLOURS['paper']))
    for run,g in f.table.groupby('run', sort=False):
        g,(colour,symbol) = g.sort_values('step'), model_style(run)
        bars = [_bar(g[a], g[f'{a}_low'], g[f'{a}_high'], color=colour) for a in
                ('helpful', 'harmless')]
        marks = [f'{symbol}-open']*(len(g)-1)+[symbol]
        fig.add_scatter(x=g.helpful, y=g.harmless, error_x=bars[0], error_y=bars[1], name=run,
                        mode='lines+markers', line=dict(color=colour, width=1.5),
                        marker=dict(symbol=marks, size=9, color=colour),
                        text=[f'step {s}' for s in g.step])
    fig.update_xaxes(title='helpfulness, Elo', zeroline=True)
    return fig.update_yaxes(title='harmlessness, Elo', zeroline=True)


# %%
f = pareto_frontier(helpful, harmless, runs, gauge='SL-CAI', n=300)
plot_frontier(f)

# %%
fig = plot_frontier(f)
test_eq([t.name for t in fig.data[1:]], [*kinds, 'SL-CAI'])
best = f.table[f.table.pareto]
assert set(best.helpful)<=set(fig.data[0].x)
