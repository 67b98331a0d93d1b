# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Command line
#
# > Define the commands of `moral_sc`, which call the package's functions.

# %%
#| default_exp lab.cli.app

# %%
#| export
import json, os, sys
from pathlib import Path
from typing import Annotated

import moral_sc, typer
from moral_sc.foundation.errors import ConfigError, DataError
from moral_sc.lab.cli.console import (AsJson, Device, ErrorGroup, Limit, Mode, Model, Out, Scale,
                                      Seed, argument, command_group, help_examples, option,
                                      print_rows, print_status, progress_bar, run_folder)
from moral_sc.lab.cli.bias import (EVALUATION_FLAGS, Benchmarks, Categories, Conditions,
                                   ConditionsFile, Items, Wordings, bias, parse_wordings,
                                   shell_messages)
from moral_sc.lab.cli.bias_toy import toy
from moral_sc.lab.cli.constitution import constitution
from moral_sc.lab.cli.superposition import superposition
from moral_sc.lab.scales import SCALES

# %%
#| hide
import re
import shlex
import subprocess
import tempfile
from unittest import mock

import nbformat
import pandas as pd
from fastcore.test import *
from typer.testing import CliRunner
from moral_sc.foundation.datasets import data_list
from moral_sc.language.api_models import stub_server

tmp = Path(tempfile.mkdtemp())/'made'
tmp.mkdir()
os.chdir(tmp)

# %% [markdown]
# Each command calls one function of the package. It prints its task and the folder that it writes
# to, shows a progress bar, and ends with the path of the result. Errors are single sentences, and the exit
# code tells the kind of failure ([console](10_console.ipynb)). Heavy libraries are imported only by
# the commands that need them, so `--help` takes less than half a second.
#
# `python -m moral_sc` is the same as `moral_sc`. To complete commands, options and their values with the
# Tab key, run `moral_sc --install-completion` once (bash, zsh, fish and PowerShell).

# %%
#| export
app = command_group('Rerun the experiments of three papers on language models: toy models of '
                    'superposition, constitutional AI, and moral self-correction.',
                    add_completion=True, cls=ErrorGroup)


# %%
#| export
def _print_version(yes:bool):
    if yes: typer.echo(f'moral_sc {moral_sc.__version__}'); raise typer.Exit

@app.callback(epilog=help_examples('moral_sc reproduce superposition', 'moral_sc reproduce --help'))
def _options(
    version:Annotated[bool, typer.Option('--version', callback=_print_version, is_eager=True,
                                         help='Print the version and exit.')]=False
):
    threads = os.environ.get('NUMBA_NUM_THREADS', '1')
    if not threads.isdecimal() or int(threads)<1: raise ConfigError(
        f'NUMBA_NUM_THREADS is {threads!r}: give a number of threads, or unset it.')

def main():
    "Run the command line"
    if sys.argv[1:2]!=['bench']: # the benchmark measures other libraries with their own settings
        os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE') # see lab.execution
    app(prog_name='moral_sc')


# %% [markdown]
# ## Reproduce
#
# `reproduce` runs the paper pages into a report. One bar counts the cells of all pages and estimates the time left; each
# page has a bar of its own while it runs.

