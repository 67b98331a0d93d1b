# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Toy language commands
#
# > `moral_sc bias toy`: train and evaluate models of the toy language.

# %%
#| default_exp lab.cli.bias_toy

# %%
#| export
import typer
from moral_sc.lab.cli.console import (Out, command_group, format_table, help_examples, option,
                                      print_status, progress_bar, run_folder)

# %%
#| hide
import os, shlex, tempfile
from pathlib import Path
from fastcore.test import *
from typer.testing import CliRunner
from moral_sc.lab.cli.console import ErrorGroup
os.chdir(tempfile.mkdtemp())

# %% [markdown]
# Each command calls a function of [`bias.toy.ladder`](../../bias/toy/30_ladder.ipynb). An
# interrupted command resumes, and several processes with the same folder share the work.
# `released` writes the [stored models](../../bias/toy/32_released.ipynb) of the recorded ladder, which
# `evaluate` then finds in the folder.

# %%
#| export
toy = command_group('Models of a toy language, trained from scratch: bias against size.')

Widths = option(list[int], 'Width of a model; may be repeated.')
Seeds = option(int, 'Number of seeds of each width.')
Documents = option(int, 'Documents of each seed.')
Epochs = option(int, 'Passes over the documents.')

def _ladder(documents, epochs):
    from moral_sc.bias.toy.ladder import Ladder
    return Ladder(documents=documents, epochs=epochs)

@toy.command('train', epilog=help_examples(
    'moral_sc bias toy train --width 8 --width 16 --seeds 3 --out runs/toy-ladder'))
def train_command(
    width:Widths=(4, 8, 12, 16, 24, 32),
    seeds:Seeds=3,
    documents:Documents=32_000,
    epochs:Epochs=3,
    out:Out=None,
):
    "Train models of several widths and seeds on the toy language."
    from moral_sc.bias.toy.ladder import train_ladder
    out = run_folder(out, 'toy-ladder')
    print_status(f'Training {len(width)*seeds} models; writing to {out}.')
    with progress_bar('steps') as progress:
        models = train_ladder(list(width), range(seeds), out, _ladder(documents, epochs),
                              progress=progress)
    for m in models: typer.echo(m.source)

@toy.command('released', epilog=help_examples(
    'moral_sc bias toy released --out runs/toy-released',
    'moral_sc bias toy evaluate --out runs/toy-released'))
def released_command(
    width:Widths=(4, 8, 12, 16, 24, 32),
    seeds:Seeds=3,
    out:Out=None,
):
    "Write models of the recorded ladder, trained before and stored with the package."
    from moral_sc.bias.toy.released import released_ladder
    out = run_folder(out, 'toy-released')
    for m in released_ladder(list(width), range(seeds), out): typer.echo(m.source)

@toy.command('evaluate', epilog=help_examples(
    'moral_sc bias toy evaluate --width 8 --width 16 --seeds 3 --out runs/toy-ladder'))
def evaluate_command(
    width:Widths=(4, 8, 12, 16, 24, 32),
    seeds:Seeds=3,
    documents:Documents=32_000,
    epochs:Epochs=3,
    out:Out=None,
):
    "Evaluate trained models; one table of bias by size and condition."
    from moral_sc.bias.toy.ladder import evaluate_ladder
    out = run_folder(out, 'toy-ladder')
    with progress_bar('questions') as progress:
        table = evaluate_ladder(list(width), range(seeds), out, _ladder(documents, epochs),
                                progress=lambda name,n,total: progress(n, total))
    path = out/'table.csv'
    table.to_csv(path, index=False)
    typer.echo(format_table(_bias_rows(table)))
    typer.echo(path)

@toy.command('ladder', epilog=help_examples(
    'moral_sc bias toy ladder --width 4 --width 8 --seeds 2 --documents 6400'))
def ladder_command(
    width:Widths=(4, 8, 12, 16, 24, 32),
    seeds:Seeds=3,
    documents:Documents=32_000,
    epochs:Epochs=3,
    out:Out=None,
):
    "Train and evaluate models of several widths and seeds."
    train_command(width, seeds, documents, epochs, out)
    evaluate_command(width, seeds, documents, epochs, out)

def _bias_rows(table):
    "Return rows of the mean soft bias score by size and condition"
    d = table[(table.metric=='bias_ambig_soft') & (table.category=='micro')
              & ~table.condition.str.contains(' - ')]
    means = d.groupby(['benchmark', 'width', 'parameters', 'condition'], sort=False).value.mean()
    return [{k: str(v) for k,v in r.items()} for r in
            means.round(3).unstack().reset_index().fillna('').to_dict('records')]


# %%
import warnings
warnings.simplefilter('ignore')
app = command_group('', cls=ErrorGroup)
app.add_typer(toy, name='toy')
def call(line): return CliRunner().invoke(app, shlex.split(line))

line = 'toy ladder --width 4 --seeds 1 --documents 64 --epochs 1 --out toy'
result = call(line)
print(result.output[-900:])
test_eq(result.exit_code, 0)
assert Path('toy/width-4-seed-0/config.json').exists() and Path('toy/table.csv').exists()

# %%
result = call('toy released --width 8 --seeds 2 --out released')
test_eq(result.exit_code, 0)
test_eq([l for l in result.output.split() if l.startswith('released/')],
        ['released/width-8-seed-0', 'released/width-8-seed-1'])
assert Path('released/width-8-seed-1/model.safetensors').exists()

# %%
for bad,message in (('toy train --width 10 --out x', 'width 10 does not fit'),
                    ('toy released --width 10', 'no released model of width 10'),
                    ('toy train --width 4 --seeds 1 --documents 128 --epochs 1 --out toy',
                     'documents: 64 stored, 128 requested')):
    failed = call(bad)
    assert failed.exit_code and message in ' '.join(failed.output.split()), failed.output
