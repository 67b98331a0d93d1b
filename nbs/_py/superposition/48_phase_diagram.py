# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Phase diagrams
#
# > Restarts of every model are ranked by exact loss and mapped to phases.

# %%
#| default_exp superposition.phase_diagram

# %%
#| export
import numpy as np, pandas as pd, torch
from dataclasses import dataclass, replace
from fastcore.meta import delegates
from moral_sc.foundation.arguments import checked
from moral_sc.foundation.errors import ConfigError, short_repr
from moral_sc.foundation.progress import progress_callback
from moral_sc.foundation.runs import process_rank
from moral_sc.superposition.exact_loss import closed_form_limitation, exact_loss
from moral_sc.superposition.features import as_numbers, Sampler
from moral_sc.superposition.geometry import interference
from moral_sc.superposition.model import ToyConfig, check_positive_integers, initial_params
from moral_sc.superposition.training import (ToyRun, check_training, objective, resolve_engine,
                                              train)

# %%
#| hide
from inspect import signature
from fastcore.test import *
from moral_sc.superposition.features import moments
torch.set_num_threads(1)


# %% [markdown]
# A single trained toy model is one sample: it may have ended in a local minimum, and a map of
# single models, or of their averages, shows the optimiser as much as the problem. We therefore
# train every model of a sweep from several initialisations and keep the one with the lowest loss.
#
# Every restart has an identity, as every instance has: restart $r$ of instance $i$ is number $rI+i$
# of a larger config. Asking for more restarts adds numbers and changes none.

# %%
#| export
def _rows(x, config, restarts):
    "Repeat the rows of a table for each restart; leave a number or [feature] as it is"
    t = torch.as_tensor(x, dtype=torch.float64)
    per_instance = t.ndim==2 and len(t)==config.n_instances>1
    return t.repeat(restarts, 1) if per_instance else x

def replicate_config(
    config:ToyConfig,
    restarts:int,
)->ToyConfig:
    "Return the config whose instance $rI+i$ is restart $r$ of instance $i$"
    check_positive_integers(restarts=restarts)
    weights = {k: config.per_instance(k).repeat(restarts) for k in ('l1','attack')
               if config.per_instance(k).any()}
    return replace(config, n_instances=restarts*config.n_instances, **weights,
                   density=_rows(config.density, config, restarts),
                   importance=_rows(config.importance, config, restarts))


# %%
config = ToyConfig(2, 1, 3, density=[[1.],[.3],[.05]])
replicated = replicate_config(config, 4)
test_eq(replicated.densities[7], config.densities[7%3])
test_eq(initial_params(replicated)['W'][:6], initial_params(replicate_config(config, 2))['W'])
replicated.n_instances


# %% [markdown]
# ## Ranking loss
#
# The restarts are ranked by the [population loss](30_exact_loss.ipynb) where it is known, for up to
# eleven features. Otherwise they are ranked on a held-out batch that all restarts of an instance
# share. An L1 penalty is included, since it is part of the objective; adversarial attacks are not.

# %%
#| export
def held_out_loss(
    config:ToyConfig,
    params:dict,      # Of the models numbered `ids`
    ids,
    batch_size=2**14,
    seed=2**40,       # Far from the seeds of training
    period=None,      # Models whose numbers agree modulo `period` share their inputs
)->torch.Tensor:      # [model]
    "Return the loss on inputs that were not used in training"
    ids = torch.as_tensor(ids)
    imp,l1 = (t[ids].float() for t in (config.importances, config.per_instance('l1')))
    shared = (ids % (period or config.n_instances)).tolist()
    x = Sampler(config.densities[ids], shared, batch_size, seed, config.features,
                sets=config.sets, signed=config.signed, unit=config.unit)(0)
    return objective(config, params, x, imp, l1 if l1.any() else None)

