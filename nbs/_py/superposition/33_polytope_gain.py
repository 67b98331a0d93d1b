# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Polytope gain
#
# > The polytope with the largest gain per dimension depends on the density of the features.

# %%
#| default_exp superposition.polytope_gain

# %%
#| export
import pandas as pd, torch
from moral_sc.foundation.arguments import checked
from moral_sc.foundation.errors import ConfigError, short_repr
from moral_sc.superposition.exact_loss import minimise_lbfgs, relu_errors, supports
from moral_sc.superposition.features import as_numbers, expand, moments
from moral_sc.superposition.geometry import polytopes

# %%
#| hide
import numpy as np
from fastcore.test import *
from moral_sc.superposition.exact_loss import exact_loss, fit_exact
from moral_sc.superposition.geometry import antiprism, polygon
from moral_sc.superposition.model import ToyConfig
from moral_sc.superposition.plots import plot_curves
torch.manual_seed(0); torch.set_num_threads(1);


# %% [markdown]
# With many more features than dimensions there are always features left to store. The value of a
# dimension is then the gain of the shape in it, and trained models should change from shape to
# shape as features become sparser. The paper observes plateaus and asks why they occur at these
# shapes [@elhage2022]. With [exact losses](30_exact_loss.ipynb) the gains can be computed.
#
# ## One active feature
#
# In the limit of rare features, at most one is active. Without bias and at unit length, errors come
# only from pairs at an acute angle, since the ReLU removes every negative interference.

# %%
#| export
def one_sparse_loss(
    W:torch.Tensor, # [instance, feature, hidden], or one model [feature, hidden]
    b:torch.Tensor, # [instance, feature], or [feature]
    importance=1.,  # Number, [feature] or [instance, feature]
)->torch.Tensor:    # [instance], or a scalar
    "Return the loss with exactly one feature active, summed over the features"
    single = W.ndim==2
    W,b = (t.double()[None] if single else t.double() for t in (W,b))
    I,n,_ = W.shape
    support = torch.eye(n, dtype=torch.bool)
    weight = torch.ones(I, n, dtype=torch.float64)
    loss = (expand(importance, I, n, 'importance')*relu_errors(W@W.mT, b, support, weight)).sum(-1)
    return loss[0] if single else loss


# %% [markdown]
# This is the first-order term in $p$ of the full loss. A square has no error. A pentagon at unit
# length has errors from its ten neighbours.

# %%
W = torch.randn(5,2)
b = torch.zeros(5)
p = 1e-6
test_close(exact_loss(W, b, p)/p, one_sparse_loss(W, b), eps=1e-4)
test_close(one_sparse_loss(polygon(4), torch.zeros(4)), 0, eps=1e-12)
test_close(one_sparse_loss(polygon(5), b), 5*2*np.cos(2*np.pi/5)**2/3, eps=1e-6)
one_sparse_loss(polygon(5), b)


# %% [markdown]
# At most $2m$ vectors in $m$ dimensions can have products that are all zero or negative, and $2m$
# only as $m$ antipodal pairs. This makes one half a preferred value of $D$: up to two features per
# dimension cause no interference error, and a third does.
#
# ## Best length and bias
#
# In a regular shape all corners are equivalent, so one output with one length $s$ and one bias $b$
# is enough. `corner_loss` is its expected squared error when all features have density $p$.

# %%
#| export
def corner_loss(
    shape:torch.Tensor, # [corner, hidden], all corners equivalent
    s:torch.Tensor, b:torch.Tensor, # [point], length and bias
    p:torch.Tensor,     # [point], density
)->torch.Tensor:        # [point]
    "Return the expected squared error of one corner of a regular shape"
    g = (s**2)[:,None]*(shape@shape[0])
    errors = relu_errors(g[:,None], b[:,None], *supports(p[:,None].expand(-1, len(shape))))
    return errors[:,0]

def best_regular_shape(
    shape:torch.Tensor, # [corner, hidden]
    density,            # [point]
)->tuple:               # Loss of a feature, length, bias; [point] each
    "Find the best length and bias of a regular shape"
    p = torch.as_tensor(density, dtype=torch.float64)
    initial = torch.tensor([[1.,0.],[1.2,-.3]], dtype=torch.float64)
    f = lambda t: corner_loss(shape, t[:,0], t[:,1], p.repeat(2))/p.repeat(2)
    t = minimise_lbfgs(f, initial.repeat_interleave(len(p), 0), 100)
    loss,best = (f(t)*p.repeat(2)).view(2, -1).min(0)
    s,b = t.view(2, -1, 2)[best,torch.arange(len(p))].unbind(-1)
    return loss,s.abs(),b


# %% [markdown]
# Eight times the loss of one corner is the loss of the whole antiprism:

# %%
loss,s,b = best_regular_shape(antiprism(), [.1])
whole = exact_loss(s*antiprism(), b.expand(8), .1)
test_close(whole, 8*loss[0], eps=1e-9)
loss, s, b

# %% [markdown]
# At a density of $10^{-5}$ the cost per active feature is the one-sparse limit. Two, three and four
# corners in the plane cost nothing. From five corners on there is a cost, at a length above one and
# a bias below zero that cuts the interference off.

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
# ## Gain by density
#
# A shape of $N$ corners in $d$ dimensions saves $v(p)-\ell(p)$ on each feature and stores $N/d$
# features per dimension. `polytope_gain` divides this gain by the gain $v(p)$ of a dimension
# dedicated to one feature.

