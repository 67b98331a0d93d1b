# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Recorded outputs
#
# > Copies the outputs of a run into its page and adds a PNG of each figure.

# %%
#| default_exp lab.site.outputs

# %%
#| export
import base64, io, re
from contextlib import contextmanager
from pathlib import Path

from moral_sc.foundation.errors import ConfigError
from moral_sc.foundation.runs import provenance
from moral_sc.lab.execution import parameter_values
from moral_sc.lab.paths import visible_notebooks
from moral_sc.lab.site.interactive import find_browser
from moral_sc.lab.site.pages import is_paper_page, plotly_mime, record_line

# %%
#| hide
import json
import tempfile

import nbformat
import plotly.graph_objects as go
from fastcore.test import *

tmp = Path(tempfile.mkdtemp())
code = nbformat.v4.new_code_cell
prose = nbformat.v4.new_markdown_cell


# %% [markdown]
# `moral_sc record` runs a page elsewhere and then copies the outputs into the committed notebook.
# GitHub and nbconvert do not draw plotly figures, so the outputs of a paper's page also contain a
# PNG of each figure. The site and the report show the interactive figure.
#
# ## Pictures
#
# Kaleido draws a plotly figure in a Chromium without a window. Starting it takes seconds, so one
# browser draws all figures of a call.

# %%
#| export
@contextmanager
def drawing_browser():
    "Keep one browser open while figures are drawn."
    try: import kaleido
    except ImportError:
        raise ConfigError('Pictures need kaleido: pip install "moral_sc[docs]".') from None
    if not find_browser():
        raise ConfigError('Pictures need Chromium: install it, or set BROWSER_PATH to it. Outputs '
                          'are kept; `moral_sc site pictures` adds the pictures later.')
    kaleido.start_sync_server(silence_warnings=True)
    try: yield
    finally: kaleido.stop_sync_server(silence_warnings=True)

def figure_png(
    spec:dict,        # Plotly figure as JSON
    scale:float=1.,   # Pixels of the picture per pixel of the figure
    colours:int=128,  # Of its palette, which makes the file about four times smaller
)->bytes:
    "Draw a plotly figure as a PNG on white."
    import kaleido
    from PIL import Image
    layout = spec['layout'] | dict(paper_bgcolor='white')
    options = dict(format='png', scale=scale)
    png = kaleido.calc_fig_sync(dict(data=spec['data'], layout=layout), opts=options)
    image = Image.open(io.BytesIO(png)).convert('RGB')
    # The octree keeps the colours of thin lines, which the default method merges
    image = image.quantize(colours, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    image.save(buffer, 'png', optimize=True)
    return buffer.getvalue()

def _outputs(nb): return [o for c in nb.cells if c.cell_type=='code' for o in c.outputs]

def add_pictures(
    pages,             # Notebooks, or folders of notebooks
    redraw:bool=False, # Also figures that have a PNG
)->dict[Path, int]:    # Pages that changed, and bytes of PNG in each
    "Add a PNG to each plotly output of recorded pages, without running them."
    import nbformat
    inside = lambda f: visible_notebooks(f) if f.is_dir() else [f]
    paths = [p for f in map(Path, pages) for p in inside(f)]
    sizes = {}
    with drawing_browser():
        for path in paths:
            nb = nbformat.read(path, 4)
            datas = [o.data for o in _outputs(nb) if plotly_mime in o.get('data', {})]
            todo = [d for d in datas if redraw or 'image/png' not in d]
            for d in todo: d['image/png'] = base64.b64encode(figure_png(d[plotly_mime])).decode()
            if not todo: continue
            nbformat.write(nb, path)
            sizes[path] = sum(len(d['image/png'])*3//4 for d in datas)
    return sizes


# %%
#| hide
def page(name, *cells):
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells)), tmp/f'{name}.ipynb')
    return tmp/f'{name}.ipynb'

def figure_output(fig):
    data = {plotly_mime: json.loads(fig.to_json()), 'text/plain': 'Figure()'}
    return nbformat.v4.new_output('display_data', data=data)


# %% [markdown]
# Drawing needs a browser, so this cell draws only where there is one.

# %%
fig = go.Figure(go.Scatter(y=[1, 4, 9]), layout=dict(width=320, height=200))
squares = page('squares', code('#| label: fig-squares\nfig', outputs=[figure_output(fig)]))
browser = find_browser()
sizes = add_pictures([squares]) if browser else {}
[p.name for p in sizes]

# %%
if browser:
    assert 500 < sizes[squares] < 10_000
    png = nbformat.read(squares, 4).cells[0].outputs[0].data['image/png']
    assert base64.b64decode(png).startswith(b'\x89PNG')
    test_eq(add_pictures([squares]), {})


