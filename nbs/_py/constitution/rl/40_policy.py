# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Policy training
#
# > `train_policy` trains a model against a reward function, in runs that can be resumed.

# %%
#| default_exp constitution.rl.policy

# %% [markdown]
# One call trains a copy of a model against a reward function: a preference model, a known function
# or a sum of several. It saves snapshots, which are ordinary model folders. The figures of the
# paper are about snapshots.

# %%
#| export
import json
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from uuid import uuid4

import numpy as np, pandas as pd
from fastcore.meta import delegates

from moral_sc.constitution.rl.trainer import RLConfig, RLTrainer, combine_rewards
from moral_sc.foundation.errors import ConfigError, DataError
from moral_sc.foundation.runs import content_key, function_key, open_run, process_rank
from moral_sc.language.engine import training
from moral_sc.language.loading import load
from moral_sc.language.models import LM
from moral_sc.language.optimization import Checkpoints, init_distributed
from moral_sc.language.reward_head import save_model

_all_ = ['RLConfig', 'combine_rewards']


# %% [markdown]
# ## Early stopping
#
# RL training can fail without an error: the policy moves far from the reference model, or gives the
# same answer to every prompt. A collapsed policy does not recover, so `stop_reason` checks the
# metrics of each step, and the run ends with the reason and the last snapshot before it.

# %%
#| export
def stop_reason(
    row:dict,               # Metrics of a step
    kl_max:float=np.inf,    # Nats an answer
    entropy_min:float=0.,   # Nats a token
    n_prompts:int=1,        # Different prompts in the step
)->str:                     # '' to continue
    "Return the reason why training should stop"
    bad = [k for k,v in row.items() if isinstance(v, float) and not np.isfinite(v)]
    if bad: return f'{bad[0]} is {row[bad[0]]}'
    if row['kl3']>kl_max: return f'kl is {row["kl3"]:.3g}, above kl_max={kl_max:g}'
    if row['entropy']<entropy_min:
        return f'entropy is {row["entropy"]:.3g}, below entropy_min={entropy_min:g}'
    if n_prompts>1 and row['unique_answers']==1: return 'all answers are the same'
    return ''


# %%
#| hide
import os, signal, subprocess, sys, tempfile
import torch
from importlib.util import find_spec
from fastcore.test import *
from moral_sc.bias.sweep import expand_models
tmp = Path(tempfile.mkdtemp())
torch.set_num_threads(1)

# %%
row = dict(kl3=1., entropy=2., unique_answers=30, score=.5)
changes = [{}, dict(kl3=11.), dict(entropy=.01), dict(unique_answers=1), dict(score=float('nan'))]
[stop_reason(row|x, kl_max=10, entropy_min=.1, n_prompts=8) for x in changes]


# %% [markdown]
# ## Run folder
#
# A run folder has a file `history.jsonl` with one line a step, a folder `snapshots` with a model
# folder every few steps, and a [checkpoint](../../language/44_optimization.ipynb) with modules,
# optimizer, KL coefficient and random states. The number of the step determines the position in the
# data.

# %%
#| export
@dataclass
class TrainedPolicy:
    "A trained policy with its history and snapshots"
    lm:LM                # The model; after an early stop that of the last snapshot
    history:pd.DataFrame # One row a step
    snapshots:list       # Folders 'step-000100', in order
    stopped:str=''       # Reason of an early stop

    def __repr__(self):
        end = f', stopped: {self.stopped}' if self.stopped else ''
        return (f'TrainedPolicy({self.lm.name}, {len(self.history)} steps, '
                f'{len(self.snapshots)} snapshots{end})')


