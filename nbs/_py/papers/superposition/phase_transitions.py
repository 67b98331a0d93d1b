# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Phase transitions: most jumps of the loss reduce the number of stored features
#
# > "Energy level jumps": 89 of 200 models of six features in two dimensions jump between plateaus of the loss, and 80 % of the jumps change the number of stored features; the hexagon and the pentagon have the learning coefficient 8.5.

# %% tags=["parameters"]
scale = 'quick'  # quick: twenty models; cpu: two hundred; gpu: a thousand
seed = 0         # everything random follows from it

# %%
#| hide
import numpy as np, pandas as pd, torch
from moral_sc.foundation.statistics import Estimate, wilson
from moral_sc.lab.claims import record
from moral_sc.lab.scales import at_scale
from moral_sc.superposition import ToyConfig, exact_loss, learning_coefficient, represented, train
from moral_sc.superposition.exact_loss import minimise_lbfgs
from moral_sc.superposition.learning_coefficient import toy_loss
from moral_sc.superposition.plots import COLOURS, plot_columns, plot_curves
torch.set_num_threads(1)

# %%
size = at_scale(scale,
    quick=dict(models=20, steps=2000, checkpoints=40,
               chains=dict(chains=16, samples=20, length=12)),
    cpu=dict(models=200, steps=20_000, checkpoints=80, chains=dict(chains=64, samples=150)),
    gpu=dict(models=1000, steps=100_000, checkpoints=80, chains=dict(chains=256, samples=400)),
)
device = 'cuda' if scale=='gpu' and torch.cuda.is_available() else 'cpu'
n,m = 6,2
size

# %% [markdown]
# ## Energy level jumps
#
# The paper observes that features change their dimensionality in jumps, and that the loss falls when they do
# [@elhage2022]. @chen2023 describe such jumps in a model of six features in two dimensions, of which one at a time is
# active: training goes from one critical point to another, each of which is a polygon, from high loss and a low *local
# learning coefficient* to low loss and a high one. They show single trainings. We train many models, which start near
# zero, compute the exact loss at checkpoints evenly spaced in the logarithm of the step, and ask
# which of the jumps change the number of stored features.

# %%
config = ToyConfig(n, m, size['models'], density=1., features='one-hot', init=.1)
steps = sorted({int(round(v)) for v in np.geomspace(10, size['steps'], size['checkpoints'])})

def trajectories():
    "Train all models and return W and b at the checkpoints, [checkpoint, model, ...]"
    run,states = None,[]
    for step in steps:
        run = train(config, steps=size['steps'], batch_size=512, lr=3e-3, weight_decay=0.,
                    seed=seed, stop=step, resume=run, device=device)
        states.append((run.W.cpu().clone(), run.b.cpu().clone()))
    return [torch.stack(t) for t in zip(*states)]

W,b = trajectories()
loss = torch.stack([exact_loss(w, c, 1., features='one-hot') for w,c in zip(W, b)]).T.numpy()
stored = represented(W).sum(-1).T.numpy()


# %% [markdown]
# A plateau is a stretch of at least three checkpoints at which the loss falls at less than half of its median rate, in
# logarithms of loss and step. A jump is what lies between two plateaus.

# %%
def plateaus(values):
    "Return first and last checkpoint of each plateau of one training"
    rate = -np.gradient(np.log(values), np.log(steps))
    slow = rate < .5*np.median(rate[rate>0])
    edges = np.flatnonzero(np.diff(np.r_[0, slow, 0]))
    return [(a, z-1) for a,z in zip(edges[::2], edges[1::2]) if z-a>=3]

def jumps_of(model):
    "Return a row for each jump of a training"
    found = plateaus(loss[model])
    return [dict(model=model, start=end, end=start, before=stored[model,end],
                 after=stored[model,start], fall=1-loss[model,start]/loss[model,end])
            for (_,end),(start,_) in zip(found, found[1:])]

jumps = pd.DataFrame([row for i in range(size['models']) for row in jumps_of(i)],
                     columns=['model','start','end','before','after','fall'])
jumps['changed'] = jumps.before!=jumps.after

# %%
#| label: fig-trajectories
#| fig-cap: Exact loss of twelve trainings against the step, coloured by the number of features stored at the end; the loss is the sum over six features.
few = range(min(12, size['models']))
ends = {str(i): int(stored[i,-1]) for i in few}
fig = plot_curves(steps, {str(i): loss[i] for i in few}, 'step', 'exact loss', logx=True, logy=True,
                  colours={i: COLOURS['sequence'][6-k] for i,k in ends.items()}, legend=True)
for k in sorted(set(ends.values())):
    group = [t for t in fig.data if ends.get(t.name)==k]
    for t in group: t.update(name=f'{k} features stored', legendgroup=k, showlegend=t is group[0])
fig

# %% [markdown]
# The table counts jumps by the number of stored features before and after, with the median fall of the loss.

# %%
jumps.groupby(['before','after']).fall.agg(['size','median']).rename(
    columns=dict(size='jumps', median='fall')).round(3)

# %%
jump_count = jumps.groupby('model').size().reindex(range(size['models']), fill_value=0)
jump_count.value_counts().sort_index().rename_axis('jumps').rename('trainings')

