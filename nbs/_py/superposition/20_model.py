# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Toy model
#
# > A toy model compresses features into fewer dimensions and reads them out with one matrix.

# %%
#| default_exp superposition.model

# %%
#| export
import torch, warnings
from dataclasses import dataclass, fields
from functools import wraps
from numbers import Integral
from moral_sc.foundation.arguments import checked
from moral_sc.foundation.errors import ConfigError, short_repr, unknown_name_message
from moral_sc.foundation.runs import function_key
from moral_sc.superposition.features import (as_numbers, distributions, expand, find_function,
                                              hash32, keys)

# %%
#| hide
from fastcore.test import *
from dataclasses import replace
torch.manual_seed(0);


# %% [markdown]
# A model compresses $n$ features into $m$ hidden dimensions and reads them out with the same matrix
# [@elhage2022]:
#
# $$h = Wx, \qquad x' = \mathrm{ReLU}(W^\top h + b).$$
#
# Column $W_i$ is the direction of feature $i$ in the hidden space. Without the ReLU this is
# principal component analysis. With it, the paper's question arises: when is it better to store
# more features than there are dimensions?
#
# Later sections of the paper vary the model. A ReLU on the hidden layer gives neurons, for which
# the basis matters. A second matrix $V$ lets a model compute the absolute value of its inputs, $y =
# \mathrm{ReLU}(V h + b)$ with $h = \mathrm{ReLU}(Wx)$.
#
# `ToyConfig` describes a batch of such models, one for each entry of the instance axis.

# %%
#| export
def check_positive_integers(**named):
    "Raise an error for values that are not integers of at least 1"
    for k,v in named.items():
        if not isinstance(v, Integral) or isinstance(v, bool) or v<1:
            raise ConfigError(f'{k} is {short_repr(v)}: give an integer of at least 1.')

activations = dict(
    relu=torch.relu, linear=lambda z:z, gelu=torch.nn.functional.gelu, abs=torch.abs,
    softplus=torch.nn.functional.softplus, sigmoid=torch.sigmoid, tanh=torch.tanh)
targets = dict(identity=lambda x:x, abs=torch.abs)
losses = dict(squared=lambda target, output: (target-output).square())

_known = dict(activation=activations, hidden=activations, target=targets, features=distributions,
              loss=losses)
_built_in = {k: dict(functions) for k,functions in _known.items()}

