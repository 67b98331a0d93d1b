# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Comparison of evaluations
#
# > Paired differences of two evaluations by condition and metric, with intervals.

# %%
#| default_exp bias.comparison

# %% [markdown]
# Two models that answered the same questions are compared question by question: the effect that a question has on
# both does not widen the interval. `compare(a, b)` subtracts the metrics of `b` from those of `a`. The interval draws
# what the benchmark's own intervals draw, for both models at once: templates (BBQ), occupations (Winogender), students
# (admissions) or decisions (discrim-eval); the column `draws` says which. It does not cover another wording, another
# training of either model, or sampled reasoning.

# %%
#| export
import warnings
from pathlib import Path

import pandas as pd
from moral_sc.bias.evaluation import Evaluation
from moral_sc.foundation.arguments import checked
from moral_sc.foundation.errors import ConfigError, DataError

# %%
#| hide
import tempfile
from dataclasses import replace
from fastcore.test import *
from moral_sc.bias import bbq
from moral_sc.bias.asking import bbq_stub_model
from moral_sc.bias.bbq.items import stratified
from moral_sc.bias.evaluation import evaluate

few = stratified(bbq.load('Age', source='ours'), 24)


# %%
#| export
def _loaded(x, name):
    if isinstance(x, (str,Path)): return Evaluation.load(x)
    if isinstance(x, Evaluation): return x
    raise ConfigError(f'{name} is of type {type(x).__name__}: give an Evaluation or its folder.')

def _common(a, b, kind):
    "Return what two lists share; warn of the rest"
    both = [x for x in a if x in b]
    if not both:
        raise DataError(f'The two evaluations have no {kind} in common: {", ".join(a)[:80]} and '
                        f'{", ".join(b)[:80]}.')
    lost = len({*a, *b})-len(both)
    if lost:
        warnings.warn(f'{lost} {kind} of one evaluation only are left out of the comparison.',
                      stacklevel=5)
    return both

def _check_same_texts(a, b, name, conditions, ids):
    "Raise an error if the same names stand for other texts"
    for c in conditions:
        if a.asked[name][c]!=b.asked[name][c]:
            raise DataError(f'{c!r} of {name} has other words in the two evaluations.')
    benchmark = a.benchmarks.get(name)
    if not benchmark or name not in b.benchmarks: return
    def questions(e):
        rows = {str(benchmark.metadata(i)['id']):i for i in e.items[name]}
        return {k:(benchmark.fields(i), benchmark.options(i)) for k,i in rows.items()}
    mine = questions(a)
    theirs = questions(b)
    for k in ids:
        if mine.get(str(k))!=theirs.get(str(k)):
            raise DataError(f'The question {k!r} of {name} is another in the two evaluations.')

def _difference(a, b, name, condition, ids, seed):
    "Return the metrics of one condition, A minus B"
    part = lambda e,label: e.records[(e.records.benchmark==name) & (e.records.condition==condition)
                                     & e.records.id.isin(ids)].assign(condition=label)
    d = pd.concat([part(a, 'A'), part(b, 'B')], ignore_index=True).dropna(axis=1, how='all')
    benchmark = a.benchmarks.get(name) or b.benchmarks.get(name)
    if not benchmark:
        raise ConfigError(f'{name} is a benchmark of your own: load the folders with '
                          'Evaluation.load(folder, benchmarks=[...]).')
    t = benchmark.metrics(d, against='B', seed=seed)
    return t.assign(condition=condition, questions=len(ids), draws=benchmark.draws)

@checked
def compare(
    a,             # An `Evaluation`, or its folder
    b,             # Another of the same questions; its metrics are subtracted
    seed:int=0,    # Of the intervals
)->pd.DataFrame:   # benchmark, condition, category, metric, value, low, high, questions, draws
    "Estimate the paired differences of two evaluations, A minus B"
    a = _loaded(a, 'a')
    b = _loaded(b, 'b')
    names = lambda e: list(dict.fromkeys(e.records.benchmark))
    rows = []
    for n in _common(names(a), names(b), 'benchmarks'):
        mine,theirs = (e.records[e.records.benchmark==n] for e in (a, b))
        unique = lambda d, c: list(dict.fromkeys(d[c]))
        conditions = _common(unique(mine, 'condition'), unique(theirs, 'condition'), 'conditions')
        ids = _common(unique(mine, 'id'), unique(theirs, 'id'), 'questions')
        _check_same_texts(a, b, n, conditions, ids)
        rows += [_difference(a, b, n, c, ids, seed) for c in conditions]
    d = pd.concat(rows, ignore_index=True)
    d.insert(0, 'difference', f'{a.model} - {b.model}')
    return d


# %% [markdown]
# The example compares two stub models whose bias is known. The first leans twice as much as the second.

# %%
def leaning(b, name):
    def rule(item, instructed):
        return [{item.unknown:.4, item.biased:.3+b, item.counter:.3-b}[k] for k in range(3)]
    return bbq_stub_model(rule, few, name)

a = evaluate(leaning(.2, 'A'), items=few)
b = evaluate(leaning(.1, 'B'), items=few)
t = compare(a, b)
t.query('category=="micro" and metric=="bias_ambig_soft"')

# %%
change = t.query('category=="micro" and metric=="bias_ambig_soft"')
test_close(change.value, [.2]*2, eps=1e-6)
assert (change.high-change.low<1e-6).all() # The questions have the same effect on both
test_eq([set(t[c]) for c in ('difference','draws','questions')], [{'A - B'}, {'templates'}, {24}])
test_close(compare(b, a).value.fillna(0), -t.value.fillna(0))
folders = [e.save(Path(tempfile.mkdtemp())/'x') for e in (a, b)]
pd.testing.assert_frame_equal(compare(*folders), t)

# %% [markdown]
# Questions or conditions that only one evaluation has are left out with a warning; the same names for other texts are
# an error.

# %%
with warnings.catch_warnings(record=True) as messages:
    warnings.simplefilter('always')
    less = compare(a, evaluate(leaning(.1, 'C'), items=few[:12], conditions=['q']))
test_eq([str(m.message).split(' of')[0] for m in messages], ['1 conditions', '12 questions'])
test_eq(set(less.questions), {12})
other = evaluate(leaning(.1, 'B'), items=[replace(few[0], question='Who?'), *few[1:]])
with expect_fail(DataError, contains='is another in the two'): compare(a, other)
kind = [evaluate(leaning(.1, 'B'), items=few[:4], wordings={'q+kind':w})
        for w in ('Be kind.', 'Be.')]
with expect_fail(DataError, contains="'q+kind' of yours has other words"): compare(*kind)
with expect_fail(ConfigError, contains='give an Evaluation'): compare(a, 3)
with expect_fail(ConfigError, contains='no argument'): compare(a, b, level=.9)
