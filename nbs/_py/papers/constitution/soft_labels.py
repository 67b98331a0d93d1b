# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Soft labels: better than hard ones, but clamping does not help
#
# > Soft labels beat hard ones (Section 4.3); all three claims about clamps fail here.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds, too small to show anything; cpu: minutes; gpu: a larger model
seed = 0         # of every model, draw and prompt

# %%
#| hide
import numpy as np, pandas as pd, torch
from moral_sc.constitution.toy import environment
from moral_sc.constitution.toy.experiments import (
    MeasuredPreference, count_feature, different_pairs, divergence, entropy, pair_columns,
    split_mixed_requests, true_score)
from moral_sc.constitution.answers import sample_answers
from moral_sc.constitution.evaluation.calibration import ece
from moral_sc.constitution.plots import plot_means, plot_reliability, plot_runs
from moral_sc.constitution.feedback import clip_labels
from moral_sc.constitution.rl.policy import train_policy
from moral_sc.constitution.preference import fit_preference
from moral_sc.constitution.revision import STOPS
from moral_sc.foundation.runs import content_key
from moral_sc.foundation.statistics import cluster_bootstrap, paired_difference
from moral_sc.lab.claims import record
from moral_sc.lab.paths import work_dir
from moral_sc.lab.scales import at_scale

torch.set_num_threads(1)

# %%
size = at_scale(scale, # pairs; steps of RL; answers a step; trainings of each model and policy
    quick=dict(model='tiny', read=50, pairs=40, held=40, asks=40, epochs=2, steps=3, batch=16,
               trainings=1),
    cpu=dict(model='tiny', read=None, pairs=600, held=400, asks=300, epochs=4, steps=80,
             batch=48, trainings=3),
    gpu=dict(model='medium', read=None, pairs=6000, held=2000, asks=3000, epochs=2, steps=300,
             batch=128, trainings=5),
)
device = 'auto' if scale=='gpu' else 'cpu'
sampling = dict(max_new_tokens=32, stop=STOPS)
seeds = [seed+s for s in range(size['trainings'])]
folder = work_dir(f'soft-labels-{scale}-{seed}-{content_key(size=size)[:8]}')
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
# The labeller is an assumption: its confidence, its noise, what it considers under each principle,
# and its position bias. The effect of its labels on a trained model is measured.
#
# ### Comparisons
#
# A pair is two answers of the first model to a request that invites harm. The preference models begin
# as this model, and are measured on pairs for other prompts.

# %%
first = environment.pretrain(size['model'], seed, size['read'], folder, device)
pair_prompts, held, rl_prompts = split_mixed_requests(
    [size[k] for k in ('pairs', 'held', 'asks')], seed, 'red_team')

pairs = different_pairs(first, pair_prompts, seed=seed, **sampling)
fresh = different_pairs(first, held, seed=seed, **sampling)
prompts, a, b = pair_columns(fresh)
gap = environment.harmlessness(prompts, a)-environment.harmlessness(prompts, b)
truth = 1/(1+np.exp(-gap))
{k: fresh[0][k] for k in ('prompt', 'a', 'b')}, truth[0].round(2), len(pairs), len(fresh)


# %% [markdown]
# The error of a preference model is the divergence of its probability from the true one: its expected
# log loss less the least possible loss. Every model is trained from several seeds, each with newly
# drawn labels; the figures show the mean.

# %%
def train(labels, **kw):
    "Train a preference model per seed and measure it on the held-out pairs"
    models = []
    for s in seeds:
        rows = labels(s)
        out = folder/f'pm-{content_key(rows=rows, seed=s, **kw)[:12]}'
        models.append(fit_preference(first, rows, lr=1e-3, epochs=size['epochs'], seed=s, out=out,
                                     **kw))
    return MeasuredPreference(models, fresh)

def labels(**kw): return lambda s: environment.model_labels(pairs, **dict(seed=s)|kw)
def clamp_labels(labels, clamp):
    return lambda s: [r|dict(p=float(clip_labels(r['p'], clamp))) for r in labels(s)]
baseline = cluster_bootstrap(np.log(2)-entropy(truth), prompts)
f'Divergence of a model that always gives one half: {baseline} nats'

# %% [markdown]
# ### Soft and hard labels
#
# The labeller judges danger with calibrated confidence and a little noise. Rounding keeps the side of
# its labels and removes their strength.

# %%
calibrated = labels(principles=('danger',), noise=.5)
models = {('labels', 'soft'): train(calibrated), ('labels', 'hard'): train(calibrated, hard=True)}

# %% [markdown]
# ### Clamps
#
# To imitate labels after a chain of thought, this labeller's logits are four times too large. It has
# noise, and a principle is drawn for each pair, one of which considers only comfort.

