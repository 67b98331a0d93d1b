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
# > "Non-Uniform Superposition": two digons replace the pentagon when one feature is 3.7 times sparser than the others, where the paper reports 2.5, or 2.7 times less important.

# %% tags=["parameters"]
scale = 'quick'  # quick: one set of 16 starts; cpu: three sets, minutes; gpu: many more
seed = 0         # everything random follows from it

# %%
#| hide
import numpy as np, pandas as pd, torch
from scipy.stats import spearmanr
from moral_sc.foundation.statistics import t_interval
from moral_sc.lab.claims import record
from moral_sc.lab.scales import at_scale
from moral_sc.superposition import ToyConfig, planar_shape, represented
from moral_sc.superposition.geometry import polygon
from moral_sc.superposition.geometry_plots import order_by_angle, plot_neighbours
from moral_sc.superposition.plots import curve_crossing, plot_curves, plot_solution_losses
from moral_sc.superposition.phase_diagram import exact_optima, logspace, train_restarts

# %%
size = at_scale(scale,
    quick=dict(every=2, sets=1, fine=41, check=2, grid=(3,9)),
    cpu=dict(every=1, sets=3, fine=81, check=8, grid=(9,23)),
    gpu=dict(every=1, sets=30, fine=121, check=16, grid=(17,45)),
)
device = 'cuda' if scale=='gpu' and torch.cuda.is_available() else 'cpu'
size

# %% [markdown]
# ## Non-uniform superposition: perturbing a single feature
#
# Five equal features of density 0.05 form a regular pentagon in two dimensions. We make one of them
# denser or sparser than the others.
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
def varied(rho, p=p, importance=1., vary='density', **options):
    "Return a config for each factor: the first feature varied, the others at p"
    value = dict(density=np.full((len(rho),5), 1.)*np.reshape(p, (-1,1)),
                 importance=np.ones((len(rho),5))*importance)
    value[vary][:,0] *= rho
    return ToyConfig(5, 2, len(rho), init=ToyConfig(5, 2, 10, notebook_compat=True).std,
                     **options, **{k: torch.tensor(v) for k,v in value.items()})

shapes = {'pentagon': polygon(5), 'two digons': torch.cat([torch.zeros(1,2),polygon(4)])}
def branches(rho, *args, **options):
    "Follow each solution over all factors"
    config = varied(rho, *args, **options)
    return {k: exact_optima(config, starts=s[None]) for k,s in shapes.items()}

def exact_crossing(rho, **options):
    "Return the factor at which the exact losses cross, the branches, and where all are stored"
    found = branches(rho, **options)
    whole = represented(found['pentagon'].best()['W']).all(-1).numpy()
    low = [s.loss[:,0].numpy()[whole] for s in found.values()]
    return curve_crossing(rho[whole], *low), found, whole

rho = np.union1d(logspace(.1, 10, size['fine']), [.2,.3,.4,.5,1,2.5,6])
crossing,exact,stored = exact_crossing(rho)
rho[stored].min()

# %% [markdown]
# This is the smallest factor at which the pentagon is still a solution: below it, minimising from a
# pentagon loses the fifth corner. The losses of the two solutions cross at this factor:

# %%
loss = {k: s.loss[:,0].numpy() for k,s in exact.items()}
loss['pentagon'] = np.where(stored, loss['pentagon'], np.nan)
assert .25 < crossing < .29
dict(crossing=round(crossing, 4), times_sparser=round(1/crossing, 2))

# %% [markdown]
# ## Trained models
#
# Every factor is trained from sets of 16 independent starts, and all runs are used. Settings and
# initial spread are those of the public notebook: AdamW at 0.001, 10,000 steps.

# %%
factors = logspace(.1, 10, 21)[::size['every']]
sweep = train_restarts(varied(factors), 16*size['sets'], seed, device=device)
def kind(w):
    "Name the solution; two digons leave out the varied feature, at right angles within 6 degrees"
    keep = represented(w)
    if keep.all(): return 'pentagon'
    return 'two digons' if planar_shape(w)=='antipodal pairs' and not keep[0] else 'another'

kinds = np.array([[kind(w) for w in ws] for ws in sweep.params['W']])
sweep

