# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Principles
#
# > Load the principles of a constitution, ours or the authors', and draw one for each step.

# %%
#| default_exp constitution.principles

# %%
#| export
import json
import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

# %%
#| export
from moral_sc.foundation.errors import ConfigError, DataError, unknown_name_message
from moral_sc.foundation.datasets import check_characters, data_dir, fetch, read_toml
from moral_sc.foundation.tables import read_rows

# %%
#| hide
import tempfile

import pandas as pd
from fastcore.test import *
from scipy.stats import chi2

from moral_sc.foundation.datasets import available

tmp = Path(tempfile.mkdtemp())


# %% [markdown]
# A constitution is a short list of sentences in plain language. In the first stage of
# Constitutional AI [@bai2022constitutional] a model reads its own answer and one principle,
# criticises the answer, and rewrites it. In the second stage a model reads two
# answers and one principle, and chooses the better answer. The two stages need two kinds of
# sentence.

# %%
#| export
@dataclass(frozen=True)
class Principle:
    "Two requests: what to criticise in an answer, and how to revise it"
    id:str
    critique:str
    revision:str
    topic:str = ''

@dataclass(frozen=True)
class Comparison:
    "A question that decides between two answers"
    id:str
    text:str
    topic:str = ''

@dataclass(frozen=True)
class Shot:
    "A worked example of one critique and one revision"
    principle:Principle
    human:str
    assistant:str
    critique:str
    revision:str


# %% [markdown]
# ## Our principles
#
# The authors published theirs without a licence, so we wrote our own sixteen of
# each kind. They are stored in TOML files: copy one, change a line, and pass its path. An error in
# a file names the row that contains it.

# %%
#| export
def _toml(path, table):
    path,rows = Path(path),read_toml(path).get(table, [])
    if not isinstance(rows, list) or not rows or not all(isinstance(r, dict) for r in rows):
        raise DataError(f'{path.name} has no [[{table}]]: add at least one.')
    return path, rows

def read_lines(
    path:str|Path, # A .txt file
)->list:
    "Read the lines of a text file; empty ones are skipped"
    try: lines = Path(path).expanduser().read_text(encoding='utf-8-sig').split('\n')
    except OSError as e: raise DataError(f'{path} cannot be read: {e.strerror}.') from None
    except UnicodeDecodeError as e:
        raise DataError(f'{path} is not UTF-8 text (byte {e.start:,}); save it as UTF-8.') from None
    return [x.strip() for x in lines if x.strip()]

def _read_source(source, table='principle'):
    "Return strings, rows or objects as they are in a list, a DataFrame or a file; and their name"
    if isinstance(source, (str, Path)):
        suffix = Path(source).suffix.lower()
        if suffix=='.toml': return _toml(source, table)[1], Path(source).name
        if suffix=='.txt': return read_lines(source), Path(source).name
        if suffix and ' ' not in suffix: return read_rows(source), Path(source).name
        raise ConfigError(f'{str(source)!r:.80} is no file; name a .toml, .txt, .jsonl or .csv '
                          'file, or give a list of strings.')
    if hasattr(source, 'columns'): return read_rows(source, 'principles'), 'principles'
    try: return list(source), 'principles'
    except TypeError: raise ConfigError(f'principles is {source!r:.60}; give a list of strings, or '
                                        'a file.') from None

def _is_text(x): return isinstance(x, str) and bool(x.strip())

def _build(cls, required, source, from_sentence):
    "Return principles from strings, rows or objects"
    rows,name = _read_source(source)
    if not rows: raise ConfigError(f'There are no principles in {name}; give one or more.')
    res = [_build_one(cls, required, r, i, name, from_sentence) for i,r in enumerate(rows, 1)]
    ids = [p.id for p in res]
    duplicate = next((i for i in ids if ids.count(i)>1), None)
    if duplicate: raise DataError(f'{name}: the id {duplicate!r} is used twice; rename one.')
    return res

