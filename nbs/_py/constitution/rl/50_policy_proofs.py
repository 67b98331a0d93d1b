# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Proofs of policy training
#
# > Trained transformers reach the known optimal policy, on one rank and on two.

# %% [markdown]
# For a score $r$ and a coefficient $\beta$ of the KL from a reference, the optimal policy is
#
# $$\pi^*(y) = \tfrac1Z\,\pi_0(y)\,e^{r(y)/\beta},\qquad J^* = \beta\log Z,$$
#
# and $J^*-J(\pi)=\beta\,\mathrm{KL}(\pi\,\|\,\pi^*)$ for any other policy. The page on
# [tabular policies](15_bandits.ipynb) shows that the formulas converge to it. Here the whole
# pipeline is tested: rendering prompts, sampling, scoring texts, recomputing log-probabilities and
# training a transformer.

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
# ## Answers of one token
#
# Every token of the vocabulary is an answer. The end token and the headings are empty answers.

# %%
rewards = dict(far=1., near=0., yes=-1., no=2., maybe=.5, soon=-.5)
score = lambda prompts,answers: [rewards.get(a, -1.5) for a in answers]
n = len(lm.tokenizer)
beta = .5

def text(*ids):
    "Return the text of an answer"
    ids = ids[:-1] if ids[-1] in eos_ids(lm) else ids
    return decode(lm, ids).split('\n\nHuman:')[0].strip()

def first_logprobs(lm): return next_token_logprobs(lm, [render_prompt(lm, 'Is it?')])[0]

def optimum(ref, r, beta):
    "Return the log-probabilities of the optimal policy, and its objective"
    x = ref+r/beta
    return x-np.log(np.exp(x).sum()), beta*np.log(np.exp(x).sum())

def objective(lp, ref, r, beta): return (np.exp(lp)*(r-beta*(lp-ref))).sum()

ref = first_logprobs(lm)
r = np.array(score(None, [text(i) for i in range(n)]))
best,J = optimum(ref, r, beta)
test_close(objective(best, ref, r, beta), J, 1e-9)
n, objective(ref, ref, r, beta), J

# %% [markdown]
# PPO has the KL penalty in the reward, RLOO in the loss. The learning rate falls to zero, which
# averages the noise of the last batches.

# %%
algorithms = {'PPO': dict(lr=4e-3),
              'RLOO, k2 in the loss': dict(lr=4e-3, algorithm='rloo', num_generations=64,
                                           kl_placement='loss')}
common = dict(steps=60, batch=64, max_new_tokens=1, kl_coef=beta, schedule='linear')
policies = {k: train_policy(lm, ['Is it?'], score, **common|kw) for k,kw in algorithms.items()}
logps = {k: first_logprobs(p.lm) for k,p in policies.items()}
gaps = {k: J-objective(lp, ref, r, beta) for k,lp in logps.items()}
def likeliest_answers(columns, texts, n=6):
    "Tabulate the probabilities of answers, summed over token sequences of the same text"
    p = {k: np.exp(x) for k,x in columns.items()}
    d = pd.DataFrame(p, [t or '(nothing)' for t in texts])
    d = d.groupby(level=0).sum()
    return d.sort_values('optimum', ascending=False).head(n).round(3)

likeliest_answers({'start': ref, **logps, 'optimum': best}, [text(i) for i in range(n)])

# %% [markdown]
# The gap to $J^*$ after training, in points of reward, beside the gap of the initial policy:

# %%
start = J-objective(ref, ref, r, beta)
assert max(gaps.values())<.03*start
dict(start=round(start, 3), **{k: round(v, 4) for k,v in gaps.items()})

# %% [markdown]
# ## Answers of two tokens
#
# An answer may end after its first token. The optimum is a distribution over whole answers, and the
# KL of an answer is the sum over its tokens. The reward depends on the combination of both tokens,
# so no single token has a fixed value.

# %%
final = [i for i in range(n) if i in eos_ids(lm) or '\n\nHuman:' in decode(lm, [i])]
inner = [i for i in range(n) if i not in final]

def answers(lm):
    "Return the log-probability of every answer of at most two tokens, and its tokens"
    p = render_prompt(lm, 'Is it?')
    one = first_logprobs(lm)
    two = next_token_logprobs(lm, [Prompt('', (*p.ids, i)) for i in inner])
    logps = [*one[final], *(one[inner][:,None]+two).flatten()]
    return np.array(logps), [(i,) for i in final]+[(i, j) for i in inner for j in range(n)]

def pair_reward(a):
    "Return half the rewards of the words, plus one for `not far`, less one for a repetition"
    w = a.split()
    return sum(rewards.get(x, -.5) for x in w)/2 + (a=='not far') - (len(w)>len(set(w)))

score2 = lambda prompts,answers: [pair_reward(a) for a in answers]
ref2,ids = answers(lm)
r2 = np.array(score2(None, [text(*i) for i in ids]))
best2,J2 = optimum(ref2, r2, beta)
test_close(np.exp(ref2).sum(), 1, 1e-5)
len(ids), objective(ref2, ref2, r2, beta), J2

