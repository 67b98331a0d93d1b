# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Models without superposition: an L1 penalty removes it in a linear hidden layer, at a cost
#
# > Creating Models Without Superposition: in a linear hidden layer an L1 penalty lowers ‖W‖²/m below 1 at a higher loss; with ReLU neurons none of the penalties tried does.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds; cpu: 10 seeds, minutes; gpu: 100 seeds
seed = 0         # everything random follows from it

# %%
#| hide
import numpy as np, pandas as pd, torch
from dataclasses import replace
from moral_sc.foundation.statistics import cluster_bootstrap
from moral_sc.lab.claims import record
from moral_sc.lab.scales import at_scale
from moral_sc.superposition import (ToyConfig, feature_dimensionality, moments, represented, train)
from moral_sc.superposition.fourier_loss import population_loss
from moral_sc.superposition.phase_diagram import held_out_loss
from moral_sc.superposition.plots import plot_curves

# %%
size = at_scale(scale,
    quick=dict(seeds=2, steps=5000, batch_size=1024),
    cpu=dict(seeds=10, steps=5000, batch_size=1024),
    gpu=dict(seeds=100, steps=20_000, batch_size=1024),
)
device = 'cuda' if scale=='gpu' and torch.cuda.is_available() else 'cpu'
size

# %% [markdown]
# ## Creating models without superposition
#
# Superposition makes a network hard to interpret, which is a reason to train models without it.
#
# > An L1 penalty on the hidden activations removes superposition, and costs performance. Models that
# > are sparse in what they activate, such as mixtures of experts, might not pay that price: by
# > loss reduction for each activation, superposition is not the best bargain [@elhage2022].
#
# The paper gives neither the model nor the strength of the penalty. We take the twenty features of
# the basic results at density 0.05, where without a penalty a linear hidden layer of five dimensions
# stores about ten of them, and add $\lambda\sum_k|h_k|$ to the loss. With a linear hidden layer the penalty also rewards aligning
# features with the axes, because among vectors of one length those along an axis have the smallest
# L1 norm. With neurons the axes are special already. We try both.

# %%
penalty = [0.,.003,.01,.03,.1,.2,.3,.5]
importance = [.7**i for i in range(20)]
p = .05
n = 20
m = 5
S = size['seeds']
runs = {}
for hidden in 'linear','relu':
    config = ToyConfig(n, m, S*len(penalty), density=p, importance=importance, hidden=hidden,
                       init=.1 if hidden=='linear' else 'xavier',
                       l1=torch.tensor(penalty).repeat_interleave(S))
    runs[hidden] = train(config, seed=seed, device=device, lr=3e-3, schedule='linear',
                         steps=size['steps'], batch_size=size['batch_size'])
list(runs.values())


# %% [markdown]
# The loss below is the reconstruction loss, without the penalty. For the linear hidden layer it is
# the population loss without sampling noise, and for neurons a mean over held-out inputs.

# %%
def measure(run):
    "Loss, squared norm, stored features and their mean dimensionality [penalty, seed]"
    W = run.W.cpu().double()
    c = replace(run.config, l1=0.)
    params = {k: t.cpu() for k,t in run.params.items()}
    if c.hidden=='linear':
        loss = population_loss(c, W, params['b'])
    else: loss = held_out_loss(c, params, run.instances, period=1).double()
    stored = represented(W)
    share = (feature_dimensionality(W)*stored).sum(-1)/stored.sum(-1).clamp(min=1)
    return {k: v.view(len(penalty), S) for k,v in dict(loss=loss,
        norm=W.square().sum((1,2)), stored=stored.sum(-1).double(), share=share).items()}

results = {hidden: measure(run) for hidden,run in runs.items()}
boot = lambda v: cluster_bootstrap(np.asarray(v), range(len(v)), np.mean, seed=seed)
rows = [dict(hidden=hidden, penalty=l, **{k: str(boot(v[i])) for k,v in result.items()})
        for hidden,result in results.items() for i,l in enumerate(penalty)]
pd.DataFrame(rows).set_index(['hidden','penalty'])

# %%
#| label: fig-norm
#| fig-cap: Squared norm of W over the number of dimensions, against the penalty; points are means over seeds, bars are 95 % bootstrap intervals. At 1 there is one feature of unit length for each dimension.
x = [.001]+penalty[1:]
names = dict(linear='linear hidden layer', relu='neurons')
def lines(quantity, unit=1.):
    return {names[hidden]: [boot(v/unit) for v in result[quantity]]
            for hidden,result in results.items()}
plot_curves(x, lines('norm', m), xtitle='penalty λ (0 shown at 0.001)', ytitle='‖W‖² / m',
            logx=True, levels={'no superposition': 1.}, level_side='left')

# %% [markdown]
# The norm alone could fall because all features shrink. The mean dimensionality of the stored
# features shows whether they still overlap:

# %%
#| label: fig-share
#| fig-cap: Mean dimensionality of the stored features against the penalty; points are means over seeds, bars are 95 % bootstrap intervals.
plot_curves(x, lines('share'), xtitle='penalty λ (0 shown at 0.001)',
            ytitle='mean D of stored features', logx=True, levels={'a dimension each': 1.})

# %% [markdown]
# With neurons none of the penalties tried removes superposition: the squared norm never falls to $m$,
# and from a penalty of 0.1 on, more features are stored, each with a smaller share of a dimension. The
# numbers of stored features:

# %%
pd.DataFrame({names[k]: [str(boot(v)) for v in r['stored']] for k,r in results.items()},
             index=pd.Index(penalty, name='penalty')).add_prefix('features stored: ')

# %%
#| label: fig-cost
#| fig-cap: Reconstruction loss against the penalty; points are means over seeds, bars are 95 % bootstrap intervals.
plot_curves(x, lines('loss'), xtitle='penalty λ (0 shown at 0.001)', ytitle='loss without penalty',
            logx=True, level_side='left',
            levels={'five features, exact': float(moments(p)[1]*sum(importance[m:]))})


# %% [markdown]
# The level in @fig-cost is the loss of storing the five most important features orthogonally and
# exactly. If the curve of the penalty lies above this level, the penalty costs more than removing
# superposition requires, because it also shrinks the features that stay stored.
#
# ## What this does not show
#
# This page does not show that the penalty works in a network that computes. Nor does it test the
# paper's remark on mixtures of experts, which the paper calls preliminary and for which it gives no
# setting to rerun. [Adversarial training](adversarial_examples.ipynb) is the other way to remove
# superposition that the paper tried.
#
# ## Claims
#
# The first criterion concerns the norm alone, for the linear hidden layer. A penalty that only shrinks
# what is stored would also meet it; the dimensionalities of @fig-share distinguish the two. The second
# row, on neurons, was written after a recorded run had shown its outcome.

# %%
def lowest_ratio(result, costly=False):
    "Return the lowest ‖W‖²/m over penalties at which every model stores a feature"
    loss = result['loss'].mean(1)
    eligible = (result['stored']>=1).all(1) & (torch.tensor(penalty)>0)
    if costly: eligible &= loss>loss[0]
    ratios = [boot(v/m) for v,k in zip(result['norm'], eligible.tolist()) if k]
    return min(ratios, key=lambda r: r.value)

record(scale, {
    'superposition/l1-removes-superposition': lowest_ratio(results['linear'], costly=True),
    'superposition/l1-keeps-superposition-in-neurons': lowest_ratio(results['relu']),
})
