# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Dictionaries
#
# > Sparse autoencoders are trained on hidden activations of toy models and scored against the true features.

# %%
#| default_exp superposition.dictionaries

# %%
#| export
import math, torch
import pandas as pd
from dataclasses import dataclass
from pathlib import Path
from safetensors import safe_open
from safetensors.torch import save_file
from scipy.optimize import linear_sum_assignment
from moral_sc.foundation.arguments import checked
from moral_sc.foundation.errors import (ConfigError, DataError, ModelError, short_repr,
                                        unknown_name_message)
from moral_sc.foundation.files import replace_file
from moral_sc.foundation.progress import progress_callback
from moral_sc.superposition.features import Sampler, as_numbers, keys
from moral_sc.superposition.geometry import represented
from moral_sc.superposition.model import check_positive_integers, encode_inputs, normal
from moral_sc.superposition.training import ToyRun

# %%
#| hide
import tempfile
from fastcore.test import *
from moral_sc.superposition.geometry import polygon, tegum
from moral_sc.superposition.model import ToyConfig
from moral_sc.superposition.training import train
torch.set_num_threads(1)

# %% [markdown]
# Sparse autoencoders are usually judged on language models, whose features nobody knows. The features of a toy
# model are known: feature $i$ has the direction $w_i$, a row of `W`, and is active where $x_i>0$. This page
# trains the three common kinds of sparse autoencoder on the hidden activations $h=xW$ of any run, and scores
# what they find. [Sparse coding](70_sparse_coding.ipynb) answers the same question by optimising the codes
# of each activation, without an encoder.
#
# ## Autoencoder
#
# An activation is encoded by one matrix and a threshold, and decoded by directions of unit norm
# [@bricken2023; @cunningham2023]:
#
# $$z = \sigma\big((h-b_\text{dec})W_\text{enc}+b_\text{enc}\big),\qquad \hat h = zW_\text{dec}+b_\text{dec}.$$
#
# The kinds differ in $\sigma$ and in what is added to the squared error $\|h-\hat h\|^2$:
#
# | kind | $\sigma$ | added to the loss |
# | --- | --- | --- |
# | `relu` [@bricken2023; @cunningham2023] | ReLU | $\lambda\sum_j z_j$ |
# | `topk` [@gao2024scaling] | ReLU of the $k$ largest values, 0 elsewhere | nothing |
# | `jumprelu` [@rajamanoharan2024] | $\pi\,H(\pi-\theta)$ with learned thresholds $\theta$ | $\lambda\sum_j H(\pi_j-\theta_j)$ |
#
# The step function $H$ has no gradient. Its derivative with respect to the threshold is estimated from values
# that lie within half a bandwidth $\epsilon$ of the threshold, as $-1/\epsilon$, and that of the JumpReLU as
# $-\theta/\epsilon$; both are unbiased for the expected loss as $\epsilon$ goes to zero [@rajamanoharan2024]. `theta -
# theta.detach()` is zero and carries this derivative.

# %%
#| export
kinds = 'topk','relu','jumprelu'

def encode_activations(
    params:dict,    # W_enc [instance, hidden, latent], b_enc, W_dec, b_dec, log_threshold
    h:torch.Tensor, # [instance, batch, hidden]
    kind:str,       # One of `kinds`
    k=None,         # Active latents of `topk`, [instance]
    bandwidth=.05,  # Of the derivative with respect to the threshold
)->tuple:           # Latents and, for `jumprelu`, which are active; [instance, batch, latent]
    "Encode activations"
    pre = torch.baddbmm(params['b_enc'], h-params['b_dec'], params['W_enc'])
    if kind=='relu': return pre.relu(),None
    if kind=='topk': return _largest(pre.relu(), k),None
    theta = params['log_threshold'].exp()
    change = (theta-theta.detach())*((pre-theta).abs()<bandwidth/2)/bandwidth
    active = (pre>theta).to(pre.dtype)
    return pre*active - theta.detach()*change, active-change

