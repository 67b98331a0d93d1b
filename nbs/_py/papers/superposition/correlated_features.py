# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Correlated features: pairs that occur together become orthogonal
#
# > "Organization of Correlated and Anticorrelated Features": the best of five models has the paper's arrangement in 100 % (correlated pairs), 100 % (anticorrelated pairs) and 77 % (three pairs) of groups; single models have it in 100, 50 and 44 %.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds; cpu: a hundred models of each kind; gpu: a thousand
seed = 0         # everything random follows from it

# %%
#| hide
import numpy as np, torch, pandas as pd
from collections import Counter
from dataclasses import replace
from itertools import permutations
from moral_sc.foundation.statistics import Estimate, wilson
from moral_sc.lab.claims import record
from moral_sc.lab.scales import at_scale
from moral_sc.superposition import ToyConfig, exact_loss, represented, train
from moral_sc.superposition.exact_loss import mean_covariance
from moral_sc.superposition.feature_graphs import compare_arrangements, pair_orders
from moral_sc.superposition.geometry import angular_gaps, pair_cosines, polygon
from moral_sc.superposition.plots import plot_columns
from moral_sc.superposition.phase_diagram import exact_optima

# %%
size = at_scale(scale,
    quick=dict(models=30, groups=3, others=2, restarts=3),
    cpu=dict(models=300, groups=10, others=10, restarts=8),
    gpu=dict(models=1000, groups=100, others=400, restarts=24),
)
device = 'cuda' if scale=='gpu' and torch.cuda.is_available() else 'cpu'
training = dict(steps=10_000, batch_size=1024, lr=.01, schedule='cosine')
size


# %% [markdown]
# ## Organization of correlated and anticorrelated features
#
# The paper joins small sets of features: the members of a *correlated* set are present together or not
# at all, with independent values; of an *anticorrelated* set exactly one is present at a time.
#
# > In two dimensions, two correlated pairs become two right angles, two anticorrelated
# > pairs two lines. Three correlated pairs, which cannot all be orthogonal, lie side by
# > side on a hexagon; six independent features would not form it [@elhage2022].
#
# The reason is interference. It has a cost only when both features are present: correlated features are
# always present together, anticorrelated ones never. The figures in the paper show several models each
# and give no density. We take 0.1 for two pairs and 0.02 for three, where the paper reports no
# collapse. We train many models, vary the density and the start, and compute the optimum. The paper
# states no rate: in two dimensions, it says, clean results need several fits, of which the lowest loss
# counts. The paper's claims are therefore judged by the best of five models, and rates of single models
# are our own claims.

