# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Pages
#
# > Reads a notebook as a page: directives obeyed, citations resolved, figures live.

# %%
#| default_exp lab.site.pages

# %%
#| export
import ast
import json
import re

# %%
#| export
from moral_sc.lab.claims import mime as claims_mime
from moral_sc.lab.claims import verdicts
from moral_sc.lab.site.crossrefs import offered

# %%
#| hide
import nbformat
from fastcore.test import *

code = nbformat.v4.new_code_cell
prose = nbformat.v4.new_markdown_cell


# %% [markdown]
# The notebooks are written in nbdev's dialect and stay ordinary notebooks: they look right in
# JupyterLab and on GitHub without us. The site is built by Sphinx, which speaks MyST. Between
# the two stands this page. Sphinx hands over the text of a notebook and gets back a notebook
# in MyST, so there is no staging folder and nothing to keep in step.
#
# ## Directives
#
# A code cell may open with lines that begin with `#|`. Each is a key, or a key and a value; a
# line without a key carries on the value above it.

# %%
#| export
def directives(
    source:str, # A code cell
)->tuple:       # dict of directives, and the code without their lines
    "Separate a cell's directives from its code"
    found = {}
    key = None
    lines = source.split('\n')
    while lines and re.match(r'#\|', lines[0]):
        line = lines.pop(0)[2:].strip()
        m = re.match(r'([\w-]+) *(?:: *(.*)|(\S.*))?$', line)
        if key is None or (m and m[1] in _keys): key,found[m[1]] = m[1], m[2] or m[3] or ''
        else: found[key] = f'{found[key]} {line}'
    return {k: v.strip('\'" ') for k,v in found.items()}, '\n'.join(lines).strip('\n')

_keys = set('''default_exp export exports exporti hide echo eval output include label
    fig-cap mark code-fold code-summary warning notest slow gpu cuda'''.split())

# %%
opts,rest = directives('''#| label: fig-loss
#| fig-cap: Loss over steps:
#|   bars are 95% intervals
plot(loss)''')
test_eq(rest, 'plot(loss)')
opts

# %%
test_eq(opts['fig-cap'], 'Loss over steps: bars are 95% intervals')
test_eq(directives('#|export\n#| eval: false\nx'), ({'export': '', 'eval': 'false'}, 'x'))
test_eq(directives('x = 1'), ({}, 'x = 1'))


# %% [markdown]
# ## Prose
#
# Three things in Markdown cells have to be said differently: citations, figures and callouts.
# Code, inline or fenced, is never touched, so a page can show an `@patch`. And a line that begins
# with a percent sign would be taken for a comment and be gone without a word.

# %%
#| export
def myst(
    text:str,      # A Markdown cell
    figures=None,  # Labels of the page's figures, in order, and their anchors
)->str:
    "Say in MyST what a Markdown cell says in our dialect"
    parts = re.split(_quoted, _callouts(text))
    return ''.join(p if i%2 else _prose(p, figures or {}) for i,p in enumerate(parts))

_quoted = re.compile(r'(^ *```.*?^ *```|^ *~~~.*?^ *~~~|`[^`\n]+`)', re.M|re.S)
_callout = re.compile(r'^::: *\{\.callout-(\w+)[^}\n]*\}\n(.*?)^:::+ *$', re.M|re.S)

def _prose(text, figures):
    def fig(m):
        return f'[{_numbered(m[1], figures)}](#{figures.get(m[1], m[1])})'
    text = re.sub(r'\[(@[\w-]+(?:[,;][^][]*)?)\](?!\()', lambda m: _cite(m[1]), text)
    text = re.sub(r'(?<![\w@/.`{])@(fig-[\w-]*\w)', fig, text)
    text = re.sub(r'(?<![\w@/.`{])@([a-z]+\d{4}\w*)', r'{cite:t}`\1`', text)
    return re.sub(r'^( *)%', r'\1\\%', text, flags=re.M)

def _numbered(label, figures):
    return f'Figure {list(figures).index(label)+1}' if label in figures else 'Figure'

def _cite(inner):
    "`@a; @b, p. 3` as one citation in brackets"
    each = [re.match(r'@([\w-]+),? *(.*)', s.strip()) for s in inner.split(';')]
    keys = ','.join(m[1]+(f'{{{m[2]}}}' if m[2] else '') for m in each if m)
    return f'{{cite:p}}`{keys}`'

