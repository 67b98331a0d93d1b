# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Rollouts
#
# > Rollouts are sampled answers with the policy's log-probabilities and values.

# %%
#| default_exp constitution.rl.rollouts

# %% [markdown]
# Each step of reinforcement learning generates answers, scores them and updates the policy. This
# page generates the answers. The update needs two numbers for each token: the log-probability of
# the sampled token and the value of the state from which it was sampled. Sampling computes both, so
# we keep them; stored as logits they would take gigabytes instead of kilobytes.

# %%
#| export
from dataclasses import dataclass

import numpy as np, torch

from moral_sc.constitution.prompts import get_prompt, render_prompt
from moral_sc.foundation.errors import ConfigError
from moral_sc.language.reward_head import answer_logprobs
from moral_sc.language.engine import inference
from moral_sc.language.engine.batching import batches
from moral_sc.language.generation import sample

# %%
#| hide
from fastcore.test import *

from moral_sc.language.reward_head import answer_outputs
from moral_sc.language.stub_models import random_model

torch.set_num_threads(1)


# %% [markdown]
# ## Order of the prompts
#
# Every epoch visits each prompt once, in a new random order. The prompts of a step depend only on
# the seed and the number of the step, so a resumed run needs no saved position and all ranks agree.

# %%
#| export
def prompt_schedule(
    n:int,     # Number of prompts
    batch:int, # Prompts a step
    step:int,  # From 0
    seed:int=0,
)->list:       # (prompt number, epoch)
    "Return the prompts of one step"
    visits = [divmod(i, n) for i in range(step*batch, (step+1)*batch)]
    epochs = {epoch for epoch,_ in visits}
    order = {e: np.random.default_rng([seed, e]).permutation(n) for e in epochs}
    return [(int(order[e][i]), e) for e,i in visits]


# %%
prompt_schedule(5, 3, 0), prompt_schedule(5, 3, 1)

# %%
whole = [v for s in range(5) for v in prompt_schedule(5, 3, s)]
for p in range(3): test_eq(sorted(i for i,q in whole if q==p), range(5))
test_ne([i for i,q in whole if q==0], [i for i,q in whole if q==1])
test_eq(prompt_schedule(5, 15, 0), whole) # The step size does not change the order


# %% [markdown]
# ## Data structure
#
# Answers differ in length. Their numbers are stored in tensors `[row, token]` that begin with the
# first token of the answer; after its last token the mask is false and the number is 0.

# %%
#| export
def pad_values(
    rows:list, # Lists of numbers
    device='cpu',
)->tuple:      # [row, token] float32, and a mask that is true on numbers
    "Pad rows of different length to one tensor"
    n = max(map(len, rows), default=0)
    x = torch.zeros(len(rows), n)
    mask = torch.zeros(len(rows), n, dtype=torch.bool)
    for i,r in enumerate(rows):
        x[i,:len(r)] = torch.tensor(r)
        mask[i,:len(r)] = True
    return x.to(device),mask.to(device)


# %%
pad_values([[1., 2., 3.], [4.]])


# %%
#| export
@dataclass
class Rollouts:
    "Answers of a policy with their log-probabilities and values"
    prompts:list       # Texts, as reward functions take them
    answers:list       # Texts, without the end token or the stop string
    rows:list          # Token ids of prompt and answer; all sampled tokens, end token included
    starts:list        # Index of each answer's first token
    ended:list         # False where the answer reached its maximum length
    logp:torch.Tensor  # [row, token] at the sampling temperature
    mask:torch.Tensor  # [row, token] true on sampled tokens
    values:torch.Tensor|None=None # [row, token] of the state before the token

    def __len__(self): return len(self.rows)
    def __repr__(self):
        n = int(self.mask.sum())
        return f'Rollouts({len(self)} answers, {n} tokens, {sum(self.ended)} ended)'


