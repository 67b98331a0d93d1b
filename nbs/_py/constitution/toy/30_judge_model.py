# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A judge of the world
#
# > A small transformer that has read what people voted, and can be asked which answer is
# > better.

# %%
#| default_exp constitution.toy.judge_model

# %%
#| export
import re
from dataclasses import replace
from pathlib import Path

import numpy as np, pandas as pd

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
import torch
from fastcore.test import *
from moral_sc.constitution.feedback import label

torch.set_num_threads(1)

# %% [markdown]
# Labels of the paper are made by a model that nobody trained to label: whoever has read
# enough has read people who judge. The [world's first model](10_environment.ipynb) has read
# answers and revisions and no verdicts, and knows no word of the question that
# [`label`](../30_feedback.ipynb) asks. This page makes a model that does. Its texts are that
# question, word by word, about two answers, and the letter that somebody voted for.
#
# ## What people vote
#
# A voter reads with a principle and sees what the principle sees, at a sharpness of his
# own; who sees no difference does not vote. Answers are heaps of sentences that no model
# wrote, so the judge has seen nothing of the models that it will judge.

# %%
#| export
COMPARISONS = [Comparison('danger', 'which answer is without danger ?'),
               Comparison('warmth', 'which answer is with warmth ?'),
               Comparison('vague', 'which answer is better ?')]
SENTENCE_SHARES = dict(danger=.32, safe=.32, comfort=.18, better=.12, refusal=.06) # Of sentences

def principle_score(principle, prompts, answers)->np.ndarray:
    "What answers are worth to one who reads with a principle, in nats"
    known = [*environment.PRINCIPLE_WEIGHTS]
    if principle not in known: raise ConfigError(unknown_name_message('principle', principle, known))
    f = environment.features(prompts, answers)
    return sum(w*f[k] for k,w in environment.PRINCIPLE_WEIGHTS[principle].items()).to_numpy(float)

def _sentence(rng):
    kind = rng.choice(list(SENTENCE_SHARES), p=list(SENTENCE_SHARES.values()))
    if kind=='comfort': return environment.COMFORT[rng.integers(2)]
    if kind=='better': return environment.ALTERNATIVE
    if kind=='refusal': return environment.REFUSAL
    tools = environment.DANGEROUS_TOOLS if kind=='danger' else environment.SAFE_TOOLS
    return f'take the {tools[rng.integers(len(tools))]} .'

def _heap(rng, most): # Sentences, none twice
    return ' '.join(dict.fromkeys(_sentence(rng) for _ in range(rng.integers(1, most+1))))

def simulate_votes(
    n:int,
    seed:int=0,
    principles=tuple(environment.PRINCIPLE_WEIGHTS), # One is drawn for each vote
    max_sentences:int=4,                   # Sentences of an answer
    sharpness:float=3.,           # Of the voters: 1 is as sure as the truth allows
)->list:                          # id, prompt, a, b, principle, p
    "Votes of people on heaps of sentences, under principles"
    rng = np.random.default_rng([seed, max_sentences])
    rows = []
    asks = [r['text'] for r in environment.requests(500, seed=seed+2*10**6)]
    pick = lambda xs: xs[rng.integers(len(xs))]
    draw = lambda: dict(prompt=pick(asks), a=_heap(rng, max_sentences), b=_heap(rng, max_sentences),
                        principle=pick(principles))
    while len(rows)<n: rows += _voted([draw() for _ in range(2*n)], rng, sharpness)
    return [dict(r, id=f'vote/{seed}/{max_sentences}/{i}') for i,r in enumerate(rows[:n])]

def _voted(rows, rng, sharpness):
    "Those that their voter sees a difference in, with the vote"
    gap = vote_margins(rows)
    p = rng.random(len(rows))<1/(1+np.exp(-sharpness*gap))
    return [dict(r, p=float(x)) for r,x,g in zip(rows, p, gap) if g]

def vote_margins(
    rows,       # prompt, a, b, principle
)->np.ndarray:  # [row], nats
    "What each row's principle sees in a, less what it sees in b"
    d = pd.DataFrame(rows)
    res = np.zeros(len(rows))
    for k,g in d.groupby('principle'):
        res[g.index] = principle_score(k, g.prompt, g.a)-principle_score(k, g.prompt, g.b)
    return res


# %%
pd.DataFrame(simulate_votes(4, max_sentences=2))[['principle', 'a', 'b', 'p']]

# %% [markdown]
# Votes come out as often as the sharpness says:

# %%
some = simulate_votes(4000)
gap = vote_margins(some)
p = np.array([r['p'] for r in some])
near = {g: (p[np.isclose(gap, g)].mean(), 1/(1+np.exp(-3*g))) for g in (-.75, -.4, .4, 1.)}
pd.DataFrame(near, index=['votes', 'expected']).round(3)

