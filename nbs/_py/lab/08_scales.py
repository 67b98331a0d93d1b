# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Scales
#
# > Pick the sizes of a paper page for one of the scales quick, cpu and gpu.

# %%
#| default_exp lab.scales

# %%
#| export
from moral_sc.foundation.errors import ConfigError, unknown_name_message

# %%
#| hide
from fastcore.test import *

# %% [markdown]
# Each paper page runs at three scales with the same code. Only sizes differ: the number of
# models, seeds, items or steps. `quick` takes less than 30 seconds on two cores and is what the
# tests run, `cpu` takes minutes to an hour on a laptop, `gpu` has the largest sizes, the paper's where that is possible.

# %%
#| export
SCALES = ('quick', 'cpu', 'gpu')

def validate_scale(
    scale:str,
    known=SCALES,
):
    "Raise a `ConfigError` for a scale that there is not"
    if scale not in known: raise ConfigError(unknown_name_message('scale', scale, list(known)))

def at_scale(
    scale:str, # 'quick', 'cpu' or 'gpu'
    **sizes,   # One value for each scale
):             # The value of `scale`
    "Return the sizes of a page at one scale"
    validate_scale(scale, sizes)
    return sizes[scale]


# %%
scale = 'quick'
at_scale(scale, quick=dict(seeds=1), cpu=dict(seeds=10), gpu=dict(seeds=100))

# %% [markdown]
# A misspelt scale is named, together with the ones there are:

# %%
with expect_fail(ConfigError, contains='quik'): at_scale('quik', quick=1, cpu=2, gpu=3)
