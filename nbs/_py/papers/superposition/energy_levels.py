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
# > Phenomenon 1 of learning dynamics: in all 12 models two or more features jump at once, and the exact loss falls faster there than in the median window.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds; cpu: a dozen models; gpu: the paper's size
seed = 0         # everything random follows from it

# %%
#| hide
import numpy as np, torch, pandas as pd
from collections import Counter
from moral_sc.foundation.statistics import cluster_bootstrap, wilson
from moral_sc.lab.claims import record
from moral_sc.lab.scales import at_scale
from moral_sc.superposition import ToyConfig, train, feature_dimensionality, represented
from moral_sc.superposition.dimensionality import level_jumps, nearest_level, LEVELS
from moral_sc.superposition.feature_graphs import overall_shape, recognise
from moral_sc.superposition.fourier_loss import exact_loss_large
from moral_sc.superposition.plots import plot_curves
from moral_sc.superposition.geometry_plots import plot_dimensionality_over_time

# %%
size = at_scale(scale,
    quick=dict(n=40, m=6, models=2, others=2, terms=64, lr=4e-3,
               train=dict(steps=2500, batch_size=512)),
    cpu=dict(n=60, m=8, models=12, others=6, terms=64, lr=1e-3, train=dict(steps=10_000)),
    gpu=dict(n=400, m=30, models=12, others=6, terms=128, lr=1e-3, train=dict(steps=20_000)),
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
# learning rate of 0.001 (0.004 and fewer steps at scale `quick`). Density, start, rate and schedule
# are varied below. We take a hundred snapshots, so two successive ones are two per cent of a run.
# The loss is the [population loss](../../superposition/34_fourier_loss.ipynb), not that of a batch.

# %%
steps = np.linspace(0, size['train']['steps'], 101).round().astype(int)[1:].tolist()

def train_with_snapshots(density=density, init=.05, models=size['models'], lr=size['lr'],
                         schedule='constant'):
    "W and b [time, model, ...] of models trained side by side"
    config = ToyConfig(size['n'], size['m'], models, density=density, init=init)
    run = None
    snapshots = []
    for step in steps:
        run = train(config, seed=seed, device=device, stop=step, resume=run, lr=lr,
                    schedule=schedule, **size['train'])
        snapshots.append((run.W.cpu(), run.b.cpu()))
    return tuple(map(torch.stack, zip(*snapshots)))

W,b = train_with_snapshots()
loss = torch.stack([exact_loss_large(w, bias, density, terms=size['terms'])
                    for w,bias in zip(W, b)])             # time, model
W.shape, loss[[0,-1]].mean(1)


# %% [markdown]
# ## Jumps
#
# A jump is a moment at which at least two features change their dimensionality by more than 0.1
# within two snapshots. A feature is drawn, and can jump, once its column is longer than a quarter:
# before that, all dimensionalities grow from nothing at once.

# %%
def stored_dimensionality(W):
    "Dimensionality of the columns longer than a quarter, NaN of the others"
    return torch.where(represented(W, .25), feature_dimensionality(W), torch.nan)

D = stored_dimensionality(W)                              # time, model, feature
jumps = [level_jumps(d) for d in D.unbind(1)]
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
#| fig-cap: Dimensionality of every feature, and the exact loss, in the first two fifths of one run; dashed lines mark the moments at which most features jump.
early = steps[:2*len(steps)//5]
plot_dimensionality_over_time(early, W[:len(early),example], loss[:len(early),example],
                              levels=('triangle','digon','pentagon'),
                              marks=[steps[t+1] for t in largest if t<len(early)])


# %% [markdown]
# The next table lists which shapes change at these moments, before and after:

# %%
def changed_shapes(before, after):
    "Shapes in one list that are not in the other"
    a,b = (Counter(f'{s.name} of {len(s.features)}' if s.name=='other' else s.name
                   for s in recognise(w)) for w in (before,after))
    describe = lambda counts: ', '.join(f'{k}× {name}' for name,k in counts.items()) or 'none'
    return describe(a-b), describe(b-a)

loss_drop = (loss[:-2]-loss[2:])[:,example]
pd.DataFrame([[steps[t], *changed_shapes(W[t,example], W[t+2,example]), loss_drop[t].item()]
              for t in largest], columns=['step','before','after','loss saved'])


# %% [markdown]
# ## Fall of the loss at a jump
#
# For each model we compare the fall of the exact loss over the two snapshots of its largest jump
# with the median fall over two snapshots of the same run, counted from the moment at which a first
# feature is stored. The loss is gained at jumps if the first number exceeds the second.

# %%
def gain_at_jump(D, loss):
    "Fall of the loss at the largest jump, and the median fall; NaN without a jump"
    start = int((~D.isnan()).any(-1).double().argmax())
    times = [t for t,_ in level_jumps(D)][:1]
    falls = loss[:-2]-loss[2:]
    return (falls[times[0]].item(), falls[start:].median().item()) if times else (np.nan,np.nan)

gains = pd.DataFrame([gain_at_jump(d, l) for d,l in zip(D.unbind(1), loss.T)],
                     columns=['at the jump','median'])
gains.round(5)


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
# a faster and falling rate. The table has the share of models with a jump, the number of jumps in a
# model, and the share of stored features that end as digons.

# %%
def final_digon_share(W):
    "Share of stored features of the last snapshot on the digon's level"
    digon = nearest_level(feature_dimensionality(W[-1]))==list(LEVELS).index('digon')
    return digon[represented(W[-1])].double().mean().item()

def summary(W):
    counts = [len(level_jumps(d)) for d in stored_dimensionality(W).unbind(1)]
    return dict(jumping=str(wilson(sum(k>0 for k in counts), len(counts))), jumps=np.mean(counts),
                on_digon=final_digon_share(W))

variants = {'density 0.45': dict(density=.45), 'density 0.3': dict(density=.3),
            'Xavier start': dict(init='xavier'),
            'rate 0.005, falling': dict(lr=5e-3, schedule='cosine')}
rows = {name: summary(train_with_snapshots(**dict(models=size['others']) | options)[0])
        for name,options in variants.items()}
pd.DataFrame({'as above': summary(W)} | rows).T

# %% [markdown]
# ## What this does not show
#
# It does not show that every drop of the loss is a jump, or that jumps are instantaneous. They take
# a hundred steps or so and come in the first fifth of training, while dimensions are still being
# assigned; for the rest of training the features stay on the digon's level.
#
# ## Claims
#
# Criteria were fixed before the first full run, in `data/claims/superposition_geometry.toml`.

# %%
assert (D.nan_to_num(0).sum(-1) <= size['m']+1e-3).all()
faster = (gains['at the jump'] > gains['median']).tolist()
record(scale, {
    'superposition/energy-level-jumps': wilson(sum(faster), len(faster)),
    'superposition/few-final-levels': cluster_bootstrap(torch.cat(digons).numpy(),
        np.repeat(range(len(digons)), list(map(len, digons))), seed=seed),
})
