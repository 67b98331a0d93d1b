# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Compiled
#
# > The training step handed to a compiler, and on a GPU recorded once and replayed.

# %%
#| default_exp superposition.engines.cuda_graphs

# %%
#| export
import os, shutil, sysconfig, torch
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from moral_sc.superposition.features import keys, Sampler, uniform
from moral_sc.superposition.model import ToyConfig, targets
from moral_sc.superposition.training import (ToyRun, adversarial_inputs, check_finite, append_loss,
                                             objective)

# %%
#| hide
from fastcore.test import *
from moral_sc.superposition.training import train
torch.set_num_threads(1)


# %% [markdown]
# The eager engine sends some hundred small operations a step to the device, each of which
# reads its operands from memory and writes its result back. For five features in two
# dimensions a GPU spends its time waiting for orders. `torch.compile` fuses the hundred
# into a handful; recorded as a CUDA graph, a stretch of steps becomes a single order.
#
# This engine serves every config that `ToyConfig` can describe. Where a specialised one
# ([numba](30_numba_cpu.ipynb), [triton](50_triton_gpu.ipynb)) serves it too, that one is
# faster.
#
# ## What changes from step to step
#
# A recorded step must find whatever changes at a fixed place. Three things do: the keys of
# its random numbers, the factor of the learning rate, and the two corrections of AdamW.
# They are tabulated for a stretch of steps, which ends early where a snapshot is due.

# %%
#| export
def step_chunks(
    first:int, to:int, # Steps to do: first, ..., to-1
    snap,              # Numbers of updates after which to stop for a snapshot
    size=1024,         # No stretch is longer
)->list:               # Pairs (first, end)
    "Cut a run of steps at its snapshots, and into pieces of at most `size`"
    marks = sorted({first, to, *(s for s in snap if first<s<to)})
    cuts = [c for a,b in zip(marks, marks[1:]) for c in range(a, b, size)] + [to]
    return list(zip(cuts, cuts[1:]))

def step_factors(
    run:ToyRun, first:int, end:int,
    schedule,        # Fraction of the run -> factor
)->torch.Tensor:     # [step, 3], float32
    "Factor of the rate, and AdamW's corrections of the two running means"
    rows = [(schedule(s/run.steps), 1-.9**(s+1), (1-.999**(s+1))**.5)
            for s in range(first, end)]
    return torch.tensor(rows)


# %%
step_chunks(0, 3000, {500})

# %%
plan = ToyRun(None, [0], {}, steps=3000)
step_factors(plan, 0, 3, lambda t: 1-t)


# %% [markdown]
# ## The step
#
# As in the eager engine: draw, differentiate, update. Gradients come from
# `torch.func.grad`, which the compiler can look through, and parameters are changed in
# place, so that they never move.

# %%
#| export
def _draw(batch, data, ks):
    "The rows of one step; a finite data set is the same at every step"
    if data is not None: return data
    on,size = batch.draw(ks[0], ks[1], batch.density, batch.batch_size, batch.sets)
    x = torch.where(on, 2*size-1 if batch.signed else size, 0.)
    return x/x.norm(dim=-1, keepdim=True).clamp(min=1e-12) if batch.unit else x

def _attack_targets(key, rows, n): return (uniform(key, rows, 1)[...,0]*n).long().clamp(max=n-1)

def _loss(params, config, x, imp, l1, wanted):
    each = objective(config, params, x, imp, l1, wanted)
    return each.sum()/config.n_features, each

def training_step(
    config:ToyConfig, batch:Sampler,
    data,      # Finite data, [instance, batch, feature], or None
    params, moments, # As in `Run`, changed in place
    ks,        # Keys of data, gates and aims, [3, instance, 2]
    now,       # A row of `factors`
    fixed,     # Importance, l1, attack, rate, decay, one row an instance; None where absent
)->torch.Tensor: # [instance]
    "One update; returns the loss before it"
    imp,l1,attack,lr,decay = fixed
    x = _draw(batch, data, ks); wanted = targets[config.target](x)
    if attack is not None:
        x = adversarial_inputs(config, params, x, attack, _attack_targets(ks[2], x.shape[1], x.shape[2]))
    slopes,each = torch.func.grad(_loss, has_aux=True)(params, config, x, imp, l1, wanted)
    for k,g in slopes.items():
        if k=='b' and not config.bias: continue
        p,(m,v) = params[k],moments[k]
        wide = lambda t: t.view(-1, *[1]*(p.ndim-1))
        m.lerp_(g, .1); v.mul_(.999).addcmul_(g, g, value=.001)
        p.mul_(1-wide(lr*now[0]*decay))
        p.sub_(wide(lr*now[0])*m/(v.sqrt()/now[2]+1e-8)/now[1])
    return each


