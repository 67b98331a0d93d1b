# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Uniform polytopes: tetrahedra appear when a high learning rate falls
#
# > "Uniform Superposition": by exact losses tetrahedra gain about 1 % where they are best, and a square pyramid with D = 3/5 has a lower loss than the paper's bipyramid at densities 0.65 to 0.74.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds; cpu: a minute or two; gpu: many more models
seed = 0         # everything random follows from it

# %%
#| hide
import numpy as np, torch, pandas as pd
from collections import Counter
from moral_sc.foundation.statistics import wilson
from moral_sc.lab.claims import record
from moral_sc.lab.scales import at_scale
from moral_sc.superposition import (ToyConfig, train, feature_dimensionality, fit_exact,
                                    represented)
from moral_sc.superposition.dimensionality import dimensionality_sweep
from moral_sc.superposition.geometry import (antiprism, compounds, polygon, polytopes, simplex,
                                             tegum)
from moral_sc.superposition.feature_graphs import overall_shape
from moral_sc.superposition.fourier_loss import population_loss
from moral_sc.superposition.plots import plot_curves
from moral_sc.superposition.geometry_plots import plot_shapes_3d, plot_shapes_by_density
from moral_sc.superposition.polytope_gain import polytope_gain

# %%
size = at_scale(scale,
    quick=dict(five=[.68,.4], restarts=3, maxiter=150, models=4, steps=1000, batch=256,
               rates=[1e-3,3e-2], wider=[3]),
    cpu=dict(five=[.85,.8,.77,.74,.71,.68,.65,.62,.59,.56,.53,.5,.4,.3,.2], restarts=8,
             maxiter=600, models=16, steps=20_000, batch=1024, rates=[1e-3,3e-3,1e-2,3e-2],
             wider=[3,6,9]),
    gpu=dict(five=np.linspace(.9, .1, 41).round(3).tolist(), restarts=24, maxiter=2000, models=200,
             steps=50_000, batch=4096, rates=[1e-3,3e-3,1e-2,3e-2], wider=[3,6,9,15,30]),
)
device = 'cuda' if scale=='gpu' and torch.cuda.is_available() else 'cpu'
size

# %% [markdown]
# ## Uniform superposition: why dimensionalities are fractions
#
# > Features that share a subspace arrange themselves as the corners of a uniform polytope, and the
# > observed levels are those of digons, triangles, tetrahedra, pentagons and square antiprisms. Larger
# > arrangements are tegum products: their parts lie in orthogonal subspaces. A triangular bipyramid
# > thus has three features at 2/3 and two at 1/2, and not five at 3/5 [@elhage2022].
#
# $N$ unit vectors that form a tight frame in $d$ dimensions have $D=d/N$ each
# ([geometry](../../superposition/50_geometry.ipynb)). @fig-solids shows six arrangements, and the
# table below it has their dimensionalities with the number of features.

# %%
pyramid = torch.cat([torch.tensor([[0,0,1.]]),
                     torch.cat([(5/6)**.5*polygon(4), torch.full((4,1), -6**-.5)], 1)]).double()
solids = {'tetrahedron': simplex(3), 'octahedron': tegum(*[polygon(2)]*3),
          'square antiprism': antiprism(),
          'triangular bipyramid': tegum(polygon(3), polygon(2)),
          'pentagonal bipyramid': tegum(polygon(5), polygon(2)), 'square pyramid': pyramid}

# %%
#| label: fig-solids
#| fig-cap: Six arrangements of features in three dimensions, with a line from the origin to each feature; drag to rotate.
plot_shapes_3d(list(solids.values()), list(solids))

# %%
stated = dict(digon=1/2, triangle=2/3, tetrahedron=3/4, pentagon=2/5, antiprism=3/8)
corners = {**{k: polytopes[k] for k in stated}, **solids}
expected = stated | {'octahedron': 1/2, 'square antiprism': 3/8,
    'triangular bipyramid': [2/3]*3+[1/2]*2, 'pentagonal bipyramid': [2/5]*5+[1/2]*2}
deviation = {k: (feature_dimensionality(corners[k])-torch.as_tensor(v)).abs().max().item()
             for k,v in expected.items()}
def count_values(W):
    "List the dimensionalities, each with the number of features that have it"
    D = Counter(feature_dimensionality(W).numpy().round(4))
    return ', '.join(f'{v:.4g} ({c})' for v,c in D.items())
pd.DataFrame({k: dict(corners=len(W), dimensions=W.shape[1], D=count_values(W))
              for k,W in corners.items()}).T

# %% [markdown]
# The paper also describes them by what they are orthogonal to. For a triangle the rows of $W$ are
# orthogonal to $(1,1,1)$; for a square, which is two digons, to $(1,0,1,0)$ and $(0,1,0,1)$.

