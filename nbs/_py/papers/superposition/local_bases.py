# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Local almost-orthogonal bases: less interference within sets
#
# > "Local Almost-Orthogonal Bases": in the best of five models the mean absolute cosine within correlated sets is 0.054 or less at three densities, averaged over groups; that of random directions is 0.25.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds; cpu: thirty runs of each kind; gpu: four hundred
seed = 0         # everything random follows from it

# %%
#| hide
import numpy as np, torch, pandas as pd
from torch.nn.functional import normalize
from moral_sc.foundation.statistics import cluster_bootstrap, t_interval, wilson
from moral_sc.lab.claims import Measurement, record
from moral_sc.lab.scales import at_scale
from moral_sc.superposition import ToyConfig, represented, train
from moral_sc.superposition.plots import plot_curves, plot_models
from moral_sc.superposition.phase_diagram import held_out_loss

# %%
size = at_scale(scale,
    quick=dict(models=10, others=1, variants=4),
    cpu=dict(models=30, others=3),
    gpu=dict(models=400, others=100),
)
device = 'cuda' if scale=='gpu' and torch.cuda.is_available() else 'cpu'
training = dict(steps=6000, batch_size=1024, lr=.01, schedule='cosine')
size


# %% [markdown]
# ## Local almost-orthogonal bases
#
# [Two correlated features](correlated_features.ipynb) take directions at a right angle. This page has
# two sets of ten.
#
# > A larger model with two sets of correlated features is in superposition as a whole, but
# > each set, looked at alone, is nearly orthogonal: a local basis. With anticorrelated sets
# > it is the other way round. Sometimes a correlated set collapses, a failure of the
# > optimiser [@elhage2022].
#
# If this held for real networks, superposition could be ignored when one kind of data is analysed at a
# time. The paper's figure has two sets of ten features in ten dimensions. The density, the start and
# the learning rate are not stated. We take a density of 0.1, start from the Xavier spread of one model
# (0.26), and vary all of that below.

# %%
def family(models, kind='correlated', members=10, sets=2, m=10, density=.1, init='xavier'):
    return ToyConfig(members*sets, m, models, density=density, features=kind, sets=sets,
                     init=init)

def fit(config, **kw):
    "Return the trained weights and the held-out losses"
    run = train(config, seed=seed, device=device, **training | kw)
    params = {k: v.cpu() for k,v in run.params.items()}
    return params['W'], held_out_loss(config, params, range(config.n_instances), period=1)

kinds = 'correlated','anticorrelated','independent'
fits = {k: fit(family(size['models'], k) if k!='independent' else
               ToyConfig(20, 10, size['models'], density=.1)) for k in kinds}

# %%
#| label: fig-gram
#| fig-cap: WᵀW (above) and column norms (below) of the best run by held-out loss; the first ten features are one set, the last ten the other.
best = {k: W[loss.argmin()] for k,(W,loss) in fits.items()}
plot_models(torch.stack(list(best.values())), list(best))


# %% [markdown]
# In the correlated model of @fig-gram the blocks on the diagonal are close to the identity, and the
# interference lies between the sets. Ten orthogonal directions in ten dimensions are a basis; the other
# set is a second basis of the same space, and each of its members overlaps a little with all of the
# first. This costs little because the two sets seldom occur together.
#
# Anticorrelated and independent features both end as pairs of opposites. For independent features
# chance decides which are paired. For anticorrelated features a partner of their own set has no cost,
# but as for [two pairs](correlated_features.ipynb) many end opposite a feature of the other set.
#
# Interference is measured as the mean $|\cos|$ between stored features of one set, and of different
# sets. A run is *whole* if it stores every feature (a column longer than one half) and no two features
# of a set share one direction ($\cos>0.95$). @fig-runs shows the interference of every run.

