# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Data sets
#
# > Public files, each pinned to its bytes and looked up where they are nearest.

# %%
#| default_exp foundation.datasets

# %%
#| export
import gzip, hashlib, json, os, sys, threading, time, tomllib, uuid
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, urlsplit

import moral_sc, platformdirs
from moral_sc.foundation.errors import DataError, ConfigError, unknown_name_message

# %%
#| hide
import tempfile
from fastcore.test import *
import pandas as pd


# %% [markdown]
# A bias score is a statement about particular sentences, so two people who compare scores
# must have scored the same bytes. Benchmarks move: rows are corrected, files are renamed,
# copies on hubs are edited without a word. Here a file is therefore named by the repository it
# lives in, the commit, and a hash of its content, and it is handed out only if all three agree.
# Nothing that others wrote is copied into this project; it is fetched when it is needed.

# %% [markdown]
# ## What is pinned

# %%
#| export
@dataclass(frozen=True)
class Source:
    "One public file in one state"
    id:str           # Section and name in sources.toml: 'bbq/Age'
    repo:str         # Owner and repository
    commit:str       # 40 hex digits
    path:str         # Path inside the repository
    size:int = 0     # Bytes; 0 where it is not known
    blob:str = ''    # Git blob id, where the file was at hand to compute it
    sha256:str = ''  # Used instead of `blob` for git LFS and files known by hash only
    lfs:bool = False # Large files live on another host of the same name
    hub:bool = False # A data set on the Hugging Face hub
    licence:str = '' # As the repository states it
    note:str = ''    # What it is

    @property
    def where(self): # OWNER/REPO/COMMIT/PATH, in a mirror and in the cache
        return Path(self.repo, self.commit, self.path)

    @property
    def pin(self): # Empty where the commit alone says what is meant
        return self.blob or self.sha256


# %% [markdown]
# The list itself is `data/sources.toml`, which travels with the package. In a clone it lies
# beside the package, in an installation inside it.

# %%
#| export
def data_dir()->Path: # Read-only: our own sets and the lists of sources and models
    "The folder `data/` of this project"
    pkg = Path(moral_sc.__file__).resolve().parent
    return pkg/'data' if (pkg/'data').is_dir() else pkg.parent/'data'

@lru_cache
def sources()->dict: # Id -> `Source`
    "All files that can be fetched"
    toml = tomllib.loads((data_dir()/'sources.toml').read_text())
    res = {}
    for sec,d in toml.items():
        files = d.pop('files')
        res |= {f'{sec}/{k}': Source(f'{sec}/{k}', **d, **f) for k,f in files.items()}
    return res

def source(
    id:str|Source, # An id of `sources`, or a `Source` of your own
)->Source:
    "Look one up; a misspelt id comes back with the nearest one"
    if isinstance(id, Source): return id
    if id not in sources(): raise ConfigError(unknown_name_message('data file', id, list(sources())))
    return sources()[id]


# %%
age = source('bbq/Age')
age.repo, age.path, age.size, age.licence

# %%
with expect_fail(ConfigError, contains="did you mean 'bbq/Age'?"): source('bbq/age')


# %% [markdown]
# ## A hash that the repository already has
#
# Git names every file by the SHA-1 of `blob`, its length and its bytes. We pin that name
# because anybody can check it against the repository without downloading anything, and because
# `git hash-object` computes it. Files kept in git LFS are named there by SHA-256.

# %%
#| export
def git_blob(
    path:str|Path, # A file on disk
)->str:            # 40 hex digits, what `git hash-object` prints
    "Git's name for the content of a file"
    with open(path, 'rb') as f:
        h = hashlib.sha1(b'blob %d\0' % os.fstat(f.fileno()).st_size, usedforsecurity=False)
        while chunk := f.read(1<<20): h.update(chunk)
    return h.hexdigest()


# %% [markdown]
# The empty file has the same name in every repository of the world:

# %%
tmp = Path(tempfile.mkdtemp())
(tmp/'empty').touch()
git_blob(tmp/'empty')

# %%
test_eq(git_blob(tmp/'empty'), 'e69de29bb2d1d6434b8b29ae775ad8c2e48c5391')


# %% [markdown]
# `check_file` gives the verdict on one file. Size comes first since it is free and tells a cut
# download from an edited file.

