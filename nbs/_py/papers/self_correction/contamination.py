# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Questions a model may have seen, and questions it cannot have
#
# > BBQ against fresh questions from its templates, template by template. The site shows a run
# > recorded at `scale = 'cpu'`; the parameters below are those of a quick rerun.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds; cpu: a scene of each template with new ones, minutes; gpu: ten
seed = 0         # which scenes are taken, and the draws behind the intervals

# %%
#| hide
import numpy as np, pandas as pd
import plotly.graph_objects as go
from dataclasses import replace
from moral_sc.bias import bbq, evaluate
from moral_sc.bias.bbq.scoring import directions
from moral_sc.bias.bbq.novel_names import generate_items, novel_scenes, templates_available
from moral_sc.bias.bbq.items import stratified
from moral_sc.bias.bbq.metrics import item_metadata, condition_probabilities
from moral_sc.foundation.figures import COLOURS
from moral_sc.foundation.statistics import Estimate, cluster_bootstrap
from moral_sc.lab.claims import record
from moral_sc.lab.paths import work_dir
from moral_sc.lab.scales import at_scale
from moral_sc.language.loading import load_or_stub
from moral_sc.language.stub_models import letter_prior_model
from moral_sc.language.scoring import option_logprobs

# %% [markdown]
# BBQ was published in 2021. What is on the web ends up in training data, and questions with
# their answers also in the data that models are tuned on. If a model knows them by heart, its
# score says nothing about how it treats people in other questions, and a fall of the score from
# one model to the next may be memory and not fairness. The models of @ganguli2023 were too early
# for that; those one can load today are not.
#
# A probe costs little. [The templates](../../bias/bbq/40_novel_names.ipynb) filled again give questions
# that differ from BBQ's in the people and the words that do not matter. A model that learned the
# questions by heart finds the original text likelier and answers it differently; for one that
# did not, the two are samples of one thing.

# %%
size = at_scale(scale, quick=(4,1), cpu=(40,3), gpu=(2000,6)) # scenes on either side, option orders
lm = load_or_stub('smollm2-135m-instruct', lambda: letter_prior_model(dict(a=.05, b=.15, c=.8)))
near = bool(bbq.reachable()) and templates_available()
ours = bbq.load(source='ours')

def sides(n):
    "Original and new questions of the same templates, as many of one as of the other"
    if not near: # Nothing to compare: two halves of our own set show the way
        of = {} # Scenes by template
        for i in ours: of.setdefault(i.template, {}).setdefault(i.quad, []).append(i)
        two = [[*q.values()][:2] for q in of.values() if len(q)>1][:n]
        return [[i for q in two for i in q[k]] for k in (0,1)]
    real = bbq.load()
    new = novel_scenes(generate_items(bbq.reachable(), seed+1), real)
    both = {i.template for i in new}
    return [stratified([i for i in x if i.template in both], 4*n, seed) for x in (real, new)]

old,new = sides(size[0])
new = [replace(i, id='fresh-'+i.id, quad='fresh-'+i.quad) for i in new]
counted = [dict(questions=len(x), scenes=len({i.quad for i in x}),
                templates=len({i.template for i in x})) for x in (old,new)]
pd.DataFrame(counted, ['original','fresh'])


# %% [markdown]
# New text needs a choice. Most templates of Nationality name two of seventy nationalities; most
# of Age list four words, and every pair of them is in BBQ already. So this compares the
# templates that can give a new scene, and those are mostly of one category.
#
# ## Is the text likelier?
#
# The first thing that memory shows in is the probability of the words themselves. Here it is
# that of the ambiguous context in nats a byte, the mean over a template's scenes.

# %%
def nats(items):
    "Log-probability a byte of each context, one a scene"
    one = [i for i in items if (i.context_condition,i.polarity)==('ambig','neg')]
    lp = option_logprobs(lm, ['\n']*len(one), [[i.context] for i in one])[:,0]
    byte = np.array([len(i.context.encode()) for i in one])
    return pd.Series(lp/byte, [i.template for i in one]).groupby(level=0).mean()

text = pd.concat([nats(old), nats(new)], axis=1, keys=['original','fresh']).dropna()
text.describe().loc[['count','mean','std']].round(3)

# %%
#| label: fig-text
#| fig-cap: Log-probability of the ambiguous context in nats a byte, a point a template; on the line the fresh text is as likely as the original.
lo = text.min().min()
hi = text.max().max()
fig = go.Figure([
    go.Scatter(x=[lo,hi], y=[lo,hi], mode='lines', line=dict(color='#999', width=1),
               showlegend=False),
    go.Scatter(x=text.original, y=text.fresh, mode='markers', name='templates',
               marker=dict(color=COLOURS['q'], size=8), showlegend=False)])
fig.update_layout(template='moral_sc', width=640, height=380)
fig.update_xaxes(title='BBQ, nats a byte')
fig.update_yaxes(title='Fresh, nats a byte')
fig

# %% [markdown]
# ## Are the answers others?
#
# The score of a model that has learned the answers would be nearer to zero on the original.

# %%
name = f'fresh-{scale}-{seed}-{lm.name}-{len(old)}-{near}'
asked = [evaluate(lm, items=x, conditions=['q'], orders=size[1], seed=seed,
                  out=work_dir(f'{name}-{k}')) for k,x in (('old',old),('new',new))]

def by_template(e, items, metric):
    "A soft metric by template"
    p = condition_probabilities(e.records, 'q', soft=True)
    d = directions(p, items)
    v = dict(bias=d[:,0]-d[:,1], unknown=p[np.arange(len(p)), [i.unknown for i in items]],
             right=p[np.arange(len(p)), [i.label for i in items]])[metric]
    half = 'disambig' if metric=='right' else 'ambig'
    at = [n for n,i in enumerate(items) if i.context_condition==half]
    return pd.Series(v[at], [items[n].template for n in at]).groupby(level=0).mean()

def paired(metric):
    a,b = (by_template(e, x, metric) for e,x in zip(asked, (old,new)))
    return pd.concat([a, b], axis=1, keys=['original','fresh']).dropna()

def line(d):
    e = cluster_bootstrap((d.original-d.fresh).to_numpy(), list(d.index), seed=seed)
    return dict(original=d.original.mean(), fresh=d.fresh.mean(), difference=e.value,
                low=e.low, high=e.high)

lines = {'context, nats a byte': text, 'soft bias score, ambiguous': paired('bias'),
         'p(unknown), ambiguous': paired('unknown'), 'p(right), disambiguated': paired('right')}
table = pd.DataFrame({k:line(d) for k,d in lines.items()}).T
table.round(4)


# %% [markdown]
# Differences are original less fresh, with 95 % intervals that draw templates. What this does
# not show: that a model has not seen BBQ. It may have seen it and remember nothing, as small
# models do, and the fresh questions stand in frames that the model may have seen as well. A
# difference would show memory; none shows only that memory of the very words plays no part.
#
# ## Claims

# %%
def outcome(k): return Estimate(*table.loc[k, ['difference','low','high']])

found = {'self_correction/fresh-as-likely': outcome('context, nats a byte'),
         'self_correction/fresh-as-biased': outcome('soft bias score, ambiguous')}
if lm.is_stub: print('An oracle answered, so no claim about models is recorded.')
else: record(scale if near else 'quick', found)
