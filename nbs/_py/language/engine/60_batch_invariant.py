# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The same bits alone and in company
#
# > Sampler and trainer agree on a token's probability to the last bit of the hidden states, if no
# > number depends on what is computed beside it.

# %%
#| default_exp language.engine.batch_invariant

# %%
#| export
import math
from contextlib import contextmanager
from threading import Lock
from unittest.mock import patch

import numpy as np, torch
from numba import config, njit, prange, set_num_threads
from torch import nn

from moral_sc.language.engine.onednn import _attention, _plain, onednn, onednn_is_worthwhile

# %%
#| hide
import inspect
import subprocess
import sys
from contextlib import nullcontext
from hashlib import sha256
import pandas as pd
from fastcore.test import *
from moral_sc.language.reward_head import answer_hidden, small_llama, word_tokenizer
from moral_sc.language.models import encode
from moral_sc.language.engine.weight_packing import prepacked_weights
from moral_sc.language.generation import sample
torch.set_num_threads(1)

# %% [markdown]
# A sampler runs a model a token at a time, for as many rows as are under way, behind keys that are
# padded on the left. The trainer reads the same rows whole. In exact arithmetic both find the same
# probabilities. In float32 a library adds up in an order that depends on the shape of what it is
# given, and a network may make a hundred ulps of one; so the first step of a policy's training
# does not quite begin where the sampler was. A computation whose numbers do not depend on that is
# called batch-invariant [@he2025nondeterminism].
#
# Most of a transformer is so by itself: sums and activations of single tokens. Products of oneDNN
# are: they add up in the order of the columns, however many rows there are
# ([one alone](30_onednn.ipynb) is made two). Attention is not, in any library that torch brings,
# because it is cut into blocks of keys and of queries. Here is one that is.
#
# ## Attention, one query after the other
#
# A query's visible keys are counted off, and every sum runs over them in this order: scores, their
# exponentials, values. Hidden keys do not take part, so that padding moves nothing. Whether one
# query of a row is asked for or all of them, each is computed by the same instructions.

# %%
#| export
_lanes = {'reassoc','contract','nsz'} # A sum may be cut into lanes: by the compiler, once

@njit(fastmath=_lanes, inline='never')
def _dot(a, b):
    s = np.float32(0)
    for i in range(len(a)): s += a[i]*b[i]
    return s

@njit(fastmath=_lanes, inline='never')
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

@njit(parallel=True, nogil=True) # Not kept on disk: code read back from there adds up otherwise
def _kernel(q, k, v, qs, ks, vs, seen, causal, scale, group, out, lse):
    B,m,H,d = out.shape
    n = ks[3]
    for x in prange(B*H): # A row's head has one thread, whoever that is
        b = x//H
        h = x%H
        s = np.empty(n, np.float32)
        at = np.empty(n, np.int64)
        acc = np.empty(d, np.float32)
        k0 = b*ks[0]+h//group*ks[1]
        v0 = b*vs[0]+h//group*vs[1]
        for i in range(m):
            q0 = b*qs[0]+h*qs[1]+i*qs[2]
            many = 0
            for j in range(n-m+i+1 if causal else n):
                if len(seen) and not seen[b,i,j]: continue
                at[many] = j
                many = many+1
            acc[:] = 0
            top = np.float32(0)
            total = np.float32(1)
            if many:
                for t in range(many):
                    a = k0+at[t]*ks[2]
                    s[t] = scale*_dot(q[q0:q0+d], k[a:a+d])
                top,total = _softmax(s[:many])
            for t in range(many):
                a = v0+at[t]*vs[2]
                _add(s[t], v[a:a+d], acc)
            for z in range(d): out[b,i,h,z] = acc[z]/total
            lse[b,h,i] = top+math.log(total)

_one_at_a_time = Lock()
_all = np.zeros((0, 0, 0), np.bool_)

def _flat(x):
    "Memory of a tensor, and where its rows, heads and tokens begin; tokens last"
    x = x if x.stride(3)==1 else x.contiguous()
    n = 1+sum((a-1)*s for a,s in zip(x.shape, x.stride()))
    return x.as_strided((n,), (1,)).numpy(),(*x.stride()[:3], x.shape[2])

