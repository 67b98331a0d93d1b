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
# > Set the plotly template and the colours of all figures.

# %%
#| default_exp foundation.figures

# %%
#| export
import plotly.graph_objects as go
import plotly.io as pio

# %%
#| hide
import json
import numpy as np
import pandas as pd
from fastcore.test import *

# %% [markdown]
# If you import this module, the template `moral_sc` becomes the default of new figures. Plotly's own template adds 7 kB to
# each figure, half of it about chart types that we do not use. Ours contains only the differences from plotly's defaults, so
# changes of a figure are readable in a diff.

# %% [markdown]
# ## Colours
#
# A colour has one meaning on all pages: the plain question is blue in every figure of every paper.

# %%
#| export
COLOURS = {
    'q':      '#196fc0',  # plain question
    'if':     '#eb6656',  # with the instruction
    'cot':    '#7f31e4',  # with the instruction and a chain of thought
    'match':  '#b46905',  # asked to match the statistics
    'paper':  '#787878',  # what the paper reports
    'linear': '#1aa3af',  # linear model
    'relu':   '#c3074e',  # model with a ReLU
    'accent': '#5c992a',  # highlighted element
}
order = 'q if cot match linear relu accent paper'.split()
COLOURS['sequence'] = [COLOURS[k] for k in order]
COLOURS['diverging'] = [[0,'#2166ac'], [.25,'#92c5de'], [.5,'#f7f7f7'], [.75,'#f4a582'],
                        [1,'#b2182b']]


# %% [markdown]
# Pages have a light and a dark mode, and figures have no background. Each colour must therefore stand out from white and
# from near-black. We use the contrast ratio of the web's accessibility guidelines, which require 3 for lines and
# bars.

# %%
def luminance(c):
    s = np.array([int(c[i:i+2], 16) for i in (1,3,5)])/255
    return np.where(s<=.04045, s/12.92, ((s+.055)/1.055)**2.4) @ [.2126, .7152, .0722]

def contrast(a, b):
    lo,hi = sorted([luminance(a), luminance(b)])
    return (hi+.05)/(lo+.05)

marks = {k: c for k,c in COLOURS.items() if isinstance(c, str)}
pages = dict(light='#ffffff', dark='#131416')
pd.DataFrame({k: [contrast(c, p) for p in pages.values()] for k,c in marks.items()},
             index=pages).round(1)

# %%
assert all(contrast(c, page)>=3 for c in marks.values() for page in pages.values())

# %% [markdown]
# One man in twelve cannot distinguish red from green. Under simulated deuteranopia (the matrix is from Machado, Oliveira
# and Fernandes, 2009) the four conditions stay distinguishable: their distances in CIE Lab are far above 2, which is just
# visible.

# %%
deuteranopia = np.array([[.367, .861, -.228], [.280, .673, .047], [-.012, .043, .969]])

def deuteranopia_lab(c):
    s = np.array([int(c[i:i+2], 16) for i in (1,3,5)])/255
    rgb = deuteranopia @ np.where(s<=.04045, s/12.92, ((s+.055)/1.055)**2.4)
    xyz = [[.4124,.3576,.1805], [.2126,.7152,.0722], [.0193,.1192,.9505]]
    x = np.array(xyz) @ rgb.clip(0, 1)
    f = np.cbrt(x/[.9505, 1, 1.089])
    return np.array([116*f[1]-16, 500*(f[0]-f[1]), 200*(f[1]-f[2])])  # CIE Lab

conditions = [deuteranopia_lab(COLOURS[k]) for k in ('q', 'if', 'cot', 'match')]
gaps = [float(np.linalg.norm(a-b)) for i,a in enumerate(conditions)
        for b in conditions[:i]]
np.round(gaps).tolist()

# %%
assert min(gaps)>20

# %% [markdown]
# ## Template

# %%
#| export
INK = '#767676'
LINES = 'rgba(128,128,128,.25)'

def _axis(**kw):
    return dict(gridcolor=LINES, linecolor=INK, zerolinecolor=INK, tickcolor=INK,
                ticks='outside', automargin=True, title=dict(standoff=8), **kw)

pio.templates['moral_sc'] = go.layout.Template(layout=dict(
    width=640, height=380, margin=dict(l=60, r=20, t=36, b=50), hovermode='closest',
    paper_bgcolor='rgba(0,0,0,0)', plot_bgcolor='rgba(0,0,0,0)',
    font=dict(family='system-ui, sans-serif', size=13, color=INK),
    title=dict(font=dict(size=15)), colorway=COLOURS['sequence'],
    xaxis=_axis(showgrid=False, zeroline=False), yaxis=_axis(),
    legend=dict(orientation='h', x=0, y=1.02, yanchor='bottom')))
pio.templates.default = 'moral_sc'

# %% [markdown]
# In a notebook, a figure should be stored once, as data, and not also as a script. If plotly would
# store both, we select the data only. Other front ends, such as Colab or a terminal, keep plotly's
# choice.

# %%
#| export
if 'plotly_mimetype' in (pio.renderers.default or '').split('+'):
    pio.renderers.default = 'plotly_mimetype'

# %%
#| label: fig-interval
#| fig-cap: Rates under two conditions at five sizes (made-up numbers); bars are intervals.
sizes = [.8, 3, 13, 52, 175]
bias = dict(q=('question', [.02,.03,.05,.12,.2]), paper=('paper', [.02,.02,.06,.14,.18]))
bias['if'] = 'with instruction', [.02,.03,.04,.08,.11]
fig = go.Figure()
for k,(name,y) in bias.items():
    fig.add_scatter(x=sizes, y=y, name=name, mode='lines+markers', line_color=COLOURS[k],
                    error_y=dict(array=[.02]*5, thickness=1.5, width=4))
fig.update_xaxes(type='log', title='parameters (billions)', tickvals=sizes)
fig.update_yaxes(title='bias score', rangemode='tozero')
fig

# %% [markdown]
# A matrix uses the diverging scale if zero has a meaning. Its light middle stays light on dark pages.

# %%
#| label: fig-matrix
#| fig-cap: A matrix on the diverging scale, symmetric about zero.
w = np.random.default_rng(0).normal(size=(8, 3))
fig2 = go.Figure(go.Heatmap(z=(w@w.T).round(2), zmid=0, colorscale=COLOURS['diverging']))
fig2.update_yaxes(autorange='reversed', scaleanchor='x', title='feature')
fig2.update_xaxes(title='feature', constrain='domain')


# %% [markdown]
# The template is small beside plotly's:

# %%
def json_lines(name):
    return json.dumps(pio.templates[name].to_plotly_json(), indent=1).count('\n')

ours = json_lines('moral_sc')
plotly_white = json_lines('plotly_white')
ours, plotly_white

# %%
assert ours<75 and plotly_white>500
test_eq(fig.layout.template.layout.width, 640)
