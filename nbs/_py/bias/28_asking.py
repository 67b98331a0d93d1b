# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Scoring questions
#
# > Scoring of the questions of an evaluation, with answers saved as they are computed.

# %%
#| default_exp bias.asking

# %% [markdown]
# The answer to a question is the distribution over a few strings that may follow an opening such as
# "The answer is (", so no text has to be parsed. This page builds the questions of every condition,
# samples reasoning where a condition asks for it, and saves answers so that long runs survive a crash.

# %%
#| export
from dataclasses import dataclass, replace
from functools import partial

import numpy as np, pandas as pd
from moral_sc.bias.bbq.scoring import orders_of
from moral_sc.bias.conditions import build_prompt, load_stimuli
from moral_sc.foundation.runs import content_key
from moral_sc.language.generation import append_turn, sample
from moral_sc.language.stub_models import stub_model
from moral_sc.language.scoring import option_logprobs

# %%
#| hide
import tempfile
from fastcore.test import *
from moral_sc.bias import bbq
from moral_sc.bias.bbq.items import stratified
from moral_sc.bias.bbq.metrics import BBQ
from moral_sc.foundation.runs import open_run
from moral_sc.language.stub_models import letter_prior_model, random_model

few = stratified(bbq.load(source='ours'), 96)


# %% [markdown]
# ## Questions
#
# An answer depends on the model, the token ids of the prompt and the strings that may follow, and is
# saved under a hash of all three. A model is identified by digests of its weights and tokenizer and by its
# number type, so a folder of weights that were trained further counts as another model.

# %%
#| export
@dataclass
class Question:
    "One item under one condition, in one option order"
    item:object         # As in the file
    displayed:object    # With its options in the displayed order
    condition:str
    order:int           # Number of the option order
    prompt:object
    options:tuple       # Strings that may follow, one per answer
    key:str=''          # Under which its answer is saved
    n:int=0             # Number of the reasoning sample
    sample:object=None  # Reasoning, in conditions with two stages

def answer_key(identity, prompt, options):
    "Return the key under which an answer is saved"
    return content_key(model=identity, ids=prompt.ids, options=options)

def option_orders(
    b,       # A `Benchmark`
    n:int=1, # 1 as in the file, 3 cyclic, 6 all
)->list:
    "Return the option orders; one, if the benchmark shows no options"
    return orders_of(n) if b.reorder else orders_of(1)

def build_questions(
    lm,
    b,               # A `Benchmark`
    items:list,
    conditions,      # Names of conditions
    n_orders:int=1,  # Option orders to ask in: 1, 3 or 6
    mode:str='plain',# How turns are marked; see `render`
)->list:             # Of `Question`; the first stage, in conditions with two
    "Build all questions of an evaluation"
    out = []
    identity = lm.identity
    for c in conditions:
        for k,order in enumerate(option_orders(b, n_orders)):
            for i in items:
                displayed = b.reorder(i, order) if b.reorder else i
                p = build_prompt(lm, b.stimuli, c, b.fields(displayed), mode=mode)
                o = b.options(displayed)
                out.append(Question(i, displayed, c, k, p, tuple(o), answer_key(identity, p, o)))
    return out


# %%
asked = build_questions(letter_prior_model(dict(a=.2, b=.3, c=.5)), BBQ, few[:4], ['q','q+if'], 3)
print(len(asked), asked[0].prompt.text)


# %% [markdown]
# ## Stub models
#
# To test the rest of the pipeline, and to replace models whose weights are not available, a stub model
# answers by a rule. It is a model like any other, rendered, tokenised, padded and run; only its logits
# come from a function that finds the question and its displayed options in the text.

# %%
#| export
def request_stub_model(
    rule,       # (item, text after its last option) -> probabilities of its three options
    items:list, # The questions it can answer
    name:str,
):              # An `LM`
    "Return a stub model that answers BBQ's questions by a rule about question and request"
    items_by_text = {f'{i.context} {i.question}': i for i in items}
    def fn(text):
        if not text.endswith('answer is ('): return {'': 1.} # Called for each byte
        body,_,rest = text.rsplit('Human: ', 1)[-1].partition(' (a) ')
        if body not in items_by_text: return {'': 1.}
        item = items_by_text[body]
        a,_,rest = rest.partition('\n\nAssistant:')[0].partition(' (b) ')
        b,_,rest = rest.partition(' (c) ')
        c = max((o for o in item.options if rest.startswith(o)), key=len)
        p = dict(zip(item.options, rule(item, rest.removeprefix(c))))
        return {l:float(p[o]) for l,o in zip('abc', (a, b, c)) if p[o]}
    return stub_model(fn, name=name)

