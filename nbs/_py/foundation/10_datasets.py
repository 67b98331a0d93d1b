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
# > Fetch public data files that are pinned by commit and hash.

# %%
#| default_exp foundation.datasets

# %%
#| export
import gzip, hashlib, json, os, ssl, sys, threading, time, tomllib, uuid
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote, urlsplit

import moral_sc, platformdirs
from moral_sc.foundation.errors import DataError, ConfigError, unknown_name_message

# %%
#| hide
import tempfile
from unittest import mock
from fastcore.test import *
import pandas as pd


# %% [markdown]
# Two people can compare scores only if they scored the same bytes. Benchmarks change: rows are
# corrected, files are renamed, copies on hubs are edited silently. We therefore pin each
# file by repository, commit and a hash of its content, and `fetch` returns it only if all three agree. Other
# people's data is not part of this project; it is downloaded when it is needed.

# %% [markdown]
# ## Sources

# %%
#| export
@dataclass(frozen=True)
class Source:
    "One public file at one commit"
    id:str           # Section and name in sources.toml: 'bbq/Age'
    repo:str         # Owner and repository
    commit:str       # 40 hex digits
    path:str         # Path inside the repository
    size:int = 0     # Bytes; 0 if unknown
    blob:str = ''    # Git blob id, if known
    sha256:str = ''  # Used instead of `blob` for git LFS and files known by hash only
    lfs:bool = False # Large files live on another host of the same name
    hub:bool = False # A data set on the Hugging Face hub
    licence:str = '' # As the repository states it
    note:str = ''    # Description

    @property
    def relative_path(self): # OWNER/REPO/COMMIT/PATH, in a mirror and in the cache
        return Path(self.repo, self.commit, self.path)

    @property
    def pin(self): # Empty if no hash is known
        return self.blob or self.sha256


# %% [markdown]
# The list is `data/sources.toml`, which is part of the package.

# %%
#| export
def data_dir()->Path: # Read-only: our own sets and the lists of sources and models
    "Return the folder `data/` of this project"
    pkg = Path(moral_sc.__file__).resolve().parent
    return pkg/'data' if (pkg/'data').is_dir() else pkg.parent/'data'

@lru_cache
def sources()->dict: # Id -> `Source`
    "Return all files that can be fetched"
    toml = tomllib.loads((data_dir()/'sources.toml').read_text())
    res = {}
    for sec,d in toml.items():
        files = d.pop('files')
        res |= {f'{sec}/{k}': Source(f'{sec}/{k}', **d, **f) for k,f in files.items()}
    return res

def source(
    id:str|Source, # An id of `sources`, or a `Source` of your own
)->Source:
    "Look up a source by its id"
    if isinstance(id, Source): return id
    if id not in sources():
        raise ConfigError(unknown_name_message('data file', id, list(sources())))
    return sources()[id]


# %%
age = source('bbq/Age')
age.repo, age.path, age.size, age.licence

# %%
with expect_fail(ConfigError, contains="did you mean 'bbq/Age'?"): source('bbq/age')


# %% [markdown]
# ## Hashes
#
# Git names a file by the SHA-1 of the word `blob`, its length and its bytes. We pin this name because you
# can check it against the repository without a download, and with `git hash-object`. Files in git LFS are
# pinned by SHA-256.

# %%
#| export
def git_blob(
    path:str|Path, # A file on disk
)->str:            # 40 hex digits, what `git hash-object` prints
    "Compute git's name for the content of a file"
    with open(path, 'rb') as f:
        h = hashlib.sha1(b'blob %d\0' % os.fstat(f.fileno()).st_size, usedforsecurity=False)
        while chunk := f.read(1<<20): h.update(chunk)
    return h.hexdigest()


# %% [markdown]
# The empty file has the same name in every repository:

# %%
tmp = Path(tempfile.mkdtemp())
(tmp/'empty').touch()
git_blob(tmp/'empty')

