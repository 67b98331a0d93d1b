# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Site
#
# > Builds the site and the README from the notebooks, and keeps what a run has shown.

# %%
#| default_exp lab.site.build

# %%
#| export
import base64
import json
import re
from functools import cache
from pathlib import Path

# %%
#| export
from moral_sc.foundation.errors import ConfigError
from moral_sc.lab.site import crossrefs as names
from moral_sc.lab.claims import ledger, span, verdicts
from moral_sc.lab.site.pages import directives, plotly_mime, slug
from moral_sc.lab.paths import clone, notebooks_dir

# %%
#| hide
import tempfile

import nbformat
import plotly.graph_objects as go
from fastcore.test import *

tmp = Path(tempfile.mkdtemp())
code = nbformat.v4.new_code_cell
prose = nbformat.v4.new_markdown_cell


# %% [markdown]
# Everything a reader sees on the site is a notebook, and all of it is made without a network:
# Sphinx, a theme, plotly's own script and two fonts come as Python packages. This page holds
# the pieces that are not about a single page: the table of contents, the front page, the
# README and the hooks that Sphinx calls.
#
# ## Where the sources are
#
# The site is built from a clone, also by a package that is installed elsewhere.

# %%
#| export
def sources(
    start=None, # Folder in or below the clone, default: the current one
)->Path:
    "Root of the clone whose pages are meant"
    here = Path(start or Path.cwd()).resolve()
    found = [p for p in (here, *here.parents) if (p/'docs'/'conf.py').is_file()]
    root = found[0] if found else clone()
    if not root: raise ConfigError('No docs/conf.py here: run this in a clone of moral_sc.')
    return root


# %%
#| hide
for d in ('docs', 'nbs/room'): (tmp/'clone'/d).mkdir(parents=True, exist_ok=True)
_ = (tmp/'clone'/'docs'/'conf.py').write_text('')

# %%
sources(tmp/'clone'/'nbs'/'room').name


# %% [markdown]
# ## Contents
#
# `docs/_toc.yml` lists sections and, within them, either a page or a pattern of pages. A
# pattern takes the pages that were not named before it, in the order of their numbers, so a
# new page finds its place by its file name alone. A section without pages is left out.

# %%
#| export
def contents(
    toc:dict,   # What `_toc.yml` holds
    pages:list, # Names of pages, without suffix
)->dict:
    "A table of contents with its patterns resolved"
    taken = {e['file'] for e in _entries(toc) if 'file' in e} | {toc['root']}
    return _fill(toc, sorted(set(pages)), taken)

def _entries(node):
    for tree in node.get('subtrees', []):
        for e in tree['entries']: yield e; yield from _entries(e)

def _fill(node, pages, taken):
    full = lambda t: t | dict(entries=_expand(t['entries'], pages, taken))
    trees = [t for t in map(full, node.get('subtrees', [])) if t['entries']]
    rest = {k:v for k,v in node.items() if k!='subtrees'}
    return rest | (dict(subtrees=trees) if trees else {})

def _expand(entries, pages, taken):
    from fnmatch import fnmatch
    res = []
    for e in entries:
        if 'glob' not in e: res.append(_fill(e, pages, taken)); continue
        new = [p for p in pages if fnmatch(p, e['glob']) and p not in taken]
        taken |= set(new)
        res += [dict(file=p) for p in new]
    return res


# %%
toc = dict(root='index', subtrees=[
    dict(caption='Papers', entries=[dict(file='papers/first'), dict(glob='papers/*')]),
    dict(caption='Benchmarks', entries=[dict(glob='benchmarks/*')])])
found = contents(toc, ['index', 'papers/zebra', 'papers/first', 'papers/ape'])
found['subtrees']

# %%
test_eq([e['file'] for e in found['subtrees'][0]['entries']],
        ['papers/first', 'papers/ape', 'papers/zebra'])
test_eq(len(found['subtrees']), 1)


