# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Chat
#
# > From the turns of a conversation to the exact tokens a model reads.

# %%
#| default_exp language.chat

# %%
#| export
from dataclasses import dataclass
from hashlib import sha256

from moral_sc.foundation.errors import ConfigError, unknown_name_message
from moral_sc.language.models import encode

# %%
#| hide
from fastcore.test import *
from transformers import AutoTokenizer
from moral_sc.language.loading import load
from moral_sc.language.models import LM, decode
from moral_sc.language.stub_models import random_model
from moral_sc.language.weights import cached_weights


# %% [markdown]
# Two experiments that agree in every word can still differ in what the model read: a template
# may add a system prompt, drop a trailing space or begin with a second BOS. What is compared
# is therefore always token ids, and a `Prompt` carries them next to its text.

# %%
#| export
@dataclass(frozen=True)
class Prompt:
    "What a model reads, as text and as tokens"
    text:str
    ids:tuple   # Token ids of the whole text, with one BOS if the model uses one
    n_fixed:int=0 # So many leading ids were sampled and must not be tokenised again
    tail:str='' # The text after those ids

    @property
    def hash(self): # Two runs are comparable if these agree
        return sha256(repr(self.ids).encode()).hexdigest()[:12]

def encode_prompt(
    lm,
    text,      # A string, or a `Prompt`, which is returned as it is
)->Prompt:
    "Text as a `Prompt`"
    if isinstance(text, Prompt): return text
    return Prompt(text, tuple(encode(lm, text)), 0, text)


# %%
tiny = random_model('gemma3')
p = encode_prompt(tiny, 'The answer is (')
p.ids[:4], p.hash

# %% [markdown]
# This tokenizer has a token for each byte and a BOS, number 2. A text that brings its own BOS
# does not get another.

# %%
test_eq(encode_prompt(tiny, '<bos>The').ids, encode_prompt(tiny, 'The').ids)
test_eq(encode_prompt(tiny, 'The').ids.count(2), 1)
test_eq(encode_prompt(random_model('llama'), 'The').ids.count(2), 0)

# %% [markdown]
# ## Three modes
#
# `plain` writes the headings of the papers into the text, `Human:` and `Assistant:`, and suits
# models that were never taught a template [@ganguli2023]. `chat` uses the model's template and
# then puts the first words of the answer into its mouth. `chat-noprefill` is `chat` as
# [a hosted model](60_api_models.ipynb) offers it, where the answer cannot be begun for the model: it
# is asked to begin with those words instead, and may or may not do so.
#
# The prefill is appended to the rendered template as it is. Passing it through the template,
# as the last assistant message, would let the template strip it, and `The answer is (` with a
# space lost is another question.

# %%
#| export
_names = dict(human='Human', assistant='Assistant')
_roles = dict(human='user', assistant='assistant', system='system')
modes = ('plain', 'chat', 'chat-noprefill')

def _plain(turns, prefill):
    said = [t if r=='system' else f'\n\n{_names[r]}: {t}' for r,t in turns]
    return ''.join(said) + '\n\nAssistant:' + (f' {prefill}' if prefill else '')

def _chat(lm, turns, prefill, default_system):
    if not lm.tokenizer.chat_template:
        raise ConfigError(f"{lm.name} has no chat template; use mode='plain'.")
    msgs = [dict(role=_roles[r], content=t) for r,t in turns]
    if not default_system and msgs[0]['role']!='system':
        msgs.insert(0, dict(role='system', content=''))
    kw = dict(tokenize=False, add_generation_prompt=True, date_string='26 Jul 2024')
    try: return lm.tokenizer.apply_chat_template(msgs, **kw) + prefill
    except Exception as e: # Templates raise what they like
        raise ConfigError(f'The template of {lm.name} refuses these turns: {e}.') from e


# %%
#| export
def _check_turns(turns, prefill, mode):
    if mode not in modes: raise ConfigError(unknown_name_message('mode', mode, list(modes)))
    for role,_ in turns:
        if role not in _roles: raise ConfigError(unknown_name_message('role', role, list(_roles)))
    if not turns or turns[-1][0]!='human':
        raise ConfigError('A conversation that asks for an answer ends with a human turn.')

def request_prefill(
    text:str,    # The last human turn
    prefill:str, # The words the answer should begin with
)->str:
    "Ask for a beginning that cannot be put into the model's mouth"
    return f'{text}\n\nBegin your answer with exactly these words: {prefill}'

