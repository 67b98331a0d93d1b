# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Models behind an API
#
# > Asking a model that shows only its words and its twenty likeliest tokens.

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
# A hosted model keeps its weights, and with them most of what this book measures. Three things
# cannot be had. The answer cannot be begun for the model, so it has to be *asked* to begin with
# the words that we would have put into its mouth. Of the distribution over the next token only
# the twenty likeliest are shown, so an option may be among the rest. And some models show no
# probabilities at all, only text, which has to be understood, and sometimes cannot be. What
# remains is enough for questions with a few short answers, as long as everything that is missing
# is counted.
#
# The `openai` client does the talking: nearly every hosted and local server speaks its dialect,
# it retries and waits as it is told to, and it brings few dependencies of its own; whoever needs
# another dialect can put a LiteLLM proxy in between. It is an extra: `pip install "moral_sc[api]"`.

# %% [markdown]
# ## What is sent
#
# A `Prompt` has token ids; the tokens of a hosted model are its own affair. `APIPrompt` therefore
# carries the messages, and in place of ids the bytes of their JSON, so that a run tells two
# questions apart in the same way.

# %%
#| export
_roles = dict(human='user', assistant='assistant', system='system')

@dataclass(frozen=True)
class APIPrompt(Prompt):
    "What a hosted model is asked"
    messages:tuple=() # Dicts with role and content
    prefill:str=''    # The words it is asked to begin with

def build_messages(
    turns:list,     # (role, text) pairs, the last one human
    prefill:str='', # The words the answer should begin with
)->APIPrompt:
    "Turns as messages; the beginning of the answer becomes a request"
    *said,(role,text) = turns
    if prefill: text = request_prefill(text, prefill)
    ms = tuple(dict(role=_roles[r], content=t) for r,t in [*said, (role, text)])
    text = json.dumps(ms, ensure_ascii=False)
    return APIPrompt(text, tuple(text.encode()), 0, text, ms, prefill)


# %%
p = build_messages([('human', 'Who was late? (a) Ann (b) Bo (c) Not said')], 'The answer is (')
p.messages


# %% [markdown]
# ## What comes back
#
# The reply is a text and, for each of its tokens, the likeliest candidates in that place. If the
# model did begin as it was asked to, there is one place where the beginning is complete and the
# answer is not, and the candidates there are what a prefill would have shown. A candidate
# speaks for an option if it completes it, or begins it and no other. `(a` may be one token, and
# `all` is not the letter a. A letter with an accent may come as two tokens of a byte each, so it
# is bytes that are compared.

# %%
#| export
def _fold(text): # Bytes as characters, capitals as small letters
    raw = text.encode('utf-8', 'surrogateescape')
    return raw.decode('latin-1').casefold().lstrip(' \n\t')

def _spoken(u, fulls, past=0):
    "Number of the option that a text speaks for, None if of none or several"
    done = [k for k,f in enumerate(fulls) if u.startswith(f)]
    done = [k for k in done if not u[len(fulls[k]):][:1].isalnum()]
    if done: return max(done, key=lambda k: len(fulls[k]))
    begun = [k for k,f in enumerate(fulls) if len(u)>past and f.startswith(u)]
    return begun[0] if len(begun)==1 else None

def candidate_probabilities(
    tokens:list,    # [token, log-probability, [[candidate, log-probability], ...]] each
    prefill:str,    # What the text should begin with
    options:list,   # What may follow
):                  # Probability of each option, of all candidates, of the least; or None
    "The candidates in the place where the answer begins"
    start = _fold(prefill)
    said = ''
    fulls = [_fold(prefill+o) for o in options]
    for token,lp,shown in tokens:
        if not start.startswith(_fold(said)): return
        if not start.startswith(_fold(said+token)):
            return _gathered({token:lp, **dict(shown)}, said, fulls, len(start))
        said += token

def _gathered(shown, said, fulls, past):
    p = [0.]*len(fulls)
    ps = {t:math.exp(v) for t,v in shown.items()}
    for t,v in ps.items():
        k = _spoken(_fold(said+t), fulls, past)
        if k is not None: p[k] += v
    return (p, sum(ps.values()), min(ps.values())) if any(p) else None


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
# Otherwise the text itself is read, and cautiously: an answer counts if it is one option and
# nothing else, if it says the words it was asked for somewhere, or if exactly one option is
# named. A letter has to stand in brackets or after "answer" to be named, because "a" is also
# a word.

# %%
#| export
def _bare(text): return text.strip().strip('()[]."\'`*: \n').casefold()

