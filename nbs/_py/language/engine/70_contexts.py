# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Engine contexts
#
# > Two context managers switch on all that makes forward and backward passes fast.

# %%
#| default_exp language.engine.contexts

# %%
#| export
import os
from contextlib import ExitStack, contextmanager

from moral_sc.language.engine.allocator import retain_freed_memory
from moral_sc.language.engine.batch_invariant import batch_invariant_layers
from moral_sc.language.engine.onednn import onednn_layers
from moral_sc.language.engine.weight_packing import DECODE_STEP_TOKENS, prepacked_weights

# %%
#| hide
import copy
import threading
from unittest.mock import patch
import pandas as pd
import torch
from fastcore.test import *
from torch import nn
from moral_sc.language.engine.replacement import has_replaced_attention
from moral_sc.language.engine.weight_packing import has_packed_weights
from moral_sc.language.generation import sample
from moral_sc.language.models import encode
from moral_sc.language.reward_head import answer_logprobs, small_llama, word_tokenizer
from moral_sc.language.scoring import option_logprobs
torch.set_num_threads(1)


# %% [markdown]
# Scoring, generation and training use `inference` and `training` and no other part of the engine
# that changes how a model computes: [oneDNN layers](30_onednn.ipynb),
# [prepacked weights](40_weight_packing.ipynb), the [memory allocator](50_allocator.ipynb) and
# [batch invariance](60_batch_invariant.ipynb). Both act on the models that you name. Other models
# of the process are untouched, and on exit everything is restored.
#
# Set the environment variable `MORAL_SC_ENGINE=off` to use plain PyTorch and transformers for attention and linear layers.
# Results then differ by rounding, and not at all for models below 20 million weights, on GPUs or in
# other number formats than float32.

# %%
#| export
def engine_is_on()->bool:
    "Tell whether the engine is on; `MORAL_SC_ENGINE=off` switches it off"
    return os.environ.get('MORAL_SC_ENGINE', 'on').lower() not in ('off', '0', 'false', 'no')

def _layers(model, batch_invariant):
    return batch_invariant_layers(model) if batch_invariant else onednn_layers(model)

@contextmanager
def inference(
    *models,                   # Modules, or None
    tokens:float=None,         # Tokens of prompts to be processed; default: many, or 0 with `steps`
    steps:int=0,               # Decoding steps after them
    batch_invariant:bool=False,# A row's results do not depend on its batch; no effect on a model
                               # that an outer `inference` without it has packed
    in_place:bool=False,       # Free plain weights while they are packed; only under `no_grad`
):
    "Make forward passes of some models fast while this lasts"
    if tokens is None: tokens = 0 if steps else 1e9
    work = tokens+DECODE_STEP_TOKENS*steps
    with ExitStack() as stack:
        for m in models if engine_is_on() else ():
            if m is None: continue
            stack.enter_context(_layers(m, batch_invariant))
            stack.enter_context(prepacked_weights(m, work, in_place, fused=not batch_invariant))
        yield

@contextmanager
def training(
    *models,                   # Modules that compute in a training step, trained or not, or None
    batch_invariant:bool=False,# A row's results do not depend on its batch
):
    "Make forward and backward passes of some models fast while this lasts"
    models = [m for m in models if m is not None]
    with ExitStack() as stack:
        if engine_is_on() and any(p.device.type=='cpu' for m in models for p in m.parameters()):
            stack.enter_context(retain_freed_memory())
            for m in models: stack.enter_context(_layers(m, batch_invariant))
        yield


# %% [markdown]
# ## Results inside and outside
#
# We compare scores, sampled answers and gradients of a model of 25 million weights with the engine
# on and off.

# %%
words = 'is it far tea the cup here there . ? , yes no very hot cold and or'.split()
lm = small_llama(word_tokenizer(words), layers=8, width=512, heads=8)
prompts = [f'{a} {b}' for a in ('the tea is', 'is it', 'the cup')
           for b in ('hot', 'very far ,')]
rows = [encode(lm, p+' yes, it is very hot.') for p in prompts]

