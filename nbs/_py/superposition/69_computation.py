# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Computation
#
# > Lower bounds for dedicated neurons and for stored features, and losses with error bounds, tell whether a model computes in superposition.

# %%
#| default_exp superposition.computation

# %%
#| export
import math, numpy as np, pandas as pd, torch
from itertools import product
from safetensors.torch import load_file
from scipy.stats import binom
from moral_sc.foundation.arguments import checked
from moral_sc.foundation.datasets import data_dir
from moral_sc.foundation.errors import ConfigError
from moral_sc.superposition.features import moments
from moral_sc.superposition.model import ToyConfig, check_positive_integers
from moral_sc.superposition.neurons import leading_share, primary_and_secondary
from moral_sc.superposition.training import ToyRun, train

# %%
#| hide
from fastcore.test import *


# %% [markdown]
# The models of this page return absolute values [@elhage2022]. Features lie between $-1$ and $1$ and
# are active with probability $p$, and
#
# $$h = \mathrm{ReLU}(W^\top x), \qquad y = \mathrm{ReLU}(V h + b), \qquad y \approx |x|.$$
#
# Errors are squared, and the loss is their sum over features, weighted by importance.
#
# ## What a model without superposition can reach
#
# Two theorems bound the loss of other models from below. They hold for all weights, so no search for
# the best baseline is needed.
#
# **One monotone output.** If, with all other features held fixed, an output is a monotone function of
# its own feature, its error is at least $\ell(p)$, the error of the best monotone function of $x$ as
# an estimate of $|x|$. A weighted least-squares fit of a nondecreasing function pools values until
# their means increase (isotonic regression). As $|x|$ decreases up to 0 and then increases, the fit
# is a constant $c$ on $[-1,c]$ and $x$ above. The constant is the mean of $|x|$ on that interval:
# $\frac p4 c^2 + (1-\frac p2)c - \frac p4 = 0$. Nonincreasing functions are the mirror image. The
# bound holds for each value of the other features, so it holds on average.

# %%
#| export
def monotone_error(
    density, # Probability $p$ that the feature is active, above 0
)->float:
    "Return the least error with which a monotone function of x estimates |x|"
    p = float(density)
    c = (math.hypot(1-p/2, p/2) - (1-p/2))*2/p
    return p/2*((1-c)**3 + 2*c**3)/3 + (1-p)*c**2


# %% [markdown]
# A dynamic programme would find the same fit on a grid; here scipy's isotonic regression does.

# %%
from scipy.optimize import isotonic_regression
for p in 1.,.3,.01:
    grid = (np.arange(20_001)-10_000)/10_000
    weights = np.full(len(grid), p/len(grid))
    weights[10_000] += 1-p
    fit = isotonic_regression(np.abs(grid), weights=weights).x
    test_close(weights @ (np.abs(grid)-fit)**2, monotone_error(p), eps=1e-4*p)


# %% [markdown]
# **Storing is not computing.** Suppose that the hidden layer is linear, of any width, and the outputs
# are $\mathrm{ReLU}(Vh+b)$. Every output is monotone in every feature, so the loss is at least
# $\ell(p)$ times the sum of importances, even if every feature is stored in a dimension of its own.
# `storing_bound` is this bound.
#
# **Dedicated neurons.** Suppose that each of $m$ hidden neurons reads a single feature; outputs may
# read all neurons. An output whose feature has no neuron does not depend on it, and its error is at
# least the variance $v(p)=\frac p3-\frac{p^2}4$. If all neurons of its feature have the same sign,
# the output is monotone in it, and its error is at least $\ell(p)$. Only a feature with two neurons
# can reach error 0. So the loss is at least what is left after $m$ neurons have been given out in the
# best way; `dedicated_bound` gives them out one by one to where they reduce the bound most. That
# is the best way because a feature's second neuron is counted for no more than its first: if
# $\ell(p)>v(p)/2$, each is counted for $v(p)/2$.

