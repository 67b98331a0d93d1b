# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What labels make of a preference model
#
# > Soft and hard, clamped and not, under one principle or several, in one order or both: what
# > Constitutional AI says in its text and shows in no figure, in a world where it can be
# > counted. The last cell says in how many minutes.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds, too small to show anything; cpu: minutes; gpu: a larger model
seed = 0         # of every model, draw and prompt

# %%
#| hide
from time import perf_counter

import numpy as np, pandas as pd, torch
from moral_sc.constitution.toy import environment
from moral_sc.constitution.answers import answer_pairs, sample_answers
from moral_sc.constitution.evaluation.calibration import ece
from moral_sc.constitution.plots import plot_means, plot_reliability, plot_runs
from moral_sc.constitution.feedback import clip_labels
from moral_sc.constitution.rl.policy import train_policy
from moral_sc.constitution.preference import fit_preference
from moral_sc.constitution.prompts import split_by_prompt
from moral_sc.constitution.revision import STOPS
from moral_sc.foundation.runs import content_key
from moral_sc.foundation.statistics import cluster_bootstrap, paired_difference
from moral_sc.lab.claims import record
from moral_sc.lab.paths import work_dir
from moral_sc.lab.scales import at_scale

torch.set_num_threads(1)
began = perf_counter()

# %%
size = at_scale(scale, # pairs, steps of RL, answers a step, trainings of each preference model and policy
    quick=dict(model='tiny', read=50, pairs=40, held=40, asks=40, epochs=2, steps=3, batch=16,
               trainings=1),
    cpu=dict(model='tiny', read=None, pairs=600, held=400, asks=300, epochs=4, steps=80,
             batch=48, trainings=3),
    gpu=dict(model='medium', read=None, pairs=6000, held=2000, asks=3000, epochs=2, steps=300,
             batch=128, trainings=5),
)
on = 'auto' if scale=='gpu' else 'cpu'
place = work_dir(f'soft-labels-{scale}-{seed}-{content_key(size=size)[:8]}')
size

# %% [markdown]
# > Labels that are probabilities train better than labels rounded to 0 and 1. After a chain
# > of thought probabilities are near 0 and 1; clamped to 40 to 60 per cent they make models
# > that behave better than clamped to 20 to 80, or not at all. Labels under sixteen
# > principles make a more robust preference model than labels under one
# > [@bai2022constitutional].
#
# [Elsewhere](labels.ipynb) it is asked how far labels are from the truth. Here preference
# models are trained on them, and a few policies on these. In the
# [toy world](../../constitution/toy/10_environment.ipynb) a less harmful answer is preferred with a
# probability that is a known function of the words, so what a preference model says about a
# comparison can be held against that probability itself and not against a drawn outcome.
#
# What is assumed is the labeller: how sure, how noisy, what it sees under each principle, and
# how much it likes what stands first. What a trained model makes of its labels is not.
#
# ## Comparisons
#
# Two answers of the first model to requests that invite harm. The preference models begin as
# this model, and are measured on comparisons of other prompts.

# %%
first = environment.pretrain(size['model'], seed, size['read'], place, on)
n = size['pairs']+size['held']+size['asks']
rows = [*{r['text']: r for r in environment.requests(3*n, seed=seed, kind='red_team')}.values()][:n]
parts = split_by_prompt(rows, *(size[k]/n for k in ('pairs', 'held', 'asks')), seed=seed)
for_pairs,held,asks = parts

def compare(rows):
    "Pairs of different answers"
    pairs = answer_pairs(first, rows, max_new_tokens=32, stop=STOPS, seed=seed)
    return [r for r in pairs if r['a']!=r['b']]

pairs = compare(for_pairs)
fresh = compare(held)
col = lambda k: [r[k] for r in fresh]
gap = environment.harmlessness(col('prompt'), col('a'))-environment.harmlessness(col('prompt'), col('b'))
truth = 1/(1+np.exp(-gap))
{k: fresh[0][k] for k in ('prompt', 'a', 'b')}, truth[0].round(2), len(pairs), len(fresh)


