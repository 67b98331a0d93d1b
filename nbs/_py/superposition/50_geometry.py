# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Geometry
#
# > Feature dimensionality, interference and polytopes describe the columns of W.

# %%
#| default_exp superposition.geometry

# %%
#| export
import torch
from torch.nn.functional import cosine_similarity
from moral_sc.foundation.arguments import checked
from moral_sc.foundation.errors import ConfigError
from moral_sc.superposition.model import weights_of

# %%
#| hide
from fastcore.test import *
torch.manual_seed(0);


# %% [markdown]
# When a model stores more features than it has dimensions, the features share dimensions.
# Everything on this page is computed from the columns $W_i$ alone and is invariant under rotations
# of the hidden space. Functions take `[..., feature, hidden]`, a run's `W` or the run itself.
#
# ## Interference
#
# When feature $i$ is active, how much of the other features do we read along its direction?
# $\sum_{j\ne i}(\hat W_i\cdot W_j)^2$ is zero for a feature with its own direction, and one or more
# for a feature that shares it fully [@elhage2022].

# %%
#| export
def overlaps(
    W:torch.Tensor, # [..., feature, hidden]
)->torch.Tensor:    # [..., feature, feature]
    "Return the squared projection of $W_j$ (columns) on the direction of $W_i$ (rows)"
    W = weights_of(W)
    unit = W/W.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return (unit@W.mT)**2

@checked
def interference(
    W:torch.Tensor, # [..., feature, hidden]
)->torch.Tensor:    # [..., feature]
    "Return the squared projection of all other features on each feature's direction"
    o = overlaps(W)
    return o.sum(-1) - o.diagonal(dim1=-2, dim2=-1)


# %% [markdown]
# An antipodal pair, a feature with its own direction, and a dropped feature:

# %%
W = torch.tensor([[1,0],[-1,0],[0,1],[0,0.]])
test_eq(interference(W), torch.tensor([1,1,0,0.]))
interference(W)


# %% [markdown]
# ## Feature dimensionality
#
# The fraction of a dimension that feature $i$ has to itself is
#
# $$D_i = \frac{\|W_i\|^2}{\sum_j(\hat W_i\cdot W_j)^2}.$$

# %%
#| export
@checked
def feature_dimensionality(
    W:torch.Tensor, # [..., feature, hidden]
)->torch.Tensor:    # [..., feature], between 0 and 1; 0 for a zero column
    "Return the fraction of a dimension that each feature has to itself"
    W = weights_of(W)
    return W.norm(dim=-1)**2/overlaps(W).sum(-1).clamp(min=1e-24)


# %%
test_eq(feature_dimensionality(W.tolist()), feature_dimensionality(W.double()))
with expect_fail(ConfigError, contains='W is'): feature_dimensionality('W')
feature_dimensionality(W)


# %% [markdown]
# The paper observes that these fractions add up to about the number of dimensions. A stronger
# statement holds. With $M = W^\top W$ (in `[feature, hidden]` layout) $D_i = \|W_i\|^4/(W_i^\top M
# W_i)$, and the Cauchy-Schwarz inequality applied to $\|W_i\|^2 = (M^{1/2}W_i)\cdot(M^{-1/2}W_i)$
# bounds it by the leverage $W_i^\top M^+ W_i$. Leverages are at most one and add up to the rank.
# Therefore $\sum_i D_i \le \mathrm{rank}\,W \le m$ always, with equality exactly if every $W_i$ is
# an eigenvector of $M$.

# %%
#| export
@checked
def leverage(
    W:torch.Tensor, # [..., feature, hidden]
)->torch.Tensor:    # [..., feature], adds up to the rank
    "Return the statistical leverage of each feature, an upper bound on its dimensionality"
    U,S,_ = torch.linalg.svd(weights_of(W), full_matrices=False)
    nonzero = S > S.amax(-1, keepdim=True)*1e-12
    return (U**2*nonzero[...,None,:]).sum(-1)


# %% [markdown]
# A test on two thousand random matrices with columns of very different lengths:

# %%
W = torch.randn(2000, 12, 4, dtype=torch.float64)*torch.randn(2000, 12, 1).exp()
D = feature_dimensionality(W)
L = leverage(W)
assert (D <= L+1e-12).all() and (L <= 1+1e-12).all()
test_close(L.sum(-1), torch.full((2000,), 4.), eps=1e-9)
D.sum(-1).max().item(), D.sum(-1).mean().item()


# %% [markdown]
# ## Polytopes
#
# Unit vectors that form a tight frame of $N$ vectors in $d$ dimensions have $D=d/N$ each, and
# shapes in orthogonal subspaces keep their values. These are the levels at which trained features
# settle.

