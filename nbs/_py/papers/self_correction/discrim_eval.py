# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Told to ignore who it is about, a small model does not
#
# > Twelve decisions about people who differ in age, gender and race. The site shows a run of
# > SmolLM2-135M-Instruct recorded at `scale = 'cpu'`.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds; cpu: 12 decisions of our own; gpu: discrim-eval if near
seed = 0         # which people are taken, and the draws behind the intervals

# %%
#| hide
import numpy as np, pandas as pd, plotly.graph_objects as go
from moral_sc.bias import evaluate
from moral_sc.bias.discrim_eval import (DISCRIM_EVAL, TERMS, answer_logits, discrim_eval_metrics,
                                        fit_slopes, load_decisions)
from moral_sc.bias.plots import CONDITION_STYLES
from moral_sc.foundation.figures import INK
from moral_sc.lab.claims import record
from moral_sc.lab.paths import work_dir
from moral_sc.lab.scales import at_scale
from moral_sc.language.loading import load_or_stub
from moral_sc.language.stub_models import stub_model

# %%
size = at_scale(scale, # people and decisions for each model, and where they come from
    quick=dict(limits=[30], source='ours'),
    cpu=dict(limits=[180], source='ours'),
    gpu=dict(limits=[None, None], source='auto'),
)

def stand_in(): # Says yes two times in three, whoever it is about
    says = dict(yes=.6, no=.3, perhaps=.1)
    return stub_model(lambda t: says if t.endswith('would be "') else {'':1.}, 'two in three')

names = ['smollm2-135m-instruct', 'gemma-3-270m'][:len(size['limits'])]
models = {n:load_or_stub(n, stand_in) for n in names}

# %% [markdown]
# The admissions of @ganguli2023 are one decision and two races. The same group later put
# seventy kinds of decision about 135 kinds of people to Claude 2:
#
# > *Without further instruction the model decides in places for women and people who are
# > not white, and against the old; told that discrimination is illegal, it hardly
# > discriminates* [@tamkin2023discrim].
#
# We ask small models twelve decisions of our own in the same format, because they have to
# travel with the page. At scale `gpu` the authors' file takes their place, if it is near.
#
# ## What is asked

# %%
asked = {n:load_decisions(k, seed, source=size['source']) for n,k in zip(names, size['limits'])}
print(asked[names[0]][5].text)


# %%
def put(name):
    out = work_dir(f'discrim-{scale}-{seed}-{models[name].name}-{size["source"]}')
    e = evaluate(models[name], DISCRIM_EVAL, items=asked[name], out=out, seed=seed)
    return e.records

runs = {n:put(n) for n in names}
each = lambda **kw: pd.concat([discrim_eval_metrics(r, seed=seed, **kw).assign(model=n)
                               for n,r in runs.items()])
found = each()
change = each(against='q')
t = found[found.category=='all'].set_index(['model','metric','condition'])
t[['value','low','high']].round(3)


# %% [markdown]
# `p_yes` is the share of yes among yes and no, and `mass` what the two get at all. `spread`
# is the mean size of the coefficients of race and gender, in log-odds.
#
# ## Who it is about

# %%
#| label: fig-terms
#| fig-cap: What each attribute adds to the log-odds of a yes, against a white man; age for ten years more. SmolLM2-135M-Instruct; bars are 95 % intervals that draw decisions.
def plot_terms(found, model):
    d = found.query('metric=="effect" and model==@model')
    fig = go.Figure()
    for n,(c,g) in enumerate(d.groupby('condition', sort=False)):
        name,colour,symbol = CONDITION_STYLES[c]
        g = g.set_index('category').loc[list(TERMS)]
        fig.add_scatter(x=g.value, y=np.arange(len(g))+.2*n, mode='markers', name=name,
                        marker=dict(color=colour, symbol=symbol, size=9),
                        error_x=dict(type='data', symmetric=False, array=g.high-g.value,
                                     arrayminus=g.value-g.low, thickness=1.5, width=3))
    fig.add_vline(x=0, line=dict(color=INK, width=1))
    fig.update_yaxes(tickvals=np.arange(len(TERMS))+.1, ticktext=TERMS, showgrid=False,
                     autorange='reversed', zeroline=False)
    return fig.update_xaxes(title_text='Log-odds of a yes', showgrid=True)

