# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Prompts
#
# > Load prompts, validate them, and turn them into tokens in the same way at every stage.

# %%
#| default_exp constitution.prompts

# %%
#| export
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from moral_sc.constitution.principles import read_lines
from moral_sc.foundation.arguments import checked
from moral_sc.foundation.datasets import check_characters, data_dir, fetch, read_jsonl
from moral_sc.foundation.errors import ConfigError, DataError, unknown_name_message
from moral_sc.foundation.tables import check_fields, read_rows, text_field
from moral_sc.language.chat import Prompt, encode_each_after, render

# %%
#| hide
import json, tempfile
import pandas as pd
from fastcore.test import *
from moral_sc.foundation.datasets import available
from moral_sc.language.models import decode, encode
from moral_sc.language.stub_models import prefix_space_tokenizer, random_model

tmp = Path(tempfile.mkdtemp())

# %% [markdown]
# Five stages read prompts: answering, revising, finetuning, judging and RL. If each
# formatted the dialogue in its own way, a model would be judged in a format in which it was never
# trained. This module is the only place that turns a prompt into tokens.
#
# ## Sources of prompts
#
# A prompt is a string, or a row with `prompt`, and optionally `id`, `kind` and `topic`; `text` is read as
# `prompt`. Every function of this package takes prompts as `load_prompts` does: a list of strings or rows, a
# DataFrame, a file, or the name of a set. Of `helpful` and mild `red_team` requests we wrote forty each. The
# prompts of @bai2022hh are the beginnings of dialogues, many of several turns, and can be fetched.

# %%
#| export
MAX_CHARACTERS = 100_000 # Characters
_own_sets = dict(helpful='helpful', red_team='mild_red_team')

def get_prompt(
    row:dict,
    location:str='The row', # Of the row, for messages
)->str:
    "Return the prompt of a row, which may also be called `text`"
    given = {k: row[k] for k in ('prompt', 'text') if row.get(k) is not None}
    if not given: check_fields(row, location, ['prompt'])
    if len({*map(repr, given.values())})>1:
        raise DataError(f'{location} has both `prompt` and `text`, which differ; keep one.')
    name,text = next(iter(given.items()))
    if isinstance(text, str): return text
    raise DataError(f'{location} has {text!r:.60} as `{name}`, not a string; write earlier turns '
                    'into it as "Human: ..." and "Assistant: ...".')

def _row(r, i, source):
    if isinstance(r, str): r = dict(id=r, prompt=r)
    row = f'{source}: row {i}'
    if not isinstance(r, dict):
        raise DataError(f'{row} is {r!r:.60}; give a string, or a dict with `prompt`.')
    check_characters({k: r[k] for k in ('id', 'prompt', 'text') if k in r}, row)
    text = get_prompt(r, row)
    if not text.strip(): raise DataError(f'{row} is empty; write a prompt or delete the row.')
    if len(text)>MAX_CHARACTERS:
        raise DataError(f'{row} has {len(text):,} characters; shorten it to '
                        f'{MAX_CHARACTERS:,} or fewer.')
    kind,topic = (str(r.get(k) or '') for k in ('kind', 'topic'))
    id = f'{Path(source).stem}/{i}' if r.get('id') is None else str(r['id'])
    return dict(id=id, prompt=text.strip(), kind=kind.replace('-', '_'), topic=topic)

def validate_prompts(
    rows,             # Strings, or dicts with `prompt`
    source='prompts', # Named in error messages
)->list:              # Rows of id, prompt, kind, topic
    "Return prompts as rows of one form, or raise an error that names the row and the field"
    res = [_row(r, i, str(source)) for i,r in enumerate(rows, 1)]
    if not res: raise DataError(f'{source} holds no prompts; give one or more.')
    ids = Counter(r['id'] for r in res)
    for i,n in ids.items():
        if n>1: raise DataError(f'{source}: {i[:60]!r} is given {n} times; rename all but one, or '
                                'give each an `id`.')
    return res

def _dialogues(id):
    "Return the prompts of a file of human comparisons, each once"
    texts = dict.fromkeys(p for p,_,_ in _comparisons(id))
    return [dict(id=f'{id}/{i}', prompt=t, kind='helpful' if 'helpful' in id else 'red_team')
            for i,t in enumerate(texts)]

_suffixes = '.jsonl', '.csv', '.tsv', '.json', '.parquet', '.gz', '.ndjson'

