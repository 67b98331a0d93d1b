# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Collapsing correlated features: pairs collapse one after another
#
# > "Collapsing of Correlated Features": by exact loss three pairs in two dimensions collapse at densities 0.071, 0.141 and 0.393; the paper gives about 0.05, 0.15 and 0.2 to 0.25.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds; cpu: 24 starts at thirty densities; gpu: hundreds
seed = 0         # everything random follows from it

# %%
#| hide
import numpy as np, torch, pandas as pd
from moral_sc.lab.claims import record
from moral_sc.lab.scales import at_scale
from moral_sc.superposition import ToyConfig
from moral_sc.superposition.geometry import pair_cosines
from moral_sc.superposition.phase_diagram import exact_optima, train_restarts
from moral_sc.superposition.plots import plot_columns, plot_curves
from moral_sc.superposition.theory import pair_losses

# %%
size = at_scale(scale,
    quick=dict(restarts=12, middle=48, exact=2, steps=100),
    cpu=dict(restarts=24, middle=48, exact=4, steps=200),
    gpu=dict(restarts=500, middle=500, exact=48, steps=300),
)
device = 'cuda' if scale=='gpu' and torch.cuda.is_available() else 'cpu'
training = dict(steps=6000, batch_size=1024, lr=.01, schedule='cosine')
size

# %% [markdown]
# ## Collapsing of correlated features
#
# Two features that always occur together can be stored as one, their sum, as principal components do.
# At which density does superposition give way to that?
#
# > Three correlated pairs in two dimensions. Below a density of about 0.05 no pair is
# > collapsed: the features form a hexagon, pair by pair. Between 0.05 and 0.15 one pair has
# > collapsed onto its principal component, between 0.15 and 0.2 two, between 0.25 and 0.5 all three;
# > above 0.5 solutions are most like principal components [@elhage2022].
#
# The bands are the paper's approximate ones, with a gap between 0.2 and 0.25. It does not state how
# many models it trained. We train from many starts at each density and use the lowest
# [exact loss](../../superposition/30_exact_loss.ipynb); the optimum itself is computed as well.
#
# In one dimension a formula gives the answer. The sum costs $p/12$, and one feature without the other
# $p/3-p^2/4$, so collapse is better at every density below $p=1$. Two dimensions for three pairs leave
# more possibilities.

# %%
density = [.01,.015,.02,.025,.03,.035,.04,.045,.06,.07,.08,.09,.1,.11,.12,.13,.14,
           .16,.17,.18,.19,.22,.25,.3,.4,.5,.6,.7,.85,1.][::3 if scale=='quick' else 1]
config = ToyConfig(6, 2, len(density), density=torch.tensor(density)[:,None],
                   features='correlated', sets=3, init=.1)
assert all(pair_losses(p)['collapsed'] <= pair_losses(p)['keep one']+1e-12 for p in density)

trained = train_restarts(config, size['restarts'], seed=seed, device=device, **training)
# the optimum is sought from random starts and from the trained models of all densities
g = torch.Generator().manual_seed(seed)
starts = torch.cat([.5*torch.randn(size['exact'], 6, 2, generator=g), trained.best()['W']])
exact = exact_optima(config, starts=starts, steps=size['steps'])
trained, exact


# %% [markdown]
# A pair is collapsed if the cosine of its columns exceeds 0.95. As a measure of similarity to principal
# component analysis (PCA) we take the share of $\|W\|_F^2$ in the span of the three pair sums, the
# leading principal components. For six equally long columns at 60 degrees it is about three quarters,
# and it is one if every pair has collapsed.

# %%
def collapsed(W):
    "Return how many pairs lie on one direction"
    long = W.norm(dim=-1).unflatten(-1, (3,2)).amin(-1) > .1
    return ((pair_cosines(W)>.95) & long).sum(-1)

def in_sums(W):
    "Return the share of the squared norm of W in the span of the pair sums"
    return ((W[...,::2,:]+W[...,1::2,:]).square().sum((-1,-2))/2)/W.square().sum((-1,-2))

W = trained.best()['W']
W0 = exact.best()['W'].float()
excess = trained.loss.amin(1)/exact.loss.amin(1)-1
assert excess.min() > -1e-3
rows = pd.DataFrame(dict(density=density, collapsed=collapsed(W), optimum=collapsed(W0),
    starts_agree=[f'{(collapsed(w)==k).sum()} of {len(w)}' for w,k in
                  zip(trained.params['W'], collapsed(W))], excess=excess.numpy().round(4)))
rows.set_index('density')

# %%
#| label: fig-bands
#| fig-cap: Number of collapsed pairs of the best trained model (dots) and of the exact optimum (line) against density; dotted verticals are the limits of the paper's bands.
bands = {'.05': .05, '.15': .15, '.2': .2}
plot_curves(density, {'best trained': collapsed(W), 'exact optimum': collapsed(W0)},
            'density p', 'collapsed pairs', logx=True, dots=['best trained'], marks=bands)

# %%
#| label: fig-shapes
#| fig-cap: Columns of W of the best trained model at five densities; colour is the pair.
shown = [int(np.abs(np.array(density)-p).argmin()) for p in (.02,.1,.17,.3,.7)]
plot_columns(W[shown], [1,1,.6,.6,.2,.2], [f'p = {density[i]}' for i in shown]).update_layout(
    coloraxis_showscale=False)

# %% [markdown]
# The paper's claim is about its four bands, so it is judged in the middle of each:

# %%
middle = {.025: 0, .1: 1, .175: 2, .375: 3}     # Density: collapsed pairs in the paper
c = ToyConfig(6, 2, 4, density=torch.tensor([*middle])[:,None], features='correlated', sets=3,
              init=.1)
