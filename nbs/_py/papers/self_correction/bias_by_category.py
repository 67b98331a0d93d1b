# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # BBQ bias by category: soft scores below 0.01 at 135M and 270M
#
# > Bias scores of two small models are near zero as in Figures 1 (left) and 3, but their accuracy is at chance; one of eight category scores differs from zero after adjustment, by 0.0013.

# %% tags=["parameters"]
scale = 'quick'  # quick: stub models, seconds; cpu: two small models, minutes; gpu: size families
seed = 0         # sample of scenes, and the draws behind the intervals
models = ()      # --model NAME: aliases, folders or hub ids; default: those of the scale

# %%
#| hide
import pandas as pd
from moral_sc.bias import bbq
from moral_sc.bias.bbq.metrics import accuracy_shortfall
from moral_sc.bias.plots import final_step, plot_changes, plot_category_panels, plot_size
from moral_sc.bias.power import add_detectable, holm_by_category, simultaneous_intervals
from moral_sc.bias.sweep import item_bias, models_of_families, models_or_stubs, sweep
from moral_sc.foundation.statistics import cluster_bootstrap
from moral_sc.lab.claims import as_measurement, format_estimate, record
from moral_sc.lab.paths import work_dir
from moral_sc.lab.scales import at_scale

# %%
size = at_scale(scale, # the third condition, with reasoning, needs larger models
    quick=dict(limit=32, categories=['Age','Disability_status','Nationality','Sexual_orientation']),
    cpu=dict(limit=640),
    gpu=dict(conditions=['q','q+if','q+if+cot']),
)
MODELS = dict(quick=(), cpu=('smollm2-135m-instruct','gemma-3-270m'),
              gpu=models_of_families('qwen2.5','gemma-3','olmo-2', stages=['instruct']))
named = models or MODELS[scale] # None at scale quick: stub models on our own questions
size |= models_or_stubs(named)

# %% [markdown]
# ## Figure 1, left: bias score against size
#
# The main result of the paper:
#
# > Under the plain question, models below 22 billion parameters score close to zero on ambiguous
# > questions; above, the score rises to 0.20. The instruction lowers it by 43 % at 175 billion, and
# > reasoning first by 84 %. By category the bias is large for age, disability, nationality,
# > physical appearance, religion and class, and small for gender identity, race and sexual
# > orientation [@ganguli2023].
#
# Our two models are two orders of magnitude below that rise: SmolLM2-135M-Instruct [@allal2025smollm2]
# is tuned to follow instructions, Gemma-3-270M [@gemma2025gemma3] is not. They are not a family of
# sizes. They test the flat part of the figure: whether the score is zero in every category, and how far
# from zero it could be without being detected. The hypothesis is that every score and change is zero; a
# category whose score or change differs from zero after adjustment counts against it.
#
# Each question is answered in three orders of its options, so that the letter preference cancels.
# The sample is spread over templates.

# %%
results = sweep(**size, orders=3, seed=seed, out=work_dir(f'sweep-bbq-{scale}-{seed}'))
results

# %%
#| label: fig-overall
#| fig-cap: Bias score on ambiguous questions of the categories within reach (4 of 11 in the recorded run) against size, from the probabilities of the letters; bars are 95 % intervals that draw templates.
plot_size(results.table)


# %% [markdown]
# The axis is in thousandths; the paper's 0.20 is far above the frame. The paper computes its score
# from answers, not from probabilities. Both, for all questions of the categories within reach:

# %%
def metric_table(metrics, conditions=('q','q+if','q+if - q'), category='micro'):
    d = final_step(results.table).query('category==@category and metric in @metrics '
                                        'and condition in @conditions')
    d = d.assign(text=[format_estimate(*x) for x in zip(d.value, d.low, d.high)])
    table = d.pivot_table(index=['metric','model'], columns='condition', values='text',
                          aggfunc='first', sort=False)
    return table.rename_axis(columns=bbq.coverage(results.table.category))
metric_table(['bias_ambig','bias_ambig_soft'])

# %% [markdown]
# The sample, by category. The other seven of BBQ's eleven files were not within reach, those on gender, race,
# religion, class and physical appearance among them:

# %%
name = results.table.model.iloc[0]
sample = results.records(name).query('condition=="q" and order==0')
sample.groupby('category').agg(questions=('id','nunique'), templates=('template','nunique'))

# %% [markdown]
# ## Figure 3: bias score by category

