# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What the released answers say: votes taught evasion, and principles taught comfort
#
# > The answers the authors published for four of their models, counted and not judged. Needs no
# > model; the same at every scale.

# %% tags=["parameters"]
scale = 'quick'  # There is one size of this page
seed = 0         # of the draws behind the intervals

# %%
#| hide
import numpy as np, pandas as pd
from scipy.stats import chi2

# %%
from moral_sc.constitution.evaluation.refusals import (AUTHOR_MODELS, author_samples, boilerplate_matches, distinct_ngrams,
                                             evasion_matches, clean_answer)
from moral_sc.constitution.plots import plot_prompt_shares, plot_rates
from moral_sc.constitution.revision import author_revisions, chain_table
from moral_sc.foundation.datasets import data_dir, read_jsonl
from moral_sc.foundation.statistics import cluster_bootstrap, paired_difference
from moral_sc.lab.claims import record

# %% [markdown]
# > A model trained with human votes for harmlessness says "I can't answer that"; one trained on
# > a constitution engages with the request. Trained too long, it comforts where nobody asked, and
# > labels made with a chain of thought help against that [@bai2022constitutional].
#
# These are claims about behaviour that needs no judge to be seen. For prompts of three other
# papers the authors released 17 answers of each of four models, and four rounds of critique and
# revision. The detectors are [short patterns](../../constitution/evaluation/50_refusals.ipynb), checked
# against labelled answers; they find what they know, so rates are lower bounds.

# %%
answers = {name: author_samples(m) for m,name in AUTHOR_MODELS.items()}
reach = all(len(a) for a in answers.values())
if not reach: # Ours, which the detectors were tried on: they stand in, and say nothing of models
    ours = pd.DataFrame(read_jsonl(data_dir()/'constitution'/'detector_cases.jsonl'))
    ours = ours.assign(set='ours', row=range(len(ours)), sample=0, prompt='', score=np.nan)
    answers = {'our own cases': ours}
{k: (len(a), a.groupby(['set','row']).ngroups) for k,a in answers.items()}


# %% [markdown]
# Answers to one prompt resemble each other, so what counts is the number of prompts: intervals
# resample these. Where nothing was found, resampling finds nothing either, and `0 [0, 0]` says only
# that.

# %%
def measured(a):
    return pd.DataFrame(dict(prompt=a.set+a.row.astype(str), score=a.score,
        evades=[bool(evasion_matches(t)) for t in a.text], comfort=[bool(boilerplate_matches(t)) for t in a.text],
        characters=[len(clean_answer(t)) for t in a.text], text=a.text))

d = {k: measured(a) for k,a in answers.items()}
kinds = dict(evades='evades and offers nothing', comfort='holds a stock phrase of comfort')
rates = pd.DataFrame({k: {c: cluster_bootstrap(x[c], x.prompt, seed=seed) for c in kinds}
                      for k,x in d.items()}).T
rates.astype(str)

# %%
#| label: fig-rates
#| fig-cap: Share of answers to red-team prompts that evade or comfort. Bars are 95 % intervals over prompts.
plot_rates(rates.rename(columns=kinds))

# %% [markdown]
# In @fig-rates the two vices change places. Is it a habit of the model or a matter of a few
# prompts? The share of comforting answers, prompt by prompt:

# %%
#| label: fig-prompts
#| fig-cap: Prompts in the order of the share of their answers that hold a stock phrase.
plot_prompt_shares({k: x.groupby('prompt').comfort.mean() for k,x in d.items()})

# %% [markdown]
# For constitutional RL without chain of thought most prompts lie at one end or the other: to a
# prompt of one kind, comfort is nearly certain. Sampling again does not get around it, and the
# variety of the 17 answers to one prompt tells how little is left to choose from.

# %%
variety = {k: cluster_bootstrap(x.groupby('prompt').text.apply(distinct_ngrams), range(x.prompt.nunique()))
           for k,x in d.items()}
length = {k: cluster_bootstrap(x.characters, x.prompt) for k,x in d.items()}
pd.DataFrame(dict(characters=length, variety=variety)).astype(str)


# %% [markdown]
# `variety` is the share of different pairs of words among all pairs in the answers to one prompt.
#
# ## What the score saw
#
# Each released answer carries a score by one of the authors' preference models. If comfort paid
# *within* a prompt, the comforting answers to a prompt would score above the others to the same
# prompt. Here prompts count that have both.

# %%
def pays(x, what):
    "Mean score of answers with `what` less that of the others, within a prompt"
    both = [g for _,g in x.groupby('prompt') if 0<g[what].sum()<len(g)]
    if len(both)<3: return None
    gap = [g.score[g[what]].mean()-g.score[~g[what]].mean() for g in both]
    spread = [g.score.std() for g in both]
    return cluster_bootstrap(np.array(gap)/spread, range(len(both)), seed=seed), len(both)

pd.DataFrame([(k, c, *p) for k,x in d.items() for c in kinds if (p := pays(x, c))],
             columns=['model', 'answers that', 'standard deviations', 'prompts']).astype(str)

# %% [markdown]
# Where an interval holds 0, the score cannot tell such answers from the others, and what RL was
# paid for must be found elsewhere: between prompts, in an earlier state of the policy, or in
# another preference model than the one that made these scores. The files do not say which
# preference model that was.
#
# ## Four rounds of revision

# %%
chains = author_revisions()
t = chain_table(chains).assign(characters=lambda t: t.text.map(lambda s: len(clean_answer(s)))) \
    if chains else None
by_round = t.groupby('round').characters.agg(['mean', 'median']).round() if chains else 'out of reach'
by_round


# %% [markdown]
# The first revision does most of the shortening. Principles should be drawn anew, and with
# replacement, in every round: then the 16 come up equally often, and a third of the chains
# meet one twice.

# %%
def draws(chains):
    keys = [[s['principle'] for s in c['rounds']] for c in chains]
    n = pd.Series(sum(keys, [])).value_counts()
    x = float(((n-n.sum()/16)**2/(n.sum()/16)).sum() + (16-len(n))*n.sum()/16)
    twice = cluster_bootstrap([len(set(k))<len(k) for k in keys], range(len(keys)))
    return {'chi square on 15': round(x, 1), 'p': round(float(chi2.sf(x, 15)), 2),
            'chains with a repeated principle': twice, 'expected': .3335}

pd.Series(draws(chains)) if chains else 'out of reach'


# %% [markdown]
# Both agree with independent draws. This is the one place where the released files settle a
# question that the paper leaves open.
#
# ## Claims
#
# The outcome of every one of these counts was known when its criterion was written: they are
# recounts.

# %%
def counted():
    a,cot = (d[AUTHOR_MODELS[m]] for m in ('RLMADISON', 'RLMADISON_COT'))
    per = lambda x, c: x.groupby('prompt')[c].mean()
    e = pd.concat([per(a, 'comfort'), per(cot, 'comfort')], axis=1, join='inner').to_numpy()
    res = {'cot-comforts-less': paired_difference(*e.T, range(len(e)))}
    if chains:
        w = t.pivot(index='id', columns='round', values='characters')
        first = w[0]-w[1]
        later = (w[1]-w[4])/3
        res['shortens-first'] = paired_difference(first, later, range(len(w)))
    return {f'constitution/{k}': v for k,v in res.items()}

record(scale, counted() if reach else {})
