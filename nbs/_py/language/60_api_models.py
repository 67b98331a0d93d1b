# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # API models
#
# > `connect` makes a model behind an OpenAI-compatible API usable for scoring and sampling.

# %%
#| default_exp language.api_models

# %%
#| export
import json, math, os, re, warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlsplit

import numpy as np
from moral_sc.foundation.datasets import check_characters, check_network_settings
from moral_sc.foundation.arguments import checked
from moral_sc.foundation.errors import ConfigError, ModelError
from moral_sc.foundation.runs import content_key, run_or_temporary
from moral_sc.language.chat import Prompt, request_prefill
from moral_sc.language.generation import Sample, check_sampling_args, stop_strings

# %%
#| hide
import tempfile
from pathlib import Path
from unittest import mock
from fastcore.test import *
from moral_sc.foundation.runs import open_run
from moral_sc.language.chat import render
from moral_sc.language.models import encode

# %% [markdown]
# A hosted model keeps its weights, so three things cannot be had. The answer cannot be prefilled:
# the model has to be *asked* to begin with those words. Of the next-token distribution only the
# twenty likeliest tokens are returned, so an option may be missing. Some models return no
# probabilities at all, only text, which has to be parsed. This is enough for questions with a few
# short answers, as long as everything missing is counted.
#
# Requests go through the `openai` client, because nearly every hosted and local server implements
# OpenAI's API, and the client retries and backs off by itself. For another API put a LiteLLM proxy in
# between. The client is an extra: `pip install "moral_sc[api]"`.

# %% [markdown]
# ## Requests
#
# A `Prompt` has token ids, but a hosted model does not show its tokenizer. An `APIPrompt` therefore
# carries the messages, and in place of token ids the bytes of their JSON, so that a run can tell
# two questions apart in the same way.

# %%
#| export
_roles = dict(human='user', assistant='assistant', system='system')

@dataclass(frozen=True)
class APIPrompt(Prompt):
    "The messages of a request to a hosted model"
    messages:tuple=() # Dicts with role and content
    prefill:str=''    # The words that the answer is asked to begin with

def build_messages(
    turns:list,     # (role, text) pairs, the last one human
    prefill:str='', # The words the answer should begin with
)->APIPrompt:
    "Turn a conversation into messages; the prefill becomes a request in words"
    *history,(role,text) = turns
    if prefill: text = request_prefill(text, prefill)
    messages = tuple(dict(role=_roles[r], content=t) for r,t in [*history, (role, text)])
    text = json.dumps(messages, ensure_ascii=False)
    check_characters(text, 'A message')
    return APIPrompt(text, tuple(text.encode()), 0, text, messages, prefill)


# %%
p = build_messages([('human', 'Who was late? (a) Ann (b) Bo (c) Not said')], 'The answer is (')
p.messages


# %% [markdown]
# ## Option probabilities from candidate tokens
#
# A reply is a text and, for each of its tokens, the likeliest candidates in that place. If the model
# did begin as asked, the prefill is complete at exactly one place, and the candidates there are
# those that a real prefill would have shown. A candidate counts for an option if it completes it, or
# begins it and no other. `(a` may be one token, and `all` is not the letter a. The comparison is on
# bytes, because a letter with an accent may arrive as two tokens of a byte each.

# %%
#| export
def _fold(text): # Bytes as characters, in lower case
    raw = text.encode('utf-8', 'surrogateescape')
    return raw.decode('latin-1').casefold().lstrip(' \n\t')

def _match_option(text, options, prefix_length=0):
    "Return the index of the option that a text stands for, None if of none or several"
    complete = [k for k,o in enumerate(options) if text.startswith(o)]
    complete = [k for k in complete if not text[len(options[k]):][:1].isalnum()]
    if complete: return max(complete, key=lambda k: len(options[k]))
    partial = [k for k,o in enumerate(options) if len(text)>prefix_length and o.startswith(text)]
    return partial[0] if len(partial)==1 else None

def candidate_probabilities(
    tokens:list,    # [token, log-probability, [[candidate, log-probability], ...]] each
    prefill:str,    # The words the reply should begin with
    options:list,   # Possible continuations of the prefill
):                  # Probability of each option, of all candidates, of the least; or None
    "Return option probabilities from the candidates at the place where the answer begins"
    start = _fold(prefill)
    options = [_fold(prefill+o) for o in options]
    text = ''
    for token,logprob,candidates in tokens:
        if not start.startswith(_fold(text)): return
        if not start.startswith(_fold(text+token)):
            pairs = _distribution(token, logprob, candidates)
            return _sum_candidates(pairs, text, options, len(start)) if pairs else None
        text += token

def _distribution(token, logprob, candidates):
    "Return candidates as pairs of text and probability; none if they are no distribution"
    pairs = [(t, math.exp(v)) for t,v in candidates or () if _is_number(v) and v<=1e-3]
    if _is_number(logprob) and logprob<=1e-3: # The sampled token need not be among them
        p = math.exp(logprob)
        is_listed = any(t==token and math.isclose(q, p, rel_tol=1e-3) for t,q in pairs)
        if not is_listed and sum(q for _,q in pairs)+p<1.01: pairs.append((token, p))
    ranked = sorted((q for _,q in pairs), reverse=True)
    is_one_hot = ranked and ranked[0]>1-1e-6 and all(q<1e-40 for q in ranked[1:])
    return [] if is_one_hot or sum(ranked)>1.01 else pairs

