# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Plots
#
# > Toy models as pictures: columns in the plane, Gram matrices, norms, capacity against sparsity.

# %%
#| default_exp superposition.plots

# %%
#| export
import numpy as np, plotly.graph_objects as go, torch
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots
from moral_sc.foundation.figures import COLOURS
from moral_sc.superposition.geometry import interference, align_to_axes

# %%
#| hide
from fastcore.test import *
from moral_sc.superposition.geometry import polygon


# %% [markdown]
# Each function takes tensors, returns a figure and nothing else. Numbers are rounded to what can be
# seen, so that a page with a dozen Gram matrices stays small.
#
# ## Columns in the plane
#
# With two hidden dimensions a model is its five columns. Colour is importance; the circle has
# radius one. Every model is first turned [upright](50_geometry.ipynb), since its rotation means
# nothing.

# %%
#| export
def _round(t, digits=3): return np.round(np.asarray(t, np.float64), digits).tolist()

def _titles(fig, size=12): return fig.update_annotations(font_size=size)

def plot_columns(
    W:torch.Tensor, # [model, feature, 2]
    importance,     # [feature]
    titles,         # One for each model
)->go.Figure:
    "Columns of W of several models side by side"
    W = align_to_axes(W).cpu().numpy()
    imp = np.asarray(importance, float)
    low = .85*imp.min()
    high = 1.1*imp.max()
    colours = sample_colorscale('Plasma', (imp-low)/(high-low+1e-9))
    r = max(1.25, 1.1*float(np.abs(W).max()))
    fig = make_subplots(1, len(W), subplot_titles=list(titles), horizontal_spacing=.02)
    for c,w in enumerate(W, 1):
        fig.add_shape(type='circle', x0=-1, x1=1, y0=-1, y1=1, row=1, col=c,
                      line=dict(color=COLOURS['paper'], width=1, dash='dot'))
        for (x,y),colour in zip(_round(w), colours, strict=True):
            fig.add_scatter(x=[0,x], y=[0,y], mode='lines', hoverinfo='skip', row=1, col=c,
                            line=dict(color=colour, width=3))
        fig.add_scatter(x=_round(w[:,0]), y=_round(w[:,1]), mode='markers', row=1, col=c,
            marker=dict(size=13, color=_round(imp), coloraxis='coloraxis'), text=_round(imp),
            hovertemplate='feature %{pointNumber}, importance %{text}<extra></extra>')
        fig.update_yaxes(scaleanchor=f'x{c if c>1 else ""}', row=1, col=c)
    fig.update_xaxes(range=[-r,r], visible=False).update_yaxes(range=[-r,r], visible=False)
    ticks = _round([imp.min(),imp.max()], 2)
    return _titles(fig).update_layout(showlegend=False, height=300,
        margin=dict(l=5, r=5, t=62, b=5), coloraxis=dict(colorscale='Plasma', cmin=low, cmax=high,
        colorbar=dict(title='importance', thickness=10, len=.8, tickvals=sorted({*ticks}))))


# %%
#| label: fig-plane
#| fig-cap: Three shapes that five features can take in two dimensions
W = torch.stack([torch.cat([polygon(k), torch.zeros(5-k,2)]) for k in (3,4,5)])
plot_columns(W, [.9**i for i in range(5)], ['triangle','two antipodal pairs','pentagon'])


# %% [markdown]
# ## Whole models
#
# For larger models the paper shows $W^\top W$ (which feature is read where) above the norms of the
# columns, coloured by interference: blue has a direction to itself, red shares it. Entries
# go into the figure as whole hundredths.

# %%
#| export
def _hundredths(t): return (100*torch.as_tensor(t)).round().clamp(-127,127).to(torch.int8).numpy()

def _shared(**kw):
    "Blue for a direction of its own, red for a shared one"
    return dict(colorscale=[[0,'#2166ac'],[.5,'#8a7fb0'],[1,'#b2182b']], cmin=0, cmax=1, **kw)

