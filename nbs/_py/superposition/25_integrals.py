# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Integrals
#
# > Rectified powers of a linear function have closed-form means over a cube.

# %%
#| default_exp superposition.integrals

# %%
#| export
import torch
from itertools import product
from math import factorial

# %%
#| hide
from fastcore.test import *
torch.manual_seed(0);


# %% [markdown]
# For a fixed set of active features, an output of a toy model is a ReLU of a linear function of
# numbers that are uniform on a cube, and its squared error is an integral with a closed form. This
# page computes the integrals; [exact loss](30_exact_loss.ipynb) adds them up.
#
# ## Corner sums
#
# A rectified power of a linear function integrates over a cube to an alternating sum over its $2^k$
# corners:
#
# $$\Phi_q(a,\beta) = \int_{[0,1]^k} (a\cdot x+\beta)_+^q\,dx =
# \frac{q!}{(q+k)!\,\prod_j a_j}\sum_{v\in\{0,1\}^k}(-1)^{k-|v|}(a\cdot v+\beta)_+^{q+k}.$$

# %%
#| export
def _corners(k):
    v = torch.tensor(list(product([0.,1.], repeat=k)), dtype=torch.float64).view(2**k, k)
    return v, (-1)**(k-v.sum(-1))

def corner_sum(
    a:torch.Tensor,    # [..., k] coefficients, none of them 0
    beta:torch.Tensor, # [...]
    q:int,             # Power: 0, 1 or 2
)->torch.Tensor:       # [...]
    "Return $\\Phi_q$ by the formula"
    k = a.shape[-1]
    v,sign = _corners(k)
    z = (a@v.T + beta[...,None]).clamp(min=0)
    z = z**(q+k) if q+k else (z>0).double()
    return factorial(q)/factorial(q+k)/a.prod(-1)*(sign*z).sum(-1)


# %% [markdown]
# Comparison with a midpoint rule of 8 million cells:

# %%
a = torch.tensor([.7,-1.1,.4], dtype=torch.float64)
beta = torch.tensor(.1, dtype=torch.float64)
g = (torch.arange(200, dtype=torch.float64)+.5)/200
z = a[0]*g[:,None,None] + a[1]*g[:,None] + a[2]*g + beta
brute = torch.stack([(z>0).double().mean(), z.relu().mean(), z.relu().square().mean()])
ours = torch.stack([corner_sum(a, beta, q) for q in range(3)])
test_close(ours[1:], brute[1:], eps=1e-5); test_close(ours[0], brute[0], eps=1e-3)
ours, brute


# %% [markdown]
# ## Numerical stability
#
# The formula loses precision in floating point in two cases: large powers of a large $z$ whose sum
# is small, and a coefficient near zero.
#
# Reflection handles the first case. $z_+^q = z^q - (-1)^q(-z)_+^q$, and the moments of $z$ are
# elementary. The corner sum can therefore always run over the shorter side of the kink, and it is
# empty if $z$ has one sign on the whole cube.

# %%
#| export
def _reflected_corner_sum(a, beta, q):
    lo = beta + a.clamp(max=0).sum(-1)
    hi = beta + a.clamp(min=0).sum(-1)
    flip = (hi > -lo).detach()
    s = 1-2*flip.double()
    side = corner_sum(s[...,None]*a, s*beta, q)
    mean = beta + a.sum(-1)/2
    moments = [torch.ones_like(mean), mean, mean**2 + (a**2).sum(-1)/12][q]
    return torch.where(flip, moments - (-1)**q*side, side)


# %% [markdown]
# A bound on the coefficients handles the second case. A coefficient closer to zero than a tolerance
# is replaced by one at the tolerance that has the same mean effect, and the added variance,
# $(\tilde a^2-a^2)/12$, is subtracted to second order. The remaining error is of third order in the
# tolerance, which is chosen so that the corner sum cannot lose more than nine digits.

# %%
#| export
def _bound_away_from_zero(a):
    k = a.shape[-1]
    tol = (1e-7/factorial(k+2))**(1/(k-1)) if k>1 else 1e-8
    floor = tol*a.detach().abs().amax(-1, keepdim=True).clamp(min=1e-6)
    small = a.detach().abs() < floor
    bounded = torch.where(small, torch.where(a.detach()<0, -floor, floor), a)
    return bounded, ((a-bounded)/2).sum(-1), ((a**2-bounded**2)/24).sum(-1)

def phi(
    a:torch.Tensor,    # [..., k] coefficients
    beta:torch.Tensor, # [...] offset
    q:int,             # Power: 0, 1 or 2
)->torch.Tensor:       # [...]
    "Return the mean of $(a\\cdot x+\\beta)_+^q$ for $x$ uniform on the unit cube, float64"
    if not a.shape[-1]: return beta.clamp(min=0)**q if q else (beta>0).double()
    bounded,shift,extra = _bound_away_from_zero(a)
    main = _reflected_corner_sum(bounded, beta+shift, q)
    if q<2 or not extra.any(): return main
    return main + 2*extra*_reflected_corner_sum(bounded, beta+shift, 0)