# %%
#| export
@checked
def polytope_gain(
    density,          # [point]
    shapes=polytopes, # name -> [corner, hidden], regular shapes
)->pd.DataFrame:      # Density x shape; 1 is the gain of a dedicated dimension
    "Return the gain per dimension, relative to dedicated dimensions"
    p = as_numbers('density', density).reshape(-1)
    if not len(p) or not ((p>0) & (p<=1)).all(): raise ConfigError(
        f'density is {short_repr(density)}: give numbers above 0 and at most 1.')
    v = moments(p)[1]
    gain = {name: (v-best_regular_shape(W, p)[0])/v*len(W)/W.shape[1] for name,W in shapes.items()}
    return pd.DataFrame({k: g.numpy() for k,g in gain.items()},
                        index=pd.Index(p.tolist(), name='density'))


# %%
p = [1,.9,.8,.7,.5,.35,.25,.2,.15,.1,.05,.02,.01]
gain = polytope_gain(p, {k: W for k,W in polytopes.items() if k!='octagon'})
ranked = np.sort(gain)
best = pd.DataFrame(dict(shape=gain.idxmax(axis=1), gain=ranked[:,-1],
                         lead=ranked[:,-1]/ranked[:,-2]-1))
best.round(4)

# %%
#| hide
for wrong in ([], [0.], 2.):
    with expect_fail(ConfigError, contains='above 0 and at most 1'): polytope_gain(wrong)

# %%
#| label: fig-staircase
#| fig-cap: Gain for each dimension against sparsity, relative to one feature a dimension; regular shapes at their best length and bias
shown = ['triangle','digon','pentagon','antiprism','hexagon','heptagon']
plot_curves([1/x for x in p], {k: gain[k] for k in shown}, 'sparsity 1/p',
            'gain for each dimension', logx=True, legend=True)

# %% [markdown]
# In @fig-staircase the digon is best over a wide range, followed by the antiprism, the hexagon and
# the heptagon. Near the changes of shape the margins are small, and at the dense end they are small
# everywhere: the margin of the tetrahedron is a hundredth of a percent. Trained models should mix
# neighbouring shapes there. Shapes of four and more dimensions other than the simplex were not
# tried, so at the sparse end this is a lower bound on superposition.

# %%
winners = dict(zip(p, best['shape']))
expected = {1: 'simplex4', .9: 'tetrahedron', .7: 'triangle', .5: 'digon', .25: 'digon',
            .2: 'pentagon', .15: 'antiprism', .05: 'antiprism', .02: 'hexagon', .01: 'heptagon'}
for x,name in expected.items(): test_eq(winners[x], name)
best.lead.loc[.9]

# %% [markdown]
# An irregular shape is not better. Six features that can lie anywhere in the plane, at $p=0.2$ and
# from several restarts: one of them is dropped, and the others form the regular pentagon with the
# gain computed above.

# %%
fit = fit_exact(ToyConfig(6, 2, density=.2), restarts=3, maxiter=200)
v = moments(.2)[1]
test_close((6*v-fit['loss'][0,0].item())/v/2, gain.loc[.2,'pentagon'], eps=1e-3)
fit['W'][0,0].norm(dim=1)


# %% [markdown]
# ## Pentagon or two digons
#
# Five features in a plane can form a pentagon, or four of them can form two digons without the
# fifth. The better choice depends on the density, of all five features or of one of them. Both are
# optimised from their own initialisation, so that they remain shapes of their kind but may deform.

# %%
def pentagon_vs_digons(density): # [point, 5]; the digons drop feature 0
    "Return the exact losses of the best pentagon and of the best two digons"
    config = ToyConfig(5, 2, len(density), density=density)
    digons = torch.cat([torch.zeros(1, 2), polygon(4)])
    return tuple(fit_exact(config, starts=W[None])['loss'][:,0] for W in (polygon(5),digons))

def transition_point(density, low, high): # Number -> [5] densities along a path; its ends
    "Find the point along a path at which pentagon and digons cost the same"
    path = np.linspace(low, high, 4)
    pentagon,digons = pentagon_vs_digons([density(t) for t in path])
    ratio = (pentagon/digons).log().numpy()
    ratio = ratio if ratio[0]<0 else -ratio
    assert ratio[0]<0<ratio[-1] and (np.diff(ratio)>0).all()
    return np.interp(0, ratio, path)


# %%
equal = transition_point(lambda p: [p]*5, .21, .24)
sparser = transition_point(lambda rho: [.05*rho]+[.05]*4, .25, .29)
test_close([equal,sparser], [.2249,.269], eps=1e-3)
equal, sparser

# %% [markdown]
# For equal features the better shape changes at a density of about 0.22. At $p=0.05$ one feature has to be
# 3.7 times sparser than the others before it is better dropped; the paper observes the change at 2.5 times.

# %%
path = [.25,.3,.4,.7,1.]
pentagon,digons = pentagon_vs_digons([[.05*r]+[.05]*4 for r in path])
test_eq((pentagon<digons).tolist(), [False]+[True]*4)
pd.DataFrame(dict(pentagon=pentagon, digons=digons), index=path).round(6)
