# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Dimensions over a sweep
#
# > Train equal features at many densities and ask each how large a share of a dimension it has.

# %%
#| default_exp superposition.dimensionality

# %%
#| export
import pandas as pd, torch
from dataclasses import dataclass
from moral_sc.foundation.errors import ConfigError
from moral_sc.superposition.geometry import (dimensions_per_feature, feature_dimensionality,
                                             represented)
from moral_sc.superposition.model import ToyConfig, check_positive_integers
from moral_sc.superposition.training import train

# %%
#| hide
import numpy as np
from fastcore.test import *
from moral_sc.superposition.geometry import polygon, simplex, tegum

# %% [markdown]
# Many equal features, few dimensions, one model for every density: the paper's experiment on
# uniform superposition [@elhage2022] is a single call. Where the paper trains one model a density,
# `restarts` trains several from independent starts, since a single model is a draw.
#
# ## Levels
#
# Features that form a regular polytope have equal shares, and few polytopes are small. These are
# the levels that the paper draws as guide lines; `dedicated` is a feature with a dimension of its
# own.

# %%
#| export
LEVELS = {'dedicated': 1, 'tetrahedron': 3/4, 'triangle': 2/3, 'digon': 1/2, 'pentagon': 2/5,
          'antiprism': 3/8, 'hexagon': 1/3}

def nearest_level(
    D:torch.Tensor,  # Shares of a dimension, any shape
    tolerance=.012,  # Further off counts as no level
)->torch.Tensor:     # Same shape: place in `LEVELS`, -1 for none
    "Which level each share of a dimension lies on"
    off = (D[...,None].double() - torch.tensor(list(LEVELS.values()), dtype=torch.float64)).abs()
    near = off.min(-1)
    return torch.where(near.values<=tolerance, near.indices, -1)


# %% [markdown]
# A triangular bipyramid beside a digon, and a feature that was dropped:

# %%
W = torch.cat([tegum(polygon(3), polygon(2), polygon(2)), torch.zeros(1,4)])
D = feature_dimensionality(W)
test_eq(nearest_level(D), torch.tensor([2,2,2,3,3,3,3,-1]))
D, nearest_level(D)


# %% [markdown]
# ## The sweep
#
# `DimensionalitySweep` keeps the trained weights and answers the questions of the paper. The sum of all
# shares never exceeds the number of dimensions ([proof](50_geometry.ipynb)); how near it comes says
# how much of the space is in regular use.

# %%
#| export
@dataclass
class DimensionalitySweep:
    "Trained models of equal features, density by density"
    density:list         # [density]
    W:torch.Tensor       # [density, restart, feature, hidden]
    b:torch.Tensor       # [density, restart, feature]
    loss:torch.Tensor    # [density, restart], mean of the last logged batches

    @property
    def d_star(self):
        "Dimensions per feature, $m/\\|W\\|_F^2$; [density, restart]"
        return dimensions_per_feature(self.W)
    @property
    def D(self):
        "Share of a dimension of each feature; [density, restart, feature]"
        return feature_dimensionality(self.W)
    @property
    def stored(self):
        "Which features are represented; [density, restart, feature]"
        return represented(self.W)
    @property
    def total(self):
        "Sum of the shares; [density, restart], at most `n_hidden`"
        return self.D.sum(-1)

    def table(self, tolerance=.012)->pd.DataFrame:
        "One row for each density: means over restarts, and how many features lie on each level"
        where = torch.where(self.stored, nearest_level(self.D, tolerance), -1)
        on = {name: (where==i).sum(-1).double().mean(1) for i,name in enumerate(LEVELS)}
        means = dict(d_star=self.d_star, stored=self.stored.sum(-1), total=self.total)
        cols = {k: v.double().mean(1) for k,v in means.items()} | on
        return pd.DataFrame({k: v.cpu().numpy() for k,v in cols.items()},
                            index=pd.Index(self.density, name='density'))

def dimensionality_sweep(
    n_features=400,
    n_hidden=30,
    density=(1,.7,.5,.35,.25,.18,.1,.05),
    restarts=1,      # Independent starts at each density
    seed=0,
    init='xavier',   # Start as in `ToyConfig`
    **kw,            # Arguments of `train`: steps, batch_size, lr, schedule, engine, device
)->DimensionalitySweep:
    "Train equal features at every density and measure their shares of a dimension"
    check_positive_integers(restarts=restarts)
    p = torch.as_tensor(density, dtype=torch.float64).flatten()
    if not len(p): raise ConfigError('density is empty: give at least one.')
    config = ToyConfig(n_features, n_hidden, len(p)*restarts, init=init,
                       density=p.repeat_interleave(restarts)[:,None])
    run = train(config, seed=seed, **kw)
    W,b = (t.detach().cpu().unflatten(0, (len(p),restarts)) for t in (run.W,run.b))
    loss = run.loss[:,-5:].mean(1).view(len(p), restarts)
    return DimensionalitySweep(p.tolist(), W, b, loss)


# %% [markdown]
# Forty features in six dimensions are enough to see it. At density 1 nothing can be shared. At
# one third nearly every stored feature is half of a digon, an antipodal pair. At one tenth more
# features crowd in.

# %%
sweep = dimensionality_sweep(40, 6, (1,.33,.1), restarts=2, steps=3000, batch_size=256, lr=5e-3,
                             schedule='cosine')
sweep.table().round(2)

# %%
few = sweep.table()
assert few.digon[.33] > 6 and few.stored[.1] > few.stored[.33]
assert (sweep.total <= 6+1e-4).all()
sweep.total

# %%
with expect_fail(ConfigError, contains='restarts is 0'): dimensionality_sweep(restarts=0)
with expect_fail(ConfigError, contains='at least one'): dimensionality_sweep(density=[])


# %% [markdown]
# ## Shares over time
#
# Snapshots of a run show features that move from level to level together. `level_jumps` finds the moments
# at which several shares change at once.

# %%
#| export
def level_jumps(
    D,           # [time, feature]: shares along one run
    min_change=.1,    # How much a share must change
    window=2,    # Over how many snapshots
    min_features=2,  # How many features must do so at once
)->list:         # Pairs (first snapshot, features that moved), most features first
    "Moments at which several features change level together"
    D = torch.as_tensor(D)
    moved = (D[window:]-D[:-window]).abs() > min_change
    left = moved.sum(1)
    found = []
    while (left>=min_features).any():
        t = int(left.argmax())
        found.append((t, moved[t].nonzero()[:,0].tolist()))
        left[max(0, t-window):t+window+1] = 0
    return found


# %% [markdown]
# A made-up run: two features leave a triangle and become a digon between snapshots 3 and 4.

# %%
D = torch.tensor([[2/3]*3]*4 + [[.5,.5,0]]*4)
test_eq(level_jumps(D)[0][1], [0,1,2])
level_jumps(D)