def _is_number(x): return isinstance(x, (int,float)) and not isinstance(x, bool) and x==x

def _sum_candidates(pairs, text, options, prefix_length):
    p = [0.]*len(options)
    for token,value in pairs:
        k = _match_option(_fold(text+token), options, prefix_length)
        if k is not None: p[k] += value
    values = [v for _,v in pairs]
    return (p, sum(values), min(values)) if any(p) else None


# %%
log = math.log
top = [['b', log(.6)], ['a', log(.2)], ['A', log(.1)], ['all', log(.05)]]
reply = [['The', 0., []], [' answer is', 0., []], [' (', 0., []], [*top[0], top]]
candidate_probabilities(reply, 'The answer is (', ['a','b','c'])

# %%
test_close(candidate_probabilities(reply, 'The answer is (', ['a','b','c'])[0], [.3,.6,0])
merged = [['The answer is', 0., []], [' (c', log(.5), [[' (c', log(.5)], [' (a', log(.4)]]]]
test_close(candidate_probabilities(merged, 'The answer is (', ['a','b','c'])[0], [.4,0,.5])
test_eq(candidate_probabilities([['Well', 0., []]], 'The answer is (', ['a','b','c']), None)
accent = [['Jos', 0., []], ['\udcc3', 0., []], ['\udca9', 0., []], [' is', 0., []],
          [' late', log(.5), [[' late', log(.5)], [' early', log(.4)]]]]
test_close(candidate_probabilities(accent, 'José is', [' late',' early'])[0], [.5,.4])


# %% [markdown]
# Two tokens may be spelled alike, and their probabilities add up. The sampled token counts once, even
# where it is missing among the candidates. Servers that report the sampler's probabilities show 1
# for one token and 0 for all others at temperature zero; such a column, values above 1 and missing
# values are no distribution.

# %%
def at_answer(logprob, *top): return candidate_probabilities(
    [['The answer is (', 0., []], ['b', logprob, list(top)]], 'The answer is (', ['a','b','c'])

twice = [['b', log(.5)], ['a', log(.35)], ['c', log(.05)], ['b', log(.05)]]
test_close(at_answer(log(.5), *twice)[0], [.35, .55, .05])
test_close(at_answer(log(.05), *twice[:3])[0], [.35, .55, .05])
test_close(at_answer(0., *twice)[0], [.35, .55, .05]) # After temperature zero
test_close(at_answer(log(.5), *twice[:2], ['c', None])[0], [.35, .5, 0])
test_close(at_answer(log(.6), *twice[2:], ['x', -9999.])[0], [0, .65, .05])
for top in ([['b', 0.], ['a', -9999.], ['c', -math.inf]], [['b', 3.], ['a', 2.]],
            [['b', .0], ['a', -.1]]):
    test_eq(at_answer(0., *top), None)


# %% [markdown]
# ## Answers parsed from text
#
# Otherwise the text itself is parsed, conservatively. An answer counts if the text is one option and
# nothing else, if an option follows the requested words somewhere in the text, or if exactly one
# option is named. A single letter counts as named only in brackets or after "answer", because "a" is
# also a word.

# %%
#| export
def _strip_marks(text): return text.strip().strip('()[]."\'`*: \n').casefold()

def parse_answer(
    text:str,       # Text of the reply
    prefill:str,    # The words it should begin with
    options:list,
)->int|None:        # Index of the option given; None if that is not clear
    "Parse the answer from a text"
    lower = text.casefold()
    options = [_strip_marks(o) for o in options]
    if _strip_marks(text) in options: return options.index(_strip_marks(text))
    tail = lower.rpartition(prefill.strip().casefold())[2] if prefill.strip() else lower
    k = _match_option(_fold(tail), [_fold(o) for o in options]) if tail!=lower else None
    if k is not None: return k
    names = '|'.join(map(re.escape, options))
    pattern = rf'\b({names})\b'
    if max(map(len, options))==1:
        pattern = rf'\(({names})\)|\b(?:answer|option|choice)\W+(?:is\W+)?({names})\b'
    matches = {g for m in re.finditer(pattern, lower) for g in m.groups() if g}
    return options.index(matches.pop()) if len(matches)==1 else None


# %%
texts = ['The answer is (c).', '(b)', 'B.', 'I think the answer is b, because ...',
         'A nurse was late.', 'Either (a) or (b).', 'I cannot say.', '']
[parse_answer(t, 'The answer is (', ['a','b','c']) for t in texts]

# %%
test_eq([parse_answer(t, 'The answer is (', list('abc')) for t in texts],
        [2, 1, 1, 1, None, None, None, None])
blank = 'The nurse said that', [' she',' he',' they']
test_eq([parse_answer(t, *blank) for t in ('The nurse said that they were late.', 'She',
                                           'The word is "he".', 'he or she', 'The nurse')],
        [2, 0, 1, None, None])
ending = 'my answer would be "', ['yes','no']
texts = '... my answer would be "no".', 'Yes.', 'Yes and no.'
test_eq([parse_answer(t, *ending) for t in texts], [1, 0, None])


# %% [markdown]
# ## Parsed replies
#
# An option that is not among the candidates has at most the probability of the least likely of them,
# and at most the probability that they leave. It gets that upper bound, which makes differences smaller
# than they are and never larger. A text names one option and carries no probabilities, so the
# other options get probability zero. A text that cannot be parsed is no answer.

