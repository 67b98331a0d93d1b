# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Features
#
# > Sparse synthetic inputs from a counter, so that a model's data never depends on its neighbours.

# %%
#| default_exp superposition.features

# %%
#| export
import numpy as np, torch
from moral_sc.foundation.errors import ConfigError, unknown_name_message

# %%
#| hide
from fastcore.test import *


# %% [markdown]
# A toy model is fed features that are mostly absent: $x_i$ is zero with probability $1-p$ and
# otherwise uniform on $[0,1]$, independently [@elhage2022]. The density $p$ is what the paper
# writes $1-S$. Two numbers about such a feature return in every closed form of this room: its
# mean $p/2$ and its variance $v(p) = p/3 - p^2/4$.

# %%
#| export
def moments(
    density,  # Probability $p$ that a feature is active; number, array or tensor
)->tuple:     # Mean and variance of the feature
    "Mean and variance of a feature that is uniform on [0,1] when active"
    return density/2, density/3 - density**2/4


# %%
moments(.1)


# %% [markdown]
# Density and importance may be one number, one per feature, or one per model and feature. Inside
# they are always a table `[instance, feature]`: many models are trained side by side, and the
# instance axis carries the sweep.

# %%
#| export
def expand(
    value,           # Number, [feature] or [instance, feature]
    n_instances:int,
    n_features:int,
    name='density',  # What to call it in an error
)->torch.Tensor:     # [instance, feature], float64
    "Spread a number or a row over all models and features"
    t = torch.as_tensor(value, dtype=torch.float64)
    want = n_instances,n_features
    try: t = t.expand(want)
    except RuntimeError: raise ConfigError(
        f'{name} has shape {list(t.shape)}: give a number, [{n_features}] for the features, '
        f'or {list(want)} for instances and features.') from None
    if not torch.isfinite(t).all(): raise ConfigError(f'{name} has a value that is not finite.')
    return t


# %%
expand([.9**i for i in range(4)], 2, 4)

# %%
with expect_fail(ConfigError, contains='shape [3]'): expand([1,2,3], 2, 4)


# %% [markdown]
# ## Random numbers from a counter
#
# With one generator for everything, model 3 sees other data when model 2 leaves the batch, and a
# run that is stopped has to save the generator. We want neither. Each number here is a pure
# function of its address: seed, instance, step, row, feature. Ten models trained together then
# see what each would see alone, on any device and in any engine, and step 5000 can be
# drawn without the 4999 before it.
#
# The address is split in two. The slow part (seed, instance, step) goes through the splitmix64
# finaliser, whose 64 bits become two keys.

# %%
#| export
def _mix64(z):
    "The splitmix64 finaliser: every bit of `z` moves half the bits of the result"
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xbf58476d1ce4e5b9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94d049bb133111eb)
    return z ^ (z >> np.uint64(31))

def keys(
    seed:int,
    instances,  # Identities of the models, not their places in the batch
    steps,      # Step numbers
    stream=0,   # Independent source: 0 for data, others for starts and second draws
)->torch.Tensor: # [step, instance, 2], int32
    "Two 32-bit keys for each step of each model"
    z = np.array([seed % 2**64], np.uint64)
    for part in (np.array([stream], np.uint64), np.asarray(instances, np.uint64),
                 np.asarray(steps, np.uint64)[:,None]):
        z = _mix64((z + np.uint64(0x9e3779b97f4a7c15)) ^ _mix64(part + np.uint64(1)))
    return torch.from_numpy(np.stack([z >> np.uint64(32), z], -1).astype(np.uint32).view(np.int32))


# %%
keys(seed=0, instances=[0,1], steps=[0,1])

# %% [markdown]
# A model's keys stay with its identity:

# %%
test_eq(keys(0, [7], range(3))[:,0], keys(0, range(10), range(3))[:,7])
test_ne(keys(0, [7], [0]), keys(1, [7], [0]))

# %% [markdown]
# The fast part of the address, the element's number within the batch, is hashed with those keys
# by two multiplications and three shifts (a 32-bit finaliser whose second key enters halfway, so
# that two batches are never permutations of each other). Torch has no unsigned 32-bit
# arithmetic; the masks make its shifts logical. It is three to six times cheaper than two calls
# of `torch.rand`, and a GPU kernel or a vectorised CPU loop can do the very same.

# %%
#| export
_c1 = 0x7feb352d
_c2 = 0x846ca68b-2**32

