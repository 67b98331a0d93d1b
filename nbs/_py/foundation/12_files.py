# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Files
#
# > Replace files in one step and keep compiled code in folders that nobody else can write.

# %%
#| default_exp foundation.files

# %%
#| export
import atexit, functools, html, json, os, platform, re, shutil, stat, tempfile, time, warnings, zlib
from base64 import b64encode
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from moral_sc.foundation.datasets import cache_dir, data_dir
from moral_sc.foundation.errors import DataError

# %%
#| hide
import subprocess, sys
from unittest import mock
from fastcore.test import *
tmp = Path(tempfile.mkdtemp())


# %% [markdown]
# ## Files that are never half written
#
# `replace_file` gives a temporary name beside a file, and moves what was written there over the file. A process that is
# killed leaves the temporary file behind; the next write of the same file deletes it. The name holds the machine and
# the process, so files of processes that still run stay. Files of other machines stay for an hour.

# %%
#| export
def _machine(): return f'{zlib.crc32(platform.node().encode()):08x}'

def _is_running(pid):
    try: os.kill(pid, 0)
    except (ProcessLookupError, OverflowError): return False
    except OSError: return True # Another user's
    return True

def _remove_leftovers(path):
    "Delete temporary files that killed processes left of a file"
    pattern = re.compile(rf'\.{re.escape(path.name)}\.([0-9a-f]{{8}})-(\d+)\.part')
    with suppress(OSError):
        for p in path.parent.iterdir():
            if not (m := pattern.fullmatch(p.name)): continue
            here = m[1]==_machine()
            with suppress(OSError):
                old = time.time()-p.stat().st_mtime > 3600
                if old or (here and not _is_running(int(m[2]))): p.unlink()

@contextmanager
def replace_file(
    path:str|Path, # The file; it keeps its content if the block raises
    keep=False,    # Also keep it if it is there at the end of the block
):                 # Yields the path to write to, in the same folder
    "Write a file in one step"
    path = Path(path)
    _remove_leftovers(path)
    part = path.with_name(f'.{path.name}.{_machine()}-{os.getpid()}.part')
    try:
        yield part
        if not (keep and path.exists()): os.replace(part, path)
    finally: part.unlink(missing_ok=True)

def write_file(
    path:str|Path,   # The file; its folder is made if it is missing
    data:str|bytes,
)->Path:
    "Write a file in one step; leave it alone if it already has this content"
    path = Path(path)
    if isinstance(data, str): data = data.encode()
    if path.is_file() and path.read_bytes()==data: return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as part: part.write_bytes(data)
    return path


# %%
with replace_file(tmp/'table.csv') as part: part.write_text('a,b\n1,2\n')
with replace_file(tmp/'table.csv', keep=True) as part: part.write_text('other')
part.name.replace(str(os.getpid()), 'PID'), (tmp/'table.csv').read_text()

# %%
note = write_file(tmp/'notes'/'a.txt', 'naïve\n')
before = note.stat().st_mtime_ns
test_eq(write_file(note, 'naïve\n'.encode()).stat().st_mtime_ns, before)
test_eq(write_file(note, 'other').read_bytes(), b'other')
shutil.rmtree(note.parent)

# %% [markdown]
# An error keeps the old file. A process that is killed while it writes leaves a file, which the next write deletes.

# %%
with expect_fail(ZeroDivisionError), replace_file(tmp/'table.csv') as part:
    part.write_text('half')
    1/0
code = f"""
import os, signal
from moral_sc.foundation.files import *
with replace_file({str(tmp/'table.csv')!r}) as part:
    part.write_text('half')
    os.kill(os.getpid(), signal.SIGKILL)
"""
subprocess.run([sys.executable, '-c', code])
left = len(list(tmp.iterdir()))
other = tmp/'.table.csv.00000000-1.part' # Of another machine
other.touch()
with replace_file(tmp/'table.csv') as part: part.write_text('a,b\n3,4\n')
test_eq((left, sorted(p.name for p in tmp.iterdir())), (2, [other.name, 'table.csv']))
os.utime(other, (0, 0))
with replace_file(tmp/'table.csv') as part: part.write_text('a,b\n3,4\n')
test_eq([p.name for p in tmp.iterdir()], ['table.csv'])


# %% [markdown]
# ## Offline pages
#
# The viewer of answers and the page of votes are single HTML files, which load nothing from a network.

# %%
#| export
def offline_page(
    name:str,       # Of the template and the script in data/report: 'viewer'
    data:dict,      # Read by the script
    title:str,
    description:str='',
)->str:
    "Build an HTML page that holds its data and script, and allows no other"
    folder = data_dir()/'report'
    script = (folder/f'{name}.js').read_text(encoding='utf-8')
    digest = b64encode(sha256(script.encode()).digest()).decode()
    text = json.dumps(data)
    for c in '<>&': text = text.replace(c, f'\\u{ord(c):04x}')
    fills = dict(title=html.escape(title), about=html.escape(description), script=script, data=text,
                 hash=f'sha256-{digest}')
    template = (folder/f'{name}.html').read_text(encoding='utf-8')
    return re.sub(r'\{\{(\w+)\}\}', lambda m: fills[m[1]], template)


# %%
page = offline_page('viewer', dict(rows=['</script>']), 'Answers & <b>')
assert '<title>Answers &amp; &lt;b&gt;</title>' in page
assert '\\u003c/script' in page and '{{' not in page


# %% [markdown]
# ## JSON of a run
#
# The settings of a run are read back when it is resumed. Text that is not an object with these fields is refused.