# %%
#| label: fig-branches
#| fig-cap: Exact losses of the two solutions (lines) and of all trained models (circles) against the relative density of one feature; the dotted verticals are where the lines cross and where the paper puts the change.
sparser = (rho>.1) & (rho<=1)
x,y = np.broadcast_arrays(factors[:,None], sweep.loss.numpy())
points = {f'trained {k}': (x[m], y[m]) for k in shapes if (m := (kinds==k) & (x<=1.01)).any()}
plot_solution_losses(rho[sparser], {k: v[sparser] for k,v in loss.items()}, points,
    {f'crossing: {1/crossing:.1f}x sparser': crossing, 'paper: 2.5x sparser': 1/2.5})


# %% [markdown]
# In @fig-branches there are circles on both lines on both sides of the crossing. Each solution is a
# minimum also where it is not the lowest, and chance decides which of them a single run reaches. A
# threshold that is read from one run, or from a few, can therefore lie anywhere in that range. The
# lowest losses of trained pentagons and of trained digons cross at this factor, in each set of starts:

# %%
def trained_crossing(kinds, loss, near=(.15,.6)):
    "Return where the lowest losses of trained pentagons and digons cross, [factor, start]"
    low = [np.where(kinds==k, loss, np.inf).min(1) for k in ('pentagon','two digons')]
    use = np.isfinite(low).all(0) & (near[0]<factors) & (factors<near[1])
    return curve_crossing(factors[use], *(l[use] for l in low)) if use.sum()>1 else np.nan

in_sets = [(kinds[:,i:i+16], sweep.loss.numpy()[:,i:i+16])
           for i in range(0, kinds.shape[1], 16)]
trained = 1/np.array([trained_crossing(*s) for s in in_sets])
trained

# %%
rows = np.arange(len(factors))
best = kinds[rows,sweep.order[:,0]]
share = pd.DataFrame({k: (kinds==k).mean(1) for k in ('pentagon','two digons','another')})
lowest = np.fmin(*loss.values())
table = share.assign(factor=factors, best=best,
                     exact=np.where(factors<crossing, 'two digons', 'pentagon'),
                     excess=sweep.loss.amin(1)/lowest[np.isin(rho, factors)]-1)
table.set_index('factor').round(3)

# %% [markdown]
# `excess` is the relative loss of the best trained model above the better of the two exact solutions.
# Trained digons can have a higher loss because of a dead output: with no weight on the dropped feature
# and a bias below zero, the gradient that would bring the bias back to the mean is zero. To check
# whether a third solution lies lower than both, the exact loss is minimised from random starts. Its
# relative distance from the lower of the two:

# %%
checked = np.isin(rho, logspace(.1, 10, 9))
free = exact_optima(varied(rho[checked]), size['check'], seed).loss.amin(1).numpy()
excess = free/lowest[checked] - 1
assert (excess > -.001).all()
excess.round(4)

# %% [markdown]
# At 2.5 times sparser the pentagon is still the better solution by a clear margin. The two digons
# cost more by this share:

# %%
lead = (loss['two digons']/loss['pentagon'])[rho==.4].item() - 1
assert lead > .1
lead

# %% [markdown]
# There the best solution from eight random starts has this shape, and this loss
# relative to the pentagon's:

# %%
at_paper = exact_optima(varied([.4]), 8, seed)
best_at_paper = kind(at_paper.best()['W'][0])
best_at_paper, at_paper.loss.min().item()/loss['pentagon'][rho==.4].item()

# %% [markdown]
# ## Corners
#
# @fig-corners shows the optimum at growing densities, rotated so that the varied feature points to the
# right.

# %%
#| label: fig-corners
#| fig-cap: Exact optima at six relative densities of the red feature; the dotted circle has radius one.
shown = np.isin(rho, [.2,.3,.5,1,2.5,6])
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
#
# ## Settings that change the crossing
#
# The paper states equal importance. The table has the crossing with other settings at density 0.05:
# without biases, and with the importance $0.9^i$ of the introduction's figure, where the varied
# feature is the first or the last.

# %%
decay = .9**np.arange(5)
settings = {'no bias': dict(bias=False), 'varied feature first': dict(importance=decay),
            'varied feature last': dict(importance=decay[[4,0,1,2,3]])}
tried = np.union1d(logspace(.1, .7, 11), logspace(.7, 1, 9))
other = {k: 1/exact_crossing(tried, **v)[0] for k,v in settings.items()}
pd.Series(other, name='times sparser').round(2)