# %%
overconfident = labels(sharpness=4., noise=1.5)
clamps = {'none': None, '20-80 %': (.2, .8), '40-60 %': (.4, .6)}
models |= {('clamp', k): train(clamp_labels(overconfident, c)) for k,c in clamps.items()}
p = np.array([r['p'] for r in overconfident(seed)])
pd.Series(p).describe().loc[['min', '25%', '50%', '75%', 'max']].round(3).to_dict()

# %% [markdown]
# ### One principle or several
#
# The three principles of the labeller one at a time, and one drawn for each pair.

# %%
single = {k: train(labels(principles=(k,), noise=.5)) for k in environment.PRINCIPLE_WEIGHTS}
models |= {('principle', k): m for k,m in single.items()}
models['principle', 'drawn'] = train(labels(noise=.5))

# %% [markdown]
# ### One order or both
#
# A position bias of two nats for the first answer, and none.

# %%
danger = dict(principles=('danger',), noise=.5)
models |= {('orders', f'{k}{name}'): train(labels(**danger, position_bias=bias, swap=k=='both'))
           for bias,name in ((2., ''), (0., ', unbiased')) for k in ('one', 'both')}
table = pd.DataFrame([m.row(*k) for k,m in models.items()])

# %%
#| label: fig-wrong
#| fig-cap: Divergence of preference models from the true probability, in nats, for each kind of labels; means over trainings, bars are 95 % intervals over prompts.
ticks = table.assign(x=table.x.str.replace(', ', ',<br>').str.replace(' %', '<br>%'))
plot_means(ticks, x='', y='divergence, nats', join=False).update_yaxes(
    matches='y', rangemode='tozero').update_xaxes(tickangle=0)

# %%
print(f'True differences are {abs(gap).mean():.3f} nats on average')
table.set_index(['panel', 'x']).drop(columns='name').round(3)


# %%
def excess(a, b):
    "Return the divergence of model `a` less that of model `b`, paired by comparison"
    return paired_difference(models[a].divergence, models[b].divergence, prompts)

decided_prompts = [p for p,g in zip(prompts, gap) if g!=0]
hard_excess = excess(('labels', 'hard'), ('labels', 'soft'))
soft_accuracy = paired_difference(models['labels', 'soft'].correct,
                                  models['labels', 'hard'].correct, decided_prompts)
unclamped_excess = excess(('clamp', 'none'), ('clamp', '40-60 %'))
wide_excess = excess(('clamp', '20-80 %'), ('clamp', '40-60 %'))
single_mean = np.mean([m.divergence for m in single.values()], 0)
single_excess = paired_difference(single_mean, models['principle', 'drawn'].divergence, prompts)
one_order_excess = excess(('orders', 'one'), ('orders', 'both'))
unbiased_excess = excess(('orders', 'one, unbiased'), ('orders', 'both, unbiased'))
pd.Series({'hard less soft': hard_excess, 'soft more often right': soft_accuracy,
           'no clamp less 40-60 %': unclamped_excess, '20-80 % less 40-60 %': wide_excess,
           'one principle less drawn': single_excess, 'one order less both': one_order_excess,
           'the same without a bias': unbiased_excess}, name='difference').map(str)

# %% [markdown]
# ## Calibration
#
# Probabilities of the preference models against outcomes drawn from the true probabilities:

# %%
#| label: fig-reliability
#| fig-cap: Share of outcomes against the probability of preference models, first training of each; on the dotted line a model is calibrated, bars are 95 % Wilson intervals.
outcomes = np.random.default_rng(seed).random(len(truth))<truth
names = {'soft': ('labels', 'soft'), 'hard': ('labels', 'hard'), 'too sure': ('clamp', 'none'),
         'clamped to 40-60 %': ('clamp', '40-60 %')}
probabilities = {k: 1/(1+np.exp(-models[m].margins[0])) for k,m in names.items()}
plot_reliability({k: (q, outcomes) for k,q in probabilities.items()}, bins=8)

# %%
pd.Series({k: str(ece(q, outcomes)) for k,q in probabilities.items()},
          name='expected calibration error')


# %% [markdown]
# Divergence penalises two errors: the wrong side, and overconfidence.
#
# Rounding causes overconfidence. It changes the side of the model in only two pairs of a hundred. The
# advantage of soft labels is therefore mainly confidence of the right size. The overconfidence
# under hard labels differs between trainings, as the table shows, but is by far the largest in each.
#
# A clamp cannot move a label to the other side; it bounds the confidence that the model is trained
# towards. A labeller that is four times too sure would need a clamp if it always judged by the same
# principle. With a principle drawn for each pair its confident labels contradict each other. A
# preference model learns their mean, and its margins are below the true differences without any
# clamp. Clamps reduce the margins further, and mostly noise remains.
#
# By this measure the narrow clamp could hardly have won. If the margins of a model stay within a
# clamp, its divergence is at least, in nats:

# %%
def least_divergence(clamp):
    "Return the divergence of the best model whose margins stay within a clamp"
    low,high = np.log(np.array(clamp)/(1-np.array(clamp)))
    return divergence(gap.clip(low, high), truth).mean()

{k: round(least_divergence(c), 4) for k,c in clamps.items() if c}


# %% [markdown]
# The two failed claims on divergence therefore say little about the paper's purpose of clamping,
# which is the behaviour of policies. The bound does not explain that the side suffers, too (column
# `accuracy`). Calibration does not separate the models either, except for the hard labels: an
# uninformative model can still be calibrated.
#
# Labels under a drawn principle are about as good as those under one, averaged over which one it is,
# and the three trainings do not agree on the sign. One of our three principles considers comfort
# only, so it moves the mean away from the truth, and the other two are better alone. Sixteen
# principles of one kind, as in the paper, are a different case.
#
# With a position bias, labels in both orders reduce the divergence as expected. Part of the reduction
# has another cause: noise is drawn for each order, and averaging two orders reduces it. The
# difference without a bias shows the size of this part.
#
# ## Policies trained on clamped labels
#
# The paper clamps labels because of the behaviour of the trained policies. We train policies against
# the three preference models of overconfident labels, with the same small KL coefficient. A part of
# the labels prefers comfort. The larger the score of comfort in a preference model, the sooner a
# policy exploits it.

# %%
def has_comfort(prompts, answers): return (count_feature('kind')(prompts, answers)>0)*1.
watch = dict(gold=true_score, kind=has_comfort, danger=count_feature('danger'))
training = dict(steps=size['steps'], batch=size['batch'], lr=1e-3, kl_coef=.05,
                every=size['steps'], **sampling)
runs = {(k, s): train_policy(first, rl_prompts, pm, watch=watch, seed=s,
                             out=folder/f'policy-{i}-{s}', **training)
        for i,k in enumerate(clamps) for s,pm in zip(seeds, models['clamp', k].models)}

# %%
#| label: fig-policies
#| fig-cap: True score (helpfulness plus harmlessness) of answers during RL against the square root of the KL from the first policy, first training for each clamp; points are steps, lines running means.
plot_runs({f'clamp: {k}': runs[k, seed].history for k in clamps}, 'gold', title='truth')

# %%
pd.DataFrame({k: runs[k, seed].history[['score', 'gold', 'kind', 'danger', 'kl3', 'length']].tail(
    max(1, size['steps']//8)).mean() for k in clamps}).T.round(2)

# %%
texts = [r['text'] for r in held]
def final_scores(clamp, score):
    "Score the last policies' answers to held-out prompts, [training, prompt]"
    answers = [sample_answers(runs[clamp, s].lm, held, seed=seed, **sampling) for s in seeds]
    return np.array([score(texts, [a for a, in rows]) for rows in answers])

last = {k: {name: final_scores(k, score) for name,score in watch.items()} for k in clamps}
def mean(clamp, name): return last[clamp][name].mean(0)
comfort_change = paired_difference(mean('none', 'kind'), mean('40-60 %', 'kind'), texts)
gold_change = paired_difference(mean('40-60 %', 'gold'), mean('none', 'gold'), texts)
pd.DataFrame({k: {w: v.mean() for w,v in d.items()} for k,d in last.items()}).T.round(2), \
    dict(comfort=str(comfort_change), worth=str(gold_change)), \
    {k: last[k]['kind'].mean(1).round(3).tolist() for k in clamps}

# %% [markdown]
# Below the table, `comfort` is the share of answers with a phrase of comfort without a clamp less
# that with the narrow clamp. `worth` is the true score with the narrow clamp less that without a
# clamp. The lists are the shares of comfort for each training. They differ more between trainings
# than between clamps. The claim about comfort fails with three trainings each; three other trainings
# could give another result.
#
# A bounded margin is a smaller reward, and at the same KL coefficient a smaller reward leads to a
# smaller KL. Part of the effect of a clamp could come from a larger KL coefficient instead. Like the
# paper, this page changes only the clamp.
#
# ## What this does not show
#
# We do not test real chains of thought, sixteen principles, or model sizes. Intervals resample prompts
# and not trainings. The larger model has not yet been run on a GPU.
#
# ## Claims
#
# The criteria in `data/claims/constitution_softlabels.toml` were fixed before any of these models was
# trained. They were first judged on one training of each preference model and two of each policy.
# Then the second claim was undecided, the one about principles failed, and the one about comfort held,
# barely. Now the mean of several trainings is judged. Three claims hold (soft labels, their accuracy,
# both orders), the three about clamps fail, and the one about principles is undecided.

# %%
record(scale, {f'constitution/softlabels-{k}': v for k,v in {
    'soft': hard_excess, 'side': soft_accuracy, 'clamped': unclamped_excess,
    'clamp-order': wide_excess, 'clamped-policy': comfort_change, 'principles': single_excess,
    'order': one_order_excess}.items()})
