# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Mathematical understanding: a ReLU makes negative interference free
#
# > "Mathematical Understanding", with exact losses: if one feature is active at a time, a ReLU model stores 2m features in m dimensions without loss, but not 2m + 1.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds; cpu: finer grids and more starts, minutes; gpu: finer still
seed = 0         # everything random follows from it

# %%
#| hide
import numpy as np, pandas as pd, torch
from moral_sc.foundation.figures import COLOURS
from moral_sc.lab.claims import record
from moral_sc.lab.scales import at_scale
from moral_sc.superposition.exact_loss import (exact_loss, fit_exact, minimise_lbfgs,
                                               relu_errors, supports)
from moral_sc.superposition.features import expand, moments
from moral_sc.superposition.feature_graphs import overall_shape
from moral_sc.superposition.model import ToyConfig
from moral_sc.superposition.plots import plot_curves
from moral_sc.superposition.polytope_gain import one_sparse_loss
from moral_sc.superposition.theory import linear_optimum

# %%
size = at_scale(scale, quick=dict(points=7, maxiter=150, restarts=4, starts=20, linear=2),
            cpu=dict(points=25, maxiter=400, restarts=8, starts=200, linear=20),
            gpu=dict(points=49, maxiter=2000, restarts=100, starts=1000, linear=100))
size


# %% [markdown]
# ## Mathematical understanding
#
# > A linear model's loss is a sum of two terms: what each feature gains by being represented, and what
# > it loses to interference with the others. Interference always costs, so the best such model drops
# > features. With a ReLU the loss can be expanded in the number of features active at once, and in
# > its first term negative interference costs nothing [@elhage2022].
#
# The paper gives these losses up to a constant. We compute the
# [expectations](../../superposition/30_exact_loss.ipynb) exactly, so each term has a value.
#
# ### A linear model
#
# With the best bias, $b = (1-G)\mu$, and equal densities, the loss is exactly
#
# $$L = v(p)\Bigl[\sum_i I_i\,(1-\|W_i\|^2)^2 + \sum_i\sum_{j\ne i} I_i\,(W_i\cdot W_j)^2\Bigr],
# \qquad v(p) = \tfrac p3-\tfrac{p^2}4.$$
#
# The first sum is the part of each feature's own signal that is lost, and the second is its
# interference. Sparsity enters only through the factor $v(p)$, so it cannot change which model is
# best. The table checks the formula on random weights.

# %%
def linear_terms(W, p, importance):
    "Return the lost own signal and the interference, summed over features"
    G = W@W.mT
    I = torch.as_tensor(importance, dtype=torch.float64)
    own = (1-G.diagonal())**2
    v = moments(p)[1]
    return v*(I*own).sum(), v*(I*((G**2).sum(1)-G.diagonal()**2)).sum()

torch.manual_seed(seed)
imp = [.7**i for i in range(20)]
W = torch.randn(20, 5, dtype=torch.float64)*.3
rows = {}
for p in (1.,.3,.01):
    b = (torch.eye(20)-W@W.mT)@torch.full((20,), p/2, dtype=torch.float64)
    loss = exact_loss(W, b, p, imp, activation='linear')
    assert abs(sum(linear_terms(W, p, imp))/loss - 1) < 1e-9
    rows[p] = [t.item() for t in (*linear_terms(W, p, imp), loss)]
pd.DataFrame(rows, index=['own','interference','loss']).T.rename_axis('density')

# %% [markdown]
# Minimising this loss is principal component analysis. From every start and at every density a
# numerical minimiser ends at $v(p)\sum_{i>m}I_i$, with the projector on the $m$ most important
# features. The table has the largest relative difference from this loss and the largest entry of
# $W^\top W$ minus that projector.

# %%
densities = [1.,.3,.1,.01]
fit = fit_exact(ToyConfig(20, 5, 4, density=[[p] for p in densities], importance=imp,
                          activation='linear'), restarts=size['linear'], seed=seed)
floor = torch.tensor([linear_optimum(p, imp, 5) for p in densities])
top = torch.diag((torch.arange(20)<5).double())
pca = pd.DataFrame(dict(loss=(fit['loss']/floor[:,None]-1).abs().amax(1),
    gram=(fit['W']@fit['W'].mT-top).abs().amax((1,2,3))), index=pd.Index(densities, name='density'))
assert pca.loss.max() < 1e-4
pca

# %% [markdown]
# ## Negative interference
#
# Two features share one dimension. The first keeps length one, and the second grows in the opposite
# direction, $W=(1,-s)$; each model has its best bias. @fig-path compares the losses along this path.
# For the linear model every step costs. For a ReLU model with sparse features the second feature
# lowers the loss, slowly at first and then steeply; with dense features it does not.

# %%
steps = torch.linspace(0, 1, 2*size['points'], dtype=torch.float64)
def along(p, activation):
    "Return the loss along the path, at the best bias of each point, relative to its start"
    W = torch.stack([torch.ones_like(steps), -steps], -1)[...,None]
    f = lambda b: exact_loss(W, b, p, activation=activation)
    start = torch.full((len(steps),2), p/4, dtype=torch.float64)
    best = f(minimise_lbfgs(lambda b: f(b)/p, start))
    return (best/best[0]).tolist()


