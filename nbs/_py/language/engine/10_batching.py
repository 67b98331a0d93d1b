# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Batching
#
# > Next-token log-probabilities at selected positions of many rows, in few forward passes.

# %%
#| default_exp language.engine.batching

# %%
#| export
import inspect, math
from contextlib import contextmanager
from functools import lru_cache
from weakref import WeakKeyDictionary

import torch

from moral_sc.foundation.errors import ConfigError, ModelError
from moral_sc.language.engine.oom import halve_max_tokens
from moral_sc.language.models import pad

# %%
#| hide
import gc
from copy import deepcopy
from fastcore.test import *
from moral_sc.language.stub_models import random_model


# %% [markdown]
# We need next-token log-probabilities at selected positions of many texts. A model computes one
# number for every word of the vocabulary after every token of every text. We discard nearly all
# of them, so we should not compute them.
#
# ## Batches of similar lengths
#
# Rows of similar length share a batch, the longest first, so that an out-of-memory error comes at
# once or not at all. On a GPU a forward pass over few tokens takes as long as one over many; on a
# CPU it does not, and padding costs as much as text.

# %%
#| export
def batches(
    lengths,         # Tokens in each row
    max_tokens:int,  # Rows times the longest of them, at most
    max_rows:int=0,  # Rows, at most; 0: any number
    max_padding=None,# Padding tokens, at most; None: any number
)->list:             # Lists of row numbers
    "Group rows of similar length"
    groups = []
    padding = 0
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        longest = lengths[groups[-1][0]] if groups else 0
        padding += longest-lengths[i] if groups else 0
        n = len(groups[-1])+1 if groups else 0
        if not groups or n*longest>max_tokens or (max_rows and n>max_rows) or (
                max_padding is not None and padding>max_padding):
            groups.append([])
            padding = 0
        groups[-1].append(i)
    return groups


# %%
batches([90,88,12,91,13,90], max_tokens=400), batches([90,88,12,91,13,90], 400, max_padding=4)


# %% [markdown]
# Right padding needs no mask: attention is causal, so tokens after the end of a row cannot reach
# it. Left padding needs a mask and explicit positions. Both give the same numbers, as
# [scoring](../30_scoring.ipynb) proves.

# %%
#| export
def _parameters(f): return frozenset(inspect.signature(f).parameters)
_parameters_of_class = lru_cache(64)(_parameters)

def forward_accepts(
    model,
    name:str, # Of an argument
)->bool:      # Called for every token, so answers are cached by class
    "Tell whether a model's `forward` has an argument"
    f = model.forward
    return name in (_parameters_of_class(f.__func__) if inspect.ismethod(f) else _parameters(f))

def cache_kwargs(
    model,
    cache, # Of transformers
)->dict:   # For its `forward`
    "Pass a KV cache under the argument name that a model has for it"
    # Before transformers 5.24 the argument was called past_key_values
    name = 'cache' if forward_accepts(model, 'cache') else 'past_key_values'
    return {name: cache, 'use_cache': True}

def _inputs(lm, rows, side):
    ids,mask = pad(rows, side, lm.device)
    if side=='right': return dict(input_ids=ids)
    kw = dict(input_ids=ids, attention_mask=mask)
    if forward_accepts(lm.model, 'position_ids'):
        kw['position_ids'] = mask.cumsum(-1).sub(1).clamp(0)
    return kw

def _vocabulary_size(model):
    try: return getattr(model.get_input_embeddings(), 'num_embeddings', math.inf)
    except (AttributeError, NotImplementedError): return math.inf

def check_rows(
    lm,
    rows:list,    # Lists of token ids
    new_tokens=0, # To be added to each
    names=None,   # Of the rows, for the error
):
    "Refuse rows that a model cannot take, and a model in training mode"
    if lm.model.training:
        raise ConfigError(f'{lm.name} is in training mode, in which dropout makes its answers '
                          'random; call model.eval() first.')
    if not all(len(r) for r in rows):
        raise ConfigError(f'A text is empty, and {lm.name} has no token to begin with; give it '
                          'some text.')
    size = _vocabulary_size(lm.model)
    top = max(map(max, rows), default=0)
    if top>=size:
        raise ConfigError(f'A text of {lm.name} has the token {top}, but the model has {size} '
                          'tokens: its tokenizer belongs to another model, or has tokens that were '
                          'added without resize_token_embeddings.')
    limit = getattr(lm.model.config, 'max_position_embeddings', None)
    lengths = [len(r)+new_tokens for r in rows]
    if not limit or max(lengths, default=0)<=limit: return
    i = lengths.index(max(lengths))
    text = f'The text {names[i]!r:.80}' if names else 'A text'
    raise ConfigError(f'{text} has {lengths[i]} tokens, but the context of {lm.name} is {limit}; '
                      'shorten it.')


