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
import logging
import os
import shutil
import warnings
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from inspect import signature
from pathlib import Path
from time import perf_counter
from uuid import uuid4

import numpy as np, pandas as pd
from fastcore.meta import delegates

from moral_sc.constitution.preference import PreferenceModel
from moral_sc.constitution.prompts import load_prompts
from moral_sc.constitution.rl.trainer import (
    RLConfig, RLTrainer, compute_rewards)
from moral_sc.foundation.arguments import checked
from moral_sc.foundation.errors import ConfigError, DataError
from moral_sc.foundation.files import replace_file
from moral_sc.foundation.manifest import Manifest
from moral_sc.foundation.progress import progress_callback
from moral_sc.foundation.runs import content_key, function_key, open_run, process_rank
from moral_sc.language.engine import training
from moral_sc.language.loading import load
from moral_sc.language.models import LM
from moral_sc.language.optimization import (
    Checkpoints, get_random_state, init_distributed, set_random_state)
from moral_sc.language.reward_head import save_model

_log = logging.getLogger(__name__)


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
import contextlib, io, signal, tempfile
import torch
from importlib.util import find_spec
from fastcore.test import *
from moral_sc.foundation.errors import ModelError
from moral_sc.foundation.runs import start_ranks
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
# optimizer, KL coefficient, history and random states. The number of the step determines the position in
# the data. A finished run has the trained model in `model`. All files are listed in a
# [manifest](../../foundation/22_manifest.ipynb) and compared with it before a run goes on or is loaded.

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
    "History, snapshots, checkpoint and final model of a run; without `out` nothing is written"
    def __init__(self, out):
        self.out = out and Path(out)
        self.checkpoints = Checkpoints(out, keep=1) if out else None
        self.manifest = Manifest(out) if out else None
        self.rows = []
        self.writes = bool(out) and process_rank()[0]==0

    @property
    def history(self): return self.out/'history.jsonl'

    def snapshots(self):
        return sorted((self.out/'snapshots').glob('step-*[0-9]')) if self.out else []

    def log(self, row):
        self.rows.append(row)
        if not self.writes: return
        with open(self.history, 'a') as f: f.write(json.dumps(row)+'\n')

    def save(self, trainer, k):
        "Save a snapshot and a checkpoint after `k` steps"
        state = trainer.state_dict() # Collective under FSDP, so on all ranks
        if not self.writes: return
        snapshot = self.out/'snapshots'/f'step-{k:06}'
        self.manifest.build(snapshot, lambda part: save_model(trainer.merged_policy(), part))
        self.checkpoints.save(k, state|dict(rows=self.rows))

    def resume(self, trainer):
        "Load the last checkpoint; return the number of finished steps"
        fields = 'modules', 'optimizer', 'kl_coef', 'max_tokens', 'random', 'rows'
        k,state = self.checkpoints.latest(*fields) if self.out else (0, None)
        if state is None: self.save(trainer, 0); return 0
        self.manifest.check(*(d for d in self.snapshots() if int(d.name[5:])<=k))
        try: trainer.load_state_dict(state)
        except (RuntimeError, ValueError, KeyError, TypeError, IndexError) as e:
            raise DataError(f'{self.checkpoints.path(k)} is not a checkpoint of this training '
                            f'({str(e).splitlines()[0]:.150}); move {self.out} away and start '
                            'again.') from e
        self.rows = state['rows']
        if self.writes: _write_history(self.history, self.rows)
        _log.info('%s goes on after step %d', self.out, k)
        return k

    def finish(self, run, stopped):
        "Write the final model where a user looks, and mark the run as finished"
        if self.writes:
            model = self.out/'model'
            self.manifest.record(self.history, forget=[model])
            self.manifest.build(model, lambda part: _copy_folder(self.snapshots()[-1], part))
            run.finish(stopped=stopped)

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
        self.manifest.check()
        self.manifest.check(self.history, self.out/'model', *self.snapshots())
        self.rows = _read_history(self.history)
        if len(self.rows)>steps:
            raise ConfigError(f'{self.out} holds {len(self.rows)} steps, more than {steps}: use '
                              'one of its snapshots, or another folder.')
        return len(self.rows)<steps and not self._stopped()

    def _stopped(self):
        provenance = json.loads((self.out/'provenance.json').read_text())
        return provenance.get('stopped', '')

    def load_finished(self, lm, watch):
        "Return the policy of a finished run"
        lacking = [k for k in watch if self.rows and k not in self.rows[-1]]
        if lacking:
            warnings.warn(f'{self.out} is finished, and its history has no {lacking[0]!r}; name '
                          'another folder to train again.', stacklevel=4)
        return self.result(lm, self.load_last(lm), self._stopped())

