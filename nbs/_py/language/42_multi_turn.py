# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Multi-turn generation
#
# > A finished row continues with its next prompt, on the KV cache that it already has.

# %%
#| default_exp language.multi_turn

# %%
#| export
from time import monotonic

import torch
from fastcore.basics import patch

from moral_sc.foundation.progress import progress_callback
from moral_sc.foundation.runs import content_key, process_rank, run_or_temporary
from moral_sc.language.chat import encode_prompt
from moral_sc.language.models import LM, eos_ids, pad
from moral_sc.language.engine.batching import batches, check_rows
from moral_sc.language.engine.contexts import inference
from moral_sc.language.engine.continuous_batching import (ContinuousBatch, common_prefix_length,
                                                          generation_size, next_logits)
from moral_sc.language.engine.kv_cache import preallocated_cache
from moral_sc.language.engine.prefix_tree import shared_prefix
from moral_sc.language.generation import (GenerationRow, check_sampling_args, generate_static,
                                          noise, sample_from_record, sample_record, stop_strings,
                                          token_chooser)

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
# A critique follows an answer, a revision follows the critique, and the next critique follows the
# revision. Step by step, every row waits for the slowest one, and every prompt is run from its
# first token, although most of it was run or generated a moment ago.
#
# Here a finished row gets its next prompt at once. The prefix it shares with the previous prompt
# stays in the KV cache, and only the rest is run. We assume nothing about how one prompt follows
# from another: their ids are compared, and computation begins where they differ.
#
# ## KV cache of a row
#
# The columns of a row may have gaps: columns that it no longer uses, and columns in which other
# rows grew while it waited. The mask marks the columns in use, and positions are counted over
# these alone.

# %%
#| export
class _MultiTurnBatch(ContinuousBatch):
    "Rows under way whose places are taken by their next turns"
    def free(self): return [i for i,r in enumerate(self.rows) if r.is_free]
    def ended(self): return [i for i,r in enumerate(self.rows) if r.finish and not r.is_free]

    def reusable(self, i, row):
        "Number of columns of a place that its next row can use"
        if self.windowed: return 0 # A window counts columns, so there must be no gap
        r = self.rows[i]
        cached = [*r.prompt_ids, *r.ids][:int(self.mask[i].sum())]
        return min(shared_prefix(cached, row.prompt_ids), len(row.prompt_ids)-1)


# %% [markdown]
# The rest of the new prompts is run on a copy of these columns, and the result is appended to the
# columns of all rows. If the buffers are full, unused columns are dropped first: the columns of
# each row move to the right end, and the widest row determines how many remain.

# %%
#| export
@patch
def compact(self:_MultiTurnBatch, spare):
    "Move the columns that each row uses to the right end, with `spare` columns after it"
    for i in self.free(): self.mask[i] = 0
    width = max(1, int(self.mask.sum(1).max()))
    at = self.mask.argsort(dim=1, stable=True)[:,-width:]
    self.mask = self.mask.gather(1, at)
    for a in self.cache.layers:
        i = at[:,None,:,None].expand(-1, a.keys.shape[1], -1, a.keys.shape[3])
        a.assign(a.keys.gather(2, i), a.values.gather(2, i), width, spare)

@patch
def reserve(self:_MultiTurnBatch, n):
    "Make sure that `n` columns can be appended"
    a = self.cache.layers[0]
    if a.keys.shape[2]+n>a.key_buffer.shape[2]: self.compact(n+256)

@patch
def append_columns(self:_MultiTurnBatch, n):
    "Append `n` columns that no row uses"
    self.mask = torch.nn.functional.pad(self.mask, (0, n))
    for a in self.cache.layers:
        c = a.keys.shape[2]
        a.key_buffer[:,:,c:c+n] = 0 # Masked, but it must be a number
        a.value_buffer[:,:,c:c+n] = 0
        a.resize(c+n)

@patch
def continue_rows(self:_MultiTurnBatch, turns):
    "Run next turns, as (place, row, columns reused), in the places of the rows they follow"
    places,rows,reused = zip(*turns)
    places = torch.tensor(places, device=self.mask.device)
    suffixes = [list(r.prompt_ids[c:]) for r,c in zip(rows, reused)]
    reused = torch.tensor(reused, device=self.mask.device)
    ids,new = pad(suffixes, 'left', reused.device)
    n = ids.shape[1]
    self.reserve(n)
    mask = self.mask[places]
    mask = torch.cat([mask*(mask.cumsum(1)<=reused[:,None]), new], 1)
    positions = (reused[:,None]+new.cumsum(1)-1).clamp(min=0)
    cache = self.copy_cache(places, n)
    last = self.choose(rows, *next_logits(self.lm, cache, ids, mask, positions))
    self.append_columns(n)
    for a,b in zip(self.cache.layers, cache.layers):
        a.keys[places,:,-n:] = b.keys[:,:,-n:]
        a.values[places,:,-n:] = b.values[:,:,-n:]
    for i,r in zip(places.tolist(), rows): self.rows[i] = r
    self.mask[places] = mask
    self.positions[places] = positions[:,-1]
    self.last[places] = last


