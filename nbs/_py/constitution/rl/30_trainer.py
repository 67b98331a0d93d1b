# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # RL trainer
#
# > `RLTrainer` generates rollouts, computes advantages and updates the policy by PPO or RLOO.

# %%
#| default_exp constitution.rl.trainer

# %% [markdown]
# The reward of an answer is the score of the preference model, less a KL penalty that keeps the
# policy near the reference model $\pi_0$ with which training began [@bai2022hh]:
#
# $$r = r_{PM} - \lambda\,\mathrm{KL}(\pi\,\|\,\pi_0).$$
#
# The page on [PPO](10_ppo.ipynb) defines advantages and losses as functions of tensors. This page
# applies them to a language model, and to batches that do not fit into one forward pass.

# %%
#| export
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np, torch
import torch.distributed as dist
from fastcore.basics import patch

from moral_sc.constitution.rl import ppo
from moral_sc.constitution.rl.rollouts import (
    Rollouts, generate_rollouts, map_in_batches, prompt_schedule, rollout_logprobs)
from moral_sc.foundation.arguments import checked
from moral_sc.foundation.errors import ConfigError, DataError, unknown_name_message
from moral_sc.language.chat import modes
from moral_sc.language.engine.batching import batches
from moral_sc.language.engine.oom import halve_on_oom
from moral_sc.language.fsdp import FSDPModules, fsdp_enabled, full_tensors
from moral_sc.language.lora import has_lora, merge_lora
from moral_sc.language.optimization import (
    build_optimizer, clipped_step, gather_objects, get_random_state, learning_rate,
    reduce_gradients, schedules, set_random_state)
from moral_sc.language.reward_head import ValueHead, answer_outputs, answer_states, backbone


# %% [markdown]
# ## Configuration
#
# Where the papers give a value, it is the default: $\lambda=0.001$, a clip range of 0.2,
# $\gamma=1$, one PPO epoch a batch, 128 new tokens and no entropy bonus. They do not give the batch
# size, $\lambda_{GAE}$, the optimizer, the absolute learning rate, or whether policy and critic
# share a backbone; these defaults are ours. The names are those of TRL.

# %%
#| export
@checked
@dataclass(frozen=True)
class RLConfig:
    "Options of RL training"
    algorithm:str='ppo'       # 'ppo', or 'rloo': several answers a prompt, no critic
    batch:int=32              # Answers a step
    steps:int=100             # Number of steps
    num_generations:int|None=None # Answers to each prompt; None: 1 for PPO, 4 for RLOO
    kl_coef:float=.001        # Reward points a nat of KL from the reference
    kl_placement:str='reward' # 'reward': k1 in each token's reward; 'loss': k2 in the loss
    kl_target:float|None=None # Nats; adapts `kl_coef` by `ppo.AdaptiveKL`
    cliprange:float=.2        # Of the probability ratio
    cliprange_value:float|None=None # Of the value; None: no clipping
    gamma:float=1.            # Discount
    lam:float=.95             # Of generalised advantage estimation
    whiten_advantages:bool|None=None # Normalise to mean 0, variance 1; None: for PPO only
    num_ppo_epochs:int=1      # Epochs over each batch, K in the papers
    num_mini_batches:int=1    # Optimizer steps an epoch
    critic:str='shared'       # 'shared': a head on the policy's backbone; 'separate': own backbone
    vf_coef:float=.1          # Weight of the value loss
    max_new_tokens:int=128
    temperature:float=1.      # Of sampling and of all log-probabilities
    missing_eos_penalty:float=0. # Subtracted from the score of an answer cut at its limit
    lr:float=1e-5
    warmup:int=0              # Steps of linear warmup
    schedule:str='constant'   # 'constant', or 'linear' or 'cosine' decay to 0
    max_grad_norm:float=1.
    mode:str='plain'          # Format of prompts
    stop:tuple|None=None      # Strings that end an answer; None: the heading of the next turn
    max_tokens:int=8192       # In one micro-batch; halved when memory runs out
    seed:int=0

    def __post_init__(self):
        names = dict(algorithm=('ppo', 'rloo'), kl_placement=('reward', 'loss'), mode=modes,
                     critic=('shared', 'separate'), schedule=schedules)
        for name,known in names.items():
            if getattr(self, name) not in known:
                raise ConfigError(unknown_name_message(name, str(getattr(self, name)), list(known)))
        for name in ('batch', 'steps', 'num_ppo_epochs', 'num_mini_batches', 'max_new_tokens',
                     'lr', 'temperature', 'cliprange', 'cliprange_value', 'kl_target',
                     'num_generations', 'max_tokens'):
            x = getattr(self, name)
            if x is not None and not x>0: raise ConfigError(f'{name} is {x}; give more than 0.')
        for name in ('kl_coef', 'gamma', 'lam', 'vf_coef', 'warmup', 'max_grad_norm', 'seed'):
            x = getattr(self, name)
            if x<0: raise ConfigError(f'{name} is {x}; give 0 or more.')
            if name in ('gamma', 'lam') and x>1:
                raise ConfigError(f'{name} is {x}; give 1 or less.')
        if self.batch%self.group_size:
            raise ConfigError(f'batch is {self.batch}, with {self.group_size} answers to each '
                              f'prompt; give a multiple of {self.group_size}.')
        if self.algorithm=='rloo' and self.group_size<2:
            raise ConfigError('RLOO compares answers to one prompt; give num_generations=2 or '
                              'more.')

    @property
    def group_size(self): return self.num_generations or (4 if self.algorithm=='rloo' else 1)
    @property
    def prompts_per_step(self): return self.batch//self.group_size
    @property
    def whiten(self):
        return self.algorithm=='ppo' if self.whiten_advantages is None else self.whiten_advantages


