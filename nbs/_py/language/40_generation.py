# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Generation
#
# > Sampled answers depend on their own seed and prompt, and not on the other prompts of a call.

# %%
#| default_exp language.generation

# %%
#| export
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np, torch

from moral_sc.foundation.arguments import checked
from moral_sc.foundation.errors import ConfigError, ModelError, short_repr
from moral_sc.foundation.progress import progress_callback
from moral_sc.foundation.runs import content_key
from moral_sc.language.chat import Prompt, encode_after, encode_prompt
from moral_sc.language.models import LM, decode, eos_ids, pad
from moral_sc.language.engine.batching import (batches, cache_kwargs, check_rows,
                                               forward_accepts, has_plain_lm_head, hidden_states,
                                               lm_head_logits, merge_prefixes)
from moral_sc.language.engine.contexts import inference
from moral_sc.language.engine.continuous_batching import (ContinuousBatch, common_prefix_length,
                                                          generation_size, run_static_batch)
from moral_sc.language.engine.kv_cache import preallocated_cache
from moral_sc.language.scoring import option_logprobs, tokenize_options

# %%
#| hide
import os, signal, tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

from fastcore.test import *
from moral_sc.foundation.runs import open_run, start_ranks
from moral_sc.language.loading import load
from moral_sc.language.models import encode
from moral_sc.language.stub_models import prefix_space_tokenizer, random_model, stub_model
from moral_sc.language.scoring import next_token_logprobs, token_logprobs
from moral_sc.language.weights import cached_weights


# %% [markdown]
# A run that is killed after 700 of 1,000 answers should end with the same 1,000 answers as one that
# is not, and an answer should not change because the list has one more prompt. With one random
# stream for all rows neither holds, because the order in which rows finish decides which numbers
# they draw. Here every row has a stream of its own.
#
# ## Random numbers
#
# Step $t$ of a row consumes one uniform number $u_t$. The seed of the call and the row's key fix
# the whole sequence. Two conditions with the same keys share their random numbers, which reduces
# the noise of their difference; give other keys where you do not want this.

# %%
#| export
def noise(
    seed:int,  # Of the call
    key:str,   # Of the row
    n:int,     # Steps
)->np.ndarray: # [n] uniform in [0, 1)
    "Draw the random numbers of one row, one a step"
    h = blake2b(f'{seed}\0{key}'.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(h))).random(n)


# %%
test_eq(noise(0, 'age/12', 3), noise(0, 'age/12', 256)[:3])
noise(0, 'age/12', 3), noise(0, 'age/13', 3), noise(1, 'age/12', 3)


# %% [markdown]
# ## Sampling a token
#
# A token is chosen by inverting the cumulative distribution at $u$. That takes one number a step,
# not one for each word of the vocabulary. `top_p` keeps the smallest set of tokens with at least
# this probability [@holtzman2020].

# %%
#| export
def _nucleus(p, top_p):
    q,i = p.topk(min(512, p.shape[-1]))
    if (q.sum(-1)<top_p).any(): q,i = p.sort(descending=True)
    q = torch.where(q.cumsum(-1)-q<top_p, q, 0) # Depends on the mass before a token
    return torch.zeros_like(p).scatter_(-1, i, q)

def sample_token(
    logits,          # [row, vocab]
    u,               # [row] uniform in [0, 1)
    temperature=1.,  # 0: the most likely token
    top_p=1.,        # Sample from the most likely tokens with this much probability
)->torch.Tensor:     # [row] token ids
    "Sample one token a row"
    if temperature==0: return logits.argmax(-1)
    p = (logits.float()/temperature).softmax(-1)
    c = (_nucleus(p, top_p) if top_p<1 else p).cumsum(-1, dtype=torch.float64)
    at = torch.as_tensor(u, device=c.device)[:,None]*c[:,-1:]
    return torch.searchsorted(c, at, right=True)[:,0].clamp(max=p.shape[-1]-1)


# %%
x = torch.tensor([.5, .3, .15, .05]).log()
us = (np.arange(10_000)+.5)/10_000
def share(**kw):
    got = sample_token(x.expand(len(us), 4), us, **kw)
    return got.bincount(minlength=4).numpy()/len(us)

test_close(share(), [.5, .3, .15, .05], 1e-6)
test_close(share(top_p=.75), [.625, .375, 0, 0], 1e-3)
{k: share(**{k: v}).round(2).tolist() for k,v in [('temperature', .5), ('top_p', .9)]}


