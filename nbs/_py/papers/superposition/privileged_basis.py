# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Privileged basis: neurons share features in steps
#
# > Superposition in a Privileged Basis: the best models have the paper's arrangements; ten pairs of neurons are the best code below density 0.034 (96.6 % sparsity), and the paper shows them at 0.04.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds; cpu: 80 models each, 600 at the last density; gpu: 1000 each
seed = 0         # everything random follows from it

# %%
#| hide
import numpy as np, pandas as pd, torch
from moral_sc.foundation.statistics import cluster_bootstrap, t_interval
from moral_sc.lab.claims import record
from moral_sc.lab.scales import at_scale
from moral_sc.superposition import ToyConfig, train_restarts, train
from moral_sc.superposition.features import Sampler
from moral_sc.superposition.neurons import (count_neurons, excited_neurons, leading_share,
                                            plot_weight_stacks)
from moral_sc.superposition.plots import plot_curves
from moral_sc.superposition.quadrature import (minimise_quadrature, quadrature_loss,
                                               support_points)

# %%
size = at_scale(scale,
    quick=dict(models=16, last=16, extra=4, many={10: 3000, 320: 3000, 1280: 60}, polish=0),
    cpu=dict(models=80, last=600, extra=10, polish=1,
             many={10: 3000, 320: 3000, 1280: 2000}),
    gpu=dict(models=1000, last=1000, extra=100, polish=10,
             many={n: 10_000 for n in (10,40,160,320,640,1280)}),
)
device = 'cuda' if scale=='gpu' and torch.cuda.is_available() else 'cpu'
size

# %% [markdown]
# ## Superposition in a privileged basis
#
# In models with a linear hidden layer every rotation of the hidden space has the same loss. With a ReLU
# on the hidden layer,
#
# $$h = \mathrm{ReLU}(Wx), \qquad x' = \mathrm{ReLU}(W^\top h + b),$$
#
# the axes of the hidden space are special, and we can ask which features a single unit responds to.
#
# > Ten features, five neurons. Dense features get a neuron each, and five are dropped. As features
# > grow sparser, neurons come to serve several: first three features in two neurons, then five in
# > three, six in four, eight in five. At 96 % sparsity each feature is a pair of neurons, and there
# > are exactly ten pairs [@elhage2022].
#
# The paper shows the best of a thousand models at each density. There is no closed form for the loss
# of this model, so ours are at first ranked by the loss on 16,384 held-out inputs, the same for all.
# The paper does not describe the training. We take a learning rate of 0.005 that falls to zero, 3000
# steps and 1024 samples a step.

# %%
density = [.6,.3,.15,.12,.07,.04]
importance = [.75**i for i in range(10)]
brisk = dict(steps=3000, lr=5e-3, schedule='linear', seed=seed, device=device)
def best_of(density, models):
    "Train models at each density and rank them"
    return train_restarts(ToyConfig(10, 5, len(density), density=torch.tensor(density)[:,None],
                                    importance=importance, hidden='relu'), models, **brisk)

sweeps = [best_of(density[:-1], size['models']), best_of(density[-1:], size['last'])]
best = torch.cat([s.best()['W'] for s in sweeps])
sweeps

# %% [markdown]
# A feature excites the neurons to which its weight exceeds 0.3. The table has the arrangement of the
# best model at each density, beside the paper's:

# %%
paper = {.6: (5,0,0), .3: (3,2,3), .15: (2,3,5), .12: (1,4,6), .07: (0,5,8), .04: (0,5,10)}
def describe(dedicated, shared, features): # features in shared neurons
    return f'{dedicated} dedicated' + (f', {features} in {shared}' if shared else '')

arrangements = [count_neurons(w) for w in best]
table = pd.DataFrame(arrangements, index=pd.Index(density, name='density'))
table['paper'] = [describe(*paper[p]) if p in paper else '' for p in density]
table

# %%
#| label: fig-neurons
#| fig-cap: Input weights of the five neurons of the best model at each density, as stacks; a neuron with one piece serves one feature.
plot_weight_stacks(list(best), [f'density {p:g}' for p in density], height=880)

# %% [markdown]
# How much does it matter that the best of many models is taken? @fig-restarts shows the lowest loss
# among the first $k$ models, divided by the lowest of all. If a curve is still falling at its end, more
# models might show another arrangement.

# %%
#| label: fig-restarts
#| fig-cap: Lowest held-out loss among the first k models, relative to the lowest of all, at each density.
losses = [row for s in sweeps for row in s.loss.numpy()]
k = np.unique(np.geomspace(1, size['models'], 12).astype(int))
lines = {f'p = {p:g}': [row[:j].min()/row.min() for j in k] for p,row in zip(density, losses)}
plot_curves(k, lines, xtitle='models', ytitle='lowest loss, relative', logx=True, legend=True)

