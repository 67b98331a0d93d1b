# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Site build
#
# > Builds the site, the README and llms.txt from the notebooks.

# %%
#| default_exp lab.site.build

# %%
#| export
import base64, json, re
from functools import cache, partial
from pathlib import Path

from moral_sc.foundation.errors import ConfigError
from moral_sc.lab.claims import verdicts
from moral_sc.lab.paths import checkout_root
from moral_sc.lab.site import crossrefs
from moral_sc.lab.site.interactive import STYLE, myst_block, replace_blocks, scripts_of
from moral_sc.lab.site.pages import (SITE, cell_problems, directives, is_paper_page, plotly_mime,
                                     title_and_line, verdict_class)
from moral_sc.lab.site.papers import (claims_table, fill_index_blocks, paper_entries, paper_index,
                                      plain_paper_index)

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
# The site is made from the notebooks without a network: Sphinx, a theme, plotly's script and two
# fonts are Python packages. This module has the table of contents, the README, `llms.txt` and the
# functions that Sphinx calls.
#
# ## The clone
#
# The site is built from a clone, also by a package that is installed elsewhere.

# %%
#| export
def docs_root(
    start=None, # Folder in or below the clone, default: the current one
)->Path:
    "Find the root of the clone that has `docs/conf.py`."
    folder = Path(start or Path.cwd()).resolve()
    roots = [p for p in (folder, *folder.parents) if (p/'docs'/'conf.py').is_file()]
    root = roots[0] if roots else checkout_root()
    if not root: raise ConfigError('No docs/conf.py here: run this in a clone of moral_sc.')
    return root


# %%
#| hide
for d in ('docs', 'nbs/toy'): (tmp/'clone'/d).mkdir(parents=True, exist_ok=True)
_ = (tmp/'clone'/'docs'/'conf.py').write_text('')

# %%
docs_root(tmp/'clone'/'nbs'/'toy').name


# %% [markdown]
# ## Table of contents
#
# `docs/_toc.yml` lists sections and, within them, pages or patterns of pages. A pattern takes the
# pages that no other entry names, in the order of their numbers, so a new page needs no entry. A
# section without pages is left out.

# %%
#| export
def expand_toc(
    toc:dict,   # What `_toc.yml` holds
    pages:list, # Names of pages, without suffix
)->dict:
    "Resolve the patterns of a table of contents."
    used = {e['file'] for e in _entries(toc) if 'file' in e} | {toc['root']}
    return _fill(toc, sorted(set(pages)), used)

def _entries(node):
    for tree in node.get('subtrees', []):
        for e in tree['entries']: yield e; yield from _entries(e)

def _fill(node, pages, used):
    full = lambda t: t | dict(entries=_expand(t['entries'], pages, used))
    trees = [t for t in map(full, node.get('subtrees', [])) if t['entries']]
    rest = {k:v for k,v in node.items() if k!='subtrees'}
    return rest | (dict(subtrees=trees) if trees else {})

def _expand(entries, pages, used):
    from fnmatch import fnmatch
    res = []
    for e in entries:
        if 'glob' not in e: res.append(_fill(e, pages, used)); continue
        new = [p for p in pages if fnmatch(p, e['glob']) and p not in used]
        used |= set(new)
        res += [dict(file=p) for p in new]
    return res


# %%
toc = dict(root='index', subtrees=[
    dict(caption='Papers', entries=[dict(file='papers/first'), dict(glob='papers/*')]),
    dict(caption='Benchmarks', entries=[dict(glob='benchmarks/*')])])
expanded = expand_toc(toc, ['index', 'papers/zebra', 'papers/first', 'papers/ape'])
expanded['subtrees']

# %%
test_eq([e['file'] for e in expanded['subtrees'][0]['entries']],
        ['papers/first', 'papers/ape', 'papers/zebra'])
test_eq(len(expanded['subtrees']), 1)


# %%
#| export
def write_toc(
    root:Path, # A clone
)->Path:       # The file that Sphinx reads
    "Resolve the patterns of `docs/_toc.yml` with the pages in the clone."
    import yaml
    nbs = root/'nbs'
    files = [p.relative_to(nbs) for s in ('*.ipynb', '*.md') for p in nbs.rglob(s)]
    visible = [p for p in files if not any(part[0] in '_.' for part in p.parts)]
    pages = [p.with_suffix('').as_posix() for p in visible]
    toc = expand_toc(yaml.safe_load((root/'docs'/'_toc.yml').read_text()), pages)
    for e in _entries(toc): _shorten(e, root)
    out = root/'_build'/'_toc.yml'
    out.parent.mkdir(exist_ok=True)
    out.write_text(yaml.safe_dump(toc, sort_keys=False))
    return out


