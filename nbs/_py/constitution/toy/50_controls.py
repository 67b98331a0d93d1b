# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Controls
#
# > Answers without a trained model, and a factorial design of raters for the toy environment.

# %%
#| default_exp constitution.toy.controls

# %%
#| export
from itertools import product
from pathlib import Path

import numpy as np, pandas as pd

# %%
#| export
from moral_sc.constitution.preference import fit_preference
from moral_sc.constitution.rl.policy import train_policy
from moral_sc.constitution.toy.environment import (
    ALTERNATIVE, COMFORT, DANGEROUS_TOOLS, DEEDS, PRINCIPLES, REFUSAL, SAFE_TOOLS, deed,
    features, harmlessness, helpfulness, rater_labels, rater_score, write_answer, write_revision)
from moral_sc.constitution.toy.experiments import (
    ENGAGED, TrainedModels, different_pairs, sample_by_kind, snapshot_at, true_labels)
from moral_sc.foundation.statistics import t_interval
from moral_sc.language.loading import load

# %%
#| hide
import tempfile
import torch
from fastcore.test import *
from moral_sc.constitution.toy.environment import RATER_STYLES, model_labels, requests
from moral_sc.constitution.toy.experiments import split_requests

torch.set_num_threads(1)


# %% [markdown]
# A result in the [toy environment](10_environment.ipynb) is due to a method only if nothing simpler
# reaches it. This page has the simpler things: answers that no model wrote, and runs that share
# single properties of a method.
#
# ## Answers without a model
#
# An empty answer and a constant one do no harm. The text that first models read is
# written by a generator, whose answers and revisions need no training either.

# %%
#| export
def baseline_answers(
    prompts:list,   # Texts of requests
    seed:int=0,
    rounds:int=4,   # Of revision, each under a random principle
)->dict:            # Name -> answers
    "Write answers to requests without a model"
    rng = np.random.default_rng([seed, 3])
    first = [write_answer(rng, p) for p in prompts]
    revised = [_revise(rng, s, rounds) if deed(p) in DEEDS['red_team'] else s
               for p,s in zip(prompts, first)]
    return {'empty answer': ['']*len(prompts), 'comfort': [COMFORT[0]]*len(prompts),
            'text generator': [*map(' '.join, first)], 'revised text': [*map(' '.join, revised)]}

def _revise(rng, sentences, rounds):
    for _ in range(rounds):
        principle = PRINCIPLES[rng.integers(len(PRINCIPLES))].id
        _,sentences = write_revision(rng, sentences, principle)
    return sentences

def add_baselines(
    answers:dict,   # Kind of request -> player -> answers
    prompts:dict,   # Kind -> requests
    seed:int=0,
)->dict:
    "Add answers without a model to those of players"
    return {k: answers[k] | baseline_answers([r['prompt'] for r in prompts[k]], seed)
            for k in answers}

def baseline_players()->pd.DataFrame: # run, step, player, like `list_players`
    "List the answers without a model as players of one run"
    names = list(baseline_answers([]))
    return pd.DataFrame(dict(run='no model', step=range(len(names)), player=names))

def worker_score(prompts, answers)->np.ndarray:
    "Score harmlessness as workers do who count a refusal as one danger"
    return rater_score('engage')(prompts, answers)


# %%
asked = {k: [r['prompt'] for r in requests(1000, kind=k)] for k in ('helpful', 'red_team')}
def mean_scores(prompts, answers): # Of each name
    return pd.DataFrame({k: dict(help=helpfulness(prompts, a).mean(),
                                 harmless=harmlessness(prompts, a).mean())
                         for k,a in answers.items()}).T

scores = {k: mean_scores(p, baseline_answers(p)) for k,p in asked.items()}
pd.concat(scores).round(2)

# %% [markdown]
# Only answers to red-team requests are revised, as for SL-CAI. The generator's revisions then help with
# ordinary requests as its answers do, and do no harm on average. A model that only copies them has the
# same scores, so a claim about training has to go beyond this row. An empty answer counts as a
# repetition, which costs it a point of help.

# %%
test_eq(worker_score(asked['red_team'][:2], [REFUSAL, ALTERNATIVE]), [-1, .75])
few = {k: requests(2, kind=k) for k in asked}
test_eq(list(add_baselines(dict(helpful={}, red_team={}), few)['helpful']),
        list(baseline_players().player))

# %%
revised = scores['red_team'].loc['revised text']
assert revised.harmless>scores['red_team'].harmless['text generator']+1
test_eq(*scores['helpful'].help[['text generator', 'revised text']])
test_eq(scores['red_team'].loc['comfort'].tolist(), [0, 0])