def _largest(z, k):
    "Keep the k largest latents of each row"
    most = int(k.max())
    if most>=z.shape[-1] and int(k.min())==most: return z
    value,index = z.topk(min(most, z.shape[-1]))
    value = value*(torch.arange(value.shape[-1], device=z.device)<k[:,None,None])
    return torch.zeros_like(z).scatter(-1, index, value)

def decode_latents(params, z)->torch.Tensor: # [instance, batch, hidden]
    "Decode latents"
    return torch.baddbmm(params['b_dec'], z, params['W_dec'])

def dictionary_loss(
    params:dict, h:torch.Tensor, kind:str, # As in `encode_activations`
    k=None,        # Active latents of `topk`, [instance]
    sparsity=0.,   # Weight of the penalty of `relu` or `jumprelu`, number or [instance]
    bandwidth=.05,
)->torch.Tensor:   # [instance]
    "Return the squared error, summed over dimensions, plus the penalty; means over the batch"
    z,active = encode_activations(params, h, kind, k, bandwidth)
    error = (h-decode_latents(params, z)).square().sum(-1).mean(-1)
    if kind=='topk': return error
    return error + sparsity*(z if kind=='relu' else active).sum(-1).mean(-1)


# %% [markdown]
# The losses are differentiated by autograd. We compare each gradient with finite differences of a second
# implementation that loops over rows and latents, in float64.

# %%
def slow_loss(params, h, kind, k, sparsity):
    "Loss of one instance, row by row"
    total = 0.
    for row in h:
        pre = [(row-params['b_dec'][0]) @ params['W_enc'][:,j] + params['b_enc'][0,j]
               for j in range(params['W_enc'].shape[1])]
        bound = [0.]*len(pre)
        if kind=='jumprelu': bound = params['log_threshold'][0].exp()
        if kind=='topk': bound = [max(0., sorted(p.item() for p in pre)[-k]-1e-9)]*len(pre)
        z = [p if p>t else 0*p for p,t in zip(pre, bound)]
        out = params['b_dec'][0] + sum(v*d for v,d in zip(z, params['W_dec']))
        penalty = dict(topk=0., relu=sum(z), jumprelu=sum((v>0).double() for v in z))[kind]
        total = total + (row-out).square().sum() + sparsity*penalty
    return total/len(h)

def random_params(I, m, n):
    g = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
    return dict(W_enc=draw(I, m, n), b_enc=.1*draw(I, 1, n), W_dec=draw(I, n, m),
                b_dec=.1*draw(I, 1, m), log_threshold=draw(I, 1, n)-1)

params = random_params(2, 3, 5)
h = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
worst = {}
for kind in kinds:
    leaves = {k: v.clone().requires_grad_() for k,v in params.items()}
    k = torch.tensor([2,3])
    loss = dictionary_loss(leaves, h, kind, k, .3)
    grad = torch.autograd.grad(loss.sum(), leaves.values(), allow_unused=True)
    difference = []
    for i in range(2):
        one = {name: v[i].clone() for name,v in params.items()}
        value = lambda: slow_loss(one, h[i], kind, int(k[i]), .3)
        test_close(loss[i].detach(), value(), 1e-9)
        for name,g in zip(params, grad):
            if name=='log_threshold': continue # compared below
            for place in [(0,0), (one[name].shape[0]-1, 1)]:
                start = one[name][place].item()
                ends = []
                for step in (1e-6,-1e-6):
                    one[name][place] = start+step
                    ends.append(value())
                one[name][place] = start
                slope = (ends[0]-ends[1])/2e-6
                difference.append(abs(slope-g[i][place]).item())
    worst[kind] = max(difference)
assert max(worst.values()) < 1e-6
worst

# %% [markdown]
# The estimated derivative with respect to a threshold, compared with a finite difference of the loss of a
# million samples: one latent, activations $h$ uniform on $[0,1]$, reconstructed as they are. The expected loss is
# $\theta^3/3+\lambda(1-\theta)$, with the derivative $\theta^2-\lambda$; the estimate is lower by
# $\theta\epsilon/4$, because it sees the values just below the threshold.

