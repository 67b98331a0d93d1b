# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Sparse features share dimensions
#
# > Introduction figure and basic results of Toy Models of Superposition, trained anew. The last
# > cell says at which scale, and in how many minutes, the outputs on this page were recorded.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds; cpu: the paper's 10,000 steps, minutes; gpu: many more models
seed = 0         # everything random follows from it

# %%
#| hide
import numpy as np, torch, pandas as pd
from scipy.stats import spearmanr
from time import perf_counter
from moral_sc.foundation.statistics import wilson, cluster_bootstrap
from moral_sc.lab.claims import record
from moral_sc.lab.scales import at_scale
from moral_sc.superposition import (ToyConfig, train, exact_loss, fit_exact, moments,
                                    represented, feature_dimensionality, planar_shape)
from dataclasses import replace
from moral_sc.superposition.plots import plot_columns, plot_models, plot_capacity
began = perf_counter()

# %%
size = at_scale(scale,
    quick=dict(models=12, seeds=3, linear=2, restarts=4,
               train=dict(steps=2500, batch_size=256, lr=.01, schedule='cosine'),
               train20=dict(steps=1000, batch_size=256, lr=.01, schedule='cosine')),
    cpu=dict(models=256, seeds=40, linear=5, restarts=8,
             train=dict(steps=10_000), train20=dict(steps=10_000)),
    gpu=dict(models=4000, seeds=400, linear=20, restarts=8,
             train=dict(steps=10_000), train20=dict(steps=10_000)),
)
device = 'cuda' if scale=='gpu' and torch.cuda.is_available() else 'cpu'
size

# %% [markdown]
# A linear model with $m$ hidden dimensions can do no better than keep the $m$ most important
# features. The paper's first observation is that one ReLU changes this, provided that features are
# sparse:
#
# > Five features in two dimensions. If they are always on, the model represents two, at a right
# > angle, and ignores three. At 80 % sparsity it stores four as two antipodal pairs. At 90 % it
# > stores all five, as a pentagon [@elhage2022].
#
# Importance falls as $0.9^i$. The pictures in the paper are of single models. We train many from
# independent starts and ask how often each shape comes out. From scale `cpu` on the settings
# are those of the public notebook: AdamW at 0.001, batches of 1024, 10,000 steps, and the spread
# that its initialiser gives to [ten instances](../../superposition/20_model.ipynb). A claim
# counts as held if the whole interval of its share lies above one half.

# %%
importance = [.9**i for i in range(5)]
small = {1: 'no sparsity', .2: '80 % sparse', .1: '90 % sparse'}
spread = ToyConfig(5, 2, 10, notebook_compat=True).std
config = ToyConfig(5, 2, 3*size['models'], importance=importance, init=spread,
                   density=torch.tensor(list(small)).repeat_interleave(size['models'])[:,None])
run = train(config, seed=seed, device=device, **size['train'])
run

# %%
W = run.W.cpu().view(3, -1, 5, 2)
loss = exact_loss(run.W.cpu(), run.b.cpu(), config.density, importance).view(3, -1)
shapes = pd.DataFrame({p: pd.Series(map(planar_shape, w)) for p,w in zip(small, W)})
counts = shapes.apply(pd.Series.value_counts).fillna(0).astype(int)
counts.rename_axis(columns='density')

# %% [markdown]
# The figure shows, at each density, the model with the lowest population loss, which is known
# [in closed form](../../superposition/30_exact_loss.ipynb).

# %%
#| label: fig-plane
#| fig-cap: Columns of W of the best trained model at each density, five features in two dimensions; colour is importance, the dotted circle has radius 1
n = size['models']
best = W[torch.arange(3),loss.argmin(1)]
named = [planar_shape(w) for w in best]
titles = [f'{t}<br>{s}<br>{(shapes[p]==s).sum()} of {n} models'
          for (p,t),s in zip(small.items(), named)]
plot_columns(best, importance, titles)

# %% [markdown]
# Are these the best shapes, or the ones that training happens to find? A quasi-Newton method on the
# exact loss has no noise and no step size to tune:

# %%
ideal = fit_exact(ToyConfig(5, 2, 3, density=[[p] for p in small], importance=importance, init=.2),
                  restarts=size['restarts'], seed=seed)
table = pd.DataFrame(dict(density=list(small), optimum=[planar_shape(w) for w in ideal['W'][:,0]],
    loss=ideal['loss'][:,0], best_trained=loss.amin(1), median_trained=loss.median(1).values))
assert (table.best_trained > .98*table.loss).all()
table.round(5)

# %% [markdown]
# The paper's three shapes are the three optima. Where the median model lies well above the
# optimum, training stops in a worse shape, and a single trained model is a draw and not a solution.
#
# ## The start matters
#
# A model that starts small grows its features one after the other, and four of them can settle into
# pairs before the fifth arrives. The public notebook's spread depends, by a quirk, on how many
# instances are trained together; here are pentagons at 90 % sparsity from a smaller start, from
# the notebook's, and from the Xavier spread of a single model.

# %%
starts = {.1: None, round(spread, 3): run, round(ToyConfig(5, 2).std, 3): None}
rows = []
for std,known in starts.items():
    c = ToyConfig(5, 2, n, density=.1, importance=importance, init=std)
    w = W[2] if known else train(c, seed=seed, device=device, **size['train']).W.cpu()
    found = [planar_shape(v) for v in w]
    rows.append(dict(spread=std, **{k: str(wilson(found.count(k), n))
                                    for k in ('pentagon','antipodal pairs')}))
pd.DataFrame(rows)

