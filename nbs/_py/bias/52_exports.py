# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Export to formats of other tools
#
# > Results of an evaluation as results and samples of lm-evaluation-harness, or as a log of Inspect.

# %%
#| default_exp bias.exports

# %% [markdown]
# `Evaluation.save` writes tables for this package. Leaderboards and viewers read the formats of
# lm-evaluation-harness [@gao2024harness] and of Inspect [@inspect2024]; `export` writes these:
#
# ```python
# evaluate('smollm2-135m-instruct', out='runs/first').export('lm-eval', 'results')
# ```
#
# Each benchmark and condition is a task of its own, named `moral_sc_bbq_q_if`.

# %%
#| export
import json, re
from pathlib import Path

import numpy as np
from moral_sc.bias.bbq.items import Item
from moral_sc.bias.bbq.scoring import orders_of
from moral_sc.bias.benchmarks import get_benchmark
from moral_sc.bias.tasks import displayed_row
from moral_sc.foundation.errors import ConfigError, DataError, unknown_name_message
from moral_sc.foundation.files import write_file

# %%
#| hide
import tempfile
import pandas as pd
from fastcore.test import *
from moral_sc.bias.evaluation import Evaluation, evaluate
from moral_sc.bias.logs import compare_scores, read_log
from moral_sc.bias.winogender import load_winogender, winogender_stub_model
from moral_sc.language.stub_models import letter_prior_model


# %% [markdown]
# ## Samples
#
# One sample per question, order of the options and reasoning sample. A question of BBQ is written as displayed, in the schema for
# [your own questions](bbq/10_items.ipynb).

# %%
#| export
def task_name(
    benchmark:str,
    condition:str,
)->str:
    "Name the task of a benchmark under a condition"
    return 'moral_sc_'+re.sub(r'\W+', '_', f'{benchmark} {condition}')

def _without_nan(d): return {k:None if v!=v else v for k,v in d.items()}

def _samples(e, name, condition):
    "Yield (id, document, choices, log-probabilities, displayed item) of each record"
    b = e.benchmarks.get(name) or get_benchmark(name)
    items = {b.metadata(i)['id']:i for i in e.items[name]}
    d = e.records_of(name)
    for r in d[d.condition==condition].to_dict('records'):
        item = items[r['id']]
        if b.reorder: item = b.reorder(item, orders_of(6)[r['order']])
        doc = displayed_row(item) if isinstance(item, Item) else _without_nan(b.metadata(item))
        doc |= dict(id=r['id'], order=r['order'], sample=r['sample'], benchmark=name,
                    condition=condition)
        yield doc, list(b.options(item)), [r.get(f'lp_{a}', np.nan) for a in b.answers], item

def _metrics_of(e, name, condition):
    d = e.metrics
    return d[(d.benchmark==name) & (d.condition==condition)]

def _tasks(e):
    "Return task name -> benchmark and condition"
    out = {}
    for name in dict.fromkeys(e.records.benchmark):
        for c in dict.fromkeys(e.records_of(name).condition):
            task = task_name(name, c)
            if task in out:
                raise DataError(f'{out[task]} and {(name, c)} are both called {task} in the '
                                'export: rename one of them.')
            out[task] = name, c
    return out


# %% [markdown]
# ## lm-evaluation-harness
#
# `results.json` has the metrics with the ends of their intervals, and one file of samples for each task has the log-probabilities.
# BBQ's four scores get the names that the harness has for them.

# %%
#| export
HARNESS_NAMES = dict(accuracy_ambig='accuracy_amb', accuracy_disambig='accuracy_disamb',
                     bias_ambig='amb_bias_score', bias_disambig='disamb_bias_score')
_ENDS = dict(value='', low='_low', high='_high')

def _finite(x): return float(x) if np.isfinite(x) else None

def _harness_keys(d):
    "Return the harness's name of each category and metric"
    tail = lambda c: '' if c in ('micro', 'all') else f'_{c}'
    names = {f'{HARNESS_NAMES.get(r.metric, r.metric)}{tail(r.category)}':(r.category, r.metric)
             for r in d.itertuples()}
    every = {f'{k}{end}' for k in names for end in _ENDS.values()}
    if len(every)<len(_ENDS)*len(d):
        raise DataError('Two values have the same name in the format of lm-eval: rename the '
                        'category "low", "high", "micro" or "all", or export to inspect.')
    return names

def _harness_results(keys, d):
    rows = zip(keys, d.itertuples())
    return {f'{key}{end},none':_finite(getattr(r, k)) for key,r in rows for k,end in _ENDS.items()}

