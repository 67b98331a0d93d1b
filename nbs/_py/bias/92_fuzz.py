# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %%

# %% [markdown]
# # Fuzz tests
#
# > Random mutations of every file that the package reads from a user or another tool.

# %% [markdown]
# A file from outside may be cut, edited by hand or written by another version of a tool. For each reader, a valid
# file is changed at random: bytes are replaced, deleted, repeated, and values of JSON exchanged for others. The
# result must be data of the same number of rows as the file, or one of our own errors; any other exception fails
# the test. [Hypothesis](https://hypothesis.readthedocs.io) draws the mutations and finds the smallest that fails.

# %%
#| hide
#| needs: hypothesis
import csv, io, json, random, shutil, tempfile, warnings, zipfile
from pathlib import Path

from fastcore.test import *
from hypothesis import HealthCheck, given, settings, strategies as st
from moral_sc.bias import bbq, evaluate, Evaluation
from moral_sc.bias.admissions import read_students
from moral_sc.bias.conditions import load_stimuli
from moral_sc.bias.discrim_eval import expand_decisions, load_decisions, parse_decisions
from moral_sc.bias.logs import read_log
from moral_sc.bias.winogender import read_sentences
from moral_sc.foundation.datasets import data_dir, read_jsonl
from moral_sc.foundation.errors import MoralScError
from moral_sc.foundation.tables import read_rows
from moral_sc.language.stub_models import letter_prior_model

tmp = Path(tempfile.mkdtemp())
rows = read_jsonl(data_dir()/'benchmarks'/'bbq_like.jsonl')[:8]

# %% [markdown]
# ## Mutations

# %%
ODD = [None, True, -1, 3, 2.5, 1e400, float('nan'), 10**30, '', ' ', '0', 'NA', 'nan', '60%',
       '.6', '\u2019', '\u2028', 'a\tb', '"', [], {}, [[]], [1], ['unknown'], {'ans0':None},
       'x'*300]

def mutate_bytes(data, r):
    "Replace, delete, repeat or insert some bytes"
    for _ in range(r.randint(1, 3)):
        i = r.randrange(len(data)+1)
        j = min(len(data), i+r.choice([0, 1, 1, 2, 20]))
        new = r.choice([b'', bytes([r.randrange(256)]), data[i:j]*2, b'"', b'\t', b'\n', b',',
                        b'\0', b'\r', '\u2019'.encode(), b'\xff', b'{', b']'])
        data = data[:i]+new+data[j:]
    return data[:r.randrange(len(data)+1)] if r.random()<.1 else data

def mutate_json(x, r):
    "Exchange or delete a value somewhere in a JSON document"
    if isinstance(x, (dict,list)) and x and r.random()<.8:
        keys = list(x) if isinstance(x, dict) else list(range(len(x)))
        k = r.choice(keys)
        new = dict(x) if isinstance(x, dict) else list(x)
        if r.random()<.15: del new[k]
        else: new[k] = mutate_json(x[k], r)
        return new
    return r.choice(ODD)

def lines_of(rows): return '\n'.join(json.dumps(r, ensure_ascii=False) for r in rows).encode()

def check_reader(read, make, count, examples=80):
    "Read many mutations; return how many gave data and how many an error of ours"
    seen = dict(data=0, refused=0)
    @settings(max_examples=examples, deadline=None, derandomize=True, database=None,
              suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 10**9))
    def run(seed):
        content = make(random.Random(seed)) # noqa: S311
        try: result = read(content)
        except MoralScError as e:
            assert '\n' not in str(e).strip() and str(e).strip(), repr(str(e))
            seen['refused'] += 1
        else:
            test_eq(len(result), count(content))
            seen['data'] += 1
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        run()
    return seen

def from_file(name, read):
    def f(content):
        (tmp/name).write_bytes(content)
        return read(tmp/name)
    return f

def of_lines(rows): # Bytes or values of JSON lines
    def make(r):
        if r.random()<.5: return mutate_bytes(lines_of(rows), r)
        k = r.randrange(len(rows))
        return lines_of([*rows[:k], mutate_json(rows[k], r), *rows[k+1:]])
    return make

def count_lines(content): return sum(bool(l.strip()) for l in content.split(b'\n'))


# %% [markdown]
# ## Questions

# %%
own = [dict(context='Kim and Lee met.', question='Who won?', ans0='Kim', ans1='Lee',
            ans2='Not known', label=k%3, biased=k%2, id=f'n{k}') for k in range(6)]
items = lambda p: bbq.read(p, scenes=False)
dict(bbq=check_reader(from_file('a.jsonl', items), of_lines(rows), count_lines),
     own=check_reader(from_file('b.jsonl', items), of_lines(own), count_lines))


# %%
def separated(rows, delimiter):
    out = io.StringIO()
    w = csv.DictWriter(out, list(rows[0]), delimiter=delimiter, lineterminator='\n')
    w.writeheader()
    w.writerows(rows)
    return out.getvalue().encode()

def of_table(rows, delimiter): return lambda r: mutate_bytes(separated(rows, delimiter), r)

