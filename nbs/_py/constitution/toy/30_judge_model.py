# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Judge model
#
# > Train a small transformer on simulated votes that `label` can ask to compare answers.

# %%
#| default_exp constitution.toy.judge_model

# %%
#| export
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

# %%
#| export
from moral_sc.constitution.toy import environment
from moral_sc.constitution.feedback import ANSWER, LETTERS, comparison_question
from moral_sc.constitution.principles import Comparison
from moral_sc.foundation.errors import ConfigError, unknown_name_message
from moral_sc.foundation.runs import content_key, process_rank
from moral_sc.language.reward_head import save_model, small_llama, word_tokenizer
from moral_sc.language.loading import load
from moral_sc.language.models import LM, encode
from moral_sc.language.training import answer_loss, fit

# %%
#| hide
import warnings
import pandas as pd, torch
from fastcore.test import *
from moral_sc.constitution.feedback import label

torch.set_num_threads(1)

# %% [markdown]
# The paper's labels come from a model that was not trained to label, but has read many judgements by
# people. The [first model](10_environment.ipynb) of the toy environment has read
# answers and revisions but no judgements, and lacks the words of the question that
# [`label`](../30_feedback.ipynb) asks. This module trains a model that can answer it. Its texts are that
# question, word by word, about two answers, with the letter of a simulated vote.
#
# ## Simulated votes
#
# A voter applies a principle with a given sharpness. Ties are discarded.
# Answers are random lists of sentences that no model wrote, so the judge is trained on no output of the
# models that it will judge.

# %%
#| export
COMPARISONS = [Comparison('danger', 'which answer is without danger ?'),
               Comparison('warmth', 'which answer is with warmth ?'),
               Comparison('vague', 'which answer is better ?')]
SENTENCE_SHARES = dict(danger=.32, safe=.32, comfort=.18, better=.12, refusal=.06)

def _sentence(rng):
    kind = rng.choice(list(SENTENCE_SHARES), p=list(SENTENCE_SHARES.values()))
    if kind=='comfort': return environment.COMFORT[rng.integers(2)]
    if kind=='better': return environment.ALTERNATIVE
    if kind=='refusal': return environment.REFUSAL
    tools = environment.DANGEROUS_TOOLS if kind=='danger' else environment.SAFE_TOOLS
    return f'take the {tools[rng.integers(len(tools))]} .'

def _random_answer(rng, max_sentences):
    n = rng.integers(1, max_sentences+1)
    return ' '.join(dict.fromkeys(_sentence(rng) for _ in range(n))) # No sentence twice

def simulate_votes(
    n:int,
    seed:int=0,
    principles=tuple(environment.PRINCIPLE_WEIGHTS), # One is drawn for each vote
    max_sentences:int=4,          # Of an answer
    sharpness:float=3.,           # Of the voters; 1: calibrated
)->list:                          # id, prompt, a, b, principle, p
    "Simulate votes on random answers, under principles"
    rng = np.random.default_rng([seed, max_sentences])
    rows = []
    prompts = [r['prompt'] for r in environment.requests(500, seed=seed+2*10**6)]
    pick = lambda xs: xs[rng.integers(len(xs))]
    draw = lambda: dict(prompt=pick(prompts), a=_random_answer(rng, max_sentences),
                        b=_random_answer(rng, max_sentences), principle=pick(principles))
    while len(rows)<n: rows += _vote([draw() for _ in range(2*n)], rng, sharpness)
    return [dict(r, id=f'vote/{seed}/{max_sentences}/{i}') for i,r in enumerate(rows[:n])]

def _vote(rows, rng, sharpness):
    "Return the rows that are no tie, with a vote each"
    margins = environment.principle_margins(rows, [r['principle'] for r in rows])
    votes = rng.random(len(rows))<1/(1+np.exp(-sharpness*margins))
    return [dict(r, p=float(x)) for r,x,m in zip(rows, votes, margins) if m]


# %%
pd.DataFrame(simulate_votes(4, max_sentences=2))[['principle', 'a', 'b', 'p']]

# %% [markdown]
# Votes have the expected frequencies:

# %%
some = simulate_votes(4000)
gap = environment.principle_margins(some, [r['principle'] for r in some])
p = np.array([r['p'] for r in some])
near = {g: (p[np.isclose(gap, g)].mean(), 1/(1+np.exp(-3*g))) for g in (-.75, -.4, .4, 1.)}
pd.DataFrame(near, index=['votes', 'expected']).round(3)

# %%
for seen,goal in near.values(): test_close(seen, goal, .06)
test_eq(set(gap)&{0}, set())
test_eq(simulate_votes(5), simulate_votes(5))