def _run(q, k, v, mask, causal, scale):
    (B,H,m,d),(K,n) = q.shape,k.shape[1:3]
    out = np.empty((B, m, H, d), np.float32)
    lse = np.empty((B, H, m), np.float32)
    seen = _all if mask is None else np.ascontiguousarray(mask.expand(B, 1, m, n)[:,0].numpy())
    (q,qs),(k,ks),(v,vs) = (_flat(x.detach()) for x in (q, k, v))
    with _one_at_a_time:
        set_num_threads(min(torch.get_num_threads(), config.NUMBA_NUM_THREADS))
        _kernel(q, k, v, qs, ks, vs, seen, causal, np.float32(scale), H//K, out, lse)
    return torch.from_numpy(out).transpose(1, 2),torch.from_numpy(lse)


# %% [markdown]
# The gradient need not be invariant, and is torch's own, from our outputs and sums.

# %%
#| export
class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, mask, causal, scale):
        out,lse = _run(q, k, v, mask, causal, scale)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.how = mask,causal,scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (q,k,v,out,lse),(mask,causal,scale) = ctx.saved_tensors,ctx.how
        (B,K,n,d),group = k.shape,q.shape[1]//k.shape[1]
        if mask is not None: mask = torch.zeros(mask.shape).masked_fill_(~mask, -torch.inf)
        k,v = (x.repeat_interleave(group, 1) for x in (k, v))
        back = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        q,k,v = back(g, q, k, v, out, lse, 0., causal, attn_mask=mask, scale=scale)
        k,v = (x.view(B, K, group, n, d).sum(2) for x in (k, v))
        return q,k,v,None,None,None

def invariant_attention(
    query,                      # [row, head, token, width]
    key, value,                 # [row, head, token, width]; fewer heads if they are shared
    attn_mask=None,             # [row, 1, token, token] True: the first sees the second
    dropout_p=0., is_causal=False, scale=None, enable_gqa=False,
):                              # [row, head, token, width]
    "As torch's `scaled_dot_product_attention`, the same for a row whatever is beside it"
    (H,m,d),(K,n) = query.shape[1:],key.shape[1:3]
    ours = not dropout_p and value.shape==key.shape and (H==K or (enable_gqa and H%K==0)) \
        and _plain(query, key, value)
    if attn_mask is None: ours = ours and (m==n or not is_causal)
    else: ours = ours and not is_causal and attn_mask.dtype==torch.bool and attn_mask.ndim==4 \
        and attn_mask.shape[1]==1
    if not ours:
        return _attention(query, key, value, attn_mask=attn_mask, dropout_p=dropout_p,
                       is_causal=is_causal, scale=scale, enable_gqa=enable_gqa)
    return _Attention.apply(query, key, value, attn_mask, is_causal,
                            d**-.5 if scale is None else scale)


# %% [markdown]
# Against float64, values and gradients: shared keys and own ones, rows read whole and behind
# keys that were there before, masks with rows that see nothing, which get zeros.

# %%
g = torch.Generator().manual_seed(0)
def given(*shape): return torch.randn(shape, generator=g)

def taught(f, *tensors, up):
    "Values, and gradients of all tensors"
    tensors = [t.clone().requires_grad_() for t in tensors]
    out = f(*tensors)
    out.backward(up.to(out.dtype))
    return [out.detach(), *(t.grad for t in tensors)]

