# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The mathematics of PPO
#
# > Advantages, losses and estimators of KL, as functions of tensors and of nothing else.

# %%
#| default_exp constitution.rl.ppo

# %% [markdown]
# Proximal policy optimisation [@schulman2017ppo] is a dozen short formulas, and nearly all
# public implementations for language models have had one of them wrong. Here they are by
# themselves, without a model, small enough to be compared with their definitions.

# %%
#| export
import torch
from moral_sc.foundation.errors import ConfigError, unknown_name_message

# %%
#| hide
import numpy as np
from fastcore.test import *


# %% [markdown]
# Everything is a rectangle `[sequence, token]` with a mask that is true on tokens; what
# stands behind the end of a sequence never matters.
#
# ## The distance from the first policy
#
# From one sample the KL can be estimated in three ways: $k_1=\log\pi-\log\pi_0$,
# $k_2=k_1^2/2$, and $k_3=e^{-k_1}-1+k_1$. The first and the third have the KL as their
# mean. As a *reward* $k_1$ is right; as a *loss* its gradient is zero on average, that of
# $k_2$ is the gradient of the KL, and that of $k_3$ the gradient of the KL the other way
# round.

# %%
#| export
def kl(
    logp,          # [sequence, token] of the policy, natural log
    ref,           # The same of the reference
    kind:str='k1', # 'k1', 'k2' or 'k3'
)->torch.Tensor:
    "Estimate of the KL of a policy from a reference, at tokens it drew"
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
    (p*kl(lp, q.log(), kind)).sum().backward() # p: the sampling, which has no gradient
    return z.grad

test_close(mean_gradient('k1'), torch.zeros(4), 1e-6)
test_close(mean_gradient('k2'), torch.tensor([-.184273, -.172380, -.015291, .371944]), 1e-5)
test_close(mean_gradient('k3'), p-q, 1e-6)


# %% [markdown]
# ## Rewards and advantages
#
# The score of an answer stands on its last token, the price of the KL on every one.

# %%
#| export
def token_rewards(
    score,      # [sequence]
    logp, ref,  # [sequence, token]
    mask,       # [sequence, token] true on tokens
    beta:float, # Price of KL
)->torch.Tensor:
    "Reward of each token: the score on the last, less beta * k1 on all"
    r = -beta*kl(logp, ref)*mask
    last = mask.long().cumsum(1).argmax(1)
    return r.index_put((torch.arange(len(r), device=r.device), last), score.to(r), accumulate=True)


# %% [markdown]
# Generalised advantage estimation [@schulman2016gae] adds up the surprises that follow a
# token, $A_t=\sum_k(\gamma\lambda)^k\delta_{t+k}$ with $\delta_t=r_t+\gamma V_{t+1}-V_t$.
# After the last token there is nothing to expect.

# %%
#| export
def gae(
    rewards, values, mask,  # [sequence, token]
    gamma:float=1.,
    lam:float=.95,
)->torch.Tensor:            # [sequence, token]
    "Advantages of the tokens"
    values,rewards = (torch.where(mask, x, 0) for x in (values, rewards))
    after = torch.cat([values[:,1:], torch.zeros_like(values[:,:1])], 1)
    delta = rewards+gamma*after-values
    adv = torch.zeros_like(values)
    run = 0
    for t in reversed(range(values.shape[1])):
        run = (delta[:,t]+gamma*lam*run)*mask[:,t]
        adv[:,t] = run
    return adv


# %%
one = torch.ones(1, 3, dtype=torch.bool)
adv = gae(torch.tensor([[0., 0, 1]]), torch.tensor([[.5, .4, .3]]), one)
test_close(adv, torch.tensor([[.43675, .565, .7]]), 1e-6)
adv


# %% [markdown]
# The definition, a sum over all later surprises for every token, on answers of unequal length in
# double precision; and what stands behind the end may be anything.

