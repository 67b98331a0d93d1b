# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Dimensionality sweep
#
# > One call trains equal features at many densities and measures dimensionality.

# %%
#| default_exp superposition.dimensionality

# %%
#| export
import pandas as pd, torch
from dataclasses import dataclass
from fastcore.meta import delegates
from moral_sc.foundation.arguments import checked
from moral_sc.foundation.errors import ConfigError
from moral_sc.superposition.features import as_numbers
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
# Many equal features, few dimensions, one model for every density: one call runs the paper's
# experiment on uniform superposition [@elhage2022]. The paper trains one model per density;
# `restarts` trains several from independent initialisations, since a single model is one sample.
#
# ## Levels
#
# Features that form a regular polytope have equal dimensionality, and there are few small
# polytopes. These are the levels that the paper draws as guide lines. `dedicated` is a feature with
# its own dimension.

# %%
#| export
LEVELS = {'dedicated': 1, 'tetrahedron': 3/4, 'triangle': 2/3, 'digon': 1/2, 'pentagon': 2/5,
          'antiprism': 3/8, 'hexagon': 1/3}

def nearest_level(
    D:torch.Tensor,  # Feature dimensionalities, any shape
    tolerance=.012,  # Largest distance to a level
)->torch.Tensor:     # Same shape: index into `LEVELS`, -1 for none
    "Return the level of each feature dimensionality"
    levels = torch.tensor(list(LEVELS.values()), dtype=torch.float64)
    nearest = (D[...,None].double() - levels).abs().min(-1)
    return torch.where(nearest.values<=tolerance, nearest.indices, -1)


# %% [markdown]
# A triangular bipyramid beside two digons, and a dropped feature:

# %%
W = torch.cat([tegum(polygon(3), polygon(2), polygon(2)), torch.zeros(1,4)])
D = feature_dimensionality(W)
test_eq(nearest_level(D), torch.tensor([2,2,2,3,3,3,3,-1]))
D, nearest_level(D)


# %% [markdown]
# ## Sweep
#
# `DimensionalitySweep` holds the trained weights and computes the paper's measures. The sum of all
# dimensionalities never exceeds the number of dimensions ([proof](50_geometry.ipynb)); the closer it comes,
# the more of the space is in regular use.

# %%
#| export
@dataclass
class DimensionalitySweep:
    "Trained models of equal features at several densities"
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
        "Dimensionality of each feature; [density, restart, feature]"
        return feature_dimensionality(self.W)
    @property
    def stored(self):
        "Represented features; [density, restart, feature]"
        return represented(self.W)
    @property
    def total(self):
        "Sum of the dimensionalities; [density, restart], at most `n_hidden`"
        return self.D.sum(-1)

    def level_share(self, level, tolerance=.012):
        "Share of the represented features that lie on a level of `LEVELS`; [density, restart]"
        on_level = (nearest_level(self.D, tolerance)==list(LEVELS).index(level)) & self.stored
        return on_level.sum(-1)/self.stored.sum(-1).clamp(min=1)

    def table(self, tolerance=.012)->pd.DataFrame:
        "Tabulate means over restarts, and the number of features on each level, by density"
        level = torch.where(self.stored, nearest_level(self.D, tolerance), -1)
        counts = {name: (level==i).sum(-1).double().mean(1) for i,name in enumerate(LEVELS)}
        means = dict(d_star=self.d_star, stored=self.stored.sum(-1), total=self.total)
        cols = {k: v.double().mean(1) for k,v in means.items()} | counts
        return pd.DataFrame({k: v.cpu().numpy() for k,v in cols.items()},
                            index=pd.Index(self.density, name='density'))

@checked
@delegates(train, but=['instances', 'resume', 'stop', 'data'])
def dimensionality_sweep(
    n_features:int=400,
    n_hidden:int=30,
    density=(1,.7,.5,.35,.25,.18,.1,.05),
    restarts:int=1,  # Independent models at each density
    seed=0,
    init='xavier',   # Initial weights as in `ToyConfig`
    **kwargs,        # Arguments of `train`: steps, batch_size, lr, schedule, engine, device
)->DimensionalitySweep:
    "Train equal features at every density and measure their dimensionality"
    check_positive_integers(restarts=restarts)
    p = as_numbers('density', density).flatten()
    if not len(p): raise ConfigError('density is empty: give at least one.')
    config = ToyConfig(n_features, n_hidden, len(p)*restarts, init=init,
                       density=p.repeat_interleave(restarts)[:,None])
    run = train(config, seed=seed, **kwargs)
    W,b = (t.detach().cpu().unflatten(0, (len(p),restarts)) for t in (run.W,run.b))
    loss = run.loss[:,-5:].mean(1).view(len(p), restarts)
    return DimensionalitySweep(p.tolist(), W, b, loss)


