# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Report
#
# > Writes executed pages as a folder of HTML that opens without a network.

# %%
#| default_exp lab.site.report

# %%
#| export
import json, re
from functools import cache, lru_cache
from html import escape
from pathlib import Path, PurePosixPath

from moral_sc.foundation.datasets import data_dir
from moral_sc.foundation.files import read_json_object, write_file
from moral_sc.lab.agreement import agreements, paper_order, stored_run, summary
from moral_sc.lab.claims import claim_text, format_estimate
from moral_sc.lab.execution import strip_escapes, read_notebook
from moral_sc.lab.paths import notebook_paths, notebooks_dir, page_name
from moral_sc.lab.site.interactive import scripts_of
from moral_sc.lab.site.pages import (SITE, caption_text, directives, figure_box, folded,
                                     plotly_mime, style_table, title_and_line, verdict_class)
from moral_sc.lab.site.papers import PAPER_TITLES, find_figure, paper_entries

# %%
#| hide
import subprocess
import tempfile

import nbformat
import plotly.graph_objects as go
from fastcore.test import *

from moral_sc.lab.agreement import compare_report
from moral_sc.lab.site.interactive import find_browser

tmp = Path(tempfile.mkdtemp())


# %% [markdown]
# The site shows our recorded outputs. A report shows the outputs of your own run. It opens from a
# folder that was copied off a cluster, without a network, so it consists of plain files: one copy of
# plotly's script, one style sheet, formulas as MathML.
#
# Much of the text is not ours: questions come from data sets and answers from models, and both may
# contain markup. Everything is escaped except the kinds of output that are drawn.
#
# ## Prose
#
# Pages are written in the dialect of the site. A report understands the same: formulas, citations,
# references to figures, callouts and links to other pages.

# %%
#| export
def formula_html(
    tex:str,
    display:str='inline', # inline | block
)->str:
    "Convert TeX into MathML; keep it as written where latex2mathml cannot."
    try:
        from latex2mathml.converter import convert
        return convert(tex, display=display)
    except Exception: return f'<code class="tex">{escape(tex)}</code>'


# %%
formula_html('x^2')[:60]


# %%
#| export
def _renderer(page, inside):
    import mistune
    def target(url):
        "Link notebooks to their page in this report, otherwise to the site"
        if re.match(r'[a-z]+:|#|/', url) or '.ipynb' not in url: return url
        path = _joined(PurePosixPath('papers', page).parent, url.replace('.ipynb', ''))
        name = path.removeprefix('papers/')
        if name in inside: return f'{_up(page)}pages/{name}.html'
        return f'{SITE}/{path}.html'
    class Html(mistune.HTMLRenderer):
        def inline_math(self, text): return formula_html(text)
        def block_math(self, text): return formula_html(text, 'block')
        def link(self, text, url, title=None): return super().link(text, target(url), title)
    return mistune.create_markdown(renderer=Html(escape=True),
                                   plugins=['table', 'strikethrough', 'math', 'footnotes'])

def _up(page): return '../'*(page.count('/')+1)

def _joined(folder, url):
    parts = []
    for p in (folder/url).parts: parts = parts[:-1] if p=='..' else [*parts, p]
    return '/'.join(parts)


# %%
#| export
def _author(key):
    m = re.match(r'([a-z]+)(\d{4})', key)
    return (m[1].capitalize(), m[2]) if m else (key, '')

def _cited(m):
    names = [' '.join(_author(k)).strip() for k in re.findall(r'@([\w-]+)', m[0])]
    return f'({"; ".join(names)})'

def _named(m):
    name,year = _author(m[1])
    return f'{name} ({year})'

def _dialect(text, figures):
    def number(m):
        return f'[Figure {figures.index(m[1])+1}](#{m[1]})' if m[1] in figures else 'Figure'
    text = re.sub(r'\[@[\w-]+(?:[;,][^][]*)?\](?!\()', _cited, text)
    text = re.sub(r'(?<![\w@/.`{])@(fig-[\w-]*\w)', number, text)
    text = re.sub(r'(?<![\w@/.`{])@([a-z]+\d{4}\w*)', _named, text)
    return re.sub(r'^\$\$(.+?)\$\$ *$', r'$$\n\1\n$$', text, flags=re.M|re.S)

