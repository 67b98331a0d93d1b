# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Number of facts in a toy language: more facts delay bias, but not following of instructions
#
# > Bias reaches half of an ideal reader's at 3,600 parameters for 8 facts and at 15,600 for 24; for 72 facts it does not up to 35,000 parameters.

# %% tags=["parameters"]
scale = 'quick'  # quick: tiny, seconds; cpu: six sizes, 8 to 216 facts; gpu: more of both
seed = 0         # of the questions; trainings have seeds of their own

# %%
#| hide
from dataclasses import replace
import numpy as np, pandas as pd
import plotly.graph_objects as go
from moral_sc.bias.toy.environment import ToyLanguage
from moral_sc.bias.toy.ladder import (Ladder, baseline_scores, crossing_size, evaluate_ladder,
                                      instruction_following, relative_scores, train_ladder)
from moral_sc.bias.toy.plots import plot_onset_map, size_of
from moral_sc.foundation.figures import COLOURS, INK
from moral_sc.foundation.statistics import t_interval
from moral_sc.lab.claims import as_measurement, record
from moral_sc.lab.paths import shared_dir
from moral_sc.lab.scales import at_scale

# %%
size = at_scale(scale, # few: sizes and trainings where the share of instructed questions varies
    quick=dict(facts=[2, 4], all=dict(widths=[4, 8], seeds=[0, 1]), few_facts=[4],
               few=dict(widths=[4, 8], seeds=[0, 1]), shares=[.1, .5], ladder=Ladder(
                   ToyLanguage(categories=2, traits=2), documents=256, epochs=1, together=2)),
    cpu=dict(facts=[8, 24, 72, 216], all=dict(widths=[4, 8, 12, 16, 24, 32], seeds=range(5)),
             few_facts=[8, 24, 216], few=dict(widths=[12, 16, 24, 32], seeds=range(3)),
             shares=[.1, .5], ladder=Ladder()),
    gpu=dict(facts=[8, 24, 72, 216, 648], all=dict(widths=[4, 8, 16, 32, 64, 128], seeds=range(10)),
             few_facts=[8, 24, 216], few=dict(widths=[8, 16, 32, 64, 128], seeds=range(6)),
             shares=[.02, .1, .25, .5], ladder=Ladder(documents=128_000)),
)
usual = size['ladder'].language
def language_of(facts): return replace(usual, traits=facts//usual.categories)

def table_at(facts, share, widths, seeds):
    "Train and evaluate the models of one language"
    known = {(24, .5): 'toy-ladder', (24, .1): 'toy-frequency-0.1'} # Of other pages
    name = known.get((facts, share), f'toy-facts-{facts}-{share}')
    ladder = replace(size['ladder'], language=replace(language_of(facts), instructed=share))
    run = dict(widths=widths, seeds=seeds, ladder=ladder, out=shared_dir(f'{name}-{scale}-{seed}'))
    train_ladder(**run)
    asked = None if (facts, share) in known else ['q', 'q+if', 'q+anti']
    return evaluate_ladder(letters=(), conditions=asked, **run)

tables = {f: table_at(f, usual.instructed, **size['all']) for f in size['facts']}

# %% [markdown]
# ## Size and number of facts
#
# > Which ability grows with size, so that self-correction begins at 22 billion parameters, is left
# > open; knowledge of stereotypes and following of instructions are named as candidates
# > [@ganguli2023].
#
# If capacity set the onset, more facts would need more parameters. A fact of the
# [toy language](../../bias/toy/10_environment.ipynb) is a trait and the group that its stereotype is
# about. Languages with more traits are otherwise the same, and all have 32,000 documents, half of the
# questions with an instruction. Scores are relative to those of an ideal reader of the documents on
# the same questions, which has 1 in each panel. In the middle and right panels a 4-gram model has 0.02
# or less and a constant answer 0.

# %%
#| label: fig-phase
#| fig-cap: Mean over trainings of three scores relative to an ideal reader, by width and number of facts. The line is the onset, where the mean reaches one half; it ends where no size reaches it.
baselines = {f: baseline_scores(language_of(f), size['all']['seeds']) for f in tables}
scores = {f: relative_scores(t, baselines[f]) for f,t in tables.items()}
names = list(scores[size['facts'][0]])
plot_onset_map({n: {f: scores[f][n] for f in scores} for n in names}, 'Facts')

# %%
parameters = {f: size_of(t) for f,t in tables.items()}
onsets = {n: {f: crossing_size(scores[f][n], parameters[f]) for f in scores} for n in names}
middle = {n: {f: crossing_size(scores[f][n].mean().to_frame().T, parameters[f])[0] for f in scores}
          for n in names}
sizes = pd.DataFrame(parameters).T.rename_axis('facts')
shown = pd.concat({'parameters at width': sizes, 'onset': pd.DataFrame(middle)}, axis=1).T
shown.map('{:,.0f}'.format).replace('nan', 'not reached')

# %% [markdown]
# Stereotypes are known early: 8 facts at every width, 216 between widths 4 and 8. Bias needs larger
# models, and larger ones still for more facts: it passes one half between widths 8 and 12 for 8 facts
# and between 16 and 24 for 24. With 72 and 216 facts it stays below 0.3 and 0.1 of an ideal reader's,
# although the largest models know the facts nearly as well as the ideal reader (0.97 and 0.93).
# Instruction following has no such order: its onset is lowest for 24 facts, and summed over widths it
# is higher for 216 facts than for 8.
#
# ## Parameters per fact
#
# The figure has the same onset against the number of facts. If each fact took a fixed number of
# parameters, the lines would be parallel to the dotted one.

# %%
#| label: fig-onset
#| fig-cap: Size at which a score reaches half of the ideal reader's, against the number of facts. Lines are the onset of the mean over trainings, small markers single trainings that reach it. Dotted, a fixed number of parameters for each fact.
fig = go.Figure()
for n,colour in zip(names, [COLOURS[k] for k in ('paper', 'q', 'accent')]):
    facts = list(onsets[n])
    fig.add_scatter(x=facts, y=list(middle[n].values()), name=n, line_color=colour,
                    mode='lines+markers')
    fig.add_scatter(x=np.repeat(facts, [len(v) for v in onsets[n].values()]),
                    y=np.concatenate(list(onsets[n].values())), mode='markers', showlegend=False,
                    marker=dict(color=colour, size=5, opacity=.5))
start = middle[names[0]][facts[0]]
fig.add_scatter(x=facts, y=[start*f/facts[0] for f in facts], mode='lines',
                name='fixed parameters per fact', line=dict(color=INK, dash='dot'))
fig.update_xaxes(type='log', title_text='Facts', tickvals=facts)
fig.update_yaxes(type='log', title_text='Onset, parameters', tickformat=',', dtick='D2')
fig


# %%
def capacity(name):
    "Return the slope of log onset over log facts, by training; the largest size if not reached"
    y = [np.log10(np.where(np.isnan(x), max(parameters[f].values()), x))
         for f,x in onsets[name].items()]
    return np.polyfit(np.log10(size['facts']), np.array(y), 1)[0]

pd.DataFrame({n: dict(zip(('slope', 'low', 'high'), t_interval(capacity(n))))
              | {f'not reached, {f} facts': np.isnan(x).sum() for f,x in onsets[n].items()}
              for n in names}).T.round(2)

# %% [markdown]
# From 8 to 216 facts the size that knowledge needs grows by a factor of five, more slowly than the
# number of facts: the slope is 0.49 (0.44 to 0.53), and parameters per fact fall from 120 to 22. With 8
# facts the smallest size suffices, so that the slope may be steeper. The slope of bias is 0.77, and the
# row holds, but no training with 72 or 216 facts reaches one half; these count as if the largest size
# had reached it. From 8 to 24 facts alone the slope is 1.35; beyond 24 facts these sizes cannot measure
# it.
#
# ## Size, number of facts and frequency of the instruction
#
# The next figure has the following of instructions in unseen pairs of words when fewer questions carry
# an instruction:

# %%
following = {share: {f: instruction_following(table_at(f, share, **size['few']))
                     for f in size['few_facts']} for share in size['shares']}

# %%
#| label: fig-frequency
#| fig-cap: Instruction following by width and number of facts, one panel for each share of questions with an instruction. Means over three trainings; the line is the onset, where the mean reaches one half.
plot_onset_map({f'{s:.0%} instructed': found for s,found in following.items()}, 'Facts')

# %% [markdown]
# If a tenth of the questions carries an instruction, mean following is at most 0.04 at every size and
# number of facts. The frequency of the instruction changes the onset of following; the number of facts
# does not delay it.
#
# ## Baselines

# %%
pd.DataFrame({f: b.mean() for f,b in baselines.items()}).T.rename_axis('facts').round(3)


# %% [markdown]
# ## Built-in assumptions and measured results
#
# Built in: the number of traits, and with it the words of the language, which add parameters to a width,
# and the number of documents about each fact. Measured: the order of the abilities, and which of them
# more facts delay. Facts appear in statements at smaller sizes than in the answers to questions.
#
# ## What this does not show
#
# More facts leave fewer documents for each: 3,400 questions for each of 8 facts, 126 for each of 216.
# The delay of bias may therefore be one of data and not of capacity. With 216 facts bias does not grow
# from width 16 to width 32, which suggests a limit of data. To tell the two apart, documents would have
# to grow with facts.
#
# ## Claims
#
# The criteria are in `data/claims/self_correction_toy_frequency.toml`, the recorded
# metrics of all models in `data/results/toy_onset.csv`.

# %%
def gain(name): # Summed over widths, fewest less most facts
    fewest,most = (scores[f][name].sum(axis=1) for f in (size['facts'][0], size['facts'][-1]))
    return fewest-most

rare,usual_share = (following[s] for s in (size['shares'][0], size['shares'][-1]))
later = sum((usual_share[f]-rare[f]).sum(axis=1) for f in rare)/len(rare)
estimates = {'knowledge': gain(names[0]), 'bias': gain(names[1]), 'following': gain(names[2]),
             'capacity-knowledge': capacity(names[0]), 'capacity-bias': capacity(names[1]),
             'frequency': later}
record(scale, {f'self_correction/toy-facts-{k}': as_measurement(t_interval(v))
               for k,v in estimates.items()},
       parameters=max(parameters[size['facts'][-1]].values()))
