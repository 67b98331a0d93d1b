# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Evaluation
#
# > One call evaluates a model on bias benchmarks under all conditions, and can be resumed.

# %%
#| default_exp bias.evaluation

# %% [markdown]
# `evaluate` scores every question under every condition. You may stop it at any moment, and it
# survives a crash: answers are saved, and the same call continues and ends in the same table.

# %%
#| export
import json, tempfile, warnings
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from moral_sc.bias import bbq
from moral_sc.bias.bbq.metrics import condition_probabilities
from moral_sc.bias.asking import (build_questions, build_records, option_orders,
                                  sample_reasoning, score_questions)
from moral_sc.bias.benchmarks import Benchmark, get_benchmark, mean_probabilities
from moral_sc.bias.conditions import two_stage
from moral_sc.bias.bbq.items import stratified
from moral_sc.foundation.errors import ConfigError, DataError
from moral_sc.foundation.runs import content_key, open_run
from moral_sc.language.loading import load as load_model, load_or_stub

# %%
#| hide
import signal, subprocess, sys
from fastcore.test import *
from moral_sc.bias.asking import bbq_stub_model
from moral_sc.bias.bbq.metrics import METRICS, letters
from moral_sc.language.stub_models import letter_prior_model, stub_model, random_model

ours = bbq.load(source='ours')
few = stratified(ours, 96)


# %% [markdown]
# ## Results
#
# An `Evaluation` holds the records, one row per question asked, and the metrics computed from them:
# each benchmark's metrics with intervals, and the paired differences from the first condition.

# %%
#| export
@dataclass(repr=False)
class Evaluation:
    "Results of `evaluate`"
    model:str
    items:dict             # Name of a benchmark to its items
    records:pd.DataFrame   # See `tidy`
    out:str|None=None      # Folder of the run
    metrics:pd.DataFrame=None     # benchmark, condition, category, metric, value, low, high
    differences:pd.DataFrame=None # The same, against the first condition
    provenance:dict=None          # Versions, machine, start and end of a saved run
    benchmarks:dict=None          # Name to `Benchmark`

    def __repr__(self):
        d = self.records
        n = d.groupby('benchmark').id.nunique().sum()
        conditions = ', '.join(dict.fromkeys(d.condition))
        return (f'Evaluation of {self.model}: {n:,} questions{self._covered()}, {conditions}; '
                f'{d.order.nunique()} of 6 orders')

    def _covered(self): # Where BBQ is among the benchmarks
        names = [i.category for rows in self.items.values() for i in rows
                 if isinstance(i, bbq.Item)]
        return f' of {bbq.coverage(names)}' if names else ''

    def records_of(self, benchmark=None): # Of one benchmark; default: the first
        b = benchmark or next(iter(self.items))
        return self.records[self.records.benchmark==b].dropna(axis=1, how='all')

    def answer_probabilities(self, condition, benchmark=None, soft=False): # BBQ: [item, option]
        return condition_probabilities(self.records_of(benchmark), condition, soft)

    def score(self, condition, benchmark=None, soft=False): # The table of `bbq.score`
        b = benchmark or next(iter(self.items))
        return bbq.score(self.answer_probabilities(condition, b, soft), self.items[b])

    def probabilities(self, benchmark=None, normalise=True): # [(condition, id), answer]
        b = benchmark or next(iter(self.items))
        return mean_probabilities(self.records_of(b), self.benchmarks[b].answers, normalise)


# %% [markdown]
# ## Models of a page
#
# `load_models` loads the models that are named on the command line of `moral_sc reproduce --model`, or else a
# page's default models; a page without default models, as at scale `quick`, runs on a stub model.

# %%
#| export
def load_models(
    models,     # Names given by the reader, may be empty
    defaults,   # Names to load otherwise, may be empty
    make_stub,  # Called without arguments where a model is missing; returns an `LM`
)->dict:        # Name to `LM`
    "Load the models that a page asks"
    if models: return {str(m):load_model(m) for m in models}
    if defaults: return {m:load_or_stub(m, make_stub) for m in defaults}
    stub = make_stub()
    print(f'The stub model {stub.name} answers; its numbers describe no real model.')
    return {stub.name:stub}

def unmet_setting(
    models:dict,         # Of `load_models`
    questions:bool=True, # The benchmark's own questions were asked
)->str:
    "Say why a run cannot judge a claim about models, or return an empty text"
    stubs = [lm.name for lm in models.values() if lm.is_stub]
    if stubs: return f'the stub model {stubs[0]} answered'
    return '' if questions else 'questions of ours stand in for the benchmark'


