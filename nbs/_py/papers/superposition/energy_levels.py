# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Features jump between levels together
#
# > Energy level jumps, Toy Models of Superposition, in a dozen models and with the exact loss. The
# > last cell says at which scale, and in how many minutes, the outputs on this page were recorded.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds; cpu: a dozen models; gpu: the paper's size
seed = 0         # everything random follows from it

# %%
#| hide
import numpy as np, torch, pandas as pd
from collections import Counter
from time import perf_counter
from moral_sc.foundation.statistics import cluster_bootstrap, wilson
from moral_sc.lab.claims import record
from moral_sc.lab.scales import at_scale
from moral_sc.superposition import ToyConfig, train, feature_dimensionality, represented
from moral_sc.superposition.dimensionality import level_jumps, nearest_level, LEVELS
from moral_sc.superposition.feature_graphs import overall_shape, recognise
from moral_sc.superposition.fourier_loss import exact_loss_large
from moral_sc.superposition.plots import plot_curves
from moral_sc.superposition.geometry_plots import plot_dimensionality_over_time
began = perf_counter()

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
# Dimensionality does more than describe the end of training:
#
# > Follow the dimensionality of every feature of one model through training. It jumps between a few
# > levels, as electrons jump between energy levels, several features at once; and where they jump,
# > the loss falls. In the model shown all features end as digons [@elhage2022].
#
# The paper does not give the size of that model. Density 0.35 lies in the middle of
# [the digon's range](uniform_superposition.ipynb). Here are smaller models than in the paper's
# sweeps, started near zero (spread 0.05), with the public notebook's constant rate of 0.001 (0.004 and
# fewer steps at scale `quick`); below, density, start, rate and schedule are varied. A hundred snapshots, two per cent of a
# run for two successive ones. The loss is [the population's](../../superposition/34_fourier_loss.ipynb), not
# a batch's.

# %%
def follow(density=density, init=.05, models=size['models'], lr=size['lr'], schedule='constant'):
    "W and b [time, model, ...] of models trained side by side"
    config = ToyConfig(size['n'], size['m'], models, density=density, init=init)
    run = None
    frames = []
    for s in steps:
        run = train(config, seed=seed, device=device, stop=s, resume=run, lr=lr,
                    schedule=schedule, **size['train'])
        frames.append((run.W.cpu(), run.b.cpu()))
    return tuple(map(torch.stack, zip(*frames)))

steps = np.linspace(0, size['train']['steps'], 101).round().astype(int)[1:].tolist()
W,b = follow()
def losses(W, b, p): return torch.stack([exact_loss_large(w, v, p, terms=size['terms'])
                                         for w,v in zip(W, b)])
loss = losses(W, b, density)                              # time, model
W.shape, loss[[0,-1]].mean(1)


# %% [markdown]
# ## Jumps
#
# A jump is a moment at which at least two features change their share of a dimension by more than
# 0.1 within two snapshots. A feature enters the picture, and may jump, once its column is longer
# than a quarter: before that, all shares grow from nothing at once.

# %%
def shares(W): return torch.where(represented(W, .25), feature_dimensionality(W), torch.nan)

D = shares(W)                                             # time, model, feature
found = [level_jumps(d) for d in D.unbind(1)]
def about(jumps):
    when = [steps[t] for t,_ in jumps]
    return dict(jumps=len(jumps), features=len(jumps[0][1]) if jumps else 0,
                first=min(when, default=np.nan), last=max(when, default=np.nan))
each = pd.DataFrame(map(about, found))
each

# %%
show = int(each.jumps.argmax())
largest = sorted(t for t,_ in found[show][:3])

# %%
#| label: fig-levels
#| fig-cap: The first two fifths of one run, share of a dimension of every feature and exact loss; dashed lines mark the moments at which most features jump
early = steps[:40]
plot_dimensionality_over_time(early, W[:40,show], loss[:40,show], levels=('triangle','digon','pentagon'),
            marks=[steps[t+1] for t in largest if t<40])


# %% [markdown]
# What happens at these moments? The shapes that change, before and after:

# %%
def changed(before, after):
    "Shapes in one list that are not in the other"
    a,b = (Counter(f'{s.name} of {len(s.features)}' if s.name=='other' else s.name
                   for s in recognise(w)) for w in (before,after))
    say = lambda c: ', '.join(f'{k}× {v}' for v,k in c.items()) or 'none'
    return say(a-b), say(b-a)

