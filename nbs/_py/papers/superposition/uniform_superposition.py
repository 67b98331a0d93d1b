# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Uniform superposition: equal features settle on the levels of polytopes
#
# > "Uniform Superposition" and "Feature Dimensionality": D* rests at 1/2, no tetrahedra appear, and the predicted level wins at 57 % of densities.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds; cpu: 200 features in 20 dimensions; gpu: the paper's 400 in 30
seed = 0         # everything random follows from it

# %%
#| hide
import numpy as np, torch, pandas as pd
from moral_sc.lab.claims import record
from moral_sc.lab.scales import at_scale
from moral_sc.superposition import feature_dimensionality
from moral_sc.superposition.dimensionality import LEVELS, dimensionality_sweep, nearest_level
from moral_sc.superposition.geometry import leverage, polytopes
from moral_sc.superposition.feature_graphs import recognise
from moral_sc.superposition.plots import plot_curves
from moral_sc.superposition.geometry_plots import plot_feature_graphs, plot_dimensionality
from moral_sc.superposition.polytope_gain import polytope_gain

# %%
fine = [1,.9,.8,.73,.68,.63,.58,.53,.48,.42,.36,.3,.25,.22,.2,.18,.15,.12,.08,.05]
falling = dict(lr=.01, schedule='cosine')
size = at_scale(scale,
    quick=dict(n=48, m=8, density=[1,.85,.7,.6,.45,.35,.2,.15,.1], restarts=1, pressure=(48,),
               few=48, train=dict(steps=1200, batch_size=128) | falling,
               vary=dict(steps=500, batch_size=128)),
    cpu=dict(n=200, m=20, density=fine, restarts=1, pressure=(10,20,40,80,160), few=80,
             train=dict(steps=10_000), vary=dict(steps=5000, batch_size=512)),
    gpu=dict(n=400, m=30, density=fine, restarts=5, pressure=(10,20,40,80,160,320), few=80,
             train=dict(steps=10_000), vary=dict(steps=20_000)),
)
device = 'cuda' if scale=='gpu' and torch.cuda.is_available() else 'cpu'
{k: v for k,v in size.items() if k!='density'}

# %% [markdown]
# ## Uniform superposition and feature dimensionality
#
# All features are equally important and equally sparse here, and there are far more of them than
# dimensions:
#
# > Dimensions per feature, $D^*=m/\|W\|_F^2$, do not shrink smoothly as features grow sparser. They
# > stick at 1 and at 1/2. The picture of single features is sharper: dimensionalities gather on the
# > lines 3/4, 2/3, 1/2, 2/5 and 3/8, and the features on one line form copies of one polytope
# > [@elhage2022].
#
# The paper trains 400 features in 30 dimensions and does not state the settings. The public notebook
# has 200 in 20, AdamW at a constant 0.001, and 10,000 steps of 1024 samples. The outputs on this page
# use the notebook's numbers; the quick scale is only a sketch, and the paper's size is not yet run.
# [One call](../../superposition/54_dimensionality.ipynb) trains the sweep.

# %%
sweep = dimensionality_sweep(size['n'], size['m'], size['density'], size['restarts'], seed=seed,
                             device=device, **size['train'])
table = sweep.table()
table[['d_star','stored','total']].round(3)

# %%
#| label: fig-shares
#| fig-cap: Share of a dimension of every stored feature (dots), and D* (curve), against sparsity; dotted lines are the levels of polytopes.
plot_dimensionality(sweep)

# %% [markdown]
# In @fig-shares hardly a feature leaves the line 1/2 between densities of about 0.5 and 0.28, and
# $D^*$ stays there. On either side several levels occur at one density. Towards density 1 hardly a
# column is longer than one half: such a model may be rotated at next to no cost.
#
# Is this specific to our program? The table compares with an independent implementation in C with the
# notebook's settings, 200 features in 20 dimensions, one seed; our values are interpolated.

# %%
reference = {1: 1.004, 1.37: .946, 1.88: .585, 2.58: .511, 3.53: .495, 4.84: .390,
             10.6: .207, 20: .136}
ours = np.interp(np.log(list(reference)), -np.log(sweep.density), table.d_star)
pd.DataFrame({'1/p': list(reference), 'here': ours, 'elsewhere': list(reference.values())}).round(3)

# %% [markdown]
# ## Features on each level

# %%
#| label: fig-levels
#| fig-cap: Share of stored features within 0.012 of each level, against sparsity.
names = ['tetrahedron','triangle','digon','pentagon','antiprism']
on_level = table[names].div(table.stored.clip(lower=1), axis=0)
plot_curves(1/table.index.to_numpy(), {k: on_level[k].tolist() for k in names}, 'sparsity 1/p',
            'share of stored features', logx=True, legend=True)

