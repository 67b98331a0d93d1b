# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Adversarial examples: vulnerability follows features per dimension
#
# > Relationship to Adversarial Robustness: with 40 features in 10 dimensions vulnerability rises 2.99-fold for one attack direction for all inputs and 30-fold for one direction for each input; at most 6 % of the harmed inputs have no gradient.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds; cpu: five seeds, three of 400 features; gpu: more seeds
seed = 0         # everything random follows from it

# %%
#| hide
import numpy as np, torch, pandas as pd
from scipy.stats import spearmanr
from moral_sc.foundation.statistics import Estimate, t_interval
from moral_sc.lab.claims import record
from moral_sc.lab.scales import at_scale
from moral_sc.superposition import ToyConfig, train
from moral_sc.superposition.adversarial import (analytic_attack, attack_directions,
                                            gradient_attack, mean_input_norm, vulnerability)
from moral_sc.superposition.features import Sampler
from moral_sc.superposition.plots import plot_curves
from moral_sc.superposition.theory import attack_error
from moral_sc.superposition.geometry import interference, represented
from moral_sc.superposition.training import objective

# %%
size = at_scale(scale,
    quick=dict(seeds=3, batch=2048, hard=3, attacks=[0,.1,.8,.9,.95,1], sparser=[.8,1],
               other=[], large=(60,10,2)),
    cpu=dict(seeds=5, batch=2048, hard=4, other=[(20,10)], large=(400,30,3),
             attacks=[0,.1,.4,.7,.8,.85,.9,.95,1], sparser=[.8,1]),
    gpu=dict(seeds=20, batch=4096, hard=10, other=[(20,10),(60,10),(40,5)], large=(400,30,10),
             attacks=[0,.05,.1,.2,.4,.6,.7,.8,.85,.9,.95,1,1.1], sparser=[.6,.8,.9,1,1.1]),
)
device = 'cuda' if scale=='gpu' and torch.cuda.is_available() else 'cpu'
training = dict(steps=4000, batch_size=1024, lr=.01, schedule='cosine')
size

# %% [markdown]
# ## Relationship to adversarial robustness
#
# The output of a feature that shares its direction also contains a little of the features that it
# shares it with. On ordinary inputs this interference hardly matters, but an adversary can change all
# of the other features at once.
#
# > L2 attacks of a tenth of the average input length, along the best direction for each
# > feature. Vulnerability rises more than threefold as superposition forms, and closely
# > follows the number of features per dimension. Attacks by gradient were hard where the
# > ReLUs are silent 99 % of the time. Adversarial training reduces superposition, but
# > removing it takes attacks of 80 % of the length of the input [@elhage2022].
#
# The paper gives neither the sizes nor the training settings. We take forty equal features in ten
# dimensions at ten densities, and try other sizes below.
# [Vulnerability](../../superposition/67_adversarial.ipynb) is the loss that the attack adds, divided
# by what the same attack adds to a model without superposition.
#
# Of the attacks along each feature's best direction the paper takes "the one which most harms model
# performance". This can be read in two ways: the *one direction* that adds most to the loss over all
# inputs, or for *each input* with an active feature the direction that harms it most. Our criteria were
# registered for one direction. After a first quick run they were changed to each input. The registered
# rows have been restored, and both readings are reported.

# %%
density = [1,.7,.5,.35,.25,.15,.1,.06,.03,.01]
def train_models(n, m, seeds, density=density, batch=size['batch'], **changes):
    "Models, held-out inputs, and features per dimension [density, seed]"
    c = ToyConfig(n, m, len(density)*seeds, init=.1,
                  density=torch.tensor(density).repeat_interleave(seeds)[:,None])
    run = train(c, seed=seed, device=device, **training | changes)
    x = Sampler(c.densities, range(c.n_instances), batch, seed=seed+2**40)(0)
    W = run.W.cpu()
    b = run.b.cpu()
    return W, b, x, (W.square().sum((1,2))/m).view(-1, seeds).numpy()

W,b,x,per_dimension = train_models(40, 10, size['seeds'])
def by_seed(v, seeds=size['seeds']): return v.view(-1, seeds).numpy()
harm = {'each input': by_seed(vulnerability(W, b, x)),
        'one direction': by_seed(vulnerability(W, b, x, shared=True))}