# %%
def cosines(W, sets=2):
    "Return the mean |cos| within sets and across sets, stored features only; [model] each"
    C = normalize(W, dim=-1)@normalize(W, dim=-1).mT
    keep = represented(W)
    n = W.shape[1]
    same = (torch.arange(n)//(n//sets))[:,None] == torch.arange(n)//(n//sets)
    pairs = keep[...,None] & keep[...,None,:] & ~torch.eye(n, dtype=torch.bool)
    mean = lambda mask: (C.abs()*mask).sum((-1,-2))/mask.sum((-1,-2)).clamp(min=1)
    return mean(pairs & same),mean(pairs & ~same)

def whole(W, sets=2):
    "Return which models store every feature in a direction of its own within its set"
    U = normalize(W, dim=-1).unflatten(-2, (sets,-1))   # model, set, member, hidden
    own = U@U.mT
    merged = (own - 2*torch.eye(own.shape[-1]) > .95).any(-1).any(-1).any(-1)
    return represented(W).all(-1) & ~merged

boot = lambda v, f=np.median: cluster_bootstrap(np.asarray(v), range(len(v)), f, seed=seed)
def summary(W, loss, sets=2):
    within,across = cosines(W, sets)
    return dict(within=within.median().item(), across=across.median().item(),
                stored=represented(W).sum(-1).float().mean().item(),
                whole=str(wilson(int(whole(W, sets).sum()), len(W))),
                loss=loss.min().item())

pd.DataFrame({k: summary(*v) for k,v in fits.items()}).T

# %%
#| label: fig-runs
#| fig-cap: Mean |cos| within sets against that across sets, one point for each run, moved at random by up to 0.003 to separate points; on the line the two are equal.
g = torch.Generator().manual_seed(seed)
jitter = lambda t: t + .006*torch.rand(len(t), generator=g) - .003
points = {k: [jitter(t) for t in cosines(W)] for k,(W,_) in fits.items()}
top = max(float(t.max()) for p in points.values() for t in p)
plot_curves({k: p[0] for k,p in points.items()} | {'equal': [0,top]},
            {k: p[1] for k,p in points.items()} | {'equal': [0,top]},
            'mean |cos| within sets', 'mean |cos| across sets', dots=list(kinds),
            colours={'equal': '#787878'})

# %% [markdown]
# ## Densities
#
# How nearly orthogonal is a set in the best models? The table has the best of each five models by
# held-out loss. Random directions in ten dimensions have a mean $|\cos|$ of 0.25.

# %%
by_density = {.02: None, .05: None, .1: fits['correlated']}
for p in (.02,.05): by_density[p] = fit(family(size['models'], density=p))

def best_of_five(W, loss):
    "Return the weights of the best of each five models"
    return W[loss.view(-1, 5).argmin(1) + 5*torch.arange(len(W)//5)]

def best_cosines(W):
    "Return the mean |cos| within sets, 1 for models that store no more than ten features"
    crowded = represented(W).sum(-1) > 10
    return torch.where(crowded, cosines(W)[0], 1.)

best_of = {p: best_of_five(*v) for p,v in by_density.items()}
pd.DataFrame({p: dict(groups=len(W), within=best_cosines(W).mean().item(),
                      largest=best_cosines(W).max().item(), across=cosines(W)[1].mean().item(),
                      stored=represented(W).sum(-1).float().mean().item())
              for p,W in best_of.items()}).T.rename_axis('density')

# %% [markdown]
# ## Runs that are not whole
#
# How often does a set lose a member or merge two, and what does it cost? The table compares two initial
# spreads on the same held-out inputs. At a spread of 0.1, with which our first run at scale `cpu`
# started, all models drop features, most often one of each set.

# %%
small_start = fit(family(size['models'], init=.1))
W,loss = (torch.cat(t) for t in zip(fits['correlated'], small_start))
start = np.repeat(['Xavier','0.1'], size['models'])
state = np.where(whole(W).numpy(), 'whole', 'not whole')
runs = pd.DataFrame(dict(start=start, run=state, loss=loss.numpy()))
runs.groupby(['start','run']).loss.agg(['count','min','median','max']).round(5)

# %% [markdown]
# ## Settings varied
#
# One setting is varied at a time: density, number of dimensions, members and sets, the start, the rate.

# %%
variants = {'density 0.02': dict(density=.02), 'density 0.05': dict(density=.05),
            'density 0.2': dict(density=.2), 'density 0.4': dict(density=.4),
            'm = 5': dict(m=5), 'm = 8': dict(m=8), 'm = 15': dict(m=15),
            'two sets of five, m = 5': dict(members=5, m=5),
            'four sets of five, m = 10': dict(members=5, sets=4),
            'four sets of ten': dict(sets=4),
            'spread 0.02 at the start': dict(init=.02),
            'spread 0.1 at the start': dict(init=.1),
            'spread 0.5 at the start': dict(init=.5)}
rows = {k: summary(*fit(family(size['others'], **kw)), kw.get('sets', 2))
        for k,kw in list(variants.items())[:size.get('variants')]}
rows['lr 0.003'] = summary(*fit(family(size['others']), lr=.003))
pd.DataFrame(rows).T

# %% [markdown]
# The sparser the features, the closer a set comes to orthogonal. In dense data, or with fewer
# dimensions than members, sets remain incomplete.
#
# This page does not cover sets whose members only mostly occur together, or sets of unequal density, and does not show that anything like these sets exists in a real network.
#
# ## Claims
#
# Criteria in `data/claims/superposition_correlated.toml` were fixed before the first full run. The row on
# the best of five models was added on 30 November 2026, before its run: the paper says nearly
# orthogonal, while the older row requires a fifth of the interference across sets at density 0.1. The older
# row is now our own claim, and it fails: the ratio of the two is 0.32.

# %%
W,loss = fits['correlated']
within,across = (t.numpy() for t in cosines(W))
complete = represented(W).all(-1).numpy()
anti_within,anti_across = (t.numpy() for t in cosines(fits['anticorrelated'][0]))
L = runs.loss.values
is_whole = (runs.run=='whole').values
above = int((represented(W).sum(-1)>10).sum())
higher = (L[~is_whole][:,None] > L[is_whole]).mean(1)
widest = max(best_of.values(), key=lambda W: best_cosines(W).mean())
nothing = Measurement(.5, 0, 1, unmet='runs of one kind only')
record(scale, {
    'superposition/local-basis-nearly-orthogonal': t_interval(best_cosines(widest).numpy()),
    'superposition/local-orthogonal-basis':
        boot((within/across)[complete]) if complete.sum()>1 else nothing,
    'superposition/whole-in-superposition': wilson(above, len(W)),
    'superposition/anticorrelated-sets-interfere-within': boot(anti_across/anti_within),
    'superposition/sets-collapse-sometimes':
        boot(higher, np.mean) if is_whole.any() and len(higher)>1 else nothing,
})
