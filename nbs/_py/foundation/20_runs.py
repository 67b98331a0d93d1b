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
# > A folder of finished work that survives being killed and is never done twice.

# %%
#| default_exp foundation.runs

# %%
#| export
import errno, hashlib, json, os, platform, re, sqlite3, subprocess, tempfile
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import moral_sc
from fastcore.basics import patch
from filelock import FileLock
from moral_sc.foundation.errors import ConfigError, DataError

# %%
#| hide
import shutil
from fastcore.test import *
tmp = Path(tempfile.mkdtemp())


# %% [markdown]
# Scoring a benchmark takes hours, and in those hours a laptop sleeps, a job hits its time limit
# or a node goes away. A run is therefore kept item by item. Whatever was finished when the end
# came is there when the same command runs again, and the table at the end is the one an
# undisturbed run would have made.

# %% [markdown]
# ## What an item is called
#
# An item is named by a hash of everything that determines its value: the model, the prompt, the
# condition, the seed. Two runs that would compute the same thing agree on its name, and anything
# that changes the value changes the name.

# %%
#| export
def _jsonable(x):
    if hasattr(x, 'tolist'): return x.tolist()
    raise TypeError(f'{type(x).__name__} has no stable text; pass numbers, strings or lists')

def _canonical(x):
    return json.dumps(x, sort_keys=True, separators=(',',':'), default=_jsonable)

def content_key(
    **parts, # Everything that determines the value: model, prompt, seed, ...
)->str:      # 32 hex digits
    "Name an item by what determines it"
    return hashlib.blake2b(_canonical(parts).encode(), digest_size=16).hexdigest()


# %%
content_key(model='smollm2-135m', prompt='Who is older?', seed=0)

# %% [markdown]
# The name depends on neither the order of the arguments nor the process; Python's own `hash` of
# a string changes with each start. Here it is pinned to what it was when this page was written:

# %%
test_eq(content_key(seed=0, prompt='Who is older?', model='smollm2-135m'),
        '72fff19072a20f703efaa8c56965b1db')
test_ne(content_key(seed=0), content_key(seed=0.))
with expect_fail(TypeError, contains='has no stable text'): content_key(out=Path('a'))


# %% [markdown]
# ## Where it came from
#
# A number without its origin cannot be argued about. `provenance` collects what a reader would
# ask for; device, dtype and seed are passed by whoever knows them.

# %%
#| export
def _timestamp(): return datetime.now(UTC).isoformat(timespec='milliseconds')

def _version(name):
    try: return version(name)
    except PackageNotFoundError: return None

def _commit():
    "Commit of the clone this package runs from, with a + if files were changed since"
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
    **extra, # What only the caller knows: device, dtype, seed, ...
)->dict:
    "Versions, commit, machine and time"
    libs = 'numpy scipy pandas torch transformers'.split()
    return dict(moral_sc=moral_sc.__version__, commit=_commit(),
                python=platform.python_version(), **{k: _version(k) for k in libs},
                system=f'{platform.system()} {platform.machine()}', cpu=_processor(),
                cores=os.cpu_count(),
                device=None, dtype=None, seed=None, start=_timestamp(), end=None) | extra


# %%
sorted(provenance(device='cpu', dtype='float32', seed=0))


# %% [markdown]
# ## The folder
#
# A run is a folder with `config.json`, `provenance.json` and `run.sqlite`, one row an item.
# SQLite's write-ahead log gives what is needed and no more: a row is on disk when `put` returns,
# a process killed while it writes leaves the row there or not there, and several processes of
# one machine may fill the same run. The two small files are written beside their place and
# moved into it whole.

# %%
#| export
def _write_json(path, obj, new=False):
    "Write JSON that is never seen half-written; `new` leaves an existing file alone"
    part = path.with_name(f'.{path.name}.{os.getpid()}')
    with open(part, 'w') as f:
        f.write(json.dumps(obj, indent=2, default=_jsonable)+'\n')
        f.flush(); os.fsync(f.fileno())
    if not (new and path.exists()): part.replace(path)
    part.unlink(missing_ok=True)

