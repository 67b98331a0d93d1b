# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Asking
#
# > From questions to answers on disk: which to ask, in which words, and never twice.

# %%
#| default_exp bias.asking

# %% [markdown]
# The answer to a question is read off the probabilities of a few strings after an opening such
# as "The answer is (", so nothing has to be parsed and nothing is left to chance. What remains
# is to ask in every condition, to let the model reason where it is invited to, and to see that
# hours of answers survive a crash.

# %%
#| export
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b

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
# ## What is asked, and of whom
#
# An answer is determined by the model, the token ids it reads and the strings that may follow;
# the key under which it is kept is a hash of all three. A model is told by its name, its number type and a digest of its
# weights, so that a folder trained further is another model.

# %%
#| export
def is_remote(lm)->bool: # Behind an API; see `connect`
    "Whether a model is out of reach of the scoring here"
    return getattr(lm, 'remote', False)

def model_identity(lm)->dict:
    "What tells this model from others"
    if is_remote(lm): return lm.identity
    h = blake2b(digest_size=8)
    for name,p in lm.model.named_parameters():
        x = p.detach().flatten()
        h.update(f'{name}{tuple(p.shape)}'.encode())
        h.update(x[::max(1, len(x)//16)][:16].float().cpu().numpy().tobytes())
    dtype = str(lm.dtype).removeprefix('torch.')
    return dict(name=lm.name, dtype=dtype, weights=h.hexdigest())


# %%
#| export
@dataclass
class Question:
    "One item, asked once"
    item:object         # As in the file
    displayed:object        # As it is shown, its options perhaps in another order
    condition:str
    order:int           # Number of the option order
    prompt:object       # What the model reads
    options:tuple       # What may follow, one string for each answer
    key:str=''          # Under which its answer is kept
    n:int=0             # Number of the sample, where there are several
    sample:object=None  # What the model wrote first, where it reasons

def answer_key(identity, prompt, options):
    "An answer is determined by the model, what it reads, and what it may say"
    return content_key(model=identity, ids=prompt.ids, options=options)

def option_orders(
    b,       # A `Benchmark`
    n:int=1, # 1 as in the file, 3 cyclic, 6 all
)->list:
    "The option orders to ask in; one, where no options are on show"
    return orders_of(n) if b.reorder else orders_of(1)

def build_questions(
    lm,
    b,               # A `Benchmark`
    items:list,
    conditions,      # Names of conditions
    n_orders:int=1,  # Option orders to ask in: 1, 3 or 6
    mode:str='plain',# How turns are marked; see `render`
)->list:             # Of `Question`, first stage where there are two
    "Write out everything that will be asked"
    out = []
    identity = model_identity(lm)
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
# ## Respondents
#
# To prove what comes after, and to stand in where no weights are within reach, a respondent
# answers by a rule. It is a model like any other, rendered, tokenised, padded and run; only its
# logits come from a function that looks up, in the text it has read, which question it is asked
# and where the options are on show.

# %%
#| export
def _displayed_options(text):
    "The three options on show in the last question of a prompt, and what precedes them"
    body,_,rest = text.rsplit('Human: ', 1)[-1].partition(' (a) ')
    options = rest.partition('\n\nAssistant:')[0]
    a,_,r = options.partition(' (b) ')
    b,_,r = r.partition(' (c) ')
    return body, a, b, r

def bbq_stub_model(
    rule,              # (item, instructed) -> probabilities of its three options
    items:list,        # The questions it can answer
    name:str='',       # By default that of the rule
):                     # An `LM`
    "A model that answers BBQ's questions by a rule"
    items_by_text = {f'{i.context} {i.question}': i for i in items}
    instruction = load_stimuli()['bbq']['texts']['instruction']
    def fn(text):
        body,*displayed = _displayed_options(text)
        if body not in items_by_text or not text.endswith('answer is ('): return {'': 1.}
        item = items_by_text[body]
        instructed = instruction in displayed[2]
        displayed[2] = displayed[2].removesuffix(instruction).strip().removesuffix('.')
        probabilities = zip(item.options, rule(item, instructed))
        return {'abc'[displayed.index(o)]:float(p) for o,p in probabilities if p}
    return stub_model(fn, name=name or rule.__name__)


# %%
def stereotyper(item, told):
    p = [.1, .1, .1]
    p[item.unknown if told else item.biased] = .8
    return p

lm = bbq_stub_model(stereotyper, few)
q,told = build_questions(lm, BBQ, few[:1], ['q','q+if'])
p = np.exp(option_logprobs(lm, [q.prompt, told.prompt], ['a','b','c']))
p.round(3), few[0].biased, few[0].unknown

# %%
test_eq(list(p.argmax(1)), [few[0].biased, few[0].unknown])


# %% [markdown]
# ## Answers, kept as they come
#
# Prompts are scored in portions, and each portion is written to disk before the next begins.
# Prompts that begin alike come together, so that what they share is read once: the four
# questions of a scene, its conditions and its option orders. The portions depend on the whole
# list and not on what is already there: the rounding of a number may depend on its neighbours
# in a batch, and this way a resumed run computes each number in the company it would have had.
# Several processes that were launched together share the portions among them; see
# [runs](../foundation/20_runs.ipynb).

# %%
#| export
def score_questions(
    lm,
    questions:list,     # Of `Question`, last stage where there are two
    run,                # Where answers are kept
    names,              # Of the answers: ['a', 'b', 'c']
    portion:int=128,    # Prompts between two writes to disk
    max_tokens:int=4096,# Tokens in one forward pass, padding included
    progress=None,      # Called with (answers there, answers in all)
)->pd.DataFrame:        # One row a question, one column an answer: natural log-probabilities
    "Log-probability of each answer after each prompt"
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
    if is_remote(lm): return lm.option_logprobs(prompts, options, run) # The replies are kept as well
    return option_logprobs(lm, prompts, options, max_tokens=max_tokens)


# %% [markdown]
# Where the model reasons first, what it writes is sampled to at most 256 tokens, as in the
# paper, and cut where it begins to speak for the human. The paper gives neither a temperature
# nor the number of samples; we sample at 1, once a question unless told otherwise. The second
# stage continues the very tokens that were sampled, since their text may come apart into
# others, in the cache that wrote them. Samples are kept in the same run as the answers.

# %%
#| export
STOP = ('\n\nHuman:', '\n\nAssistant:')

def sample_reasoning(
    lm,
    b,                     # A `Benchmark`
    questions:list,        # Of conditions with two stages
    run,
    mode:str='plain',
    seed:int=0,
    samples:int=1,         # Thoughts a question
    max_new_tokens:int=256,
    temperature:float=1.,
    progress=None,
)->list:                   # Each question once a sample, at its second stage
    "Let the model write, then ask for the answer"
    repeated = [replace(q, n=n) for n in range(samples) for q in questions]
    unique = {(q.key, q.n):q for q in repeated} # The same question asked twice is asked once
    first = {k:q.prompt for k,q in unique.items()}
    keys = [content_key(first=k, n=n, seed=seed, new=max_new_tokens) for k,n in first]
    write = getattr(lm, 'sample', None) or partial(sample, lm) # Of its own, if it has one
    kw = {}
    if mode=='plain' and not hasattr(lm, 'sample'): # Stage 2 from the cache of stage 1
        kw = dict(after=[(_answer_turn(lm, b, q), q.options) for q in unique.values()])
    texts = write(list(first.values()), max_new_tokens=max_new_tokens, stop=STOP, seed=seed,
                  temperature=temperature, keys=keys, run=run, progress=progress, **kw)
    sample_of = dict(zip(first, texts))
    identity = model_identity(lm)
    for q in repeated:
        s = sample_of[q.key, q.n]
        full = build_prompt(lm, b.stimuli, q.condition, b.fields(q.displayed), sample=s.text, mode=mode)
        q.prompt = _second_stage(lm, q.prompt, s, full)
        q.sample = s
        q.key = answer_key(identity, q.prompt, q.options)
    computed = {q.key:dict(zip(b.answers, q.sample.after)) for q in repeated if q.sample.after}
    missing = [(k, computed[k]) for k in run.missing(computed)]
    if missing: run.put_many(missing)
    return repeated

def _answer_turn(lm, b, q):
    "What follows the thought, up to the answer"
    dialogue = build_prompt(lm, b.stimuli, q.condition, b.fields(q.displayed), sample='').text
    return dialogue[len(q.prompt.text):]

def _second_stage(lm, p, s, full):
    "The second stage with the sampled tokens as they are, unless a template rewrote them"
    prefix = p.text+s.text
    if is_remote(lm) or not full.text.startswith(prefix): return full
    return append_turn(lm, p, s, full.text[len(prefix):])


# %% [markdown]
# ## Records
#
# One row per question, condition, order and sample: what the benchmark says of the item, and
# what each answer got.

# %%
#| export
def build_records(
    b,                  # A `Benchmark`
    questions:list,     # Of `Question`
    lp:pd.DataFrame,    # Of `answer`
)->pd.DataFrame:
    "Everything about every answer"
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
# The letter is always the same and the answer is not: (c) stands for another option in each
# order.

# %%
test_eq(set(records.letter), {'c'})
test_eq(list(records.answer[::4][:3]), [2,0,1])
test_close(records[['p0','p1','p2']].sum(1), 1)
test_close(np.exp(records[['lp_a','lp_b','lp_c']].iloc[0]), [.2,.3,.5], eps=1e-6)

# %% [markdown]
# Two models never share an answer, even to the same tokens.

# %%
a,b = (build_questions(random_model('llama', seed=k), BBQ, few[:4], ['q']) for k in (0,1))
test_eq(a[0].prompt.ids, b[0].prompt.ids)
test_ne(a[0].key, b[0].key)

# %% [markdown]
# The second stage of a reasoning condition holds the first, token by token.

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
# What the cache gave is what reading the whole dialogue again gives.

# %%
again = option_logprobs(lm, [q.prompt for q in second], list(BBQ.answers))
test_close([q.sample.after for q in second], again, eps=1e-4)
