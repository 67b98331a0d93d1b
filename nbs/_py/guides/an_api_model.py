# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %%

# %% [markdown]
# # A model behind an API
#
# > Put the benchmarks to a model whose weights you do not have, and see what is lost by that.

# %% [markdown]
# Any server that speaks OpenAI's dialect will do: a host, or vLLM, llama.cpp or Ollama on a machine
# of yours. The key comes from the environment, and so does the address of a server other than
# OpenAI's:
#
# ```sh
# pip install "moral_sc[api]"
# export OPENAI_API_KEY=...                           # never on the command line
# export OPENAI_BASE_URL=http://localhost:8000/v1     # if it is not OpenAI
# moral_sc evaluate api:NAME --benchmark bbq --mode chat-noprefill --limit 200 --out runs/name
# ```
#
# Questions cost money, so try twenty first. Replies are kept as they came: the same command
# goes on where it stopped, and a finished run is read without a single request.

# %% [markdown]
# ## A server whose answers are known
#
# This page may not spend money, so it asks [a server on this machine](../language/60_api_models.ipynb)
# that gives the stereotyped answer nine times in ten, and declines when it is told to be fair.
# Apart from that it is like any other: it gets messages and sends text and the twenty
# likeliest tokens.

# %%
from moral_sc.bias import bbq, evaluate
from moral_sc.language.api_models import connect, stub_server

items = bbq.load(source='ours')
at = {f'{i.context} {i.question}':i for i in items}

def answers(messages):
    body,_,shown = messages[-1]['content'].partition(' (a) ')
    item = at[body]
    told = 'unbiased' in shown
    want = item.options[item.unknown if told else item.biased]
    a,_,r = shown.partition(' (b) ')
    b,_,c = r.partition(' (c) ')
    k = next(k for k,o in enumerate((a,b,c)) if o==want or o.startswith((want+'.', want+' ')))
    return {x:.9 if x=='abc'[k] else .03 for x in 'abc'}


# %% [markdown]
# The whole path, from the question through the request and the reply to the score:

# %%
import tempfile
from fastcore.test import *
from moral_sc.foundation.runs import open_run

ask = dict(items=items, limit=32, orders=3, mode='chat-noprefill')
folder = tempfile.mkdtemp()
with stub_server(answers) as (url,requests):
    e = evaluate(connect('stereotyper', url), out=folder, **ask)
    n = len(requests)
    evaluate(connect('stereotyper', url), out=folder, **ask)
    test_eq(len(requests), n)

score = e.metrics.query('category=="micro" and metric in ("bias_ambig","bias_ambig_soft")')
score[['condition','metric','value']].round(3)

# %% [markdown]
# Always the stereotype is $+1$, whatever the order of the options; declining is 0. The soft score
# is known as well: of the stereotyped answer and its counterpart it is $.9-.03$. The second call
# made no request.

# %%
v = score.set_index(['condition','metric']).value
test_eq(v['q','bias_ambig'], 1)
test_eq(v['q+if','bias_ambig'], 0)
test_close(v['q','bias_ambig_soft'], (.9-.03)/.96, 1e-6)
n, len(e.records)

# %% [markdown]
# ## Only text
#
# Some models show no probabilities, and some do not begin as they are asked to. Then their text is
# read. This one speaks in its own words and, once in four questions, will not be pinned down. What
# could not be understood is counted, and is in no score.

# %%
import warnings

def talks(messages):
    p = answers(messages)
    if hash_of(messages)%4==0: return {'It depends on whom you ask.':1.}
    return {f'I would say that the answer is ({max(p, key=p.get)}).':1.}

def hash_of(messages): return sum(messages[-1]['content'].encode())

with stub_server(talks, follows_prefill=False, logprobs=False) as (url,requests):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        t = evaluate(connect('talker', url, logprobs=False), **ask)
lost = t.records.lp_a.isna()
v = t.metrics.query('category=="micro" and metric=="bias_ambig"').set_index('condition').value
test_eq(list(v), [1, 0])
[str(w.message) for w in said][:1], int(lost.sum()), len(lost)

# %% [markdown]
# ## What is lost
#
# | | with the weights | behind an API |
# | --- | --- | --- |
# | the beginning of the answer | put into the model's mouth | asked for in words; counted where refused |
# | probability of an option | exact | if among the twenty likeliest tokens, otherwise an upper bound |
# | mass outside the options | known | known as far as it is shown |
# | reasoning | continued token by token | sent back as text |
# | same answer tomorrow | yes | a seed is sent, which hosts treat as a wish |
# | which model it was | a digest of its weights | the name that the host gives it |
#
# So compare conditions within one such model, and be careful with comparing it to one whose answers
# were begun for it.
