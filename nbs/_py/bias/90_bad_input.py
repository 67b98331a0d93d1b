# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %%

# %% [markdown]
# # Error messages
#
# > Invalid models, files and folders, and the error message for each.

# %% [markdown]
# People run a benchmark on a model they have just trained, on their own file of questions, or in a folder
# from last week. The last line of a traceback rarely names the cause of a mistake. Each mistake below is
# made on purpose, and its error message is shown.

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
def show_errors(**mistakes):
    "Make each mistake and print its error message"
    for name,f in mistakes.items():
        try: f()
        except MoralScError as e: message = str(e).replace(f'{tmp}/', '')
        else: raise AssertionError(f'{name}: no error was raised')
        assert message[-1] in '.?' and '\n' not in message
        print(f'{name.replace("_", " ")}: {message}\n')


# %% [markdown]
# ## Models
#
# A model may lack its tokenizer or its chat template, or have damaged weights.

# %%
def without_template():
    m = random_model('llama')
    m.tokenizer.chat_template = None
    return m

def broken():
    m = random_model('llama')
    with torch.no_grad(): next(m.model.parameters()).fill_(torch.nan)
    return m

show_errors(no_tokenizer=lambda: evaluate(LM(tiny.model, None, 'mine'), **ask),
    no_chat_template=lambda: evaluate(without_template(), mode='chat', **ask),
    no_numbers=lambda: evaluate(broken(), **ask),
    no_such_model=lambda: evaluate('smolm2-135m', **ask))

# %% [markdown]
# An option may have no tokens. This tokenizer drops a zero-width space, as several do, which would leave
# nothing to score.

# %%
from tokenizers.normalizers import Replace
drops = random_model('llama')
drops.tokenizer.backend_tokenizer.normalizer = Replace('\u200b', '')
show_errors(an_empty_option=lambda: option_logprobs(tiny, ['It is ('], ['', 'a']),
    an_option_of_no_tokens=lambda: option_logprobs(drops, ['It is ('], ['\u200b', 'a']))

# %% [markdown]
# ## Low probability of the answers
#
# A model that gives most of its probability to other tokens still has a likeliest answer. This is not an
# error, but such a score needs a warning. If the answers have less than half of the probability, `evaluate`
# warns with the number of questions, and the records hold the value for each question.

# %%
with warnings.catch_warnings(record=True) as messages:
    warnings.simplefilter('always')
    e = evaluate(letter_prior_model(dict(a=.2, b=.1, c=.1)), **ask)
test_eq(len(messages), 1)
print(messages[0].message)
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
show_errors(no_such_category=lambda: bbq.load(['Ages'], source='ours'),
    no_such_benchmark=lambda: evaluate(tiny, ['bqb']),
    a_row_of_another_category=lambda: file(set_(2, category='SES')),
    a_question_twice=lambda: file(lambda rows: rows+rows[:1]),
    a_question_missing=lambda: file(lambda rows: rows[:7]),
    a_label_out_of_range=lambda: file(set_(2, label=3)),
    an_empty_file=lambda: file(lambda rows: []))

# %%
show_errors(an_unknown_argument=lambda: evaluate(tiny, order=3, **ask),
    a_number_as_text=lambda: evaluate(tiny, orders='3', **ask),
    an_argument_of_the_loader=lambda: bbq.load(category='Age'),
    two_orders=lambda: evaluate(tiny, orders=2, **ask),
    less_than_a_scene=lambda: evaluate(tiny, items=ours, limit=2))

# %% [markdown]
# ## Runs
#
# A folder belongs to one model, one set of questions and one set of options.

# %%
with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    evaluate(tiny, out=tmp/'run', **ask)
show_errors(another_model=lambda: evaluate(random_model('llama', seed=1), out=tmp/'run', **ask),
    another_way=lambda: evaluate(tiny, out=tmp/'run', orders=3, **ask),
    other_questions=lambda: evaluate(tiny, items=ours, limit=12, out=tmp/'run', conditions='q'),
    no_folder=lambda: evaluate(tiny, out='/proc/run', **ask))

# %% [markdown]
# A run that is killed and started again, with another portion size or another number of processes, ends in
# the same table; [the guide to many GPUs](../guides/many_gpus.ipynb) shows this, including sampled
# reasoning.

# %%
#| hide
shutil.rmtree(tmp)