def ranking_loss(config, params, ids, period=None):
    "Return the exact loss if there is one, else `held_out_loss`"
    c = config
    exact = closed_form_limitation(config) is None and not config.per_instance('l1').any()
    if not exact or (c.n_features>11 and c.activation!='linear'):
        return held_out_loss(config, params, ids, period=period)
    ids = torch.as_tensor(ids)
    return exact_loss(params['W'], params['b'], c.densities[ids], c.importances[ids],
                      c.activation, None, c.features, c.sets, c.signed, params.get('V'))


# %% [markdown]
# For a pair of antipodes the two agree up to the noise of the batch:

# %%
antipodes = dict(W=torch.tensor([[[1.],[-1.]]]), b=torch.zeros(1,2))
test_close(held_out_loss(config, antipodes, [1]), ranking_loss(config, antipodes, [1]), eps=2e-3)
held_out_loss(config, antipodes, [1]).item(), ranking_loss(config, antipodes, [1]).item()


# %% [markdown]
# ## Best of several restarts
#
# `train_restarts` trains everything in one call, or in blocks where a sweep would not fit into memory: a
# map of a million models of two features is processed block by block. The result of a model does not
# depend on its block.

# %%
#| export
@dataclass
class RestartSweep:
    "All restarts of all instances, and their ranking"
    config:ToyConfig
    params:dict          # W [instance, restart, feature, hidden], b, V and c likewise
    loss:torch.Tensor    # [instance, restart], the ranking loss
    order:torch.Tensor   # [instance, restart], numbers of restarts, best first
    curves:torch.Tensor  # [instance, restart, logged step], training loss
    logged:torch.Tensor  # [logged step]
    snapshots:dict       # step -> W [instance, restart, feature, hidden]
    engine:str = ''

    def best(self, rank=0)->dict:
        "Return the parameters of the restart of a rank; rank 0 has the lowest loss"
        rows = torch.arange(len(self.order))
        return {k: v[rows,self.order[:,rank]] for k,v in self.params.items()}

    def __repr__(self):
        I,R = self.loss.shape
        return (f'RestartSweep({I} instances x {R} restarts of {self.config.n_features}→'
                f'{self.config.n_hidden}, {self.engine}, mean best loss '
                f'{self.loss.amin(1).mean():.4g})')

def _chunks(n, size): return [range(a, min(a+size, n)) for a in range(0, n, size)]

