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
# > `render` turns a conversation into the exact token ids of a prompt.

# %%
#| default_exp language.chat

# %%
#| export
from dataclasses import dataclass
from hashlib import sha256

from moral_sc.foundation.errors import ConfigError, short_repr, unknown_name_message
from moral_sc.language.models import encode

# %%
#| hide
from fastcore.test import *
from transformers import AutoTokenizer
from moral_sc.language.loading import load
from moral_sc.language.models import LM, decode
from moral_sc.language.stub_models import prefix_space_tokenizer, random_model
from moral_sc.language.weights import cached_weights


# %% [markdown]
# Two experiments with the same words can still differ in the tokens of the prompt: a template may add
# a system prompt, drop a trailing space or add a second BOS. Comparisons are therefore made on
# token ids, and a `Prompt` carries them next to its text.

# %%
#| export
@dataclass(frozen=True)
class Prompt:
    "A prompt as text and as token ids"
    text:str
    ids:tuple     # Token ids of the whole text, with one BOS if the model uses one
    n_fixed:int=0 # Number of leading ids that were sampled and must not be tokenised again
    tail:str=''   # The text after those ids

    @property
    def hash(self): # Equal for prompts with equal ids
        return sha256(repr(self.ids).encode()).hexdigest()[:12]

def encode_prompt(
    lm,
    text,      # A string, or a `Prompt`, which is returned unchanged
)->Prompt:
    "Tokenise a text as a `Prompt`"
    if isinstance(text, Prompt): return text
    if not isinstance(text, str):
        raise ConfigError(f'The prompt {short_repr(text)} is no text; give a string.')
    return Prompt(text, tuple(encode(lm, text)), 0, text)


# %% [markdown]
# An answer, or the next turn of a dialogue, follows ids that are fixed already. Its own ids are those
# that it has within the whole text. Tokenised alone it can have others: a tokenizer of
# SentencePiece's kind puts a space before each text, and after a prompt this space would be a token too
# many.

# %%
#| export
def encode_prompts(
    lm,
    prompts, # One string or `Prompt`, or several
)->list:     # Of `Prompt`
    "Tokenise texts as prompts"
    if isinstance(prompts, (str, Prompt)): prompts = [prompts]
    if not hasattr(prompts, '__iter__'):
        raise ConfigError(f'The prompts are {short_repr(prompts)}; give a list of strings.')
    return [encode_prompt(lm, p) for p in prompts]


# %%
#| export
def encode_after(
    lm,
    text:str,   # What stands before
    texts:list, # Strings that follow it
)->list:        # Token ids of each string
    "Tokenise strings as continuations of a text"
    return encode_each_after(lm, [text]*len(texts), texts)

def encode_each_after(
    lm,
    before:list, # What stands before each string
    texts:list,
)->list:         # Token ids of each string
    "Tokenise each string as the continuation of its own text, all at once"
    heads = [t[-64:] for t in before] # Far more than a token
    rows = encode(lm, [*heads, *(h+t for h,t in zip(heads, texts, strict=True))])
    return [whole[len(prefix):] if head and whole[:len(prefix)]==prefix else _encode_inside(lm, t)
            for head,prefix,whole,t in zip(heads, rows, rows[len(heads):], texts)]

def _encode_inside(lm, text):
    "Tokenise a text without the space that a tokenizer puts before it"
    ids = lambda x: lm.tokenizer(x, add_special_tokens=False).input_ids
    first = lm.tokenizer.convert_ids_to_tokens(ids('a')[:1])
    if not first or first[0][:1] not in ('▁','Ġ'): return ids(text)
    for before in ('.', '\n', 'a', '0', '"', '-'): # The first that no token joins with the text
        prefix = ids(before)
        whole = ids(before+text)
        if whole[:len(prefix)]==prefix: return whole[len(prefix):]
    return ids(text)


# %%
spaces = {k: random_model('llama', tokenizer=prefix_space_tokenizer(k)) for k in
          ('prepend', 'always', 'first')}
