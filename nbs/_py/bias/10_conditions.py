# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Conditions
#
# > Prompts of three bias benchmarks under each condition, with nine wordings of each request.

# %%
#| default_exp bias.conditions

# %% [markdown]
# The experiments of @ganguli2023 differ by a sentence or two. The plain question (Q) gains an
# instruction to be fair (Q+IF), then an invitation to reason first (Q+IF+CoT); in one benchmark the
# model is asked to match statistics instead (Q+Match). Those sentences are data, not code: they are
# in `data/conditions.toml`, where you can check them against the paper's Tables 1 to 3. The end of this
# page shows how to ask with wordings and conditions of your own.

# %%
#| export
import re
from copy import deepcopy
from functools import cache
from pathlib import Path

import pandas as pd
from moral_sc.foundation.datasets import data_dir, read_toml
from moral_sc.foundation.errors import ConfigError, DataError, unknown_name_message

# %%
#| hide
import json, tempfile
from fastcore.test import *

# %% [markdown]
# A text may refer to another one in angle brackets, and to a field of the item in braces.

# %%
#| export
REFERENCE = r'<(\w+)>'

def expand_references(
    text:str,    # A text of the table, with `<names>` of others
    texts:dict,  # Name to text
    parents=(),  # Names of the texts that this one is part of
)->str:
    "Replace references to other texts"
    def replacement(m):
        if m[1] in parents: raise ConfigError(f'The text {m[1]!r} refers to itself.')
        if m[1] in texts: return expand_references(texts[m[1]], texts, (*parents, m[1]))
        raise ConfigError(unknown_name_message('text', m[1], list(texts)))
    return re.sub(REFERENCE, replacement, text)


# %% [markdown]
# A *section* holds the texts and conditions of one benchmark. A table of your own adds to the sections of
# `data/conditions.toml`: its texts and conditions replace those of the same name, and a new section needs
# conditions. Everything in it is checked when it is read.

# %%
#| export
ROLES = ('human', 'assistant', 'system')
SECTION_KEYS = ('table', 'options', 'wordings', 'texts', 'conditions')

def _turns_fault(turns, texts):
    "Return the first fault of a condition's turns, or None"
    if not isinstance(turns, list) or not turns: return 'is not a list of [role, text] pairs'
    for t in turns:
        if not (isinstance(t, list) and len(t)==2 and all(isinstance(x, str) for x in t)):
            return f'has {t!r} as a turn, not [role, text]'
        if t[0] not in ROLES: return f'has the role {t[0]!r}, not {", ".join(ROLES)}'
    for _,text in turns:
        try: expand_references(text, texts)
        except ConfigError as e: return f'cannot be built: {e}'.rstrip('.?')
    if turns[-1][0]!='assistant' or not turns[:-1] or turns[-2][0]!='human':
        return ('does not end with a human turn and the beginning of an answer, '
                '["human", ...], ["assistant", ...]')

def _own_section_fault(name, own, spec):
    "Return the first fault of a section `own`, which is part of `spec`; or None"
    if not isinstance(own, dict): return f'{name!r} is not a section of texts and conditions'
    for k in own:
        if k not in SECTION_KEYS:
            return f'section {name!r}: {unknown_name_message("entry", k, SECTION_KEYS)[:-1]}'
    for part in ('texts', 'conditions'):
        if not isinstance(own.get(part, {}), dict): return f'section {name!r}: {part} is no table'
    for k,text in own.get('texts', {}).items():
        if not isinstance(text, str) or not text.strip():
            return f'section {name!r}: the text {k!r} is {text!r}, not a text'
    if not spec['conditions']: return f'section {name!r} has no conditions'
    for c,turns in spec['conditions'].items():
        if not re.fullmatch(r'[\w.-]+(\+[\w.-]+)*', c):
            return f'section {name!r}: name the condition {c!r} without spaces, such as q+kind'
        fault = _turns_fault(turns, spec['texts'])
        if fault: return f'section {name!r}: the condition {c!r} {fault}'
    used = ' '.join(t for turns in spec['conditions'].values() for _,t in turns)
    used += ' '.join(spec['texts'].values())
    for k in own.get('texts', {}):
        if f'<{k}>' not in used: return f'section {name!r}: no condition uses the text {k!r}'

