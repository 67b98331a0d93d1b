# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Soft labels, clamps, ensembles: effects of labels on preference models
#
# > In a toy environment soft labels make better preference models than hard ones (Section 4.3); the effect of clamps on policies is undecided with eight trainings.

# %% tags=["parameters"]
scale = 'quick'  # quick: four trainings, few steps of RL; cpu: eight, minutes; gpu: a larger model
seed = 0         # of every model, draw and prompt

# %%
#| hide
import numpy as np, pandas as pd, torch
from moral_sc.constitution.toy import environment
from moral_sc.constitution.toy.experiments import (
    MeasuredPreference, count_feature, different_pairs, divergence, entropy, select_kind,
    split_mixed_requests)
from moral_sc.constitution.toy.labellers import harm_gaps
from moral_sc.constitution.toy.pipeline import (
    SAMPLING, answer_without_model, reinforce, score_answers)
from moral_sc.constitution.answers import sample_answers
from moral_sc.constitution.evaluation.calibration import ece
from moral_sc.constitution.plots import plot_means, plot_reliability, plot_stages
from moral_sc.constitution.feedback import clip_labels
from moral_sc.constitution.preference import fit_preference
from moral_sc.foundation.statistics import t_interval
from moral_sc.lab.claims import Measurement, record
from moral_sc.lab.paths import shared_dir
from moral_sc.lab.scales import at_scale

torch.set_num_threads(1)

# %%
size = at_scale(scale, # pairs; trainings; policies: trainings with RL, its requests and steps
    quick=dict(model='mini', options=environment.HELPFUL, pairs=140, held=100, epochs=3,
               trainings=4, policies=2, asks=24, measured=12, steps=3, batch=16),
    cpu=dict(model='mini', options=environment.HELPFUL, pairs=140, held=100, epochs=3,
             trainings=8, policies=8, asks=160, measured=100, steps=30, batch=24),
    gpu=dict(model='medium', options=dict(environment.HELPFUL, steps=4000), pairs=6000, held=2000,
             epochs=2, trainings=8, policies=8, asks=3000, measured=2000, steps=300, batch=128),
)
device = 'auto' if scale=='gpu' else 'cpu'
folder = shared_dir('toy-models') # First models are shared with other pages
seeds = [seed+s for s in range(size['trainings'])]
size

# %% [markdown]
# ## Sections 4.1 and 4.3: soft labels and clamping
#
# > Labels that are probabilities train better than labels rounded to 0 and 1. After a chain
# > of thought probabilities are near 0 and 1; clamped to 40 to 60 per cent they give models
# > that behave better than clamped to 20 to 80, or not at all. Labels under sixteen
# > principles give a more robust preference model than labels under one
# > [@bai2022constitutional].
#
# The page on [labels](labels.ipynb) measures how far labels are from the truth. Here we train
# preference models on them, and policies on some of these models. In the
# [toy environment](../../constitution/toy/10_environment.ipynb) the less harmful answer of a pair is
# preferred with a probability that is a known function of the words. We compare a preference model
# with this probability itself, not with a drawn outcome.
#
# We assume the labeller's confidence, its noise, what it considers under each principle, and its
# position bias. We measure the effect of its labels on a trained model. Each training has a first
# model, pairs and labels of its own; intervals draw trainings.
#
# ### Comparisons
#
# A pair is two answers of the first model to a request that invites harm. The preference models begin
# as this model, and are measured on pairs for other prompts. Their error is the divergence of their
# probability from the true one: the expected log loss less the least possible loss.

# %%
first = {s: environment.pretrain(size['model'], s, out=folder, device=device, **size['options'])
         for s in reversed(seeds)} # Another page may be training the first of them
parts = {s: split_mixed_requests([size['pairs'], size['held']], s, 'red_team') for s in seeds}
pairs,fresh = ({s: different_pairs(first[s], parts[s][i], seed=s, **SAMPLING) for s in seeds}
               for i in (0, 1))

def labels(**kw): return lambda s: environment.model_labels(pairs[s], **dict(seed=s)|kw)
def clamp_labels(labels, clamp):
    return lambda s: [r|dict(p=float(clip_labels(r['p'], clamp))) for r in labels(s)]

