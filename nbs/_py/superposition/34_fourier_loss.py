# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Losses of many features
#
# > The population loss of twenty to four hundred independent features, by Fourier series.

# %%
#| default_exp superposition.fourier_loss

# %%
#| export
import torch
from moral_sc.foundation.errors import ConfigError
from moral_sc.superposition.exact_loss import closed_form_limitation, exact_loss
from moral_sc.superposition.features import expand
from moral_sc.superposition.integrals import conditional_errors
from moral_sc.superposition.model import ToyConfig

# %%
#| hide
from fastcore.test import *
from time import perf_counter
from moral_sc.superposition.features import moments, Sampler
from moral_sc.superposition.model import batch_loss
torch.manual_seed(0); torch.set_num_threads(1);


# %% [markdown]
# [Corner sums](30_exact_loss.ipynb) end at eleven features, and counting small supports only helps if
# features are sparse. For independent features there is a third way. Output $i$ sees
# $z = \sum_{j\ne i} G_{ij}x_j + G_{ii}x_i + b_i$, a sum of independent numbers, so the
# characteristic function of its first part is a product over features,
#
# $$\varphi_i(u) = \prod_{j\ne i}\bigl(1-p_j+p_j\,\chi(uG_{ij})\bigr),\qquad
# \chi(t) = E\,e^{itx} = \frac{e^{it}-1}{it}.$$
#
# An expectation of $z_+^2$ is then a sum of Fourier coefficients times $\varphi$. The cross term
# $E[x_iz_+]$ needs the transform of $x e^{itx}$ as well.

# %%
#| export
def characteristic_function(
    t:torch.Tensor, # Any shape
    signed=False,   # x uniform on [-1,1] instead of [0,1]
)->torch.Tensor:
    "Mean of $e^{itx}$"
    s = torch.sinc(t/torch.pi if signed else t/(2*torch.pi))
    return s+0j if signed else torch.polar(s, t/2)

def weighted_characteristic_function(t, signed=False):
    "Mean of $x e^{itx}$; arguments as in `wave`"
    small = t.abs()<1e-2
    s = torch.where(small, 1., t)
    if signed: return 1j*torch.where(small, t/3-t**3/30, (s.sin()-s*s.cos())/s**2)
    e = torch.exp(1j*s)
    return torch.where(small, .5+1j*t/3-t**2/8-1j*t**3/30, e/(1j*s) + (e-1)/s**2)


# %% [markdown]
# Both against a mean over a fine grid, at small and large $t$:

# %%
t = torch.tensor([1e-3,.5,-7.], dtype=torch.float64)
x = (torch.arange(100_000)+.5).double()/100_000
for s,g in ((False,x), (True,2*x-1)):
    test_close(characteristic_function(t, s), torch.exp(1j*t[:,None]*g).mean(1), eps=1e-8)
    test_close(weighted_characteristic_function(t, s), (g*torch.exp(1j*t[:,None]*g)).mean(1), eps=1e-8)
characteristic_function(t), weighted_characteristic_function(t)


# %% [markdown]
# On an interval $[L,L+w]$ that holds all of $z$, the function $(s+\beta)_+^q$ has a cosine series
# with coefficients in closed form. They fall as the square of the frequency, or faster.

# %%
#| export
def _integral(q, z, theta, u):
    "Antiderivative of $z^q\\cos\\theta$ where z and theta grow with slopes 1 and u"
    if q==1: return z*theta.sin()/u + theta.cos()/u**2
    return z**2*theta.sin()/u + 2*z*theta.cos()/u**2 - 2*theta.sin()/u**3

def relu_power_mean(
    q:int,             # Power: 1 or 2
    beta:torch.Tensor, # [output]
    low:torch.Tensor, width:torch.Tensor, # [output], the interval
    mass,              # [output], weight of the distribution
    f:torch.Tensor,    # [output, frequency], its transform at $\pi k/w$ times $e^{-iuL}$
)->torch.Tensor:       # [output]
    "Expectation of $(s+\\beta)_+^q$ from the transform of $s$"
    u = _frequencies(width, f.shape[-1])
    ends = torch.stack([torch.minimum(torch.maximum(low, -beta), low+width), low+width])
    z = ends+beta
    level = (z[1]**(q+1)-z[0]**(q+1))/(q+1)
    start,stop = _integral(q, z[...,None], u*(ends-low)[...,None], u)
    return (level*mass + 2*((stop-start)*f.real).sum(-1))/width

def _frequencies(width, K): return torch.arange(1, K+1, dtype=torch.float64)*torch.pi/width[:,None]


# %% [markdown]
# A uniform number on $[0,1]$ has $E(x-\tfrac12)_+^2 = \tfrac1{24}$ and $E(x-\tfrac12)_+=\tfrac18$:

# %%
one = torch.ones(1, dtype=torch.float64)
low = -.5*one
width = 2*one
u = _frequencies(width, 400)
f = characteristic_function(u)*torch.exp(-1j*u*low[:,None])
test_close(relu_power_mean(2, -.5*one, low, width, 1., f), 1/24, eps=1e-6)
test_close(relu_power_mean(1, -.5*one, low, width, 1., f), 1/8, eps=1e-5)
relu_power_mean(2, -.5*one, low, width, 1., f)


# %% [markdown]
# ## What is done exactly
#
# If few features are active, the transform does not fall at all: an atom at zero remains. So the
# supports with none or one of the other features are taken out of the product and treated in closed
# form.
#
# The interval is where the sum can be: between its extremes, or, if that is narrower, within the
# distance at which Bernstein's inequality leaves a probability of $10^{-9}$. A margin keeps the ends
# of the series away from the sum.

# %%
#| export
def _interval(a, p, signed):
    "Ends and width of an interval that holds the sum; a, p [output, feature]"
    low = a.clamp(max=0).sum(-1)
    high = a.clamp(min=0).sum(-1)
    if signed: low,high = -a.abs().sum(-1),a.abs().sum(-1)
    mean = 0 if signed else (p*a).sum(-1)/2
    M = a.abs().amax(-1)*20/3
    far = M + (M**2 + 40*(p*a**2/3).sum(-1)).sqrt()
    low = torch.maximum(low, mean-far)
    high = torch.minimum(high, mean+far)
    margin = (high-low)/5 + 1e-3
    return low-margin,high-low+2*margin

def _small_support_errors(a, own, b, none, one, signed):
    "Errors from supports with no or one other feature: output inactive, output active"
    parts = [conditional_errors(a[:,:0], own, b, signed),
             conditional_errors(a[...,None], own[:,None].expand_as(a), b[:,None].expand_as(a), signed)]
    return [none*zero + (one*single).sum(-1) for zero,single in zip(*parts)]

def _large_support_errors(a, own, b, p, none, one, signed, terms, pi):
    "Errors from all larger supports"
    ends = torch.cat([a,own[:,None]], -1), torch.cat([p,pi[:,None]], -1)
    low,width = _interval(*ends, signed)
    u = _frequencies(width, terms)
    chi = characteristic_function(u[:,None]*a[...,None], signed)                      # output, feature, frequency
    f = (1 + p[...,None]*(chi-1)).prod(1) - none[:,None] - (one[...,None]*chi).sum(1)
    f = f*torch.exp(-1j*u*low[:,None])
    mass = 1-none-one.sum(-1)
    v = u*own[:,None]
    on = lambda q, m, g: relu_power_mean(q, b, low, width, m, g)
    cross = on(1, mass*(0. if signed else .5), f*weighted_characteristic_function(v, signed))
    return on(2, mass, f), mass/3 - 2*cross + on(2, mass, f*characteristic_function(v, signed))


# %%
#| export
def fourier_errors(
    G:torch.Tensor, # [feature, feature], what each output (row) reads, float64
    b:torch.Tensor, # [feature]
    p:torch.Tensor, # [feature]
    rows:torch.Tensor, # Outputs wanted
    signed=False,
    terms=512,      # Frequencies
)->torch.Tensor:    # [output]
    "Expected squared errors of outputs of a ReLU model of independent features"
    at = torch.arange(len(rows)),rows
    a = G[rows].clone()
    q = p.expand(len(rows), -1).clamp(max=1-1e-12).clone()
    own = a[at].clone()
    a[at] = 0.
    q[at] = 0.
    none = (1-q).prod(-1)
    one = none[:,None]*q/(1-q)
    few = _small_support_errors(a, own, b[rows], none, one, signed)
    many = _large_support_errors(a, own, b[rows], q, none, one, signed, terms, p[rows])
    return (1-p[rows])*(few[0]+many[0]) + p[rows]*(few[1]+many[1])

