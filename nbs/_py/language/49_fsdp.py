# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Training in parts
#
# > A model that does not fit on one device with its gradients is learned by several, each of
# > which keeps a part.

# %%
#| default_exp language.fsdp

# %%
#| export
import os
from copy import deepcopy

import torch
import torch.distributed as dist
from torch import nn
from torch.utils._pytree import tree_map

from moral_sc.foundation.errors import ModelError
from moral_sc.foundation.runs import process_rank
from moral_sc.language.reward_head import check_plain_lm_head

# %%
#| hide
import subprocess, sys, tempfile
from pathlib import Path
import pandas as pd, yaml
from fastcore.test import *
from moral_sc.foundation.datasets import data_dir
from moral_sc.language.stub_models import random_model


# %% [markdown]
# Of what training keeps, the weights are the smaller part: gradients and the two averages of
# AdamW, in float32, are three times as much. torch's `fully_shard` cuts all four into as many
# parts as there are processes, and puts a layer together for as long as it computes [@zhao2023fsdp].
#
# Here it is switched on from outside, by the file that `accelerate launch` is given, and every
# training of this project obeys: supervised, preference model, PPO and RLOO. Each process keeps,
# beside its part, the weights once whole: policies sample from these, each process as many tokens
# as its answers have, and snapshots are written from them.
#
# | a process of $n$ holds, bytes a parameter | whole | in parts |
# | --- | --- | --- |
# | weights to read from | | 4 |
# | weights, gradients, averages | 16 | 16/$n$ |

# %%
#| export
def fsdp_enabled(
    env=None, # By default that of this process
)->bool:
    "Whether `accelerate launch` was told to use FSDP, with more than one process"
    env = os.environ if env is None else env
    return env.get('ACCELERATE_USE_FSDP', '').lower() in ('1', 'true') and process_rank(env)[1]>1

def full_tensors(x):
    "The same tensors, lists and dictionaries with the parts of all processes put together"
    return tree_map(lambda t: t.full_tensor() if hasattr(t, 'full_tensor') else t, x)


# %%
two = dict(RANK='0', WORLD_SIZE='2', ACCELERATE_USE_FSDP='true')
test_eq([fsdp_enabled(two), fsdp_enabled(two|dict(WORLD_SIZE='1')), fsdp_enabled({})], [True, False, False])


# %% [markdown]
# A loss here does not go through the model's own `forward`: it reads the layers below the head,
# and the output layer some places at a time. So the module that is divided is one whose `forward`
# is the loss; embeddings and output layer are whole while it runs and until its gradient is known.
#
# Processes have different numbers of passes, for their rows have different lengths, but the
# parts of a layer are exchanged by all in every pass. Whoever is through before the others goes on
# with rows that count for nothing.

# %%
#| export
class _Loss(nn.Module):
    "What is learned; its `forward` is whatever it is called with"
    def __init__(self, parts):
        super().__init__()
        self.parts = parts
    def forward(self, f, *args): return f(self.parts, *args)

def _blocks(module):
    "Layers that are put together one at a time"
    names = {n for m in module.modules() for n in getattr(m, '_no_split_modules', None) or ()}
    return [m for m in module.modules() if type(m).__name__ in names]

class FSDPModules:
    "Modules of which every process learns a part"
    def __init__(self,
        **modules, # By name; each keeps the whole weights, and is up to date after `gather`
    ):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        self.whole = nn.ModuleDict(modules)
        self.world = dist.get_world_size()
        for m in modules.values():
            if getattr(m, 'get_output_embeddings', lambda: None)() is not None: check_plain_lm_head(m)
        self.parts = deepcopy(self.whole)
        device = next(self.parts.parameters()).device.type
        how = dict(mesh=init_device_mesh(device, (self.world,)),
            reshard_after_forward=os.environ.get('FSDP_RESHARD_AFTER_FORWARD', 'true')!='false')
        for m in _blocks(self.parts): fully_shard(m, **how)
        self.loss = fully_shard(_Loss(self.parts), **how)

    def parameters(self): return self.parts.parameters()
    def train(self, on): self.parts.train(on)

    def most(self, n):
        "The largest number that any process has"
        t = torch.tensor(n, device=next(self.whole.parameters()).device)
        dist.all_reduce(t, dist.ReduceOp.MAX)
        return t.item()

    def backward(self,
        loss,        # loss(modules, group) -> sum, and what else is to be kept
        groups:list, # Those of this process
        spare,       # A group for passes that count for nothing
    )->list:         # What the loss said of each group
        "Add the gradient of the sum over the groups of all processes"
        said = []
        for k in range(self.most(len(groups))):
            own = k<len(groups)
            try: total,*more = self.loss(loss, groups[k] if own else spare)
            except torch.OutOfMemoryError:
                raise ModelError('Memory runs out in a pass. Weights are in parts, so the '
                                 'processes must agree on passes: lower max_tokens.') from None
            (total*(self.world if own else 0)).backward() # The mean over processes is taken
            if own: said.append((total.detach(), *more))
        return said

    @torch.no_grad()
    def gather(self):
        "Put what was learned into the whole modules"
        for a,b in zip(self.whole.parameters(), self.parts.parameters()):
            if a.requires_grad: a.copy_(b.full_tensor())

    @torch.no_grad()
    def scatter(self, optimizer=None):
        "Take up the weights of the whole modules, and the state of an optimiser where it is whole"
        from torch.distributed.tensor import distribute_tensor
        cut = lambda x,p: distribute_tensor(x, p.device_mesh, p.placements)
        for a,b in zip(self.whole.parameters(), self.parts.parameters()): b.copy_(cut(a.detach(), b))
        for p,s in optimizer.state.items() if optimizer else ():
            s.update({k: cut(x.to(p.device), p) for k,x in s.items() if x.shape==p.shape})