# %% [markdown]
# The title of a paper's page is a term, a colon and the finding. The sidebar shows the term.

# %%
#| export
def _shorten(entry, root):
    "Give an entry of the table of contents the part of its title before a colon"
    if 'title' in entry or 'file' not in entry: return
    term,colon,_ = _page_summary(root, entry['file'])[0].partition(': ')
    if colon: entry['title'] = term


# %%
#| hide
def page(name, *cells):
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells)), tmp/f'{name}.ipynb')
    return tmp/f'{name}.ipynb'


# %% [markdown]
# ## The README
#
# The front page is a notebook, and the README is the same page as Markdown. Its table of claims is
# a recorded output, so it may be older than the pages of the papers. Then no README is written.

# %%
#| export
def stale_claims(
    root=None, # A clone
)->list:       # Ids of claims
    "List the claims whose verdict on the front page differs from the ledger."
    import nbformat
    root = docs_root(root)
    table = claims_table(folder=root/'nbs'/'papers', path=root/'data'/'claims')
    cells = nbformat.read(root/'nbs'/'index.ipynb', 4).cells
    datas = [o.get('data', {}) for c in cells for o in c.get('outputs', [])]
    lines = '\n'.join(d.get('text/plain', '') for d in datas).splitlines()
    return [l.split(':')[0] for l in repr(table).splitlines() if l not in lines]


# %% [markdown]
# Pictures are saved under `docs/`. Links to pages lead into the repository, where they also work
# in a fork and without a site.

# %%
#| export
def write_readme(
    root=None, # A clone, default: the one around the current folder
)->Path:
    "Write README.md from `nbs/index.ipynb`, and the plain tables of the papers' indexes."
    import nbformat
    root = docs_root(root)
    if stale := stale_claims(root):
        raise ConfigError(f'nbs/index.ipynb is older than claim {stale[0]}: record it again.')
    cells = nbformat.read(root/'nbs'/'index.ipynb', 4).cells
    parts = [p for c in cells for p in _as_markdown(c, root)]
    text = '\n\n'.join(_from_root(p.strip('\n')) for p in parts if p.strip())
    for page in (root/'nbs'/'papers').glob('*.md'):
        index = fill_index_blocks(page.read_text(encoding='utf-8'), partial(
            plain_paper_index, folder=root/'nbs'/'papers', lists=root/'data'/'papers'))
        page.write_text(index, encoding='utf-8')
    (root/'README.md').write_text(text+'\n', encoding='utf-8')
    return root/'README.md'

def _from_root(text):
    "Links of the front page as links from the root"
    return re.sub(r'\]\((?!\w+:|#|docs/)([\w./-]+\.(?:ipynb|md))', r'](nbs/\1', text)

def _as_markdown(cell, root):
    "A cell as Markdown for GitHub"
    if cell.cell_type!='code': return [cell.source]
    options,body = directives(cell.source)
    if 'hide' in options or 'default_exp' in options: return []
    source = [] if options.get('echo')=='false' else [f'```python\n{body}\n```']
    return source + [_output_markdown(o, options, root) for o in cell.outputs]

def _output_markdown(out, options, root):
    "An output as Markdown"
    data = out.get('data', {})
    if 'text/markdown' in data: return data['text/markdown']
    plain = data.get('text/plain', out.get('text', ''))
    if 'image/png' in data:
        file = root/'docs'/'pictures'/f'{options.get("label", "figure")}.png'
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(base64.b64decode(data['image/png']))
        return f'![{options.get("fig-cap", "")}]({file.relative_to(root).as_posix()})'
    if plotly_mime in data:
        raise ConfigError('nbs/index.ipynb has no picture: record it with --pictures.')
    return f'```\n{plain.rstrip()}\n```'


# %%
#| hide
(tmp/'clone'/'data'/'claims').mkdir(parents=True, exist_ok=True)
fig = go.Figure(go.Scatter(y=[1, 4, 9]))
png = base64.b64encode(b'a picture').decode()
both = {plotly_mime: json.loads(fig.to_json()), 'image/png': png}