shown = {}
for kind,lm in spaces.items():
    p = encode_prompt(lm, '\n\nHuman: Go?\n\nAssistant:')
    for text in (' Yes', 'Yes', '\n\nHuman: So?', ' (', '\n'):
        whole = encode(lm, p.text+text)
        test_eq([*p.ids, *encode_after(lm, p.text, [text])[0]], whole)
        test_eq(decode(lm, whole)[-len(text):], text)
    alone = lm.tokenizer(' Yes', add_special_tokens=False).input_ids
    shown[kind] = [lm.tokenizer.convert_ids_to_tokens(i) for i in
                   (alone, encode_after(lm, p.text, [' Yes'])[0])]
    test_eq(encode_after(lm, '', ['Yes'])[0], encode_after(lm, 'Y', ['es'])[0][:0]+[
        *lm.tokenizer.convert_tokens_to_ids(['Y', 'e', 's'])])
shown

# %% [markdown]
# If a token would join the two texts, the ids before stay as they are, and the text after them is
# tokenised alone, still without a space.

# %%
merged = random_model('llama', merges=[('i','t')])
test_eq(encode_after(merged, 'xi', ['t (']), [merged.tokenizer('t (').input_ids])
for lm in spaces.values():
    test_eq(lm.tokenizer.convert_ids_to_tokens(encode_after(lm, 'So ', ['Yes'])[0]),
            ['Y', 'e', 's'])

# %%
tiny = random_model('gemma3')
for wrong in (None, ['a'], 5):
    with expect_fail(ConfigError, contains='is no text'): encode_prompt(tiny, wrong)
p = encode_prompt(tiny, 'The answer is (')
p.ids[:4], p.hash

# %% [markdown]
# This tokenizer has a token for each byte and a BOS with id 2. A text that starts with a BOS does
# not get another.

# %%
test_eq(encode_prompt(tiny, '<bos>The').ids, encode_prompt(tiny, 'The').ids)
test_eq(encode_prompt(tiny, 'The').ids.count(2), 1)
test_eq(encode_prompt(random_model('llama'), 'The').ids.count(2), 0)

# %% [markdown]
# ## Prompt modes
#
# `plain` writes the headings of the papers into the text, `Human:` and `Assistant:`. It suits
# models that were never trained with a chat template [@ganguli2023]. `chat` uses the model's template
# and prefills the answer. `chat-noprefill` is `chat` for
# [API models](60_api_models.ipynb), where the answer cannot be prefilled: a sentence in the prompt
# asks the model to begin with those words instead, and the model may not comply.
#
# The prefill is appended to the rendered template unchanged. As the last assistant message it would
# pass through the template, which may strip it, and `The answer is (` without a space is another
# prompt.

# %%
#| export
_names = dict(human='Human', assistant='Assistant')
_roles = dict(human='user', assistant='assistant', system='system')
modes = ('plain', 'chat', 'chat-noprefill')

def render_plain(
    turns:list,      # (role, text) pairs; roles: human, assistant, system
    prefill:str='',  # First words of the answer
)->str:
    "Write a conversation as text, in the form of mode 'plain'"
    texts = [t if r=='system' else f'\n\n{_names[r]}: {t}' for r,t in turns]
    return ''.join(texts) + '\n\nAssistant:' + (f' {prefill}' if prefill else '')

def _render_chat(lm, turns, prefill, default_system):
    if not lm.tokenizer.chat_template:
        raise ConfigError(f"{lm.name} has no chat template; use mode='plain'.")
    msgs = [dict(role=_roles[r], content=t) for r,t in turns]
    if not default_system and msgs[0]['role']!='system':
        msgs.insert(0, dict(role='system', content=''))
    kw = dict(tokenize=False, add_generation_prompt=True, date_string='26 Jul 2024')
    try: text = lm.tokenizer.apply_chat_template(msgs, **kw)
    except Exception as e: # Templates raise any kind of exception
        joined = _join_turns(turns)
        if len(joined)<len(turns): return _render_chat(lm, joined, prefill, default_system)
        raise ConfigError(f"The chat template of {lm.name} rejects the turns that end with "
                          f"{turns[-1][1][-60:]!r} ({e}); change them or use mode='plain'."
                          ) from e
    for _,t in turns: # Templates may trim turns, and leave out finished thoughts
        if t.rpartition('</think>')[2].strip() in text: continue
        raise ConfigError(f'The chat template of {lm.name} leaves out or changes the turn '
                          f"{t[:60]!r}; correct it, or use mode='plain'.")
    return text+prefill

