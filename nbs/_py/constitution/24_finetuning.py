# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Finetuning on revisions
#
# > A copy of a model that has learned to say at once what it said after its second thoughts.

# %%
#| default_exp constitution.finetuning

# %%
#| export
import copy
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd

from moral_sc.constitution.evaluation.refusals import critic_voice, repetition, same_words
from moral_sc.constitution.prompts import tokenize_example
from moral_sc.foundation.errors import ConfigError, DataError, unknown_name_message
from moral_sc.foundation.runs import content_key, process_rank
from moral_sc.language.reward_head import save_model
from moral_sc.language.models import LM
from moral_sc.language.scoring import check_context_length
from moral_sc.language.training import answer_loss, fit

# %%
#| hide
import tempfile

import torch
from fastcore.test import *

from moral_sc.constitution.principles import HEADINGS
from moral_sc.constitution.prompts import render_prompt
from moral_sc.constitution.revision import prompt_text
from moral_sc.language.reward_head import answer_logprobs, small_llama, word_tokenizer
from moral_sc.language.loading import load
from moral_sc.language.models import decode, encode
from moral_sc.language.stub_models import random_model
from moral_sc.language.generation import sample

tmp = Path(tempfile.mkdtemp())
torch.set_num_threads(1)

# %% [markdown]
# The supervised stage of @bai2022constitutional ends here. The requests, critiques and
# principles are taken away, and what is left, a prompt and a revised answer, is what a model is
# finetuned on. It is the model before any feedback that is finetuned, together with plain
# helpful answers, so that it does not forget how to help.
#
# ## Which revisions
#
# The paper says two things. Its introduction finetunes on the *final* revised answers, its
# section 3.1 on the revisions of *all* steps. The method section is the default here, and
# `select` is the switch.
#
# Not every revision is fit to be learned from. What is wrong with one is written beside it as
# its `find_fault`, and nothing is dropped without being counted.

# %%
#| export
FAULT_KINDS = ('empty', 'no end', 'repetition', 'critic', 'copy')

def find_fault(
    text:str,
    finish:str='',         # How sampling ended; 'length': it was cut off
    original:str=None,       # The text that was revised
    max_repetition:float=.5,      # Largest share of runs of four words that occurred before
)->str:                    # One of `faults`, or ''
    "What keeps an answer from being an example"
    if not text.strip(): return 'empty'
    if finish=='length': return 'no end'
    if repetition(text)>max_repetition: return 'repetition'
    if critic_voice(text): return 'critic'
    return 'copy' if original is not None and same_words(text, original) else ''


# %%
loop = 'It is far and far. '*9
[find_fault(t, f, b) for t,f,b in [('Two miles.', 'stop', 'Go away.'), (' ', 'stop', ''),
    ('Two miles and', 'length', ''), (loop, 'stop', ''),
    ("The assistant's answer is rude.", 'stop', ''), ('Go  away.', 'stop', 'Go away.')]]

# %%
test_eq(find_fault('Two miles.', 'stop', 'Go away.'), '')
test_eq(find_fault(loop), 'repetition')


# %%
#| export
def _texts(row, which):
    "Revisions of a chain: (round, text, how it ended, the text before)"
    res = []
    last = row['response']
    for k,s in enumerate(row['rounds'], 1):
        res.append((k, s['revision'], s.get('finish', ''), last))
        last = s['revision'] or last
    if which=='all': return res
    k,t,f,_ = next((r for r in reversed(res) if r[1].strip()), res[-1])
    return [(k, t, f, row['response'])]

def training_examples(
    chains:list,           # From `revise`
    select:str='all',       # 'all' revisions, or the 'final' one of each chain
    extra:list=(),         # Further rows with `text` and `answer`: helpful answers
    allow:tuple=(),         # Of `faults`: those that are no fault here
    max_repetition:float=.5,      # As in `fault`
)->list:                   # id, text, answer, round, fault
    "What there is to learn from; `finetune` passes over rows with a fault"
    if select not in ('all', 'final'): raise ConfigError(unknown_name_message('which', select, ['all', 'final']))
    rows = [(f'{c["id"]}/{k}', c['prompt'], t, k, find_fault(t, f, b, max_repetition))
            for c in chains for k,t,f,b in _texts(c, select)]
    for i,r in enumerate(extra, 1):
        text = r.get('text', r.get('prompt'))
        said = r.get('answer')
        if not isinstance(text, str) or not isinstance(said, str):
            raise DataError(f'extra: row {i} needs `text` and `answer`, both strings.')
        rows.append((r.get('id', f'extra/{i}'), text, said, 0,
                     find_fault(said, r.get('finish', ''), None, max_repetition)))
    names = 'id', 'text', 'answer', 'round', 'fault'
    return [dict(zip(names, r[:4]), fault='' if r[4] in allow else r[4]) for r in rows]

def count_faults(
    rows:list, # From `examples_of`
)->pd.Series:
    "How many examples are used, and why the others are not"
    n = Counter(r.get('fault', '') for r in rows)
    return pd.Series(dict(used=n[''], **{f: n[f] for f in FAULT_KINDS}), name='examples')