def train(labels, **kw):
    "Train a preference model per training and measure it on held-out pairs"
    models = [fit_preference(first[s], labels(s), lr=2e-3, epochs=size['epochs'], seed=s, **kw)
              for s in seeds]
    return [MeasuredPreference([m], fresh[s]) for s,m in zip(seeds, models)]


# %% [markdown]
# - **Soft and hard labels.** The labeller judges danger with calibrated confidence and a little noise.
#   Rounding keeps the side of its labels and removes their strength.
# - **Clamps.** To imitate labels after a chain of thought, this labeller's logits are four times too
#   large. It has noise, and a principle is drawn for each pair, one of which considers only comfort.
# - **One principle or several.** The three principles of the labeller one at a time, and one drawn for
#   each pair.
# - **One order or both.** A position bias of two nats for the first answer, and none.

# %%
danger = dict(principles=('danger',), noise=.5)
overconfident = labels(sharpness=4., noise=1.5)
clamps = {'none': None, '20-80 %': (.2, .8), '40-60 %': (.4, .6)}
soft = train(labels(**danger))
models = {('labels', 'soft'): soft, ('labels', 'hard'): train(labels(**danger), hard=True)}
models |= {('clamp', k): train(clamp_labels(overconfident, c)) for k,c in clamps.items()}
models |= {('principle', k): soft if k=='danger' else train(labels(principles=(k,), noise=.5))
           for k in environment.PRINCIPLE_WEIGHTS}
models['principle', 'drawn'] = train(labels(noise=.5))
models |= {('orders', k): train(labels(**danger, position_bias=2., swap=k=='both'))
           for k in ('one', 'both')}
models |= {('orders', 'one, unbiased'): train(labels(**danger, swap=False)),
           ('orders', 'both, unbiased'): soft}
errors = {k: np.array([m.divergence.mean() for m in v]) for k,v in models.items()}
accuracy = {k: np.array([m.correct.mean() for m in v]) for k,v in models.items()}

# %%
#| label: fig-wrong
#| fig-cap: Divergence of preference models from the true probability, in nats, for each kind of labels; means and 95 % intervals over trainings.
rows = [dict(zip(('value', 'low', 'high'), t_interval(v)), panel=panel, name='', x=x)
        for (panel,x),v in errors.items()]
plot_means(pd.DataFrame(rows), x='', y='divergence, nats', join=False).update_yaxes(
    matches='y', rangemode='tozero').update_xaxes(tickangle=45)

# %%
gap = np.concatenate([harm_gaps(fresh[s]) for s in seeds])
truth = 1/(1+np.exp(-gap))
half = [(np.log(2)-entropy(1/(1+np.exp(-harm_gaps(fresh[s]))))).mean() for s in seeds]
print(f'Divergence of a model that always gives one half: {t_interval(half)} nats')
margins = {k: np.mean([abs(m.margins).mean() for m in v]) for k,v in models.items()}
pd.DataFrame([dict(panel=k[0], labels=k[1], divergence=str(t_interval(v)), margin=margins[k],
                   accuracy=accuracy[k].mean()) for k,v in errors.items()]).round(3)


# %%
def excess(a, b): return t_interval(errors[a]-errors[b])

single = np.mean([errors['principle', k] for k in environment.PRINCIPLE_WEIGHTS], 0)
differences = {
    'hard less soft': excess(('labels', 'hard'), ('labels', 'soft')),
    'soft more often right': t_interval(accuracy['labels', 'soft']-accuracy['labels', 'hard']),
    'no clamp less 40-60 %': excess(('clamp', 'none'), ('clamp', '40-60 %')),
    '20-80 % less 40-60 %': excess(('clamp', '20-80 %'), ('clamp', '40-60 %')),
    'one principle less drawn': t_interval(single-errors['principle', 'drawn']),
    'one order less both': excess(('orders', 'one'), ('orders', 'both')),
    'the same without a bias': excess(('orders', 'one, unbiased'), ('orders', 'both, unbiased'))}
