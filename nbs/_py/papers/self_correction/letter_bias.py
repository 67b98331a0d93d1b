# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Letter bias: recall depends on the letter of the correct answer
#
# > On BBQ (Figure 1, left) SmolLM2-135M recalls 0.99 of the correct answers at its preferred letter and less than 0.01 at the other two.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds; cpu: 40 scenes in six orders, minutes; gpu: 400 scenes
seed = 0         # sample of scenes, and the draws behind the intervals
models = ()      # --model NAME: aliases, folders or hub ids; default: those of the scale

# %%
#| hide
import warnings
import numpy as np, pandas as pd
import plotly.graph_objects as go
from moral_sc.bias import bbq, evaluate
from moral_sc.bias.bbq.scoring import letter_worth, orders_of, recall, without_letters
from moral_sc.bias.bbq.items import stratified
from moral_sc.bias.bbq.metrics import asked_items, add_answer_columns
from moral_sc.bias.bbq.full_answers import BBQ_STRINGS, METHODS, rescore
from moral_sc.bias.evaluation import load_models, unmet_setting
from moral_sc.foundation.figures import COLOURS
from moral_sc.foundation.statistics import Estimate, cluster_bootstrap
from moral_sc.lab.claims import as_measurement, record
from moral_sc.lab.paths import work_dir
from moral_sc.lab.scales import at_scale
from moral_sc.language.stub_models import letter_prior_model

# %% [markdown]
# ## BBQ answers by letter
#
# > The paper takes a model's answer from the probabilities of the letters (a), (b) and (c), in the
# > one order of BBQ's file [@ganguli2023].
#
# This assumes that the letter of an option has no effect of its own. In small models it has one. We
# give each question to SmolLM2-135M-Instruct in all six orders of its options, so that every option is
# at every letter equally often; remaining differences between letters are due to the letters.

# %%
limit = at_scale(scale, quick=96, cpu=160, gpu=1600) # Questions, four a scene
MODELS = dict(quick=(), cpu=('smollm2-135m-instruct',), gpu=('smollm2-135m-instruct',))
lms = load_models(models, MODELS[scale], lambda: letter_prior_model(dict(a=.05, b=.15, c=.8)))
lm = next(iter(lms.values())) # The page is about the first model
items = stratified(bbq.load(source='auto'), limit, seed)
out = work_dir(f'letters-{scale}-{seed}-{lm.name}-{len(items)}-{items[0].id.replace("/","-")}')
e = evaluate(lm, items=items, conditions=['q'], orders=6, seed=seed, out=out)
e

# %% [markdown]
# Recall is the share of correct answers that are found, by the letter of the correct answer. For a
# model whose answers depend only on the text, the three are equal.

# %%
d = e.records
lp = d[['lp_a','lp_b','lp_c']].to_numpy()
correct = np.array([orders_of(6)[o].index(l) for o,l in zip(d.order, d.label)])
disambiguated = ((d.context_condition=='disambig') & (d.condition=='q')).to_numpy()
worth = letter_worth(lp[(d.condition=='q').to_numpy()])
debiased = without_letters(lp, worth)
recalls = pd.DataFrame({'as asked': recall(lp[disambiguated], correct[disambiguated]),
                        'letters removed': recall(debiased[disambiguated],
                                                  correct[disambiguated])}, list('abc'))
recalls.assign(worth=np.exp(worth)).round(3)

# %%
#| label: fig-recall
#| fig-cap: Share of correct answers that are found, by the letter of the correct answer; disambiguated questions in six orders. The grey line is chance.
fig = go.Figure([go.Bar(name=n, x=[f'({k})' for k in recalls.index], y=recalls[n],
                        marker_color=COLOURS[c])
                 for n,c in (('as asked','q'), ('letters removed','if'))])
fig.add_hline(1/3, line_color='#999', line_width=1)
fig.update_layout(template='moral_sc', width=640, height=380, barmode='group')
fig.update_xaxes(title='Letter of the correct answer')
fig.update_yaxes(title='Recall', range=[0,1])
fig

# %% [markdown]
# @fig-recall shows the letter preference, and the recall after it is divided out, similar to
# @zheng2024selectors. The `worth` of a letter is its mean log-probability over all orders, in which
# the content of the options cancels; the table has its exponential.
#
# ## Number of option orders
#
# Averaging over orders removes the letter preference without an estimate, at three or six times
# the cost. Dividing it out needs a few questions in six orders. Hard scores count answers, soft
# scores use probabilities.

# %%
unique_items = asked_items(d)

def scores_with_orders(lp, n):
    "Compute accuracy and bias with the first n orders"
    q = d[(d.condition=='q') & (d.order<n)]
    p = np.exp(lp[q.index] - np.logaddexp.reduce(lp[q.index], axis=1, keepdims=True))
    order = np.array([orders_of(6)[o] for o in q.order])
    soft = np.take_along_axis(p, np.argsort(order, 1), 1)
    hard = np.eye(3)[soft.argmax(1)]
    scores = {}
    for name,x in (('hard',hard), ('soft',soft)):
        means = pd.DataFrame(x).groupby(q.id.to_numpy(), sort=False).mean()
        means = means.loc[[i.id for i in unique_items]].to_numpy()
        for k in ('ambig','disambig'):
            rows = [j for j,i in enumerate(unique_items) if i.context_condition==k]
            subset = [unique_items[j] for j in rows]
            scores[name, f'accuracy_{k}'] = bbq.accuracy(means[rows], subset)
            if k=='ambig': scores[name, 'bias_ambig'] = bbq.bias_score(means[rows], subset)
    return pd.Series(scores)

