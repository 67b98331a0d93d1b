# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Console
#
# > What every command shares: errors as sentences, bars, options, tables.

# %%
#| default_exp lab.cli.console

# %%
#| export
import re
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

# %%
#| export
from moral_sc.foundation.errors import MoralScError

# %%
#| hide
import shlex
from fastcore.test import *
from moral_sc.foundation.errors import ConfigError
from typer.testing import CliRunner


# %% [markdown]
# Every command goes through one group, and the group is where errors become sentences. Only
# errors of ours, and disks that are full or closed to us, are turned: anything else is a
# defect, and keeps its traceback.

# %%
#| export
def print_status(
    text:str, # For the person at the terminal; results go to stdout by themselves
):
    "Tell on stderr what is going on"
    typer.echo(text, err=True)

class ErrorGroup(TyperGroup):
    "Errors as sentences, and exit codes that mean something"
    def invoke(self, ctx):
        try: return super().invoke(ctx)
        except MoralScError as e: print_status(f'{e}')
        except KeyboardInterrupt:
            print_status('Stopped. The same command goes on from here.')
            raise typer.Exit(130) from None
        except OSError as e:
            if not e.filename or not e.strerror: raise
            print_status(f'{e.filename}: {e.strerror}.')
        raise typer.Exit(2)

def command_group(help, **kw):
    return typer.Typer(help=help, add_completion=False, no_args_is_help=True,
                       rich_markup_mode=None, pretty_exceptions_enable=False, **kw)


# %%
example_app = command_group('Shows what errors become.', cls=ErrorGroup)

@example_app.command()
def bad(): raise ConfigError('density is 2: give a number above 0 and at most 1.')

@example_app.command()
def stop(): raise KeyboardInterrupt

tell = lambda command: CliRunner().invoke(example_app, shlex.split(command))
test_eq([tell(c).exit_code for c in ('bad','stop')], [2,130])
tell('bad').output, tell('stop').output


# %% [markdown]
# In a terminal a bar moves; in a log file, where it would leave a thousand lines, there is
# one line for every tenth of the way.

# %%
#| export
@contextmanager
def progress_bar(
    label:str, # What is being waited for
):
    "A function progress(done, total) that shows how far things are"
    from rich.console import Console
    from rich.progress import (BarColumn, MofNCompleteColumn, Progress, TextColumn,
                               TimeRemainingColumn)
    console = Console(stderr=True)
    if not console.is_terminal: yield _lines(label); return
    what = TextColumn('{task.description}')
    count = MofNCompleteColumn()
    with Progress(what, BarColumn(), count, TimeRemainingColumn(), console=console,
                  transient=True) as p:
        task = p.add_task(label, total=None)
        yield lambda done, total: p.update(task, completed=done, total=total)

def _lines(label):
    told = [-1]
    def progress(done, total):
        tenth = 10*done//max(total, 1)
        if tenth!=told[0]: print_status(f'{label}: {done} of {total}')
        told[0] = tenth
    return progress


# %%
with progress_bar('scoring') as progress:
    for i in range(0, 200, 5): progress(i, 40)


# %%
#| export
def option(
    type,
    help:str,
    *names,  # If other than the parameter's
):
    "Type of a parameter that is an option"
    return Annotated[type, typer.Option(*names, help=help)]

def argument(
    type,
    help:str,
    metavar=None,
):
    "Type of a parameter that is an argument"
    return Annotated[type, typer.Argument(help=help, metavar=metavar)]

def help_examples(
    *commands:str,
):
    "Text below a command's help"
    return '\b\nFor example:\n'+'\n'.join(f'  {c}' for c in commands)


# %%
#| export
Scale = option(str, 'quick, cpu or gpu: how large the runs are.')
Seed = option(int, 'Of everything random.')
Model = argument(str, 'Alias, folder, .gguf file or hub id.')
Limit = option(int|None, 'At most so many items.')
Mode = option(str, 'How turns are marked: plain or chat.')
Out = option(Path|None, 'Folder of the run; default: one below runs/, named after it.')


# %% [markdown]
# Tables are text, so that they can be piped, and a folder that nobody named lies below `runs/`.

# %%
#| export
def format_table(rows):
    "Dicts as aligned text"
    cells = [[str('' if v is None else v) for v in r.values()] for r in rows]
    lines = [list(rows[0]), *cells] if rows else []
    widths = [max(map(len, c)) for c in zip(*lines, strict=True)]
    padded = [[f'{c:{w}}' for c,w in zip(l, widths, strict=True)] for l in lines]
    return '\n'.join('  '.join(l).rstrip() for l in padded)

def run_folder(out, *parts):
    "The folder asked for, or one below runs/ named after these parts"
    return out or Path('runs', *(re.sub(r'[^\w.-]', '-', p) for p in parts))

def write_file(path, text):
    "The file, written whole or not at all"
    from moral_sc.lab.execution import write_atomic
    return write_atomic(path, text)


# %%
print(format_table([dict(id='bbq/Age', status='ok'), dict(id='law', status='missing')]))

# %%
test_eq(run_folder(None, 'evaluate', 'a/b c'), Path('runs/evaluate/a-b-c'))
run_folder(None, 'evaluate', 'a/b c')
