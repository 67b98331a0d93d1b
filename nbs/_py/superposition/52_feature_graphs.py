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
# > Groups of interfering features are recognised as named polytopes.

# %%
#| default_exp superposition.feature_graphs

# %%
#| export
import numpy as np, torch
from collections import Counter
from itertools import permutations, product
from scipy.sparse.csgraph import connected_components
from typing import NamedTuple
from moral_sc.foundation.arguments import checked
from moral_sc.superposition.geometry import (check_one_model, compounds,
                                             feature_dimensionality, polytopes, represented)
from moral_sc.superposition.model import weights_of

# %%
#| hide
from fastcore.test import *
from moral_sc.superposition.geometry import antiprism, polygon, simplex, tegum
torch.manual_seed(0);


# %% [markdown]
# A model with four hundred features in thirty dimensions cannot be inspected by eye. But not all of
# its features interfere: they form groups that share a few dimensions and are orthogonal to the
# rest, and each group is a small polytope. The paper draws them as graphs whose edges have the
# weight $|W_i\cdot W_j|$ [@elhage2022].

# %%
#| export
def feature_graph(
    W:torch.Tensor, # [feature, hidden]
    threshold=.1,   # Weaker interference is no edge
)->torch.Tensor:    # [feature, feature], 0 where there is no edge
    "Return the strength of the interference between features"
    A = (W@W.mT).abs().fill_diagonal_(0.)
    return torch.where(A>threshold, A, 0.)

def feature_components(
    W:torch.Tensor, # [feature, hidden]
    threshold=.1,
    min_norm=.5,       # Features with shorter columns are left out
)->list:            # Lists of features, in order of their first
    "Return groups of stored features that interfere with each other"
    stored = torch.where(represented(W, min_norm))[0]
    A = feature_graph(W[stored].detach().cpu().double(), threshold)
    label = connected_components(A.numpy(), directed=False)[1]
    groups = {}
    for feature,g in zip(stored.tolist(), label.tolist()): groups.setdefault(g, []).append(feature)
    return list(groups.values())


# %% [markdown]
# A pentagon, a digon and a dedicated feature in four dimensions, rotated at random and shuffled.
# The last feature is dropped.

# %%
def rotate_and_shuffle(*shapes):
    W = torch.cat([tegum(*shapes), torch.zeros(1, sum(s.shape[1] for s in shapes))])
    O = torch.linalg.qr(torch.randn(W.shape[1], W.shape[1], dtype=torch.float64)).Q
    return W[torch.randperm(len(W))]@O

W = rotate_and_shuffle(polytopes['pentagon'], polytopes['digon'], polytopes['dedicated'])
W = W + .01*torch.randn_like(W)
test_eq(sorted(map(len, feature_components(W))), [1,2,5])
feature_components(W), feature_graph(W).count_nonzero()//2


# %% [markdown]
# ## Polytope names
#
# A group has the name of a polytope if it has as many corners, spans as many dimensions, every
# $D_i$ is within 0.012 of that polytope's (which distinguishes the antiprism's 3/8 from the
# pentagon's 2/5), and the angles agree. The comparison of angles is independent of the order of the
# features and of the rotation: each corner has a sorted list of cosines to all corners, and in
# these polytopes all corners have the same list.

# %%
#| export
def angle_pattern(
    W:torch.Tensor, # [corner, hidden]
)->torch.Tensor:    # [corner, corner]
    "Return the sorted cosines of each corner to all corners"
    unit = W/W.norm(dim=-1, keepdim=True)
    return (unit@unit.mT).sort(dim=1).values

def spanned_dimensions(
    W:torch.Tensor, # [corner, hidden]
    min_ratio=.15,      # Share of the largest singular value that counts as a dimension
)->int:
    "Return the number of dimensions that a group of features spans"
    s = torch.linalg.svdvals(W)
    return int((s>min_ratio*s.max()).sum())

class Shape(NamedTuple):
    "A group of interfering features"
    name:str         # A name in `polytopes`, or 'other'
    features:list
    dimensions:int   # Dimensions that the group spans
    share:float      # Sum of D over the group

def _name(W, dims, tolerance, angles):
    D = feature_dimensionality(W)
    for name,P in polytopes.items():
        if P.shape != (len(W),dims): continue
        same_D = (D-dims/len(W)).abs().max()<=tolerance
        if same_D and (angle_pattern(W)-angle_pattern(P)).abs().max()<=angles: return name
    return 'other'

@checked
def recognise(
    W:torch.Tensor,  # [feature, hidden]
    threshold=.1,    # Interference that makes an edge
    tolerance=.012,  # On each D
    angles=.15,      # On each cosine
    min_norm=.5,        # Features with shorter columns are left out
)->list:             # Of `Shape`
    "Name the polytopes that stored features form"
    W = weights_of(W).detach().cpu().double()
    check_one_model(W)
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
# Every polytope is recognised after a rotation, a permutation, a change of scale by a tenth and
# noise of half a percent. A flattened pentagon has no name.

# %%
for name,P in polytopes.items():
    names = [recognise(1.1*(rotate_and_shuffle(P) + .005*torch.randn(len(P)+1, P.shape[1])))[0].name
            for _ in range(20)]
    assert names.count(name)>=19, (name, names)
flattened = polygon(5)*torch.tensor([1.,.75])
test_eq(recognise(flattened)[0].name, 'other')
recognise(antiprism(.5604))[0], recognise(flattened)[0]