def parse_answer(
    text:str,       # What the model wrote
    prefill:str,    # What it should have begun with
    options:list,
)->int|None:        # Number of the option it gave; None if that is not clear
    "The answer in a text"
    low = text.casefold()
    bare = [_bare(o) for o in options]
    if _bare(text) in bare: return bare.index(_bare(text))
    after = low.rpartition(prefill.strip().casefold())[2] if prefill.strip() else low
    k = _spoken(_fold(after), [_fold(o) for o in bare]) if after!=low else None
    if k is not None: return k
    word = '|'.join(map(re.escape, bare))
    if max(map(len, bare))==1:
        word = rf'\(({word})\)|\b(?:answer|option|choice)\W+(?:is\W+)?({word})\b'
    else: word = rf'\b({word})\b'
    found = {g for m in re.finditer(word, low) for g in m.groups() if g}
    return bare.index(found.pop()) if len(found)==1 else None


# %%
says = ['The answer is (c).', '(b)', 'B.', 'I think the answer is b, because ...',
        'A nurse was late.', 'Either (a) or (b).', 'I cannot say.', '']
[parse_answer(t, 'The answer is (', ['a','b','c']) for t in says]

# %%
test_eq([parse_answer(t, 'The answer is (', list('abc')) for t in says],
        [2, 1, 1, 1, None, None, None, None])
blank = 'The nurse said that', [' she',' he',' they']
test_eq([parse_answer(t, *blank) for t in ('The nurse said that they were late.', 'She',
                                         'The word is "he".', 'he or she', 'The nurse')],
        [2, 0, 1, None, None])
ends = 'my answer would be "', ['yes','no']
said = '... my answer would be "no".', 'Yes.', 'Yes and no.'
test_eq([parse_answer(t, *ends) for t in said], [1, 0, None])


# %% [markdown]
# ## One answer
#
# An option that is not among the candidates has at most the probability of the least of them,
# and at most what they leave. It is given that much: an upper bound, which makes differences
# smaller than they are and never larger. A text speaks for one option and says nothing of the
# others, so they get none. A text that is not understood is no answer.

# %%
#| export
@dataclass(frozen=True)
class ParsedReply:
    "What one reply says of the options"
    lp:tuple        # Log-probability of each option; nan where the reply was not understood
    how:str         # 'probabilities', 'text' or 'not understood'
    unseen:float=0. # Probability outside of what was shown
    bounded:int=0   # Options that were not shown and got their upper bound

def parse_reply(
    reply:dict,   # text, tokens
    prefill:str,
    options:list,
)->ParsedReply:
    "What a reply says of the options"
    k = parse_answer(reply['text'], prefill, options)
    whole = _bare(reply['text']) in [_bare(o) for o in options] # Nothing but the answer
    tail = re.search(r'\W*$', prefill.strip())[0]
    for start in (prefill, tail, '')[:3 if whole else 1]:
        c = candidate_probabilities(reply['tokens'], start, options)
        if c: return _shown(*c)
    if k is None: return ParsedReply((math.nan,)*len(options), 'not understood', 1.)
    lp = tuple(0. if j==k else -math.inf for j in range(len(options)))
    return ParsedReply(lp, 'text')

def _shown(p, total, least):
    unseen = max(0., 1-total)
    bound = max(min(least, unseen), 1e-9)
    lp = tuple(math.log(x or bound) for x in p)
    return ParsedReply(lp, 'probabilities', unseen, sum(not x for x in p))


# %%
r = parse_reply(dict(text='The answer is (b)', tokens=reply), 'The answer is (', ['a','b','c'])
np.exp(r.lp).round(3), r.how, round(r.unseen, 3), r.bounded

# %%
test_close(np.exp(r.lp), [.3, .6, .05])
top = [['b', log(.7)], ['c', log(.2)]]
short = dict(text='(b)', tokens=[['(', 0., []], [*top[0], top], [')', 0., []]])
test_close(np.exp(parse_reply(short, 'The answer is (', ['a','b','c']).lp), [.1, .7, .2])
test_eq(parse_reply(dict(text='I see.', tokens=[]), 'It is (', ['a']).how, 'not understood')


# %% [markdown]
# ## The model
#
# `APIModel` stands where an `LM` stands. It has a name and no weights; `connect` makes one. The key
# is read by the client from the environment and is nowhere else: not in the object's
# text, not in a run's folder, and taken out of whatever a server may say about it.
#
# Hosts differ in what they take. `connect(name, max_tokens=None, max_completion_tokens=400,
# temperature=None, logprobs=False)` suits one whose model reasons before it speaks.

