# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Figures of labels
#
# > Labels against outcomes, and accuracies against what needs no model.

# %%
#| default_exp constitution.reliability

# %%
#| export
import plotly.graph_objects as go

# %%
#| export
from moral_sc.constitution.evaluation.calibration import reliability
from moral_sc.foundation.figures import COLOURS

# %%
#| hide
import numpy as np, pandas as pd
from fastcore.test import *
from moral_sc.foundation.statistics import wilson

# %% [markdown]
# ## Reliability
#
# Against the diagonal, on which a calibrated labeller lies. Every pair is drawn both ways round,
# so the curve is its own mirror image.

# %%
#| export
_shades = ('q', 'cot', 'if', 'match')

def plot_reliability(
    labels:dict,  # Name -> (labels, outcomes)
    bins:int=10,
)->go.Figure:
    "Share that came true against the label, with Wilson intervals"
    fig = go.Figure()
    fig.add_scatter(x=[0, 1], y=[0, 1], mode='lines', showlegend=False, hoverinfo='skip',
                    line=dict(dash='dot', width=1, color=COLOURS['paper']))
    for (name,(p,y)),shade in zip(labels.items(), _shades):
        d = reliability(p, y, bins)
        bars = dict(type='data', array=d.high-d.y, arrayminus=d.y-d.low, symmetric=False,
                    width=3, thickness=1)
        fig.add_scatter(x=d.p, y=d.y, error_y=bars, name=name, mode='lines+markers',
                        line_color=COLOURS[shade])
    fig.update_xaxes(title='label: P(a is better)', range=[0, 1])
    return fig.update_yaxes(title='share in which a is better', range=[0, 1])


# %%
rng = np.random.default_rng(0)
p = rng.beta(2, 2, 600)
y = rng.random(600)<p
sure = 1/(1+((1-p)/p)**3)
plot_reliability({'calibrated': (p, y), 'too sure': (sure, y)})

# %%
fig = plot_reliability({'calibrated': (p, y), 'too sure': (sure, y)})
test_eq([t.name for t in fig.data[1:]], ['calibrated', 'too sure'])
off = [abs(np.array(t.x)-np.array(t.y)).mean() for t in fig.data[1:]]
assert off[1]>2*off[0]


# %% [markdown]
# ## Accuracy
#
# One line a method; what needs no model is drawn as vertical lines with their names.

# %%
#| export
def plot_accuracy(
    rates:dict,   # Method -> `Estimate`
    lines:dict=None, # Name -> share, drawn across
)->go.Figure:
    "Accuracies with intervals, beside baselines"
    fig = go.Figure()
    names = list(rates)
    e = [rates[k] for k in names]
    bars = dict(type='data', array=[x[2]-x[0] for x in e], arrayminus=[x[0]-x[1] for x in e],
                symmetric=False, width=4, thickness=1.2)
    fig.add_scatter(x=[x[0] for x in e], y=names, error_x=bars, mode='markers',
                    marker=dict(size=10, color=COLOURS['q']), showlegend=False)
    for k,(name,at) in enumerate((lines or {}).items()):
        fig.add_vline(x=at, line=dict(dash='dot', width=1, color=COLOURS['paper']),
                      annotation_text=name, annotation_position='top',
                      annotation_yshift=14*(k%2), annotation_font_size=11)
    fig.update_xaxes(title='share of right answers', range=[0, 1], tickformat='.0%',
                     showgrid=True)
    fig.update_layout(margin_t=50)
    return fig.update_yaxes(autorange='reversed')


# %%
some = {'at once': wilson(24, 50), 'after thought': wilson(31, 50)}
plot_accuracy(some, {'chance': .5, 'gate': .608})

# %%
test_eq(list(plot_accuracy(some).data[0].y), ['at once', 'after thought'])
test_eq(len(plot_accuracy(some, dict(chance=.5, gate=.6)).layout.shapes), 2)


# %% [markdown]
# ## A liking for a place
#
# How far labels are from the truth, against a planted liking for what stands first.

# %%
#| export
def plot_position_bias(
    d, # From a page: columns `bias`, and an `Estimate` of the error in `one order`, `both`
)->go.Figure:
    "Error of labels asked in one order and in both, against the planted bias"
    fig = go.Figure()
    for name,shade in (('one order', 'if'), ('both', 'q')):
        e = list(d[name])
        bars = dict(type='data', array=[x[2]-x[0] for x in e],
                    arrayminus=[x[0]-x[1] for x in e], symmetric=False, width=3, thickness=1)
        fig.add_scatter(x=d.bias, y=[x[0] for x in e], error_y=bars, name=name,
                        mode='lines+markers', line_color=COLOURS[shade])
    fig.update_xaxes(title='planted liking for what stands first, nats')
    return fig.update_yaxes(title='mean distance of the label from the truth',
                            rangemode='tozero')


# %%
toy = pd.DataFrame(dict(bias=[0, 1, 2]))
toy['one order'] = [wilson(k, 100) for k in (5, 20, 35)]
toy['both'] = [wilson(k, 100) for k in (4, 5, 8)]
plot_position_bias(toy)

# %%
test_eq([t.name for t in plot_position_bias(toy).data], ['one order', 'both'])
