# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Kernels for a GPU
#
# > Thousands of training steps in one launch: a toy model learns inside one multiprocessor.

# %%
#| default_exp superposition.engines.triton_gpu

# %%
#| hide
#| needs: triton
import os, torch
if not torch.cuda.is_available(): os.environ['TRITON_INTERPRET'] = '1'

# %%
#| export
import torch, triton, triton.language as tl
import numpy as np
from moral_sc.superposition.engines.cuda_graphs import step_factors, record_graph, replay, step_chunks
from moral_sc.superposition.features import Sampler
from moral_sc.superposition.features import _mix64 as _mix
from moral_sc.superposition.model import ToyConfig
from moral_sc.superposition.training import ToyRun, check_finite, append_loss

# %%
#| hide
from fastcore.test import *
from moral_sc.superposition.features import hash32, keys
from moral_sc.superposition.training import train
torch.set_num_threads(1)


# %% [markdown]
# A step of a toy model reads next to nothing. Its parameters fit into registers, its data
# are made by [a counter](../10_features.ipynb) where they are needed, and no model knows of
# another. What makes it slow on a GPU is everything around it: launches, and intermediate
# results that travel to memory and back. So here one program takes one model and stays with
# it for thousands of steps. Nothing but a logged loss leaves the chip.
#
# ## Numbers from the counter
#
# The same two finalisers as on the page of features, on unsigned integers, which Triton
# has. The slow one makes the keys of a step from a root that is prepared for each model;
# the fast one makes a number from an element's index.

# %%
#| export
@triton.jit
def _mix64(z):
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb
    return z ^ (z >> 31)

@triton.jit
def _keys(root, step):
    "The two keys of a step, from the root of a model"
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

def roots(batch:Sampler, stream:int)->torch.Tensor: # [instance], int64
    "What `keys` knows before it sees the step"
    z = np.array([batch.seed % 2**64], np.uint64)
    for part in (np.array([stream], np.uint64), np.asarray(batch.instances, np.uint64)):
        z = _mix((z + np.uint64(0x9e3779b97f4a7c15)) ^ _mix(part + np.uint64(1)))
    return torch.from_numpy(z.view(np.int64)).to(batch.density.device)


# %% [markdown]
# The size of an active feature is $u/p$. A division costs as much as the rest of the hash;
# a multiplication by $r=1/p$ costs nothing but may be off by one in the last bit, and then
# data would differ from those of the other engines. Two fused multiply-adds repair it: with
# $q=ur$, the remainder $u-qp$ is exact when fused, and $q+(u-qp)\,r$ is the correctly
# rounded quotient, because $r$ itself is correctly rounded.

# %%
#| export
@triton.jit
def _quotient(u, p, r, FUSED: tl.constexpr):
    "u/p, correctly rounded; r is 1/p"
    if FUSED:
        q = u*r
        return tl.fma(tl.fma(-q, p, u), r, q)
    else: return tl.div_rn(u, p)