# %%
#| export
@dataclass(eq=False, repr=False)
class APIModel:
    "A model behind an API"
    name:str
    client:object
    where:str           # Host and path of the server, without credentials
    logprobs:bool=True  # Ask for the likeliest tokens
    top:int=20          # How many of them; hosts allow 20
    parallel:int=8      # Requests under way
    extra:dict=field(default_factory=dict) # Settings of each request; None: leave it out
    readings:list=field(default_factory=list) # Of every answer so far
    remote = True
    oracle = False
    source = 'an API'
    device = 'remote'
    dtype = 'unknown'

    def __repr__(self): return f'Remote {self.name} at {self.where}'

    @property
    def identity(self): # What determines its answers, as far as can be known
        return dict(name=self.name, where=self.where, logprobs=self.logprobs, top=self.top,
                    extra=self.extra)

    @property
    def coverage(self): # What could be had so far and what could not
        return coverage(self.readings)

    def render(self, turns, prefill='', mode='chat-noprefill'):
        if mode=='chat-noprefill': return build_messages(turns, prefill)
        raise ConfigError(f'{self.name} is behind an API, where no answer can be begun for '
                          "it; use mode='chat-noprefill'.")

def _where(url):
    u = urlsplit(str(url))
    return f'{u.hostname}{f":{u.port}" if u.port else ""}{u.path}'.rstrip('/')

def connect(
    name:str,           # As the server calls the model
    base_url:str=None,  # By default that of OPENAI_BASE_URL, or OpenAI's own
    logprobs:bool=True, # False for models that show none: their text is read
    top_logprobs:int=20,
    parallel:int=8,
    retries:int=6,      # After errors that pass; the client waits as the server tells it
    timeout:float=120,  # Seconds a request may take
    key_variable:str='OPENAI_API_KEY', # Name of the environment variable that holds the key
    **extra,            # Settings of each request, None to leave one out
)->APIModel:
    "A model behind an API that speaks OpenAI's dialect"
    try: from openai import OpenAI
    except ImportError:
        raise ConfigError('A model behind an API needs the client: pip install '
                          '"moral_sc[api]".') from None
    secret = os.environ.get(key_variable)
    base_url = base_url or os.environ.get('OPENAI_BASE_URL')
    if not (secret or base_url):
        raise ConfigError(f'There is no key: put it into the environment as {key_variable}.')
    client = OpenAI(api_key=secret or 'none', base_url=base_url, max_retries=retries,
                    timeout=timeout)
    return APIModel(name, client, _where(client.base_url), logprobs, top_logprobs, parallel, extra)


# %% [markdown]
# What goes wrong on the way is said in one sentence. Errors that may pass, too many requests,
# a server that is busy, a lost connection, the client has by then retried.

# %%
#| export
def _tell(lm, e):
    "An error of ours for one of the client's"
    import openai
    later = 'start the same command again later, answers are kept.'
    kinds = [
        (openai.AuthenticationError, ConfigError, 'refuses the key; set a valid one.'),
        (openai.PermissionDeniedError, ConfigError, 'does not let this key use it.'),
        (openai.NotFoundError, ConfigError, f'knows no model {lm.name!r}.'),
        (openai.RateLimitError, ModelError, f'takes no more requests for now; {later}'),
        (openai.BadRequestError, ConfigError, 'refuses the request ({why}); a model that '
         'shows no probabilities needs logprobs=False.'),
        (openai.APIConnectionError, ModelError, f'cannot be reached; {later}'),
        (openai.OpenAIError, ModelError, 'fails ({why}); '+later)]
    err,text = next((k,t) for c,k,t in kinds if isinstance(e, c))
    why = str(getattr(e, 'message', e)).replace(lm.client.api_key, '...').splitlines()[:1]
    return err(f'{lm.where} '+text.replace('{why}', ''.join(why)[:150]))

def _piece(t): # A token may end inside a character
    return bytes(t.bytes).decode('utf-8', 'surrogateescape') if t.bytes else t.token

def _request(lm, messages, **how):
    "One request, as a row"
    import openai
    try: r = lm.client.chat.completions.create(model=lm.name, messages=messages, **how)
    except openai.OpenAIError as e: raise _tell(lm, e) from None
    if not getattr(r, 'choices', None):
        raise ModelError(f'{lm.where} answered without an answer; is it a chat model?')
    c = r.choices[0]
    shown = c.logprobs.content if c.logprobs and c.logprobs.content else []
    tokens = [[_piece(t), t.logprob, [[_piece(k), k.logprob] for k in t.top_logprobs]]
              for t in shown]
    return dict(text=c.message.content or '', finish=c.finish_reason, tokens=tokens,
                model=r.model, fingerprint=r.system_fingerprint,
                used=r.usage.completion_tokens if r.usage else 0)