# %%
#| export
def write_contents(
    root:Path, # A clone
)->Path:       # The file that Sphinx reads
    "Resolve `docs/_toc.yml` for the pages that there are"
    import yaml
    nbs = root/'nbs'
    files = [p.relative_to(nbs) for s in ('*.ipynb', '*.md') for p in nbs.rglob(s)]
    shown = [p for p in files if not any(part[0] in '_.' for part in p.parts)]
    pages = [p.with_suffix('').as_posix() for p in shown]
    toc = contents(yaml.safe_load((root/'docs'/'_toc.yml').read_text()), pages)
    out = root/'_build'/'_toc.yml'
    out.parent.mkdir(exist_ok=True)
    out.write_text(yaml.safe_dump(toc, sort_keys=False))
    return out


# %% [markdown]
# ## The claims, for a reader
#
# The ledger has one row per claim and fourteen columns. A reader of the front page wants four:
# what was claimed, what we found, the verdict, and the page that shows it. Each paper has a table.

# %%
#| export
papers = dict(superposition='Toy Models of Superposition', constitution='Constitutional AI',
              self_correction='Moral Self-Correction')

class Claims:
    "A ledger as a short table for each paper, in Markdown"
    def __init__(
        self,
        rows,          # What `ledger` gives
        pages='papers' # Path from the page that shows it to the paper notebooks
    ): self.rows,self.pages = rows,pages
    def _row(self, r):
        run = r.verdict!='not run'
        unit = r.quantity.split(' (')[0]
        found = f'{span(r.estimate, r.low, r.high)} {unit}' if run else ''
        text = f'[{r.sentence}]({self.pages}/{r.page}.ipynb)' if r.page else r.sentence
        return [text, found, f'**{r.verdict}**' + (f' ({r.why})' if r.why else '')]
    def _table(self, paper, verdict=''):
        chosen = (self.rows.paper==paper) & (self.rows.verdict.eq(verdict) | (not verdict))
        rows = [self._row(r) for r in self.rows[chosen].itertuples()]
        cells = [[str(c).replace('|', '\\|').replace('<', '&lt;') for c in r] for r in rows]
        head = [papers.get(paper, paper), 'Found', 'Verdict']
        return '\n'.join('| '+' | '.join(l)+' |' for l in [head, ['---']*3, *cells])
    @property
    def papers(self): return sorted(set(self.rows.paper), key=[*papers, *self.rows.paper].index)
    def _repr_markdown_(self): return '\n\n'.join(self._table(p) for p in self.papers)
    def __repr__(self):
        return '\n'.join(f'{r.id}: {r.verdict}' for r in self.rows.itertuples())

def claims(
    paper='',        # One paper, default: all
    pages='papers',  # Path from the page that shows it to the paper notebooks
    **kw,            # For `ledger`
)->Claims:
    "What the papers claim and what the recorded pages found"
    rows = ledger(**kw)
    return Claims(rows[rows.paper==paper] if paper else rows, pages)


# %% [markdown]
# The front page has room for the count, and for what the papers' authors would look at first: the
# claims that did not hold.

# %%
#| export
class Summary(Claims):
    "Claims counted by paper and verdict, and those that fail in full"
    def _count(self, paper):
        found = self.rows[self.rows.paper==paper].verdict.value_counts()
        name = f'[{papers.get(paper, paper)}]({self.pages}/{paper}.md)'
        return [name, *(str(found.get(v, 0)) for v in ('holds','fails','not at this size'))]
    def _repr_markdown_(self):
        head = ['Paper', 'hold', 'fail', 'not at this size']
        lines = [head, ['---']+['---:']*3, *map(self._count, self.papers)]
        count = '\n'.join('| '+' | '.join(l)+' |' for l in lines)
        failed = [p for p in self.papers if (self.rows[self.rows.paper==p].verdict=='fails').any()]
        return '\n\n'.join([count, *(self._table(p, 'fails') for p in failed)])

def summary(**kw)->Summary: # Arguments of `claims`
    "All claims in short"
    found = claims(**kw)
    return Summary(found.rows, found.pages)


# %%
import pandas as pd

row = dict(id='pendulum/period', paper='Pendulum', sentence='Weight | does not matter.',
           quantity='ratio (heavy over light)', estimate=1.001, low=.995, high=1.01,
           verdict='holds', why='', page='')
