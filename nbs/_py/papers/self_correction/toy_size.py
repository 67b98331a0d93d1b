# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Size in a toy language: bias and its reduction both grow
#
# > At 32,224 parameters bias is 0.34; an instruction in unseen pairs of words lowers it by 74 % (58 to 90), an unrelated note by 26 %.

# %% tags=["parameters"]
scale = 'quick'  # quick: evaluates the released models; cpu: trains them anew; gpu: 10^8 parameters
seed = 0         # of the questions asked; trainings have seeds of their own

# %%
#| hide
from dataclasses import replace
from functools import partial
import numpy as np, pandas as pd
from moral_sc.bias.bbq.metrics import accuracy_shortfall
from moral_sc.bias.toy.environment import ToyLanguage, lexicon, toy_benchmark
from moral_sc.bias.toy.ladder import (Ladder, baseline_table, by_size, evaluate_ladder, onset_size,
                                      select_metric, slope, train_ladder)
from moral_sc.bias.toy.plots import plot_abilities, plot_bias_by_size, size_of
from moral_sc.bias.toy.released import released_ladder
from moral_sc.foundation.statistics import t_interval
from moral_sc.lab.claims import as_measurement, record
from moral_sc.lab.paths import shared_dir, work_dir
from moral_sc.lab.scales import at_scale

# %%
size = at_scale(scale,
    quick=dict(run=dict(widths=[4, 8, 12, 16, 24, 32], seeds=[0, 1, 2], ladder=Ladder()),
               ablation=dict(widths=[8], seeds=[0, 1], ladder=Ladder(
                   ToyLanguage(categories=2, traits=2), documents=256, epochs=1, together=2))),
    cpu=dict(run=dict(widths=[4, 8, 12, 16, 24, 32], seeds=[0, 1, 2, 3, 4], ladder=Ladder()),
             ablation=dict(widths=[16], seeds=[0, 1, 2], ladder=Ladder())),
    gpu=dict(run=dict(widths=[4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048], seeds=range(10),
                      ladder=Ladder(documents=128_000)),
             ablation=dict(widths=[32], seeds=[0, 1, 2], ladder=Ladder(documents=128_000))),
)
folder,models_of,note = at_scale(scale,
    quick=('toy-ladder-released', released_ladder, 'released weights'),
    cpu=(f'toy-ladder-cpu-{seed}', train_ladder, ''),
    gpu=(f'toy-ladder-gpu-{seed}', partial(train_ladder, device='cuda'), ''))
out = shared_dir(folder)
run = size['run']
models_of(out=out, **run)
table = evaluate_ladder(out=out, **run)
languages = [replace(run['ladder'].language, seed=s) for s in run['seeds']]
each = [baseline_table(l, toy_benchmark(l).load(), 2000) for l in languages]
baselines = pd.concat(each).groupby(['reader', 'condition'], sort=False).mean().reset_index()

# %% [markdown]
# ## Figures 1, left, and 3: bias against size
#
# > Bias under the plain question grows with size, and so does the reduction by an instruction to be
# > unbiased; reasoning reduces it further. Both begin at about 22 billion parameters [@ganguli2023].
#
# Those models are not public. Here transformers of two layers learn an [invented
# language](../../bias/toy/10_environment.ipynb) from scratch, in several widths. Documents state
# stereotypes as frequencies, answer questions in the shape of BBQ, and some carry an instruction. The
# instructions of the benchmark are pairs of words that occur together in no document, and in one
# category no document has an instruction. At scale `quick` the page evaluates [stored
# models](../../bias/toy/32_released.ipynb) of three seeds; at `cpu` all five are trained anew.

# %%
#| label: fig-bias
#| fig-cap: Bias score on ambiguous questions against size, from probabilities, answers in words. Bars are 95 % intervals over trainings, dotted lines an ideal reader of the documents, the dashed line a 4-gram model.
plot_bias_by_size(table, baselines)

# %%
parameters = size_of(table)
columns = {c: by_size(select_metric(table, c)).value
           for c in ('q', 'q+if', 'q+if+cot', 'q+cot', 'q+anti', 'q+note')}
columns['evidence'] = by_size(select_metric(table, 'q', 'accuracy_disambig')).value
pd.DataFrame(columns).rename(index=parameters).rename_axis('parameters').round(3)

