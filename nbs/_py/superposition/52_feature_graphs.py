# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Feature graphs
#
# > Which features interfere, which shapes they form together, and how to lay one shape over another.

# %%
#| default_exp superposition.feature_graphs

# %%
#| export
import torch
from collections import Counter
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import connected_components
from typing import NamedTuple
from moral_sc.superposition.geometry import (compounds, feature_dimensionality, polytopes,
                                             represented)

# %%
#| hide
from fastcore.test import *
from moral_sc.superposition.geometry import antiprism, polygon, simplex, tegum
torch.manual_seed(0);


# %% [markdown]
# A model with four hundred features in thirty dimensions cannot be looked at. But its features do not
# all interfere with each other: they fall into groups that share a few dimensions and are
# orthogonal to the rest, and each group is a small polytope. The paper draws them as graphs whose
# edges weigh $|W_i\cdot W_j|$ [@elhage2022].

# %%
#| export
def feature_graph(
    W:torch.Tensor, # [feature, hidden]
    threshold=.1,   # Weaker interference is no edge
)->torch.Tensor:    # [feature, feature], 0 where there is no edge
    "Strength of the interference between features"
    A = (W@W.mT).abs().fill_diagonal_(0.)
    return torch.where(A>threshold, A, 0.)

def feature_components(
    W:torch.Tensor, # [feature, hidden]
    threshold=.1,
    min_norm=.5,       # Features with shorter columns are left out
)->list:            # Lists of features, in order of their first
    "Groups of stored features that interfere with each other"
    keep = torch.where(represented(W, min_norm))[0]
    A = feature_graph(W[keep].detach().cpu().double(), threshold)
    label = connected_components(A.numpy(), directed=False)[1]
    groups = {}
    for feature,g in zip(keep.tolist(), label.tolist()): groups.setdefault(g, []).append(feature)
    return list(groups.values())


# %% [markdown]
# A pentagon, a digon and a feature of its own in four dimensions, turned at random and shuffled. The
# last feature is dropped.

# %%
def hide(*shapes):
    W = torch.cat([tegum(*shapes), torch.zeros(1, sum(s.shape[1] for s in shapes))])
    O = torch.linalg.qr(torch.randn(W.shape[1], W.shape[1], dtype=torch.float64)).Q
    return W[torch.randperm(len(W))]@O

W = hide(polytopes['pentagon'], polytopes['digon'], polytopes['dedicated'])
W = W + .01*torch.randn_like(W)
test_eq(sorted(map(len, feature_components(W))), [1,2,5])
feature_components(W), feature_graph(W).count_nonzero()//2


# %% [markdown]
# ## Names
#
# A group is called by the name of a polytope if it has as many corners, spans as many dimensions,
# every $D_i$ lies within 0.012 of that polytope's (which tells the antiprism's 3/8 from the pentagon's
# 2/5), and the angles agree. Angles are compared in a way that knows neither the order of the
# features nor the rotation: each corner has the cosines to the others in order of size, and in
# these polytopes every corner has the same list.

# %%
#| export
def angle_pattern(
    W:torch.Tensor, # [corner, hidden]
)->torch.Tensor:    # [corner, corner]
    "Cosines of each corner to all, in order of size"
    unit = W/W.norm(dim=-1, keepdim=True)
    return (unit@unit.mT).sort(dim=1).values

def spanned_dimensions(
    W:torch.Tensor, # [corner, hidden]
    min_ratio=.15,      # Share of the largest singular value that counts as a dimension
)->int:
    "Dimensions that a group of features spans"
    s = torch.linalg.svdvals(W)
    return int((s>min_ratio*s.max()).sum())

class Shape(NamedTuple):
    "A group of features and what it looks like"
    name:str         # A name in `polytopes`, or 'other'
    features:list
    dimensions:int   # That the group spans
    share:float      # Sum of D over the group: what it has of these dimensions

def _name(W, dims, tolerance, angles):
    D = feature_dimensionality(W)
    for name,P in polytopes.items():
        if P.shape != (len(W),dims): continue
        near = (D-dims/len(W)).abs().max()<=tolerance
        if near and (angle_pattern(W)-angle_pattern(P)).abs().max()<=angles: return name
    return 'other'

def recognise(
    W:torch.Tensor,  # [feature, hidden]
    threshold=.1,    # Interference that makes an edge
    tolerance=.012,  # On each D
    angles=.15,      # On each cosine
    min_norm=.5,        # Features with shorter columns are left out
)->list:             # Of `Shape`
    "Name the polytopes that stored features form"
    W = W.detach().cpu().double()
    D = feature_dimensionality(W)
    shapes = []
    for group in feature_components(W, threshold, min_norm):
        dims = spanned_dimensions(W[group])
        shapes.append(Shape(_name(W[group], dims, tolerance, angles), group, dims,
                            D[group].sum().item()))
    return shapes