plot_terms(found, names[0])

# %% [markdown]
# @fig-terms has effects that are small and not zero: the same request meets with a little
# less favour from a woman, from people called Hispanic or Native American, and least from a
# non-binary person. The last is said in two words where "man" is one, so a model that minds
# length would do the same; it takes names instead of words, or other wordings, to tell. Age
# does nothing.

# %%
both = found[found.metric=='effect'].set_index(['category','model','condition'])
both.value.unstack([1,2]).loc[list(TERMS)].round(3)

# %% [markdown]
# ## The same in every decision?
#
# An effect of race that is one number for all decisions would be a property of the word;
# one that changes its sign from decision to decision is noise around it. Each mark is a
# decision.

# %%
#| label: fig-decisions
#| fig-cap: The coefficients of race and gender within each decision, SmolLM2-135M-Instruct, Q; the line is their mean.
b = fit_slopes(answer_logits(runs[names[0]]).loc['q'])[list(TERMS[:-1])]
name,colour,symbol = CONDITION_STYLES['q']
fig = go.Figure()
for n,k in enumerate(b):
    fig.add_scatter(x=b[k], y=[n]*len(b), mode='markers', showlegend=False, opacity=.6,
                    marker=dict(color=colour, size=8))
    fig.add_scatter(x=[b[k].mean()], y=[n], mode='markers', showlegend=False,
                    marker=dict(symbol='line-ns', size=20, line=dict(width=3, color=INK)))
fig.add_vline(x=0, line=dict(color=INK, width=1))
fig.update_yaxes(tickvals=list(range(len(b.columns))), ticktext=list(b), showgrid=False,
                 autorange='reversed', zeroline=False)
fig.update_xaxes(title_text='Log-odds of a yes', showgrid=True)

# %% [markdown]
# In @fig-decisions most coefficients keep their sign from decision to decision and differ
# in size. The mixed model with random intercepts takes them to be one number, and its
# interval is too narrow where they differ most:

# %%
d = found.query('model==@names[0] and condition=="q" and category!="all"')
d = d.assign(width=d.high-d.low).pivot(index='category', columns='metric',
                                       values=['value','width'])
d.loc[list(TERMS)].round(3)

# %% [markdown]
# ## Told not to
#
# The instruction says that it is illegal to discriminate by age, gender or race, and asks
# to decide as if none of them were mentioned. It moves single coefficients, some up and
# some down, and it makes a yes likelier for everybody; `spread` stays where it was. So the
# words are read, and not what they ask for. Decision by decision:

# %%
less = change.query('metric in ("spread","p_yes","mass") or metric=="effect"')
less = less.set_index(['model','metric','category'])[['value','low','high']]
less.loc[names[0]].round(3)


# %% [markdown]
# ## Claims
#
# The criteria lie in `data/claims/self_correction_admissions.toml` and were written before
# this run. Chance alone gives `spread` a positive value, and the same chance in both
# conditions; the claim is about the difference.

# %%
def of(table, metric, condition):
    d = table.query('model==@names[0] and metric==@metric and condition==@condition')
    return d.set_index('category')[['value','low','high']]

race = of(found, 'effect', 'q').loc[list(TERMS[:4])]
farthest = race.loc[race.value.abs().idxmax()]
outcomes = {'self_correction/decisions-race-small': tuple(farthest),
            'self_correction/decisions-instruction-shrinks': tuple(
                of(change, 'spread', 'q+if - q').loc['all'])}
oracle = models[names[0]].is_stub
if oracle: print('An oracle answered, so no claim about models is recorded.')
else: record(scale, outcomes)

# %% [markdown]
# What this does not show: anything about discrim-eval's seventy decisions, which were drawn
# up with more care than ours, or about models that weigh a case. It shows the instrument,
# and what it reads off models that do not.
