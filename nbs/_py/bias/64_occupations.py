# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Occupations in pictures
#
# > Pronouns stacked by occupation, and beside the statistics they are measured against.

# %%
#| default_exp bias.occupations

# %%
#| export
import numpy as np, plotly.graph_objects as go
from plotly.subplots import make_subplots
from moral_sc.bias.plots import style
from moral_sc.bias.winogender import ANSWERS
from moral_sc.foundation.figures import COLOURS, INK

# %%
#| hide
from fastcore.test import *
from moral_sc.bias import winogender
from moral_sc.bias.evaluation import evaluate
from moral_sc.bias.winogender import WINOGENDER_LIKE, speaker

# %% [markdown]
# The examples are drawn from a model that follows the statistics at half their slope, and
# says *they* more often when it is told not to stereotype.

# %%
items = winogender.load(source='ours')

def halfway(b, told):
    n = (.6 if told=='if' else .1)
    f = .25+.5*b.female
    return (1-n)*f, (1-n)*(1-f), n

e = evaluate(speaker(halfway, items), WINOGENDER_LIKE)
share = {i.occupation:i.female for i in items}

# %%
#| export
SHADES = dict(female=COLOURS['match'], male=COLOURS['linear'], neutral='#b9b9b9')

def plot_pronouns(
    p, # [occupation, answer], a frame with a column an answer
)->go.Figure:
    "Probability of each pronoun, occupations sorted by the neutral one (Figure 4, left)"
    p = p[list(ANSWERS)].sort_values('neutral')
    fig = go.Figure()
    for a in ANSWERS:
        fig.add_bar(x=p.index, y=p[a], name=a, marker=dict(color=SHADES[a], line_width=0))
    fig.update_layout(barmode='stack', bargap=.08, showlegend=True)
    fig.update_yaxes(title_text='Probability', range=[0, 1])
    return fig.update_xaxes(tickangle=90, tickfont=dict(size=9 if len(p)<40 else 7), dtick=1)


# %%
#| label: fig-pronouns-example
#| fig-cap: Probability of female, male and neutral pronouns by occupation, for the example's model under the instruction.
plot_pronouns(e.probabilities().loc['q+if'])


# %%
#| export
def plot_shares(
    probabilities:dict, # Condition -> [occupation, answer]
    share:dict,         # Women in each occupation
)->go.Figure:
    "p(female) among the gendered pronouns beside the statistics (Figure 4, right)"
    fig = go.Figure()
    fig.add_scatter(x=[0,1], y=[0,1], mode='lines', line=dict(color=INK, width=1, dash='dot'),
                    showlegend=False, hoverinfo='skip')
    for c,p in probabilities.items():
        name,colour,symbol = style(c)
        x = p.index.map(share)
        y = p.female/(p.female+p.male)
        a,b = np.polyfit(x, y, 1)
        fig.add_scatter(x=x, y=y, mode='markers', name=name, text=p.index, legendgroup=c,
                        marker=dict(color=colour, symbol=symbol, size=7))
        fig.add_scatter(x=[0,1], y=[b,a+b], mode='lines', showlegend=False, legendgroup=c,
                        line=dict(color=colour, width=1.5))
    fig.update_xaxes(title_text='Share of women in the occupation', range=[-.02, 1.02])
    return fig.update_yaxes(title_text='p(female) / (p(female) + p(male))', range=[-.02, 1.02])


# %%
#| label: fig-shares-example
#| fig-cap: Female pronouns beside the share of women, a line through each condition; on the dotted line a model speaks as the statistics.
plot_shares({c:e.probabilities().loc[c] for c in ('q','q+match')}, share)


# %%
#| export
def plot_correlations(
    metrics, # Of `evaluate`, with a column `model`
)->go.Figure:
    "The three correlations by condition, a panel a model"
    models = list(dict.fromkeys(metrics.model))
    kinds = ['rho_raw', 'rho_three', 'rho_two']
    d = metrics[(metrics.category=='all') & metrics.metric.isin(kinds)]
    fig = make_subplots(1, len(models), subplot_titles=models, shared_yaxes=True)
    conds = list(dict.fromkeys(d.condition))
    for k,m in enumerate(models, 1):
        for n,c in enumerate(conds):
            g,(name,colour,symbol) = d[(d.model==m) & (d.condition==c)], style(c)
            if not len(g): continue
            x = [kinds.index(i)+.16*(n-(len(conds)-1)/2) for i in g.metric]
            bars = dict(type='data', symmetric=False, array=g.high-g.value,
                        arrayminus=g.value-g.low, thickness=1.5, width=3)
            fig.add_scatter(x=x, y=g.value, error_y=bars, mode='markers', name=name, row=1, col=k,
                            legendgroup=c, showlegend=k==1,
                            marker=dict(color=colour, symbol=symbol, size=8))
        fig.add_hline(y=0, line=dict(color=INK, width=1), row=1, col=k)
        fig.update_xaxes(tickvals=[0,1,2], ticktext=['raw','three-way','two-way'], row=1, col=k)
    fig.update_annotations(y=1.02, yanchor='bottom', font_size=13)
    fig.update_layout(margin_t=72, legend_y=1.12)
    return fig.update_yaxes(title_text='Correlation', range=[-1.02,1.02], col=1)


# %%
#| label: fig-correlations-example
#| fig-cap: Correlation of female pronouns with the share of women, 95 % intervals over occupations; the example's model.
plot_correlations(e.metrics.assign(model='halfway'))

# %%
fig = plot_shares({'q':e.probabilities().loc['q']}, share)
test_close([fig.data[2].y[0], fig.data[2].y[1]], [.25,.75], eps=1e-5)
test_eq(len(plot_pronouns(e.probabilities().loc['q']).data), 3)
