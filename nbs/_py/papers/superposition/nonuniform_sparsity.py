# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Non-uniform superposition: one sparse feature breaks the pentagon
#
# > "Non-Uniform Superposition": two digons replace the pentagon when one feature is 3.7 times sparser than the others, not 2.5 times as reported.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds; cpu: 10,000 steps from 16 starts; gpu: many more
seed = 0         # everything random follows from it

# %%
#| hide
import numpy as np, pandas as pd, torch
from scipy.stats import spearmanr
from moral_sc.foundation.statistics import cluster_bootstrap, wilson
from moral_sc.lab.claims import record
from moral_sc.lab.scales import at_scale
from moral_sc.superposition import ToyConfig, planar_shape, represented
from moral_sc.superposition.geometry import polygon
from moral_sc.superposition.geometry_plots import order_by_angle, plot_neighbours
from moral_sc.superposition.plots import curve_crossing, plot_curves, plot_solution_losses
from moral_sc.superposition.phase_diagram import exact_optima, logspace, train_restarts

# %%
size = at_scale(scale,
    quick=dict(points=9, restarts=4, fine=41, check=2, grid=(4,9),
               train=dict(steps=1200, batch_size=256, lr=.01, schedule='cosine')),
    cpu=dict(points=41, restarts=16, fine=81, check=8, grid=(9,23), train=dict(steps=10_000)),
    gpu=dict(points=61, restarts=256, fine=121, check=16, grid=(17,45),
             train=dict(steps=10_000)),
)
device = 'cuda' if scale=='gpu' and torch.cuda.is_available() else 'cpu'
size

# %% [markdown]
# ## Non-uniform superposition: perturbing a single feature
#
# Five equal features of density 0.05 form a regular pentagon in two dimensions. What happens when one
# of them becomes a little denser than the others, or a little sparser?
#
# > A denser feature pushes its neighbours away. A sparser one lets them come closer, until
# > at about 2.5 times the others' sparsity the pentagon snaps: two digons take its place,
# > and the sparse feature is represented no more. Both solutions exist on both sides; their
# > losses cross [@elhage2022].
#
# We follow both solutions with a [loss that is exact](../../superposition/30_exact_loss.ipynb), so
# that the crossing has no noise, and then compare with trained models. The factor $\rho$ is the
# density of the varied feature over that of the others.

# %%
p = .05
n = 5
spread = ToyConfig(n, 2, 10, notebook_compat=True).std
def varied(rho, p=p):
    "Return a config for each factor: the first feature varied, the others at p"
    density = np.multiply.outer(np.broadcast_to(p, len(rho)), np.ones(n))
    density[:,0] *= rho
    return ToyConfig(n, 2, len(rho), density=torch.tensor(density), init=spread)

shapes = {'pentagon': polygon(5), 'two digons': torch.cat([torch.zeros(1,2),polygon(4)])}
def branches(rho, p=p):
    "Follow each solution over all factors"
    return {k: exact_optima(varied(rho, p), starts=s[None]) for k,s in shapes.items()}

shown_factors = [.2,.3,.5,1,2.5,6]
rho = np.union1d(logspace(.1, 10, size['fine']), [.4,*shown_factors])
exact = branches(rho)
stored = represented(exact['pentagon'].best()['W']).all(-1)
rho[stored].min()

# %% [markdown]
# This is the smallest factor at which the pentagon is still a solution: below it, minimising from a
# pentagon loses the fifth corner. The losses of the two solutions cross at this factor:

# %%
loss = {k: s.loss[:,0].numpy() for k,s in exact.items()}
loss['pentagon'] = np.where(stored, loss['pentagon'], np.nan)
crossing = curve_crossing(rho[stored], loss['pentagon'][stored], loss['two digons'][stored])
assert .25 < crossing < .29
dict(crossing=round(crossing, 4), times_sparser=round(1/crossing, 2))