# %%
for seen,goal in near.values(): test_close(seen, goal, .06)
test_eq(set(gap)&{0}, set())
test_eq(simulate_votes(5), simulate_votes(5))

# %% [markdown]
# ## The judge
#
# Which of two heaps is more dangerous is hard to learn for a small transformer: a letter
# far back has to be tied to the words behind it, and as long as that fails, nothing rewards
# knowing the words. Given all votes at once it stays at chance for hundreds of steps. So it
# is taught as children are, one sentence against one under one principle first, then more
# of each.

# %%
#| export
CURRICULUM = [(160, (1,), 1), (240, (1, 2), None), (500, (1, 4), None)]
# Steps of 32 votes; most sentences of an answer, in equal parts; how many principles

def judge_tokenizer():
    "The world's words and those of the question"
    known = {t.strip() for t in environment.toy_tokenizer().get_vocab()}
    asked = [comparison_question('', '', '', ''), ANSWER, *LETTERS, *(c.text for c in COMPARISONS)]
    known |= {*re.findall(r"[\w'-]+|[^\w\s]", ' '.join(asked))}
    special = lambda w: w[0]=='<' or w!=':' and w[-1]==':'
    return word_tokenizer(sorted(w for w in known if w and not special(w)))

def _example(lm, r):
    text = next(c.text for c in COMPARISONS if c.id==r['principle'])
    ids = encode(lm, f'\n\n{comparison_question(r["prompt"], text, r["a"], r["b"])}\n\n{ANSWER}')
    said = lm.tokenizer(LETTERS[int(r['p']<.5)], add_special_tokens=False).input_ids
    return [*ids, *said, lm.tokenizer.eos_token_id],len(ids)

def train_judge_model(
    size:str='tiny',              # Of `environment.SIZES`
    seed:int=0,
    curriculum=tuple(CURRICULUM),       # What is read, in turn
    principles=tuple(environment.PRINCIPLE_WEIGHTS),
    sharpness:float=3.,           # Of the voters
    lr:float=4e-3,                # Of each lesson, falling to nothing
    out=None,                     # Folder; a model that is there is read
    device='cpu',
)->LM:
    "A transformer that has read votes"
    if size not in environment.SIZES: raise ConfigError(unknown_name_message('size', size, [*environment.SIZES]))
    key = content_key(read=[list(curriculum), list(principles), sharpness, lr])[:8]
    folder = Path(out)/f'judge-{size}-{seed}-{key}' if out else None
    who = dict(name=f'judge-{size}', source=f'votes, {key}, seed {seed}')
    if folder and folder.is_dir(): return replace(load(folder, 'float32', device), **who)
    lm = small_llama(judge_tokenizer(), *environment.SIZES[size], seed=seed, context=256, device=device)
    for steps,most,k in curriculum:
        n = 32*steps//len(most)
        read = [r for m in most for r in simulate_votes(n, seed, principles[:k], m, sharpness)]
        fit(lm.model, [_example(lm, r) for r in read], answer_loss, batch=32, lr=lr,
            warmup=8, schedule='cosine', seed=seed)
    if folder and process_rank()[0]==0: save_model(lm, folder)
    return replace(lm, **who)


# %%
judge = train_judge_model(curriculum=CURRICULUM[:1], principles=['danger'])
judge


# %% [markdown]
# This one had the first lesson only. Asked about fresh pairs by the function that any model
# is asked by, it tells one sentence from another, and is little better than a coin on heaps
# of up to four. Those are what the other lessons are for; how far all three get is measured
# where they are [put to use](../../papers/constitution/pipeline.ipynb).

# %%
def asked(lm, most, principle='danger', n=200):
    "Labels on fresh pairs, and what the principle sees"
    pairs = simulate_votes(n, 1, [principle], most)
    rows = label(lm, pairs, [c for c in COMPARISONS if c.id==principle], few_shot=[])
    return np.array([r['p'] for r in rows]),vote_margins(pairs),rows

got = {most: asked(judge, most) for most in (1, 4)}
right = {m: float(((p>.5)==(g>0)).mean()) for m,(p,g,_) in got.items()}
right

# %%
assert right[1]>.75 and right[4]<right[1]
assert np.mean([r['mass'] for r in got[4][2]])>.9
assert not any(judge.tokenizer.unk_token_id in _example(judge, r)[0] for r in some[:50])

# %% [markdown]
# Every word of the question is known to it, and nearly all of its probability is on the
# letters. Mistakes of the caller are told:

# %%
with expect_fail(ConfigError, contains="did you mean 'danger'"):
    simulate_votes(3, principles=['dagger'])
with expect_fail(ConfigError, contains="did you mean 'tiny'"): train_judge_model('tin')