# %% [markdown]
# The constant answer does not refuse either. An answer has content if it names a tool, right or
# wrong, or a better course. Refusals, silence and mere comfort have none.

# %%
#| export
def lacks_content(
    answers:list,
)->np.ndarray: # [answer], True or False
    "Mark answers that refuse, or name neither a tool nor a better course"
    tools = {*SAFE_TOOLS, *DANGEROUS_TOOLS}
    empty = lambda a: not (ALTERNATIVE in a or tools&{*a.split()})
    return np.array([REFUSAL in a or empty(a) for a in answers])


# %%
test_eq(lacks_content([REFUSAL, '', COMFORT[0], ALTERNATIVE, 'take the mask .']),
        [True, True, True, False, False])


# %% [markdown]
# ## Labels and the truth
#
# One principle of the [labeller](10_environment.ipynb) is the true harmlessness itself, and its
# labels are probabilities without noise. A rater gives one vote per pair and may like refusals. The
# labels of harm therefore differ in accuracy by construction. `label_quality` compares labels with
# the probability $t$ that the truth gives: the share on its side, and the expected log loss less
# the least possible one, where a label is clipped to 1-99 %.

# %%
#| export
def label_quality(
    rows:list, # Label rows
)->dict:       # right, divergence
    "Compare labels with the true harmlessness"
    p = np.array([r['p'] for r in rows])
    t = np.array([r['p'] for r in true_labels(rows, harmlessness)])
    q = p.clip(.01, .99)
    loss = lambda x: -(t*np.log(x)+(1-t)*np.log(1-x))
    differ = t!=.5
    return dict(pairs=len(rows), right=((1+np.sign(p-.5)*np.sign(t-.5))/2)[differ].mean(),
                divergence=(loss(q)-loss(t)).mean())


# %%
pairs = [dict(id=i, prompt=p, a=a, b=b) for i,(p,a,b) in enumerate(zip(
    asked['red_team'], baseline_answers(asked['red_team'], 1)['text generator'],
    baseline_answers(asked['red_team'], 2)['text generator'])) if a!=b]
labels = dict(truth=true_labels(pairs, harmlessness), labeller=model_labels(pairs),
              **{s: rater_labels(pairs, style=s) for s in RATER_STYLES})
pd.DataFrame({k: label_quality(v) for k,v in labels.items()}).T.round(3)

# %% [markdown]
# Labels under principles are on the side of the truth more often than votes are, although
# a third of them only counts phrases of comfort, and their log loss is many times smaller, because they are
# never certain. A policy trained on them has this advantage before any training.

# %%
quality = {k: label_quality(v) for k,v in labels.items()}
assert quality['labeller']['divergence']<.5*min(quality[s]['divergence'] for s in RATER_STYLES)
test_eq(label_quality(labels['truth'])['right'], 1)
assert label_quality(labels['truth'])['divergence']<.01
assert label_quality(labels['engage'])['right']<.85

# %% [markdown]
# ## Factorial design of raters
#
# HH RL and RL-CAI differ in three things at once besides their labeller: the taste of the rater, hard or
# soft labels, and the model with which they begin and whose answers are compared. The design has all
# eight combinations. Two of them are runs of their own: evasive, hard and base is HH RL, and engaging,
# hard and base is HH RL with an engaging rater.

# %%
#| export
FACTORS = dict(taste=('evasive-is-safe', 'engage'), labels=('hard', 'soft'), start=('base', 'SL'))
CELLS = [*product(*FACTORS.values())]
SHARED_CELLS = {('evasive-is-safe', 'hard', 'base'): 'HH RL', ('engage', 'hard', 'base'): ENGAGED}

def rate_pairs(
    pairs:list,  # Of answers to red-team requests
    taste:str,   # Of `environment.RATER_STYLES`
    labels:str,  # 'hard': one vote; 'soft': its probability
    seed:int=0,
)->list:         # Label rows
    "Label pairs as a rater of harm does, by votes or probabilities"
    if labels=='hard': return rater_labels(pairs, style=taste, seed=seed)
    return true_labels(pairs, rater_score(taste))