# %% [markdown]
# ## State of a row
#
# Stop strings are text, and tokens do not respect them: `\n\nHuman:` may be two tokens or five, and
# its first letters may be the end of a longer token. The text is therefore checked after every
# token and cut at the stop. All sampled ids are kept, with the number of those that lie before the
# cut.

# %%
#| export
@dataclass(frozen=True)
class Sample:
    "One continuation of one prompt"
    text:str        # Up to the stop string or the EOS token
    ids:tuple       # Every sampled token, those of stop and EOS included
    finish:str      # 'stop', 'eos' or 'length'
    seed:int        # Of the call; with the row's key it fixes the random numbers
    kept:int        # Number of leading ids that lie inside `text`
    rest:str=''     # The end of `text` after those ids
    logprobs:tuple=() # Of each token, at temperature 1 and without `top_p`, or tempered
    after:tuple=()    # Log-probabilities of the options of the next turn
    values:tuple=()   # Of each token: the value head's output at the state it was drawn from

    def __repr__(self):
        return f'Sample({self.text!r}, {len(self.ids)} tokens, {self.finish})'


# %%
#| export
class GenerationRow:
    "A row under way: its prompt, its random numbers and the tokens so far"
    def __init__(self, lm, prompt, noise, stop, eos, next_turn=None):
        self.lm = lm
        self.prompt = prompt
        self.prompt_ids = prompt.ids
        self.noise = noise
        self.stop = stop
        self.eos = eos
        self.next_turn = next_turn # Its text and the options to score there
        self.scores = None
        self.context = list(prompt.ids[-8:]) # Some decoders treat a first token differently
        self.n_context = len(decode(lm, self.context))
        self.ids = []
        self.logprobs = []
        self.finish = None
        self.text = ''
        self.values = []

    def is_unscored(self): return self.finish and self.next_turn and self.scores is None

    def decode(self, n=None):
        "The text of the first `n` sampled tokens"
        return decode(self.lm, self.context+self.ids[:n])[self.n_context:]

    def push(self, token):
        "Append a token; return whether the row continues"
        self.ids.append(token)
        if token in self.eos: self.finish,self.text = 'eos', self.decode(-1)
        else:
            self.text = self.decode()
            hits = [k for k in map(self.text.find, self.stop) if k>=0]
            if hits: self.finish,self.text = 'stop', self.text[:min(hits)]
            elif len(self.ids)==len(self.noise): self.finish = 'length'
        return self.finish is None

    def sample(self, seed):
        n = len(self.ids)-(self.finish=='eos')
        while n and not self.text.startswith(self.decode(n)): n -= 1
        rest = self.text[len(self.decode(n)):] if n else self.text
        return Sample(self.text, tuple(self.ids), self.finish, seed, n, rest,
                      tuple(self.logprobs), tuple(self.scores or ()), tuple(self.values))


# %% [markdown]
# ## Scoring the next turn
#
# If an answer is asked for after the model has reasoned, the reasoning need not be run again: its
# keys and values are in the cache. The few tokens of the next turn are run behind them before
# the row gives up its place. A cut inside a row leaves columns that are masked from then on;
# models with a sliding window would count them, so there the whole text is run again.

# %%
#| export
def _next_prompts(lm, rows):
    "Prompts that ask for the next turn of each row, and its options"
    prompts = [append_turn(lm, r.prompt, r.sample(0), r.next_turn[0]) for r in rows]
    return prompts,[r.next_turn[1] for r in rows]

def _score_from_scratch(lm, rows):
    rows = [r for r in rows if r.is_unscored()]
    if not rows: return
    for r,x in zip(rows, option_logprobs(lm, *_next_prompts(lm, rows))): r.scores = x.tolist()

def _plan_suffixes(lm, prompts, options, cached):
    "Tokens to run behind cached rows, and reads: (run, position, row, option, id)"
    runs = []
    reads = []
    for k,(p,o) in enumerate(zip(prompts, options)):
        ids,n = tokenize_options(lm, p, o)
        c = min(p.n_fixed, cached[k], n-1)
        merged,owner = merge_prefixes([x[:-1] for x in ids])
        reads += [(len(runs)+owner[j], t-1-c, k, j, x[t]) for j,x in enumerate(ids)
                  for t in range(n, len(x))]
        runs += [(k, c, x[c:]) for x in merged]
    return runs,reads

