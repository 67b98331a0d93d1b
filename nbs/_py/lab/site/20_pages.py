# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Notebook pages
#
# > Converts a notebook into a page of the site: directives, citations, figures, tables.

# %%
#| default_exp lab.site.pages

# %%
#| export
import ast, json, re
from html import escape

from moral_sc.lab.claims import claims_mime, verdicts
from moral_sc.lab.site.crossrefs import defined_names
from moral_sc.lab.site.interactive import myst_block, replace_blocks

# %%
#| hide
import nbformat
from fastcore.test import *

code = nbformat.v4.new_code_cell
prose = nbformat.v4.new_markdown_cell

# %% [markdown]
# The notebooks are written in nbdev's dialect and stay ordinary notebooks: JupyterLab and GitHub
# show them without us. Sphinx builds the site and reads MyST. This module converts one into the
# other. Sphinx passes it the text of a notebook and receives a notebook in MyST, so there is no
# staging folder.
#
# ## Addresses
#
# Links to the site, the repository and Colab are built from these settings.

# %%
#| export
SITE = 'https://moral-sc.github.io/moral_sc'
REPOSITORY = 'https://github.com/moral-sc/moral_sc'
COLAB = REPOSITORY.replace('https://github.com', 'https://colab.research.google.com/github')
COLAB_INSTALL = f'%pip install "moral_sc @ git+{REPOSITORY}"'  # first cell to run in Colab


# %% [markdown]
# ## Directives
#
# A code cell may open with lines that begin with `#|`. Each is a key, or a key and a value; a
# line without a key continues the value above it.

# %%
#| export
def directives(
    source:str, # A code cell
)->tuple:       # dict of directives, and the code without their lines
    "Separate a cell's directives from its code."
    values = {}
    key = None
    lines = source.split('\n')
    while lines and re.match(r'#\|', lines[0]):
        line = lines.pop(0)[2:].strip()
        m = re.match(r'([\w-]+) *(?:: *(.*)|(\S.*))?$', line)
        if key is None or (m and m[1] in _keys): key,values[m[1]] = m[1], m[2] or m[3] or ''
        else: values[key] = f'{values[key]} {line}'
    return {k: v.strip('\'" ') for k,v in values.items()}, '\n'.join(lines).strip('\n')

_keys = set('''default_exp export exports exporti hide echo eval output include label
    fig-cap mark needs code-fold code-summary warning notest slow gpu cuda'''.split())

# %%
lines = ['#| label: fig-loss', '#| fig-cap: Loss over steps:', '#|   bars are 95% intervals']
options,body = directives('\n'.join([*lines, 'plot(loss)']))
test_eq(body, 'plot(loss)')
options

# %%
test_eq(options['fig-cap'], 'Loss over steps: bars are 95% intervals')
test_eq(directives('#|export\n#| eval: false\nx'), ({'export': '', 'eval': 'false'}, 'x'))
test_eq(directives('x = 1'), ({}, 'x = 1'))

# %% [markdown]
# A figure on a page of a paper needs a label and a caption. The site build warns where it has none, and a
# warning fails the build. A directive below the first line of code is a mistake that a
# [hook](../14_hooks.ipynb) finds.

# %%
#| export
plotly_mime = 'application/vnd.plotly.v1+json'

def cell_problems(
    nb, # A notebook of a paper
)->list: # One sentence per problem
    "Find figures without label or caption."
    problems = []
    for i,cell in enumerate(nb.cells):
        if not any(plotly_mime in o.get('data', {}) for o in cell.get('outputs', [])): continue
        options,_ = directives(cell.source)
        if options.get('label', '').startswith('fig-') and options.get('fig-cap'): continue
        problems.append(f'cell {i} ({cell.get("id", "no id")}): give its figure #| label: fig-... '
                        'and #| fig-cap: ...')
    return problems


# %%
bad = nbformat.v4.new_notebook(cells=[code('x = 1', id='a1b2'),
    code('fig', id='c3d4', outputs=[nbformat.v4.new_output('display_data', {plotly_mime: {}})])])
cell_problems(bad)

# %%
test_eq(len(cell_problems(bad)), 1)
assert 'c3d4' in cell_problems(bad)[0]


# %% [markdown]
# ## Prose
#
# Four things in Markdown cells differ between the dialects: citations, references to figures, callouts
# and [interactive figures](15_interactive.ipynb). Code, inline or fenced, is left as it is, so a page
# can show an `@patch`. A line that begins with a percent sign would be a comment in MyST, so the sign
# is escaped.

