# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Paper indexes
#
# > Makes the tables of claims and figures of each paper from its recorded pages.

# %%
#| default_exp lab.site.papers

# %%
#| export
import base64, io, re
from html import escape
from pathlib import Path

from moral_sc.foundation.datasets import data_dir, read_toml
from moral_sc.foundation.errors import ConfigError, DataError
from moral_sc.lab.claims import claim_text, format_estimate, ledger, verdict_text, verdicts
from moral_sc.lab.paths import find_pages, notebooks_dir, page_name
from moral_sc.lab.site.pages import directives, plotly_mime, title_and_line, verdict_class

# %%
#| hide
import json
import tempfile

import nbformat
import pandas as pd
import plotly.graph_objects as go
from fastcore.test import *

tmp = Path(tempfile.mkdtemp())
code = nbformat.v4.new_code_cell
prose = nbformat.v4.new_markdown_cell

# %% [markdown]
# The front page and the index page of each paper summarise what the recorded pages found. They
# read the outputs in the notebooks, so they need no run and agree with the pages.
#
# ## Claims
#
# The ledger has many columns. A reader needs four: the claim, the measurement, the verdict and
# a link to the page.

# %%
#| export
PAPER_TITLES = dict(superposition='Toy Models of Superposition', constitution='Constitutional AI',
                    self_correction='Moral Self-Correction')

class ClaimsTable:
    "A ledger as one Markdown table per paper."
    def __init__(
        self,
        rows,          # What `ledger` returns
        pages='papers' # Path to the papers' pages from the page that shows the table
    ):
        self.rows = rows
        self.pages = pages
    def _row(self, r):
        unit = r.quantity.split(' (')[0]
        number = format_estimate(r.estimate, r.low, r.high)
        value = f'{number} {unit}' if r.scale else ''
        text = f'[{claim_text(r)}]({self.pages}/{r.page}.ipynb)' if r.page else claim_text(r)
        verdict = verdict_text(dict(verdict=r.verdict, why=r.why), r.closed)
        word = 'closed' if r.closed else r.verdict
        return [text, value, f'**{word}**{verdict.removeprefix(word)}']
    def _table(self, paper):
        found = self.rows[self.rows.paper==paper]
        order = (found.whose!='paper')+2*(found.closed!='')  # the paper's, ours, closed
        found = found.loc[order.sort_values(kind='stable').index]
        rows = [self._row(r) for r in found.itertuples()]
        cells = [[str(c).replace('|', '\\|').replace('<', '&lt;') for c in r] for r in rows]
        head = [PAPER_TITLES.get(paper, paper), 'Found', 'Verdict']
        return '\n'.join('| '+' | '.join(l)+' |' for l in [head, ['---']*3, *cells])
    @property
    def papers(self):
        return sorted(set(self.rows.paper), key=[*PAPER_TITLES, *self.rows.paper].index)
    def _repr_markdown_(self): return '\n\n'.join(self._table(p) for p in self.papers)
    def __repr__(self):
        return '\n'.join(f'{r.id}: {r.verdict}' for r in self.rows.itertuples())

def claims_table(
    paper='',        # One paper, default: all
    pages='papers',  # Path to the papers' pages from the page that shows the table
    **kwargs,        # For `ledger`
)->ClaimsTable:
    "List what a paper claims and what the recorded pages found."
    rows = ledger(**kwargs)
    return ClaimsTable(rows[rows.paper==paper] if paper else rows, pages)


# %%
row = dict(id='pendulum/period', paper='Pendulum', sentence='Weight | does not matter.',
           quantity='ratio (heavy over light)', estimate=1.001, low=.995, high=1.01,
           verdict='holds', why='', page='', scale='quick', whose='paper', setting='', closed='')
ClaimsTable(pd.DataFrame([row]))

# %%
linked = ClaimsTable(pd.DataFrame([row | dict(page='p/swing')]))._repr_markdown_()
test_eq(linked.splitlines()[2], '| [Weight \\| does not matter.](papers/p/swing.ipynb) | '
                                f'{format_estimate(1.001, .995, 1.01)} ratio | **holds** |')

