# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Sparse coding
#
# > A dictionary fitted to hidden activations alone finds the directions of sparse features.

# %%
#| default_exp superposition.sparse_coding

# %%
#| export
import torch
from moral_sc.foundation.arguments import checked
from moral_sc.superposition.geometry import represented

# %%
#| hide
from fastcore.test import *
from moral_sc.superposition.features import Sampler
torch.set_num_threads(1)


# %% [markdown]
# Superposition can be undone after the fact: given activations $h$ of a model, find directions $d_k$
# and sparse, non-negative codes $a_k$ with $h\approx\sum_k a_k d_k$ [@elhage2022]. The
# codes of given directions minimise the squared error plus `l1` times the sum of the codes. We find
# them by FISTA, a projected gradient descent with momentum.

# %%
#| export
def nonnegative_codes(
    H:torch.Tensor, # Activations [..., sample, hidden]
    D:torch.Tensor, # Dictionary [..., element, hidden]
    l1=.05,
    steps=50,
    codes=None,     # Start
)->torch.Tensor:    # [..., sample, element]
    "Find sparse non-negative codes of activations"
    gram = D@D.mT
    HD = H@D.mT
    step = 1/torch.linalg.matrix_norm(gram, 2)[...,None,None]
    a = torch.zeros_like(HD) if codes is None else codes
    y = a
    t = 1.
    for _ in range(steps):
        new = (y - step*(y@gram - HD + l1)).clamp(min=0)
        s = (1+(1+4*t*t)**.5)/2
        y = new + (t-1)/s*(new-a)
        a = new
        t = s
    return a


# %% [markdown]
# With orthogonal directions the code of an activation is its part along each, minus the penalty:

# %%
test_close(nonnegative_codes(torch.tensor([[.5,0.]]), torch.eye(2)), torch.tensor([[.45,0.]]), 1e-4)


# %% [markdown]
# The directions start at random activations. Codes and directions are improved in turn, each
# direction by the least squares that the others leave. The best of several starts is returned.

# %%
#| export
def _update(D, a, H):
    "Improve one element of every dictionary after the other"
    A = a.mT@a
    B = a.mT@H
    for k in range(D.shape[1]):
        d = D[:,k] + (B[:,k]-(A[:,k:k+1]@D)[:,0])/A[:,k,k,None].clamp(min=1e-6)
        D[:,k] = d/d.norm(dim=-1, keepdim=True).clamp(min=1e-9)
    return D

@checked
def fit_sparse_code(
    H:torch.Tensor, # Activations [sample, hidden]
    elements:int,
    l1=.05,
    rounds=60,
    starts=8,
    seed=0,
)->torch.Tensor:    # Directions of length one, [element, hidden]
    "Fit a dictionary to activations by non-negative sparse coding"
    g = torch.Generator().manual_seed(seed)
    size = H.norm(dim=-1)
    large = H[size>=size.median()]
    D = large[torch.randint(len(large), (starts,elements), generator=g)]
    D = D/D.norm(dim=-1, keepdim=True)
    H = H.expand(starts, -1, -1)
    a = None
    for _ in range(rounds):
        a = nonnegative_codes(H, D, l1, 15, a)
        D = _update(D, a, H)
    a = nonnegative_codes(H, D, l1, 100, a)
    loss = (H-a@D).square().sum(-1).mean(-1)/2 + l1*a.sum(-1).mean(-1)
    return D[loss.argmin()]

@checked
def share_found(
    D:torch.Tensor, # Dictionary [element, hidden]
    W:torch.Tensor, # Model [feature, hidden]
    cosine=.9,
)->float:
    "Return the share of stored features that have an element close to their direction"
    w = W[represented(W)]
    w = w/w.norm(dim=-1, keepdim=True)
    return ((D@w.mT).amax(0)>cosine).double().mean().item()


# %% [markdown]
# Five features of a pentagon are found from two-dimensional activations:

# %%
from moral_sc.superposition.geometry import polygon
pentagon = polygon(5).float()
x = Sampler(torch.full((1,5), .05), [0], 2000)(0)[0]
H = (x@pentagon)[(x>0).any(1)]
D = fit_sparse_code(H, 5)
test_eq(share_found(D, pentagon, .99), 1)
D.numpy().round(3)
