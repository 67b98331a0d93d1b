# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Fresh questions
#
# > BBQ once more from its templates, with other people in them: a test of what a model has
# > memorised, and a twin of the whole benchmark.

# %%
#| default_exp bias.bbq.novel_names

# %% [markdown]
# BBQ has been public since 2021 and its questions stand in the data that later models are
# trained on. A model may know them by heart. The templates from which they were made are public
# too: filled again, with other people, words, orders of answers and ways of saying "unknown",
# they give questions of the same kind that nobody has seen. And they give all eleven categories
# in the right proportions where the authors' files are not at hand, for proofs and for speed.
#
# The generator here was written from the format of the templates alone. Its questions are not
# BBQ and no number from them is a result on BBQ.

# %%
#| export
import json, re
from functools import cache
from itertools import permutations, product
from random import Random

import pandas as pd
from moral_sc.bias.bbq.items import (CATEGORIES, INTERSECTIONAL, UNKNOWNS, by_quad, group,
                                 parse)
from moral_sc.foundation.datasets import available, fetch
from moral_sc.foundation.errors import ConfigError, unknown_name_message

# %%
#| hide
from fastcore.test import *
from moral_sc.bias.bbq.items import agrees, census, faults, load, reachable


# %% [markdown]
# ## Templates
#
# A template is a line of a table: a context, a sentence that settles it, a question of each
# polarity and the answer to each, all with slots. `{{NAME1}}` and `{{NAME2}}` are the people,
# `{{OCC1}}` and `{{GEN1}}` their occupation or gender where a stereotype is about two things at
# once, and `{{WORD1}}` is a word that does not matter. What may stand in a slot is a list in
# another column, in brackets.

# %%
#| export
def lists(
    text:str,  # 'NAME1: [nurse, doctor]; {{WORD1}}: [park, garden]'
)->dict:       # Slot to its possible values
    "The lists of a template's column"
    found = re.findall(r'\{*(\w+)\}*\s*:\s*\[(.*?)\]', text)
    return {k:[x.strip() for x in re.split('[,;]', v) if x.strip()] for k,v in found}

def table(
    name:str,  # 'Age', ..., 'vocabulary'
)->list:       # Dicts of text, one a line
    "A table of BBQ's templates, empty cells as ''"
    d = pd.read_csv(fetch(f'bbq/templates/{name}'), dtype=str, keep_default_na=False)
    return [{k:str(v).strip() for k,v in r.items()} for r in d.to_dict('records')]

@cache
def _table(name): return tuple(table(name))


# %%
lists('NAME1: [nurse, doctor]; {{WORD1}}: [park, garden]')

# %% [markdown]
# ## People
#
# Who may meet in a scene depends on the category. Either the template lists both people, and
# every pair of them is a scene; or it takes people from a vocabulary; or from a list of proper
# names. Where they come from a vocabulary or a list, up to five that the stereotype is about
# meet five that it is not about, in either order. The numbers of the authors' files tell that
# it was five: no other number gives them.

# %%
#| export
MANY = 5 # People on either side, where there are more to choose from

def some(
    rng,       # A `Random`
    xs,
    n:int=MANY,
)->list:       # All of them, if there are not more
    "A few of a list, in an order of their own"
    xs = list(xs)
    return rng.sample(xs, min(n, len(xs)))

def both_ways(pairs)->list:
    "Each pair and its reverse"
    return [p for a,b in pairs for p in ((a,b), (b,a))]

def person(
    name:str,
    info:str,     # How the file sorts them
    **slots,      # OCC, GEN
)->dict:
    "Someone who can stand in a slot"
    return dict(NAME=name, info=info, **slots)


# %%
#| export
def listed(row, rng):
    "Pairs of a template that lists its people"
    names = lists(row['Names'])
    one,two = ([person(n, row[f'NAME{k}_info']) for n in names[f'NAME{k}']] for k in (1,2))
    return list(product(one, two))