# %%
#| export
@dataclass(frozen=True)
class ParsedReply:
    "Log-probabilities of the options according to one reply"
    logprobs:tuple  # One for each option; nan where the reply was not understood
    method:str      # 'probabilities', 'text', 'not understood' or 'unreadable'
    unseen:float=0. # Probability outside the candidates returned
    bounded:int=0   # Number of options that got their upper bound

def parse_reply(
    reply:dict,   # text, tokens
    prefill:str,
    options:list,
)->ParsedReply:
    "Parse one reply: from its candidate tokens if possible, otherwise from its text"
    if 'unreadable' in reply: return ParsedReply((math.nan,)*len(options), 'unreadable', 1.)
    k = parse_answer(reply['text'], prefill, options)
    is_bare = _strip_marks(reply['text']) in [_strip_marks(o) for o in options]
    tail = re.search(r'\W*$', prefill.strip())[0]
    for start in (prefill, tail, '')[:3 if is_bare else 1]:
        c = candidate_probabilities(reply['tokens'], start, options)
        if c: return _bound_options(*c)
    if k is None: return ParsedReply((math.nan,)*len(options), 'not understood', 1.)
    return ParsedReply(tuple(0. if j==k else -math.inf for j in range(len(options))), 'text')

def _bound_options(p, total, least):
    unseen = max(0., 1-total)
    bound = max(min(least, unseen), 1e-9)
    logprobs = tuple(math.log(x or bound) for x in p)
    return ParsedReply(logprobs, 'probabilities', unseen, sum(not x for x in p))


# %%
r = parse_reply(dict(text='The answer is (b)', tokens=reply), 'The answer is (', ['a','b','c'])
np.exp(r.logprobs).round(3), r.method, round(r.unseen, 3), r.bounded

# %%
test_close(np.exp(r.logprobs), [.3, .6, .05])
top = [['b', log(.7)], ['c', log(.2)]]
short = dict(text='(b)', tokens=[['(', 0., []], [*top[0], top], [')', 0., []]])
test_close(np.exp(parse_reply(short, 'The answer is (', ['a','b','c']).logprobs), [.1, .7, .2])
test_eq(parse_reply(dict(text='I see.', tokens=[]), 'It is (', ['a']).method, 'not understood')


# %% [markdown]
# ## Sending requests
#
# Every failure becomes one sentence. The client has by then retried transient errors: rate limits,
# busy servers and lost connections.

# %%
#| export
def _translate_error(lm, e):
    "Return an error of this package for one of the client's"
    import openai
    retry = 'start the same command again later, answers are kept.'
    kinds = [
        (openai.AuthenticationError, ConfigError, 'refuses the key; set a valid one.'),
        (openai.PermissionDeniedError, ConfigError, f'does not let this key use {lm.name!r}; '
         'use another key or model.'),
        (openai.NotFoundError, ConfigError, f'has no model {lm.name!r}; use a name that the '
         'server lists.'),
        (openai.RateLimitError, ModelError, f'accepts no more requests for now; {retry}'),
        ((openai.BadRequestError, openai.UnprocessableEntityError), ConfigError,
         f'refuses the request ({{reason}}); {_advice(lm, e)}.'),
        (openai.APIConnectionError, ModelError, f'cannot be reached; {retry}'),
        (openai.OpenAIError, ModelError, 'fails ({reason}); '+retry)]
    error,text = next((k,t) for c,k,t in kinds if isinstance(e, c))
    lines = str(getattr(e, 'message', e)).replace(lm.client.api_key, '...').splitlines()
    return error(f'{lm.address} '+text.replace('{reason}', ''.join(lines[:1])[:150]))

def _advice(lm, e):
    "Return what to change after a server refused a request"
    reason = str(getattr(e, 'message', e)).casefold()
    option = lambda s: f"'api:{lm.name}?{s}'"
    setting = next((k for k in ('temperature','seed','stop','max_tokens') if k in reason), None)
    if re.search('context|too long|too many tokens', reason):
        return 'shorten the prompts, or use a model with a longer context'
    if 'max_completion_tokens' in reason:
        return 'name the model '+option('max_tokens=None&max_completion_tokens=400')
    if setting and 'logprob' not in reason:
        return f'leave the setting out: name the model {option(f"{setting}=None")}'
    return ('a model without probabilities needs logprobs=False: name it '+option('logprobs=False')
            if lm.logprobs else 'use another model')

def _named_limit(e, top):
    "Return the number of candidates that a server names as its limit; None if it names none"
    text = f'{getattr(e, "message", e)} {getattr(e, "body", "")}'
    if not top or 'logprob' not in text: return
    smaller = [int(n) for n in re.findall(r'(?<![\d.])\d{1,3}(?![\d.]*\d)', text)]
    return max((n for n in smaller if 0<n<top), default=None)

def _send(lm, messages, settings):
    "Send a request; if the server names a smaller limit of candidates, send it again with that"
    import openai
    if lm.shown and settings.get('top_logprobs'):
        settings = settings | dict(top_logprobs=min(settings['top_logprobs'], lm.shown))
    try:
        r = lm.client.chat.completions.with_raw_response.create(model=lm.name, messages=messages,
                                                                **settings)
        return r.http_response.text
    except (openai.BadRequestError, openai.UnprocessableEntityError) as e:
        limit = _named_limit(e, settings.get('top_logprobs'))
        if not limit: raise
        lm.shown = limit
        return _send(lm, messages, settings)