# %%
two = nbformat.v4.new_output('execute_result', data={'text/plain': '2'})
front = page('front',
    prose('# Toy\nSee [a page](papers/swing.ipynb), [us](https://a.org/b.md).'),
    code('#| hide\nimport os'), code('1+1', outputs=[two]),
    code('#| label: fig-toy\n#| fig-cap: Squares\n#| echo: false\nfig',
         outputs=[nbformat.v4.new_output('display_data', data=both)]))
_ = front.rename(tmp/'clone'/'nbs'/'index.ipynb')
text = write_readme(tmp/'clone').read_text()
print(text)

# %%
assert '](nbs/papers/swing.ipynb)' in text and '](https://a.org/b.md)' in text
assert 'import os' not in text
test_eq((tmp/'clone'/'docs'/'pictures'/'fig-toy.png').read_bytes(), b'a picture')


# %% [markdown]
# ## llms.txt
#
# Language models and agents look for `llms.txt` at the root of a site: what it is about, and the
# address of each page with one line on it.

# %%
#| export
def llms_text(
    root:Path,  # A clone
    toc:dict,   # As `expand_toc` returns
)->str:
    "List the pages of the site with their one-line summaries, by section."
    parts = ['# moral_sc', '> '+_page_summary(root, toc['root'])[1]]
    for tree in toc['subtrees']:
        names = [e['file'] for e in _entries(dict(subtrees=[tree]))]
        parts.append(f'## {tree["caption"]}\n\n'+'\n'.join(_llms_line(root, n) for n in names))
    return '\n\n'.join(parts)+'\n'

def _page_summary(root, name):
    "Title of a page and its > line"
    path = root/'nbs'/f'{name}.md'
    if path.is_file(): text = path.read_text(encoding='utf-8')
    else:
        cells = json.loads(path.with_suffix('.ipynb').read_text(encoding='utf-8'))['cells']
        text = ''.join(next((c['source'] for c in cells if c['cell_type']=='markdown'), ''))
    title,line = title_and_line(text)
    return title or name, line

def _llms_line(root, name):
    title,line = _page_summary(root, name)
    return f'- [{title}]({SITE}/{name}.html)' + (f': {line}' if line else '')


# %%
_ = page('squares', prose('# Squares\n\n> Squares grow.')).rename(tmp/'clone'/'nbs'/'squares.ipynb')
toc = dict(root='index', subtrees=[dict(caption='Papers', entries=[dict(file='squares')])])
text = llms_text(tmp/'clone', toc)
assert text.endswith(f'## Papers\n\n- [Squares]({SITE}/squares.html): Squares grow.\n')


# %% [markdown]
# ## Building
#
# A warning fails the build: a broken link, a citation without an entry, a page in no section, a
# figure without a caption.

# %%
#| export
def build_site(
    out='_build/html', # Folder of the site
)->Path:               # The front page
    "Build the site with Sphinx."
    try: from sphinx.cmd.build import build_main
    except ImportError:
        raise ConfigError('The site needs Sphinx: pip install "moral_sc[docs]".') from None
    root = docs_root()
    out = Path(out).resolve()
    args = ['-W', '--keep-going', '-q', '-c', root/'docs', '-d', out.parent/'doctrees',
            root/'nbs', out]
    if build_main([str(a) for a in args]):
        raise ConfigError('Sphinx reported warnings (see above): correct the pages they name.')
    import yaml
    toc = yaml.safe_load((root/'_build'/'_toc.yml').read_text())
    (out/'llms.txt').write_text(llms_text(root, toc), encoding='utf-8')
    return out/'index.html'


# %% [markdown]
# ## Directives
#
# `docs/conf.py` has the settings of Sphinx; the functions it calls are here. Four blocks of a
# Markdown page are replaced before Sphinx parses it: `{reference}` by the reference of a package,
# `{claims}` by the claims of a paper, the plain table of a paper's figures by one with thumbnails, and
# [interactive figures](15_interactive.ipynb) by containers that their scripts fill.

# %%
#| export
@cache
def _texts(): return crossrefs.exported_modules()

@cache
def _index(): return crossrefs.NameIndex(_texts())

