# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A predicted staircase
#
# > Which polytope gains most for each dimension it takes, from the densest features to the sparsest.

# %%
#| default_exp superposition.polytope_gain

# %%
#| export
import pandas as pd, torch
from scipy.optimize import brentq
from moral_sc.superposition.exact_loss import fit_exact, minimise_lbfgs, relu_errors, supports
from moral_sc.superposition.features import expand, moments
from moral_sc.superposition.geometry import polygon, polytopes
from moral_sc.superposition.integrals import conditional_errors
from moral_sc.superposition.model import ToyConfig

# %%
#| hide
import numpy as np
from fastcore.test import *
from moral_sc.superposition.exact_loss import exact_loss
from moral_sc.superposition.geometry import antiprism
from moral_sc.superposition.plots import plot_curves
torch.manual_seed(0); torch.set_num_threads(1);


# %% [markdown]
# With many more features than dimensions there are always features left to take in. A dimension is
# then worth what the shape in it gains, and trained models should go from shape to shape as
# features grow sparser. The paper sees plateaus and asks why these [@elhage2022]; with
# [exact losses](30_exact_loss.ipynb) they can be computed.
#
# ## One active feature
#
# In the limit of rare features at most one is active. Without bias and at unit length an error
# comes only from pairs at an acute angle, since the ReLU removes every negative interference.

# %%
#| export
def one_sparse_loss(
    W:torch.Tensor, # [instance, feature, hidden], or one model [feature, hidden]
    b:torch.Tensor, # [instance, feature], or [feature]
    importance=1.,  # Number, [feature] or [instance, feature]
)->torch.Tensor:    # [instance], or a scalar
    "Loss with exactly one feature active, added up over which it is"
    one = W.ndim==2
    W,b = (t.double()[None] if one else t.double() for t in (W,b))
    I,n,_ = W.shape
    on = torch.eye(n, dtype=torch.bool)
    weight = torch.ones(I, n, dtype=torch.float64)
    loss = (expand(importance, I, n, 'importance')*relu_errors(W@W.mT, b, on, weight)).sum(-1)
    return loss[0] if one else loss


# %% [markdown]
# That is the part of first order in $p$ of the whole loss. A square pays nothing. A
# pentagon at unit length pays for its ten neighbours.

# %%
W = torch.randn(5,2)
b = torch.zeros(5)
p = 1e-6
test_close(exact_loss(W, b, p)/p, one_sparse_loss(W, b), eps=1e-4)
test_close(one_sparse_loss(polygon(4), torch.zeros(4)), 0, eps=1e-12)
test_close(one_sparse_loss(polygon(5), b), 5*2*np.cos(2*np.pi/5)**2/3, eps=1e-6)
one_sparse_loss(polygon(5), b)


# %% [markdown]
# How many can avoid each other? Vectors whose products are all zero or negative number at most
# $2m$ in $m$ dimensions, and $2m$ only as $m$ antipodal pairs. That makes one half a sticky
# value of $D$: up to two features a dimension are free, the next one is not.
#
# ## The best length and bias
#
# In a regular shape all corners look alike, so one output is enough, with one length $s$ and one
# bias $b$. `corner_loss` is its expected squared error when all features have density $p$.

# %%
#| export
def corner_loss(
    shape:torch.Tensor, # [corner, hidden], every corner like every other
    s:torch.Tensor, b:torch.Tensor, # [point], length and bias
    p:torch.Tensor,     # [point], density
)->torch.Tensor:        # [point]
    "Expected squared error of one corner of a regular shape"
    g = shape@shape[0]
    n = len(shape)
    own = s**2*g[0]
    a = (s**2)[:,None]*g[1:]
    on,weight = supports(p[:,None].expand(-1, n-1))
    count = on.sum(-1)
    total = 0.
    for k in range(n):
        A = on[count==k].nonzero()[:,1].view(-1, k) if k else torch.zeros(1, 0, dtype=torch.long)
        off,active = conditional_errors(a[:,A], *(t[:,None].expand(-1, len(A)) for t in (own,b)))
        total = total + (weight[:,count==k]*((1-p[:,None])*off + p[:,None]*active)).sum(-1)
    return total

def best_regular_shape(
    shape:torch.Tensor, # [corner, hidden]
    density,            # [point]
)->tuple:               # Loss of a feature, length, bias; [point] each
    "The best length and bias of a regular shape"
    p = torch.as_tensor(density, dtype=torch.float64)
    begin = torch.tensor([[1.,0.],[1.2,-.3]], dtype=torch.float64)
    f = lambda t: corner_loss(shape, t[:,0], t[:,1], p.repeat(2))/p.repeat(2)
    t = minimise_lbfgs(f, begin.repeat_interleave(len(p), 0), 100)
    loss,which = (f(t)*p.repeat(2)).view(2, -1).min(0)
    s,b = t.view(2, -1, 2)[which,torch.arange(len(p))].unbind(-1)
    return loss,s.abs(),b


# %% [markdown]
# Eight corners one by one, or the whole antiprism at once:

# %%
loss,s,b = best_regular_shape(antiprism(), [.1])
whole = exact_loss(s*antiprism(), b.expand(8), .1)
test_close(whole, 8*loss[0], eps=1e-9)
loss, s, b

# %% [markdown]
# At a density of $10^{-5}$ the cost for each active feature is the one-sparse limit. Two, three and four
# corners are free in the plane. From five on it costs, at a length above one and a bias below zero that
# cuts the interference off.

# %%
rows = []
for k in range(2,9):
    loss,s,b = (v.item() for v in best_regular_shape(polygon(k), [1e-5]))
    rows.append(dict(corners=k, loss=loss/1e-5, length=s, bias=b))
