# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Phase change, three features: the omitted triangle is best near r = 1
#
# > Second phase diagram: 98 % of the best trained models lie in the predicted region; at densities 0.6 to 0.9 and r near 1 a triangle outside the prediction has the lowest loss.

# %% tags=["parameters"]
scale = 'quick'  # quick: every second point; cpu: 21 x 21 points, ten starts each; gpu: 256 x 256
seed = 0         # everything random follows from it

# %%
#| hide
import numpy as np, pandas as pd, torch
from moral_sc.foundation.statistics import Estimate
from moral_sc.lab.claims import record
from moral_sc.lab.scales import at_scale
from moral_sc.superposition.plots import plot_curves, plot_phases
from moral_sc.superposition.phase_diagram import (agrees_with_theory, classify_region,
    describe_grid, exact_optima, families, logspace, phase_diagram, phase_grid, predict_grid,
    simple_solution_losses, triangle)
from moral_sc.superposition.theory import antipodal_boundary_density

# %%
size = at_scale(scale,
    quick=dict(points=21, every=2, exact=5, lens=7),
    cpu=dict(points=21, every=1, exact=15, lens=25),
    gpu=dict(points=256, every=1, exact=31, lens=49),
)
device = 'cuda' if scale=='gpu' and torch.cuda.is_available() else 'cpu'
size

# %% [markdown]
# ## Superposition as a phase change: three features in two dimensions
#
# With three features of importance $(1,1,r)$ in two dimensions there are more ways to do without the
# third dimension. A solution of unit weights is named by the direction that $W$ loses:
#
# > The last feature is dropped, or one of the first two, or two features share a dimension
# > as antipodes, with or without the last. Comparing these four predicts the map. One more
# > candidate, $W\perp(1,1,1)$, which would be a triangle, is left out [@elhage2022].

# %%
pd.Series(families[3,2]).rename('W').to_frame()

# %%
density = logspace(1, .01, size['points'])[::size['every']]
importance = logspace(.1, 10, size['points'])[::size['every']]
table,sweep = phase_diagram(3, 2, density, importance, 10, seed, device=device)
config = sweep.config
predicted = predict_grid(config)
single = describe_grid(config, sweep.params['W'][:,0])
sweep

# %%
#| label: fig-phases
#| fig-cap: State of the last of three features in two dimensions, as predicted from four simple solutions, in the best of several runs, and in one run.
plot_phases({'four solutions': predicted, 'best run': table, 'single run': single})

# %%
clear = (predicted.margin>.2).to_numpy()
maps = dict(best=table, single=single)
agree = {k: agrees_with_theory(config, t.region) for k,t in maps.items()}
pd.DataFrame({k: dict(all=a.mean(), margin_over_20_percent=a[clear].mean(),
                      strict=(maps[k].region==predicted.region).mean())
              for k,a in agree.items()}).T.round(3)

# %% [markdown]
# Above $r=1$ the last feature seldom shares in @fig-phases: the other two make room for it, as
# antipodes where features are sparse, and by dropping one of them where features are dense.
# Below $r=1$ the boundary is that of [two features](phase_change.ipynb), since a pair of antipodes
# costs the same beside a feature that has a dimension to itself.
#
# ## The triangle
#
# Does the map change if the triangle is included? With unit weights and no bias the triangle has a
# higher loss than the best of the four at every point. Its lowest loss relative to theirs:

# %%
four,_ = simple_solution_losses(config)
unit,_ = simple_solution_losses(config, {'triangle': triangle})
ratio = unit[:,0]/four.amin(1)
assert ratio.min() > 1
ratio.min().item()

# %% [markdown]
# Its omission therefore does not change a comparison of unit weights. But a triangle gains more than
# the others from a free length and a free bias. We use each candidate as the start of a descent on the
# [exact loss](../../superposition/30_exact_loss.ipynb), which keeps its symmetry:

# %%
candidates = torch.tensor([*families[3,2].values(), triangle], dtype=torch.float64)
p = np.linspace(.1, 1, 19)
equal = phase_grid(3, 2, p, [1.])
free = {k: exact_optima(equal, starts=candidates[i]).loss.amin(1)
        for k,i in {'four solutions, freed': slice(0,4), 'triangle, freed': slice(4,5)}.items()}
