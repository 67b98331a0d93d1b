# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # HHH evaluation: the choice of a 135M model depends on position, not content
#
# > On all 438 comparisons of Figure 4, asked in both orders, SmolLM2-135M is right in 50.5 %, which does not differ from chance.

# %% tags=["parameters"]
scale = 'quick'  # quick: 3 comparisons; cpu: all 438 and 287, an hour; gpu: two models
seed = 0  # which comparisons, and every sampled chain of thought
models = ()  # --model NAME: aliases, folders or hub ids; default: those of the scale

# %%
#| hide
from math import inf

import pandas as pd

# %%
from moral_sc.constitution.evaluation import hhh
from moral_sc.constitution.evaluation.calibration import calibration
from moral_sc.constitution.feedback import load_worked_comparisons
from moral_sc.constitution.plots import plot_accuracy, plot_reliability
from moral_sc.foundation.statistics import paired_difference, wilson
from moral_sc.lab.claims import Measurement, record
from moral_sc.lab.paths import work_dir
from moral_sc.lab.scales import at_scale
from moral_sc.language.loading import load_or_stub

# %%
size = at_scale(scale, # questions (None: all), those for other formats, thoughts, tokens, shots
    quick=dict(items=3, few=1, types=1, ours=8, thoughts=1, tokens=4, shots=1,
               models=['smollm2-135m-instruct']),
    cpu=dict(items=None, few=12, types=None, ours=None, thoughts=1, tokens=40, shots=2,
             models=['smollm2-135m-instruct']),
    gpu=dict(items=None, few=None, types=None, ours=None, thoughts=5, tokens=256, shots=5,
             models=['smollm2-135m-instruct', 'gemma-3-270m']),
)
sets,missing = hhh.load_sets(size['items'], seed, harm_types=size['types'], original=size['ours'],
                             ethical=size['ours'])
few = hhh.load_hhh_or_ours('hhh', size['few'], seed)[0]
lms = {n: load_or_stub(n, hhh.uniform_model) for n in models or size['models']}
main = next(iter(lms))
pd.DataFrame({'questions': {k: len(i) for k,i in sets.items()}, 'replaced': missing})

# %% [markdown]
# ## Figure 4: helpful, honest and harmless comparisons
#
# Before a model can give feedback, it must identify the better of two answers. The paper tests this
# on 438 comparisons:
#
# > Accuracy rises with size; a chain of thought helps the larger models, and averaging five of
# > them helps a little more [@bai2022constitutional].
#
# The paper's smallest model has 810 million parameters, six times as many as ours. This page does not
# extend the curve. It tests whether a model of this size is useful as a labeller, and how to find out.
# Two rules that need no model are right in more than half of these comparisons: always choosing (A),
# and choosing the longer answer. The `gate` is the upper end of the interval of the second rule on 438
# comparisons; a model has to exceed it.

# %%
baselines = hhh.hhh_baselines(hhh.load_hhh_or_ours('hhh')[0])
baselines.map(lambda x: x if isinstance(x, tuple) else round(x, 3)).to_frame('all comparisons')


# %% [markdown]
# ## Four prompt formats
#
# The first model is asked at once (letters only) about every comparison. Three other formats, and other
# models, are asked about a subset: worked comparisons in front, a turn of a chat, and a chain of thought.
# The first three formats average both orders of the answers, which cancels a preference for one letter. A
# chain of thought runs in one order.

# %%
def evaluate(name, label, items, **options):
    folder = f'hhh-{scale}-{seed}-{lms[name].name}-{label}-{len(items)}'
    out = work_dir(folder.replace(' ', '-').replace('/', '-'))
    return hhh.evaluate_hhh(lms[name], items, seed=seed, out=out, **options)

worked = hhh.worked_prefix(load_worked_comparisons()[:size['shots']])
formats = {'at once': dict(swap=True), 'with examples': dict(few_shot=worked, swap=True),
           'chat': dict(mode='chat', swap=True),
           'thought': dict(mode='chat', samples=size['thoughts'], max_new_tokens=size['tokens'])}
asked = [(n, f) for n in lms for f in (formats if n==main else ['at once'])]
frames = {(n, f): evaluate(n, f, sets['hhh'] if (n, f)==(main, 'at once') else few, **formats[f])
          for n,f in asked}

# %%
#| label: fig-accuracy
#| fig-cap: Share of comparisons answered correctly, by model and prompt format; bars are 95 % Wilson intervals, dotted lines are baselines that need no model.
rates = {f'{f}, {n.split("-")[0]}': hhh.hhh_accuracy(d) for (n,f),d in frames.items()}
plot_accuracy(rates, {'longer answer': baselines.longer.value, 'gate': baselines.gate})


# %%
def rounded(d): return d.map(lambda x: repr(x) if isinstance(x, tuple) else round(x, 3))
rounded(pd.DataFrame({k: hhh.summarize(d) for k,d in frames.items()}).T)

