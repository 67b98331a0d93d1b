# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Products of matrices
#
# > On a CPU a model is products of float32 matrices, and of the two libraries for them that torch
# > brings along one may be twice as fast as the other.

# %%
#| default_exp language.engine.onednn

# %%
#| export
import os
from contextlib import contextmanager
from functools import partial
from unittest.mock import patch

import torch
from torch import nn

# %%
#| hide
import copy
from time import perf_counter
import pandas as pd
from fastcore.test import *
from moral_sc.language.reward_head import answer_logprobs, small_llama
torch.set_num_threads(1)


# %% [markdown]
# torch gives float32 products on a CPU to the library it was built with, mostly MKL, which is not
# equally good on all of them. oneDNN, which torch has for its compiler and for other number formats,
# writes its code for the processor it finds. Both add up the same products in another order, so they
# differ by rounding. How far apart they are in speed on the machine that made this page is measured
# at its end.
#
# Matrices whose rows, or columns, do not follow each other in memory are a trap: oneDNN takes them,
# and is a thousand times slower. They are copied first.

# %%
#| export
def _lines(x): # Packed weights lie as oneDNN wants them
    return x if x.is_mkldnn or x.is_contiguous() or x.mT.is_contiguous() else x.contiguous()

def onednn_linear(
    x,           # [..., in]
    weight,      # [out, in], plain or packed
    bias=None,   # [out]
    activation='none', # What comes directly after it: 'swish', ...
):               # [..., out], without gradients
    "A linear layer by oneDNN"
    run = torch.ops.mkldnn._linear_pointwise
    x = _lines(x)
    weight = _lines(weight)
    if x.numel()>x.shape[-1]: return run(x, weight, bias, activation, [], '')
    two = x.reshape(1, -1).repeat(2, 1) # One row would be added up in another order
    return run(two, weight, bias, activation, [], '')[:1].reshape(*x.shape[:-1], -1)

_LEAST = 2e7 # Weights in linear layers

def float32_linears(model):
    "Linear layers that oneDNN can take"
    return [m for m in model.modules() if type(m) is nn.Linear
            and m.weight.device.type=='cpu' and m.weight.dtype==torch.float32]

def onednn_is_worthwhile(model)->bool:
    "Whether oneDNN is there, and the model so large that its products are what takes the time"
    return (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
            and hasattr(torch.ops.mkldnn, '_reorder_linear_weight')
            and sum(m.weight.numel() for m in float32_linears(model))>=_LEAST)


# %% [markdown]
# ## Layers with gradients
#
# The gradients of a layer $y = xW^\top$ are products, too: $\bar x = \bar y W$ and
# $\bar W = \bar y^\top x$.

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
        (x,weight),(to_x,to_weight,to_bias) = ctx.saved_tensors,ctx.needs_input_grad
        rows = g.flatten(0, -2)
        return (onednn_linear(g, weight.T) if to_x else None,
                onednn_linear(rows.T, x.flatten(0, -2).T) if to_weight else None,
                rows.sum(0) if to_bias else None)

def _plain(*xs):
    return all(type(x) in (torch.Tensor, nn.Parameter) and x.dtype==torch.float32
               and x.device.type=='cpu' for x in xs) and not torch.is_autocast_enabled('cpu')

def differentiable_linear(
    x,         # [..., in]
    weight,    # [out, in]
    bias=None, # [out]
):             # [..., out]
    "As torch's function of the same name"
    if x.ndim<2 or not x.numel() or not _plain(x, weight): return _linear(x, weight, bias)
    return _Linear.apply(x, weight, bias)


# %% [markdown]
# Their error is measured against float64, and is about that of torch's own. Weights that are not
# trained get no gradient.

# %%
g = torch.Generator().manual_seed(0)
def given(*shape, dtype=torch.float32): return torch.randn(shape, generator=g, dtype=dtype)

def learned(f, tensors, up, trained):
    "What a function says, and the gradients of its first tensors"
    tensors = [t.clone().requires_grad_(k<trained) for k,t in enumerate(tensors)]
    y = f(*tensors)
    y.backward(up)
    return [y.detach(), *(t.grad for t in tensors[:trained])]

def off(a, b): return max(((x-y).norm()/y.norm()).item() for x,y in zip(a, b, strict=True))

errors = {}
for rows in ((1, 1), (7,), (3, 50), (2, 300)):
    x = given(*rows, 96)
    w = given(160, 96)
    b = given(160)
    up = given(*rows, 160)
    for trained in (1, 3):
        exact = learned(_linear, [t.double() for t in (x, w, b)], up.double(), trained)
        mine,theirs = (learned(f, (x, w, b), up, trained) for f in (differentiable_linear, _linear))
        errors[str(rows),trained] = off(mine, exact),off(theirs, exact)
        assert off(mine, exact)<1e-6