central = train_restarts(c, size['middle'], seed=seed, device=device, **training)
found = collapsed(central.best()['W'])
in_bands = int((found==torch.tensor([*middle.values()])).sum())
pd.DataFrame(dict(density=[*middle], paper=[*middle.values()], best_trained=found,
    starts_agree=[f'{(collapsed(w)==k).sum()} of {len(w)}' for w,k in
                  zip(central.params['W'], found)])).set_index('density')


# %% [markdown]
# ## Crossings of the solutions
#
# The counts in @fig-bands jump, and so do the arrangements in @fig-shapes, so different solutions
# must cross. We take the optimum with each number of collapsed pairs and follow it to other densities
# by descending from there; this is a branch. @fig-branches shows how close the branches are, and the
# table below it where they cross.

# %%
def branch(k, fine):
    "Return the loss along the solution with k collapsed pairs; NaN where it does not exist"
    at = np.flatnonzero(counts==k)
    c = ToyConfig(6, 2, len(fine), density=torch.tensor(fine)[:,None],
                  features='correlated', sets=3)
    s = exact_optima(c, starts=W0[sorted({at[0],at[len(at)//2],at[-1]})])
    same = collapsed(s.params['W'])==k
    loss = torch.where(same, s.loss, torch.inf).amin(1).numpy()
    return np.where(np.isinf(loss), np.nan, loss)

fine = np.geomspace(.01, .5, 25 if scale=='quick' else 60)
counts = collapsed(W0).numpy()
branches = {f'{k} collapsed': branch(k, fine) for k in range(4)}

# %%
#| label: fig-branches
#| fig-cap: Exact loss of the solutions with none to three collapsed pairs, in per cent above the lowest of them; dotted verticals are the limits of the paper's bands.
lowest = np.nanmin(list(branches.values()), axis=0)
above = {k: 100*(v/lowest-1) for k,v in branches.items()}
near = {k: ~np.isnan(v) & (v<20) for k,v in above.items()}
plot_curves({k: fine[near[k]] for k in above}, {k: v[near[k]] for k,v in above.items()},
            'density p', 'loss above the best, %', logx=True, marks=bands)


# %%
def crossing(a, b):
    "Return the density from which b is the better, between two points of the grid"
    d = branches[f'{a} collapsed']-branches[f'{b} collapsed']
    ok = ~np.isnan(d)
    x = np.log(fine[ok])
    d = d[ok]
    i = np.where((d[:-1]<0) & (d[1:]>=0))[0]
    return float(np.exp(np.interp(0, d[i[0]:i[0]+2], x[i[0]:i[0]+2]))) if len(i) else np.nan

crossings = [crossing(k, k+1) for k in range(3)]
pd.DataFrame(dict(change=[f'{k} to {k+1} collapsed' for k in range(3)],
                  exact=np.round(crossings, 4), paper=['0.05','0.15','0.2 to 0.25']))

# %% [markdown]
# ## Towards principal components

# %%
#| label: fig-pca
#| fig-cap: Share of the squared norm of W in the span of the pair sums, for the best trained model (dots) and the exact optimum (line), against density.
plot_curves(density, {'best trained': in_sums(W), 'exact optimum': in_sums(W0)},
            'density p', 'share in the span of the pair sums', logx=True,
            dots=['best trained'])

# %% [markdown]
# From the third collapse on, a model consists of pair sums alone, and places three of them in two
# dimensions as sparser models place features (@fig-pca). At density 1 the curve ends lower, as
# expected: only the presence of the features is correlated, and features that are always present are
# uncorrelated. Every principal component is then as good as any other, and the pair sums have no
# special role.
#
# Between the last two bands training and optimum differ: the solution with two collapsed pairs is the
# best up to density 0.39, but almost no model finds it at 0.25 and above. In the middle of the paper's
# last band, at 0.375, 47 of 48 trained models have three collapsed pairs, as the paper says, and the
# one with two has the lowest loss. The paper's third limit therefore agrees with typical training and
# not with the lowest loss. Its first limit is lower than the exact one.
#
# This page does not cover other sizes or pairs that are only partly correlated, and does not show
# that training from a single start would find these solutions (`starts_agree` has how many of ours
# did).
#
# ## Claims
#
# Criteria in `data/claims/superposition_correlated.toml` were fixed before the first full run, except
# the claim about principal components without density 1, where nothing is correlated. Rows that counted
# points of our grid were closed on 30 November 2026, those that held as well as the one that failed,
# because the choice of the grid decides them. The middle of each band and the exact crossings replace
# them. The paper's limits are approximate; a factor of 1.25 is our reading of that. In the middles of
# three of the four bands the best model has the paper's number of collapsed pairs. In the fourth one
# model of 48 reaches a lower exact loss with two pairs, and the others have three, as in the paper. One
# experiment of ours does not refute a claim of the paper, so the claim is undecided.

# %%
p = np.array(density)
k = collapsed(W).numpy()
share = lambda low, high, n: float((k[(p>low) & (p<high)]==n).mean())
pca = in_sums(W)
first,second,third = crossings
record(scale, {
    'superposition/collapse-in-bands': in_bands,
    'superposition/collapse-first-limit': first,
    'superposition/collapse-second-limit': second,
    'superposition/collapse-third-limit': third,
    'superposition/collapse-to-pca-where-correlated': pca[(p>.5) & (p<1)].min().item(),
    'superposition/collapse-to-pca': pca[p>.5].min().item(),
    'superposition/collapse-none': share(0, .05, 0),
    'superposition/collapse-one': share(.05, .15, 1),
    'superposition/collapse-two': share(.15, .2, 2),
})
