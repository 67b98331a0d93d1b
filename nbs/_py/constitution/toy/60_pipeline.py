# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Pipeline
#
# > Train the four models of the paper's pipeline in the toy environment and measure their answers.

# %%
#| default_exp constitution.toy.pipeline

# %%
#| export
from dataclasses import dataclass

import numpy as np, pandas as pd

# %%
#| export
from moral_sc.constitution.answers import answer_rows, sample_answers
from moral_sc.constitution.feedback import label
from moral_sc.constitution.finetuning import finetune, training_examples
from moral_sc.constitution.preference import fit_preference
from moral_sc.constitution.revision import STOPS, revise
from moral_sc.constitution.rl.policy import train_policy
from moral_sc.constitution.toy.environment import (
    ALTERNATIVE, COMFORT, PRINCIPLES, features, harmlessness, helpfulness, rater_labels,
    requests, write_answer, write_revision)
from moral_sc.constitution.toy.experiments import different_pairs, select_kind
from moral_sc.foundation.statistics import t_interval
from moral_sc.language.models import LM

# %%
#| hide
import torch
from fastcore.test import *
from moral_sc.constitution.toy.environment import pretrain
from moral_sc.constitution.toy.experiments import split_mixed_requests
from moral_sc.constitution.toy.judge_model import COMPARISONS, CURRICULUM, train_judge_model

torch.set_num_threads(1)

# %% [markdown]
# Figure 1 of the paper [@bai2022constitutional] has four models. A *pre-trained* model is trained by RL
# on comparisons of helpfulness, which gives *helpful RLHF*. Its answers to red-team requests are
# revised, and the pre-trained model is finetuned on these revisions and on answers of helpful RLHF to
# ordinary requests: *SL-CAI*. A preference model is trained on comparisons of answers of SL-CAI,
# for help by raters and for harm by a labelling model, and RL against it gives *RL-CAI*. The
# [page on Figure 1](../../papers/constitution/pipeline.ipynb) trains all of them from several seeds.

# %%
#| export
STAGES = 'pre-trained', 'helpful RLHF', 'SL-CAI', 'RL-CAI'
SAMPLING = dict(max_new_tokens=40, stop=STOPS) # An answer ends where a critique of it would begin

def reinforce(
    lm:LM,            # Where RL begins
    prompts:list,     # Requests
    labels:list,      # Label rows for the preference model
    seed:int=0,
    *,
    epochs:int=3,     # Of the preference model
    **kw              # Of `train_policy`
):                    # `TrainedPolicy`
    "Train a preference model on labels, and a model against it by RL"
    pm = fit_preference(lm, labels, lr=2e-3, epochs=epochs, seed=seed)
    return train_policy(lm, prompts, pm, seed=seed, **dict(SAMPLING)|kw)

def train_helpful(
    base:LM, helpful:list, # The pre-trained model; ordinary requests
    seed:int=0,
    **kw                   # Of `reinforce`
):
    "Train helpful RLHF: RL on raters' comparisons of helpfulness"
    pairs = different_pairs(base, helpful, seed=seed, **SAMPLING)
    return reinforce(base, helpful, rater_labels(pairs, 'helpful', seed=seed), seed, **kw)

def supervise(
    base:LM,           # Finetuned
    writer:LM,         # Answers, criticises and revises
    rows:list,         # Requests of both kinds
    seed:int=0,
    *,
    rounds:int=4, lr:float=2e-3, epochs:int=2,
)->tuple:              # SL-CAI, its training examples
    "Train SL-CAI on revisions and on helpful answers"
    chains = revise(writer, select_kind(rows, 'red_team'), PRINCIPLES, rounds=rounds, few_shot=[],
                    seed=seed, max_new_tokens=40)
    helpful = answer_rows(writer, select_kind(rows, 'helpful'), seed=seed, **SAMPLING)
    examples = training_examples(chains, 'all', helpful)
    return finetune(base, examples, lr=lr, epochs=epochs, seed=seed)[0], examples

def label_help_and_harm(
    lm:LM,             # Answers
    judge:LM, principles:list, # Label the harm; a principle is drawn for each pair
    rows:list,         # Requests of both kinds
    seed:int=0,
)->list:               # Label rows
    "Label pairs of answers: harm by a labelling model, help by raters"
    kinds = {r['prompt']: r['kind'] for r in rows}
    pairs = [p|dict(kind=kinds[p['prompt']])
             for p in different_pairs(lm, rows, seed=seed, **SAMPLING)]
    harm = label(judge, select_kind(pairs, 'red_team'), principles, few_shot=[], seed=seed)
    return harm+rater_labels(select_kind(pairs, 'helpful'), 'helpful', seed=seed)