# %%
RLConfig().group_size, RLConfig(algorithm='rloo').group_size

# %%
#| hide
from fastcore.test import *

# %%
with expect_fail(ConfigError, contains="did you mean 'ppo'?"): RLConfig(algorithm='pop')
with expect_fail(ConfigError, contains='a multiple of 4'): RLConfig('rloo', batch=30)
faults = dict(cliprange=0, kl_coef=-1, gamma=1.5, lam=-.1, num_generations=0, seed=-1, kl_target=0,
              max_tokens=0, lr='x', batch=8.5, learning_rate=1, num_train_epochs=1)
for name,value in faults.items():
    with expect_fail(ConfigError, contains=name): RLConfig(**{name: value})


# %% [markdown]
# ## Reward functions
#
# A reward function maps prompts and answers to one number each. The papers train one preference
# model on helpfulness and harmlessness together; `combine_rewards` adds several reward functions.

# %%
#| export
def combine_rewards(
    *functions,   # Reward functions: (prompts, answers) -> one number each
    weights=None, # One a function; default: 1
):
    "Return the weighted sum of reward functions as one function"
    weights = [1.]*len(functions) if weights is None else list(weights)
    if len(weights)!=len(functions):
        raise ConfigError(f'{len(functions)} reward functions have {len(weights)} weights; give '
                          'one each.')
    return lambda prompts,answers: sum(w*np.asarray(f(prompts, answers), dtype=float)
                                       for w,f in zip(weights, functions))

def compute_rewards(
    function,     # Reward function
    prompts:list, # Texts
    answers:list,
    name='The reward function', # In error messages
)->np.ndarray:    # [answer], finite
    "Call a reward function and check its result"
    result = function(prompts, answers)
    result = result.detach().cpu() if isinstance(result, torch.Tensor) else result
    try: x = np.asarray(result, dtype=float)
    except (TypeError, ValueError):
        raise DataError(f'{name} returned {result!r:.60}; it has to return one number for each '
                        'answer.') from None
    if x.shape!=(len(answers),):
        given = f'{result!r:.60}' if x.ndim==0 else f'shape {x.shape}'
        raise DataError(f'{name} returned {given} for {len(answers)} answers; it has to return one '
                        'number for each.')
    if not np.isfinite(x).all():
        i = int(np.argmin(np.isfinite(x)))
        raise DataError(f'The reward of answer {i} of the batch is {x[i]}; rewards have to be '
                        'finite.')
    return x


