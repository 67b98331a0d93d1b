# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Weights in the order they are read
#
# > On a CPU, linear layers are up to three times as fast with their weights packed.

# %%
#| default_exp language.engine.weight_packing

# %%
#| export
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from moral_sc.language.engine.onednn import float32_linears, onednn_is_worthwhile, onednn_linear
from moral_sc.language.engine.allocator import release_freed_memory

# %%
#| hide
import copy
from time import perf_counter
import pandas as pd
from fastcore.test import *
from moral_sc.language.reward_head import small_llama
torch.set_num_threads(1)

# %% [markdown]
# A step of sampling multiplies every weight of the model with a few rows. The arithmetic is little;
# what takes the time is to fetch the weights, and a general matrix product fetches them in an order
# that suits large products. [oneDNN](30_onednn.ipynb) can lay them out for its own order
# beforehand, and reads a 135M model three times as fast for eight rows. torch's compiler does the
# same when it freezes a model; here it is done for as long as a call lasts.
#
# In most of today's models two thirds of the weights are in blocks of three layers, a gate, a way up
# and a way down. There the gate's activation is done while its product is still in the cache, and its
# result is multiplied where it lies, which saves two tensors of the widest kind. Whether a
# block does just that is found out by trying it on a few numbers.
#
# Weights must be too many for the cache of the processor, or nothing is gained: models of the
# [toy world](../../constitution/toy/10_environment.ipynb) are left alone. Values differ from the plain ones
# by rounding.

# %%
#| export
DECODE_STEP_TOKENS = 120 # Tokens that take as much more time, plain, as a step of sampling does

def _layer(weight, bias, then='none'):
    "The forward pass of a packed layer, and of what comes directly after it"
    return lambda x: onednn_linear(x, weight, bias, then)

def _gated(m, there):
    "The forward pass of a gated block whose layers are packed; None if it is something else"
    layers = [getattr(m, k, None) for k in ('gate_proj', 'up_proj', 'down_proj')]
    if 'forward' in m.__dict__ or not all(x in there for x in layers): return
    gate,up,down = (_layer(there[x], x.bias, k) for x,k in zip(layers, ('swish','none','none')))
    def forward(x): return down(gate(x).mul_(up(x)))
    x = torch.linspace(-4, 4, layers[0].in_features)[None]
    same = lambda a, b: torch.allclose(a, b, rtol=1e-4, atol=1e-5)
    try: ok = same(m.act_fn(x), nn.functional.silu(x)) and same(m(x), forward(x))
    except Exception: return # Blocks refuse in many ways
    return forward if ok else None

@contextmanager
def prepacked_weights(
    model,           # Any module; nothing happens where packing does not pay
    work:float=1e9,  # Tokens to be read, and `STEP` for each step of sampling
    room:bool=False, # In no more memory: plain weights are away until the end, and those that
                     # another module needs stay as they are; only under `no_grad`
    fused:bool=True, # The activation of gated blocks in their product, which rounds otherwise
):
    "Linear layers with packed weights, without gradients, while this lasts"
    inside = getattr(model, '_packed', False) # Then it is somebody else's to undo
    if inside or torch.is_grad_enabled() or work<2000 or not onednn_is_worthwhile(model): yield; return
    layers = float32_linears(model)
    blocks = []
    room = room and not torch.is_inference_mode_enabled()
    used = [id(p) for m in model.modules() for p in m.parameters(recurse=False)]
    if room: layers = [m for m in layers if used.count(id(m.weight))==1]
    model._packed = True
    there = {}
    change = release_freed_memory if room else lambda: nullcontext(lambda: None)
    try:
        with change() as give_back:
            for k,m in enumerate(layers):
                there[m] = torch.ops.mkldnn._reorder_linear_weight(m.weight.detach(), 64)
                m.forward = _layer(there[m], m.bias)
                if room: m.weight.data = m.weight.data.new_empty(0)
                if k%8==7: give_back()
        for m in model.modules() if fused else ():
            if forward := _gated(m, there): m.forward = forward; blocks.append(m)
        yield
    finally:
        with change() as give_back:
            for k,m in enumerate([*blocks, *layers]): # One by one: both kinds are never together
                m.__dict__.pop('forward', None)
                w = there.pop(m, None)
                if room and w is not None: m.weight.data = w.to_dense()
                del w
                if k%8==7: give_back()
        del model._packed


