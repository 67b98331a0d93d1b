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
# > These figures show weight matrices, curves with intervals, and phase diagrams.

# %%
#| default_exp superposition.plots

# %%
#| export
import numpy as np, pandas as pd, plotly.graph_objects as go, torch
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots
from moral_sc.foundation.arguments import checked
from moral_sc.foundation.errors import ConfigError
from moral_sc.foundation.figures import COLOURS
from moral_sc.foundation.tables import check_columns
from moral_sc.superposition.features import expand
from moral_sc.superposition.geometry import check_one_model, interference, align_to_axes
from moral_sc.superposition.model import weights_of

# %%
#| hide
from fastcore.test import *
from moral_sc.foundation.errors import DataError
from moral_sc.superposition.geometry import polygon
from moral_sc.superposition.phase_diagram import logspace, phase_grid, predict_grid


# %% [markdown]
# Each function takes tensors or tables and returns a figure. Values are rounded to what is visible,
# so that a page with a dozen Gram matrices stays small. Figures of polytopes and of feature
# dimensionality are in [geometry plots](62_geometry_plots.ipynb).
#
# ## Columns in the plane
#
# A model with two hidden dimensions is shown by the columns of $W$. The colour is the importance,
# and the circle has radius one. Every model is first [aligned to the axes](50_geometry.ipynb),
# since its rotation is arbitrary.

# %%
#| export
def _round(t, digits=3): return np.round(np.asarray(t, np.float64), digits).tolist()

def _set_title_size(fig, size=12): return fig.update_annotations(font_size=size)

def _models(W):
    W = weights_of(W).detach().cpu()
    return W[None] if W.ndim==2 else W

def _titles(titles, W):
    if titles is None: return [str(i) for i in range(len(W))]
    titles = [str(t) for t in titles]
    if len(titles)==len(W): return titles
    raise ConfigError(f'{len(titles)} titles are given for {len(W)} models: give one for each.')

@checked
def plot_columns(
    W:torch.Tensor, # [model, feature, 2], or a run
    importance,     # [feature]
    titles=None,    # One for each model; default: their numbers
)->go.Figure:
    "Plot the columns of W of several models side by side"
    W = _models(W)
    titles = _titles(titles, W)
    if W.shape[-1]!=2: raise ConfigError(f'plot_columns needs two hidden dimensions, not '
                                         f'{W.shape[-1]}: use plot_models.')
    W = align_to_axes(W).cpu().numpy()
    imp = expand(importance, 1, W.shape[1], 'importance')[0].numpy()
    low = .85*imp.min()
    high = 1.1*imp.max()
    colours = sample_colorscale('Plasma', (imp-low)/(high-low+1e-9))
    r = max(1.25, 1.1*float(np.abs(W).max()))
    fig = make_subplots(1, len(W), subplot_titles=titles, horizontal_spacing=.02)
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
    return _set_title_size(fig).update_layout(showlegend=False, height=300,
        margin=dict(l=5, r=5, t=62, b=5), coloraxis=dict(colorscale='Plasma', cmin=low, cmax=high,
        showscale=bool(imp.max()>imp.min()), # One colour needs no scale
        colorbar=dict(title='importance', thickness=10, len=.8, tickvals=sorted({*ticks}))))


# %%
#| label: fig-plane
#| fig-cap: Three shapes that five features can take in two dimensions
W = torch.stack([torch.cat([polygon(k), torch.zeros(5-k,2)]) for k in (3,4,5)])
plot_columns(W, [.9**i for i in range(5)], ['triangle','two antipodal pairs','pentagon'])


# %% [markdown]
# ## Whole models
#
# For larger models the paper shows $W^\top W$ above the norms of the columns, coloured by
# interference: blue features have their own direction, red features share it. Entries are stored as
# whole hundredths.

# %%
#| export
def _hundredths(t): return (100*torch.as_tensor(t)).round().clamp(-127,127).to(torch.int8).numpy()

