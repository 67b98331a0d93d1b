# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Superposition
#
# > Toy Models of Superposition: small ReLU models that store more features than dimensions.

# %%
#| default_exp superposition.__init__

# %%
#| export
from moral_sc.superposition.features import moments
from moral_sc.superposition.model import ToyConfig, reconstruct, batch_loss
from moral_sc.superposition.exact_loss import exact_loss, fit_exact
from moral_sc.superposition.training import ToyRun, train, save_run, load_run
from moral_sc.superposition.geometry import (feature_dimensionality, interference, leverage,
    represented, dimensions_per_feature, planar_shape)
from moral_sc.superposition.feature_graphs import recognise
from moral_sc.superposition.phase_diagram import train_restarts, phase_diagram
from moral_sc.superposition.dimensionality import dimensionality_sweep
from moral_sc.superposition.fourier_loss import population_loss
from moral_sc.superposition.polytope_gain import polytope_gain

_all_ = ['moments', 'ToyConfig', 'reconstruct', 'batch_loss', 'exact_loss', 'fit_exact', 'ToyRun',
         'train', 'save_run', 'load_run', 'feature_dimensionality', 'interference', 'leverage',
         'represented', 'dimensions_per_feature', 'planar_shape', 'recognise', 'train_restarts',
         'phase_diagram', 'dimensionality_sweep', 'population_loss', 'polytope_gain']

# %% [markdown]
# A model with fewer dimensions than features can still keep them apart, if they are rarely active
# together [@elhage2022]. This room trains such models by the hundred, knows their loss exactly,
# and measures the shapes that their features form.

# %%
#| hide
from fastcore.test import *

# %% [markdown]
# Eight models of five equally important features in two dimensions, four of them dense and four
# sparse:

# %%
import torch
density = torch.tensor([1.,.05]).repeat_interleave(4)[:,None]
config = ToyConfig(n_features=5, n_hidden=2, n_instances=8, density=density,
                   importance=[.9**i for i in range(5)], init=.1)
run = train(config, steps=2000, batch_size=256, lr=.01, schedule='cosine', seed=0)
run

# %% [markdown]
# The dense ones keep two features, the sparse ones all five:

# %%
stored = represented(run.W).sum(-1)
assert stored[:4].max() < stored[4:].min()
stored

# %% [markdown]
# Five features share two dimensions. What each has of them adds up to no more than the two:

# %%
D = feature_dimensionality(run.W)
assert (D.sum(-1) <= 2+1e-5).all()
D[-1], D[-1].sum()

# %% [markdown]
# And the loss of what was learned is a number without noise, beside the best there is:

# %%
best = fit_exact(ToyConfig(5, 2, density=.05, importance=[.9**i for i in range(5)]), restarts=4)
exact_loss(run.W, run.b, config.density, config.importance)[4:].min(), best['loss'][0,0]

# %% [markdown]
# **What is trained**
#
# - [Features](10_features.ipynb): sparse inputs drawn from a counter, alone or in sets
# - [Model](20_model.ipynb): the family, its start and its loss
# - [Training](40_training.ipynb): many models at once, each as if alone
# - [Sweeps](48_phase_diagram.ipynb): many starts for every model, ranked by a loss without noise
#
# **What is known without training**
#
# - [Integrals](25_integrals.ipynb) and [exact losses](30_exact_loss.ipynb): the population loss in closed
#   form, and optima
# - [Theory](32_theory.ipynb): the simple solutions and where they trade places
# - [A predicted staircase](33_polytope_gain.ipynb): which polytope gains most at each density
# - [Losses of many features](34_fourier_loss.ipynb): up to hundreds of features, by Fourier series
#
# **Engines**
#
# - [Lanes](engines/10_simd.ipynb), [steps](engines/20_codegen.ipynb) and [kernels for the CPU](engines/30_numba_cpu.ipynb):
#   a model's whole training inside one core
# - [Compiled](engines/40_cuda_graphs.ipynb): the step handed to a compiler
# - [Kernels for a GPU](engines/50_triton_gpu.ipynb): thousands of steps in one launch
# - [Bench](../benchmarks/10_superposition.ipynb): how much faster, measured so that the ratio means something
#
# **What comes out**
#
# - [Geometry](50_geometry.ipynb): dimensionality, interference, polytopes
# - [Feature graphs](52_feature_graphs.ipynb): which features interfere, and the name of their shape
# - [Dimensions](54_dimensionality.ipynb): shares of a dimension over a sweep
# - [Attacks](67_adversarial.ipynb): in which directions a model is vulnerable
# - [Neurons](66_neurons.ipynb): which features a hidden unit serves
# - [Memory](68_memorization.ipynb): finite data and what is learned by heart
# - Figures: [plots](60_plots.ipynb), [maps](62_maps.ipynb), [shapes](64_shapes.ipynb)
