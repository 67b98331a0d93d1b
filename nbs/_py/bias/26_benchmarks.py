# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Benchmarks
#
# > What a benchmark has to say for itself, so that one call can put any of them to any model.

# %%
#| default_exp bias.benchmarks

# %% [markdown]
# BBQ offers three answers and shows them; Winogender leaves a gap for a pronoun; the admissions
# and discrim-eval ask for yes or no. To a language model these are one task: text, and a few
# strings that may follow it. A `Benchmark` says how its items become text, which strings stand
# for which answer, and how the probabilities become its numbers. Everything else, asking,
# reasoning first, keeping, resuming, is the same for all and is written once.

# %%
#| export
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import numpy as np, pandas as pd
from moral_sc.foundation.errors import ConfigError, unknown_name_message

# %%
#| hide
from fastcore.test import *


# %%
#| export
@dataclass(frozen=True)
class Benchmark:
    "What `evaluate` must know of a benchmark"
    name:str
    stimuli:str       # Its section of the conditions table
    load:Callable     # (limit=None, seed=0, ...) -> items, the part that was asked for
    answers:tuple     # Names of the answers; the records get a column lp_NAME for each
    options:Callable  # Item -> what stands for each answer after the prompt
    fields:Callable   # Item -> what fills the braces of the prompt
    metadata:Callable    # Item -> columns of the records; 'id' is unique
    metrics:Callable  # (records, against=None, n, level, seed) -> tidy table with intervals
    conditions:tuple=('q','q+if')
    reorder:Callable|None=None # (item, order) -> the same item, options in another order
    add_columns:Callable|None=None # Records -> records with columns of its own

    def __repr__(self): return f'Benchmark {self.name}: {", ".join(self.answers)}'


# %% [markdown]
# Each benchmark has a page of its own that ends with its `Benchmark`. They are found here by
# name; a page is opened only when its benchmark is asked for.

# %%
#| export
REGISTRY = { # name: module and constant
    'bbq':'bbq.metrics.BBQ', 'bbq-like':'bbq.metrics.BBQ_LIKE',
    'bbq-strings':'bbq.full_answers.BBQ_STRINGS',
    'winogender':'winogender.WINOGENDER',
    'winogender-like':'winogender.WINOGENDER_LIKE',
    'admissions':'admissions.ADMISSIONS', 'admissions-cases':'admissions.ADMISSIONS_CASES',
    'discrim-eval':'discrim_eval.DISCRIM_EVAL'}

def get_benchmark(
    name,       # Of `PLACES`, or a `Benchmark` of your own
)->Benchmark:
    "A benchmark by name"
    if isinstance(name, Benchmark): return name
    if name not in REGISTRY:
        raise ConfigError(unknown_name_message('benchmark', name, list(REGISTRY)))
    module,constant = REGISTRY[name].rsplit('.', 1)
    return getattr(import_module(f'moral_sc.bias.{module}'), constant)


# %% [markdown]
# ## Averages
#
# A question may be asked more than once, in several orders of its options and with several
# samples of reasoning. Those are averaged in probability, after each answer has been brought to
# the same scale, and only then compared with other questions.

# %%
#| export
def mean_probabilities(
    records:pd.DataFrame, # One row a question asked
    answers,              # Names of answers, as in the columns lp_NAME
    normalise:bool=True,  # Over these answers; otherwise as the model gave them
)->pd.DataFrame:          # [(condition, id), answer]
    "Mean probability of each answer to each question"
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
