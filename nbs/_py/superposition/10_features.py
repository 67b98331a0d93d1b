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
# > Sparse synthetic inputs are drawn from a counter-based random number generator.

# %%
#| default_exp superposition.features

# %%
#| export
import numpy as np, torch
from moral_sc.foundation.errors import ConfigError, short_repr, unknown_name_message

# %%
#| hide
from fastcore.test import *


# %% [markdown]
# The inputs of a toy model are features that are mostly absent: $x_i$ is zero with probability $1-p$
# and otherwise uniform on $[0,1]$, independently [@elhage2022]. The density $p$ is the paper's $1-S$.
# Two moments of such a feature appear in every closed form of this package: the mean $p/2$ and the
# variance $v(p) = p/3 - p^2/4$.

# %%
#| export
def moments(
    density,  # Probability $p$ that a feature is active; number, array or tensor
)->tuple:     # Mean and variance of the feature
    "Return mean and variance of a feature that is uniform on [0,1] when active"
    return density/2, density/3 - density**2/4


# %%
moments(.1)


# %% [markdown]
# You can give density and importance as one number, one number per feature, or one per instance and
# feature. An *instance* is one model of a batch of models that are trained together. Internally both
# are always a table `[instance, feature]`, and a sweep runs along the instance axis.

# %%
#| export
def as_numbers(name:str, value)->torch.Tensor:
    "Return numbers as a float64 tensor; anything else raises an error"
    if hasattr(value, 'to_numpy'): value = value.to_numpy()  # a DataFrame
    try:
        if 'complex' in str(getattr(value, 'dtype', '')): raise TypeError
        return torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise ConfigError(f'{name} is {short_repr(value)}: give numbers.') from None

def expand(
    value,           # Number, [feature] or [instance, feature]
    n_instances:int,
    n_features:int,
    name='density',  # Name used in error messages
)->torch.Tensor:     # [instance, feature], float64
    "Broadcast a number or a row to all instances and features"
    t = as_numbers(name, value)
    shape = n_instances,n_features
    try: t = t.expand(shape)
    except RuntimeError: raise ConfigError(
        f'{name} has shape {list(t.shape)}: give a number, [{n_features}] for the features, '
        f'[{n_instances}, 1] for the instances, or {list(shape)} for both.') from None
    if not torch.isfinite(t).all(): raise ConfigError(
        f'{name} has a value that is not finite: give finite numbers.')
    return t


# %%
expand([.9**i for i in range(4)], 2, 4)

# %%
with expect_fail(ConfigError, contains='shape [3]'): expand([1,2,3], 2, 4)
for value in ('a', None, [[1], [2, 3]], dict(a=1)):
    with expect_fail(ConfigError, contains='give numbers'): expand(value, 2, 4)


# %% [markdown]
# ## Counter-based random numbers
#
# With a single generator for everything, the data of model 3 would change when model 2 leaves the
# batch, and an interrupted run would have to save the generator's state. We avoid both: each random
# number is a pure function of its address (seed, instance, step, row, feature). Ten models trained
# together see the data that each would see alone, on any device and in any engine, and step 5000 can
# be drawn without the 4999 steps before it.
#
# The address is split in two. The slow part (seed, instance, step) goes through the splitmix64
# finaliser, whose 64 output bits become two keys. `key_roots` hashes the part of the address that does
# not change during training, and `keys` adds the step.

# %%
#| export
def _mix64(z):
    "Apply the splitmix64 finaliser: each bit of `z` affects about half the bits of the result"
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xbf58476d1ce4e5b9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94d049bb133111eb)
    return z ^ (z >> np.uint64(31))

def _combine(z, part):
    "Add the next part of an address to a 64-bit hash"
    return _mix64((z + np.uint64(0x9e3779b97f4a7c15)) ^ _mix64(part + np.uint64(1)))

def key_roots(
    seed:int,
    instances,    # Identities of the models
    streams=(0,), # Independent sources: 0 for data, others for initial weights and gates
)->np.ndarray:    # [stream, instance], uint64
    "Hash the part of the address that is the same at every step"
    z = np.full((len(streams),1), seed % 2**64, np.uint64)
    z = _combine(z, np.asarray(streams, np.uint64)[:,None])
    return _combine(z, np.asarray(instances, np.uint64)[None])

def keys(
    seed:int,
    instances,  # Identities of the models, not their positions in the batch
    steps,      # Step numbers
    stream=0,   # As in `key_roots`
)->torch.Tensor: # [step, instance, 2], int32
    "Return two 32-bit keys for each step of each model"
    z = _combine(key_roots(seed, instances, (stream,)), np.asarray(steps, np.uint64)[:,None])
    return torch.from_numpy(np.stack([z >> np.uint64(32), z], -1).astype(np.uint32).view(np.int32))