# %% [markdown]
# At 2.5 times sparser the pentagon is still the better solution by a clear margin. Its loss is lower
# by this share:

# %%
better = 1 - (loss['pentagon']/loss['two digons'])[rho==.4].item()
assert better > .1
better

# %% [markdown]
# ## Trained models
#
# Every factor is trained from several independent starts, and all runs are used. Settings and initial
# spread are those of the public notebook; only the quick scale uses shorter runs.

# %%
factors = logspace(.1, 10, size['points'])
sweep = train_restarts(varied(factors), size['restarts'], seed, device=device, **size['train'])
def kind(w):
    "Name the solution; two digons leave out the varied feature, at right angles within 6 degrees"
    keep = represented(w)
    if keep.all(): return 'pentagon'
    return 'two digons' if planar_shape(w)=='antipodal pairs' and not keep[0] else 'another'

kinds = np.array([[kind(w) for w in ws] for ws in sweep.params['W']])
best = kinds[np.arange(len(factors)),sweep.order[:,0]]
sweep

# %%
#| label: fig-branches
#| fig-cap: Exact losses of the two solutions (lines) and of all trained models (circles) against the relative density of one feature; the dotted verticals are where the lines cross and where the paper puts the change.
sparser = (rho>.1) & (rho<=1)
x,y = np.broadcast_arrays(factors[:,None], sweep.loss.numpy())
masks = {k: (kinds==k) & (x<=1.01) for k in ('pentagon','two digons')}
points = {f'trained {k}': (x[m], y[m]) for k,m in masks.items() if m.any()}
plot_solution_losses(rho[sparser], {k: v[sparser] for k,v in loss.items()}, points,
    {f'crossing: {1/crossing:.1f}x sparser': crossing, 'paper: 2.5x sparser': 1/2.5})

# %% [markdown]
# In @fig-branches there are circles on both lines on both sides of the crossing. Each solution is a
# minimum also where it is not the lowest, and chance decides which of them a single run reaches. A
# threshold that is read from one run, or from a few, can therefore lie anywhere in that range.

# %%
share = pd.DataFrame({k: (kinds==k).mean(1) for k in ('pentagon','two digons','another')})
lowest = np.fmin(*loss.values())
table = share.assign(factor=factors, best=best,
                     exact=np.where(factors<crossing, 'two digons', 'pentagon'),
                     excess=sweep.loss.amin(1)/lowest[np.isin(rho, factors)]-1)
table.set_index('factor').round(3)

# %% [markdown]
# `excess` is the relative loss of the best trained model above the better of the two exact solutions.
# Digons can stay above it by the cost of a dead output: with no weight on the dropped feature and a
# bias below zero, the gradient that would bring the bias back to the mean is zero. To check whether a
# third solution lies lower than both, the exact loss is minimised from random starts. Its relative
# distance from the lower of the two:

# %%
checked = np.isin(rho, logspace(.1, 10, 9))
free = exact_optima(varied(rho[checked]), size['check'], seed).loss.amin(1).numpy()
excess = free/lowest[checked] - 1
assert (excess > -.001).all()
excess.round(4)

# %% [markdown]
# ## Corners
#
# @fig-corners shows the optimum at growing densities, rotated so that the varied feature points to the
# right.

# %%
#| label: fig-corners
#| fig-cap: Exact optima at six relative densities of the red feature; the dotted circle has radius one.
shown = np.isin(rho, shown_factors)
pentagons,digons = (s.best()['W'][shown] for s in exact.values())
W = torch.where(torch.tensor(rho[shown]<crossing)[:,None,None], digons, pentagons)
plot_neighbours(W, [f'{r:g}x' for r in rho[shown]])


# %% [markdown]
# The angle between the varied feature and its two neighbours grows with its density (@fig-angles).

