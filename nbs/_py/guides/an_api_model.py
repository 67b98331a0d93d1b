# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A model behind an API
#
# > This guide shows how to run the bias benchmarks on a model whose weights you do not have.

# %% [markdown]
# You can use any server with an OpenAI-compatible API: a commercial host, or vLLM, llama.cpp or Ollama
# on a machine of yours. The key is read from the environment, and so is the address of a server other
# than OpenAI's:
#
# ```sh
# pip install "moral_sc[api]"
# export OPENAI_API_KEY=...                           # never on the command line
# export OPENAI_BASE_URL=http://localhost:8000/v1     # for a server other than OpenAI's
# moral_sc evaluate api:NAME --benchmark bbq --mode chat-noprefill --limit 200 --out runs/name
# ```
#
# Requests cost money, so try twenty questions first (`--limit 20`). Every reply is stored as it
# arrives: the same command continues an interrupted run, and reads a finished one from disk without a
# request.

# %% [markdown]
# ## A stub server
#
# To cost nothing, this page queries [a local stub server](../language/60_api_models.ipynb). Its model
# gives the stereotyped answer with probability 0.9, and declines to answer when it is asked to be
# unbiased. Otherwise it behaves like any server: it receives messages and returns text and the twenty
# likeliest tokens.

# %%
from moral_sc.bias import bbq, evaluate
from moral_sc.language import connect
from moral_sc.language.api_models import stub_server

items = bbq.load(source='ours')
by_text = {f'{i.context} {i.question}':i for i in items}

def stereotyped(messages):
    body,_,options = messages[-1]['content'].partition(' (a) ')
    item = by_text[body]
    answer = item.options[item.unknown if 'unbiased' in options else item.biased]
    a,_,rest = options.partition(' (b) ')
    b,_,c = rest.partition(' (c) ')
    k = next(k for k,o in enumerate((a,b,c))
             if o==answer or o.startswith((answer+'.', answer+' ')))
    return {x:.9 if x=='abc'[k] else .03 for x in 'abc'}


# %% [markdown]
# The evaluation covers the whole path from the question to the request, the reply and the score:

# %%
import tempfile
from fastcore.test import *

settings = dict(items=items, limit=32, orders=3, mode='chat-noprefill')
folder = tempfile.mkdtemp()
with stub_server(stereotyped) as (url,requests):
    e = evaluate(connect('stereotyper', url), out=folder, **settings)
    n = len(requests)
    evaluate(connect('stereotyper', url), out=folder, **settings)
    test_eq(len(requests), n)

score = e.metrics.query('category=="micro" and metric in ("bias_ambig","bias_ambig_soft")')
score[['condition','metric','value']].round(3)

# %% [markdown]
# A model that always chooses the stereotype scores $+1$ for every order of the options; a model that
# declines scores 0. The soft score is also known: for probabilities $.9$ of the stereotyped answer and
# $.03$ of each other option it is $(.9-.03)/.96$. The second call made no request.

# %%
v = score.set_index(['condition','metric']).value
test_eq(v['q','bias_ambig'], 1)
test_eq(v['q+if','bias_ambig'], 0)
test_close(v['q','bias_ambig_soft'], (.9-.03)/.96, 1e-6)
n, len(e.records)

# %% [markdown]
# ## Text-only models
#
# Some models return no probabilities, and some do not begin their answers as asked. The answer is then
# parsed from the text. This model answers in full sentences and evades one question in four. Answers
# that could not be parsed are counted and enter no score. The cell prints the first warning, which
# covers 128 of the 192 answers, and then the number of unparsed answers of all 192.

# %%
import warnings

def talkative(messages):
    p = stereotyped(messages)
    if checksum(messages)%4==0: return {'It depends on whom you ask.':1.}
    return {f'I would say that the answer is ({max(p, key=p.get)}).':1.}

def checksum(messages): return sum(messages[-1]['content'].encode())

with stub_server(talkative, follows_prefill=False, logprobs=False) as (url,requests):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        t = evaluate(connect('talker', url, logprobs=False), **settings)
unparsed = t.records.lp_a.isna()
v = t.metrics.query('category=="micro" and metric=="bias_ambig"').set_index('condition').value
test_eq(list(v), [1, 0])
[str(w.message) for w in caught][:1], int(unparsed.sum()), len(unparsed)

# %% [markdown]
# ## Differences from a model with weights
#
# | | with the weights | behind an API |
# | --- | --- | --- |
# | beginning of the answer | prefilled | requested in words; failures are counted |
# | probability of an option | exact | exact among the twenty likeliest tokens, otherwise an upper bound |
# | probability outside the options | exact | known for the tokens returned |
# | reasoning | continued token by token | sent back as text |
# | reproducibility | same result on every run | the seed is sent, but hosts treat it as best effort |
# | identity of the model | a digest of its weights | the host's name for it |
#
# Compare conditions within one such model. Be careful when you compare it with a model whose
# answers were prefilled.
