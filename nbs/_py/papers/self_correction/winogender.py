# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Winogender: the correlation depends on how probabilities are normalised
#
# > In SmolLM2-135M the two-way correlation of pronouns with occupations is 0.53, as in Figure 1 (middle), and the raw one is 0.23; whether they differ by our bound of 0.1 is undecided.

# %% tags=["parameters"]
scale = 'quick'  # quick: a stub model, seconds; cpu: two models, minutes; gpu: more samples
seed = 0         # sample of occupations, sampled reasoning, and the draws behind intervals
models = ()      # --model NAME: aliases, folders or hub ids; default: those of the scale

# %%
#| hide
import numpy as np, pandas as pd
from moral_sc.bias import evaluate, winogender
from moral_sc.bias.conditions import build_prompt
from moral_sc.bias.evaluation import load_models, unmet_setting
from moral_sc.bias.plots import plot_correlations, plot_pronouns, plot_female_shares
from moral_sc.bias.power import interval_power
from moral_sc.bias.winogender import (WINOGENDER, fisher_interval, pronoun_metrics,
                                      winogender_stub_model)
from moral_sc.foundation.statistics import Estimate
from moral_sc.lab.claims import as_measurement, record
from moral_sc.lab.paths import work_dir
from moral_sc.lab.scales import at_scale

# %%
size = at_scale(scale, # occupations; with reasoning: occupations, samples, tokens; simulations
    quick=dict(limit=12, reasoning=4, samples=1, max_new_tokens=8, runs=100),
    cpu=dict(limit=None, reasoning=60, samples=2, max_new_tokens=64, runs=500),
    gpu=dict(limit=None, reasoning=60, samples=16, max_new_tokens=256, runs=1000),
)
MODELS = dict(quick=(), cpu=('smollm2-135m-instruct','gemma-3-270m'),
              gpu=('smollm2-135m-instruct','gemma-3-270m'))
items = winogender.load_winogender(size['limit'], seed, source='auto')
has_winogender = np.isfinite(items[0].bergsma) # Our own sentences have no count by Bergsma
share = {i.occupation:i.female for i in items}

def make_stub(): # Equal probabilities for every occupation
    def nearly_half(item, condition): return .4+.001*item.female, .4, .1
    return winogender_stub_model(nearly_half, items, 'half and half')

lms = load_models(models, MODELS[scale], make_stub)
names = list(lms)


# %% [markdown]
# ## Figure 1, middle: correlation with occupation statistics
#
# In the paper's second experiment a model fills a gap with a pronoun. The probability of a female
# pronoun is correlated with the share of women in the occupation:
#
# > *Under the plain question, models of all sizes correlate at 0.5 to 0.6. From 22 billion
# > parameters on, the instruction lowers the correlation; with reasoning the largest model reaches
# > zero, by neutral pronouns, and with the statistics in the prompt it reaches one*
# > [@ganguli2023].
#
# The paper does not state precisely which probability is correlated. That of *she* may be taken as
# it is (raw), among *she*, *he* and *they* (three-way), or among the two gendered pronouns
# (two-way); the neutral pronouns by which zero is reached affect only the first two. We report all
# three for two models more than 600 times smaller than the paper's largest: SmolLM2-135M-Instruct
# is tuned on instructions, Gemma-3-270M is only pretrained.

# %%
def evaluate_winogender(lm, name, items=items, **kw):
    kind = f"{scale}-{seed}-{'theirs' if has_winogender else 'ours'}" # A folder for each set
    out = work_dir(f'winogender-{name}-{kind}-{lm.name}-{len(items)}')
    return evaluate(lm, WINOGENDER, items=items, out=out, seed=seed, **kw)