# %%
#| export
def _bars(message):
    "Return a listener that prints a message and shows a bar for each page; rich is slow to import"
    from rich.console import Console
    from rich.progress import (BarColumn, Progress, TextColumn, TimeElapsedColumn,
                               TimeRemainingColumn)
    from moral_sc.lab.site.report import format_duration
    from moral_sc.lab.reproduce import ProgressListener, expected_seconds
    class Bars(ProgressListener):
        def __init__(self):
            self.console = Console(stderr=True)
            self.tasks = {}
            self.live = self.console.is_terminal
            columns = (TextColumn('{task.description}'), BarColumn(),
                       TextColumn('{task.fields[at]}'), TimeElapsedColumn(), TimeRemainingColumn())
            self.progress = Progress(*columns, console=self.console, disable=not self.live)
        def __enter__(self): self.progress.start(); return self
        def __exit__(self, *exc): self.progress.stop()
        def begin(self, names, stored):
            if names: print_status(message)
            for r in stored: print_status(f'{r.page}: finished earlier')
            self.pages,self.finished = len(names), 0
            known = expected_seconds()
            self.weights = [known.get(n, 15.) for n in names]
            add = lambda n, **kw: self.progress.add_task(n, total=None, at='', **kw)
            self.total = add('all pages') if len(names)>1 else None
            self.tasks |= {n: add(n, start=False, visible=False) for n in names}
            self._count()
        def _count(self):
            "Update the bar of all pages; the share of a page are its expected seconds"
            if self.total is None: return
            tasks = zip(self.weights, self.progress.tasks[1:], strict=True)
            parts = sum(w*t.completed/t.total for w,t in tasks if t.total)
            self.progress.update(self.total, completed=parts, total=sum(self.weights),
                                 at=f'{self.finished} of {self.pages} pages')
        def cell(self, name, cell, cells):
            if cell==0: self.progress.start_task(self.tasks[name])
            if cell==0 and not self.live: print_status(f'{name}: started, {cells} cells')
            at = f'cell {cell+1} of {cells}'
            self.progress.update(self.tasks[name], completed=cell, total=cells, at=at, visible=True)
            self._count()
        def end(self, result):
            self.progress.update(self.tasks[result.page], completed=1, total=1, visible=False)
            r = result
            self.finished += 1
            self._count()
            stopped = f'stopped at cell {result.cell}: {result.error}'
            line = f'{r.page}: {format_duration(r.seconds) if r.ok else stopped}'
            if self.pages>1: line = f'[{self.finished}/{self.pages}] {line}'
            if not self.live: print_status(line)
            else: self.progress.print(line, markup=False, highlight=False)
    return Bars()


# %%
#| export
@app.command('reproduce', epilog=help_examples(
    'moral_sc reproduce', 'moral_sc reproduce superposition --scale cpu --out report-cpu',
    'moral_sc reproduce constitution/frontier self_correction/accuracy',
    'moral_sc reproduce bbq_first_look --model smollm2-135m-instruct --out report-smollm2'))
def _reproduce(
    names:argument(list[str]|None, 'Papers, pages or notebook files. Default: all.', 'NAME')=None,
    scale:Scale='quick',
    seed:Seed=0,
    jobs:option(int|None, 'Pages that run at once. Default: one per core, at most 4.')=None,
    out:option(Path, 'Folder of the report.')=Path('report'),
    model:option(list[str]|None, 'Model, folder or hub id for the pages that load models; repeat '
                 'for several. Default: those of the scale.', metavar='NAME')=None,
    assign:option(list[str]|None, 'Another parameter of a page; repeat for several.', '--set',
                  metavar='KEY=VALUE')=None,
):
    """Run paper pages and compare their estimates with the recorded ones.

    The report opens in a browser. If the run is interrupted, the report shows what is finished, and
    the same command resumes. The exit code is 1 if a page stops or a quantity differs."""
    from moral_sc.lab.agreement import summary
    from moral_sc.lab.paths import find_pages, page_name
    from moral_sc.lab.reproduce import reproduce
    pages = [page_name(p) for p in find_pages(names or ())]
    settings = _assignments(assign or ())
    listed = ', '.join(pages) if len(pages)<6 else f'{len(pages)} pages'
    given = ''.join(f', {k}={v}' for k,v in settings.items())
    given += f', on {", ".join(model)}' if model else ''
    message = f'Running {listed} at scale {scale}{given}; writing to {out}.'
    report = reproduce(names or (), scale, jobs, out, seed, _bars(message), models=model or (),
                       settings=settings)
    if not report.fresh: print_status('All pages were finished earlier; nothing was run.')
    n = len(report.failed)
    if n: print_status(f'{n} of {len(pages)} pages failed; the same command runs them again.')
    differs = _print_comparison(report)
    print_status(summary(report.compared))
    typer.echo(report.index)
    if n or differs: raise typer.Exit(1)

def _assignments(texts):
    "Read key=value options"
    for t in texts:
        if not t.partition('=')[1]: raise ConfigError(f'--set {t} has no value: give key=value.')
    pairs = [t.partition('=')[::2] for t in texts]
    return {k.strip(): v for k,v in pairs}