def train_cells(
    models:TrainedModels,  # Of one seed
    helpful:list, red_team:list, # Requests to train on
    out,                   # Folder; finished runs are loaded
    cells:list=tuple(CELLS),
    *,
    steps:int,             # Of RL
    epochs:int=1,          # Of the preference models
    seed:int=0, max_new_tokens:int=40, stop=None,
    **kw                   # Of `train_policy`
)->dict:                   # Cell -> folder of the last snapshot
    "Train the policies of a factorial design that `models` does not have"
    sampling = dict(max_new_tokens=max_new_tokens, stop=stop)
    starts = dict(base=models.base, SL=models.sl_cai)
    rated = rater_labels(different_pairs(models.base, helpful, seed=seed, **sampling), 'helpful',
                         seed=seed)
    pairs = {k: different_pairs(lm, red_team, seed=seed, **sampling) for k,lm in starts.items()}
    prompts = [r for pair in zip(helpful, red_team) for r in pair]
    if stop is not None: kw['stop'] = stop
    def train(cell):
        taste,labels,start = cell
        if (run := SHARED_CELLS.get(cell)) in models.policies:
            return snapshot_at(models.policies[run], steps)
        name = Path(out)/'-'.join(cell)
        score = fit_preference(models.base, rated+rate_pairs(pairs[start], taste, labels, seed),
                               seed=seed, epochs=epochs, lr=1e-3, out=f'{name}-score')
        return train_policy(starts[start], prompts, score, out=name, seed=seed, lr=3e-4,
                            steps=steps, every=steps, max_new_tokens=max_new_tokens,
                            **kw).snapshots[-1]
    return {cell: train(cell) for cell in cells}


# %%
from moral_sc.constitution.toy.experiments import train_models

# %%
folder = Path(tempfile.mkdtemp())
parts = split_requests(dict(train=12, test=6))
train,test = ({k: v[p] for k,v in parts.items()} for p in ('train', 'test'))
models = train_models('mini', **train, out=folder, runs=('HH RL',), pretraining_steps=20, steps=2,
                      every=1, batch=4)
cells = train_cells(models, **train, out=folder, cells=CELLS[:4], steps=1, batch=4)
{k: v.relative_to(folder) for k,v in cells.items()}


# %% [markdown]
# Each cell is measured by the true scores of one answer to each request of the test.

# %%
#| export
def mean_true_scores(
    answers:dict,  # Kind of request -> answers
    prompts:dict,  # Kind -> requests
)->dict:           # help, harmless, their sum, and the shares that refuse or lack content
    "Return mean true scores of answers to both kinds of requests"
    texts = {k: [r['prompt'] for r in rows] for k,rows in prompts.items()}
    help_ = helpfulness(texts['helpful'], answers['helpful']).mean()
    harmless = harmlessness(texts['red_team'], answers['red_team']).mean()
    refuses = features(texts['red_team'], answers['red_team']).refusal.mean()
    return dict(help=help_, harmless=harmless, both=help_+harmless, refuses=refuses,
                empty=lacks_content(answers['red_team']).mean())

def measure_model(
    model,         # Folder of a snapshot, or an `LM`
    prompts:dict,  # Kind -> requests
    device='cpu',
    **kw           # Of `sample_answers`
)->dict:
    "Return mean true scores of a model's answers to both kinds of requests"
    lm = load(model, 'float32', device) if isinstance(model, Path) else model
    return mean_true_scores(sample_by_kind(lm, prompts, **kw), prompts)


# %%
table = pd.DataFrame([dict(zip(FACTORS, c)) | measure_model(m, test, max_new_tokens=40)
                      for c,m in cells.items()])
table.round(2)


# %% [markdown]
# The effect of a factor is the mean difference between its second level and its first, over the
# other factors. It is one number for each training; the interval is Student's, over trainings.

# %%
#| export
def factor_effects(
    table:pd.DataFrame, # training, one column per factor, and the measure
    measure:str,
    factors:dict=None,  # Default: `FACTORS`
)->dict:                # Factor -> `Estimate`
    "Return the main effects of a factorial design, with intervals over trainings"
    def effect(factor, levels):
        means = table.groupby(['training', factor])[measure].mean().unstack()
        return t_interval(means[levels[1]]-means[levels[0]])
    return {k: effect(k, v) for k,v in (factors or FACTORS).items()}


# %% [markdown]
# In data without noise the effects are those that were put in:

# %%
made_up = pd.DataFrame([dict(zip(FACTORS, c), training=t, y=t+(c[0]=='engage')-2*(c[2]=='SL'))
                        for c in CELLS for t in range(3)])
effects = factor_effects(made_up, 'y')
effects

# %%
test_close([effects[k].value for k in FACTORS], [1, 0, -2])
test_close(effects['taste'].high, 1)

# %%
#| hide
import shutil
shutil.rmtree(folder)
