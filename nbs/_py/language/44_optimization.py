# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Optimization
#
# > Supervised training and RL share one schedule, optimizer step and checkpoint format.

# %%
#| default_exp language.optimization

# %%
#| export
import math, os, random, warnings
from pathlib import Path

import numpy as np, torch
import torch.distributed as dist

from moral_sc.foundation.errors import ConfigError, ModelError, unknown_name_message
from moral_sc.foundation.files import replace_file
from moral_sc.foundation.manifest import Manifest
from moral_sc.foundation.runs import process_rank
from moral_sc.language.fsdp import full_tensors

# %%
#| hide
import tempfile
from fastcore.test import *

tmp = Path(tempfile.mkdtemp())
torch.set_num_threads(1)

# %% [markdown]
# [Supervised training](46_training.ipynb) and
# [reinforcement learning](../constitution/rl/30_trainer.ipynb)
# differ in their data and their loss. The learning rate, the optimizer step, the communication
# between ranks and the checkpoints are the same, and this page defines them once.
#
# ## Learning-rate schedule
#
# The rate rises linearly during the warmup and then follows the schedule.

# %%
#| export
schedules = dict(constant=lambda x: 1., linear=lambda x: 1-x,
                 cosine=lambda x: (1+math.cos(math.pi*x))/2)

def learning_rate(
    step:int,   # From 0
    total:int,  # Number of steps
    lr:float,   # Peak learning rate
    warmup:int=0,            # Steps of linear warmup
    schedule:str='constant', # 'constant', or 'linear' or 'cosine' decay to 0
)->float:
    "Return the learning rate of one step"
    if schedule not in schedules:
        raise ConfigError(unknown_name_message('schedule', schedule, [*schedules]))
    if step<warmup: return lr*(step+1)/warmup
    return lr*schedules[schedule]((step-warmup)/max(1, total-warmup))


# %%
rates = {s: [round(learning_rate(i, 10, 1., 2, s), 2) for i in range(10)] for s in schedules}
rates

# %%
test_eq(rates['linear'], [.5, 1, 1, .88, .75, .62, .5, .38, .25, .12])
test_eq(rates['cosine'][6], .5)
with expect_fail(ConfigError, contains="mean 'cosine'"): learning_rate(0, 9, 1., 0, 'cosin')


# %% [markdown]
# ## AdamW and gradient clipping
#
# The optimizer is torch's AdamW [@loshchilov2019adamw].

# %%
#| export
def build_optimizer(
    params, # A module or its parameters; those with `requires_grad` are trained
    lr:float=1e-4, weight_decay:float=0., betas:tuple=(.9, .999), eps:float=1e-8,
)->torch.optim.Optimizer:
    "Return AdamW over the trainable parameters"
    params = params.parameters() if hasattr(params, 'parameters') else params
    params = [p for p in params if p.requires_grad]
    if low := [p.dtype for p in params if p.dtype.itemsize<4]:
        raise ModelError(f'Small steps are lost in {str(low[0])[6:]} weights; load the model '
                         "with dtype='float32', and pass autocast='bfloat16' for speed.")
    return torch.optim.AdamW(params, lr=lr, weight_decay=weight_decay, betas=tuple(betas),
                             eps=eps, fused=True)

def clipped_step(
    optimizer,
    count:float=1,          # The accumulated gradients are divided by this
    max_grad_norm:float=0., # 0: no clipping
    lr:float=None,          # Learning rate of this step; None: unchanged
)->float:                   # Norm of the gradient before clipping
    "Clip the gradients and take a step, unless a gradient is not finite"
    params = [p for g in optimizer.param_groups for p in g['params'] if p.grad is not None]
    grads = [p.grad for p in params]
    if count!=1: torch._foreach_div_(grads, float(count))
    norm = torch.nn.utils.get_total_norm(grads)
    if max_grad_norm: torch.nn.utils.clip_grads_with_norm_(params, max_grad_norm, norm)
    norm = full_tensors(norm).item()
    for g in optimizer.param_groups: g['lr'] = g['lr'] if lr is None else lr
    if math.isfinite(norm): optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


# %% [markdown]
# Three steps on one number agree with the formulas of the paper: the moving averages are
# corrected for their start at zero, and $\epsilon$ is added to the root, not inside it.

