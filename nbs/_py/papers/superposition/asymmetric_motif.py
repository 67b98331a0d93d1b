# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Asymmetric superposition: the motif and its inhibitor recur
#
# > The Asymmetric Superposition Motif: 112 neurons in 320 models have it, and in each case another neuron cancels more than half of the interference.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds; cpu: 320 models, a minute or two; gpu: 8000 models
seed = 0         # everything random follows from it

# %%
#| hide
import numpy as np, pandas as pd, torch
from moral_sc.foundation.statistics import cluster_bootstrap, wilson
from moral_sc.lab.claims import record
from moral_sc.lab.scales import at_scale
from moral_sc.superposition import ToyConfig, reconstruct, train
from moral_sc.superposition.neurons import asymmetric_neurons, inhibition, opposed_pairs
from moral_sc.superposition.plots import plot_curves

# %%
size = at_scale(scale,
    quick=dict(each=6, steps=4000, batch_size=1024),
    cpu=dict(each=40, steps=4000, batch_size=1024),
    gpu=dict(each=1000, steps=10_000, batch_size=1024),
)
device = 'cuda' if scale=='gpu' and torch.cuda.is_available() else 'cpu'
size

# %% [markdown]
# ## The asymmetric superposition motif
#
# Models that [compute absolute values](computing_absolute_values.ipynb) have fewer neurons than two
# for each feature, so some neurons serve two features.
#
# > One solution recurs. A neuron reads one feature with weight 2 and another with $-\frac12$, and
# > writes them with $\frac12$ and 2. The second feature, read weakly and written strongly, hardly
# > disturbs the first; but the first disturbs the second strongly. Another neuron responds to the
# > first feature and inhibits the second output: the sum becomes negative, and the output's ReLU
# > removes it [@elhage2022].
#
# The paper found the motif in a small model and does not state its sizes. We take twenty features and
# ten neurons, and vary what is not stated: the density, and whether features are equally important.
# The paper does not define how to recognise the motif either. Here a neuron serves the features that
# have at least 15 % of its largest input weight (this threshold is varied below). It is
# *asymmetric* if it serves two features, read with opposite signs, one 2.5 to 6.5 times as strongly
# as the other (the paper's ratio is 4), and written the other way round within the same bounds
# ([the search](../../superposition/66_neurons.ipynb) is tested on a motif that we build).

# %%
density = [.5,.3,.2,.1]
decays = [1.,.8]
n = 20
m = 10
S = size['each']
settings = [(d,p) for d in decays for p in density]
config = ToyConfig(n, m, S*len(settings), hidden='relu', tied=False, target='abs', signed=True,
    density=torch.tensor([p for _,p in settings]).repeat_interleave(S)[:,None],
    importance=torch.tensor([[d**i for i in range(n)] for d,_ in settings]
                            ).repeat_interleave(S, 0))
run = train(config, seed=seed, device=device, lr=5e-3, schedule='linear', steps=size['steps'],
            batch_size=size['batch_size'])
W,V,b = (t.cpu() for t in (run.W,run.V,run.b))
run

# %% [markdown]
# ## The inhibitor
#
# With only the first feature active, the pre-activation of the second output is a sum over neurons. The
# motif's neuron contributes a large positive part. According to the paper another neuron contributes
# about as much with a negative sign, and the sum, with the bias, is near zero or below.

