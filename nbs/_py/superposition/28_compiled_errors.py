# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Compiled errors
#
# > Expected squared errors of ReLU models, and their gradients, in one compiled loop over supports.

# %%
#| default_exp superposition.compiled_errors

# %%
#| export
import numpy as np
import torch
from numba import njit
from moral_sc.superposition.engines.simd import cached_njit

# %%
#| hide
import pandas as pd
from moral_sc.superposition.integrals import conditional_errors

# %% [markdown]
# The [integrals](25_integrals.ipynb) of a model with five features are some hundred numbers, and
# PyTorch spends its time on issuing operations. This page has the same formulas as compiled loops,
# with gradients written out. [Exact loss](30_exact_loss.ipynb) uses them.
#
# ## Mean of a rectified power
#
# Names and formulas are those of the [integrals](25_integrals.ipynb). Each function writes the
# derivatives with respect to the $k$ coefficients to `grad`, and returns the value and the derivative
# with respect to $\beta$.

# %%
#| export
_inner = njit(error_model='numpy', no_cpython_wrapper=True, no_cfunc_wrapper=True)

@_inner
def _corner_sum(a, k, beta, q, sign, grad):
    "Compute the formula at `sign*a` and `sign*beta`"
    power = q+k
    scale = 1.
    for j in range(q+1, power+1): scale /= j
    for j in range(k):
        scale /= sign*a[j]
        grad[j] = 0.
    value = 0.
    slope = 0.
    for corner in range(1<<k):
        z = beta
        odd = k&1
        for j in range(k):
            if corner>>j & 1:
                z += a[j]
                odd ^= 1
        z *= sign
        if z<=0: continue
        term = -1. if odd else 1.
        for _ in range(power-1): term *= z
        value += term*z
        slope += term
        for j in range(k):
            if corner>>j & 1: grad[j] += term
    value *= scale
    scale *= power
    for j in range(k): grad[j] = grad[j]*scale - value/(sign*a[j])
    return value, slope*scale

@_inner
def _reflected_corner_sum(a, k, beta, q, grad):
    "Run the corner sum over the shorter side of the kink"
    low = beta
    high = beta
    total = beta
    square = 0.
    for j in range(k):
        low += min(a[j], 0.)
        high += max(a[j], 0.)
        total += a[j]
        square += a[j]*a[j]
        grad[j] = 0.
    flip = high>-low
    sign = -1. if flip else 1.
    value = 0.
    slope = 0.
    if (low<0 if flip else high>0): value,slope = _corner_sum(a, k, beta, q, sign, grad)
    if not flip: return value, slope
    mean = (beta+total)/2
    factor = -1. if q%2 else 1.
    for j in range(k):
        moment = mean + a[j]/6 if q==2 else .5*q
        grad[j] = moment + factor*grad[j]
    if q==2: return mean*mean + square/12 - value, 2*mean + slope
    if q==1: return mean + value, 1 - slope
    return 1 - value, slope

@_inner
def _cube_mean(a, k, beta, q, signed, grad, bounded, work):
    "Compute the mean over the unit cube, or with `signed` over the cube from -1 to 1"
    if k==0:
        if q==0: return (1. if beta>0 else 0.), 0.
        if beta<0: return 0., 0.
        return (beta*beta if q==2 else beta), (2*beta if q==2 else 1.)
    width = 2. if signed else 1.
    largest = 1e-6
    factorial = 1.
    for j in range(k):
        largest = max(largest, abs(width*a[j]))
        if signed: beta -= a[j]
    for j in range(2, k+3): factorial *= j
    tolerance = (1e-7/factorial)**(1/(k-1)) if k>1 else 1e-8
    floor = tolerance*largest
    extra = 0.
    for j in range(k): # Keep coefficients away from zero
        coefficient = width*a[j]
        grad[j] = 0.
        bounded[j] = coefficient
        if abs(coefficient)<floor:
            bounded[j] = -floor if coefficient<0 else floor
            beta += (coefficient-bounded[j])/2
            extra += (coefficient**2-bounded[j]**2)/24
    value = 0.
    slope = 0.
    tail = 0.
    for part in range(2 if q==2 and extra!=0 else 1):
        factor = 2*extra if part else 1.
        tail,tail_slope = _reflected_corner_sum(bounded, k, beta, 0 if part else q, work)
        value += factor*tail
        slope += factor*tail_slope
        for j in range(k): grad[j] += factor*work[j]
    for j in range(k):
        coefficient = width*a[j]
        if abs(coefficient)<floor: grad[j] = slope/2 + (coefficient/6*tail if part else 0.)
        if signed: grad[j] = 2*grad[j] - slope
    return value, slope


# %% [markdown]
# ## Errors of all outputs
#
# An output needs the mean of $z_+^2$. If its own feature is active, it also needs one or two means over
# the other active features: of $z_+^2$ at the ends of the cube, or of lower powers if the coefficient
# of its own feature is small. The error is a weighted sum of these means.