# %%
#| export
def read_json_object(
    path:Path,
    **fields,  # Name and type of fields that it must have
)->dict:
    "Read a JSON object from the folder of a run"
    if path.exists() and not path.is_file(): # A named pipe would never end
        raise DataError(f'{path} is no file; move the folder away and start again.')
    try:
        obj = json.loads(path.read_text(encoding='utf-8'))
        if isinstance(obj, dict) and all(isinstance(obj.get(k, path), t) for k,t in fields.items()):
            return obj
    except (ValueError, RecursionError): pass
    raise DataError(f'{path} is damaged; move the folder away and start again.')


# %%
(tmp/'config.json').write_text('{"seed": 0, "end": null}')
test_eq(read_json_object(tmp/'config.json', seed=int, end=str|None), dict(seed=0, end=None))
for text in ('[]', 'null', '1', '{}', 'x', '{"seed": "0", "end": null}', '['*100_000):
    (tmp/'config.json').write_text(text)
    with expect_fail(DataError, contains='is damaged'):
        read_json_object(tmp/'config.json', seed=int, end=str|None)
(tmp/'config.json').write_bytes('{"seed": 0, "end": null}'.encode('utf-16'))
with expect_fail(DataError): read_json_object(tmp/'config.json')
os.mkfifo(tmp/'pipe.json')
for name in ('pipe.json', ''):
    with expect_fail(DataError, contains='is no file'): read_json_object(tmp/name)
os.remove(tmp/'pipe.json')


# %% [markdown]
# ## Folders for compiled code
#
# Compilers keep their results for the next process, which runs them. A folder under a fixed name in `/tmp` can be made
# by another user first. `private_folder` returns a folder below the cache that only you can read and write. If there
# is none, for example with a read-only home, it is a temporary folder of this process, and one warning says so.

# %%
#| export
def _is_private(path):
    "Return whether only this user can write to a folder, and nobody can exchange it"
    if not hasattr(os, 'getuid'): return True # Windows
    own = os.lstat(path)
    if not stat.S_ISDIR(own.st_mode) or own.st_uid!=os.getuid() or own.st_mode & 0o077: return False
    others = [p.stat() for p in path.resolve().parents]
    open_ones = [s for s in others if s.st_mode & stat.S_IWOTH and not s.st_mode & stat.S_ISVTX]
    return not open_ones and all(s.st_uid in (0, os.getuid()) for s in others)

def private_folder(
    name:str, # Of the compiler: 'torchinductor'
)->Path:      # Exists after the call
    "Return a folder for files that are run as code, which only this user can write"
    user = f'-{os.getuid()}' if hasattr(os, 'getuid') else ''
    path = cache_dir()/f'{name}{user}'
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        with tempfile.TemporaryFile(dir=path): pass
        if _is_private(path): return path
    return _temporary_folder(path)

@functools.cache
def _temporary_folder(path):
    "Make a private folder of this process instead"
    warnings.warn(f'{path} cannot be used as a private cache of compiled code, so the code is '
                  'compiled again in each process: set MORAL_SC_CACHE to a folder of yours.',
                  stacklevel=3)
    folder = Path(tempfile.mkdtemp(prefix='moral_sc-'))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def use_private_cache(
    variable:str, # That names the folder of a compiler: 'TORCHINDUCTOR_CACHE_DIR'
    name:str,     # Of the compiler
):
    "Set the variable to a private folder, unless it names a folder outside the shared `/tmp`"
    path = os.environ.get(variable)
    if not path or Path(path).parent==Path(tempfile.gettempdir()):
        os.environ[variable] = str(private_folder(name))


# %%
with mock.patch.dict(os.environ, MORAL_SC_CACHE=str(tmp/'cache')):
    for before in ('', tempfile.gettempdir()+'/torchinductor_user', '/scratch/mine'):
        os.environ['COMPILER_CACHE'] = before
        use_private_cache('COMPILER_CACHE', 'compiler')
        after = os.environ['COMPILER_CACHE']
        test_eq(after, before if before=='/scratch/mine' else str(private_folder('compiler')))
    folder = private_folder('compiler')
    test_eq(private_folder('compiler'), folder)
folder.relative_to(tmp).parts[0], oct(folder.stat().st_mode & 0o777)


# %% [markdown]
# A folder that others can write, a link, or a cache that cannot be made is not used:

# %%
def unsafe(prepare):
    "The folder used and the warning, after something was done to the cache"
    cache = Path(tempfile.mkdtemp(dir=tmp))
    with mock.patch.dict(os.environ, MORAL_SC_CACHE=str(cache/'c')):
        folder = private_folder('compiler')
        prepare(folder)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter('always')
            used = private_folder('compiler')
    assert used!=folder and used.stat().st_mode & 0o777==0o700
    return str(warned[0].message).replace(str(cache), '…')

def link(folder): folder.rename(tmp/'elsewhere'); folder.symlink_to(tmp/'elsewhere')
def replace_by_file(folder): shutil.rmtree(folder.parent); folder.parent.touch()
messages = [unsafe(f) for f in (lambda p: p.chmod(0o777), lambda p: p.chmod(0o750), link,
                                replace_by_file, lambda p: p.parent.chmod(0o777))]
if os.getuid()==0: messages.append(unsafe(lambda p: os.chown(p, 1234, 1234)))
test_eq(len({re.sub(r'-\d+', '', m) for m in messages}), 1)
messages[0]

# %%
#| hide
shutil.rmtree(tmp)