def _harness_sample(n, doc, choices, lp):
    pairs = [[str(float(x)), 'False'] for x in lp]
    if np.isnan(lp).any(): pairs = [''] # A refused answer, as a text that names no option
    arguments = {f'gen_args_{k}':dict(arg_0='', arg_1=c) for k,c in enumerate(choices)}
    return dict(doc_id=n, doc=doc, target=doc.get('label'), arguments=arguments,
                resps=[[p] for p in pairs], filtered_resps=pairs, filter='none')

def _write_harness(e, folder):
    tasks = _tasks(e)
    keys = {task:_harness_keys(_metrics_of(e, *t)) for task,t in tasks.items()}
    counts = {}
    for task,t in tasks.items():
        lines = [json.dumps(_harness_sample(n, doc, choices, lp), allow_nan=False)
                 for n,(doc,choices,lp,_) in enumerate(_samples(e, *t))]
        write_file(folder/f'samples_{task}_moral-sc.jsonl', '\n'.join(lines)+'\n')
        counts[task] = dict(original=len(lines), effective=len(lines))
    results = dict(results={task:dict(alias=task) | _harness_results(keys[task], _metrics_of(e, *t))
                            for task,t in tasks.items()},
                   configs={task:dict(task=task, metadata=dict(
                       benchmark=t[0], condition=t[1], metrics=keys[task]))
                            for task,t in tasks.items()},
                   **{'n-shot':dict.fromkeys(tasks, 0), 'n-samples':counts},
                   versions=dict.fromkeys(tasks, 1.), model_name=e.model,
                   config=dict(model='moral_sc', model_args=e.model, **e.settings))
    return write_file(folder/'results_moral-sc.json', json.dumps(results, indent=1, default=str))



# %% [markdown]
# ## Inspect
#
# Each task is one log. The answer of a sample is the most probable choice, and the probabilities are in its metadata.

# %%
#| export
_UNKNOWN_TIME = '1970-01-01T00:00:00+00:00' # Of an evaluation that was not saved

def _inspect_sample(doc, choices, lp, item):
    letter = '' if np.isnan(lp).any() else 'ABCD'[int(np.argmax(lp))] # Refused: no number
    letters = 'ABCD'
    target = letters[doc['label']] if 'label' in doc else ''
    right = None if not target else 'C' if letter==target else 'I'
    output = dict(model='moral_sc', completion=letter, choices=[dict(
        message=dict(role='assistant', content=letter, source='generate'), stop_reason='stop')])
    text = doc['id']
    if 'context' in doc: text = f"Context: {doc['context']}\n\nQuestion: {doc['question']}"
    return dict(id=f"{doc['id']}, order {doc['order']}", epoch=1+int(doc['sample']), input=text,
        choices=choices if 'context' not in doc else list(item.options), target=target, messages=[],
        output=output, metadata=doc | dict(logprobs=[_finite(x) for x in lp]), store={}, events=[],
        scores=dict(moral_sc=dict(value=right or letter, answer=letter)), attachments={})

def _inspect_metric(r):
    return dict(name=f'{r.metric}/{r.category}', value=float(r.value), params={},
                metadata=dict(low=_finite(r.low), high=_finite(r.high)))

def _write_inspect(e, folder):
    for task,t in _tasks(e).items():
        samples = [_inspect_sample(*s) for s in _samples(e, *t)]
        d = _metrics_of(e, *t)
        metrics = {f'{r.metric}/{r.category}':_inspect_metric(r) for r in d.itertuples()
                   if np.isfinite(r.value)}
        started = (e.provenance or {}).get('start', _UNKNOWN_TIME)
        log = dict(version=2, status='success',
            eval=dict(created=started, task=task, task_version=1, task_id=task, run_id=task,
                      dataset=dict(name=t[0], samples=len(samples)), model=f'moral_sc/{e.model}',
                      config={}, metadata=dict(benchmark=t[0], condition=t[1], **e.settings)),
            plan={}, stats=dict(started_at=started, completed_at=started, model_usage={}),
            results=dict(total_samples=len(samples), completed_samples=len(samples), scores=[dict(
                name='moral_sc', scorer='moral_sc', params={}, metrics=metrics)]), samples=samples)
        path = write_file(folder/f'{task}.json', json.dumps(log, default=str))
    return path


# %% [markdown]
# `export_evaluation` writes either.

# %%
#| export
_PATTERNS = ('moral_sc_*.json', 'results_moral-sc.json', 'samples_moral_sc_*_moral-sc.jsonl')
FORMATS = {'lm-eval':_write_harness, 'inspect':_write_inspect}

