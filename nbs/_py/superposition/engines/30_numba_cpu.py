# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Kernels for the CPU
#
# > The numba engine: a toy model's whole training inside one processor core.

# %%
#| default_exp superposition.engines.numba_cpu

# %%
#| export
import math, os
import numpy as np, torch
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from numba import njit, types
from numba.extending import intrinsic
from pathlib import Path
from zlib import crc32
from moral_sc.superposition.engines import codegen as steps, simd as lanes
from moral_sc.superposition.engines.cuda_graphs import step_chunks
from moral_sc.superposition.features import _mix64
from moral_sc.superposition.engines.simd import Integer, array_memory, loop, n_lanes, broadcast_scalar, sqrt
from moral_sc.superposition.model import ToyConfig
from moral_sc.superposition.engines.codegen import Plan, gradient
from moral_sc.superposition.training import check_finite, append_loss

# %%
#| hide
import time
from fastcore.test import *
from moral_sc.superposition.exact_loss import exact_loss
from moral_sc.superposition.model import initial_weights
from moral_sc.superposition.training import ToyRun, adamw_update, train
torch.set_num_threads(1)


# %% [markdown]
# The [eager engine](../40_training.ipynb) sends a hundred operations a step through PyTorch, each of
# which reads and writes the whole batch in memory. A processor could do the arithmetic of a
# small model a hundred times faster. Here a core takes one model and stays with it for
# thousands of steps: it makes the model's random numbers, its gradient (a [step](20_codegen.ipynb))
# and its update, and touches memory outside its own caches only to write down a loss.
#
# ## The update
#
# AdamW acts on each number alone, so the order of the parameters does not matter to it, and the
# padding between them stays at zero.

# %%
#| export
@intrinsic
def adamw_arrays(typing, theta, grad, mean, square, rate, keep, root):
    "AdamW on flat arrays; rate with its correction, 1 - rate·decay, 1/correction of the root"
    def code(context, b, sig, args):
        arrays = [array_memory(context, b, t, v) for t,v in zip(sig.args[:4], args[:4])]
        count = context.make_array(sig.args[0])(context, b, args[0]).nitems
        _adamw(b, Integer(b, count), *arrays, *(broadcast_scalar(b, v) for v in args[4:]))
        return context.get_dummy_value()
    return types.void(theta, grad, mean, square, *[types.float32]*3),code

