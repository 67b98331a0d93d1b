# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Hooks
#
# > Check notebooks, twins and modules before each commit so that no edit is lost.

# %%
#| default_exp lab.hooks

# %%
#| export
import configparser, json, os, re, subprocess, sys, tempfile
from pathlib import Path

from moral_sc.foundation.errors import ConfigError, MoralScError, unknown_name_message
from moral_sc.foundation.files import write_file
from moral_sc.lab.paths import visible_notebooks

# %%
#| hide
import shutil

import nbformat
from fastcore.test import *


# %% [markdown]
# Each page exists three times: the notebook, its twin in `nbs/_py`, and the module that it exports.
# Tools that copy one over the other can lose an edit. The hooks of this module run before each commit,
# stop where an edit would be lost, and name the cell and the command that helps:
#
# ```sh
# python -m moral_sc.lab.hooks CHECK [FILE]...     # without files: every page
# ```
#
# | check | fails if |
# | --- | --- |
# | `notebooks` | a notebook is not JSON, or has conflict markers |
# | `modules` | an exported module was edited and its page was not |
# | `pairs` | notebook and twin were both edited and differ |
# | `scale` | outputs of a smaller scale replace recorded ones |
# | `layout` | a line of code is too long, or a directive is not at the top of its cell |
#
# | command | writes |
# | --- | --- |
# | `clean` | notebooks without what JupyterLab adds |
# | `sync` | the twin or notebook that was not edited |
# | `take-twin` | notebooks from their twins; outputs are kept |
# | `take-notebook` | twins from their notebooks |
# | `claims` | recorded verdicts, as the criteria files judge and word them today |
# | `merge` | both, from the edits of both |
#
# ## Files

# %%
#| export
def _git(root, *args, ok=(0,)):
    "Output of a git command, or None if it fails"
    command = ['git', '-C', root, *args]
    run = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
    return run.stdout if run.returncode in ok else None

def _text_at_head(root, path):
    "Text of a file at HEAD, '' if it is not there"
    return _git(root, 'show', f'HEAD:{path.relative_to(root).as_posix()}') or ''

def twin_of(
    root:Path, # Of the repository
    page:Path, # A notebook
)->Path:
    "Return the path of a notebook's twin"
    return root/'nbs'/'_py'/page.relative_to(root/'nbs').with_suffix('.py')

def find_notebooks(
    root:Path,  # Of the repository
    files=None, # Notebooks or twins; None: every page
)->list:
    "List the notebooks that belong to files"
    nbs = root/'nbs'
    if files is None: return visible_notebooks(nbs)
    paths = [(root/f).resolve() for f in files]
    pairs = {p: nbs/p.relative_to(nbs/'_py').with_suffix('.ipynb') for p in paths
             if p.suffix=='.py' and p.is_relative_to(nbs/'_py')}
    pages = [pairs.get(p, p) for p in paths]
    return sorted({p for p in pages if p.suffix=='.ipynb' and p.is_relative_to(nbs)})


# %% [markdown]
# The sections below use a small repository with one page.

# %%
#| hide
def make_repository():
    "Make a git repository with one recorded page"
    root = Path(tempfile.mkdtemp()).resolve()
    for folder in ('nbs/_py', 'lib'): (root/folder).mkdir(parents=True)
    (root/'jupytext.toml').write_text('notebook_metadata_filter = "kernelspec,-jupytext"\n'
                                      'cell_metadata_filter = "tags,-all"\n')
    (root/'settings.ini').write_text(
        '[DEFAULT]\nlib_path = lib\nnbs_path = nbs\nallowed_metadata_keys = jupytext moral_sc\n'
        'allowed_cell_metadata_keys = tags\n')
    cells = [nbformat.v4.new_markdown_cell('# Pendulum'),
             nbformat.v4.new_code_cell('period = 2.0'),
             nbformat.v4.new_code_cell('period*2')]
    nb = nbformat.v4.new_notebook(cells=cells)
    nb.metadata['kernelspec'] = dict(name='python3', language='python', display_name='python3')
    output = nbformat.v4.new_output('execute_result', data={'text/plain': '4.0'})
    nb.cells[2].outputs = [output]
    nbformat.write(nb, root/'nbs/pendulum.ipynb')
    for args in [('init', '-q', '-b', 'main'), ('config', 'user.name', 'a'),
                 ('config', 'user.email', 'a@example.org'), ('config', 'commit.gpgsign', 'false')]:
        _git(root, *args)
    return root, root/'nbs/pendulum.ipynb'

