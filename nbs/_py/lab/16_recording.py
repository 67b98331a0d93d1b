# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Recording
#
# > Run a page and store its outputs in the committed notebook.

# %%
#| default_exp lab.recording

# %%
#| export
import os, tempfile

from moral_sc.foundation.errors import ConfigError
from moral_sc.foundation.files import write_file
from moral_sc.lab.claims import claims_mime, claims_of, rejudge
from moral_sc.lab.execution import Result, execute, notebook_text, read_notebook
from moral_sc.lab.scales import SCALES, validate_scale

# %%
#| hide
from pathlib import Path

import nbformat
from fastcore.test import *

tmp = Path(tempfile.mkdtemp())

def write(name, *cells):
    "Write a notebook whose first cell holds its parameters"
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    nb.cells[0].metadata['tags'] = ['parameters']
    nbformat.write(nb, tmp/f'{name}.ipynb')
    return tmp/f'{name}.ipynb'


# %% [markdown]
# The committed pages keep their outputs, because the outputs are what you read on the site. Recording
# runs a page in a fresh kernel and copies the outputs cell by cell into the committed notebook. It
# leaves out what changes from run to run: execution counts, and what libraries write to stderr.
#
# ## Recorded scale
#
# Paper pages are recorded at a larger scale than the tests run at. `recorded_scale` reads the scale
# from the claims among the outputs, or from the notebook's metadata.

# %%
#| export
def recorded_scale(
    nb, # A notebook, as read
)->str: # '' if the page records none
    "Return the scale at which the outputs of a page were made"
    recorded = nb.metadata.get('moral_sc', {}).get('scale', '')
    return max((r['scale'] for r in claims_of(nb)), key=SCALES.index, default=recorded)

def check_scale(
    name,      # Of the page, for the message
    recorded,  # Scale of the outputs there, '' if none
    scale,     # Scale of the outputs that would replace them, '' if unknown
):
    "Raise a `ConfigError` if a scale is unknown or smaller than the recorded one"
    for s in filter(None, (recorded, scale)): validate_scale(s)
    if recorded and scale and SCALES.index(scale)<SCALES.index(recorded):
        raise ConfigError(f'{name} is recorded at scale {recorded}, which is larger than {scale}: '
                          f'run `moral_sc record {name} --scale {recorded}`, or add '
                          '`--allow-smaller`.')


# %%
with expect_fail(ConfigError, contains='recorded at scale cpu'):
    check_scale('a.ipynb', 'cpu', 'quick')
with expect_fail(ConfigError, contains="did you mean 'quick'?"): check_scale('a.ipynb', '', 'quik')
for recorded,scale in [('', 'quick'), ('cpu', 'cpu'), ('quick', 'gpu'), ('cpu', '')]:
    check_scale('a.ipynb', recorded, scale)


# %% [markdown]
# ## One page

# %%
#| export
def record_page(
    notebook,            # Committed page; the outputs are written into it
    scale=None,          # quick | cpu | gpu; default: the recorded scale, otherwise as written
    pictures=None,       # Add a PNG of each figure; default: on the papers' pages
    progress=None,       # Called as progress(cell, cells)
    allow_smaller=False, # Replace outputs of a larger scale
)->Result:               # A failing page is left unchanged
    "Run a page and store its outputs in it"
    from moral_sc.lab.site.outputs import copy_outputs
    recorded = recorded_scale(read_notebook(notebook))
    scale = scale or recorded
    check_scale(notebook, '' if allow_smaller else recorded, scale)
    runs = dict(MORAL_SC_RUNS=os.environ.get('MORAL_SC_RUNS', ''))
    with tempfile.TemporaryDirectory() as t:
        run = f'{t}/run.ipynb'
        res = execute(notebook, run, dict(scale=scale) if scale else {}, progress, runs)
        if res.ok: copy_outputs(run, notebook, pictures)
    return res


# %%
noisy = write('noisy', "scale = 'quick'",
              'import sys; print("warning", file=sys.stderr); scale')
record_page(noisy, 'cpu')
cell = read_notebook(noisy).cells[-1]
cell.outputs

# %%
test_eq([o.data['text/plain'] for o in cell.outputs], ["'cpu'"])
test_eq(len(read_notebook(noisy).cells), 2)

# %% [markdown]
# A page that fails is left unchanged.

# %%
broken = write('broken', "scale = 'quick'", '1/0')
before = broken.read_bytes()
assert not record_page(broken).ok
test_eq(broken.read_bytes(), before)

# %% [markdown]
# Outputs of a larger scale are replaced only on request. Without a scale, a page is recorded at the
# scale it had.

# %%
claim = nbformat.v4.new_output('display_data', data={claims_mime: dict(claims=[dict(scale='cpu')])})
nb = read_notebook(noisy)
nb.cells[-1].outputs.append(claim)
nbformat.write(nb, noisy)
with expect_fail(ConfigError, contains='recorded at scale cpu'): record_page(noisy, 'quick')
record_page(noisy)
test_eq(read_notebook(noisy).cells[-1].outputs[0].data['text/plain'], "'cpu'")


# %% [markdown]
# ## Verdicts
#
# A page stores estimates and shows the verdicts of the day it ran. When the wording of a claim or the
# way of judging changes, the verdicts are computed anew from the stored estimates. A claim
# whose criterion changed keeps its output: its page has to run again.

# %%
#| export
def render_claims(
    notebook, # Recorded page
    path=None, # Folder of criteria, default: ours
):
    "Show the claims of a recorded page as the criteria files judge and word them today"
    nb = read_notebook(notebook)
    for out in (o for c in nb.cells for o in c.get('outputs', [])):
        rows = out.get('data', {}).get(claims_mime, {}).get('claims')
        if rows: out.data.update(rejudge(rows, path)._repr_mimebundle_())
    write_file(notebook, notebook_text(nb))


# %%
criterion = dict(id='p/a', paper='p', section='1', sentence='It is large.', criterion='At least 2.',
                 quantity='size', at_least=2, scale='quick', whose='paper', draws='nothing')
def criteria_of(**change):
    lines = [f'{k} = {v!r}' for k,v in (criterion|change).items()]
    write_file(tmp/'claims'/'p.toml', '\n'.join(['[[claim]]', *lines]))
    return tmp/'claims'

from moral_sc.lab.claims import judge_all

out = judge_all('quick', {'p/a': 3.}, criteria_of())._repr_mimebundle_()
nb = read_notebook(noisy)
nb.cells[-1].outputs = [nbformat.v4.new_output('display_data', data=out)]
nbformat.write(nb, noisy)
render_claims(noisy, criteria_of(sentence='It is very large.', closed='too easy'))
shown = read_notebook(noisy).cells[-1].outputs[0].data['text/markdown']
print(shown)

# %%
assert 'It is very large.' in shown and 'closed: too easy. By its criterion: holds' in shown
render_claims(noisy, criteria_of(at_least=4))
assert 'fails' not in read_notebook(noisy).cells[-1].outputs[0].data['text/markdown']