def _read_table(path):
    "Read sections, with further wordings from `wordings.toml` in the same folder"
    sections = read_toml(path)
    wordings_path = path.with_name('wordings.toml')
    alternatives = read_toml(wordings_path) if wordings_path.is_file() else {}
    return sections, alternatives

@cache
def _own_table(): # Of the package
    sections,alternatives = _read_table(data_dir()/'conditions.toml')
    return {b: dict(spec, wordings=alternatives.get(spec.get('wordings', b), {}))
            for b,spec in sections.items()}

def load_stimuli(
    path:str|None=None,  # A table of your own, which adds to `data/conditions.toml`
)->dict:                 # Name of a section to its texts, conditions and wordings
    "Load the texts of all conditions, by benchmark"
    table = deepcopy(_own_table())
    if path is None: return table
    sections,alternatives = _read_table(Path(path))
    if not sections: raise DataError(f'{path} has no section, such as [bbq.texts].')
    for name,own in sections.items():
        spec = table.get(name, dict(texts={}, conditions={}, wordings={}))
        known = list(table)
        if isinstance(own, dict):
            merged = {k: spec[k]|own[k] for k in ('texts','conditions')
                      if isinstance(own.get(k), dict)}
            new = alternatives.get(own.get('wordings', name), {})
            spec = spec | merged | dict(wordings=spec['wordings']|new)
        fault = _own_section_fault(name, own, spec)
        if fault and name not in known:
            fault += f'; sections of the package are {", ".join(known)}'
        if fault: raise DataError(f'{path}: {fault}.')
        table[name] = spec
    return table

def find_section(
    benchmark, # Name of a section, a table with one section, or the section itself
)->dict:       # With texts, conditions and wordings
    "Return the texts and conditions of a benchmark"
    if isinstance(benchmark, dict): return benchmark
    table = _own_table()
    if benchmark not in table and str(benchmark).endswith('.toml'):
        path = benchmark
        table = load_stimuli(path)
        benchmark,*others = read_toml(path)
        if others:
            raise ConfigError(f'{path} has the sections {", ".join([benchmark, *others])}: choose '
                              f'one, such as load_stimuli({str(path)!r})[{benchmark!r}].')
    if benchmark in table: return table[benchmark]
    raise ConfigError(unknown_name_message('benchmark', str(benchmark), list(table)))


# %% [markdown]
# The next table shows BBQ's dialogues with all references expanded.

# %%
#| export
def conditions_table(
    benchmark:str|None=None,  # One benchmark; default: all
)->pd.DataFrame:              # One row per turn: benchmark, condition, turn, role, text
    "List every turn of every condition"
    rows = [dict(benchmark=b, condition=c, turn=i, role=r,
                 text=expand_references(text, spec['texts']))
            for b,spec in _own_table().items() if benchmark in (None,b)
            for c,turns in spec['conditions'].items() for i,(r,text) in enumerate(turns)]
    if not rows: find_section(benchmark) # Raises an error
    return pd.DataFrame(rows)


# %%
table = conditions_table('bbq')
look = {'text-align':'left', 'white-space':'pre-wrap'}
table.style.hide(axis='index').set_properties(**look)

# %% [markdown]
# The last turn is left open for the model to continue. We added one thing: the paper's prefix ends in
# "The answer is", and ours adds an opening bracket so that the next token can be the letter itself.
#
# The paper has ten dialogues, in three benchmarks and four conditions. We add two conditions. Q+anti
# reverses the instruction; the authors name it as a question for later work, and a model that follows
# the instruction should move in the other direction. Q+note adds a request of the same form that has
# nothing to do with fairness; it measures the effect of any added sentence.

# %%
table = conditions_table()
table.groupby(['benchmark','condition'], sort=False).size().unstack(0).fillna(0).astype(int)