# %%
h = torch.linspace(0, 1, 1_000_001, dtype=torch.float64)[None,:,None]
one = torch.ones(1,1,1, dtype=torch.float64)
threshold = torch.full((1,1,1), math.log(.4), dtype=torch.float64).requires_grad_()
identity = dict(W_enc=one, b_enc=0*one, W_dec=one, b_dec=0*one, log_threshold=threshold)
loss = dictionary_loss(identity, h, 'jumprelu', sparsity=.3, bandwidth=.01)
slope = torch.autograd.grad(loss.sum(), threshold)[0].item()/.4
test_close(loss.item(), .4**3/3+.3*.6, 1e-5)
test_close(slope, .4**2-.3-.4*.01/4, 1e-5)
slope

# %% [markdown]
# A TopK autoencoder that keeps all latents is a ReLU autoencoder without penalty:

# %%
h = torch.randn(2, 6, 3, dtype=torch.float64)
test_eq(dictionary_loss(params, h, 'topk', torch.tensor([5,5])),
        dictionary_loss(params, h, 'relu'))


# %% [markdown]
# ## Dictionary
#
# A `Dictionary` holds one autoencoder for each model of a run.

# %%
#| export
def _check_shapes(kind, params, k):
    I,n,m = params['W_dec'].shape
    shapes = dict(W_enc=(I,m,n), b_enc=(I,1,n), W_dec=(I,n,m), b_dec=(I,1,m))
    if kind=='jumprelu': shapes['log_threshold'] = shapes['b_enc']
    same = {name: tuple(v.shape) for name,v in params.items()}==shapes
    if kind not in kinds or not same or (kind=='topk' and (k is None or k.shape!=(I,))):
        raise ValueError

@dataclass
class Dictionary:
    "Sparse autoencoders, one for each model of a run"
    kind:str             # One of `kinds`
    params:dict          # W_enc, b_enc, W_dec, b_dec and, for `jumprelu`, log_threshold
    k:torch.Tensor=None  # Active latents of `topk`, [instance]
    logged:torch.Tensor=None # [logged step]
    loss:torch.Tensor=None   # [instance, logged step], in units of h's mean square

    @property
    def directions(self): return self.params['W_dec'] # [instance, latent, hidden], unit norm

    def encode(self, h): # Activations [instance, batch, hidden]
        "Return latents, [instance, batch, latent]"
        with torch.no_grad(): return encode_activations(self.params, h, self.kind, self.k)[0]

    def decode(self, z): # Latents [instance, batch, latent]
        "Return activations, [instance, batch, hidden]"
        with torch.no_grad(): return decode_latents(self.params, z)

    def save(self, path): # File to write, replaced atomically; `Dictionary.load` reads it
        "Write the dictionary as safetensors"
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        t = dict(self.params, k=self.k, logged=self.logged, loss=self.loss)
        t = {name: v.contiguous() for name,v in t.items() if v is not None}
        with replace_file(path) as part: save_file(t, part, metadata=dict(kind=self.kind))
        return Path(path)

    @classmethod
    def load(cls, path): # File written by `Dictionary.save`
        "Load a dictionary from a file"
        try:
            with safe_open(path, 'pt') as f:
                t = {name: f.get_tensor(name) for name in f.keys()}
                kind = f.metadata()['kind']
            rest = {name: t.pop(name, None) for name in ('k', 'logged', 'loss')}
            _check_shapes(kind, t, rest['k'])
        except Exception as e:
            raise DataError(f'{path} is damaged or not a saved dictionary ({type(e).__name__}): '
                            'delete it and fit it again.') from None
        return cls(kind, t, **rest)

    def __repr__(self):
        I,n,m = self.directions.shape
        return f'Dictionary({self.kind}, {I} models, {n} latents for {m} dimensions)'