# %%
stub_models = load_models((), (), lambda: letter_prior_model(dict(a=.1, b=.2, c=.7)))
unmet_setting(stub_models), unmet_setting({}, questions=False)


# %% [markdown]
# ## `evaluate`

# %%
#| export
def resolve_benchmarks(
    benchmarks, # Names or `Benchmark`s
    conditions, # None: those of each benchmark
    n:int,      # Option orders
)->tuple:       # Name -> `Benchmark`; name -> conditions
    "Check and resolve the benchmarks and conditions of an evaluation"
    listed = lambda x: [x] if isinstance(x, (str,Benchmark)) else list(dict.fromkeys(x))
    bs = [get_benchmark(b) for b in listed(benchmarks)]
    if len(bs)==1 or conditions is None:
        asked = {b.name:listed(conditions or b.conditions) for b in bs}
    else: asked = {b.name:[c for c in listed(conditions) if _supports_condition(b, c)] for b in bs}
    for b in bs:
        for c in asked[b.name] or listed(conditions): two_stage(b.stimuli, c)
        option_orders(b, n)
    return {b.name:b for b in bs},asked

def _supports_condition(b, condition):
    try: two_stage(b.stimuli, condition)
    except ConfigError: return False
    return True

def _load_items(bs, items, limit, seed, kw):
    "Load the items of each benchmark"
    if items is None: return {n:b.load(limit=limit, seed=seed, **kw) for n,b in bs.items()}
    if len(bs)>1: raise ConfigError(f'items belong to one benchmark, but {len(bs)} are given: '
                                    'pass benchmarks=[NAME] with one name.')
    cut = stratified(items, limit, seed) if next(iter(bs.values())).reorder else items[:limit]
    return {n:cut for n in bs}

def evaluate(
    lm,                         # A loaded model, or what `load` takes: an alias, a folder
    benchmarks=('bbq',),        # Names or `Benchmark`s; see `REGISTRY`
    conditions=None,            # 'q', 'q+if', ...; the first is the reference of differences
    limit:int|None=None,        # At most so many questions per benchmark
    out:str|None=None,          # Folder of the run; without it nothing is saved
    orders:int=1,               # Option orders: 1 as in the file, 3 cyclic, 6 all
    seed:int=0,                 # Of the subset that `limit` takes, of samples and intervals
    mode:str='plain',           # How turns are marked: 'plain', 'chat'
    samples:int=1,              # Reasoning samples per question
    items:list|None=None,       # Your own questions instead, in the benchmark's format
    categories:list|None=None,  # Of BBQ; default: all available
    drop_errata:bool|list=False,# Of BBQ: without scenes that have a known error
    progress=None,              # Called with (saved answers, all answers)
    **kw,                       # portion, max_tokens, max_new_tokens, temperature
)->Evaluation:
    "Evaluate a model on all questions under all conditions"
    bs,asked = resolve_benchmarks(benchmarks, conditions, orders)
    if samples<1: raise ConfigError(f'samples is {samples}: give 1 or more.')
    if isinstance(lm, (str,Path)): lm = load_model(lm)
    options = dict(categories=categories, drop_errata=drop_errata)
    questions = _load_items(bs, items, limit, seed, {k:v for k,v in options.items() if v})
    if items is not None: bs,questions,asked = _as_custom(bs, questions, asked)
    for n,rows in questions.items():
        _check_unique_ids(n, [bs[n].metadata(i)['id'] for i in rows])
    settings = dict(orders=orders, mode=mode, seed=seed, samples=samples)
    config = dict(model=lm.identity, limit=limit, conditions=asked, **settings,
                  **{k:v for k,v in kw.items() if k not in ('portion','max_tokens')},
                  benchmarks={n:_digest(bs[n], rows) for n,rows in questions.items()})
    details = dict(device=str(lm.device), dtype=str(lm.dtype).removeprefix('torch.'), seed=seed,
                   model=lm.name)
    with tempfile.TemporaryDirectory() as tmp, open_run(out or tmp, config, **details) as run:
        records = [_run_benchmark(lm, b, questions[n], asked[n], run, progress, **settings, **kw)
                   for n,b in bs.items()]
        run.finish()
    return _compute_metrics(lm, bs, questions, asked, records, out, seed)