gons = pd.DataFrame(rows).set_index('corners')
assert gons.loc[:4,'loss'].max() < 1e-4
test_close(gons.loc[5:,'loss'].tolist(), [.015826,.048192,.083271,.115546], eps=1e-4)
test_close(gons.loc[5:,'length'].tolist(), [1.1705,1.3205,1.4484,1.5504], eps=1e-3)
gons.round(4)


# %% [markdown]
# ## The staircase
#
# A shape of $N$ corners in $d$ dimensions saves $v(p)-\ell(p)$ on each feature and packs $N/d$ of them
# into a dimension. `polytope_gain` compares that gain with the gain $v(p)$ of a dimension dedicated to
# one feature.

# %%
#| export
def polytope_gain(
    density,          # [point]
    shapes=polytopes, # name -> [corner, hidden], regular shapes
)->pd.DataFrame:      # Density x shape; 1 is a dimension dedicated to one feature
    "Gain for each dimension, relative to dedicated dimensions"
    p = torch.as_tensor(density, dtype=torch.float64)
    v = moments(p)[1]
    gain = {name: (v-best_regular_shape(W, p)[0])/v*len(W)/W.shape[1] for name,W in shapes.items()}
    return pd.DataFrame({k: g.numpy() for k,g in gain.items()},
                        index=pd.Index(p.tolist(), name='density'))


# %%
p = [1,.95,.9,.8,.7,.62,.5,.35,.25,.2,.15,.1,.05,.03,.02,.01]
gain = polytope_gain(p, {k: W for k,W in polytopes.items() if k!='octagon'})
ranked = np.sort(gain)
best = pd.DataFrame(dict(shape=gain.idxmax(axis=1), gain=ranked[:,-1],
                         lead=ranked[:,-1]/ranked[:,-2]-1))
best.round(4).T

# %%
#| label: fig-staircase
#| fig-cap: Gain for each dimension against sparsity, relative to one feature a dimension; regular shapes at their best length and bias
shown = ['triangle','digon','pentagon','antiprism','hexagon','heptagon']
plot_curves([1/x for x in p], {k: gain[k] for k in shown}, 'sparsity 1/p',
            'gain for each dimension', logx=True, legend=True)

# %% [markdown]
# @fig-staircase has the digon in front over a wide range, with the antiprism and then the hexagon and
# the heptagon after it. Where shapes change the leads are thin, and at the dense end they are thin
# everywhere: the tetrahedron's is a hundredth of a percent. Trained models will mix neighbours there.
# Shapes of four and more dimensions other than the simplex were not tried, so at the sparse end
# this is a lower bound on superposition.

# %%
winners = dict(zip(p, best['shape']))
expected = {1: 'simplex4', .9: 'tetrahedron', .7: 'triangle', .5: 'digon', .25: 'digon',
            .2: 'pentagon', .15: 'antiprism', .05: 'antiprism', .02: 'hexagon', .01: 'heptagon'}
for x,name in expected.items(): test_eq(winners[x], name)
best.lead.loc[.9]

# %% [markdown]
# Would an irregular shape do better? Six features, free to lie in the plane as they like, at $p=0.2$ and
# from several starts: one of them is left out, and the others are the regular pentagon, whose gain the
# staircase has.

# %%
fit = fit_exact(ToyConfig(6, 2, density=.2), restarts=3, maxiter=200)
v = moments(.2)[1]
test_close((6*v-fit['loss'][0,0].item())/v/2, gain.loc[.2,'pentagon'], eps=1e-3)
fit['W'][0,0].norm(dim=1)


# %% [markdown]
# ## Pentagon or two digons
#
# Five features in a plane: all as a pentagon, or four as two digons without the fifth? Which costs less
# depends on the density, of all five or of one of them. Both are optimised freely from their own
# start, so they remain shapes of their kind but may lean.

# %%
#| export
def pentagon_vs_digons(
    density,   # [point, 5], or [point] for equal features; feature 0 is the one left out
)->tuple:      # Losses of the pentagon and of two digons, [point] each
    "Exact losses of a pentagon and of two digons, each at its best"
    p = torch.as_tensor(density, dtype=torch.float64)
    p = p[:,None].expand(-1, 5) if p.ndim==1 else p
    config = ToyConfig(5, 2, len(p), density=p)
    digons = torch.cat([torch.zeros(1, 2), polygon(4)])
    return tuple(fit_exact(config, starts=W[None])['loss'][:,0] for W in (polygon(5),digons))

def transition_point(
    density,   # Number -> [5]: densities along a path
    low:float, high:float, # Ends of the path, between which the shapes trade places
)->float:
    "Where along a path pentagon and digons cost the same"
    def lead(t):
        pentagon,digons = pentagon_vs_digons(torch.as_tensor(density(t), dtype=torch.float64)[None])
        return (pentagon/digons).log().item()
    return brentq(lead, low, high, xtol=1e-4)


# %%
equal = transition_point(lambda p: [p]*5, .15, .3)
rarer = transition_point(lambda rho: [.05*rho]+[.05]*4, .2, .4)
test_close([equal,rarer], [.2249,.269], eps=1e-3)
equal, rarer

# %% [markdown]
# Equal features change at a density of about 0.22. At $p=0.05$ one feature has to be 3.7 times
# sparser than the others before it is better left out, and not 2.5 times, where the paper sees it
# happen.

# %%
path = [.25,.3,.4,.7,1.]
pentagon,digons = pentagon_vs_digons([[.05*r]+[.05]*4 for r in path])
test_eq((pentagon<digons).tolist(), [False]+[True]*4)
pd.DataFrame(dict(pentagon=pentagon, digons=digons), index=path).round(6)
