# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Answers
#
# > Sample several answers to each prompt, alone or in pairs for comparison.

# %%
#| default_exp constitution.answers

# %%
#| export
from contextlib import nullcontext

from fastcore.meta import delegates

from moral_sc.constitution.prompts import load_prompts, render_prompt
from moral_sc.foundation.arguments import checked
from moral_sc.foundation.errors import ConfigError
from moral_sc.foundation.progress import progress_callback
from moral_sc.foundation.runs import content_key, open_run
from moral_sc.language.generation import check_sampling_args, sample
from moral_sc.language.loading import load

# %%
#| hide
import tempfile
from pathlib import Path
from fastcore.test import *
from moral_sc.language.stub_models import stub_model, random_model

# %% [markdown]
# Feedback compares two answers of one model to one prompt, and a tournament compares the answers of
# several models. This module samples both. The paper takes its pairs from the model that will be
# trained next, so the preference model is trained on text like the policy's [@bai2022constitutional].

# %%
#| export
NEXT_TURN = ('\n\nHuman:',) # Stop string: a base model continues with the next human turn

def decoding_batch(
    lm,
)->int: # Rows
    "Return how many rows to decode side by side; small models decode more at little extra cost"
    return 128 if lm.parameters<10**6 else 32

@checked
def sample_answers(
    lm,                   # Anything that `load` takes: a name, folder, loaded model ...
    prompts,              # Anything that `load_prompts` takes: strings, rows, a file ...
    n:int=1,              # Answers per prompt
    *,
    mode:str='plain',
    temperature:float=1., # The paper samples at 1; 0: the likeliest answer
    max_new_tokens:int=128,
    stop=None,            # Stop strings; None: the next turn's heading
    seed:int=0,
    out=None,             # Folder of a run that can be resumed
    progress=None,        # True: a bar; or a function (answers done, answers in all)
    batch:int=None,       # Rows side by side, at most; default: `decoding_batch`
    max_tokens:int=32768, # As in `sample`
)->list:                  # A list of n texts for each prompt
    "Sample answers, each with its own random numbers"
    if n<1: raise ConfigError(f'n is {n}; give 1 or more.')
    rows = load_prompts(prompts)
    check_sampling_args([], [], max_new_tokens, temperature, 1.)
    lm = load(lm)
    settings = dict(temperature=temperature, max_new_tokens=max_new_tokens, seed=seed)
    config = dict(settings, kind='answers', model=lm.identity if out else '', n=n, mode=mode,
                  prompts=content_key(rows=[[r['id'], r['prompt']] for r in rows]))
    if stop is None: stop = NEXT_TURN if mode=='plain' else ()
    else: config['stop'] = list(stop)
    texts = [render_prompt(lm, r['prompt'], mode) for r in rows for _ in range(n)]
    keys = [f'{r["id"]}/{k}' for r in rows for k in range(n)]
    with (open_run(out, config) if out else nullcontext() as run,
          progress_callback(progress, 'answers') as report):
        samples = sample(lm, texts, keys=keys, stop=stop, run=run, progress=report,
                         batch=decoding_batch(lm) if batch is None else batch,
                         max_tokens=max_tokens, **settings)
        if run is not None: run.finish()
    answers = [s.text.strip() for s in samples]
    return [answers[i:i+n] for i in range(0, len(answers), n)]

@checked
@delegates(sample_answers, but=['n'])
def answer_pairs(
    lm, prompts,
    **kwargs # Of `sample_answers`
)->list:     # Rows of id, prompt, a, b
    "Sample two answers to each prompt"
    rows = load_prompts(prompts)
    return [dict(id=r['id'], prompt=r['prompt'], a=a, b=b)
            for r,(a,b) in zip(rows, sample_answers(lm, rows, 2, **kwargs))]

@checked
@delegates(sample_answers, but=['n'])
def answer_rows(
    lm, prompts,
    **kwargs # Of `sample_answers`
)->list:     # Rows of prompt, answer, as `training_examples` takes them
    "Sample one answer to each prompt"
    rows = load_prompts(prompts)
    return [dict(prompt=r['prompt'], answer=a)
            for r,(a,) in zip(rows, sample_answers(lm, rows, **kwargs))]


# %%
walker = stub_model(lambda t: {' Two miles.\n\nHuman: And': .5, ' It is far.': .5}
                if t.endswith('Assistant:') else {'': 1.})
answer_pairs(walker, ['Is it far?', 'How far is it?'])

# %%
asked = [f'Question {i}?' for i in range(40)]
got = sample_answers(walker, asked, 4)
test_eq(answer_rows(walker, asked), [dict(prompt=p, answer=a) for p,(a,*_) in zip(asked, got)])
flat = sum(got, [])
test_eq(set(flat), {'Two miles.', 'It is far.'})
assert 60<flat.count('It is far.')<100
stopped = sample_answers(walker, asked[:9], 4, stop=(' far', ' miles'))
test_eq(set(sum(stopped, [])), {'Two', 'It is'})

# %% [markdown]
# An answer depends only on the seed, its prompt's id and its number. Asking for more answers leaves the first
# ones unchanged, and an interrupted run resumes.

# %%
noisy = random_model()
asked = ['Is it far?', 'Is it late?', 'Who is there?']
kw = dict(max_new_tokens=12)
three = sample_answers(noisy, asked, 3, **kw)
test_eq([x[:2] for x in three], sample_answers(noisy, asked, 2, **kw))
test_eq(sample_answers(noisy, asked[::-1], 3, **kw)[::-1], three)
test_eq(decoding_batch(noisy), 128)
test_eq(sample_answers(noisy, asked, 3, batch=2, **kw), three)
assert sample_answers(noisy, asked, 3, seed=1, **kw)!=three
with tempfile.TemporaryDirectory() as d:
    test_eq(sample_answers(noisy, asked, 3, out=Path(d)/'run', **kw), three)
    test_eq(sample_answers(noisy, asked, 3, out=Path(d)/'run', **kw), three)
    with expect_fail(ConfigError, contains='another configuration'):
        sample_answers(noisy, asked, 3, out=Path(d)/'run', seed=1, **kw)
with expect_fail(ConfigError, contains='n is 0'): sample_answers(noisy, asked, 0)
