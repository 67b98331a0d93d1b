# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Geometric transformations: sets of features part, open, then twist
#
# > Phenomenon 2 of learning dynamics: all 100 models end as an octahedron across two sets of features, and in all of them the sets part before they open.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds; cpu: a hundred models and their variations; gpu: a thousand
seed = 0         # everything random follows from it

# %%
#| hide
import numpy as np, torch, pandas as pd
from dataclasses import replace
from moral_sc.foundation.statistics import wilson
from moral_sc.lab.claims import record
from moral_sc.lab.scales import at_scale
from moral_sc.superposition import ToyConfig, train, exact_loss
from moral_sc.superposition.exact_loss import fit_exact
from moral_sc.superposition.plots import plot_curves
from moral_sc.superposition.geometry_plots import animate_learning, plot_shapes_3d

# %%
size = at_scale(scale,
    quick=dict(models=16, others=6, restarts=2, maxiter=300,
               train=dict(steps=6000, batch_size=1024)),
    cpu=dict(models=100, others=40, restarts=6, maxiter=1500,
             train=dict(steps=6000, batch_size=1024)),
    gpu=dict(models=1000, others=400, restarts=12, maxiter=3000,
             train=dict(steps=20_000, batch_size=1024)),
)
device = 'cuda' if scale=='gpu' and torch.cuda.is_available() else 'cpu'
falling_rate = dict(lr=.01, schedule='cosine')
size

# %% [markdown]
# ## Phenomenon 2: learning as geometric transformations
#
# A loss curve does not show what a model is doing. In a case small enough to be drawn, the paper
# looks at the columns of $W$ while they are learned:
#
# > Six features in three dimensions, in two sets of three that are active together. From a point
# > near zero the sets first move apart along one axis, then each opens into a triangle, then the
# > triangles twist against each other into an octahedron, whose antipodes come from different sets.
# > The loss falls in steps that belong to these moves [@elhage2022].
#
# The paper gives no density, rate or start for this figure. We take density 0.1, a start near
# zero (spread 0.02) and a learning rate of 0.01 that falls to zero, train many models, and vary
# each choice below. Snapshots are spaced evenly in the logarithm of the step. The loss is
# [exact](../../superposition/30_exact_loss.ipynb), so the curve has no batch noise.

# %%
sets = [0,0,0,1,1,1]
def set_config(models, density=.1, init=.02):
    return ToyConfig(6, 3, models, density=density, features='correlated', sets=2, init=init)

def losses(W, b, density=.1): return exact_loss(W, b, density, features='correlated', sets=2)

last = size['train']['steps']
steps = sorted({*np.geomspace(10, last, 56).round().astype(int).tolist()})
config = set_config(size['models'])
run = None
snapshots = []
for step in steps:
    run = train(config, seed=seed, device=device, stop=step, resume=run, **falling_rate,
                **size['train'])
    snapshots.append((run.W.cpu(), run.b.cpu()))
run

# %%
W,b = map(torch.stack, zip(*snapshots))                         # time, model, feature, 3
loss = torch.stack([losses(w, bias) for w,bias in snapshots])   # time, model

# %% [markdown]
# @fig-film shows the first model. Press play or move the slider; the shape can be rotated at any
# moment.

# %%
#| label: fig-film
#| fig-cap: Columns of W of one model during training; colour is the set of the feature, and the dot on the exact loss marks the step.
animate_learning(steps, W[:,0], sets, loss[:,0])


# %% [markdown]
# ## The stages in numbers
#
# Three quantities follow the three moves: the distance between the means of the two sets, the
# spread of the sets about their means, and the largest angle, over features, by which a feature's
# best antipode in the other set misses the opposite direction.

# %%
def set_distance(W): return (W[...,:3,:].mean(-2)-W[...,3:,:].mean(-2)).norm(dim=-1)

def set_spread(W):
    halves = W.unflatten(-2, (2,3))
    return (halves-halves.mean(-2, keepdim=True)).square().sum((-1,-2,-3)).sqrt()

def cosines(W):
    directions = torch.nn.functional.normalize(W.double(), dim=-1)
    return directions @ directions.mT

