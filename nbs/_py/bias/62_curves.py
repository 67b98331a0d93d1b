# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Figures over size and steps
#
# > A score against parameters, against training steps, and by category in small panels.

# %%
#| default_exp bias.curves

# %% [markdown]
# Each figure reads the table of a [sweep](50_sweep.ipynb). Conditions keep the colour and the
# mark that they have everywhere in the book; a family of models is joined by a line, and nothing
# else is, since a line between unrelated models would show a trend that nobody measured.

# %%
#| export
import numpy as np, pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from moral_sc.bias.bbq.scoring import OVERALL
from moral_sc.bias.plots import category as spelled, named, style
from moral_sc.foundation.errors import DataError
from moral_sc.foundation.figures import INK

# %%
#| hide
import tempfile
from fastcore.test import *
from moral_sc.bias import bbq
from moral_sc.bias.power import by_category
from moral_sc.bias.sweep import stand_ins, sweep

ours = bbq.load(source='ours')
table = sweep(stand_ins(ours), 'bbq-like', limit=48, out=tempfile.mkdtemp()).table


# %%
#| export
def chosen(
    table:pd.DataFrame,        # Of `sweep`
    metric:str,
    category:str|None=OVERALL, # None for all
    conditions=None,           # By default every plain one, without the differences
    benchmark:str|None=None,   # By default the first
)->pd.DataFrame:
    "The rows that a figure shows"
    b = benchmark or table.benchmark.iloc[0]
    d = table[(table.benchmark==b) & (table.metric==metric)]
    if category: d = d[d.category==category]
    plain = [c for c in dict.fromkeys(d.condition) if ' - ' not in c]
    d = d[d.condition.isin(list(conditions or plain))]
    if d.empty: raise DataError(f'No row of the table has metric {metric!r} of {b}.')
    return d

def last_step(
    table:pd.DataFrame,
)->pd.DataFrame:        # One step of each model, the last
    "Models as they are at the end of their training"
    last = table.groupby(['family','stage','parameters']).step.transform('max')
    return table[table.step.isna() | (table.step==last)]

def _line(fig, g, x, condition, legend, line=True, shift=0., **at):
    "Values and intervals of one condition"
    name,colour,symbol = style(condition.partition(' - ')[0])
    if ' - ' in condition: name += f' less {style(condition.partition(" - ")[2])[0]}'
    err = dict(type='data', symmetric=False, array=g.high-g.value,
               arrayminus=g.value-g.low, thickness=1.5, width=3)
    fig.add_scatter(x=shift(g[x].astype(float)) if callable(shift) else g[x], y=g.value,
        error_y=err, mode='lines+markers' if line else 'markers', name=name, text=g.model,
        hovertemplate='%{text}<br>%{y:.3f}', legendgroup=condition, showlegend=legend,
        line=dict(color=colour, width=1.5), marker=dict(color=colour, symbol=symbol, size=8),
        **at)

def _curves(fig, d, x, legend=True, spread=0., **at):
    "A line a condition and family; conditions stand `spread` decades apart"
    shown = list(dict.fromkeys(d.condition))
    for n,c in enumerate(shown):
        by = 10**(spread*(n-(len(shown)-1)/2))
        first = legend
        for _,g in d[d.condition==c].groupby(['family','stage'], sort=False):
            _line(fig, g.sort_values(x), x, c, first, len(g)>1, lambda v,by=by: v*by, **at)
            first = False

def _two_lines(metric): return named(metric).replace(', from', '<br>from')

def _score_axis(fig, metric, baseline=None, **at):
    zero = metric.startswith('bias') or metric.startswith('conditional')
    at_y = baseline if baseline is not None else 0 if zero else None
    if at_y is not None: fig.add_hline(y=at_y, line=dict(color=INK, width=1), **at)


# %%
#| export
def _log_ticks(n):
    "Sizes to write at a log axis that spans `n`; those of the models if they are few"
    if len(set(n))<5: return sorted(set(n)), [size_name(t) for t in sorted(set(n))]
    lo = np.floor(np.log10(min(n)))
    hi = np.ceil(np.log10(max(n)))
    ticks = [m*10**k for k in range(int(lo), int(hi)+1) for m in (1,2,5)]
    ticks = [t for t in ticks if min(n)/2.1<=t<=max(n)*2.1]
    if len(ticks)>6: ticks = [t for t in ticks if str(t)[0]=='1']
    return ticks, [size_name(t) for t in ticks]

def size_name(
    n:int,  # Parameters
)->str:
    "A number of parameters, short: 135M, 1.5B"
    unit,by = ('B',1e9) if n>=1e9 else ('M',1e6) if n>=1e6 else ('k',1e3)
    return f'{n/by:.3g}{unit}'

def plot_size(
    table:pd.DataFrame,             # Of `sweep`
    metric:str='bias_ambig_soft',
    baseline:float|None=None,       # A line across: what chance gives
    **kw,                           # category, conditions, benchmark: see `chosen`
)->go.Figure:
    "A score against the number of parameters, a mark a condition"
    d = last_step(chosen(table, metric, **kw))
    fig = go.Figure()
    _score_axis(fig, metric, baseline)
    _curves(fig, d, 'parameters', spread=.012*np.log10(max(d.parameters)/min(d.parameters)+10))
    ticks,text = _log_ticks(d.parameters)
    fig.update_xaxes(type='log', title_text='Parameters', tickvals=ticks, ticktext=text)
    fig.update_yaxes(title_text=_two_lines(metric))
    fig.update_layout(showlegend=True)
    return fig