# %%
test_eq(git_blob(tmp/'empty'), 'e69de29bb2d1d6434b8b29ae775ad8c2e48c5391')


# %% [markdown]
# `check_file` compares one file with its pin. It checks the size first, which is fast and distinguishes a
# truncated download from an edited file.

# %%
#| export
def _sha256(path):
    with open(path, 'rb') as f: return hashlib.file_digest(f, 'sha256').hexdigest()

def check_file(
    src:Source,    # The expected file
    path:str|Path, # The file to check
)->tuple:          # 'ok', 'missing', 'wrong size', 'wrong hash' or 'unpinned'; and the detail
    "Compare a file with its pin"
    path = Path(path)
    if not path.is_file(): return 'missing', ''
    size = path.stat().st_size
    if src.size and size!=src.size: return 'wrong size', f'{size:,} bytes, not {src.size:,}'
    if not src.pin: return 'unpinned', f'{size:,} bytes, no hash is known'
    hash = git_blob(path) if src.blob else _sha256(path)
    return ('ok', hash) if hash==src.pin else ('wrong hash', f'hash {hash}, not {src.pin}')


# %%
poem = tmp/'poem.txt'
poem.write_text('Roses are red\n')
src = Source('demo/poem', 'demo/poems', '0'*40, 'roses/poem.txt',
             size=14, blob='bc61c5f7d24a6b24c58e5c8a4ddbbc8ae5c4b01a')
check_file(src, poem)

# %% [markdown]
# The hash above is wrong on purpose. With the right hash the file passes, and each kind of damage has its
# own status:

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
# ## Mirror, cache and network
#
# `fetch` looks in three places. `MORAL_SC_MIRROR` names a folder with the layout
# `OWNER/REPO/COMMIT/PATH`, for clusters without a network. The cache has the same layout, so
# you can copy it to another machine and use it as a mirror. The network comes last; `MORAL_SC_OFFLINE=1`
# disables it.

# %%
#| export
def cache_dir()->Path: # $MORAL_SC_CACHE, or the place where this system keeps caches
    "Return the folder of downloads and converted weights"
    return Path(os.environ.get('MORAL_SC_CACHE') or platformdirs.user_cache_dir('moral_sc'))

def _offline(): return os.environ.get('MORAL_SC_OFFLINE', '').lower() in ('1','true','yes')

def _cached(src): return cache_dir()/'data'/src.relative_path

def _mirrored(src):
    d = os.environ.get('MORAL_SC_MIRROR')
    if d and not Path(d).is_dir():
        raise ConfigError(f'MORAL_SC_MIRROR is {d!r}, which is not a folder: correct or unset it.')
    return Path(d)/src.relative_path if d else None


# %% [markdown]
# The address of a file on the network follows from its pin. If you keep copies on your own web server in the same
# layout, name it in `MORAL_SC_HOST`. Data sets of the hub come from the mirror that `HF_ENDPOINT`
# names, as weights do.

# %%
#| export
def _host(name, default=None):
    host = os.environ.get(name, '').strip().rstrip('/') or default
    if host is None or host.startswith(('http://', 'https://')): return host
    raise ConfigError(f'{name} is {host!r}; give an address such as https://hub.example, or unset '
                      'it.')

def hub_host()->str: # A mirror of the hub serves data sets and weights
    "Return the address of the Hugging Face hub: `$HF_ENDPOINT`, or its own"
    return _host('HF_ENDPOINT', 'https://huggingface.co')

def source_url(
    src:Source,
)->str:         # The address on GitHub or the hub, or on `$MORAL_SC_HOST`
    "Return the address of a file at its commit"
    mirror_host = _host('MORAL_SC_HOST')
    if src.hub and not mirror_host:
        path = f'{src.repo}/resolve/{src.commit}/{src.path}'
        return f'{hub_host()}/datasets/{quote(path)}'
    host = 'media.githubusercontent.com/media' if src.lfs else 'raw.githubusercontent.com'
    return f'{mirror_host or "https://"+host}/{quote(src.relative_path.as_posix())}'