Claims(pd.DataFrame([row]))

# %%
linked = Claims(pd.DataFrame([row | dict(page='p/swing')]))._repr_markdown_()
test_eq(linked.splitlines()[2], '| [Weight \\| does not matter.](papers/p/swing.ipynb) | '
                                f'{span(1.001, .995, 1.01)} ratio | **holds** |')

# %%
other = row | dict(id='pendulum/amplitude', sentence='Nor does amplitude.', estimate=1.18, low=1.1,
                   high=1.2, verdict='fails')
short = Summary(pd.DataFrame([row, other]).assign(paper='superposition'), '../papers')
assert 'Nor does' in short._repr_markdown_() and 'Weight' not in short._repr_markdown_()
short


# %% [markdown]
# ## A figure of another page
#
# The front page shows a figure that a paper notebook made. It takes it out of that notebook's
# outputs, which costs nothing and cannot disagree with the page it comes from.

# %%
#| export
def figure(
    page:str,  # Path below the paper notebooks, without suffix
    label='',  # Its `#| label:`, default: the first figure
    folder=None,
):             # plotly Figure
    "A figure as the recorded page shows it"
    import nbformat
    import plotly.graph_objects as go
    path = Path(folder or notebooks_dir())/f'{page}.ipynb'
    if not path.is_file(): raise ConfigError(f'No page {page!r} at {path}: check its name.')
    cells = [c for c in nbformat.read(path, 4).cells if c.cell_type=='code']
    meant = [c for c in cells if label in ('', directives(c.source)[0].get('label'))]
    datas = [o.get('data', {}) for c in meant for o in c.outputs]
    specs = [d[plotly_mime] for d in datas if plotly_mime in d]
    if not specs: raise ConfigError(f'{page} shows no figure {label!r}: record it first.')
    return go.Figure(dict(data=specs[0]['data'], layout=specs[0]['layout']))


# %%
#| hide
def page(name, *cells):
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells)), tmp/f'{name}.ipynb')
    return tmp/f'{name}.ipynb'

def shown(fig, **kw):
    data = {plotly_mime: json.loads(fig.to_json()), 'text/plain': 'Figure()', **kw}
    return nbformat.v4.new_output('display_data', data=data)


# %%
fig = go.Figure(go.Scatter(y=[1, 4, 9]))
_ = page('squares', code('#| label: fig-squares\nfig', outputs=[shown(fig)]))
figure('squares', 'fig-squares', tmp).data[0].y

# %%
with expect_fail(ConfigError, contains="shows no figure 'fig-cubes'"):
    figure('squares', 'fig-cubes', tmp)


# %% [markdown]
# ## Recording
#
# A page is never run in place: papermill writes the executed copy elsewhere, and `record`
# brings its outputs home, cell by cell. GitHub shows no live figure, so each gets a picture
# beside it. What a run says on its error stream, and how often its cells were counted, stays
# behind.

# %%
#| export
def record(
    run,           # The executed notebook
    page,          # The notebook it was executed from
    pictures=True, # Draw each figure as a PNG too; needs kaleido and a Chromium
)->Path:
    "Copy the outputs of an executed notebook into its page"
    import nbformat
    done = {c.id: c.outputs for c in nbformat.read(run, 4).cells if c.cell_type=='code'}
    nb = nbformat.read(page, 4)
    for c in nb.cells:
        if c.cell_type!='code': continue
        c.outputs = [_kept(o, pictures) for o in done.get(c.id, []) if _wanted(o)]
    nbformat.write(nb, page)
    return Path(page)

def _wanted(out): return not (out.output_type=='stream' and out.name=='stderr')

def _kept(out, pictures):
    data = out.get('data', {})
    if 'execution_count' in out: out['execution_count'] = None
    if pictures and plotly_mime in data: data['image/png'] = picture(data[plotly_mime])
    return out

def picture(
    spec:dict,      # Plotly figure as JSON
    scale:float=1.5 # Pixels of the picture per pixel of the figure
)->str:             # PNG in base64
    "A figure as a still picture"
    import plotly.io as pio
    fig = dict(data=spec['data'], layout=spec['layout'])
    return base64.b64encode(pio.to_image(fig, 'png', scale=scale, validate=False)).decode()