def _read_source(source):
    "Return the rows of a set or file by its name, not yet validated"
    name = str(source)
    suffix = Path(name).suffix.lower()
    if name in _own_sets: return read_jsonl(data_dir()/'prompts'/f'{_own_sets[name]}.jsonl')
    if name.split('/')[0]=='hh': return _dialogues(_hh(name))
    if suffix=='.txt': return [dict(prompt=x) for x in read_lines(source)]
    if suffix in _suffixes: return read_rows(source)
    sets = [*_own_sets, 'hh', 'a .jsonl, .csv or .txt file']
    message = unknown_name_message('set of prompts', name, sets)
    raise ConfigError(message+(' Give prompts themselves as a list.' if ' ' in name else ''))

@checked
def load_prompts(
    source='red_team',     # A list, DataFrame or file; 'helpful', 'red_team', 'hh/harmless-base'
    limit:int|None=None,   # Largest number of prompts, drawn by `seed`
    seed:int=0,
)->list:                   # Rows of id, prompt, kind, topic
    "Load and validate prompts"
    named = isinstance(source, (str, Path))
    if named: rows = _read_source(source)
    elif hasattr(source, 'columns'): rows = read_rows(source, 'prompts')
    else:
        if not isinstance(source, Iterable) or isinstance(source, (dict,set,bytes)):
            raise ConfigError(f'prompts is {source!r:.60}; give a list of strings, rows with '
                              '`prompt`, or a file.')
        rows = list(source)
    rows = validate_prompts(rows, source if named else 'prompts')
    if limit is None or limit>=len(rows): return rows
    if limit<1: raise ConfigError(f'limit is {limit}; give 1 or more.')
    keep = np.random.default_rng(seed).permutation(len(rows))[:limit]
    return [rows[i] for i in sorted(keep)]

def draw_short_prompts(
    source,          # As in `load_prompts`
    n:int,           # Largest number of prompts
    length:int=200,  # Characters, of which a prompt has fewer
    seed:int=0,
)->list:             # In random order
    "Draw short prompts"
    short = [r for r in load_prompts(source) if len(r['prompt'])<length]
    order = np.random.default_rng(seed).permutation(len(short))[:n]
    return [short[i] for i in order]


# %%
drawn = draw_short_prompts([f'{"Is it far? "*k}{k}' for k in range(20)], 4, 30)
test_eq(len(drawn), 3)
test_eq(sorted(r['prompt'][-1] for r in drawn), ['0', '1', '2'])
load_prompts(['Is it far?', dict(id='7', text='And back?', kind='helpful')])


# %% [markdown]
# ## Dialogues
#
# Earlier turns are part of a prompt's text, under their headings. A prompt that ends with a turn of the
# assistant gives the first words of the answer; the model goes on from there.

# %%
#| export
def split_turns(
    text:str, # A prompt; it may hold earlier turns
)->list:      # (role, text) pairs
    "Split a prompt into turns of a conversation"
    text = text.replace('\r\n', '\n')
    text = text if re.match(r'\s*Human:', text) else f'\n\nHuman: {text}'
    parts = re.split(r'(?:^|\n\n)\s*(Human|Assistant):', text)
    return [(r.lower(), t.strip()) for r,t in zip(parts[1::2], parts[2::2])]

def render_prompt(
    lm,
    text:str,          # A prompt
    mode:str='plain',  # 'plain': headings, 'chat': the chat template; as in `render`
)->Prompt:
    "Render a prompt up to where the model goes on"
    turns = split_turns(text)
    first_words = turns.pop()[1] if turns[-1][0]=='assistant' else ''
    return render(lm, turns, first_words, mode)

def tokenize_example(
    lm,
    text:str,          # A prompt
    answer:str,
    mode:str='plain',
)->tuple:              # Ids of prompt, answer and end token; index of the answer's first token
    "Tokenize a prompt with its answer, as a training example"
    return tokenize_examples(lm, [text], [answer], mode)[0]

def tokenize_examples(
    lm,
    texts:list,        # Prompts; equal ones are rendered once
    answers:list,      # One for each
    mode:str='plain',
)->list:               # As `tokenize_example` returns
    "Tokenize prompts with their answers, all at once"
    rendered = {t: render_prompt(lm, t, mode) for t in dict.fromkeys(texts)}
    prompts = [rendered[t] for t in texts]
    bodies = [(' ' if mode=='plain' else '')+a.strip() for a in answers]
    rest = encode_each_after(lm, [p.text for p in prompts], bodies)
    end = _end(lm, mode)
    return [([*p.ids, *ids, end], len(p.ids)) for p,ids in zip(prompts, rest)]

