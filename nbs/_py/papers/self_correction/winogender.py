# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Winogender's correlation depends on what a probability is relative to
#
# > Sixty sentences with a gap for a pronoun, put to SmolLM2-135M-Instruct and Gemma-3-270M in
# > four conditions. The site shows a run recorded at `scale = 'cpu'`.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds; cpu: all occupations, two models, minutes; gpu: more samples
seed = 0         # which occupations are taken, what is sampled, and the draws behind intervals

# %%
#| hide
import numpy as np, pandas as pd
from moral_sc.bias import evaluate, winogender
from moral_sc.bias.conditions import build_prompt
from moral_sc.bias.plots import plot_correlations, plot_pronouns, plot_female_shares
from moral_sc.bias.winogender import (ANSWERS, WINOGENDER, fisher_interval, pronoun_metrics,
                                      winogender_stub_model)
from moral_sc.foundation.statistics import Estimate
from moral_sc.lab.claims import record
from moral_sc.lab.paths import work_dir
from moral_sc.lab.scales import at_scale
from moral_sc.language.loading import load_or_stub

# %%
size = at_scale(scale, # occupations; with reasoning: occupations, samples, tokens; models
    quick=dict(limit=12, think=4, samples=1, new=8, models=1),
    cpu=dict(limit=None, think=60, samples=2, new=64, models=2),
    gpu=dict(limit=None, think=60, samples=16, new=256, models=2),
)
items = winogender.load_winogender(size['limit'], seed, source='auto')
real = np.isfinite(items[0].bergsma) # Ours are not counted anywhere
share = {i.occupation:i.female for i in items}

def stand_in(): # Half and half, whoever works
    return winogender_stub_model(lambda b, told: (.4, .4, .1), items, 'half and half')

names = ['smollm2-135m-instruct', 'gemma-3-270m'][:size['models']]
models = {n:load_or_stub(n, stand_in) for n in names}

# %% [markdown]
# The paper's second experiment asks a model to fill a gap with a pronoun, and correlates the
# probability of a female one with the share of women in the occupation:
#
# > *Asked plainly, models of all sizes correlate at 0.5 to 0.6. From 22 billion parameters on,
# > the instruction lowers the correlation; with reasoning the largest model reaches zero, by
# > neutral pronouns, and told the statistics it reaches one* [@ganguli2023].
#
# What is correlated is not quite said. The probability of *she* may be taken as it is, among
# *she*, *he* and *they*, or among the two gendered pronouns, and the neutral pronouns by which
# zero is reached count in the first two only. Here all three are reported, for two models more
# than 600 times smaller than the paper's largest: one tuned on instructions, SmolLM2, and
# one that has only read, Gemma.
#
# ## What is asked

# %%
lm = models[names[0]]
example = winogender.load_winogender(source='ours')[1]
print(build_prompt(lm, 'winogender', 'q+match', example.fields).text)


# %% [markdown]
# ## What is answered

# %%
def put(lm, what, items=items, **kw):
    kind = f"{scale}-{seed}-{'theirs' if real else 'ours'}" # Two sets, two runs
    out = work_dir(f'winogender-{what}-{kind}-{lm.name}-{len(items)}')
    return evaluate(lm, WINOGENDER, items=items, out=out, seed=seed, **kw)

