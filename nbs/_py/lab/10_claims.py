# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Claims
#
# > Judge the papers' claims by criteria that were fixed before the runs.

# %%
#| default_exp lab.claims

# %%
#| export
import math
from dataclasses import dataclass
from html import escape
from pathlib import Path

# %%
#| export
from moral_sc.foundation.datasets import read_toml
from moral_sc.foundation.errors import ConfigError, DataError, unknown_name_message
from moral_sc.lab.paths import claims_dir, notebooks_dir, visible_notebooks
from moral_sc.lab.scales import SCALES, validate_scale

# %%
#| hide
import json
import tempfile

import nbformat
from fastcore.test import *

tmp = Path(tempfile.mkdtemp())

# %% [markdown]
# A reproduction that chooses its criterion after the measurement always succeeds. Each claim of a paper is
# therefore first written to a file: a sentence, the quantity to measure, and the bound that decides. The
# notebook that measures it supplies only the number; the verdict is computed here. A failed claim is a result and
# is shown like any other. Criteria are never loosened: a changed criterion is a new claim.
#
# ## Criteria
#
# Every paper has a file with a table for each claim. This example is made up.

# %%
example = tmp/'claims'
example.mkdir(exist_ok=True)
_ = (example/'pendulum.toml').write_text('''
[[claim]]
id = "pendulum/period"
paper = "pendulum"
section = "2.1"
sentence = "The period does not depend on the weight of the bob."
criterion = "Heavy over light period lies within 2% of one."
quantity = "ratio of periods"
within = [0.98, 1.02]
scale = "quick"

[[claim]]
id = "pendulum/damping"
paper = "pendulum"
section = "3"
sentence = "Damping grows with the size of the bob."
criterion = "The large bob loses at least 1.5 times as much per swing."
quantity = "ratio of losses"
at_least = 1.5
scale = "cpu"

[[claim]]
id = "pendulum/chaos"
paper = "pendulum"
section = "5"
sentence = "Driven hard enough, it becomes unpredictable."
criterion = "Two starts 1e-6 apart differ by at least 1 rad after a minute."
quantity = "distance, rad"
at_least = 1
scale = "quick"
size = "needs a driven pendulum"
''')

# %% [markdown]
# `at_least`, `at_most` and `within` define an interval for the quantity. `scale` is the smallest scale that can
# decide the claim. `size` names what a run needs before a claim can fail.

# %%
#| export
verdicts = ('holds', 'fails', 'not at this size', 'not run')
claims_mime = 'application/vnd.moral_sc.claims+json'

@dataclass(frozen=True)
class Claim:
    "One claim of a paper and the criterion that decides it"
    id:str        # paper/slug
    paper:str
    section:str   # Where in the paper
    sentence:str  # What the paper claims, in our words
    criterion:str # What must be seen, in words
    quantity:str  # What is measured, with its unit
    scale:str     # Smallest scale at which a verdict may be given
    low:float     # The criterion as an interval that holds the quantity
    high:float
    size:str = '' # What a run needs before a miss counts, '' if nothing


# %% [markdown]
# A table with missing or unknown fields is refused with the claim's name.

# %%
#| export
_text = ('id', 'paper', 'section', 'sentence', 'criterion', 'quantity', 'scale')
_bounds = dict(at_least=lambda x: (x, math.inf), at_most=lambda x: (-math.inf, x),
               within=lambda x: tuple(x))

def _number(x): return isinstance(x, (int, float)) and not isinstance(x, bool) and x==x

def _problem(row, stem):
    "Describe the mistake in a row of the file `stem`.toml, or return None"
    missing = [k for k in _text if not str(row.get(k, '')).strip()]
    if missing: return f'lacks {", ".join(missing)}; add it'
    extra = set(row) - {*_text, *_bounds, 'size'}
    if extra: return f'has the unknown field {", ".join(sorted(extra))}; rename it'
    given = [k for k in _bounds if k in row]
    if len(given)!=1: return f'needs exactly one of {", ".join(_bounds)}'
    value = row[given[0]]
    numbers = value if given[0]=='within' and isinstance(value, list) else [value]
    if not all(map(_number, numbers)) or len(numbers)!=1+(given[0]=='within'):
        return f'has {given[0]} = {value!r}, which is not a number or a [low, high]'
    if numbers!=sorted(numbers): return f'has within = {value!r}; put the lower bound first'
    if row['scale'] not in SCALES:
        return f'has scale {row["scale"]!r}; use {", ".join(SCALES)}'
    paper = row['paper']
    if not f'{stem}_'.startswith(f'{paper}_') or not row['id'].startswith(f'{paper}/'):
        return f'belongs to {paper!r}; ids of this file start with {stem!r}'