def _end(lm, mode):
    "Return the end-of-sequence token"
    if lm.tokenizer.eos_token_id is None:
        raise ConfigError(f'{lm.name} has no end token; give its tokenizer one.')
    return lm.tokenizer.eos_token_id


# %%
lm = random_model('gemma3')
p = 'Is it far?\n\nAssistant: Two miles.\n\nHuman: And back?'
ids,start = tokenize_example(lm, p, 'The same.')
split_turns(p), decode(lm, ids[start:])

# %% [markdown]
# The prompt's tokens are those that a model has read before it generates its first token, and the
# answer's are those that follow them in the whole text. One token begins the text, and one ends it.

# %%
for mode in ('plain', 'chat'):
    ids,start = tokenize_example(lm, p, 'The same.', mode)
    test_eq(tuple(ids[:start]), render_prompt(lm, p, mode).ids)
    test_eq((ids.count(2), ids.count(lm.tokenizer.eos_token_id)), (1, 1))
    test_eq(ids[-1], lm.tokenizer.eos_token_id)
spaced = random_model('llama', tokenizer=prefix_space_tokenizer())
ids,start = tokenize_example(spaced, p, 'Yes')
test_eq(ids[:-1], encode(spaced, render_prompt(spaced, p).text+' Yes'))
test_eq(split_turns(p.replace('\n', '\r\n')), split_turns(p))
begun = 'Far?\n\nAssistant: Two'
test_eq(render_prompt(lm, begun).text, f'\n\nHuman: {begun}')
ids,start = tokenize_example(lm, begun, 'miles.')
test_eq(decode(lm, ids), f'<bos>\n\nHuman: {begun} miles.<eos>')
test_eq(ids[:start], [*render_prompt(lm, begun).ids])
test_eq(decode(lm, tokenize_example(lm, 'Far?', 'No.')[0]),
        '<bos>\n\nHuman: Far?\n\nAssistant: No.<eos>')
texts,answers = [p, begun, p, 'Far?'], ['The same.', 'miles.', 'Yes', '']
for m,mode in [(lm, 'plain'), (lm, 'chat'), (spaced, 'plain')]:
    each = [tokenize_example(m, *r, mode) for r in zip(texts, answers)]
    test_eq(tokenize_examples(m, texts, answers, mode), each)


# %% [markdown]
# ## Human comparisons
#
# The files of @bai2022hh have two whole dialogues per line. The prompt is their shared beginning, up to
# the last turn of the assistant. In some pairs the prompts differ, and in some an answer is
# empty; such rows are skipped.

# %%
#| export
def _hh(name):
    first,*parts = str(name).split('/')
    if first!='hh': raise ConfigError(
        f"{str(name)!r:.60} is no set of comparisons; give 'hh', or 'hh/harmless-base'.")
    parts = parts or ['harmless-base']
    return '/'.join(['hh-rlhf', *parts, *(['test'] if len(parts)==1 else [])])

def split_last_answer(
    dialogue:str,
)->tuple: # Prompt, without the first heading; answer
    "Split a dialogue where its last answer begins"
    start = dialogue.rfind('\n\nAssistant:')
    return dialogue[:start].strip().removeprefix('Human:').strip(), dialogue[start+12:].strip()

def _comparisons(id):
    "Yield prompt, chosen and rejected answer of every usable row"
    for r in read_jsonl(fetch(id)):
        (p,chosen),(q,rejected) = (split_last_answer(r[k]) for k in ('chosen', 'rejected'))
        if p==q and p and chosen and rejected: yield p, chosen, rejected

@checked
def human_comparisons(
    source='hh',         # For instance 'hh/harmless-base/test'
    limit:int|None=None,
    seed:int=0,          # Of the choice of rows and of the order of answers
)->list:                 # Rows of id, prompt, a, b, p (1: a was chosen), source
    "Load comparisons by people"
    id = _hh(source)
    rows = list(_comparisons(id))
    rng = np.random.default_rng(seed)
    first = rng.random(len(rows))<.5
    keep = range(len(rows)) if limit is None else sorted(rng.permutation(len(rows))[:limit])
    return [dict(id=f'{id}/{i}', prompt=rows[i][0], a=rows[i][1 if first[i] else 2],
                 b=rows[i][2 if first[i] else 1], p=float(first[i]), source='human')
            for i in keep]