# %%
strict = random_model('neox')
check_rows(strict, [[1, 2]])
check_rows(strict, [])
with expect_fail(ConfigError, contains='A text is empty'): check_rows(strict, [[1, 2], []])
with expect_fail(ConfigError, contains='has the token 261'): check_rows(strict, [[1, 261]])
with expect_fail(ConfigError, contains='has 5000 tokens'): check_rows(strict, [[1]*5000])
strict.model.train()
with expect_fail(ConfigError, contains='call model.eval()'): check_rows(strict, [[1]])

# %% [markdown]
# ## Facts found by trial
#
# Some facts about a model are not in its config: whether its logits are the output layer alone,
# whether it accepts the mask of a prefix tree, how many tokens fit into memory. They are found by
# a trial and needed at every call. The cache holds them by model and holds the model weakly, so
# nothing is written onto models and nothing keeps a model alive.

# %%
#| export
_cache = WeakKeyDictionary() # model -> {name: value}

def capability(
    model, # A module
    name,  # Any key
    find,  # find() -> value, called once
):
    "Return a fact about a model, found at the first call"
    known = _cache.setdefault(model, {})
    if name not in known: known[name] = find()
    return known[name]

def set_capability(model, name, value):
    "Store a fact about a model"
    _cache.setdefault(model, {})[name] = value

def copy_capabilities(
    source, # A module
    target, # A copy of it, which may not be able to make the trial itself
):
    "Store the facts known about one model for another"
    _cache.setdefault(target, {}).update(_cache.get(source, {}))


# %%
model = torch.nn.Linear(2, 2)
trials = []
def find(): trials.append(1); return 'seen'
test_eq([capability(model, 'answer', find) for _ in range(3)], ['seen']*3)
test_eq(len(trials), 1)
assert 'answer' not in vars(model)

# %% [markdown]
# A copy is another model. It has its own entries, and they go when it goes.

# %%
copy = deepcopy(model)
gc.collect()
before = len(_cache)
copy_capabilities(model, copy)
set_capability(copy, 'max_batch_tokens', 512)
test_eq(capability(copy, 'answer', None), 'seen')
test_eq(capability(model, 'max_batch_tokens', lambda: 4096), 4096)
del copy
gc.collect()
test_eq(len(_cache), before)


# %% [markdown]
# ## Output layer
#
# In a small model the output layer is a fifth of the work, and its result, one number a word of the
# vocabulary for each token of each text, is most of the memory. Comparing three letters after a
# prompt takes a single position. We therefore run the model up to its hidden states and apply the
# output layer to the positions that are needed.
#
# We apply it in float32 even if the model is in bfloat16. Neighbouring bfloat16 numbers near 32
# differ by a quarter, so distinct logits of three letters would come out equal, and rounding would
# decide a ranking.

# %%
#| export
def hidden_states(
    lm, **kw # Arguments of the model's `forward`
):           # [row, token, width] and the cache
    "Run a model without its output layer"
    m = lm.model
    return getattr(m, m.base_model_prefix)(**kw)

def lm_head_logits(
    lm,
    h,  # [..., width] hidden states
):      # [..., vocab] logits in float32
    "Apply the output layer"
    out = lm.model.get_output_embeddings()
    if h.dtype not in (torch.bfloat16, torch.float16): return out(h)
    x = torch.cat([h.float()@w.float().T for w in out.weight.split(8192)], -1)
    return x if out.bias is None else x+out.bias.float()


# %% [markdown]
# Some architectures cap, scale or shift their logits. A trial finds them: it compares the output
# layer's result with the model's own logits. Such models are asked for their own logits, at the
# needed positions if they accept these.

# %%
#| export
@torch.inference_mode()
def has_plain_lm_head(lm)->bool: # Found at the first call
    "Tell whether a model's logits are its output layer applied to its hidden states"
    return capability(lm.model, 'plain_lm_head', lambda: _try_lm_head(lm))