def _requested(turns, prefill):
    *said,(role,text) = turns
    return [*said, (role, request_prefill(text, prefill))] if prefill else turns

def render(
    lm,
    turns:list,               # (role, text) pairs; roles: human, assistant, system
    prefill:str='',           # First words of the answer, put into the model's mouth
    mode:str='plain',         # 'plain', 'chat' or 'chat-noprefill'
    default_system:bool=True, # False: an empty system prompt in place of a template's own
)->Prompt:
    "The prompt that asks a model for the next assistant turn"
    _check_turns(turns, prefill, mode)
    if getattr(lm, 'remote', False): return lm.render(turns, prefill, mode)
    if mode=='chat-noprefill': turns,prefill = _requested(turns, prefill), ''
    if mode=='plain': return encode_prompt(lm, _plain(turns, prefill))
    return encode_prompt(lm, _chat(lm, turns, prefill, default_system))


# %%
asks = [('human', 'Is it far?'), ('assistant', 'Two miles.'), ('human', 'And back?')]
for mode in modes:
    print('~~', mode); print(render(tiny, asks, 'The answer is (', mode).text)

# %% [markdown]
# What is put into the model's mouth arrives whole, spaces at its end included, and the plain
# form never ends in a space of its own, because the space belongs to the token that follows.

# %%
for mode in ('plain','chat'):
    assert render(tiny, asks, 'It is \n', mode).text.endswith('It is \n')
test_eq(render(tiny, asks).text[-12:], '\n\nAssistant:')

# %% [markdown]
# What cannot be asked is refused in a sentence.

# %%
with expect_fail(ConfigError, contains='human turn'): render(tiny, asks[:2])
with expect_fail(ConfigError, contains='assistant'): render(tiny, [('asistant', 'x')])
with expect_fail(ConfigError, contains='plain'): render(tiny, asks, mode='plane')

# %% [markdown]
# ## Templates have opinions
#
# SmolLM2's template opens a conversation with a system prompt of its own, and so do others.
# That is how the model was trained, so it stays by default; `default_system=False` asks for an
# empty system turn instead. Its like, on the tiny tokenizer:

# %%
own = ("{% if messages[0].role!='system' %}<|im_start|>system\nYou are a helpful assistant."
       "<|im_end|>\n{% endif %}" + tiny.tokenizer.chat_template)
tiny.tokenizer.chat_template = own
for default in (True, False): print(repr(render(tiny, asks[2:], '', 'chat', default).text))

# %%
assert 'helpful' in render(tiny, asks, mode='chat').text
assert 'helpful' not in render(tiny, asks, mode='chat', default_system=False).text
assert 'helpful' not in render(tiny, [('system', 'Be brief.'), *asks], mode='chat').text

# %% [markdown]
# A base model has no template, and some templates know no system turn. Both are said.

# %%
tiny.tokenizer.chat_template = "{{ raise_exception('no system turns') }}"
with expect_fail(ConfigError, contains='no system turns'): render(tiny, asks, mode='chat')
tiny.tokenizer.chat_template = None
with expect_fail(ConfigError, contains="use mode='plain'"): render(tiny, asks, mode='chat')

# %% [markdown]
# ## A real template
#
# The same on SmolLM2, if its weights are on this machine. Written through the template's own
# machinery for continued messages, the text is the same; the ids are those of the text; no
# token is there twice.

# %%
name = 'smollm2-135m-instruct'
real = load(name, 'float32', 'cpu') if cached_weights(name) else None
p = render(real, asks, 'The answer is (', 'chat') if real else None
print(p.text if p else f'{name} is not in the cache: left out here.')

# %%
if real:
    said = [*asks, ('assistant', 'The answer is (')]
    msgs = [dict(role=dict(human='user').get(r, r), content=t) for r,t in said]
    test_eq(p.text, real.tokenizer.apply_chat_template(msgs, tokenize=False,
                                                       continue_final_message=True))
    test_eq(decode(real, p.ids), p.text)
    test_eq(p.ids.count(1), 5) # <|im_start|>: the default system prompt and four turns
    test_eq(p.hash, 'f44a75b27f21')

# %% [markdown]
# Gemma's base model takes a BOS and has no template.

# %%
d = cached_weights('gemma-3-270m')
gemma = d and LM(None, AutoTokenizer.from_pretrained(d), d.name)
if d: test_eq(render(gemma, asks).ids[:3], (2, 108, 36623)) # <bos>, two newlines, Human
gemma.tokenizer.convert_ids_to_tokens(render(gemma, asks).ids[:6]) if d else 'left out here'
