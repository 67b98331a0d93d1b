# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Reproduce
#
# > Run the papers' pages into a report, and resume after an interruption.

# %%
#| default_exp lab.reproduce

# %%
#| export
import ast
import errno
import hashlib
import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

# %%
#| export
from filelock import FileLock, Timeout

import moral_sc
from moral_sc.foundation.arguments import check_seed
from moral_sc.foundation.datasets import data_dir, read_toml
from moral_sc.foundation.errors import ConfigError, short_repr, unknown_name_message
from moral_sc.foundation.files import read_json_object, write_file
from moral_sc.foundation.runs import provenance
from moral_sc.lab.execution import (Result, declared_parameters, execute, read_notebook,
                                    stop_kernels)
from moral_sc.lab.paths import find_pages, page_name
from moral_sc.lab.scales import validate_scale

# %%
#| hide
import subprocess
import sys
import tempfile
import time
from unittest import mock

import nbformat
from fastcore.test import *

from moral_sc.lab.agreement import compare_report

tmp = Path(tempfile.mkdtemp())
os.chdir(tmp)
new = nbformat.v4.new_code_cell

def write(name, *cells):
    "A notebook whose first code cell holds its parameters"
    md = nbformat.v4.new_markdown_cell(f'# {name}\n\n> A page made for this test.')
    nb = nbformat.v4.new_notebook(cells=[md, *map(new, cells)])
    nb.cells[1].metadata['tags'] = ['parameters']
    path = tmp/'made'/f'{name}.ipynb'
    path.parent.mkdir(exist_ok=True)
    nbformat.write(nb, path)
    return path


# %% [markdown]
# One command makes a report with results from each paper. It may run for ten minutes or a day, so it must survive a
# failing page, a closed laptop and a killed job. Files appear under their final names only when they are
# complete. The same command, given again, does only what is missing.

# %%
#| hide
shelf = tmp/'shelf'
for p in ['superposition', 'constitution']: (shelf/p).mkdir(parents=True, exist_ok=True)


# %% [markdown]
# ## Parameters of pages
#
# A page declares its parameters, with defaults, in its cell of parameters. Every page has `scale` and `seed`; pages that load
# language models have `models`. Others are set by name. A parameter that none of the pages declares is refused, and so
# is a value of another type than the default's.

# %%
#| export
def _typed(name, value, default):
    "Check a value against the default of a parameter; text is read as a Python literal"
    if isinstance(default, str): return str(value)
    given = value
    if isinstance(value, str):
        try: value = ast.literal_eval(value)
        except (ValueError, SyntaxError): pass
    kinds = {bool: bool, int: int, float: (int, float), tuple: (tuple, list), list: (tuple, list)}
    kind = kinds.get(type(default), object)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f'{name} is {given!r}: give a value like {default!r}.')
    return list(value) if isinstance(value, tuple) else value

def page_parameters(
    pages:list,   # Paths
    scale:str,
    seed:int,
    models=(),    # Of the pages that load language models; default: those of the scale
    settings=None, # Other parameters, name to value
)->dict:
    "Check parameters against those that the pages declare"
    declared = [declared_parameters(read_notebook(p)) for p in pages]
    res = dict(scale=scale, seed=seed)
    for k,default in (('scale', 'quick'), ('seed', 0)):
        if res[k]!=default and not any(k in d for d in declared): raise ConfigError(
            f'None of these pages has a parameter {k}: omit --{k}, or declare {k} = {default!r} in '
            'a cell tagged parameters.')
    if models: res['models'] = [models] if isinstance(models, str) else list(models)
    if models and not any('models' in d for d in declared):
        raise ConfigError('None of these pages loads a model: omit --model.')
    known = sorted({k for d in declared for k in d}-{'scale', 'seed', 'models'})
    for name,value in (settings or {}).items():
        if name in ('scale', 'seed', 'models'):
            raise ConfigError(f'{name} has an option of its own: use --{name.removesuffix("s")}.')
        if not known: raise ConfigError(f'These pages have no parameter {name!r}: omit --set.')
        if name not in known: raise ConfigError(unknown_name_message('parameter', name, known))
        for d in declared:
            if name in d: res[name] = _typed(name, value, d[name])
    return res


