# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # One sparse feature breaks the pentagon
#
# > Non-uniform superposition of Toy Models of Superposition: five features in a plane, one
# > of them denser or sparser than the rest. The last cell says at which scale, and in how
# > many minutes, the outputs on this page were recorded.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds; cpu: 10,000 steps from 16 starts; gpu: many more
seed = 0         # everything random follows from it

# %%
#| hide
import numpy as np, pandas as pd, torch
from scipy.stats import spearmanr
from time import perf_counter
from moral_sc.foundation.statistics import cluster_bootstrap, wilson
from moral_sc.lab.claims import record
from moral_sc.lab.scales import at_scale
from moral_sc.superposition import ToyConfig, planar_shape, represented
from moral_sc.superposition.geometry import polygon
from moral_sc.superposition.geometry_plots import order_by_angle, plot_neighbours
from moral_sc.superposition.plots import curve_crossing, plot_curves, plot_solution_losses
from moral_sc.superposition.phase_diagram import train_restarts, logspace, exact_optima
began = perf_counter()

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
# Five equal features of density 0.05 form a regular pentagon in two dimensions. What
# happens when one of them becomes a little more common than the others, or a little rarer?
#
# > A denser feature pushes its neighbours away. A sparser one lets them come closer, until
# > at about 2.5 times the others' sparsity the pentagon snaps: two digons take its place,
# > and the sparse feature is represented no more. Both solutions exist on both sides; their
# > losses cross [@elhage2022].
#
# We follow both solutions with a [loss that is exact](../../superposition/30_exact_loss.ipynb),
# so that the crossing has no noise, and then ask what training finds. The factor $\rho$ is
# the density of the varied feature over that of the others.

# %%
p = .05
n = 5
spread = ToyConfig(n, 2, 10, notebook_compat=True).std
def varied(rho, p=p):
    "A config for each factor: the first feature varied, the others at p"
    density = np.multiply.outer(np.broadcast_to(p, len(rho)), np.ones(n))
    density[:,0] *= rho
    return ToyConfig(n, 2, len(rho), density=torch.tensor(density), init=spread)

shapes = {'pentagon': polygon(5), 'two digons': torch.cat([torch.zeros(1,2),polygon(4)])}
def branches(rho, p=p):
    "Each solution followed over all factors"
    return {k: exact_optima(varied(rho, p), starts=s[None]) for k,s in shapes.items()}

rho = np.union1d(logspace(.1, 10, size['fine']), [.2,.3,.4,.5,2.5,6])
exact = branches(rho)
stored = represented(exact['pentagon'].best()['W']).all(-1)
rho[stored].min()

# %% [markdown]
# The last number is the smallest factor at which the pentagon still is a solution at all:
# below it, minimising from a pentagon loses the fifth corner.

# %%
loss = {k: s.loss[:,0].numpy() for k,s in exact.items()}
loss['pentagon'] = np.where(stored, loss['pentagon'], np.nan)
at = curve_crossing(rho[stored], loss['pentagon'][stored], loss['two digons'][stored])
assert .25 < at < .29
dict(crossing=round(at, 4), times_sparser=round(1/at, 2))

# %% [markdown]
# At 2.5 times sparser the pentagon still is the better solution, and not by little:

# %%
better = 1 - (loss['pentagon']/loss['two digons'])[rho==.4].item()
assert better > .1
better

# %% [markdown]
# ## What training finds
#
# Every factor is trained from several independent starts, with the settings and the initial
# spread of the public notebook from scale `cpu` on, and all runs are kept.

# %%
factors = logspace(.1, 10, size['points'])
sweep = train_restarts(varied(factors), size['restarts'], seed, device=device, **size['train'])
def kind(w):
    "Two digons: without the varied feature, at right angles give or take 6 degrees"
    keep = represented(w)
    if keep.all(): return 'pentagon'
    return 'two digons' if planar_shape(w)=='antipodal pairs' and not keep[0] else 'another'

kinds = np.array([[kind(w) for w in ws] for ws in sweep.params['W']])
best = kinds[np.arange(len(factors)),sweep.order[:,0]]
sweep

# %%
#| label: fig-branches
#| fig-cap: Exact losses of the two solutions (lines) and of all trained models (circles) against the relative density of one feature; dotted, where the lines cross and where the paper puts the change
near = (rho>.1) & (rho<=1)
x,y = np.broadcast_arrays(factors[:,None], sweep.loss.numpy())
seen = {f'trained {k}': (x[m], y[m]) for k in ('pentagon','two digons')
        if (m := (kinds==k) & (x<=1.01)).any()}
plot_solution_losses(rho[near], {k: v[near] for k,v in loss.items()}, seen,
              {f'crossing: {1/at:.1f}x sparser': at, 'paper: 2.5x sparser': 1/2.5})

# %% [markdown]
# Circles lie on both lines of @fig-branches, on both sides of the crossing: each solution
# is a minimum where it is not the lowest, and which of them a single run reaches is chance.
# A threshold read off single runs, or off a small number of them, can therefore land
# anywhere in that range.