def _score_from_cache(lm, batch, at):
    "[row, option] log-probabilities of the next turns of the rows at these places"
    prompts,options = _next_prompts(lm, [batch.rows[i] for i in at])
    runs,reads = _plan_suffixes(lm, prompts, options, batch.mask[at].sum(1).tolist())
    k,c,suffixes = zip(*runs)
    places = torch.tensor([at[i] for i in k], device=lm.device)
    c = torch.tensor(c, device=lm.device)[:,None]
    ids,new = pad(suffixes, 'left', lm.device)
    old = batch.mask[places]
    mask = torch.cat([old*(old.cumsum(1)<=c), new], 1)
    kw = dict(input_ids=ids, attention_mask=mask,
              **cache_kwargs(lm.model, batch.copy_cache(places, ids.shape[1])))
    if forward_accepts(lm.model, 'position_ids'):
        kw['position_ids'] = (c+new.cumsum(1)-1).clamp(min=0)
    spots = sorted({r[:2] for r in reads})
    r,t = torch.tensor([(i, j+ids.shape[1]-len(suffixes[i])) for i,j in spots]).T
    x = lm_head_logits(lm, hidden_states(lm, **kw).last_hidden_state[r,t]) \
        if has_plain_lm_head(lm) else lm.model(**kw).logits[r,t]
    lp = x.double().log_softmax(-1)
    line = {s:n for n,s in enumerate(spots)}
    res = np.zeros((len(prompts), len(options[0])))
    for i,j,row,o,token in reads: res[row,o] += lp[line[i,j],token].item()
    return res

def _score_next_turns(batch):
    "Score the next turn of rows that have finished"
    at = [i for i,r in enumerate(batch.rows) if r.is_unscored()]
    if not at: return
    if batch.windowed: _score_from_scratch(batch.lm, [batch.rows[i] for i in at])
    else:
        scores = _score_from_cache(batch.lm, batch, at)
        for i,x in zip(at, scores): batch.rows[i].scores = x.tolist()


# %% [markdown]
# ## Generating a group of rows
#
# [Continuous batching](engine/80_continuous_batching.ipynb) gives the place of a finished row to a
# new one, as soon as an eighth of the batch is free.

