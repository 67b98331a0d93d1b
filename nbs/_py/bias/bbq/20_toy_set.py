# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # BBQ toy set
#
# > Forty-eight groups of four questions in BBQ's format, written for this project.

# %%
#| default_exp bias.bbq.toy_set

# %% [markdown]
# BBQ's files are large and have to be downloaded. For first runs without a network there is something
# smaller: twenty-four scenes over eight of BBQ's categories, written for this project in
# `data/benchmarks/everyday.toml`. A bias benchmark has to name groups; the traits here are mild ones (late,
# timid, badly prepared), and every scene has a counterpart in which the other person has the trait.
#
# The set is for testing the software. It has not been validated by human raters, as BBQ was, and results on
# it are not BBQ results.

# %%
#| export
from itertools import permutations
from pathlib import Path

from moral_sc.foundation.datasets import data_dir, read_toml
from moral_sc.foundation.errors import DataError

# %%
#| hide
from fastcore.test import *
from moral_sc.bias.bbq.items import census, faults, load_items
from moral_sc.foundation.datasets import read_jsonl

# %%
#| export
REQUIRED = ['category', 'stereotyped', 'target', 'other', 'ambiguous', 'settles', 'negative',
        'nonnegative']

def read_scenes(
    path:str|Path|None=None,  # Your own file; default: `data/benchmarks/everyday.toml`
)->list:                      # One dict per scene
    "Read scenes from a file"
    path = Path(path or data_dir()/'benchmarks'/'everyday.toml')
    rows = read_toml(path).get('scene', [])
    for k,s in enumerate(rows, 1):
        missing = [n for n in REQUIRED if n not in s]
        if missing: raise DataError(f'{path}: scene {k} has no `{missing[0]}`.')
    return rows


# %%
read_scenes()[0]

# %% [markdown]
# ## Questions of a scene
#
# A scene is rendered twice, so that the trait belongs once to the stereotyped person and once to the other.
# A perfect model therefore scores exactly zero on the disambiguated half: its correct answers agree with the
# stereotype in one rendering and go against it in the other.

# %%
#| export
UNKNOWN_WORDINGS = ['Not stated', 'It is not said', 'Nobody can tell', 'The text does not say',
           'Impossible to know', 'Not clear', 'Cannot be told', 'No way to tell']

def render_scene(
    scene:dict,   # Of `read_scenes`
    first:bool,   # The stereotyped person is named first
    true:bool,    # The stereotyped person has the trait
)->dict:          # Texts of the contexts, and the people that answer both questions
    "Fill the blanks of a scene with its two people"
    a = scene['target']
    b = scene['other']
    one,two = (a,b) if first else (b,a)
    neg,pos = (a,b) if true else (b,a)
    people = dict(one=one[0], two=two[0], neg=neg[0], pos=pos[0])
    people |= {k.capitalize(): v[0].upper()+v[1:] for k,v in people.items()}
    ambig,settled = (scene[k].format(**people) for k in ('ambiguous','settles'))
    return dict(ambig=ambig, disambig=f'{ambig} {settled}', neg=neg, nonneg=pos)


# %%
render_scene(read_scenes()[0], first=True, true=False)['disambig']


# %%
#| export
def build_quadruple(
    scene:dict,
    texts:dict,        # Of `render_scene`
    order:tuple,       # Which of target, other, unknown is at (a), (b), (c)
    unknown:str,       # Wording of "unknown"
    start:int,         # First example_id
    index:int,         # Template number within the category
    version:str,
)->list:               # Four rows in BBQ's format
    "Build the four questions of a rendered scene"
    people = [scene['target'], scene['other'], [unknown, unknown, 'unknown']]
    displayed = [people[k] for k in order]
    rows = []
    for pol,question in (('neg',scene['negative']), ('nonneg',scene['nonnegative'])):
        for cond in ('ambig','disambig'):
            right = people[2] if cond=='ambig' else texts[pol]
            rows.append(dict(example_id=start+len(rows), question_index=str(index),
                question_polarity=pol, context_condition=cond, category=scene['category'],
                answer_info={f'ans{i}':w[1:] for i,w in enumerate(displayed)},
                additional_metadata=dict(subcategory='None', version=version,
                    stereotyped_groups=scene['stereotyped'], source='written for moral_sc'),
                context=texts[cond], question=question,
                **{f'ans{i}':w[0][0].upper()+w[0][1:] for i,w in enumerate(displayed)},
                label=displayed.index(right)))
    return rows


# %% [markdown]
# The answers appear in all six orders within each category, so no letter is correct, biased or unknown more
# often than another. Which person is named first is balanced against which person has the trait over
# neighbouring scenes.

# %%
#| export
def build_rows(
    scenes:list,  # Of `read_scenes`, category by category
)->list:          # Rows in BBQ's format, eight per scene
    "Build all questions of a set of scenes"
    rows_by_category = {}
    orders = list(permutations(range(3)))
    for s in scenes:
        category_rows = rows_by_category.setdefault(s['category'], [])
        k = len(category_rows)//8
        for v,true in enumerate((True, False)):
            n = 2*k + v
            texts = render_scene(s, first=true==(k%2==0), true=true)
            unknown = UNKNOWN_WORDINGS[(n+3*len(rows_by_category)) % len(UNKNOWN_WORDINGS)]
            category_rows += build_quadruple(s, texts, orders[n%6], unknown, len(category_rows),
                                             k+1, 'ab'[v])
    return [r for mine in rows_by_category.values() for r in mine]


# %% [markdown]
# The file in the repository is generated from these scenes. If you change a scene, write the rows of
# `build_rows` to it again, one JSON object a line.

# %%
made = build_rows(read_scenes())
kept = read_jsonl(data_dir()/'benchmarks'/'bbq_like.jsonl')
assert made==kept, 'write build_rows(read_scenes()) to data/benchmarks/bbq_like.jsonl'
len(made)

# %% [markdown]
# The set passes the checks of the authors' files, every question has a target, and the balance is exact:
# each letter is the correct, the biased and the unknown answer equally often in every category.

# %%
ours = load_items(source='ours')
test_eq(faults(ours), [])
test_eq({i.exclusion for i in ours}, {''})
for c in {i.category for i in ours}:
    for what in ('label','biased','counter','unknown'):
        found = [getattr(i, what) for i in ours if i.category==c]
        test_eq([found.count(k) for k in range(3)], [8,8,8])
census(ours)

# %% [markdown]
# A correct answer agrees with the stereotype as often as it goes against it.

# %%
settled = [i for i in ours if i.context_condition=='disambig']
test_eq(sum(i.label==i.biased for i in settled), sum(i.label==i.counter for i in settled))
test_eq(sum(i.label==i.biased for i in settled), 48)