@dataclass(frozen=True, eq=False)
class ToyConfig:
    "Configuration of a batch of toy models that are trained together"
    n_features:int = 5
    n_hidden:int = 2
    n_instances:int = 1
    density:object = 1.          # $p$; number, [feature] or [instance, feature]
    importance:object = 1.       # $I$; number, [feature] or [instance, feature]
    activation:object = 'relu'   # Of the outputs: a name in `activations`, or a function
    bias:bool = True             # Learn b; without it b stays 0
    features:object = 'independent' # A name in `distributions`, or a function like `independent`
    init:object = 'xavier'       # 'xavier', or the standard deviation of W at the start
    notebook_compat:bool = False # Initial weights and data as in the paper's public notebook
    hidden:object = 'linear'     # Activation of the hidden layer, likewise
    hidden_bias:bool = False     # Learn c, added before the hidden activation
    tied:bool = True             # Read out with W itself; otherwise with a separate matrix V
    readout:str = 'random'       # Initial V: 'random', or 'positive' for |W|
    target:object = 'identity'   # Of the outputs: a name in `targets`, or a function of the inputs
    signed:bool = False          # Active features uniform on [-1,1] instead of [0,1]
    sets:int = 1                 # Equal, consecutive sets of dependent features
    points:int = None            # Size of a finite data set; None: fresh samples at every step
    unit:bool = False            # Rescale each input to length 1
    l1:object = 0.               # Weight of $\sum_k |h_k|$ in the loss; number or [instance]
    attack:object = 0.           # Train against an L2 attack, in mean input lengths; likewise
    loss:object = 'squared'      # Of an output: 'squared', or a function of target and output

    def __post_init__(self):
        n = self.n_features
        check_positive_integers(n_features=n, n_hidden=self.n_hidden,
                                n_instances=self.n_instances, sets=self.sets)
        if self.points is not None: check_positive_integers(points=self.points)
        p = self.densities
        if not ((p>0) & (p<=1)).all():
            raise ConfigError('density must lie above 0 and at most at 1.')
        if (self.importances<0).any(): raise ConfigError('importance must not be negative.')
        for kind,known in _known.items(): find_function(kind, getattr(self, kind), known)
        if self.readout not in ('random','positive'):
            raise ConfigError(unknown_name_message('readout', self.readout, ['random','positive']))
        if self.init!='xavier' and not isinstance(self.init, (int,float)):
            raise ConfigError(f"init is {short_repr(self.init)}: give 'xavier' or a standard "
                              'deviation.')
        if n%self.sets: raise ConfigError(
            f'{n} features do not make {self.sets} equal sets: choose sets that divide n_features.')
        by_set = p.unflatten(-1, (self.sets,-1))
        dependent = ('correlated','anticorrelated','one-hot')
        if self.features in dependent and (by_set!=by_set[...,:1]).any(): raise ConfigError(
            f'{self.features} features of one set have one density: give them equal values.')
        if self.features=='one-hot' and (self.sets>1 or (p<1).any()): raise ConfigError(
            'one-hot features form one set that is always present: leave sets and density at 1.')
        if self.notebook_compat and (self.features!='independent' or self.signed or self.points
                or self.unit or not self.tied): raise ConfigError(
            'notebook_compat reproduces the public notebook, which has only tied models of '
             'independent features: leave it off.')
        for k in 'l1','attack':
            if (self.per_instance(k)<0).any(): raise ConfigError(f'{k} must not be negative.')
        if 'loss' in custom_functions(self) and self.per_instance('attack').any():
            raise ConfigError('attack maximises the squared error: leave loss at squared.')

    @property
    def densities(self): return expand(self.density, self.n_instances, self.n_features)
    @property
    def importances(self):
        return expand(self.importance, self.n_instances, self.n_features, 'importance')
    @property
    def std(self):
        "Standard deviation of the initial W"
        I = self.n_instances
        n = self.n_features
        m = self.n_hidden
        if self.notebook_compat: return (2/(m*(n+I)))**.5
        return (2/(n+m))**.5 if self.init=='xavier' else float(self.init)

    def per_instance(self, name):
        "Return `l1` or `attack` as [instance]"
        t = as_numbers(name, getattr(self, name))
        if t.shape not in ((), (self.n_instances,)) or not torch.isfinite(t).all():
            raise ConfigError(f'{name} has shape {list(t.shape)} or a value that is not finite: '
                              f'give a number or [{self.n_instances}].')
        return t.expand(self.n_instances)

    def to_dict(self):
        "Return plain numbers and lists, for a file or a hash; functions by name and source"
        plain = {k: v.tolist() if hasattr(v, 'tolist') else v for k,v in vars(self).items()}
        return plain | {k: _describe(k, getattr(self, k)) for k in custom_functions(self)}

def custom_functions(config:ToyConfig)->dict:
    "Return the fields of a config that hold or name a function of the user"
    values = {k: getattr(config, k) for k in _known}
    return {k: v for k,v in values.items()
            if callable(v) or _known[k][v] is not _built_in[k].get(v)}

def check_functions(
    config:ToyConfig,
    device='cpu',
):
    "Raise an error for a function of the user that returns another shape or changes its argument"
    custom = custom_functions(config)
    for kind in custom.keys()-{'features'}:
        m = config.n_hidden if kind=='hidden' else config.n_features
        x = torch.linspace(-1, 1, 2*m, device=device).expand(config.n_instances, 2*m)
        args = [x.reshape(-1, 2, m)]*(2 if kind=='loss' else 1)
        given = [a.clone() for a in args]
        with torch.no_grad(): y = find_function(kind, custom[kind], _known[kind])(*given)
        if not isinstance(y, torch.Tensor):
            raise ConfigError(f'{kind} returned a {type(y).__name__}: give a function of tensors, '
                              'such as torch.tanh or torch.nn.SiLU().')
        if y.shape!=args[0].shape:
            raise ConfigError(f'{kind} makes the shape {list(y.shape)} of {list(args[0].shape)}: '
                              'return a number for each output'
                              f'{", without the mean over them" if kind=="loss" else ""}.')
        if kind in ('target', 'loss') and not all(map(torch.equal, args, given)):
            raise ConfigError(f'{kind} changes its argument: return a new tensor.')