def commit(root): _git(root, 'add', '-A'); _git(root, 'commit', '-qm', 'change')

def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))

def source(page, i): return nbformat.read(page, 4).cells[i].source


# %% [markdown]
# ## Notebook and twin
#
# A twin is the notebook as a Python file, without outputs. `take_notebook` writes the twin, `take_twin`
# writes the notebook and keeps the outputs of cells that did not change. Cell metadata and kernel
# metadata are filtered as `jupytext.toml` says.

# %%
#| export
_MARKER = re.compile(r'^(?:# )?`?(?:<{7}|={7}|>{7})(?: .*)?`?$', re.M)

def _filters(root):
    import tomllib
    config = tomllib.loads((root/'jupytext.toml').read_text())
    return {k: config[k] for k in ('notebook_metadata_filter', 'cell_metadata_filter')}

def _read_twin(root, text):
    import jupytext
    nb = jupytext.reads(text, fmt='py:percent')
    nb.metadata['jupytext'] = _filters(root)
    return nb

def _as_twin(root, nb):
    "The twin's text of a notebook"
    import jupytext
    nb.metadata['jupytext'] = _filters(root)
    return jupytext.writes(nb, fmt='py:percent')

def _read_notebook(text):
    import nbformat
    return nbformat.reads(text, 4)

def _is_notebook(text):
    try: _read_notebook(text)
    except Exception: return False
    return True

def take_notebook(root:Path, page:Path):
    "Write the twin from its notebook"
    write_file(twin_of(root, page), _as_twin(root, _read_notebook(page.read_text())))

def take_twin(root:Path, page:Path):
    "Write the notebook from its twin; outputs of unchanged cells are kept"
    from jupytext.combine import combine_inputs_with_outputs
    from moral_sc.lab.execution import notebook_text
    text = twin_of(root, page).read_text()
    if _MARKER.search(text):
        name = twin_of(root, page).relative_to(root)
        raise ConfigError(f'{name} has conflict markers: resolve them first.')
    nb = _read_twin(root, text)
    texts = [page.read_text() if page.is_file() else '', _text_at_head(root, page)]
    recorded = next((_read_notebook(t) for t in texts if _is_notebook(t)), None)
    if recorded: nb = combine_inputs_with_outputs(nb, recorded, 'py:percent')
    write_file(page, _cleaned(root, notebook_text(_with_ids(nb))))
    take_notebook(root, page)

def _with_ids(nb):
    from uuid import uuid4
    nb.nbformat_minor = 5
    for c in nb.cells: c.setdefault('id', uuid4().hex[:8])
    return nb


# %% [markdown]
# ## Cleaning
#
# JupyterLab names the kernel differently, stores execution counts, and rewrites `0.0` as `0` in the
# data of figures. `clean` undoes this: it does what `nbdev_clean` does, and writes integral numbers
# in JSON outputs as integers. Rerunning a page in JupyterLab therefore changes only outputs whose
# values changed.

# %%
#| export
def _integral(x):
    "JSON data with integral numbers as integers"
    if isinstance(x, dict): return {k: _integral(v) for k,v in x.items()}
    if isinstance(x, list): return [_integral(v) for v in x]
    return int(x) if isinstance(x, float) and x.is_integer() and abs(x)<1e21 else x

def _settings(root):
    config = configparser.ConfigParser()
    config.read(root/'settings.ini')
    return config['DEFAULT']