def _build_one(cls, required, row, i, name, from_sentence):
    location = f'{name}: principle {i}'
    if isinstance(row, cls): return row
    if isinstance(row, str): row = dict(principle=row)
    if not isinstance(row, dict):
        raise DataError(f'{location} is {row!r:.60}; give a sentence, a row with '
                        f'{", ".join(required)}, or a {cls.__name__}.')
    check_characters({k: v for k,v in row.items() if isinstance(v, str)}, location)
    id = str(row.get('id') or f'principle{i}')
    sentence = next((row[k] for k in ('principle', 'text') if _is_text(row.get(k))), None)
    if sentence and not any(k in row for k in required if k!='text'):
        row = row|from_sentence(sentence.strip())
    bad = [k for k in required if not _is_text(row.get(k))]
    if bad: raise DataError(f'{location} lacks {", ".join(bad)}; add it.')
    return cls(id, *(row[k] for k in required), str(row.get('topic') or ''))


# %%
#| export
def _own_file(name): return data_dir()/'constitution'/name

def _requests(sentence):
    "Return the requests for critique and revision under a principle in one sentence"
    return dict(critique='Identify specific ways in which the last answer does not follow this '
                         f'principle: {sentence}',
                revision=f'Rewrite the last answer so that it follows this principle: {sentence}')

def _question(sentence):
    if sentence.endswith('?'): return dict(text=sentence)
    return dict(text=f'Which answer follows this principle better? {sentence}')

def load_principles(
    source=None, # Sentences, rows or a file of id, critique, revision, topic; default: ours
)->list[Principle]:
    "Load principles for critique and revision"
    source = _own_file('critique_revision.toml') if source is None else source
    return _build(Principle, ('critique', 'revision'), source, _requests)

def load_comparisons(
    source=None, # Questions, sentences, rows or a file of id, text, topic; default: ours
)->list[Comparison]:
    "Load principles for choosing between two answers"
    source = _own_file('comparison.toml') if source is None else source
    return _build(Comparison, ('text',), source, _question)


# %%
principles = load_principles()
principles[6]

# %%
load_comparisons()[6]

# %% [markdown]
# A constitution that only warns against harm trains a model that only warns. Two of our sixteen
# principles therefore push against over-reaction.

# %%
', '.join(p.topic for p in principles)

# %%
test_eq([p.id for p in principles], [c.id for c in load_comparisons()])
test_eq(len({p.topic for p in principles}), 16)
assert not any('CritiqueRequest' in p.critique or '\n' in p.critique for p in principles)

# %% [markdown]
# Your own principles are sentences in a list, a text file with one on each line, rows of JSON lines or CSV, or
# TOML as above. A sentence becomes a pair of requests, or a question, unless it is a question already.

# %%
sentences = ['Be brief.', 'Which answer is kinder?']
load_principles(sentences)[:1]+load_comparisons(sentences)


# %% [markdown]
# Your own file is validated when it is loaded.

# %%
#| hide
def written(text):
    f = tmp/'mine.toml'
    f.write_text(text)
    return f


# %%
mine = written('[[principle]]\nid = "brief"\ncritique = "What is too long?"')
with expect_fail(DataError, contains='mine.toml: principle 1 lacks revision'):
    load_principles(mine)

# %%
#| hide
ok = '[[principle]]\nid = "a"\ncritique = "c"\nrevision = "r"\n'
test_eq(load_principles(written(ok)), [Principle('a', 'c', 'r')])
with expect_fail(DataError, contains="'a' is used twice"): load_principles(written(ok+ok))
with expect_fail(DataError, contains='no [[principle]]'): load_principles(written('x = 1'))
with expect_fail(DataError, contains='not valid'): load_principles(written('[[principle'))
with expect_fail(DataError, contains='cannot be read'): load_principles(tmp/'none.toml')
for x in ('1', '[1]'):
    with expect_fail(DataError, contains='no [[principle]]'):
        load_principles(written(f'principle = {x}'))