# %% [markdown]
# ## Training
#
# Activations are drawn from the run's own distribution, from another seed than the training of the toy models, and
# divided by the root mean square of those that are not zero, so that one penalty has one meaning in all models. The
# scale is multiplied back into biases and thresholds at the end, which is possible because all three kinds are
# positively homogeneous. Directions start at random and the encoder at their transpose [@gao2024scaling]. At each step
# the part of the gradient along a direction is removed, and directions are brought back to unit norm [@bricken2023].
# The rate falls to zero over the last fifth. We use neither auxiliary losses nor resampling for dead latents; their
# number is one of the scores below. By default $k$ is the mean number of active features of an input that has any,
# which a user of a real model does not know.

# %%
#| export
def _check_run(run):
    if not isinstance(run, ToyRun):
        raise ConfigError(f'run is {short_repr(run)}: give toy models, as `train` returns them.')

def hidden_sampler(
    run:ToyRun,
    batch_size:int,
    seed=0,     # Other data than those of a training with this seed
)->object:      # Step -> inputs [instance, batch, feature], hidden activations
    "Return a function that draws inputs and hidden activations of a run"
    _check_run(run)
    c,ids = run.config, run.instances
    if 'data' in (run.settings or {}): raise ConfigError(
        'This run was trained on data of yours, whose distribution is not known: give a run that '
        'drew its data.')
    draw = Sampler(c.densities[ids], ids, batch_size, seed+10**6, c.features, run.W.device,
                   sets=c.sets, signed=c.signed, finite=c.points is not None, unit=c.unit)
    def batch(step):
        x = draw(step)
        return x, encode_inputs(run.W, x, c.hidden, run.c)
    return batch

def root_mean_square(h:torch.Tensor)->torch.Tensor: # [instance, batch, hidden] -> [instance, 1, 1]
    "Return the root mean square length of the activations that are not zero"
    square = h.square().sum(-1)
    mean = square.sum(-1)/(square>0).sum(-1).clamp(min=1)
    return mean.sqrt().clamp(min=1e-12)[:,None,None]

def _start(run, n_latents, kind, seed, threshold):
    I,_,m = run.W.shape
    D = normal(keys(seed, run.instances, [0], stream=6)[0], n_latents*m).view(I, n_latents, m)
    D = (D/D.norm(dim=-1, keepdim=True)).to(run.W.device)
    W_enc = D.mT.clone(memory_format=torch.contiguous_format) # Of one column: else a view of D
    params = dict(W_enc=W_enc, b_enc=D.new_zeros(I, 1, n_latents), W_dec=D,
                  b_dec=D.new_zeros(I, 1, m))
    if kind=='jumprelu': params['log_threshold'] = torch.full_like(params['b_enc'],
                                                                   math.log(threshold))
    return {name: v.requires_grad_() for name,v in params.items()}

def expected_active(
    run:ToyRun,
    x:torch.Tensor, # Inputs [instance, batch, feature]
)->torch.Tensor:    # [instance], integers of at least 1
    "Return the mean number of active stored features, rounded, over inputs that have any"
    count = ((x!=0)*represented(run.W)[:,None]).sum(-1)
    return (count.sum(-1)/(count>0).sum(-1).clamp(min=1)).round().clamp(min=1).long()

def _per_model(name, value, run):
    t = as_numbers(name, value)
    if t.shape not in ((), (len(run.W),)) or not torch.isfinite(t).all() or (t<0).any():
        raise ConfigError(f'{name} has shape {list(t.shape)} or a value below 0: give a number or '
                          f'[{len(run.W)}], one for each model of the run.')
    return t.expand(len(run.W)).to(run.W.device)