def _print_comparison(report):
    "Print the slowest pages and each quantity that differs; return how many differ"
    from moral_sc.lab.claims import format_estimate
    from moral_sc.lab.site.report import format_duration
    if report.fresh>2:
        slow = (f'{r.page} ({format_duration(r.seconds)})' for r in report.slowest)
        print_status(f'Slowest: {", ".join(slow)}.')
    rows = [r for r in report.compared.itertuples() if r.agreement=='differs']
    for r in rows:
        old = format_estimate(r.recorded_estimate, r.recorded_low, r.recorded_high)
        new = format_estimate(r.estimate, r.low, r.high)
        print_status(f'Differs: {r.id}: recorded {old}, this run {new} ({r.difference})')
    return len(rows)


# %% [markdown]
# ## Pages
#
# `page` names the notebook of a page, which in an installed package is not easy to find, or copies it.

# %%
#| export
@app.command('page', epilog=help_examples('moral_sc page phase_change',
                                          'moral_sc page your_own_model_and_data --copy .'))
def _page(
    names:argument(list[str]|None, 'Papers, pages or guides. Default: all.', 'NAME')=None,
    copy:option(Path|None, 'Copy the notebooks into this folder, to read and change them.')=None,
):
    "Print the paths of pages and guides, or copy them."
    import shutil
    from moral_sc.lab.paths import find_pages, guides_dir, notebook_paths
    pages = find_pages(names) if names else find_pages()+notebook_paths(guides_dir())
    if copy is None:
        for p in pages: typer.echo(p)
        return
    if not copy.is_dir(): raise ConfigError(f'{copy} is not a folder: make it first.')
    copies = [copy/p.name for p in pages]
    for c in copies:
        if c.exists(): raise ConfigError(f'{c} exists already: give another folder.')
    if len(set(copies))<len(copies):
        raise ConfigError('Two of these pages have one file name: copy them one by one.')
    for p,c in zip(pages, copies):
        shutil.copyfile(p, c)
        typer.echo(c)


# %% [markdown]
# ## Claims

# %%
#| export
@app.command('claims', epilog=help_examples('moral_sc claims',
                                            'moral_sc claims --of report --csv > claims.csv'))
def _claims(
    report:option(Path|None, 'Folder that reproduce wrote. Default: our recorded pages.',
                  '--report', '--of')=None,
    as_json:option(bool, 'Print JSON, one object for each claim.', '--json')=False,
    as_csv:option(bool, 'Print CSV, one line for each claim.', '--csv')=False,
):
    """Print the claims, our criteria and the verdicts, and count them by paper.

    Of a report, only the claims of the pages that it ran are printed, beside the record."""
    from moral_sc.lab.agreement import compare_report, summary
    from moral_sc.lab.claims import ledger
    from moral_sc.lab.site.papers import ClaimCounts
    if as_json and as_csv: raise ConfigError('--json and --csv are both given: omit one.')
    if report and not (report/'notebooks').is_dir():
        raise ConfigError(f'{report} is not a report: give the --out of `moral_sc reproduce`.')
    rows = compare_report(report) if report else ledger()
    if as_json: typer.echo(rows.to_json(orient='records', indent=1)); return
    if as_csv: typer.echo(rows.to_csv(index=False), nl=False); return
    for r in rows.itertuples(): _print_claim(r)
    typer.echo(f'\n{summary(rows) if report else ClaimCounts(rows).text}')

def _print_claim(r):
    from moral_sc.lab.claims import claim_text, format_estimate, verdict_text
    typer.echo(f'{r.id}\n  {claim_text(r)}\n  {verdict_text(r._asdict(), r.closed)}')
    estimate = format_estimate(r.estimate, r.low, r.high, draws=r.draws)
    if r.scale: typer.echo(f'  {r.quantity}: {estimate} at scale {r.scale}')
    if word := getattr(r, 'agreement', ''):
        old = format_estimate(r.recorded_estimate, r.recorded_low, r.recorded_high)
        typer.echo(f'  {word}; recorded {old} at scale {r.recorded_scale or "none"}')


