# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Sampling
#
# > Text from a model, where each row depends on its own seed and on nothing around it.

# %%
#| default_exp language.generation

# %%
#| export
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b

import numpy as np, torch

from moral_sc.foundation.errors import ConfigError
from moral_sc.foundation.runs import content_key
from moral_sc.language.chat import Prompt, encode_prompt
from moral_sc.language.models import LM, decode, eos_ids, pad
from moral_sc.language.engine.weight_packing import DECODE_STEP_TOKENS, prepacked_weights
from moral_sc.language.engine.onednn import onednn
from moral_sc.language.engine.batching import (batches, check_context_length, lm_head_logits, hidden_states, merge_prefixes, has_plain_lm_head, forward_accepts,
                                       cache_kwargs)
from moral_sc.language.scoring import tokenize_options, option_logprobs
from moral_sc.language.engine.prefix_tree import shared_prefix

# %%
#| hide
import os, signal, subprocess, sys, tempfile, time
from collections import Counter
from pathlib import Path

from fastcore.test import *
from moral_sc.foundation.runs import open_run
from moral_sc.language.loading import load
from moral_sc.language.models import encode
from moral_sc.language.stub_models import stub_model, random_model
from moral_sc.language.scoring import next_token_logprobs, token_logprobs
from moral_sc.language.weights import cached_weights


# %% [markdown]
# A run that was killed after 700 of 1,000 answers should end with the same 1,000 answers as one
# that was not, and an answer should not change because another prompt was added to the list. With
# one random stream for all rows neither holds: who finishes first decides who draws what. Here
# every row has a stream of its own.
#
# ## Noise by name
#
# Step $t$ of a row consumes one uniform number $u_t$, and the whole sequence is fixed by the
# seed of the call and the row's key. Two conditions asked with the same keys share their noise,
# which makes the difference between them less noisy; give other keys where that is not wanted.

# %%
#| export
def noise(
    seed:int,  # Of the call
    key:str,   # Of the row
    n:int,     # Steps
)->np.ndarray: # [n] uniform in [0, 1)
    "The random numbers of one row, one a step"
    h = blake2b(f'{seed}\0{key}'.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(h))).random(n)


# %%
test_eq(noise(0, 'age/12', 3), noise(0, 'age/12', 256)[:3])
noise(0, 'age/12', 3), noise(0, 'age/13', 3), noise(1, 'age/12', 3)


# %% [markdown]
# A token is chosen by inverting the cumulative distribution at $u$: one number a step, and no
# draw for each word of the vocabulary. `top_p` keeps the smallest set of tokens that reaches
# that mass [@holtzman2020].

# %%
#| export
def _nucleus(p, top_p):
    q,i = p.topk(min(512, p.shape[-1]))
    if (q.sum(-1)<top_p).any(): q,i = p.sort(descending=True)
    q = torch.where(q.cumsum(-1)-q<top_p, q, 0) # Decided by the mass before a token
    return torch.zeros_like(p).scatter_(-1, i, q)

def sample_token(
    logits,          # [row, vocab]
    u,               # [row] uniform in [0, 1)
    temperature=1.,  # 0: the likeliest token
    top_p=1.,        # Among the likeliest tokens that have this much mass
)->torch.Tensor:     # [row] token ids
    "One token a row"
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
# ## One row
#
# Stop strings are text, and tokens do not respect them: `\n\nHuman:` may come as two tokens or
# as five, and its first letters may sit at the end of a longer one. So the text is looked at
# after every token, and cut at the stop. The sampled ids are all kept, together with the number
# of them that lie wholly before the cut.

# %%
#| export
@dataclass(frozen=True)
class Sample:
    "One continuation of one prompt"
    text:str        # Without the stop string, or the EOS token, and what follows
    ids:tuple       # Every sampled token, those of stop and EOS included
    finish:str      # 'stop', 'eos' or 'length'
    seed:int        # Of the call; with the row's key it fixes the noise
    kept:int        # So many leading ids lie wholly inside `text`
    rest:str=''     # The end of `text` after those ids
    logprobs:tuple=() # Of each token, at temperature 1 and with nothing cut off
    after:tuple=()    # Log-probabilities of the options that were asked about next
    values:tuple=()   # Of each token: what a head made of the hidden state it was drawn from

    def __repr__(self):
        return f'Sample({self.text!r}, {len(self.ids)} tokens, {self.finish})'