def target_of(config:ToyConfig, x:torch.Tensor)->torch.Tensor:
    "Return what the outputs should be, [instance, batch, feature]"
    return find_function('target', config.target, targets)(x)

def custom_limitation(config:ToyConfig, engine:str)->str|None:
    "Return why an engine with built-in functions only cannot train `config`, or None"
    custom = custom_functions(config)
    if not custom: return None
    kind,function = next(iter(custom.items()))
    name = getattr(function, '__name__', function)
    return f'engine {engine} has no {kind} {name}, which is yours: use eager or compiled.'

def _describe(kind, value):
    "Name and key of a function"
    f = find_function(kind, value, _known[kind])
    name = value if isinstance(value, str) else getattr(f, '__qualname__', type(f).__name__)
    return f'{name}#{function_key(f)[:12]}'

_paper_words = dict(n='n_features', m='n_hidden')

def _accept_paper_words(cls):
    "Let `ToyConfig` take n, m and sparsity, and name the nearest field of an unknown one"
    init,names = cls.__init__, [f.name for f in fields(cls)]
    @wraps(init)
    def __init__(self, *args, **kw):
        for word,name in (_paper_words|dict(sparsity='density')).items():
            if word not in kw: continue
            if name in kw:
                raise ConfigError(f'{word} and {name} are both given: give one of them.')
            value = kw.pop(word)
            kw[name] = 1-as_numbers('sparsity', value) if word=='sparsity' else value
        for k in kw:
            if k not in names:
                raise ConfigError(unknown_name_message('field of ToyConfig', k, names))
        init(self, *args, **kw)
        shape = as_numbers('density', self.density).shape
        if shape==(self.n_instances,) and self.n_instances==self.n_features>1: warnings.warn(
            f'density has shape [{self.n_features}], which is read as one number for each feature: '
            f'give [{self.n_instances}, 1], such as density[:, None], for one for each instance.',
            stacklevel=2)
    cls.__init__ = __init__
    return cls

_accept_paper_words(ToyConfig)

# %% [markdown]
# Three densities with four models each, and an importance that falls by a tenth from feature to
# feature:

# %%
cfg = ToyConfig(n_features=5, n_hidden=2, n_instances=12,
                density=torch.tensor([1,.2,.1]).repeat_interleave(4)[:,None],
                importance=[.9**i for i in range(5)])
cfg.densities.shape, cfg.importances[0]

# %% [markdown]
# An invalid configuration raises an error before anything runs.

# %%
with expect_fail(ConfigError, contains='density must lie above 0'): ToyConfig(density=0.)
with expect_fail(ConfigError, contains="did you mean 'relu'"): ToyConfig(activation='rely')
with expect_fail(ConfigError, contains='n_hidden is 0'): ToyConfig(n_hidden=0)
with expect_fail(ConfigError, contains='give a number, [5]'): ToyConfig(importance=[1,2])
with expect_fail(ConfigError, contains='not finite'): ToyConfig(importance=float('nan'))
with expect_fail(ConfigError, contains='do not make 2 equal sets'): ToyConfig(sets=2)
with expect_fail(ConfigError, contains='leave it off'): ToyConfig(notebook_compat=True, signed=True)
with expect_fail(ConfigError, contains='have one density'):
    ToyConfig(4, 2, features='correlated', sets=2, density=[.1,.2,.1,.1])

# %% [markdown]
# The paper's words are accepted: `n` features, `m` dimensions, `sparsity` $1-p$. Unknown fields are refused. A
# density of as many numbers as there are features *and* instances is read by feature, with a warning.

# %%
paper = ToyConfig(n=20, m=5, n_instances=3, sparsity=[[0.], [.9], [.99]])
test_eq((paper.n_features, paper.n_hidden), (20, 5))
test_close(paper.densities[:,0], torch.tensor([1,.1,.01]), eps=1e-7)
with expect_fail(ConfigError, contains="did you mean 'density'?"): ToyConfig(densty=.1)
with expect_fail(ConfigError, contains='both given'): ToyConfig(sparsity=.9, density=.5)
with expect_fail(ConfigError, contains='both given'): ToyConfig(n=5, n_features=6)
with expect_fail(ConfigError, contains='[10, 1] for the instances'):
    ToyConfig(20, 5, 10, density=[.1]*10)
