# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Sharded training (FSDP)
#
# > FSDP divides weights, gradients and optimizer state among several devices.

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
from moral_sc.language.engine.oom import is_out_of_memory
from moral_sc.language.reward_head import check_plain_lm_head

# %%
#| hide
import sys, tempfile
from pathlib import Path
import pandas as pd, yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from fastcore.test import *
from moral_sc.foundation.datasets import data_dir
from moral_sc.foundation.runs import start_ranks
from moral_sc.language.stub_models import random_model


# %% [markdown]
# Gradients and the two moving averages of AdamW, in float32, take three times the memory of the
# weights. torch's `fully_shard` divides all four among the ranks and gathers the weights of a
# layer only while the layer computes [@zhao2023fsdp].
#
# You switch FSDP on with the configuration file of `accelerate launch`; it applies to supervised
# training, preference models, PPO and RLOO. Each rank also holds a full copy of the weights:
# policies generate rollouts with it, each rank as many tokens as its answers have, and snapshots
# are saved from it.
#
# | bytes a parameter on each of $n$ ranks | without FSDP | with FSDP |
# | --- | --- | --- |
# | full copy of the weights | | 4 |
# | weights, gradients, moving averages | 16 | 16/$n$ |

# %%
#| export
def fsdp_enabled(
    env=None, # Default: the environment of this process
)->bool:
    "Tell whether `accelerate launch` enabled FSDP for more than one process"
    env = os.environ if env is None else env
    return env.get('ACCELERATE_USE_FSDP', '').lower() in ('1', 'true') and process_rank(env)[1]>1

def full_tensors(x):
    "Return nested lists and dictionaries with every sharded tensor gathered from all ranks"
    return tree_map(lambda t: t.full_tensor() if hasattr(t, 'full_tensor') else t, x)


# %%
env = dict(RANK='0', WORLD_SIZE='2', ACCELERATE_USE_FSDP='true')
assert fsdp_enabled(env) and not fsdp_enabled(env|dict(WORLD_SIZE='1')) and not fsdp_enabled({})


# %% [markdown]
# A loss of this project does not call the model's `forward`: it calls the backbone, and the output
# layer in chunks. The sharded module is therefore a wrapper whose `forward` is the loss.
# Embeddings and output layer are gathered until their gradient is known.
#
# Rows differ in length, so ranks differ in their number of micro-batches, but every forward and
# backward pass is a collective operation. Ranks that finish early run dummy batches with a
# gradient of zero, so the collectives stay aligned.

# %%
#| export
class _Loss(nn.Module):
    "A wrapper whose `forward` calls a function of its modules"
    def __init__(self, modules):
        super().__init__()
        self.shards = modules
    def forward(self, f, *args): return f(self.shards, *args)

def _transformer_blocks(module):
    names = {n for m in module.modules() for n in getattr(m, '_no_split_modules', None) or ()}
    return [m for m in module.modules() if type(m).__name__ in names]

class FSDPModules:
    "Modules with a full copy and a shard on each rank"
    def __init__(self,
        **modules, # By name; the full copies, up to date after `gather`
    ):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        self.full = nn.ModuleDict(modules)
        self.world = dist.get_world_size()
        self.shards = deepcopy(self.full)
        for name,m in modules.items():
            if getattr(m, 'get_output_embeddings', lambda: None)() is None: continue
            check_plain_lm_head(m)
            check_plain_lm_head(self.shards[name], original=m)
        device = next(self.shards.parameters()).device.type
        reshard = os.environ.get('FSDP_RESHARD_AFTER_FORWARD', 'true')!='false'
        options = dict(mesh=init_device_mesh(device, (self.world,)), reshard_after_forward=reshard)
        for m in _transformer_blocks(self.shards): fully_shard(m, **options)
        self.loss = fully_shard(_Loss(self.shards), **options)

    def parameters(self): return self.shards.parameters()
    def train(self, mode): self.shards.train(mode)

    def max_over_ranks(self, n):
        t = torch.tensor(n, device=next(self.full.parameters()).device)
        dist.all_reduce(t, dist.ReduceOp.MAX)
        return t.item()

    def backward(self,
        loss,          # loss(modules, micro_batch) -> sum, and values to return
        micro_batches:list, # Those of this rank
        dummy,         # A micro-batch for dummy passes
    )->list:           # What `loss` returned for each micro-batch of this rank
        "Add the gradient of the sum over the micro-batches of all ranks"
        results = []
        for k in range(self.max_over_ranks(len(micro_batches))):
            real = k<len(micro_batches)
            try: total,*values = self.loss(loss, micro_batches[k] if real else dummy)
            except RuntimeError as e:
                if not is_out_of_memory(e): raise
                raise ModelError('Out of memory in a forward pass. With FSDP all ranks use the '
                                 'same batch size; lower max_tokens.') from None
            (total*(self.world if real else 0)).backward() # FSDP averages over ranks
            if real: results.append((total.detach(), *values))
        return results

    @torch.no_grad()
    def gather(self):
        "Copy the trained weights from the shards of all ranks to the full copy"
        for full,shard in zip(self.full.parameters(), self.shards.parameters()):
            if full.requires_grad: full.copy_(shard.full_tensor())

    @torch.no_grad()
    def scatter(self, optimizer=None):
        "Copy the weights of the full copy, and a full optimizer state, to the shards"
        from torch.distributed.tensor import distribute_tensor
        split = lambda x,shard: distribute_tensor(x, shard.device_mesh, shard.placements)
        for full,shard in zip(self.full.parameters(), self.shards.parameters()):
            shard.copy_(split(full.detach(), shard))
        for p,state in optimizer.state.items() if optimizer else ():
            full = {k: x for k,x in state.items() if x.shape==p.shape}
            state.update({k: split(x.to(p.device), p) for k,x in full.items()})