@checked
def fit_dictionary(
    run:ToyRun,
    kind:str='topk',    # 'topk', 'relu' or 'jumprelu'
    n_latents:int|None=None, # None: the number of features
    k=None,             # Of 'topk': active latents, number or [instance]; None: `expected_active`
    l1=.2,              # Of 'relu': weight of the sum of latents, number or [instance]
    l0=.04,             # Of 'jumprelu': weight of the number of active latents, likewise
    steps:int=4000,
    batch_size:int=512,
    lr:float=3e-3,      # Of Adam
    seed=0,
    threshold:float=.1,       # Of 'jumprelu' at the start, in root mean squares of h
    bandwidth:float=.1, # Of 'jumprelu', likewise
    log_every:int=100,  # Steps between logged losses
    progress=None,      # True: show a bar; a function: called with steps done and all steps
)->Dictionary:
    "Train a sparse autoencoder on the hidden activations of each model of a run"
    _check_run(run)
    if kind not in kinds: raise ConfigError(unknown_name_message('kind', kind, list(kinds)))
    n_latents = run.W.shape[1] if n_latents is None else n_latents
    check_positive_integers(n_latents=n_latents, steps=steps, batch_size=batch_size,
                            log_every=log_every)
    for name,v in dict(lr=lr, threshold=threshold, bandwidth=bandwidth).items():
        if not 0<v<math.inf: raise ConfigError(f'{name} is {v}: give a number above 0.')
    batch = hidden_sampler(run, batch_size, seed)
    x,h = (torch.cat(t, 1) for t in zip(*[batch(t) for t in range(8)]))
    k = expected_active(run, x) if k is None else _per_model('k', k, run)
    if kind=='topk' and ((k<1) | (k!=k.round())).any():
        raise ConfigError('k is below 1 or not whole: give integers of at least 1.')
    k = k.long()
    sparsity = _per_model(*(('l1', l1) if kind=='relu' else ('l0', l0)), run).float()
    scale = root_mean_square(h)
    params = _start(run, n_latents, kind, seed, threshold)
    opt = torch.optim.Adam(params.values(), lr=lr)
    rate = torch.optim.lr_scheduler.LambdaLR(opt, lambda t: min(1., 5*(1-t/steps)))
    logged,losses = [],[]
    with progress_callback(progress, 'steps') as report:
        for t in range(steps):
            h = batch(t)[1]/scale
            loss = dictionary_loss(params, h, kind, k, sparsity, bandwidth)
            if t%log_every==0 or t==steps-1:
                _check_finite(loss, t)
                logged.append(t)
                losses.append(loss.detach().cpu())
                if report: report(t+1, steps)
            _update(params, loss, opt)
            rate.step()
    with torch.no_grad():
        params = {name: v.detach()*(scale if name[0]=='b' else 1) for name,v in params.items()}
        if kind=='jumprelu': params['log_threshold'] += scale.log()
    return Dictionary(kind, params, k if kind=='topk' else None, torch.tensor(logged),
                      torch.stack(losses, 1))

def _update(params, loss, opt):
    "Make a step on which directions keep unit norm"
    opt.zero_grad()
    loss.sum().backward()
    D = params['W_dec']
    with torch.no_grad():
        D.grad -= (D.grad*D).sum(-1, keepdim=True)*D
        opt.step()
        D /= D.norm(dim=-1, keepdim=True)

def _check_finite(loss, step):
    if not torch.isfinite(loss).all(): raise ModelError(
        f'The loss of a dictionary is not finite at step {step}: lower lr.')


# %% [markdown]
# Five features in a plane at density 0.05 form a pentagon. All three kinds of autoencoder, started from five random
# directions, are trained on two models:

# %%
config = ToyConfig(5, 2, 2, density=.05, init=.1)
run = train(config, steps=2000, lr=.01, schedule='cosine', batch_size=256, seed=1)
steps = dict(topk=1200, relu=500, jumprelu=500)
dictionaries = {kind: fit_dictionary(run, kind, steps=n, batch_size=256, lr=.01)
                for kind,n in steps.items()}
for d in dictionaries.values():
    test_close(d.directions.norm(dim=-1), torch.ones(2,5), 1e-5)
    assert (d.loss[:,-1] < .7*d.loss[:,0]).all()
{kind: d.loss[:,[0,-1]].numpy().round(4) for kind,d in dictionaries.items()}

