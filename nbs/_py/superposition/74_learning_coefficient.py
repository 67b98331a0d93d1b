# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Learning coefficient
#
# > The local learning coefficient of a minimum is estimated from the exact loss, without sampling noise of the data.

# %%
#| default_exp superposition.learning_coefficient

# %%
#| export
import math, torch
import pandas as pd
from moral_sc.foundation.arguments import checked
from moral_sc.foundation.errors import ConfigError, short_repr
from moral_sc.foundation.statistics import t_interval
from moral_sc.superposition.exact_loss import closed_form_limitation, exact_loss
from moral_sc.superposition.features import as_numbers
from moral_sc.superposition.model import ToyConfig, check_positive_integers

# %%
#| hide
import numpy as np
from fastcore.test import *
from moral_sc.superposition.exact_loss import fit_exact
torch.set_num_threads(1)


# %% [markdown]
# The *local learning coefficient* $\lambda$ of a minimum $w^*$ is the rate at which the volume of parameters with nearly
# the same loss shrinks: the volume within $\epsilon$ of the loss of $w^*$ falls as
# $\epsilon^\lambda(-\log\epsilon)^{\mu-1}$, where $\mu$ is the multiplicity [@watanabe2009; @lau2023]. At a regular
# minimum of $d$ parameters $\lambda=d/2$; a flat direction takes $1/2$ away. Equivalently, with $K(w)=L(w)-L(w^*)$ and
# an inverse temperature $t$,
#
# $$\lambda_t = t\,\mathbb E[K(w)],\qquad w\sim e^{-tK(w)-\gamma|w-w^*|^2/2},\qquad \lambda_t\to\lambda\ (t\to\infty).$$
#
# The estimator of the literature samples this by stochastic gradients of a data set [@lau2023]. The population loss
# of a toy model is [exact](30_exact_loss.ipynb), so that Hamiltonian Monte Carlo with a Metropolis step can be used: it
# has no error other than that of a finite chain and of a finite $t$. All chains run in one batch. The size of the step
# adapts during the first half, which is discarded, and the number of steps is drawn anew for each trajectory.

# %%
#| export
def _gradient(energy, w):
    w = w.detach().requires_grad_()
    value = energy(w)
    return value.detach(), torch.autograd.grad(value.sum(), w)[0]

def _trajectory(energy, w, step, length, g):
    "Propose and accept or reject one trajectory; returns parameters and acceptance of each chain"
    momentum = torch.randn(w.shape, generator=g, dtype=w.dtype)
    before,slope = _gradient(energy, w)
    total = before + momentum.square().sum(-1)/2
    x,p = w, momentum - step/2*slope
    for i in range(length):
        x = x + step*p
        value,slope = _gradient(energy, x)
        p = p - (step if i<length-1 else step/2)*slope
    change = (total-value-p.square().sum(-1)/2).nan_to_num(nan=-math.inf).clamp(max=0)
    accept = torch.rand(len(w), generator=g, dtype=w.dtype).log()<change
    return torch.where(accept[:,None], x, w), change.exp().mean().item()

