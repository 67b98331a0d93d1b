# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Neurons share features in steps
#
# > Superposition in a privileged basis: a ReLU on the hidden layer turns directions into neurons.
# > The last cell says at which scale, and in how many minutes, the outputs were recorded.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds; cpu: 300 models a density, minutes; gpu: 1000, as in the paper
seed = 0         # everything random follows from it

# %%
#| hide
import numpy as np, pandas as pd, torch
from time import perf_counter
from moral_sc.foundation.statistics import cluster_bootstrap
from moral_sc.lab.claims import record
from moral_sc.lab.scales import at_scale
from moral_sc.superposition import ToyConfig, train_restarts, train
from moral_sc.superposition.features import Sampler
from moral_sc.superposition.neurons import excited_neurons, count_neurons, leading_share, plot_weight_stacks
from moral_sc.superposition.plots import plot_curves
began = perf_counter()

# %%
size = at_scale(scale,
    quick=dict(models=20, steps=800, extra=4),
    cpu=dict(models=300, steps=3000, extra=20),
    gpu=dict(models=1000, steps=10_000, extra=100),
)
device = 'cuda' if scale=='gpu' and torch.cuda.is_available() else 'cpu'
size

# %% [markdown]
# So far any rotation of the hidden space was as good as another. With a ReLU there,
#
# $$h = \mathrm{ReLU}(Wx), \qquad x' = \mathrm{ReLU}(W^\top h + b),$$
#
# it is not, and one can ask what a single unit does.
#
# > Ten features, five neurons. Dense features get a neuron each, and five are dropped. As features
# > grow sparser, neurons come to serve several: first three features in two neurons, then five in
# > three, six in four, eight in five. At 96 % sparsity each feature is a pair of neurons, and there
# > are exactly ten pairs [@elhage2022].
#
# The paper shows the best of a thousand models at each density. There is no closed form for this
# model's loss; ours are ranked on 16,384 inputs that none of them saw, the same for all. The
# paper does not say how it trained. We take a learning rate of 0.005 that falls to zero, 1024
# samples a step.

# %%
density = [.6,.3,.15,.12,.07,.04]
importance = [.75**i for i in range(10)]
config = ToyConfig(10, 5, len(density), density=torch.tensor(density)[:,None],
                   importance=importance, hidden='relu')
sweep = train_restarts(config, size['models'], seed=seed, device=device, steps=size['steps'], lr=5e-3,
                schedule='linear')
best = sweep.best()['W']
sweep

# %% [markdown]
# A feature excites the neurons to which its weight exceeds 0.3. This is what the best model does at
# each density, beside the paper's:

# %%
paper = [(5,0,0),(3,2,3),(2,3,5),(1,4,6),(0,5,8),(0,5,10)] # dedicated, shared, features in shared
found = [count_neurons(w) for w in best]
table = pd.DataFrame(found, index=pd.Index(density, name='density'))
table['paper'] = [f'{a} dedicated, {c} in {b}' if b else f'{a} dedicated' for a,b,c in paper]
table

# %%
#| label: fig-neurons
#| fig-cap: Input weights of the five neurons of the best model at each density, as stacks; a neuron with one piece serves one feature
plot_weight_stacks(list(best), [f'density {p:g}' for p in density], height=880)

# %% [markdown]
# At the last density the code is combinatorial: a feature is a set of neurons. Two features may
# share a neuron, but not both of theirs.

# %%
codes = [tuple(torch.where(c)[0].tolist()) for c in excited_neurons(best[-1])]
pairs = len({c for c in codes if len(c)==2})
pd.DataFrame(dict(feature=range(10), neurons=[str(c) for c in codes])).T

# %% [markdown]
# How much does "best of" matter? This is the lowest loss among the first $k$ models, over the lowest
# of all. Where the curve has not yet settled, more models might show another arrangement.

# %%
#| label: fig-restarts
#| fig-cap: Lowest held-out loss among the first k models, relative to the lowest of all
k = np.unique(np.geomspace(1, size['models'], 12).astype(int))
running = sweep.loss.numpy()
lines = {f'p = {p:g}': [running[d,:j].min()/running[d].min() for j in k]
         for d,p in enumerate(density)}
plot_curves(k, lines, xtitle='models', ytitle='lowest loss, relative', logx=True)

# %%
gap = np.sort(running, 1)
ties = [int((g <= g[0]*1.002).sum()) for g in gap]
pd.DataFrame(dict(density=density, best=gap[:,0], median=np.median(gap, 1), within_2_permille=ties)).round(5)

# %% [markdown]
# ## Does the basis matter?
#
# Without the hidden ReLU, nothing should align with the units. The leading share is 1 for a
# neuron with one feature; the linear hidden layer mixes all of its features in every unit even
# where it stores five orthogonal ones.

# %%
plain = train(ToyConfig(10, 5, size['extra'], density=.6, importance=importance), seed=seed,
              device=device, steps=size['steps'], lr=5e-3, schedule='linear')
share = dict(relu=leading_share(best[0]).mean().item(), linear=leading_share(plain.W.cpu()).mean().item())
assert share['relu'] > share['linear']
share

# %% [markdown]
# ## A bias undoes it
#
# > The privilege is fragile: give the hidden layer a bias, and the model moves all its activations
# > to where the ReLU does nothing [@elhage2022].

# %%
biased = train(ToyConfig(10, 5, size['extra'], density=.1, importance=importance, hidden='relu',
                         hidden_bias=True), seed=seed, device=device, steps=2*size['steps'], lr=5e-3,
               schedule='linear')
x = Sampler(biased.config.densities, range(size['extra']), 4096, seed=seed+10**6)(0)
pre = torch.bmm(x, biased.W.cpu()) + biased.c.cpu()[:,None]
positive = (pre>0).double().mean((1,2))
share = leading_share(biased.W.cpu()).mean(-1)
pd.DataFrame(dict(positive=positive, bias=biased.c.cpu().mean(-1), leading_share=share)).describe().loc[
    ['mean','min','max']].round(3)

# %% [markdown]
# What this does not show: that the best of these models is the best there is, or what happens when
# features outnumber the pairs of neurons. Most trained models are not the best one, and their
# arrangements are less regular.
#
# ## Claims
#
# The criteria were written after a pilot of 60 models a density and before the recorded run. The
# first row was at first to be judged at scale `quick`; it failed there with 20 models of 800 steps,
# and is judged from `cpu` on since.

# %%
same = [(f['dedicated'],f['shared'],f['in_shared'])==p for f,p in zip(found, paper)]
same[-1] = same[-1] and pairs==10
boot = lambda v: cluster_bootstrap(np.asarray(v), range(len(v)), np.mean, seed=seed)
record(scale, {
    'superposition/dense-neurons-are-monosemantic': float(found[0]['dedicated']),
    'superposition/codes-by-density': float(sum(same)),
    'superposition/hidden-bias-undoes-the-basis': boot(positive),
})

# %%
f'{scale}: {(perf_counter()-began)/60:.1f} minutes on {torch.get_num_threads()} thread(s), {device}'
