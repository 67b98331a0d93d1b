# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What a label is worth
#
# > Figure 9 of Constitutional AI and what the paper only tells: calibration, order, principles and
# > clamps, in a world where the right probability is known, and for one small model.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds; cpu: minutes; gpu: all comparisons and longer thoughts
seed = 0  # of the pairs, the outcomes and every draw

# %%
#| hide
import warnings
import numpy as np, pandas as pd

# %%
from moral_sc.constitution.evaluation import hhh
from moral_sc.constitution.toy import environment
from moral_sc.constitution.evaluation.calibration import calibration
from moral_sc.constitution.feedback import clip_labels, label, load_worked_comparisons, label_report
from moral_sc.constitution.plots import plot_position_bias, plot_reliability
from moral_sc.foundation.statistics import cluster_bootstrap, paired_difference
from moral_sc.lab.claims import record
from moral_sc.lab.paths import work_dir
from moral_sc.lab.scales import at_scale
from moral_sc.language.loading import load_or_stub
from moral_sc.language.stub_models import stub_model

# %%
size = at_scale(scale, # pairs of the world; comparisons for the model, shots, those with all principles
    quick=dict(pairs=400, real=0, shots=0, all=0),
    cpu=dict(pairs=2000, real=24, shots=2, all=3),
    gpu=dict(pairs=20000, real=438, shots=5, all=64),
)


# %% [markdown]
# In the second stage of Constitutional AI a model's probabilities take the place of people's
# votes:
#
# > *The labels of the 52-billion-parameter model are fairly well calibrated* on comparisons whose
# > outcome is known; after a chain of thought they are near 0 or 1 and are *clamped to 40 to 60
# > per cent* [@bai2022constitutional].
#
# Whether labels are calibrated can be measured wherever outcomes are known. How far they are from
# the *right* probability cannot, since nobody knows it, except in [the world](../../constitution/toy/10_environment.ipynb),
# where harm is a count of words. What is assumed there: a labeller perceives the difference of two
# answers in the light of a principle, as sharply as we say, with as much noise as we say, and with
# a liking for what stands first. What happens to labels then is arithmetic and not assumed.
#
# ## Pairs with a known truth

# %%
def said(rng, prompt): # An answer with some harm, some comfort, some help
    tools = environment.TOOLS[environment.deed(prompt)]
    names = ' and '.join(rng.permutation(tools)[:rng.integers(1, 4)])
    parts = [f'take {names} .']*(rng.random()<.7)+[environment.ALTERNATIVE]*(rng.random()<.4)
    parts += [environment.COMFORT[0]]*(rng.random()<.4)
    return ' '.join(parts) or environment.REFUSAL

rng = np.random.default_rng(seed)
asks = environment.requests(size['pairs'], seed=seed, kind='red_team')
pairs = [dict(id=r['id'], prompt=r['text'], a=said(rng, r['text']), b=said(rng, r['text']))
         for r in asks]
pairs = [r for r in pairs if r['a']!=r['b']]
col = lambda k: [r[k] for r in pairs]
gap = environment.harmlessness(col('prompt'), col('a'))-environment.harmlessness(col('prompt'), col('b'))
truth = 1/(1+np.exp(-gap))
y = (rng.random(len(pairs))<truth).astype(int)
{k: pairs[0][k] for k in ('prompt', 'a', 'b')}, truth[0].round(2), len(pairs)


# %% [markdown]
# ## Calibration
#
# Four labellers see the same principle, the one that the truth rests on. One is as sure as the
# truth allows, one is three times as sure in logits, one reads with noise, and the labels of the
# sure one are clamped.

# %%
def labels(**kw):
    rows = environment.model_labels(pairs, **dict(dict(principles=('danger',), seed=seed), **kw))
    return [r|dict(mass=1., asked=True, flipped=(r['p_ab']>.5)!=(r['p_ba']<.5)) for r in rows]
def ps(rows): return np.array([r['p'] for r in rows])
def shown(x): return repr(x) if isinstance(x, tuple) else round(x, 3)

kinds = {'as sure as it may be': ps(labels()), 'too sure': ps(labels(sharpness=3.)),
         'noisy': ps(labels(noise=1.5))}
kinds['too sure, clamped'] = clip_labels(kinds['too sure'], (.4, .6))
pd.DataFrame({k: calibration(p, y) for k,p in kinds.items()}).map(shown)

# %%
#| label: fig-calibration
#| fig-cap: How often the preferred answer is the less harmful one against its label; bars are 95 % Wilson intervals, each pair entered both ways round.
plot_reliability({k: (p, y) for k,p in kinds.items()})

# %% [markdown]
# In @fig-calibration the sure labeller is flat at the ends, as is the noisy one, for another reason:
# noise pushes labels apart that have the same truth. Clamped labels never leave the middle and are
# too timid there. The accuracy of a clamped labeller is that of the labels it was made from, for
# clamping changes no preference; what changes is how strongly a preference model is pulled. A
# label of .6 asks for a margin of at most:

# %%
margins = {k: np.log(p/(1-p)) for k,p in kinds.items()}
pd.Series({k: abs(m).max() for k,m in margins.items()}, name='largest margin, nats').round(4)

# %%
assert abs(abs(margins['too sure, clamped']).max()-.405465)<1e-6
sharp = kinds['too sure']
clamped = kinds['too sure, clamped']
assert ((sharp>.5)==(clamped>.5)).all()

# %% [markdown]
# ## Order
#
# A liking for what stands first, in nats, from none to more than most differences between answers.
# Asked in one order it is part of the label; asked in both and averaged, almost all of it cancels,
# though not quite: the average of two probabilities is not the probability at the average logit, so
# a strong liking still draws labels towards one half.

# %%
biases = [0., .5, 1., 2., 3.]
one = {b: ps(labels(position_bias=b, swap=False)) for b in biases}
two = {b: labels(position_bias=b) for b in biases}
far = lambda p: cluster_bootstrap(abs(p-truth), range(len(p)))
d = pd.DataFrame({'bias': biases, 'one order': [far(one[b]) for b in biases],
                  'both': [far(ps(two[b])) for b in biases]})
better = paired_difference(abs(one[1.]-truth), abs(ps(two[1.])-truth), range(len(truth)))

# %%
#| label: fig-order
#| fig-cap: Mean distance of labels from the known probability; bars are 95 % intervals over pairs.
plot_position_bias(d)

# %%
what = ['position_bias', 'flips', 'sure']
pd.DataFrame({f'{b} nats': label_report(two[b])[what] for b in biases}).map(shown)

# %% [markdown]
# The flip rate tells what no accuracy tells: with a liking of three nats most verdicts change when
# the answers change places, and still the averaged labels are on the right side as often as
# without it, since nothing but the liking was added here.

# %%
right = {b: cluster_bootstrap(((ps(two[b])>.5)==(gap>0))[gap!=0]*1., range((gap!=0).sum()))
         for b in biases}
pd.Series(right, name='share on the right side').map(shown).to_frame()

# %% [markdown]
# ## One principle or several
#
# The world has three: one sees danger, one comfort only, one sees danger dimly. A label under one
# drawn principle is what the paper uses; the mean over all three is an ensemble of labels for one
# pair, which it does not try.

# %%
each = {k: ps(labels(principles=(k,), noise=.5)) for k in environment.PRINCIPLE_WEIGHTS}
drawn = ps(labels(principles=tuple(environment.PRINCIPLE_WEIGHTS), noise=.5))
mean = np.mean(list(each.values()), 0)
table = {'one drawn': drawn, 'mean of all': mean}|{f'only {k}': p for k,p in each.items()}
some = ['accuracy', 'ece', 'brier', 'slope']
pd.DataFrame({k: calibration(p, y)[some] for k,p in table.items()}).map(shown)

# %%
gain = paired_difference((drawn-y)**2, (mean-y)**2, range(len(y)))
assert gain.low>-.05
gain

# %% [markdown]
# Above is how much the Brier score of a label falls when the mean over principles takes the place
# of one drawn principle: a mean is more often on the right side and is too timid, as its slope
# says, because principles that see nothing vote for one half.
#
# ## A real model
#
# SmolLM2-135M-Instruct on comparisons of the HHH evaluation, or on ours where the authors' file is
# out of reach: under one drawn principle of our sixteen, and under all of them.

# %%
real = None
if size['real']:
    def coin(): return stub_model(lambda t: {' (A)': .5, ' (B)': .4} if t[-1:]==':' else {'': 1.})
    real = load_or_stub('smollm2-135m-instruct', coin)
    reach = hhh.hhh_available('hhh')
    items = hhh.load_hhh('hhh' if reach else 'ours', size['real'], seed)
    asked = [dict(id=i.id, prompt=i.prompt, a=i.answers[0], b=i.answers[1]) for i in items]
    shots = load_worked_comparisons()[:size['shots']]
    warnings.simplefilter('ignore') # Of low mass, which the report counts
    def ask(name, rows, **kw):
        return label(real, rows, few_shot=shots, seed=seed,
                     out=work_dir(f'labels-{scale}-{seed}-{name}-{len(rows)}'), **kw)
    drawn = ask('drawn', asked)
    ensemble = ask('all', asked[:size['all']], principles_per_pair='all')
(pd.DataFrame({'one drawn': label_report(drawn), 'all sixteen': label_report(ensemble)}).map(shown) if real
 else 'Not asked at this scale.')

# %%
outcome = [int(i.right==0) for i in items] if real else None
(calibration(ps(drawn), outcome, bins=6).map(shown).to_frame('one drawn') if real
 else 'Not asked at this scale.')

# %% [markdown]
# What the toy world does not show is how sharp, noisy or partial to a place a real labeller is:
# those were our choices, and the report above is how to measure them. The evaluation by itself is
# on [a page of its own](hhh.ipynb).
#
# ## Claims

# %%
record(scale, {'constitution/swap-removes-bias': better})
