# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Commands for toy models
#
# > `moral_sc superposition`: train toy models, map their phases, measure their geometry.

# %%
#| default_exp lab.cli.superposition

# %%
#| export
import json
import time

import typer

# %%
#| export
from moral_sc.foundation.errors import ConfigError
from moral_sc.lab.cli.console import Out, Seed, progress_bar, help_examples, run_folder, command_group, option, print_status, write_file

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
# A command runs one public function of the [superposition room](../../superposition/index.ipynb) and
# keeps what comes out in a folder. Training shows its progress by stopping a hundred times and
# going on, which changes nothing in what is learned; now and then it saves where it is. A run that
# was stopped, by a person or by a loss that is no longer finite, has lost at most that much.

# %%
#| export
superposition = command_group('Toy models of superposition.')

def _numbers(name, text):
    try: return [float(x) for x in text.split(',')]
    except ValueError:
        raise ConfigError(f'{name} is {text!r}: give numbers and commas.') from None

def _in_steps(config, steps, progress, unfinished, **kw):
    from moral_sc.superposition.training import load_run, save_run, train
    run = load_run(unfinished) if unfinished.is_file() else None
    each = max(1, steps//100)
    saved = time.time()
    if run: print_status(f'Going on from step {run.step}.')
    for stop in sorted({*range(each, steps, each), steps}):
        if run and stop<=run.step: continue
        run = train(config, steps, resume=run, stop=stop, **kw)
        progress(stop, steps)
        if time.time()-saved>10: save_run(run, unfinished); saved = time.time()
    return run

@superposition.command(epilog=help_examples(
    'moral_sc superposition train --features 20 --hidden 5 --density 1,0.3,0.1,0.03'))
def train(
    features:option(int, 'Features of each model.')=5,
    hidden:option(int, 'Dimensions they are squeezed into.')=2,
    density:option(str, 'How often a feature is there; one number per group of models.')='1,0.2,0.1',
    models:option(int, 'Models at each density, with starts of their own.')=1,
    decay:option(float, 'Importance of each feature over that of the one before.')=.9,
    activation:option(str, 'Of the outputs: relu, linear, gelu and others.')='relu',
    steps:option(int, 'Updates.')=10_000,
    batch_size:option(int, 'Examples per update.')=1024,
    lr:option(float, 'Learning rate.')=1e-3,
    engine:option(str, 'auto, eager, compiled, numba or triton.')='auto',
    device:option(str, 'cpu or cuda.')='cpu',
    seed:Seed=0,
    out:Out=None,
):
    "Train toy models side by side."
    from moral_sc.superposition.model import ToyConfig, check_positive_integers
    from moral_sc.superposition.training import resolve_engine, save_run
    check_positive_integers(models=models, steps=steps, batch_size=batch_size)
    p = _numbers('density', density)
    out = run_folder(out, 'superposition')
    config = ToyConfig(features, hidden, len(p)*models, [[x]*features for x in p for _ in range(models)],
                       [decay**i for i in range(features)], activation)
    name,_ = resolve_engine(engine, config, device)
    settings = dict(config=config.to_dict(), steps=steps, batch_size=batch_size, lr=lr, seed=seed)
    _same(out/'config.json', settings)
    done = out/'run.safetensors'
    unfinished = out/'unfinished.safetensors'
    if done.is_file(): print_status('Done before; nothing was trained.')
    else:
        print_status(f'Training {features} features in {hidden} dimensions at density {density} with engine '
            f'{name}; writing to {out}.')
        with progress_bar('steps') as progress:
            run = _in_steps(config, steps, progress, unfinished, batch_size=batch_size, lr=lr,
                            seed=seed, engine=name, device=device)
        save_run(run, done)
        unfinished.unlink(missing_ok=True)
    typer.echo(done)

def _same(path, settings):
    "Begin a folder with these settings, or refuse one that has others"
    text = json.dumps(settings, indent=1)+'\n'
    if path.is_file() and path.read_text()!=text:
        raise ConfigError(f'{path.parent} holds a run with other settings '
                          f'({_changed(path, settings)}): give another --out.')
    write_file(path, text)

def _changed(path, new):
    try: old = json.loads(path.read_text())
    except ValueError: return 'its config.json is damaged'
    flat = lambda d: {**d.get('config', {}), **{k: v for k,v in d.items() if k!='config'}}
    old = flat(old)
    new = flat(new)
    return ', '.join(f'{k}: {old.get(k)}, not {new[k]}' for k in new if old.get(k)!=new[k])


# %% [markdown]
# Two whole experiments of the paper at any size. Each leaves a table and a figure that opens in a
# browser.

# %%
#| export
def _kept(out, settings, about, make):
    "Run `make`, which returns a table and a figure, unless the folder has them"
    _same(out/'config.json', settings)
    if (out/'figure.html').is_file(): print_status('Done before; nothing was trained.')
    else:
        print_status(f'{about}; writing to {out}.')
        table,figure = make()
        write_file(out/'table.csv', table.to_csv(index='density' not in table))
        write_file(out/'figure.html', figure.to_html(include_plotlyjs=True))
    typer.echo(out/'figure.html')

@superposition.command(epilog=help_examples(
    'moral_sc superposition phase --features 3 --hidden 2 --points 21 --restarts 10'))
def phase(
    features:option(int, 'Features; the importance of the last varies.')=2,
    hidden:option(int, 'Dimensions.')=1,
    points:option(int, 'Densities, and importances, of the map.')=31,
    restarts:option(int, 'Models at each point; the one with the lowest loss is shown.')=10,
    activation:option(str, 'Of the outputs: relu, linear, gelu and others.')='relu',
    steps:option(int, 'Updates.')=3000,
    engine:option(str, 'auto, eager, compiled, numba or triton.')='auto',
    device:option(str, 'cpu or cuda.')='cpu',
    seed:Seed=0,
    out:Out=None,
):
    "Map what becomes of a feature as density and importance vary."
    from moral_sc.superposition.maps import plot_phases
    from moral_sc.superposition.model import ToyConfig, check_positive_integers
    from moral_sc.superposition.phase_diagram import logspace, phase_diagram
    from moral_sc.superposition.training import resolve_engine
    check_positive_integers(points=points, restarts=restarts, steps=steps)
    if points<2: raise ConfigError('points is 1: a map needs 2 or more.')
    name,_ = resolve_engine(engine, ToyConfig(features, hidden, activation=activation), device)
    kw = dict(n_features=features, n_hidden=hidden, restarts=restarts, seed=seed,
              activation=activation, steps=steps)
    def make():
        table,_ = phase_diagram(density=logspace(1, .01, points), importance=logspace(.1, 10, points),
                                engine=name, device=device, **kw)
        return table,plot_phases({f'{features} features in {hidden}, {activation}': table})
    about = f'Training {points*points*restarts} models with engine {name}'
    _kept(run_folder(out, 'phase'), kw|dict(points=points), about, make)

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
):
    "Measure the share of a dimension that each of many equal features gets."
    from moral_sc.superposition.dimensionality import dimensionality_sweep
    from moral_sc.superposition.model import ToyConfig, check_positive_integers
    from moral_sc.superposition.shapes import plot_dimensionality
    from moral_sc.superposition.training import resolve_engine
    check_positive_integers(restarts=restarts, steps=steps)
    p = _numbers('density', density)
    config = ToyConfig(features, hidden, len(p), density=[[x]*features for x in p])
    name,_ = resolve_engine(engine, config, device)
    kw = dict(n_features=features, n_hidden=hidden, density=p, restarts=restarts, seed=seed, steps=steps)
    def make():
        found = dimensionality_sweep(engine=name, device=device, **kw)
        return found.table(),plot_dimensionality(found)
    about = f'Training {len(p)*restarts} models of {features} features with engine {name}'
    _kept(run_folder(out, 'geometry'), kw, about, make)