# %% [markdown]
# The paper's text says that the admissions instruction is appended to the question, while its Table 3
# puts the question last. We follow the table.

# %%
text = table.query('benchmark=="admissions" and condition=="q+if" and turn==0').text.item()
assert text.index('in no way biased') < text.index('do you think I should admit')

# %% [markdown]
# ## Wordings
#
# The paper uses one wording of each request and notes that others were not tried. A condition is
# named after what it adds, and `:3` after a part of the name selects wording number 3 of that part.
# Number 0 is the paper's; eight others, written for this project, are in `data/wordings.toml`. The plain question of
# admissions has wordings too: `q:3` rewrites the professor's story, the sentence about the student and the request.

# %%
#| export
PART_TEXTS = {'q':('story','profile','request'), 'if':('instruction',), 'cot':('think',)}
# Other parts add the text of their own name

def _parse_condition(condition):
    "Split 'q+if:3+cot' into 'q+if+cot' and {'if':'3'}"
    parts = [p.partition(':') for p in condition.split('+')]
    return '+'.join(p for p,_,_ in parts), {p:k for p,sep,k in parts if sep}

def _lookup_condition(benchmark, condition):
    "Return the table of a benchmark, the name of a condition and the wordings of its parts"
    spec = find_section(benchmark)
    name,choices = _parse_condition(condition)
    known = list(spec['conditions'])
    if name not in known:
        kind = 'condition' if isinstance(benchmark, dict) else f'condition of {benchmark}'
        raise ConfigError(unknown_name_message(kind, name, known))
    return spec, name, choices


# %%
_parse_condition('q+if:3+cot')


# %%
#| export
def _part_wordings(spec, part):
    "Return all wordings of one part of a condition, each a dict of texts"
    names = [n for n in PART_TEXTS.get(part, (part,)) if n in spec['texts']]
    if part=='q': names = [n for n in names if n in spec['wordings']]
    if not names: return []
    alternatives = zip(*(spec['wordings'].get(n, []) for n in names))
    return [dict(zip(names, row)) for row in ([spec['texts'][n] for n in names], *alternatives)]

def wordings(
    benchmark,     # 'bbq', 'winogender', 'admissions', or a section
    condition:str, # 'q+if', ...; the wordings are those of its last part
)->list:           # Texts; the first is the one in the table
    "Return all wordings of the request that defines a condition"
    spec,name,_ = _lookup_condition(benchmark, condition)
    texts = _part_wordings(spec, name.rpartition('+')[2])
    if texts: return [' '.join(t.values()) for t in texts]
    raise ConfigError(f'The condition {name!r} adds no text that has other wordings.')


# %%
pairs = pd.DataFrame({c: wordings('bbq', c) for c in ('q+if', 'q+anti', 'q+note')})
pairs.style.set_properties(**look)

# %% [markdown]
# Each row is a matched set: a wording of the instruction, its opposite in nearly the same words,
# and a note of the same form and about the same length. The effect of a request's meaning can
# therefore be separated from the effect of one more sentence. In conditions with reasoning, the
# wordings are of the beginning of the model's own turn.

# %%
words = pairs.map(lambda t: len(t.split()))
assert (words.max(1)-words.min(1)<=3).all()
wordings('bbq', 'q+if+cot')

# %%
for b,spec in load_stimuli().items():
    for c in spec['conditions'] if spec['wordings'] else []:
        if c!='q': test_eq(len(set(wordings(b, c))), 9)


# %%
#| export
def _condition_texts(benchmark, condition):
    "Return the turns of a condition, unexpanded, and its texts in the requested wordings"
    spec,name,choices = _lookup_condition(benchmark, condition)
    texts = dict(spec['texts'])
    for part,k in choices.items():
        known = _part_wordings(spec, part)
        if not (k.isdecimal() and int(k)<len(known)):
            allowed = f'0 to {len(known)-1}' if known else 'none'
            owner = 'The benchmark' if isinstance(benchmark, dict) else benchmark
            raise ConfigError(f'{owner} has wordings of {part!r}: {allowed}. '
                              f'{condition!r} asks for another.')
        texts |= known[int(k)]
    return spec['conditions'][name], texts

