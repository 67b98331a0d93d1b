# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Training a policy
#
# > A language model is trained against a score, with snapshots, alarms, and a run that can be
# > killed at any moment.

# %%
#| default_exp constitution.rl.policy

# %% [markdown]
# One call trains a copy of a model against any score: a preference model, a known function,
# a mixture of several. Along the way it leaves snapshots, ordinary model folders that can
# be asked like any other model. The figures of the paper are about those.

# %%
#| export
import json
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter

import numpy as np, pandas as pd, torch
from fastcore.meta import delegates

from moral_sc.constitution.rl.trainer import RLTrainer, RLConfig, combine_rewards
from moral_sc.foundation.errors import ConfigError, DataError
from moral_sc.foundation.runs import content_key, open_run, process_rank
from moral_sc.language.reward_head import save_model
from moral_sc.language.engine.batch_invariant import batch_invariant
from moral_sc.language.loading import load
from moral_sc.language.models import LM
from moral_sc.language.engine.allocator import retain_freed_memory
from moral_sc.language.optimization import broadcast_from_rank0, init_distributed

_all_ = ['RLConfig', 'combine_rewards']


# %% [markdown]
# ## What can go wrong
#
# Training against a score can leave the road in ways that no error message reports: the
# policy moves far away from where it began, or it says the same thing to everybody. `stop_reason`
# looks at the numbers of each step. A policy that has collapsed does not come back, so the
# run ends there, with the reason and the last snapshot taken before.

# %%
#| export
def stop_reason(
    row:dict,               # Numbers of a step
    kl_max:float=np.inf,    # Nats an answer
    entropy_min:float=0.,   # Nats a token
    asked:int=1,            # Different prompts in the step
)->str:                     # Empty if all is well
    "Why training should stop"
    bad = [k for k,v in row.items() if isinstance(v, float) and not np.isfinite(v)]
    if bad: return f'{bad[0]} is {row[bad[0]]}'
    if row['kl3']>kl_max: return f'kl is {row["kl3"]:.3g}, above kl_max={kl_max:g}'
    if row['entropy']<entropy_min:
        return f'entropy is {row["entropy"]:.3g}, below entropy_min={entropy_min:g}'
    if asked>1 and row['different']==1: return 'all answers are alike'
    return ''


# %%
#| hide
import os, signal, subprocess, sys, tempfile
from importlib.util import find_spec
from fastcore.test import *
from moral_sc.bias.sweep import expand_models
tmp = Path(tempfile.mkdtemp())
torch.set_num_threads(1)

# %%
well = dict(kl3=1., entropy=2., different=30, score=.5)
ills = [{}, dict(kl3=11.), dict(entropy=.01), dict(different=1), dict(score=float('nan'))]
[stop_reason(well|x, kl_max=10, entropy_min=.1, asked=8) for x in ills]


# %% [markdown]
# ## What is kept
#
# A run is a folder: `history.jsonl` with a line a step, `snapshots` with a model folder
# every so many steps, and a checkpoint with all that is needed to go on as if nothing had
# happened: policy, critic, optimiser, the price of KL, random states. The position in the
# data is the number of the step. Of two checkpoints the older is deleted when the newer is
# on disk.

# %%
#| export
@dataclass
class TrainedPolicy:
    "A trained policy and how it came about"
    lm:LM                # The model; after an alarm, as of the last snapshot
    history:pd.DataFrame # A row a step
    snapshots:list       # Folders 'step-000100', in order
    stopped:str=''       # Why training ended before its last step

    def __repr__(self):
        end = f', stopped: {self.stopped}' if self.stopped else ''
        return (f'Policy({self.lm.name}, {len(self.history)} steps, '
                f'{len(self.snapshots)} snapshots{end})')