def bbq_stub_model(
    rule,              # (item, instructed) -> probabilities of its three options
    items:list,        # The questions it can answer
    name:str='',       # Default: that of the rule
):                     # An `LM`
    "Return a stub model that answers BBQ's questions by a rule"
    instruction = load_stimuli()['bbq']['texts']['instruction']
    answer = lambda item, request: rule(item, instruction in request)
    return request_stub_model(answer, items, name or rule.__name__)


# %%
def stereotyper(item, instructed):
    p = [.1, .1, .1]
    p[item.unknown if instructed else item.biased] = .8
    return p

lm = bbq_stub_model(stereotyper, few)
q,instructed = build_questions(lm, BBQ, few[:1], ['q','q+if'])
p = np.exp(option_logprobs(lm, [q.prompt, instructed.prompt], ['a','b','c']))
p.round(3), few[0].biased, few[0].unknown

# %%
test_eq(list(p.argmax(1)), [few[0].biased, few[0].unknown])


# %% [markdown]
# ## Saved answers
#
# Prompts are scored in portions, and each portion is saved before the next begins. Prompts are sorted,
# so that prompts with a shared prefix are scored together: the four questions of a scene, its
# conditions and its option orders. The portions depend on the whole list of questions and not on what
# has already been saved. Batches are therefore fixed in advance, and a resumed run reproduces the same
# rounding. Processes that were launched together share the portions; see
# [runs](../foundation/20_runs.ipynb).

# %%
#| export
def score_questions(
    lm,
    questions:list,     # Of `Question`; the last stage, in conditions with two
    run,                # Where answers are saved
    names,              # Of the answers: ['a', 'b', 'c']
    portion:int=128,    # Prompts between two writes to disk
    max_tokens:int=4096,# Tokens in one forward pass, padding included
    progress=None,      # Called with (saved answers, all answers)
)->pd.DataFrame:        # [question, answer], natural log-probabilities
    "Score each answer after each prompt"
    todo = {q.key:q for q in questions}
    keys = sorted(todo, key=lambda k: (todo[k].prompt.ids, k))
    portions = [keys[n:n+portion] for n in range(0, len(keys), portion)]
    for n in run.blocks(portions):
        qs = [todo[k] for k in portions[n]]
        lp = _logprobs(lm, [q.prompt for q in qs], [list(q.options) for q in qs], max_tokens, run)
        run.put_many([(q.key, dict(zip(names, row.tolist()))) for q,row in zip(qs, lp)])
        if progress: progress(min((n+1)*portion, len(keys)), len(keys))
    return run.table([q.key for q in questions])[list(names)]

def _logprobs(lm, prompts, options, max_tokens, run):
    if getattr(lm, 'remote', False): # Behind an API; saves the replies as well
        return lm.option_logprobs(prompts, options, run)
    return option_logprobs(lm, prompts, options, max_tokens=max_tokens)


# %% [markdown]
# ## Reasoning
#
# Reasoning is sampled to at most 256 tokens, as in the paper, and cut where the model begins a turn of
# the human. The paper states neither a temperature nor the number of samples; we sample at temperature
# 1, once per question by default. The second stage continues the sampled token ids, because their text
# could be tokenised differently, and it reuses the KV cache of the first. Samples are saved in the same
# run as the answers.

# %%
#| export
STOP = ('\n\nHuman:', '\n\nAssistant:')

def reasoning_key(
    key:str,            # Of the question, see `answer_key`
    n:int,              # Number of the sample
    seed:int,
    max_new_tokens:int,
)->str:
    "Return the key that fixes the random numbers of a reasoning sample"
    return content_key(first=key, n=n, seed=seed, new=max_new_tokens)

def sample_reasoning(
    lm,
    b,                     # A `Benchmark`
    questions:list,        # In conditions with two stages
    run,
    mode:str='plain',
    seed:int=0,
    samples:int=1,         # Reasoning samples per question
    max_new_tokens:int=256,
    temperature:float=1.,
    progress=None,
)->list:                   # Of `Question` at its second stage, one per sample
    "Sample reasoning and build the second stage of each question"
    repeated = [replace(q, n=n) for n in range(samples) for q in questions]
    unique = {(q.key, q.n):q for q in repeated} # Repeated questions are sampled once
    first = {k:q.prompt for k,q in unique.items()}
    keys = [reasoning_key(k, n, seed, max_new_tokens) for k,n in first]
    write = getattr(lm, 'sample', None) or partial(sample, lm) # API models have their own
    kw = {}
    if mode=='plain' and not hasattr(lm, 'sample'): # Stage 2 from the cache of stage 1
        kw = dict(after=[(_answer_turn(lm, b, q), q.options) for q in unique.values()])
    texts = write(list(first.values()), max_new_tokens=max_new_tokens, stop=STOP, seed=seed,
                  temperature=temperature, keys=keys, run=run, progress=progress, **kw)
    sample_of = dict(zip(first, texts))
    identity = lm.identity
    for q in repeated:
        s = sample_of[q.key, q.n]
        full = build_prompt(lm, b.stimuli, q.condition, b.fields(q.displayed), sample=s.text,
                            mode=mode)
        q.prompt = _second_stage(lm, q.prompt, s, full)
        q.sample = s
        q.key = answer_key(identity, q.prompt, q.options)
    computed = {q.key:dict(zip(b.answers, q.sample.after)) for q in repeated if q.sample.after}
    missing = [(k, computed[k]) for k in run.missing(computed)]
    if missing: run.put_many(missing)
    return repeated

