# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Computation in superposition: sparse features come to share neurons
#
# > Absolute value model: three claims hold and three fail; at density 0.01, 40 neurons compute 21 features, at a loss above that of dedicated neurons.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds, 20 features; cpu: 100 features, minutes; gpu: many more models
seed = 0         # everything random follows from it

# %%
#| hide
import numpy as np, pandas as pd, torch
from moral_sc.lab.claims import record
from moral_sc.lab.scales import at_scale
from moral_sc.superposition import ToyConfig, train_restarts, moments, reconstruct
from moral_sc.superposition.features import Sampler
from moral_sc.superposition.neurons import (count_complete_pairs, leading_share, neuron_order,
                                            plot_weight_stacks, rescale_neurons)
from moral_sc.superposition.plots import plot_curves

# %%
size = at_scale(scale,
    quick=dict(n=20, m=8, decay=.6, density=[1,.1,.01], restarts=1, small=20, both=[.1],
               train=dict(steps=400, lr=5e-3, schedule='linear', batch_size=256)),
    cpu=dict(n=100, m=40, decay=.8, density=[1,.3,.1,.03,.01,.003,.001],
             restarts=2, small=40, both=[1,.1,.01],
             train=dict(steps=16_000, lr=3e-3, schedule='linear', batch_size=1024)),
    gpu=dict(n=100, m=40, decay=.8, density=[1,.3,.1,.03,.01,.003,.001],
             restarts=20, small=1000, both=[1,.1,.01],
             train=dict(steps=50_000, lr=1e-3, schedule='linear', batch_size=1024)),
)
device = 'cuda' if scale=='gpu' and torch.cuda.is_available() else 'cpu'
n = size['n']
m = size['m']
importance = [size['decay']**i for i in range(n)]
size

# %% [markdown]
# ## Computation in superposition
#
# A model may also compute with the features that it stores. The paper trains models to return the
# absolute value of features between $-1$ and $1$,
#
# $$h = \mathrm{ReLU}(W_1 x), \qquad y = \mathrm{ReLU}(W_2 h + b), \qquad y \approx |x|.$$
#
# No linear model can do this, and two neurons for a feature can: one responds to the positive side
# and one to the negative.
#
# > With neurons enough, each feature gets its pair [@elhage2022].

# %%
options = dict(hidden='relu', tied=False, target='abs', signed=True)
small = train_restarts(ToyConfig(3, 6, **options), size['small'], seed=seed, device=device,
                       steps=2000, lr=5e-3, schedule='linear', batch_size=256)
params = small.best()
W = rescale_neurons(params['W'], params['V'])[0][0]
W = W[:,neuron_order(W)]
pd.DataFrame(W.T.numpy().round(2), columns=[f'feature {i}' for i in range(len(W))]
             ).rename_axis('neuron')

# %% [markdown]
# Each neuron is scaled so that its largest input weight is 1. The output of this model is close to
# the absolute value everywhere. Below are its largest error, and the lowest, the median and the
# highest loss over starts:

# %%
values = torch.linspace(-1, 1, 201)
x = torch.zeros(1, 3*len(values), 3)
for i in range(3): x[0,len(values)*i:len(values)*(i+1),i] = values
y = reconstruct(params['W'], params['b'], x, hidden='relu', V=params['V'])
largest_error = (y-x.abs()).abs().max().item()
losses = np.sort(small.loss[0].numpy())
largest_error, losses[[0,len(losses)//2,-1]].round(6)

# %% [markdown]
# Not every start ends there. The median and the highest of these losses belong to models in which two
# neurons serve the same side of a feature.
#
# ## More features than pairs of neurons
#
# > A hundred features, forty neurons. Dense features are computed one pair of neurons each, twenty of
# > them. Sparse ones are computed in superposition; at 99 % sparsity the most important keep their
# > own neurons while others share [@elhage2022].

# %%
density = size['density']
config = ToyConfig(n, m, len(density), density=torch.tensor(density)[:,None], init=.1,
                   importance=importance, readout='positive', **options)
sweep = train_restarts(config, size['restarts'], seed=seed, device=device, **size['train'])
best = sweep.best()
sweep


# %% [markdown]
# The paper does not describe the training. The start matters here: if $W_2$ is random, half of the
# outputs begin below zero, where the ReLU blocks the gradient, and many never recover. We start at
# $W_2=|W_1|$ and show the other start below.
#
# A feature counts as computed if its error is less than half of what a constant answer would leave,
# $v(p)=p/3-p^2/4$. We compare with two losses that need no training: the loss of constant answers,
# and the loss of a model in which each neuron serves one feature, with two neurons for a feature.

# %%
def feature_errors(params, density, rows=2**16):
    "Squared error of each feature of each model on held-out inputs; [model, feature]"
    c = ToyConfig(n, m, len(density), density=torch.tensor(density)[:,None]).densities
    total = torch.zeros(len(density), n, dtype=torch.float64)
    for s in range(16):
        x = Sampler(c, range(len(density)), rows//16, seed=seed+10**6, signed=True)(s)
        y = reconstruct(params['W'], params['b'], x, hidden='relu', V=params['V'])
        total += (x.abs()-y).square().double().mean(1)/16
    return total

def evaluate(params, density):
    "Features computed, and the loss relative to the best possible without superposition"
    weight = torch.tensor(importance, dtype=torch.float64)
    errors = feature_errors(params, density)
    v = torch.tensor([moments(p)[1] for p in density], dtype=torch.float64)
    loss = (errors*weight).sum(1)
    constant = v*weight.sum()
    dedicated = v*weight[m//2:].sum()
    return pd.DataFrame(dict(density=density, computed=(errors < v[:,None]/2).sum(1), loss=loss,
                             dedicated=dedicated, constant=constant, ratio=loss/dedicated))

table = evaluate(best, density)
computed = table.computed
ratio = table.ratio
table.round(5)

# %%
#| label: fig-computed
#| fig-cap: Held-out loss relative to the best loss of neurons dedicated to single features; below the line, computation happens in superposition.
plot_curves([1/p for p in density], {'trained': ratio.tolist()}, xtitle='sparsity 1/p',
            ytitle='loss over that of dedicated neurons', logx=True, levels={'dedicated': 1.})

# %% [markdown]
# Two results here concern our training and not the paper. Where the ratio lies above 1, dedicated
# neurons would be a better model, and training did not find it. At density 1 training ends far from
# it, with both sides of some features served by no neuron. The random start is worse still:

# %%
random_start = train_restarts(
    ToyConfig(n, m, len(size['both']), density=torch.tensor(size['both'])[:,None],
              importance=importance, **options),
    1, seed=seed, device=device, **size['train'] | dict(steps=size['train']['steps']//4))
evaluate(random_start.best(), size['both'])[['density','computed','ratio']].round(2)

# %% [markdown]
# ## Which neurons are shared
#
# The stacks show the input weights of every neuron, with neurons of the most important features on
# the left.

# %%
#| label: fig-stacks
#| fig-cap: Input weights of all neurons, as stacks; colour is the number of the feature, and purple is the most important.
scaled = [rescale_neurons(w, v)[0] for w,v in zip(best['W'], best['V'])]
shown = [i for i,p in enumerate(density) if p in (1,.1,.03,.01,.001)]
plot_weight_stacks([scaled[i] for i in shown], [f'density {density[i]:g}' for i in shown],
                   height=150*len(shown)+60)

# %% [markdown]
# A neuron serves essentially one feature if that feature has more than four fifths of its weight.
# The tables have the numbers of both kinds of neuron at each density, and the mean rank of the
# feature they lead with; 0 is the most important. The first table uses absolute weights, as the
# criterion does. The second uses their squares, because a sum of absolute weights also counts the
# hundred small weights that the stacks leave out.

# %%
lead = torch.stack([w.abs().argmax(0) for w in scaled]).double()
def mean_rank(mask):
    return torch.tensor([l[k].mean() if k.any() else torch.nan for l,k in zip(lead, mask)])

def count_kinds(power):
    mono = torch.stack([leading_share(w, power) for w in scaled])>.8
    return pd.DataFrame(dict(density=density, monosemantic=mono.sum(1), polysemantic=(~mono).sum(1),
                             rank_mono=mean_rank(mono), rank_poly=mean_rank(~mono)))
count_kinds(1).round(3)

# %%
count_kinds(2).round(3)

# %% [markdown]
# Where both kinds exist, the monosemantic neurons lead with the more important features.
#
# ## What this does not show
#
# It does not show that the hidden layer could not do better, because the loss of a trained model is
# an upper bound. Nor does it show that features share neurons in the same way when the inputs
# themselves are in superposition, as they are inside a real network.
#
# ## Claims
#
# Criteria were fixed before any of these models was trained. A first trial with the random start
# failed four of the five rows; the start was changed then, the criteria were not. A row that fails
# where the ratio lies above 1 shows that our training fell short, not that the paper is wrong. The
# last row was added after the first recorded run had shown the effect of sums of absolute weights.

# %%
sparse = density.index(.01)
def rank_difference(power):
    row = count_kinds(power).iloc[sparse]
    return float(np.nan_to_num(row.rank_poly-row.rank_mono, nan=-1.))

record(scale, {
    'superposition/abs-takes-two-neurons': float(count_complete_pairs(W)),
    'superposition/dense-abs-keeps-half': float(computed[density.index(1)]),
    'superposition/sparse-abs-computes-more': float(computed[sparse]),
    'superposition/abs-beats-monosemantic': float(ratio[sparse]),
    'superposition/important-neurons-monosemantic': rank_difference(1),
    'superposition/important-neurons-monosemantic-by-square': rank_difference(2),
})
