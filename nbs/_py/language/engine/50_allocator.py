# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Memory allocator
#
# > On a CPU, training is faster if the process keeps freed memory instead of returning it.

# %%
#| default_exp language.engine.allocator

# %%
#| export
import ctypes
from contextlib import contextmanager
from threading import Lock

# %%
#| hide
import os
import resource
from pathlib import Path
import torch
from fastcore.test import *

# %% [markdown]
# The C library maps the memory of a large tensor for it alone and returns it to the system as soon
# as the tensor is freed. Every page of the next tensor is then new: the system clears it, and the
# first access is a page fault. A training step of a 135M model moves many gigabytes, and the
# faults cost between a tenth and a quarter of its time. On a GPU, torch caches memory itself; on a
# CPU the allocator has to be told.
#
# `retain_freed_memory` lets the process keep the most that it has ever used. `release_freed_memory`
# does the opposite: freed blocks return to the system at once, so packed weights can replace plain
# ones without both being resident. It is needed because glibc learns from freed blocks to keep
# larger and larger ones, and a block that it keeps may be a few bytes too short for the next
# tensor. Both are settings of the whole process; they change no number. Without glibc
# nothing happens.

# %%
#| export
_TRIM_THRESHOLD = -1 # Names of settings in malloc.h
_MMAP_THRESHOLD = -3
_MMAP_MAX = -4
_lock = Lock()
_retaining = [] # One entry a context that is open, in any thread

def _glibc():
    try: return [getattr(ctypes.CDLL(None), n) for n in ('mallopt', 'malloc_trim')]
    except (AttributeError, OSError, TypeError): return None,None

@contextmanager
def retain_freed_memory(
    device='cpu', # Where the work is done; on others nothing happens
):
    "Keep freed memory for later tensors while this lasts"
    mallopt,trim = _glibc()
    if mallopt is None or str(device)!='cpu': yield; return
    with _lock:
        if not _retaining: mallopt(_MMAP_MAX, 0); mallopt(_TRIM_THRESHOLD, 2**31-1)
        _retaining.append(device)
    try: yield
    finally:
        with _lock:
            _retaining.pop()
            if not _retaining:
                mallopt(_MMAP_MAX, 65_536); mallopt(_MMAP_THRESHOLD, 2**25)
                mallopt(_TRIM_THRESHOLD, 2**26); trim(0)

@contextmanager
def release_freed_memory():
    "Return large freed blocks at once; yields a function that returns the smaller ones, too"
    mallopt,trim = _glibc()
    if mallopt is None or _retaining: yield lambda: None; return
    mallopt(_MMAP_THRESHOLD, 2**20)
    try: yield lambda: trim(0)
    finally: mallopt(_MMAP_THRESHOLD, 2**25); mallopt(_TRIM_THRESHOLD, 2**26)


# %% [markdown]
# ## Proof
#
# Page faults of ten rounds in which a tensor of 64 MB is made, used and dropped: before, while
# memory is retained and a few rounds have established its size, and afterwards.

# %%
def faults(rounds=10):
    "Page faults of some rounds"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds): torch.ones(2**24).sum()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt-before

first = faults()
with retain_freed_memory():
    faults()
    during = faults()
    with retain_freed_memory(): pass
    nested = faults()
after = faults()
if hasattr(ctypes.CDLL(None), 'mallopt'): # glibc
    assert max(during, nested)<.05*min(first, after)
dict(before=first, during=during, after=after)

# %%
with retain_freed_memory('cuda'): test_eq(_retaining, [])


# %% [markdown]
# Forty tensors of 2 MB, each replaced by a slightly larger one, in MB by which the process grows:

# %%
def resident():
    return int(Path('/proc/self/statm').read_text().split()[1])*os.sysconf('SC_PAGE_SIZE')

def growth(trim=lambda: None):
    "Resident memory at the end beyond that at first"
    x = [torch.ones(2**19) for _ in range(40)]
    small = [torch.ones(2**10) for _ in range(40)]
    before = resident()
    for i in range(len(small)): x[i] = torch.ones(2**19+64); trim()
    return (resident()-before)/1e6

if Path('/proc/self/statm').exists():
    with release_freed_memory() as trim: last = growth(trim)
    assert last<20