def _request(lm, messages, **settings):
    "Send one request and return the reply as a plain dict"
    import openai
    try: text = _send(lm, messages, settings)
    except openai.OpenAIError as e: raise _translate_error(lm, e) from None
    try: return read_reply(json.loads(text))
    except (ValueError, RecursionError): return dict(unreadable='no JSON')


# %% [markdown]
# ## Checked replies
#
# Any field of a reply may be missing, null, a list or not a number, and a text may end within a
# character. `read_reply` keeps what can be used. A reply without a text is unreadable: it is counted and
# never stored, so that the next run requests it again.

# %%
#| export
def _valid_text(x): # Half of a surrogate pair has no UTF-8
    return x.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')

def _content_text(content):
    "Return the text of a message, which may come in parts; None if it has none"
    if isinstance(content, str): return _valid_text(content)
    if not isinstance(content, list): return
    kinds = ('text', 'output_text')
    texts = [p if isinstance(p, str) else p.get('text') for p in content if isinstance(p, str)
             or isinstance(p, dict) and p.get('type', 'text') in kinds]
    return _valid_text(''.join(t for t in texts if isinstance(t, str))) if texts else None

def _token_text(t): # A token may end inside a character
    try: return bytes(t['bytes']).decode('utf-8', 'surrogateescape')
    except (KeyError, TypeError, ValueError): pass
    return _valid_text(t['token']) if isinstance(t.get('token'), str) else None

def _token_pairs(tokens):
    "Return text and log-probability of each token that has a text"
    tokens = [t for t in tokens if isinstance(t, dict)] if isinstance(tokens, list) else []
    pairs = [(t, _token_text(t), t.get('logprob')) for t in tokens]
    return [(t, x, v if _is_number(v) else None) for t,x,v in pairs if x is not None]

def read_reply(
    body,    # The JSON of a chat completion
)->dict:     # text, finish, tokens, model, fingerprint, used; or unreadable: the reason
    "Return what is used of a reply, checked"
    error = body.get('error') if isinstance(body, dict) else None
    choices = body.get('choices') if isinstance(body, dict) else None
    c = choices[0] if isinstance(choices, list) and choices else None
    message = c.get('message') if isinstance(c, dict) else None
    if not isinstance(message, dict):
        return dict(unreadable=f'the error {str(error)[:100]!r}' if error else 'no choices')
    text = _content_text(message.get('content'))
    if text is None: text = _content_text(message.get('refusal'))
    if text is None and message.get('content') is not None:
        return dict(unreadable='a content that is no text')
    shown = c.get('logprobs')
    tokens = _token_pairs(shown.get('content') if isinstance(shown, dict) else None)
    tokens = [[x, v, [[y, w] for _,y,w in _token_pairs(t.get('top_logprobs')) if w is not None]]
              for t,x,v in tokens]
    usage = body.get('usage')
    used = usage.get('completion_tokens') if isinstance(usage, dict) else None
    return dict(text=text or '', finish=str(c.get('finish_reason') or 'stop'), tokens=tokens,
                model=body.get('model'), fingerprint=body.get('system_fingerprint'),
                used=max(0, int(used)) if _is_number(used) and used<1e9 else 0)


# %%
def body(content='(b)', **choice):
    return dict(choices=[dict(message=dict(content=content), **choice)])

parts = [dict(type='thinking', thinking=[dict(type='text', text='Hm.')]),
         dict(type='text', text='(b)')]
nulls = dict(content=[dict(token='b', logprob=None, top_logprobs=None), None, dict(token=None),
                      dict(token='c', logprob=-1, top_logprobs=[dict(token='c', logprob=None)])])
tests = [body(), body(parts), body('(b) \ud83d'), body(logprobs=nulls), body(None), body(7),
         dict(choices=None), dict(error='busy'), None, [], body(logprobs=dict(content='?'))]
[(r.get('unreadable'), r.get('text'), r.get('tokens')) for r in map(read_reply, tests)]

# %%
replies = [read_reply(t) for t in tests]
test_eq([r.get('text') for r in replies[:5]], ['(b)', '(b)', '(b) \ufffd', '(b)', ''])
test_eq(replies[3]['tokens'], [['b', None, []], ['c', -1, []]])
test_eq(['unreadable' in r for r in replies], [False]*5+[True]*5+[False])
for text in ('<html>', '', '['*100_000):
    with mock.patch.dict(globals(), _send=lambda *a, text=text: text):
        test_eq(_request(None, []), dict(unreadable='no JSON'))
for r in replies: json.dumps(r).encode()


# %% [markdown]
# Replies are stored unparsed, with their tokens, so that a better parser needs no second request. A
# run that holds a reply never requests it again. Several requests run in parallel, and each
# reply is stored when it arrives.

# %%
#| export
def _fetch(lm, requests, run, progress=None):
    "Return the reply to every request, from name to arguments; `run` holds the readable ones"
    names = list(requests)
    groups = [names[n:n+4*lm.parallel] for n in range(0, len(names), 4*lm.parallel)]
    fresh = {}
    for n in run.blocks(groups):
        with ThreadPoolExecutor(lm.parallel) as pool:
            jobs = {pool.submit(_request, lm, **requests[k]):k for k in run.missing(groups[n])}
            try:
                for j in as_completed(jobs):
                    fresh[jobs[j]] = j.result()
                    if 'unreadable' in j.result() or run.finished: continue
                    run.put(jobs[j], j.result())
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        if progress: progress(len(names)-len(run.missing(names)), len(names))
    unreadable = [r['unreadable'] for r in fresh.values() if 'unreadable' in r]
    if unreadable and len(unreadable)==len(names):
        raise ModelError(f'{lm.address} sent a reply with {unreadable[0]}; check that {lm.name!r} '
                         'is a chat model.')
    return {k:fresh.get(k) or run.get(k) for k in names}

