# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Execution
#
# > Run a notebook from top to bottom in a kernel of its own and keep what came out.

# %%
#| default_exp lab.execution

# %%
#| export
import ast
import os
import re
import signal
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

# %%
#| export
from moral_sc.foundation.errors import DataError
from moral_sc.foundation.files import use_private_cache, write_file
from moral_sc.foundation.runs import runs_finished_before, utc_now
from moral_sc.lab.kernel_server import fork_provisioner, kernel_server, socket_folder

# %%
#| hide
import sys

import nbformat
from fastcore.test import *

tmp = Path(tempfile.mkdtemp())

def write(name, *cells):
    "A notebook whose first cell holds its parameters"
    new = nbformat.v4.new_code_cell
    nb = nbformat.v4.new_notebook(cells=[new(c) for c in cells])
    nb.cells[0].metadata['tags'] = ['parameters']
    nbformat.write(nb, tmp/f'{name}.ipynb')
    return tmp/f'{name}.ipynb'


# %% [markdown]
# Tests, reports and the recorded pages of the site run a notebook from top to bottom and keep
# its outputs. papermill runs the cells. This module makes the result independent of the
# machine's setup: the kernel is the calling interpreter, whichever kernels are installed; it
# communicates through Unix sockets of its own, so that many can run at once; and it starts in
# an empty folder, so that a page cannot write beside itself.
#
# ## Parameters
#
# A page that can be run at several sizes has a cell tagged `parameters`, which assigns literals
# to names. Parameters that a page does not declare are not passed to it.

# %%
#| export
def read_notebook(
    path, # A notebook
):
    "Read a notebook; a `DataError` says what is wrong with it"
    import nbformat
    try: nb = nbformat.read(path, 4)
    except FileNotFoundError:
        raise DataError(f'{path} does not exist: check the name.') from None
    except Exception as e:
        raise DataError(f'{path} is not a notebook ({_first(e)}): restore it.') from None
    bad = next((i for i,c in enumerate(nb.cells) if not _is_cell(c)), None)
    if bad is not None:
        raise DataError(f'{path}: cell {bad} has no source, or wrong metadata: restore it.')
    return nb

def _is_cell(c): # nbformat only logs what it finds wrong
    return isinstance(c.get('source'), str) and isinstance(c.get('metadata'), dict) and \
        isinstance(c.metadata.get('tags', []), list)

def _first(e): return (str(e).splitlines() or [type(e).__name__])[0]

def _parse(cell):
    "The syntax tree of a cell; lines of IPython's own, such as %matplotlib, are allowed"
    from IPython.core.inputtransformer2 import TransformerManager
    try: return ast.parse(TransformerManager().transform_cell(cell.source))
    except SyntaxError as e:
        line = cell.source.strip().split('\n')[0]
        raise DataError(f'The parameters cell that begins with {line!r} is not valid Python '
                        f'({e.msg}, line {e.lineno}): mend it.') from None

def _bind(target, value):
    "Names and values that an assignment binds: `a = ...` or `a, b = ...`"
    if isinstance(target, ast.Name): return {target.id: value}
    if not isinstance(target, ast.Tuple|ast.List): return {}
    values = list(value) if isinstance(value, tuple|list) else []
    if len(values)!=len(target.elts): return {}
    return {k: v for t,x in zip(target.elts, values) for k,v in _bind(t, x).items()}

def _assignments(cells):
    "Assignments of literals in cells, by name, with or without a type"
    values = {}
    for node in [n for c in cells for n in _parse(c).body]:
        if not isinstance(node, ast.Assign|ast.AnnAssign) or node.value is None: continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        with suppress(ValueError):
            value = ast.literal_eval(node.value)
            for t in targets: values |= _bind(t, value)
    return values

def declared_parameters(
    nb, # A notebook, as read
)->dict:
    "Return the parameters that a notebook declares and their defaults"
    return _assignments([c for c in nb.cells if 'parameters' in c.metadata.get('tags', [])])