def _cleaned(root, text):
    from nbdev.clean import clean_nb
    nb = json.loads(text)
    keys = ('allowed_metadata_keys', 'allowed_cell_metadata_keys')
    clean_nb(nb, **{k: _settings(root).get(k, '').split() for k in keys})
    nb['metadata']['jupytext'] = _filters(root)
    data = [o['data'] for c in nb['cells'] for o in c.get('outputs', []) if 'data' in o]
    for d in data: d |= {k: _integral(v) for k,v in d.items() if k.endswith('json')}
    return json.dumps(nb, sort_keys=True, indent=1, ensure_ascii=False)+'\n'

def clean_notebook(root:Path, page:Path):
    "Remove what JupyterLab adds to a notebook"
    write_file(page, _cleaned(root, page.read_text()))


# %%
root,page = make_repository()
clean_notebook(root, page)
take_notebook(root, page)
commit(root)
print(twin_of(root, page).read_text())

# %% [markdown]
# A rerun in JupyterLab and its cleaning leave the files as they were:

# %%
nb = nbformat.read(page, 4)
figure = {'application/vnd.plotly.v1+json': dict(data=[dict(x=[0., .5, 1.], y=[1e300, 2., None])])}
nb.cells[2].outputs.append(nbformat.v4.new_output('display_data', data=figure))
nbformat.write(nb, page)
clean_notebook(root, page)
commit(root)

# %%
nb = nbformat.read(page, 4)
nb.metadata['kernelspec']['display_name'] = 'Python 3 (ipykernel)'
nb.metadata['language_info'] = dict(name='python', version='3.12.1')
nb.cells[2].execution_count = 7
nb.cells[2].outputs[1].data['application/vnd.plotly.v1+json']['data'][0]['x'] = [0, .5, 1]
nbformat.write(nb, page)
changed = _git(root, 'diff', '--stat')
clean_notebook(root, page)
test_eq(_git(root, 'diff'), '')
print(changed)

# %% [markdown]
# The outputs and ids of a page survive a change of its twin:

# %%
twin = twin_of(root, page)
before = nbformat.read(page, 4)
edit(twin, '# # Pendulum', '# # Pendulums')
take_twin(root, page)
after = nbformat.read(page, 4)
test_eq(after.cells[0].source, '# Pendulums')
test_eq([c.id for c in after.cells], [c.id for c in before.cells])
test_eq(after.cells[2].outputs, before.cells[2].outputs)
test_eq(len(_git(root, 'diff', '-U0', str(page)).splitlines()), 7)
commit(root)


# %% [markdown]
# ## Edits in both files
#
# `jupytext --sync` copies the newer file over the older one. If you edit one cell in the notebook and
# another in the twin, one of the edits is lost. `sync` compares both files with `HEAD` instead: it takes
# the one that was edited, and `pairs` fails if both were. Modification times do not matter. An edit that
# is in both files is no conflict: if the edits of one file contain those of the other, that file is taken.

# %%
#| export
def _cells(nb):
    return [(c.cell_type, c.source.strip(), tuple(c.metadata.get('tags', ()))) for c in nb.cells]

def _twin_cells(root, text): return _cells(_read_twin(root, text)) if text else []

def _merged_text(base, first, second):
    "Three texts merged by git, and the number of conflicts"
    with tempfile.TemporaryDirectory() as t:
        paths = [Path(t)/name for name in ('notebook', 'HEAD', 'twin')]
        for p,text in zip(paths, (first, base, second), strict=True): p.write_text(text)
        labels = [a for p in paths for a in ('-L', p.name)]
        command = ['git', 'merge-file', '-p', *labels, *paths]
        run = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
    return run.stdout, run.returncode