# %% [markdown]
# Triangles are few in @fig-levels and never the only shape, and no feature lies on the line 3/4, that
# of tetrahedra. [Another page](polytopes.ipynb) finds tetrahedra with another training schedule.
#
# ## The sum of dimensionalities
#
# > Dimensionalities add up to about the number of dimensions [@elhage2022].
#
# They cannot add up to more. With $M=\sum_j W_jW_j^\top$,
# $$D_i = \frac{\|W_i\|^4}{W_i^\top M W_i} \le W_i^\top M^+ W_i = \ell_i,$$
# by Cauchy-Schwarz on $\|W_i\|^2 = (M^{1/2}W_i)\cdot(M^{+1/2}W_i)$. The right side is the leverage
# of the feature, and leverages add up to the rank of $W$, so $\sum_i D_i\le m$. Equality needs every
# $W_i$ to be an eigenvector of $M$: the features of each eigenvalue form a tight frame of
# their own subspace. The sum therefore measures how much a model resembles a set of polytopes, and
# trained models come within a few hundredths of the bound.

# %%
W = sweep.W.double()
assert (feature_dimensionality(W) <= leverage(W)+1e-9).all()
assert (sweep.total <= size['m']+1e-4).all()
gap = size['m']-sweep.total
random = torch.randn(W.shape, dtype=W.dtype, generator=torch.Generator().manual_seed(seed))
pd.Series({'mean gap, trained': gap.mean().item(), 'largest gap, trained': gap.max().item(),
           'mean gap, random W': (size['m']-feature_dimensionality(random).sum(-1)).mean().item()})

# %% [markdown]
# ## Feature graphs
#
# We join two features by an edge if $|W_i\cdot W_j|>0.1$. The models of @fig-graphs then separate
# into polytopes.

# %%
#| label: fig-graphs
#| fig-cap: Feature graphs at four densities; a component is a group of features that share dimensions, and colour is the share of a dimension.
show = [min(size['density'], key=lambda q: abs(q-p)) for p in (.65,.35,.22,.18)]
plot_feature_graphs([sweep.W[size['density'].index(p),0] for p in show],
                    [f'p = {p}' for p in show])

# %%
shapes = {p: recognise(w) for p,w in zip(size['density'], sweep.W[:,0])}
counted = pd.DataFrame({p: pd.Series([s.name for s in components], dtype=object).value_counts()
                        for p,components in shapes.items() if p<=.8})
counted.T.fillna(0).astype(int)


# %% [markdown]
# `other` counts groups without a name: distorted polytopes, and large components in which most
# features are connected. Some of these are regular all the same. The table has the groups whose
# dimensionalities have a standard deviation below 0.012, and the number of dimensions that they fill:

# %%
def describe_unnamed(p, shape):
    "Return size, dimensions and dimensionality of a group without a name"
    D = feature_dimensionality(sweep.W[size['density'].index(p),0])[shape.features]
    return dict(density=p, features=len(D), dimensions=shape.share, D=D.mean().item(),
                spread=D.std().item())

unnamed = [describe_unnamed(p, s) for p,components in shapes.items() for s in components
           if s.name=='other' and len(s.features)>3]
pd.DataFrame([r for r in unnamed if r['spread']<.012]).round(3)

# %% [markdown]
# ## A prediction of the levels
#
# The paper leaves open why these levels occur, and why at these densities. With many features the
# question is which shape saves most loss for each dimension. A shape of $N$ corners in $d$ dimensions
# whose features cost $\ell(p)$ each saves $\frac Nd\,(v(p)-\ell(p))$ for a dimension, where $v(p)$ is
# what an ignored feature costs. Length and bias have their best values, computed
# [exactly](../../superposition/33_polytope_gain.ipynb). Nothing is fitted to training:

# %%
candidates = {k: polytopes[k] for k in LEVELS}
gain = polytope_gain([p for p in size['density'] if p<1], candidates)

# %%
#| label: fig-staircase
#| fig-cap: Exact gain of each shape for a dimension, as a share of the highest gain at that density.
relative_gain = gain.div(gain.max(axis=1), axis=0)
plot_curves(1/gain.index.to_numpy(),
            {k: relative_gain[k].tolist() for k in ('dedicated',*names,'hexagon')},
            'sparsity 1/p', 'gain / highest gain', logx=True, legend=True)

# %% [markdown]
# @fig-staircase shows that several shapes come close to the highest gain at most densities. The table
# has, beside the shape of highest gain, the level on which most stored features lie after training
# (`seen`), the share of features on it, and its gain as a share of the highest (`offer`).