def _join_turns(turns):
    "Join turns of one role that follow each other"
    res = []
    for role,text in turns:
        if res and res[-1][0]==role: res[-1] = role,f'{res[-1][1]}\n\n{text}'
        else: res.append((role, text))
    return res


# %%
#| export
def _check_turns(turns, prefill, mode):
    if mode not in modes: raise ConfigError(unknown_name_message('mode', mode, list(modes)))
    pairs = isinstance(turns, (list, tuple)) and all(
        isinstance(t, (list, tuple)) and len(t)==2 and isinstance(t[1], str) for t in turns)
    if not pairs:
        raise ConfigError(f'The conversation is {short_repr(turns)}; give a list of pairs, such as '
                          "[('human', 'Hello.')].")
    for role,_ in turns:
        if role in _roles: continue
        raise ConfigError(unknown_name_message('role', role, list(_roles)))
    if not turns or turns[-1][0]!='human':
        last = f'ends with the role {turns[-1][0]!r}' if turns else 'is empty'
        raise ConfigError(f"The conversation {last}; end it with a human turn: ('human', text).")

def request_prefill(
    text:str,    # The last human turn
    prefill:str, # The words the answer should begin with
)->str:
    "Append a request to begin the answer with given words, for models without prefill"
    return f'{text}\n\nBegin your answer with exactly these words: {prefill}'

def _append_request(turns, prefill):
    *history,(role,text) = turns
    return [*history, (role, request_prefill(text, prefill))] if prefill else turns

def render(
    lm,
    turns:list,               # (role, text) pairs; roles: human, assistant, system
    prefill:str='',           # First words of the answer
    mode:str='plain',         # 'plain', 'chat' or 'chat-noprefill'
    default_system:bool=True, # False: an empty system prompt replaces the template's default
)->Prompt:
    "Render a conversation as the prompt for the next assistant turn"
    _check_turns(turns, prefill, mode)
    if getattr(lm, 'remote', False): return lm.render(turns, prefill, mode)
    if mode=='chat-noprefill': turns,prefill = _append_request(turns, prefill),''
    if mode=='plain': return encode_prompt(lm, render_plain(turns, prefill))
    return encode_prompt(lm, _render_chat(lm, turns, prefill, default_system))


# %%
turns = [('human', 'Is it far?'), ('assistant', 'Two miles.'), ('human', 'And back?')]
for mode in modes:
    print('~~', mode); print(render(tiny, turns, 'The answer is (', mode).text)

# %% [markdown]
# The prefill is complete, including trailing spaces. The plain form without a prefill never ends
# in a space, because that space belongs to the next token.

# %%
for mode in ('plain','chat'):
    assert render(tiny, turns, 'It is \n', mode).text.endswith('It is \n')
test_eq(render(tiny, turns).text[-12:], '\n\nAssistant:')

# %% [markdown]
# Invalid conversations and modes raise an error of one sentence.

# %%
with expect_fail(ConfigError, contains='human turn'): render(tiny, turns[:2])
with expect_fail(ConfigError, contains='assistant'): render(tiny, [('asistant', 'x')])
with expect_fail(ConfigError, contains='plain'): render(tiny, turns, mode='plane')
for wrong in ('Hello', None, [dict(role='user')], [('human', 'a', 'b')], [('human', 3)]):
    with expect_fail(ConfigError, contains='give a list of pairs'): render(tiny, wrong)

# %% [markdown]
# ## Default system prompts
#
# SmolLM2's template adds a default system prompt, and so do others. The model was trained with it, so
# it stays by default; `default_system=False` sends an empty system turn instead. Here is a similar
# template on the tiny tokenizer:

# %%
template = ("{% if messages[0].role!='system' %}<|im_start|>system\nYou are a helpful assistant."
            "<|im_end|>\n{% endif %}" + tiny.tokenizer.chat_template)
tiny.tokenizer.chat_template = template
for default in (True, False): print(repr(render(tiny, turns[2:], '', 'chat', default).text))

# %%
assert 'helpful' in render(tiny, turns, mode='chat').text
assert 'helpful' not in render(tiny, turns, mode='chat', default_system=False).text
assert 'helpful' not in render(tiny, [('system', 'Be brief.'), *turns], mode='chat').text

# %% [markdown]
# A base model has no template, and some templates reject system turns. Both raise an error.

# %%
tiny.tokenizer.chat_template = "{{ raise_exception('no system turns') }}"
with expect_fail(ConfigError, contains='no system turns'): render(tiny, turns, mode='chat')
tiny.tokenizer.chat_template = None
with expect_fail(ConfigError, contains="use mode='plain'"): render(tiny, turns, mode='chat')


# %% [markdown]
# A template that leaves out or rewrites a turn would ask another question, so it raises an error as well.
# Templates may trim turns and leave out what a model thought before `</think>`.

# %%
def loop(body): return '{% for m in messages %}<{{ m.role }}>'+body+'{% endfor %}<assistant>'
for body in ('{{ m.content|upper }}', "{{ m.content if m.role=='user' }}"):
    tiny.tokenizer.chat_template = loop(body)
    with expect_fail(ConfigError, contains='leaves out or changes the turn'):
        render(tiny, turns, mode='chat')
tiny.tokenizer.chat_template = loop("{{ m.content.split('</think>')[-1]|trim }}")
thought = [turns[0], ('assistant', '<think>A mile each way.</think>\n\nTwo.'), turns[2]]
render(tiny, thought, mode='chat').text

# %% [markdown]
# ## A real template
#
# This is SmolLM2's template, if its weights are on this machine. The text equals that of
# transformers' `continue_final_message`, the ids are those of the text, and no special token is
# duplicated.

# %%
name = 'smollm2-135m-instruct'
real = load(name, 'float32', 'cpu') if cached_weights(name) else None
p = render(real, turns, 'The answer is (', 'chat') if real else None
print(p.text if p else f'{name} is not in the cache: skipped.')

# %%
if real:
    history = [*turns, ('assistant', 'The answer is (')]
    msgs = [dict(role=dict(human='user').get(r, r), content=t) for r,t in history]
    test_eq(p.text, real.tokenizer.apply_chat_template(msgs, tokenize=False,
                                                       continue_final_message=True))
    test_eq(decode(real, p.ids), p.text)
    test_eq(p.ids.count(1), 5) # <|im_start|>: the default system prompt and four turns
    test_eq(p.hash, 'f44a75b27f21')

# %% [markdown]
# Gemma's base model uses a BOS and has no template.

# %%
d = cached_weights('gemma-3-270m')
gemma = d and LM(None, AutoTokenizer.from_pretrained(d), d.name)
if d: test_eq(render(gemma, turns).ids[:3], (2, 108, 36623)) # <bos>, two newlines, Human
gemma.tokenizer.convert_ids_to_tokens(render(gemma, turns).ids[:6]) if d else 'skipped'

# %% [markdown]
# Some templates accept only human and assistant turns in alternation. Turns of one role that follow each
# other are then joined; what remains impossible is refused with the words of its last turn.

# %%
strict = random_model('llama')
strict.tokenizer.chat_template = (
    "{% for m in messages %}{% if (m.role=='user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}<{{ m.role }}>{{ m.content }}"
    "{% endfor %}<assistant>")
two = [('human', 'Hi'), ('human', 'Are you there?')]
test_eq(render(strict, two, mode='chat').text, '<user>Hi\n\nAre you there?<assistant>')
with expect_fail(ConfigError, contains="end with 'And back?' (Roles must alternate)"):
    render(strict, [('assistant', 'Hello.'), ('human', 'And back?')], mode='chat')
render(strict, two[1:], mode='chat').text