def edited_side(
    root:Path, # Of the repository
    page:Path, # A notebook
)->str:        # 'notebook', 'twin', 'both' or '' if they agree
    "Return which file of a pair was edited since HEAD"
    twin = twin_of(root, page)
    if not twin.is_file(): return 'notebook'
    if not page.is_file(): return 'twin'
    texts = _as_twin(root, _read_notebook(page.read_text())), twin.read_text()
    notebook_cells,twin_cells = (_twin_cells(root, t) for t in texts)
    if notebook_cells==twin_cells: return ''
    head = _text_at_head(root, page)
    base = _as_twin(root, _read_notebook(head)) if head else ''
    if twin_cells==_twin_cells(root, _text_at_head(root, twin)): return 'notebook'
    if notebook_cells==_twin_cells(root, base): return 'twin'
    merged,conflicts = _merged_text(base, *texts)
    if conflicts or not base: return 'both'
    sides = {'notebook': notebook_cells, 'twin': twin_cells}
    return next((k for k,c in sides.items() if c==_twin_cells(root, merged)), 'both')

def sync(root:Path, page:Path):
    "Carry the edits of a notebook or twin into the other file"
    side = edited_side(root, page)
    if side=='both': raise ConfigError(check_pair(root, page))
    (take_twin if side=='twin' else take_notebook)(root, page)


# %%
#| export
def check_pair(root:Path, page:Path)->str:
    "Name the first cell that differs if notebook and twin were both edited"
    if edited_side(root, page)!='both': return ''
    twin = twin_of(root, page)
    first = _cells(_read_notebook(page.read_text()))
    second = _twin_cells(root, twin.read_text())
    shared = min(len(first), len(second))
    i = next((i for i in range(shared) if first[i]!=second[i]), shared)
    line = ((first[i:] or second[i:])[0][1].splitlines() or [''])[0]
    name = page.relative_to(root).as_posix()
    return (f'{name} and {twin.relative_to(root).as_posix()} were both edited and differ, first in '
            f'cell {i} ({line[:40]!r}): run `python -m moral_sc.lab.hooks merge {name}`.')

def merge_pair(root:Path, page:Path):
    "Merge the edits of notebook and twin into both"
    twin = twin_of(root, page)
    base = _text_at_head(root, page)
    base = _as_twin(root, _read_notebook(base)) if base else ''
    text = _as_twin(root, _read_notebook(page.read_text()))
    merged,conflicts = _merged_text(base, text, twin.read_text())
    write_file(twin, merged)
    if not conflicts: take_twin(root, page); return
    name = twin.relative_to(root).as_posix()
    raise ConfigError(f'{name} now has {conflicts} conflicts: resolve them there, then run '
                      f'`python -m moral_sc.lab.hooks take-twin {name}`.')


# %% [markdown]
# One edit in each file: `pairs` names the first cell that differs, and `merge` keeps both edits.

# %%
edit(page, 'period = 2.0', 'period = 3.0')
edit(twin, 'period*2', 'period*4')
print(check_pair(root, page))

# %%
with expect_fail(ConfigError, contains='both edited and differ, first in cell 1'): sync(root, page)
merge_pair(root, page)
test_eq([source(page, i) for i in (1, 2)], ['period = 3.0', 'period*4'])
test_eq((check_pair(root, page), edited_side(root, page)), ('', ''))
commit(root)

# %% [markdown]
# One edit decides the direction, whichever file is newer:

# %%
edit(twin, 'period = 3.0', 'period = 4.0')
os.utime(twin, (0, 0))
sync(root, page)
test_eq(source(page, 1), 'period = 4.0')
edit(page, 'period = 4.0', 'period = 5.0')
os.utime(page, (0, 0))
with expect_fail(ConfigError): sync(root, page) # the twin has another value than HEAD, too
take_notebook(root, page)
assert 'period = 5.0' in twin.read_text()
commit(root)

# %% [markdown]
# Two edits of one line are a conflict, which you resolve in the twin.

# %%
edit(page, 'period = 5.0', 'period = 6.0')
edit(twin, 'period = 5.0', 'period = 7.0')
with expect_fail(ConfigError, contains='1 conflicts: resolve them there'): merge_pair(root, page)
with expect_fail(ConfigError, contains='has conflict markers'): take_twin(root, page)
lines = twin.read_text().splitlines(keepends=True)
twin.write_text(''.join(l for l in lines if not _MARKER.match(l) and '6.0' not in l))
take_twin(root, page)
test_eq(source(page, 1), 'period = 7.0')
commit(root)


