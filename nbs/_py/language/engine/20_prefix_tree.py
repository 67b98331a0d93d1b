# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Prefix tree
#
# > Prefixes that several prompts share are computed once.

# %%
#| default_exp language.engine.prefix_tree

# %%
#| export
from dataclasses import dataclass
from functools import partial

import numpy as np, torch
from transformers import DynamicCache

from moral_sc.foundation.errors import ConfigError, unknown_name_message
from moral_sc.language.models import LM, pad
from moral_sc.language.engine.batching import (batched_logprobs, batches, cache_kwargs, capability,
                                               check_rows, forward_accepts, merge_prefixes,
                                               padding_budget, plan_padded, run_batches, run_padded,
                                               states_at)
from moral_sc.language.engine.contexts import inference
from moral_sc.language.engine.kv_cache import PrefixCache

# %%
#| hide
import os
import re
from pathlib import Path

import pandas as pd

from fastcore.test import *
from moral_sc.language.loading import load
from moral_sc.language.models import encode
from moral_sc.language.stub_models import stub_model, random_model
from moral_sc.language.engine.batching import (count_tokens, max_batch_tokens, set_capability,
                                               weight_bytes)
from moral_sc.language.weights import cached_weights


# %% [markdown]
# The ambiguous scene of a benchmark is a prefix of the one that resolves it. Two questions follow
# the same scene, an instruction follows the question that it is added to, and options in another
# order follow the same question. In a causal model, what was computed for a prefix does not depend
# on what follows. The prompts of a call form a prefix tree, and each of its nodes needs to be
# computed once, however many prompts contain it.
#
# ## Tree of tokens
#
# In sorted order rows with a common prefix are adjacent, and each row shares with all rows before
# it exactly what it shares with the one directly before it.

# %%
#| export
def shared_prefix(
    a, # Token ids
    b,
)->int:
    "Return the length of the longest common prefix"
    n = min(len(a), len(b))
    return next((k for k,(x,y) in enumerate(zip(a, b)) if x!=y), n)

@dataclass
class PrefixTree:
    "Rows laid out so that each shared prefix is there once"
    ids:list   # Token of each node; parents first, each subtree contiguous
    depth:list # Position of each node in its rows
    end:list   # One past the last node of the subtree of each node
    paths:list # For each row, the node of each of its tokens

def build_prefix_tree(
    rows:list, # Lists of token ids, sorted
)->PrefixTree:
    "Build the prefix tree of some rows"
    t = PrefixTree([], [], [], [])
    path = []
    previous = []
    for r in rows:
        k = shared_prefix(previous, r)
        n = len(t.ids)
        for u in path[k:]: t.end[u] = n
        path = path[:k]+list(range(n, n+len(r)-k))
        previous = r
        t.ids += r[k:]
        t.depth += range(k, len(r))
        t.end += [0]*(len(r)-k)
        t.paths.append(path)
    for u in path: t.end[u] = len(t.ids)
    return t


# %%
t = build_prefix_tree([[7,8,1], [7,8,2,3], [7,9]])
test_eq([[t.ids[u] for u in p] for p in t.paths], [[7,8,1], [7,8,2,3], [7,9]])
t


# %% [markdown]
# In this layout a token's position is its depth, and node $v$ attends to node $u$ exactly if it is
# in the subtree of $u$: $u \le v < \mathrm{end}(u)$. One comparison makes the attention mask. In
# layers with a sliding window, depth decides as well. If the tree continues a prefix that is in
# the KV cache, all its nodes attend to the whole prefix.

# %%
#| export
def tree_mask(
    depth,       # [tree, node]
    end,         # [tree, node]
    window=None, # Tokens that a token attends to, itself included
    prefix=0,    # Tokens in the KV cache before the first node
):               # [tree, node, prefix+node] True where the first attends to the second
    "Make the attention mask of prefix trees: nodes attend to their ancestors"
    v = torch.arange(end.shape[1], device=end.device)
    visible = (v[:,None]>=v) & (v[:,None]<end[:,None,:])
    visible = torch.nn.functional.pad(visible, (prefix, 0), value=True)
    if not window: return visible
    cached = torch.arange(-prefix, 0, device=end.device).expand(len(depth), -1)
    return visible & (depth[:,:,None]-torch.cat([cached, depth], 1)[:,None,:] < window)


# %%
tree_mask(torch.tensor([t.depth]), torch.tensor([t.end])).int()[0]

