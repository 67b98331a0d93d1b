# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Numba engine
#
# > The numba engine trains each toy model within one processor core.

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
from moral_sc.superposition.engines import codegen, simd
from moral_sc.superposition.engines.cuda_graphs import step_chunks
from moral_sc.superposition.features import key_roots
from moral_sc.superposition.engines.simd import (Integer, array_memory, broadcast_scalar,
                                                 cached_njit, loop, n_lanes, sqrt)
from moral_sc.superposition.model import ToyConfig, custom_limitation
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
# The [eager engine](../40_training.ipynb) issues about a hundred PyTorch operations per step, and
# each reads and writes the whole batch in memory. A processor can do the arithmetic of a small
# model a hundred times faster. In this engine a core trains one model for thousands of steps. It
# computes the random numbers, the gradient (with a [generated step](20_codegen.ipynb)) and the
# update, and accesses memory outside its own caches only to write logged losses.
#
# ## AdamW update
#
# AdamW acts on each number separately, so the order of the parameters does not matter, and the
# padding between them stays zero.

# %%
#| export
@intrinsic
def adamw_arrays(typing, theta, grad, mean, square, rate, keep, root):
    "Apply AdamW to flat arrays; `rate` and `root` include AdamW's corrections, `keep` the decay"
    def code(context, b, sig, args):
        arrays = [array_memory(context, b, t, v) for t,v in zip(sig.args[:4], args[:4])]
        count = context.make_array(sig.args[0])(context, b, args[0]).nitems
        _adamw(b, Integer(b, count), *arrays, *(broadcast_scalar(b, v) for v in args[4:]))
        return context.get_dummy_value()
    return types.void(theta, grad, mean, square, *[types.float32]*3),code