def _read_history(path): return [json.loads(x) for x in path.read_text().splitlines()]

def _write_history(path, rows):
    with replace_file(path) as part: part.write_text(''.join(json.dumps(r)+'\n' for r in rows))

def _copy_folder(source, target):
    "Copy a folder, with hard links where the disk has them"
    try: shutil.copytree(source, target, copy_function=os.link)
    except (OSError, shutil.Error):
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)


# %% [markdown]
# ## Training

# %%
#| export
def _as_reward(reward):
    "Return a reward function; a path is that of a preference model"
    if isinstance(reward, (str, Path)): return PreferenceModel.load(reward)
    if callable(reward): return reward
    raise ConfigError(f'The reward is {reward!r:.60}; give a function of prompts and answers, a '
                      'preference model or its folder.')

def _check_reward(reward, prompts, name='The reward function'):
    "Call a reward function on a few short answers, before anything is sampled"
    if isinstance(reward, PreferenceModel): return
    texts = [prompts[0]['prompt'], prompts[-1]['prompt']]
    answers = ['Yes.', 'I am not sure.']
    try: signature(reward).bind(texts, answers)
    except TypeError:
        raise ConfigError(f'{name} cannot be called as reward(prompts, answers); it has to take a '
                          'list of prompts and a list of answers.') from None
    except ValueError: pass # Some builtins have no signature
    state = get_random_state() # The function may draw random numbers
    try: compute_rewards(reward, texts, answers, name)
    finally: set_random_state(state)

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
                prompts=content_key(rows=[[r['id'], r['prompt']] for r in prompts]))