# %% [markdown]
# Two chains of two rounds. In the first the second revision came out empty, so that its final
# one is the first; in the second the model repeated its answer.

# %%
step = lambda text, finish='stop': dict(principle='kind', critique='Zebra: that was rude.',
                                        revision=text, finish=finish)
chains = [dict(id='a', prompt='is it far?', response='go, no tea here.', finish='stop',
               rounds=[step('no, it is here.'), step('', 'empty')]),
          dict(id='b', prompt='tea?', response='no tea.', finish='stop',
               rounds=[step('no tea.'), step('yes, the tea is here.')])]
helpful = [dict(text='is the cup here?', answer='yes.')]
rows = training_examples(chains, extra=helpful)
pd.DataFrame(rows)

# %%
count_faults(rows)

# %%
test_eq([r['answer'] for r in rows if not r['fault']],
        ['no, it is here.', 'yes, the tea is here.', 'yes.'])
final = training_examples(chains, 'final')
test_eq([(r['answer'], r['round']) for r in final],
        [('no, it is here.', 1), ('yes, the tea is here.', 2)])
test_eq(count_faults(training_examples(chains, allow=['copy']))['used'], 3)
with expect_fail(ConfigError, contains="did you mean 'final'"): training_examples(chains, 'finale')


# %% [markdown]
# ## What is learned
#
# An example is one dialogue of one prompt and one answer, written down by `tokenize_example` as in every
# other stage. The model is judged on the tokens of the answer and on one end token.

# %%
#| export
def encode_examples(
    lm,
    rows:list,          # With `text` and `answer`; those with a fault are passed over
    mode:str='plain',
)->list:                # (token ids, where the answer begins)
    "Rows as a model learns them"
    rows = [r for r in rows if not r.get('fault')]
    for i,r in enumerate(rows, 1):
        if not isinstance(r.get('answer'), str) or not r['answer'].strip():
            raise DataError(f'Row {i} has no `answer`; add it or leave the row out.')
    if not rows: raise DataError('No example is free of faults; look at `tally(rows)`.')
    return _short(lm, [tokenize_example(lm, r.get('text', r.get('prompt')), r['answer'], mode)
                       for r in rows])

def _short(lm, examples):
    check_context_length(lm, [ids for ids,_ in examples])
    return examples


# %%
words = 'is it far tea the cup here go . ? , yes no'.split()
lm = small_llama(word_tokenizer(words), layers=2, width=48)
data = encode_examples(lm, rows)
targets = [decode(lm, ids[s:]) for ids,s in data]
targets

# %% [markdown]
# No word of a critique is among them, nor in what the model reads; the first word of the answer
# is predicted from the prompt's last token, and the last target is the end.

# %%
test_eq(targets, [f' {r["answer"]}<eos>' for r in rows if not r['fault']])
assert not any('Zebra' in decode(lm, ids) or '<unk>' in decode(lm, ids) for ids,_ in data)
for (ids,s),r in zip(data, [r for r in rows if not r['fault']]):
    test_eq(decode(lm, ids[:s]), prompt_text([('Human', r['text'])], 'Assistant'))
    lp,mask = answer_logprobs(lm.model, [ids], [s])
    first = lm.model(torch.tensor([ids[:s]])).logits[0,-1].log_softmax(-1)[ids[s]]
    test_close(lp[0,0].item(), first.item(), 1e-5)
    test_eq(mask.sum().item(), len(ids)-s)

# %% [markdown]
# The tokens themselves, for a model of bytes: if they ever change, models of before and after
# cannot be compared. There is one beginning of text.

# %%
bytewise = random_model('gemma3')
ids,start = encode_examples(bytewise, [dict(text='Far?', answer='No.')])[0]
golden = [2, 15, 15, 77, 122, 114, 102, 115, 63, 37, 75, 102, 119, 68, 15, 15, 70, 120, 120,
          110, 120, 121, 102, 115, 121, 63, 37, 83, 116, 51, 1]
test_eq(ids, golden)
test_eq(ids.count(bytewise.tokenizer.bos_token_id), 1)
test_eq(tuple(ids[:start]), render_prompt(bytewise, 'Far?').ids)
ids, start


# %% [markdown]
# ## Training
#
# One pass over the examples at a constant rate, as in the paper, by [the loop that trains
# everything](../language/46_training.ipynb). The model that was given stays as it is.

