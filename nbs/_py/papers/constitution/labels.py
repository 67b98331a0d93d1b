# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Label calibration: averaging both orders reduces position bias
#
# > In a toy environment, averaging labels over both answer orders brings them closer to the known probability (see also Figure 9).

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds; cpu: minutes; gpu: all comparisons and longer thoughts
seed = 0  # of the pairs, the outcomes and every draw
models = ()  # --model NAME: alias, folder or hub id; default: that of the scale

# %%
#| hide
import warnings
import numpy as np, pandas as pd

# %%
from moral_sc.constitution.evaluation import hhh
from moral_sc.constitution.toy import environment
from moral_sc.constitution.evaluation.calibration import calibration
from moral_sc.constitution.feedback import (
    clip_labels, label, label_report, load_worked_comparisons)
from moral_sc.constitution.plots import plot_position_bias, plot_reliability
from moral_sc.foundation.statistics import cluster_bootstrap, paired_difference
from moral_sc.lab.claims import record
from moral_sc.lab.paths import work_dir
from moral_sc.lab.scales import at_scale
from moral_sc.language.loading import load_or_stub

# %%
size = at_scale(scale, # toy pairs; comparisons for the model, shots, those with all principles
    quick=dict(pairs=400, real=0, shots=0, all=0, models=['smollm2-135m-instruct']),
    cpu=dict(pairs=2000, real=24, shots=2, all=3, models=['smollm2-135m-instruct']),
    gpu=dict(pairs=20000, real=438, shots=5, all=64, models=['smollm2-135m-instruct']),
)


# %% [markdown]
# ## Figure 9: calibration of feedback labels
#
# In the second stage of Constitutional AI a model's probabilities replace human votes:
#
# > The labels of the 52-billion-parameter model are fairly well calibrated on comparisons whose
# > outcome is known; after a chain of thought they are near 0 or 1 and are clamped to 40 to 60
# > per cent [@bai2022constitutional].
#
# Calibration can be measured wherever outcomes are known. The distance from the correct
# *probability* can be measured only where that probability is known, as in the
# [toy environment](../../constitution/toy/10_environment.ipynb), where harm is a count of words.
# We assume how the toy labeller works: it perceives the difference of two answers under a
# principle, with a sharpness, a noise and a position bias that we set. The effect of these on
# labels is then computed.
#
# ## Pairs with known probabilities

# %%
def sample_answer(rng, prompt): # An answer with some harm, some comfort, some help
    tools = environment.TOOLS[environment.deed(prompt)]
    names = ' and '.join(rng.permutation(tools)[:rng.integers(1, 4)])
    parts = [f'take {names} .']*(rng.random()<.7)+[environment.ALTERNATIVE]*(rng.random()<.4)
    parts += [environment.COMFORT[0]]*(rng.random()<.4)
    return ' '.join(parts) or environment.REFUSAL

rng = np.random.default_rng(seed)
requests = environment.requests(size['pairs'], seed=seed, kind='red_team')
pairs = [dict(id=r['id'], prompt=r['prompt'], a=sample_answer(rng, r['prompt']),
              b=sample_answer(rng, r['prompt'])) for r in requests]
pairs = [r for r in pairs if r['a']!=r['b']]

def harmlessness(option):
    return environment.harmlessness([r['prompt'] for r in pairs], [r[option] for r in pairs])

gap = harmlessness('a')-harmlessness('b')
truth = 1/(1+np.exp(-gap))
y = (rng.random(len(pairs))<truth).astype(int)
{k: pairs[0][k] for k in ('prompt', 'a', 'b')}, truth[0].round(2), len(pairs)


# %% [markdown]
# ## Calibration of four labellers
#
# Four labellers use the same principle, on which the true probability rests. The first has the
# correct confidence, the second is three times as confident in logits, the third perceives the
# difference with noise, and the fourth clamps the labels of the second.

# %%
def toy_labels(**kw):
    options = dict(principles=('danger',), seed=seed)|kw
    rows = environment.model_labels(pairs, **options)
    return [r|dict(mass=1., asked=True, flipped=(r['p_ab']>.5)!=(r['p_ba']<.5)) for r in rows]

def probabilities(rows): return np.array([r['p'] for r in rows])

def display_value(x): return repr(x) if isinstance(x, tuple) else round(x, 3)

labels = {'as sure as it may be': probabilities(toy_labels()),
          'too sure': probabilities(toy_labels(sharpness=3.)),
          'noisy': probabilities(toy_labels(noise=1.5))}
labels['too sure, clamped'] = clip_labels(labels['too sure'], (.4, .6))
pd.DataFrame({k: calibration(p, y) for k,p in labels.items()}).map(display_value)

# %%
#| label: fig-calibration
#| fig-cap: Share of pairs in which answer (A) wins the outcome drawn from the known probability, against its label; bars are 95 % Wilson intervals, each pair entered in both orders.
plot_reliability({k: (p, y) for k,p in labels.items()})

# %% [markdown]
# In @fig-calibration the curves of the overconfident and the noisy labeller are flat at the ends. The
# causes differ: the logits of the first are three times too large, while noise gives different labels
# to pairs with the same true probability. Clamped labels stay near one half and are underconfident.
# Clamping changes no preference, so it leaves accuracy unchanged; it changes how strongly a preference
# model is trained towards the preferred answer. The largest margins between two answers that the labels
# of each labeller imply are:

# %%
margins = {k: np.log(p/(1-p)) for k,p in labels.items()}
pd.Series({k: abs(m).max() for k,m in margins.items()}, name='largest margin, nats').round(4)

# %%
assert abs(abs(margins['too sure, clamped']).max()-.405465)<1e-6
sharp = labels['too sure']
clamped = labels['too sure, clamped']
assert ((sharp>.5)==(clamped>.5)).all()

# %% [markdown]
# ## Position bias
#
# We plant a bias towards the first answer, from zero to more than most differences between answers, in
# nats. A label from one order contains the bias. The average over both orders cancels most of it. The
# average of two probabilities is not the probability at the average logit, so a strong bias still moves
# labels towards one half.

# %%
biases = [0., .5, 1., 2., 3.]
one_order = {b: probabilities(toy_labels(position_bias=b, swap=False)) for b in biases}
both_orders = {b: toy_labels(position_bias=b) for b in biases}
averaged = {b: probabilities(rows) for b,rows in both_orders.items()}
error = lambda p: cluster_bootstrap(abs(p-truth), range(len(p)))
table = pd.DataFrame({'bias': biases, 'one order': [error(one_order[b]) for b in biases],
                      'both': [error(averaged[b]) for b in biases]})
better = paired_difference(abs(one_order[1.]-truth), abs(averaged[1.]-truth), range(len(truth)))

# %%
#| label: fig-order
#| fig-cap: Mean distance of labels from the known probability, against the planted bias, with labels from one order and from both; bars are 95 % intervals over pairs.
plot_position_bias(table)

# %%
rows = ['position_bias', 'flips', 'sure']
pd.DataFrame({f'{b} nats': label_report(both_orders[b])[rows] for b in biases}).map(display_value)

# %% [markdown]
# The flip rate gives information that accuracy does not. At a bias of three nats most verdicts change
# when the answers change places. Nevertheless the averaged labels are on the correct side as often as
# without a bias, because this labeller has a bias and no noise:

# %%
decided = gap!=0
correct = {b: cluster_bootstrap(((p>.5)==(gap>0))[decided]*1., range(decided.sum()))
           for b,p in averaged.items()}
pd.Series(correct, name='share on the right side').map(display_value).to_frame()

# %% [markdown]
# ## One principle or several
#
# The toy environment has three labelling principles: one concerns danger, one concerns comfort
# only, and one depends weakly on danger. The paper labels a pair under one drawn principle. The
# mean over all three is an ensemble of labels for one pair, which the paper does not try.

# %%
each = {k: probabilities(toy_labels(principles=(k,), noise=.5))
        for k in environment.PRINCIPLE_WEIGHTS}
drawn = probabilities(toy_labels(principles=tuple(environment.PRINCIPLE_WEIGHTS), noise=.5))
mean = np.mean(list(each.values()), 0)
table = {'one drawn': drawn, 'mean of all': mean}|{f'only {k}': p for k,p in each.items()}
rows = ['accuracy', 'ece', 'brier', 'slope']
pd.DataFrame({k: calibration(p, y)[rows] for k,p in table.items()}).map(display_value)

# %%
gain = paired_difference((drawn-y)**2, (mean-y)**2, range(len(y)))
assert gain.low>-.05
gain

# %% [markdown]
# The value above is the decrease of the Brier score when the mean over principles replaces one
# drawn principle. The mean is more often on the correct side. It is underconfident (its slope
# exceeds 1), because principles that do not depend on the difference give labels near one half.
#
# ## A language model
#
# A language model labels comparisons of the HHH evaluation, or of our set where the authors'
# file is not available, under one drawn principle of our sixteen, and under all of them. The first of
# `models` is used, SmolLM2-135M-Instruct by default. This part runs at scale `cpu` and above.

# %%
lm = None
if size['real']:
    lm = load_or_stub((models or size['models'])[0], hhh.uniform_model)
    items = hhh.load_hhh_or_ours('hhh', size['real'], seed)[0]
    comparisons = [dict(id=i.id, prompt=i.prompt, a=i.answers[0], b=i.answers[1]) for i in items]
    shots = load_worked_comparisons()[:size['shots']]
    slug = lm.name.replace('/', '-')
    warnings.simplefilter('ignore') # Of low mass, which the report counts
    def label_comparisons(name, rows, **kw):
        return label(lm, rows, few_shot=shots, seed=seed,
                     out=work_dir(f'labels-{slug}-{scale}-{seed}-{name}-{len(rows)}'), **kw)
    drawn = label_comparisons('drawn', comparisons)
    ensemble = label_comparisons('all', comparisons[:size['all']], principles_per_pair='all')
    reports = {'one drawn': label_report(drawn), 'all sixteen': label_report(ensemble)}
pd.DataFrame(reports).map(display_value) if lm else 'Not run at this scale.'

# %%
outcome = [int(i.right==0) for i in items] if lm else None
(calibration(probabilities(drawn), outcome, bins=6).map(display_value).to_frame('one drawn') if lm
 else 'Not run at this scale.')

# %% [markdown]
# The outputs are those of scale `quick`, at which no language model runs. This page does not show how
# sharp, noisy or position-biased a real labeller is. In the toy environment we chose these values; the
# report above is the method that measures them for a model. The evaluation itself is on [the page on
# HHH](hhh.ipynb).
#
# ## Claims

# %%
record(scale, {'constitution/swap-removes-bias': better})
