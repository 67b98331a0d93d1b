# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Many GPUs
#
# > Distribute a sweep of toy models, the scoring of a benchmark or a training over processes.

# %% [markdown]
# ## Toy models
#
# This page was run with several processes on a CPU; nothing on it has been run on a GPU yet. The toy
# models of a sweep are trained independently. The data of each model depends only on the seed and on
# the number of the model, so its result does not depend on the process that trains it, and processes
# need no communication. `accelerate launch` starts one process for each GPU; each trains the models
# that `instances_of_rank` returns and saves a file.

# %%
script = '''
import os, sys, torch
from moral_sc.superposition import ToyConfig, save_run, train
from moral_sc.superposition.phase_diagram import instances_of_rank

rank = os.environ['RANK']
device = f'cuda:{os.environ["LOCAL_RANK"]}' if torch.cuda.is_available() else 'cpu'
config = ToyConfig(n_features=5, n_hidden=2, n_instances=6, density=.1,
                   importance=[.9**i for i in range(5)])
run = train(config, steps=300, batch_size=256, lr=.01, device=device,
            instances=instances_of_rank(config.n_instances))
save_run(run, f'{sys.argv[1]}/rank{rank}.safetensors')
'''

# %% [markdown]
# On a machine with eight GPUs:
#
# ```sh
# accelerate launch --multi_gpu --num_processes 8 sweep.py runs
# ```
#
# Without a GPU the same command runs the processes on the CPU. Keep `--multi_gpu`: with `--cpu`
# accelerate starts a single process, without a warning, unless MPI is installed.

# %%
import os, subprocess, sys, tempfile
from pathlib import Path
from fastcore.test import *

tmp = Path(tempfile.mkdtemp())
(tmp/'script.py').write_text(script)
options = ['--multi_gpu', '--num_processes', '2', '--num_machines', '1', '--mixed_precision', 'no',
           '--dynamo_backend', 'no', '--main_process_port', '0']
command = [sys.executable, '-m', 'accelerate.commands.launch', *options, tmp/'script.py', tmp]
done = subprocess.run(command, capture_output=True, text=True,
                      env=os.environ | dict(OMP_NUM_THREADS='1'))
assert done.returncode==0, done.stderr
sorted(p.name for p in tmp.glob('*.safetensors'))

# %% [markdown]
# `join_runs` combines the files into the run that a single process would have returned.

# %%
from moral_sc.superposition import load_run, train
from moral_sc.superposition.phase_diagram import join_runs

parts = [load_run(p) for p in sorted(tmp.glob('*.safetensors'))]
test_eq([list(r.instances) for r in parts], [[0,1,2], [3,4,5]])
whole = join_runs(parts)
alone = train(whole.config, steps=300, batch_size=256, lr=.01)
test_close(whole.W, alone.W, eps=1e-5)
whole

# %% [markdown]
# On several machines, start the same script on each with its own `--machine_rank`, or give each
# machine a list of `instances` and copy the files. If a rank is killed, you can restart it without
# the others.
#
# ## Scoring a language model
#
# `evaluate` needs no change. Processes that were launched together with the same folder `out` share its
# questions, [block by block](../foundation/20_runs.ipynb). Each process loads the model onto its own
# device and returns the whole table. A process that has finished its blocks takes over the missing
# blocks of others, so no process waits, and a process that dies is replaced. Reasoning samples are
# shared in the same way.

# %%
from moral_sc.bias import bbq, evaluate
from moral_sc.foundation.runs import process_rank, start_ranks
from moral_sc.language.stub_models import random_model

def score(out, portion=8, progress=None):
    lm = random_model('llama')           # on GPUs: load('smollm2-135m-instruct')
    result = evaluate(lm, items=bbq.load(source='ours'), limit=12, conditions=['q', 'q+if+cot'],
                      orders=3, portion=portion, max_new_tokens=12, out=out, progress=progress)
    if process_rank()[0]==0: result.records.to_pickle(f'{out}.pkl')


# %% [markdown]
# To save time this page forks the ranks from its own process, with the environment that
# `accelerate launch` gives them. Your script calls `score` and is launched as above.

# %%
def launch(n, *args):
    "Call `score` on several ranks; return their exit codes"
    jobs = start_ranks(lambda: score(*args), n)
    for j in jobs: j.join()
    return [j.exitcode for j in jobs]

test_eq(launch(2, tmp/'two'), [0, 0])
score(tmp/'one')

# %% [markdown]
# Two processes and one process return the same table, sampled reasoning included.

# %%
import numpy as np, pandas as pd

def compare(a, b):
    "Compare two tables, texts exactly and numbers to rounding; return the largest difference"
    a,b = (x if isinstance(x, pd.DataFrame) else pd.read_pickle(x) for x in (a,b))
    n = a.select_dtypes('float').columns
    assert a.drop(columns=n).equals(b.drop(columns=n))
    difference = np.abs(a[n]-b[n]).max(axis=None)
    test_eq(a[n].isna(), b[n].isna())
    assert difference<1e-5
    return difference

one = tmp/'one.pkl'
two = tmp/'two.pkl'
f'{len(pd.read_pickle(one))} rows, largest difference {compare(one, two):.0e}'

# %% [markdown]
# ## Resuming with another number of processes
#
# Two processes, with blocks of another size, are killed without warning. A single process resumes
# one copy of their run, and three processes resume another.

# %%
import shutil, signal
from moral_sc.foundation.runs import open_run

def kill_after(blocks):
    "Make a callback that kills its process at the end of some block"
    calls = iter(range(1, blocks))
    return lambda done,total: next(calls, 0) or os.kill(os.getpid(), signal.SIGKILL)

def rows(out):
    with open_run(out) as run: return len(run)

test_eq(launch(2, tmp/'killed', 4, kill_after(6)), [-9, -9])
finished = rows(tmp/'killed')
shutil.copytree(tmp/'killed', tmp/'killed3')

score(tmp/'killed', 4)
test_eq(launch(3, tmp/'killed3', 4), [0, 0, 0])
finished, rows(tmp/'killed'), rows(tmp/'killed3'), rows(tmp/'one')

# %%
test_eq(rows(tmp/'killed'), rows(tmp/'one'))
test_eq(rows(tmp/'killed3'), rows(tmp/'one'))
[f'{compare(tmp/f"{c}.pkl", one):.0e}' for c in ('killed', 'killed3')]

# %% [markdown]
# The processes need one folder with working file locks, so they run on one machine. On several
# machines, give each its own benchmarks or models and its own folder.
#
# ## Training a language model
#
# In supervised training, preference models, PPO and RLOO, the ranks share the examples of each
# step and obtain the result of one process. With `accelerate launch --multi_gpu` each rank holds
# [the whole model](../language/46_training.ipynb). With `--config_file` and the file `fsdp.yaml`
# each holds [a shard](../language/49_fsdp.ipynb) of weights, gradients and optimizer state. The
# file is in the folder `data`, also in an installed package:

# %%
import yaml
from moral_sc.foundation.datasets import data_dir

list(yaml.safe_load((data_dir()/'fsdp.yaml').read_text())['fsdp_config'])