# %%
with mock.patch.dict(os.environ):
    for k in ('HF_ENDPOINT', 'MORAL_SC_HOST'): os.environ.pop(k, None)
    for k in ('bbq/templates/Age', 'hh-rlhf/helpful-base/test', 'discrim/explicit'):
        print(source_url(source(k)))

# %% [markdown]
# Desktops and clusters set proxies and certificates in the environment, sometimes in forms that
# the clients answer with a traceback of theirs, even for a server on the same machine.
# `check_network_settings` names the variable instead.

# %%
#| export
_proxy_variables = ('all_proxy', 'http_proxy', 'https_proxy')

def _check_proxy(name, value):
    try:
        address = urlsplit(value if '://' in value else f'http://{value}')
        _ = address.port # Raises an error for what is no number
    except ValueError as e:
        raise ConfigError(f'{name} is {value!r}, which is no address ({e}); correct or unset it.'
                          ) from None
    scheme = address.scheme.lower()
    if scheme in ('http', 'https'): return
    if scheme not in ('socks4', 'socks4a', 'socks5', 'socks5h'):
        raise ConfigError(f'{name} begins with {scheme}://, which names no kind of proxy; write '
                          'http:// or socks5://, or unset it.')
    if not find_spec('socksio') or not find_spec('socks'):
        raise ConfigError(f'{name} names a SOCKS proxy ({scheme}://), which needs two more '
                          'packages: pip install socksio pysocks, or unset it.')

def check_network_settings(
    env=None, # Default: the environment of this process
):
    "Raise an error that names a variable of proxies or certificates which cannot be used"
    env = os.environ if env is None else env
    for k in _proxy_variables:
        for name in (k, k.upper()):
            if env.get(name): _check_proxy(name, env[name])
    for name in ('SSL_CERT_FILE', 'SSL_CERT_DIR', 'REQUESTS_CA_BUNDLE', 'CURL_CA_BUNDLE'):
        path = env.get(name)
        if path and not (Path(path).is_dir() if name=='SSL_CERT_DIR' else Path(path).exists()):
            raise ConfigError(f'{name} is {path!r}, which does not exist; correct or unset it.')
    path = env.get('SSL_CERT_FILE')
    if not path: return
    try: ssl.create_default_context(cafile=path)
    except OSError as e: # ssl.SSLError is one
        raise ConfigError(f'SSL_CERT_FILE is {path!r}, which holds no certificates ({e}); '
                          'correct or unset it.') from None


# %%
for settings,message in ((dict(all_proxy='socks://127.0.0.1:7890/'), 'all_proxy begins with socks'),
                         (dict(https_proxy='http://[bad'), "https_proxy is 'http://[bad'"),
                         (dict(HTTPS_PROXY='http://proxy:80a'), 'no address'),
                         (dict(SSL_CERT_FILE='/gone.pem'), 'SSL_CERT_FILE'),
                         (dict(REQUESTS_CA_BUNDLE='/gone'), 'REQUESTS_CA_BUNDLE'),
                         (dict(SSL_CERT_FILE=str(poem)), 'holds no certificates')):
    with expect_fail(ConfigError, contains=message): check_network_settings(settings)
check_network_settings(dict(HTTPS_PROXY='http://proxy:8080', http_proxy='proxy:8080', ALL_PROXY=''))


# %% [markdown]
# Without a network, some machines report an error at once and others wait for minutes. `online` waits at
# most four seconds and caches the answer for half a minute.

# %%
#| export
@lru_cache
def _host_answers(root, interval):
    import requests
    responses = []
    def request():
        try: responses.append(requests.head(root, timeout=3))
        except (requests.RequestException, OSError, ValueError): pass # Proxies, certificates
    t = threading.Thread(target=request, daemon=True)
    t.start()
    t.join(4)  # name resolution has no timeout of its own
    return bool(responses)