# %%
#| export
def to_myst(
    text:str,      # A Markdown cell
    figures=None,  # Labels of the page's figures, in order, and their anchors
)->str:
    "Convert a Markdown cell into MyST."
    parts = re.split(_quoted, _callouts(replace_blocks(text, myst_block)))
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
    citations = [re.match(r'@([\w-]+),? *(.*)', s.strip()) for s in inner.split(';')]
    keys = ','.join(m[1]+(f'{{{m[2]}}}' if m[2] else '') for m in citations if m)
    return f'{{cite:p}}`{keys}`'

def _callouts(text):
    def box(m):
        title = re.match(r'\s*#+ +(.*)\n', m[2])
        body = m[2][title.end():] if title else m[2]
        head = f'{{admonition}} {title[1]}\n:class: {m[1]}' if title else f'{{{m[1]}}}'
        return f':::{head}\n{body.strip()}\n:::'
    return _callout.sub(box, text)


# %%
print(to_myst('''Toy models [@elhage2022] were followed by @henighan2023double; see @fig-loss.

::: {.callout-note}
## A note
Decorators such as `@patch` are left alone.
:::''', {'fig-density': 'toy-fig-density', 'fig-loss': 'toy-fig-loss'}))

# %%
test_eq(to_myst('[@bai2022hh; @ouyang2022]'), '{cite:p}`bai2022hh,ouyang2022`')
test_eq(to_myst('[@elhage2022, section 3]'), '{cite:p}`elhage2022{section 3}`')
test_eq(to_myst('Write to a@b2022.org or [x](https://y.org/@z2022).'),
        'Write to a@b2022.org or [x](https://y.org/@z2022).')
test_eq(to_myst('```\n@elhage2022\n```'), '```\n@elhage2022\n```')
test_eq(to_myst('`@fig-x`'), '`@fig-x`')
test_eq(to_myst('It wins with 73\n% of 9 %.'), 'It wins with 73\n\\% of 9 %.')


# %% [markdown]
# ## Figures
#
# A notebook keeps a plotly figure as data. On the page it becomes a box that holds the data, and
# `data/report/figures.js` draws it for the width and the theme of the screen. Screen readers get the
# caption as its name. No `<` is left in the data, so nothing in it can end
# the script element early.

# %%
#| export
def figure_box(
    spec:dict,         # Plotly figure as JSON
    name:str='Figure', # For screen readers, plain text
    small=False,       # As in a list of figures, without titles and legend
)->str:                # HTML
    "Make the box that the script of site and reports draws a figure into."
    layout = spec.get('layout', {})
    house = layout.get('template', {}).get('layout', {})
    size = lambda k, default: layout.get(k) or house.get(k) or default
    w = size('width', 640)
    h = size('height', 380)
    frames = {k: spec[k] for k in ('frames',) if spec.get(k)}
    data = json.dumps(dict(data=spec.get('data', []), layout=layout) | frames)
    return (f'<div class="figure-box{" small"*small}" role="group" aria-label="{escape(name)}" '
            f'style="max-width:{w:g}px;height:{h:g}px" '
            f'data-width="{w:g}" data-height="{h:g}">'
            f'<script type="application/json">{data.replace("<", _lt)}</script>'
            '<noscript>JavaScript draws this figure.</noscript></div>')

_lt = '\\u003c'

# %%
bad = dict(data=[dict(type='scatter', name='</script><b>')], layout={})
box = figure_box(bad, 'A "line"')
test_eq(box.count('<b>'), 0)
test_eq(json.loads(re.search(r'json">(.*?)</script>', box)[1]), bad)
box


# %% [markdown]
# ## Tables
#
# The last column of a claims table is a verdict. Its words get a class for their colour. The style
# sheet that pandas adds to each frame is removed, and a header without text becomes a plain cell.

# %%
#| export
def style_table(
    html:str, # A table as a notebook keeps it
)->str:
    "Add the site's classes to a table."
    html = re.sub(r'<style scoped>.*?</style>\s*', '', html, flags=re.S)
    html = html.replace(' border="1"', '').replace('<th></th>', '<td></td>')
    if 'class="claims"' not in html: return html
    words = '|'.join(sorted((*verdicts, 'closed'), key=len, reverse=True))
    return re.sub(rf'<td>({words})\b(.*?)</td>', _badge, html)

def _badge(m):
    rest = re.sub(r'^: |^ \(|\)$', '', m[2])
    rest = f'<br><small>{rest}</small>' if rest else ''
    return f'<td><span class="verdict {verdict_class(m[1])}">{m[1]}</span>{rest}</td>'

