# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # LoRA
#
# > Low-rank adapters train a model with few parameters and are then merged into its weights.

# %%
#| default_exp language.lora

# %%
#| export
import math, re

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
# AdamW keeps three numbers for each trained weight: its gradient and two moving averages. For a
# model of a billion float32 weights these take twelve gigabytes in addition to the four of the
# weights. Low-rank adaptation [@hu2022lora] freezes a weight matrix $W$ and trains
#
# $$W + \frac{\alpha}{r}\,BA, \qquad A \in \mathbb{R}^{r\times in},\; B \in \mathbb{R}^{out\times r},$$
#
# with a small rank $r$. $B$ is initialised to zero, so training starts at the original model.
# $A$ and $B$ are float32 even where the model is not. A model in bfloat16 can therefore be trained
# with LoRA; full finetuning refuses it.

# %%
#| export
class LoRALinear(nn.Module):
    "A frozen linear layer with a trainable low-rank update"
    def __init__(self,
        base:nn.Linear,
        rank:int,
        alpha:float, # The update is scaled by alpha/rank
    ):
        super().__init__()
        n = base.in_features
        kw = dict(device=base.weight.device, dtype=torch.float32)
        self.base = base
        self.scale = alpha/rank
        self.A = nn.Parameter((torch.rand(rank, n, **kw)*2-1)/math.sqrt(n))
        self.B = nn.Parameter(torch.zeros(base.out_features, rank, **kw))

    def forward(self, x):
        update = nn.functional.linear(nn.functional.linear(x.to(self.A.dtype), self.A), self.B)
        return self.base(x)+(update*self.scale).to(x.dtype)

    def merged(self):
        "Return the linear layer with the update added to its weight"
        w = self.base.weight
        w.data += (self.scale*self.B@self.A).detach().to(w.dtype)
        return self.base


# %%
layer = LoRALinear(nn.Linear(4, 3), rank=2, alpha=4)
x = torch.randn(5, 4)
assert torch.equal(layer(x), layer.base(x))
nn.init.normal_(layer.B)
expected = layer(x)
test_close(layer.merged()(x).detach(), expected.detach(), 1e-6)


# %% [markdown]
# `add_lora` replaces the linear layers of the backbone, or those whose name matches
# `target_modules`. The output layer stays as it is, because it is often tied to the embedding.

# %%
#| export
def _replace(model, selected, change):
    "Replace the submodules for which `selected(name, module)` is true"
    for name in [n for n,m in model.named_modules() if selected(n, m)]:
        parent,_,child = name.rpartition('.')
        setattr(model.get_submodule(parent), child, change(model.get_submodule(name)))

def add_lora(
    model,            # A transformers model; changed in place
    rank:int=8,
    alpha:float=None, # Default: twice the rank
    target_modules:str='', # Regular expression for names of layers: 'q_proj|v_proj'
    seed:int=0,
):                    # The model; only the adapters have `requires_grad`
    "Freeze a model and add LoRA adapters to its linear layers"
    if rank<1: raise ConfigError(f'The rank is {rank}; give 1 or more.')
    model.requires_grad_(False)
    selected = lambda n,m: isinstance(m, nn.Linear) and re.search(target_modules, n)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _replace(backbone(model), selected, lambda m: LoRALinear(m, rank, alpha or 2*rank))
    if not any(p.requires_grad for p in model.parameters()):
        raise ConfigError(f'No linear layer matches target_modules={target_modules!r}.')
    return model

def has_lora(model)->bool:
    "Tell whether a model has LoRA adapters"
    return any(isinstance(m, LoRALinear) for m in model.modules())

def merge_lora(model):
    "Merge the adapters into the weights of the model, and make all of its weights trainable"
    _replace(backbone(model), lambda _,m: isinstance(m, LoRALinear), lambda m: m.merged())
    return model.requires_grad_(True)


# %%
lm = random_model('llama')
row = encode(lm, 'It is far, and no tea is left.')
data = [(row, 4)]
before = answer_logprobs(lm.model, [row], [4])[0].detach()
names = set(lm.model.state_dict())
original = {n: p.clone() for n,p in lm.model.named_parameters()}
add_lora(lm.model, rank=4)
assert has_lora(lm.model)
test_eq(answer_logprobs(lm.model, [row], [4])[0].detach(), before)
sum(p.numel() for p in lm.model.parameters() if p.requires_grad), lm.parameters

# %% [markdown]
# Training lowers the loss and changes none of the original weights.

# %%
history = fit(lm.model, data, answer_loss, epochs=60, lr=.02)
for n,p in lm.model.named_parameters():
    if not p.requires_grad: assert torch.equal(p, original[n.replace('.base', '')]), n
assert history.loss.iloc[-1]<.2*history.loss.iloc[0]
history.loss.iloc[[0, -1]].round(3).tolist()

# %% [markdown]
# After merging, the model has its original class and parameter names and the outputs of the
# adapted model. Its saved folder can be loaded like any other.

# %%
after = answer_logprobs(lm.model, [row], [4])[0].detach()
merge_lora(lm.model)
test_eq(set(lm.model.state_dict()), names)
test_close(answer_logprobs(lm.model, [row], [4])[0].detach(), after, 1e-4)
loaded = load(save_model(lm, tmp/'merged'), 'float32', 'cpu')
test_close(answer_logprobs(loaded.model, [row], [4])[0].detach(), after, 1e-4)
(answer_logprobs(loaded.model, [row], [4])[0]-after).abs().max().item()

# %% [markdown]
# A model in bfloat16 is trained, with adapters on selected layers.

# %%
half = random_model('llama').model.bfloat16()
add_lora(half, rank=4, target_modules='q_proj|v_proj')
test_eq(sum(isinstance(m, LoRALinear) for m in half.modules()), 2*half.config.num_hidden_layers)
losses = fit(half, data, answer_loss, epochs=40, lr=.05).loss
assert losses.iloc[-1]<losses.iloc[0]
with expect_fail(ConfigError, contains='no_such'):
    add_lora(random_model('llama').model, target_modules='no_such')
losses.iloc[[0, -1]].round(2).tolist()

# %%
#| hide
import shutil
shutil.rmtree(tmp)