# %%
#| label: fig-curves
#| fig-cap: Vulnerability to attacks of a tenth of the mean input length, in two readings of the attack, relative to a model without superposition, and features per dimension, for forty features in ten dimensions; points are means over seeds with 95 % intervals.
plot_curves([1/p for p in density],
            {f'vulnerability, {k}': [t_interval(v) for v in values] for k,values in harm.items()}
            | {'features per dimension': [t_interval(v) for v in per_dimension]},
            'sparsity 1/p', '', logx=True, logy=True)

# %% [markdown]
# At density 1, where nothing is in superposition, vulnerability is close to one. It rises as soon as
# features share dimensions. With a direction for each input it rises thirtyfold, ten times as much as
# the paper states. With one direction for all inputs it rises to 2.99 [2.93, 3.04] and falls again: if
# features are very sparse, every direction affects outputs that are active on a few inputs only. The
# criterion is 3, so whether it rises more than threefold is undecided. The direction is chosen on the
# inputs on which it is measured, so a small number of inputs favours the attack: with 512 of them an
# earlier recording had 3.31 [3.04, 3.58], and the row held.

# %%
#| label: fig-scatter
#| fig-cap: Vulnerability against features per dimension of every model, in two readings; the lines have slopes one and two.
features = per_dimension.ravel()
line = np.array([1,float(per_dimension.max())])
plot_curves({k: features for k in harm} | {'proportional': line, 'squared': line},
            {k: v.ravel() for k,v in harm.items()} | {'proportional': line, 'squared': line**2},
            'features per dimension |W|²/m', 'vulnerability', logx=True, logy=True,
            dots=[*harm])

# %% [markdown]
# ## Why vulnerability follows features per dimension
#
# Take one output first. A step of length $\epsilon$ along row $i$ moves output $i$, if it is
# active, by $\epsilon\|W_i\|^2/\sqrt{D_i}$. The squared error of this output therefore grows by
# $\epsilon^2\|W_i\|^4/D_i$. For a stored feature this is the number of features per dimension around
# it, by [an identity](../../superposition/32_theory.ipynb) and not as an empirical result. The
# identity holds in the trained models to float64 precision:

# %%
own = (attack_directions(W.double())*(W.double()@W.double().mT)).sum(-1)**2
identity = attack_error(W.double())
gap = ((own-identity).abs()/identity.clamp(min=1e-9)).max().item()
assert gap < 1e-9
gap

# %% [markdown]
# In an autoencoder the correlation is therefore nearly built in, and it is weak evidence about real
# networks. Later work has looked for the link in classifiers [@gorton2025]. The identity does not
# account for the whole harm. Outputs other than the attacked one move as well, and errors that exist
# already grow. If every output were active and the columns of $W$ formed a tight frame, a step in their
# span would be stretched by $f$, the features per dimension, and the harm would be $f^2\epsilon^2$: the
# steeper line of @fig-scatter. The table compares the harm with the most that one output accounts for:

# %%
length = .1*mean_input_norm(x)
single = identity.float().amax(-1)
pd.DataFrame(dict(density=density, vulnerability=harm['each input'].mean(1),
                  one_output=by_seed(single).mean(1),
                  per_dimension=per_dimension.mean(1))).round(2)


# %% [markdown]
# ## Other definitions of the attack
#
# We vary the attack: empty inputs included, shorter and longer attacks, and other sizes of the model,
# the paper's largest among them. The table has the largest vulnerability over densities and its rank
# correlation with features per dimension.

# %%
def correlations(v, per_dimension):
    "Return the rank correlation over densities of each seed"
    return [spearmanr(a, c).statistic for a,c in zip(v.T, per_dimension.T)]

def summary(v, per_dimension, density=density):
    "Describe vulnerabilities, [density, seed]"
    found = correlations(v, per_dimension)
    peak = v.mean(1).argmax()
    return dict(largest=v.mean(1)[peak], at_density=density[peak],
                spearman=str(t_interval(found)) if len(found)>1 else f'{found[0]:.3g}')

definitions = {'each input, empty inputs too': dict(include_empty=True),
               'each input, a third as long': dict(size=.03),
               'each input, three times as long': dict(size=.3)}
others = {k: by_seed(vulnerability(W, b, x, **options)) for k,options in definitions.items()}
rows = {k: summary(v, per_dimension) for k,v in (harm | others).items()}
for n,m in size['other']:
    *model,ratio = train_models(n, m, 1)
    rows[f'n = {n}, m = {m}, each input'] = summary(by_seed(vulnerability(*model), 1), ratio)

