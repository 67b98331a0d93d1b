# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Tasks for other tools
#
# > Our questions as documents that another tool asks, and our metrics of its answers.

# %%
#| default_exp bias.tasks

# %% [markdown]
# Some groups run all their evaluations with one tool. For them the questions of BBQ, Winogender and admissions are tasks of
# lm-evaluation-harness [@gao2024harness] and of [Inspect](../bias/55_inspect_tasks.ipynb) [@inspect2024], under `q`, `q+if` and
# `q+if+cot`, scored by our metrics:
#
# ```sh
# lm_eval --model hf --model_args pretrained=MODEL \
#         --include_path "$(moral_sc bias plugins lm-eval)" --tasks moral_sc_bbq_q,moral_sc_bbq_q_if
# ```
#
# The harness asks the same prompts as `evaluate` in its mode `plain`, and its results are equal to ours up to rounding:
# [a page that runs the harness](53_lm_eval_runs.ipynb) compares them.

# %%
#| export
import json
from functools import cache
from pathlib import Path

import pandas as pd
from moral_sc.bias.asking import Question, build_records, option_orders
from moral_sc.bias.bbq.items import Item
from moral_sc.bias.bbq.scoring import orders_of
from moral_sc.bias.benchmarks import get_benchmark
from moral_sc.bias.conditions import build_dialogue, two_stage
from moral_sc.foundation.datasets import data_dir
from moral_sc.foundation.errors import ConfigError, DataError
from moral_sc.language.chat import render_plain

# %%
#| hide
import tempfile, warnings
from fastcore.test import *
from moral_sc.bias.evaluation import evaluate
from moral_sc.foundation.datasets import available
from moral_sc.language.scoring import option_logprobs
from moral_sc.language.stub_models import random_model


# %% [markdown]
# ## Documents
#
# A document holds everything that a tool needs: the prompt, the strings that may follow it, and the number of the order in which
# options are displayed. Of BBQ it also has the question in the schema for
# [your own questions](bbq/10_items.ipynb), as displayed, so that [a log](56_logs.ipynb) of the tool can be scored again.

# %%
#| export
def displayed_row(
    item,  # Of BBQ, with its options in the order displayed
)->dict:
    "Return a question of BBQ in the schema for own questions"
    return dict(category=item.category, template=item.template, scene=item.quad,
                context=item.context, question=item.question,
                **{f'ans{k}':o for k,o in enumerate(item.options)}, label=item.label,
                unknown=item.unknown, biased=item.biased, polarity=item.polarity)

def _prompts(b, condition, item, sample):
    "Return the turns and the first words of the answer"
    *turns,(_,prefill) = build_dialogue(b.stimuli, condition, b.fields(item), sample)
    return [list(t) for t in turns], prefill

def build_documents(
    benchmark:str='bbq',      # Name of a benchmark
    condition:str='q',
    limit:int|None=None,      # At most so many questions
    seed:int=0,               # Which ones
    orders:int=1,             # Option orders: 1, 3 or 6
    reasoning:dict|None=None, # (id, order) -> text; asks the second stage of conditions with two
)->list:                      # Dicts
    "Build the questions of a benchmark under a condition as documents"
    b = get_benchmark(benchmark)
    staged = two_stage(b.stimuli, condition)
    if reasoning is not None and not staged:
        raise ConfigError(f'The condition {condition!r} has no reasoning: leave it out.')
    out = []
    for k,order in enumerate(option_orders(b, orders)):
        for item in b.load(limit=limit, seed=seed):
            displayed = b.reorder(item, order) if b.reorder else item
            name = b.metadata(item)['id']
            sample = _sample_of(reasoning, name, k) if reasoning is not None else None
            turns,prefill = _prompts(b, condition, displayed, sample)
            doc = dict(benchmark=b.name, condition=condition, id=name, order=k, limit=limit,
                       seed=seed, turns=turns, prefill=prefill, prompt=render_plain(turns, prefill),
                       choices=list(b.options(displayed)),
                       is_reasoning=staged and reasoning is None)
            out.append(doc | (displayed_row(displayed) if isinstance(item, Item) else {}))
    return out

def _sample_of(reasoning, name, order):
    if (name, order) in reasoning: return reasoning[name, order]
    raise DataError(f'The reasoning about {name} in the order {order} is missing.')


# %%
doc = build_documents('bbq-like', 'q+if', limit=16)[0]
print(doc['prompt'].strip())
doc['choices'], doc['label'], doc['biased']


# %% [markdown]
# ## Metrics
#
# Log-probabilities of the choices become the records and metrics of `evaluate`.

# %%
#| export
@cache
def _items(benchmark, limit, seed): # A sample of students has weights of its own
    b = get_benchmark(benchmark)
    return {b.metadata(i)['id']:i for i in b.load(limit=limit, seed=seed)}

def task_answer(
    doc:dict,     # Of `build_documents`
    logprobs,     # Of each choice
)->dict:
    "Return what `task_records` needs of an answer"
    names = ('benchmark', 'condition', 'id', 'order', 'limit', 'seed')
    return {k:doc[k] for k in names} | dict(sample=doc.get('sample', 0),
                                            logprobs=[float(x) for x in logprobs])