def plot_models(
    W:torch.Tensor, # [model, feature, hidden]
    titles,         # One for each model
)->go.Figure:
    "Gram matrices above, norms coloured by interference below"
    W,k,n = W.detach().cpu(),len(W),W.shape[1]
    fig = make_subplots(2, k, subplot_titles=list(titles), vertical_spacing=.05,
                        horizontal_spacing=.012, row_heights=[.45,.55])
    for c,w in enumerate(W, 1):
        fig.add_heatmap(z=_hundredths(w@w.T), coloraxis='coloraxis', row=1, col=c,
            hovertemplate='feature %{y} reads %{x}: %{z}/100<extra></extra>')
        fig.add_bar(y=list(range(n)), x=_round(w.norm(dim=-1), 2), orientation='h', row=2, col=c,
            marker=dict(color=_round(interference(w), 2), coloraxis='coloraxis2', line=dict(width=0)),
            hovertemplate='feature %{y}: |W| = %{x}<extra></extra>')
    top = 1.05*float(W.norm(dim=-1).max())
    fig.update_xaxes(visible=False).update_yaxes(visible=False, autorange='reversed')
    fig.update_xaxes(range=[0,top], row=2)
    bar = dict(thickness=10, len=.42, tickfont=dict(size=11))
    return _titles(fig).update_layout(showlegend=False, bargap=.15, margin=dict(l=5, r=5, t=40, b=5),
        coloraxis=dict(colorscale=COLOURS['diverging'], cmin=-100, cmax=100, colorbar=dict(
            title='WᵀW', y=.8, tickvals=[-100,0,100], ticktext=['−1','0','1'], **bar)),
        coloraxis2=_shared(colorbar=dict(title='shared', y=.25, tickvals=[0,1],
                                         ticktext=['0','≥1'], **bar)))


# %%
#| label: fig-models
#| fig-cap: Five features stored exactly, and twenty crowded into five dimensions at random
torch.manual_seed(0)
plot_models(torch.stack([torch.eye(20,5), torch.randn(20,5)*.4]), ['orthogonal','random'])

# %% [markdown]
# A figure with seven models of twenty features stays within a few kilobytes:

# %%
size = len(plot_models(torch.randn(7,20,5), range(7)).to_json())-len(go.Figure().to_json())
assert size < 25_000
size


# %% [markdown]
# One model at leisure: what is read where, the bias that is added, and how long and how shared each
# column is.

# %%
#| export
def plot_model(
    W:torch.Tensor, # [feature, hidden]
    b:torch.Tensor, # [feature]
)->go.Figure:
    "Gram matrix, bias and norms of one model"
    W = W.detach().cpu()
    b = b.detach().cpu()
    fig = make_subplots(1, 3, subplot_titles=['WᵀW','b','‖W‖'], column_widths=[.5,.25,.25],
                        horizontal_spacing=.04, shared_yaxes=True)
    fig.add_heatmap(z=_hundredths(W@W.mT), coloraxis='coloraxis', row=1, col=1,
                    hovertemplate='feature %{y} reads %{x}: %{z}/100<extra></extra>')
    y = list(range(len(b)))
    fig.add_bar(y=y, x=_round(b), orientation='h', row=1, col=2, marker_color=COLOURS['paper'],
                hovertemplate='feature %{y}: b = %{x}<extra></extra>')
    fig.add_bar(y=y, x=_round(W.norm(dim=-1)), orientation='h', row=1, col=3,
                marker=dict(color=_round(interference(W), 2), coloraxis='coloraxis2'),
                hovertemplate='feature %{y}: ‖W‖ = %{x}<extra></extra>')
    fig.update_xaxes(visible=False, row=1, col=1).update_yaxes(autorange='reversed')
    fig.update_yaxes(ticks='').update_yaxes(title='feature', row=1, col=1).update_xaxes(nticks=4)
    bar = dict(thickness=10, len=.45, tickfont=dict(size=11))
    return _titles(fig).update_layout(showlegend=False, bargap=.15, margin=dict(r=5, t=40, b=30),
        coloraxis=dict(colorscale=COLOURS['diverging'], cmin=-100, cmax=100, colorbar=dict(
            title='WᵀW', y=.78, tickvals=[-100,0,100], ticktext=['−1','0','1'], **bar)),
        coloraxis2=_shared(colorbar=dict(title='shared', y=.25, tickvals=[0,1],
                                         ticktext=['0','≥1'], **bar)))


