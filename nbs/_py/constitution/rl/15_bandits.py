# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Tabular PPO and RLOO
#
# > On tabular policies PPO and RLOO are unbiased and converge to the optimal policy.

# %%
#| hide
import numpy as np, pandas as pd
import torch
from fastcore.test import *
from moral_sc.constitution.rl import ppo
from moral_sc.language.optimization import learning_rate

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)


# %% [markdown]
# A policy need not be a transformer. For answers of $T$ words from a vocabulary of $V$ it can be a
# table with a row of logits for every prefix. All $V^T$ answers can then be enumerated. The
# objective $J=\mathrm E[r]-\beta\,\mathrm{KL}(\pi\,\|\,\pi_0)$ and its gradient are exact, and so
# are the optimal policy $\pi^*\propto\pi_0e^{r/\beta}$ and $J^*=\beta\log Z$.

# %%
def row(ids, V):
    "Return the row of the table from which each word is sampled, [answer, T]"
    n = torch.zeros_like(ids)
    for t in range(1, ids.shape[1]): n[:,t] = n[:,t-1]*V+1+ids[:,t-1]
    return n

def logp(z, ids): return z.log_softmax(-1)[row(ids, z.shape[1]), ids] # [answer, T]

def all_answers(V, T): return torch.cartesian_prod(*[torch.arange(V)]*T).view(-1, T)

def objective(z, ref, r, beta):
    "Return J, with gradient; `r` has the reward of each of `all_answers`"
    ids = all_answers(*shape(z, r))
    lp = logp(z, ids).sum(1)
    return (lp.exp()*(r-beta*(lp-logp(ref, ids).sum(1)))).sum()

def shape(z, r):
    V = z.shape[1]
    return V, round(np.log(len(r))/np.log(V))

def optimum(ref, r, beta):
    "Return the probability of every answer under the optimal policy, and J*"
    x = logp(ref, all_answers(*shape(ref, r))).sum(1)+r/beta
    return x.softmax(0), beta*x.logsumexp(0)


# %% [markdown]
# An answer of one word from a vocabulary of four, with known numbers:

# %%
q = torch.tensor([[.4, .3, .2, .1]]).log()
r = torch.tensor([1., 0, -1, 2])
target,J = optimum(q, r, .5)
test_close(target, torch.tensor([.338075, .034315, .003096, .624514]), 1e-6)
test_close(J.item(), 1.0840983523, 1e-9)
test_close(optimum(q, r, .1)[1].item(), 1.7697596496, 1e-9)

z = target.log()[None].requires_grad_()
objective(z, q, r, .5).backward()
test_close(z.grad.abs().max().item(), 0, 1e-9) # The gradient at the optimum is zero
target.numpy().round(3), J.item()


# %% [markdown]
# ## Unbiased gradients
#
# With answers of three words from a vocabulary of three there are 27 answers and 13 rows. We sample
# answers and compute the gradient of the loss as in training, with the KL penalty in the reward.
# Its mean over many batches has to be the gradient of $J$ in each of the 39 logits. PPO has a
# critic with random values, which must not introduce a bias.

# %%
def sample(z, n, T, rng):
    ids = torch.zeros(n, T, dtype=torch.long)
    for t in range(T):
        p = z.detach().softmax(-1)[row(ids[:,:t+1], z.shape[1])[:,-1]]
        ids[:,t] = torch.multinomial(p, 1, generator=rng)[:,0]
    return ids

def number(ids, V): return sum(ids[:,t]*V**(ids.shape[1]-1-t) for t in range(ids.shape[1]))

def advantages(ids, lp, ref, r, beta, values=None, group=0, lam=1.):
    "Return the advantages of PPO with given values, or of RLOO with groups"
    mask = torch.ones_like(ids, dtype=torch.bool)
    rewards = ppo.token_rewards(r[number(ids, ref.shape[1])], lp, logp(ref, ids), mask, beta)
    if group: return ppo.rloo(rewards.sum(1).view(-1, group)).reshape(-1, 1)*mask
    return ppo.gae(rewards, values[row(ids, ref.shape[1])], mask, lam=lam)

rng = torch.Generator().manual_seed(0)
V = 3
T = 3
beta = .3
z,ref = torch.randn(2, 13, V, generator=rng)
reward = torch.randn(V**T, generator=rng)
z.requires_grad_()
exact, = torch.autograd.grad(objective(z, ref, reward, beta), z)
values = torch.randn(13, generator=rng)

def gradient(n, **kw):
    ids = sample(z, n, T, rng)
    lp = logp(z, ids)
    adv = advantages(ids, lp.detach(), ref, reward, beta, **kw)
    loss,_,_ = ppo.policy_loss(lp, lp.detach(), adv, adv==adv)
    return -torch.autograd.grad(loss/n, z)[0]