# %%
#| export
@torch.inference_mode()
def _generate(lm, rows, batch_size, choose):
    "Generate rows, at most `batch_size` at a time"
    if preallocated_cache(lm) is None: return generate_static(lm, rows, batch_size, choose)
    todo = list(rows)
    batch = ContinuousBatch(lm, choose, common_prefix_length(lm, rows))
    group = max(1, batch_size//8)
    while todo or batch.unfinished():
        unfinished = batch.unfinished()
        free = len(batch.rows)-len(unfinished)
        if not batch.rows or (todo and free>=group):
            n = free if batch.rows else batch_size
            _score_next_turns(batch)
            batch.admit(todo[:n])
            todo = todo[n:]
        elif not todo and free>=max(1, len(batch.rows)//4):
            _score_next_turns(batch)
            batch.keep(unfinished)
        else: batch.step()
    _score_next_turns(batch)

def generate_static(lm, rows, batch_size, choose):
    "Generate rows in batches that begin and end together"
    for n in range(0, len(rows), batch_size):
        group = rows[n:n+batch_size]
        run_static_batch(lm, group, choose)
        _score_from_scratch(lm, group)


# %%
#| export
def _check_logits(logits):
    if logits.numel() and torch.isnan(logits.amax(-1)).any():
        raise ModelError('The logits of a text are not finite: the weights hold NaN, or overflow '
                         "in this number type; load the model with dtype='float32'.")

def token_chooser(temperature, top_p, logprobs=False, values=None):
    "Make the function that samples a token for each row and appends it"
    scale = temperature if logprobs=='tempered' else 1.
    def choose(rows, logits, states):
        open_rows = [i for i,r in enumerate(rows) if not r.finish]
        _check_logits(logits if len(open_rows)==len(rows) else logits[open_rows])
        u = np.zeros(len(rows))
        u[open_rows] = [rows[i].noise[len(rows[i].ids)] for i in open_rows]
        tokens = sample_token(logits, u, temperature, top_p)
        if logprobs:
            lp = (logits.double()/scale).log_softmax(-1).gather(-1, tokens[:,None])[:,0].tolist()
            for i in open_rows: rows[i].logprobs.append(lp[i])
        if values:
            v = values(states).tolist()
            for i in open_rows: rows[i].values.append(v[i])
        for i,t in zip(open_rows, tokens[open_rows].tolist()): rows[i].push(t)
        return tokens
    return choose


# %% [markdown]
# ## Sampling answers
#
# A matrix product rounds differently for four rows than for five, and once in some hundred thousand
# tokens this changes a sampled token. The composition of batches therefore depends on the whole
# list of prompts and not on the prompts that are left. The list is divided into groups of four
# batches. A resumed call makes the same groups, skips the complete ones and repeats the others.

# %%
#| export
@checked
def sample(
    lm,                     # An `LM`, from `load`
    prompts:list,           # Strings or `Prompt`s
    max_new_tokens:int=256,
    temperature:float=1.,   # 0: always the most likely token
    top_p:float=1.,         # Sample from the most likely tokens with this much probability
    stop=(),                # Strings that end an answer, wherever token boundaries fall
    seed:int=0,
    keys:list=None,         # Unique names of the rows; default: their numbers
    run=None,               # A `Run`: rows that it contains are not sampled again
    progress=None,          # True: a bar; or a function (rows done, rows in all)
    batch:int=32,           # Rows side by side, at most
    max_tokens:int=32768,   # Rows times (prompt + new tokens), at most
    logprobs=False,         # Keep log-probabilities: True at temperature 1, 'tempered' as sampled
    values=None,            # Value head, [row, width] -> [row]: keep its output at each state
    after:list=None,        # For each prompt (text of the next turn, options to score there)
)->list:                    # One `Sample` a prompt, in order
    "Sample an answer to each prompt; it depends on seed, key and prompt alone"
    keys = [str(k) for k in (range(len(prompts)) if keys is None else keys)]
    check_sampling_args(prompts, keys, max_new_tokens, temperature, top_p, logprobs)
    if min(batch, max_tokens)<1: raise ConfigError('sample: batch and max_tokens are 1 or more.')
    _check_values(lm, values, run)
    prompts = [encode_prompt(lm, p) for p in prompts]
    eos = eos_ids(lm)
    stop = stop_strings(stop)
    after = [None]*len(prompts) if after is None else [(t, list(o)) for t,o in after]
    if len(after)!=len(prompts) or not all(a is None or a[1] for a in after):
        raise ConfigError('sample: after needs a text and its options for each prompt.')
    extra = [len(lm.tokenizer(a[0]+a[1][0]).input_ids) for a in after if a]
    if prompts:
        check_rows(lm, [p.ids for p in prompts],
                             max_new_tokens+max(extra, default=0), keys)
    options = dict(new=max_new_tokens, temperature=temperature, top_p=top_p, stop=stop,
                   seed=seed, logprobs=logprobs, model=lm.identity if run is not None else '')
    names = [content_key(sample=k, ids=p.ids, **options, **(dict(after=a) if a else {}))
             for k,p,a in zip(keys, prompts, after)]
    samples = [None if run is None else sample_from_record(run.get(n)) for n in names]
    choose = token_chooser(temperature, top_p, logprobs, values)
    sizes = [len(p.ids)+max_new_tokens for p in prompts]
    groups = batches(sizes, 4*max_tokens, 4*batch)
    todo = range(len(groups)) if run is None \
        else run.blocks([[names[i] for i in g] for g in groups])
    with progress_callback(progress, 'texts') as report:
        for n in todo:
            g = groups[n]
            rows = [GenerationRow(lm, prompts[i], noise(seed, keys[i], max_new_tokens), stop,
                                  eos, after[i]) for i in g]
            with torch.inference_mode(), inference(lm.model, **generation_size(rows)):
                _generate(lm, rows, min(batch, max(1, max_tokens//sizes[g[0]])), choose)
            for i,r in zip(g, rows): samples[i] = samples[i] or r.sample(seed)
            if run is not None:
                run.put_many([(names[i], sample_record(keys[i], samples[i])) for i in g])
            if report: report(sum(s is not None for s in samples), len(samples))
    if run is None: return samples
    return [sample_from_record(run.get(n)) for n in names] # Some may be another process's


# %%
#| export
def sample_record(key, s)->dict:
    "Turn a sample into a record of a run"
    return dict(row=key, **s.__dict__)

def sample_from_record(record):
    "Turn a record of a run into a sample; None stays None"
    if not record: return None
    fields = {k: x for k,x in record.items() if k!='row'}
    return Sample(**{k: tuple(x) if isinstance(x, list) else x for k,x in fields.items()})

def check_sampling_args(prompts, keys, n, temperature, top_p, logprobs=False):
    "Refuse arguments of `sample` that are out of range"
    if logprobs not in (False, True, 'tempered'):
        raise ConfigError(f"sample: logprobs is {logprobs!r}; give True, False or 'tempered'.")
    if len(keys)!=len(prompts) or len(set(keys))<len(keys):
        raise ConfigError(f'sample: {len(keys)} keys for {len(prompts)} prompts, or two keys '
                          'alike; '
                          'give one key a prompt, no two alike.')
    if n<1: raise ConfigError(f'sample: max_new_tokens is {n}; give 1 or more.')
    if logprobs=='tempered' and not (temperature>0 and top_p==1):
        raise ConfigError('sample: tempered log-probabilities need a temperature above 0 and '
                          'top_p 1.')
    if temperature and not 1e-6<=temperature<float('inf'): # Logits over less overflow
        raise ConfigError(f'sample: temperature is {temperature}; give 0, or a number from 1e-6.')
    if not 0<top_p<=1:
        raise ConfigError(f'sample: top_p is {top_p}; give a number in (0, 1].')

def stop_strings(
    stop, # A string, several, or None
)->list:
    "Return the texts that end an answer as a list"
    stop = [stop] if isinstance(stop, (str, int)) else list(stop or ())
    if not all(isinstance(s, str) and s for s in stop):
        raise ConfigError(f'sample: stop is {short_repr(stop)}; give strings that are not empty.')
    return stop

def _check_values(lm, values, run):
    if values and not has_plain_lm_head(lm):
        raise ConfigError(
            f'The hidden states of {lm.name} are not available; sample without values.')
    if values and run is not None:
        raise ConfigError('sample: values change with their head; sample without a run.')


# %%
given = {'yes, I': .25, 'yes': .25, 'no': .5}
talk = stub_model(lambda text: given if text[-1:]==':' else {'': 1.})
answers = sample(talk, ['Assistant:']*400, max_new_tokens=20)
count = Counter(s.text for s in answers)
answers[0], count

# %% [markdown]
# ## Proof
#
# The stub model's probabilities are 0.25, 0.25 and 0.5. Pearson's chi-squared test does not reject
# them for these 400 answers. Nor does it reject a random model's own distribution over 261 tokens
# for 2,000 sampled first tokens, at temperature 1 and at 0.7.

# %%
from scipy.stats import chisquare

p_stub = chisquare([count[k] for k in ('yes, I','yes','no')], [100, 100, 200]).pvalue
tiny = random_model('llama')
def p_tokens(temperature, n=2000):
    got = sample(tiny, ['Well, ']*n, 1, temperature, seed=1, batch=500)
    p = np.exp(next_token_logprobs(tiny, ['Well, '])[0]/temperature)
    want = n*p/p.sum()
    counts = np.bincount([s.ids[0] for s in got], minlength=len(p))
    rare = want<5
    def fold(a): return [*a[~rare], a[rare].sum()]
    return chisquare(fold(counts), fold(want)).pvalue

pvalues = [p_stub, p_tokens(1.), p_tokens(.7)]
assert min(pvalues)>.001
np.round(pvalues, 3)

# %% [markdown]
# Batches of one and of many give the same answers, for rows of different length and on four
# architectures.

# %%
texts = ['Once', 'The answer, as everybody knows, is', 'x'*60, 'A', 'Well then:']
for arch in ('llama','neox','qwen2','gemma3'):
    lm = random_model(arch)
    together = sample(lm, texts, 30, seed=3)
    test_eq(together, [sample(lm, [t], 30, seed=3, keys=[k])[0] for k,t in enumerate(texts)])
    test_eq(together, sample(lm, texts, 30, seed=3, batch=2))
[len(s.ids) for s in together] # Rows that drew EOS are shorter

# %% [markdown]
# At temperature 0 every token is the most likely one. The log-probabilities of sampled tokens,
# which policy gradients rest on, are those that scoring finds afterwards.

# %%
greedy, = sample(tiny, ['Well, '], 12, temperature=0, logprobs=True)
ids = encode(tiny, 'Well, ')
for t in greedy.ids:
    test_eq(t, next_token_logprobs(tiny, [Prompt('', tuple(ids))])[0].argmax())
    ids.append(t)
warm = sample(tiny, texts, 20, temperature=.7, logprobs=True)
again = token_logprobs(tiny, [encode(tiny, t)+list(s.ids) for t,s in zip(texts, warm)],
                       [len(encode(tiny, t)) for t in texts])
gap = max(np.abs(a-s.logprobs).max() for a,s in zip(again, warm))
assert gap<1e-5
f'{gap:.0e}'

# %% [markdown]
# Reinforcement learning needs log-probabilities under the distribution that was sampled from,
# temperature included, and the output of the trainer's value head at each hidden state.

# %%
from torch import nn
from moral_sc.language.reward_head import answer_outputs
critic = nn.Sequential(nn.Linear(64, 1), nn.Flatten(0))
rows = sample(tiny, texts, 20, .7, logprobs='tempered', values=critic)
test_eq([s.ids for s in rows], [s.ids for s in warm])
ids = [encode(tiny, t) for t in texts]
with torch.no_grad():
    lp,mask,h,_ = answer_outputs(tiny.model, [[*a, *s.ids] for a,s in zip(ids, rows)],
                              [len(a) for a in ids], .7)
    want = critic(h[mask])
test_close(lp[mask], np.concatenate([s.logprobs for s in rows]), 1e-5)
test_close(want, np.concatenate([s.values for s in rows]), 1e-4)
with expect_fail(ConfigError, contains='top_p 1'):
    sample(tiny, texts, 4, .7, .9, logprobs='tempered')

# %% [markdown]
# A stop string is found wherever it falls. This stub model writes one letter at a time:

# %%
writer = stub_model(lambda text: {' so be it. And then': 1.} if text[-1:]==':' else {'': 1.})
s, = sample(writer, ['Well:'], 30, stop=['. A', 'zebra'])
test_eq((s.text, s.finish), (' so be it', 'stop'))
s, s.kept

# %% [markdown]
# Here the stop string begins inside a token. The text is cut inside `it`. The ids before that token
# lie inside the text, and `rest` is the part of the token before the cut.

# %%
pairs = random_model('qwen2', merges=[('i','t'), ('b','e')])
row = GenerationRow(pairs, encode_prompt(pairs, 'Well:'), np.zeros(9), ['t and'], set())
for t in encode(pairs, 'be it and'):
    if not row.push(t): break
cut = row.sample(0)
test_eq((cut.text, cut.rest), ('be i', 'i'))
[decode(pairs, [t]) for t in cut.ids], cut.kept, cut.rest


# %% [markdown]
# ## Appending a turn
#
# To ask the next question, the sampled *ids* go into the prompt, not their text. Tokenised again,
# the same text can become other tokens, and the model would continue something that it did not
# generate. Only the part of a token before a cut is tokenised again.

# %%
#| export
def append_turn(
    lm:LM,
    p,          # The `Prompt` or string that was sampled from
    s:Sample,
    text:str,   # Of the next turn, '\n\nHuman: So which is it?\n\nAssistant:'
)->Prompt:
    "Make a prompt that continues a sample by its ids"
    p = encode_prompt(lm, p)
    ids = (*p.ids, *s.ids[:s.kept])
    tail = s.rest+text
    before = p.text+s.text[:len(s.text)-len(s.rest)]
    new = encode_after(lm, before, [tail])[0] if tail else []
    return Prompt(p.text+s.text+text, (*ids, *new), len(ids), tail)


# %%
q = append_turn(pairs, 'Well:', cut, '\n\nAssistant: (')
odd = Sample('it', tuple(encode(pairs, 'i')+encode(pairs, 't')), 'length', 0, 2)
test_eq(q.text, 'Well:be i\n\nAssistant: (')
test_eq(decode(pairs, q.ids), q.text)
test_ne(append_turn(pairs, 'x', odd, ' (').ids, encode_prompt(pairs, 'xit (').ids) # i and t, not it
option_logprobs(pairs, [append_turn(pairs, 'x', odd, ' ('), 'xit ('], ['a', 'b']).round(2)

# %% [markdown]
# Behind a thought stand the tokens of the whole text, for a tokenizer that puts a space before each
# text as well.

# %%
for kind in ('prepend', 'always', 'first'):
    spaced = random_model('llama', tokenizer=prefix_space_tokenizer(kind))
    prompt = '\n\nHuman: Go?\n\nAssistant:'
    ids = tuple(encode_after(spaced, prompt, [' Yes, so'])[0])
    thought = Sample(' Yes, so', ids, 'length', 0, 7)
    thought = replace(thought, kept=len(thought.ids))
    q = append_turn(spaced, prompt, thought, '\n\nHuman: So?')
    test_eq(list(q.ids), encode(spaced, q.text))
    turn = append_turn(spaced, prompt, thought, '\n\n(')
    rows,_ = tokenize_options(spaced, turn, ['Yes', ' Yes'])
    test_eq(rows, encode(spaced, [prompt+' Yes, so\n\n('+o for o in ('Yes', ' Yes')]))
spaced.tokenizer.convert_ids_to_tokens(q.ids[q.n_fixed:])

# %% [markdown]
# You can also give the next turn and its options to `sample` as `after`. Then they are scored
# while the reasoning is still in the cache. Both ways agree, for rows that end at different times,
# in a batch that is smaller than their number, after cuts inside a row, and with sliding windows.

# %%
turn = '\n\nAssistant: ('
options = ['a', 'b', ' very']
for arch in ('llama','neox','qwen2','gemma3'):
    lm = random_model(arch)
    after = [(turn, options)]*len(texts)
    samples = sample(lm, texts, 30, seed=3, batch=2, stop='a', after=after)
    prompts = [append_turn(lm, t, s, turn) for t,s in zip(texts, samples)]
    scores = option_logprobs(lm, prompts, options)
    test_close([s.after for s in samples], scores, 1e-4)
samples[0], np.round(samples[0].after, 2)

# %% [markdown]
# A model whose cache holds more than keys and values gets static batches, with the same result.

# %%
original = preallocated_cache
preallocated_cache = lambda lm: None
static = sample(lm, texts, 30, seed=3, batch=2, stop='a', after=after)
preallocated_cache = original
test_eq([s.ids for s in static], [s.ids for s in samples])
test_close([s.after for s in static], scores, 1e-4)

# %% [markdown]
# ## Shared prefixes
#
# Worked examples at the beginning of all prompts are run once. The answers are those of rows that
# are run alone, also for rows that are admitted late, are longer than those before them, or have
# their next turn scored; log-probabilities differ by rounding.

# %%
shots = 'One worked example, and another one, and one more: '
worked = [shots+t for t in texts]+[shots+'z'*90, shots+'?']
for arch in ('llama', 'neox', 'qwen2', 'qwen3'):
    lm = random_model(arch)
    kw = dict(seed=3, logprobs=True)
    single = [sample(lm, [t], 12, keys=[k], after=[(turn, options)], **kw)[0]
              for k,t in enumerate(worked)]
    for b in (2, 32):
        together = sample(lm, worked, 12, batch=b, after=[(turn, options)]*7, **kw)
        test_eq([s.ids for s in together], [s.ids for s in single])
        test_close(np.concatenate([s.logprobs for s in together]),
                   np.concatenate([s.logprobs for s in single]), 1e-5)
        test_close([s.after for s in together], [s.after for s in single], 1e-4)
rows = [GenerationRow(lm, encode_prompt(lm, t), np.zeros(9), [], set()) for t in worked]
[common_prefix_length(*x) for x in ((lm, rows), (lm, rows[:1]), (random_model('gemma3'), rows))]

# %% [markdown]
# In fifty random sets of prompts, some a prefix of others, the common prefix is found, and
# log-probabilities after it are those without prefix caching; in float64, where rounding hides
# less.

# %%
rng = np.random.default_rng(0)
gap = 0
lm.model.double()
for _ in range(50):
    prefix = rng.integers(5, 200, rng.integers(32, 64)).tolist()
    tails = [rng.integers(5, 200, rng.integers(1, 9)).tolist() for _ in range(4)]
    ps = [Prompt('', tuple(prefix+t)) for t in tails]
    rows = [GenerationRow(lm, p, np.zeros(1), [], set()) for p in ps]
    n = common_prefix_length(lm, rows)
    logprobs = []
    assert n>=len(prefix)
    def choose(rows, x, h): logprobs.append(x.log_softmax(-1)); return x.argmax(-1)
    with torch.inference_mode():
        for k in (n, 0): ContinuousBatch(lm, choose, k).run_prompts(rows)
    gap = max(gap, (logprobs[0]-logprobs[1]).abs().max().item())
assert gap<1e-5
f'{gap:.0e}'

# %% [markdown]
# ## Resuming a killed run
#
# A forked process samples 40 rows into a run, four at a time, and is killed with signal 9 after
# some of them. The same call finds the finished groups and samples the rest. The result is that
# of a call without interruption.

# %%
lm = random_model('qwen2')
rows = [f'Row {i}:' for i in range(40)]
def die(done, n):
    if done>=12: os.kill(os.getpid(), signal.SIGKILL)

with tempfile.TemporaryDirectory() as d:
    def killed():
        with open_run(d, dict(seed=5)) as run:
            sample(lm, rows, 20, seed=5, run=run, batch=4, progress=die)
    child, = start_ranks(killed, 1)
    child.join()
    test_eq(child.exitcode, -signal.SIGKILL)
    with open_run(d, dict(seed=5)) as run:
        before = len(run)
        resumed = sample(lm, rows, 20, seed=5, run=run, batch=4)
        test_eq(sample(lm, rows, 20, seed=5, run=run, batch=4), resumed)
test_eq(resumed, sample(lm, rows, 20, seed=5, batch=4))
assert 0<before<40
f'{before} rows were there, {40-before} were sampled'

# %% [markdown]
# A run stores what determined each row, so another seed, prompt or temperature does not find old
# rows by mistake.

# %%
with tempfile.TemporaryDirectory() as d, open_run(d, {}) as run:
    a,b = (sample(lm, ['Row:'], 20, seed=k, run=run) for k in (0,1))
    test_ne(a, b)
    test_eq(len(run), 2)
with expect_fail(ConfigError, contains='alike'): sample(lm, ['x','y'], keys=['k','k'])
with expect_fail(ConfigError, contains='top_p'): sample(lm, ['x'], top_p=0)
for wrong in ([''], [5], '', 3):
    with expect_fail(ConfigError, contains='not empty'): sample(lm, ['x'], stop=wrong)
test_eq(sample(lm, ['x'], max_new_tokens=2, stop=None), sample(lm, ['x'], max_new_tokens=2))
with expect_fail(ConfigError, contains='A text is empty'): sample(lm, [''])
broken = random_model('llama')
with torch.no_grad(): broken.model.model.norm.weight[0] = float('nan')
for temperature in (0, 1):
    with expect_fail(ModelError, contains='not finite'):
        sample(broken, ['x'], 2, temperature=temperature)
with expect_fail(ConfigError, contains="The text 'long' has 2256 tokens, but the context"):
    sample(lm, ['x', 'x'*2000], 256, keys=['short', 'long'])
faults = [(dict(logprobs='always'), "give True, False or 'tempered'"),
          (dict(seed=-1), 'seed is -1'), (dict(temperature=1e-40), 'give 0, or a number from 1e-6'),
          (dict(temperature=float('inf')), 'temperature is inf'),
          (dict(prompts='x'), 'give a list'),
          (dict(after=[]), 'for each prompt'), (dict(after=[('So?', [])]), 'for each prompt'),
          (dict(num_return_sequences=2), "no argument 'num_return_sequences'"),
          (dict(temp=1), "did you mean 'temperature'?"), (dict(batch=0), 'batch and max_tokens')]
for bad,message in faults:
    with expect_fail(ConfigError, contains=message): sample(lm, **dict(prompts=['x']) | bad)

# %% [markdown]
# ## On a real model
#
# Rows of SmolLM2 are the same alone and in a batch, if its weights are on this machine.

# %%
name = 'smollm2-135m-instruct'
real = load(name, 'float32', 'cpu') if cached_weights(name) else None
things = 'fruit', 'very large animal'
prompts = [f'\n\nHuman: Name one {w}.\n\nAssistant:' for w in things]
if real:
    samples = sample(real, prompts, 6, stop='\n\nHuman:', seed=2)
    test_eq(samples, [sample(real, [a], 6, stop='\n\nHuman:', seed=2, keys=[k])[0]
                   for k,a in enumerate(prompts)])
[s.text for s in samples] if real else f'{name} is not in the cache: left out here.'