# %% [markdown]
# Replies are kept as they came, tokens and all, so that a better way to read them needs no
# second request; a run that has a reply never asks again. Requests go out several at a time, and
# each reply is stored when it comes.

# %%
#| export
def _fetch(lm, todo, run, progress=None):
    "See that `run` holds the reply to every request in `todo`, name to arguments"
    names = list(todo)
    groups = [names[n:n+4*lm.parallel] for n in range(0, len(names), 4*lm.parallel)]
    for n in run.blocks(groups):
        with ThreadPoolExecutor(lm.parallel) as pool:
            jobs = {pool.submit(_request, lm, **todo[k]):k for k in run.missing(groups[n])}
            try:
                for j in as_completed(jobs): run.put(jobs[j], j.result())
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        if progress: progress(len(names)-len(run.missing(names)), len(names))
    return {k:run.get(k) for k in names}

def _ask(lm, prompts, hows, run, progress=None):
    "The reply to each prompt; what is asked twice is asked once"
    many = [dict(messages=list(p.messages)) | h | lm.extra for p,h in zip(prompts, hows)]
    many = [{k:v for k,v in m.items() if v is not None} for m in many]
    names = [content_key(reply=lm.identity, **m) for m in many]
    with run_or_temporary(run) as r: got = _fetch(lm, dict(zip(names, many)), r, progress)
    return [got[k] for k in names]


# %% [markdown]
# `answers` is to a remote model what `option_logprobs` is to one in memory. The likeliest tokens
# are wanted, not a draw, so the temperature is zero; the seed is sent along, which hosts treat as
# a wish.

