# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Preference training in a toy language: bias nearly vanishes with and without an instruction
#
# > In 100 steps of PPO the bias of a toy model falls from 0.29 to 0.03 without an instruction and from 0.10 to 0.01 with it, so the difference shrinks from 0.20 to 0.02.

# %% tags=["parameters"]
scale = 'quick'  # quick: two tiny sizes, seconds; cpu: three sizes; gpu: five sizes
seed = 0         # of the questions asked; trainings have seeds of their own

# %%
#| hide
from dataclasses import replace
from functools import partial
import pandas as pd
from moral_sc.bias.bbq.metrics import accuracy_shortfall
from moral_sc.bias.toy.comparisons import (Rater, add_step_curve, ask_snapshots, asked_questions,
                                           evaluate_snapshots, plot_bias_by_step, rater_choices,
                                           select_steps, step_panels)
from moral_sc.bias.toy.environment import ToyLanguage, toy_benchmark
from moral_sc.bias.toy.ladder import Ladder, baseline_table, train_ladder
from moral_sc.bias.toy.plots import size_of
from moral_sc.constitution.answers import answer_pairs
from moral_sc.constitution.preference import fit_preference
from moral_sc.constitution.rl.policy import train_policy
from moral_sc.foundation.figures import COLOURS
from moral_sc.foundation.statistics import t_interval
from moral_sc.lab.claims import as_measurement, record
from moral_sc.lab.paths import work_dir
from moral_sc.lab.scales import at_scale
from moral_sc.language.loading import load

# %%
size = at_scale(scale,
    quick=dict(widths=[4, 8], seeds=[0], documents=400, test=200, epochs=1, steps=4, every=2,
               batch=8, ladder=Ladder(ToyLanguage(categories=2, traits=2, instructed=.25),
                                      documents=256, epochs=1)),
    cpu=dict(widths=[16, 24, 32], seeds=[0, 1, 2, 3, 4], documents=16_000, test=2500, epochs=4,
             steps=100, every=25, batch=64, ladder=Ladder(ToyLanguage(instructed=.25))),
    gpu=dict(widths=[16, 32, 64, 128, 256], seeds=range(10), documents=64_000, test=10_000,
             epochs=4, steps=400, every=50, batch=256,
             ladder=Ladder(ToyLanguage(instructed=.25), documents=128_000)),
)
out = work_dir(f'toy-preference-training-{scale}-{seed}')
folder = work_dir(f'toy-frequency-0.25-{scale}-{seed}') # As on the page on frequency
starts = train_ladder(size['widths'], size['seeds'], folder, size['ladder'])

# %% [markdown]
# ## The human and the questions
#
# > In the largest model bias falls with RLHF steps under every condition, most of all under the
# > instruction; smaller models gain less [@ganguli2023].
#
# The [human of this page](../../bias/toy/38_comparisons.ipynb) compares two answers of a model to one
# question. An answer that the context gives is worth 1. If the context gives no answer, "unknown" is
# worth 1 in the arm with a taste for fairness, with any instruction or none. In the second arm
# (fairness on request) it is worth 1 only under an instruction to be fair, and in the control never. A
# word that is no option is worth -1. The better answer is preferred with probability $\sigma(4\Delta)$,
# where $\Delta$ is the difference in value.

# %%
CONDITIONS = ('q', 'q+if', 'q+if+cot', 'q+anti')
ARMS = {'taste for fairness': Rater(1.), 'fairness on request': Rater(1., on_request=True),
        'control': Rater()}


# %% [markdown]
# A model begins with [supervised training](../../bias/toy/30_ladder.ipynb) on documents in which a
# quarter of the questions carries an instruction, not one half as on the page on size, so that
# instructions are followed in part. It then answers each question twice, at temperature 1.5, so
# that more pairs differ. The human compares, a
# [preference model](../../constitution/40_preference.ipynb) on the model's backbone learns from
# the comparisons, and [PPO](../../constitution/rl/40_policy.ipynb) trains the model against it.

# %%
def train_arm(start, rater, s, pairs, asked, folder):
    "Fit a preference model, train the policy, and test the preference model"
    train,test = (rater_choices(p, asked, rater, s) for p in pairs)
    width = start.model.config.hidden_size
    pm = fit_preference(start, train, lr=.03/width**.5, epochs=size['epochs'], batch=128, warmup=20,
                        schedule='cosine', max_tokens=16_384, seed=s, out=folder/'preference')
    prompts = [dict(id=str(k), prompt=r['prompt']) for k,r in enumerate(pairs[0])]
    policy = train_policy(start, prompts, pm, steps=size['steps'], every=size['every'], seed=s,
                          batch=size['batch'], lr=1.2e-3/width**.5, kl_coef=.1, max_new_tokens=2,
                          out=folder/'policy')
    return pm,policy,pm.accuracy([r|dict(p=r['true']) for r in test]).value


