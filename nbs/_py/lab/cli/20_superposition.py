# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Superposition commands
#
# > `moral_sc superposition` trains toy models, maps their phases and measures geometry.

# %%
#| default_exp lab.cli.superposition

# %%
#| export
import json, time

import typer

from moral_sc.foundation.errors import ConfigError, short_repr
from moral_sc.foundation.files import read_json_object, write_file
from moral_sc.lab.cli.console import (AsJson, Out, Seed, command_group, help_examples, option,
                                      print_rows, print_status, progress_bar, run_folder)

# %%
#| hide
import os
import shlex
import tempfile
from pathlib import Path
from fastcore.test import *
from typer.testing import CliRunner
from moral_sc.lab.cli.console import ErrorGroup
os.chdir(tempfile.mkdtemp())

# %% [markdown]
# Each command runs one public function of the [superposition
# package](../../superposition/index.ipynb) and writes the results to a folder. To show progress,
# training stops and resumes a hundred times, which does not change the result, and at times it
# saves its state. A run that was interrupted, or that ended with a non-finite loss, can be resumed
# from the last save. The name of the default folder holds a hash of the settings, so each experiment has its
# own.

# %%
#| export
superposition = command_group('Toy models of superposition.')

def _numbers(name, text):
    try: return [float(x) for x in text.split(',')]
    except ValueError:
        raise ConfigError(f'--{name} is {short_repr(text)}: give numbers separated by commas.'
                          ) from None

def _default_folder(out, experiment, settings):
    "The folder given, or one named after the settings"
    from moral_sc.foundation.runs import content_key
    return run_folder(out, 'superposition', f'{experiment}-{content_key(**settings)[:8]}')

