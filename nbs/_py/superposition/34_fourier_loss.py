# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Fourier loss
#
# > Fourier series give the population loss of up to four hundred independent features.

# %%
#| default_exp superposition.fourier_loss

# %%
#| export
import torch
from moral_sc.foundation.arguments import checked
from moral_sc.foundation.errors import ConfigError
from moral_sc.superposition.exact_loss import closed_form_limitation, exact_loss
from moral_sc.superposition.features import as_numbers, expand
from moral_sc.superposition.integrals import conditional_errors
from moral_sc.superposition.model import ToyConfig, weights_of

# %%
#| hide
from fastcore.test import *
from time import perf_counter
from moral_sc.superposition.features import moments, Sampler
from moral_sc.superposition.model import batch_loss
torch.manual_seed(0); torch.set_num_threads(1);


# %% [markdown]
# [Corner sums](30_exact_loss.ipynb) are limited to eleven features, and truncation to small
# supports needs sparse features. For independent features there is a third method. Output $i$ reads
# $z = \sum_{j\ne i} G_{ij}x_j + G_{ii}x_i + b_i$, a sum of independent numbers, so the
# characteristic function of its first part is a product over features,
#
# $$\varphi_i(u) = \prod_{j\ne i}\bigl(1-p_j+p_j\,\chi(uG_{ij})\bigr),\qquad
# \chi(t) = E\,e^{itx} = \frac{e^{it}-1}{it}.$$
#
# The expectation of $z_+^2$ is then a sum of Fourier coefficients times $\varphi$. The cross term
# $E[x_iz_+]$ also needs the transform of $x e^{itx}$.

# %%
#| export
def characteristic_function(
    t:torch.Tensor, # Any shape
    signed=False,   # x uniform on [-1,1] instead of [0,1]
)->torch.Tensor:
    "Return the mean of $e^{itx}$"
    s = torch.sinc(t/torch.pi if signed else t/(2*torch.pi))
    return s+0j if signed else torch.polar(s, t/2)

def weighted_characteristic_function(t, signed=False):
    "Return the mean of $x e^{itx}$; arguments as in `characteristic_function`"
    small = t.abs()<1e-2
    s = torch.where(small, 1., t)
    if signed: return 1j*torch.where(small, t/3-t**3/30, (s.sin()-s*s.cos())/s**2)
    e = torch.exp(1j*s)
    return torch.where(small, .5+1j*t/3-t**2/8-1j*t**3/30, e/(1j*s) + (e-1)/s**2)


# %% [markdown]
# Comparison with a mean over a fine grid, at small and large $t$:

# %%
t = torch.tensor([1e-3,.5,-7.], dtype=torch.float64)
x = (torch.arange(100_000)+.5).double()/100_000
for s,g in ((False,x), (True,2*x-1)):
    test_close(characteristic_function(t, s), torch.exp(1j*t[:,None]*g).mean(1), eps=1e-8)
    weighted = weighted_characteristic_function(t, s)
    test_close(weighted, (g*torch.exp(1j*t[:,None]*g)).mean(1), eps=1e-8)
characteristic_function(t), weighted_characteristic_function(t)


# %% [markdown]
# On an interval $[L,L+w]$ that contains all of $z$, the function $(s+\beta)_+^q$ has a cosine
# series with coefficients in closed form. They decrease as the square of the frequency or faster.

# %%
#| export
def _integral(q, z, theta, u):
    "Return the antiderivative of $z^q\\cos\\theta$ where z and theta have slopes 1 and u"
    if q==1: return z*theta.sin()/u + theta.cos()/u**2
    return z**2*theta.sin()/u + 2*z*theta.cos()/u**2 - 2*theta.sin()/u**3