def verdict_class(
    text:str,
)->str:
    "Return the name of a verdict's CSS class."
    return re.sub(r'\W+', '-', text)


# %%
row = '<table class="claims"><tr><td>A sentence.</td><td>holds</td></tr></table>'
style_table(row)

# %%
assert '<small>too few</small>' in style_table(row.replace('holds', 'fails (too few)'))
closed = row.replace('holds', 'closed: It cannot (fail).')
assert '<small>It cannot (fail).</small>' in style_table(closed)
other = row.replace('claims', 'frame')
test_eq(style_table(other), other)
test_eq(style_table('<tr><th></th><th>n</th></tr>'), '<tr><td></td><th>n</th></tr>')


# %% [markdown]
# ## Outputs
#
# An output may hold the same thing in several formats. The page shows the one that is best for a
# reader: of a figure the interactive one, not the PNG that is there for GitHub.

# %%
#| export
def prepare_output(
    out,           # Output of a cell; changed in place
    figures=None,  # Labels of the page's figures and their anchors
    name='Figure', # Of a figure, for screen readers
):
    "Prepare an output for the site."
    data = out.get('data', {})
    data.pop(claims_mime, None)
    if plotly_mime in data: out['data'] = {'text/html': figure_box(data[plotly_mime], name)}
    elif 'text/html' in data: data['text/html'] = style_table(_joined(data['text/html']))
    elif 'text/markdown' in data:
        data['text/markdown'] = to_myst(_joined(data['text/markdown']), figures)
    return out

def _joined(text): return text if isinstance(text, str) else ''.join(text)


# %%
list(prepare_output(dict(data={plotly_mime: bad, 'image/png': 'iVBO', 'text/plain': ''}))['data'])


# %% [markdown]
# ## The record of a run
#
# `moral_sc record` stores in a page's metadata how its outputs were made: scale, seed, minutes,
# machine and commit, and what it read of runs that were finished before. The page shows them under its title, with the commands that run it again, and
# with a picture of the main figure, which comes only after some code. Parameters, sizes and imports are folded: they matter to readers who rerun the page.

# %%
#| export
def record_line(
    record:dict, # Metadata `moral_sc` of a page: scale, seed, minutes, machine, commit
)->str:          # Markdown, '' without a scale
    "Describe how the outputs of a page were made."
    if not record.get('scale'): return ''
    parts = [f'Recorded at scale `{record["scale"]}`']
    if record.get('seed') is not None: parts.append(f'seed {record["seed"]}')
    if record.get('minutes') is not None: parts.append(_minutes(record['minutes']))
    if record.get('machine'): parts.append(record['machine'])
    if commit := record.get('commit'):
        changed = ' with uncommitted changes' if commit.endswith('+') else ''
        link = f'{REPOSITORY}/commit/{commit.rstrip("+")}'
        parts.append(f'commit [`{commit[:7]}`]({link}){changed}')
    return ', '.join(parts)+'.'+_earlier_runs(record.get('earlier'))

def _earlier_runs(earlier):
    "Say what a recording that found runs finished left out of its time"
    if not earlier: return ''
    n = earlier['runs']
    took = f'{"" if earlier["complete"] else "at least "}{_minutes(earlier["seconds"]/60)}'
    return f' It read {n} run{"s"*(n>1)} finished before, which took {took}.'

def _minutes(m): return f'{m:.1f} minutes' if m>=1 else f'{60*m:.0f} seconds'

def banner(
    record:dict, # Metadata `moral_sc` of a page; `page` names it below `nbs`
)->str:          # MyST
    "Make the lines under a paper page's title."
    line = record_line(record)
    page = record.get('page', '')
    parts = [f':::{{container}} record\n{line}\n:::'] if line else []
    if page.startswith('papers/'):
        colab = f'[Colab]({COLAB}/blob/main/nbs/{page}.ipynb)'
        command = f'`moral_sc reproduce {page.removeprefix("papers/")}`'
        parts.append(f':::{{container}} rerun\nRerun: {command}, or in {colab} after '
                     f'`{COLAB_INSTALL}`.\n:::')
    return '\n\n'.join(parts)