(tmp/'mine.txt').write_text('Be brief.\n\nWhich answer is kinder?\n')
(tmp/'mine.csv').write_text('id,text\nprinciple1,Be brief.\nprinciple2,Which answer is kinder?\n')
(tmp/'mine.jsonl').write_text('\n'.join(f'{{"principle": "{x}"}}' for x in sentences))
for source in (tmp/'mine.txt', str(tmp/'mine.csv'), tmp/'mine.jsonl', tuple(sentences),
               pd.DataFrame(dict(principle=sentences)), load_principles(sentences)):
    test_eq(load_principles(source), load_principles(sentences))
test_eq(load_comparisons(tmp/'mine.csv'), load_comparisons(sentences))
faults = [(['Be kind.', ' '], DataError, 'principle 2 lacks critique, revision'),
          (['Be kind.', 7], DataError, 'principle 2 is 7; give a sentence'),
          ([dict(critique='c')], DataError, 'principles: principle 1 lacks revision'),
          ([], ConfigError, 'There are no principles'), (7, ConfigError, 'principles is 7'),
          ('Be kind.', ConfigError, "'Be kind.' is no file"), ('mine', ConfigError, 'is no file'),
          (load_comparisons(['Is it?']), DataError, 'or a Principle'),
          (['\ud83d'], DataError, 'half a character')]
for source,kind,message in faults:
    with expect_fail(kind, contains=message): load_principles(source)


# %% [markdown]
# ## Worked examples
#
# A model that is asked for a revision often writes another critique instead. The paper therefore puts a
# few finished examples in front. Ours are three, short and mild,
# and each names the principle it was written under. One of them criticises preaching.

# %%
#| export
def check_worked_examples(
    given,      # A list
    kind:type,  # Class of its members
    loader:str, # Function that loads them
)->list:
    "Return worked examples, or raise an error if one is of another type"
    wrong = next((s for s in given if not isinstance(s, kind)), None)
    if wrong is None: return list(given)
    raise ConfigError(f'few_shot has {wrong!r:.60}; give worked examples of {loader}, a file of '
                      'them, or [] for none.')

def load_few_shot(
    path=None,     # TOML with [[shot]] principle, human, assistant, critique, revision
    principles=(), # Those the shots may refer to, besides ours
)->list[Shot]:
    "Load worked examples of critique and revision; a list of them is returned unchanged"
    if isinstance(path, (list, tuple)): return check_worked_examples(path, Shot, 'load_few_shot')
    path,rows = _toml(path or _own_file('few_shot.toml'), 'shot')
    known = {p.id: p for p in [*load_principles(), *principles]}
    return [_shot(r, known, f'{path.name}: shot {i}') for i,r in enumerate(rows, 1)]

def _shot(row, known, label):
    parts = ('human', 'assistant', 'critique', 'revision')
    bad = [k for k in ('principle', *parts) if not row.get(k)]
    if bad: raise DataError(f'{label} lacks {", ".join(bad)}; add it.')
    p = row['principle']
    if p not in known:
        raise DataError(f'{label}: {unknown_name_message("principle", p, list(known))}')
    return Shot(known[p], *(row[k] for k in parts))


# %%
shots = load_few_shot()
shots[2]

# %%
test_eq([s.principle.id for s in shots], ['anger', 'facts', 'lecture'])

# %%
#| hide
shot = ('[[shot]]\nprinciple = "%s"\n%s = "h"\nassistant = "a"\ncritique = "c"\n'
        'revision = "r"')
with expect_fail(DataError, contains="did you mean 'anger'?"):
    load_few_shot(written(shot % ('angr', 'human')))
own = load_few_shot(written(shot % ('mine', 'human')), [Principle('mine', 'c', 'r')])
test_eq(own[0].principle.id, 'mine')
with expect_fail(ConfigError, contains="few_shot has 'x'"): load_few_shot([shots[0], 'x'])
with expect_fail(DataError, contains='shot 1 lacks human'):
    load_few_shot(written(shot % ('anger', 'person')))