def relu_power_mean(
    q:int,             # Power: 1 or 2
    beta:torch.Tensor, # [output]
    low:torch.Tensor, width:torch.Tensor, # [output], the interval
    mass,              # [output], weight of the distribution
    f:torch.Tensor,    # [output, frequency], its transform at $\pi k/w$ times $e^{-iuL}$
)->torch.Tensor:       # [output]
    "Return the expectation of $(s+\\beta)_+^q$ from the transform of $s$"
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
# ## Small supports and interval
#
# If few features are active, the transform does not decay, because an atom at zero remains. The
# supports with none or one of the other features are therefore taken out of the product and
# computed in closed form.
#
# The interval must contain the sum. It lies between the extremes of the sum or, if that is
# narrower, within the distance at which Bernstein's inequality leaves a probability of $10^{-9}$. A
# margin keeps the ends of the series away from the sum.

# %%
#| export
def _interval(a, p, signed):
    "Return start and width of an interval that contains the sum; a, p [output, feature]"
    low = a.clamp(max=0).sum(-1)
    high = a.clamp(min=0).sum(-1)
    if signed: low,high = -a.abs().sum(-1),a.abs().sum(-1)
    mean = 0 if signed else (p*a).sum(-1)/2
    M = a.abs().amax(-1)*20/3
    bound = M + (M**2 + 40*(p*a**2/3).sum(-1)).sqrt()
    low = torch.maximum(low, mean-bound)
    high = torch.minimum(high, mean+bound)
    margin = (high-low)/5 + 1e-3
    return low-margin,high-low+2*margin

def _small_support_errors(a, own_weight, b, p_none, p_one, signed):
    "Return errors from supports with at most one other feature: output inactive, active"
    empty = conditional_errors(a[:,:0], own_weight, b, signed)
    single = conditional_errors(a[...,None], own_weight[:,None].expand_as(a),
                                b[:,None].expand_as(a), signed)
    return [p_none*e + (p_one*s).sum(-1) for e,s in zip(empty, single)]

def _large_support_errors(a, own_weight, b, p, p_none, p_one, signed, terms, p_own):
    "Return errors from all larger supports"
    low,width = _interval(torch.cat([a,own_weight[:,None]], -1),
                          torch.cat([p,p_own[:,None]], -1), signed)
    u = _frequencies(width, terms)
    chi = characteristic_function(u[:,None]*a[...,None], signed)  # output, feature, frequency
    f = (1 + p[...,None]*(chi-1)).prod(1) - p_none[:,None] - (p_one[...,None]*chi).sum(1)
    f = f*torch.exp(-1j*u*low[:,None])
    mass = 1-p_none-p_one.sum(-1)
    v = u*own_weight[:,None]
    expectation = lambda q, m, g: relu_power_mean(q, b, low, width, m, g)
    cross = expectation(1, mass*(0. if signed else .5),
                        f*weighted_characteristic_function(v, signed))
    square = expectation(2, mass, f*characteristic_function(v, signed))
    return expectation(2, mass, f), mass/3 - 2*cross + square