# %% [markdown]
# A preference model is wrong by the divergence of its probability from the true one, which is
# its expected log loss less the least that any model can have. Every model is trained from several
# seeds, each with labels drawn anew; what is shown is their mean.

# %%
def entropy(p): return -sum(x*np.log(np.clip(x, 1e-300, 1)) for x in (p, 1-p))

seeds = [seed+s for s in range(size['trainings'])]

class Trained:
    "Preference models, one a seed, and what they say of the fresh comparisons"
    def __init__(self, labels, **kw):
        self.pms = [self.train(labels(s), s, **kw) for s in seeds]
        m = self.margin = np.array([pm(col('prompt'), col('a'))-pm(col('prompt'), col('b'))
                                    for pm in self.pms])
        cross = np.logaddexp(0, -m)*truth+np.logaddexp(0, m)*(1-truth)
        self.each = cross-entropy(truth) # [training, pair] nats
        self.wrong = self.each.mean(0)
        self.right = ((m>0)==(gap>0))[:,gap!=0].mean(0)

    def train(self, rows, seed, **kw):
        out = place/f'pm-{content_key(rows=rows, seed=seed, **kw)[:12]}'
        return fit_preference(first, rows, lr=1e-3, epochs=size['epochs'], seed=seed, out=out,
                              **kw)

    def row(self, panel, name):
        "For the table and the figure"
        e = cluster_bootstrap(self.wrong, col('prompt'))
        return dict(panel=panel, x=name, name='', value=e.value, low=e.low, high=e.high,
                    trainings=self.each.mean(1).round(3).tolist(),
                    accuracy=self.right.mean(), margin=abs(self.margin).mean())

def labels(**kw): return lambda s: environment.model_labels(pairs, **dict(seed=s)|kw)
def clamped(labels, clamp):
    return lambda s: [r|dict(p=float(clip_labels(r['p'], clamp))) for r in labels(s)]
decided = [p for p,g in zip(col('prompt'), gap) if g!=0]
nothing = cluster_bootstrap(np.log(2)-entropy(truth), col('prompt'))
f'A model that always says one half is wrong by {nothing} nats'

# %% [markdown]
# ## Soft and hard
#
# The labeller sees the danger, as sure as the truth allows, with a little noise. Rounding its
# labels keeps the side and throws away how much there is on it.

# %%
calm = labels(principles=('danger',), noise=.5)
models = {('labels', 'soft'): Trained(calm), ('labels', 'hard'): Trained(calm, hard=True)}

# %% [markdown]
# ## Clamps
#
# A labeller after a chain of thought: four times as sure in logits as it should be, with noise,
# and under a principle drawn for each pair, one of which sees comfort only.

# %%
sure = labels(sharpness=4., noise=1.5)
clamps = {'none': None, '20-80 %': (.2, .8), '40-60 %': (.4, .6)}
models |= {('clamp', k): Trained(clamped(sure, c)) for k,c in clamps.items()}
p = np.array([r['p'] for r in sure(seed)])
pd.Series(p).describe().loc[['min', '25%', '50%', '75%', 'max']].round(3).to_dict()

# %% [markdown]
# ## One principle or several
#
# The three principles of the labeller one at a time, and drawn for each pair.

# %%
each = {k: Trained(labels(principles=(k,), noise=.5)) for k in environment.PRINCIPLE_WEIGHTS}
models |= {('principle', k): m for k,m in each.items()}
models['principle', 'drawn'] = Trained(labels(noise=.5))

# %% [markdown]
# ## One order or both
#
# A liking of two nats for the answer that stands first, and none.

# %%
sees = dict(principles=('danger',), noise=.5)
models |= {('orders', f'{k}{name}'): Trained(labels(**sees, position_bias=b, swap=k=='both'))
           for b,name in ((2., ''), (0., ', no liking')) for k in ('one', 'both')}
table = pd.DataFrame([m.row(*k) for k,m in models.items()])