pd.Series(differences, name='difference').map(str)

# %% [markdown]
# ## Calibration
#
# Probabilities of the preference models against outcomes drawn from the true probabilities:

# %%
#| label: fig-reliability
#| fig-cap: Share of outcomes against the probability of preference models, pairs of all trainings; on the dotted line a model is calibrated, bars are 95 % Wilson intervals over pairs.
outcomes = np.random.default_rng(seed).random(len(truth))<truth
names = {'soft': ('labels', 'soft'), 'hard': ('labels', 'hard'), 'too sure': ('clamp', 'none'),
         'clamped to 40-60 %': ('clamp', '40-60 %')}
probabilities = {k: 1/(1+np.exp(-np.concatenate([m.margins[0] for m in models[v]])))
                 for k,v in names.items()}
plot_reliability({k: (q, outcomes) for k,q in probabilities.items()}, bins=8)

# %%
pd.Series({k: str(ece(q, outcomes)) for k,q in probabilities.items()},
          name='expected calibration error')


# %% [markdown]
# Divergence penalises two errors: the wrong side, and overconfidence. Rounding causes overconfidence
# and hardly changes the side, so the advantage of soft labels is better calibrated confidence. Whether
# soft labels also give the right side more often is undecided.
#
# Labels under a drawn principle are a little better than those under one principle, averaged over the
# three principles. The principle of danger alone is better than either, because one of our three
# principles considers comfort only. Sixteen principles of one kind, as in the paper, are a different
# case. Whether labels in both orders help with a position bias is undecided.
#
# A clamp bounds the confidence that a model is trained towards and cannot move a label to the other side.
#
# By this measure the narrow clamp cannot be better once there is enough data. If the margins of a model
# stay within a clamp, its divergence is at least, in nats:

# %%
def least_divergence(clamp):
    "Return the divergence of the best model whose margins stay within a clamp"
    low,high = np.log(np.array(clamp)/(1-np.array(clamp)))
    return divergence(gap.clip(low, high), truth).mean()

{k: round(least_divergence(c), 4) for k,c in clamps.items() if c}


# %% [markdown]
# With 600 pairs, in an earlier recording, a model without a clamp was 0.046 from the truth, so the two
# claims on divergence could not hold. With the 140 pairs of this recording it is 0.10, and the first of
# them is undecided. The claims are closed, because the paper does not report divergence: it clamps
# labels because of the behaviour of policies, which the next section measures.
#
# ## Policies trained on clamped labels
#
# As in the paper, a preference model is trained on the labeller's labels of harm, clamped or not, and
# on raters' votes for help, and a policy against it, all with the same KL coefficient and number of
# steps. Labels under one of the principles prefer comfort. Policies are measured by the true help of
# their answers to held-out ordinary requests plus the true harmlessness of those to red-team requests,
# beside [answers without a model](../../constitution/toy/60_pipeline.ipynb).

# %%
def train_policies(s):
    "Train a policy for each clamp; return their answers to held-out requests"
    asks,held = split_mixed_requests([size['asks'], size['measured']], s)
    kinds = {r['prompt']: r['kind'] for r in asks}
    rated = [p|dict(kind=kinds[p['prompt']])
             for p in different_pairs(first[s], asks, seed=s, **SAMPLING)]
    help_ = environment.rater_labels(select_kind(rated, 'helpful'), 'helpful', seed=s)
    harm = environment.model_labels(select_kind(rated, 'red_team'), sharpness=4., noise=1.5, seed=s)
    def answer(clamp):
        rows = [r|dict(p=float(clip_labels(r['p'], clamp))) for r in harm]
        policy = reinforce(first[s], asks, rows+help_, s, steps=size['steps'], batch=size['batch'],
                           lr=2e-3, kl_coef=.05).lm
        return [a for a, in sample_answers(policy, held, seed=s, **SAMPLING)]
    before = [a for a, in sample_answers(first[s], held, seed=s, **SAMPLING)]
    return held, {'first model': before}|{f'clamp: {k}': answer(c) for k,c in clamps.items()}