def _callouts(text, html):
    "Boxes, each rendered on its own, and the text around them"
    parts = _box.split(text)  # text, then name, body and text of each box
    made = html(parts[0])
    for name,body,rest in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        if name: body = re.sub(r'!\[[^]]*\]\([^)]*\)', '', body)  # a report has no such picture
        kind = f'interactive {name}' if name else 'callout'
        made += f'<div class="{kind}">{html(body)}</div>{html(rest)}'
    return made

_box = re.compile(r'^::: *\{\.(?:callout-\w+|interactive +name=([\w-]+))[^}\n]*\}\n(.*?)^:::+ *$',
                  re.M|re.S)

def markdown_html(
    text:str,    # A Markdown cell
    figures=(),  # Labels of the page's figures, in order
    page='x/x',  # Name of the page, which links start from
    inside=(),   # Names of the pages in this report
)->str:
    "Convert Markdown of our dialect into HTML."
    render = _renderer(page, inside)
    code = r'(^ *```.*?^ *```|`[^`\n]+`)'
    parts = re.split(code, text, flags=re.M|re.S)  # code at odd places
    parts[::2] = [_dialect(p, list(figures)) for p in parts[::2]]
    return _callouts(''.join(parts), render)


# %%
markdown_html('A pentagon [@elhage2022], see @fig-five and `@fig-five`.', ['fig-five'])

# %%
for part in ['(Elhage 2022)', 'href="#fig-five">Figure 1<', '<code>@fig-five</code>']:
    assert part in _

# %%
link = '[s](../../foundation/30_statistics.ipynb) [p](phases.ipynb)'
made = markdown_html(link, page='superposition/pentagon', inside=['superposition/phases'])
assert f'{SITE}/foundation/30_statistics.html' in made
assert '"../../pages/superposition/phases.html"' in made
test_eq('<b>' in markdown_html('a <b>bold</b> claim'), False)
block = '::: {.interactive name=toy-model}\n![x](x.png)\nIt runs.\n:::'
test_eq(markdown_html(block), '<div class="interactive toy-model"><p>It runs.</p>\n</div>')
assert '<math' in markdown_html('$$ x = 1 $$') and 'display="block"' in markdown_html('$$\\nx\\n$$')

# %% [markdown]
# ## Outputs
#
# A figure becomes a box as on the site, which the same script fills. Tables and text become HTML.

# %%
#| export
_tags = '''a b br caption code col colgroup div em i li ol p pre small span strong sub sup
    table tbody td tfoot th thead tr ul'''.split()

@cache
def _cleaner():
    import bleach
    allowed = {'*': ['class', 'colspan', 'rowspan'], 'a': ['href']}
    return bleach.Cleaner(tags=_tags, attributes=allowed, strip=True)

def _safe(html):
    "Markup of an output, without scripts and handlers"
    return _cleaner().clean(re.sub(r'<(style|script)\b.*?</\1>', '', html, flags=re.S|re.I))


# %%
#| export
def _text(x): return x if isinstance(x, str) else ''.join(x)

def _pre(text, kind='out'): return f'<pre class="{kind}">{escape(strip_escapes(_text(text)))}</pre>'

def _png(data): return f'<img src="data:image/png;base64,{_text(data).strip()}" alt="">'

def _table(html): return f'<div class="wide">{_safe(style_table(_text(html)))}</div>'

def output_html(
    out,            # An output of a cell
    render=markdown_html,   # For Markdown
)->str:
    "Convert one output into HTML."
    if out.output_type=='stream': return '' if out.name=='stderr' else _pre(out.text)
    if out.output_type=='error': return _pre('\n'.join(out.traceback), 'error')
    ways = {plotly_mime: figure_box, 'image/png': _png, 'text/html': _table,
            'text/markdown': lambda t: render(_text(t)), 'text/plain': _pre}
    return next((f(out.data[k]) for k,f in ways.items() if k in out.data), '')


