# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Stacked training
#
# > Several small Llama models are trained at once, as one model with stacked weights.

# %%
#| default_exp bias.toy.training

# %%
#| export
import math

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from moral_sc.foundation.errors import ConfigError, ModelError
from moral_sc.foundation.runs import content_key, open_run
from moral_sc.language.optimization import Checkpoints, build_optimizer, learning_rate
from moral_sc.language.training import epoch_batches

# %%
#| hide
import tempfile, time
from pathlib import Path
from fastcore.test import *
from moral_sc.bias.toy.environment import ToyLanguage, encoded_documents, tokenizer
from moral_sc.language.reward_head import small_llama
from moral_sc.language.training import answer_loss, fit

tmp = Path(tempfile.mkdtemp())
torch.set_num_threads(1)


# %% [markdown]
# A training step of a transformer with a few thousand weights spends its time on the overhead of
# operations, not on arithmetic. [`fit`](../../language/46_training.ipynb) trains one model at a
# time. `fit_stacked` trains several models of one shape, each on its own examples, with the
# arithmetic of `fit`: the same batches, losses, clipping and optimizer. Two more things are saved:
# below the last layer's keys and values, only the tokens that predict an answer are computed, and
# rows with long and with short answers are padded apart.
#
# ## Forward pass

# %%
#| export
def stack_weights(
    models:list, # Llama models of one shape
)->dict:         # Name -> [model, ...]; matrices are transposed
    "Stack the weights of several models for batched products"
    shapes = {tuple((k, tuple(v.shape)) for k,v in m.state_dict().items()) for m in models}
    if len(shapes)!=1: raise ConfigError('Models of different shapes cannot be stacked; train '
                                         'each shape by itself.')
    if any(m.config.model_type!='llama' or not m.config.tie_word_embeddings for m in models):
        raise ConfigError('Only Llama models with tied embeddings can be stacked; use '
                          '`language.training.fit` for others.')
    names = [k for k,_ in models[0].named_parameters()]
    stacked = {k: torch.stack([m.get_parameter(k).detach() for m in models]) for k in names}
    return {k: _transposed(k, v).contiguous().requires_grad_() for k,v in stacked.items()}

def unstack_weights(
    weights:dict,
    models:list, # Changed in place
):
    "Copy stacked weights back into their models"
    with torch.no_grad():
        for k,v in weights.items():
            for m,x in zip(models, _transposed(k, v)): m.get_parameter(k).copy_(x)

def _transposed(name, x):
    if 'norm' in name: return x[:,None] if x.ndim==2 else x[:,0]
    return x if 'embed' in name else x.transpose(1, 2)

def _rms_norm(x, weight, eps): return x*torch.rsqrt(x.square().mean(-1, keepdim=True)+eps)*weight

def _rotation(n, width, theta, device):
    frequency = theta**(-torch.arange(0, width, 2, device=device)/width)
    angle = torch.outer(torch.arange(n, device=device).float(), frequency).repeat(1, 2)
    return angle.cos(),angle.sin()

def _rotate(x, cos, sin):
    a,b = x.chunk(2, -1)
    return x*cos + torch.cat([-b, a], -1)*sin

