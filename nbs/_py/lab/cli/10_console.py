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
# > Shared parts of the commands: options, error messages, progress bars and tables.

# %%
#| default_exp lab.cli.console

# %%
#| export
import errno, json, math, re, sys, warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, get_args

import typer
from typer.core import TyperGroup

from moral_sc.foundation.arguments import MAX_SEED
from moral_sc.foundation.errors import ConfigError, MoralScError, unknown_name_message
from moral_sc.foundation.progress import progress_callback
from moral_sc.lab.scales import SCALES

# %%
#| hide
import shlex
from fastcore.test import *
from typer.testing import CliRunner


# %% [markdown]
# All commands report errors, progress and results in the same way. Results go to stdout, everything else
# to stderr.
#
# ## Errors and exit codes
#
# `ErrorGroup` turns our own errors and errors of the disk into one sentence. Any other exception is a bug
# and keeps its traceback.
#
# | exit code | meaning |
# | --- | --- |
# | 0 | success |
# | 1 | a part of the run failed |
# | 2 | bad input |
# | 130 | interrupted; the same command resumes |

# %%
#| export
def print_status(text:str):
    "Print a message to stderr"
    typer.echo(text, err=True)

@contextmanager
def plain_warnings(
    rewrite=str, # Text of a warning to the text that is printed
):
    "Print each warning once, as a sentence without its line of code"
    seen = set()
    def show(message, *args, **kwargs):
        text = rewrite(str(message))
        if text not in seen: print_status(f'Warning: {text}')
        seen.add(text)
    with warnings.catch_warnings():
        warnings.showwarning = show
        yield

class ErrorGroup(TyperGroup):
    "Group of commands that prints errors as sentences and sets the exit code"
    def invoke(self, ctx):
        try:
            with plain_warnings(): return super().invoke(ctx)
        except MoralScError as e: print_status(f'{e}')
        except KeyboardInterrupt:
            print_status('Interrupted. Run the same command again to resume.')
            raise typer.Exit(130) from None
        except OSError as e:
            full = e.errno in (errno.ENOSPC, errno.EDQUOT) # Of the output, for example
            if not e.strerror or not (e.filename or full): raise
            print_status(f'{e.filename or "The disk or the output"}: {e.strerror}.')
        raise typer.Exit(2)

def command_group(help, add_completion=False, **kw):
    "Make a group of commands whose help is plain text"
    return typer.Typer(help=help, add_completion=add_completion, no_args_is_help=True,
                       rich_markup_mode=None, pretty_exceptions_enable=False, **kw)


# %%
example_app = command_group('Show how errors are printed.', cls=ErrorGroup)

@example_app.command()
def bad(): raise ConfigError('density is 2: give a number above 0 and at most 1.')

@example_app.command()
def stop(): raise KeyboardInterrupt

@example_app.command()
def odd():
    for _ in range(2): warnings.warn('Only 2 of 11 categories are here.', stacklevel=1)

@example_app.command()
def full(): raise OSError(errno.ENOSPC, 'No space left on device')

run = lambda command: CliRunner().invoke(example_app, shlex.split(command))
test_eq([run(c).exit_code for c in ('bad', 'stop', 'full')], [2, 130, 2])
test_eq(run('odd').output, 'Warning: Only 2 of 11 categories are here.\n')
run('bad').output, run('stop').output


# %% [markdown]
# ## Progress bars
#
# In a terminal the bar moves. In a log file one line is printed for each tenth of the work.

# %%
#| export
@contextmanager
def progress_bar(
    label:str, # Shown beside the bar
):
    "Yield a function progress(completed, total) that updates a bar"
    lines = None if sys.stderr.isatty() else _progress_lines(label)
    with progress_callback(lines or True, label) as report: yield report

def _progress_lines(label):
    last = [-1]
    def progress(completed, total):
        tenth = 10*completed//max(total, 1)
        if tenth!=last[0]: print_status(f'{label}: {completed} of {total}')
        last[0] = tenth
    return progress


# %%
with progress_bar('scoring') as progress:
    for i in range(0, 200, 5): progress(i, 40)


# %% [markdown]
# ## Options
#
# `option` and `argument` make the type of a command's parameter. With `choices`, an unknown value is
# answered with the nearest one, and the shell completes the value. Every number has bounds, which are
# checked before a command starts: by default an integer is at least 1 and at most a billion, and a
# decimal number is finite.

# %%
#| export
def _check_choice(choices):
    def check(param:typer.CallbackParam, value):
        kind = (param.metavar or param.name).lower()
        for v in value if isinstance(value, (list, tuple)) else [value]:
            if v is not None and v not in choices:
                raise ConfigError(unknown_name_message(kind, v, list(choices)))
        return value
    return check

def _choice_settings(choices):
    if not choices: return {}
    complete = lambda incomplete: [c for c in choices if c.startswith(incomplete)]
    return dict(callback=_check_choice(choices), autocompletion=complete)

def _check_bounds(low, high, above):
    allowed = f'above {above:g}' if above is not None else f'of at least {low:g}'
    if high<math.inf: allowed += f' and at most {high:g}'
    def check(param:typer.CallbackParam, value):
        for v in value if isinstance(value, (list, tuple)) else [value]:
            if v is None or v==param.default: continue
            if not low<=v<=high or not math.isfinite(v) or (above is not None and v<=above):
                name = param.opts[0]
                raise ConfigError(f'{name} is {v}: give a number {allowed}.')
        return value
    return check

