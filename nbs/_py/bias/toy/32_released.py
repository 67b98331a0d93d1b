# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Released ladder
#
# > The trained models of the recorded ladder are stored with the package and can be evaluated without training.

# %%
#| default_exp bias.toy.released

# %% [markdown]
# To train the recorded [ladder](30_ladder.ipynb) takes minutes, to evaluate a model of it a second.
# Its thirty models (six widths, five seeds) are therefore stored in one file.
# `released_ladder` writes them as the model folders that `train_ladder` would leave, so that
# `evaluate_ladder`, `bias.sweep` and your own conditions find ordinary models.

# %%
#| export
import json
from dataclasses import asdict
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from moral_sc.bias.toy.environment import ToyLanguage
from moral_sc.bias.toy.ladder import Ladder, ladder_models, model_name, new_model
from moral_sc.foundation.datasets import data_dir
from moral_sc.foundation.errors import ConfigError
from moral_sc.foundation.files import read_json_object
from moral_sc.foundation.runs import config_difference, open_run
from moral_sc.language.reward_head import save_model

# %%
#| hide
import tempfile
from dataclasses import replace
import numpy as np, pandas as pd
from fastcore.test import *
from moral_sc.bias.toy.ladder import evaluate_ladder, train_ladder
from moral_sc.language.loading import load

tmp = Path(tempfile.mkdtemp())
torch.set_num_threads(1)


# %% [markdown]
# ## The file
#
# The file names each tensor `width-8-seed-0/model.norm.weight`. Its metadata has the settings of the
# ladder, among them those of the language, and commit, time and machine of the training.

# %%
#| export
def released_file()->Path:
    "Return the file of the released models"
    return data_dir()/'results'/'toy_ladder_models.safetensors'

def store_ladder(
    folder,     # Of a trained ladder
    widths,
    seeds,
    path,       # A new .safetensors file
)->Path:
    "Store the models of a ladder with its settings and provenance in one file"
    folder = Path(folder)
    weights = {f'{model_name(w, s)}/{k}': v for w in widths for s in seeds
               for k,v in load_file(folder/model_name(w, s)/'model.safetensors').items()}
    about = dict(ladder=read_json_object(folder/'config.json'), widths=list(widths),
                 seeds=list(seeds), made=read_json_object(folder/'provenance.json'))
    about['made'].pop('resumed', None)
    save_file(weights, path, {k: json.dumps(v, sort_keys=True) for k,v in about.items()})
    return Path(path)

def released_settings(
    path=None, # Default: that of `released_file`
)->dict:       # ladder, widths, seeds, made
    "Read the settings and the provenance of released models"
    with safe_open(path or released_file(), 'pt') as f:
        return {k: json.loads(v) for k,v in f.metadata().items()}


# %%
about = released_settings()
print(about['widths'], about['seeds'], {k: about['made'][k] for k in ('commit', 'start', 'cpu')})
test_eq(config_difference(about['ladder'], json.loads(json.dumps(asdict(Ladder())))), '')


# %% [markdown]
# ## Loading
#
# `released_model` returns one model. `released_ladder` has the arguments of `train_ladder` and leaves
# the same folders. It refuses a ladder of other settings, and a folder in which a model has other
# weights.

# %%
#| export
def released_model(
    width:int,
    seed:int=0,
    path=None, # See `released_settings`
):             # An `LM`
    "Load a released model"
    about = released_settings(path)
    for k,v in (('width', width), ('seed', seed)):
        if v not in about[f'{k}s']:
            raise ConfigError(f'There is no released model of {k} {v}: use one of '
                              f'{", ".join(map(str, about[f"{k}s"]))}, or `train_ladder`.')
    lm = new_model(_as_ladder(about['ladder']), width, seed)
    with safe_open(path or released_file(), 'pt') as f, torch.no_grad():
        for k,p in lm.model.named_parameters(): p.copy_(f.get_tensor(f'{lm.name}/{k}'))
    return lm

def _as_ladder(settings):
    language = settings['language'] | dict(strength=tuple(settings['language']['strength']))
    return Ladder(**settings | dict(language=ToyLanguage(**language)))

