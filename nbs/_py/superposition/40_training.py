# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Training
#
# > One call trains a batch of toy models, and each result is independent of the others.

# %%
#| default_exp superposition.training

# %%
#| export
import hashlib, json, math, torch
from dataclasses import dataclass, replace
from importlib import import_module
from operator import index
from pathlib import Path
from safetensors import safe_open
from safetensors.torch import save_file
from fastcore.basics import patch
from moral_sc.foundation.arguments import check_seed, checked
from moral_sc.foundation.errors import (ConfigError, DataError, ModelError, MoralScError,
                                        short_repr, unknown_name_message)
from moral_sc.foundation.files import replace_file
from moral_sc.foundation.progress import progress_callback
from moral_sc.superposition.features import as_numbers, find_function, keys, Sampler, uniform
from moral_sc.superposition.model import (ToyConfig, check_functions, check_positive_integers,
                                          decode_hidden, encode_inputs, initial_params, losses,
                                          target_of)

# %%
#| hide
import tempfile
import numpy as np, pandas as pd
from fastcore.test import *
from moral_sc.superposition.exact_loss import exact_loss
from moral_sc.superposition.features import moments
from moral_sc.superposition.model import initial_weights
torch.set_num_threads(1)


# %% [markdown]
# The paper states no optimiser. Its public notebook uses AdamW at a learning rate of 0.001, weight decay
# 0.01, 1024 fresh samples per step, and ten thousand steps. This page implements that loop with three
# changes that leave the mathematics unchanged: the data come from a [counter](10_features.ipynb), the update
# is written out so that every instance can have its own learning rate and weight decay, and a run can be
# stopped and resumed.
#
# ## AdamW update
#
# AdamW keeps running means of the gradient and of its square, corrects both for their initial zero,
# and shrinks the parameter by a fraction of itself. The decay also acts on `b` and on features
# without gradient; over ten thousand steps at these settings it shrinks a dead feature by ten
# percent. PyTorch's AdamW takes one learning rate per parameter group and rounds differently in the last
# bits; recorded results are reproduced bit for bit only with this function.

# %%
#| export
def adamw_update(
    param:torch.Tensor, # [instance, ...], changed in place
    grad:torch.Tensor,
    state:tuple,        # Running means of grad and grad², changed in place
    step:int,           # Counted from 1
    lr,                 # Number, or a tensor that broadcasts against `param`
    decay=.01,          # Likewise
    betas=(.9,.999),
    eps=1e-8,
):
    "Apply AdamW with per-instance lr and decay; torch's rounds differently from recorded results"
    m,v = state
    m.lerp_(grad, 1-betas[0])
    v.mul_(betas[1]).addcmul_(grad, grad, value=1-betas[1])
    param.mul_(1-lr*decay)
    denom = v.sqrt().div_((1-betas[1]**step)**.5).add_(eps)
    param.sub_(lr*m/denom/(1-betas[0]**step))


# %% [markdown]
# Fifty steps, compared with PyTorch's AdamW:

# %%
ours = torch.randn(3,5,2)
theirs = ours.clone().requires_grad_()
opt = torch.optim.AdamW([theirs], lr=.01)
state = torch.zeros_like(ours),torch.zeros_like(ours)
for t in range(1,51):
    g = torch.sin(ours*t)
    adamw_update(ours, g, state, t, lr=.01)
    theirs.grad = g
    opt.step()
test_close(ours, theirs.detach(), eps=1e-6)
(ours-theirs).abs().max().item()

# %% [markdown]
# The notebook has three learning-rate schedules, given as a factor over the run. Its cosine is a
# quarter period, which falls slowly at first and ends steeply at zero. The fourth schedule is that
# of the follow-up on memorization [@henighan2023double]: a warm-up for a twentieth of the run, then
# half a period.

# %%
#| export
schedules = dict(constant=lambda t: 1., linear=lambda t: 1-t,
                 cosine=lambda t: math.cos(math.pi/2*t))
schedules['warmup-cosine'] = lambda t: t/.05 if t<.05 else (1+math.cos(math.pi*(t-.05)/.95))/2

# %%
[(k, [round(f(t),3) for t in (0,.25,.5,.75)]) for k,f in schedules.items()]


# %% [markdown]
# ## Run
#
# A `ToyRun` holds the trained parameters, the logged losses, and the state needed to resume
# training.

# %%
#| export
@dataclass
class ToyRun:
    "Trained toy models and the state of their training"
    config:ToyConfig
    instances:list           # Identities of the models in this run
    params:dict              # W [instance, feature, hidden], b [instance, feature], V, c; float32
    step:int = 0             # Updates done
    steps:int = 0            # Updates planned, the length of the schedule
    logged:torch.Tensor = None    # [logged step]
    loss:torch.Tensor = None      # [instance, logged step], summed over features
    snapshots:dict = None    # step -> W
    engine:str = ''
    moments:dict = None      # Running means of AdamW
    settings:dict = None     # What a resumed run must agree with

    @property
    def W(self): return self.params['W']
    @property
    def b(self): return self.params['b']
    @property
    def V(self): return self.params.get('V')
    @property
    def c(self): return self.params.get('c')

    def __repr__(self):
        I,n,m = self.W.shape
        last = f', mean loss {self.loss[:,-1].mean():.4g}' if self.step else ''
        return f'ToyRun({I} models {n}→{m}, step {self.step}/{self.steps}, {self.engine}{last})'


