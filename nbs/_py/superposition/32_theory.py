# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Theory
#
# > Simple solutions have losses in closed form, which predict where the best one changes.

# %%
#| default_exp superposition.theory

# %%
#| export
import torch
from moral_sc.superposition.features import as_numbers, moments
from moral_sc.superposition.geometry import feature_dimensionality

# %%
#| hide
from fastcore.test import *
from moral_sc.superposition.exact_loss import exact_loss, fit_exact
from moral_sc.superposition.features import expand, Sampler
from moral_sc.superposition.model import ToyConfig, batch_loss, reconstruct
from moral_sc.superposition.phase_diagram import families
torch.manual_seed(0); torch.set_num_threads(1);


# %% [markdown]
# A few solutions are simple enough for a formula. They predict what training should find, and each
# formula is tested here against the independent [exact loss](30_exact_loss.ipynb). A dropped
# feature is predicted by its mean and costs its variance $v(p) = p/3-p^2/4$.
#
# ## Best linear model
#
# The loss of any rank-$m$ reconstruction includes at least all variances except the $m$ largest
# (Eckart and Young), so the best linear model keeps those $m$ features exactly.

# %%
#| export
def linear_optimum(
    density,    # Number or [feature]
    importance, # [feature]
    m:int,      # Hidden dimensions
)->float:
    "Return the lowest loss of a linear model of independent features"
    imp = as_numbers('importance', importance)
    v = moments(as_numbers('density', density).expand(imp.shape))[1]
    return (imp*v).sort().values[:len(imp)-m].sum().item()


# %% [markdown]
# Twenty features at $p=0.3$ in five dimensions, compared with a numerical minimum from eight
# restarts:

# %%
imp = [.7**i for i in range(20)]
fit = fit_exact(ToyConfig(20, 5, density=.3, importance=imp, activation='linear'))
test_close(linear_optimum(.3, imp, 5), fit['loss'][0,0], eps=1e-8)
linear_optimum(.3, imp, 5), fit['loss'][0,0].item()

# %% [markdown]
# If features differ in density, importance times variance decides: a rare important feature may be
# dropped in favour of a common one.

# %%
p = torch.tensor([.05,.4,.3])
fit = fit_exact(ToyConfig(3, 1, density=p, importance=[2.,1,1], activation='linear'))
test_close(linear_optimum(p, [2.,1,1], 1), fit['loss'][0,0], eps=1e-8)
assert fit['W'][0,0].norm(dim=-1).argmax()==1
fit['W'][0,0,:,0]


# %% [markdown]
# ## One feature too many
#
# Two features in one dimension, the second with importance $r$, have three simple solutions: drop
# either feature, or put both on the line as antipodes. Antipodes err only if both are active, by
# the smaller value on both outputs: $E\min(x,y)^2=\tfrac16$. Three features in two dimensions,
# $(1,1,r)$, have the same solutions and an antipodal pair without the last feature [@elhage2022].

# %%
def family_losses(p, r, n_features=2):
    "Return the losses of the simple solutions if the last feature has importance `r`"
    v = moments(p)[1]
    with_last = 'antipodal' if n_features==2 else 'antipodal with last'
    losses = {'drop last': r*v, 'drop first': v+0*r, with_last: (1+r)*p**2/6}
    return losses if n_features==2 else losses | {'antipodal without': p**2/3+0*r}


# %%
p = torch.tensor([.05,.3,.6], dtype=torch.float64)
for name,W in families[3,2].items():
    W = torch.tensor(W, dtype=torch.float64).expand(3,3,2)
    ours = exact_loss(W, p[:,None]/2*(W.norm(dim=-1)==0), p[:,None], [1,1,.7])
    test_close(ours, family_losses(p, .7, 3)[name], eps=1e-8)
{k: v.numpy().round(4) for k,v in family_losses(p, .7).items()}


# %% [markdown]
# ## Phase boundaries
#
# Antipodes are better than dropping the last feature where $r$ exceeds $r_1(p) = 2p/(4-5p)$, and,
# in one dimension, better than dropping the first below $1/r_1$. The three regions meet at
# $p=\tfrac47$, $r=1$. Solved for the density, the first boundary is $p = 4r/(2+5r)$.

# %%
#| export
def antipodal_boundary_density(r):
    "Return the density at which antipodes and dropping the last feature cost the same"
    return 4*r/(2+5*r)


# %%
p = torch.tensor([.1,.2,.4,.5], dtype=torch.float64)
r = 2*p/(4-5*p)
f = family_losses(p, r)
test_close(f['antipodal'], f['drop last'], eps=1e-9)
test_close(antipodal_boundary_density(r), p, eps=1e-9)
f = family_losses(4/7, 1.)
test_close(f['antipodal'], f['drop last']); test_close(f['drop last'], f['drop first'])
r

# %% [markdown]
# These solutions have unit weights and no bias. The true optimum can be better, since a small bias
# allows shorter columns: at $p=0.5$ and $r=1$ both weights shrink to 0.969 and the loss falls by
# eight percent. Superposition persists far beyond the triple point and ends gradually. The table
# shows, for $r=1$ and each density, the optimum relative to the best simple solution and the
# product of the two weights, which is negative for antipodes.

# %%
p = torch.tensor([.3,.5,.6,.7,.75,.8,.9,1.], dtype=torch.float64)
fit = fit_exact(ToyConfig(2, 1, 8, density=p[:,None]), restarts=14)
best = fit['loss'][:,0]
simple = torch.stack([*family_losses(p, 1.).values()]).amin(0)
assert (best<simple).all(); test_close(best[1], .076282, eps=1e-6)
W = fit['W'][:,0,:,0]
torch.stack([p, best/simple, W.prod(-1)]).numpy().round(3)

