# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Errata of BBQ
#
# > What is odd in the authors' files, as a table that can be checked and left out.

# %%
#| default_exp bias.bbq.errata

# %% [markdown]
# A benchmark of 58,492 rows has slips: a misspelt word, a brace of the template that was left
# standing, a version that was never made. Mending them would make another benchmark. So the
# files stay as they are, pinned byte by byte, and `data/benchmarks/bbq_errata.toml` says what is
# wrong where; whoever wants can score without those scenes and see whether it matters.

# %%
#| export
from functools import cache

from moral_sc.foundation.datasets import data_dir, read_toml
from moral_sc.foundation.errors import ConfigError, unknown_name_message

# %%
#| hide
import pandas as pd
from fastcore.test import *
from moral_sc.bias.bbq.items import (CATEGORIES, INTERSECTIONAL, stereotype_agreement, by_quad, load_items,
                                 reachable_categories)

# %% [markdown]
# Some of it had been reported to the authors or is noted in the code of other tools; the rest
# was found by counting, in the four files that were at hand or in the templates.

# %%
#| export
KINDS = ['spelling', 'target', 'balance', 'copy']

@cache
def _table(): return tuple(read_toml(data_dir()/'benchmarks'/'bbq_errata.toml')['erratum'])

def load_errata(
    kinds:list|None=None, # Some of KINDS; by default all
)->list:                  # Dicts
    "What is odd in BBQ's files"
    for k in kinds or []:
        if k not in KINDS: raise ConfigError(unknown_name_message('kind of erratum', k, KINDS))
    return [e for e in _table() if e['kind'] in (kinds or KINDS)]


# %%
look = pd.DataFrame(load_errata())[['category','template','ids','rows','kind','source']]
look['ids'] = look.ids.map(lambda x: ' '.join(x) if isinstance(x, list) else '')
look.fillna('').style.hide(axis='index')


# %% [markdown]
# An entry names rows by their number, or by template and a piece of text, so that it can be
# checked against a file instead of believed.

# %%
#| export
def erratum_applies(
    erratum:dict,
    item,          # Of BBQ
)->bool:
    "Whether a question is one of those an entry is about"
    number = item.id.partition('/')[2]
    if item.category!=erratum['category']: return False
    if 'ids' in erratum: return number in erratum['ids']
    if item.template!=f"{item.category}/{erratum['template']}": return False
    texts = (item.context, item.question, *item.options)
    return any(erratum.get('find','') in t for t in texts)

def affected_items(
    items:list,
    kinds:list|None=None,
)->list:           # Whole scenes: the score leans on their symmetry
    "Questions in whose scene something is odd"
    table = load_errata(kinds)
    hit = {i.quad for i in items for e in table if erratum_applies(e, i)}
    return [i for i in items if i.quad in hit]

def drop_affected(
    items:list,
    kinds:list|None=None,
)->list:
    "The questions without those scenes"
    removed = {i.quad for i in affected_items(items, kinds)}
    return [i for i in items if i.quad not in removed]


# %% [markdown]
# On the files within reach, every entry finds as many rows as it says, and each template whose
# right answers lean one way is listed.

# %%
real = load_items() if reachable_categories() else []
for e in load_errata():
    if e['category'] not in {i.category for i in real} or 'rows' not in e: continue
    test_eq((e['note'], sum(erratum_applies(e, i) for i in real)), (e['note'], e['rows']))
lean = {}
for q in by_quad(real).values():
    lean[q[0].template] = lean.get(q[0].template, 0) + stereotype_agreement(q)
listed = {f"{e['category']}/{e['template']}" for e in load_errata(['balance'])}
assert {t for t,n in lean.items() if n} <= listed
{t:n for t,n in lean.items() if n}

# %%
rows = {k: len(affected_items(real, [k])) for k in KINDS}
rows, len(drop_affected(real)), len(real)


# %% [markdown]
# Two questions that stand in the file twice have the same text, to the last answer:

# %%
def text(i): return i.context, i.question, i.options

at = {i.id:i for i in real}
for n in (892, 894) if real else ():
    test_eq(*(text(at[f'Disability_status/{k}']) for k in (n, n+64)))
test_eq(drop_affected(real, ['target']), real)
ours = load_items(source='ours')
test_eq(drop_affected(ours), ours)
assert {e['category'] for e in load_errata()} <= {*CATEGORIES, *INTERSECTIONAL}
with expect_fail(ConfigError, contains="did you mean 'spelling'"): load_errata(['speling'])