test_warns(lambda: ToyConfig(5, 2, 5, density=[1,.5,.2,.1,.05]))
for field,value in dict(density='a', importance=None, n_features='5', n_hidden=2., sets=True,
                        points=torch.rand(30, 5), l1='a', init=[1], sparsity='b').items():
    with expect_fail(ConfigError, contains=f'{field} '): ToyConfig(**{field: value})


# %% [markdown]
# Activation, target, distribution and loss may be functions of yours. They enter the description of a config by name and
# source, and only the engines eager and compiled train them.

# %%
def squares(x): return x*x
own = ToyConfig(5, 2, target=squares, activation=torch.nn.SiLU())
test_eq(list(custom_functions(own)), ['activation', 'target'])
slopes = [ToyConfig(activation=torch.nn.LeakyReLU(a)).to_dict()['activation'] for a in (.1,.1,.2)]
test_eq(slopes[0], slopes[1])
test_ne(slopes[0], slopes[2])
test_eq(custom_functions(ToyConfig()), {})
test_ne(own.to_dict()['target'], ToyConfig(5, 2, target=lambda x: x).to_dict()['target'])
custom_limitation(own, 'numba'), own.to_dict()['target']

# %% [markdown]
# Such a function is tried before a training: one that returns another shape would be broadcast, and one that changes its
# argument would change the inputs of the model.

# %%
check_functions(own)
check_functions(ToyConfig(6, 2, 3, hidden=torch.nn.ReLU(inplace=True), loss=torch.nn.L1Loss(
    reduction='none')))
for kind,function,words in (
        ('activation', torch.nn.ReLU, 'returned a ReLU: give a function'),
        ('activation', lambda x: x[:1], 'the shape [1, 2, 6] of [3, 2, 6]'),
        ('hidden', lambda x: x.sum(-1), 'the shape [3, 2] of [3, 2, 2]'),
        ('target', lambda x: x.mul_(2), 'target changes its argument'),
        ('loss', torch.nn.MSELoss(), 'without the mean over them')):
    with expect_fail(ConfigError, contains=words):
        check_functions(ToyConfig(6, 2, 3, **{kind: function}))


# %% [markdown]
# ## Initial weights
#
# `W` is normal with the Xavier scale of a single model, $\sqrt{2/(n+m)}$. It is drawn from the same counter
# as the data, so a model's initial weights also depend only on its identity. `stream` 1 keeps them
# independent of the data.

# %%
#| export
def normal(
    key:torch.Tensor, # [instance, 2]
    n:int,
)->torch.Tensor:      # [instance, n], float32
    "Return standard normal numbers from the counter"
    u = (hash32(key, n).double() + .5)*2**-31
    return (2**.5*torch.erfinv(2*u-1)).float()

def initial_weights(
    config:ToyConfig,
    seed=0,
    instances=None, # Identities of the models; None for all
)->tuple:           # W [instance, feature, hidden] and b [instance, feature]
    "Return W and b before the first step"
    ids = range(config.n_instances) if instances is None else instances
    n = config.n_features
    m = config.n_hidden
    W = config.std*normal(keys(seed, ids, [0], stream=1)[0], n*m).view(-1, n, m)
    return W,torch.zeros(len(W), n)

def initial_params(config, seed=0, instances=None)->dict:
    "Return W and b, and V [instance, feature, hidden] and c [instance, hidden] if learned"
    ids = range(config.n_instances) if instances is None else instances
    n = config.n_features
    m = config.n_hidden
    params = dict(zip('Wb', initial_weights(config, seed, ids)))
    if not config.tied:
        V = config.std*normal(keys(seed, ids, [0], stream=3)[0], n*m).view(-1, n, m)
        params['V'] = params['W'].abs() if config.readout=='positive' else V
    if config.hidden_bias: params['c'] = torch.zeros(len(params['W']), m)
    return params