# %% [markdown]
# ## Data

# %%
#| export
data = command_group('List, download and verify public data files.')
app.add_typer(data, name='data')

@data.command('list', epilog=help_examples('moral_sc data list'))
def _list(as_json:AsJson=False):
    "List the files, their licences and the local copies."
    from moral_sc.foundation.datasets import data_list
    print_rows(data_list(), as_json)

Ids = argument(list[str]|None, 'Ids that `moral_sc data list` prints.', 'ID')

@data.command('fetch', epilog=help_examples('moral_sc data fetch bbq/Age',
                                            'moral_sc data fetch --all'))
def _fetch(ids:Ids=None, every:option(bool, 'Download all files.', '--all')=False):
    "Download files into the cache and check their hashes."
    from moral_sc.foundation.datasets import cache_dir, fetch, source, sources
    if not ids and not every: raise ConfigError('No file is named: give ids or --all.')
    todo = [source(i).id for i in ids or sources()]
    print_status(f'Downloading {", ".join(todo)} into {cache_dir()}.')
    failed = [i for i in todo if not _fetch_one(i, fetch)]
    if len(todo)>1 and failed: print_status(f'{len(failed)} of {len(todo)} files are missing.')
    if failed: raise typer.Exit(2)

def _fetch_one(id, fetch):
    "Return whether a file was fetched; print the error if not"
    try: typer.echo(fetch(id)); return True
    except DataError as e: print_status(f'{e}')

@data.command('verify', epilog=help_examples('moral_sc data verify',
                                             'moral_sc data verify bbq/Age'))
def _verify(ids:Ids=None, as_json:AsJson=False):
    """Check local copies against their hashes.

    The exit code is 1 if a file is damaged."""
    from moral_sc.foundation.datasets import verify
    rows = verify(ids or None)
    print_rows(rows, as_json)
    bad = [r for r in rows if r['status'] not in ('ok', 'missing', 'unpinned')]
    if not bad: return
    print_status(f'{len(bad)} files are damaged: fetch them again, or replace them in the mirror.')
    raise typer.Exit(1)


# %% [markdown]
# ## The papers' commands
#
# `evaluate` is here; the commands of [superposition](20_superposition.ipynb),
# [constitution](30_constitution.ipynb) and [bias](40_bias.ipynb) have their own pages.

# %%
#| export
@app.command('evaluate', epilog=help_examples(
    'moral_sc evaluate smollm2-135m-instruct --benchmark bbq-like --limit 40',
    'moral_sc evaluate gemma-3-270m --benchmark winogender --condition q',
    'moral_sc evaluate my-model --items mine.csv --wording "q+kind=Please be kind." --json'))
def _evaluate(
    model:Model,
    benchmark:Benchmarks=('bbq',),
    condition:Conditions=None,
    category:Categories=None,
    items:Items=None,
    wording:Wordings=None,
    conditions_file:ConditionsFile=None,
    limit:Limit=None,
    orders:option(int, 'Number of orders of the answer options: 1, 3 or 6.')=1,
    samples:option(int, 'Chains of thought for each question, for conditions with cot.')=1,
    max_new_tokens:option(int, 'Maximum length of a chain of thought in tokens.')=256,
    mode:Mode='plain',
    device:Device='auto',
    dtype:option(str, 'auto, float32, bfloat16, ...', metavar='NAME')='auto',
    seed:Seed=0,
    out:Out=None,
    as_json:AsJson=False,
):
    """Measure the bias of a model on one or more benchmarks.

    --items asks your own questions: a .jsonl, .json, .csv, .tsv or .parquet file with the fields of
    BBQ, or with context, question, ans0, ans1, ans2, label (number of the right answer) and, if you
    like, biased (of the stereotyped answer), unknown (of the answer that declines), id, category,
    template, scene. Of another --benchmark, they have that one's fields."""
    from moral_sc import language
    from moral_sc.bias.evaluation import plan_evaluation, run_plan
    out = run_folder(out, 'evaluate', Path(model).name)
    with shell_messages(**EVALUATION_FLAGS):
        plan = plan_evaluation(
            list(benchmark), condition or None, limit, orders, seed, mode, samples, items,
            category or None, wordings=parse_wordings(wording), conditions_file=conditions_file,
            max_new_tokens=max_new_tokens)
        asked = dict.fromkeys(c for cs in plan.conditions.values() for c in cs)
        print_status(f'Evaluating {model}: {plan} under {", ".join(asked)}; writing to {out}.')
        lm = language.load(model, dtype, device)
        print_status(repr(lm))
        with progress_bar('questions') as progress: e = run_plan(plan, lm, str(out), progress)
    if as_json: print_rows(_all_metrics(e), True)
    # The first line says how many of BBQ's categories these are
    print_status(repr(e)) if as_json else typer.echo(repr(e))
    if not as_json: print_rows(_overall(e.metrics), False)
    print_status(f'{out/"metrics.csv"}') if as_json else typer.echo(out/'metrics.csv')

