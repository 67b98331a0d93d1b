# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Low rank
#
# > Train a large model through small matrices beside its own, and fold them in.

# %%
#| default_exp language.lora

# %%
#| export
import math
import re

import torch
from torch import nn

from moral_sc.foundation.errors import ConfigError
from moral_sc.language.reward_head import backbone

# %%
#| hide
import tempfile
from pathlib import Path
from fastcore.test import *
from moral_sc.language.reward_head import answer_logprobs, save_model
from moral_sc.language.loading import load
from moral_sc.language.models import encode
from moral_sc.language.stub_models import random_model
from moral_sc.language.training import answer_loss, fit

tmp = Path(tempfile.mkdtemp())
torch.set_num_threads(1)


# %% [markdown]
# The optimiser keeps three numbers for each weight it trains: a gradient and two averages. For
# a model of a billion weights that is twelve gigabytes beside the four it takes itself. Low-rank
# adaptation [@hu2022lora] leaves a weight matrix $W$ as it is and trains
#
# $$W + \frac{\alpha}{r}\,BA, \qquad A \in \mathbb{R}^{r\times in},\; B \in \mathbb{R}^{out\times r},$$
#
# with a rank $r$ of a few. $B$ is zero to begin with, so training starts at the model itself.
# The small matrices are float32 even where the model is not: a model in bfloat16 can be trained
# in this way, and as a whole it could not.

# %%
#| export
class LoRALinear(nn.Module):
    "A linear layer, kept as it is, and two small matrices beside it"
    def __init__(self,
        base:nn.Linear,
        rank:int,
        alpha:float, # Strength; divided by the rank
    ):
        super().__init__()
        n = base.in_features
        kw = dict(device=base.weight.device, dtype=torch.float32)
        self.base = base
        self.scale = alpha/rank
        self.a = nn.Parameter((torch.rand(rank, n, **kw)*2-1)/math.sqrt(n))
        self.b = nn.Parameter(torch.zeros(base.out_features, rank, **kw))

    def forward(self, x):
        more = nn.functional.linear(nn.functional.linear(x.to(self.a.dtype), self.a), self.b)
        return self.base(x)+(more*self.scale).to(x.dtype)

    def folded(self):
        "One linear layer that does the same"
        w = self.base.weight
        w.data += (self.scale*self.b@self.a).detach().to(w.dtype)
        return self.base


# %%
layer = LoRALinear(nn.Linear(4, 3), rank=2, alpha=4)
x = torch.randn(5, 4)
assert torch.equal(layer(x), layer.base(x))
nn.init.normal_(layer.b)
want = layer(x)
test_close(layer.folded()(x).detach(), want.detach(), 1e-6)


# %% [markdown]
# `add_lora` puts such a layer in place of every linear layer of the trunk, or of those whose name
# matches. The output layer stays; it is often the embedding as well.

# %%
#| export
def _replace(model, of, change):
    "Put something else in the place of some modules"
    for name in [n for n,m in model.named_modules() if of(n, m)]:
        above,_,last = name.rpartition('.')
        setattr(model.get_submodule(above), last, change(model.get_submodule(name)))

def add_lora(
    model,            # A transformers model; changed in place
    rank:int=8,
    alpha:float=None, # Default: twice the rank
    target_modules:str='',      # Regular expression in the names of layers: 'q_proj|v_proj'
    seed:int=0,
):                    # The model; nothing in it but the small matrices can be trained
    "Freeze a model, and set small matrices beside its linear layers"
    if rank<1: raise ConfigError(f'A rank of {rank} is no rank; use 1 or more.')
    model.requires_grad_(False)
    fits = lambda n,m: isinstance(m, nn.Linear) and re.search(target_modules, n)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _replace(backbone(model), fits, lambda m: LoRALinear(m, rank, alpha or 2*rank))
    if not any(p.requires_grad for p in model.parameters()):
        raise ConfigError(f'No linear layer has {target_modules!r} in its name.')
    return model

def merge_lora(model):
    "Fold the small matrices in: a model like any other, and all of it can be trained"
    _replace(backbone(model), lambda _,m: isinstance(m, LoRALinear), lambda m: m.folded())
    return model.requires_grad_(True)


# %%
lm = random_model('llama')
row = encode(lm, 'It is far, and no tea is left.')
data = [(row, 4)]
before = answer_logprobs(lm.model, [row], [4])[0].detach()
names = set(lm.model.state_dict())
kept = {n: p.clone() for n,p in lm.model.named_parameters()}
add_lora(lm.model, rank=4)
test_eq(answer_logprobs(lm.model, [row], [4])[0].detach(), before)
sum(p.numel() for p in lm.model.parameters() if p.requires_grad), lm.parameters

# %% [markdown]
# Training learns the sentence and leaves every weight of the model alone.

# %%
history = fit(lm.model, data, answer_loss, epochs=60, lr=.02)
for n,p in lm.model.named_parameters():
    if not p.requires_grad: assert torch.equal(p, kept[n.replace('.base', '')]), n
assert history.loss.iloc[-1]<.2*history.loss.iloc[0]
history.loss.iloc[[0, -1]].round(3).tolist()

# %% [markdown]
# Folded in, it is a model of the same class with the same names, which says the same, and which
# every reader of model folders reads.

# %%
after = answer_logprobs(lm.model, [row], [4])[0].detach()
merge_lora(lm.model)
test_eq(set(lm.model.state_dict()), names)
test_close(answer_logprobs(lm.model, [row], [4])[0].detach(), after, 1e-4)
again = load(save_model(lm, tmp/'merged'), 'float32', 'cpu')
test_close(answer_logprobs(again.model, [row], [4])[0].detach(), after, 1e-4)
(answer_logprobs(again.model, [row], [4])[0]-after).abs().max().item()

# %% [markdown]
# A model in bfloat16 learns too, which it would refuse to do as a whole. Some layers can be
# named.

# %%
half = random_model('llama').model.bfloat16()
add_lora(half, rank=4, target_modules='q_proj|v_proj')
test_eq(sum(isinstance(m, LoRALinear) for m in half.modules()), 2*half.config.num_hidden_layers)
losses = fit(half, data, answer_loss, epochs=40, lr=.05).loss
assert losses.iloc[-1]<losses.iloc[0]
with expect_fail(ConfigError, contains='no_such'): add_lora(random_model('llama').model, target_modules='no_such')
losses.iloc[[0, -1]].round(2).tolist()

# %%
#| hide
import shutil
shutil.rmtree(tmp)
