# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Commands
#
# > `moral_sc` on the command line: thin shells over functions of the same names.

# %%
#| default_exp lab.cli.app

# %%
#| export
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

# %%
#| export
import moral_sc
from moral_sc.foundation.errors import ConfigError, DataError
from moral_sc.lab.cli.console import (Limit, ErrorGroup, Mode, Model, Out, Scale, Seed, argument, progress_bar, help_examples,
                                  run_folder, command_group, option, print_status, format_table, write_file)
from moral_sc.lab.cli.bias import bias
from moral_sc.lab.cli.constitution import constitution
from moral_sc.lab.cli.superposition import superposition

# %%
#| hide
import re
import shlex
import subprocess
import tempfile
import time

import nbformat
from fastcore.test import *
from typer.testing import CliRunner
from moral_sc.language.api_models import stub_server

tmp = Path(tempfile.mkdtemp())/'made'
tmp.mkdir()
os.chdir(tmp)

# %% [markdown]
# A command adds nothing to the function it calls, except manners. It says what it is about
# to do and where it will write, shows a bar while one has to wait, and ends with the path of
# what it made. Input that is wrong gets one sentence and exit code 2; a run that went wrong
# in part gets 1; an interrupt gets 130: these [manners](10_console.ipynb) all commands share.
# Nothing heavy is imported before a command needs it, so that asking for help is instant.

# %%
#| export
app = command_group('Three papers, one runnable lab.', cls=ErrorGroup)


# %%
#| export
def _version(yes:bool):
    if yes: typer.echo(f'moral_sc {moral_sc.__version__}'); raise typer.Exit

@app.callback(epilog='Each command has --help with an example.')
def _options(
    version:Annotated[bool, typer.Option('--version', callback=_version, is_eager=True,
                                         help='Print the version.')]=False
): pass

def main():
    "What the command `moral_sc` runs"
    if sys.argv[1:2]!=['bench']: # which measures what others would run, as they would run it
        os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE') # Threads that wait sleep; see 12_execution
    app(prog_name='moral_sc')


# %% [markdown]
# ## Reproduce
#
# The main job. Each page has a bar that counts its cells.

# %%
#| export
def _bars():
    "Shows pages and cells; made here so that rich is imported late"
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    from moral_sc.lab.site.report import format_duration
    from moral_sc.lab.reproduce import ProgressListener
    class Bars(ProgressListener):
        def __init__(self):
            self.console = Console(stderr=True)
            self.tasks = {}
            self.live = self.console.is_terminal
            what = TextColumn('{task.description}')
            at = TextColumn('{task.fields[at]}')
            self.progress = Progress(what, BarColumn(), at, TimeElapsedColumn(),
                                     console=self.console, disable=not self.live)
        def __enter__(self): self.progress.start(); return self
        def __exit__(self, *exc): self.progress.stop()
        def begin(self, names, done):
            for r in done: print_status(f'{r.page}: done before')
            add = lambda n: self.progress.add_task(n, total=None, start=False, at='')
            self.tasks |= {n: add(n) for n in names}
        def cell(self, name, cell, cells):
            if cell==0: self.progress.start_task(self.tasks[name])
            if cell==0 and not self.live: print_status(f'{name}: started, {cells} cells')
            at = f'cell {cell+1} of {cells}'
            self.progress.update(self.tasks[name], completed=cell, total=cells, at=at)
        def end(self, result):
            self.progress.update(self.tasks[result.page], visible=False)
            r = result
            stopped = f'stopped at cell {result.cell}: {result.error}'
            line = f'{r.page}: {format_duration(r.seconds) if r.ok else stopped}'
            if not self.live: print_status(line)
            else: self.progress.print(line, markup=False, highlight=False)
    return Bars()


# %%
#| export
@app.command(epilog=help_examples('moral_sc reproduce',
                            'moral_sc reproduce superposition --scale cpu --out larger'))