# %% [markdown]
# A model's autoencoder is the same alone as in the batch, and after it was saved:

# %%
from dataclasses import replace
def model_of(run, i):
    "Return a run with only one of its models"
    return replace(run, instances=[run.instances[i]],
                   params={name: v[[i]] for name,v in run.params.items()})

h = hidden_sampler(run, 100)(0)[1]
for kind,d in dictionaries.items():
    alone = fit_dictionary(model_of(run, 1), kind, steps=40, batch_size=64)
    both = fit_dictionary(run, kind, steps=40, batch_size=64)
    test_close(alone.directions[0], both.directions[1], 1e-4)
    with tempfile.TemporaryDirectory() as folder:
        loaded = Dictionary.load(d.save(Path(folder)/'new'/'dictionary.safetensors'))
    test_eq(loaded.decode(loaded.encode(h)), d.decode(d.encode(h)))
    test_eq(loaded.loss, d.loss)
loaded


# %% [markdown]
# ## Scores
#
# A stored feature, one whose column is longer than one half, is compared with the latent that the Hungarian
# algorithm assigns to it. The mean cosine is the mean correlation coefficient (MCC) of the literature. It is signed:
# latents are non-negative, so the opposite of a direction is another feature, often an existing one. Precision and recall
# compare when the latent and the feature are active, that is, when their contributions to the activation are longer
# than a hundredth of its root mean square. A latent is dead if it is never active; a feature is *split* if several live
# latents lie closest to it, each with a cosine of 0.9 or more. A feature without a latent has the score 0.

# %%
#| export
def true_directions(
    run:ToyRun,
    i:int,          # Position of the model in the run
    x:torch.Tensor, # Inputs [batch, feature]
)->tuple:           # Unit directions [feature, hidden], lengths of contributions [batch, feature]
    "Return directions and contributions of the stored features; a signed feature counts as two"
    stored = represented(run.W[i])
    w = run.W[i][stored]
    norm = w.norm(dim=-1)
    w,x = w/norm[:,None], x[:,stored]*norm
    if not run.config.signed: return w,x
    return torch.cat([w,-w]), torch.cat([x,-x], 1).clamp(min=0)

_scores = ['latent','cosine','precision','recall','f1','found','split']

def match_latents(
    directions:torch.Tensor, # Unit norm, [latent, hidden]
    latents:torch.Tensor,    # [batch, latent]
    features:torch.Tensor,   # Unit directions of the true features, [feature, hidden]
    contributions:torch.Tensor, # Of the true features, [batch, feature]
    threshold=0.,            # Shortest contribution that counts as active
    cosine=.9,               # Smallest cosine of a latent that belongs to a feature
)->pd.DataFrame:             # A row for each feature
    "Match features with latents and score each of them"
    if not len(features): return pd.DataFrame(columns=_scores, dtype=float)
    C = features@directions.mT
    fired,active = latents>threshold, contributions>threshold
    feature,latent = linear_sum_assignment(-C.cpu().numpy())
    both = (active[:,feature] & fired[:,latent]).sum(0)
    predicted,true = fired[:,latent].sum(0), active[:,feature].sum(0)
    owner = C.argmax(0)[fired.any(0) & (C.amax(0)>=cosine)]
    table = pd.DataFrame(dict(latent=latent, cosine=C[feature,latent].cpu(),
        precision=(both/predicted.clamp(min=1)).cpu(), recall=(both/true.clamp(min=1)).cpu(),
        f1=(2*both/(predicted+true).clamp(min=1)).cpu()), index=feature)
    table = table.reindex(range(len(features))).fillna(dict(latent=-1)).fillna(0.)
    return table.assign(found=(C.amax(1)>=cosine).cpu(),
                        split=(owner.bincount(minlength=len(features))>1).cpu())

