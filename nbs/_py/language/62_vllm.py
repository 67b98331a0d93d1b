# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # vLLM
#
# > On a GPU, answers can be sampled by vLLM instead of by `sample`.

# %%
#| default_exp language.vllm

# %%
#| export
import tempfile
from functools import partial
from pathlib import Path

from moral_sc.foundation.arguments import checked
from moral_sc.foundation.errors import ConfigError
from moral_sc.foundation.progress import progress_callback
from moral_sc.foundation.runs import content_key, run_or_temporary
from moral_sc.language.chat import encode_prompt
from moral_sc.language.models import eos_ids
from moral_sc.language.engine.batching import check_rows
from moral_sc.language.generation import (GenerationRow, check_sampling_args, sample_from_record,
                                          sample_record, stop_strings)
from moral_sc.language.reward_head import save_model

# %%
#| hide
import inspect, sys, types

import torch
from fastcore.test import *
from moral_sc.foundation.runs import open_run
from moral_sc.language.chat import Prompt
from moral_sc.language.stub_models import random_model
from moral_sc.language.generation import sample
from moral_sc.language.loading import load


# %% [markdown]
# Reasoning before answering takes up to 256 tokens a question, and on a GPU nearly all of the time
# of a run. vLLM has faster kernels for this than [our own sampler](40_generation.ipynb). Scoring
# does not use vLLM, because it needs exact probabilities of given words in one forward pass.
#
# ::: {.callout-note}
# We had neither vLLM nor a GPU when we wrote this page. It proves the adapter against a stand-in
# with vLLM's interface; the adapter has never been run on vLLM itself.
# :::
#
# Two things differ from our sampler. A row has its own seed, but vLLM draws its own random numbers
# from it, so the rows differ from ours and are stored under other names. vLLM's kernels round
# differently as a batch fills up, so the same row may end differently in another run; stored
# rows do not change.

# %%
#| export
def start_vllm(
    lm,                 # A loaded model
    memory:float=.5,    # Share of the GPU's memory that vLLM may take
    **kw,               # Further arguments of vLLM's `LLM`
):                      # A vLLM `LLM`
    "Start vLLM on the weights of a model as they are in memory, by a temporary copy on disk"
    try: from vllm import LLM
    except ImportError:
        raise ConfigError('This needs vLLM, which needs a GPU: pip install '
                          '"moral_sc[vllm]".') from None
    with tempfile.TemporaryDirectory() as d:
        return LLM(model=str(save_model(lm, Path(d)/'model')), enable_prefix_caching=True,
                   dtype=str(lm.dtype).removeprefix('torch.'), gpu_memory_utilization=memory, **kw)


# %% [markdown]
# vLLM takes token ids and returns token ids. The text, the cut at a stop string and the number of
# ids before it are computed by the code that does this for our own rows, so a second stage can
# continue from either.

# %%
#| export
def _params(name, options):
    from vllm import SamplingParams
    logprobs = 0 if options['logprobs'] else None
    return SamplingParams(seed=int(name[:8], 16), temperature=options['temperature'],
                          top_p=options['top_p'], max_tokens=options['new'],
                          stop=options['stop'] or None, logprobs=logprobs,
                          skip_special_tokens=False)

def _to_sample(lm, p, out, options):
    "A `Sample` from what vLLM returns for one row"
    row = GenerationRow(lm, p, [0]*options['new'], options['stop'], eos_ids(lm))
    for t in out.token_ids:
        if not row.push(t): break
    row.finish = row.finish or 'eos' # vLLM has its own list of end tokens
    if out.logprobs:
        row.logprobs = [d[t].logprob for d,t in zip(out.logprobs, row.ids)]
    return row.sample(options['seed'])

def _sample_rows(llm, lm, rows, options):
    "Samples of some rows, name to prompt"
    ids = [dict(prompt_token_ids=list(p.ids)) for p in rows.values()]
    outs = llm.generate(ids, [_params(k, options) for k in rows], use_tqdm=False)
    return {k:_to_sample(lm, p, o.outputs[0], options) for (k,p),o in zip(rows.items(), outs)}

@checked
def sample_vllm(
    llm,                    # From `start_vllm`
    lm,
    prompts:list,           # Strings or `Prompt`s
    max_new_tokens:int=256,
    temperature:float=1.,
    top_p:float=1.,
    stop=(),
    seed:int=0,
    keys:list=None,
    run=None,
    progress=None,          # True: a bar; or a function (rows done, rows in all)
    logprobs=False,         # True: keep log-probabilities at temperature 1
    portion:int=1024,       # Rows stored at a time
)->list:                    # One `Sample` a prompt, in order
    "Sample an answer to each prompt by vLLM, as `sample` does"
    keys = [str(k) for k in (range(len(prompts)) if keys is None else keys)]
    check_sampling_args(prompts, keys, max_new_tokens, temperature, top_p, logprobs)
    if logprobs=='tempered':
        raise ConfigError('sample_vllm: vLLM returns log-probabilities at temperature 1 only; give '
                          'logprobs=True, or use `sample`.')
    ps = [encode_prompt(lm, p) for p in prompts]
    stop = stop_strings(stop)
    if ps: check_rows(lm, [p.ids for p in ps], max_new_tokens)
    options = dict(new=max_new_tokens, temperature=temperature, top_p=top_p, stop=stop,
               seed=seed, logprobs=logprobs, model=lm.identity,
                engine='vllm')
    rows = {content_key(sample=k, ids=p.ids, **options):(k,p) for k,p in zip(keys, ps)}
    with run_or_temporary(run) as r, progress_callback(progress, 'texts') as report:
        _sample_missing(llm, lm, r, rows, options, portion, report)
        return [sample_from_record(r.get(n)) for n in rows]