# %%
#| export
def polygon(
    k:int,        # Corners; 2 is a digon, an antipodal pair
)->torch.Tensor:  # [k, 2], or [2, 1] for the digon
    "Return the corners of a regular polygon on the unit circle"
    t = torch.arange(k, dtype=torch.float64)*2*torch.pi/k
    W = torch.stack([t.cos(), t.sin()], -1)
    return W[:,:1] if k==2 else W

def simplex(
    d:int,        # Dimensions
)->torch.Tensor:  # [d+1, d]
    "Return the corners of a regular simplex"
    centred = torch.eye(d+1, dtype=torch.float64) - 1/(d+1)
    W = torch.linalg.svd(centred).U[:,:d]
    return W/W.norm(dim=-1, keepdim=True)

def tegum(
    *shapes,      # [corner, dimension] each
)->torch.Tensor:
    "Combine shapes in orthogonal subspaces (tegum product)"
    return torch.block_diag(*shapes)


# %%
shapes = dict(digon=polygon(2), triangle=polygon(3), tetrahedron=simplex(3), pentagon=polygon(5),
              square=polygon(4), bipyramid=tegum(polygon(3),polygon(2)))
for name,D in dict(digon=1/2, triangle=2/3, tetrahedron=3/4, pentagon=2/5, square=1/2).items():
    test_close(feature_dimensionality(shapes[name]), torch.full((len(shapes[name]),), D))
{k: feature_dimensionality(v).numpy().round(3) for k,v in shapes.items()}

# %% [markdown]
# The triangular bipyramid is a tegum product: three features at 2/3 and two at 1/2, where the
# number of its corners alone would have suggested 3/5.

# %%
test_close(feature_dimensionality(shapes['bipyramid']), torch.tensor([2,2,2,1.5,1.5])/3)


# %% [markdown]
# The square antiprism consists of two squares rotated against each other. It has $D=3/8$ exactly if
# its corners are at heights $\pm1/\sqrt3$, and only approximately at the heights of charges on a
# sphere:

# %%
#| export
def antiprism(
    height=3**-.5, # Of the squares above and below the middle; the default gives a tight frame
)->torch.Tensor:   # [8, 3]
    "Return the corners of a square antiprism on the unit sphere"
    t = torch.arange(8, dtype=torch.float64)*torch.pi/4
    sign = (-1.)**torch.arange(8)
    r = (1-height**2)**.5
    return torch.stack([r*t.cos(), r*t.sin(), height*sign], -1)


# %%
test_close(feature_dimensionality(antiprism()), torch.full((8,), 3/8))
feature_dimensionality(antiprism())[0], feature_dimensionality(antiprism(.5604))[0]

# %% [markdown]
# `polytopes` are the shapes that are not products of shapes of fewer dimensions, and `compounds` are the
# named products.

# %%
#| export
polytopes = dict(dedicated=torch.ones(1, 1, dtype=torch.float64), digon=polygon(2),
    triangle=polygon(3), tetrahedron=simplex(3), simplex4=simplex(4), pentagon=polygon(5),
    hexagon=polygon(6), heptagon=polygon(7), octagon=polygon(8), antiprism=antiprism())
compounds = {name: tuple(parts.split()) for name,parts in dict(
    square='digon digon', octahedron='digon digon digon',
    triangular_bipyramid='digon triangle', pentagonal_bipyramid='digon pentagon',
    hexagonal_bipyramid='digon hexagon').items()}

# %% [markdown]
# All corners of these polytopes have the same dimensionality, and the values of one polytope add up
# to its number of dimensions:

# %%
shares = {k: feature_dimensionality(W) for k,W in polytopes.items()}
for k,W in polytopes.items(): test_close(shares[k], torch.full((len(W),), W.shape[1]/len(W)))
for parts in compounds.values():
    D = feature_dimensionality(tegum(*[polytopes[p] for p in parts]))
    test_close(D, torch.cat([shares[p] for p in parts]))
{k: round(D[0].item(), 3) for k,D in shares.items()}


# %% [markdown]
# ## Represented features
#
# A feature is represented if its column is longer than one half. The paper's overall measure,
# dimensions per feature, is $D^* = m/\|W\|_F^2$.

# %%
#| export
@checked
def represented(
    W:torch.Tensor, # [..., feature, hidden]
    min_norm=.5,       # Shortest column that counts
)->torch.Tensor:    # [..., feature], bool
    "Return which features the model stores"
    return weights_of(W).norm(dim=-1) > min_norm

@checked
def dimensions_per_feature(
    W:torch.Tensor, # [..., feature, hidden]
)->torch.Tensor:    # [...]
    "Return the hidden dimensions per stored feature, by the squared Frobenius norm"
    W = weights_of(W)
    return W.shape[-1]/W.square().sum((-1,-2))


# %%
dimensions_per_feature(tegum(polygon(2), polygon(2))), represented(torch.eye(4,2))


# %% [markdown]
# The least important features should be the first to share a dimension. Features are sorted by
# importance here, the most important first.