def _callouts(text):
    def box(m):
        title = re.match(r'\s*#+ +(.*)\n', m[2])
        body = m[2][title.end():] if title else m[2]
        head = f'{{admonition}} {title[1]}\n:class: {m[1]}' if title else f'{{{m[1]}}}'
        return f':::{head}\n{body.strip()}\n:::'
    return _callout.sub(box, text)


# %%
print(myst('''Toy models [@elhage2022] were followed by @henighan2023double; see @fig-loss.

::: {.callout-note}
## A note
Decorators such as `@patch` are left alone.
:::''', {'fig-density': 'toy-fig-density', 'fig-loss': 'toy-fig-loss'}))

# %%
test_eq(myst('[@bai2022hh; @ouyang2022]'), '{cite:p}`bai2022hh,ouyang2022`')
test_eq(myst('[@elhage2022, section 3]'), '{cite:p}`elhage2022{section 3}`')
test_eq(myst('Write to a@b2022.org or [x](https://y.org/@z2022).'),
        'Write to a@b2022.org or [x](https://y.org/@z2022).')
test_eq(myst('```\n@elhage2022\n```'), '```\n@elhage2022\n```')
test_eq(myst('`@fig-x`'), '`@fig-x`')
test_eq(myst('It wins with 73\n% of 9 %.'), 'It wins with 73\n\\% of 9 %.')


# %% [markdown]
# ## Figures
#
# A plotly figure is kept in the notebook as data. On the page it becomes an empty box with
# that data inside, and one script of the site draws all boxes: it is the script that knows the
# width of the screen and whether it is dark. Nothing in the data can end the script element
# early, because no `<` is left in it.

# %%
#| export
def figure_box(
    spec:dict, # Plotly figure as JSON
)->str:        # HTML
    "A box that the site's script draws a figure into"
    layout = spec.get('layout', {})
    house = layout.get('template', {}).get('layout', {})
    size = lambda k, default: layout.get(k) or house.get(k) or default
    w = size('width', 640)
    h = size('height', 380)
    frames = {k: spec[k] for k in ('frames',) if spec.get(k)}
    data = json.dumps(dict(data=spec.get('data', []), layout=layout) | frames)
    return (f'<div class="figure-box" style="max-width:{w:g}px;height:{h:g}px" '
            f'data-width="{w:g}" data-height="{h:g}">'
            f'<script type="application/json">{data.replace("<", _lt)}</script>'
            '<noscript>This figure is drawn by a script.</noscript></div>')

_lt = '\\u003c'

# %%
bad = dict(data=[dict(type='scatter', name='</script><b>')], layout={})
box = figure_box(bad)
test_eq(box.count('<b>'), 0)
test_eq(json.loads(re.search(r'json">(.*?)</script>', box)[1]), bad)
box


# %% [markdown]
# ## Tables
#
# The last column of a claims table is a verdict. It gets a class of its own, for its colour;
# the word stays, since colour alone says nothing to many readers. Frames lose the style sheet
# that pandas puts into each of them.

# %%
#| export
def table(
    html:str, # A table as a notebook keeps it
)->str:
    "A table dressed for the site"
    html = re.sub(r'<style scoped>.*?</style>\s*', '', html, flags=re.S)
    html = html.replace(' border="1"', '')
    if 'class="claims"' not in html: return html
    said = '|'.join(sorted(verdicts, key=len, reverse=True))
    return re.sub(rf'<td>({said})\b(.*?)</td>', _badge, html)

def _badge(m):
    rest = f'<br><small>{m[2].strip(" ()")}</small>' if m[2].strip(' ()') else ''
    return f'<td><span class="verdict {slug(m[1])}">{m[1]}</span>{rest}</td>'

def slug(
    text:str,
)->str:
    "A verdict as the name of a class"
    return re.sub(r'\W+', '-', text)


# %%
row = '<table class="claims"><tr><td>A sentence.</td><td>holds</td></tr></table>'
table(row)

# %%
assert '<small>too few</small>' in table(row.replace('holds', 'fails (too few)'))
other = row.replace('claims', 'frame')
test_eq(table(other), other)

# %% [markdown]
# ## Outputs
#
# An output may carry the same thing in several forms. The page takes the one that serves a
# reader best and drops the rest.

# %%
#| export
plotly_mime = 'application/vnd.plotly.v1+json'