# %%
src = page('toy', prose('# Toy'), code('print(1)\nfig'))
nb = nbformat.read(src, 4)
stream = lambda name, text: nbformat.v4.new_output('stream', name=name, text=text)
nb.cells[1].outputs = [stream('stderr', 'loading 10%'), stream('stdout', '1'), shown(fig)]
nbformat.write(nb, tmp/'toy_run.ipynb')
record(tmp/'toy_run.ipynb', src, pictures=False)
[o.output_type for o in nbformat.read(src, 4).cells[1].outputs]


# %% [markdown]
# ## The README
#
# The front page is a notebook, and the README is the same page as plain Markdown. Its table of
# claims is recorded like any output, so a paper notebook that is recorded later can leave it
# behind. A front page that contradicts the pages behind it is refused.

# %%
#| export
def stale(
    root=None, # A clone
)->list:       # Ids of claims
    "Claims whose verdict on the front page is not the ledger's"
    import nbformat
    root = sources(root)
    now = claims(folder=root/'nbs'/'papers', path=root/'data'/'claims')
    cells = nbformat.read(root/'nbs'/'index.ipynb', 4).cells
    datas = [o.get('data', {}) for c in cells for o in c.get('outputs', [])]
    said = '\n'.join(d.get('text/plain', '') for d in datas).splitlines()
    return [l.split(':')[0] for l in repr(now).splitlines() if l not in said]


# %% [markdown]
# A figure
# becomes the picture that was kept beside it, saved under `docs/`; links to pages lead into
# the repository, where they also work in a fork and without a site.

# %%
#| export
def readme(
    root=None, # A clone, default: the one around the current folder
)->Path:
    "Write README.md from `nbs/index.ipynb`"
    import nbformat
    root = sources(root)
    if old := stale(root):
        raise ConfigError(f'nbs/index.ipynb is older than claim {old[0]}: record it again.')
    cells = nbformat.read(root/'nbs'/'index.ipynb', 4).cells
    parts = [p for c in cells for p in _plain(c, root)]
    text = '\n\n'.join(_into_repository(p.strip('\n')) for p in parts if p.strip())
    (root/'README.md').write_text(text+'\n', encoding='utf-8')
    return root/'README.md'

def _into_repository(text):
    "Links of the front page as links from the root"
    return re.sub(r'\]\((?!\w+:|#|docs/)([\w./-]+\.(?:ipynb|md))', r'](nbs/\1', text)

def _plain(cell, root):
    "A cell as Markdown for GitHub"
    if cell.cell_type!='code': return [cell.source]
    opts,body = directives(cell.source)
    if 'hide' in opts or 'default_exp' in opts: return []
    shown = [] if opts.get('echo')=='false' else [f'```python\n{body}\n```']
    return shown + [_still(o, opts, root) for o in cell.outputs]

def _still(out, opts, root):
    "An output as Markdown"
    data = out.get('data', {})
    if 'text/markdown' in data: return data['text/markdown']
    plain = data.get('text/plain', out.get('text', ''))
    if plotly_mime not in data: return f'```\n{plain.rstrip()}\n```'
    if 'image/png' not in data:
        raise ConfigError('nbs/index.ipynb has no picture: record it with --pictures.')
    file = root/'docs'/'pictures'/f'{opts.get("label", "figure")}.png'
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(base64.b64decode(data['image/png']))
    return f'![{opts.get("fig-cap", "")}]({file.relative_to(root).as_posix()})'


# %%
#| hide
(tmp/'clone'/'data'/'claims').mkdir(parents=True, exist_ok=True)
png = base64.b64encode(b'a picture').decode()

# %%
two = nbformat.v4.new_output('execute_result', data={'text/plain': '2'})
front = page('front',
    prose('# Toy\nSee [a page](papers/swing.ipynb), [us](https://a.org/b.md).'),
    code('#| hide\nimport os'), code('1+1', outputs=[two]),
    code('#| label: fig-toy\n#| fig-cap: Squares\n#| echo: false\nfig',
         outputs=[shown(fig, **{'image/png': png})]))
