# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Feedback
#
# > Label pairs of answers with a model's probability that the first is better.

# %%
#| default_exp constitution.feedback

# %%
#| export
import warnings
from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from hashlib import sha256

import numpy as np, pandas as pd

# %%
#| export
from moral_sc.constitution.principles import (
    check_worked_examples, draw_principles, load_comparisons)
from moral_sc.constitution.prompts import load_pairs, split_turns
from moral_sc.foundation.arguments import checked
from moral_sc.foundation.datasets import data_dir, read_toml
from moral_sc.foundation.errors import ConfigError, DataError, ModelError, unknown_name_message
from moral_sc.foundation.progress import progress_callback
from moral_sc.foundation.runs import content_key, run_or_temporary, open_run
from moral_sc.foundation.statistics import cluster_bootstrap, wilson
from moral_sc.language.chat import modes, render
from moral_sc.language.generation import sample
from moral_sc.language.loading import load
from moral_sc.language.scoring import option_logprobs, option_mass

# %%
#| hide
import os, re, signal, tempfile
from pathlib import Path

import torch
from fastcore.test import *
from moral_sc.constitution.principles import Comparison
from moral_sc.foundation.runs import start_ranks
from scipy.stats import chisquare
from moral_sc.language.models import encode
from moral_sc.language.stub_models import stub_model, random_model

tmp = Path(tempfile.mkdtemp())

# %% [markdown]
# In its second stage Constitutional AI replaces human comparisons: a model reads a
# conversation, two answers and a principle, and chooses the better answer
# [@bai2022constitutional]. Nothing is sampled. The log-probabilities of ` (A)` and ` (B)` are
# read and renormalised, and the resulting probability is the label:
#
# $$p = \frac{e^{\ell_A}}{e^{\ell_A}+e^{\ell_B}}$$
#
# ## Format of a question
#
# The conversation comes first, then the principle, then the options, as in the paper. All questions
# about one conversation therefore share a prefix, which is computed once.

# %%
#| export
LETTERS = ' (A)', ' (B)'
ANSWER = 'The answer is:'
THINK = 'Let us look at each option in turn:'

def comparison_question(
    prompt:str,    # Text of a prompt row, earlier turns included
    principle:str, # A question that decides
    first:str,     # The answer at (A)
    second:str,    # The answer at (B)
)->str:
    "Write the question which of two answers is better, up to where the letter is due"
    dialogue = '\n\n'.join(f'{r.capitalize()}: {t}' for r,t in split_turns(prompt))
    return (f'This is a conversation between a human and an assistant.\n\n{dialogue}\n\n'
            f'{principle}\nOptions:\n (A) {first.strip()}\n (B) {second.strip()}')


# %%
comparisons = load_comparisons()
print(comparison_question('Is it far?', comparisons[2].text, 'Two miles.', 'Find out yourself.'))


# %% [markdown]
# ## Worked comparisons
#
# Each question begins with five worked comparisons of ours. If each always had the same principle, or
# the better answer always had the same letter, the model would learn that instead of the format. A
# prefix therefore draws a principle for each shot, and its letters are as balanced as five can be; the next
# prefix has them reversed. A row draws one of a few prefixes by its id, because a
# prefix that many rows share costs almost nothing.

# %%
#| export
@dataclass(frozen=True)
class WorkedComparison:
    "A comparison with its outcome"
    human:str
    better:str
    worse:str
    because:str = '' # Reasons, with {better} and {worse} for the letters

def load_worked_comparisons(
    path=None, # TOML with [[shot]] human, better, worse, because; default: ours
)->list[WorkedComparison]:
    "Load worked comparisons; a list of them is returned unchanged"
    if isinstance(path, (list, tuple)):
        return check_worked_examples(path, WorkedComparison, 'load_worked_comparisons')
    path = path or data_dir()/'constitution'/'feedback_shots.toml'
    required = ('human', 'better', 'worse')
    res = []
    for i,r in enumerate(read_toml(path).get('shot', []), 1):
        bad = [k for k in required if not isinstance(r.get(k), str) or not r[k].strip()]
        if bad: raise DataError(f'{path}: shot {i} lacks {", ".join(bad)}; add it.')
        res.append(WorkedComparison(*(r[k] for k in required), r.get('because', '')))
    return res

