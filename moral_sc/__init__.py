"""Rerun the experiments of three papers: superposition, constitutional AI, moral self-correction."""

__version__ = "0.1.0"

# This file is written by hand; nbdev rewrites only the line of the version.
from importlib import import_module

_packages = ('foundation', 'language', 'superposition', 'constitution', 'bias', 'benchmarks', 'lab')

def __getattr__(name):
    "Import a package on first use: `moral_sc.bias` works after `import moral_sc`."
    if name in _packages: return import_module(f'moral_sc.{name}')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

def __dir__(): return sorted({*globals(), *_packages})
