# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %%

# %% [markdown]
# # Sampling with vLLM
#
# > The same rows from a faster engine, where there is a GPU and vLLM on it.

# %%
#| default_exp language.vllm

# %%
#| export
from functools import partial

from moral_sc.foundation.errors import ConfigError
from moral_sc.foundation.runs import content_key, run_or_temporary
from moral_sc.language.chat import encode_prompt
from moral_sc.language.models import eos_ids
from moral_sc.language.generation import _check_args, _pack, _Row, _unpack
from moral_sc.language.scoring import check_context_length
from moral_sc.language.weights import find_weights

# %%
#| hide
import sys, tempfile, types
from fastcore.test import *
from moral_sc.foundation.runs import open_run
from moral_sc.language.chat import Prompt
from moral_sc.language.stub_models import random_model
from moral_sc.language.generation import sample


# %% [markdown]
# Reasoning before answering costs up to 256 tokens a question, and on a GPU nearly all of the time
# of a run. vLLM admits new rows as others end and shares the cache of common beginnings, which is
# what [our own sampler](40_generation.ipynb) does not do. Scoring stays with us: it needs
# probabilities of given words, exact and in one pass.
#
# ::: {.callout-note}
# Neither vLLM nor a GPU was at hand when this page was written. What is proved here is the adapter,
# against a stand-in with vLLM's interface; it has never been run on the real engine.
# :::
#
# Two things differ from our sampler. A row has its own seed, but vLLM makes its own random
# numbers from it, so rows are others than ours; they are kept under other names. And its kernels
# round differently as a batch is filled, so the same row may end differently in another run; what
# a run has kept, it keeps.

# %%
#| export
def start_vllm(
    lm,                 # A loaded model; vLLM loads the same weights once more
    memory:float=.5,    # Share of the GPU's memory that vLLM may take
    **kw,               # Further arguments of vLLM's `LLM`
):                      # A vLLM `LLM`
    "Start vLLM on the weights of a model"
    try: from vllm import LLM
    except ImportError:
        raise ConfigError('This needs vLLM, which needs a GPU: pip install '
                          '"moral_sc[vllm]".') from None
    dtype = str(lm.dtype).removeprefix('torch.')
    return LLM(model=str(find_weights(lm.name)), dtype=dtype, enable_prefix_caching=True,
               gpu_memory_utilization=memory, **kw)


# %% [markdown]
# vLLM gets token ids and gives token ids. The text, the cut at a stop string and the number of
# ids before it are then worked out by the code that does so for our own rows, so a second stage
# can go on from either.

# %%
#| export
def _params(name, how):
    from vllm import SamplingParams
    logprobs = 0 if how['logprobs'] else None
    return SamplingParams(seed=int(name[:8], 16), temperature=how['temperature'],
                          top_p=how['top_p'], max_tokens=how['new'],
                          stop=how['stop'] or None, logprobs=logprobs,
                          skip_special_tokens=False)

def _told(lm, p, out, how):
    "A `Sample` from what vLLM returns for one row"
    row = _Row(lm, p, [0]*how['new'], how['stop'], eos_ids(lm))
    for t in out.token_ids:
        if not row.push(t): break
    row.finish = row.finish or 'eos' # A token that ends answers by vLLM's own list
    if out.logprobs:
        row.logps = [d[t].logprob for d,t in zip(out.logprobs, row.ids)]
    return row.sample(how['seed'])

def _write(llm, lm, rows, how):
    "Samples of some rows, name to prompt"
    ids = [dict(prompt_token_ids=list(p.ids)) for p in rows.values()]
    outs = llm.generate(ids, [_params(k, how) for k in rows], use_tqdm=False)
    return {k:_told(lm, p, o.outputs[0], how) for (k,p),o in zip(rows.items(), outs)}

def sample_vllm(
    llm,                    # From `engine`
    lm,
    prompts:list,           # Strings or `Prompt`s
    max_new_tokens:int=256,
    temperature:float=1.,
    top_p:float=1.,
    stop=(),
    seed:int=0,
    keys:list=None,
    run=None,
    progress=None,
    logprobs:bool=False,
    portion:int=1024,       # Rows between two writes to disk
)->list:                    # One `Sample` a prompt, in order
    "As `sample`, by vLLM"
    keys = [str(k) for k in (range(len(prompts)) if keys is None else keys)]
    _check_args(prompts, keys, max_new_tokens, temperature, top_p)
    ps = [encode_prompt(lm, p) for p in prompts]
    stop = [stop] if isinstance(stop, str) else list(stop)
    if ps: check_context_length(lm, [p.ids for p in ps], max_new_tokens)
    how = dict(new=max_new_tokens, temperature=temperature, top_p=top_p, stop=stop,
               seed=seed, logprobs=logprobs, model=[lm.name, lm.source, str(lm.dtype)], engine='vllm')
    rows = {content_key(sample=k, ids=p.ids, **how):(k,p) for k,p in zip(keys, ps)}
    with run_or_temporary(run) as r:
        _fill(llm, lm, r, rows, how, portion, progress)
        return [_unpack(r.get(n)) for n in rows]

def _fill(llm, lm, run, rows, how, portion, progress):
    names = list(rows)
    parts = [names[n:n+portion] for n in range(0, len(names), portion)]
    for n in run.blocks(parts):
        got = _write(llm, lm, {k:rows[k][1] for k in run.missing(parts[n])}, how)
        run.put_many([(k, _pack(rows[k][0], s)) for k,s in got.items()])
        if progress: progress(min((n+1)*portion, len(names)), len(names))


# %% [markdown]
# `use_vllm` gives a model a `sample` of its own, which takes the arguments of ours and keeps its rows
# in the same run.

# %%
#| export
def use_vllm(
    lm,
    llm=None, # From `engine`; by default one is started
    **kw,     # For `engine`
):            # The same model
    "Let a model's reasoning be sampled by vLLM"
    lm.sample = partial(sample_vllm, llm or start_vllm(lm, **kw), lm)
    return lm


# %% [markdown]
# ## Proof by a stand-in
#
# The stand-in has the names, arguments and results of vLLM's `LLM.generate` and `SamplingParams`;
# inside, it takes the likeliest token each time. At temperature 0 the adapter must then
# return what our sampler returns, in every field.

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
        s = sampling_params[0] # Alike but for the seed
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
how = dict(max_new_tokens=24, temperature=0, stop=['e'], logprobs=True)
mine = sample(tiny, texts, **how)
theirs = sample_vllm(LLM(tiny), tiny, texts, **how)
test_eq(mine, theirs)
theirs

# %% [markdown]
# Rows that a run holds are not sampled again, and rows of our own sampler are not mistaken for
# them.

# %%
how['logprobs'] = False
mine = sample(tiny, texts, **how)
with tempfile.TemporaryDirectory() as d, open_run(d, {}) as run:
    sample(tiny, texts, run=run, **how)
    LLM.calls = 0
    a = sample_vllm(LLM(tiny), tiny, texts[:2], run=run, **how)
    b = sample_vllm(LLM(tiny), tiny, texts, run=run, **how)
    c = sample_vllm(LLM(tiny), tiny, texts, run=run, **how)
    test_eq((a, b, c), (mine[:2], mine, mine))
    test_eq((LLM.calls, len(run)), (2, 6))
test_eq(use_vllm(random_model('llama'), LLM(tiny)).sample(texts, **how), mine)

# %%
#| hide
del sys.modules['vllm']