# %%
#| export
@_inner
def _own_term(call, own, small, signed):
    "Return factor, power and shift (in units of `own`) of a mean over the other features"
    if small and signed: return -2*own/3, 0, 0.
    if small: return (-1., 1, .5) if call==1 else (-own/6, 0, .5)
    if signed: return -.5/own, 2, (1. if call==1 else -1.)
    return -1/own, 2, 1.

@cached_njit(nogil=True, error_model='numpy')
def _add_errors(G, b, on, weight, signed, errors, G_slope, b_slope):
    "Add the errors of all outputs, and their derivatives by the output's row of G and by its b"
    n = G.shape[2]
    index = np.empty((2,n), np.int64) # Active features, and those other than the output's own
    count = np.empty(2, np.int64)
    a = np.empty(n)
    grad = np.empty(n)
    bounded = np.empty(n)
    work = np.empty(n)
    for m in range(len(b)):
        for s in range(len(on)):
            w = weight[m,s]
            if w==0: continue
            for i in range(b.shape[1]):
                count[0] = 0
                count[1] = 0
                for j in range(n):
                    if on[s,j]:
                        index[0,count[0]] = j
                        index[1,count[1]] = j
                        count[0] += 1
                        count[1] += j!=i
                own = G[m,i,i]
                small = abs(own)<1e-3
                calls = 1
                if on[s,i]: calls = 2 if small==signed else 3
                error = 0.
                by_own = 0.
                first = 0.
                value = 0.
                for call in range(calls):
                    factor = 1. if calls==1 or small else 1 + 1/own
                    q = 2
                    shift = 0.
                    part = min(call, 1)
                    if call: factor,q,shift = _own_term(call, own, small, signed)
                    k = count[part]
                    for j in range(k): a[j] = G[m,i,index[part,j]]
                    value,slope = _cube_mean(a, k, b[m,i]+shift*own, q, signed, grad, bounded, work)
                    if call==0: first = value
                    error += factor*value
                    by_own += factor*shift*slope
                    b_slope[m,i] += w*factor*slope
                    for j in range(k): G_slope[m,i,index[part,j]] += w*factor*grad[j]
                if calls>1: # The factors depend on the coefficient as well
                    by_own -= value/(1.5 if signed else 6.) if small else (error-first)/own
                    G_slope[m,i,i] += w*by_own
                    error += 1/3
                errors[m,i] += w*error

def errors_and_slopes(
    G:torch.Tensor,      # [instance, output, feature], what each output reads; float64
    b:torch.Tensor,      # [instance, output]; outputs of the first features, or of all
    on:torch.Tensor,     # [support, feature], bool
    weight:torch.Tensor, # [instance, support], probabilities
    signed=False,        # Active features uniform on [-1,1] instead of [0,1]
)->tuple:                # [instance, output]; its derivatives by its row of G, and by its b
    "Return the expected squared error of each output of a ReLU model, with derivatives"
    results = tuple(t.new_zeros(t.shape) for t in (b, G, b))
    given = [t.detach().contiguous().numpy() for t in (G, b, on, weight)]
    _add_errors(*given, bool(signed), *(t.numpy() for t in results))
    return results


# %% [markdown]
# ## Comparison with automatic differentiation
#
# An output reads $k$ active features, with coefficients of either sign, some of them next to nothing, and
# an offset that puts the kink inside or outside the cube. Its own feature is inactive or active. Values
# and derivatives agree with those of the [integrals](25_integrals.ipynb); the table has the largest
# differences for each $k$.

# %%
g = torch.Generator().manual_seed(0)
def draw_outputs(k, cases=200):
    "Return coefficients, the output's own first, and offsets"
    sizes = torch.tensor([1.,1.,1e-9], dtype=torch.float64)
    row = 2*torch.rand(cases, k+1, generator=g, dtype=torch.float64) - 1
    row = (row+row.sign()*.2)*sizes[torch.randint(3, row.shape, generator=g)]
    beta = torch.randn(cases, generator=g, dtype=torch.float64)
    return row.requires_grad_(), beta.requires_grad_()

def compare(k, signed):
    "Return the largest differences of values, slopes by coefficients and slopes by offset"
    row,beta = draw_outputs(k)
    expected = conditional_errors(row[:,1:], row[:,0], beta, signed)
    largest = []
    for own in (False,True):
        slopes = torch.autograd.grad(expected[own].sum(), (row,beta), retain_graph=True,
                                     materialize_grads=True)
        found = errors_and_slopes(row[:,None], beta[:,None], torch.tensor([[own]+[True]*k]),
                                  torch.ones_like(beta[:,None]), signed)
        largest.append([(t[:,0]-e).abs().max().item()
                        for t,e in zip(found, (expected[own], *slopes))])
    return np.max(largest, 0)

differences = {(k,signed): compare(k, signed) for k in range(6) for signed in (False,True)}
assert max(d.max() for d in differences.values()) < 1e-6
pd.DataFrame(differences, index=['value','by coefficients','by offset']).T