# %%
predicted = gain.idxmax(axis=1)
level = table.loc[gain.index, list(LEVELS)]
observed = level.idxmax(axis=1).where(level.max(axis=1)>0, '-')
offer = [relative_gain[k][p] if k!='-' else np.nan for p,k in observed.items()]
stored = table.stored.loc[gain.index]
comparison = pd.DataFrame(dict(predicted=predicted, seen=observed, offer=offer, stored=stored,
                               share=level.max(axis=1)/stored.clip(lower=1)))
comparison.round(3)

# %%
judged = comparison[(comparison.index>=.15) & (comparison.index<=.75)]
agree = (judged.predicted==judged.seen).mean()
agree, judged.offer.min()


# %% [markdown]
# The digon's long plateau is where its gain leads by a wide margin, and it ends where the margin
# closes. There the prediction of the most frequent level fails: gains lie within a few per cent of
# each other, training mixes shapes or finds ones without a name, and shapes in four and more
# dimensions were not among the candidates. The criterion below, fixed beforehand, requires agreement
# at three quarters of the densities.
#
# ## Settings that we chose
#
# The first is the number of features to choose from. Henighan and Olah remark in a comment to the
# paper that clean polytopes need pressure (many more features than dimensions) and long training. The
# table has eight dimensions at density 0.2 and four models each; *sharp* is the share of stored
# features on any level.

# %%
def sharp(s):
    "Return the share of stored features that lie on a level"
    near = (nearest_level(s.D)>=0) & s.stored
    return (near.sum()/s.stored.sum()).item()

rows = {}
for n in size['pressure']:
    s = dimensionality_sweep(n, 8, [.2], 4, seed=seed, device=device, **size['vary'] | falling)
    rows[n] = dict(sharp=sharp(s), stored=s.stored.sum(-1).double().mean().item(),
                   total=s.total.mean().item())
pd.DataFrame(rows).T.rename_axis('features').round(3)

# %% [markdown]
# The number stored is the same once there are enough features to choose from. We see no steady rise
# of sharpness at this size. The second is the learning rate and its schedule, for the same number of
# steps:

# %%
schedules = {'constant 0.001': {}, 'constant 0.01': dict(lr=.01), 'falling from 0.01': falling}
rows = {}
for name,schedule in schedules.items():
    s = dimensionality_sweep(size['few'], 8, [.65,.4,.2], 2, seed=seed, device=device,
                             **size['vary'] | schedule)
    near = ((nearest_level(s.D)>=0) & s.stored).sum((1,2))/s.stored.sum((1,2)).clamp(min=1)
    rows[name] = {f'sharp at {p}': v for p,v in zip(s.density, near.tolist())}
pd.DataFrame(rows).T.round(3)

# %% [markdown]
# What this does not show: that the levels survive features of unequal importance or sparsity, for
# which [another page](nonuniform_sparsity.ipynb) has small examples; or that the shapes at low
# density are optimal.
#
# ## Claims
#
# Criteria were fixed before the first full run, in `data/claims/superposition_geometry.toml`. A pilot
# with a third of the steps and a falling rate agreed with the prediction more often (73 % of
# densities) than the public notebook's settings, which are used here because they are the paper's.
# Intervals run from the smallest to the largest value over the densities (and restarts) that the
# criterion names.

# %%
x = 1/np.array(size['density'])
value_range = lambda v: (float(np.mean(v)), float(np.min(v)), float(np.max(v)))
within = lambda low, high: (x>=low) & (x<=high)
def highest_share(name, low, high):
    "Return the largest share of stored features on a level over densities from low to high"
    return float(on_level.loc[[p for p in on_level.index if low<=p<=high], name].max())

whole = [abs(s.share-round(s.share))<=.1 for p,components in shapes.items()
         if 2.1<=1/p<=3.4 for s in components]
star = sweep.d_star.numpy()
digon = on_level.digon.to_numpy()
record(scale, {
    'superposition/dense-needs-a-dimension-each': value_range(star[x==1]),
    'superposition/plateau-at-one-half': value_range(star[within(2.5, 3.5)]),
    'superposition/digons-fill-the-plateau': value_range(digon[within(2.1, 3.4)]),
    'superposition/tetrahedra-appear': highest_share('tetrahedron', .7, .97),
    'superposition/triangles-appear': highest_share('triangle', .55, .85),
    'superposition/pentagons-appear': highest_share('pentagon', .15, .25),
    'superposition/antiprisms-appear': highest_share('antiprism', .12, .25),
    'superposition/dimensions-add-up': gap.max().item(),
    'superposition/components-span-whole-dimensions': float(np.mean(whole)),
    'superposition/predicted-staircase': float(agree),
})