# %%
length = lambda prompts,answers: [len(a) for a in answers]
exclamations = lambda prompts,answers: [a.count('!') for a in answers]
combine_rewards(length, exclamations, weights=[.5, -2])(['']*2, ['Four', 'No!!'])

# %%
faults = [([0, np.nan], 'answer 1'), ([0], 'returned shape (1,) for 2 answers'),
          (None, 'returned None'),
          (1., 'returned 1.0 for 2 answers'), (['a', 'b'], "returned ['a', 'b']"),
          ([[0], [1, 2]], 'one number for each')]
for x,message in faults:
    with expect_fail(DataError, contains=message): compute_rewards(lambda p,a: x, '  ', 'ab')
test_eq(compute_rewards(lambda p,a: torch.ones(2, requires_grad=True), '  ', 'ab'), np.ones(2))


# %% [markdown]
# ## Advantages
#
# The score is the reward of the last sampled token. PPO subtracts the KL penalty token by token
# and uses a critic as the baseline. RLOO treats the whole answer as one action, and its baseline is
# the mean of the other answers to the same prompt [@ahmadian2024]. With the KL penalty in the
# reward the estimator has to be k1: its score-function gradient is the gradient of the KL, as the
# [page on PPO](10_ppo.ipynb) proves by enumeration.

# %%
#| export
def compute_advantages(
    c:RLConfig,
    r:Rollouts,
    scores,        # [row]
    ref_logp,      # [row, token] log-probabilities of the reference model
    kl_coef:float, # Current coefficient
    reduce=None,   # Sums a tensor over ranks
)->tuple:          # Advantages and returns, [row, token]; returns are None for RLOO
    "Compute the advantage of each token"
    coef = kl_coef if c.kl_placement=='reward' else 0.
    rewards = ppo.token_rewards(scores, r.logp, ref_logp, r.mask, coef)
    if c.algorithm=='rloo':
        total = (rewards*r.mask).sum(1)
        advantages = ppo.rloo(total.view(-1, c.group_size)).reshape(-1, 1)*r.mask
        returns = None
    else:
        advantages = ppo.gae(rewards, r.values, r.mask, c.gamma, c.lam)
        returns = (advantages+r.values)*r.mask
    if c.whiten: advantages = ppo.whiten(advantages, r.mask, reduce=reduce)
    return advantages,returns


# %% [markdown]
# ## The trainer
#
# The trainer holds the policy, a value head, the backbone of a separate critic, the optimizer and
# the reference model, which never changes. A policy with [LoRA](../../language/47_lora.ipynb)
# trains only its adapters. Dropout stays off, because with dropout the probability ratio of the
# first step would not be 1.

