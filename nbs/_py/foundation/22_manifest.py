# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Manifests
#
# > Record size and SHA-256 of the files of a run, and check them before they are used again.

# %%
#| default_exp foundation.manifest

# %%
#| export
import hashlib, json, os, shutil, warnings
from pathlib import Path

from moral_sc.foundation.errors import DataError
from moral_sc.foundation.files import read_json_object, replace_file

# %%
#| hide
import tempfile
from fastcore.test import *
tmp = Path(tempfile.mkdtemp())


# %% [markdown]
# Rows of a run carry their own checksum. Checkpoints, models and logs are files; a bit that flips in one of
# them would give other weights without an error. `manifest.json` in the folder of a run lists them with size
# and SHA-256. A file is recorded after it is complete, so that a process which is killed in between leaves a
# file that is not listed, and such a file is not used.

# %%
#| export
def _entry(path):
    with open(path, 'rb') as f: digest = hashlib.file_digest(f, 'sha256').hexdigest()
    return dict(size=os.path.getsize(path), sha256=digest)

def _files(path):
    "Return a file, or the files of a folder; temporary ones begin with a dot"
    if not path.is_dir(): return [path]
    return sorted(p for p in path.rglob('*') if p.is_file() and not p.name.startswith('.'))

class Manifest:
    "Size and SHA-256 of files in a folder, stored there as manifest.json"
    def __init__(self, folder):
        self.folder = Path(folder)
        self.path = self.folder/'manifest.json'

    def read(self)->dict: # Name in the folder -> size, sha256
        "Read the list of files; it is empty if none was recorded"
        if not self.path.exists(): return {}
        files = read_json_object(self.path)
        complete = lambda f: isinstance(f, dict) and {'size', 'sha256'}<={*f}
        if all(map(complete, files.values())): return files
        raise DataError(f'{self.path} is damaged; move the folder away and start again.')

    def name(self, path): return Path(path).relative_to(self.folder).as_posix()

    def record(self,
        *paths, # Files and folders that are complete
        forget=(), # Files and folders that are deleted next
    ):
        "List files, and drop those that are gone"
        gone = tuple(self.name(p) for p in forget)
        inside = lambda name: any(name==g or name.startswith(f'{g}/') for g in gone)
        files = {k: v for k,v in self.read().items()
                 if not inside(k) and (self.folder/k).exists()}
        files |= {self.name(f): _entry(f) for p in paths for f in _files(Path(p))}
        with replace_file(self.path) as part:
            part.write_text(json.dumps(dict(sorted(files.items())), indent=1)+'\n')

    def damage(self,
        *paths, # Files and folders; default: all that are listed
    )->dict:    # Name -> reason; empty if all are as they were recorded
        "Compare files with the list"
        files = self.read()
        names = [self.name(f) for p in paths for f in _files(Path(p))] if paths else []
        roots = [self.name(p) for p in paths] or ['']
        listed = [k for k in files for r in roots if not r or k==r or k.startswith(f'{r}/')]
        reasons = {k: self._reason(k, files.get(k)) for k in dict.fromkeys([*listed, *names])}
        return {k: r for k,r in reasons.items() if r}

    def _reason(self, name, entry):
        path = self.folder/name
        if not path.is_file(): return 'is missing'
        if entry is None: return 'is not in manifest.json'
        size = path.stat().st_size
        if size!=entry['size']: return f'has {size:,} bytes, not {entry["size"]:,}'
        return '' if _entry(path)==entry else 'has another SHA-256'

    def build(self,
        path,  # A folder of this folder
        write, # Function that writes it under the path it is given
    ):         # The path
        "Write a folder in one step, unless it is as it was recorded"
        path = Path(path)
        faults = self.damage(path)
        if not faults: return path
        for name in faults.keys() & self.read().keys():
            warnings.warn(f'{self.folder/name} {faults[name]}; {path} is written again.',
                          stacklevel=3)
            break
        part = path.with_name(f'.{path.name}.part')
        for folder in (part, path): shutil.rmtree(folder, ignore_errors=True)
        write(part)
        part.rename(path)
        self.record(path)
        return path

    def check(self, *paths):
        "Raise an error that names the first file which differs from the list"
        for name,reason in self.damage(*paths).items():
            raise DataError(f'{self.folder/name} {reason}, so it is damaged; restore it, or move '
                            f'{self.folder} away and start again.')


# %%
(tmp/'model').mkdir()
(tmp/'model'/'weights').write_bytes(b'1234')
(tmp/'history.jsonl').write_text('{"step": 1}\n')
manifest = Manifest(tmp)
manifest.record(tmp/'model', tmp/'history.jsonl')
manifest.check()
manifest.read()

# %%
(tmp/'model'/'weights').write_bytes(b'1235')
(tmp/'model'/'more').touch()
(tmp/'history.jsonl').unlink()
manifest.damage(), manifest.damage(tmp/'model')

# %% [markdown]
# Each fault has its reason, and `check` raises an error for the first.

# %%
test_eq(manifest.damage(), {'history.jsonl': 'is missing', 'model/weights': 'has another SHA-256'})
test_eq(manifest.damage(tmp/'model')['model/more'], 'is not in manifest.json')
with expect_fail(DataError, contains='model/weights has another SHA-256, so it is damaged'):
    manifest.check(tmp/'model')
(tmp/'model'/'weights').write_bytes(b'12')
test_eq(manifest.damage(tmp/'model'/'weights'), {'model/weights': 'has 2 bytes, not 4'})
manifest.record(tmp/'model', forget=[tmp/'model'/'more'])
test_eq([*manifest.read()], ['model/more', 'model/weights'])
manifest.record(forget=[tmp/'model'])
test_eq(manifest.read(), {})


# %% [markdown]
# `build` writes a folder unless it is there and complete. Files that a killed process left are removed.

# %%
def write(folder):
    folder.mkdir()
    (folder/'weights').write_text('new')
    writes.append(folder.name)

writes = []
(tmp/'.final.part').mkdir()
for _ in range(2): manifest.build(tmp/'final', write)
(tmp/'final'/'weights').write_text('old')
with warnings.catch_warnings(record=True) as caught: manifest.build(tmp/'final', write)
test_eq((writes, (tmp/'final'/'weights').read_text()), (['.final.part']*2, 'new'))
str(caught[0].message).replace(str(tmp), '…')

# %%
#| hide
for text in ('[]', '{"a": 1}', 'null', '{', '['*9999, '\x00', '{"a": {}}'):
    manifest.path.write_text(text)
    with expect_fail(DataError, contains='manifest.json is damaged'): manifest.damage()
manifest.path.unlink()
test_eq((Manifest(tmp/'none').damage(), Manifest(tmp).damage(tmp/'model'/'gone')),
        ({}, {'model/gone': 'is missing'}))