# %%
def shelf_page(name, parameters):
    cell = nbformat.v4.new_code_cell(parameters, metadata=dict(tags=['parameters']))
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), shelf/f'{name}.ipynb')
    return shelf/f'{name}.ipynb'

trained = shelf_page('superposition/pentagon', "scale = 'quick'\nseed = 0\nsteps = 100\nrate = .1")
asked = shelf_page('constitution/revision', "scale = 'quick'\nseed = 0\nmodels = ()\nhard = False")
page_parameters([trained, asked], 'cpu', 1, 'a-model', dict(steps='300', rate='1', hard='True'))

# %% [markdown]
# A scale or seed that no page takes is refused, since the report would name what did not run.

# %%
plain = shelf_page('constitution/plain', 'n = 3')
test_eq(page_parameters([plain], 'quick', 0), dict(scale='quick', seed=0))
for given,name in [(('cpu', 0), 'scale'), (('quick', 7), 'seed')]:
    with expect_fail(ConfigError, contains=f'has a parameter {name}: omit --{name}'):
        page_parameters([plain], *given)
test_eq(page_parameters([plain, trained], 'cpu', 7), dict(scale='cpu', seed=7))

# %%
test_eq(page_parameters([asked], 'cpu', 1, ['a', 'b']),
        dict(scale='cpu', seed=1, models=['a', 'b']))
for pages,models,settings,words in [
        ([trained], ['a'], {}, 'loads a model'), ([plain], ['a'], {}, 'loads a model'),
        ([trained], (), dict(step='3'), "did you mean 'steps'?"),
        ([trained], (), dict(hard='True'), 'hard'),
        ([trained], (), dict(steps='many'), "steps is 'many': give a value like 100"),
        ([trained], (), dict(steps='True'), 'like 100'),
        ([trained], (), dict(steps='1.5'), 'like 100'),
        ([asked], (), dict(hard='1'), 'like False'),
        ([asked], (), dict(seed='1'), 'use --seed'),
        ([asked], (), dict(models='a'), 'use --model')]:
    with expect_fail(ConfigError, contains=words):
        page_parameters(pages, 'quick', 0, models, settings)


# %% [markdown]
# ## Keys of pages
#
# A finished page is not run again. Its key is a hash of its cells, its parameters, the package and the data. Outputs are not
# part of the key.

# %%
#| export
def _sha(*parts): return hashlib.sha256('\0'.join(parts).encode()).hexdigest()

@cache
def package_key()->str:
    "Hash the code and data of this package"
    root = Path(moral_sc.__file__).parent
    code = sorted(p for p in root.rglob('*.py') if not p.is_relative_to(root/'data'))
    data = sorted(p for p in data_dir().rglob('*') if p.is_file() and p.suffix!='.pyc')
    files = [(f, f.relative_to(d)) for d,fs in [(root,code), (data_dir(),data)] for f in fs]
    hash_of = lambda f: hashlib.sha256(f.read_bytes()).hexdigest()
    return _sha(*(f'{name.as_posix()} {hash_of(f)}' for f,name in files))

def page_key(
    nb,              # A notebook, as read
    parameters:dict,
)->str:
    "Hash everything that determines the outputs of a page"
    given = {k:v for k,v in parameters.items() if k in declared_parameters(nb)}
    cells = [c for c in nb.cells if 'injected-parameters' not in c.metadata.get('tags', [])]
    source = [f'{c.cell_type}\0{c.source}' for c in cells]
    return _sha(package_key(), json.dumps(given, sort_keys=True), *source)


# %%
nb = read_notebook(write('keyed', "scale = 'quick'", '1+1'))
key = page_key(nb, dict(scale='quick', seed=0))
nb.cells[2].outputs = [nbformat.v4.new_output('stream', text='2')]
test_eq(page_key(nb, dict(scale='quick', seed=1)), key)
test_ne(page_key(nb, dict(scale='cpu')), key)


# %% [markdown]
# ## Folder of the report
#
# All pages of a report share one configuration: scale, seed and version of the package. Another configuration raises an error
# that shows the difference, before any page is run.