def fill_directives(
    text:str,    # A Markdown page
    root:Path,   # A clone
    up='',       # Path from the page to the papers' pages
)->str:
    "Replace blocks of a Markdown page and the papers' plain indexes by their content."
    places = dict(folder=root/'nbs'/'papers', path=root/'data'/'claims')
    def block(m):
        if m[1]=='reference': return crossrefs.reference_page(m[2], _texts())
        table = claims_table(m[2], up, **places)
        return table._repr_markdown_() if len(table.rows) else 'No claim is written down.'
    text = fill_index_blocks(text, partial(paper_index, **places))
    text = replace_blocks(text, myst_block)
    return re.sub(r'^```\{(reference|claims)\} (\S+)\n```$', block, text, flags=re.M)


# %%
print(fill_directives('# Lab\n\n```{reference} lab\n```', tmp/'clone')[:420])


# %% [markdown]
# The source of a notebook gets the name of its page, for the links under the title. After parsing,
# words in backticks are linked, exported cells get anchors for the reference, and verdicts get
# their colour.

# %%
#| export
def _on_source(app, doc, source):
    path = Path(app.env.doc2path(doc))
    if path.suffix=='.md':
        source[0] = fill_directives(source[0], docs_root(app.confdir), '.')
    elif doc.startswith('papers/'): source[0] = _with_page_name(doc, source[0])

def _with_page_name(doc, text):
    "Check a notebook of a paper and store its name and main figure in its metadata"
    import nbformat
    from sphinx.util import logging
    nb = nbformat.reads(text, 4)
    for problem in cell_problems(nb) if is_paper_page(nb) else ():
        logging.getLogger(__name__).warning(problem, location=doc)
    page = doc.removeprefix('papers/')
    entries = paper_entries(page.split('/')[0]) if '/' in page else []
    figure = next((e['figure'] for e in entries if e.get('page')==page), '')
    record = nb.metadata.get('moral_sc', {})
    nb.metadata['moral_sc'] = record | dict(page=doc, figure=figure)
    return nbformat.writes(nb)

def _outdated(app, env, added, changed, removed):
    "Read generated pages again each time; and the glossary, whose search entries Sphinx would drop"
    generated = ('api/', 'papers/', 'glossary', 'references')
    return [d for d in env.found_docs if d.startswith(generated)]

def _on_tree(app, tree):
    from docutils import nodes
    path = Path(app.env.doc2path(app.env.docname))
    text = path.read_text(encoding='utf-8') if path.suffix=='.ipynb' else '{"cells": []}'
    cells = json.loads(text)['cells']
    code = [''.join(c['source']) for c in cells if c['cell_type']=='code']
    crossrefs.link_names(tree, crossrefs.scope(code, _index()), _index())
    for cell in tree.findall(lambda n: 'cell_metadata' in getattr(n, 'attributes', {})):
        cell['ids'] += [cell_anchor(n) for n in cell['cell_metadata'].get('defines', [])]
    for cell in tree.findall(nodes.entry):
        strong = next(iter(cell.findall(nodes.strong)), None)
        if strong is not None and cell.parent.index(cell)==2: _colour(strong, cell)

def _colour(strong, cell):
    from docutils import nodes
    word = strong.astext()
    if word not in verdicts: return
    table = cell.parent.parent.parent.parent
    if 'claims' not in table['classes']: table['classes'].append('claims')
    strong.replace_self(nodes.inline(word, word, classes=['verdict', verdict_class(word)]))

def cell_anchor(
    name:str, # Of a function or class
)->str:
    "Return the anchor of the cell that defines a name."
    return 'def-'+name.replace('.', '-')

def linkcode(domain, info):
    "Link an entry of the reference to the cell that defines it."
    page = crossrefs.notebook_of(_texts().get(info.get('module', ''), ''))
    first = info['fullname'].split('.')[0]
    return f'../{page.removesuffix(".ipynb")}.html#{cell_anchor(first)}' if page else None


# %%
linkcode('py', dict(module='moral_sc.lab.site.crossrefs', fullname='NameIndex.module'))


# %% [markdown]
# Formulas become MathML while the site is built, so no script runs for them. Sphinx does not read
# the comments beside parameters, so a hook passes them on.

# %%
#| export
def mathml(
    tex:str,
    display='inline', # 'inline' or 'block'
)->str:
    "Convert TeX into MathML."
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

