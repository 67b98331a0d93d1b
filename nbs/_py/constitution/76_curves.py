# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Figures of training
#
# > Reward, KL, entropy and length while a policy is trained, and what the reward is worth.

# %%
#| default_exp constitution.curves

# %%
#| export
import numpy as np, pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from moral_sc.foundation.errors import DataError
from moral_sc.foundation.figures import COLOURS

# %%
#| hide
from fastcore.test import *


# %% [markdown]
# All figures take histories as [training](rl/40_policy.ipynb) returns them, a row a step. A
# step is a few dozen answers and its numbers are noisy; what is drawn is a running mean,
# with the steps themselves behind it as faint points.

# %%
#| export
def running_mean(
    x,         # [step]
    window:int=9,
)->np.ndarray: # [step]; shorter windows at both ends
    "Running mean, centred"
    s = pd.Series(np.asarray(x, float))
    return s.rolling(window, center=True, min_periods=1).mean().to_numpy()

def _named(runs): return runs if isinstance(runs, dict) else {'': runs}

def _has(d, column):
    if column not in d: raise DataError(f'The history has no column {column!r}; it has '
                                        f'{", ".join(d.columns)}.')
    return d[column]


# %%
running_mean([0, 0, 3, 0, 0], 3)

# %%
test_close(running_mean(np.arange(20.), 5)[2:-2], np.arange(20.)[2:-2])
test_close(running_mean([1., 2.], 9), [1.5, 1.5])

# %% [markdown]
# ## Against steps

# %%
#| export
TITLES = dict(score='score', reward='score less price', kl='KL from the start, nats',
              kl3='KL from the start, nats', entropy='entropy, nats a token',
              clipped='share of clipped ratios', length='tokens an answer',
              ended='share that ended', different='different answers',
              grad_norm='norm of the gradient')

def _trace(fig, x, y, name, colour, window, legend, **at):
    points = dict(size=3, color=colour, opacity=.25)
    fig.add_scatter(x=x, y=y, mode='markers', marker=points, showlegend=False,
                    hoverinfo='skip', **at)
    fig.add_scatter(x=x, y=running_mean(y, window), mode='lines', name=name,
                    line=dict(color=colour, width=2), legendgroup=name, showlegend=legend,
                    **at)

