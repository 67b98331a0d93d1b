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
# > Toy models of superposition are small ReLU models with more features than dimensions.

# %%
#| default_exp superposition.__init__

# %%
#| export
from moral_sc.superposition.features import moments
from moral_sc.superposition.model import ToyConfig, reconstruct, batch_loss
from moral_sc.superposition.exact_loss import exact_loss, fit_exact
from moral_sc.superposition.training import ToyRun, load_run, save_run, train
from moral_sc.superposition.geometry import (feature_dimensionality, interference, leverage,
    represented, dimensions_per_feature, planar_shape)
from moral_sc.superposition.feature_graphs import recognise
from moral_sc.superposition.phase_diagram import train_restarts, phase_diagram
from moral_sc.superposition.dimensionality import dimensionality_sweep
from moral_sc.superposition.fourier_loss import population_loss
from moral_sc.superposition.polytope_gain import polytope_gain
from moral_sc.superposition.dictionaries import Dictionary, fit_dictionary, score_dictionary
from moral_sc.superposition.learning_coefficient import learning_coefficient

_all_ = ['moments', 'ToyConfig', 'reconstruct', 'batch_loss', 'exact_loss', 'fit_exact', 'ToyRun',
         'train', 'save_run', 'load_run', 'feature_dimensionality', 'interference', 'leverage',
         'represented', 'dimensions_per_feature', 'planar_shape', 'recognise', 'train_restarts',
         'phase_diagram', 'dimensionality_sweep', 'population_loss', 'polytope_gain',
         'Dictionary', 'fit_dictionary', 'score_dictionary', 'learning_coefficient']

# %% [markdown]
# A model with fewer dimensions than features can still keep them apart if they are rarely active
# together [@elhage2022]. This package trains such models by the hundred, computes the loss of ReLU
# and linear models exactly, and measures the shapes that their features form.
#
# | You want to | Page | Function |
# | --- | --- | --- |
# | describe a batch of toy models | [Toy model](20_model.ipynb) | `ToyConfig`, `batch_loss` |
# | draw sparse inputs | [Features](10_features.ipynb) | `Sampler`, `moments` |
# | train many models at once | [Training](40_training.ipynb) | `train`, `save_run`, `load_run` |
# | train restarts, find optima, map phases | [Phase diagrams](48_phase_diagram.ipynb) | `train_restarts`, `exact_optima`, `phase_diagram` |
# | compute the population loss and its optimum | [Exact loss](30_exact_loss.ipynb) | `exact_loss`, `fit_exact` |
# | ... for up to hundreds of features | [Fourier loss](34_fourier_loss.ipynb) | `population_loss` |
# | ... with hidden ReLUs, by quadrature | [Quadrature](36_quadrature.ipynb) | `quadrature_loss`, `minimise_quadrature` |
# | ... from its integrals | [Integrals](25_integrals.ipynb) | `phi`, `conditional_errors` |
# | ... with gradients, in a compiled loop | [Compiled errors](28_compiled_errors.ipynb) | `errors_and_slopes` |
# | compare with simple solutions | [Theory](32_theory.ipynb) | `linear_optimum`, `pair_losses` |
# | predict the polytope for a density | [Polytope gain](33_polytope_gain.ipynb) | `polytope_gain`, `best_regular_shape` |
# | measure dimensionality and interference | [Geometry](50_geometry.ipynb) | `feature_dimensionality`, `interference` |
# | name the shapes of interfering features | [Feature graphs](52_feature_graphs.ipynb) | `recognise`, `overall_shape` |
# | measure dimensionality over a sweep | [Dimensionality sweep](54_dimensionality.ipynb) | `dimensionality_sweep` |
# | analyse models with hidden ReLUs | [Neurons](66_neurons.ipynb) | `count_neurons`, `plot_weight_stacks` |
# | tell computing from storing | [Computation](69_computation.ipynb) | `loss_certificate`, `dedicated_bound`, `load_abs_model` |
# | find features from activations alone | [Sparse coding](70_sparse_coding.ipynb) | `fit_sparse_code`, `share_found` |
# | ... by sparse autoencoders, scored against the truth | [Dictionaries](72_dictionaries.ipynb) | `fit_dictionary`, `score_dictionary` |
# | ... beside sparse coding with the true directions | [Recovery](75_recovery.ipynb) | `measure_recovery` |
# | measure how flat a minimum is | [Learning coefficient](74_learning_coefficient.ipynb) | `learning_coefficient` |
# | attack a model | [Adversarial examples](67_adversarial.ipynb) | `analytic_attack`, `vulnerability` |
# | train on finite data sets | [Memorization](68_memorization.ipynb) | `memorization_sweep` |
# | plot matrices, curves, phase diagrams | [Plots](60_plots.ipynb) | `plot_columns`, `plot_curves`, `plot_phases` |
# | know what happens to a damaged run | [Damaged runs](90_damaged_runs.ipynb) | `load_run` |
# | plot polytopes and dimensionality | [Geometry plots](62_geometry_plots.ipynb) | `plot_dimensionality`, `plot_shapes_3d` |
#
# The engines train the same models with the same data; `train(..., engine='auto')` selects one.
#
# | Engine | Page | Method |
# | --- | --- | --- |
# | `eager` | [Training](40_training.ipynb) | PyTorch autograd, the reference |
# | `numba` | [Numba engine](engines/30_numba_cpu.ipynb) | one model per core; built on [SIMD vectors](engines/10_simd.ipynb) and a [step code generator](engines/20_codegen.ipynb) |
# | `compiled` | [CUDA graphs](engines/40_cuda_graphs.ipynb) | `torch.compile`, recorded as a graph on a GPU |
# | `triton` | [Triton engine](engines/50_triton_gpu.ipynb) | thousands of steps per launch; not yet run on a GPU |
#
# Measured speeds are in [Toy-model speed](../benchmarks/superposition_results.ipynb).

# %%
#| hide
from fastcore.test import *

# %% [markdown]
# ## Example
#
# Eight models of five features in two dimensions, with importance falling from feature to feature:
# four of them dense and four sparse.

# %%
import torch
density = torch.tensor([1.,.05]).repeat_interleave(4)[:,None]
config = ToyConfig(n_features=5, n_hidden=2, n_instances=8, density=density,
                   importance=[.9**i for i in range(5)], init=.1)
run = train(config, steps=2000, batch_size=256, lr=.01, schedule='cosine', seed=0)
run

# %% [markdown]
# The dense models store two features, the sparse ones all five:

# %%
stored = represented(run.W).sum(-1)
assert stored[:4].max() < stored[4:].min()
stored

# %% [markdown]
# Five features share two dimensions, and their dimensionalities add up to at most two:

# %%
D = feature_dimensionality(run.W)
assert (D.sum(-1) <= 2+1e-5).all()
D[-1], D[-1].sum()

# %% [markdown]
# The loss of the trained models is computed exactly, beside the best possible loss:

# %%
best = fit_exact(ToyConfig(5, 2, density=.05, importance=[.9**i for i in range(5)]), restarts=4)
exact_loss(run.W, run.b, config.density, config.importance)[4:].min(), best['loss'][0,0]
