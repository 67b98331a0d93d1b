# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Maps
#
# > Phase diagrams, and what a feature does to its neighbours as it grows denser.

# %%
#| default_exp superposition.maps

# %%
#| export
import numpy as np, plotly.graph_objects as go, torch
from plotly.subplots import make_subplots
from moral_sc.foundation.figures import COLOURS
from moral_sc.superposition.geometry import align_to_axes

# %%
#| hide
import pandas as pd
from fastcore.test import *
from moral_sc.superposition.geometry import polygon
from moral_sc.superposition.phase_diagram import phase_grid, predict_grid, logspace


# %% [markdown]
# ## Phase diagrams
#
# A phase diagram has two numbers at each point: how long the column of the last feature is,
# and how much the others use its direction. The paper gives them two dimensions of colour,
# and so do we. No ink is an ignored feature; blue has a dimension of its own, red shares
# one; what is paler is shorter. The two numbers go into the figure as one, of 64 shades.

# %%
#| export
def _shades(levels=8):
    "A scale of steps: shared outside, length inside"
    blue,red,none = (np.array(c) for c in ((33,102,172), (178,24,43), (247,247,247)))
    rgb = [none+(blue+(red-blue)*s-none)*n for s in np.linspace(0, 1, levels)
           for n in np.linspace(0, 1, levels)]
    edge = np.linspace(0, 1, levels**2+1).round(5).tolist()
    return [[e,f'rgb({",".join(str(int(v)) for v in c)})'] for i,c in enumerate(rgb)
            for e in edge[i:i+2]]

def shade(
    norm, shared, # Arrays of one shape
    levels=8,
)->np.ndarray:    # Same shape, int8: a place on the scale of shades
    "One number for length and sharing"
    at = lambda v: (np.clip(np.nan_to_num(v), 0, 1)*(levels-1)).round()
    return (at(shared)*levels + at(norm)).astype(np.int8)

_words = {'ignored': 'rgb(247,247,247)', 'own dimension': 'rgb(33,102,172)',
          'shared': 'rgb(178,24,43)'}

def _ticks(v):
    v = [10.**k for k in range(-4, 5) if min(v)*.99 <= 10.**k <= max(v)*1.01]
    return dict(tickvals=np.log10(v).tolist(), ticktext=[f'{t:g}' for t in v])

def plot_phases(
    tables:dict, # Title -> table with density, importance, norm, shared
    lines=None,  # name -> importance and density along a boundary
    xtitle='importance of the last feature',
)->go.Figure:
    "Phase diagrams side by side"
    fig = make_subplots(1, len(tables), subplot_titles=list(tables), shared_yaxes=True,
                        horizontal_spacing=.045)
    for c,t in enumerate(tables.values(), 1):
        z = t.assign(z=shade(t.norm, t.shared)).pivot(
            index='density', columns='importance', values='z')
        x = np.log10(z.columns).round(4).tolist()
        y = np.log10(z.index).round(4).tolist()
        fig.add_heatmap(x=x, y=y, z=z.to_numpy(np.int8), coloraxis='coloraxis', row=1, col=c,
                        hovertemplate='r = 10^%{x:.2f}, p = 10^%{y:.2f}<extra></extra>')
        for i,(name,(r,p)) in enumerate((lines or {}).items()):
            fig.add_scatter(x=np.log10(r).round(4), y=np.log10(p).round(4), mode='lines',
                name=name, showlegend=c==1, row=1, col=c,
                line=dict(color='#111111', dash=['solid','dot','dash'][i%3], width=2))
        fig.update_xaxes(**_ticks(z.columns), range=[x[0],x[-1]], row=1, col=c)
        fig.update_yaxes(**_ticks(z.index), range=[y[-1],y[0]], row=1, col=c)
    for word,colour in _words.items():
        fig.add_scatter(x=[None], y=[None], mode='markers', name=word, row=1, col=1,
            marker=dict(size=12, symbol='square', color=colour,
                        line=dict(color='#787878', width=1)))
    fig.update_xaxes(showgrid=False, tickfont_size=12)
    fig.update_yaxes(title='density p', col=1).update_yaxes(showgrid=False)
    fig.update_annotations(font_size=12)
    fig.add_annotation(text=xtitle, x=.5, xref='paper', y=0, yref='paper', yshift=-26,
                       yanchor='top', showarrow=False, font=dict(size=14))
    return fig.update_layout(
        coloraxis=dict(colorscale=_shades(), cmin=-.5, cmax=63.5, showscale=False),
        legend=dict(y=-.22, yanchor='top'), margin=dict(t=40, b=90))


# %%
#| label: fig-phases
#| fig-cap: What three simple solutions predict for two features in one dimension, and the lines where the antipodal pair ties with each of the others
said = predict_grid(phase_grid(2, 1, logspace(1, .01, 31), logspace(.1, 10, 31)))
p = np.linspace(.025, 4/7, 40); tie = 2*p/(4-5*p)
keep = tie>=.1
tie = tie[keep]
p = p[keep]
plot_phases({'theory': said}, {'ties': (np.r_[tie,1/tie[::-1]], np.r_[p,p[::-1]])})

# %% [markdown]
# Eight levels of each number keep the three corners apart, and the figure small:

# %%
test_eq(shade(np.array([0,1,1]), np.array([0,0,1])).tolist(), [0,7,63])
len(plot_phases({'theory': said}).to_json())