# %%
#| export
class _Row:
    "A row under way"
    def __init__(self, lm, p, u, stop, eos, after=None):
        self.lm = lm
        self.p = p
        self.u = u
        self.stop = stop
        self.eos = eos
        self.after = after
        self.scores = None
        self.before = list(p.ids[-8:]) # Some decoders treat a first token differently
        self.skip = len(decode(lm, self.before))
        self.ids = []
        self.logps = []
        self.finish = None
        self.text = ''
        self.values = []

    def open(self): return self.finish and self.after and self.scores is None

    def said(self, n=None): return decode(self.lm, self.before+self.ids[:n])[self.skip:]

    def push(self, t):
        "Add a token; True if the row goes on"
        self.ids.append(t)
        if t in self.eos: self.finish,self.text = 'eos', self.said(-1)
        else:
            self.text = self.said()
            hits = [k for k in map(self.text.find, self.stop) if k>=0]
            if hits: self.finish,self.text = 'stop', self.text[:min(hits)]
            elif len(self.ids)==len(self.u): self.finish = 'length'
        return self.finish is None

    def sample(self, seed):
        n = len(self.ids)-(self.finish=='eos')
        while n and not self.text.startswith(self.said(n)): n -= 1
        rest = self.text[len(self.said(n)):] if n else self.text
        return Sample(self.text, tuple(self.ids), self.finish, seed, n, rest,
                      tuple(self.logps), tuple(self.scores or ()), tuple(self.values))


# %% [markdown]
# ## Side by side
#
# Rows grow side by side in one cache, padded on the left, so that all of them grow at the same
# place. When some have ended, the next ones come in: they are read by themselves and their
# keys and values are written where the ended ones were. Without that a batch lasts as long as its
# longest row, and most of it stands idle; and a cache that is joined anew at every step, as
# transformers' own is, is copied at every step.

# %%
#| export
@cache
def _layer():
    from transformers.cache_utils import DynamicLayer
    class Roomy(DynamicLayer):
        "Keys and values in a tensor with room to grow"
        def update(self, k, v, *args, **kw):
            old = self.get_seq_length() if self.is_initialized else 0
            n = old+k.shape[2]
            if not self.is_initialized: self.put(k, v, n); return k,v
            if n>self.k.shape[2]: self.put(self.keys, self.values, n)
            self.k[:,:,old:n] = k
            self.v[:,:,old:n] = v
            self.keys,self.values = self.k[:,:,:n],self.v[:,:,:n]
            return self.keys,self.values

        def put(self, k, v, n, room=64):
            "Make these the contents, with room for `n` columns and some"
            self.lazy_initialization(k, v)
            new = lambda x: x.new_empty(*x.shape[:2], n+room, x.shape[3])
            self.k = new(k)
            self.v = new(v)
            c = k.shape[2]
            self.k[:,:,:c] = k
            self.v[:,:,:c] = v
            self.keys,self.values = self.k[:,:,:c],self.v[:,:,:c]

        def full(self): return self.keys.shape[2]==self.k.shape[2]
    return Roomy

def preallocated_cache(lm):
    "An empty cache with room, or None if this model keeps more than keys and values"
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
    kinds = {type(x) for x in DynamicCache(config=lm.model.config).layers}
    if kinds-{DynamicLayer, DynamicSlidingWindowLayer}: return
    c = DynamicCache()
    c.layer_class_to_replicate = _layer()
    return c

def _copies(lm, cache, n, room):
    "A cache of `n` rows that hold what the only row of another holds"
    c = preallocated_cache(lm)
    for a in cache.layers:
        c.layers.append(_layer()())
        c.layers[-1].put(a.keys.expand(n, -1, -1, -1), a.values.expand(n, -1, -1, -1),
                         a.keys.shape[2], room)
    return c


# %% [markdown]
# A `_Deck` holds the rows under way. All of its columns are shared: `mask` tells which of them
# belong to a row, and `pos` how long each row is.
#
# Prompts often begin alike. The worked examples in front of a request for critique are two
# thousand tokens, and the request is a hundred. What all rows of a group begin with is its `stem`:
# it is read once, and its keys and values are copied in front of every row. A model that looks
# back a fixed number of columns would count the padding behind the stem, and reads all of it.

# %%
#| export
def _next(lm, cache, ids, mask, pos):
    "Logits [row, vocab] after the last token, and the hidden states they come from"
    kw = dict(input_ids=ids, attention_mask=mask, **cache_kwargs(lm.model, cache))
    if forward_accepts(lm.model, 'position_ids'): kw['position_ids'] = pos
    if has_plain_lm_head(lm):
        h = hidden_states(lm, **kw).last_hidden_state[:,-1]
        return lm_head_logits(lm, h),h
    if forward_accepts(lm.model, 'logits_to_keep'): kw['logits_to_keep'] = 1
    return lm.model(**kw).logits[:,-1],None

