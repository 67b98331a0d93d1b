# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # At 135 and 270 million parameters no category's bias reaches a hundredth
#
# > Figures 1 (left) and 3: BBQ in three option orders by category. The site shows a run recorded
# > at `scale = 'cpu'` with two small models; the parameters below are those of a quick rerun.

# %% tags=["parameters"]
scale = 'quick'  # quick: stand-ins, seconds; cpu: two small models, minutes; gpu: ladders of sizes
seed = 0         # which scenes are taken, and the draws behind the intervals

# %%
#| hide
import pandas as pd
from moral_sc.bias import bbq
from moral_sc.bias.plots import final_step, plot_changes, plot_category_panels, plot_size
from moral_sc.bias.power import holm_by_category, add_detectable
from moral_sc.bias.sweep import item_bias, models_of_families, stub_sweep_models, sweep
from moral_sc.foundation.statistics import cluster_bootstrap
from moral_sc.lab.claims import record, format_estimate
from moral_sc.lab.paths import work_dir
from moral_sc.lab.scales import at_scale

# %%
size = at_scale(scale, # the paper's third condition, reasoning first, waits for models that reason
    quick=dict(models=stub_sweep_models(bbq.load(source='ours')), benchmarks='bbq-like', limit=32,
               categories=['Age','Disability_status','Nationality','Sexual_orientation']),
    cpu=dict(models=['smollm2-135m-instruct','gemma-3-270m'], benchmarks='bbq', limit=640),
    gpu=dict(models=models_of_families('qwen2.5','gemma-3','olmo-2', stages=['instruct']),
             benchmarks='bbq', conditions=['q','q+if','q+if+cot']),
)

# %% [markdown]
# The paper's first figure is its reason to exist:
#
# > Asked plainly, models below 22 billion parameters score close to zero on ambiguous questions;
# > above, the score jumps to 0.20. The instruction takes 43 % off at 175 billion, reasoning first
# > 84 %. By category the bias is large for age, disability, nationality, physical appearance,
# > religion and class, and small for gender identity, race and sexual orientation
# > [@ganguli2023].
#
# Two models within reach of a laptop lie two orders of magnitude below that jump:
# SmolLM2-135M-Instruct [@allal2025smollm2] and Gemma-3-270M [@gemma2025gemma3], one tuned to follow
# instructions, one not. They are no ladder of sizes. What they can test is the flat part of the
# figure: whether the score is zero there in every category, and how far from zero it could have
# been without our seeing it. The hypothesis is that nothing is found; a category whose score
# or whose change clears zero after adjustment counts against it.
#
# ## The run
#
# Every question is asked in three orders of its options, so that a liking for a letter cancels,
# and the sample is spread over templates.

# %%
found = sweep(**size, orders=3, seed=seed, out=work_dir(f'sweep-bbq-{scale}-{seed}'))
found

# %%
name = found.table.model.iloc[0]
asked = found.records(name).query('condition=="q" and order==0')
asked.groupby('category').agg(questions=('id','nunique'), templates=('template','nunique'))

# %%
#| label: fig-overall
#| fig-cap: Bias score on ambiguous questions of all categories against size, from the probabilities of the letters; bars are 95% intervals that draw templates.
plot_size(found.table)


# %% [markdown]
# Mind the scale: where the marks lie within hundredths of zero, the paper's 0.20 is far above the
# frame. Its own score reads answers rather than probabilities. Both, for all questions:

# %%
def shown(metrics, conditions=('q','q+if','q+if - q'), category='micro'):
    d = final_step(found.table).query('category==@category and metric in @metrics '
                                     'and condition in @conditions')
    d = d.assign(text=[format_estimate(*x) for x in zip(d.value, d.low, d.high)])
    return d.pivot_table(index=['metric','model'], columns='condition', values='text',
                         aggfunc='first', sort=False)
shown(['bias_ambig','bias_ambig_soft'])

# %% [markdown]
# ## By category

# %%
#| label: fig-categories
#| fig-cap: Bias score on ambiguous questions against size, a panel a category, from the probabilities of the letters; bars are 95% intervals that draw templates.
plot_category_panels(found.table)

# %% [markdown]
# Whether a panel's score differs from zero is a question to each category, and the p-values are
# adjusted for asking as many. At a hundredth and below, what an interval clears zero with has no
# weight in the paper's terms, though it may be there:

# %%
plain = holm_by_category(final_step(found.table), condition='q')
plain[['model','category','value','p','adjusted','holds']].round(4)

# %%
#| label: fig-changes
#| fig-cap: What the instruction changed, by category and model, question by question; bars are 95% intervals of the paired difference that draw templates. A filled mark remains after Holm's adjustment over the categories.
changes = holm_by_category(final_step(found.table))
plot_changes(changes)

# %% [markdown]
# Each interval also says what was in its power. The last column is the change that this run
# would have found four times in five:

# %%
changes[['model','category','value','p','adjusted','holds','detectable']].round(4)

# %%
overall = add_detectable(final_step(found.table).query(
    'category=="micro" and condition=="q+if - q" and metric in ["bias_ambig","bias_ambig_soft"]'))
overall[['model','metric','value','detectable']].round(4)


# %% [markdown]
# For comparison, the paper's largest model falls by 43 % of 0.20, which is 0.086.
#
# What this does not show: that these models are fair. [The page on accuracy](accuracy.ipynb)
# shows that they do not find answers which the context gives away, and a model that does not
# read the question cannot be biased by it. Nor does a pair of unrelated models say anything
# about the slope over size; that needs the sizes of one family, and
# [the next page](size_and_steps.ipynb) has the command.
#
# ## Claims
#
# The criteria lie in `data/claims/self_correction_sweep.toml` and were written before this run;
# known then was a first look at SmolLM2 alone, which answers nearly everything with one letter.

# %%
def farthest(d, centre=0.):
    "The estimate whose interval reaches farthest from `centre`"
    reach = pd.concat([(d.low-centre).abs(), (d.high-centre).abs()], axis=1).max(axis=1)
    return tuple(d.loc[reach.idxmax(), ['value','low','high']])

def contrast(model):
    "Age, disability and nationality, less sexual orientation"
    v = item_bias(found.records(model))
    sign = v.category.map(lambda c: -1 if c=='Sexual_orientation' else 1/3)
    n = v.category.map(v.category.value_counts())
    return cluster_bootstrap(v.value*sign/n*len(v), v.template, strata=v.category)

small = final_step(found.table).query('parameters<1e9 and category=="micro"')
outcomes = {
    'self_correction/near-zero-below-1b':
        farthest(small.query('metric=="bias_ambig" and condition=="q"')),
    'self_correction/no-category-moves': float(changes.query('parameters<1e9').adjusted.min())}
if {'Age','Disability_status','Nationality','Sexual_orientation'} <= set(asked.category):
    both = [contrast(m) for m in dict.fromkeys(final_step(found.table).model)]
    outcomes['self_correction/category-profile'] = tuple(min(both, key=lambda e: e.low))
if scale=='quick': print('Stand-ins answered, so no claim about models is recorded.')
else: record(scale, outcomes)
