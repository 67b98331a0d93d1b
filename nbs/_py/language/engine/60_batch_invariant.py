# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Batch invariance
#
# > A row's hidden states are bitwise the same in every batch, in sampling and in training.

# %%
#| default_exp language.engine.batch_invariant

# %%
#| export
import math
from contextlib import contextmanager
from threading import Lock

import numpy as np, torch
from numba import config, njit, prange, set_num_threads
from torch import nn

from moral_sc.language.engine.onednn import (is_plain_float32, onednn_is_worthwhile,
                                             onednn_layers)

_attention = nn.functional.scaled_dot_product_attention

# %%
#| hide
import inspect
import subprocess
import sys
from contextlib import nullcontext
from hashlib import sha256
import pandas as pd
from fastcore.test import *
from moral_sc.language.reward_head import answer_outputs, small_llama, word_tokenizer
from moral_sc.language.models import encode
from moral_sc.language.engine.replacement import has_replaced_attention
from moral_sc.language.engine.weight_packing import prepacked_weights
from moral_sc.language.generation import sample
torch.set_num_threads(1)

# %% [markdown]
# A sampler runs a model one token at a time, for all rows under way, on a KV cache that is padded
# on the left. The trainer runs the same rows whole. In exact arithmetic both find the same
# probabilities. In float32 the order of summation depends on the shape of a tensor, and through
# the network a one-ulp difference can grow to about a hundred, so the first step of policy
# training does not quite start from the sampler's probabilities. A computation that does not
# depend on the shape is called batch-invariant [@he2025nondeterminism].
#
# Most of a transformer is batch-invariant already, because it acts on single tokens. oneDNN's
# products are: they add up in the order of the columns for any number of rows
# ([a single row](30_onednn.ipynb) is computed twice for this reason). Attention is not, in any
# library that comes with torch, because it is cut into blocks of keys and queries. The kernel
# below is batch-invariant.
#
# ## Attention query by query
#
# The kernel lists the keys that a query attends to, and every sum runs over them in this order:
# scores, exponentials, values. Masked keys do not take part, so padding changes nothing. A query
# is computed by the same instructions alone and together with the rest of its row.

# %%
#| export
_fastmath = {'reassoc','contract','nsz'} # The compiler may split a sum into lanes, once

@njit(fastmath=_fastmath, inline='never')
def _dot(a, b):
    s = np.float32(0)
    for i in range(len(a)): s += a[i]*b[i]
    return s

@njit(fastmath=_fastmath, inline='never')
def _add(w, a, to):
    for i in range(len(a)): to[i] += w*a[i]

@njit
def _softmax(s):
    "Exponentials in place; the largest score and their sum"
    top = s[0]
    total = np.float32(0)
    for x in s: top = max(top, x)
    for i in range(len(s)):
        s[i] = math.exp(s[i]-top)
        total += s[i]
    return top,total

@njit(parallel=True, nogil=True) # No disk cache: reloaded code adds up otherwise
def _kernel(q, k, v, qs, ks, vs, attended, causal, scale, group, out, lse):
    B,m,H,d = out.shape
    n = ks[3]
    for x in prange(B*H): # One thread computes a head of a row
        b = x//H
        h = x%H
        s = np.empty(n, np.float32)
        at = np.empty(n, np.int64)
        acc = np.empty(d, np.float32)
        k0 = b*ks[0]+h//group*ks[1]
        v0 = b*vs[0]+h//group*vs[1]
        for i in range(m):
            q0 = b*qs[0]+h*qs[1]+i*qs[2]
            count = 0
            for j in range(n-m+i+1 if causal else n):
                if len(attended) and not attended[b,i,j]: continue
                at[count] = j
                count = count+1
            acc[:] = 0
            top = np.float32(0)
            total = np.float32(1)
            if count:
                for t in range(count):
                    a = k0+at[t]*ks[2]
                    s[t] = scale*_dot(q[q0:q0+d], k[a:a+d])
                top,total = _softmax(s[:count])
            for t in range(count):
                a = v0+at[t]*vs[2]
                _add(s[t], v[a:a+d], acc)
            for z in range(d): out[b,i,h,z] = acc[z]/total
            lse[b,h,i] = top+math.log(total)

_kernel_lock = Lock()
_no_mask = np.zeros((0, 0, 0), np.bool_)

def _flat(x):
    "Memory of a tensor, and its strides over rows, heads and tokens, and its tokens"
    x = x if x.stride(3)==1 else x.contiguous()
    n = 1+sum((a-1)*s for a,s in zip(x.shape, x.stride()))
    return x.as_strided((n,), (1,)).numpy(),(*x.stride()[:3], x.shape[2])