# %% [markdown]
# Before anything is compiled: the same step done by this function and by the eager engine.

# %%
toy = ToyConfig(5, 2, 3, density=.3)
begun = train(toy, steps=2, stop=1, engine='eager', batch_size=64)
done = train(toy, steps=2, resume=begun, engine='eager', batch_size=64)
draw = Sampler(toy.densities, range(3), 64)
fixed = toy.importances.float(), None, None, torch.full((3,), 1e-3), torch.full((3,), .01)
ks = torch.stack([keys(0, range(3), [1], stream)[0] for stream in (0,2,4)])
now = step_factors(begun, 1, 2, lambda t: 1.)[0]
loss = training_step(toy, draw, None, begun.params, begun.moments, ks, now, fixed)
test_close(begun.W, done.W, eps=1e-7); test_close(loss, done.loss[:,1], eps=1e-6)
loss


# %% [markdown]
# ## The engine
#
# On a GPU, thirty-two steps become one graph and single steps another; both read their row
# from a counter that lives on the device. The losses of a stretch stay there too, and are
# looked at once, after its last step.

# %%
#| export
def record_graph(
    body,   # Launches kernels, and always the same ones
    n:int,  # Calls of it to record
):          # Replays them
    "Record `n` calls of `body` as a CUDA graph"
    kept = torch.cuda.CUDAGraph()
    with torch.cuda.graph(kept):
        for _ in range(n): body()
    return kept.replay

def replay(
    players, # Pairs (how many steps, what does them), most steps first
    n:int,   # Steps to do
):
    "Do `n` steps with as few calls as possible"
    for size,go in players:
        while n>=size: go(); n -= size

def _fixed(run, lr, decay):
    c = run.config
    dev = run.W.device
    wide = lambda x: torch.as_tensor(x, dtype=torch.float32, device=dev).expand(len(run.W))
    own = lambda x: wide(x).clone()
    l1,attack = (c.per_instance(k)[run.instances].float().to(dev) for k in ('l1','attack'))
    return (c.importances[run.instances].float().to(dev), l1 if l1.any() else None,
            attack if attack.any() else None, own(lr), own(decay))


# %% [markdown]
# Recording needs a warm-up, which would train. It is done on copies of the state.

# %%
#| export
class _RecordedStep:
    "A compiled step, its tables and its place in them"
    def __init__(self, run, batch, fixed, size):
        self.run = run
        self.batch = batch
        dev = run.W.device
        I = len(run.W)
        self.data = batch(0) if batch.finite else None
        self.ks = torch.zeros(size, 3, I, 2, dtype=torch.int32, device=dev)
        self.now,self.loss = (torch.zeros(size, k, device=dev) for k in (3,I))
        self.at = torch.zeros(1, dtype=torch.long, device=dev)
        self.fixed = fixed
        self.step = torch.compile(training_step, fullgraph=True, dynamic=False)
        self.players = self._record() if dev.type=='cuda' else [(1,self)]

    def __call__(self):
        ks,now = (t.index_select(0, self.at)[0] for t in (self.ks,self.now))
        each = self.step(self.run.config, self.batch, self.data, self.run.params,
                         self.run.moments, ks, now, self.fixed)
        self.loss.index_copy_(0, self.at, each.detach()[None]); self.at += 1

    def _record(self):
        "Warm up on the side, put the state back, record"
        kept = [t.clone() for t in self.state()]
        self.now.fill_(1.); side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3): self.at.zero_(); self()
        torch.cuda.current_stream().wait_stream(side)
        for t,k in zip(self.state(), kept): t.copy_(k)
        return [(n,record_graph(self, n)) for n in (32,1)]

    def state(self):
        "All tensors that a step changes in place"
        moments = (t for v in self.run.moments.values() for t in v)
        return [*self.run.params.values(), *moments]

    def fill(self, first, end, schedule):
        "Tables for the steps first, ..., end-1"
        b = self.batch
        steps = range(first, end)
        for i,stream in enumerate((0,2,4)):
            self.ks[:end-first,i] = keys(b.seed, b.instances, steps, stream)
        self.now[:end-first] = step_factors(self.run, first, end, schedule).to(self.now.device)
        self.at.zero_()


