# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Where a policy should arrive
#
# > The best policy is known in closed form; a transformer trained from samples gets there, on
# > one process or two.

# %% [markdown]
# A score $r$ and a price $\beta$ of the KL from a reference leave one best policy,
#
# $$\pi^*(y) = \tfrac1Z\,\pi_0(y)\,e^{r(y)/\beta},\qquad J^* = \beta\log Z,$$
#
# and $J^*-J(\pi)=\beta\,\mathrm{KL}(\pi\,\|\,\pi^*)$ for any other. On tables of numbers
# [another page](15_bandits.ipynb) shows that its mathematics leads there. Here the whole
# machine is put to the same test: prompts are rendered, answers sampled, texts scored, rows
# read again, and gradients go through a transformer.

# %%
import numpy as np, pandas as pd, torch
from fastcore.test import *
from moral_sc.constitution.rl.policy import train_policy
from moral_sc.constitution.prompts import render_prompt
from moral_sc.language.reward_head import small_llama, word_tokenizer
from moral_sc.language.chat import Prompt
from moral_sc.language.models import decode, eos_ids
from moral_sc.language.scoring import next_token_logprobs

torch.set_num_threads(1)
words = 'Is it ? far near yes no maybe soon not'.split()
lm = small_llama(word_tokenizer(words), layers=2, width=32, heads=2, seed=1)
lm

# %% [markdown]
# ## One word
#
# Answers of one token. Every token of the vocabulary is an answer, the end token and the
# headings too; as text those are empty.

# %%
worth = dict(far=1., near=0., yes=-1., no=2., maybe=.5, soon=-.5)
score = lambda prompts,answers: [worth.get(a, -1.5) for a in answers]
n = len(lm.tokenizer)
beta = .5

def text(*ids):
    "The answer that these tokens make"
    ids = ids[:-1] if ids[-1] in eos_ids(lm) else ids
    return decode(lm, ids).split('\n\nHuman:')[0].strip()

def first(lm): return next_token_logprobs(lm, [render_prompt(lm, 'Is it?')])[0]

def optimum(ref, r, beta):
    "Log-probabilities of the best policy, and its objective"
    x = ref+r/beta
    return x-np.log(np.exp(x).sum()), beta*np.log(np.exp(x).sum())

def objective(lp, ref, r, beta): return (np.exp(lp)*(r-beta*(lp-ref))).sum()

ref = first(lm)
r = np.array(score(None, [text(i) for i in range(n)]))
best,J = optimum(ref, r, beta)
test_close(objective(best, ref, r, beta), J, 1e-9)
n, objective(ref, ref, r, beta), J

# %% [markdown]
# PPO with the price in the reward, and RLOO with the price in the loss. The rate falls to
# zero, so that the noise of the last batches does not stay.

# %%
ways = {'PPO': dict(lr=4e-3),
        'RLOO, k2 in the loss': dict(lr=4e-3, algorithm='rloo', copies=64, kl_in='loss')}
common = dict(steps=60, batch=64, max_new_tokens=1, kl=beta, schedule='linear')
done = {k: train_policy(lm, ['Is it?'], score, **common|kw) for k,kw in ways.items()}
lps = {k: first(p.lm) for k,p in done.items()}
short = {k: J-objective(lp, ref, r, beta) for k,lp in lps.items()}
def table(columns, texts, n=6):
    "Probabilities of the likeliest answers, all ways of writing one taken together"
    p = {k: np.exp(x) for k,x in columns.items()}
    d = pd.DataFrame(p, [t or '(nothing)' for t in texts])
    d = d.groupby(level=0).sum()
    return d.sort_values('optimum', ascending=False).head(n).round(3)

table({'start': ref, **lps, 'optimum': best}, [text(i) for i in range(n)])

# %% [markdown]
# What is missing from $J^*$, in points of reward, beside what was missing at the start:

# %%
start = J-objective(ref, ref, r, beta)
assert max(short.values())<.03*start
dict(start=round(start, 3), **{k: round(v, 4) for k,v in short.items()})

# %% [markdown]
# ## Two words
#
# Of two tokens, the second may not come: an answer ends with its end token. What is best is
# a distribution over whole answers, and the KL of an answer is the sum over its tokens. No
# value of a single word says how good it is; that depends on what follows.

# %%
closing = [i for i in range(n) if i in eos_ids(lm) or '\n\nHuman:' in decode(lm, [i])]
going = [i for i in range(n) if i not in closing]

def answers(lm):
    "Log-probability of every answer of at most two tokens, and its tokens"
    p = render_prompt(lm, 'Is it?')
    one = first(lm)
    two = next_token_logprobs(lm, [Prompt('', (*p.ids, i)) for i in going])
    lps = [*one[closing], *(one[going][:,None]+two).flatten()]
    return np.array(lps), [(i,) for i in closing]+[(i, j) for i in going for j in range(n)]

def pair(a):
    "Half of what the words are worth, one for `not far`, one off for saying it twice"
    w = a.split()
    return sum(worth.get(x, -.5) for x in w)/2 + (a=='not far') - (len(w)>len(set(w)))

