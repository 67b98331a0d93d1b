# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Continuous batching
#
# > New rows take the places of finished ones while the other rows of a batch go on.

# %%
#| default_exp language.engine.continuous_batching

# %%
#| export
import torch
from transformers import DynamicCache

from moral_sc.language.engine.batching import (cache_kwargs, forward_accepts,
                                               has_plain_lm_head, hidden_states, lm_head_logits)
from moral_sc.language.engine.kv_cache import preallocated_cache, repeat_row, select_rows
from moral_sc.language.engine.prefix_tree import shared_prefix
from moral_sc.language.models import pad

# %%
#| hide
from types import SimpleNamespace
from fastcore.test import *
from moral_sc.language.stub_models import random_model


# %% [markdown]
# Rows of a batch grow side by side in one [KV cache](15_kv_cache.ipynb), padded on the left, so
# that all of them grow at the same column. Without continuous batching a batch lasts as long as its
# longest row, and most of its rows are idle. Here new rows are run by themselves when some have
# finished, and their keys and values are written where those of the finished ones were.
#
# A row is an object with `prompt_ids`, a list of token ids; `finish`, `None` until it is complete;
# and `noise`, one number for each token that it may still get. The function `choose` is called with
# rows, logits and hidden states; it appends a token to each unfinished row and returns them.
#
# ## One forward pass

# %%
#| export
def next_logits(
    lm,
    cache,
    ids,       # [row, token]
    mask,      # [row, column] 1 on tokens, those in the cache included
    positions, # [row, token]
)->tuple:      # Logits [row, vocab] after the last token, and the states they come from or None
    "Run tokens that continue a KV cache"
    kw = dict(input_ids=ids, attention_mask=mask, **cache_kwargs(lm.model, cache))
    if forward_accepts(lm.model, 'position_ids'): kw['position_ids'] = positions
    if has_plain_lm_head(lm):
        h = hidden_states(lm, **kw).last_hidden_state[:,-1]
        return lm_head_logits(lm, h),h
    if forward_accepts(lm.model, 'logits_to_keep'): kw['logits_to_keep'] = 1
    return lm.model(**kw).logits[:,-1],None

def has_sliding_window(lm)->bool:
    "Tell whether layers attend to a fixed number of columns"
    return getattr(lm.model.config, 'sliding_window', None) is not None


# %% [markdown]
# Prompts often share a prefix. The worked examples before a request for critique are two thousand
# tokens, and the request is a hundred. The prefix that all rows share is run once, and its keys and
# values are copied for every row. In a model with a sliding window, padding after the prefix would
# count as tokens of the window, so there the whole prompts are run.

# %%
#| export
def common_prefix_length(
    lm,
    rows:list,
    least=32, # Shorter prefixes do not pay
)->int:       # 0 where a prefix does not pay or cannot be used
    "Return the length of the prefix that all rows share"
    if len(rows)<2 or has_sliding_window(lm) or not forward_accepts(lm.model, 'position_ids'):
        return 0
    ids = [r.prompt_ids for r in rows]
    n = min(shared_prefix(min(ids), max(ids)), min(map(len, ids))-1)
    return n if n>=least else 0


# %% [markdown]
# ## Batch under way
#
# All rows of the batch use the same columns of the cache. `mask` marks those that belong to a row,
# `positions` is the position of its last token, and `last` is this token, which is not yet in the
# cache.