def export_evaluation(
    e,              # An `Evaluation`
    tool:str,       # 'lm-eval' or 'inspect'
    folder:str|Path,
)->Path:            # The folder
    "Write an evaluation in the format of another tool"
    if tool not in FORMATS: raise ConfigError(unknown_name_message('format', tool, list(FORMATS)))
    folder = Path(folder)
    tasks = _tasks(e)
    own = [f'{t}.json' for t in tasks] if tool=='inspect' else [
        'results_moral-sc.json', *(f'samples_{t}_moral-sc.jsonl' for t in tasks)]
    others = {p.name for k in _PATTERNS for p in folder.glob(k)}-{*own}
    if others:
        raise ConfigError(f'{folder} holds {min(others)} of another export: name another folder.')
    try: folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ConfigError(f'{folder} is no folder to write to ({e.strerror}): name another.'
                          ) from None
    FORMATS[tool](e, folder)
    return folder


# %% [markdown]
# The files hold the metrics of the evaluation, to the last digit.

# %%
#| hide
def read_metrics(folder): # By condition, category and metric
    rows = []
    for p in folder.glob('moral_sc_*.json'):
        log = json.loads(p.read_text())
        condition = log['eval']['metadata']['condition']
        for m in log['results']['scores'][0]['metrics'].values():
            metric,_,category = m['name'].partition('/')
            rows.append([condition, category, metric, m['value'], *m['metadata'].values()])
    for p in folder.glob('results_moral-sc.json'):
        d = json.loads(p.read_text())
        for task,values in d['results'].items():
            t = d['configs'][task]['metadata']
            rows += [[t['condition'], category, metric,
                      *(values[f'{key}{end},none'] for end in ('', '_low', '_high'))]
                     for key,(category,metric) in t['metrics'].items()]
    names = ['condition', 'category', 'metric', 'value', 'low', 'high']
    return pd.DataFrame(rows, columns=names).set_index(names[:3]).astype(float).sort_index()


# %%
e = evaluate(letter_prior_model(dict(a=.2, b=.7, c=.1)), ['bbq-like'], limit=48, orders=3)
folder = Path(tempfile.mkdtemp())
wanted = e.metrics[e.metrics.value.notna()].set_index(['condition', 'category', 'metric'])
wanted = wanted.sort_index()[['value','low','high']]
for tool in FORMATS:
    got = read_metrics(e.export(tool, folder/tool))
    pd.testing.assert_frame_equal(got[got.value.notna()], wanted)
sorted(p.name for p in folder.glob('*/*'))

# %% [markdown]
# The samples are logs like those of [other tools](56_logs.ipynb): scored again, they give the scores that the file reports.

# %%
for name in ('lm-eval/samples_moral_sc_bbq_like_q_moral-sc.jsonl',
             'inspect/moral_sc_bbq_like_q.json'):
    log = read_log(folder/name)
    test_eq(len(log.items), 3*48)
    t = compare_scores(log)
    assert not (t.difference.abs()>1e-9).any()
    micro = t[t.category=='micro'].set_index('metric').ours
    test_close(micro.bias_ambig, wanted.loc[('q','micro','bias_ambig'),'value'])

# %% [markdown]
# Other benchmarks go the same way.

# %%
occupations = load_winogender(source='ours')
women = winogender_stub_model(lambda i, c: (i.female, 1-i.female, 0), occupations)
w = evaluate(women, 'winogender-like', ['q'])
for tool in FORMATS:
    got = read_metrics(export_evaluation(w, tool, folder/f'w-{tool}'))
    test_close(got.value['q', 'all', 'rho_two'], 1)

# %%
from dataclasses import replace
q = replace(e, records=e.records[e.records.condition=='q'])
for tool in FORMATS:
    with expect_fail(ConfigError, contains='another export'): q.export(tool, folder/tool)
refused = replace(q, records=q.records.assign(lp_a=np.nan, lp_b=np.nan, lp_c=np.nan))
log = read_log(refused.export('inspect', folder/'refused')/'moral_sc_bbq_like_q.json')
test_eq({*log.answers}, {None})
refused.export('lm-eval', folder/'refused-lm')
log = read_log(folder/'refused-lm'/'samples_moral_sc_bbq_like_q_moral-sc.jsonl')
test_eq({*log.answers}, {None})
low = replace(q, metrics=q.metrics.replace({'category':{'Age':'low'}}))
with expect_fail(DataError, contains='same name'): low.export('lm-eval', folder/'low')
again = read_metrics(low.export('inspect', folder/'low'))
test_eq(len(again), q.metrics.query('condition=="q"').value.notna().sum())
twice = replace(e, records=e.records.assign(condition=['q+if', 'q if']*(len(e.records)//2)))
with expect_fail(DataError, contains='rename one'): twice.export('inspect', folder/'twice')
with expect_fail(ConfigError, contains='no format'): export_evaluation(e, 'lm-evl', folder)
file = folder/'moral_sc_file.json'
file.write_text('[]')
with expect_fail(ConfigError, contains='no folder'): q.export('inspect', file)