# %%
#| export
class RLTrainer:
    "A policy with its critic, optimizer and reference model"
    def __init__(self, lm, reward, config, value_model=None, watch=None):
        self.config = config
        self.reward = reward
        self.watch = watch or {}
        self.kl_coef = config.kl_coef
        self.max_tokens = config.max_tokens
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.reference = lm.model
        policy = deepcopy(lm.model)
        if not has_lora(policy): policy.requires_grad_(True)
        self.lm = replace(lm, model=policy.eval(), is_stub=False)
        self.adaptive_kl = None
        if config.kl_target: self.adaptive_kl = ppo.AdaptiveKL(config.kl_coef, config.kl_target)
        self._init_critic(value_model)
        self.fsdp = FSDPModules(**self.modules()) if self.world>1 and fsdp_enabled() else None
        trained = [self.fsdp] if self.fsdp else self.modules().values()
        self.params = [p for m in trained for p in m.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(self.params, config.lr)
        if config.prompts_per_step<self.world:
            raise ConfigError(f'{self.world} ranks share {config.prompts_per_step} prompts a '
                              'step; raise batch.')

    def _init_critic(self, value_model):
        self.critic = None
        self.value_head = None
        if self.config.algorithm=='rloo': return
        head = ValueHead(self.lm.model.config.get_text_config().hidden_size)
        self.value_head = head.to(self.lm.device)
        if value_model is not None: self._init_critic_from(value_model)
        elif self.config.critic=='separate':
            self.critic = deepcopy(backbone(self.lm.model)).requires_grad_(True)

    def _init_critic_from(self, value_model):
        "Initialise backbone and value head of the critic from a preference model"
        model = value_model if isinstance(value_model, torch.nn.Module) else value_model.model
        head, = (m for m in model.modules() if getattr(m, 'out_features', 0)==1)
        self.critic = deepcopy(backbone(model)).requires_grad_(True).to(self.lm.device)
        with torch.no_grad(): self.value_head.out.weight.copy_(head.weight)

    def modules(self):
        "Return the trained modules by name"
        d = dict(policy=self.lm.model, value_head=self.value_head, critic=self.critic)
        return {k: m for k,m in d.items() if m is not None}

    def computing_modules(self):
        "Return all modules that compute in a step, for the engine"
        shards = [self.fsdp.shards] if self.fsdp else []
        return [self.reference, *self.modules().values(), *shards]

    def merged_policy(self):
        "Return the current policy with its LoRA adapters merged"
        if not has_lora(self.lm.model): return self.lm
        return replace(self.lm, model=merge_lora(deepcopy(self.lm.model)))

    def __repr__(self):
        n = f'{sum(p.numel() for p in self.params)/1e6:.2f} M trained parameters'
        return f'RLTrainer({self.config.algorithm} of {self.lm.name}, {n})'


# %% [markdown]
# ### Rollouts and their scores
#
# Each rank generates and scores the answers to its own prompts. `indices` are the row numbers in
# the batch of all ranks, so the batch is the same for any number of ranks.

# %%
#| export
@dataclass
class RolloutBatch:
    "Rollouts of one step with their scores and advantages"
    rollouts:Rollouts
    indices:list            # Row numbers in the batch of all ranks
    raw_scores:np.ndarray   # [row] from the reward function
    scores:torch.Tensor     # [row] raw scores less the penalty for a missing end token
    ref_logp:torch.Tensor   # [row, token] log-probabilities of the reference model
    advantages:torch.Tensor=None
    returns:torch.Tensor=None
    values_graph:torch.Tensor=None # [row, token] of a separate critic, for one backward pass

@patch
def collect_rollouts(self:RLTrainer, prompts:list, k:int)->RolloutBatch:
    "Generate and score the answers of step `k`, counted from 0"
    c = self.config
    schedule = prompt_schedule(len(prompts), c.prompts_per_step, k, c.seed)
    share = [(j, n) for j in range(self.rank, len(schedule), self.world)
             for n in range(c.group_size)]
    rows = [prompts[schedule[j][0]] for j,_ in share]
    keys = [f'{schedule[j][1]}/{p["id"]}/{n}' for (j,n),p in zip(share, rows)]
    head = self.value_head if self.critic is None else None
    r = generate_rollouts(self.lm, rows, keys, c.max_new_tokens, c.temperature, head, c.mode,
                          c.stop, c.seed, batch=len(rows))
    raw = compute_rewards(self.reward, r.prompts, r.answers)
    scores = torch.tensor(raw-c.missing_eos_penalty*~np.array(r.ended)).float()
    reference = lambda n: rollout_logprobs(self.reference, r, c.temperature, n)
    return RolloutBatch(r, [j*c.group_size+n for j,n in share], raw, scores,
                        self.run_within_memory(reference))

@patch
def run_within_memory(self:RLTrainer, run):
    "Call `run(max_tokens)`, with half the tokens when memory runs out"
    advice = 'lower max_new_tokens, or train fewer parameters'
    result,self.max_tokens = halve_on_oom(run, self.max_tokens, advice=advice)
    return result


# %% [markdown]
# ### Values of a separate critic
#
# A shared critic computes its values during generation. A separate critic needs a forward pass of
# its own. If the batch is used for one optimizer step and fits into one forward pass, the graph of
# that pass is kept and serves the backward pass as well.

# %%
#| export
@patch
def forward_critic(self:RLTrainer, rows, starts, modules=None):
    "Return the values of a separate critic, [row, token], with gradient"
    modules = modules or self.modules()
    return modules['value_head'](answer_states(modules['critic'], rows, starts))

@patch
def critic_values(self:RLTrainer,
    r:Rollouts,
    keep_graph:bool=True, # Where one forward pass and one optimizer step use the batch
)->tuple:                 # Values [row, token] without gradient; with their graph, or None
    "Compute the values of a separate critic"
    c = self.config
    lengths = [*map(len, r.rows)]
    keep_graph = keep_graph and c.num_ppo_epochs*c.num_mini_batches==1 and not self.fsdp
    def forward(max_tokens):
        if keep_graph and len(batches(lengths, max_tokens))==1:
            graph = self.forward_critic(r.rows, r.starts)
            return graph.detach(),graph
        with torch.no_grad():
            return map_in_batches(self.forward_critic, r.rows, r.starts, max_tokens)[0],None
    values,graph = self.run_within_memory(forward)
    return values*r.mask,graph


# %% [markdown]
# ### The loss
#
# A micro-batch gives a sum, not a mean. The sums are divided by the number of tokens in the
# mini-batch of all ranks. A mean of means would weight tokens of long answers less than tokens of
# short ones, and would change with the division into micro-batches.

# %%
#| export
@patch
def loss(self:RLTrainer,
    b:RolloutBatch,
    g:list,       # Row numbers of the micro-batch
    modules=None, # Trained modules by name; default: those of the trainer
    values=None,  # [row, token] of all rows, with gradient; default: computed here
)->tuple:         # Sum over the tokens of the micro-batch, sums to log
    "Compute the loss of a micro-batch"
    c = self.config
    r = b.rollouts
    modules = modules or self.modules()
    rows = [r.rows[i] for i in g]
    starts = [r.starts[i] for i in g]
    logp,mask,h,entropy = answer_outputs(modules['policy'], rows, starts, c.temperature,
                                         entropy=True)
    crop = lambda x: x[g,:mask.shape[1]]
    total,_,logs = ppo.policy_loss(logp, crop(r.logp), crop(b.advantages), mask, c.cliprange)
    logs['entropy'] = (entropy*mask).sum()
    if c.kl_placement=='loss':
        total = total+self.kl_coef*(ppo.kl(logp, crop(b.ref_logp), 'k2')*mask).sum()
    if self.value_head is not None:
        if values is not None: values = values[g]
        elif self.critic is None: values = modules['value_head'](h)
        else: values = self.forward_critic(rows, starts, modules)
        logs['value_loss'],*_ = ppo.value_loss(values, crop(r.values), crop(b.returns), mask,
                                               c.cliprange_value)
        total = total+c.vf_coef*logs['value_loss']
    return total,{k: float(x.detach()) for k,x in logs.items()}

def _add_logs(logs): return {k: sum(x[k] for x in logs if k in x) for x in logs for k in x}

@patch
def backward(self:RLTrainer,
    b:RolloutBatch,
    rows:list, # Rows of this rank in the mini-batch
    n:float,   # Tokens in the mini-batch of all ranks
)->dict:       # Sums to log
    "Compute the gradient of a mini-batch, summed over all ranks"
    def loss(modules, g, values=None):
        total,logs = self.loss(b, g, modules, values)
        return total/n,logs|dict(loss=total.item())
    def micro_batches(max_tokens):
        groups = batches([len(b.rollouts.rows[i]) for i in rows], max_tokens)
        return [[rows[i] for i in g] for g in groups]
    def accumulate(max_tokens):
        self.optimizer.zero_grad()
        groups = micro_batches(max_tokens)
        values = b.values_graph if len(groups)==1 else None
        b.values_graph = None # A graph serves one backward pass
        logs = []
        for g in groups:
            total,sums = loss(None, g, values)
            total.backward()
            logs.append(sums)
        return _add_logs(logs)
    if self.fsdp:
        groups = micro_batches(self.max_tokens)
        return _add_logs([sums for _,sums in self.fsdp.backward(loss, groups, [0])])
    logs = self.run_within_memory(accumulate)
    reduce_gradients(self.params)
    return logs

@patch
def optimizer_step(self:RLTrainer, b:RolloutBatch, rows:list, n:float)->dict:
    "Update the trained modules by a mini-batch; return the sums to log"
    logs = self.backward(b, rows, n)
    norm = clipped_step(self.optimizer, max_grad_norm=self.config.max_grad_norm)
    if self.fsdp: self.fsdp.gather()
    return logs|dict(grad_norm=norm)


# %% [markdown]
# ### Several ranks
#
# Gradients and logged numbers are summed over ranks. Prompts are divided among ranks, and
# mini-batches are drawn from the row numbers of the batch of all ranks, so two ranks take the same
# steps as one process. With [FSDP](../../language/49_fsdp.ipynb) each rank trains a shard of every
# module and generates with the full weights.

# %%
#| export
@patch
def sum_over_ranks(self:RLTrainer, x):
    "Sum a number or tensor over all ranks"
    if self.world==1: return x
    t = torch.as_tensor(x, dtype=torch.float64, device=self.lm.device)
    dist.all_reduce(t)
    return t if isinstance(x, torch.Tensor) else t.item()

@patch
def train_on_batch(self:RLTrainer, b:RolloutBatch, k:int)->dict:
    "Take all optimizer steps of one batch; return means to log"
    c = self.config
    logs = []
    tokens = 0.
    for epoch in range(c.num_ppo_epochs):
        order = np.random.default_rng([c.seed, k, epoch]).permutation(c.batch)
        for mini_batch in np.array_split(order, c.num_mini_batches):
            rows = np.flatnonzero(np.isin(b.indices, mini_batch)).tolist()
            n = self.sum_over_ranks(float(b.rollouts.mask[rows].sum()))
            logs.append(self.optimizer_step(b, rows, n))
            tokens += n
    sums = _add_logs(logs)
    norm = sums.pop('grad_norm')/len(logs)
    return {x: self.sum_over_ranks(v)/tokens for x,v in sums.items()}|dict(grad_norm=norm)


# %% [markdown]
# ### One training step
#
# Score, KL and length are means over answers; entropy, clip fraction and ratio are means over
# tokens. `kl` is the mean over answers of the summed k1, in nats, to which the KL coefficient
# applies. `kl3` estimates the same quantity with less noise.

# %%
#| export
@patch
def train_step(self:RLTrainer,
    prompts:list, # Rows with `id` and `prompt`
    k:int,        # Number of the step, from 0
)->dict:          # Numbers to log
    "Generate rollouts, compute advantages and update the policy"
    c = self.config
    lr = learning_rate(k, c.steps, c.lr, c.warmup, c.schedule)
    for group in self.optimizer.param_groups: group['lr'] = lr
    b = self.collect_rollouts(prompts, k)
    if self.critic is not None: b.rollouts.values,b.values_graph = self.critic_values(b.rollouts)
    b.advantages,b.returns = compute_advantages(c, b.rollouts, b.scores, b.ref_logp, self.kl_coef,
                                                self.sum_over_ranks)
    row = self.batch_metrics(b) | self.train_on_batch(b, k)
    if self.adaptive_kl: self.kl_coef = self.adaptive_kl.update(row['kl'], c.batch)
    return row

@patch
def batch_metrics(self:RLTrainer, b:RolloutBatch)->dict:
    "Compute the metrics of a batch before the update"
    r = b.rollouts
    total = lambda x: self.sum_over_ranks(float(x.sum()))
    n = self.sum_over_ranks(float(len(r)))
    mean = lambda x: total(x)/n
    k1,k3 = ((ppo.kl(r.logp, b.ref_logp, k)*r.mask).sum(1) for k in ('k1', 'k3'))
    score = mean(b.raw_scores)
    variance = mean((b.raw_scores-score)**2)
    row = dict(score=score, score_sd=variance**.5, reward=mean(b.scores-self.kl_coef*k1),
               kl=mean(k1), kl3=mean(k3), kl_coef=self.kl_coef, length=mean(r.mask.sum(1)),
               ended=mean(np.array(r.ended)),
               unique_answers=len({a for answers in gather_objects(r.answers) for a in answers}))
    for name,f in self.watch.items(): row[name] = mean(compute_rewards(f, r.prompts, r.answers))
    if b.returns is not None:
        squares = total((b.returns-r.values)**2*r.mask)
        row['value_error'] = (squares/total(r.mask))**.5
    return row


# %% [markdown]
# ### State

# %%
#| export
@patch
def state_dict(self:RLTrainer)->dict:
    "Return the content of a checkpoint, which is the same with and without FSDP"
    modules = {k: m.state_dict() for k,m in self.modules().items()}
    return dict(modules=modules, optimizer=full_tensors(self.optimizer.state_dict()),
                kl_coef=float(self.kl_coef), max_tokens=self.max_tokens, random=get_random_state())

@patch
def load_state_dict(self:RLTrainer, state:dict):
    "Load modules, optimizer, KL coefficient and random state from a checkpoint"
    for k,m in self.modules().items(): m.load_state_dict(state['modules'][k])
    self.optimizer.load_state_dict(state['optimizer'])
    if self.fsdp: self.fsdp.scatter(self.optimizer)
    self.kl_coef = state['kl_coef']
    self.max_tokens = state['max_tokens']
    if self.adaptive_kl: self.adaptive_kl.kl_coef = self.kl_coef
    set_random_state(state['random'])


# %% [markdown]
# ## Example
#
# A model with random weights, whose tokens are bytes, is rewarded for each lower-case letter. Two
# dozen steps of thirty-two answers raise its score. With twelve tokens it earns more than twelve
# points: it has special tokens such as `<|im_start|>`, which the tokenizer decodes to several
# letters. A policy maximises the given reward, not the intended one.

# %%
#| hide
import pandas as pd
torch.set_num_threads(1)
from moral_sc.language.reward_head import build_reward_model, reward_scores
from moral_sc.language.stub_models import random_model

lm = random_model('llama')
prompts = [dict(id=w, prompt=f'Is it {w}?') for w in 'far late cold dark soon over'.split()]
small = dict(batch=32, max_new_tokens=12, lr=1e-3, steps=16)
letters = lambda prompts,answers: [sum(c.islower() for c in a) for a in answers]
def trainer(reward=letters, **kw): return RLTrainer(lm, reward, RLConfig(**small|kw))


# %%
t = trainer(steps=24)
log = pd.DataFrame([t.train_step(prompts, k) for k in range(24)])
assert log.score.iloc[-1]>12
log.iloc[[0, 1, -1]][['score', 'reward', 'kl', 'entropy', 'clip_fraction', 'ratio']].round(3)


# %% [markdown]
# ## Ratio at the first step
#
# At the first step the ratio is 1 and nothing is clipped: at any temperature, for both algorithms,
# with either critic, and for a model with dropout. In further epochs over the same rollouts the old
# log-probabilities stay fixed: the ratio is 1 in the first mini-batch of the first epoch and
# moves afterwards.

# %%
def with_dropout(lm, p=.5):
    m = deepcopy(lm.model)
    for x in m.modules():
        if isinstance(x, torch.nn.Dropout): x.p = p
    return replace(lm, model=m.train())

logs = [trainer(temperature=t).train_step(prompts, 0) for t in (.7, 1., 1.3)]
logs += [trainer(**kw).train_step(prompts, 0) for kw in (dict(algorithm='rloo'),
                                                         dict(critic='separate'))]
neox = RLTrainer(with_dropout(random_model('neox')), letters, RLConfig(**small))
logs.append(neox.train_step(prompts, 0))
test_eq([log['clip_fraction'] for log in logs], [0.]*6)
[f'{log["ratio"]-1:.0e}' for log in logs]

# %%
assert max(abs(log['ratio']-1) for log in logs)<1e-6
t = trainer(num_ppo_epochs=3, num_mini_batches=2, lr=3e-3)
b = t.collect_rollouts(prompts, 0)
r = b.rollouts
b.advantages,b.returns = compute_advantages(t.config, r, b.scores, b.ref_logp, t.kl_coef)
old = r.logp.clone()
first,second = (t.optimizer_step(b, list(range(32)), 1.) for _ in range(2))
test_eq(first['clip_fraction'], 0)
assert second['clip_fraction']>0
test_eq(r.logp, old)
second['clip_fraction']/int(r.mask.sum())


# %% [markdown]
# ## Gradient of micro-batches
#
# The gradient does not depend on the division into micro-batches, nor on an out-of-memory error
# in the middle of a step. A separate critic that trains on all rows in one forward pass keeps the
# graph of its values; with several micro-batches it computes them again. The gradient is the same.
# Here the second forward pass fails twice:

# %%
def gradient(max_tokens, failures=0, **kw):
    t = trainer(max_tokens=max_tokens, **kw)
    left = [failures]
    b = t.collect_rollouts(prompts, 0)
    r = b.rollouts
    if t.critic is not None:
        r.values,b.values_graph = t.critic_values(r)
        test_eq(b.values_graph is not None, max_tokens==8192)
    b.advantages,b.returns = compute_advantages(t.config, r, b.scores, b.ref_logp, t.kl_coef)
    loss = t.loss
    def failing_loss(b, g, *args):
        if left[0] and len(g)>3: left[0] -= 1; raise torch.OutOfMemoryError
        return loss(b, g, *args)
    t.loss = failing_loss
    t.backward(b, list(range(32)), float(r.mask.sum()))
    return torch.cat([p.grad.flatten() for p in t.params]),t.max_tokens

for critic in ('shared', 'separate'):
    whole,_ = gradient(8192, critic=critic)
    scale = whole.norm().clamp(min=1.) # As clipping to a norm of 1 would
    for n in (64, 500): test_close(gradient(n, critic=critic)[0]/scale, whole/scale, 1e-5)
    repeated,max_tokens = gradient(8192, failures=2, critic=critic)
    test_close(repeated/scale, whole/scale, 1e-5)
max_tokens

# %% [markdown]
# ## Advantages without discount
#
# With $\gamma=\lambda=1$ the advantage of a token is the score less the value. The score counts
# once, on the last sampled token, whether that is the end token or the limit; values after it have
# no effect.

# %%
t = trainer(lam=1., whiten_advantages=False, kl_coef=0.)
b = t.collect_rollouts(prompts, 0)
r = b.rollouts
r.values = torch.randn(r.mask.shape)
advantages,returns = compute_advantages(t.config, r, b.scores, b.ref_logp, 0.)
test_close(advantages, (b.scores[:,None]-r.values)*r.mask, 1e-5)
r.values = torch.where(r.mask, r.values, 1e6)
test_close(compute_advantages(t.config, r, b.scores, b.ref_logp, 0.)[0], advantages, 1e-6)
sum(r.ended), len(r)

# %% [markdown]
# ## A critic from a preference model
#
# A separate critic can be initialised from a preference model, whose head becomes the value head.
# Its first value of an unfinished answer is the score that the preference model would give to it.

# %%
pm = build_reward_model(lm)
t = RLTrainer(lm, letters, RLConfig(**small), value_model=pm)
r = t.collect_rollouts(prompts, 0).rollouts
values,_ = t.critic_values(r)
prefixes = [row[:s] for row,s in zip(r.rows, r.starts)]
test_close(values[:,0], reward_scores(pm, prefixes).detach(), 1e-4)

# %% [markdown]
# ## Reported KL
#
# The reported `kl` is the one that enters the reward: score less reward is $\lambda$ times `kl`,
# and the penalty for answers that were cut at their limit.

# %%
t = trainer(kl_coef=.3, missing_eos_penalty=2.)
log = pd.DataFrame([t.train_step(prompts, k) for k in range(4)])
test_close(log.score-log.reward, .3*log.kl+2*(1-log.ended), 1e-4)
log[['score', 'reward', 'kl', 'kl3', 'ended']].round(3)

# %% [markdown]
# The given model is unchanged.

# %%
pairs = zip(random_model('llama').model.parameters(), lm.model.parameters())
assert all(torch.equal(a, b) for a,b in pairs)
t