def parameter_values(
    nb, # A notebook
)->dict:
    "Return the values of its parameters; injected ones come last and count"
    tags = {'parameters', 'injected-parameters'}
    return _assignments([c for c in nb.cells if tags & set(c.metadata.get('tags', []))])


# %%
sums = write('sums', "scale = 'quick'  # quick | cpu\nseed = 0", 'total = sum(range(100))',
             'print(scale, total)')
declared_parameters(read_notebook(sums))

# %% [markdown]
# Types, tuples, several assignments a line and lines of IPython's own are read too.

# %%
typed = write('typed', "%pylab --no-import-all\nscale: str = 'quick'; seed: int = 0\n"
              'n, m = 5, 2\nsizes = (2, 3)\nlater: int\nsquare = n**2', 'print(scale, n, sizes)')
expected = dict(scale='quick', seed=0, n=5, m=2, sizes=(2, 3))
test_eq(declared_parameters(read_notebook(typed)), expected)
wrong = write('wrong', "scale = 'quick")
with expect_fail(DataError, contains="begins with \"scale = 'quick\" is not valid Python"):
    declared_parameters(read_notebook(wrong))

# %%
(tmp/'cut.ipynb').write_text('{"cells": [')
with expect_fail(DataError, contains='cut.ipynb is not a notebook'): read_notebook(tmp/'cut.ipynb')
(tmp/'empty.ipynb').write_text('{"cells": [{"cell_type": "code", "metadata": {}, "outputs": [], '
    '"execution_count": null}], "metadata": {}, "nbformat": 4, "nbformat_minor": 4}')
with expect_fail(DataError, contains='cell 0 has no source'): read_notebook(tmp/'empty.ipynb')


# %% [markdown]
# ## A kernel
#
# jupyter_client looks up the kernel `python3` in the folders of the user and the system, where
# it may be another interpreter, or missing. `_kernel` starts this interpreter. On Linux a [kernel server](11_kernel_server.ipynb) forks the kernel, which saves the imports;
# `MORAL_SC_ISOLATED_KERNELS=1` starts each kernel as a new process instead, and so does the
# directive `#| mark: isolated` for a page that sets variables which a library reads on import.

# %%
#| export
def _kernel(sockets, env):
    "A manager for a kernel of this interpreter that talks through sockets in the folder `sockets`"
    from ipykernel.kernelspec import RESOURCES, get_kernel_dict
    from jupyter_client import KernelManager
    from jupyter_client.kernelspec import KernelSpec
    where = dict(transport='ipc', ip=f'{sockets}/k') if sockets else {}
    km = KernelManager(kernel_name='python3', **where)
    options = ['--HistoryManager.enabled=False'] # It would write each cell to a database
    km._kernel_spec = KernelSpec(resource_dir=RESOURCES, **get_kernel_dict(options))
    km.stops = _stops[0]
    km.client_class = 'jupyter_client.asynchronous.AsyncKernelClient'
    if sockets and (server := kernel_server(env)): km.provisioner = fork_provisioner(km, server)
    return km

def _needs_new_process(nb):
    return any(re.search(r'^#\| *mark: *isolated', c.source, re.M) for c in nb.cells)

_live = set()  # process ids of kernels, one group each
_stops = [0]   # How often all of them were stopped

class Stopped(Exception): "A page was stopped on purpose, which says nothing about it"

@contextmanager
def _running(km, **kwargs):
    "Start the kernel; it is gone afterwards, whatever happens"
    km.start_kernel(**kwargs)
    make = km.client
    clients = []
    pid = km.provisioner.pid
    km.client = lambda **kw: clients.append(make(**kw)) or clients[-1]
    _live.add(pid)
    try:
        if _stops[0]!=km.stops: raise Stopped
        yield km
    finally:
        _live.discard(pid)
        for c in clients: c.stop_channels()
        with suppress(Exception): km.shutdown_kernel(now=True)

