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
from urllib.parse import urlsplit

import numpy as np
from moral_sc.foundation.errors import ConfigError, ModelError
from moral_sc.foundation.runs import content_key, run_or_temporary
from moral_sc.language.chat import Prompt, request_prefill
from moral_sc.language.generation import Sample

# %%
#| hide
import tempfile
from pathlib import Path
from fastcore.test import *
from moral_sc.foundation.runs import open_run
from moral_sc.language.chat import render

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
            return _sum_candidates({token:logprob, **dict(candidates)}, text, options, len(start))
        text += token

def _sum_candidates(candidates, text, options, prefix_length):
    p = [0.]*len(options)
    probabilities = {t:math.exp(v) for t,v in candidates.items()}
    for token,value in probabilities.items():
        k = _match_option(_fold(text+token), options, prefix_length)
        if k is not None: p[k] += value
    values = probabilities.values()
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
    method:str      # 'probabilities', 'text' or 'not understood'
    unseen:float=0. # Probability outside the candidates returned
    bounded:int=0   # Number of options that got their upper bound

def parse_reply(
    reply:dict,   # text, tokens
    prefill:str,
    options:list,
)->ParsedReply:
    "Parse one reply: from its candidate tokens if possible, otherwise from its text"
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
        (openai.BadRequestError, ConfigError, 'refuses the request ({reason}); a model without '
         'probabilities needs logprobs=False.'),
        (openai.APIConnectionError, ModelError, f'cannot be reached; {retry}'),
        (openai.OpenAIError, ModelError, 'fails ({reason}); '+retry)]
    error,text = next((k,t) for c,k,t in kinds if isinstance(e, c))
    lines = str(getattr(e, 'message', e)).replace(lm.client.api_key, '...').splitlines()
    return error(f'{lm.address} '+text.replace('{reason}', ''.join(lines[:1])[:150]))

def _token_text(t): # A token may end inside a character
    return bytes(t.bytes).decode('utf-8', 'surrogateescape') if t.bytes else t.token

def _request(lm, messages, **settings):
    "Send one request and return the reply as a plain dict"
    import openai
    try: r = lm.client.chat.completions.create(model=lm.name, messages=messages, **settings)
    except openai.OpenAIError as e: raise _translate_error(lm, e) from None
    if not getattr(r, 'choices', None):
        raise ModelError(f'{lm.address} sent a reply without choices; check that {lm.name!r} is '
                         'a chat model.')
    c = r.choices[0]
    content = c.logprobs.content if c.logprobs and c.logprobs.content else []
    tokens = [[_token_text(t), t.logprob, [[_token_text(k), k.logprob] for k in t.top_logprobs]]
              for t in content]
    return dict(text=c.message.content or '', finish=c.finish_reason, tokens=tokens,
                model=r.model, fingerprint=r.system_fingerprint,
                used=r.usage.completion_tokens if r.usage else 0)


# %% [markdown]
# Replies are stored unparsed, with their tokens, so that a better parser needs no second request. A
# run that holds a reply never requests it again. Several requests run in parallel, and each
# reply is stored when it arrives.

# %%
#| export
def _fetch(lm, requests, run, progress=None):
    "Make `run` hold the reply to every request, a dict from name to arguments; return them"
    names = list(requests)
    groups = [names[n:n+4*lm.parallel] for n in range(0, len(names), 4*lm.parallel)]
    for n in run.blocks(groups):
        with ThreadPoolExecutor(lm.parallel) as pool:
            jobs = {pool.submit(_request, lm, **requests[k]):k for k in run.missing(groups[n])}
            try:
                for j in as_completed(jobs): run.put(jobs[j], j.result())
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        if progress: progress(len(names)-len(run.missing(names)), len(names))
    return {k:run.get(k) for k in names}

def _replies(lm, prompts, settings, run, progress=None):
    "Return the reply to each prompt; equal requests are sent once"
    requests = [dict(messages=list(p.messages)) | kw | lm.extra for p,kw in zip(prompts, settings)]
    requests = [{k:v for k,v in r.items() if v is not None} for r in requests]
    names = [content_key(reply=lm.identity, **r) for r in requests]
    with run_or_temporary(run) as r: replies = _fetch(lm, dict(zip(names, requests)), r, progress)
    return [replies[k] for k in names]

def coverage(
    replies:list, # Of `ParsedReply`
)->dict:          # Numbers of answers by method, of bounded ones, and the largest unseen mass
    "Count the answers by how they were obtained"
    counts = Counter(r.method for r in replies)
    scored = [r for r in replies if r.method=='probabilities']
    return dict(answers=len(replies), **{k.replace(' ', '_'):counts[k] for k in
                ('probabilities','text','not understood')},
                bounded=sum(r.bounded>0 for r in scored),
                unseen=max((r.unseen for r in scored), default=0.))

def _warn_coverage(lm, c):
    if c['answers']==c['probabilities'] and not c['bounded']: return
    parts = [f'{c["probabilities"]} read from probabilities', f'{c["text"]} from text',
             f'{c["not_understood"]} not understood']
    if c['bounded']:
        parts.append(f'in {c["bounded"]} an option was not among the {lm.top_logprobs} likeliest '
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
        return coverage(self.parsed)

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
        _warn_coverage(self, coverage(parsed))
        self.parsed += parsed
        return np.array([r.logprobs for r in parsed])

    def sample(self,
        prompts:list,           # Of `APIPrompt`
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
        stop = [stop] if isinstance(stop, str) else list(stop)
        settings = [dict(temperature=temperature, max_tokens=max_new_tokens,
                         seed=int(content_key(seed=seed, row=str(k))[:7], 16),
                         **(dict(stop=stop) if stop else {})) for k in keys]
        replies = _replies(self, prompts, settings, run, progress)
        return [Sample(_strip_prefill(r['text'], p.prefill), (-1,)*r['used'],
                       r['finish'] or 'stop', seed, 0) for r,p in zip(replies, prompts)]


# %% [markdown]
# Hosts differ in the settings they accept. `connect(name, max_tokens=None,
# max_completion_tokens=400, temperature=None, logprobs=False)` suits a reasoning model.

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
    key = os.environ.get(key_variable)
    base_url = base_url or os.environ.get('OPENAI_BASE_URL')
    if not (key or base_url):
        raise ConfigError(f'There is no key for {name!r}; set the environment variable '
                          f'{key_variable}, or OPENAI_BASE_URL for a server without keys.')
    client = OpenAI(api_key=key or 'none', base_url=base_url, max_retries=retries,
                    timeout=timeout)
    return APIModel(name, client, _address(client.base_url), logprobs, top_logprobs, parallel,
                    extra)


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
            reply = (_stub_reply(body, fn, follows_prefill, logprobs) if status==200 else
                     dict(error=dict(message=f'no: {token}')))
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
os.environ.update({k:v for k,v in saved.items() if v})
