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
# > Supervised finetuning (SL-CAI) trains a model to give revised answers directly.

# %%
#| default_exp constitution.finetuning

# %%
#| export
import copy
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
from fastcore.meta import delegates

from moral_sc.constitution.evaluation.refusals import critic_voice, repetition, same_words
from moral_sc.constitution.prompts import get_prompt, tokenize_examples
from moral_sc.foundation.arguments import checked
from moral_sc.foundation.errors import ConfigError, DataError, unknown_name_message
from moral_sc.foundation.manifest import Manifest
from moral_sc.foundation.runs import content_key, process_rank
from moral_sc.foundation.tables import read_rows
from moral_sc.language.loading import load
from moral_sc.language.reward_head import save_model
from moral_sc.language.engine.batching import check_rows
from moral_sc.language.training import answer_loss, fit

# %%
#| hide
import json, tempfile, warnings

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
# This is the last step of the supervised stage of @bai2022constitutional. Critiques, revision
# requests and principles are removed, and a model is finetuned on prompts and revised answers. The
# finetuned model is the one before any feedback. Helpful answers are mixed in, so that the model
# stays helpful.
#
# ## Selection of revisions
#
# The paper describes two variants: its introduction finetunes on the *final* revision of each
# chain, its section 3.1 on the revisions of *all* rounds. The second is the default here; `select`
# chooses between them.
#
# Some revisions are unfit for training. Each gets the `fault` that excludes it, and all faults are
# counted.

# %%
#| export
FAULT_KINDS = ('empty', 'no end', 'repetition', 'critic', 'copy')

def find_fault(
    text:str,
    finish:str='',           # How sampling ended; 'length': at the token limit
    original:str=None,       # The answer that was revised
)->str:                      # One of `FAULT_KINDS`, or ''
    "Return the reason why an answer is unfit for training"
    if not text.strip(): return 'empty'
    if finish=='length': return 'no end'
    if repetition(text)>.5: return 'repetition'
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
def _revisions(chain, select):
    "Return the revisions of a chain as (round, text, finish, text before)"
    res = []
    last = chain['response']
    for k,r in enumerate(chain['rounds'], 1):
        res.append((k, r['revision'], r.get('finish', ''), last))
        last = r['revision'] or last
    if select=='all' or not res: return res
    k,text,finish,_ = next((r for r in reversed(res) if r[1].strip()), res[-1])
    return [(k, text, finish, chain['response'])]

def load_examples(
    source,       # A list of rows, a DataFrame, or a file
    name='rows',  # In error messages
)->list:          # Rows of prompt, answer and what else they have
    "Load examples of finetuning: prompts with their answers"
    where = str(source) if isinstance(source, (str, Path)) else name
    rows = []
    for i,r in enumerate(read_rows(source, name), 1):
        if not isinstance(r.get('answer'), str):
            raise DataError(f'{where}: row {i} has no `answer` that is a text; add it or leave the '
                            'row out.')
        rows.append(r|dict(prompt=get_prompt(r, f'{where}: row {i}')))
    return rows

def _load_chains(chains):
    from_file = isinstance(chains, (str, Path))
    rows = read_rows(chains) if from_file else chains
    for i,r in enumerate(rows, 1):
        if not isinstance(r, dict) or not {'id', 'prompt', 'response', 'rounds'}<={*r}:
            raise DataError(f'{chains if from_file else "chains"}: row {i} is no chain of '
                            'revisions; give what `revise` returned, or its file.')
    return rows

