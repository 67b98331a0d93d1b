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
#| default_exp language.engine.allocator

# %%
#| export
import ctypes
from contextlib import contextmanager

# %%
#| hide
import os
import resource
from pathlib import Path
import torch
from fastcore.test import *

# %% [markdown]
# A large tensor is memory that the C library maps for it alone and gives back as soon as the tensor
# is gone. Every page of the next one is then new: the system clears it, and the first touch of it
# is a fault. In a step of training a model of 135M weights that is many gigabytes, and between a
# tenth and a quarter of the time. GPUs do not have this problem, because torch keeps their memory
# itself; on a CPU the allocator has to be told.
#
# While `retain_freed_memory` lasts, the process keeps the most that it has ever used. Where something is to take
# the place of something else without both being there, the opposite is wanted, and is `release_freed_memory`: glibc
# learns from what is freed to keep larger and larger pieces, and one that it keeps may be a few
# bytes too short for what comes next. Where the C library is not glibc, nothing happens.

# %%
#| export
_TRIM_AT = -1 # Names of settings in malloc.h
_MMAP_FROM = -3
_MMAP_MOST = -4
_on = []

def _glibc():
    try: return [getattr(ctypes.CDLL(None), n) for n in ('mallopt', 'malloc_trim')]
    except (AttributeError, OSError, TypeError): return None,None

@contextmanager
def retain_freed_memory(
    device='cpu', # Where the work is done; for others nothing happens
):
    "Memory that is freed is used again and not given back to the system"
    tune,trim = _glibc()
    if tune is None or _on or str(device)!='cpu': yield; return
    _on.append(tune(_MMAP_MOST, 0)); tune(_TRIM_AT, 2**31-1)
    try: yield
    finally:
        tune(_MMAP_MOST, 65_536); tune(_MMAP_FROM, 2**25); tune(_TRIM_AT, 2**26)
        trim(0); _on.clear()

@contextmanager
def release_freed_memory():
    "Large pieces of memory are given back when they are freed; a function to give back others"
    tune,trim = _glibc()
    if tune is None or _on: yield lambda: None; return
    tune(_MMAP_FROM, 2**20)
    try: yield lambda: trim(0)
    finally: tune(_MMAP_FROM, 2**25); tune(_TRIM_AT, 2**26)


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
with retain_freed_memory():
    faults()
    during = faults()
    with retain_freed_memory(): pass
    still = faults()
after = faults()
if hasattr(ctypes.CDLL(None), 'mallopt'): # glibc
    assert max(during, still)<.05*min(first, after)
dict(before=first, during=during, after=after)

# %%
with retain_freed_memory('cuda'): test_eq(_on, [])


# %% [markdown]
# Forty tensors of 2 MB, each replaced by one that is a little larger: how much more the process
# holds for it, in MB.

# %%
def held(): return int(Path('/proc/self/statm').read_text().split()[1])*os.sysconf('SC_PAGE_SIZE')

def replaced(trim=lambda: None):
    "What is held at the end beyond what was held at first"
    x = [torch.ones(2**19) for _ in range(40)]
    keep = [torch.ones(2**10) for _ in range(40)]
    before = held()
    for i in range(40): x[i] = torch.ones(2**19+64); trim()
    return (held()-before)/1e6

if Path('/proc/self/statm').exists():
    with release_freed_memory() as trim: last = replaced(trim)
    assert last<20
