# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Critique and revision
#
# > Sample an answer, a critique of it under a principle, and a revision, for several rounds.

# %%
#| default_exp constitution.revision

# %%
#| export
import json
import re
from contextlib import nullcontext
from dataclasses import asdict
from hashlib import sha256

import pandas as pd

# %%
#| export
from moral_sc.foundation.arguments import checked
from moral_sc.foundation.datasets import available, fetch, read_jsonl
from moral_sc.foundation.errors import ConfigError, unknown_name_message
from moral_sc.foundation.progress import progress_callback
from moral_sc.foundation.runs import open_run
from moral_sc.constitution.answers import decoding_batch
from moral_sc.constitution.principles import (
    Principle, draw_principles, HEADINGS, load_few_shot, load_principles)
from moral_sc.constitution.prompts import load_prompts
from moral_sc.language.multi_turn import generate_multi_turn
from moral_sc.language.chat import modes, render
from moral_sc.language.generation import check_sampling_args, sample
from moral_sc.language.loading import load

# %%
#| hide
import contextlib, io, tempfile
from pathlib import Path
from unittest import mock

from moral_sc.foundation.errors import DataError
from moral_sc.language.reward_head import save_model

from fastcore.test import *

from moral_sc.constitution.evaluation.refusals import critic_voice
from moral_sc.constitution.principles import split_dialogue
from moral_sc.language.stub_models import stub_model, random_model

tmp = Path(tempfile.mkdtemp())


# %% [markdown]
# The first stage of Constitutional AI [@bai2022constitutional] makes training data from a
# model's revisions of its own answers. A request for critique under a randomly drawn principle
# is appended to an answer, and the model writes the critique. A request for revision is appended, and the
# model rewrites the answer. The revision then replaces the answer, another principle is drawn, and the
# next round begins.
#
# ## Format of a round
#
# One round is a dialogue of six parts. It is stored as pairs of heading and text, so a prompt
# is the list of pairs before the part that the model is to write.

# %%
#| export
def round_script(
    human:str, answer:str,
    principle:Principle,
    critique:str='',     # The model's critique, if there is one
    revision:str='',
    ask:bool=True,       # False: without a critique
)->list[tuple]:          # (heading, text), six parts or four
    "Return one round of critique and revision"
    dialogue = [('Human', human), ('Assistant', answer)]
    if ask: dialogue += [('CritiqueRequest', principle.critique), ('Critique', critique)]
    return dialogue + [('RevisionRequest', principle.revision), ('Revision', revision)]

def shot_script(shots, ask=True)->list[tuple]:
    "Join worked examples into one dialogue"
    return [turn for s in shots for turn in
            round_script(s.human, s.assistant, s.principle, s.critique, s.revision, ask)]


# %%
shots = load_few_shot()
round_script('Is it far?', 'Find out yourself.', shots[0].principle, 'That is rude.',
             'Two miles.')

# %% [markdown]
# In mode `plain` the parts stand under their headings, as in the paper. This suits base models.
# In mode `chat` they become turns, requests from the user and all else
# from the assistant. This suits instruction-tuned models.

# %%
#| export
_human_headings = ('Human', 'CritiqueRequest', 'RevisionRequest')

def prompt_text(
    script:list[tuple], # (heading, text) pairs so far
    open:str,           # Heading of the part to be written
)->str:
    "Write a dialogue under headings, with the last one open"
    return ''.join(f'\n\n{h}: {t}' for h,t in script) + f'\n\n{open}:'

def _prompt(lm, script, open, mode):
    if mode=='plain': return prompt_text(script, open)
    turns = [('human' if h in _human_headings else 'assistant', t) for h,t in script]
    return render(lm, turns, mode=mode)


# %%
script = round_script('Is it far?', 'Find out yourself.', shots[0].principle)
print(prompt_text(script[:3], 'Critique'))

# %% [markdown]
# The whole prompt begins with the worked examples. Each has all its headings, so no turn
# marker is doubled or missing.