def _max_models(config, engine, device, batch_size):
    "Return how many models to train at once"
    row = (config.points or batch_size)*max(config.n_features, config.n_hidden)
    floats = dict(eager=2**26, compiled=2**29).get(resolve_engine(engine, config, device)[0])
    return max(1, floats//row) if floats else 2**18

def _score(score, config, params, ids, period):
    size = max(1, 2**28//(2**14*config.n_features + 3**min(config.n_features, 11)*8))
    parts = [score(config, {k: v[c.start:c.stop] for k,v in params.items()},
                   ids[c.start:c.stop], period=period) for c in _chunks(len(ids), size)]
    return torch.cat(parts).double()


# %%
#| export
@checked
@delegates(train, but=['instances', 'resume', 'stop'])
def train_restarts(
    config:ToyConfig,
    restarts:int,
    seed=0,
    score=None,     # `f(config, params, ids, period=)` -> [model]; None: `ranking_loss`
    block:int|None=None, # Models trained at once; None: as many as fit
    engine='auto', device='cpu', batch_size=1024, lr=1e-3, weight_decay=.01,
    progress=None,  # True: show a bar; a function: called with steps done and all steps
    **kwargs,           # Of `train`
)->RestartSweep:
    "Train every instance from several starts and rank them"
    check_training(config, seed)
    I = config.n_instances
    replicated = replicate_config(config, restarts)
    parts = []
    def repeat(name, x):
        return x if isinstance(x, (int,float)) else as_numbers(name, x).repeat(restarts)
    if score is not None and not callable(score):
        raise ConfigError(f'score is {short_repr(score)}: give f(config, params, ids, period).')
    if block is not None: check_positive_integers(block=block)
    block = block or _max_models(config, engine, device, batch_size)
    chunks = _chunks(I, max(1, block//restarts))
    with progress_callback(progress, 'steps') as report:
        for k,part in enumerate(chunks):
            ids = [r*I+i for i in part for r in range(restarts)]
            parts.append(_train_block(replicated, ids, restarts, score or ranking_loss, I,
                seed=seed, engine=engine, device=device, batch_size=batch_size,
                lr=repeat('lr', lr), weight_decay=repeat('weight_decay', weight_decay),
                progress=_block_report(report, k, len(chunks)), **kwargs))
    cat = lambda ts: torch.cat(ts) if torch.is_tensor(ts[0]) else {
        k: cat([t[k] for t in ts]) for k in ts[0]}
    params,loss,order,curves,snaps = map(cat, zip(*(p[:5] for p in parts)))
    return RestartSweep(config, params, loss, order, curves, parts[0][5], snaps, parts[0][6])

def _block_report(report, k, blocks):
    "Progress of block k as a part of the progress of all blocks"
    return report and (lambda done, steps: report(k*steps+done, blocks*steps))

def _train_block(config, ids, restarts, score, period, **kw):
    run = train(config, instances=ids, **kw)
    params = {k: v.cpu() for k,v in run.params.items()}
    fold = lambda t: t.cpu().unflatten(0, (-1,restarts))
    loss = fold(_score(score, config, params, ids, period))
    params,snapshots = ({k: fold(v) for k,v in d.items()} for d in (params, run.snapshots))
    return params,loss,loss.argsort(dim=1),fold(run.loss),snapshots,run.logged,run.engine


# %% [markdown]
# Eight restarts at three densities. The middle density has two kinds of solution, which a single
# run would not have shown:

# %%
brisk = dict(steps=800, batch_size=256, lr=.02, schedule='linear')
config = ToyConfig(2, 1, 3, density=[[1.],[.3],[.05]], importance=[1.,.5])
sweep = train_restarts(config, 8, **brisk)
assert (sweep.loss.gather(1, sweep.order).diff(dim=1)>=0).all()
sweep, sweep.loss.gather(1, sweep.order).numpy().round(4)

# %% [markdown]
# Fewer restarts are the first of many, and blocks change nothing:

# %%
small = train_restarts(config, 3, block=3, **brisk)
test_close(small.params['W'], sweep.params['W'][:,:3], eps=1e-3)
seen = []
again = train_restarts(config, 8, block=8, progress=lambda *x: seen.append(x), **brisk)
test_eq((seen[0], seen[-1]), ((8, 2400), (2400, 2400)))
test_close(again.best()['W'], sweep.best()['W'], eps=1e-3)
again.loss.amin(1), sweep.loss.amin(1)


# %% [markdown]
# ## Exact optima
#
# The best possible model needs no training. `exact_optima` minimises the population loss of all
# instances from many initialisations. Each model has its own quasi-Newton matrix (BFGS on a handful
# of parameters). This suits a sweep better than [one long vector](30_exact_loss.ipynb), because the
# models of a map need very different steps.

# %%
#| export
def _line_search(value, x, d, f, g, rows):
    "Shorten each step until the loss decreases; without a decrease, do not move"
    t = torch.ones_like(f)
    slope = (d*g).sum(-1)
    active = torch.arange(len(f))
    x = x.clone()
    f = f.clone()
    g = g.clone()
    for _ in range(25):
        xn = x[active] + t[active,None]*d[active]
        fn,gn = value(xn, rows[active])
        ok = fn <= f[active] + 1e-4*t[active]*slope[active]
        x[active[ok]] = xn[ok]
        f[active[ok]] = fn[ok]
        g[active[ok]] = gn[ok]
        active = active[~ok]
        if not len(active): break
        t[active] *= .4
    return x,f,g

def _bfgs(H, s, y):
    "Update inverse Hessians, except where the curvature is not positive"
    sy = (s*y).sum(-1)
    r = torch.where(sy>1e-16, 1/sy.clamp(min=1e-16), 0.)[:,None,None]
    Hy = (H@y[...,None])[...,0]
    cross = Hy[:,:,None]*s[:,None]
    yHy = (y*Hy).sum(-1)[:,None,None]
    return H - r*(cross+cross.mT) + (r*r*yHy + r)*s[:,:,None]*s[:,None]

def minimise_bfgs(
    losses,         # f([model, parameter], rows) -> [model], float64, differentiable
    x:torch.Tensor, # Initial parameters, [model, parameter]
    steps=300,
    tol=1e-10,      # Stop a model when a step gains less, relative to its loss, twice in a row
)->tuple:           # Final parameters and losses
    "Minimise many small functions side by side by BFGS"
    def value(t, rows):
        with torch.enable_grad():
            t = t.detach().requires_grad_()
            f = losses(t, rows)
            return f.detach(), torch.autograd.grad(f.sum(), t)[0]
    x = x.clone()
    rows = torch.arange(len(x))
    eye = torch.eye(x.shape[1], dtype=x.dtype)
    f,g = value(x, rows)
    H = eye.repeat(len(x), 1, 1)
    idle = torch.zeros(len(x))
    for _ in range(steps):
        d = -(H[rows]@g[rows][...,None])[...,0]
        reset = ((d*g[rows]).sum(-1) >= 0) | (idle[rows]==1)
        d[reset] = -g[rows][reset]
        H[rows[reset]] = eye
        xn,fn,gn = _line_search(value, x[rows], d, f[rows], g[rows], rows)
        H[rows] = _bfgs(H[rows], xn-x[rows], gn-g[rows])
        idle[rows] = torch.where(f[rows]-fn <= tol*fn, idle[rows]+1, 0.)
        x[rows] = xn
        f[rows] = fn
        g[rows] = gn
        rows = rows[idle[rows]<2]
        if not len(rows): break
    return x,f


# %% [markdown]
# Rosenbrock's function from a hundred starting points:

# %%
valley = lambda t, rows: (1-t[:,0])**2 + 100*(t[:,1]-t[:,0]**2)**2
x,v = minimise_bfgs(valley, 2*torch.randn(100, 2, dtype=torch.float64))
test_close(x, torch.ones(100,2), eps=1e-3)
v.max()


# %%
#| export
@checked
def exact_optima(
    config:ToyConfig, # Tied ReLU or linear models
    restarts=14,
    seed=0,
    starts=None,      # W [start, feature, hidden] to start from instead
    jitter=0.,        # Standard deviation of noise added to `starts`, so that empty is a saddle
    steps=300,
)->RestartSweep:
    "Minimise the population loss of every instance without training"
    if limitation := closed_form_limitation(config): raise ConfigError(limitation)
    c = config
    n = config.n_features
    m = config.n_hidden
    if not c.tied: raise ConfigError('optima is for tied models: use fit_exact.')
    R = restarts if starts is None else len(starts)
    initial = initial_params(replace(replicate_config(c, R), init=1.), seed)['W']
    initial = initial.double().view(R, -1, n, m)
    if starts is not None: initial = torch.as_tensor(starts).double()[:,None] + jitter*initial
    p,imp = (t.repeat(R, 1) for t in (c.densities,c.importances))
    split = lambda t: (t[:,:n*m].view(-1, n, m),
                       t[:,n*m:] if c.bias else t.new_zeros(len(t), n))
    initial = torch.cat([initial.flatten(0,1).flatten(1), torch.zeros(len(p), n*c.bias)], 1)
    x,f = minimise_bfgs(lambda t, rows: exact_loss(*split(t), p[rows], imp[rows],
                                                   c.activation, None,
                  c.features, c.sets, c.signed), initial, steps)
    fold = lambda t: t.detach().unflatten(0, (R,-1)).transpose(0,1).contiguous()
    W,b = map(fold, split(x))
    empty = torch.zeros(c.n_instances, R, 0)
    return RestartSweep(c, dict(W=W, b=b), fold(f), fold(f).argsort(dim=1), empty,
                 empty[0,0].long(), {}, 'exact')


# %% [markdown]
# Three points whose optima are known to five digits from an independent program (Nelder-Mead on the
# same loss):

# %%
config = ToyConfig(2, 1, 3, density=[[.1],[.5],[.8]], importance=[[1,.3],[1,1],[1,1.]])
exact = exact_optima(config)
test_close(exact.loss.amin(1), torch.tensor([.002144,.076282,.105516]), eps=1e-6)
exact.best()['W'][...,0], exact.best()['b']

# %% [markdown]
# ## Phase diagram
#
# The paper's map has the importance $r$ of the last feature on one axis and the density of all
# features on the other, both logarithmic. It shows the length of the last feature's column and
# whether other features use its direction [@elhage2022]. A threshold of one half on both divides
# the map into three regions.

# %%
#| export
regions = 'ignored','dedicated','superposed'

@checked
def classify_region(
    W:torch.Tensor, # [..., feature, hidden]
    feature=-1,     # Index of the feature
)->np.ndarray:      # [...], 0, 1 or 2: an index into `regions`
    "Classify one feature as ignored, dedicated or superposed"
    norm = W.norm(dim=-1)[...,feature]
    shared = interference(W)[...,feature]
    return torch.where(norm<.5, 0, torch.where(shared<.5, 1, 2)).numpy()

def logspace(
    first, last,
    num:int,
)->np.ndarray:
    "Return numbers with equal ratios from first to last"
    return np.geomspace(first, last, num).round(12)

def _axis(name, values):
    t = as_numbers(name, values)
    if t.ndim==1 and len(t): return t.numpy()
    raise ConfigError(f'{name} has shape {list(t.shape)}: give a list of numbers.')

@checked
def phase_grid(
    n_features:int, n_hidden:int,
    density,          # [row]
    importance,       # [column], of the last feature; the others have 1
    **kw,             # Of `ToyConfig`
)->ToyConfig:         # Instances run along a row first
    "Return a config with one model for each point of the map"
    p,r = (_axis(k, v) for k,v in dict(density=density, importance=importance).items())
    p,r = (t.flatten() for t in np.meshgrid(p, r, indexing='ij'))
    imp = np.ones((len(r),n_features)); imp[:,-1] = r
    return ToyConfig(n_features, n_hidden, len(p), density=torch.tensor(p)[:,None],
                     importance=torch.tensor(imp), **kw)


# %% [markdown]
# The theory compares a few models with unit weights. Two features in one dimension: keep the first,
# keep the second, or put both on the line as antipodes. Three features in two dimensions: each way
# to spend one dimension on one feature and the other on one or two, that is, `W` perpendicular to
# (0,0,1), (1,0,0), (0,1,1) or (1,1,0). A dropped feature is predicted by its mean. The paper omits
# a fifth solution of the same kind, perpendicular to (1,1,1): the triangle.

# %%
#| export
_h = 3**.5/2
families = {
    (2,1): {'drop last': [[1],[0]], 'drop first': [[0],[1]], 'antipodal': [[1],[-1]]},
    (3,2): {'drop last': [[1,0],[0,1],[0,0]], 'drop first': [[0,0],[1,0],[0,1]],
            'antipodal with last': [[1,0],[0,1],[0,-1]],
            'antipodal without': [[1,0],[-1,0],[0,1]]}}
triangle = [[1,0],[-.5,_h],[-.5,-_h]]

@checked
def simple_solution_losses(
    config:ToyConfig,
    shapes:dict=None, # name -> W; None: those of `families`
)->tuple:             # Losses [instance, family], W [family, feature, hidden]
    "Return the exact losses of the simple solutions"
    shape = config.n_features,config.n_hidden
    if shapes is None and shape not in families: raise ConfigError(
        f'No simple solutions are listed for {shape[0]} features in {shape[1]} dimensions: '
        'give shapes.')
    W = torch.tensor(list((shapes or families[shape]).values()), dtype=torch.float64)
    p = config.densities
    imp = config.importances
    I = config.n_instances
    mean = lambda w: p/2*(w.norm(dim=-1)==0)
    return torch.stack([exact_loss(w.expand(I,-1,-1), mean(w), p, imp) for w in W], 1), W


# %%
two = phase_grid(2, 1, [.3,.6], [.5,2.])
losses,_ = simple_solution_losses(two)
r = two.importances[:,1]; v = moments(two.densities[:,0])[1]
test_close(losses, torch.stack([r*v, v, (1+r)*two.densities[:,0]**2/6], 1), eps=1e-7)
losses


# %% [markdown]
# `phase_diagram` computes a map in one call: a table with a row for each point, the trained solution, the
# prediction of the simple solutions, and the margin of the best of them. The settings follow the public
# notebook's, except where a map of thousands of models would be slow: 3000 steps at a learning rate that
# falls from 0.005 to zero.

# %%
#| export
def describe_grid(
    config:ToyConfig,
    W,              # [instance, feature, hidden]
    loss=np.nan,    # [instance]
)->pd.DataFrame:
    "Tabulate the last feature at every point of a `phase_grid`"
    W = W.double()
    return pd.DataFrame(dict(
        density=config.densities[:,0], importance=config.importances[:,-1],
        norm=W.norm(dim=-1)[:,-1], shared=interference(W)[:,-1], region=classify_region(W),
        loss=loss, region_name=[regions[k] for k in classify_region(W)]))

@checked
def predict_grid(
    config:ToyConfig,
    shapes:dict=None, # As in `simple_solution_losses`
)->pd.DataFrame:
    "Tabulate the best simple solution at every point; `margin` is its relative lead"
    losses,W = simple_solution_losses(config, shapes)
    low = (losses*(1+1e-9*torch.arange(len(W)))).topk(2, dim=1, largest=False)
    names = list(shapes or families[config.n_features,config.n_hidden])
    lead = low.values[:,1]
    return describe_grid(config, W[low.indices[:,0]], low.values[:,0]).assign(
        solution=[names[i] for i in low.indices[:,0]], margin=1-low.values[:,0]/lead)

@checked
def agrees_with_theory(
    config:ToyConfig,
    regions,            # Region of the last feature, [instance, ...]
    shapes:dict=None, # As in `simple_solution_losses`
)->np.ndarray:        # Same shape, bool
    "Return whether each region is that of the best simple solution, or of one that ties with it"
    losses,W = simple_solution_losses(config, shapes)
    best = (losses <= losses.amin(1, keepdim=True)*(1+1e-6)).numpy()
    predicted = classify_region(W)
    allowed = np.stack([(best & (predicted==k)).any(1) for k in range(3)], 1)
    return np.take_along_axis(allowed, np.asarray(regions).reshape(len(best), -1), 1).reshape(
        np.shape(regions))

@checked
@delegates(train_restarts, but=['data'])
def phase_diagram(
    n_features:int=2, n_hidden:int=1,
    density=None,    # [row]; None: `points` numbers from 1 to 0.01
    importance=None, # [column], of the last feature; None: `points` numbers from 0.1 to 10
    restarts:int=10,
    seed=0,
    activation='relu', bias:bool=True,
    steps:int=3000, lr=5e-3, schedule:str='linear',
    points:int=31,   # Densities and importances of the map, where they are not given
    **kwargs,            # Of `train_restarts`
)->tuple:            # Table and `RestartSweep`
    "Train a map of models and tabulate the best of each point beside the prediction"
    if points<2: raise ConfigError(f'points is {points}: give 2 or more.')
    if density is None: density = logspace(1, .01, points)
    if importance is None: importance = logspace(.1, 10, points)
    config = phase_grid(n_features, n_hidden, density, importance, activation=activation, bias=bias)
    sweep = train_restarts(config, restarts, seed, steps=steps, lr=lr, schedule=schedule, **kwargs)
    rank = sweep.order[:,:1]
    table = describe_grid(config, sweep.best()['W'], sweep.loss.gather(1, rank)[:,0])
    if (n_features,n_hidden) not in families: return table,sweep
    theory = predict_grid(config)[['norm','shared','region','loss','solution','margin']]
    return table.join(theory.add_prefix('theory_')), sweep


# %% [markdown]
# A map of nine points around the corner where all three regions meet. At $r=1$ two solutions tie, and
# `agrees_with_theory` accepts either:

# %%
table,sweep = phase_diagram(density=[.9,.3,.05], importance=[.2,1.,5.], restarts=4, steps=800,
                            lr=.02, batch_size=256)
test_eq(table.theory_region.tolist(), [0,0,1, 0,2,1, 2,2,2])
assert agrees_with_theory(sweep.config, table.region).mean() > .7
test_eq(table.region_name.tolist(), [regions[k] for k in table.region])
table[['density','importance','norm','shared','region_name','theory_solution']].round(2)

# %%
with expect_fail(ConfigError, contains='give shapes'): simple_solution_losses(ToyConfig(5, 2))
with expect_fail(ConfigError, contains='restarts is 0'): train_restarts(ToyConfig(), 0)
for kw,words in [(dict(points=1), 'points is 1'), (dict(points='3'), 'points is'),
                 (dict(densities=.1), "did you mean 'density'?"), (dict(stop=3), "argument 'stop'"),
                 (dict(learning_rate=.1), "did you mean 'lr'?"),
                 (dict(density=['a']), 'density is'),
                 (dict(importance=[[1]]), 'importance has shape [1, 1]'),
                 (dict(activation='rely'), "did you mean 'relu'?")]:
    with expect_fail(ConfigError, contains=words): phase_diagram(**kw)
few,_ = phase_diagram(points=2, restarts=1, steps=3, progress=lambda *x: None)
test_eq(few.density.tolist(), [1, 1, .01, .01])
assert len(str(signature(phase_diagram)))<900


# %% [markdown]
# ## Several processes
#
# The models are independent, so several GPUs or machines need no communication. Each process trains
# its share. Data depend on a model's identity alone, so the joined run is the run that a single
# process would have produced.

# %%
#| export
def instances_of_rank(
    n_instances:int,
    rank=None,  # Index of this process; None: set by the launcher
    world=None, # Number of processes; None: set by the launcher
)->list:        # Identities for `train(..., instances=...)`
    "Return the instances that this process should train"
    rank,world = (a if b is None else b for a,b in zip(process_rank(), (rank, world)))
    return list(range(n_instances))[rank*n_instances//world:(rank+1)*n_instances//world]

def join_runs(
    runs:list, # Shares of one training, in the order of their ranks
)->ToyRun:
    "Join the shares of several processes into one run"
    first = runs[0]
    cat = lambda ts: torch.cat([t.cpu() for t in ts])
    moment = lambda k: tuple(cat(r.moments[k][i] for r in runs) for i in (0,1))
    ids = [i for r in runs for i in r.instances]
    return replace(first, instances=ids, loss=cat(r.loss for r in runs),
        params={k: cat(r.params[k] for r in runs) for k in first.params},
        snapshots={k: cat(r.snapshots[k] for r in runs) for k in first.snapshots},
        moments={k: moment(k) for k in first.moments},
        settings=first.settings|dict(instances=ids))


# %%
config = ToyConfig(5, 2, 7, density=.3)
short = dict(steps=20, batch_size=64)
parts = [train(config, instances=instances_of_rank(7, rank, 3), **short) for rank in range(3)]
test_close(join_runs(parts).W, train(config, **short).W, eps=1e-6)
[r.instances for r in parts], join_runs(parts)
