# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Triton engine
#
# > The Triton engine trains each toy model within one GPU program.

# %%
#| default_exp superposition.engines.triton_gpu

# %%
#| hide
#| needs: triton
#| mark: isolated
import os, torch
if not torch.cuda.is_available(): os.environ['TRITON_INTERPRET'] = '1'

# %%
#| export
import torch, triton, triton.language as tl
import numpy as np
from moral_sc.foundation.files import use_private_cache
from moral_sc.superposition.engines.cuda_graphs import (record_graph, replay, step_chunks,
                                                       step_factors)
from moral_sc.superposition.features import Sampler, key_roots
from moral_sc.superposition.model import ToyConfig, custom_limitation
from moral_sc.superposition.training import ToyRun, check_finite, append_loss

# %%
#| hide
from fastcore.test import *
from moral_sc.superposition.features import hash32, keys
from moral_sc.superposition.training import train
torch.set_num_threads(1)


# %% [markdown]
# ::: {.callout-note}
# Not yet run on a GPU; tested with Triton's interpreter. The kernels compile for compute
# capability 9.0.
# :::
#
# A training step of a toy model reads very little memory: the parameters fit into registers, the
# data are computed by [a counter](../10_features.ipynb) where they are needed, and the models are
# independent. On a GPU the time goes to kernel launches and to intermediate results that travel to
# memory and back. In this engine one program trains one model for thousands of steps, and only
# logged losses leave the chip.
#
# ## Random numbers
#
# These are the two finalisers of the [features page](../10_features.ipynb) on unsigned integers,
# which Triton supports. The slow one computes the keys of a step from a root that is prepared for
# each model; the fast one computes a random number from an element's index.

# %%
#| export
@triton.jit
def _mix64(z):
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb
    return z ^ (z >> 31)

@triton.jit
def _keys(root, step):
    "Compute the two keys of a step from the root of a model"
    z = root.to(tl.uint64, bitcast=True) + 0x9e3779b97f4a7c15
    z = _mix64(z ^ _mix64((step+1).to(tl.uint64)))
    return (z >> 32).to(tl.uint32), z.to(tl.uint32)

@triton.jit
def _uniform(index, high, low):
    x = index.to(tl.uint32) ^ high
    x = (x ^ (x >> 16)) * 0x7feb352d
    x = x ^ low
    x = (x ^ (x >> 15)) * 0x846ca68b
    x = (x ^ (x >> 16)) & 0x7fffffff
    return x.to(tl.int32).to(tl.float32) * (2.**-31)

def _device_roots(batch:Sampler, stream:int)->torch.Tensor: # [instance], int64
    "Return `key_roots` of one stream on the device"
    roots = key_roots(batch.seed, batch.instances, (stream,))[0]
    return torch.from_numpy(roots.view(np.int64)).to(batch.density.device)


# %% [markdown]
# The value of an active feature is $u/p$. A division costs as much as the rest of the hash.
# Multiplication by $r=1/p$ is cheap but can differ in the last bit, and the data would then differ
# from those of the other engines. Two fused multiply-adds correct this: with $q=ur$, the remainder
# $u-qp$ is exact when fused, and $q+(u-qp)\,r$ is the correctly rounded quotient, because $r$
# itself is correctly rounded.

# %%
#| export
@triton.jit
def _quotient(u, p, r, FUSED: tl.constexpr):
    "Return u/p, correctly rounded; r is 1/p"
    if FUSED:
        q = u*r
        return tl.fma(tl.fma(-q, p, u), r, q)
    else: return tl.div_rn(u, p)

