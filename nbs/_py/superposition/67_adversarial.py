# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Attacks
#
# > Small steps that do much harm: the directions in which a toy model is vulnerable, and
# > how much.

# %%
#| default_exp superposition.adversarial

# %%
#| export
import torch
from moral_sc.superposition.features import moments
from moral_sc.superposition.model import reconstruct

# %%
#| hide
from fastcore.test import *
from moral_sc.superposition.features import expand, Sampler
from moral_sc.superposition.geometry import polygon, tegum
from moral_sc.superposition.theory import attack_error
torch.manual_seed(0); torch.set_num_threads(1)


# %% [markdown]
# A feature in superposition is read along a row of $G=W^\top W$ that has entries for other
# features too. An adversary who may move the input by a fixed length can use them: spread
# over the whole row, the step moves the output further than along the feature itself
# [@elhage2022]. Before the ReLU, output $i$ moves by $G_i\cdot\delta$, at most
# $\epsilon\|G_i\|$, and the best step is $\delta = \pm\epsilon\,G_i/\|G_i\|$.

# %%
#| export
def attack_directions(
    W:torch.Tensor, # [..., feature, hidden]
    V=None,         # Readout of an untied model, shape of W
)->torch.Tensor:    # [..., feature, feature]; row i moves output i most
    "The step of length 1 that moves each output most, 0 for a feature that is not read"
    G = (W if V is None else V)@W.mT
    return G/G.norm(dim=-1, keepdim=True).clamp(min=1e-12)


# %% [markdown]
# In a pentagon, the step against feature 0 moves its two neighbours up and the two features
# behind it down:

# %%
W = polygon(5)
attack_directions(W)[0].numpy().round(2)

# %% [markdown]
# Brute force: of a hundred thousand random steps of length one, none moves an output
# further, and the best comes near.

# %%
step = torch.randn(100_000, 5, dtype=torch.float64)
step = step/step.norm(dim=1, keepdim=True)
G = W@W.T
moved = (step@G).abs().amax(0)
bound = (attack_directions(W)*G).sum(-1)
assert (moved <= bound).all() and (moved > .97*bound).all()
moved/bound

# %% [markdown]
# The square of the bound is what [theory](32_theory.ipynb) says, $\|W_i\|^4/D_i$: one over
# the feature's dimensionality if its column has length one. To float64:

# %%
W = torch.randn(7, 3, dtype=torch.float64)
bound = (attack_directions(W)*(W@W.T)).sum(-1)
test_close(bound**2, attack_error(W), eps=1e-12)
(bound**2/attack_error(W)-1).abs().max()


# %% [markdown]
# ## Harm
#
# What counts is the loss that a step adds, with the old input as the target. All outputs
# take part, not only the one aimed at: those beside it move as well.

# %%
#| export
def squared_errors(W, b, x, z, activation='relu')->torch.Tensor:
    "Squared error when the model is shown `z` instead of `x`; [instance, batch]"
    return (x - reconstruct(W, b, z, activation)).square().sum(-1)

def added_error(
    W:torch.Tensor,     # [instance, feature, hidden]
    b:torch.Tensor,     # [instance, feature]
    x:torch.Tensor,     # [instance, batch, feature]
    step:torch.Tensor,  # Broadcasts against x
    activation='relu',
)->torch.Tensor:        # [instance, batch]
    "The error that a step adds"
    return squared_errors(W, b, x, x+step, activation) - squared_errors(W, b, x, x, activation)

def mean_input_norm(
    x:torch.Tensor, # [instance, batch, feature]
)->torch.Tensor:    # [instance]
    "Mean Euclidean length of the inputs"
    return x.norm(dim=-1).mean(-1)


# %% [markdown]
# The attack of the paper tries the two signs of all $n$ directions and keeps the one that
# does most harm. The paper does not say whether each input has a worst direction of its own
# or the data set has one for all; `analytic_attack` gives the former, and the latter with
# `shared`.

# %%
#| export
def analytic_attack(
    W:torch.Tensor, b:torch.Tensor, x:torch.Tensor,
    length,        # Of the step, [instance] or a number
    shared=False,  # One direction for the whole batch instead of one for each input
    activation='relu',
)->torch.Tensor:   # [instance, batch], the harm done
    "The worst step along plus or minus a row of the Gram matrix"
    length = torch.as_tensor(length, dtype=W.dtype, device=W.device)
    D = attack_directions(W)*length.view(-1,1,1)
    clean = squared_errors(W, b, x, x, activation)
    worst = None
    for i in range(W.shape[1]):
        for step in (D[:,i,None],-D[:,i,None]):
            h = squared_errors(W, b, x, x+step, activation) - clean
            if shared: h = h.mean(-1, keepdim=True).expand_as(h)
            worst = h if worst is None else torch.maximum(worst, h)
    return worst


# %% [markdown]
# Brute force again, now on the harm: three antipodal pairs in three dimensions, sparse
# inputs, ten thousand random steps for each. The attack is aimed at one output and judged
# on all of them, so it need not be the worst possible; but it comes close.