# %%
def slowly(r, v, n, gamma, lam): # One answer of n tokens
    v = [*v[:n].tolist(), 0.]
    delta = [float(r[t])+gamma*v[t+1]-v[t] for t in range(n)]
    return [sum((gamma*lam)**(k-t)*delta[k] for k in range(t, n)) for t in range(n)]

rng = torch.Generator().manual_seed(0)
r,v = torch.randn(2, 6, 9, dtype=torch.float64, generator=rng)
n = torch.tensor([9, 1, 4, 7, 2, 9])
real = torch.arange(9)<n[:,None]
for gamma,lam in ((1., .95), (.9, .7), (1., 0.), (1., 1.)):
    adv = gae(torch.where(real, r, 1e6), torch.where(real, v, 1e6), real, gamma, lam)
    for i in range(6): test_close(adv[i,:n[i]], np.array(slowly(r[i], v[i], n[i], gamma, lam)), 1e-9)
    test_eq(adv[~real].abs().max(), 0)

# %% [markdown]
# With $\lambda=0$ an advantage is one surprise; with $\lambda=1$ it is all that came less what
# was expected. A score that alone is paid, at the end, then goes to every token alike:

# %%
later = lambda x: torch.where(real, x, 0).flip(1).cumsum(1).flip(1)
test_close(gae(r, v, real, lam=1.), (later(r)-v)*real, 1e-9)
score = torch.arange(6.)
paid = token_rewards(score, torch.zeros(6, 9), torch.zeros(6, 9), real, 0.)
test_close(gae(paid, v.float(), real, lam=1.), (score[:,None]-v.float())*real, 1e-5)
test_eq(paid[torch.arange(6), n-1], score)
test_eq((paid!=0).sum(1).tolist(), [0, 1, 1, 1, 1, 1])

# %% [markdown]
# Some programs pay the score one place further on, in the padding, where the critic was never
# taught. The advantages of the first example are then others:

# %%
four = torch.ones(1, 4, dtype=torch.bool)
shifted = gae(torch.tensor([[0., 0, 0, 1]]), torch.tensor([[.5, .4, .3, .2]]), four)[:,:3]
test_close(shifted, torch.tensor([[.40065, .527, .66]]), 1e-6)
shifted


# %%
#| export
def whiten(
    x, mask,              # [sequence, token]
    shift_mean:bool=True, # False: keep the mean
    reduce=None,          # Sums a tensor over processes
)->torch.Tensor:
    "Mean 0 and variance 1 over all tokens"
    all_sum = reduce or (lambda v: v)
    x = torch.where(mask, x, 0).double()
    n,s = all_sum(torch.stack([mask.sum().double(), x.sum()]))
    mean = s/n
    var = all_sum((((x-mean)*mask)**2).sum())/n
    res = (x-mean)*torch.rsqrt(var+1e-8)
    return ((res if shift_mean else res+mean)*mask).float()

def rloo(
    scores, # [prompt, answer]
)->torch.Tensor:
    "Each score less the mean of the other answers to its prompt"
    k = scores.shape[1]
    if k<2: raise ConfigError('RLOO compares answers to one prompt; give two or more.')
    return (scores-scores.mean(1, keepdim=True))*k/(k-1)


# %%
x = torch.tensor([[1., 2, 6]])
test_close(rloo(x), torch.tensor([[1-4., 2-3.5, 6-1.5]]), 1e-6)
w = whiten(x, one)
test_close([w.mean().item(), w.var(correction=0).item()], [0, 1], 1e-6)
rloo(x), w

# %% [markdown]
# Over all tokens means over those of all processes. Two that hold two answers and four get what
# one gets that holds all six; a reward keeps its mean.

# %%
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

def together(parts, **kw):
    "`whiten` in as many processes as there are parts"
    gate = Barrier(len(parts))
    box = {}
    def work(i):
        def reduce(v):
            box[i] = v; gate.wait()
            total = sum(box.values()); gate.wait()
            return total
        return whiten(*parts[i], reduce=reduce, **kw)
    with ThreadPoolExecutor() as pool: return torch.cat([*pool.map(work, range(len(parts)))])

