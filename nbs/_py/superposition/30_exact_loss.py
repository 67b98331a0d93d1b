# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Exact loss
#
# > The population loss of a toy model has a closed form without sampling noise.

# %%
#| default_exp superposition.exact_loss

# %%
#| export
import torch
from itertools import combinations, product
from scipy.optimize import minimize
from moral_sc.foundation.arguments import checked
from moral_sc.foundation.errors import ConfigError, short_repr, unknown_name_message
from moral_sc.superposition.features import as_numbers, expand, moments
from moral_sc.superposition.integrals import cross_mean, cube_mean
from moral_sc.superposition.model import (ToyConfig, check_positive_integers, custom_functions,
                                              initial_params,
                                              weights_of)

# %%
#| hide
import numpy as np
from fastcore.test import *
from moral_sc.superposition.model import batch_loss
from moral_sc.superposition.features import Sampler
from moral_sc.superposition.geometry import polygon
torch.manual_seed(0);


# %% [markdown]
# Training sees the loss through batches of a thousand samples. Questions such as whether a pentagon
# is better than two antipodal pairs, whether an engine's gradient is right, or where a phase
# boundary lies need the expectation itself. It has a closed form for features that are uniform when
# active.
#
# For a fixed set $A$ of active features, output $i$ reads $z = \sum_{j\in A} G_{ij}x_j + b_i$ with
# $G = WW^\top$ in the layout `[feature, hidden]` and $x$ uniform on a cube. Its expected error is a
# sum of [integrals](25_integrals.ipynb) over that cube, and the loss is a sum over these sets, the
# *supports*, weighted by their probabilities. Supports of equal size have integrals of the same
# dimension and are processed together.

# %%
#| export
def _errors_of_size(G, b, A, weight, signed):
    "Return the weighted errors of each output for supports `A` [support, k]"
    k = A.shape[1]
    z2 = cube_mean(G[:,:,A], b[...,None].expand(-1, -1, len(A)), 2, signed)
    total = (z2*weight[:,None]).sum(-1)
    if not k: return total
    rest = torch.stack([A[:,[j for j in range(k) if j!=t]] for t in range(k)], 1)
    mean_square = z2.gather(1, A.T.expand(len(b), -1, -1)).mT # instance, support, k
    cross = cross_mean(G[:,A[...,None],rest], G[:,A,A], b[:,A], mean_square, signed)
    return total.index_add(1, A.flatten(), (weight[...,None]*(1/3-2*cross)).flatten(1))

def autograd_relu_errors(
    G:torch.Tensor, b:torch.Tensor, # As in `relu_errors`, of all features
    on:torch.Tensor, weight:torch.Tensor, signed=False,
)->torch.Tensor:         # [instance, feature]
    "Compute `relu_errors` by operations of PyTorch, which can be differentiated repeatedly"
    count = on.sum(-1)
    total = torch.zeros_like(b)
    for k in count.unique().tolist():
        A = on[count==k].nonzero()[:,1].view(-1, k) if k else torch.zeros(1, 0, dtype=torch.long)
        total = total + _errors_of_size(G, b, A, weight[:,count==k], signed)
    return total


# %% [markdown]
# An evaluation takes some hundred operations of PyTorch, and a search for an optimum hundreds of
# evaluations. The same sum as a [compiled loop](28_compiled_errors.ipynb) takes a fraction of the
# time. It returns the errors together with their derivatives: the error of an output depends on its
# own row of $G$ and its own bias only. Second derivatives come from the sum above.

# %%
#| export
class _ReluErrors(torch.autograd.Function):
    "Errors and first derivatives by the compiled loop"
    @staticmethod
    def forward(ctx, G, b, on, weight, signed):
        from moral_sc.superposition.compiled_errors import errors_and_slopes
        errors,*slopes = errors_and_slopes(G, b, on, weight, signed)
        ctx.save_for_backward(G, b, on, weight, *slopes)
        ctx.signed = signed
        return errors

    @staticmethod
    def backward(ctx, grad):
        G,b,on,weight,G_slope,b_slope = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return grad[...,None]*G_slope, grad*b_slope, None, None, None
        errors = autograd_relu_errors(G, b, on, weight, ctx.signed) # A graph is wanted
        by_input = [torch.autograd.grad(errors, t, grad, create_graph=True)[0] if needed else None
                    for t,needed in zip((G,b), ctx.needs_input_grad)]
        return *by_input, None, None, None