def _try_lm_head(lm):
    kw = dict(input_ids=torch.tensor([[1, 2, 3, 1]], device=lm.device), use_cache=False)
    training = lm.model.training
    lm.model.eval() # No dropout
    try:
        expected = lm.model(**kw).logits
        x = lm.model.get_output_embeddings()(hidden_states(lm, **kw).last_hidden_state)
        return torch.allclose(x, expected, rtol=1e-4, atol=1e-4)
    except (AttributeError, TypeError): return False
    finally: lm.model.train(training)

def states_at(
    lm,
    at,   # [2, n] numbers of rows, and positions in them
    **kw  # Arguments of the model's `forward`
):        # [n, width] hidden states; [n, vocab] logits without a plain output layer
    "Run a model and return hidden states at selected positions"
    kw = dict(use_cache=False) | kw
    rows,positions = at
    if has_plain_lm_head(lm): return hidden_states(lm, **kw).last_hidden_state[rows,positions]
    if not forward_accepts(lm.model, 'logits_to_keep'): return lm.model(**kw).logits[rows,positions]
    needed,column = positions.unique(return_inverse=True)
    return lm.model(**kw, logits_to_keep=needed).logits[rows,column]


# %% [markdown]
# The number of tokens that a model processes determines most of its time. `count_tokens` counts
# them.

# %%
#| export
@contextmanager
def count_tokens(
    lm,
): # A list, to which each forward pass adds a number
    "Count the tokens of forward passes, padding included"
    counts = []
    hook = lm.model.base_model.register_forward_pre_hook(
        lambda m, args, kw: counts.append(kw['input_ids'].numel()), with_kwargs=True)
    try: yield counts
    finally: hook.remove()


# %%
small = random_model('llama')
with count_tokens(small) as n: hidden_states(small, input_ids=torch.ones(2, 5, dtype=torch.long))
hidden_states(small, input_ids=torch.ones(1, 1, dtype=torch.long))
test_eq(n, [10])


# %% [markdown]
# ## Padded rows
#
# A row that is a prefix of another need not be run. In sorted order each row stands directly
# before the rows that it is a prefix of, so one pass over them finds all these pairs.

# %%
#| export
def merge_prefixes(
    rows:list, # Lists of token ids
)->tuple:      # Rows to run, and for each given row the number of the one that contains it
    "Drop rows that are a prefix of another"
    owner = [0]*len(rows)
    merged = []
    for i in sorted(range(len(rows)), key=lambda i: rows[i], reverse=True):
        if not (merged and merged[-1][:len(rows[i])]==rows[i]): merged.append(rows[i])
        owner[i] = len(merged)-1
    return merged,owner


# %%
merge_prefixes([[5,6], [5,6,7], [5,8], [5,6]])


# %% [markdown]
# Scoring takes a pair of functions: `plan` divides rows into forward passes, each a list of
# groups of row numbers, and `run` executes one of them. Here each group is one row; in
# [prefix trees](20_prefix_tree.ipynb) it is the rows of a tree.

# %%
#| export
def padding_budget(lm)->int:
    "Return the padding tokens that cost as much as a forward pass"
    return 16 if lm.device.type=='cpu' else 1024

def plan_padded(
    lm,
    rows:list,  # Lists of token ids
    tokens:int, # In one forward pass, padding included
)->list:        # Forward passes: lists of groups of row numbers, here one number a group
    "Group rows of similar length"
    groups = batches([*map(len, rows)], tokens, max_padding=padding_budget(lm))
    return [[[i] for i in b] for b in groups]

def run_padded(
    lm,
    groups:list,      # Lists of rows
    reads:list,       # (group, row in it, position) of the states to return
    side:str='right', # Of the padding
):                    # As `states_at`
    "Run each row from its first token to its last"
    rows = [r for r, in groups]
    n = max(map(len, rows))
    at = [(g, t+(n-len(rows[g]) if side=='left' else 0)) for g,_,t in reads]
    return states_at(lm, torch.tensor(at, device=lm.device).T, **_inputs(lm, rows, side))


# %% [markdown]
# ## Memory
#
# Three bounds limit the tokens in a forward pass: the caller's, a share of the bytes of the
# weights, so that scoring needs little memory beside them, and experience. After an out-of-memory
# error the pass is divided again with [half the tokens](05_oom.ipynb), and later calls begin there.

# %%
#| export
def weight_bytes(lm)->int:
    "Return the bytes of a model's weights"
    return sum(p.numel()*p.element_size() for p in lm.model.parameters())