def _adamw(b, count, theta, grad, mean, square, rate, keep, root):
    for i in (j*n_lanes for j in loop(b, count//n_lanes)):
        g = grad.load(i)
        m = mean.load(i)
        v = square.load(i)
        m = m + (g-m)*.1
        v = v*.999 + g*g*.001
        mean.store(i, m)
        square.store(i, v)
        theta.store(i, theta.load(i)*keep - rate*m/(sqrt(v)*root + 1e-8))


# %%
@njit
def run_update(theta, grad, mean, square, rate, keep, root):
    adamw_arrays(theta, grad, mean, square, rate, keep, root)

p,g,m,v = (torch.rand(32) for _ in range(4))
ours = [t.numpy().copy() for t in (p,g,m,v)]
adamw_update(p, g, (m,v), 3, lr=.01)
f = np.float32
run_update(*ours, f(.01/(1-.9**3)), f(1-.01*.01), f((1-.999**3)**-.5))
test_close(ours[0], p.numpy(), eps=1e-6); test_close(ours[3], v.numpy(), eps=1e-7)
np.abs(ours[0]-p.numpy()).max()

# %% [markdown]
# ## Training loop
#
# One call trains a range of models one after the other, each through all its steps. The keys are
# those of [the features](../10_features.ipynb): `key_roots` computes the roots, and the loop adds
# the step. A loss that is not finite ends the training of that model, and its step number is
# recorded.

# %%
#| export
_g,_a,_c = (np.uint64(k) for k in (0x9e3779b97f4a7c15,0xbf58476d1ce4e5b9,0x94d049bb133111eb))
_30,_27,_31,_32,_1 = (np.uint64(k) for k in (30,27,31,32,1))

@njit(inline='always')
def _mix(z):
    z = (z ^ (z >> _30))*_a
    z = (z ^ (z >> _27))*_c
    return z ^ (z >> _31)

@cached_njit(nogil=True)
def advance_models(
    plan, first,   # Constants of the kernel; number of the first step
    roots, finite, # [stream, instance]; whether every step uses the data of step 0
    theta, mean, square, tables, # [instance, ...]
    work,          # Scratch memory for one model
    lr, decay, l1, # [instance]
    schedule,      # [step, 3]: factor of the learning rate, AdamW's two corrections
    slots,         # [step]: column of the logged loss, or -1
    rows, losses, failed, # Batch size; [instance, slot]; first non-finite step, [instance]
):
    "Train some models for some steps"
    grad = np.zeros_like(theta[0])
    for j in range(len(theta)):
        for t in range(len(schedule)):
            step = _mix(np.uint64(0 if finite else first+t) + _1)
            k = _mix((roots[0,j] + _g) ^ step)
            q = _mix((roots[1,j] + _g) ^ step)
            ks = (k >> _32, k, q >> _32, q)
            loss = gradient(plan, theta[j], grad, tables[j], work, ks, rows, l1[j])
            if not math.isfinite(loss):
                failed[j] = first+t
                break
            if slots[t]>=0: losses[j,slots[t]] = loss
            rate = lr[j]*schedule[t,0]
            adamw_arrays(theta[j], grad, mean[j], square[j], np.float32(rate/schedule[t,1]),
                   np.float32(1)-rate*decay[j], np.float32(1)/schedule[t,2])


# %% [markdown]
# ## Memory layout
#
# The plan of a config contains everything the kernel needs to know. It includes a checksum of the
# code, because numba's cache does not notice changes in the modules from which the kernel is
# generated.

# %%
#| export
_edition = crc32(b''.join(Path(m.__file__).read_bytes() for m in (simd,codegen)))

def make_plan(config:ToyConfig, rows:int)->Plan:
    "Return the compile-time constants of a config's kernel"
    c = config
    sets = 'anticorrelated' if config.features=='one-hot' else config.features
    return Plan(c.n_features, c.n_hidden, c.activation, c.hidden, c.target, sets, c.sets, c.bias,
                c.hidden_bias, c.tied, c.signed, c.unit, bool(c.per_instance('l1').any()),
                rows%n_lanes>0, _edition)

def feature_tables(density, importance, plan, rows)->np.ndarray:
    "Return threshold, scale and weight of each feature, [instance, 3·feature]"
    p = density.float().double().numpy()
    t = np.zeros((len(p),3,plan.padded_features), np.float32)
    t[:,0] = -1
    t[...,:plan.n] = np.stack([p*2**31, 2**-31/p, importance.numpy()*2/(rows*plan.n)], 1)
    return t.reshape(len(p), -1)


# %%
[make_plan(ToyConfig(features='one-hot'), 100)]


# %% [markdown]
# The indices of each parameter in the flat array of a model:

# %%
#| export
@lru_cache
def param_indices(plan)->dict:
    "Return the indices of each parameter in a model's flat array"
    readout = plan.readout_tiles.indices()
    indices = dict(b=readout[:,-1], **{'W' if plan.tied else 'V': readout[:,:-1]})
    if not plan.tied: indices['W'] = plan.readout_tiles.size + plan.encoder_tiles.indices()
    if plan.hidden_bias: indices['c'] = plan.hidden_bias_offset + np.arange(plan.m)
    return indices


# %%
param_indices(Plan(3, 1))


# %% [markdown]
# A `ModelBlock` holds some models of a run in tile order. It exists only while its models are
# trained, so that a million models need memory for their results and for a few blocks.

# %%
#| export
class ModelBlock:
    "Some models of a run in the layout of `advance_models`"
    def __init__(self, run, plan, batch, part, lr, decay, per_instance):
        ids = run.instances[part]
        rows = batch.batch_size
        self.run = run
        self.plan = plan
        self.part = part
        self.rows = rows
        self.finite = batch.finite
        self.indices = param_indices(plan)
        self.flat = [np.zeros((len(ids),plan.size), np.float32) for _ in range(3)]
        for flat,k,t in self.parts(): flat[:,self.indices[k]] = t[part].numpy()
        select = lambda x: np.broadcast_to(np.asarray(x, np.float32), len(run.W))[part].copy()
        density,importance,l1 = (t[ids] for t in per_instance)
        self.rates = select(lr),select(decay),(l1/(rows*plan.n)).float().numpy()
        self.roots = key_roots(batch.seed, ids, (0,2))
        self.tables = feature_tables(density, importance, plan, rows)

    def parts(self):
        for k in self.indices:
            yield from zip(self.flat, [k]*3, (self.run.params[k],*self.run.moments[k]))

    def train(self, first, schedule, slots, losses, failed):
        work = np.empty(self.plan.scratch_size+n_lanes, np.float32)
        advance_models(self.plan, first, self.roots, self.finite, *self.flat, self.tables, work,
                *self.rates, schedule, slots, self.rows, losses[self.part],
                failed[self.part])
        for flat,k,t in self.parts(): t[self.part] = torch.from_numpy(flat[:,self.indices[k]])


# %% [markdown]
# ## Engine
#
# The instances are cut into parts, and threads take one part after another. The result of a model
# does not depend on its thread. A chunk of steps ends where a snapshot is due.

# %%
#| export
def thread_count():
    "Return torch's number of threads, at most `NUMBA_NUM_THREADS`"
    return min(torch.get_num_threads(), int(os.environ.get('NUMBA_NUM_THREADS') or 1024))

def _schedule_table(run, first, end, schedule):
    s = np.arange(first, end)
    factor = [schedule(t/run.steps) for t in s.tolist()]
    return np.stack([factor, 1-.9**(s+1), (1-.999**(s+1))**.5], 1).astype(np.float32)

def numba_engine(run, to:int, batch, lr, decay, schedule, log:set, snap:set):
    "Train each model in one core; arguments as in `eager_engine`"
    c = run.config
    I = len(run.W)
    count = thread_count()
    plan = make_plan(c, batch.batch_size)
    per_instance = c.densities,c.importances,c.per_instance('l1')
    cuts = np.linspace(0, I, min(I, max(8*count, -(-I//4096)))+1).astype(int)
    parts = [slice(a,z) for a,z in zip(cuts, cuts[1:])]
    with ThreadPoolExecutor(count) as pool:
        for first,end in step_chunks(run.step, to, snap, 8192):
            logged = sorted(s for s in log if first<=s<end)
            slots = np.full(end-first, -1)
            slots[[s-first for s in logged]] = range(len(logged))
            losses = np.empty((I,len(logged)), np.float32)
            failed = np.full(I, end)
            table = _schedule_table(run, first, end, schedule)
            def train_part(part):
                block = ModelBlock(run, plan, batch, part, lr, decay, per_instance)
                block.train(first, table, slots, losses, failed)
            list(map(train_part, parts) if count==1 else pool.map(train_part, parts))
            record_losses(run, end, logged, torch.from_numpy(losses), torch.from_numpy(failed))
            if end in snap: run.snapshots[end] = run.W.clone()

def record_losses(run, end, logged, losses, failed):
    "Append the losses before the first non-finite step, and raise an error if there is one"
    first_failed = int(failed.min())
    for s,loss in zip(logged, losses.T):
        if s<first_failed: append_loss(run, s, loss)
    status = torch.ones(len(run.W))
    if first_failed<end: status = torch.where(failed==first_failed, torch.nan, 1.)
    check_finite(run, min(first_failed, end-1), status)
    run.step = end


# %% [markdown]
# Other configs are left to the eager engine:

# %%
#| export
def numba_limitation(config:ToyConfig, device='cpu'):
    "Return why this engine cannot train `config` on `device`, or None if it can"
    if torch.device(device).type!='cpu': return 'engine numba runs on a CPU: leave device at cpu.'
    if custom := custom_limitation(config, 'numba'): return custom
    for k in 'activation','hidden':
        if getattr(config, k) not in ('relu','linear'): return (
            f'engine numba supports {k} relu and linear, not {getattr(config, k)}: use eager.')
    if config.per_instance('attack').any():
        return 'engine numba does not support adversarial training (attack): use eager.'


# %%
untied = ToyConfig(100, 40, tied=False, hidden='relu', target='abs', signed=True)
test_eq(numba_limitation(untied), None)
numba_limitation(ToyConfig(activation='gelu')), numba_limitation(ToyConfig(attack=.1))


# %% [markdown]
# ## Comparison with the eager engine
#
# Both engines see the same data, and their losses agree at every step to single-precision rounding.
# First the paper's small models, with different densities, importances, learning rates and weight
# decays:

# %%
def differences(config, **kw):
    "Return the largest relative difference of losses and the largest of parameters"
    args = dict(steps=40, batch_size=96, lr=.01, log_every=1, schedule='cosine') | kw
    slow,fast = (train(config, engine=e, **args) for e in ('eager','numba'))
    loss = (fast.loss/slow.loss-1).abs().max().item()
    return loss, max((fast.params[k]-slow.params[k]).abs().max().item() for k in slow.params)

def sweep(n, m, **kw):
    return ToyConfig(n, m, 3, **dict(density=[[1.],[.2],[.05]]) | kw)

small = [differences(sweep(n, m, importance=[.9**i for i in range(n)]), lr=[.01,.003,.02],
                     weight_decay=[.01,.1,0.]) for n,m in [(2,1),(5,2),(20,5),(30,27)]]
assert all(loss<2e-6 and p<2e-6 for loss,p in small)
small

# %% [markdown]
# Then every kind of data, model and penalty, with batches that leave some lanes empty:

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
special = [differences(c, batch_size=77) for c in kinds]
assert all(loss<1e-5 and p<1e-5 for loss,p in special)
special

# %% [markdown]
# At a learning rate of zero the running mean of the gradient converges to the gradient of the
# population loss, which is known exactly. The remaining difference is sampling noise.

# %%
cfg = ToyConfig(5, 2, density=.3, importance=[1,.8,.6,.4,.2])
frozen = train(cfg, steps=200, batch_size=20_000, lr=0., engine='numba')
W,b = (t.double().requires_grad_() for t in initial_weights(cfg))
loss = exact_loss(W, b, cfg.density, cfg.importance)
gradient = torch.autograd.grad(loss.sum()/5, W)[0]
measured = frozen.moments['W'][0]/(1-.9**200)
assert (measured-gradient).abs().max() < .01*gradient.abs().max()
(measured-gradient).abs().max()/gradient.abs().max(), frozen.loss.mean().item(), loss.item()

# %% [markdown]
# ## Reproducibility
#
# Results are bitwise identical for one of five models trained alone, for a run that was stopped and
# resumed between snapshots, and on two threads.

# %%
five = ToyConfig(20, 5, 5, density=.3)
args = dict(steps=300, batch_size=64, snapshots=[70,128], log_every=7, engine='numba')
run = train(five, **args)
resumed = train(five, resume=train(five, stop=100, **args), **args)
test_eq(resumed.W, run.W); test_eq(resumed.loss, run.loss)
test_eq(resumed.snapshots[128], run.snapshots[128])
test_eq(train(five, instances=[3], **args).W[0], run.W[3])
torch.set_num_threads(2)
test_eq(train(five, **args).W, run.W)
torch.set_num_threads(1)
run, resumed

# %% [markdown]
# A run whose loss becomes non-finite reports the instance and step, and keeps the earlier losses:

# %%
wild = ToyConfig(5, 2, 3, density=.5)
for engine in 'eager','numba':
    with expect_fail(contains='instance 1 is not finite at step 2 (it was at step 1)'):
        train(wild, steps=20, log_every=1, lr=[.1,1e5,.1], weight_decay=[0.,10.,0.],
              engine=engine)


# %% [markdown]
# ## Speed
#
# The measured ratios are on the [benchmark page](../../benchmarks/10_superposition.ipynb). Here is
# a quick check, in microseconds per step of one model on one core: eager, then this engine.

# %%
def cost(engine, steps, **kw):
    timings = []
    for _ in range(3):
        t = time.process_time()
        train(ToyConfig(20, 5, 4, density=.1), steps, engine=engine, **kw)
        timings.append((time.process_time()-t)/steps/4*1e6)
    return min(timings)

slow = cost('eager', 20)
fast = cost('numba', 500)
assert fast<slow/4
round(slow), round(fast, 1)