# %%
shut = row | dict(whose='ours', closed='it cannot fail')
marked = ClaimsTable(pd.DataFrame([shut, row]))._repr_markdown_().splitlines()[2:]
assert 'closed' not in marked[0] and '(ours)' in marked[1]
assert '**closed**: it cannot fail. By its criterion: holds' in marked[1]


# %% [markdown]
# The front page shows the counts: what the paper says apart from what we add, and closed claims
# apart from those that count.

# %%
#| export
class ClaimCounts(ClaimsTable):
    "Claims counted by paper, whose they are, and verdict, as a Markdown table."
    def _count(self, paper, whose):
        rows = self.rows[(self.rows.paper==paper) & (self.rows.whose==whose)]
        counts = rows[rows.closed==''].verdict.value_counts()
        title = PAPER_TITLES.get(paper, paper)
        link = f'[{title}]({self.pages}/{paper}.md)'
        name = link if whose=='paper' else f'{title}, our additions'
        numbers = [*(counts.get(v, 0) for v in verdicts), (rows.closed!='').sum()]
        return [name, *map(str, numbers)]
    @property
    def table(self):
        "Title and counts, one list for each paper and whose claims they are"
        return [self._count(p, w) for p in self.papers for w in ('paper', 'ours')]
    def _repr_markdown_(self):
        head = ['Claims of', *verdicts, 'closed']
        lines = [head, ['---']+['---:']*(len(head)-1), *self.table]
        return '\n'.join('| '+' | '.join(l)+' |' for l in lines)
    @property
    def text(self):
        "Counts as lines of text"
        words = [*verdicts, 'closed']
        counts = lambda ns: ', '.join(f'{n} {w}' for n,w in zip(ns, words, strict=True) if n!='0')
        return '\n'.join(f'{re.sub("[][]|[(].*", "", n[0])}: {counts(n[1:])}' for n in self.table)

def claim_counts(**kwargs)->ClaimCounts: # Arguments of `claims_table`
    "Count claims by paper and verdict."
    table = claims_table(**kwargs)
    return ClaimCounts(table.rows, table.pages)


# %%
other = row | dict(id='pendulum/amplitude', sentence='Nor does amplitude.', verdict='fails')
counts = ClaimCounts(pd.DataFrame([row, other, shut]).assign(paper='superposition'), '../../papers')
counts

# %%
test_eq(counts._repr_markdown_().splitlines()[2:],
        ['| [Toy Models of Superposition](../../papers/superposition.md) | 1 | 1 | 0 | 0 | 0 | 0 |',
         '| Toy Models of Superposition, our additions | 0 | 0 | 0 | 0 | 0 | 1 |'])


# %% [markdown]
# ## A figure of another page
#
# A recorded figure is read from the outputs of its page.

# %%
#| export
def _page_path(page, folder):
    path = Path(folder or notebooks_dir())/f'{page}.ipynb'
    if path.is_file(): return path
    pages = find_pages([page], folder)
    if len(pages)==1: return pages[0]
    raise ConfigError(f'{page!r} names {len(pages)} pages: give one, such as '
                      f'{page_name(pages[0])!r}.')

def find_figure(
    nb,        # A notebook, as read
    label:str, # Of a cell (`#| label:`); '' for the first figure
)->dict:       # MIME type to data; empty if there is none
    "Return the output of a notebook that shows a figure."
    cells = [c for c in nb.cells if c.cell_type=='code']
    cells = [c for c in cells if label in ('', directives(c.source)[0].get('label'))]
    datas = [o.get('data', {}) for c in cells for o in c.outputs]
    return next((d for d in datas if plotly_mime in d), {})