# %%
#| export
class _RunFolder:
    "History, snapshots and checkpoint of a run; without `out` nothing is written"
    def __init__(self, out, run):
        self.out = out and Path(out)
        self.run = run
        self.rows = []
        self.first = process_rank()[0]==0

    def snapshots(self): return sorted((self.out/'snapshots').glob('step-*[0-9]'))

    def log(self, row):
        self.rows.append(row)
        if not self.out or not self.first: return
        with open(self.out/'history.jsonl', 'a') as f: f.write(json.dumps(row)+'\n')

    def keep(self, learner, k):
        "Snapshot and checkpoint after `k` steps"
        state = learner.state() # Of parts that all processes have
        if not self.out or not self.first: return
        to = self.out/'snapshots'/f'step-{k:06}'
        if not to.exists(): save_model(learner.whole(), to)
        new = self.out/f'checkpoint-{k:06}.pt'
        torch.save(dict(state, step=k), new.with_suffix('.part'))
        new.with_suffix('.part').rename(new)
        for old in self.out.glob('checkpoint-*.pt'):
            if old!=new: old.unlink()

    def resume(self, learner):
        "Take up the last checkpoint; steps that are done"
        found = sorted(self.out.glob('checkpoint-*.pt')) if self.out else []
        last = broadcast_from_rank0(found[-1] if found else None)
        if last is None: self.keep(learner, 0); return 0
        state = torch.load(last, weights_only=True, map_location=learner.lm.device)
        k = state.pop('step')
        learner.restore(state)
        self.rows = _history(self.out)[:k]
        if self.first: _rewrite(self.out/'history.jsonl', self.rows)
        return k

    def good(self):
        last = self.snapshots()[-1:] if self.out else []
        return f'the last good snapshot is {last[0]}' if last else 'no snapshot was kept'

    def policy(self, model, known, why=''):
        "What there is now; after an alarm the model of the last snapshot"
        snaps = self.snapshots() if self.out else []
        if why and snaps: model = self.last(known)
        return TrainedPolicy(replace(known, model=model), pd.DataFrame(self.rows), snaps, why)

    def last(self, known): return load(self.snapshots()[-1], known.dtype, known.device).model

    def read(self, known):
        "A finished run"
        self.rows = _history(self.out)
        why = json.loads((self.out/'provenance.json').read_text())['stopped']
        return self.policy(self.last(known), known, why)

def _history(out):
    "Rows of history.jsonl; a line that was cut off by a kill is dropped"
    path = Path(out)/'history.jsonl'
    lines = path.read_text().split('\n')[:-1] if path.exists() else []
    return [json.loads(x) for x in lines]

def _rewrite(path, rows):
    part = path.with_suffix('.part')
    part.write_text(''.join(json.dumps(r)+'\n' for r in rows))
    part.rename(path)


# %%
#| export
def _rows(prompts):
    "Prompts as rows with `id` and `text`, no two ids alike"
    rows = [dict(id=p, text=p) if isinstance(p, str) else p for p in prompts]
    if not rows: raise DataError('There are no prompts to train on; give one or more.')
    if len({r['id'] for r in rows})<len(rows):
        raise DataError('Two prompts have the same id; name each once.')
    return rows

def _board(out, on):
    if not on or process_rank()[0]: return
    try: from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError('tensorboard=True needs a package: `pip install '
                          '"moral_sc[tensorboard]"`, or read history.jsonl.') from None
    if not out: raise ConfigError('tensorboard=True needs a folder; give `out`.')
    return SummaryWriter(Path(out)/'tensorboard')