# %%
#| export
def _as_custom(bs, items, asked):
    (original,b),name = next(iter(bs.items())), 'yours'
    return {name:replace(b, name=name)}, {name:items[original]}, {name:asked[original]}

def _check_unique_ids(name, ids):
    "Raise an error for duplicate ids, or for no questions"
    if not ids: raise DataError(f'There are no questions of {name} to ask.')
    for i,n in Counter(ids).items():
        if n>1: raise DataError(f'{name} has {n} questions {i!r}: give each an id of its own.')

def _digest(b, items):
    return content_key(items=[[b.fields(i), b.options(i), b.metadata(i)] for i in items])

def _run_benchmark(lm, b, items, conditions, run, progress, orders, mode, seed, samples,
             portion=128, max_tokens=4096, max_new_tokens=256, temperature=1.):
    questions = build_questions(lm, b, items, conditions, orders, mode)
    direct = [q for q in questions if not two_stage(b.stimuli, q.condition)]
    reasoning = [q for q in questions if two_stage(b.stimuli, q.condition)]
    if reasoning:
        reasoning = sample_reasoning(lm, b, reasoning, run, mode, seed, samples, max_new_tokens,
                                     temperature, progress)
    asked = direct+reasoning
    lp = score_questions(lm, asked, run, b.answers, portion, max_tokens, progress)
    return build_records(b, asked, lp)

def _compute_metrics(lm, bs, items, asked, records, out, seed):
    "Compute metrics and differences from records"
    e = Evaluation(lm.name, items, pd.concat(records, ignore_index=True),
                   str(out) if out else None, benchmarks=bs)
    pairs = list(zip(bs.values(), records))
    e.metrics = pd.concat([b.metrics(d, seed=seed) for b,d in pairs], ignore_index=True)
    differences = [b.metrics(d, against=asked[b.name][0], seed=seed) for b,d in pairs]
    e.differences = pd.concat(differences, ignore_index=True)
    if out: e.provenance = json.loads((Path(out)/'provenance.json').read_text())
    _warn_low_mass(e)
    return e

def _warn_low_mass(e):
    "Warn where the answers have little of the model's probability"
    d = e.records.assign(low=~(e.records['mass']>=.5))
    for (b,c),g in d.groupby(['benchmark','condition'], sort=False):
        if g['mass'].mean()<.5:
            warnings.warn(f'{e.model} gives the answers of {b} only {g["mass"].mean():.2f} of its '
                f'probability under {c}, less than half in {g.low.sum()} of {len(g)} questions: '
                'try another mode, such as mode="chat".', stacklevel=4)


# %% [markdown]
# ## Stub models: end to end
#
# A stub model is a real model object with a known rule. The test is whether the rule comes out at the
# end of the pipeline: prompt, tokens, logits, letters, options, score.

# %%
def onehot(k): return [float(j==k) for j in range(3)]
def biased(i, instructed): return onehot(i.biased)
def counter(i, instructed): return onehot(i.counter)
def declines(i, instructed): return onehot(i.unknown)
def right(i, instructed): return onehot(i.label)


# %%
rules = [biased, counter, declines, right]
def overall(e): # The plain question, all categories
    return e.metrics.query('category=="micro" and condition=="q"').set_index('metric')

found = {f.__name__: evaluate(bbq_stub_model(f, few), conditions='q', items=few) for f in rules}
table = pd.DataFrame({k:overall(e).value for k,e in found.items()})
table.loc[METRICS].round(3)

# %%
t = table.T
test_eq(list(t.bias_ambig), [1,-1,0,0])
test_eq(list(t.bias_disambig.round(12))[:2], [1,-1])
test_eq(list(t.accuracy_ambig), [0,0,1,1])
test_close(t.accuracy_disambig['right'], 1)


# %% [markdown]
# The soft score uses the probabilities, $(1-u)(2b-1)$, in any number of option orders. This stub model
# declines more often when instructed, so $u$ rises from 0.3 to 0.8 at the same $b=5/7$, and the
# difference between the conditions is known as well.

# %%
def heeds(i, instructed):
    u = .8 if instructed else .3
    return [{i.unknown:u, i.biased:(1-u)*5/7, i.counter:(1-u)*2/7}[k] for k in range(3)]

e = evaluate(bbq_stub_model(heeds, few), items=few, limit=48, orders=3)
change = e.differences.query('category=="micro" and metric=="bias_ambig_soft"')
test_close(overall(e).value['bias_ambig_soft'], .3, eps=1e-6)
test_close(change.value, (1-.8)*3/7 - .3, eps=1e-6)
e, change[['condition','value','low','high']].round(3)

