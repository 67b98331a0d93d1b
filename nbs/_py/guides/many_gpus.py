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
# > Share a sweep of toy models among processes, and put it together again.

# %% [markdown]
# A sweep of a million toy models is a million separate trainings. What each model sees depends on
# the seed and on its own number, so it learns the same wherever it is trained, and processes have
# nothing to tell each other. `accelerate launch` starts one process for each GPU; each asks `share`
# for its part and writes a file.

# %%
script = '''
import sys, torch
from accelerate import PartialState
from moral_sc.superposition import ToyConfig, save, train
from moral_sc.superposition.sweeps import share

here = PartialState()
config = ToyConfig(n_features=5, n_hidden=2, n_instances=6, density=.1, importance=[.9**i for i in range(5)])
mine = share(config.n_instances, here.process_index, here.num_processes)
run = train(config, steps=300, batch_size=256, lr=.01, instances=mine, device=str(here.device))
save(run, f'{sys.argv[1]}/share{here.process_index}.safetensors')
'''

# %% [markdown]
# On a machine with eight GPUs:
#
# ```sh
# accelerate launch --num_processes 8 sweep.py runs
# ```
#
# Without a GPU the same script runs as two processes on the CPU:

# %%
import os, subprocess, sys, tempfile
from pathlib import Path
tmp = Path(tempfile.mkdtemp())
(tmp/'sweep.py').write_text(script)
launch = [sys.executable, '-m', 'accelerate.commands.launch', '--num_processes', '2', '--cpu',
          '--num_machines', '1', '--mixed_precision', 'no', '--dynamo_backend', 'no']
done = subprocess.run([*launch, str(tmp/'sweep.py'), str(tmp)], capture_output=True, text=True,
                      env=os.environ | dict(OMP_NUM_THREADS='1'))
assert done.returncode==0, done.stderr
sorted(p.name for p in tmp.glob('*.safetensors'))

# %% [markdown]
# `join` makes one run of the shares: the run that a single process would have had.

# %%
from fastcore.test import *
from moral_sc.superposition import restore, train
from moral_sc.superposition.sweeps import join

shares = [restore(p) for p in sorted(tmp.glob('*.safetensors'))]
whole = join(shares)
alone = train(whole.config, steps=300, batch_size=256, lr=.01)
test_close(whole.W, alone.W, eps=1e-5)
[r.instances for r in shares], whole

# %% [markdown]
# Across machines, start the same script on each with its own `--machine_rank`, or simply give each
# machine a list of `instances` and copy the files. A share that was killed is started again by
# itself. What is left to one device is a single model too large for it, and no toy model is.