def sample_near(
    loss,               # Function of parameters [chain, parameter] -> [chain], differentiable
    start:torch.Tensor, # The minimum, [parameter]
    t:float,            # Inverse temperature
    gamma=100.,         # Strength of the Gaussian that keeps chains near the minimum
    chains=64, samples=200, length=20, seed=0,
)->tuple:               # Losses above that of the start [sample, chain], mean acceptance
    "Sample parameters near a minimum by Hamiltonian Monte Carlo"
    start = start.double()
    least = loss(start[None]).detach()
    if least.shape!=(1,) or not torch.isfinite(least).all():
        raise ConfigError(f'loss at the start is {short_repr(least.tolist())}: return a finite '
                          'number for each chain, [chain].')
    energy = lambda w: t*(loss(w)-least) + gamma/2*(w-start).square().sum(-1)
    g = torch.Generator().manual_seed(seed)
    w = start + torch.randn(chains, len(start), generator=g, dtype=torch.float64)/(t+gamma)**.5
    step = 1/(t+gamma)**.5
    losses,rates = [],[]
    for i in range(2*samples):
        steps = int(torch.randint(max(1, length//2), length+1, (), generator=g))
        w,rate = _trajectory(energy, w, step, steps, g)
        if i<samples: step *= math.exp(.1*(rate-.8))
        else:
            losses.append((loss(w)-least).detach())
            rates.append(rate)
    return torch.stack(losses), sum(rates)/samples

@checked
def learning_coefficient(
    loss,               # As in `sample_near`, or a `ToyConfig` of one model
    start,              # The minimum, [parameter]; of a config: W [feature, hidden] and b [feature]
    t=(1e4,1e5),        # Inverse temperatures
    gamma:float=100.,   # Strength of the Gaussian that keeps chains near the minimum
    chains:int=64, samples:int=200, length:int=20, seed=0,
)->pd.DataFrame:        # Row for each t; `lowest` below 0: the start is not a minimum
    "Estimate the local learning coefficient; intervals draw chains"
    check_positive_integers(chains=chains, samples=samples, length=length)
    if isinstance(loss, ToyConfig):
        loss,start = toy_loss(loss), _parameters(loss, start)
    if not (torch.is_tensor(start) and start.ndim==1):
        raise ConfigError('start has no shape [parameter]: give a vector, or W and b of a config.')
    t = as_numbers('t', t).double().reshape(-1)
    if not len(t) or not ((t>0) & torch.isfinite(t)).all() or gamma<0:
        raise ConfigError(f't is {t.tolist()}, gamma is {gamma}: give t above 0, gamma of at '
                          'least 0.')
    rows = []
    for value in t.tolist():
        losses,rate = sample_near(loss, start, value, gamma, chains, samples, length, seed)
        estimate = t_interval(value*losses.mean(0))
        rows.append(dict(t=value, value=estimate.value, low=estimate.low, high=estimate.high,
                         lowest=losses.min().item(), acceptance=rate))
    return pd.DataFrame(rows).set_index('t')

def _parameters(config, start):
    "Return W and b of one model as a vector"
    shapes = [[config.n_features,config.n_hidden], [config.n_features]]
    given = [list(v.shape) for v in start] if isinstance(start, (tuple,list)) else None
    if given!=shapes:
        raise ConfigError(f'start has shapes {given}: give (W, b) with shapes {shapes}.')
    return torch.cat([v.detach().double().flatten() for v in start])

def toy_loss(
    config:ToyConfig, # One model; its importance and distribution
):                    # Function [chain, parameter] -> [chain]
    "Return the population loss as a function of W and b in one vector"
    if limitation := closed_form_limitation(config): raise ConfigError(limitation)
    if config.n_instances>1 or not config.tied or not config.bias:
        raise ConfigError('The parameters are W and b of one model: give a config with '
                          'n_instances=1, tied=True and bias=True.')
    n,m = config.n_features, config.n_hidden
    options = dict(activation=config.activation, features=config.features, sets=config.sets,
                   signed=config.signed)
    def loss(v):
        return exact_loss(v[:,:n*m].reshape(-1, n, m), v[:,n*m:], config.densities[0],
                          config.importances[0], **options)
    return loss


# %% [markdown]
# ## Known coefficients
#
# For monomials the coefficient is known: $\lambda=1/2$ for $w^2$, $1/4$ for $w^4$, and for
# $w_1^{a}w_2^{b}$ the smaller one of $1/a$ and $1/b$, with multiplicity 2 if they are equal [@watanabe2009]. A sum of
# functions of different variables has the sum of their coefficients.

# %%
square = lambda w: w[:,0]**2
cases = {'w²': (square, 1, .5), 'w⁴': (lambda w: w[:,0]**4, 1, .25),
         'w₁²+w₂⁴': (lambda w: w[:,0]**2+w[:,1]**4, 2, .75),
         'w₁⁴w₂²': (lambda w: w[:,0]**4*w[:,1]**2, 2, .25)}
quick = dict(gamma=1., chains=100, samples=60, length=20)
found = {}
for name,(f,d,expected) in cases.items():
    row = learning_coefficient(f, torch.zeros(d), t=[1e4], **quick).iloc[0]
    found[name] = dict(expected=expected, value=row.value, low=row.low, high=row.high)
table = pd.DataFrame(found).T
for name in ('w²','w⁴','w₁²+w₂⁴'): test_close(*table.loc[name,['value','expected']], .05)
table.round(3)


# %% [markdown]
# A product converges slowly, as the smallest power of $t$ or even as $1/\log t$, because most of the volume lies in the
# corners, which a chain seldom visits. We check the definition itself for such cases by
# quadrature in logarithms of the variables: $-\log\int e^{-tK}$ is $\lambda\log t-(\mu-1)\log\log t$ up to a constant.

# %%
def log_volume(powers, t, points=1500):
    "Log of the integral of exp(-t w₁^a w₂^b) over the unit square, by quadrature"
    u = np.linspace(-40, 0, points)
    weight = np.exp(u)*(u[1]-u[0])
    weight[[0,-1]] /= 2
    K = np.exp(powers[0]*u[:,None]+powers[1]*u)
    return np.log((weight[:,None]*weight*np.exp(-t*K)).sum())

def slope(powers, t=(1e16,1e20,1e24)):
    "Coefficient and multiplicity from integrals at three temperatures"
    y = np.array([-log_volume(powers, v) for v in t])
    A = np.stack([np.log(t), -np.log(np.log(t)), np.ones(3)], 1)
    coefficient,excess,_ = np.linalg.solve(A, y)
    return coefficient, excess+1

test_close(slope((4,2)), (.25,1), .02)
test_close(slope((2,2)), (.5,2), .1)
slope((2,2)), slope((4,2))

# %% [markdown]
# ## Polygons
#
# Six features of which one at a time is active, in two dimensions, is the setting of @chen2023. The hexagon and the
# pentagon are regular minima apart from rotation: their Hessian has rank 17, and the coefficient is half of that, 8.5.
# The pentagon's sixth feature has a bias of $1/12$, the mean of the feature.

# %%
config = ToyConfig(6, 2, density=1., features='one-hot')
fit = fit_exact(config, restarts=12, maxiter=300, seed=0)
def minimum(stored):
    "Return W and b of the best minimum that stores so many features"
    count = (fit['W'][0].norm(dim=-1)>.5).sum(-1)
    i = int((count==stored).nonzero()[0])
    return fit['W'][0,i], fit['b'][0,i]

def hessian_rank(W, b, tolerance=1e-3):
    "Return the rank of the Hessian of the loss"
    f = toy_loss(config)
    v = torch.cat([W.flatten(), b]).double()
    H = torch.autograd.functional.hessian(lambda q: f(q[None])[0], v)
    eigenvalues = torch.linalg.eigvalsh(H)
    return int((eigenvalues>tolerance*eigenvalues.max()).sum())

few = dict(t=[1e5], chains=32, samples=40, length=12)
hexagon,pentagon = minimum(6),minimum(5)
polygons = pd.concat({name: learning_coefficient(config, W, **few).assign(
    half_rank=hessian_rank(*W)/2) for name,W in dict(hexagon=hexagon, pentagon=pentagon).items()})
test_eq(polygons.half_rank.tolist(), [8.5,8.5])
assert ((polygons.value-polygons.half_rank).abs()<.5).all()
polygons.round(3)

# %% [markdown]
# With a negative bias the sixth feature is dead: its output is 0, and its column and bias can be moved without any change
# of the loss. These are three more flat directions, so that the coefficient is 7. The loss is higher.

# %%
W,b = pentagon
dead = torch.where(W.norm(dim=-1)<.5, -.5, b)
flat = learning_coefficient(config, (W*(W.norm(dim=-1)>.5)[:,None], dead), **few)
assert abs(flat.value.item()-7)<.5
flat.round(3)

# %% [markdown]
# The numbers of @chen2023 agree: length $l$ of the stored columns and their bias, loss, and coefficient of the hexagon, of the
# pentagon, and of the pentagon with a dead feature. We could not read the paper's own tables; these are its numbers as a
# public reimplementation [@arcllc] and the notes of another quote them, and the two agree.

# %%
published = pd.DataFrame(dict(length=[1.32053,1.17046,1.17046], bias=[-.61814,-.2823,-.2823],
                              loss=[.04819,.0618,.06874], coefficient=[8.5,8.5,7]),
                         index=['hexagon','pentagon','dead feature'])

def polygon_numbers(W, b):
    "Return length and bias of the stored columns, and the exact loss"
    stored = W.norm(dim=-1)>.5
    loss = exact_loss(W, b, 1., features='one-hot')
    return [W.norm(dim=-1)[stored].mean(), b[stored].mean(), loss]

rows = [polygon_numbers(*hexagon), polygon_numbers(*pentagon), polygon_numbers(W, dead)]
ours = pd.DataFrame(torch.tensor(rows).numpy(), published.index, ['length','bias','loss'])
ours['coefficient'] = [*polygons.value, flat.value.item()]
assert ((ours.loss-published.loss).abs()<6e-6).all()
assert ((ours[['length','bias']]-published[['length','bias']]).abs()<1e-4).all(axis=None)
assert ((ours.coefficient-published.coefficient).abs()<.5).all()
pd.concat(dict(ours=ours, published=published), axis=1).round(5)

# %%
with expect_fail(ConfigError, contains='give a vector'): learning_coefficient(square, [0.])
with expect_fail(ConfigError, contains='chains is 0'):
    learning_coefficient(square, torch.zeros(1), chains=0)
for t in (0, (), -1., float('nan')):
    with expect_fail(ConfigError, contains='give t above 0'):
        learning_coefficient(square, torch.zeros(1), t=t)
with expect_fail(ConfigError, contains='for each chain'):
    learning_coefficient(lambda w: w.sum(-1)*math.nan, torch.zeros(1))
with expect_fail(ConfigError, contains='give (W, b)'): learning_coefficient(config, (W.T, b))
for other in (dict(n_instances=2), dict(tied=False), dict(bias=False), dict(target='abs')):
    with expect_fail(ConfigError): toy_loss(ToyConfig(3, 2, **other))
