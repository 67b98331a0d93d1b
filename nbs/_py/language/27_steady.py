# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Memory that is kept
#
# > On a CPU, a step of training asks the system for the same memory again and again; here it
# > keeps what it has.

# %%
#| default_exp language.steady

# %%
#| export
import ctypes
from contextlib import contextmanager

# %%
#| hide
import resource
import torch
from fastcore.test import *

# %% [markdown]
# A large tensor is memory that the C library maps for it alone and gives back as soon as the tensor
# is gone. Every page of the next one is then new: the system clears it, and the first touch of it
# is a fault. In a step of training a model of 135M weights that is many gigabytes, and between a
# tenth and a quarter of the time. GPUs do not have this problem, because torch keeps their memory
# itself; on a CPU the allocator has to be told.
#
# While this lasts, the process keeps the most that it has ever used. Where the C library is not
# glibc, nothing happens.

# %%
#| export
_TRIM_AT,_MMAP_FROM,_MMAP_MOST = -1,-3,-4 # Names of settings in malloc.h
_on = []

@contextmanager
def steady(
    device='cpu', # Where the work is done; for others nothing happens
):
    "Memory that is freed is used again and not given back to the system"
    try: tune,trim = (getattr(ctypes.CDLL(None), n) for n in ('mallopt', 'malloc_trim'))
    except (AttributeError, OSError, TypeError): tune = None
    if tune is None or _on or str(device)!='cpu': yield; return
    _on.append(tune(_MMAP_MOST, 0)); tune(_TRIM_AT, 2**31-1)
    try: yield
    finally:
        tune(_MMAP_MOST, 65_536); tune(_MMAP_FROM, 2**25); tune(_TRIM_AT, 2**26)
        trim(0); _on.clear()


# %% [markdown]
# ## Proof
#
# Faults of ten rounds in which a tensor of 64 MB is made, used and dropped: by itself, while
# memory is kept and a few rounds have shown how much it takes, and afterwards.

# %%
def faults(rounds=10):
    "Pages that the system had to bring"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds): torch.ones(2**24).sum()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt-before

first = faults()
with steady():
    faults()
    during = faults()
    with steady(): pass
    still = faults()
after = faults()
if hasattr(ctypes.CDLL(None), 'mallopt'): # glibc
    assert max(during, still)<.05*min(first, after)
dict(before=first, during=during, after=after)

# %%
with steady('cuda'): test_eq(_on, [])