def stop_kernels():
    "Kill every kernel that this process has started; their pages leave no result"
    _stops[0] += 1
    for pid in list(_live):
        with suppress(ProcessLookupError): os.killpg(pid, signal.SIGKILL)


# %% [markdown]
# ## A result
#
# A failing page is an ordinary outcome. Its result holds the number and source of the failing
# cell and the traceback without terminal colours.

# %%
#| export
@dataclass
class Result:
    "The outcome of running a notebook"
    page:str           # Its name
    ok:bool
    start:str          # UTC
    seconds:float
    error:str = ''     # Last line of the traceback
    cell:int|None = None # Number of the failing cell, from 0
    source:str = ''    # Of the failing cell
    traceback:str = ''
    def __str__(self):
        if self.ok: return f'{self.page}: {self.seconds:.1f} s'
        return f'{self.page}, cell {self.cell}: {self.error}'

def strip_escapes(
    text:str, # From a terminal
)->str:
    "Remove colours and other escape sequences from terminal text"
    return re.sub(r'\x1b\[[0-9;?]*[A-Za-z]', '', text)


# %% [markdown]
# papermill adds cells to a failed notebook and metadata to every cell. `_tidy` removes both,
# because readers see the executed page. papermill also writes the notebook twice for each cell;
# `_engine` writes it at the end, which takes half the time of a short page.

# %%
#| export
def _engine():
    "Register papermill's engine without its writes between cells; returns the name"
    from papermill.engines import NBClientEngine, papermill_engines
    class SavedAtEnd(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man, *args, **kwargs):
            path = nb_man.output_path
            nb_man.output_path = None
            try: super().execute_managed_notebook(nb_man, *args, **kwargs)
            finally: nb_man.output_path = path
    papermill_engines.register('saved at end', SavedAtEnd)
    return 'saved at end'

def _papermill(src, dst, parameters, km, env, cwd, on_cell):
    "Run `src` into `dst`; returns the exception that stopped it, or None"
    import logging
    import papermill as pm
    from nbclient.exceptions import DeadKernelError
    for k in ('papermill', 'traitlets'): logging.getLogger(k).setLevel(logging.CRITICAL)
    try:
        with _running(km, env=env, cwd=str(cwd)):
            pm.execute_notebook(src, dst, parameters, _engine(), kernel_name='python3',
                                language='python', progress_bar=False, km=km,
                                on_cell_start=on_cell)
    except (pm.PapermillExecutionError, DeadKernelError) as e:
        if _stops[0]!=km.stops: raise Stopped from None
        return e

def _merged(outputs):
    "Join consecutive outputs of one stream"
    res = []
    for o in outputs:
        last = res[-1] if res else {}
        if o.output_type=='stream'==last.get('output_type') and o.name==last.name:
            last.text += o.text
        else: res.append(o)
    return res

def _tidy(dst):
    from papermill.execute import remove_error_markers
    nb = remove_error_markers(read_notebook(dst))
    nb.metadata.pop('papermill', None)
    for c in nb.cells:
        c.metadata.pop('papermill', None)
        if c.cell_type=='code': c.outputs = _merged(c.outputs)
    nb.metadata['language_info'] = dict(name='python')
    return nb


# %%
#| export
def _failure(e, nb, at):
    "Fields of a `Result` that describe an exception of `_papermill`"
    tb = strip_escapes('\n'.join(getattr(e, 'traceback', ())))
    name = getattr(e, 'ename', '')
    died = 'the kernel died, perhaps out of memory'
    error = f'{name}: {e.evalue}'.rstrip(': ') if name else died
    at = getattr(e, 'cell_index', at)
    added = sum('injected-parameters' in c.metadata.get('tags', []) for c in nb.cells[:at])
    source = nb.cells[at].source
    return dict(error=error, cell=at-added, source=source, traceback=tb or error)