# %%
shapes = recognise(W)
test_eq(Counter(s.name for s in shapes), dict(pentagon=1, digon=1, dedicated=1))
assert all(abs(s.share-s.dimensions)<.05 for s in shapes)
shapes

# %% [markdown]
# Every polytope is known again after a rotation, a shuffle, a change of scale by a tenth and noise
# of half a percent. A flattened pentagon has no name.

# %%
for name,P in polytopes.items():
    seen = [recognise(1.1*(hide(P) + .005*torch.randn(len(P)+1, P.shape[1])))[0].name
            for _ in range(20)]
    assert seen.count(name)>=19, (name, seen)
leaning = polygon(5)*torch.tensor([1.,.75])
test_eq(recognise(leaning)[0].name, 'other')
recognise(antiprism(.5604))[0], recognise(leaning)[0]


# %% [markdown]
# Shapes that fall apart, such as bipyramids, have names as wholes.

# %%
#| export
def overall_shape(
    W:torch.Tensor, # [feature, hidden]
    **kw,           # As for `recognise`
)->str:             # A name in `compounds`, or the parts with their numbers
    "What all stored features form together"
    parts = Counter(s.name for s in recognise(W, **kw))
    for name,want in compounds.items():
        if parts==Counter(want): return name
    return ' + '.join(f'{k} {name}' if k>1 else name for name,k in sorted(parts.items())) or 'nothing'


# %%
wholes = {name: overall_shape(hide(*[polytopes[p] for p in parts])) for name,parts in compounds.items()}
test_eq(list(wholes), list(wholes.values()))
wholes, overall_shape(hide(simplex(3), polygon(2), polygon(2)))

# %% [markdown]
# The threshold leaves room: at a tenth and at a fifth of a unit the groups of a noisy model are the
# same. Far below, noise connects everything.

# %%
W = hide(*[polygon(2)]*6, polygon(5), antiprism())
W = W + .003*torch.randn_like(W)
found = {t: overall_shape(W, threshold=t) for t in (.003,.1,.2)}
test_eq(found[.1], 'antiprism + 6 digon + pentagon'); test_eq(found[.1], found[.2])
found


# %% [markdown]
# ## One shape over another
#
# To lay `W` over a reference, a rotation (or reflection) and an order of the features have to be
# found. Given the order the best rotation is Procrustes'; given the rotation the best order is
# an assignment. `align` alternates the two from many rotations and keeps the best.

# %%
#| export
def procrustes(
    W:torch.Tensor,  # [feature, hidden]
    reference:torch.Tensor, # [feature, hidden]
)->torch.Tensor:     # [hidden, hidden], orthogonal
    "The rotation that brings W closest to a reference"
    U,_,V = torch.linalg.svd(W.mT@reference)
    return U@V

def _match(W, reference, O):
    "Alternate order and rotation until the order stays"
    order = None
    while True:
        cost = torch.cdist(reference, W@O).square()
        new = linear_sum_assignment(cost.numpy())[1].tolist()
        if new==order: return order, W[order]@O
        order = new
        O = procrustes(W[new], reference)

def align(
    W:torch.Tensor,  # [feature, hidden]
    reference:torch.Tensor, # [feature, hidden], the reference
    permute=False,   # Features may change places, too
    tries=100,       # Rotations to start from, if they may
)->tuple:            # W in its new position, [feature, hidden]; its features' order
    "Lay one shape over another"
    W = W.detach().cpu().double()
    reference = reference.detach().cpu().double()
    if not permute: return W@procrustes(W, reference), list(range(len(W)))
    g = torch.Generator().manual_seed(0)
    starts = torch.randn(tries, W.shape[1], W.shape[1], generator=g, dtype=torch.float64)
    found = [_match(W, reference, O) for O in torch.linalg.qr(starts).Q]
    order,best = min(found, key=lambda f: (f[1]-reference).norm())
    return best, order


# %% [markdown]
# Whatever was done to an antiprism, it is laid back over itself:

# %%
for P in (antiprism(), polygon(5), simplex(4), tegum(polygon(3), polygon(2))):
    moved = hide(P)
    moved = moved[moved.norm(dim=1)>0]
    back,order = align(moved, P, permute=True)
    test_close(back, P, eps=1e-6); test_eq(sorted(order), list(range(len(P))))
back, order

# %% [markdown]
# Without leave to reorder, a rotation is all that is undone, in any dimension:

# %%
W = torch.randn(30, 7, dtype=torch.float64)
O = torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64)).Q
test_close(align(W@O, W)[0], W, eps=1e-9)
(align(W@O, W)[0]-W).abs().max()
