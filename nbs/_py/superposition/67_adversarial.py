# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Adversarial examples
#
# > Superposition makes toy models vulnerable to small adversarial perturbations.

# %%
#| default_exp superposition.adversarial

# %%
#| export
import torch
from moral_sc.foundation.arguments import checked
from moral_sc.superposition.engines.simd import cached_njit
from moral_sc.superposition.model import activations, find_function, reconstruct

# %%
#| hide
from fastcore.test import *
from moral_sc.superposition.features import expand, moments, Sampler
from moral_sc.superposition.geometry import polygon, tegum
from moral_sc.superposition.theory import attack_error
torch.manual_seed(0); torch.set_num_threads(1)


# %% [markdown]
# A feature in superposition is read out along a row of $G=W^\top W$, which has entries for other
# features too. An adversary with an input perturbation of fixed length can use them: spread over
# the whole row, the perturbation changes the output more than along the feature itself
# [@elhage2022]. Before the ReLU, output $i$ changes by $G_i\cdot\delta$, at most $\epsilon\|G_i\|$,
# and the best perturbation is $\delta = \pm\epsilon\,G_i/\|G_i\|$.

# %%
#| export
def attack_directions(
    W:torch.Tensor, # [..., feature, hidden]
)->torch.Tensor:    # [..., feature, feature]; row i changes output i most
    "Return the unit perturbation that changes each output most, 0 for an output without weights"
    G = W@W.mT
    return G/G.norm(dim=-1, keepdim=True).clamp(min=1e-12)


# %% [markdown]
# In a pentagon, the perturbation for feature 0 is positive for its two neighbours and negative for
# the other two features:

# %%
W = polygon(5)
attack_directions(W)[0].numpy().round(2)

# %% [markdown]
# A brute-force test: among a hundred thousand random perturbations of length one, none changes an
# output more, and the best comes close.

# %%
step = torch.randn(100_000, 5, dtype=torch.float64)
step = step/step.norm(dim=1, keepdim=True)
G = W@W.T
change = (step@G).abs().amax(0)
bound = (attack_directions(W)*G).sum(-1)
assert (change <= bound).all() and (change > .97*bound).all()
change/bound

# %% [markdown]
# The square of the bound agrees with [theory](32_theory.ipynb), $\|W_i\|^4/D_i$, which is one over
# the feature's dimensionality if its column has length one. To float64 precision:

# %%
W = torch.randn(7, 3, dtype=torch.float64)
bound = (attack_directions(W)*(W@W.T)).sum(-1)
test_close(bound**2, attack_error(W), eps=1e-12)
(bound**2/attack_error(W)-1).abs().max()


# %% [markdown]
# ## Added error
#
# The effect of an attack is the error that it adds, with the clean input as the target. All outputs
# are counted, not only the attacked one, since its neighbours change as well.

# %%
#| export
def squared_errors(W, b, x, z, activation='relu')->torch.Tensor:
    "Return the squared error for input `z` and target `x`; [instance, batch]"
    return (x - reconstruct(W, b, z, activation)).square().sum(-1)

def added_error(
    W:torch.Tensor,     # [instance, feature, hidden]
    b:torch.Tensor,     # [instance, feature]
    x:torch.Tensor,     # [instance, batch, feature]
    step:torch.Tensor,  # Broadcasts against x
    activation='relu',
)->torch.Tensor:        # [instance, batch]
    "Return the error that a perturbation adds"
    return squared_errors(W, b, x, x+step, activation) - squared_errors(W, b, x, x, activation)

def mean_input_norm(
    x:torch.Tensor, # [instance, batch, feature]
)->torch.Tensor:    # [instance]
    "Return the mean Euclidean length of the inputs"
    return x.norm(dim=-1).mean(-1)


# %% [markdown]
# The paper's attack tries both signs of all $n$ directions and uses the one that adds most error. The paper
# does not state whether each input has its own worst direction or the data set has one for all.
# `analytic_attack` computes the former, and the latter with `shared`.

# %%
#| export
@cached_njit(fastmath={'reassoc','contract','arcp','nsz'}, nogil=True)
def _relu_errors(output, change, x, errors):
    "Write the squared errors of outputs before the ReLU plus each change; [change, input]"
    for i in range(len(change)):
        for t in range(len(x)):
            total = x[0,0]*0
            for k in range(x.shape[1]):
                y = output[t,k]+change[i,k]
                error = x[t,k]-(y if y>0 else 0*y)
                total += error*error
            errors[i,t] = total

def _error_changes(W, b, x, change, activation):
    "Yield the errors that changes of the outputs add, [change, input], model by model"
    output = reconstruct(W, b, x, 'linear')
    compiled = activation=='relu' and x.device.type=='cpu'
    for y,c,target in zip(output, torch.cat([torch.zeros_like(change[:,:1]), change], 1), x):
        if compiled:
            errors = torch.empty(len(c), len(target), dtype=target.dtype)
            _relu_errors(*(v.detach().contiguous().numpy() for v in (y, c, target, errors)))
        else:
            f = find_function('activation', activation, activations)
            errors = torch.stack([(target-f(y+row)).square().sum(-1) for row in c])
        yield errors[1:]-errors[0]

@checked
def analytic_attack(
    W:torch.Tensor, b:torch.Tensor, x:torch.Tensor,
    length,        # Of the perturbation, [instance] or a number
    shared=False,  # One direction for the whole batch instead of one for each input
    activation='relu',
)->torch.Tensor:   # [instance, batch], the added error
    "Return the error added by the worst perturbation along a row of the Gram matrix"
    length = torch.as_tensor(length, dtype=W.dtype, device=W.device)
    step = attack_directions(W)*length.view(-1,1,1)
    change = step@W@W.mT # Of the outputs, before their activation
    added = _error_changes(W, b, x, torch.cat([change, -change], 1), activation)
    if shared: return torch.stack([h[h.mean(1).argmax()].mean().expand(x.shape[1]) for h in added])
    return torch.stack([h.amax(0) for h in added])


