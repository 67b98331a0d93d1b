# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Reading
#
# > What a model has to say at chosen places of many texts, in as few passes as memory allows.

# %%
#| default_exp language.engine.batching

# %%
#| export
import inspect
from contextlib import contextmanager
from functools import lru_cache

import torch

from moral_sc.foundation.errors import ConfigError, ModelError
from moral_sc.language.models import pad

# %%
#| hide
from fastcore.test import *
from moral_sc.language.stub_models import stub_model, random_model


# %% [markdown]
# Everything this project asks of a model comes down to one thing: given texts, what does it say
# comes next, at these places? The whole answer is a number for every word of the vocabulary
# after every token of every text. Nearly all of it is thrown away, so nearly all of it should
# not be computed.
#
# ## Batches
#
# Rows of like length go together, longest first, so that memory runs out at once or not at all.
# On a GPU a pass over few tokens takes as long as one over many; on a CPU it does not, and there
# padding costs what text costs.

# %%
#| export
def batches(
    lengths,        # Tokens in each row
    max_tokens:int, # Rows times the longest of them stay at or below this
    max_rows:int=0, # And no more rows than this; 0: any number
    max_padding=None,     # And no more padding than this many tokens; None: any amount
)->list:            # Lists of row numbers
    "Group rows of like length, so that little is padding"
    res = []
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    pads = 0
    for i in order:
        if res: n,longest = len(res[-1])+1, lengths[res[-1][0]]
        pads += longest-lengths[i] if res else 0
        if not res or n*longest>max_tokens or (max_rows and n>max_rows) or (
                max_padding is not None and pads>max_padding): res,pads = [*res, []], 0
        res[-1].append(i)
    return res


# %%
batches([90,88,12,91,13,90], max_tokens=400), batches([90,88,12,91,13,90], 400, max_padding=4)


# %% [markdown]
# On the right, padding needs no mask: in a causal model nothing looks ahead, so what follows a
# row's last token cannot reach it. On the left it needs a mask and explicit positions. Both
# give the same numbers, which is proved further down.

# %%
#| export
def _names(f): return frozenset(inspect.signature(f).parameters)
_known = lru_cache(64)(_names)

def forward_accepts(model, name): # Asked at every token; only what a class defines is remembered
    f = model.forward
    return name in (_known(f.__func__) if inspect.ismethod(f) else _names(f))

def cache_kwargs(
    model,
    cache, # Of transformers
)->dict:   # For its `forward`
    "Keys and values to go on from, under the name that a model has for them"
    name = 'cache' if forward_accepts(model, 'cache') else 'past_key_values' # Before transformers 5.24
    return {name: cache, 'use_cache': True}

def _inputs(lm, rows, side):
    ids,mask = pad(rows, side, lm.device)
    if side=='right': return dict(input_ids=ids)
    kw = dict(input_ids=ids, attention_mask=mask)
    if forward_accepts(lm.model, 'position_ids'): kw['position_ids'] = mask.cumsum(-1).sub(1).clamp(0)
    return kw

def check_context_length(lm, rows, new_tokens=0):
    "Refuse rows that with `new` tokens more are longer than what the model can read"
    limit = getattr(lm.model.config, 'max_position_embeddings', None)
    n = max(map(len, rows), default=0)+new_tokens
    if limit and n>limit:
        raise ConfigError(f'A text of {n} tokens is longer than the {limit} that {lm.name} '
                          'can read; shorten it.')


# %% [markdown]
# ## The output layer, only where it is read
#
# In a small model the output layer is a fifth of the work, and its result, a row of the whole
# vocabulary for each token of each text, is most of the memory. Three letters after one
# prompt need one such row. So the model is run up to its hidden states, and the output layer
# is applied to those that are read.
#
# It is applied in float32 even if the model is not. A bfloat16 number near 32 has neighbours a
# quarter away, so logits of three letters come out equal when they are not, and a ranking
# would be decided by rounding.

# %%
#| export
def hidden_states(
    lm, **kw # What the model's `forward` takes
):           # [row, token, width] and the cache
    "The model without its output layer"
    m = lm.model
    return getattr(m, m.base_model_prefix)(**kw)

def lm_head_logits(
    lm,
    h,  # [..., width] hidden states
):      # [..., vocab] logits in float32
    "The output layer"
    out = lm.model.get_output_embeddings()
    if h.dtype not in (torch.bfloat16, torch.float16): return out(h)
    x = torch.cat([h.float()@w.float().T for w in out.weight.split(8192)], -1)
    return x if out.bias is None else x+out.bias.float()


