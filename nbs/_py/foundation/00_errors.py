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
# > The three ways in which input can be wrong, each said in one sentence.

# %%
#| default_exp foundation.errors

# %%
#| hide
from fastcore.test import *


# %% [markdown]
# A person who mistypes a model's name, keeps a truncated download or resumes a run with
# other settings made an ordinary mistake. They deserve a sentence that names the thing, what
# is wrong with it and what to do, and not a traceback through five libraries. The commands
# catch `MoralScError`, print that sentence and exit with code 2; everything else that escapes
# is a defect of ours and keeps its traceback.

# %%
#| export
class MoralScError(Exception):
    "Input that is wrong in a way its owner can mend"

class DataError(MoralScError):
    "A file that is missing, damaged or not what it claims to be"

class ConfigError(MoralScError):
    "A name, an option or a setting that cannot be used as given"

class ModelError(MoralScError):
    "A model that cannot be found, loaded or trained further"


# %% [markdown]
# One `except` catches all three, and the kind still says where to look.

# %%
with expect_fail(MoralScError, contains='Age.jsonl'):
    raise DataError('Age.jsonl ends after 12 of 3680 rows: delete it and fetch it again.')

# %% [markdown]
# Half of such mistakes are a name with a letter wrong, so an unknown name always comes back
# with the nearest one that exists.

# %%
#| export
from difflib import get_close_matches


# %%
#| export
def unknown_name_message(
    kind:str,    # What was looked for, in the singular: 'model', 'notebook'
    name:str,    # What was asked for
    known:list,  # Names that exist
)->str:          # One sentence for an error of ours
    "Say that `name` is not among `known`, and which known name it resembles"
    near = get_close_matches(name.lower(), [k.lower() for k in known], n=1, cutoff=.5)
    hit = next((k for k in known if near and k.lower()==near[0]), None)
    end = f'did you mean {hit!r}?' if hit else f'known are: {", ".join(sorted(known))}.'
    return f'There is no {kind} {name!r}; {end}'


# %%
unknown_name_message('model', 'smolm2-135m', ['smollm2-135m-instruct', 'gemma-3-270m'])

# %%
test_eq(unknown_name_message('paper', 'zzz', ['bias', 'superposition']),
        "There is no paper 'zzz'; known are: bias, superposition.")
