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
from typing import NamedTuple

from moral_sc.foundation.datasets import data_dir, read_toml
from moral_sc.foundation.errors import ConfigError, DataError, unknown_name_message
from moral_sc.lab.execution import read_notebook
from moral_sc.lab.paths import notebooks_dir, visible_notebooks
from moral_sc.lab.scales import SCALES, validate_scale

# %%
#| hide
import json
import tempfile
from dataclasses import replace

import nbformat
from fastcore.test import *

tmp = Path(tempfile.mkdtemp())

# %% [markdown]
# A reproduction that chooses its criterion after the measurement always succeeds. Each claim of a paper is
# therefore first written to a file: a sentence, the quantity to measure, and the bound that decides. The
# notebook that measures it supplies only the number; the verdict is computed here. A failed claim is a result and
# is shown like any other. Criteria are never edited: a changed criterion is a new claim that names the old one.
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
whose = "paper"
draws = "swings"
confirmed = "a second pendulum"

[[claim]]
id = "pendulum/damping"
paper = "pendulum"
section = "3"
sentence = "Damping grows with the size of the bob."
criterion = "The large bob loses at least 1.5 times as much per swing."
quantity = "ratio of losses"
at_least = 1.5
scale = "cpu"
whose = "ours"
draws = "swings"
replaces = "pendulum/damping-at-all"

[[claim]]
id = "pendulum/chaos"
paper = "pendulum"
section = "5"
sentence = "Driven hard enough, it becomes unpredictable."
criterion = "Two starts 1e-6 apart differ by at least 1 rad after a minute."
quantity = "distance, rad"
at_least = 1
scale = "quick"
whose = "paper"
draws = "nothing"
min_parameters = 3