def _all_metrics(e):
    import pandas as pd
    return pd.concat([e.metrics, e.differences], ignore_index=True).assign(model=e.model)

def _overall(metrics):
    "Return the metrics over all categories, formatted"
    from moral_sc.lab.claims import format_estimate
    first = metrics.groupby('benchmark').category.transform('first')
    rows = metrics[metrics.category==first]
    return [dict(benchmark=r.benchmark, condition=r.condition, metric=r.metric,
                 value=format_estimate(r.value, r.low, r.high)) for r in rows.itertuples()]


# %%
#| export
app.add_typer(superposition, name='superposition')
bias.add_typer(toy, name='toy')
app.add_typer(bias, name='bias')
app.add_typer(constitution, name='constitution')

# %% [markdown]
# ## Benchmarks of speed
#
# `bench` measures our implementation and other libraries in turns on the same machine.

# %%
#| export
_BENCHMARKS = ('superposition', 'scoring', 'rlaif', 'toy-language')

@app.command('bench', epilog=help_examples(
    'moral_sc bench superposition --rows n5,n20 --threads 2',
    'moral_sc bench scoring --seconds 20 --out scoring.json',
    'moral_sc bench rlaif --rows ppo --ppo-python trl/bin/python'))
def _bench(
    names:argument(list[str]|None, 'superposition, scoring, rlaif or toy-language. Default: all.',
                   'BENCHMARK', _BENCHMARKS)=None,
    rows:option(str|None, 'Rows of one benchmark, separated by commas. Default: all.')=None,
    repeats:option(int, 'Number of times that each side runs.')=5,
    seconds:option(float, 'Time for each row.', above=0)=45.,
    threads:option(int|None, 'Threads of both sides. Default: all cores.')=None,
    engine:option(str, 'Engine of the toy models: auto, eager, compiled, numba or triton.',
                  metavar='NAME')='auto',
    device:option(str, 'auto, cpu or cuda; rlaif and toy-language run on the CPU.',
                  metavar='NAME')='auto',
    ppo_python:option(Path|None, 'Python that has TRL 1.9, for PPO rows of rlaif.')=None,
    rloo_python:option(Path|None, 'Python that has TRL 1.16, for RLOO rows of rlaif.')=None,
    out:option(Path, 'JSON file of the results, one for each benchmark.')=Path('bench.json'),
    as_json:AsJson=False,
):
    "Measure speed beside other libraries."
    names = names or _BENCHMARKS
    tables = {}
    if not out.parent.is_dir(): raise ConfigError(f'{out.parent} is not a folder: make it first.')
    if rows and len(names)>1: raise ConfigError('--rows needs exactly one benchmark: name it.')
    trl = dict(ppo_python=ppo_python, rloo_python=rloo_python)
    for k,path in trl.items():
        if path and not path.is_file():
            raise ConfigError(f'{path} is not a file: give a Python interpreter that has TRL '
                              f'as --{k.replace("_", "-")}.')
    for name in names:
        path = out if len(names)==1 else out.with_stem(f'{out.stem}_{name}')
        print_status(f'Measuring {name} on {device}, {seconds:.0f} s a row; writing to {path}.')
        table = _run_benchmark(name, engine, rows.split(',') if rows else None, repeats, threads,
                               device, trl, seconds=seconds, out=path, progress=print_status)
        tables[name] = table.rename_axis('row').reset_index()
        if as_json: print_status(f'{path}')
        else: typer.echo(f'{path}' if table.empty else f'{table.to_string()}\n{path}')
    if as_json: print_rows([dict(benchmark=k, **r) for k,t in tables.items()
                            for r in json.loads(t.to_json(orient='records'))], True)