def z_scores(batches=250, n=1000, **kw):
    g = torch.stack([gradient(n, **kw) for _ in range(batches)])
    return (g.mean(0)-exact)/(g.std(0)/batches**.5)

z_values = {'PPO': z_scores(values=values), 'RLOO': z_scores(group=4)}
pd.DataFrame({k: dict(largest=x.abs().max().item(), spread=x.std().item())
              for k,x in z_values.items()}).T.round(2)

# %% [markdown]
# The deviations are within the standard errors expected for 39 numbers. Two frequent mistakes
# leave that range: k3 as the penalty in the reward, which is right in its mean but not in its
# gradient, and a $\lambda$ below one with a critic that is not trained.

# %%
for x in z_values.values(): assert x.abs().max()<4

def with_k3(n):
    "Return the gradient with k3 as the penalty"
    ids = sample(z, n, T, rng)
    lp = logp(z, ids)
    base = logp(ref, ids)
    total = reward[number(ids, V)]-beta*ppo.kl(lp.detach(), base, 'k3').sum(1)
    return torch.autograd.grad((lp.sum(1)*total).mean(), z)[0]

g = torch.stack([with_k3(1000) for _ in range(250)])
mistakes = {'k3 in the reward': (g.mean(0)-exact)/(g.std(0)/250**.5),
            'lambda .5': z_scores(values=values, lam=.5)}
{k: round(x.abs().max().item(), 1) for k,x in mistakes.items()}

# %%
for x in mistakes.values(): assert x.abs().max()>8


# %% [markdown]
# ## Convergence to the optimal policy
#
# Training samples answers, keeps their log-probabilities and takes two epochs over them with
# clipping. The critic is a table of values. The learning rate falls to zero.

# %%
def train(ref, r, beta, algorithm='ppo', steps=300, n=512, lr=.05, seed=0):
    "Return a policy trained from the reference, and its gap to J*"
    V,T = shape(ref, r)
    rng = torch.Generator().manual_seed(seed)
    z = ref.clone().requires_grad_()
    v = torch.zeros(len(ref), requires_grad=True)
    opt = torch.optim.Adam([z, v], lr, eps=1e-5)
    for step in range(steps):
        opt.param_groups[0]['lr'] = learning_rate(step, steps, lr, schedule='linear')
        ids = sample(z, n, T, rng)
        old = logp(z, ids).detach()
        at = row(ids, V)
        old_values = v.detach().clone()
        options = dict(values=old_values, lam=.95) if algorithm=='ppo' else dict(group=4)
        adv = advantages(ids, old, ref, r, beta, **options)
        mask = adv==adv
        for _ in range(2):
            loss = ppo.policy_loss(logp(z, ids), old, adv, mask)[0]
            if algorithm=='ppo':
                returns = adv+old_values[at]
                loss = loss+ppo.value_loss(v[at], old_values[at], returns, mask)[0]
            opt.zero_grad(); (loss/n).backward(); opt.step()
    with torch.no_grad(): return z, (optimum(ref, r, beta)[1]-objective(z, ref, r, beta)).item()

uniform = torch.zeros(5, 4) # Two words: 16 answers
reward2 = torch.linspace(-1, 1, 16)[torch.randperm(16, generator=rng)]
trained = {(k, a): train(*task, .5, a) for a in ('ppo', 'rloo')
           for k,task in {'one word': (q, r), 'two words': (uniform, reward2)}.items()}
gaps = pd.Series({k: gap for k,(_,gap) in trained.items()}).unstack()
gaps

# %%
assert gaps.max().max()<1e-3
z,_ = trained['one word', 'ppo']
pd.DataFrame({'start': q[0].exp(), 'PPO': z[0].detach().softmax(0), 'optimum': target}).round(4)

# %% [markdown]
# Only a whole answer has a reward, so the value of the first word depends on the second. The table
# has the likeliest of the sixteen answers:

# %%
z,_ = trained['two words', 'ppo']
ids,(target2,_) = all_answers(4, 2),optimum(uniform, reward2, .5)
t = pd.DataFrame({'answer': [' '.join('abcd'[i] for i in a) for a in ids], 'reward': reward2,
                  'PPO': logp(z, ids).sum(1).exp().detach(), 'optimum': target2})
assert (t.PPO-t.optimum).abs().max()<.02
t.sort_values('optimum', ascending=False).head(6).round(4)

# %% [markdown]
# The [proofs of policy training](50_policy_proofs.ipynb) show the same for a transformer.