def _in_thread(f, *args):
    "Call `f` in a thread; an interrupt here stops the kernels"
    res = {}
    done = threading.Event()
    def run():
        try: res['value'] = f(*args)
        except BaseException as e: res['error'] = e
        finally: done.set()
    threading.Thread(target=run, daemon=True).start()
    try:
        while not done.wait(.2): pass  # a wait without end cannot be interrupted everywhere
    except KeyboardInterrupt:
        stop_kernels()
        done.wait(10)
        raise
    if 'error' in res: raise res['error']
    return res['value']


# %% [markdown]
# Files that a page leaves in its folder, in its runs or among temporary files are deleted when
# the run ends, unless the caller keeps them. Kernels compiled by torch are kept for the next
# page, in a private folder.
#
# OpenMP threads busy-wait for each other by default. On a loaded machine this made one training
# step of a toy model 60 times slower with two threads than with one. `OMP_WAIT_POLICY=PASSIVE`
# makes waiting threads sleep, and the slowdown is gone.

# %%
#| export
def kernel_environment()->dict:
    "Return the environment variables that all kernels have"
    use_private_cache('TORCHINDUCTOR_CACHE_DIR', 'torchinductor')
    return {'OMP_WAIT_POLICY': 'PASSIVE', **os.environ}

def _environment(t):
    "Environment of a kernel that writes only below the folder `t`"
    (Path(t)/'temp').mkdir()
    return {**kernel_environment(),
            'MORAL_SC_RUNS': f'{t}/runs', 'MORAL_SC_OPENED_RUNS': f'{t}/opened',
            'TMPDIR': f'{t}/temp'}


# %%
#| export
def execute(
    src,             # Notebook to run; it is not changed
    dst,             # Where the executed notebook goes
    parameters=None, # Values for the parameters it declares; others are left out
    progress=None,   # Called as progress(cell, cells) when a cell starts
    env=None,        # Environment variables for the kernel, on top of this process's
    page=None,       # Name for the result, default: that of the file
    note=None,       # More to keep in the metadata of `dst`
)->Result:
    "Run a notebook in a fresh kernel of this interpreter"
    nb = read_notebook(src)
    dst = Path(dst)
    at = [0]
    known = declared_parameters(nb)
    dst.parent.mkdir(parents=True, exist_ok=True)
    given = {k:v for k,v in (parameters or {}).items() if k in known}
    def on_cell(cell, cell_index):
        at[0] = cell_index
        if progress: progress(cell_index, len(nb.cells)+bool(given))
    start = utc_now()
    t0 = time.perf_counter()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as t, socket_folder() as sockets:
        part = dst.with_name(f'.part.{dst.name}')
        cwd = Path(t)/'work'
        cwd.mkdir()
        kernel_env = {**_environment(t), **(env or {})}
        if _needs_new_process(nb): kernel_env['MORAL_SC_ISOLATED_KERNELS'] = '1'
        km = _kernel(sockets, kernel_env)
        e = _in_thread(_papermill, str(src), str(part), given, km, kernel_env, cwd, on_cell)
        earlier = runs_finished_before(f'{t}/opened', start)
    seconds = round(time.perf_counter()-t0, 2)
    executed = _tidy(part)
    failure = _failure(e, executed, at[0]) if e else {}
    res = Result(page or Path(src).stem, not e, start, seconds, **failure)
    earlier = dict(earlier=earlier) if earlier['runs'] else {}
    executed.metadata['moral_sc'] = {**(note or {}), **asdict(res), **earlier}
    write_file(dst, notebook_text(executed))
    part.unlink()
    return res


# %% [markdown]
# The executed notebook is moved to its final name when it is complete, with its result in its
# metadata. A process killed in between leaves no file that looks finished.

# %%
#| export
def notebook_text(
    nb, # A notebook
)->str: # As it stands in a file
    "The text of a notebook"
    import nbformat
    return nbformat.writes(nb)+'\n'


# %%
progress_calls = []
res = execute(sums, tmp/'out.ipynb', dict(scale='cpu', other=1),
              progress=lambda i,n: progress_calls.append((i, n)))
read_notebook(tmp/'out.ipynb').cells[-1].outputs[0].text, res.ok, progress_calls

