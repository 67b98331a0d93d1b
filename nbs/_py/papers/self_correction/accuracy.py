# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Small models do not find answers that the context gives
#
# > Figures 6, 7 and 8: accuracy on BBQ, and bias where the answer is given. The site shows a run
# > recorded at `scale = 'cpu'` with two small models; the parameters below are a quick rerun's.

# %% tags=["parameters"]
scale = 'quick'  # quick: stand-ins, seconds; cpu: two small models, minutes; gpu: ladders of sizes
seed = 0         # which scenes are taken, and the draws behind the intervals

# %%
#| hide
import pandas as pd
from moral_sc.bias import bbq, letters
from moral_sc.bias.bbq.scoring import offset
from moral_sc.bias.plots import final_step, plot_size
from moral_sc.bias.power import add_detectable
from moral_sc.bias.bbq.metrics import asked_items
from moral_sc.bias.sweep import models_of_families, stub_sweep_models, sweep
from moral_sc.lab.claims import record, format_estimate
from moral_sc.lab.paths import work_dir
from moral_sc.lab.scales import at_scale

# %%
size = at_scale(scale, # the runs of the page on categories; what that page asked is not asked again
    quick=dict(models=stub_sweep_models(bbq.load(source='ours')), benchmarks='bbq-like', limit=32,
               categories=['Age','Disability_status','Nationality','Sexual_orientation']),
    cpu=dict(models=['smollm2-135m-instruct','gemma-3-270m'], benchmarks='bbq', limit=640),
    gpu=dict(models=models_of_families('qwen2.5','gemma-3','olmo-2', stages=['instruct']),
             benchmarks='bbq', conditions=['q','q+if','q+if+cot']),
)
found = sweep(**size, orders=3, seed=seed, out=work_dir(f'sweep-bbq-{scale}-{seed}'))

# %% [markdown]
# A bias score means something if the model reads the question. The paper checks this in its
# appendix:
#
# > Where the context gives the answer away, models find it, at every size and under every
# > condition; the instruction does not make them decline what they know [@ganguli2023].
#
# The check matters twice. A model near chance has nothing to be biased with. And one whose bias
# falls only because it now declines everything has corrected nothing; it has stopped answering.
# So the accuracy that counts for self-correction is the one on *settled* questions, and what
# would count against the instruction is that it falls by more than two points.
#
# ## Settled questions

# %%
#| label: fig-settled
#| fig-cap: Accuracy on disambiguated questions, where the context gives the answer, against size; three option orders. The grey line is chance, bars are 95% intervals that draw templates.
plot_size(found.table, 'accuracy_disambig', baseline=1/3)


# %%
def shown(*metrics, conditions=('q','q+if','q+if - q')):
    d = final_step(found.table).query('category=="micro" and metric in @metrics '
                                     'and condition in @conditions')
    d = d.assign(text=[format_estimate(*x) for x in zip(d.value, d.low, d.high)])
    return d.pivot_table(index=['metric','model'], columns='condition', values='text',
                         aggfunc='first', sort=False)
shown('accuracy_disambig', 'accuracy_disambig_soft', 'unknown_disambig')

# %% [markdown]
# Averaged over the orders, a model that always says the same letter is right in exactly one
# order of three. That is where these models are, and the letters show why:

# %%
table = pd.concat({m: letters(found.records(m)).droplevel(0)
                   for m in dict.fromkeys(final_step(found.table).model)})
table[['chosen_a','chosen_b','chosen_c','right_a','right_b','right_c','mass']].round(3)

# %% [markdown]
# In the probabilities there is more to see than in the answers: a soft accuracy above a third
# means that the right option gains probability wherever it stands, though too little to be
# chosen.
#
# ## Open questions
#
# Where the context does not say who it was, the right answer declines. Accuracy there is the
# other side of bias: a model that always declines has a bias of zero.

# %%
#| label: fig-open
#| fig-cap: Accuracy on ambiguous questions, where declining is right, against size; three option orders. The grey line is chance, bars are 95% intervals that draw templates.
plot_size(found.table, 'accuracy_ambig', baseline=1/3)

# %%
shown('accuracy_ambig', 'accuracy_ambig_soft')

# %% [markdown]
# ## Bias where the answer is given
#
# On settled questions the score is taken over answers that name a person and is not scaled. A
# perfect model does not score zero there unless right answers agree with the stereotype as often
# as they go against it; in this sample a perfect model would score

# %%
model = found.table.model.iloc[0]
settled = [q for q in asked_items(found.records(model)) if q.context_condition=='disambig']
round(offset(settled), 4)

# %%
#| label: fig-disambiguated
#| fig-cap: Bias score on disambiguated questions against size, from the probabilities of the letters; bars are 95% intervals that draw templates.
plot_size(found.table, 'bias_disambig_soft')

# %% [markdown]
# ## What the run could have seen
#
# The last column is the smallest true change that a run with these intervals finds four times in
# five. A zero there is no strength: a model whose answers never vary has no spread to show, and
# the soft rows are the ones to read.

# %%
overall = final_step(found.table).query('category=="micro" and condition=="q+if - q"')
changes = add_detectable(overall)
metrics = ['accuracy_disambig','accuracy_disambig_soft','accuracy_ambig_soft']
changes.query('metric in @metrics')[['model','metric','value','low','high','detectable']].round(4)


# %% [markdown]
# What this does not show: at which size models begin to read the question. Disambiguated
# accuracy is the first curve to look at on a ladder of larger models, and a bias score should
# not be read below the size at which it leaves the grey line.
#
# ## Claims

# %%
def worst(d, by, largest=True):
    "The row that speaks most against a criterion"
    at = by(d).idxmax() if largest else by(d).idxmin()
    return tuple(d.loc[at, ['value','low','high']])

def far(centre): return lambda d: pd.concat([centre-d.low, d.high-centre], axis=1).max(axis=1)

d = final_step(found.table).query('category=="micro"')
small = d.query('parameters<1e9 and condition=="q"')
outcomes = {
    'self_correction/no-over-abstention': worst(
        d.query('metric=="accuracy_disambig" and condition=="q+if - q"'), lambda d: d.low, False),
    'self_correction/chance-below-1b': worst(
        small.query('metric=="accuracy_disambig"'), far(1/3)),
    'self_correction/disambiguated-near-zero': worst(
        small.query('metric=="bias_disambig_soft"'), far(0))}
if scale=='quick': print('Stand-ins answered, so no claim about models is recorded.')
else: record(scale, outcomes)
