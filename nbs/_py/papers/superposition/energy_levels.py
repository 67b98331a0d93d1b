# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Energy level jumps: several features change level together
#
# > Phenomenon 1 of learning dynamics: a window of training with a jump has a larger fall of the loss than one without a jump in the same phase in 77 % of pairs (95 % interval 72 to 83 %).

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds; cpu: ten models; gpu: the paper's size
seed = 0         # everything random follows from it

# %%
#| hide
import numpy as np, torch, pandas as pd
from collections import Counter
from moral_sc.foundation.statistics import cluster_bootstrap, t_interval, wilson
from moral_sc.lab.claims import Measurement, record
from moral_sc.lab.scales import at_scale
from moral_sc.superposition import ToyConfig, train, feature_dimensionality, represented
from moral_sc.superposition.dimensionality import (LEVELS, jump_falls, level_jumps,
                                                   nearest_level)
from moral_sc.superposition.feature_graphs import overall_shape, recognise
from moral_sc.superposition.fourier_loss import exact_loss_large
from moral_sc.superposition.plots import plot_curves
from moral_sc.superposition.geometry_plots import plot_dimensionality_over_time

# %%
size = at_scale(scale,
    quick=dict(n=60, m=8, models=3, others=1, terms=64, variants=1),
    cpu=dict(n=60, m=8, models=10, others=1, terms=64),
    gpu=dict(n=400, m=30, models=12, others=6, terms=128),
)
device = 'cuda' if scale=='gpu' and torch.cuda.is_available() else 'cpu'
density = .35
size

# %% [markdown]
# ## Phenomenon 1: discrete "energy level" jumps
#
# Dimensionality describes a model during training as well as at its end:
#
# > Follow the dimensionality of every feature of one model through training. It jumps between a few
# > levels, as electrons jump between energy levels, several features at once, and the loss falls
# > where they jump. In the model shown all features end as digons [@elhage2022].
#
# The paper does not give the size of that model. Density 0.35 lies in the middle of
# [the digon's range](uniform_superposition.ipynb). Our models are smaller than those of the paper's
# sweeps. They start near zero (spread 0.05) and are trained with the public notebook's constant
# learning rate of 0.001 for 10,000 steps. Density, start, rate and schedule are varied below. Learning
# ends within 3,000 steps; up to there we take a snapshot every 50 steps. The loss is the
# [population loss](../../superposition/34_fourier_loss.ipynb), not that of a batch.

# %%
early = list(range(50, 3001, 50))
steps = early + list(range(4000, 10_001, 1000))
window = 4                                                # Snapshots: 200 steps, 2 % of a run

def train_with_snapshots(density=density, init=.05, models=size['models'], lr=1e-3,
                         schedule='constant'):
    "W and b [time, model, ...] of models trained side by side"
    config = ToyConfig(size['n'], size['m'], models, density=density, init=init)
    run = None
    snapshots = []
    for step in steps:
        run = train(config, seed=seed, device=device, stop=step, resume=run, lr=lr,
                    schedule=schedule, steps=steps[-1])
        snapshots.append((run.W.cpu(), run.b.cpu()))
    return tuple(map(torch.stack, zip(*snapshots)))

def early_losses(W, b, density=density):
    "Exact losses of the snapshots up to step 3,000, [time, model]"
    return torch.stack([exact_loss_large(w, bias, density, terms=size['terms'])
                        for w,bias in zip(W[:len(early)], b)])

W,b = train_with_snapshots()
loss = early_losses(W, b)
W.shape, loss[[0,-1]].mean(1)


# %% [markdown]
# ## Jumps
#
# A jump is a moment at which at least two features change their dimensionality by more than 0.1 within
# 200 steps. A feature is drawn, and can jump, once its column is longer than a quarter: before that,
# all dimensionalities grow from zero together.

# %%
def stored_dimensionality(W):
    "Dimensionality of the columns longer than a quarter, NaN of the others"
    return torch.where(represented(W, .25), feature_dimensionality(W), torch.nan)

D = stored_dimensionality(W)                              # time, model, feature
jumps = [level_jumps(d, window=window) for d in D[:len(early)].unbind(1)]
def summarise_jumps(jumps):
    times = [steps[t] for t,_ in jumps]
    return dict(jumps=len(jumps), features=len(jumps[0][1]) if jumps else 0,
                first=min(times, default=np.nan), last=max(times, default=np.nan))
table = pd.DataFrame(map(summarise_jumps, jumps))
table

# %%
example = int(table.jumps.argmax())
largest = sorted(t for t,_ in jumps[example][:3])