saved = (loss[:-2]-loss[2:])[:,show]
pd.DataFrame([[steps[t], *changed(W[t,show], W[t+2,show]), saved[t].item()] for t in largest],
             columns=['step','before','after','loss saved'])


# %% [markdown]
# ## Does the loss fall there?
#
# Once a feature is stored, the fall of the exact loss over the two snapshots of each model's largest
# jump is set against the median fall over two snapshots of the same run. A value above one says
# that jumps are where loss is gained.

# %%
def gain_at_jump(D, loss):
    "Fall of the loss at the largest jump, and its ratio to the median fall; nan without a jump"
    begun = int((~D.isnan()).any(-1).double().argmax())
    at = [t for t,_ in level_jumps(D)][:1]
    falls = loss[:-2]-loss[2:]
    return (falls[at[0]].item(), falls[begun:].median().item()) if at else (np.nan,np.nan)

gains = pd.DataFrame([gain_at_jump(d, l) for d,l in zip(D.unbind(1), loss.T)],
                     columns=['at the jump','median'])
gains.round(5)


# %% [markdown]
# ## Where everything ends
#
# The share of stored features on each level, over all models.

# %%
def on_level(D, name):
    "Share of stored features on a level, and of models' means an interval"
    hit = (nearest_level(D.nan_to_num(-1))==list(LEVELS).index(name)).double()
    hit = torch.where(D.isnan(), torch.nan, hit).nanmean(-1)
    return [tuple(np.nanquantile(h, [.5,.1,.9])) for h in hit.numpy()]

stored = represented(W).any(-1).all(-1).numpy()

# %%
#| label: fig-share
#| fig-cap: Share of stored features within 0.012 of a level, median over models, band from the 10th to the 90th percentile
at = np.array(steps)[stored].tolist()
Dstored = torch.where(represented(W), D, torch.nan)
plot_curves(at, {k: on_level(Dstored[stored], k) for k in ('digon','triangle','pentagon')}, 'step',
            'share of stored features')

# %%
end = nearest_level(D[-1].nan_to_num(-1))==list(LEVELS).index('digon')
digons = [e[r].double() for e,r in zip(end, represented(W[-1]))]
pd.Series([overall_shape(w) for w in W[-1]]).value_counts().rename('models')


# %% [markdown]
# ## What was our choice
#
# Other densities within the digon's range, the Xavier start, a faster and falling rate: how many
# models have a jump, how many jumps, and where features end.

# %%
def final_digons(W):
    D = feature_dimensionality(W[-1])
    kept = represented(W[-1])
    return (nearest_level(D)==list(LEVELS).index('digon'))[kept].double().mean().item()

def summary(W):
    many = [len(level_jumps(d)) for d in shares(W).unbind(1)]
    return dict(jumping=str(wilson(sum(k>0 for k in many), len(many))), jumps=np.mean(many),
                on_digon=final_digons(W))

variants = {'density 0.45': dict(density=.45), 'density 0.3': dict(density=.3),
            'Xavier start': dict(init='xavier'),
            'rate 0.005, falling': dict(lr=5e-3, schedule='cosine')}
rows = {name: summary(follow(**dict(models=size['others']) | how)[0])
        for name,how in variants.items()}
pd.DataFrame({'as above': summary(W)} | rows).T

# %% [markdown]
# What this does not show: that every drop of the loss is a jump, or that jumps are instants. They
# take a hundred steps or so and come in the first fifth of training, while dimensions are still
# being given away; what follows is a long rest on the digon's level.
#
# ## Claims
#
# Criteria were fixed before the first full run, in `data/claims/superposition_geometry.toml`.

# %%
assert (D.nan_to_num(0).sum(-1) <= size['m']+1e-3).all()
hits = (gains['at the jump'] > gains['median']).tolist()
record(scale, {
    'superposition/energy-level-jumps': wilson(sum(hits), len(hits)),
    'superposition/few-final-levels': cluster_bootstrap(torch.cat(digons).numpy(),
        np.repeat(range(len(digons)), list(map(len, digons))), seed=seed),
})

# %%
f'{scale}: {(perf_counter()-began)/60:.1f} minutes on {torch.get_num_threads()} thread(s), {device}'