# %%
#| label: fig-size-example
#| fig-cap: Bias of the stand-ins over the size they were given; the largest at its last step. Bars are 95% intervals that draw templates.
plot_size(table)

# %% [markdown]
# Of the largest there are three steps; over size it stands where its training ended.

# %%
d = last_step(chosen(table, 'bias_ambig_soft', conditions=['q']))
test_eq(d.step.dropna().tolist(), [1000])
test_eq(len(d), 4)
[size_name(n) for n in (134_515_008, 1_711_376_384, 70_553_706_496)]


# %%
#| export
def plot_steps(
    table:pd.DataFrame,             # Of `sweep`
    metric:str='bias_ambig_soft',
    baseline:float|None=None,
    **kw,                           # category, conditions, benchmark: see `chosen`
)->go.Figure:
    "A score against training steps, a line a condition and model"
    d = chosen(table, metric, **kw)
    d = d[d.step.notna()]
    if d.empty: raise DataError('No model of the table says at which step of its training '
                                'it was taken.')
    fig = go.Figure()
    _score_axis(fig, metric, baseline)
    _curves(fig, d.assign(family=d.family+d.parameters.astype(str)), 'step')
    fig.update_xaxes(title_text='Training steps', rangemode='tozero')
    fig.update_yaxes(title_text=_two_lines(metric))
    fig.update_layout(showlegend=True)
    return fig


# %%
#| label: fig-steps-example
#| fig-cap: The largest stand-in over the steps it was given. Bars are 95% intervals that draw templates.
plot_steps(table)

# %%
with expect_fail(DataError, contains='at which step'): plot_steps(table[table.step.isna()])
with expect_fail(DataError, contains="metric 'bais'"): plot_size(table, 'bais')


# %% [markdown]
# Categories stand in panels with one scale, all questions first.

# %%
#| export
def plot_panels(
    table:pd.DataFrame,             # Of `sweep`
    metric:str='bias_ambig_soft',
    columns:int=3,
    **kw,                           # conditions, benchmark: see `chosen`
)->go.Figure:
    "A score against size, a panel a category"
    d = last_step(chosen(table, metric, None, **kw))
    names = sorted(dict.fromkeys(d.category), key=lambda c: c!=OVERALL)
    rows = -(-len(names)//columns)
    fig = make_subplots(rows, columns, shared_yaxes='all', shared_xaxes='all',
                        subplot_titles=[spelled(c) for c in names],
                        horizontal_spacing=.03, vertical_spacing=.22/rows)
    for n,c in enumerate(names):
        at = dict(row=n//columns+1, col=n%columns+1)
        _score_axis(fig, metric, **at)
        _curves(fig, d[d.category==c], 'parameters', n==0, .05, **at)
    ticks,text = _log_ticks(d.parameters)
    k = 1+(len(ticks)>3)
    fig.update_xaxes(type='log', tickvals=ticks[::k], ticktext=text[::k], matches='x')
    for n in range(max(0, len(names)-columns), len(names)): # The lowest of each column
        fig.update_xaxes(showticklabels=True, row=n//columns+1, col=n%columns+1)
    fig.update_annotations(font_size=12)
    fig.update_yaxes(title_text=_two_lines(metric), row=(rows+1)//2, col=1)
    fig.update_layout(showlegend=True, height=140+150*rows, margin_t=60, legend_y=1+.3/rows)
    return fig


# %%
#| label: fig-panels-example
#| fig-cap: Bias of the stand-ins over size by category of our own questions; they were made to lean half as far in one of them. Bars are 95% intervals that draw templates.
plot_panels(table)


# %% [markdown]
# Changes have a figure of their own, in which one look tells the categories in which a model
# was seen to change. Its marks are filled where the change survives
# [Holm's adjustment](34_power.ipynb) over the categories and hollow where it does not.

# %%
#| export
def plot_changes(
    changes:pd.DataFrame, # Of `by_category`, for one metric
    level:float=.05,
)->go.Figure:
    "Change of a score by category, a colour a model"
    from moral_sc.foundation.figures import COLOURS
    fig = go.Figure()
    models = list(dict.fromkeys(changes.model))
    cats = list(dict.fromkeys(changes.category))[::-1]
    for n,m in enumerate(models):
        g = changes[changes.model==m]
        colour = COLOURS['sequence'][(n+4)%8]
        y = g.category.map(cats.index) + .2*((len(models)-1)/2-n)
        err = dict(type='data', symmetric=False, array=g.high-g.value,
                   arrayminus=g.value-g.low, thickness=1.5, width=3)
        symbol = np.where(g.adjusted<level, 'circle', 'circle-open')
        fig.add_scatter(x=g.value, y=y, error_x=err, mode='markers', name=m,
                        marker=dict(color=colour, symbol=symbol, size=8))
    fig.add_vline(x=0, line=dict(color=INK, width=1))
    fig.update_yaxes(tickvals=list(range(len(cats))), showgrid=False, zeroline=False,
                     ticktext=[spelled(c) for c in cats])
    fig.update_xaxes(title_text='Change: '+named(changes.metric.iloc[0]), showgrid=True)
    fig.update_layout(showlegend=True)
    return fig


# %%
#| label: fig-changes-example
#| fig-cap: What the instruction changed in two of the stand-ins, by category; bars are 95% intervals of the paired difference. Filled marks remain after Holm's adjustment.
two = table[table.model.isin(['stand-in-1e09','stand-in-1e10'])]
plot_changes(by_category(two))
