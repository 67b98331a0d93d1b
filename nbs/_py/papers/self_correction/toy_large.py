# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Larger toy models: an instruction removes most of the bias at 1.7 million parameters
#
# > At 1,748,736 parameters bias is 0.41, or 0.83 of an ideal reader's, and an instruction in unseen pairs of words lowers it by 81 % (61 to 101).

# %% tags=["parameters"]
scale = 'quick'  # quick: one larger size, hardly trained; cpu: three; gpu: four, up to width 512
seed = 0         # of the questions asked; trainings have seeds of their own

# %%
#| hide
from dataclasses import replace
import numpy as np, pandas as pd, torch
from moral_sc.bias.bbq.metrics import accuracy_shortfall
from moral_sc.bias.toy.environment import encoded_documents, lexicon, toy_benchmark
from moral_sc.bias.toy.ladder import (Ladder, baseline_scores, baseline_table, by_size,
                                      evaluate_ladder, instruction_following, select_metric, slope,
                                      train_ladder)
from moral_sc.bias.toy.plots import plot_abilities, plot_bias_by_size, size_of
from moral_sc.bias.toy.released import released_ladder
from moral_sc.bias.toy.training import StackedLlama, stack_weights, stacked_loss
from moral_sc.foundation.statistics import t_interval
from moral_sc.lab.claims import as_measurement, record
from moral_sc.lab.paths import shared_dir, work_dir
from moral_sc.lab.scales import at_scale
from moral_sc.language.loading import load

# %%
widths_of_size = [4, 8, 12, 16, 24, 32] # On the page on size
small = at_scale(scale, quick=[32], cpu=widths_of_size, gpu=widths_of_size)
size = at_scale(scale,
    quick=dict(large=[64], seeds=[0, 1], ladder=Ladder(documents=128, epochs=1, together=1)),
    cpu=dict(large=[64, 128, 256], seeds=[0, 1, 2, 3, 4], ladder=Ladder(together=1)),
    gpu=dict(large=[64, 128, 256, 512], seeds=[0, 1, 2, 3, 4], ladder=Ladder(together=1)))
seeds = size['seeds']
folder,models_of = at_scale(scale, quick=('toy-ladder-released', released_ladder),
                            cpu=(f'toy-ladder-cpu-{seed}', train_ladder),
                            gpu=(f'toy-ladder-cpu-{seed}', train_ladder))
def evaluated(out, widths, ladder, models_of=train_ladder):
    "Train or read models of some widths, and evaluate them"
    run = dict(widths=widths, seeds=seeds, out=out, ladder=ladder)
    models_of(**run)
    return evaluate_ladder(**run)

first = evaluated(shared_dir(folder), small, Ladder(), models_of)
large_folder = work_dir(f'toy-large-{scale}-{seed}')
table = pd.concat([first, evaluated(large_folder, size['large'], size['ladder'])])
languages = {s: replace(Ladder().language, seed=s) for s in seeds}
each = [baseline_table(l, toy_benchmark(l).load(), 2000) for l in languages.values()]
baselines = pd.concat(each).groupby(['reader', 'condition'], sort=False).mean().reset_index()

# %% [markdown]
# ## Figures 1, left, and 3: bias against size
#
# > Bias under the plain question grows with size, and so does the reduction by an instruction to be
# > unbiased; reasoning reduces it further [@ganguli2023].
#
# The [page on size](toy_size.ipynb) ends at 32,224 parameters, where bias, evidence and instruction
# are still being learned. Here three further widths learn the same documents in the same number of
# steps. Beyond width 32 the learning rate falls with the width and the initial weights with its
# square root. At scale `quick` two sizes are compared, one of
# [stored models](../../bias/toy/32_released.ipynb) and one that is trained for two steps and shows
# nothing.

# %%
#| label: fig-bias
#| fig-cap: Bias score on ambiguous questions against size, from probabilities, answers in words. Bars are 95 % intervals over trainings, dotted lines an ideal reader of the documents, the dashed line a 4-gram model.
plot_bias_by_size(table, baselines)

# %%
parameters = size_of(table)
def means(table):
    "Return mean scores by number of parameters"
    columns = {c: by_size(select_metric(table, c)).value
               for c in ('q', 'q+if', 'q+if+cot', 'q+cot', 'q+anti', 'q+note')}
    columns['evidence'] = by_size(select_metric(table, 'q', 'accuracy_disambig')).value
    columns['following'] = by_size(instruction_following(table)).value
    return pd.DataFrame(columns).rename(index=size_of(table)).rename_axis('parameters').round(3)

means(table)

# %%
#| label: fig-abilities
#| fig-cap: Three abilities against size. Left, accuracy where the context gives the answer; the dashed line is the accuracy of naming a person at random. Middle, preference for stereotyped groups in statements; the dotted line is the ideal reader. Right, probability of "unknown" under the instruction less under its opposite.
strengths = [2*t.strength-1 for l in languages.values() for t in lexicon(l).traits]
plot_abilities(table, knowledge=sum(strengths)/len(strengths))

# %% [markdown]
# Most of the rise of bias and of evidence lies below 32,224 parameters. Beyond, mean bias grows from
# 0.34 to 0.41, which five trainings cannot distinguish from no growth (0.04 per factor of ten, -0.02 to
# 0.10). At the largest size accuracy with evidence is 100 %, and 98 % under the instruction (85 % at
# width 32). Reasoning has no detectable effect, as at smaller sizes.
#
# Instruction following stays below that of the ideal reader: 0.64 at the largest size (0.38 to 0.91).
# Single trainings of one size lie between 0 and 0.9. Models that otherwise reproduce the documents thus
# do not always follow pairs of words that occur together in no document.