def hash32(
    key:torch.Tensor, # [instance, 2], int32
    n:int,            # How many numbers for each instance
)->torch.Tensor:      # [instance, n], 31 random bits as int32
    "Random integers below 2^31 that depend on the key and on their own index only"
    if n >= 2**31: raise ConfigError(f'{n} numbers a step exceed 2^31: use smaller batches.')
    x = torch.arange(n, dtype=torch.int32, device=key.device) ^ key[:,:1]
    x ^= (x >> 16) & 0xffff
    x *= _c1
    x ^= key[:,1:]
    x ^= (x >> 15) & 0x1ffff
    x *= _c2
    x ^= (x >> 16) & 0xffff
    return x.bitwise_and_(0x7fffffff)

def uniform(
    key:torch.Tensor, # [instance, 2]
    batch_size:int,
    n_features:int,
)->torch.Tensor:      # [instance, batch, feature], float32 in [0,1]
    "Uniform numbers of one step"
    u = hash32(key, batch_size*n_features).float().mul_(2**-31)
    return u.view(len(key), batch_size, n_features)


# %%
u = uniform(keys(0, range(4), [0])[0], 3, 2)
u[0]

# %% [markdown]
# Is it random enough? Over 16 steps of four models, the numbers fill 1000 bins evenly
# ($\chi^2$ per degree of freedom near 1, spread 0.045), and no correlation between neighbouring
# features, neighbouring rows, successive steps or models exceeds noise.

# %%
ks = keys(0, range(4), range(16))
u = torch.stack([uniform(k, 1024, 20) for k in ks])              # step, instance, row, feature
counts = torch.histc(u, 1000, 0, 1)
chi2 = ((counts-counts.mean())**2/counts.mean()).sum()/999
def corr(a,b): return torch.corrcoef(torch.stack([a.flatten(),b.flatten()]))[0,1]*a.numel()**.5
zs = torch.stack([corr(u[...,1:],u[...,:-1]), corr(u[:,:,1:],u[:,:,:-1]),
                  corr(u[1:],u[:-1]), corr(u[:,1:],u[:,:-1])])
test_close(chi2, 1, eps=.2); assert zs.abs().max()<4.5
chi2, zs


# %% [markdown]
# ## A batch
#
# One uniform number does two jobs: it decides whether the feature is active ($u \le p$) and, if
# so, $u/p$ is uniform again. With 31 bits the values at $p=0.001$ still have two million
# levels.

# %%
#| export
def independent(
    key:torch.Tensor,     # [instance, 2], stream 0
    gate:torch.Tensor,    # [instance, 2], stream 2; not needed here
    density:torch.Tensor, # [instance, feature], float32
    batch_size:int,
    sets=1,               # Not needed here
)->tuple:                 # Which are active and how much they would be, [instance, batch, feature]
    "Features that come and go independently"
    p = density[:,None]
    u = uniform(key, batch_size, density.shape[-1])
    return u <= p, u/p


# %%
ks = keys(0, [0], [0])[0]
p = expand([1,.3,.001], 1, 3).float()
active,size = independent(ks, ks, p, 200_000)
x = torch.where(active, size, 0.)[0]
x[:5]

# %% [markdown]
# Frequency, mean and variance are those of the definition.

# %%
mu,v = moments(p[0])
for got,want,sd in [((x>0).float().mean(0), p[0], (p[0]*(1-p[0]))**.5),
                    (x.mean(0), mu, v**.5), (x.var(0), v, v**.5)]:
    assert ((got-want).abs() <= 4.5*sd/len(x)**.5 + 1e-6).all()
torch.stack([x.mean(0), mu, x.var(0), v])


# %% [markdown]
# ## Features that know of each other
#
# The paper's other data sets join features into equal, consecutive sets. A *correlated* set comes
# and goes as one: with probability $p$ all its members are active, each with a size of its own.
# An *anticorrelated* set is present with probability $p$ too, but then exactly one of its
# members is active, each as often. A gate per row and set decides, drawn from stream 2; the
# gate's place within $[0,p]$ picks the member.

# %%
#| export
def _gates(gate, density, batch_size, sets):
    "Whether each set is present, and where in [0,1) its gate fell; [instance, batch, set]"
    p = density[:,None].unflatten(-1, (sets,-1))[...,0]
    g = uniform(gate, batch_size, sets)
    return g <= p, (g/p).clamp(max=1-2**-24)