@delegates(RLConfig)
def train_policy(
    lm:LM,                # The first policy; it is the reference too, and not changed
    prompts:list,         # Strings, or rows with `id` and `text`
    reward,               # Score function: (texts of prompts, answers) -> a number each
    *,
    steps:int=100,
    out=None,             # Folder of a run that can be resumed
    every:int|None=None,  # Steps between snapshots; None: a tenth of all
    watch:dict|None=None, # More score functions by name, reported and not trained on
    kl_max:float=np.inf,  # Alarm: nats of KL an answer
    entropy_min:float=0., # Alarm: nats of entropy a token
    critic_from=None,     # Preference model that a separate critic begins as
    tensorboard:bool=False, # Write event files too
    progress=None,        # Called with (steps done, steps in all)
    **kwargs              # Of `PolicyConfig`
)->TrainedPolicy:
    "Train a copy of a model against a score"
    c = RLConfig(steps=steps, **kwargs)
    prompts = _rows(prompts)
    init_distributed()
    learner = RLTrainer(lm, reward, c, critic_from, watch)
    config = dict(kind='policy', model=[lm.name, lm.source, lm.parameters], **asdict(c),
                  prompts=content_key(rows=[[r['id'], r['text']] for r in prompts]))
    known = replace(lm, name=f'{lm.name}+{steps}', is_stub=False,
                    source=f'{lm.source}, trained {content_key(**config)[:8]}'.strip(', '))
    with open_run(out, config, seed=c.seed) if out else nullcontext() as run:
        folder = _RunFolder(out, run)
        if run is not None and run.finished: return folder.read(known)
        with retain_freed_memory(lm.device.type), batch_invariant(lm.model):
            why = _train(learner, prompts, folder, _board(out, tensorboard),
                         every or max(1, steps//10), (kl_max, entropy_min), progress)
        if run is not None: run.finish(stopped=why)
    return folder.policy(learner.whole().model, known, why)

def _train(learner, prompts, folder, board, every, limits, progress):
    "Steps until the last one or an alarm; the reason"
    c = learner.c
    k = folder.resume(learner)
    while k<c.steps:
        began = perf_counter()
        row = learner.step(prompts, k)
        k = k+1
        row = dict(step=k, answers=k*c.batch)|row
        row['seconds'] = round(perf_counter()-began, 4)
        folder.log(row)
        if board: [board.add_scalar(n, x, k) for n,x in row.items() if n!='step']
        if why := stop_reason(row, *limits, min(len(prompts), c.batch//c.group)):
            return f'{why} at step {k}; {folder.good()}'
        if k%every==0 or k==c.steps: folder.keep(learner, k)
        if progress: progress(k, c.steps)
    return ''


# %% [markdown]
# ## Along the way
#
# A model of random weights is rewarded for small letters, and a second score, of which it
# knows nothing, is watched. What is watched tells more than what is trained on: a policy is
# always good by the score that it was trained on, so never report that score, or an Elo
# made of it, without a judge that training did not see.

# %%
from moral_sc.language.stub_models import random_model

lm = random_model('llama')
asks = [f'Is it {w}?' for w in 'far late cold dark soon over'.split()]
letters = lambda prompts,answers: [sum(c.islower() for c in a) for a in answers]
vowels = lambda prompts,answers: [sum(c in 'aeiou' for c in a) for a in answers]
small = dict(batch=16, max_new_tokens=8, lr=1e-3, steps=8)

p = train_policy(lm, asks, letters, watch=dict(vowels=vowels), out=tmp/'one', every=4,
                 **small)
p.history[['step', 'score', 'vowels', 'kl', 'entropy', 'length']].iloc[::4].round(2)

# %%
p, [d.name for d in p.snapshots]

# %% [markdown]
# A snapshot is a model folder like any other, and a sweep of
# [moral self-correction](../../bias/50_sweep.ipynb) finds the steps by the names.

# %%
last = load(p.snapshots[-1])
same = lambda a,b: all(torch.equal(x, y) for x,y in zip(a.model.parameters(),
                                                        b.model.parameters()))
assert same(last, p.lm) and not same(last, lm)
[s.step for s in expand_models(tmp/'one'/'snapshots')]


# %% [markdown]
# Numbers of each step are lines of `history.jsonl`, and with `tensorboard=True` curves too.

# %%
#| hide
def scalars(folder, name):
    "Steps and values of one curve, where the package is installed"
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    e = EventAccumulator(str(folder)).Reload()
    return [(s.step, round(s.value, 4)) for s in e.Scalars(name)]

if find_spec('tensorboard'):
    train_policy(lm, asks, letters, out=tmp/'board', tensorboard=True, **small)
    test_eq(scalars(tmp/'board'/'tensorboard', 'score'),
            [(k+1, round(x, 4)) for k,x in enumerate(p.history.score)])
else:
    with expect_fail(ConfigError, contains='moral_sc[tensorboard]'):
        train_policy(lm, asks, letters, out=tmp/'board', tensorboard=True, **small)

# %% [markdown]
# ## Interrupted
#
# A child process trains and is killed with signal 9 after some steps. The same call takes
# up its checkpoint and ends with the policy of a run that nobody disturbed, bit for bit,
# and with the same history: for PPO, for RLOO, and with a critic of its own and a price
# that adapts.

# %%
code = '''
import sys, torch
from moral_sc.constitution.rl.policy import train_policy
from moral_sc.language.stub_models import random_model
torch.set_num_threads(1)
asks = [f'Is it {w}?' for w in 'far late cold dark soon over'.split()]
letters = lambda prompts,answers: [sum(c.islower() for c in a) for a in answers]
train_policy(random_model('llama'), asks, letters, out=sys.argv[1], every=2,
             progress=lambda k,n: print(k, flush=True), **eval(sys.argv[2]))
'''
def killed(out, options, after):
    child = subprocess.Popen([sys.executable, '-c', code, out, repr(options)], text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    for line in child.stdout:
        if int(line)>=after: child.send_signal(signal.SIGKILL); break
    return child.wait()

def history(p): return p.history.drop(columns='seconds')

test_eq(killed(tmp/'cut', small, 5), -9)
q = train_policy(lm, asks, letters, out=tmp/'cut', every=2, **small)
assert same(q.lm, p.lm)
test_eq(history(q).to_dict('list'), history(p).drop(columns='vowels').to_dict('list'))
q


# %%
class Stop(Exception): pass
def stop(k, n):
    if k==3: raise Stop

for i,more in enumerate([dict(algorithm='rloo', batch=16, schedule='linear'),
                         dict(critic='separate', kl_target=.5, inner=2, minibatches=2)]):
    todo = dict(small, steps=5, **more) if 'batch' not in more else small|more|dict(steps=5)
    whole = train_policy(lm, asks, letters, every=2, **todo)
    with expect_fail(Stop):
        train_policy(lm, asks, letters, out=tmp/f'stop{i}', every=2, progress=stop, **todo)
    q = train_policy(lm, asks, letters, out=tmp/f'stop{i}', every=2, **todo)
    assert same(q.lm, whole.lm)
    test_eq(history(q).to_dict('list'), history(whole).to_dict('list'))


# %% [markdown]
# A finished run is read and not repeated, and another configuration is refused.

# %%
def never(*a): raise AssertionError('scored again')
again = train_policy(lm, asks, never, out=tmp/'one', every=4, **small)
assert same(again.lm, p.lm)
test_eq(again.lm.source, p.lm.source) # What is made with either is the same
test_ne(p.lm.source, lm.source)
test_eq(len(again.snapshots), 3)
with expect_fail(ConfigError, contains='lr: 0.001 there, 0.01 now'):
    train_policy(lm, asks, letters, out=tmp/'one', **small|dict(lr=.01))

# %% [markdown]
# ## Fewer parameters
#
# With [small matrices](../../language/47_lora.ipynb) beside the layers only those are
# trained. The snapshots do not show it.

# %%
from copy import deepcopy
from moral_sc.language.lora import add_lora

thin = replace(lm, model=add_lora(deepcopy(lm.model), rank=4))
q = train_policy(thin, asks, letters, out=tmp/'thin', every=4, **small|dict(lr=1e-2))
back = load(q.snapshots[-1])
test_eq(len(list(back.model.parameters())), len(list(lm.model.parameters())))
assert same(back, q.lm) and not same(back, lm)
q.history[['step', 'score', 'kl', 'ratio']].iloc[[0, -1]].round(3)

# %% [markdown]
# ## Collapse
#
# With a rate a hundred times too high the policy runs away from where it began. The run
# stops, says why, and gives back the last snapshot taken before.

# %%
q = train_policy(lm, asks, letters, out=tmp/'wild', every=1, kl_max=20.,
                 **small|dict(lr=.1))
assert 'above kl_max' in q.stopped and same(q.lm, load(q.snapshots[-1]))
q.stopped.replace(str(tmp), '…')

# %% [markdown]
# Input that cannot be trained on is refused before anything is sampled, and a score that is
# no number as soon as it appears.

# %%
odd = lambda prompts,answers: [float('nan')]*len(answers)
for bad,kind,says in [(lambda: train_policy(lm, [], letters), DataError, 'no prompts'),
                      (lambda: train_policy(lm, ['a', 'a'], letters), DataError, 'same id'),
                      (lambda: train_policy(lm, asks, odd, **small), DataError, 'is nan'),
                      (lambda: train_policy(lm, asks, letters, algorithm='dpo'),
                       ConfigError, "There is no algorithm 'dpo'")]:
    with expect_fail(kind, contains=says): bad()

# %%
#| hide
import shutil
shutil.rmtree(tmp)
