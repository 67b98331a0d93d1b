# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Layer replacement
#
# > The attention function and the layers of one model are replaced for a while.

# %%
#| default_exp language.engine.replacement

# %%
#| export
from contextlib import contextmanager
from functools import cache
from weakref import WeakKeyDictionary

# %%
#| hide
import copy
import threading
import torch
from fastcore.test import *
from torch import nn
from moral_sc.language.stub_models import random_model

# %% [markdown]
# A faster kernel has to take the place of a slower one in the model that you use, and in no
# other. Patching `torch.nn.functional` would change all models of the process, those of other
# threads included. This module changes one model: its attention through transformers'
# `AttentionInterface`, its layers through their class.
#
# ## Attention
#
# transformers calls the attention function that a model's config names. We register one name, with
# the masks of `sdpa`. Behind it stands a function for each attention module that is being
# accelerated; every other module gets transformers' own `sdpa`. A model that shares a config object
# with an accelerated one, or is copied from one, computes as always.

# %%
#| export
ATTENTION = 'moral_sc' # Name under which transformers finds our function
_functions = WeakKeyDictionary() # attention module -> function with the arguments of torch's

def _attention_forward(module, query, key, value, attention_mask, dropout=0., scaling=None,
                       is_causal=None, **kwargs):
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    f = _functions.get(module)
    if f is None or kwargs.get('position_bias') is not None or kwargs.get('softcap') is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout,
                                      scaling=scaling, is_causal=is_causal, **kwargs)
    n = query.shape[2]
    causal = getattr(module, 'is_causal', True) if is_causal is None else is_causal
    causal = bool(causal) and n>1 and attention_mask is None
    if causal: key,value = key[:,:,:n],value[:,:,:n] # An empty static cache
    out = f(query, key, value, attn_mask=attention_mask, dropout_p=dropout, is_causal=causal,
            scale=scaling, enable_gqa=query.shape[1]!=key.shape[1])
    return out.transpose(1, 2).contiguous(),None

@cache
def _register():
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask
    AttentionInterface.register(ATTENTION, _attention_forward)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)

def _implementation(m): return getattr(getattr(m, 'config', None), '_attn_implementation', None)

@contextmanager
def replaced_attention(
    model,    # A transformers model, or a part of one; unchanged unless it uses sdpa
    function, # Has the arguments of torch's `scaled_dot_product_attention`
):
    "Give a model another attention function while this lasts"
    modules = [m for m in model.modules() if _implementation(m) in ('sdpa', ATTENTION)]
    configs = list({id(m.config): m.config for m in modules}.values())
    before = [(m, _functions.get(m)) for m in modules]
    names = [c._attn_implementation for c in configs]
    if modules: _register()
    try:
        for m in modules: _functions[m] = function
        for c in configs: c._attn_implementation = ATTENTION
        yield
    finally:
        for m,f in before:
            if f is None: _functions.pop(m, None)
            else: _functions[m] = f
        for c,name in zip(configs, names): c._attn_implementation = name

def has_replaced_attention(model)->bool:
    "Tell whether a model's attention is replaced now"
    return any(m in _functions for m in model.modules())


# %% [markdown]
# The function is called for the layers of this model only, and is gone after an exception. Keys
# and values that several heads share arrive as they are, without a copy for each head.

# %%
calls = []
def recorded(query, key, value, **kw):
    calls.append((query.shape[1], key.shape[1]))
    return nn.functional.scaled_dot_product_attention(query, key, value, **kw)

models = [random_model(a).model for a in ('llama', 'qwen2', 'gemma3', 'neox')]
ids = torch.arange(3, 30)[None]
for m in models:
    calls.clear()
    mask = torch.ones_like(ids)
    mask[:,:4] = 0
    want = [m(ids).logits, m(ids, attention_mask=mask).logits[:,4:]]
    with expect_fail(KeyError), replaced_attention(m, recorded):
        got = [m(ids).logits, m(ids, attention_mask=mask).logits[:,4:]]
        test_eq(len(calls), 2*m.config.get_text_config().num_hidden_layers)
        raise KeyError
    for a,b in zip(got, want): test_close(a.detach(), b.detach(), 1e-5)
    assert torch.equal(m(ids).logits, want[0]) and not has_replaced_attention(m)
    test_eq(m.config._attn_implementation, 'sdpa')
{m.config.model_type: len(calls) for m in models[-1:]}

# %% [markdown]
# Another model is untouched: one that runs in another thread at the same time, one that shares
# the config object, and one that is copied inside.

# %%
model,other = models[0],random_model('llama', seed=1).model
other.config = model.config
for m in other.modules():
    if hasattr(m, 'config'): m.config = model.config
want = other(ids).logits
inside,done = threading.Event(),threading.Event()
seen = {}
def in_thread():
    inside.wait()
    seen['thread'] = other(ids).logits
    done.set()

thread = threading.Thread(target=in_thread)
thread.start()
calls.clear()
with replaced_attention(model, recorded):
    inside.set()
    done.wait()
    seen['config'] = other(ids).logits
    twin = copy.deepcopy(model)
    seen['copy'] = twin(ids).logits
    test_eq(calls, [])
thread.join()
for k in ('thread', 'config'): assert torch.equal(seen[k], want), k
assert torch.equal(seen['copy'], model(ids).logits) and torch.equal(twin(ids).logits, seen['copy'])


# %% [markdown]
# ## Layers
#
# A layer keeps its identity, parameters, names and hooks; only its class changes. FSDP does the
# same. A copy or a pickle of such a layer is of the original class again.

# %%
#| export
@contextmanager
def replaced_classes(
    classes:dict, # module -> class
):
    "Give modules another class while this lasts"
    before = [(m, m.__class__) for m in classes]
    try:
        for m,c in classes.items(): m.__class__ = c
        yield
    finally:
        for m,c in before: m.__class__ = c

def reduce_as(
    cls,          # The class of copies
    module,
    exclude=(),   # Attributes that a copy does not get
):                # For `__reduce_ex__`
    "Let copies of a module be of another class"
    state = {k: x for k,x in module.__dict__.items() if k not in exclude}
    return cls.__new__,(cls,),state


# %%
class Doubled(nn.Linear):
    def forward(self, x): return 2*super().forward(x)
    def __reduce_ex__(self, protocol): return reduce_as(nn.Linear, self)

layer = nn.Linear(3, 3)
hooks = []
layer.register_forward_hook(lambda *args: hooks.append(1))
x = torch.ones(1, 3)
want = layer(x)
with expect_fail(KeyError), replaced_classes({layer: Doubled}):
    assert torch.equal(layer(x), 2*want)
    test_eq(type(copy.deepcopy(layer)), nn.Linear)
    raise KeyError
assert torch.equal(layer(x), want)
test_eq((type(layer), len(hooks)), (nn.Linear, 3))