# %% [markdown]
# Your own comparisons are rows of `prompt`, `a`, `b` and, where they are labelled, `p`, the probability that `a`
# is better. Rows of `chosen` and `rejected`, as other libraries have them, are read too: the chosen answer is
# `a`, and `p` is 1. Without a `prompt` both are whole dialogues that share their beginning.

# %%
#| export
def _pair(r, location):
    if 'chosen' in r and 'rejected' in r and not ('a' in r or 'b' in r):
        a,b = (text_field(r, k, location) for k in ('chosen', 'rejected'))
        if r.get('prompt', r.get('text')) is None:
            (p,a),(q,b) = map(split_last_answer, (a, b))
            if p!=q or not p:
                raise DataError(f'{location}: the dialogues of `chosen` and `rejected` do not '
                                'begin alike; give a `prompt`.')
            r = r|dict(prompt=p)
        r = {k: v for k,v in r.items() if k not in ('chosen', 'rejected')}|dict(a=a, b=b, p=1.)
    bad = [k for k in 'ab' if not isinstance(r.get(k), str)]
    if bad: raise DataError(f'{location} has no text in {" and ".join(bad)}; add it.')
    return r|dict(prompt=get_prompt(r, location))

def load_pairs(
    source,       # A list of rows, a DataFrame, or a file
    name='pairs', # In error messages
)->list:          # Rows of prompt, a, b and what else they have
    "Load pairs of answers to a prompt, labelled or not"
    where = str(source) if isinstance(source, (str, Path)) else name
    rows = read_rows(source, name)
    return [_pair(r, f'{where}: row {i}') for i,r in enumerate(rows, 1)]


# %%
load_pairs([dict(prompt='Far?', chosen='Two miles.', rejected='No.')])

# %%
#| hide
dialogues = dict(chosen='\n\nHuman: Far?\n\nAssistant: Yes.',
                 rejected='\n\nHuman: Far?\n\nAssistant: No.')
test_eq(load_pairs([dialogues]), [dict(prompt='Far?', a='Yes.', b='No.', p=1.)])
(tmp/'pairs.csv').write_text('text,a,b\nFar?,yes,no\n')
test_eq(load_pairs(tmp/'pairs.csv')[0]['prompt'], 'Far?')
for row,message in [(dict(prompt='x', a='y'), 'pairs: row 1 has no text in b'), (
        dict(a='x', b='y'), "no 'prompt'"), (dialogues|dict(chosen='Hi'), 'do not begin alike'),
        (dict(prompt='x', chosen=['y'], rejected='z'), "as 'chosen', not a text")]:
    with expect_fail(DataError, contains=message): load_pairs([row])

# %%
found = 'out of reach'
if available('hh-rlhf/harmless-base/test'):
    rows = human_comparisons()
    prompts = load_prompts('hh')
    many = sum(len(split_turns(r['prompt']))>1 for r in rows)
    longer = sum((len(r['a'])>len(r['b']))==(r['p']==1) for r in rows)/len(rows)
    found = dict(pairs=len(rows), several_turns=many, prompts=len(prompts), longer=longer)
    assert 2295<len(rows)<=2303 and .43<longer<.46
found


# %% [markdown]
# The longer answer is the chosen one in less than half of these pairs: annotators were
# asked for the *more harmful* answer, and a refusal is short.
#
# ## Train and test sets
#
# The accuracy of a preference model is overestimated if test prompts were also in its training set. Sets
# are therefore split by the text of the prompt, not by row.

# %%
#| export
@checked
def split_by_prompt(
    rows:list,   # With `prompt` or `text`
    *shares,     # Relative size of each part: .8, .2
    seed:int=0,
)->list:         # One list per share; rows of one prompt stay together
    "Split rows into parts that share no prompt"
    texts = sorted({get_prompt(r) for r in rows})
    order = np.random.default_rng(seed).permutation(len(texts))
    ends = np.round(np.cumsum(shares)/sum(shares)*len(texts)).astype(int)
    part = {texts[i]: int(np.searchsorted(ends, k, side='right')) for k,i in enumerate(order)}
    return [[r for r in rows if part[get_prompt(r)]==n] for n in range(len(shares))]

def check_disjoint(
    **sets, # Name -> rows
):
    "Refuse sets that share a prompt"
    owner = {}
    for name,rows in sets.items():
        for t in {get_prompt(r) for r in rows}:
            if t in owner: raise DataError(f'{name} and {owner[t]} share the prompt {t[:50]!r}: '
                                           'split them with `split_by_prompt`.')
        owner |= {get_prompt(r): name for r in rows}