# %%
#| export
def compiled_engine(run:ToyRun, to:int, batch:Sampler, lr, decay, schedule, log:set, snap:set):
    "Train with the compiled step; arguments as in `eager`"
    size = max(1, min(1024, 2**21//len(run.W), to-run.step))
    with torch._dynamo.config.patch(recompile_limit=512, accumulated_recompile_limit=4096):
        tape = _RecordedStep(run, batch, _fixed(run, lr, decay), size)
        for first,end in step_chunks(run.step, to, snap, size):
            tape.fill(first, end, schedule)
            replay(tape.players, end-first)
            record_chunk(run, first, end, tape.loss.cpu(), log, snap)

def record_chunk(run, first, end, losses, log, snap):
    "Book a stretch of steps; `losses` is [step, instance]"
    fine = torch.isfinite(losses).all(1)
    last = end-1 if fine.all() else first+int(fine.logical_not().nonzero()[0])
    for t in sorted(s for s in log if first<=s<=last and fine[s-first]):
        append_loss(run, t, losses[t-first])
    check_finite(run, last, losses[last-first])
    run.step = end
    if end in snap: run.snapshots[end] = run.W.clone()


# %% [markdown]
# `compiled_limitation` says what is missing, if anything is. On a CPU the compiler's output is C++.

# %%
#| export
@lru_cache
def _missing(kind):
    found = any(map(shutil.which, (os.environ.get('CXX', 'g++'), 'clang++', 'cc', 'gcc')))
    if not found: return 'engine compiled needs a C++ compiler: install g++, or use eager.'
    header = Path(sysconfig.get_paths()['include'])/'Python.h'
    if not header.exists():
        return 'engine compiled needs the headers of Python: install python3-dev.'
    if kind=='cuda':
        if find_spec('triton') is None: return 'engine compiled needs triton on a GPU: install it.'

def compiled_limitation(config:ToyConfig, device='cpu'):
    "None, or in one sentence why this engine cannot train `config` on `device`"
    return _missing(torch.device(device).type)


# %%
why = compiled_limitation(toy)
why or 'serves'

# %% [markdown]
# ## The same as eager
#
# Same seeds, same data, same losses, to the rounding of a few hundred updates. Where no
# compiler is at hand, nothing is compared.

# %%
if not why:
    args = dict(steps=100, batch_size=128, lr=.01, schedule='cosine', log_every=25,
                snapshots=[60])
    hard = ToyConfig(6, 2, 2, features='anticorrelated', sets=3, density=.4,
                     hidden='relu', l1=.1, tied=False, unit=True)
    eager,compiled = (train(hard, engine=e, **args) for e in ('eager','compiled'))
    test_close(compiled.loss, eager.loss, eps=1e-5)
    test_close(compiled.V, eager.V, eps=1e-5)
    test_close(compiled.snapshots[60], eager.snapshots[60], eps=1e-5)
    print(compiled, (compiled.W-eager.W).abs().max())

# %% [markdown]
# A run may change its engine on the way, and a loss that leaves the real numbers is
# reported at its own step, not at the end of the stretch.

# %%
if not why:
    half = train(hard, engine='compiled', stop=50, **args)
    test_close(train(hard, engine='eager', resume=half, **args).W, eager.W, eps=1e-5)
    run = ToyRun(hard, [0,1], {'W': eager.W}, steps=9, logged=torch.tensor([3]),
              loss=torch.ones(2,1))
    with expect_fail(contains='instance 1 is not finite at step 5 (it was at step 4)'):
        record_chunk(run, 4, 8, torch.tensor([[1,1],[1,torch.nan],[1,1],[1,1]]), {4,7}, set())