# %%
#| export
def _sha256(path):
    with open(path, 'rb') as f: return hashlib.file_digest(f, 'sha256').hexdigest()

def check_file(
    src:Source,    # What the file should be
    path:str|Path, # Where it lies
)->tuple:          # 'ok', 'missing', 'wrong size', 'wrong hash', 'unpinned'; and the detail
    "Compare a file with its pin"
    path = Path(path)
    if not path.is_file(): return 'missing', ''
    size = path.stat().st_size
    if src.size and size!=src.size: return 'wrong size', f'{size:,} bytes, not {src.size:,}'
    if not src.pin: return 'unpinned', f'{size:,} bytes, no hash is known'
    got = git_blob(path) if src.blob else _sha256(path)
    return ('ok', got) if got==src.pin else ('wrong hash', f'hash {got}, not {src.pin}')


# %%
poem = tmp/'poem.txt'
poem.write_text('Roses are red\n')
src = Source('demo/poem', 'demo/poems', '0'*40, 'roses/poem.txt',
             size=14, blob='bc61c5f7d24a6b24c58e5c8a4ddbbc8ae5c4b01a')
check_file(src, poem)

# %% [markdown]
# That hash was typed at random. With the right one the file passes, and each kind of damage
# has its own name:

# %%
from dataclasses import replace

src = replace(src, blob=git_blob(poem))
edited = tmp/'edited.txt'
cut = tmp/'cut.txt'
edited.write_text('Roses are r3d\n'); cut.write_text('Roses')
[check_file(src, p)[0] for p in (poem, edited, cut, tmp/'nowhere')]

# %%
test_eq([check_file(src, p)[0] for p in (poem, edited, cut, tmp/'nowhere')],
        ['ok', 'wrong hash', 'wrong size', 'missing'])


# %% [markdown]
# ## Mirror, cache, network
#
# A file is looked for in three places, nearest first. `MORAL_SC_MIRROR` names a folder that
# somebody else keeps, laid out `OWNER/REPO/COMMIT/PATH`: an air-gapped cluster needs nothing
# more. The cache has the same layout, so a filled cache can be carried elsewhere and serve as
# a mirror. The network comes last and `MORAL_SC_OFFLINE=1` closes it.

# %%
#| export
def cache_dir()->Path: # $MORAL_SC_CACHE, or the place where this system keeps caches
    "Where downloads and converted weights are kept between runs"
    return Path(os.environ.get('MORAL_SC_CACHE') or platformdirs.user_cache_dir('moral_sc'))

def _offline(): return os.environ.get('MORAL_SC_OFFLINE', '').lower() in ('1','true','yes')

def _cached(src): return cache_dir()/'data'/src.where

def _mirrored(src):
    d = os.environ.get('MORAL_SC_MIRROR')
    if d and not Path(d).is_dir():
        raise ConfigError(f'MORAL_SC_MIRROR is {d!r}, which is no folder; mend or unset it.')
    return Path(d)/src.where if d else None


# %% [markdown]
# On the network a file's address follows from its pin. A site that keeps its own copy on a web
# server, in the same layout, names it in `MORAL_SC_HOST`.

# %%
#| export
def source_url(
    src:Source, # What to fetch
)->str:         # Its address on GitHub or the hub, or on `$MORAL_SC_HOST`
    "The address of a file at its commit"
    own = os.environ.get('MORAL_SC_HOST')
    if src.hub and not own:
        where = f'{src.repo}/resolve/{src.commit}/{src.path}'
        return f'https://huggingface.co/datasets/{quote(where)}'
    host = 'media.githubusercontent.com/media' if src.lfs else 'raw.githubusercontent.com'
    return f'{own or "https://"+host}/{quote(src.where.as_posix())}'


# %%
for k in ('bbq/templates/Age', 'hh-rlhf/helpful-base/test', 'discrim/explicit'):
    print(source_url(source(k)))


# %% [markdown]
# Without a network, some machines answer at once that a name cannot be resolved; others let
# packets vanish and callers wait for minutes. `online` waits at most four seconds and keeps the
# answer for half a minute, so that a question about eleven files is one question.

