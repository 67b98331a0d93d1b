# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Inspect tasks
#
# > BBQ, Winogender and admissions as tasks of Inspect, scored by our metrics.

# %%
#| default_exp bias.inspect_tasks
#| needs: inspect_ai

# %% [markdown]
# After `pip install moral_sc inspect-ai`, Inspect [@inspect2024] finds three tasks in this package:
#
# ```sh
# inspect eval moral_sc/bbq --model openai/gpt-4o-mini -T condition=q+if
# inspect eval moral_sc/admissions --model moral_sc/smollm2-135m-instruct -T limit=400
# ```
#
# The second names a model that this package loads itself. It is asked as by `evaluate` in mode `plain`, with the same
# results up to rounding. A model behind an API gets the question without the beginning of the answer, and a request to begin with these words; its answer is
# read from the probabilities of the first tokens if Inspect returns them, otherwise from its text.
#
# This page needs Inspect; without it, it is not run.

# %%
#| export
import math, secrets
from functools import cache

import numpy as np
from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (ChatCompletionChoice, ChatMessageAssistant, ChatMessageUser,
                              GenerateConfig, Logprob, Logprobs, ModelAPI, ModelOutput, TopLogprob,
                              modelapi)
from inspect_ai.scorer import SampleScore, Score, metric, scorer
from inspect_ai.solver import solver
from moral_sc.bias.asking import STOP, answer_key, reasoning_key
from moral_sc.bias.tasks import answer_turns, build_documents, task_answer, task_metrics
from moral_sc.foundation.errors import DataError
from moral_sc.language.api_models import parse_reply
from moral_sc.language.chat import render, request_prefill
from moral_sc.language.generation import append_turn, sample
from moral_sc.language.loading import load
from moral_sc.language.scoring import option_logprobs

# %%
#| hide
import tempfile
from pathlib import Path
from fastcore.test import *
from inspect_ai import eval as run_task
from inspect_ai.model import get_model
from moral_sc.bias.evaluation import evaluate
from moral_sc.bias.logs import read_log


# %% [markdown]
# ## Models of this package
#
# The provider `moral_sc` gets the turns, the beginning of the answer and its possible continuations, and returns their
# log-probabilities. Without continuations it samples a text: for a question of ours with the random numbers and token ids of
# `evaluate`, otherwise with new random numbers, unless Inspect names a seed.

# %%
#| export
@cache
def _model(name): return load(name)

def _choice(text, lps, options):
    top = [TopLogprob(token=o, logprob=float(x)) for o,x in zip(options, lps)]
    best = Logprob(token=text, logprob=float(max(lps)), top_logprobs=top)
    return ChatCompletionChoice(message=ChatMessageAssistant(content=text, source='generate'),
                                stop_reason='stop', logprobs=Logprobs(content=[best]))

@modelapi(name='moral_sc')
class LocalModel(ModelAPI):
    "A model that this package loads"
    def __init__(self, model_name, base_url=None, api_key=None, config=None, **args):
        super().__init__(model_name, base_url, api_key, [], config or GenerateConfig())
        self.lm = _model(model_name)
        self.reasoning = {} # Text up to the end of a sample: its prompt, the sample

    def max_connections(self): return 1

    async def generate(self, input, tools, tool_choice, config):
        *turns,last = [('human' if m.role=='user' else m.role, m.text) for m in input]
        if last[0]=='human': turns,last = [*turns, last],('assistant', '')
        prompt = render(self.lm, turns, prefill=last[1])
        body = config.extra_body or {}
        if 'options' not in body: return self._sample(prompt, config, body.get('question'))
        if body['after'] in self.reasoning: # The same token ids, not those of the text
            first,s = self.reasoning[body['after']]
            prompt = append_turn(self.lm, first, s, prompt.text[len(body['after']):])
        options = body['options']
        lps = option_logprobs(self.lm, [prompt], [options])[0]
        return ModelOutput(model=self.model_name,
                           choices=[_choice(options[int(np.argmax(lps))], lps, options)])

    def _sample(self, prompt, config, question):
        tokens = config.max_tokens or 256
        seed = secrets.randbelow(2**31) if config.seed is None else config.seed
        keys = None
        if question: # Its options, and the number of the sample
            key = answer_key(self.lm.identity, prompt, tuple(question['options']))
            keys = [reasoning_key(key, question['sample'], seed, tokens)]
        temperature = 1. if config.temperature is None else config.temperature
        s = sample(self.lm, [prompt], max_new_tokens=tokens, stop=STOP, seed=seed, keys=keys,
                   temperature=temperature)[0]
        if question: self.reasoning[prompt.text+s.text] = prompt,s
        return ModelOutput.from_content(self.model_name, s.text)