# %%
#| label: fig-levels
#| fig-cap: Dimensionality of every feature, and the exact loss, in the first 3,000 steps of one run; dashed lines mark the moments at which most features jump.
plot_dimensionality_over_time(early, W[:len(early),example], loss[:,example],
                              levels=('triangle','digon','pentagon'),
                              marks=[steps[t+window//2] for t in largest])


# %% [markdown]
# The next table lists which shapes change at these moments, before and after:

# %%
def changed_shapes(before, after):
    "Shapes in one list that are not in the other"
    a,b = (Counter(f'{s.name} of {len(s.features)}' if s.name=='other' else s.name
                   for s in recognise(w)) for w in (before,after))
    describe = lambda counts: ', '.join(f'{k}× {name}' for name,k in counts.items()) or 'none'
    return describe(a-b), describe(b-a)

loss_drop = (loss[:-window]-loss[window:])[:,example]
pd.DataFrame([[steps[t], *changed_shapes(W[t,example], W[t+window,example]), loss_drop[t].item()]
              for t in largest], columns=['step','before','after','loss saved'])

# %% [markdown]
# ## Fall of the loss at a jump
#
# The loss falls for most of this phase, with or without jumps. So each window of 200 steps with a jump
# is compared with the windows without one *in the same phase of the same run*: from the first stored
# feature to the last window in which some feature changes its dimensionality by more than 0.05. In
# @fig-falls the loss falls fastest in the first 300 steps, without jumps, while biases are learned. It
# falls faster again from step 800 to 1,600, where the jumps gather. Both are smooth: at this size we see
# no sudden drop at a single jump.

# %%
falls = (loss[:-window]-loss[window:]).numpy()
change = (D[window:len(early)]-D[:len(early)-window]).abs()
jumping = ((change>.1).sum(-1)>=2).numpy()
start = np.repeat(np.array(early[:-window])[:,None], falls.shape[1], 1)

# %%
#| label: fig-falls
#| fig-cap: Fall of the exact loss over 200 steps against the first of these steps, for all windows of all models.
plot_curves({'without a jump': start[~jumping], 'with a jump': start[jumping]},
            {'without a jump': falls[~jumping], 'with a jump': falls[jumping]},
            'step', 'fall of the loss', dots=('with a jump','without a jump'))

# %% [markdown]
# `beats_quiet` in the table is the share of pairs of a window with and a window without a jump in which
# the first has the larger fall. Both falls may be large only because of the time at which they occur.
# `beats_shifted` compares the mean fall at the jumps with that of the same pattern of jumps at another
# time of the phase, shifted in a circle; one half would mean that jumps are where they are by chance.
# The means in the table are dominated by the first 300 steps; the shares are not.

# %%
tests = pd.DataFrame([jump_falls(d, l, window=window)
                      for d,l in zip(D[:len(early)].unbind(1), loss.T)])
tests.round(3)


# %% [markdown]
# ## Final levels
#
# @fig-share shows the share of stored features on each level, over all models.

# %%
def share_on_level(D, name):
    "Median, 10th and 90th percentile over models of the share of stored features on a level"
    on_level = (nearest_level(D.nan_to_num(-1))==list(LEVELS).index(name)).double()
    share = torch.where(D.isnan(), torch.nan, on_level).nanmean(-1)
    return [tuple(np.nanquantile(s, [.5,.1,.9])) for s in share.numpy()]

stored = represented(W).any(-1).all(-1).numpy()

# %%
#| label: fig-share
#| fig-cap: Share of stored features within 0.012 of a level; lines are medians over models, bands reach from the 10th to the 90th percentile.
stored_D = torch.where(represented(W), D, torch.nan)[stored]
plot_curves(np.array(steps)[stored].tolist(),
            {name: share_on_level(stored_D, name) for name in ('digon','triangle','pentagon')},
            'step', 'share of stored features', dashed=('pentagon',))

# %%
on_digon = nearest_level(D[-1].nan_to_num(-1))==list(LEVELS).index('digon')
digons = [hits[keep].double() for hits,keep in zip(on_digon, represented(W[-1]))]
pd.Series([overall_shape(w) for w in W[-1]]).value_counts().rename('models')


# %% [markdown]
# ## Other settings
#
# We vary what the paper leaves open: other densities within the digon's range, the Xavier start, and
# a faster and falling rate. The table has the share of models with a jump, the mean of `beats_quiet`,
# and the share of stored features that end as digons.

# %%
def final_digon_share(W):
    "Share of stored features of the last snapshot on the digon's level"
    digon = nearest_level(feature_dimensionality(W[-1]))==list(LEVELS).index('digon')
    return digon[represented(W[-1])].double().mean().item()

def summary(W, b, density=density):
    D = stored_dimensionality(W[:len(early)])
    found = pd.DataFrame([jump_falls(d, l, window=window)
                          for d,l in zip(D.unbind(1), early_losses(W, b, density).T)])
    beats = found.beats_quiet.mean() if 'beats_quiet' in found else np.nan
    return dict(jumping=str(wilson(int((found.jumps>0).sum()), len(found))), beats_quiet=beats,
                on_digon=final_digon_share(W))

variants = {'density 0.45': dict(density=.45), 'density 0.3': dict(density=.3),
            'Xavier start': dict(init='xavier'),
            'rate 0.005, falling': dict(lr=5e-3, schedule='cosine')}
rows = {name: summary(*train_with_snapshots(**dict(models=size['others']) | options),
                      options.get('density', density))
        for name,options in list(variants.items())[:size.get('variants')]}
pd.DataFrame({'as above': summary(W, b)} | rows).T

# %% [markdown]
# ## What this does not show
#
# This page does not show that every drop of the loss is a jump, or that jumps are instantaneous. They
# take about a hundred steps and occur while dimensions are still being assigned; for the rest of
# training the features stay at the level of the digon. The models have 60 features in 8 dimensions,
# fewer than those of the paper's sweeps.
#
# ## Claims
#
# Criteria in `data/claims/superposition_geometry.toml` were fixed before the first full run. The older
# row compared the largest jump with the median window of the whole run. Most of the run lies after the
# learning, so nearly any early window meets that criterion. It is closed, and two rows that compare
# windows of the same phase were written on 30 November 2026, before their run.

# %%
assert (D.nan_to_num(0).sum(-1) <= size['m']+1e-3).all()
def over_models(column):
    "Return the mean over models with jumps and its interval"
    values = tests[column].dropna() if column in tests else []
    if len(values)>1: return t_interval(values)
    return Measurement(.5, 0, 1, unmet=f'{len(values)} of {len(tests)} models have jumps')

record(scale, {
    'superposition/jumps-beat-quiet-windows': over_models('beats_quiet'),
    'superposition/jumps-beat-shifted-windows': over_models('beats_shifted'),
    'superposition/few-final-levels': cluster_bootstrap(torch.cat(digons).numpy(),
        np.repeat(range(len(digons)), list(map(len, digons))), seed=seed),
})