[[claim]]
id = "pendulum/damping-at-all"
paper = "pendulum"
section = "3"
sentence = "The bob is damped."
criterion = "It loses energy."
quantity = "loss per swing, J"
at_least = 0
scale = "quick"
whose = "paper"
draws = "nothing"
closed = "every pendulum loses energy, so it cannot fail"
''')

# %% [markdown]
# `at_least`, `at_most` and `within` define an interval for the quantity. The other fields are those of `Claim`.

# %%
#| export
verdicts = ('holds', 'fails', 'undecided', 'needs a larger model', 'error')
claims_mime = 'application/vnd.moral_sc.claims+json'

@dataclass(frozen=True)
class Claim:
    "One claim and the criterion that decides it"
    id:str        # paper/slug
    paper:str
    section:str   # Where in the paper
    sentence:str  # What is claimed, in our words
    criterion:str # What must be seen, in words
    quantity:str  # What is measured, with its unit
    scale:str     # Smallest scale at which a verdict may be given
    whose:str     # 'paper' if the paper says it, otherwise 'ours'
    draws:str     # What the interval draws ('trainings', 'prompts', ...) or 'nothing'
    low:float     # The criterion as an interval that holds the quantity
    high:float
    min_parameters:float = 0 # A smaller model cannot refute the claim
    confirmed:str = ''    # What confirms a miss: exact loss, warm start, second setting
    compare:str = ''      # Smallest scale that measures the recorded quantity; default: `scale`
    tolerance:float = .05 # Relative difference that counts as agreement where nothing is drawn
    setting:str = ''      # For example 'toy environment'
    replaces:str = ''     # Id of the claim whose criterion this one changes
    closed:str = ''       # Why the claim is no longer counted


# %% [markdown]
# A table with missing or unknown fields is refused with the claim's name.

# %%
#| export
_text = ('id', 'paper', 'section', 'sentence', 'criterion', 'quantity', 'scale', 'whose', 'draws')
_optional = dict(min_parameters=(int, float), confirmed=str, tolerance=(int, float),
                 compare=str, setting=str, replaces=str, closed=str)
_bounds = dict(at_least=lambda x: (x, math.inf), at_most=lambda x: (-math.inf, x),
               within=lambda x: tuple(x))

def _number(x): return isinstance(x, (int, float)) and not isinstance(x, bool) and x==x

def _problem(row, stem):
    "Describe the mistake in a row of the file `stem`.toml, or return None"
    missing = [k for k in _text if not str(row.get(k, '')).strip()]
    if missing: return f'lacks {", ".join(missing)}; add it'
    extra = set(row) - {*_text, *_bounds, *_optional}
    if extra: return f'has the unknown field {", ".join(sorted(extra))}; rename it'
    wrong = [k for k,t in _optional.items() if k in row and not isinstance(row[k], t)]
    if wrong: return f'has {wrong[0]} = {row[wrong[0]]!r}, which has the wrong type'
    given = [k for k in _bounds if k in row]
    if len(given)!=1: return f'needs exactly one of {", ".join(_bounds)}'
    value = row[given[0]]
    numbers = value if given[0]=='within' and isinstance(value, list) else [value]
    if not all(map(_number, numbers)) or len(numbers)!=1+(given[0]=='within'):
        return f'has {given[0]} = {value!r}, which is not a number or a [low, high]'
    if numbers!=sorted(numbers): return f'has within = {value!r}; put the lower bound first'
    allowed = dict(scale=SCALES, compare=SCALES, whose=('paper', 'ours'))
    for k,values in allowed.items():
        if k in row and row[k] not in values:
            return f'has {k} {row[k]!r}; use {", ".join(values)}'
    paper = row['paper']
    if not f'{stem}_'.startswith(f'{paper}_') or not row['id'].startswith(f'{paper}/'):
        return f'belongs to {paper!r}; ids of this file start with {stem!r}'


# %%
#| export
def _claim(row):
    low,high = next(f(row[k]) for k,f in _bounds.items() if k in row)
    given = {k: row[k] for k in (*_text, *_optional) if k in row}
    return Claim(**dict(compare=row['scale']) | given, low=float(low), high=float(high))

def criteria(
    path=None,         # Folder of `paper.toml`, `paper_topic.toml`; default: ours
)->dict[str, Claim]:   # By id, in the order of the files
    "Read the claims and their criteria"
    res = {}
    for f in sorted(Path(path or data_dir()/'claims').glob('*.toml')):
        for i,row in enumerate(read_toml(f).get('claim', [])):
            name = row.get('id') or f'claim number {i+1}'
            problem = 'appears twice; rename one' if name in res else _problem(row, f.stem)
            if problem: raise DataError(f'{f.name}: {name} {problem}.')
            res[name] = _claim(row)
    for c in res.values():
        if c.replaces and c.replaces not in res:
            raise DataError(f'{c.id} replaces {c.replaces}, which is in no file: correct the id.')
    return res


# %%
claims = criteria(example)
assert len(criteria())>50 # Every file of ours can be read
claims['pendulum/period']

# %% [markdown]
# Mistakes in the files raise errors. A paper with many claims has several files, named after the paper and a topic.

# %%
good = dict(id='"p/a"', paper='"p"', section='"1"', sentence='"s"', criterion='"c"',
            quantity='"q"', scale='"quick"', whose='"paper"', draws='"nothing"', at_least=1)
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
refused("has whose 'both'; use paper, ours", whose='"both"')
refused('lacks draws', draws=None)
refused('which has the wrong type', min_parameters='"22B"')
refused('p/a replaces p/b, which is in no file', replaces='"p/b"')
refused('not valid TOML', id='p/a')


# %% [markdown]
# ## Verdicts
#
# The whole interval of an estimate is judged.
#
# | Verdict | Meaning |
# | --- | --- |
# | holds | all of the interval meets the criterion |
# | fails | none of it does; a claim of the paper fails only if other experiments confirm the miss |
# | undecided | the interval contains the bound, or the run was too small: more seeds or a larger scale decide |
# | needs a larger model | missed by a model with fewer than `min_parameters` parameters |
# | error | the estimate is not a number, or there is none |
#
# A plain number, for a quantity without sampling error, is an interval of width zero. `Measurement` adds the parameters of the
# model that was judged, and a precondition of the paper that the run did not meet: its verdict is *undecided*.

# %%
#| export
class Measurement(NamedTuple):
    "An estimate, and what a verdict depends on beside it"
    value:float
    low:float|None = None  # Interval; default: `value`
    high:float|None = None
    unmet:str = ''         # Precondition of the paper that this run does not meet, with its number
    parameters:float|None = None # Number of parameters of the model that was judged
    note:str = ''          # What the run took over, such as 'released weights'

def as_measurement(
    estimate, # `Measurement`, (value, low, high), or a number
)->Measurement:  # With floats
    "Return an estimate with its interval"
    e = Measurement(*estimate) if isinstance(estimate, tuple) else Measurement(estimate)
    if (e.low is None)!=(e.high is None):
        raise ConfigError(f'{e} has one end of an interval: give both.')
    ends = (e.value, e.value) if e.low is None else (e.low, e.high)
    value,low,high = (float(x) for x in (e.value, *ends))
    return e._replace(value=value, low=low, high=high)

def judge(
    claim:Claim,
    estimate,   # `Measurement`, (value, low, high), or a number
    scale:str,  # Scale of the run
)->tuple:       # Verdict, and its reason where it needs one
    "Return the verdict on a claim"
    e = as_measurement(estimate)
    if any(math.isnan(x) for x in e[:3]) or e.low>e.high: return 'error', 'not a number'
    if SCALES.index(scale)<SCALES.index(claim.scale):
        return 'undecided', f'judged from scale {claim.scale} on'
    if e.unmet: return 'undecided', e.unmet
    if claim.low<=e.low and e.high<=claim.high: return 'holds', ''
    if claim.min_parameters and e.parameters is None:
        return 'error', 'the number of parameters of the model is missing'
    if claim.min_parameters>(e.parameters or 0):
        least,size = (format_count(n) for n in (claim.min_parameters, e.parameters))
        return 'needs a larger model', f'{least} parameters; this one has {size}'
    if e.high<claim.low or e.low>claim.high:
        accuses = claim.whose=='paper' and not claim.min_parameters
        if accuses and not claim.confirmed: return 'undecided', 'missed by one experiment of ours'
        return 'fails', claim.confirmed and f'confirmed by {claim.confirmed}'
    return 'undecided', 'the interval does not decide'

def format_count(
    n:float,
)->str: # For example '22 billion'
    "Format a large number in words"
    for size,name in ((1e9, 'billion'), (1e6, 'million')):
        if n>=size: return f'{n/size:.3g} {name}'
    return f'{n:,.0f}'


# %%
period = claims['pendulum/period']
cases = [(1.001, .995, 1.01), (1.001, .95, 1.05), (1.4, 1.3, 1.5), (.5, .4, .6), 1., 1.03]
[(c, *judge(period, c, 'quick')) for c in cases]

# %%
test_eq([judge(period, c, 'quick')[0] for c in cases],
        ['holds', 'undecided', 'fails', 'fails', 'holds', 'fails'])

# %% [markdown]
# An estimate on the bound meets the criterion. An estimate that is not a number is an error at every scale, for every model.

# %%
damping = claims['pendulum/damping']
test_eq(judge(damping, 1.5, 'cpu'), ('holds', ''))
test_eq(judge(damping, 1.4999, 'gpu'), ('fails', ''))
for scale in SCALES: test_eq(judge(damping, float('nan'), scale)[0], 'error')
for bounds in [(float('nan'), 2), (1, float('nan')), (2, 1)]:
    test_eq(judge(damping, (1.6, *bounds), 'cpu')[0], 'error')
judge(damping, float('nan'), 'cpu')

# %% [markdown]
# Below its scale, a claim is undecided, whatever the number, and so is one whose precondition is not met.

# %%
chance = Measurement(1., unmet='accuracy .33: the paper needs more')
[judge(damping, 9., 'quick'), judge(period, chance, 'cpu')]

# %%
test_eq([judge(damping, 9., 'quick')[0], judge(period, chance, 'cpu')[0]], ['undecided']*2)

# %% [markdown]
# A miss of one of our experiments may be a failure of the experiment. A claim of the paper fails only if
# `confirmed` names what confirms the miss, such as an exact loss, a start at the paper's solution, or a second setting.

# %%
alone = replace(period, confirmed='')
[judge(c, .5, 'cpu') for c in (period, alone, replace(alone, whose='ours'))]

# %%
test_eq([judge(c, .5, 'cpu')[0] for c in (period, alone, replace(alone, whose='ours'))],
        ['fails', 'undecided', 'fails'])

# %% [markdown]
# A claim with `min_parameters` can hold for a smaller model but cannot fail for it. From that size on a miss fails. Here a
# 70-billion-parameter model goes the wrong way in a claim about models of 22 billion or more.

# %%
reduced = replace(damping, low=-math.inf, high=-.05, min_parameters=22e9)
rises = (.2, .15, .25)
small,large,held = (Measurement(*found, parameters=n) for found,n in
                    ((rises, 135e6), (rises, 70e9), ((-.1, -.12, -.08), 135e6)))
[judge(reduced, e, 'cpu') for e in (small, large, held)]

# %%
test_eq([judge(reduced, e, 'cpu')[0] for e in (small, large, held)],
        ['needs a larger model', 'fails', 'holds'])
straddles = (0., -.1, .1)
test_eq(judge(reduced, Measurement(*straddles, parameters=22e9), 'cpu')[0], 'undecided')
test_eq(judge(reduced, Measurement(*straddles, parameters=1e9), 'cpu')[0], 'needs a larger model')
test_eq(judge(reduced, Measurement(float('nan'), parameters=1e9), 'cpu')[0], 'error')
test_eq(judge(reduced, rises, 'cpu')[0], 'error')  # whose result is it?


# %% [markdown]
# ## Recording
#
# A paper page ends with a call of `record`, which shows a table of verdicts. The same output stores the numbers in a MIME
# type of its own, so the executed page is the record.

# %%
#| export
def _json(x): return x if x is None or math.isfinite(x) else None if math.isnan(x) else str(x)

def _row(claim, estimate, scale):
    e = as_measurement(estimate)
    verdict,why = judge(claim, e, scale)
    return dict(id=claim.id, verdict=verdict, why=why, estimate=_json(e.value), low=_json(e.low),
                high=_json(e.high), scale=scale, unmet=e.unmet, parameters=e.parameters,
                note=e.note, quantity=claim.quantity, criterion=claim.criterion,
                bounds=_bounds_of(claim))

def _bounds_of(claim): return [x if math.isfinite(x) else None for x in (claim.low, claim.high)]

def stored_measurement(
    row:dict, # A claim as a page stores it
)->Measurement:
    "Return the estimate of a recorded claim"
    number = lambda k: math.nan if row.get(k) is None else float(row[k])
    return Measurement(*map(number, ('estimate', 'low', 'high')), row.get('unmet', ''),
                    row.get('parameters'), row.get('note', ''))

class Outcomes(list):
    "Judged claims, displayed as a table and stored as JSON"
    def __init__(self, rows, claims): super().__init__(rows); self.claims = claims
    def _cells(self):
        for r in self:
            claim,e = self.claims.get(r['id']), stored_measurement(r)
            if claim is None:
                yield r['id'], r['criterion'], format_estimate(*e[:3]), 'deleted'
                continue
            yield (claim_text(claim), r['criterion'],
                   format_estimate(*e[:3], draws=claim.draws), verdict_text(r, claim.closed))
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

def claim_text(
    claim, # `Claim` or row of the ledger
)->str:
    "Return the sentence of a claim, marked if it is ours or of a special setting"
    marks = ', '.join(filter(None, ('ours' if claim.whose=='ours' else '', claim.setting)))
    return f'{claim.sentence} ({marks})' if marks else claim.sentence

def verdict_text(
    row:dict,  # With 'verdict' and 'why'
    closed='', # Why the claim is no longer counted
)->str:
    "Return the verdict with its reason"
    text = f'{row["verdict"]} ({row["why"]})' if row['why'] else row['verdict']
    return f'closed: {closed.rstrip(".")}. By its criterion: {text}' if closed else text

def format_estimate(
    value, low, high, # Numbers, or None where there is none
    digits:int=3,     # Significant digits
    draws='',         # What the interval draws
)->str:
    "Format an estimate and its interval"
    if value is None or value!=value: return 'none'
    f = lambda x: 'none' if x is None else f'{x:.{digits}g}'
    if low==high==value: return f(value)
    over = f' over {draws}' if draws and draws!='nothing' else ''
    return f'{f(value)} [{f(low)},\xa0{f(high)}]{over}'

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
    outcomes:dict, # Claim id to estimate: `Measurement`, (value, low, high) or a number
    path=None,     # Folder of criteria, default: ours
    parameters=None, # Number of parameters of the model, where an `Measurement` gives none
)->Outcomes:
    "Judge several estimates"
    known = criteria(path)
    validate_scale(scale)
    for k in outcomes:
        if k not in known: raise ConfigError(unknown_name_message('claim', k, list(known)))
    found = {k: as_measurement(e) for k,e in outcomes.items()}
    for k,e in found.items():
        if e.parameters is None: found[k] = e._replace(parameters=parameters)
        if known[k].min_parameters and found[k].parameters is None:
            raise ConfigError(f'{k} depends on the size of the model: give record(..., '
                              'parameters=number).')
    return Outcomes([_row(known[k], e, scale) for k,e in found.items()], known)

def record(
    scale:str,     # Scale of the run
    outcomes:dict, # Claim id to estimate: `Measurement`, (value, low, high) or a number
    path=None,     # Folder of criteria, default: ours
    parameters=None, # Number of parameters of the model, where an `Measurement` gives none
):
    "Judge estimates and display the verdicts, with the numbers stored in the output"
    from IPython.display import display
    display(judge_all(scale, outcomes, path, parameters))


def rejudge(
    rows:list, # Claims as a page stores them
    path=None, # Folder of criteria, default: ours
)->Outcomes:   # Rows of changed or deleted criteria are left as they are
    "Judge recorded estimates again"
    known = criteria(path)
    unchanged = lambda r: r['id'] in known and _same_criterion(known[r['id']], r)
    judged = lambda r: _row(known[r['id']], stored_measurement(r), r['scale'])
    return Outcomes([judged(r) if unchanged(r) else r for r in rows], known)

def _same_criterion(claim, row):
    return row['bounds']==_bounds_of(claim) and row['criterion']==claim.criterion


# %%
record('quick', {'pendulum/period': (1.001, .995, 1.01), 'pendulum/damping': 2.1}, example)

# %% [markdown]
# `record` accepts only claims that have a criterion. A page need not record all of them. A claim about large models needs
# the size of the model.

# %%
with expect_fail(ConfigError, contains="did you mean 'pendulum/period'?"):
    record('quick', {'pendulum/perod': 1.}, example)
with expect_fail(ConfigError, contains="no scale 'large'"): record('large', {}, example)
with expect_fail(ConfigError, contains='depends on the size of the model'):
    record('quick', {'pendulum/chaos': 1.}, example)
with expect_fail(ConfigError, contains='one end'): as_measurement(Measurement(1., low=.5))

# %% [markdown]
# Numbers survive JSON, infinite ends of an interval included.

# %%
half_open = judge_all('cpu', {'pendulum/damping': (2., 1.6, math.inf)}, example)
stored = json.loads(json.dumps(half_open))[0]
test_eq(stored_measurement(stored)[:3], (2., 1.6, math.inf))
test_eq(stored['verdict'], 'holds')

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
# scale counts. Verdicts are computed anew from the recorded estimates.

# %%
#| export
def claims_of(
    nb, # A notebook, as read
)->list:  # One dict per recorded claim
    "Return the claims in the outputs of a page"
    outs = [o for c in nb.cells for o in c.get('outputs', [])]
    return [r for o in outs for r in o.get('data', {}).get(claims_mime, {}).get('claims', [])]

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
    fields = 'id paper section whose setting sentence criterion quantity draws closed replaces'
    res = {k: getattr(claim, k) for k in fields.split()}
    missing = Measurement(math.nan, math.nan, math.nan, parameters=math.nan)
    found = dict(verdict='error', why='not run', scale='')
    e = missing
    if row and not _same_criterion(claim, row):
        found['why'] = 'judged by another criterion: run the page again'
    elif row:
        e = stored_measurement(row)
        verdict,why = judge(claim, e, row['scale'])
        found = dict(verdict=verdict, why=why, scale=row['scale'])
    return res | dict(estimate=e.value, low=e.low, high=e.high, parameters=e.parameters,
                      unmet=e.unmet, note=e.note, page=page) | found

def ledger(
    folder=None, # Folder or list of executed notebooks, default: the papers' pages
    path=None,   # Folder of criteria, default: ours
):
    "Return a DataFrame with one row for each claim"
    import pandas as pd
    best = {}
    for name,p in _pages(notebooks_dir() if folder is None else folder):
        for row in claims_of(read_notebook(p)):
            old = best.get(row['id'])
            if not old or SCALES.index(row['scale'])>=SCALES.index(old[0]['scale']):
                best[row['id']] = row, name
    rows = [_ledger_row(c, *best.get(c.id, (None, ''))) for c in criteria(path).values()]
    return pd.DataFrame(rows, columns=list(_ledger_row(Claim(*['']*9, 0., 0.), None, '')))


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
test_eq(list(found.verdict), ['holds', 'fails', 'error', 'error'])
test_eq(list(found.why), ['', '', 'not run', 'not run'])

# %% [markdown]
# If a criterion changes, rows that were judged by the old one do not count.

# %%
f = example/'pendulum.toml'
_ = f.write_text(f.read_text().replace('[0.98, 1.02]', '[0.9, 1.1]'))
changed = ledger(tmp/'report', example).iloc[0]
test_eq(changed.verdict, 'error')
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
test_eq([r['id'] for r in claims_of(nbformat.read(p, 4))], ['pendulum/period', 'pendulum/damping'])