def _number_settings(type, bounds, above):
    numbers = {int, float} & {type, *get_args(type)}
    if not numbers: return {}
    low,high = bounds or ((1, 10**9) if int in numbers else (-math.inf, math.inf))
    return dict(callback=_check_bounds(low, high, above))

def option(
    type,
    help:str,
    *names,       # If other than the parameter's
    choices=(),   # The values that are allowed; default: any
    metavar=None, # Name of the value in the help
    bounds=None,  # (low, high) of a number; default: 1 to a billion for integers
    above=None,   # A number that the value must exceed
):
    "Make the type of a parameter that is an option"
    settings = _number_settings(type, bounds, above) | _choice_settings(choices)
    return Annotated[type, typer.Option(*names, help=help, metavar=metavar, **settings)]

def argument(
    type,
    help:str,
    metavar=None, # Name of the value in the help
    choices=(),   # The values that are allowed; default: any
):
    "Make the type of a parameter that is an argument"
    settings = _choice_settings(choices)
    return Annotated[type, typer.Argument(help=help, metavar=metavar, **settings)]

def help_examples(
    *commands:str,
):
    "Format examples for the end of a command's help"
    return '\b\nFor example:\n'+'\n'.join(f'  {c}' for c in commands)


# %%
@example_app.command(epilog=help_examples('show --size small'))
def show(size:option(str, 'Size.', choices=['small', 'large'])='small'): typer.echo(size)

print(run('show --help').output)

# %%
test_eq(run('show --size large').output, 'large\n')
test_eq(run('show --size smal').output, "There is no size 'smal'; did you mean 'small'?\n")

@example_app.command('count')
def count(n:option(int|None, 'Count.')=None, rate:option(float, 'Rate.', above=0)=1.,
          seed:option(int, 'Seed.', bounds=(0, MAX_SEED))=0): typer.echo(f'{n} {rate} {seed}')

test_eq(run('count').output, 'None 1.0 0\n')
test_eq(run('count --n 3 --rate 0.5 --seed 0').output, '3 0.5 0\n')
for args in ('--n 0', '--n -1', '--n 99999999999999', '--rate nan', '--rate inf', '--rate 0',
             '--rate -1', '--seed -1', '--seed 99999999999999999999999'):
    res = run(f'count {args}')
    test_eq(res.exit_code, 2)
    assert 'give a number' in res.output, res.output
run('count --rate nan').output, run('count --seed -1').output

# %% [markdown]
# Options that several commands share:

# %%
#| export
_MODES = ('plain', 'chat', 'chat-noprefill')

Scale = option(str, 'Size of the runs: quick, cpu or gpu.', choices=SCALES, metavar='SCALE')
Seed = option(int, 'Seed of all random numbers, at least 0.', bounds=(0, MAX_SEED))
Device = option(str, 'auto, cpu, cuda, cuda:1, ...', metavar='NAME') # `load` checks it
Model = argument(str, 'Alias, folder, .gguf file or id on the Hugging Face hub.', 'MODEL')
Limit = option(int|None, 'Maximum number of items. Default: all.')
Mode = option(str, 'Format of prompts: plain, chat or chat-noprefill.', choices=_MODES,
              metavar='MODE')
Out = option(Path|None, 'Folder of the run. Default: a folder below runs/.')
AsJson = option(bool, 'Print JSON, one object for each row.', '--json')


# %% [markdown]
# ## Tables and files
#
# Tables are aligned text, so you can pipe them. Without `--out`, a run is stored below `runs/`.

# %%
#| export
def format_table(
    rows:list, # Dicts with the same keys
)->str:
    "Format dicts as an aligned table"
    cells = [[str('' if v is None else v) for v in r.values()] for r in rows]
    lines = [list(rows[0]), *cells] if rows else []
    widths = [max(map(len, c)) for c in zip(*lines, strict=True)]
    padded = [[f'{c:{w}}' for c,w in zip(l, widths, strict=True)] for l in lines]
    return '\n'.join('  '.join(l).rstrip() for l in padded)

def print_rows(
    rows,         # Dicts with the same keys, or a DataFrame
    as_json=False,
):
    "Print a table, or JSON for other programs"
    if hasattr(rows, 'to_json'): rows = json.loads(rows.to_json(orient='records'))
    typer.echo(json.dumps(rows, indent=1, ensure_ascii=False) if as_json else format_table(rows))

def run_folder(
    out:Path|None, # The value of --out
    *parts:str,    # Of the default folder below runs/
)->Path:
    "Return the folder of a run"
    return out or Path('runs', *(re.sub(r'[^\w.-]', '-', p) for p in parts))


# %%
rows = [dict(id='bbq/Age', status='ok'), dict(id='law', status='missing')]
print_rows(rows)
print_rows(rows, as_json=True)

# %%
test_eq(run_folder(None, 'evaluate', 'a/b c'), Path('runs/evaluate/a-b-c'))
run_folder(None, 'evaluate', 'a/b c')