# %%
#| export
@lru_cache
def _host_answers(root, when):
    import requests
    up = []
    def ask():
        try: up.append(requests.head(root, timeout=3))
        except requests.RequestException: pass
    t = threading.Thread(target=ask, daemon=True)
    t.start(); t.join(4)  # resolving a name knows no timeout of its own
    return bool(up)

def online(
    address:str, # Any address on the host in question
)->bool:         # False at once where MORAL_SC_OFFLINE=1
    "Whether a host answers"
    root = '{0.scheme}://{0.netloc}/'.format(urlsplit(address))
    return not _offline() and _host_answers(root, int(time.time()//30))


# %% [markdown]
# A download goes to a file of its own beside the cache and takes its place there by a rename,
# after it was checked. A process killed half-way leaves a stray part and no wrong file; two
# processes that fetch the same file both succeed. Parts nobody has touched for an hour are
# swept away by the next download.

# %%
#| export
@contextmanager
def _partial_file():
    d = cache_dir()/'parts'
    d.mkdir(parents=True, exist_ok=True)
    for p in d.iterdir():
        if time.time()-p.stat().st_mtime > 3600: p.unlink(missing_ok=True)
    part = d/uuid.uuid4().hex
    try: yield part
    finally: part.unlink(missing_ok=True)

def _download(src, part, tries=3):
    "Download into a part and check it; a broken line or a wrong file is tried again"
    import pooch, requests
    bar = sys.stderr.isatty() and not 0<src.size<1e6
    http = pooch.HTTPDownloader(timeout=(3,30), progressbar=bar)
    for i in range(tries):
        time.sleep(i/2)
        try: http(source_url(src), part, None)
        except requests.HTTPError as e:
            why = f'the server answered {e.response.status_code}'
            if e.response.status_code<500: break
        except requests.RequestException as e: why = f'the line broke ({type(e).__name__})'
        else:
            status,detail = check_file(src, part)
            if status in ('ok','unpinned'): return
            why = f'what came has {detail}'
    raise DataError(f'{src.id}: {why}; nothing was kept of {source_url(src)}. Try again later, or '
                    'put the file in a mirror.')


# %% [markdown]
# A wrong file in the mirror is an error and stays where it is, since it is not ours to delete.
# A wrong file in the cache is replaced.

# %%
#| export
def _from_mirror(src):
    path = _mirrored(src)
    if path is None or not path.is_file(): return
    status,detail = check_file(src, path)
    if status in ('ok','unpinned'): return path
    raise DataError(f'{src.id}: the mirror\'s file has {detail}; replace {path} or unset '
                    'MORAL_SC_MIRROR.')

def _from_cache(src):
    path = _cached(src)
    status,_ = check_file(src, path)
    if status in ('ok','unpinned'): return path
    if status!='missing': path.unlink()

def _from_network(src):
    if not online(source_url(src)):
        why = 'MORAL_SC_OFFLINE is set' if _offline() else 'the network is out of reach'
        raise DataError(f'{src.id} is in neither mirror nor cache and {why}; put it at '
                        f'$MORAL_SC_MIRROR/{src.where.as_posix()} or go online once.')
    with _partial_file() as part:
        _download(src, part)
        _cached(src).parent.mkdir(parents=True, exist_ok=True)
        return part.replace(_cached(src))

def fetch(
    id:str|Source, # 'bbq/Age', or a `Source`
)->Path:           # A file that has been checked just now
    "Find a file in the mirror, the cache or the network"
    src = source(id)
    try: return _from_mirror(src) or _from_cache(src) or _from_network(src)
    except OSError as e:
        where = e.filename or cache_dir()
        raise DataError(f'{src.id}: cannot write to {where} ({e.strerror or e}); free some space '
                        'or name another folder in MORAL_SC_CACHE.') from None

def available(
    id:str|Source, # 'bbq/Age', or a `Source`
)->bool:           # Answers within seconds, with a network or without
    "Whether `fetch` can be expected to succeed now"
    src = source(id)
    mirror = _mirrored(src)
    return bool(mirror and mirror.is_file()) or _cached(src).is_file() or online(source_url(src))


# %% [markdown]
# The three steps can be watched with a web server of our own and a cache in a temporary
# folder.

# %%
#| hide
from http.server import ThreadingHTTPServer, SimpleHTTPRequestHandler
from functools import partial

class Quiet(SimpleHTTPRequestHandler):
    hits = []
    def log_message(self, *_): self.hits.append((self.command, self.path))

class Env(dict):
    "Set environment variables for the length of a `with`"
    def __enter__(self):
        self.old = {k: os.environ.get(k) for k in self}
        self.put(self)
    def __exit__(self, *_): self.put(self.old)
    def put(self, d):
        for k in d: os.environ.pop(k, None)
        os.environ.update({k: str(v) for k,v in d.items() if v is not None})

def serve(folder, handler=Quiet):
    srv = ThreadingHTTPServer(('127.0.0.1', 0), partial(handler, directory=folder))
    threading.Thread(target=srv.serve_forever, daemon=True).start()
    return srv, f'http://127.0.0.1:{srv.server_port}'


# %%
site = tmp/'site'
cache = tmp/'cache'
(site/src.where).parent.mkdir(parents=True)
(site/src.where).write_bytes(poem.read_bytes())
srv,host = serve(site)
alone = dict(MORAL_SC_CACHE=cache, MORAL_SC_MIRROR=None, MORAL_SC_OFFLINE=None,
             NO_PROXY='127.0.0.1')

with Env(alone|dict(MORAL_SC_HOST=host)):
    first = fetch(src)
    second = fetch(src)
first.relative_to(tmp).as_posix(), [h[0] for h in Quiet.hits]

# %% [markdown]
# One `HEAD` to see whether the host answers and one `GET`; the second call read the cache.
# After that the network is not needed.

# %%
test_eq([h[0] for h in Quiet.hits], ['HEAD', 'GET'])
with Env(alone|dict(MORAL_SC_OFFLINE='1')): test_eq(fetch(src), second)

# %% [markdown]
# A file damaged on disk is noticed, thrown away and fetched again; with no network it is thrown
# away and said to be missing.

# %%
first.write_text('Roses are r3d\n')
with Env(alone|dict(MORAL_SC_HOST=host)): test_eq(fetch(src).read_text(), 'Roses are red\n')
first.write_text('Roses')
with Env(alone|dict(MORAL_SC_OFFLINE='1')):
    with expect_fail(DataError, contains='MORAL_SC_OFFLINE is set'): fetch(src)
assert not first.exists()

# %% [markdown]
# A mirror that holds another file than the one pinned is named with both hashes, and its file
# is left alone.

# %%
mirror = tmp/'mirror'
(mirror/src.where).parent.mkdir(parents=True)
(mirror/src.where).write_text('Roses are r3d\n')
with Env(alone|dict(MORAL_SC_MIRROR=mirror)):
    try: fetch(src)
    except DataError as e: msg = str(e).replace(str(tmp), '…')
print(msg)

# %%
assert src.blob in msg and git_blob(edited) in msg and (mirror/src.where).exists()


# %% [markdown]
# What the server sends is held to the same pin. A cut transfer and another file are
# tried three times, a missing one once, and nothing is left behind:

# %%
class Broken(Quiet):
    "Promises 14 bytes, sends 5 and hangs up"
    def do_GET(self):
        self.send_response(200); self.send_header('Content-Length', '14')
        self.end_headers()
        self.wfile.write(b'Roses')

said = []
for handler,text in [(Broken, ''), (Quiet, 'Roses are r3d\n'), (Quiet, None)]:
    page = site/src.where
    page.unlink(missing_ok=True)
    if text is not None: page.write_text(text)
    srv2,host2 = serve(site, handler)
    with Env(alone|dict(MORAL_SC_HOST=host2)):
        try: fetch(src)
        except DataError as e: said.append(str(e).replace(source_url(src), '…'))
print('\n'.join(said))

# %%
test_eq(len(said), 3)
test_eq([p for p in cache.rglob('*') if p.is_file()], [])

# %% [markdown]
# With no network the answer comes within seconds, here from a port on which nobody listens:

# %%
start = time.time()
with Env(alone|dict(MORAL_SC_HOST='http://127.0.0.1:9')):
    test_eq(available(src), False)
    with expect_fail(DataError, contains='the network is out of reach'): fetch(src)
assert time.time()-start < 5

# %% [markdown]
# A cache that cannot be written to is one sentence too. The folder named here would lie under
# a regular file.

# %%
page.write_text('Roses are red\n')
with Env(alone|dict(MORAL_SC_HOST=host, MORAL_SC_CACHE=poem/'cache')):
    try: fetch(src)
    except DataError as e: msg = str(e).replace(str(tmp), '…')
print(msg)

# %% [markdown]
# ## Killed in the middle
#
# A download of 3 MB from a server that takes its time is killed with `SIGKILL` half-way, then
# the same command runs again.

# %%
import signal, subprocess

body = bytes(range(256))*12_000
(site/'big').write_bytes(body)
big = Source('demo/big', 'demo/poems', '0'*40, 'big', len(body), git_blob(site/'big'))

class Slow(Quiet):
    "Sends 256 kB every tenth of a second"
    def do_GET(self):
        self.send_response(200); self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        for i in range(0, len(body), n := 1<<18):
            self.wfile.write(body[i:i+n]); time.sleep(.1)

srv3,host3 = serve(site, Slow)
code = f'from moral_sc.foundation.datasets import *; print(fetch({big!r}))'
with Env(alone|dict(MORAL_SC_HOST=host3)):
    job = subprocess.Popen([sys.executable, '-c', code])
    parts = cache/'parts'
    while job.poll() is None and not any(p.stat().st_size for p in parts.glob('*')):
        time.sleep(.01)
    job.send_signal(signal.SIGKILL); job.wait()
    left = [p.stat().st_size for p in parts.glob('*')]
    again = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
0 < left[0] < len(body), check_file(big, again.stdout.strip())[0]

# %%
assert 0 < left[0] < len(body)
assert Path(again.stdout.strip()).read_bytes()==body

# %% [markdown]
# Two processes that want the same file at the same time fetch it twice and keep it once.

# %%
(cache/'data'/big.where).unlink()
with Env(alone|dict(MORAL_SC_HOST=host3)):
    jobs = [subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.DEVNULL)
            for _ in range(2)]
    test_eq([j.wait() for j in jobs], [0, 0])
assert (cache/'data'/big.where).read_bytes()==body

# %% [markdown]
# The part that was left is harmless, and an hour later the next download removes it.

# %%
old = next(parts.glob('*'))
os.utime(old, (0, 0))
with Env(alone|dict(MORAL_SC_HOST=host)): fetch(src)
assert not old.exists()


# %% [markdown]
# ## The list, as a table
#
# These two functions are the commands `moral_sc data list` and `moral_sc data verify`; neither
# touches the network.

# %%
#| export
def data_list()->list: # One dict a file
    "What can be fetched, and what lies here already"
    def local(s):
        m = _mirrored(s)
        return 'mirror' if m and m.is_file() else 'cache' if _cached(s).is_file() else ''
    def pin(s): return 'blob' if s.blob else 'sha256' if s.sha256 else 'commit'
    return [dict(id=s.id, size=s.size or None, pinned_by=pin(s), local=local(s),
                 licence=s.licence, repo=s.repo) for s in sources().values()]

def verify(
    ids:list=None, # Default: every source
)->list:           # One dict a file: id, where, status (see `check`), detail
    "Check the copies in mirror and cache against their pins"
    res = []
    for s in map(source, ids or sources()):
        places = dict(mirror=_mirrored(s), cache=_cached(s))
        found = [(k, *check_file(s, p)) for k,p in places.items() if p and p.is_file()]
        res += [dict(id=s.id, where=w, status=st, detail=d)
                for w,st,d in found or [('', 'missing', '')]]
    return res


# %%
table = pd.DataFrame(data_list()).fillna({'size': 0}).astype({'size': int})
by = table.groupby(['repo', 'licence', 'pinned_by'])
by.agg(files=('id', 'size'), bytes=('size', 'sum'))

# %% [markdown]
# `commit` in the third column means that we never had the file and no hash of it is published:
# it is fetched by its commit and reported as unpinned for as long as that is so.

# %%
with Env(alone): rows = verify([src, big])
pd.DataFrame(rows)

# %%
test_eq([(r['where'], r['status']) for r in rows], [('cache','ok')]*2)
assert len({s.where for s in sources().values()})==len(sources())
assert all(len(s.commit)==40 and len(s.pin) in (0,40,64) for s in sources().values())

# %% [markdown]
# Copies that lie on this machine while the page runs must all be right:

# %%
bad = [r for r in verify() if r['status'] not in ('ok', 'unpinned', 'missing')]
test_eq(bad, [])


# %% [markdown]
# ## Reading rows
#
# What people write by hand is TOML. Most files of others hold one JSON object a line, some of
# them compressed. A damaged file names the line, since that is what its owner needs in order to
# mend it.

# %%
#| export
def read_toml(
    path:str|Path,
)->dict:
    "Read a TOML file that a person wrote"
    path = Path(path)
    try: return tomllib.loads(path.read_text(encoding='utf-8'))
    except OSError as e: raise DataError(f'{path} cannot be read: {e.strerror}.') from e
    except ValueError as e: raise DataError(f'{path} is not valid TOML: {e}.') from e


# %%
#| export
def read_jsonl(
    path:str|Path, # One JSON object a line; compressed if the name ends in .gz
)->list:           # One dict a line; empty lines are skipped
    "Read a file of JSON lines"
    path = Path(path)
    rows = []
    k = 0
    try:
        with (gzip.open if path.suffix=='.gz' else open)(path, 'rt', encoding='utf-8') as f:
            for k,line in enumerate(f, 1):  # noqa: B007 (the messages below use k)
                if line.strip(): rows.append(json.loads(line.strip()))
    except json.JSONDecodeError as e:
        why = f'{e.msg}, column {e.colno}'
        raise DataError(f'{path}: line {k} is not valid JSON ({why}).') from None
    except UnicodeDecodeError:
        raise DataError(f'{path}: line {k+1} or soon after is not UTF-8 text.') from None
    except (EOFError, gzip.BadGzipFile, gzip.zlib.error):
        raise DataError(f'{path}: the compressed file is cut or damaged after line {k}; delete '
                        'it and fetch it again.') from None
    except OSError as e: raise DataError(f'{path}: {e.strerror or e}.') from None
    bad = next((i for i,r in enumerate(rows, 1) if not isinstance(r, dict)), None)
    if bad: raise DataError(f'{path}: row {bad} is not a JSON object.')
    return rows


# %%
words = ['older', 'younger']*500
rows = [dict(question=f'Who is {w}?', label=i%3) for i,w in enumerate(words)]
text = ''.join(json.dumps(r)+'\n' for r in rows)
(tmp/'rows.jsonl').write_text(text)
(tmp/'rows.jsonl.gz').write_bytes(gzip.compress(text.encode()))
read_jsonl(tmp/'rows.jsonl')[:2]

# %%
test_eq(read_jsonl(tmp/'rows.jsonl'), rows)
test_eq(read_jsonl(tmp/'rows.jsonl.gz'), rows)

# %%
(tmp/'mine.toml').write_text('wording = "Is it far?\n')
with expect_fail(DataError, contains='not valid TOML'): read_toml(tmp/'mine.toml')
with expect_fail(DataError, contains='cannot be read'): read_toml(tmp/'none.toml')

# %%
lines = text.splitlines()
lines[6] = lines[6][:-1]
(tmp/'torn.jsonl').write_text('\n'.join(lines))
whole = (tmp/'rows.jsonl.gz').read_bytes()
(tmp/'cut.jsonl.gz').write_bytes(whole[:len(whole)//2])
(tmp/'fake.jsonl.gz').write_text(text)
(tmp/'latin.jsonl').write_bytes('{"name": "José"}\n'.encode('latin1'))
(tmp/'list.jsonl').write_text('{}\n[1, 2]\n')

said = []
for name in ['torn', 'cut.jsonl.gz', 'fake.jsonl.gz', 'latin', 'list', 'no']:
    try: read_jsonl(tmp/name if '.' in name else tmp/f'{name}.jsonl')
    except DataError as e: said.append(str(e).replace(f'{tmp}/', ''))
print('\n'.join(said))

# %%
test_eq(len(said), 6)
assert 'line 7' in said[0]

# %%
#| hide
import shutil
for s in (srv, srv2, srv3): s.shutdown()
shutil.rmtree(tmp)