# %% [markdown]
# ## The authors' principles
#
# The authors' files can be fetched. Their strings are fragments of a
# prompt: each begins with its own heading and ends with the heading of the answer. Code that adds its own
# headings would write both twice, so the loaders remove them.

# %%
#| export
def _bare(text, head='', tail=''):
    "Return `text` without the headings of the prompt around it"
    text = re.sub(rf'^\s*(?:{head}:)?\s*', '', text) if head else text.lstrip()
    return re.sub(rf'\s*{tail}:\s*$', '', text) if tail else text.rstrip()

def author_principles()->list[Principle]:
    "Load the sixteen critique and revision principles of the paper's repository"
    rows = json.loads(fetch('cai/prompts/CritiqueRevisionInstructions').read_text('utf-8'))
    return [Principle(k, _bare(v['prompt'][0], 'CritiqueRequest', 'Critique'),
                      _bare(v['edit_request'], 'RevisionRequest', 'Revision'))
            for k,v in rows.items()]

def author_comparisons()->list[Comparison]:
    "Load the sixteen comparison principles of the paper's repository"
    rows = json.loads(fetch('cai/prompts/RLMadisonInstructions').read_text('utf-8'))
    texts = [_bare(r, tail='Options') for r in rows]
    return [Comparison(f'comparison{i}', t) for i,t in enumerate(texts)]


# %%
_bare('\n\nCritiqueRequest: Is it rude?\n\nCritique:', 'CritiqueRequest', 'Critique')

# %%
#| hide
test_eq(_bare('\nCritiqueRequest: Rude?\n\nCritique:', 'CritiqueRequest', 'Critique'),
        'Rude?')
test_eq(_bare('\nWhich is kinder? Options:', tail='Options'), 'Which is kinder?')

# %% [markdown]
# Their worked examples are whole dialogues in one string. Four of the five end with an open
# `Human:` and one ends with its revision, so concatenating them adds a turn marker or loses
# one. Split at the headings, all five have the same six parts.

# %%
#| export
HEADINGS = ('Human', 'Assistant', 'CritiqueRequest', 'Critique', 'RevisionRequest',
            'Revision')

def split_dialogue(
    text:str, # A dialogue with headings, each at the start of a line
)->list[tuple]:
    "Split a dialogue into (heading, text) pairs; an open heading at its end is dropped"
    parts = re.split(rf'(?:^|\n)\s*({"|".join(HEADINGS)}):', text)
    turns = [(h, t.strip()) for h,t in zip(parts[1::2], parts[2::2], strict=True)]
    return turns[:-1] if turns and not turns[-1][1] else turns


# %%
split_dialogue('\n\nHuman: Hi\n\nAssistant: What?\n\nCritiqueRequest: Rude?\n\nHuman:')


# %%
#| export
def _author_shot(text, i):
    turns = split_dialogue(text)
    *dialogue,(_,critique_request),(_,critique),(_,request),(_,revision) = turns
    human = '\n\n'.join([dialogue[0][1], *(f'{h}: {t}' for h,t in dialogue[1:-1])])
    principle = Principle(f'shot{i}', critique_request, request)
    return Shot(principle, human, dialogue[-1][1], critique, revision)

def author_few_shot()->list[Shot]:
    "Load the worked examples of the paper's repository; `human` includes earlier turns"
    path = fetch('cai/prompts/CritiqueRevisionFewShotPrompts')
    rows = json.loads(path.read_text('utf-8'))
    return [_author_shot(t, i) for i,t in enumerate(rows)]


# %% [markdown]
# The loaders are tested on the real files where those are available. Their text is not shown here.

# %%
ids = [f'cai/prompts/{n}' for n in ('CritiqueRevisionInstructions', 'RLMadisonInstructions',
                                    'CritiqueRevisionFewShotPrompts')]
