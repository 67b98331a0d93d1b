# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # CUDA graphs
#
# > The compiled engine runs the training step through torch.compile and CUDA graphs.

# %%
#| default_exp superposition.engines.cuda_graphs

# %%
#| export
import os, shutil, sysconfig, torch
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from moral_sc.foundation.files import use_private_cache
from moral_sc.superposition.features import keys, Sampler, uniform
from moral_sc.superposition.model import ToyConfig, target_of
from moral_sc.superposition.training import (ToyRun, adversarial_inputs, check_finite, append_loss,
                                             objective)

# %%
#| hide
import tempfile
from fastcore.test import *
from moral_sc.superposition.training import train
torch.set_num_threads(1)


# %% [markdown]
# The eager engine sends about a hundred small operations per step to the device, and each reads its
# operands from memory and writes its result back. With five features in two dimensions, a GPU
# spends most of its time waiting for kernel launches. `torch.compile` fuses the hundred operations
# into a handful, and recording them as a CUDA graph turns a chunk of steps into a single launch.
#
# This engine supports every config that `ToyConfig` can describe. Where a specialised engine
# ([numba](30_numba_cpu.ipynb), [triton](50_triton_gpu.ipynb)) supports a config too, it is faster.
# The path through CUDA graphs has not yet been run on a GPU; the compiled step is tested on a CPU.
#
# ## Tables for the steps
#
# A recorded step reads its inputs from fixed addresses. Three inputs change from step to step: the
# keys of the random numbers, the factor of the learning rate, and AdamW's two corrections. They are
# tabulated for a chunk of steps, which ends early where a snapshot is due.

# %%
#| export
def step_chunks(
    first:int, to:int, # Steps to do: first, ..., to-1
    snap,              # Numbers of updates after which to stop for a snapshot
    size=1024,         # Maximum length of a chunk
)->list:               # Pairs (first, end)
    "Split steps at the snapshots and into chunks of at most `size`"
    marks = sorted({first, to, *(s for s in snap if first<s<to)})
    cuts = [c for a,b in zip(marks, marks[1:]) for c in range(a, b, size)] + [to]
    return list(zip(cuts, cuts[1:]))

def step_factors(
    run:ToyRun, first:int, end:int,
    schedule,        # Fraction of the run -> factor
)->torch.Tensor:     # [step, 3], float32
    "Return the learning-rate factor and AdamW's two corrections for each step"
    rows = [(schedule(s/run.steps), 1-.9**(s+1), (1-.999**(s+1))**.5)
            for s in range(first, end)]
    return torch.tensor(rows)


# %%
step_chunks(0, 3000, {500})

# %%
plan = ToyRun(None, [0], {}, steps=3000)
step_factors(plan, 0, 3, lambda t: 1-t)


# %% [markdown]
# ## Training step
#
# As in the eager engine, a step draws a batch, computes the gradient and updates the parameters.
# Gradients come from `torch.func.grad`, which the compiler can trace, and parameters are changed in
# place, so that their addresses stay the same.

# %%
#| export
def _draw(batch, data, ks):
    "Draw the rows of one step; a finite data set is the same at every step"
    if data is not None: return data
    active,values = batch.draw(ks[0], ks[1], batch.density, batch.batch_size, batch.sets)
    x = torch.where(active, 2*values-1 if batch.signed else values, 0.)
    return x/x.norm(dim=-1, keepdim=True).clamp(min=1e-12) if batch.unit else x

def _attack_targets(key, rows, n): return (uniform(key, rows, 1)[...,0]*n).long().clamp(max=n-1)

def _loss(params, config, x, imp, l1, target):
    losses = objective(config, params, x, imp, l1, target)
    return losses.sum()/config.n_features, losses

def training_step(
    config:ToyConfig, batch:Sampler,
    data,      # Finite data, [instance, batch, feature], or None
    params, moments, # As in `ToyRun`, changed in place
    ks,        # Keys of data, gates and attack targets, [3, instance, 2]
    factors,   # A row of `step_factors`
    fixed,     # Importance, l1, attack, lr, decay, one row an instance; None where absent
)->torch.Tensor: # [instance]
    "Do one update and return the loss before it"
    imp,l1,attack,lr,decay = fixed
    x = _draw(batch, data, ks)
    target = target_of(config, x)
    if attack is not None:
        features = _attack_targets(ks[2], x.shape[1], x.shape[2])
        x = adversarial_inputs(config, params, x, attack, features)
    gradients,losses = torch.func.grad(_loss, has_aux=True)(params, config, x, imp, l1, target)
    for k,g in gradients.items():
        if k=='b' and not config.bias: continue
        p,(m,v) = params[k],moments[k]
        column = lambda t: t.view(-1, *[1]*(p.ndim-1))
        m.lerp_(g, .1)
        v.mul_(.999).addcmul_(g, g, value=.001)
        p.mul_(1-column(lr*factors[0]*decay))
        p.sub_(column(lr*factors[0])*m/(v.sqrt()/factors[2]+1e-8)/factors[1])
    return losses


