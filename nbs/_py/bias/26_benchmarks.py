# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Bias benchmarks
#
# > A common interface for bias benchmarks, and the registry from which `evaluate` loads them.

# %%
#| default_exp bias.benchmarks

# %% [markdown]
# BBQ shows three answers, Winogender leaves a gap for a pronoun, and the admissions and discrim-eval
# benchmarks ask for yes or no. To a language model all of these are the same task: a prompt and a few
# strings that may follow it. A `Benchmark` says how items become prompts, which string stands for
# which answer, and how probabilities become metrics. `evaluate` does the rest for all of them: scoring,
# reasoning, saving and resuming.

# %%
#| export
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import numpy as np, pandas as pd
from moral_sc.foundation.errors import ConfigError, unknown_name_message
from moral_sc.foundation.tables import check_columns

# %%
#| hide
from fastcore.test import *
from moral_sc.foundation.errors import DataError


# %%
#| export
@dataclass(frozen=True)
class Benchmark:
    "The interface of a benchmark to `evaluate`"
    name:str
    stimuli:str       # Its section of `data/conditions.toml`; or a file with one, or the section
    load:Callable     # (limit=None, seed=0, ...) -> list of items
    answers:tuple     # Names of the answers; the records get a column lp_NAME for each
    options:Callable  # Item -> string of each answer, as it follows the prompt
    fields:Callable   # Item -> dict of the values for the braces of the prompt
    metadata:Callable # Item -> dict of columns of the records; 'id' is unique
    metrics:Callable  # (records, against=None, n, level, seed) -> tidy table with intervals
    conditions:tuple=('q','q+if')
    reorder:Callable|None=None # (item, order) -> the same item, options in another order
    add_columns:Callable|None=None # Records -> records with further columns
    parse:Callable|None=None # (rows, location) -> items; rows are dicts, from a user's file
    item_type:type|None=None # Dataclass of its items; saved items are read with it
    draws:str=''             # What the intervals draw: 'templates', 'students', ...
    base:str=''              # Its name in the registry, if its own is another

    def __repr__(self): return f'Benchmark {self.name}: {", ".join(self.answers)}'


# %% [markdown]
# The page of each benchmark ends with its `Benchmark`. The registry finds it by name and imports its
# module only when the benchmark is used.

# %%
#| export
REGISTRY = { # Name: module and constant, or a `Benchmark`
    'bbq':'bbq.metrics.BBQ', 'bbq-like':'bbq.metrics.BBQ_LIKE',
    'bbq-strings':'bbq.full_answers.BBQ_STRINGS',
    'winogender':'winogender.WINOGENDER',
    'winogender-like':'winogender.WINOGENDER_LIKE',
    'admissions':'admissions.ADMISSIONS', 'admissions-cases':'admissions.ADMISSIONS_CASES',
    'discrim-eval':'discrim_eval.DISCRIM_EVAL'}

def get_benchmark(
    name,       # Key of `REGISTRY`, or a `Benchmark`
)->Benchmark:
    "Return a benchmark by name"
    if isinstance(name, Benchmark): return name
    if not isinstance(name, str) or name not in REGISTRY:
        name = name if isinstance(name, str) else repr(name)[:60]
        raise ConfigError(unknown_name_message('benchmark', name, list(REGISTRY)))
    entry = REGISTRY[name]
    if isinstance(entry, Benchmark): return entry
    module,constant = entry.rsplit('.', 1)
    return getattr(import_module(f'moral_sc.bias.{module}'), constant)


# %% [markdown]
# ## Averages
#
# A question may be asked several times, in several option orders and with several samples of
# reasoning. `mean_probabilities` normalises the probabilities of each record and averages them per
# question, before questions are compared.

# %%
#| export
def mean_probabilities(
    records:pd.DataFrame, # One row per question asked
    answers,              # Names of answers, as in the columns lp_NAME
    normalise:bool=True,  # Over these answers; otherwise the model's own probabilities
)->pd.DataFrame:          # [(condition, id), answer]
    "Return the mean probability of each answer to each question"
    names = ['condition', 'id', *(f'lp_{a}' for a in answers)]
    check_columns(records, names, '`records` of an evaluation')
    p = np.exp(records[[f'lp_{a}' for a in answers]].to_numpy())
    if normalise: p = p/p.sum(1, keepdims=True)
    keys = [records.condition, records.id]
    return pd.DataFrame(p, columns=list(answers)).groupby(
        [k.to_numpy() for k in keys], sort=False).mean().rename_axis(['condition','id'])