# %% [markdown]
# An answer ends with the end token, or where the model begins the next turn of the dialogue, as
# base models do. The policy sampled the tokens of such a heading like any others, so they stay in
# the row, but not in the text.

# %%
#| export
STOP_STRINGS = dict(plain=('\n\nHuman:',)) # Strings that end an answer, by mode

def generate_rollouts(
    lm,                    # The policy
    prompts:list,          # Rows with `prompt`
    keys:list,             # One a row; key and seed determine the random numbers of the answer
    max_new_tokens:int=128,
    temperature:float=1.,
    value_head=None,       # Applied to the policy's hidden states
    mode:str='plain',      # Format of prompts
    stop=None,             # Strings that end an answer; None: the heading of the next turn
    seed:int=0,
    top_p:float=1.,        # Other values are refused: see below
    **kw                   # Passed to `sample`
)->Rollouts:
    "Sample one answer to each prompt"
    if top_p!=1:
        raise ConfigError(f'top_p is {top_p}; rollouts are sampled from the whole distribution, '
                          'so leave it at 1.')
    if temperature<=0: raise ConfigError(f'temperature is {temperature}; give more than 0.')
    texts = [get_prompt(p) for p in prompts]
    rendered = [render_prompt(lm, t, mode) for t in texts]
    stop = STOP_STRINGS.get(mode, ()) if stop is None else stop
    with torch.no_grad(), inference(lm.model, steps=max_new_tokens, batch_invariant=True,
                                    in_place=True): # As the trainer computes it
        samples = sample(lm, rendered, max_new_tokens, temperature, stop=stop, seed=seed, keys=keys,
                      logprobs='tempered', **(dict(values=value_head) if value_head else {}), **kw)
    logp,mask = pad_values([s.logprobs for s in samples], lm.device)
    values = pad_values([s.values for s in samples], lm.device)[0] if value_head else None
    return Rollouts(prompts=texts,
                    answers=[s.text.strip() for s in samples],
                    rows=[[*p.ids, *s.ids] for p,s in zip(rendered, samples)],
                    starts=[len(p.ids) for p in rendered],
                    ended=[s.finish!='length' for s in samples],
                    logp=logp, mask=mask, values=values)


# %%
lm = random_model('llama')
nouns = 'fruit', 'tree', 'very large animal'
prompts = [dict(id=w, prompt=f'Name one {w}.') for w in nouns]*4
keys = [f'0/{i}' for i in range(len(prompts))]
r = generate_rollouts(lm, prompts, keys, 24)
r, r.logp[:2,:6]


# %% [markdown]
# ## Log-probabilities of rollouts
#
# The update computes the log-probabilities of the same tokens again, with a gradient, on batches
# with right padding. `map_in_batches` applies a function to rows of similar length and restores
# their order.

# %%
#| export
def map_in_batches(
    f,                   # f(rows, starts) -> one or several tensors [row, token]
    rows:list,
    starts:list,
    max_tokens:int=4096, # In one batch, padding included
)->list:                 # For each result of `f`: [row, token], 0 after the answer
    "Apply a function of rows in batches of bounded size"
    width = max(len(r)-s for r,s in zip(rows, starts))
    res = None
    for g in batches([*map(len, rows)], max_tokens):
        out = f([rows[i] for i in g], [starts[i] for i in g])
        out = out if isinstance(out, tuple) else (out,)
        if res is None: res = [x.new_zeros(len(rows), width) for x in out]
        for a,x in zip(res, out): a[g,:x.shape[1]] = x
    return res

def rollout_logprobs(
    model,
    r:Rollouts,
    temperature:float=1., # Of sampling
    max_tokens:int=4096,  # In one batch, padding included
)->torch.Tensor:          # [row, token], without gradient
    "Return the log-probabilities of rollouts under a model"
    f = lambda rows,starts: answer_logprobs(model, rows, starts, temperature, 128)[0]
    with torch.no_grad(): return map_in_batches(f, r.rows, r.starts, max_tokens)[0]