def figure_data(
    page:str,  # 'paper/page' or 'page', as `moral_sc reproduce` takes it
    label:str, # Its `#| label:`; '' for the first figure
    folder,    # Of executed pages; None for the recorded ones
)->dict:       # MIME type to data
    "Return the output of a page that shows a figure."
    import nbformat
    found = find_figure(nbformat.read(_page_path(page, folder), 4), label)
    if not found: raise ConfigError(f'{page} shows no figure {label!r}: record it first.')
    return found

def recorded_figure(
    page:str,    # 'paper/page' or 'page', as `moral_sc reproduce` takes it
    label='',    # Its `#| label:`, default: the first figure
    folder=None, # Of the papers' pages, default: ours
):               # plotly Figure
    "Read a figure from a recorded page."
    import plotly.graph_objects as go
    spec = figure_data(page, label, folder)[plotly_mime]
    return go.Figure(dict(data=spec['data'], layout=spec['layout']))


# %%
#| hide
def page(name, *cells):
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells)), tmp/f'{name}.ipynb')

def figure_output(fig, **kwargs):
    data = {plotly_mime: json.loads(fig.to_json()), 'text/plain': 'Figure()', **kwargs}
    return nbformat.v4.new_output('display_data', data=data)


# %%
fig = go.Figure(go.Scatter(y=[1, 4, 9]))
cell = code('#| label: fig-squares\nfig', outputs=[figure_output(fig, **{'image/png': 'iVBO'})])
page('squares', prose('# Squares\n\n> Squares grow faster than numbers.'), cell)
recorded_figure('squares', 'fig-squares', tmp).data[0].y

# %%
with expect_fail(ConfigError, contains="shows no figure 'fig-cubes'"):
    recorded_figure('squares', 'fig-cubes', tmp)
test_eq(recorded_figure('demonstrating_superposition').to_json(),
        recorded_figure('superposition/demonstrating_superposition').to_json())
for name,words in [('demonstrating_superpositon', 'did you mean'), ('superposition', 'give one')]:
    with expect_fail(ConfigError, contains=words): recorded_figure(name)


# %% [markdown]
# ## The index of a paper
#
# `data/papers` lists the figures and tables of each paper in the paper's order, each with our page
# and the figure on it, or with the reason why we have none. The index page shows the list with
# thumbnails and the verdicts on the page's claims.

# %%
#| export
def paper_entries(
    paper:str,   # superposition | constitution | self_correction
    folder=None, # Of the lists, default: `data/papers`
)->list[dict]:   # item, about, and page and figure, or missing
    "List the figures and tables of a paper."
    path = Path(folder or data_dir()/'papers')/f'{paper}.toml'
    entries = read_toml(path)['entries']
    for e in entries:
        kinds = [{'item', 'about', 'page', 'figure'}, {'item', 'about', 'missing'}]
        if set(e) not in kinds:
            raise DataError(f'{path.name}: {e} needs item, about, and page and figure, or missing.')
    return entries

def _title_and_line(page, folder):
    "Title of a page and its > line"
    import nbformat
    nb = nbformat.read(Path(folder or notebooks_dir())/f'{page}.ipynb', 4)
    text = next(c.source for c in nb.cells if c.cell_type=='markdown')
    return title_and_line(text)

def _thumbnail(entry, folder):
    png = figure_data(entry['page'], entry['figure'], folder).get('image/png')
    if not png: return ''
    link = f'{entry["page"]}.html'
    return (f'<a href="{link}" tabindex="-1" aria-hidden="true">'
            f'<img src="data:image/png;base64,{png}" alt="" loading="lazy"></a>')

def _badges(page, rows):
    counts = rows[(rows.page==page) & (rows.closed=='')].verdict.value_counts()
    return ' '.join(f'<span class="verdict {verdict_class(v)}">{counts[v]} {v}</span>'
                    for v in verdicts if v in counts)

