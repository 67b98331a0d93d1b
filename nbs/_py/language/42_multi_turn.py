# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Texts that follow from texts
#
# > A row that has ended goes on with its next prompt, in its place and with what is still known.

# %%
#| default_exp language.multi_turn

# %%
#| export
from time import monotonic

import torch
from fastcore.basics import patch

from moral_sc.foundation.runs import content_key, run_or_temporary, process_rank
from moral_sc.language.chat import encode_prompt
from moral_sc.language.models import LM, eos_ids, pad
from moral_sc.language.engine.weight_packing import prepacked_weights
from moral_sc.language.engine.onednn import onednn
from moral_sc.language.engine.batching import batches, check_context_length
from moral_sc.language.generation import (_check_args, _Deck, _next, _pack, _picker, _Row,
                                        _stem, _together, _unpack, noise, preallocated_cache, work)
from moral_sc.language.engine.prefix_tree import shared_prefix

# %%
#| hide
import tempfile
from pathlib import Path
from fastcore.test import *
from moral_sc.foundation.runs import open_run
from moral_sc.language.stub_models import stub_model, random_model
from moral_sc.language.generation import sample
torch.set_num_threads(1)


# %% [markdown]
# A critique follows from an answer, a revision from the critique, and the next critique from the
# revision. Taken one step at a time, every row waits for the slowest one, and every prompt is read
# from its first word, although most of it was read or written a moment ago.
#
# Here a row whose text is complete is asked at once for the prompt that comes next. Of this
# prompt, the tokens that it begins with alike are in the row's cache and stay there; only the rest
# is read. Nothing is assumed about how the next prompt comes from the last: the ids of both are
# compared, and where they part, reading begins.
#
# ## What a row keeps
#
# A row's columns in the cache may have gaps: those that it no longer uses, and those in which
# other rows went on while it waited. The mask says which count, and positions are counted over
# these alone.

# %%
#| export
class _Places(_Deck):
    "Rows side by side whose places are taken by what follows from them"
    def free(self): return [i for i,r in enumerate(self.rows) if r.over]
    def ended(self): return [i for i,r in enumerate(self.rows) if r.finish and not r.over]

    def common(self, i, row):
        "How many columns of a place its next row may keep"
        if self.windowed: return 0 # It sees by column, so there must be no gap
        r = self.rows[i]
        held = [*r.p.ids, *r.ids][:int(self.mask[i].sum())]
        return min(shared_prefix(held, row.p.ids), len(row.p.ids)-1)


# %% [markdown]
# The rest of the new prompts is read with a copy of these columns, and what comes of it is put
# behind the columns of all rows. Where there is no room left, columns without use are dropped
# first: each row's are moved to the right end, so that the widest row decides how many remain.

# %%
#| export
@patch
def pack(self:_Places, room):
    "Move what each row uses to the right, with room for `room` columns more"
    for i in self.free(): self.mask[i] = 0
    w = max(1, int(self.mask.sum(1).max()))
    at = self.mask.argsort(dim=1, stable=True)[:,-w:]
    self.mask = self.mask.gather(1, at)
    for a in self.cache.layers:
        i = at[:,None,:,None].expand(-1, a.keys.shape[1], -1, a.keys.shape[3])
        a.put(a.keys.gather(2, i), a.values.gather(2, i), w, room)

@patch
def make_room(self:_Places, n):
    a = self.cache.layers[0]
    if a.keys.shape[2]+n>a.k.shape[2]: self.pack(n+256)

@patch
def grow(self:_Places, n):
    "Add `n` columns on the right that no row sees"
    self.mask = torch.nn.functional.pad(self.mask, (0, n))
    for a in self.cache.layers:
        c = a.keys.shape[2]
        a.k[:,:,c:c+n] = a.v[:,:,c:c+n] = 0 # Unseen, but it has to be a number
        a.keys,a.values = a.k[:,:,:c+n],a.v[:,:,:c+n]

@patch
def stay(self:_Places, new):
    "New rows, as (place, row, columns kept), go on in the places of ended ones"
    place,rows,keep = zip(*new)
    place,keep = (torch.tensor(x, device=self.mask.device) for x in (place, keep))
    ids,tail = pad([list(r.p.ids[c:]) for r,c in zip(rows, keep)], 'left', keep.device)
    n = ids.shape[1]
    self.make_room(n)
    seen = self.mask[place]
    seen = torch.cat([seen*(seen.cumsum(1)<=keep[:,None]), tail], 1)
    pos = (keep[:,None]+tail.cumsum(1)-1).clamp(min=0)
    cache = self.copy(place, n)
    last = self.pick(rows, *_next(self.lm, cache, ids, seen, pos))
    self.grow(n)
    for a,b in zip(self.cache.layers, cache.layers):
        a.keys[place,:,-n:] = b.keys[:,:,-n:]
        a.values[place,:,-n:] = b.values[:,:,-n:]
    for i,r in zip(place.tolist(), rows): self.rows[i] = r
    self.mask[place] = seen
    self.pos[place] = pos[:,-1]
    self.last[place] = last


