# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Training
#
# > One training loop serves every model and loss, on one process or several.

# %%
#| default_exp language.training

# %%
#| export
import logging
import math
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist

from moral_sc.foundation.arguments import checked
from moral_sc.foundation.errors import ConfigError, DataError, ModelError, unknown_name_message
from moral_sc.foundation.progress import progress_callback
from moral_sc.foundation.runs import content_key, function_key, open_run
from moral_sc.language.engine import training
from moral_sc.language.engine.batching import batches
from moral_sc.language.engine.oom import halve_on_oom
from moral_sc.language.fsdp import FSDPModules, fsdp_enabled, full_tensors
from moral_sc.language.optimization import (
    Checkpoints, build_optimizer, clipped_step, gather_objects, get_random_state,
    init_distributed, learning_rate, reduce_gradients, schedules, set_random_state)
from moral_sc.language.models import weights_digest
from moral_sc.language.reward_head import answer_logprobs

_log = logging.getLogger(__name__)

# %%
#| hide
import os, tempfile
from pathlib import Path
from fastcore.test import *
from moral_sc.language.reward_head import small_llama, word_tokenizer
from moral_sc.language.models import decode, encode

tmp = Path(tempfile.mkdtemp())
torch.set_num_threads(1)


# %% [markdown]
# Supervised finetuning and preference models use the loop of this page. Two mistakes in such loops
# raise no error: a mean of means gives tokens of short texts a larger weight than tokens of long
# ones, and a run that is resumed may continue with other data than it would have seen.
#
# ## Losses as sums and counts
#
# A loss returns a sum, over tokens or comparisons, and the number of its terms. Sums over
# micro-batches add up to the sum over the batch; means do not. The loss of supervised finetuning
# is the cross-entropy of the answers.

# %%
#| export
def answer_loss(
    model,
    examples, # (token ids, index of the first token of the answer)
)->tuple:     # Sum in nats, number of tokens, further sums to log
    "Return the cross-entropy of the answers' tokens, given what precedes them"
    logp,mask = answer_logprobs(model, [e[0] for e in examples], [e[1] for e in examples])
    return -logp.sum(),mask.sum().item(),{}


# %%
tok = word_tokenizer('is it far tea the cup here . ? , yes no'.split())
def example(request, answer):
    ids = tok(f'\n\nHuman: {request}\n\nAssistant:').input_ids
    return [*ids, *tok(f' {answer}').input_ids, tok.eos_token_id],len(ids)

data = [example('is it far?', 'no, the tea is here.'), example('is it tea?', 'yes.'),
        example('the cup, is it here?', 'no.'), example('far?', 'yes, the cup is far, far.')]
lm = small_llama(tok, layers=2, width=32)
answer_loss(lm.model, data)


# %% [markdown]
# ## Micro-batches
#
# An optimizer step uses `batch` examples. They are divided into micro-batches of rows of similar
# length. When memory runs out, the step is repeated with micro-batches of half the size.

# %%
#| export
def example_length(example)->int:
    "Return the number of tokens of a mapping with `ids`, or of a sequence that begins with them"
    return len(example['ids'] if isinstance(example, dict) else example[0])

def accumulate_gradients(
    model,
    examples:list,
    loss,            # loss(model, examples) -> sum, count, sums to log
    max_tokens:int,  # In one micro-batch, padding included
    length=example_length,
)->tuple:            # {'loss', 'count', 'tokens', ...: sums over the examples}, max_tokens
    "Add the gradient of the summed loss; halve `max_tokens` when memory runs out"
    lengths = [length(e) for e in examples]
    return halve_on_oom(lambda n: _accumulate(model, examples, loss, lengths, n), max_tokens,
                        lengths, reset=lambda: model.zero_grad(set_to_none=True))

def _accumulate(model, examples, loss, lengths, max_tokens):
    results = []
    for rows in _micro_batches(model, lengths, max_tokens):
        total,*logs = loss(model, [examples[i] for i in rows])
        total.backward()
        results.append((total.detach(), *logs))
    return _sum_results(results, sum(lengths))

def _micro_batches(model, lengths, max_tokens): # On a CPU padding costs as much as text
    cpu = next(model.parameters()).device.type=='cpu'
    return batches(lengths, max_tokens, max_padding=160 if cpu else None)

def _sum_results(results, tokens):
    return _add_sums([dict(loss=t, count=n) | logs for t,n,logs in results]) | dict(tokens=tokens)