# %% [markdown]
# With $0.9^i$ and the varied feature last, the crossing is close to the paper's number. That the paper
# used this setting is our guess, made after the result was known. With the stated settings the change
# is at 3.7 and not near 2.5: by exact losses followed from both solutions, by the lowest of many random
# starts, and by the trained models.
#
# ## One feature of another importance
#
# > Features that vary in importance or in sparsity deform polytopes smoothly, up to a point at
# > which they snap to another polytope [@elhage2022].
#
# The paper shows sparsity only. Now all five features have density 0.05, and the importance of one is
# varied.

# %%
weight = logspace(.1, 10, 81)
snap_at,by_importance,whole = exact_crossing(weight, vary='importance')
deformed = by_importance['pentagon'].best()['W']
dict(crossing=round(snap_at, 4), times_less_important=round(1/snap_at, 2))

# %%
#| label: fig-importance
#| fig-cap: Angle between the varied feature and its two neighbours along the exact pentagon, where one feature differs in density or in importance; lines end where two digons become better.
line = {'density': (rho[stored], angles['exact pentagon'], crossing),
        'importance': (weight[whole], neighbour_angle(deformed[whole]), snap_at)}
plot_curves({k: x[x>=c] for k,(x,_,c) in line.items()},
            {k: y[x>=c] for k,(x,y,c) in line.items()},
            'density or importance, relative to the others', 'angle to neighbours, degrees',
            logx=True, levels={'regular: 72°': 72},
            marks={f'{1/snap_at:.1f}x less important': snap_at,
                   f'{1/crossing:.1f}x sparser': crossing})


# %% [markdown]
# Importance acts like density (@fig-importance): more of it opens the neighbours' angle, less of it
# closes it, and when the pentagon gives way to two digons every angle jumps. The largest change of an
# angle between neighbouring corners, from one of 81 importances to the next, is, in degrees:

# %%
def corner_angles(W):
    "Return the angles between neighbouring corners, counted from the first feature, degrees"
    a = order_by_angle(W)
    turn = torch.atan2(a[...,1], a[...,0]).rad2deg() % 360
    turn[:,0] = 0
    return turn.diff(dim=1, append=turn[:,:1]+360).numpy()

along = corner_angles(deformed[torch.tensor(whole & (weight>=snap_at))])
step = np.abs(np.diff(along, axis=0)).max()
step

# %% [markdown]
# This page does not show what happens to more than five features or in more dimensions than can be drawn, or which solution training would reach from a start that is not random.
#
# ## Claims
#
# Criteria are in `data/claims/superposition_phase.toml`; rows that were written after their numbers
# were known say so there. The interval of an earlier run treated the densities of the grid as draws,
# and the grid was refined from 21 to 41 densities because that interval could not decide. Now the 21
# registered densities are used, and intervals draw sets of 16 trainings. Three sets leave undecided
# whether the angle grows with the density: beyond about seven times the others' density it no longer
# does, and the interval of the rank correlation includes the criterion's 0.9.

# %%
by_set = sweep.loss.view(len(rows), -1, 16)                                  # factor, set, start
first = by_set.argmin(2).numpy() + 16*np.arange(size['sets'])
best_of_set = kinds[rows[:,None],first]                                      # factor, set
denser = factors>=.999
def angle_correlation(i):
    "Return the rank correlation of factor and angle in the best of the i-th set of starts"
    W = sweep.params['W'][torch.tensor(rows),torch.tensor(first[:,i])]
    use = denser & (best_of_set[:,i]=='pentagon')
    return spearmanr(factors[use], neighbour_angle(W[torch.tensor(use)])).statistic

def over_sets(values):
    "Return the mean over sets of starts with its interval, if there are several"
    return t_interval(values) if len(values)>1 else float(values[0])

snap = [(best_of_set[:,i]==table.exact).mean() for i in range(size['sets'])]
record(scale, {
    'superposition/digon-snap': over_sets(snap),
    'superposition/digon-crossing': 1/crossing,
    'superposition/denser-repels':
        over_sets([angle_correlation(i) for i in range(size['sets'])]),
    'superposition/pentagon-leads-at-2.5': lead if best_at_paper=='pentagon' else -1.,
    'superposition/digon-crossing-trained': over_sets(trained),
    'superposition/digon-crossing-unequal': other['varied feature last'],
    'superposition/importance-snaps': 1/snap_at,
    'superposition/importance-deforms': step,
})