def _gram_layout(fig, y, length):
    "Add the scales of Gram matrices and of norms: blue for an own direction, red for a shared one"
    bar = dict(thickness=10, len=length, tickfont=dict(size=11))
    return _set_title_size(fig).update_layout(
        showlegend=False, bargap=.15, coloraxis=dict(
            colorscale=COLOURS['diverging'], cmin=-100, cmax=100, colorbar=dict(
                title='WᵀW', y=y, tickvals=[-100,0,100], ticktext=['−1','0','1'], **bar)),
        coloraxis2=dict(
            colorscale=[[0,'#2166ac'],[.5,'#8a7fb0'],[1,'#b2182b']], cmin=0, cmax=1,
            colorbar=dict(title='shared', y=.25, tickvals=[0,1], ticktext=['0','≥1'], **bar)))

@checked
def plot_models(
    W:torch.Tensor,  # [model, feature, hidden], or a run
    titles=None,     # One for each model; default: their numbers
)->go.Figure:
    "Plot Gram matrices above norms coloured by interference"
    W = _models(W)
    titles = _titles(titles, W)
    k = len(W)
    n = W.shape[1]
    fig = make_subplots(2, k, subplot_titles=titles, vertical_spacing=.05,
                        horizontal_spacing=.012, row_heights=[.45,.55])
    for c,w in enumerate(W, 1):
        fig.add_heatmap(z=_hundredths(w@w.T), coloraxis='coloraxis', row=1, col=c,
            hovertemplate='feature %{y} reads %{x}: %{z}/100<extra></extra>')
        fig.add_bar(y=list(range(n)), x=_round(w.norm(dim=-1), 2), orientation='h', row=2, col=c,
            marker=dict(color=_round(interference(w), 2), coloraxis='coloraxis2',
                        line=dict(width=0)),
            hovertemplate='feature %{y}: |W| = %{x}<extra></extra>')
    top = 1.05*float(W.norm(dim=-1).max())
    fig.update_xaxes(visible=False).update_yaxes(visible=False, autorange='reversed')
    fig.update_xaxes(range=[0,top], row=2)
    return _gram_layout(fig, .8, .42).update_layout(margin=dict(l=5, r=5, t=40, b=5))


# %%
#| label: fig-models
#| fig-cap: Five features stored exactly, and twenty crowded into five dimensions at random
torch.manual_seed(0)
plot_models(torch.stack([torch.eye(20,5), torch.randn(20,5)*.4]), ['orthogonal','random'])

# %% [markdown]
# A figure of seven models with twenty features takes a few kilobytes:

# %%
size = len(plot_models(torch.randn(7,20,5), range(7)).to_json())-len(go.Figure().to_json())
assert size < 25_000
size


# %% [markdown]
# One model in detail: the Gram matrix, the bias, and the length and interference of each column.

# %%
#| export
@checked
def plot_model(
    W:torch.Tensor, # [feature, hidden]
    b:torch.Tensor, # [feature]
)->go.Figure:
    "Plot Gram matrix, bias and norms of one model"
    W = weights_of(W).detach().cpu()
    check_one_model(W)
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
    return _gram_layout(fig, .78, .45).update_layout(margin=dict(r=5, t=40, b=30))


# %%
#| label: fig-reading
#| fig-cap: A model that stores four features as two digons and one by itself, with a bias where it stores none
W = torch.block_diag(polygon(2), polygon(2), torch.ones(1,1), torch.zeros(3,1))
plot_model(W, torch.tensor([0.,0,0,0,0,.2,.2,.2]))


# %% [markdown]
# ## Capacity against sparsity
#
# One line with intervals for each kind of model, over $1/p$ on a logarithmic axis.

# %%
#| export
@checked
def plot_capacity(
    density,        # [density]
    lines:dict,     # name -> list of `Estimate`; 'linear' and 'relu' have fixed colours
    title='‖W‖²',   # Vertical axis
    reference=None, # Name and values to show in grey
)->go.Figure:
    "Plot estimates with intervals against sparsity"
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
#| fig-cap: Two kinds of model (made-up numbers)
plot_capacity([1,.1,.01], dict(linear=[(5,4.9,5.1)]*3, relu=[(5,4.9,5.1),(8,7.5,8.6),(12,11,13)]))