def _read_json(path):
    try: return json.loads(path.read_text())
    except ValueError:
        raise DataError(f'{path} is damaged; move the folder away and start again.') from None


# %% [markdown]
# What can go wrong with a folder is said in one sentence, and nothing that was finished is lost.

# %%
#| export
@contextmanager
def _explain_errors(path):
    "Turn what SQLite and the system say about `path` into errors of ours"
    try: yield
    except (sqlite3.Error, OSError) as e: 
        why = getattr(e, 'strerror', None) or str(e)
        if getattr(e, 'errno', 0) in (errno.ENOSPC, errno.EDQUOT) or 'disk is full' in why:
            err = DataError(f'{path}: the disk is full; free some space and start the same '
                            'command again, finished items are kept.')
        elif 'malformed' in why or 'not a database' in why:
            err = DataError(f'{path}/run.sqlite is damaged ({why}); move the folder away and '
                            'start again.')
        elif 'locked' in why: 
            err = DataError(f'{path}: another process holds this run; wait or end it.')
        else: err = ConfigError(f'{path}: cannot be used ({why}); name another folder.')
        raise err from None


# %%
#| export
class Run:
    "Finished items of one piece of work; made by `open_run`"
    def __init__(self, path, db, done): self.path,self.db,self.finished = path,db,done
    def __enter__(self): return self
    def __exit__(self, *_): self.db.close()
    def __len__(self): return self.db.execute('select count(*) from items').fetchone()[0]
    def __repr__(self):
        state = 'finished' if self.finished else 'open'
        return f'Run({self.path.name!r}, {len(self):,} items, {state})'


# %% [markdown]
# A configuration is compared as the JSON it becomes, so a tuple equals the list it is stored as.
# Where two differ, the difference is shown key by key: nobody should have to diff two files to
# learn that it was the seed.

# %%
#| export
def _flat(d, pre=''):
    if not isinstance(d, dict) or not d: return {pre[:-1]: d}
    return {k: v for a,b in d.items() for k,v in _flat(b, f'{pre}{a}.').items()}

def config_difference(
    stored:dict, # Configuration found in a folder
    requested:dict,   # Configuration asked for
)->str:         # 'seed: 0 there, 1 now'; empty if they agree
    "Say where two configurations differ, key by key"
    a = _flat(stored)
    b = _flat(requested)
    show = lambda d,k: repr(d[k]) if k in d else 'absent'
    return '; '.join(f'{k}: {show(a,k)} there, {show(b,k)} now'
                     for k in dict.fromkeys([*a, *b]) if show(a,k)!=show(b,k))


# %%
config_difference(dict(model='135m', seed=0, chat=dict(mode='plain', bos=True)),
           dict(model='135m', seed=1, chat=dict(mode='plain'), limit=10))

# %% [markdown]
# Launchers tell each process its number and how many there are through the environment:
# `accelerate launch` and `torchrun` in one way, Slurm and MPI in theirs.

# %%
#| export
_LAUNCHERS = [('RANK','WORLD_SIZE'), ('SLURM_PROCID','SLURM_NTASKS'),
              ('OMPI_COMM_WORLD_RANK','OMPI_COMM_WORLD_SIZE'), ('PMI_RANK','PMI_SIZE')]

def process_rank(
    env=None, # By default that of this process
)->tuple:     # Its number, and how many there are; (0, 1) if it was started by itself
    "Which of several processes this is"
    env = os.environ if env is None else env
    for at,of in _LAUNCHERS:
        if at in env and of in env: return int(env[at]), int(env[of])
    return 0, 1


# %%
test_eq(process_rank({}), (0, 1))
test_eq(process_rank(dict(RANK='1', WORLD_SIZE='8')), (1, 8))
test_eq(process_rank(dict(SLURM_PROCID='3', SLURM_NTASKS='4')), (3, 4))


# %%
#| export
def _connect(path, done):
    "Open the store; a finished one is only read, so it may lie on a read-only disk"
    only = f'{path.resolve().as_uri()}?mode=ro'
    if done: return sqlite3.connect(only, uri=True, timeout=60)
    with FileLock(path.with_name('lock'), timeout=60): # A new one is made by one process
        db = sqlite3.connect(path, timeout=60)
        db.execute('pragma journal_mode=wal')
        db.execute('pragma synchronous=full')
        db.execute('create table if not exists items (key text primary key, row text) '
                   'without rowid')
    return db