available_here = all(available(i) for i in ids)
if available_here:
    ps = author_principles()
    cs = author_comparisons()
    fs = author_few_shot()
    test_eq((len(ps), len(cs), len(fs)), (16, 16, 5))
    test_eq({t[-1] for p in ps for t in (p.critique, p.revision)} - set('.?'), set())
    words = ' '.join([p.critique+p.revision for p in ps]+[c.text for c in cs])
    assert not any(f'{h}:' in words for h in (*HEADINGS, 'Options'))
    assert all(s.revision and s.critique and 'Human:' not in s.revision for s in fs)
f'the authors\' files are {"checked" if available_here else "out of reach"}'


# %% [markdown]
# Our principles are not paraphrases of theirs. The longest run of words that any of ours shares
# with any of theirs is a common phrase.

# %%
#| hide
def longest_shared(a, b):
    w,v = (re.findall('[a-z]+', x.lower()) for x in (a, b))
    runs = lambda x, n: {tuple(x[i:i+n]) for i in range(len(x)-n+1)}
    return max((n for n in range(1, 30) if runs(w, n) & runs(v, n)), default=0)


# %%
if available_here:
    shared = max(longest_shared(own, t) for p in principles for own in (p.critique, p.revision)
                 for q in ps for t in (q.critique, q.revision))
    assert shared<=5
    print(f'longest shared run: {shared} words')


# %% [markdown]
# ## Random draws
#
# Every step of every row draws its principle independently and uniformly, so a row can get
# the same principle twice. A draw depends only on the seed, the row's key and the step. It does not
# depend on the order of rows, the batch, or the number of steps.

# %%
#| export
def draw_principles(
    principles:list,
    n_steps:int,     # Steps of one row
    seed:int=0,
    key:str='',      # Id of the row
)->list:             # One principle per step, with replacement
    "Draw the principles of one row, independently and uniformly"
    digests = [sha256(f'{seed}/{key}/{k}'.encode()).digest() for k in range(n_steps)]
    rngs = [np.random.default_rng(int.from_bytes(digest[:16], 'big')) for digest in digests]
    return [principles[int(r.integers(len(principles)))] for r in rngs]


# %%
[p.id for p in draw_principles(principles, 4, key='row-7')]

# %%
four = draw_principles(principles, 4, key='row-7')
test_eq(four[:2], draw_principles(principles, 2, key='row-7'))
assert draw_principles(principles, 4, seed=1, key='row-7')!=four

# %% [markdown]
# Four draws from sixteen repeat a principle in a third of the rows:
# $1 - \frac{16\cdot15\cdot14\cdot13}{16^4} = 0.3335$. Draws without replacement would give
# zero, and one draw per prompt would give one. Of the authors' own 66 rows, 25 repeat a principle.

# %%
n = 6000
rows = [[p.id for p in draw_principles(principles, 4, key=str(i))] for i in range(n)]
repeated = np.mean([len(set(r))<4 for r in rows])
expected = 1 - 16*15*14*13/16**4
sd = (expected*(1-expected)/n)**.5
assert abs(repeated-expected)<3*sd
round(float(repeated), 4), round(expected, 6), round(sd, 4)


# %% [markdown]
# Draws are uniform at each step, and so are pairs of successive steps: $\chi^2$ over the 16
# principles of every step, and over the 256 pairs.

# %%
def p_value(counts, cells):
    e = sum(counts)/cells
    x = sum((c-e)**2/e for c in counts) + (cells-len(counts))*e
    return float(chi2.sf(x, cells-1))

steps = pd.DataFrame(rows)
uniform = [p_value(steps[k].value_counts(), 16) for k in range(4)]
pairs = p_value((steps[0]+' '+steps[1]).value_counts(), 256)
assert min(*uniform, pairs)>.001
[round(p, 3) for p in uniform], round(pairs, 3)