@checked
def training_examples(
    chains,                  # From `revise`, or their file
    select:str='all',        # 'all' revisions, or the 'final' one of each chain
    extra=(),                # Further rows of `prompt` and `answer`, or their file: helpful answers
    allow:tuple=(),          # Members of `FAULT_KINDS` that are not excluded
)->list:                     # id, prompt, answer, round, fault
    "Return the examples of finetuning; `finetune` skips rows with a fault"
    chains = _load_chains(chains)
    if select not in ('all', 'final'):
        raise ConfigError(unknown_name_message('select', select, ['all', 'final']))
    for k in {*allow}-{*FAULT_KINDS}:
        raise ConfigError(unknown_name_message('fault', str(k), [*FAULT_KINDS]))
    rows = [(f'{c["id"]}/{k}', c['prompt'], text, k,
             find_fault(text, finish, previous))
            for c in chains for k,text,finish,previous in _revisions(c, select)]
    for i,r in enumerate(load_examples(extra, 'extra') if len(extra) else (), 1):
        rows.append((r.get('id', f'extra/{i}'), r['prompt'], r['answer'], 0,
                     find_fault(r['answer'], r.get('finish', ''))))
    names = 'id', 'prompt', 'answer', 'round', 'fault'
    return [dict(zip(names, r[:4]), fault='' if r[4] in allow else r[4]) for r in rows]

def count_faults(
    rows:list, # From `training_examples`
)->pd.Series:
    "Count the examples that are used, and the others by their fault"
    n = Counter(r.get('fault', '') for r in rows)
    return pd.Series(dict(used=n[''], **{f: n[f] for f in FAULT_KINDS}), name='examples')


# %% [markdown]
# The example has two chains of two rounds. In the first chain the second revision is empty, so its
# final revision is the first. In the second chain the first revision copies the answer.

# %%
step = lambda text, finish='stop': dict(principle='kind', critique='Zebra: that was rude.',
                                        revision=text, finish=finish)
chains = [dict(id='a', prompt='is it far?', response='go, no tea here.', finish='stop',
               rounds=[step('no, it is here.'), step('', 'empty')]),
          dict(id='b', prompt='tea?', response='no tea.', finish='stop',
               rounds=[step('no tea.'), step('yes, the tea is here.')])]
helpful = [dict(prompt='is the cup here?', answer='yes.')]
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
with expect_fail(ConfigError, contains="did you mean 'copy'"):
    training_examples(chains, allow=('copi',))
with expect_fail(DataError, contains='is no chain of revisions'): training_examples(['text'])


# %% [markdown]
# ## Encoding
#
# An example is a dialogue of one prompt and one answer, rendered as in all other stages. The loss
# covers the tokens of the answer and one end token.

# %%
#| export
def encode_examples(
    lm,
    rows,               # As `load_examples` takes them; rows with a fault are skipped
    mode:str='plain',   # Format of prompts
)->list:                # (token ids, index of the first token of the answer)
    "Encode examples for training"
    rows = [r for r in load_examples(rows) if not r.get('fault')]
    empty = next((i for i,r in enumerate(rows, 1) if not r['answer'].strip()), None)
    if empty: raise DataError(f'Row {empty} of the examples has an empty `answer`; leave it out.')
    if not rows:
        raise DataError('Every example has a fault; see `count_faults(rows)` for their kinds.')
    examples = tokenize_examples(lm, [r['prompt'] for r in rows], [r['answer'] for r in rows], mode)
    check_rows(lm, [ids for ids,_ in examples])
    return examples


# %%
words = 'is it far tea the cup here go . ? , yes no'.split()
lm = small_llama(word_tokenizer(words), layers=2, width=48)
data = encode_examples(lm, rows)
targets = [decode(lm, ids[s:]) for ids,s in data]
targets

# %% [markdown]
# Neither inputs nor targets contain words of a critique. The first word of the answer is predicted
# from the last token of the prompt, and the last target is the end token.

# %%
test_eq(targets, [f' {r["answer"]}<eos>' for r in rows if not r['fault']])
assert not any('Zebra' in decode(lm, ids) or '<unk>' in decode(lm, ids) for ids,_ in data)
for (ids,s),r in zip(data, [r for r in rows if not r['fault']]):
    test_eq(decode(lm, ids[:s]), prompt_text([('Human', r['prompt'])], 'Assistant'))
    lp,mask = answer_logprobs(lm.model, [ids], [s])
    first = lm.model(torch.tensor([ids[:s]])).logits[0,-1].log_softmax(-1)[ids[s]]
    test_close(lp[0,0].item(), first.item(), 1e-5)
    test_eq(mask.sum().item(), len(ids)-s)

