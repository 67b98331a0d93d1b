# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Full answers
#
# > BBQ with the full text of each answer instead of a letter, and four ways to score it.

# %%
#| default_exp bias.bbq.full_answers

# %% [markdown]
# A letter is short and the same in every question, but a model may prefer a letter. A full answer has no letter,
# but answers differ in length and in prior probability: "The grandfather" has three words and "Not enough
# information" three others. Which of the two problems is smaller depends on the model, so both formats are
# available. Four scores are in use: the log-probability of all tokens (sum), the same per token or per byte, and the
# sum minus the log-probability of the answer without a question (PMI).

# %%
#| export
from dataclasses import replace

import numpy as np, pandas as pd
from moral_sc.bias.bbq import metrics
from moral_sc.bias.bbq.scoring import orders_of
from moral_sc.foundation.errors import ConfigError, unknown_name_message
from moral_sc.language.scoring import option_logprobs

# %%
#| hide
from fastcore.test import *
from moral_sc.bias import bbq
from moral_sc.bias.evaluation import evaluate
from moral_sc.bias.bbq.items import stratified
from moral_sc.language.stub_models import random_model
import warnings


# %%
#| export
def answer_options(
    item,      # Of BBQ
)->tuple:
    "Return the strings that may follow 'The answer is'"
    return tuple(' '+o for o in item.options)

BBQ_STRINGS = replace(metrics.BBQ, name='bbq-strings', stimuli='bbq-strings',
                      options=answer_options)

# %% [markdown]
# `rescore` computes another score from the records of an evaluation.

# %%
#| export
METHODS = ['sum', 'token', 'byte', 'pmi']

def _per_option(items, method, lm):
    "Return the length or prior of each option of each question"
    opts = {o for i in items for o in answer_options(i)}
    if method=='byte': f = {o:len(o.encode()) for o in opts}
    elif method=='token': f = {o:len(lm.tokenizer(o, add_special_tokens=False).input_ids)
                            for o in opts}
    else:
        opts = sorted(opts)
        prior = option_logprobs(lm, ['\n\nAssistant: The answer is'], opts)[0]
        f = dict(zip(opts, prior))
    return {i.id:[f[o] for o in answer_options(i)] for i in items}

def rescore(
    records:pd.DataFrame, # Of an evaluation of BBQ_STRINGS
    items:list,
    method:str='sum',     # 'sum', 'token', 'byte' or 'pmi'
    lm=None,              # Needed for 'token' and 'pmi'
)->pd.DataFrame:          # Records with new lp_a, lp_b, lp_c and the columns derived from them
    "Score full answers by another method"
    if method not in METHODS:
        raise ConfigError(unknown_name_message('scoring method', method, METHODS))
    if method=='sum': return metrics.add_answer_columns(records)
    if lm is None and method!='byte':
        raise ConfigError(f'method={method!r} needs the model: call rescore(..., lm=lm).')
    per = _per_option(items, method, lm)
    x = np.array([[per[i][k] for k in orders_of(6)[o]]
                  for i,o in zip(records.id, records.order)])
    cols = ['lp_a','lp_b','lp_c']
    lp = records[cols].to_numpy()
    rescored = lp-x if method=='pmi' else lp/x
    return metrics.add_answer_columns(records.assign(**dict(zip(cols, rescored.T))))


# %%
few = stratified(bbq.load(source='ours'), 32)
lm = random_model('llama')
with warnings.catch_warnings(): # The answers are three of all sentences: their mass is small
    warnings.simplefilter('ignore')
    bench = replace(BBQ_STRINGS, load=lambda limit=None, seed=0: few)
    e = evaluate(lm, benchmarks=[bench], conditions=['q'], orders=3)
rescored = {m: rescore(e.records, few, m, lm)[['p0','p1','p2']].iloc[0] for m in METHODS}
pd.DataFrame(rescored).round(3)

# %% [markdown]
# The score per byte is the sum divided by the length.

# %%
r = e.records.iloc[0]
i = {i.id:i for i in few}[e.records.id.iloc[0]]
n = [len(o.encode()) for o in answer_options(i)]
p = np.exp(r[['lp_a','lp_b','lp_c']].to_numpy(float)/n)
def said(d): return d[['p0','p1','p2']].to_numpy()

test_close(said(rescore(e.records, few, 'byte'))[0], p/p.sum())
test_close(said(rescore(e.records, few)), said(e.records))
with expect_fail(ConfigError, contains='needs the model'): rescore(e.records, few, 'pmi')
with expect_fail(ConfigError, contains='scoring method'): rescore(e.records, few, 'bits')