def main_figure(
    cells:list,   # Of a paper page, before they are converted
    label:str,    # `#| label:` of its main figure
    figures:dict, # Labels of the page's figures and their anchors
)->str:           # MyST, '' if the page opens with the figure or has no picture of it
    "Make the picture at the top of a paper page that links to its main figure."
    shown = [c for c in cells if c.cell_type=='code' and not folded(c)
             and not _removed(c, *directives(c.source))]
    cell = next((c for c in shown[1:] if directives(c.source)[0].get('label')==label), None)
    pngs = [o['data']['image/png'] for o in (cell.outputs if cell else [])
            if 'image/png' in o.get('data', {})]
    if not pngs: return ''
    caption = directives(cell.source)[0].get('fig-cap', '')
    png = _joined(pngs[0]).replace('\n', '')
    return (f':::{{figure}} data:image/png;base64,{png}\n:figclass: main-figure\n'
            f':alt: {caption_text(caption)}\n:target: "#{figures[label]}"\n\n'
            f'[{_numbered(label, figures)}](#{figures[label]}). {to_myst(caption, figures)}\n:::')

def folded(
    cell, # A code cell of a paper page
)->str:   # '' if it is shown
    "Name a cell of parameters, sizes, imports or timing, which the page folds."
    body = directives(cell.source)[1]
    if 'parameters' in cell.metadata.get('tags', []): return 'Parameters'
    if re.match(r'sizes? *= *(dict|at_scale)\(', body): return 'Sizes at each scale'
    if re.search(r'perf_counter\(\) *- *\w+', body) and len(body.split('\n'))<5: return 'Duration'
    lines = re.sub(r'\([^)]*\)', '()', body).split('\n')
    plumbing = r'(import|from) |\w+ *= *perf_counter\(\)|$'
    return 'Imports' if body and all(re.match(plumbing, l) for l in lines) else ''


# %%
record = dict(scale='cpu', seed=0, minutes=1.9, machine='1 CPU thread', commit='3289e23',
              page='papers/superposition/phase_change')
print(banner(record))

# %%
test_eq(record_line({}), '')
assert '/commit/3289e23) with uncommitted changes.' in record_line(record | dict(commit='3289e23+'))
earlier = dict(runs=43, seconds=1260, complete=True)
record_line(dict(scale='cpu', minutes=.3, earlier=earlier))

# %%
assert 'It read 43 runs finished before, which took 21.0 minutes.' in record_line(
    record|dict(earlier=earlier))
assert 'It read 1 run finished before, which took at least 30 seconds.' in record_line(
    record|dict(earlier=dict(runs=1, seconds=30, complete=False)))
test_eq(folded(code('from a import (b,\n    c)\nimport d')), 'Imports')
test_eq(folded(code('size = dict(\n    quick=dict(n=1))[scale]')), 'Sizes at each scale')
test_eq(folded(code('import d\nd.plot()')), '')


# %% [markdown]
# ## A page
#
# Cells marked `hide` are removed. The code of exported cells stays, because it is what a library
# page is about, and the comments beside parameters are their documentation. Each exported cell
# lists the names it defines, so that the reference can link to it.

# %%
#| export
def _removed(cell, options, body):
    tags = cell.metadata.get('tags', [])
    if cell.cell_type!='code': return not cell.source.strip()
    return ('hide' in options or options.get('include')=='false' or 'injected-parameters' in tags
            or not body and not cell.outputs or re.search(r'\bnbdev_export\(\)', body))

def _tags(options):
    tags = {('echo', 'false'): 'remove-input', ('output', 'false'): 'remove-output',
            ('code-fold', 'true'): 'hide-input',
            ('export', ''): 'export', ('exports', ''): 'export'}
    return [tags[kv] for kv in options.items() if kv in tags]

def _convert_code(cell, options, body, figures, paper):
    "Convert a code cell into MyST-NB's terms, in place"
    tags = [*cell.metadata.get('tags', []), *_tags(options)]
    title = folded(cell) if paper else ''
    cell.source = body
    if title=='Parameters': cell.outputs = [] # The banner says it
    caption = options.get('fig-cap', '')
    cell.outputs = [prepare_output(o, figures, caption_text(caption)) for o in cell.outputs]
    if 'export' in tags: cell.metadata['defines'] = _names(body)
    label = options.get('label', '')
    if label in figures:
        caption = f'**{_numbered(label, figures)}.** {to_myst(caption, figures)}'
    fig = {'name': figures.get(label, ''), 'caption': caption}
    settings = dict(figure={k:v for k,v in fig.items() if v}) if caption else {}
    if caption: settings['image'] = dict(alt=caption_text(options['fig-cap']))
    if title: settings |= dict(code_prompt_show=title, code_prompt_hide=title)
    cell.metadata['tags'] = tags + ['hide-cell']*bool(title)
    if settings: cell.metadata['mystnb'] = settings