def _write_provenance(path, extra):
    "Provenance of a run: the first start, then what was different at each later one"
    rank,world = process_rank()
    now = json.loads(_canonical(provenance(processes=world, **extra)))
    if not path.exists(): _write_json(path, now|dict(resumed=[], rank=rank), new=True)
    old = _read_json(path)
    if old['end'] or rank or old['start']==now['start']: return old
    if old.get('rank'): _write_json(path, now|dict(resumed=[], rank=0)) # Another was faster
    else:
        changed = {k: v for k,v in now.items() if k!='end' and old.get(k)!=v}
        _write_json(path, old|dict(resumed=old['resumed']+[changed]))
    return now

def open_run(
    out:str|Path,     # Folder, made if it is not there
    config:dict=None, # Everything the command was asked for; None: only look
    **extra,          # For `provenance`: device, dtype, seed
)->Run:
    "Start a run, resume it, or read a finished one"
    path = Path(out)
    if config is None and not (path/'config.json').exists():
        raise ConfigError(f'{path} holds no run.')
    with _explain_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        if config is not None: _check_config(path, json.loads(_canonical(config)))
        done = config is None or bool(_write_provenance(path/'provenance.json', extra)['end'])
        return Run(path, _connect(path/'run.sqlite', done), done)

def _check_config(path, config):
    rows = (path/'run.sqlite').exists() # Asked first: others may be making both
    if not (path/'config.json').exists():
        if rows:
            raise ConfigError(f'{path} holds rows but no config.json; name another folder.')
        _write_json(path/'config.json', config, new=True)
    if diff := config_difference(_read_json(path/'config.json'), config):
        raise ConfigError(f'{path} holds a run of another configuration ({diff}); resume it '
                          'with its own, or name another folder.')


# %% [markdown]
# ## Filling it
#
# Rows are plain dicts. JSON keeps a float to its last bit, so a table read back is the table
# that was computed. A key that is already there keeps its first row: two workers that met on one
# item have done it twice and stored it once.

# %%
#| export
@patch
def get(self:Run,
    key:str,   # From `content_key`
)->dict|None:
    "The row of one item, if it is finished"
    with _explain_errors(self.path):
        r = self.db.execute('select row from items where key=?', (key,)).fetchone()
    return json.loads(r[0]) if r else None

@patch
def missing(self:Run,
    keys,      # All items of the work, in any order
)->list:       # In the order given, each once
    "Which items are still to do"
    keys = list(dict.fromkeys(keys))
    have = set()
    with _explain_errors(self.path):
        for n in range(0, len(keys), 500):
            some = keys[n:n+500]
            ask = f'select key from items where key in ({",".join("?"*len(some))})' # noqa: S608
            have |= {k for k, in self.db.execute(ask, some)}
    return [k for k in keys if k not in have]

@patch
def put_many(self:Run,
    items,     # Pairs of key and row
):
    "Store finished items, all or none of them; on disk when this returns"
    if self.finished:
        raise ConfigError(f'{self.path} is finished and stays so; name another folder.')
    rows = [(k, json.dumps(r, default=_jsonable)) for k,r in items]
    with _explain_errors(self.path), self.db:
        self.db.executemany('insert or ignore into items values (?,?)', rows)

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
# A table does not depend on the order in which its items were finished. Give the keys in the
# order of the work, and it has that order.

# %%
#| export
@patch
def table(self:Run,
    keys=None, # Order of the rows; default: sorted keys
):             # DataFrame with one row an item, `key` as its index
    "All finished items, in an order that has nothing to do with time"
    import pandas as pd
    with _explain_errors(self.path): rows = dict(self.db.execute('select key, row from items'))
    keys = sorted(rows) if keys is None else list(keys)
    if lost := [k for k in keys if k not in rows]:
        raise DataError(f'{self.path}: {len(lost)} of {len(keys)} items are not finished; start '
                        'the same command again.')
    index = pd.Index(keys, name='key')
    return pd.DataFrame([json.loads(rows[k]) for k in keys], index=index)