def defined(q, k, v, sees):
    "Attention as it is defined"
    k,v = (x.repeat_interleave(q.shape[1]//x.shape[1], 1) for x in (k, v))
    return ((q@k.mT*.2).masked_fill(~sees, -torch.inf).softmax(-1))@v

errors = {}
for H,K in ((6, 2), (3, 3)):
    for m,n in ((70, 70), (1, 90), (20, 90)):
        q,k,v,up = given(3, m, H, 32).transpose(1, 2),*given(2, 3, K, n, 32),given(3, H, m, 32)
        sees = torch.arange(n)<=torch.arange(m)[:,None]+n-m
        mask = sees.expand(3, 1, m, n).clone()
        if m<n: mask[1,:,:,:9] = False
        kinds = {'mask': dict(attn_mask=mask)}
        if m==n: kinds['causal'] = dict(is_causal=True)
        exact = taught(lambda *a: defined(*a, mask), *(x.double() for x in (q, k, v)), up=up)
        for name,how in kinds.items():
            def f(*a): return invariant_attention(*a, **how, scale=.2, enable_gqa=H>K)
            got = taught(f, q, k, v, up=up)
            errors[f'{H} heads on {K}, {m} of {n}',name] = [
                (a-b).abs().max().item() for a,b in zip(got, exact, strict=True)]
assert max(map(max, errors.values()))<1e-5
blind = torch.zeros(3, 1, m, n, dtype=torch.bool)
assert not invariant_attention(q, k, v, blind).any()
pd.DataFrame(errors, index=['out','query','key','value']).T.map('{:.0e}'.format)

# %% [markdown]
# To the last bit: a query among all of its row, by itself, behind padding, in a longer memory,
# beside other rows, and on another number of threads.

# %%
q,k,v = given(4, 6, 50, 32),*given(2, 4, 2, 50, 32)
whole = invariant_attention(q, k, v, is_causal=True, enable_gqa=True)
for t in (0, 7, 31, 49):
    lie = [torch.full((4, 2, 90, 32), torch.nan) for _ in 'kv']
    for x,y in zip(lie, (k, v)): x[:,:,13:13+t+1] = y[:,:,:t+1]
    sees = (torch.arange(14+t)>=13).expand(4, 1, 1, -1)
    one = invariant_attention(q[:,:,t:t+1], *(x[:,:,:14+t] for x in lie), sees, enable_gqa=True)
    assert torch.equal(one[:,:,0], whole[:,:,t])
    alone = invariant_attention(q[2:3,:,t:t+1], *(x[2:3,:,13:14+t] for x in lie), enable_gqa=True)
    assert torch.equal(alone[:,:,0], whole[2:3,:,t])
    torch.set_num_threads(2)
    assert torch.equal(invariant_attention(q, k, v, is_causal=True, enable_gqa=True), whole)
    torch.set_num_threads(1)


# %% [markdown]
# And in another process, as a training that was killed goes on in one:

# %%
def bits(n=150):
    "A fingerprint of the attention of some numbers"
    g = torch.Generator().manual_seed(1)
    q,k,v = (torch.randn(2, h, n, 64, generator=g) for h in (6, 2, 2))
    out = invariant_attention(q, k, v, is_causal=True, enable_gqa=True)
    return sha256(out.contiguous().numpy()).hexdigest()

code = '\n'.join(['import torch', 'from hashlib import sha256',
                  'from moral_sc.language.engine.batch_invariant import attention',
                  inspect.getsource(bits), 'print(bits())'])
for _ in range(2):
    told = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    test_eq(told.stdout.strip(), bits())


# %% [markdown]
# ## A model that does not know its neighbours
#
# Models small enough to be left alone by [oneDNN](30_onednn.ipynb) are left alone here, too.
# Blocks whose activation is [fused](40_weight_packing.ipynb) into its product round otherwise than the
# model does while it learns, so that a sampler that has to agree with a trainer packs without
# that.

# %%
#| export
@contextmanager
def batch_invariant(
    model, # Whichever others are used meanwhile, too
):
    "While this lasts what a model says of a row does not depend on the rows beside it"
    if nn.functional.scaled_dot_product_attention is invariant_attention or not onednn_is_worthwhile(model): yield; return
    invariant_attention(*torch.zeros(3, 1, 1, 1, 8)) # Compiled now, and not in the middle of the work
    with onednn(model), patch.object(nn.functional, 'scaled_dot_product_attention', invariant_attention):
        yield


# %% [markdown]
# A model of 25 million weights samples, its rows beginning and ending at different times, and reads
# the same rows again as a trainer does. What is left is rounding of the logarithm.

# %%
words = 'is it far tea the cup here there . ? , yes no very hot cold and or'.split()
lm = small_llama(word_tokenizer(words), layers=8, width=512, heads=8)
asks = ['the tea', 'is it', 'yes, it is very far and the cup is here.', 'no', 'the cup, is it hot?']*3

def twice(new=24):
    "A coordinate of the state before each sampled token, and its log-probability: sampled, read"
    with torch.no_grad(), prepacked_weights(lm.model, fused=False):
        said = sample(lm, asks, new, logprobs='tempered', values=lambda h: h[:,0].double(), batch=6)
    ids = [encode(lm, a) for a in asks]
    lp,mask,h,_ = answer_hidden(lm.model, [[*a, *s.ids] for a,s in zip(ids, said)], [*map(len, ids)])
    read = h[...,0][mask].double(),lp[mask].double()
    return [(torch.tensor([x for s in said for x in getattr(s, k)]),y.detach())
            for k,y in zip(('values', 'logprobs'), read)]

out = {}
for name,how in dict(inside=batch_invariant, outside=lambda m: nullcontext()).items():
    with how(lm.model): (a,b),(c,d) = twice()
    out[name] = {'states with the same bits': (a==b).double().mean().item(), 'tokens': len(a),
                 'log-probabilities, largest gap': (c-d).abs().max().item()}
    test_close(c, d, 1e-5)
pd.DataFrame(out).T

# %%
test_eq(nn.functional.scaled_dot_product_attention, _attention)
small = small_llama(word_tokenizer(words)).model
with batch_invariant(small): test_eq(nn.functional.scaled_dot_product_attention, _attention)