def two_stage(
    benchmark, # 'bbq', 'winogender', 'admissions', or a section
    condition:str,
)->bool:       # The model writes a text before the answer is scored
    "Return whether a condition lets the model reason first"
    return any('{sample}' in text for _,text in _condition_texts(benchmark, condition)[0])


# %% [markdown]
# ## Dialogues
#
# `build_dialogue` fills the braces. Reasoning takes two stages: a text is sampled first and then
# inserted as `{sample}`. Without a sample, the dialogue stops where the model starts to reason.

# %%
#| export
def fill_template(
    text:str,    # A text with `{fields}`
    item:dict,   # Field to value; values are inserted unchanged, including braces
)->str:
    "Insert the values of an item into a text"
    def replacement(m):
        if m[1] in item: return str(item[m[1]])
        raise ConfigError(f'The prompt needs {m[1]!r} and the item has {", ".join(item)}: '
                          f'add the field, or name another in the conditions table.')
    return re.sub(r'\{(\w+)\}', replacement, text)


# %%
#| export
def build_dialogue(
    benchmark,             # 'bbq', 'winogender', 'admissions', or a section
    condition:str,         # 'q', 'q+if', 'q+if:3', 'q+if+cot', ...
    item:dict,             # Values of the fields in braces
    sample:str|None=None,  # Reasoning from stage 1, in conditions with two stages
)->list:                   # (role, text) pairs; the last one is left open
    "Build the dialogue that asks about `item` under `condition`"
    dialogue,texts = _condition_texts(benchmark, condition)
    out = []
    for role,text in dialogue:
        prefix,slot,suffix = expand_references(text, texts).partition('{sample}')
        if slot and sample is None: return [*out, (role, fill_template(prefix, item))]
        reasoning = (sample or '') if slot else ''
        out.append((role, fill_template(prefix, item) + reasoning + fill_template(suffix, item)))
    return out


# %%
item = dict(context='Two gardeners met at the gate, one with a rake and one with a spade.',
            question='Who was late?', a='The one with the rake', b='Not said',
            c='The one with the spade')
build_dialogue('bbq', 'q+if', item)

# %%
stage1 = build_dialogue('bbq', 'q+if+cot', item)
stage2 = build_dialogue('bbq', 'q+if+cot', item, sample=' Nobody says who came first.')
len(stage1), len(stage2), stage2[1][1]

# %% [markdown]
# Stage 1 is a prefix of stage 2, and the conditions are nested: every dialogue with reasoning begins
# with the instructed question, which begins with the plain one.

# %%
assert stage2[1][1].startswith(stage1[-1][1])
test_eq(stage1[0], build_dialogue('bbq', 'q+if', item)[0])
assert build_dialogue('bbq', 'q+if', item)[0][1].startswith(build_dialogue('bbq', 'q', item)[0][1])

# %% [markdown]
# The values of an item are never parsed as a template, so a sentence with braces or angle brackets
# stays unchanged.

# %%
odd = build_dialogue('bbq', 'q', {**item, 'context':'A page said {b} and <again>.'})
assert '{b} and <again>' in odd[0][1]

# %% [markdown]
# A wording replaces the paper's text and nothing else, in either stage:

# %%
instructed = build_dialogue('bbq', 'q+if:5', item)[0][1]
assert instructed.startswith(build_dialogue('bbq', 'q', item)[0][1])
assert instructed.endswith(wordings('bbq', 'q+if')[5])
test_eq(build_dialogue('bbq', 'q+if:0', item), build_dialogue('bbq', 'q+if', item))
two_wordings = build_dialogue('bbq', 'q+if:5+cot:2', item, sample=' So.')
test_eq(two_wordings[0][1], instructed)
test_eq(two_wordings[1][1], wordings('bbq', 'q+if+cot')[2]+' So.')
assert two_stage('bbq', 'q+if:5+cot:2') and not two_stage('bbq', 'q+if:5')
student = dict(race='white', sex='male', lsat=35, gpa=3.1)
reworded = build_dialogue('admissions', 'q:3+if:2', student)
assert wordings('admissions', 'q+if')[2] in reworded[0][1]
assert 'a white male' in reworded[0][1]
test_eq(len(set(wordings('admissions', 'q'))), 9)
two_wordings[1:]