# %% [markdown]
# ## Objective
#
# The objective is the loss plus an optional L1 penalty on the hidden layer. Adversarial training
# moves each input by a vector of fixed length in the direction in which the output of one feature,
# drawn at random, changes fastest; the target stays the same. Of the two signs, it uses the one
# with the larger error.

# %%
#| export
def objective(
    config:ToyConfig,
    params:dict,     # W, b and, where the config has them, V and c
    x:torch.Tensor,  # [instance, batch, feature]
    imp,             # Importance, [instance, feature]
    l1=None,         # Weight of the hidden layer's L1 norm, [instance]
    target=None,     # What the outputs should be, if not the target of `x`
)->torch.Tensor:     # [instance], summed over features
    "Return loss plus penalty of one batch"
    W,b,V,c = (params.get(k) for k in 'WbVc')
    h = encode_inputs(W, x, config.hidden, c)
    out = decode_hidden(W if V is None else V, b, h, config.activation)
    if target is None: target = target_of(config, x)
    error = find_function('loss', config.loss, losses)(target, out)
    loss = (imp*error.mean(1)).sum(-1)
    return loss if l1 is None else loss + l1*h.abs().sum(-1).mean(-1)

def adversarial_inputs(
    config:ToyConfig, params, x,
    size,            # Length of the step in mean input lengths, [instance]
    target_features,           # The feature aimed at, [instance, batch]
)->torch.Tensor:     # [instance, batch, feature]
    "Move inputs to increase the error of one output each, without gradient"
    W,b,V,c = (params[k].detach() if k in params else None for k in 'WbVc')
    R = W if V is None else V
    direction = torch.bmm(R, W.mT).gather(1, target_features[...,None].expand(-1, -1, W.shape[1]))
    direction = direction/direction.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    perturbation = (size*x.norm(dim=-1).mean(-1))[:,None,None]*direction
    def error(z):
        out = decode_hidden(R, b, encode_inputs(W, z, config.hidden, c), config.activation)
        return (target_of(config, x)-out).square().sum(-1, keepdim=True)
    return torch.where(error(x+perturbation)>=error(x-perturbation), x+perturbation, x-perturbation)


# %% [markdown]
# For a pair of orthogonal features under an attack of one mean input length, the loss grows by
# about the square of that length.

# %%
toy = ToyConfig(2, 2)
params = dict(W=torch.eye(2)[None], b=torch.zeros(1,2))
x = torch.rand(1,5000,2)
z = adversarial_inputs(toy, params, x, torch.ones(1), torch.zeros(1,5000,dtype=torch.long))
test_close((z-x)[...,1], torch.zeros(1,5000)); importance = torch.ones(1,2)
clean = objective(toy, params, x, importance)
attacked = objective(toy, params, z, importance, target=x)
clean, attacked, x.norm(dim=-1).mean()**2


# %% [markdown]
# ## Engines
#
# An engine advances a run to a later step. The eager engine is the reference: a batch, autograd, an
# update. It optimises the loss divided by $n$, as the public notebook does, because Adam's
# $\epsilon$ makes the scale of very small gradients matter; the reported loss is the sum. A
# non-finite loss raises an error at once, or on a GPU at the next logged step, so that there is no
# synchronisation at every step.

# %%
#| export
def _log_steps(steps, every): return {*range(0, steps, every), steps-1}

def attack_targets(batch, step, n):
    "Draw the attacked feature of each row, [instance, batch]"
    u = uniform(keys(batch.seed, batch.instances, [step], stream=4)[0], batch.batch_size, 1)
    return (u[...,0]*n).long().clamp(max=n-1).to(batch.density.device)

def eager_engine(
    run:ToyRun,     # Changed in place
    to:int,         # Step to reach
    batch,          # Step -> [instance, batch, feature]
    lr, decay,      # Number or [instance]
    schedule,       # Fraction of the run -> factor
    log:set,        # Steps whose loss is logged
    snap:set,       # Steps after which W is saved
):
    "Train with autograd, one step at a time"
    c = run.config
    dev = run.W.device
    imp = c.importances[run.instances].float().to(dev)
    l1,attack = (c.per_instance(k)[run.instances].float().to(dev) for k in ('l1','attack'))
    l1,attack = (t if t.any() else None for t in (l1,attack))
    params = {k: t.detach().requires_grad_() for k,t in run.params.items()}
    names = [k for k in params if k!='b' or c.bias]
    column = lambda x, t: x.view(-1, *[1]*(t.ndim-1)) if torch.is_tensor(x) else x
    for s in range(run.step, to):
        x = batch(s)
        target = target_of(c, x)
        if attack is not None:
            features = attack_targets(batch, s, c.n_features)
            x = adversarial_inputs(c, params, x, attack, features)
        loss = objective(c, params, x, imp, l1, target)
        grads = torch.autograd.grad(loss.sum()/c.n_features, [params[k] for k in names])
        factor = schedule(s/run.steps)
        with torch.no_grad():
            for k,g in zip(names, grads, strict=True):
                p = params[k]
                adamw_update(p, g, run.moments[k], s+1, column(lr, p)*factor, column(decay, p))
        if s in log or dev.type=='cpu': check_finite(run, s, loss.detach())
        run.step = s+1
        if s in log: append_loss(run, s, loss.detach())
        if s+1 in snap: run.snapshots[s+1] = run.W.clone()

