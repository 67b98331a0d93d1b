# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Abstention in a toy language: models that are told to be fair decline
#
# > At 32,224 parameters abstention is 74 % (51 to 97 %) of the fall of bias under the instruction; where the context gives the answer, "unknown" does not become more frequent.

# %% tags=["parameters"]
scale = 'quick'  # quick: evaluates the released models; cpu: trains them anew; gpu: 10^8 parameters
seed = 0         # of the questions asked; trainings have seeds of their own

# %%
#| hide
from functools import partial
import numpy as np, pandas as pd
import plotly.graph_objects as go
from moral_sc.bias.bbq.metrics import accuracy_shortfall
from moral_sc.bias.toy.ladder import (Ladder, answer_changes, by_size, decompose, evaluate_ladder,
                                      read_records, select_metric, train_ladder)
from moral_sc.bias.toy.plots import add_curve, size_of
from moral_sc.bias.toy.released import released_ladder
from moral_sc.foundation.figures import COLOURS
from moral_sc.foundation.statistics import t_interval
from moral_sc.lab.claims import as_measurement, record
from moral_sc.lab.paths import shared_dir
from moral_sc.lab.scales import at_scale

# %%
size = at_scale(scale, # the models of the page on size
    quick=dict(widths=[4, 8, 12, 16, 24, 32], seeds=[0, 1, 2], ladder=Ladder()),
    cpu=dict(widths=[4, 8, 12, 16, 24, 32], seeds=[0, 1, 2, 3, 4], ladder=Ladder()),
    gpu=dict(widths=[4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048], seeds=range(10),
             ladder=Ladder(documents=128_000)),
)
folder,models_of,note = at_scale(scale,
    quick=('toy-ladder-released', released_ladder, 'released weights'),
    cpu=(f'toy-ladder-cpu-{seed}', train_ladder, ''),
    gpu=(f'toy-ladder-gpu-{seed}', partial(train_ladder, device='cuda'), ''))
run = size | dict(out=shared_dir(folder))
models_of(**run)
table = evaluate_ladder(**run)
parameters = size_of(table)
last = size['widths'][-1]


# %% [markdown]
# ## Abstention and correction
#
# > The authors call the fall of the bias score self-correction, and leave open by which answers it
# > comes about [@ganguli2023].
#
# The score on ambiguous questions is the share of answers that name a person, times the bias towards
# the stereotype among them. A change is the sum of two parts: abstention, from naming fewer people, and
# correction, from naming others ([as for real models](correction_or_abstention.ipynb)). For the ideal
# reader of the [toy language](../../bias/toy/10_environment.ipynb) all of it is abstention, since
# "unknown" is the fair answer. The models are those of the [page on size](toy_size.ipynb): at scale
# `quick` [stored ones](../../bias/toy/32_released.ipynb) of three seeds, at `cpu` all five, trained
# anew.

# %%
def parts(condition):
    bias = tuple(select_metric(table, c) for c in ('q', condition))
    unknown = tuple(select_metric(table, c, 'accuracy_ambig_soft') for c in ('q', condition))
    return decompose(bias, unknown)


# %%
#| label: fig-parts
#| fig-cap: Parts of the change of the bias score on ambiguous questions by the instruction. Bars are 95 % intervals over trainings.
abstention,correction = parts('q+if')
fig = go.Figure()
add_curve(fig, abstention, parameters, 'abstention', COLOURS['if'], 'diamond')
add_curve(fig, correction, parameters, 'correction', COLOURS['cot'], 'square')
fig.add_hline(y=0, line_width=1)
fig.update_xaxes(type='log', title_text='Parameters')
fig.update_yaxes(title_text='Change of the bias score, Q+IF less Q')
fig


# %% [markdown]
# At the largest width 0.19 of the fall of 0.25 is abstention. The rest is correction: among answers
# that still name a person, the bias towards the stereotype is smaller.
#
# The table has the same in counted answers of the largest models: the answers to the same questions
# without (rows) and with the instruction (columns), as shares of ambiguous questions. Most biased
# answers become "unknown" (0.73 of all questions), a tenth of the questions stays biased, and in two of
# a hundred the answer changes to the other person.

# %%
def mean_changes(width, kind):
    found = [answer_changes(read_records(width, s, run['out']), kind=kind) for s in size['seeds']]
    return sum(found)/len(found)
mean_changes(last, 'ambig').round(3)


# %%
#| label: fig-wavering
#| fig-cap: Shares of questions in counted answers. Answers that change from one person to the other under the instruction, and "unknown" where the context gives the answer.
def wavering(width): # Answers that go from one person to the other
    found = [answer_changes(read_records(width, s, run['out'])) for s in size['seeds']]
    return [t.loc['biased', 'counter']+t.loc['counter', 'biased'] for t in found]

waver = pd.DataFrame({w: wavering(w) for w in size['widths']})
fig = go.Figure()
add_curve(fig, waver, parameters, 'from one person to the other', COLOURS['accent'])
declined = {c: select_metric(table, c, 'unknown_disambig') for c in ('q', 'q+if')}
add_curve(fig, declined['q+if'], parameters, '"unknown" in spite of evidence, Q+IF', COLOURS['if'])
add_curve(fig, declined['q'], parameters, '"unknown" in spite of evidence, Q', COLOURS['q'])
fig.update_xaxes(type='log', title_text='Parameters')
fig.update_yaxes(title_text='Share of questions', rangemode='tozero')
fig

# %% [markdown]
# ## Letters
#
# By letter, a model has to find the answer and then the letter in front of it. The table has the
# accuracy where the context gives the answer and the bias score, in words and by letter. Letters
# are not learned at these sizes, so that a benchmark by letter finds no bias at any of them.

# %%
columns = {f'{b}, {name}, {c}': by_size(select_metric(table, c, m, b)).value
           for name,m in (('accuracy', 'accuracy_disambig'), ('bias', 'bias_ambig_soft'))
           for b in ('toy', 'toy-letters') for c in ('q', 'q+if')}
pd.DataFrame(columns).rename(index=parameters).T.round(3)

# %% [markdown]
# ## Built-in assumptions and measured results
#
# Built in: "unknown" as the answer of an author who is told to be fair and has no evidence. That
# abstention is the larger part is therefore built in. A constant answer "unknown" would only abstain
# and have no accuracy with evidence, and a 4-gram model has no bias that could be corrected. Measured:
# the size of both parts at each model size, and whether a model that is told to be fair declines where
# the context gives the answer.
#
# ## What this does not show
#
# A model of natural language can be fair in other ways than by declining. The page about a [second
# round](toy_rounds.ipynb) asks questions again. The lower end of the interval is close to the bound of
# the criterion, one half: the same seeds, trained earlier on another processor where rounding differs,
# gave 82 % (47 to 117), which is undecided.
#
# ## Claims
#
# The criteria are in `data/claims/self_correction_toy.toml`.

# %%
total = abstention+correction
share = abstention[last]/total[last].mean() # Ratio of means; the denominator is taken as fixed
unmet = accuracy_shortfall(select_metric(table, 'q', 'accuracy_disambig')[last].mean())
estimates = {'abstains': t_interval(share),
             'no-over-abstention': t_interval((declined['q+if']-declined['q'])[last])}
record(scale, {f'self_correction/toy-{k}': as_measurement(v)._replace(unmet=unmet, note=note)
               for k,v in estimates.items()}, parameters=parameters[last])
