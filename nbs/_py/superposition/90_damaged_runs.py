# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Damaged runs
#
# > Random damage to a saved toy run, or to its settings, ends in the same run or in an error.

# %%
#| hide
#| needs: hypothesis
import tempfile
from pathlib import Path

import torch
from fastcore.test import *
from hypothesis import given, settings, strategies as st
from moral_sc.foundation.errors import MoralScError
from moral_sc.superposition import ToyConfig, load_run, phase_diagram, save_run, train

torch.set_num_threads(1)
tmp = Path(tempfile.mkdtemp())

# %% [markdown]
# A saved run carries a hash of its tensors and settings. Here a small run is saved, and its file is changed at random
# places: bits, bytes and whole parts.

# %%
config = ToyConfig(4, 2, 3, density=[[1.],[.3],[.1]])
run = train(config, steps=6, snapshots=[3], log_every=2, batch_size=16, engine='eager')
stored = save_run(run, tmp/'run.safetensors').read_bytes()
fuzz = settings(max_examples=150, deadline=None, database=None, derandomize=True)
counts = dict(read=0, refused=0)

@fuzz
@given(st.integers(0, len(stored)-1), st.sampled_from(['flip', 'cut', 'insert', 'overwrite']),
       st.binary(min_size=1, max_size=4), st.booleans())
def test_file(i, kind, part, header):
    data = bytearray(stored)
    if header: i %= 600 # Where the header is
    if kind=='flip': data[i] ^= part[0] or 1
    if kind=='cut': del data[i:]
    if kind=='insert': data[i:i] = part
    if kind=='overwrite': data[i:i+len(part)] = part
    (tmp/'run.safetensors').write_bytes(data)
    try: found = load_run(tmp/'run.safetensors')
    except MoralScError as e:
        assert '\n' not in str(e)
        counts['refused'] += 1
        return
    counts['read'] += 1
    test_eq(found.settings, run.settings)
    for a,b in [(found.params, run.params), (found.snapshots, run.snapshots)]:
        test_eq({k: v.tolist() for k,v in a.items()}, {k: v.tolist() for k,v in b.items()})
    test_eq((found.loss, found.logged, found.step), (run.loss, run.logged, run.step))

test_file()
counts

# %% [markdown]
# ## Settings
#
# Random values for the fields of a configuration and for the arguments of `train` and `phase_diagram`: each call
# trains or raises an error of ours.

# %%
values = st.one_of(st.none(), st.booleans(), st.integers(-3, 5), st.floats(), st.text(max_size=4),
                   st.lists(st.floats(-1, 2) | st.none(), max_size=4), st.binary(max_size=2),
                   st.just(torch.ones(2, 2)), st.just({}), st.just('relu'), st.just(1e-3))
fields = 'n_features n_hidden n_instances density importance activation features init hidden '\
         'hidden_bias readout target signed sets points unit l1 attack loss n m sparsity x'.split()

@fuzz
@given(st.dictionaries(st.sampled_from(fields), values, max_size=2))
def test_config(changes):
    try: made = ToyConfig(**changes)
    except MoralScError as e:
        assert len(str(e))<400, str(e)
        return
    made.to_dict(), made.densities, made.importances

arguments = 'steps batch_size seed engine lr weight_decay schedule snapshots log_every instances '\
            'resume stop device data progress learning_rate'.split()
@settings(fuzz, max_examples=80)
@given(st.dictionaries(st.sampled_from(arguments), values, min_size=1, max_size=2))
def test_train(changes):
    try: train(config, **(dict(steps=2, engine='eager', batch_size=4) | changes))
    except MoralScError as e: assert len(str(e))<400, str(e)

maps = 'density importance restarts seed activation bias steps lr points score block'.split()
@settings(fuzz, max_examples=40)
@given(st.dictionaries(st.sampled_from(maps), values, min_size=1, max_size=2))
def test_map(changes):
    small = dict(points=2, restarts=1, steps=2, engine='eager', batch_size=4)
    try: phase_diagram(**(small | changes))
    except MoralScError as e: assert len(str(e))<400, str(e)

test_config()
test_train()
test_map()