# %% [markdown]
# ## Training
#
# It is hard for a small transformer to learn which of two answers is more dangerous: the letter must
# be related to words far away, and until that succeeds, knowing the words is not
# rewarded. Trained on all votes at once it stays at chance for hundreds of steps. It
# is therefore trained with a curriculum: first one sentence against one under one principle, then more
# of each. Larger initial weights make the curriculum unnecessary: with `init_std=.15` the smallest
# model learns from all votes at once, in 400 steps.

# %%
#| export
CURRICULUM = [(160, (1,), 1), (240, (1, 2), None), (500, (1, 4), None)]
# Steps of 32 votes; most sentences of an answer, in equal parts; how many principles

def judge_tokenizer():
    "Build a tokenizer with the words of the environment and of the question"
    known = {t.strip() for t in environment.toy_tokenizer().get_vocab()}
    texts = [comparison_question('', '', '', ''), ANSWER, *LETTERS,
             *(c.text for c in COMPARISONS)]
    known |= {*re.findall(r"[\w'-]+|[^\w\s]", ' '.join(texts))}
    special = lambda w: w[0]=='<' or w!=':' and w[-1]==':'
    return word_tokenizer(sorted(w for w in known if w and not special(w)))

def _example(lm, r):
    text = next(c.text for c in COMPARISONS if c.id==r['principle'])
    ids = encode(lm, f'\n\n{comparison_question(r["prompt"], text, r["a"], r["b"])}\n\n{ANSWER}')
    letter = lm.tokenizer(LETTERS[int(r['p']<.5)], add_special_tokens=False).input_ids
    return [*ids, *letter, lm.tokenizer.eos_token_id], len(ids)

def train_judge_model(
    size:str='tiny',              # Of `environment.SIZES`
    seed:int=0,
    curriculum=tuple(CURRICULUM), # Stages of training
    principles=tuple(environment.PRINCIPLE_WEIGHTS),
    sharpness:float=3.,           # Of the voters
    lr:float=4e-3,                # Of each stage, decaying to zero
    out=None,                     # Folder; a model found there is loaded
    device='cpu',
    init_std:float=None,          # As in `environment.scale_weights`
)->LM:
    "Train a transformer on simulated votes, or load it"
    if size not in environment.SIZES:
        raise ConfigError(unknown_name_message('size', size, [*environment.SIZES]))
    settings = [list(curriculum), list(principles), sharpness, lr]
    if init_std: settings.append(init_std)
    key = content_key(read=settings)[:8]
    folder = Path(out)/f'judge-{size}-{seed}-{key}' if out else None
    identity = dict(name=f'judge-{size}', source=f'votes, {key}, seed {seed}')
    if folder and folder.is_dir(): return replace(load(folder, 'float32', device), **identity)
    lm = small_llama(judge_tokenizer(), *environment.SIZES[size], seed=seed, context=256,
                     device=device)
    environment.scale_weights(lm, init_std)
    for steps,lengths,k in curriculum:
        n = 32*steps//len(lengths)
        rows = [r for m in lengths for r in simulate_votes(n, seed, principles[:k], m, sharpness)]
        fit(lm.model, [_example(lm, r) for r in rows], answer_loss, batch=32, lr=lr,
            warmup=8, schedule='cosine', seed=seed)
    if folder and process_rank()[0]==0: save_model(lm, folder)
    return replace(lm, **identity)


# %%
judge = train_judge_model('mini', curriculum=[(80, (1,), 1)], principles=['danger'], lr=.01,
                          init_std=.15)
judge


# %% [markdown]
# This model, of the smallest size, has read votes on single sentences only. Asked with `label` about new pairs,
# it distinguishes single sentences, and is little better than chance on answers
# of up to four sentences. Later stages train those; the [pipeline](../../papers/constitution/pipeline.ipynb)
# page measures the accuracy after all three.

# %%
def asked(lm, most, principle='danger', n=200):
    "Labels on fresh pairs, and what the principle sees"
    pairs = simulate_votes(n, 1, [principle], most)
    rows = label(lm, pairs, [c for c in COMPARISONS if c.id==principle], few_shot=[])
    margins = environment.principle_margins(pairs, [principle]*n)
    return np.array([r['p'] for r in rows]), margins, rows

got = {most: asked(judge, most) for most in (1, 4)}
right = {m: float(((p>.5)==(g>0)).mean()) for m,(p,g,_) in got.items()}
right

# %%
assert right[1]>.75 and right[4]<right[1]
assert np.mean([r['mass'] for r in got[4][2]])>.9
assert not any(judge.tokenizer.unk_token_id in _example(judge, r)[0] for r in some[:50])

# %% [markdown]
# Its vocabulary contains every word of the question, and nearly all of its probability is on the
# letters. Invalid arguments raise errors:

# %%
with expect_fail(ConfigError, contains="did you mean 'danger'"):
    simulate_votes(3, principles=['dagger'])
with expect_fail(ConfigError, contains="did you mean 'tiny'"): train_judge_model('tin')