# %%
#| label: fig-reading
#| fig-cap: A model that stores four features as two digons and one by itself, with a bias where it stores none
W = torch.block_diag(polygon(2), polygon(2), torch.ones(1,1), torch.zeros(3,1))
plot_model(W, torch.tensor([0.,0,0,0,0,.2,.2,.2]))


# %% [markdown]
# ## Capacity against sparsity
#
# A line with its intervals for each kind of model, over $1/p$ on a logarithmic axis.

# %%
#| export
def plot_capacity(
    density,     # [density]
    lines:dict,  # name -> list of `Estimate`; names 'linear' and 'relu' have the book's colours
    title='‖W‖²', # Vertical axis
    reference=None, # name and values to show in grey
)->go.Figure:
    "Estimates with intervals against sparsity"
    x = [round(1/p, 3) for p in density]
    fig = go.Figure()
    if reference:
        fig.add_scatter(x=x, y=_round(reference[1]), name=reference[0], mode='markers',
                        marker=dict(symbol='circle-open', size=13, color=COLOURS['paper']))
    for name,es in lines.items():
        v,lo,hi = (_round(t, 4) for t in np.transpose(es))
        colour = COLOURS.get(name, COLOURS['accent'])
        fig.add_scatter(x=x, y=v, name={'relu':'ReLU'}.get(name, name), mode='lines+markers',
            line=dict(color=colour), error_y=dict(type='data', symmetric=False, thickness=1.5,
            array=_round(np.subtract(hi, v), 4), arrayminus=_round(np.subtract(v, lo), 4)))
    fig.update_xaxes(type='log', title='sparsity 1/p', tickvals=x,
                     ticktext=[f'{v:,.0f}' if v>=10 else f'{v:.3g}' for v in x])
    return fig.update_yaxes(title=title, rangemode='tozero')


# %%
#| label: fig-capacity
#| fig-cap: How `plot_capacity` shows two kinds of model; the numbers are made up
plot_capacity([1,.1,.01], dict(linear=[(5,4.9,5.1)]*3, relu=[(5,4.9,5.1),(8,7.5,8.6),(12,11,13)]))


# %% [markdown]
# ## Losses
#
# Training curves, the median over models with the band from best to worst.

# %%
#| export
def plot_losses(
    logged,    # [logged step]
    lines:dict, # name -> loss [instance, logged step]
)->go.Figure:
    "Loss over training for groups of models"
    fig = go.Figure()
    x = list(map(int, logged))
    for i,(name,loss) in enumerate(lines.items()):
        colour = COLOURS['sequence'][i]
        low,mid,high = (_round(q, 5) for q in np.quantile(np.asarray(loss), [0,.5,1], axis=0))
        fig.add_scatter(x=x+x[::-1], y=high+low[::-1], fill='toself', fillcolor=colour, opacity=.2,
                        line=dict(width=0), hoverinfo='skip', showlegend=False)
        fig.add_scatter(x=x, y=mid, name=name, mode='lines', line=dict(color=colour))
    return fig.update_xaxes(title='step').update_yaxes(title='loss', type='log')


# %%
#| label: fig-losses
#| fig-cap: Median loss of eight models at each of two densities; bands run from best to worst
from moral_sc.superposition.model import ToyConfig
from moral_sc.superposition.training import train
cfg = ToyConfig(5, 2, 16, density=torch.tensor([1.,.1]).repeat_interleave(8)[:,None])
run = train(cfg, steps=600, lr=.01, batch_size=256, log_every=20)
plot_losses(run.logged, {'p = 1': run.loss[:8], 'p = 0.1': run.loss[8:]})


# %% [markdown]
# ## Any curves
#
# Most other figures of this section are a few quantities against one: losses of two solutions
# against a density, a gain against sparsity. Values may be bare, or carry an interval each,
# which becomes a bar or, on a long curve, a band. Up to four curves share a legend; more are
# named where they end.

# %%
#| export
def _digits(t, digits=4): return [float(f'{float(v):.{digits}g}') for v in t]

def _log_axis(values):
    "Ticks at 1, 2, 5, or at powers of ten alone if there are many"
    v = np.array([v for v in values if v>0])
    low = np.floor(np.log10(v.min()))
    high = np.ceil(np.log10(v.max()))
    ticks = [float(f'{m}e{int(k)}') for k in np.arange(low, high+1)
             for m in ((1,2,5) if high-low<3 else (1,))]
    return dict(type='log', tickvals=ticks, ticktext=[f'{t:,g}' for t in ticks])