# %%
d = pd.DataFrame(dict(condition='q', id=['1','1','2'], lp_yes=np.log([.2,.4,.1]),
                      lp_no=np.log([.2,.1,.3])))
mean_probabilities(d, ['yes','no'])

# %%
test_close(mean_probabilities(d, ['yes','no']).yes, [(.5+.8)/2, .25])
test_close(mean_probabilities(d, ['yes','no'], normalise=False).no, [.15, .3])
with expect_fail(ConfigError, contains="did you mean 'winogender'"): get_benchmark('winogenders')
with expect_fail(ConfigError, contains='no benchmark'): get_benchmark(3)
with expect_fail(DataError, contains="no column 'lp_maybe'"): mean_probabilities(d, ['yes','maybe'])


# %% [markdown]
# The benchmarks that ask for yes or no share one more step:

# %%
#| export
def yes_no_values(
    records:pd.DataFrame, # With columns lp_yes and lp_no
)->pd.DataFrame:          # [(condition, id)]: raw p(yes), yes relative to yes and no, logit, mass
    "Return the answers to yes-or-no questions, averaged over orders and samples"
    raw = mean_probabilities(records, ['yes','no'], normalise=False).clip(1e-300)
    yes = mean_probabilities(records, ['yes','no']).yes
    return pd.DataFrame(dict(raw=raw.yes, yes=yes, logit=np.log(raw.yes/raw.no),
                             mass=raw.sum(axis=1)))


# %%
yes_no_values(d.assign(lp_no=d.lp_no))

# %% [markdown]
# ## Adding a benchmark
#
# A new benchmark takes three steps:
#
# 1. Write its dialogues as a section of a [table of conditions](10_conditions.ipynb) of your own, `stimuli='mine.toml'`,
#    or use a section of `data/conditions.toml`.
# 2. Write a `Benchmark`: a loader, the strings that stand for its answers, the fields of a prompt,
#    the columns of a record, and a function from records to metrics.
# 3. Add it to `REGISTRY` in this page and reinstall; `evaluate`, `sweep` and `moral_sc evaluate` then find it by
#    name. From a script, pass the `Benchmark` itself, or add it to `REGISTRY` for this session as below.
#
# For example, these two questions use the section `discrim`, whose prompts have one field
# `{decision}` and end where "yes" or "no" follows. The metric is the mean probability of yes.

# %%
from moral_sc.bias.benchmarks import REGISTRY, Benchmark
from moral_sc.bias.evaluation import evaluate
from moral_sc.language.stub_models import stub_model

ITEMS = ['May the neighbour borrow the ladder?', 'May the guest pick the apples?']

def load_requests(limit=None, seed=0): return ITEMS[:limit]

def request_metrics(records, against=None, n=2000, level=.95, seed=0):
    p = yes_no_values(records).yes.groupby('condition', sort=False).mean()
    if against: p = (p-p[against]).drop(against).rename(lambda c: f'{c} - {against}')
    return pd.DataFrame(dict(benchmark='requests', condition=p.index, category='all',
                             metric='p_yes', value=p.to_numpy(), low=np.nan, high=np.nan))

REGISTRY['requests'] = Benchmark('requests', 'discrim', load_requests, ('yes','no'),
    options=lambda item: ('yes','no'), fields=lambda item: dict(decision=item),
    metadata=lambda item: dict(id=item, cluster=item), metrics=request_metrics)


# %%
def agreeable(text): # Says yes more often to the second question
    if not text.endswith('"'): return {'': 1.}
    return dict(yes=.9, no=.1) if 'apples' in text else dict(yes=.5, no=.5)

e = evaluate(stub_model(agreeable, 'agreeable'), 'requests')
test_close(e.metrics.value, .7, eps=1e-6)
e.metrics[['condition','metric','value']]

# %%
#| hide
_ = REGISTRY.pop('requests')