# %%
#| hide
at = torch.tensor([t.depth]),torch.tensor([t.end])
extended = build_prefix_tree([[5,6]+r for r in [[7,8,1], [7,8,2,3], [7,9]]])
for w in (None, 2, 3): # As in a tree that contains the prefix
    full = tree_mask(torch.tensor([extended.depth]), torch.tensor([extended.end]), w)
    test_eq(tree_mask(*at, w, 2).tolist(), full[:,2:].tolist())


# %% [markdown]
# ## Size of a tree
#
# Attention computes scores for all pairs of nodes of a tree and masks most of them. A single tree
# of all rows would share as much as possible and lose more to attention. A tree of $n$ nodes costs
# $n + c\,n^2$, where $c$ follows from the shape of the model: attention takes about $2\,w\,l$
# multiplications for each pair of nodes ($w$ is the width of all heads together, $l$ the number of
# layers), and everything else takes one for each weight and node. Attention kernels reach about
# half the speed of matrix products, hence another factor of two.
#
# Dynamic programming divides the sorted rows at least cost: the best division of the first $j$
# rows ends in some interval, and the rows before it are divided in the best way, too.

# %%
#| export
def cheapest_intervals(
    n:int,
    cost,   # Row number -> costs of the intervals that end there, the longest first
)->list:    # (first, one past the last) of each interval
    "Divide a list into intervals at least total cost"
    best = np.zeros(n+1)
    start = np.zeros(n+1, int)
    for j in range(n):
        c = cost(j)
        c = c+best[j+1-len(c):j+1]
        k = int(c.argmin())
        best[j+1] = c[k]
        start[j+1] = j+1-len(c)+k
    cuts = [n]
    while cuts[-1]: cuts.append(int(start[cuts[-1]]))
    return list(zip(cuts[:0:-1], cuts[-2::-1]))