def _run_benchmark(name, engine, rows, repeats, threads, device, trl, **kw):
    if name in ('rlaif', 'toy-language') and device=='cuda':
        raise ConfigError(f'{name} runs on the CPU only: omit --device.')
    if name=='toy-language':
        from moral_sc.benchmarks.toy_language import bench_toy_language
        return bench_toy_language(rows, repeats, threads, **kw)
    if name=='rlaif':
        from moral_sc.benchmarks.rlaif import bench_rlaif
        return bench_rlaif(rows, repeats, threads, **trl, **kw)
    if name=='superposition':
        from moral_sc.benchmarks.superposition import bench_superposition
        return bench_superposition(rows, repeats, threads, device, engine=engine, **kw)
    import torch
    from moral_sc.benchmarks.scoring import bench_scoring
    if device=='auto': device = 'cuda' if torch.cuda.is_available() else 'cpu'
    return bench_scoring(rows, repeats, threads, device, **kw)


# %% [markdown]
# ## Commands for contributors
#
# These work in a clone. `record` stores the outputs of pages, `site` builds the site and the README.

# %%
#| export
@app.command('record', epilog=help_examples(
    'moral_sc record nbs/foundation/30_statistics.ipynb',
    'moral_sc record nbs/papers/superposition/*.ipynb --scale cpu'))
def _record(
    notebooks:argument(list[Path], 'Pages of a clone.', 'NOTEBOOK'),
    scale:option(str|None, 'quick, cpu or gpu. Default: the recorded scale.', choices=SCALES,
                 metavar='SCALE')=None,
    pictures:option(bool|None, 'Add a PNG of each figure. Default: on the pages of papers.')=None,
    allow_smaller:option(bool, 'Replace outputs of a larger scale.', '--allow-smaller')=False,
):
    "Run pages and store their outputs in the notebooks."
    from moral_sc.lab.execution import read_notebook
    from moral_sc.lab.recording import record_page
    for n in notebooks: read_notebook(n)
    failed = 0
    for n in notebooks:
        print_status(f'Running {n}; its outputs are stored in it.')
        with progress_bar(n.stem) as progress:
            res = record_page(n, scale, pictures, progress, allow_smaller)
        if not res.ok: print_status(f'{res}\n{res.traceback}')
        failed += not res.ok
        if res.ok: typer.echo(n)
    if failed: raise typer.Exit(1)

site = command_group('Build the site and the README.')
app.add_typer(site, name='site')

@site.command('build', epilog=help_examples('moral_sc site build --out _build/html'))
def _build(out:option(Path, 'Folder of the site.')=Path('_build/html')):
    "Build the site with Sphinx."
    from moral_sc.lab.site.build import build_site
    print_status(f'Building the site into {out}.')
    typer.echo(build_site(out))

@site.command('pictures', epilog=help_examples('moral_sc site pictures nbs/papers'))
def _pictures(
    pages:argument(list[Path], 'Recorded notebooks or folders.', 'PATH'),
    redraw:option(bool, 'Also draw figures that have a PNG.', '--redraw')=False,
):
    "Add a PNG of each plotly figure to recorded pages, without running them."
    from moral_sc.lab.site.outputs import add_pictures
    for path,size in add_pictures(pages, redraw).items():
        typer.echo(f'{path}: {size/1000:.0f} kB of PNG')

@site.command('readme', epilog=help_examples('moral_sc site readme'))
def _readme():
    "Write README.md from the front page."
    from moral_sc.lab.site.build import write_readme
    typer.echo(write_readme())