# %%
triangle = polygon(3)
square = polygon(4)
null = torch.tensor([[1.,0,1,0],[0,1,0,1]]).double()
assert (triangle.T@torch.ones(3).double()).abs().max()<1e-12
assert (square.T@null.T).abs().max()<1e-12
compounds

# %% [markdown]
# ## Five features in three dimensions
#
# The paper's argument concerns the tetrahedron and the bipyramid, so five equal features compete for
# three dimensions here, with [exact losses](../../superposition/30_exact_loss.ipynb): no samples, no
# steps. Each shape below is only a start for the fit, which is free to leave it. Random starts check
# whether there is something better than all of them.

# %%
dropped = torch.cat([simplex(3), torch.zeros(1,3)])
pairs = torch.block_diag(polygon(2), polygon(2), torch.ones(1,1))
rivals = {'tetrahedron, one dropped': dropped, 'two digons, one alone': pairs,
          'triangular bipyramid': solids['triangular bipyramid'], 'square pyramid': pyramid}
family = ToyConfig(5, 3, len(size['five']), density=[[p] for p in size['five']])
fits = {k: fit_exact(family, starts=W[None]) for k,W in rivals.items()}
free = fit_exact(family, restarts=size['restarts'], seed=seed, maxiter=size['maxiter'])
ends = pd.DataFrame({k: f['loss'][:,0] for k,f in fits.items()}, index=size['five'])

# %%
#| label: fig-five
#| fig-cap: Exact loss of five features in three dimensions above the lowest found, in per cent; each curve starts from one shape, and values below 0.01 % are drawn at 0.01 %.
lowest = ends.min(axis=1)
excess = (100*ends.div(lowest, axis=0)-100).clip(lower=.01)
plot_curves(size['five'], {k: excess[k].tolist() for k in excess}, 'density p',
            'excess loss (%)', logy=True)


# %% [markdown]
# Four shapes are best in turn in @fig-five. In a window of densities below three quarters the lowest
# loss is that of a *square pyramid*, a tight frame of five with $D=3/5$ each: the value that, according
# to the paper, its bipyramid avoids. At lower densities the bipyramid is best, and then two digons and
# a feature with a dimension of its own. The table also has the lowest loss from random starts:

# %%
def stored_dimensionality(W): return feature_dimensionality(W)[represented(W)].sort().values

def name_shape(W):
    D = stored_dimensionality(W)
    if len(D)==4: return 'tetrahedron, one dropped'
    if D[-1]>.9: return 'two digons, one alone'
    return 'triangular bipyramid' if (D[2:]-2/3).abs().max()<.012 else 'square pyramid'

lowest_fit = [fits[k]['W'][i,0] for i,k in enumerate(ends.idxmin(axis=1))]
winner = pd.Series(map(name_shape, lowest_fit), index=size['five'])
listed = [', '.join(f'{v:.2f}' for v in stored_dimensionality(W)) for W in lowest_fit]
pd.DataFrame(dict(winner=winner, D=listed, loss=lowest,
                  random_starts=free['loss'][:,0].numpy())).round(5)

# %% [markdown]
# @fig-by-density shows the models. Move the slider, also with the arrow keys, to see the arrangement
# change from one density to the next, and the shares of its features with it.

# %%
#| label: fig-by-density
#| fig-cap: Left, the arrangement of lowest exact loss at the density of the slider; colour is the share of a dimension. Right, these shares at all densities (grey), and at that one (green).
plot_shapes_by_density(size['five'], torch.stack(lowest_fit), winner.tolist())

# %%
assert (free['loss'][:,0].numpy() > .9999*lowest.to_numpy()).all()
middle = [p for p in size['five'] if .65<=p<=.72]
assert all(winner[p]=='square pyramid' for p in middle)

# %% [markdown]
# ## Densities at which tetrahedra are best
#
# @fig-simplices repeats [the comparison of gains](uniform_superposition.ipynb) near density 1: the
# gain of each simplex over a dimension for one feature.

# %%
#| label: fig-simplices
#| fig-cap: Exact gain of simplices for each dimension, over one feature for each dimension, in per cent.
p = np.linspace(.97, .65, 17)
simplices = {k: polytopes[k] for k in ('digon','triangle','tetrahedron','simplex4')}
gain = 100*(polytope_gain(p, simplices)-1)
plot_curves(p, {k: gain[k].tolist() for k in simplices}, 'density p', 'gain (%)', logy=True)

# %%
first,second = np.sort(gain.to_numpy(), axis=1)[:,[-1,-2]].T
pd.DataFrame(dict(best=gain.idxmax(axis=1), gain=first, lead=first-second)).iloc[::2].round(3)

# %% [markdown]
# Tetrahedra are the best shape at densities 0.81 to 0.89, where their gain is 0.9 to 1.7 %, and lead
# the next shape by less than a tenth of that. This explains why [the
# sweep](uniform_superposition.ipynb) has no features on the line 3/4: at these densities superposition
# reduces the loss by about 1 %. Tetrahedra exist as optima: the next cell has the share of noise-free
# fits of six features in three dimensions that end with four columns at 3/4, and their losses:

# %%
six = fit_exact(ToyConfig(6, 3, density=.85), size['restarts'], seed=seed,
                maxiter=2*size['maxiter'])
longest = lambda W: W[W.norm(dim=-1).topk(4).indices]
distance = [(feature_dimensionality(longest(W))-.75).abs().max().item() for W in six['W'][0]]
reached = wilson(sum(d<=.012 for d in distance), len(distance))
reached, six['loss'][0].numpy().round(6), np.round(distance, 3)


# %% [markdown]
# ## A training schedule that finds tetrahedra
#
# We train models of few dimensions for many steps, with a high rate that falls to zero. Its noise first
# moves the features out of arrangements that are nearly as good, and then fades. The table has twelve
# features in three dimensions, counted by the
# [name](../../superposition/52_feature_graphs.ipynb) of the shape of all stored features.

# %%
def shapes(rate, p, n=12, schedule='cosine'):
    "Return the final shapes of independent models, and their exact losses"
    config = ToyConfig(n, 3, size['models'], density=p)
    run = train(config, size['steps'], size['batch'], seed, lr=rate, schedule=schedule,
                device=device)
    W = run.W.cpu()
    b = run.b.cpu()
    return [overall_shape(w, tolerance=.03) for w in W],population_loss(config, W, b, terms=128)

densities = (.85,.8,.75)
runs = {(rate,p): shapes(rate, p) for rate in size['rates'] for p in densities}
tetrahedra = pd.Series({k: str(wilson(names.count('tetrahedron'), len(names)))
                        for k,(names,_) in runs.items()})
tetrahedra.unstack().rename_axis(index='rate falling from', columns='density')

# %% [markdown]
# Shapes are named with a tolerance of 0.03 in $D$ here, because the other features keep short columns
# that are not orthogonal to the tetrahedron. The median loss is less than 0.2 % above the lowest at
# each rate and density:

# %%
low = pd.DataFrame({k: dict(best=l.min().item(), median=l.median().item())
                    for k,(_,l) in runs.items()}).T
for q in densities:
    rows = low.index.get_level_values(1)==q
    floor = low.loc[rows,'best'].min()
    low.loc[rows,'excess of the median (%)'] = 100*(low.loc[rows,'median']/floor-1)
low.rename_axis(['rate','density']).round(5)

# %% [markdown]
# The higher the initial rate, the more models end as tetrahedra. For comparison, the number of
# tetrahedra with the notebook's constant rate of 0.001 at the same densities:

# %%
plain = {q: Counter(shapes(1e-3, q, schedule='constant')[0])['tetrahedron'] for q in densities}
plain, size['models']

# %% [markdown]
# More dimensions: the table has the share of stored features within 0.03 of 3/4, with four features
# for each dimension at density 0.8, trained from the highest rate.

# %%
rows = {}
for m in size['wider']:
    s = dimensionality_sweep(4*m, m, [.8], 6, seed=seed, device=device, steps=size['steps'],
                             batch_size=size['batch'], lr=.03, schedule='cosine')
    near = ((s.D-.75).abs()<.03) & s.stored
    rows[m] = dict(stored=s.stored.sum(-1).double().mean().item(),
                   on_line=(near.sum()/s.stored.sum().clamp(min=1)).item())
pd.DataFrame(rows).T.rename_axis('dimensions').round(3)

# %% [markdown]
# @fig-found shows the best of the twelve-feature models at each density.

# %%
#| label: fig-found
#| fig-cap: The trained model with the lowest exact loss at each density; of twelve features those longer than one half are shown.
best = {}
for q in densities:
    rate = min(size['rates'], key=lambda r: runs[r,q][1].min())
    config = ToyConfig(12, 3, size['models'], density=q)
    i = int(runs[rate,q][1].argmin())
    W = train(config, size['steps'], size['batch'], seed, lr=rate, schedule='cosine',
              instances=[i]).W[0]
    best[f'p = {q}: {overall_shape(W, tolerance=.03)}'] = W.cpu()
plot_shapes_3d(list(best.values()), list(best))

# %% [markdown]
# This page has models of 3 to 9 dimensions; at [30 dimensions](uniform_superposition.ipynb) no
# tetrahedra appear. It does not show that the paper's own tetrahedra come from such a training, whose
# settings are not known, or the optimum of large models at these densities, where simplices of four and
# more dimensions compete as well.
#
# ## Claims
#
# Criteria were fixed before the first full run, in `data/claims/superposition_geometry.toml`. The
# paper's cluster at 3/4 is judged on [the sweep](uniform_superposition.ipynb), with the training used
# there.

# %%
record(scale, {'superposition/polytope-dimensionalities': max(deviation.values()),
               'superposition/tetrahedron-is-optimal': distance[0]})