def _windowed(lm): return getattr(lm.model.config, 'sliding_window', None) is not None

def _stem(lm, rows, least=32):
    "How many ids all rows begin with; 0 where it does not pay, or cannot be used"
    if len(rows)<2 or _windowed(lm) or not forward_accepts(lm.model, 'position_ids'): return 0
    ids = [r.p.ids for r in rows]
    n = min(shared_prefix(min(ids), max(ids)), min(map(len, ids))-1)
    return n if n>=least else 0

class _Deck:
    "Rows side by side, and their cache"
    def __init__(self, lm, pick, stem=0):
        self.lm = lm
        self.pick = pick
        self.rows = []
        self.stem = stem
        self.begun = None
        self.windowed = _windowed(lm)

    def begin(self, row):
        "Read the ids that all rows begin with"
        ids = torch.tensor([row.p.ids[:self.stem]], device=self.lm.device)
        self.begun,pos = preallocated_cache(self.lm),torch.arange(self.stem, device=self.lm.device)[None]
        _next(self.lm, self.begun, ids, torch.ones_like(ids), pos)

    def read(self, rows):
        "Cache, mask, places and next tokens of new rows"
        n = self.stem
        if n and self.begun is None: self.begin(rows[0])
        ids,mask = pad([list(r.p.ids[n:]) for r in rows], 'left', self.lm.device)
        pos = (n+mask.cumsum(-1)-1).clamp(min=0)
        mask = torch.nn.functional.pad(mask, (n, 0), value=1)
        cache = _copies(self.lm, self.begun, len(rows), ids.shape[1]) if n else preallocated_cache(self.lm)
        return cache,mask,pos[:,-1],self.pick(rows, *_next(self.lm, cache, ids, mask, pos))

    def live(self): return [i for i,r in enumerate(self.rows) if not r.finish]
    def free(self): return [i for i,r in enumerate(self.rows) if r.finish]

    def admit(self, rows):
        "Read new rows and give them the places of ended ones, or new places"
        cache,mask,pos,last = self.read(rows)
        if not self.rows:
            self.rows = rows
            self.cache = cache
            self.mask = mask
            self.pos = pos
            self.last = last
            return
        self.widen(mask.shape[1]-self.mask.shape[1])
        free = torch.tensor(self.free()[:len(rows)], device=mask.device)
        for i,r in zip(free.tolist(), rows): self.rows[i] = r
        n = mask.shape[1]
        self.mask[free] = 0
        self.mask[free,-n:] = mask
        for a,b in zip(self.cache.layers, cache.layers):
            a.keys[free,:,-n:] = b.keys
            a.values[free,:,-n:] = b.values
        self.pos[free] = pos
        self.last[free] = last

    def widen(self, n):
        "At least `n` columns more on the left"
        if n<=0: return
        self.mask = torch.nn.functional.pad(self.mask, (n, 0))
        wide = lambda x: torch.nn.functional.pad(x, (0, 0, n, 0))
        for a in self.cache.layers:
            k = wide(a.keys)
            v = wide(a.values)
            a.put(k, v, k.shape[2])

    def cut(self, keep):
        "Keep these rows only, and no column that none of them uses"
        keep = torch.tensor(keep, device=self.mask.device)
        lo = int((self.mask[keep].cumsum(1)==0).sum(1).min())
        self.rows = [self.rows[i] for i in keep.tolist()]
        self.mask,self.pos,self.last = self.mask[keep,lo:],self.pos[keep],self.last[keep]
        for a in self.cache.layers:
            a.put(a.keys[keep,:,lo:], a.values[keep,:,lo:], a.keys.shape[2]-lo)

    def copy(self, place, room):
        "A cache of the rows at these places"
        c = preallocated_cache(self.lm)
        for a in self.cache.layers:
            c.layers.append(_layer()())
            c.layers[-1].put(a.keys[place], a.values[place], a.keys.shape[2], room)
        return c

    def close(self):
        "Ask what comes after the rows that have ended"
        at = [i for i,r in enumerate(self.rows) if r.open()]
        if not at: return
        if self.windowed: _reread(self.lm, [self.rows[i] for i in at])
        else:
            for i,x in zip(at, _behind(self.lm, self, at)): self.rows[i].scores = x.tolist()

    def step(self):
        "One token for each row under way"
        if self.cache.layers[0].full(): self.cut(range(len(self.rows)))
        live = torch.tensor([not r.finish for r in self.rows], device=self.mask.device)
        self.mask = torch.cat([self.mask, live[:,None].long()], 1)
        self.pos = self.pos+live
        self.last = self.pick(self.rows, *_next(self.lm, self.cache, self.last[:,None],
                                                self.mask, self.pos[:,None]))