# %%
#| export
def package_version()->str:
    "Return the version of the package"
    return moral_sc.__version__

def _difference(old, new):
    pairs = [(k, old.get(k), new.get(k)) for k in {**old, **new} if old.get(k)!=new.get(k)]
    return ' and '.join(f'{k} {a} (requested: {b})' for k,a,b in pairs)

def prepare_report(
    out,         # Folder of the report
    config:dict, # Shared by all pages
)->Path:
    "Create the folder of a report, or check its configuration"
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ConfigError(f'{out} is a file: give a folder with --out.')
    path = out/'config.json'
    if not path.is_file() and out.is_dir() and any(p.name[0]!='.' for p in out.iterdir()):
        raise ConfigError(f'{out} holds something other than a report: give another --out.')
    with explain_disk_errors(out):
        if not path.is_file(): write_file(path, json.dumps(config, indent=1)+'\n')
    old = read_json_object(path)
    if old!=config: raise ConfigError(f'{out} holds a run with {_difference(old, config)}: '
                                      'give another --out, or the same settings.')
    return out

_disk = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT, errno.ENOTDIR,
         errno.ENOENT, errno.EFBIG)

@contextmanager
def explain_disk_errors(out):
    "Turn errors of a full or read-only disk into a `ConfigError`"
    try: yield
    except OSError as e:
        if e.errno not in _disk: raise
        raise ConfigError(f'{out} cannot be written ({e.strerror}): free some space or '
                          'give another folder with --out.') from None


# %%
config = dict(scale='quick', seed=0, version='0.1.0')
prepare_report(tmp/'r', config)
with expect_fail(ConfigError, contains='a run with scale quick (requested: cpu)'):
    prepare_report(tmp/'r', config|dict(scale='cpu'))
with expect_fail(ConfigError, contains='other than a report'): prepare_report(tmp/'made', config)
with expect_fail(ConfigError, contains='is a file'):
    prepare_report(tmp/'made'/'keyed.ipynb', config)
with expect_fail(ConfigError, contains='cannot be written'): prepare_report('/proc/report', config)


# %% [markdown]
# Two commands must not write to the same folder. The lock belongs to the operating system and ends with the process.

# %%
#| export
@contextmanager
def report_lock(
    out:Path, # Folder of a report
):
    "Hold the lock of a report"
    with ExitStack() as held:
        try:
            with explain_disk_errors(out): held.enter_context(FileLock(out/'.lock', timeout=0))
        except Timeout:
            raise ConfigError(f'{out} is being written by another command: wait for it '
                              'or give another --out.') from None
        yield


# %%
with report_lock(tmp/'r'):
    with expect_fail(ConfigError, contains='another command'):
        with report_lock(tmp/'r'): pass


# %% [markdown]
# ## Machine
#
# Each executed page stores versions, commit and hardware.

# %%
#| export
def machine_info(
    threads:int=0, # Number of threads of a page
)->dict:
    "Return versions, commit and hardware"
    info = provenance(cores=available_cores(), threads=threads, package=package_key()[:16])
    return {k:v for k,v in info.items() if v is not None and k not in ('start', 'end')}

def available_cores()->int:
    "Return the number of cores that this process may use"
    try: return len(os.sched_getaffinity(0))
    except AttributeError: return os.cpu_count()  # not on Windows or macOS


# %%
list(machine_info(2))


# %% [markdown]
# ## One page
#
# The executed notebook is the record: its metadata holds the key, the result and the machine. It
# appears in one step. Files that a page stores while it runs go to a folder of the report, so an
# interrupted page finds its finished items again. First models that several pages train go to
# `shared_dir`; its name holds the package's hash, so models of another state of the package are not
# used.

# %%
#| export
def _executed(out, path): return out/'notebooks'/f'{page_name(path)}.ipynb'

def check_unique_names(
    pages:list, # Paths
):
    "Raise an error if two pages would have one name in the report"
    found = {}
    for p in pages:
        other = found.setdefault(page_name(p).casefold(), p)
        if other!=p: raise ConfigError(
            f'{other} and {p} would both be {page_name(p)} in the report: run them into two '
            'folders (--out), or rename one.')

