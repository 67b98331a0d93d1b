# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # oneDNN layers
#
# > On many CPUs oneDNN multiplies float32 matrices up to twice as fast as torch's default library.

# %%
#| default_exp language.engine.onednn

# %%
#| export
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from moral_sc.language.engine.replacement import (has_replaced_attention, reduce_as,
                                                  replaced_attention, replaced_classes)

# %%
#| hide
import copy
from time import perf_counter
import pandas as pd
from fastcore.test import *
from moral_sc.language.reward_head import answer_logprobs, small_llama
torch.set_num_threads(1)


# %% [markdown]
# On a CPU, a model spends its time in products of float32 matrices. torch gives them to the
# library it was built with, mostly MKL, which is slow on some processors. torch also contains
# oneDNN, for its compiler and for other number formats; oneDNN generates code for the processor
# it finds. The two libraries add up the same products in another order, so results differ by
# rounding. The last table of this page compares their speed.
#
# ## Linear layers
#
# oneDNN is a thousand times slower on matrices whose rows or columns are not contiguous, so we
# copy them first.

# %%
#| export
def _contiguous(x): # Packed weights are in oneDNN's own layout
    return x if x.is_mkldnn or x.is_contiguous() or x.mT.is_contiguous() else x.contiguous()

def onednn_linear(
    x,                 # [..., in]
    weight,            # [out, in], plain or packed
    bias=None,         # [out]
    activation='none', # Applied to the result: 'swish', ...
):                     # [..., out], without gradients
    "Apply a linear layer by oneDNN"
    run = torch.ops.mkldnn._linear_pointwise
    x = _contiguous(x)
    weight = _contiguous(weight)
    if x.numel()>x.shape[-1]: return run(x, weight, bias, activation, [], '')
    rows = x.reshape(1, -1).repeat(2, 1) # One row would be added up in another order
    return run(rows, weight, bias, activation, [], '')[:1].reshape(*x.shape[:-1], -1)


# %% [markdown]
# The gradients of a layer $y = xW^\top$ are products, too: $\bar x = \bar y W$ and
# $\bar W = \bar y^\top x$. Layers of other number formats, on other devices and under autocast
# are left to torch.

# %%
#| export
_linear = nn.functional.linear
_attention = nn.functional.scaled_dot_product_attention