# %% [markdown]
# ## Merge conflicts
#
# If two branches change the same line, git writes conflict markers into both files. With nbdev's merge
# driver (CONTRIBUTING has the command) the notebook stays readable and shows both versions as cells.
# Without the driver it is not JSON any more. In both cases you resolve the twin, then run `take-twin`.

# %%
#| export
def check_notebook(root:Path, page:Path)->str:
    "Explain how to repair a notebook that is not JSON or has conflict markers"
    if not page.is_file(): return ''
    twin = twin_of(root, page).relative_to(root).as_posix()
    text = page.read_text()
    state = '' if _is_notebook(text) else 'is not a notebook (a merge conflict?)'
    if not state and any(_MARKER.search(c.source) for c in _read_notebook(text).cells):
        state = 'has conflict markers'
    if not state: return ''
    name = page.relative_to(root).as_posix()
    return (f'{name} {state}: resolve the conflict in {twin}, then run '
            f'`python -m moral_sc.lab.hooks take-twin {twin}`.')


# %%
_git(root, 'checkout', '-qb', 'other')
for branch,value in [('other', '8.0'), ('main', '9.0')]:
    _git(root, 'checkout', '-q', branch)
    edit(twin, 'period = 7.0', f'period = {value}')
    take_twin(root, page)
    commit(root)
_git(root, 'merge', 'other', ok=(0, 1))
print(check_notebook(root, page))

# %%
assert 'is not a notebook' in check_notebook(root, page)
lines = twin.read_text().splitlines(keepends=True)
twin.write_text(''.join(l for l in lines if not _MARKER.match(l) and '8.0' not in l))
take_twin(root, page)
test_eq((source(page, 1), check_notebook(root, page)), ('period = 9.0', ''))
commit(root)
test_eq(_git(root, 'status', '--porcelain'), '')

# %% [markdown]
# The same with nbdev's driver: the notebook can be opened, and has markers.

# %%
driver = f'{Path(sys.executable).parent}/nbdev_merge %O %A %B %P'
_git(root, 'config', 'merge.nbdev-merge.driver', driver)
(root/'.gitattributes').write_text('*.ipynb merge=nbdev-merge\n')
commit(root)
_git(root, 'checkout', '-qb', 'third')
for branch,value in [('third', '1.0'), ('main', '2.0')]:
    _git(root, 'checkout', '-q', branch)
    edit(twin, 'period = 9.0', f'period = {value}')
    take_twin(root, page)
    commit(root)
_git(root, 'merge', 'third', ok=(0, 1))
assert _is_notebook(page.read_text()) and 'has conflict markers' in check_notebook(root, page)
lines = twin.read_text().splitlines(keepends=True)
twin.write_text(''.join(l for l in lines if not _MARKER.match(l) and '1.0' not in l))
take_twin(root, page)
test_eq((source(page, 1), check_notebook(root, page)), ('period = 2.0', ''))
commit(root)


# %% [markdown]
# ## Edited modules
#
# `nbdev_export` writes modules from pages, so it would overwrite an edit of a module. `modules` fails if
# a module is staged, its page is not, and the module is not what the page exports. `nbdev_update` carries
# the edit back into the page.

# %%
#| export
def _export(root, page):
    "Write the module of a page"
    code = 'import sys; from nbdev.export import nb_export; nb_export(*sys.argv[1:])'
    lib = _settings(root).get('lib_path', 'moral_sc')
    run = subprocess.run([sys.executable, '-c', code, page, lib], cwd=root,  # noqa: S603
                         capture_output=True, text=True)
    if run.returncode: raise ConfigError(f'{page} cannot be exported: {run.stderr.strip()[-300:]}')

def _is_export(root, name, page):
    "Whether a module is what its page exports; the module is left as it is"
    module = root/name
    staged = module.read_bytes()
    try:
        _export(root, page)
        return module.read_bytes()==staged
    finally: module.write_bytes(staged)

