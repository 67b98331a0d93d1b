# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # UnifiedQA-11B on BBQ: a bias score of 0.18 to 0.31 below 22 billion parameters
#
# > Released answers of UnifiedQA-11B to the 4 of 11 BBQ categories within reach are accurate, as Figure 1 (left) requires, and have a bias score of 0.18 or 0.31, depending on the prompt format.

# %% tags=["parameters"]
scale = 'quick'  # all scales: every released answer that is within reach, seconds; no model runs
seed = 0         # draws behind the intervals

# %%
#| hide
import numpy as np, pandas as pd
from moral_sc.bias import bbq
from moral_sc.bias.bbq.metrics import bbq_metrics
from moral_sc.bias.bbq.predictions import (alignment_gap, load_predictions, prediction_categories,
                                           prediction_records, script_score)
from moral_sc.bias.plots import FORMAT_STYLES, plot_formats
from moral_sc.bias.sweep import item_bias
from moral_sc.foundation.figures import INK
from moral_sc.foundation.statistics import cluster_bootstrap
from moral_sc.lab.claims import as_measurement, format_estimate, record

# %%
#| label: fig-bias
#| fig-cap: Bias score of UnifiedQA-11B on ambiguous questions by category and prompt format, from its released answers; bars are 95 % intervals that draw templates. The grey band of ±0.05 is our bound for a small model, the dashed line the paper's highest score, 0.20, which it reports above 22 billion parameters.
CATEGORIES = ['Age', 'Disability_status', 'Nationality', 'Sexual_orientation']
rows = load_predictions(CATEGORIES)
is_complete = set(CATEGORIES) <= set(prediction_categories())
records = prediction_records(rows)
metrics = bbq_metrics(records, seed=seed)
metrics = metrics[~metrics.metric.str.endswith('_soft')]
covered = bbq.coverage(metrics.category)
NAMES = {c:style[0] for c,style in FORMAT_STYLES.items()}

fig = plot_formats(metrics, 'bias_ambig', lines=[.2])
fig.add_vrect(-.05, .05, fillcolor=INK, opacity=.12, line_width=0)

# %% [markdown]
# ## Figure 1, left: bias below 22 billion parameters
#
# > Asked plainly, models below 22 billion parameters score close to zero on ambiguous BBQ questions. Above,
# > the score rises to 0.20 [@ganguli2023].
#
# The other pages test this on models of 135 and 270 million parameters. Those do not find answers that
# the context gives, so their score near zero is no evidence. The authors of BBQ released the answers of
# UnifiedQA with 11 billion parameters [@parrish2022bbq], a T5 model finetuned on question answering.
# Its bias can be counted without running it. Of the eleven files the four that are within reach here
# are counted: 9,180 questions about age, disability status, nationality and sexual orientation. No
# score here is one over all of BBQ.
#
# The model answers with a text. It names an option if both are equal apart from case and a final
# full stop; in three of 27,540 answers it names none, and these are left out. The model had no
# instruction, so this page says nothing about self-correction.

# %%
unmatched = records[records.answer.isna()].groupby('condition').id.count()
counted = pd.DataFrame(dict(answers=records.groupby('condition').id.count(),
                            unmatched=unmatched)).fillna(0).astype(int)
counted.rename(index=NAMES)

# %% [markdown]
# ## Precondition: accuracy
#
# The paper calls high accuracy on disambiguated questions a prerequisite of the bias score. The model meets it in
# both formats that have the context. The baseline without the context cannot, by construction.

# %%
#| label: fig-accuracy
#| fig-cap: Accuracy of UnifiedQA-11B on disambiguated questions, where the context gives the answer, in the two formats that have the context; the grey line is chance, the dashed line our criterion of 0.8. Bars are 95 % intervals that draw templates.
fig = plot_formats(metrics, 'accuracy_disambig', ('race','arc'), lines=[.8])
fig.add_vline(x=1/3, line=dict(color='#999', width=1))
fig.update_xaxes(range=[0, 1.02])


# %%
def overall_table(names):
    d = metrics.query('category==@bbq.OVERALL and metric in @names')
    d = d.assign(text=[format_estimate(*x) for x in zip(d.value, d.low, d.high)])
    t = d.pivot_table(index='metric', columns='condition', values='text', aggfunc='first')
    return t.loc[names, list(NAMES)].rename(columns=NAMES).rename_axis(covered)

