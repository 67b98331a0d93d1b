# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Memorization: few points are stored as points, many as features
#
# > Superposition, Memorization, and Double Descent: with 400 features, test loss at an intermediate number of points peaks at 18.6 times that at the ends; whether five points with 10,000 features form a pentagon is undecided.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds; cpu: fewer features; gpu: the paper's size
seed = 0         # everything random follows from it

# %%
#| hide
import numpy as np, pandas as pd, torch
import plotly.graph_objects as go
from moral_sc.foundation.statistics import Estimate, cluster_bootstrap
from moral_sc.lab.claims import record
from moral_sc.lab.scales import at_scale
from moral_sc.superposition import ToyConfig, train
from moral_sc.superposition.memorization import (data_points, memorization_sweep, plot_memory,
                                                 successive_angles)
from moral_sc.superposition.plots import plot_curves
torch.set_num_threads(1)

# %%
size = at_scale(scale,
    quick=dict(n=400, active=10, starts=2, points=[5,100,200,300,2000],
               m=[2,3,5], map_points=[20,200], map_steps=300, varied=[5,100,200],
               five=dict(n=1000, steps=3000, lr=5e-3), train=dict(steps=4000, lr=1e-2)),
    cpu=dict(n=400, active=10, starts=3,
             points=[5,10,30,60,100,150,200,250,300,500,1000,2000],
             m=[2,3,4,6,10,16], map_points=[10,30,100,200,400,1000], map_steps=2000,
             varied=[5,150,1000],
             five=dict(n=10_000, steps=50_000, lr=1e-3), train=dict(steps=4000, lr=1e-2)),
    gpu=dict(n=10_000, active=10, starts=3, m=[2,3,4,6,10,20,40],
             points=[5,10,30,100,300,1000,2000,3000,5000,7000,10_000,20_000,50_000],
             map_points=[10,100,1000,3000,5000,10_000,50_000], map_steps=50_000,
             varied=[5,5000,20_000], five=dict(n=10_000, steps=50_000, lr=1e-3),
             train=dict(steps=50_000, lr=1e-3)),
)
gpu = scale=='gpu' and torch.cuda.is_available()
engine = dict(engine='auto', device='cuda') if gpu else dict(engine='sparse')
size

# %% [markdown]
# ## Superposition, memorization, and double descent
#
# In the other experiments a model never sees an input twice. Here the data are finite.
#
# > Train the same toy model on $T$ points, ten thousand features with ten active in each point, inputs
# > of length one, every point at every step. With few points the *points* are stored in
# > superposition: their hidden vectors form a regular polygon, while the features are a mess. With
# > many points the features form the polygon. In between neither is regular, and the test loss
# > peaks: double descent [@henighan2023double].
#
# The paper uses AdamW with decay 0.01, 50 000 updates, and a rate that warms up to 0.001 within 2 500
# of them and falls to zero along a cosine. The recorded scale `cpu` has 400 features, ten of them
# active, and fewer updates at a higher rate, so that rate times updates, and with it the total decay,
# stays similar. The paper's size has not yet been run on a GPU. The choice of
# [engine](../../superposition/68_memorization.ipynb) affects only the speed.
#
# ## From points to features

# %%
rows = memorization_sweep(size['points'], size['n'], active=size['active'], starts=size['starts'],
                          seed=seed, keep=True, **size['train'], **engine)
frame = pd.DataFrame([{k: v for k,v in r.items() if k not in ('W','h')} for r in rows])
frame.groupby('T')[['train','test','points','features']].mean().round(3)

# %% [markdown]
# @fig-planes shows columns of $W$ above and hidden vectors of the points below, from memorisation to
# generalisation.

# %%
peak = int(frame.groupby('T').test.mean().idxmax())
shown = list(dict.fromkeys([size['points'][0],size['points'][2],peak,size['points'][-2],
                            size['points'][-1]]))

# %%
#| label: fig-planes
#| fig-cap: Columns of W (above) and hidden vectors of the training points (below, at most 400), with lengths relative to the longest.
plot_memory([next(r for r in rows if r['T']==T and 'W' in r) for T in shown])


# %% [markdown]
# The next two figures show the weighted mean dimensionality of points and of features, and the loss
# on training points and on fresh inputs.

# %%
def spread(column):
    "Mean and range over starts, for each T"
    g = frame.groupby('T')[column]
    return [Estimate(*map(float, v)) for v in zip(g.mean(), g.min(), g.max())]


# %%
#| label: fig-shares
#| fig-cap: Mean share of a dimension, weighted by squared length, of points and of features; lines are means over starts, bars reach from the lowest to the highest start.
plot_curves(size['points'], {k: spread(k) for k in ('points','features')},
            'training points T', 'share of a dimension', logx=True, levels={'pentagon': .4})

# %%
#| label: fig-loss
#| fig-cap: Loss on the training points and on fresh inputs; lines are means over starts, bars reach from the lowest to the highest start.
plot_curves(size['points'], {k: spread(k) for k in ('train','test')},
            'training points T', 'loss', logx=True, logy=True)


# %% [markdown]
# An input has squared length one, so a model whose output is always zero has loss one. With 5 or 10
# points, which are memorised, the loss on fresh inputs is at most 1 % higher. With 300 points or more,
# a few features are learned well, and the loss is 1 to 3 % lower, because there are only two
# dimensions. In between, the outputs for fresh inputs are large and wrong.
#
# ## Five points and the pentagon
#
# The claim about angles needs points that hardly share a feature, and hence many features. With five
# points this is cheap, so scale `cpu` has the paper's ten thousand features, its rate and its 50 000
# updates. We train on six data sets:

# %%
def train_pentagons(n, steps, lr):
    "Angles between hidden vectors [start, 5], and the final loss"
    config = ToyConfig(n, 2, 6, density=10/n, points=5, unit=True)
    run = train(config, steps=steps, lr=lr, schedule='warmup-cosine', seed=seed, **engine)
    h = data_points(config, seed)@run.W.cpu()
    return np.stack([successive_angles(v) for v in h]), run.loss[:,-1].numpy()

angles,final_loss = train_pentagons(**size['five'])
deviation = np.abs(angles-72).max(1)
pd.DataFrame(angles.round(1)).assign(off=deviation.round(2), loss=final_loss)

# %% [markdown]
# The table below compares this with a fifth of the updates at five times the rate. The deviation of
# the angles depends on such choices and on the data set. An earlier recording judged the shorter run,
# which passed; the claim is now judged in the paper's setting.

# %%
five = size['five']
short_angles,_ = train_pentagons(five['n'], five['steps']//5, five['lr']*5)
deviations = dict(paper=deviation, short=np.abs(short_angles-72).max(1))
pd.DataFrame({k: dict(mean=v.mean(), worst=v.max(), within_3=f'{(v<=3).sum()} of {len(v)}')
              for k,v in deviations.items()}).T

# %% [markdown]
# The loss is nearly zero, which explains the remaining irregularity. As soon as every hidden vector is
# separated by a line from the other four, the ReLU returns zero for the other points. The gradient then
# vanishes, and nothing drives the angles to exactly 72°. Points that happen to share a feature stay a
# little nearer to each other than those that do not.
#
# ## Double descent over width

# %%
faster = size['train']['steps']/size['map_steps']
table = pd.DataFrame([r for m in size['m'] for r in memorization_sweep(
    size['map_points'], size['n'], m, active=size['active'], seed=seed,
    steps=size['map_steps'], lr=size['train']['lr']*faster, **engine)])
grid = table.pivot(index='m', columns='T', values='test')
grid.round(3)

# %%
#| label: fig-map
#| fig-cap: Test loss over hidden dimensions and size of the data set, one model each, in logarithmic colours.
go.Figure(go.Heatmap(z=np.log10(grid.values).round(3), x=[str(T) for T in grid],
    y=[str(m) for m in grid.index], colorscale='Viridis', text=grid.values.round(2),
    texttemplate='%{text}', colorbar=dict(title='log₁₀ loss'))).update_layout(
    xaxis_title='training points T', yaxis_title='hidden dimensions m',
    xaxis_type='category', yaxis_type='category')

# %%
inside = grid.iloc[1:-1].max() > grid.iloc[[0,-1]].max()
inside.rename('peak strictly inside the range of m').to_frame()

# %% [markdown]
# ## Other settings
#
# The paper reports that small models are sensitive to hyper-parameters. Each is varied alone,
# at few points, in the middle, and at many.

# %%
base = dict(n_features=size['n'], active=size['active'], seed=seed) | size['train'] | engine
lr = size['train']['lr']
variants = {'as above': {}, 'no decay': dict(weight_decay=0.),
            'decay ×10': dict(weight_decay=.1), 'rate ÷3': dict(lr=lr/3), 'rate ×3': dict(lr=lr*3),
            'constant rate': dict(schedule='constant'), 'start 0.01': dict(init=.01)}
varied = {(name,r['T']): {k: r[k] for k in ('test','points','features')}
          for name,change in variants.items()
          for r in memorization_sweep(size['varied'], **base | change)}
varied = pd.DataFrame(varied).T.rename_axis(['variant','T'])
varied.unstack().round(3)

# %% [markdown]
# A variant has a peak if its test loss in the middle lies above both ends:

# %%
test = varied.test.unstack()
(test.iloc[:,1] > test.iloc[:,[0,2]].max(1)).rename('peak').to_frame()


# %% [markdown]
# ## What this does not show
#
# This page does not show where the peak lies for $n$ = 10 000, because only scale `gpu`, which has not
# yet been run, has that many features in the sweep. The height of the peak depends on the settings and
# varies between 1.8 and 81 in the table above. Each field of the map is a single model and therefore a
# random draw.
#
# ## Claims
#
# Criteria were fixed before the first run, in `data/claims/superposition_memory.toml`.

# %%
def interval(values):
    values = np.asarray(values, float)
    return cluster_bootstrap(values, np.arange(len(values)), seed=seed)

by_start = {k: frame.pivot(index='start', columns='T', values=k).values
            for k in ('test','points','features')}
points_lead = (by_start['points']-by_start['features'])[:,0]
features_lead = (by_start['features']-by_start['points'])[:,-1]
between = np.maximum(by_start['points'], by_start['features'])[:,1:-1].min(1)
ends = np.minimum(by_start['points'][:,0], by_start['features'][:,-1])
peaks = by_start['test'][:,1:-1].max(1)/by_start['test'][:,[0,-1]].max(1)
assert (points_lead > 0).all()
record(scale, {
    'superposition/five-points-make-a-pentagon': interval(deviation),
    'superposition/points-own-dimensions-first': interval(points_lead),
    'superposition/features-own-dimensions-last': interval(features_lead),
    'superposition/neither-owns-dimensions-between': interval(between/ends),
    'superposition/double-descent-over-points': interval(peaks),
    'superposition/double-descent-over-width': float(inside.sum()),
})