class StackedLlama:
    "The forward pass of several Llama models at once"
    def __init__(self, config):
        self.config = config
        self.heads = config.num_attention_heads
        self.theta = (getattr(config, 'rope_parameters', None) or {}).get('rope_theta', 10000.)

    def hidden(self,
        w:dict,
        tokens, # [model, row, token]
        at,     # [model, row, read] positions whose hidden states are returned
    )->torch.Tensor: # [model, row x read, width]
        "Return normalised hidden states at some positions"
        m,b,t = tokens.shape
        embedding = w['model.embed_tokens.weight']
        v,d = embedding.shape[1:]
        rows = tokens+v*torch.arange(m, device=tokens.device)[:,None,None]
        x = F.embedding(rows, embedding.reshape(m*v, d)).reshape(m, b*t, d)
        rotation = _rotation(t, d//self.heads, self.theta, tokens.device)
        for k in range(self.config.num_hidden_layers):
            layer = {n: w[f'model.layers.{k}.{n}.weight'] for n in LAYER_WEIGHTS}
            last = k+1==self.config.num_hidden_layers
            x = self._layer(layer, x, (m, b, t), rotation, at if last else None)
        return _rms_norm(x, w['model.norm.weight'], self.config.rms_norm_eps)

    def _layer(self, w, x, shape, rotation, at):
        eps = self.config.rms_norm_eps
        h = _rms_norm(x, w['input_layernorm'], eps)
        if at is None: a = self._attention(w, h, shape, rotation)
        else:
            x = _read(x, shape, at)
            a = self._attention_at(w, h, shape, rotation, at)
        x = torch.baddbmm(x, a, w['self_attn.o_proj'])
        h = _rms_norm(x, w['post_attention_layernorm'], eps)
        gate = F.silu(torch.bmm(h, w['mlp.gate_proj']))
        return torch.baddbmm(x, gate*torch.bmm(h, w['mlp.up_proj']), w['mlp.down_proj'])

    def _heads(self, x, rows): # [row, head, token, width of a head]
        return x.reshape(rows, -1, self.heads, x.shape[-1]//self.heads).transpose(1, 2)

    def _attention(self, w, h, shape, rotation):
        m,b,t = shape
        q,k,v = (self._heads(torch.bmm(h, w[f'self_attn.{n}_proj']), m*b) for n in 'qkv')
        o = F.scaled_dot_product_attention(_rotate(q, *rotation), _rotate(k, *rotation), v,
                                           is_causal=True)
        return o.transpose(1, 2).reshape(m, b*t, -1)

    def _attention_at(self, w, h, shape, rotation, at):
        m,b,t = shape
        q = self._heads(torch.bmm(_read(h, shape, at), w['self_attn.q_proj']), m*b)
        k,v = (self._heads(torch.bmm(h, w[f'self_attn.{n}_proj']), m*b) for n in 'kv')
        at = at.reshape(m*b, -1)
        q = _rotate(q, *(r[at][:,None] for r in rotation))
        scores = q@_rotate(k, *rotation).transpose(-1, -2)/math.sqrt(q.shape[-1])
        future = torch.arange(t, device=at.device)>at[...,None]
        o = scores.masked_fill(future[:,None], -math.inf).softmax(-1)@v
        return o.transpose(1, 2).reshape(m, -1, h.shape[-1])

LAYER_WEIGHTS = ('input_layernorm', 'post_attention_layernorm', 'self_attn.q_proj',
                 'self_attn.k_proj', 'self_attn.v_proj', 'self_attn.o_proj', 'mlp.gate_proj',
                 'mlp.up_proj', 'mlp.down_proj')

def _read(x, shape, at):
    m,b,t = shape
    n = at.shape[-1]
    index = at[...,None].expand(m, b, n, x.shape[-1])
    return x.reshape(m, b, t, -1).gather(2, index).reshape(m, b*n, -1)


# %%
language = ToyLanguage()
def make_models(n, width=8): # With weights large enough to show an error
    models = [small_llama(tokenizer(language), 2, width, 2, seed=s).model for s in range(n)]
    with torch.no_grad():
        for m in models:
            for p in m.parameters():
                if p.ndim==2: p.mul_(8)
    return models

models = make_models(3)
tokens = torch.randint(0, 100, (3, 4, 9), generator=torch.Generator().manual_seed(0))
at = torch.tensor([2, 8]).expand(3, 4, 2)
w = stack_weights(models)
h = StackedLlama(models[0].config).hidden(w, tokens, at)
logits = torch.bmm(h, w['model.embed_tokens.weight'].transpose(1, 2)).reshape(3, 4, 2, -1)
with torch.no_grad(): reference = [m(x).logits[:,[2, 8]] for m,x in zip(models, tokens)]
test_close(logits.detach(), torch.stack(reference), 1e-5)
with expect_fail(ConfigError, contains='different shapes'):
    stack_weights([*models, *make_models(1, 16)])

# %% [markdown]
# ## Loss
#
# A step adds the mean losses of all models, so that each model has the gradient of its own loss.

# %%
#| export
SHORT = 4 # Tokens of a short answer, without reasoning

def _arrays(corpora, chosen, device):
    "Pad rows: tokens, positions that predict, targets, and weights 1 or 0"
    rows = [[corpus[i] for i in c] for corpus,c in zip(corpora, chosen)]
    b = max(map(len, rows))
    t = max(len(ids) for r in rows for ids,_ in r)-1
    n = max(len(ids)-start for r in rows for ids,start in r)
    tokens = np.zeros((len(rows), b, t), np.int64)
    at,targets = np.zeros((2, len(rows), b, n), np.int64)
    weights = np.zeros((len(rows), b, n), np.float32)
    for m,r in enumerate(rows):
        for k,(ids,start) in enumerate(r):
            learned = len(ids)-start
            tokens[m,k,:len(ids)-1] = ids[:-1]
            at[m,k,:learned] = range(start-1, len(ids)-1)
            targets[m,k,:learned] = ids[start:]
            weights[m,k,:learned] = 1
    return [torch.from_numpy(x).to(device) for x in (tokens, at, targets, weights)]

def _groups(corpora, chosen, device):
    "Split the rows of a step by the length of their answers"
    def is_short(example): return len(example[0])-example[1]<=SHORT
    for short in (True, False):
        part = [[i for i in c if is_short(corpus[i])==short] for corpus,c in zip(corpora, chosen)]
        if any(part): yield _arrays(corpora, part, device)

def stacked_loss(
    net:StackedLlama,
    w:dict,
    corpora:list, # For each model its examples: (token ids, index of the first learned token)
    chosen:list,  # For each model the numbers of its examples in this step
)->torch.Tensor:  # [model] mean cross-entropy of the answers' tokens, in nats
    "Return the loss of each model, with gradient"
    total = 0.
    count = 0.
    embedding = w['model.embed_tokens.weight']
    for tokens,at,targets,weights in _groups(corpora, chosen, embedding.device):
        h = net.hidden(w, tokens, at)
        logits = torch.bmm(h, embedding.transpose(1, 2))
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction='none')
        total = total + (losses.reshape(weights.shape)*weights).sum((1, 2))
        count = count + weights.sum((1, 2))
    return total/count


# %% [markdown]
# The step has not yet run on a GPU. The device `meta`, whose tensors have no contents, shows that each
# tensor would be where the weights are:

# %%
corpus = encoded_documents(language, 8)
empty = {k: torch.empty(v.shape, device='meta', requires_grad=True) for k,v in w.items()}
net = StackedLlama(models[0].config)
losses = stacked_loss(net, empty, [corpus]*3, [range(8)]*3)
losses.sum().backward()
test_eq({x.grad.device.type for x in empty.values()} | {losses.device.type}, {'meta'})
name = 'model.norm.weight'
with expect_fail(RuntimeError): # Tensors of two devices do not go together
    stacked_loss(net, empty | {name: w[name]}, [corpus]*3, [range(8)]*3)


# %% [markdown]
# ## The loop
#
# The arguments are those of `fit`; the seed of each model's batches is its own.

# %%
#| export
def fit_stacked(
    models:list,            # Llama models of one shape, trained in place
    corpora:list,           # For each its examples: (ids, index of the first learned token)
    seeds:list,             # For each the seed of the order of its examples
    *,
    batch:int=64,           # Examples a step, for each model
    epochs:int=1,
    lr:float=5e-3,
    warmup:int=0,           # Steps
    schedule:str='cosine',  # See `language.optimization.learning_rate`
    betas:tuple=(.9, .999),
    max_grad_norm:float=1., # Of each model; 0: no clipping
    out=None,               # Folder of checkpoints; the same call resumes
    every:int=200,          # Steps between checkpoints
    progress=None,          # progress(steps done, number of steps)
    device=None,            # Where to train; default: where the models are
)->pd.DataFrame:            # step, model, loss, grad_norm
    "Train several small models at once and return the history"
    if not models or len({len(models), len(corpora), len(seeds)})>1:
        raise ConfigError(f'{len(models)} models, {len(corpora)} corpora and {len(seeds)} seeds '
                          'were given; give one corpus and one seed for each model.')
    if len({len(c) for c in corpora})>1 or not corpora[0]:
        raise ConfigError('Give corpora of one length, with one example or more.')
    settings = dict(batch=batch, epochs=epochs, lr=lr, warmup=warmup, schedule=schedule,
                    betas=betas, max_grad_norm=max_grad_norm, seeds=list(seeds))
    state = _Stack(models, corpora, settings, device)
    with _stacked_run(out, state) as checkpoints:
        state.train(checkpoints, every, progress)
    unstack_weights(state.weights, models)
    return pd.DataFrame(state.history, columns=['step', 'model', 'loss', 'grad_norm'])

class _Stack:
    "A stacked training in progress"
    def __init__(self, models, corpora, settings, device):
        self.net = StackedLlama(models[0].config)
        self.weights = {k: v.detach().to(device or v.device).requires_grad_()
                        for k,v in stack_weights(models).items()}
        self.corpora = corpora
        self.settings = settings
        self.optimizer = build_optimizer(self.weights.values(), settings['lr'],
                                         betas=settings['betas'])
        self.epoch_steps = math.ceil(len(corpora[0])/settings['batch'])
        self.steps = self.epoch_steps*settings['epochs']
        self.history = []
        self.done = 0

    def key(self):
        weights = {k: content_key(w=v.detach().cpu().numpy()) for k,v in self.weights.items()}
        data = [content_key(e=c) for c in self.corpora]
        return self.settings | dict(weights=content_key(w=weights), examples=content_key(d=data))

    def chosen(self, step):
        epoch,k = divmod(step, self.epoch_steps)
        if k==0 or not hasattr(self, 'batches'):
            n,batch = len(self.corpora[0]),self.settings['batch']
            self.batches = [epoch_batches(n, batch, s, epoch) for s in self.settings['seeds']]
        return [b[k] for b in self.batches]

    def step(self, step):
        s = self.settings
        losses = stacked_loss(self.net, self.weights, self.corpora, self.chosen(step))
        losses.sum().backward()
        norms = self._clip(s['max_grad_norm'])
        if not (losses.isfinite()&norms.isfinite()).all():
            raise ModelError(f'The loss or its gradient is not finite at step {step}; lower the '
                             'learning rate.')
        for g in self.optimizer.param_groups:
            g['lr'] = learning_rate(step, self.steps, s['lr'], s['warmup'], s['schedule'])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.history += [(step, m, *x) for m,x in enumerate(zip(losses.tolist(), norms.tolist()))]

    def _clip(self, most):
        grads = [w.grad for w in self.weights.values()]
        norms = sum(g.square().flatten(1).sum(1) for g in grads).sqrt()
        if most:
            factor = (most/(norms+1e-6)).clamp(max=1)
            for g in grads: g.mul_(factor.reshape(-1, *[1]*(g.ndim-1)))
        return norms

    def state_dict(self):
        return dict(weights={k: v.detach() for k,v in self.weights.items()}, done=self.done,
                    optimizer=self.optimizer.state_dict(), history=self.history)

    def load_state_dict(self, state):
        with torch.no_grad():
            for k,v in state['weights'].items(): self.weights[k].copy_(v)
        self.optimizer.load_state_dict(state['optimizer'])
        self.history = [tuple(h) for h in state['history']]
        self.done = state['done']

    def train(self, checkpoints, every, progress):
        while self.done<self.steps:
            self.step(self.done)
            self.done += 1
            if progress: progress(self.done, self.steps)
            if checkpoints and (self.done%every==0 or self.done==self.steps):
                checkpoints.save(self.done, self.state_dict())

class _stacked_run:
    "Resume a stacked training from its last checkpoint, and mark it as finished at the end"
    def __init__(self, out, state):
        self.out = out
        self.state = state
    def __enter__(self):
        if self.out is None: return None
        self.run = open_run(self.out, self.state.key())
        checkpoints = Checkpoints(self.out, keep=1)
        stored = checkpoints.latest()[1]
        if stored: self.state.load_state_dict(stored)
        return checkpoints
    def __exit__(self, kind, *_):
        if self.out is None: return
        if kind is None and not self.run.finished: self.run.finish()
        self.run.db.close()


# %% [markdown]
# Three models that are trained at once end like the same models trained by `fit` one after the
# other, to rounding.

# %%
corpora = [encoded_documents(ToyLanguage(seed=s), 96) for s in range(3)]
options = dict(batch=24, epochs=2, lr=.01, warmup=2, schedule='cosine')
stacked = make_models(3)
history = fit_stacked(stacked, corpora, [0, 1, 2], **options)
single = make_models(3)
for s,(m,c) in enumerate(zip(single, corpora)):
    reference = fit(m, c, answer_loss, seed=s, max_grad_norm=1., **options)
    test_close(history[history.model==s].loss.to_numpy(), reference.loss.to_numpy(), 1e-4)
    test_close(history[history.model==s].grad_norm.to_numpy(), reference.grad_norm.to_numpy(), 1e-3)
difference = max(float((a-b).detach().abs().max()) for x,y in zip(stacked, single)
                 for a,b in zip(x.parameters(), y.parameters()))
assert difference<1e-3
round(history.loss.iloc[-1], 3)


# %% [markdown]
# A training that is stopped and started again ends with the same weights, bit for bit. Other
# settings in the same folder are refused.

# %%
def stop_after(n):
    def stop(done, total):
        if done==n: raise KeyboardInterrupt
    return stop

resumed = make_models(3)
kw = options|dict(out=tmp/'stopped', every=2)
try: fit_stacked(resumed, corpora, [0, 1, 2], progress=stop_after(5), **kw)
except KeyboardInterrupt: pass
again = fit_stacked(resumed, corpora, [0, 1, 2], **kw)
assert again.equals(history)
for x,y in zip(stacked, resumed):
    for a,b in zip(x.parameters(), y.parameters()): assert torch.equal(a, b)
loaded = make_models(3)
fit_stacked(loaded, corpora, [0, 1, 2], progress=stop_after(1), **kw) # Nothing is left to do
assert torch.equal(loaded[0].model.norm.weight, resumed[0].model.norm.weight)
with expect_fail(ConfigError, contains='lr: 0.01 stored, 0.02 requested'):
    fit_stacked(make_models(3), corpora, [0, 1, 2], **kw|dict(lr=.02))
with expect_fail(ConfigError, contains='3 models, 2 corpora'):
    fit_stacked(make_models(3), corpora[:2], [0, 1, 2])
with expect_fail(ModelError, contains='step 0'):
    broken = make_models(1)
    with torch.no_grad(): broken[0].model.norm.weight.fill_(math.nan)
    fit_stacked(broken, corpora[:1], [0])


# %% [markdown]
# ## Speed
#
# The cost of a step of one model, stacked and by `fit`, in processor time on one core:

# %%
def milliseconds(train, steps=4):
    start = time.process_time()
    train()
    return round((time.process_time()-start)/steps*1e3, 1)

few = [c[:64] for c in corpora]
short = dict(batch=16, epochs=1, lr=.01)
cost = {'fit': milliseconds(lambda: [fit(m, c, answer_loss, **short) for m,c in
                                     zip(make_models(3), few)], 12),
        'fit_stacked': milliseconds(lambda: fit_stacked(make_models(3), few, [0]*3, **short), 12)}
assert cost['fit_stacked']<cost['fit']
cost

# %% [markdown]
# The page on the [toy-language benchmark](../../benchmarks/40_toy_language.ipynb) compares
# `fit_stacked` with the `Trainer` of transformers on the same models and documents.

# %%
#| hide
import shutil
shutil.rmtree(tmp)