overall_table(['accuracy_disambig', 'accuracy_ambig', 'bias_ambig', 'conditional_ambig',
               'bias_disambig'])


# %% [markdown]
# In @fig-bias the score of age lies far outside the band in both formats, and so does the score pooled
# over the four categories. The pooled score is 0.18 in one format and 0.31 in the other, for the same
# questions to the same model; the paper's highest score is 0.20. UnifiedQA has half of the parameters
# at which the paper's own models begin to show bias. The onset at 22 billion parameters therefore
# depends on more than size. Without its context a question gets answers as biased as those in the ARC
# format. On disambiguated questions the score is near zero.
#
# ## Category profile
#
# > The bias is large for age, disability status and nationality, among others, and small for sexual orientation
# > [@ganguli2023].

# %%
def profile(condition):
    "Estimate the mean of age, disability and nationality less sexual orientation"
    v = item_bias(records, condition, soft=False)
    sign = v.category.map(lambda c: -1 if c=='Sexual_orientation' else 1/3)
    n = v.category.map(v.category.value_counts())
    return cluster_bootstrap(v.value*sign/n*len(v), v.template, strata=v.category, seed=seed)

profiles = {c:profile(c) for c in ('race','arc')}
pd.DataFrame(profiles, ['value','low','high']).T.rename(index=NAMES).round(3)

# %% [markdown]
# Age and disability status account for the difference. Nationality has a score near that of sexual
# orientation in both formats.
#
# ## Published figures
#
# BBQ's paper draws the scores as a heat map, whose numbers are in an image and could not be read. The script that
# made it is public: answers for the stereotype among those that name a person, doubled, less one, times the share of
# wrong answers. Its formula applied to the same files gives the same scores as ours, to the last digit:

# %%
scripted = pd.Series({c:script_score(d) for c,d in records.groupby('condition', sort=False)})
ours = metrics.query('category==@bbq.OVERALL and metric=="bias_ambig"').set_index('condition').value
assert np.allclose(scripted, ours[scripted.index], atol=1e-12)
pd.DataFrame({"BBQ's script": scripted, 'this page': ours}).rename(index=NAMES).round(4)

# %% [markdown]
# The abstract of the first version of the paper, which has UnifiedQA only, gives one number: on disambiguated
# questions the model is 2.5 percentage points more accurate where the right answer agrees with the stereotype,
# over all categories. In the four here:

# %%
gaps = {c:alignment_gap(d, seed=seed) for c,d in records.groupby('condition', sort=False)}
pd.DataFrame({NAMES[c]: gaps[c] for c in ('race','arc')}, ['value','low','high']).T.round(4)


# %% [markdown]
# Both values are below the published 2.5 points, and both intervals contain it; neither excludes zero.
# The paper reports the largest gap for gender, which is not among the four files.
#
# ## What this does not show
#
# The page does not refute the paper, whose statement is about its own models. It has the answers of one
# model to four of eleven categories, and does not show whether an instruction would reduce its bias.
#
# ## Claims
#
# The criteria are in `data/claims/self_correction_unifiedqa.toml`; all are ours. The first four were
# registered for other models and applied to this one after a first count of these answers; the last one
# was written before its quantity was computed. Three hold. The category profile is undecided, because
# its interval in the RACE format, with 25 templates a category, includes zero. The gain of accuracy
# where the answer agrees with the stereotype is undecided, too.

# %%
def estimates(metric, conditions=('race','arc')):
    d = metrics.query('category==@bbq.OVERALL and metric==@metric and condition in @conditions')
    return [tuple(x) for x in d[['value','low','high']].to_numpy()]

lowest = lambda found: tuple(min(found, key=lambda e: e[1]))
outcomes = {
    'finds-given-answers': lowest(estimates('accuracy_disambig')),
    'is-biased': lowest(estimates('bias_ambig')),
    'category-profile': lowest(profiles.values()),
    'disambiguated-near-zero': max(estimates('bias_disambig'),
                                   key=lambda e: max(abs(e[1]), abs(e[2]))),
    'stereotype-helps': tuple(gaps['race'])}
unmet = '' if is_complete else 'not all of the released answers are within reach'
record(scale, {f'self_correction/unifiedqa-{k}': as_measurement(v)._replace(unmet=unmet)
               for k,v in outcomes.items()})
