# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Steps and layers in a toy language: more steps bring bias and its reduction to smaller sizes
#
# > In a toy language, bias after nine passes over the documents instead of one is 0.21 instead of 0.01 at 3,064 parameters, and 0.48 instead of 0.08 at 32,224.

# %% tags=["parameters"]
scale = 'quick'  # quick: two tiny sizes, seconds; cpu: three sizes; gpu: sizes up to 128
seed = 0         # of the questions; trainings have seeds of their own

# %%
#| hide
from dataclasses import replace
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from moral_sc.bias.toy.environment import ToyLanguage
from moral_sc.bias.toy.ladder import (Ladder, baseline_scores, evaluate_ladder, select_metric,
                                      slope, train_ladder)
from moral_sc.bias.toy.plots import add_curve, add_level, size_of
from moral_sc.foundation.figures import COLOURS
from moral_sc.foundation.statistics import t_interval
from moral_sc.lab.claims import as_measurement, record
from moral_sc.lab.paths import shared_dir
from moral_sc.lab.scales import at_scale

# %%
size = at_scale(scale, # passes: over the documents of a seed; deep: with three layers
    quick=dict(widths=[4, 8], seeds=[0, 1], passes=[1, 2], deep=[8], deep_passes=[1],
               ladder=Ladder(ToyLanguage(categories=2, traits=2), documents=256, epochs=1,
                             together=2)),
    cpu=dict(widths=[8, 16, 32], seeds=[0, 1, 2], passes=[1, 3, 9], deep=[32],
             deep_passes=[3, 9], ladder=Ladder()),
    gpu=dict(widths=[8, 16, 32, 64, 128], seeds=range(6), passes=[1, 3, 9, 27],
             deep=[32, 64, 128], deep_passes=[3, 9, 27], ladder=Ladder(documents=128_000)),
)
def table_at(layers, passes, widths):
    "Train and evaluate models with a number of layers and of passes over the documents"
    ladder = replace(size['ladder'], layers=layers, epochs=passes)
    same = ladder==size['ladder'] # The models of the page on size
    name = 'toy-ladder' if same else f'toy-steps-{layers}-{passes}'
    run = dict(widths=widths, seeds=size['seeds'], ladder=ladder,
               out=shared_dir(f'{name}-{scale}-{seed}'))
    train_ladder(**run)
    return evaluate_ladder(conditions=None if same else ['q', 'q+if'], **run)

