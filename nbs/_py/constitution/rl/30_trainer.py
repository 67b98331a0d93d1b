# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # One step of learning
#
# > Rollouts are scored, credit is given to tokens, and the policy is changed: PPO and RLOO
# > for language models.

# %%
#| default_exp constitution.rl.trainer

# %% [markdown]
# The reward of an answer is what the preference model thinks of it, less a price for moving
# away from the model that training began with [@bai2022hh]:
#
# $$r = r_{PM} - \lambda\,\mathrm{KL}(\pi\,\|\,\pi_0).$$
#
# The [mathematics of PPO](10_ppo.ipynb) says how a policy follows a reward. This page
# applies it to a language model, and to a batch of answers that does not fit into one pass.

# %%
#| export
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np, torch
import torch.distributed as dist
from fastcore.basics import patch

from moral_sc.constitution.rl import ppo
from moral_sc.constitution.rl.rollouts import Rollouts, map_in_batches, rollout_logprobs, generate_rollouts, prompt_schedule
from moral_sc.foundation.errors import ConfigError, DataError, ModelError, unknown_name_message
from moral_sc.foundation.runs import process_rank
from moral_sc.language.chat import modes
from moral_sc.language.reward_head import ValueHead, answer_hidden, pad_right, backbone
from moral_sc.language.lora import LoRALinear, merge_lora
from moral_sc.language.engine.batching import batches
from moral_sc.language.fsdp import FSDPModules, full_tensors, fsdp_enabled


# %% [markdown]
# ## Settings
#
# Defaults are those of the papers where they say them: $\lambda=0.001$, clip 0.2,
# $\gamma=1$, one pass over each batch, 128 new tokens, no bonus for entropy. They do not
# say the size of the batch, $\lambda_{GAE}$, the optimiser, whether critic and policy share
# a trunk, or the absolute learning rate; there the values are ours.

# %%
#| export
@dataclass(frozen=True)
class RLConfig:
    "How a policy is trained"
    algorithm:str='ppo'       # 'ppo', or 'rloo': several answers a prompt, and no critic
    batch:int=32              # Answers a step
    steps:int=100             # In all
    copies:int|None=None      # Of them to one prompt; None: 1 for PPO, 4 for RLOO
    kl:float=.001             # Price of a nat of KL from the first policy
    kl_in:str='reward'        # 'reward': k1 a token; 'loss': k2 a token
    kl_target:float|None=None # Nats; with it the price is adapted, as in `ppo.AdaptiveKL`
    clip:float=.2             # Of the ratio of new to old probability
    value_clip:float|None=None# Of the value; None: not clipped
    gamma:float=1.
    lam:float=.95             # Of generalised advantage estimation
    whiten:bool|None=None     # Advantages to mean 0, variance 1; None: for PPO only
    inner:int=1               # Passes over each batch, the papers' K
    minibatches:int=1         # Optimiser steps a pass
    critic:str='shared'       # 'shared': a head on the policy's trunk; 'separate': its own
    value_weight:float=.1     # Of the value loss, with a shared trunk
    max_new_tokens:int=128
    temperature:float=1.      # Of sampling, and of every log-probability
    no_end:float=0.           # Taken off the score of an answer cut at its limit
    lr:float=1e-5
    warmup:int=0              # Steps in which the rate rises to `lr`
    schedule:str='constant'   # 'constant', or 'linear': falls to 0 with the last step
    grad_clip:float=1.
    mode:str='plain'          # How prompts are rendered
    stop:tuple|None=None      # Text that ends an answer; None: the next turn's heading
    max_tokens:int=8192       # In one training pass; halved when memory runs out
    seed:int=0

    def __post_init__(self):
        names = dict(algorithm=('ppo','rloo'), kl_in=('reward','loss'), mode=modes,
                     critic=('shared','separate'), schedule=('constant','linear'))
        for name,known in names.items():
            if getattr(self, name) not in known:
                raise ConfigError(unknown_name_message(name, str(getattr(self, name)), list(known)))
        for name in ('batch', 'steps', 'inner', 'minibatches', 'max_new_tokens', 'lr',
                     'temperature', 'clip'):
            if not getattr(self, name)>0:
                raise ConfigError(f'{name} is {getattr(self, name)}; give more than 0.')
        if self.batch%self.group:
            raise ConfigError(f'{self.group} answers a prompt do not divide a batch of '
                              f'{self.batch}; give a multiple.')
        if self.algorithm=='rloo' and self.group<2:
            raise ConfigError('RLOO compares answers to one prompt; give copies=2 or more.')

    def rate(self, k):
        "Learning rate of step `k`, from 0"
        up = min(1., (k+1)/self.warmup) if self.warmup else 1.
        return self.lr*up*(1-k/self.steps if self.schedule=='linear' else 1.)

    @property
    def group(self): return self.copies or (4 if self.algorithm=='rloo' else 1)
    @property
    def whitened(self): return self.algorithm=='ppo' if self.whiten is None else self.whiten