# %%
ours = load_prompts('helpful')+load_prompts('red_team')
twice = [dict(r, id=f'{r["id"]}/{k}') for r in ours for k in 'ab']
train,test = split_by_prompt(twice, .8, .2)
check_disjoint(train=train, test=test)
with expect_fail(DataError, contains='share the prompt'):
    check_disjoint(train=train, test=train[:1])
len(train), len(test)

# %%
test_eq(len(train)+len(test), 160)
test_eq([len(x) for x in split_by_prompt(ours, 1, 1, 2)], [20, 20, 40])
test_eq(split_by_prompt(ours, .5, .5), split_by_prompt(ours, .5, .5))
test_ne(split_by_prompt(ours, .5, .5), split_by_prompt(ours, .5, .5, seed=1))


# %% [markdown]
# ## Error messages
#
# A row that is not understood is named with its file and field.

# %%
def file(*rows):
    (tmp/'mine.jsonl').write_text('\n'.join(json.dumps(r) for r in rows))
    return tmp/'mine.jsonl'

mistakes = [([dict(prompt='Hi'), dict(text=' ')], 'mine.jsonl: row 2 is empty'),
            ([dict(prompt=7)], "row 1 has 7 as `prompt`, not a string"),
            ([dict(prompt=[dict(role='user')])], 'not a string; write earlier turns'),
            ([dict(promt='x')], "row 1 has no 'prompt'; did you mean 'promt'?"),
            ([dict(other='x')], "has no 'prompt'; a row needs prompt"),
            ([dict(prompt='a', text='b')], 'both `prompt` and `text`, which differ'),
            ([dict(text='x'*100_001)], '100,001 characters'), ([], 'has no rows'),
            ([dict(id='a', text='x'), dict(id='a', text='y')], "'a' is given 2 times")]
for rows,message in mistakes:
    with expect_fail(DataError, contains=message): load_prompts(file(*rows))
lists = [(['a', 'a'], "prompts: 'a' is given 2 times"), ([], 'prompts holds no prompts'),
         (['a', 7], 'prompts: row 2 is 7; give a string'),
         (['\ud83d'], 'row 1 has half a character'),
         ([dict(id='\ud83d', prompt='x')], 'half a character')]
for rows,message in lists:
    with expect_fail(DataError, contains=message): load_prompts(rows)
for source,message in [('helpfull', "did you mean 'helpful'"), (7, 'prompts is 7; give a list'),
                       ({'Far?': 'No.'}, 'give a list'), ({'Far?', 'Late?'}, 'give a list'),
                       ('Is it far?', 'Give prompts themselves as a list')]:
    with expect_fail(ConfigError, contains=message): load_prompts(source)
with expect_fail(DataError): load_prompts(tmp/'none.jsonl')
with expect_fail(ConfigError, contains='no set of comparisons'): human_comparisons('harmless')
load_prompts(file(dict(prompt='Is it far?')))

# %% [markdown]
# The same prompts from a list, files of three kinds and a DataFrame.

# %%
texts = ['Is it far?', 'Why, "far"?']
(tmp/'mine.txt').write_text('\ufeffIs it far?\r\n\r\nWhy, "far"?\r\n', encoding='utf-8')
(tmp/'mine.csv').write_text('id,prompt\n1,Is it far?\n2,"Why, ""far""?"\n')
sources = [file(*[dict(text=t) for t in texts]), tmp/'mine.txt', tmp/'mine.csv', texts,
           [dict(prompt=t) for t in texts], pd.DataFrame(dict(prompt=texts)), iter(texts)]
for source in sources: test_eq([r['prompt'] for r in load_prompts(source)], texts)

# %%
#| hide
test_eq(len(load_prompts('red_team', 8)), 8)
with expect_fail(ConfigError, contains='seed is -1'): load_prompts('red_team', 8, seed=-1)
test_eq(load_prompts('red_team', 8), load_prompts('red_team', 8))
test_eq(load_prompts([dict(prompt='x', kind=None, id=None)])[0]['id'], 'prompts/1')
(tmp/'bad.txt').write_bytes(b'caf\xe9')
with expect_fail(DataError, contains='not UTF-8'): load_prompts(tmp/'bad.txt')
with expect_fail(DataError, contains='cannot be read'): load_prompts(tmp/'none.txt')