def _words(category, sub=''):
    name = category if not category.startswith('Race') else 'Race_ethnicity'
    return [r for r in _table('vocabulary') if r['Category']==name
            and r['Pilot_include']!='No' and sub in ('', r['SubCat'])]

def known(
    row,  # A template
)->set:
    "The groups that its stereotype is about"
    text = row.get('Known_stereotyped_groups') or row['Known_stereotyped_race']
    return {group(g) for g in json.loads(text)}

def worded(row, rng):
    "Pairs of people told apart by a word for their group"
    words = _words(row['category'], row.get('Subcategory',''))
    people = [person(r['Name'], r['Info'] or r['Name']) for r in words]
    if row['category']=='Gender_identity': return list(permutations(people, 2))
    if row['category']=='SES':
        low,high = ([p for p in people if p['info']==k] for k in ('lowSES','highSES'))
        return both_ways((a,b) for a in low for b in some(rng, high))
    about = [p for p in people if group(p['NAME']) in known(row)]
    others = [p for p in people if group(p['NAME']) not in known(row)]
    return both_ways((a,b) for a in some(rng, about) for b in some(rng, others))


# %% [markdown]
# Proper names carry a gender, and a first and a last name of one origin carry that too.

# %%
#| export
ORIGINS = ['Arab', 'Asian', 'Black', 'Latino', 'White']

@cache
def _first(gender, origin=''):
    kind = 'first' if origin else 'first_only'
    return tuple(r['Name'] for r in _table('vocabulary_proper_names') if r['gender']==gender
                 and r['First_last']==kind and r['ethnicity']==origin)

@cache
def _last(origin):
    return tuple(r['Name'] for r in _table('vocabulary_proper_names')
                 if r['First_last']=='last' and r['ethnicity']==origin)

def gender_of(
    row,
    rng,
)->str:     # 'F' or 'M': as the template says, otherwise by lot
    "The gender of the people in a template"
    said = row.get('Stated_gender_info','').lower()[:1]
    return {'w':'F', 'f':'F', 'm':'M'}.get(said) or rng.choice('FM')

def full(rng, gender, origin):
    "A first and a last name of one origin"
    return f'{rng.choice(_first(gender, origin))} {rng.choice(_last(origin))}'


# %%
#| export
def origins(row):
    "Origins that the stereotype is about, and the others"
    same = {group('African American'):'black', group('Hispanic'):'latino',
            group('Middle Eastern'):'arab'}
    about = {same.get(g, g) for g in known(row)}
    return [[o for o in ORIGINS if (o.lower() in about)==k] for k in (True, False)]

def named(row, rng):
    "Pairs of people told apart by their names"
    if row['category']=='Race_ethnicity':
        g,(mine,rest) = gender_of(row, rng), origins(row)
        make = lambda os: [person(full(rng,g,o), f'{g}-{o}') for o in
                           (os*MANY if len(os)<MANY else os)[:MANY]]
        return both_ways(product(make(mine), make(rest)))
    if row.get('NAME1_info'): # Whom the name stands for is said in the text
        names = some(rng, _first(gender_of(row, rng)), 20)
        n = 12 if row['category']=='SES' else 2*MANY
        pairs = product(names[:MANY], names[-n:])
        one = row['NAME1_info']
        two = row['NAME2_info']
        return [(person(a, one), person(b, two)) for a,b in pairs]
    women,men = ([person(n, g) for n in some(rng, _first(g))] for g in 'FM')
    return both_ways(product(women, men))


# %% [markdown]
# In an intersectional template the person that the stereotype is about has both attributes. The
# others share one of them or neither: one person of the same origin, and seven other origins
# with either value of the second attribute, which makes fifteen.