# %%
new = nbformat.v4.new_output
evil = '<script>alert(1)</script>'
texts = [output_html(new('stream', text=evil)), output_html(new('error', traceback=[evil])),
         output_html(new('display_data', {'text/plain': evil})),
         output_html(new('display_data', {'text/markdown': evil})),
         output_html(new('display_data', {plotly_mime: dict(data=[dict(name=evil)])}))]
texts[0]

# %%
test_eq([t.count('<script>') for t in texts], [0]*5)
html = f'<p class="x" onclick="y()">{evil}<a href="javascript:z()">1</a></p>'
test_eq(output_html(new('display_data', {'text/html': html})),
        '<div class="wide"><p class="x"><a>1</a></p></div>')

# %% [markdown]
# On a phone the script puts panels below each other and breaks their titles, moves labels of points
# into the panel, and gives text enough contrast. We draw a figure 358 pixels wide in Chromium and list
# texts that overlap or are cut.

# %%
#| hide
measure = '''const wait = setInterval(() => {
  if (!document.querySelector('[data-drawn]')) return;
  clearInterval(wait);
  const svg = document.querySelector('.plot svg'), edge = svg.getBoundingClientRect();
  const texts = [...document.querySelectorAll('.plot svg text')].filter(t => t.textContent);
  const boxes = texts.map(t => t.getBoundingClientRect());
  const meet = (a, b) => a.left<b.right-1 && b.left<a.right-1 &&
    a.top<b.bottom-4 && b.top<a.bottom-4;
  const name = i => texts[i].textContent;
  document.title = JSON.stringify({
    fills: texts.map(t => t.style.fill),
    cut: boxes.flatMap((b, i) => b.left<edge.left-1 || b.right>edge.right+1 ? [name(i)] : []),
    overlaps: boxes.flatMap((a, i) => boxes.flatMap((b, j) =>
      j>i && meet(a, b) ? [[name(i), name(j)]] : []))})}, 50)'''
visible = '''window.IntersectionObserver = class {
  constructor(draw) { this.draw = draw }
  observe(box) { this.draw([{isIntersecting: true, target: box}]) }}'''

def drawn_texts(spec, width):
    import plotly
    plotly_js = (Path(plotly.__file__).parent/'package_data'/'plotly.min.js').as_uri()
    js = (data_dir()/'report'/'figures.js').as_uri()
    file = tmp/'drawn.html'
    file.write_text(
        '<!doctype html><meta charset="utf-8"><style>:root{--ink:#111;--paper:#fff}</style>'
        f'<body style="width:{width}px">{figure_box(spec)}<script src="{plotly_js}"></script>'
        f'<script>{visible}</script><script src="{js}"></script><script>{measure}</script>')
    command = [find_browser(), '--headless=new', '--no-sandbox', '--disable-gpu', '--dump-dom',
               '--virtual-time-budget=60000', f'--user-data-dir={tmp}/profile', file.as_uri()]
    dom = subprocess.run(command, capture_output=True, timeout=300, text=True).stdout
    return json.loads(re.search('<title>(.*?)</title>', dom)[1])


# %%
from plotly.subplots import make_subplots

panels = [f'{n:,} parameters' for n in (1116, 9456, 32224, 117696)]
four = make_subplots(1, 4, subplot_titles=panels, horizontal_spacing=.03)
for i in range(4):
    four.add_scatter(x=[.1, 10], y=[1, 2], mode='text', text=['a long label', ''], row=1, col=i+1)
four.update_xaxes(type='log', range=[-1, 1]).update_layout(showlegend=False)
four.add_annotation(x=0, y=1.2, text='grey', font_color='#787878', showarrow=False)
drawn = drawn_texts(json.loads(four.to_json()), 358) if find_browser() else None
{k: drawn[k] for k in ('overlaps', 'cut')} if drawn else 'There is no Chromium here.'

# %%
if drawn:
    assert len(drawn['fills'])>15
    test_eq((drawn['overlaps'], drawn['cut']), ([], []))
    assert 'rgb(120, 120, 120)' not in drawn['fills']


# %% [markdown]
# ## A page
#
# In a report the findings come first, so code is folded. The outputs of cells with sizes, imports or
# timing are folded with it.