# %% [markdown]
# ## One feature among five
#
# When one feature's density changes, its column and those of its neighbours move. Each
# model is turned [upright](50_geometry.ipynb), with the varied feature to the right;
# features are put in the order of their angles, so that the same colour follows the same
# neighbour.

# %%
#| export
def order_by_angle(
    W:torch.Tensor, # [model, feature, 2], the varied feature first
)->torch.Tensor:    # Same shape: first feature to the right, the others by angle
    "Figures turned, flipped and ordered alike"
    out = []
    for w in align_to_axes(W.double()):
        t = torch.atan2(w[1:,1], w[1:,0]) % (2*torch.pi)
        out.append(torch.cat([w[:1],w[1:][t.argsort()]]))
    return torch.stack(out)

def plot_neighbours(
    W:torch.Tensor, # [model, feature, 2], the varied feature first
    titles,         # One for each model
)->go.Figure:
    "Columns of W, the varied feature red"
    fig = make_subplots(1, len(W), subplot_titles=list(titles), horizontal_spacing=.02)
    r = max(1.3, 1.08*float(W.abs().max()))
    for c,w in enumerate(order_by_angle(W), 1):
        xs,ys = w.numpy().round(3).T
        for i in range(len(w)):
            fig.add_scatter(x=[0,xs[i]], y=[0,ys[i]], mode='lines+markers', row=1, col=c,
                marker=dict(size=[0,11]), line=dict(width=3),
                marker_color=COLOURS['relu' if i==0 else 'q'], name=f'feature {i}')
        fig.add_shape(type='circle', x0=-1, x1=1, y0=-1, y1=1, row=1, col=c,
                      line=dict(color=COLOURS['paper'], width=1, dash='dot'))
        fig.update_yaxes(scaleanchor=f'x{c if c>1 else ""}', row=1, col=c)
    fig.update_xaxes(range=[-r,r], visible=False).update_yaxes(range=[-r,r], visible=False)
    return fig.update_annotations(font_size=12).update_layout(showlegend=False, height=200,
        margin=dict(l=5, r=5, t=40, b=5))


# %%
#| label: fig-corners
#| fig-cap: A pentagon, and two antipodal pairs without the first feature
W = torch.stack([polygon(5), torch.cat([torch.zeros(1,2),polygon(4)])])
plot_neighbours(W, ['pentagon','two digons'])

# %% [markdown]
# A rotation, a reflection and a renaming of the others leave nothing to see:

# %%
O = torch.linalg.qr(torch.randn(2,2, dtype=torch.float64)).Q
test_close(order_by_angle((W@O)[:,[0,3,1,4,2]])[0], order_by_angle(W)[0], eps=1e-6)
order_by_angle(W)[0]


# %% [markdown]
# Losses of the solutions that compete go in as curves, the trained models as points; where
# curves cross, the better solution changes.

# %%
#| export
def curve_crossing(
    x, a, b, # Two curves over the same points
)->float:
    "Where `a` and `b` cross, by interpolation in log x; nan if they do not"
    d = np.log(np.asarray(a)/np.asarray(b)); k = np.flatnonzero(np.diff(np.sign(d)))
    if not len(k): return np.nan
    k = k[0]; w = d[k]/(d[k]-d[k+1])
    return float(np.exp((1-w)*np.log(x[k]) + w*np.log(x[k+1])))

def plot_solution_losses(
    x,               # [point]
    lines:dict,      # name -> loss of a solution at each point
    points=None,     # name -> x and loss of trained models
    marks=None,      # name -> x of an upright line
    xtitle='density of the varied feature, relative to the others',
    ytitle='loss',
)->go.Figure:
    "Losses of competing solutions, and where training ended"
    fig = go.Figure()
    for (name,ys),colour in zip(lines.items(), ('q','relu','accent'), strict=False):
        fig.add_scatter(x=np.round(x, 4), y=np.round(ys, 7), name=name, line_color=COLOURS[colour])
    for (name,(xs,ys)),colour in zip((points or {}).items(), ('q','relu','paper'), strict=False):
        fig.add_scatter(x=np.round(xs, 4), y=np.round(ys, 7), name=name, mode='markers',
            marker=dict(size=6, symbol='circle-open', color=COLOURS[colour]))
    for i,(name,at) in enumerate((marks or {}).items()):
        fig.add_shape(type='line', x0=at, x1=at, y0=0, y1=1, yref='paper',
                      line=dict(color=COLOURS['paper'], width=1, dash='dot'))
        fig.add_annotation(x=np.log10(at), y=.97-.09*i, yref='paper', text=name, showarrow=False,
                           xanchor='left' if i else 'right', xshift=4 if i else -4,
                           font=dict(size=12, color=COLOURS['paper']))
    ticks = [v for v in (.05,.1,.2,.5,1,2,5,10,20) if min(x)<=v<=max(x)]
    return fig.update_xaxes(type='log', title=xtitle, tickvals=ticks,
                            ticktext=[f'{t:g}' for t in ticks]).update_yaxes(title=ytitle)


# %%
#| label: fig-branches
#| fig-cap: Two made-up losses that cross
x = logspace(.1, 1, 20)
at = curve_crossing(x, .004+.005*x, .001+.016*x)
test_close(at, 3/11, eps=1e-3)
plot_solution_losses(x, dict(pentagon=.004+.005*x, digons=.001+.016*x), marks={f'{at:.3f}': at})
