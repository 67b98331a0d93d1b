# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Model capabilities
#
# > Facts about a model that are found by trial are stored beside it, not on it.

# %%
#| default_exp language.engine.capabilities

# %%
#| export
from weakref import WeakKeyDictionary

# %%
#| hide
import gc
from copy import deepcopy
from fastcore.test import *
from torch import nn

# %% [markdown]
# Some facts about a model are not in its config: whether its logits are the output layer alone,
# whether it accepts the mask of a prefix tree, how many tokens fit into memory. They are found by
# a trial and needed at every call. The cache holds them by model and holds the model weakly, so
# nothing is written onto models and nothing keeps a model alive.

# %%
#| export
_cache = WeakKeyDictionary() # model -> {name: value}

def capability(
    model, # A module
    name,  # Any key
    find,  # find() -> value, called once
):
    "Return a fact about a model, found at the first call"
    known = _cache.setdefault(model, {})
    if name not in known: known[name] = find()
    return known[name]

def set_capability(model, name, value):
    "Store a fact about a model"
    _cache.setdefault(model, {})[name] = value

def copy_capabilities(
    source, # A module
    target, # A copy of it, which may not be able to make the trial itself
):
    "Store the facts known about one model for another"
    _cache.setdefault(target, {}).update(_cache.get(source, {}))


# %%
model = nn.Linear(2, 2)
trials = []
def find(): trials.append(1); return 'seen'
test_eq([capability(model, 'answer', find) for _ in range(3)], ['seen']*3)
test_eq(len(trials), 1)
assert 'answer' not in vars(model)

# %% [markdown]
# A copy is another model. It has its own entries, and they go when it goes.

# %%
copy = deepcopy(model)
before = len(_cache)
copy_capabilities(model, copy)
set_capability(copy, 'max_batch_tokens', 512)
test_eq(capability(copy, 'answer', None), 'seen')
test_eq(capability(model, 'max_batch_tokens', lambda: 4096), 4096)
del copy
gc.collect()
test_eq(len(_cache), before)