# %%
#| export
class _RunFolder:
    "History, snapshots and checkpoint of a run; without `out` nothing is written"
    def __init__(self, out):
        self.out = out and Path(out)
        self.checkpoints = Checkpoints(out, keep=1) if out else None
        self.rows = []
        self.writes = bool(out) and process_rank()[0]==0

    def snapshots(self):
        return sorted((self.out/'snapshots').glob('step-*[0-9]')) if self.out else []

    def log(self, row):
        self.rows.append(row)
        if not self.writes: return
        with open(self.out/'history.jsonl', 'a') as f: f.write(json.dumps(row)+'\n')

    def save(self, trainer, k):
        "Save a snapshot and a checkpoint after `k` steps"
        state = trainer.state_dict() # Collective under FSDP, so on all ranks
        if not self.writes: return
        snapshot = self.out/'snapshots'/f'step-{k:06}'
        if not snapshot.exists(): save_model(trainer.merged_policy(), snapshot)
        self.checkpoints.save(k, state)

    def resume(self, trainer):
        "Load the last checkpoint; return the number of finished steps"
        k,state = self.checkpoints.latest() if self.out else (0, None)
        if state is None: self.save(trainer, 0); return 0
        trainer.load_state_dict(state)
        self.rows = _read_history(self.out)[:k]
        if self.writes: _write_history(self.out/'history.jsonl', self.rows)
        return k

    def describe_last(self):
        last = self.snapshots()[-1:]
        return f'the last snapshot is {last[0]}' if last else 'no snapshot was saved'

    def load_last(self, lm): return load(self.snapshots()[-1], lm.dtype, lm.device).model

    def result(self, lm, model, stopped=''):
        "Return the trained policy; after an early stop with the model of the last snapshot"
        if stopped and self.snapshots(): model = self.load_last(lm)
        return TrainedPolicy(replace(lm, model=model), pd.DataFrame(self.rows), self.snapshots(),
                             stopped)

    def has_more_steps(self, steps):
        "Whether a finished run lacks steps that are asked for; an error if it has more"
        finished,stopped = len(_read_history(self.out)), self._stopped()
        if finished>steps:
            raise ConfigError(f'{self.out} holds {finished} steps, more than {steps}: use one of '
                              'its snapshots, or another folder.')
        return finished<steps and not stopped

    def _stopped(self): return json.loads((self.out/'provenance.json').read_text())['stopped']

    def load_finished(self, lm):
        "Return the policy of a finished run"
        self.rows = _read_history(self.out)
        return self.result(lm, self.load_last(lm), self._stopped())

def _read_history(out):
    "Read history.jsonl, without a last line that is incomplete"
    path = Path(out)/'history.jsonl'
    lines = path.read_text().split('\n')[:-1] if path.exists() else []
    return [json.loads(x) for x in lines]

def _write_history(path, rows):
    part = path.with_suffix('.part')
    part.write_text(''.join(json.dumps(r)+'\n' for r in rows))
    part.rename(path)


# %% [markdown]
# ## Training

# %%
#| export
def _prompt_rows(prompts):
    "Return prompts as rows with a unique `id` and a `text`"
    rows = [dict(id=p, text=p) if isinstance(p, str) else p for p in prompts]
    if not rows: raise DataError('There are no prompts to train on; give one or more.')
    if len({r['id'] for r in rows})<len(rows):
        raise DataError('Two prompts have the same id; give each its own.')
    return rows

def _summary_writer(out, tensorboard):
    if not tensorboard or process_rank()[0]: return
    try: from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError('tensorboard=True needs a package: `pip install '
                          '"moral_sc[tensorboard]"`, or read history.jsonl.') from None
    if not out: raise ConfigError('tensorboard=True needs a folder; give `out`.')
    return SummaryWriter(Path(out)/'tensorboard')

def _run_config(lm, prompts, reward, c, value_model, reward_name, limits, out):
    "Everything that determines the weights of a run, but the number of its steps if it may grow"
    try: rewarded = reward_name or function_key(reward)
    except ConfigError as e:
        if out: raise ConfigError(f'{e} Give train_policy(..., reward_name=...).') from None
        rewarded = uuid4().hex  # nothing is stored under this key
    settings = asdict(c)
    if c.schedule=='constant': del settings['steps']
    critic = None if value_model is None else value_model.identity
    return dict(kind='policy', model=lm.identity, reward=rewarded, value_model=critic,
                limits=[float(x) for x in limits], **settings,
                prompts=content_key(rows=[[r['id'], r['text']] for r in prompts]))

