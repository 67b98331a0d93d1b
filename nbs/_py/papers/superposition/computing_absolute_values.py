# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Neurons that compute more than they have room for
#
# > Computation in superposition: the absolute value of many sparse features. The last cell says at
# > which scale, and in how many minutes, the outputs on this page were recorded.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds, 20 features; cpu: 100 features, minutes; gpu: many more models
seed = 0         # everything random follows from it

# %%
#| hide
import numpy as np, pandas as pd, torch
from time import perf_counter
from moral_sc.lab.claims import record
from moral_sc.lab.scales import at_scale
from moral_sc.superposition import ToyConfig, train_restarts, moments, reconstruct
from moral_sc.superposition.features import Sampler
from moral_sc.superposition.neurons import leading_share, neuron_order, plot_weight_stacks, rescale_neurons
from moral_sc.superposition.plots import plot_curves
from moral_sc.superposition.theory import abs_baselines
began = perf_counter()

# %%
size = at_scale(scale,
    quick=dict(n=20, m=8, decay=.6, density=[1,.1,.01], restarts=1, small=20, both=[.1],
               train=dict(steps=400, lr=5e-3, schedule='linear', batch_size=256)),
    cpu=dict(n=100, m=40, decay=.8, density=[1,.3,.1,.03,.01,.003,.001], restarts=2, small=40, both=[1,.1,.01],
             train=dict(steps=16_000, lr=3e-3, schedule='linear', batch_size=1024)),
    gpu=dict(n=100, m=40, decay=.8, density=[1,.3,.1,.03,.01,.003,.001], restarts=20, small=1000, both=[1,.1,.01],
             train=dict(steps=50_000, lr=1e-3, schedule='linear', batch_size=1024)),
)
device = 'cuda' if scale=='gpu' and torch.cuda.is_available() else 'cpu'
n = size['n']
m = size['m']
importance = [size['decay']**i for i in range(size['n'])]
size

# %% [markdown]
# Storing features is one thing, doing something with them another. The paper asks for the absolute
# value of features between $-1$ and $1$,
#
# $$h = \mathrm{ReLU}(W_1 x), \qquad y = \mathrm{ReLU}(W_2 h + b), \qquad y \approx |x|,$$
#
# which nothing linear can give, and which two neurons can: one that answers to the positive side
# and one to the negative.
#
# > With neurons enough, each feature gets its pair [@elhage2022].

# %%
kw = dict(hidden='relu', tied=False, target='abs', signed=True)
three = train_restarts(ToyConfig(3, 6, **kw), size['small'], seed=seed, device=device, steps=2000, lr=5e-3,
                schedule='linear', batch_size=256)
p = three.best()
W,V = (t[0] for t in rescale_neurons(p['W'], p['V']))
W = W[:,neuron_order(W)]
pd.DataFrame(W.T.numpy().round(2), columns=[f'feature {i}' for i in range(3)]).rename_axis('neuron')

# %% [markdown]
# Each neuron is scaled so that its largest input weight is 1. What this model answers is close to
# the absolute value everywhere:

# %%
at = torch.linspace(-1, 1, 201)
x = torch.zeros(1, 603, 3)
for i in range(3): x[0,201*i:201*(i+1),i] = at
y = reconstruct(p['W'], p['b'], x, hidden='relu', V=p['V'])
worst = (y-x.abs()).abs().max().item()
found = np.sort(three.loss[0].numpy())
worst, found[[0,len(found)//2,-1]].round(6)

# %% [markdown]
# Not every start gets there: the median and the worst of the losses above belong to models in
# which two neurons serve the same side of a feature.
#
# ## More features than pairs
#
# > A hundred features, forty neurons. Dense features are computed one pair of neurons each, twenty of
# > them. Sparse ones are computed in superposition; at 99 % sparsity the most important keep their
# > own neurons while others share [@elhage2022].

# %%
density = size['density']
config = ToyConfig(n, m, len(density), density=torch.tensor(density)[:,None], init=.1,
                   importance=importance, readout='positive', **kw)
sweep = train_restarts(config, size['restarts'], seed=seed, device=device, **size['train'])
best = sweep.best()
sweep


# %% [markdown]
# The paper does not say how it trained. Here the start decides: if $W_2$ is random, half of the
# outputs begin below zero, where the ReLU hides them from the gradient, and many never wake. We
# start at $W_2=|W_1|$ and show the other start below.
#
# A feature counts as computed if its error is less than half of what a constant answer would leave,
# $v(p)=p/3-p^2/4$. Two losses to compare with need no training: that of constant answers, and
# that of a model whose neurons serve one feature each, two for a feature.

# %%
def errors(params, density, rows=2**16):
    "Squared error of each feature of each model, over fresh inputs; [model, feature]"
    c = ToyConfig(n, m, len(density), density=torch.tensor(density)[:,None]).densities
    total = torch.zeros(len(density), n, dtype=torch.float64)
    for s in range(16):
        x = Sampler(c, range(len(density)), rows//16, seed=seed+10**6, signed=True)(s)
        y = reconstruct(params['W'], params['b'], x, hidden='relu', V=params['V'])
        total += (x.abs()-y).square().double().mean(1)/16
    return total

imp = torch.tensor(importance, dtype=torch.float64)
def judged(params, density):
    "Features computed, and the loss over what one could have without superposition"
    err = errors(params, density)
    v = torch.tensor([moments(p)[1] for p in density], dtype=torch.float64)
    loss = (err*imp).sum(1)
    constant = v*imp.sum()
    pairs = v*imp[m//2:].sum()
    return pd.DataFrame(dict(density=density, computed=(err < v[:,None]/2).sum(1), loss=loss,
                             dedicated=pairs, constant=constant, ratio=loss/pairs))

table = judged(best, density)
computed = table.computed
ratio = table.ratio
table.round(5)

# %%
#| label: fig-computed
#| fig-cap: Held-out loss relative to the best that neurons dedicated to single features could reach; below the line, computation happens in superposition
x = [1/p for p in density]
plot_curves(x, {'trained': ratio.tolist()}, xtitle='sparsity 1/p',
            ytitle='loss over that of dedicated neurons', logx=True, levels={'dedicated': 1.})

# %% [markdown]
# Two things here are about our training and not about the paper. Where the ratio lies above 1, a
# better model is known, that of dedicated neurons, and training did not find it; at density 1 it
# stops far from it, with both sides of some features served by no neuron. And the random start
# does worse still:

# %%
plain = train_restarts(ToyConfig(n, m, len(size['both']), density=torch.tensor(size['both'])[:,None],
                          importance=importance, **kw), 1, seed=seed, device=device,
                **size['train'] | dict(steps=size['train']['steps']//4))
judged(plain.best(), size['both'])[['density','computed','ratio']].round(2)

# %% [markdown]
# ## Who shares
#
# The stacks show every neuron's input weights, those of the most important features on the left.

# %%
#| label: fig-stacks
#| fig-cap: Input weights of all neurons, as stacks; colour is the number of the feature, purple the most important
scaled = [rescale_neurons(w, u)[0] for w,u in zip(best['W'], best['V'])]
shown = [i for i,p in enumerate(density) if p in (1,.1,.03,.01,.001)]
plot_weight_stacks([scaled[i] for i in shown], [f'density {density[i]:g}' for i in shown],
            height=150*len(shown)+60)

# %% [markdown]
# A neuron whose leading feature has more than four fifths of its weight serves, in effect, that
# one. Here are the two kinds at every density, and the mean rank of the feature they lead with;
# 0 is the most important. Above, by the size of weights, as the criterion has it; below, by their
# squares, because a sum of sizes also counts the hundred weights that the stacks leave out.

# %%
lead = torch.stack([w.abs().argmax(0) for w in scaled]).double()
mean = lambda keep: torch.tensor([l[k].mean() if k.any() else torch.nan for l,k in zip(lead, keep)])
def who(power):
    one = torch.stack([leading_share(w, power) for w in scaled])>.8
    return pd.DataFrame(dict(density=density, monosemantic=one.sum(1), polysemantic=(~one).sum(1),
                             rank_mono=mean(one), rank_poly=mean(~one)))
who(1).round(3)

# %%
who(2).round(3)


# %% [markdown]
# Where both kinds exist, the monosemantic neurons lead with the more important features.
#
# What this does not show: that the hidden layer could not do better (the loss of a trained model is
# an upper bound), or that features share neurons in the same way when the inputs themselves
# are in superposition, as they are inside a real network.
#
# ## Claims
#
# Criteria were fixed before any of these models was trained. A first trial with the random start
# failed four of the five rows; the start was changed then, the criteria were not. A row that fails
# where the ratio lies above 1 says that our training fell short, not that the paper is wrong. The
# last row was added after the first recorded run had shown what sums of sizes do.

# %%
def pairs_complete(W, V):
    "Features with exactly one neuron for each sign"
    mine = (leading_share(W)>.9)*W.abs().argmax(0).add(1) - 1
    sign = W.sum(0).sign()
    both = lambda i: sorted(sign[mine==i].tolist())==[-1.,1.]
    return sum(both(i) for i in range(len(W)))

at = {p: i for i,p in enumerate(density)}
sparse = at[.01]
dense = at[1]
def apart(power):
    w = who(power)
    return float(np.nan_to_num(w.rank_poly[sparse]-w.rank_mono[sparse], nan=-1.))
record(scale, {
    'superposition/abs-takes-two-neurons': float(pairs_complete(W, V)),
    'superposition/dense-abs-keeps-half': float(computed[dense]),
    'superposition/sparse-abs-computes-more': float(computed[sparse]),
    'superposition/abs-beats-monosemantic': float(ratio[sparse]),
    'superposition/important-neurons-monosemantic':
        apart(1),
    'superposition/important-neurons-monosemantic-by-square': apart(2),
})

# %%
f'{scale}: {(perf_counter()-began)/60:.1f} minutes on {torch.get_num_threads()} thread(s), {device}'