# %%
RLConfig().group, RLConfig(algorithm='rloo').group

# %%
#| hide
from fastcore.test import *

# %%
with expect_fail(ConfigError, contains="did you mean 'ppo'?"): RLConfig(algorithm='pop')
with expect_fail(ConfigError, contains='do not divide'): RLConfig('rloo', batch=30)
with expect_fail(ConfigError, contains='clip is 0'): RLConfig(clip=0)


# %% [markdown]
# ## Several objectives
#
# The papers train one preference model on helpfulness and harmlessness together. Where
# there are two, `combine_rewards` makes one score of them.

# %%
#| export
def combine_rewards(
    *scores,      # Score functions: (prompts, answers) -> one number each
    weights=None, # One a function, default 1
):
    "The weighted sum of score functions, as one"
    weights = [1.]*len(scores) if weights is None else list(weights)
    if len(weights)!=len(scores):
        raise ConfigError(f'{len(scores)} scores and {len(weights)} weights; give one '
                          'each.')
    return lambda prompts,answers: sum(w*np.asarray(f(prompts, answers), dtype=float)
                                       for w,f in zip(weights, scores))

def compute_rewards(
    f,            # Score function
    prompts:list, # Texts
    answers:list,
)->np.ndarray:    # One finite number an answer
    "Scores, refused where they cannot be learned from"
    x = np.asarray(f(prompts, answers), dtype=float)
    if x.shape!=(len(answers),):
        raise DataError(f'The reward gave {x.shape} for {len(answers)} answers; it has to '
                        'give one number each.')
    if not np.isfinite(x).all():
        i = int(np.argmin(np.isfinite(x)))
        raise DataError(f'The reward of answer {i} of a batch is {x[i]}; scores must be '
                        'finite.')
    return x


# %%
length = lambda prompts,answers: [len(a) for a in answers]
shouts = lambda prompts,answers: [a.count('!') for a in answers]
combine_rewards(length, shouts, weights=[.5, -2])(['']*2, ['Four', 'No!!'])

# %%
for x,says in ([0, np.nan], 'answer 1'), ([0], 'one number each'):
    with expect_fail(DataError, contains=says): compute_rewards(lambda p,a: x, '  ', 'ab')


# %% [markdown]
# ## Credit
#
# The score stands on the last token that was sampled. PPO subtracts the price of KL token
# by token and lets a critic tell luck from merit; RLOO takes the whole answer as one action
# and compares it with the other answers to its prompt [@ahmadian2024]. With a price inside
# the reward the estimator has to be k1: its score-function gradient is that of the KL,
# which the [page of PPO](10_ppo.ipynb) proves by enumeration.

# %%
#| export
def compute_advantages(
    c:RLConfig,
    r:Rollouts,
    score,        # [row]
    ref,          # [row, token] log-probabilities of the reference
    beta:float,   # Price of KL now
    reduce=None,  # Sums over processes
)->tuple:         # Advantages and returns, [row, token]; returns None for RLOO
    "How much better each token was than expected"
    price = beta if c.kl_in=='reward' else 0.
    rewards = ppo.token_rewards(score, r.logp, ref, r.mask, price)
    if c.algorithm=='rloo':
        total = (rewards*r.mask).sum(1)
        adv = ppo.rloo(total.view(-1, c.group)).reshape(-1, 1)*r.mask
        returns = None
    else:
        adv = ppo.gae(rewards, r.values, r.mask, c.gamma, c.lam)
        returns = (adv+r.values)*r.mask
    if c.whitened: adv = ppo.whiten(adv, r.mask, reduce=reduce)
    return adv,returns