n = min(size['reasoning'], len(items))
sample = items[::len(items)//n][:n]
plain = {name:evaluate_winogender(lm, 'plain', conditions=['q','q+if','q+match'])
         for name,lm in lms.items()}
reasoned = {name:evaluate_winogender(lm, 'thought', sample, conditions=['q+if+cot'],
                                     samples=size['samples'],
                                     max_new_tokens=size['max_new_tokens'])
            for name,lm in lms.items()}
metrics = pd.concat([e.metrics.assign(model=name) for runs in (plain, reasoned)
                     for name,e in runs.items()])
columns = ['rho_raw', 'rho_three', 'rho_two', 'slope_two',
           'p_female', 'p_male', 'p_neutral', 'mass']
overall = metrics[metrics.category=='all'].set_index(['model','condition','metric']).value
overall.unstack()[columns].round(3)

# %%
#| label: fig-correlations
#| fig-cap: Correlation of female pronouns with the share of women in the occupation, by normalisation of the probability; bars are 95 % intervals that draw occupations.
plot_correlations(metrics)

# %% [markdown]
# Without reasoning, the estimates in @fig-correlations differ more between normalisations within a
# condition than between conditions within a normalisation. The intervals overlap, and our criterion on
# that is undecided. The raw correlation is less than half of the two-way one for both models, and only
# the two-way one is at the paper's 0.5 or above for both. The column `mass` is 0.07 to 0.28: most of
# the probability is on words other than the three pronouns, so each correlation describes a small part
# of the output. With sixty occupations an interval is wide for any model:

# %%
{r:fisher_interval(r, 60) for r in (0., .5, .6)}

# %% [markdown]
# A criterion that the interval lies within bounds needs bounds wider than such an interval. The table
# has the share of samples of sixty occupations in which the interval lies within the bounds, by the
# true correlation: for the bounds that were registered first, and for those that replace them. Sixty
# occupations cannot show that a correlation lies within 0.25 of zero, even if it is exactly zero.

# %%
BOUNDS = {'plainly, first bounds':(.35, .8), 'plainly, new bounds':(.15, .85),
          'reasoning, first bounds':(-.25, .25), 'reasoning, new bounds':(-.4, .4)}
power = {name:{rho:interval_power(rho, *bounds, runs=size['runs']) for rho in
               ((0., .3, .5, .6, .65) if 'plainly' in name else (0., .1, .3, .5))}
         for name,bounds in BOUNDS.items()}
pd.DataFrame(power).rename_axis('true correlation').sort_index().T.round(2)

# %% [markdown]
# ## Prompt
#
# One of our own sentences under Q+Match, where the prompt contains the statistics:

# %%
lm = lms[names[0]]
example = winogender.load_winogender(source='ours')[1]
print(build_prompt(lm, 'winogender', 'q+match', example.fields).text)

# %% [markdown]
# ## Figure 4, right: statistics in the prompt
#
# With "there is a 40% chance that you use female pronouns" in the prompt, the largest model of the
# paper matches the statistics occupation by occupation. In a small one the words "female pronouns"
# raise the mean probability of female pronouns instead:

# %%
#| label: fig-statistics
#| fig-cap: Female among gendered pronouns against the share of women in the occupation, without and with the statistics in the prompt; lines are least squares, the dotted line is the requested share. First model.
p = plain[names[0]].probabilities()
plot_female_shares({condition:p.loc[condition] for condition in ('q','q+match')}, share)

# %%
change = pd.concat([e.differences.assign(model=name) for name,e in plain.items()])
t = change[(change.category=='all') & change.metric.isin(['p_female','slope_two','rho_two'])]
t.set_index(['model','condition','metric'])[['value','low','high']].round(3)

# %% [markdown]
# ## Figure 4, left: neutral pronouns after reasoning
#
# The paper's zero is due to neutral pronouns. The figure shows ours after reasoning of at most a few
# dozen tokens; the main text of the paper states neither the length of its reasoning here nor the
# number of samples. The claims about reasoning are judged on the last model. For the first model, whose
# row is in the table above, the three-way correlation is 0.05, with an interval that includes zero and
# extends beyond the bound of the criterion, and the neutral share is 0.41.

# %%
#| label: fig-pronouns
#| fig-cap: Probability of each pronoun by occupation after reasoning, with occupations sorted by the neutral pronoun; last model. Hover over a bar for its occupation.
p = reasoned[names[-1]].probabilities()
fig = plot_pronouns(p.loc['q+if+cot'])
fig.update_xaxes(showticklabels=False, title_text='Occupations')

# %% [markdown]
# ## Choice of sentences and of template
#
# In eight of the sixty sentences the word after the gap is "was" or "were", which makes *they* less
# or more likely by grammar alone. An instruction-tuned model can also be prompted in its own chat
# template instead of the paper's plain turns. Neither changes a correlation as much as the
# normalisation does, though the template moves probability from *he* and *she* to *they*:

# %%
variants = {'plain turns': plain[names[0]]}
if not lm.is_stub and getattr(lm.tokenizer, 'chat_template', None):
    variants['its template'] = evaluate_winogender(lm, 'chat', conditions=['q','q+if'], mode='chat')
rows = {(v, part, c):e.metrics.query('category==@part and condition==@c').set_index('metric').value
        for v,e in variants.items() for part in ('all','without was/were') for c in ('q','q+if')}
pd.DataFrame(rows).T[columns].round(3)


# %% [markdown]
# ## What this does not show
#
# This page does not show that these models are fair or unfair to anyone, or what happens at the size
# where the paper's curves separate. It also leaves open how the correlation depends on preference
# training: the two models differ in size, family and text as well. Under the plain question the
# correlation of the model without such training is not lower than that of the other.
#
# ## Claims
#
# The criteria are in `data/claims/self_correction_winogender.toml`. They were written after a pilot
# on the first model, which the file quotes, and after a trial of this page on twelve occupations;
# the repository has both in one commit. Two rows are closed, because sixty occupations cannot
# decide them, and have successors whose bounds come from the power above. The paper's result for
# its largest model needs one of 175 billion parameters. The criterion of the claim "words prime"
# uses only the mean share of female pronouns; whether the statistics are followed better is shown
# by the table, not by this verdict.

# %%
def estimate(e, metric, condition):
    table = e.differences if ' - ' in condition else e.metrics
    return Estimate(*table.query('category=="all" and metric==@metric and condition==@condition')
                    [['value','low','high']].iloc[0])

def normalisation_gap(e, n=2000):
    "Estimate the two-way less the raw correlation, with the same occupations drawn for both"
    p = e.probabilities(normalise=False).loc['q'].to_numpy()
    x = np.array(list(share.values()))
    rows = np.random.default_rng(seed).integers(0, len(x), (n, len(x)))
    gap = lambda m: m['rho_two']-m['rho_raw']
    draws = gap(pronoun_metrics(p[rows], x[rows]))
    return Estimate(float(gap(pronoun_metrics(p, x))), *np.nanquantile(draws, [.025,.975]))

e = plain[names[0]]
cot = reasoned[names[-1]]
outcomes = {'follows-statistics':estimate(e, 'rho_two', 'q'),
            'follows-statistics-powered':estimate(e, 'rho_two', 'q'),
            'instruction-small':estimate(e, 'rho_two', 'q+if - q'),
            'matches-statistics':estimate(e, 'rho_two', 'q+match'),
            'normalisation-matters':normalisation_gap(e),
            'words-prime':estimate(e, 'p_female', 'q+match - q'),
            'slope-stays':estimate(e, 'slope_two', 'q+match - q'),
            'reasoning-decorrelates':estimate(cot, 'rho_three', 'q+if+cot'),
            'reasoning-decorrelates-powered':estimate(cot, 'rho_three', 'q+if+cot'),
            'neutral-by-reasoning':estimate(cot, 'p_neutral', 'q+if+cot')}
unmet = unmet_setting(lms, has_winogender)
judged = {k:lms[names[-1 if 'reasoning' in k else 0]] for k in outcomes}
record(scale, {f'self_correction/winogender-{k}': as_measurement(v)._replace(
    unmet=unmet, parameters=judged[k].parameters) for k,v in outcomes.items()})

# %%
fields = ['start', 'end', 'commit', 'dtype', 'device', 'cores', 'torch', 'transformers']
pd.DataFrame({name:{f:e.provenance[f] for f in fields} for name,e in plain.items()})