# %%
#| export
class ContinuousBatch:
    "Rows under way, and their KV cache"
    def __init__(self, lm,
        choose,      # choose(rows, logits, states) -> [row] token ids; appends them to the rows
        prefix:int=0,# Tokens that all prompts begin with
    ):
        self.lm = lm
        self.choose = choose
        self.prefix = prefix
        self.prefix_cache = None
        self.rows = []
        self.windowed = has_sliding_window(lm)

    def unfinished(self): return [i for i,r in enumerate(self.rows) if not r.finish]
    def free(self): return [i for i,r in enumerate(self.rows) if r.finish]

    def _run_prefix(self, row):
        ids = torch.tensor([row.prompt_ids[:self.prefix]], device=self.lm.device)
        self.prefix_cache = preallocated_cache(self.lm)
        positions = torch.arange(self.prefix, device=self.lm.device)[None]
        next_logits(self.lm, self.prefix_cache, ids, torch.ones_like(ids), positions)

    def run_prompts(self, rows)->tuple: # Cache, mask, positions and tokens
        "Run the prompts of new rows and choose their first tokens"
        n = self.prefix
        if n and self.prefix_cache is None: self._run_prefix(rows[0])
        ids,mask = pad([list(r.prompt_ids[n:]) for r in rows], 'left', self.lm.device)
        positions = (n+mask.cumsum(-1)-1).clamp(min=0)
        mask = torch.nn.functional.pad(mask, (n, 0), value=1)
        cache = repeat_row(self.prefix_cache, len(rows), ids.shape[1]) if n \
            else preallocated_cache(self.lm)
        tokens = self.choose(rows, *next_logits(self.lm, cache, ids, mask, positions))
        return cache,mask,positions[:,-1],tokens

    def admit(self, rows):
        "Run new rows and give them the places of finished ones, or new places"
        cache,mask,positions,last = self.run_prompts(rows)
        if not self.rows:
            self.rows = rows
            self.cache = cache
            self.mask = mask
            self.positions = positions
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
        self.positions[free] = positions
        self.last[free] = last

    def widen(self, n):
        "Add columns on the left, if `n` is positive"
        if n<=0: return
        self.mask = torch.nn.functional.pad(self.mask, (n, 0))
        def padded(x): return torch.nn.functional.pad(x, (0, 0, n, 0))
        for a in self.cache.layers: a.assign(padded(a.keys), padded(a.values), a.keys.shape[2]+n)

    def keep(self, places):
        "Drop all other rows, and the columns on the left that no row uses"
        places = torch.tensor(places, device=self.mask.device)
        unused = int((self.mask[places].cumsum(1)==0).sum(1).min())
        self.rows = [self.rows[i] for i in places.tolist()]
        self.mask = self.mask[places,unused:]
        self.positions = self.positions[places]
        self.last = self.last[places]
        for a in self.cache.layers:
            a.assign(a.keys[places,:,unused:], a.values[places,:,unused:], a.keys.shape[2]-unused)

    def copy_cache(self, places, spare):
        "Copy the cache of some rows"
        return select_rows(self.cache, places, spare)

    def step(self):
        "Choose one token for each unfinished row"
        if self.cache.layers[0].is_full(): self.keep(range(len(self.rows)))
        unfinished = torch.tensor([not r.finish for r in self.rows], device=self.mask.device)
        self.mask = torch.cat([self.mask, unfinished[:,None].long()], 1)
        self.positions = self.positions+unfinished
        self.last = self.choose(self.rows, *next_logits(
            self.lm, self.cache, self.last[:,None], self.mask, self.positions[:,None]))


# %% [markdown]
# Models whose cache holds more than keys and values are run in batches that begin and end together.

# %%
#| export
@torch.inference_mode()
def run_static_batch(
    lm,
    rows:list, # All are finished at the end
    choose,    # As in `ContinuousBatch`
):
    "Generate rows that begin together, with transformers' own cache"
    ids,mask = pad([list(r.prompt_ids) for r in rows], 'left', lm.device)
    cache = DynamicCache(config=lm.model.config)
    positions = (mask.cumsum(-1)-1).clamp(min=0)
    while not all(r.finish for r in rows):
        ids = choose(rows, *next_logits(lm, cache, ids, mask, positions))[:,None]
        positions = positions[:,-1:]+1
        mask = torch.cat([mask, torch.ones_like(ids)], 1)

def generation_size(rows:list)->dict: # For `inference`
    "Count the prompt tokens and the decoding steps of some rows"
    return dict(tokens=sum(len(r.prompt_ids) for r in rows), steps=max(len(r.noise) for r in rows))


# %% [markdown]
# ## Proof
#
# Rows of different length that share a batch of three get the tokens that they get alone.
# [Generation](../40_generation.ipynb) repeats this on four architectures, with sampling.

# %%
def new_row(ids, n): return SimpleNamespace(prompt_ids=ids, finish=None, noise=[0]*n, ids=[])

def choose(rows, logits, states):
    tokens = logits.argmax(-1)
    for r,t in zip(rows, tokens.tolist()):
        if r.finish: continue
        r.ids.append(t)
        if len(r.ids)==len(r.noise): r.finish = 'length'
    return tokens

def generate(lm, rows, size):
    todo = list(rows)
    batch = ContinuousBatch(lm, choose, common_prefix_length(lm, rows))
    with torch.inference_mode():
        while todo or batch.unfinished():
            n = len(batch.free()) if batch.rows else size
            if todo and n: batch.admit(todo[:n]); todo = todo[n:]
            else: batch.step()
    return [r.ids for r in rows]

lm = random_model('llama')
shared = list(range(5, 45))
def new_rows(): return [new_row(shared+[50+k]*(k+1), 3+4*(k%3)) for k in range(8)]
together = generate(lm, new_rows(), 3)
test_eq(together, [generate(lm, [r], 1)[0] for r in new_rows()])
static = new_rows()
run_static_batch(lm, static, choose)
test_eq([r.ids for r in static], together)
common_prefix_length(lm, new_rows()), [len(x) for x in together]