# %%
#| export
def _readings(lm, prompts, options, run=None, seed=0, progress=None):
    per = [options]*len(prompts) if isinstance(options[0], str) else options
    ask = dict(logprobs=True, top_logprobs=lm.top) if lm.logprobs else {}
    hows = [dict(ask, temperature=0, seed=seed, max_tokens=16+len(p.prefill)//2)
            for p in prompts]
    replies = _ask(lm, prompts, hows, run, progress)
    return [parse_reply(r, p.prefill, list(o)) for r,p,o in zip(replies, prompts, per)]

def coverage(
    readings:list, # Of `Reading`
)->dict:
    "What could be had and what could not"
    how = Counter(r.how for r in readings)
    seen = [r for r in readings if r.how=='probabilities']
    return dict(answers=len(readings), **{k.replace(' ', '_'):how[k] for k in
                ('probabilities','text','not understood')},
                bounded=sum(r.bounded>0 for r in seen),
                unseen=max((r.unseen for r in seen), default=0.))

def _said(lm, c):
    if c['answers']==c['probabilities'] and not c['bounded']: return
    parts = [f'{c["probabilities"]} read from probabilities', f'{c["text"]} from text',
             f'{c["not_understood"]} not understood']
    if c['bounded']: parts.append(f'in {c["bounded"]} an option was not among the {lm.top} '
                                  'likeliest tokens and got its upper bound')
    warnings.warn(f'{lm.name}: {c["answers"]} answers, {", ".join(parts)}.', stacklevel=3)

def answers(
    lm:APIModel,
    prompts:list,   # Of `Asked`
    options:list,   # Strings shared by all prompts, or one list of strings a prompt
    run=None,       # A `Run`: what it holds is not asked again
    seed:int=0,
    progress=None,  # Called with (replies there, replies in all)
)->np.ndarray:      # [prompt, option] natural log; a row of nan where not understood
    "Log-probability of each option, as far as the replies show it"
    rs = _readings(lm, prompts, options, run, seed, progress)
    _said(lm, coverage(rs))
    lm.readings += rs
    return np.array([r.lp for r in rs])

APIModel.answers = answers


# %% [markdown]
# Where a model reasons first, its words are sampled with a seed of their own for each row. It is
# asked to begin with the opener; the opener, if it is there, is cut off, because the second stage
# puts it back.

# %%
#| export
def _thought(text, opener):
    t = text.lstrip()
    if opener and t.casefold().startswith(opener.casefold()): return t[len(opener):]
    return ' '+t if opener and t else t

def say(
    lm:APIModel,
    prompts:list,           # Of `Asked`
    max_new_tokens:int=256,
    temperature:float=1.,
    stop=(),                # At most four strings
    seed:int=0,
    keys:list=None,         # Names of the rows; default: their numbers
    run=None,
    progress=None,
)->list:                    # One `Sample` a prompt; ids only count the tokens
    "Let a model behind an API write"
    keys = list(range(len(prompts))) if keys is None else keys
    stop = [stop] if isinstance(stop, str) else list(stop)
    hows = [dict(temperature=temperature, max_tokens=max_new_tokens,
                 seed=int(content_key(seed=seed, row=str(k))[:7], 16),
                 **(dict(stop=stop) if stop else {})) for k in keys]
    replies = _ask(lm, prompts, hows, run, progress)
    return [Sample(_thought(r['text'], p.prefill), (-1,)*r['used'], r['finish'] or 'stop',
                   seed, 0) for r,p in zip(replies, prompts)]

APIModel.sample = say


# %% [markdown]
# ## A server whose answers are known
#
# To prove all this there is a server that speaks the dialect and says what a function says: the
# counterpart of `lookup`. The function gets the messages and gives, after the words it was asked
# to begin with, each continuation with its probability.

# %%
#| export
def _tokens(words, given, top):
    "The words asked for, then the likeliest continuation with its rivals, as tokens"
    ranked = sorted(given.items(), key=lambda kv: -kv[1])
    show = [dict(token=t, logprob=math.log(max(p, 1e-12)), bytes=None) for t,p in ranked]
    said = [dict(token=w, logprob=0., bytes=None, top_logprobs=[]) for w in words]
    return [*said, dict(show[0], top_logprobs=show[:top])]

def _reply(body, fn, begins, logprobs):
    asked = body['messages'][-1]['content'].rpartition(request_prefill('', ''))[2]
    has = request_prefill('', '') in body['messages'][-1]['content']
    words = re.findall(r'\S+\s*|\s+', asked) if begins and has else []
    tokens = _tokens(words, fn(body['messages']), body.get('top_logprobs', 0))
    shown = dict(content=tokens) if logprobs and body.get('logprobs') else None
    text = ''.join(t['token'] for t in tokens)
    choice = dict(index=0, finish_reason='stop', logprobs=shown,
                  message=dict(role='assistant', content=text))
    return dict(id='0', object='chat.completion', created=0, model=body['model'],
                choices=[choice], usage=dict(prompt_tokens=0, completion_tokens=len(tokens),
                                             total_tokens=len(tokens)))

@contextmanager
def stub_server(
    fn,                 # Messages -> {continuation: probability}
    follows_prefill:bool=True,   # Begins its answers as it is asked to
    logprobs:bool=True, # Shows probabilities
    status_codes=(),         # Status codes of the first requests: (429, 500)
    key:str=None,       # Refuse any other
):                      # Yields its base URL and the list of requests it got
    "A server on this machine that says what a function says"
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from threading import Lock, Thread
    got = []
    ills = list(status_codes)
    lock = Lock()
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_): pass
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers['content-length'])))
            with lock: got.append(body); ill = ills.pop(0) if ills else None
            sent = self.headers.get('authorization', '').removeprefix('Bearer ')
            if key and sent!=key: ill = ill or 401
            out = dict(error=dict(message=f'no: {sent}')) if ill else _reply(
                body, fn, follows_prefill, logprobs)
            data = json.dumps(out).encode()
            self.send_response(ill or 200)
            if ill: self.send_header('retry-after-ms', '1')
            self.send_header('content-type', 'application/json')
            self.send_header('content-length', str(len(data)))
            self.end_headers()
            self.wfile.write(data)
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try: yield f'http://127.0.0.1:{server.server_port}/v1', got
    finally: server.shutdown(); server.server_close()


# %%
known = dict(a=.2, b=.5, c=.25)
asks = [[('human', f'Question {k}?')] for k in range(12)]
with stub_server(lambda ms: known, status_codes=(429, 500)) as (url,got):
    lm = connect('fake', url)
    prompts = [render(lm, t, 'The answer is (', 'chat-noprefill') for t in asks]
    lp = lm.answers(prompts, ['a','b','c'])
np.exp(lp[0]).round(6), lm.coverage, len(got)

# %% [markdown]
# What the server meant is what was read; twelve questions took fourteen requests, because the
# first two failed in ways that pass.

