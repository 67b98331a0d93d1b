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
import logging, sys
from contextlib import contextmanager

from moral_sc.foundation.errors import ConfigError

# %%
#| hide
import io
from contextlib import redirect_stderr
from fastcore.test import *

# %% [markdown]
# Long functions take `progress`. With `True` they show a bar of tqdm on stderr; a function is
# called with the number of items that are done and the number of all items. If the standard module
# `logging` lets messages of level INFO through, each tenth of the work is logged as well.

# %%
#| export
_log = logging.getLogger(__name__)

@contextmanager
def progress_callback(
    progress, # True: a bar; a function (done, total); None or False: nothing
    label='', # Shown beside the bar
):            # Yields a function (done, total), or None
    "Turn the argument `progress` of a function into a callback"
    if progress is None or progress is False: yield _with_log(None, label)
    elif callable(progress): yield _with_log(progress, label)
    elif progress is True:
        from tqdm import tqdm
        with tqdm(desc=label, file=sys.stderr) as bar:
            yield _with_log(lambda *x: _update(bar, *x), label)
    else:
        raise ConfigError(f'progress is {progress!r}; give True for a bar, or a function of the '
                          'numbers of finished and of all items.')

def _with_log(report, label):
    "Return a callback that logs each tenth as well, if such messages are wanted"
    if not _log.isEnabledFor(logging.INFO): return report
    logged = set()
    def report_and_log(done, total):
        tenth = 10*done//max(total, 1)
        if tenth not in logged: _log.info('%s: %d of %d', label, done, total)
        logged.add(tenth)
        if report: report(done, total)
    return report_and_log

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

# %%
stderr = io.StringIO()
handler = logging.StreamHandler(stderr)
_log.addHandler(handler); _log.setLevel(logging.INFO)
seen.clear()
count(40, progress=lambda *x: seen.append(x)); count(2)
_log.removeHandler(handler); _log.setLevel(logging.NOTSET)
lines = stderr.getvalue().splitlines()
test_eq((len(seen), len(lines), lines[-1]), (40, 13, 'count: 2 of 2'))
lines[:3]