# %%
W,b = initial_weights(cfg)
test_eq(initial_weights(cfg, instances=[5])[0][0], W[5])
large,_ = initial_weights(replace(cfg, n_instances=5000, density=1.))
test_close(large.std(), cfg.std, eps=.005)
large.std(), cfg.std

# %% [markdown]
# The public notebook calls `xavier_normal_` on a tensor `[instance, feature, hidden]`. PyTorch
# takes the first two axes as fans and the last as a receptive field, so the standard deviation
# depends on the number of models trained together: $\sqrt{2/(m(n+I))}$. `notebook_compat`
# reproduces this quirk; the default does not.

# %%
notebook_std = lambda I: ToyConfig(200, 20, I, notebook_compat=True).std
torch_std = torch.nn.init.xavier_normal_(torch.empty(20,200,20)).std()
test_close(torch_std, notebook_std(20), eps=.0005)
notebook_std(20), notebook_std(1), ToyConfig(200, 20).std


# %% [markdown]
# ## Forward pass and loss

# %%
#| export
def weights_of(
    W,              # A run, a tensor, an array or nested lists
)->torch.Tensor:    # [..., feature, hidden]
    "Return the weights of a run, or weights as a tensor"
    W = getattr(W, 'W', W)
    if not torch.is_tensor(W): W = as_numbers('W', W)
    if W.ndim<2: raise ConfigError(
        f'W has shape {list(W.shape)}: give [feature, hidden] or [instance, feature, hidden].')
    return W if W.is_floating_point() else W.float()

def _check_inputs(W, x):
    if not (torch.is_tensor(W) and torch.is_tensor(x)): raise ConfigError(
        f'W is {short_repr(W)} and x is {short_repr(x)}: give tensors.')
    if W.ndim!=3 or x.ndim!=3 or (len(W), W.shape[1])!=(len(x), x.shape[2]): raise ConfigError(
        f'W has shape {list(W.shape)} and x {list(x.shape)}: give [instance, feature, hidden] and '
        '[instance, batch, feature].')

def encode_inputs(
    W:torch.Tensor,  # [instance, feature, hidden]
    x:torch.Tensor,  # [instance, batch, feature]
    hidden='linear', # A name in `activations`, or a function
    c=None,          # [instance, hidden]
)->torch.Tensor:     # [instance, batch, hidden]
    "Return the activations of the hidden layer"
    _check_inputs(W, x)
    h = torch.bmm(x, W)
    return find_function('activation', hidden, activations)(h if c is None else h + c[:,None])

def decode_hidden(
    V:torch.Tensor, # [instance, feature, hidden]; W in a tied model
    b:torch.Tensor, # [instance, feature]
    h:torch.Tensor, # [instance, batch, hidden]
    activation='relu',
)->torch.Tensor:    # [instance, batch, feature]
    "Return the outputs"
    return find_function('activation', activation, activations)(torch.baddbmm(b[:,None], h, V.mT))

@checked
def reconstruct(
    W:torch.Tensor, # [instance, feature, hidden]
    b:torch.Tensor, # [instance, feature]
    x:torch.Tensor, # [instance, batch, feature]
    activation='relu',
    hidden='linear',
    V=None,         # [instance, feature, hidden]; None: W
    c=None,         # [instance, hidden]
)->torch.Tensor:    # [instance, batch, feature]
    "Return the outputs of the models for their inputs"
    return decode_hidden(W if V is None else V, b, encode_inputs(W, x, hidden, c), activation)


# %% [markdown]
# An orthogonal pair of directions returns its two features and nothing else:

# %%
W0 = torch.eye(5,2)[None]
x = torch.rand(1,3,5)
test_close(reconstruct(W0, torch.zeros(1,5), x)[...,:2], x[...,:2])
test_eq(weights_of([[1, 0], [0, 1]]).dtype, torch.float64)
for W_,words in [('a', 'give numbers'), (5, 'W has shape []'), ([1.], 'give [feature, hidden]')]:
    with expect_fail(ConfigError, contains=words): weights_of(W_)
with expect_fail(ConfigError, contains='give tensors'): reconstruct(W0, torch.zeros(1,5), 'x')
with expect_fail(ConfigError, contains='x [1, 3, 4]'):
    reconstruct(W0, torch.zeros(1,5), x[...,:4])
