# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Recovery of features
#
# > Dictionaries are compared with sparse coding that is given the true directions.

# %%
#| default_exp superposition.recovery

# %%
#| export
import numpy as np, pandas as pd, torch
from moral_sc.foundation.arguments import checked
from moral_sc.superposition.dictionaries import (
    Dictionary, hidden_sampler, match_latents, root_mean_square, score_dictionary, true_directions)
from moral_sc.superposition.feature_graphs import feature_components
from moral_sc.superposition.geometry import represented
from moral_sc.superposition.sparse_coding import nonnegative_codes
from moral_sc.superposition.training import ToyRun

# %%
#| hide
from fastcore.test import *
from moral_sc.superposition import ToyConfig, train
from moral_sc.superposition.geometry import polygon, tegum


# %% [markdown]
# A [dictionary](72_dictionaries.ipynb) can miss a feature because it did not learn its direction, or
# because the activation does not tell whether the feature is active. Sparse coding with the true
# directions separates the two: it misses for the second reason alone. That reason depends on the
# other members of the feature's polytope, a connected component of the
# [feature graph](52_feature_graphs.ipynb), which share its dimensions.

# %%
#| export
def coactive_members(
    W:torch.Tensor,      # [feature, hidden]
    active:torch.Tensor, # [batch, feature], True or False
)->torch.Tensor:         # [feature]
    "Count other active features of the same polytope, on average when a feature is active"
    member = torch.zeros(len(W), len(W))
    for group in feature_components(W): member[np.ix_(group, group)] = 1.
    others = active.float()@member.fill_diagonal_(0.)
    return (others*active).sum(0)/active.sum(0).clamp(min=1)

def name_latents(
    D:torch.Tensor, # Directions of latents, unit norm, [latent, hidden]
    w:torch.Tensor, # Directions of features, unit norm, [feature, hidden]
    pairs:list,     # Of features
    cosine=.98,     # Smallest that counts
)->np.ndarray:      # [latent]: 'vertex', 'face' or 'other'
    "Tell whether latents are features (vertices), means of pairs (faces), or neither"
    face = torch.stack([w[i]+w[j] for i,j in pairs]) if pairs else w[:0]
    face = face/face.norm(dim=-1, keepdim=True).clamp(min=1e-9)
    to_vertex = (D@w.T).amax(1)
    to_face = (D@face.T).amax(1) if pairs else torch.full_like(to_vertex, -1)
    is_face = (to_face>cosine) & (to_face>to_vertex)
    return np.select([is_face, to_vertex>cosine], ['face','vertex'], 'other')


# %% [markdown]
# Two digons are two polytopes. When one of their features is active, its opposite is with the
# density of the other:

# %%
W = tegum(polygon(2), polygon(2)).float()
active = torch.rand(20_000, 4, generator=torch.Generator().manual_seed(0))<.2
test_close(coactive_members(W, active), .2, .02)
latents = torch.stack([W[0], (W[0]+W[2])/2**.5, (W[0]+2*W[2])/5**.5])
test_eq(list(name_latents(latents, W, [(0, 2)])), ['vertex','face','other'])
test_eq(list(name_latents(latents, W, [])), ['vertex','other','other'])


# %%
#| export
def _sparse_coding(h, w, contributions, threshold, scale, penalties):
    "Score sparse coding with the true directions at the better of several penalties"
    tables = [match_latents(w, nonnegative_codes(h, w, l1*scale, 60), w, contributions, threshold)
              for l1 in penalties]
    return max(tables, key=lambda t: t.f1.mean())

@checked
def measure_recovery(
    dictionary:Dictionary,
    run:ToyRun,         # That the dictionary was fitted to
    samples:int=20_000, # Fresh inputs of each model
    seed=1,             # Of these inputs
    pairs=(),           # Of features, for the shares of faces
    penalties=(.02,.1), # Of sparse coding, in root mean squares of h
)->tuple:               # Tables of features and of models, with the column `instance`
    "Measure how well a dictionary, and sparse coding with the true directions, read each feature"
    x,h = hidden_sampler(run, samples, seed)(0)
    z = dictionary.encode(h)
    rms = root_mean_square(h)
    scores = score_dictionary(dictionary, run, samples, seed)
    features,models = [],[]
    for i,instance in enumerate(run.instances):
        w,contributions = true_directions(run, i, x[i])
        D,threshold = dictionary.directions[i], .01*rms[i].item()
        active = contributions>threshold
        stored = represented(run.W[i]).nonzero()[:,0].tolist()
        table = match_latents(D, z[i], w, contributions, threshold)
        ceiling = _sparse_coding(h[i], w, contributions, threshold, rms[i].item(), penalties).f1
        features.append(table.assign(instance=instance, feature=stored, ceiling=ceiling,
                                     coactive=coactive_members(run.W[i][stored], active).numpy()))
        place = {feature: position for position,feature in enumerate(stored)}
        both = [(place[a],place[b]) for a,b in pairs if {a,b}<={*stored}]
        kind = name_latents(D[(z[i]>threshold).any(0)], w, both)
        models.append(dict(instance=instance) | scores.loc[instance].to_dict() | dict(
            face=(kind=='face').mean(), vertex=(kind=='vertex').mean(), ceiling=ceiling.mean(),
            mean_active=active.sum(1).float().mean().item()))
    return pd.concat(features, ignore_index=True), pd.DataFrame(models)


# %% [markdown]
# A dictionary of the true directions reads orthogonal features without a mistake. Sparse coding misses
# the smallest contributions, because of its penalty. With the mean of two features in place of both, each is found by a latent that is active
# for the other as well:

# %%
run = train(ToyConfig(4, 4, 1, density=.2), steps=1)
run.params['W'][:] = torch.eye(4)
def dictionary_of(D):
    zeros = torch.zeros(1, 1, len(D))
    return Dictionary('relu', dict(W_enc=D.mT[None].contiguous(), b_enc=zeros, W_dec=D[None],
                                   b_dec=torch.zeros(1, 1, 4)))

features,models = measure_recovery(dictionary_of(torch.eye(4)), run, 2000, pairs=[(0,1)])
test_close(features[['cosine','f1']].to_numpy(), 1, 1e-6); assert (features.ceiling>.98).all()
test_eq(features.coactive.sum(), 0); test_eq(models.vertex.item(), 1)
mean = torch.tensor([[1.,1,0,0]])/2**.5
mixed,models = measure_recovery(dictionary_of(torch.cat([mean, torch.eye(4)[2:]])), run, 2000,
                                pairs=[(0,1)])
test_close(models[['face','vertex']].to_numpy()[0], [1/3,2/3])
test_eq(mixed.ceiling, features.ceiling); assert mixed.f1[:2].max()<.9
mixed[['feature','cosine','f1','ceiling']].round(2)