for shift in (True, False):
    w = whiten(r, real, shift)
    test_close(together([(r[:2], real[:2]), (r[2:], real[2:])], shift_mean=shift), w, 1e-6)
    on = r[real].numpy()
    test_close(w[real], (on-on.mean())/on.std()+(0 if shift else on.mean()), 1e-6)


# %% [markdown]
# ## Losses
#
# Sums, not means: what to divide by is known to who holds the whole batch.

# %%
#| export
def policy_loss(
    logp,          # [sequence, token] with gradient
    old,           # Of the policy that sampled
    adv, mask,
    clip:float=.2,
)->tuple:          # Sum, count, sums for a log
    "PPO's clipped loss"
    ratio = torch.where(mask, logp-old, 0).exp()
    free = -adv*ratio
    held = -adv*ratio.clamp(1-clip, 1+clip)
    n = mask.sum()
    logs = dict(clipped=((held>free)&mask).sum(), ratio=(ratio*mask).sum(),
                moved=(kl(torch.where(mask, old, 0), torch.where(mask, logp, 0), 'k3')*mask).sum())
    return (torch.maximum(free, held)*mask).sum(),n,{k: v.detach() for k,v in logs.items()}

def value_loss(
    values, old, returns, mask,
    clip:float=None, # Largest move from the old value that is followed
)->tuple:
    "Half the squared error of the critic"
    err = (values-returns)**2
    if clip is not None: err = torch.maximum(err, (old+(values-old).clamp(-clip, clip)-returns)**2)
    return torch.where(mask, err, 0).sum()/2,mask.sum(),{}


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
# The slope is zero where the answer is already likelier by a fifth and was good, or less likely by
# a fifth and was bad; never where a step would lead back. The critic's error, if it is clipped at
# all, is followed in the same spirit: the larger of the two.

# %%
def critic(v, old, goal, clip):
    v = torch.tensor([[v]], requires_grad=True)
    loss,_,_ = value_loss(v, torch.tensor([[old]]), torch.tensor([[goal]]), one[:,:1], clip)
    loss.backward()
    return round(loss.item(), 4), round(v.grad.item(), 4)

test_eq(critic(2., 1., 3., None), (.5, -1.))
test_eq(critic(2., 1., 3., .2), (1.62, 0.)) # Already moved by more than .2 that way
test_eq(critic(2., 1., 0., .2), (2., 2.))   # The way back is open
test_eq(critic(1.1, 1., 3., .2), critic(1.1, 1., 3., None))

# %% [markdown]
# On the batch that it was sampled from, the gradient of PPO is that of the plain
# $-\sum_t A_t\log\pi_t$, whatever the clip.

# %%
logp = torch.randn(6, 9, dtype=torch.float64, generator=rng).requires_grad_()
ppo, = torch.autograd.grad(policy_loss(logp, logp.detach(), r, real)[0], logp)
test_close(ppo, -r*real, 1e-12)


# %% [markdown]
# ## The price

# %%
#| export
class AdaptiveKL:
    "A price that rises while the KL is above a target and falls while it is below"
    def __init__(self,
        beta:float,         # To begin with
        target:float,       # Nats
        horizon:int=10_000, # Answers
    ): self.beta,self.target,self.horizon = beta,target,horizon

    def update(self, kl:float, n:int)->float:
        "The price after `n` answers of this KL"
        error = min(.2, max(-.2, kl/self.target-1))
        self.beta *= 1+error*n/self.horizon
        return self.beta


# %%
price = lambda kl,n: AdaptiveKL(.2, 6.).update(kl, n)
test_close(price(12., 100), .2*1.002, 1e-9)
test_close(price(0., 100), .2*.998, 1e-9) # Never more than a fifth at once
test_close(price(6.6, 500), .2*1.005, 1e-9)
price(12., 100)