# %%
class Scalar(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.x = torch.nn.Parameter(torch.tensor([1.], dtype=torch.float64))

def adamw_reference(x, grads, lr, b1, b2, eps, decay):
    m = 0
    v = 0
    for t,g in enumerate(grads, 1):
        m = b1*m+(1-b1)*g
        v = b2*v+(1-b2)*g*g
        x = x*(1-lr*decay) - lr*(m/(1-b1**t))/(math.sqrt(v/(1-b2**t))+eps)
    return x

grads = [.5, -.001, 2.]
for eps in (1e-8, 1e-5, .1):
    scalar = Scalar()
    optimizer = build_optimizer(scalar, .1, .01, eps=eps)
    for g in grads:
        scalar.x.grad = torch.tensor([g*4], dtype=torch.float64)
        test_close(clipped_step(optimizer, 4), abs(g), 1e-12)
    test_close(scalar.x.item(), adamw_reference(1, grads, .1, .9, .999, eps, .01), 1e-12)
scalar.x.item()

# %% [markdown]
# A gradient that is not finite leaves the weights unchanged. Weights in bfloat16 are refused:
# near 1 the spacing of bfloat16 numbers is about 0.01, so a step of 0.001 would have no effect.

# %%
weight = scalar.x.item()
scalar.x.grad = torch.tensor([math.inf], dtype=torch.float64)
test_eq(clipped_step(optimizer, max_grad_norm=1.), math.inf)
test_eq(scalar.x.item(), weight)
with expect_fail(ModelError, contains='autocast'): build_optimizer(Scalar().bfloat16())


# %% [markdown]
# ## Ranks
#
# Processes started by `accelerate launch` or `torchrun` sum their gradients. In a single process
# the functions below return their input.

# %%
#| export
def init_distributed()->tuple: # (rank, number of ranks)
    "Start the process group, if this process was launched with others"
    rank,world = process_rank()
    if world>1 and not dist.is_initialized():
        if 'MASTER_ADDR' not in os.environ:
            raise ConfigError(f'{world} processes have no address to connect to; start them '
                              'with `accelerate launch --multi_gpu` or `torchrun`.')
        cuda = torch.cuda.is_available()
        if cuda: torch.cuda.set_device(int(os.environ.get('LOCAL_RANK', 0)))
        dist.init_process_group('nccl' if cuda else 'gloo', rank=rank, world_size=world)
    return rank,world

def broadcast_from_rank0(x):
    "Return the object that rank 0 passed"
    if not dist.is_initialized(): return x
    box = [x]
    dist.broadcast_object_list(box)
    return box[0]

def gather_objects(x)->list: # One object a rank
    "Return the objects of all ranks, in their order"
    if not dist.is_initialized(): return [x]
    box = [None]*dist.get_world_size()
    dist.all_gather_object(box, x)
    return box

def reduce_gradients(
    params:list,
):
    "Replace the gradients of every rank by their sum"
    if not dist.is_initialized(): return
    flags = gather_objects([p.grad is not None for p in params])
    for p,*has_grad in zip(params, *flags):
        if not any(has_grad): continue
        if p.grad is None: p.grad = torch.zeros_like(p)
        dist.all_reduce(p.grad)


# %%
test_eq((init_distributed(), broadcast_from_rank0('x'), gather_objects('x')), ((0, 1), 'x', ['x']))


# %% [markdown]
# ## Checkpoints
#
# A checkpoint is written to a temporary file and renamed, so it is complete or absent; then it is listed
# with its SHA-256 in the [manifest](../foundation/22_manifest.ipynb) of the folder, and the previous one is
# deleted. A checkpoint that is damaged, not listed, or not one of this training is named in a warning, and
# the one before it is used. It contains tensors, numbers, text, lists and
# dictionaries; loading one executes no code. All ranks load the checkpoint that rank 0 found:
# another rank may look later, when rank 0 has already written the next one.

# %%
#| export
class Checkpoints:
    "The latest training states in a folder"
    def __init__(self,
        folder,     # Created if it does not exist
        keep:int=2, # Number of checkpoints on disk
    ):
        self.folder = Path(folder)
        self.keep = keep
        self.folder.mkdir(parents=True, exist_ok=True)
        self.manifest = Manifest(self.folder)

    def steps(self):
        names = [p.stem[5:] for p in self.folder.glob('step-*.pt')]
        return sorted(int(n) for n in names if n.isdecimal())
    def path(self, step): return self.folder/f'step-{step:08}.pt'
    def load(self, step): return torch.load(self.path(step), 'cpu', weights_only=True)

    def save(self, step:int, state:dict):
        "Write the state of a step and delete the oldest checkpoints"
        with replace_file(self.path(step)) as part, open(part, 'wb') as f:
            torch.save(state, f)
            f.flush(); os.fsync(f.fileno())
        old = [self.path(k) for k in self.steps()[:-self.keep]]
        self.manifest.record(self.path(step), forget=old)
        for path in old: path.unlink(missing_ok=True)

    def latest(self,
        *fields, # That a state of this training has
    )->tuple:    # (step, state), or (0, None)
        "Return the last checkpoint that is not damaged, as rank 0 finds it"
        first = not dist.is_initialized() or dist.get_rank()==0
        step,state = self._latest(fields) if first else (0, None)
        step,exists = broadcast_from_rank0((step, state is not None))
        return step,self.load(step) if exists and state is None else state

    def _latest(self, fields):
        for step in reversed(self.steps()):
            state,fault = self._read(step, fields)
            if not fault: return step,state
            warnings.warn(f'{self.path(step)} {fault}; it is not used.', stacklevel=5)
        return 0,None

    def _read(self, step, fields):
        "Return a state, and '' or what is wrong with its file"
        for fault in self.manifest.damage(self.path(step)).values(): return None,fault
        try: state = self.load(step)
        except Exception: return None,'is not a file of tensors, numbers and text' # noqa: S112
        lacks = [k for k in fields if not isinstance(state, dict) or k not in state]
        return state,f'is not a checkpoint of this training (no {lacks[0]!r})' if lacks else ''

def get_random_state()->dict:
    "Return the state of all random number generators"
    name,keys,*counters = np.random.get_state() # noqa: NPY002
    return dict(torch=torch.get_rng_state(), cuda=torch.cuda.get_rng_state_all(),
                numpy=[name, keys.tolist(), *counters], python=random.getstate())

def set_random_state(state):
    "Restore the state of all random number generators"
    torch.set_rng_state(state['torch'])
    np.random.set_state(tuple(state['numpy'])) # noqa: NPY002
    version,keys,gauss = state['python']
    random.setstate((version, tuple(keys), gauss))
    if state['cuda'] and len(state['cuda'])==torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state['cuda'])