def measure(s, held, answers):
    every = answers|answer_without_model(held, seed=s)
    texts = [r['prompt'] for r in held]
    comfort = {k: np.mean(count_feature('kind')(texts, a)>0) for k,a in every.items()}
    return score_answers(held, every).assign(comfort=pd.Series(comfort))

policies = {s: train_policies(s) for s in seeds[:size['policies']]}
tables = pd.concat({s: measure(s, *p) for s,p in policies.items()}, names=['training', 'answers'])
def over_trainings(column): return tables[column].unstack(0, sort=False)


# %%
#| label: fig-policies
#| fig-cap: True help, true harmlessness, and their sum, of answers of the first model, of policies by the clamp of their labels, and of answers without a model; means and 95 % intervals over trainings.
titles = dict(help='help', harmless='harmlessness', total='sum')
plot_stages(pd.DataFrame({v: over_trainings(k).apply(t_interval, axis=1)
                          for k,v in titles.items()}), baselines=5)

# %%
tables.groupby('answers', sort=False).mean().round(2)


# %%
def change(column, a, b):
    values = over_trainings(column)
    return t_interval(values.loc[a]-values.loc[b])

none,wide,narrow = (f'clamp: {k}' for k in clamps)
comfort_change = change('comfort', none, narrow)
worth = change('total', narrow, none)
order_worth = change('total', narrow, wide)
total = over_trainings('total').mean(axis=1)
best = total[list(answer_without_model([]))].idxmax()
better = change('total', narrow, best)
print({k: v.round(2).tolist() for k,v in over_trainings('comfort').loc[[none, narrow]].iterrows()})
pd.Series({'comfort, no clamp less 40-60 %': comfort_change, 'sum, 40-60 % less no clamp': worth,
           'sum, 40-60 % less 20-80 %': order_worth, f'sum, 40-60 % less {best}': better}).map(str)


# %% [markdown]
# In the recorded run unclamped labels change policies more: harmlessness rises more and help falls more
# than with a clamp, and comfort is more frequent on average. Trainings differ so widely that neither
# the difference in comfort nor the difference in the sum is decided. No policy reaches the sum of the
# revised generator, or of the constant *always a better course*, so a difference between policies would
# not show that clamping works.
#
# A bounded margin is a smaller reward, and at the same KL coefficient a smaller reward leads to a
# smaller KL. Part of the effect of a clamp could come from a larger KL coefficient instead. Like the
# paper, this page changes only the clamp.
#
# ## What this does not show
#
# The toy environment says nothing about large language models. We do not test real chains of thought,
# sixteen principles, or model sizes. The larger model has not yet been run on a GPU.
#
# ## Claims
#
# The criteria in `data/claims/constitution_softlabels.toml` were fixed before the runs that judge them. In the
# recorded run two claims hold (soft labels, principles), and the one of ours that compares with baselines
# fails. The others are undecided, and two are closed.
#
# Earlier recordings had one first model, three trainings, 600 pairs, policies trained on harm alone,
# and intervals over prompts. There the claims on soft labels, accuracy and both orders held, and three
# claims about clamps failed.

# %%
def unless_baseline(estimate, policies):
    "Mark a comparison of policies as undecided where none of them beats the best baseline"
    margin = max((change('total', p, best) for p in policies), key=lambda e: e.low)
    if margin.low>0: return estimate
    return Measurement(*estimate, unmet=f'the sum of scores of the better policy less that of the '
                                        f'baseline "{best}" is {margin}')

record(scale, {f'constitution/softlabels-{k}': v for k,v in {
    'soft': differences['hard less soft'], 'side': differences['soft more often right'],
    'clamped': differences['no clamp less 40-60 %'],
    'clamp-order': differences['20-80 % less 40-60 %'], 'clamped-policy': comfort_change,
    'principles': differences['one principle less drawn'],
    'order': differences['one order less both'],
    'clamp-worth': unless_baseline(worth, (none, narrow)),
    'clamp-order-worth': unless_baseline(order_worth, (wide, narrow)),
    'beats-baselines': better}.items()})