def relu_errors(
    G:torch.Tensor,      # [instance, output, feature], what each output reads; float64
    b:torch.Tensor,      # [instance, output]; outputs of the first features, or of all
    on:torch.Tensor,     # [support, feature], bool
    weight:torch.Tensor, # [instance, support], probabilities
    signed=False,        # Active features uniform on [-1,1] instead of [0,1]
)->torch.Tensor:         # [instance, output]
    "Return the expected squared error of each output of a ReLU model"
    if weight.requires_grad or G.device.type!='cpu':
        return autograd_relu_errors(G, b, on, weight, signed)
    return _ReluErrors.apply(G, b, on, weight, signed)


# %% [markdown]
# ## Supports
#
# The [distributions](10_features.ipynb) of this package differ only in which sets of features are
# active together, and how often. Independent features have $2^n$ supports. In *correlated* sets all
# members are active together, in *anticorrelated* sets exactly one is.

# %%
#| export
def supports(
    density:torch.Tensor,   # [instance, feature]
    features='independent', # 'independent', 'correlated', 'anticorrelated' or 'one-hot'
    sets=1,                 # Equal, consecutive sets of dependent features
    max_active=None,        # Independent features: at most this many active; None: all
)->tuple:                   # on [support, feature], bool; probability [instance, support]
    "Return every set of features that can be active, and its probability"
    n = density.shape[1]
    if features=='independent':
        on = _subsets(n, n if max_active is None else min(max_active, n))
        return on, torch.where(on, density[:,None], 1-density[:,None]).prod(-1)
    size = n//sets
    state = torch.eye(size+1, dtype=torch.bool)[:,1:]              # none, or one of them
    if features=='correlated': state = torch.tensor([[False]*size, [True]*size])
    pick = torch.tensor(list(product(range(len(state)), repeat=sets)))
    p = density.unflatten(-1, (sets,size))[:,None,:,0]
    weight = torch.where(pick>0, p/(len(state)-1), 1-p)
    return state[pick].flatten(1), weight.prod(-1)

def _subsets(n, max_active):
    on = [torch.zeros(1, n, dtype=torch.bool)]
    for k in range(1, max_active+1):
        idx = torch.tensor(list(combinations(range(n), k)))
        on.append(torch.zeros(len(idx), n, dtype=torch.bool).scatter_(1, idx, True))
    return torch.cat(on)


# %% [markdown]
# Two anticorrelated pairs at $p=0.2$ have nine supports:

# %%
on,weight = supports(expand(.2, 1, 4), 'anticorrelated', sets=2)
test_close(weight.sum(), 1)
[(''.join(str(int(v)) for v in s), round(w, 3)) for s,w in zip(on, weight[0].tolist())]

# %% [markdown]
# Both ways agree in values and gradients, for each distribution and range:

# %%
g = torch.Generator().manual_seed(0)
def draw_model(I, n):
    "Return random G and b that require gradients"
    G,b = (torch.randn(*shape, generator=g).double() for shape in ((I,n,n), (I,n)))
    return G.mul_(.7).requires_grad_(), b.mul_(.3).requires_grad_()

def both_ways(kind, sets, signed):
    "Return the largest differences of errors and gradients, relative to the largest of each"
    G,b = draw_model(3, 6)
    on,weight = supports(expand([[.1],[.5],[1.]], 3, 6), kind, sets)
    slow,fast = (f(G, b, on, weight, signed) for f in (autograd_relu_errors, relu_errors))
    weights = torch.rand(3, 6, generator=g).double()
    slopes = [torch.autograd.grad((weights*e).sum(), (G,b)) for e in (slow,fast)]
    pairs = [(slow,fast), *zip(*slopes)]
    return [((a-c).abs().max()/a.abs().max()).item() for a,c in pairs]