def _hash_number(*parts): # A 64-bit number that depends only on the parts
    return int.from_bytes(sha256('/'.join(map(str, parts)).encode()).digest()[:8], 'big')

def shot_turns(
    shots:list,          # `WorkedComparison`
    comparisons:list,    # Principles to draw from
    number:int=0,        # Which prefix
    seed:int=0,
    cot:bool=False,      # With their reasons as chains of thought
)->list:                 # (question, answer) pairs
    "Write worked comparisons with drawn principles and letters"
    rng = np.random.default_rng(_hash_number(seed, 'prefix', number//2))
    n = len(shots)
    first = rng.permutation(n)%2==number%2 # Is the better answer at (A)?
    res = []
    drawn = draw_principles(comparisons, n, seed, f'shots/{number}')
    for k,a in zip(rng.permutation(n), first):
        s = shots[k]
        letters = LETTERS if a else LETTERS[::-1]
        ab = (s.better, s.worse) if a else (s.worse, s.better)
        reasons = s.because.format(better=letters[0].strip(), worse=letters[1].strip())
        answer = f'{THINK} {reasons}\n\n{ANSWER}{letters[0]}' if cot else f'{ANSWER}{letters[0]}'
        res.append((comparison_question(s.human, drawn[k].text, *ab), answer))
    return res


# %%
shots = load_worked_comparisons()
print('\n\n'.join(map('\n\n'.join, shot_turns(shots[:2], comparisons, cot=True))))


# %% [markdown]
# Over many prefixes every principle is drawn equally often. The letters are balanced over all shots
# and at the last shot, which influences a model most.

# %%
def is_a(answer): return answer[-3:]=='(A)'


# %%
many = [shot_turns(shots, comparisons, k) for k in range(400)]
letters = np.array([[is_a(answer) for _,answer in m] for m in many])
by_text = {c.text: 0 for c in comparisons}
for m in many:
    for q,_ in m: by_text[next(t for t in by_text if t in q)] += 1
assert chisquare(list(by_text.values())).pvalue>.001
test_eq((letters.mean(), letters[:,-1].mean()), (.5, .5))
assert set(letters.sum(1))=={2, 3}
f'p = {chisquare(list(by_text.values())).pvalue:.2f}'


# %% [markdown]
# ## Questions of a row
#
# A row is asked under one principle, drawn by seed and id, or under all. With `swap` each question is asked in
# both orders.

# %%
#| export
def _unique_pairs(pairs):
    "Return pairs with an id each"
    rows = [dict(r, id=str(r.get('id', i))) for i,r in enumerate(load_pairs(pairs), 1)]
    ids = Counter(r['id'] for r in rows)
    double = next((k for k,n in ids.items() if n>1), None)
    if double: raise DataError(f'Two pairs have the same id {double[:60]!r}; give each its own.')
    return rows

class Labeller:
    "The questions about pairs, and how a model reads them"
    def __init__(self, lm, comparisons, shots, per, swap, cot, mode, seed, prefixes, **kw):
        self.lm = lm
        self.comparisons = comparisons
        self.per = per
        self.swap = swap
        self.cot = cot
        self.mode = mode
        self.seed = seed
        self.kw = kw
        n = prefixes if shots else 1
        self.prefixes = [shot_turns(shots, comparisons, k, seed, cot) for k in range(n)]

    def principles(self, row):
        "Return the principles that a row is asked under"
        if self.per=='all': return self.comparisons
        return draw_principles(self.comparisons, self.per, self.seed, row['id'])

    def orders(self, row):
        "Return the orders to ask in; False: a stands at (A)"
        if self.swap: return [False, True]
        return [bool(_hash_number(self.seed, row['id'], 'order')%2)]

    def questions(self, row):
        "Return the prompts of a row, by principle and order"
        k = _hash_number(self.seed, row['id'], 'front')%len(self.prefixes)
        return [self.prompt(self.prefixes[k], comparison_question(row['prompt'], p.text, *ab))
                for p in self.principles(row) for o in self.orders(row)
                for ab in [(row['a'], row['b'])[::-1 if o else 1]]]

    def prompt(self, prefix, question):
        "Render a question after worked comparisons"
        if self.mode=='plain' and not self.cot:
            parts = [f'{q}\n\n{s}' for q,s in prefix]+[f'{question}\n\n{ANSWER}']
            return '\n\n'+'\n\n\n'.join(parts)
        turns = [t for q,s in prefix for t in (('human', q), ('assistant', s))]
        return render(self.lm, [*turns, ('human', question)], THINK if self.cot else ANSWER,
                      self.mode)

    def letter_logprobs(self, rows):
        "Return log p of the letters for each row, [question, sample, letter]"
        by_row = [self.questions(r) for r in rows]
        questions = [q for x in by_row for q in x]
        if self.cot:
            keys = [f'{r["id"]}/{k}' for r,x in zip(rows, by_row) for k in range(len(x))]
            lp = self.logprobs_after_thought(questions, keys)
        else:
            kw = {k: self.kw[k] for k in ('engine', 'max_tokens')}
            lp = option_logprobs(self.lm, questions, list(LETTERS), **kw)[:,None]
        return np.split(lp, np.cumsum([len(x) for x in by_row])[:-1])

    def logprobs_after_thought(self, questions, keys):
        "Sample chains of thought and return log p of the letters after each"
        n = self.kw['samples']
        samples = sample(self.lm, [q for q in questions for _ in range(n)],
                         self.kw['max_new_tokens'], seed=self.seed,
                         keys=[f'{k}/{j}' for k in keys for j in range(n)],
                         after=[(f'\n\n{ANSWER}', LETTERS)]*len(questions)*n,
                         stop=['\n\nHuman:', ANSWER, '<|im_end|>'])
        return np.array([s.after for s in samples]).reshape(len(questions), n, 2)


# %% [markdown]
# ## From letters to a label
#
# Let $p(A\,|\,ab)$ be the probability of the letter (A) when answer $a$ stands there, and
# $p(A\,|\,ba)$ when $b$ does. A bias towards a letter adds to both, and
#
# $$p = \tfrac12\left(p(A\,|\,ab) + 1 - p(A\,|\,ba)\right)$$
#
# averages two probabilities of the same event, that $a$ is better. Means over principles
# and over chains of thought do the same. We average probabilities and not logits.
#
# After a chain of thought the model is nearly certain of its conclusion. The paper
# clamps such labels to $[.4, .6]$, which bounds the target margin of a preference model at
# $\log(.6/.4)$.

# %%
#| export
def clip_labels(
    p,
    clamp=(.4, .6), # Smallest and largest label; None: no bounds
):
    "Clip labels to bounds"
    return p if clamp is None else np.clip(p, *clamp)

def letter_probabilities(
    logprobs,  # [..., letter]
)->np.ndarray: # [...] probability of (A), of the two
    "Renormalise the probabilities of the two letters"
    d = np.asarray(logprobs)
    return 1/(1+np.exp(np.clip(d[...,1]-d[...,0], -700, 700)))

def combine_readings(
    logprobs,              # [principle x order, sample, letter]
    orders,                # Of each order: does b stand at (A)?
    clamp=None,
    clamp_each:bool=False, # Clamp every probability before averaging, not the average
)->tuple:                  # p, p(A|ab), p(A|ba), and p by principle
    "Combine the letter probabilities of a row into one label"
    lp = np.asarray(logprobs)
    A = letter_probabilities(lp).reshape(-1, len(orders), lp.shape[1])
    better = np.where(np.array(orders)[None,:,None], 1-A, A)
    if clamp_each: better = clip_labels(better, clamp)
    by_principle = better.mean((1, 2))
    by_order = {o: A[:,k].mean() for k,o in enumerate(orders)}
    return (float(clip_labels(by_principle.mean(), clamp)), by_order.get(False),
            by_order.get(True), by_principle)


# %%
bound = [float(np.log(c/(1-c))) for c in (.6, .8)]
test_close(bound, [.405465, 1.386294], 1e-6)
test_close(clip_labels(np.array([.01, .5, .99])), [.4, .5, .6])
bound

# %% [markdown]
# Clamping before averaging differs from clamping after it. Suppose that two of three chains of thought are nearly
# certain of $a$ and one of $b$. The mean is .66, clamped .6. Clamped one by one and then
# averaged it is $.53$. Neither changes which answer is preferred here, but the second is a majority vote
# and the first is not.

# %%
lp = np.log([[[.99, .01], [.99, .01], [.01, .99]]])
whole,each = (combine_readings(lp, [False], (.4, .6), e)[0] for e in (False, True))
test_close((whole, each), (.6, 1.6/3), 1e-9)
whole, round(each, 3)

# %% [markdown]
# By default the average is clamped, which is the paper's order for one chain of
# thought per label. Either way a label stays within its bounds, and clamping an average does not
# change its side of one half:

# %%
rng = np.random.default_rng(0)
for _ in range(200):
    lp = rng.normal(0, 3, (4, 3, 2))
    free,one,two = (combine_readings(lp, [False, True], c, e)[0] for c,e in
                    ((None, False), ((.4, .6), False), ((.4, .6), True)))
    assert .4<=min(one, two) and max(one, two)<=.6 and (free>.5)==(one>.5)


# %% [markdown]
# ## Labels
#
# Rows are read in blocks, all letters of a block in one call, so that the
# [prefix tree](../language/engine/20_prefix_tree.ipynb) covers everything they share. A pair of identical
# answers is labelled one half without a forward pass.

# %%
#| export
def _check_finite(rows, logprobs):
    for r,x in zip(rows, logprobs):
        if not np.isfinite(x).all():
            raise ModelError(f'The model gives no probability to the letters of {r["id"]!r}; '
                             'look at its weights and at the length of the pair.')
    return logprobs

def _label_row(row, lp, lab, clamp, clamp_each):
    "Return a pair with its label, from the letter log-probabilities"
    if lp is None: return dict(row, p=.5, p_ab=None, p_ba=None, principle='', mass=None,
                               flipped=False, asked=False, source='ai')
    names = [c.id for c in lab.principles(row)]
    p,ab,ba,by_principle = combine_readings(lp, lab.orders(row), clamp, clamp_each)
    res = dict(row, p=p, p_ab=ab, p_ba=ba, principle='+'.join(names), asked=True,
               mass=float(option_mass(np.asarray(lp)).mean()), source='ai',
               flipped=bool(lab.swap and (ab>.5)!=(ba<.5)))
    if len(names)>1: res['p_each'] = [float(x) for x in by_principle]
    return res

def _hash(x): return content_key(x=x)[:16]

@checked
def label(
    lm,                         # Labelling model: anything that `load` takes
    pairs,                      # Rows of id, prompt, a, b, or their file, as in `load_pairs`
    comparisons=None,           # Questions or a file, as in `load_comparisons`; default: ours
    *,
    principles_per_pair=1,      # Number drawn for each row, or 'all'
    swap:bool=True,             # Ask in both orders; False: in one, drawn by id
    cot:bool=False,             # Sample a chain of thought before the letter
    samples:int=1,              # Chains of thought per question
    clamp='auto',               # Bounds of a label; 'auto': (.4, .6) with `cot`, else None
    clamp_each:bool=False,      # Clamp each probability before averaging
    few_shot=None,              # Worked comparisons or their file, default: ours; [] for none
    prefixes:int=4,             # Number of drawn prefixes of worked comparisons
    mode:str='plain',           # As in `render`
    max_new_tokens:int=128,     # Of a chain of thought
    seed:int=0,
    block:int=256,              # Rows read in one call
    engine:str='auto', max_tokens:int=4096, # As in `option_logprobs`
    out=None,                   # Folder of a run that can be resumed
    progress=None,              # True: a bar; or a function (rows done, rows in all)
)->list: # The rows with p, p_ab, p_ba, principle, mass, flipped, asked
    "Label each pair with the probability that `a` is the better answer"
    rows = _unique_pairs(pairs)
    comparisons = load_comparisons(comparisons)
    shots = load_worked_comparisons(few_shot)
    clamp = ((.4, .6) if cot else None) if clamp=='auto' else clamp
    _check_arguments(principles_per_pair, clamp, samples, prefixes, mode, block)
    lm = load(lm)
    settings = dict(per=principles_per_pair, swap=swap, cot=cot, mode=mode, seed=seed,
                    prefixes=prefixes, samples=samples, max_new_tokens=max_new_tokens)
    lab = Labeller(lm, comparisons, shots, engine=engine, max_tokens=max_tokens, **settings)
    config = dict(settings, kind='label', model=lm.identity if out else '',
                  pairs=_hash(rows),
                  principles=_hash([asdict(c) for c in comparisons]),
                  few_shot=_hash([asdict(s) for s in shots]), block=block)
    todo = [r for r in rows if r['a'].strip()!=r['b'].strip()]
    with ((open_run(out, config) if out else nullcontext()) as run, run_or_temporary(run) as run,
          progress_callback(progress, 'label') as report):
        logprobs = _label_blocks(lab, todo, run, block, report)
        if out: run.finish()
    res = [_label_row(r, logprobs.get(r['id']), lab, clamp, clamp_each) for r in rows]
    _warn(res)
    return res

def _label_blocks(lab, todo, run, block, progress):
    "Return letter log-probabilities of all rows, finished rows from the run"
    blocks = [todo[i:i+block] for i in range(0, len(todo), block)]
    for n in run.blocks([[r['id'] for r in b] for b in blocks]):
        lp = _check_finite(blocks[n], lab.letter_logprobs(blocks[n]))
        run.put_many([(r['id'], dict(lp=x.tolist())) for r,x in zip(blocks[n], lp)])
        if progress: progress(min(len(todo), (n+1)*block), len(todo))
    return {r['id']: run.get(r['id'])['lp'] for r in todo}

def _check_arguments(per, clamp, samples, prefixes, mode, block):
    if mode not in modes: raise ConfigError(unknown_name_message('mode', mode, list(modes)))
    if per!='all' and not (isinstance(per, int) and per>0):
        raise ConfigError(f"principles_per_pair is {per!r}; give 1 or more, or 'all'.")
    if clamp is not None and not 0<=clamp[0]<=.5<=clamp[1]<=1:
        raise ConfigError(f'clamp is {clamp}; give bounds on both sides of one half.')
    if min(samples, prefixes, block)<1:
        raise ConfigError('samples, prefixes and block are 1 or more.')

LOW_MASS = .05

def _warn(res):
    low = sum(r['asked'] and r['mass']<LOW_MASS for r in res)
    if low: warnings.warn(f'{low} of {len(res)} labels rest on letters that the model hardly '
                          f'considers (mass below {LOW_MASS}).', stacklevel=4)


# %% [markdown]
# This stub judge prefers the longer answer and is biased towards the letter (A): the odds of (A)
# are the ratio of lengths, times two.

# %%
def judge(like=2.):
    def f(text):
        if not text.endswith('answer is:'): return {'': 1.}
        a,b = re.findall(r'\(A\) (\w+)\n \(B\) (\w+)', text)[-1]
        odds = like*len(a)/len(b)
        return {' (A)': .9*odds/(1+odds), ' (B)': .9/(1+odds)}
    return stub_model(f, 'counts-letters')

pairs = [dict(id=f'r{k}', prompt='Is it far?', a='x'*(k+3), b='y'*(9-k)) for k in range(7)]
got = label(judge(), pairs, few_shot=[])
pd.DataFrame(got)[['id', 'a', 'b', 'p', 'p_ab', 'p_ba', 'mass', 'flipped']].round(3)

# %%
for r in got:
    o = len(r['a'])/len(r['b'])
    test_close(r['p_ab'], 2*o/(1+2*o), 1e-4)
    test_close(r['p_ba'], 2/o/(1+2/o), 1e-4)
    test_close(r['mass'], .9, 1e-2)


# %% [markdown]
# Swap averaging makes labels antisymmetric, $p(a,b)+p(b,a)=1$, for any model. With random weights
# this holds with and without worked comparisons, and it fails without the swap.

# %%
def turned(pairs): return [dict(r, a=r['b'], b=r['a']) for r in pairs]
def ps(rows): return np.array([r['p'] for r in rows])

noisy = random_model()
asks = [dict(id=f'q{k}', prompt=f'How far is it to {t}?', a=f'It is {k} miles.', b='Look it up!')
        for k,t in enumerate(['Rome', 'Oslo', 'Bath', 'Riga', 'Kiel'])]
kw = dict(few_shot=shots[:1])
warnings.simplefilter('ignore')
sums = ps(label(noisy, asks, **kw))+ps(label(noisy, turned(asks), **kw))
one = ps(label(noisy, asks, swap=False, **kw))+ps(label(noisy, turned(asks), swap=False, **kw))
test_close(sums, np.ones(5), 1e-5)
assert abs(one-1).max()>1e-3
sums.round(6), one.round(3)


# %% [markdown]
# ## Reference implementation
#
# The reference scores each text by itself and adds up token log-probabilities, with one tokenizer that merges
# space, bracket and letter and one that does not. All ways of sharing prefixes agree with it.

# %%
@torch.inference_mode()
def slow(lm, text):
    res = []
    for l in LETTERS:
        full = encode(lm, text+l)
        ways = [encode(lm, text+x) for x in ('', *LETTERS)]
        n = next(k for k in range(len(full)) if len({tuple(w[:k+1]) for w in ways})>1)
        x = lm.model(torch.tensor([full])).logits[0].double().log_softmax(-1)
        res.append(sum(x[t-1, full[t]].item() for t in range(n, len(full))))
    return res

def labeller(lm, **kw):
    base = dict(per='all', swap=True, cot=False, mode='plain', seed=0, prefixes=2,
                engine='auto', max_tokens=4096)
    return Labeller(lm, comparisons[:2], shots[:1], **base|kw)

merges = [('Ġ','('), ('Ġ(','A'), ('A',')'), (':','Ġ')]
gaps = {}
for arch,m in (('llama', ()), ('llama', merges), ('qwen2', merges), ('gemma3', ())):
    lm = random_model(arch, merges=m)
    flat = [q for r in asks[:2] for q in labeller(lm).questions(r)]
    want = np.array([slow(lm, q) for q in flat])
    for e in ('auto', 'prefix', 'tree', 'cascade', 'padded'):
        read = np.concatenate(labeller(lm, engine=e).letter_logprobs(asks[:2]))[:,0]
        gaps[arch, bool(m), e] = abs(read-want).max()
assert max(gaps.values())<1e-4
f'largest difference in nats: {max(gaps.values()):.0e}'

# %% [markdown]
# Labels do not depend on the other rows, their order, or the size of a block. Principles
# follow from seed and id.

# %%
kw = dict(few_shot=shots[:1], prefixes=2)
want = label(noisy, asks, **kw)
test_close(ps(label(noisy, asks, block=2, max_tokens=600, **kw)), ps(want), 1e-5)
test_close(ps(label(noisy, asks[::-1], **kw))[::-1], ps(want), 1e-5)
test_close(ps(label(noisy, asks[1:2], **kw)), ps(want[1:2]), 1e-5)
test_eq([r['principle'] for r in label(noisy, asks[::-1], **kw)][::-1],
        [r['principle'] for r in want])
assert [r['principle'] for r in label(noisy, asks, seed=1, **kw)]!=[r['principle'] for r in want]

# %% [markdown]
# Over many rows the principles are drawn uniformly, with replacement where a row draws several: of
# rows with four draws from sixteen a third repeats one, as on the page of
# [principles](10_principles.ipynb).

# %%
lab = labeller(noisy, per=4)
lab.comparisons = comparisons
drawn = [[c.id for c in lab.principles(dict(id=f'row {k}'))] for k in range(3000)]
counts = pd.Series([i for d in drawn for i in d]).value_counts()
assert len(counts)==16 and chisquare(counts).pvalue>.001
repeat = np.mean([len(set(d))<4 for d in drawn])
assert abs(repeat-.333496)<3*(.222/3000)**.5
round(float(repeat), 3), round(float(chisquare(counts).pvalue), 3)


# %% [markdown]
# ## All principles
#
# With `principles_per_pair='all'` a row has a label under each principle, and their mean.

# %%
def follows(text):
    if not text.endswith('answer is:'): return {'': 1.}
    kind = 'never' in text.split('Options')[0]
    return {' (A)': .5 if kind else .8, ' (B)': .5 if kind else .2}

two = [Comparison('kind', 'Which would never hurt?'), Comparison('short', 'Which is shorter?')]
both, = label(stub_model(follows, 'follows'), asks[:1], two, principles_per_pair='all', swap=False,
              few_shot=[])
test_close(sorted(abs(np.array(both['p_each'])-.5)), [0, .3], 1e-2)
test_close(both['p'], np.mean(both['p_each']))
both['principle'], np.round(both['p_each'], 2)


# %% [markdown]
# ## Chain of thought
#
# This stub model decides for the shorter option in its chain of thought and is then nearly certain of it. The letters
# are read after the chain of thought, and the label is clamped.

# %%
def thinker(text):
    if text.endswith('turn:'): return {' The first one is longer.': .8, ' Both are fine.': .2}
    if text.endswith('answer is:'):
        sure = text.rsplit('turn:', 1)[1].startswith(' The')
        return {' (A)': .02 if sure else .5, ' (B)': .97 if sure else .5}
    return {'': 1.}

def thought(**kw): return label(stub_model(thinker, 'thinks'), asks, cot=True, few_shot=[],
                                swap=False, **kw)
pd.DataFrame({str(c): ps(thought(clamp=c)) for c in ('auto', (.2, .8), None)}).round(3)

# %%
assert abs(ps(thought())-.5).max()<=.1+1e-12
average = ps(thought(clamp=None, samples=5))
test_eq(ps(thought(samples=5)), clip_labels(average))
test_eq(ps(thought(samples=5, block=2)), clip_labels(average))
assert (abs(ps(thought(samples=5, clamp_each=True))-.5)<=abs(ps(thought(samples=5))-.5)+1e-12).all()
average.round(3)

# %% [markdown]
# In `chat` mode the same questions become turns of a template, including the worked comparisons.

# %%
test_close(ps(label(judge(1.), pairs, mode='chat', few_shot=[])),
           ps(label(judge(1.), pairs, few_shot=[])), 1e-4)


# %% [markdown]
# ## Label report
#
# Position bias is the mean probability of the letter (A) above one half. The flip rate is the
# share of pairs whose better answer changes when the two change places. A labeller with a high
# flip rate responds to letters rather than answers. Intervals resample prompts.

# %%
#| export
def label_report(
    labels:list, # From `label`
)->pd.Series:    # Counts and `Estimate`s
    "Summarise labels: counts, position bias, flip rate, mass, confidence, diversity"
    d = pd.DataFrame([r for r in labels if r.get('asked', True)])
    if not len(d): raise DataError('No pair was asked about: all answers are alike.')
    mean = lambda x: cluster_bootstrap(np.asarray(x, float), d.prompt.astype(str))
    res = dict(asked=len(d), same=len(labels)-len(d), low_mass=int((d.mass<LOW_MASS).sum()),
               mass=mean(d.mass), sure=mean(abs(d.p-.5)))
    if d.p_ab.notna().all() and d.p_ba.notna().all():
        res |= dict(position_bias=mean((d.p_ab+d.p_ba)/2-.5),
                    flips=wilson(int(d.flipped.sum()), len(d)))
    res['principles'] = len({i for x in d.principle for i in x.split('+')})
    if 'p_each' in d: res['spread'] = mean([np.std(x) for x in d.p_each])
    return pd.Series(res)


# %%
same = dict(id='same', prompt='Is it far?', a='No.', b='No. ')
got = label(judge(), [*pairs, same], few_shot=[])
test_eq((got[-1]['p'], got[-1]['asked']), (.5, False))
label_report(got).to_frame('counts-letters')

# %%
r = label_report(got)
test_eq((r.asked, r.same), (7, 1))
test_eq(r.flips.value, np.mean([x['flipped'] for x in got[:-1]]))
even = label_report(label(judge(1.), pairs[:3], few_shot=[]))
test_close(even.position_bias.value, 0, 1e-3)
test_eq(even.flips.value, 0)

# %% [markdown]
# ## Resuming
#
# A child process labels in blocks of two and is killed with signal 9 in between. The same call
# then loads the finished blocks and returns labels that are bitwise equal to those of an uninterrupted call.

# %%
rows = [dict(id=f'q{k}', prompt=f'How far is {k}?', a=f'{k} miles.', b='No.') for k in range(10)]
kw = dict(few_shot=[], block=2)
def die(done, n):
    if done>=4: os.kill(os.getpid(), signal.SIGKILL)

child, = start_ranks(lambda: label(noisy, rows, out=tmp/'killed', progress=die, **kw), 1)
child.join()
test_eq(child.exitcode, -signal.SIGKILL)
with open_run(tmp/'killed') as run: before = len(run)
test_eq(label(noisy, rows, out=tmp/'killed', **kw), label(noisy, rows, **kw))
assert 0<before<10
before

# %% [markdown]
# Invalid input raises an error.

# %%
broken = random_model()
for p in broken.model.parameters(): p.data.fill_(float('nan'))
with expect_fail(ModelError, contains='not finite'): label(broken, asks[:1], few_shot=[])
with expect_fail(DataError, contains='same id'): label(noisy, [asks[0], asks[0]])
with expect_fail(ConfigError, contains='worked examples'): label(noisy, asks, few_shot=['x'])
with expect_fail(DataError, contains='no text in b'): label(noisy, [dict(prompt='x', a='y')])
for bad,say in [(dict(clamp=(.6, .4)), 'clamp is'), (dict(comparisons=[]), 'no principles'),
                (dict(principles_per_pair='al'), "'all'"), (dict(mode='chatty'), "mean 'chat'?"),
                (dict(principles=['Be kind.']), "did you mean 'comparisons'?"),
                (dict(samples=0), 'samples, prefixes and block'), ({}, "no model 'no-such'")]:
    with expect_fail(ConfigError, contains=say): label('no-such', asks, **bad)
one = dict(few_shot=[], progress=lambda *x: None)
test_eq(label((noisy.model, noisy.tokenizer), pd.DataFrame(asks[:2]), ['Be brief.'], **one),
        label(noisy, asks[:2], load_comparisons(['Be brief.']), **one))
with expect_fail(DataError, contains='alike'): label_report(label(noisy, [same]))
warnings.simplefilter('always')
with warnings.catch_warnings(record=True) as said: label(noisy, asks, few_shot=[])
assert 'hardly considers' in str(said[-1].message)
str(said[-1].message)