def _interval(fig, x, low, high, colour, bars):
    "A band, or a bar for each of a few points"
    if bars: ys,xs = zip(low, high, [None]*len(x)),[v for a in x for v in (a,a,None)]
    else: ys,xs = [high+low[::-1]],x+x[::-1]
    look = dict(line=dict(color=colour, width=1.5)) if bars else dict(
        fill='toself', fillcolor=colour, opacity=.2, line=dict(width=0))
    fig.add_scatter(x=xs, y=[v for part in ys for v in part], mode='lines', hoverinfo='skip',
                    showlegend=False, **look)

def _guides(fig, marks, levels, logx, logy):
    "Dotted lines with their names: upright at `marks`, level at `levels`"
    at = lambda v, log: float(np.log10(v)) if log else v
    dots = dict(color=COLOURS['paper'], width=1, dash='dot')
    text = dict(showarrow=False, font=dict(size=12, color=COLOURS['paper']))
    for name,v in (marks or {}).items():
        fig.add_shape(type='line', x0=v, x1=v, y0=0, y1=1, yref='paper', line=dots)
        fig.add_annotation(x=at(v, logx), y=1, yref='paper', text=name, xanchor='left',
                           yanchor='top', xshift=3, **text)
    for name,v in (levels or {}).items():
        fig.add_shape(type='line', x0=0, x1=1, xref='paper', y0=v, y1=v, line=dots)
        fig.add_annotation(x=1, xref='paper', y=at(v, logy), text=name, xanchor='right',
                           yanchor='bottom', **text)

def plot_curves(
    x,            # [point]; or name -> [point] where curves have points of their own
    lines:dict,   # name -> values, or an `Estimate` for each point
    xtitle='', ytitle='',
    logx=False, logy=False,
    colours=None, # name -> colour; names in `COLOURS` have theirs
    dots=(),      # Names shown as points without a line
    marks=None,   # name -> x of an upright guide
    levels=None,  # name -> y of a level guide
    legend=None,  # None: a legend for up to four curves, names at the ends of more
)->go.Figure:
    "Curves with their intervals"
    fig = go.Figure()
    legend = len(lines)<=4 if legend is None else legend
    for i,(name,ys) in enumerate(lines.items()):
        xs = _digits(x[name] if isinstance(x, dict) else x)
        y = np.asarray([tuple(v) if isinstance(v, tuple) else (v,) for v in ys], np.float64).T
        colour = (colours or {}).get(name) or COLOURS.get(name) or COLOURS['sequence'][i%8]
        if len(y)==3: _interval(fig, xs, _digits(y[1]), _digits(y[2]), colour, len(xs)<=15)
        end = [f' {name}' if v==max(xs) else '' for v in xs]
        mode = 'markers' if name in dots else 'lines+markers' if len(xs)<=15 else 'lines'
        fig.add_scatter(x=xs, y=_digits(y[0]), name=name, line=dict(color=colour), text=end,
            textposition='middle right', textfont=dict(color=colour), cliponaxis=False,
            marker=dict(color=colour), mode=mode + ('' if legend else '+text'))
    _guides(fig, marks, levels, logx, logy)
    ends = lambda k: [v for t in fig.data for v in t[k] if v is not None]
    fig.update_xaxes(title=xtitle, **(_log_axis(ends('x')) if logx else {}))
    fig.update_yaxes(title=ytitle, **(_log_axis(ends('y')) if logy else {}))
    return fig.update_layout(showlegend=legend, margin_r=20 if legend else 110)


# %%
#| label: fig-curves
#| fig-cap: What `plot_curves` makes of two formulas, a few points with intervals, and guides
p = np.linspace(.05, 1, 50)
plot_curves({'one feature': p, 'two, antipodal': p, 'measured': [.2,.5,.8]},
            {'one feature': p/3-p**2/4, 'two, antipodal': p**2/3,
             'measured': [(.013,.01,.016), (.083,.075,.09), (.21,.2,.22)]},
            'density p', 'loss', dots=['measured'], marks={'p = 4/7': 4/7})
