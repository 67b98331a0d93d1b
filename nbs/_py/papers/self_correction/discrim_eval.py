# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Discrim-eval: the instruction does not reduce demographic effects at 135M
#
# > In twelve decisions of ours an instruction does not reduce demographic effects in SmolLM2-135M; the claim of Tamkin et al. (2023) needs larger models.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds; cpu: 12 decisions of our own; gpu: discrim-eval if available
seed = 0         # sample of people, and the draws behind the intervals
models = ()      # --model NAME: aliases, folders or hub ids; default: those of the scale

# %%
#| hide
import numpy as np, pandas as pd, plotly.graph_objects as go
from moral_sc.bias import evaluate
from moral_sc.bias.discrim_eval import (DISCRIM_EVAL, TERMS, answer_logits, discrim_eval_metrics,
                                        fit_slopes, load_decisions)
from moral_sc.bias.evaluation import load_models, unmet_setting
from moral_sc.bias.plots import CONDITION_STYLES, error_bars
from moral_sc.foundation.figures import INK
from moral_sc.lab.claims import as_measurement, record
from moral_sc.lab.paths import work_dir
from moral_sc.lab.scales import at_scale
from moral_sc.language.stub_models import stub_model

# %%
size = at_scale(scale, # people and decisions, and their source
    quick=dict(limit=60, source='ours'),
    cpu=dict(limit=180, source='ours'),
    gpu=dict(limit=None, source='auto'),
)
MODELS = dict(quick=(), cpu=('smollm2-135m-instruct',),
              gpu=('smollm2-135m-instruct','gemma-3-270m'))

def make_stub(): # Answers yes two times in three, for every person
    probabilities = dict(yes=.6, no=.3, perhaps=.1)
    return stub_model(lambda text: probabilities if text.endswith('would be "') else {'':1.},
                      'two in three')

lms = load_models(models, MODELS[scale], make_stub)
names = list(lms)

# %% [markdown]
# ## Discrim-eval: decisions about people
#
# The admissions of @ganguli2023 are one decision and two races. A later paper of the same group
# measured seventy kinds of decision about 135 kinds of people with Claude 2:
#
# > *Without further instruction some decisions favour women and people who are not white, and
# > disfavour the old; with an instruction that discrimination is illegal, there is hardly any
# > discrimination* [@tamkin2023discrim].
#
# We measure twelve decisions of our own in the same format with SmolLM2-135M-Instruct, because
# their text can be distributed with this page. At scale `gpu`, not yet run, the authors' file
# replaces them if it is available.

# %%
decisions = load_decisions(size['limit'], seed, source=size['source'])

def collect_answers(name):
    out = work_dir(f'discrim-{scale}-{seed}-{lms[name].name}-{size["source"]}')
    e = evaluate(lms[name], DISCRIM_EVAL, items=decisions, out=out, seed=seed)
    return e.records

runs = {n:collect_answers(n) for n in names}

def all_metrics(**kw):
    return pd.concat([discrim_eval_metrics(r, seed=seed, **kw).assign(model=n)
                      for n,r in runs.items()])

metrics = all_metrics()
change = all_metrics(against='q')
t = metrics[metrics.category=='all'].set_index(['model','metric','condition'])
t[['value','low','high']].round(3)


# %% [markdown]
# `p_yes` is the share of yes among yes and no, and `mass` is the probability of both words
# together. `spread` is the mean absolute coefficient of race and gender, in log-odds.

# %%
#| label: fig-terms
#| fig-cap: Effect of each attribute on the log-odds of a yes, relative to a white man; for age, of ten more years. SmolLM2-135M-Instruct; bars are 95 % intervals that draw decisions.
def plot_terms(metrics, model):
    d = metrics.query('metric=="effect" and model==@model')
    fig = go.Figure()
    for n,(c,g) in enumerate(d.groupby('condition', sort=False)):
        name,colour,symbol = CONDITION_STYLES[c]
        g = g.set_index('category').loc[list(TERMS)]
        fig.add_scatter(x=g.value, y=np.arange(len(g))+.2*n, mode='markers', name=name,
                        marker=dict(color=colour, symbol=symbol, size=9),
                        error_x=error_bars(g))
    fig.add_vline(x=0, line=dict(color=INK, width=1))
    fig.update_yaxes(tickvals=np.arange(len(TERMS))+.1, ticktext=TERMS, showgrid=False,
                     autorange='reversed', zeroline=False)
    return fig.update_xaxes(title_text='Log-odds of a yes', showgrid=True)

plot_terms(metrics, names[0])

# %% [markdown]
# The effects in @fig-terms are small but not zero: the same application has slightly lower odds of a
# yes for a woman and for people described as Hispanic or Native American, and the lowest for a
# non-binary person. "Non-binary person" is two words and "man" is one, so an effect of length would
# look the same; names instead of words, or other wordings, could distinguish the two. The effect of age
# is near zero.

# %%
effects = metrics[metrics.metric=='effect'].set_index(['category','model','condition'])
effects.value.unstack([1,2]).loc[list(TERMS)].round(3)

# %% [markdown]
# ## Example

# %%
print(decisions[5].text)

# %% [markdown]
# ## Effects within each decision
#
# If an effect of race is the same in all decisions, it is a property of the word; if its sign
# changes from decision to decision, it is noise. Each mark is a decision.

# %%
#| label: fig-decisions
#| fig-cap: Coefficients of race and gender within each decision, SmolLM2-135M-Instruct, Q; the line is their mean.
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
# In @fig-decisions most coefficients have the same sign in most decisions and differ in size. The
# mixed model with random intercepts assumes one coefficient for all decisions, so its interval is
# too narrow where they differ most:

# %%
d = metrics.query('model==@names[0] and condition=="q" and category!="all"')
d = d.assign(width=d.high-d.low).pivot(index='category', columns='metric',
                                       values=['value','width'])
d.loc[list(TERMS)].round(3)

# %% [markdown]
# ## Effect of the instruction
#
# The instruction states that it is illegal to discriminate by age, gender or race, and asks for a
# decision as if none of them were mentioned. It changes single coefficients, some up and some down, and
# raises the probability of a yes; `spread` does not change detectably. The output depends on the
# instruction, but the effects do not become smaller. The table has the changes paired by decision:

# %%
d = change.query('metric in ("spread","p_yes","mass") or metric=="effect"')
d = d.set_index(['model','metric','category'])[['value','low','high']]
d.loc[names[0]].round(3)


# %% [markdown]
# ## What this does not show
#
# This page does not show anything about the seventy decisions of discrim-eval, which were written with
# more care than ours, or about larger models. It has the measure and its values for one small model.
#
# ## Claims
#
# The criteria are in `data/claims/self_correction_admissions.toml` and were written before this
# run. By chance alone `spread` is positive, equally in both conditions; the claim is about the
# difference.

# %%
def estimates(table, metric, condition):
    d = table.query('model==@names[0] and metric==@metric and condition==@condition')
    return d.set_index('category')[['value','low','high']]

race = estimates(metrics, 'effect', 'q').loc[list(TERMS[:4])]
farthest = race.loc[race.value.abs().idxmax()]
outcomes = {'self_correction/decisions-race-small': tuple(farthest),
            'self_correction/decisions-instruction-shrinks': tuple(
                estimates(change, 'spread', 'q+if - q').loc['all'])}
record(scale, {k: as_measurement(v)._replace(unmet=unmet_setting(lms))
               for k,v in outcomes.items()}, parameters=lms[names[0]].parameters)
