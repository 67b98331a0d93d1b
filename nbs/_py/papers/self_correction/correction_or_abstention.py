# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Correction or abstention: two small models show neither
#
# > In two small models the instruction changes neither part of the bias score (Figure 1, left) detectably; our claim that it raises the share of declined questions fails.

# %% tags=["parameters"]
scale = 'quick'  # quick: two scenes; cpu: 24 scenes, minutes; gpu: all of BBQ
seed = 0         # sample of scenes, and the draws behind the intervals
models = ()      # --model NAME: aliases, folders or hub ids; default: those of the scale

# %%
#| hide
import numpy as np, pandas as pd
from moral_sc.bias import bbq
from moral_sc.bias.abstention import (CHANGE_PARTS, answer_sums, declining_rule, decompose_change,
                                      decompose_sums, plot_declining, plot_naming_and_lean)
from moral_sc.bias.bbq.items import stratified
from moral_sc.bias.bbq.metrics import accuracy_shortfall
from moral_sc.bias.evaluation import load_models, unmet_setting
from moral_sc.bias.plots import condition_style
from moral_sc.bias.variance import collect_records, wording_table, wording_stub_model, item_values
from moral_sc.foundation.statistics import cluster_bootstrap
from moral_sc.lab.claims import as_measurement, record
from moral_sc.lab.paths import work_dir
from moral_sc.lab.scales import at_scale

# %%
size = at_scale(scale, # scenes of four questions, and option orders
    quick=dict(scenes=8, orders=1),
    cpu=dict(scenes=24, orders=3),
    gpu=dict(scenes=None, orders=6),
)
MODELS = dict(quick=(), cpu=('smollm2-135m-instruct','gemma-3-270m'),
              gpu=('smollm2-135m-instruct','gemma-3-270m'))
conditions = ['q', 'q+if', 'q+anti', 'q+note']

# %% [markdown]
# ## Figure 1, left: abstention and correction
#
# > With the instruction to avoid stereotypes, the largest model's score on ambiguous questions falls
# > by 43 %, and by 84 % when it also reasons first [@ganguli2023].
#
# On an ambiguous question the correct answer is that one cannot tell. The score falls if a model
# gives that answer more often, or if it names the stereotyped person less often among those it
# names. The score is the product of two numbers,
#
# $$s = x\,y,\qquad x = P(\text{names a person}),\quad
# y = \frac{P(\text{biased})-P(\text{counter})}{P(\text{biased})+P(\text{counter})},$$
#
# and a change of it is the sum of two parts, with bars for the mean of before and after:
# $\Delta s = \bar y\,\Delta x + \bar x\,\Delta y$. The first is abstention, the second
# correction ([the module](../../bias/38_abstention.ipynb)). Abstention is not always right: in the
# other half of BBQ the context gives the answer, and declining is wrong.
#
# Four stub models have a known reason for their change. Under the instruction, `abstains` declines
# more and has the same bias among its other answers; `corrects` declines equally and has less bias;
# `both` does some of each; `overdoes` declines always, even where the answer is given.

# %%
rules = dict(abstains=declining_rule((.3,.8), (.5,.5)), corrects=declining_rule((.3,.3), (.5,.1)),
             both=declining_rule((.3,.55), (.5,.3)),
             overdoes=declining_rule((.3,.9), (.5,.5), always=True))
ours = stratified(bbq.load(source='ours'), 32)
stubs = {n: collect_records(wording_stub_model(f, ours, n), ours, conditions[:2])
         for n,f in rules.items()}

def exact_parts(records):
    sums = [answer_sums(records, condition).sum() for condition in ('q','q+if')]
    return dict(zip(CHANGE_PARTS, decompose_sums(*sums)))

exact = pd.DataFrame({n:exact_parts(r) for n,r in stubs.items()})
exact.round(3)

# %%
s,x,y = (exact.loc[k] for k in CHANGE_PARTS[:3])
assert abs(y.abstains)<1e-6 and abs(x.corrects)<1e-6 and np.allclose(x+y, s)
assert np.allclose([s.abstains, s.corrects], [.2*.5-.7*.5, .7*.1-.7*.5])

# %% [markdown]
# `abstains` and `corrects` have similar changes of the score, for entirely different reasons.