def count_csv(content): # By the standard library
    text = io.StringIO(content.decode('utf-8-sig'), newline='')
    return sum(bool(x) for x in csv.reader(text))-1

def count_tsv(content):
    text = io.StringIO(content.decode('utf-8-sig'), newline='')
    return sum(bool(x) for x in csv.reader(text, delimiter='\t', quoting=csv.QUOTE_NONE))-1

sentences = [dict(occupation=o, participant='guest', female=str(10*k+5),
                  sentence='The $OCCUPATION told the $PARTICIPANT that $NOM_PRONOUN was early.')
             for k,o in enumerate(['baker', 'pilot', 'guide', 'tailor'])]
students = [dict(race='White', sex=1+k%2, LSAT=30+k, UGPA=3.1) for k in range(6)]
dict(own=check_reader(from_file('c.csv', items), of_table(own, ','), count_csv),
     winogender=check_reader(from_file('d.tsv', read_sentences), of_table(sentences, '\t'),
                             count_tsv),
     admissions=check_reader(from_file('e.csv', read_students), of_table(students, ','), count_csv),
     rows=check_reader(from_file('f.csv', read_rows), of_table(own, ','), count_csv))

# %%
decisions = expand_decisions([dict(text='May {person} have the plot?')])[:6]
def read_decisions(path): return parse_decisions(read_rows(path), location=f'{path}: row')
dict(decisions=check_reader(from_file('g.jsonl', read_decisions), of_lines(decisions), count_lines))

# %% [markdown]
# ## Conditions

# %%
table = b"""[bbq.texts]
careful = "Please read twice."
[bbq.conditions]
"q+careful" = [["human", "<item> <careful>"], ["assistant", "The answer is ("]]
"""
def read_table(content):
    (tmp/'h.toml').write_bytes(content)
    load_stimuli(tmp/'h.toml')
    return ()
check_reader(read_table, lambda r: mutate_bytes(table, r), lambda c: 0)


# %% [markdown]
# ## Logs of other tools

# %%
def harness(row):
    options = [row[f'ans{k}'] for k in range(3)]
    arguments = {f'gen_args_{k}':dict(arg_0='', arg_1=o) for k,o in enumerate(options)}
    return dict(doc=row, arguments=arguments,
                filtered_resps=[[str(-1.-k), 'False'] for k in range(3)], filter='none',
                amb_bias_score=[1., 0., 1., 'True'])

def inspected(row):
    keep = ('category', 'question_index', 'question_polarity', 'context_condition',
            'answer_info', 'additional_metadata')
    return dict(id=f"{row['category']}_{row['example_id']:05d}", epoch=1,
                target='ABC'[row['label']],
                input=f"Context: {row['context']}\n\nQuestion: {row['question']}",
                choices=[row[f'ans{i}'] for i in range(3)],
                metadata=dict(source_id=row['example_id'], **{k:row[k] for k in keep}),
                scores=dict(choice=dict(value='I', answer='A')))

log = dict(results=dict(scores=[dict(name='choice', metrics=dict(accuracy=dict(value=.5)))]),
           samples=[inspected(r) for r in rows])
def read_answers(path): return read_log(path).items
def of_json(x):
    text = json.dumps(x).encode()
    changed = lambda r: json.dumps(mutate_json(x, r)).encode()
    return lambda r: mutate_bytes(text, r) if r.random()<.5 else changed(r)
def count_samples(content): return len(json.loads(content)['samples'])

dict(harness=check_reader(from_file('samples_bbq_1.jsonl', read_answers),
                          of_lines([harness(r) for r in rows]), count_lines),
     inspect=check_reader(from_file('i.json', read_answers), of_json(log), count_samples))


# %%
def archive(r):
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as z:
        for s in log['samples']: z.writestr(f'samples/{s["id"]}.json', json.dumps(s))
    return mutate_bytes(out.getvalue(), r)
def count_archive(content): return len(rows)
dict(archive=check_reader(from_file('j.eval', read_answers), archive, count_archive, 50))

# %% [markdown]
# ## Saved evaluations
#
# A change of a table or of the questions is always noticed, because `evaluation.json` has a hash of each file.

# %%
lm = letter_prior_model(dict(a=.1, b=.8, c=.1))
folder = evaluate(lm, items=own, conditions='q').save(tmp/'saved')
originals = {p.name:p.read_bytes() for p in folder.iterdir()}

def of_folder(r):
    name = r.choice(sorted(originals))
    old = originals[name]
    if name=='evaluation.json' and r.random()<.5:
        return name, json.dumps(mutate_json(json.loads(old), r)).encode()
    return name, mutate_bytes(old, r)

def load(content):
    name,data = content
    for n,old in originals.items(): (folder/n).write_bytes(old)
    (folder/name).write_bytes(data)
    records = Evaluation.load(folder).records
    if name!='evaluation.json': test_eq(data, originals[name])
    return records

check_reader(load, of_folder, lambda c: len(own), 60)

# %%
#| hide
shutil.rmtree(tmp)