# %%
wide = small[-1:]+size['large']
def single(table):
    "Return bias and following of each training"
    parts = {'bias, Q': select_metric(table, 'q'), 'following': instruction_following(table)}
    return pd.concat({k: v[wide].rename(columns=parameters) for k,v in parts.items()}, axis=1)

single(table).round(2)

# %% [markdown]
# ## Learning rate
#
# The first trainings of these widths, whose rows were registered first, had a learning rate that
# falls with the square root of the width, as it does up to width 32. At width 256 that rate is 2.8
# times as large.

# %%
#| label: fig-root
#| fig-cap: As the first figure; from 117,696 parameters on with a learning rate that falls with the square root of the width.
root_folders = {w: work_dir(f'toy-root-rate-{w}-{scale}-{seed}') for w in size['large']}
rates = {w: size['ladder'].lr*(w/32)**.5 for w in size['large']} # Undo the further fall
root = pd.concat([first, *(evaluated(root_folders[w], [w], replace(size['ladder'], lr=rates[w]))
                           for w in size['large'])])
plot_bias_by_size(root, baselines)


# %%
def document_loss(folder, width, seed, documents, step=100):
    "Return the loss of a model, in nats a token, averaged over batches of documents"
    model = load(f'{folder}/width-{width}-seed-{seed}').model
    net,weights = StackedLlama(model.config),stack_weights([model])
    parts = [documents[k:k+step] for k in range(0, len(documents), step)]
    with torch.no_grad():
        losses = [stacked_loss(net, weights, [d], [list(range(len(d)))]).item() for d in parts]
    return np.average(losses, weights=[len(d) for d in parts])

texts = {s: dict(learned=encoded_documents(l, size['ladder'].documents, s)[:1000],
                 new=encoded_documents(l, 1000, s+1000)) for s,l in languages.items()}
folders = dict.fromkeys(size['large'], large_folder)
places = {'inverse to the width': {32: shared_dir(folder)} | folders,
          'inverse to its square root': {32: shared_dir(folder)} | root_folders}
losses = {(rule, kind): {parameters[w]: sum(document_loss(f, w, s, texts[s][kind])
                                            for s in seeds)/len(seeds) for w,f in at.items()}
          for rule,at in places.items() for kind in ('learned', 'new')}
pd.DataFrame(losses).rename_axis('parameters').round(3)

# %%
means(root).loc[[parameters[w] for w in wide]]


# %% [markdown]
# With the larger rate the widest models fit their documents worse than those of width 32 do (loss 0.313
# instead of 0.291 on documents they were trained on). Bias and following fall with size, and accuracy
# with evidence is lowest at the largest size. This is a failure of training and says nothing about
# size; its rows stay as they were registered. The lower rate was then chosen by the loss of one
# training with a seed that is not among the five, and six rows were registered for it. Steps, layers
# and initial weights were not tuned, so the curves show what these settings reach and not what a size
# can learn.

# %% [markdown]
# ## Answers by letter
#
# To answer by letter a model must find the answer and then the letter in front of it. No width learns
# that in these steps: accuracy is at most 0.52, and naming one of the two people at random gives one
# half.

# %%
def accuracy_by_letter(table): return select_metric(table, 'q', 'accuracy_disambig', 'toy-letters')

shown = {'inverse to the width': table, 'inverse to its square root': root}
pd.DataFrame({k: by_size(accuracy_by_letter(t)).value for k,t in shown.items()}).rename(
    index=parameters).rename_axis('parameters').round(3)

# %% [markdown]
# ## What this does not show
#
# Models of 1.7 million parameters are still a hundred thousand times smaller than the paper's largest,
# and their language has 24 stereotypes. Five trainings a size differ so much in following that neither
# growth nor decline beyond 32,224 parameters could be detected. Sizes up to 109 million parameters can
# be trained with the same code; none has been, and nothing has yet run on a GPU.
#
# ## Claims
#
# The criteria are in `data/claims/self_correction_toy_large.toml`, the metrics of all models in
# `data/results/toy_large.csv`.

# %%
n = [parameters[w] for w in wide]
last = wide[-1]
ideal = baseline_scores(Ladder().language, seeds).bias
def estimates(table):
    "Return the estimates of one learning rate, by claim"
    q,instructed,note = (select_metric(table, c) for c in ('q', 'q+if', 'q+note'))
    change = (instructed-q)[wide]
    evidence = {c: select_metric(table, c, 'accuracy_disambig')[last] for c in ('q', 'q+if')}
    values = {'bias': slope(q[wide], n), 'helps': slope(change, n),
              'evidence': evidence['q+if']-evidence['q'],
              'reduction': -change[last]/q[last].mean(), 'ideal': q[last]/ideal,
              'following': instruction_following(table)[last], 'note': note[last]-q[last]}
    low = accuracy_shortfall(evidence['q'].mean()) # The paper's precondition of a bias score
    return {k: as_measurement(t_interval(v))._replace(unmet=low) for k,v in values.items()}

lower = {f'lower-rate-{k}': v for k,v in estimates(table).items() if k!='note'}
letters = dict(letters=as_measurement(t_interval(accuracy_by_letter(root)[last])))
found = estimates(root) | letters | lower
record(scale, {f'self_correction/toy-large-{k}': v for k,v in found.items()}, parameters=n[-1])