@delegates(RLConfig)
def train_policy(
    lm:LM,                # Initial policy and reference model; not changed
    prompts:list,         # Strings, or rows with `id` and `text`
    reward,               # Reward function: (prompts, answers) -> one number each
    *,
    steps:int=100,
    out=None,             # Folder of a run that can be resumed
    every:int|None=None,  # Steps between snapshots; None: a tenth of all
    watch:dict|None=None, # Further reward functions by name, which are only logged
    kl_max:float=np.inf,  # Early stop: nats of KL an answer
    entropy_min:float=0., # Early stop: nats of entropy a token
    value_model=None,     # Preference model from which a separate critic is initialised
    reward_name:str='',   # Stands for the reward in the run's key; default: its source and closure
    tensorboard:bool=False, # Also write event files
    progress=None,        # progress(steps done, number of steps)
    **kwargs              # Of `RLConfig`
)->TrainedPolicy:
    """Train a copy of a model against a reward function.

    The same call resumes an interrupted run. A finished run goes on if more `steps` are asked for
    and the learning rate does not depend on their number."""
    c = RLConfig(steps=steps, **kwargs)
    prompts = _prompt_rows(prompts)
    init_distributed()
    trainer = RLTrainer(lm, reward, c, value_model, watch)
    config = _run_config(lm, prompts, reward, c, value_model, reward_name, (kl_max, entropy_min),
                         out)
    key = content_key(**config|dict(steps=c.steps))
    trained = replace(lm, name=f'{lm.name}+{steps}', is_stub=False,
                      source=f'{lm.source}, trained {key[:8]}'.strip(', '))
    with open_run(out, config, seed=c.seed) if out else nullcontext() as run:
        folder = _RunFolder(out)
        if run is not None and run.finished:
            if not folder.has_more_steps(c.steps): return folder.load_finished(trained)
            run.reopen()
        with training(*trainer.computing_modules(), batch_invariant=True):
            stopped = _train(trainer, prompts, folder, _summary_writer(out, tensorboard),
                             every or max(1, steps//10), (kl_max, entropy_min), progress)
        if run is not None: run.finish(stopped=stopped)
    return folder.result(trained, trainer.merged_policy().model, stopped)

def _train(trainer, prompts, folder, writer, every, limits, progress):
    "Train until the last step or an early stop; return the reason of the stop"
    c = trainer.config
    n_prompts = min(len(prompts), c.prompts_per_step)
    for k in range(folder.resume(trainer)+1, c.steps+1):
        start = perf_counter()
        row = dict(step=k, answers=k*c.batch) | trainer.train_step(prompts, k-1)
        row['seconds'] = round(perf_counter()-start, 4)
        folder.log(row)
        if writer:
            for name,x in row.items(): writer.add_scalar(name, x, k)
        if reason := stop_reason(row, *limits, n_prompts):
            return f'{reason} at step {k}; {folder.describe_last()}'
        if k%every==0 or k==c.steps: folder.save(trainer, k)
        if progress: progress(k, c.steps)
    return ''


# %% [markdown]
# ## Example
#
# A model with random weights is rewarded for lower-case letters; the number of vowels is logged
# without being trained on. The score that a policy was trained on rises in any successful run, so
# report other measures: a judge or a reward function that training did not use.

# %%
from moral_sc.language.stub_models import random_model

lm = random_model('llama')
prompts = [f'Is it {w}?' for w in 'far late cold dark soon over'.split()]
letters = lambda prompts,answers: [sum(c.islower() for c in a) for a in answers]
vowels = lambda prompts,answers: [sum(c in 'aeiou' for c in a) for a in answers]
small = dict(batch=16, max_new_tokens=8, lr=1e-3, steps=8)

p = train_policy(lm, prompts, letters, watch=dict(vowels=vowels), out=tmp/'run', every=4, **small)
p.history[['step', 'score', 'vowels', 'kl', 'entropy', 'length']].iloc[::4].round(2)

# %%
p, [d.name for d in p.snapshots]

# %% [markdown]
# A snapshot is a model folder. A sweep of
# [moral self-correction](../../bias/50_sweep.ipynb) reads the step from its name.

# %%
last = load(p.snapshots[-1])
def same(a, b):
    return all(torch.equal(x, y) for x,y in zip(a.model.parameters(), b.model.parameters()))

assert same(last, p.lm) and not same(last, lm)
[s.step for s in expand_models(tmp/'run'/'snapshots')]


# %% [markdown]
# The metrics of each step are lines of `history.jsonl`; with `tensorboard=True` they are also
# written as event files.

# %%
#| hide
def scalars(folder, name):
    "Return the steps and values of one curve"
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    e = EventAccumulator(str(folder)).Reload()
    return [(s.step, round(s.value, 4)) for s in e.Scalars(name)]

if find_spec('tensorboard'):
    train_policy(lm, prompts, letters, out=tmp/'board', tensorboard=True, **small)
    test_eq(scalars(tmp/'board'/'tensorboard', 'score'),
            [(k+1, round(x, 4)) for k,x in enumerate(p.history.score)])
else:
    with expect_fail(ConfigError, contains='moral_sc[tensorboard]'):
        train_policy(lm, prompts, letters, out=tmp/'board', tensorboard=True, **small)

# %% [markdown]
# ## Resumed runs
#
# A child process trains and is killed with signal 9. The same call in another process resumes its
# checkpoint and obtains the weights and the history of an uninterrupted run, bit for bit: for PPO,
# for RLOO, and for a separate critic with an adaptive KL coefficient.

# %%
code = '''
import sys, torch
from moral_sc.constitution.rl.policy import train_policy
from moral_sc.language.stub_models import random_model
torch.set_num_threads(1)
prompts = [f'Is it {w}?' for w in 'far late cold dark soon over'.split()]
letters = lambda prompts,answers: [sum(c.islower() for c in a) for a in answers]
train_policy(random_model('llama'), prompts, letters, out=sys.argv[1], every=2,
             reward_name='letters', progress=lambda k,n: print(k, flush=True), **eval(sys.argv[2]))
'''
def train_and_kill(out, options, after):
    child = subprocess.Popen([sys.executable, '-c', code, out, repr(options)], text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    for line in child.stdout:
        if int(line)>=after: child.send_signal(signal.SIGKILL); break
    return child.wait()

def history(p): return p.history.drop(columns='seconds')

test_eq(train_and_kill(tmp/'killed', small, 5), -9)
q = train_policy(lm, prompts, letters, out=tmp/'killed', every=2, reward_name='letters', **small)
assert same(q.lm, p.lm)
test_eq(history(q).to_dict('list'), history(p).drop(columns='vowels').to_dict('list'))
q


# %%
class Interrupt(Exception): pass
def interrupt(k, n):
    if k==3: raise Interrupt

for i,options in enumerate([dict(algorithm='rloo', schedule='linear'),
                            dict(critic='separate', kl_target=.5, num_ppo_epochs=2,
                                 num_mini_batches=2)]):
    options = small|dict(steps=5, every=2)|options
    whole = train_policy(lm, prompts, letters, **options)
    with expect_fail(Interrupt):
        train_policy(lm, prompts, letters, out=tmp/f'interrupted{i}', progress=interrupt, **options)
    q = train_policy(lm, prompts, letters, out=tmp/f'interrupted{i}', **options)
    assert same(q.lm, whole.lm)
    test_eq(history(q).to_dict('list'), history(whole).to_dict('list'))

# %% [markdown]
# A finished run is loaded, not repeated. Another configuration is refused in the same folder, and so are another reward, other
# weights under the same name, and fewer steps.

# %%
loaded = train_policy(lm, prompts, letters, out=tmp/'run', every=4, **small)
assert same(loaded.lm, p.lm)
test_eq(loaded.lm.source, p.lm.source) # Results made with either have the same key
test_ne(p.lm.source, lm.source)
test_eq(len(loaded.snapshots), 3)
with expect_fail(ConfigError, contains='lr: 0.001 stored, 0.01 requested'):
    train_policy(lm, prompts, letters, out=tmp/'run', **small|dict(lr=.01))
def fewer(prompts, answers): return [-x for x in letters(prompts, answers)]
with expect_fail(ConfigError, contains='reward: '):
    train_policy(lm, prompts, fewer, out=tmp/'run', **small)
with expect_fail(ConfigError, contains='model.weights: '):
    train_policy(random_model('llama', seed=1), prompts, letters, out=tmp/'run', **small)
with expect_fail(ConfigError, contains='more than 2'):
    train_policy(lm, prompts, letters, out=tmp/'run', **small|dict(steps=2))
with expect_fail(ConfigError, contains='reward_name'):
    train_policy(lm, prompts, lambda p, a, box=object(): [0.]*len(a), out=tmp/'box', **small)

# %% [markdown]
# Asked for more steps, a finished run goes on from its last checkpoint and ends where a longer run ends.

# %%
train_policy(lm, prompts, letters, out=tmp/'longer', every=2, **small|dict(steps=4))
longer = train_policy(lm, prompts, letters, out=tmp/'longer', every=2, **small|dict(steps=6))
whole = train_policy(lm, prompts, letters, every=2, **small|dict(steps=6))
assert same(longer.lm, whole.lm)
test_eq(history(longer).to_dict('list'), history(whole).to_dict('list'))

# %% [markdown]
# ## LoRA
#
# With [LoRA](../../language/47_lora.ipynb) only the adapters are trained. Snapshots have them
# merged.

# %%
from copy import deepcopy
from moral_sc.language.lora import add_lora

adapted = replace(lm, model=add_lora(deepcopy(lm.model), rank=4))
q = train_policy(adapted, prompts, letters, out=tmp/'lora', every=4, **small|dict(lr=1e-2))
loaded = load(q.snapshots[-1])
test_eq(len(list(loaded.model.parameters())), len(list(lm.model.parameters())))
assert same(loaded, q.lm) and not same(loaded, lm)
q.history[['step', 'score', 'kl', 'ratio']].iloc[[0, -1]].round(3)

# %% [markdown]
# ## Divergence
#
# A learning rate that is a hundred times too high moves the policy far from the reference. The run
# stops, reports the reason and returns the last snapshot before it.

# %%
q = train_policy(lm, prompts, letters, out=tmp/'diverged', every=1, kl_max=20.,
                 **small|dict(lr=.1))
assert 'above kl_max' in q.stopped and same(q.lm, load(q.snapshots[-1]))
q.stopped.replace(str(tmp), '…')

# %% [markdown]
# ## Refused input
#
# Bad prompts and options are refused before anything is sampled, and a reward that is not finite as
# soon as it appears.

# %%
nan = lambda prompts,answers: [float('nan')]*len(answers)
for call,kind,message in [
        (lambda: train_policy(lm, [], letters), DataError, 'no prompts'),
        (lambda: train_policy(lm, ['a', 'a'], letters), DataError, 'same id'),
        (lambda: train_policy(lm, prompts, nan, **small), DataError, 'is nan'),
        (lambda: train_policy(lm, prompts, letters, algorithm='dpo'), ConfigError,
         "There is no algorithm 'dpo'")]:
    with expect_fail(kind, contains=message): call()

# %%
#| hide
import shutil
shutil.rmtree(tmp)