# %%
share = pd.DataFrame({k: (kinds==k).mean(1) for k in ('pentagon','two digons','another')})
lowest = np.fmin(*loss.values())
table = share.assign(factor=factors, best=best,
                     exact=np.where(factors<at, 'two digons', 'pentagon'),
                     excess=sweep.loss.amin(1)/lowest[np.isin(rho, factors)]-1)
table.set_index('factor').round(3)

# %% [markdown]
# `excess` is how far the best trained model stays above the better of the two exact
# solutions. Digons can stay above by the little that a dead output costs: with no weight on
# the dropped feature and a bias that has slipped below zero, nothing pulls it back to the
# mean. Might a third solution lie lower than both? The exact loss minimised from random
# starts:

# %%
some = np.isin(rho, logspace(.1, 10, 9))
free = exact_optima(varied(rho[some]), size['check'], seed).loss.amin(1).numpy()/lowest[some] - 1
assert (free > -.001).all()
free.round(4)

# %% [markdown]
# ## Corners
#
# The exact pentagon at growing densities, turned so that the varied feature points right.

# %%
#| label: fig-corners
#| fig-cap: Exact optima at six relative densities of the red feature; the dotted circle has radius one
shown = np.isin(rho, [.2,.3,.5,1,2.5,6])
pent,digons = (s.best()['W'][shown] for s in exact.values())
W = torch.where(torch.tensor(rho[shown]<at)[:,None,None], digons, pent)
plot_neighbours(W, [f'{r:g}x' for r in rho[shown]])


# %% [markdown]
# How far are its two neighbours?

# %%
def neighbour(W):
    "Mean angle, in degrees, between the varied feature and the nearest on either side"
    a = order_by_angle(W)
    t = torch.atan2(a[:,1:,1], a[:,1:,0]).rad2deg()
    return ((t[:,0] - t[:,-1])/2).numpy()


# %%
#| label: fig-angles
#| fig-cap: Angle between the varied feature and its neighbours, along the exact pentagon and in the best trained models that are pentagons
five = best=='pentagon'
angles = {'exact pentagon': neighbour(exact['pentagon'].best()['W'][stored]),
          'best trained': neighbour(sweep.best()['W'][five])}
plot_curves({'exact pentagon': rho[stored], 'best trained': factors[five]}, angles,
            'density of the varied feature, relative to the others', 'angle to neighbours, degrees',
            logx=True, dots=['best trained'], levels={'regular: 72°': 72})

# %% [markdown]
# The neighbours give way as the feature grows denser, but not for ever: the widest angle
# comes at this factor, and the feature is then active in a good part of all inputs.

# %%
widest = rho[stored][angles['exact pentagon'].argmax()]
widest, widest*p

# %% [markdown]
# ## Would another density of the others give 2.5?
#
# The factor at the crossing depends on how sparse the other four are. The paper says 0.05.

# %%
#| label: fig-density
#| fig-cap: How many times sparser than the others a feature must be for the two digons to win, against the density of the others
k,l = size['grid']
others = logspace(.01, .2, k)
lean = logspace(.12, 1, l)
many = branches(np.tile(lean, k), np.repeat(others, l))
kept = represented(many['pentagon'].best()['W']).all(-1).view(k, l).numpy()
both = [s.loss[:,0].view(k, l).numpy() for s in many.values()]
times = [1/curve_crossing(lean[ok], *(b[ok] for b in rows)) for ok,*rows in zip(kept, *both)]
plot_curves(others, {'crossing': times}, 'density of the other four', 'times sparser', logx=True,
            levels={'paper: 2.5': 2.5}, marks={'p = 0.05': .05})

# %%
fits = np.exp(np.interp(-np.log(2.5), -np.log(times), np.log(others)))
round(fits, 3)

# %% [markdown]
# At that density of the others the crossing would be where the paper reports it. At 0.05 it
# is not, and since our two curves are free of noise, of batches and of step sizes, we
# report the difference as a finding: either the experiment behind the paper's number had
# other settings than its text, or its curves were those of runs that had not come down to
# their branches.
#
# What this does not show: what happens to more than five features, or in more dimensions
# than can be drawn; and it says nothing about which solution a trainer would reach from a
# start other than a random one.
#
# ## Claims
#
# Criteria were fixed before the first run, in `data/claims/superposition_phase.toml`. A first full
# run had 21 factors, all of which agreed, too few for the interval to decide; this one has 41.
# Intervals of the shares treat factors as draws, the one of the correlation resamples
# starts.

# %%
denser = factors>=.999
trained = sweep.loss.numpy().T[:,denser]                                     # start, factor
wide = np.stack([neighbour(w) for w in sweep.params['W'][denser]], 1)
wide[kinds.T[:,denser]!='pentagon'] = np.nan
def repels(rows):
    pick = rows[:,0].argmin(0), np.arange(denser.sum())
    return spearmanr(factors[denser], rows[:,1][pick], nan_policy='omit').statistic

snap = int((best==table.exact).sum())
record(scale, {
    'superposition/digon-snap': wilson(snap, len(factors)),
    'superposition/digon-crossing': 1/at,
    'superposition/denser-repels': cluster_bootstrap(np.stack([trained,wide], 1),
        range(len(trained)), repels, n=500, seed=seed),
})

# %%
f'{scale}: {(perf_counter()-began)/60:.1f} minutes on {torch.get_num_threads()} thread(s), {device}'