# %% [markdown]
# The token ids are fixed by a test, for a tokenizer of bytes, because models trained with other ids
# could not be compared. There is one begin-of-text token.

# %%
bytewise = random_model('gemma3')
ids,start = encode_examples(bytewise, [dict(prompt='Far?', answer='No.')])[0]
golden = [2, 15, 15, 77, 122, 114, 102, 115, 63, 37, 75, 102, 119, 68, 15, 15, 70, 120, 120,
          110, 120, 121, 102, 115, 121, 63, 37, 83, 116, 51, 1]
test_eq(ids, golden)
test_eq(ids.count(bytewise.tokenizer.bos_token_id), 1)
test_eq(tuple(ids[:start]), render_prompt(bytewise, 'Far?').ids)
ids, start


# %% [markdown]
# ## Training
#
# As in the paper, the default is one epoch at a constant learning rate, by the
# [training loop](../language/46_training.ipynb) of this project. The given model is not changed.

# %%
#| export
@checked
@delegates(fit)
def finetune(
    lm,               # Anything that `load` takes: a name, folder, loaded model ...
    rows,             # From `training_examples`, or rows of `prompt` and `answer`, or their file
    out=None,         # Folder of a run that can be resumed; the model is saved in out/model
    mode:str='plain', # Format of prompts
    epochs:int=1,
    lr:float=1e-4,    # Constant
    seed:int=0,
    name:str=None,    # Of the finetuned model
    **kwargs          # Of `fit`: batch, max_tokens, weight_decay, autocast ...
)->tuple:             # The finetuned copy, the history of `fit`
    "Finetune a copy of a model on examples"
    rows = load_examples(rows)
    lm = load(lm, 'float32')
    examples = encode_examples(lm, rows, mode)
    model = copy.deepcopy(lm.model).float().requires_grad_(True)
    history = fit(model, examples, answer_loss, epochs=epochs, lr=lr, seed=seed,
                  out=None if out is None else Path(out)/'fit', **kwargs)
    key = content_key(lm=lm.identity, examples=examples, epochs=epochs, lr=lr,
                      seed=seed, **{k: v for k,v in kwargs.items() if not callable(v)})[:8]
    tuned = replace(lm, model=model.eval().requires_grad_(False), is_stub=False,
                    name=name or f'{lm.name}+{len(examples)}',
                    source=f'{lm.source}, finetuned {key}'.strip(', '))
    folder = None if out is None else Path(out)/'model'
    if folder and process_rank()[0]==0:
        Manifest(out).build(folder, lambda part: save_model(tuned, part))
    return tuned,history


# %%
before = {k: v.clone() for k,v in lm.model.state_dict().items()}
tuned,history = finetune(lm, rows, tmp/'run', lr=.01, batch=2, epochs=40)
history[['step', 'lr', 'loss', 'count']].iloc[[0, 1, 30, 79]].round(3)

# %%
for k,v in lm.model.state_dict().items(): assert torch.equal(v, before[k])
test_eq(set(history.lr), {.01})
prompts = [render_prompt(lm, r['prompt']) for r in rows if not r['fault']]
samples = sample(tuned, prompts, 20, temperature=0)
test_eq([s.text.strip() for s in samples], [r['answer'] for r in rows if not r['fault']])
samples, tuned

# %% [markdown]
# ## End of an answer
#
# In many models padding and end are the same token. Masking padding by its id would then mask the
# end token as well, and the model would not learn to stop. Here the end token is the padding token,
# and a short answer is trained beside a longer one.

# %%
tok = word_tokenizer(words)
tok.pad_token = tok.eos_token
one = small_llama(tok, layers=2, width=48)
pair = [dict(prompt='far?', answer='no.'), dict(prompt='is it tea?', answer='yes, it is tea.')]
tuned_one,_ = finetune(one, pair, lr=.01, epochs=40)
stopped, = sample(tuned_one, [render_prompt(tuned_one, 'far?')], 30)
test_eq((stopped.text.strip(), stopped.finish), ('no.', 'eos'))
start, = sample(one, [render_prompt(one, 'far?')], 30)
start, stopped


