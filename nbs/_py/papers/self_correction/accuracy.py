# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # BBQ accuracy: small models do not find answers that the context gives
#
# > Two models below 300M parameters answer BBQ at chance accuracy with and without the instruction (Figures 6, 7 and 8).

# %% tags=["parameters"]
scale = 'quick'  # quick: stub models, seconds; cpu: two small models, minutes; gpu: size families
seed = 0         # sample of scenes, and the draws behind the intervals
models = ()      # --model NAME: aliases, folders or hub ids; default: those of the scale

# %%
#| hide
import pandas as pd
from moral_sc.bias import bbq, letters
from moral_sc.bias.bbq.scoring import offset
from moral_sc.bias.plots import final_step, plot_size
from moral_sc.bias.power import add_detectable
from moral_sc.bias.bbq.metrics import accuracy_shortfall, asked_items
from moral_sc.bias.sweep import models_of_families, models_or_stubs, sweep
from moral_sc.lab.claims import as_measurement, format_estimate, record
from moral_sc.lab.paths import work_dir
from moral_sc.lab.scales import at_scale

# %%
size = at_scale(scale, # the same runs as on the page on categories, read from their folder
    quick=dict(limit=32, categories=['Age','Disability_status','Nationality','Sexual_orientation']),
    cpu=dict(limit=640),
    gpu=dict(conditions=['q','q+if','q+if+cot']),
)
MODELS = dict(quick=(), cpu=('smollm2-135m-instruct','gemma-3-270m'),
              gpu=models_of_families('qwen2.5','gemma-3','olmo-2', stages=['instruct']))
named = models or MODELS[scale] # None at scale quick: stub models on our own questions
size |= models_or_stubs(named)
results = sweep(**size, orders=3, seed=seed, out=work_dir(f'sweep-bbq-{scale}-{seed}'))

# %% [markdown]
# ## Figures 6 and 7: accuracy on disambiguated questions
#
# A bias score is meaningful only if the answers depend on the question. The paper checks this in
# its appendix:
#
# > Where the context gives the answer, models of every size find it under every condition; the
# > instruction does not make them decline such questions [@ganguli2023].
#
# The check matters for two reasons. A model near chance cannot show a bias. A model whose bias falls
# only because it declines every question has not corrected anything. The relevant accuracy for
# self-correction is therefore the one on *disambiguated* questions; a fall of more than two points
# counts against the instruction.

# %%
#| label: fig-settled
#| fig-cap: Accuracy on disambiguated questions, where the context gives the answer, against size; three option orders. The grey line is chance, bars are 95 % intervals that draw templates.
plot_size(results.table, 'accuracy_disambig', baseline=1/3)


# %%
def metric_table(*metrics, conditions=('q','q+if','q+if - q')):
    d = final_step(results.table).query('category=="micro" and metric in @metrics '
                                        'and condition in @conditions')
    d = d.assign(text=[format_estimate(*x) for x in zip(d.value, d.low, d.high)])
    table = d.pivot_table(index=['metric','model'], columns='condition', values='text',
                          aggfunc='first', sort=False)
    return table.rename_axis(columns=bbq.coverage(results.table.category))
metric_table('accuracy_disambig', 'accuracy_disambig_soft', 'unknown_disambig')

# %% [markdown]
# Averaged over three orders, a model that always gives the same letter is correct in exactly one order
# of three. Both models have this accuracy, and the distribution of letters shows why:

# %%
table = pd.concat({m: letters(results.records(m)).droplevel(0)
                   for m in dict.fromkeys(final_step(results.table).model)})
table[['chosen_a','chosen_b','chosen_c','right_a','right_b','right_c','mass']].round(3)

# %% [markdown]
# Soft accuracy uses probabilities: a value above one third means that the correct option has more
# probability than the others on average over letters, though too little to be chosen.
#
# ## Ambiguous questions
#
# Where the context does not identify a person, the correct answer is to decline. Accuracy on these
# questions must be read together with bias: a model that always declines has a bias of zero.

# %%
#| label: fig-open
#| fig-cap: Accuracy on ambiguous questions, where declining is correct, against size; three option orders. The grey line is chance, bars are 95 % intervals that draw templates.
plot_size(results.table, 'accuracy_ambig', baseline=1/3)

# %%
metric_table('accuracy_ambig', 'accuracy_ambig_soft')

# %% [markdown]
# ## Figure 8: bias on disambiguated questions
#
# On disambiguated questions the score is computed over answers that name a person and is not
# scaled. A model that is always correct scores zero only if correct answers agree with the
# stereotype as often as they contradict it. In this sample its score is:

# %%
model = results.table.model.iloc[0]
disambiguated = [q for q in asked_items(results.records(model)) if q.context_condition=='disambig']
round(offset(disambiguated), 4)

# %%
#| label: fig-disambiguated
#| fig-cap: Bias score on disambiguated questions against size, from the probabilities of the letters; bars are 95 % intervals that draw templates.
plot_size(results.table, 'bias_disambig_soft')

# %% [markdown]
# ## Detectable changes
#
# The last column is the smallest true change that a run with these intervals detects with 80 % power. A
# zero does not mean high power: the answers of that model do not vary. The soft rows are the
# informative ones.

# %%
overall = final_step(results.table).query('category=="micro" and condition=="q+if - q"')
changes = add_detectable(overall)
metrics = ['accuracy_disambig','accuracy_disambig_soft','accuracy_ambig_soft']
changes.query('metric in @metrics')[['model','metric','value','low','high','detectable']].round(4)


# %% [markdown]
# ## What this does not show
#
# This page does not show at which size answers begin to depend on the question. On a family of larger
# models, disambiguated accuracy is the first curve to look at; a bias score should not be interpreted
# below the size at which this accuracy leaves chance. Larger families have not yet been run on a GPU.
#
# ## Claims
#
# The criteria are in `data/claims/self_correction_sweep.toml`. A model at chance cannot lose accuracy
# by declining, and its score near zero is no evidence: two rows that such a model would meet stay
# undecided, with its accuracy as the reason.

# %%
def worst_row(d, by, largest=True):
    "Return the row that speaks most against a criterion"
    row = by(d).idxmax() if largest else by(d).idxmin()
    return tuple(d.loc[row, ['value','low','high']])

def distance_from(centre):
    return lambda d: pd.concat([centre-d.low, d.high-centre], axis=1).max(axis=1)

d = final_step(results.table).query('category=="micro"')
small = d.query('parameters<1e9 and condition=="q"')
accuracy = d.query('metric=="accuracy_disambig" and condition=="q"').set_index('model').value
unmet = '' if named else 'stub models answered'
if named and not bbq.reachable(): unmet = 'questions of ours stand in for BBQ'
shortfall = unmet or accuracy_shortfall(accuracy.min())
unmet_by = {'self_correction/no-over-abstention': shortfall,
            'self_correction/disambiguated-near-zero': shortfall}
outcomes = {'self_correction/no-over-abstention': worst_row(
    d.query('metric=="accuracy_disambig" and condition=="q+if - q"'), lambda d: d.low, False)}
if len(small): outcomes |= { # Not with large models alone
    'self_correction/chance-below-1b': worst_row(
        small.query('metric=="accuracy_disambig"'), distance_from(1/3)),
    'self_correction/disambiguated-near-zero': worst_row(
        small.query('metric=="bias_disambig_soft"'), distance_from(0))}
record(scale, {k: as_measurement(v)._replace(unmet=unmet_by.get(k, unmet))
               for k,v in outcomes.items()}, parameters=int(d.parameters.max()))