# %% [markdown]
# ## Curves
#
# Most other figures of the paper pages show a few quantities against one variable. Values may have
# an interval each, which is drawn as a bar or, on a long curve, as a band. Up to four curves share
# a legend; if there are more, their names are written at their ends.

# %%
#| export
def _digits(t, digits=4): return [float(f'{float(v):.{digits}g}') for v in t]

def _log_axis(values):
    "Return ticks at 1, 2, 5, or only at powers of ten if there are many"
    v = np.array([v for v in values if v>0])
    low = np.floor(np.log10(v.min()))
    high = np.ceil(np.log10(v.max()))
    ticks = [float(f'{m}e{int(k)}') for k in np.arange(low, high+1)
             for m in ((1,2,5) if high-low<3 else (1,))]
    return dict(type='log', tickvals=ticks, ticktext=[f'{t:,g}' for t in ticks])

def _interval(fig, x, low, high, colour, bars):
    "Draw a band, or a bar for each of a few points"
    if bars:
        ys = zip(low, high, [None]*len(x))
        xs = [v for a in x for v in (a,a,None)]
    else:
        ys = [high+low[::-1]]
        xs = x+x[::-1]
    style = dict(line=dict(color=colour, width=1.5)) if bars else dict(
        fill='toself', fillcolor=colour, opacity=.2, line=dict(width=0))
    fig.add_scatter(x=xs, y=[v for part in ys for v in part], mode='lines', hoverinfo='skip',
                    showlegend=False, **style)

def _guides(fig, marks, levels, logx, logy, side):
    "Draw dotted lines with names: vertical at `marks`, horizontal at `levels`"
    position = lambda v, log: float(np.log10(v)) if log else v
    dots = dict(color=COLOURS['paper'], width=1, dash='dot')
    text = dict(showarrow=False, font=dict(size=12, color=COLOURS['paper']))
    for name,v in (marks or {}).items():
        fig.add_shape(type='line', x0=v, x1=v, y0=0, y1=1, yref='paper', line=dots)
        fig.add_annotation(x=position(v, logx), y=1, yref='paper', text=name, xanchor='left',
                           yanchor='top', xshift=3, **text)
    for name,v in (levels or {}).items():
        fig.add_shape(type='line', x0=0, x1=1, xref='paper', y0=v, y1=v, line=dots)
        fig.add_annotation(x=int(side=='right'), xref='paper', y=position(v, logy), text=name,
                           xanchor=side, yanchor='bottom', **text)

@checked
def plot_curves(
    x,            # [point]; or name -> [point] where curves have points of their own
    lines:dict,   # name -> values, or an `Estimate` for each point
    xtitle='', ytitle='',
    logx=False, logy=False,
    colours=None, # name -> colour; names in `COLOURS` have theirs
    dots=(),      # Names shown as points without a line
    dashed=(),    # Names drawn as dashed lines, so that a curve beneath can be seen
    marks=None,   # name -> x of a vertical guide
    levels=None,  # name -> y of a horizontal guide
    level_side='right', # End at which the names of levels stand: 'left' or 'right'
    legend=None,  # None: a legend for up to four curves, names at the ends of more
)->go.Figure:
    "Plot curves with their intervals"
    fig = go.Figure()
    legend = len(lines)<=4 if legend is None else legend
    for i,(name,ys) in enumerate(lines.items()):
        xs = _digits(x[name] if isinstance(x, dict) else x)
        y = np.asarray([tuple(v) if isinstance(v, tuple) else (v,) for v in ys], np.float64).T
        colour = (colours or {}).get(name) or COLOURS.get(name) or COLOURS['sequence'][i%8]
        if len(y)==3: _interval(fig, xs, _digits(y[1]), _digits(y[2]), colour, len(xs)<=15)
        end = [f' {name}' if v==max(xs) else '' for v in xs]
        mode = 'markers' if name in dots else 'lines+markers' if len(xs)<=15 else 'lines'
        line = dict(color=colour, dash='dash') if name in dashed else dict(color=colour)
        fig.add_scatter(x=xs, y=_digits(y[0]), name=name, line=line, text=end,
            textposition='middle right', textfont=dict(color=colour), cliponaxis=False,
            marker=dict(color=colour), mode=mode + ('' if legend else '+text'))
    _guides(fig, marks, levels, logx, logy, level_side)
    ends = lambda k: [v for t in fig.data for v in t[k] if v is not None]
    fig.update_xaxes(title=xtitle, **(_log_axis(ends('x')) if logx else {}))
    fig.update_yaxes(title=ytitle, **(_log_axis(ends('y')) if logy else {}))
    return fig.update_layout(showlegend=legend, margin_r=20 if legend else 110)


