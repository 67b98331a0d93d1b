# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # BBQ contamination: fresh questions score like the originals at 135M
#
# > SmolLM2-135M scores original BBQ questions (Figure 1, left) and fresh ones from the same templates alike, within our bounds.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds; cpu: 40 scenes, original and fresh, minutes; gpu: 2000 scenes
seed = 0         # sample of scenes, and the draws behind the intervals
models = ()      # --model NAME: aliases, folders or hub ids; default: those of the scale

# %%
#| hide
import numpy as np, pandas as pd
import plotly.graph_objects as go
from dataclasses import replace
from moral_sc.bias import bbq, evaluate
from moral_sc.bias.bbq.scoring import directions
from moral_sc.bias.bbq.novel_names import generate_items, novel_scenes, templates_available
from moral_sc.bias.bbq.items import stratified
from moral_sc.bias.bbq.metrics import condition_probabilities
from moral_sc.bias.evaluation import load_models, unmet_setting
from moral_sc.foundation.figures import COLOURS
from moral_sc.foundation.statistics import Estimate, cluster_bootstrap
from moral_sc.lab.claims import as_measurement, record
from moral_sc.lab.paths import work_dir
from moral_sc.lab.scales import at_scale
from moral_sc.language.stub_models import letter_prior_model
from moral_sc.language.scoring import option_logprobs

# %% [markdown]
# ## BBQ and training data
#
# > The bias of a model is its score on the 58,492 published questions of BBQ [@ganguli2023].
#
# BBQ was published in 2021, and text on the web ends up in training data. If a model has memorised
# the questions, its score does not predict its answers to other questions, and a lower score of a
# later model may be memory and not fairness. The models of the paper were trained too early for
# this; models that can be loaded today were not.
#
# [Filling the templates again](../../bias/bbq/40_novel_names.ipynb) gives questions that differ from
# BBQ's in the people and in words that do not matter. A model that has memorised BBQ assigns higher
# probability to the original text and answers it differently. For any other model, both are samples
# of the same distribution. The comparison covers only templates that can give a new scene, and most
# of those are of one category: most templates of Nationality name two of seventy nationalities, but
# most of Age list four words, and BBQ has every pair of them already.

# %%
size = at_scale(scale, quick=(4,1), cpu=(40,3), gpu=(2000,6)) # scenes on either side, option orders
MODELS = dict(quick=(), cpu=('smollm2-135m-instruct',), gpu=('smollm2-135m-instruct',))
lms = load_models(models, MODELS[scale], lambda: letter_prior_model(dict(a=.05, b=.15, c=.8)))
lm = next(iter(lms.values())) # The page is about the first model
has_templates = bool(bbq.reachable()) and templates_available()
ours = bbq.load(source='ours')

def original_and_fresh(n):
    "Return equally many original and new questions of the same templates"
    if not has_templates: # Without BBQ, two halves of our own set show the procedure
        scenes = {} # template: {scene: its questions}
        for i in ours: scenes.setdefault(i.template, {}).setdefault(i.quad, []).append(i)
        pairs = [[*quads.values()][:2] for quads in scenes.values() if len(quads)>1][:n]
        return [[i for pair in pairs for i in pair[k]] for k in (0,1)]
    real = bbq.load()
    generated = novel_scenes(generate_items(bbq.reachable(), seed+1), real)
    templates = {i.template for i in generated}
    return [stratified([i for i in x if i.template in templates], 4*n, seed)
            for x in (real, generated)]

original,fresh = original_and_fresh(size[0])
fresh = [replace(i, id='fresh-'+i.id, quad='fresh-'+i.quad) for i in fresh]
counts = [dict(questions=len(x), scenes=len({i.quad for i in x}),
               templates=len({i.template for i in x})) for x in (original,fresh)]
pd.DataFrame(counts, ['original','fresh'])


# %% [markdown]
# ## Likelihood of the text
#
# Memorised text has a higher likelihood. The table has the log-probability of the ambiguous
# context in nats per byte, the mean over a template's scenes.