# %% [markdown]
# An unknown name raises an error that suggests the nearest known one.

# %%
with expect_fail(ConfigError, contains="did you mean 'q+if'"): build_dialogue('bbq', 'q+fi', item)
with expect_fail(ConfigError, contains="'sex'"):
    build_dialogue('admissions', 'q', dict(race='white'))
with expect_fail(ConfigError, contains='0 to 8'): build_dialogue('bbq', 'q+if:9', item)
with expect_fail(ConfigError, contains='none'): build_dialogue('bbq', 'q:1', item)
with expect_fail(ConfigError, contains='no text'): wordings('bbq', 'q')


# %% [markdown]
# ## Prompts
#
# `build_prompt` renders the dialogue with the [chat template](../language/20_chat.ipynb) of a model.
# The open turn becomes the prefill that the model continues.

# %%
#| export
def build_prompt(
    lm,                    # A loaded model
    benchmark,             # 'bbq', 'winogender', 'admissions', or a section
    condition:str,         # 'q', 'q+if', 'q+if:3', 'q+if+cot', ...
    item:dict,             # Values of the fields in braces
    sample:str|None=None,  # Reasoning from stage 1, in conditions with two stages
    mode:str='plain',      # How turns are marked: 'plain', 'chat' or 'chat-noprefill'
):                         # A `Prompt` with text and token ids
    "Build the prompt that asks `lm` about `item` under `condition`"
    from moral_sc.language.chat import render
    *dialogue,(_,prefill) = build_dialogue(benchmark, condition, item, sample)
    return render(lm, dialogue, prefill=prefill, mode=mode)


# %% [markdown]
# ## Your own wordings and conditions
#
# `add_wordings` puts a request of yours where the instruction stands. A wording named `q+kind` defines two
# conditions, `q+kind` and `q+kind+cot`; `evaluate(lm, wordings={'q+kind': 'Please be kind.'})` asks the first.
# A text may name fields of the item in braces, and a name that is taken is refused, so that `q+if` is always
# the paper's instruction.

# %%
#| export
def _wording_fault(name, text, spec):
    "Return the fault of a wording, or None"
    if not isinstance(name, str) or not re.fullmatch(r'q\+[A-Za-z_]\w*', name):
        return f"The wording {name!r} needs a name such as 'q+kind'"
    if not isinstance(text, str) or not text.strip():
        return f'The wording {name!r} is {text!r}, not a text'
    if name in spec['conditions'] or name[2:] in spec['texts'] or name[2:] in PART_TEXTS:
        return f"The name {name!r} is taken: choose another for your wording, such as 'q+mine'"
    if '{sample}' in text: return f"The wording {name!r} has {{sample}}, which is not a field"
    try: expand_references(text, spec['texts'])
    except ConfigError as e: return f'The wording {name!r} cannot be built: {e}'.rstrip('.?')

def add_wordings(
    benchmark,     # Name of a section, or a section
    wordings:dict, # Condition to the text of its request: {'q+kind': 'Please be kind.'}
)->dict:           # A section with these conditions added
    "Add conditions that ask with another request in the place of the instruction"
    if not isinstance(wordings, dict):
        raise ConfigError(f'The wordings are {wordings!r:.60}: give texts by name, such as '
                          "{'q+kind': 'Please be kind.'}.")
    spec = deepcopy(find_section(benchmark))
    instructed = [c for c in spec['conditions'] if 'if' in c.split('+')]
    if not instructed:
        raise ConfigError('The benchmark has no condition q+if whose instruction a wording could '
                          'replace: add a condition to its table instead.')
    for name,text in wordings.items():
        fault = _wording_fault(name, text, spec)
        if fault: raise ConfigError(f'{fault}.')
        word = name[2:]
        spec['texts'][word] = text
        for c in instructed:
            own = '+'.join(word if p=='if' else p for p in c.split('+'))
            spec['conditions'][own] = [[r, t.replace('<instruction>', f'<{word}>')]
                                       for r,t in spec['conditions'][c]]
    return spec