# %%
#| export
def storing_bound(
    density,     # Probability that a feature is active
    importance,  # [feature]
)->float:
    "Return a lower bound for the loss of models with a linear hidden layer of any width"
    return monotone_error(density)*float(np.sum(importance))

@checked
def dedicated_bound(
    density,
    importance,    # [feature]
    n_hidden:int,
)->float:
    "Return a lower bound for the loss of models whose neurons each read one feature"
    check_positive_integers(n_hidden=n_hidden)
    variance = moments(float(density))[1]
    first = max(variance-monotone_error(density), variance/2)
    gains = np.outer([first, variance-first], importance).ravel()
    largest = np.sort(gains)[::-1][:n_hidden]
    return max(0., variance*float(np.sum(importance)) - float(largest.sum()))


# %% [markdown]
# With dense features, a neuron for one sign would leave more than half of the variance, so that both
# bounds of twenty features and ten neurons come from pairs of neurons:

# %%
ones = np.ones(20)
for p in 1,.3,.01: assert monotone_error(p) > moments(p)[1]/2
test_close(dedicated_bound(.01, ones, 10), 15*moments(.01)[1], eps=1e-12)
dedicated_bound(.01, ones, 10), storing_bound(.01, ones)


# %% [markdown]
# ## Errors of a model
#
# The hidden layer has no bias, so it is linear along every ray from the origin. Along a ray
# $x=ru$, output $j$ is $\mathrm{ReLU}(g_j r+b_j)$ and its target is $r|u_j|$. The integral of
# $r^{k-1}(r|u_j|-\mathrm{ReLU}(g_jr+b_j))^2$ over $0\le r\le1$ is a polynomial in the ends of the
# interval on which the ReLU is active.

# %%
#| export
def radial_errors(
    target, g, b, # Tensors that broadcast: $|u_j|$, $g_j$ and $b_j$
    k:int,        # Number of active features
)->torch.Tensor:
    "Integrate r^(k-1) (r target - relu(g r + b))² over r from 0 to 1"
    root = (-b/torch.where(g==0, 1., g)).clamp(0, 1)
    low = torch.where(g>0, root, 0.)
    high = torch.where(g<0, root, 1.)
    high = torch.where((g<=0) & (b<=0), low, high)
    def antiderivative(r):
        return r**k*(r*r*(g*g-2*target*g)/(k+2) + 2*b*(g-target)*r/(k+1) + b*b/k)
    return target**2/(k+2) + antiderivative(high) - antiderivative(low)

def single_errors(
    W, V, b, # [feature, hidden] twice and [feature]
)->torch.Tensor: # [feature], float64
    "Return the exact error of each output if one feature, drawn at random, is active"
    W,V,b = (t.double() for t in (W, V, b))
    g = (torch.stack([W,-W]).relu() @ V.T).flatten(0, 1)
    target = torch.eye(len(W), dtype=torch.float64).repeat(2, 1)
    return radial_errors(target, g, b, 1).mean(0)

def pair_errors(
    W, V, b,
    nodes=8, # Gauss-Legendre nodes between two kinks of the hidden layer
)->torch.Tensor: # [feature], float64
    "Return the error of each output if two features, drawn at random, are active, by quadrature"
    W,V,b = (t.double() for t in (W, V, b))
    n = len(W)
    pairs = [(i,j) for i,j in product(range(n), repeat=2) if i!=j]
    first,second = torch.tensor(pairs).T
    x,weight = (torch.tensor(t) for t in np.polynomial.legendre.leggauss(nodes))
    total = torch.zeros(n, dtype=torch.float64)
    for s,t in product((1.,-1.), repeat=2): # x = r (s e_i + t z e_j) for 0<=z<=1
        a = s*W[first]
        c = t*W[second]
        kinks = (-a/torch.where(c==0, 1., c)).clamp(0, 1).sort(1).values
        ends = torch.cat([torch.zeros(len(a), 1), kinks, torch.ones(len(a), 1)], 1).double()
        width = ends.diff(dim=1)[...,None]
        z = (ends[:,:-1,None] + width*(x+1)/2).flatten(1)
        h = (a[:,None] + z[...,None]*c[:,None]).relu()
        target = torch.zeros(*z.shape, n, dtype=torch.float64)
        target.scatter_(2, first[:,None,None].expand(*z.shape, 1), 1.)
        target.scatter_(2, second[:,None,None].expand(*z.shape, 1), z[...,None])
        errors = radial_errors(target, h @ V.T, b, 2)
        total += ((width*weight/2).flatten(1)[...,None]*errors).sum((0,1))
    return total/(4*len(pairs)/2)