# %%
ranked = [np.sort(row) for row in losses]
pd.DataFrame(dict(density=density, best=[r[0] for r in ranked],
                  median=[np.median(r) for r in ranked],
                  within_2_permille=[int((r <= r[0]*1.002).sum()) for r in ranked])).round(5)


# %% [markdown]
# ## Ten pairs of neurons
#
# At the last density the code is combinatorial: a feature is a set of neurons. In the paper's
# arrangement each feature is a pair, and all ten pairs are used. Among our models the best store either
# ten features as pairs or nine features by sets of one to four neurons:

# %%
def code(W): return [''.join(map(str, torch.where(c)[0].tolist())) for c in excited_neurons(W)]
def is_pairs(W): return len({c for c in code(W) if len(c)==2})==10

last = sweeps[1]
top = [last.best(i) for i in range(8)]
pd.DataFrame(dict(held_out=last.loss[0,last.order[0,:8]],
                  ten_pairs=[is_pairs(t['W'][0]) for t in top],
                  code=[' '.join(c or '-' for c in code(t['W'][0])) for t in top])).round(5)

# %% [markdown]
# The best of both kinds differ by about 2 % on the held-out inputs, whose loss has a larger sampling
# error than that. [Quadrature](../../superposition/36_quadrature.ipynb) over all sets of up to four
# active features has none. We start L-BFGS at both codes, with a weight of 0.8 to the neurons of a
# feature and -0.2 to the others, at several densities:

# %%
codes = {'ten pairs': '34 04 03 12 01 14 24 13 02 23'.split(),
         'nine features': '03 123 02 234 01 04 134 124 14'.split()+['']}
def start(code):
    return torch.tensor([[.8 if str(k) in c else -.2 for k in range(5)] for c in code])

p = np.array([.045,.035,.028,.02])
def minimise(code, q):
    return minimise_quadrature(start(code), -.1*torch.ones(10), *support_points(q, 10), importance)

optima = {name: [minimise(c, q) for q in p] for name,c in codes.items()}
assert all(is_pairs(W) for W,_,_ in optima['ten pairs'])
assert not any(is_pairs(W) for W,_,_ in optima['nine features'])
loss = {name: np.array([o[2] for o in fits]) for name,fits in optima.items()}
ratio = loss['nine features']/loss['ten pairs']
take_over = float(np.exp(np.interp(0, np.log(ratio), np.log(p))))
pd.DataFrame(dict(density=p) | loss | dict(nine_over_ten=ratio)).round(6), round(take_over, 4)

# %% [markdown]
# Ten pairs are the better code below the density at which the ratio is one, 0.034, a little below the
# 0.04 of the paper. To look for a third code, we take the trained models with the lowest loss by
# quadrature, minimise it further at two densities, and list loss and code:

# %%
grid = {q: support_points(q, 10) for q in (.04,.02)}
def by_quadrature(W, b, q):
    return quadrature_loss(W.double(), b.double(), *grid[q], importance).item()

models = list(zip(last.params['W'][0], last.params['b'][0]))
order = np.argsort([by_quadrature(W, b, .04) for W,b in models])
kinds = np.array([is_pairs(W) for W,_ in models])[order]
chosen = [order[kinds==ten][:size['polish']] for ten in (True,False)]
chosen = np.concatenate(chosen)
polished = {q: [minimise_quadrature(*models[i], *grid[q], importance) for i in chosen]
            for q in grid} if size['polish'] else {}
pd.DataFrame([(q, l, is_pairs(W), ' '.join(c or '-' for c in code(W)))
              for q,fits in polished.items() for W,_,l in fits],
             columns=['density','loss','ten_pairs','code']).round(6)

# %% [markdown]
# ## Comparison with a linear hidden layer
#
# Without the hidden ReLU, features should not align with the hidden units. The leading share is 1 for a
# neuron with one feature. The linear hidden layer mixes all of its features in every unit, even where
# it stores five orthogonal ones.

# %%
plain = train(ToyConfig(10, 5, size['extra'], density=.6, importance=importance), **brisk)
share = dict(relu=leading_share(best[0]).mean().item(),
             linear=leading_share(plain.W.cpu()).mean().item())
assert share['relu'] > share['linear']
share

# %% [markdown]
# ## Hidden bias
#
# > The privilege is fragile: give the hidden layer a bias, and the model moves all its activations
# > to where the ReLU does nothing [@elhage2022].
#
# We train models with a hidden bias. The table has the share of pre-activations that are positive,
# the mean bias, and the leading share, over models.

# %%
biased = train(ToyConfig(10, 5, size['extra'], density=.1, importance=importance, hidden='relu',
                         hidden_bias=True), **brisk | dict(steps=6000))