def reproduce(
    names:argument(list[str]|None, 'None means all.', '[PAPER, NOTEBOOK or PATH]...')=None,
    scale:Scale='quick',
    seed:Seed=0,
    jobs:option(int, 'Pages that run at once; the cores are divided among them.')=1,
    out:option(Path, 'Folder of the report.')=Path('report'),
):
    """Run the papers' pages and write a report.

    The same command again goes on where it stopped."""
    from moral_sc.lab import reproduce as r
    from moral_sc.lab.paths import page_name
    pages = [page_name(p) for p in r.find_pages(names or ())]
    print_status(f'Running {", ".join(pages)} at scale {scale}; writing to {out}.')
    report = r.reproduce(names or (), scale, jobs, out, seed, _bars())
    if not report.fresh: print_status('Everything was done before; nothing was run.')
    _verdicts(out)
    n = len(report.failed)
    if n: print_status(f'{n} of {len(pages)} pages stopped; the same command runs them again.')
    typer.echo(report.index)
    if n: raise typer.Exit(1)

def _verdicts(out):
    from collections import Counter
    from moral_sc.lab.claims import ledger
    found = ledger(out/'notebooks')
    count = Counter(found[found.verdict!='not run'].verdict)
    if count: print_status('Claims: '+', '.join(f'{n} {v}' for v,n in count.most_common())+'.')


# %% [markdown]
# ## Claims

# %%
#| export
@app.command(epilog=help_examples('moral_sc claims', 'moral_sc claims --of report --json'))
def claims(
    of:option(Path|None, 'A report; without one, our recorded pages.')=None,
    as_json:option(bool, 'As JSON, one object per claim.', '--json')=False,
):
    "Print every claim and what was found."
    from moral_sc.lab.claims import ledger, verdict_text, format_estimate
    if of and not (of/'notebooks').is_dir():
        raise ConfigError(f'{of} is not a report: give a folder that reproduce wrote.')
    found = ledger(of/'notebooks' if of else None)
    if as_json: typer.echo(found.to_json(orient='records', indent=1)); return
    for r in found.itertuples():
        told = f'{r.quantity} {format_estimate(r.estimate, r.low, r.high)} at scale {r.scale}'
        typer.echo(f'{r.id}\n  {r.sentence}\n  {verdict_text(r._asdict())}')
        if r.scale: typer.echo(f'  {told}')


# %% [markdown]
# ## Data

# %%
#| export
data = command_group('List, fetch and check public files.')
app.add_typer(data, name='data')

@data.command('list', epilog=help_examples('moral_sc data list'))
def _list():
    "Print what can be fetched, and what is here already."
    from moral_sc.foundation.datasets import data_list
    typer.echo(format_table(data_list()))

Ids = argument(list[str]|None, 'As moral_sc data list prints them.', '[ID]...')

@data.command('fetch', epilog=help_examples('moral_sc data fetch bbq/Age'))
def _fetch(ids:Ids=None, every:option(bool, 'Fetch all of them.', '--all')=False):
    "Bring files into the cache, checked against their hashes."
    from moral_sc.foundation.datasets import cache_dir, fetch, source, sources
    if not ids and not every: raise ConfigError('Which files? Give ids, or --all.')
    todo = [source(i).id for i in ids or sources()]
    print_status(f'Fetching {", ".join(todo)} into {cache_dir()}.')
    lost = [i for i in todo if not _fetched(i, fetch)]
    if len(todo)>1 and lost: print_status(f'{len(lost)} of {len(todo)} could not be had.')
    if lost: raise typer.Exit(2)

def _fetched(id, fetch):
    "Whether it came; if not, why is told and the others are fetched all the same"
    try: typer.echo(fetch(id)); return True
    except DataError as e: print_status(f'{e}')

@data.command('verify', epilog=help_examples('moral_sc data verify'))
def _verify(ids:Ids=None):
    """Check what is here against the hashes.

    The exit code is 1 if a file is damaged."""
    from moral_sc.foundation.datasets import verify
    rows = verify(ids or None)
    typer.echo(format_table(rows))
    bad = [r for r in rows if r['status'] not in ('ok', 'missing', 'unpinned')]
    if not bad: return
    print_status(f'{len(bad)} damaged: fetch them again; in a mirror, replace them there.')
    raise typer.Exit(1)


# %% [markdown]
# ## The papers' commands
#
# Each is one public function with its arguments, and a folder for what comes out. Those for toy
# models have [a page of their own](20_superposition.ipynb).

# %%
#| export
@app.command(epilog=help_examples(
    'moral_sc evaluate smollm2-135m-instruct --benchmark bbq-like --limit 40',
    'moral_sc evaluate gemma-3-270m --benchmark winogender --condition q --condition q+match'))