# %% [markdown]
# ## Twenty features in five dimensions
#
# > As sparsity grows, the ReLU model stores more features than it has dimensions, the least
# > important of them entering superposition first; a linear model never does [@elhage2022].
#
# Seven densities from 1 to 0.001, importance $0.7^i$, both kinds of model. The spread at the start
# is 0.1, what the public notebook would give to twenty instances.

# %%
density = [1,.3,.1,.03,.01,.003,.001]
importance20 = [.7**i for i in range(20)]
def sweep(activation, seeds):
    c = ToyConfig(20, 5, seeds, importance=importance20, activation=activation, init=.1)
    return [train(replace(c, density=p), seed=seed, device=device, **size['train20'])
            for p in density]

relu = sweep('relu', size['seeds'])
linear = sweep('linear', size['linear'])
relu[-1], linear[-1]

# %%
#| label: fig-relu
#| fig-cap: ReLU models at seven densities (first seed). Above, WᵀW; below, the norm of each column, most important feature on top, from blue (a direction of its own) to red (shared)
names = [f'p = {p:g}' for p in density]
plot_models(torch.stack([r.W[0] for r in relu]), names)

# %% [markdown]
# Reading @fig-relu from left to right: at density 1 the model stores five features and nothing
# else. As features grow sparser, bars appear further down, coloured as shared, and off-diagonal
# entries of $W^\top W$ with them, while the top of the list keeps its own directions longest.

# %%
#| label: fig-linear
#| fig-cap: Linear models at the same densities
plot_models(torch.stack([r.W[0] for r in linear]), names)

# %% [markdown]
# The linear models of @fig-linear look alike at every density. Eckart and Young say what their best
# loss is, $v(p)\sum_{i>5}I_i$ with $v(p)=p/3-p^2/4$, so the comparison needs no eye: this is the
# relative excess of the trained models over that optimum.

# %%
floor = [moments(p)[1]*sum(importance20[5:]) for p in density]
excess = np.stack([exact_loss(r.W.cpu(), r.b.cpu(), p, importance20, activation='linear')/f - 1
                   for r,p,f in zip(linear, density, floor)], 1)      # seed, density
pd.DataFrame(dict(density=density, mean=excess.mean(0), worst=excess.max(0))).round(5)

# %% [markdown]
# ## Capacity
#
# The squared Frobenius norm of $W$ counts the features stored, by length. The grey circles are means
# over twenty seeds of an independent implementation in C with the same settings.

# %%
#| label: fig-capacity
#| fig-cap: Squared Frobenius norm of W against sparsity; means over seeds with 95 % bootstrap intervals
norms = {k: np.stack([r.W.cpu().square().sum((1,2)) for r in rs], 1)
         for k,rs in dict(relu=relu, linear=linear).items()}          # seed, density
boot = lambda v, f=np.mean: cluster_bootstrap(np.asarray(v), range(len(v)), f, seed=seed)
mean = {k: [boot(v[:,i]) for i in range(7)] for k,v in norms.items()}
elsewhere = [5.00,7.20,8.86,10.4,12.8,14.3,14.5]
plot_capacity(density, mean, reference=('independent implementation', elsewhere))

# %%
stored = np.stack([represented(r.W.cpu()).sum(-1) for r in relu], 1)  # seed, density
pd.DataFrame(dict(density=density, norm2=[str(e) for e in mean['relu']], stored=stored.mean(0),
                  elsewhere=elsewhere))


# %% [markdown]
# Who shares first? At density 0.3 superposition has just begun. Within each model, take a stored
# feature with more than three quarters of a dimension to itself and a stored one with less: how
# often is the first the more important one?

# %%
def share_in_order(W):
    "Share of (own dimension, shared) pairs in which the first is the more important"
    keep = represented(W)
    own = feature_dimensionality(W)>.75
    first,second = (torch.where(keep & m)[0] for m in (own,~own))
    return (first[:,None]<second).double().mean().item()

in_order = [share_in_order(w) for w in relu[1].W.cpu()]
np.round(in_order, 2)

# %% [markdown]
# What this does not show: that models far from these two sizes behave alike, that features of real
# networks are independent or uniform, or that the solutions are optimal; for twenty features no
# exact optimum was computed.
#
# ## Claims
#
# Criteria were fixed before the first full run, in `data/claims/superposition.toml`. That run
# started the five-feature models at a spread of 0.1, which is not the notebook's: it found 16
# pentagons in 64 models and 38 antipodal pairs, and led to the section on starts. The second run
# found 27 pentagons in 64, an interval that straddles one half; the scale `cpu` has had 256
# models and 40 seeds since, for narrower intervals. The criteria have not been touched.

# %%
share = lambda p, shape: wilson(int((shapes[p]==shape).sum()), n)
falling = [spearmanr(density, s).statistic for s in stored]
in_order = [v for v in in_order if np.isfinite(v)]
record(scale, {
    'superposition/dense-keeps-two': share(1, 'orthogonal'),
    'superposition/antipodal-pairs': share(.2, 'antipodal pairs'),
    'superposition/pentagon': share(.1, 'pentagon'),
    'superposition/linear-is-pca': boot(excess, lambda v: v.mean(0).max()),
    'superposition/dense-relu-is-pca': mean['relu'][0],
    'superposition/sparser-stores-more': boot(falling),
    'superposition/least-important-first': boot(in_order),
    'superposition/same-capacity-elsewhere': boot(norms['relu'],
        lambda v: np.abs(v.mean(0)/elsewhere-1).max()),
})

# %%
f'{scale}: {(perf_counter()-began)/60:.1f} minutes on {torch.get_num_threads()} thread(s), {device}'