# %% [markdown]
# At the first step the trained policy is the policy that sampled, so the ratio of new to old
# probabilities is 1. Frequent mistakes change it: a temperature that is applied on one side only,
# rows shifted by one token, an effect of padding, or dropout. This test detects all of them, for
# four architectures and three temperatures:

# %%
def max_difference(lm, temperature, training_temperature=None):
    r = generate_rollouts(lm, prompts, keys, 24, temperature)
    logp = rollout_logprobs(lm.model, r, training_temperature or temperature)
    return (logp-r.logp).abs().max().item()

differences = {(a, t): max_difference(random_model(a), t)
               for a in ('llama', 'neox', 'qwen2', 'gemma3') for t in (.7, 1., 1.3)}
assert max(differences.values())<1e-5
f'{max(differences.values()):.0e}', round(max_difference(lm, .7, 1.), 2) # Last: wrong temperature

# %% [markdown]
# A rollout does not depend on the other rows of its batch or on padding. Its random numbers depend
# on its key only.

# %%
r = generate_rollouts(lm, prompts, keys, 24)
alone = [generate_rollouts(lm, [p], [k], 24) for p,k in zip(prompts[:5], keys)]
test_eq([a.rows[0] for a in alone], r.rows[:5])
for i,a in enumerate(alone): test_close(a.logp[0], r.logp[i,:a.logp.shape[1]], 1e-5)
for tokens in (1, 100, 4096):
    test_close(rollout_logprobs(lm.model, r, 1., tokens), rollout_logprobs(lm.model, r), 1e-5)
len(set(r.answers)), sorted(map(len, r.rows))

# %% [markdown]
# Values belong to the hidden state from which the token was sampled.

# %%
head = torch.nn.Linear(64, 1)
value_head = lambda h: head(h)[...,0]
v = generate_rollouts(lm, prompts, keys, 24, value_head=value_head)
def values(rows, starts): return value_head(answer_outputs(lm.model, rows, starts)[2])
with torch.no_grad(): recomputed = map_in_batches(values, v.rows, v.starts)[0]*v.mask
test_close(v.values, recomputed, 1e-4)
test_eq(v.rows, r.rows)
v.values[:2,:4]

# %% [markdown]
# ## No nucleus sampling
#
# Nucleus sampling (top p) divides the probabilities of the likeliest tokens by their sum $S$. The
# sampler's log-probability of a token is then larger than the trainer's by $-\log S$, and the ratio
# is $S$ at every step, before any update. A correction would need the set of allowed tokens at each
# step. Training therefore samples from the whole distribution.

# %%
x = torch.randn(8, 261).mul(2).softmax(-1)
q,i = x.sort(descending=True)
nucleus = q.cumsum(-1)-q<.8
sampler = torch.where(nucleus, q, 0)/torch.where(nucleus, q, 0).sum(-1, keepdim=True)
ratio = (q/sampler)[:,0]
test_close(ratio, torch.where(nucleus, q, 0).sum(-1), 1e-6)
with expect_fail(ConfigError, contains='top_p is 0.8'):
    generate_rollouts(lm, prompts, keys, top_p=.8)
ratio

# %% [markdown]
# ## Precision of the softmax
#
# Weights may be bfloat16, but the softmax has to be float32. Over 49,152 tokens the probabilities
# of a bfloat16 softmax have errors of several percent, which the clip range of 0.2 would take for
# a change of the policy.

# %%
z = (torch.randn(64, 49_152, generator=torch.manual_seed(0))*2).bfloat16()
exact = z.double().log_softmax(-1)
errors = {k: (f(z)-exact).expm1().abs().max().item() for k,f in dict(
    float32=lambda z: z.float().log_softmax(-1),
    bfloat16=lambda z: z.log_softmax(-1)).items()}
assert errors['float32']<1e-3<errors['bfloat16']
{k: f'{v:.0e}' for k,v in errors.items()}
