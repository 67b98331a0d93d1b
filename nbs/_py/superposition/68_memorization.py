# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Memorization
#
# > Toy models trained on finite data sets store points or features.

# %%
#| default_exp superposition.memorization

# %%
#| export
import numpy as np, torch
from dataclasses import replace
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from moral_sc.foundation.arguments import checked
from moral_sc.foundation.errors import ConfigError
from moral_sc.foundation.figures import COLOURS
from moral_sc.superposition.engines.simd import cached_njit
from moral_sc.superposition.features import as_numbers, Sampler
from moral_sc.superposition.geometry import feature_dimensionality
from moral_sc.superposition.model import ToyConfig, batch_loss
from moral_sc.superposition.training import ToyRun, check_finite, engines, append_loss, train

# %%
#| hide
from time import perf_counter
from fastcore.test import *
from moral_sc.foundation.errors import ModelError
from moral_sc.superposition.geometry import polygon
torch.set_num_threads(1)

# %% [markdown]
# With fresh samples at every step a model can only learn features. With $T$ points, shown in one
# batch at every step, it can memorise the points instead [@henighan2023double]. The config options
# are `points=T`, and `unit=True` because every input there has length one.
#
# ## Sparse engine
#
# Ten features of a thousand are active in a point. Only the decoder is dense, and with few hidden
# dimensions it is one loop over the features for each point. The engine below runs this loop in
# compiled, vectorised code and reads the inputs only where they are not zero.

# %%
#| export
_loose = {'reassoc','contract','arcp','nsz'} # Sums in any order, but nan stays nan

@cached_njit(fastmath=_loose, nogil=True)
def finite_gradient(
    W, b,              # [hidden, feature], [feature]
    start, cols, vals, # Points as sparse rows: start of each row, its features, their values
    dW, db,            # Written here: gradient of the loss
    x, e,              # Scratch memory, [feature]; x is zero
):
    "Compute the loss of a finite data set and its gradient"
    m,n = W.shape
    T = len(start)-1
    loss = 0.
    zero = np.float32(0)
    for i in range(n): db[i] = 0 # Loops: assignments to whole arrays take seconds to compile
    for k in range(m):
        for i in range(n): dW[k,i] = 0
    h = np.zeros(m, np.float32)
    dh = np.zeros(m, np.float32)
    for t in range(T):
        for k in range(m): h[k] = 0
        for a in range(start[t], start[t+1]):
            x[cols[a]] = vals[a]
            for k in range(m): h[k] += W[k,cols[a]]*vals[a]
        for i in range(n): e[i] = b[i]
        for k in range(m):
            hk = h[k]
            w = W[k]
            for i in range(n): e[i] += hk*w[i]
        point_loss = zero
        for i in range(n):
            active = e[i]>0
            d = (e[i] if active else zero) - x[i]
            point_loss += d*d
            e[i] = d if active else zero
            db[i] += e[i]
        loss += point_loss
        for k in range(m):
            hk = h[k]
            w = W[k]
            g = dW[k]
            s = zero
            for i in range(n):
                g[i] += hk*e[i]
                s += e[i]*w[i]
            dh[k] = s
        for a in range(start[t], start[t+1]):
            x[cols[a]] = 0
            for k in range(m): dW[k,cols[a]] += dh[k]*vals[a]
    scale = np.float32(2/T)
    for i in range(n): db[i] *= scale
    for k in range(m):
        for i in range(n): dW[k,i] *= scale
    return loss/T


# %% [markdown]
# The update is AdamW, as in [training](40_training.ipynb), with the loss divided by $n$.

# %%
#| export
@cached_njit(fastmath=_loose, nogil=True)
def _update(theta, grad, mean, square, rate, decay_factor, root, n):
    for i in range(len(theta)):
        g = grad[i]/n
        mean[i] += (g-mean[i])*np.float32(.1)
        square[i] = square[i]*np.float32(.999) + g*g*np.float32(.001)
        theta[i] = theta[i]*decay_factor - rate*mean[i]/(np.sqrt(square[i])*root + np.float32(1e-8))

@cached_njit(fastmath=_loose, nogil=True)
def _advance(theta, mean, square, n, start, cols, vals, schedule_table, losses):
    "Train one model; theta [hidden+1, feature] has the bias as its last row"
    grad = np.zeros_like(theta)
    x = np.zeros(n, np.float32)
    e = np.zeros(n, np.float32)
    for t in range(len(schedule_table)):
        losses[t] = finite_gradient(theta[:-1], theta[-1], start, cols, vals, grad[:-1],
                                    grad[-1], x, e)
        if not np.isfinite(losses[t]):
            for s in range(t, len(losses)): losses[s] = losses[t]
            return
        _update(theta.ravel(), grad.ravel(), mean.ravel(), square.ravel(),
                schedule_table[t,0], schedule_table[t,1], schedule_table[t,2], np.float32(n))

def _to_sparse_rows(x):
    "Convert points [point, feature] to row starts, features and values"
    x = np.asarray(x)
    rows,cols = np.nonzero(x)
    start = np.searchsorted(rows, np.arange(len(x)+1))
    return start,cols,x[rows,cols].astype(np.float32)

