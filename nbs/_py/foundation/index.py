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
# > Provide data files, runs, statistics and figures without any machine learning.

# %%
#| default_exp foundation.__init__

# %%
#| export
import lazy_loader
from typing import TYPE_CHECKING

if TYPE_CHECKING: # For editors and type checkers; at run time names are imported on first use
    from moral_sc.foundation.errors import MoralScError, DataError, ConfigError, ModelError
    from moral_sc.foundation.datasets import (Source, sources, source, fetch, available, verify,
        data_list, read_jsonl, data_dir, cache_dir, online)
    from moral_sc.foundation.runs import Run, open_run, content_key, provenance
    from moral_sc.foundation.statistics import (Estimate, wilson, cluster_bootstrap,
        paired_difference, holm)

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    'errors': ['MoralScError', 'DataError', 'ConfigError', 'ModelError'],
    'datasets': ['Source', 'sources', 'source', 'fetch', 'available', 'verify', 'data_list',
                 'read_jsonl', 'data_dir', 'cache_dir', 'online'],
    'runs': ['Run', 'open_run', 'content_key', 'provenance'],
    'statistics': ['Estimate', 'wilson', 'cluster_bootstrap', 'paired_difference', 'holm'],
})

# %% [markdown]
# All three papers use these modules:
#
# | module | what it does |
# | --- | --- |
# | [errors](00_errors.ipynb) | errors of bad input, with a one-sentence message |
# | [arguments](05_arguments.ipynb) | checks of keywords and types at public functions |
# | [datasets](10_datasets.ipynb) | public data files, pinned by commit and hash |
# | [files](12_files.ipynb) | files replaced in one step, private folders of compiled code |
# | [tables](14_tables.ipynb) | rows of a file, a DataFrame or a list of dicts |
# | [runs](20_runs.ipynb) | folders of finished items; an interrupted run resumes |
# | [manifest](22_manifest.ipynb) | size and SHA-256 of the files of a run |
# | [progress](25_progress.ipynb) | bars and callbacks of long functions |
# | [statistics](30_statistics.ipynb) | rates, cluster bootstraps, paired differences, p-values |
# | [figures](40_figures.ipynb) | the plotly template and the colours |
# | [damaged files](90_damaged_files.ipynb) | tests: random damage ends in the stored data or in an error |
#
# The example stores twelve rows of made-up answers in a run and reads them back as a rate, whose interval accounts for the
# four templates.

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
# `import moral_sc.foundation` is fast: pandas, scipy, statsmodels and plotly are imported by the functions that need
# them, and torch by none. The module `figures` is not imported here because it changes plotly's default template.

# %%
import subprocess, sys

code = 'import sys, moral_sc.foundation; print({*sys.argv} & {*sys.modules} or "none")'
heavy = ['torch', 'transformers', 'pandas', 'scipy', 'statsmodels', 'plotly']
loaded = subprocess.check_output([sys.executable, '-c', code, *heavy], text=True).strip()
loaded

# %%
assert loaded=='none'