n,m,large_seeds = size['large']
coarse = [1,.5,.25,.1,.01]
*large,large_ratio = train_models(n, m, large_seeds, coarse, batch=128, steps=2000)
large_harm = {k: by_seed(vulnerability(*large, shared=k=='one direction'), large_seeds)
              for k in harm}
for k,v in large_harm.items(): rows[f'n = {n}, m = {m}, {k}'] = summary(v, large_ratio, coarse)
pd.DataFrame(rows).T


# %% [markdown]
# The correlation is not close in every setting. With only two features for each dimension, features per
# dimension soon stop growing, and the harm that is added later depends on other factors. With forty
# features and one direction for all inputs the correlation fails; with 400 it holds in both readings.
#
# ## Attacks by gradient
#
# The paper found attacks by gradient difficult where the outputs are silent 99 % of the time. The table
# has attacks of one step and of ten, relative to the analytic attack. `masked` is the share of inputs
# at which the loss has no gradient at all, `empty` the share of inputs without an active feature, and
# `silent` the share of outputs at rest.

# %%
def gradient_table(W, b, x, seeds):
    "Compare attacks of 0.1 mean input lengths by gradient with the analytic one, [density, seed]"
    length = .1*mean_input_norm(x)
    best = analytic_attack(W, b, x, length)
    one,masked = gradient_attack(W, b, x, length)
    ten,_ = gradient_attack(W, b, x, length, steps=10)
    harmed = best>1e-7
    silent = torch.einsum('ibn,inm,ikm->ibk', x, W, W)+b[:,None] <= 0
    share = lambda v: by_seed(v.float().mean(-1), seeds)
    unseen = (masked & harmed).sum(-1)/harmed.sum(-1).clamp(min=1)
    return dict(one_step=by_seed(one.mean(-1)/best.mean(-1), seeds),
                ten_steps=by_seed(ten.mean(-1)/best.mean(-1), seeds), masked=share(masked),
                empty=share((x==0).all(-1)), silent=share(silent.flatten(1)),
                harmed=share(harmed), unseen=by_seed(unseen, seeds))

small_table = gradient_table(W, b, x, size['seeds'])
pd.DataFrame({k: v.mean(1) for k,v in small_table.items()}, index=density).round(3)

# %%
last = slice(-large_seeds, None)
large_table = gradient_table(*(t[last] for t in large), large_seeds)
pd.Series({k: v.mean() for k,v in large_table.items()},
          name=f'n = {n}, m = {m}, density {coarse[-1]}').round(3)

# %% [markdown]
# The gradient vanishes on most inputs at the lowest density. But a vanishing gradient matters only
# where an attack can do harm, and an attack of this length along a row of the Gram matrix harms hardly
# any input at which the gradient vanishes: `unseen` is the share of the harmed inputs without a
# gradient. A step along the gradient does as much harm as the analytic attack, at 400 features as well.
# The ratio of harms, which our first criterion used, cannot show masking, because where the gradient
# vanishes the analytic attack does no harm either. Longer attacks separate the two, since a step along
# a row can cross the region without a gradient. At the sparsest density:

# %%
sparsest = slice(-size['seeds'], None)
length = .1*mean_input_norm(x)
rows = []
for s in (.1,.3,1,3):
    model = W[sparsest],b[sparsest],x[sparsest],s/.1*length[sparsest]
    by_gradient,masked = gradient_attack(*model)
    best = analytic_attack(*model)
    rows.append(dict(size=s, gradient_over_analytic=(by_gradient.mean()/best.mean()).item(),
                     silent_inputs_hurt=(best[masked]>0).float().mean().item()))
pd.DataFrame(rows).round(3)

# %% [markdown]
# ## Adversarial training
#
# Twenty equal features in five dimensions are trained against the analytic attack on a random feature,
# with the worse of its two signs for each input, at density 0.1 and at 0.03. A feature counts as stored
# if its column is longer than one half; superposition is gone once no more than five are.

# %%
attacks = size['attacks']
k = size['hard']  # models for each length
def train_against(density, attacks=attacks):
    "Train against attacks of growing length; return config, parameters, stored features, |W|²/m"
    config = ToyConfig(20, 5, len(attacks)*k, density=density, init=.1,
                       attack=np.repeat(attacks, k).tolist())
    run = train(config, seed=seed, device=device,
                **training | dict(steps=3000, batch_size=256))
    w = run.W.cpu()
    return (config, {name: v.cpu() for name,v in run.params.items()},
            by_seed(represented(w).sum(-1), k), by_seed(w.square().sum((1,2))/5, k))