def attention_cost_ratio(lm)->float:
    "Return the cost of a pair of nodes, in units of the cost of a node"
    c = lm.model.config.get_text_config()
    heads = getattr(c, 'num_attention_heads', 0)
    width = heads*(getattr(c, 'head_dim', None) or getattr(c, 'hidden_size', 0)//max(heads, 1))
    out = lm.model.get_output_embeddings()
    body = lm.parameters-sum(p.numel() for p in out.parameters())
    return 4*width*getattr(c, 'num_hidden_layers', 0)/max(body, 1)


# %%
cheapest_intervals(5, lambda j: np.array([9., 4., 1.][-j-1:]))


# %%
#| export
class _Costs:
    "Sorted rows, and the cost of running intervals of them"
    def __init__(self, lm, rows,
        max_nodes=np.inf, # In one tree
    ):
        self.c = attention_cost_ratio(lm)
        self.padding = padding_budget(lm)
        self.max_nodes = max_nodes
        self.shared = np.array([0, *map(shared_prefix, rows, rows[1:])])
        new = np.array([*map(len, rows)])-self.shared
        self.total = np.append(0, np.cumsum(new))

    def nodes(self, a, b):
        "Nodes of the tree of rows a to b"
        return self.total[b]-self.total[a]+self.shared[a]

    def divide(self, a, b, cost, max_rows=512):
        "Least cost of intervals of rows a to b, and the intervals; `cost` is one of nodes"
        def costs(j): return cost(self.nodes(np.arange(max(a, j+1-max_rows), j+1), j+1))
        intervals = [(a+x, a+y) for x,y in cheapest_intervals(b-a, lambda j: costs(a+j))]
        return sum(cost(np.array([self.nodes(x, y)]))[0] for x,y in intervals),intervals

    def trees(self, a, b):
        def cost(n):
            return np.where((n>self.max_nodes) & (n>n[-1]), np.inf, n+self.c*n*n)
        return self.divide(a, b, cost)

    def suffixes(self, a, b, prefix):
        "The same for suffixes behind a cached prefix"
        def cost(n): return n-prefix+self.c*(n-prefix)*n
        return self.divide(a, b, cost)

def _batched_trees(costs, order, trees, tokens):
    "Trees of similar size in one forward pass"
    sizes = [int(costs.nodes(*t)) for t in trees]
    return [[order[slice(*trees[k])] for k in p]
            for p in batches(sizes, tokens, max_padding=costs.padding)]

def plan_trees(
    lm,
    rows:list,      # Lists of token ids
    tokens:int,     # In one forward pass, padding included
    max_nodes:int=4096, # In one tree
)->list:            # Forward passes: lists of groups of row numbers
    "Group rows that share long prefixes into trees, and trees of similar size into passes"
    order = sorted(range(len(rows)), key=rows.__getitem__)
    costs = _Costs(lm, [rows[i] for i in order], min(max_nodes, tokens))
    return _batched_trees(costs, order, costs.trees(0, len(rows))[1], tokens)


# %% [markdown]
# ## Forward pass of a tree
#
# Models accept masks in two ways. If all layers have the same window, the model takes one mask
# `[tree, 1, node, node]`, added to the attention scores. If only some layers have a window,
# it takes one mask for each kind of layer.

# %%
#| export
def attention_windows(lm)->dict:
    "Return the sliding window of each kind of layer; None where there is none"
    c = lm.model.config.get_text_config()
    w = getattr(c, 'sliding_window', None)
    kinds = getattr(c, 'layer_types', None)
    if not kinds: return {'full_attention': w}
    return {k: w if k=='sliding_attention' else None for k in sorted(set(kinds))}

def _masks(lm, depth, end, prefix=0):
    def additive(window):
        masked = ~tree_mask(depth, end, window, prefix)[:,None]
        zeros = torch.zeros(masked.shape, dtype=lm.dtype, device=lm.device)
        return zeros.masked_fill_(masked, torch.finfo(lm.dtype).min)
    masks = {k: additive(w) for k,w in attention_windows(lm).items()}
    return masks if len(masks)>1 else next(iter(masks.values()))

def run_trees(
    lm,
    groups:list, # Lists of rows, sorted
    reads:list,  # (group, row in it, position) of the states to return
    side='right',
):               # As `states_at`
    "Run each group of rows as one tree"
    if all(len(g)==1 for g in groups): return run_padded(lm, groups, reads, side)
    return _run_forest(lm, [build_prefix_tree(g) for g in groups], reads)

def _run_forest(lm, trees, reads, prefix=0, **kw):
    "Run trees side by side, after a cached prefix or none; `reads` count from its end"
    (ids,real),depth,end = (pad([getattr(t, k) for t in trees], 'right', lm.device)
                            for k in ('ids','depth','end'))
    end = torch.where(real>0, end[0], torch.arange(1, ids.shape[1]+1, device=lm.device))
    at = [(g, trees[g].paths[k][t]) for g,k,t in reads]
    kw |= dict(input_ids=ids, position_ids=depth[0]+prefix,
               attention_mask=_masks(lm, depth[0], end, prefix))
    return states_at(lm, torch.tensor(at, device=lm.device).T, **kw)


# %% [markdown]
# ## Prefix caching
#
# If the rows of a tree have a long prefix in common, as after worked examples, most pairs of its
# nodes are in different branches, and their attention scores are wasted. Such a tree is run in
# two forward passes. The first runs the prefix and keeps its keys and values. The second runs all
# suffixes side by side, each a small tree that attends to itself and the whole prefix. A prefix of
# $s$ nodes with $b$ more in suffix trees of $m$ nodes costs $s + c\,s^2 + b + c\,b\,(s+m)$ and one
# more pass, instead of $s + b + c\,(s+b)^2$.
#
# A suffix tree may be any interval of the sorted rows; what neighbouring intervals share is run in
# each. These intervals are therefore chosen at least cost as well. Prefix caches are reused across
# passes: the next pass continues from the prefix that both have in common. At every fork of the
# tree, the planner compares a prefix that ends there, shorter prefixes, and trees without any.

# %%
#| export
def _common_prefix(rows): return min(map(shared_prefix, rows, rows[1:])) if len(rows)>1 else 0

_MIN_PREFIX = 8 # Tokens
_MAX_FORKS = 24 # Along one path

def _cheapest_groups(costs, a, b, cached=0, forks=0):
    "Least cost after `cached` tokens, and groups: (first, last, prefix, suffix trees)"
    n = costs.nodes(a, b)
    s = int(costs.shared[a+1:b].min()) if b-a>1 else 0
    tree = n+costs.c*n*n if n<=costs.max_nodes or b-a==1 else np.inf
    cost,trees = (tree, [(a, b)]) if forks else costs.trees(a, b)
    choices = [(cost, [(x, y, 0, []) for x,y in trees])]
    prefix = (s-cached)*(1+costs.c*s)
    if s>_MIN_PREFIX:
        cost,suffixes = costs.suffixes(a, b, s)
        passes = 2*costs.padding # One pass more, and two that are smaller
        choices.append((prefix+passes+cost, [(a, b, s, suffixes)]))
    if b-a>2 and forks<_MAX_FORKS:
        at = [a, *(a+1+np.flatnonzero(costs.shared[a+1:b]==s)), b]
        parts = [_cheapest_groups(costs, x, y, s, forks+1) for x,y in zip(at, at[1:])]
        groups = [g for _,x in parts for g in x]
        needed = any(g[2] for g in groups)
        choices.append((prefix*needed+sum(x for x,_ in parts), groups))
    return min(choices, key=lambda x: x[0])

def plan_prefixes(
    lm,
    rows:list,      # Lists of token ids
    tokens:int,     # In one forward pass, padding included
    max_nodes:int=4096, # In one tree that is run in one pass
)->list:            # Passes: one group whose prefix is cached, or groups of which each is a tree
    "Group rows into trees, with a cached prefix where that is cheaper"
    order = sorted(range(len(rows)), key=rows.__getitem__)
    costs = _Costs(lm, [rows[i] for i in order], min(max_nodes, tokens))
    passes = []
    trees = []
    for a,b,s,suffixes in _cheapest_groups(costs, 0, len(rows))[1]:
        if not s: trees.append((a, b))
        for p in _batched_suffixes(lm, [int(costs.nodes(*x)-s) for x in suffixes], tokens):
            passes.append([[order[i] for k in sorted(p) for i in range(*suffixes[k])]])
    return passes+_batched_trees(costs, order, trees, tokens)

def _batched_suffixes(lm, sizes, tokens):
    "Suffix trees side by side, with little padding"
    return batches(sizes, tokens, max_padding=max(padding_budget(lm), sum(sizes)//16))

def run_prefixes(
    lm,
    groups:list, # Lists of rows, sorted: one, or several trees
    reads:list,  # (group, row in it, position) of the states to return
    side='right',
    caches=None, # Dictionary that carries the prefix cache of one pass to the next
):               # As `states_at`
    "Run the common prefix of a group, then its suffixes"
    rows = groups[0]
    n = _common_prefix(rows)
    caches = {} if caches is None else caches
    if len(groups)>1 or not n: return run_trees(lm, groups, reads, side)
    n,cache,states = _run_prefix(lm, rows, n, reads, caches)
    intervals = _Costs(lm, rows).suffixes(0, len(rows), n)[1]
    trees = [build_prefix_tree([r[n:] for r in rows[a:b]]) for a,b in intervals]
    place = {k: (g,k-a) for g,(a,b) in enumerate(intervals) for k in range(a, b)}
    sizes = [len(t.ids) for t in trees]
    for p in _batched_suffixes(lm, sizes, len(sizes)*max(sizes)):
        todo = [i for i,(_,k,_) in enumerate(reads) if i not in states and place[k][0] in p]
        at = [(p.index(place[k][0]), place[k][1], t-n) for _,k,t in (reads[i] for i in todo)]
        if todo: states |= zip(todo, _run_forest(lm, [trees[g] for g in p], at, n,
                                                 **cache_kwargs(lm.model, cache)))
    return torch.stack([states[i] for i in range(len(reads))])

def _run_prefix(lm, rows, n, reads, caches):
    "Length and cache of a prefix, and states in it; continues a prefix in `caches`"
    def inner(n): return {i: t for i,(_,_,t) in enumerate(reads) if t<n}
    cache = DynamicCache()
    k = 0
    for ids,contents in caches.items(): # One, or none
        k = shared_prefix(ids, rows[0][:n])
        if inner(k): k = 0
        if k and (n-k)*len(rows)<=padding_budget(lm): n = k # The rest is not worth a pass
        for i,(keys,values) in enumerate(contents if k else ()):
            cache.update(keys[:,:,:k], values[:,:,:k], i)
    wanted = inner(n)
    states = []
    if n>k:
        at = torch.tensor([[0]*len(wanted), [t-k for t in wanted.values()]], dtype=torch.long)
        states = states_at(lm, at.to(lm.device), **cache_kwargs(lm.model, cache),
                           input_ids=torch.tensor([rows[0][k:n]], device=lm.device))
    contents = [(x.keys, x.values) for x in cache.layers]
    caches.clear()
    caches[tuple(rows[0][:n])] = contents
    return n,PrefixCache(contents),dict(zip(wanted, states))


# %% [markdown]
# ## Cascades
#
# Some models cannot take such a mask. For them the common prefix of a group of rows is run once
# and its keys and values are kept; then the rest of each row continues from a copy. That shares
# one prefix a group, where a tree shares every fork.

# %%
#| export
def plan_cascade(
    lm,
    rows:list,  # Lists of token ids
    tokens:int, # In one pass: in the cache and in the suffixes, padding included
)->list:        # Passes: lists of groups of row numbers
    "Group rows that share a prefix, and pad the others"
    order = sorted(range(len(rows)), key=rows.__getitem__)
    rows = [rows[i] for i in order]
    lengths = np.array([*map(len, rows)])
    shared = np.array([0, *map(shared_prefix, rows, rows[1:])])
    def cost(j, max_rows=512):
        i = slice(max(0, j+1-max_rows), j+1)
        n = lengths[i][::-1].cumsum()[::-1]
        k = np.arange(len(lengths[i]), 0, -1)
        prefix = np.append(np.minimum.accumulate(shared[i][:0:-1])[::-1], 0)
        possible = k*np.maximum.accumulate(lengths[i][::-1])[::-1] <= tokens
        possible[-1] = True
        return (n-(k-1)*prefix+(k>1))[possible]
    intervals = cheapest_intervals(len(rows), cost)
    single = [a for a,b in intervals if b-a==1]
    padded = [[[order[single[i]]] for i, in p]
              for p in plan_padded(lm, [rows[a] for a in single], tokens)]
    return padded+[[order[a:b]] for a,b in intervals if b-a>1]

def run_cascade(
    lm,
    groups:list, # Lists of rows: many of one row each, or one of many
    reads:list,  # (group, row in it, position) of the states to return
    side='right',
):               # As `states_at`
    "Run the common prefix of a group, then the rest of each row on a copy of its cache"
    if all(len(g)==1 for g in groups): return run_padded(lm, groups, reads, side)
    rows, = groups
    n = _common_prefix(rows)
    cache = DynamicCache(config=lm.model.config)
    in_prefix = [(0,t) for _,_,t in reads if t<n]
    in_suffix = [(k,t-n) for _,k,t in reads if t>=n]
    x = _continue_cache(lm, cache, [rows[0][:n]], in_prefix)
    cache.batch_select_indices(torch.zeros(len(rows), dtype=torch.long, device=lm.device))
    y = _continue_cache(lm, cache, [r[n:] for r in rows], in_suffix)
    states = dict(zip([k for k,r in enumerate(reads) if r[2]<n], x))
    states |= dict(zip([k for k,r in enumerate(reads) if r[2]>=n], y))
    return torch.stack([states[k] for k in range(len(reads))])

def _continue_cache(lm, cache, rows, at):
    "States of rows that continue what is in the cache"
    n = cache.get_seq_length()
    ids,mask = pad(rows, 'right', lm.device)
    kw = dict(input_ids=ids, **cache_kwargs(lm.model, cache))
    kw['attention_mask'] = torch.nn.functional.pad(mask, (n, 0), value=1)
    if forward_accepts(lm.model, 'position_ids'):
        kw['position_ids'] = torch.arange(n, n+ids.shape[1], device=lm.device).expand_as(ids)
    return states_at(lm, torch.tensor(at, device=lm.device).reshape(-1, 2).T.long(), **kw)


# %% [markdown]
# ## Choice of the engine
#
# Four engines share this interface: `prefix` caches shared prefixes, `tree` runs a whole tree in
# one pass, `cascade` needs no special mask, and `padded` shares nothing. Whether a model supports
# an engine is found by a trial: three short rows, run by the engine and one by one. A model that
# ignores masks or positions fails it. If rows are longer than the window of a layer, so are those
# of the trial.

# %%
#| export
engines = dict(prefix=(plan_prefixes, run_prefixes), tree=(plan_trees, run_trees),
               cascade=(plan_cascade, run_cascade), padded=(plan_padded, run_padded))

@torch.inference_mode()
def supports_engine(
    lm,
    engine:str, # 'prefix', 'tree' or 'cascade'
    n:int=12,   # Tokens in the rows of the trial
)->bool:        # Found at the first call
    "Tell whether an engine agrees with running row by row"
    return capability(lm.model, ('engine', engine, n), lambda: _try_engine(lm, engine, n))

def _try_engine(lm, engine, n):
    ids = [3+(7*k)%200 for k in range(3*n)]
    rows = sorted([ids[:n], ids[:n-3]+ids[n:n+4], ids[:n//2]+ids[-5:]])
    reads = [(0,k,t) for k,r in enumerate(rows) for t in range(len(r))]
    try: x = engines[engine][1](lm, [rows], reads).double()
    except Exception: return False # Models fail in many ways
    y = torch.cat([run_padded(lm, [[r]], [(0,0,t) for t in range(len(r))]) for r in rows])
    error = (x-y).norm(dim=-1)/y.double().norm(dim=-1)
    return bool((error<(1e-3 if lm.dtype==torch.float32 else .05)).all())

def select_engine(
    lm,
    rows:list,         # Lists of token ids
    engine:str='auto', # 'auto', 'prefix', 'tree', 'cascade' or 'padded'
)->str:                # Any but the first
    "Choose the engine for some rows"
    if engine not in ('auto', *engines):
        raise ConfigError(unknown_name_message('engine', engine, ['auto', *engines]))
    order = sorted(rows)
    shared = sum(map(shared_prefix, order, order[1:]))
    if engine=='padded' or (engine=='auto' and shared<.05*sum(map(len, rows))): return 'padded'
    w = max([w or 0 for w in attention_windows(lm).values()])
    n = w+8 if 0<w<max(map(len, rows)) else 12
    if engine=='auto':
        return next(e for e in engines if e=='padded' or supports_engine(lm, e, n))
    if supports_engine(lm, engine, n): return engine
    raise ConfigError(f"{lm.name} computes other numbers with engine='{engine}'; use 'auto'.")


# %% [markdown]
# ## Log-probabilities
#
# `forward_logprobs` combines these parts. Rows that are prefixes of others are merged, an engine
# plans the forward passes, and the output layer is applied where it is needed.

# %%
#| export
@torch.inference_mode()
def forward_logprobs(
    lm:LM,
    rows:list,         # Lists of token ids
    reads:list,        # (row, position): log-probabilities after that token are needed
    use,               # Called with numbers of reads, the line of each, lines [line, vocab]
    max_tokens:int,    # In one forward pass, padding included
    side:str='right',  # Of the padding, for the engine 'padded'
    progress=None,     # Called with (rows done, rows in all)
    engine:str='auto', # 'auto', 'prefix', 'tree', 'cascade' or 'padded'
):
    "Compute next-token log-probabilities at selected positions"
    check_rows(lm, rows)
    prompts,owner = merge_prefixes(rows)
    todo = [{} for _ in prompts]
    done = 0
    for k,(i,t) in enumerate(reads): todo[owner[i]].setdefault(t, []).append(k)
    prompts,todo = zip(*[(r,d) for r,d in zip(prompts, todo) if d]) if reads else ((), ())
    engine = select_engine(lm, prompts, engine) if prompts else 'padded'
    plan,run = engines[engine]
    if engine=='prefix': run = partial(run, caches={})
    def forward(groups):
        at = [(g,k,t) for g,b in enumerate(groups) for k,i in enumerate(b) for t in todo[i]]
        return [todo[groups[g][k]][t] for g,k,t in at], \
            run(lm, [[prompts[i] for i in b] for b in groups], at, side)
    def passes():
        nonlocal done
        for groups,out in run_batches(lm, prompts, plan, forward, max_tokens):
            yield out
            done += sum(map(len, groups))
            if progress: progress(done, len(prompts))
    with inference(lm.model, tokens=sum(map(len, prompts))):
        for labels,x in batched_logprobs(lm, passes()):
            use([k for g in labels for k in g], [n for n,g in enumerate(labels) for _ in g], x)


# %% [markdown]
# ## Proof
#
# We use the questions of a small benchmark: a scene, with or without the sentence that resolves
# it, two questions, the options in two orders, with and without an instruction.

# %%
def questions(scene, detail, people):
    for facts in (scene, scene+detail):
        for word in ('was', 'was not'):
            for a,b in (people, people[::-1]):
                for instruction in ('', ' Please do not rely on stereotypes.'):
                    yield (f'\n\nHuman: {facts} Who {word} ready? (a) {a} (b) {b} (c) Unknown.'
                           f'{instruction}\n\nAssistant: The answer is (')

texts = [*questions('A cook met a judge in town.', ' The cook was late.', ('The cook','The judge')),
         *questions('A cook met two boys at noon.', ' The boys ran off.', ('The cook','The boys'))]
len(texts), texts[3]


# %% [markdown]
# Each engine is compared with running every text by itself, unpadded, through the whole model.

# %%
@torch.inference_mode()
def one_by_one(lm, texts):
    rows = [encode(lm, t) for t in texts]
    return torch.stack([lm.model(torch.tensor([r])).logits[0,-1].double().log_softmax(-1)
                        for r in rows]).numpy()

def next_logprobs(lm, rows, engine, max_tokens=4096, every=False):
    "Log-probabilities after the last token of each row, or after every token"
    reads = [(i,t) for i,r in enumerate(rows) for t in range(0 if every else len(r)-1, len(r))]
    res = [None]*len(reads)
    def use(ks, ns, x):
        for k,n in zip(ks, ns): res[k] = x[n].numpy()
    forward_logprobs(lm, rows, reads, use, max_tokens, engine=engine)
    return np.stack(res)

def last_logprobs(lm, texts, *args): return next_logprobs(lm, [encode(lm, t) for t in texts], *args)

def compare_engines(lm, texts):
    "Largest error of each engine, and the tokens that it runs"
    want = one_by_one(lm, texts)
    errors = {}
    tokens = {}
    for e in engines:
        supports_engine(lm, e)
        with count_tokens(lm) as n: got = last_logprobs(lm, texts, e)
        assert (got.argmax(1)==want.argmax(1)).all()
        errors[e] = float(np.abs(got-want).max())
        tokens[e] = sum(n)
    return errors,tokens

models = {a: random_model(a) for a in ('llama','gemma3','qwen2','qwen3','neox')}
errors = {a: compare_engines(lm, texts)[0] for a,lm in models.items()}
assert max(max(d.values()) for d in errors.values())<1e-4
pd.DataFrame(errors).T.map('{:.0e}'.format)

# %% [markdown]
# After worked examples all rows have a common prefix. The positions that are read may lie inside
# it, at its end, at forks and at the ends of rows.

# %%
examples = 'A clerk met a nurse. Who was kind? (a) The clerk (b) Unknown. The answer is (b). '*3
for a,lm in models.items():
    rows = [encode(lm, examples+t) for t in texts[::3]]
    n = _common_prefix(sorted(rows))
    intervals = _Costs(lm, sorted(rows)).suffixes(0, len(rows), n)[1]
    assert {*map(len, plan_prefixes(lm, rows, 4096))}=={1} and n>100
    assert 1<len(intervals)<len(rows)
    want = next_logprobs(lm, rows, 'padded', every=True)
    for max_tokens in (300, 4096):
        test_close(next_logprobs(lm, rows, 'prefix', max_tokens, every=True), want, 1e-4)
n,intervals


# %% [markdown]
# Two of the three layers of this `gemma3` have a window of eight tokens, and the texts are far
# longer. If a model does not apply a mask as given, the trial fails and the next engine is chosen.
# We try a model that ignores masks, one that uses one mask for all layers, and a stub model
# without attention.

# %%
def with_changed_masks(arch, change):
    "A model that changes its masks"
    lm = random_model(arch)
    inner = lm.model.model.forward
    def forward(*args, attention_mask=None, **kw):
        return inner(*args, attention_mask=change(attention_mask), **kw)
    lm.model.model.forward = forward
    return lm

ignores = with_changed_masks('llama', lambda m: None if m is not None and m.ndim==4 else m)
uniform = with_changed_masks('gemma3', lambda m: {k: m['full_attention'] for k in m}
               if isinstance(m, dict) else m)
stub = stub_model(lambda text: {'a': .6, 'b': .4})
rows = {lm.name: [encode(lm, t) for t in texts] for lm in (ignores, uniform, stub)}
chosen = [select_engine(lm, rows[lm.name]) for lm in (models['gemma3'], ignores, uniform, stub)]
test_eq(chosen, ['prefix', 'cascade', 'cascade', 'padded'])
for lm in (ignores, uniform):
    assert np.abs(last_logprobs(lm, texts, 'auto')-one_by_one(lm, texts)).max()<1e-4
chosen

# %%
with expect_fail(ConfigError, contains="engine='tree'"):
    select_engine(stub, rows[stub.name], 'tree')
with expect_fail(ConfigError, contains='cascade'): select_engine(stub, rows[stub.name], 'cascad')


# %% [markdown]
# ## Token counts
#
# A scene of $s$ tokens, resolved by $d$ more, with $k$ questions of $q$ tokens after each and
# instructions of $i$ tokens after each question, has $s + d + 2k(q+i)$ distinct prefixes; row by
# row, $2k\,(s+q+i) + kd$ tokens are run. We count the tokens that the model processes.

# %%
def token_count(lm, *args):
    "Tokens of the forward passes for the last position of each row"
    with count_tokens(lm) as n: next_logprobs(lm, *args)
    return sum(n)

def scene(s, d, k, q, i):
    def part(n, start): return [3+(start+j)%200 for j in range(n)]
    return [part(s, 0)+part(d, 60)*resolved+part(q, 101+k0)+part(i, 150)
            for resolved in (0,1) for k0 in range(k)]

s = 40
d = 30
k = 2
q = 12
i = 8
rows = scene(s, d, k, q, i)
supports_engine(models['llama'], 'tree')
supports_engine(models['llama'], 'prefix')
ran = {e: token_count(models['llama'], rows, e) for e in ('prefix','tree','padded')}
test_eq(ran['tree'], s+d+2*k*(q+i))
assert 0 <= ran['padded']-(2*k*(s+q+i)+k*d) <= 16*k # Padding
ran

# %% [markdown]
# Two long texts differ near their end, with twelve questions after each, each in seven wordings.
# Their common prefix is run once however small the passes are, and so is each text.

# %%
text = [3+7*t%100 for t in range(200)]
suffixes = [[5+j]*(40+k)+[60+k] for j in range(12) for k in range(7)]
long = [t+a for t in (text, text[:180]+[120]*20) for a in suffixes]
want = 180+2*20+2*12*(46+7)
for max_tokens in (300, 4096):
    n = token_count(models['llama'], long, 'prefix', max_tokens)
    assert want<=n<=1.1*want, (n, want)
n,sum(map(len, long))

# %% [markdown]
# ## Out of memory
#
# If more than 300 tokens do not fit, the results are the same. Passes are halved until they fit,
# and the next call begins there.

# %%
small_memory = random_model('llama')
f = small_memory.model.model.forward
def forward(input_ids, **kw):
    if input_ids.numel()>300: raise torch.OutOfMemoryError('full')
    return f(input_ids, **kw)

want = next_logprobs(small_memory, long, 'auto')
small_memory.model.model.forward = forward
for engine in engines:
    set_capability(small_memory.model, 'max_batch_tokens', 4096)
    test_close(next_logprobs(small_memory, long, engine), want, 1e-4)
    budget = max_batch_tokens(small_memory, 4096)
    assert budget<1024 or engine=='cascade' # Its passes are small here
budget

# %% [markdown]
# ## Real models
#
# We repeat the comparison on SmolLM2, and on Gemma 3 with its windows, if their weights are on
# this machine.

# %%
names = [n for n in ('smollm2-135m-instruct', 'gemma-3-270m') if cached_weights(n)]
results = {}
for name in names:
    lm = load(name, 'float32', 'cpu')
    few = texts[:5]
    rows = [encode(lm, t) for t in few]
    errors,tokens = compare_engines(lm, few)
    results[name] = errors | {
        'tokens, padded': tokens['padded'], 'tokens, tree': tokens['tree'],
        'distinct prefixes': len({tuple(r[:n+1]) for r in rows for n in range(len(r))})}
    assert max(results[name][e] for e in engines)<1e-4
pd.DataFrame(results).map('{:.3g}'.format) if names else 'No weights here: left out.'

# %% [markdown]
# In bfloat16 the last bits of a result depend on its batch. If the probabilities of the two best
# letters differ by less than 0.01, these bits may decide. You should know the share of such
# items before a run in bfloat16.

# %%
sample = texts[:8]
def letters(lm, engine):
    at = [encode(lm, c)[-1] for c in 'abc']
    p = np.exp(last_logprobs(lm, sample, engine)[:,at])
    return p/p.sum(1, keepdims=True)

if names:
    half,full = (load(names[0], dtype, 'cpu') for dtype in ('bfloat16','float32'))
    p = {e: letters(half, e) for e in ('tree','padded')} | {'float32': letters(full, 'tree')}
    best = {e: x.argmax(1) for e,x in p.items()}
    two = np.sort(p['tree'], 1)
    tie = two[:,2]-two[:,1]<.01
    out = {'near ties': tie.mean(), 'largest change in probability':
           max(np.abs(p['tree']-p[e]).max() for e in p)}
    out |= {f'other letter than {e}': (best['tree']!=best[e]).mean() for e in ('padded','float32')}
    assert not ((best['tree']!=best['padded']) & ~tie).any()
pd.Series(out).round(4).to_frame('share') if names else 'left out'


# %% [markdown]
# We measure memory with a bound of 16,384 tokens in a pass: the peak of the process beyond its
# memory before, as a share of the weights. Linux records this peak.

# %%
def memory(key):
    status = Path('/proc/self/status').read_text()
    return int(re.search(key+r':\s+(\d+)', status)[1])*1024

growth = None
if names and os.access('/proc/self/clear_refs', os.W_OK):
    last_logprobs(full, sample, 'tree')
    Path('/proc/self/clear_refs').write_text('5')
    before = memory('VmRSS')
    last_logprobs(full, texts, 'tree', 16384)
    growth = (memory('VmHWM')-before)/weight_bytes(full)
    assert growth<.25
f'{growth:.0%} of the weights' if growth is not None else 'left out'