# %% [markdown]
# A row whose next prompt has less in common with what it holds than all rows have with each
# other begins anew, as any new row does.

# %%
#| export
@patch
def succeed(self:_Places, new):
    "After ended rows, as (place, row), come new ones, or None"
    kept = [(i, r, c) for i,r in new if r and (c:=self.common(i, r)) and c>=self.stem]
    stay = {i for i,_,_ in kept}
    for i,_ in new: self.rows[i].over = i not in stay
    if kept: self.stay(kept)
    anew = [r for i,r in new if r and i not in stay]
    if anew: self.admit(anew)

@torch.inference_mode()
def _flow(lm, rows, batch, pick, follow):
    "Sample rows and what follows from them, at most `batch` at a time"
    todo = list(rows)
    deck = _Places(lm, pick, _stem(lm, rows))
    some = max(1, min(batch, len(rows))//8)
    while True:
        ended = deck.ended()
        free = len(deck.free())
        live = deck.live()
        if ended and (len(ended)>=some or not live):
            deck.succeed([(i, follow(deck.rows[i])) for i in ended])
        elif todo and (not deck.rows or free>=some):
            n = free if deck.rows else batch
            deck.admit(todo[:n]); todo = todo[n:]
        elif not live: return
        elif not todo and free>=max(1, len(deck.rows)//4):
            deck.cut([i for i,r in enumerate(deck.rows) if not r.over])
        else: deck.make_room(1); deck.step()

def _by_rounds(lm, rows, batch, pick, follow):
    "The same for models whose cache cannot be kept: all rows take each step together"
    while rows:
        _together(lm, rows, batch, pick)
        rows = [new for r in rows if (new:=follow(r))]


# %% [markdown]
# ## What follows
#
# `next_prompt` is given the number of a row and what it has said, and answers with a name and a prompt,
# or with `None` where the row is complete. As in [`sample`](40_generation.ipynb), the name and the
# seed fix the noise of a text, and texts are kept in a run under the same names that `sample`
# gives them: a chain that was killed goes on at
# about the text it had come to, for they are written down every few seconds.

# %%
#| export
class _Text(_Row):
    "A text under way, in row `i`"
    def __init__(self, i, name, *args):
        super().__init__(*args)
        self.i = i
        self.name = name
        self.over = False

class _Chains:
    "What every row has said, and what it says next"
    def __init__(self, lm, first, then, new, seed, stop, run, progress, **how):
        self.lm = lm
        self.first = first
        self.then = then
        self.new = new
        self.run = run
        self.progress = progress
        self.at = monotonic()
        self.seed = seed
        self.stop = stop
        self.eos = eos_ids(lm)
        self.how = dict(new=new, stop=stop, seed=seed, logprobs=False, **how,
                        model=[lm.name, lm.source, str(lm.dtype)])
        self.said = [[] for _ in first]
        self.whole = [False]*len(first)
        self.fresh = []
        self.ends = [content_key(chain=k, ids=p.ids, **self.how) for k,p in first]

    def start(self, i):
        "The first text of a row that is not kept, or None"
        self.said[i] = []
        self.whole[i] = False
        return self.go(i, self.first[i])

    def go(self, i, more):
        while more:
            key = more[0]
            p = encode_prompt(self.lm, more[1])
            check_context_length(self.lm, [p.ids], self.new)
            name = content_key(sample=key, ids=p.ids, **self.how)
            s = _unpack(self.run.get(name))
            if s is None: return _Text(i, (key, name), self.lm, p,
                                       noise(self.seed, key, self.new), self.stop, self.eos)
            self.said[i].append(s)
            more = self.then(i, self.said[i])
        self.whole[i] = True
        if self.progress: self.progress(sum(self.whole), len(self.whole))
        self.fresh.append((self.ends[i], dict(texts=len(self.said[i]))))

    def follow(self, row):
        "Keep an ended text; what comes after it"
        s,(key,name) = row.sample(self.seed),row.name
        self.said[row.i].append(s)
        self.fresh.append((name, _pack(key, s)))
        if len(self.fresh)>=32 or monotonic()-self.at>5: self.flush()
        return self.go(row.i, self.then(row.i, self.said[row.i]))

    def flush(self):
        if not self.run.finished: self.run.put_many(self.fresh)
        self.fresh = []
        self.at = monotonic()


# %%
#| export
def generate_multi_turn(
    lm:LM,
    prompts:list,           # Strings or `Prompt`s, with which the rows begin
    next_prompt,                   # (row number, its `Sample`s so far) -> (key, prompt), or None
    max_new_tokens:int=256, # Of each text
    temperature:float=1.,   # As in `sample`, like all that follow
    top_p:float=1.,
    stop=(),
    seed:int=0,
    keys:list=None,         # Names of the first texts; those of others come from `then`
    run=None,
    progress=None,          # Called with (rows complete, rows in all)
    batch:int=32,
    max_tokens:int=32768,
)->list:                    # For each prompt the list of its `Sample`s
    "Continue each prompt, then the prompt that follows from what was said, and so on"
    keys = [str(k) for k in (range(len(prompts)) if keys is None else keys)]
    _check_args(prompts, keys, max_new_tokens, temperature, top_p)
    first = [(k, encode_prompt(lm, p)) for k,p in zip(keys, prompts)]
    stop = [stop] if isinstance(stop, str) else list(stop)
    sizes = [len(p.ids)+3*max_new_tokens for _,p in first] # About what a row comes to hold
    groups = batches(sizes, 4*max_tokens, 4*batch)
    pick = _picker(temperature, top_p, False, None)
    flow = _by_rounds if preallocated_cache(lm) is None else _flow
    with run_or_temporary(run) as run:
        c = _Chains(lm, first, next_prompt, max_new_tokens, seed, stop, run, progress,
                    temperature=temperature, top_p=top_p)
        def do(rows, size):
            rows = [r for i in rows if (r:=c.start(i))]
            if rows:
                with torch.inference_mode(), prepacked_weights(lm.model, work(rows)), onednn(lm.model):
                    flow(lm, rows, min(batch, max(1, max_tokens//size)), pick, c.follow)
            c.flush()
        for n in run.blocks([[c.ends[i] for i in g] for g in groups]):
            do(groups[n], sizes[groups[n][0]])
        several = process_rank()[1]>1 # Then what is kept may be of another one
        rest = [i for i,whole in enumerate(c.whole) if several or not whole]
        if rest: do(rest, max(sizes))
    return c.said


# %% [markdown]
# ## Proof
#
# A model that counts is asked again and again to count on. Rows have different numbers of texts.

# %%
def count(text):
    if text[-2:][:-1].isdigit() and text[-1]==':': return {f'{(int(text[-2])+1)%10}.': 1.}
    return {'.': 1.}

counter = stub_model(count, 'counts')
said = generate_multi_turn(counter, ['0:', '5:', '8:'], stop='.', max_new_tokens=5,
    next_prompt=lambda i,said: (f'{i}/{len(said)}', f'{said[-1].text}:') if len(said)<2+i else None)
[[s.text for s in row] for row in said]

# %%
test_eq([[s.text for s in row] for row in said], [['1','2'], ['6','7','8'], ['9','0','1','2']])

# %% [markdown]
# On models with random weights, rows that go on in their places say to the letter what they say
# one step at a time, each text by `sample`, whatever the number of rows side by side. Here a
# prompt first goes on from the text before it, then turns back to an earlier point.

# %%
front = 'Here are some words that all rows begin with, and they are not few. '
heads = [f'{front}Row {i}:{"x"*3*i}' for i in range(9)]

def then(i, said):
    n = len(said)
    if n==1+i%4: return
    last = said[-1].text
    return f'{i}/{n}', heads[i]+(f'{said[-2].text} Or {last}?' if n%2==0 else f'{last} And?')

def stepwise(lm, **kw):
    "The same by `sample`, all rows together"
    said = [[] for _ in heads]
    more = {i: (f'{i}/0', p) for i,p in enumerate(heads)}
    while more:
        out = sample(lm, [p for _,p in more.values()], keys=[k for k,_ in more.values()], **kw)
        for i,s in zip(more, out): said[i].append(s)
        more = {i: m for i in more if (m:=then(i, said[i]))}
    return said

kw = dict(max_new_tokens=12, seed=3, stop=('e',))
for kind in ('llama', 'neox', 'qwen3', 'gemma3'):
    lm = random_model(kind)
    want = stepwise(lm, **kw)
    for batch in (2, 4, 32):
        got = generate_multi_turn(lm, heads, then, batch=batch, keys=[f'{i}/0' for i in range(9)], **kw)
        test_eq(got, want)
len(sum(want, []))

# %% [markdown]
# A run that was killed at any text goes on there, and what `sample` has kept is not sampled again.

# %%
tmp = Path(tempfile.mkdtemp())
lm = random_model('llama')
keys = [f'{i}/0' for i in range(9)]
want = stepwise(random_model('llama'), **kw)
class Killed(Exception): pass
def dies(i, said):
    if i==2 and len(said)==2: raise Killed
    return then(i, said)

with open_run(tmp/'run', {}) as run: sample(lm, heads[:4], keys=keys[:4], run=run, **kw)
with open_run(tmp/'run', {}) as run, expect_fail(Killed):
    generate_multi_turn(lm, heads, dies, keys=keys, run=run, batch=2, **kw)
with open_run(tmp/'run', {}) as run:
    kept_before = len(run)
    got = generate_multi_turn(lm, heads, then, keys=keys, run=run, **kw)
    test_eq(len(run), len(sum(want, []))+len(heads))
test_eq(got, want)
kept_before