# %%
#| export
def _claim(row):
    low,high = next(f(row[k]) for k,f in _bounds.items() if k in row)
    text = {k: row[k] for k in _text}
    return Claim(**text, low=float(low), high=float(high), size=row.get('size', ''))

def criteria(
    path=None,         # Folder of `paper.toml`, `paper_topic.toml`; default: ours
)->dict[str, Claim]:   # By id, in the order of the files
    "Read the claims and their criteria"
    res = {}
    for f in sorted(Path(path or claims_dir()).glob('*.toml')):
        for i,row in enumerate(read_toml(f).get('claim', [])):
            name = row.get('id') or f'claim number {i+1}'
            problem = 'appears twice; rename one' if name in res else _problem(row, f.stem)
            if problem: raise DataError(f'{f.name}: {name} {problem}.')
            res[name] = _claim(row)
    return res


# %%
claims = criteria(example)
assert len(criteria())>50 # Every file of ours can be read
claims['pendulum/period']

# %% [markdown]
# Mistakes in the files raise errors. A paper with many claims has several files, named after the paper and a topic.

# %%
good = dict(id='"p/a"', paper='"p"', section='"1"', sentence='"s"', criterion='"c"',
            quantity='"q"', scale='"quick"', at_least=1)
bad = tmp/'bad'
bad.mkdir(exist_ok=True)
def refused(contains, **change):
    row = {k:v for k,v in {**good, **change}.items() if v is not None}
    lines = '\n'.join(f'{k} = {v}' for k,v in row.items())
    (bad/'p.toml').write_text(f'[[claim]]\n{lines}')
    with expect_fail(DataError, contains=contains): criteria(bad)

refused('p.toml: p/a lacks criterion', criterion=None)
refused('exactly one of at_least, at_most, within', at_least=None)
refused('exactly one of at_least, at_most, within', at_most=2)
refused('which is not a number', at_least='"high"')
refused('lower bound first', at_least=None, within='[2, 1]')
refused("has scale 'huge'", scale='"huge"')
refused("belongs to 'other'", paper='"other"')
refused("belongs to 'p'", id='"q/a"')
refused('has the unknown field at_lest', at_lest=1)
refused('not valid TOML', id='p/a')


# %% [markdown]
# ## Verdicts
#
# The whole interval of an estimate is judged. The claim *holds* if all of the interval meets the criterion and *fails* if none
# of it does. An interval that contains the bound decides nothing; more items might. A plain number, for a quantity
# without sampling error, is an interval of width zero.

# %%
#| export
def judge(
    claim:Claim,
    estimate,   # (value, low, high), or a number
    scale:str,  # Scale of the run
)->tuple:       # Verdict, and the reason if it is undecided
    "Return the verdict on a claim"
    _,low,high = estimate_interval(estimate)
    if SCALES.index(scale)<SCALES.index(claim.scale):
        return 'not at this size', f'judged from scale {claim.scale} on'
    if claim.low<=low and high<=claim.high: return 'holds', ''
    if claim.size: return 'not at this size', claim.size
    if high<claim.low or low>claim.high: return 'fails', ''
    return 'not at this size', 'the interval does not decide'

def estimate_interval(
    estimate, # (value, low, high), or a number
)->tuple:
    "Return value and interval as three floats"
    parts = estimate if isinstance(estimate, tuple) else (estimate,)*3
    return tuple(float(x) for x in parts)


# %%
period = claims['pendulum/period']
cases = [(1.001, .995, 1.01), (1.001, .95, 1.05), (1.4, 1.3, 1.5), (.5, .4, .6), 1., 1.03]
[(c, *judge(period, c, 'quick')) for c in cases]

# %%
test_eq([judge(period, c, 'quick')[0] for c in cases],
        ['holds', 'not at this size', 'fails', 'fails', 'holds', 'fails'])

# %% [markdown]
# An estimate on the bound meets the criterion. An estimate that is not a number decides nothing.

# %%
damping = claims['pendulum/damping']
test_eq(judge(damping, 1.5, 'cpu'), ('holds', ''))
test_eq(judge(damping, 1.4999, 'gpu'), ('fails', ''))
judge(damping, (float('nan'),)*3, 'cpu')

# %% [markdown]
# Below its scale, a claim neither holds nor fails, whatever the number. A claim with `size` can hold in a small run but
# cannot fail in it.

# %%
chaos = claims['pendulum/chaos']
judge(damping, 9., 'quick'), judge(chaos, .1, 'gpu'), judge(chaos, 2., 'quick')

