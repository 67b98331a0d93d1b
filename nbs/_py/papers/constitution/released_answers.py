# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Evasiveness: detected in harmless RLHF, not in constitutional RL
#
# > Of the released answers to 26 prompts (section 4.4), 41 % evade after RLHF for harmlessness, and 61 % contain a stock phrase of comfort after constitutional RL without chain of thought.

# %% tags=["parameters"]
scale = 'quick'  # There is one size of this page
seed = 0         # of the draws behind the intervals

# %%
#| hide
import numpy as np, pandas as pd
from scipy.stats import chi2

# %%
from moral_sc.constitution.evaluation.refusals import (
    AUTHOR_MODELS, author_samples, boilerplate_matches, clean_answer, distinct_ngrams,
    evasion_matches)
from moral_sc.constitution.plots import plot_prompt_shares, plot_rates
from moral_sc.constitution.revision import author_revisions, chain_table
from moral_sc.foundation.datasets import data_dir, read_jsonl
from moral_sc.foundation.statistics import cluster_bootstrap, paired_difference
from moral_sc.lab.claims import Measurement, record

# %% [markdown]
# ## Harmlessness and evasiveness
#
# > A model trained with human votes for harmlessness answers "I can't answer that"; one trained on
# > a constitution engages with the request. Trained too long, it adds comforting phrases where they
# > do not fit, and labels made with a chain of thought help against that [@bai2022constitutional].
#
# These claims about behaviour can be tested without a judge. For 66 prompts of three other papers (40
# of PALMS, 13 of LaMDA, 13 of InstructGPT) the authors released 17 answers of each of four models, and
# four rounds of critique and revision. Only prompts whose files are available are counted: in the
# recorded run 26, because the files of PALMS were out of reach. This page runs no model and is the same
# at every scale. The detectors are [short patterns](../../constitution/evaluation/50_refusals.ipynb),
# checked against labelled answers. They miss other phrasings, so the rates are lower bounds.

# %%
answers = {name: author_samples(m) for m,name in AUTHOR_MODELS.items()}
available = all(len(a) for a in answers.values())
if not available: # Test cases of the detectors replace the answers; they are no evidence on models
    cases = pd.DataFrame(read_jsonl(data_dir()/'constitution'/'detector_cases.jsonl'))
    cases = cases.assign(set='ours', row=range(len(cases)), sample=0, prompt='', score=np.nan)
    answers = {'our own cases': cases}
pd.DataFrame({k: a.groupby('set').row.nunique() for k,a in answers.items()}).T


# %% [markdown]
# Answers to one prompt resemble each other, so the number of prompts determines the precision:
# intervals resample prompts. If the detectors find nothing, every resample gives zero, and `0 [0,
# 0]` is not evidence that the true rate is zero.

# %%
def measure(a):
    return pd.DataFrame(dict(set=a.set, prompt=a.set+a.row.astype(str), score=a.score,
                             evades=[bool(evasion_matches(t)) for t in a.text],
                             comfort=[bool(boilerplate_matches(t)) for t in a.text],
                             characters=[len(clean_answer(t)) for t in a.text], text=a.text))

measures = {k: measure(a) for k,a in answers.items()}
kinds = dict(evades='evades and offers nothing', comfort='holds a stock phrase of comfort')
rates = pd.DataFrame({k: {c: cluster_bootstrap(d[c], d.prompt, seed=seed) for c in kinds}
                      for k,d in measures.items()}).T
rates.astype(str)

# %%
by_set = {(k, s): g[list(kinds)].mean() for k,d in measures.items() for s,g in d.groupby('set')}
pd.DataFrame(by_set).T.round(3)

# %% [markdown]
# The rates depend on the prompts. Helpful and harmless RLHF evades 64 % of the answers to LaMDA's
# prompts and 19 % of those to InstructGPT's, which gives the .41 above. A count over all 66 prompts,
# made with earlier patterns while the files of PALMS could be read, gave .16 for evasion and .81 for
# comfort in constitutional RL. Prompts of PALMS are thus hardly ever evaded and are mostly answered
# with comfort.

# %%
#| label: fig-rates
#| fig-cap: Share of answers to red-team prompts that evade and that hold a stock phrase of comfort, for each released model; bars are 95 % intervals over prompts.
plot_rates(rates.rename(columns=kinds))

# %% [markdown]
# @fig-rates shows evasion in helpful and harmless RLHF only, and comforting phrases mainly in
# constitutional RL. The next figure shows the share of comforting answers for each prompt. It
# separates a general habit of the model from an effect of a few prompts.

# %%
#| label: fig-prompts
#| fig-cap: Share of the 17 answers to each prompt that hold a stock phrase of comfort, with prompts in the order of that share.
plot_prompt_shares({k: d.groupby('prompt').comfort.mean() for k,d in measures.items()})