# %% [markdown]
# Forty features in six dimensions are enough to see the effect. At density 1 nothing can be shared.
# At one third nearly every stored feature belongs to a digon, an antipodal pair. At one tenth more
# features are stored.

# %%
sweep = dimensionality_sweep(40, 6, (1,.33,.1), restarts=2, steps=3000, batch_size=256, lr=5e-3,
                             schedule='cosine')
sweep.table().round(2)

# %%
table = sweep.table()
assert table.digon[.33] > 6 and table.stored[.1] > table.stored[.33]
assert (sweep.total <= 6+1e-4).all()
test_close(sweep.level_share('digon').mean(1)*sweep.stored.sum(-1).double().mean(1),
           table.digon.to_numpy(), eps=.5)
sweep.total

# %%
with expect_fail(ConfigError, contains='restarts is 0'): dimensionality_sweep(restarts=0)
with expect_fail(ConfigError, contains='at least one'): dimensionality_sweep(density=[])
with expect_fail(ConfigError, contains='density is'): dimensionality_sweep(density='a')
with expect_fail(ConfigError, contains="did you mean 'lr'?"): dimensionality_sweep(learning_rate=1)


# %% [markdown]
# ## Changes over time
#
# In the snapshots of a run, features change from level to level together. `level_jumps` finds the
# moments at which several dimensionalities change at once.

# %%
#| export
def level_jumps(
    D,              # [time, feature]: dimensionalities along one run
    window=2,       # Snapshots within which the change takes place
)->list:            # Pairs (first snapshot, changed features), most features first
    "Find moments at which two or more dimensionalities change by more than 0.1"
    D = torch.as_tensor(D)
    changed = (D[window:]-D[:-window]).abs() > .1
    counts = changed.sum(1)
    jumps = []
    while (counts>=2).any():
        t = int(counts.argmax())
        jumps.append((t, changed[t].nonzero()[:,0].tolist()))
        counts[max(0, t-window):t+window+1] = 0
    return jumps


# %% [markdown]
# A made-up run, in which two features leave a triangle and become a digon between snapshots 3 and
# 4:

# %%
D = torch.tensor([[2/3]*3]*4 + [[.5,.5,0]]*4)
test_eq(level_jumps(D)[0][1], [0,1,2])
level_jumps(D)


# %% [markdown]
# Does the loss fall at these moments? Almost any window early in a run has a larger fall than the median window of the
# run, because the loss rests for most of it. The comparison must therefore stay within the phase in which features
# move, and know when they move: `jump_falls` compares windows with a jump and windows without one in that phase,
# and the pattern of the jumps with itself at other times.

# %%
#| export
def jump_falls(
    D,              # [time, feature]: dimensionalities of one run, NaN before a feature is stored
    loss,           # [time]
    window=2,       # Snapshots within which the change takes place
)->dict:            # Windows with and without jump, mean fall of either; shares of smaller falls
    "Compare the fall of the loss at jumps with other windows of the phase in which features move"
    D = torch.as_tensor(D)
    loss = torch.as_tensor(loss)
    change = (D[window:]-D[:-window]).abs().nan_to_num(0)
    moving = (change>.05).any(1).nonzero()
    stored = (~D.isnan()).any(1).nonzero()
    if not len(moving): return dict(jumps=0, quiet=0)
    phase = slice(int(stored[0]), int(moving[-1])+1)
    fall = (loss[:-window]-loss[window:])[phase]
    jump = (change>.1).sum(1)[phase] >= 2
    a,b = fall[jump],fall[~jump]
    if not len(a) or not len(b): return dict(jumps=len(a), quiet=len(b))
    shifted = torch.stack([fall[jump.roll(k)].mean() for k in range(1, len(jump))])
    return dict(jumps=len(a), quiet=len(b), at_jumps=a.mean().item(), otherwise=b.mean().item(),
                beats_quiet=(a[:,None]>b).double().mean().item(),
                beats_shifted=(a.mean()>shifted).double().mean().item())


# %% [markdown]
# Two made-up runs have the jump above. In one the loss falls at the jump only; in the other it falls steadily, and
# the jump has no part in it.

# %%
D = torch.tensor([[2/3]*3]*20 + [[.5,.5,0]]*4 + [[.45,.5,0]]*20)
time = torch.arange(len(D))
step = jump_falls(D, (time<20).double())
steady = jump_falls(D, -time.double())
test_eq((step['beats_quiet'], step['beats_shifted'], steady['beats_quiet']), (1, 1, 0))
step, steady
