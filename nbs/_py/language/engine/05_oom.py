# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Out of memory
#
# > Work that runs out of memory is repeated in batches of half the size.

# %%
#| default_exp language.engine.oom

# %%
#| export
import torch

from moral_sc.foundation.errors import ModelError

# %%
#| hide
from fastcore.test import *


# %% [markdown]
# The largest batch that fits depends on the model, the lengths of the rows and the other
# processes of a machine. You cannot know it beforehand, so scoring, supervised training and
# reinforcement learning begin with a budget of tokens and halve it when memory runs out.
# A sum over batches does not depend on how the rows were divided.
#
# ## Recognising the error
#
# A GPU raises `torch.OutOfMemoryError`. On a CPU, torch raises a plain `RuntimeError` whose
# message has the words "allocate memory".

# %%
#| export
def is_out_of_memory(
    error:Exception,
)->bool:
    "Tell whether an exception means that memory ran out"
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and 'allocate memory' in str(error))

def halve_max_tokens(
    error:Exception, # Raised at `max_tokens`; raised again unless memory ran out
    max_tokens:int,  # In one forward pass, padding included
    lengths=None,    # Tokens of each row of the batch that failed, where known
    advice='shorten it, or load the model in bfloat16', # For a single row that does not fit
    name='the model',
)->int:              # Tokens in one forward pass from now on
    "Return half the token budget after an out-of-memory error"
    if not is_out_of_memory(error): raise error
    if max_tokens<=1 or (lengths is not None and len(lengths)==1):
        row = f'one row of {max(lengths)} tokens' if lengths else 'one row'
        raise ModelError(f'Out of memory: {name} cannot process {row}; {advice}.') from None
    if torch.cuda.is_available(): torch.cuda.empty_cache()
    return max_tokens//2


# %%
halve_max_tokens(torch.OutOfMemoryError(), 4096, [12, 30])

# %% [markdown]
# Other errors are raised again, and a single row cannot be divided.

# %%
cpu_error = RuntimeError(
    "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
assert is_out_of_memory(cpu_error) and not is_out_of_memory(RuntimeError('shapes differ'))
with expect_fail(RuntimeError, contains='shapes'): halve_max_tokens(RuntimeError('shapes'), 64)
with expect_fail(ModelError, contains='one row of 39 tokens'):
    halve_max_tokens(cpu_error, 4096, [39])


# %% [markdown]
# ## Repeating the work

# %%
#| export
def halve_on_oom(
    run,            # run(max_tokens) -> anything
    max_tokens:int, # In one forward pass to begin with, padding included
    lengths=None,   # Tokens of each row, where known: a budget that holds one row is the least
    reset=None,     # Called without arguments before `run` is repeated: `model.zero_grad`
    advice='shorten it, or train a smaller model', # For a single row that does not fit
)->tuple:           # What `run` returned, and the max_tokens that it returned it for
    "Call a function, and again with half the tokens for as long as memory runs out"
    while True:
        try: return run(max_tokens),max_tokens
        except RuntimeError as e:
            single = lengths is not None and max_tokens<=max(lengths)
            max_tokens = halve_max_tokens(e, max_tokens, [max(lengths)] if single else lengths,
                                          advice)
            if lengths is not None: max_tokens = min(max_tokens, sum(lengths)//2)
        if reset: reset()


# %% [markdown]
# A machine that has memory for 150 tokens:

# %%
budgets = []
def run(max_tokens):
    budgets.append(max_tokens)
    if max_tokens>150: raise torch.OutOfMemoryError
    return 'done'

test_eq(halve_on_oom(run, 4096), ('done', 128))
test_eq(halve_on_oom(run, 4096, lengths=[90]*10), ('done', 112))
budgets


# %%
def full(max_tokens): raise torch.OutOfMemoryError
for lengths in ([39], [39, 20], None):
    with expect_fail(ModelError, contains='one row'): halve_on_oom(full, 4096, lengths)