def antipode_error(W):
    "Largest angle by which a feature's best antipode in the other set misses the opposite, degrees"
    across = -cosines(W)[...,:3,3:]
    worst = torch.minimum(across.amax(-1).amin(-1), across.amax(-2).amin(-1))
    return worst.clamp(-1, 1).arccos().rad2deg()


# %%
#| label: fig-stages
#| fig-cap: Distance of the sets, spread within them and error of the worst antipode, each as a share of its largest median; lines are medians over models, bands reach from the 10th to the 90th percentile.
def band(values):
    quantiles = np.quantile(values, [.5,.1,.9], axis=1)/np.median(values, 1).max()
    return [tuple(v) for v in quantiles.T]

plot_curves(steps, {'sets part': band(set_distance(W)), 'sets open': band(set_spread(W)),
                    'antipodes miss': band(antipode_error(W))},
            'step', 'share of its largest', logx=True)


# %% [markdown]
# The order is the paper's: in every model the sets part before they open. The table has quantiles over
# models of three steps: at which the sets are halfway apart, at which they are halfway open, and from
# which on no antipode misses by ten degrees.

# %%
def halfway(values):
    "First step at which the values reach half of their last"
    index = (values >= values[-1]/2).double().argmax(0)
    return torch.tensor(steps)[index]

def settled(values):
    "First step from which on the values stay below 10, NaN where they do not"
    index = len(values) - (values>=10).double().flip(0).argmax(0)
    return [steps[i] if i<len(steps) else np.nan for i in index.tolist()]

stages = pd.DataFrame(dict(part=halfway(set_distance(W)), open=halfway(set_spread(W)),
                           twist=settled(antipode_error(W))))
stages.quantile([.1,.5,.9])


# %% [markdown]
# The loss may have plateaus between the moves. A plateau is a stretch in which the loss falls at less
# than half of the median rate (in the logarithm of the loss against that of the step), with a faster
# stretch before and after.

# %%
def count_plateaus(loss):
    slope = -np.gradient(np.log(loss), np.log(steps))
    slow = slope < .5*np.median(slope[slope>0])
    stretches = ''.join('s' if v else 'f' for v in slow).strip('s').split('f')
    return sum(len(stretch)>=2 for stretch in stretches)

plateaus = [count_plateaus(l) for l in loss.T.numpy()]
pd.Series(plateaus).value_counts().rename_axis('resting places').rename('models').sort_index()


# %% [markdown]
# ## Final shapes
#
# An octahedron across the sets consists of three antipodal pairs, each with one member of either
# set, at right angles to each other.