def _unlisted_packages(root):
    "List packages of `moral_sc` that a wheel would leave out"
    import tomllib
    file = root/'pyproject.toml'
    if not file.is_file(): return []
    listed = tomllib.loads(file.read_text())['tool']['setuptools']['packages']
    found = {'.'.join(p.parent.relative_to(root).parts)
             for p in (root/'moral_sc').rglob('__init__.py')}
    return [f'pyproject.toml does not list {p}: add it to the packages of setuptools.'
            for p in sorted(found-{*listed})]

def check_modules(root:Path)->list:
    "List staged modules that are not what their pages export, and packages missing in the wheel"
    staged = (_git(root, 'diff', '--cached', '--name-only', '--diff-filter=AM') or '').splitlines()
    staged_pages = {p.relative_to(root).as_posix() for p in find_notebooks(root, staged)}
    res = []
    for name in (s for s in staged if s.endswith('.py')):
        text = _git(root, 'show', f':{name}') or ''
        m = re.search(r'^# AUTOGENERATED! DO NOT EDIT! File to edit: (.+)\.$', text, re.M)
        page = m and Path(os.path.normpath(Path(name).parent/m[1])).as_posix()
        if page and page not in staged_pages and not _is_export(root, name, page):
            res.append(f'{name} was edited and its page {page} was not: run `nbdev_update --fname '
                       f'{name}`, then `git add nbs`.')
    return res+_unlisted_packages(root)


# %%
edit(twin, 'period = 2.0', '#| default_exp pendulum\n\n# %%\n#| export\nperiod = 2.0')
take_twin(root, page)
_export(root, 'nbs/pendulum.ipynb')
module = root/'lib/pendulum.py'
_git(root, 'add', 'lib')
test_eq(check_modules(root), []) # the module of the page
commit(root)
edit(module, 'period = 2.0', 'period = 1.0')
_git(root, 'add', 'lib')
check_modules(root)

# %%
test_eq(len(check_modules(root)), 1)
assert 'period = 1.0' in module.read_text()
_git(root, 'checkout', 'HEAD', 'lib')

# %%
(root/'moral_sc/new').mkdir(parents=True)
(root/'moral_sc/new/__init__.py').touch()
(root/'pyproject.toml').write_text('[tool.setuptools]\npackages = ["moral_sc"]\n')
test_eq(check_modules(root), ['pyproject.toml does not list moral_sc.new: add it to the packages '
                              'of setuptools.'])
shutil.rmtree(root/'moral_sc')
(root/'pyproject.toml').unlink()


# %% [markdown]
# ## Recorded scale
#
# Paper pages are recorded at scale `cpu` or larger. If you run one at `quick` in JupyterLab, its outputs
# and verdicts change. `scale` fails if the outputs of a page come from a smaller scale than those at
# `HEAD`.

# %%
#| export
def check_recorded_scale(root:Path, page:Path)->str:
    "Explain how to keep the recorded outputs of a page that was run at a smaller scale"
    from moral_sc.lab.recording import check_scale, recorded_scale
    text = _text_at_head(root, page)
    if not text or not page.is_file(): return ''
    name = page.relative_to(root).as_posix()
    scales = [recorded_scale(_read_notebook(t)) for t in (text, page.read_text())]
    try: check_scale(name, *scales)
    except ConfigError as e: return str(e)
    return ''


# %%
def record_claim(scale):
    nb = nbformat.read(page, 4)
    data = {'application/vnd.moral_sc.claims+json': dict(claims=[dict(scale=scale)])}
    nb.cells[-1].outputs = [nbformat.v4.new_output('display_data', data=data)]
    nbformat.write(nb, page)

for scale in ('quick', 'cpu'):
    record_claim(scale)
    test_eq(check_recorded_scale(root, page), '')
    commit(root)
record_claim('quick')
check_recorded_scale(root, page)

# %%
assert 'is recorded at scale cpu' in check_recorded_scale(root, page)
_git(root, 'checkout', 'nbs')