# %%
#| label: fig-curves
#| fig-cap: Two formulas, a few points with intervals, and a guide
p = np.linspace(.05, 1, 50)
plot_curves({'one feature': p, 'two, antipodal': p, 'measured': [.2,.5,.8]},
            {'one feature': p/3-p**2/4, 'two, antipodal': p**2/3,
             'measured': [(.013,.01,.016), (.083,.075,.09), (.21,.2,.22)]},
            'density p', 'loss', dots=['measured'], marks={'p = 4/7': 4/7})


# %% [markdown]
# ## Phase diagrams
#
# A phase diagram has two numbers at each point: the length of the last feature's column, and how
# much other features use its direction. As in the paper, two dimensions of colour show them: white
# features are ignored, blue features have their own dimension, red features share one, and paler
# means shorter. The two numbers are stored as one of 64 shades.

# %%
#| export
def _shades(levels=8):
    "Return a colour scale of steps, by interference and then by length"
    blue,red,white = (np.array(c) for c in ((33,102,172), (178,24,43), (247,247,247)))
    rgb = [white+(blue+(red-blue)*s-white)*n for s in np.linspace(0, 1, levels)
           for n in np.linspace(0, 1, levels)]
    edge = np.linspace(0, 1, levels**2+1).round(5).tolist()
    return [[e,f'rgb({",".join(str(int(v)) for v in c)})'] for i,c in enumerate(rgb)
            for e in edge[i:i+2]]

def shade(
    norm, shared, # Arrays of one shape
    levels=8,
)->np.ndarray:    # Same shape, int8: index of a shade
    "Combine length and interference into one number"
    level = lambda v: (np.clip(np.nan_to_num(v), 0, 1)*(levels-1)).round()
    return (level(shared)*levels + level(norm)).astype(np.int8)

_legend = {'ignored': 'rgb(247,247,247)', 'own dimension': 'rgb(33,102,172)',
          'shared': 'rgb(178,24,43)'}

def _ticks(v):
    v = [10.**k for k in range(-4, 5) if min(v)*.99 <= 10.**k <= max(v)*1.01]
    return dict(tickvals=np.log10(v).tolist(), ticktext=[f'{t:g}' for t in v])

@checked
def plot_phases(
    tables,      # Table with density, importance, norm, shared; or title -> table
    lines=None,  # name -> importance and density along a boundary
    xtitle='importance of the last feature',
)->go.Figure:
    "Plot phase diagrams side by side"
    if isinstance(tables, pd.DataFrame): tables = {'': tables}
    columns = ['density', 'importance', 'norm', 'shared']
    for t in tables.values(): check_columns(t, columns, 'the table of phase_diagram')
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
    for word,colour in _legend.items():
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
#| fig-cap: Prediction of three simple solutions for two features in one dimension, and the lines where the antipodal pair ties with each of the others
predicted = predict_grid(phase_grid(2, 1, logspace(1, .01, 31), logspace(.1, 10, 31)))
p = np.linspace(.025, 4/7, 40); tie = 2*p/(4-5*p)
visible = tie>=.1
tie = tie[visible]
p = p[visible]
plot_phases({'theory': predicted}, {'ties': (np.r_[tie,1/tie[::-1]], np.r_[p,p[::-1]])})

