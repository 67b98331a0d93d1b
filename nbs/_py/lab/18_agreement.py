# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Agreement
#
# > Compare the estimates of a run with the recorded ones.

# %%
#| default_exp lab.agreement

# %%
#| export
import json
import math
import re
from pathlib import Path
from statistics import NormalDist

# %%
#| export
from moral_sc.foundation.datasets import data_dir, read_toml
from moral_sc.foundation.files import read_json_object
from moral_sc.lab.claims import Claim, Measurement, criteria, ledger
from moral_sc.lab.execution import read_notebook
from moral_sc.lab.paths import notebook_paths, notebooks_dir, page_name
from moral_sc.lab.scales import SCALES, validate_scale

# %%
#| hide
import tempfile

import nbformat
from fastcore.test import *

from moral_sc.lab.claims import judge_all

tmp = Path(tempfile.mkdtemp())

# %% [markdown]
# You run this project to find out whether you get what we got. A verdict answers another question:
# a claim may hold in both runs with estimates that contradict each other, or be undecided in a
# small run that agrees with the large one. The report of a run therefore compares estimates.
#
# ## One quantity
#
# Two estimates *agree* if they differ by no more than their intervals allow together: by the root
# of the sum of the squared half-widths that face each other, for all claims of the three papers at
# a joint level of 95 % (Bonferroni). If neither estimate has an interval, the field `tolerance` of
# the claim takes its place, and both must lie on one side of the criterion.
#
# Agreement means something only if the run could have contradicted the record. A run is *too small to tell* if its scale
# does not measure the recorded quantity (the field `compare`), or if its interval is more than three times as wide as the
# recorded one and does not decide what the record decides. It is *not compared* if you chose other models or settings, or
# if a stub model or our own questions stood in for what the record measured.

# %%
#| export
agreements = ('differs', 'agrees', 'too small to tell', 'not compared')

def _joint_factor(rows):
    "Widening of a 95 % interval that makes 95 % the level for all rows together"
    z = NormalDist().inv_cdf
    return z(1-.025/rows)/z(.975)

def _reaches(recorded, found):
    "Half-widths of the two intervals on the sides that face each other"
    if found.value>recorded.value: return recorded.high-recorded.value, found.value-found.low
    return recorded.value-recorded.low, found.high-found.value

def _side(claim, m):
    "1 if the interval meets the criterion, -1 if none of it does, 0 if it contains the bound"
    if claim.low<=m.low and m.high<=claim.high: return 1
    return -1 if m.high<claim.low or m.low>claim.high else 0

def _compare_numbers(claim, recorded, found):
    bounds = [abs(b) for b in (claim.low, claim.high) if math.isfinite(b)]
    slack = claim.tolerance*max(abs(recorded.value), min(bounds))
    if abs(found.value-recorded.value)>slack: return 'differs', f'by more than {slack:.2g}'
    if _side(claim, recorded)!=_side(claim, found): return 'differs', 'across the criterion'
    return 'agrees', ''

def compare_measurements(
    claim:Claim,
    recorded:Measurement,
    found:Measurement,
    scale:str,   # Of the run
    rows=200,    # Comparisons that share the level of 95 %
)->tuple:        # One of `agreements`, and the reason where it needs one
    "Compare the estimate of a run with the recorded one"
    if any(map(math.isnan, recorded[:3])): return 'not compared', 'the record has no number'
    if SCALES.index(scale)<SCALES.index(claim.compare):
        return 'too small to tell', f'compared from scale {claim.compare} on'
    if any(map(math.isnan, found[:3])): return 'differs', 'the run has no number'
    widths = [m.high-m.low for m in (recorded, found)]
    if max(widths)==0: return _compare_numbers(claim, recorded, found)
    reaches = _reaches(recorded, found)
    joint = _joint_factor(rows)*math.hypot(*reaches)
    if abs(found.value-recorded.value)>joint: return 'differs', f'by more than {joint:.2g}'
    decided = _side(claim, recorded)!=0 and _side(claim, found)==_side(claim, recorded)
    if decided or widths[1]<=3*widths[0]: return 'agrees', ''
    return 'too small to tell', 'the interval is wide'


# %%
pentagon = Claim('p/pentagon', 'p', '1', 'Most are pentagons.', 'more than half', 'share', 'cpu',
                 'paper', 'trainings', .5, math.inf, compare='quick')
recorded = Measurement(.7, .65, .75)
runs = dict(near=(.72, .6, .82), far=(.2, .1, .32), wide=(.6, .2, .9), same_side=(.8, .55, 1.),
            missing=(math.nan,)*3)
