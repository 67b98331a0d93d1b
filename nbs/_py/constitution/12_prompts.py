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
from pathlib import Path

import numpy as np

from moral_sc.foundation.datasets import data_dir, fetch, read_jsonl
from moral_sc.foundation.errors import ConfigError, DataError, unknown_name_message
from moral_sc.language.chat import Prompt, encode_after, render

# %%
#| hide
import json, tempfile
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
# A prompt is a row with `id` and `text`; `kind` is `helpful` or `red_team`. We wrote forty of each,
# all mild. The prompts of @bai2022hh are the beginnings of dialogues, many of several turns, and can be
# fetched. Your own prompts are JSON lines.

# %%
#| export
MAX_CHARACTERS = 100_000 # Characters
_own_sets = dict(helpful='helpful', red_team='mild_red_team')

def _row(r, i, source):
    text = r.get('text', r.get('prompt'))
    row = f'{source}: row {i}'
    if not isinstance(text, str): raise DataError(f'{row} has no `text` that is a string; add it.')
    if not text.strip(): raise DataError(f'{row} is empty; write a prompt or delete the row.')
    if len(text)>MAX_CHARACTERS:
        raise DataError(f'{row} has {len(text):,} characters; shorten it to '
                        f'{MAX_CHARACTERS:,} or fewer.')
    return dict(id=str(r.get('id', f'{Path(source).stem}/{i}')), text=text.strip(),
                kind=r.get('kind', '').replace('-', '_'), topic=r.get('topic', ''))

def validate_prompts(
    rows,          # Dicts with `text` or `prompt`
    source='prompts', # Named in error messages
)->list:           # Rows of id, text, kind, topic
    "Return prompts as rows of one form, or refuse them"
    res = [_row(r, i, str(source)) for i,r in enumerate(rows, 1)]
    if not res: raise DataError(f'{source} holds no prompts; add one a line.')
    ids = Counter(r['id'] for r in res)
    for i,n in ids.items():
        if n>1: raise DataError(f'{source}: the id {i!r} is used {n} times; rename all but one.')
    return res

def _dialogues(id):
    "Return the prompts of a file of human comparisons, each once"
    texts = dict.fromkeys(p for p,_,_ in _comparisons(id))
    return [dict(id=f'{id}/{i}', text=t, kind='helpful' if 'helpful' in id else 'red_team')
            for i,t in enumerate(texts)]

def load_prompts(
    source='red_team',     # 'helpful', 'red_team'; 'hh' or 'hh/helpful-base/test'; a .jsonl file
    limit:int|None=None,   # Largest number of prompts, drawn by `seed`
    seed:int=0,
)->list:                   # Rows of id, text, kind, topic
    "Load prompts"
    name = str(source)
    if name in _own_sets: rows = read_jsonl(data_dir()/'prompts'/f'{_own_sets[name]}.jsonl')
    elif name.split('/')[0]=='hh': rows = _dialogues(_hh(name))
    elif Path(name).suffix in ('.jsonl', '.gz'): rows = read_jsonl(name)
    else: raise ConfigError(unknown_name_message('set of prompts', name,
                                                 [*_own_sets, 'hh', 'a .jsonl file']))
    rows = validate_prompts(rows, name)
    if limit is None or limit>=len(rows): return rows
    if limit<1: raise ConfigError(f'limit is {limit}; give 1 or more.')
    keep = np.random.default_rng(seed).permutation(len(rows))[:limit]
    return [rows[i] for i in sorted(keep)]


# %% [markdown]
# ## Dialogues
#
# Earlier turns are part of a prompt's text, under their headings.

# %%
#| export
def split_turns(
    text:str, # A prompt; it may hold earlier turns
)->list:      # (role, text) pairs; the last is human
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
    "Render a prompt up to where the answer begins"
    return render(lm, split_turns(text), mode=mode)

def tokenize_example(
    lm,
    text:str,          # A prompt
    answer:str,
    mode:str='plain',
)->tuple:              # Ids of prompt, answer and end token; index of the answer's first token
    "Tokenize a prompt with its answer, as a training example"
    p = render_prompt(lm, text, mode)
    end = _end(lm, mode)
    body = (' ' if mode=='plain' else '')+answer.strip()
    return [*p.ids, *encode_after(lm, p.text, [body])[0], end], len(p.ids)

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
test_eq(decode(lm, tokenize_example(lm, 'Far?', 'No.')[0]),
        '<bos>\n\nHuman: Far?\n\nAssistant: No.<eos>')


# %% [markdown]
# ## Human comparisons
#
# The files of @bai2022hh have two whole dialogues per line. The prompt is their shared beginning, up to
# the last turn of the assistant. In some pairs the prompts differ, and in some an answer is
# empty; such rows are skipped.

# %%
#| export
def _hh(name):
    parts = name.split('/')[1:] or ['harmless-base']
    return '/'.join(['hh-rlhf', *parts, *(['test'] if len(parts)==1 else [])])

def _cut(dialogue):
    start = dialogue.rfind('\n\nAssistant:')
    return dialogue[:start].strip().removeprefix('Human:').strip(), dialogue[start+12:].strip()

def _comparisons(id):
    "Yield prompt, chosen and rejected answer of every usable row"
    for r in read_jsonl(fetch(id)):
        (p,chosen),(q,rejected) = _cut(r['chosen']),_cut(r['rejected'])
        if p==q and p and chosen and rejected: yield p, chosen, rejected

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
def _text(r): return r.get('prompt', r.get('text'))

def split_by_prompt(
    rows:list,   # With `prompt` or `text`
    *shares,     # Relative size of each part: .8, .2
    seed:int=0,
)->list:         # One list per share; rows of one prompt stay together
    "Split rows into parts that share no prompt"
    texts = sorted({_text(r) for r in rows})
    order = np.random.default_rng(seed).permutation(len(texts))
    ends = np.round(np.cumsum(shares)/sum(shares)*len(texts)).astype(int)
    part = {texts[i]: int(np.searchsorted(ends, k, side='right')) for k,i in enumerate(order)}
    return [[r for r in rows if part[_text(r)]==n] for n in range(len(shares))]

def check_disjoint(
    **sets, # Name -> rows
):
    "Refuse sets that share a prompt"
    owner = {}
    for name,rows in sets.items():
        for t in {_text(r) for r in rows}:
            if t in owner: raise DataError(f'{name} and {owner[t]} share the prompt {t[:50]!r}: '
                                           'split them with `split_by_prompt`.')
        owner |= {_text(r): name for r in rows}


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

# %%
def file(*rows):
    (tmp/'mine.jsonl').write_text('\n'.join(json.dumps(r) for r in rows))
    return tmp/'mine.jsonl'

mistakes = [([dict(text='Hi'), dict(text=' ')], 'row 2 is empty'),
            ([dict(text=7)], 'no `text`'), ([dict(other='x')], 'no `text`'),
            ([dict(text='x'*100_001)], '100,001 characters'), ([], 'holds no prompts'),
            ([dict(id='a', text='x'), dict(id='a', text='y')], "'a' is used 2 times")]
for rows,say in mistakes:
    with expect_fail(DataError, contains=say): load_prompts(file(*rows))
with expect_fail(ConfigError, contains="did you mean 'helpful'"): load_prompts('helpfull')
with expect_fail(DataError): load_prompts(tmp/'none.jsonl')
load_prompts(file(dict(prompt='Is it far?')))

# %%
test_eq(len(load_prompts('red_team', 8)), 8)
test_eq(load_prompts('red_team', 8), load_prompts('red_team', 8))
