# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Can a small model tell the better answer?
#
# > Figures 4 and 12 of Constitutional AI on models of 135 and 270 million parameters, beside what
# > needs no model at all.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds; cpu: 40 comparisons, ten minutes; gpu: all of them
seed = 0  # which comparisons, and every sampled thought

# %%
#| hide
import pandas as pd

# %%
from moral_sc.constitution.evaluation import hhh
from moral_sc.constitution.evaluation.calibration import calibration
from moral_sc.constitution.feedback import load_worked_comparisons
from moral_sc.constitution.plots import plot_accuracy, plot_reliability
from moral_sc.foundation.statistics import paired_difference
from moral_sc.lab.claims import record
from moral_sc.lab.paths import work_dir
from moral_sc.lab.scales import at_scale
from moral_sc.language.loading import load_or_stub
from moral_sc.language.stub_models import stub_model

# %%
size = at_scale(scale, # comparisons, harm types, thoughts, tokens of a thought, shots, models
    quick=dict(items=4, types=0, thoughts=1, tokens=8, shots=1, models=1, thought_items=1),
    cpu=dict(items=40, types=32, thoughts=1, tokens=40, shots=2, models=2, thought_items=12),
    gpu=dict(items=None, types=None, thoughts=5, tokens=256, shots=5, models=2,
             thought_items=None),
)
reach = hhh.hhh_available('hhh')
if scale=='quick' or not reach: items = hhh.load_hhh('ours', size['items'], seed)
else: items = hhh.load_hhh('hhh', size['items'], seed)
types = hhh.load_hhh('harm_types', size['types'], seed) if reach and size['types']!=0 else []
def coin(): return stub_model(lambda t: {' (A)': .4, ' (B)': .4} if t[-1:]==':' else {'': 1.}, 'coin')
names = ['smollm2-135m-instruct', 'gemma-3-270m'][:size['models']]
models = {n: load_or_stub(n, coin) for n in names}
len(items), len(types)

# %% [markdown]
# Before a model can give feedback it has to see which of two answers is better. The paper tests
# this on 438 comparisons:
#
# > *Accuracy rises with size; a chain of thought helps the larger models, and averaging five of
# > them helps a little more* [@bai2022constitutional].
#
# Its smallest model is several times as large as ours. The question here is not whether the curve
# continues to the left, but whether a model of this size is any use as a labeller, and how one
# would know. A labeller that always says (A), or always takes the longer answer, is right more
# often than a coin:

# %%
base = hhh.hhh_baselines(hhh.load_hhh('hhh') if reach else items)
base.map(lambda x: x if isinstance(x, tuple) else round(x, 3)).to_frame('all comparisons')

# %% [markdown]
# ## Asked in several ways
#
# At once; with worked comparisons in front; as a turn of a chat; in both orders, which takes out a
# liking for one letter; and after a chain of thought, on fewer comparisons, since a thought takes
# hundreds of times as long as a letter. The comparisons are drawn once and are the same in each.

# %%
front = hhh.worked_prefix(load_worked_comparisons()[:size['shots']])
ways = {'at once': dict(swap=True), 'with examples': dict(few_shot=front, swap=True)}
def run(name, way, kw, items):
    out = work_dir(f'hhh-{scale}-{seed}-{name}-{way}-{len(items)}'.replace(' ', '-'))
    return hhh.evaluate_hhh(models[name], items, seed=seed, out=out, **kw)

frames = {(n, w): run(n, w, kw, items) for n in models for w,kw in ways.items()}
main = names[0]
chat = dict(mode='chat')
frames[main, 'chat'] = run(main, 'chat', dict(chat, swap=True), items)
few = items[:size['thought_items']]
thought = run(main, 'thought', dict(chat, samples=size['thoughts'],
                                    max_new_tokens=size['tokens']), few)
frames[main, 'thought'] = thought
table = pd.DataFrame({k: dict(n=len(d), accuracy=hhh.hhh_accuracy(d), said_A=(d.chosen==0).mean(),
                              mass=d.mass.mean(), flipped=d.flipped.mean())
                      for k,d in frames.items()}).T
table.map(lambda x: x if isinstance(x, tuple) else round(x, 3))

# %%
#| label: fig-accuracy
#| fig-cap: Share of right answers; bars are 95 % Wilson intervals, dotted lines need no model.
rates = {f'{w}, {n.split("-")[0]}': hhh.hhh_accuracy(d) for (n,w),d in frames.items()}
plot_accuracy(rates, {'longer answer': base.longer.value, 'gate': base.gate})

# %% [markdown]
# @fig-accuracy is read from the dotted lines. An interval that does not clear the gate cannot be
# told from counting words, however far from a half it may be. The column of flips says why: where
# most verdicts change with the order of the answers, the letters are read and the answers are not,
# and what is left after both orders are averaged is small. The mass says how much of the model's
# probability the two letters have between them at all.
#
# ## Is the probability worth anything?
#
# The labels of the first way, both orders averaged, against outcomes (figure 9 of the paper).

# %%
#| label: fig-reliability
#| fig-cap: How often the answer at (A) is right against the label it gets; bars are 95 % Wilson intervals, each comparison entered both ways round.
first = frames[main, 'at once']
p = [r[0] for r in first.p]
y = (first.right==0).astype(int).tolist()
plot_reliability({main: (p, y)}, bins=6)

# %%
cal = calibration(p, y, bins=6) if len(p)>20 else None
cal.to_frame(main) if cal is not None else 'Too few comparisons at this scale.'

# %% [markdown]
# ## Kinds of harm
#
# The paper's figure 12 asks which of nine kinds of harm a conversation shows. Naming the most
# frequent kind each time is right in one of six.

# %%
kinds = run(main, 'types', {}, types) if types else None
if kinds is not None:
    print(hhh.hhh_baselines(hhh.load_hhh('harm_types')).to_string())
hhh.hhh_accuracy(kinds) if kinds is not None else 'Not asked at this scale.'

# %% [markdown]
# Figure 11, the 221 comparisons of an earlier set, is not drawn: the released file does not say
# which of its rows those are. The balanced set of harmful and ethical conversations is evaluated
# by the same call, `hhh.load_hhh('ethical')`, where its file is in reach.
#
# What this does not show: that small models cannot label. The subset is small, and every interval
# on this page is wide. It does show that none of the ways of asking clears the gate by itself on
# so few questions, and that a labelling model for real runs should be chosen by this test first.
#
# ## Claims

# %%
found = {}
if not any(m.is_stub for m in models.values()) and reach and scale!='quick':
    found['constitution/hhh-beats-length'] = hhh.hhh_accuracy(first)
    at_once = run(main, 'chat one order', chat, few)
    found['constitution/hhh-thought-helps'] = paired_difference(
        thought.correct, at_once.correct, thought.id)
    found['constitution/labels-read-answers'] = hhh.wilson(int(first.flipped.sum()), len(first))
    found['constitution/labels-calibrated'] = cal.slope
    found['constitution/harm-types-above-majority'] = hhh.hhh_accuracy(kinds)
record(scale, found)