def sparse_engine(run:ToyRun, to:int, batch, lr, decay, schedule, log:set, snap:set):
    "Train plain models of equal features on a finite data set"
    _check_config(run.config, run.W.device)
    points = [_to_sparse_rows(x) for x in batch(0)]
    of_instance = lambda v, i: float(v.flatten()[i]) if torch.is_tensor(v) else float(v)
    for end in sorted(t for t in {s+1 for s in log} | snap | {to} if run.step<t<=to):
        tables = [[_factors(s, of_instance(lr,i)*schedule(s/run.steps), of_instance(decay,i))
                   for s in range(run.step, end)] for i in range(len(points))]
        last = torch.tensor([_train_one(run, i, p, table)
                             for i,(p,table) in enumerate(zip(points, tables, strict=True))])
        check_finite(run, end-1, last)
        run.step = end
        if end-1 in log: append_loss(run, end-1, last)
        if end in snap: run.snapshots[end] = run.W.clone()

def _check_config(config, device):
    "Raise an error for configs that this engine does not support"
    plain = replace(ToyConfig(), **{k: getattr(config, k) for k in
        ('n_features','n_hidden','n_instances','density','init','points','unit','signed')})
    unsupported = [k for k,v in plain.to_dict().items() if k not in ('features','sets')
           and v!=config.to_dict()[k]]
    unsupported += [] if config.points else ['points']
    if unsupported or device.type!='cpu': raise ConfigError(
        'engine sparse does not support this '
        f'{unsupported[0] if unsupported else "device"}: use eager.')

def _train_one(run, i, points, schedule_table):
    "Train one model for some steps and return its last loss"
    parts = run.params, *({k: v[j] for k,v in run.moments.items()} for j in (0,1))
    state = [_pack_params(d, i) for d in parts]
    losses = np.zeros(len(schedule_table))
    _advance(*state, run.config.n_features, *points, np.array(schedule_table, np.float32), losses)
    for d,flat in zip(parts, state, strict=True): _unpack_params(d, i, flat)
    return losses[-1]

def _factors(s, rate, decay):
    "Return the corrected learning rate, the factor of the decay, the correction of the root"
    return rate/(1-.9**(s+1)), 1-rate*decay, (1-.999**(s+1))**-.5

def _pack_params(d, i): return np.ascontiguousarray(
    np.vstack([d['W'][i].numpy().T, d['b'][i].numpy()[None]]), dtype=np.float32)

def _unpack_params(d, i, flat):
    d['W'][i] = torch.from_numpy(flat[:-1].T.copy())
    d['b'][i] = torch.from_numpy(flat[-1].copy())

engines['sparse'] = sparse_engine

# %% [markdown]
# Comparison with the eager engine, two models on twenty points each, to single-precision rounding:

# %%
small = ToyConfig(60, 2, 2, density=.05, points=20, unit=True)
how = dict(steps=300, lr=.01, schedule='warmup-cosine')
slow,fast = (train(small, engine=e, **how) for e in ('eager','sparse'))
test_close(slow.W, fast.W, eps=1e-4); test_close(slow.loss, fast.loss, eps=1e-5)
(slow.W-fast.W).abs().max().item(), fast

# %% [markdown]
# A run that is stopped and resumed gives the same result. Unsupported configs raise an error:

# %%
half = train(small, engine='sparse', stop=150, **how)
test_close(train(small, engine='sparse', resume=half, **how).W, fast.W, eps=1e-6)
unsupported = dict(points=None), dict(importance=.9), dict(tied=False), dict(activation='gelu')
for option in unsupported:
    with expect_fail(ConfigError, contains='engine sparse does not support'):
        train(replace(small, **option), engine='sparse', steps=1)
with expect_fail(ModelError, contains='not finite'): train(small, engine='sparse', lr=1e30)

# %% [markdown]
# Milliseconds per step with a thousand features and three hundred points. The [numba
# engine](engines/30_numba_cpu.ipynb) draws the points again at every step; here they are stored.

# %%
large = ToyConfig(1000, 2, density=.01, points=300, unit=True)
def milliseconds(engine, steps=200):
    train(large, steps=2, engine=engine)
    began = perf_counter(); train(large, steps=steps, engine=engine)
    return round((perf_counter()-began)*1e3/steps, 2)
{e: milliseconds(e) for e in ('eager','numba','sparse')}


# %% [markdown]
# ## Points or features
#
# A point is stored as its hidden vector $h_i = W x_i$, which has a
# [dimensionality](50_geometry.ipynb) like a column of $W$. For a set of vectors, most of which may
# have length zero, `mean_dimensionality` is the mean weighted by squared length.

# %%
#| export
def mean_dimensionality(
    v:torch.Tensor, # [..., vector, hidden]
)->torch.Tensor:    # [...]
    "Return the mean dimensionality of a set of vectors, weighted by squared length"
    weight = v.square().sum(-1)
    return (feature_dimensionality(v)*weight).sum(-1)/weight.sum(-1).clamp(min=1e-12)