def _docments(app, kind, name, obj, options, lines):
    "Give autodoc the comments beside parameters"
    from fastcore.docments import docments
    if kind=='data': lines.clear()  # autodoc shows the docstring of the value's type
    if kind not in ('function', 'method', 'class'): return
    try: comments = docments(obj, full=True)
    except (TypeError, OSError, ValueError, KeyError): return
    field = lambda k: 'returns' if k=='return' else f'param {k}'
    notes = [f':{field(k)}: {v["docment"]}' for k,v in comments.items() if v.get('docment')]
    lines[:] = [to_rst(l) for l in lines+['', *notes]]

def to_rst(
    line:str, # Markdown as docstrings have it: backticks and plain words
)->str:
    "Convert a line of a docstring into reStructuredText."
    field,_,text = line.partition(': ') if line.startswith(':') else ('', '', line)
    parts = re.split(r'`([^`]+)`', text.replace('\n', ' '))
    words = lambda p: re.sub(r'([*|_\\])', r'\\\1', p)
    converted = [f'``{p}``\\ ' if i%2 else words(p) for i,p in enumerate(parts)]
    return (f'{field}: ' if field else '')+''.join(converted)

def _skip(app, kind, name, obj, skip, options):
    "Leave out the fields of named tuples, whose docstrings are numbers"
    doc = getattr(obj, '__doc__', '') or ''
    return True if doc.startswith('Alias for field number') else None


# %%
mathml('x^2')

# %% [markdown]
# A minus after a bracket is a sign, not a difference, so it is set without space.

# %%
assert '<mo form="prefix">' in mathml('(-1)^k') and 'prefix' not in mathml('a-1')

# %%
to_rst(':param x: the `path`s of *all* files')


# %% [markdown]
# Plotly's script is large, so only pages with a figure load it. The captions of the sidebar are
# headings of level 2, and the summary of a folded cell is its own label. Sphinx writes a long
# signature as a definition list without terms; a plain list is valid HTML.

# %%
#| export
def plain_signatures(
    html:str, # Body of a page
)->str:
    "Turn the parameters of long signatures into plain lists."
    def plain(m): return m[0].replace('dl>', 'ul>').replace('dd>', 'li>').replace('<ul', _list)
    return re.sub(r'<dl>\s*<dd><em class="sig-param">.*?</dl>', plain, html, flags=re.S)

_list = '<ul class="parameters"'

def _on_page(app, page, template, context, tree):
    tree_html = context.get('furo_navigation_tree', '')
    levelled = tree_html.replace('role="heading"', 'role="heading" aria-level="2"')
    context['furo_navigation_tree'] = levelled
    body = context.get('body', '')
    body = body.replace('<summary aria-label="Toggle hidden content">', '<summary>')
    context['body'] = body = plain_signatures(body)
    scripts = scripts_of(body)
    for f in scripts: app.add_js_file(f, loading_method='defer')
    if scripts: app.add_css_file(STYLE)
    if 'class="figure-box' not in body: return
    for f in ('plotly.min.js', 'figures.js'): app.add_js_file(f, loading_method='defer')

def setup(app):
    "Register this module as a Sphinx extension."
    renderers = dict(inline_renderers=_visit('inline'), block_renderers=_visit('block'))
    app.add_html_math_renderer('mathml', **renderers)
    app.connect('source-read', _on_source)
    app.connect('doctree-read', _on_tree)
    app.connect('env-get-outdated', _outdated)
    app.connect('autodoc-process-docstring', _docments)
    app.connect('autodoc-skip-member', _skip)
    app.connect('html-page-context', _on_page, priority=900)  # after the theme's
    return dict(parallel_read_safe=False, env_version=1)


# %%
long = 'load(<dl>\n<dd><em class="sig-param">name</em>,</dd>\n</dl>\n)<dl>\n<dt>term</dt></dl>'
plain_signatures(long)

# %%
test_eq(plain_signatures(long).count('<dl>'), 1)
test_eq(plain_signatures(long).count('<li>'), 1)

# %% [markdown]
# `docs/conf.py` names this module as an extension and `pages.read_page` as the reader of notebooks.
#
# ## Every page
#
# The check of the site build is a test too: each figure on a page of a paper has a label and a caption.

# %%
from moral_sc.lab.paths import checkout_root, notebooks_dir

pages = {p: nbformat.read(p, 4) for p in notebooks_dir().rglob('*.ipynb')}
test_eq([f'{p.name}, {w}' for p,nb in pages.items() for w in cell_problems(nb)], [])
