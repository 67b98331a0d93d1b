# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The pipeline, drawn
#
# > Figure 1 of Constitutional AI with the counts of a run in its boxes, and what each stage
# > made.

# %%
#| default_exp constitution.diagram

# %%
#| export
import plotly.graph_objects as go

# %%
#| export
from moral_sc.foundation.errors import ConfigError, unknown_name_message
from moral_sc.foundation.figures import COLOURS, INK

# %%
#| hide
import numpy as np, pandas as pd
from fastcore.test import *
from moral_sc.foundation.statistics import cluster_bootstrap, Estimate

# %% [markdown]
# Constitutional AI has two stages, and each ends with a model [@bai2022constitutional]. In
# the first a model revises its own answers and is finetuned on what came out. In the second
# the finetuned model answers twice, a model compares the two under a principle, a
# preference model learns the comparisons, and the finetuned model is trained against it.
# Models have blue frames and texts grey ones; where the frame is thick and violet,
# principles enter.

# %%
#| export
PIPELINE_BOXES = dict( # Column, row, what it says, kind
    base=(0, 1, 'first model', 'model'), answers=(1, 1, 'answers', 'text'),
    revisions=(2, 1, 'critiques and<br>revisions', 'principle'),
    supervised=(3, 1, 'SL-CAI', 'model'),
    pairs=(3, 0, 'pairs of<br>answers', 'text'), labels=(2, 0, 'labels', 'principle'),
    preference=(1, 0, 'preference<br>model', 'model'), reinforced=(0, 0, 'RL-CAI', 'model'))
PIPELINE_ARROWS = [*zip(list(PIPELINE_BOXES)[:-1], list(PIPELINE_BOXES)[1:])]
_half = .4, .24 # Of a box: width, height
_frame = dict(model=('q', 1.5), text=('paper', 1.5), principle=('cot', 3))

def _edge(a, b): # Where the line from a to b leaves a, on axis-parallel ways
    (x,y),(u,v) = PIPELINE_BOXES[a][:2], PIPELINE_BOXES[b][:2]
    return x+_half[0]*((u>x)-(u<x)), y+_half[1]*((v>y)-(v<y))

def plot_pipeline(
    notes:dict=None, # Box -> a few words under its name
)->go.Figure:
    "The two stages from the first model to the last"
    notes = notes or {}
    fig = go.Figure()
    for k in {*notes}-{*PIPELINE_BOXES}: raise ConfigError(unknown_name_message('box', k, [*PIPELINE_BOXES]))
    for k,(x,y,text,kind) in PIPELINE_BOXES.items():
        colour,width = _frame[kind]
        (w,h),line = _half,dict(color=COLOURS[colour], width=width)
        fig.add_shape(type='rect', x0=x-w, x1=x+w, y0=y-h, y1=y+h, line=line)
        said = text + (f'<br><i>{notes[k]}</i>' if k in notes else '')
        fig.add_annotation(x=x, y=y, text=said, showarrow=False)
    for a,b in PIPELINE_ARROWS:
        (x,y),(u,v) = _edge(a, b),_edge(b, a)
        fig.add_annotation(ax=x, ay=y, x=u, y=v, axref='x', ayref='y', text='', arrowhead=2,
                           arrowcolor=INK, arrowwidth=1.2)
    fig.update_xaxes(range=[-.5, 3.5], visible=False)
    return fig.update_yaxes(range=[-.4, 1.4], visible=False)


# %%
#| label: fig-pipeline
#| fig-cap: The two stages of Constitutional AI
plot_pipeline(dict(base='220 steps', revisions='3 rounds'))

# %%
fig = plot_pipeline(dict(labels='64'))
test_eq((len(fig.layout.shapes), len(fig.layout.annotations)), (8, 8+7))
assert any('<i>64</i>' in a.text for a in fig.layout.annotations)
with expect_fail(ConfigError, contains="did you mean 'labels'"):
    plot_pipeline(dict(label='64'))

# %% [markdown]
# Arrows run from edge to edge, along one axis each, and none ends inside a box:

# %%
for a,b in PIPELINE_ARROWS:
    (x,y),(u,v) = _edge(a, b),_edge(b, a)
    assert (x==u)!=(y==v)
    assert not any(abs(u-p)<_half[0]-1e-9 and abs(v-q)<_half[1]-1e-9
                   for p,q,*_ in PIPELINE_BOXES.values())


# %% [markdown]
# ## What each stage made
#
# Two measures of the models along the way, stage by stage.

# %%
#| export
def plot_stages(
    stages, # `Estimate`s: one row a model in order, one column a measure
    title:str='true score of an answer',
)->go.Figure:
    "Measures of each model with their intervals, one line a measure"
    fig = go.Figure()
    for c,symbol,colour in zip(stages, ('circle', 'x', 'diamond'), ('q', 'if', 'cot')):
        e = list(stages[c])
        bars = dict(type='data', array=[v.high-v.value for v in e], symmetric=False,
                    arrayminus=[v.value-v.low for v in e], width=5, thickness=1.2)
        fig.add_scatter(x=list(stages.index), y=[v.value for v in e], error_y=bars, name=c,
                        mode='lines+markers', line_color=COLOURS[colour],
                        marker=dict(symbol=symbol, size=10))
    return fig.update_yaxes(title=title, zeroline=True)


# %%
#| hide
rng = np.random.default_rng(0)
some = lambda m: cluster_bootstrap(rng.normal(m, 1, 60), range(60))
toy = pd.DataFrame({'help': [Estimate(*some(m)) for m in (1, .6, .5)],
                    'harmlessness': [Estimate(*some(m)) for m in (-1, -.4, .5)]},
                   index=['first model', 'SL-CAI', 'RL-CAI'])

# %% [markdown]
# Made-up scores:

# %%
plot_stages(toy)

# %%
test_eq(list(plot_stages(toy).data[0].x), list(toy.index))
test_eq([t.name for t in plot_stages(toy).data], list(toy))