_ = front.rename(tmp/'clone'/'nbs'/'index.ipynb')
text = readme(tmp/'clone').read_text()
print(text)

# %%
assert '](nbs/papers/swing.ipynb)' in text and '](https://a.org/b.md)' in text
assert 'import os' not in text
test_eq((tmp/'clone'/'docs'/'pictures'/'fig-toy.png').read_bytes(), b'a picture')


# %% [markdown]
# ## Building
#
# A warning is an error: a broken link, a citation without an entry, a page that no section
# lists.

# %%
#| export
def build(
    out='_build/html', # Folder of the site
    strict=True,       # Whether a warning fails the build
    root=None,         # A clone, default: the one around the current folder
)->Path:               # The front page
    "Build the site with Sphinx"
    try: from sphinx.cmd.build import build_main
    except ImportError:
        raise ConfigError('The site needs Sphinx: pip install "moral_sc[docs]".') from None
    root = sources(root)
    out = Path(out).resolve()
    opts = ['-W', '--keep-going'] if strict else []
    args = [*opts, '-q', '-c', root/'docs', '-d', out.parent/'doctrees', root/'nbs', out]
    if build_main([str(a) for a in args]):
        raise ConfigError('The site has faults, named above: mend them.')
    return out/'index.html'


# %% [markdown]
# ## What Sphinx calls
#
# `docs/conf.py` holds settings; the behaviour is here. Two kinds of page are filled in before
# they are parsed: the reference of a room, and the claims of a paper.

# %%
#| export
@cache
def _texts(): return names.library()

@cache
def _index(): return names.Index(_texts())

def fill(
    text:str,    # A Markdown page
    root:Path,   # A clone
    up='',       # From the page to the paper notebooks
)->str:
    "Replace `{reference}` and `{claims}` blocks by what they stand for"
    known = dict(folder=root/'nbs'/'papers', path=root/'data'/'claims')
    def block(m):
        if m[1]=='reference': return names.reference(m[2], _texts())
        table = claims(m[2], up, **known)
        return table._repr_markdown_() if len(table.rows) else 'No claim is written down.'
    return re.sub(r'^```\{(reference|claims)\} (\S+)\n```$', block, text, flags=re.M)


# %%
print(fill('# Lab\n\n```{reference} lab\n```', tmp/'clone')[:420])


# %% [markdown]
# Once a page is parsed its words are linked, its exported cells become places that the
# reference can point to, and verdicts get their colour.

# %%
#| export
def _on_source(app, doc, source):
    if doc.startswith(('api/', 'papers/')):
        source[0] = fill(source[0], sources(app.confdir), '.')

def _outdated(app, env, added, changed, removed):
    "Pages whose text comes from elsewhere are read again each time"
    made = ('api/', 'papers/', 'references')
    return [d for d in env.found_docs if d.startswith(made)]

def _on_tree(app, tree):
    from docutils import nodes
    path = Path(app.env.doc2path(app.env.docname))
    text = path.read_text(encoding='utf-8') if path.suffix=='.ipynb' else '{"cells": []}'
    cells = json.loads(text)['cells']
    code = [''.join(c['source']) for c in cells if c['cell_type']=='code']
    names.link_words(tree, names.scope(code, _index()), _index())
    for cell in tree.findall(lambda n: 'cell_metadata' in getattr(n, 'attributes', {})):
        cell['ids'] += [place(n) for n in cell['cell_metadata'].get('defines', [])]
    for cell in tree.findall(nodes.entry):
        strong = next(iter(cell.findall(nodes.strong)), None)
        if strong is not None and cell.parent.index(cell)==2: _colour(strong, cell)

def _colour(strong, cell):
    from docutils import nodes
    said = strong.astext()
    if said not in verdicts: return
    table = cell.parent.parent.parent.parent
    if 'claims' not in table['classes']: table['classes'].append('claims')
    strong.replace_self(nodes.inline(said, said, classes=['verdict', slug(said)]))

def place(
    name:str, # Of a function or class
)->str:
    "The anchor of the cell that defines `name`"
    return 'def-'+name.replace('.', '-')

