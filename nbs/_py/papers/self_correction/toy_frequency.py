# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Instruction frequency in a toy language: rarer instructions are followed later in size
#
# > If a tenth of the questions carries an instruction, none of five trainings follows it at any of three sizes; if half of them do, two to four of five trainings follow.

# %% tags=["parameters"]
scale = 'quick'  # quick: tiny, seconds; cpu: three sizes at three shares; gpu: more of both
seed = 0         # of the questions; trainings have seeds of their own

# %%
#| hide
from dataclasses import replace
import numpy as np, pandas as pd
import plotly.graph_objects as go
from moral_sc.bias.toy.environment import ToyLanguage
from moral_sc.bias.toy.ladder import (Ladder, evaluate_ladder, instruction_following,
                                      select_metric, slope, train_ladder)
from moral_sc.bias.toy.plots import add_curve, size_of
from moral_sc.foundation.figures import COLOURS
from moral_sc.foundation.statistics import t_interval
from moral_sc.lab.claims import as_measurement, record
from moral_sc.lab.paths import shared_dir
from moral_sc.lab.scales import at_scale

# %%
size = at_scale(scale,
    quick=dict(widths=[4, 8], seeds=[0, 1], first=2, shares=[.1, .5], ladder=Ladder(
        ToyLanguage(categories=2, traits=2), documents=256, epochs=1, together=2)),
    cpu=dict(widths=[12, 16, 24], seeds=[0, 1, 2, 3, 4], first=3, shares=[.1, .25, .5],
             ladder=Ladder()),
    gpu=dict(widths=[8, 16, 32, 64, 128], seeds=range(6), first=3,
             shares=[.02, .05, .1, .2, .5], ladder=Ladder(documents=128_000)),
)
def table_at(share):
    "Train and evaluate the models of one share of instructed questions"
    ladder = replace(size['ladder'], language=replace(size['ladder'].language, instructed=share))
    same = share==size['ladder'].language.instructed # The models of the page on size
    name = 'toy-ladder' if same else f'toy-frequency-{share}'
    settings = dict(widths=size['widths'], seeds=size['seeds'], ladder=ladder,
                    out=shared_dir(f'{name}-{scale}-{seed}'))
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
#| label: fig-following
#| fig-cap: Instruction following against size, for three shares of questions with an instruction. Bars are 95 % intervals over trainings.
fig = go.Figure()
for share,colour in zip(tables, COLOURS['sequence']):
    following = instruction_following(tables[share])
    add_curve(fig, following, parameters, f'{share:.0%} instructed', colour)
fig.update_xaxes(type='log', title_text='Parameters')
fig.update_yaxes(title_text='Following: p(unknown), Q+IF less Q+anti')
fig

# %% [markdown]
# If a tenth of the questions carries an instruction, mean following is at most 0.04 at every size. At a
# quarter it is 0.14, 0.17 and 0.08, from single trainings that follow; at one half it is 0.34, 0.62 and
# 0.65. Trainings differ much: most follow nearly fully or not at all. The [page about
# facts](toy_facts.ipynb) has phase diagrams over frequency and number of facts.
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
# Bias grows with size at each share. If instructions are rare, bias falls under the instruction as much
# as if they are followed, but the meaning of the instruction is not the reason: under its opposite the
# probability of "unknown" is the same.
#
# ## Built-in assumptions and measured results
#
# Built in: the share of questions with an instruction. All languages have the same stereotypes for a
# seed, and all models see the same number of documents, so that rarer instructions leave more
# documents without one. Measured: from which size on pairs of words that occur in no document are
# followed. An n-gram model follows none of them at any share, and an ideal reader all of them.
#
# ## What this does not show
#
# Three sizes and three shares give no law of how the onset depends on both, and the number of
# training steps is the same everywhere: a rare instruction may need more steps, not more weights.
#
# ## Claims
#
# The criteria are in `data/claims/self_correction_toy.toml` and, for the enlarged sample,
# `data/claims/self_correction_toy_frequency.toml`. With three trainings both registered rows were
# undecided, and two trainings were added. The registered rows are judged on the first three, and two
# further rows on all five.

# %%
low,high = (tables[s] for s in (size['shares'][0], size['shares'][-1]))
gain = (instruction_following(high)-instruction_following(low)).sum(axis=1).to_numpy()
n = [parameters[w] for w in size['widths']]
slopes = slope(select_metric(low, 'q'), n)
first = size['first'] # The registered rows are judged on the trainings of the first look
estimates = {'frequency-moves-onset': gain[:first], 'frequency-moves-onset-enlarged': gain,
             'bias-needs-no-instruction': slopes[:first],
             'bias-needs-no-instruction-enlarged': slopes}
record(scale, {f'self_correction/toy-{k}': as_measurement(t_interval(v))
               for k,v in estimates.items()}, parameters=n[-1])