# %% [markdown]
# ## Questions and answers

# %%
#| export
def _messages(turns, prefill, local):
    "Return messages that end with the beginning of the answer, or with a request for it"
    if not local: turns = [*turns[:-1], [turns[-1][0], request_prefill(turns[-1][1], prefill)]]
    of = dict(human=ChatMessageUser, assistant=ChatMessageAssistant)
    out = [of[r](content=t) for r,t in turns]
    return [*out, ChatMessageAssistant(content=prefill)] if local and prefill else out

@solver
def ask_question(
    reasoning_tokens:int=256, # At most so many tokens of reasoning
    top_logprobs:int=20,      # Candidates that an API is asked for
):
    "Ask a question, after some reasoning if the condition has it"
    async def solve(state, generate):
        d = state.metadata
        local = state.model.api=='moral_sc'
        turns,prefill = d['turns'],d['prefill']
        d['sample'] = state.epoch-1
        if d['is_reasoning']:
            state.messages = _messages(turns, prefill, local)
            question = dict(options=d['choices'], sample=d['sample'])
            kw = dict(extra_body=dict(question=question)) if local else {}
            state = await generate(state, max_tokens=reasoning_tokens, temperature=1., **kw)
            d['reasoning'] = state.output.completion
            turns,prefill = answer_turns(d, state.output.completion)
            d['last_prefill'] = prefill
        state.messages = _messages(turns, prefill, local)
        if local:
            after = d['prompt']+d.get('reasoning', '')
            return await generate(state, extra_body=dict(options=d['choices'], after=after))
        return await generate(state, max_tokens=16+len(prefill)//2, temperature=0.,
                              logprobs=True, top_logprobs=top_logprobs)
    return solve

def _logprobs(output, d, local):
    "Return the log-probability of each choice; nan if the reply is not understood"
    content = output.choices[0].logprobs.content if output.choices[0].logprobs else []
    if local: return [t.logprob for t in content[0].top_logprobs]
    tokens = [[c.token, c.logprob, [[t.token, t.logprob] for t in c.top_logprobs or []]]
              for c in content]
    prefill = d.get('last_prefill', d['prefill'])
    reply = dict(text=output.completion, tokens=tokens)
    return list(parse_reply(reply, prefill, d['choices']).logprobs)

@metric(scores='unreduced') # Epochs are samples of reasoning
def bias_metrics():
    "Compute the metrics of this package over all categories"
    def compute(scores:list[SampleScore]): # Inspect looks at the type
        answers = [s.score.metadata for s in scores]
        overall = 'micro' if answers[0]['benchmark'].startswith('bbq') else 'all'
        try: values = task_metrics(answers)
        except DataError: return {} # Answers are missing, as in the middle of an evaluation
        return {m:float(v) for (c,m),v in values.items() if c==overall}
    return compute

@scorer(metrics=[bias_metrics()])
def choice_probabilities():
    "Read the probability of each choice"
    async def score(state, target):
        d = state.metadata
        lps = _logprobs(state.output, d, state.model.api=='moral_sc')
        understood = not any(map(math.isnan, lps))
        letter = 'ABC'[int(np.argmax(lps))] if understood else ''
        value = 'C' if letter and letter==target.text else 'I'
        return Score(value=value, answer=letter, metadata=task_answer(d, lps))
    return score

