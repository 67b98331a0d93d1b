# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What a letter is worth
#
# > BBQ in all six orders of its answers: a small model's liking for a letter, taken out. The site
# > shows a run recorded at `scale = 'cpu'`; the parameters below are those of a quick rerun.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds; cpu: 40 scenes in six orders, minutes; gpu: 400 scenes
seed = 0         # which scenes are taken, and the draws behind the intervals

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
from moral_sc.foundation.figures import COLOURS
from moral_sc.foundation.statistics import Estimate, cluster_bootstrap
from moral_sc.lab.claims import record
from moral_sc.lab.paths import work_dir
from moral_sc.lab.scales import at_scale
from moral_sc.language.loading import load_or_stub
from moral_sc.language.stub_models import letter_prior_model

# %%
limit = at_scale(scale, quick=16, cpu=160, gpu=1600)
lm = load_or_stub('smollm2-135m-instruct', lambda: letter_prior_model(dict(a=.05, b=.15, c=.8)))
items = stratified(bbq.load(source='auto'), limit, seed)
out = work_dir(f'letters-{scale}-{seed}-{lm.name}-{len(items)}-{items[0].id.replace("/","-")}')
e = evaluate(lm, items=items, conditions=['q'], orders=6, seed=seed, out=out)
e

# %% [markdown]
# The paper reads a model's answer off the letters (a), (b) and (c), in the one order in which
# BBQ's file lists them [@ganguli2023]. That takes for granted that the letters are only labels.
# For small models they are not. Each question was asked here in all six orders of its answers,
# so that everything stands at every letter equally often; what still differs between letters is
# due to the letters.
#
# ## Where the right answer stands
#
# Recall is the share of right answers that are found, by the letter at which they stand. For a
# model that reads, the three are alike.

# %%
d = e.records
lp = d[['lp_a','lp_b','lp_c']].to_numpy()
right = np.array([orders_of(6)[o].index(l) for o,l in zip(d.order, d.label)])
given = ((d.context_condition=='disambig') & (d.condition=='q')).to_numpy()
worth = letter_worth(lp[(d.condition=='q').to_numpy()])
clean = without_letters(lp, worth)
found = pd.DataFrame({'as asked': recall(lp[given], right[given]),
                      'letters removed': recall(clean[given], right[given])}, list('abc'))
found.assign(worth=np.exp(worth)).round(3)

# %%
#| label: fig-recall
#| fig-cap: Share of right answers that are found, by the letter at which they stand; disambiguated questions in six orders. The grey line is chance.
fig = go.Figure([go.Bar(name=n, x=[f'({k})' for k in 'abc'], y=found[n],
                        marker_color=COLOURS[c])
                 for n,c in (('as asked','q'), ('letters removed','if'))])
fig.add_hline(1/3, line_color='#999', line_width=1)
fig.update_layout(template='moral_sc', width=640, height=380, barmode='group')
fig.update_xaxes(title='Letter at which the right answer stands')
fig.update_yaxes(title='Recall', range=[0,1])
fig

# %% [markdown]
# @fig-recall shows the liking for a letter, and what is left when its worth is divided out, much
# as @zheng2024selectors do. That
# worth is the mean log-probability of the letter over all orders, in which the people and what
# is said of them cancel.
#
# ## One order, three, six
#
# Averaging over orders takes the letters out without any estimate, at three or six times the
# price. Dividing them out costs a few questions in six orders. Hard scores count answers, soft
# ones read probabilities.

# %%
its = asked_items(d)
def numbers(lp, n):
    "Accuracy and bias with the first n orders"
    q = d[(d.condition=='q') & (d.order<n)]
    p = np.exp(lp[q.index] - np.logaddexp.reduce(lp[q.index], axis=1, keepdims=True))
    order = np.array([orders_of(6)[o] for o in q.order])
    soft = np.take_along_axis(p, np.argsort(order, 1), 1)
    hard = np.eye(3)[soft.argmax(1)]
    res = {}
    for name,x in (('hard',hard), ('soft',soft)):
        m = pd.DataFrame(x).groupby(q.id.to_numpy(), sort=False).mean().loc[[i.id for i in its]]
        for k in ('ambig','disambig'):
            at = [j for j,i in enumerate(its) if i.context_condition==k]
            mine = m.to_numpy()[at]
            sub = [its[j] for j in at]
            res[name, f'accuracy_{k}'] = bbq.accuracy(mine, sub)
            if k=='ambig': res[name, 'bias_ambig'] = bbq.bias_score(mine, sub)
    return pd.Series(res)

