# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Answers in full
#
# > BBQ's answers as they are worded, instead of the letters that stand for them.

# %%
#| default_exp bias.bbq.full_answers

# %% [markdown]
# A letter is short and the same in every question, but a model may like a letter. The words of
# an answer carry no letter, but they differ in length and in how likely they are whatever was
# asked: "The grandfather" is three words and "Not enough information" three others. Which of
# the two harms is smaller is a matter of the model, so both can be had. Four ways of counting
# are in use: the log-probability of all tokens (sum), the same a token or a byte, and the sum
# less what the answer gets with no question before it (PMI).

# %%
#| export
from dataclasses import replace

import numpy as np, pandas as pd
from moral_sc.bias.bbq import metrics as scores
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
def options(
    item,      # Of BBQ
)->tuple:
    "What may follow 'The answer is'"
    return tuple(' '+o for o in item.options)

def load(limit:int|None=None, seed:int=0, **kw)->list:
    "A stratified part of BBQ; see `scores.load`"
    return scores.load(limit, seed, **kw)

BBQ_STRINGS = replace(scores.BBQ, name='bbq-strings', stimuli='bbq-strings', load=load,
                      options=options, conditions=('q','q+if'))

# %% [markdown]
# `recount` takes the records of an evaluation and counts them another way.

# %%
#| export
WAYS = ['sum', 'token', 'byte', 'pmi']

def _per_option(items, way, lm):
    "A number for each option of each question: what to divide by, or what to subtract"
    opts = {o for i in items for o in options(i)}
    if way=='byte': f = {o:len(o.encode()) for o in opts}
    elif way=='token': f = {o:len(lm.tokenizer(o, add_special_tokens=False).input_ids)
                            for o in opts}
    else:
        opts = sorted(opts)
        alone = option_logprobs(lm, ['\n\nAssistant: The answer is'], opts)[0]
        f = dict(zip(opts, alone))
    return {i.id:[f[o] for o in options(i)] for i in items}

def recount(
    records:pd.DataFrame, # Of an evaluation of BBQ_STRINGS
    items:list,
    way:str='sum',        # 'sum', 'token', 'byte' or 'pmi'
    lm=None,              # Needed for 'token' and 'pmi'
)->pd.DataFrame:          # Records with other lp_a, lp_b, lp_c, and what was read off them
    "Full answers, counted in another way"
    if way not in WAYS: raise ConfigError(unknown_name_message('way of counting', way, WAYS))
    if way=='sum': return scores.read(records)
    if lm is None and way!='byte':
        raise ConfigError(f'Counting by {way} needs the model: recount(..., lm=lm).')
    per = _per_option(items, way, lm)
    x = np.array([[per[i][k] for k in orders_of(6)[o]]
                  for i,o in zip(records.id, records.order)])
    cols = ['lp_a','lp_b','lp_c']
    lp = records[cols].to_numpy()
    return scores.read(records.assign(**dict(zip(cols, (lp-x if way=='pmi' else lp/x).T))))


# %%
few = stratified(bbq.load(source='ours'), 32)
lm = random_model('llama')
with warnings.catch_warnings(): # The answers are three of all sentences: their mass is small
    warnings.simplefilter('ignore')
    bench = replace(BBQ_STRINGS, load=lambda limit=None, seed=0: few)
    e = evaluate(lm, benchmarks=[bench], conditions=['q'], orders=3)
pd.DataFrame({w: recount(e.records, few, w, lm)[['p0','p1','p2']].iloc[0] for w in WAYS}).round(3)

# %% [markdown]
# By the byte is the sum over the length; PMI knows nothing of a question that says nothing.

# %%
r = e.records.iloc[0]
i = {i.id:i for i in few}[e.records.id.iloc[0]]
n = [len(o.encode()) for o in options(i)]
p = np.exp(r[['lp_a','lp_b','lp_c']].to_numpy(float)/n)
def said(d): return d[['p0','p1','p2']].to_numpy()

test_close(said(recount(e.records, few, 'byte'))[0], p/p.sum())
test_close(said(recount(e.records, few)), said(e.records))
with expect_fail(ConfigError, contains='needs the model'): recount(e.records, few, 'pmi')
with expect_fail(ConfigError, contains='way of counting'): recount(e.records, few, 'bits')