# %% [markdown]
# ## The whole pipeline

# %%
#| export
@dataclass
class Pipeline:
    "Models and data of one training of the pipeline"
    models:dict         # Stage -> `LM`
    examples:list       # Of SL-CAI
    labels:list         # Of the preference model of RL-CAI
    history:pd.DataFrame# Of the RL of RL-CAI

def train_pipeline(
    base:LM,
    judge:LM, principles:list, # As in `label`
    sl_prompts:list, rl_prompts:list, # Requests of both kinds
    seed:int=0,
    *,
    rounds:int=4,       # Of revision
    helpful_steps:int=30, steps:int=60, # Of RL: helpful RLHF, RL-CAI
    ai_prompts:list=None, # Requests of RL-CAI; default: `rl_prompts`
    **kw                # Of `train_policy`: batch, lr, kl_coef ...
)->Pipeline:
    "Train helpful RLHF, SL-CAI and RL-CAI"
    if ai_prompts is None: ai_prompts = rl_prompts
    helpful = train_helpful(base, select_kind(rl_prompts, 'helpful'), seed, steps=helpful_steps,
                            **kw).lm
    sl,examples = supervise(base, helpful, sl_prompts, seed, rounds=rounds)
    labels = label_help_and_harm(sl, judge, principles, ai_prompts, seed)
    rl = reinforce(sl, ai_prompts, labels, seed, steps=steps, **kw)
    return Pipeline(dict(zip(STAGES, (base, helpful, sl, rl.lm))), examples, labels, rl.history)


# %%
sl_prompts,rl_prompts,held = split_mixed_requests([16, 24, 12])
base = pretrain('mini', steps=20)
judge = train_judge_model('mini', curriculum=[(5, (1,), 1)], principles=['danger'])
run = train_pipeline(base, judge, COMPARISONS[:1], sl_prompts, rl_prompts, rounds=1,
                     helpful_steps=2, steps=2, batch=8)
test_eq([*run.models], STAGES)
test_eq({r['source'] for r in run.labels}, {'ai', 'human'})

# %% [markdown]
# ## Answers without a model
#
# An effect counts for a method if no simpler answer reaches it. There are three constant answers,
# and the generator that wrote the training text: its answers, and its answers after revisions.

# %%
#| export
CONSTANTS = {'no answer': '', 'always comfort': COMFORT[0], 'always a better course': ALTERNATIVE}

def write_chains(
    prompts:list,      # Texts of requests
    rounds:int=4,
    principles:list=PRINCIPLES, # One is drawn for each revision
    seed:int=0,
    answers:list=None, # First answers; default: written, too
)->list:               # Answers after 0 to `rounds` revisions: [revision][prompt]
    "Iterate the rules by which the training text was written, without a model"
    rng = np.random.default_rng([seed, 5])
    if answers is None: current = [write_answer(rng, p) for p in prompts]
    else: current = [[f'{s.strip()} .' for s in a.split(' .') if len(s.split())>1] for a in answers]
    draw = lambda: principles[rng.integers(len(principles))].id
    res = [[' '.join(s) for s in current]]
    for _ in range(rounds):
        current = [write_revision(rng, s, draw())[1] for s in current]
        res.append([' '.join(s) for s in current])
    return res

def answer_without_model(
    rows:list,      # Requests of both kinds
    rounds:int=4,   # Revisions of answers to red-team requests
    seed:int=0,
)->dict:            # Name -> answers
    "Answer requests by constants, by the generator, and by its revisions"
    prompts = [r['prompt'] for r in rows]
    chains = write_chains(prompts, rounds, seed=seed)
    revised = [chains[-1 if r['kind']=='red_team' else 0][i] for i,r in enumerate(rows)]
    return ({k: [v]*len(rows) for k,v in CONSTANTS.items()} |
            {'generator': chains[0], 'generator, revised': revised})

def write_comparisons(
    n:int,          # Requests
    kind:str=None,  # As in `requests`; default: both
    criterion:str='harmless', # As in `rater_labels`
    rounds:int=2,   # Each answer is revised 0 to `rounds` times, at random
    seed:int=0,     # Of requests that no other function draws, too
)->list:            # Label rows, without pairs of equal answers
    "Write pairs of answers without a model, and let a rater compare them"
    rows = requests(n, seed+5*10**6, kind)
    prompts = [r['prompt'] for r in rows]
    rng = np.random.default_rng(seed)
    a,b = ([chains[k][i] for i,k in enumerate(rng.integers(rounds+1, size=n))]
           for chains in (write_chains(prompts, rounds, seed=seed+j) for j in (1, 2)))
    pairs = [dict(id=f'{criterion}/{r["id"]}', prompt=r['prompt'], a=x, b=y)
             for r,x,y in zip(rows, a, b) if x!=y]
    return rater_labels(pairs, criterion, seed=seed)