def check_finite(run, step, loss):
    "Raise an error if the loss or a parameter is not finite"
    if all(torch.isfinite(t).all() for t in (loss,*run.params.values())): return
    finite = torch.isfinite(loss).tolist()
    instance = run.instances[finite.index(False) if False in finite else 0]
    last = f' (it was at step {int(run.logged[-1])})' if len(run.logged) else ''
    raise ModelError(f'The loss of instance {instance} is not finite at step {step}{last}: '
                     'lower the learning rate, or resume from an earlier save.')

def append_loss(run, step, loss):
    "Append one logged loss, [instance]"
    run.logged = torch.cat([run.logged, torch.tensor([step])])
    run.loss = torch.cat([run.loss, loss[:,None].cpu()], 1)


# %% [markdown]
# The fast engines compute the same updates and report which configs they do not support:
# [compiled](engines/40_cuda_graphs.ipynb) passes the step to a compiler, [numba](engines/30_numba_cpu.ipynb)
# trains each model within one processor core, and [triton](engines/50_triton_gpu.ipynb) within one
# multiprocessor of a GPU. `auto` selects the first engine that supports the config on the device, and
# `run.engine` is its name.

# %%
#| export
engines = dict(eager=eager_engine)
_engine_modules = dict(numba='numba_cpu', triton='triton_gpu', compiled='cuda_graphs')
_engine_order = dict(cpu=['numba','eager'], cuda=['triton','compiled','eager'])

def find_engine(name:str, config:ToyConfig, device='cpu'):
    "Return the function of an engine, or a sentence why it cannot train this config"
    if name in engines: return engines[name]
    if config.notebook_compat:
        return 'notebook_compat draws from one generator, which only engine eager does.'
    try: module = import_module(f'moral_sc.superposition.engines.{_engine_modules[name]}')
    except ImportError as e: return f'engine {name} needs the package {e.name}: install it.'
    limitation = getattr(module, f'{name}_limitation')(config, device)
    return limitation or getattr(module, f'{name}_engine')

def resolve_engine(
    engine:str,        # 'auto', 'eager', 'compiled', 'numba' or 'triton'
    config:ToyConfig,
    device='cpu',
    own_data=False,    # Train on data of the user
)->tuple:              # Name and function
    "Select the engine for a config and device"
    known = ['auto', *engines, *_engine_modules]
    if engine not in known: raise ConfigError(unknown_name_message('engine', engine, known))
    if own_data:
        if engine not in ('auto','eager'):
            raise ConfigError(f'Engine {engine!r} draws its own data: use eager for data of yours.')
        engine = 'eager'
    try: kind = torch.device(device).type
    except (RuntimeError, TypeError): kind = ''
    if kind not in ('cpu','cuda','mps'):
        raise ConfigError(f'There is no device {short_repr(device)}: use cpu or cuda.')
    if kind=='mps' and not torch.backends.mps.is_available():
        raise ConfigError(f'There is no device {device!r} here: use cpu.')
    if kind=='cuda' and not torch.cuda.is_available():
        raise ConfigError(f'There is no GPU for device {device!r} here: use cpu.')
    for name in _engine_order.get(kind, ['eager']) if engine=='auto' else [engine]:
        advance = find_engine(name, config, device)
        if not isinstance(advance, str): return name,advance
    raise ConfigError(f'Engine {engine!r} cannot run this: {advance}')


# %%
resolve_engine('auto', ToyConfig())[0], resolve_engine('auto', ToyConfig(notebook_compat=True))[0]

# %%
with expect_fail(ConfigError, contains="did you mean 'eager'"): resolve_engine('eagre', ToyConfig())
with expect_fail(ConfigError, contains='which only engine eager does'):
    resolve_engine('numba', ToyConfig(notebook_compat=True))


# %% [markdown]
# ## Train