def finished_result(
    out:Path,        # Folder of a report
    path,            # A notebook
    parameters:dict,
)->Result|None:      # None if the page has not run to its end
    "Return the stored result of a page"
    executed = _executed(out, path)
    if not executed.is_file(): return None
    meta = read_notebook(executed).metadata.get('moral_sc', {})
    if not meta.get('ok'): return None
    if meta.get('key')!=page_key(read_notebook(path), parameters):
        raise ConfigError(f'{out} holds {page_name(path)} from another state of its '
                          f'notebook or of the package: give another --out or delete {executed}.')
    return Result(**{k:v for k,v in meta.items() if k in Result.__dataclass_fields__})

def run_page(
    out:Path,
    path,
    parameters:dict,
    threads:int,     # Number of threads of the page
    progress=None,   # Called as progress(cell, cells)
)->Result:
    "Run a page and store it in the report"
    name = page_name(path)
    runs = (out/'runs').resolve()
    env = dict(MORAL_SC_RUNS=str(runs/name), OMP_NUM_THREADS=str(threads),
               MORAL_SC_SHARED=str(runs/f'shared-{package_key()[:16]}'))
    nb = read_notebook(path)
    declared = declared_parameters(nb)
    note = dict(key=page_key(nb, parameters), machine=machine_info(threads),
                parameters={k: v for k,v in parameters.items() if k in declared})
    return execute(path, _executed(out, path), parameters, progress, env, name, note)


# %% [markdown]
# ## All pages
#
# Several pages run at once, in kernels that share the cores: by default one for each core, at most
# four. The longest begin first, so that all cores are busy until the end. `store_seconds` writes the
# seconds of each page from a report to `data/quick_seconds.toml`. If a page fails, the others go on.

# %%
#| export
def _seconds_file(): return data_dir()/'quick_seconds.toml'

def expected_seconds(
    path=None, # Default: the file of this package
)->dict:       # By name of the page
    "Return the seconds that each paper page took at scale quick"
    return read_toml(path or _seconds_file())['seconds']

def store_seconds(
    out,       # Folder of a report of all pages at scale quick
    path=None, # Default: that of `expected_seconds`
)->Path:
    "Store the seconds of the pages of a report, longest first"
    runs = read_json_object(Path(out)/'provenance.json')['pages']
    rows = sorted(((r['seconds'], k) for k,r in runs.items() if r['ok']), reverse=True)
    head = '# Seconds of each paper page at scale quick; from lab.reproduce.store_seconds'
    lines = [head, '[seconds]', *(f'"{k}" = {s:.1f}' for s,k in rows)]
    return write_file(path or _seconds_file(), '\n'.join(lines)+'\n')

def longest_first(
    pages:list, # Paths
    path=None,  # As in `expected_seconds`
)->list:
    "Sort pages by their expected seconds; those of unknown duration come first"
    known = expected_seconds(path)
    return sorted(pages, key=lambda p: -known.get(page_name(p), float('inf')))


# %%
#| export
class ProgressListener:
    "Base class of listeners to the progress of a run; prints nothing"
    def __enter__(self): return self
    def __exit__(self, *exc): pass
    def begin(self, names, stored): pass    # pages to run, and stored results
    def cell(self, name, cell, cells): pass
    def end(self, result): pass