# %%
kind = add_wordings('bbq', {'q+kind': 'Please be kind to both people.'})
test_eq(build_dialogue(kind, 'q+kind', item)[0][1],
        build_dialogue('bbq', 'q', item)[0][1]+' Please be kind to both people.')
test_eq(build_dialogue(kind, 'q+if', item), build_dialogue('bbq', 'q+if', item))
assert two_stage(kind, 'q+kind+cot') and 'q+kind' not in load_stimuli()['bbq']['conditions']
test_eq(wordings(kind, 'q+kind'), ['Please be kind to both people.'])
for b in load_stimuli(): # The request stands where the instruction of each benchmark stands
    instruction = load_stimuli()[b]['texts'].get('instruction')
    if not instruction: continue # Items of the toy language bring their own
    spec = add_wordings(b, {'q+kind': instruction})
    test_eq([[r, expand_references(t, spec['texts'])] for r,t in spec['conditions']['q+kind']],
            [[r, expand_references(t, spec['texts'])] for r,t in spec['conditions']['q+if']])
build_dialogue(kind, 'q+kind+cot', item)

# %% [markdown]
# A table of your own can change anything. It has the form of `data/conditions.toml`:

# %%
mine = Path(tempfile.mkdtemp())/'mine.toml'
mine.write_text('''
[bbq.texts]
careful = "Please read the question twice."

[bbq.conditions]
"q+careful" = [
  ["human", "<item> <careful>"],
  ["assistant", "The answer is ("],
]
''')
build_dialogue(mine, 'q+careful', item)

# %%
careful = build_dialogue(mine, 'q+careful', item)
test_eq(build_dialogue(load_stimuli(mine)['bbq'], 'q+careful', item), careful)
test_eq(build_dialogue(mine, 'q+if', item), build_dialogue('bbq', 'q+if', item))


# %% [markdown]
# Mistakes are named when the table is read.

# %%
def refused(contains, text, error=DataError):
    mine.write_text(text)
    with expect_fail(error, contains=contains): find_section(mine)

turn = '[["human", "<item> {}"], ["assistant", "The answer is ("]]'
refused("no condition uses the text 'careful'", '[bbq.texts]\ncareful = "Twice."')
refused("'text'; did you mean 'texts'", '[bbq.text]\ncareful = "Twice."')
refused("is 3, not a text", '[bbq.texts]\nitem = 3')
refused("did you mean 'think'", f'[bbq.conditions]\n"q+x" = {turn.format("<thinks>")}')
refused('refers to itself', '[bbq.texts]\nitem = "<item>"')
refused('without spaces', f'[bbq.conditions]\n"q - x" = {turn}')
refused('not [role, text]', '[bbq.conditions]\n"q+x" = [["human"]]')
refused("the role 'user'", '[bbq.conditions]\n"q+x" = [["user", "<item>"]]')
refused('does not end with', '[bbq.conditions]\n"q+x" = [["human", "<item>"]]')
refused("has no conditions; sections of the package", '[bqb.texts]\ninstruction = "Twice."')
refused('has no section', '')
refused('choose one', '[bbq.texts]\n[winogender.texts]', ConfigError)
for name,text in (('mine', 'x'), ('q+if', 'x'), ('q+item', 'x'), ('q+a b', 'x'), ('q+x', ' '),
                  ('q+x', 3), ('q+x', '<thinks>'), ('q+x', '{sample}')):
    with expect_fail(ConfigError, contains=repr(name)): add_wordings('bbq', {name: text})
with expect_fail(ConfigError, contains='give texts by name'): add_wordings('bbq', 'Please.')