def online(
    address:str, # Any address of the host
)->bool:         # False if MORAL_SC_OFFLINE=1
    "Return whether a host answers"
    root = '{0.scheme}://{0.netloc}/'.format(urlsplit(address))
    return not _offline() and _host_answers(root, int(time.time()//30))


# %% [markdown]
# A download is written to a temporary file and renamed after its check. A process that is killed leaves a
# temporary file, never a wrong one, and two processes can fetch the same file at the same time. Temporary
# files older than an hour are deleted by the next download.

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
    "Download into a temporary file and check it; retry broken connections and wrong files"
    import pooch, requests
    bar = sys.stderr.isatty() and not 0<src.size<1e6
    http = pooch.HTTPDownloader(timeout=(3,30), progressbar=bar)
    for i in range(tries):
        time.sleep(i/2)
        try: http(source_url(src), part, None)
        except requests.HTTPError as e:
            reason = f'the server answered {e.response.status_code}'
            if e.response.status_code<500: break
        except requests.RequestException as e:
            reason = f'the connection broke ({type(e).__name__})'
        else:
            status,detail = check_file(src, part)
            if status in ('ok','unpinned'): return
            reason = f'the download has {detail}'
    raise DataError(f'{src.id}: {reason}; nothing was stored of {source_url(src)}. Try again '
                    'later, or put the file in a mirror.')


# %% [markdown]
# A wrong file in the mirror raises an error and is not deleted. A wrong file in the cache is replaced.

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
    if not _offline(): check_network_settings()
    if not online(source_url(src)):
        reason = 'MORAL_SC_OFFLINE is set' if _offline() else 'the network is not reachable'
        raise DataError(f'{src.id} is in neither mirror nor cache and {reason}; put it at '
                        f'$MORAL_SC_MIRROR/{src.relative_path.as_posix()} or connect once.')
    with _partial_file() as part:
        _download(src, part)
        _cached(src).parent.mkdir(parents=True, exist_ok=True)
        return part.replace(_cached(src))

def fetch(
    id:str|Source, # 'bbq/Age', or a `Source`
)->Path:           # A file that passed its check
    "Find a file in the mirror, the cache or the network"
    src = source(id)
    try: return _from_mirror(src) or _from_cache(src) or _from_network(src)
    except OSError as e:
        path = e.filename or cache_dir()
        raise DataError(f'{src.id}: cannot write to {path} ({e.strerror or e}); free some space '
                        'or set MORAL_SC_CACHE to another folder.') from None

def available(
    id:str|Source, # 'bbq/Age', or a `Source`
)->bool:           # Takes at most a few seconds
    "Return whether `fetch` will probably succeed"
    src = source(id)
    mirror = _mirrored(src)
    return bool(mirror and mirror.is_file()) or _cached(src).is_file() or online(source_url(src))


# %% [markdown]
# The example below uses a local web server and a temporary cache.

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
(site/src.relative_path).parent.mkdir(parents=True)
(site/src.relative_path).write_bytes(poem.read_bytes())
srv,host = serve(site)
alone = dict(MORAL_SC_CACHE=cache, MORAL_SC_MIRROR=None, MORAL_SC_OFFLINE=None,
             NO_PROXY='127.0.0.1')

with Env(alone|dict(MORAL_SC_HOST=host)):
    first = fetch(src)
    second = fetch(src)
first.relative_to(tmp).as_posix(), [h[0] for h in Quiet.hits]

# %% [markdown]
# There was one `HEAD` request, to see whether the host answers, and one `GET`. The second call read the cache,
# which needs no network.

# %%
test_eq([h[0] for h in Quiet.hits], ['HEAD', 'GET'])
with Env(alone|dict(MORAL_SC_OFFLINE='1')): test_eq(fetch(src), second)

# %% [markdown]
# A data set of the hub is requested from the mirror of the hub that `HF_ENDPOINT` names.

# %%
hub_file = site/'datasets'/src.repo/'resolve'/src.commit/src.path
hub_file.parent.mkdir(parents=True)
hub_file.write_bytes(poem.read_bytes())
with Env(alone|dict(HF_ENDPOINT=host, MORAL_SC_CACHE=tmp/'cache2')):
    test_eq(fetch(replace(src, hub=True)).read_text(), poem.read_text())
with Env(dict(HF_ENDPOINT='hub.example')), expect_fail(ConfigError, contains='HF_ENDPOINT'):
    source_url(source('discrim/explicit'))
[h[0] for h in Quiet.hits[2:]]

# %% [markdown]
# A damaged file in the cache is deleted and downloaded again. Without a network it is deleted and reported
# as missing.

# %%
first.write_text('Roses are r3d\n')
with Env(alone|dict(MORAL_SC_HOST=host)): test_eq(fetch(src).read_text(), 'Roses are red\n')
first.write_text('Roses')
with Env(alone|dict(MORAL_SC_OFFLINE='1')):
    with expect_fail(DataError, contains='MORAL_SC_OFFLINE is set'): fetch(src)
assert not first.exists()

# %% [markdown]
# A wrong file in the mirror is reported with both hashes and is not changed.

# %%
mirror = tmp/'mirror'
(mirror/src.relative_path).parent.mkdir(parents=True)
(mirror/src.relative_path).write_text('Roses are r3d\n')
with Env(alone|dict(MORAL_SC_MIRROR=mirror)):
    try: fetch(src)
    except DataError as e: msg = str(e).replace(str(tmp), '…')
print(msg)

# %%
assert src.blob in msg and git_blob(edited) in msg and (mirror/src.relative_path).exists()


# %% [markdown]
# Downloads are checked against the same pin. A truncated transfer and a wrong file are tried three times, a
# missing file once. Nothing is left behind:

# %%
class Broken(Quiet):
    "Promises 14 bytes, sends 5 and hangs up"
    def do_GET(self):
        self.send_response(200); self.send_header('Content-Length', '14')
        self.end_headers()
        self.wfile.write(b'Roses')

messages = []
for handler,text in [(Broken, ''), (Quiet, 'Roses are r3d\n'), (Quiet, None)]:
    page = site/src.relative_path
    page.unlink(missing_ok=True)
    if text is not None: page.write_text(text)
    srv2,host2 = serve(site, handler)
    with Env(alone|dict(MORAL_SC_HOST=host2)):
        try: fetch(src)
        except DataError as e: messages.append(str(e).replace(source_url(src), '…'))
print('\n'.join(messages))

# %%
test_eq(len(messages), 3)
test_eq([p for p in cache.rglob('*') if p.is_file()], [])

# %% [markdown]
# Without a network, `fetch` fails within seconds. Here no process listens on the port:

# %%
start = time.time()
with Env(alone|dict(MORAL_SC_HOST='http://127.0.0.1:9')):
    test_eq(available(src), False)
    with expect_fail(DataError, contains='the network is not reachable'): fetch(src)
assert time.time()-start < 5

# %% [markdown]
# A cache that cannot be written raises one sentence, too. The folder named here would be inside a regular file.

# %%
page.write_text('Roses are red\n')
with Env(alone|dict(MORAL_SC_HOST=host, MORAL_SC_CACHE=poem/'cache')):
    try: fetch(src)
    except DataError as e: msg = str(e).replace(str(tmp), '…')
print(msg)

# %% [markdown]
# ## Interrupted downloads
#
# A slow server sends 3 MB. The process is killed with `SIGKILL` in the middle, then the same command runs
# again.

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
# Two processes that fetch the same file at the same time download it twice and store it once.

# %%
(cache/'data'/big.relative_path).unlink()
with Env(alone|dict(MORAL_SC_HOST=host3)):
    jobs = [subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.DEVNULL)
            for _ in range(2)]
    test_eq([j.wait() for j in jobs], [0, 0])
assert (cache/'data'/big.relative_path).read_bytes()==body

# %% [markdown]
# The temporary file does no harm. After an hour the next download removes it.

# %%
old = next(parts.glob('*'))
os.utime(old, (0, 0))
with Env(alone|dict(MORAL_SC_HOST=host)): fetch(src)
assert not old.exists()


# %% [markdown]
# ## Lists of files
#
# `data_list` and `verify` are also the commands `moral_sc data list` and `moral_sc data verify`. They do not use the
# network.

# %%
#| export
def data_list()->list: # One dict a file
    "List the files and their local copies"
    def local(s):
        m = _mirrored(s)
        return 'mirror' if m and m.is_file() else 'cache' if _cached(s).is_file() else ''
    def pin(s): return 'blob' if s.blob else 'sha256' if s.sha256 else 'commit'
    return [dict(id=s.id, size=s.size or None, pinned_by=pin(s), local=local(s),
                 licence=s.licence, repo=s.repo) for s in sources().values()]

def verify(
    ids:list=None, # Default: every source
)->list:           # One dict a file: id, where, status (see `check`), detail
    "Check the files in mirror and cache against their pins"
    res = []
    for s in map(source, ids or sources()):
        places = dict(mirror=_mirrored(s), cache=_cached(s))
        copies = [(k, *check_file(s, p)) for k,p in places.items() if p and p.is_file()]
        res += [dict(id=s.id, where=w, status=st, detail=d)
                for w,st,d in copies or [('', 'missing', '')]]
    return res


# %%
table = pd.DataFrame(data_list()).fillna({'size': 0}).astype({'size': int})
by = table.groupby(['repo', 'licence', 'pinned_by'])
by.agg(files=('id', 'size'), bytes=('size', 'sum'))

# %% [markdown]
# `commit` in the third column means that no hash is known. It is fetched by its commit and reported
# as unpinned.

# %%
with Env(alone): rows = verify([src, big])
pd.DataFrame(rows)

# %%
test_eq([(r['where'], r['status']) for r in rows], [('cache','ok')]*2)
assert len({s.relative_path for s in sources().values()})==len(sources())
assert all(len(s.commit)==40 and len(s.pin) in (0,40,64) for s in sources().values())

# %% [markdown]
# Local copies, if there are any, must be right:

# %%
bad = [r for r in verify() if r['status'] not in ('ok', 'unpinned', 'missing')]
test_eq(bad, [])


# %% [markdown]
# ## JSON lines and TOML
#
# Our own files are TOML. Most public files have one JSON object a line, and some are compressed. If a
# file is damaged, the error names the line.

# %%
#| export
def read_toml(
    path:str|Path,
)->dict:
    "Read a TOML file"
    path = Path(path)
    try: return tomllib.loads(path.read_text(encoding='utf-8'))
    except OSError as e: raise DataError(f'{path} cannot be read: {e.strerror}.') from e
    except ValueError as e: raise DataError(f'{path} is not valid TOML: {e}.') from e


# %%
#| export
def unique_fields(
    pairs:list, # (name, value) of a JSON object
)->dict:
    "Make a dict of the fields of a JSON object, none of which may occur twice"
    fields = dict(pairs)
    if len(fields)==len(pairs): return fields
    names = [k for k,_ in pairs]
    raise ValueError(f'the field {next(k for k in names if names.count(k)>1)!r} occurs twice')

def read_jsonl(
    path:str|Path, # One JSON object a line; compressed if the name ends in .gz
)->list:           # One dict a line; empty lines are skipped
    "Read a file of JSON lines"
    path = Path(path)
    rows = []
    k = 0
    try:
        if path.suffix=='.gz' and not path.stat().st_size: raise EOFError # gzip reads no lines
        with (gzip.open if path.suffix=='.gz' else open)(path, 'rt', encoding='utf-8-sig') as f:
            for k,line in enumerate(f, 1):  # noqa: B007 (the messages below use k)
                if line.strip():
                    rows.append(json.loads(line.strip(), object_pairs_hook=unique_fields))
    except json.JSONDecodeError as e:
        reason = f'{e.msg}, column {e.colno}'
        raise DataError(f'{path}: line {k} is not valid JSON ({reason}).') from None
    except UnicodeDecodeError:
        raise DataError(f'{path}: line {k+1} or soon after is not UTF-8 text.') from None
    except (EOFError, gzip.BadGzipFile, gzip.zlib.error):
        raise DataError(f'{path}: the compressed file is truncated or damaged after line {k}; '
                        'delete it and fetch it again.') from None
    except OSError as e: raise DataError(f'{path}: {e.strerror or e}.') from None
    except RecursionError: raise DataError(f'{path}: line {k} is nested too deeply.') from None
    except ValueError as e: raise DataError(f'{path}: line {k}: {e}.') from None
    bad = next((i for i,r in enumerate(rows, 1) if not isinstance(r, dict)), None)
    if bad: raise DataError(f'{path}: row {bad} is not a JSON object.')
    for i,r in enumerate(rows, 1): check_characters(r, f'{path}: row {i}')
    return rows

def check_characters(
    value,    # A string, or what JSON can hold
    name:str, # Begins the error
):
    "Raise an error if a text ends within a character; no tokenizer takes half a surrogate pair"
    try: json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as e:
        half = ascii(e.object[e.start])[1:-1]
        raise DataError(f'{name} has half a character ({half}) in {e.object[:e.start][-20:]!r}...; '
                        'delete it or complete the pair.') from None


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
(tmp/'bom.jsonl').write_text(text, encoding='utf-8-sig') # As some editors save it
test_eq(read_jsonl(tmp/'bom.jsonl'), rows)

# %%
(tmp/'mine.toml').write_text('wording = "Is it far?\n')
with expect_fail(DataError, contains='not valid TOML'): read_toml(tmp/'mine.toml')
with expect_fail(DataError, contains='cannot be read'): read_toml(tmp/'none.toml')

# %%
(tmp/'half.jsonl').write_text('{"text": "Hi"}\n{"text": "Say hello \\ud83d please."}\n')
with expect_fail(DataError, contains='row 2 has half a character'): read_jsonl(tmp/'half.jsonl')
(tmp/'whole.jsonl').write_text('{"text": "\\ud83d\\ude00"}\n')
test_eq(read_jsonl(tmp/'whole.jsonl'), [dict(text='😀')])

# %%
lines = text.splitlines()
lines[6] = lines[6][:-1]
(tmp/'torn.jsonl').write_text('\n'.join(lines))
whole = (tmp/'rows.jsonl.gz').read_bytes()
(tmp/'cut.jsonl.gz').write_bytes(whole[:len(whole)//2])
(tmp/'fake.jsonl.gz').write_text(text)
(tmp/'latin.jsonl').write_bytes('{"name": "José"}\n'.encode('latin1'))
(tmp/'list.jsonl').write_text('{}\n[1, 2]\n')

messages = []
for name in ['torn', 'cut.jsonl.gz', 'fake.jsonl.gz', 'latin', 'list', 'no']:
    try: read_jsonl(tmp/name if '.' in name else tmp/f'{name}.jsonl')
    except DataError as e: messages.append(str(e).replace(f'{tmp}/', ''))
print('\n'.join(messages))

# %%
test_eq(len(messages), 6)
assert 'line 7' in messages[0]

# %%
#| hide
import shutil
for s in (srv, srv2, srv3): s.shutdown()
shutil.rmtree(tmp)