# %%
rows = []
for r in range(len(W)):
    d,p = settings[r//S]
    for k,i,j,read,write in asymmetric_neurons(W[r], V[r]):
        rows.append(dict(model=r, decay=d, density=p, neuron=k, first=i, second=j, read=read,
                         write=write, **inhibition(W[r], V[r], b[r], k, i, j)))
columns = 'model decay density neuron first second read write sent inhibitor returned left'.split()
motifs = pd.DataFrame(rows, columns=columns)
motifs.drop(columns=['neuron','inhibitor']).round(2).head(8)

# %% [markdown]
# `read` and `write` are the two ratios; `sent`, `returned` and `left` are the positive part, the
# negative part and the sum with the bias. Over all neurons with the motif:

# %%
below_tenth = int((motifs.left < .1).sum())
inhibited = int((motifs.returned < -.5*motifs.sent).sum())
dict(motifs=len(motifs), an_inhibitor_returns_half=inhibited, left_below_a_tenth=below_tenth,
     median_read=round(float(motifs['read'].median()), 2),
     median_write=round(float(motifs['write'].median()), 2))


# %% [markdown]
# ## Frequency of the motif
#
# The table has the number of neurons with two features of opposite sign, and how many of them have
# the motif, for each setting; the last two columns vary the threshold.

# %%
def count_neurons(search): return [sum(search(r) for r in range(s*S, (s+1)*S))
                                   for s in range(len(settings))]

counts = pd.DataFrame(settings, columns=['decay','density'])
counts['neurons'] = S*m
counts['two_opposite'] = count_neurons(lambda r: len(opposed_pairs(W[r])))
for share in .15,.1,.2:
    counts[f'motif_{share}'] = count_neurons(lambda r: len(asymmetric_neurons(W[r], V[r], share)))
counts

# %%
#| label: fig-where
#| fig-cap: Mean number of neurons with the asymmetric motif in a model, against density.
lines = {f'importance {d:g}^i': counts[counts.decay==d]['motif_0.15'].div(S).tolist()
         for d in decays}
plot_curves(density, lines, xtitle='density p', ytitle='motifs in a model')

# %% [markdown]
# ## One motif in detail
#
# This is the neuron closest to the paper's ratios. It is scaled so that its two input weights
# multiply to 1 in size, as 2 and $-\frac12$ do.

# %%
distance = (np.log(motifs['read']/4)**2 + np.log(motifs['write']/4)**2).to_numpy(float)
example = motifs.iloc[int(distance.argmin())] if len(motifs) else pd.Series(
    dict(model=0, neuron=0, inhibitor=1, first=0, second=1))
r,k,inhibitor,i,j = (int(example[c]) for c in ('model','neuron','inhibitor','first','second'))
w = W[r]
v = V[r]
s = float((w[i,k]*w[j,k]).abs().clamp(min=1e-12).rsqrt())
pd.DataFrame({'neuron reads': w[[i,j],k]*s, 'neuron writes': v[[i,j],k]/s,
              'inhibitor reads': w[[i,j],inhibitor]*s,
              'inhibitor writes': v[[i,j],inhibitor]/s},
             index=[f'feature {i}', f'feature {j}']).round(2)

# %%
#| label: fig-apart
#| fig-cap: Contributions to the output of the second feature when only the first is active, against its value.
values = torch.linspace(-1, 1, 81)
x = torch.zeros(1, len(values), n)
x[0,:,i] = values
parts = (x[0] @ w).relu()*v[j]
y = reconstruct(W[r:r+1], b[r:r+1], x, hidden='relu', V=V[r:r+1])[0,:,j]
rest = parts.sum(1)-parts[:,k]-parts[:,inhibitor]+b[r,j]
plot_curves(values.tolist(), {'the neuron': parts[:,k].tolist(),
    'its inhibitor': parts[:,inhibitor].tolist(), 'all others and bias': rest.tolist(),
    'output': y.tolist()}, xtitle='first feature', ytitle='sent to the second output')

# %% [markdown]
# ## What this does not show
#
# This page does not show that the motif is the best way for one neuron to serve two features, and does
# not explain the numbers 2 and $-\frac12$. The search does not cover neurons that serve three features
# or more, which the thresholds leave out. At settings whose row of the table has no motif, the models
# have other arrangements. The paper's sizes may differ from all of ours.
#
# ## Claims
#
# The rows on the inhibitor and on the mean number of motifs in a model were written after a recorded run.

# %%
sparse = [r for r in range(len(W)) if settings[r//S][1] in (.3,.2)]
per_model = motifs.model.value_counts().reindex(sparse, fill_value=0).to_numpy(float)
record(scale, {
    'superposition/asymmetric-motif': float(len(motifs)),
    'superposition/asymmetric-motif-inhibitor': wilson(inhibited, len(motifs)),
    'superposition/asymmetric-motif-frequency': cluster_bootstrap(
        per_model, range(len(sparse)), np.mean, strata=[r//S for r in sparse], seed=seed)})