# %% [markdown]
# ## Examples
#
# typer's runner calls a command as a shell does and returns its output.

# %%
def sh(command):
    "Return the exit code and the last line of a command's output"
    res = CliRunner().invoke(app, shlex.split(command), prog_name='moral_sc')
    assert res.exception is None or isinstance(res.exception, SystemExit), res.exception
    lines = re.sub(r'\n +', ' ', res.output).strip().splitlines()
    return res.exit_code, lines[-1] if lines else ''


# %%
sh('--version')

# %%
print(CliRunner().invoke(app, ['--help'], prog_name='moral_sc').output)


# %% [markdown]
# The help of every command has an example, and fits 80 columns.

# %%
def every(typer_app, prefix=()):
    name = lambda c: c.name or c.callback.__name__
    for c in typer_app.registered_commands: yield [*prefix, name(c)]
    for g in typer_app.registered_groups:
        yield from every(g.typer_instance, [*prefix, g.name])

for c in every(app):
    res = CliRunner().invoke(app, [*c, '--help'], prog_name='moral_sc')
    assert res.exit_code==0
    text,examples = res.output.split('For example')
    assert f'moral_sc {" ".join(c)}' in examples
    test_eq([l for l in text.splitlines() if len(l)>80], [])
[' '.join(c) for c in every(app)]


# %% [markdown]
# A report of two small pages, one of which fails:

# %%
#| hide
def write_page(name, *cells):
    md = nbformat.v4.new_markdown_cell(f'# {name}\n\n> A page made for this test.')
    nb = nbformat.v4.new_notebook(cells=[md, *map(nbformat.v4.new_code_cell, cells)])
    nb.cells[1].metadata['tags'] = ['parameters']
    nbformat.write(nb, f'{name}.ipynb')

write_page('fine', "scale = 'quick'", '1+1')
write_page('broken', "scale = 'quick'", '1/0')

# %%
print(CliRunner().invoke(app, ['reproduce', 'fine.ipynb', 'broken.ipynb']).output)

# %%
test_eq(sh('reproduce fine.ipynb broken.ipynb'), (1, 'report/index.html'))
test_eq(sh('reproduce fine.ipynb'), (0, 'report/index.html'))

# %% [markdown]
# A page of the package, and a copy of it:

# %%
code,path = sh('page phase_change')
test_eq((code, Path(path).is_file()), (0, True))
test_eq(sh('page phase_change --copy .'), (0, 'phase_change.ipynb'))
test_eq(Path('phase_change.ipynb').read_bytes(), Path(path).read_bytes())
test_eq(sh('page phase_change --copy .')[0], 2)
Path('phase_change.ipynb').unlink()
len(CliRunner().invoke(app, ['page']).output.split())

# %% [markdown]
# A finished training is not repeated:

# %%
small = 'superposition train --features 4 --density 1,0.1 --steps 20 --out toy'
sh(small), sh(small)

# %%
test_eq(sh(small+' --seed 1'),
        (2, 'toy holds a run with other settings (seed: 0 stored, 1 requested): give another '
            '--out.'))

# %% [markdown]
# A model behind an API, here [a stub server](../../language/60_api_models.ipynb). An API does not
# accept the beginning of an answer, so the mode must be `chat-noprefill`:

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
# Your own questions under a wording of your own, as JSON for another program:

# %%
Path('own.csv').write_text('context,question,ans0,ans1,ans2,label,biased\n'
                           'Kim and Lee met. Lee won.,Who won?,Kim,Lee,Unknown,1,0\n'
                           'Kim and Lee met.,Who lost?,Kim,Lee,Unknown,2,1\n')
own = ('evaluate api:fake --items own.csv --wording "q+kind=Please be kind." --condition q '
       '--condition q+kind --mode chat-noprefill --out own --json')
with stub_server(lambda messages: dict(a=.2, b=.5, c=.25)) as (url,got):
    os.environ.update(OPENAI_BASE_URL=url, OPENAI_API_KEY='none')
    res = CliRunner().invoke(app, shlex.split(own), prog_name='moral_sc')