@patch
def finish(self:Run,
    **extra,   # More for provenance.json
):
    "Declare the run complete; from now on it is only read"
    if self.finished: return
    prov = self.path/'provenance.json'
    with _explain_errors(self.path): _write_json(prov, _read_json(prov)|extra|dict(end=_timestamp()))
    with suppress(sqlite3.OperationalError):  # the log stays while others have it open
        self.db.execute('pragma busy_timeout=0')
        self.db.execute('pragma journal_mode=delete')
    self.finished = True


# %%
run.put_many([(k, dict(item=i, score=i/3)) for i,k in reversed(list(enumerate(keys)))])
run.finish()
run.table(keys)

# %% [markdown]
# The same command finds the finished run and reads it; another configuration is refused; nothing
# overwrites it.

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
# ## Killed in the middle of writing
#
# A program with 200 items says each one that it computed. Five times it is killed with `SIGKILL`
# while it runs, then it is left alone.

# %%
import signal, sys

code = """
import sys
from moral_sc.foundation.runs import *
with open_run(sys.argv[1], dict(n=200)) as run:
    keys = [content_key(item=i) for i in range(200)]
    for k in run.missing(keys):
        i = keys.index(k)
        print(i, flush=True)
        run.put(k, dict(item=i, value=(i*.1)**.5))
    run.finish()
"""
def work(out, stop=None):
    "Run the program; kill it as soon as it has said `stop` items"
    cmd = [sys.executable, '-c', code, out]
    job = subprocess.Popen(cmd, stdout=subprocess.PIPE, text=True)
    done = []
    for line in job.stdout:
        done.append(int(line))
        if len(done)==stop: job.send_signal(signal.SIGKILL)
    return job.wait(), done

calm = work(tmp/'calm')
storm = [work(tmp/'storm', stop) for stop in (1, 20, 33, 40, 7)] + [work(tmp/'storm')]
[code for code,_ in storm], [len(done) for _,done in storm]

# %% [markdown]
# Each kill cost at most the one item that was being written, the two tables are the same to the
# last bit, and the provenance lists the five later starts.

# %%
test_eq([code for code,_ in storm], [-9]*5+[0])
assert 200 <= sum(len(d) for _,d in storm) <= 205
keys = [content_key(item=i) for i in range(200)]
a,b = (open_run(tmp/name, dict(n=200)).table(keys) for name in ('calm', 'storm'))
assert a.equals(b)

prov = json.loads((tmp/'storm/provenance.json').read_text())
test_eq(len(prov['resumed']), 5)

# %% [markdown]
# Two processes that work on one run at the same time share it.

# %%
jobs = [subprocess.Popen([sys.executable, '-c', code, tmp/'pair'], stdout=subprocess.PIPE)
        for _ in range(2)]
outs = [j.communicate()[0] for j in jobs]
assert open_run(tmp/'pair').table(keys).equals(a)
[j.returncode for j in jobs]


# %% [markdown]
# Work that need not be kept is done in a folder that is gone afterwards, by the same code.

# %%
#| export
@contextmanager
def run_or_temporary(
    run:Run|None, # None: nothing is to be kept
):                # Yields a `Run`
    "A run, or a passing one in its place"
    if run is not None: yield run
    else:
        with tempfile.TemporaryDirectory() as d, open_run(d, {}) as r: yield r


# %%
with run_or_temporary(None) as passing:
    passing.put('a', dict(x=1))
    folder = passing.path
    there = len(passing)
test_eq((there, folder.exists()), (1, False))


# %% [markdown]
# ## Several processes
#
# On a machine with eight GPUs eight processes fill one run. The work comes in blocks that follow
# from the whole list of items; each process does every eighth, and when it has come to the end of
# its own it takes over what is missing of the others', the last first. So nobody waits, nobody has
# to be told that another one died, and a block is at worst done twice and stored once. When a
# process leaves the loop every item is there, whoever made it.

# %%
#| export
def _own_blocks_first(n, rank, world):
    "Numbers of blocks: those of this process, then those of the others from their end"
    theirs = [reversed(range((rank+k)%world, n, world)) for k in range(1, world)]
    return [*range(rank, n, world), *(i for r in theirs for i in r)]