# %% [markdown]
# In every architecture the layers are found.

# %%
for arch in ('llama', 'neox', 'qwen3', 'gemma3'):
    m = random_model(arch).model
    test_eq(len(_blocks(m)), m.config.num_hidden_layers)

# %% [markdown]
# ## At work
#
# `data/fsdp.yaml` is the file:

# %%
config = yaml.safe_load((data_dir()/'fsdp.yaml').read_text())
config

# %% [markdown]
# ```sh
# accelerate launch --config_file data/fsdp.yaml --num_processes 8 train.py
# ```
#
# A script that calls [`fit`](46_training.ipynb), by itself and as two processes with
# this file. The model has a vocabulary of fifty thousand, so that its output layer is read some
# places at a time, and the parts of the two are unequal: three examples a step, and one in the
# last step of an epoch.

# %%
tmp = Path(tempfile.mkdtemp())
script = '''
import sys, torch
from moral_sc.foundation.runs import process
from moral_sc.language.reward_head import small_llama
from moral_sc.language.training import answer_loss, fit
torch.set_num_threads(1)
class Ids(list): pad_token_id = eos_token_id = 1
g = torch.Generator().manual_seed(0)
data = [(torch.randint(49_000, (n,), generator=g).tolist(), 5) for n in (40, 9, 22, 31)]
out,epochs,stop = sys.argv[1],int(sys.argv[2]),int(sys.argv[3])
model = small_llama(Ids(range(49_153)), layers=2, width=18, heads=3).model.double()
seen = lambda done,total: sys.exit(9) if done==stop else None
h = fit(model, data, answer_loss, batch=3, epochs=epochs, lr=.01, every=2, max_tokens=64,
        warmup=2, clip=.5, out=f'{out}/run', progress=seen)
h.to_pickle(f'{out}/{process()[0]}.pkl')
torch.save(model.state_dict(), f'{out}/{process()[0]}.pt')
'''
(tmp/'script.py').write_text(script)
def run(name, n=2, epochs=3, stop=0):
    "The script as `n` processes; one is this one"
    (tmp/name).mkdir(exist_ok=True)
    args = [tmp/'script.py', tmp/name, str(epochs), str(stop)]
    if n==1:
        sys.argv = args
        return exec(script, {})
    how = ['-m', 'accelerate.commands.launch', '--config_file', data_dir()/'fsdp.yaml',
           '--num_processes', str(n), '--main_process_port', '0']
    did = subprocess.run([sys.executable, *how, *args], text=True, capture_output=True,
                         env=os.environ|dict(OMP_NUM_THREADS='1'))
    assert (did.returncode==0)==(not stop), did.stderr

def gap(a, b):
    "Largest difference of any column, and of any weight"
    (x,u),(y,v) = ((pd.read_pickle(tmp/f'{n}.pkl'), torch.load(tmp/f'{n}.pt')) for n in (a, b))
    return float((x-y).abs().max(axis=None)),max((u[k]-v[k]).abs().max().item() for k in u)

run('one', 1); run('two')
test_eq(gap('two/0', 'two/1'), (0, 0))
test_close(gap('one/0', 'two/0'), (0, 0), 1e-9)
gap('one/0', 'two/0')

# %% [markdown]
# A checkpoint does not show that it was written in parts. Two processes stop after step 3, past
# the checkpoint of step 2; they take it up again, and so does one alone.

# %%
import shutil
run('stopped', stop=3)
shutil.copytree(tmp/'stopped', tmp/'alone')
run('stopped'); run('alone', 1)
test_close(gap('one/0', 'stopped/0'), (0, 0), 1e-9)
test_close(gap('one/0', 'alone/0'), (0, 0), 1e-9)
gap('one/0', 'stopped/0')

# %% [markdown]
# For a policy the same is shown [in its place](../constitution/rl/50_policy_proofs.ipynb).

# %%
#| hide
shutil.rmtree(tmp)