# %% [markdown]
# Both agree with sampled inputs. A square is two triangles, one for each order of the two sizes, which
# is why ordered pairs are summed and divided by the number of unordered ones.

# %%
torch.manual_seed(0)
W = torch.randn(6, 4)
V = torch.randn(6, 4)
b = torch.randn(6)*.3
def outputs(W, V, b, x): return torch.relu(torch.relu(x@W)@V.T + b)
for k,exact in (1,single_errors(W, V, b)),(2,pair_errors(W, V, b)):
    on = torch.rand(400_000, 6).argsort(1) < k
    x = (2*torch.rand(400_000, 6)-1)*on
    squares = (x.abs()-outputs(W, V, b, x)).square()
    assert ((squares.mean(0)-exact).abs() < 5*squares.std(0)/400_000**.5).all()
test_close(pair_errors(W, V, b, 8), pair_errors(W, V, b, 24), eps=1e-3)


# %% [markdown]
# `abs_errors` estimates the errors at a density: exact for none and for one active feature, and
# with sampled inputs for more. With sparse features, little is left to the samples. Models of one
# density share the samples, so differences between them have less noise than their losses.

# %%
#| export
def inputs_with_active(
    counts:torch.Tensor, # [row], number of active features
    n_features:int,
    generator,
)->torch.Tensor:         # [row, feature]
    "Draw inputs of which given numbers of features are active"
    shape = len(counts),n_features
    rank = torch.rand(shape, generator=generator).argsort(1)
    return (2*torch.rand(shape, generator=generator)-1)*(rank<counts[:,None])

def abs_errors(
    W:torch.Tensor, # [model, feature, hidden]
    V:torch.Tensor, # [model, feature, hidden]
    b:torch.Tensor, # [model, feature]
    density:float,  # The same for all models and features
    rows=2**15,     # Sampled inputs
    seed=0,
)->tuple:           # Errors [model, feature]; standard errors of their sum [model]
    "Return the error of each output, exact for up to one active feature and sampled beyond"
    n = W.shape[1]
    P = binom.pmf(range(n+1), n, density) # By number of active features
    exact = torch.stack([P[0]*c.double().relu()**2 + P[1]*single_errors(w, v, c)
                         for w,v,c in zip(W, V, b)])
    if (rest := P[2:].sum()) < 1e-15: return exact,torch.zeros(len(W))
    g = torch.Generator().manual_seed(seed)
    counts = 2 + torch.multinomial(torch.tensor(P[2:]), rows, True, generator=g)
    x = inputs_with_active(counts, n, g)
    squares = [(x.abs()-torch.relu(torch.relu(x@w)@v.T + c)).square() for w,v,c in zip(W, V, b)]
    mean = torch.stack([s.double().mean(0) for s in squares])
    spread = torch.stack([s.sum(1).std() for s in squares])/rows**.5
    return exact + rest*mean, rest*spread


# %% [markdown]
# A model of three features is small enough to be checked at every density.

# %%
g = torch.Generator().manual_seed(1)
for p in 1.,.2:
    errors,spread = abs_errors(W[None,:3], V[None,:3], b[None,:3], p, rows=2**18)
    x = (2*torch.rand(2**20, 3, generator=g)-1)*(torch.rand(2**20, 3, generator=g)<p)
    loss = (x.abs()-outputs(W[:3], V[:3], b[:3], x)).square().sum(1)
    assert (errors[0].sum()-loss.mean()).abs() < 5*spread[0] + 5*loss.std()/2**10