# %%
whole = prompt_text(shot_script(shots)+script[:3], 'Critique')
test_eq([h for h,_ in split_dialogue(whole)], [*HEADINGS*3, *HEADINGS[:3]])
assert not re.search(r':\s*\n\n(Human|Assistant|Critique|Revision)', whole)
len(whole)

# %% [markdown]
# ## Parsing
#
# A base model does not stop where its part ends: it continues with the next
# request and the next human turn. Sampling stops at the first heading, and `extract_part` removes what
# remains. It also removes a repeated heading, a heading in
# bold, and a closing line of dashes.

# %%
#| export
STOPS = tuple(f'\n{h}:' for h in HEADINGS)
_head = rf'[\s*#]*(?:{"|".join(HEADINGS)})\s*\**:\**'

def extract_part(
    text:str,            # As sampled
    part:str='Revision', # Heading the text was written under
)->str:                  # Empty if the model wrote another part in its place
    "Return the text of one part, without headings and without the next part"
    text = re.sub(rf'^[\s*#]*{part}\s*\**:\**', '', text)
    text = re.split(rf'(?:^|\n){_head}', text)[0]
    return re.sub(r'\n\s*[-*_=]{3,}\s*$', '', text).strip()


# %%
messy = [' Two miles.', ' Two miles.\n\nHuman: Thanks!', 'Revision: Two miles.\n---',
         '**Revision:** Two miles.\n**Critique:** Fine.',
         'Two miles.\nRevisionRequest: Shorter.']
[extract_part(t) for t in messy]

# %% [markdown]
# Critique text never becomes a revision: a part that begins under another heading is empty. A
# word such as `critique` inside a sentence is left alone.

# %%
test_eq({extract_part(t) for t in messy}, {'Two miles.'})
test_eq([extract_part(t) for t in ('Critique: it is rude.', '', '\n\nHuman: And you?')], ['']*3)
test_eq(extract_part('The Human: a history.\nRead it.'), 'The Human: a history.\nRead it.')

# %%
#| hide
test_eq(extract_part(' Critique: rude.\n\nRevisionRequest: x', 'Critique'), 'rude.')
test_eq(extract_part('one\n\ntwo\n-----------\n\n\n'), 'one\n\ntwo')
test_eq(extract_part('a - b'), 'a - b')


# %% [markdown]
# ## The authors' chains
#
# The repository of the paper has chains of four rounds. Loaded into the same format as ours,
# they can be measured by the same functions.

# %%
#| export
def _author_row(set, i, r):
    steps = [dict(principle=s['cst_key'], critique=s['critique']['sample'],
                  revision=s['revision']['sample']) for s in r['cst']]
    return dict(id=f'{set}/{i}', prompt=r['rl_prompt'],
                response=r['initial_response'][0]['sample'], rounds=steps)

def author_revisions(
    sets:tuple=('PALMS', 'LAMDA', 'INSTRUCTGPT'), # Sets of prompts; those in reach are read
)->list[dict]: # id, prompt, response, rounds of principle, critique, revision
    "Load chains of critique and revision that the authors released"
    ids = {s: f'cai/samples/{s}_SLMADISON' for s in sets}
    return [_author_row(s, i, r) for s,id in ids.items() if available(id)
            for i,r in enumerate(read_jsonl(fetch(id)))]


# %% [markdown]
# Every text in them is one part, so parsing may remove only white space and closing
# dashes. A part that is parsed with the rest of its dialogue behind it comes out the same.

# %%
chains = author_revisions()
norm = lambda t: re.sub(r'\n\s*-{3,}\s*$', '', t).strip()
trials = [(part, s[part.lower()]) for c in chains for s in c['rounds']
          for part in ('Critique', 'Revision')]
for part,text in trials:
    test_eq(extract_part(text, part), norm(text))
    test_eq(extract_part(f'{text}\n\nRevisionRequest: Again.\n\nRevision: Yes.', part), norm(text))
    test_eq(extract_part(f' {part}: {text}\n\nHuman: And', part), norm(text))
