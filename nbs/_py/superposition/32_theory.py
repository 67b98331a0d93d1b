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
# > Losses of the simple solutions in closed form, and the lines at which they trade places.

# %%
#| default_exp superposition.theory

# %%
#| export
import torch
from moral_sc.foundation.errors import ConfigError
from moral_sc.superposition.features import moments
from moral_sc.superposition.geometry import feature_dimensionality

# %%
#| hide
from fastcore.test import *
from moral_sc.superposition.exact_loss import exact_loss, fit_exact
from moral_sc.superposition.features import expand, Sampler
from moral_sc.superposition.model import ToyConfig, batch_loss, reconstruct
torch.manual_seed(0); torch.set_num_threads(1);


# %% [markdown]
# A handful of solutions are simple enough for a formula. They say what to expect of training, and each is
# proved here against the [exact loss](30_exact_loss.ipynb), which knows nothing of them. A feature
# that is dropped is answered by its mean and costs its variance $v(p) = p/3-p^2/4$.
#
# ## The best linear model
#
# Any rank-$m$ reconstruction leaves at least the $m$ largest variances out of the loss and no more
# (Eckart and Young), so the best linear model keeps those features exactly.

# %%
#| export
def linear_optimum(
    density,    # Number or [feature]
    importance, # [feature]
    m:int,      # Hidden dimensions
)->float:
    "Lowest loss of a linear model of independent features"
    imp = torch.as_tensor(importance, dtype=torch.float64)
    _,v = moments(torch.as_tensor(density, dtype=torch.float64).expand(imp.shape))
    return (imp*v).sort().values[:len(imp)-m].sum().item()


# %% [markdown]
# Twenty features at $p=0.3$ in five dimensions, against a numerical minimum from eight random starts:

# %%
imp = [.7**i for i in range(20)]
fit = fit_exact(ToyConfig(20, 5, density=.3, importance=imp, activation='linear'))
test_close(linear_optimum(.3, imp, 5), fit['loss'][0,0], eps=1e-8)
linear_optimum(.3, imp, 5), fit['loss'][0,0].item()

# %% [markdown]
# If features differ in density, what counts is importance times variance: a rare important
# feature may lose to a common one.

# %%
p = torch.tensor([.05,.4,.3])
fit = fit_exact(ToyConfig(3, 1, density=p, importance=[2.,1,1], activation='linear'))
test_close(linear_optimum(p, [2.,1,1], 1), fit['loss'][0,0], eps=1e-8)
assert fit['W'][0,0].norm(dim=-1).argmax()==1
fit['W'][0,0,:,0]


# %% [markdown]
# ## Three families
#
# Two features in one dimension, the second with importance $r$: drop one of them, or lay both on the
# line as antipodes. Antipodes err only if both are active, by the smaller value on both outputs:
# $E\min(x,y)^2=\tfrac16$. Three features in two dimensions, $(1,1,r)$, offer the same and an
# antipodal pair that leaves the last feature alone [@elhage2022].

# %%
#| export
def family_losses(
    p,            # Density; number or tensor
    r,            # Importance of the last feature, the others have 1
    n_features=2, # 2 in one dimension or 3 in two
)->dict:          # name -> loss
    "Losses of the simple solutions with one feature too many"
    if n_features not in (2,3): raise ConfigError(
        f'Families are known for 2 and 3 features, not {n_features}.')
    _,v = moments(p)
    with_last = 'antipodal' if n_features==2 else 'antipodal with last'
    losses = {'drop last': r*v, 'drop first': v+0*r, with_last: (1+r)*p**2/6}
    return losses if n_features==2 else losses | {'antipodal without': p**2/3+0*r}


# %%
h = 1.
p = torch.tensor([.05,.3,.6], dtype=torch.float64)
models = {'drop last': [[1,0],[0,1],[0,0]], 'drop first': [[0,0],[1,0],[0,1]],
          'antipodal with last': [[1,0],[0,1],[0,-1]], 'antipodal without': [[1,0],[-1,0],[0,1]]}
for name,W in models.items():
    W = torch.tensor(W, dtype=torch.float64).expand(3,3,2)
    ours = exact_loss(W, p[:,None]/2*(W.norm(dim=-1)==0), p[:,None], [1,1,.7])
    test_close(ours, family_losses(p, .7, 3)[name], eps=1e-8)
{k: v.numpy().round(4) for k,v in family_losses(p, .7).items()}


# %% [markdown]
# Antipodes beat dropping the last where $r$ exceeds $r_1(p) = 2p/(4-5p)$, and, in one dimension,
# beat dropping the first below $1/r_1$. The three regions meet at $p=\tfrac47$, $r=1$. Solved for the
# density, the first line is $p = 4r/(2+5r)$.

# %%
#| export
def antipodal_boundary(
    p, # Density; number or tensor
):     # Importance of the last feature; infinite from 0.8 on
    "Where antipodes and dropping the last feature cost the same"
    p = torch.as_tensor(p, dtype=torch.float64)
    return torch.where(p<.8, 2*p/(4-5*p), torch.inf)

def antipodal_boundary_density(r):
    "The same line as a density, for importance `r` up to 1"
    return 4*r/(2+5*r)