hard,params,stored,norm = train_against(.1)
_,_,stored_sparser,_ = train_against(.03, size['sparser'])
x20 = Sampler(hard.densities, range(hard.n_instances), 4096, seed=seed+2**40)(0)
clean = by_seed(objective(hard, params, x20, torch.ones(hard.n_instances, 20)), k)

# %%
#| label: fig-training
#| fig-cap: Stored features per dimension, squared norm per dimension, and clean loss relative to the model trained without attacks, after training against attacks of growing length; points are means over seeds, bars are ranges.
spread = lambda v: [Estimate(r.mean(), r.min(), r.max()) for r in v]
plot_curves({'stored / m': attacks, '|W|² / m': attacks, 'clean loss': attacks,
             'stored / m at density 0.03': size['sparser']},
            {'stored / m': spread(stored/5), '|W|² / m': spread(norm),
             'clean loss': spread(clean/clean[0].mean()),
             'stored / m at density 0.03': spread(stored_sparser/5)},
            'length of the attack in mean input lengths', '', levels={'no superposition': 1})

# %% [markdown]
# A small norm alone does not mean that features are no longer shared. At 0.7 and 0.8 mean input
# lengths, near the paper's 80 %, $\|W\|^2/m$ is about one while nine or ten features are still stored
# in five dimensions. The number of stored features reaches five between 0.9 and one mean input length
# at density 0.1. With four seeds it is undecided whether this length is at most one, the limit of the
# criterion. At density 0.03 the models still store 2.45 features per dimension at a length of one. The
# size of the attack that is needed therefore depends on sparsity.

# %%
shared = (interference(params['W'])*represented(params['W'])).sum(-1)
shared = by_seed(shared/represented(params['W']).sum(-1).clamp(min=1), k)
pd.DataFrame(dict(attack=attacks, stored=stored.mean(1), norm=norm.mean(1),
                  shared=shared.mean(1))).round(2).set_index('attack').T


# %% [markdown]
# ## What this does not show
#
# This page does not show that attacks on real networks work through superposition, or that a stronger
# adversary in training would have no larger effect.
#
# ## Claims
#
# Criteria in `data/claims/superposition_adversarial.toml` were fixed before the first full run. Those
# on vulnerability and gradients were changed in place after a quick trial; the registered ones are
# restored and judged by one direction for all inputs, and the changed ones are rows of their own. Rows
# at 400 features, on harmed inputs without a gradient and on full removal were written on 30 November
# 2026, before their runs. This recording, with 2,048 held-out inputs, repeats one with 512, whose
# results had been seen.

# %%
def at_peak(v):
    "Return the mean at the density with the largest mean and its interval over seeds"
    return t_interval(v[v.mean(1).argmax()])

def mean_correlation(v, per_dimension):
    "Return the mean rank correlation of the seeds and its interval, which ends at 1"
    e = t_interval(correlations(v, per_dimension))
    return e._replace(high=min(e.high, 1))

def first_size(v, bound):
    "Return the smallest attack of each seed at which a value is at most `bound`, 9 if none is"
    return [next((s for s,row in zip(attacks, column) if row<=bound), 9.) for column in v.T]

unseen = max([small_table['unseen'][-1],large_table['unseen'][-1]], key=np.mean)
name = 'superposition/vulnerability-'
record(scale, {
    name+'triples': at_peak(harm['one direction']),
    name+'follows-features-per-dimension':
        mean_correlation(harm['one direction'], per_dimension),
    name+'triples-each-input': at_peak(harm['each input']),
    name+'follows-each-input': mean_correlation(harm['each input'], per_dimension),
    name+'of-stated-size': at_peak(harm['each input']),
    name+'triples-at-400': at_peak(large_harm['one direction']),
    name+'follows-at-400': mean_correlation(large_harm['one direction'], large_ratio),
    name+'triples-each-input-at-400': at_peak(large_harm['each input']),
    name+'follows-each-input-at-400': mean_correlation(large_harm['each input'], large_ratio),
    'superposition/gradient-misses-harmed-inputs': t_interval(unseen),
    'superposition/gradients-are-masked-each-input': t_interval(small_table['one_step'][-1]),
    'superposition/small-attacks-leave-superposition': t_interval(norm[attacks.index(.1)]),
    'superposition/large-attacks-remove-superposition': t_interval(first_size(norm, 1)),
    'superposition/large-attacks-empty-superposition': t_interval(first_size(stored, 5)),
    'superposition/larger-attacks-when-sparser':
        t_interval(stored_sparser[size['sparser'].index(1)]/5),
})
