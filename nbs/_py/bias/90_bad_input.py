# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %%

# %% [markdown]
# # What can go wrong
#
# > Models, files and folders that will not do, each met with one sentence.

# %% [markdown]
# A benchmark is run by people who have just trained a model, or written a file of questions, or
# come back to a run after a week. What is wrong then is rarely what the last line of a traceback
# says. Each mistake below is made on purpose, and the sentence that answers it is shown.

# %%
#| hide
import json, shutil, tempfile, warnings
from pathlib import Path

import torch
from fastcore.test import *
from moral_sc.bias import bbq, evaluate
from moral_sc.foundation.datasets import data_dir
from moral_sc.foundation.errors import MoralScError
from moral_sc.language.models import LM
from moral_sc.language.stub_models import letter_prior_model, random_model
from moral_sc.language.scoring import option_logprobs

tmp = Path(tempfile.mkdtemp())
ours = bbq.load(source='ours')
tiny = random_model('llama')
ask = dict(items=ours, limit=8, conditions='q')


# %%
def say(**mistakes):
    "Make each mistake, show what is said about it"
    for name,f in mistakes.items():
        try: f()
        except MoralScError as e: told = str(e).replace(f'{tmp}/', '')
        else: raise AssertionError(f'{name}: nothing was said')
        assert told[-1] in '.?' and '\n' not in told
        print(f'{name.replace("_", " ")}: {told}\n')


# %% [markdown]
# ## Models
#
# A model may lack its tokenizer or its template, or have been saved in the middle of an accident.

# %%
def without_template():
    m = random_model('llama')
    m.tokenizer.chat_template = None
    return m

def broken():
    m = random_model('llama')
    with torch.no_grad(): next(m.model.parameters()).fill_(torch.nan)
    return m

say(no_tokenizer=lambda: evaluate(LM(tiny.model, None, 'mine'), **ask),
    no_chat_template=lambda: evaluate(without_template(), mode='chat', **ask),
    no_numbers=lambda: evaluate(broken(), **ask),
    no_such_model=lambda: evaluate('smolm2-135m', **ask))

# %% [markdown]
# An option may vanish on the way to tokens. This tokenizer drops a zero-width space, as several
# do, and nothing after a prompt would be certain.

# %%
from tokenizers.normalizers import Replace
drops = random_model('llama')
drops.tokenizer.backend_tokenizer.normalizer = Replace('\u200b', '')
say(an_empty_option=lambda: option_logprobs(tiny, ['It is ('], ['', 'a']),
    an_option_of_no_tokens=lambda: option_logprobs(drops, ['It is ('], ['\u200b', 'a']))

# %% [markdown]
# ## Probability that goes elsewhere
#
# A model that would rather say something else than one of the answers has still a likeliest answer
# among them. That is no mistake, but a number nobody should read without knowing it. Below a half,
# it is said, with the number of questions, and the records hold it for each.

# %%
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter('always')
    e = evaluate(letter_prior_model(dict(a=.2, b=.1, c=.1)), **ask)
test_eq(len(said), 1)
print(said[0].message)
e.records[['id','lp_a','lp_b','lp_c','mass']].head(2).round(2)

# %% [markdown]
# ## Questions

# %%
rows = [json.loads(line) for line in open(data_dir()/'benchmarks'/'bbq_like.jsonl')][:8]

def file(change=lambda rows: rows):
    mine = change([dict(r) for r in rows])
    (tmp/'mine.jsonl').write_text('\n'.join(json.dumps(r) for r in mine))
    return bbq.read(tmp/'mine.jsonl')

def set_(row, **kw):
    return lambda rows: [r|kw if k==row else r for k,r in enumerate(rows)]

test_eq(len(file()), 8)
say(no_such_category=lambda: bbq.load(['Ages'], source='ours'),
    no_such_benchmark=lambda: evaluate(tiny, ['bqb']),
    a_row_of_another_category=lambda: file(set_(2, category='SES')),
    a_question_twice=lambda: file(lambda rows: rows+rows[:1]),
    a_question_missing=lambda: file(lambda rows: rows[:7]),
    a_label_out_of_range=lambda: file(set_(2, label=3)),
    an_empty_file=lambda: file(lambda rows: []))

# %%
say(two_orders=lambda: evaluate(tiny, orders=2, **ask),
    less_than_a_scene=lambda: evaluate(tiny, items=ours, limit=2))

# %% [markdown]
# ## Runs
#
# A folder belongs to one model, one set of questions and one way to ask.

# %%
with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    evaluate(tiny, out=tmp/'run', **ask)
say(another_model=lambda: evaluate(random_model('llama', seed=1), out=tmp/'run', **ask),
    another_way=lambda: evaluate(tiny, out=tmp/'run', orders=3, **ask),
    other_questions=lambda: evaluate(tiny, items=ours, limit=12, out=tmp/'run', conditions='q'),
    no_folder=lambda: evaluate(tiny, out='/proc/run', **ask))

# %% [markdown]
# Killed without warning and started again, with another size of portions or another number of
# processes, a run ends in the same table; that is shown in [the guide to many
# GPUs](../guides/many_gpus.ipynb), sampled reasoning included.

# %%
#| hide
shutil.rmtree(tmp)
