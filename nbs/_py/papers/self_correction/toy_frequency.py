# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Instruction frequency in a toy language: at one tenth none is followed
#
# > Where a tenth of the questions is instructed no size follows; at half, two sizes of three do.

# %% tags=["parameters"]
scale = 'quick'  # quick: tiny, seconds; cpu: three sizes at three shares; gpu: more of both
seed = 0         # of the questions; trainings have seeds of their own

# %%
#| hide
from dataclasses import replace
import numpy as np, pandas as pd
import plotly.graph_objects as go
from moral_sc.bias.toy.environment import ToyLanguage
from moral_sc.bias.toy.ladder import (Ladder, by_size, evaluate_ladder, select_metric, slope,
                                      train_ladder)
from moral_sc.bias.toy.plots import add_curve, size_of
from moral_sc.foundation.figures import COLOURS
from moral_sc.foundation.statistics import t_interval
from moral_sc.lab.claims import as_measurement, record
from moral_sc.lab.paths import work_dir
from moral_sc.lab.scales import at_scale

# %%
size = at_scale(scale,
    quick=dict(widths=[4, 8], seeds=[0, 1], shares=[.1, .5], ladder=Ladder(
        ToyLanguage(categories=2, traits=2), documents=256, epochs=1, together=2)),
    cpu=dict(widths=[12, 16, 24], seeds=[0, 1, 2], shares=[.1, .25, .5], ladder=Ladder()),
    gpu=dict(widths=[8, 16, 32, 64, 128], seeds=range(6), shares=[.02, .05, .1, .2, .5],
             ladder=Ladder(documents=128_000)),
)
def table_at(share):
    "Train and evaluate the models of one share of instructed questions"
    ladder = replace(size['ladder'], language=replace(size['ladder'].language, instructed=share))
    same = share==size['ladder'].language.instructed # The models of the page on size
    name = 'toy-ladder' if same else f'toy-frequency-{share}'
    settings = dict(widths=size['widths'], seeds=size['seeds'], ladder=ladder,
                    out=work_dir(f'{name}-{scale}-{seed}'))
    train_ladder(**settings)
    return evaluate_ladder(letters=(), **settings)

tables = {share: table_at(share) for share in size['shares']}
parameters = size_of(next(iter(tables.values())))


# %% [markdown]
# ## Size and frequency
#
# > Both the ability to follow instructions and the knowledge of stereotypes are named as reasons
# > for the emergence of self-correction with size [@ganguli2023].
#
# In the [toy language](../../bias/toy/10_environment.ipynb) the share of questions that carry an
# instruction can be varied. Following is measured on ambiguous questions as the probability of
# "unknown" under the instruction to be fair less the one under its opposite, which consists of the
# same words in other pairs. It is 1 for an ideal reader and 0 for a model that reads single words.

# %%
def following(table):
    unknown = {c: select_metric(table, c, 'accuracy_ambig_soft') for c in ('q+if', 'q+anti')}
    return unknown['q+if']-unknown['q+anti']


# %%
#| label: fig-following
#| fig-cap: Instruction following against size, for three shares of questions with an instruction. Bars are 95 % intervals over trainings.
fig = go.Figure()
for share,colour in zip(tables, COLOURS['sequence']):
    add_curve(fig, following(tables[share]), parameters, f'{share:.0%} instructed', colour)
fig.update_xaxes(type='log', title_text='Parameters')
fig.update_yaxes(title_text='Following: p(unknown), Q+IF less Q+anti')
fig

# %%
#| label: fig-phase
#| fig-cap: Mean following by size and by the share of questions with an instruction.
grid = pd.DataFrame({s: by_size(following(t)).value for s,t in tables.items()}).T
fig = go.Figure(go.Heatmap(z=grid.to_numpy(), x=[f'{parameters[w]:,}' for w in grid.columns],
                           y=[f'{s:.0%}' for s in grid.index], zmin=-.1, zmax=1,
                           colorscale='Blues', texttemplate='%{z:.2f}', colorbar_title='following'))
fig.update_xaxes(title_text='Parameters')
fig.update_yaxes(title_text='Questions with an instruction')
fig

# %% [markdown]
# Where a tenth of the questions carries an instruction, following is within 0.03 of zero at every
# size. At a quarter it is 0.28 at 9,456 parameters and nearly zero at 19,176; at one half it is 0.63
# and 0.53. Three seeds differ too much
# for a verdict: some models follow fully, and others not at all.
#
# Bias under the plain question, and its change by the instruction, at each share:

# %%
rows = {}
for share,t in tables.items():
    q,instructed = (select_metric(t, c) for c in ('q', 'q+if'))
    evidence = select_metric(t, 'q', 'accuracy_disambig')
    rows[f'{share:.0%}'] = {f'{name} {parameters[w]:,}': v[w].mean() for name,v in
        (('Q', q), ('Q+IF - Q', instructed-q), ('evidence', evidence)) for w in size['widths']}
pd.DataFrame(rows).T.round(3)

# %% [markdown]
# ## What was put in and what came out
#
# Put in: the share of questions with an instruction. All languages have the same stereotypes for a
# seed, and all models see the same number of documents, so that rarer instructions leave more
# documents without one. Came out: from which size on pairs of words that occur in no document are
# followed. An n-gram model follows none of them at any share, and an ideal reader all of them.
#
# ## What this does not show
#
# Three sizes and three shares give no law of how the onset depends on both, and the number of
# training steps is the same everywhere: a rare instruction may need more steps, not more weights.
#
# ## Claims
#
# The criteria are in `data/claims/self_correction_toy.toml`.

# %%
low,high = (tables[s] for s in (size['shares'][0], size['shares'][-1]))
gain = (following(high)-following(low)).sum(axis=1)
n = [parameters[w] for w in size['widths']]
estimates = {'frequency-moves-onset': t_interval(gain),
             'bias-needs-no-instruction': t_interval(slope(select_metric(low, 'q'), n))}
record(scale, {f'self_correction/toy-{k}': as_measurement(v) for k,v in estimates.items()},
       parameters=n[-1])