def _add_sums(sums): # A rank without examples has none
    keys = dict.fromkeys(k for s in sums for k in s)
    return {k: math.fsum(float(s.get(k, 0)) for s in sums) for k in keys}


# %% [markdown]
# The gradient does not depend on the division into micro-batches. The mean of the means of
# micro-batches has a different gradient: it weights a token of a short answer more than a token
# of a long one.

# %%
def flat(model): return torch.cat([p.grad.flatten() for p in model.parameters()])

def gradient(max_tokens, loss=answer_loss):
    lm.model.zero_grad()
    sums,_ = accumulate_gradients(lm.model, data, loss, max_tokens)
    return flat(lm.model)/sums['count']

def mean_loss(model, examples):
    total,count,_ = answer_loss(model, examples)
    return total/count,1,{}

whole = gradient(4096)
for n in (1, 20, 40): test_close(gradient(n), whole, 1e-6)
assert (gradient(1, mean_loss)-whole).norm()>.1*whole.norm()


# %% [markdown]
# A simulated device with memory for 20 tokens gives the same gradient; the part that was
# accumulated before the error is discarded.

# %%
def limited_loss(model, examples):
    if sum(map(example_length, examples))>20: raise torch.OutOfMemoryError
    return answer_loss(model, examples)

lm.model.zero_grad()
sums,max_tokens = accumulate_gradients(lm.model, data, limited_loss, 4096)
test_close(flat(lm.model)/sums['count'], whole, 1e-6)
with expect_fail(ModelError, contains='of 14 tokens'):
    accumulate_gradients(lm.model, data, lambda m,e: limited_loss(m, e*9), 4096)
max_tokens


# %% [markdown]
# ## The loop
#
# The seed and the number of a step determine its examples and its random numbers. A run that was
# killed continues from its last checkpoint and ends with the same weights, bit for bit on a CPU.
# A finished run is loaded, not repeated. Several ranks share the examples of each step and sum
# their gradients and counts, so they take the step that one process would have taken.

# %%
#| export
def epoch_batches(
    n:int,    # Number of examples
    batch:int,
    seed:int,
    epoch:int,
)->list:      # One list of example numbers a step
    "Return the batches of an epoch, which depend on the seed and the epoch only"
    order = np.random.default_rng([seed, epoch]).permutation(n)
    return [order[k:k+batch].tolist() for k in range(0, n, batch)]

def split_across_ranks(
    examples:list, rank:int, world:int, length=example_length,
)->list:
    "Return the examples of one rank; all ranks get about the same number of tokens"
    if world==1: return examples
    order = sorted(range(len(examples)), key=lambda i: (-length(examples[i]), i))
    return [examples[i] for i in order[rank::world]]

def _examples_key(examples):
    try: return content_key(e=[content_key(e=e) for e in examples])
    except TypeError: return function_key(list(examples)) # Other objects, by what they hold

def _run_key(model, examples, loss):
    "Identify initial weights, data and loss; each rank has all weights, so it is the same on all"
    return dict(weights=weights_digest(model), examples=_examples_key(examples),
                loss=function_key(loss))

def _check_options(c):
    for k in ('batch', 'epochs', 'lr', 'eps', 'max_tokens'):
        if not c[k]>0: raise ConfigError(f'{k} is {c[k]}; give more than 0.')
    for k in ('warmup', 'weight_decay', 'max_grad_norm', 'seed'):
        if c[k]<0: raise ConfigError(f'{k} is {c[k]}; give 0 or more.')
    for name,known in (('schedule', [*schedules]), ('autocast', [None, 'bfloat16', 'float16'])):
        if c[name] not in known:
            raise ConfigError(unknown_name_message(name, str(c[name]), [*map(str, known)]))

def _history_row(step, epoch, lr, norm, sums):
    n = sums['count']
    means = {k: v/n for k,v in sums.items() if k not in ('count', 'tokens')}
    return dict(step=step, epoch=epoch, lr=lr, grad_norm=norm) | means | dict(
        count=n, tokens=sums['tokens'])