# %%
keys(seed=0, instances=[0,1], steps=[0,1])

# %% [markdown]
# A model's keys depend on its identity, not on its position in the batch:

# %%
test_eq(keys(0, [7], range(3))[:,0], keys(0, range(10), range(3))[:,7])
test_ne(keys(0, [7], [0]), keys(1, [7], [0]))

# %% [markdown]
# The fast part of the address, the element's index within the batch, is hashed with the two keys by a
# 32-bit finaliser of two multiplications and three shifts. The second key enters halfway, so that two
# batches are never permutations of each other. PyTorch has no unsigned 32-bit arithmetic; the masks
# make the shifts logical. This is three to six times cheaper than two calls of `torch.rand`, and a GPU
# kernel or a vectorised CPU loop can compute the same numbers.

# %%
#| export
_c1 = 0x7feb352d
_c2 = 0x846ca68b-2**32

def hash32(
    key:torch.Tensor, # [instance, 2], int32
    n:int,            # Count of numbers for each instance
)->torch.Tensor:      # [instance, n], 31 random bits as int32
    "Return random integers below 2^31 that depend only on the key and on their own index"
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
    "Return the uniform random numbers of one step"
    u = hash32(key, batch_size*n_features).float().mul_(2**-31)
    return u.view(len(key), batch_size, n_features)


# %%
u = uniform(keys(0, range(4), [0])[0], 3, 2)
u[0]

# %% [markdown]
# A test of randomness: over 16 steps of four models the numbers fill 1000 bins evenly ($\chi^2$ per
# degree of freedom near 1, standard deviation 0.045), and no correlation between neighbouring features,
# neighbouring rows, successive steps or models exceeds noise.

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
# ## Independent features
#
# One uniform number $u$ has two uses: the feature is active if $u \le p$, and in that case $u/p$ is
# again uniform and becomes its value. With 31 bits, the values at $p=0.001$ still have two million
# levels.

# %%
#| export
def independent(
    key:torch.Tensor,     # [instance, 2], stream 0
    gate:torch.Tensor,    # [instance, 2], stream 2; unused by independent features
    density:torch.Tensor, # [instance, feature], float32
    batch_size:int,
    sets=1,               # Unused by independent features
)->tuple:                 # Activity (bool) and values if active, [instance, batch, feature]
    "Draw independent features"
    p = density[:,None]
    u = uniform(key, batch_size, density.shape[-1])
    return u <= p, u/p


# %%
ks = keys(0, [0], [0])[0]
p = expand([1,.3,.001], 1, 3).float()
active,values = independent(ks, ks, p, 200_000)
x = torch.where(active, values, 0.)[0]
x[:5]

# %% [markdown]
# Frequency, mean and variance agree with the definition.

# %%
mu,v = moments(p[0])
for sample,expected,sd in [((x>0).float().mean(0), p[0], (p[0]*(1-p[0]))**.5),
                    (x.mean(0), mu, v**.5), (x.var(0), v, v**.5)]:
    assert ((sample-expected).abs() <= 4.5*sd/len(x)**.5 + 1e-6).all()
torch.stack([x.mean(0), mu, x.var(0), v])


# %% [markdown]
# ## Correlated and anticorrelated features
#
# The paper's other data sets group features into consecutive sets of equal size. All members of a
# *correlated* set are active together, with probability $p$ and with independent values. An
# *anticorrelated* set is present with probability $p$, and then exactly one member is active, each
# equally often. A gate per row and set decides. It is drawn from stream 2; for anticorrelated sets the
# position of the gate within $[0,p]$ selects the member.

# %%
#| export
def _gates(gate, density, batch_size, sets):
    "Return presence and gate position in [0,1) of each set, [instance, batch, set]"
    p = density[:,None].unflatten(-1, (sets,-1))[...,0]
    g = uniform(gate, batch_size, sets)
    return g <= p, (g/p).clamp(max=1-2**-24)

