# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Progress
#
# > Report the progress of long functions by a bar or by a function of the caller.

# %%
#| default_exp foundation.progress

# %%
#| export
import sys
from contextlib import contextmanager

from moral_sc.foundation.errors import ConfigError

# %%
#| hide
import io
from contextlib import redirect_stderr
from fastcore.test import *


# %% [markdown]
# Long functions take `progress`. With `True` they show a bar of tqdm on stderr; a function is called with
# the number of items that are done and the number of all items.

# %%
#| export
@contextmanager
def progress_callback(
    progress, # True: a bar; a function (done, total); None or False: nothing
    label='', # Shown beside the bar
):            # Yields a function (done, total), or None
    "Turn the argument `progress` of a function into a callback"
    if progress is None or progress is False: yield None
    elif callable(progress): yield progress
    elif progress is True:
        from tqdm import tqdm
        with tqdm(desc=label, file=sys.stderr) as bar: yield lambda *x: _update(bar, *x)
    else:
        raise ConfigError(f'progress is {progress!r}; give True for a bar, or a function of the '
                          'numbers of finished and of all items.')

def _update(bar, done, total):
    bar.total = total
    bar.n = done
    bar.refresh()


# %%
def count(n, progress=None):
    "Count to n"
    with progress_callback(progress, 'count') as report:
        for i in range(n):
            if report: report(i+1, n)
    return n

seen = []
count(3, progress=lambda *x: seen.append(x))
seen

# %%
stderr = io.StringIO()
with redirect_stderr(stderr): count(3, progress=True)
assert 'count: 100%' in stderr.getvalue() and '3/3' in stderr.getvalue()
test_eq(count(2), 2)
test_eq(count(2, False), 2)
with expect_fail(ConfigError, contains="progress is 'yes'; give True"): count(2, 'yes')