# %% [markdown]
# Some architectures do more than this to their logits: they cap, scale or shift them. Whether a
# model is one of those is found out once, by comparing with what the model itself says.
# Those are asked for their own logits, at the needed positions if they can do that.

# %%
#| export
@torch.inference_mode()
def has_plain_lm_head(lm)->bool: # Found out at the first call
    "Whether hidden states followed by the output layer are all that this model computes"
    if not hasattr(lm, '_splits'):
        kw = dict(input_ids=torch.tensor([[1, 2, 3, 1]], device=lm.device), use_cache=False)
        want = lm.model(**kw).logits
        try: got = lm.model.get_output_embeddings()(hidden_states(lm, **kw).last_hidden_state)
        except (AttributeError, TypeError): got = None
        lm._splits = got is not None and torch.allclose(got, want, rtol=1e-4, atol=1e-4)
    return lm._splits

def states_at(
    lm,
    at,   # [2, read] numbers of rows, and places in them
    **kw  # What the model's `forward` takes
):        # [read, width]; if `splits` is false, [read, vocab]
    "What a model has to say at a few places"
    kw = dict(use_cache=False) | kw
    if has_plain_lm_head(lm): return hidden_states(lm, **kw).last_hidden_state[at[0],at[1]]
    if not forward_accepts(lm.model, 'logits_to_keep'): return lm.model(**kw).logits[at[0],at[1]]
    keep,c = at[1].unique(return_inverse=True)
    return lm.model(**kw, logits_to_keep=keep).logits[at[0],c]


# %% [markdown]
# How many tokens a model was run on is what most of its time goes by.

# %%
#| export
@contextmanager
def count_tokens(
    lm,
): # A list, with a number for each pass while this lasts
    "Tokens that a model is run on, padding included"
    n = []
    hook = lm.model.base_model.register_forward_pre_hook(
        lambda m, args, kw: n.append(kw['input_ids'].numel()), with_kwargs=True)
    try: yield n
    finally: hook.remove()


# %%
small = random_model('llama')
with count_tokens(small) as n: hidden_states(small, input_ids=torch.ones(2, 5, dtype=torch.long))
hidden_states(small, input_ids=torch.ones(1, 1, dtype=torch.long))
test_eq(n, [10])


# %% [markdown]
# ## Each row by itself
#
# A row that is the beginning of another need not be run: causality again. Sorted, each row
# stands directly before the rows it begins, so one pass over them finds all such pairs.

# %%
#| export
def merge_prefixes(
    rows:list, # Lists of token ids
)->tuple:      # Rows to run, and for each given row the number of the one it is read from
    "Drop rows that are the beginning of another"
    owner = [0]*len(rows)
    kept = []
    for i in sorted(range(len(rows)), key=lambda i: rows[i], reverse=True):
        if not (kept and kept[-1][:len(rows[i])]==rows[i]): kept.append(rows[i])
        owner[i] = len(kept)-1
    return kept,owner


# %%
merge_prefixes([[5,6], [5,6,7], [5,8], [5,6]])


# %%
#| export
def padding_budget(lm): return 16 if lm.device.type=='cpu' else 1024 # Tokens' worth of a pass

def plan_padded(
    lm,
    rows:list,  # Lists of token ids
    tokens:int, # In one pass, padding included
)->list:        # Passes: lists of groups of row numbers, here one number a group
    "Rows of like length side by side"
    return [[[i] for i in b] for b in batches([*map(len, rows)], tokens, max_padding=padding_budget(lm))]

def run_padded(
    lm,
    groups:list,      # Lists of rows
    reads:list,       # (group, row in it, position): what is wanted
    side:str='right', # Of the padding
):                    # As `states`
    "Each row from its first token to its last"
    rows = [r for r, in groups]
    n = max(map(len, rows))
    at = [(g, t+(n-len(rows[g]) if side=='left' else 0)) for g,_,t in reads]
    return states_at(lm, torch.tensor(at, device=lm.device).T, **_inputs(lm, rows, side))


# %% [markdown]
# ## Memory
#
# How many tokens go into one pass is bounded three times: by the caller, by a share of what the
# weights themselves take, so that scoring needs little beside them, and by experience. A pass
# that does not fit is divided again at half the size, and the model remembers what it could
# carry.

# %%
#| export
def weight_bytes(lm): return sum(p.numel()*p.element_size() for p in lm.model.parameters()) # Bytes