def evaluate(
    model:Model,
    benchmark:option(list[str], 'bbq, bbq-like, winogender, admissions or discrim-eval; may be repeated.')=('bbq',),
    condition:option(list[str]|None, 'q, q+if, q+if+cot ...; may be repeated. Default: those of each benchmark.')=None,
    category:option(list[str]|None, 'Of BBQ; may be repeated. Default: all within reach.')=None,
    limit:Limit=None,
    orders:option(int, 'Orders of the options: 1, 3 or 6.')=1,
    samples:option(int, 'Thoughts a question, where the model reasons first.')=1,
    max_new_tokens:option(int, 'Tokens of a thought, at most.')=256,
    mode:Mode='plain',
    device:option(str, 'auto, cpu, cuda ...')='auto',
    dtype:option(str, 'auto, float32, bfloat16 ...')='auto',
    seed:Seed=0,
    out:Out=None,
):
    "Ask a model the questions of a benchmark."
    from moral_sc import bias, language
    out = run_folder(out, 'evaluate', Path(model).name)
    asked = f' under {", ".join(condition)}' if condition else ''
    print_status(f'Asking {model} {", ".join(benchmark)}{asked}; writing to {out}.')
    lm = language.load(model, dtype, device)
    print_status(repr(lm))
    with progress_bar('questions') as progress:
        found = bias.evaluate(lm, list(benchmark), condition or None, limit, str(out), orders, seed,
                              mode, samples, categories=category or None, progress=progress,
                              max_new_tokens=max_new_tokens)
    for k in ('records', 'metrics', 'differences'):
        write_file(out/f'{k}.csv', getattr(found, k).to_csv(index=False))
    typer.echo(_overall(found.metrics))
    typer.echo(out/'metrics.csv')

def _overall(metrics):
    "The rows over all categories, readable"
    from moral_sc.lab.claims import format_estimate
    first = metrics.groupby('benchmark').category.transform('first')
    rows = metrics[metrics.category==first]
    return format_table([dict(benchmark=r.benchmark, condition=r.condition, metric=r.metric,
                        value=format_estimate(r.value, r.low, r.high)) for r in rows.itertuples()])


# %%
#| export
app.add_typer(superposition, name='superposition')
app.add_typer(bias, name='bias')
app.add_typer(constitution, name='constitution')

# %% [markdown]
# Speed is a ratio, measured side by side with what one would otherwise run.

# %%
#| export
_benches = ['superposition', 'scoring', 'rlaif']

@app.command(epilog=help_examples('moral_sc bench superposition --rows n5,n20 --threads 2',
                            'moral_sc bench scoring --seconds 20 --out scoring.json',
                            'moral_sc bench rlaif --rows ppo --ppo-python trl/bin/python'))
def bench(
    names:argument(list[str]|None, 'superposition, scoring, rlaif; none means all.', '[NAME]...')=None,
    rows:option(str|None, 'Of one benchmark, with commas between; default: all.')=None,
    repeats:option(int, 'Turns of each side.')=5,
    seconds:option(float, 'For each row.')=45.,
    threads:option(int|None, 'Of both sides; default: all.')=None,
    engine:option(str, 'Of the toy models: auto, eager, compiled, numba or triton.')='auto',
    device:option(str, 'auto, cpu or cuda; rlaif is measured on the cpu.')='auto',
    ppo_python:option(Path|None, 'Interpreter that has TRL 1.9, for rows of rlaif.')=None,
    rloo_python:option(Path|None, 'The same with TRL 1.16.')=None,
    out:option(Path, 'File of the record; of several, one each.')=Path('bench.json'),
):
    "Measure ours beside what one would otherwise run, in turns."
    from moral_sc.foundation.errors import unknown_name_message
    names = names or _benches
    for name in names:
        if name not in _benches: raise ConfigError(unknown_name_message('benchmark', name, _benches))
    if threads is not None and threads<1: raise ConfigError(f'threads is {threads}: give 1 or more.')
    if seconds<=0: raise ConfigError(f'seconds is {seconds}: give more than 0.')
    if not out.parent.is_dir(): raise ConfigError(f'{out.parent} is not a folder: make it first.')
    if rows and len(names)>1: raise ConfigError('--rows are of one benchmark: name it.')
    trl = dict(ppo_python=ppo_python, rloo_python=rloo_python)
    for k,path in trl.items():
        if path and not path.is_file():
            raise ConfigError(f'{path} is not a file: give the interpreter of an environment '
                              f'with TRL as --{k.replace("_", "-")}.')
    for name in names:
        path = out if len(names)==1 else out.with_stem(f'{out.stem}_{name}')
        print_status(f'Measuring {name} on {device}, {seconds:.0f} s a row; writing to {path}.')
        found = _measured(name, engine, rows.split(',') if rows else None, repeats, threads, device,
                          trl, seconds=seconds, out=path, said=lambda row: print_status(f'{row} …'))
        typer.echo(found.to_string())
        typer.echo(path)