# %%
common = dict(common, batch=128, max_new_tokens=2, steps=140, lr=1e-2)
policies = {'PPO': train_policy(lm, ['Is it?'], score2, **common)}
logps = {k: answers(p.lm)[0] for k,p in policies.items()}
likeliest_answers({'start': ref2, **logps, 'optimum': best2}, [text(*i) for i in ids])

# %%
gaps = {k: J2-objective(lp, ref2, r2, beta) for k,lp in logps.items()}
start = J2-objective(ref2, ref2, r2, beta)
assert max(gaps.values())<.1*start
dict(start=round(start, 3), **{k: round(v, 4) for k,v in gaps.items()})

# %% [markdown]
# The KL reported at the end of training, beside the KL of the optimum:

# %%
kl = (np.exp(best2)*(best2-ref2)).sum()
reported = {k: p.history.kl3.iloc[-10:].mean() for k,p in policies.items()}
{k: round(v, 3) for k,v in (dict(optimum=kl) | reported).items()}

# %% [markdown]
# ## Two ranks
#
# Each rank generates its share of the answers, gradients are summed, and the result is that of one
# process up to the order of summation. Here rank 1 looks for a checkpoint after rank 0 has written
# one; the ranks agree because rank 0 decides. The ranks are forked with the environment of
# `accelerate launch`.

# %%
#| hide
import tempfile, time
from pathlib import Path
from moral_sc.foundation.runs import process_rank, start_ranks
from moral_sc.language.loading import load
from moral_sc.language.optimization import Checkpoints
from moral_sc.language.stub_models import random_model
tmp = Path(tempfile.mkdtemp())

# %%
prompts = [f'Is it {w}?' for w in 'far late cold dark soon over'.split()]
letters = lambda prompts,answers: [sum(c.islower() for c in a) for a in answers]
configs = dict(ppo=dict(num_ppo_epochs=2, num_mini_batches=2), rloo=dict(algorithm='rloo'),
               separate=dict(critic='separate', max_tokens=200))
def train(name):
    for a,kw in configs.items():
        train_policy(random_model('llama'), prompts, letters, batch=24, max_new_tokens=5, lr=1e-3,
                     steps=2, out=tmp/name/a, **kw)

def launch(name, **env):
    "Train on two ranks"
    def rank():
        latest = Checkpoints.latest
        def late(self, *fields):
            end = time.monotonic()+.3
            while process_rank()[0]==1 and not self.steps() and time.monotonic()<end:
                time.sleep(.01)
            return latest(self, *fields)
        Checkpoints.latest = late
        train(name)
    jobs = start_ranks(rank, 2, **env)
    for j in jobs: j.join()
    test_eq([j.exitcode for j in jobs], [0, 0])

columns = ['score', 'kl', 'loss', 'entropy', 'clip_fraction', 'grad_norm']
def history(name): return {a: pd.read_json(tmp/name/a/'history.jsonl', lines=True)[columns]
                           for a in ('ppo', 'rloo', 'separate')}

def max_difference(a, b):
    "Return the largest difference of any number of any step"
    return {k: float((x-b[k]).abs().max().max()) for k,x in a.items()}

train('one')
launch('two')
one = history('one')
two = history('two')
assert max(max_difference(one, two).values())<1e-4
one['ppo'].round(4), {a: f'{x:.0e}' for a,x in max_difference(one, two).items()}

# %% [markdown]
# ## FSDP
#
# As with the file `fsdp.yaml`, each rank trains
# [a shard](../../language/49_fsdp.ipynb) of policy, value
# head and critic. The metrics are the same. The update, from the first model to the last snapshot,
# differs by at most a ten-thousandth of its norm. Two ranks without FSDP differ by as much, so the
# cause is the order of summation and not the sharding. (We compare whole updates and not single
# weights: where a gradient is near zero, rounding decides the direction of a full-sized Adam step.)

# %%
launch('fsdp', ACCELERATE_USE_FSDP='true')
fsdp = history('fsdp')
assert max(max_difference(one, fsdp).values())<1e-4
def update(name, a):
    "Return the difference of the last snapshot and the initial model, [weight]"
    flat = lambda m: torch.cat([x.detach().double().flatten() for x in m.model.parameters()])
    return flat(load(tmp/name/a/'snapshots'/'step-000002'))-flat(random_model('llama'))

def relative_difference(a, name):
    "Return the distance of two updates divided by the norm of the one-process update"
    x = update('one', a)
    y = update(name, a)
    return float((x-y).norm()/x.norm())

differences = pd.DataFrame({n: {a: relative_difference(a, n) for a in one}
                            for n in ('two', 'fsdp')})
assert differences.to_numpy().max()<1e-3
{a: f'{x:.0e}' for a,x in max_difference(one, fsdp).items()}, differences.map('{:.0e}'.format)

# %%
#| hide
import shutil
shutil.rmtree(tmp)