def correlated(key, gate, density, batch_size, sets=1):
    "Members of a set are active together; arguments as in `independent`"
    n = density.shape[-1]
    on,_ = _gates(gate, density, batch_size, sets)
    return on.repeat_interleave(n//sets, -1), uniform(key, batch_size, n)

def anticorrelated(key, gate, density, batch_size, sets=1):
    "One member of a set is active at a time; arguments as in `independent`"
    n = density.shape[-1]
    on,place = _gates(gate, density, batch_size, sets)
    member = (place*(n//sets)).long()[...,None] == torch.arange(n//sets, device=key.device)
    return (on[...,None] & member).flatten(-2), uniform(key, batch_size, n)

distributions = {'independent': independent, 'correlated': correlated,
                 'anticorrelated': anticorrelated, 'one-hot': anticorrelated}

# %% [markdown]
# Two sets of two at $p=0.3$. Correlated partners are active together or not at all, and the sets
# do not know of each other; anticorrelated partners never meet, and each has half of its set's
# density.

# %%
ks,gs = (keys(0, [0], [0], stream=s)[0] for s in (0,2))
p = expand(.3, 1, 4).float()
together = {f.__name__: f(ks, gs, p, 100_000, sets=2)[0][0].float() for f in (correlated,anticorrelated)}
both = {k: (x.T@x/len(x)) for k,x in together.items()}
test_close(both['correlated'], torch.tensor([[.3,.3,.09,.09],[.3,.3,.09,.09],
                                             [.09,.09,.3,.3],[.09,.09,.3,.3]]), eps=.006)
test_eq(both['anticorrelated'][0,1], 0)
test_close(both['anticorrelated'].diag(), torch.full((4,),.15), eps=.005)
both['anticorrelated']

# %% [markdown]
# A single set that is always present is a one-hot input: one feature, whatever its size.

# %%
active,_ = distributions['one-hot'](ks, gs, expand(1., 1, 6).float(), 1000)
assert (active.sum(-1)==1).all()
active.float().mean((0,1))


# %% [markdown]
# ## A sampler
#
# `Sampler` ties it together for a training loop: it prepares the keys of many steps at once and
# hands out batches by step number. Signed features are uniform on $[-1,1]$ when active. A *finite*
# data set is the batch of step 0, handed out at every step; `unit` gives each of its inputs length
# 1, as the follow-up on memorization does [@henighan2023double]; one without active features
# stays zero.

# %%
#| export
class Sampler:
    "Batches of one distribution, addressed by step"
    def __init__(self,
        density:torch.Tensor,       # [instance, feature]
        instances,                  # Identities of the models
        batch_size:int,
        seed=0,
        distribution='independent', # A name in `distributions`
        device='cpu',
        chunk=1024,                 # Steps whose keys are made together
        sets=1,                     # Equal, consecutive sets of features that know of each other
        signed=False,               # Active features uniform on [-1,1] instead of [0,1]
        finite=False,               # The same batch at every step
        unit=False,                 # Rescale each input to length 1
    ):
        if distribution not in distributions:
            raise ConfigError(unknown_name_message('distribution', distribution, list(distributions)))
        self.draw = distributions[distribution]
        self.density = density.float().to(device)
        self.instances = list(instances)
        self.batch_size = batch_size
        self.seed = seed
        self.distribution = distribution
        self.sets = sets
        self.signed = signed
        self.finite = finite
        self.unit = unit
        self.chunk = chunk
        self.at = -1

    def __call__(self, step):
        if self.finite and self.at==0: return self.same
        step = 0 if self.finite else step
        if step//self.chunk != self.at:
            self.at = step//self.chunk
            steps = range(self.at*self.chunk, self.at*self.chunk + (1 if self.finite else self.chunk))
            self.keys,self.gates = (keys(self.seed, self.instances, steps, stream).to(
                self.density.device) for stream in (0,2))
        at = step%self.chunk
        active,size = self.draw(self.keys[at], self.gates[at], self.density, self.batch_size, self.sets)
        x = torch.where(active, 2*size-1 if self.signed else size, 0.)
        if self.unit: x = x/x.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        if self.finite: self.same = x
        return x


# %%
full = Sampler(expand(.3, 10, 5), range(10), 8)
alone = Sampler(expand(.3, 1, 5), [7], 8)
alone(2000)[0,:3]

# %% [markdown]
# Model 7 sees the same batch alone and in company, now or later:

# %%
test_eq(alone(2000)[0], full(2000)[7])
test_eq(alone(5)[0], full(5)[7])
test_ne(full(5)[6], full(5)[7])

# %% [markdown]
# A finite set of three signed points of length 1 stays what it is:

# %%
few = Sampler(expand(.9, 1, 4), [0], 3, signed=True, finite=True, unit=True)
test_eq(few(0), few(999)); test_close(few(0).norm(dim=-1), torch.ones(1,3))
assert (few(0)<0).any()
few(7)

# %%
with expect_fail(ConfigError, contains="did you mean 'independent'"):
    Sampler(p, [0], 8, distribution='indepedent')