def _replies(lm, prompts, settings, run, progress=None):
    "Return the reply to each prompt; equal requests are sent once"
    requests = [dict(messages=list(p.messages)) | kw | lm.extra for p,kw in zip(prompts, settings)]
    requests = [{k:v for k,v in r.items() if v is not None} for r in requests]
    names = [content_key(reply=lm.identity, **r) for r in requests]
    with run_or_temporary(run) as r: replies = _fetch(lm, dict(zip(names, requests)), r, progress)
    return [replies[k] for k in names]

def count_replies(
    replies:list, # Of `ParsedReply`
)->dict:          # Numbers of answers by method, of bounded ones, and the largest unseen mass
    "Count the answers by how they were obtained"
    counts = Counter(r.method for r in replies)
    scored = [r for r in replies if r.method=='probabilities']
    return dict(answers=len(replies), **{k.replace(' ', '_'):counts[k] for k in
                ('probabilities','text','not understood','unreadable')},
                bounded=sum(r.bounded>0 for r in scored),
                unseen=max((r.unseen for r in scored), default=0.))

def _warn_coverage(lm, c):
    if c['answers']==c['probabilities'] and not c['bounded']: return
    parts = [f'{c["probabilities"]} read from probabilities', f'{c["text"]} from text',
             f'{c["not_understood"]} not understood']
    if c['unreadable']: parts.append(f'{c["unreadable"]} unreadable and not kept')
    if c['bounded']:
        parts.append(f'in {c["bounded"]} an option was not among the '
                     f'{lm.shown or lm.top_logprobs} likeliest '
                     'tokens and got its upper bound')
    warnings.warn(f'{lm.name}: {c["answers"]} answers, {", ".join(parts)}.', stacklevel=3)

def _strip_prefill(text, prefill):
    t = text.lstrip()
    if prefill and t.casefold().startswith(prefill.casefold()): return t[len(prefill):]
    return ' '+t if prefill and t else t


# %% [markdown]
# ## The model
#
# An `APIModel` takes the place of an `LM`. It has a name and no weights; `connect` makes one. The
# client takes the key from the environment, and it is stored nowhere else: not in the object's
# repr, not in a run's folder, and it is removed from every server message.
#
# `option_logprobs` asks for the likeliest tokens, not for a sample, so the temperature is zero. A seed
# is sent along, which hosts treat as best effort. `sample` gives each row its own seed. The
# reply to a reasoning request should begin with the prefill; `sample` cuts it off, because the second
# stage adds it again.