# %%
def sh(command):
    "Exit code and last line of what a command says"
    app = command_group('', cls=ErrorGroup)
    app.add_typer(superposition, name='superposition')
    res = CliRunner().invoke(app, shlex.split(f'superposition {command}'))
    assert res.exception is None or isinstance(res.exception, SystemExit), res.exception
    return res.exit_code, res.output.strip().splitlines()[-1]

small = 'train --features 4 --density 1,0.1 --models 2 --steps 20 --out toy'
sh(small), sh(small)

# %%
test_eq(sh(small+' --seed 1'),
        (2, 'toy holds a run with other settings (seed: 0, not 1): give another --out.'))

# %% [markdown]
# A run that was killed goes on from its last save and ends where it would have ended:

# %%
from moral_sc.superposition.model import ToyConfig
from moral_sc.superposition.training import load_run, save_run, train as fit
half = load_run('toy/run.safetensors')
stopped = fit(half.config, 20, seed=0, stop=10)
Path('toy/run.safetensors').rename('toy/whole.safetensors')
save_run(stopped, 'toy/unfinished.safetensors')
sh(small)
test_eq(load_run('toy/run.safetensors').W, half.W)
sorted(p.name for p in Path('toy').iterdir())

# %% [markdown]
# The two experiments in small:

# %%
two = ['phase --points 3 --restarts 2 --steps 200 --out map',
       'geometry --features 12 --hidden 4 --density 1,0.1 --steps 200 --out shares']
for c in two: print(*sh(c)); print(*sh(c))
print(Path('map/table.csv').read_text()[:150], Path('shares/table.csv').read_text()[:150], sep='\n')

# %% [markdown]
# Bad input is refused before a folder is made.

# %%
wrong = ['train --density a,b', 'train --density 2', 'train --features 0', 'train --hidden 0',
         'train --steps 0', 'train --models 0', 'train --decay nan', 'train --engine tritn',
         'train --engine triton', 'train --device cuda', 'train --activation rely',
         'phase --points 1', 'phase --restarts 0', 'phase --activation rely', 'phase --engine numbat',
         'geometry --density 0', 'geometry --density x', 'geometry --hidden 0']
for w in wrong: print(w, *sh(f'{w} --out x'), sep='\n    ')

# %%
test_eq({sh(f'{w} --out x')[0] for w in wrong}, {2})
assert not Path('x').exists()
