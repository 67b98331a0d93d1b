# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Weight packing
#
# > On a CPU, linear layers with prepacked weights are up to three times as fast.

# %%
#| default_exp language.engine.weight_packing

# %%
#| export
from contextlib import contextmanager, nullcontext
from functools import cache

import torch
from torch import nn

from moral_sc.language.engine.allocator import release_freed_memory
from moral_sc.language.engine.onednn import (float32_linears, onednn_is_worthwhile,
                                             onednn_linear)
from moral_sc.language.engine.replacement import reduce_as, replaced_classes

# %%
#| hide
import copy
from time import perf_counter
import pandas as pd
from fastcore.test import *
from moral_sc.language.reward_head import small_llama
torch.set_num_threads(1)

# %% [markdown]
# A decoding step multiplies every weight of the model with a few rows. It does little arithmetic;
# the time goes into reading the weights, and a general matrix product reads them in an order that
# suits large products. [oneDNN](30_onednn.ipynb) can store them in its own order beforehand, and
# is then three times as fast on eight rows of a 135M model. torch's compiler does the same when it
# freezes a model; here it lasts as long as a `with` block.
#
# In most models of today, two thirds of the weights are in gated MLP blocks: a gate, an up
# projection and a down projection. There the gate's activation is fused into its product and the
# gated result is computed in place, which saves two of the widest tensors. A trial on a few numbers
# tells whether a block computes exactly this.
#
# Packing helps only if the weights exceed the processor's cache, so models of the
# [toy environment](../../constitution/toy/10_environment.ipynb) are left alone. Results differ
# from the unpacked ones by rounding.

# %%
#| export
DECODE_STEP_TOKENS = 120 # Prompt tokens that cost as much extra time, unpacked, as one step
_MIN_TOKENS = 2000       # Packing costs more than it saves on less work

class PackedLinear(nn.Linear):
    "A linear layer with prepacked weights, for inference"
    def forward(self, x): return onednn_linear(x, self.packed_weight, self.bias)
    def __reduce_ex__(self, protocol): return reduce_as(nn.Linear, self, ['packed_weight'])

@cache
def _packed_gated_class(cls):
    class PackedGatedMLP(cls):
        "A gated MLP block of packed layers, with its activation fused into the gate"
        def forward(self, x):
            gate = self.gate_proj
            hidden = onednn_linear(x, gate.packed_weight, gate.bias, 'swish')
            return self.down_proj(hidden.mul_(self.up_proj(x)))
        def __reduce_ex__(self, protocol): return reduce_as(cls, self)
    return PackedGatedMLP

def _is_gated(block):
    "Whether a block of packed layers computes down(silu(gate(x))*up(x)) and nothing else"
    layers = [getattr(block, k, None) for k in ('gate_proj', 'up_proj', 'down_proj')]
    if 'forward' in block.__dict__ or not all(isinstance(m, PackedLinear) for m in layers):
        return False
    x = torch.linspace(-4, 4, layers[0].in_features)[None]
    def close(a, b): return torch.allclose(a, b, rtol=1e-4, atol=1e-5)
    try: return close(block.act_fn(x), nn.functional.silu(x)) and close(
        block(x), _packed_gated_class(type(block)).forward(block, x))
    except Exception: return False # Blocks fail in many ways

def _trimming(in_place): return release_freed_memory() if in_place else nullcontext(lambda: None)

def _pack(layers, in_place):
    with _trimming(in_place) as trim:
        for k,m in enumerate(layers):
            m.packed_weight = torch.ops.mkldnn._reorder_linear_weight(m.weight.detach(), 64)
            m.__class__ = PackedLinear
            if in_place: m.weight.data = m.weight.data.new_empty(0)
            if k%8==7: trim()

def _unpack(classes, in_place): # Layer by layer, so that few weights exist twice
    with _trimming(in_place) as trim:
        for k,(m,cls) in enumerate(classes.items()):
            packed = m.__dict__.pop('packed_weight', None)
            m.__class__ = cls
            if in_place and packed is not None: m.weight.data = packed.to_dense()
            del packed
            if k%8==7: trim()

def _unshared(model, layers):
    "Layers whose weights no other module uses"
    used = [id(p) for m in model.modules() for p in m.parameters(recurse=False)]
    return [m for m in layers if used.count(id(m.weight))==1]