# %%
#| export
@dataclass(eq=False, repr=False)
class APIModel:
    "A model behind an API"
    name:str
    client:object
    address:str         # Host and path of the server, without credentials
    logprobs:bool=True  # Ask for the likeliest tokens
    top_logprobs:int=20 # How many of them; hosts allow 20
    parallel:int=8      # Requests in flight
    extra:dict=field(default_factory=dict) # Settings of each request; None: leave it out
    parsed:list=field(default_factory=list) # `ParsedReply` of every answer so far
    shown:int=None      # The most candidates that the server shows, where it named a limit
    remote = True
    is_stub = False
    source = 'an API'
    device = 'remote'
    dtype = 'unknown'

    def __repr__(self): return f'APIModel {self.name} at {self.address}'

    @property
    def identity(self): # Everything known that determines its answers
        return dict(name=self.name, address=self.address, logprobs=self.logprobs,
                    top_logprobs=self.top_logprobs, extra=self.extra)

    @property
    def coverage(self): # Counts over all answers so far
        return count_replies(self.parsed)

    def render(self, turns, prefill='', mode='chat-noprefill'):
        if mode=='chat-noprefill': return build_messages(turns, prefill)
        raise ConfigError(f"Mode {mode!r} needs the weights, and {self.name} is behind an API; "
                          "use mode='chat-noprefill'.")

    def option_logprobs(self,
        prompts:list,   # Of `APIPrompt`
        options:list,   # Strings shared by all prompts, or one list of strings a prompt
        run=None,       # A `Run`: a reply that it holds is not requested again
        seed:int=0,
        progress=None,  # Called with (replies so far, replies in all)
    )->np.ndarray:      # [prompt, option] natural log; a row of nan where not understood
        "Return the log-probability of each option, as far as the replies show it"
        options = [options]*len(prompts) if isinstance(options[0], str) else options
        shared = dict(logprobs=True, top_logprobs=self.top_logprobs) if self.logprobs else {}
        settings = [dict(shared, temperature=0, seed=seed, max_tokens=16+len(p.prefill)//2)
                    for p in prompts]
        replies = _replies(self, prompts, settings, run, progress)
        parsed = [parse_reply(r, p.prefill, list(o)) for r,p,o in zip(replies, prompts, options)]
        _warn_coverage(self, count_replies(parsed))
        self.parsed += parsed
        return np.array([r.logprobs for r in parsed])

    @checked
    def sample(self,
        prompts,                # Of `APIPrompt`
        max_new_tokens:int=256,
        temperature:float=1.,
        stop=(),                # At most four strings
        seed:int=0,
        keys:list=None,         # Names of the rows; default: their numbers
        run=None,
        progress=None,
    )->list:                    # One `Sample` a prompt; ids only count the tokens
        "Sample a text for each prompt"
        keys = list(range(len(prompts))) if keys is None else keys
        stop = stop_strings(stop)
        check_sampling_args(prompts, keys, max_new_tokens, temperature, 1.)
        if len(stop)>4: raise ConfigError(f'sample: {len(stop)} stop strings; an API takes four.')
        settings = [dict(temperature=temperature, max_tokens=max_new_tokens,
                         seed=int(content_key(seed=seed, row=str(k))[:7], 16),
                         **(dict(stop=stop) if stop else {})) for k in keys]
        replies = _replies(self, prompts, settings, run, progress)
        lost = sum('unreadable' in r for r in replies)
        if lost: warnings.warn(f'{self.name}: {lost} of {len(replies)} texts are unreadable and '
                               'were not kept; they count as empty.', stacklevel=3)
        return [Sample(_strip_prefill(r.get('text', ''), p.prefill), (-1,)*r.get('used', 0),
                       r.get('finish', 'unreadable'), seed, 0) for r,p in zip(replies, prompts)]


# %% [markdown]
# Hosts differ in the settings they accept. `connect(name, max_tokens=None,
# max_completion_tokens=400, temperature=None, logprobs=False)` suits a reasoning model. In a name the
# settings stand after a question mark, on the command line as well:
# `'api:NAME?logprobs=False&max_tokens=None'`.

# %%
#| export
def _address(url):
    u = urlsplit(str(url))
    return f'{u.hostname}{f":{u.port}" if u.port else ""}{u.path}'.rstrip('/')

def connect(
    name:str,           # The server's name of the model
    base_url:str=None,  # By default that of OPENAI_BASE_URL, or OpenAI's own
    logprobs:bool=True, # False for models that return none: their text is parsed
    top_logprobs:int=20,
    parallel:int=8,
    retries:int=6,      # After transient errors; the client waits as the server requests
    timeout:float=120,  # Seconds a request may take
    key_variable:str='OPENAI_API_KEY', # Environment variable that holds the key
    **extra,            # Settings of each request, None to leave one out
)->APIModel:
    "Connect to a model behind an OpenAI-compatible API"
    try: from openai import OpenAI
    except ImportError:
        raise ConfigError(f'api:{name} needs the openai client; pip install "moral_sc[api]".'
                          ) from None
    check_network_settings()
    key = _read_key(key_variable)
    base_url = _check_url(base_url, 'base_url') or _check_url(os.environ.get('OPENAI_BASE_URL'),
                                                              'OPENAI_BASE_URL')
    if not (key or base_url):
        raise ConfigError(f'There is no key for {name!r}; set the environment variable '
                          f'{key_variable}, or OPENAI_BASE_URL for a server without keys.')
    try: client = OpenAI(api_key=key or 'none', base_url=base_url, max_retries=retries,
                         timeout=timeout)
    except Exception as e:
        raise ConfigError(f'The client of api:{name} cannot be made ({e}); check the proxy and '
                          'OPENAI_ variables of the environment.') from None
    return APIModel(name, client, _address(client.base_url), logprobs, top_logprobs, parallel,
                    extra)

def _read_key(variable):
    key = os.environ.get(variable, '').strip()
    if key.isascii() and key.isprintable(): return key
    raise ConfigError(f'The environment variable {variable} has characters that no key has; '
                      'copy the key again.')

def _check_url(url, name):
    "Return the address of a server, None if there is none"
    if url is None: return
    if url.strip() and re.match(r'https?://[^/]', url): return url
    raise ConfigError(f'{name} is {url!r}; give an address such as http://localhost:8000/v1, or '
                      'leave it out.')

def connect_by_name(
    name:str,   # 'NAME', or 'NAME?top_logprobs=5&temperature=None'
)->APIModel:
    "Connect to a model whose settings follow its name"
    name,_,query = name.partition('?')
    values = dict(true=True, false=False, none=None)
    def read(v):
        try: return values[v.casefold()] if v.casefold() in values else json.loads(v)
        except ValueError: return v
    pairs = parse_qsl(query, keep_blank_values=True)
    if not name or (query and not pairs):
        raise ConfigError(f"'api:{name}?{query}' is not understood; write api:NAME or "
                          "'api:NAME?logprobs=False'.")
    return connect(name, **{k:read(v) for k,v in pairs})


# %% [markdown]
# ## Stub server
#
# The tests below use a server that implements the same API and answers from a function: the
# counterpart of [`stub_model`](50_stub_models.ipynb). The function gets the messages and returns the
# probability of each continuation of the prefill.

# %%
#| export
def _stub_tokens(words, probabilities, top):
    "Return the prefill and the likeliest continuation, with its rivals, as tokens"
    ranked = sorted(probabilities.items(), key=lambda kv: -kv[1])
    candidates = [dict(token=t, logprob=math.log(max(p, 1e-12)), bytes=None) for t,p in ranked]
    prefill = [dict(token=w, logprob=0., bytes=None, top_logprobs=[]) for w in words]
    return [*prefill, dict(candidates[0], top_logprobs=candidates[:top])]

def _stub_reply(body, fn, follows_prefill, logprobs):
    request = request_prefill('', '')
    text = body['messages'][-1]['content']
    words = (re.findall(r'\S+\s*|\s+', text.rpartition(request)[2])
             if follows_prefill and request in text else [])
    tokens = _stub_tokens(words, fn(body['messages']), body.get('top_logprobs', 0))
    content = dict(content=tokens) if logprobs and body.get('logprobs') else None
    message = dict(role='assistant', content=''.join(t['token'] for t in tokens))
    choice = dict(index=0, finish_reason='stop', logprobs=content, message=message)
    return dict(id='0', object='chat.completion', created=0, model=body['model'],
                choices=[choice], usage=dict(prompt_tokens=0, completion_tokens=len(tokens),
                                             total_tokens=len(tokens)))

@contextmanager
def stub_server(
    fn,                 # Messages -> {continuation: probability}
    follows_prefill:bool=True, # Begins its answers as requested
    logprobs:bool=True, # Returns probabilities
    status_codes=(),    # Status codes of the first replies: (429, 500)
    key:str=None,       # Refuse any other
    answer=None,        # Request -> (status, JSON), in place of all of these
):                      # Yields its base URL and the list of requests received
    "Run a local server whose answers come from a function"
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from threading import Lock, Thread
    requests = []
    failures = list(status_codes)
    lock = Lock()
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_): pass
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers['content-length'])))
            with lock: requests.append(body); status = failures.pop(0) if failures else 200
            token = self.headers.get('authorization', '').removeprefix('Bearer ')
            if key and token!=key and status==200: status = 401
            if answer: status,reply = answer(body)
            elif status==200: reply = _stub_reply(body, fn, follows_prefill, logprobs)
            else: reply = dict(error=dict(message=f'no: {token}'))
            data = json.dumps(reply).encode()
            self.send_response(status)
            if status!=200: self.send_header('retry-after-ms', '1')
            self.send_header('content-type', 'application/json')
            self.send_header('content-length', str(len(data)))
            self.end_headers()
            self.wfile.write(data)
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try: yield f'http://127.0.0.1:{server.server_port}/v1',requests
    finally: server.shutdown(); server.server_close()


