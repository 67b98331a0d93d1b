# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Damaged pages
#
# > Random damage to pages, claims and reports ends in data or in one sentence.

# %%
#| hide
#| needs: hypothesis
import json
import tempfile
from pathlib import Path

import nbformat
from fastcore.test import *
from hypothesis import given, settings, strategies as st
from moral_sc.foundation.errors import MoralScError
from moral_sc.lab.agreement import compare_report
from moral_sc.lab.claims import criteria
from moral_sc.lab.execution import declared_parameters, read_notebook
from moral_sc.lab.reproduce import page_parameters, prepare_report

tmp = Path(tempfile.mkdtemp())

# %% [markdown]
# Files are changed at random: bytes are flipped, cut, inserted and repeated, and JSON values are replaced.

# %%
values = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5),
                      lambda inside: st.lists(inside, max_size=2), max_leaves=3)

@st.composite
def damaged(draw, data):
    "Bytes with a random change"
    i = draw(st.integers(0, len(data)-1))
    part = draw(st.binary(max_size=4))
    kind = draw(st.sampled_from(['flip', 'cut', 'insert', 'repeat']))
    if kind=='flip': return data[:i]+bytes([data[i] ^ 1 << draw(st.integers(0, 7))])+data[i+1:]
    if kind=='cut': return data[:i]
    return data[:i]+(part if kind=='insert' else data[max(0, i-20):i])+data[i:]

@st.composite
def changed(draw, value):
    "A JSON value with one part replaced or removed"
    if not isinstance(value, (dict, list)) or not value or draw(st.integers(0, 3))==0:
        return draw(values)
    key = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
    res = value.copy()
    if draw(st.booleans()): res.pop(key)
    else: res[key] = draw(changed(value[key]))
    return res

fuzz = settings(max_examples=100, deadline=None, database=None, derandomize=True)
counts = {}
def read_or_error(kind, read):
    "Return what a reader returns, or None after an error of ours"
    n = counts.setdefault(kind, [0, 0])
    try: value = read()
    except MoralScError as e:
        assert str(e)
        n[1] += 1
        return None
    n[0] += 1
    return value


# %% [markdown]
# ## Claims
#
# A file of criteria is read or refused; a claim is never dropped.

# %%
toml = b'''[[claim]]
id = "p/a"
paper = "p"
section = "1"
sentence = "It is large."
criterion = "At least 2."
quantity = "size"
at_least = 2
scale = "quick"
whose = "paper"
draws = "nothing"
'''
def read_claims(data):
    (tmp/'claims').mkdir(exist_ok=True)
    (tmp/'claims'/'p.toml').write_bytes(data)
    return criteria(tmp/'claims')

@fuzz
@given(damaged(toml+toml.replace(b'p/a', b'p/b')))
def test_claims(data):
    found = read_or_error('claims', lambda: read_claims(data))
    if found is not None: test_eq(len(found), data.count(b'[[claim]]'))

test_eq(list(read_claims(toml)), ['p/a'])
test_claims()

# %% [markdown]
# ## Pages
#
# A notebook's parameters are read or the notebook is refused. A parameter that a page does not take is refused as well.

# %%
new = nbformat.v4.new_code_cell
page = nbformat.v4.new_notebook(cells=[new("scale: str = 'quick'\nseed, steps = 0, 5")])
page.cells[0].metadata['tags'] = ['parameters']
page.cells[0].id = 'parameters' # Random otherwise, and the damage with it
text = nbformat.writes(page)

def read_page(data):
    path = tmp/'page.ipynb'
    path.write_bytes(data)
    declared = declared_parameters(read_notebook(path))
    given = page_parameters([path], 'cpu', 7, settings=dict(steps='9'))
    assert {'scale', 'seed', 'steps'} <= set(declared) and given['scale']=='cpu'
    return given

@fuzz
@given(damaged(text.encode()) | changed(json.loads(text)).map(lambda v: json.dumps(v).encode()))
def test_page(data): read_or_error('pages', lambda: read_page(data))

sources = st.sampled_from(['scale = "quick"', 'seed = 0', 'steps = 5', 'scale, seed = "quick", 0',
                           'scale: str = "quick"; seed: int = 1', 'steps = int("5")',
                           'if 1: seed = 0', 'scale = seed = steps = 1', 'a[0] = 1',
                           '%matplotlib', 'seed =', 'x: int'])
@fuzz
@given(st.lists(sources, max_size=4))
def test_parameters(lines):
    page.cells[0].source = '\n'.join(lines)
    read_or_error('parameters', lambda: read_page(nbformat.writes(page).encode()))

test_eq(read_page(text.encode()), dict(scale='cpu', seed=7, steps=9))
test_page()
test_parameters()

# %% [markdown]
# ## Reports
#
# The configuration of a report must be the one of the command.

# %%
config = dict(scale='quick', seed=0, version='0.1.0')
def read_report(data):
    (tmp/'report'/'notebooks').mkdir(exist_ok=True, parents=True)
    (tmp/'report'/'config.json').write_bytes(data)
    read_or_error('comparison', lambda: compare_report(tmp/'report', tmp/'none', tmp/'claims'))
    return prepare_report(tmp/'report', config)

@settings(fuzz, max_examples=50)
@given(damaged(json.dumps(config).encode()) | changed(config).map(lambda v: json.dumps(v).encode()))
def test_report(data):
    if read_or_error('reports', lambda: read_report(data)): test_eq(json.loads(data), config)

(tmp/'none').mkdir()
read_claims(toml)
test_report()
for text in ('[]', 'null', '1', '{}', '['*100_000):
    assert read_or_error('reports', lambda: read_report(text.encode())) is None
assert read_or_error('reports', lambda: read_report(json.dumps(config).encode('utf-16'))) is None
counts