def plot_training(
    runs,           # A history, or a dict of name -> history
    columns=('score', 'kl3', 'entropy', 'clipped', 'length', 'ended'),
    window:int=9,   # Steps in the running mean
)->go.Figure:
    "Numbers of each step against the step, a panel a number"
    runs = _named(runs)
    cols = min(3, len(columns))
    names = [TITLES.get(c, c) for c in columns]
    fig = make_subplots(-(-len(columns)//cols), cols, horizontal_spacing=.11,
                        vertical_spacing=.22, subplot_titles=names)
    for i,c in enumerate(columns):
        for (name,d),colour in zip(runs.items(), COLOURS['sequence']):
            _trace(fig, d.step, _has(d, c), name, colour, window, bool(name) and i==0,
                   row=i//cols+1, col=i%cols+1)
    fig.update_annotations(font_size=12)
    for k in range(cols): fig.update_xaxes(title='step', row=-(-len(columns)//cols), col=k+1)
    return fig.update_layout(margin=dict(t=60 if len(runs)>1 else 36, l=44),
                             legend=dict(y=1.12))


# %% [markdown]
# Two made-up runs:

# %%
rng = np.random.default_rng(0)
def made_up(speed, steps=120):
    t = np.arange(1, steps+1)
    d = np.sqrt(speed*t/10)
    noise = lambda s: rng.normal(0, s, steps)
    return pd.DataFrame(dict(step=t, score=d+noise(.2), gold=d-.25*d**2+noise(.2),
        kl3=d**2+noise(.02).clip(0), entropy=3-.3*d+noise(.05), clipped=.02+0*t,
        length=12+2*d+noise(.4), ended=np.ones(steps)))

runs = {'slow': made_up(.3), 'fast': made_up(1.2)}
fig = plot_training(runs)
fig

# %%
test_eq(len(fig.data), 2*2*6)
with expect_fail(DataError, contains="no column 'reword'"): plot_training(runs, ['reword'])


# %% [markdown]
# ## Against the distance from the start
#
# How far a policy has moved says more than how long it was trained: runs of different rates
# fall on one curve. The square root of the KL is like a length, and early on the score
# grows in proportion to it [@bai2022hh].

# %%
#| export
def kl_distance(history)->np.ndarray: # [step]
    "Square root of the KL from the first policy, in nats"
    return np.sqrt(np.clip(_has(history, 'kl3'), 0, None).to_numpy())

def plot_distance(
    history,         # Of one run
    scores:dict,     # Column -> name: what training maximised first, then what was meant
    window:int=9,
    title:str='score',
)->go.Figure:
    "Several scores of one run against sqrt(KL)"
    fig = go.Figure()
    x = kl_distance(history)
    i = np.argsort(x)
    for (c,name),colour in zip(scores.items(), ('if', 'q', 'accent', 'cot')):
        y = _has(history, c).to_numpy()[i]
        _trace(fig, x[i], y, name, COLOURS[colour], window, True)
    fig.update_xaxes(title='√KL from the first policy, √nat')
    return fig.update_yaxes(title=title)

def plot_runs(
    runs:dict,       # Name -> history, or list of histories of several seeds
    column:str,
    window:int=9,
    title:str=None,
)->go.Figure:
    "One score of several runs against sqrt(KL)"
    fig = go.Figure()
    for (name,ds),colour in zip(runs.items(), COLOURS['sequence']):
        ds = ds if isinstance(ds, list) else [ds]
        d = pd.concat(ds)
        x = kl_distance(d)
        i = np.argsort(x)
        _trace(fig, x[i], _has(d, column).to_numpy()[i], name, colour, window*len(ds), True)
    fig.update_xaxes(title='√KL from the first policy, √nat')
    return fig.update_yaxes(title=title or TITLES.get(column, column))


# %%
plot_distance(runs['fast'], dict(score='proxy', gold='truth'))

# %%
fig = plot_runs(runs, 'gold', title='truth')
test_eq([t.name for t in fig.data if t.name], ['slow', 'fast'])
fig


# %% [markdown]
# ## Where it turns
#
# A score that was learned from comparisons agrees with what was meant near the answers it
# was learned from, and not far away from them. Pursued far enough, the score rises and what
# was meant falls. `find_peak` finds the top of a noisy curve, and what is lost after it.

# %%
#| export
def find_peak(
    history,
    column:str,     # What was meant
    window:int=9,
)->dict:            # Step and distance of the top; height there, at start and end
    "Where a score is highest along a run"
    y = running_mean(_has(history, column), window)
    x = kl_distance(history)
    k = int(np.argmax(y))
    return dict(step=int(history.step.iloc[k]), distance=float(x[k]), start=float(y[0]),
                top=float(y[k]), end=float(y[-1]), lost=float(y[k]-y[-1]))

def linearity(
    history,
    column:str='score',
    upto:float=np.inf, # Distance
)->dict: # Slope; shares of variance left by a line, a parabola, and a line in the KL
    "How straight a score rises with the distance"
    x = kl_distance(history)
    y = _has(history, column).to_numpy(float)
    x,y = x[x<=upto],y[x<=upto]
    left = lambda n: float(np.var(y-np.polyval(np.polyfit(x, y, n), x))/np.var(y))
    return dict(slope=float(np.polyfit(x, y, 1)[0]), line=left(1), parabola=left(2),
                in_kl=float(np.var(y-np.polyval(np.polyfit(x**2, y, 1), x**2))/np.var(y)))


# %%
find_peak(runs['fast'], 'gold'), linearity(runs['fast'])

# %%
t = find_peak(runs['fast'], 'gold')
assert abs(t['distance']-2)<.3 and t['lost']>0
l = linearity(runs['fast'])
test_close(l['slope'], 1, .1)
assert l['line']<l['in_kl']