@torch.no_grad()
def exact_loss_large(
    W:torch.Tensor, # [instance, feature, hidden], or one model [feature, hidden]
    b:torch.Tensor, # [instance, feature], or [feature]
    density=1.,     # Number, [feature] or [instance, feature]
    importance=1.,  # Likewise
    signed=False,
    V=None,         # Readout of an untied model, shape of W
    terms=512,      # Frequencies; more of them where features are few and sparse
)->torch.Tensor:    # [instance], float64, summed over features; a scalar for one model
    "Population loss of a ReLU model of many independent features; no gradient"
    one = W.ndim==2
    W,b,V = (t.double()[None] if one else t.double() for t in (W, b, W if V is None else V))
    I,n,_ = W.shape
    p = expand(density, I, n)
    imp = expand(importance, I, n, 'importance')
    rows = torch.arange(n).split(max(1, 2**22//(n*terms)))
    loss = torch.stack([(imp[i]*torch.cat([fourier_errors(V[i]@W[i].T, b[i], p[i], r, signed, terms)
                                           for r in rows])).sum() for i in range(I)])
    return loss[0] if one else loss


# %% [markdown]
# Eight features can still be done by corners. From the sparsest to the densest, one sign or both,
# this is the relative difference with 64 to 512 frequencies.

# %%
def gap(p, signed, terms):
    ours = exact_loss_large(W, b, p, signed=signed, terms=terms)
    return (ours/exact_loss(W, b, p, signed=signed)-1).item()

W = torch.randn(8,3)*.6
b = torch.randn(8)*.2
gaps = {(p,s): [gap(p, s, k) for k in (64,512)] for p in (.001,.05,.3,1.) for s in (False,True)}
assert max(abs(g[1]) for g in gaps.values()) < 1e-6
{k: [f'{x:.0e}' for x in v] for k,v in gaps.items()}

# %% [markdown]
# Different densities, importances and a free readout:

# %%
V = torch.randn(8,3)*.6
p = torch.linspace(.05,1,8)
imp = torch.linspace(2,.1,8)
test_close(exact_loss_large(W, b, p, imp, V=V), exact_loss(W, b, p, imp, V=V), eps=1e-5)


# %% [markdown]
# At two hundred features the oracle is sampling. Three densities, half a million samples each; the last
# column is the difference in standard errors.

# %%
def sampled(W, b, p, runs=25, batch=4000):
    draw = Sampler(expand(p, 1, len(b)).float(), [0], batch)
    mc = torch.stack([batch_loss(W[None], b[None], draw(s), torch.ones(1,len(b)))
                      for s in range(runs)]).double()
    return mc.mean().item(), mc.std().item()/runs**.5

W = torch.randn(200,20)*.25
b = torch.randn(200)*.1
rows = {p: (exact_loss_large(W, b, p).item(), *sampled(W, b, p)) for p in (.003,.05,.5)}
assert all(abs(ours-mc) < 4.5*se for ours,mc,se in rows.values())
{p: (round(ours, 4), round(mc, 4), round((ours-mc)/se, 1)) for p,(ours,mc,se) in rows.items()}

# %% [markdown]
# Orthogonal features that are kept cost nothing, and dropped ones their variance:

# %%
W = torch.eye(200,20)
b = torch.tensor([0.]*20+[.05]*180)
loss = exact_loss_large(W, b, .1)
test_close(loss, 180*moments(.1)[1], eps=2e-5)
loss


# %% [markdown]
# The work grows as $n^2$ for each frequency. Seconds for one model of 20, 80 and 200 features, on one
# thread:

# %%
def seconds(n, m):
    began = perf_counter(); exact_loss_large(torch.randn(n,m)*.2, torch.zeros(n), .1)
    return perf_counter()-began
{n: round(seconds(n, m), 2) for n,m in ((20,5), (80,20), (200,20))}


# %% [markdown]
# ## Whichever fits
#
# `population_loss` takes models in the terms of their configuration and the shortest road: two
# moments for linear outputs, corners for few supports, the series for many independent features.
# Restarts can so be ranked without the luck of a batch.

# %%
#| export
def population_loss(
    config:ToyConfig,
    W:torch.Tensor,   # [instance, feature, hidden]
    b:torch.Tensor,   # [instance, feature]
    V=None, c=None,   # Readout and hidden bias, where they are learned
    instances=None,   # Which instances of `config` these are; None: all
    terms=512,        # Frequencies of the series
)->torch.Tensor:      # [instance], float64
    "Reconstruction loss of trained models without sampling, summed over features"
    if why := closed_form_limitation(config): raise ConfigError(why)
    ids = list(range(config.n_instances)) if instances is None else list(instances)
    p = config.densities[ids]
    imp = config.importances[ids]
    W,b,V,c = (None if t is None else t.detach().cpu().double() for t in (W,b,V,c))
    if c is not None: b = b + torch.einsum('inm,im->in', W if V is None else V, c)
    large = config.features=='independent' and config.activation=='relu' and config.n_features>9
    if large: return exact_loss_large(W, b, p, imp, config.signed, V, terms)
    return exact_loss(W, b, p, imp, config.activation, None, config.features, config.sets,
                      config.signed, V)


# %%
torch.manual_seed(0)
W = torch.randn(2,12,3)*.5
b = torch.randn(2,12)*.1
c = torch.randn(2,3)*.1
config = ToyConfig(12, 3, 2, density=.05, hidden_bias=True)
x = Sampler(config.densities, [0,1], 400_000)(0)
mc = batch_loss(W, b, x, config.importances.float(), c=c)
test_close(population_loss(config, W, b, c=c), mc, eps=.02)
population_loss(config, W, b, c=c), mc

# %% [markdown]
# In a linear model the hidden bias is part of the other; ReLU neurons have no closed form here.

# %%
with expect_fail(ConfigError, contains='held-out samples'):
    population_loss(ToyConfig(12, 3, hidden='relu'), W[:1], b[:1])
