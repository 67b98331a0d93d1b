# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Damaged input
#
# > Random rows and damaged files end in as many rows as were given, or in one sentence.

# %%
#| hide
#| needs: hypothesis
import json, tempfile, warnings
from pathlib import Path

import torch
from fastcore.test import *
from hypothesis import given, settings, strategies as st
from moral_sc.constitution.evaluation.elo import load_votes
from moral_sc.constitution.preference import _read_settings, load_labels
from moral_sc.constitution.principles import load_comparisons, load_principles
from moral_sc.constitution.prompts import load_pairs, load_prompts, split_turns
from moral_sc.foundation.errors import MoralScError
from moral_sc.foundation.manifest import Manifest
from moral_sc.language.optimization import Checkpoints

tmp = Path(tempfile.mkdtemp())

# %% [markdown]
# Prompts, principles, pairs, labels and votes come from users. These tests give random rows, and files in which
# bytes were changed, cut or inserted. A reader must return one row for each that it was given, or raise an error
# of ours with one sentence.

# %%
text = st.text(max_size=8) | st.sampled_from(['Is it far?', '\ud83d', '\r\n\r\nHuman: x', 'x', ' '])
value = text | st.none() | st.booleans() | st.integers() | st.floats() | st.lists(text, max_size=2)
names = st.sampled_from('id prompt text a b p chosen rejected winner win critique revision '
                        'principle topic kind weight model_a'.split())
row = st.dictionaries(names, value, max_size=6)
rows = st.lists(row | text | value, min_size=1, max_size=4) | value
fuzz = settings(max_examples=100, deadline=None, database=None, derandomize=True)
outcomes = {}

def read_or_error(name, read):
    "Call a reader and count how it ended; None after an error of ours"
    try: result = read()
    except MoralScError as e:
        assert str(e) and '\n' not in str(e), str(e)
        result = None
    counts = outcomes.setdefault(name, dict(read=0, refused=0))
    counts['refused' if result is None else 'read'] += 1
    return result

readers = dict(prompts=load_prompts, pairs=load_pairs, labels=load_labels, votes=load_votes,
               principles=load_principles, comparisons=load_comparisons)

@fuzz
@given(rows)
def test_rows(given_rows):
    if isinstance(given_rows, str) or given_rows is None: return # A name, or the default
    for name,read in readers.items():
        res = read_or_error(name, lambda read=read: read(given_rows))
        assert res is None or len(res)==len(given_rows)

test_rows()

# %% [markdown]
# Files: what is read is as many rows as the undamaged lines hold, or nothing.

# %%
good = dict(id='1', prompt='Is it far?', a='yes', b='no', p=.5, winner='a', critique='c',
            revision='r', text='Is it far?')
contents = {
    'x.jsonl': '\n'.join(json.dumps(good|dict(id=str(i))) for i in range(3)),
    'x.csv': 'id,prompt,a,b,p,winner\n1,Is it?,x,y,.5,a\n2,Is it?,x,y,1,b\n', 'x.txt': 'one\ntwo\n',
    'x.toml': '[[principle]]\nid = "a"\ncritique = "c"\nrevision = "r"\n'}

@st.composite
def damaged(draw, data):
    "Bytes with one or two random changes"
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 2))):
        i = draw(st.integers(0, max(len(data)-1, 0)))
        kind = draw(st.sampled_from(['flip', 'cut', 'insert']))
        if kind=='flip' and data: data[i] ^= 1 << draw(st.integers(0, 7))
        if kind=='cut': del data[i:]
        if kind=='insert': data[i:i] = draw(st.binary(max_size=3))
    return bytes(data)

@settings(fuzz, max_examples=100)
@given(st.sampled_from(sorted(contents)), st.data())
def test_file(name, data):
    path = tmp/name
    content = data.draw(damaged(contents[name].encode()))
    path.write_bytes(content)
    for kind,read in readers.items():
        res = read_or_error(f'{kind} of {name}', lambda read=read: read(path))
        assert res is None or len(res)<=content.count(b'\n')+content.count(b'\r')+1

test_file()


# %% [markdown]
# Dialogues keep all their words; settings of preference models and checkpoints are refused or unchanged.

# %%
@fuzz
@given(st.lists(st.sampled_from(['\n\nHuman:', '\r\n\r\nAssistant:', ' a', ' b', '\n'])))
def test_dialogue(parts):
    words = ' '.join(t for _,t in split_turns(''.join(parts))).split()
    test_eq(sum(w in 'ab' for w in words), sum(x in (' a', ' b') for x in parts))

test_dialogue()

checkpoints = Checkpoints(tmp/'run')
checkpoints.save(1, dict(x=torch.ones(3)))
stored = checkpoints.path(1).read_bytes()

@settings(fuzz, max_examples=60)
@given(damaged(stored), st.booleans())
def test_checkpoint(data, is_listed):
    "A damaged file is not used; one that someone has listed anew is a file of tensors or refused"
    checkpoints.path(1).write_bytes(data)
    if is_listed: Manifest(tmp/'run').record(checkpoints.path(1))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        step,state = checkpoints.latest('x')
    if not is_listed and data!=stored: test_eq((step, state), (0, None))
    checkpoints.path(1).write_bytes(stored)
    Manifest(tmp/'run').record(checkpoints.path(1))

test_checkpoint()

@settings(fuzz, max_examples=60)
@given(damaged(b'{"zero": 0.5, "mode": "plain"}'))
def test_settings(data):
    (tmp/'preference.json').write_bytes(data)
    read_or_error('settings', lambda: _read_settings(tmp/'preference.json'))

test_settings()
assert sum(c['read'] for c in outcomes.values())>50
{k: v for k,v in outcomes.items() if ' of ' not in k}

# %%
#| hide
import shutil
shutil.rmtree(tmp)
