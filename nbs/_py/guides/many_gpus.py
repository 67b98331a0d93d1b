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
# > Share a sweep of toy models, the scoring of a benchmark, or a training among processes.

# %% [markdown]
# ## Toy models
#
# A sweep of a million toy models is a million separate trainings. What each model sees depends on
# the seed and on its own number, so it learns the same wherever it is trained, and processes have
# nothing to tell each other. `accelerate launch` starts one process for each GPU; each asks `share`
# for its part and writes a file.

# %%
script = '''
import os, sys, torch
from moral_sc.superposition import ToyConfig, save, train
from moral_sc.superposition.phase_diagram import share

rank = os.environ['RANK']
device = f'cuda:{os.environ["LOCAL_RANK"]}' if torch.cuda.is_available() else 'cpu'
config = ToyConfig(n_features=5, n_hidden=2, n_instances=6, density=.1, importance=[.9**i for i in range(5)])
run = train(config, steps=300, batch_size=256, lr=.01, instances=share(config.n_instances), device=device)
save(run, f'{sys.argv[1]}/share{rank}.safetensors')
'''

# %% [markdown]
# On a machine with eight GPUs:
#
# ```sh
# accelerate launch --multi_gpu --num_processes 8 sweep.py runs
# ```
#
# Without a GPU the same command runs the script as processes on the CPU. It has to be
# `--multi_gpu` there too: with `--cpu` accelerate starts a single process, unless MPI is installed,
# and does not say so.

# %%
import os, subprocess, sys, tempfile
from pathlib import Path
from fastcore.test import *

tmp = Path(tempfile.mkdtemp())
def launch(script, *args, processes=2):
    "Run a script as several processes on this machine"
    (tmp/'script.py').write_text(script)
    how = ['--multi_gpu', '--num_processes', str(processes), '--num_machines', '1',
           '--mixed_precision', 'no', '--dynamo_backend', 'no', '--main_process_port', '0']
    if processes==1: how = [h for h in how if h!='--multi_gpu']
    cmd = [sys.executable, '-m', 'accelerate.commands.launch', *how, tmp/'script.py', *args]
    done = subprocess.run(cmd, capture_output=True, text=True,
                          env=os.environ | dict(OMP_NUM_THREADS='1'))
    assert done.returncode==0, done.stderr
    return done.stdout

launch(script, tmp)
sorted(p.name for p in tmp.glob('*.safetensors'))

# %% [markdown]
# `join_runs` makes one run of the shares: the run that a single process would have had.

# %%
from moral_sc.superposition import load_run, train
from moral_sc.superposition.phase_diagram import join_runs

shares = [load_run(p) for p in sorted(tmp.glob('*.safetensors'))]
test_eq([list(r.instances) for r in shares], [[0,1,2], [3,4,5]])
whole = join_runs(shares)
alone = train(whole.config, steps=300, batch_size=256, lr=.01)
test_close(whole.W, alone.W, eps=1e-5)
whole

# %% [markdown]
# Across machines, start the same script on each with its own `--machine_rank`, or simply give each
# machine a list of `instances` and copy the files. A share that was killed is started again by
# itself. What is left to one device is a single model too large for it, and no toy model is.
#
# ## Scoring a language model
#
# A benchmark needs no change at all. Processes that were launched together and name the same
# folder share its questions, [block by block](../foundation/20_runs.ipynb); each loads the model onto its own
# GPU, and each ends with the whole table. A process that comes to the end of its blocks takes over
# what is missing of the others', so none waits and none is missed if it dies. What a model writes
# before it answers is shared in the same way.

# %%
script = '''
import sys
from moral_sc.bias import bbq, evaluate
from moral_sc.foundation.runs import process
from moral_sc.language.stub_models import random_model

lm = random_model('llama')           # on GPUs: load('smollm2-135m-instruct')
did = evaluate(lm, items=bbq.load(source='ours'), limit=24, conditions=['q', 'q+if+cot'],
               orders=3, portion=16, max_new_tokens=12, out=sys.argv[1],
               progress=lambda n,total: print(n, flush=True))
if process()[0]==0: did.records.to_pickle(sys.argv[1]+'.pkl')
'''
launch(script, tmp/'two')
launch(script, tmp/'one', processes=1);

# %% [markdown]
# Two processes and one end with the same table, the sampled reasoning included.

# %%
import numpy as np, pandas as pd

def compare(a, b):
    "Whether two tables say the same: words and answers exactly, numbers to rounding"
    a,b = (x if isinstance(x, pd.DataFrame) else pd.read_pickle(x) for x in (a,b))
    n = a.select_dtypes('float').columns
    assert a.drop(columns=n).equals(b.drop(columns=n))
    gap = np.abs(a[n]-b[n]).max(axis=None)
    test_eq(a[n].isna(), b[n].isna())
    assert gap<1e-5
    return gap

one = tmp/'one.pkl'
two = tmp/'two.pkl'
f'{len(pd.read_pickle(one))} rows, largest difference {compare(one, two):.0e}'

# %% [markdown]
# ## Killed, and started again with fewer
#
# Here two processes work in other portions, and both are killed without warning. What they
# left is taken up by a single process with its own portions, and by three.

# %%
import shutil, signal
from moral_sc.foundation.runs import open_run

(tmp/'script.py').write_text(script.replace('portion=16', 'portion=8'))
def start(rank, world, out):
    env = os.environ | dict(RANK=str(rank), WORLD_SIZE=str(world), OMP_NUM_THREADS='1')
    return subprocess.Popen([sys.executable, tmp/'script.py', out], env=env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

def rows(out):
    with open_run(out) as run: return len(run)

jobs = [start(r, 2, tmp/'cut') for r in (0,1)]
for j in jobs*6: j.stdout.readline()
for j in jobs: j.send_signal(signal.SIGKILL); j.wait()
kept = rows(tmp/'cut')
shutil.copytree(tmp/'cut', tmp/'cut3')

launch(script, tmp/'cut', processes=1)
jobs = [start(r, 3, tmp/'cut3') for r in range(3)]
for j in jobs: j.communicate()
test_eq([j.returncode for j in jobs], [0, 0, 0])
kept, rows(tmp/'cut'), rows(tmp/'cut3'), rows(tmp/'one')

# %%
test_eq(rows(tmp/'cut'), rows(tmp/'one'))
test_eq(rows(tmp/'cut3'), rows(tmp/'one'))
[f'{compare(tmp/f"{c}.pkl", one):.0e}' for c in ('cut','cut3')]

# %% [markdown]
# The processes have to see one folder with working locks, so they run on one machine. With
# several machines, give each one a part of the work, for instance its own benchmarks or models,
# and a folder of its own.
#
# ## Training a language model
#
# Supervised training, preference models, PPO and RLOO share the examples of each step, and what they
# learn is what one process would have learned. `accelerate launch --multi_gpu` gives each process
# [the whole model](../language/46_training.ipynb). With `--config_file` and the file `fsdp.yaml`
# each holds [a part](../language/49_fsdp.ipynb) of the weights that are learned, of their gradients
# and of the optimiser. The file lies in the folder `data`, also of an installed package:

# %%
import yaml
from moral_sc.foundation.datasets import data_dir

list(yaml.safe_load((data_dir()/'fsdp.yaml').read_text())['fsdp_config'])