# %%
test_close(np.exp(lp), [list(known.values())]*12)
test_eq((lm.coverage['probabilities'], len(got)), (12, 14))
test_close(lm.coverage['unseen'], .05)

# %% [markdown]
# Nothing is asked twice: not within a call, not by a second call on the same run, and not after
# one was cut off by a server that went away.

# %%
with tempfile.TemporaryDirectory() as d, open_run(d, {}) as run:
    with stub_server(lambda ms: known, key=None) as (url,got):
        lm = connect('fake', url)
        a = lm.answers(prompts[:4]*2, ['a','b','c'], run)
        n = len(got)
        b = lm.answers(prompts[:6], ['a','b','c'], run)
    test_eq((n, len(got)), (4, 6))
    test_eq(a[:4], b[:4])
    lm.client = lm.client.with_options(max_retries=0)
    test_eq(lm.answers(prompts[:6], ['a','b','c'], run), b)
    with expect_fail(ModelError, contains='cannot be reached'):
        lm.answers(prompts, ['a','b','c'], run)

# %% [markdown]
# Of thirty candidates twenty are shown. An option that is not among them gets its bound, and a
# model that will not begin as asked, or shows no probabilities, is read from its text; each of
# these is counted, and said.

# %%
import contextlib
many = {f'word{k}':.03 for k in range(29)} | dict(b=.1, a=.005)
cases = dict(shown=dict(fn=lambda ms: many),
             text=dict(fn=lambda ms: {'(b)':1.}, follows_prefill=False, logprobs=False),
             neither=dict(fn=lambda ms: {'I cannot say.':1.}, follows_prefill=False))
found = {}
for name,how in cases.items():
    with stub_server(**how) as (url,_), warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        lp = connect(name, url).answers(prompts[:1], ['a','b','c'])
    found[name] = lp[0]
    print(str(w[0].message))

# %%
test_close(np.exp(found['shown']), [.03, .1, .03], 1e-6)
test_eq(np.exp(found['text']), [0, 1, 0])
assert np.isnan(found['neither']).all()

# %% [markdown]
# The reasoning that comes back is free of the opener, and a sample has its own seed.

# %%
opener = "Let's think about it."
with stub_server(lambda ms: {' Nobody said who.':1.}) as (url,got):
    lm = connect('thinker', url)
    p = render(lm, asks[0], opener, 'chat-noprefill')
    said = lm.sample([p, p], stop=['\n\nHuman:'], keys=['x','y'])
assert got[0]['seed']!=got[1]['seed']
said[0].text, said[0].finish, len(said[0].ids)

# %% [markdown]
# ## The key
#
# This server repeats the key in its complaints, as some do. Neither our messages nor the folder
# of a run have it.

# %%
os.environ['FAKE_KEY'] = 'sk-secret-1234567890'
refuses = stub_server(lambda ms: known, status_codes=[400], key='another')
with tempfile.TemporaryDirectory() as d, refuses as (url,_):
    lm = connect('fake', url, key_variable='FAKE_KEY')
    told = []
    with open_run(d, dict(model=lm.identity)) as run:
        for _ in range(2):
            try: lm.answers(prompts[:1], ['a','b','c'], run)
            except ConfigError as e: told.append(re.sub(r':\d+', '', str(e)))
    files = b''.join(p.read_bytes() for p in Path(d).rglob('*') if p.is_file())
del os.environ['FAKE_KEY']
assert b'sk-secret' not in files and 'sk-secret' not in repr((lm, told))
print('\n'.join(told))

# %% [markdown]
# ## Mistakes

# %%
plain = dict(max_tokens=None, max_completion_tokens=40, temperature=None)
with stub_server(lambda ms: known) as (url,got):
    connect('reasoner', url, logprobs=False, **plain).answers(prompts[:1], ['a','b','c'])
test_eq(set(got[0]), {'messages','model','seed','max_completion_tokens'})
with stub_server(lambda ms: known, status_codes=[400, 404]) as (url,_):
    lm = connect('nobody', url, parallel=1)
    with expect_fail(ConfigError, contains='logprobs=False'): lm.answers(prompts[:1], ['a'])
    with expect_fail(ConfigError, contains="no model 'nobody'"):
        lm.answers(prompts[:1], ['a'])
    with expect_fail(ConfigError, contains='chat-noprefill'): render(lm, asks[0], 'x')
had = {k: os.environ.pop(k, None) for k in ('OPENAI_API_KEY','OPENAI_BASE_URL')}
with expect_fail(ConfigError, contains='no key'): connect('gpt')
os.environ.update({k:v for k,v in had.items() if v})