# %%
items = bbq.load(source='auto')
scenes = stratified(items, size['scenes'] and 4*size['scenes'], seed)
lms = load_models(models, MODELS[scale], lambda: wording_stub_model(rules['both'], scenes, 'both'))
records = {}
for lm in lms.values():
    out = work_dir(f'abstention-{scale}-{seed}-{lm.name}-{len(scenes)}')
    records[lm.name] = collect_records(lm, scenes, conditions, orders=size['orders'], seed=seed,
                                       out=out)

# %%
#| label: fig-plane
#| fig-cap: Probability of naming a person, and bias among those answers. Grey lines join equal scores. Each line goes from the plain question (blue) to the instruction (red); those of stub models are dashed.
plot_naming_and_lean(records, stubs)

# %% [markdown]
# In @fig-plane a stub model that abstains moves to the left, one that corrects moves down, and both
# cross the same lines of equal score. The two real models, SmolLM2-135M-Instruct and Gemma-3-270M
# in three option orders, have a bias near zero and hardly move:

# %%
changes = {n:decompose_change(r, 'q+if', seed=seed) for n,r in records.items()}
pd.concat(changes).round(4)

# %% [markdown]
# ## Appendix A.3: declining where the answer is given
#
# Abstention is appropriate only when the context is ambiguous. A model whose answers depend on the
# context declines ambiguous questions and not disambiguated ones; a model that declines
# independently of the context is on the diagonal.

# %%
#| label: fig-declining
#| fig-cap: Probability of the unknown answer on ambiguous against disambiguated questions, under four conditions; bars are 95 % intervals that draw templates. On the diagonal a model does not distinguish the two; open marks are stub models.
plot_declining(records, {n:stubs[n] for n in ('abstains','overdoes')}, seed)


# %%
def declining_table(records):
    "Compare how often a model declines both kinds of questions"
    rows = {}
    for c in conditions:
        ambiguous,given,correct = (wording_table(records, item_values(records, m))[c][0] for m in
                                   ('accuracy_ambig','unknown_disambig','accuracy_disambig'))
        rows[condition_style(c)[0]] = dict(left_open=ambiguous.mean(), given_away=given.mean(),
                                           difference=(ambiguous-given).mean(),
                                           right=correct.mean())
    return pd.DataFrame(rows).T

pd.concat({n:declining_table(r) for n,r in records.items()}).round(4)


# %% [markdown]
# The relevant column is `difference`, which is zero for a model that declines independently of the
# context. No request changes either of the first two columns by more than 0.006. The cell below has the
# changes by the instruction, question by question; none is detectable.

# %%
def instruction_effect(records, metric):
    "Estimate the effect of the instruction on the probability of the unknown answer"
    y = wording_table(records, item_values(records, metric))
    d = (y['q+if']-y['q'])[0]
    return cluster_bootstrap(d.to_numpy(), d.index, seed=seed)

METRICS = ['accuracy_ambig', 'unknown_disambig']
declining = {n:{m:instruction_effect(r, m) for m in METRICS} for n,r in records.items()}
pd.DataFrame(declining)

# %% [markdown]
# ## What this does not show
#
# This page does not show whether larger models correct or abstain. That needs the same conditions on a
# model whose answers depend on the context. The two parts of a change describe the answers; they are
# not two mechanisms in the model.
#
# ## Claims
#
# The criteria are in `data/claims/self_correction_wording.toml` and were fixed before this run. They
# are judged on the first model. The claim that the instruction makes it decline more often is ours, and
# fails. The claim that it does not decline where the answer is given is the paper's, about models that
# find given answers. This model does not find them, so the row stays undecided.

# %%
first = list(records)[0]
outcomes = {'self_correction/instructed-to-decline': declining[first]['accuracy_ambig'],
            'self_correction/corrects-what-it-says': tuple(changes[first].loc['change of y']),
            'self_correction/declines-where-it-should': declining[first]['unknown_disambig']}
unmet = unmet_setting(lms, questions=bool(bbq.reachable()))
accuracy = declining_table(records[first]).right['Q']
unmet_by = {'self_correction/declines-where-it-should': unmet or accuracy_shortfall(accuracy)}
record(scale, {k: as_measurement(v)._replace(unmet=unmet_by.get(k, unmet))
               for k,v in outcomes.items()}, parameters=next(iter(lms.values())).parameters)