@triton.jit
def _draw(i, row, f, density, over, d_keys, g_keys, n: tl.constexpr, SETS: tl.constexpr,
          KIND: tl.constexpr, SIGNED: tl.constexpr, FUSED: tl.constexpr):
    "Draw inputs for rows and features, whose indices broadcast against each other"
    p = tl.load(density + i*n + f)
    r = tl.load(over + i*n + f)
    u = _uniform(row*n + f, d_keys[0], d_keys[1])
    if KIND==0:
        active = u<=p
        value = _quotient(u, p, r, FUSED)
    else:
        members: tl.constexpr = n//SETS
        g = _uniform(row*SETS + f//members, g_keys[0], g_keys[1])
        active = g<=p
        value = u
        if KIND==2:
            position = tl.minimum(_quotient(g, p, r, FUSED), 1-2.**-24)
            active = active & ((position*members).to(tl.int32)==f%members)
    if SIGNED: value = 2*value-1
    return tl.where(active, value, 0.)


# %% [markdown]
# The fused operations, emulated in double precision:

# %%
u = hash32(keys(0, [0], [0])[0], 200_000)[0].float()*2**-31
p = torch.rand(200_000)*.999+.001; r = 1/p
q = u*r
remainder = (u.double()-q.double()*p).float()
quotient = (q.double()+remainder.double()*r).float()
test_eq(quotient, u/p)
(q!=u/p).float().mean(), (quotient!=u/p).float().mean()


# %% [markdown]
# ## One program per model
#
# Each thread processes some rows of the batch and keeps their features and hidden units in its own
# registers: no sum of the forward or backward pass crosses threads. If the number of features is
# not a power of two, padding would waste lanes, so the features are split into blocks that are
# powers of two (twenty is sixteen and four). Each thread accumulates the gradient of $W$ over its
# rows in registers, and the threads' gradients are added up once per step. Each thread then updates
# its share of the parameters, which it keeps together with AdamW's two moments, and shares the new
# values with the other threads through the cache.
#
# The parameters of a model lie in one row: the columns of $W$ one after the other, those of $V$ if
# there is one, $b$, and $c$.
#
# `_resident_kernel` calls one function for each phase. Blocks and hidden units are passed as tuples, whose
# entries the compiler keeps in registers.

# %%
#| export
@triton.jit
def _activation(z, RELU: tl.constexpr):
    if RELU: return tl.maximum(z, 0.)
    else: return z

@triton.jit
def _adamw(params, mean, square, g, lr, decay, factors, learned):
    "Apply AdamW to the entries that are `learned`; `factors` is a row of `step_factors`"
    rate = lr*tl.load(factors)
    c1 = tl.load(factors+1)
    c2 = tl.load(factors+2)
    mean = mean + .1*(g-mean)
    square = .999*square + .001*g*g
    updated = params*(1-rate*decay) - rate*mean/(tl.sqrt_rn(square)/c2 + 1e-8)/c1
    return tl.where(learned, updated, params),mean,square

@triton.jit
def _zeros(COUNT: tl.constexpr, SIZE: tl.constexpr, BS: tl.constexpr):
    "Return zeros [SIZE[j], BS] for COUNT blocks, as a tuple"
    J: tl.constexpr = len(SIZE)
    out = ()
    for a in tl.static_range(COUNT): out = out + (tl.zeros([SIZE[a%J],BS], tl.float32),)
    return out

@triton.jit
def _sample_blocks(i, row, in_batch, density, inverse, d_keys, g_keys, n: tl.constexpr,
                   OFF: tl.constexpr, SIZE: tl.constexpr, BS: tl.constexpr,
                   SETS: tl.constexpr, KIND: tl.constexpr, SIGNED: tl.constexpr,
                   UNIT: tl.constexpr, FUSED: tl.constexpr):
    "Draw the inputs of BS rows: a tuple of blocks [feature, row], zero beyond the batch"
    J: tl.constexpr = len(SIZE)
    x = ()
    for j in tl.static_range(J):
        f = OFF[j] + tl.arange(0, SIZE[j])
        v = _draw(i, row[None,:], f[:,None], density, inverse, d_keys, g_keys, n, SETS, KIND,
                  SIGNED, FUSED)
        x = x + (tl.where(in_batch[None,:], v, 0.),)
    if UNIT:
        length = tl.zeros([BS], tl.float32)
        for j in tl.static_range(J): length += tl.sum(x[j]*x[j], 0)
        length = tl.maximum(tl.sqrt_rn(length), 1e-12)
        unit = ()
        for j in tl.static_range(J): unit = unit + (tl.div_rn(x[j], length[None,:]),)
        x = unit
    return x

@triton.jit
def _hidden_units(x, model, c0, n: tl.constexpr, m: tl.constexpr, OFF: tl.constexpr,
                  SIZE: tl.constexpr, BS: tl.constexpr, HBIAS: tl.constexpr,
                  NEURONS: tl.constexpr):
    "Encode BS rows: a tuple of m hidden units [row]"
    h = ()
    for k in tl.static_range(m):
        hk = tl.zeros([BS], tl.float32)
        if HBIAS: hk += tl.load(model + c0 + k)
        for j in tl.static_range(len(SIZE)):
            w = tl.load(model + k*n + OFF[j] + tl.arange(0, SIZE[j]))
            hk += tl.sum(x[j]*w[:,None], 0)
        h = h + (_activation(hk, NEURONS),)
    return h

@triton.jit
def _output_gradients(x, h, in_batch, loss, model, importance, B, V: tl.constexpr,
                      b0: tl.constexpr, n: tl.constexpr, m: tl.constexpr, OFF: tl.constexpr,
                      SIZE: tl.constexpr, BS: tl.constexpr, RELU: tl.constexpr,
                      ABS: tl.constexpr):
    "Decode BS rows; return the gradients of the pre-activations and the loss with theirs added"
    g = ()
    for j in tl.static_range(len(SIZE)):
        f = OFF[j] + tl.arange(0, SIZE[j])
        z = tl.load(model + b0 + f)[:,None] + tl.zeros([SIZE[j],BS], tl.float32)
        for k in tl.static_range(m):
            z += tl.load(model + V + k*n + f)[:,None]*h[k][None,:]
        target = tl.abs(x[j]) if ABS else x[j]
        e = tl.where(in_batch[None,:], _activation(z, RELU)-target, 0.)
        weighted = tl.load(importance + f)[:,None]*e
        loss += tl.sum(weighted*e, 0)
        if RELU: weighted = tl.where(z>0, weighted, 0.)
        g = g + (weighted*(2./(B*n)),)
    return g,loss

@triton.jit
def _accumulate(x, h, g, dW, dV, db, dc, in_batch, loss, model, l1, B, V: tl.constexpr,
                n: tl.constexpr, m: tl.constexpr, OFF: tl.constexpr, SIZE: tl.constexpr,
                BS: tl.constexpr, TIED: tl.constexpr, NEURONS: tl.constexpr,
                L1: tl.constexpr):
    "Backpropagate BS rows; return the accumulated gradients, and the loss with the penalty added"
    J: tl.constexpr = len(SIZE)
    new_W = ()
    new_V = ()
    new_b = ()
    new_c = ()
    for k in tl.static_range(m):
        d = tl.zeros([BS], tl.float32)
        for j in tl.static_range(J):
            v = tl.load(model + V + k*n + OFF[j] + tl.arange(0, SIZE[j]))
            d += tl.sum(g[j]*v[:,None], 0)
        if L1:
            size = tl.where(in_batch, tl.abs(h[k]), 0.)
            loss += l1*size
            d += l1/(B*n)*tl.where(size>0, tl.where(h[k]>0, 1., -1.), 0.)
        if NEURONS: d = tl.where(h[k]>0, d, 0.)
        new_c = new_c + (dc[k] + d,)
        for j in tl.static_range(J):
            readout = g[j]*h[k][None,:]
            encoder = x[j]*d[None,:]
            if TIED: new_W = new_W + (dW[k*J+j] + readout + encoder,)
            else:
                new_W = new_W + (dW[k*J+j] + encoder,)
                new_V = new_V + (dV[k*J+j] + readout,)
    for j in tl.static_range(J): new_b = new_b + (db[j] + g[j],)
    return new_W,new_V,new_b,new_c,loss

@triton.jit
def _store_gradients(gradient, dW, dV, db, dc, V: tl.constexpr, b0: tl.constexpr,
                     c0: tl.constexpr, n: tl.constexpr, m: tl.constexpr, OFF: tl.constexpr,
                     SIZE: tl.constexpr, TIED: tl.constexpr, HBIAS: tl.constexpr):
    "Sum the gradients over rows and store them where all threads can read them"
    J: tl.constexpr = len(SIZE)
    for k in tl.static_range(m):
        for j in tl.static_range(J):
            column = gradient + k*n + OFF[j] + tl.arange(0, SIZE[j])
            tl.store(column, tl.sum(dW[k*J+j], 1))
            if not TIED: tl.store(column + V, tl.sum(dV[k*J+j], 1))
        if HBIAS: tl.store(gradient + c0 + k, tl.sum(dc[k], 0))
    for j in tl.static_range(J):
        tl.store(gradient + b0 + OFF[j] + tl.arange(0, SIZE[j]), tl.sum(db[j], 1))

@triton.jit(do_not_specialize=['first','S','B','I'])
def _resident_kernel(
    theta, mom, vel, grad,          # [instance, P]: parameters, AdamW's means, gradient (scratch)
    density, over, imp,             # [instance, feature]: p, 1/p, importance
    roots, gates,                   # [instance], int64: key roots of data and gates
    table, slots,                   # [step, 3] as `step_factors`; [step], row of `loss` or -1
    rates, decays, l1s,             # [instance]: learning rate, weight decay, L1 weight
    loss,                           # [logged step, instance], written here
    first, S, B, I,                 # First step, number of steps, batch size, instances
    n: tl.constexpr, m: tl.constexpr, # Features, hidden units
    OFF: tl.constexpr, SIZE: tl.constexpr, # Blocks of features, see `power_of_two_blocks`
    BS: tl.constexpr,               # Rows processed at a time
    P: tl.constexpr,                # Length of a model's parameter row, a power of two
    SETS: tl.constexpr, KIND: tl.constexpr, SIGNED: tl.constexpr, # Data, see `_kinds`
    FUSED: tl.constexpr,            # Fused multiply-add is available
    RELU: tl.constexpr, NEURONS: tl.constexpr, # ReLU outputs, ReLU hidden units
    TIED: tl.constexpr, BIAS: tl.constexpr, HBIAS: tl.constexpr, # Which parameters are learned
    ABS: tl.constexpr, L1: tl.constexpr, # Target |x|; L1 penalty
    UNIT: tl.constexpr, FINITE: tl.constexpr, # Inputs of length 1; the data of step 0 always
):
    "Train one model for S steps"
    i = tl.program_id(0).to(tl.int64)
    J: tl.constexpr = len(SIZE)
    V: tl.constexpr = 0 if TIED else n*m          # Offsets of V, b and c, and the end
    b0: tl.constexpr = n*m + V
    c0: tl.constexpr = b0 + n
    end: tl.constexpr = c0 + m*HBIAS
    q = tl.arange(0, P)
    at = i*P + q
    used = q<end
    learned = used if BIAS else used & ((q<b0) | (q>=c0))
    th = tl.load(theta+at)
    mo = tl.load(mom+at)
    ve = tl.load(vel+at)
    lr = tl.load(rates+i)
    decay = tl.load(decays+i)
    l1 = tl.load(l1s+i)
    d_root = tl.load(roots+i)
    g_root = tl.load(gates+i)
    model = theta + i*P
    gradient = grad + i*P
    for s in range(S):
        step = first + (s if not FINITE else -first)
        d_keys = _keys(d_root, step)
        g_keys = _keys(g_root, step)
        dW = _zeros(J*m, SIZE, BS)
        dV = _zeros(0 if TIED else J*m, SIZE, BS)
        db = _zeros(J, SIZE, BS)
        dc = ()
        for _k in tl.static_range(m): dc = dc + (tl.zeros([BS], tl.float32),)
        total = tl.zeros([BS], tl.float32)
        for tile in range(0, B, BS):
            row = tile + tl.arange(0, BS)
            in_batch = row<B
            x = _sample_blocks(i, row, in_batch, density, over, d_keys, g_keys, n, OFF, SIZE,
                               BS, SETS, KIND, SIGNED, UNIT, FUSED)
            h = _hidden_units(x, model, c0, n, m, OFF, SIZE, BS, HBIAS, NEURONS)
            g,total = _output_gradients(x, h, in_batch, total, model, imp + i*n, B, V, b0, n,
                                        m, OFF, SIZE, BS, RELU, ABS)
            dW,dV,db,dc,total = _accumulate(x, h, g, dW, dV, db, dc, in_batch, total, model,
                                            l1, B, V, n, m, OFF, SIZE, BS, TIED, NEURONS, L1)
        _store_gradients(gradient, dW, dV, db, dc, V, b0, c0, n, m, OFF, SIZE, TIED, HBIAS)
        slot = tl.load(slots+s)
        if slot>=0: tl.store(loss + slot*I + i, tl.sum(total, 0)/B)
        tl.debug_barrier()
        g_all = tl.load(gradient + q, mask=used, other=0.)
        th,mo,ve = _adamw(th, mo, ve, g_all, lr, decay, table + 3*s, learned)
        tl.store(theta + at, th)
        tl.debug_barrier()
    tl.store(mom+at, mo)
    tl.store(vel+at, ve)


# %% [markdown]
# ## Packing
#
# These functions convert between a run and the rows of parameters, and select the compile-time
# constants of a config.

# %%
#| export
_kinds = {'independent': 0, 'correlated': 1, 'anticorrelated': 2, 'one-hot': 2}

def _constants(config, finite):
    "Return the compile-time constants of both kernels"
    c = config
    l1 = bool(config.per_instance('l1').any())
    return dict(n=c.n_features, m=c.n_hidden, SETS=c.sets, KIND=_kinds[c.features],
                SIGNED=c.signed, FUSED=not is_interpreted(), RELU=c.activation=='relu',
                NEURONS=c.hidden=='relu', TIED=c.tied, BIAS=c.bias, HBIAS=c.hidden_bias,
                ABS=c.target=='abs', L1=l1, UNIT=c.unit, FINITE=finite)

def is_interpreted():
    "Return whether Triton interprets its kernels, slowly and without a GPU"
    return triton.knobs.runtime.interpret

def power_of_two_blocks(n:int)->tuple: # Offsets and sizes
    "Split n features into blocks whose sizes are powers of two"
    size = tuple(1<<k for k in range(n.bit_length()-1, -1, -1) if n>>k & 1)
    return tuple(sum(size[:j]) for j in range(len(size))),size

def pack_params(parts:dict)->torch.Tensor: # [instance, number of parameters]
    "Pack the parameters of each model into one row: columns of W and V, then b and c"
    rows = [parts[k].mT if k in 'WV' else parts[k] for k in 'WVbc' if k in parts]
    return torch.cat([t.flatten(1) for t in rows], 1)

def unpack_params(flat, parts):
    "Write rows back to the tensors that `pack_params` read"
    offset = 0
    for k in (k for k in 'WVbc' if k in parts):
        t = parts[k]
        size = t[0].numel()
        piece = flat[:,offset:offset+size]
        offset += size
        t.copy_(piece.view(len(t), t.shape[2], t.shape[1]).mT if k in 'WV' else piece)


# %%
power_of_two_blocks(20), power_of_two_blocks(7)

# %%
params = dict(W=torch.randn(3,5,2), b=torch.randn(3,5), V=torch.randn(3,5,2),
              c=torch.randn(3,2))
unpacked = {k: torch.zeros_like(t) for k,t in params.items()}
unpack_params(pack_params(params), unpacked)
for k in params: test_eq(unpacked[k], params[k])
pack_params(params).shape


# %% [markdown]
# `_State` holds the data on the device during a call: the packed parameters and moments, the densities and
# their inverses, and the key roots.

# %%
#| export
class _State:
    "A run in packed form on the device"
    def __init__(self, run, batch, lr, decay, width):
        self.run = run
        self.batch = batch
        self.dev = run.W.device
        c = run.config
        to_device = lambda x: torch.as_tensor(x, dtype=torch.float32, device=self.dev)
        per_instance = lambda x: to_device(x).expand(len(run.W)).contiguous()
        self.parts = [run.params,*({k: v[i] for k,v in run.moments.items()} for i in (0,1))]
        pad = lambda t: torch.nn.functional.pad(t, (0, width-t.shape[1])).contiguous()
        self.flat = [pad(pack_params(p)) for p in self.parts]
        self.density = batch.density.contiguous()
        self.over = 1/self.density
        self.imp = to_device(c.importances[run.instances])
        self.l1 = per_instance(c.per_instance('l1')[run.instances])
        self.lr = per_instance(lr)
        self.decay = per_instance(decay)
        self.roots,self.gates = (_device_roots(batch, s) for s in (0,2))

    def record(self, end, logged, losses, snap):
        "Write a chunk of steps to the run; `losses` is [logged step, instance]"
        run = self.run
        for flat,part in zip(self.flat, self.parts): unpack_params(flat, part)
        for s,row in zip(logged, losses.cpu()):
            _check_loss(run, s, row)
            append_loss(run, s, row)
        run.step = end
        check_finite(run, end-1, losses[-1] if len(logged) else run.b.new_zeros(len(run.b)))
        if end in snap: run.snapshots[end] = run.W.clone()

def _check_loss(run, step, loss):
    "Stop at the first logged loss that is not finite"
    if not torch.isfinite(loss).all(): check_finite(run, step, loss)

def _slots(first, end, log, dev):
    "Return the logged steps of a chunk, and the row of each step's loss, or -1"
    logged = [s for s in range(first, end) if s in log]
    slots = torch.full((end-first,), -1, dtype=torch.int32)
    slots[[s-first for s in logged]] = torch.arange(len(logged), dtype=torch.int32)
    return logged,slots.to(dev)

def _fits_in_registers(config):
    "Return whether a thread can hold the gradients of a whole model"
    n = config.n_features
    m = config.n_hidden
    return n*m*(2-config.tied)<=128 and n<=32


# %% [markdown]
# With few models, each gets many threads, so that a step takes little time. With many models, each
# gets one warp, so that sums over threads are cheap and a multiprocessor holds many models.

# %%
#| export
def _launch_shape(config, n_instances, batch_size):
    "Return the warps of a program, and the rows it processes at a time"
    warps = 1 if n_instances>=512 else 2 if n_instances>=264 else 4
    rows = max(1, 8//triton.next_power_of_2(config.n_features*config.n_hidden))
    return warps,min(32*warps*rows, max(16, triton.next_power_of_2(batch_size)))

def _train_resident(run, to, batch, lr, decay, schedule, log, snap):
    c = run.config
    I = len(run.W)
    P = triton.next_power_of_2(pack_params(run.params).shape[1])
    st = _State(run, batch, lr, decay, P)
    warps,BS = _launch_shape(c, I, batch.batch_size)
    off,size = power_of_two_blocks(c.n_features)
    gradient = torch.zeros_like(st.flat[0])
    chunk = min(4096, max(64, 2**27//(I*c.n_features)))
    for first,end in step_chunks(run.step, to, snap, chunk):
        logged,slots = _slots(first, end, log, st.dev)
        loss = torch.zeros(max(1, len(logged)), I, device=st.dev)
        table = step_factors(run, first, end, schedule).to(st.dev)
        _resident_kernel[(I,)](
            *st.flat, gradient, st.density, st.over, st.imp, st.roots, st.gates, table, slots,
            st.lr, st.decay, st.l1, loss, first, end-first, batch.batch_size, I, OFF=off,
            SIZE=size, BS=BS, P=P, num_warps=warps, **_compiler_options(),
            **_constants(c, batch.finite))
        st.record(end, logged, loss, snap)

def _compiler_options(): return {} if is_interpreted() else dict(enable_fp_fusion=True)


# %% [markdown]
# ## Larger models
#
# Two hundred features in twenty dimensions have four thousand weights, which is too many for a
# thread, and a few such models would leave most multiprocessors idle. For these models a step is
# two launches. In the first, each program processes a share of the rows of one model. It keeps the
# hidden layer of sixty-four rows in registers and iterates over the features three times: to the
# hidden layer, to the outputs and back, and to the gradient of $W$. Inputs are recomputed each
# time, which is cheaper than storing them. Matrix products run on the tensor cores, with each
# number split into three parts (`tf32x3`), because a single TF32 product keeps ten bits. The second
# launch adds the shares up and updates the parameters. No atomic operation is used, so a run is
# bitwise reproducible.

# %%
#| export
@triton.jit
def _input_tile(i, row, in_batch, j, density, over, d_keys, g_keys, n: tl.constexpr,
                BN: tl.constexpr, SETS: tl.constexpr, KIND: tl.constexpr,
                SIGNED: tl.constexpr, FUSED: tl.constexpr):
    "Draw a tile of inputs, [row, feature]; zero beyond the last row or feature"
    f = j + tl.arange(0, BN)
    x = _draw(i, row[:,None], tl.minimum(f, n-1)[None,:], density, over, d_keys, g_keys, n,
              SETS, KIND, SIGNED, FUSED)
    return tl.where(in_batch[:,None] & (f<n)[None,:], x, 0.)

@triton.jit
def _weight_tile(at, j, n: tl.constexpr, m: tl.constexpr, BN: tl.constexpr, M: tl.constexpr):
    "Return the addresses of a tile [feature, hidden], and a mask of the entries that exist"
    f = j + tl.arange(0, BN)
    k = tl.arange(0, M)
    return at + k[None,:]*n + f[:,None],(f<n)[:,None] & (k<m)[None,:]

@triton.jit(do_not_specialize=['B'])
def _gradient_kernel(theta, part, shares, density, over, imp, roots, gates, position, l1s, first, B,
            SHARE, n: tl.constexpr, m: tl.constexpr, BS: tl.constexpr, BN: tl.constexpr,
            M: tl.constexpr, P: tl.constexpr, PREC: tl.constexpr, SETS: tl.constexpr,
            KIND: tl.constexpr, SIGNED: tl.constexpr, FUSED: tl.constexpr,
            RELU: tl.constexpr, NEURONS: tl.constexpr, TIED: tl.constexpr,
            BIAS: tl.constexpr, HBIAS: tl.constexpr, ABS: tl.constexpr, L1: tl.constexpr,
            UNIT: tl.constexpr, FINITE: tl.constexpr):
    "Compute gradient and loss of one model over a share of the rows"
    i = tl.program_id(0).to(tl.int64)
    share = tl.program_id(1)
    V: tl.constexpr = 0 if TIED else n*m
    b0: tl.constexpr = n*m + V
    step = tl.load(position) + tl.load(first)
    if FINITE: step = step*0
    d_keys = _keys(tl.load(roots+i), step)
    g_keys = _keys(tl.load(gates+i), step)
    model = theta + i*P
    output = part + (i*tl.num_programs(1) + share)*P
    k = tl.arange(0, M)
    l1 = tl.load(l1s+i)
    loss = tl.zeros([BS], tl.float32)
    for tile in range(0, SHARE, BS):
        row = share*SHARE + tile + tl.arange(0, BS)
        in_batch = row<B
        scale = tl.zeros([BS], tl.float32) + 1
        if UNIT:
            length = tl.zeros([BS], tl.float32)
            for j in range(0, n, BN):
                x = _input_tile(i, row, in_batch, j, density, over, d_keys, g_keys, n, BN,
                                SETS, KIND, SIGNED, FUSED)
                length += tl.sum(x*x, 1)
            scale = tl.div_rn(scale, tl.maximum(tl.sqrt_rn(length), 1e-12))
        h = tl.zeros([BS,M], tl.float32)
        if HBIAS: h += tl.load(model + b0 + n + k, mask=k<m, other=0.)[None,:]
        for j in range(0, n, BN):
            x = _input_tile(i, row, in_batch, j, density, over, d_keys, g_keys, n, BN, SETS,
                            KIND, SIGNED, FUSED)*scale[:,None]
            at,mask = _weight_tile(model, j, n, m, BN, M)
            h = tl.dot(x, tl.load(at, mask=mask, other=0.), h, input_precision=PREC)
        h = _activation(h, NEURONS)
        d_hidden = tl.zeros([BS,M], tl.float32)
        for j in range(0, n, BN):
            f = j + tl.arange(0, BN)
            exists = f<n
            x = _input_tile(i, row, in_batch, j, density, over, d_keys, g_keys, n, BN, SETS,
                            KIND, SIGNED, FUSED)*scale[:,None]
            at,mask = _weight_tile(model+V, j, n, m, BN, M)
            v = tl.load(at, mask=mask, other=0.)
            z = tl.dot(h, tl.trans(v), input_precision=PREC)
            z += tl.load(model + b0 + f, mask=exists, other=0.)[None,:]
            e = _activation(z, RELU) - (tl.abs(x) if ABS else x)
            e = tl.where(in_batch[:,None] & exists[None,:], e, 0.)
            g = tl.load(imp + i*n + f, mask=exists, other=0.)[None,:]*e
            loss += tl.sum(g*e, 1)
            if RELU: g = tl.where(z>0, g, 0.)
            g = g*(2./(B*n))
            d_hidden = tl.dot(g, v, d_hidden, input_precision=PREC)
            at,mask = _weight_tile(output+V, j, n, m, BN, M)
            readout_gradient = tl.dot(tl.trans(g), h, input_precision=PREC)
            gb = tl.sum(g, 0)
            if tile>0:
                readout_gradient += tl.load(at, mask=mask, other=0.)
                gb += tl.load(output + b0 + f, mask=exists, other=0.)
            tl.store(at, readout_gradient, mask=mask)
            tl.store(output + b0 + f, gb, mask=exists)
        if L1:
            size = tl.where(in_batch[:,None] & (k<m)[None,:], tl.abs(h), 0.)
            loss += l1*tl.sum(size, 1)
            d_hidden += l1/(B*n)*tl.where(size>0, tl.where(h>0, 1., -1.), 0.)
        if NEURONS: d_hidden = tl.where(h>0, d_hidden, 0.)
        tl.debug_barrier()
        if HBIAS:
            gc = tl.sum(d_hidden, 0)
            if tile>0: gc += tl.load(output + b0 + n + k, mask=k<m, other=0.)
            tl.store(output + b0 + n + k, gc, mask=k<m)
        for j in range(0, n, BN):
            x = _input_tile(i, row, in_batch, j, density, over, d_keys, g_keys, n, BN, SETS,
                            KIND, SIGNED, FUSED)*scale[:,None]
            at,mask = _weight_tile(output, j, n, m, BN, M)
            encoder_gradient = tl.dot(tl.trans(x), d_hidden, input_precision=PREC)
            if TIED: encoder_gradient += tl.load(at, mask=mask, other=0.)
            elif tile>0: encoder_gradient += tl.load(at, mask=mask, other=0.)
            tl.store(at, encoder_gradient, mask=mask)
        tl.debug_barrier()
    tl.store(shares + i*tl.num_programs(1) + share, tl.sum(loss, 0))

@triton.jit(do_not_specialize=['B','I'])
def _update_kernel(theta, mom, vel, part, shares, position, table, slots, rates, decays,
                   losses, B, I, SPLIT: tl.constexpr, P: tl.constexpr,
                   BIAS_START: tl.constexpr, BIAS_END: tl.constexpr, END: tl.constexpr,
                   BIAS: tl.constexpr, BP: tl.constexpr):
    "Add up the shares and update; b lies between BIAS_START and BIAS_END"
    i = tl.program_id(0).to(tl.int64)
    s = tl.load(position)
    q = tl.program_id(1)*BP + tl.arange(0, BP)
    at = i*P + q
    used = q<END
    learned = used if BIAS else used & ((q<BIAS_START) | (q>=BIAS_END))
    g = tl.zeros([BP], tl.float32)
    for share in range(SPLIT):
        g += tl.load(part + (i*SPLIT + share)*P + q, mask=used, other=0.)
    th = tl.load(theta + at, mask=used, other=0.)
    mo = tl.load(mom + at, mask=used, other=0.)
    ve = tl.load(vel + at, mask=used, other=0.)
    th,mo,ve = _adamw(th, mo, ve, g, tl.load(rates+i), tl.load(decays+i), table + 3*s, learned)
    tl.store(theta + at, th, mask=used)
    tl.store(mom + at, mo, mask=used)
    tl.store(vel + at, ve, mask=used)
    slot = tl.load(slots+s)
    if slot>=0 and tl.program_id(1)==0:
        total = 0.
        for share in range(SPLIT): total += tl.load(shares + i*SPLIT + share)
        tl.store(losses + slot*I + i, total/B)


# %% [markdown]
# Rows are divided until there are about four programs for each multiprocessor. On a GPU, sixteen
# steps are recorded as a [CUDA graph](40_cuda_graphs.ipynb); a counter on the device selects the
# rows of the tables.

# %%
#| export
def _split(n_instances, batch_size, BS):
    "Return the number of programs for each model, and of rows for each program"
    tiles = -(-batch_size//BS)
    split = max(1, min(tiles, 528//n_instances))
    tiles_each = -(-tiles//split)
    return -(-tiles//tiles_each),tiles_each*BS

class _TwoLaunchStep:
    "The two launches of a step, with their tables"
    def __init__(self, st, max_steps, BS=64, BN=32):
        run,batch,c = st.run,st.batch,st.run.config
        self.st = st
        self.B = batch.batch_size
        self.I = len(run.W)
        n = c.n_features
        m = c.n_hidden
        P = st.flat[0].shape[1]
        M,N = (max(16, triton.next_power_of_2(k)) for k in (m,n))
        self.split,share = _split(self.I, self.B, BS)
        zeros = lambda *shape, **kw: torch.zeros(shape, device=st.dev, **kw)
        self.part,self.shares = zeros(self.I, self.split, P),zeros(self.I, self.split)
        self.position = zeros(1, dtype=torch.int32)
        self.first = zeros(1, dtype=torch.int32)
        self.table = zeros(max_steps, 3)
        self.slots = zeros(max_steps, dtype=torch.int32)
        self.losses = zeros(max_steps, self.I)
        self.gradient_constants = dict(BS=BS, BN=min(BN, N), M=M, P=P, PREC='tf32x3',
                                       SHARE=share, **_constants(c, batch.finite),
                                       **_compiler_options())
        b0 = n*m*(2-c.tied)
        self.update_constants = dict(SPLIT=self.split, P=P, BIAS_START=b0, BIAS_END=b0+n,
                                     END=b0+n+m*c.hidden_bias,
                                     BIAS=c.bias, BP=1024, **_compiler_options())

    def __call__(self):
        st = self.st
        _gradient_kernel[(self.I,self.split)](
            st.flat[0], self.part, self.shares, st.density, st.over, st.imp, st.roots,
            st.gates, self.position, st.l1, self.first, self.B, **self.gradient_constants)
        _update_kernel[(self.I,triton.cdiv(self.update_constants['END'], 1024))](
            *st.flat, self.part, self.shares, self.position, self.table, self.slots, st.lr,
            st.decay, self.losses, self.B, self.I, **self.update_constants)
        self.position += 1

    def fill(self, first, end, schedule, slots):
        n = end-first
        self.table[:n] = step_factors(self.st.run, first, end, schedule)
        self.slots[:n] = slots
        self.position.zero_()
        self.first.fill_(first)

    def record(self):
        "Compile and record; undo the changes of the warm-up"
        if self.st.dev.type!='cuda': return [(1,self)]
        saved = [t.clone() for t in self.st.flat]
        self.table.fill_(1.)
        self.slots.fill_(-1)
        self()
        for t,value in zip(self.st.flat, saved): t.copy_(value)
        return [(n,record_graph(self, n)) for n in (16,1)]

def _train_two_launches(run, to, batch, lr, decay, schedule, log, snap):
    P = -(-pack_params(run.params).shape[1]//4)*4
    st = _State(run, batch, lr, decay, P)
    max_steps = max(1, min(1024, 2**24//len(run.W), to-run.step))
    step = _TwoLaunchStep(st, max_steps)
    graphs = step.record()
    for first,end in step_chunks(run.step, to, snap, max_steps):
        logged,slots = _slots(first, end, log, st.dev)
        step.fill(first, end, schedule, slots)
        replay(graphs, end-first)
        st.record(end, logged, step.losses[:len(logged)], snap)


# %%
#| export
def triton_engine(run:ToyRun, to:int, batch:Sampler, lr, decay, schedule, log:set, snap:set):
    "Train with the kernels of this page; arguments as in `eager_engine`"
    use_private_cache('TRITON_CACHE_DIR', 'triton')
    advance = _train_resident if _fits_in_registers(run.config) else _train_two_launches
    advance(run, to, batch, lr, decay, schedule, log, snap)

def triton_limitation(config:ToyConfig, device='cpu'):
    "Return why this engine cannot train `config` on `device`, or None if it can"
    if custom := custom_limitation(config, 'triton'): return custom
    unsupported = {config.activation,config.hidden} - {'relu','linear'}
    if torch.device(device).type!='cuda' and not is_interpreted(): return (
        'engine triton needs a GPU; to try it without one, set TRITON_INTERPRET=1 before '
        'Python starts.')
    if config.n_hidden>128:
        return 'engine triton supports up to 128 hidden units: use compiled.'
    if unsupported:
        return f'engine triton does not support {min(unsupported)}: use compiled or eager.'
    if config.per_instance('attack').any():
        return ('engine triton does not support adversarial training (attack): use compiled '
                'or eager.')


# %% [markdown]
# ## Comparison with the eager engine
#
# Without a GPU these kernels run in Triton's interpreter, which tests their arithmetic but not
# their speed. The data are those of the eager engine to the last bit. Sums are taken in another
# order, so parameters agree to rounding. Every option of a config that a kernel supports is
# compared, over a few steps and with rows that do not fill the last tile.

# %%
cases = dict(
    twenty=ToyConfig(20, 5, 2, density=[[.3],[.05]]),
    linear=ToyConfig(3, 1, 2, activation='linear', bias=False, density=.4),
    absolute=ToyConfig(3, 6, 2, hidden='relu', hidden_bias=True, tied=False, target='abs',
                       signed=True, density=.5),
    sets=ToyConfig(6, 2, 2, features='anticorrelated', sets=3, density=.4, l1=[0.,.1]),
    correlated=ToyConfig(6, 2, features='correlated', sets=2, density=.4, hidden='relu',
                       l1=.1),
    finite=ToyConfig(7, 2, density=.3, points=5, unit=True),
    large=ToyConfig(40, 17, 2, density=.1, importance=[.97**i for i in range(40)]),
    wide=ToyConfig(34, 5, hidden='relu', hidden_bias=True, tied=False, target='abs',
                   signed=True, density=.3, l1=.01))
args = dict(steps=4, batch_size=40, log_every=2, snapshots=[3], schedule='cosine')
dev = 'cpu' if is_interpreted() else 'cuda'

def differences(config):
    "Return the largest difference of the parameters, and of the loss ratio from 1"
    settings = args | dict(lr=[.003]*config.n_instances, device=dev)
    a,b = (train(config, engine=e, **settings) for e in ('eager','triton'))
    test_eq(a.logged, b.logged); test_close(a.snapshots[3], b.snapshots[3], eps=1e-5)
    largest = max((a.params[k]-b.params[k]).abs().max().item() for k in a.params)
    return largest,(a.loss/b.loss-1).abs().max().item()

found = {k: differences(c) for k,c in cases.items()}
assert all(max(v)<1e-5 for v in found.values())
found

# %% [markdown]
# Unsupported configs are reported, and `train` with engine `auto` takes the next engine.

# %%
test_eq(triton_limitation(cases['twenty'], dev), None)
[triton_limitation(ToyConfig(**kw), dev) for kw in (dict(activation='gelu'), dict(attack=.1),
                                         dict(n_features=200, n_hidden=129))]

# %% [markdown]
# The engine selected by `auto`:
#
# | models | on a CPU | on a GPU |
# | --- | --- | --- |
# | up to 32 features and 128 weights | numba | triton, many steps a launch |
# | up to 128 hidden units | numba | triton, two launches a step |
# | more hidden units | numba | compiled |
# | activations beyond ReLU and linear, attacks | eager | compiled |
# | `notebook_compat` | eager | eager |
#
# None of the GPU paths on this page has been run on a GPU yet. From Triton's compiler for compute
# capability 9.0 we know that the kernels compile; that a model of five features needs no memory
# beyond registers, and one of twenty spills about a hundred of its words to the cache; and that the
# products of the larger models run on the tensor cores.
#
# ## Several GPUs
#
# Models are independent, so several GPUs need no communication: [each process trains its
# share](../../guides/many_gpus.ipynb).