def _run(q, k, v, mask, causal, scale):
    (B,H,m,d),(K,n) = q.shape,k.shape[1:3]
    out = np.empty((B, m, H, d), np.float32)
    lse = np.empty((B, H, m), np.float32)
    attended = _no_mask
    if mask is not None: attended = np.ascontiguousarray(mask.expand(B, 1, m, n)[:,0].numpy())
    (q,qs),(k,ks),(v,vs) = (_flat(x.detach()) for x in (q, k, v))
    with _kernel_lock:
        set_num_threads(min(torch.get_num_threads(), config.NUMBA_NUM_THREADS))
        _kernel(q, k, v, qs, ks, vs, attended, causal, np.float32(scale), H//K, out, lse)
    return torch.from_numpy(out).transpose(1, 2),torch.from_numpy(lse)


# %% [markdown]
# The gradient need not be invariant. We use torch's backward kernel on our outputs and sums.

# %%
#| export
class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, mask, causal, scale):
        out,lse = _run(q, k, v, mask, causal, scale)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.options = mask,causal,scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (q,k,v,out,lse),(mask,causal,scale) = ctx.saved_tensors,ctx.options
        (B,K,n,d),group = k.shape,q.shape[1]//k.shape[1]
        if mask is not None: mask = torch.zeros(mask.shape).masked_fill_(~mask, -torch.inf)
        k,v = (x.repeat_interleave(group, 1) for x in (k, v))
        backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        q,k,v = backward(g, q, k, v, out, lse, 0., causal, attn_mask=mask, scale=scale)
        k,v = (x.view(B, K, group, n, d).sum(2) for x in (k, v))
        return q,k,v,None,None,None

def invariant_attention(
    query,                      # [row, head, token, width]
    key, value,                 # [row, head, token, width]; fewer heads if they are shared
    attn_mask=None,             # [row, 1, token, token] True where a query attends to a key
    dropout_p=0., is_causal=False, scale=None, enable_gqa=False,
):                              # [row, head, token, width]
    "Compute `scaled_dot_product_attention` such that a row does not depend on its batch"
    (H,m,d),(K,n) = query.shape[1:],key.shape[1:3]
    supported = not dropout_p and value.shape==key.shape and is_plain_float32(query, key, value) \
        and (H==K or (enable_gqa and H%K==0))
    if attn_mask is None: supported = supported and (m==n or not is_causal)
    else: supported = supported and not is_causal and attn_mask.dtype==torch.bool \
        and attn_mask.ndim==4 and attn_mask.shape[1]==1
    if not supported:
        return _attention(query, key, value, attn_mask=attn_mask, dropout_p=dropout_p,
                          is_causal=is_causal, scale=scale, enable_gqa=enable_gqa)
    return _Attention.apply(query, key, value, attn_mask, is_causal,
                            d**-.5 if scale is None else scale)


# %% [markdown]
# We compare values and gradients with float64: with shared keys and without, for whole rows and
# for rows behind a KV cache, with masks. Queries that attend to no key get zeros.

# %%
g = torch.Generator().manual_seed(0)
def given(*shape): return torch.randn(shape, generator=g)

def with_gradients(f, *tensors, up):
    "Values, and gradients of all tensors"
    tensors = [t.clone().requires_grad_() for t in tensors]
    out = f(*tensors)
    out.backward(up.to(out.dtype))
    return [out.detach(), *(t.grad for t in tensors)]