def positive_share(run):
    "Return the share of positive hidden pre-activations of each model, and mean over spread"
    models = len(run.W)
    x = Sampler(run.config.densities, range(models), 2048, seed=seed+10**6)(0)
    h = torch.bmm(x, run.W.cpu())
    if run.c is not None: h = h + run.c.cpu()[:,None]
    return (h>0).double().mean((1,2)), (h.mean(1)/h.std(1)).mean(-1)

positive,_ = positive_share(biased)
share = leading_share(biased.W.cpu()).mean(-1)
pd.DataFrame(dict(positive=positive, bias=biased.c.cpu().mean(-1), leading_share=share)
             ).describe().loc[['mean','min','max']].round(3)

# %% [markdown]
# ## Enough features simulate a bias
#
# > Without a hidden bias, but with enough features, the model simulates one by averaging over many
# > features [@elhage2022].
#
# We train models of equal features at density 0.1, without hidden bias, with more and more features
# in five neurons. The pre-activation of a neuron then is a sum over many features. @fig-many has the
# share of pre-activations that are positive.

# %%
simulated = {}
for n,steps in size['many'].items():
    run = train(ToyConfig(n, 5, 3, density=.1, hidden='relu'), **brisk | dict(steps=steps))
    simulated[n] = *positive_share(run), leading_share(run.W.cpu()).mean(-1)
pd.DataFrame({n: [v.mean().item() for v in values] for n,values in simulated.items()},
             index=['positive','mean_over_spread','leading_share']).T.round(3)

# %%
#| label: fig-many
#| fig-cap: Share of hidden pre-activations above zero against the number of features in five neurons without hidden bias; means over three trainings, bars are 95 % Student intervals.
plot_curves(list(simulated), {'equal features': [t_interval(s[0].numpy())
                                                 for s in simulated.values()]},
            'features', 'share of pre-activations above 0', logx=True, levels={'linear': 1})


# %% [markdown]
# The mean pre-activation of a neuron grows relative to its standard deviation over inputs, so that the
# neuron mostly works in its linear range. The features together thus act as a bias.

# %% [markdown]
# ## What this does not show
#
# This page does not show that the best of these models is the best possible one, or what happens when
# features outnumber the pairs of neurons. Most trained models are not the best one, and their
# arrangements are less regular.
#
# ## Claims
#
# The first criteria were written after a pilot of 60 models a density, in
# `data/claims/superposition_computation.toml`; those on the two codes and on many features, in
# `data/claims/superposition_privileged.toml`, say what was known before. Whether the best model of
# all has ten pairs at density 0.04 depends on which models happen to be trained, and on the
# sampling error of the ranking. The interval of that row draws trainings, and it is undecided. The
# row with 320 features is also ours; with 1280 the bias is simulated.

# %%
def in_paper(W, p):
    a = count_neurons(W)
    same = (a['dedicated'],a['shared'],a['in_shared'])==paper[p]
    return same and (p!=.04 or is_pairs(W))

matches = [np.array([in_paper(W, p) for W in row])
           for p,row in zip(density, sweeps[0].params['W'])]
matches.append(np.array([in_paper(W, .04) for W in last.params['W'][0]]))
def arrangements_of_paper(draw):
    "Count the densities at which the best of the drawn models has the paper's arrangement"
    draw = draw.astype(int)
    picks = [draw[draw<len(row)] for row in losses]
    return sum(m[i[row[i].argmin()]] for m,row,i in zip(matches, losses, picks))

boot = lambda v, f=np.mean: cluster_bootstrap(np.asarray(v), range(len(v)), f, n=500, seed=seed)
other_codes = [l for W,_,l in polished.get(.02, []) if not is_pairs(W)]
pair_codes = [l for W,_,l in polished.get(.02, []) if is_pairs(W)]
lowest = [min([l, *more]) for l,more in ((loss['nine features'][-1],other_codes),
                                        (loss['ten pairs'][-1],pair_codes))]
first,most = (simulated[n][0].numpy() for n in (10,320))
record(scale, {
    'superposition/dense-neurons-are-monosemantic': float(arrangements[0]['dedicated']),
    'superposition/codes-by-density': boot(np.arange(size['last']), arrangements_of_paper),
    'superposition/sparse-features-are-pairs': lowest[0]/lowest[1] - 1,
    'superposition/pairs-take-over': take_over,
    'superposition/hidden-bias-undoes-the-basis': boot(positive),
    'superposition/many-features-simulate-a-bias': t_interval(most),
    'superposition/enough-features-simulate-a-bias': t_interval(simulated[1280][0].numpy()),
    'superposition/simulated-bias-grows': t_interval(most-first),
})