# %% [markdown]
# ## Starting points
#
# Training from small random weights ends in poor local minima. `dedicated_start` gives the first
# features two neurons each. `pair_code_start` gives each *signed* feature an own pair of neurons, as
# in the sparsest models of the paper's [privileged basis](../papers/superposition/privileged_basis.ipynb):
# ten neurons have 45 pairs, more than the 40 signs of twenty features. An output reads the four neurons
# of its feature and is inhibited by all others. Pairs are chosen one feature after the other
# so that few pairs lie within the four neurons of another feature.

# %%
#| export
def dedicated_start(
    n_features:int, n_hidden:int,
    noise=.02, # Standard deviation added to every weight
    seed=0,
)->dict:       # W, V [feature, hidden] and b [feature]
    "Return weights in which each of the first features has a neuron for each sign"
    g = torch.Generator().manual_seed(seed)
    W = torch.zeros(n_features, n_hidden)
    for i in range(min(n_features, n_hidden//2)): W[i,2*i:2*i+2] = torch.tensor([1.,-1.])
    draw = lambda: noise*torch.randn(W.shape, generator=g)
    V = W.abs() + draw().abs()
    return dict(W=W+draw(), V=V, b=torch.zeros(n_features))

def pair_code(
    n_features:int, n_hidden:int,
    seed=0,
    tries=300,  # Candidates for each feature
)->np.ndarray:  # [feature, sign, 2], numbers of neurons
    "Choose two neurons for each sign of each feature"
    rng = np.random.default_rng(seed)
    if n_hidden<4: raise ConfigError(f'n_hidden is {n_hidden}: a pair code needs at least 4.')
    code = np.zeros((0,2,2), int)
    used = np.zeros((0,2,n_hidden))
    for _ in range(n_features):
        new = np.array([rng.permutation(n_hidden)[:4].reshape(2, 2) for _ in range(tries)])
        on = np.zeros((tries,2,n_hidden))
        np.put_along_axis(on, new, 1., -1)
        inside = np.einsum('tsm,fm->tfs', on, used.sum(1)) > 1
        around = np.einsum('tm,fsm->tfs', on.sum(1), used) > 1
        equal = np.einsum('tsm,frm->tfsr', on, used) > 1
        load = on.sum(1) @ used.sum((0,1))
        cost = inside.sum((1,2)) + around.sum((1,2)) + 9*equal.sum((1,2,3)) + load/n_hidden
        best = cost.argmin()
        code = np.concatenate([code, new[best:best+1]])
        used = np.concatenate([used, on[best:best+1]])
    return code

def pair_code_start(
    n_features:int, n_hidden:int, noise=.1, seed=0,
)->dict:
    "Return weights in which each sign of each feature excites a pair of neurons"
    g = torch.Generator().manual_seed(seed)
    code = torch.tensor(pair_code(n_features, n_hidden, seed))
    W = torch.zeros(n_features, n_hidden).scatter_(1, code[:,0], 1.).scatter_(1, code[:,1], -1.)
    own = W.abs()
    draw = lambda: noise*torch.randn(W.shape, generator=g)
    return dict(W=W+draw(), V=.75*own-.35*(1-own)+draw(), b=torch.zeros(n_features))

def train_from(
    config:ToyConfig,
    starts,  # [{W, V, b}], one for each instance
    **train_options,
)->ToyRun:
    "Train models from given weights"
    run = train(config, stop=0, **train_options)
    for k in run.params: run.params[k] = torch.stack([s[k] for s in starts]).float()
    return train(config, resume=run, **train_options)


# %% [markdown]
# Every signed feature has a pair of its own, and the two signs of a feature share no neuron:

# %%
code = pair_code(20, 10)
test_eq(len({tuple(sorted(pair)) for pair in code.reshape(-1, 2).tolist()}), 40)
assert all(len(set(pair.ravel().tolist()))==4 for pair in code)
code[:3].tolist()


# %% [markdown]
# ## A loss with an error bound
#
# `loss_certificate` bounds the loss from above, by the number of active features. None and one are
# exact; two are a quadrature, and the bound adds ten times its change when the nodes are doubled.
# More are sampled, and an empirical Bernstein inequality [@maurer2009] bounds the mean except with
# probability `delta`: it needs the sample variance and a bound on the squared error that holds for
# every input, which comes from the largest $k$ weights of each neuron. Inputs with more than
# `max_active` features count with that largest possible error.

# %%
#| export
def largest_loss(
    W, V, b,
    k:int,   # Number of active features
)->float:
    "Return an upper bound for the summed squared error of any input with k active features"
    reach = W.double().abs().topk(min(k, len(W)), dim=0).values.sum(0)
    output = (V.double().relu() @ reach + b.double()).relu()
    return float(output.clamp(min=1).square().sum())

@checked
def loss_certificate(
    W, V, b,         # One model: [feature, hidden] twice and [feature]
    density:float,
    samples=2**18,   # For each number of active features above two
    delta=1e-9,      # Probability that a bound from samples is wrong
    max_active=6,    # Inputs with more active features count with the largest possible error
    seed=0,
)->pd.DataFrame:     # Probability, loss and its upper bound by number of active features
    "Bound the loss of a model of absolute values from above"
    n = len(W)
    P = binom.pmf(range(n+1), n, density) # By number of active features
    pairs,finer = (float(pair_errors(W, V, b, nodes).sum()) for nodes in (8,16))
    silence = float(b.double().relu().square().sum())
    single = float(single_errors(W, V, b).sum())
    rows = [(0, P[0], silence, silence), (1, P[1], single, single),
            (2, P[2], finer, finer+10*abs(finer-pairs))]
    g = torch.Generator().manual_seed(seed)
    log = math.log(2*(max_active-2)/delta)
    for k in range(3, max_active+1):
        x = inputs_with_active(torch.full((samples,), k), n, g)
        loss = (x.abs()-torch.relu(torch.relu(x@W)@V.T + b)).square().sum(1).double()
        margin = (2*loss.var()*log/samples)**.5 + 7*largest_loss(W, V, b, k)*log/(3*(samples-1))
        rows.append((k, P[k], float(loss.mean()), float(loss.mean()+margin)))
    rows.append((f'above {max_active}', P[max_active+1:].sum(), 0., largest_loss(W, V, b, n)))
    table = pd.DataFrame(rows, columns=['active','probability','loss','bound']).set_index('active')
    return table.assign(loss_part=table.probability*table.loss,
                        bound_part=table.probability*table.bound)


# %% [markdown]
# The bound lies above the loss of fresh samples, and not far above:

# %%
start = pair_code_start(20, 10, noise=0.)
table = loss_certificate(start['W'], start['V'], start['b'], .01, samples=2**14)
errors,spread = abs_errors(*(start[k][None] for k in 'WVb'), .01, rows=2**16, seed=5)
assert errors.sum()-5*spread < table.bound_part.sum() < 1.2*errors.sum()
table


# %% [markdown]
# ## Noise, lesions and other hidden layers
#
# `stratified_errors` takes any function from inputs to outputs. It draws as many inputs with no active
# feature as with one, two, three and more, and weighs them by their probability.

# %%
#| export
def stratified_inputs(
    n_features:int, density:float,
    rows=2**13, # For each of 0, 1, 2, 3 and more than 3 active features
    seed=0,
)->tuple:       # Inputs [row, feature] and their weights [row], float64, which add up to 1
    "Draw inputs by number of active features"
    P = torch.tensor(binom.pmf(range(n_features+1), n_features, density))
    g = torch.Generator().manual_seed(seed)
    more = 4 + torch.multinomial(P[4:], rows, True, generator=g)
    counts = torch.cat([torch.arange(4).repeat_interleave(rows), more])
    weights = torch.cat([P[:4], P[4:].sum()[None]]).repeat_interleave(rows)/rows
    return inputs_with_active(counts, n_features, g),weights

def stratified_errors(
    outputs, # Function from inputs to outputs, both [row, feature]
    n_features:int, density:float, rows=2**13, seed=0,
)->torch.Tensor: # [feature], float64
    "Return the error of each output of any function"
    x,weights = stratified_inputs(n_features, density, rows, seed)
    return (weights[:,None]*(x.abs()-outputs(x)).square()).sum(0)

def noisy_outputs(
    W, V, b, size,
    relative=True, # To the activation itself; False: to the neuron's rms activation when it is on
    seed=0,
):
    "Return a function that computes outputs with Gaussian noise on the hidden activations"
    g = torch.Generator().manual_seed(seed)
    def outputs(x):
        h = torch.relu(x@W)
        on = (h>0).sum(0).clamp(min=1)
        scale = h if relative else (h.square().sum(0)/on)**.5
        return torch.relu((h + size*scale*torch.randn(h.shape, generator=g))@V.T + b)
    return outputs

def affine_neurons(
    W, V, b,
    density,
    neurons, # Numbers of the neurons that lose their ReLU
    seed=0,
):
    "Return a function that replaces ReLUs by their best affine approximation"
    x,weights = stratified_inputs(len(W), density, seed=seed)
    z = (x@W).double()
    h = z.relu()
    mean = lambda t: (weights[:,None]*t).sum(0)
    slope = (mean(z*h)-mean(z)*mean(h))/(mean(z*z)-mean(z)**2)
    offset = mean(h)-slope*mean(z)
    affine = torch.zeros(W.shape[1], dtype=torch.bool)
    affine[list(neurons)] = True
    def outputs(x):
        z = x@W
        return torch.relu(torch.where(affine, slope.float()*z+offset.float(), z.relu())@V.T + b)
    return outputs

def fit_readout(
    h,       # [row, hidden], activations of a hidden layer that stays as it is
    target,  # [row, feature]
    weights, # [row]
    maxiter=300,
)->tuple:    # V [feature, hidden] and b [feature]
    "Fit ReLU outputs to a fixed hidden layer, from the least-squares solution"
    h,target,root = h.double(),target.double(),weights.double().sqrt()[:,None]
    ones = torch.cat([h, torch.ones(len(h), 1)], 1)
    fit = torch.linalg.lstsq(ones*root, target*root, driver='gelsd').solution.requires_grad_()
    optimiser = torch.optim.LBFGS([fit], max_iter=maxiter, line_search_fn='strong_wolfe')
    def closure():
        optimiser.zero_grad()
        loss = (root*(target-torch.relu(ones@fit))).square().sum()
        loss.backward()
        return loss
    optimiser.step(closure)
    fit = fit.detach().float()
    return fit[:-1].T.contiguous(),fit[-1]


# %% [markdown]
# Without noise, the sampled errors are those of `abs_errors`. Noise, and a lost ReLU, increase them.
# A read-out fitted to the hidden layer of the start improves on the start.

# %%
args = [start[k] for k in 'WVb']
plain = stratified_errors(noisy_outputs(*args, 0.), 20, .01)
assert (plain.sum()-errors.sum()).abs() < .03*plain.sum()
assert stratified_errors(noisy_outputs(*args, .3), 20, .01).sum() > plain.sum()
affine = stratified_errors(affine_neurons(*args, .01, range(10)), 20, .01)
assert affine.sum() > storing_bound(.01, ones)
x,weights = stratified_inputs(20, .01, rows=2**11, seed=7)
V1,b1 = fit_readout(torch.relu(x@start['W']), x.abs(), weights)
assert stratified_errors(noisy_outputs(start['W'], V1, b1, 0.), 20, .01).sum() < plain.sum()


# %% [markdown]
# ## Many starts at many densities
#
# `train_abs_starts` trains models from three kinds of start: dedicated neurons, the trained models of
# the next denser density (*annealed*; the densest begin with dedicated neurons), and small random
# weights. `score_abs_runs` returns a table of all of them.

# %%
#| export
def abs_config(
    importance,    # [feature]
    n_hidden:int,
    density,
    n_instances=1,
    **options,     # Of `ToyConfig`
)->ToyConfig:
    "Return the configuration of models of absolute values"
    return ToyConfig(len(importance), n_hidden, n_instances, density=density,
                     importance=list(importance), tied=False, target='abs', signed=True,
                     **dict(hidden='relu') | options)

def train_abs_starts(
    importance, n_hidden:int,
    density,  # From dense to sparse
    starts,   # Kind of start -> dict of restarts, options of `train` and, if not all, density
    seed=0,
    **train_options,
)->dict:      # (kind, density) -> ToyRun
    "Train models of absolute values from dedicated, annealed and random starts"
    n = len(importance)
    runs = {}
    for kind,own in starts.items():
        own = dict(density=density) | own
        densities = own.pop('density')
        restarts = own.pop('restarts')
        options = train_options | own
        weights = [dedicated_start(n, n_hidden, seed=seed+r) for r in range(restarts)]
        for p in densities:
            config = abs_config(importance, n_hidden, p, restarts, init=.1, readout='positive')
            if kind=='random': run = train(config, seed=seed, **options)
            else: run = train_from(config, weights, seed=seed, **options)
            if kind=='annealed':
                weights = [{k: t[r] for k,t in run.params.items()} for r in range(restarts)]
            runs[kind,p] = run
    return runs

def score_abs_runs(
    runs:dict,  # As from `train_abs_starts`
    rows=2**15, # Held-out inputs, as in `abs_errors`
    seed=0,
)->pd.DataFrame: # One row for each model
    "Measure the loss of models, the features they compute, and how their neurons are shared"
    tables = []
    for (kind,p),run in runs.items():
        importance = run.config.importances[0]
        W,V,b = (run.params[k].cpu() for k in 'WVb')
        errors,_ = abs_errors(W, V, b, p, rows, seed)
        loss = (errors*importance).sum(1)
        tables.append(pd.DataFrame(dict(start=kind, density=p, model=range(len(W)), loss=loss,
            ratio=loss/dedicated_bound(p, importance.numpy(), W.shape[2]),
            computed=(errors < moments(p)[1]/2).sum(1),
            one_feature=(leading_share(W, 2)>.8).sum(1),
            primary=primary_and_secondary(W).double().mean(1))))
    return pd.concat(tables, ignore_index=True)


# %%
starts = dict(dedicated=dict(restarts=1), annealed=dict(restarts=1),
              random=dict(restarts=2, density=[.1]))
runs = train_abs_starts(.6**np.arange(8), 4, [.5,.1], starts, steps=200, batch_size=256, lr=1e-3)
scores = score_abs_runs(runs, rows=2**12)
test_eq(len(scores), 6)
assert (scores.ratio[:2] < 1.2).all()
scores.round(3)


# %% [markdown]
# ## A stored model
#
# `load_abs_model` loads the weights of the model that the page
# [Computing in superposition](../papers/superposition/computing_in_superposition.ipynb) examines; the
# JSON file beside them has their provenance.

# %%
#| export
def load_abs_model()->dict: # W, V [feature, hidden] and b [feature]; float32
    "Load a model of twenty features that computes in superposition, trained at density 0.01"
    return load_file(data_dir()/'results'/'computing_in_superposition.safetensors')


# %%
model = load_abs_model()
test_eq(model['W'].shape, (20,10))
table = loss_certificate(*(model[k] for k in 'WVb'), .01)
assert table.bound_part.sum() < .25*storing_bound(.01, ones)
table.bound_part.sum()