reconstruct(W0, torch.zeros(1,5), x)


# %% [markdown]
# The loss weights each feature's squared error by its importance (not squared), averages over the batch and
# *sums* over the features. All losses in this package are such sums; the public notebook divides by $n$ as
# well.

# %%
#| export
@checked
def batch_loss(
    W:torch.Tensor,          # [instance, feature, hidden]
    b:torch.Tensor,          # [instance, feature]
    x:torch.Tensor,          # [instance, batch, feature]
    importance:torch.Tensor, # [instance, feature]
    activation='relu',
    hidden='linear',
    V=None,                  # [instance, feature, hidden]; None: W
    c=None,                  # [instance, hidden]
    target='identity',       # A name in `targets`, or a function
    loss='squared',          # A name in `losses`, or a function of target and output
)->torch.Tensor:             # [instance]
    "Return the importance-weighted loss, summed over features, mean over the batch"
    output = reconstruct(W, b, x, activation, hidden, V, c)
    loss = find_function('loss', loss, losses)
    error = loss(find_function('target', target, targets)(x), output)
    return (importance*error.mean(1)).sum(-1)


# %% [markdown]
# Features 2, 3 and 4 are lost, so the loss is their importance times $E x^2 = p/3$:

# %%
x = torch.rand(1, 200_000, 5)
I = cfg.importances[:1].float()
test_close(batch_loss(W0, torch.zeros(1,5), x, I), I[0,2:].sum()/3, eps=.01)
batch_loss(W0, torch.zeros(1,5), x, I), I[0,2:].sum()/3

# %% [markdown]
# The instance axis is the first axis here and the second in the public notebook. The notebook's
# einsums and our matrix products agree:

# %%
W = torch.randn(3,5,2)
b = torch.randn(3,5)
x = torch.rand(3,7,5)
h = torch.einsum('bif,ifh->bih', x.transpose(0,1), W)
test_close(torch.relu(torch.einsum('bih,ifh->bif', h, W)+b).transpose(0,1), reconstruct(W, b, x))

# %% [markdown]
# Neither model nor loss depends on the basis of the hidden space: a rotation leaves the loss
# unchanged. The paper's figures are therefore defined only up to rotation and reflection.

# %%
O = torch.linalg.qr(torch.randn(2,2)).Q
test_close(batch_loss(W@O, b, x, I), batch_loss(W, b, x, I), eps=1e-4)
batch_loss(W, b, x, I), batch_loss(W@O, b, x, I)

# %% [markdown]
# ## Hidden ReLUs
#
# With a ReLU on the hidden layer the basis does matter, which is why its units are called neurons:
# the same rotation changes the loss.

# %%
x = torch.rand(3,4000,5)
loss = lambda W: batch_loss(W, b, x, I, hidden='relu')
test_ne(loss(W@O).numpy().round(3), loss(W).numpy().round(3))
loss(W), loss(W@O)

# %% [markdown]
# Two neurons for each feature compute an absolute value: one responds to positive inputs, one to
# negative inputs, and the readout adds them.

# %%
W2 = torch.cat([torch.eye(3),-torch.eye(3)], 1)[None]                # feature, neuron
signed = 2*torch.rand(1,5,3)-1
test_close(reconstruct(W2, torch.zeros(1,3), signed, hidden='relu', V=W2.abs()), signed.abs())
batch_loss(W2, torch.zeros(1,3), signed, torch.ones(1,3), hidden='relu', V=W2.abs(), target='abs')

# %% [markdown]
# A readout with random initial values makes half of the features' outputs negative, where a ReLU
# passes no gradient. A readout that starts at $|W|$ has only positive outputs.

# %%
untied = ToyConfig(50, 20, 1, tied=False, hidden='relu', target='abs', signed=True)
def active_outputs(readout):
    p = initial_params(replace(untied, readout=readout))
    out = reconstruct(p['W'], p['b'], torch.eye(50)[None], hidden='relu', V=p['V'])
    return (out[0].diag()>0).float().mean()

active = {k: active_outputs(k) for k in ('random','positive')}
test_eq(active['positive'], 1)
active
