# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Foundation
#
# > Plain tools that all three papers stand on: no machine learning.

# %%
#| default_exp foundation.__init__

# %%
#| export
from moral_sc.foundation.errors import (MoralScError, DataError, ConfigError, ModelError,
    unknown_name_message)
from moral_sc.foundation.datasets import (Source, sources, source, fetch, available, verify,
    data_list, read_jsonl, data_dir, cache_dir, online)
from moral_sc.foundation.runs import Run, open_run, content_key, provenance
from moral_sc.foundation.statistics import (Estimate, wilson, cluster_bootstrap,
    paired_difference, holm)
_all_ = ['MoralScError', 'DataError', 'ConfigError', 'ModelError', 'unknown_name_message', 'Source',
         'sources', 'source', 'fetch', 'available', 'verify', 'data_list', 'read_jsonl', 'data_dir',
         'cache_dir', 'online', 'Run', 'open_run', 'content_key', 'provenance', 'Estimate',
         'wilson', 'cluster_bootstrap', 'paired_difference', 'holm']

# %% [markdown]
# What a result rests on before any model is asked: which bytes went in, whether the work was
# finished, how sure the number is, and what the reader sees. Each question has a page.
#
# | question | page |
# | --- | --- |
# | What went wrong, and what can I do about it? | [errors](00_errors.ipynb) |
# | Are these the sentences that everybody else scored? | [data sets](10_datasets.ipynb) |
# | What is finished, and what happens if I kill it now? | [runs](20_runs.ipynb) |
# | How far can this number be from the truth? | [statistics](30_statistics.ipynb) |
# | Why does it look like this? | [figures](40_figures.ipynb) |
#
# The four work together in a few lines. Twelve rows of made-up answers are computed once, kept,
# and read back as a rate whose interval knows that they came from four templates.

# %%
import tempfile
from moral_sc.foundation import open_run, content_key, cluster_bootstrap

out = tempfile.mkdtemp()
keys = [content_key(template=t, row=r) for t in range(4) for r in range(3)]
with open_run(out, dict(what='demo')) as run:
    for i,k in enumerate(keys): run.put(k, dict(template=i//3, right=(i*5)%7>2))
    table = run.table(keys)
cluster_bootstrap(table.right, table.template)

# %% [markdown]
# Importing `moral_sc.foundation` is cheap: pandas, scipy, statsmodels and plotly are loaded by
# the functions that need them, and torch by none. The figures' template is the one thing that is
# not imported here, because importing it changes how every figure of the session looks.

# %%
import subprocess, sys

code = 'import sys, moral_sc.foundation; print({*sys.argv} & {*sys.modules} or "none")'
heavy = ['torch', 'transformers', 'pandas', 'scipy', 'statsmodels', 'plotly']
loaded = subprocess.check_output([sys.executable, '-c', code, *heavy], text=True).strip()
loaded

# %%
assert loaded=='none'