# %% [markdown]
# ## Proof
#
# A model of 25 million weights. In any number of rows it says the same packed and plain, to seven
# digits of the largest logit.

# %%
class Ids(list): pad_token_id = eos_token_id = 1
model = small_llama(Ids(range(2048)), layers=8, width=512, heads=8).model
plain = copy.deepcopy(model)
g = torch.Generator().manual_seed(0)
gaps = {}
with torch.inference_mode():
    for shape in ((1, 1), (8, 1), (3, 17), (2, 200)):
        ids = torch.randint(2048, shape, generator=g)
        want = plain(ids).logits
        with prepacked_weights(model): got = model(ids).logits
        gaps[shape] = ((got-want).abs().max()/want.abs().max()).item()
assert max(gaps.values())<2e-6
gaps

# %% [markdown]
# Behind it all is as before, bit for bit, also where the plain weights had been put away in
# between, and where the work ended in an error. One inside another is the outer one.

# %%
same = lambda: all(torch.equal(a, b) for a,b in zip(model.parameters(), plain.parameters()))
layer = model.model.layers[0].mlp.up_proj
with torch.no_grad():
    with expect_fail(KeyError):
        with prepacked_weights(model, room=True):
            test_eq(layer.weight.numel(), 0)
            assert model.lm_head.weight.numel() # The embeddings are read from it
            with prepacked_weights(model): inside = model(ids).logits
            test_eq(layer.weight.numel(), 0)
            raise KeyError
    assert same() and not any('forward' in m.__dict__ for m in model.modules())
    test_close(inside, got, 2e-5)
    assert torch.equal(model(ids).logits, want)

# %% [markdown]
# A block that looks like a gated one and computes something else is left as it is.

# %%
other = copy.deepcopy(model)
other.model.layers[0].mlp.act_fn = nn.Tanh()
with torch.inference_mode():
    want = other(ids).logits
    with prepacked_weights(other):
        test_eq(['forward' in x.mlp.__dict__ for x in other.model.layers], [False]+[True]*7)
        test_close(other(ids).logits, want, 2e-5)

# %% [markdown]
# With gradients, in other number formats, for small models and for less work than packing takes
# nothing happens.

# %%
with prepacked_weights(model): assert 'forward' not in layer.__dict__
with torch.no_grad(), prepacked_weights(model, work=5*DECODE_STEP_TOKENS): assert 'forward' not in layer.__dict__
with torch.no_grad():
    half = copy.deepcopy(model).bfloat16()
    small = small_llama(Ids(range(99))).model
    for m in (half, small):
        with prepacked_weights(m): assert not any('forward' in x.__dict__ for x in m.modules())


# %% [markdown]
# ## What it brings
#
# Milliseconds of a pass of this model on one thread of the machine that made this page, by rows.

# %%
def milliseconds(m, rows, turns=9):
    "The median of some passes"
    took = []
    ids = torch.ones(rows, 1, dtype=torch.long)
    for _ in range(turns+2):
        start = perf_counter()
        m(ids, use_cache=False)
        took.append(perf_counter()-start)
    return 1000*sorted(took[2:])[turns//2]

with torch.inference_mode():
    took = []
    for n in (1, 4, 8, 16, 64):
        plainly = milliseconds(model, n)
        with prepacked_weights(model): took.append((n, plainly, milliseconds(model, n)))
pd.DataFrame(took, columns=['rows', 'plain', 'packed']).set_index('rows').round(1)