# %%
checkpoints = Checkpoints(tmp/'checkpoints')
draw = lambda: (torch.rand(2).tolist(), np.random.rand(), random.random())
for step in (3, 5, 9): checkpoints.save(step, dict(rng=get_random_state(), x=torch.ones(2)))
expected = draw()
step,state = checkpoints.latest()
set_random_state(state['rng'])
test_eq(draw(), expected)
step,checkpoints.steps()

# %% [markdown]
# A file that differs in one bit, a truncated one, and one that holds something else are skipped.

# %%
whole = checkpoints.path(9).read_bytes()
flipped = bytearray(whole)
flipped[900] ^= 1
faults = {'has another SHA-256': bytes(flipped), 'bytes, not': whole[:900], 'is missing': None}
for fault,content in faults.items():
    checkpoints.path(9).unlink()
    if content: checkpoints.path(9).write_bytes(content)
    with warnings.catch_warnings(record=True) as caught: test_eq(checkpoints.latest()[0], 5)
    assert all(fault in str(w.message) for w in caught) and len(caught)==(content is not None)
    checkpoints.path(9).write_bytes(whole)
test_eq(checkpoints.latest('rng', 'x')[0], 9)


# %%
#| hide
class Unpickled: # What it would run is refused
    def __reduce__(self): return os.mkdir, (str(tmp/'executed'),)

for state,fault in [([1], "no 'rng'"), (dict(x=1), "no 'rng'"), (Unpickled(), 'is not a file of')]:
    checkpoints.save(9, state)
    with warnings.catch_warnings(record=True) as caught: test_eq(checkpoints.latest('rng')[0], 5)
    assert fault in str(caught[0].message)
(tmp/'checkpoints'/'step-best.pt').touch()
checkpoints.path(11).touch()
with warnings.catch_warnings(record=True) as caught: test_eq(checkpoints.latest('rng')[0], 5)
assert 'is not in manifest.json' in str(caught[0].message) and not (tmp/'executed').exists()
checkpoints.path(11).unlink()
test_eq((checkpoints.steps(), Checkpoints(tmp/'empty').latest()), ([5, 9], (0, None)))

# %%
#| hide
import shutil
shutil.rmtree(tmp)