class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return onednn_linear(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        x,weight = ctx.saved_tensors
        x_grad,weight_grad,bias_grad = ctx.needs_input_grad
        rows = g.flatten(0, -2)
        return (onednn_linear(g, weight.T) if x_grad else None,
                onednn_linear(rows.T, x.flatten(0, -2).T) if weight_grad else None,
                rows.sum(0) if bias_grad else None)

def is_plain_float32(*tensors)->bool:
    "Tell whether all tensors are ordinary float32 tensors on the CPU, outside autocast"
    return all(type(x) in (torch.Tensor, nn.Parameter) and x.dtype==torch.float32
               and x.device.type=='cpu' for x in tensors) and not torch.is_autocast_enabled('cpu')

def differentiable_linear(
    x,         # [..., in]
    weight,    # [out, in]
    bias=None, # [out]
):             # [..., out]
    "Apply a linear layer by oneDNN, with gradients; by torch where oneDNN cannot"
    if x.ndim<2 or not x.numel() or not is_plain_float32(x, weight): return _linear(x, weight, bias)
    return _Linear.apply(x, weight, bias)

class OneDNNLinear(nn.Linear):
    "A linear layer that oneDNN computes; copies of it are of torch's class"
    def forward(self, x): return differentiable_linear(x, self.weight, self.bias)
    def __reduce_ex__(self, protocol): return reduce_as(nn.Linear, self)

def linear_function(
    layer,
): # (x, weight, bias) -> [..., out]
    "Return the function with which a linear layer computes now, for parts of its weights"
    return differentiable_linear if isinstance(layer, OneDNNLinear) else _linear

MIN_WEIGHTS = 2e7 # Weights in linear layers; smaller models are left to torch

def float32_linears(model)->list:
    "List the linear layers that oneDNN can compute"
    return [m for m in model.modules() if type(m) in (nn.Linear, OneDNNLinear)
            and m.weight.device.type=='cpu' and m.weight.dtype==torch.float32]

def onednn_is_worthwhile(model)->bool:
    "Tell whether oneDNN is available and the model large enough to gain from it"
    return (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
            and hasattr(torch.ops.mkldnn, '_reorder_linear_weight')
            and sum(m.weight.numel() for m in float32_linears(model))>=MIN_WEIGHTS)


# %% [markdown]
# Their error against float64 is about that of torch's own layers. Weights that are not trained
# get no gradient.

# %%
g = torch.Generator().manual_seed(0)
def given(*shape, dtype=torch.float32): return torch.randn(shape, generator=g, dtype=dtype)

def with_gradients(f, tensors, up, trained):
    "Result of a function, and the gradients of its first tensors"
    tensors = [t.clone().requires_grad_(k<trained) for k,t in enumerate(tensors)]
    y = f(*tensors)
    y.backward(up)
    return [y.detach(), *(t.grad for t in tensors[:trained])]

def relative_error(a, b):
    return max(((x-y).norm()/y.norm()).item() for x,y in zip(a, b, strict=True))

errors = {}
for rows in ((1, 1), (7,), (3, 50), (2, 300)):
    x = given(*rows, 96)
    w = given(160, 96)
    b = given(160)
    up = given(*rows, 160)
    for trained in (1, 3):
        exact = with_gradients(_linear, [t.double() for t in (x, w, b)], up.double(), trained)
        ours,torchs = (with_gradients(f, (x, w, b), up, trained)
                       for f in (differentiable_linear, _linear))
        errors[str(rows),trained] = relative_error(ours, exact),relative_error(torchs, exact)
        assert relative_error(ours, exact)<1e-6
pd.DataFrame(errors, index=['oneDNN', 'torch']).T.map('{:.0e}'.format)

# %% [markdown]
# ## Attention
#
# Without gradients, attention is two products with a softmax between them. Heads that share keys
# and values are rows of one product, so the shared keys are not copied for each head. Scores are
# computed for so many tokens at a time that they stay in the processor's cache, and only with
# the keys up to the last of those tokens, unless the mask admits later ones.

# %%
#| export
_BLOCK_SCORES = 2**19 # Scores computed at a time, of all heads that share their keys
_MIN_SCORES = 3e4     # For each head of the keys; fewer are left to torch

def _supported(q, k, v, mask, is_causal, gqa):
    if torch.is_grad_enabled() or q.ndim!=4 or len(q)!=len(k) or not is_plain_float32(q, k, v):
        return False
    if not gqa and q.shape[1]!=k.shape[1]: return False
    if q.shape[1]*q.shape[2]*k.shape[2]<_MIN_SCORES*k.shape[1]: return False
    if mask is None: return is_causal and q.shape[2]==k.shape[2]
    return not is_causal and mask.ndim==4 and mask.shape[1]==1 and (
        mask.dtype==torch.bool or is_plain_float32(mask))

def onednn_attention(
    query,                      # [row, head, token, width]
    key, value,                 # [row, head, token, width]; fewer heads if they are shared
    attn_mask=None,             # [row, 1, token, token]: added to the scores, or True if attended
    dropout_p=0., is_causal=False, scale=None, enable_gqa=False,
):                              # [row, head, token, width]
    "Compute `scaled_dot_product_attention`, by oneDNN where that is faster"
    if not dropout_p and _supported(query, key, value, attn_mask, is_causal, enable_gqa):
        scale = query.shape[3]**-.5 if scale is None else scale
        return _attend(query, key, value, attn_mask, scale)
    return _attention(query, key, value, attn_mask=attn_mask, dropout_p=dropout_p,
                      is_causal=is_causal, scale=scale, enable_gqa=enable_gqa)

def _attend(q, k, v, mask, scale):
    (B,H,m,d),(K,n),width = q.shape,k.shape[1:3],v.shape[3]
    group = H//K
    least = torch.finfo(q.dtype).min
    out = q.new_empty(B, m, K, group, width)
    q = (q*scale).reshape(B, K, group, m, d)
    k = k.contiguous()
    v = v.contiguous()
    if mask is None: mask = torch.ones(m, n, dtype=torch.bool).tril()
    mask = mask.expand(B, 1, m, n)
    block = max(32, _BLOCK_SCORES//(group*n))
    for b in range(B):
        for i in range(0, m, block):
            j = min(m, i+block)
            end = n-m+j
            bias = mask[b,:,i:j]
            if bias.dtype==torch.bool: bias = q.new_zeros(bias.shape).masked_fill_(~bias, least)
            if (bias[...,end:]>least).any(): end = n
            for h in range(K):
                s = onednn_linear(q[b,h,:,i:j].reshape(-1, d), k[b,h,:end])
                s.view(group, j-i, end).add_(bias[...,:end])
                torch.softmax(s, -1, out=s)
                attended = onednn_linear(s, v[b,h,:end].T).view(group, j-i, width)
                out[b,i:j,h] = attended.transpose(0, 1)
    return out.view(B, m, H, width).transpose(1, 2)


# %% [markdown]
# We compare it with the definition of attention in float64: with shared keys and without, with
# keys of a KV cache, under causal masks, windows, tree masks and masks that admit later tokens,
# for many tokens and few, and for keys in the memory layout that a layer produces.

# %%
def defined(q, k, v, mask, scale):
    "Softmax of the scores, times the values"
    group = q.shape[1]//k.shape[1]
    k,v = (x.double().repeat_interleave(group, 1) for x in (k, v))
    return ((q.double()*scale)@k.mT+mask.double()).softmax(-1)@v

def masked(sees): return torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)

def positions(m, n): return torch.arange(m)[:,None]+n-m, torch.arange(n)

masks = dict(causal=lambda v, u: u<=v, window=lambda v, u: (u<=v) & (v-u<40),
              tree=lambda v, u: (u<=v) & ((u<30) | (u//25==v//25)), later=lambda v, u: u<=v+9)
worst = {}
with torch.inference_mode():
    for m,n in ((300, 300), (257, 900), (700, 700), (90, 1000)):
        for H,K in ((6, 2), (3, 3)):
            q = given(2, m, H, 16).transpose(1, 2)
            k,v = (given(2, n, K, 16).transpose(1, 2) for _ in 'kv')
            if m%2==0: k,v = k.contiguous(),v.contiguous()
            for name,f in masks.items():
                mask = masked(f(*positions(m, n))).expand(2, 1, m, n)
                got = _attend(q, k, v, mask, .3)
                test_close(onednn_attention(q, k, v, mask, scale=.3, enable_gqa=H>K), got, 1e-5)
                test_close(onednn_attention(q, k, v, mask==0, scale=.3, enable_gqa=H>K), got, 1e-5)
                error = (got-defined(q, k, v, mask, .3)).abs().max().item()
                worst[name] = max(error, worst.get(name, 0))
            if m==n:
                causal = onednn_attention(q, k, v, is_causal=True, scale=.3, enable_gqa=H>K)
                mask = masked(masks['causal'](*positions(m, n)))
                test_close(causal, defined(q, k, v, mask, .3).float(), 1e-5)
assert max(worst.values())<1e-5
{k: f'{x:.0e}' for k,x in worst.items()}


# %% [markdown]
# ## Layers of a model
#
# `onednn_layers` gives one model these layers and this attention. Models whose linear layers have
# fewer than twenty million weights are left alone: they gain little, and recorded results of the
# [toy environment](../../constitution/toy/10_environment.ipynb) stay the same bit for bit.

# %%
#| export
@contextmanager
def onednn_layers(
    model,
    attention=None, # Another attention function; default: `onednn_attention`
):
    "Compute one model's linear layers and attention by oneDNN while this lasts"
    with ExitStack() as stack:
        if onednn_is_worthwhile(model):
            plain = [m for m in float32_linears(model) if type(m) is nn.Linear]
            stack.enter_context(replaced_classes(dict.fromkeys(plain, OneDNNLinear)))
            if attention or not has_replaced_attention(model):
                stack.enter_context(replaced_attention(model, attention or onednn_attention))
        yield


# %% [markdown]
# On a model of 25 million weights, outputs and gradients match PyTorch to rounding, and repeated
# runs are bitwise identical. Nested calls have no effect. The output layer is computed in chunks,
# and again in the backward pass.

# %%
class Ids(list): pad_token_id = eos_token_id = 1
model = small_llama(Ids(range(2048)), layers=8, width=512, heads=8).model
exact = copy.deepcopy(model).double()
rows = [[3+(7*i+k*k)%2000 for k in range(40+5*i)] for i in range(3)]

def gradients(model):
    "Log-probabilities of the ends of some rows, and all gradients of their sum"
    model.zero_grad()
    lp = answer_logprobs(model, rows, [20]*3, chunk=32)[0]
    lp.sum().backward()
    return [lp.detach(), *(p.grad.clone() for p in model.parameters())]

true = gradients(exact)
before = gradients(model)
with onednn_layers(model), onednn_layers(model): inside,again = gradients(model),gradients(model)
after = gradients(model)
assert all(torch.equal(a, b) for pair in ((inside, again), (before, after)) for a,b in zip(*pair))
assert not all(torch.equal(a, b) for a,b in zip(inside, before))
errors = {k: relative_error(x, true) for k,x in (('inside', inside), ('outside', before))}
assert max(errors.values())<1e-5
errors


# %% [markdown]
# Small models, other number formats and autocast are left to torch, and so is every model that
# was not named.

# %%
def kinds(model): return {type(m).__name__ for m in model.modules() if isinstance(m, nn.Linear)}
small = small_llama(Ids(range(99))).model
with onednn_layers(small): test_eq(kinds(small), {'Linear'})
other = copy.deepcopy(model)
half = copy.deepcopy(model).bfloat16()
x = given(3, 64)
w = given(32, 64)
with onednn_layers(model), onednn_layers(half):
    test_eq([kinds(m) for m in (model, half, other)], [{'OneDNNLinear'}, {'Linear'}, {'Linear'}])
    with torch.autocast('cpu', torch.bfloat16):
        test_eq(differentiable_linear(x, w).dtype, torch.bfloat16)
test_eq(kinds(model), {'Linear'})


# %% [markdown]
# ## Speed
#
# Billions of operations a second on one thread of the machine that recorded this page: the layers
# of a model of 135M weights on 500 tokens, and the attention of 340 tokens to a prefix of 660
# tokens and to each other.

# %%
def speed(f, work, turns=5):
    "Operations a second, by the median of some turns"
    seconds = []
    for _ in range(turns+2):
        start = perf_counter()
        f()
        seconds.append(perf_counter()-start)
    return work/sorted(seconds[2:])[turns//2]/1e9

with torch.inference_mode():
    out = {}
    for a,b in ((576, 576), (576, 1536), (1536, 576)):
        x = given(500, a)
        w = given(b, a)
        out[f'{a} to {b}'] = [speed(lambda f=f: f(x, w), 1000*a*b)
                              for f in (_linear, differentiable_linear)]
    q,k,v = (given(1, n, h, 64).transpose(1, 2) for n,h in ((340, 9), (1000, 3), (1000, 3)))
    mask = masked(masks['causal'](*positions(340, 1000)))[None,None]
    out['attention'] = [speed(lambda f=f: f(q, k, v, mask, enable_gqa=True), 340*1000*9*64*4)
                        for f in (_attention, onednn_attention)]
pd.DataFrame(out, index=['torch', 'oneDNN']).T.round()
