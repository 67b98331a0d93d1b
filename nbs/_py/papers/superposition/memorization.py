# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Few points are memorised as points, many become features, and the loss peaks between
#
# > Superposition, Memorization and Double Descent, with models of two hidden dimensions and more.
# > The last cell says at which scale, and in how many minutes, the outputs on this page were recorded.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds; cpu: fewer features; gpu: the paper's size
seed = 0         # everything random follows from it

# %%
#| hide
import numpy as np, pandas as pd, torch
import plotly.graph_objects as go
from time import perf_counter
from moral_sc.foundation.statistics import Estimate, cluster_bootstrap
from moral_sc.lab.claims import record
from moral_sc.lab.scales import at_scale
from moral_sc.superposition import ToyConfig, train
from moral_sc.superposition.memorization import successive_angles, memorization_sweep, plot_memory, data_points
from moral_sc.superposition.plots import plot_curves
began = perf_counter(); torch.set_num_threads(1)

# %%
size = at_scale(scale,
    quick=dict(n=100, active=5, starts=3, points=[5,10,20,40,60,100,200,400],
               m=[2,3,5,8], map_points=[5,20,60,200], map_steps=500, varied=[5,60,400],
               five=dict(n=1000, steps=3000, lr=5e-3), train=dict(steps=1500, lr=2e-2)),
    cpu=dict(n=400, active=10, starts=3, points=[5,10,30,60,100,150,200,250,300,500,1000,2000],
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
how = dict(engine='auto', device='cuda') if gpu else dict(engine='sparse')
size

# %% [markdown]
# In the other experiments a model never sees an input twice. What if the data are finite?
#
# > Train the same toy model on $T$ points, ten thousand features with ten active in each point, inputs
# > of length one, every point at every step. With few points the *points* are stored in
# > superposition: their hidden vectors form a regular polygon, while the features are a mess. With
# > many points the features form the polygon. In between neither is regular, and the test loss
# > peaks: double descent [@henighan2023double].
#
# The numbers of that setting are AdamW with decay 0.01, 50 000 updates, a rate that warms up to 0.001
# within 2 500 of them and falls to zero along a cosine. At smaller scales there are fewer features,
# as many active, fewer updates at a higher rate, such that rate times updates, and with it the
# total decay, stays near. Of [the engine](../../superposition/68_memorization.ipynb) only speed depends.
#
# ## Points first, features last

# %%
rows = memorization_sweep(size['points'], size['n'], active=size['active'], starts=size['starts'],
                seed=seed, keep=True, **size['train'], **how)
frame = pd.DataFrame([{k: v for k,v in r.items() if k not in ('W','h')} for r in rows])
frame.groupby('T')[['train','test','points','features']].mean().round(3)

# %% [markdown]
# Columns of $W$ above, hidden vectors of the points below, from memorising to generalising:

# %%
peak = int(frame.groupby('T').test.mean().idxmax())
wanted = list(dict.fromkeys([size['points'][0],size['points'][2],peak,size['points'][-2],
                             size['points'][-1]]))

# %%
#| label: fig-planes
#| fig-cap: Columns of W (above) and hidden vectors of the training points (below, at most 400), lengths relative to the longest
plot_memory([next(r for r in rows if r['T']==T and 'W' in r) for T in wanted])


# %% [markdown]
# In numbers: the share of a dimension that a point has, or a feature, on a weighted average, and what
# fresh inputs cost.

# %%
def spread(column):
    "Mean and range over starts, for each T"
    g = frame.groupby('T')[column]
    return [Estimate(*map(float, v)) for v in zip(g.mean(), g.min(), g.max())]


# %%
#| label: fig-shares
#| fig-cap: Mean share of a dimension, weighted by squared length, of points and of features; bands from the lowest to the highest start
plot_curves(size['points'], {k: spread(k) for k in ('points','features')},
            'training points T', 'share of a dimension', logx=True, levels={'pentagon': .4})

# %%
#| label: fig-loss
#| fig-cap: Loss on the training points and on fresh inputs; bands from the lowest to the highest start
plot_curves(size['points'], {k: spread(k) for k in ('train','test')},
            'training points T', 'loss', logx=True, logy=True)


# %% [markdown]
# An input has squared length one, so a model that always answers nothing has loss one. Where points
# are memorised, fresh inputs cost hardly more than that; where a few features are learned well, hardly
# less: two dimensions are little. Between, models answer fresh inputs with large and wrong numbers.
#
# ## Five points are a pentagon
#
# The claim about angles needs points that hardly share a feature, hence many features. With five
# points that costs little, so scale `cpu` has the paper's ten thousand, its rate and its 50 000
# updates. Six data sets:

# %%
def pentagon(n, steps, lr):
    "Angles between hidden vectors [start, 5], and the loss that remains"
    config = ToyConfig(n, 2, 6, density=10/n, points=5, unit=True)
    run = train(config, steps=steps, lr=lr, schedule='warmup-cosine', seed=seed, **how)
    h = data_points(config, seed)@run.W.cpu()
    return np.stack([successive_angles(v) for v in h]), run.loss[:,-1].numpy()

gaps,left = pentagon(**size['five'])
off = np.abs(gaps-72).max(1)
pd.DataFrame(gaps.round(1)).assign(off=off.round(2), loss=left)

# %% [markdown]
# The same with a fifth of the updates at five times the rate. How far angles are off depends on such
# choices and on the data set. In an earlier recording the shorter run was judged, and passed; the
# paper's setting is the one that counts, so it is judged below.

# %%
five = size['five']
short,_ = pentagon(five['n'], five['steps']//5, five['lr']*5)
both = dict(paper=off, short=np.abs(short-72).max(1))
pd.DataFrame({k: dict(mean=v.mean(), worst=v.max(), within_3=f'{(v<=3).sum()} of {len(v)}')
              for k,v in both.items()}).T

# %% [markdown]
# A loss of zero explains what irregularity remains. As soon as every hidden vector lies on its own
# side of a line that keeps out the other four, the ReLU answers nothing where nothing is wanted, the
# gradient is gone, and nothing pulls the angles to exactly 72°. Points that happen to share a feature
# stay a little nearer to each other than those that do not.
#
# ## Width as well

# %%
faster = size['train']['steps']/size['map_steps']
table = pd.DataFrame([r for m in size['m'] for r in memorization_sweep(
    size['map_points'], size['n'], m, active=size['active'], seed=seed,
    steps=size['map_steps'], lr=size['train']['lr']*faster, **how)])
grid = table.pivot(index='m', columns='T', values='test')
grid.round(3)

# %%
#| label: fig-map
#| fig-cap: Test loss over hidden dimensions and size of the data set, one model each, logarithmic colours
go.Figure(go.Heatmap(z=np.log10(grid.values).round(3), x=[str(T) for T in grid],
    y=[str(m) for m in grid.index], colorscale='Viridis', text=grid.values.round(2), texttemplate='%{text}',
    colorbar=dict(title='log₁₀ loss'))).update_layout(xaxis_title='training points T',
    yaxis_title='hidden dimensions m', xaxis_type='category', yaxis_type='category')

# %%
inside = grid.iloc[1:-1].max() > grid.iloc[[0,-1]].max()
inside.rename('peak strictly inside the range of m').to_frame()

# %% [markdown]
# ## What was our choice
#
# The follow-up reports that small models are sensitive to hyper-parameters. Each is varied alone,
# at a few points, in the middle, and at many.

# %%
one = dict(n_features=size['n'], active=size['active'], seed=seed) | size['train'] | how
lr = size['train']['lr']
variants = {'as above': {}, 'no decay': dict(weight_decay=0.),
            'decay ×10': dict(weight_decay=.1), 'rate ÷3': dict(lr=lr/3), 'rate ×3': dict(lr=lr*3),
            'constant rate': dict(schedule='constant'), 'start 0.01': dict(init=.01)}
varied = {(name,r['T']): {k: r[k] for k in ('test','points','features')}
          for name,change in variants.items()
          for r in memorization_sweep(size['varied'], **one | change)}
varied = pd.DataFrame(varied).T.rename_axis(['variant','T'])
varied.unstack().round(3)

# %% [markdown]
# Which of them keep a peak: test loss in the middle above both ends.

# %%
test = varied.test.unstack()
(test.iloc[:,1] > test.iloc[:,[0,2]].max(1)).rename('peak').to_frame()


# %% [markdown]
# What this does not show: where the peak lies for $n$ = 10 000 at scales below `gpu`, nor its height,
# which the table above moves by more than a factor ten. One model a field of the map is a draw.
#
# ## Claims
#
# Criteria were fixed before the first run, in `data/claims/superposition_memory.toml`.

# %%
def interval(values):
    values = np.asarray(values, float)
    return cluster_bootstrap(values, np.arange(len(values)), seed=seed)

by = {k: frame.pivot(index='start', columns='T', values=k).values
      for k in ('test','points','features')}
first = (by['points']-by['features'])[:,0]
last = (by['features']-by['points'])[:,-1]
between = np.maximum(by['points'], by['features'])[:,1:-1].min(1)
ends = np.minimum(by['points'][:,0], by['features'][:,-1])
peaks = by['test'][:,1:-1].max(1)/by['test'][:,[0,-1]].max(1)
assert (first > 0).all()
record(scale, {
    'superposition/five-points-make-a-pentagon': interval(off),
    'superposition/points-own-dimensions-first': interval(first),
    'superposition/features-own-dimensions-last': interval(last),
    'superposition/neither-owns-dimensions-between': interval(between/ends),
    'superposition/double-descent-over-points': interval(peaks),
    'superposition/double-descent-over-width': float(inside.sum()),
})

# %%
device = 'cuda' if gpu else 'cpu'
f'{scale}: {(perf_counter()-began)/60:.1f} minutes on {torch.get_num_threads()} thread(s), {device}'