unit_triangle = simple_solution_losses(equal, {'triangle': triangle})[0][:,0]
losses = {'triangle of unit weights': unit_triangle} | free
relative = {k: (v/simple_solution_losses(equal)[0].amin(1)).numpy() for k,v in losses.items()}

# %%
#| label: fig-triangle
#| fig-cap: Loss at equal importance, relative to the best of the four simple solutions with unit weights.
plot_curves(p, {k: np.where(v<1.4, v, np.nan) for k,v in relative.items()},
            'density p', 'relative loss')


# %% [markdown]
# With free length and bias, the triangle is the best solution at equal importance above the density at
# which the curves of @fig-triangle cross; at density 1 it ties with the others. How far from equal
# importance does this region extend? From here on, starts are slightly perturbed, so that none stays on
# a saddle point.

# %%
def is_triangle(W):
    "Tell whether all three are stored, each pair at least 105 degrees apart"
    u = W/W.norm(dim=-1, keepdim=True).clamp(min=1e-9)
    G = u@u.mT
    wide = torch.stack([G[:,0,1],G[:,0,2],G[:,1,2]], 1).amax(1) < -.26
    return (wide & (W.norm(dim=-1).amin(1)>.5)).numpy()

rs = logspace(.7, 1/.7, size['lens'])
ps = np.array([.5,.6,.7,.8,.9,1.])
lens = phase_grid(3, 2, ps, rs)
best = exact_optima(lens, starts=candidates, jitter=.05, seed=seed)
inside = is_triangle(best.best()['W']).reshape(len(ps), -1)
assert inside.any()
ends = [(rs[i].min(), rs[i].max()) if i.any() else (np.nan, np.nan) for i in inside]
pd.DataFrame(ends, ps, ['lowest r','highest r']).rename_axis('density').round(3)

# %% [markdown]
# The triangle is optimal in a narrow region around $r=1$, where the prediction does not contain the
# true optimum. At the two points of the map inside this region trained models find it:

# %%
middle = np.isclose(config.importances[:,-1], 1)
W = sweep.best()['W'][torch.tensor(middle)]
pd.DataFrame(dict(density=config.densities[middle,0], triangle=is_triangle(W),
                  norm=W.norm(dim=-1).mean(-1), loss=sweep.loss.amin(1)[middle],
                  four=four.amin(1)[middle])).round(4)

# %% [markdown]
# ## The exact map

# %%
coarse = phase_grid(3, 2, logspace(1, .01, size['exact']), logspace(.1, 10, size['exact']))
best = exact_optima(coarse, starts=candidates, jitter=.05, seed=seed)
truth = describe_grid(coarse, best.best()['W'], best.loss.amin(1))
simple = predict_grid(coarse)

# %%
#| label: fig-exact
#| fig-cap: State of the last feature in the four simple solutions and in the exact optimum; the line is where antipodes tie with dropping it.
r = logspace(.1, 1, 20)
plot_phases({'four solutions': simple, 'exact optimum': truth},
            {'tie of the simple solutions': (r, antipodal_boundary_density(r))})

# %%
assert (truth.loss <= simple.loss*(1+1e-6)).all()
gain = (1-truth.loss/simple.loss).groupby(simple.solution).agg(['mean','max']).round(4)
same = (truth.region==simple.region).groupby(simple.solution).mean()
gain.assign(same_region=same.round(3))

# %% [markdown]
# @fig-exact and the table show that the four simple solutions predict the state of the last feature
# well (for each solution at 93 % of the points or more) and the loss only roughly.
#
# This page does not cover four features or more, where the number of candidates grows, and does not show whether another solution wins between the points of the grid.
#
# ## Claims
#
# The criterion was fixed before the first run, in `data/claims/superposition_phase.toml`. The paper
# shows the two maps side by side and states no rate. The interval redraws the ten starts of every
# point and is centred, because a redrawn set has fewer different starts; the points of the map are
# fixed.

# %%
loss = sweep.loss.numpy()
correct = agrees_with_theory(config, classify_region(sweep.params['W']))   # point, start
rows = np.arange(len(loss))
def share(draw): return correct[rows,draw[rows,loss[rows[:,None],draw].argmin(1)]].mean()

rng = np.random.default_rng(seed)
drawn = [share(rng.integers(0, 10, loss.shape)) for _ in range(300)]
low,high = np.quantile(drawn, [.025,.975]) - np.mean(drawn)
value = agree['best'].mean()
record(scale, {'superposition/phase-three': Estimate(value, value+low, value+high)})