# %% [markdown]
# ## Learning coefficients of the final minima
#
# Each final model is the start of a minimisation of the exact loss. Minima with equal loss are one
# minimum up to rotation and the order of features. The [learning
# coefficient](../../superposition/74_learning_coefficient.ipynb) of each is estimated at an inverse
# temperature of $10^5$, beside half the rank of the Hessian. If `lowest` is below zero, chains found a
# lower loss nearby: the point is not a minimum, and the coefficient is not defined.

# %%
one = ToyConfig(n, m, density=1., features='one-hot')
value = toy_loss(one)
polished = minimise_lbfgs(value, torch.cat([W[-1].flatten(1), b[-1]], 1).double(), 3000)
final = value(polished).numpy()
label = pd.factorize(final.round(4), sort=True)[0]

def half_rank(v, tolerance=1e-3):
    "Return half the rank of the Hessian of the loss"
    eigenvalues = torch.linalg.eigvalsh(torch.autograd.functional.hessian(
        lambda q: value(q[None])[0], v))
    return int((eigenvalues>tolerance*eigenvalues.max()).sum())/2

def describe(k):
    "Describe one minimum by a training that ends near it"
    members = np.flatnonzero(label==k)
    v = polished[members[0]]
    column = v[:n*m].view(n, m)
    coefficient = learning_coefficient(value, v, t=[1e5], **size['chains']).iloc[0]
    return dict(trainings=len(members), loss=final[members[0]],
        stored=int(represented(column).sum()), half_rank=half_rank(v),
        coefficient=coefficient.value, low=coefficient.low, high=coefficient.high,
        lowest=coefficient.lowest)

minima = pd.DataFrame([describe(k) for k in range(label.max()+1)])
minima.round(4)

# %%
#| label: fig-minima
#| fig-cap: Feature directions (columns of the paper's W) at the minima that most trainings end near, with their exact loss and local learning coefficient.
shown = minima.sort_values('trainings', ascending=False).head(4)
first = [int(np.flatnonzero(label==k)[0]) for k in shown.index]
plot_columns(polished[first][:,:n*m].view(-1, n, m).float(), [1]*n, [
    f'loss {r.loss:.4f}<br>coefficient {r.coefficient:.1f}' for r in shown.itertuples()])

# %% [markdown]
# Trainings end near three minima. Most find the pentagon, 16 of 200 the hexagon, which is the best, and
# 25 the square, at twice the hexagon's loss. Of 94 jumps, 67 lead from six stored features to five and
# 7 from six to four: the loss falls when features are given up. Another 18 keep six.
#
# At the hexagon and the pentagon the coefficient is half the rank of the Hessian, 8.5, within its
# interval. Feature directions of the square lie at right angles, so the pre-activations of the outputs
# at right angles to an active feature lie at the kink of the ReLU. There the loss is quadratic on one
# side only, the Hessian does not describe it, and the coefficient is larger than half the rank. The
# hexagon and the pentagon have the same coefficient, so here a lower loss does not come with a higher
# coefficient. The rank correlation (-0.33, interval -0.59 to 0.01) compares three coefficients that
# hardly differ, and its interval does not include their estimation errors. Features that are not stored
# have a bias of $1/12$, the mean of their input. With a negative bias the pentagon's coefficient would
# be [7](../../superposition/74_learning_coefficient.ipynb), at a higher loss. @chen2023 give the same:
# 8.5 for both, 7 with a negative bias (quoted in @arcllc). Their order, a lower loss at a higher
# coefficient, thus depends on the pentagon with a negative bias. Some of our trainings have a plateau
# at its loss (0.069), and none ends there (@fig-trajectories).
#
# ## What this does not show
#
# This page has models of one size, in which one feature is active at a time. A plateau is defined by a
# threshold on the rate; other thresholds give other numbers of jumps. Coefficients are those of minima:
# at a plateau in between, the loss can still fall, and the coefficient is not defined.
#
# ## Claims
#
# Criteria are in `data/claims/superposition_transitions.toml`, written before the first run of this page. All are ours.

# %%
rng = np.random.default_rng(seed)
per_training = pd.DataFrame(dict(loss=minima.loss.to_numpy()[label],
                                 coefficient=minima.coefficient.to_numpy()[label]))
def rank_correlation(table): return table.corr('spearman').iloc[0,1]
drawn = [rank_correlation(per_training.iloc[rng.integers(0, len(label), len(label))])
         for _ in range(500)]
correlation = Estimate(rank_correlation(per_training), *np.nanquantile(drawn, [.025,.975]))
regular = minima[(minima.stored>=5) & (minima.lowest>-1e-9)].groupby('stored').loss.idxmin()
difference = (minima.coefficient-minima.half_rank)[regular].abs().max()
record(scale, {
    'superposition/jumps-change-geometry': wilson(int(jumps.changed.sum()), max(1, len(jumps))),
    'superposition/most-trainings-jump': wilson(int((jump_count>0).sum()), size['models']),
    'superposition/lower-loss-higher-coefficient': correlation,
    'superposition/coefficient-is-half-the-rank': float(difference),
})