def linkcode(domain, info):
    "From an entry of the reference to the cell that it describes"
    page = names.page_of(_texts().get(info.get('module', ''), ''))
    first = info['fullname'].split('.')[0]
    return f'../{page.removesuffix(".ipynb")}.html#{place(first)}' if page else None


# %%
linkcode('py', dict(module='moral_sc.lab.site.crossrefs', fullname='Index.module'))


# %% [markdown]
# Mathematics is turned into MathML while the site is built, so no script runs for it. Parameters
# are documented by the comments beside them, which Sphinx does not read by itself.

# %%
#| export
def mathml(
    tex:str,
    display='inline', # 'inline' or 'block'
)->str:
    "A formula as MathML"
    from latex2mathml.converter import convert
    html = convert(tex, display=display).replace(*_pm)
    return re.sub(_sign, r'\1<mo form="prefix">', html)

_pm = '<mi>&#x000B1;</mi>', '<mo>&#x000B1;</mo>'  # the converter takes it for a letter
_open = r'<m(?:row|td)>|<mo(?: stretchy="false")?>(?:&#x00028;|\[|\{|=)</mo>'
_sign = f'({_open})<mo>(?=&#x02212;)'

def _visit(display):
    from docutils import nodes
    def visit(self, node):
        html = mathml(node.astext(), display)
        if display=='block': html = f'<div class="math-block">{html}</div>'
        self.body.append(html + '&#8288;')  # no line breaks before a comma
        raise nodes.SkipNode
    return visit,None

def _docments(app, what, name, obj, options, lines):
    "Give autodoc the comments beside parameters"
    from fastcore.docments import docments
    if what=='data': lines.clear()  # autodoc shows the docstring of the value's type
    if what not in ('function', 'method', 'class'): return
    try: found = docments(obj, full=True)
    except (TypeError, OSError, ValueError, KeyError): return
    field = lambda k: 'returns' if k=='return' else f'param {k}'
    notes = [f':{field(k)}: {v["docment"]}' for k,v in found.items() if v.get('docment')]
    lines[:] = [rst(l) for l in lines+['', *notes]]

def rst(
    line:str, # Markdown as docstrings have it: backticks and plain words
)->str:
    "The same in reStructuredText"
    field,_,text = line.partition(': ') if line.startswith(':') else ('', '', line)
    parts = re.split(r'`([^`]+)`', text.replace('\n', ' '))
    words = lambda p: re.sub(r'([*|_\\])', r'\\\1', p)
    said = [f'``{p}``\\ ' if i%2 else words(p) for i,p in enumerate(parts)]
    return (f'{field}: ' if field else '')+''.join(said)

def _skip(app, what, name, obj, skip, options):
    "Leave out the fields of named tuples, which say only their number"
    doc = getattr(obj, '__doc__', '') or ''
    return True if doc.startswith('Alias for field number') else None


# %%
mathml('x^2')

# %% [markdown]
# A minus after a bracket is a sign and not a difference, and is set without space.

# %%
assert '<mo form="prefix">' in mathml('(-1)^k') and 'prefix' not in mathml('a-1')

# %%
rst(':param x: the `path`s of *all* files')


# %% [markdown]
# Plotly's script is large. Only pages that have a figure load it.

# %%
#| export
def _on_page(app, page, template, context, tree):
    if 'class="figure-box"' not in context.get('body', ''): return
    for f in ('plotly.min.js', 'figures.js'): app.add_js_file(f, loading_method='defer')

def setup(app):
    "Make this module an extension of Sphinx"
    renderers = dict(inline_renderers=_visit('inline'), block_renderers=_visit('block'))
    app.add_html_math_renderer('mathml', **renderers)
    app.connect('source-read', _on_source)
    app.connect('doctree-read', _on_tree)
    app.connect('env-get-outdated', _outdated)
    app.connect('autodoc-process-docstring', _docments)
    app.connect('autodoc-skip-member', _skip)
    app.connect('html-page-context', _on_page)
    return dict(parallel_read_safe=False, env_version=1)

# %% [markdown]
# `docs/conf.py` names this module as an extension, and `pages.read` as what turns each notebook
# into a page.