def _adamw(b, count, theta, grad, mean, square, rate, keep, root):
    for at in (j*n_lanes for j in loop(b, count//n_lanes)):
        g = grad.get(at)
        m = mean.get(at)
        v = square.get(at)
        m = m + (g-m)*.1
        v = v*.999 + g*g*.001
        mean.put(at, m); square.put(at, v)
        theta.put(at, theta.get(at)*keep - rate*m/(sqrt(v)*root + 1e-8))


# %%
@njit
def once(theta, grad, mean, square, rate, keep, root):
    adamw_arrays(theta, grad, mean, square, rate, keep, root)

p,g,m,v = (torch.rand(32) for _ in range(4))
ours = [t.numpy().copy() for t in (p,g,m,v)]
adamw_update(p, g, (m,v), 3, lr=.01)
f = np.float32
once(*ours, f(.01/(1-.9**3)), f(1-.01*.01), f((1-.999**3)**-.5))
test_close(ours[0], p.numpy(), eps=1e-6); test_close(ours[3], v.numpy(), eps=1e-7)
np.abs(ours[0]-p.numpy()).max()

# %% [markdown]
# ## Training
#
# One call trains a range of models, one after the other, each through all its steps. Keys are
# those of [the features](../10_features.ipynb): a root for seed, stream and instance is
# prepared outside, and the step is mixed in here. A loss that is not finite ends that model's
# training and leaves the step's number.

# %%
#| export
_g,_a,_c = (np.uint64(k) for k in (0x9e3779b97f4a7c15,0xbf58476d1ce4e5b9,0x94d049bb133111eb))
_30,_27,_31,_32,_1 = (np.uint64(k) for k in (30,27,31,32,1))

@njit(inline='always')
def _mix(z):
    z = (z ^ (z >> _30))*_a
    z = (z ^ (z >> _27))*_c
    return z ^ (z >> _31)

@njit(nogil=True, cache=True)
def train_models(
    plan, first,   # Number of the first step
    roots, finite, # [stream, instance]; whether every step has the data of step 0
    theta, mean, square, tables, # [instance, ...]
    work,          # Memory for one model
    lr, decay, l1, # [instance]
    now,           # [step, 3]: factor of the rate, AdamW's two corrections
    slots,         # [step]: column of its loss, or -1
    rows, losses, bad, # Batch size; [instance, slot]; [instance]
):
    "Train some models through some steps"
    grad = np.zeros_like(theta[0])
    for j in range(len(theta)):
        for t in range(len(now)):
            at = _mix(np.uint64(0 if finite else first+t) + _1)
            k = _mix((roots[0,j] + _g) ^ at)
            q = _mix((roots[1,j] + _g) ^ at)
            ks = (k >> _32, k, q >> _32, q)
            loss = gradient(plan, theta[j], grad, tables[j], work, ks, rows, l1[j])
            if not math.isfinite(loss):
                bad[j] = first+t
                break
            if slots[t]>=0: losses[j,slots[t]] = loss
            rate = lr[j]*now[t,0]
            adamw_arrays(theta[j], grad, mean[j], square[j], np.float32(rate/now[t,1]),
                   np.float32(1)-rate*decay[j], np.float32(1)/now[t,2])


# %% [markdown]
# ## From a run to arrays and back
#
# The plan of a config is all that the kernel has to know. It carries a checksum of the code,
# because numba's cache does not notice when a module changes that the kernel was traced from.

# %%
#| export
_edition = crc32(b''.join(Path(m.__file__).read_bytes() for m in (lanes,steps)))

def make_plan(config:ToyConfig, rows:int)->Plan:
    "What the kernel of a config has to know"
    c = config
    sets = 'anticorrelated' if config.features=='one-hot' else config.features
    return Plan(c.n_features, c.n_hidden, c.activation, c.hidden, c.target, sets, c.sets, c.bias,
                c.hidden_bias, c.tied, c.signed, c.unit, bool(c.per_instance('l1').any()),
                rows%n_lanes>0, _edition)

def roots(seed, instances, streams=(0,2))->np.ndarray:
    "`features.keys` before the step is mixed in, [stream, instance]"
    z = np.full((len(streams),1), seed % 2**64, np.uint64)
    for part in np.array(streams, np.uint64)[:,None],np.array(instances, np.uint64)[None]:
        z = _mix64((z + _g) ^ _mix64(part + _1))
    return z

def feature_tables(density, importance, plan, rows)->np.ndarray:
    "Threshold, scale and weight of each feature, [instance, 3·feature]"
    p = density.float().double().numpy()
    t = np.zeros((len(p),3,plan.padded), np.float32)
    t[:,0] = -1
    t[...,:plan.n] = np.stack([p*2**31, 2**-31/p, importance.numpy()*2/(rows*plan.n)], 1)
    return t.reshape(len(p), -1)


# %%
[make_plan(ToyConfig(features='one-hot'), 100)]


# %% [markdown]
# Where a plan has put each parameter:

# %%
#| export
@lru_cache
def param_indices(plan)->dict:
    "Indices of each parameter among a model's numbers"
    at = plan.read.places()
    found = dict(b=at[:,-1], **{'W' if plan.tied else 'V': at[:,:-1]})
    if not plan.tied: found['W'] = plan.read.size + plan.write.places()
    if plan.hidden_bias: found['c'] = plan.c_at + np.arange(plan.m)
    return found


# %%
param_indices(Plan(3, 1))


# %% [markdown]
# A `ModelBlock` is a part of a run's models in the order of the tiles. It exists while its models are
# trained: a million models need memory for their results and a few blocks.

# %%
#| export
class ModelBlock:
    "Some models of a run, ready for `advance`"
    def __init__(self, run, plan, batch, part, lr, decay, known):
        ids = run.instances[part]
        rows = batch.batch_size
        self.run = run
        self.plan = plan
        self.part = part
        self.rows = rows
        self.finite = batch.finite
        self.places = param_indices(plan)
        self.flat = [np.zeros((len(ids),plan.size), np.float32) for _ in range(3)]
        for flat,k,t in self.parts(): flat[:,self.places[k]] = t[part].numpy()
        own = lambda x: np.broadcast_to(np.asarray(x, np.float32), len(run.W))[part].copy()
        density,importance,l1 = (t[ids] for t in known)
        self.rates = own(lr),own(decay),(l1/(rows*plan.n)).float().numpy()
        self.roots = roots(batch.seed, ids)
        self.tables = feature_tables(density, importance, plan, rows)

    def parts(self):
        for k in self.places:
            yield from zip(self.flat, [k]*3, (self.run.params[k],*self.run.moments[k]))

    def train(self, first, now, slots, losses, bad):
        work = np.empty(self.plan.work+n_lanes, np.float32)
        train_models(self.plan, first, self.roots, self.finite, *self.flat, self.tables, work,
                *self.rates, now, slots, self.rows, losses[self.part], bad[self.part])
        for flat,k,t in self.parts(): t[self.part] = torch.from_numpy(flat[:,self.places[k]])


# %% [markdown]
# ## The engine
#
# Instances are cut into parts, and threads take one part after another. Which thread trains a
# model changes nothing about it. A stretch of steps ends where a snapshot is due.

# %%
#| export
def thread_count():
    "As many as torch uses, and `NUMBA_NUM_THREADS` allows"
    return min(torch.get_num_threads(), int(os.environ.get('NUMBA_NUM_THREADS') or 1024))

def _schedule_table(run, first, end, schedule):
    s = np.arange(first, end)
    factor = [schedule(t/run.steps) for t in s.tolist()]
    return np.stack([factor, 1-.9**(s+1), (1-.999**(s+1))**.5], 1).astype(np.float32)

def numba_engine(run, to:int, batch, lr, decay, schedule, log:set, snap:set):
    "Train each model in one core; arguments as in `eager`"
    c = run.config
    I = len(run.W)
    count = thread_count()
    plan = make_plan(c, batch.batch_size)
    known = (c.densities,c.importances,c.per_instance('l1'))
    cuts = np.linspace(0, I, min(I, max(8*count, -(-I//4096)))+1).astype(int)
    parts = [slice(a,z) for a,z in zip(cuts, cuts[1:])]
    with ThreadPoolExecutor(count) as pool:
        for first,end in step_chunks(run.step, to, snap, 8192):
            logged = sorted(s for s in log if first<=s<end)
            slots = np.full(end-first, -1)
            slots[[s-first for s in logged]] = range(len(logged))
            losses = np.empty((I,len(logged)), np.float32)
            bad = np.full(I, end)
            now = _schedule_table(run, first, end, schedule)
            def one(part): ModelBlock(run, plan, batch, part, lr, decay, known).train(
                first, now, slots, losses, bad)
            list(map(one, parts) if count==1 else pool.map(one, parts))
            record_losses(run, end, logged, torch.from_numpy(losses), torch.from_numpy(bad))
            if end in snap: run.snapshots[end] = run.W.clone()

def record_losses(run, end, logged, losses, bad):
    "Keep what was logged before the first step that went wrong, and stop there if one did"
    worst = int(bad.min())
    for s,loss in zip(logged, losses.T):
        if s<worst: append_loss(run, s, loss)
    check_finite(run, min(worst, end-1), torch.where(bad==worst, torch.nan, 1.) if worst<end
                 else torch.ones(len(run.W)))
    run.step = end


# %% [markdown]
# What it cannot do is left to the eager engine:

# %%
#| export
def numba_limitation(config:ToyConfig, device='cpu'):
    "None, or in one sentence why this engine cannot train `config` on `device`"
    if torch.device(device).type!='cpu': return 'engine numba runs on a CPU: leave device at cpu.'
    for k in 'activation','hidden':
        if getattr(config, k) not in ('relu','linear'): return (
            f'engine numba knows {k} relu and linear, not {getattr(config, k)}: use eager.')
    if config.per_instance('attack').any():
        return 'engine numba does not attack its inputs: use eager.'


# %%
test_eq(numba_limitation(ToyConfig(100, 40, tied=False, hidden='relu', target='abs', signed=True)), None)
numba_limitation(ToyConfig(activation='gelu')), numba_limitation(ToyConfig(attack=.1))


# %% [markdown]
# ## The same as eager
#
# Same data, same losses, step by step to the rounding of single precision. First the paper's
# small models, of different density, importance, rate and decay:

# %%
def apart(config, **kw):
    "Largest relative difference of losses, largest difference of parameters"
    args = dict(steps=40, batch_size=96, lr=.01, log_every=1, schedule='cosine') | kw
    slow,fast = (train(config, engine=e, **args) for e in ('eager','numba'))
    loss = (fast.loss/slow.loss-1).abs().max().item()
    return loss, max((fast.params[k]-slow.params[k]).abs().max().item() for k in slow.params)

def sweep(n, m, **kw):
    return ToyConfig(n, m, 3, **dict(density=[[1.],[.2],[.05]]) | kw)

small = [apart(sweep(n, m, importance=[.9**i for i in range(n)]), lr=[.01,.003,.02],
               weight_decay=[.01,.1,0.]) for n,m in [(2,1),(5,2),(20,5),(30,27)]]
assert all(loss<2e-6 and p<2e-6 for loss,p in small)
small

# %% [markdown]
# Then every kind of data, model and penalty, in batches that leave lanes empty:

# %%
neurons = dict(hidden='relu', hidden_bias=True, l1=[0.,.1,.3])
absolute = dict(hidden='relu', tied=False, target='abs', signed=True)
kinds = [sweep(7, 3, activation='linear', bias=False),
         sweep(4, 2, **neurons), sweep(10, 5, **neurons), sweep(3, 2, **absolute),
         sweep(12, 20, **absolute, hidden_bias=True),
         sweep(12, 4, features='correlated', sets=6, signed=True),
         sweep(12, 4, features='anticorrelated', sets=4, unit=True),
         sweep(4, 2, features='anticorrelated', sets=2, points=19),
         sweep(10, 3, features='one-hot', density=1.)]
others = [apart(c, batch_size=77) for c in kinds]
assert all(loss<1e-5 and p<1e-5 for loss,p in others)
others

# %% [markdown]
# At a rate of zero the running mean of the gradient settles at the gradient of the
# population, which is known exactly; the rest is noise of the batches.

# %%
cfg = ToyConfig(5, 2, density=.3, importance=[1,.8,.6,.4,.2])
still = train(cfg, steps=200, batch_size=20_000, lr=0., engine='numba')
W,b = (t.double().requires_grad_() for t in initial_weights(cfg))
loss = exact_loss(W, b, cfg.density, cfg.importance)
slope = torch.autograd.grad(loss.sum()/5, W)[0]
seen = still.moments['W'][0]/(1-.9**200)
assert (seen-slope).abs().max() < .01*slope.abs().max()
(seen-slope).abs().max()/slope.abs().max(), still.loss.mean().item(), loss.item()

# %% [markdown]
# ## Alone, interrupted, on more threads
#
# The same to the last bit: one of five alone, stopped and resumed between snapshots, and on two
# threads.

# %%
five = ToyConfig(20, 5, 5, density=.3)
args = dict(steps=300, batch_size=64, snapshots=[70,128], log_every=7, engine='numba')
run = train(five, **args)
again = train(five, resume=train(five, stop=100, **args), **args)
test_eq(again.W, run.W); test_eq(again.loss, run.loss)
test_eq(again.snapshots[128], run.snapshots[128])
test_eq(train(five, instances=[3], **args).W[0], run.W[3])
torch.set_num_threads(2)
test_eq(train(five, **args).W, run.W)
torch.set_num_threads(1)
run, again

# %% [markdown]
# A run that leaves the real numbers is told so with its instance and step, and keeps the
# losses before:

# %%
wild = ToyConfig(5, 2, 3, density=.5)
for engine in 'eager','numba':
    with expect_fail(contains='instance 1 is not finite at step 2 (it was at step 1)'):
        train(wild, steps=20, log_every=1, lr=[.1,1e5,.1], weight_decay=[0.,10.,0.],
              engine=engine)


# %% [markdown]
# ## Speed
#
# The official ratios are on the benchmark page. Here is a feeling for it, in microseconds a
# step of one model on one core: eager, then this engine.

# %%
def cost(engine, steps, **kw):
    best = []
    for _ in range(3):
        t = time.process_time()
        train(ToyConfig(20, 5, 4, density=.1), steps, engine=engine, **kw)
        best.append((time.process_time()-t)/steps/4*1e6)
    return min(best)

slow = cost('eager', 20)
fast = cost('numba', 500)
assert fast<slow/4
round(slow), round(fast, 1)