# %%
#| export
def finetune(
    lm:LM,
    rows:list,        # From `examples_of`, or any with `text` and `answer`
    out=None,         # Folder of a run that can be resumed; the model goes to out/model
    mode:str='plain',
    epochs:int=1,
    lr:float=1e-4,    # Constant
    seed:int=0,
    name:str=None,    # Of the trained model
    **options,        # Of `fit`: batch, max_tokens, weight_decay, autocast ...
)->tuple:             # The trained copy, the history of `fit`
    "Teach a copy of a model to answer so"
    examples = encode_examples(lm, rows, mode)
    model = copy.deepcopy(lm.model).float().requires_grad_(True)
    history = fit(model, examples, answer_loss, epochs=epochs, lr=lr, seed=seed,
                  out=None if out is None else Path(out)/'fit', **options)
    key = content_key(lm=[lm.name, lm.source], examples=examples, epochs=epochs, lr=lr,
                      seed=seed, **{k: v for k,v in options.items() if not callable(v)})[:8]
    res = replace(lm, model=model.eval().requires_grad_(False), is_stub=False,
                  name=name or f'{lm.name}+{len(examples)}',
                  source=f'{lm.source}, finetuned {key}'.strip(', '))
    folder = None if out is None else Path(out)/'model'
    if folder and not folder.is_dir() and process_rank()[0]==0: save_model(res, folder)
    return res,history


# %%
before = {k: v.clone() for k,v in lm.model.state_dict().items()}
tuned,history = finetune(lm, rows, tmp/'run', lr=.01, batch=2, epochs=40)
history[['step', 'lr', 'loss', 'count']].iloc[[0, 1, 30, 79]].round(3)

# %%
for k,v in lm.model.state_dict().items(): assert torch.equal(v, before[k])
test_eq(set(history.lr), {.01})
prompts = [render_prompt(lm, r['text']) for r in rows if not r['fault']]
said = sample(tuned, prompts, 20, temperature=0)
test_eq([s.text.strip() for s in said], [r['answer'] for r in rows if not r['fault']])
said, tuned

# %% [markdown]
# ## It stops
#
# Where padding and end are one token, as in many models, it is easy to mask the end together with
# the padding. A model that has never seen an end does not stop. This one has learned one sentence
# beside a longer one, with that token as padding.

# %%
tok = word_tokenizer(words)
tok.pad_token = tok.eos_token
one = small_llama(tok, layers=2, width=48)
pair = [dict(text='far?', answer='no.'), dict(text='is it tea?', answer='yes, it is tea.')]
taught,_ = finetune(one, pair, lr=.01, epochs=40)
stopped, = sample(taught, [render_prompt(taught, 'far?')], 30)
test_eq((stopped.text.strip(), stopped.finish), ('no.', 'eos'))
start, = sample(one, [render_prompt(one, 'far?')], 30)
start, stopped


# %% [markdown]
# ## What the loss is
#
# The first loss is the mean over the answers' tokens, end included, and over no others. Were the
# prompts' tokens counted, the gradient would be another.

# %%
def nll(model, ids): return -torch.stack([model(torch.tensor([ids])).logits[0,j-1]
                                          .log_softmax(-1)[ids[j]] for j in range(1, len(ids))])
def gradient(total):
    lm.model.zero_grad()
    total.backward()
    return torch.cat([p.grad.flatten() for p in lm.model.parameters()])

lm.model.requires_grad_(True)
each = [(nll(lm.model, ids), s-1) for ids,s in data]
answers = torch.cat([x[s:] for x,s in each])
ours = gradient(answer_loss(lm.model, data)[0])/len(answers)
want = gradient(answers.mean())
whole = torch.cat([nll(lm.model, ids) for ids,_ in data]).mean()
assert (ours-want).norm()<1e-4*want.norm()
assert (gradient(whole)-want).norm()>.1*want.norm()
_,once = finetune(lm, rows, batch=9)
test_close(once.loss[0], answers.mean().item(), 1e-5)
once.loss[0], whole.item()


# %% [markdown]
# ## Killed, and read elsewhere
#
# A run that is cut off in the middle goes on to the same weights; one that is finished is read
# back. Its folder is one that transformers and `load` open by themselves.

# %%
class Stopped(Exception): pass

def stop(done, total):
    if done==23: raise Stopped

how = dict(lr=.01, batch=2, epochs=40)
with expect_fail(Stopped): finetune(lm, rows, tmp/'cut', progress=stop, **how)
resumed,again = finetune(lm, rows, tmp/'cut', **how)
back,_ = finetune(lm, rows, tmp/'cut', **how)
for k,v in tuned.model.state_dict().items():
    assert torch.equal(v, resumed.model.state_dict()[k]) and torch.equal(v, back.model.state_dict()[k])
test_eq(again.loss.tolist(), history.loss.tolist())

# %%
loaded = load(tmp/'run/model', 'float32', 'cpu')
test_eq([s.ids for s in sample(loaded, prompts, 20, temperature=0)], [s.ids for s in said])
loaded

# %% [markdown]
# ## Mistakes

# %%
with expect_fail(DataError, contains='Row 1 has no `answer`'): finetune(lm, [dict(text='far?')])
with expect_fail(DataError, contains='free of faults'): finetune(lm, [dict(rows[1], fault='copy')])
with expect_fail(DataError, contains='row 1 needs'): training_examples([], extra=[dict(text='far?')])
with expect_fail(ConfigError, contains='512'):
    finetune(lm, [dict(text='far? '*600, answer='no.')])

# %%
#| hide
import shutil
shutil.rmtree(tmp)