@checked
def fit(
    model,                  # Trained in place; float32
    examples:list,
    loss,                   # loss(model, examples) -> sum, count, sums to log
    *,
    length=example_length,  # Tokens in an example
    batch:int=32,           # Examples a step
    epochs:int=1,
    max_tokens:int=4096,    # In one micro-batch, padding included
    lr:float=1e-4,
    warmup:int=0,           # Steps
    schedule:str='constant',# 'constant', 'linear' or 'cosine'
    weight_decay:float=0.,
    betas:tuple=(.9, .999),
    eps:float=1e-8,
    max_grad_norm:float=1., # 0: no clipping
    seed:int=0,
    out=None,               # Folder of checkpoints
    every:int=None,         # Steps between checkpoints; default: a tenth of all
    dropout:bool=False,
    autocast:str=None,      # 'bfloat16': compute in bfloat16, keep float32 weights
    progress=None,          # True: a bar; or a function (steps done, number of steps)
)->pd.DataFrame:            # One row a step: step, epoch, lr, grad_norm, loss, count, tokens
    "Train a model and return the history"
    if not examples: raise ConfigError('There are no examples to train on; give one or more.')
    config = dict(batch=batch, epochs=epochs, lr=lr, warmup=warmup, schedule=schedule,
                  weight_decay=weight_decay, betas=betas, eps=eps, max_grad_norm=max_grad_norm,
                  seed=seed, dropout=dropout, autocast=autocast)
    _check_options(config|dict(max_tokens=max_tokens))
    steps_per_epoch = math.ceil(len(examples)/batch)
    every = every or max(1, steps_per_epoch*epochs//10)
    run = _Fit(model, loss, length, config, steps_per_epoch, max_tokens)
    device = next(model.parameters()).device
    rng = torch.random.fork_rng(devices=[device] if device.type=='cuda' else [])
    with (rng, training(model, run.fsdp.shards if run.fsdp else None),
          progress_callback(progress, 'steps') as report):
        return run.train(examples, out, every, report)


# %% [markdown]
# The state of a training in progress:

# %%
#| export
_fields = 'model', 'rows', 'random', 'max_tokens' # Of a checkpoint; the last has no optimizer

class _Fit:
    "A training in progress"
    def __init__(self, model, loss, length, config, steps_per_epoch, max_tokens):
        self.model = model
        self.loss = loss
        self.length = length
        self.config = config
        self.steps_per_epoch = steps_per_epoch
        self.steps = steps_per_epoch*config['epochs']
        self.max_tokens = max_tokens
        self.history = []
        self.batches = None
        self.rank,self.world = init_distributed()
        self.fsdp = FSDPModules(model=model) if fsdp_enabled() else None
        options = {k: config[k] for k in ('lr', 'weight_decay', 'betas', 'eps')}
        self.optimizer = build_optimizer(self.fsdp or model, **options)

    def autocast(self):
        device = next(self.model.parameters()).device.type
        dtype = self.config['autocast']
        return torch.autocast(device, getattr(torch, dtype or 'bfloat16'), enabled=bool(dtype))

    def backward(self, examples, step):
        "Compute the gradient of a step, summed over all ranks; return the sums to log"
        seed = 1_000_003*self.config['seed'] + step*self.world + self.rank
        torch.manual_seed(seed%2**63)
        share = split_across_ranks(examples, self.rank, self.world, self.length)
        with self.autocast():
            if self.fsdp: sums = self._fsdp_backward(share, examples)
            else: sums,self.max_tokens = accumulate_gradients(self.model, share, self.loss,
                                                              self.max_tokens, self.length)
        if not self.fsdp: reduce_gradients([p for p in self.model.parameters() if p.requires_grad])
        return sums if self.world==1 else _add_sums(gather_objects(sums))

    def _fsdp_backward(self, share, examples):
        lengths = [self.length(e) for e in share]
        rows = _micro_batches(self.model, lengths, self.max_tokens)
        groups = [[share[i] for i in g] for g in rows]
        results = self.fsdp.backward(lambda modules,g: self.loss(modules['model'], g), groups,
                                     examples[:1])
        return _sum_results(results, sum(lengths))

    def step(self, examples, step):
        "Take one optimizer step; return whether loss and gradient are finite"
        c = self.config
        epoch,k = divmod(step, self.steps_per_epoch)
        if k==0 or not self.batches:
            self.batches = epoch_batches(len(examples), c['batch'], c['seed'], epoch)
        lr = learning_rate(step, self.steps, c['lr'], c['warmup'], c['schedule'])
        sums = self.backward([examples[i] for i in self.batches[k]], step)
        norm = clipped_step(self.optimizer, sums['count'], c['max_grad_norm'], lr)
        self.history.append(_history_row(step, epoch, lr, norm, sums))
        return math.isfinite(self.history[-1]['loss']+norm)

    def train(self, examples, out, every, progress):
        with _checkpointed(out, self, examples) as checkpoints:
            (self.fsdp or self.model).train(self.config['dropout'])
            try: self._train(examples, checkpoints, every, progress)
            finally: self.model.eval()
        return pd.DataFrame(self.history)

    def _train(self, examples, checkpoints, every, progress):
        for step in range(len(self.history), self.steps):
            if not self.step(examples, step): raise ModelError(_not_finite(step, checkpoints))
            if progress: progress(step+1, self.steps)
            _log.info('step %d of %d: loss %.4g', step+1, self.steps, self.history[-1]['loss'])
            if (step+1)%every and step+1<self.steps: continue
            state = self.state_dict()
            if checkpoints and not self.rank and step+1<self.steps:
                checkpoints.save(step+1, state)

    def state_dict(self):
        "Return the content of a checkpoint, which is the same with and without FSDP"
        if self.fsdp: self.fsdp.gather()
        return dict(model=self.model.state_dict(), rows=self.history, random=get_random_state(),
                    optimizer=full_tensors(self.optimizer.state_dict()), max_tokens=self.max_tokens)

    def resume(self, checkpoints, finished):
        "Load the last checkpoint, if there is one; a finished run must have it"
        step,state = checkpoints.latest(*_fields)
        if state is None:
            if not finished: return
            raise DataError(f'{checkpoints.folder} is a finished run without a checkpoint that can '
                            'be used; move it away and train again.')
        try: self.load_state_dict(state)
        except (RuntimeError, ValueError, KeyError, TypeError, IndexError) as e:
            raise DataError(f'{checkpoints.path(step)} is not a checkpoint of this training '
                            f'({str(e).splitlines()[0]:.150}); move {checkpoints.folder} away and '
                            'train again.') from e
        _log.info('%s goes on after step %d', checkpoints.folder, step)

    def load_state_dict(self, state):
        "Load model, optimizer and random state from a checkpoint"
        self.model.load_state_dict(state['model'])
        if 'optimizer' in state: self.optimizer.load_state_dict(state['optimizer'])
        if self.fsdp: self.fsdp.scatter(self.optimizer)
        set_random_state(state['random'])
        self.history = state['rows']
        self.max_tokens = state['max_tokens']

def _not_finite(step, checkpoints):
    message = f'The loss or its gradient is not finite at step {step}; lower the learning rate.'
    steps = checkpoints.steps() if checkpoints else []
    return message+(f' The last checkpoint is {checkpoints.path(steps[-1])}.' if steps else '')

@contextmanager
def _checkpointed(out, fit, examples):
    "Resume a run from its last checkpoint, and mark it as finished at the end"
    if out is None: yield; return
    config = fit.config | _run_key(fit.model, examples, fit.loss)
    with open_run(out, config, seed=config['seed']) as run:
        checkpoints = Checkpoints(out)
        fit.resume(checkpoints, run.finished)
        if fit.world>1: dist.barrier()
        yield checkpoints
        state = fit.state_dict()
        if fit.rank or run.finished: return
        del state['optimizer']
        checkpoints.keep = 1
        checkpoints.save(fit.steps, state)
        run.finish(steps=fit.steps)


# %%
history = fit(lm.model, data, answer_loss, batch=4, epochs=80, lr=.01)
history.iloc[[0, -1]].round(3)

# %% [markdown]
# The end token is part of the answer, so the trained model stops after it.

# %%
from moral_sc.language.generation import sample
generated = sample(lm, ['\n\nHuman: is it far?\n\nAssistant:'], max_new_tokens=20, temperature=0)[0]
test_eq(generated.finish, 'eos')
generated.text

# %% [markdown]
# Dropout is off unless you pass `dropout=True`, and `fit` returns the model in evaluation mode.

# %%
test_eq(*(answer_loss(lm.model, data)[0].item() for _ in range(2)))
assert not lm.model.training

# %% [markdown]
# ## Resumed runs
#
# A process is killed after step 5 of 12, in the middle of an epoch and two steps after its last
# checkpoint. A second process resumes the run and obtains the weights and losses of an
# uninterrupted run.

# %%
from multiprocessing import get_context
def fork(f, *args):
    job = get_context('fork').Process(target=f, args=args)
    job.start()
    return job

def kill_after(k): return lambda done,total: done==k and os.kill(os.getpid(), 9)

options = dict(batch=1, epochs=3, lr=.01, warmup=2, schedule='cosine', weight_decay=.1, every=3,
               dropout=True)
def train(out, progress=None, dropout=.1, **kw):
    lm = small_llama(tok, layers=2, width=32)
    lm.model.config.attention_dropout = dropout
    for l in lm.model.model.layers: l.self_attn.attention_dropout = dropout
    return lm.model,fit(lm.model, data, answer_loss, out=out, progress=progress, **options | kw)

expected,history = train(tmp/'uninterrupted')
job = fork(train, tmp/'killed', kill_after(5))
job.join()
test_eq((job.exitcode, Checkpoints(tmp/'killed').steps()), (-9, [3]))
model,resumed = train(tmp/'killed')
pairs = zip(model.state_dict().values(), expected.state_dict().values())
assert all(torch.equal(x, y) for x,y in pairs)
assert history.equals(resumed)
resumed.loc[[2, 3, 11], ['step', 'epoch', 'loss', 'lr']].round(3)


# %% [markdown]
# The whole checkpoint is the same, optimizer state included: here that of step 9 of a run that was
# killed once and of a run that was killed twice.

# %%
def same(x, y):
    if isinstance(x, torch.Tensor): return torch.equal(x, y)
    if isinstance(x, dict): return x.keys()==y.keys() and all(same(x[k], y[k]) for k in x)
    if isinstance(x, (list, tuple)): return len(x)==len(y) and all(map(same, x, y))
    return x==y

for out,k in ((tmp/'once', 10), (tmp/'twice', 5), (tmp/'twice', 10)):
    fork(train, out, kill_after(k)).join()
once,twice = (Checkpoints(tmp/n).latest() for n in ('once', 'twice'))
test_eq([once[0], twice[0]], [9, 9])
equal = {k: same(once[1][k], twice[1][k]) for k in ('model', 'optimizer', 'rows', 'max_tokens')}
assert all(equal.values())
equal

# %% [markdown]
# Dropout was on, so its random numbers were repeated as well. A finished run is loaded. Other
# options, data or initial weights are refused in the same folder.

# %%
_,loaded = train(tmp/'uninterrupted', lambda done,total: 1/0)
assert loaded.equals(history)
with expect_fail(ConfigError, contains='lr: 0.01 stored, 0.02 requested'):
    train(tmp/'uninterrupted', lr=.02)

# %%
#| hide
import contextlib, io, warnings

def refit(change=lambda model: None, examples=data, loss=answer_loss, **kw):
    model = small_llama(tok, layers=1, width=16).model
    change(model)
    return fit(model, examples, loss, batch=3, out=tmp/'key', **kw)
def change_one(model):
    with torch.no_grad(): model.lm_head.weight[5,7] += .01
def halved(model, examples): return [x*.5 if i==0 else x for i,x in
                                     enumerate(answer_loss(model, examples))]
refit()
for kw,name in [(dict(change=change_one), 'weights: '), (dict(loss=halved), 'loss: '),
                (dict(examples=data[:2]+[(data[2][0][::-1], 1)]), 'examples: ')]:
    with expect_fail(ConfigError, contains=name): refit(**kw)


# %% [markdown]
# A damaged checkpoint is named. A run that is not finished goes on from an earlier state; a finished one
# is not reported as done.

# %%
def flip(path, at=2000):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)