# %%
W = tegum(polygon(2), polygon(2), polygon(2)).float()[None]
b = torch.zeros(1,6)
x = Sampler(expand(.2, 1, 6), [0], 200, seed=3)(0)
ours = analytic_attack(W, b, x, .1)[0]
step = torch.randn(10_000, 6)
step = .1*step/step.norm(dim=1, keepdim=True)
brute = torch.stack([added_error(W, b, x, s)[0] for s in step]).amax(0)
share = ours.mean()/brute.mean()
assert share > .9
share, ours.mean(), brute.mean()


# %% [markdown]
# ## Relative to no superposition
#
# A model that keeps $m$ features exactly and answers the mean for the rest has $\epsilon^2$
# added, whatever the input: only the step's part in the $m$ kept features arrives, and the
# directions to choose from lie within them. Vulnerability is harm in that unit.

# %%
#| export
def orthogonal_model(
    n:int, m:int,
    density,   # Number
)->tuple:      # W [1, feature, hidden], b [1, feature]
    "The model without superposition: m features kept, the mean for the others"
    b = torch.full((1,n), float(moments(density)[0]))
    b[:,:m] = 0
    return torch.eye(n, m)[None],b

def vulnerability(
    W:torch.Tensor, b:torch.Tensor, x:torch.Tensor,
    size=.1,       # Length of the attack in mean input lengths
    shared=False,  # As in `analytic_attack`
    include_empty=False,   # Count inputs without any active feature, too
)->torch.Tensor:   # [instance]
    "Mean harm of an attack, relative to a model without superposition"
    length = size*mean_input_norm(x)
    h = analytic_attack(W, b, x, length, shared)
    keep = (x!=0).any(-1)
    if include_empty or shared: keep = torch.ones_like(keep)
    return (h*keep).sum(-1)/keep.sum(-1)/length**2


# %%
x = Sampler(expand(.2, 1, 6), [0], 4000, seed=3)(0)
plain = vulnerability(*orthogonal_model(6, 3, .2), x)
test_close(plain, 1, eps=1e-3)
plain, vulnerability(W, b, x)


# %% [markdown]
# Inputs on which nothing is active are left out: they are most of the data when features
# are very sparse, and a bias below zero makes a model deaf there.
#
# ## Following the gradient
#
# The usual attack knows nothing of $G$: it takes the gradient of the loss at the input and
# goes along it, in one step or several that are brought back to the sphere. Where all
# outputs rest below zero there is no gradient to follow, and the attack stays where it is:
# masking.

# %%
#| export
def gradient_attack(
    W:torch.Tensor, b:torch.Tensor, x:torch.Tensor,
    length,         # Of the attack, [instance] or a number
    steps=1,        # More than 1: shorter steps, each time back into the ball
    activation='relu',
)->tuple:           # Harm done [instance, batch]; which inputs give no gradient
    "The harm of steps along the gradient of the loss"
    r = torch.as_tensor(length, dtype=W.dtype, device=W.device).view(-1,1,1)
    d = torch.zeros_like(x)
    masked = None
    for _ in range(steps):
        d = d.detach().requires_grad_()
        g, = torch.autograd.grad(squared_errors(W, b, x, x+d, activation).sum(), d)
        size = g.norm(dim=-1, keepdim=True)
        if masked is None: masked = size[...,0] < 1e-9
        unit = torch.where(size<1e-9, 0., g/size.clamp(min=1e-12))
        d = d.detach() + r*min(1., 2.5/steps)*unit
        d = d*(r/d.norm(dim=-1, keepdim=True).clamp(min=1e-12)).clamp(max=1)
    return added_error(W, b, x, d, activation),masked


# %% [markdown]
# A pentagon whose biases keep rare interference silent. At inputs where something is active
# the gradient finds what the analytic attack finds and, free to choose any direction, a
# little more; empty inputs give it nothing.

# %%
W = 1.1*polygon(5).float()[None]
b = torch.full((1,5), -.2)
x = Sampler(expand(.05, 1, 5), [0], 4000, seed=5)(0)
by_gradient,masked = gradient_attack(W, b, x, .1, steps=10)
by_row = analytic_attack(W, b, x, .1)
busy = (x>0).any(-1)
assert masked[~busy].all() and by_gradient[busy].mean() > .9*by_row[busy].mean()
masked.float().mean(), by_gradient[busy].mean(), by_row[busy].mean()

# %% [markdown]
# A longer analytic step does reach the empty inputs. It jumps over the dead zone that the
# gradient cannot see across:

# %%
lengths = .1,.2,.4
[(l, gradient_attack(W, b, x, l)[0][~busy].mean().item(),
  analytic_attack(W, b, x, l)[~busy].mean().item()) for l in lengths]

# %%
assert gradient_attack(W, b, x, .4)[0][~busy].max()==0
assert analytic_attack(W, b, x, .4)[~busy].min()>0
