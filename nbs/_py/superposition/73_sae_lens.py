# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Agreement with SAE Lens
#
# > Latents, losses and gradients of our dictionaries equal those of SAE Lens, a library for sparse autoencoders.

# %%
#| hide
#| needs: sae_lens
import torch
import sae_lens
from fastcore.test import *
from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
from sae_lens.saes.sae import TrainStepInput
from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from moral_sc.superposition.dictionaries import (decode_latents, dictionary_loss,
                                                 encode_activations)
torch.set_num_threads(1)

# %% [markdown]
# [Dictionaries](72_dictionaries.ipynb) trains one autoencoder for each toy model, all in one batch. This page takes the
# parameters of one of them to SAE Lens, an independent implementation, and compares the two. It is skipped where the
# package `sae_lens` is not installed (`pip install "moral_sc[sae]"`). The outputs are those of this version:

# %%
sae_lens.__version__

# %%
classes = dict(relu=(StandardTrainingSAE, StandardTrainingSAEConfig, dict(l1_coefficient=.3)),
               topk=(TopKTrainingSAE, TopKTrainingSAEConfig, dict(k=3)),
               jumprelu=(JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig,
                         dict(l0_coefficient=.3, jumprelu_bandwidth=.2)))

def sae_of(kind, params):
    "Return a SAE Lens autoencoder with the parameters of the first model"
    cls,config,options = classes[kind]
    m,n = params['W_enc'].shape[1:]
    sae = cls(config(d_in=m, d_sae=n, dtype='float64', apply_b_dec_to_input=True,
                     normalize_activations='none', **options))
    with torch.no_grad():
        for name in ('W_enc','W_dec'): getattr(sae, name).copy_(params[name][0])
        for name in ('b_enc','b_dec'): getattr(sae, name).copy_(params[name][0,0])
        if kind=='jumprelu': sae.threshold.data = params['log_threshold'][0,0].exp()
    return sae

g = torch.Generator().manual_seed(0)
draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
W_dec = draw(2, 12, 5)
W_dec = W_dec/W_dec.norm(dim=-1, keepdim=True)
params = dict(W_enc=draw(2, 5, 12), b_enc=.1*draw(2, 1, 12), W_dec=W_dec, b_dec=.1*draw(2, 1, 5),
              log_threshold=.3*draw(2, 1, 12)-1)
h = draw(2, 400, 5)


# %% [markdown]
# Directions have unit norm in ours, and their gradient along themselves is removed; SAE Lens multiplies the penalty by
# the norms instead. The two agree in every direction that a step can take, so gradients of the directions are compared
# after the projection. SAE Lens learns the threshold itself, ours its logarithm, whose derivative has the factor
# $\theta$.

# %%
def projected(grad, D): return grad - (grad*D).sum(-1, keepdim=True)*D

def largest_differences(kind):
    "Compare latents, outputs, loss and gradients"
    leaves = {name: v.clone().requires_grad_() for name,v in params.items()}
    k = torch.tensor([3,3])
    z,_ = encode_activations(leaves, h, kind, k, .2)
    loss = dictionary_loss(leaves, h, kind, k, .3, .2)[0]
    loss.backward()
    sae = sae_of(kind, params)
    step = sae.training_forward_pass(TrainStepInput(h[0], dict(l1=.3, l0=.3), None, 0, False))
    step.loss.backward()
    ours = dict(latents=z[0], output=decode_latents(leaves, z)[0], loss=loss)
    theirs = dict(latents=step.feature_acts, output=step.sae_out, loss=step.loss)
    for name in ('W_enc','b_enc','W_dec','b_dec'):
        ours[name] = leaves[name].grad[0].reshape(getattr(sae, name).shape)
        theirs[name] = getattr(sae, name).grad
    for t in (ours, theirs): t['W_dec'] = projected(t['W_dec'], W_dec[0])
    if kind=='jumprelu':
        ours['log_threshold'] = leaves['log_threshold'].grad[0,0]
        theirs['log_threshold'] = sae.threshold.grad*sae.threshold
    return {name: (ours[name]-theirs[name]).abs().max().item() for name in ours}

differences = {kind: largest_differences(kind) for kind in classes}
for d in differences.values(): assert max(d.values()) < 1e-10
differences