# %%
def family(n, models, features, density, init=.1):
    "Return a config of n features in the plane: n/2 pairs, or one set if independent"
    independent = features=='independent'
    return ToyConfig(n, 2, models, density=density, features=features, init=init,
                     sets=1 if independent else n//2)

def fit(config, **changes):
    run = train(config, **dict(seed=seed, device=device) | training | changes)
    return run.W.cpu(),run.b.cpu()

kinds = 'correlated','anticorrelated','independent'
four = {k: family(4, size['models'], k, .1) for k in kinds}
models4 = {k: fit(c) for k,c in four.items()}


# %% [markdown]
# ## Two pairs
#
# A model is named after the angles within its two pairs. For independent features a *pair* is a pair
# of neighbours in the list, which has no meaning for the model.

# %%
def arrangement(W):
    "Name the arrangement of two pairs"
    c = pair_cosines(W)
    if not represented(W).all(): return 'a feature is dropped'
    if (c.abs()<.1).all(): return 'orthogonal'
    if (c<-.9).all(): return 'opposite'
    return 'collapsed' if (c>.95).any() else 'other'

arrangements = {k: [arrangement(w) for w in W] for k,(W,b) in models4.items()}
pd.DataFrame({k: Counter(v) for k,v in arrangements.items()}).fillna(0).astype(int)


# %% [markdown]
# Four independent features also form two antipodal pairs, as on the page about
# [sparsity](demonstrating_superposition.ipynb). Which of them are paired is then a matter of chance: in
# one matching of three the neighbours are opposite, and in the other two they are at right angles. A
# right angle alone is therefore no evidence of an effect of correlation; the evidence is that nearly
# *all* correlated pairs have one.
#
# Anticorrelated pairs follow the paper's pictures less often: about half of the models put partners at
# right angles. The table compares the arrangements. `loss` is the exact loss relative to the variance
# of the inputs, which is the loss of a model without weights. `apart` is the largest distance of a
# model of this arrangement from the best one, after rotation, reflection and exchange of sets and of
# members within a set.

# %%
def relative_losses(config, W, b):
    "Return exact losses, relative to the variance of the inputs"
    v = mean_covariance(config.densities[:1], config.features, config.sets)[1][0].trace()
    return exact_loss(W, b, config.density, features=config.features, sets=config.sets)/v

def describe(kind, config, W, b, name):
    "Return a row for each arrangement, and its best model"
    n = W.shape[1]
    orders = list(permutations(range(n))) if kind=='independent' else pair_orders(n//2)
    rows,models = compare_arrangements(W, relative_losses(config, W, b), map(name, W), orders)
    return [dict(kind=kind)|r for r in rows],models

rows,models = zip(*[describe(k, four[k], *models4[k], arrangement) for k in kinds[:2]])
pd.DataFrame(sum(rows, [])).round(5)

# %%
#| label: fig-two
#| fig-cap: Columns of W of the best model of each arrangement, for two correlated and two anticorrelated pairs; colour is the set.
titles = [f"{r['kind']},<br>{r['arrangement']}<br>{r['models']} of {size['models']}"
          for r in sum(rows, [])][:4]
def plot_sets(W, titles, colour):
    "Plot the columns of W, coloured by set"
    fig = plot_columns(torch.stack(list(W)), colour, titles)
    return fig.update_layout(coloraxis_showscale=False)
plot_sets(sum(models, [])[:4], titles, [1,1,.4,.4])


# %% [markdown]
# The members of an anticorrelated pair that are opposites (@fig-two) never interfere, and nothing is
# lost. At right angles each has an opposite in the *other* set, and loses when both sets are present.
# So the paper's arrangement is the better one, and training reaches it in about half of the runs: to
# move from one arrangement to the other, two features would have to cross. The table has the optimum,
# from many starts on the [exact loss](../../superposition/48_phase_diagram.ipynb), and the best and
# the median trained model:

# %%
def best_possible(config, restarts=size['restarts']):
    "Return the weights and the loss of the best model from several starts"
    one = replace(config, n_instances=1)
    optimum = exact_optima(one, restarts=restarts, seed=seed).best()
    return optimum['W'][0],relative_losses(one, optimum['W'], optimum['b'])[0].item()

def compare(config, W, b):
    W0,least = best_possible(config)
    L = relative_losses(config, W, b)
    return dict(shape=arrangement(W0), optimum=least, best=L.min().item(),
                median=L.median().item())

table = {k: compare(four[k], *models4[k]) for k in kinds}
assert all(t['best'] > t['optimum']-1e-6 for t in table.values())
pd.DataFrame(table).T


# %% [markdown]
# ## Three pairs
#
# Now six features share two dimensions. A pair lies *side by side* if nothing lies between its
# members. If six places on a circle are matched at random, all pairs do so in 2 of 15 cases.

# %%
def hexagon(W):
    "Tell whether all six are stored, 60 degrees from one to the next, within 12 degrees"
    return bool(represented(W).all()) and bool((angular_gaps(W)-60).abs().max() <= 12)

def side_by_side(W):
    "Tell whether all six are stored, with no feature between the members of a pair"
    if not represented(W).all() or (pair_cosines(W)>.95).any(): return False
    place = torch.atan2(W[:,1], W[:,0]).argsort().argsort()
    return all((place[i]-place[i+1]) % 6 in (1,5) for i in (0,2,4))

def arrangement6(W, pairs=True):
    "Name the arrangement of six features"
    if not represented(W).all(): return f'{int(represented(W).sum())} stored'
    n_collapsed = int((pair_cosines(W)>.95).sum())
    if not pairs: return 'hexagon' if hexagon(W) else 'other'
    if n_collapsed: return f'{n_collapsed} collapsed'
    return 'side by side' if side_by_side(W) else 'other'

six = {k: family(6, size['models'], k, .02) for k in ('correlated','independent')}
models6 = {k: fit(c) for k,c in six.items()}
count = lambda f, W: sum(map(f, W))
rows,models = zip(*[describe(k, c, *models6[k],
                             lambda W: arrangement6(W, k=='correlated')) for k,c in six.items()])
pd.DataFrame(sum(rows, [])).round(5)

# %%
#| label: fig-three
#| fig-cap: The two arrangements with the lowest loss, of three correlated pairs (colour is the set) and of six independent features (colour is the place in the list).
lowest = [sorted(zip([r['loss'] for r in group], group, ws), key=lambda t: t[0])[:2]
          for group,ws in zip(rows, models)]
titles = [f"{r['kind']},<br>{r['arrangement']}<br>{r['models']} of {size['models']}"
          for group in lowest for _,r,_ in group]
plot_sets([w for group in lowest for _,_,w in group], titles, [1,1,.6,.6,.2,.2])


# %% [markdown]
# Side by side is the better arrangement in @fig-three, but most models end in another one: in 168 of
# 300 one pair has collapsed onto one direction, at a somewhat higher loss. The paper states that
# independent features will not form a hexagon. In training 8 % of the models do. The table has the
# optimum, from random starts and from the hexagon itself:

# %%
def optimum(kind, densities, restarts):
    "Return the best W at each density, from random starts and from the hexagon itself"
    g = torch.Generator().manual_seed(seed)
    starts = torch.cat([.5*torch.randn(restarts, 6, 2, generator=g), polygon(6)[None]])
    c = family(6, len(densities), kind, torch.tensor(densities)[:,None])
    return exact_optima(c, starts=starts).best()['W']

sparse = [.01,.02,.04]
best = optimum('correlated', sparse, 2*size['restarts'])
independent = optimum('independent', sparse, 4)
angle = pair_cosines(best).clamp(-1,1).arccos().rad2deg().mean(-1)
pd.DataFrame(dict(density=sparse, correlated=list(map(arrangement6, best)),
    angle_within=angle.numpy().round(1),
    independent=[arrangement6(w, False) for w in independent],
    norm_independent=independent.norm(dim=-1).mean(-1).numpy().round(2))).set_index('density')

# %% [markdown]
# The best arrangement of six independent features at these densities is a regular hexagon of long
# columns with strongly negative biases. The paper's remark is therefore about what training finds, not
# about the optimum. The table compares the exact optimum near the hexagon with the one near a pentagon
# whose sixth feature is dropped, which is what training finds most often. The hexagon of pairs is not
# quite regular: partners are a little further apart than neighbours from different pairs, in the
# direction of the right angle that two pairs have.

# %%
pentagon = torch.cat([1.2*polygon(5), .01*torch.ones(1,2)])
c = family(6, len(sparse), 'independent', torch.tensor(sparse)[:,None])
ends = exact_optima(c, starts=torch.stack([1.3*polygon(6), pentagon]))
hexagon_ratio = (ends.loss[:,0]/ends.loss[:,1]).numpy()
pd.DataFrame(dict(density=sparse, hexagon=ends.loss[:,0], pentagon=ends.loss[:,1],
                  ratio=hexagon_ratio,
                  stored=represented(ends.params['W'][:,1]).sum(-1))).set_index('density')


# %% [markdown]
# ## The best of five models
#
# The table has the share of groups of five models in which the one with the lowest exact loss is
# arranged as in the paper, at three densities below the one from which the paper reports collapse.

# %%
def best_of_five(kind, n, criterion):
    "Return whether the best of each five models meets a criterion, [density, group]"
    hits = []
    for p in sparse:
        c = family(n, 5*size['groups'], kind, p)
        W,b = fit(c, seed=seed+1)
        best = relative_losses(c, W, b).view(-1, 5).argmin(1) + 5*torch.arange(size['groups'])
        hits.append([bool(criterion(w)) for w in W[best]])
    return np.array(hits)

right,opposite = (lambda W, s=s: arrangement(W)==s for s in ('orthogonal','opposite'))
groups = {'correlated at right angles': best_of_five('correlated', 4, right),
          'anticorrelated opposite': best_of_five('anticorrelated', 4, opposite),
          'three pairs side by side': best_of_five('correlated', 6, side_by_side)}
pd.DataFrame({k: {p: f'{sum(v)} of {len(v)}' for p,v in zip(sparse, hits)}
              for k,hits in groups.items()}).rename_axis('density')


# %% [markdown]
# ## Settings varied
#
# How often single models meet each statement at other densities, starts and learning rates:

# %%
def share(kind, n, density, criterion, **kw):
    "Return the share of trained models that meet a criterion"
    init = kw.pop('init', .1)
    lr = kw.pop('lr', .01)
    W,_ = fit(family(n, size['others'], kind, density, init), lr=lr)
    return str(wilson(count(criterion, W), len(W)))

def row(p, p6, **kw):
    return {'correlated at right angles': share('correlated', 4, p, right, **kw),
            'anticorrelated opposite': share('anticorrelated', 4, p, opposite, **kw),
            'three pairs side by side': share('correlated', 6, p6, side_by_side, **kw)}

varied = {f'densities {p} and {q}': row(p, q)
          for p,q in [(.02,.005),(.05,.01),(.2,.04),(.5,.1)]}
varied |= {'spread 0.02 at the start': row(.1, .02, init=.02),
           'spread 0.6 at the start': row(.1, .02, init=.6),
           'lr 0.003': row(.1, .02, lr=.003)}
pd.DataFrame(varied).T

# %% [markdown]
# All three statements depend on density. In denser data correlated pairs are no longer at right angles.
# The exact optimum has right angles up to density 0.2, and collapsed pairs at 0.5; its angles within
# the pairs are, in degrees:

# %%
dense = [.02,.1,.2,.5]
c = ToyConfig(4, 2, len(dense), density=torch.tensor(dense)[:,None],
              features='correlated', sets=2)
best = exact_optima(c, restarts=2*size['restarts'], seed=seed).best()['W']
pd.DataFrame(pair_cosines(best).clamp(-1,1).arccos().rad2deg().numpy().round(1),
             index=pd.Index(dense, name='density'), columns=['pair 1','pair 2'])

# %% [markdown]
# A large initial spread makes most arrangements of the paper less likely, since features that begin
# long cannot pass through each other.
#
# This page does not cover sets larger than two (for those see [local bases](local_bases.ipynb)),
# partial correlations, or sets of unequal density. [Another page](collapse.ipynb) shows what
# happens to three pairs as they grow denser.
#
# ## Claims
#
# Criteria in `data/claims/superposition_correlated.toml` were fixed before the first full run; the rows
# on the best of five were added on 30 November 2026, before their run, because the older ones judge
# rates that the paper does not state. Of these rates, which are our own claims, one fails: fewer than half
# of single models put three pairs side by side. One is undecided: half of them put anticorrelated
# pairs on opposites. The paper's remark that six independent features do not form a hexagon is
# undecided, too: 8 % of models do, and the limit of our criterion is one in ten.

# %%
n = size['models']
rate_of = lambda kind, name: wilson(arrangements[kind].count(name), n)
def difference(a, c):
    "Newcombe's interval of a difference from two Wilson intervals"
    return Estimate(a[0]-c[0], a[0]-c[0]-((a[0]-a[1])**2+(c[2]-c[0])**2)**.5,
                    a[0]-c[0]+((a[2]-a[0])**2+(c[0]-c[1])**2)**.5)

right_angles = rate_of('correlated', 'orthogonal')
opposites = rate_of('anticorrelated', 'opposite')
by_group = {k: wilson(int(v.sum()), v.size) for k,v in groups.items()}
record(scale, {
    'superposition/correlated-best-orthogonal': by_group['correlated at right angles'],
    'superposition/anticorrelated-best-opposite': by_group['anticorrelated opposite'],
    'superposition/side-by-side-best': by_group['three pairs side by side'],
    'superposition/correlated-orthogonal': right_angles,
    'superposition/correlated-more-than-chance':
        difference(right_angles, rate_of('independent', 'orthogonal')),
    'superposition/anticorrelated-opposite': opposites,
    'superposition/anticorrelated-more-than-chance':
        difference(opposites, rate_of('independent', 'opposite')),
    'superposition/anticorrelated-free': table['anticorrelated']['best'],
    'superposition/correlated-side-by-side':
        wilson(count(side_by_side, models6['correlated'][0]), n),
    'superposition/no-hexagon-when-independent':
        wilson(count(hexagon, models6['independent'][0]), n),
    'superposition/independent-hexagon-is-better': float(hexagon_ratio.max()),
})