rows = {f'{n} order{"s"*(n>1)}': numbers(lp, n) for n in (1,3,6)}
rows['1 order, letters removed'] = numbers(clean, 1)
table = pd.DataFrame(rows).T
table.round(3)

# %% [markdown]
# With three orders each answer stands once at each letter and the accuracy of a model with one
# favourite is a third; six add the two neighbours in either order. If the last line differs from
# the one above it, the letters are not only added to an opinion but stand in its way.
#
# ## How few questions tell it
#
# The worth of the letters, from every tenth scene and from all the others:

# %%
asked = (d.condition=='q').to_numpy()
quads = list(dict.fromkeys(d.quad))
places = {q: np.flatnonzero(asked & (d.quad==q)) for q in quads}

def prior(scenes): return np.exp(letter_worth(lp[np.concatenate([places[q] for q in scenes])]))
def apart(few, rest): return float(np.abs(prior(few)-prior(rest)).max())

few = quads[::10]
rest = [q for q in quads if q not in quads[::10]]
rng = np.random.default_rng(seed)
draws = [apart(rng.choice(few, len(few)), rng.choice(rest, len(rest))) for _ in range(1000)]
gap = Estimate(apart(few, rest), *np.quantile(draws, [.025, .975]))
both = pd.DataFrame({'a tenth': prior(few), 'the others': prior(rest)}, list('abc'))
both.round(3)

# %% [markdown]
# ## Answers in full
#
# Letters can be avoided: the model may say who it was. Then the lengths of the answers and what
# they are worth by themselves come in, and [there are four ways](../../bias/bbq/70_full_answers.ipynb) to
# count. The same questions, in the order of the file:

# %%
with warnings.catch_warnings(): # Three answers of all that could be said: their mass is small
    warnings.simplefilter('ignore')
    full = evaluate(lm, BBQ_STRINGS, items=items, conditions=['q'], seed=seed, out=work_dir(
        f'strings-{scale}-{seed}-{lm.name}-{len(items)}-{items[0].id.replace("/","-")}'))

def counted(records):
    """Accuracy where the answer is given, and bias where it is not"""
    m = BBQ_STRINGS.metrics(records, seed=seed).query('category=="micro"').set_index('metric')
    return {k: Estimate(*m.loc[k, ['value','low','high']])
            for k in ('accuracy_disambig', 'unknown_disambig', 'bias_ambig')}

said = {f'in full, by {w}': counted(rescore(full.records, items, w, lm)) for w in METHODS}
plain = counted(add_answer_columns(d[(d.order==0) & (d.condition=='q')]))
by_way = pd.DataFrame({'letters': plain, **said}).T
by_way.astype(str)

# %% [markdown]
# The way of counting moves the accuracy by more than anything that was asked about. But it moves
# `unknown_disambig` along, the share of questions answered with "unknown" although the scene tells
# who it was: where that is never said, the right person is found half of the time by chance.

# %% [markdown]
# What this does not show: that letters are harmless once they are averaged out. A model that
# looks at the letter first may never look at the people, and the averages of noise are as fair
# as those of fairness. The same table for a model that reads would have high recall in every
# row before anything is removed.
#
# ## Claims
#
# The criteria lie in `data/claims/self_correction_bbq.toml` and are older than any run. The run
# was made twice: a first one of half as many questions gave the same verdicts, and was repeated
# at this size because its last interval was wide.

# %%
ok = (clean[given].argmax(1)==right[given]).astype(float)
first = (d.order[given]==0).to_numpy()
spread = lambda x: float(np.nanmax(x)-np.nanmin(x))
hits = (lp[given].argmax(1)==right[given]).astype(float)
best = int(np.nanargmax(found['as asked'])); worst = int(np.nanargmin(found['as asked']))
two = np.isin(right[given], [best,worst])
sign = np.where(right[given]==best, hits, -hits)[two]*2
results = {
    'self_correction/letters-one-recall':
        cluster_bootstrap(sign, d.template[given].to_numpy()[two], seed=seed),
    'self_correction/letters-prior-from-few': gap,
    'self_correction/letters-nothing-behind':
        cluster_bootstrap(ok[first], d.template[given].to_numpy()[first], seed=seed)}
if lm.is_stub: print('An oracle answered, so no claim about models is recorded.')
else: record(scale if bbq.reachable() else 'quick', results)