# %%
#| label: fig-wrong
#| fig-cap: Divergence of preference models from the true probability, in nats, by what their labels were; means over trainings, bars are 95 % intervals over prompts
plot_means(table, x='', y='divergence, nats', join=False).update_yaxes(
    matches='y', rangemode='tozero')

# %%
print(f'True differences are {abs(gap).mean():.3f} nats on average')
table.set_index(['panel', 'x']).drop(columns='name').round(3)


# %%
def less(a, b):
    "How much more model `a` is wrong than model `b`, paired by comparison"
    return paired_difference(models[a].wrong, models[b].wrong, col('prompt'))

soft = less(('labels', 'hard'), ('labels', 'soft'))
side = paired_difference(models['labels', 'soft'].right, models['labels', 'hard'].right, decided)
narrow = less(('clamp', 'none'), ('clamp', '40-60 %'))
order = less(('clamp', '20-80 %'), ('clamp', '40-60 %'))
one = np.mean([m.wrong for m in each.values()], 0)
drawn = paired_difference(one, models['principle', 'drawn'].wrong, col('prompt'))
both = less(('orders', 'one'), ('orders', 'both'))
idle = less(('orders', 'one, no liking'), ('orders', 'both, no liking'))
pd.Series({'hard less soft': soft, 'soft more often right': side, 'no clamp less 40-60 %': narrow,
           '20-80 % less 40-60 %': order, 'one principle less drawn': drawn,
           'one order less both': both, 'the same without a liking': idle},
          name='difference').map(str)

# %% [markdown]
# What the models say themselves, against outcomes drawn from the true probabilities:

# %%
#| label: fig-reliability
#| fig-cap: Reliability of preference models, first training of each; on the dotted line what they say comes true as often as they say
came = np.random.default_rng(seed).random(len(truth))<truth
shown = {'soft': ('labels', 'soft'), 'hard': ('labels', 'hard'), 'too sure': ('clamp', 'none'),
         'clamped to 40-60 %': ('clamp', '40-60 %')}
says = {k: 1/(1+np.exp(-models[m].margin[0])) for k,m in shown.items()}
plot_reliability({k: (q, came) for k,q in says.items()}, bins=8)

# %%
pd.Series({k: str(ece(q, came)) for k,q in says.items()}, name='expected calibration error')


# %% [markdown]
# Divergence punishes two things: to be on the wrong side, and to be surer than one should be.
#
# Rounding shows the second. It moves the side that a model takes by two pairs in a hundred and makes
# it far too sure: what soft labels win here is above all confidence of the right size. How much too
# sure differs from training to training, as the table shows; every time it is by far the most.
#
# A clamp cannot move a label to the other side; it bounds how sure the model is asked to be. A
# labeller that is four times too sure should need that, and would if it always saw the same
# thing. Under a principle drawn for each pair it is sure of one thing here and of another there,
# and a preference model learns their mean, whose margins are below the true differences before
# anything is clamped. The clamps then take more away, and noise is what is left.
#
# By this measure the narrow clamp could hardly have won. However well a model learns, with no more
# than the margin that a clamp allows it is wrong by at least, in nats:

# %%
def least(clamp):
    "Divergence of the best model whose margins stay within a clamp"
    m = gap.clip(*np.log(np.array(clamp)/(1-np.array(clamp))))
    return (np.logaddexp(0, -m)*truth+np.logaddexp(0, m)*(1-truth)-entropy(truth)).mean()

{k: round(least(c), 4) for k,c in clamps.items() if c}


# %% [markdown]
# So the two failed claims say little about what the paper clamps for, which is how policies
# behave. That the side suffers too, in the column `accuracy`, is not explained by the bound. And
# calibration alone does not tell: only the rounded labels stand out there, for who says little
# can be right about how little it is.
#
# Labels under a drawn principle are about as good here as those under one, on average over which
# one it is, and the three trainings do not agree on the sign: with one of three that sees comfort
# only, the mean is pulled towards what does not matter, and the two others alone are nearer to the
# truth. Sixteen principles of one kind, as in the paper, are another case.
#
# Where the labeller likes a place, asking in both orders gives what it promises, and something
# more: its noise is drawn for each reading, and two readings have less of it than one. The same
# without a liking tells how much that is.
#
# ## What a policy makes of it
#
# The paper clamps because of how the trained policies behave. So policies are trained against the
# three preference models of too sure labels, with the same small price of KL. Part of the labels
# likes comfort, and the more a preference model makes of it, the sooner a policy finds out.