# %% [markdown]
# If the next prompt shares less with the row's cache than all prompts share with each other, the
# row starts afresh, as any new row does.

# %%
#| export
@patch
def replace_ended(self:_MultiTurnBatch, turns):
    "Replace ended rows by their next turns, as (place, row) or (place, None)"
    reusing = [(i, r, c) for i,r in turns
               if r and (c:=self.reusable(i, r)) and c>=self.prefix]
    places = {i for i,_,_ in reusing}
    for i,_ in turns: self.rows[i].is_free = i not in places
    if reusing: self.continue_rows(reusing)
    new = [r for i,r in turns if r and i not in places]
    if new: self.admit(new)

@torch.inference_mode()
def _generate(lm, rows, batch_size, choose, next_row):
    "Generate rows and their next turns, at most `batch_size` at a time"
    if preallocated_cache(lm) is None:
        while rows:
            generate_static(lm, rows, batch_size, choose)
            rows = [turn for r in rows if (turn:=next_row(r))]
        return
    todo = list(rows)
    batch = _MultiTurnBatch(lm, choose, common_prefix_length(lm, rows))
    group = max(1, min(batch_size, len(rows))//8)
    while True:
        ended = batch.ended()
        free = len(batch.free())
        unfinished = batch.unfinished()
        if ended and (len(ended)>=group or not unfinished):
            batch.replace_ended([(i, next_row(batch.rows[i])) for i in ended])
        elif todo and (not batch.rows or free>=group):
            n = free if batch.rows else batch_size
            batch.admit(todo[:n])
            todo = todo[n:]
        elif not unfinished: return
        elif not todo and free>=max(1, len(batch.rows)//4):
            batch.keep([i for i,r in enumerate(batch.rows) if not r.is_free])
        else:
            batch.reserve(1)
            batch.step()


# %% [markdown]
# ## Next prompts
#
# `next_prompt` is called with the number of a row and its samples so far. It returns a key and a
# prompt, or `None` if the row is complete. As in [`sample`](40_generation.ipynb), key and seed fix
# the random numbers of a text, and a run stores texts under the names that `sample` gives them. Texts
# are stored every few seconds, so a call that is killed loses little.

# %%
#| export
class _Turn(GenerationRow):
    "A text under way, the next turn of prompt `i`"
    def __init__(self, i, name, *args):
        super().__init__(*args)
        self.i = i
        self.name = name
        self.is_free = False

class _Conversations:
    "The samples of every row, and what follows them"
    def __init__(self, lm, first, next_prompt, max_new_tokens, seed, stop, run, progress,
                 **options):
        self.lm = lm
        self.first = first
        self.next_prompt = next_prompt
        self.max_new_tokens = max_new_tokens
        self.run = run
        self.progress = progress
        self.stored_at = monotonic()
        self.seed = seed
        self.stop = stop
        self.eos = eos_ids(lm)
        self.options = dict(new=max_new_tokens, stop=stop, seed=seed, logprobs=False, **options,
                            model=lm.identity if run is not None else '')
        self.samples = [[] for _ in first]
        self.is_complete = [False]*len(first)
        self.unstored = []
        self.names = [content_key(chain=k, ids=p.ids, **self.options) for k,p in first]

    def start(self, i):
        "The first text of a row that is not stored, or None"
        self.samples[i] = []
        self.is_complete[i] = False
        return self.advance(i, self.first[i])

    def advance(self, i, turn):
        "The next text of a row that is not stored, or None"
        while turn:
            key = turn[0]
            p = encode_prompt(self.lm, turn[1])
            check_rows(self.lm, [p.ids], self.max_new_tokens, [key])
            name = content_key(sample=key, ids=p.ids, **self.options)
            s = sample_from_record(self.run.get(name))
            if s is None: return _Turn(i, (key, name), self.lm, p,
                                       noise(self.seed, key, self.max_new_tokens), self.stop,
                                       self.eos)
            self.samples[i].append(s)
            turn = self.next_prompt(i, self.samples[i])
        self.is_complete[i] = True
        if self.progress: self.progress(sum(self.is_complete), len(self.is_complete))
        self.unstored.append((self.names[i], dict(texts=len(self.samples[i]))))

    def next_row(self, row):
        "Record an ended text; the next one of its row, or None"
        s = row.sample(self.seed)
        key,name = row.name
        self.samples[row.i].append(s)
        self.unstored.append((name, sample_record(key, s)))
        if len(self.unstored)>=32 or monotonic()-self.stored_at>5: self.store()
        return self.advance(row.i, self.next_prompt(row.i, self.samples[row.i]))

    def store(self):
        if not self.run.finished: self.run.put_many(self.unstored)
        self.unstored = []
        self.stored_at = monotonic()


# %%
#| export
def generate_multi_turn(
    lm:LM,
    prompts:list,           # Strings or `Prompt`s of the first turns
    next_prompt,            # (row number, its `Sample`s so far) -> (key, prompt), or None
    max_new_tokens:int=256, # Of each text
    temperature:float=1.,   # As in `sample`, like all that follow
    top_p:float=1.,
    stop=(),
    seed:int=0,
    keys:list=None,         # Names of the first texts; those of others come from `next_prompt`
    run=None,
    progress=None,          # True: a bar; or a function (rows complete, rows in all)
    batch:int=32,
    max_tokens:int=32768,
)->list:                    # For each prompt the list of its `Sample`s
    "Sample an answer to each prompt, then to the prompt that follows from it, and so on"
    keys = [str(k) for k in (range(len(prompts)) if keys is None else keys)]
    check_sampling_args(prompts, keys, max_new_tokens, temperature, top_p)
    first = [(k, encode_prompt(lm, p)) for k,p in zip(keys, prompts)]
    stop = stop_strings(stop)
    sizes = [len(p.ids)+3*max_new_tokens for _,p in first] # Typical columns of a row
    groups = batches(sizes, 4*max_tokens, 4*batch)
    choose = token_chooser(temperature, top_p)
    with run_or_temporary(run) as run, progress_callback(progress, 'rows') as report:
        c = _Conversations(lm, first, next_prompt, max_new_tokens, seed, stop, run, report,
                           temperature=temperature, top_p=top_p)
        def generate(rows, size):
            rows = [r for i in rows if (r:=c.start(i))]
            if rows:
                with torch.inference_mode(), inference(lm.model, **generation_size(rows)):
                    _generate(lm, rows, min(batch, max(1, max_tokens//size)), choose, c.next_row)
            c.store()
        for n in run.blocks([[c.names[i] for i in g] for g in groups]):
            generate(groups[n], sizes[groups[n][0]])
        several = process_rank()[1]>1 # Then stored rows may be another process's
        rest = [i for i,complete in enumerate(c.is_complete) if several or not complete]
        if rest: generate(rest, max(sizes))
    return c.samples


# %% [markdown]
# ## Proof
#
# A stub model counts. Rows have different numbers of turns.

# %%
def count(text):
    if text[-2:][:-1].isdigit() and text[-1]==':': return {f'{(int(text[-2])+1)%10}.': 1.}
    return {'.': 1.}

counter = stub_model(count, 'counts')
def next_count(i, samples):
    if len(samples)<2+i: return f'{i}/{len(samples)}', f'{samples[-1].text}:'

counts = generate_multi_turn(counter, ['0:', '5:', '8:'], next_count, stop='.', max_new_tokens=5)
[[s.text for s in row] for row in counts]

# %%
test_eq([[s.text for s in row] for row in counts], [['1','2'], ['6','7','8'], ['9','0','1','2']])

# %% [markdown]
# On models with random weights, multi-turn generation gives the texts that `sample` gives turn by
# turn, for any number of rows side by side. Here a prompt first continues the text before it, then
# returns to an earlier point.

# %%
prefix = 'Here are some words that all rows begin with, and they are not few. '
first = [f'{prefix}Row {i}:{"x"*3*i}' for i in range(9)]

def next_prompt(i, samples):
    n = len(samples)
    if n==1+i%4: return
    last = samples[-1].text
    return f'{i}/{n}', first[i]+(f'{samples[-2].text} Or {last}?' if n%2==0 else f'{last} And?')

def turn_by_turn(lm, **kw):
    "The same by `sample`, all rows a turn at a time"
    samples = [[] for _ in first]
    prompts = {i: (f'{i}/0', p) for i,p in enumerate(first)}
    while prompts:
        keys,waiting = zip(*prompts.values())
        out = sample(lm, list(waiting), keys=list(keys), **kw)
        for i,s in zip(prompts, out): samples[i].append(s)
        prompts = {i: m for i in prompts if (m:=next_prompt(i, samples[i]))}
    return samples

kw = dict(max_new_tokens=8, seed=3, stop=('e',))
for kind in ('llama', 'neox', 'qwen3', 'gemma3'):
    lm = random_model(kind)
    want = turn_by_turn(lm, **kw)
    for batch in (2, 32):
        got = generate_multi_turn(lm, first, next_prompt, batch=batch,
                                  keys=[f'{i}/0' for i in range(9)], **kw)
        test_eq(got, want)
len(sum(want, []))

# %% [markdown]
# A run that was killed continues at the text where it stopped, and texts that `sample` has stored
# are not sampled again.

# %%
tmp = Path(tempfile.mkdtemp())
lm = random_model('llama')
keys = [f'{i}/0' for i in range(9)]
want = turn_by_turn(random_model('llama'), **kw)
class Killed(Exception): pass
def failing(i, samples):
    if i==2 and len(samples)==2: raise Killed
    return next_prompt(i, samples)

with open_run(tmp/'run', {}) as run: sample(lm, first[:4], keys=keys[:4], run=run, **kw)
with open_run(tmp/'run', {}) as run, expect_fail(Killed):
    generate_multi_turn(lm, first, failing, keys=keys, run=run, batch=2, **kw)
with open_run(tmp/'run', {}) as run:
    stored = len(run)
    got = generate_multi_turn(lm, first, next_prompt, keys=keys, run=run, **kw)
    test_eq(len(run), len(sum(want, []))+len(first))
test_eq(got, want)
stored