# %%
#| export
def _code(body, title='', outputs=''):
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer
    n = body.count('\n')+1
    highlighted = highlight(body, PythonLexer(), HtmlFormatter(nowrap=True))
    title = title or f'{n} line{"s"*(n>1)} of code'
    inner = f'<pre>{highlighted}</pre>{outputs}'
    return f'<details class="code"><summary>{title}</summary>{inner}</details>'

def _hidden(cell, opts):
    tags = cell.metadata.get('tags', [])
    return 'hide' in opts or opts.get('include')=='false' or 'injected-parameters' in tags

def _cell(cell, figures, render):
    opts,body = directives(cell.source)
    if _hidden(cell, opts): return ''
    outs = [] if opts.get('output')=='false' else [output_html(o, render) for o in cell.outputs]
    if title := folded(cell): return _code(body, title, '\n'.join(outs))
    code = '' if opts.get('echo')=='false' or not body.strip() else _code(body)
    if 'fig-cap' not in opts: return code+'\n'.join(outs)
    label = opts.get('label', '')
    return code+_figure(label, opts['fig-cap'], '\n'.join(outs), figures, render)

def _figure(label, caption, inner, figures, render):
    text = re.sub('^<p>(.*)</p>\\s*$', r'\1', render(caption))
    inner = inner.replace('aria-label="Figure"', f'aria-label="{escape(caption_text(caption))}"')
    number = f'<b>Figure {figures.index(label)+1}.</b> ' if label in figures else ''
    caption = f'<figcaption>{number}{text}</figcaption>'
    return f'<figure id="{escape(label)}">{inner}{caption}</figure>'

def _labels(nb):
    opts = [directives(c.source)[0] for c in nb.cells if c.cell_type=='code']
    return [o['label'] for o in opts if o.get('label', '').startswith('fig-')]

def cells_html(
    nb,         # An executed notebook
    page='x/x', # Its name
    inside=(),  # Names of the pages in this report
)->str:
    "Convert the cells of a page into HTML."
    figures = _labels(nb)
    render = lambda text: markdown_html(text, figures, page, inside)
    cells = [render(c.source) if c.cell_type=='markdown' else _cell(c, figures, render)
             for c in nb.cells if c.cell_type in ('markdown', 'code')]
    return '\n'.join(c for c in cells if c.strip())


# %%
md = nbformat.v4.new_markdown_cell
code = nbformat.v4.new_code_cell
fig = go.Figure(go.Scatter(x=[1, 2, 3], y=[1, 4, 9]))
fig_out = nbformat.v4.new_output('display_data', {plotly_mime: json.loads(fig.to_json())})
nb = nbformat.v4.new_notebook(cells=[
    md('# Squares grow\n\n> Recorded in a moment.\n\n@fig-squares shows that they grow.'),
    code('#| hide\nsecret = 1'),
    code('#| label: fig-squares\n#| fig-cap: Squares of $n$\nplot(n)', outputs=[fig_out])])
print(re.sub('{.*}', '{...}', cells_html(nb)))

# %%
assert 'secret' not in cells_html(nb) and 'Figure 1.</b> Squares of <math' in cells_html(nb)


# %% [markdown]
# The frame around the cells is a template of `data/report`. A page that failed begins with the cell
# that stopped it and the traceback. The main figure and the comparison follow the title. Scale, seed, minutes, machine and commit stand at the top.

# %%
#| export
def format_duration(
    s:float, # Seconds
)->str:
    "Format a duration."
    if s<60: return f'{s:.0f} s'
    m,s = divmod(round(s), 60)
    return f'{m} min {s:02} s' if m<60 else f'{m//60} h {m%60:02} min'

@cache
def _templates():
    from jinja2 import Environment, FileSystemLoader
    env = Environment(loader=FileSystemLoader(data_dir()/'report'), autoescape=True)
    env.filters |= dict(minutes=format_duration, slug=verdict_class, text=claim_text)
    env.globals |= dict(estimate=format_estimate)
    return env

def _fill(name, **parts):
    "Fill a template of `data/report`"
    return _templates().get_template(name).render(**parts)+'\n'

def page_heading(
    nb, # A notebook
)->tuple:
    "Return the title and the > line of a page."
    text = next((c.source for c in nb.cells if c.cell_type=='markdown'), '')
    return title_and_line(text)