# %% [markdown]
# ## Layout of cells
#
# The site shows code within 100 characters a line. A directive such as `#| label` counts only at the top
# of a cell; elsewhere the page would show it as code. Lines of modules are checked here as well, because
# every line of a module comes from a page, except for `__all__`, which nbdev writes.

# %%
#| export
WIDTH = 100 # Characters of a line of code, at most

def check_layout(root:Path, page:Path)->list:
    "List lines of code that are too long and directives that are not at the top of a cell"
    if not page.is_file(): return []
    name = page.relative_to(root).as_posix()
    res = []
    for i,c in enumerate(_read_notebook(page.read_text()).cells):
        if c.cell_type!='code': continue
        top = True
        for k,line in enumerate(c.source.splitlines(), 1):
            directive = line.startswith('#|')
            place = f'{name}, cell {i}, line {k}'
            if directive and not top: res.append(f'{place}: move {line!r} to the top of a cell.')
            elif len(line)>WIDTH and not directive:
                res.append(f'{place} has {len(line)} characters: break it at {WIDTH}.')
            top = top and (directive or not line.strip())
    return res


# %%
test_eq(check_layout(root, page), [])
edit(twin, 'period*4', 'period*4  # '+'x'*100+'\n#| label: fig-period')
take_twin(root, page)
check_layout(root, page)

# %%
test_eq(len(check_layout(root, page)), 2)
_git(root, 'checkout', 'nbs')


# %% [markdown]
# ## Command

# %%
#| export
def show_verdicts(root:Path, page:Path):
    "Show the recorded claims of a paper page as the criteria files judge and word them today"
    from moral_sc.lab.recording import render_claims
    if not page.is_relative_to(root/'nbs'/'papers'): return
    render_claims(page, root/'data'/'claims')
    clean_notebook(root, page)

_CHECKS = dict(notebooks=check_notebook, pairs=check_pair, scale=check_recorded_scale,
               layout=check_layout)
_COMMANDS = {'clean': clean_notebook, 'sync': sync, 'take-twin': take_twin,
             'take-notebook': take_notebook, 'merge': merge_pair, 'claims': show_verdicts}

def _problems(root, name, page):
    try: problems = (_CHECKS|_COMMANDS)[name](root, page)
    except MoralScError as e: problems = str(e)
    except ValueError: problems = check_notebook(root, page)
    return [problems] if isinstance(problems, str) else problems or []

def run_hook(
    args:list=None, # Name of a check or command, then files; default: those of the process
)->int:             # 1 if a check fails
    "Run one check or command, and print what it finds"
    name,*files = (sys.argv[1:] if args is None else args) or ['']
    root = Path((_git('.', 'rev-parse', '--show-toplevel') or '.').strip()).resolve()
    known = ['modules', *_CHECKS, *_COMMANDS]
    if name not in known:
        print(unknown_name_message('check', name, known), file=sys.stderr)
        return 2
    if name=='modules': problems = check_modules(root)
    else:
        pages = find_notebooks(root, files or None)
        problems = [m for p in pages for m in _problems(root, name, p) if m]
    print(*problems, sep='\n', end='\n'*bool(problems))
    return int(bool(problems))

if __name__=='__main__' and '__file__' in globals(): sys.exit(run_hook())

# %%
#| hide
os.chdir(root)

# %%
command = [sys.executable, '-m', 'moral_sc.lab.hooks', 'piars']
done = subprocess.run(command, capture_output=True, text=True)
done.returncode, done.stderr

# %%
test_eq(done.returncode, 2)
for name in ['modules', 'notebooks', 'pairs', 'scale', 'layout', 'clean', 'sync']:
    test_eq(run_hook([name]), 0)

# %% [markdown]
# A notebook that was cut off is restored from its twin and `HEAD`.

# %%
page.write_text(page.read_text()[:100])
for name in ['pairs', 'clean', 'sync']: test_eq(run_hook([name, 'nbs/pendulum.ipynb']), 1)
test_eq(run_hook(['take-twin', 'nbs/_py/pendulum.py']), 0)
test_eq(_git(root, 'status', '--porcelain'), '')
