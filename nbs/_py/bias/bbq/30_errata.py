# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # BBQ errata
#
# > Known errors in the authors' files, as a table that can be checked and excluded.

# %%
#| default_exp bias.bbq.errata

# %% [markdown]
# A benchmark of 58,492 rows has errors: a misspelt word, an unfilled brace of a template, a version that was
# never generated. Correcting them would make another benchmark. The files therefore stay unchanged, pinned
# by checksum, and `data/benchmarks/bbq_errata.toml` lists the errors. You can score without those scenes and
# see whether it matters.

# %%
#| export
from functools import cache

from moral_sc.foundation.datasets import data_dir, read_toml
from moral_sc.foundation.errors import ConfigError, unknown_name_message

# %%
#| hide
import pandas as pd
from fastcore.test import *
from moral_sc.bias.bbq.items import (CATEGORIES, INTERSECTIONAL, by_quad, load_items,
                                     reachable_categories, stereotype_agreement)

# %% [markdown]
# Some of the errors had been reported to the authors or are noted in the code of other tools; the others were
# found by counting, in the four available files or in the templates.

# %%
#| export
KINDS = ['spelling', 'target', 'balance', 'copy']

@cache
def _table(): return tuple(read_toml(data_dir()/'benchmarks'/'bbq_errata.toml')['erratum'])

def load_errata(
    kinds:list|None=None, # Some of KINDS; default: all
)->list:                  # Dicts
    "Load the known errors of BBQ's files"
    for k in kinds or []:
        if k not in KINDS: raise ConfigError(unknown_name_message('kind of erratum', k, KINDS))
    return [e for e in _table() if e['kind'] in (kinds or KINDS)]


# %%
look = pd.DataFrame(load_errata())[['category','template','ids','rows','kind','source']]
look['ids'] = look.ids.map(lambda x: ' '.join(x) if isinstance(x, list) else '')
look.fillna('').style.hide(axis='index')


# %% [markdown]
# An entry identifies rows by number, or by template and a piece of text, so you can check it against a file.

# %%
#| export
def erratum_applies(
    erratum:dict,
    item,          # Of BBQ
)->bool:
    "Return whether an erratum is about a question"
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
    "Return the questions of scenes with an error"
    table = load_errata(kinds)
    hit = {i.quad for i in items for e in table if erratum_applies(e, i)}
    return [i for i in items if i.quad in hit]

def drop_affected(
    items:list,
    kinds:list|None=None,
)->list:
    "Return the questions of scenes without errors"
    removed = {i.quad for i in affected_items(items, kinds)}
    return [i for i in items if i.quad not in removed]


# %% [markdown]
# In the available files, every entry matches as many rows as it states, and each template whose correct
# answers are unbalanced is listed.

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
# Two duplicated questions have the same text, including all answers:

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