# %%
known = dict(a=.2, b=.5, c=.25)
conversations = [[('human', f'Question {k}?')] for k in range(12)]
with stub_server(lambda ms: known, status_codes=(429, 500)) as (url,requests):
    lm = connect('fake', url)
    prompts = [render(lm, t, 'The answer is (', 'chat-noprefill') for t in conversations]
    lp = lm.option_logprobs(prompts, ['a','b','c'])
np.exp(lp[0]).round(6), lm.coverage, len(requests)

# %% [markdown]
# The log-probabilities are those of the function. Twelve questions took fourteen requests, because
# the first two failed with transient errors.

# %%
test_close(np.exp(lp), [list(known.values())]*12)
test_eq((lm.coverage['probabilities'], len(requests)), (12, 14))
test_close(lm.coverage['unseen'], .05)

# %% [markdown]
# No request is sent twice: not within a call, not by a second call on the same run, and not after
# the server went away in the middle of a call.

# %%
with tempfile.TemporaryDirectory() as d, open_run(d, {}) as run:
    with stub_server(lambda ms: known) as (url,requests):
        lm = connect('fake', url)
        a = lm.option_logprobs(prompts[:4]*2, ['a','b','c'], run)
        n = len(requests)
        b = lm.option_logprobs(prompts[:6], ['a','b','c'], run)
    test_eq((n, len(requests)), (4, 6))
    test_eq(a[:4], b[:4])
    lm.client = lm.client.with_options(max_retries=0)
    test_eq(lm.option_logprobs(prompts[:6], ['a','b','c'], run), b)
    with expect_fail(ModelError, contains='cannot be reached'):
        lm.option_logprobs(prompts, ['a','b','c'], run)

# %% [markdown]
# Of thirty candidates twenty are returned. An option that is not among them gets its upper bound. The
# text is parsed if the model does not begin as asked or returns no probabilities. A warning
# counts each of these cases.

# %%
many = {f'word{k}':.03 for k in range(29)} | dict(b=.1, a=.005)
cases = dict(shown=dict(fn=lambda ms: many),
             text=dict(fn=lambda ms: {'(b)':1.}, follows_prefill=False, logprobs=False),
             neither=dict(fn=lambda ms: {'I cannot say.':1.}, follows_prefill=False))
results = {}
for name,settings in cases.items():
    with stub_server(**settings) as (url,_), warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        lp = connect(name, url).option_logprobs(prompts[:1], ['a','b','c'])
    results[name] = lp[0]
    print(str(w[0].message))

# %%
test_close(np.exp(results['shown']), [.03, .1, .03], 1e-6)
test_eq(np.exp(results['text']), [0, 1, 0])
assert np.isnan(results['neither']).all()

# %% [markdown]
# `sample` returns the reasoning without the prefill, and every sample has its own seed.

# %%
prefill = "Let's think about it."
with stub_server(lambda ms: {' Nobody said who.':1.}) as (url,requests):
    lm = connect('thinker', url)
    p = render(lm, conversations[0], prefill, 'chat-noprefill')
    samples = lm.sample([p, p], stop=['\n\nHuman:'], keys=['x','y'])
assert requests[0]['seed']!=requests[1]['seed']
refused = dict(max_new_tokens=0, temperature=-1, top_p=.9, stop=list('abcde'), seed=-1, keys=['x'],
               batch=8, max_tokens=99, logprobs=True, values=len, after=[None]*2)