# %% [markdown]
# Without the bias and at a density near one the optimum is different: both features lie on the same
# side, distinguished only by their length. At equal importance this *confused feature* costs
# exactly $v(p)$, as much as dropping one feature with a bias.

# %%
fit = fit_exact(ToyConfig(2, 1, density=.9, importance=[1,.8], bias=False))
test_close(fit['loss'][0,0], .087485, eps=1e-6)
test_close(fit['W'][0,0,:,0].abs(), torch.tensor([.7252,.6868]), eps=1e-3)
confused = torch.full((2,1), .5**.5)
test_close(exact_loss(confused, torch.zeros(2), .9), moments(.9)[1], eps=1e-7)
fit['W'][0,0,:,0], fit['loss'][0,0]


# %% [markdown]
# ## Correlated and anticorrelated pairs
#
# In one dimension, a correlated pair can be collapsed onto one line as $(a+b)/\sqrt2$, reduced to
# one feature, or stored as antipodes, which is the worst choice. An anticorrelated pair loses
# nothing as antipodes.

# %%
#| export
def pair_losses(
    p,                     # Probability that the set is present
    features='correlated', # Or 'anticorrelated'
)->dict:                   # name -> loss
    "Return the losses of a pair of features in one dimension"
    if features=='correlated':
        return {'collapsed': p/12, 'keep one': p/3-p**2/4, 'antipodal': p/3}
    return {'antipodal': 0*p, 'keep one': moments(p/2)[1]}


# %%
pairs = {'collapsed': ([.5**.5,.5**.5], [0.,0]), 'keep one': ([1.,0], [0,None]),
         'antipodal': ([1.,-1], [0.,0])}
for kind in ('correlated','anticorrelated'):
    density = .2 if kind=='correlated' else .1
    for name,expected in pair_losses(.2, kind).items():
        W,b = pairs[name]
        b = torch.tensor([density/2 if v is None else v for v in b])
        ours = exact_loss(torch.tensor(W)[:,None], b, .2, features=kind)
        test_close(ours, expected, eps=1e-7)
pair_losses(.2), pair_losses(.2, 'anticorrelated')

# %% [markdown]
# No length and no bias improves on the collapsed pair, at any density:

# %%
p = torch.tensor([.05,.2,.5])
fit = fit_exact(ToyConfig(2, 1, 3, density=p[:,None], features='correlated'))
test_close(fit['loss'][:,0], p/12, eps=1e-7)
fit['W'][:,0,:,0], fit['b'][:,0].abs().max()


# %% [markdown]
# ## Absolute values
#
# With the target $|x|$ for features on $[-1,1]$, a constant output costs $v(p)$ per feature, since
# $|x|$ is uniform when active. A network without superposition spends two ReLU neurons on each of
# its most important features. A single remaining neuron covers one side of the next feature and
# leaves $p/6$. A trained loss below this is computation in superposition.

# %%
def abs_baselines(p, importance, m): # Density, [feature], hidden neurons
    "Return the losses of absolute-value models without superposition"
    imp = torch.as_tensor(importance, dtype=torch.float64).sort(descending=True).values
    _,v = moments(p)
    rest = v*imp[m//2:].sum()
    half = (imp[m//2]*min(p/6-v, 0.)) if m%2 and m//2<len(imp) else 0.
    return dict(constant=(v*imp.sum()).item(), monosemantic=float(rest+half))


# %% [markdown]
# A network with five neurons for four features, built by hand, on half a million samples:

# %%
W = torch.tensor([[1,-1,0,0,0],[0,0,1,-1,0],[0,0,0,0,1],[0,0,0,0,0.]])[None]
b = torch.tensor([[0,0,0,.15]])
p = .3
imp = torch.tensor([[1.,.8,.6,.4]])
x = Sampler(expand(p, 1, 4), [0], 500_000, signed=True)(0)
mc = batch_loss(W, b, x, imp, hidden='relu', V=W.abs(), target='abs')
test_close(mc, abs_baselines(p, imp[0], 5)['monosemantic'], eps=5e-4)
abs_baselines(p, imp[0], 5), mc


# %% [markdown]
# ## Vulnerability to attacks
#
# An attack of length $\epsilon$ along row $i$ of $G$ moves output $i$, if it is active, by
# $\epsilon\|G_i\|$. Since $D_i = \|W_i\|^4/\|G_i\|^2$, the added squared error is
# $\epsilon^2\|W_i\|^4/D_i$: the vulnerability of a feature is the number of features per dimension
# where it is stored, by construction and for any data.

# %%
#| export
def attack_error(
    W:torch.Tensor, # [..., feature, hidden]
    size=1.,        # Length of the perturbation
)->torch.Tensor:    # [..., feature]
    "Return the squared error added by the worst small attack on each feature with active output"
    return size**2*W.norm(dim=-1)**4/feature_dimensionality(W)


# %%
W = torch.randn(1,6,3, dtype=torch.float64)
x = torch.rand(1,1,6, dtype=torch.float64)
G = (W@W.mT)[0]
step = .1*G/G.norm(dim=1, keepdim=True)
out = lambda x: reconstruct(W, torch.full((1,6), 100., dtype=torch.float64), x)[0]
change = (out(x+step)-out(x)).diagonal()**2
test_close(change, attack_error(W[0], .1), eps=1e-9)
change, attack_error(W[0], .1)