# %%
small = [judge(damping, 9., 'quick'), judge(chaos, .1, 'gpu'), judge(chaos, 2., 'quick')]
test_eq([verdict for verdict,_ in small], ['not at this size', 'not at this size', 'holds'])


# %% [markdown]
# ## Recording
#
# A paper page ends with a call of `record`, which shows a table of verdicts. The same output stores the numbers in a MIME
# type of its own, so the executed page is the record.

# %%
#| export
def _row(claim, estimate, scale):
    value,low,high = estimate_interval(estimate)
    verdict,reason = judge(claim, estimate, scale)
    num = lambda x: x if math.isfinite(x) else None
    criterion = dict(quantity=claim.quantity, criterion=claim.criterion,
                     bounds=[num(claim.low), num(claim.high)])
    return dict(id=claim.id, verdict=verdict, why=reason, estimate=num(value), low=num(low),
                high=num(high), scale=scale) | criterion

class Outcomes(list):
    "Judged claims, displayed as a table and stored as JSON"
    def __init__(self, rows, claims): super().__init__(rows); self.claims = claims
    def _cells(self):
        for r in self: yield (self.claims[r['id']].sentence, r['criterion'],
                              format_estimate(r['estimate'], r['low'], r['high']), verdict_text(r))
    def _repr_markdown_(self):
        flat = lambda c: str(c).replace('|', '\\|').replace('\n', ' ')
        rows = [map(flat, r) for r in self._cells()]
        lines = [_columns, ['---']*4, *rows]
        return '\n'.join('| '+' | '.join(l)+' |' for l in lines)
    def _repr_html_(self): return html_table(_columns, self._cells())
    def _repr_mimebundle_(self, include=None, exclude=None):
        return {'text/plain': '\n'.join(f'{r["id"]}: {verdict_text(r)}' for r in self),
                'text/markdown': self._repr_markdown_(), 'text/html': self._repr_html_(),
                claims_mime: {'claims': list(self)}}


# %%
#| export
_columns = ['Claim', 'Criterion', 'Found', 'Verdict']

def verdict_text(
    row:dict, # With 'verdict' and 'why'
)->str:
    "Return the verdict with its reason"
    return f'{row["verdict"]} ({row["why"]})' if row['why'] else row['verdict']

def format_estimate(
    value, low, high, # Numbers, or None where there is none
    digits:int=3,     # Significant digits
)->str:
    "Format an estimate and its interval"
    if value is None or value!=value: return 'none'
    f = lambda x: 'none' if x is None else f'{x:.{digits}g}'
    return f(value) if low==high==value else f'{f(value)} [{f(low)},\xa0{f(high)}]'

def html_table(
    head:list, # Names of the columns
    rows,      # Texts, escaped here
)->str:
    "Format rows as an HTML table"
    cells = lambda row, tag: ''.join(f'<{tag}>{escape(str(c))}</{tag}>' for c in row)
    body = '\n'.join(f'<tr>{cells(r, "td")}</tr>' for r in rows)
    top = f'<thead><tr>{cells(head, "th")}</tr></thead>'
    return f'<table class="claims">\n{top}\n<tbody>{body}</tbody>\n</table>'


# %%
#| export
def judge_all(
    scale:str,     # Scale of the run
    outcomes:dict, # Claim id to estimate: (value, low, high) or a number
    path=None,     # Folder of criteria, default: ours
)->Outcomes:
    "Judge several estimates"
    known = criteria(path)
    validate_scale(scale)
    for k in outcomes:
        if k not in known: raise ConfigError(unknown_name_message('claim', k, list(known)))
    return Outcomes([_row(known[k], e, scale) for k,e in outcomes.items()], known)

def record(
    scale:str,     # Scale of the run
    outcomes:dict, # Claim id to estimate: (value, low, high) or a number
    path=None,     # Folder of criteria, default: ours
):
    "Judge estimates and display the verdicts, with the numbers stored in the output"
    from IPython.display import display
    display(judge_all(scale, outcomes, path))


# %%
record('quick', {'pendulum/period': (1.001, .995, 1.01), 'pendulum/damping': 2.1}, example)

# %% [markdown]
# `record` accepts only claims that have a criterion. A page need not record all of them.

# %%
with expect_fail(ConfigError, contains="did you mean 'pendulum/period'?"):
    record('quick', {'pendulum/perod': 1.}, example)
with expect_fail(ConfigError, contains="no scale 'large'"): record('large', {}, example)

# %% [markdown]
# Text in the table is escaped.

