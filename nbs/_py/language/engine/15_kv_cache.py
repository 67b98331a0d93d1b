# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # KV cache
#
# > KV caches that grow in place, are copied for many rows, or are shared by them.

# %%
#| default_exp language.engine.kv_cache

# %%
#| export
import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

# %%
#| hide
from fastcore.test import *
from moral_sc.language.engine.batching import cache_kwargs
from moral_sc.language.stub_models import random_model


# %% [markdown]
# transformers' own cache concatenates at every token, so every step copies the whole cache. A
# `PreallocatedLayer` writes new keys and values into a tensor that has columns to spare.
#
# ## Preallocated caches

# %%
#| export
class PreallocatedLayer(DynamicLayer):
    "Keys and values in tensors with unused columns at the end"
    def update(self, keys, values, *args, **kw):
        length = self.get_seq_length() if self.is_initialized else 0
        n = length+keys.shape[2]
        if not self.is_initialized: self.assign(keys, values, n); return keys,values
        if n>self.key_buffer.shape[2]: self.assign(self.keys, self.values, n)
        self.key_buffer[:,:,length:n] = keys
        self.value_buffer[:,:,length:n] = values
        self.resize(n)
        return self.keys,self.values

    def assign(self,
        keys, values,  # [row, head, column, width]
        columns,       # In use or to be used next
        spare:int=64,  # Columns beyond them
    ):
        "Replace the contents"
        self.lazy_initialization(keys, values)
        def buffer(x): return x.new_empty(*x.shape[:2], columns+spare, x.shape[3])
        self.key_buffer = buffer(keys)
        self.value_buffer = buffer(values)
        n = keys.shape[2]
        self.key_buffer[:,:,:n] = keys
        self.value_buffer[:,:,:n] = values
        self.resize(n)

    def resize(self, columns):
        "Use this many columns of the buffers"
        self.keys = self.key_buffer[:,:,:columns]
        self.values = self.value_buffer[:,:,:columns]

    def is_full(self): return self.keys.shape[2]==self.key_buffer.shape[2]

def preallocated_cache(
    lm,
): # An empty cache, or None if this model's cache holds more than keys and values
    "Make an empty KV cache with spare columns"
    kinds = {type(x) for x in DynamicCache(config=lm.model.config).layers}
    if kinds-{DynamicLayer, DynamicSlidingWindowLayer}: return None
    return _new_cache()

def _new_cache():
    cache = DynamicCache()
    cache.layer_class_to_replicate = PreallocatedLayer
    return cache

def _filled_cache(contents, spare):
    cache = _new_cache()
    for keys,values in contents:
        layer = PreallocatedLayer()
        layer.assign(keys, values, keys.shape[2], spare)
        cache.layers.append(layer)
    return cache

def repeat_row(
    cache,     # Of one row
    rows:int,
    spare:int, # Columns beyond those in use
):             # A preallocated cache
    "Copy the only row of a cache for several rows"
    def repeated(x): return x.expand(rows, -1, -1, -1)
    return _filled_cache([(repeated(a.keys), repeated(a.values)) for a in cache.layers], spare)

def select_rows(
    cache,
    rows,      # [n] row numbers, repetitions allowed
    spare:int, # Columns beyond those in use
):             # A preallocated cache
    "Copy some rows of a cache"
    return _filled_cache([(a.keys[rows], a.values[rows]) for a in cache.layers], spare)


# %% [markdown]
# Logits do not depend on the kind of cache.

# %%
lm = random_model('llama')
ids = torch.arange(3, 123).reshape(2, 60)
want = lm.model(ids).logits
cache = preallocated_cache(lm)
parts = [lm.model(ids[:,k:k+10], **cache_kwargs(lm.model, cache)).logits for k in range(0, 60, 10)]
test_close(torch.cat(parts, 1).detach(), want.detach(), 1e-5)
layer = cache.layers[0]
layer.keys.shape, layer.key_buffer.shape

# %%
first = preallocated_cache(lm)
lm.model(ids[:1,:50], **cache_kwargs(lm.model, first))
for other,n in ((repeat_row(first, 2, 10), 2),
                (select_rows(first, torch.tensor([0, 0, 0]), 10), 3)):
    x = lm.model(ids[:1,50:].expand(n, -1), **cache_kwargs(lm.model, other)).logits
    for row in x: test_close(row.detach(), want[0,50:].detach(), 1e-5)


# %% [markdown]
# ## Shared prefixes
#
# Suffixes of many lengths that follow one prefix run side by side. Each attends to the prefix and
# to itself, and the cache keeps nothing of them.

# %%
#| export
class PrefixCache(DynamicCache):
    "The KV cache of one prefix, which every row continues and none extends"
    def __init__(self,
        contents, # (keys, values) of each layer, of one row
    ):
        super().__init__()
        for keys,values in contents:
            layer = DynamicLayer()
            layer.lazy_initialization(keys, values)
            layer.keys = keys
            layer.values = values
            self.layers.append(layer)

    def update(self, keys, values, layer_idx, *args, **kw):
        prefix = self.layers[layer_idx]
        rows = len(keys)
        return tuple(torch.cat([x.expand(rows, -1, -1, -1), y], 2)
                     for x,y in ((prefix.keys, keys), (prefix.values, values)))


# %%
prefix = PrefixCache([(a.keys, a.values) for a in first.layers])
positions = torch.arange(50, 60)[None]
for _ in range(2):
    x = lm.model(ids[:1,50:].expand(3, -1), position_ids=positions,
                 **cache_kwargs(lm.model, prefix)).logits
    for row in x: test_close(row.detach(), want[0,50:].detach(), 1e-5)
test_eq(prefix.get_seq_length(), 50)
