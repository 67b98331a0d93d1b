# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # PPO and RLOO
#
# > Advantages, losses and KL estimators are functions of tensors, without a model.

# %%
#| default_exp constitution.rl.ppo

# %% [markdown]
# Proximal policy optimization [@schulman2017ppo] consists of a dozen short formulas, and nearly
# all public implementations for language models have had one of them wrong. Here each formula is a
# function of tensors that can be compared with its definition.

# %%
#| export
import torch
from moral_sc.foundation.errors import ConfigError, unknown_name_message

# %%
#| hide
import numpy as np
from fastcore.test import *


# %% [markdown]
# All tensors are `[sequence, token]` with a mask that is true on tokens. Numbers after the end of
# a sequence have no effect.
#
# ## KL estimators
#
# From one sample the KL of the policy from the reference has three estimators:
# $k_1=\log\pi-\log\pi_0$, $k_2=k_1^2/2$, and $k_3=e^{-k_1}-1+k_1$. The mean of the first and of the
# third is the KL. In the *reward*, $k_1$ is correct. In the *loss*, the gradient of $k_1$ is zero
# on average, the gradient of $k_2$ is that of the KL, and the gradient of $k_3$ is that of the
# reverse KL.

# %%
#| export
def kl(
    logp,          # [sequence, token] of the policy, natural log
    ref,           # The same of the reference
    kind:str='k1', # 'k1', 'k2' or 'k3'
)->torch.Tensor:
    "Estimate the KL of a policy from a reference, at tokens sampled from the policy"
    d = logp-ref
    if kind=='k1': return d
    if kind=='k2': return d.square()/2
    if kind=='k3': return torch.expm1(-d)+d
    raise ConfigError(unknown_name_message('estimator', kind, ['k1', 'k2', 'k3']))


# %%
p = torch.tensor([.1,.2,.3,.4])
q = torch.tensor([.4,.3,.2,.1])
{k: (p*kl(p.log(), q.log(), k)).sum().item() for k in ('k1', 'k2', 'k3')}

# %%
test_close([(p*kl(p.log(), q.log(), k)).sum().item() for k in ('k1', 'k2', 'k3')],
           [.4564348, .5215536, .4564348], 1e-6)
def mean_gradient(kind):
    z = p.log().requires_grad_()
    lp = z.log_softmax(-1)
    (p*kl(lp, q.log(), kind)).sum().backward() # p: the sampling distribution, without gradient
    return z.grad

test_close(mean_gradient('k1'), torch.zeros(4), 1e-6)
test_close(mean_gradient('k2'), torch.tensor([-.184273, -.172380, -.015291, .371944]), 1e-5)
test_close(mean_gradient('k3'), p-q, 1e-6)


# %% [markdown]
# ## Rewards and advantages
#
# The score of an answer is the reward of its last token. Every token has a KL penalty.

# %%
#| export
def token_rewards(
    score,      # [sequence]
    logp, ref,  # [sequence, token]
    mask,       # [sequence, token] true on tokens
    kl_coef:float,
)->torch.Tensor:
    "Return the reward of each token: the score on the last, less kl_coef * k1 on all"
    r = -kl_coef*kl(logp, ref)*mask
    last = mask.long().cumsum(1).argmax(1)
    return r.index_put((torch.arange(len(r), device=r.device), last), score.to(r), accumulate=True)


# %% [markdown]
# Generalised advantage estimation [@schulman2016gae] sums the temporal-difference errors that
# follow a token, $A_t=\sum_k(\gamma\lambda)^k\delta_{t+k}$ with
# $\delta_t=r_t+\gamma V_{t+1}-V_t$. The value after the last token is zero.

# %%
#| export
def gae(
    rewards, values, mask,  # [sequence, token]
    gamma:float=1.,
    lam:float=.95,
)->torch.Tensor:            # [sequence, token]
    "Return the generalised advantage estimate of each token"
    values,rewards = (torch.where(mask, x, 0) for x in (values, rewards))
    next_values = torch.cat([values[:,1:], torch.zeros_like(values[:,:1])], 1)
    delta = rewards+gamma*next_values-values
    adv = torch.zeros_like(values)
    total = 0
    for t in reversed(range(values.shape[1])):
        total = (delta[:,t]+gamma*lam*total)*mask[:,t]
        adv[:,t] = total
    return adv


# %%
one = torch.ones(1, 3, dtype=torch.bool)
adv = gae(torch.tensor([[0., 0, 1]]), torch.tensor([[.5, .4, .3]]), one)
test_close(adv, torch.tensor([[.43675, .565, .7]]), 1e-6)
adv