def score_latents(directions, latents, features, contributions, threshold=0., cosine=.9)->dict:
    "Score directions and latents of one model; arguments as in `match_latents`"
    table = match_latents(directions, latents, features, contributions, threshold, cosine)
    fired = latents>threshold
    means = table[['cosine','found','precision','recall','f1']].mean()
    return dict(features=len(features)) | means.rename(dict(cosine='mcc')).to_dict() | dict(
        dead=int((~fired.any(0)).sum()), split=int(table.split.sum()),
        active=fired.double().sum(-1).mean().item())

def explained_variance(
    h:torch.Tensor,      # Activations [batch, hidden]
    output:torch.Tensor, # Their reconstructions
)->float:
    "Return the share of the variance of activations that is reconstructed"
    return 1 - ((h-output).square().sum()/(h-h.mean(0)).square().sum()).item()

@checked
def score_dictionary(
    dictionary:Dictionary,
    run:ToyRun,
    samples:int=20_000, # Fresh inputs of each model
    seed=1,             # Of these inputs
    cosine:float=.9,    # Smallest cosine of a latent that belongs to a feature
)->pd.DataFrame:        # A row for each model; not a number if no feature is stored
    "Score dictionaries against the true features"
    check_positive_integers(samples=samples)
    _check_run(run)
    if not isinstance(dictionary, Dictionary) or len(run.W)!=len(dictionary.directions) \
            or run.W.shape[-1]!=dictionary.directions.shape[-1]:
        raise ConfigError(f'{dictionary} was not fitted to {run}: give the run of fit_dictionary.')
    x,h = hidden_sampler(run, samples, seed)(0)
    z = dictionary.encode(h)
    output = dictionary.decode(z)
    threshold = .01*root_mean_square(h)
    rows = [score_latents(D, z[i], *true_directions(run, i, x[i]), threshold[i], cosine)
            | dict(explained_variance=explained_variance(h[i], output[i]))
            for i,D in enumerate(dictionary.directions)]
    return pd.DataFrame(rows, index=pd.Index(run.instances, name='instance'))


# %% [markdown]
# TopK finds the pentagon. With these penalties and few steps the two others find only some of its corners, although they
# reconstruct the activations better.

# %%
scores = pd.concat({kind: score_dictionary(d, run) for kind,d in dictionaries.items()})
assert (scores.features==5).all() and (scores.loc['topk',['mcc','found']]>.98).all(axis=None)
assert (scores.mcc>.7).all() and (scores.dead<=1).all()
scores.round(3)


# %% [markdown]
# ## Tests of the scores
#
# A model with orthogonal features and a dictionary set to the truth has all scores at 1, in any order of the latents.
# With one direction reversed, that feature has cosine −1 and is never found active; with a latent twice, a feature is
# split.

# %%
def true_dictionary(run, kind='relu'):
    "Return a dictionary with the true directions of models that store equally many features"
    x,_ = hidden_sampler(run, 1)(0)
    D = torch.stack([true_directions(run, i, x[i])[0] for i in range(len(run.W))])
    I,n,m = D.shape
    params = dict(W_enc=D.mT.contiguous(), b_enc=D.new_zeros(I, 1, n), W_dec=D,
                  b_dec=D.new_zeros(I, 1, m))
    return Dictionary(kind, params)

def with_latents(d, index, sign=None):
    "Select latents of a dictionary, and multiply them and their directions by signs"
    sign = torch.ones(len(index)) if sign is None else sign
    p = d.params
    return Dictionary(d.kind, dict(p, W_enc=p['W_enc'][...,index]*sign,
        b_enc=p['b_enc'][...,index]*sign, W_dec=p['W_dec'][:,index]*sign[:,None]))

def run_with(W, **kw):
    "Return a run whose weights are given"
    run = train(ToyConfig(*W.shape, 1, density=.2, **kw), steps=1)
    run.params['W'][:] = W
    return run