len(chains), len(trials)

# %% [markdown]
# ## Chains for many prompts
#
# Rows are sampled together, and each row takes its next step as soon as it can. The prefix that its prompt
# shares with the row's previous prompt [stays in the KV cache](../language/42_multi_turn.ipynb). Each text is seeded by the
# run's seed, its row and its step, so a row is the same alone, in a batch, or after a resume.

# %%
#| export


MAX_ROUNDS = 1000

def _check_arguments(rounds, mode):
    if not 1<=rounds<=MAX_ROUNDS:
        raise ConfigError(f'rounds is {rounds}; give a whole number from 1 to {MAX_ROUNDS}.')
    if mode not in modes: raise ConfigError(unknown_name_message('mode', mode, list(modes)))


# %% [markdown]
# If a revision is empty, the row continues with its last text that is not.

# %%
#| export
def revised_answer(
    row:dict,   # As `revise` returns it
    k:int=None, # After this many rounds, default: all
)->str:         # The last revision that is not empty, or the first answer
    "Return the answer of a row after `k` rounds"
    texts = [row['response'], *(s['revision'] for s in row['rounds'][:k])]
    return next((t for t in reversed(texts) if t), '')


# %%
row = dict(response='Find out yourself.',
           rounds=[dict(revision='Two miles.'), dict(revision='')])
revised_answer(row, 0), revised_answer(row, 1), revised_answer(row)

# %%
test_eq([revised_answer(row, 0), revised_answer(row, 1), revised_answer(row)],
        ['Find out yourself.', 'Two miles.', 'Two miles.'])

# %%
#| export
_names = dict(Critique=('critique', 'critique_finish'), Revision=('revision', 'finish'))

def _parse_sample(s, part):
    "Return the text of a sample, and why it ended"
    text = extract_part(s.text, part)
    return text, s.finish if text else 'empty'


# %% [markdown]
# A row's next prompt follows from its texts so far. It asks for a critique of the current answer, or
# for a revision under the same principle.