final = Checkpoints(tmp/'key').path(Checkpoints(tmp/'key').steps()[-1])
flip(final)
with (warnings.catch_warnings(record=True) as caught,
      expect_fail(DataError, contains='finished run')):
    refit()
assert f'{final.name} has another SHA-256' in str(caught[0].message)
job = fork(train, tmp/'flipped', kill_after(7))
job.join()
flip(Checkpoints(tmp/'flipped').path(6))
with warnings.catch_warnings(record=True) as caught: model,resumed = train(tmp/'flipped')
assert history.equals(resumed) and len(caught)==1
pairs = zip(model.state_dict().values(), expected.state_dict().values())
assert all(torch.equal(x, y) for x,y in pairs)

# %%
#| hide
other = Checkpoints(tmp/'key')
good = torch.load(Checkpoints(tmp/'uninterrupted').path(12))
last = other.steps()[-1]
other.save(last, good) # A checkpoint of another model
with expect_fail(DataError, contains='is not a checkpoint of this training'): refit()
with (warnings.catch_warnings(record=True) as caught,
      expect_fail(DataError, contains='finished run')):
    other.save(last, dict(a=1))
    refit()
assert "no 'model'" in str(caught[0].message)
class Example: # No JSON
    def __init__(self, ids): self.ids = ids