# %%
r = judge_all('quick', {'pendulum/period': 1.}, example)
r[0]['criterion'] = '<script>alert(1)</script> | two'
assert '<script>' not in r._repr_html_()
test_eq(r._repr_markdown_().splitlines()[-1].replace('\\|', '').count('|'), 5)


# %% [markdown]
# ## Ledger
#
# The ledger lists all claims with what the pages found. If several pages or scales measured a claim, the largest
# scale counts.

# %%
#| export
def claims_of(
    nb, # A notebook, as read
)->list:  # One dict per recorded claim
    "Return the claims in the outputs of a page"
    outs = [o for c in nb.cells for o in c.get('outputs', [])]
    return [r for o in outs for r in o.get('data', {}).get(claims_mime, {}).get('claims', [])]

def recorded_claims(
    path, # An executed notebook
)->list:  # One dict per recorded claim
    "Return the claims that an executed page recorded"
    import nbformat
    return claims_of(nbformat.read(path, 4))

def _pages(folder):
    "Return name and path of the notebooks in a folder or list"
    if not isinstance(folder, (str, Path)): return [(Path(p).stem, p) for p in folder]
    paths = visible_notebooks(folder)
    return [(p.relative_to(folder).with_suffix('').as_posix(), p) for p in paths]


# %% [markdown]
# A result that was judged by another criterion does not count. The ledger asks you to run the page again.

# %%
#| export
def _ledger_row(claim, row, page):
    "Return the ledger's row of a claim, given the row of a page or None"
    fields = 'id paper section sentence criterion quantity'.split()
    none = dict.fromkeys(('estimate', 'low', 'high'), math.nan)
    none |= dict(verdict='not run', why='', scale='', page='')
    res = {k: getattr(claim, k) for k in fields} | none
    if row is None: return res
    bounds = [b if math.isfinite(b) else None for b in (claim.low, claim.high)]
    if row['bounds']!=bounds or row['criterion']!=claim.criterion:
        return res | dict(why='judged by another criterion: run the page again', page=page)
    nums = {k: math.nan if row[k] is None else row[k] for k in ('estimate', 'low', 'high')}
    return res | nums | {k: row[k] for k in ('verdict', 'why', 'scale')} | dict(page=page)

def ledger(
    folder=None, # Folder or list of executed notebooks, default: the papers' pages
    path=None,   # Folder of criteria, default: ours
):
    "Return a DataFrame with one row for each claim"
    import pandas as pd
    best = {}
    for name,p in _pages(notebooks_dir() if folder is None else folder):
        for row in recorded_claims(p):
            old = best.get(row['id'])
            if not old or SCALES.index(row['scale'])>=SCALES.index(old[0]['scale']):
                best[row['id']] = row, name
    known = criteria(path)
    rows = [_ledger_row(c, *best.get(c.id, (None, ''))) for c in known.values()]
    return pd.DataFrame(rows, columns=list(_ledger_row(Claim(*['']*7, 0., 0.), None, '')))


# %% [markdown]
# Two pages stand for a report. The second one ran at a larger scale.

# %%
#| hide
def page(name, scale, found):
    data = judge_all(scale, found, example)._repr_mimebundle_()
    out = nbformat.v4.new_output('display_data', data=json.loads(json.dumps(data)))
    cell = nbformat.v4.new_code_cell('record(...)', outputs=[out])
    nb = nbformat.v4.new_notebook(cells=[cell])
    (tmp/'report').mkdir(exist_ok=True)
    nbformat.write(nb, tmp/'report'/f'{name}.ipynb')


# %%
page('swing', 'quick', {'pendulum/period': 1.001, 'pendulum/damping': 2.1})
page('swing_long', 'cpu', {'pendulum/damping': (1.2, 1.1, 1.3)})
found = ledger(tmp/'report', example)
found[['id', 'estimate', 'low', 'high', 'verdict', 'scale', 'page']]

# %%
test_eq(list(found.verdict), ['holds', 'fails', 'not run'])

# %% [markdown]
# If a criterion changes, rows that were judged by the old one do not count.

# %%
f = example/'pendulum.toml'
_ = f.write_text(f.read_text().replace('[0.98, 1.02]', '[0.9, 1.1]'))
changed = ledger(tmp/'report', example).iloc[0]
test_eq(changed.verdict, 'not run')
changed.why

# %% [markdown]
# Cleaning a notebook keeps the numbers.

# %%
#| hide
from nbdev.clean import clean_nb

# %%
p = tmp/'report'/'swing.ipynb'
nb = json.loads(p.read_text())
clean_nb(nb, clean_ids=True)
_ = p.write_text(json.dumps(nb))
test_eq([r['id'] for r in recorded_claims(p)], ['pendulum/period', 'pendulum/damping'])
