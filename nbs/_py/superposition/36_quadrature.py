# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Quadrature over supports
#
# > The loss of a model with hidden ReLUs is a weighted sum over fixed inputs, without sampling noise.

# %%
#| default_exp superposition.quadrature

# %%
#| export
import numpy as np, torch
from itertools import combinations
from torch.quasirandom import SobolEngine
from moral_sc.superposition.exact_loss import minimise_lbfgs

# %%
#| hide
from fastcore.test import *
from moral_sc.superposition.exact_loss import exact_loss
torch.set_num_threads(1)


# %% [markdown]
# A model with a ReLU on its hidden layer has no loss in [closed form](30_exact_loss.ipynb). Sampled
# losses are noisy: at density 0.04 the loss on 16,384 inputs is off by several percent, while the
# best models of [privileged bases](../papers/superposition/privileged_basis.ipynb) differ by less. The
# noise is in how many inputs have which active features, and those probabilities are known. So the
# sum over supports is done exactly, and only the values of the active features are integrated
# numerically: by Gauss points for one or two active features and by Sobol points for more. Supports
# of more than `max_active` features are left out.

# %%
#| export
def unit_cube_points(
    k:int,      # Dimensions
    points:int, # About this many
)->tuple:       # Points [point, k] and weights [point] that add up to 1, float64
    "Return points and weights of a quadrature on the unit cube"
    if k==0: return torch.zeros(1, 0, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    if k>2:
        u = SobolEngine(k, scramble=True, seed=0).draw(points).double()
        return u, torch.full((points,), 1/points, dtype=torch.float64)
    x,w = np.polynomial.legendre.leggauss(round(points**(1/k)))
    grid = np.stack(np.meshgrid(*[(x+1)/2]*k, indexing='ij'), -1).reshape(-1, k)
    weight = np.stack(np.meshgrid(*[w/2]*k, indexing='ij'), -1).reshape(-1, k).prod(1)
    return torch.tensor(grid), torch.tensor(weight)

def support_points(
    density:float,              # Of every feature
    n:int,                      # Features
    points=(1,16,64,64,16),     # For each support with 0, 1, 2, ... active features
)->tuple:                       # Inputs [point, n] and weights [point], float64
    "Return inputs and weights whose weighted mean is the expectation over independent features"
    inputs = []
    weights = []
    for k,count in enumerate(points):
        u,w = unit_cube_points(k, count)
        sets = list(combinations(range(n), k))
        on = torch.tensor(sets, dtype=torch.long).view(len(sets), 1, k)
        x = torch.zeros(len(on), len(u), n, dtype=torch.float64)
        x.scatter_(2, on.expand(-1, len(u), -1), u.expand(len(on), -1, -1))
        inputs.append(x.view(-1, n))
        weights.append((density**k*(1-density)**(n-k)*w).repeat(len(on)))
    return torch.cat(inputs), torch.cat(weights)


# %% [markdown]
# The weights add up to the probability of the supports that are counted. The second moment of a
# feature is $p/3$:

# %%
x,w = support_points(.04, 10)
test_close(w.sum().item(), 1, 1e-4)
test_close((w@x**2)[0].item(), .04/3, 1e-4)
len(x), 1-w.sum().item()


# %%
#| export
def quadrature_loss(
    W:torch.Tensor,   # [feature, hidden]
    b:torch.Tensor,   # [feature]
    x, w,             # Inputs and weights, as from `support_points`
    importance=1.,    # Number or [feature]
    hidden=torch.relu,# Activation of the hidden layer
)->torch.Tensor:      # Scalar, summed over features
    "Return the loss of a tied model whose outputs have a ReLU"
    error = (x - torch.relu(hidden(x@W)@W.mT + b))**2
    imp = torch.as_tensor(importance, dtype=x.dtype).expand(x.shape[1])
    return w@(error@imp)


# %% [markdown]
# Without the hidden ReLU the sum agrees with the closed form:

# %%
g = torch.Generator().manual_seed(0)
W = torch.randn(6, 3, generator=g, dtype=torch.float64)*.6
b = torch.randn(6, generator=g, dtype=torch.float64)*.1
x,w = support_points(.1, 6, (1,64,1024,1024,256,64,64))
found = quadrature_loss(W, b, x, w, hidden=lambda z: z)
test_close(found.item(), exact_loss(W, b, .1).item(), 1e-4)
found.item(), exact_loss(W, b, .1).item()


# %%
#| export
def minimise_quadrature(
    W:torch.Tensor, b:torch.Tensor, # Start
    x, w, importance=1.,            # As in `quadrature_loss`
    maxiter=200,
)->tuple:                           # W, b and loss
    "Minimise the loss of a hidden-ReLU model by L-BFGS"
    n,m = W.shape
    scale = 1/quadrature_loss(W.double()*0, b.double()*0, x, w, importance).item()
    split = lambda t: (t[:n*m].view(n, m), t[n*m:])
    loss = lambda t: scale*quadrature_loss(*split(t), x, w, importance)
    found = minimise_lbfgs(loss, torch.cat([W.flatten(), b]).double(), maxiter, maxcor=30,
                           ftol=1e-12, gtol=1e-9)
    return *split(found), loss(found).item()/scale


# %% [markdown]
# Three features in two neurons, from a start in which the neurons serve one feature each and both
# together serve the third:

# %%
x,w = support_points(.1, 3, (1,16,64,64))
start = torch.tensor([[.8,-.2],[-.2,.8],[.8,.8]])
W,b,loss = minimise_quadrature(start, torch.zeros(3), x, w)
assert loss < quadrature_loss(start.double(), torch.zeros(3), x, w)
W.numpy().round(2), loss