# %% [markdown]
# The reference is the definition, a sum over all later errors for every token, on answers of
# unequal length in double precision. Numbers after the end are arbitrary.

# %%
def gae_reference(r, v, n, gamma, lam): # One answer of n tokens
    v = [*v[:n].tolist(), 0.]
    delta = [float(r[t])+gamma*v[t+1]-v[t] for t in range(n)]
    return [sum((gamma*lam)**(k-t)*delta[k] for k in range(t, n)) for t in range(n)]

rng = torch.Generator().manual_seed(0)
r,v = torch.randn(2, 6, 9, dtype=torch.float64, generator=rng)
n = torch.tensor([9, 1, 4, 7, 2, 9])
real = torch.arange(9)<n[:,None]
for gamma,lam in ((1., .95), (.9, .7), (1., 0.), (1., 1.)):
    adv = gae(torch.where(real, r, 1e6), torch.where(real, v, 1e6), real, gamma, lam)
    for i in range(6):
        expected = np.array(gae_reference(r[i], v[i], n[i], gamma, lam))
        test_close(adv[i,:n[i]], expected, 1e-9)
    test_eq(adv[~real].abs().max(), 0)

# %% [markdown]
# With $\lambda=0$ an advantage is one temporal-difference error. With $\lambda=1$ it is the sum of
# all later rewards less the value, so a score at the end counts equally for every token:

# %%
rewards_to_go = lambda x: torch.where(real, x, 0).flip(1).cumsum(1).flip(1)
test_close(gae(r, v, real, lam=1.), (rewards_to_go(r)-v)*real, 1e-9)
score = torch.arange(6.)
rewards = token_rewards(score, torch.zeros(6, 9), torch.zeros(6, 9), real, 0.)
test_close(gae(rewards, v.float(), real, lam=1.), (score[:,None]-v.float())*real, 1e-5)
test_eq(rewards[torch.arange(6), n-1], score)
test_eq((rewards!=0).sum(1).tolist(), [0, 1, 1, 1, 1, 1])

# %% [markdown]
# Some implementations put the score one token later, in the padding, where the critic is never
# trained. The advantages of the first example are then different:

# %%
four = torch.ones(1, 4, dtype=torch.bool)
shifted = gae(torch.tensor([[0., 0, 0, 1]]), torch.tensor([[.5, .4, .3, .2]]), four)[:,:3]
test_close(shifted, torch.tensor([[.40065, .527, .66]]), 1e-6)
shifted


# %%
#| export
def whiten(
    x, mask,              # [sequence, token]
    reduce=None,          # Sums a tensor over ranks
)->torch.Tensor:
    "Normalise to mean 0 and variance 1 over all tokens"
    reduce = reduce or (lambda v: v)
    x = torch.where(mask, x, 0).double()
    n,s = reduce(torch.stack([mask.sum().double(), x.sum()]))
    mean = s/n
    var = reduce((((x-mean)*mask)**2).sum())/n
    return ((x-mean)*torch.rsqrt(var+1e-8)*mask).float()

def rloo(
    scores, # [prompt, answer]
)->torch.Tensor:
    "Return each score less the mean score of the other answers to its prompt"
    k = scores.shape[1]
    if k<2: raise ConfigError(f'RLOO compares answers to one prompt and got {k}; give two or more.')
    return (scores-scores.mean(1, keepdim=True))*k/(k-1)


# %%
x = torch.tensor([[1., 2, 6]])
test_close(rloo(x), torch.tensor([[1-4., 2-3.5, 6-1.5]]), 1e-6)
w = whiten(x, one)
test_close([w.mean().item(), w.var(correction=0).item()], [0, 1], 1e-6)
rloo(x), w

# %% [markdown]
# The mean is over the tokens of all ranks: two ranks with two and four answers get the result of
# one rank with six.

# %%
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

def whiten_on_ranks(parts):
    "Call `whiten` on one simulated rank a part"
    barrier = Barrier(len(parts))
    sums = {}
    def run(i):
        def reduce(v):
            sums[i] = v; barrier.wait()
            total = sum(sums.values()); barrier.wait()
            return total
        return whiten(*parts[i], reduce=reduce)
    with ThreadPoolExecutor() as pool: return torch.cat([*pool.map(run, range(len(parts)))])

w = whiten(r, real)
test_close(whiten_on_ranks([(r[:2], real[:2]), (r[2:], real[2:])]), w, 1e-6)
x = r[real].numpy()
test_close(w[real], (x-x.mean())/x.std(), 1e-6)