def successive_angles(
    v:torch.Tensor, # [vector, 2]
)->np.ndarray:      # [vector], add up to 360
    "Return the degrees from each vector to the next"
    angles = np.sort(np.degrees(np.arctan2(*np.asarray(v, float).T[::-1])))
    return np.diff(angles, append=angles[:1]+360)


# %%
five = torch.cat([polygon(5), torch.zeros(9,2)])
test_close(mean_dimensionality(five), torch.tensor(.4), eps=1e-6)
test_close(successive_angles(polygon(5)), 72*np.ones(5))
gaussian = torch.randn(1000, 2)
mean_dimensionality(five), mean_dimensionality(gaussian), successive_angles(polygon(5)+.02)


# %% [markdown]
# ## Sizes of the data set
#
# `memorization_sweep` trains models on data sets of several sizes and computes the loss on the set and on
# fresh inputs.

# %%
#| export
def data_points(
    config:ToyConfig,
    seed=0,
    count=None, # None: the training points; else the number of fresh inputs
)->torch.Tensor: # [instance, point, feature]
    "Return the training set, or fresh inputs"
    fresh = count is not None
    return Sampler(config.densities, range(config.n_instances), count or config.points,
                   seed+10_007*fresh, unit=config.unit)(0)

@checked
def memorization_sweep(
    points,          # Sizes of the data set
    n_features=1000,
    n_hidden=2,
    active=10,       # Mean number of active features
    starts=1,        # Independent models and data sets for each size
    seed=0,
    tests=2000,      # Fresh inputs for the test loss
    init='xavier',
    engine='sparse',
    keep=False,      # Return W and h of the first model, too
    **kw,            # Arguments of `train`
)->list:             # One row for each size and model
    "Train on finite data sets and measure losses and dimensionalities"
    base = ToyConfig(n_features, n_hidden, starts, density=active/n_features, unit=True,
                     init=init)
    rows = []
    for T in as_numbers('points', points).reshape(-1).long().tolist():
        config = replace(base, points=T)
        run = train(config, seed=seed, engine=engine, **dict(schedule='warmup-cosine') | kw)
        rows += _measure(config, run, seed, tests, keep)
    return rows

def _measure(config, run, seed, tests, keep):
    importance = torch.ones(config.n_instances, config.n_features)
    W = run.W.cpu()
    b = run.b.cpu()
    points = data_points(config, seed)
    fresh = data_points(config, seed, tests)
    loss = [batch_loss(W, b, x, importance).tolist() for x in (points,fresh)]
    h = points@W
    columns = zip(*loss, mean_dimensionality(h).tolist(), mean_dimensionality(W).tolist(),
                  strict=True)
    rows = [dict(T=config.points, m=config.n_hidden, start=i, train=a, test=t, points=p,
                 features=f) for i,(a,t,p,f) in enumerate(columns)]
    if keep: rows[0] |= dict(W=W[0], h=h[0])
    return rows


# %%
rows = memorization_sweep([5,400], n_features=100, active=5, steps=1500, lr=.02, starts=2,
                          keep=True)
assert rows[0]['points'] > rows[0]['features'] and rows[-1]['features'] > rows[-1]['points']
[{k: round(v, 3) for k,v in r.items() if k not in 'Wh'} for r in rows]


# %% [markdown]
# ## Figures
#
# The features above and the points below, one pair for each size of the data set.

# %%
#| export
@checked
def plot_memory(
    models:list, # Rows of `memorization_sweep` with W and h
)->go.Figure:
    "Plot columns of W above hidden vectors of the points, in the plane"
    fig = make_subplots(2, len(models), vertical_spacing=.04, horizontal_spacing=.02,
        subplot_titles=[f"T = {r['T']}" for r in models],
        row_titles=['features','points'])
    for c,r in enumerate(models, 1):
        for row,k,colour in ((1,'W','relu'),(2,'h','linear')):
            v = r[k]
            colour = COLOURS[colour]
            v = v[v.norm(dim=-1)>.02*v.norm(dim=-1).max()][:400]
            v = (v/v.norm(dim=-1).max()).numpy().round(3)
            lines = np.stack([0*v,v,v*np.nan], 1).reshape(-1, 2)
            fig.add_scatter(x=lines[:,0], y=lines[:,1], mode='lines', hoverinfo='skip',
                            row=row, col=c, line=dict(color=colour, width=1))
            fig.add_scatter(x=v[:,0], y=v[:,1], mode='markers', row=row, col=c,
                            marker=dict(color=colour, size=4))
            axis = (row-1)*len(models)+c
            fig.update_yaxes(scaleanchor=f'x{axis if axis>1 else ""}', row=row, col=c)
    fig.update_xaxes(range=[-1.1,1.1], visible=False)
    fig.update_yaxes(range=[-1.1,1.1], visible=False)
    return fig.update_layout(showlegend=False, height=320,
                             margin=dict(l=5, r=30, t=40, b=5))


# %%
#| label: fig-memory
#| fig-cap: Few points are stored as points, many as features; lengths relative to the longest
plot_memory(rows[::2])