# %% [markdown]
# ## What comes after
#
# Where the answer is asked for after the model has thought, its thought need not be read again:
# its keys and values are there. The few tokens of the next turn are run behind them before the
# place is given away. A cut in the middle of a thought leaves columns that are hidden from
# then on; models that look back a fixed number of columns would miscount there, and are asked by
# reading everything again.

# %%
#| export
def _asks(lm, rows):
    "Prompt and options that come after each of these rows"
    prompts = [append_turn(lm, r.p, r.sample(0), r.after[0]) for r in rows]
    return prompts,[r.after[1] for r in rows]

def _reread(lm, rows):
    rows = [r for r in rows if r.open()]
    if not rows: return
    for r,x in zip(rows, option_logprobs(lm, *_asks(lm, rows))): r.scores = x.tolist()

def _plan(lm, prompts, options, held):
    "Tokens to run behind what rows hold, and reads: (run, place, row, option, id)"
    runs = []
    reads = []
    for k,(p,o) in enumerate(zip(prompts, options)):
        full,n = tokenize_options(lm, p, o)
        c = min(p.n_fixed, held[k], n-1)
        kept,owner = merge_prefixes([x[:-1] for x in full])
        reads += [(len(runs)+owner[j], t-1-c, k, j, x[t]) for j,x in enumerate(full)
                  for t in range(n, len(x))]
        runs += [(k, c, x[c:]) for x in kept]
    return runs,reads

def _behind(lm, deck, at):
    "[row, option] log-probabilities of what comes after the rows at these places"
    ps,options = _asks(lm, [deck.rows[i] for i in at])
    runs,reads = _plan(lm, ps, options, deck.mask[at].sum(1).tolist())
    k,c,tails = zip(*runs)
    place = torch.tensor([at[i] for i in k], device=lm.device)
    c = torch.tensor(c, device=lm.device)[:,None]
    ids,new = pad(tails, 'left', lm.device)
    seen = deck.mask[place]
    mask = torch.cat([seen*(seen.cumsum(1)<=c), new], 1)
    kw = dict(input_ids=ids, attention_mask=mask,
              **cache_kwargs(lm.model, deck.copy(place, ids.shape[1])))
    if forward_accepts(lm.model, 'position_ids'):
        kw['position_ids'] = (c+new.cumsum(1)-1).clamp(min=0)
    spots = sorted({r[:2] for r in reads})
    r,t = torch.tensor([(i, j+ids.shape[1]-len(tails[i])) for i,j in spots]).T
    x = lm_head_logits(lm, hidden_states(lm, **kw).last_hidden_state[r,t]) if has_plain_lm_head(lm) \
        else lm.model(**kw).logits[r,t]
    lp = x.double().log_softmax(-1)
    at_spot = {s:n for n,s in enumerate(spots)}
    res = np.zeros((len(ps), len(options[0])))
    for i,j,row,o,token in reads: res[row,o] += lp[at_spot[i,j],token].item()
    return res


# %%
#| export
def work(rows): return sum(len(r.p.ids) for r in rows)+DECODE_STEP_TOKENS*max(len(r.u) for r in rows)

