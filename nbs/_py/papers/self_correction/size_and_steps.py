# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Size and training steps in one table
#
# > Figures 2 and 5: how bias depends on size and on preference training. The site shows two small
# > models, recorded at `scale = 'cpu'`; a ladder of sizes and steps is one command and a GPU.

# %% tags=["parameters"]
scale = 'quick'  # quick: stand-ins, seconds; cpu: two small models, minutes; gpu: ladders of sizes
seed = 0         # which scenes are taken, and the draws behind the intervals

# %%
#| hide
import numpy as np, pandas as pd
from moral_sc.bias import bbq
from moral_sc.bias.plots import final_step, plot_size, plot_steps
from moral_sc.bias.power import detectable_effect, add_detectable
from moral_sc.bias.sweep import (item_bias, models_of_families, onset, stub_sweep_models, sweep,
                                 trend)
from moral_sc.foundation.statistics import Estimate
from moral_sc.lab.claims import record
from moral_sc.lab.paths import work_dir
from moral_sc.lab.scales import at_scale
from moral_sc.language.weights import aliases

# %%
size = at_scale(scale, # the runs of the page on categories; what that page asked is not asked again
    quick=dict(models=stub_sweep_models(bbq.load(source='ours')), benchmarks='bbq-like', limit=32,
               categories=['Age','Disability_status','Nationality','Sexual_orientation']),
    cpu=dict(models=['smollm2-135m-instruct','gemma-3-270m'], benchmarks='bbq', limit=640),
    gpu=dict(models=models_of_families('qwen2.5','gemma-3','olmo-2','pythia-hh',
                                       max_parameters=4e10),
             benchmarks='bbq', conditions=['q','q+if']),
)
found = sweep(**size, orders=3, seed=seed, out=work_dir(f'sweep-bbq-{scale}-{seed}'))
found

# %% [markdown]
# Two quantities are varied in the paper, size and the number of steps of training on human
# preferences, 88 models in all:
#
# > Bias under the plain question begins above 22 billion parameters. In the largest model it
# > falls with training steps under every condition, most of all under the instruction
# > [@ganguli2023].
#
# Nobody outside has those models. Open families come near: their sizes differ by a factor of a
# hundred and more, OLMo-2 is published after each stage of its training, and Pythia was trained
# on the same preference data in five sizes. Every claim about size is a claim *within a family*:
# two models of two makers differ in a hundred things, of which size is one.
#
# ## What is here
#
# This page was recorded on a laptop's two models, which are such a pair. It therefore has marks
# and no line, and the two claims about slopes stay open.

# %%
#| label: fig-size
#| fig-cap: Bias score on ambiguous questions against size, from the probabilities of the letters, in three option orders; models of one family and stage are joined. Bars are 95% intervals that draw templates.
plot_size(final_step(found.table))

# %%
#| label: fig-change-size
#| fig-cap: What the instruction changed, question by question, against size; bars are 95% intervals of the paired difference.
plot_size(found.table, conditions=['q+if - q'])

# %%
changes = add_detectable(final_step(found.table).query(
    'category=="micro" and condition=="q+if - q" and metric=="bias_ambig_soft"'))
changes[['model','parameters','value','low','high','detectable']].round(4)

# %% [markdown]
# The threshold of self-correction is the smallest model whose bias the instruction is seen to
# reduce. The paper finds 22 billion; here:

# %%
first = onset(final_step(found.table))
f'{first["model"]}, {first["value"]:.3f}' if first else 'none of these models'


# %% [markdown]
# ## The slope over size
#
# Within a family the slope over the logarithm of size is one number per condition. Questions are
# shared, so templates are drawn once for all sizes.

# %%
def slopes(minus=False):
    "Slope of the score, or of its change, per factor of ten, of each family with three sizes"
    rows = {}
    t = final_step(found.table)
    for f,g in t.groupby(['family','stage'], sort=False):
        models = g.drop_duplicates('model').sort_values('parameters')
        if models.parameters.nunique()<3: continue
        rs = [found.records(m) for m in models.model]
        x = np.log10(models.parameters.astype(float))
        v = {c:[item_bias(r, c) for r in rs] for c in ('q','q+if')}
        if minus: v = {'q+if - q':[a.assign(value=a.value-b.value)
                                   for a,b in zip(v['q+if'], v['q'])]}
        rows[' '.join(f).strip()] = {c:trend(y, list(x)) for c,y in v.items()}
    return rows

both = [slopes(), slopes(minus=True)]
pd.DataFrame({f:a | both[1][f] for f,a in both[0].items()}) if both[0] else \
    'No family of three sizes was asked.'

# %% [markdown]
# ## Steps
#
# A repository that keeps the steps of a training is asked with one name a step,
# `name@revision`; a model trained by ourselves with the folder that holds its snapshots. Both go
# into the same table as the sizes.

# %%
if found.table.step.notna().any(): display(plot_steps(found.table))
else: print('No model asked here says at which step of its training it was taken.')

# %% [markdown]
# Stages of one model can be asked everywhere where steps were not kept. What is in the ladder:

# %%
d = pd.DataFrame(a.__dict__ for a in aliases().values())
d = d[d.family.isin(['olmo-2','pythia-hh','pythia-helpful'])]
d.pivot_table(index='family', columns='stage', values='name', aggfunc='count').fillna(0).astype(int)

# %% [markdown]
# The whole of it, resumable, on one GPU:
#
#     moral_sc bias sweep --family qwen2.5 --family gemma-3 --family olmo-2 --at-most 4e10 \
#         --benchmark bbq --condition q --condition q+if --orders 3 --out runs/ladder
#
# ## How many questions would it take?
#
# The paper's largest change is a fall by 43 % of 0.20. With the spread seen here, how small a
# change would a run of all 343 templates of BBQ detect, if a model's answers varied as much over
# templates as these probabilities do? Larger models commit to answers and vary more, so this is
# a lower bound.

# %%
n = found.records(found.table.model.iloc[0]).query('context_condition=="ambig"').template.nunique()
se = changes.detectable/detectable_effect(1)
pd.DataFrame(dict(model=changes.model, templates=n, here=changes.detectable,
                  of_343=[detectable_effect(s*np.sqrt(n/343)) for s in se], paper=.43*.2)).round(5)


# %% [markdown]
# The recorded table lies in `data/results/bbq_small_models.csv`, with its provenance beside it.
#
# What this page does not show is its title's curve. It shows that the two points at its lower
# left are where the paper has them, near zero with and without the instruction, with intervals
# far narrower than the effect it reports for large models; and it leaves the rest to the command
# above.
#
# ## Claims

# %%
def best(rows, c, low):
    "The family that speaks most against a criterion"
    e = [x[c] for x in rows.values() if c in x]
    return tuple((min if low else max)(e, key=lambda e: e.low if low else e.high))

small = final_step(found.table).query('parameters<1e9 and category=="micro"')
d = small.query('metric=="bias_ambig_soft" and condition=="q+if - q"')
fall = [Estimate(-v, -h, -l) for v,l,h in zip(d.value, d.low, d.high)]
outcomes = {'self_correction/no-onset-below-1b': tuple(max(fall, key=lambda e: e.high))}
if both[0]: outcomes |= {
    'self_correction/rises-with-size': best(both[0], 'q', True),
    'self_correction/helps-larger-more': best(both[1], 'q+if - q', False)}
if scale=='quick': print('Stand-ins answered, so no claim about models is recorded.')
else: record(scale, outcomes)