def _task(benchmark, condition, like, limit, seed, orders, reasoning_tokens):
    docs = build_documents(benchmark+'-like'*like, condition, limit, seed, orders)
    samples = [Sample(id=f"{d['id']}, order {d['order']}", metadata=d, input=_text(d),
                      choices=[d[f'ans{k}'] for k in range(3)] if 'ans0' in d else d['choices'],
                      target='ABC'[d['label']] if 'ans0' in d else '') for d in docs]
    return Task(dataset=MemoryDataset(samples, name=docs[0]['benchmark']),
                solver=ask_question(reasoning_tokens), scorer=choice_probabilities(),
                config=GenerateConfig(seed=seed))

def _text(d):
    if 'context' not in d: return d['prompt']
    return f"Context: {d['context']}\n\nQuestion: {d['question']}"

@task
def bbq(condition:str='q', like:bool=False, limit:int|None=None, seed:int=0, orders:int=1,
        reasoning_tokens:int=256):
    "Ask BBQ; `like`: questions of the package in its format"
    return _task('bbq', condition, like, limit, seed, orders, reasoning_tokens)

@task
def winogender(condition:str='q', like:bool=False, limit:int|None=None, seed:int=0,
               reasoning_tokens:int=256):
    "Ask Winogender; `like`: sentences of the package in its format"
    return _task('winogender', condition, like, limit, seed, 1, reasoning_tokens)

@task
def admissions(condition:str='q', limit:int|None=None, seed:int=0, reasoning_tokens:int=256):
    "Ask about applicants"
    return _task('admissions', condition, False, limit, seed, 1, reasoning_tokens)


# %% [markdown]
# The results of a model of this package are those of `evaluate`. Inspect computes metrics after each answer; those of admissions
# need each profile as white and as Black, and the log has none where one of the two is missing. For eight students no metric
# differed by more than $1.4\cdot10^{-5}$ under `q`, `q+if` or `q+if+cot`.

# %%
folder = tempfile.mkdtemp()
model = get_model('moral_sc/smollm2-135m-instruct')
def run(t, **kw):
    return run_task(t, model=model, log_dir=folder, log_format='json', display='none', **kw)[0]

def check(log, name, condition, **kw):
    e = evaluate(_model('smollm2-135m-instruct'), name, [condition], max_tokens=1024, **kw).metrics
    got = log.results.scores[0].metrics
    for r in e[e.category.isin(['micro', 'all']) & e.value.notna()].itertuples():
        test_close(got[r.metric].value, r.value, 1e-4)

log = run(bbq(condition='q+if', like=True, limit=8, orders=3))
check(log, 'bbq-like', 'q+if', limit=8, orders=3)
{k:round(m.value, 4) for k,m in log.results.scores[0].metrics.items()}

# %%
check(run(winogender(condition='q', like=True, limit=4)), 'winogender-like', 'q', limit=4)
check(run(admissions(condition='q+if', limit=4)), 'admissions', 'q+if', limit=4)

# %% [markdown]
# Its log is read like [those of other tools](56_logs.ipynb), with options in three orders. Answers of an API model in words are read as well.

# %%
test_eq(len(read_log(next(Path(folder).glob('*bbq*.json'))).items), 24)
asked = dict(prefill='The answer is (', choices=['a', 'b', 'c'])
def answer(text): return _logprobs(ModelOutput.from_content('m', text), asked, False)
test_eq(answer('The answer is (b)'), [-math.inf, 0., -math.inf])
assert all(map(math.isnan, answer('No idea.')))

# %% [markdown]
# With reasoning there are two stages. The samples of reasoning are those of `evaluate`, and
# Inspect's epochs are further samples. In a longer run, one of 36 samples of 24 tokens differed
# from that of `evaluate`: prompts are sampled one by one here, and rounding can exchange two
# tokens.

# %%
log = run(bbq(condition='q+if+cot', like=True, limit=4, reasoning_tokens=8), epochs=2)
check(log, 'bbq-like', 'q+if+cot', limit=4, max_new_tokens=8, samples=2)
first,second = ([s.metadata['reasoning'] for s in log.samples if s.epoch==k] for k in (1, 2))
assert any(first) and first!=second