def _place(page):
    "Figure and label of a page in the list of its paper, or ('', '')"
    paper = page.split('/')[0]
    entries = paper_entries(paper) if paper in PAPER_TITLES else []
    found = next((e for e in entries if e.get('page')==page), None)
    return (f'{found["item"]}: {found["about"]}', found['figure']) if found else ('', '')

@lru_cache(maxsize=256)
def _figure_spec(path, label, changed):
    "A figure of a notebook that was changed then, or None; page and front page show the same one"
    return find_figure(read_notebook(path), label).get(plotly_mime)

def _main_figures(page, out, small):
    "The main figure of a page, as recorded and as this run drew it"
    label = _place(page)[1]
    paths = {'Recorded': notebooks_dir()/f'{page}.ipynb',
             'This run': Path(out)/'notebooks'/f'{page}.ipynb'}
    paths = {k: p for k,p in paths.items() if p.is_file()}
    specs = {k: _figure_spec(p, label, p.stat().st_mtime_ns) for k,p in paths.items()}
    return {k: figure_box(v, f'Main figure, {k.lower()}', small) for k,v in specs.items() if v}

def _record_of(page, folder=None):
    "Scale, date and commit of a recorded page"
    return stored_run(Path(folder or notebooks_dir())/f'{page}.ipynb')

def page_html(
    nb,         # An executed notebook of the report
    config:dict,
    inside=(),  # Names of the pages in this report
    out=None,   # Folder of the report, for the main figure
    claims=(),  # Rows of `compare_report` for this page
)->str:
    "Make a page of the report."
    run = nb.metadata['moral_sc']
    cells = cells_html(nb, run['page'], inside)
    on = run.get('machine') or {}
    heading,body = re.fullmatch(_heading, cells, re.S).groups()
    return _fill('page.html', title=page_heading(nb)[0], run=run, config=config, body=body,
                 heading=heading,
                 scripts=scripts_of(cells),
                 on=on, root=_up(run['page']), claims=claims, record=_record_of(run['page']),
                 figures=_main_figures(run['page'], out, False) if out else {})

_heading = r'((?:\s*<h1\b.*?</h1>)?(?:\s*<blockquote>.*?</blockquote>)?)(.*)'

# %%
nb.metadata['moral_sc'] = dict(page='squares/grow', ok=False, seconds=83.2, cell=2,
    source='f(n)', error='ValueError: too large', traceback=evil)
config = dict(scale='quick', seed=0, version='0.1.0')
page_heading(nb), format_duration(83.2), format_duration(9000)

# %%
made = page_html(nb, config)
test_eq(re.fullmatch(_heading, '<h1>A</h1>\n<p>b</p>', re.S).groups(), ('<h1>A</h1>', '\n<p>b</p>'))
assert '<main><h1>Squares grow</h1>' in made
assert evil not in made and 'stopped' in made and '<title>Squares grow</title>' in made


# %% [markdown]
# ## The front page
#
# The front page answers whether you got what we got: how many quantities agree with the record, the differences first, then
# the pages in the papers' order, each with its main figure as we recorded it and as this run drew it.

# %%
#| export
def _card(nb, rows, inside, out):
    run,(title,line) = nb.metadata['moral_sc'], page_heading(nb)
    line = markdown_html(line, page=run['page'], inside=inside)
    line = line.replace(_up(run['page'])+'pages', 'pages')  # the front page is at the root
    return dict(run=run, title=title, line=line, item=_place(run['page'])[0],
                record=_record_of(run['page']), figures=_main_figures(run['page'], out, True),
                paper=PAPER_TITLES.get(run['page'].split('/')[0], ''),
                claims=[r for r in rows if r.page==run['page']])