pd.DataFrame(errors, index=['ours', "torch's"]).T.map('{:.0e}'.format)

# %% [markdown]
# ## Attention
#
# While a model is read without gradients, its attention is two products with a softmax between
# them. Heads that share keys and values are rows of one product. Scores are made for some tokens at
# a time, so many that they stay in the cache of the processor, and only with the keys up to the
# last of those tokens, unless the mask lets one of them see further.

# %%
#| export
_AT_ONCE = 2**19 # Scores of all heads that share their keys
_WORTH = 3e4     # Fewer scores than this are left to torch

def onednn_attention(
    query,                      # [row, head, token, width]
    key, value,                 # [row, head, token, width]; fewer heads if they are shared
    attn_mask=None,             # [row, 1, token, token], added to the scores, or True: is seen
    dropout_p=0., is_causal=False, scale=None, enable_gqa=False,
):                              # [row, head, token, width]
    "As torch's `scaled_dot_product_attention`; by oneDNN where that is faster"
    ours = not torch.is_grad_enabled() and not dropout_p and query.ndim==4 and _plain(
        query, key, value)
    ours = ours and len(query)==len(key) and query.shape[1]*query.shape[2]*key.shape[2] \
        >=_WORTH*key.shape[1] and (enable_gqa or query.shape[1]==key.shape[1])
    if attn_mask is None: ours = ours and is_causal and query.shape[2]==key.shape[2]
    else: ours = ours and not is_causal and attn_mask.ndim==4 and attn_mask.shape[1]==1 and (
        attn_mask.dtype==torch.bool or _plain(attn_mask))
    if ours: return _attend(query, key, value, attn_mask, query.shape[3]**-.5 if scale is None
                            else scale)
    return _attention(query, key, value, attn_mask=attn_mask, dropout_p=dropout_p,
                      is_causal=is_causal, scale=scale, enable_gqa=enable_gqa)

def _attend(q, k, v, mask, scale):
    (B,H,m,d),(K,n),wide = q.shape,k.shape[1:3],v.shape[3]
    group = H//K
    least = torch.finfo(q.dtype).min
    q,out = (q*scale).reshape(B, K, group, m, d),q.new_empty(B, m, K, group, wide)
    k = k.contiguous()
    v = v.contiguous()
    if mask is None: mask = torch.ones(m, n, dtype=torch.bool).tril()
    mask = mask.expand(B, 1, m, n)
    some = max(32, _AT_ONCE//(group*n))
    for b in range(B):
        for i in range(0, m, some):
            j = min(m, i+some)
            end = n-m+j
            bias = mask[b,:,i:j]
            if bias.dtype==torch.bool: bias = q.new_zeros(bias.shape).masked_fill_(~bias, least)
            if (bias[...,end:]>least).any(): end = n
            for h in range(K):
                s = onednn_linear(q[b,h,:,i:j].reshape(-1, d), k[b,h,:end])
                s.view(group, j-i, end).add_(bias[...,:end])
                torch.softmax(s, -1, out=s)
                out[b,i:j,h] = onednn_linear(s, v[b,h,:end].T).view(group, j-i, wide).transpose(0, 1)
    return out.view(B, m, H, wide).transpose(1, 2)


# %% [markdown]
# Against attention as it is defined, in float64: heads with keys of their own and shared ones, keys
# of tokens that were read before, masks of trees, windows and such as let a token see what comes
# after it, many tokens and few, keys that lie in memory as a layer makes them.

# %%
def defined(q, k, v, mask, scale):
    "Softmax of the scores, times the values"
    many = q.shape[1]//k.shape[1]
    k,v = (x.double().repeat_interleave(many, 1) for x in (k, v))
    return ((q.double()*scale)@k.mT+mask.double()).softmax(-1)@v

def masked(sees): return torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)

def order(m, n): return torch.arange(m)[:,None]+n-m, torch.arange(n)