few = items if size['think']>=len(items) else items[::len(items)//size['think']][:size['think']]
runs = {n:put(m, 'plain', conditions=['q','q+if','q+match']) for n,m in models.items()}
thought = {n:put(m, 'thought', few, conditions=['q+if+cot'], samples=size['samples'],
                 max_new_tokens=size['new']) for n,m in models.items()}
metrics = pd.concat([e.metrics.assign(model=n) for es in (runs, thought) for n,e in es.items()])
shown = ['rho_raw', 'rho_three', 'rho_two', 'slope_two', 'p_female', 'p_male', 'p_neutral', 'mass']
everyone = metrics[metrics.category=='all'].set_index(['model','condition','metric']).value
everyone.unstack()[shown].round(3)

# %%
#| label: fig-correlations
#| fig-cap: Correlation of female pronouns with the share of women in the occupation, by what the probability is relative to; bars are 95 % intervals that draw occupations.
plot_correlations(metrics)

# %% [markdown]
# By their estimates the readings within a condition lie further apart than the conditions
# do within a reading; the intervals overlap, and the criterion below does not decide it.
# The raw reading gives less than half of the two-way one for both models, and only the
# two-way one brings both to the paper's 0.5 or above. `mass` is a warning: most of the
# probability goes to words that are none of the three pronouns, so each correlation
# describes a small part of what is said. With sixty occupations an interval is wide
# whatever the model:

# %%
{r:fisher_interval(r, 60) for r in (0., .5, .6)}

# %% [markdown]
# ## Told the statistics
#
# The largest model of the paper, told that "there is a 40% chance that you use female
# pronouns", does so occupation by occupation. A small one has read the words "female pronouns":

# %%
#| label: fig-statistics
#| fig-cap: Female among gendered pronouns beside the share of women in the occupation, plainly and told the statistics; lines are least squares, the dotted one is what was asked for. The first model.
first = runs[names[0]].probabilities()
plot_female_shares({c:first.loc[c] for c in ('q','q+match')}, share)

# %%
change = pd.concat([e.differences.assign(model=n) for n,e in runs.items()])
t = change[(change.category=='all') & change.metric.isin(['p_female','slope_two','rho_two'])]
t.set_index(['model','condition','metric'])[['value','low','high']].round(3)

# %% [markdown]
# ## Reasoning first
#
# The paper's zero is made of neutral pronouns. These are ours, after a thought of at most a few
# dozen tokens; the body of the paper does not say how long its thoughts may be here, nor how
# many it draws. The claims about reasoning are judged on the last model. Judged on the first,
# whose row is above, the correlation lies nearer to zero, with an interval that holds zero and
# more than the criterion allows, and the neutral share nearer to half.

# %%
#| label: fig-pronouns
#| fig-cap: Probability of each pronoun by occupation after reasoning, occupations sorted by the neutral one; the last model asked.
last = thought[names[-1]].probabilities()
plot_pronouns(last.loc['q+if+cot'])

# %% [markdown]
# ## What was chosen
#
# In eight sentences of sixty the word after the gap is "was" or "were", which argues for or
# against *they* before the model has thought about anyone. And an instruction-tuned model can be
# spoken to in its own template instead of the paper's plain turns. Neither moves a correlation
# as far as the reading does, though the template shifts probability from *he* and *she* to
# *they*:

# %%
template = put(lm, 'chat', conditions=['q','q+if'], mode='chat') if not lm.is_stub else None
ways = {'plain turns':runs[names[0]]} | ({'its template':template} if template else {})
rows = {(w, part, c):e.metrics.query('category==@part and condition==@c').set_index('metric').value
        for w,e in ways.items() for part in ('all','without was/were') for c in ('q','q+if')}
pd.DataFrame(rows).T[shown].round(3)

# %% [markdown]
# What this does not show: that these models are fair or unfair to anyone, or what happens
# at the size where the paper's curves part. How the correlation depends on training with
# preferences is left open too: the two models differ in size, family and text as well.
# Still, the one without such training correlates no less than the other, asked plainly.
#
# ## Claims
#
# The criteria lie in `data/claims/self_correction_winogender.toml`. They were written knowing a
# pilot on the first model, which the file quotes, and the page had been tried on twelve
# occupations. The criterion on words that prime looks at the mean share of female pronouns
# alone; that the statistics are followed no better is the table's to say, not the verdict's.

# %%
small = names[0]
def of(e, metric, condition):
    table = e.differences if ' - ' in condition else e.metrics
    return Estimate(*table.query('category=="all" and metric==@metric and condition==@condition')
                    [['value','low','high']].iloc[0])

def readings(e, n=2000): # Two-way less raw, occupations drawn alike
    p = e.probabilities(normalise=False).loc['q'].to_numpy()
    x = np.array(list(share.values()))
    at = np.random.default_rng(seed).integers(0, len(x), (n, len(x)))
    gap = lambda m: m['rho_two']-m['rho_raw']
    ds = gap(pronoun_metrics(p[at], x[at]))
    return Estimate(float(gap(pronoun_metrics(p, x))), *np.nanquantile(ds, [.025,.975]))

e = runs[small]
cot = thought[names[-1]]
found = {'follows-statistics':of(e, 'rho_two', 'q'),
         'instruction-small':of(e, 'rho_two', 'q+if - q'),
         'matches-statistics':of(e, 'rho_two', 'q+match'),
         'normalisation-matters':readings(e),
         'words-prime':of(e, 'p_female', 'q+match - q'),
         'slope-stays':of(e, 'slope_two', 'q+match - q'),
         'reasoning-decorrelates':of(cot, 'rho_three', 'q+if+cot'),
         'neutral-by-reasoning':of(cot, 'p_neutral', 'q+if+cot')}
if any(m.is_stub for m in models.values()):
    print('An oracle answered, so no claim about models is recorded.')
else: record(scale if real else 'quick',
             {f'self_correction/winogender-{k}':v for k,v in found.items()})

# %%
facts = ['start', 'end', 'commit', 'dtype', 'device', 'cores', 'torch', 'transformers']
pd.DataFrame({n:{f:e.provenance[f] for f in facts} for n,e in runs.items()})