def _index_row(entry, rows, folder):
    item = f'<td><b>{escape(entry["item"])}</b><br>{escape(entry["about"])}</td>'
    if 'missing' in entry:
        reason = re.sub('`([^`]*)`', r'<code>\1</code>', escape(entry['missing']))
        return f'<tr class="missing">{item}<td colspan="2">Not here: {reason}.</td></tr>'
    title,line = _title_and_line(entry['page'], folder)
    link = f'<a href="{entry["page"]}.html">{escape(title)}</a>'
    badges = _badges(entry['page'], rows) or escape(line)
    return f'<tr>{item}<td>{link}<br>{badges}</td><td>{_thumbnail(entry, folder)}</td></tr>'

def paper_index(
    paper:str,
    folder=None, # Of the papers' pages, default: ours
    path=None,   # Folder of criteria, default: ours
    lists=None,  # Folder of the lists, default: `data/papers`
)->str:          # HTML; links are relative to the folder of the papers' index pages
    "Make the table of a paper's figures: page, thumbnail, verdicts."
    rows = ledger(folder, path)
    body = '\n'.join(_index_row(e, rows, folder) for e in paper_entries(paper, lists))
    head = '<tr><th>In the paper</th><th>Page and verdicts</th><th>Figure</th></tr>'
    table = f'<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>'
    return f'<table class="paper-index">\n{table}\n</table>'


# %%
(tmp/'lists').mkdir(exist_ok=True)
_ = (tmp/'lists'/'toy.toml').write_text('''entries = [
 {item="Figure 1", about="squares", page="squares", figure="fig-squares"},
 {item="Figure 2", about="cubes", missing="needs `cubes`"},
]''')
index = paper_index('toy', tmp, tmp/'none', tmp/'lists')
print(index)

# %%
for part in ['href="squares.html">Squares<', 'Squares grow', 'base64,iVBO', 'here: needs <code>']:
    assert part in index
_ = (tmp/'lists'/'bad.toml').write_text('entries = [{item="Figure 1", about="squares"}]')
with expect_fail(DataError, contains='page and figure, or missing'):
    paper_entries('bad', tmp/'lists')

# %% [markdown]
# A code host shows no thumbnails. The committed index page holds a plain table between two comments,
# written by `moral_sc site readme`; the site puts the table above in its place.

# %%
#| export
_INDEX_BLOCK = re.compile(r'<!-- paper-index (\S+) -->\n.*?<!-- end -->', re.S)

def plain_paper_index(
    paper:str,
    folder=None, # Of the papers' pages, default: ours
    lists=None,  # Folder of the lists, default: `data/papers`
)->str:          # Markdown, between its comments
    "Make the table of a paper's figures for a code host."
    rows = ['| In the paper | Page |', '| --- | --- |']
    for e in paper_entries(paper, lists):
        item = f'{e["item"]}: {e["about"]}'
        page = f'Not here: {e["missing"]}.' if 'missing' in e else \
            f'[{_title_and_line(e["page"], folder)[0]}]({e["page"]}.ipynb)'
        rows.append(f'| {item} | {page} |')
    return '\n'.join([f'<!-- paper-index {paper} -->', *rows, '<!-- end -->'])

def fill_index_blocks(
    text:str, # A Markdown page
    table,    # Function that makes the text of a block from the name of its paper
)->str:
    "Replace each block that `plain_paper_index` makes."
    return _INDEX_BLOCK.sub(lambda m: table(m[1]), text)


# %%
plain = plain_paper_index('toy', tmp, tmp/'lists')
print(plain)

# %%
test_eq(fill_index_blocks(f'Before\n\n{plain}\n', lambda paper: paper.upper()), 'Before\n\nTOY\n')

# %% [markdown]
# The lists of the three papers name pages and figures that exist, and every page is in one.

# %%
pages = {p.relative_to(notebooks_dir()).with_suffix('').as_posix()
         for p in notebooks_dir().glob('[a-z]*/*.ipynb')}
entries = [e for paper in PAPER_TITLES for e in paper_entries(paper)]
for e in entries:
    if 'page' in e: recorded_figure(e['page'], e['figure'])