def scores(): return torch.tensor(option_logprobs(lm, prompts, [' yes', ' no', ' here']))
def answers(): return [s.ids for s in sample(lm, prompts, 12, seed=2)]
def gradients(**kw):
    with training(lm.model, **kw):
        lm.model.zero_grad()
        lp = answer_logprobs(lm.model, rows, [3]*len(rows))[0]
        lp.sum().backward()
        gradients = [p.grad.flatten() for p in lm.model.parameters()]
        return torch.cat([lp.detach().flatten(), *gradients])

on = scores(), answers(), gradients(), gradients(batch_invariant=True)
with patch.dict(os.environ, MORAL_SC_ENGINE='off'):
    off = scores(), answers(), gradients(), gradients()
    with inference(lm.model): assert not has_replaced_attention(lm.model)
test_eq(on[1], off[1])
gaps = {k: ((on[i]-off[i]).abs().max()/off[i].abs().max()).item() for i,k in
        ((0, 'scores'), (2, 'gradients'), (3, 'gradients, batch-invariant'))}
assert max(gaps.values())<1e-5
gaps

# %% [markdown]
# Small models compute the same bits.

# %%
small = small_llama(word_tokenizer(words))
ids = torch.tensor([encode(small, 'the tea is very hot.')])
want = small.model(ids).logits
with training(small.model, batch_invariant=True): assert torch.equal(small.model(ids).logits, want)
with torch.no_grad(), inference(small.model): assert torch.equal(small.model(ids).logits, want)

# %% [markdown]
# ## Restoration and nesting
#
# On exit layers, attention and weights are as they were, also after an exception.

# %%
model = lm.model
before = copy.deepcopy(model)
def kinds(model): return [type(m) for m in model.modules()]
def is_restored():
    same = all(torch.equal(a, b) for a,b in zip(model.parameters(), before.parameters()))
    return same and kinds(model)==kinds(before) and not has_replaced_attention(model) \
        and model.config._attn_implementation=='sdpa'

ids = torch.tensor(rows[0])[None]
want = model(ids).logits
for context in (lambda: inference(model, in_place=True), lambda: training(model),
                lambda: training(model, batch_invariant=True)):
    with torch.no_grad(), expect_fail(KeyError), context():
        assert has_replaced_attention(model)
        model(ids)
        raise KeyError
    assert is_restored()
    assert torch.equal(model(ids).logits, want)

# %% [markdown]
# Inside `training` of a batch-invariant policy, rollouts open `inference`. The inner context packs
# the weights and leaves the attention of the outer one.

# %%
with torch.no_grad(), training(model, batch_invariant=True):
    a = model(ids).logits
    with inference(model):
        assert has_packed_weights(model)
        b = model(torch.cat([ids, ids])).logits[:1]
    test_close(a, b, 1e-5)
    assert has_replaced_attention(model) and not has_packed_weights(model)
    with inference(model, batch_invariant=True):
        c = [model(torch.cat([ids]*n)).logits[:1] for n in (1, 3)]
    assert torch.equal(*c)
assert is_restored()

# %% [markdown]
# ## Other models and threads
#
# While one thread uses the engine, another model in another thread computes the bits that it
# computes without, and so do torch's own functions.

# %%
other = copy.deepcopy(before)
functions = nn.functional.linear, nn.functional.scaled_dot_product_attention
want = other(ids).logits
inside,done = threading.Event(),threading.Event()
seen = []
def in_thread():
    inside.wait()
    seen.append(other(ids).logits)
    done.set()

thread = threading.Thread(target=in_thread)
thread.start()
with torch.no_grad(), inference(model):
    inside.set()
    done.wait()
    test_eq((nn.functional.linear, nn.functional.scaled_dot_product_attention), functions)
    assert 'TRANSFORMERS_SDPA_FORCE_GQA' not in os.environ
    packed = model(ids).logits
thread.join()
assert torch.equal(seen[0], want) and not torch.equal(packed, want)
test_close(packed, want.detach(), 1e-4)