def defined(q, k, v, visible):
    "The definition of attention"
    k,v = (x.repeat_interleave(q.shape[1]//x.shape[1], 1) for x in (k, v))
    return ((q@k.mT*.2).masked_fill(~visible, -torch.inf).softmax(-1))@v

errors = {}
for H,K in ((6, 2), (3, 3)):
    for m,n in ((70, 70), (1, 90), (20, 90)):
        q,k,v,up = given(3, m, H, 32).transpose(1, 2),*given(2, 3, K, n, 32),given(3, H, m, 32)
        visible = torch.arange(n)<=torch.arange(m)[:,None]+n-m
        mask = visible.expand(3, 1, m, n).clone()
        if m<n: mask[1,:,:,:9] = False
        kinds = {'mask': dict(attn_mask=mask)}
        if m==n: kinds['causal'] = dict(is_causal=True)
        exact = with_gradients(lambda *a: defined(*a, mask),
                               *(x.double() for x in (q, k, v)), up=up)
        for name,options in kinds.items():
            def f(*a): return invariant_attention(*a, **options, scale=.2, enable_gqa=H>K)
            got = with_gradients(f, q, k, v, up=up)
            errors[f'{H} heads on {K}, {m} of {n}',name] = [
                (a-b).abs().max().item() for a,b in zip(got, exact, strict=True)]
assert max(map(max, errors.values()))<1e-5
hidden = torch.zeros(3, 1, m, n, dtype=torch.bool)
assert not invariant_attention(q, k, v, hidden).any()
pd.DataFrame(errors, index=['out','query','key','value']).T.map('{:.0e}'.format)

# %% [markdown]
# A query gets the same bits with its whole row, alone, behind padding, in a longer buffer, beside
# other rows, and on another number of threads.

# %%
q,k,v = given(4, 6, 50, 32),*given(2, 4, 2, 50, 32)
whole = invariant_attention(q, k, v, is_causal=True, enable_gqa=True)
for t in (0, 7, 31, 49):
    buffers = [torch.full((4, 2, 90, 32), torch.nan) for _ in 'kv']
    for x,y in zip(buffers, (k, v)): x[:,:,13:13+t+1] = y[:,:,:t+1]
    visible = (torch.arange(14+t)>=13).expand(4, 1, 1, -1)
    one = invariant_attention(q[:,:,t:t+1], *(x[:,:,:14+t] for x in buffers), visible,
                              enable_gqa=True)
    assert torch.equal(one[:,:,0], whole[:,:,t])
    alone = invariant_attention(q[2:3,:,t:t+1], *(x[2:3,:,13:14+t] for x in buffers),
                                enable_gqa=True)
    assert torch.equal(alone[:,:,0], whole[2:3,:,t])
    torch.set_num_threads(2)
    assert torch.equal(invariant_attention(q, k, v, is_causal=True, enable_gqa=True), whole)
    torch.set_num_threads(1)


# %% [markdown]
# It gets them in another process, too, such as one that resumes a killed run:

# %%
def bits(n=150):
    "A hash of the attention of some numbers"
    g = torch.Generator().manual_seed(1)
    q,k,v = (torch.randn(2, h, n, 64, generator=g) for h in (6, 2, 2))
    out = invariant_attention(q, k, v, is_causal=True, enable_gqa=True)
    return sha256(out.contiguous().numpy()).hexdigest()

code = '\n'.join(['import torch', 'from hashlib import sha256',
                  'from moral_sc.language.engine.batch_invariant import invariant_attention',
                  inspect.getsource(bits), 'print(bits())'])
child = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
test_eq(child.stdout.strip(), bits())


# %% [markdown]
# ## Layers of a model
#
# Models that are too small for [oneDNN](30_onednn.ipynb) are left alone. Gated blocks whose
# activation is [fused](40_weight_packing.ipynb) into a product round differently from the model in
# training, so a sampler that has to agree with a trainer packs weights without fusing.

# %%
#| export
@contextmanager
def batch_invariant_layers(
    model,
):
    "Compute one model's rows independently of their batch while this lasts"
    if not onednn_is_worthwhile(model): yield; return
    invariant_attention(*torch.zeros(3, 1, 1, 1, 8)) # Compile before the work begins
    with onednn_layers(model, invariant_attention): yield


# %% [markdown]
# A model of 25 million weights samples rows that begin and end at different times, and computes the
# same rows again as a trainer does. The remaining difference is rounding of the logarithm.

# %%
words = 'is it far tea the cup here there . ? , yes no very hot cold and or'.split()
lm = small_llama(word_tokenizer(words), layers=8, width=512, heads=8)
prompts = ['the tea', 'is it', 'yes, it is very far and the cup is here.', 'no',
           'the cup, is it hot?']*3

def sampled_and_trained(new=12):
    "A coordinate of the state before each token, and its log-probability, by sampler and trainer"
    def first(h): return h[:,0].double()
    with torch.no_grad(), prepacked_weights(lm.model, fused=False):
        samples = sample(lm, prompts, new, logprobs='tempered', values=first, batch=6)
    ids = [encode(lm, a) for a in prompts]
    rows = [[*a, *s.ids] for a,s in zip(ids, samples)]
    lp,mask,h,_ = answer_outputs(lm.model, rows, [*map(len, ids)])
    trained = h[...,0][mask].double(),lp[mask].double()
    return [(torch.tensor([x for s in samples for x in getattr(s, k)]),y.detach())
            for k,y in zip(('values', 'logprobs'), trained)]

out = {}
for name,context in dict(inside=batch_invariant_layers, outside=nullcontext).items():
    with context(lm.model): (a,b),(c,d) = sampled_and_trained()
    out[name] = {'states with the same bits': (a==b).double().mean().item(), 'tokens': len(a),
                 'log-probabilities, largest gap': (c-d).abs().max().item()}
    test_close(c, d, 1e-5)
test_eq(out['inside']['states with the same bits'], 1)
pd.DataFrame(out).T

# %%
small = small_llama(word_tokenizer(words)).model
with batch_invariant_layers(small): assert not has_replaced_attention(small)
assert not has_replaced_attention(lm.model)