# %%
def context_logprob(items):
    "Return the log-probability per byte of each context, one per scene"
    scenes = [i for i in items if (i.context_condition,i.polarity)==('ambig','neg')]
    lp = option_logprobs(lm, ['\n']*len(scenes), [[i.context] for i in scenes])[:,0]
    n_bytes = np.array([len(i.context.encode()) for i in scenes])
    return pd.Series(lp/n_bytes, [i.template for i in scenes]).groupby(level=0).mean()

text = pd.concat([context_logprob(original), context_logprob(fresh)], axis=1,
                 keys=['original','fresh']).dropna()
text.describe().loc[['count','mean','std']].round(3)

# %%
#| label: fig-text
#| fig-cap: Log-probability of the ambiguous context in nats per byte, one point per template; on the line the fresh text is as likely as the original.
lo = text.min().min()
hi = text.max().max()
fig = go.Figure([
    go.Scatter(x=[lo,hi], y=[lo,hi], mode='lines', line=dict(color='#999', width=1),
               showlegend=False),
    go.Scatter(x=text.original, y=text.fresh, mode='markers', name='templates',
               marker=dict(color=COLOURS['q'], size=8), showlegend=False)])
fig.update_layout(template='moral_sc', width=640, height=380)
fig.update_xaxes(title='BBQ, nats per byte')
fig.update_yaxes(title='Fresh, nats per byte')
fig

# %% [markdown]
# ## Bias score and accuracy
#
# A model that has memorised the answers would have a score nearer to zero on the original questions.

# %%
name = f'fresh-{scale}-{seed}-{lm.name}-{len(original)}-{has_templates}'
evaluations = [evaluate(lm, items=x, conditions=['q'], orders=size[1], seed=seed,
                        out=work_dir(f'{name}-{k}')) for k,x in (('old',original),('new',fresh))]

def by_template(e, items, metric):
    "Return a soft metric by template"
    p = condition_probabilities(e.records, 'q', soft=True)
    d = directions(p, items)
    v = dict(bias=d[:,0]-d[:,1], unknown=p[np.arange(len(p)), [i.unknown for i in items]],
             right=p[np.arange(len(p)), [i.label for i in items]])[metric]
    context = 'disambig' if metric=='right' else 'ambig'
    rows = [n for n,i in enumerate(items) if i.context_condition==context]
    return pd.Series(v[rows], [items[n].template for n in rows]).groupby(level=0).mean()

def template_pairs(metric):
    a,b = (by_template(e, x, metric) for e,x in zip(evaluations, (original,fresh)))
    return pd.concat([a, b], axis=1, keys=['original','fresh']).dropna()

def difference(d):
    e = cluster_bootstrap((d.original-d.fresh).to_numpy(), list(d.index), seed=seed)
    return dict(original=d.original.mean(), fresh=d.fresh.mean(), difference=e.value,
                low=e.low, high=e.high)

TEXT = 'context, nats per byte'
BIAS = 'soft bias score, ambiguous'
pairs = {TEXT: text, BIAS: template_pairs('bias'),
         'p(unknown), ambiguous': template_pairs('unknown'),
         'p(right), disambiguated': template_pairs('right')}
table = pd.DataFrame({k:difference(d) for k,d in pairs.items()}).T
table.round(4)


# %% [markdown]
# Differences are original less fresh, with 95 % intervals that draw templates. All four intervals
# include zero.
#
# ## What this does not show
#
# This page does not show that the model has not seen BBQ. It may have been trained on BBQ without
# memorising it, as is common for small models, and the fresh questions use templates that it may have
# been trained on as well. The absence of a difference shows only that the exact words were not
# memorised.
#
# ## Claims

# %%
def estimate(row): return Estimate(*table.loc[row, ['difference','low','high']])

outcomes = {'self_correction/fresh-as-likely': estimate(TEXT),
            'self_correction/fresh-as-biased': estimate(BIAS)}
unmet = unmet_setting(lms, questions=has_templates)
record(scale, {k: as_measurement(v)._replace(unmet=unmet) for k,v in outcomes.items()},
       parameters=lm.parameters)