def _train_with_progress(config, steps, progress, unfinished, **kw):
    from moral_sc.superposition.training import load_run, save_run, train
    run = load_run(unfinished) if unfinished.is_file() else None
    interval = max(1, steps//100)
    saved = time.time()
    if run: print_status(f'Resuming at step {run.step}.')
    for stop in sorted({*range(interval, steps, interval), steps}):
        if run and stop<=run.step: continue
        run = train(config, steps, resume=run, stop=stop, **kw)
        progress(stop, steps)
        if time.time()-saved>10:
            save_run(run, unfinished)
            saved = time.time()
    return run

@superposition.command('train', epilog=help_examples(
    'moral_sc superposition train --features 20 --hidden 5 --density 1,0.3,0.1,0.03'))
def train_toy_models(
    features:option(int, 'Features of each model.')=5,
    hidden:option(int, 'Hidden dimensions.')=2,
    density:option(str, 'Probability that a feature is active; numbers and commas.')='1,0.2,0.1',
    models:option(int, 'Models at each density, initialised independently.')=1,
    decay:option(float, 'Importance of each feature relative to the one before.', above=0)=.9,
    activation:option(str, 'Output activation: relu, linear, gelu and others.')='relu',
    steps:option(int, 'Updates.')=10_000,
    batch_size:option(int, 'Examples per update.')=1024,
    lr:option(float, 'Learning rate.', above=0)=1e-3,
    engine:option(str, 'auto, eager, compiled, numba or triton.')='auto',
    device:option(str, 'cpu or cuda.')='cpu',
    seed:Seed=0,
    out:Out=None,
    as_json:AsJson=False,
):
    "Train a batch of toy models and print their losses."
    from moral_sc.superposition.model import ToyConfig, check_positive_integers
    from moral_sc.superposition.training import load_run, resolve_engine, save_run
    check_positive_integers(models=models, steps=steps, batch_size=batch_size)
    p = _numbers('density', density)
    densities = [[x]*features for x in p for _ in range(models)]
    importance = [decay**i for i in range(features)]
    config = ToyConfig(features, hidden, len(p)*models, densities, importance, activation)
    name,_ = resolve_engine(engine, config, device)
    settings = dict(features=features, hidden=hidden, density=p, models=models, decay=decay,
                    activation=activation, steps=steps, batch_size=batch_size, lr=lr, seed=seed)
    out = _default_folder(out, 'train', settings)
    _check_settings(out/'config.json', settings)
    result = out/'run.safetensors'
    unfinished = out/'unfinished.safetensors'
    if result.is_file():
        run = load_run(result)
        print_status('The run is complete; nothing was trained.')
    else:
        print_status(f'Training {features} features in {hidden} dimensions at density {density} '
                     f'with engine {name}; writing to {out}.')
        with progress_bar('steps') as progress:
            run = _train_with_progress(config, steps, progress, unfinished, seed=seed, lr=lr,
                                       batch_size=batch_size, engine=name, device=device)
        save_run(run, result)
        unfinished.unlink(missing_ok=True)
    print_rows(_losses(p, models, run), as_json)
    (print_status if as_json else typer.echo)(str(result))

def _losses(p, models, run):
    "The last logged losses at each density"
    last = run.loss[:,-1].view(len(p), models)
    return [dict(density=d, models=models, mean_loss=round(l.mean().item(), 6),
                 best_loss=round(l.min().item(), 6)) for d,l in zip(p, last)]

def _check_settings(path, settings):
    "Write the settings to a folder, or raise an error if it has other settings"
    from moral_sc.foundation.runs import config_difference
    if path.is_file() and (changed := config_difference(read_json_object(path), settings)):
        raise ConfigError(f'{path.parent} holds a run with other settings ({changed}): give '
                          'another --out.')
    write_file(path, json.dumps(settings, indent=1)+'\n')


# %% [markdown]
# Two whole experiments of the paper at any size. Each writes a table and a figure that opens in a
# browser.

# %%
#| export
def _run_experiment(out, settings, message, make, as_json):
    "Write the table and figure that `make` returns, unless the folder has them; print the table"
    import pandas as pd
    _check_settings(out/'config.json', settings)
    if (out/'figure.html').is_file(): print_status('The run is complete; nothing was trained.')
    else:
        print_status(f'{message}; writing to {out}.')
        with progress_bar('steps') as progress: table,figure = make(progress)
        write_file(out/'table.csv', table.to_csv(index='density' not in table))
        write_file(out/'figure.html', figure.to_html(include_plotlyjs=True))
    if as_json: print_rows(pd.read_csv(out/'table.csv'), as_json)
    (print_status if as_json else typer.echo)(str(out/'figure.html'))

@superposition.command(epilog=help_examples(
    'moral_sc superposition phase --features 3 --hidden 2 --points 21 --restarts 10'))
def phase(
    features:option(int, 'Features; the importance of the last varies.')=2,
    hidden:option(int, 'Dimensions.')=1,
    points:option(int, 'Number of densities, and of importances.', bounds=(2, 10_000))=31,
    restarts:option(int, 'Models at each point; the one with the lowest loss is shown.')=10,
    activation:option(str, 'Output activation: relu, linear, gelu and others.')='relu',
    steps:option(int, 'Updates.')=3000,
    engine:option(str, 'auto, eager, compiled, numba or triton.')='auto',
    device:option(str, 'cpu or cuda.')='cpu',
    seed:Seed=0,
    out:Out=None,
    as_json:AsJson=False,
):
    "Map the phases of a feature over density and importance."
    from moral_sc.superposition.plots import plot_phases
    from moral_sc.superposition.model import ToyConfig
    from moral_sc.superposition.phase_diagram import phase_diagram
    from moral_sc.superposition.training import resolve_engine
    name,_ = resolve_engine(engine, ToyConfig(features, hidden, activation=activation), device)
    kw = dict(n_features=features, n_hidden=hidden, restarts=restarts, seed=seed,
              activation=activation, steps=steps, points=points)
    def make(progress):
        table,_ = phase_diagram(engine=name, device=device, progress=progress, **kw)
        return table,plot_phases({f'{features} features in {hidden}, {activation}': table})
    message = f'Training {points*points*restarts} models with engine {name}'
    _run_experiment(_default_folder(out, 'phase', kw), kw, message, make, as_json)

@superposition.command(epilog=help_examples(
    'moral_sc superposition geometry --features 200 --hidden 20 --density 1,0.5,0.35,0.2,0.1'))
def geometry(
    features:option(int, 'Features, all equal.')=200,
    hidden:option(int, 'Dimensions.')=20,
    density:option(str, 'Densities to train at.')='1,0.7,0.5,0.35,0.25,0.18,0.1,0.05',
    restarts:option(int, 'Models at each density.')=1,
    steps:option(int, 'Updates.')=10_000,
    engine:option(str, 'auto, eager, compiled, numba or triton.')='auto',
    device:option(str, 'cpu or cuda.')='cpu',
    seed:Seed=0,
    out:Out=None,
    as_json:AsJson=False,
):
    "Measure the dimensionality of many equal features."
    from moral_sc.superposition.dimensionality import dimensionality_sweep
    from moral_sc.superposition.model import ToyConfig, check_positive_integers
    from moral_sc.superposition.geometry_plots import plot_dimensionality
    from moral_sc.superposition.training import resolve_engine
    check_positive_integers(restarts=restarts, steps=steps)
    p = _numbers('density', density)
    config = ToyConfig(features, hidden, len(p), density=[[x]*features for x in p])
    name,_ = resolve_engine(engine, config, device)
    kw = dict(n_features=features, n_hidden=hidden, density=p, restarts=restarts, seed=seed,
              steps=steps)
    def make(progress):
        sweep = dimensionality_sweep(engine=name, device=device, progress=progress, **kw)
        return sweep.table(),plot_dimensionality(sweep)
    message = f'Training {len(p)*restarts} models of {features} features with engine {name}'
    _run_experiment(_default_folder(out, 'geometry', kw), kw, message, make, as_json)


# %%
def invoke(command):
    app = command_group('', cls=ErrorGroup)
    app.add_typer(superposition, name='superposition')
    res = CliRunner().invoke(app, shlex.split(f'superposition {command}'))
    assert res.exception is None or isinstance(res.exception, SystemExit), res.exception
    return res

def sh(command):
    "Return exit code and last line of output of a command"
    res = invoke(command)
    return res.exit_code, res.output.strip().splitlines()[-1]

small = 'train --features 4 --density 1,0.1 --models 2 --steps 20 --out toy'
sh(small), sh(small)

# %%
test_eq(sh(small+' --seed 1'),
        (2, 'toy holds a run with other settings (seed: 0 stored, 1 requested): give another '
            '--out.'))
_,message = sh(small.replace('--density 1,0.1', '--density 0.5,0.4,0.3 --features 200'))
assert 'density: [1.0, 0.1] stored, [0.5, 0.4, 0.3] requested' in message and len(message)<150

# %% [markdown]
# `--json` prints the losses for other programs. Without `--out`, each experiment has a folder of its own.

# %%
rows = json.loads(invoke(small+' --json').stdout)
test_eq([r['density'] for r in rows], [1., .1])
default = 'train --features 3 --density 0.5 --steps 5'
folders = {sh(default)[1], sh(default+' --seed 1')[1], sh(default)[1]}
test_eq(len(folders), 2)
for text in ('[]', 'null', '1', '{}', 'x', '['*100_000):
    Path('toy/config.json').write_text(text)
    test_eq(sh(small)[0], 2)
Path('toy/config.json').write_bytes('{}'.encode('utf-16'))
assert 'config.json is damaged' in sh(small)[1]
Path('toy/config.json').unlink()
folders

# %% [markdown]
# A run that was killed continues from its last save and gives the same result:

# %%
from moral_sc.superposition.model import ToyConfig
from moral_sc.superposition.training import load_run, save_run, train as fit
half = load_run('toy/run.safetensors')
interrupted = fit(half.config, 20, seed=0, stop=10)
Path('toy/run.safetensors').rename('toy/whole.safetensors')
save_run(interrupted, 'toy/unfinished.safetensors')
sh(small)
test_eq(load_run('toy/run.safetensors').W, half.W)
sorted(p.name for p in Path('toy').iterdir())

# %% [markdown]
# The two experiments at a small size:

# %%
two = ['phase --points 3 --restarts 2 --steps 200 --out map',
       'geometry --features 12 --hidden 4 --density 1,0.1 --steps 200 --out shares']
for c in two: print(*sh(c)); print(*sh(c))
rows = json.loads(invoke(two[0]+' --json').stdout)
test_eq((len(rows), rows[0]['region_name'] in ('ignored', 'dedicated', 'superposed')), (9, True))
print(Path('map/table.csv').read_text()[:150], Path('shares/table.csv').read_text()[:150], sep='\n')

# %% [markdown]
# Invalid input raises an error before a folder is created.

# %%
invalid = ['train --density a,b', 'train --density 2', 'train --features 0', 'train --hidden 0',
           'train --features 99999999999999999999999', 'train --seed -1', 'train --device meta',
           'train --device mps', 'train --lr nan', 'train --steps 0', 'train --models 0',
           'train --decay nan', 'train --engine tritn',
           'train --engine triton', 'train --device cuda', 'train --activation rely',
           'phase --points 1', 'phase --restarts 0', 'phase --activation rely',
           'phase --engine numbat', 'geometry --density 0', 'geometry --density x',
           'geometry --hidden 0']
for w in invalid: print(w, *sh(f'{w} --out x'), sep='\n    ')

# %%
test_eq({sh(f'{w} --out x')[0] for w in invalid}, {2})
assert not Path('x').exists()
