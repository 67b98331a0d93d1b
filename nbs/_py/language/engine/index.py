# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Engine
#
# > The contexts `inference` and `training` make forward and backward passes faster.

# %%
#| default_exp language.engine.__init__

# %% [markdown]
# A language model on a CPU is slow for reasons that have nothing to do with what is computed. This
# package holds all code whose only purpose is speed, and two context managers are its interface:
# `inference` for scoring and generation, `training` for supervised and reinforcement learning.
# Both act on the models that you name and restore them on exit. With `MORAL_SC_ENGINE=off` in
# the environment they do nothing, and results change by rounding only.
#
# | Module | Purpose |
# | --- | --- |
# | [contexts](70_contexts.ipynb) | `inference` and `training` |
# | [onednn](30_onednn.ipynb) | linear layers and attention by oneDNN |
# | [weight_packing](40_weight_packing.ipynb) | weights in the layout that oneDNN reads |
# | [allocator](50_allocator.ipynb) | freed memory is kept during training |
# | [batch_invariant](60_batch_invariant.ipynb) | sampler and trainer agree bit for bit |
# | [replacement](25_replacement.ipynb) | attention and layers of one model are replaced |
# | [batching](10_batching.ipynb) | forward passes over many rows, logits only where needed; facts about a model found by trial |
# | [prefix_tree](20_prefix_tree.ipynb) | prefixes that prompts share are computed once |
# | [kv_cache](15_kv_cache.ipynb) | caches with room to grow |
# | [continuous_batching](80_continuous_batching.ipynb) | new rows take the places of finished ones |
# | [oom](05_oom.ipynb) | smaller batches when memory runs out |

# %%
#| export
from moral_sc.language.engine.contexts import engine_is_on, inference, training
_all_ = ['engine_is_on', 'inference', 'training']

# %%
#| hide
import torch
from fastcore.test import *
from moral_sc.language.stub_models import random_model

# %% [markdown]
# You write:

# %%
lm = random_model('llama')
ids = torch.tensor([[5, 6, 7]])
with torch.no_grad(), inference(lm.model): logits = lm.model(ids).logits
with training(lm.model): lm.model(ids).logits.sum().backward()
logits.shape

# %%
assert engine_is_on()