# %% [markdown]
# Ten coefficients over six orders of magnitude, for which the bare formula returns nonsense. As a
# coefficient tends to zero, the value must approach the value without it:

# %%
a = torch.tensor([.9,-.5]+[10.**-k for k in range(1,7)], dtype=torch.float64)
corner_sum(a, beta, 2), phi(a, beta, 2), phi(a[:4], beta+a[4:].sum()/2, 2)

# %%
test_close(phi(a, beta, 2), phi(a[:4], beta+a[4:].sum()/2, 2), eps=1e-6)


# %% [markdown]
# ## Error of one output
#
# Let the set $A$ be active. Output $i$ reads $z = \sum_{j\in A} G_{ij}x_j + b_i$ with $G = WW^\top$
# in the layout `[feature, hidden]`. Outside $A$ the target is zero and the error is $z_+$; inside
# it is $x_i - z_+$. The cross term follows from integration by parts in $x_i$, here with $a_i =
# G_{ii}$ and $a_{-i}$ for the others in $A$:
#
# $$E[x_i z_+] = \frac{\Phi_2(a_{-i},\,b_i+a_i) - \Phi_2(a,\,b_i)}{2a_i}.$$
#
# A signed feature is uniform on $[-1,1]$. The cube is then twice as wide and centred, and the first
# term becomes the mean over both ends.

# %%
#| export
def cube_mean(a, beta, q, signed=False):
    "Return `phi`, or with `signed` the mean over the cube from -1 to 1"
    return phi(2*a, beta-a.sum(-1), q) if signed else phi(a, beta, q)

def cross_mean(
    a:torch.Tensor,           # [..., k] coefficients of the other active features
    own_weight:torch.Tensor,  # [...] coefficient of the output's own feature
    beta:torch.Tensor,        # [...]
    mean_square:torch.Tensor, # [...] mean of $z_+^2$ with all of them active
    signed=False,
)->torch.Tensor:              # [...]
    "Return the mean of $x_i z_+$"
    end = lambda s: cube_mean(a, beta+s*own_weight, 2, signed)
    small = own_weight.detach().abs()<1e-3
    parts = ((end(1)+end(-1))/2 if signed else end(1)) - mean_square
    parts = parts/(2*torch.where(small, 1., own_weight))
    if not small.any(): return parts
    middle = beta + own_weight/2
    limit = (own_weight/3*cube_mean(a, beta, 0, True) if signed
            else phi(a, middle, 1)/2 + own_weight/12*phi(a, middle, 0))
    return torch.where(small, limit, parts)


# %% [markdown]
# Comparison with a midpoint rule, for both ranges and both signs of the output's own coefficient:

# %%
a = torch.tensor([.6,-.8]).double()
beta = torch.tensor(.1).double()
g = (torch.arange(150)+.5).double()/150
for weight in torch.tensor([.7,-.4,1e-5]).double():
    for signed,x in ((False,g), (True,2*g-1)):
        z = (weight*x[:,None,None] + a[0]*x[:,None] + a[1]*x + beta).relu()
        mean_square = cube_mean(torch.cat([a, weight[None]]), beta, 2, signed)
        cross = cross_mean(a, weight, beta, mean_square, signed)
        test_close(cross, (x[:,None,None]*z).mean(), eps=1e-4)
        test_close(mean_square, z.square().mean(), eps=1e-4)


# %% [markdown]
# Together these give the error of one output.

# %%
#| export
def conditional_errors(
    a:torch.Tensor,          # [..., k] coefficients of the other active features
    own_weight:torch.Tensor, # [...] coefficient of the output's own feature
    beta:torch.Tensor,       # [...]
    signed=False,            # Features uniform on [-1,1] instead of [0,1]
)->tuple:                    # Two [...]
    "Return squared errors of an output with `k` others active: own feature inactive, active"
    mean_square = cube_mean(torch.cat([a, own_weight[...,None]], -1), beta, 2, signed)
    cross = cross_mean(a, own_weight, beta, mean_square, signed)
    return cube_mean(a, beta, 2, signed), 1/3 - 2*cross + mean_square


# %% [markdown]
# A single feature of unit length without bias is returned exactly. With $W_i^2=\tfrac12$, half of
# it is missing: $E(x/2)^2=\tfrac1{12}$.

# %%
def single_error(weight):
    return conditional_errors(torch.zeros(0), *torch.tensor([weight,0.], dtype=torch.float64))[1]

test_close(single_error(1.), 0); test_close(single_error(.5), 1/12)
single_error(.5)