# %%
prompts = [r['prompt'] for r in requests(400, kind='red_team')]
chains = write_chains(prompts)
pd.DataFrame([dict(harmless=harmlessness(prompts, a).mean(), help=helpfulness(prompts, a).mean())
              for a in chains]).rename_axis('revisions').round(2)

# %%
test_eq(chains[0], write_chains(prompts, 1, answers=chains[0])[0])
assert harmlessness(prompts, chains[4]).mean()>harmlessness(prompts, chains[0]).mean()+1
votes = write_comparisons(200, 'red_team')
gap = np.subtract(*(harmlessness([r['prompt'] for r in votes], [r[k] for r in votes])
                    for k in 'ab'))
assert np.mean([r['p'] for r,d in zip(votes, gap) if d>1])>.8


# %% [markdown]
# The generator's own revisions already raise harmlessness and lower help, because words that serve a
# harmful deed are the dangerous ones. A model that copies the text does the same.
#
# ## Scores
#
# On red-team requests alone the constant *always a better course* has the highest harmlessness that is
# possible. Only together with help on ordinary requests do scores tell a method from a constant. The
# `total` is the mean help on ordinary requests plus the mean harmlessness on red-team requests.

# %%
#| export
def score_answers(
    rows:list,      # Requests of both kinds
    answers:dict,   # Name -> one answer for each
)->pd.DataFrame:    # One row per name
    "Return mean true scores of answers: help, harmless, total, and shares"
    kinds = np.array([r['kind'] for r in rows])
    texts = [r['prompt'] for r in rows]
    red = kinds=='red_team'
    def row(a):
        f = features(texts, a)
        help_ = helpfulness(texts, a)[~red].mean()
        harmless = harmlessness(texts, a)[red].mean()
        return dict(help=help_, harmless=harmless, total=help_+harmless,
                    useful=f.useful[~red].mean(), danger=f.danger[red].mean(),
                    refusal=f.refusal[red].mean(), words=f.words.mean())
    return pd.DataFrame({k: row(a) for k,a in answers.items()}).T

def measure_pipeline(
    run:Pipeline,
    rows:list,      # Requests of both kinds that no stage saw
    rounds:int=4,   # Revisions of the baseline
    seed:int=0,
)->tuple:           # Table of `score_answers` for stages and baselines; stage -> answers
    "Measure the answers of all stages, and those without a model"
    answers = {k: [a for a, in sample_answers(lm, rows, seed=seed, **SAMPLING)]
               for k,lm in run.models.items()}
    return score_answers(rows, answers|answer_without_model(rows, rounds, seed)), answers

def stage_estimates(
    tables:list,    # Of `measure_pipeline`, one per training
    column:str,
)->pd.Series:       # Stage or baseline -> `Estimate` over trainings
    "Return the means of a column over trainings, with Student's intervals"
    values = pd.concat([t[column] for t in tables], axis=1)
    return pd.Series({k: t_interval(v) for k,v in values.iterrows()})

def stage_difference(
    tables:list, column:str,
    after, before,  # Stages or baselines
):                  # `Estimate`
    "Return the mean difference of two stages over trainings"
    return t_interval([t[column][after]-t[column][before] for t in tables])

def beyond_baselines(
    tables:list,
    stage:str='RL-CAI', column:str='total',
)->tuple:           # `Estimate` of the difference, name of the best baseline
    "Compare a stage with the baseline that is best on average"
    baselines = [k for k in tables[0].index if k not in STAGES]
    best = max(baselines, key=lambda k: np.mean([t[column][k] for t in tables]))
    return stage_difference(tables, column, stage, best), best


# %%
table,answers = measure_pipeline(run, held, 2)
table.round(2)

# %%
test_eq(table.harmless['always a better course'], .75)
test_eq(table.total, table.help+table.harmless)
two = [table, table+.1]
test_close(stage_difference(two, 'help', 'SL-CAI', 'RL-CAI').value,
           table.help['SL-CAI']-table.help['RL-CAI'])
test_eq(beyond_baselines(two, 'no answer')[0].value,
        table.total['no answer']-table.total[4:].max())
