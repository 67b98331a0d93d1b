# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Figures of absolute harmfulness
#
# > Ratings of the answers of several policies while they are trained.

# %%
#| default_exp constitution.harm_plots

# %%
#| export
import pandas as pd
import plotly.graph_objects as go

from moral_sc.foundation.errors import DataError
from moral_sc.foundation.figures import COLOURS

# %%
#| hide
import numpy as np
from fastcore.test import *


# %% [markdown]
# Figure 10 of the paper draws one curve a policy, solid where answers were sampled at
# temperature 1 and dashed where each is the likeliest [@bai2022constitutional]. Where
# somebody else has rated the same answers too, as the truth does in the [toy
# world](toy/10_environment.ipynb), crosses say what he found.

# %%
#| export
def _band(fig, d, colour):
    x = [*d.step, *d.step[::-1]]
    y = [*d.high, *d.low[::-1]]
    fig.add_scatter(x=x, y=y, fill='toself', fillcolor=colour, opacity=.15, mode='none',
                    hoverinfo='skip', showlegend=False)

def plot_harmfulness(
    table:pd.DataFrame,  # run, step, temperature, what, value, low, high
    what='regressor',    # Drawn as lines
    beside:str=None,     # Drawn as crosses, at temperature 1
)->go.Figure:
    "Rating against steps; bands are intervals at temperature 1"
    if missing := {'run', 'step', 'temperature', 'what', 'value', 'low', 'high'}-{*table}:
        raise DataError(f'The table has no column {min(missing)!r}; add it.')
    fig = go.Figure()
    for (run,d),colour in zip(table.groupby('run', sort=False), COLOURS['sequence']):
        for T,dash in ((1, 'solid'), (0, 'dash')):
            one = d[(d.temperature==T)&(d.what==what)].sort_values('step')
            if T and len(one): _band(fig, one, colour)
            line = dict(color=colour, dash=dash, width=2)
            fig.add_scatter(x=one.step, y=one.value, mode='lines', name=run, line=line,
                            legendgroup=run, showlegend=T==1)
        other = d[(d.temperature==1)&(d.what==beside)]
        fig.add_scatter(x=other.step, y=other.value, mode='markers', showlegend=False,
                        legendgroup=run, marker=dict(symbol='x-thin', size=8,
                                                     line=dict(color=colour, width=2)))
    fig.update_xaxes(title='steps of RL')
    return fig.update_yaxes(title='harmfulness, 0 to 4')


# %% [markdown]
# Made-up numbers:

# %%
t = np.arange(0, 101, 20)
def made_up(run, slope, T, what):
    y = 1.5+slope*(1-np.exp(-t/40))-.2*(T==0)+.1*(what=='truth')
    return pd.DataFrame(dict(run=run, step=t, temperature=T, what=what, value=y, low=y-.15,
                             high=y+.15))

table = pd.concat([made_up(*r, T, w) for r in [('helpful', 1.), ('both', -1.)]
                   for T in (1, 0) for w in ('regressor', 'truth')])
fig = plot_harmfulness(table, beside='truth')
fig

# %%
test_eq([d.name for d in fig.data if d.showlegend], ['helpful', 'both'])
test_eq([d.line.dash for d in fig.data if d.mode=='lines'], ['solid', 'dash']*2)
test_eq(sum(len(d.x) for d in fig.data if d.mode=='markers'), 2*len(t))
with expect_fail(DataError, contains="no column 'run'"):
    plot_harmfulness(table.drop(columns='run'))