# %% [markdown]
# ## Loss
#
# The first loss is the mean over the answers' tokens, end token included. A mean over prompts'
# tokens as well would have a different gradient.

# %%
def nll(model, ids):
    logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return -torch.stack([logp[j-1,ids[j]] for j in range(1, len(ids))])

def gradient(total):
    lm.model.zero_grad()
    total.backward()
    return torch.cat([p.grad.flatten() for p in lm.model.parameters()])

lm.model.requires_grad_(True)
losses = [(nll(lm.model, ids), s-1) for ids,s in data]
answers = torch.cat([x[s:] for x,s in losses])
ours = gradient(answer_loss(lm.model, data)[0])/len(answers)
expected = gradient(answers.mean())
with_prompts = torch.cat([nll(lm.model, ids) for ids,_ in data]).mean()
assert (ours-expected).norm()<1e-4*expected.norm()
assert (gradient(with_prompts)-expected).norm()>.1*expected.norm()
_,history_one = finetune(lm, rows, batch=9)
test_close(history_one.loss[0], answers.mean().item(), 1e-5)
history_one.loss[0], with_prompts.item()


# %% [markdown]
# ## Resumed and saved runs
#
# An interrupted run resumes and ends with the same weights. A finished run is loaded. Its model
# folder can be opened by transformers and by `load`.

# %%
class Interrupt(Exception): pass

def interrupt(done, total):
    if done==23: raise Interrupt

options = dict(lr=.01, batch=2, epochs=40)
with expect_fail(Interrupt): finetune(lm, rows, tmp/'cut', progress=interrupt, **options)
resumed,resumed_history = finetune(lm, rows, tmp/'cut', **options)
finished,_ = finetune(lm, rows, tmp/'cut', **options)
for k,v in tuned.model.state_dict().items():
    for x in (resumed, finished): assert torch.equal(v, x.model.state_dict()[k])
test_eq(resumed_history.loss.tolist(), history.loss.tolist())

# %%
loaded = load(tmp/'run/model', 'float32', 'cpu')
damage = Manifest(tmp/'run').damage
(tmp/'rows.jsonl').write_text('\n'.join(json.dumps(r) for r in rows))
(tmp/'run/model/tokenizer.json').write_text('{}')
assert damage()
with warnings.catch_warnings(record=True) as caught:
    finetune(lm, tmp/'rows.jsonl', tmp/'run', lr=.01, batch=2, epochs=40) # Rows from a file
assert not damage() and 'tokenizer.json has' in str(caught[0].message)
test_eq([s.ids for s in sample(loaded, prompts, 20, temperature=0)], [s.ids for s in samples])
loaded

# %% [markdown]
# ## Refused input

# %%
with expect_fail(DataError, contains='row 1 has no `answer`'):
    finetune('none', [dict(prompt='far?')])
with expect_fail(DataError, contains='Row 1 of the examples has an empty'):
    finetune(lm, [dict(prompt='far?', answer=' ')])
test_eq(training_examples([], extra=[dict(prompt='far?', answer='')])[0]['fault'], 'empty')
with expect_fail(DataError, contains='has a fault'): finetune(lm, [dict(rows[1], fault='copy')])
with expect_fail(DataError, contains='extra: row 1 has no `answer`'):
    training_examples([], extra=[dict(prompt='far?')])
mistakes = [(dict(learning_rate=1), "finetune has no argument 'learning_rate'; did you mean 'lr'?"),
            (dict(num_train_epochs=3), "did you mean 'epochs'?"), (dict(lr='1e-4'), "lr is '1e-4'")]
for bad,message in mistakes:
    with expect_fail(ConfigError, contains=message): finetune('none', pair, **bad)
with expect_fail(DataError, contains='is no chain of revisions'):
    training_examples(tmp/'rows.jsonl')
with expect_fail(ConfigError, contains='512'):
    finetune(lm, [dict(prompt='far? '*600, answer='no.')])

# %%
#| hide
import shutil
shutil.rmtree(tmp)