run4 = run_with(torch.eye(4))
perfect = true_dictionary(run4)
ones = ['mcc','found','precision','recall','f1','explained_variance']
for d in (perfect, with_latents(perfect, [2,0,3,1])):
    s = score_dictionary(d, run4)
    test_close(s[ones].to_numpy(), 1, 1e-6); test_eq(s[['dead','split']].to_numpy().sum(), 0)
flipped = score_dictionary(with_latents(perfect, [0,1,2,3], torch.tensor([1.,1,1,-1])), run4)
test_close(flipped[['mcc','recall','dead']].to_numpy()[0], [.5,.75,1], 1e-6)
doubled = score_dictionary(with_latents(perfect, [0,1,2,3,3]), run4)
test_eq(doubled.split.item(), 1); test_close(doubled.mcc.item(), 1, 1e-6)
missing = score_dictionary(with_latents(perfect, [0,1,2]), run4)
test_close(missing[['mcc','found','f1']].to_numpy()[0], .75, 1e-6)

# %% [markdown]
# If opposite features are both active, an encoder sees only their difference, so that its recall is
# below 1. Of two independent features at density $p$, the smaller one is lost whenever both are
# active: recall is $1-p/2$, at a precision of 1. Signed features count as two directions.

# %%
digons = run_with(tegum(polygon(2), polygon(2)).float())
s = score_dictionary(true_dictionary(digons), digons, samples=200_000)
test_close(s[['mcc','precision','recall']].to_numpy()[0], [1,1,1-.2/2], 3e-3)
signed = run_with(torch.eye(3), signed=True)
s = score_dictionary(true_dictionary(signed), signed)
test_eq(s.features.item(), 6); test_close(s[ones].to_numpy(), 1, 1e-6)

# %%
with expect_fail(ConfigError, contains="did you mean 'topk'"): fit_dictionary(run, 'topkk')
for k in (0, 1.5):
    with expect_fail(ConfigError, contains='k is below 1 or not whole'): fit_dictionary(run, k=k)
own = train(ToyConfig(5, 2), steps=1, data=torch.rand(8, 5))
with expect_fail(ConfigError, contains='data of yours'): fit_dictionary(own)
for make in (fit_dictionary, lambda r: score_dictionary(perfect, r)):
    with expect_fail(ConfigError, contains='give toy models'): make(None)
with expect_fail(ConfigError, contains='l1 has shape [3]'): fit_dictionary(run, 'relu', l1=[1,2,3])
with expect_fail(ConfigError, contains='n_latents is 0'): fit_dictionary(run, n_latents=0)
with expect_fail(ConfigError, contains='not fitted to'): score_dictionary(perfect, run)
with expect_fail(ConfigError, contains='not fitted to'): score_dictionary(None, run)
with expect_fail(ModelError, contains='not finite'):
    fit_dictionary(run, 'relu', steps=300, lr=1e30, log_every=1)
for wrong in (dict(lr=-1.), dict(threshold=0.), dict(bandwidth=0.)):
    with expect_fail(ConfigError, contains='above 0'): fit_dictionary(run, 'jumprelu', **wrong)
with expect_fail(DataError, contains='not a saved dictionary'): Dictionary.load('nowhere')
for incomplete in (Dictionary('topk', perfect.params), Dictionary('jumprelu', perfect.params)):
    with tempfile.TemporaryDirectory() as folder:
        path = incomplete.save(Path(folder)/'dictionary')
        with expect_fail(DataError, contains='not a saved dictionary'): Dictionary.load(path)

# %% [markdown]
# With one hidden dimension, or with one latent, encoder and decoder are parameters of their own, too. A model that
# stores no feature has no score.

# %%
line = train(ToyConfig(3, 1, density=.1), steps=1, batch_size=8)
for n in (3,1):
    start = _start(line, n, 'relu', 0, .1)
    assert start['W_enc'].data_ptr()!=start['W_dec'].data_ptr()
empty = score_latents(torch.eye(2), torch.ones(4,2), torch.zeros(0,2), torch.zeros(4,0))
assert empty['features']==0 and math.isnan(empty['mcc'])