# %% [markdown]
# One step of this function, before compilation, agrees with the eager engine:

# %%
toy = ToyConfig(5, 2, 3, density=.3)
first_step = train(toy, steps=2, stop=1, engine='eager', batch_size=64)
second_step = train(toy, steps=2, resume=first_step, engine='eager', batch_size=64)
draw = Sampler(toy.densities, range(3), 64)
fixed = toy.importances.float(), None, None, torch.full((3,), 1e-3), torch.full((3,), .01)
ks = torch.stack([keys(0, range(3), [1], stream)[0] for stream in (0,2,4)])
factors = step_factors(first_step, 1, 2, lambda t: 1.)[0]
loss = training_step(toy, draw, None, first_step.params, first_step.moments, ks, factors, fixed)
test_close(first_step.W, second_step.W, eps=1e-7); test_close(loss, second_step.loss[:,1], eps=1e-6)
loss


# %% [markdown]
# ## Recording and replay
#
# On a GPU, thirty-two steps become one graph and a single step another. Both read their table row
# from a counter on the device. The losses of a chunk also stay on the device and are read once,
# after its last step.

# %%
#| export
def record_graph(
    body,   # Function that launches the same kernels in every call
    n:int,  # Calls to record
):          # Function that replays the recorded calls
    "Record `n` calls of `body` as a CUDA graph"
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(n): body()
    return graph.replay