# %%
def final_shape(W):
    "Name the final shape of one model"
    if (W.norm(dim=-1)<.5).any(): return 'fewer than six'
    C = cosines(W)
    lowest,antipode = C.min(-1)
    if (lowest>-.95).any() or (antipode[antipode]!=torch.arange(6)).any(): return 'other'
    C[torch.arange(6),antipode] = 0
    if (C-torch.diag(C.diagonal())).abs().max()>.2: return 'skew'
    within = (antipode//3==torch.arange(6)//3).any()
    return 'within sets' if within else 'octahedron'

final = run.W.cpu()
shapes = [final_shape(w) for w in final]
pd.Series(shapes).value_counts().rename('models')

# %%
#| label: fig-end
#| fig-cap: Best and worst final model by exact loss, and the model whose antipodes miss by most.
final_loss = losses(final, run.b.cpu())
examples = [int(final_loss.argmin()), int(final_loss.argmax()),
            int(antipode_error(final).argmax())]
plot_shapes_3d(final[examples], [f'{shapes[i]}, loss {final_loss[i]:.5f}' for i in examples],
               [sets]*len(examples))

# %% [markdown]
# There is a reason why the antipodes come from different sets. When a single set is active, three
# features must be reconstructed exactly, which takes three orthonormal columns in either set. They
# disturb the other set by $C x$, where $C$ is a rotation matrix between the two frames and $x\ge0$.
# The ReLU hides the disturbance only if no entry of $C$ is positive, and an orthogonal matrix
# without positive entries is a permutation with minus signs: each feature has its antipode in the
# other set. The octahedron is therefore the only shape whose loss vanishes with $p$ faster than $p$
# itself. With both sets active (probability $p^2$) each antipodal pair loses the smaller of its two
# values, at $1/6$ for each of six outputs: $p^2$ in all.

# %%
axis = torch.tensor([[0,-1,1],[1,0,-1],[-1,1,0.]]).double()/3**.5
rotation = lambda angle: torch.linalg.matrix_exp(angle*axis)
twisted = lambda angle: torch.cat([torch.eye(3).double(), -rotation(angle)])
exact = {p: losses(twisted(0.), torch.zeros(6), p).item() for p in (.2,.1,.05)}
assert all(abs(v/p**2-1)<1e-6 for p,v in exact.items())
exact

# %% [markdown]
# ## Why the twist comes last
#
# Turn one frame against the other by an angle $\theta$ about their common axis. Positive entries of
# $C$ are of order $\theta$, they take effect only where $x_1<\theta x_2$, and their effect is
# squared: the loss grows as $\theta^3$. Near the octahedron it has hardly any slope.

# %%
#| label: fig-twist
#| fig-cap: Exact loss above that of the octahedron when one set is turned by an angle about the common axis, without biases.
angles = np.geomspace(1, 60, 25)
frames = torch.stack([twisted(np.radians(a)) for a in angles])
excess = {p: losses(frames, torch.zeros(len(angles), 6), p) - p**2 for p in (.1,.01)}
plot_curves(angles, {f'p = {p}': v.numpy()/p for p,v in excess.items()}, 'angle (degrees)',
            'excess loss / p', logx=True, logy=True, dashed=('p = 0.01',))

# %%
power = np.polyfit(np.log(angles[:8]), np.log(excess[.01].numpy()[:8]), 1)[0]
assert 2.7 < power < 3.3
power

# %% [markdown]
# ## Other settings
#
# The same with other densities, with the initial spread of a single Xavier model, and with the public
# notebook's constant rate of 0.001. Shares have 95 % intervals; `miss` is the median error of the
# worst antipode over models, in degrees.

# %%
k = size['others']
variants = {'as above': (set_config(k), falling_rate),
            'density 0.02': (set_config(k, .02), falling_rate),
            'density 0.2': (set_config(k, .2), falling_rate),
            'density 0.3': (set_config(k, .3), falling_rate),
            'Xavier start': (set_config(k, init='xavier'), falling_rate),
            'constant rate 0.001': (set_config(k), {})}
rows = {}
for name,(config,options) in variants.items():
    r = train(config, seed=seed+1, device=device, **options, **size['train'])
    names = [final_shape(w) for w in r.W.cpu()]
    rows[name] = dict(octahedron=str(wilson(names.count('octahedron'), k)),
        fewer=names.count('fewer than six'), miss=antipode_error(r.W.cpu()).median().item(),
        loss=losses(r.W.cpu(), r.b.cpu(), config.density).median().item())
pd.DataFrame(rows).T

# %% [markdown]
# A falling rate matters because the last slope is so shallow: at a constant low rate the twist is still
# under way when training stops. At densities 0.2 and 0.3 no octahedron appears. The table compares the
# octahedron with the lowest loss that noise-free fits of the exact loss find from six starts. At 0.3
# the fits find a better shape. At 0.2 they do not: the octahedron has a lower loss (0.0400) than the
# fits (0.0404), so neither they nor training find it.

# %%
dense = [.02,.1,.15,.2,.3]
fit = fit_exact(replace(set_config(len(dense)), density=[[p] for p in dense]), size['restarts'],
                seed=seed, maxiter=size['maxiter'])
best = fit['W'][:,0]
pd.DataFrame(dict(density=dense, octahedron=[p**2 for p in dense], lowest_found=fit['loss'][:,0],
                  miss=antipode_error(best), shape=[final_shape(w) for w in best]))

# %% [markdown]
# ## What this does not show
#
# This page does not show that larger models learn in such moves, or that plateaus of a real network
# have this cause. The order of the stages is that of models which start near zero; a model that starts
# with large weights has no first stage.
#
# ## Claims
#
# Criteria were fixed before the first full run, in `data/claims/superposition_geometry.toml`. The paper
# shows the order of the stages for one model and calls it one of a few trajectories; that nearly all
# models follow it is our claim.

# %%
parted_first = int((stages.part<stages.open).sum())
record(scale, {
    'superposition/octahedron-across-sets': wilson(shapes.count('octahedron'), len(shapes)),
    'superposition/sets-part-before-they-open': wilson(parted_first, len(shapes)),
})