# %% [markdown]
# A model that only prefers a letter is recognised: averaged over orders, each of its answers has a
# probability of one third, and the table of letters shows the preference.

# %%
prior = evaluate(letter_prior_model(dict(a=.1, b=.2, c=.7)), items=few, limit=48, orders=3)
m = overall(prior)
test_close(m.value[['accuracy_ambig','accuracy_disambig']], 1/3)
test_close(m.value[['bias_ambig','bias_ambig_soft']], 0)
letters(prior.records).round(3)

# %% [markdown]
# ## Resuming after a crash
#
# A run that is killed at any moment and started again must end in the same table. The next cells start a
# process on a randomly initialised model and kill it without warning once some answers are saved. Then
# they make the same call in that folder and in a new one.

# %%
script = '''
import sys
from moral_sc.bias import bbq
from moral_sc.bias.evaluation import evaluate
from moral_sc.language.stub_models import random_model
evaluate(random_model('llama'), items=bbq.load(source='ours'), limit=48, orders=3,
         portion=16, out=sys.argv[1], progress=lambda n,total: print(n, flush=True))
'''
tmp = Path(tempfile.mkdtemp())
victim = subprocess.Popen([sys.executable, '-c', script, tmp/'cut'], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
seen = [victim.stdout.readline().strip() for _ in range(5)]
victim.send_signal(signal.SIGKILL)
victim.wait()
with open_run(tmp/'cut') as run: kept = len(run)
kept, victim.returncode


# %%
def again(out):
    return evaluate(random_model('llama'), items=ours, limit=48, orders=3, portion=16,
                    out=out).records

cut = again(tmp/'cut')
whole = again(tmp/'whole')
assert cut.equals(whole)
with open_run(tmp/'cut') as run: assert len(run)==len(cut)>kept
cut[['id','condition','order','lp_a','lp_b','lp_c']].tail(3)

# %% [markdown]
# A folder accepts only the same questions; otherwise the error shows the difference.

# %%
with expect_fail(ConfigError, contains='orders: 3 stored, 1 requested'):
    evaluate(random_model('llama'), items=ours, limit=48, portion=16, out=tmp/'cut')
with expect_fail(ConfigError, contains='weights'):
    evaluate(random_model('llama', seed=1), items=ours, limit=48, orders=3, portion=16,
             out=tmp/'cut')


# %% [markdown]
# ## Reasoning
#
# In conditions with two stages, the model's own text stands between question and answer. This stub
# model declines only if its reasoning contains a certain sentence, so the test fails if the reasoning is
# lost.

# %%
def thinker(text):
    if text.endswith('choice is ('):
        options = text.rsplit(' (a) ', 1)[1].partition('.\n')[0].partition('. Please')[0]
        a,_,r = options.partition(' (b) '); b,_,c = r.partition(' (c) ')
        said = {i.options[i.unknown] for i in few}
        return {'abc'[next(k for k,o in enumerate((a,b,c)) if o in said)]: 1.} \
            if 'Nothing says so.' in text else {'a': 1.}
    if text.endswith('stereotyping.'): return {' Nothing says so.': 1.}
    return {'': 1.} if text.endswith('says so.') else {'a': 1.}

def think():
    return evaluate(stub_model(thinker, 'thinker'), items=few[:16], conditions=['q','q+if+cot'],
                    out=tmp/'thinker')

cot = think()
assert think().records.equals(cot.records) # A finished run is read, not asked again
cot.metrics.query('category=="micro" and metric=="accuracy_ambig"')[['condition','value']]

# %%
test_eq(cot.score('q+if+cot').accuracy_ambig['micro'], 1)

# %% [markdown]
# ## Errors

# %%
lm = letter_prior_model(dict(a=.5, b=.5))
with expect_fail(ConfigError, contains="did you mean 'bbq'"): evaluate(lm, ['bqb'])
with expect_fail(ConfigError, contains='known are: q, q+anti'):
    evaluate(lm, conditions=['match'])
with expect_fail(ConfigError, contains="no condition of bbq 'q+match'"):
    evaluate(lm, conditions=['q+match'])
with expect_fail(DataError, contains='give each an id of its own'): evaluate(lm, items=few[:4]*2)
with expect_fail(DataError, contains='no questions'): evaluate(lm, items=[])
with expect_fail(ConfigError, contains='samples is 0'): evaluate(lm, items=few[:4], samples=0)