tables = {2: {n: table_at(2, n, size['widths']) for n in size['passes']}}
tables[3] = {n: table_at(3, n, size['deep']) for n in size['deep_passes']}
steps = {n: n*-(-size['ladder'].documents//size['ladder'].batch) for n in size['passes']}
parameters = size_of(tables[2][size['passes'][0]])
widest = size['widths'][-1]


# %% [markdown]
# ## Bias against size and steps
#
# > Bias under the plain question grows with size, and from 22 billion parameters on the instruction
# > reduces it [@ganguli2023].
#
# The models of the [page on size](toy_size.ipynb) are trained for the same number of steps, so that a
# curve over size may be one over speed of learning. Here models of three sizes learn the
# [toy language](../../bias/toy/10_environment.ipynb) in one, three or nine passes over their 32,000
# documents. Each is a training of its own, whose learning rate falls to zero at its end.

# %%
#| label: fig-steps
#| fig-cap: Bias score on ambiguous questions against training steps, by size. Left, under the plain question; right, under the instruction. Answers in words, from probabilities. Bars are 95 % intervals over trainings, dotted lines an ideal reader; a 4-gram model has 0 in both panels.
def by_passes(layers, width, *metric):
    "Return a metric of one width as a table of seeds and passes"
    return pd.DataFrame({n: select_metric(t, *metric)[width] for n,t in tables[layers].items()})

fig = make_subplots(1, 2, subplot_titles=['Q', 'Q+IF'], shared_yaxes=True, horizontal_spacing=.05)
for col,condition in enumerate(('q', 'q+if'), 1):
    for w,colour in zip(size['widths'], COLOURS['sequence']):
        add_curve(fig, by_passes(2, w, condition), steps, f'{parameters[w]:,} parameters', colour,
                  row=1, col=col)
ideal = baseline_scores(size['ladder'].language, size['seeds']).bias.mean()
for col,level in enumerate((ideal, 0), 1): add_level(fig, level, row=1, col=col)
fig.update_xaxes(type='log', title_text='Training steps', tickvals=list(steps.values()))
fig.update_yaxes(title_text='Bias score, ambiguous', row=1, col=1)
fig.update_layout(width=760, height=380, margin_t=80, legend_y=1.2)
fig

# %%
columns = {(n, c): select_metric(t, c).mean() for n,t in tables[2].items() for c in ('q', 'q+if')}
columns |= {(n, 'evidence'): select_metric(t, 'q', 'accuracy_disambig').mean()
            for n,t in tables[2].items()}
pd.DataFrame(columns).rename(index=parameters).T.rename_axis(['passes', 'score']).sort_index(
    level=0, sort_remaining=False).round(2)

# %% [markdown]
# The onset depends on size and on steps. After one pass bias is at most 0.08; after nine passes all
# three sizes are biased, and bias still grows with size. The reduction by the instruction grows, too:
# after nine passes a bias of 0.00 and 0.02 remains at the two larger sizes and 0.12 at the smallest,
# whose accuracy with evidence is only two thirds. Steps and size do not trade at a fixed rate: models
# of 9,456 parameters after nine passes are as biased as models of 32,224 after three (0.36), but models
# of 3,064 after nine passes (0.21) are more biased than models of 9,456 after three (0.11).
#
# ## Answers by letter
#
# To answer by letter, a model must find the answer and then the letter in front of it, which takes
# one step of attention more. A fifth of the documents answer so.

# %%
#| label: fig-letters
#| fig-cap: Accuracy where the context gives the answer, under the plain question, at the largest width. The dashed line is the accuracy of naming a person at random. Bars are 95 % intervals over trainings.
fig = go.Figure()
for layers,symbol,colours in ((2, 'circle', ('paper', 'q')), (3, 'diamond', ('if', 'accent'))):
    for benchmark,name,colour in zip(('toy', 'toy-letters'), ('in words', 'by letter'), colours):
        found = by_passes(layers, widest, 'q', 'accuracy_disambig', benchmark)
        add_curve(fig, found, steps, f'{layers} layers, {name}', COLOURS[colour], symbol)
add_level(fig, .5, dash='dash')
fig.update_xaxes(type='log', title_text='Training steps', tickvals=list(steps.values()))
fig.update_yaxes(title_text='Accuracy with evidence', range=[0, 1.05])
fig

# %%
rows = {(layers, w, n): {f'{m}, {b}': select_metric(t, 'q', m, b)[w].mean()
                         for m in ('accuracy_disambig', 'bias_ambig_soft')
                         for b in ('toy', 'toy-letters')}
        for layers,found in tables.items() for n,t in found.items()
        for w in (size['deep'] if layers==3 else size['widths'])}
pd.DataFrame(rows).T.rename_axis(['layers', 'width', 'passes']).round(2)

# %% [markdown]
# Neither three times as many steps nor a third layer makes models answer by letter from evidence: where
# answers in words are correct in nearly all questions, answers by letter are correct in 42 to 60 % for
# single trainings. Naming one of the two people at random gives one half. The intervals over three
# trainings include it, so the rows on accuracy are undecided; the row that answers by letter are biased
# fails.
#
# ## Built-in assumptions and measured results
#
# Built in: the number of steps and, with the third layer, one more operation. The documents are the same,
# so nine passes show each of them nine times. Measured: size and steps both change the onset, so a
# curve over size at one number of steps says little about what a size can learn.
#
# ## What this does not show
#
# Three sizes and three numbers of steps do not give a law for the exchange of one for the other, and
# nine passes are not the end of training: bias rises at each size up to the last. Answers by letter
# may need more letters, steps or width.
#
# ## Claims
#
# The criteria are in `data/claims/self_correction_toy_size_steps.toml`, the recorded
# metrics of all models in `data/results/toy_onset.csv`.

# %%
first,last = size['passes'][0],size['passes'][-1]
def gain(value): # Summed over widths, most less fewest passes
    return (value(tables[2][last])-value(tables[2][first])).sum(axis=1)

bias = {n: select_metric(t, 'q') for n,t in tables[2].items()}
letters = {layers: by_passes(layers, widest, 'q', 'accuracy_disambig', 'toy-letters')
           for layers in tables}
usual,most = size['deep_passes'][0],size['deep_passes'][-1]
estimates = {
    'steps-bias': gain(lambda t: select_metric(t, 'q')),
    'steps-effect': gain(lambda t: select_metric(t, 'q')-select_metric(t, 'q+if')),
    'steps-size': slope(bias[last], [parameters[w] for w in size['widths']]),
    'letters-two-layers': letters[2][last], 'letters-three-layers': letters[3][usual],
    'letters-three-layers-steps': letters[3][most],
    'letters-bias': by_passes(3, widest, 'q', 'bias_ambig_soft', 'toy-letters')[most]}
record(scale, {f'self_correction/toy-{k}': as_measurement(t_interval(v))
               for k,v in estimates.items()}, parameters=parameters[widest])