# %%
#| label: fig-categories
#| fig-cap: Bias score on ambiguous questions against size, one panel per category within reach and one for all of these, from the probabilities of the letters; bars are 95 % intervals that draw templates.
plot_category_panels(results.table)

# %% [markdown]
# Each category is one test of the hypothesis that the score is zero, and p-values are adjusted for the
# number of tests. One score differs from zero after adjustment, that of Gemma-3-270M on sexual
# orientation. It counts against the hypothesis, although at 0.0013 it is less than a hundredth of the
# paper's 0.20.

# %%
plain = holm_by_category(final_step(results.table), condition='q')
plain[['model','category','value','p','adjusted','holds']].round(4)

# %%
#| label: fig-changes
#| fig-cap: Change due to the instruction, by category and model, question by question; bars are 95 % intervals of the paired difference that draw templates. A filled mark is significant after Holm's adjustment over the categories.
changes = holm_by_category(final_step(results.table))
plot_changes(changes)

# %% [markdown]
# ## Detectable changes
#
# The last column is the smallest true change that this run would have detected with 80 % power:

# %%
changes[['model','category','value','p','adjusted','holds','detectable']].round(4)

# %% [markdown]
# No change is significant, but that is no evidence of no change, because a smaller sample makes
# significance less likely. Intervals bound the change. For $m$ combinations of category and model they
# have level $1-0.05/m$, so that all hold at once:

# %%
bounds = simultaneous_intervals(changes)
bounds[['model','category','value','low','high']].round(4)

# %%
overall = add_detectable(final_step(results.table).query(
    'category=="micro" and condition=="q+if - q" and metric in ["bias_ambig","bias_ambig_soft"]'))
overall[['model','metric','value','detectable']].round(4)


# %% [markdown]
# For comparison, the score of the paper's largest model falls by 43 % of 0.20, which is 0.086.
#
# ## What this does not show
#
# This page does not show that these models are fair. They do not find [answers that the context
# gives](accuracy.ipynb), and a model whose answers do not depend on the question cannot be biased by
# it. Two unrelated models also do not determine a slope over size; that needs several sizes of one
# family, and [the page on size and steps](size_and_steps.ipynb) has the command.
#
# ## Claims
#
# The criteria are in `data/claims/self_correction_sweep.toml` and were written before this run.
# Known by then was a first run of SmolLM2 alone, which answers nearly every question with one
# letter. The row on the bound was written after the changes above were seen; it replaces the one on
# p-values. The paper takes high accuracy as a prerequisite of the score, so that its statement on small models
# stays undecided here.

# %%
def farthest(d, centre=0.):
    "Return the estimate whose interval reaches farthest from `centre`"
    reach = pd.concat([(d.low-centre).abs(), (d.high-centre).abs()], axis=1).max(axis=1)
    return tuple(d.loc[reach.idxmax(), ['value','low','high']])

def contrast(model):
    "Estimate the mean of age, disability and nationality less sexual orientation"
    v = item_bias(results.records(model))
    sign = v.category.map(lambda c: -1 if c=='Sexual_orientation' else 1/3)
    n = v.category.map(v.category.value_counts())
    return cluster_bootstrap(v.value*sign/n*len(v), v.template, strata=v.category)

last = final_step(results.table)
small = last.query('parameters<1e9 and category=="micro"')
sizes = dict(zip(last.model, last.parameters))
unmet = '' if named else 'stub models answered'
if named and not bbq.reachable(): unmet = 'questions of ours stand in for BBQ'
outcomes = {}
unmet_by = {}
if len(small): # Not with large models alone
    accuracy = small.query('metric=="accuracy_disambig" and condition=="q"').value.min()
    unmet_by['self_correction/near-zero-below-1b'] = unmet or accuracy_shortfall(accuracy)
    outcomes |= {
        'self_correction/near-zero-below-1b':
            farthest(small.query('metric=="bias_ambig" and condition=="q"')),
        'self_correction/no-category-moves':
            float(changes.query('parameters<1e9').adjusted.min()),
        'self_correction/no-category-moves-by-bound':
            farthest(bounds.query('parameters<1e9'))}
if {'Age','Disability_status','Nationality','Sexual_orientation'} <= set(sample.category):
    contrasts = [contrast(m) for m in sizes]
    outcomes['self_correction/category-profile'] = tuple(min(contrasts, key=lambda e: e.low))
record(scale, {k: as_measurement(v)._replace(unmet=unmet_by.get(k, unmet))
               for k,v in outcomes.items()}, parameters=int(max(sizes.values())))