# %% [markdown]
# ## Losses
#
# The losses return sums and counts. The caller divides by the count of the whole batch, so
# micro-batching is exact.

# %%
#| export
def policy_loss(
    logp,          # [sequence, token] with gradient
    old,           # Of the policy that sampled
    adv, mask,
    clip:float=.2,
)->tuple:          # Sum, count, sums to log
    "Return PPO's clipped loss"
    ratio = torch.where(mask, logp-old, 0).exp()
    unclipped = -adv*ratio
    clipped = -adv*ratio.clamp(1-clip, 1+clip)
    approx_kl = kl(torch.where(mask, old, 0), torch.where(mask, logp, 0), 'k3')
    logs = dict(clip_fraction=((clipped>unclipped)&mask).sum(), ratio=(ratio*mask).sum(),
                approx_kl=(approx_kl*mask).sum())
    loss = (torch.maximum(unclipped, clipped)*mask).sum()
    return loss,mask.sum(),{k: v.detach() for k,v in logs.items()}

def value_loss(
    values, old, returns, mask,
    clip:float=None, # Clip range around the old value; None: no clipping
)->tuple:            # Sum, count, sums to log
    "Return half the squared error of the critic"
    error = (values-returns)**2
    if clip is not None:
        clipped = old+(values-old).clamp(-clip, clip)
        error = torch.maximum(error, (clipped-returns)**2)
    return torch.where(mask, error, 0).sum()/2,mask.sum(),{}


# %%
def slope(ratio, a):
    z = torch.tensor([[ratio]]).log().requires_grad_()
    policy_loss(z, torch.zeros(1, 1), torch.tensor([[a]]), one[:,:1])[0].backward()
    return z.grad.item()

ratios = .5, .9, 1., 1.1, 2.
table = [[round(slope(x, a), 2) for x in ratios] for a in (1., -1.)]
test_eq(table, [[-.5, -.9, -1., -1.1, 0.], [0., .9, 1., 1.1, 2.]])
table


# %% [markdown]
# The gradient is zero where the ratio is above 1.2 and the advantage positive, or the ratio below
# 0.8 and the advantage negative, and nowhere else. The optional clipping of the value loss takes
# the larger of the clipped and unclipped errors.

# %%
def value_gradient(v, old, target, clip):
    v = torch.tensor([[v]], requires_grad=True)
    loss,_,_ = value_loss(v, torch.tensor([[old]]), torch.tensor([[target]]), one[:,:1], clip)
    loss.backward()
    return round(loss.item(), 4), round(v.grad.item(), 4)

test_eq(value_gradient(2., 1., 3., None), (.5, -1.))
test_eq(value_gradient(2., 1., 3., .2), (1.62, 0.)) # Already more than .2 towards the target
test_eq(value_gradient(2., 1., 0., .2), (2., 2.))   # A step back has a gradient
test_eq(value_gradient(1.1, 1., 3., .2), value_gradient(1.1, 1., 3., None))

# %% [markdown]
# On the batch that was sampled from the policy, the gradient of PPO is the policy gradient
# $-\sum_t A_t\nabla\log\pi_t$ for any clip range.

# %%
logp = torch.randn(6, 9, dtype=torch.float64, generator=rng).requires_grad_()
ppo, = torch.autograd.grad(policy_loss(logp, logp.detach(), r, real)[0], logp)
test_close(ppo, -r*real, 1e-12)


# %% [markdown]
# ## Adaptive KL coefficient

# %%
#| export
class AdaptiveKL:
    "A KL coefficient that rises while the KL is above its target and falls while it is below"
    def __init__(self,
        kl_coef:float,      # Initial value
        target:float,       # Nats
        horizon:int=10_000, # Answers
    ):
        self.kl_coef = kl_coef
        self.target = target
        self.horizon = horizon

    def update(self, kl:float, n:int)->float:
        "Return the coefficient after `n` answers with this mean KL"
        error = min(.2, max(-.2, kl/self.target-1))
        self.kl_coef *= 1+error*n/self.horizon
        return self.kl_coef


# %%
updated = lambda kl,n: AdaptiveKL(.2, 6.).update(kl, n)
test_close(updated(12., 100), .2*1.002, 1e-9)
test_close(updated(0., 100), .2*.998, 1e-9) # The error is clipped to 0.2
test_close(updated(6.6, 500), .2*1.005, 1e-9)
updated(12., 100)
