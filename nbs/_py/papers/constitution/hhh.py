# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # HHH evaluation: no small model clears the length baseline
#
# > On 40 comparisons (Figure 4) no accuracy of models up to 270M is shown to exceed the gate.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds; cpu: 40 comparisons, ten minutes; gpu: all of them
seed = 0  # which comparisons, and every sampled chain of thought

# %%
#| hide
import pandas as pd

# %%
from moral_sc.constitution.evaluation import hhh
from moral_sc.constitution.evaluation.calibration import calibration
from moral_sc.constitution.feedback import load_worked_comparisons
from moral_sc.constitution.plots import plot_accuracy, plot_reliability
from moral_sc.foundation.statistics import paired_difference, wilson
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
available = hhh.hhh_available('hhh')
source = 'hhh' if available and scale!='quick' else 'ours'
items = hhh.load_hhh(source, size['items'], seed)
has_types = available and size['types']!=0
harm_items = hhh.load_hhh('harm_types', size['types'], seed) if has_types else []

def uniform_model():
    return stub_model(lambda t: {' (A)': .4, ' (B)': .4} if t[-1:]==':' else {'': 1.}, 'coin')

names = ['smollm2-135m-instruct', 'gemma-3-270m'][:size['models']]
models = {n: load_or_stub(n, uniform_model) for n in names}
len(items), len(harm_items)

# %% [markdown]
# ## Figure 4: helpful, honest and harmless comparisons
#
# Before a model can give feedback, it must identify the better of two answers. The paper tests this
# on 438 comparisons:
#
# > Accuracy rises with size; a chain of thought helps the larger models, and averaging five of
# > them helps a little more [@bai2022constitutional].
#
# The paper's smallest model is several times as large as ours. This page therefore does not extend
# the curve. It tests whether a model of this size is useful as a labeller, and how to find out.
# Two rules that need no model are right more often than a coin on these comparisons: to choose (A)
# always, and to choose the longer answer. The `gate` is the accuracy that the second may reach on 438
# comparisons; a model has to exceed it.

# %%
baselines = hhh.hhh_baselines(hhh.load_hhh('hhh') if available else items)
baselines.map(lambda x: x if isinstance(x, tuple) else round(x, 3)).to_frame('all comparisons')

# %% [markdown]
# ## Four prompt formats
#
# The same comparisons are evaluated at once (letters only), with worked comparisons in front, as a
# turn of a chat, and after a chain of thought. The first three average both orders of the answers,
# which cancels a preference for one letter. A chain of thought costs hundreds of times as much as a
# letter, so it runs on fewer comparisons and in one order.

# %%
worked = hhh.worked_prefix(load_worked_comparisons()[:size['shots']])
formats = {'at once': dict(swap=True), 'with examples': dict(few_shot=worked, swap=True)}

def evaluate(name, label, options, items):
    folder = f'hhh-{scale}-{seed}-{name}-{label}-{len(items)}'.replace(' ', '-')
    return hhh.evaluate_hhh(models[name], items, seed=seed, out=work_dir(folder), **options)

frames = {(n, f): evaluate(n, f, options, items) for n in models for f,options in formats.items()}
main = names[0]
chat = dict(mode='chat')
frames[main, 'chat'] = evaluate(main, 'chat', dict(chat, swap=True), items)
subset = items[:size['thought_items']]
thought_options = dict(chat, samples=size['thoughts'], max_new_tokens=size['tokens'])
thoughts = evaluate(main, 'thought', thought_options, subset)
frames[main, 'thought'] = thoughts

def summary(d):
    return dict(n=len(d), accuracy=hhh.hhh_accuracy(d), share_A=(d.chosen==0).mean(),
                mass=d.mass.mean(), flipped=d.flipped.mean())

table = pd.DataFrame({k: summary(d) for k,d in frames.items()}).T
table.map(lambda x: x if isinstance(x, tuple) else round(x, 3))

# %%
#| label: fig-accuracy
#| fig-cap: Share of comparisons answered correctly, by model and prompt format; bars are 95 % Wilson intervals, dotted lines are baselines that need no model.
rates = {f'{f}, {n.split("-")[0]}': hhh.hhh_accuracy(d) for (n,f),d in frames.items()}
plot_accuracy(rates, {'longer answer': baselines.longer.value, 'gate': baselines.gate})

# %% [markdown]
# Compare the intervals in @fig-accuracy with the dotted lines. An accuracy whose interval does not
# exceed the gate may come from a rule that counts words, however far it is from one half. The
# column `flipped` shows the reason: most verdicts change when the answers change places, so they
# depend on the position and not on the content, and little remains after both orders are averaged.
# `mass` is the probability that the model assigns to the two letters together, and the third
# column is the share of verdicts for (A). The claim that at most one verdict in ten changes fails.
#
# ## Figure 9: calibration of the labels
#
# The labels of the first format, averaged over both orders, are compared with outcomes.

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
# ## Figure 12: kinds of harm
#
# The paper's figure 12 classifies conversations by nine kinds of harm. Always naming the most
# frequent kind is right in one of six.

# %%
harm = evaluate(main, 'types', {}, harm_items) if harm_items else None
if harm is not None:
    print(hhh.hhh_baselines(hhh.load_hhh('harm_types')).to_string())
hhh.hhh_accuracy(harm) if harm is not None else 'Not run at this scale.'

# %% [markdown]
# Figure 11, on 221 comparisons of an earlier set, is not reproduced: the released file does not
# identify these rows. The balanced set of harmful and ethical conversations is evaluated by the
# same call on `hhh.load_hhh('ethical')`, where its file is available.
#
# What this page does not show: that small models cannot label. The subset is small, and every
# interval on this page is wide. The page shows that no prompt format clears the gate on so few
# comparisons. Apply this test before you choose a labelling model for real runs.
#
# ## Claims

# %%
estimates = {}
if not any(m.is_stub for m in models.values()) and available and scale!='quick':
    estimates['constitution/hhh-beats-length'] = hhh.hhh_accuracy(first)
    one_order = evaluate(main, 'chat one order', chat, subset)
    estimates['constitution/hhh-thought-helps'] = paired_difference(
        thoughts.correct, one_order.correct, thoughts.id)
    estimates['constitution/labels-read-answers'] = wilson(int(first.flipped.sum()), len(first))
    estimates['constitution/labels-calibrated'] = cal.slope
    estimates['constitution/harm-types-above-majority'] = hhh.hhh_accuracy(harm)
record(scale, estimates)