def _answer_turn(lm, b, q):
    "Return the text between the reasoning and the answer"
    dialogue = build_prompt(lm, b.stimuli, q.condition, b.fields(q.displayed), sample='').text
    return dialogue[len(q.prompt.text):]

def _second_stage(lm, p, s, full):
    "Return the second stage with the sampled token ids, unless a template rewrote the text"
    prefix = p.text+s.text
    if getattr(lm, 'remote', False) or not full.text.startswith(prefix): return full
    return append_turn(lm, p, s, full.text[len(prefix):])


# %% [markdown]
# ## Records
#
# A record is one row per question, condition, option order and sample: the benchmark's columns for the
# item, and the log-probability of each answer.

# %%
#| export
def build_records(
    b,                  # A `Benchmark`
    questions:list,     # Of `Question`
    lp:pd.DataFrame,    # Of `score_questions`
)->pd.DataFrame:
    "Build the table of records"
    asked = pd.DataFrame([dict(benchmark=b.name, condition=q.condition, order=q.order,
                               sample=q.n) for q in questions])
    metadata = pd.DataFrame([b.metadata(q.item) for q in questions])
    lengths = [len(q.sample.ids) if q.sample else 0 for q in questions]
    lp = lp.reset_index(drop=True).add_prefix('lp_')
    d = pd.concat([asked, metadata, lp], axis=1).assign(mass=np.exp(lp).sum(axis=1), wrote=lengths)
    return b.add_columns(d) if b.add_columns else d


# %%
with open_run(tempfile.mkdtemp(), dict(page='asking')) as run:
    lp = score_questions(letter_prior_model(dict(a=.2, b=.3, c=.5)), asked, run, BBQ.answers)
records = build_records(BBQ, asked, lp)
records[['id','condition','order','letter','answer','p0','p1','p2','mass']].head(6).round(3)

# %% [markdown]
# The stub model always prefers the letter (c), which is another option in each order.

# %%
test_eq(set(records.letter), {'c'})
test_eq(list(records.answer[::4][:3]), [2,0,1])
test_close(records[['p0','p1','p2']].sum(1), 1)
test_close(np.exp(records[['lp_a','lp_b','lp_c']].iloc[0]), [.2,.3,.5], eps=1e-6)

# %% [markdown]
# Two models never share a saved answer, even for the same tokens.

# %%
a,b = (build_questions(random_model('llama', seed=k), BBQ, few[:4], ['q']) for k in (0,1))
test_eq(a[0].prompt.ids, b[0].prompt.ids)
test_ne(a[0].key, b[0].key)

# %% [markdown]
# The second stage of a reasoning condition contains the first one, token by token.

# %%
lm = random_model('llama')
first = build_questions(lm, BBQ, few[:2], ['q+if+cot'])
begins = [q.prompt for q in first]
with open_run(tempfile.mkdtemp(), dict(page='reason')) as run:
    second = sample_reasoning(lm, BBQ, first, run, max_new_tokens=12, samples=2)
assert second[0].sample.ids!=second[2].sample.ids
for p,q in zip(begins*2, second):
    kept = p.ids + q.sample.ids[:q.sample.kept]
    test_eq(q.prompt.ids[:len(kept)], kept)
    assert q.prompt.text.endswith('answer choice is (')
    with_text = build_prompt(lm, 'bbq', 'q+if+cot', q.displayed.fields, sample=q.sample.text)
    test_eq(q.prompt.text, with_text.text)
[len(p.ids) for p in begins], [len(q.prompt.ids) for q in second]

# %% [markdown]
# Scoring from the KV cache gives the same as scoring the whole dialogue.

# %%
again = option_logprobs(lm, [q.prompt for q in second], list(BBQ.answers))
test_close([q.sample.after for q in second], again, eps=1e-4)