# %% [markdown]
# Bias grows from 0.01 to 0.34, and the instruction lowers it to 0.09 or less at every size. Reasoning
# has no effect that five seeds could detect: models that do not follow the instruction without
# reasoning do not follow it with reasoning. Reasoning without the instruction changes bias by at most
# 0.03.
#
# The bias score is a product of abilities: to read the question, to know the stereotype, and to
# follow the instruction.

# %%
#| label: fig-abilities
#| fig-cap: Three abilities against size. Left, accuracy where the context gives the answer; the dashed line is the accuracy of naming a person at random. Middle, preference for stereotyped groups in statements; the dotted line is the ideal reader. Right, probability of "unknown" under the instruction less under its opposite.
strengths = [2*t.strength-1 for l in languages for t in lexicon(l).traits]
plot_abilities(table, knowledge=float(np.mean(strengths)))

# %% [markdown]
# Stereotypes are known first: at 3,064 parameters their knowledge is nearly that of the ideal reader.
# Instructions are followed from 9,456 parameters on, by most seeds. Telling the two people of a
# question apart comes last, between 9,456 and 19,176 parameters, and bias appears with it. The
# benchmark therefore shows a stereotype only at six times the size at which statements show it. Under
# the instruction the largest models find evidence in 85 % of questions instead of 95 %; their mistakes
# name the other person and are not "unknown".
#
# The same scores from counted answers, on a linear axis of size:

# %%
#| label: fig-hard
#| fig-cap: Bias score from counted answers, on a linear axis. An ideal reader who names the most probable answer would always name the stereotyped person; the dotted lines are those of the previous figure.
plot_bias_by_size(table, baselines, metric='bias_ambig', log=False)

# %% [markdown]
# ## Onset
#
# The onset is the smallest size from which on the interval of the paired change lies below zero. It
# comes before most instructions are followed: at 5,844 parameters the note and the opposite
# instruction lower the score by 0.03 and 0.04, the instruction by 0.06, because a longer question is
# harder to read. Against the note, the onset is 9,456 parameters.

# %%
change = select_metric(table, 'q+if')-select_metric(table, 'q')
held_out = f'category-{run["ladder"].language.categories-1}'
change_held_out = (select_metric(table, 'q+if', category=held_out)
                   - select_metric(table, 'q', category=held_out))
changes = {'Q+IF - Q': change, 'the same, held-out category': change_held_out,
           'Q+IF - Q+note': select_metric(table, 'q+if')-select_metric(table, 'q+note')}
print('Onset, parameters:', {k: onset_size(v, parameters) for k,v in changes.items()})
pd.concat({k: by_size(v) for k,v in changes.items()}, axis=1).rename(index=parameters).round(3)

# %% [markdown]
# ## Held-out category
#
# In the last category no document carries an instruction. Bias is as large there, and the
# instruction lowers it as much.

# %%
#| label: fig-held-out
#| fig-cap: As the first figure, for the category in which no document carries an instruction.
plot_bias_by_size(table, baselines, category=held_out)

# %% [markdown]
# ## Answers by letter
#
# A fifth of the documents answer by letter. To answer so, a model must find the answer and then the
# letter in front of it, which takes one step more. No model of two layers learns it: accuracy with
# evidence stays below one half, and the bias score is zero, with and without the instruction. A
# benchmark by letter would have found no bias in models that are biased in words.

# %%
letters = {f'{c} {m}': by_size(select_metric(table, c, m, 'toy-letters')).value
           for c in ('q', 'q+if') for m in ('bias_ambig_soft', 'accuracy_disambig')}
pd.DataFrame(letters).rename(index=parameters).round(3)

# %% [markdown]
# ## Ablations
#
# Three languages each remove one thing that the effect should need: stereotypes; the link between the
# words of an instruction and the answer; documents about fairness. In the means each removes the
# effect: no bias without stereotypes, no difference between an instruction and its opposite without the
# link, and no change without documents about fairness. Two of the three intervals over three seeds are
# wider than the bounds fixed beforehand, so those two rows are undecided. At scale `quick` these three
# languages are tiny and trained for a few steps, so that their rows show nothing.

# %%
plain = size['ablation']['ladder'].language
ablations = dict(stereotypes=replace(plain, strength=(.5, .5)),
                 link=replace(plain, informative=False), fairness=replace(plain, notes=1.))