test_ne(*(_examples_key([Example([1, k])]) for k in (2, 3)))
mistakes = [(dict(learning_rate=1), "did you mean 'lr'"),
            (dict(lr=0.), 'lr is 0.0; give more than 0'),
            (dict(epochs='one'), "epochs is 'one'; give a whole number"),
            (dict(schedule='linaer'), "did you mean 'linear'"), (dict(seed=-1), 'seed is -1'),
            (dict(autocast='float8'), "no autocast 'float8'"), (dict(batch=0), 'batch is 0')]
for kw,message in mistakes:
    with expect_fail(ConfigError, contains=message): fit(model, data, answer_loss, **kw)
stderr = io.StringIO()
with contextlib.redirect_stderr(stderr): fit(model, data, answer_loss, progress=True)
assert 'steps: 100%' in stderr.getvalue()


# %% [markdown]
# A loss that is not finite stops the run before it changes the weights. The error names the last
# checkpoint.

# %%
def nan_loss(model, examples):
    total,count,_ = answer_loss(model, examples)
    return total*(math.nan if nan_loss.left==0 else 1),count,{}

def train_to_nan(out, n=5):
    model = small_llama(tok, layers=1, width=16).model
    nan_loss.left = n
    def count_down(done, total): nan_loss.left -= 1
    try: fit(model, data, nan_loss, batch=1, epochs=3, every=2, out=out, progress=count_down)
    finally: assert all(p.isfinite().all() for p in model.parameters())