triple_point = 4/7,1. # Density, importance

# %%
p = torch.tensor([.1,.2,.4,.5], dtype=torch.float64)
f = family_losses(p, antipodal_boundary(p))
test_close(f['antipodal'], f['drop last'], eps=1e-9)
test_close(antipodal_boundary_density(antipodal_boundary(p)), p, eps=1e-9)
f = family_losses(*triple_point)
test_close(f['antipodal'], f['drop last']); test_close(f['drop last'], f['drop first'])
antipodal_boundary(p)

# %% [markdown]
# These are unit weights without bias. The true optimum may do better, since a little bias frees a
# little length: at $p=0.5$ and $r=1$ both weights shrink to 0.969 and the loss falls by eight
# percent. Superposition persists far beyond the triple point, and its end is gradual. At $r=1$, for
# each density: the optimum relative to the best family, and the product of the two weights, which is
# negative for antipodes.

# %%
p = torch.tensor([.3,.5,.6,.7,.75,.8,.9,1.], dtype=torch.float64)
fit = fit_exact(ToyConfig(2, 1, 8, density=p[:,None]), restarts=14)
best = fit['loss'][:,0]
families = torch.stack([*family_losses(p, 1.).values()]).amin(0)
assert (best<families).all(); test_close(best[1], .076282, eps=1e-6)
W = fit['W'][:,0,:,0]
torch.stack([p, best/families, W.prod(-1)]).numpy().round(3)

# %% [markdown]
# Without the bias and with a density near one it is another: both features on the same side, confused
# but for a difference in length. At equal importance this *confused feature* costs exactly $v(p)$, as
# much as dropping one with its bias.

# %%
fit = fit_exact(ToyConfig(2, 1, density=.9, importance=[1,.8], bias=False))
test_close(fit['loss'][0,0], .087485, eps=1e-6)
test_close(fit['W'][0,0,:,0].abs(), torch.tensor([.7252,.6868]), eps=1e-3)
confused = torch.full((2,1), .5**.5)
test_close(exact_loss(confused, torch.zeros(2), .9), moments(.9)[1], eps=1e-7)
fit['W'][0,0,:,0], fit['loss'][0,0]


# %% [markdown]
# ## Pairs that know of each other
#
# One dimension for a pair whose members come together: lay them on one line as $(a+b)/\sqrt2$,
# keep one, or make them antipodes, the worst choice. Pairs that never meet lose nothing as antipodes.

# %%
#| export
def pair_losses(
    p,                # Probability that the set is present
    features='correlated', # or 'anticorrelated'
)->dict:              # name -> loss
    "Losses of a pair of features in one dimension"
    if features=='correlated':
        return {'collapsed': p/12, 'keep one': p/3-p**2/4, 'antipodal': p/3}
    return {'antipodal': 0*p, 'keep one': moments(p/2)[1]}


# %%
pairs = {'collapsed': ([.5**.5,.5**.5], [0.,0]), 'keep one': ([1.,0], [0,None]),
         'antipodal': ([1.,-1], [0.,0])}
for kind in ('correlated','anticorrelated'):
    rare = .2 if kind=='correlated' else .1
    for name,want in pair_losses(.2, kind).items():
        W,b = pairs[name]
        b = torch.tensor([rare/2 if v is None else v for v in b])
        ours = exact_loss(torch.tensor(W)[:,None], b, .2, features=kind)
        test_close(ours, want, eps=1e-7)
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
# Asked for $|x|$ of features on $[-1,1]$, a constant answer costs $v(p)$ each, since $|x|$ is
# uniform when active. A network without superposition spends two ReLU neurons on each of its most
# important features; a single neuron left over serves one side of the next and leaves $p/6$. A
# trained loss below that is computation in superposition.

# %%
#| export
def abs_baselines(
    p:float,    # Density
    importance, # [feature]
    m:int,      # Hidden neurons
)->dict:        # name -> loss
    "Losses of absolute-value models without superposition"
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
# ## Superposition makes vulnerable
#
# An attack of length $\epsilon$ along row $i$ of $G$ moves output $i$, if it is active, by
# $\epsilon\|G_i\|$. But $D_i = \|W_i\|^4/\|G_i\|^2$, so the added squared error is
# $\epsilon^2\|W_i\|^4/D_i$: a feature is as vulnerable as it has features beside it in each of its
# dimensions, by construction and whatever the data.

# %%
#| export
def attack_error(
    W:torch.Tensor, # [..., feature, hidden]
    size=1.,        # Length of the perturbation
)->torch.Tensor:    # [..., feature]
    "Squared error that the worst small attack on each feature adds, where its output is active"
    return size**2*W.norm(dim=-1)**4/feature_dimensionality(W)


# %%
W = torch.randn(1,6,3, dtype=torch.float64)
x = torch.rand(1,1,6, dtype=torch.float64)
G = (W@W.mT)[0]
step = .1*G/G.norm(dim=1, keepdim=True)
out = lambda x: reconstruct(W, torch.full((1,6), 100., dtype=torch.float64), x)[0]
moved = (out(x+step)-out(x)).diagonal()**2
test_close(moved, attack_error(W[0], .1), eps=1e-9)
moved, attack_error(W[0], .1)
