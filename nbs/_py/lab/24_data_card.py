# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Data card of results
#
# > A card in the form of the Hugging Face hub for `data/results`, checked against the files.

# %%
#| default_exp lab.data_card

# %% [markdown]
# `data/results` holds records of runs. Its `README.md` is a dataset card: metadata that the hub reads, and a description of
# each file, its columns with their units, and the page that made it. The card is made from
# `data/results/card.toml` and from the files themselves, so it changes with them; this page's test fails if it is out of date, or
# if a file or a column has no description. `python -m moral_sc.lab.data_card` writes it.

# %%
#| export
import csv, json
from pathlib import Path

from moral_sc.foundation.datasets import data_dir, read_toml
from moral_sc.foundation.errors import DataError
from moral_sc.foundation.files import write_file

# %%
#| hide
import tempfile
from fastcore.test import *

# %% [markdown]
# ## Card

# %%
#| export
_OWN = ('README.md', 'card.toml')

def described_files(
    folder:Path,     # With card.toml
)->dict:             # Name to its entry; of tables also `columns` and `rows`
    "Read the descriptions of a folder of results; each file and each column must have one"
    card = read_toml(folder/'card.toml')
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and p.name not in _OWN)
    listed = sorted(card['files'])
    for n in {*names} ^ {*listed}:
        problem = 'has no description in' if n in names else 'is not there, but described in'
        raise DataError(f'{folder/n} {problem} card.toml.')
    return {n:card['files'][n] | _table(folder/n, card) for n in names}

def _table(path, card):
    if path.suffix!='.csv': return {}
    with open(path, newline='', encoding='utf-8') as f: head,*rows = csv.reader(f)
    known = card['columns'] | card['files'][path.name].get('columns', {})
    for c in head:
        if c not in known:
            raise DataError(f'{path} has a column {c!r} without a description in card.toml.')
    return dict(columns={c:known[c] for c in head}, rows=len(rows))

def _made(folder, name):
    "Return when and with what a file was made, from the JSON file beside it"
    path = (folder/name).with_suffix('.json')
    d = json.loads(path.read_text(encoding='utf-8')) if path.is_file() else {}
    made = d.get('made') or d.get('provenance') or {}
    text = [f"{k} {made[k]}" for k in ('moral_sc', 'commit', 'python', 'torch') if made.get(k)]
    return ', '.join([str(made.get('start', ''))[:10], *text]).strip(', ')

_HEADER = '''---
license: apache-2.0
language: en
pretty_name: Results of moral_sc
tags: [bias, evaluation, interpretability, reinforcement-learning]
configs:
{configs}
---

# Results of moral_sc

Records of runs of the package `moral_sc` and the weights of toy models. Nothing here holds texts
of a benchmark: tables have scores only. Every file is made by a page of the documentation, which
states how. This page is made by `python -m moral_sc.lab.data_card`.
'''

def render_card(
    folder:Path|None=None, # Default: `data/results`
)->str:
    "Write the dataset card of a folder of results"
    folder = Path(folder or data_dir()/'results')
    files = described_files(folder)
    tables = [n for n in files if n.endswith('.csv')]
    configs = '\n'.join(f'  - config_name: {Path(n).stem}\n    data_files: {n}' for n in tables)
    out = [_HEADER.format(configs=configs)]
    for n,d in files.items():
        out.append(f"## {n}\n\n{d['about']}. Page: `{d['page']}`.\n")
        made = _made(folder, n)
        if made: out.append(f'Made: {made}.\n')
        if 'columns' not in d: continue
        out.append(f"{d['rows']:,} rows.\n\n| column | meaning |\n| --- | --- |")
        out.append('\n'.join(f'| `{c}` | {text} |' for c,text in d['columns'].items())+'\n')
    return '\n'.join(out)

def write_card(
    folder:Path|None=None, # Default: `data/results`
)->Path:
    "Write README.md into a folder of results"
    folder = Path(folder or data_dir()/'results')
    return write_file(folder/'README.md', render_card(folder))

if __name__=='__main__' and '__file__' in globals(): print(write_card())

# %% [markdown]
# The card in the repository is up to date:

# %%
card = (data_dir()/'results'/'README.md').read_text()
test_eq(card, render_card())
print(card[:700])

# %% [markdown]
# A new file without a description is an error:

# %%
folder = Path(tempfile.mkdtemp())
(folder/'card.toml').write_text('[columns]\nx = "m"\n[files."a.csv"]\nabout = "A"\npage = "b"\n')
with expect_fail(DataError, contains='is not there'): render_card(folder)
(folder/'a.csv').write_text('x,y\n1,2\n')
with expect_fail(DataError, contains="a column 'y'"): render_card(folder)
(folder/'a.csv').write_text('x\n1\n')
assert '| `x` | m |' in write_card(folder).read_text()
(folder/'b.json').write_text('{}')
with expect_fail(DataError, contains='has no description'): render_card(folder)