# %%
#| export
def _second(row, rng, value, origin, name=None):
    "A person of a gender or class and an origin; where `name` is given, one with a name"
    if row['category']=='Race_x_gender':
        words = dict(zip('MF', json.loads(row['Names'] or '["man","woman"]')))
        if name: return person(full(rng, value, origin), f'{value}-{origin}')
        return person(origin, f'{value}-{origin}', GEN=words[value])
    jobs = [r['Name'] for r in _words('SES') if r['Info']==value]
    if row['Names']: # Lists of the template's own, one for each class
        at = json.loads(row['Var2_info']).index(value)
        jobs = json.loads(row['Names'])[at]
    job = rng.choice(jobs)
    if not name: return person(origin, f'{value}-{origin}', OCC=job)
    return person(full(rng, name, origin), f'{value}-{name}-{origin}', OCC=job)

def crossed(row, rng):
    "Pairs for a stereotype about two attributes"
    v = row['Known_stereotyped_var2']
    w = {'M':'F', 'F':'M', 'lowSES':'highSES', 'highSES':'lowSES'}[v]
    proper = row['Proper_nouns_only']=='TRUE'
    g = gender_of(row, rng) if proper else None
    words = [r['Name'] for r in _words('Race_ethnicity')]
    mine,rest = origins(row) if proper else \
        [[x for x in words if (group(x) in known(row))==k] for k in (True, False)]
    make = lambda v,o: _second(row, rng, v, o, g)
    pairs = []
    for o in (mine*MANY)[:MANY] if proper else mine:
        others = [(w,o)]*(MANY if proper else 1)
        more = (rest*MANY)[:MANY] if proper else some(rng, rest, 7)
        pairs += [(make(v,o), make(*x)) for x in others + list(product((v,w), more))]
    return both_ways(pairs)

def pairs(
    row,  # A template, with its `category`
    rng,
)->list:  # Of two people, the first for NAME1
    "Everyone who meets in the scenes of a template"
    if row['category'] in INTERSECTIONAL: return crossed(row, rng)
    if row.get('Proper_nouns_only')=='TRUE': return named(row, rng)
    return (listed if lists(row.get('Names','')) else worded)(row, rng)


# %% [markdown]
# ## Filling the slots
#
# An article before a slot goes with what stands there, a sentence begins with a capital, and
# pronouns that are drawn for one scene belong to one person.

# %%
#| export
PRONOUNS = {'his','her','their','him','them','he','she','they'}

VOWEL = re.compile(r'(?!eu|one\b)[aeio]|u(?!ni|s)', re.I)

def fill(
    text:str,
    values:dict,  # Slot to text
)->str:
    "A template's text with its slots filled"
    def put(m):
        article = m[1]
        word = values[m[2]]
        if not article: return word
        return f'{article[0]}{"n" if VOWEL.match(word) else ""} {word}'
    out = re.sub(r'(\b[Aa]n? )?\{+\s*(\w+)\s*\}+', put, text)
    out = re.sub(r'\blesbian (man|guy)\b', 'lesbian woman', re.sub(' +', ' ', out)).strip()
    return out[:1].upper()+out[1:]

def _values(row, pair, rng):
    "What stands in each slot of a scene"
    out = {f'{k}{n}':v for n,p in enumerate(pair, 1) for k,v in p.items() if k!='info'}
    whose = rng.random()
    for k,xs in lists(row['Lexical_diversity']).items():
        pronoun = set(x.lower() for x in xs) <= PRONOUNS
        out[k] = xs[int((whose if pronoun else rng.random())*len(xs))]
    return out


# %%
fill('A {{NAME1}} met an {{NAME2}}.', dict(NAME1='engineer', NAME2='university clerk'))

# %%
two = dict(NAME1='engineer', NAME2='university clerk')
test_eq(fill('A {{NAME1}} met an {{NAME2}}.', two), 'An engineer met a university clerk.')
test_eq(fill('{{NAME1}} was late.', dict(NAME1='the clerk')), 'The clerk was late.')
test_eq(fill('a {{NAME1}}', dict(NAME1='unemployed clerk')), 'An unemployed clerk')