# %% [markdown]
# ## The record
#
# How a page was run is stored in its metadata: scale and seed from its parameters, minutes from
# the run, the kind of machine, the commit of the package, and how many runs the page found finished
# before. The site shows it under the title.

# %%
#| export
def run_record(
    nb, # An executed notebook
)->dict:
    "Describe a run: date, scale, seed, minutes, machine, commit."
    values = parameter_values(nb)
    info = provenance()
    run = nb.metadata.get('moral_sc', {})
    record = dict(date=run.get('start', '')[:10] or None, scale=values.get('scale'),
                  seed=values.get('seed'), minutes=round(run.get('seconds', 0)/60, 2),
                  machine=_machine(values.get('scale'), info), commit=info['commit'],
                  earlier=run.get('earlier'))
    return {k: v for k,v in record.items() if v is not None}

def _machine(scale, info):
    "Kind of the machine, without its name"
    if scale=='gpu':
        import torch
        if torch.cuda.is_available(): return torch.cuda.get_device_name()
    return f'{info["cores"]} {info["system"].split()[-1]} CPU cores'


# %%
parameters = code("scale = 'quick'\nseed = 0", metadata=dict(tags=['parameters']))
injected = code("scale = 'cpu'", metadata=dict(tags=['injected-parameters']))
ran = nbformat.v4.new_notebook(cells=[parameters, injected])
ran.metadata['moral_sc'] = dict(seconds=90)
{k: v for k,v in run_record(ran).items() if k in ('scale', 'seed', 'minutes')}

# %%
test_eq(parameter_values(ran), dict(scale='cpu', seed=0))
test_eq(run_record(ran)['minutes'], 1.5)
test_eq('earlier' in run_record(ran), False)
ran.metadata.moral_sc['earlier'] = dict(runs=2, seconds=60, complete=True)
test_eq(run_record(ran)['earlier']['runs'], 2)


# %% [markdown]
# ## Copying
#
# Outputs are copied cell by cell. The error stream and the execution counts are left out.

# %% [markdown]
# The source of a paper page says `scale = 'quick'`, also where its outputs come from a larger run.
# A line under this cell names the scale of the outputs, for readers of the notebook file. The site
# has it in its banner.

# %%
#| export
def show_record(
    nb, # Recorded paper page; changed in place
):
    "Say under the cell of parameters how the outputs of a page were made."
    import nbformat
    line = record_line(nb.metadata.get('moral_sc', {}))
    plain = re.sub(r'\[(.+?)\]\(.+?\)', r'\1', line).replace('`', '')
    data = {'text/plain': plain, 'text/markdown': line}
    for c in nb.cells:
        if 'parameters' in c.metadata.get('tags', []):
            c.outputs = [nbformat.v4.new_output('display_data', data)] if line else []


# %%
#| export
def copy_outputs(
    run,           # The executed notebook
    page,          # The notebook it was executed from
    pictures=None, # Whether to add a PNG of each figure; default: on the papers' pages
)->Path:
    "Copy the outputs of an executed notebook into its page."
    import nbformat
    ran = nbformat.read(run, 4)
    outputs = {c.id: c.outputs for c in ran.cells if c.cell_type=='code'}
    nb = nbformat.read(page, 4)
    for c in nb.cells:
        if c.cell_type!='code': continue
        c.outputs = [_uncounted(o) for o in outputs.get(c.id, []) if not _is_stderr(o)]
    paper = is_paper_page(nb)
    if paper:
        nb.metadata['moral_sc'] = run_record(ran)
        show_record(nb)
    nbformat.write(nb, page)
    if paper if pictures is None else pictures: add_pictures([page])
    return Path(page)

def _is_stderr(out): return out.output_type=='stream' and out.name=='stderr'

def _uncounted(out):
    if 'execution_count' in out: out['execution_count'] = None
    return out


# %%
src = page('toy', parameters, code('print(1)\nfig'))
nb = nbformat.read(src, 4)
stream = lambda name, text: nbformat.v4.new_output('stream', name=name, text=text)
nb.cells[1].outputs = [stream('stderr', 'loading 10%'), stream('stdout', '1'), figure_output(fig)]
nb.metadata['moral_sc'] = dict(seconds=30)
nbformat.write(nb, tmp/'toy_run.ipynb')
copy_outputs(tmp/'toy_run.ipynb', src, pictures=False)
[o.output_type for o in nbformat.read(src, 4).cells[1].outputs]

# %%
test_eq(nbformat.read(src, 4).metadata.moral_sc.minutes, .5)
line = nbformat.read(src, 4).cells[0].outputs[0].data['text/plain']
assert line.startswith('Recorded at scale quick, seed 0, 30 seconds, ') and '(' not in line