with expect_fail(ModelError, contains='step 5'): train_to_nan(tmp/'nan')
test_eq(Checkpoints(tmp/'nan').steps(), [2, 4])

# %% [markdown]
# ## Several ranks
#
# Two ranks share each step. A step has 3 examples, so their shares are unequal; the last step of
# an epoch has 1, so one rank has none. The result is that of one process, to rounding.

# %%
import sys
from moral_sc.foundation.runs import process_rank, start_ranks

def launch(name, world, die=0):
    "Train as one of several ranks"
    (tmp/name).mkdir(exist_ok=True)
    def train_rank():
        rank = process_rank()[0]
        if die: sys.stderr = open(os.devnull, 'w') # Hides the errors of the surviving rank
        model = small_llama(tok, layers=2, width=32).model.double()
        history = fit(model, data, answer_loss, batch=3, epochs=4, lr=.01, every=2,
                      out=tmp/name/'run', progress=kill_after(die))
        history.to_pickle(tmp/name/f'{rank}.pkl')
        torch.save(model.state_dict(), tmp/name/f'{rank}.pt')
    jobs = start_ranks(train_rank, world)
    for j in jobs: j.join()
    if not die: test_eq([j.exitcode for j in jobs], [0]*world)

def max_difference(a, b):
    "Return the largest differences of histories and of weights"
    (x,u),(y,v) = ((pd.read_pickle(tmp/f'{n}.pkl'), torch.load(tmp/f'{n}.pt')) for n in (a, b))
    return float((x-y).abs().max(axis=None)),max((u[k]-v[k]).abs().max().item() for k in u)

launch('world2', 2)
launch('world1', 1)
test_eq(max_difference('world2/0', 'world2/1'), (0, 0))
test_close(max_difference('world2/0', 'world1/0'), (0, 0), 1e-9)
max_difference('world2/0', 'world1/0')

# %% [markdown]
# One process can resume a run of two.

# %%
launch('mixed', 2, die=5)
test_eq(Checkpoints(tmp/'mixed/run').steps(), [2, 4])
launch('mixed', 1)
test_close(max_difference('mixed/0', 'world1/0'), (0, 0), 1e-9)
with expect_fail(ConfigError, contains='accelerate launch'):
    os.environ.update(RANK='0', WORLD_SIZE='2')
    try: fit(lm.model, data, answer_loss)
    finally: del os.environ['RANK'],os.environ['WORLD_SIZE']

# %% [markdown]
# Start a script that calls `fit` as follows, on GPUs or on a CPU:
#
# ```sh
# accelerate launch --multi_gpu --num_processes 2 train.py
# ```
#
# Each rank holds the whole model and its optimizer state. For models that do not fit on one
# device, use [FSDP](49_fsdp.ipynb) or [LoRA](47_lora.ipynb).

# %%
#| hide
import shutil
shutil.rmtree(tmp)
