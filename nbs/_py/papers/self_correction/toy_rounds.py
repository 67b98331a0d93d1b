# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A second round in a toy language: accuracy falls, and the instruction works in part
#
# > In a second round of a toy dialogue accuracy with evidence falls from 0.97 to 0.60, and with the instruction bias is 0.14 instead of 0.08.

# %% tags=["parameters"]
scale = 'quick'  # quick: evaluates the released models; cpu: trains them anew; gpu: 10^8 parameters
seed = 0         # of the questions asked; trainings have seeds of their own

# %%
#| hide
from dataclasses import replace
from functools import partial
import pandas as pd
import plotly.graph_objects as go
from moral_sc.bias.bbq.metrics import accuracy_shortfall
from moral_sc.bias.toy.environment import toy_items
from moral_sc.bias.toy.ladder import Ladder, train_ladder
from moral_sc.bias.toy.plots import add_curve, size_of
from moral_sc.bias.toy.released import released_ladder
from moral_sc.bias.toy.rounds import score_rounds
from moral_sc.foundation.figures import COLOURS
from moral_sc.foundation.statistics import t_interval
from moral_sc.lab.claims import as_measurement, record
from moral_sc.lab.paths import shared_dir
from moral_sc.lab.scales import at_scale
from moral_sc.language.loading import load

# %%
size = at_scale(scale, # the models of the page on size
    quick=dict(widths=[4, 16, 32], seeds=[0, 1, 2], ladder=Ladder()),
    cpu=dict(widths=[4, 8, 12, 16, 24, 32], seeds=[0, 1, 2, 3, 4], ladder=Ladder()),
    gpu=dict(widths=[4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048], seeds=range(10),
             ladder=Ladder(documents=128_000)),
)
folder,models_of,note = at_scale(scale,
    quick=('toy-ladder-released', released_ladder, 'released weights'),
    cpu=(f'toy-ladder-cpu-{seed}', train_ladder, ''),
    gpu=(f'toy-ladder-gpu-{seed}', partial(train_ladder, device='cuda'), ''))
models = models_of(**size, out=shared_dir(folder))

# %% [markdown]
# ## Rounds
#
# > A model is instructed before it answers; it does not see an answer of its own [@ganguli2023].
#
# Later work on self-correction lets a model look at its answer again. Here a question is asked a
# first time without an instruction, and then again with the options in another order: in a new
# dialogue, or in a second round of the same one, below the first answer. Either way it is asked
# with and without the instruction to be fair ([rounds](../../bias/toy/37_rounds.ipynb)). Documents of the
# [toy language](../../bias/toy/10_environment.ipynb) have one question each, so a second round is
# new to the models. These are the models of the [page on size](toy_size.ipynb): at scale `quick`
# [stored ones](../../bias/toy/32_released.ipynb) of three sizes and seeds, at `cpu` all, trained anew.

# %%
tables = []
for spec,(w,s) in zip(models, [(w, s) for w in size['widths'] for s in size['seeds']]):
    lm = load(spec.source, 'float32')
    items = toy_items(replace(size['ladder'].language, seed=s), 2)
    tables.append(pd.DataFrame(score_rounds(lm, items)).assign(width=w, seed=s,
                                                               parameters=lm.parameters))
table = pd.concat(tables)
parameters = size_of(table)
ROUNDS = list(table['round'].unique())

def select(name, metric):
    "Return one metric of a round as a table of seeds and widths"
    d = table[(table['round']==name) & (table.metric==metric)]
    return d.pivot(index='seed', columns='width', values='value')


# %%
#| label: fig-bias
#| fig-cap: Bias score on ambiguous questions, from probabilities, of the first answer, of an answer to the question asked again with the options in another order, and of an answer in a second round. Bars are 95 % intervals over trainings.
def plot(metric, title, names=ROUNDS):
    fig = go.Figure()
    for name,colour in zip(ROUNDS, COLOURS['sequence']):
        if name in names: add_curve(fig, select(name, metric), parameters, name, colour)
    fig.update_xaxes(type='log', title_text='Parameters')
    fig.update_yaxes(title_text=title)
    return fig

plot('bias', 'Bias score, ambiguous')

# %% [markdown]
# Asked again in a new dialogue, the largest models have the same bias. In a second round it is 0.27
# instead of 0.32, and with the instruction 0.14; a new dialogue with the instruction has 0.08.

# %%
#| label: fig-evidence
#| fig-cap: Accuracy where the context gives the answer, in each round. A constant "unknown" has zero, naming a person at random one half.
plot('evidence', 'Accuracy with evidence')

# %% [markdown]
# ## How answers change
#
# Shares of ambiguous questions, compared with the first answer: from a person to "unknown" (declined),
# from "unknown" to a person (named), and from one person to the other (column `wavered`).

# %%
last = size['widths'][-1]
metrics = ['changed', 'declined', 'named', 'wavered', 'unknown', 'bias', 'evidence']
pd.DataFrame({m: {k: select(k, m)[last].mean() for k in ROUNDS} for m in metrics}).round(3)

# %%
#| label: fig-wavering
#| fig-cap: Share of ambiguous questions whose answer goes from one person to the other.
plot('wavered', 'From one person to the other', ROUNDS[1:])

# %% [markdown]
# At the largest size 8 % of the answers change with the order of the options alone, nearly half of them
# from one person to the other. In a second round 29 % change without an instruction, and accuracy with
# evidence falls by 36 points. The small fall of bias there therefore does not show self-correction: the
# models fail to answer the second question from its context. With the instruction most changes are to
# "unknown": 84 % of all questions in a new dialogue, 59 % in a second round.
#
# ## Built-in assumptions and measured results
#
# Built in: documents with one question each, and authors who answer alike in every order of the options,
# as an ideal reader does. A constant answer does so, too. Measured: at which sizes answers depend on
# the order of the options, and that in a model that was not trained on dialogues a second round by
# itself changes the answers.
#
# ## What this does not show
#
# Second rounds are longer than any document, and they contain an earlier answer. This page does not
# separate the two. Models that were trained on dialogues of several rounds may behave otherwise.
#
# ## Claims
#
# The criteria are in `data/claims/self_correction_toy.toml`.

# %%
found = {
    'asked-again': select('asked again', 'wavered')[last],
    'second-round': select('second round', 'wavered')[last],
    'second-round-evidence': (select('second round', 'evidence')
                              - select('first', 'evidence'))[last],
    'second-round-instructed': (select('second round, Q+IF', 'bias')
                                - select('asked again, Q+IF', 'bias'))[last]}
unmet = accuracy_shortfall(select('first', 'evidence')[last].mean())
measured = {k: as_measurement(t_interval(v))._replace(unmet=unmet, note=note)
            for k,v in found.items()}
record(scale, {f'self_correction/toy-rounds-{k}': m for k,m in measured.items()},
       parameters=parameters[last])