# %% [markdown]
# The transformer blocks of every architecture are found.

# %%
for arch in ('llama', 'neox', 'qwen3', 'gemma3'):
    m = random_model(arch).model
    test_eq(len(_transformer_blocks(m)), m.config.num_hidden_layers)

# %% [markdown]
# ## Example with two ranks
#
# The configuration file is `data/fsdp.yaml`:

# %%
config = yaml.safe_load((data_dir()/'fsdp.yaml').read_text())
config

# %% [markdown]
# ```sh
# accelerate launch --config_file data/fsdp.yaml --num_processes 8 train.py
# ```
#
# This script calls [`fit`](46_training.ipynb). We run it as one process and as two. To save time the two
# ranks are forked, with the variables that `accelerate launch` sets from the file; the guide to
# [many GPUs](../guides/many_gpus.ipynb) starts its ranks with the command itself. The vocabulary has
# fifty thousand tokens, so the output layer is applied in chunks. A step has three examples and the
# last step of an epoch has one, so the shares of the ranks are unequal.

# %%
tmp = Path(tempfile.mkdtemp())
script = '''
import sys, torch
from moral_sc.foundation.runs import process_rank
from moral_sc.language.reward_head import small_llama
from moral_sc.language.training import answer_loss, fit
torch.set_num_threads(1)
class Ids(list): pad_token_id = eos_token_id = 1
g = torch.Generator().manual_seed(0)
data = [(torch.randint(49_000, (n,), generator=g).tolist(), 5) for n in (40, 9, 22, 31)]
out,last = sys.argv[1],int(sys.argv[2])
model = small_llama(Ids(range(49_153)), layers=2, width=18, heads=3).model.double()
stop = lambda done,total: sys.exit(9) if done==last else None
history = fit(model, data, answer_loss, batch=3, epochs=3, lr=.01, every=2, max_tokens=64,
              warmup=2, max_grad_norm=.5, out=f'{out}/run', progress=stop)
history.to_pickle(f'{out}/{process_rank()[0]}.pkl')
torch.save(model.state_dict(), f'{out}/{process_rank()[0]}.pt')
'''
def run(name, stop=0):
    "Run the script in this process"
    (tmp/name).mkdir(exist_ok=True)
    sys.argv = ['script.py', tmp/name, str(stop)]
    exec(script, {})

def launcher_variables():
    "Return the variables that `accelerate launch` sets from the file"
    options = ['--config_file', str(data_dir()/'fsdp.yaml'), '--main_process_port', '0']
    args,*_ = _validate_launch_command(launch_command_parser().parse_args([*options, 'script.py']))
    env = prepare_multi_gpu_env(args)
    return {k: v for k,v in env.items() if os.environ.get(k)!=v}

def launch(name, stop=0):
    "Run the script as two ranks; return their exit codes"
    jobs = start_ranks(lambda: run(name, stop=stop), 2, **launcher_variables())
    for j in jobs: j.join()
    return [j.exitcode for j in jobs]

def max_difference(a, b):
    "Return the largest differences of histories and of weights"
    (x,u),(y,v) = ((pd.read_pickle(tmp/f'{n}.pkl'), torch.load(tmp/f'{n}.pt')) for n in (a, b))
    return float((x-y).abs().max(axis=None)),max((u[k]-v[k]).abs().max().item() for k in u)

test_eq(launch('two'), [0, 0])
run('one')
test_eq(max_difference('two/0', 'two/1'), (0, 0))
test_close(max_difference('one/0', 'two/0'), (0, 0), 1e-9)
max_difference('one/0', 'two/0')

# %% [markdown]
# Checkpoints contain full tensors. Two ranks stop after step 3, past the checkpoint of step 2; the
# run is resumed by two ranks and by one process.

# %%
import shutil
test_eq(launch('stopped', stop=3), [9, 9])
shutil.copytree(tmp/'stopped', tmp/'alone')
test_eq(launch('stopped'), [0, 0])
run('alone')
test_close(max_difference('one/0', 'stopped/0'), (0, 0), 1e-9)
test_close(max_difference('one/0', 'alone/0'), (0, 0), 1e-9)
max_difference('one/0', 'stopped/0')

# %% [markdown]
# The [proofs of policy training](../constitution/rl/50_policy_proofs.ipynb) show the same for RL.

# %%
#| hide
shutil.rmtree(tmp)