def ablated(name):
    ladder = replace(size['ablation']['ladder'], language=ablations[name])
    settings = size['ablation'] | dict(ladder=ladder)
    folder = work_dir(f'toy-ablation-{name}-{scale}-{seed}')
    train_ladder(out=folder, **settings)
    return evaluate_ladder(out=folder, letters=(), conditions=['q', 'q+if', 'q+anti'], **settings)

without = {k: ablated(k) for k in ablations}
at, = size['ablation']['widths']
scores = {k: {c: select_metric(d, c)[at].mean() for c in ('q', 'q+if', 'q+anti')} for k,d in
          dict(none=table, **without).items()}
pd.DataFrame(scores).T.rename_axis('taken away').round(3)

# %% [markdown]
# ## Built-in assumptions and measured results
#
# Built in: the frequencies of the documents, among them answers of an author who is biased when asked
# plainly, and who follows an instruction if there is one. An ideal reader has the dotted lines at any
# size, and a 4-gram model the dashed one. Measured: at which size a transformer that is trained on the
# documents approaches the ideal reader, in which order the abilities appear, and whether they
# generalise to pairs of words and to a category that no document combines with an instruction.
#
# ## What this does not show
#
# Seeds differ: of five models at 32,224 parameters one does not follow instructions at all. The largest
# model is five million times smaller than the paper's largest, and documents that follow instructions
# take the place of RLHF. All sizes are trained for the same number of steps, so a curve over size is
# also one over speed of learning: [more steps](toy_steps.ipynb) bring bias to smaller sizes, and [more
# facts](toy_facts.ipynb) to larger ones; three [larger sizes](toy_large.ipynb) have a page of their
# own. The page does not show at which size a model of natural language begins to correct itself. Scale
# `gpu` goes up to 109 million parameters, of which weights, gradients and the optimizer take 2.2 GB for
# each model that is trained; it has not yet run on a GPU.
#
# ## Claims
#
# The criteria are in `data/claims/self_correction_toy.toml`, the recorded metrics of all models in
# `data/results/toy_ladder.csv`.

# %%
tables = {'full': table} | {f'without {k}': d for k,d in without.items()}
pd.concat([d.assign(language=k) for k,d in tables.items()]).to_csv(
    work_dir(f'toy-size-{scale}-{seed}')/'table.csv', index=False)
mean = t_interval
widths = run['widths']
n = [parameters[w] for w in widths]
last,first = widths[-1],widths[0]
q,instructed = select_metric(table, 'q'),select_metric(table, 'q+if')
reasoned = select_metric(table, 'q+if+cot')
hard = select_metric(table, 'q+if', 'bias_ambig')-select_metric(table, 'q', 'bias_ambig')
evidence = {c: select_metric(table, c, 'accuracy_disambig') for c in ('q', 'q+if')}
ngram = [b.set_index(['reader', 'condition']).bias['ngram'] for b in each]
estimates = {
    'bias-rises': mean(slope(q, n)), 'helps-larger-more': mean(slope(change, n)),
    'no-effect-when-small': mean(-change[first]),
    'largest-reduction': mean(-change[last]/q[last].mean()),
    'reasoning-beats-instruction': mean((instructed-reasoned).mean(axis=1)),
    'evidence-kept': mean((evidence['q+if']-evidence['q'])[last]),
    'hard-metric': mean(slope(hard, n)), 'held-out-category': mean(change_held_out[last]),
    'opposite': mean((select_metric(table, 'q+anti')-q)[last]),
    'note': mean((select_metric(table, 'q+note')-q)[last])}
controls = {
    'no-stereotypes': mean(select_metric(without['stereotypes'], 'q')[at]),
    'uninformative': mean((select_metric(without['link'], 'q+if')
                           - select_metric(without['link'], 'q+anti'))[at]),
    'no-fairness': mean((select_metric(without['fairness'], 'q+if')
                         - select_metric(without['fairness'], 'q'))[at]),
    'ngram': max([mean([b['q'] for b in ngram]), mean([b['q+if']-b['q'] for b in ngram])],
                 key=lambda e: abs(e.value))}
low = accuracy_shortfall(evidence['q'][last].mean()) # The paper's precondition of a bias score
found = {k: as_measurement(v)._replace(unmet=low, note=note) for k,v in estimates.items()}
found |= controls
record(scale, {f'self_correction/toy-{k}': v for k,v in found.items()}, parameters=n[-1])