def max_batch_tokens(
    lm,
    max_tokens:int,  # The caller's bound
    share:float=.15, # Of the bytes of the weights
    least:int=1024,  # For small weights
)->int:
    "Return the tokens of one forward pass"
    c = lm.model.config.get_text_config()
    width,mlp = (getattr(c, k, 0) or 0 for k in ('hidden_size','intermediate_size'))
    token = (8*width+3*(mlp or 4*width))*lm.dtype.itemsize # Bytes that a layer holds at a time
    affordable = max(least, int(share*weight_bytes(lm)/token)) if token else max_tokens
    learned = capability(lm.model, 'max_batch_tokens', lambda: None) or max_tokens
    return max(1, min(max_tokens, affordable, learned))

def run_batches(
    lm,
    rows:list,      # Lists of token ids
    plan,           # As `plan_padded`
    run,            # Called with groups of row numbers
    max_tokens:int, # In one forward pass
):                  # Yields groups of row numbers, and what `run` returned for them
    "Run all rows, in smaller forward passes after an out-of-memory error"
    todo = list(range(len(rows)))
    tokens = max_batch_tokens(lm, max_tokens)
    while todo:
        finished = set()
        for groups in plan(lm, [rows[i] for i in todo], tokens):
            groups = [[todo[k] for k in g] for g in groups]
            try: out = run(groups)
            except RuntimeError as e:
                tokens = halve_max_tokens(e, tokens, [len(rows[i]) for g in groups for i in g],
                                          name=lm.name)
                set_capability(lm.model, 'max_batch_tokens', tokens)
                break
            yield groups,out
            finished.update(i for g in groups for i in g)
        todo = [i for i in todo if i not in finished]


# %% [markdown]
# Here every forward pass with more than 150 tokens fails.

# %%
small = random_model('llama')
rows = [[3+i%200, *range(9, 9+i%40)] for i in range(60)]
def run(groups):
    if sum(len(rows[i]) for g in groups for i in g)>150: raise torch.OutOfMemoryError
    return len(groups)

finished = [i for groups,_ in run_batches(small, rows, plan_padded, run, 4096)
            for g in groups for i in g]
test_eq(sorted(finished), list(range(60)))
max_batch_tokens(small, 4096)


# %% [markdown]
# If a single row does not fit, an error is raised.

# %%
def full(groups): raise torch.OutOfMemoryError
with expect_fail(ModelError, contains='39 tokens'):
    list(run_batches(random_model('llama'), [[5]*39], plan_padded, full, 4096))


# %% [markdown]
# ## From hidden states to log-probabilities
#
# Hidden states are small and logits are not. Hidden states are therefore collected over forward passes, and the output layer is applied to a bounded number of them at a time.

# %%
#| export
def lm_head_batch_size(
    lm,
    share:float=.1, # Of the bytes of the weights
)->int:
    "Return the number of positions that the output layer is applied to at a time"
    vocab = lm.model.config.get_text_config().vocab_size
    return int(min(512, max(16, share*weight_bytes(lm)/vocab/20))) # One float32, two float64

def _check_finite(lm, x):
    if not torch.isfinite(x).all():
        dtype = str(lm.dtype).replace('torch.', '')
        raise ModelError(f'The logits of {lm.name} are not finite in {dtype}; load it with '
                         "dtype='float32'.")
    return x

def lm_head_logprobs(
    lm,
    x, # [n, width] from `states_at`
):     # [n, vocab] float64, natural log
    "Turn hidden states into log-probabilities"
    x = (lm_head_logits(lm, x) if has_plain_lm_head(lm) else x).double()
    return x.sub_(_check_finite(lm, x.logsumexp(-1, keepdim=True)))

def _logprob_chunks(lm, x, n):
    "First positions and log-probabilities of chunks of `n`, fewer where memory runs out"
    k = 0
    while k<len(x):
        try: out = lm_head_logprobs(lm, x[k:k+n])
        except RuntimeError as e: n = halve_max_tokens(e, n, [1]*n, name=lm.name)
        else:
            yield k,out
            k += len(out)

def batched_logprobs(
    lm,
    passes, # (labels, hidden states) of one forward pass after the other
):          # Yields labels, and their log-probabilities [label, vocab]
    "Apply the output layer to the states of several forward passes at a time"
    names = []
    xs = []
    n = lm_head_batch_size(lm)
    def flush():
        for k,out in _logprob_chunks(lm, torch.cat(xs), n): yield names[k:k+len(out)], out
    for labels,x in passes:
        if xs and (len(names)>=n or x.shape[1:]!=xs[0].shape[1:]):
            yield from flush()
            names = []
            xs = []
        names = [*names, *labels]
        xs = [*xs, x]
    if names: yield from flush()