compared = {k: compare_measurements(pentagon, recorded, Measurement(*v), 'quick')
            for k,v in runs.items()}
compared

# %%
test_eq([w for w,_ in compared.values()],
        ['agrees', 'differs', 'too small to tell', 'agrees', 'differs'])
late = Claim(**vars(pentagon)|dict(compare='cpu'))
none = Measurement(math.nan, math.nan, math.nan)
for small in (Measurement(.2, .1, .3), none): # Too few draws for an interval, for example
    test_eq(compare_measurements(late, recorded, small, 'quick')[0], 'too small to tell')
test_eq(compare_measurements(pentagon, none, recorded, 'quick')[0], 'not compared')

# %% [markdown]
# Numbers without intervals agree within the tolerance and on one side of the criterion.

# %%
point = lambda x: Measurement(x, x, x)
pairs = [(2., 2.04), (2., 2.2), (.5, .499), (1e-15, 3e-15)]
numbers = [compare_measurements(pentagon, point(a), point(b), 'quick') for a,b in pairs]
numbers

# %%
test_eq([w for w,_ in numbers], ['agrees', 'differs', 'differs', 'agrees'])

# %% [markdown]
# If run and record draw from the same distribution, 199 of 200 comparisons and more agree, also where the run is ten times smaller.

# %%
import numpy as np

rng = np.random.default_rng(0)
def draw(n):
    x = rng.normal(size=n)
    half = 1.96*x.std(ddof=1)/n**.5
    return Measurement(x.mean(), x.mean()-half, x.mean()+half)

wide_open = Claim(**vars(pentagon)|dict(low=-9.))
words = [compare_measurements(wide_open, draw(400), draw(40), 'quick')[0] for _ in range(2000)]
share = words.count('differs')/len(words)
share

# %%
assert share<.005


# %% [markdown]
# ## A report
#
# Rows come in the order of the papers' figures. A report shows the claims of the pages that it ran, also those that a page
# of the record measured and this run did not.

# %%
#| export
def paper_order(
    folder=None, # Of the lists of figures, default: `data/papers`
)->list:         # Names of pages
    "List the paper pages in the order of the papers' figures"
    lists = [Path(folder or data_dir()/'papers')/f'{p}.toml'
             for p in ('superposition', 'constitution', 'self_correction')]
    entries = [e for f in lists if f.is_file() for e in read_toml(f)['entries']]
    return list(dict.fromkeys(e['page'] for e in entries if 'page' in e))

def stored_run(
    path,  # An executed notebook
)->dict:   # Empty if it says nothing, or is not there
    "Return what a notebook says about its run"
    path = Path(path)
    if not path.is_file(): return {}
    try: return json.loads(path.read_bytes())['metadata'].get('moral_sc', {})
    except (ValueError, LookupError, TypeError, AttributeError):
        return read_notebook(path).metadata.get('moral_sc', {}) # Names what is wrong with it

def _runs(folder): return {page_name(p): stored_run(p) for p in notebook_paths(folder)}

def _compare(claim, record, run, config, rows):
    measured = lambda r: Measurement(r.estimate, r.low, r.high)
    if another := _other_settings(config): return 'not compared', f'run with {another}'
    if not run.scale: return 'not compared', 'not measured by this run'
    reason = lambda r: re.sub(r'-?\d[\d.,]*', '', r.unmet)  # a measured number may differ
    if reason(run)!=reason(record):
        return 'not compared', run.unmet or f'the record: {record.unmet}'
    word,why = compare_measurements(claim, measured(record), measured(run), config['scale'], rows)
    return word, '; '.join(filter(None, (why, run.note)))

def _other_settings(config):
    "Describe settings that the record does not have"
    given = {k: v for k,v in config.items() if k not in ('scale', 'seed', 'version')}
    return ', '.join(f'{k} {v}' for k,v in given.items())

