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
# > Answers that a policy gives while it is trained, with the log-probabilities and values it
# > gave them.

# %%
#| default_exp constitution.rl.rollouts

# %% [markdown]
# Reinforcement learning goes round in a circle: the policy answers, the answers are scored,
# and the policy is changed so that the better ones become likelier. The first half of the
# circle is on this page. What the second half needs of it is small, one number a token: the
# log-probability of the token that was drawn, and the value of the place where it was
# drawn. Both are at hand while the answer is written. Kept as whole rows of logits they
# would fill gigabytes; gathered at once they are kilobytes.

# %%
#| export
from dataclasses import dataclass

import numpy as np, torch

from moral_sc.constitution.prompts import render_prompt
from moral_sc.foundation.errors import ConfigError
from moral_sc.language.reward_head import answer_logprobs
from moral_sc.language.engine.weight_packing import DECODE_STEP_TOKENS, prepacked_weights
from moral_sc.language.engine.batching import batches
from moral_sc.language.generation import sample

# %%
#| hide
from fastcore.test import *

from moral_sc.language.reward_head import answer_hidden
from moral_sc.language.stub_models import random_model

torch.set_num_threads(1)


# %% [markdown]
# ## Whose turn it is
#
# Prompts are visited in an order without repetition, a new order in each pass. Which
# prompts a step visits follows from the seed and the number of the step alone. Nothing has
# to be remembered to go on after an interruption, and no two processes can disagree.

# %%
#| export
def prompt_schedule(
    n:int,     # Prompts there are
    batch:int, # Prompts a step
    step:int,  # From 0
    seed:int=0,
)->list:       # Pairs: number of the prompt, pass over the prompts
    "The prompts of one step"
    at = [divmod(i, n) for i in range(step*batch, (step+1)*batch)]
    order = {p: np.random.default_rng([seed, p]).permutation(n) for p in {p for p,_ in at}}
    return [(int(order[p][i]), p) for p,i in at]


# %%
prompt_schedule(5, 3, 0), prompt_schedule(5, 3, 1)

# %%
whole = [v for s in range(5) for v in prompt_schedule(5, 3, s)]
for p in range(3): test_eq(sorted(i for i,q in whole if q==p), range(5))
test_ne([i for i,q in whole if q==0], [i for i,q in whole if q==1])
test_eq(prompt_schedule(5, 15, 0), whole) # The size of the steps does not change the order


# %% [markdown]
# ## What is kept
#
# Answers differ in length. Numbers of tokens stand in rectangles `[row, token]` that begin
# with the first token of the answer; behind its last one the mask is false and the number
# 0.

# %%
#| export
def pad_values(
    rows:list, # Lists of numbers
    device='cpu',
)->tuple:      # [row, token] float32, and a mask that is true on numbers
    "Rows of different length as one rectangle"
    n = max(map(len, rows), default=0)
    x = torch.zeros(len(rows), n)
    mask = torch.zeros(len(rows), n, dtype=torch.bool)
    for i,r in enumerate(rows): x[i,:len(r)],mask[i,:len(r)] = torch.tensor(r), True
    return x.to(device),mask.to(device)


# %%
pad_values([[1., 2., 3.], [4.]])


# %%
#| export
@dataclass
class Rollouts:
    "Answers of a policy, with what was known when they were written"
    prompts:list       # Texts, as a score function reads them
    answers:list       # Texts, without the end token or the stop string
    rows:list          # Ids of prompt and answer; every sampled token, the end token too
    starts:list        # Where the answer begins
    ended:list         # False where the answer met the limit of its length
    logp:torch.Tensor  # [row, token] at the temperature the token was drawn at
    mask:torch.Tensor  # [row, token] true on sampled tokens
    values:torch.Tensor|None=None # [row, token] of the place where the token was drawn

    def __len__(self): return len(self.rows)
    def __repr__(self):
        n = int(self.mask.sum())
        return f'Rollouts({len(self)} answers, {n} tokens, {sum(self.ended)} ended)'


# %% [markdown]
# An answer ends with the end token, or where the model begins to write the next turn of the
# dialogue, which models that only continue text do. The tokens of such a turn marker were
# chosen by the policy like any other; they stay in the row, though not in the text.

# %%
#| export
STOP_STRINGS = dict(plain=('\n\nHuman:',)) # Text that ends an answer, by mode

def generate_rollouts(
    lm,                    # The policy
    prompts:list,          # Rows with `text`
    keys:list,             # A name for each answer; with the seed it fixes the noise
    max_new_tokens:int=128,
    temperature:float=1.,
    head=None,             # Value head for the policy's own hidden states
    mode:str='plain',
    stop=None,             # Text that ends an answer; None: the next turn's heading
    seed:int=0,
    top_p:float=1.,        # Refused unless 1: see below
    **kw                   # Passed to `sample`
)->Rollouts:
    "One answer to each prompt"
    if top_p!=1: raise ConfigError(f'top_p is {top_p}; a policy that is trained is sampled '
                                   'from whole, so leave it at 1.')
    if temperature<=0: raise ConfigError(f'temperature is {temperature}; give more than 0.')
    asks = [render_prompt(lm, p['text'], mode) for p in prompts]
    stop = STOP_STRINGS.get(mode, ()) if stop is None else stop
    with torch.no_grad(), prepacked_weights(lm.model, DECODE_STEP_TOKENS*max_new_tokens, room=True,
                                  fused=False): # As the trainer computes it
        said = sample(lm, asks, max_new_tokens, temperature, stop=stop, seed=seed, keys=keys,
                      logprobs='tempered', **(dict(values=head) if head else {}), **kw)
    logp,mask = pad_values([s.logprobs for s in said], lm.device)
    values = pad_values([s.values for s in said], lm.device)[0] if head else None
    rows = [[*a.ids, *s.ids] for a,s in zip(asks, said)]
    return Rollouts([p['text'] for p in prompts], [s.text.strip() for s in said],
                    rows, [len(a.ids) for a in asks],
                    [s.finish!='length' for s in said], logp, mask, values)