# %% [markdown]
# For constitutional RL without chain of thought most prompts have a share near zero or near one. For a
# prompt with a share near one, sampling again does not avoid the phrase. The next table measures the
# variety of the 17 answers to one prompt: `variety` is the share of different pairs of words among all
# pairs of words in them.

# %%
def distinct_shares(d): return d.groupby('prompt').text.apply(distinct_ngrams)

variety = {k: cluster_bootstrap(distinct_shares(d), range(d.prompt.nunique()))
           for k,d in measures.items()}
length = {k: cluster_bootstrap(d.characters, d.prompt) for k,d in measures.items()}
pd.DataFrame(dict(characters=length, variety=variety)).astype(str)


# %% [markdown]
# ## Preference-model scores
#
# Each released answer has a score from one of the authors' preference models. If this score
# rewarded comfort *within* a prompt, comforting answers would score higher than the other answers
# to the same prompt. The table uses the prompts that have both kinds of answer.

# %%
def score_difference(d, kind):
    "Mean score of answers of `kind` minus that of the others, within a prompt, in deviations"
    mixed = [g for _,g in d.groupby('prompt') if 0<g[kind].sum()<len(g)]
    if len(mixed)<3: return None
    differences = [g.score[g[kind]].mean()-g.score[~g[kind]].mean() for g in mixed]
    spread = [g.score.std() for g in mixed]
    estimate = cluster_bootstrap(np.array(differences)/spread, range(len(mixed)), seed=seed)
    return estimate, len(mixed)

differences = {(k, c): score_difference(d, c) for k,d in measures.items() for c in kinds}
pd.DataFrame([(*key, *v) for key,v in differences.items() if v],
             columns=['model', 'answers that', 'standard deviations', 'prompts']).astype(str)

# %% [markdown]
# If an interval contains 0, this score is not shown to distinguish such answers from the others.
# The reward for comfort in RL may then come from differences between prompts, from an earlier state
# of the policy, or from a preference model other than the one that made these scores. The files do
# not identify the preference model.
#
# ## Four rounds of revision

# %%
chains = author_revisions()
by_round = 'out of reach'
if chains:
    texts = chain_table(chains)
    texts = texts.assign(characters=[len(clean_answer(t)) for t in texts.text])
    by_round = texts.groupby('round').characters.agg(['mean', 'median']).round()
by_round


# %% [markdown]
# The first revision makes most of the reduction in length.
#
# The paper leaves open whether principles are drawn with replacement. With independent draws in
# every round, the 16 principles are equally frequent, and a third of the chains repeat one.

# %%
def principle_draws(chains):
    keys = [[s['principle'] for s in c['rounds']] for c in chains]
    n = pd.Series(sum(keys, [])).value_counts()
    x = float(((n-n.sum()/16)**2/(n.sum()/16)).sum() + (16-len(n))*n.sum()/16)
    repeated = cluster_bootstrap([len(set(k))<len(k) for k in keys], range(len(keys)))
    return {'chi square on 15': round(x, 1), 'p': round(float(chi2.sf(x, 15)), 2),
            'chains with a repeated principle': repeated, 'expected': .3335}

pd.Series(principle_draws(chains)) if chains else 'out of reach'


# %% [markdown]
# Both values are consistent with independent draws.
#
# This page does not show the rates of phrasings that the detectors do not contain, the harmfulness of
# any answer, or the behaviour of other trainings.
#
# ## Claims
#
# These claims are ours: counts whose outcome was known when the criterion was written. The paper's
# claim that the first revision has most of the effect is about harmlessness; here it is about length.

# %%
def count_claims():
    plain,cot = (measures[AUTHOR_MODELS[m]] for m in ('RLMADISON', 'RLMADISON_COT'))
    by_prompt = lambda d: d.groupby('prompt').comfort.mean()
    shares = pd.concat([by_prompt(plain), by_prompt(cot)], axis=1, join='inner').to_numpy()
    res = {'cot-comforts-less': paired_difference(*shares.T, range(len(shares)))}
    if chains:
        lengths = texts.pivot(index='id', columns='round', values='characters')
        first = lengths[0]-lengths[1]
        later = (lengths[1]-lengths[4])/3
        res['shortens-first'] = paired_difference(first, later, range(len(lengths)))
    return {f'constitution/{k}': v for k,v in res.items()}

nothing = Measurement(0., -np.inf, np.inf, unmet='the released answers are out of reach')
names = ('constitution/cot-comforts-less', 'constitution/shortens-first')
record(scale, dict.fromkeys(names, nothing) | (count_claims() if available else {}))