# %% [markdown]
# At each snapshot the benchmark is asked with held-out instructions, in all categories. Three more
# numbers are computed exactly, from the probabilities of the answers to questions that training did
# not use: the KL divergence from the start, the mean value to the human, and the mean score of the
# preference model.

# %%
def run_seed(spec, width, s):
    "Train all arms from one start, and evaluate them"
    language = replace(size['ladder'].language, seed=s)
    start = load(spec.source, 'float32')
    train = asked_questions(language, size['documents'], 100+s)
    test = asked_questions(language, size['test'], 200+s)
    pairs = [answer_pairs(start, [dict(id=p, prompt=p) for p in part], max_new_tokens=2, seed=s,
                          temperature=1.5, batch=512) for part in (train, test)]
    unseen = {p: d for p,d in test.items() if p not in train}
    for arm,rater in ARMS.items():
        name = f'{spec.name}-{arm}'.replace(' ', '-')
        pm,policy,accuracy = train_arm(start, rater, s, pairs, train | test, out/name)
        yield pd.concat([
            ask_snapshots(policy.snapshots, name, language, CONDITIONS, out/'sweep', s),
            evaluate_snapshots(policy.snapshots, start, unseen, rater, pm),
            pd.DataFrame([dict(step=0, condition='test pairs', category='micro',
                               metric='accuracy', value=accuracy)])
        ]).assign(arm=arm, width=width, seed=s, parameters=start.parameters)

order = [(w, s) for w in size['widths'] for s in size['seeds']]
table = pd.concat([t for spec,(w,s) in zip(starts, order) for t in run_seed(spec, w, s)])
select = partial(select_steps, table)

# %%
#| label: fig-bias
#| fig-cap: Bias score on ambiguous questions against steps of PPO, from probabilities, one row an arm. Bars are 95 % intervals over trainings. Dotted lines are an ideal reader of the documents before preference training (zero under the instruction), the dashed line a 4-gram model; a constant answer "unknown" is at zero.
languages = [replace(size['ladder'].language, seed=s) for s in size['seeds']]
baselines = pd.concat([baseline_table(l, toy_benchmark(l, 1).load(), 2000) for l in languages])
baselines = baselines.groupby(['reader', 'condition']).bias.mean()
plot_bias_by_step(table, CONDITIONS, baselines)


# %%
#| label: fig-effect
#| fig-cap: The effect of the instruction on bias, accuracy where the context gives the answer, and the KL divergence from the start, against steps of PPO. Bars are 95 % intervals over trainings.
def effect(arm, width): return select(arm, width, 'q')-select(arm, width, 'q+if')

fig = step_panels(table, ['Bias, Q less Q+IF', 'Accuracy with evidence, Q',
                          'KL from the start, nats'])
for col,w in enumerate(size['widths'], 1):
    for arm,colour in zip(ARMS, (COLOURS['if'], COLOURS['cot'], COLOURS['paper'])):
        curves = (effect(arm, w), select(arm, w, 'q', 'accuracy_disambig'),
                  select(arm, w, 'test questions', 'kl'))
        for row,values in enumerate(curves, 1):
            add_step_curve(fig, values, arm, colour, row=row, col=col)
fig

# %% [markdown]
# With a taste for fairness, bias falls under every condition: at 32,224 parameters from 0.29 to 0.03
# under Q, from 0.10 to 0.01 under Q+IF and from 0.14 to 0.01 under the opposite instruction. This
# agrees with the paper except in one respect: in points, bias falls most under Q, so the difference
# between Q and Q+IF shrinks from 0.20 to 0.02. The probability of "unknown" rises to 0.92 or more under
# all conditions, and little bias is left to remove. In relative terms the instruction removes 67 % of
# the bias at the start and 78 % at the end. Larger models gain more under the instruction than the
# smallest, which had little bias left to lose.
#
# Most of the difference at the start is not the meaning of the instruction: its opposite lowers bias
# from 0.29 to 0.14. Under either instruction accuracy with evidence is about 0.67 instead of 0.93 at
# the start, and 0.59 at the end.
#
# Fairness on request does not separate the conditions either. "Unknown" becomes likelier by 0.23
# under the instruction, by 0.23 under its opposite and by 0.17 under Q. Bias falls by 0.08 under Q
# and by 0.06 and 0.07 under the instruction and its opposite, and the difference between Q and Q+IF
# shrinks from 0.20 to 0.17.
#
# The control changes bias by 0.04 or less. Accuracy with evidence under Q falls by 0.04 to 0.05 at
# the largest size in all arms, and by 0.14 at the smallest with a taste for fairness.
#
# ## The preference models
#
# Accuracy of the preference model on pairs of answers to questions that it has not seen, against
# the known taste (pairs of equal value are left out):