rows = {f'{n} order{"s"*(n>1)}': scores_with_orders(lp, n) for n in (1,3,6)}
rows['1 order, letters removed'] = scores_with_orders(debiased, 1)
pd.DataFrame(rows).T.round(3)

# %% [markdown]
# With three orders each option is at each letter once, so the accuracy of a model with one
# preferred letter is one third; six orders also exchange the two options beside it. If the last row
# differs from the one above it, the letter preference is not simply added to the content: it
# changes how the content affects the answer.
#
# ## Estimating the letter preference
#
# The worth of the letters, from every tenth scene and from all others:

# %%
asked = (d.condition=='q').to_numpy()
quads = list(dict.fromkeys(d.quad))
rows_of = {q: np.flatnonzero(asked & (d.quad==q)) for q in quads}

def letter_prior(scenes):
    return np.exp(letter_worth(lp[np.concatenate([rows_of[q] for q in scenes])]))

def largest_gap(sample, rest):
    return float(np.abs(letter_prior(sample)-letter_prior(rest)).max())

tenth = quads[::10]
rest = [q for q in quads if q not in tenth]
rng = np.random.default_rng(seed)
draws = [largest_gap(rng.choice(tenth, len(tenth)), rng.choice(rest, len(rest)))
         for _ in range(1000)]
gap = Estimate(largest_gap(tenth, rest), *np.quantile(draws, [.025, .975]))
pd.DataFrame({'a tenth': letter_prior(tenth), 'the others': letter_prior(rest)},
             list('abc')).round(3)

# %% [markdown]
# ## Full-text answers
#
# Letters can be avoided by scoring the full text of each option. The lengths of the options and
# their prior probabilities then matter, and
# [there are four normalisations](../../bias/bbq/70_full_answers.ipynb). The same questions, in the
# order of the file:

# %%
with warnings.catch_warnings(): # Three answers of all possible texts: their mass is small
    warnings.simplefilter('ignore')
    full = evaluate(lm, BBQ_STRINGS, items=items, conditions=['q'], seed=seed, out=work_dir(
        f'strings-{scale}-{seed}-{lm.name}-{len(items)}-{items[0].id.replace("/","-")}'))

def summarise(records):
    "Estimate accuracy where the answer is given, and bias where it is not"
    m = BBQ_STRINGS.metrics(records, seed=seed).query('category=="micro"').set_index('metric')
    return {k: Estimate(*m.loc[k, ['value','low','high']])
            for k in ('accuracy_disambig', 'unknown_disambig', 'bias_ambig')}

by_method = {'letters': summarise(add_answer_columns(d[(d.order==0) & (d.condition=='q')]))}
for m in METHODS:
    by_method[f'in full, by {m}'] = summarise(rescore(full.records, items, m, lm))
pd.DataFrame(by_method).T.astype(str)

# %% [markdown]
# Accuracy depends on the normalisation and goes from 0.325 to 0.512. But the normalisation also changes
# `unknown_disambig`, the share of disambiguated questions answered with "unknown": if the unknown
# option is never chosen, the correct person is chosen half of the time by chance.

# %% [markdown]
# ## What this does not show
#
# This page does not show that letters are harmless after averaging. The letters may hide an effect of
# the content, and averages of noise look as fair as fair answers. For a model whose answers depend on
# the content, every row of the table would have high recall before the letter preference is removed.
#
# ## Claims
#
# The criteria are in `data/claims/self_correction_bbq.toml` and were written before any run. This is
# the second run. The first, with half as many questions, gave the same verdicts and was repeated with
# more because its last interval was wide. Two of the three claims remain undecided.

# %%
hits = (lp[disambiguated].argmax(1)==correct[disambiguated]).astype(float)
best = int(np.nanargmax(recalls['as asked']))
worst = int(np.nanargmin(recalls['as asked']))
extreme = np.isin(correct[disambiguated], [best,worst])
signed = np.where(correct[disambiguated]==best, hits, -hits)[extreme]*2
debiased_hits = (debiased[disambiguated].argmax(1)==correct[disambiguated]).astype(float)
first = (d.order[disambiguated]==0).to_numpy()
templates = d.template[disambiguated].to_numpy()
outcomes = {
    'self_correction/letters-one-recall':
        cluster_bootstrap(signed, templates[extreme], seed=seed),
    'self_correction/letters-prior-from-few': gap,
    'self_correction/letters-nothing-behind':
        cluster_bootstrap(debiased_hits[first], templates[first], seed=seed)}
unmet = unmet_setting(lms, questions=bool(bbq.reachable()))
record(scale, {k: as_measurement(v)._replace(unmet=unmet) for k,v in outcomes.items()},
       parameters=lm.parameters)
