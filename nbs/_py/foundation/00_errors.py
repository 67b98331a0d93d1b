# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Errors
#
# > Define the errors of bad input, each with a one-sentence message.

# %%
#| default_exp foundation.errors

# %%
#| hide
from fastcore.test import *


# %% [markdown]
# A misspelt model name, a truncated download or a run resumed with other settings are ordinary mistakes. The
# message of such an error names the problem and the way to solve it, so that you need no
# traceback. The command line catches `MoralScError`, prints its message and exits with code 2. Any other
# exception is a bug and keeps its traceback.
#
# ## Error types

# %%
#| export
class MoralScError(Exception):
    "Base class of errors that the user can correct"

class DataError(MoralScError):
    "A file is missing, damaged or not the expected one"

class ConfigError(MoralScError):
    "A name, option or setting is invalid"

class ModelError(MoralScError):
    "A model cannot be found, loaded or trained"


# %% [markdown]
# Catch all three with their base class.

# %%
with expect_fail(MoralScError, contains='Age.jsonl'):
    raise DataError('Age.jsonl ends after 12 of 3680 rows: delete it and fetch it again.')


# %% [markdown]
# ## Values in messages
#
# A message shows the value that was given. A tensor or a long list is named by its shape instead.

# %%
#| export
def short_repr(
    value,
    limit:int=60, # Longest text
)->str:
    "Describe a value in a few words"
    shape = getattr(value, 'shape', None)
    kind = type(value).__name__
    if shape: return f'a {kind} of shape {list(shape)}'
    text = repr(value)
    if len(text)<=limit: return text
    return f'a {kind} of {len(value)}' if hasattr(value, '__len__') else f'{text[:limit]}…'


# %%
import numpy as np
short_repr(np.zeros((20, 5))), short_repr([[1.]*5]*20), short_repr('cpu')

# %%
test_eq(short_repr(np.float64(2)), repr(np.float64(2)))
assert len(short_repr(object(), 10))==11

# %% [markdown]
# ## Misspelt names
#
# An unknown name is answered with the nearest known one.

# %%
#| export
from difflib import get_close_matches


# %%
#| export
def unknown_name_message(
    kind:str,    # Of the thing, in the singular: 'model', 'notebook'
    name:str,    # The unknown name
    known:list,  # Known names
)->str:
    "Return the message for an unknown name, with the nearest known one"
    if not isinstance(name, str): name = short_repr(name)
    matches = get_close_matches(name.lower(), [k.lower() for k in known], n=1, cutoff=.5)
    nearest = next((k for k in known if matches and k.lower()==matches[0]), None)
    end = f'did you mean {nearest!r}?' if nearest else f'known are: {", ".join(sorted(known))}.'
    return f'There is no {kind} {name!r}; {end}'


# %%
unknown_name_message('model', 'smolm2-135m', ['smollm2-135m-instruct', 'gemma-3-270m'])

# %%
test_eq(unknown_name_message('paper', 'zzz', ['bias', 'superposition']),
        "There is no paper 'zzz'; known are: bias, superposition.")
assert unknown_name_message('paper', None, ['bias']).startswith("There is no paper 'None'")