def max_batch_tokens(
    lm,
    max_tokens:int,  # What the caller allows
    share:float=.15, # Of the bytes of the weights
    least:int=1024,  # However small the weights
)->int:
    "Tokens in one pass"
    c = lm.model.config.get_text_config()
    wide,mlp = (getattr(c, k, 0) or 0 for k in ('hidden_size','intermediate_size'))
    token = (8*wide+3*(mlp or 4*wide))*lm.dtype.itemsize # What a layer holds at once
    many = max(least, int(share*weight_bytes(lm)/token)) if token else max_tokens
    return max(1, min(max_tokens, many, getattr(lm, '_room', max_tokens)))

def run_batches(
    lm,
    rows:list,      # Lists of token ids
    plan,           # As `plan_rows`
    run,            # Called with groups of row numbers
    max_tokens:int, # In one pass
):                  # Yields groups of row numbers, and what `run` said to them
    "Run all rows, in smaller passes where memory runs out"
    left = list(range(len(rows)))
    tokens = max_batch_tokens(lm, max_tokens)
    while left:
        done = set()
        for groups in plan(lm, [rows[i] for i in left], tokens):
            groups = [[left[k] for k in g] for g in groups]
            try: out = run(groups)
            except RuntimeError as e:
                tokens = lm._room = _half(lm, e, [len(rows[i]) for g in groups for i in g],
                                          tokens)
                break
            yield groups,out
            done.update(i for g in groups for i in g)
        left = [i for i in left if i not in done]

def _half(lm, e, lengths, tokens):
    "Half the tokens, if it was memory, and not for a single row"
    if not isinstance(e, torch.OutOfMemoryError) and 'allocate memory' not in str(e): raise e
    n = max(lengths)
    if tokens<=1 or len(lengths)==1:
        raise ModelError(f'{lm.name} runs out of memory on one text of {n} tokens; shorten '
                         'it, or load the model in bfloat16.') from None
    if lm.device.type=='cuda': torch.cuda.empty_cache()
    return tokens//2


# %% [markdown]
# A machine with room for 150 tokens, as far as the code can tell: every larger pass fails.

# %%
small = random_model('llama')
rows = [[3+i%200, *range(9, 9+i%40)] for i in range(60)]
def run(groups):
    if sum(len(rows[i]) for g in groups for i in g)>150: raise torch.OutOfMemoryError
    return len(groups)

done = [i for groups,_ in run_batches(small, rows, plan_padded, run, 4096) for g in groups for i in g]
test_eq(sorted(done), list(range(60)))
max_batch_tokens(small, 4096)


# %% [markdown]
# If not even one row fits, that is said.

# %%
def full(groups): raise torch.OutOfMemoryError
with expect_fail(ModelError, contains='39 tokens'):
    list(run_batches(random_model('llama'), [[5]*39], plan_padded, full, 4096))


# %% [markdown]
# ## From states to log-probabilities
#
# States are small and logits are not, so states are gathered over passes, and the output layer
# is applied to a bounded number of them at once.

# %%
#| export
def lm_head_batch_size(
    lm,
    share:float=.1, # Of the bytes of the weights
)->int:
    "Places that the output layer is applied to at once"
    vocab = lm.model.config.get_text_config().vocab_size
    return int(min(512, max(16, share*weight_bytes(lm)/vocab/20))) # float32, and float64 twice

def _checked(lm, x):
    if not torch.isfinite(x).all():
        kind = str(lm.dtype).replace('torch.', '')
        raise ModelError(f'{lm.name} gives no finite numbers in {kind}; load it with '
                         "dtype='float32'.")
    return x

def lm_head_logprobs(
    lm,
    x, # [line, width] of `states`
):     # [line, vocab] float64, natural log
    "What the output layer makes of a few states"
    x = (lm_head_logits(lm, x) if has_plain_lm_head(lm) else x).double()
    return x.sub_(_checked(lm, x.logsumexp(-1, keepdim=True)))

def _some(lm, x, n):
    "Lines and what the output layer makes of them, fewer at a time where memory runs out"
    k = 0
    while k<len(x):
        try: out = lm_head_logprobs(lm, x[k:k+n])
        except RuntimeError as e: n = _half(lm, e, [1]*n, n)
        else:
            yield k,out
            k += len(out)

def batched_logprobs(
    lm,
    found, # (labels, their states) of one pass after the other
):         # Yields labels, and their log-probabilities [label, vocab]
    "Apply the output layer to some states at a time"
    who = []
    xs = []
    n = lm_head_batch_size(lm)
    def flush():
        for k,out in _some(lm, torch.cat(xs), n): yield who[k:k+len(out)], out
    for labels,x in found:
        if xs and (len(who)>=n or x.shape[1:]!=xs[0].shape[1:]):
            yield from flush()
            who = []
            xs = []
        who = [*who, *labels]
        xs = [*xs, x]
    if who: yield from flush()