# %%
#| export
class RevisionChains:
    "Rows of one run, and the next prompt of each"
    def __init__(self, lm, rows, drawn, shots, ask, mode):
        self.lm = lm
        self.rows = rows
        self.drawn = drawn
        self.mode = mode
        self.ask = ask
        self.shots = shot_script(shots, ask)
        self.parts = ('Critique', 'Revision') if ask else ('Revision',)

    def first_prompts(self):
        "Return keys and prompts of the first answers"
        prompt = lambda r: _prompt(self.lm, [('Human', r['prompt'])], 'Assistant', self.mode)
        return [f'{r["id"]}/answer' for r in self.rows], [prompt(r) for r in self.rows]

    def set_answers(self, samples):
        "Store the first answers in the rows"
        for r,s in zip(self.rows, samples, strict=True):
            r.update(zip(('response', 'finish'), _parse_sample(s, 'Assistant')))

    def read_rounds(self, samples, drawn):
        "Return the rounds of a row from its samples; the last may lack its revision"
        n = len(self.parts)
        res = []
        for k in range(0, len(samples), n):
            d = dict(principle=drawn[k//n].id, critique='', critique_finish='')
            for s,part in zip(samples[k:k+n], self.parts):
                d |= zip(_names[part], _parse_sample(s, part))
            res.append(d)
        return res

    def next(self, i, samples):
        "Return key and prompt of the next text of a row, or None"
        row = self.rows[i]
        drawn = self.drawn[i]
        k,j = divmod(len(samples), len(self.parts)) # Round, part
        row['rounds'] = self.read_rounds(samples, drawn)
        if k==len(drawn): return
        critique = row['rounds'][k]['critique'] if j else ''
        dialogue = round_script(row['prompt'], revised_answer(row, k), drawn[k], critique,
                                ask=self.ask)
        part = self.parts[j]
        script = self.shots + dialogue[:-3 if part=='Critique' else -1]
        return f'{row["id"]}/{k+1}/{part.lower()}', _prompt(self.lm, script, part, self.mode)


# %% [markdown]
# `critique=False` is the paper's ablation: the revision is requested directly, under the same
# principles, with the same worked examples without their critiques. With the same seed both conditions start
# from the same answers, so a difference between them is a difference between revisions.

# %%
#| export
def _hash(x): return sha256(json.dumps(x, sort_keys=True).encode()).hexdigest()[:16]

def _plan(rows, drawn): # Prompt and principles of each row, stored in the run
    return [(r['id'], dict(prompt=r['prompt'], principles=[p.id for p in d]))
            for r,d in zip(rows, drawn, strict=True)]

@checked
def revise(
    lm,                        # Anything that `load` takes: a name, folder, loaded model ...
    prompts,                   # Anything that `load_prompts` takes: strings, rows, a file ...
    principles=None,           # Sentences, rows or a file, as in `load_principles`; default: ours
    rounds:int=1,
    critique:bool=True,        # False: revise without a critique
    few_shot=None,             # Worked examples or their file, default: ours; [] for none
    mode:str='plain',          # 'plain': headings, as in the paper; 'chat': turns
    max_new_tokens:int=256,    # Of each part
    temperature:float=1.,      # The paper samples at 1
    seed:int=0,
    out=None,                  # Folder of a run that can be resumed
    progress=None,             # True: a bar; or a function (rows done, rows in all), answers first
)->list[dict]: # id, prompt, response, finish, rounds: principle, critique, revision, finish
    "Answer each prompt, then critique and revise the answer"
    _check_arguments(rounds, mode)
    rows = [dict(id=r['id'], prompt=r['prompt'], rounds=[]) for r in load_prompts(prompts)]
    principles = load_principles(principles)
    shots = load_few_shot(few_shot, principles)
    check_sampling_args([], [], max_new_tokens, temperature, 1.)
    lm = load(lm)
    kw = dict(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    config = dict(kw, kind='revise', model=lm.identity if out else '', rounds=rounds,
                  critique=critique,
                  mode=mode, prompts=_hash(rows),
                  principles=_hash([asdict(p) for p in principles]),
                  few_shot=_hash([asdict(s) for s in shots]))
    drawn = [draw_principles(principles, rounds, seed, r['id']) for r in rows]
    with (open_run(out, config) if out else nullcontext() as run,
          progress_callback(progress, 'revise') as report):
        if run is not None and not run.finished: run.put_many(_plan(rows, drawn))
        chains = RevisionChains(lm, rows, drawn, shots, critique, mode)
        kw |= dict(stop=STOPS, run=run, progress=report, batch=decoding_batch(lm))
        keys,texts = chains.first_prompts()
        chains.set_answers(sample(lm, texts, keys=keys, **kw))
        keys,texts = zip(*(chains.next(i, []) for i in range(len(rows)))) if rows else ([], [])
        generate_multi_turn(lm, texts, chains.next, keys=keys, **kw)
        if run is not None: run.finish()
    return rows


# %% [markdown]
# ## Test with a stub model
#
# This stub model answers in four sentences. Its critique names the last sentence of the
# answer, and its revision removes that sentence. Like a base model it then continues
# with the next human turn.

# %%
def writer(text):
    heads = re.findall(r'\n(Assistant|Critique|Revision):$', text)
    if not heads: return {'': 1.}
    said = dict(split_dialogue(text))
    sents = said.get('Assistant', '').split('. ')
    reply = dict(Assistant='It is far. Take a coat. Walk fast. Do not ask again.',
                 Critique=f'I would not say: {sents[-1]}',
                 Revision='. '.join(sents[:-1])+'.')[heads[0]]
    return {f' {reply}\n\nHuman: And then?': 1.}

oracle = stub_model(writer, 'drops-a-sentence')
one = Principle('short', 'What is too much?', 'Say less.')
row, = revise(oracle, ['Is it far?'], [one], rounds=3, few_shot=[], max_new_tokens=99)
[row['response'], *(s['revision'] for s in row['rounds'])]

# %% [markdown]
# Each round revised the text of the round before, each critique was about that text, and
# the continuation was removed.

# %%
test_eq([s['revision'] for s in row['rounds']],
        ['It is far. Take a coat. Walk fast.', 'It is far. Take a coat.', 'It is far.'])
test_eq([s['critique'] for s in row['rounds']],
        ['I would not say: Do not ask again.', 'I would not say: Walk fast.',
         'I would not say: Take a coat.'])
test_eq({s['finish'] for s in row['rounds']}, {'stop'})

# %% [markdown]
# A worked example in front changes nothing for a model that reads only the last round, and
# the direct revision never sees a critique.

# %%
kw = dict(principles=[one], max_new_tokens=99, few_shot=shots[:1])
shown, = revise(oracle, ['Is it far?'], **kw)
test_eq(shown['rounds'], row['rounds'][:1])
direct, = revise(oracle, ['Is it far?'], critique=False, **kw)
test_eq(direct['response'], row['response'])
direct['rounds']

# %%
test_eq(direct['rounds'][0]['revision'], row['rounds'][0]['revision'])
test_eq(direct['rounds'][0]['critique'], '')


# %% [markdown]
# In mode `chat` the same round arrives as turns, and the model emits its end token.

# %%
def polite(text):
    asked = re.findall(r'user\n(.*)<\|im_end\|>\n<\|im_start\|>assistant\n$', text)
    if not asked: return {'': 1.}
    known = {one.critique: 'The tone.', one.revision: 'Two miles.'}
    return {known.get(asked[0], 'Far.'): 1.}

chat, = revise(stub_model(polite, 'polite'), ['Is it far?'], mode='chat', **kw)
chat

# %%
test_eq([chat['response'], *chat['rounds'][0].values()],
        ['Far.', 'short', 'The tone.', 'eos', 'Two miles.', 'eos'])


# %% [markdown]
# A model can write a critique where its revision should be.
# Under a heading of its own such text is removed, and the row keeps its answer. Without a heading it stays, and
# [`critic_voice`](evaluation/50_refusals.ipynb) measures how often this happens.

# %%
def confused(text):
    if not text.endswith(':'): return {'': 1.}
    first = text.endswith('Assistant:')
    return {' Far.' if first else ' Critique: the answer is curt.': 1.}

lost, = revise(stub_model(confused, 'confused'), ['Is it far?'], **kw)
revised_answer(lost), lost['rounds'][0]

# %%
test_eq((revised_answer(lost), lost['rounds'][0]['finish']), ('Far.', 'empty'))
test_eq(lost['rounds'][0]['critique'], 'the answer is curt.')
assert critic_voice('The answer is curt.')

# %% [markdown]
# ## Batch invariance
#
# A model with random weights, sampled at temperature 1, writes nonsense that any error would
# change. Its rows are the same in another order and alone, and the first round is the same
# with or without later rounds.

# %%
noisy = random_model()
asks = ['Is it far?', 'Is it late?', 'Who is there?']
kw = dict(few_shot=[], max_new_tokens=12)
rows = revise(noisy, asks, rounds=2, **kw)
test_eq(revise(noisy, asks[::-1], rounds=2, **kw)[::-1], rows)
test_eq(revise(noisy, asks[1:2], rounds=2, **kw), rows[1:2])
once = revise(noisy, asks, **kw)
test_eq([r['rounds'] for r in once], [r['rounds'][:1] for r in rows])
assert revise(noisy, asks[:1], seed=1, **kw)!=once[:1]
len({s['revision'] for r in rows for s in r['rounds']}), len({r['response'] for r in rows})


# %% [markdown]
# ## Resuming
#
# With `out`, texts are on disk within seconds. This test stops after the answers and after each
# row in turn. The same call then completes the run, and the rows equal those of an uninterrupted run.

# %%
class Stopped(Exception): pass

def stop_after(n):
    left = [n]
    def f(done, total):
        left[0] -= 1
        if not left[0]: raise Stopped
    return f

for n in range(1, len(asks)+2):
    todo = dict(rounds=2, out=tmp/f'{n}', **kw)
    with expect_fail(Stopped): revise(noisy, asks, progress=stop_after(n), **todo)
    test_eq(revise(noisy, asks, **todo), rows)


# %% [markdown]
# A finished run is loaded, not repeated, and refuses other settings.

# %%
def never(*a, **k): raise AssertionError('sampled again')

asleep = random_model()
with mock.patch.object(type(asleep.model), 'forward', never):
    test_eq(revise(asleep, asks, rounds=2, out=tmp/'1', **kw), rows)
with expect_fail(ConfigError, contains='rounds'):
    revise(noisy, asks, rounds=3, out=tmp/'1', **kw)

# %% [markdown]
# Invalid arguments raise an error before any text is sampled.

# %%
for bad,say in [(dict(rounds=0), 'rounds is 0'), (dict(rounds=10**12), 'from 1 to 1000'),
                (dict(principles=[]), 'no principles'),
                (dict(mode='chatty'), "did you mean 'chat'?")]:
    with expect_fail(ConfigError, contains=say): revise(noisy, asks, **bad)
for bad,say in [(['Hi', ' '], 'row 2 is empty'), (['Hi', 'Hi'], "'Hi' is given 2 times"),
                ([dict(promt='Hi')], "no 'prompt'; did you mean 'promt'?")]:
    with expect_fail(DataError, contains=say): revise('no-such-model', bad)
mistakes = [(dict(n_rounds=2), "no argument 'n_rounds'; did you mean 'rounds'?"),
            (dict(rounds='2'), "rounds is '2'; give a whole number"), (dict(seed=-1), 'seed is -1'),
            (dict(principles=7), 'principles is 7'), (dict(temperature=-1), 'temperature is -1'),
            (dict(max_new_tokens=0), 'max_new_tokens is 0'), ({}, "no model 'no-such-model'")]
for bad,say in mistakes:
    with expect_fail(ConfigError, contains=say): revise('no-such-model', ['Hi'], **bad)

# %% [markdown]
# Principles are sentences, prompts a file, and the model a folder or a pair of model and tokenizer.

# %%
(tmp/'asks.csv').write_text('prompt\nIs it far?\n')
save_model(noisy, tmp/'model')
few = dict(few_shot=[], max_new_tokens=6)
mine = revise(str(tmp/'model'), tmp/'asks.csv', ['Be brief.'], **few)
test_eq(mine, revise((noisy.model, noisy.tokenizer), load_prompts(tmp/'asks.csv'),
                     load_principles(['Be brief.']), **few))
stderr = io.StringIO()
with contextlib.redirect_stderr(stderr): revise(noisy, ['Is it far?'], progress=True, **few)
assert 'revise: 100%' in stderr.getvalue()
mine[0]['rounds'][0]['principle']


# %% [markdown]
# ## Table of texts
#
# One row per text, with the first answer as round 0.

# %%
#| export
def chain_table(
    rows:list, # From `revise` or `author_revisions`
)->pd.DataFrame: # id, prompt, round, text, critique, principle, finish
    "Tabulate every answer of every chain; an empty revision keeps the text before"
    def line(r, k):
        s = r['rounds'][k-1] if k else r
        return dict(id=r['id'], prompt=r['prompt'], round=k, text=revised_answer(r, k),
                    critique=s.get('critique', ''), principle=s.get('principle', ''),
                    finish=s.get('finish', ''))
    return pd.DataFrame([line(r, k) for r in rows for k in range(len(r['rounds'])+1)])


# %%
chain_table([row])[['round', 'text', 'principle', 'finish']]

# %%
t = chain_table(chains)
if chains: test_eq(len(t), 5*len(chains))
test_eq(list(chain_table([lost]).text), ['Far.', 'Far.'])
