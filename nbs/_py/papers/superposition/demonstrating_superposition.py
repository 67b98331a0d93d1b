# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Demonstrating superposition: sparse features share dimensions
#
# > Introduction figure and "Basic Results": ReLU models store more sparse features than dimensions; the optima have the paper's shapes, and so has the best of ten trainings in 17 of 18 groups.

# %% tags=["parameters"]
scale = 'quick'  # quick: few models, the paper's 10,000 steps; cpu: more, minutes; gpu: many
seed = 0         # everything random follows from it

# %%
#| hide
import numpy as np, torch, pandas as pd
from dataclasses import replace
from scipy.stats import spearmanr
from moral_sc.foundation.statistics import wilson, cluster_bootstrap
from moral_sc.lab.claims import record
from moral_sc.lab.scales import at_scale
from moral_sc.superposition import (ToyConfig, train, exact_loss, fit_exact, moments,
                                    represented, planar_shape)
from moral_sc.superposition.geometry import sharing_in_order
from moral_sc.superposition.plots import plot_columns, plot_models, plot_capacity

# %%
size = at_scale(scale,
    quick=dict(models=40, enlarged=40, other=40, seeds=2, linear=2, restarts=2),
    cpu=dict(models=64, enlarged=256, other=60, seeds=8, linear=2, restarts=4),
    gpu=dict(models=64, enlarged=4000, other=4000, seeds=400, linear=20, restarts=8),
)
device = 'cuda' if scale=='gpu' and torch.cuda.is_available() else 'cpu'
size

# %% [markdown]
# ## Introduction figure: five features in two dimensions
#
# A linear model with $m$ hidden dimensions can do no better than store the $m$ most important
# features. The paper's first observation is that a single ReLU changes this if features are sparse:
#
# > Five features in two dimensions. If they are always on, the model represents two, at a right
# > angle, and ignores three. At 80 % sparsity it stores four as two antipodal pairs. At 90 % it
# > stores all five, as a pentagon [@elhage2022].
#
# Importance falls as $0.9^i$. The paper shows one model of each kind and states no rate. On other
# experiments in two dimensions it says that clean results took several fits, of which the one with
# the lowest loss was taken. We train many models from independent starts, look at the best of every
# ten, and count how often each shape occurs. The settings are those of the public notebook: AdamW at
# 0.001, batches of 1024, 10,000 steps, and the initial spread that it gives to
# [ten instances](../../superposition/20_model.ipynb).

# %%
importance = [.9**i for i in range(5)]
n = size['models']
conditions = {1: 'no sparsity', .2: '80 % sparse', .1: '90 % sparse'}
spread = ToyConfig(5, 2, 10, notebook_compat=True).std

def five_features(n, std=spread, density=conditions, **options):
    "Return trained models [density, model, feature, hidden] and their exact losses"
    p = torch.tensor(list(density)).repeat_interleave(n)[:,None]
    config = ToyConfig(5, 2, len(p), density=p, importance=importance, init=std)
    run = train(config, seed=seed, device=device, **options)
    W,b = run.W.cpu(), run.b.cpu()
    loss = exact_loss(W, b, p, importance)
    return W.view(len(density), n, 5, 2), loss.view(len(density), n)

W,loss = five_features(n)

# %%
shapes = pd.DataFrame({p: pd.Series(map(planar_shape, w)) for p,w in zip(conditions, W)})
counts = shapes.apply(pd.Series.value_counts).fillna(0).astype(int)
counts.rename_axis(columns='density')

# %% [markdown]
# @fig-plane shows, at each density, the model with the lowest population loss, which is computed
# [in closed form](../../superposition/30_exact_loss.ipynb).

# %%
#| label: fig-plane
#| fig-cap: Columns of W of the best trained model at each density, for five features in two dimensions; colour is importance, and the dotted circle has radius 1.
best = W[torch.arange(len(W)),loss.argmin(1)]
best_shapes = [planar_shape(w) for w in best]
titles = [f'{title}<br>{shape}<br>{(shapes[p]==shape).sum()} of {n} models'
          for (p,title),shape in zip(conditions.items(), best_shapes)]
plot_columns(best, importance, titles)


# %% [markdown]
# A single training is one draw among several shapes. The table has the shape of the best in each
# group of ten:

# %%
def best_shapes_of_ten(i):
    "Return the shape with the lowest loss in each group of ten models at a density"
    groups = loss[i,:n-n%10].view(-1, 10)
    rows = groups.argmin(1) + 10*torch.arange(len(groups))
    return shapes.iloc[rows.numpy(),i]

of_ten = {p: best_shapes_of_ten(i) for i,p in enumerate(conditions)}
pd.DataFrame(of_ten).apply(pd.Series.value_counts).fillna(0).astype(int).rename_axis(
    columns='density')

# %% [markdown]
# Are these shapes optimal, or only the ones that training happens to find? A quasi-Newton method on
# the exact loss has no noise and no step size to tune:

# %%
optima = fit_exact(ToyConfig(5, 2, len(conditions), density=[[p] for p in conditions],
                             importance=importance, init=.2),
                   restarts=size['restarts'], seed=seed)
table = pd.DataFrame(dict(density=list(conditions),
    optimum=[planar_shape(w) for w in optima['W'][:,0]], loss=optima['loss'][:,0],
    best_trained=loss.amin(1), median_trained=loss.median(1).values))
assert (table.best_trained > .98*table.loss).all()
table.round(5)

# %% [markdown]
# The paper's three shapes are the three optima. At densities 0.2 and 0.1 the loss of the median model
# is 6 % and 21 % above the optimum, so many single trainings stop in a worse shape.
#
# ## A model to train yourself
#
# Choose a density and press Start: up to eleven models train in your browser, with the equations and the
# random numbers of `train`, the Xavier spread of a single model and batches of 256. Their exact losses are
# compared with a [table of optima](../../superposition/38_optima.ipynb).
#
# ::: {.interactive name=toy-model}
# ![The interactive figure after 10,000 steps at density 0.1: columns of W of the optimum and of five models, and their exact losses.](../../../docs/pictures/toy-model.png)
#
# The figure trains models [on the site](https://moral-sc.github.io/moral_sc/papers/superposition/demonstrating_superposition.html#a-model-to-train-yourself).
# :::
#
# ## How often a single training ends as a pentagon
#
# The paper does not report this rate. If initial weights are small, features grow one after the other,
# and four of them can settle into pairs before the fifth grows. The public notebook's spread depends,
# because of a quirk, on the number of instances that are trained together. The table has the share of
# pentagons and of antipodal pairs at 90 % sparsity for a smaller spread, for the notebook's, for the
# Xavier spread of a single model, and for the notebook's with a learning rate of 0.01 that falls to
# zero. The last column is the share of pentagons among the best of ten.

# %%
wide = round(ToyConfig(5, 2).std, 3)
falling = dict(lr=.01, schedule='cosine')
starts = {'spread 0.1': (.1,{}), "notebook's spread": (spread,{}),
          f'Xavier spread {wide}': (wide,{}), 'falling learning rate': (spread,falling)}
rows = {}
pentagons = {}
for name,(std,options) in starts.items():
    default = std==spread and not options
    w,l = (W[2:],loss[2:]) if default else five_features(size['other'], std, [.1], **options)
    names = np.array([planar_shape(v) for v in w[0]])
    pentagons[name] = names=='pentagon'
    whole = len(names) - len(names)%10
    tens = pentagons[name][:whole].reshape(-1, 10)
    lowest = l[0,:whole].view(-1, 10).argmin(1).numpy()
    rows[name] = {shape: str(wilson(int((names==shape).sum()), len(names)))
                  for shape in ('pentagon','antipodal pairs')}
    rows[name]['best of ten'] = tens[np.arange(len(tens)),lowest].mean()
pd.DataFrame(rows).T

# %% [markdown]
# ## Basic results: twenty features in five dimensions
#
# > As sparsity grows, the ReLU model stores more features than it has dimensions, the least
# > important of them entering superposition first; a linear model never does [@elhage2022].
#
# We train both kinds of model at seven densities from 1 to 0.001, with importance $0.7^i$. The
# initial spread is 0.1, which the public notebook would give to twenty instances.

# %%
density = [1,.3,.1,.03,.01,.003,.001]
importance20 = [.7**i for i in range(20)]
def sweep(activation, seeds):
    "Train a run at each density"
    c = ToyConfig(20, 5, seeds, importance=importance20, activation=activation, init=.1)
    return [train(replace(c, density=p), seed=seed, device=device) for p in density]

relu = sweep('relu', size['seeds'])
linear = sweep('linear', size['linear'])
relu[-1], linear[-1]

# %%
#| label: fig-relu
#| fig-cap: ReLU models at each density (first seed). Above, WᵀW; below, the norm of each column, most important feature on top, from blue (a direction of its own) to red (shared).
titles = [f'p = {p:g}' for p in density]
plot_models(torch.stack([r.W[0] for r in relu]), titles)

# %% [markdown]
# At density 1 the model of @fig-relu stores five features and nothing else. As features grow
# sparser, bars further down appear in the colour of shared directions, and off-diagonal entries of
# $W^\top W$ appear with them. The most important features keep their own directions longest.

# %%
#| label: fig-linear
#| fig-cap: Linear models at the same densities, drawn as in the previous figure.
plot_models(torch.stack([r.W[0] for r in linear]), titles)

# %% [markdown]
# The linear models of @fig-linear look alike at every density. By the Eckart-Young theorem their
# best loss is $v(p)\sum_{i>5}I_i$ with $v(p)=p/3-p^2/4$, so this can be measured. The table has the
# relative excess of the trained models over that optimum.

# %%
floor = [moments(p)[1]*sum(importance20[5:]) for p in density]
excess = np.stack([exact_loss(r.W.cpu(), r.b.cpu(), p, importance20, activation='linear')/f - 1
                   for r,p,f in zip(linear, density, floor)], 1)      # seed, density