# %% [markdown]
# Eight levels of each number keep the three regions apart and the figure small:

# %%
test_eq(shade(np.array([0,1,1]), np.array([0,0,1])).tolist(), [0,7,63])
test_eq(len(plot_phases(predicted).data), len(plot_phases({'theory': predicted}).data))
with expect_fail(DataError, contains="no column 'shared'"):
    plot_phases(predicted.drop(columns='shared'))
with expect_fail(ConfigError, contains='2 titles are given for 1 models'):
    plot_models(torch.eye(3), ['a', 'b'])
with expect_fail(ConfigError, contains='use plot_models'): plot_columns(torch.eye(3), [1]*3)
with expect_fail(ConfigError, contains='importance has shape'): plot_columns(torch.eye(2), [1]*3)
scales = [plot_columns(torch.eye(2), i).layout.coloraxis.showscale for i in ([1,1], [1,.5])]
test_eq(scales, [False,True])
with expect_fail(ConfigError, contains='give one model'):
    plot_model(torch.ones(2,3,3), torch.ones(3))
len(plot_phases({'theory': predicted}).to_json())


# %% [markdown]
# ## Losses of competing solutions
#
# The losses of competing solutions are drawn as curves, and trained models as points. Where two
# curves cross, the better solution changes.

# %%
#| export
def curve_crossing(
    x, a, b, # Two curves over the same points
)->float:
    "Return where `a` and `b` cross, by interpolation in log x; NaN if they do not"
    d = np.log(np.asarray(a)/np.asarray(b))
    crossings = np.flatnonzero(np.diff(np.sign(d)))
    if not len(crossings): return np.nan
    k = crossings[0]
    w = d[k]/(d[k]-d[k+1])
    return float(np.exp((1-w)*np.log(x[k]) + w*np.log(x[k+1])))

@checked
def plot_solution_losses(
    x,               # [point]
    lines:dict,      # name -> loss of a solution at each point
    points=None,     # name -> x and loss of trained models
    marks=None,      # name -> x of a vertical line
    xtitle='density of the varied feature, relative to the others',
    ytitle='loss',
)->go.Figure:
    "Plot losses of competing solutions, and those of trained models"
    fig = go.Figure()
    for (name,ys),colour in zip(lines.items(), ('q','relu','accent'), strict=False):
        fig.add_scatter(x=np.round(x, 4), y=np.round(ys, 7), name=name, line_color=COLOURS[colour])
    for (name,(xs,ys)),colour in zip((points or {}).items(), ('q','relu','paper'), strict=False):
        fig.add_scatter(x=np.round(xs, 4), y=np.round(ys, 7), name=name, mode='markers',
            marker=dict(size=6, symbol='circle-open', color=COLOURS[colour]))
    for i,(name,v) in enumerate((marks or {}).items()):
        fig.add_shape(type='line', x0=v, x1=v, y0=0, y1=1, yref='paper',
                      line=dict(color=COLOURS['paper'], width=1, dash='dot'))
        fig.add_annotation(x=np.log10(v), y=.97-.09*i, yref='paper', text=name, showarrow=False,
                           xanchor='left' if i else 'right', xshift=4 if i else -4,
                           font=dict(size=12, color=COLOURS['paper']))
    ticks = [v for v in (.05,.1,.2,.5,1,2,5,10,20) if min(x)<=v<=max(x)]
    return fig.update_xaxes(type='log', title=xtitle, tickvals=ticks,
                            ticktext=[f'{t:g}' for t in ticks]).update_yaxes(title=ytitle)


# %%
#| label: fig-branches
#| fig-cap: Two made-up losses that cross
x = logspace(.1, 1, 20)
crossing = curve_crossing(x, .004+.005*x, .001+.016*x)
test_close(crossing, 3/11, eps=1e-3)
plot_solution_losses(x, dict(pentagon=.004+.005*x, digons=.001+.016*x),
                     marks={f'{crossing:.3f}': crossing})