def _sample_missing(llm, lm, run, rows, options, portion, progress):
    names = list(rows)
    parts = [names[n:n+portion] for n in range(0, len(names), portion)]
    for n in run.blocks(parts):
        samples = _sample_rows(llm, lm, {k:rows[k][1] for k in run.missing(parts[n])}, options)
        run.put_many([(k, sample_record(rows[k][0], s)) for k,s in samples.items()])
        if progress: progress(min((n+1)*portion, len(names)), len(names))


# %% [markdown]
# `use_vllm` gives a model a method `sample` with the arguments of our function. It stores its rows in
# the same run.

# %%
#| export
def use_vllm(
    lm,
    llm=None, # From `start_vllm`; default: a new one
    **kw,     # For `start_vllm`
):            # The same model
    "Make `lm.sample` sample by vLLM"
    lm.sample = partial(sample_vllm, llm or start_vllm(lm, **kw), lm)
    return lm


# %% [markdown]
# ## Proof on a stand-in
#
# The stand-in has the names, arguments and results of vLLM's `LLM.generate` and `SamplingParams`
# and always takes the most likely token. At temperature 0 the adapter must therefore return what
# our sampler returns, in every field.

# %%
class SamplingParams:
    def __init__(self, temperature, top_p, max_tokens, stop, seed, logprobs,
                 skip_special_tokens): self.__dict__.update(locals())

class LLM:
    calls = 0
    def __init__(self, lm): self.lm = lm
    def generate(self, prompts, sampling_params, use_tqdm=True):
        LLM.calls += 1
        rows = [Prompt('', tuple(p['prompt_token_ids'])) for p in prompts]
        s = sampling_params[0] # They differ in the seed only
        rs = sample(self.lm, rows, s.max_tokens, 0, stop=s.stop or (), logprobs=True)
        return [types.SimpleNamespace(outputs=[self.out(r, s)]) for r in rs]
    def out(self, r, s):
        lps = [{t:types.SimpleNamespace(logprob=v)} for t,v in zip(r.ids, r.logprobs)]
        return types.SimpleNamespace(
            text=r.text, token_ids=list(r.ids),
            finish_reason='length' if r.finish=='length' else 'stop',
            logprobs=lps if s.logprobs is not None else None)

tiny = random_model('llama')
with expect_fail(ConfigError, contains='moral_sc[vllm]'): start_vllm(tiny)
sys.modules['vllm'] = types.SimpleNamespace(LLM=LLM, SamplingParams=SamplingParams)

# %%
texts = ['Once', 'The answer, as everybody knows, is', 'Well then:']
options = dict(max_new_tokens=24, temperature=0, stop=['e'], logprobs=True)
ours = sample(tiny, texts, **options)
theirs = sample_vllm(LLM(tiny), tiny, texts, **options)
test_eq(ours, theirs)
theirs

# %% [markdown]
# Rows that a run contains are not sampled again, and they are not confused with rows of our own
# sampler.

# %%
options['logprobs'] = False
ours = sample(tiny, texts, **options)
with tempfile.TemporaryDirectory() as d, open_run(d, {}) as run:
    sample(tiny, texts, run=run, **options)
    LLM.calls = 0
    a = sample_vllm(LLM(tiny), tiny, texts[:2], run=run, **options)
    b = sample_vllm(LLM(tiny), tiny, texts, run=run, **options)
    c = sample_vllm(LLM(tiny), tiny, texts, run=run, **options)
    test_eq((a, b, c), (ours[:2], ours, ours))
    test_eq((LLM.calls, len(run)), (2, 6))
test_eq(use_vllm(random_model('llama'), LLM(tiny)).sample(texts, **options), ours)


# %% [markdown]
# Every option of `sample` is honoured or refused: `after`, `values`, `batch`, `max_tokens` and tempered
# log-probabilities are those of our sampler only. vLLM gets the weights as they are in memory.

# %%
def is_refused(f, k, value):
    "Return whether an option is refused before anything is sampled"
    try: f(texts, **{k: value})
    except ConfigError: return True
    return False

given = dict(max_new_tokens=0, temperature=-1, top_p=2, stop=(), seed=-1, keys=['a'], run=None,
             progress='x', batch=8, max_tokens=99, logprobs='tempered', values=len, after=[None]*3)
test_eq({*given}, {*inspect.signature(sample).parameters}-{'lm', 'prompts'})
for k,v in given.items():
    if k in ('stop', 'run'): continue # Honoured, as the comparison above shows
    assert is_refused(partial(sample_vllm, LLM(tiny), tiny), k, v), k
changed = random_model('llama')
with torch.no_grad(): changed.model.lm_head.weight += .1*tiny.model.lm_head.weight.flip(0)
sys.modules['vllm'].LLM = lambda model, dtype, **kw: LLM(load(model, dtype, 'cpu'))
options['stop'] = ()
expected = sample(changed, texts, **options)
test_eq(use_vllm(changed).sample(texts, **options), expected)
test_ne([s.ids for s in expected], [s.ids for s in sample(tiny, texts, **options)])

# %%
#| hide
del sys.modules['vllm']