for k,v in refused.items(): # Options of `sample` that an API cannot honour, or out of range
    with expect_fail(ConfigError): lm.sample([p, p], **{k: v})
with expect_fail(ConfigError, contains='is behind an API, and this needs its weights'):
    encode(lm, 'Hi')
samples[0].text, samples[0].finish, len(samples[0].ids)

# %% [markdown]
# ## Secrecy of the key
#
# This server repeats the key in its error messages, as some servers do. Neither our messages nor
# the folder of a run contain it.

# %%
os.environ['FAKE_KEY'] = 'sk-secret-1234567890'
refuses = stub_server(lambda ms: known, status_codes=[400], key='another')
with tempfile.TemporaryDirectory() as d, refuses as (url,_):
    lm = connect('fake', url, key_variable='FAKE_KEY')
    errors = []
    with open_run(d, dict(model=lm.identity)) as run:
        for _ in range(2):
            try: lm.option_logprobs(prompts[:1], ['a','b','c'], run)
            except ConfigError as e: errors.append(re.sub(r':\d+', '', str(e)))
    files = b''.join(p.read_bytes() for p in Path(d).rglob('*') if p.is_file())
del os.environ['FAKE_KEY']
assert b'sk-secret' not in files and 'sk-secret' not in repr((lm, errors))
print('\n'.join(errors))

# %% [markdown]
# ## Errors

# %%
plain = dict(max_tokens=None, max_completion_tokens=40, temperature=None)
with stub_server(lambda ms: known) as (url,requests):
    lm = connect('reasoner', url, logprobs=False, **plain)
    lm.option_logprobs(prompts[:1], ['a','b','c'])
test_eq(set(requests[0]), {'messages','model','seed','max_completion_tokens'})
with stub_server(lambda ms: known, status_codes=[400, 404]) as (url,_):
    lm = connect('nobody', url, parallel=1)
    with expect_fail(ConfigError, contains='logprobs=False'):
        lm.option_logprobs(prompts[:1], ['a'])
    with expect_fail(ConfigError, contains="no model 'nobody'"):
        lm.option_logprobs(prompts[:1], ['a'])
    with expect_fail(ConfigError, contains='chat-noprefill'):
        render(lm, conversations[0], 'x')
saved = {k: os.environ.pop(k, None) for k in ('OPENAI_API_KEY','OPENAI_BASE_URL')}
with expect_fail(ConfigError, contains='no key'): connect('gpt')
for variable,value in dict(OPENAI_BASE_URL='', OPENAI_API_KEY='\u201ckey\u201d',
                           ALL_PROXY='socks://127.0.0.1:7890/', SSL_CERT_FILE='/gone.pem').items():
    with mock.patch.dict(os.environ, {'OPENAI_API_KEY': 'k', variable: value}), \
         expect_fail(ConfigError, contains=variable): connect('gpt')
os.environ.update({k:v for k,v in saved.items() if v})


# %% [markdown]
# ## Servers with odd replies
#
# A server may accept fewer candidates than were asked for and name its limit: the request is sent
# again with that number. Unreadable replies are counted and requested again by the next run; a run
# ends only if there is nothing else.

# %%
def serve(bodies):
    "Run a server that answers with these bodies in turn, as (status, JSON) or JSON"
    left = list(bodies)
    def answer(request):
        status,reply = left[0] if isinstance(left[0], tuple) else (200, left[0])
        if len(left)>1: left.pop(0)
        return status,reply
    return stub_server(None, answer=answer)

refusal = 400, dict(message='Cannot request more than 5 logprobs.', code=400)
with serve([refusal, body('The answer is (b)')]) as (url,requests), \
     mock.patch.dict(os.environ, OPENAI_BASE_URL=url):
    lm = connect_by_name('few?parallel=1')
    lp = lm.option_logprobs(prompts[:2], ['a','b','c'])
test_eq([r['top_logprobs'] for r in requests], [20, 5, 5])
for message,advice in {'This model\'s maximum context length is 2048 tokens': 'shorten the prompts',
                       "Unsupported value: 'temperature'": "'api:odd?temperature=None'",
                       'logprobs are not supported': "'api:odd?logprobs=False'",
                       "use 'max_completion_tokens'": 'max_completion_tokens=400'}.items():
    with serve([(400, dict(message=message))]) as (url,_), \
         expect_fail(ConfigError, contains=advice):
        connect('odd', url).option_logprobs(prompts[:1], ['a'])

# %%
odd = [body('The answer is (b)'), dict(choices=None), body(7), '<html>']
with tempfile.TemporaryDirectory() as d, open_run(d, {}) as run:
    with serve([*odd, body('The answer is (c)')]) as (url,requests):
        lm = connect('odd', url, parallel=1)
        with warnings.catch_warnings(record=True) as w:
            warnings.simplefilter('always')
            first = lm.option_logprobs(prompts[:4], ['a','b','c'], run)
        second = lm.option_logprobs(prompts[:4], ['a','b','c'], run)
    with serve([dict(choices=[])]) as (url,_), expect_fail(ModelError, contains='a chat model'):
        connect('none', url).option_logprobs(prompts[:4], ['a','b','c'], run)
test_eq(np.isnan(first[:,0]).tolist(), [False, True, True, True])
test_eq((second.argmax(1).tolist(), len(requests)), ([1, 2, 2, 2], 7))
print(w[0].message)