# %%
#| export
@checked
def train(
    config:ToyConfig,
    steps:int=10_000,
    batch_size:int=1024,  # Ignored for a finite data set, which is one batch
    seed=0,
    engine:str='auto',    # 'auto', 'eager', 'compiled', 'numba' or 'triton'
    lr=1e-3,              # Number or [instance]
    weight_decay=.01,     # Number or [instance]
    schedule:str='constant', # A name in `schedules`
    snapshots=(),         # Numbers of updates after which to save W
    log_every:int=100,    # Steps between logged losses
    instances=None,       # Train only these instances of the config
    resume:ToyRun=None,   # Continue this run
    stop:int|None=None,   # Stop after this many updates; continue with `resume`
    device='cpu',
    data=None,            # [row, feature] or [instance, row, feature] to train on; default: drawn
    progress=None,        # True: show a bar; a function: called with steps done and all steps
)->ToyRun:
    "Train all instances of `config`; each result is independent of the others"
    check_training(config, seed)
    seed = int(seed)
    check_positive_integers(steps=steps, batch_size=batch_size, log_every=log_every)
    if schedule not in schedules:
        raise ConfigError(unknown_name_message('schedule', schedule, list(schedules)))
    if resume is not None and not isinstance(resume, ToyRun):
        raise ConfigError(f'resume is {short_repr(resume)}: give a run, such as load_run(path).')
    engine,advance = resolve_engine(engine, config, device, data is not None)
    check_functions(config, device)
    ids = _check_instances(config, instances)
    snapshots = _integers('snapshots', () if snapshots is None else snapshots)
    batch_size = config.points or batch_size
    settings = dict(config=config.to_dict(), instances=ids, steps=steps, batch_size=batch_size,
                    seed=seed, lr=_to_list(lr), weight_decay=_to_list(weight_decay),
                    schedule=schedule, log_every=log_every)
    batches = _batches(config, ids, batch_size, seed, device, data)
    if data is not None: settings['data'] = batches.digest
    if resume is None: run = _start_run(config, ids, seed, device, settings)
    else: run = _resume_run(resume, settings)
    run.engine = engine
    rates = [_select_instances(k, v, ids, config, device)
             for k,v in dict(lr=lr, weight_decay=weight_decay).items()]
    arguments = (batches, *rates,
                 schedules[schedule], _log_steps(steps, log_every), set(snapshots))
    to = steps if stop is None else min(stop, steps)
    with progress_callback(progress, 'steps') as report:
        parts = 10 if engine in ('compiled', 'triton') else 100 # These start slowly
        for part in _progress_steps(run.step, to, max(1, steps//parts)) if report else [to]:
            advance(run, part, *arguments)
            if report: report(part, steps)
    return run


# %% [markdown]
# The helpers of `train` initialise a run from the counter, check on `resume` that the settings are
# unchanged, and select each instance's learning rate and weight decay if a list is given.

# %%
#| export
def _to_list(x): return x.tolist() if hasattr(x, 'tolist') else x

def _progress_steps(step, to, interval):
    "Steps at which progress is reported; the last one is `to`"
    return [*range(step-step%interval+interval, to, interval), to]

def check_training(config, seed):
    "Raise an error for a config or seed of another type"
    if not isinstance(config, ToyConfig):
        raise ConfigError(f'config is {short_repr(config)}: give ToyConfig(n_features, n_hidden, '
                          '...).')
    check_seed('train', seed)

class DataSampler:
    "Return batches of rows of a data set; all of it where it has no more rows than a batch"
    def __init__(self,
        data:torch.Tensor, # [row, feature] or [instance, row, feature]
        config:ToyConfig,
        instances,         # Identities of the models
        batch_size:int,
        seed=0,
        device='cpu',
    ):
        x = as_numbers('data', data).detach().float()
        shapes = (2, (config.n_features,)), (3, (config.n_instances, config.n_features))
        if (x.ndim, (x.shape[0], x.shape[-1]) if x.ndim==3 else tuple(x.shape[-1:])) not in shapes \
                or not x.numel() or not torch.isfinite(x).all():
            raise ConfigError(f'data has shape {list(x.shape)} or a value that is not finite: give '
                              f'[row, {config.n_features}] or [{config.n_instances}, row, '
                              f'{config.n_features}].')
        self.data = (x if x.ndim==2 else x[instances]).to(device)
        self.instances,self.seed = list(instances), seed
        self.batch_size = min(batch_size, x.shape[-2])
        self.density = self.data.new_zeros(0)  # the device of the attacked features
        self.digest = hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest()

    def __call__(self, step):
        x,models,rows = self.data, len(self.instances), self.data.shape[-2]
        if rows==self.batch_size: return x if x.ndim==3 else x.expand(models, -1, -1)
        u = uniform(keys(self.seed, self.instances, [step], stream=5)[0], self.batch_size, 1)
        i = (u[...,0]*rows).long().clamp(max=rows-1).to(x.device)
        return x[i] if x.ndim==2 else x.gather(1, i[...,None].expand(-1, -1, x.shape[-1]))

def _integers(name, values):
    "Return a list of integers"
    if hasattr(values, 'tolist'): values = values.tolist()
    try: return [index(v) for v in values]
    except TypeError:
        raise ConfigError(f'{name} is {short_repr(values)}: give a list of integers.') from None

def _check_instances(config, instances):
    ids = _integers('instances', range(config.n_instances) if instances is None else instances)
    unknown = [i for i in ids if not 0<=i<config.n_instances]
    if not ids: raise ConfigError('instances is empty: give at least one.')
    if unknown: raise ConfigError(
        f'instance {unknown[0]} is not among the {config.n_instances} of the config: '
        f'give numbers below {config.n_instances}.')
    if config.notebook_compat and len(ids)<config.n_instances: raise ConfigError(
        'notebook_compat draws all instances from one generator: train them together.')
    return ids

def _select_instances(name, x, ids, config, device):
    "Select the entries of this run's instances; return a number as it is"
    t = as_numbers(name, x)
    if not torch.isfinite(t).all() or (t<0).any():
        raise ConfigError(f'{name} is {short_repr(x)}: give finite numbers of at least 0.')
    if isinstance(x, (int,float)): return x
    if t.shape != (config.n_instances,): raise ConfigError(
        f'{name} has shape {list(t.shape)}: give a number or [{config.n_instances}].')
    return t.float()[ids].to(device)

def _start_run(config, ids, seed, device, settings):
    params = (dict(zip('Wb', _notebook_start(config, seed))) if config.notebook_compat
              else initial_params(config, seed, ids))
    params = {k: t.to(device) for k,t in params.items()}
    zeros = {k: (torch.zeros_like(t),torch.zeros_like(t)) for k,t in params.items()}
    return ToyRun(config, ids, params, 0, settings['steps'], torch.zeros(0, dtype=torch.long),
               torch.zeros(len(ids), 0), {}, '', zeros, settings)

def _setting_difference(name, old, new):
    "Describe how a setting differs, field by field if it is the config"
    if isinstance(old, dict) and isinstance(new, dict):
        k = next(k for k in {**old, **new} if old.get(k)!=new.get(k))
        return _setting_difference(k, old.get(k), new.get(k))
    if isinstance(old, list) or isinstance(new, list): return f'another {name}'
    return f'{name}={short_repr(old)}, not {short_repr(new)}'

def _resume_run(run, settings):
    for k,v in settings.items():
        old = run.settings.get(k)
        if old!=v: raise ConfigError(
            f'the run to resume has {_setting_difference(k, old, v)}: use its settings.')
    if 'data' in run.settings and 'data' not in settings:
        raise ConfigError('the run to resume was trained on data of yours: give data.')
    return replace(run, params={k: t.clone() for k,t in run.params.items()},
                   snapshots=dict(run.snapshots),
                   moments={k: tuple(t.clone() for t in v) for k,v in run.moments.items()})

def _batches(config, ids, batch_size, seed, device, data=None):
    if data is not None: return DataSampler(data, config, ids, batch_size, seed, device)
    if config.notebook_compat: return _notebook_batches(config, batch_size, seed, device)
    return Sampler(config.densities[ids], ids, batch_size, seed, config.features, device,
                   sets=config.sets, signed=config.signed, finite=config.points is not None,
                   unit=config.unit)


# %% [markdown]
# `notebook_compat` reproduces the public notebook: the initial values of `xavier_normal_` on all instances,
# and two uniform tensors per step, all from one generator. The results then depend on the other instances,
# and such a run cannot be resumed.

# %%
#| export
def _generator(seed): return torch.Generator().manual_seed(seed)

def _notebook_start(config, seed):
    I = config.n_instances
    n = config.n_features
    m = config.n_hidden
    return torch.randn(I, n, m, generator=_generator(seed))*config.std, torch.zeros(I, n)

def _notebook_batches(config, batch_size, seed, device):
    I = config.n_instances
    n = config.n_features
    p = config.densities.float()
    g = _generator(seed+1)
    expected = 0
    def batch(step):
        nonlocal expected
        if step!=expected:
            raise ConfigError('a notebook_compat run cannot be resumed: start it again.')
        expected += 1
        x,u = (torch.rand(batch_size, I, n, generator=g) for _ in range(2))
        return torch.where(u<=p, x, 0.).transpose(0,1).to(device)
    return batch


# %% [markdown]
# ## Example
#
# Five features, two dimensions, three densities: two thousand steps at a high learning rate.

# %%
cfg = ToyConfig(5, 2, 3, density=[[1.],[.2],[.05]], importance=[.6**i for i in range(5)], init=.1)
run = train(cfg, steps=2000, lr=.01, schedule='cosine', batch_size=256)
run

# %% [markdown]
# The logged loss is that of a batch; the loss of the final weights can be computed exactly:

# %%
final = exact_loss(run.W, run.b, cfg.density, cfg.importance)
assert ((run.loss[:,-1]-final).abs() < .5*final).all()
run.loss[:,::5].numpy().round(4), final.numpy().round(5)

# %% [markdown]
# At density 1 the best solution in two dimensions keeps the two most important features. Its loss
# is known, and training comes within two percent of it.

# %%
pca = moments(1.)[1]*sum(.6**i for i in range(2,5))
assert abs(final[0]/pca-1) < .02
final[0].item(), pca

# %% [markdown]
# ## Independence of the batch
#
# Instance 2, trained alone, ends where it ended among the three:

# %%
alone = train(cfg, steps=2000, lr=.01, schedule='cosine', batch_size=256, instances=[2])
test_close(alone.W[0], run.W[2], eps=1e-3)
(alone.W[0]-run.W[2]).abs().max().item()


# %% [markdown]
# ## Saving and resuming
#
# A run that stops after 400 updates and is resumed gives bitwise the same result as the
# uninterrupted run, also after saving to a file and loading.

# %%
#| export
@checked
def save_run(
    run:ToyRun,
    path:str, # File to write, replaced atomically
)->Path:
    "Write a run as safetensors"
    if not isinstance(run, ToyRun):
        raise ConfigError(f'run is {short_repr(run)}: give a run, as train returns it.')
    path = Path(path).expanduser()
    if path.is_dir() or not path.parent.is_dir():
        raise ConfigError(f'{path} cannot be written: name a file in a folder that exists.')
    t = dict(logged=run.logged, loss=run.loss)
    t |= {f'param.{k}': v for k,v in run.params.items()}
    t |= {f'snapshot.{k}': v for k,v in run.snapshots.items()}
    t |= {f'moment.{k}.{i}': v for k,vs in run.moments.items() for i,v in enumerate(vs)}
    meta = json.dumps(dict(step=run.step, engine=run.engine, settings=run.settings))
    t = {k: v.detach().cpu().contiguous() for k,v in t.items()}
    with replace_file(path) as part:
        save_file(t, part, metadata=dict(run=meta, digest=_digest(t, meta)))
    return path

def _digest(tensors, meta):
    "SHA-256 of tensors and settings; a file with another one is damaged"
    h = hashlib.sha256(meta.encode())
    for k in sorted(tensors):
        h.update(f'{k} {tensors[k].dtype} {list(tensors[k].shape)}'.encode())
        h.update(tensors[k].numpy().tobytes())
    return h.hexdigest()

@patch
def save(self:ToyRun, path)->Path: # File to write; `load_run` or `ToyRun.load` reads it
    "Write this run as safetensors"
    return save_run(self, path)

def _with_functions(path, described, functions):
    "A config whose own functions are given anew and checked by their source"
    own = {k: v for k,v in described.items() if isinstance(v, str) and '#' in v}
    for k,name in own.items():
        if k not in functions: raise ConfigError(f'{path} was trained with your {k} {name}: give '
                                                 f'load_run(path, {k}=function).')
    config = ToyConfig(**described|{k: functions[k] for k in own})
    for k,name in own.items():
        found = str(config.to_dict()[k])
        if found.split('#')[-1]!=name.split('#')[-1]: raise ConfigError(
            f'{k} of {path} is {name}, not {found}: give the function it was trained with.')
    return config

@checked
def load_run(
    path, # File written by `save_run`
    **functions, # Activation, target, ... of yours that the run was trained with
)->ToyRun:
    "Load a run from a file"
    try:
        with safe_open(path, 'pt') as f:
            t = {k: f.get_tensor(k) for k in f.keys()}
            text,digest = (f.metadata().get(k) for k in ('run', 'digest'))
        if digest not in (None, _digest(t, text)): raise ValueError # None: of an earlier version
        return _stored_run(path, t, json.loads(text), functions)
    except MoralScError: raise
    except Exception as e:
        raise DataError(f'{path} is damaged or not a saved run ({type(e).__name__}): delete it and '
                        'train again.') from None

def _stored_run(path, t, meta, functions):
    s = meta['settings']
    params = {k[6:]: v for k,v in t.items() if k.startswith('param.')}
    config = _with_functions(path, s['config'], functions)
    return ToyRun(config, s['instances'], params, meta['step'], s['steps'],
               t['logged'], t['loss'],
               {int(k[9:]): v for k,v in t.items() if k.startswith('snapshot.')}, meta['engine'],
               {k: (t[f'moment.{k}.0'],t[f'moment.{k}.1']) for k in params}, s)


@patch(cls_method=True)
def load(cls:ToyRun, path, **functions)->ToyRun: # As in `load_run`
    "Load a run from a file"
    return load_run(path, **functions)


# %%
args = dict(steps=2000, lr=.01, schedule='cosine', batch_size=256)
with tempfile.TemporaryDirectory() as d:
    part = train(cfg, stop=400, **args)
    resumed = train(cfg, resume=ToyRun.load(part.save(Path(d)/'toy.safetensors')), **args)
test_eq(resumed.W, run.W); test_eq(resumed.loss, run.loss)
part, resumed

# %% [markdown]
# Functions of yours are trained by eager alone; a fast engine refuses them, and `auto` leaves it out. A saved run needs
# them again, and checks that they are the same.

# %%
from moral_sc.superposition.features import distributions, independent
from moral_sc.superposition.model import activations, losses, targets

def cube(key, gate, density, batch_size, sets=1):
    active,values = independent(key, gate, density, batch_size, sets)
    return active, values**3

def halves(x): return x/2
own = dict(activation=torch.nn.functional.silu, target=halves, features=cube, hidden=torch.tanh,
           loss=lambda target, output: (target-output).abs())
known = dict(activation=activations, target=targets, features=distributions, hidden=activations,
             loss=losses)
def registered(kind, function):
    "Train with a function under a name of its own and under that of a built-in one"
    before = dict(known[kind])
    found = []
    try:
        for name in ('mine', dict(features='independent', loss='squared', target='identity',
                                  activation='relu', hidden='tanh')[kind]):
            known[kind][name] = function
            found.append(train(ToyConfig(5, 2, 2, density=.2, **{kind: name}), steps=40))
    finally:
        known[kind].clear()
        known[kind].update(before)
    return found

small = dict(n_features=5, n_hidden=2, n_instances=2, density=.2)
for kind,function in own.items():
    config = ToyConfig(**small, **{kind: function})
    for engine in ('numba', 'triton'):
        with expect_fail(ConfigError, contains='use'): train(config, steps=1, engine=engine)
    direct = train(config, steps=40)
    test_eq(direct.engine, 'eager')
    test_ne(direct.W, train(ToyConfig(**small), steps=40, engine='eager').W)
    for run_ in registered(kind, function): test_eq((run_.engine, run_.W), ('eager', direct.W))
with tempfile.TemporaryDirectory() as d:
    path = save_run(train(ToyConfig(**small, target=halves), steps=10), Path(d)/'toy.safetensors')
    with expect_fail(ConfigError, contains='was trained with your target'): load_run(path)
    with expect_fail(ConfigError, contains='give the function'): load_run(path, target=torch.abs)
    test_eq(load_run(path, target=halves).config.target, halves)

# %% [markdown]
# `data` trains on rows of yours. A data set that is no larger than a batch is used whole at each step; otherwise rows are drawn.

# %%
rows = torch.rand(64, 5, generator=torch.Generator().manual_seed(0))
fitted = train(ToyConfig(5, 2, 3), steps=30, data=rows, batch_size=64)
each = train(ToyConfig(5, 2, 3), steps=30, data=rows.expand(3, -1, -1), batch_size=64)
test_eq(fitted.W, each.W)
for same in (pd.DataFrame(rows.numpy()), rows.clone().requires_grad_()):
    test_eq(train(ToyConfig(5, 2, 3), steps=30, data=same, batch_size=64).W, fitted.W)
halfway = train(ToyConfig(5, 2, 3), steps=30, data=rows, batch_size=16, stop=10)
test_eq(train(ToyConfig(5, 2, 3), steps=30, data=rows, batch_size=16, resume=halfway).W,
        train(ToyConfig(5, 2, 3), steps=30, data=rows, batch_size=16).W)
for kw,words in [(dict(data=rows[:,:4]), 'give [row, 5]'),
                 (dict(data=rows, engine='numba'), 'use eager'),
                 (dict(data=rows*2, resume=halfway, batch_size=16), 'use its settings'),
                 (dict(resume=halfway, batch_size=16), 'give data'), (dict(seed='a'), 'seed is'),
                 (dict(seed=-1), 'seed is -1'), (dict(device='meta'), "no device 'meta'"),
                 (dict(device='metal'), "no device 'metal'"), (dict(seed=True), 'seed is True'),
                 (dict(learning_rate=1), "did you mean 'lr'?"), (dict(step=1), "mean 'steps'?"),
                 (dict(steps='9'), 'steps is'), (dict(batch_size=1.5), 'batch_size is 1.5'),
                 (dict(lr='x'), 'give numbers'), (dict(lr=-1), 'lr is -1'),
                 (dict(snapshots='a'), 'snapshots is'), (dict(resume=1), 'resume is 1'),
                 (dict(weight_decay=[.1]), 'weight_decay has shape [1]'),
                 (dict(data='x'), 'data is'), (dict(data=rows.cfloat()), 'data is'),
                 (dict(data=[[1], [2, 3]]), 'data is'), (dict(stop='x'), 'stop is')]:
    with expect_fail(ConfigError, contains=words): train(**{**dict(config=ToyConfig(5, 2, 3),
                                                                   steps=30), **kw})
for wrong in [(5, 2), (rows,), ()]:
    with expect_fail(ConfigError, contains='onfig'): train(*wrong)

# %%
with expect_fail(ConfigError, contains='has lr=0.01'): train(cfg, resume=part, **args|dict(lr=.1))
denser = replace(cfg, density=cfg.densities.clamp(min=.1))
with expect_fail(ConfigError, contains='has another density: use'):
    train(denser, resume=part, **args)
with expect_fail(DataError, contains='not a saved run'): load_run('nowhere.safetensors')
from safetensors.torch import save_file as save_tensors
with tempfile.TemporaryDirectory() as d:
    save_tensors(dict(x=torch.ones(3)), Path(d)/'other.safetensors')
    with expect_fail(DataError, contains='not a saved run'): load_run(Path(d)/'other.safetensors')
    for path in (d, Path(d)/'no'/'toy.safetensors', '', None):
        with expect_fail(ConfigError): save_run(part, path)
    with expect_fail(ConfigError, contains='give a run'): save_run(cfg, Path(d)/'run')
    save_run(train(ToyConfig(5, 2), steps=2, seed=np.int64(3)), Path(d)/'toy.safetensors')

# %% [markdown]
# A non-finite loss stops the run and reports the step:

# %%
with expect_fail(ModelError, contains='not finite at step'):
    train(ToyConfig(5, 2, init=1e19), steps=3, log_every=1)


# %% [markdown]
# ## Comparison with the public notebook
#
# This is the notebook's loop with its operations: einsums with the batch axis first,
# `torch.optim.AdamW`, the mean over features, the sum over instances. With `notebook_compat` and
# equal seeds, `train` agrees with it step for step.

# %%
def public_loop(W, b, imp, batches, steps):
    W = W.clone().requires_grad_()
    b = b.clone().requires_grad_()
    opt = torch.optim.AdamW([W,b], lr=1e-3)
    for s in range(steps):
        opt.zero_grad(set_to_none=True)
        x = batches(s).transpose(0,1)
        h = torch.einsum('bif,ifh->bih', x, W)
        out = torch.relu(torch.einsum('bih,ifh->bif', h, W) + b)
        error = imp*(x.abs()-out)**2
        loss = error.mean((0,2)).sum()
        loss.backward(); opt.step()
    return W.detach()

compat = ToyConfig(20, 5, 10, density=(20**-torch.linspace(0,1,10))[:,None],
                   importance=[.7**i for i in range(20)], notebook_compat=True)
theirs = public_loop(*_notebook_start(compat, 0), compat.importances.float(),
                     _notebook_batches(compat, 1024, 0, 'cpu'), 100)
ours = train(compat, steps=100)
test_close(ours.W, theirs, eps=1e-4)
(ours.W-theirs).abs().max().item()

# %% [markdown]
# The reference engine is not slower. The two loops alternate for five rounds of ten steps on one
# thread, and the result is the ratio of their medians: the public loop's time divided by ours.

# %%
from itertools import count
from time import perf_counter
def clock(f): t=perf_counter(); f(); return perf_counter()-t
W0,b0,draw,at = *initial_weights(compat),_notebook_batches(compat, 1024, 0, 'cpu'),count()
public = lambda: public_loop(W0, b0, compat.importances.float(), lambda s: draw(next(at)), 10)
fast = replace(compat, notebook_compat=False)
ours = lambda: train(fast, steps=10, engine='eager')
times = np.array([[clock(public), clock(ours)] for _ in range(6)])[1:]
ratio = np.median(times[:,0])/np.median(times[:,1])
round(ratio, 1), np.median(times, 0).round(3)*100  # ms a step

# %% [markdown]
# ## Options of a config
#
# Options without a closed form are tested by their effect. An L1 penalty shrinks the hidden layer;
# a finite data set is memorised, so that its loss falls far below that of fresh data; adversarial
# training leaves a model that is less vulnerable to the attack.

# %%
brisk = dict(steps=600, batch_size=256, lr=.01, schedule='cosine', seed=1)
neurons = ToyConfig(6, 3, 2, density=.1, hidden='relu', l1=[0.,1.])
run = train(neurons, **brisk)
x = Sampler(neurons.densities, [0,1], 4096, seed=9)(0)
hidden_norm = encode_inputs(run.W, x, 'relu').abs().sum(-1).mean(-1)
assert hidden_norm[1] < .1*hidden_norm[0]
hidden_norm

# %%
finite = ToyConfig(20, 2, density=.1, points=5, unit=True)
run = train(finite, **brisk | dict(schedule='warmup-cosine'))
fresh = Sampler(finite.densities, [0], 4096, seed=9, unit=True)(0)
test = objective(finite, run.params, fresh, torch.ones(1,20))
assert run.loss[0,-1] < .2*test[0]
run.loss[0,-1], test[0]

# %%
robust = ToyConfig(6, 2, 2, density=.3, attack=[0.,1.])
run = train(robust, **brisk)
x = Sampler(robust.densities, [0,1], 4096, seed=9)(0)
z = adversarial_inputs(robust, run.params, x, torch.ones(2), torch.zeros(2,4096,dtype=torch.long))
attacked_loss = objective(robust, run.params, z, torch.ones(2,6), target=x)
assert attacked_loss[1] < attacked_loss[0]
attacked_loss

# %% [markdown]
# An absolute value in two layers, with six neurons for three features: every parameter of the
# config is learned, saved and resumed.

# %%
absolute = ToyConfig(3, 6, 4, hidden='relu', hidden_bias=True, tied=False, target='abs',
                     signed=True)
run = train(absolute, **brisk)
assert {*run.params}=={*'WbVc'} and all(v.abs().max()>0 for v in run.params.values())
with tempfile.TemporaryDirectory() as d:
    part = load_run(save_run(train(absolute, stop=200, **brisk), Path(d)/'abs.safetensors'))
test_eq(train(absolute, resume=part, **brisk).V, run.V)
run, run.loss[:,-1]