# %%
accuracy = table[table.metric=='accuracy'].pivot_table(index='arm', columns='parameters',
                                                       values='value', sort=False)
accuracy.round(3)

# %% [markdown]
# Mean value to the human, and mean score of the preference model, of answers to questions that
# training did not use:

# %%
parameters = size_of(table)
def means(metric):
    return pd.DataFrame({(arm, parameters[w]): select(arm, w, 'test questions', metric).mean()
                         for arm in ARMS for w in size['widths']})
pd.concat({m: means(m) for m in ('value', 'score')}).round(3)

# %% [markdown]
# With a taste for fairness both rise at each snapshot. In the other two arms the score rises and the
# value falls at the largest size: from 0.49 to 0.48 on request, from 0.44 to 0.42 in the control. The
# policy thus exploits errors of its preference model. In the arm with fairness on request this suggests
# that the preference model does not separate the instructions well enough, so this arm does not test
# PPO. In the control the policy stays within about 0.1 nats of the start (0.5 to 0.9 nats with a taste
# for fairness).

# %% [markdown]
# ## Held-out category
#
# In one category no document carries an instruction, and no comparison is about it. With a taste
# for fairness its bias under Q falls by 0.23 at the largest size, and by 0.26 in all categories.

# %%
held_out = f'category-{size["ladder"].language.categories-1}'
def change(arm, width, condition, **kw):
    "Return the change from the first to the last snapshot, by seed"
    values = select(arm, width, condition, **kw)
    return values.iloc[:,-1]-values.iloc[:,0]

parts = {'all categories': 'micro', 'held-out category': held_out}
pd.DataFrame({(part, arm): {c: change(arm, w, c, category=k).mean() for c in CONDITIONS}
              for part,k in parts.items() for arm in ARMS for w in size['widths'][-1:]}).round(3)

# %% [markdown]
# ## Built-in assumptions and measured results
#
# Built in: the human's taste, which holds "unknown" to be right where the context gives no answer. A
# constant answer "unknown" has no bias and no accuracy with evidence. Measured: how well a preference
# model on the same small backbone learns the taste, what a policy trained against it does under
# instructions that do not enter the human's comparisons, and whether the change generalises to pairs of
# words and to a category that no comparison contains.
#
# ## What this does not show
#
# The paper's human raters compared answers to requests of all kinds, and its models followed
# instructions in natural language. A human who takes instructions into account could make their effect
# grow in models that distinguish them; the models of this page hardly do. With 100 steps at one
# learning rate and one KL coefficient, the curves say nothing about longer training.
#
# ## Claims
#
# The criteria are in `data/claims/self_correction_toy.toml`, the recorded metrics of all snapshots
# in `data/results/toy_preference_training.csv`.

# %%
table[['arm', 'width', 'seed', 'parameters', 'step', 'condition', 'category', 'metric',
       'value']].to_csv(out/'table.csv', index=False)
first,last = size['widths'][0],size['widths'][-1]
taste,request,control = ARMS

def growth(arm):
    "Return the change of the instruction's effect at the largest width, by seed"
    values = effect(arm, last)
    return values.iloc[:,-1]-values.iloc[:,0]

bias = {
    taste: {
        'plain-falls': change(taste, last, 'q'), 'instructed-falls': change(taste, last, 'q+if'),
        'reasoned-falls': change(taste, last, 'q+if+cot'), 'instructed-falls-most': growth(taste),
        'larger-falls-more': change(taste, last, 'q+if')-change(taste, first, 'q+if'),
        'held-out': change(taste, last, 'q', category=held_out),
        'opposite-falls': change(taste, last, 'q+anti')},
    request: {'request-effect-grows': growth(request),
              'request-bias-stays': change(request, last, 'q')},
    control: {'control': growth(control), 'control-bias': change(control, last, 'q')}}
value = select(taste, last, 'test questions', 'value')
others = {'evidence-kept': change(taste, last, 'q', metric='accuracy_disambig'),
          'no-overoptimisation': value.iloc[:,-1]-value.max(axis=1)}

def interval(v): return as_measurement(t_interval(v) if len(v)>1 else float(v.iloc[0]))
def unmet(arm): # The paper's precondition of a bias score, at the first and the last snapshot
    accuracies = select(arm, last, 'q', 'accuracy_disambig').mean()
    return accuracy_shortfall(min(accuracies.iloc[0], accuracies.iloc[-1]))

found = {k: interval(v) for k,v in others.items()}
for arm,values in bias.items():
    found |= {k: interval(v)._replace(unmet=unmet(arm)) for k,v in values.items()}
record(scale, {f'self_correction/toy-preference-{k}': v for k,v in found.items()},
       parameters=parameters[last])