# %%
lm = random_model('llama')
things = 'fruit', 'tree', 'very large animal'
asked = [dict(id=w, text=f'Name one {w}.') for w in things]*4
keys = [f'0/{i}' for i in range(len(asked))]
r = generate_rollouts(lm, asked, keys, 24)
r, r.logp[:2,:6]


# %% [markdown]
# ## Read again
#
# Training reads the same rows again, padded on the right and many at a time, and needs the
# log-probability of the same tokens with a gradient. `map_in_batches` goes through the rows in groups
# of like length and puts the answers of a function back where they belong.

# %%
#| export
def map_in_batches(
    f,                   # Rows, starts -> one or several [row, token]
    rows:list,
    starts:list,
    max_tokens:int=4096, # In one pass, padding included
)->list:                 # For each of what `f` returns: [row, token], 0 behind the answer
    "A function of rows, applied in passes of bounded size"
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
    temperature:float=1., # The one that was sampled at
    max_tokens:int=4096,
)->torch.Tensor:          # [row, token], without gradient
    "What a model thinks of the tokens that a policy drew"
    f = lambda rows,starts: answer_logprobs(model, rows, starts, temperature, 128)[0]
    with torch.no_grad(): return map_in_batches(f, r.rows, r.starts, max_tokens)[0]


# %% [markdown]
# At the first step the policy that is trained is the one that answered, so the ratio of new
# to old probability is 1. It is not if the temperature is forgotten on one side, if the
# rows are shifted by one place, if padding leaks in, or if dropout is on: each of these is
# a frequent fault, and this is the test that finds them all. Four architectures, three
# temperatures:

# %%
def gap(lm, temperature, read=None):
    r = generate_rollouts(lm, asked, keys, 24, temperature)
    again = rollout_logprobs(lm.model, r, read or temperature)
    return (again-r.logp).abs().max().item()

gaps = {(a, t): gap(random_model(a), t) for a in ('llama','neox','qwen2','gemma3')
        for t in (.7, 1., 1.3)}
assert max(gaps.values())<1e-5
f'{max(gaps.values()):.0e}', round(gap(lm, .7, read=1.), 2) # Right; temperature forgotten

# %% [markdown]
# Each row is the same alone as among others, whatever stands beside it and however much
# padding that takes, and its noise comes from its key: the same key draws the same answer
# in a batch of any make-up.

# %%
r = generate_rollouts(lm, asked, keys, 24)
alone = [generate_rollouts(lm, [p], [k], 24) for p,k in zip(asked[:5], keys)]
test_eq([a.rows[0] for a in alone], r.rows[:5])
for i,a in enumerate(alone): test_close(a.logp[0], r.logp[i,:a.logp.shape[1]], 1e-5)
for tokens in (1, 100, 4096):
    test_close(rollout_logprobs(lm.model, r, 1., tokens), rollout_logprobs(lm.model, r), 1e-5)
len(set(r.answers)), sorted(map(len, r.rows))

# %% [markdown]
# Values are read where the logits were read: at the token before.

# %%
head = torch.nn.Linear(64, 1)
one = lambda h: head(h)[...,0]
v = generate_rollouts(lm, asked, keys, 24, head=one)
with torch.no_grad():
    again = map_in_batches(lambda rows,starts: one(answer_hidden(lm.model, rows, starts)[2]), v.rows,
                 v.starts)[0]*v.mask
test_close(v.values, again, 1e-4)
test_eq(v.rows, r.rows)
v.values[:2,:4]

# %% [markdown]
# ## Why nothing is cut off
#
# Sampling only among the likeliest tokens divides their probabilities by their mass $S$.
# The sampler's log-probability of a token is then above the trainer's by $-\log S$, and the
# ratio is $S$, step after step, before anything was learned. One would have to keep which
# tokens were allowed. Training samples from the whole distribution instead, and `generate_rollouts` says
# so.

# %%
x = torch.randn(8, 261).mul(2).softmax(-1)
q,i = x.sort(descending=True)
kept = q.cumsum(-1)-q<.8
sampler = torch.where(kept, q, 0)/torch.where(kept, q, 0).sum(-1, keepdim=True)
ratio = (q/sampler)[:,0]
test_close(ratio, torch.where(kept, q, 0).sum(-1), 1e-6)
with expect_fail(ConfigError, contains='top_p is 0.8'): generate_rollouts(lm, asked, keys, top_p=.8)
ratio

# %% [markdown]
# ## In half precision
#
# Weights may be in bfloat16; the softmax must not be. Over 49,152 words the probabilities
# of a softmax in bfloat16 are off by percents, and a clip at 20 % would begin to act on
# rounding.

# %%
z = (torch.randn(64, 49_152, generator=torch.manual_seed(0))*2).bfloat16()
right = z.double().log_softmax(-1)
off = {k: (f(z)-right).expm1().abs().max().item() for k,f in dict(
    float32=lambda z: z.float().log_softmax(-1),
    bfloat16=lambda z: z.log_softmax(-1)).items()}
assert off['float32']<1e-3<off['bfloat16']
{k: f'{v:.0e}' for k,v in off.items()}