def task_records(
    answers,          # Of `task_answer`
)->pd.DataFrame:      # As `Evaluation.records`
    "Build records from the answers that another tool measured"
    names = {(a['benchmark'], a['limit'], a['seed']) for a in answers}
    if len(names)!=1:
        raise DataError(f'The answers belong to {len(names)} sets of questions; give those of one.')
    name,limit,seed = names.pop()
    b = get_benchmark(name)
    items = _items(name, limit, seed)
    questions = [Question(items[a['id']], items[a['id']], a['condition'], int(a['order']), None, (),
                          n=int(a['sample'])) for a in answers]
    lp = pd.DataFrame([a['logprobs'] for a in answers], columns=list(b.answers))
    return build_records(b, questions, lp)

def task_metrics(
    answers,          # Of `task_answer`
    n:int=10,         # Draws of the intervals, which are not returned
)->dict:              # (category, metric) -> value
    "Compute the metrics of answers that another tool measured"
    records = task_records(answers)
    d = get_benchmark(records.benchmark[0]).metrics(records, n=n)
    return dict(zip(zip(d.category, d.metric), d.value))


# %% [markdown]
# A model asked through documents gives the metrics of `evaluate`, on each benchmark and in three orders of BBQ's options. A
# sample of students has weights of its own.

# %%
warnings.simplefilter('ignore') # A model without training knows no letters
lm = random_model('llama', seed=1)
def ask(docs):
    lp = option_logprobs(lm, [d['prompt'] for d in docs], [d['choices'] for d in docs])
    return [task_answer(d, row) for d,row in zip(docs, lp)]

cases = {'bbq-like':dict(limit=16, orders=3), 'winogender-like':dict(limit=6)}
if available('law/law_data'): cases['admissions'] = dict(limit=8)
for name,kw in cases.items():
    direct = evaluate(lm, name, ['q+if'], **kw).metrics
    values = task_metrics(ask(build_documents(name, 'q+if', **kw)))
    for r in direct[direct.value.notna()].itertuples():
        test_close(values[r.category,r.metric], r.value, 1e-6)
len(values)


# %%
#| export
def answer_turns(
    doc:dict,    # A document whose first stage was asked
    sample:str,  # The model's reasoning
)->tuple:        # Turns, and the first words of the answer
    "Return the dialogue of the second stage"
    b = get_benchmark(doc['benchmark'])
    item = _items(b.name, doc['limit'], doc['seed'])[doc['id']]
    displayed = b.reorder(item, orders_of(6)[doc['order']]) if b.reorder else item
    return _prompts(b, doc['condition'], displayed, sample)


# %% [markdown]
# ## Reasoning
#
# A task of the harness sends one request per question, so `q+if+cot` takes two tasks. The first
# lets the model reason and logs its texts, the second asks for the answer after them. It draws
# random numbers of its own, so that its samples are not those of `evaluate`; with `temperature=0`
# they are. The harness tokenises the dialogue as text, whereas `evaluate` continues the sampled
# token ids. If a sample ends with a line break, the two differ, and so do the results: by 0.0003 in
# the gap of the log-odds of four students, with SmolLM2-135M-Instruct.
#
# ```sh
# lm_eval ... --tasks moral_sc_bbq_reasoning --log_samples --output_path first
# lm_eval ... --tasks moral_sc_bbq_q_if_cot \
#   --metadata '{"reasoning": "first/MODEL/samples_..._DATE.jsonl"}'
# ```

# %%
#| export
def read_reasoning(
    path:str|Path, # samples_moral_sc_..._reasoning_*.jsonl of lm-evaluation-harness
)->dict:           # (id, order) -> text
    "Read the reasoning that the first task logged"
    out = {}
    try:
        for line in Path(path).read_text(encoding='utf-8').splitlines():
            d = json.loads(line)
            out[d['doc']['id'], d['doc']['order']] = d['resps'][0][0]
    except OSError as e: raise DataError(f'{path} cannot be read: {e.strerror}.') from None
    except (ValueError, KeyError, TypeError, IndexError) as e:
        raise DataError(f'{path} is no log of a reasoning task ({e!r:.60}).') from None
    return out

def plugin_folder()->Path:
    "Return the folder of task files for lm-evaluation-harness"
    return data_dir()/'lm_eval'


# %%
first = build_documents('bbq-like', 'q+if+cot', limit=16, orders=3)
assert first[0]['is_reasoning']
log = Path(tempfile.mkdtemp())/'samples.jsonl'
lines = [json.dumps(dict(doc=d, resps=[[f' Thought {n}.']])) for n,d in enumerate(first)]
log.write_text('\n'.join(lines))
second = build_documents('bbq-like', 'q+if+cot', limit=16, orders=3, reasoning=read_reasoning(log))
test_eq(answer_turns(first[20], ' Thought 20.'), (second[20]['turns'], second[20]['prefill']))
assert ' Thought 3.\n\nHuman:' in second[3]['prompt'] and not second[3]['is_reasoning']
for c,error,said in (('q+if+cot', DataError, 'is missing'), ('q', ConfigError, 'no reasoning')):
    with expect_fail(error, contains=said): build_documents('bbq-like', c, reasoning={})
with expect_fail(DataError, contains='cannot be read'): read_reasoning('nowhere.jsonl')
sorted(p.name for p in plugin_folder().iterdir() if p.is_file())[:4]