# %% [markdown]
# An attack changes the outputs before the ReLU by the same vector for every input, which is computed once.
# The compiled loop agrees with reconstructions of the perturbed inputs, direction by direction:

# %%
W,b = torch.randn(3, 7, 3), torch.randn(3, 7)
x = Sampler(expand(.3, 3, 7), range(3), 50, seed=3)(0)
D = .2*attack_directions(W)
each = torch.stack([added_error(W, b, x, s*D[:,i,None]) for i in range(7) for s in (1, -1)])
close = dict(rtol=1e-5, atol=1e-5)
for activation in ('relu', torch.relu): # Compiled, and not
    worst = analytic_attack(W, b, x, .2, activation=activation)
    torch.testing.assert_close(worst, each.amax(0), **close)
mean = analytic_attack(W, b, x, .2, shared=True)[:,0]
torch.testing.assert_close(mean, each.mean(-1).amax(0), **close)
mean

# %% [markdown]
# Another brute-force test, on the added error: three antipodal pairs in three dimensions, sparse
# inputs, and ten thousand random perturbations for each. The attack maximises one output and is
# judged on all of them, so it need not be the worst possible, but it comes close.

# %%
W = tegum(polygon(2), polygon(2), polygon(2)).float()[None]
b = torch.zeros(1,6)
x = Sampler(expand(.2, 1, 6), [0], 200, seed=3)(0)
ours = analytic_attack(W, b, x, .1)[0]
step = torch.randn(10_000, 6)
step = .1*step/step.norm(dim=1, keepdim=True)
def largest_added_error(step):
    "Return the most that any of the perturbations adds to the error of each input"
    model = [t.expand(len(step), *t.shape[1:]) for t in (W, b, x)]
    return added_error(*model, step[:,None]).amax(0)

brute = torch.stack([largest_added_error(s) for s in step.split(500)]).amax(0)
share = ours.mean()/brute.mean()
assert share > .9
share, ours.mean(), brute.mean()


# %% [markdown]
# ## Vulnerability
#
# In a model that keeps $m$ features exactly and predicts the mean for the rest, an attack adds
# $\epsilon^2$ for any input: only the part of the perturbation within the $m$ kept features has an
# effect, and the available directions lie within them. Vulnerability is the added error in this
# unit.

# %%
#| export
@checked
def vulnerability(
    W:torch.Tensor, b:torch.Tensor, x:torch.Tensor,
    size=.1,       # Length of the attack in mean input lengths
    shared=False,  # As in `analytic_attack`
    include_empty=False, # Include inputs without any active feature
)->torch.Tensor:   # [instance]
    "Return the mean added error of an attack, relative to a model without superposition"
    length = size*mean_input_norm(x)
    added = analytic_attack(W, b, x, length, shared)
    included = (x!=0).any(-1)
    if include_empty or shared: included = torch.ones_like(included)
    return (added*included).sum(-1)/included.sum(-1)/length**2


# %%
def orthogonal_model(n, m, density):
    "Return the model without superposition: m features kept, the mean for the others"
    b = torch.full((1,n), float(moments(density)[0]))
    b[:,:m] = 0
    return torch.eye(n, m)[None],b

x = Sampler(expand(.2, 1, 6), [0], 4000, seed=3)(0)
plain = vulnerability(*orthogonal_model(6, 3, .2), x)
test_close(plain, 1, eps=1e-3)
plain, vulnerability(W, b, x)


# %% [markdown]
# Inputs without active features are left out: they are most of the data when features are very
# sparse, and a negative bias makes a model insensitive there.
#
# ## Gradient attack
#
# The usual attack does not use $G$: it follows the gradient of the loss with respect to the input,
# in one step or in several that are projected back to the sphere. Where all outputs are below zero
# the gradient is zero and the attack stays where it is: gradient masking.

# %%
#| export
@checked
def gradient_attack(
    W:torch.Tensor, b:torch.Tensor, x:torch.Tensor,
    length,         # Of the attack, [instance] or a number
    steps=1,        # More than 1: shorter steps, each projected back into the ball
    activation='relu',
)->tuple:           # Added error [instance, batch]; inputs without gradient
    "Return the error added by steps along the gradient of the loss"
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
# A pentagon whose biases suppress rare interference. At inputs with active features the gradient
# attack finds what the analytic attack finds and, since it is free to choose any direction,
# slightly more. Empty inputs have no gradient.

# %%
W = 1.1*polygon(5).float()[None]
b = torch.full((1,5), -.2)
x = Sampler(expand(.05, 1, 5), [0], 4000, seed=5)(0)
by_gradient,masked = gradient_attack(W, b, x, .1, steps=10)
by_row = analytic_attack(W, b, x, .1)
active = (x>0).any(-1)
assert masked[~active].all() and by_gradient[active].mean() > .9*by_row[active].mean()
masked.float().mean(), by_gradient[active].mean(), by_row[active].mean()

# %% [markdown]
# A longer analytic attack does affect the empty inputs. It crosses the dead zone in which the
# gradient is zero:

# %%
lengths = .1,.2,.4
[(l, gradient_attack(W, b, x, l)[0][~active].mean().item(),
  analytic_attack(W, b, x, l)[~active].mean().item()) for l in lengths]

# %%
assert gradient_attack(W, b, x, .4)[0][~active].max()==0
assert analytic_attack(W, b, x, .4)[~active].min()>0