@torch.inference_mode()
def _flow(lm, rows, batch, pick):
    "Sample rows, at most `batch` at a time"
    todo = list(rows)
    deck = _Deck(lm, pick, _stem(lm, rows))
    some = max(1, batch//8)
    while todo or deck.live():
        live = deck.live()
        idle = len(deck.rows)-len(live)
        if not deck.rows or (todo and idle>=some):
            n = idle if deck.rows else batch
            deck.close(); deck.admit(todo[:n]); todo = todo[n:]
        elif not todo and idle>=max(1, len(deck.rows)//4): deck.close(); deck.cut(live)
        else: deck.step()
    deck.close()

@torch.inference_mode()
def _together(lm, rows, batch, pick):
    "The same for models that `roomy` cannot serve: groups that begin and end together"
    from transformers import DynamicCache
    for n in range(0, len(rows), batch):
        on = rows[n:n+batch]
        ids,mask = pad([list(r.p.ids) for r in on], 'left', lm.device)
        cache = DynamicCache(config=lm.model.config)
        pos = (mask.cumsum(-1)-1).clamp(min=0)
        while not all(r.finish for r in on):
            ids = pick(on, *_next(lm, cache, ids, mask, pos))[:,None]
            pos = pos[:,-1:]+1
            mask = torch.cat([mask, torch.ones_like(ids)], 1)
        _reread(lm, on)


# %%
#| export
def _picker(temperature, top_p, logprobs, values):
    "Choose a token a row, and push it with what is to be kept of it"
    at = temperature if logprobs=='tempered' else 1.
    def pick(rows, x, h):
        on = [i for i,r in enumerate(rows) if not r.finish]
        u = np.zeros(len(rows))
        u[on] = [rows[i].u[len(rows[i].ids)] for i in on]
        new = sample_token(x, u, temperature, top_p)
        if logprobs:
            lp = (x.double()/at).log_softmax(-1).gather(-1, new[:,None])[:,0].tolist()
            for i in on: rows[i].logps.append(lp[i])
        if values:
            v = values(h).tolist()
            for i in on: rows[i].values.append(v[i])
        for i,t in zip(on, new[on].tolist()): rows[i].push(t)
        return new
    return pick


# %% [markdown]
# Which rows sit together, and who comes in when, follows from the whole list of prompts and not
# from what is still to do. That matters because a matrix product rounds differently for four
# rows than for five, and once in some hundred thousand tokens such a difference tips a choice. The
# list is cut into groups of four batches; a resumed call rebuilds the groups of the call that was
# cut off, passes over those that are complete, and repeats the others whole.

# %%
#| export
def sample(
    lm:LM,
    prompts:list,           # Strings or `Prompt`s
    max_new_tokens:int=256,
    temperature:float=1.,   # 0: always the likeliest token
    top_p:float=1.,         # Among the likeliest tokens that have this much mass
    stop=(),                # Strings that end an answer, wherever token boundaries fall
    seed:int=0,
    keys:list=None,         # Names of the rows, no two alike; default: their numbers
    run=None,               # A `Run`: rows it holds are not sampled again
    progress=None,          # Called with (rows done, rows in all)
    batch:int=32,           # Rows side by side, at most
    max_tokens:int=32768,   # Rows times (prompt + new tokens), at most
    logprobs:bool|str=False,# Keep that of every sampled token: True at temperature 1, 'tempered'
    values=None,            # A head, [row, width] -> [row]: keep what it makes of each state
    after:list=None,        # A prompt's next turn and the options to score there, as pairs
)->list:                    # One `Sample` a prompt, in order
    "Continue each prompt; a row depends on seed, key and prompt alone"
    keys = [str(k) for k in (range(len(prompts)) if keys is None else keys)]
    _check_args(prompts, keys, max_new_tokens, temperature, top_p, logprobs)
    if values and not has_plain_lm_head(lm):
        raise ConfigError(f'{lm.name} does not show its hidden states; sample without values.')
    if values and run is not None:
        raise ConfigError('sample: values change with their head; sample without a run.')
    ps = [encode_prompt(lm, p) for p in prompts]
    eos = eos_ids(lm)
    stop = [stop] if isinstance(stop, str) else list(stop)
    after = [None]*len(ps) if after is None else [(t, list(o)) for t,o in after]
    more = [len(lm.tokenizer(a[0]+a[1][0]).input_ids) for a in after if a]
    if ps: check_context_length(lm, [p.ids for p in ps], max_new_tokens+max(more, default=0))
    how = dict(new=max_new_tokens, temperature=temperature, top_p=top_p, stop=stop,
               seed=seed, logprobs=logprobs, model=[lm.name, lm.source, str(lm.dtype)])
    names = [content_key(sample=k, ids=p.ids, **how, **(dict(after=a) if a else {}))
             for k,p,a in zip(keys, ps, after)]
    res = [None if run is None else _unpack(run.get(n)) for n in names]
    pick = _picker(temperature, top_p, logprobs, values)
    flow = _together if preallocated_cache(lm) is None else _flow
    sizes = [len(p.ids)+max_new_tokens for p in ps]
    groups = batches(sizes, 4*max_tokens, 4*batch)
    todo = range(len(groups)) if run is None else run.blocks([[names[i] for i in g] for g in groups])
    for n in todo:
        g = groups[n]
        u = [noise(seed, keys[i], max_new_tokens) for i in g]
        rows = [_Row(lm, ps[i], v, stop, eos, after[i]) for i,v in zip(g, u)]
        with torch.inference_mode(), prepacked_weights(lm.model, work(rows)), onednn(lm.model):
            flow(lm, rows, min(batch, max(1, max_tokens//sizes[g[0]])), pick)
        for i,r in zip(g, rows): res[i] = res[i] or r.sample(seed)
        if run is not None: run.put_many([(names[i], _pack(keys[i], res[i])) for i in g])
        if progress: progress(sum(s is not None for s in res), len(res))
    if run is not None: res = [_unpack(run.get(n)) for n in names] # Some may be another process's
    return res


# %%
#| export
def _pack(key, s): return dict(row=key, **s.__dict__)

def _unpack(d):
    if not d: return
    d = {k: tuple(v) if isinstance(v, list) else v for k,v in d.items() if k!='row'}
    return Sample(**d)

def _check_args(prompts, keys, n, temperature, top_p, logprobs=False):
    if isinstance(prompts, str): raise ConfigError('sample: give a list of prompts.')
    if len(keys)!=len(prompts) or len(set(keys))<len(keys):
        raise ConfigError('sample: give one key a prompt, no two alike.')
    if n<1: raise ConfigError(f'sample: max_new_tokens is {n}; give 1 or more.')
    if logprobs=='tempered' and not (temperature>0 and top_p==1):
        raise ConfigError('sample: tempered log-probabilities need a temperature above 0 and '
                          'top_p 1.')
    if temperature<0:
        raise ConfigError(f'sample: temperature is {temperature}; give 0 or more.')
    if not 0<top_p<=1:
        raise ConfigError(f'sample: top_p is {top_p}; give a number in (0, 1].')


# %%
given = {'yes, I': .25, 'yes': .25, 'no': .5}
talk = stub_model(lambda text: given if text[-1:]==':' else {'': 1.})
answers = sample(talk, ['Assistant:']*400, max_new_tokens=20)
count = Counter(s.text for s in answers)
answers[0], count

# %% [markdown]
# ## Proof
#
# The oracle's probabilities are 0.25, 0.25 and 0.5. Pearson's statistic of these 400 answers is
# what chance allows, and so is that of 2,000 first tokens of a random model against its own
# distribution over 261 tokens, at temperature 1 and at 0.7.

# %%
from scipy.stats import chisquare

p_oracle = chisquare([count[k] for k in ('yes, I','yes','no')], [100, 100, 200]).pvalue
tiny = random_model('llama')
def p_tokens(temperature, n=2000):
    got = sample(tiny, ['Well, ']*n, 1, temperature, seed=1, batch=500)
    p = np.exp(next_token_logprobs(tiny, ['Well, '])[0]/temperature)
    want = n*p/p.sum()
    seen = np.bincount([s.ids[0] for s in got], minlength=len(p))
    few = want<5
    fold = lambda a: [*a[~few], a[few].sum()]
    return chisquare(fold(seen), fold(want)).pvalue

pvalues = [p_oracle, p_tokens(1.), p_tokens(.7)]
assert min(pvalues)>.001
np.round(pvalues, 3)

# %% [markdown]
# A batch of one equals a batch of many, for rows of different length, on four families of
# architectures.

# %%
texts = ['Once', 'The answer, as everybody knows, is', 'x'*60, 'A', 'Well then:']
for arch in ('llama','neox','qwen2','gemma3'):
    lm = random_model(arch)
    many = sample(lm, texts, 30, seed=3)
    test_eq(many, [sample(lm, [t], 30, seed=3, keys=[k])[0] for k,t in enumerate(texts)])
    test_eq(many, sample(lm, texts, 30, seed=3, batch=2))
[len(s.ids) for s in many] # Rows that drew EOS left early

# %% [markdown]
# Temperature 0 is the likeliest token at every step, and the log-probabilities kept on the way
# are those that scoring finds afterwards: what policy gradients will rest on.

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
# Reinforcement learning needs the log-probability under the distribution that was really sampled
# from, temperature and all, and what a head of the learner's makes of each hidden state.

# %%
from torch import nn
from moral_sc.language.reward_head import answer_hidden
critic = nn.Sequential(nn.Linear(64, 1), nn.Flatten(0))
rows = sample(tiny, texts, 20, .7, logprobs='tempered', values=critic)
test_eq([s.ids for s in rows], [s.ids for s in warm])
asks = [encode(tiny, t) for t in texts]
with torch.no_grad():
    lp,on,h,_ = answer_hidden(tiny.model, [[*a, *s.ids] for a,s in zip(asks, rows)],
                              [len(a) for a in asks], .7)
    want = critic(h[on])
test_close(lp[on], np.concatenate([s.logprobs for s in rows]), 1e-5)
test_close(want, np.concatenate([s.values for s in rows]), 1e-4)
with expect_fail(ConfigError, contains='top_p 1'):
    sample(tiny, texts, 4, .7, .9, logprobs='tempered')

# %% [markdown]
# A stop string is found wherever it falls. Here it is looked for while an oracle writes one
# letter at a time:

# %%
writer = stub_model(lambda text: {' so be it. And then': 1.} if text[-1:]==':' else {'': 1.})
s, = sample(writer, ['Well:'], 30, stop=['. A', 'zebra'])
test_eq((s.text, s.finish), (' so be it', 'stop'))
s, s.kept

# %% [markdown]
# And here it begins in the middle of a token. The text is cut inside `it`; of the ids those up
# to that token are inside the text, and `rest` is what the cut left of it.

# %%
pairs = random_model('qwen2', merges=[('i','t'), ('b','e')])
row = _Row(pairs, encode_prompt(pairs, 'Well:'), np.zeros(9), ['t and'], set())
for t in encode(pairs, 'be it and'):
    if not row.push(t): break
cut = row.sample(0)
test_eq((cut.text, cut.rest), ('be i', 'i'))
[decode(pairs, [t]) for t in cut.ids], cut.kept, cut.rest


# %% [markdown]
# ## Going on after a sample
#
# To ask the next question, the sampled *ids* go into the prompt, not the text: tokenised again,
# the same text can fall into other tokens, and the model would be asked about something it
# did not say. Only what the cut left of a token is tokenised anew.

# %%
#| export
def append_turn(
    lm:LM,
    p,          # The `Prompt` or string that was sampled from
    s:Sample,   # What was said
    text:str,   # What comes next, '\n\nHuman: So which is it?\n\nAssistant:'
)->Prompt:
    "A prompt that continues a sample by its ids"
    p = encode_prompt(lm, p)
    ids = (*p.ids, *s.ids[:s.kept])
    tail = s.rest+text
    more = lm.tokenizer(tail, add_special_tokens=False).input_ids if tail else []
    return Prompt(p.text+s.text+text, (*ids, *more), len(ids), tail)


# %%
q = append_turn(pairs, 'Well:', cut, '\n\nAssistant: (')
odd = Sample('it', tuple(encode(pairs, 'i')+encode(pairs, 't')), 'length', 0, 2)
test_eq(q.text, 'Well:be i\n\nAssistant: (')
test_eq(decode(pairs, q.ids), q.text)
test_ne(append_turn(pairs, 'x', odd, ' (').ids, encode_prompt(pairs, 'xit (').ids) # i and t, not it
option_logprobs(pairs, [append_turn(pairs, 'x', odd, ' ('), 'xit ('], ['a', 'b']).round(2)

# %% [markdown]
# The other way to the same numbers is to name the next turn and its options beforehand, as
# `after`. Then they are scored while the thought is still in the cache. The two ways agree, for
# rows that end at different times and in a batch that is smaller than their number, also where
# the cut leaves tokens over and where attention looks back only so far.

# %%
turn = '\n\nAssistant: ('
options = ['a', 'b', ' very']
for arch in ('llama','neox','qwen2','gemma3'):
    lm = random_model(arch)
    asked = [(turn, options)]*len(texts)
    said = sample(lm, texts, 30, seed=3, batch=2, stop='a', after=asked)
    then = [append_turn(lm, t, s, turn) for t,s in zip(texts, said)]
    slow = option_logprobs(lm, then, options)
    test_close([s.after for s in said], slow, 1e-4)
said[0], np.round(said[0].after, 2)

# %% [markdown]
# A model whose cache holds more than keys and values gets plain batches, to the same effect.

# %%
best = preallocated_cache
preallocated_cache = lambda lm: None
again = sample(lm, texts, 30, seed=3, batch=2, stop='a', after=asked)
preallocated_cache = best
test_eq([s.ids for s in again], [s.ids for s in said])
test_close([s.after for s in again], slow, 1e-4)

# %% [markdown]
# ## What all begin with
#
# Worked examples in front are read once for all rows. The rows are those that are read one by
# one, beginning and all, also where rows come in late, are longer than those before them, or are
# asked what comes next; the log-probabilities differ by rounding.

# %%
shots = 'One worked example, and another one, and one more: '
worked = [shots+t for t in texts]+[shots+'z'*90, shots+'?']
for arch in ('llama', 'neox', 'qwen2', 'qwen3'):
    lm = random_model(arch)
    kw = dict(seed=3, logprobs=True)
    for b in (2, 32):
        many = sample(lm, worked, 30, batch=b, after=[(turn, options)]*7, **kw)
        each = [sample(lm, [t], 30, keys=[k], after=[(turn, options)], **kw)[0]
                for k,t in enumerate(worked)]
        test_eq([s.ids for s in many], [s.ids for s in each])
        test_close(np.concatenate([s.logprobs for s in many]),
                   np.concatenate([s.logprobs for s in each]), 1e-5)
        test_close([s.after for s in many], [s.after for s in each], 1e-4)
rows = [_Row(lm, encode_prompt(lm, t), np.zeros(9), [], set()) for t in worked]
_stem(lm, rows), _stem(lm, rows[:1]), _stem(random_model('gemma3'), rows)

# %% [markdown]
# Two hundred random sets of prompts, some the beginning of others, have the stem that was planted,
# and the log-probabilities behind it are those without it; in float64, where rounding hides less.

# %%
rng = np.random.default_rng(0)
gap = 0
lm.model.double()
for _ in range(200):
    stem = rng.integers(5, 200, rng.integers(32, 64)).tolist()
    tails = [rng.integers(5, 200, rng.integers(1, 9)).tolist() for _ in range(4)]
    ps = [Prompt('', tuple(stem+t)) for t in tails]
    rows = [_Row(lm, p, np.zeros(1), [], set()) for p in ps]
    n = _stem(lm, rows)
    seen = []
    assert n>=len(stem)
    def look(rows, x, h): seen.append(x.log_softmax(-1)); return x.argmax(-1)
    with torch.inference_mode():
        for k in (n, 0): _Deck(lm, look, k).read(rows)
    gap = max(gap, (seen[0]-seen[1]).abs().max().item())
assert gap<1e-5
f'{gap:.0e}'

# %% [markdown]
# ## Killed and resumed
#
# A child process samples 40 rows into a run, four at a time, and is killed with signal 9 after
# some of them. The same call again finds the finished groups, does the rest, and the result is
# that of a call that was never interrupted.

# %%
code = '''
import sys, time
from moral_sc.foundation.runs import open_run
from moral_sc.language.stub_models import random_model
from moral_sc.language.generation import sample
lm = random_model('qwen2')
with open_run(sys.argv[1], dict(seed=5)) as run:
    def slow(done, n): print(done, flush=True); time.sleep(.2)
    rows = [f'Row {i}:' for i in range(40)]
    sample(lm, rows, 20, seed=5, run=run, batch=4, progress=slow)
'''
lm = random_model('qwen2')
rows = [f'Row {i}:' for i in range(40)]
with tempfile.TemporaryDirectory() as d:
    child = subprocess.Popen([sys.executable, '-c', code, d], stdout=-1, text=True)
    for line in child.stdout:
        if int(line)>=12: os.kill(child.pid, signal.SIGKILL); break
    child.wait()
    with open_run(d, dict(seed=5)) as run:
        before = len(run)
        resumed = sample(lm, rows, 20, seed=5, run=run, batch=4)
        test_eq(sample(lm, rows, 20, seed=5, run=run, batch=4), resumed)
test_eq(resumed, sample(lm, rows, 20, seed=5, batch=4))
assert 0<before<40
f'{before} rows were there, {40-before} were sampled'

# %% [markdown]
# A run remembers what determined each row. Another seed, prompt or temperature does not find
# the old rows by mistake.

# %%
with tempfile.TemporaryDirectory() as d, open_run(d, {}) as run:
    a,b = (sample(lm, ['Row:'], 20, seed=k, run=run) for k in (0,1))
    test_ne(a, b)
    test_eq(len(run), 2)
with expect_fail(ConfigError, contains='alike'): sample(lm, ['x','y'], keys=['k','k'])
with expect_fail(ConfigError, contains='top_p'): sample(lm, ['x'], top_p=0)
with expect_fail(ConfigError, contains='2048'): sample(lm, ['x'*2000], 256)

# %% [markdown]
# ## On a real model
#
# SmolLM2 at work, if its weights are here: alone or in company, each row says the same.

# %%
name = 'smollm2-135m-instruct'
real = load(name, 'float32', 'cpu') if cached_weights(name) else None
what = 'fruit', 'tree', 'very large animal'
asks = [f'\n\nHuman: Name one {w}.\n\nAssistant:' for w in what]
if real:
    said = sample(real, asks, 16, stop='\n\nHuman:', seed=2)
    test_eq(said, [sample(real, [a], 16, stop='\n\nHuman:', seed=2, keys=[k])[0]
                   for k,a in enumerate(asks)])
[s.text for s in said] if real else f'{name} is not in the cache: left out here.'