def compare_report(
    out,         # Folder of a report
    folder=None, # Recorded pages, default: those of this package
    path=None,   # Folder of criteria, default: ours
):               # DataFrame, one row for each claim of the pages that ran
    "Compare the claims of a report with the recorded ones"
    import pandas as pd
    out,folder = Path(out), folder or notebooks_dir()
    config = read_json_object(out/'config.json', scale=str, seed=int)
    validate_scale(config['scale'])
    record,run,claims = ledger(folder, path), ledger(out/'notebooks', path), criteria(path)
    records,order = _runs(folder), paper_order()
    ok = {page: r.get('ok', True) for page,r in _runs(out/'notebooks').items()}
    rows = []
    for old,new in zip(record.itertuples(), run.itertuples(), strict=True):
        page = new.page or old.page
        if page not in ok or new.closed: continue
        word,why = _compare(claims[new.id], old, new, config, len(claims))
        if not ok[page] and not new.scale: word,why = 'differs', 'the page stopped'
        recorded = {f'recorded_{k}': getattr(old, k) for k in
                    ('estimate', 'low', 'high', 'verdict', 'why', 'scale')}
        origin = {f'recorded_{k}': records.get(old.page, {}).get(k, '') for k in ('date', 'commit')}
        rows.append(new._asdict() | recorded | origin |
                    dict(page=page, agreement=word, difference=why))
    rows.sort(key=lambda r: order.index(r['page']) if r['page'] in order else len(order))
    return pd.DataFrame(rows).drop(columns='Index', errors='ignore')

def summary(
    compared, # What `compare_report` returns
)->str:
    "Say in one sentence how much of a report agrees with the record"
    if not len(compared): return 'No quantity is on record for these pages.'
    counts = compared.agreement.value_counts()
    n = {w: counts.get(w, 0) for w in agreements}
    decided = n['agrees']+n['differs']
    rest = [f'{n[w]} {w}' for w in agreements[2:] if n[w]]
    notes = compared.note[(compared.agreement=='agrees') & (compared.note!='')].value_counts()
    of_them = [f', {k} of them with {note}' for note,k in notes.items()]
    return (f'{n["agrees"]} of {decided} quantities agree with the record{"".join(of_them)}'
            + ''.join(f'; {r}' for r in rest)+'.')


# %%
#| hide
def page(folder, name, scale, found):
    data = judge_all(scale, found, tmp/'claims')._repr_mimebundle_()
    out = nbformat.v4.new_output('display_data', data=json.loads(json.dumps(data)))
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('record(...)', outputs=[out])])
    nb.metadata['moral_sc'] = dict(date='2026-01-02', commit='abc')
    path = folder/f'{name}.ipynb'
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, path)

(tmp/'claims').mkdir()
claim = '''[[claim]]
id = "p/NAME"
paper = "p"
section = "1"
sentence = "Large."
criterion = "c"
quantity = "q"
at_least = 1
scale = "quick"
whose = "paper"
draws = "trainings"
'''
_ = (tmp/'claims'/'p.toml').write_text(''.join(claim.replace('NAME', n) for n in 'abcd'))

# %% [markdown]
# An example: of four recorded quantities one agrees, one differs, one is missing, and one comes from a stub model. The note of
# a measurement says that models were not trained anew; it stands beside the row, and `summary` counts such agreements apart.

# %%
low = lambda accuracy, *e: Measurement(*e, unmet=f'accuracy {accuracy} is too low')
recorded = {'p/a': low(.33, 2., 1.8, 2.2), 'p/b': (2., 1.8, 2.2), 'p/c': 3.}
repeated = {'p/a': low(.41, 2.1, 1.5, 2.6)._replace(note='released weights'), 'p/b': (4., 3.5, 4.4)}
page(tmp/'pages', 'p/one', 'quick', recorded)
page(tmp/'pages', 'p/two', 'quick', {'p/d': 2.})
page(tmp/'run'/'notebooks', 'p/one', 'quick', repeated)
page(tmp/'run'/'notebooks', 'p/two', 'quick', {'p/d': Measurement(9., unmet='a stub answered')})
config = dict(scale='quick', seed=0, version='0')
_ = (tmp/'run'/'config.json').write_text(json.dumps(config))
found = compare_report(tmp/'run', tmp/'pages', tmp/'claims')
print(summary(found))
found[['id', 'recorded_estimate', 'estimate', 'agreement', 'difference']]

# %%
test_eq(list(found.agreement), ['agrees', 'differs', 'not compared', 'not compared'])
test_eq(list(found.difference)[2:], ['not measured by this run', 'a stub answered'])
test_eq(found.difference[0], 'released weights')
test_eq(summary(found), '1 of 2 quantities agree with the record, 1 of them with released weights; '
                        '2 not compared.')
test_eq(list(found.recorded_date), ['2026-01-02']*4)
_ = (tmp/'run'/'config.json').write_text(json.dumps(config|dict(models=['x'])))
other = compare_report(tmp/'run', tmp/'pages', tmp/'claims')
test_eq(set(other.agreement), {'not compared'})