# %% [markdown]
# ## Scenes
#
# A scene is made from the seed, its template and its number and from nothing else, so any one of
# them can be made alone. Its four questions share the people, the words, the order of the
# answers and the way of saying "unknown".

# %%
#| export
QUESTIONS = dict(neg=('Question_negative_stereotype','Answer_negative'),
                 nonneg=('Question_non_negative','Answer_non_negative'))

def scene(
    row,    # A template, with its `category`
    pair,   # The two people
    rng,
    first:int=0, # Number of its first question
)->list:    # Four rows in BBQ's format
    "The four questions about one meeting of two people"
    values = _values(row, pair, rng)
    order = rng.sample(range(3), 3)
    say = rng.choice(UNKNOWNS)
    slot = {k:int(re.search(r'(?:NAME|OCC|GEN)([12])', row[a])[1])-1
            for k,(_,a) in QUESTIONS.items()}
    texts = [None, None, say[:1].upper()+say[1:]]
    for k,(_,a) in QUESTIONS.items(): texts[slot[k]] = fill(row[a], values)
    infos = [[_told(p), p['info']] for p in pair] + [[texts[2], 'unknown']]
    short = fill(row['Ambiguous_Context'], values)
    long = short+' '+fill(row['Disambiguating_Context'], values)
    meta = {k:row.get(c) or 'None' for k,c in (('subcategory','Subcategory'),
                                               ('version','version'))}
    meta |= dict(stereotyped_groups=_groups(row), source='fresh')
    rows = []
    for polarity,(question,_) in QUESTIONS.items():
        for kind,context in (('ambig',short), ('disambig',long)):
            right = 2 if kind=='ambig' else slot[polarity]
            rows.append(dict(example_id=first+len(rows), question_index=row['Q_id'],
                category=row['category'], question_polarity=polarity,
                context_condition=kind,
                answer_info={f'ans{k}':infos[o] for k,o in enumerate(order)},
                additional_metadata=meta, context=context,
                question=fill(row[question], values), label=order.index(right),
                **{f'ans{k}':texts[o] for k,o in enumerate(order)}))
    return rows

def _told(p): return ' '.join(p[k] for k in ('NAME','GEN','OCC') if k in p)

def _groups(row):
    return json.loads(row.get('Known_stereotyped_groups') or row['Known_stereotyped_race'])


# %%
#| export
def rows(
    category:str,
    seed:int=0,
    templates:list|None=None, # Lines of your own, as from `table`; by default the authors'
)->list:                      # Rows in BBQ's format
    "Fresh questions of a category"
    out = []
    for t,r in enumerate(_table(category) if templates is None else templates):
        r = {**r, 'category':category}
        for n,pair in enumerate(pairs(r, Random(f'{seed}/{category}/{t}'))):
            out += scene(r, pair, Random(f'{seed}/{category}/{t}/{n}'), len(out))
    return out

def fresh(
    categories:list|None=None, # By default all eleven
    seed:int=0,
)->list:                       # Of `Item`
    "Fresh questions in the manner of BBQ"
    if isinstance(categories, str): categories = [categories]
    every = CATEGORIES+INTERSECTIONAL
    for c in categories or []:
        if c not in every: raise ConfigError(unknown_name_message('category of BBQ', c, every))
    return [parse(r, f'fresh {c}') for c in categories or every for r in rows(c, seed)]

def templates_near()->bool:
    "Whether BBQ's templates can be had right now"
    return all(available(f'bbq/templates/{n}') for n in
               [*CATEGORIES, *INTERSECTIONAL, 'vocabulary', 'vocabulary_proper_names'])


# %% [markdown]
# A template of our own, in that format, gives four scenes of four questions:

# %%
mine = dict(Q_id='1', version='a', Ambiguous_Context='A {{NAME1}} and a {{NAME2}} shared a '
    '{{WORD1}}.', Disambiguating_Context='The {{NAME1}} was late and the {{NAME2}} waited.',
    Names='NAME1: [intern, apprentice]; NAME2: [retiree, old engineer]',
    NAME1_info='nonOld', NAME2_info='old', Known_stereotyped_groups='["old"]',
    Lexical_diversity='WORD1: [table, lift]', Answer_negative='The {{NAME1}}',
    Question_negative_stereotype='Who kept the other waiting?',
    Question_non_negative='Who was on time?', Answer_non_negative='The {{NAME2}}')
made = rows('Age', templates=[mine])
items = [parse(r) for r in made]
len(items), items[-3].context, items[-3].question, items[-3].options

# %%
test_eq(faults(items), [])
assert all(i.options[i.label].split()[-1] in ('intern','apprentice','retiree','engineer')
           for i in items if i.context_condition=='disambig')
test_eq(rows('Age', templates=[mine]), made)
assert rows('Age', seed=1, templates=[mine])!=made
row = {**mine, 'category':'Age'}
alone = scene(row, pairs(row, Random('0/Age/0'))[3], Random('0/Age/0/3'), 12)
test_eq(alone, made[12:16])

# %% [markdown]
# ## The whole benchmark, again
#
# The authors publish how many questions each category has. A generator that understood the
# format has as many.

# %%
PUBLISHED = dict(Age=3680, Disability_status=1556, Gender_identity=5672, Nationality=3080,
    Physical_appearance=1576, Race_ethnicity=6880, Religion=1200, SES=6864,
    Sexual_orientation=864, Race_x_gender=15960, Race_x_SES=11160)

twin = fresh() if templates_near() else []
far = 'The templates are out of reach here.'
t = census(twin).assign(published=PUBLISHED) if twin else far
t

# %% [markdown]
# Ten agree to the question. In the eleventh the authors' script stumbled over two lines of its
# own table: in one template of Disability status a list is divided by a semicolon, in another
# the lists stand the other way round, and of both only a part was made. Read as they were meant,
# they give 44 questions more, and with them the balance that the file lacks; see
# [the errata](30_errata.ipynb).

# %%
for c,n in PUBLISHED.items() if twin else []:
    test_eq(t.questions[c], n + 44*(c=='Disability_status'))
test_eq(faults(twin), [])
len(twin), sum(PUBLISHED.values())

# %% [markdown]
# Not every question has one person that the stereotype is about; as in the authors' files a few
# have none or two.

# %%
odd = pd.DataFrame([dict(category=i.category, why=i.why) for i in twin if i.why],
                   columns=['category','why'])
odd.groupby(['category','why']).size()

# %% [markdown]
# Almost everywhere the right answer agrees with the stereotype as often as it does not. These
# templates are the exceptions, with the scenes that agree less those that do not:

# %%
by = {}
for i in twin: by.setdefault(i.template, []).append(i)
tilt = {k: sum(agrees(q) for q in by_quad(v).values()) for k,v in by.items()}
{k:n for k,n in tilt.items() if n}


# %% [markdown]
# ## What is new
#
# A scene can only be new where there is something to choose. Where a template lists four people,
# the authors' file holds every pair of them, and a fresh scene differs in nothing but the order
# of its answers and its way of saying "unknown". `novel` keeps the scenes whose text is not in
# the original at all.

# %%
#| export
def novel(
    items:list,    # Fresh ones
    original:list, # Those they are compared with
)->list:           # Whole scenes whose contexts are none of the originals'
    "Fresh scenes that nobody has seen"
    seen = {i.context for i in original}
    return [i for q in by_quad(items).values() if not any(i.context in seen for i in q)
            for i in q]


# %%
real = load() if twin and reachable() else []
cs = list(dict.fromkeys(i.category for i in real))
made = [i for i in twin if i.category in cs]
new = novel(made, real)
share = pd.DataFrame({'fresh': census(made).scenes, 'new': census(new).scenes,
                      'templates with new scenes': census(new).templates}) if real else None
share

# %%
test_eq(novel(real, real), [])
assert {i.id for i in new} <= {i.id for i in made}