# %%
#| export
def sharing_in_order(
    W:torch.Tensor, # [feature, hidden], most important feature first
    own=.75,        # Smallest dimensionality of a feature with a dimension of its own
)->float:           # NaN if there is no such pair
    "Return the share of (own, shared) pairs whose first feature is the more important one"
    stored = represented(W)
    dedicated = feature_dimensionality(W)>own
    first,second = (torch.where(stored & m)[0] for m in (dedicated,~dedicated))
    return (first[:,None]<second).double().mean().item()


# %%
test_eq(sharing_in_order(torch.block_diag(torch.eye(2), polygon(2))), 1.)
test_eq(sharing_in_order(torch.block_diag(polygon(2), torch.eye(2))), 0.)


# %% [markdown]
# For features in pairs, such as correlated ones, the cosine within each pair tells how the pair is
# stored: 0 for a right angle, −1 for opposites, 1 for a pair on one direction.

# %%
#| export
def pair_cosines(
    W:torch.Tensor, # [..., feature, hidden], pairs are neighbours
)->torch.Tensor:    # [..., pair]
    "Return the cosine within each pair of columns"
    return cosine_similarity(W[...,::2,:], W[...,1::2,:], dim=-1)


# %%
test_close(pair_cosines(torch.eye(2)), torch.zeros(1))
test_close(pair_cosines(polygon(2)), -torch.ones(1))


# %% [markdown]
# ## Shapes in the plane
#
# To classify thousands of models with two hidden dimensions, `planar_shape` names their shape:
# 'orthogonal' for two represented features at a right angle, 'antipodal pairs' for four on a cross,
# 'pentagon' for five at equal angles, with a tolerance of six degrees.

# %%
#| export
def angular_gaps(
    W:torch.Tensor, # [feature, 2], represented features only
)->torch.Tensor:    # Degrees, in order around the circle
    "Return the angles between successive features"
    t = torch.atan2(W[:,1], W[:,0]).rad2deg().sort().values
    return torch.cat([t, t[:1]+360]).diff()

def check_one_model(W):
    "Raise an error for weights of several models"
    if W.ndim!=2: raise ConfigError(
        f'W has shape {list(W.shape)}: give one model [feature, hidden], such as run.W[0].')

_shapes = {2: ('orthogonal', [90,270]), 4: ('antipodal pairs', [90]*4), 5: ('pentagon', [72]*5)}

@checked
def planar_shape(
    W:torch.Tensor, # [feature, 2]
    tolerance=6.,   # Degrees
)->str:             # 'orthogonal', 'antipodal pairs', 'pentagon' or 'other'
    "Name the shape that the represented features form"
    W = weights_of(W)
    if W.shape[-1]!=2: raise ConfigError(
        f'planar_shape needs two hidden dimensions, not {W.shape[-1]}: use recognise.')
    check_one_model(W)
    g = angular_gaps(W[represented(W)])
    name,expected = _shapes.get(len(g), ('other', None))
    ok = expected and (g.sort().values - torch.tensor(expected)).abs().max() <= tolerance
    return name if ok else 'other'


# %%
noisy = lambda W: W.float() + .02*torch.randn(len(W), 2)
names = [planar_shape(noisy(W)) for W in (torch.eye(5,2), polygon(4), polygon(5), polygon(6))]
test_eq(names, ['orthogonal','antipodal pairs','pentagon','other'])
names


# %% [markdown]
# A rotation or reflection of the hidden space is arbitrary, so models that are compared in a figure
# are first aligned: the first feature along the first axis, the second in the upper half of the
# plane of the first two axes, and so on.

# %%
#| export
@checked
def align_to_axes(
    W:torch.Tensor, # [..., feature, hidden]
)->torch.Tensor:    # Same shape
    "Rotate each model: feature $k$ within the first $k$ axes, on the positive side of axis $k$"
    W = weights_of(W)
    Q,R = torch.linalg.qr(W[...,:W.shape[-1],:].mT, mode='complete')
    sign = torch.ones_like(W[...,0,:])
    sign[...,:R.shape[-1]][R.diagonal(dim1=-2, dim2=-1)<0] = -1
    return W@(Q*sign[...,None,:])


# %%
for m in (2,3):
    W = torch.randn(3,5,m)
    O = torch.linalg.qr(torch.randn(m,m)).Q
    test_close(align_to_axes(W), align_to_axes(W@O), eps=1e-5)
    test_close(align_to_axes(W)[:,0,1:], torch.zeros(3,m-1))
    assert (align_to_axes(W)[:,1,1]>=0).all()
test_eq(align_to_axes(torch.randn(2,4)).shape, [2,4])
align_to_axes(W)[0]

# %%
with expect_fail(ConfigError, contains='not 3'): planar_shape(torch.eye(5,3))
with expect_fail(ConfigError, contains='one model'): planar_shape(torch.ones(4,5,2))