sights = dict(causal=lambda v, u: u<=v, window=lambda v, u: (u<=v) & (v-u<40),
              tree=lambda v, u: (u<=v) & ((u<30) | (u//25==v//25)), ahead=lambda v, u: u<=v+9)
worst = {}
with torch.inference_mode():
    for m,n in ((300, 300), (257, 900), (700, 700), (90, 1000)):
        for H,K in ((6, 2), (3, 3)):
            q = given(2, m, H, 16).transpose(1, 2)
            k,v = (given(2, n, K, 16).transpose(1, 2) for _ in 'kv')
            if m%2==0: k,v = k.contiguous(),v.contiguous()
            for name,f in sights.items():
                mask = masked(f(*order(m, n))).expand(2, 1, m, n)
                got = _attend(q, k, v, mask, .3)
                test_close(onednn_attention(q, k, v, mask, scale=.3, enable_gqa=H>K), got, 1e-5)
                test_close(onednn_attention(q, k, v, mask==0, scale=.3, enable_gqa=H>K), got, 1e-5)
                gap = (got-defined(q, k, v, mask, .3)).abs().max().item()
                worst[name] = max(gap, worst.get(name, 0))
            if m==n:
                whole = onednn_attention(q, k, v, is_causal=True, scale=.3, enable_gqa=H>K)
                mask = masked(sights['causal'](*order(m, n)))
                test_close(whole, defined(q, k, v, mask, .3).float(), 1e-5)
assert max(worst.values())<1e-5
{k: f'{x:.0e}' for k,x in worst.items()}


# %% [markdown]
# ## While a model works
#
# Models call both functions by their names in torch. Inside `onednn` these names are the functions
# of this page. Where several heads share keys and values, transformers copies these for every head
# as soon as there is a mask; it leaves that if told to, from its 5.23 on. Models whose linear layers
# have fewer than twenty million weights are left alone: they are quick, and what was recorded of
# those of the [toy world](../../constitution/toy/10_environment.ipynb) stays as it is to the last bit.

# %%
#| export
@contextmanager
def onednn(
    model, # Whichever others are used meanwhile, too
):
    "Products by oneDNN while this lasts, where that pays; one inside another is the outer one"
    if nn.functional.linear is differentiable_linear or not onednn_is_worthwhile(model): yield; return
    put = partial(patch.object, nn.functional)
    shared = dict(TRANSFORMERS_SDPA_FORCE_GQA='1')
    with put('linear', differentiable_linear), put('scaled_dot_product_attention', onednn_attention), \
            patch.dict(os.environ, shared): yield


# %% [markdown]
# A model of 25 million weights says the same inside as outside, and learns the same, and inside twice
# the same to the last bit. Its output layer is computed in pieces, and again on the way back.

# %%
class Ids(list): pad_token_id = eos_token_id = 1
model = small_llama(Ids(range(2048)), layers=8, width=512, heads=8).model
exact = copy.deepcopy(model).double()
rows = [[3+(7*i+k*k)%2000 for k in range(40+5*i)] for i in range(6)]

def lesson(model):
    "Log-probabilities of the ends of some rows, and what they teach"
    model.zero_grad()
    lp = answer_logprobs(model, rows, [20]*6, chunk=64)[0]
    lp.sum().backward()
    return [lp.detach(), *(p.grad.clone() for p in model.parameters())]

true = lesson(exact)
before = lesson(model)
with onednn(model), onednn(model): inside,again = lesson(model),lesson(model)
after = lesson(model)
assert all(torch.equal(a, b) for pair in ((inside, again), (before, after)) for a,b in zip(*pair))
test_eq((nn.functional.linear, nn.functional.scaled_dot_product_attention), (_linear, _attention))
errors = {k: off(x, true) for k,x in (('inside', inside), ('outside', before))}
assert max(errors.values())<1e-5
errors

# %% [markdown]
# Small models, other number formats and autocast are left to torch.

# %%
small = small_llama(Ids(range(99))).model
with onednn(small): test_eq(nn.functional.linear, _linear)
half = nn.Linear(64, 32).bfloat16()
x = given(3, 64)
with onednn(model):
    test_eq(nn.functional.linear, differentiable_linear)
    test_eq(half(x.bfloat16()).dtype, torch.bfloat16)
    with torch.autocast('cpu', torch.bfloat16): test_eq(_linear(x, given(32, 64)).dtype, differentiable_linear(
        x, given(32, 64)).dtype)


# %% [markdown]
# ## What it brings
#
# Billions of operations a second on one thread of the machine that made this page: the layers of a
# model of 135M weights with 500 tokens, and the attention of 340 tokens to twice as many after a
# beginning that they share.

# %%
def speed(f, work, turns=9):
    "The median of some turns"
    took = []
    for _ in range(turns+2):
        start = perf_counter()
        f()
        took.append(perf_counter()-start)
    return work/sorted(took[2:])[turns//2]/1e9

with torch.inference_mode():
    out = {}
    for a,b in ((576, 576), (576, 1536), (1536, 576)):
        x = given(500, a)
        w = given(b, a)
        out[f'{a} to {b}'] = [speed(lambda f=f: f(x, w), 1000*a*b) for f in (_linear, differentiable_linear)]
    q,k,v = (given(1, n, h, 64).transpose(1, 2) for n,h in ((340, 9), (1000, 3), (1000, 3)))
    mask = masked(sights['causal'](*order(340, 1000)))[None,None]
    out['attention'] = [speed(lambda f=f: f(q, k, v, mask, enable_gqa=True), 340*1000*9*64*4)
                        for f in (_attention, onednn_attention)]
pd.DataFrame(out, index=["torch's", 'oneDNN']).T.round()