def index_html(
    nbs:list,    # Executed notebooks, in the order of the report
    compared,    # What `compare_report` returns
    config:dict,
    out,         # Folder of the report
)->str:
    "Make the front page of the report."
    runs = [nb.metadata['moral_sc'] for nb in nbs]
    rows = list(compared.itertuples())
    counts = compared.agreement.value_counts() if rows else {}
    cards = [_card(nb, rows, [r['page'] for r in runs], out) for nb in nbs]
    settings = {k: v for k,v in config.items() if k not in ('scale', 'seed', 'version')}
    return _fill('index.html', root='', config=config, cards=cards, claims=rows,
                 headline=summary(compared), settings=settings,
                 differences=[r for r in rows if r.agreement=='differs'],
                 failed=sum(not r['ok'] for r in runs),
                 slowest=sorted(runs, key=lambda r: -r['seconds'])[:2],
                 seconds=sum(r['seconds'] for r in runs),
                 tally=[(w, counts[w]) for w in agreements if w in counts],
                 on=runs[0].get('machine', {}) if runs else {})


# %% [markdown]
# ## The folder
#
# All files are made from the executed notebooks, so a report whose writing was interrupted is
# completed by running the command again.

# %%
#| export
def _assets(out):
    import plotly
    script = Path(plotly.__file__).parent/'package_data'/'plotly.min.js'
    own = [data_dir()/'report'/'style.css', data_dir()/'report'/'figures.js']
    for f in (script, *own, *sorted((data_dir()/'interactive').iterdir())):
        write_file(out/'assets'/f.name, f.read_bytes())

def _provenance(nbs, config):
    keys = ('ok', 'start', 'seconds', 'key', 'error', 'machine')
    runs = [nb.metadata['moral_sc'] for nb in nbs]
    pages = {r['page']: {k: r.get(k) for k in keys} for r in runs}
    return json.dumps(dict(config=config, pages=pages), indent=1)+'\n'

def _in_paper_order(paths):
    "Executed notebooks in the order of the papers' figures"
    order = paper_order()
    place = lambda p: order.index(page_name(p)) if page_name(p) in order else len(order)
    return [read_notebook(p) for p in sorted(paths, key=place)]


# %%
#| export
def write_report(
    out,      # Folder with `config.json` and `notebooks`
    compared, # What `compare_report` returns for it
)->Path:      # The front page
    "Write the HTML, the claims and the provenance of a report."
    out = Path(out)
    config = read_json_object(out/'config.json', scale=str, seed=int)
    nbs = _in_paper_order(notebook_paths(out/'notebooks'))
    names = [nb.metadata['moral_sc']['page'] for nb in nbs]
    _assets(out)
    for nb,name in zip(nbs, names, strict=True):
        rows = [r for r in compared.itertuples() if r.page==name]
        write_file(out/'pages'/f'{name}.html', page_html(nb, config, names, out, rows))
    write_file(out/'claims.csv', compared.to_csv(index=False))
    write_file(out/'provenance.json', _provenance(nbs, config))
    return write_file(out/'index.html', index_html(nbs, compared, config, out))


# %%
#| hide
criteria = tmp/'claims'
criteria.mkdir(exist_ok=True)
_ = (criteria/'squares.toml').write_text('''
[[claim]]
id = "squares/growth"
paper = "squares"
section = "1"
sentence = "Squares <grow> faster than numbers."
criterion = "The last square is at least three times its number."
quantity = "ratio"
at_least = 3
scale = "quick"
whose = "paper"
draws = "nothing"
''')

# %%
from moral_sc.lab.claims import judge_all

# %%
record = judge_all('quick', {'squares/growth': 3.}, criteria)._repr_mimebundle_()
nb.cells.append(code('record(...)', outputs=[new('display_data', record)]))
out = tmp/'report'
write_file(out/'config.json', json.dumps(config))
write_file(out/'notebooks'/'squares'/'grow.ipynb', nbformat.writes(nb))
front = write_report(out, compare_report(out, path=criteria)).read_text()
sorted(p.relative_to(out).as_posix() for p in out.rglob('*.*'))

# %%
for part in ['Squares &lt;grow&gt; faster', '1 page stopped', '1 not compared']:
    assert part in front
assert not re.search(r'(src|href)="https?:', front)

# %% [markdown]
# Writing it again changes neither the bytes nor the times of the files.

# %%
times = {p: p.stat().st_mtime_ns for p in out.rglob('*.*')}
write_report(out, compare_report(out, path=criteria))
test_eq(times, {p: p.stat().st_mtime_ns for p in out.rglob('*.*')})