def _measured(name, engine, rows, repeats, threads, device, trl, **kw):
    if name=='rlaif':
        if device=='cuda': raise ConfigError('rlaif is measured on the cpu only; leave --device.')
        from moral_sc.benchmarks.rlaif import bench
        return bench(rows, repeats, threads, **trl, **kw)
    if name=='superposition':
        from moral_sc.benchmarks.superposition import bench
        return bench(rows, repeats, threads, device, engine=engine, **kw)
    import torch
    from moral_sc.benchmarks.scoring import bench
    if device=='auto': device = 'cuda' if torch.cuda.is_available() else 'cpu'
    return bench(rows, repeats, threads, device, **kw)


# %% [markdown]
# ## For those who write pages
#
# These work in a clone: one keeps a page's outputs, the others make the site and the README.

# %%
#| export
@app.command(epilog=help_examples('moral_sc record nbs/papers/superposition/*.ipynb --scale cpu'))
def record(
    notebooks:argument(list[Path], 'Committed pages.'),
    scale:option(str|None, 'quick, cpu or gpu; default: as the page says.')=None,
    pictures:option(bool, 'Keep a PNG beside each figure; needs kaleido.', '--pictures')=False,
):
    "Run pages and keep what comes out in them."
    from moral_sc.lab.claims import scales
    from moral_sc.lab.recording import record_page
    from moral_sc.foundation.errors import unknown_name_message
    if scale and scale not in scales:
        raise ConfigError(unknown_name_message('scale', scale, list(scales)))
    failed = 0
    for n in notebooks:
        print_status(f'Running {n}; its outputs go into it.')
        with progress_bar(n.stem) as progress: res = record_page(n, scale, pictures, progress)
        if not res.ok: print_status(f'{res}\n{res.traceback}')
        failed += not res.ok
        if res.ok: typer.echo(n)
    if failed: raise typer.Exit(1)

site = command_group('Build the site and the README.')
app.add_typer(site, name='site')

@site.command(epilog=help_examples('moral_sc site build --out _build/html'))
def build(out:option(Path, 'Folder of the site.')=Path('_build/html')):
    "Build the site with Sphinx."
    from moral_sc.lab.site.build import build_site
    print_status(f'Building the site into {out}.')
    typer.echo(build_site(out))

@site.command(epilog=help_examples('moral_sc site readme'))
def readme():
    "Write README.md from the front page."
    from moral_sc.lab.site.build import write_readme
    typer.echo(write_readme())


# %% [markdown]
# ## At the terminal
#
# typer's runner calls a command as a shell would and hands back what it printed.

# %%
def sh(command):
    "Exit code and last line of what a command says"
    res = CliRunner().invoke(app, shlex.split(command), prog_name='moral_sc')
    assert res.exception is None or isinstance(res.exception, SystemExit), res.exception
    lines = re.sub(r'\n +', ' ', res.output).strip().splitlines()
    return res.exit_code, lines[-1] if lines else ''


# %%
sh('--version')

# %%
print(CliRunner().invoke(app, ['--help'], prog_name='moral_sc').output)


# %% [markdown]
# Every command, whatever its depth, explains itself with an example.

# %%
def every(typer_app, prefix=()):
    name = lambda c: c.name or c.callback.__name__
    for c in typer_app.registered_commands: yield [*prefix, name(c)]
    for g in typer_app.registered_groups:
        yield from every(g.typer_instance, [*prefix, g.name])