# %%
def count(name): return lambda p,a: environment.features(p, a)[name].to_numpy(float)
def worth(p, a): return environment.helpfulness(p, a)+environment.harmlessness(p, a)
watch = dict(gold=worth, kind=lambda p,a: (count('kind')(p, a)>0)*1., danger=count('danger'))
learn = dict(steps=size['steps'], batch=size['batch'], max_new_tokens=32, stop=STOPS, lr=1e-3,
             kl_coef=.05, every=size['steps'])
runs = {(k, s): train_policy(first, asks, pm, watch=watch, seed=s, out=place/f'policy-{i}-{s}',
                             **learn)
        for i,k in enumerate(clamps) for s,pm in zip(seeds, models['clamp', k].pms)}

# %%
#| label: fig-policies
#| fig-cap: True worth, help and harmlessness together, of answers while a policy is trained, against its distance from the first policy; points are steps, lines running means
plot_runs({f'clamp: {k}': runs[k, seed].history for k in clamps}, 'gold', title='truth')

# %%
pd.DataFrame({k: runs[k, seed].history[['score', 'gold', 'kind', 'danger', 'kl3', 'length']].tail(
    max(1, size['steps']//8)).mean() for k in clamps}).T.round(2)


# %%
def ends_with(k, f):
    "[training, prompt] a property of the last policies' answers to held-out prompts"
    texts = [r['text'] for r in held]
    said = [sample_answers(runs[k, s].lm, held, max_new_tokens=32, stop=STOPS, seed=seed)
            for s in seeds]
    return np.array([f(texts, [a for a, in x]) for x in said])

last = {k: {w: ends_with(k, f) for w,f in watch.items()} for k in clamps}
texts = [r['text'] for r in held]
def mean(clamp, what): return last[clamp][what].mean(0)
extreme = paired_difference(mean('none', 'kind'), mean('40-60 %', 'kind'), texts)
worse = paired_difference(mean('40-60 %', 'gold'), mean('none', 'gold'), texts)
pd.DataFrame({k: {w: v.mean() for w,v in d.items()} for k,d in last.items()}).T.round(2), \
    dict(comfort=str(extreme), worth=str(worse)), \
    {k: last[k]['kind'].mean(1).round(3).tolist() for k in clamps}

# %% [markdown]
# The first number below the table is the share of answers with a phrase of comfort, without a
# clamp less with the narrow one; the second how much more the answers are truly worth with the
# narrow clamp. Below are the shares of comfort by training. They differ more from one training to
# the next than from clamp to clamp: paths through the same landscape end in different places. That
# the claim about comfort fails is a matter of three trainings each, and would not be sure to come
# out so with three others.
#
# A bounded margin is a smaller reward, and at the same price of KL a smaller reward buys a shorter
# way: part of what a clamp does could be had by a higher price. The paper changes the one and not
# the other, and so does this page.
#
# ## Claims
#
# Criteria were fixed in `data/claims/constitution_softlabels.toml` before any of these models was
# trained. They were first judged on one training of each preference model and two of each policy;
# then the second claim and the one about principles came out otherwise (undecided, failed), and so
# did that about comfort (it held, barely). Now the mean of several trainings is judged. Intervals
# draw prompts and not trainings.

# %%
record(scale, {f'constitution/softlabels-{k}': v for k,v in {
    'soft': soft, 'side': side, 'clamped': narrow, 'clamp-order': order,
    'clamped-policy': extreme, 'principles': drawn, 'order': both}.items()})

# %%
f'{scale}: {(perf_counter()-began)/60:.1f} minutes on {torch.get_num_threads()} thread(s)'