test_eq(pages - {e.get('page') for e in entries}, set())
pd.Series([e['item'] for e in entries if 'missing' in e]).tolist()


# %% [markdown]
# ## The picture of the front page
#
# The front page and the README show one figure of each paper side by side.

# %%
#| export
def side_by_side(
    panels:dict, # Title to (page, label) of a recorded figure
    width=420,   # Of a panel, in pixels
    height=330,
    scale=2.,    # Pixels of the picture per pixel
    folder=None, # Of the papers' pages, default: ours
    parts=None,  # Title to what is drawn of a figure: names of curves; one axis, as 'x3', of
                 # several, and titles x and y. Default: all
):               # IPython Image
    "Draw recorded figures side by side as one PNG."
    from IPython.display import Image as Shown
    from PIL import Image
    from moral_sc.lab.site.outputs import drawing_browser
    datas = {title: figure_data(*place, folder) for title,place in panels.items()}
    specs = [_panel(_part(d[plotly_mime], **(parts or {}).get(title, {})), title, width, height)
             for title,d in datas.items()]
    size = round(width*scale), round(height*scale)
    sheet = Image.new('RGB', (size[0]*len(panels), size[1]), 'white')
    try:
        with drawing_browser(): images = [_drawn(s, scale) for s in specs]
    except ConfigError:  # no browser: the smaller pictures that the pages have
        images = [_stored(d, size) for d in datas.values()]
    for i,image in enumerate(images): sheet.paste(image, (i*size[0], 0))
    buffer = io.BytesIO()
    sheet.quantize(128, dither=Image.Dither.NONE).save(buffer, 'png', optimize=True)
    return Shown(buffer.getvalue(), format='png', width=width*len(panels))

def _drawn(spec, scale):
    from PIL import Image
    from moral_sc.lab.site.outputs import figure_png
    return Image.open(io.BytesIO(figure_png(spec, scale))).convert('RGB')

def _stored(data, size):
    from PIL import Image
    if 'image/png' not in data: raise ConfigError('Pictures need Chromium: install it.')
    return Image.open(io.BytesIO(base64.b64decode(data['image/png']))).convert('RGB').resize(size)

def _panel(spec, title, width, height):
    "A figure with a title and the size of a panel"
    title = dict(text=title, x=.5, xanchor='center', y=.97, yanchor='top', font=dict(size=15))
    margin = dict(l=64, r=24, t=84, b=56)
    layout = spec['layout'] | dict(title=title, width=width, height=height, margin=margin)
    return dict(data=spec['data'], layout=layout)

def _part(spec, names=None, axis=None, x='', y=''):
    "Some curves of a figure, or of one of its panels"
    data,layout = spec['data'],spec['layout']
    if axis:
        data = [t | dict(xaxis='x', yaxis='y', showlegend=True) for t in data
                if t.get('xaxis', 'x')==axis]
        titles = dict(xaxis=dict(title=dict(text=x)), yaxis=dict(title=dict(text=y)))
        layout = dict(template=layout.get('template', {})) | titles
    known = [t.get('name') for t in data]
    if unknown := set(names or ())-set(known):
        raise ConfigError(f'The figure has no curve {sorted(unknown)}: give some of {known}.')
    return dict(data=[t for t in data if not names or t.get('name') in names], layout=layout)


# %%
two = dict(data=[dict(name='Q'), dict(name='Q+IF'), dict(name='Q', xaxis='x2', yaxis='y2')],
           layout=dict(xaxis2=dict(domain=[.5, 1])))
test_eq(_part(two), two)
test_eq([t['name'] for t in _part(two, ['Q+IF'])['data']], ['Q+IF'])
second = _part(two, ['Q'], 'x2', 'steps', 'bias')
test_eq([(t['name'], t['xaxis']) for t in second['data']], [('Q', 'x')])
test_eq(second['layout']['xaxis']['title']['text'], 'steps')
with expect_fail(ConfigError, contains="no curve ['CoT']"): _part(two, ['CoT'])