# %% [markdown]
# ## The learner
#
# What the learner holds: the policy, a value head, for a separate critic a second trunk,
# the optimiser, and the model that training began with, which is never changed. Of a policy
# with [small matrices](../../language/47_lora.ipynb) beside its layers only those are
# trained, and a snapshot has them folded in. Dropout stays off throughout; with dropout the
# ratio of the first step would not be 1.

# %%
#| export
def adapted(model): return any(isinstance(m, LoRALinear) for m in model.modules())

class RLTrainer:
    "A policy, its critic and optimiser, and the model that training began with"
    def __init__(self, lm, reward, config, critic=None, watch=None):
        self.c = config
        self.reward = reward
        self.beta = config.kl
        self.watch = watch or {}
        self.rank,self.world = process_rank() if dist.is_initialized() else (0, 1)
        self.max_tokens = config.max_tokens
        self.first = lm.model
        own = deepcopy(lm.model)
        if not adapted(own): own.requires_grad_(True)
        self.lm = replace(lm, model=own.eval(), is_stub=False)
        self.control = None
        if config.kl_target: self.control = ppo.AdaptiveKL(config.kl, config.kl_target)
        self._critic(critic)
        self.shards = FSDPModules(**self.parts()) if self.world>1 and fsdp_enabled() else None
        learned = [self.shards] if self.shards else self.parts().values()
        self.params = [p for m in learned for p in m.parameters() if p.requires_grad]
        self.opt = torch.optim.AdamW(self.params, config.lr, weight_decay=0., fused=True)
        if config.batch//config.group<self.world:
            raise ConfigError(f'{self.world} processes share {config.batch//config.group} '
                              'prompts a step; raise batch.')

    def _critic(self, critic):
        self.trunk = self.head = None
        if self.c.algorithm=='rloo': return
        self.head = ValueHead(self.lm.model.config.get_text_config().hidden_size)
        self.head = self.head.to(self.lm.device)
        if critic is not None: self._from_scores(critic)
        elif self.c.critic=='separate':
            self.trunk = deepcopy(backbone(self.lm.model)).requires_grad_(True)

    def _from_scores(self, model):
        "Begin with a preference model: its trunk, and its head as the value head"
        model = model if isinstance(model, torch.nn.Module) else model.model
        top, = (m for m in model.modules() if getattr(m, 'out_features', 0)==1)
        self.trunk = deepcopy(backbone(model)).requires_grad_(True).to(self.lm.device)
        with torch.no_grad(): self.head.out.weight.copy_(top.weight)

    def parts(self):
        "Modules that are trained, by name"
        d = dict(policy=self.lm.model, head=self.head, trunk=self.trunk)
        return {k: m for k,m in d.items() if m is not None}

    def __repr__(self):
        n = f'{sum(p.numel() for p in self.params)/1e6:.2f} M parameters trained'
        return f'Learner({self.c.algorithm} of {self.lm.name}, {n})'


# %% [markdown]
# ### Answers and their scores
#
# Of several processes each samples and scores its own prompts. `at` tells which rows of the
# whole batch it has, so that the batch is the same however many there are.

# %%
#| export
@dataclass
class RolloutBatch:
    "Rollouts and what was found out about them"
    r:Rollouts
    at:list             # Numbers of the rows in the whole batch
    score:torch.Tensor  # [row] from the reward function, less the price of not ending
    raw:np.ndarray      # [row] as the reward function gave it
    ref:torch.Tensor    # [row, token] log-probabilities of the reference
    adv:torch.Tensor=None
    returns:torch.Tensor=None
    v:torch.Tensor=None # [row, token] of the critic, with a gradient, until it is learned from