table = np.array([both_ways(kind, sets, signed) for signed in (False,True)
                  for kind,sets in [('independent',1),('correlated',2),('anticorrelated',3)]])
assert table.max() < 1e-6
table

# %% [markdown]
# Second derivatives, with respect to both and to biases alone:

# %%
G,b = draw_model(1, 3)
given = supports(expand(.3, 1, 3))
def second_derivatives(f, *inputs, G=G, b=b):
    slopes = torch.autograd.grad(f(G, b, *given).sum(), inputs, create_graph=True)
    return torch.autograd.grad(sum(s.square().sum() for s in slopes), inputs)

for inputs,fixed in (((G,b), {}), ((b,), dict(G=G.detach()))):
    pairs = zip(*(second_derivatives(f, *inputs, **fixed)
                  for f in (autograd_relu_errors, relu_errors)), strict=True)
    for slow,fast in pairs: test_close(slow, fast, eps=1e-9)


# %% [markdown]
# ## Linear models
#
# For a linear model only two moments of the distribution matter, for any number of features: with
# $R = 1-G$, the error $R_i\cdot x - b_i$ has the mean $R_i\cdot\mu - b_i$ and the variance
# $R_i\cdot\Sigma R_i$.

# %%
#| export
def mean_covariance(
    density:torch.Tensor, # [instance, feature]
    features='independent', sets=1, signed=False,
)->tuple:                 # [instance, feature], [instance, feature, feature]
    "Return mean and covariance of the inputs"
    n = density.shape[1]
    exclusive = features in ('anticorrelated','one-hot')
    set_index = torch.arange(n)//(n//sets)
    p = density/(n//sets) if exclusive else density
    in_one_set = set_index==set_index[:,None]
    joint = p[...,None]*p[:,None]                     # probability that two are active together
    if features=='correlated': joint = torch.where(in_one_set, p[...,None], joint)
    if exclusive: joint = joint*~in_one_set
    second = joint*(0. if signed else .25)
    second.diagonal(dim1=1, dim2=2).copy_(p/3)
    mu = torch.zeros_like(p) if signed else p/2
    return mu, second - mu[...,None]*mu[:,None]

def linear_errors(G, b, mu, cov):
    "Return the expected squared error of each output of a linear model; shapes as above"
    R = torch.eye(G.shape[1], dtype=G.dtype) - G
    return ((R@mu[...,None])[...,0] - b)**2 + torch.einsum('...ij,...jk,...ik->...i', R, cov, R)


# %% [markdown]
# Comparison with half a million samples of each kind:

# %%
kinds = dict(correlated=2, anticorrelated=2, independent=1)
for kind,sets in kinds.items():
    x = Sampler(expand(.3, 1, 4), [0], 500_000, distribution=kind, sets=sets)(0)[0].double()
    mu,cov = mean_covariance(expand(.3, 1, 4), kind, sets)
    test_close(x.mean(0), mu[0], eps=2e-3); test_close(x.T.cov(), cov[0], eps=2e-3)
mean_covariance(expand(.3, 1, 4), 'correlated', 2)[1][0]


# %% [markdown]
# ## Loss

# %%
#| export
@checked
def exact_loss(
    W:torch.Tensor,    # [instance, feature, hidden], one model [feature, hidden], or a run
    b:torch.Tensor,    # [instance, feature], or [feature]
    density=1.,        # Number, [feature] or [instance, feature]
    importance=1.,     # Likewise
    activation='relu', # Of the outputs: 'relu' or 'linear'
    max_active=None,   # Independent features: count supports up to this size; None: all
    features='independent', sets=1, signed=False, # As in `ToyConfig`
    V=None,            # Readout of an untied model, shape of W
)->torch.Tensor:       # [instance], float64, summed over features; a scalar for one model
    "Return the population loss of reconstruction, differentiable in `W`, `b` and `V`"
    if isinstance(getattr(W, 'config', None), ToyConfig):
        _check_run(W, V, density, importance, activation=activation, features=features, sets=sets,
                   signed=signed)
    W = weights_of(W)
    b = as_numbers('b', b)
    single = W.ndim==2
    W,b,V = (t[None].double() if single else t.double() for t in (W, b, W if V is None else V))
    I,n,_ = W.shape
    if b.shape!=(I,n): raise ConfigError(f'b has shape {list(b.shape)}: W needs {[I,n]}.')
    p = expand(density, I, n)
    imp = expand(importance, I, n, 'importance')
    err = _output_errors(V@W.mT, b, p, activation, max_active, features, sets, signed)
    loss = (imp*err).sum(-1)
    return loss[0] if single else loss

def closed_form_limitation(
    config:ToyConfig,
)->str|None:
    "Return why the population loss of these models has no closed form, or None if it has one"
    if not isinstance(config, ToyConfig):
        raise ConfigError(f'config is {short_repr(config)}: give a ToyConfig.')
    c = config
    for name in custom_functions(c):
        return f'No closed form for your own {name}: use batch_loss on held-out samples.'
    for name,known in dict(hidden=['linear'], target=['identity'], activation=['relu','linear'],
                           points=[None], unit=[False]).items():
        if getattr(c, name) not in known: return (
            f'No closed form for {name}={getattr(c, name)!r}: it must be '
            f'{" or ".join(map(repr, known))}; use batch_loss on held-out samples.')

def _check_run(run, V, density, importance, **given):
    config = run.config
    if limitation := closed_form_limitation(config): raise ConfigError(limitation)
    for name,value in given.items():
        trained = getattr(config, name)
        if trained!=value: raise ConfigError(
            f'{name} is {value!r}, and the run was trained with {trained!r}: give '
            f'{name}={trained!r}, or use population_loss(run.config, run.W, run.b).')
    I,n,_ = run.W.shape
    ids = list(run.instances)
    for name,value,trained in (('density', density, config.densities[ids]),
                               ('importance', importance, config.importances[ids])):
        if not torch.allclose(expand(value, I, n, name), trained): raise ConfigError(
            f'{name} is not that of the run: give {name}=run.config.{name}, or run.W in place of '
            'the run if another one is meant.')
    if config.hidden_bias: raise ConfigError(
        'The run has a hidden bias: use population_loss(run.config, run.W, run.b, c=run.c).')
    if not config.tied and V is None:
        raise ConfigError("The run has a readout of its own: give V=run.params['V'].")

def _output_errors(G, b, p, activation, max_active, features, sets, signed):
    n = b.shape[1]
    if activation=='linear': return linear_errors(G, b, *mean_covariance(p, features, sets, signed))
    if activation!='relu': raise ConfigError(
        unknown_name_message('activation', activation, ['relu','linear']))
    if features=='independent' and max_active is None and n>11: raise ConfigError(
        f'{n} features have {3**n:.0e} corners: give max_active=5 or so, or use exact_loss_large.')
    return relu_errors(G, b, *supports(p, features, sets, max_active), signed)


# %% [markdown]
# Weights alone do not tell how they were trained. A run does, and one that was trained with another
# activation, target, readout or distribution is refused:

# %%
class Run:
    def __init__(self, **options):
        self.config = ToyConfig(5, 2, **options)
        self.W = torch.zeros(1,5,2)
        self.instances = [0]

b = torch.zeros(1,5)
refused = [dict(activation=torch.nn.functional.silu), dict(activation='linear'),
           dict(target='abs'), dict(tied=False), dict(signed=True), dict(density=.1),
           dict(importance=.5), dict(features='one-hot'), dict(hidden_bias=True)]
for options in refused:
    with ExceptionExpected(ConfigError): exact_loss(Run(**options), b)
rare = Run(density=.1, signed=True)
test_eq(exact_loss(rare, b, .1, signed=True), exact_loss(rare.W, b, .1, signed=True))
exact_loss(Run(), b), exact_loss(Run(activation='linear'), b, activation='linear')


# %% [markdown]
# A random model of three features, compared with a midpoint grid over the cube of every support,
# whose error falls as $h^2$:

# %%
def grid_loss(W, b, p, m=100):
    g = (torch.arange(m, dtype=torch.float64)+.5)/m
    total = 0.
    for on in product([0,1], repeat=3):
        x = torch.stack(torch.meshgrid(*[g*o for o in on], indexing='ij'), -1)
        e = (x - (x@W@W.T + b).relu())**2
        total += np.prod([p if o else 1-p for o in on])*e.mean((0,1,2)).sum()
    return total

W = torch.randn(3,2, dtype=torch.float64)
b = torch.randn(3, dtype=torch.float64)*.3
exact_loss(W, b, .4), grid_loss(W, b, .4)

# %%
test_close(exact_loss(W, b, .4), grid_loss(W, b, .4), eps=2e-4)

# %% [markdown]
# Eight features with different densities and importances, compared with four million samples:

# %%
W = torch.randn(8,3)*.6
b = torch.randn(8)*.2
p = torch.linspace(.05,1,8)
imp = torch.linspace(2,.1,8)
draw = Sampler(p[None], [0], 200_000)
runs = torch.stack([batch_loss(W[None], b[None], draw(k), imp[None]) for k in range(20)]).double()
mc = runs.mean()
se = runs.std()/20**.5
assert abs(exact_loss(W, b, p, imp) - mc) < 4*se
exact_loss(W, b, p, imp), mc, se


# %% [markdown]
# Correlated and anticorrelated sets, signed features and an untied readout, each compared with half
# a million samples. The last column is the difference in standard errors.

# %%
def check(kind, sets, signed, V, runs=10):
    p = expand(.4 if kind!='one-hot' else 1., 1, 6)
    draw = lambda s: Sampler(p, [0], 50_000, s, kind, sets=sets, signed=signed)(0)
    mc = torch.stack([batch_loss(W, b, draw(s), torch.ones(1,6), V=V) for s in range(runs)])
    mc = mc.double()
    ours = exact_loss(W, b, p, features=kind, sets=sets, signed=signed, V=V)
    return ours.item(), mc.mean().item(), ((ours-mc.mean())/(mc.std()/runs**.5)).item()

W = torch.randn(1,6,2)*.7
b = torch.randn(1,6)*.2
V = torch.randn(1,6,2)*.7
cases = [('correlated',3,False,None), ('anticorrelated',2,False,None), ('one-hot',1,False,None),
         ('independent',1,True,V), ('correlated',2,True,V)]
table = np.array([check(*c) for c in cases])
assert np.abs(table[:,2]).max() < 4
table.round(4)

# %% [markdown]
# The best loss of a linear model is known, $v(p)\sum_{i>m} I_i$: keep the $m$ most important
# features exactly and predict the mean of the others. At this optimum the gradient vanishes:

# %%
W = torch.eye(20,5, dtype=torch.float64).requires_grad_()
b = torch.tensor([0.]*5+[.15]*15, dtype=torch.float64).requires_grad_()
imp = .7**torch.arange(20.)
loss = exact_loss(W, b, .3, imp, activation='linear')
loss.backward()
test_close(loss.item(), (moments(.3)[1]*imp[5:].sum()).item(), eps=1e-8)
test_close(W.grad.abs().max(), 0); test_close(b.grad.abs().max(), 0)
loss.item()

# %% [markdown]
# ## Gradients
#
# The gradient of a batch is an estimate of the gradient of `exact_loss`. Averaged over many batches
# in float32, it must agree with autograd through the closed form in float64, at every entry.

# %%
W = torch.randn(1,6,3)*.6
b = torch.randn(1,6)*.2
def grads(f, dtype):
    ps = [t.detach().to(dtype).requires_grad_() for t in (W,b)]
    f(*ps).sum().backward()
    return torch.cat([t.grad.flatten() for t in ps]).double()

p = torch.full((1,6), .3)
imp = torch.linspace(1,.2,6)
draw = Sampler(p, [0], 100_000, seed=1)
g = torch.stack([grads(lambda W,b,k=k: batch_loss(W, b, draw(k), imp[None]), torch.float32)
                 for k in range(20)])
z = (g.mean(0) - grads(lambda W,b: exact_loss(W, b, .3, imp), torch.float64))/(g.std(0)/20**.5)
assert z.abs().max() < 4.5
z.abs().max(), z.std()

# %% [markdown]
# The loss does not depend on the basis of the hidden space, nor on the order of the features:

# %%
O = torch.linalg.qr(torch.randn(3,3, dtype=torch.float64)).Q
perm = torch.randperm(6)
base = exact_loss(W, b, .3, imp)
test_close(exact_loss(W.double()@O, b, .3, imp), base, eps=1e-9)
test_close(exact_loss(W[:,perm], b[:,perm], .3, imp[perm]), base, eps=1e-9)


# %% [markdown]
# ## Truncation to small supports
#
# The number of corners is $3^n$. For sparse features only small supports matter:
# `neglected_probability` is the probability of a support larger than those counted. No term of the
# sum is negative, so the truncated loss is a lower bound. For dense models of many features, use
# the [Fourier loss](34_fourier_loss.ipynb).

# %%
def neglected_probability(density, n_features, max_active): # As given to `exact_loss`
    "Return the probability that more than `max_active` independent features are active"
    p = expand(density, 1, n_features)[0]
    dist = torch.zeros(n_features+1, dtype=torch.float64); dist[0] = 1
    for q in p: dist = dist*(1-q) + torch.cat([torch.zeros(1), dist[:-1]*q])
    return dist[max_active+1:].sum()


# %%
W = torch.randn(12,4)*.4
b = torch.randn(12)*.1
[(k, exact_loss(W, b, .05, max_active=k).item(), neglected_probability(.05, 12, k).item())
 for k in (1,2,3,4)]

# %%
test_close(neglected_probability(.5, 3, 1), .5)
with expect_fail(ConfigError, contains='give max_active=5'): exact_loss(W, b, .05)


# %% [markdown]
# ## Numerical optimum
#
# With exact losses and gradients, a quasi-Newton method finds optima to many digits within seconds,
# and the best of several restarts is a ground truth for training. All instances and restarts are
# minimised as one long vector: their losses are independent, and one evaluation of many small
# models costs hardly more than one model.

# %%
#| export
def minimise_lbfgs(
    losses,             # [model, parameter] -> [model], differentiable
    initial:torch.Tensor, # [model, parameter], float64
    maxiter=2000,
    **options,          # Of scipy's L-BFGS-B
)->torch.Tensor:        # [model, parameter]
    "Minimise losses that do not depend on each other, as one long vector"
    def f(v):
        t = torch.tensor(v).view_as(initial).requires_grad_()
        total = losses(t).sum()
        total.backward()
        return total.item(), t.grad.numpy().ravel()
    fit = minimize(f, initial.numpy().ravel(), jac=True, method='L-BFGS-B', options=dict(
        maxiter=maxiter, maxfun=maxiter, maxcor=50, ftol=1e-14, gtol=1e-8) | options)
    return torch.tensor(fit.x).view_as(initial)


# %%
target = torch.tensor([[1.,2.],[3.,4.]], dtype=torch.float64)
minimise_lbfgs(lambda t: ((t-target)**4).sum(-1), torch.zeros_like(target))


# %%
#| export
def _objective(config, R):
    "Return a function from one row of parameters per model to W, b, V and exact losses"
    c = config
    n = config.n_features
    m = config.n_hidden
    p,imp = (t.repeat_interleave(R, 0) for t in (c.densities,c.importances))
    def losses(t):
        q = dict(W=t[:,:n*m].view(-1, n, m), b=t[:,n*m:n*m+n]*float(c.bias))
        if not c.tied: q['V'] = t[:,n*m+n:].view(-1, n, m)
        return q, exact_loss(q['W'], q['b'], p, imp, c.activation, None, c.features, c.sets,
                             c.signed, q.get('V'))
    return losses

@checked
def fit_exact(
    config:ToyConfig,
    restarts:int=8, # Independent starts for each instance
    seed=0,
    starts=None,  # W [restart, feature, hidden] to start from instead; V starts there too
    maxiter:int=2000,
)->dict:          # W, b, (V,) loss: [instance, restart, ...], best first
    "Minimise the population loss by L-BFGS from several starts"
    if limitation := closed_form_limitation(config): raise ConfigError(limitation)
    check_positive_integers(restarts=restarts, maxiter=maxiter)
    if starts is None:
        initial = initial_params(config, seed, range(restarts))
        initial = torch.cat([2*initial[k].flatten(1) for k in ('W','b','V') if k in initial], 1)
    else:
        initial = as_numbers('starts', starts).detach()
        n,m = config.n_features, config.n_hidden
        if initial.shape[1:]!=(n, m) or not len(initial): raise ConfigError(
            f'starts has shape {list(initial.shape)}: give [restart, {n}, {m}].')
        initial = initial.flatten(1)
        initial = torch.cat([initial, torch.zeros(len(initial), config.n_features)]
                          + [initial]*(not config.tied), 1)
    I = config.n_instances
    R = len(initial)
    losses = _objective(config, len(initial))
    unit = (moments(config.densities)[1]*config.importances).sum(1).clamp(min=1e-12)
    x = minimise_lbfgs(lambda t: losses(t)[1]/unit.repeat_interleave(R),
                       initial.double().repeat(I, 1), maxiter)
    with torch.no_grad(): params,loss = losses(x)
    loss,order = loss.view(I, R).sort(dim=1)
    sort = lambda t: t.view(I, R, *t.shape[1:])[torch.arange(I)[:,None],order]
    return {k: sort(t) for k,t in params.items()} | dict(loss=loss)


# %% [markdown]
# Five equal features in a plane at one percent density, from eight restarts. Two solutions appear,
# and the better one is the regular pentagon:

# %%
fits = fit_exact(ToyConfig(5, 2, density=.01))
fits['loss'].numpy().round(6)

# %%
W = fits['W'][0,0]
angles = torch.atan2(W[:,1], W[:,0]).rad2deg().sort().values
test_close(angles.diff(), torch.full((4,), 72.), eps=.5)
test_close(fits['loss'][0,0], .001001, eps=1e-6)
W.norm(dim=1), angles.diff()

# %% [markdown]
# The other solution is two digons (antipodal pairs) with the fifth feature dropped. The density at
# which the better of the two changes is on the page [Polytope gain](33_polytope_gain.ipynb).

# %% [markdown]
# Anticorrelated pairs need one dimension per pair: two pairs in two dimensions, as antipodes, lose
# nothing. For correlated pairs antipodes are the worst arrangement, and the optimum puts partners
# at a right angle.

# %%
pairs = {kind: fit_exact(ToyConfig(4, 2, density=.2, features=kind, sets=2))
         for kind in ('anticorrelated','correlated')}
cos = lambda f: torch.cosine_similarity(*f['W'][0,0][:2], dim=0)
test_close(cos(pairs['anticorrelated']), -1, eps=1e-3)
test_close(pairs['anticorrelated']['loss'][0,0], 0, eps=1e-6)
assert abs(cos(pairs['correlated'])) < .1
{k: (cos(f).item(), f['loss'][0,0].item()) for k,f in pairs.items()}

# %% [markdown]
# An untied readout changes the optimum. The tied pentagon is then a stationary point but not a
# minimum: from an initialisation beside it, the loss falls to less than half. Outputs learn to be
# suppressed: row $i$ of $G=VW^\top$ below is close to one at $i$, close to zero at some features,
# and very large and negative at the others, so that of two active features one is lost and nothing
# else. The weights grow without bound, and the infimum is not attained.

# %%
near_pentagon = polygon(5) + .02*torch.randn(5,2)
untied = fit_exact(ToyConfig(5, 2, density=.05, tied=False), starts=near_pentagon[None],
                   maxiter=150)
tied = fit_exact(ToyConfig(5, 2, density=.05), starts=near_pentagon[None])
assert untied['loss'] < .5*tied['loss']
untied['loss'].item(), tied['loss'].item(), (untied['V']@untied['W'].mT)[0,0].numpy().round(2)

# %%
with expect_fail(ConfigError, contains="hidden='relu'"): fit_exact(ToyConfig(hidden='relu'))
with expect_fail(ConfigError, contains='give a ToyConfig'): fit_exact('config')
with expect_fail(ConfigError, contains='restarts is 0'): fit_exact(ToyConfig(), restarts=0)
with expect_fail(ConfigError, contains='give [restart, 5, 2]'):
    fit_exact(ToyConfig(), starts=[[1.]])