# %%
#| label: fig-path
#| fig-cap: Loss of two equally important features in one dimension as the second is added as an antipode of length s, relative to the loss without it.
path = {'linear, any density': along(.3, 'linear')} | {f'ReLU, p = {p}': along(p, 'relu')
                                                      for p in (.8,.3,.05)}
plot_curves(steps, path, 'length s of the second feature', 'relative loss',
            colours={'linear, any density': COLOURS['linear']})

# %%
assert path['linear, any density'][-1] > 1 and path['ReLU, p = 0.05'][-1] < .1
{k: round(v[-1], 3) for k,v in path.items()}


# %% [markdown]
# ### Terms by the number of active features
#
# The loss of the ReLU model is $\sum_k P(k)\,L_k$, where $L_k$ is the mean loss over inputs with
# exactly $k$ active features. A sum over [supports](../../superposition/30_exact_loss.ipynb) gives
# each part. We take five equal features in two dimensions and, at each density, the best model found
# from many starts.

# %%
def by_active(W, b, p):
    "Return what inputs with k = 0, 1, ... active features add to the loss"
    active,weight = supports(expand(p, 1, len(b)))
    counts = active.sum(1)
    part = lambda k: relu_errors((W@W.mT)[None], b[None], active[counts==k], weight[:,counts==k])
    return torch.stack([part(k).sum() for k in range(len(b)+1)])

p = np.geomspace(1, .005, size['points'])
config = ToyConfig(5, 2, len(p), density=torch.tensor(p)[:,None])
best = fit_exact(config, size['restarts'], seed, maxiter=size['maxiter'])
parts = torch.stack([by_active(W[0], b[0], q) for W,b,q in zip(best['W'], best['b'], p)])
assert ((parts.sum(1)-best['loss'][:,0]).abs() < 1e-9).all()
share = parts/parts.sum(1, keepdim=True)
pd.DataFrame(dict(shape=[overall_shape(W[0]) for W in best['W']], loss=best['loss'][:,0],
                  one_active=share[:,1]),
             index=pd.Index(p.round(4), name='density'))[::max(1, len(p)//8)]

# %%
#| label: fig-active
#| fig-cap: Share of the loss of the best model (five equal features, two dimensions) that comes from inputs with none or one, two, and more active features.
lines = {'none or one active': share[:,:2].sum(1), 'two': share[:,2],
         'three or more': share[:,3:].sum(1)}
plot_curves(1/p, lines, 'sparsity 1/p', 'share of the loss', logx=True)


# %% [markdown]
# @fig-active shows when the expansion may be cut after its first term: only when features are so
# sparse that pairs are rare *among the inputs that contribute to the loss*. The kink is where two
# digons give way to the pentagon. At $k=1$ the digons lose only the fifth feature, which they do not
# store. The pentagon stores it, and loses a little by interference at $k=1$ already.
#
# ## How many features are free
#
# The first term is, for one active feature $i$ with value $x$ [@elhage2022],
#
# $$L_1 \propto \sum_i\int_0^1\Bigl[I_i\bigl(x-\mathrm{ReLU}(\|W_i\|^2x+b_i)\bigr)^2 +
# \sum_{j\ne i}I_j\,\mathrm{ReLU}(W_i\cdot W_jx+b_j)^2\Bigr]dx.$$
#
# At $b=0$ and unit length it is zero exactly if no two features point into the same half-space,
# $W_i\cdot W_j\le0$. At most $2m$ vectors in $m$ dimensions satisfy this. (Take one of them out, and
# project the others on the space orthogonal to it: inner products can only fall, at most one vector,
# its antipode, vanishes, and the rest live in $m-1$ dimensions.) Could a bias or another length allow
# more? We minimise $L_1$ over all parameters, from many starts, for $2m$ features and for one more.

# %%
def lowest(n, m):
    "Return the lowest one-sparse loss found, and the shape of that model"
    start = torch.randn(size['starts'], n*m+n, generator=torch.Generator().manual_seed(seed))
    split = lambda t: (t[:,:n*m].view(-1, n, m), t[:,n*m:])
    t = minimise_lbfgs(lambda t: one_sparse_loss(*split(t)), start.double()*.5, 500)
    loss = one_sparse_loss(*split(t))
    return loss.min().item(), overall_shape(split(t)[0][loss.argmin()])

free = pd.DataFrame([(m, n, *lowest(n, m)) for m in range(1,5) for n in (2*m,2*m+1)],
                    columns='m features loss shape'.split())
free

# %% [markdown]
# As $m$ antipodal pairs, $2m$ features lose nothing. With one more feature the loss is positive for
# $m=1$ to 4, whatever the bias. This is consistent with [many equal
# features](../../superposition/33_polytope_gain.ipynb), which stay longest at two features for each
# dimension, $D=\tfrac12$. In the plane the best arrangement of five is the pentagon. In three
# dimensions seven features could form a pentagon and a digon, with the same loss as in the plane; the
# best shape found is another and costs less, because the loss is spread over all seven. In four
# dimensions the loss of nine is lower still.
#
# This page does not show that training finds these optima, or that real features are independent
# and uniform. It is about the loss, not about how it is reached.
#
# ## Claims
#
# Criteria are in `data/claims/superposition_basics.toml`. Both values are computed and not sampled,
# so they have no interval.

# %%
pairs,one_more = (free.loss[free.features-2*free.m==k] for k in (0,1))
record(scale, {'superposition/free-up-to-two': pairs.max(),
               'superposition/not-free-beyond-two': one_more.min()})
