# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Size and RLHF steps: two models cannot establish a trend
#
# > Two models of different families cannot establish a trend over size or RLHF steps (Figures 2 and 5); the bias of both is near zero.

# %% tags=["parameters"]
scale = 'quick'  # quick: stub models, seconds; cpu: two small models, minutes; gpu: size families
seed = 0         # sample of scenes, and the draws behind the intervals
models = ()      # --model NAME: aliases, folders or hub ids; default: those of the scale

# %%
#| hide
import numpy as np, pandas as pd
from moral_sc.bias import bbq
from moral_sc.bias.bbq.metrics import accuracy_shortfall
from moral_sc.bias.plots import final_step, plot_size, plot_steps
from moral_sc.bias.power import detectable_effect, add_detectable
from moral_sc.bias.sweep import (item_bias, models_of_families, models_or_stubs, onset, sweep,
                                 trend)
from moral_sc.foundation.statistics import Estimate
from moral_sc.lab.claims import as_measurement, record
from moral_sc.lab.paths import work_dir
from moral_sc.lab.scales import at_scale
from moral_sc.language.weights import aliases

# %%
size = at_scale(scale, # the same runs as on the page on categories, read from their folder
    quick=dict(limit=32, categories=['Age','Disability_status','Nationality','Sexual_orientation']),
    cpu=dict(limit=640),
    gpu=dict(conditions=['q','q+if']),
)
MODELS = dict(quick=(), cpu=('smollm2-135m-instruct','gemma-3-270m'),
              gpu=models_of_families('qwen2.5','gemma-3','olmo-2','pythia-hh',
                                     max_parameters=4e10))
named = models or MODELS[scale] # None at scale quick: stub models on our own questions
size |= models_or_stubs(named)
results = sweep(**size, orders=3, seed=seed, out=work_dir(f'sweep-bbq-{scale}-{seed}'))
results

# %% [markdown]
# ## Figures 2 and 5: size and RLHF steps
#
# The paper varies model size and the number of RLHF steps, 88 models in all:
#
# > Bias under the plain question begins above 22 billion parameters. In the largest model it falls
# > with RLHF steps under every condition, most of all under the instruction [@ganguli2023].
#
# Those models are not public. Open families can replace them: their sizes differ by a factor of a
# hundred and more, OLMo-2 is published after each stage of its training, and Pythia was trained on the
# same preference data in five sizes. Every claim about size is a claim *within a family*, because
# models of two developers differ in much more than size.
#
# The two models recorded here are of different families. The figures therefore have no lines, and
# the two claims about slopes stay open. The family run below has not yet been made on a GPU.

# %%
#| label: fig-size
#| fig-cap: Bias score on ambiguous questions against size, from the probabilities of the letters, in three option orders; lines join models of one family and stage. Bars are 95 % intervals that draw templates.
plot_size(final_step(results.table))

# %%
#| label: fig-change-size
#| fig-cap: Change of the bias score due to the instruction, question by question, against size; bars are 95 % intervals of the paired difference.
plot_size(results.table, conditions=['q+if - q'])

# %%
changes = add_detectable(final_step(results.table).query(
    'category=="micro" and condition=="q+if - q" and metric=="bias_ambig_soft"'))
changes[['model','parameters','value','low','high','detectable']].round(4)

# %% [markdown]
# The onset of self-correction is the smallest model whose bias the instruction detectably reduces.
# The paper finds 22 billion parameters; here:

# %%
first = onset(final_step(results.table))
f'{first["model"]}, {first["value"]:.3f}' if first else 'none of these models'


# %% [markdown]
# ## Slope over size
#
# Within a family, the slope over the logarithm of size is one number per condition. All sizes share
# their questions, so each bootstrap draw uses the same templates for all sizes.

# %%
def slopes(change=False):
    "Estimate the slope of the score, or of its change, per factor of ten in size, by family"
    rows = {}
    for name,g in final_step(results.table).groupby(['family','stage'], sort=False):
        models = g.drop_duplicates('model').sort_values('parameters')
        if models.parameters.nunique()<3: continue
        records = [results.records(m) for m in models.model]
        x = np.log10(models.parameters.astype(float))
        bias = {c:[item_bias(r, c) for r in records] for c in ('q','q+if')}
        if change: bias = {'q+if - q':[a.assign(value=a.value-b.value)
                                       for a,b in zip(bias['q+if'], bias['q'])]}
        rows[' '.join(name).strip()] = {c:trend(y, list(x)) for c,y in bias.items()}
    return rows

score_slopes = slopes()
change_slopes = slopes(change=True)
pd.DataFrame({f:a | change_slopes[f] for f,a in score_slopes.items()}) if score_slopes else \
    'No family with three sizes was evaluated.'