def title_and_line(
    text:str, # Markdown of a page's beginning
)->tuple:     # '' for what is missing
    "Return the title and the > line of a page."
    title = re.search(r'^# +(.+)', text, re.M)
    line = re.search(r'^> ?(.+(?:\n> ?.+)*)', text, re.M)
    return title[1].strip() if title else '', re.sub(r'\n> ?', ' ', line[1]) if line else ''

def caption_text(
    markdown:str, # A caption
)->str:           # 'Figure' where it is empty
    "Remove the markup of a caption, for screen readers."
    text = re.sub(r'\[@[^]]*\]|[`*$\\]', '', markdown)
    return re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', text).strip() or 'Figure'

def _page_name(nb, parts):
    "A word for a page that no other page has: labels must differ across the site"
    module = next((o['default_exp'] for o,_ in parts if 'default_exp' in o), '')
    title = re.search(r'^# +(.*)', '\n'.join(c.source for c in nb.cells), re.M)
    return re.sub(r'\W+', '-', module or (title[1] if title else 'page')).strip('-').lower()

def _names(body):
    try: return [n for s in ast.parse(body).body for n in defined_names(s) if n[0]!='_']
    except SyntaxError: return []


# %%
#| export
def is_paper_page(
    nb, # A notebook
)->bool:
    "Whether a notebook has a parameter `scale`, as every page of a paper has."
    cells = [c.source for c in nb.cells if 'parameters' in c.metadata.get('tags', [])]
    return bool(re.search(r'^scale *=', '\n'.join(cells), re.M))

def read_page(
    text:str, # A notebook file
):            # NotebookNode
    "Convert a notebook into a page of the site."
    import nbformat
    nb = nbformat.reads(text, 4)
    paper = is_paper_page(nb)
    parts = [directives(c.source) for c in nb.cells]
    labels = [o['label'] for o,_ in parts if o.get('label', '').startswith('fig-')]
    figures = {l: f'{_page_name(nb, parts)}-{l}' for l in labels}
    record = nb.metadata.get('moral_sc', {})
    picture = main_figure(nb.cells, record.get('figure', ''), figures)
    top = [banner(record), picture] if paper else []
    cells = []
    for cell,(options,body) in zip(nb.cells, parts):
        if _removed(cell, options, body): continue
        if cell.cell_type=='code': _convert_code(cell, options, body, figures, paper)
        else: cell.source = to_myst(cell.source, figures)
        cells.append(cell)
    for part in top if cells else []: cells[0].source += f'\n\n{part}'.rstrip()
    nb.cells = cells
    nb.metadata['language_info'] = dict(name='python', pygments_lexer='ipython3')
    return nb


# %% [markdown]
# A page in small:

# %%
nb = nbformat.v4.new_notebook(metadata=dict(moral_sc=record), cells=[
    prose('# Losses\n> What the model loses.'), code('#| default_exp toy.losses'),
    code('#| export\ndef loss(x):\n    return x**2'), code('#| hide\nimport os'),
    code("scale = 'quick'", metadata=dict(tags=['parameters'])),
    code("scale = 'cpu'", metadata=dict(tags=['injected-parameters'])),
    code('#| label: fig-loss\n#| fig-cap: The loss\n#| echo: false\nplot(loss)'),
    prose('It falls, as @fig-loss shows.')])
page = read_page(nbformat.writes(nb))
[(c.source.split('\n')[0], c.metadata.get('tags', [])) for c in page.cells]

# %%
test_eq(len(page.cells), 5)
assert 'Recorded at scale `cpu`' in page.cells[0].source
test_eq(page.cells[1].metadata.defines, ['loss'])
test_eq(page.cells[3].metadata.mystnb.figure.caption, '**Figure 1.** The loss')
test_eq(page.cells[3].metadata.mystnb.image.alt, 'The loss')  # of a figure without plotly's data
test_eq(page.cells[4].source, 'It falls, as [Figure 1](#toy-losses-fig-loss) shows.')

# %% [markdown]
# The main figure is named by the list of the paper's figures. It is shown at the top if code comes
# before it:

# %%
png = nbformat.v4.new_output('display_data', {'image/png': 'iVBO\n'})
nb.metadata.moral_sc.figure = 'fig-loss'
nb.cells[-2].outputs = [png]
top = read_page(nbformat.writes(nb)).cells[0].source
print(top[top.index(':::{figure}'):])

# %%
nb.cells[2].source = '#| hide\nimport os'  # now the figure is the first thing shown
assert 'base64' not in read_page(nbformat.writes(nb)).cells[0].source