for c in every(app):
    res = CliRunner().invoke(app, [*c, '--help'], prog_name='moral_sc')
    assert res.exit_code==0
    assert f'moral_sc {" ".join(c)}' in res.output.split('For example')[1]
[' '.join(c) for c in every(app)]


# %% [markdown]
# A report of two pages that were written a moment ago, one of which fails:

# %%
#| hide
def write_file(name, *cells):
    md = nbformat.v4.new_markdown_cell(f'# {name}\n\n> A page made for this test.')
    nb = nbformat.v4.new_notebook(cells=[md, *map(nbformat.v4.new_code_cell, cells)])
    nb.cells[1].metadata['tags'] = ['parameters']
    nbformat.write(nb, f'{name}.ipynb')

write_file('fine', "scale = 'quick'", '1+1')
write_file('broken', "scale = 'quick'", '1/0')

# %%
print(CliRunner().invoke(app, ['reproduce', 'fine.ipynb', 'broken.ipynb']).output)

# %%
test_eq(sh('reproduce fine.ipynb broken.ipynb'), (1, 'report/index.html'))
test_eq(sh('reproduce fine.ipynb'), (0, 'report/index.html'))

# %% [markdown]
# Training, and training again:

# %%
small = 'superposition train --features 4 --density 1,0.1 --steps 20 --out toy'
sh(small), sh(small)

# %%
test_eq(sh(small+' --seed 1'),
        (2, 'toy holds a run with other settings (seed: 0, not 1): give another --out.'))

# %% [markdown]
# A model behind an API, here [a server whose answers are known](../../language/60_api_models.ipynb);
# nobody can begin its answer for it:

# %%
far = 'evaluate api:fake --benchmark bbq-like --limit 4 --condition q --out far'
with stub_server(lambda messages: dict(a=.2, b=.5, c=.25)) as (url,got):
    os.environ.update(OPENAI_BASE_URL=url, OPENAI_API_KEY='none')
    test_eq(sh(far+' --mode chat-noprefill'), (0, 'far/metrics.csv'))
    refused = sh(far+'2')
len(got), refused

# %%
test_eq((len(got), refused[0]), (4, 2))

# %% [markdown]
# ## Bad input
#
# One sentence that names the thing, and nothing left behind.

# %%
before = sorted(tmp.rglob('*'))
wrong = ['reproduce superpositon --out x', 'reproduce fine.ipynb --jobs 0 --out x',
         'reproduce fine.ipynb --scale huge --out x', 'reproduce fine.ipynb --scale cpu',
         'reproduce fine.ipynb --out /proc/x', 'reproduce fine.ipynb --out fine.ipynb',
         'claims --of nowhere', 'data fetch', 'data fetch bbq/Agee',
         'evaluate no-such-model --out x',
         'constitution revise smollm2-135m-instruct --limit 0 --out x',
         'superposition train --density a,b --out x', 'record nowhere.ipynb',
         'bench superpositon', 'bench --rows n6', 'bench --seconds 0', 'bench --out no/where.json',
         'bench --engine numbat', 'bench --threads 0', 'bench --device cuda',
         'bench rlaif --rows chain', 'bench rlaif --ppo-python nowhere']
for w in wrong: print(w, *sh(w), sep='\n    ')

# %%
test_eq({sh(w)[0] for w in wrong}, {2})
test_eq(sorted(tmp.rglob('*')), before)


# %% [markdown]
# ## As a process
#
# The real thing, without the runner. Help comes back before one notices.

# %%
def process(*args):
    t0 = time.perf_counter()
    code = 'from moral_sc.lab.cli.app import main; main()'
    command = [sys.executable, '-c', code, *args]
    res = subprocess.run(command, capture_output=True, text=True)
    return res.returncode, res.stdout.strip(), res.stderr.strip(), time.perf_counter()-t0

process('--help')
code,_,_,seconds = process('--help')
test_eq((code, seconds<2), (0, True))  # under half a second where nothing else runs

# %%
process('reproduce', 'superpositon', '--out', 'x')[:3]

# %%
code = 'import sys, moral_sc.lab.cli.app; print(*sys.modules)'
loaded = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout
test_eq({'torch', 'pandas', 'papermill', 'plotly'} & set(loaded.split()), set())