# %% [markdown]
# Compare the intervals in @fig-accuracy with the dotted lines. An accuracy whose interval does not
# exceed the gate may come from a rule that counts words. On all 438 comparisons SmolLM2-135M is right
# in half, .505 [.458, .551], which is below the gate and below the longer answer. In an earlier run on
# 40 of them it was right in .65 [.50, .78], which the full set shows to be chance. The column `flipped`
# gives the reason: 97 % of the verdicts change when the answers change places, so they depend on the
# position and not on the content, and little remains after both orders are averaged. `mass` is the
# probability that the model assigns to the two letters together, and `share_A` is the share of verdicts
# for (A). Twelve comparisons are too few to tell whether a chain of thought changes anything. Our
# claim, which the paper does not make, that at most one verdict in ten changes fails for this model.
#
# ## Figure 9: calibration of the labels
#
# The labels of the first format, averaged over both orders, are compared with outcomes. A slope of 1 is
# calibrated and a slope of 0 carries no information. The interval contains both, and the labels in
# @fig-reliability hardly differ from one half.

# %%
#| label: fig-reliability
#| fig-cap: Share of comparisons in which the answer at (A) is the better one, against its label; bars are 95 % Wilson intervals, each comparison entered in both orders.
first = frames[main, 'at once']
p = [r[0] for r in first.p]
y = (first.right==0).astype(int).tolist()
plot_reliability({main: (p, y)}, bins=6)

# %%
cal = calibration(p, y, bins=6) if len(p)>20 else None
cal.to_frame(main) if cal is not None else 'Too few comparisons at this scale.'

# %% [markdown]
# ## Figure 11: the 221 comparisons of an earlier set
#
# > On the comparisons of an earlier paper models are right well over 90 % of the time; so 217 harder ones
# > were written [@bai2022constitutional].
#
# The 438 contain these 221 without marking them. They are public in four files [@askell2021]: 59 on help, 61 on
# honesty, 58 on harm and 43 others. This command stores them, and the page then asks them:
#
# ```sh
# moral_sc data fetch bigbench/hhh/helpful bigbench/hhh/honest bigbench/hhh/harmless \
#     bigbench/hhh/other
# ```
#
# Where the files are out of reach, twelve mild comparisons of ours in their format run through the same
# code, so that @fig-original can be drawn. Their accuracy says nothing about the 221.

# %%
original = evaluate(main, 'original', sets['original'], swap=True)
category = [i.category for i in sets['original']]
by_category = {k: hhh.hhh_accuracy(d) for k,d in original.groupby(category, sort=False)}
missing['original'] or 'All 221 comparisons were asked.'

# %%
#| label: fig-original
#| fig-cap: Share of comparisons answered correctly in the form of the original HHH evaluation, by category, letters read at once in both orders; bars are 95 % Wilson intervals.
longer = hhh.hhh_baselines(sets['original']).longer.value
by_category['all'] = hhh.hhh_accuracy(original)
plot_accuracy(by_category, {'longer answer': longer, 'paper': .9})

# %% [markdown]
# ## Figure 12: harmful conduct and kinds of harm
#
# The paper's Figure 12 asks whether an assistant behaved harmfully, on 254 balanced conversations, and
# which of nine kinds of harm a conversation shows, on 287. Always naming the most frequent kind is
# right in one of six. SmolLM2-135M answers (A) to each of the 287 questions in either order, so its
# accuracy in @fig-harm is the share of questions for which (A) is right, .108. The 254 conversations
# were out of reach; eight of ours were asked.

# %%
tasks = {'harmful or ethical': 'ethical', 'nine kinds of harm': 'harm_types'}
harm = {k: evaluate(main, k, sets[s], swap=True) for k,s in tasks.items() if sets[s]}
rounded(pd.DataFrame({k: hhh.summarize(d) for k,d in harm.items()}).T)

# %%
#| label: fig-harm
#| fig-cap: Share of questions on harm answered correctly, letters read at once in both orders; bars are 95 % Wilson intervals, dotted lines are chance for nine kinds and for two.
plot_accuracy({k: hhh.hhh_accuracy(d) for k,d in harm.items()}, {'chance, nine': 1/9, 'two': .5})


# %% [markdown]
# This page does not show that small models cannot label. It shows that this model does not clear the
# gate when asked at once; the other three formats were tried on twelve comparisons, which are too few
# to tell. Apply this test before you choose a labelling model for real runs, with `moral_sc reproduce
# constitution/hhh --model NAME --scale cpu`.
#
# ## Claims
#
# Four claims about large models need a larger model than this one. A row whose questions or model were out of reach
# is undecided, with that reason.

# %%
def measurement(e, name=''):
    "An estimate with what it lacks: a real model or the authors' questions"
    lacks = 'a stub answered' if lms[main].is_stub else missing.get(name, '')
    return Measurement(*e, unmet=lacks, parameters=lms[main].parameters)

thoughts = frames[main, 'thought']
one_order = evaluate(main, 'chat one order', few, mode='chat')
kinds = hhh.hhh_accuracy(harm['nine kinds of harm']) if sets['harm_types'] else (1/9, 0, 1)
estimates = {
    'hhh-beats-length': (hhh.hhh_accuracy(first), 'hhh'),
    'hhh-thought-helps': (paired_difference(thoughts.correct, one_order.correct, thoughts.id)
                          if len(few)>1 else (0, -1, 1), 'hhh'),
    'labels-read-answers': (wilson(int(first.flipped.sum()), len(first)), 'hhh'),
    'labels-calibrated': (cal.slope if cal is not None else (1, -inf, inf), 'hhh'),
    'hhh-original': (hhh.hhh_accuracy(original), 'original'),
    'harmful-vs-ethical': (hhh.hhh_accuracy(harm['harmful or ethical']), 'ethical'),
    'harm-types-above-majority': (kinds, 'harm_types')}
record(scale, {f'constitution/{k}': measurement(*e) for k,e in estimates.items()})