@patch
def collect(self:RLTrainer, prompts:list, k:int)->RolloutBatch:
    "Sample and score the answers of step `k`, from 0"
    c = self.c
    seen = prompt_schedule(len(prompts), c.batch//c.group, k, c.seed)
    mine = [(j, n) for j in range(self.rank, len(seen), self.world) for n in range(c.group)]
    rows = [prompts[seen[j][0]] for j,_ in mine]
    keys = [f'{seen[j][1]}/{p["id"]}/{n}' for (j,n),p in zip(mine, rows)]
    head = None if self.trunk is not None else self.head
    r = generate_rollouts(self.lm, rows, keys, c.max_new_tokens, c.temperature, head, c.mode, c.stop,
             c.seed, batch=len(rows))
    raw = compute_rewards(self.reward, r.prompts, r.answers)
    score = raw-c.no_end*~np.array(r.ended)
    return RolloutBatch(r, [j*c.group+n for j,n in mine], torch.tensor(score).float(), raw,
                 self.reference(r))

@patch
def reference(self:RLTrainer, r:Rollouts):
    "What the first policy thinks of answers of this one"
    return self.bounded(lambda n: rollout_logprobs(self.first, r, self.c.temperature, n))

def places(
    body,        # A model below its head
    rows:list,
    starts:list,
)->torch.Tensor: # [row, token, width] states from which the answer's tokens are drawn
    "What a critic of its own has to say about answers"
    h = body(**pad_right(rows, body.device)).last_hidden_state
    n = max(len(r)-s for r,s in zip(rows, starts))
    at = torch.tensor(starts, device=h.device)[:,None]-1+torch.arange(n, device=h.device)
    return h.gather(1, at.clamp(max=h.shape[1]-1)[...,None].expand(-1, -1, h.shape[2]))

@patch
def critic(self:RLTrainer, rows, starts, parts=None):
    parts = parts or self.parts()
    return parts['head'](places(parts['trunk'], rows, starts))

@patch
def valued(self:RLTrainer, r:Rollouts):
    "What a critic of its own makes of the places where tokens were drawn"
    with torch.no_grad():
        return self.bounded(lambda n: map_in_batches(self.critic, r.rows, r.starts, n)[0])*r.mask

@patch
def look(self:RLTrainer, b:RolloutBatch):
    "Values of a critic of its own, with their gradient where one pass learns from them"
    c = self.c
    sizes = [*map(len, b.r.rows)]
    once = c.inner*c.minibatches==1 and not self.shards
    whole = lambda n: once and len(batches(sizes, n))==1
    b.v = self.bounded(lambda n: self.critic(b.r.rows, b.r.starts) if whole(n) else None)
    b.r.values = self.valued(b.r) if b.v is None else b.v.detach()*b.r.mask


# %% [markdown]
# Where memory runs out the passes are made half as long, and the work goes on. Nothing
# changes but the time: sums over passes do not depend on how rows were dealt out.

# %%
#| export
@patch
def bounded(self:RLTrainer, f):
    "Call `f` with the tokens of a pass, with half as many where memory runs out"
    while True:
        try: return f(self.max_tokens)
        except RuntimeError as e:
            tight = isinstance(e, torch.OutOfMemoryError) or 'allocate memory' in str(e)
            if not tight: raise
            if self.max_tokens<2:
                raise ModelError('Memory runs out on a single answer; lower max_new_tokens, '
                                 'or train fewer parameters.') from None
        self.max_tokens //= 2
        if torch.cuda.is_available(): torch.cuda.empty_cache()


# %% [markdown]
# ### The loss
#
# A micro-batch gives a sum, not a mean. The sums of all micro-batches are divided by the
# number of tokens of the whole batch, over all processes; a mean of means would weigh
# tokens of long answers less than tokens of short ones, and change with the split.

# %%
#| export
@patch
def read(self:RLTrainer, rows, starts, model):
    "States, log-probabilities and entropies [row, token] at the answers, and their mask"
    logp,mask,h,entropy = answer_hidden(model, rows, starts, self.c.temperature, entropy=True)
    return h,logp,entropy,mask

@patch
def value(self:RLTrainer, b:RolloutBatch, g:list, h, parts):
    "Values of some rows, with a gradient: those at hand, or new ones"
    v = b.v
    b.v = None
    if v is not None and len(g)==len(v): return v[g]
    if self.trunk is None: return parts['head'](h)
    return self.critic([b.r.rows[i] for i in g], [b.r.starts[i] for i in g], parts)

@patch
def loss(self:RLTrainer,
    b:RolloutBatch,
    g:list,    # Rows of the micro-batch
    parts=None,# Modules to learn, by name; default: those of the learner
)->tuple:      # Sum over its tokens, and sums for the log
    "PPO's loss of some rows"
    c = self.c
    r = b.r
    parts = parts or self.parts()
    rows = [r.rows[i] for i in g]
    starts = [r.starts[i] for i in g]
    h,logp,entropy,mask = self.read(rows, starts, parts['policy'])
    cut = lambda x: x[g,:mask.shape[1]]
    total,_,logs = ppo.policy_loss(logp, cut(r.logp), cut(b.adv), mask, c.clip)
    logs['entropy'] = (entropy*mask).sum()
    if c.kl_in=='loss':
        total = total+self.beta*(ppo.kl(logp, cut(b.ref), 'k2')*mask).sum()
    if self.head is not None:
        v,_,more = ppo.value_loss(self.value(b, g, h, parts), cut(r.values), cut(b.returns), mask,
                                  c.value_clip)
        total = total+c.value_weight*v
        logs['value_loss'] = v
    return total,{k: float(x.detach()) for k,x in logs.items()}

def _added(logs): return {k: sum(x[k] for x in logs if k in x) for x in logs for k in x}

@patch
def descend(self:RLTrainer,
    b:RolloutBatch,
    rows:list, # Of this process; the others have theirs
    n:float,   # Tokens in the rows of all of them
)->dict:       # Sums for the log
    "One optimiser step"
    def part(parts, g):
        loss,logs = self.loss(b, g, parts)
        return loss/n,logs|dict(loss=loss.item())
    def back(max_tokens):
        self.opt.zero_grad()
        cut = batches([len(b.r.rows[i]) for i in rows], max_tokens)
        groups = [[rows[i] for i in g] for g in cut]
        if self.shards: return _added([x for _,x in self.shards.backward(part, groups, [0])])
        logs = {}
        for g in groups:
            loss,new = part(None, g)
            loss.backward()
            logs = _added([logs, new])
        return logs
    logs = back(self.max_tokens) if self.shards else self.bounded(back)
    self.share_gradients()
    norm = full_tensors(torch.nn.utils.clip_grad_norm_(self.params, self.c.grad_clip)).item()
    self.opt.step()
    if self.shards: self.shards.gather()
    return logs|dict(grad_norm=norm)


# %% [markdown]
# ### Several processes
#
# Gradients are summed over processes, and so is everything that is reported. A batch is dealt
# out by prompt, and minibatches are drawn from the numbers of the whole batch, so that two
# processes take the same steps as one. Under FSDP each process learns
# [a part](../../language/49_fsdp.ipynb) of every module, and samples from the whole.

# %%
#| export
@patch
def total(self:RLTrainer, x):
    "Sum over processes"
    if self.world==1: return x
    t = torch.as_tensor(x, dtype=torch.float64, device=self.lm.device)
    dist.all_reduce(t)
    return t if isinstance(x, torch.Tensor) else t.item()

@patch
def share_gradients(self:RLTrainer):
    "Every process gets the sum of all gradients"
    if self.world==1 or self.shards: return
    for p in self.params:
        if p.grad is None: p.grad = torch.zeros_like(p)
    flat = torch.cat([p.grad.flatten() for p in self.params])
    dist.all_reduce(flat)
    for p,g in zip(self.params, flat.split([p.numel() for p in self.params])):
        p.grad.copy_(g.view_as(p))

@patch
def update(self:RLTrainer, b:RolloutBatch, k:int)->dict:
    "All optimiser steps on one batch"
    c = self.c
    logs = {}
    tokens = 0.
    for e in range(c.inner):
        order = np.random.default_rng([c.seed, k, e]).permutation(c.batch)
        for part in np.array_split(order, c.minibatches):
            rows = np.flatnonzero(np.isin(b.at, part)).tolist()
            n = self.total(float(b.r.mask[rows].sum()))
            new = self.descend(b, rows, n)
            logs = {x: logs.get(x, 0.)+v for x,v in new.items()}
            tokens += n
    norm = logs.pop('grad_norm')/(c.inner*c.minibatches)
    return {x: self.total(v)/tokens for x,v in logs.items()}|dict(grad_norm=norm)


# %% [markdown]
# ### One step
#
# Everything that is measured is a mean over answers (score, KL, length) or over tokens
# (entropy, share of clipped ratios). `kl` is the mean of the summed k1, in nats an answer:
# the number that the price is charged for. `kl3` estimates the same with less noise.

# %%
#| export
@patch
def step(self:RLTrainer,
    prompts:list, # Rows with `id` and `text`
    k:int,        # Number of the step, from 0
)->dict:
    "Answer, score, learn"
    c = self.c
    for g in self.opt.param_groups: g['lr'] = c.rate(k)
    b = self.collect(prompts, k)
    if self.trunk is not None: self.look(b)
    b.adv,b.returns = compute_advantages(c, b.r, b.score, b.ref, self.beta, self.total)
    row = self.measure(b) | self.update(b, k)
    if self.control: self.beta = self.control.update(row['kl'], c.batch)
    return row

@patch
def measure(self:RLTrainer, b:RolloutBatch)->dict:
    "What can be said of a batch before anything is learned from it"
    mask = b.r.mask
    n = self.total(float(len(b.r)))
    mean = lambda x: self.total(float(x.sum()))/n
    k1,k3 = ((ppo.kl(b.r.logp, b.ref, k)*mask).sum(1) for k in ('k1', 'k3'))
    score = mean(b.raw)
    ended = np.array(b.r.ended)
    var = mean((b.raw-score)**2)
    row = dict(score=score, score_sd=var**.5, reward=mean(b.score-self.beta*k1),
               kl=mean(k1), kl3=mean(k3), beta=self.beta, length=mean(mask.sum(1)), ended=mean(ended),
               different=self.different(b))
    for name,f in self.watch.items(): row[name] = mean(compute_rewards(f, b.r.prompts, b.r.answers))
    if b.returns is not None:
        off,tokens = (self.total(float(x.sum())) for x in ((b.returns-b.r.values)**2*mask, mask))
        row['value_error'] = (off/tokens)**.5
    return row

@patch
def different(self:RLTrainer, b:RolloutBatch)->int:
    "How many different answers the whole batch has"
    if self.world==1: return len(set(b.r.answers))
    every = [None]*self.world
    dist.all_gather_object(every, b.r.answers)
    return len({a for x in every for a in x})


# %% [markdown]
# What leaves the learner is a model like any other.

# %%
#| export
@patch
def whole(self:RLTrainer):
    "The policy as it is now, small matrices folded in"
    if not adapted(self.lm.model): return self.lm
    return replace(self.lm, model=merge_lora(deepcopy(self.lm.model)))


# %% [markdown]
# All that a learner has become, besides what it was made with, is in its state.

# %%
#| export
@patch
def state(self:RLTrainer)->dict:
    "What changes while a learner learns"
    parts = {k: m.state_dict() for k,m in self.parts().items()}
    return dict(parts=parts, opt=full_tensors(self.opt.state_dict()), beta=float(self.beta),
                max_tokens=self.max_tokens, random=torch.get_rng_state())

@patch
def restore(self:RLTrainer, s:dict):
    "Become what another learner was"
    for k,m in self.parts().items(): m.load_state_dict(s['parts'][k])
    self.opt.load_state_dict(s['opt'])
    if self.shards: self.shards.scatter(self.opt)
    self.beta = s['beta']
    self.max_tokens = s['max_tokens']
    if self.control: self.control.beta = self.beta
    torch.set_rng_state(s['random'].cpu())


# %% [markdown]
# ## At work
#
# A model of random weights, which writes bytes, is rewarded for every small letter. Two dozen
# steps of thirty-two answers are enough for it to notice, and to notice more than was
# meant: with twelve tokens it earns more than twelve points. Among its tokens are special
# ones that the tokenizer spells out, `<|im_start|>`, seven letters at a time. A policy
# learns the score it is given, not the one that was in mind.

# %%
#| hide
import pandas as pd
torch.set_num_threads(1)
from moral_sc.language.reward_head import build_reward_model, reward_scores
from moral_sc.language.stub_models import random_model

lm = random_model('llama')
asks = [dict(id=w, text=f'Is it {w}?') for w in 'far late cold dark soon over'.split()]
small = dict(batch=32, max_new_tokens=12, lr=1e-3, steps=16)
letters = lambda prompts,answers: [sum(c.islower() for c in a) for a in answers]
def learner(reward=letters, **kw): return RLTrainer(lm, reward, RLConfig(**small|kw))


# %%
l = learner()
log = pd.DataFrame([l.step(asks, k) for k in range(24)])
assert log.score.iloc[-1]>12
log.iloc[[0, 1, -1]][['score', 'reward', 'kl', 'entropy', 'clipped', 'ratio']].round(3)


# %% [markdown]
# At the first step the ratio is 1 and nothing is clipped, at any temperature, for both
# algorithms, with a critic of either kind, and also for a model made with dropout. In a
# second pass over the same rollouts the old probabilities stay what they were: the first
# minibatch of the first pass still meets a ratio of 1, and only then does the ratio move.

# %%
def dropped(lm, p=.5):
    m = deepcopy(lm.model)
    for x in m.modules():
        if isinstance(x, torch.nn.Dropout): x.p = p
    return replace(lm, model=m.train())

firsts = [learner(temperature=t).step(asks, 0) for t in (.7, 1., 1.3)]
firsts += [learner(**kw).step(asks, 0) for kw in (dict(algorithm='rloo'),
                                                  dict(critic='separate'))]
neox = RLTrainer(dropped(random_model('neox')), letters, RLConfig(**small))
firsts.append(neox.step(asks, 0))
test_eq([f['clipped'] for f in firsts], [0.]*6)
[f'{f["ratio"]-1:.0e}' for f in firsts]

# %%
assert max(abs(f['ratio']-1) for f in firsts)<1e-6
l = learner(inner=3, minibatches=2, lr=3e-3)
b = l.collect(asks, 0)
b.adv,b.returns = compute_advantages(l.c, b.r, b.score, b.ref, l.beta)
old = b.r.logp.clone()
first,second = (l.descend(b, list(range(32)), 1.) for _ in range(2))
test_eq(first['clipped'], 0)
assert second['clipped']>0
test_eq(b.r.logp, old)
second['clipped']/int(b.r.mask.sum())


# %% [markdown]
# The gradient does not depend on how the batch is cut into micro-batches, and neither does
# the step when memory runs out in the middle of one. A critic of its own that learns from all
# rows in one pass has its values from before the step, and in several passes computes them
# anew; the gradient is the same. Here the second pass fails twice:

# %%
def gradient(max_tokens, fail=0, **kw):
    l = learner(max_tokens=max_tokens, **kw)
    left = [fail]
    b = l.collect(asks, 0)
    if l.trunk is not None:
        l.look(b)
        test_eq(b.v is not None, max_tokens==8192)
    b.adv,b.returns = compute_advantages(l.c, b.r, b.score, b.ref, l.beta)
    loss = l.loss
    def tight(b, g, parts):
        if left[0] and len(g)>3: left[0] -= 1; raise torch.OutOfMemoryError
        return loss(b, g, parts)
    l.loss = tight
    l.descend(b, list(range(32)), float(b.r.mask.sum()))
    return torch.cat([p.grad.flatten() for p in l.params]),l.max_tokens

for critic in ('shared', 'separate'):
    whole,_ = gradient(8192, critic=critic)
    for n in (64, 500): test_close(gradient(n, critic=critic)[0], whole, 1e-5)
    again,left = gradient(8192, fail=2, critic=critic)
    test_close(again, whole, 1e-5)
left

# %% [markdown]
# With $\gamma=\lambda=1$ the advantage of a token is what the answer earned less what was
# expected there, so the score counts once, on the last sampled token, whether that is the end
# token or the limit; what the value head says behind it does not matter.

# %%
l = learner(lam=1., whiten=False, kl=0.)
b = l.collect(asks, 0)
b.r.values = torch.randn(b.r.mask.shape)
adv,returns = compute_advantages(l.c, b.r, b.score, b.ref, 0.)
test_close(adv, (b.score[:,None]-b.r.values)*b.r.mask, 1e-5)
b.r.values = torch.where(b.r.mask, b.r.values, 1e6)
test_close(compute_advantages(l.c, b.r, b.score, b.ref, 0.)[0], adv, 1e-6)
sum(b.r.ended), len(b.r)

# %% [markdown]
# A critic of its own may begin as a preference model, whose head then is the first value
# head: what it expects of an unfinished answer is the score that it would give it now.

# %%
pm = build_reward_model(lm)
l = RLTrainer(lm, letters, RLConfig(**small), critic=pm)
b = l.collect(asks, 0)
l.look(b)
r = b.r
upto = [row[:s] for row,s in zip(r.rows, r.starts)]
test_close(r.values[:,0], reward_scores(pm, upto).detach(), 1e-4)

# %% [markdown]
# The KL that is reported is the one that is charged for: score less reward is $\lambda$ times
# it. And an answer that met its limit can be made to pay.

# %%
l = learner(kl=.3, no_end=2.)
log = pd.DataFrame([l.step(asks, k) for k in range(4)])
test_close(log.score-log.reward, .3*log.kl+2*(1-log.ended), 1e-4)
log[['score', 'reward', 'kl', 'kl3', 'ended']].round(3)

# %% [markdown]
# The model that was given is not touched.

# %%
before = random_model('llama').model.parameters()
now = lm.model.parameters()
assert all(torch.equal(a, b) for a,b in zip(before, now))
l