# %%
#| export
def fourier_errors(
    G:torch.Tensor,    # [feature, feature], readout of each feature (column) by each output (row)
    b:torch.Tensor,    # [feature]
    p:torch.Tensor,    # [feature]
    rows:torch.Tensor, # Indices of outputs
    signed=False,
    terms=512,         # Frequencies
)->torch.Tensor:       # [output], float64
    "Return the expected squared errors of outputs of a ReLU model of independent features"
    diagonal = torch.arange(len(rows)),rows
    a = G[rows].clone()
    q = p.expand(len(rows), -1).clamp(max=1-1e-12).clone()
    own_weight = a[diagonal].clone()
    a[diagonal] = 0.
    q[diagonal] = 0.
    p_none = (1-q).prod(-1)
    p_one = p_none[:,None]*q/(1-q)
    small = _small_support_errors(a, own_weight, b[rows], p_none, p_one, signed)
    large = _large_support_errors(a, own_weight, b[rows], q, p_none, p_one, signed, terms,
                                  p[rows])
    return (1-p[rows])*(small[0]+large[0]) + p[rows]*(small[1]+large[1])

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
    "Return the population loss of a ReLU model of many independent features, without gradient"
    single = W.ndim==2
    W,b,V = (t.double()[None] if single else t.double() for t in (W, b, W if V is None else V))
    I,n,_ = W.shape
    p = expand(density, I, n)
    imp = expand(importance, I, n, 'importance')
    rows = torch.arange(n).split(max(1, 2**22//(n*terms)))
    loss = torch.stack([(imp[i]*torch.cat([fourier_errors(V[i]@W[i].T, b[i], p[i], r, signed, terms)
                                           for r in rows])).sum() for i in range(I)])
    return loss[0] if single else loss


# %% [markdown]
# ## Comparison with other methods
#
# Eight features can also be done by corner sums. From the sparsest to the densest, unsigned and
# signed, this is the relative difference with 64 and 512 frequencies:

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
# Different densities, different importances and an untied readout:

# %%
V = torch.randn(8,3)*.6
p = torch.linspace(.05,1,8)
imp = torch.linspace(2,.1,8)
test_close(exact_loss_large(W, b, p, imp, V=V), exact_loss(W, b, p, imp, V=V), eps=1e-5)


# %% [markdown]
# At a hundred features we compare with sampling: three densities, with a hundred thousand samples
# each. The last column is the difference in standard errors.

# %%
def sampled(W, b, p, runs=25, batch=4000):
    draw = Sampler(expand(p, 1, len(b)).float(), [0], batch)
    mc = torch.stack([batch_loss(W[None], b[None], draw(s), torch.ones(1,len(b)))
                      for s in range(runs)]).double()
    return mc.mean().item(), mc.std().item()/runs**.5

W = torch.randn(100,10)*.25
b = torch.randn(100)*.1
rows = {p: (exact_loss_large(W, b, p).item(), *sampled(W, b, p)) for p in (.003,.05,.5)}
assert all(abs(ours-mc) < 4.5*se for ours,mc,se in rows.values())
{p: (round(ours, 4), round(mc, 4), round((ours-mc)/se, 1)) for p,(ours,mc,se) in rows.items()}

# %% [markdown]
# Orthogonal features that are kept cost nothing, and dropped features cost their variance:

# %%
W = torch.eye(100,10)
b = torch.tensor([0.]*10+[.05]*90)
loss = exact_loss_large(W, b, .1)
test_close(loss, 90*moments(.1)[1], eps=2e-5)
loss


# %% [markdown]
# The work grows as $n^2$ for each frequency. Seconds for one model of 20, 40 and 80 features, on
# one thread:

# %%
def seconds(n, m):
    began = perf_counter(); exact_loss_large(torch.randn(n,m)*.2, torch.zeros(n), .1)
    return perf_counter()-began
{n: round(seconds(n, m), 2) for n,m in ((20,5), (40,10), (80,20))}


# %% [markdown]
# ## Population loss
#
# `population_loss` takes models in the terms of their configuration and selects the fastest method: two
# moments for linear outputs, corner sums for few features, the series for many independent features.
# Restarts can thus be ranked without sampling noise.

# %%
#| export
@checked
def population_loss(
    config:ToyConfig,
    W:torch.Tensor,   # [instance, feature, hidden]
    b:torch.Tensor,   # [instance, feature]
    V=None, c=None,   # Readout and hidden bias, where they are learned
    instances=None,   # Identities of these models in `config`; None: all
    terms=512,        # Frequencies of the series
)->torch.Tensor:      # [instance], float64
    "Return the reconstruction loss of trained models without sampling, summed over features"
    if limitation := closed_form_limitation(config): raise ConfigError(limitation)
    W = weights_of(W)
    ids = list(range(config.n_instances)) if instances is None else list(instances)
    p = config.densities[ids]
    imp = config.importances[ids]
    b = as_numbers('b', b).detach().cpu()
    W,V,c = (None if t is None else as_numbers(name, t).detach().cpu()
             for name,t in dict(W=W, V=V, c=c).items())
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
# In a linear hidden layer the hidden bias is absorbed into the output bias. Models with ReLU
# neurons have no closed form here.

# %%
with expect_fail(ConfigError, contains='held-out samples'):
    population_loss(ToyConfig(12, 3, hidden='relu'), W[:1], b[:1])