@triton.jit
def _draw(i, row, f, density, over, d_keys, g_keys, n: tl.constexpr, SETS: tl.constexpr,
          KIND: tl.constexpr, SIGNED: tl.constexpr, FUSED: tl.constexpr):
    "Inputs of some rows and features; one of the two is an axis, the other a column"
    p = tl.load(density + i*n + f)
    r = tl.load(over + i*n + f)
    u = _uniform(row*n + f, d_keys[0], d_keys[1])
    if KIND==0: on,size = u<=p,_quotient(u, p, r, FUSED)
    else:
        each: tl.constexpr = n//SETS
        g = _uniform(row*SETS + f//each, g_keys[0], g_keys[1])
        on = g<=p
        size = u
        if KIND==2:
            place = tl.minimum(_quotient(g, p, r, FUSED), 1-2.**-24)
            on = on & ((place*each).to(tl.int32)==f%each)
    if SIGNED: size = 2*size-1
    return tl.where(on, size, 0.)


# %% [markdown]
# In double precision the fused operations can be followed by hand:

# %%
u = hash32(keys(0, [0], [0])[0], 200_000)[0].float()*2**-31
p = torch.rand(200_000)*.999+.001; r = 1/p
q = u*r
rest = (u.double()-q.double()*p).float()
quotient = (q.double()+rest.double()*r).float()
test_eq(quotient, u/p)
(q!=u/p).float().mean(), (quotient!=u/p).float().mean()


# %% [markdown]
# ## A model in one program
#
# Every thread takes samples, and works through their features and hidden units in its own
# registers: no sum of the forward or backward direction crosses threads. A number of
# features that is no power of two would waste lanes; it is split into blocks that are
# (twenty is sixteen and four). Gradients of $W$ accumulate in registers over all samples of
# a thread, and are added up over threads once a step. Then each thread updates some
# parameters, which it alone keeps together with AdamW's two moments, and publishes their
# new values to the others through the cache.
#
# Parameters lie in one row for each model: columns of $W$ one after the other, those of $V$
# if there is one, $b$, and $c$.

# %%
#| export
@triton.jit
def _activation(z, RELU: tl.constexpr):
    if RELU: return tl.maximum(z, 0.)
    else: return z

@triton.jit
def _adamw(th, mo, ve, g, lr, decay, table, free):
    "AdamW for the entries that are `free`; a row of `table` as in `factors`"
    rate = lr*tl.load(table)
    c1 = tl.load(table+1)
    c2 = tl.load(table+2)
    mo = mo + .1*(g-mo)
    ve = .999*ve + .001*g*g
    new = th*(1-rate*decay) - rate*mo/(tl.sqrt_rn(ve)/c2 + 1e-8)/c1
    return tl.where(free, new, th),mo,ve

@triton.jit(do_not_specialize=['first','S','B','I'])
def _resident_kernel(theta, mom, vel, grad, density, over, imp, roots, gates, table, slots, rates,
          decays, l1s, loss, first, S, B, I, n: tl.constexpr, m: tl.constexpr,
          OFF: tl.constexpr,
          SIZE: tl.constexpr, BS: tl.constexpr, P: tl.constexpr, SETS: tl.constexpr,
          KIND: tl.constexpr, SIGNED: tl.constexpr, FUSED: tl.constexpr, RELU: tl.constexpr,
          NEURONS: tl.constexpr, TIED: tl.constexpr, BIAS: tl.constexpr,
          HBIAS: tl.constexpr, ABS: tl.constexpr, L1: tl.constexpr, UNIT: tl.constexpr,
          FINITE: tl.constexpr):
    "S steps of one model"
    i = tl.program_id(0).to(tl.int64)
    J: tl.constexpr = len(SIZE)
    V: tl.constexpr = 0 if TIED else n*m          # Where V, b and c begin, and the end
    b0: tl.constexpr = n*m + V
    c0: tl.constexpr = b0 + n
    end: tl.constexpr = c0 + m*HBIAS
    q = tl.arange(0, P); at = i*P + q; used = q<end
    free = used if BIAS else used & ((q<b0) | (q>=c0))
    th = tl.load(theta+at)
    mo = tl.load(mom+at)
    ve = tl.load(vel+at)
    lr = tl.load(rates+i)
    decay = tl.load(decays+i)
    l1 = tl.load(l1s+i)
    d_root = tl.load(roots+i)
    g_root = tl.load(gates+i)
    par = theta + i*P
    slope = grad + i*P
    for s in range(S):
        now = first + (s if not FINITE else -first)
        d_keys = _keys(d_root, now)
        g_keys = _keys(g_root, now)
        dW = (); dV = (); db = (); dc = ()
        for a in tl.static_range(J*m):
            dW = dW + (tl.zeros([SIZE[a%J],BS], tl.float32),)
            if not TIED: dV = dV + (tl.zeros([SIZE[a%J],BS], tl.float32),)
        for j in tl.static_range(J): db = db + (tl.zeros([SIZE[j],BS], tl.float32),)
        for _k in tl.static_range(m): dc = dc + (tl.zeros([BS], tl.float32),)
        lost = tl.zeros([BS], tl.float32)
        for tile in range(0, B, BS):
            row = tile + tl.arange(0, BS); live = row<B
            x = ()
            for j in tl.static_range(J):
                f = OFF[j] + tl.arange(0, SIZE[j])
                v = _draw(i, row[None,:], f[:,None], density, over, d_keys, g_keys, n, SETS,
                          KIND, SIGNED, FUSED)
                x = x + (tl.where(live[None,:], v, 0.),)
            if UNIT:
                long = tl.zeros([BS], tl.float32)
                for j in tl.static_range(J): long += tl.sum(x[j]*x[j], 0)
                long = tl.maximum(tl.sqrt_rn(long), 1e-12)
                unit = ()
                for j in tl.static_range(J): unit = unit + (tl.div_rn(x[j], long[None,:]),)
                x = unit
            h = ()
            for k in tl.static_range(m):
                hk = tl.zeros([BS], tl.float32)
                if HBIAS: hk += tl.load(par + c0 + k)
                for j in tl.static_range(J):
                    w = tl.load(par + k*n + OFF[j] + tl.arange(0, SIZE[j]))
                    hk += tl.sum(x[j]*w[:,None], 0)
                h = h + (_activation(hk, NEURONS),)
            g = ()
            for j in tl.static_range(J):
                f = OFF[j] + tl.arange(0, SIZE[j])
                z = tl.load(par + b0 + f)[:,None] + tl.zeros([SIZE[j],BS], tl.float32)
                for k in tl.static_range(m):
                    z += tl.load(par + V + k*n + f)[:,None]*h[k][None,:]
                wanted = tl.abs(x[j]) if ABS else x[j]
                e = tl.where(live[None,:], _activation(z, RELU)-wanted, 0.)
                weighed = tl.load(imp + i*n + f)[:,None]*e
                lost += tl.sum(weighed*e, 0)
                if RELU: weighed = tl.where(z>0, weighed, 0.)
                g = g + (weighed*(2./(B*n)),)
            new_W = (); new_V = (); new_b = (); new_c = ()
            for k in tl.static_range(m):
                back = tl.zeros([BS], tl.float32)
                for j in tl.static_range(J):
                    v = tl.load(par + V + k*n + OFF[j] + tl.arange(0, SIZE[j]))
                    back += tl.sum(g[j]*v[:,None], 0)
                if L1:
                    size = tl.where(live, tl.abs(h[k]), 0.)
                    lost += l1*size
                    back += l1/(B*n)*tl.where(size>0, tl.where(h[k]>0, 1., -1.), 0.)
                if NEURONS: back = tl.where(h[k]>0, back, 0.)
                new_c = new_c + (dc[k] + back,)
                for j in tl.static_range(J):
                    read = g[j]*h[k][None,:]
                    write = x[j]*back[None,:]
                    if TIED: new_W = new_W + (dW[k*J+j] + read + write,)
                    else:
                        new_W = new_W + (dW[k*J+j] + write,)
                        new_V = new_V + (dV[k*J+j] + read,)
            for j in tl.static_range(J): new_b = new_b + (db[j] + g[j],)
            dW = new_W; dV = new_V; db = new_b; dc = new_c
        for k in tl.static_range(m):
            for j in tl.static_range(J):
                to = slope + k*n + OFF[j] + tl.arange(0, SIZE[j])
                tl.store(to, tl.sum(dW[k*J+j], 1))
                if not TIED: tl.store(to + V, tl.sum(dV[k*J+j], 1))
            if HBIAS: tl.store(slope + c0 + k, tl.sum(dc[k], 0))
        for j in tl.static_range(J):
            tl.store(slope + b0 + OFF[j] + tl.arange(0, SIZE[j]), tl.sum(db[j], 1))
        slot = tl.load(slots+s)
        if slot>=0: tl.store(loss + slot*I + i, tl.sum(lost, 0)/B)
        tl.debug_barrier()
        g_all = tl.load(slope + q, mask=used, other=0.)
        th,mo,ve = _adamw(th, mo, ve, g_all, lr, decay, table + 3*s, free)
        tl.store(theta + at, th)
        tl.debug_barrier()
    tl.store(mom+at, mo); tl.store(vel+at, ve)


# %% [markdown]
# ## Packing
#
# The rows of all models in a run, and what of a config the kernels are compiled for.

# %%
#| export
_kinds = {'independent': 0, 'correlated': 1, 'anticorrelated': 2, 'one-hot': 2}

def _constants(config, finite):
    "Compile-time constants of both kernels"
    c = config
    l1 = bool(config.per_instance('l1').any())
    return dict(n=c.n_features, m=c.n_hidden, SETS=c.sets, KIND=_kinds[c.features],
                SIGNED=c.signed, FUSED=not is_interpreted(), RELU=c.activation=='relu',
                NEURONS=c.hidden=='relu', TIED=c.tied, BIAS=c.bias, HBIAS=c.hidden_bias,
                ABS=c.target=='abs', L1=l1, UNIT=c.unit, FINITE=finite)

def is_interpreted():
    "Whether Triton was told to interpret its kernels, slowly and without a GPU"
    return triton.knobs.runtime.interpret

def power_of_two_blocks(n:int)->tuple: # Where each begins, and how long it is
    "Split n features into powers of two"
    size = tuple(1<<k for k in range(n.bit_length()-1, -1, -1) if n>>k & 1)
    return tuple(sum(size[:j]) for j in range(len(size))),size

def pack_params(parts:dict)->torch.Tensor: # [instance, number of parameters]
    "Parameters of each model in one row: columns of W and V, then b and c"
    rows = [parts[k].mT if k in 'WV' else parts[k] for k in 'WVbc' if k in parts]
    return torch.cat([t.flatten(1) for t in rows], 1)

def unpack_params(flat, parts):
    "Write rows back to where `pack` took them from"
    at = 0
    for k in (k for k in 'WVbc' if k in parts):
        t = parts[k]; size = t[0].numel()
        piece = flat[:,at:at+size]; at += size
        t.copy_(piece.view(len(t), t.shape[2], t.shape[1]).mT if k in 'WV' else piece)


# %%
power_of_two_blocks(20), power_of_two_blocks(7)

# %%
some = dict(W=torch.randn(3,5,2), b=torch.randn(3,5), V=torch.randn(3,5,2),
            c=torch.randn(3,2))
back = {k: torch.zeros_like(t) for k,t in some.items()}
unpack_params(pack_params(some), back)
for k in some: test_eq(back[k], some[k])
pack_params(some).shape


# %% [markdown]
# `_State` keeps what lies on the device during a call: the packed parameters and moments,
# densities and their inverses, the roots of the counter.

# %%
#| export
class _State:
    "A run on the device, packed"
    def __init__(self, run, batch, lr, decay, width):
        self.run = run
        self.batch = batch
        self.dev = run.W.device
        c = run.config
        own = lambda x: torch.as_tensor(x, dtype=torch.float32, device=self.dev)
        wide = lambda x: own(x).expand(len(run.W)).contiguous()
        self.parts = [run.params,*({k: v[i] for k,v in run.moments.items()} for i in (0,1))]
        pad = lambda t: torch.nn.functional.pad(t, (0, width-t.shape[1])).contiguous()
        self.flat = [pad(pack_params(p)) for p in self.parts]
        self.density = batch.density.contiguous(); self.over = 1/self.density
        self.imp = own(c.importances[run.instances])
        self.l1 = wide(c.per_instance('l1')[run.instances])
        self.lr = wide(lr)
        self.decay = wide(decay)
        self.roots,self.gates = (roots(batch, s) for s in (0,2))

    def book(self, first, end, kept, losses, snap):
        "Put a stretch where the run keeps it; `losses` is [kept step, instance]"
        run = self.run
        for flat,part in zip(self.flat, self.parts): unpack_params(flat, part)
        for s,row in zip(kept, losses.cpu()):
            _check_loss(run, s, row)
            append_loss(run, s, row)
        run.step = end
        check_finite(run, end-1, losses[-1] if len(kept) else run.b.new_zeros(len(run.b)))
        if end in snap: run.snapshots[end] = run.W.clone()

def _check_loss(run, step, loss):
    "Stop at the first logged loss that is not finite"
    if not torch.isfinite(loss).all(): check_finite(run, step, loss)

def _slots(first, end, log, dev):
    "Which steps of a stretch are logged, and where each step's loss goes; -1 for nowhere"
    kept = [s for s in range(first, end) if s in log]
    slots = torch.full((end-first,), -1, dtype=torch.int32)
    slots[[s-first for s in kept]] = torch.arange(len(kept), dtype=torch.int32)
    return kept,slots.to(dev)

def _fits_in_registers(config):
    "Whether a thread can hold the gradients of a whole model"
    n = config.n_features
    m = config.n_hidden
    return n*m*(2-config.tied)<=128 and n<=32


# %% [markdown]
# Few models want many threads each, so that a step is over soon; many models want one warp
# each, so that sums over threads cost nothing and a multiprocessor holds many.

# %%
#| export
def _launch_shape(config, n_instances, batch_size):
    "Warps of a program, and samples that it works on at a time"
    warps = 1 if n_instances>=512 else 2 if n_instances>=264 else 4
    each = max(1, 8//triton.next_power_of_2(config.n_features*config.n_hidden))
    return warps,min(32*warps*each, max(16, triton.next_power_of_2(batch_size)))

def _train_resident(run, to, batch, lr, decay, schedule, log, snap):
    c = run.config
    I = len(run.W)
    P = triton.next_power_of_2(pack_params(run.params).shape[1])
    st = _State(run, batch, lr, decay, P)
    warps,BS = _launch_shape(c, I, batch.batch_size)
    off,size = power_of_two_blocks(c.n_features)
    slope = torch.zeros_like(st.flat[0])
    most = min(4096, max(64, 2**27//(I*c.n_features)))
    for first,end in step_chunks(run.step, to, snap, most):
        kept,slots = _slots(first, end, log, st.dev)
        loss = torch.zeros(max(1, len(kept)), I, device=st.dev)
        table = step_factors(run, first, end, schedule).to(st.dev)
        _resident_kernel[(I,)](*st.flat, slope, st.density, st.over, st.imp, st.roots, st.gates, table,
                    slots, st.lr, st.decay, st.l1, loss, first, end-first,
                    batch.batch_size, I, OFF=off, SIZE=size, BS=BS, P=P, num_warps=warps,
                    **_compiler_options(), **_constants(c, batch.finite))
        st.book(first, end, kept, loss, snap)

def _compiler_options(): return {} if is_interpreted() else dict(enable_fp_fusion=True)


# %% [markdown]
# ## Larger models
#
# Two hundred features in twenty dimensions have four thousand weights, too many for a
# thread; and a few such models would leave most multiprocessors idle. Here a step is two
# launches. In the first, each program takes one model and a share of its rows, keeps the
# hidden layer of sixty-four rows in registers, and walks over the features three times: to
# the hidden layer, from there to the outputs and back, and to the gradient of $W$. Inputs
# are made anew each time, which is cheaper than keeping them. Products run on the tensor
# cores, each number split in three parts, because a single TF32 product keeps ten bits. The
# second launch adds the shares up and updates. No atomic operation is involved, so a run
# repeats to the last bit.

# %%
#| export
@triton.jit
def _input_tile(i, row, live, j, density, over, d_keys, g_keys, n: tl.constexpr, BN: tl.constexpr,
          SETS: tl.constexpr, KIND: tl.constexpr, SIGNED: tl.constexpr,
          FUSED: tl.constexpr):
    "A tile of inputs, [row, feature]; zero beyond the last row or feature"
    f = j + tl.arange(0, BN)
    x = _draw(i, row[:,None], tl.minimum(f, n-1)[None,:], density, over, d_keys, g_keys, n,
              SETS, KIND, SIGNED, FUSED)
    return tl.where(live[:,None] & (f<n)[None,:], x, 0.)

@triton.jit
def _weight_tile(at, j, n: tl.constexpr, m: tl.constexpr, BN: tl.constexpr, M: tl.constexpr):
    "Where a tile [feature, hidden] lies, and which of it exists"
    f = j + tl.arange(0, BN)
    k = tl.arange(0, M)
    return at + k[None,:]*n + f[:,None],(f<n)[:,None] & (k<m)[None,:]

@triton.jit(do_not_specialize=['B'])
def _gradient_kernel(theta, part, shares, density, over, imp, roots, gates, place, l1s, first, B,
            SHARE, n: tl.constexpr, m: tl.constexpr, BS: tl.constexpr, BN: tl.constexpr,
            M: tl.constexpr, P: tl.constexpr, PREC: tl.constexpr, SETS: tl.constexpr,
            KIND: tl.constexpr, SIGNED: tl.constexpr, FUSED: tl.constexpr,
            RELU: tl.constexpr, NEURONS: tl.constexpr, TIED: tl.constexpr,
            BIAS: tl.constexpr, HBIAS: tl.constexpr, ABS: tl.constexpr, L1: tl.constexpr,
            UNIT: tl.constexpr, FINITE: tl.constexpr):
    "Gradient and loss of one model over a share of the rows"
    i = tl.program_id(0).to(tl.int64)
    share = tl.program_id(1)
    V: tl.constexpr = 0 if TIED else n*m
    b0: tl.constexpr = n*m + V
    now = tl.load(place) + tl.load(first)
    if FINITE: now = now*0
    d_keys = _keys(tl.load(roots+i), now)
    g_keys = _keys(tl.load(gates+i), now)
    par = theta + i*P
    to = part + (i*tl.num_programs(1) + share)*P
    k = tl.arange(0, M); l1 = tl.load(l1s+i)
    loss = tl.zeros([BS], tl.float32)
    for tile in range(0, SHARE, BS):
        row = share*SHARE + tile + tl.arange(0, BS); live = row<B
        scale = tl.zeros([BS], tl.float32) + 1
        if UNIT:
            long = tl.zeros([BS], tl.float32)
            for j in range(0, n, BN):
                x = _input_tile(i, row, live, j, density, over, d_keys, g_keys, n, BN, SETS, KIND,
                          SIGNED, FUSED)
                long += tl.sum(x*x, 1)
            scale = tl.div_rn(scale, tl.maximum(tl.sqrt_rn(long), 1e-12))
        h = tl.zeros([BS,M], tl.float32)
        if HBIAS: h += tl.load(par + b0 + n + k, mask=k<m, other=0.)[None,:]
        for j in range(0, n, BN):
            x = _input_tile(i, row, live, j, density, over, d_keys, g_keys, n, BN, SETS, KIND,
                      SIGNED, FUSED)*scale[:,None]
            at,mask = _weight_tile(par, j, n, m, BN, M)
            h = tl.dot(x, tl.load(at, mask=mask, other=0.), h, input_precision=PREC)
        h = _activation(h, NEURONS)
        back = tl.zeros([BS,M], tl.float32)
        for j in range(0, n, BN):
            f = j + tl.arange(0, BN); real = f<n
            x = _input_tile(i, row, live, j, density, over, d_keys, g_keys, n, BN, SETS, KIND,
                      SIGNED, FUSED)*scale[:,None]
            at,mask = _weight_tile(par+V, j, n, m, BN, M)
            v = tl.load(at, mask=mask, other=0.)
            z = tl.dot(h, tl.trans(v), input_precision=PREC)
            z += tl.load(par + b0 + f, mask=real, other=0.)[None,:]
            e = _activation(z, RELU) - (tl.abs(x) if ABS else x)
            e = tl.where(live[:,None] & real[None,:], e, 0.)
            g = tl.load(imp + i*n + f, mask=real, other=0.)[None,:]*e
            loss += tl.sum(g*e, 1)
            if RELU: g = tl.where(z>0, g, 0.)
            g = g*(2./(B*n))
            back = tl.dot(g, v, back, input_precision=PREC)
            at,mask = _weight_tile(to+V, j, n, m, BN, M)
            read = tl.dot(tl.trans(g), h, input_precision=PREC)
            gb = tl.sum(g, 0)
            if tile>0:
                read += tl.load(at, mask=mask, other=0.)
                gb += tl.load(to + b0 + f, mask=real, other=0.)
            tl.store(at, read, mask=mask); tl.store(to + b0 + f, gb, mask=real)
        if L1:
            size = tl.where(live[:,None] & (k<m)[None,:], tl.abs(h), 0.)
            loss += l1*tl.sum(size, 1)
            back += l1/(B*n)*tl.where(size>0, tl.where(h>0, 1., -1.), 0.)
        if NEURONS: back = tl.where(h>0, back, 0.)
        tl.debug_barrier()
        if HBIAS:
            gc = tl.sum(back, 0)
            if tile>0: gc += tl.load(to + b0 + n + k, mask=k<m, other=0.)
            tl.store(to + b0 + n + k, gc, mask=k<m)
        for j in range(0, n, BN):
            x = _input_tile(i, row, live, j, density, over, d_keys, g_keys, n, BN, SETS, KIND,
                      SIGNED, FUSED)*scale[:,None]
            at,mask = _weight_tile(to, j, n, m, BN, M)
            write = tl.dot(tl.trans(x), back, input_precision=PREC)
            if TIED: write += tl.load(at, mask=mask, other=0.)
            elif tile>0: write += tl.load(at, mask=mask, other=0.)
            tl.store(at, write, mask=mask)
        tl.debug_barrier()
    tl.store(shares + i*tl.num_programs(1) + share, tl.sum(loss, 0))

@triton.jit(do_not_specialize=['B','I'])
def _update_kernel(theta, mom, vel, part, shares, place, table, slots, rates, decays, losses, B, I,
            SPLIT: tl.constexpr, P: tl.constexpr, FROM: tl.constexpr, TO: tl.constexpr,
            END: tl.constexpr, BIAS: tl.constexpr, BP: tl.constexpr):
    "Add up the shares and update; b lies between FROM and TO"
    i = tl.program_id(0).to(tl.int64)
    s = tl.load(place)
    q = tl.program_id(1)*BP + tl.arange(0, BP); at = i*P + q; used = q<END
    free = used if BIAS else used & ((q<FROM) | (q>=TO))
    g = tl.zeros([BP], tl.float32)
    for share in range(SPLIT):
        g += tl.load(part + (i*SPLIT + share)*P + q, mask=used, other=0.)
    th = tl.load(theta + at, mask=used, other=0.)
    mo = tl.load(mom + at, mask=used, other=0.)
    ve = tl.load(vel + at, mask=used, other=0.)
    th,mo,ve = _adamw(th, mo, ve, g, tl.load(rates+i), tl.load(decays+i), table + 3*s, free)
    tl.store(theta + at, th, mask=used)
    tl.store(mom + at, mo, mask=used); tl.store(vel + at, ve, mask=used)
    slot = tl.load(slots+s)
    if slot>=0 and tl.program_id(1)==0:
        total = 0.
        for share in range(SPLIT): total += tl.load(shares + i*SPLIT + share)
        tl.store(losses + slot*I + i, total/B)


# %% [markdown]
# Rows are shared out until about four programs wait for each multiprocessor. On a GPU
# sixteen steps are recorded as a graph, as on the page of [the
# compiler](40_cuda_graphs.ipynb); a counter on the device tells the kernels where in the
# tables they are.

# %%
#| export
def _split(n_instances, batch_size, BS):
    "Programs for each model, and rows for each program"
    tiles = -(-batch_size//BS)
    split = max(1, min(tiles, 528//n_instances))
    each = -(-tiles//split)
    return -(-tiles//each),each*BS

class _TwoLaunchStep:
    "The two launches of a step, with their tables"
    def __init__(self, st, most, BS=64, BN=32):
        run,batch,c = st.run,st.batch,st.run.config
        self.st = st
        self.B = batch.batch_size
        self.I = len(run.W)
        n = c.n_features
        m = c.n_hidden
        P = st.flat[0].shape[1]
        M,N = (max(16, triton.next_power_of_2(k)) for k in (m,n))
        self.split,share = _split(self.I, self.B, BS)
        new = lambda *shape, **kw: torch.zeros(shape, device=st.dev, **kw)
        self.part,self.shares = new(self.I, self.split, P),new(self.I, self.split)
        self.place = new(1, dtype=torch.int32)
        self.first = new(1, dtype=torch.int32)
        self.table = new(most, 3)
        self.slots = new(most, dtype=torch.int32)
        self.losses = new(most, self.I)
        self.one = dict(BS=BS, BN=min(BN, N), M=M, P=P, PREC='tf32x3', SHARE=share,
                        **_constants(c, batch.finite), **_compiler_options())
        b0 = n*m*(2-c.tied)
        self.two = dict(SPLIT=self.split, P=P, FROM=b0, TO=b0+n, END=b0+n+m*c.hidden_bias,
                        BIAS=c.bias, BP=1024, **_compiler_options())

    def __call__(self):
        st = self.st
        _gradient_kernel[(self.I,self.split)](
            st.flat[0], self.part, self.shares, st.density, st.over, st.imp, st.roots,
            st.gates, self.place, st.l1, self.first, self.B, **self.one)
        _update_kernel[(self.I,triton.cdiv(self.two['END'], 1024))](
            *st.flat, self.part, self.shares, self.place, self.table, self.slots, st.lr,
            st.decay, self.losses, self.B, self.I, **self.two)
        self.place += 1

    def fill(self, first, end, schedule, slots):
        n = end-first
        self.table[:n] = step_factors(self.st.run, first, end, schedule)
        self.slots[:n] = slots
        self.place.zero_(); self.first.fill_(first)

    def record(self):
        "Compile and record; what the warm-up trained is undone"
        if self.st.dev.type!='cuda': return [(1,self)]
        kept = [t.clone() for t in self.st.flat]
        self.table.fill_(1.); self.slots.fill_(-1); self()
        for t,k in zip(self.st.flat, kept): t.copy_(k)
        return [(n,record_graph(self, n)) for n in (16,1)]

def _train_two_launches(run, to, batch, lr, decay, schedule, log, snap):
    P = -(-pack_params(run.params).shape[1]//4)*4
    st = _State(run, batch, lr, decay, P)
    most = max(1, min(1024, 2**24//len(run.W), to-run.step))
    pair = _TwoLaunchStep(st, most); players = pair.record()
    for first,end in step_chunks(run.step, to, snap, most):
        kept,slots = _slots(first, end, log, st.dev)
        pair.fill(first, end, schedule, slots)
        replay(players, end-first)
        st.book(first, end, kept, pair.losses[:len(kept)], snap)


# %%
#| export
def triton_engine(run:ToyRun, to:int, batch:Sampler, lr, decay, schedule, log:set, snap:set):
    "Train with the kernels of this page; arguments as in `eager`"
    way = _train_resident if _fits_in_registers(run.config) else _train_two_launches
    way(run, to, batch, lr, decay, schedule, log, snap)

def triton_limitation(config:ToyConfig, device='cpu'):
    "None, or in one sentence why this engine cannot train `config` on `device`"
    kinds = {config.activation,config.hidden} - {'relu','linear'}
    if torch.device(device).type!='cuda' and not is_interpreted(): return (
        'engine triton needs a GPU; to try it without one, set TRITON_INTERPRET=1 before '
        'Python starts.')
    if config.n_hidden>128:
        return 'engine triton serves up to 128 hidden units: use compiled.'
    if kinds: return f'engine triton does not know {min(kinds)}: use compiled or eager.'
    if config.per_instance('attack').any():
        return 'engine triton does not train against attacks: use compiled or eager.'


# %% [markdown]
# ## Proof
#
# Without a GPU these kernels run in Triton's interpreter, thread by thread in NumPy, which
# proves their arithmetic but says nothing about their speed. The data are those of the
# eager engine to the last bit; sums are taken in another order, so parameters agree to
# rounding. Every trait of a config that a kernel knows is compared, over a few steps and
# with rows that do not fill the last tile.

# %%
cases = dict(
    twenty=ToyConfig(20, 5, 2, density=[[.3],[.05]]),
    linear=ToyConfig(3, 1, 2, activation='linear', bias=False, density=.4),
    absolute=ToyConfig(3, 6, 2, hidden='relu', hidden_bias=True, tied=False, target='abs',
                       signed=True, density=.5),
    sets=ToyConfig(6, 2, 2, features='anticorrelated', sets=3, density=.4, l1=[0.,.1]),
    together=ToyConfig(6, 2, features='correlated', sets=2, density=.4, hidden='relu',
                       l1=.1),
    finite=ToyConfig(7, 2, density=.3, points=5, unit=True),
    large=ToyConfig(40, 17, 2, density=.1, importance=[.97**i for i in range(40)]),
    wide=ToyConfig(34, 5, hidden='relu', hidden_bias=True, tied=False, target='abs',
                   signed=True, density=.3, l1=.01))
args = dict(steps=4, batch_size=40, log_every=2, snapshots=[3], schedule='cosine')
dev = 'cpu' if is_interpreted() else 'cuda'

def apart(config):
    "Largest difference between the parameters, and ratio of the losses, of both engines"
    here = args | dict(lr=[.003]*config.n_instances, device=dev)
    a,b = (train(config, engine=e, **here) for e in ('eager','triton'))
    test_eq(a.logged, b.logged); test_close(a.snapshots[3], b.snapshots[3], eps=1e-5)
    far = max((a.params[k]-b.params[k]).abs().max().item() for k in a.params)
    return far,(a.loss/b.loss-1).abs().max().item()

found = {k: apart(c) for k,c in cases.items()}
assert all(max(v)<1e-5 for v in found.values())
found

# %% [markdown]
# What these kernels cannot do they say, and `train` with engine `auto` takes the next one.

# %%
test_eq(triton_limitation(cases['twenty'], dev), None)
[triton_limitation(ToyConfig(**kw), dev) for kw in (dict(activation='gelu'), dict(attack=.1),
                                         dict(n_features=200, n_hidden=129))]

# %% [markdown]
# Which engine `auto` takes:
#
# | models | on a CPU | on a GPU |
# | --- | --- | --- |
# | up to 32 features and 128 weights | numba | triton, many steps a launch |
# | up to 128 hidden units | numba | triton, two launches a step |
# | more hidden units | numba | compiled |
# | activations beyond ReLU and linear, attacks | eager | compiled |
# | `notebook_compat` | eager | eager |
#
# None of the GPU paths on this page has run on a GPU yet. What is known of them there is
# what Triton's compiler says for compute capability 9.0: that the kernels compile; that a
# model of five features needs no memory beyond registers, one of twenty spills about a
# hundred of its words to the cache; and that the products of the larger ones run on the
# tensor cores.
#
# ## Several GPUs
#
# Models know nothing of each other, so several GPUs need not talk:
# [each process trains its share](../../guides/many_gpus.ipynb).