rows = json.loads(res.stdout)
test_eq(res.exit_code, 0)
assert 'Please be kind.' in str(got)
[r for r in rows if r['metric']=='accuracy_disambig' and r['category']=='micro']

# %%
test_eq({(r['condition'], r['value']) for r in rows if r['metric']=='accuracy_ambig'},
        {('q', 0.), ('q+kind', 0.), ('q+kind - q', 0.)})
test_eq(json.loads(CliRunner().invoke(app, ['data', 'list', '--json']).stdout)[0].keys(),
        dict.fromkeys(data_list()[0]).keys())
table = pd.DataFrame(dict(ratio=['2.0'], seconds=[float('nan')]), index=['n5'])
with mock.patch.dict(globals(), _run_benchmark=lambda *a, **k: table):
    printed = CliRunner().invoke(app, ['bench', 'scoring', 'rlaif', '--json']).stdout
    test_eq(json.loads(printed), [dict(benchmark=k, row='n5', ratio='2.0', seconds=None)
                                  for k in ('scoring', 'rlaif')])

# %% [markdown]
# ## Bad input
#
# Bad input is answered with one sentence, and nothing is written.

# %%
before = sorted(tmp.rglob('*'))
wrong = ['reproduce superpositon --out x', 'reproduce fine.ipynb --jobs 0 --out x',
         'reproduce fine.ipynb --set n --out x', 'reproduce fine.ipynb --set m=2 --out x',
         'reproduce fine.ipynb --model m --out x', 'claims --json --csv',
         'reproduce fine.ipynb --scale huge --out x', 'reproduce fine.ipynb --scale cpu',
         'page nowhere', 'page fine --copy nowhere', 'page superposition --copy report.txt',
         'reproduce fine.ipynb --seed 7 --out x', 'reproduce fine.ipynb --out /proc/x',
         'reproduce fine.ipynb --out fine.ipynb',
         'claims --report nowhere', 'data fetch', 'data fetch bbq/Agee',
         'evaluate no-such-model --benchmark bbq-like --out x',
         'evaluate m --benchmark own.csv --out x', 'evaluate m --condition q+if:9 --out x',
         'evaluate m --orders 2 --out x', 'evaluate m --items nowhere.csv --out x',
         'evaluate m --items own.csv --wording q+kind --out x',
         'evaluate m --items own.csv --wording q+if=x --out x',
         'evaluate m --items own.csv --category Age --out x',
         'evaluate m --conditions-file own.csv --out x',
         'constitution revise smollm2-135m-instruct --limit 0 --out x',
         'superposition train --density a,b --out x', 'record nowhere.ipynb',
         'bench superpositon', 'bench --rows n6', 'bench --seconds 0', 'bench --out no/where.json',
         'bench --engine numbat', 'bench --threads 0', 'bench --device cuda',
         'bench rlaif --rows chain', 'bench rlaif --ppo-python nowhere',
         'bench toy-language --device cuda']
refused = {w: CliRunner().invoke(app, shlex.split(w), prog_name='moral_sc') for w in wrong}
said = {w: sh(w) for w in wrong}
for w in wrong: print(w, *said[w], sep='\n    ')

# %%
test_eq({code for code,_ in said.values()}, {2})
assert not any('Running' in r.output for r in refused.values())
test_eq(sorted(tmp.rglob('*')), before)

# %% [markdown]
# numba would stop with a traceback at a wrong number of threads:

# %%
with mock.patch.dict(os.environ, NUMBA_NUM_THREADS='many'): code,*message = sh('data list')
test_eq(code, 2)
message


# %% [markdown]
# ## As a process
#
# The same as separate processes.

# %%
def process(*args):
    command = [sys.executable, '-m', 'moral_sc', *args]
    res = subprocess.run(command, capture_output=True, text=True)
    return res.returncode, res.stdout.strip(), res.stderr.strip()

test_eq(process('--help')[0], 0)

# %%
process('reproduce', 'superpositon', '--out', 'x')

# %%
code = 'import sys, moral_sc.lab.cli.app; print(*sys.modules)'
loaded = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout
test_eq({'torch', 'pandas', 'papermill', 'plotly'} & set(loaded.split()), set())
