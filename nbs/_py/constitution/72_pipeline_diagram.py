# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Pipeline diagram
#
# > Figure 1 of Constitutional AI, with the counts of a run in its boxes.

# %%
#| default_exp constitution.pipeline_diagram

# %%
#| export
import plotly.graph_objects as go

# %%
#| export
from moral_sc.foundation.errors import ConfigError, unknown_name_message
from moral_sc.foundation.figures import COLOURS, INK

# %%
#| hide
from fastcore.test import *

# %% [markdown]
# Constitutional AI has two stages, and each ends with a model [@bai2022constitutional]. In
# the first, a model revises its own answers and is finetuned on the revisions. In the
# second, the finetuned model answers each prompt twice, a model compares the two answers under a
# principle, a preference model learns the comparisons, and the finetuned model is trained against it.
# Models have blue frames and texts grey ones. A thick violet frame marks the two places where
# principles enter.

# %%
#| export
PIPELINE_BOXES = dict( # Column, row, text, kind
    base=(0, 1, 'first model', 'model'), answers=(1, 1, 'answers', 'text'),
    revisions=(2, 1, 'critiques and<br>revisions', 'principle'),
    supervised=(3, 1, 'SL-CAI', 'model'),
    pairs=(3, 0, 'pairs of<br>answers', 'text'), labels=(2, 0, 'labels', 'principle'),
    preference=(1, 0, 'preference<br>model', 'model'), reinforced=(0, 0, 'RL-CAI', 'model'))
PIPELINE_ARROWS = [*zip(list(PIPELINE_BOXES)[:-1], list(PIPELINE_BOXES)[1:])]
_half_size = .4, .24 # Of a box: width, height
_frames = dict(model=('q', 1.5), text=('paper', 1.5), principle=('cot', 3)) # Colour, width

def _edge_point(a, b):
    "Return the point where an axis-parallel arrow from box a to box b leaves a"
    x,y = PIPELINE_BOXES[a][:2]
    u,v = PIPELINE_BOXES[b][:2]
    return x+_half_size[0]*((u>x)-(u<x)), y+_half_size[1]*((v>y)-(v<y))

def plot_pipeline(
    notes:dict=None, # Box -> a few words under its name
)->go.Figure:
    "Draw the two stages from the first model to the last"
    notes = notes or {}
    fig = go.Figure()
    for k in {*notes}-{*PIPELINE_BOXES}:
        raise ConfigError(unknown_name_message('box', k, [*PIPELINE_BOXES]))
    w,h = _half_size
    for k,(x,y,text,kind) in PIPELINE_BOXES.items():
        colour,width = _frames[kind]
        fig.add_shape(type='rect', x0=x-w, x1=x+w, y0=y-h, y1=y+h,
                      line=dict(color=COLOURS[colour], width=width))
        note = f'<br><i>{notes[k]}</i>' if k in notes else ''
        fig.add_annotation(x=x, y=y, text=text+note, showarrow=False)
    for a,b in PIPELINE_ARROWS:
        (x,y),(u,v) = _edge_point(a, b),_edge_point(b, a)
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
    (x,y),(u,v) = _edge_point(a, b),_edge_point(b, a)
    assert (x==u)!=(y==v)
    assert not any(abs(u-p)<_half_size[0]-1e-9 and abs(v-q)<_half_size[1]-1e-9
                   for p,q,*_ in PIPELINE_BOXES.values())