def dress(
    out,          # Output of a cell; changed in place
    figures=None, # Labels of the page's figures and their anchors
):
    "Prepare an output for the site"
    data = out.get('data', {})
    data.pop(claims_mime, None)
    if plotly_mime in data: out['data'] = {'text/html': figure_box(data[plotly_mime])}
    elif 'text/html' in data: data['text/html'] = table(_joined(data['text/html']))
    elif 'text/markdown' in data:
        data['text/markdown'] = myst(_joined(data['text/markdown']), figures)
    return out

def _joined(text): return text if isinstance(text, str) else ''.join(text)


# %%
list(dress(dict(data={plotly_mime: bad, 'text/plain': 'Figure()'}))['data'])


# %% [markdown]
# ## A page
#
# Cells that are plumbing go. The code of exported cells stays: it is what the page is about,
# and the comments beside its parameters are their documentation. Each such cell remembers
# what it defines, and so the reference can point back to it.

# %%
#| export
def _gone(cell, opts, body):
    tags = cell.metadata.get('tags', [])
    if cell.cell_type!='code': return not cell.source.strip()
    return ('hide' in opts or opts.get('include')=='false' or 'injected-parameters' in tags
            or not body and not cell.outputs or re.search(r'\bnbdev_export\(\)', body))

def _tags(opts):
    on = {('echo', 'false'): 'remove-input', ('output', 'false'): 'remove-output',
          ('code-fold', 'true'): 'hide-input',
          ('export', ''): 'export', ('exports', ''): 'export'}
    return [on[kv] for kv in opts.items() if kv in on]

def _code(cell, opts, body, figures):
    "A code cell in MyST-NB's terms"
    tags = [*cell.metadata.get('tags', []), *_tags(opts)]
    cell.source = body
    cell.metadata['tags'] = tags
    cell.outputs = [dress(o, figures) for o in cell.outputs]
    if 'export' in tags: cell.metadata['defines'] = _names(body)
    label = opts.get('label', '')
    caption = opts.get('fig-cap', '')
    if label in figures:
        caption = f'**{_numbered(label, figures)}.** {myst(caption, figures)}'
    fig = {'name': figures.get(label, ''), 'caption': caption}
    if caption: cell.metadata['mystnb'] = dict(figure={k:v for k,v in fig.items() if v})

def _page_name(nb, parts):
    "A word for a page that no other page has: labels must differ across the site"
    module = next((o['default_exp'] for o,_ in parts if 'default_exp' in o), '')
    title = re.search(r'^# +(.*)', '\n'.join(c.source for c in nb.cells), re.M)
    return re.sub(r'\W+', '-', module or (title[1] if title else 'page')).strip('-').lower()

def _names(body):
    try: return [n for s in ast.parse(body).body for n in offered(s) if n[0]!='_']
    except SyntaxError: return []


# %%
#| export
def read(
    text:str, # A notebook file
):            # NotebookNode
    "A notebook as a page of the site"
    import nbformat
    nb = nbformat.reads(text, 4)
    parts = [directives(c.source) for c in nb.cells]
    labels = [o['label'] for o,_ in parts if o.get('label', '').startswith('fig-')]
    figures = {l: f'{_page_name(nb, parts)}-{l}' for l in labels}
    cells = []
    for cell,(opts,body) in zip(nb.cells, parts):
        if _gone(cell, opts, body): continue
        if cell.cell_type=='code': _code(cell, opts, body, figures)
        else: cell.source = myst(cell.source, figures)
        cells.append(cell)
    nb.cells = cells
    nb.metadata['language_info'] = dict(name='python', pygments_lexer='ipython3')
    return nb


# %% [markdown]
# A page in small:

# %%
nb = nbformat.v4.new_notebook(cells=[
    prose('# Losses\n> What the model loses.'), code('#| default_exp toy.losses'),
    code('#| export\ndef loss(x):\n    return x**2'), code('#| hide\nimport os'),
    code("scale = 'quick'", metadata=dict(tags=['parameters'])),
    code("scale = 'cpu'", metadata=dict(tags=['injected-parameters'])),
    code('#| label: fig-loss\n#| fig-cap: The loss\n#| echo: false\nplot(loss)'),
    prose('It falls, as @fig-loss shows.')])
seen = read(nbformat.writes(nb))
[(c.source.split('\n')[0], c.metadata.get('tags', [])) for c in seen.cells]

# %%
test_eq(len(seen.cells), 5)
test_eq(seen.cells[1].metadata.defines, ['loss'])
test_eq(seen.cells[3].metadata.mystnb.figure.caption, '**Figure 1.** The loss')
test_eq(seen.cells[4].source, 'It falls, as [Figure 1](#toy-losses-fig-loss) shows.')