def has_packed_weights(model)->bool:
    "Tell whether a model's weights are packed now"
    return any(isinstance(m, PackedLinear) for m in model.modules())

@contextmanager
def prepacked_weights(
    model,              # Any module; unchanged where packing does not pay
    tokens:float=1e9,   # To be processed; a decoding step counts as `DECODE_STEP_TOKENS`
    in_place:bool=False,# Free the plain weights meanwhile; only under `no_grad`, and not those
                        # that another module shares
    fused:bool=True,    # Fuse the activation of gated blocks, which rounds differently
):
    "Prepack the weights of linear layers while this lasts, without gradients"
    if has_packed_weights(model) or torch.is_grad_enabled() or tokens<_MIN_TOKENS or \
            not onednn_is_worthwhile(model):
        yield
        return
    in_place = in_place and not torch.is_inference_mode_enabled()
    layers = float32_linears(model)
    if in_place: layers = _unshared(model, layers)
    classes = {m: m.__class__ for m in layers}
    try:
        _pack(layers, in_place)
        gated = [m for m in model.modules() if _is_gated(m)] if fused else []
        with replaced_classes({m: _packed_gated_class(type(m)) for m in gated}): yield
    finally: _unpack(classes, in_place)


# %% [markdown]
# ## Proof
#
# A model of 25 million weights. For any number of rows, packed and plain logits agree to seven
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
# On exit the original weights are restored exactly, also if the plain weights were freed in
# between and if the block ended in an exception. Nested calls have no effect. A copy made inside
# is an ordinary model.

# %%
def kinds(model): return {type(m).__name__ for m in model.modules()}
def unchanged(): return all(torch.equal(a, b) for a,b in zip(model.parameters(),
                                                             plain.parameters()))
layer = model.model.layers[0].mlp.up_proj
with torch.no_grad():
    with prepacked_weights(model): twin = copy.deepcopy(model)
    test_eq(kinds(twin), kinds(plain))
    assert torch.equal(twin(ids).logits, want)
    with expect_fail(KeyError):
        with prepacked_weights(model, in_place=True):
            test_eq(layer.weight.numel(), 0)
            assert model.lm_head.weight.numel() # Shared with the embedding
            with prepacked_weights(model): inside = model(ids).logits
            test_eq(layer.weight.numel(), 0)
            raise KeyError
    assert unchanged() and 'packed_weight' not in vars(layer)
    test_eq(kinds(model), kinds(plain))
    test_close(inside, got, 2e-5)
    assert torch.equal(model(ids).logits, want)

# %% [markdown]
# A block that looks gated but computes something else is left as it is.

# %%
other = copy.deepcopy(model)
other.model.layers[0].mlp.act_fn = nn.Tanh()
with torch.inference_mode():
    want = other(ids).logits
    with prepacked_weights(other):
        test_eq([type(x.mlp).__name__=='PackedGatedMLP' for x in other.model.layers],
                [False]+[True]*7)
        test_close(other(ids).logits, want, 2e-5)

# %% [markdown]
# With gradients, in other number formats, for small models and for little work, nothing happens.

# %%
with prepacked_weights(model): assert not has_packed_weights(model)
with torch.no_grad():
    with prepacked_weights(model, tokens=5*DECODE_STEP_TOKENS): assert not has_packed_weights(model)
    half = copy.deepcopy(model).bfloat16()
    small = small_llama(Ids(range(99))).model
    for m in (half, small):
        with prepacked_weights(m): assert not has_packed_weights(m)


# %% [markdown]
# ## Speed
#
# Milliseconds of a forward pass of this model on one thread of the machine that recorded this
# page, by the number of rows.

# %%
def milliseconds(m, rows, turns=3):
    "The median of some forward passes"
    seconds = []
    ids = torch.ones(rows, 1, dtype=torch.long)
    for _ in range(turns+2):
        start = perf_counter()
        m(ids, use_cache=False)
        seconds.append(perf_counter()-start)
    return 1000*sorted(seconds[2:])[turns//2]

with torch.inference_mode():
    table = []
    for n in (1, 8, 64):
        unpacked = milliseconds(model, n)
        with prepacked_weights(model): table.append((n, unpacked, milliseconds(model, n)))
pd.DataFrame(table, columns=['rows', 'plain', 'packed']).set_index('rows').round(1)