# %%
def neighbour_angle(W):
    "Return the mean angle, in degrees, between the varied feature and the nearest on either side"
    a = order_by_angle(W)
    t = torch.atan2(a[:,1:,1], a[:,1:,0]).rad2deg()
    return ((t[:,0] - t[:,-1])/2).numpy()


# %%
#| label: fig-angles
#| fig-cap: Mean angle between the varied feature and its two neighbours, along the exact pentagon (line) and in the best trained models that are pentagons (dots).
five = best=='pentagon'
angles = {'exact pentagon': neighbour_angle(exact['pentagon'].best()['W'][stored]),
          'best trained': neighbour_angle(sweep.best()['W'][five])}
plot_curves({'exact pentagon': rho[stored], 'best trained': factors[five]}, angles,
            'density of the varied feature, relative to the others', 'angle to neighbours, degrees',
            logx=True, dots=['best trained'], levels={'regular: 72°': 72})

# %% [markdown]
# The neighbours move away as the feature grows denser, up to a limit. The widest angle occurs at this
# factor and this density of the varied feature:

# %%
widest = rho[stored][angles['exact pentagon'].argmax()]
widest, widest*p

# %% [markdown]
# ## The crossing at other densities
#
# The factor at the crossing depends on how sparse the other four features are. The paper states 0.05.
# @fig-density has the crossing for other values, and the cell below it the density at which it would
# be 2.5.

# %%
#| label: fig-density
#| fig-cap: How many times sparser than the others a feature must be for the two digons to win, against the density of the others; dotted lines are the paper's values.
k,l = size['grid']
others = logspace(.01, .2, k)
ratios = logspace(.12, 1, l)
grid = branches(np.tile(ratios, k), np.repeat(others, l))
whole = represented(grid['pentagon'].best()['W']).all(-1).view(k, l).numpy()
losses = [s.loss[:,0].view(k, l).numpy() for s in grid.values()]
times = [1/curve_crossing(ratios[ok], *(row[ok] for row in rows))
         for ok,*rows in zip(whole, *losses)]
plot_curves(others, {'crossing': times}, 'density of the other four', 'times sparser', logx=True,
            levels={'paper: 2.5': 2.5}, marks={'p = 0.05': .05})

# %%
match = np.exp(np.interp(-np.log(2.5), -np.log(times), np.log(others)))
round(match, 3)

# %% [markdown]
# At that density of the others the crossing would be where the paper reports it. At 0.05 it is not.
# Our two curves are free of noise, of batches and of step sizes, so we report the difference as a
# finding: either the experiment behind the paper's number had other settings than its text, or its
# curves came from runs that had not converged to their branches.
#
# What this does not show: what happens to more than five features, or in more dimensions than can be
# drawn; or which solution training would reach from a start that is not random.
#
# ## Claims
#
# Criteria were fixed before the first run, in `data/claims/superposition_phase.toml`. A first full
# run had 21 factors, all of which agreed, too few for the interval to decide; this one has 41.
# Intervals of the shares treat factors as draws; that of the correlation resamples starts.

# %%
denser = factors>=.999
trained_loss = sweep.loss.numpy().T[:,denser]                                # start, factor
trained_angle = np.stack([neighbour_angle(w) for w in sweep.params['W'][denser]], 1)
trained_angle[kinds.T[:,denser]!='pentagon'] = np.nan
def angle_correlation(rows):
    "Return the rank correlation of the factor and the angle in the best of the given starts"
    pick = rows[:,0].argmin(0), np.arange(denser.sum())
    return spearmanr(factors[denser], rows[:,1][pick], nan_policy='omit').statistic

snap = int((best==table.exact).sum())
record(scale, {
    'superposition/digon-snap': wilson(snap, len(factors)),
    'superposition/digon-crossing': 1/crossing,
    'superposition/denser-repels': cluster_bootstrap(np.stack([trained_loss,trained_angle], 1),
        range(len(trained_loss)), angle_correlation, n=500, seed=seed),
})
