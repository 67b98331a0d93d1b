# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Damaged files
#
# > Random damage to stored runs and data files ends in the same data or in one sentence.

# %%
#| hide
#| needs: hypothesis
import gzip, json, shutil, tempfile, tomllib, warnings
from pathlib import Path
from unittest import mock

from fastcore.test import *
from hypothesis import given, settings, strategies as st
from moral_sc.foundation.datasets import Source, check_file, git_blob, read_jsonl, read_toml
from moral_sc.foundation.errors import MoralScError
from moral_sc.foundation.runs import content_key, open_run

tmp = Path(tempfile.mkdtemp())

# %% [markdown]
# Disks fail, transfers stop halfway, and people edit files. The tests of this page change files at random:
# they flip bits, cut, insert and repeat bytes, and replace a JSON value by another. Whatever reads the
# file must return what was stored or raise an error of ours; another exception, or other data, fails the test.

# %%
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=5), inside),
    max_leaves=5)

@st.composite
def damaged(draw, data):
    "Bytes with one to three random changes"
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        i = draw(st.integers(0, max(len(data)-1, 0)))
        part = draw(st.binary(max_size=4))
        kind = draw(st.sampled_from(['flip', 'cut', 'insert', 'overwrite', 'repeat']))
        if kind=='flip' and data: data[i] ^= 1 << draw(st.integers(0, 7))
        if kind=='cut': del data[i:]
        if kind=='insert': data[i:i] = part
        if kind=='overwrite': data[i:i+len(part)] = part
        if kind=='repeat': data[i:i] = data[max(0, i-20):i]
    return bytes(data)

@st.composite
def changed_json(draw, value):
    "JSON of a value in which one field was replaced, removed or added"
    new = draw(json_values)
    if not isinstance(value, dict) or draw(st.booleans()): return json.dumps(new).encode()
    key = draw(st.sampled_from(sorted(value)) | st.text(max_size=5))
    res = value | {key: new}
    if draw(st.booleans()): res.pop(key)
    return json.dumps(res).encode()

def fuzz(examples): return settings(max_examples=examples, deadline=None, database=None,
                                    derandomize=True)

outcomes = {}
def read_or_error(name, read):
    "Call a reader and count how it ended"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            value = read()
    except MoralScError as e:
        assert str(e) and '\n' not in str(e)
        value = None
    counts = outcomes.setdefault(name, dict(read=0, refused=0))
    counts['read' if value is not None else 'refused'] += 1
    return value


# %% [markdown]
# ## Runs
#
# A finished run is either the stored one or refused. A run that goes on never returns another value: its damaged
# rows are missing.

# %%
rows = {content_key(item=i): dict(item=i, score=i/3, text='An answer, é.') for i in range(6)}
config = dict(model='tiny', seed=0)
def make_run(finished):
    path = Path(tempfile.mkdtemp(dir=tmp))/'run'
    with open_run(path, config) as run:
        run.put_many(rows.items())
        if finished: run.finish()
        run.db.execute('pragma journal_mode=delete')
    return path

def fixed_provenance(**extra): return dict(start='2026-01-01', end=None) | extra

# The same bytes on each machine and day, so that the same changes are tested
with mock.patch.multiple('moral_sc.foundation.runs', provenance=fixed_provenance,
                         utc_now=lambda *a: '2026-01-01'):
    runs = {finished: make_run(finished) for finished in (True, False)}
stored = {f: {p.name: p.read_bytes() for p in path.iterdir() if p.name!='lock'}
          for f,path in runs.items()}

def read_run(finished, name, data):
    "Rows of a run one of whose files was changed"
    path = runs[finished]
    for p in path.iterdir(): p.unlink()
    for k,v in (stored[finished] | {name: data}).items(): (path/k).write_bytes(v)
    with open_run(path, config) as run:
        found = {k: run.get(k) for k in rows if k not in run.missing(rows)}
        if finished: test_eq(len(run.table()), len(rows))
        return found

@fuzz(60)
@given(st.booleans(), damaged(stored[True]['run.sqlite']))
def test_rows(finished, data):
    found = read_or_error('run.sqlite', lambda: read_run(finished, 'run.sqlite', data))
    if found is None: return
    assert all(found[k]==rows[k] for k in found)
    assert found==rows or not finished

test_rows()
outcomes

# %%
names = 'config.json', 'provenance.json'
changes = st.one_of(*[st.tuples(st.just(k), changed_json(json.loads(stored[True][k]))
                                | damaged(stored[True][k])) for k in names])
@fuzz(60)
@given(st.booleans(), changes)
def test_json(finished, change):
    found = read_or_error(change[0], lambda: read_run(finished, *change))
    assert found is None or found==rows

test_json()

for name,text in ((n, t) for n in names
                  for t in ('[]', 'null', '1', '{}', '['*100_000, '{"a":'*100_000)):
    assert read_or_error(name, lambda: read_run(True, name, text.encode())) is None
for name in names:
    assert read_or_error(name, lambda: read_run(True, name, stored[True][name].decode()
                                                .encode('utf-16'))) is None
outcomes

# %% [markdown]
# ## Data files
#
# JSON lines without a hash can change without notice, but never so that the reader raises another exception or
# drops a line silently: the number of rows is the number of lines that are not empty.

# %%
lines = ''.join(json.dumps(dict(q=f'Who is {i}?', n=i, é=[1, None]))+'\n'
                for i in range(5)).encode()

@fuzz(100)
@given(st.booleans(), damaged(lines))
def test_jsonl(compressed, data):
    path = tmp/('a.jsonl.gz' if compressed else 'a.jsonl')
    path.write_bytes(gzip.compress(data) if compressed else data)
    found = read_or_error('JSON lines', lambda: read_jsonl(path))
    if found is None: return
    text = data.decode().replace('\r\n', '\n').replace('\r', '\n')
    test_eq(len(found), sum(bool(l.strip()) for l in text.split('\n')))

@fuzz(50)
@given(damaged(gzip.compress(lines, mtime=0)))
def test_gzip(data):
    (tmp/'b.jsonl.gz').write_bytes(data)
    found = read_or_error('gzip', lambda: read_jsonl(tmp/'b.jsonl.gz'))
    assert found is None or found==read_jsonl(tmp/'whole.jsonl')

(tmp/'whole.jsonl').write_bytes(lines)
(tmp/'empty.jsonl.gz').touch()
assert read_or_error('gzip', lambda: read_jsonl(tmp/'empty.jsonl.gz')) is None
test_jsonl()
test_gzip()

# %%
toml = '[[claim]]\nid = "a/b"\nat_least = 2.5\nwords = ["x", "y"]\n'.encode()

@fuzz(100)
@given(damaged(toml))
def test_toml(data):
    (tmp/'a.toml').write_bytes(data)
    found = read_or_error('TOML', lambda: read_toml(tmp/'a.toml'))
    if found is not None: test_eq(found, tomllib.loads((tmp/'a.toml').read_text()))

test_toml()

# %% [markdown]
# A pinned file passes its check only if it is the pinned one.

# %%
(tmp/'pinned').write_bytes(lines)
source = Source('a/b', 'o/r', '0'*40, 'pinned', len(lines), git_blob(tmp/'pinned'))

@fuzz(50)
@given(damaged(lines))
def test_pin(data):
    (tmp/'pinned').write_bytes(data)
    test_eq(check_file(source, tmp/'pinned')[0]=='ok', data==lines)

test_pin()
outcomes

# %%
#| hide
shutil.rmtree(tmp)
