# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Figures of revisions
#
# > Means with intervals, in panels side by side, against whatever was varied.

# %%
#| default_exp constitution.revision_plots

# %%
#| export
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from moral_sc.foundation.errors import DataError
from moral_sc.foundation.figures import COLOURS

# %%
#| hide
from fastcore.test import *

# %% [markdown]
# Figures 5 to 7 of the paper are of one kind: a few means against the number of revisions,
# the number of principles, or the size of the model [@bai2022constitutional]. They are drawn
# from one long table, a row a point. Panels have axes of their own, because scores of
# different judges have no common unit. A revision with a critique has the colour of a chain
# of thought and a direct one that of a plain question, as [in the other figures of
# revisions](70_plots.ipynb).

# %%
#| export
_shades = {'critique': 'cot', 'direct': 'q'}

def _line(fig, d, name, colour, legend, col):
    bars = dict(type='data', array=d.high-d.value, arrayminus=d.value-d.low, width=4,
                symmetric=False, thickness=1.2)
    fig.add_scatter(x=d.x, y=d.value, error_y=bars, name=name, mode='lines+markers',
                    line_color=colour, legendgroup=name, showlegend=legend, row=1, col=col)

def plot_means(
    table:pd.DataFrame, # panel, name, x, value, low, high
    x:str='revisions',  # Title of what was varied
    y:str='',           # Title of the first panel's values
    join:bool=True,     # False: points only, where `x` has no order
)->go.Figure:
    "Means against what was varied, a panel a measure and a line a name"
    if missing := {'panel', 'name', 'x', 'value', 'low', 'high'}-{*table}:
        raise DataError(f'The table has no column {min(missing)!r}; add it.')
    panels = [*table.panel.unique()]
    names = [*table.name.unique()]
    fig = make_subplots(1, len(panels), subplot_titles=panels, horizontal_spacing=.11)
    for (panel,name),d in table.groupby(['panel', 'name'], sort=False):
        i = names.index(name)
        colour = COLOURS[_shades[name]] if name in _shades else COLOURS['sequence'][i]
        first = panel==table[table.name==name].panel.iloc[0]
        _line(fig, d, name, colour, first and len(names)>1, panels.index(panel)+1)
    if not join: fig.update_traces(mode='markers', marker_size=8)
    fig.update_annotations(font_size=12)
    fig.update_xaxes(title=x, type='category' if table.x.dtype==object else None)
    return fig.update_yaxes(title=y, col=1).update_layout(
        margin_t=70 if len(names)>1 else 40, legend_y=1.1)


# %% [markdown]
# Made-up numbers:

# %%
rows = [dict(panel=p, name=n, x=k, value=s*(1-.6**k), low=s*(1-.6**k)-.1,
             high=s*(1-.6**k)+.1) for p,n,s in [('judge', 'harmless', 1.), ('judge', 'help', -.5),
             ('truth', 'harmless', 2.)] for k in range(5)]
fig = plot_means(pd.DataFrame(rows), y='score')
fig

# %%
test_eq([d.name for d in fig.data if d.showlegend], ['harmless', 'help'])
test_eq(len({d.yaxis for d in fig.data}), 2)
test_eq({d.mode for d in plot_means(pd.DataFrame(rows), join=False).data}, {'markers'})
same, = {d.line.color for d in fig.data if d.name=='harmless'}
asked = pd.DataFrame(rows[:2]).assign(name=['critique', 'direct'], x=['tiny', 'small'])
test_eq([d.line.color for d in plot_means(asked).data], [COLOURS['cot'], COLOURS['q']])
with expect_fail(DataError, contains="no column 'name'"):
    plot_means(pd.DataFrame(rows).drop(columns='name'))