def replay(
    graphs, # Pairs (steps, function that does them), most steps first
    n:int,  # Steps to do
):
    "Do `n` steps with as few calls as possible"
    for size,run_steps in graphs:
        for _ in range(n//size): run_steps()
        n %= size

def _fixed(run, lr, decay):
    c = run.config
    dev = run.W.device
    def per_instance(x):
        return torch.as_tensor(x, dtype=torch.float32, device=dev).expand(len(run.W)).clone()
    l1,attack = (c.per_instance(k)[run.instances].float().to(dev) for k in ('l1','attack'))
    return (c.importances[run.instances].float().to(dev), l1 if l1.any() else None,
            attack if attack.any() else None, per_instance(lr), per_instance(decay))


# %% [markdown]
# Recording needs a warm-up, which would change the parameters. The state is therefore saved before
# the warm-up and restored after it.

# %%
#| export
class _RecordedStep:
    "A compiled step, its tables and its position in them"
    def __init__(self, run, batch, fixed, size):
        self.run = run
        self.batch = batch
        dev = run.W.device
        I = len(run.W)
        self.data = batch(0) if batch.finite else None
        self.ks = torch.zeros(size, 3, I, 2, dtype=torch.int32, device=dev)
        self.factors,self.loss = (torch.zeros(size, k, device=dev) for k in (3,I))
        self.position = torch.zeros(1, dtype=torch.long, device=dev)
        self.fixed = fixed
        self.step = torch.compile(training_step, fullgraph=True, dynamic=False)
        self.graphs = self._record() if dev.type=='cuda' else [(1,self)]

    def __call__(self):
        ks,factors = (t.index_select(0, self.position)[0] for t in (self.ks,self.factors))
        losses = self.step(self.run.config, self.batch, self.data, self.run.params,
                           self.run.moments, ks, factors, self.fixed)
        self.loss.index_copy_(0, self.position, losses.detach()[None])
        self.position += 1

    def _record(self):
        "Warm up on another stream, restore the state, and record"
        saved = [t.clone() for t in self.state()]
        self.factors.fill_(1.)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.position.zero_()
                self()
        torch.cuda.current_stream().wait_stream(stream)
        for t,value in zip(self.state(), saved): t.copy_(value)
        return [(n,record_graph(self, n)) for n in (32,1)]

    def state(self):
        "Return all tensors that a step changes in place"
        moments = (t for v in self.run.moments.values() for t in v)
        return [*self.run.params.values(), *moments]

    def fill(self, first, end, schedule):
        "Fill the tables for the steps first, ..., end-1"
        b = self.batch
        steps = range(first, end)
        for i,stream in enumerate((0,2,4)):
            self.ks[:end-first,i] = keys(b.seed, b.instances, steps, stream)
        factors = step_factors(self.run, first, end, schedule)
        self.factors[:end-first] = factors.to(self.factors.device)
        self.position.zero_()


# %%
#| export
def compiled_engine(run:ToyRun, to:int, batch:Sampler, lr, decay, schedule, log:set, snap:set):
    "Train with the compiled step; arguments as in `eager_engine`"
    use_private_cache('TORCHINDUCTOR_CACHE_DIR', 'torchinductor')
    size = max(1, min(1024, 2**21//len(run.W), to-run.step))
    with torch._dynamo.config.patch(recompile_limit=512, accumulated_recompile_limit=4096):
        recorded = _RecordedStep(run, batch, _fixed(run, lr, decay), size)
        for first,end in step_chunks(run.step, to, snap, size):
            recorded.fill(first, end, schedule)
            replay(recorded.graphs, end-first)
            record_chunk(run, first, end, recorded.loss.cpu(), log, snap)

def record_chunk(run, first, end, losses, log, snap):
    "Append the losses of a chunk of steps to the run; `losses` is [step, instance]"
    finite = torch.isfinite(losses).all(1)
    last = end-1 if finite.all() else first+int(finite.logical_not().nonzero()[0])
    for t in sorted(s for s in log if first<=s<=last and finite[s-first]):
        append_loss(run, t, losses[t-first])
    check_finite(run, last, losses[last-first])
    run.step = end
    if end in snap: run.snapshots[end] = run.W.clone()


# %% [markdown]
# `compiled_limitation` returns what is missing. On a CPU the compiler generates C++.

# %%
#| export
@lru_cache
def _missing(kind):
    compilers = os.environ.get('CXX', 'g++'), 'clang++', 'cc', 'gcc'
    if not any(map(shutil.which, compilers)):
        return 'engine compiled needs a C++ compiler: install g++, or use eager.'
    header = Path(sysconfig.get_paths()['include'])/'Python.h'
    if not header.exists():
        return 'engine compiled needs the headers of Python: install python3-dev.'
    if kind=='cuda':
        if find_spec('triton') is None: return 'engine compiled needs triton on a GPU: install it.'

def compiled_limitation(config:ToyConfig, device='cpu'):
    "Return why this engine cannot train on `device`, or None if it can"
    return _missing(torch.device(device).type)


# %%
limitation = compiled_limitation(toy)
limitation or 'supported'

# %% [markdown]
# ## Comparison with the eager engine
#
# Same seeds, same data, and the same losses to the rounding of a few hundred updates. Without a C++
# compiler this comparison is skipped.

# %%
if not limitation:
    args = dict(steps=100, batch_size=128, lr=.01, schedule='cosine', log_every=25,
                snapshots=[60])
    hard = ToyConfig(6, 2, 2, features='anticorrelated', sets=3, density=.4,
                     hidden='relu', l1=.1, tied=False, unit=True)
    eager,compiled = (train(hard, engine=e, **args) for e in ('eager','compiled'))
    test_close(compiled.loss, eager.loss, eps=1e-5)
    test_close(compiled.V, eager.V, eps=1e-5)
    test_close(compiled.snapshots[60], eager.snapshots[60], eps=1e-5)
    print(compiled, (compiled.W-eager.W).abs().max())

# %%
if not limitation: # Importing torch's compiler names a folder in /tmp, which is not used
    assert Path(os.environ['TORCHINDUCTOR_CACHE_DIR']).parent!=Path(tempfile.gettempdir())

# %% [markdown]
# A run may change its engine between two calls, and a non-finite loss is reported at its own step,
# not at the end of the chunk.

# %%
if not limitation:
    half = train(hard, engine='compiled', stop=50, **args)
    test_close(train(hard, engine='eager', resume=half, **args).W, eager.W, eps=1e-5)
    run = ToyRun(hard, [0,1], {'W': eager.W}, steps=9, logged=torch.tensor([3]),
              loss=torch.ones(2,1))
    with expect_fail(contains='instance 1 is not finite at step 5 (it was at step 4)'):
        record_chunk(run, 4, 8, torch.tensor([[1,1],[1,torch.nan],[1,1],[1,1]]), {4,7}, set())