def released_ladder(
    widths=(4, 8, 12, 16, 24, 32),
    seeds=range(5),
    out='runs/toy-ladder',
    ladder:Ladder=Ladder(),
    path=None,           # See `released_settings`
)->list:                 # Of `ModelSpec`, as from `train_ladder`
    "Write released models into the folder of a ladder"
    requested = json.loads(json.dumps(asdict(ladder)))
    difference = config_difference(released_settings(path)['ladder'], requested)
    if difference:
        raise ConfigError(f'The released models have other settings ({difference}): leave these '
                          'as they are, or train models with `train_ladder`.')
    models = [released_model(w, s, path) for w in widths for s in seeds]
    with open_run(out, requested): pass # Refuses a folder of another ladder
    for lm in models:
        with FileLock(Path(out)/f'{lm.name}.lock'): _write_model(lm, Path(out)/lm.name)
    return ladder_models(out, widths, seeds)

def _write_model(lm, folder):
    if not folder.exists(): save_model(lm, folder)
    stored = load_file(folder/'model.safetensors')
    if not all(torch.equal(stored[k], p) for k,p in lm.model.named_parameters()):
        raise ConfigError(f'{folder} holds a model with other weights than the released one: '
                          'name another folder.')


# %%
models = released_ladder([8, 24], [0], tmp/'ladder')
[m.name for m in models]

# %% [markdown]
# `data/results/toy_ladder.csv` has the metrics of these models. Evaluated here, one of them has the
# same values, apart from rounding:

# %%
import warnings
warnings.simplefilter('ignore') # By letter it gives the answers little probability
table = evaluate_ladder([24], [0], tmp/'ladder')
recorded = pd.read_csv(data_dir()/'results'/'toy_ladder.csv').query('language=="full"')
keys = ['width', 'seed', 'benchmark', 'condition', 'category', 'metric']
both = table.merge(recorded, on=keys, suffixes=('', '_recorded'))
test_eq(len(both), len(recorded.query('width==24 and seed==0')))
difference = (both.value-both.value_recorded).abs()
soft = both.metric.str.endswith('_soft') & ~both.condition.str.contains('cot')
assert difference[soft | (both.metric=='knowledge')].max()<1e-4
assert difference.quantile(.95)<1e-4 # A counted answer may turn where two are equally likely
both[['width', 'condition', 'metric', 'value', 'value_recorded']][soft].head(4)

# %% [markdown]
# `train_ladder` takes the folder for one of its own, and finds nothing left to train:

# %%
from unittest import mock
def never(*a, **k): raise AssertionError('A model was trained.')
with mock.patch('moral_sc.bias.toy.ladder.fit_stacked', never):
    test_eq(train_ladder([8, 24], [0], tmp/'ladder'), models)

# %% [markdown]
# A stored ladder comes back bit by bit, and what does not fit is refused:

# %%
path = store_ladder(tmp/'ladder', [8, 24], [0], tmp/'two.safetensors')
copied = released_model(24, 0, path).model.state_dict()
for k,v in load(models[1].source).model.state_dict().items(): assert torch.equal(v, copied[k])
test_eq(released_settings(path)['ladder'], about['ladder'])

with expect_fail(ConfigError, contains='epochs: 3 stored, 9 requested'):
    released_ladder([8], [0], tmp/'nine', Ladder(epochs=9))
with expect_fail(ConfigError, contains='no released model of width 64: use one of 4, 8'):
    released_ladder([64], [0], tmp/'wide')
small = replace(Ladder(), documents=64)
train_ladder([8], [0], tmp/'small', small)
with expect_fail(ConfigError, contains='documents: 64 stored, 32000 requested'):
    released_ladder([8], [0], tmp/'small')
save_model(new_model(Ladder(), 4, 0), tmp/'ladder'/'width-4-seed-0')
with expect_fail(ConfigError, contains='other weights than the released one'):
    released_ladder([4], [0], tmp/'ladder')

# %%
#| hide
import shutil
shutil.rmtree(tmp)