# %% [markdown]
# Compounds of several polytopes, such as bipyramids, have names as wholes.

# %%
#| export
@checked
def overall_shape(
    W:torch.Tensor, # [feature, hidden]
    **kw,           # As for `recognise`
)->str:             # A name in `compounds`, or the parts with their numbers
    "Name the shape of all stored features together"
    parts = Counter(s.name for s in recognise(W, **kw))
    for name,components in compounds.items():
        if parts==Counter(components): return name
    names = [f'{k} {name}' if k>1 else name for name,k in sorted(parts.items())]
    return ' + '.join(names) or 'nothing'


# %%
wholes = {name: overall_shape(rotate_and_shuffle(*[polytopes[p] for p in parts]))
          for name,parts in compounds.items()}
test_eq(list(wholes), list(wholes.values()))
wholes, overall_shape(rotate_and_shuffle(simplex(3), polygon(2), polygon(2)))

# %% [markdown]
# The result is not sensitive to the threshold: at 0.1 and at 0.2 the groups of a noisy model are
# the same. Far below, noise connects everything.

# %%
W = rotate_and_shuffle(*[polygon(2)]*6, polygon(5), antiprism())
W = W + .003*torch.randn_like(W)
by_threshold = {t: overall_shape(W, threshold=t) for t in (.003,.1,.2)}
test_eq(by_threshold[.1], 'antiprism + 6 digon + pentagon')
test_eq(by_threshold[.1], by_threshold[.2])
by_threshold


# %% [markdown]
# ## Alignment
#
# To compare `W` with a reference, we need a rotation (or reflection) and an order of the features.
# Given the order, the best rotation is the Procrustes solution.

# %%
#| export
def procrustes(
    W:torch.Tensor,  # [feature, hidden]
    reference:torch.Tensor, # [feature, hidden]
)->torch.Tensor:     # [hidden, hidden], orthogonal
    "Return the rotation that brings W closest to a reference"
    U,_,V = torch.linalg.svd(W.mT@reference)
    return U@V


# %%
W = torch.randn(30, 7, dtype=torch.float64)
O = torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64)).Q
test_close(W@O@procrustes(W@O, W), W, eps=1e-9)
(W@O@procrustes(W@O, W)-W).abs().max()


# %% [markdown]
# Features that come in sets, such as correlated pairs, may only be permuted so that sets stay
# together. For two sets of two there are eight such orders.

# %%
#| export
def pair_orders(
    n_pairs:int,
)->list: # Orders of the 2 n_pairs features
    "Return every order of the features that keeps pairs together"
    return [[2*pair+(flip^i) for pair,flip in zip(order, flips) for i in (0,1)]
            for order in permutations(range(n_pairs)) for flips in product((0,1), repeat=n_pairs)]

def aligned_distance(
    W:torch.Tensor,         # [feature, hidden]
    reference:torch.Tensor, # [feature, hidden]
    orders,                 # Orders of the features of W that are allowed
)->float:
    "Return the distance of two models after the best rotation, reflection and allowed order"
    V = W[torch.tensor(orders)].double()
    reference = reference.double()
    rotated = V@procrustes(V, reference.expand_as(V))
    return (rotated-reference).square().sum((1,2)).min().sqrt().item()


# %%
test_eq(pair_orders(1), [[0,1],[1,0]]); test_eq(len(pair_orders(2)), 8)
W = torch.randn(4, 2, dtype=torch.float64)
O = torch.linalg.qr(torch.randn(2, 2, dtype=torch.float64)).Q
test_close(aligned_distance((W@O)[[3,2,0,1]], W, pair_orders(2)), 0, eps=1e-9)
assert aligned_distance(W[[0,2,1,3]], W, pair_orders(2)) > .1


# %% [markdown]
# Many trainings of one setting end in a few arrangements. Models of one arrangement are compared with
# the one of lowest loss; a distance that is not small says that the name stands for several solutions.

# %%
#| export
def compare_arrangements(
    W:torch.Tensor,    # [model, feature, hidden]
    loss:torch.Tensor, # [model]
    names,             # Of the models' arrangements
    orders,            # Orders of the features that are allowed
    most:int=30,       # Models of an arrangement that are compared with its best one
)->tuple: # Rows of arrangement, models, loss, apart, most frequent first; W of their best models
    "Count arrangements, and measure how far apart models of one arrangement are"
    names = np.array([*names])
    rows,models = [],[]
    for name,count in Counter(names).most_common():
        at = np.where(names==name)[0]
        first = at[loss[at].argmin()]
        distance = max(aligned_distance(W[i], W[first], orders) for i in at[:most])
        rows.append(dict(arrangement=name, models=count, loss=loss[first].item(), apart=distance))
        models.append(W[first])
    return rows,models


# %%
three = torch.stack([W, (W@O)[[1,0,2,3]], W[[0,2,1,3]]])
rows,models = compare_arrangements(three, torch.tensor([2.,1,3]), 'aab', pair_orders(2))
test_close([r['apart'] for r in rows], [0, 0], eps=1e-9); test_eq(models[0], three[1])
test_eq([(r['arrangement'], r['models'], r['loss']) for r in rows], [('a', 2, 1.), ('b', 1, 3.)])
rows,_ = compare_arrangements(three, torch.tensor([2.,1,3]), 'aaa', pair_orders(2))
assert rows[0]['apart']>.1