def _run_all(out, todo, parameters, jobs, show):
    "Run pages and return their results by page name"
    threads = max(1, available_cores()//jobs)
    res = {}
    pool = ThreadPoolExecutor(jobs)
    run = lambda p: run_page(out, p, parameters, threads,
                             lambda i,n: show.cell(page_name(p), i, n))
    try:
        for f in as_completed([pool.submit(run, p) for p in longest_first(todo)]):
            res[f.result().page] = f.result()
            show.end(f.result())
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        stop_kernels()
        raise
    pool.shutdown()
    return res


# %%
#| export
@dataclass
class Report:
    "A folder with executed pages"
    out:Path
    results:list = field(default_factory=list) # One for each requested page
    fresh:int = 0                              # How many were run by this call
    compared:object = None                     # DataFrame of `lab.agreement.compare_report`
    @property
    def failed(self): return [r for r in self.results if not r.ok]
    @property
    def slowest(self): return sorted(self.results, key=lambda r: -r.seconds)[:2]
    @property
    def index(self): return self.out/'index.html'
    def __repr__(self):
        n = len(self.results)
        passed = f'{n-len(self.failed)} of {n} pages ran to the end'
        return f'{passed}, {self.fresh} run now: {self.index}'

def _checked(scale, jobs, seed):
    validate_scale(scale)
    check_seed('reproduce', seed)
    if not isinstance(jobs, int) or isinstance(jobs, bool) or jobs<1:
        raise ConfigError(f'jobs is {short_repr(jobs)}: give 1 or more.')
    return dict(scale=scale, seed=seed, version=package_version())


@contextmanager
def _without_interrupts():
    "Ignore Ctrl-C for some seconds, so that a second one does not cost the report"
    if threading.current_thread() is not threading.main_thread(): yield; return
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try: yield
    finally: signal.signal(signal.SIGINT, old)


# %%
#| export
def reproduce(
    names=(),        # Papers, pages or paths; default: all
    scale='quick',   # quick | cpu | gpu
    jobs:int|None=None, # Pages that run at once; default: one for each core, at most four
    out='report',    # Folder of the report
    seed:int=0,
    show=None,       # `ProgressListener`
    folder=None,     # Of the pages; default: the paper pages of this package
    models=(),       # Names or folders, for the pages that load models; default: those of the scale
    settings=None,   # Other parameters that the pages declare, name to value
)->Report:
    "Run pages into a report, except those that are finished; compare it with the record"
    from moral_sc.lab.agreement import compare_report
    from moral_sc.lab.site.report import write_report
    if jobs is None: jobs = min(4, available_cores())
    config = _checked(scale, jobs, seed)
    todo = find_pages(names, folder)
    check_unique_names(todo)
    params = page_parameters(todo, scale, seed, models, settings)
    out = prepare_report(out, config|params)
    with report_lock(out), explain_disk_errors(out):
        stored = {page_name(p): r for p in todo if (r := finished_result(out, p, params))}
        rest = [p for p in todo if page_name(p) not in stored]
        try:
            with show or ProgressListener() as show:
                show.begin([page_name(p) for p in rest], list(stored.values()))
                new = _run_all(out, rest, params, jobs, show)
        finally:  # a report of what is there, if it was interrupted
            with _without_interrupts():
                compared = compare_report(out)
                write_report(out, compared)
    return Report(out, [(stored|new)[page_name(p)] for p in todo], len(new), compared)


# %%
ok = write('ok', "scale = 'quick'\nseed = 0", '2*seed')
bad = write('bad', "scale = 'quick'", 'int("one")')
report = reproduce([ok, bad], out='first', seed=3)
report

# %%
test_eq([(r.page, r.ok) for r in report.results], [('made/ok', True), ('made/bad', False)])
str(report.failed[0])

# %%
sorted(str(p.relative_to('first')) for p in Path('first').rglob('*') if p.suffix)

# %% [markdown]
# The longest page comes first:

# %%
path = store_seconds('first', tmp/'seconds.toml')
test_eq(longest_first([ok, bad], path), [bad, ok]) # Only one ran to its end
assert set(expected_seconds())<={page_name(p) for p in find_pages()}
list(expected_seconds(path)), [page_name(p) for p in longest_first(find_pages())][:2]

# %% [markdown]
# The same command runs only the page that failed. When all pages have run, it has nothing to do.

# %%
write('bad', "scale = 'quick'", 'int("1")')
again = reproduce([ok, bad], out='first', seed=3)
test_eq((again.fresh, again.failed), (1, []))
reproduce([ok, bad], out='first', seed=3)

# %% [markdown]
# A finished page is never overwritten. If the page or the package has changed, the error names the page.

# %%
write('ok', "scale = 'quick'\nseed = 0", '3*seed')
with expect_fail(ConfigError, contains='holds made/ok from another state'):
    reproduce([ok, bad], out='first', seed=3)

# %% [markdown]
# Two pages of one name are refused, since one would replace the other in the report.

# %%
Path('elsewhere/made').mkdir(parents=True)
twin = Path('elsewhere/made/ok.ipynb').resolve()
twin.write_bytes(ok.read_bytes())
with expect_fail(ConfigError, contains='would both be made/ok'):
    reproduce([ok, twin], out='twins')
assert not Path('twins').exists()

# %% [markdown]
# ## Interruptions
#
# `kill -9` leaves a program no time to clean up. Here a run of two pages is killed during the second one. This page
# stores its progress, as paper pages do: it counts in a file of its `work_dir` and continues from that number.

# %%
slow = write('slow', "scale = 'quick'", """
import time
from moral_sc.lab.paths import work_dir
counter = work_dir('count')/'n'
for i in range(int(counter.read_text()) if counter.exists() else 0, 14):
    time.sleep(.2)
    _ = counter.write_text(str(i+1))
    print('counted', i+1)""")
ok = write('ok', "scale = 'quick'\nseed = 0", '2*seed')
one_core = 'import os; os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])'
command = (f'{one_core if hasattr(os, "sched_setaffinity") else ""}\n'
           'from moral_sc.lab.reproduce import reproduce\n'
           f'reproduce(["{ok}", "{slow}"], out="second", jobs=1)')


# %%
#| hide
def wait_for(path, seconds=300):
    until = time.time()+seconds
    while not path.exists() and time.time()<until: time.sleep(.05)
    return path.exists()


# %%
run = subprocess.Popen([sys.executable, '-c', command])
count = Path('second/runs/made/slow/count/n')
assert wait_for(count)
run.kill()
run.wait()
before = sorted(p.name for p in Path('second').rglob('*.ipynb') if p.name[0]!='.')
before, Path('second/index.html').exists()

# %%
test_eq(before, ['ok.ipynb'])
resumed = reproduce([ok, slow], out='second')
test_eq(resumed.fresh, 1)
lines = read_notebook('second/notebooks/made/slow.ipynb').cells[-1].outputs[0].text.splitlines()
lines[0], lines[-1]

# %% [markdown]
# The first page was not run again, and the second one continued. The report equals that of an undisturbed
# run:

# %%
reproduce([ok, slow], out='third')
files = lambda d: sorted(str(p.relative_to(d)) for p in Path(d).rglob('*') if p.suffix)
test_eq(files('second'), files('third'))
assert lines[0]!='counted 1' and lines[-1]=='counted 14'

# %% [markdown]
# Ctrl-C also stops the kernels, and leaves a report of the pages that are finished, without the page that was running.
# A second Ctrl-C, while this report is written, is ignored.

# %%
sleeper = write('sleeper', "scale = 'quick'", 'import time; time.sleep(60)')
class Impatient(ProgressListener):
    def cell(self, name, cell, cells):
        stop = lambda: os.kill(os.getpid(), signal.SIGINT)
        if cell==2: threading.Timer(.3, stop).start()

def interrupted_again(out):
    os.kill(os.getpid(), signal.SIGINT)
    return compare_report(out)

try:
    with mock.patch('moral_sc.lab.agreement.compare_report', interrupted_again):
        reproduce([sleeper], out='fourth', show=Impatient())
except KeyboardInterrupt: print('stopped')

# %%
test_eq([p.name for p in Path('fourth').rglob('*.ipynb') if p.name[0]!='.'], [])
assert Path('fourth/index.html').is_file()

# %% [markdown]
# ## Bad input
#
# These are refused before a kernel starts and before anything is written.

# %%
for kw,words in [(dict(jobs=0), 'jobs is 0: give 1 or more'), (dict(seed=-1), 'seed is -1'),
                 (dict(scale='fast'), "no scale 'fast'"), (dict(names=['ko']), "'ko'"),
                 (dict(models=['a']), 'loads a model'), (dict(settings=dict(step=1)), 'step'),
                 (dict(seed=True), 'seed is True'), (dict(seed=2**63), '2**63-1'),
                 (dict(jobs='2'), 'jobs is')]:
    with expect_fail(ConfigError, contains=words):
        reproduce(**{'names': [ok], 'out': 'fifth', **kw})
test_eq(Path('fifth').exists(), False)