@patch
def blocks(self:Run,
    todo,            # Lists of keys, the same in every process
    rank:int=None,   # This process and how many there are; by default as `process` says
    world:int=None,
):                   # Yields numbers of blocks; store all items of one before the next
    "The blocks that this process should do, until nothing is missing"
    todo = [list(ks) for ks in todo]
    here = process_rank()
    rank,world = (a if b is None else b for a,b in zip(here, (rank, world)))
    for n in _own_blocks_first(len(todo), rank, world):
        if self.missing(todo[n]): yield n


# %%
_own_blocks_first(7, 0, 2), _own_blocks_first(7, 1, 2)

# %% [markdown]
# Alone, a process does all blocks in their order. Of two that take turns, each does its half,
# and the one that is left alone does the rest.

# %%
todo = [[f'{b}{i}' for i in range(3)] for b in 'abcdefg']
with open_run(tmp/'turns', {}) as run:
    first = run.blocks(todo, 0, 2)
    second = run.blocks(todo, 1, 2)
    did = []
    for who in [first,second,first,second]:
        did.append(next(who))
        run.put_many([(k, dict(key=k)) for k in todo[did[-1]]])
    for n in second: # The first is gone
        did.append(n)
        run.put_many([(k, dict(key=k)) for k in todo[n]])
    test_eq(len(run), 21)
test_eq(sorted(did), list(range(7)))
did

# %% [markdown]
# The same with real processes. Three share 40 blocks; one of them is killed after its third.
# The two that are left finish the work.

# %%
code = """
import sys, time
from moral_sc.foundation.runs import *
todo = [[content_key(block=b, item=i) for i in range(5)] for b in range(40)]
with open_run(sys.argv[1], dict(n=200)) as run:
    for n in run.blocks(todo):
        time.sleep(.01)
        run.put_many([(k, dict(item=[n, i])) for i,k in enumerate(todo[n])])
        print(n, flush=True)
    assert len(run)==200
    run.finish()
"""
def start(rank):
    env = os.environ|dict(RANK=str(rank), WORLD_SIZE='3')
    return subprocess.Popen([sys.executable, '-c', code, tmp/'three'], env=env, text=True,
                            stdout=subprocess.PIPE)
jobs = [start(r) for r in range(3)]
for _ in range(3): jobs[2].stdout.readline()
jobs[2].send_signal(signal.SIGKILL)
did = [[int(x) for x in j.communicate()[0].split()] for j in jobs[:2]]
test_eq([j.wait() for j in jobs], [0, 0, -9])
with open_run(tmp/'three') as run: test_eq((len(run), run.finished), (200, True))
prov = json.loads((tmp/'three/provenance.json').read_text())
test_eq((prov['processes'], prov['resumed']), (3, []))
own = [sum(n%3==r for n in d) for r,d in enumerate(did)]
[len(d) for d in did], own

# %% [markdown]
# Processes that come to a new folder at the same moment all get in. SQLite does not wait where two
# of them make one database, so they take turns there.

# %%
from multiprocessing import get_context
def meet(gate, out):
    for i in range(40):
        gate.wait(60)
        with open_run(out/str(i), {}): pass

fork = get_context('fork')
gate = fork.Barrier(3)
jobs = [fork.Process(target=meet, args=(gate, tmp/'meet')) for _ in range(3)]
for j in jobs: j.start()
for j in jobs: j.join()
test_eq([j.exitcode for j in jobs], [0, 0, 0])

# %% [markdown]
# All of them must be on one machine, or on a disk whose locks SQLite can trust; network disks
# often have none.
#
# ## Folders that will not do
#
# Each of these is one sentence, and where something had been finished it is still there. A full
# disk is played by a store that may not grow.

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
said = []
for t in tries:
    try: t()
    except (ConfigError, DataError) as e: said.append(str(e).replace(str(tmp), '…'))
print('\n'.join(said))

# %%
test_eq(len(said), len(tries))
test_eq(open_run(tmp/'full').table().text.tolist(), ['kept'])

# %%
#| hide
shutil.rmtree(tmp)