pd.DataFrame(dict(density=density, mean=excess.mean(0), worst=excess.max(0))).round(5)

# %% [markdown]
# ## Capacity
#
# The squared Frobenius norm of $W$ measures how many features are stored. The grey circles of
# @fig-capacity are means over twenty seeds of an independent implementation in C with the same
# settings.

# %%
#| label: fig-capacity
#| fig-cap: Squared Frobenius norm of W against sparsity; points are means over seeds, bars are 95 % bootstrap intervals, and circles are an independent implementation.
norms = {name: np.stack([r.W.cpu().square().sum((1,2)) for r in runs], 1)
         for name,runs in dict(relu=relu, linear=linear).items()}     # seed, density
boot = lambda v, f=np.mean: cluster_bootstrap(np.asarray(v), range(len(v)), f, seed=seed)
mean = {name: [boot(v[:,i]) for i in range(len(density))] for name,v in norms.items()}
reference = {1: 5.00, .3: 7.20, .1: 8.86, .03: 10.4, .01: 12.8, .003: 14.3, .001: 14.5}
expected = np.array([reference.get(p, np.nan) for p in density])
plot_capacity(density, mean, reference=('independent implementation', expected))

# %%
stored = np.stack([represented(r.W.cpu()).sum(-1) for r in relu], 1)  # seed, density
pd.DataFrame(dict(density=density, norm2=[str(e) for e in mean['relu']], stored=stored.mean(0),
                  elsewhere=expected))

# %% [markdown]
# ## The order in which features begin to share
#
# At density 0.3 superposition has just begun. Within each model we compare every stored feature that
# has more than three quarters of a dimension to itself with every stored one that has less, and
# count in which share of these pairs the first is the more important.

# %%
i = int(np.abs(np.subtract(density, .3)).argmin())
in_order = [sharing_in_order(w) for w in relu[i].W.cpu()]
np.round(in_order, 2)

# %% [markdown]
# This page does not show that models far from these two sizes behave alike, that features of real
# networks are independent or uniform, or that the solutions are optimal (for twenty features no
# exact optimum was computed).
#
# ## Claims
#
# Criteria are in `data/claims/superposition.toml`. Two rows on the best of ten trainings judge the
# paper. Rates of single trainings are rows of ours. The first run started the five-feature models at
# a spread of 0.1, which is not the notebook's, and found 16 pentagons and 38 antipodal pairs in 64
# models; this led to the section on rates. The second run found 27 pentagons in 64, an interval that
# includes one half, and the sample was then enlarged to 256 models. The registered row is judged on
# the 64 models of the second run and is undecided. The enlarged sample is a row of its own, and
# undecided, too: an earlier sample of 256 had 110 pentagons, and this one has 126. Of the six groups
# of ten at 90 % sparsity five have a pentagon as the best model, too few groups to decide that row;
# the exact optimum is the pentagon. The comparison with the C implementation is undecided: the
# interval of the largest difference includes the criterion's 5 %.

# %%
enlarged = W[2:] if size['enlarged']==n else five_features(size['enlarged'], density=[.1])[0]
def share_of(W, shape):
    "Return the share of a shape among models, and its interval"
    return wilson(sum(planar_shape(w)==shape for w in W), len(W))

def share_of_tens(p, shape): return wilson(int((of_ten[p]==shape).sum()), len(of_ten[p]))

pentagons = {k: v.astype(float) for k,v in pentagons.items()}
by_start = np.stack([pentagons[f'Xavier spread {wide}'], pentagons['spread 0.1']], 1)
rank_correlation = [spearmanr(density, s).statistic for s in stored]
in_order = [v for v in in_order if np.isfinite(v)]
record(scale, {
    'superposition/dense-keeps-two': share_of(W[0], 'orthogonal'),
    'superposition/antipodal-pairs': share_of(W[1], 'antipodal pairs'),
    'superposition/pentagon': share_of(W[2], 'pentagon'),
    'superposition/best-is-pairs': share_of_tens(.2, 'antipodal pairs'),
    'superposition/best-is-pentagon': share_of_tens(.1, 'pentagon'),
    'superposition/pentagon-enlarged': share_of(enlarged[0], 'pentagon'),
    'superposition/pentagon-rate-by-start': boot(by_start,
        lambda v: v[:,0].mean()-v[:,1].mean()),
    'superposition/pentagon-rate-falling-lr':
        wilson(int(pentagons['falling learning rate'].sum()), size['other']),
    'superposition/linear-is-pca': boot(excess, lambda v: v.mean(0).max()),
    'superposition/dense-relu-is-pca': mean['relu'][density.index(1)],
    'superposition/sparser-stores-more': boot(rank_correlation),
    'superposition/least-important-first': boot(in_order),
    'superposition/same-capacity-elsewhere': boot(norms['relu'],
        lambda v: np.nanmax(np.abs(v.mean(0)/expected-1))),
})