score2 = lambda prompts,answers: [pair(a) for a in answers]
ref2,ids = answers(lm)
r2 = np.array(score2(None, [text(*i) for i in ids]))
best2,J2 = optimum(ref2, r2, beta)
test_close(np.exp(ref2).sum(), 1, 1e-5)
len(ids), objective(ref2, ref2, r2, beta), J2

# %%
common = dict(common, batch=128, max_new_tokens=2, steps=140, lr=1e-2)
done = {'PPO': train_policy(lm, ['Is it?'], score2, **common)}
lps = {k: answers(p.lm)[0] for k,p in done.items()}
table({'start': ref2, **lps, 'optimum': best2}, [text(*i) for i in ids])

# %%
short = {k: J2-objective(lp, ref2, r2, beta) for k,lp in lps.items()}
start = J2-objective(ref2, ref2, r2, beta)
assert max(short.values())<.1*start
dict(start=round(start, 3), **{k: round(v, 4) for k,v in short.items()})

# %% [markdown]
# The KL that training reports, at its end, beside that of the optimum:

# %%
kl = (np.exp(best2)*(best2-ref2)).sum()
found = {k: p.history.kl3.iloc[-10:].mean() for k,p in done.items()}
{k: round(v, 3) for k,v in (dict(optimum=kl) | found).items()}

# %% [markdown]
# ## Two processes
#
# `accelerate launch` starts several processes. Each answers its share of the prompts,
# gradients are summed, and what is learned is the same as on one; the only difference is
# that sums are taken in another order. One of them is late here: what it would find in the folder is
# then not what the first has found there, and the first one's word counts.

# %%
#| hide
import os, subprocess, sys, tempfile
from pathlib import Path
from moral_sc.foundation.datasets import data_dir
from moral_sc.language.loading import load
tmp = Path(tempfile.mkdtemp())

# %%
script = '''
import os, sys, time, torch
from moral_sc.constitution.rl.policy import _Folder, train_policy
from moral_sc.language.stub_models import random_model
torch.set_num_threads(1)
resume = _Folder.resume
def late(*args):
    if os.environ.get('RANK')=='1': time.sleep(1)
    return resume(*args)
_Folder.resume = late
asks = [f'Is it {w}?' for w in 'far late cold dark soon over'.split()]
letters = lambda prompts,answers: [sum(c.islower() for c in a) for a in answers]
ways = dict(ppo=dict(inner=2, minibatches=2), rloo=dict(algorithm='rloo'),
            separate=dict(critic='separate', max_tokens=200))
for name,kw in ways.items():
    train_policy(random_model('llama'), asks, letters, batch=24, max_new_tokens=8, lr=1e-3,
                 steps=6, out=f'{sys.argv[1]}/{name}', **kw)
'''
(tmp/'script.py').write_text(script)
def launch(name, *how):
    "Two processes on this machine"
    how = ['-m', 'accelerate.commands.launch', *how, '--num_processes', '2',
           '--main_process_port', '0']
    did = subprocess.run([sys.executable, *how, tmp/'script.py', tmp/name], text=True,
                         capture_output=True, env=os.environ|dict(OMP_NUM_THREADS='1'))
    assert did.returncode==0, did.stderr

columns = ['score', 'kl', 'loss', 'entropy', 'clipped', 'grad_norm']
def history(name): return {a: pd.read_json(tmp/name/a/'history.jsonl', lines=True)[columns]
                           for a in ('ppo', 'rloo', 'separate')}

def gap(a, b):
    "Largest difference of any number of any step"
    return {k: float((x-b[k]).abs().max().max()) for k,x in a.items()}

exec(script.replace('sys.argv[1]', 'str(tmp/"one")')) # Here, by itself
_Folder.resume = resume
launch('two', '--multi_gpu', '--num_machines', '1', '--mixed_precision', 'no',
       '--dynamo_backend', 'no')
one = history('one')
two = history('two')
assert max(gap(one, two).values())<1e-4
one['ppo'].round(4), {a: f'{x:.0e}' for a,x in gap(one, two).items()}

# %% [markdown]
# With the file `fsdp.yaml` each process learns [a part](../../language/49_fsdp.ipynb) of policy,
# value head and critic. The numbers are the same, and what was learned, the way from the first model
# to the last snapshot, is off by a ten-thousandth at most: as far as with two whole processes, so
# it is the order of sums and not the parts. (Single weights tell little: where a gradient is near
# zero, Adam takes a step as long as any, in a direction that rounding chooses.)

# %%
launch('parts', '--config_file', data_dir()/'fsdp.yaml')
parts = history('parts')
assert max(gap(one, parts).values())<1e-4
def learned(name, a):
    "How far the last snapshot is from where all began, [weight]"
    flat = lambda m: torch.cat([x.detach().double().flatten() for x in m.model.parameters()])
    return flat(load(tmp/name/a/'snapshots'/'step-000006'))-flat(random_model('llama'))

def apart(a, name):
    "Distance of what was learned from what one process learned, by the length of that"
    x = learned('one', a)
    y = learned(name, a)
    return float((x-y).norm()/x.norm())

off = pd.DataFrame({n: {a: apart(a, n) for a in one} for n in ('two', 'parts')})
assert off.to_numpy().max()<1e-3
{a: f'{x:.0e}' for a,x in gap(one, parts).items()}, off.map('{:.0e}'.format)

# %%
#| hide
import shutil
shutil.rmtree(tmp)