def correlated(key, gate, density, batch_size, sets=1):
    "Draw sets whose members are active together; arguments as in `independent`"
    n = density.shape[-1]
    present,_ = _gates(gate, density, batch_size, sets)
    return present.repeat_interleave(n//sets, -1), uniform(key, batch_size, n)

def anticorrelated(key, gate, density, batch_size, sets=1):
    "Draw sets of which at most one member is active; arguments as in `independent`"
    n = density.shape[-1]
    present,position = _gates(gate, density, batch_size, sets)
    member = (position*(n//sets)).long()[...,None] == torch.arange(n//sets, device=key.device)
    return (present[...,None] & member).flatten(-2), uniform(key, batch_size, n)

distributions = {'independent': independent, 'correlated': correlated,
                 'anticorrelated': anticorrelated, 'one-hot': anticorrelated}

def find_function(
    kind:str,    # Of the function: 'activation', 'distribution'
    name,        # A name in `known`, or a function
    known:dict,  # Name to function
):
    "Return the function with a name; a function is returned as it is"
    if callable(name): return name
    if not isinstance(name, str) or name not in known:
        raise ConfigError(unknown_name_message(kind, str(name), list(known)))
    return known[name]


# %% [markdown]
# Two sets of two at $p=0.3$. Correlated partners are active together or not at all, and the two sets
# are independent. Anticorrelated partners are never active together, and each has half the density of
# its set.

# %%
ks,gs = (keys(0, [0], [0], stream=s)[0] for s in (0,2))
p = expand(.3, 1, 4).float()
draws = {f.__name__: f(ks, gs, p, 100_000, sets=2)[0][0].float()
         for f in (correlated,anticorrelated)}
joint = {k: (x.T@x/len(x)) for k,x in draws.items()}
test_close(joint['correlated'], torch.tensor([[.3,.3,.09,.09],[.3,.3,.09,.09],
                                              [.09,.09,.3,.3],[.09,.09,.3,.3]]), eps=.006)
test_eq(joint['anticorrelated'][0,1], 0)
test_close(joint['anticorrelated'].diag(), torch.full((4,),.15), eps=.005)
joint['anticorrelated']

# %% [markdown]
# A single set that is always present is a one-hot input: exactly one feature is active.

# %%
active,_ = distributions['one-hot'](ks, gs, expand(1., 1, 6).float(), 1000)
assert (active.sum(-1)==1).all()
active.float().mean((0,1))


# %% [markdown]
# ## Sampler
#
# `Sampler` combines these parts for a training loop: it prepares the keys of many steps at once and
# returns batches by step number. Signed features are uniform on $[-1,1]$ when active. A *finite* data
# set is the batch of step 0, returned at every step. With `unit`, each input is rescaled to length 1,
# as in the follow-up on memorization [@henighan2023double]; an input without active features stays
# zero.

# %%
#| export
class Sampler:
    "Return the batch of any step of one distribution"
    def __init__(self,
        density:torch.Tensor,       # [instance, feature]
        instances,                  # Identities of the models
        batch_size:int,
        seed=0,
        distribution='independent', # A name in `distributions`, or a function like `independent`
        device='cpu',
        chunk=1024,                 # Steps whose keys are computed together
        sets=1,                     # Equal, consecutive sets of dependent features
        signed=False,               # Active features uniform on [-1,1] instead of [0,1]
        finite=False,               # The same batch at every step
        unit=False,                 # Rescale each input to length 1
    ):
        self.draw = find_function('distribution', distribution, distributions)
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
        self.current = -1

    def __call__(self, step):
        if self.finite and self.current==0: return self.data
        step = 0 if self.finite else step
        if step//self.chunk != self.current:
            self.current = step//self.chunk
            first = self.current*self.chunk
            steps = range(first, first + (1 if self.finite else self.chunk))
            self.keys,self.gates = (keys(self.seed, self.instances, steps, stream).to(
                self.density.device) for stream in (0,2))
        i = step%self.chunk
        active,values = self.draw(self.keys[i], self.gates[i], self.density, self.batch_size,
                                  self.sets)
        x = torch.where(active, 2*values-1 if self.signed else values, 0.)
        if self.unit: x = x/x.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        if self.finite: self.data = x
        return x


# %%
full = Sampler(expand(.3, 10, 5), range(10), 8)
alone = Sampler(expand(.3, 1, 5), [7], 8)
alone(2000)[0,:3]

# %% [markdown]
# Model 7 sees the same batch alone and together with others, in any order of the steps:

# %%
test_eq(alone(2000)[0], full(2000)[7])
test_eq(alone(5)[0], full(5)[7])
test_ne(full(5)[6], full(5)[7])

# %% [markdown]
# A finite set of three signed points of length 1 is the same at every step:

# %%
points = Sampler(expand(.9, 1, 4), [0], 3, signed=True, finite=True, unit=True)
test_eq(points(0), points(999)); test_close(points(0).norm(dim=-1), torch.ones(1,3))
assert (points(0)<0).any()
points(7)

# %%
with expect_fail(ConfigError, contains="did you mean 'independent'"):
    Sampler(p, [0], 8, distribution='indepedent')