@checked
@delegates(RLConfig)
def train_policy(
    lm,                   # Initial policy and reference model, not changed; anything `load` takes
    prompts,              # Anything `load_prompts` takes: strings, rows, a file
    reward,               # (prompts, answers) -> one number each; a preference model or its folder
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
    progress=None,        # True: a bar; or a function (steps done, number of steps)
    **kwargs              # Of `RLConfig`
)->TrainedPolicy:
    """Train a copy of a model against a reward function.

    The same call resumes an interrupted run. A finished run goes on if more `steps` are asked for
    and the learning rate does not depend on their number."""
    c = RLConfig(steps=steps, **kwargs)
    if every is not None and every<1: raise ConfigError(f'every is {every}; give 1 or more.')
    prompts = load_prompts(prompts)
    reward = _as_reward(reward)
    watch = {k: _as_reward(f) for k,f in (watch or {}).items()}
    _check_reward(reward, prompts)
    for k,f in watch.items(): _check_reward(f, prompts, f'The watched function {k!r}')
    if isinstance(value_model, (str, Path)): value_model = PreferenceModel.load(value_model)
    lm = load(lm, 'float32')
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
            if not folder.has_more_steps(c.steps): return folder.load_finished(trained, watch)
            run.reopen()
        with (training(*trainer.computing_modules(), batch_invariant=True),
              progress_callback(progress, 'steps') as report):
            stopped = _train(trainer, prompts, folder, _summary_writer(out, tensorboard),
                             every or max(1, steps//10), (kl_max, entropy_min), report)
        if run is not None: folder.finish(run, stopped)
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
        _log.info('step %d of %d: score %.4g, kl %.3g', k, c.steps, row['score'], row['kl'])
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
# A forked process trains and is killed with signal 9. The same call in another process resumes its
# checkpoint and obtains the weights and the history of an uninterrupted run, bit for bit: for PPO,
# for RLOO, and for a separate critic with an adaptive KL coefficient.

# %%
def train_and_kill(out, options, after):
    def die(k, n):
        if k>=after: os.kill(os.getpid(), signal.SIGKILL)
    child, = start_ranks(lambda: train_policy(lm, prompts, letters, out=out, every=2, progress=die,
                                              reward_name='letters', **options), 1)
    child.join()
    return child.exitcode

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

brief = small | dict(steps=4, max_new_tokens=4, every=2)
for i,options in enumerate([dict(algorithm='rloo', schedule='linear'),
                            dict(critic='separate', kl_target=.5, num_ppo_epochs=2,
                                 num_mini_batches=2)]):
    options = brief|options
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
with warnings.catch_warnings(record=True) as caught:
    train_policy(lm, prompts, letters, out=tmp/'run', watch=dict(words=vowels), **small)
assert "history has no 'words'" in str(caught[0].message)
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
train_policy(lm, prompts, letters, out=tmp/'longer', **brief|dict(steps=2))
longer = train_policy(lm, prompts, letters, out=tmp/'longer', **brief)
whole = train_policy(lm, prompts, letters, **brief)
assert same(longer.lm, whole.lm)
test_eq(history(longer).to_dict('list'), history(whole).to_dict('list'))


# %% [markdown]
# ## Damaged files
#
# A bit that flips in a file of a finished run is found before the run is reported as done, whichever file
# it is. An interrupted run with a damaged checkpoint starts again, with a warning, and ends where it would
# have ended. The history is part of the checkpoint, so `history.jsonl` is written anew.

# %%
def flip(path, at=-9):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)

def rerun(name, **kw): return train_policy(lm, prompts, letters, out=tmp/name, **small|kw)

rerun('done', steps=1)
def refused(p, reason):
    with expect_fail(DataError, contains=f'{p.name} {reason}'): rerun('done', steps=1)

files = [tmp/'done'/n for n in (
    'step-00000001.pt', 'history.jsonl', 'model/tokenizer.json',
    'snapshots/step-000000/model.safetensors', 'snapshots/step-000001/config.json')]
for p in files:
    flip(p)
    refused(p, 'has another SHA-256')
    flip(p)
whole = files[1].read_bytes()
files[1].write_bytes(whole[:40])
refused(files[1], 'has 40 bytes, not')
files[1].unlink()
refused(files[1], 'is missing')
files[1].write_bytes(whole)
(files[3].parent/'model-00002.safetensors').touch()
refused(files[3].parent/'model-00002.safetensors', 'is not in manifest.json')
(files[3].parent/'model-00002.safetensors').unlink()
rerun('done', steps=1)

# %%
for damage in ('step-00000002.pt', 'history.jsonl'):
    with expect_fail(Interrupt): rerun(damage, progress=interrupt, **brief)
    flip(tmp/damage/damage)
    with warnings.catch_warnings(record=True) as caught: q = rerun(damage, **brief)
    assert same(q.lm, longer.lm) and history(q).equals(history(longer))
    test_eq(len(caught), int(damage.startswith('step')))
with expect_fail(Interrupt): rerun('snapshot', progress=interrupt, **brief)
flip(tmp/'snapshot'/'snapshots'/'step-000002'/'model.safetensors')
with expect_fail(DataError, contains='step-000002/model.safetensors has another SHA-256'):
    rerun('snapshot', **brief)

# %% [markdown]
# The trained model is in `model`, as after `finetune` and `fit_preference`.

# %%
assert same(load(tmp/'longer'/'model'), longer.lm)
assert same(train_policy(str(tmp/'done'/'model'), prompts, letters, **small|dict(steps=1)).lm,
            train_policy(load(tmp/'done'/'model'), prompts, letters, **small|dict(steps=1)).lm)
stderr = io.StringIO()
with contextlib.redirect_stderr(stderr):
    train_policy(lm, prompts, letters, progress=True, **small|dict(steps=2))
assert 'steps: 100%' in stderr.getvalue()

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
        (lambda: train_policy(lm, ['a', 'a'], letters), DataError, "'a' is given 2 times"),
        (lambda: train_policy(lm, [dict(promt='a')], letters), DataError, "did you mean 'promt'"),
        (lambda: train_policy('none', prompts, nan, **small), DataError, 'is nan'),
        (lambda: train_policy('none', prompts, lambda answers: [0.]), ConfigError,
         'cannot be called as reward(prompts, answers)'),
        (lambda: train_policy('none', prompts, lambda p, a: 1.), DataError, 'returned 1.0 for 2'),
        (lambda: train_policy('none', prompts, letters, watch=dict(w=lambda p, a: None)), DataError,
         "The watched function 'w' returned None"),
        (lambda: train_policy('none', prompts, 7), ConfigError, 'The reward is 7; give a function'),
        (lambda: train_policy('none', prompts, 'gone'), ModelError, 'no folder gone'),
        (lambda: train_policy('none', prompts, letters), ConfigError, "There is no model 'none'"),
        (lambda: train_policy(lm, prompts, letters, learning_rate=1), ConfigError,
         "train_policy has no argument 'learning_rate'; did you mean 'lr'?"),
        (lambda: train_policy(lm, prompts, letters, steps='10'), ConfigError, "steps is '10'"),
        (lambda: train_policy(lm, prompts, letters, every=0), ConfigError, 'every is 0'),
        (lambda: train_policy(lm, prompts, letters, algorithm='dpo'), ConfigError,
         "There is no algorithm 'dpo'")]:
    with expect_fail(kind, contains=message): call()

# %%
#| hide
import shutil
shutil.rmtree(tmp)