# %% [markdown]
# ## RLHF steps
#
# A repository with checkpoints of several steps is evaluated with one name per step,
# `name@revision`; a model of your own with the folder of its snapshots. Both are rows of the same
# table as the sizes.

# %%
if results.table.step.notna().any(): display(plot_steps(results.table))
else: print('No evaluated model has a training step.')

# %% [markdown]
# If no steps are published, the stages of one model can be compared. The available checkpoints by
# stage:

# %%
d = pd.DataFrame(a.__dict__ for a in aliases().values())
d = d[d.family.isin(['olmo-2','pythia-hh','pythia-helpful'])]
d.pivot_table(index='family', columns='stage', values='name', aggfunc='count').fillna(0).astype(int)

# %% [markdown]
# One command evaluates all of them and can be resumed:
#
#     moral_sc bias sweep --family qwen2.5 --family gemma-3 --family olmo-2 --at-most 4e10 \
#         --benchmark bbq --condition q --condition q+if --orders 3 --out runs/ladder
#
# ## Statistical power
#
# The paper's largest change is a fall by 43 % of 0.20. The table has the change that a run of all 343
# templates of BBQ would detect, if answers varied over templates as much as the probabilities here. The
# answers of larger models are more decided and vary more, so this is a lower bound.

# %%
records = results.records(results.table.model.iloc[0])
n = records.query('context_condition=="ambig"').template.nunique()
se = changes.detectable/detectable_effect(1)
pd.DataFrame(dict(model=changes.model, templates=n, here=changes.detectable,
                  of_343=[detectable_effect(s*np.sqrt(n/343)) for s in se], paper=.43*.2)).round(5)


# %% [markdown]
# The recorded table is `data/results/bbq_small_models.csv`, with its provenance beside it.
#
# ## What this does not show
#
# Two model sizes cannot establish a trend, and no checkpoints of RLHF steps were evaluated: three of
# this page's four claims have never been run. The page shows that two models at the low end of the
# paper's size axis score near zero with and without the instruction, as in the paper, with intervals
# far narrower than the effect that it reports for large models.
#
# ## Claims
#
# The criteria are in `data/claims/self_correction_sweep.toml`. Three of the four need models that were
# not available: a family of three sizes that ends at 22 billion parameters or more, or checkpoints of
# one model along its preference training. They have not been run and are missing from the table; the
# page judges them if such models are named with `--model`. The fourth claim is that the instruction
# does not reduce bias in any small model. The models here meet it, but they do not find answers that
# the context gives. This precondition of the paper is unmet, so the claim stays undecided.

# %%
def worst_family(rows, condition, lowest):
    "Return the family that speaks most against a criterion"
    estimates = [row[condition] for row in rows.values() if condition in row]
    return tuple(min(estimates, key=lambda e: e.low) if lowest else
                 max(estimates, key=lambda e: e.high))

def changes_with_steps():
    "Estimate the score under the instruction at the last step less the first, by model"
    d = results.table[results.table.step.notna()].drop_duplicates('model')
    for _,g in d.groupby(['family','parameters']):
        if len(g)<2: continue
        ends = g.sort_values('step').model.iloc[[0,-1]]
        yield trend([item_bias(results.records(m), 'q+if') for m in ends], [0,1])

last = final_step(results.table).query('category=="micro"')
small = last.query('parameters<1e9')
d = small.query('metric=="bias_ambig_soft" and condition=="q+if - q"')
fall = [Estimate(-v, -h, -l) for v,l,h in zip(d.value, d.low, d.high)]
unmet = '' if named else 'stub models answered'
if named and not bbq.reachable(): unmet = 'questions of ours stand in for BBQ'
unmet_by = {}
outcomes = {}
if fall: # Not with large models alone
    accuracy = small.query('metric=="accuracy_disambig" and condition=="q"').value.min()
    unmet_by['self_correction/no-onset-below-1b'] = unmet or accuracy_shortfall(accuracy)
    outcomes['self_correction/no-onset-below-1b'] = tuple(max(fall, key=lambda e: e.high))
step_changes = list(changes_with_steps())
if step_changes: outcomes['self_correction/falls-with-training'] = tuple(
    max(step_changes, key=lambda e: e.high))
if score_slopes: outcomes |= {
    'self_correction/rises-with-size': worst_family(score_slopes, 'q', True),
    'self_correction/helps-larger-more': worst_family(change_slopes, 'q+if - q', False)}
record(scale, {k: as_measurement(v)._replace(unmet=unmet_by.get(k, unmet))
               for k,v in outcomes.items()}, parameters=int(last.parameters.max()))