# %%
test_eq(read_notebook(tmp/'out.ipynb').cells[-1].outputs[0].text, 'cpu 4950\n')
test_eq([i for i,_ in progress_calls], [0, 1, 2, 3])

# %% [markdown]
# The kernel is this interpreter, in an empty folder. Figures are displayed.

# %%
here = write('here', "scale = 'quick'", 'import os, sys, pathlib', """
from moral_sc.lab.paths import work_dir
print(sys.executable, list(pathlib.Path().iterdir()), work_dir('x').name)""",
             'import plotly.graph_objects as go', 'go.Figure()')
execute(here, tmp/'here_out.ipynb')
printed,_,figure = read_notebook(tmp/'here_out.ipynb').cells[-3:]
test_eq(printed.outputs[0].text.split(), [sys.executable, '[]', 'x'])
assert 'application/vnd.plotly.v1+json' in figure.outputs[0].data

# %% [markdown]
# With a folder for runs, a page run again finds its runs finished. The executed notebook then says how
# many, because its own seconds are not what the page costs.

# %%
resumes = write('resumes', "scale = 'quick'", """
from moral_sc.foundation.runs import open_run
from moral_sc.lab.paths import work_dir
with open_run(work_dir('slow'), {}) as run: run.finish()""")
for k in range(2):
    execute(resumes, tmp/f'resumes_{k}.ipynb', env=dict(MORAL_SC_RUNS=str(tmp/'kept')))
    if k==0: time.sleep(1.1)  # start times are whole seconds
records = [read_notebook(tmp/f'resumes_{k}.ipynb').metadata.moral_sc for k in range(2)]
test_eq('earlier' in records[0], False)
test_eq(records[1]['earlier']['runs'], 1)
records[1]['earlier']

# %% [markdown]
# ## Failures
#
# A cell that raises ends the page; the outputs of the cells before it are kept.

# %%
broken = write('broken', "scale = 'quick'", 'n = 0', '1/n', 'never = 1')
res = execute(broken, tmp/'broken_out.ipynb', dict(scale='cpu'))
print(res)
print(res.traceback)

# %%
test_eq((res.ok, res.cell, res.source), (False, 2, '1/n'))
assert 'ZeroDivisionError' in res.error and '\x1b' not in res.traceback

# %% [markdown]
# A killed kernel, most often out of memory, is distinguished from a cell that raised.

# %%
dead = write('dead', "scale = 'quick'", 'import os, signal',
             'os.kill(os.getpid(), signal.SIGKILL)')
res = execute(dead, tmp/'dead_out.ipynb')
test_eq(res.cell, 2)
str(res)

# %% [markdown]
# A notebook that cannot be read raises a `DataError`.

# %%
with expect_fail(DataError, contains='nowhere.ipynb does not exist'):
    execute(tmp/'nowhere.ipynb', tmp/'x.ipynb')

# %% [markdown]
# Several pages can run at once, each in its own thread and kernel.

# %%
from concurrent.futures import ThreadPoolExecutor

# %%
one = lambda i: execute(sums, tmp/f'at_once_{i}.ipynb', dict(seed=i))
with ThreadPoolExecutor(2) as pool: runs = list(pool.map(one, range(2)))
test_eq([r.ok for r in runs], [True, True])
test_eq(_live, set())

# %% [markdown]
# An interrupt ends the kernel. Here a second thread sends the interrupt while a page sleeps for
# a minute.

# %%
#| hide
import _thread

# %%
sleeper = write('sleeper', "scale = 'quick'", 'import time; time.sleep(60)')
def interrupt(cell, cells):
    if cell==1: threading.Timer(.5, _thread.interrupt_main).start()

t0 = time.perf_counter()
try: execute(sleeper, tmp/'sleeper_out.ipynb', progress=interrupt)
except KeyboardInterrupt: print('interrupted')
assert time.perf_counter()-t0<30
test_eq((_live, (tmp/'sleeper_out.ipynb').exists()), (set(), False))
