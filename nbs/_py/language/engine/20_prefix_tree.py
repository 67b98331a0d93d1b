# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Prefix trees
#
# > What many texts begin with in common is run once.

# %%
#| default_exp language.engine.prefix_tree

# %%
#| export
from dataclasses import dataclass
from functools import partial

import numpy as np, torch

from moral_sc.foundation.errors import ConfigError, unknown_name_message
from moral_sc.language.models import LM, pad
from moral_sc.language.engine.weight_packing import prepacked_weights
from moral_sc.language.engine.onednn import onednn
from moral_sc.language.engine.batching import (batches, check_context_length, batched_logprobs, merge_prefixes, run_batches, plan_padded,
                                       run_padded, padding_budget, states_at, forward_accepts, cache_kwargs)

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
from moral_sc.language.engine.batching import count_tokens, weight_bytes
from moral_sc.language.weights import cached_weights


# %% [markdown]
# The ambiguous scene of a benchmark is the beginning of the one that resolves it; two questions
# follow the same scene; an instruction comes after the question it is added to; options in
# another order follow the same question. In a causal model, what was computed for a beginning
# does not depend on what comes after. So the texts of a call form a tree, and every node of it
# needs to be run once, however many texts pass through it.
#
# ## The tree
#
# Sorted, rows that begin alike stand together, and each row shares with all before it exactly
# what it shares with the one directly before it.

# %%
#| export
def shared_prefix(
    a,
    b,
)->int: # Tokens that both begin with
    n = min(len(a), len(b))
    return next((k for k,(x,y) in enumerate(zip(a, b)) if x!=y), n)

@dataclass
class PrefixTree:
    "Rows laid out so that what they share is there once"
    ids:list   # Token of each node, parents first, each branch in one piece
    depth:list # Its place in its rows
    end:list   # One past the last node that passes through it
    paths:list # For each row, the node of each of its tokens

def build_prefix_tree(
    rows:list, # Lists of token ids, sorted
)->PrefixTree:
    "The prefix tree of some rows"
    t = PrefixTree([], [], [], [])
    path = []
    last = []
    for r in rows:
        k = shared_prefix(last, r)
        n = len(t.ids)
        for u in path[k:]: t.end[u] = n
        path = path[:k]+list(range(n, n+len(r)-k))
        last = r
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
# Laid out like this, a token's position is its depth, and it sees another exactly if it lies in
# the other's branch: $u$ is seen from $v$ if $u \le v < \mathrm{end}(u)$. One comparison makes
# the mask of attention. Where a layer looks back over a window only, depth decides, too. Nodes
# that grow from a stem which was run before see all of it.

# %%
#| export
def tree_mask(
    depth,       # [tree, node]
    end,         # [tree, node]
    window=None, # A token sees so many, itself among them
    stem=0,      # Tokens before the first node
):               # [tree, node, stem+node] True: the first sees the second
    "Who sees whom: everyone their ancestors"
    v = torch.arange(end.shape[1], device=end.device)
    sees = (v[:,None]>=v) & (v[:,None]<end[:,None,:])
    sees = torch.nn.functional.pad(sees, (stem, 0), value=True)
    if not window: return sees
    before = torch.arange(-stem, 0, device=end.device).expand(len(depth), -1)
    return sees & (depth[:,:,None]-torch.cat([before, depth], 1)[:,None,:] < window)


# %%
tree_mask(torch.tensor([t.depth]), torch.tensor([t.end])).int()[0]

# %%
#| hide
at = torch.tensor([t.depth]),torch.tensor([t.end])
grown = build_prefix_tree([[5,6]+r for r in [[7,8,1], [7,8,2,3], [7,9]]])
for w in (None, 2, 3): # As of a tree that has the stem in it
    whole = tree_mask(torch.tensor([grown.depth]), torch.tensor([grown.end]), w)
    test_eq(tree_mask(*at, w, 2).tolist(), whole[:,2:].tolist())


# %% [markdown]
# ## How much in one tree
#
# Attention compares all pairs of nodes of a tree and throws most of the comparisons away. One
# tree of everything would share all there is to share and drown in this. A tree of $n$ nodes costs
# $n + c\,n^2$, where $c$ is known from the shape of the model: attention takes about
# $2\,w\,l$ multiplications for each pair of nodes ($w$ the width of all heads together, $l$ the
# number of layers) and everything else one for each weight and node. Attention kernels reach
# about half the speed of matrix products, hence another factor two.
#
# Cutting the sorted rows into stretches at least cost is then a matter of a few lines: the
# cheapest way to cut the first $j$ rows ends in some stretch, and what precedes it is cut in the
# cheapest way.

# %%
#| export
def cheapest(
    n:int,
    price,  # Row number -> costs of the stretches that end there, the longest first
)->list:    # (first, one past the last) of each stretch
    "Cut a list into stretches at least cost"
    best = np.zeros(n+1)
    start = np.zeros(n+1, int)
    for j in range(n):
        c = price(j)
        c = c+best[j+1-len(c):j+1]
        k = int(c.argmin())
        best[j+1] = c[k]
        start[j+1] = j+1-len(c)+k
    cut = [n]
    while cut[-1]: cut.append(int(start[cut[-1]]))
    return list(zip(cut[:0:-1], cut[-2::-1]))

def attention_cost_ratio(lm)->float:
    "Cost of a pair of nodes, in units of the cost of a node"
    c = lm.model.config.get_text_config()
    heads = getattr(c, 'num_attention_heads', 0)
    wide = heads*(getattr(c, 'head_dim', None) or getattr(c, 'hidden_size', 0)//max(heads, 1))
    out = lm.model.get_output_embeddings()
    body = lm.parameters-sum(p.numel() for p in out.parameters())
    return 4*wide*getattr(c, 'num_hidden_layers', 0)/max(body, 1)


# %%
cheapest(5, lambda j: np.array([9., 4., 1.][-j-1:]))


# %%
#| export
class _Cut:
    "Sorted rows, and what it costs to run stretches of them"
    def __init__(self, lm, rows,
        limit=np.inf, # Nodes in one tree
    ):
        self.c = attention_cost_ratio(lm)
        self.slack = padding_budget(lm)
        self.limit = limit
        self.S = np.array([0, *map(shared_prefix, rows, rows[1:])])
        self.C = np.append(0, np.cumsum(np.array([*map(len, rows)])-self.S))

    def nodes(self, a, b): return self.C[b]-self.C[a]+self.S[a] # Of the tree of rows a to b

    def least(self, a, b, price, most=512):
        "What the cheapest stretches cost, and which they are; a price is one of nodes"
        def of(j): return price(self.nodes(np.arange(max(a, j+1-most), j+1), j+1))
        cut = [(a+x, a+y) for x,y in cheapest(b-a, lambda j: of(a+j))]
        return sum(price(np.array([self.nodes(x, y)]))[0] for x,y in cut),cut

    def trees(self, a, b):
        def price(n): return np.where((n>self.limit) & (n>n[-1]), np.inf, n+self.c*n*n)
        return self.least(a, b, price)

def _beside(cut, order, trees, tokens):
    "Trees of like size in one pass"
    big = [int(cut.nodes(*t)) for t in trees]
    return [[order[slice(*trees[k])] for k in p] for p in batches(big, tokens, max_padding=cut.slack)]

def plan_trees(
    lm,
    rows:list,      # Lists of token ids
    tokens:int,     # In one pass, padding included
    limit:int=4096, # Nodes in one tree
)->list:            # Passes: lists of groups of row numbers
    "Rows that share much in one tree, trees of like size side by side"
    order = sorted(range(len(rows)), key=rows.__getitem__)
    cut = _Cut(lm, [rows[i] for i in order], min(limit, tokens))
    return _beside(cut, order, cut.trees(0, len(rows))[1], tokens)


# %% [markdown]
# ## Reading a tree
#
# Models differ in how they take a mask. Where all layers look back equally far they take one,
# `[tree, 1, node, node]`, added to the scores of attention; where some of them have a window
# they take one for each kind of layer.

# %%
#| export
def attention_windows(lm)->dict:
    "For each kind of layer of a model, how many tokens it sees; None for all"
    c = lm.model.config.get_text_config()
    w = getattr(c, 'sliding_window', None)
    kinds = getattr(c, 'layer_types', None)
    if not kinds: return {'full_attention': w}
    return {k: w if k=='sliding_attention' else None for k in sorted(set(kinds))}

def _masks(lm, depth, end, stem=0):
    def one(w):
        no = ~tree_mask(depth, end, w, stem)[:,None]
        return torch.zeros(no.shape, dtype=lm.dtype, device=lm.device).masked_fill_(
            no, torch.finfo(lm.dtype).min)
    made = {k: one(w) for k,w in attention_windows(lm).items()}
    return made if len(made)>1 else next(iter(made.values()))

def run_trees(
    lm,
    groups:list, # Lists of rows, sorted
    reads:list,  # (group, row in it, position): what is wanted
    side='right',
):               # As `states`
    "Each group of rows as one tree"
    if all(len(g)==1 for g in groups): return run_padded(lm, groups, reads, side)
    return _grow(lm, [build_prefix_tree(g) for g in groups], reads)

def _grow(lm, trees, reads, stem=0, **kw):
    "Trees side by side, from a stem or from nothing; `reads` count from where they begin"
    (ids,real),depth,end = (pad([getattr(t, k) for t in trees], 'right', lm.device)
                            for k in ('ids','depth','end'))
    end = torch.where(real>0, end[0], torch.arange(1, ids.shape[1]+1, device=lm.device))
    at = [(g, trees[g].paths[k][t]) for g,k,t in reads]
    kw |= dict(input_ids=ids, position_ids=depth[0]+stem,
               attention_mask=_masks(lm, depth[0], end, stem))
    return states_at(lm, torch.tensor(at, device=lm.device).T, **kw)


# %% [markdown]
# ## Stems
#
# Where the rows of a tree have a long beginning in common, as worked examples are, most pairs of
# its nodes are of different branches, and attention compares them for nothing. Such a tree is run
# in two passes: its stem, whose keys and values are kept, and then all its branches side by side,
# each a small tree that sees itself and the whole stem. A stem of $s$ nodes with $b$ more in
# branches of $m$ nodes costs $s + c\,s^2 + b + c\,b\,(s+m)$ and one pass more, in place of
# $s + b + c\,(s+b)^2$.
#
# A branch may be any stretch of the sorted rows; what neighbouring branches share is run in each.
# So branches, too, are cut at least cost. The stem of one pass waits for the next, which goes on
# from what both have in common; so at every fork there is the choice of a stem that ends there, of
# stems further out, and of trees without any.

# %%
#| export
def _stem(rows): return min(map(shared_prefix, rows, rows[1:])) if len(rows)>1 else 0

def _branches(cut, a, b, stem):
    "What branches on a stem cost at least, and which they are"
    def price(n): return n-stem+cut.c*(n-stem)*n
    return cut.least(a, b, price)

def _best(cut, a, b, known=0, deep=0):
    "Least cost once `known` tokens have been run, and groups: (first, last, stem, branches)"
    n = cut.nodes(a, b)
    s = int(cut.S[a+1:b].min()) if b-a>1 else 0
    whole = n+cut.c*n*n if n<=cut.limit or b-a==1 else np.inf
    cost,trees = (whole, [(a, b)]) if deep else cut.trees(a, b)
    choices = [(cost, [(x, y, 0, []) for x,y in trees])]
    stem = (s-known)*(1+cut.c*s)
    if s>8:
        cost,branches = _branches(cut, a, b, s)
        more = 2*cut.slack # A stem has a pass more, and two that are smaller
        choices.append((stem+more+cost, [(a, b, s, branches)]))
    if b-a>2 and deep<24:
        at = [a, *(a+1+np.flatnonzero(cut.S[a+1:b]==s)), b]
        parts = [_best(cut, x, y, s, deep+1) for x,y in zip(at, at[1:])]
        groups = [g for _,x in parts for g in x]
        choices.append((stem*any(g[2] for g in groups)+sum(x for x,_ in parts), groups))
    return min(choices, key=lambda x: x[0])

def plan_prefixes(
    lm,
    rows:list,      # Lists of token ids
    tokens:int,     # In one pass, padding included
    limit:int=4096, # Nodes in one tree that is run in one pass
)->list:            # Passes: one group whose stem is kept, or groups of which each is a tree
    "Rows that share much in one tree, with a stem where that is cheaper"
    order = sorted(range(len(rows)), key=rows.__getitem__)
    cut = _Cut(lm, [rows[i] for i in order], min(limit, tokens))
    res = []
    trees = []
    for a,b,s,branches in _best(cut, 0, len(rows))[1]:
        if not s: trees.append((a, b))
        for p in _even(lm, [int(cut.nodes(*x)-s) for x in branches], tokens):
            res.append([[order[i] for k in sorted(p) for i in range(*branches[k])]])
    return res+_beside(cut, order, trees, tokens)

def _even(lm, sizes, tokens):
    "Branches side by side, with little padding"
    return batches(sizes, tokens, max_padding=max(padding_budget(lm), sum(sizes)//16))

def run_prefixes(
    lm,
    groups:list, # Lists of rows, sorted: one, or several trees
    reads:list,  # (group, row in it, position): what is wanted
    side='right',
    kept=None,   # A dictionary in which the stem of one pass waits for the next
):               # As `states`
    "What a group shares first, then its branches"
    rows = groups[0]
    n = _stem(groups[0])
    kept = {} if kept is None else kept
    if len(groups)>1 or not n: return run_trees(lm, groups, reads, side)
    n,cache,parts = _stemmed(lm, rows, n, reads, kept)
    cut = _branches(_Cut(lm, rows), 0, len(rows), n)[1]
    trees = [build_prefix_tree([r[n:] for r in rows[a:b]]) for a,b in cut]
    of = {k: (g,k-a) for g,(a,b) in enumerate(cut) for k in range(a, b)}
    big = [len(t.ids) for t in trees]
    for p in _even(lm, big, len(big)*max(big)):
        late = [i for i,(_,k,_) in enumerate(reads) if i not in parts and of[k][0] in p]
        at = [(p.index(of[k][0]), of[k][1], t-n) for _,k,t in (reads[i] for i in late)]
        if late: parts |= zip(late, _grow(lm, [trees[g] for g in p], at, n,
                                          **cache_kwargs(lm.model, cache)))
    return torch.stack([parts[i] for i in range(len(reads))])

def _stemmed(lm, rows, n, reads, kept):
    "Length, keys and values of a stem, and what was wanted of it; begins with what is kept"
    from transformers import DynamicCache
    def early(n): return {i: t for i,(_,_,t) in enumerate(reads) if t<n}
    cache = DynamicCache()
    k = 0
    for old,layers in kept.items(): # One, or none
        k = shared_prefix(old, rows[0][:n])
        if early(k): k = 0
        if k and (n-k)*len(rows)<=padding_budget(lm): n = k # The rest is not worth a pass
        if k: [cache.update(*(x[:,:,:k] for x in two), i) for i,two in enumerate(layers)]
    wanted = early(n)
    found = []
    if n>k:
        at = torch.tensor([[0]*len(wanted), [t-k for t in wanted.values()]], dtype=torch.long)
        found = states_at(lm, at.to(lm.device), **cache_kwargs(lm.model, cache),
                       input_ids=torch.tensor([rows[0][k:n]], device=lm.device))
    stem = [(x.keys, x.values) for x in cache.layers]
    cache.update = lambda k, v, layer, *a, **kw: tuple( # Nothing is added to it any more
        torch.cat([x.expand(len(y), -1, -1, -1), y], 2) for x,y in zip(stem[layer], (k, v)))
    kept.clear(); kept[tuple(rows[0][:n])] = stem
    return n,cache,dict(zip(wanted, found))


# %% [markdown]
# ## Cascades
#
# Some models cannot be given such a mask. For them what a group of rows shares is run once and
# its keys and values are kept; then the rest of each row continues from a copy. That shares one
# beginning a group, where a tree shares every fork.

# %%
#| export
def plan_cascade(
    lm,
    rows:list,  # Lists of token ids
    tokens:int, # In one pass: in what is kept and what is run, padding included
)->list:        # Passes: lists of groups of row numbers
    "Groups that share a beginning; what is alone stays alone"
    order = sorted(range(len(rows)), key=rows.__getitem__)
    rows = [rows[i] for i in order]
    L = np.array([*map(len, rows)])
    S = np.array([0, *map(shared_prefix, rows, rows[1:])])
    def price(j, most=512):
        i = slice(max(0, j+1-most), j+1)
        n = L[i][::-1].cumsum()[::-1]
        k = np.arange(len(L[i]), 0, -1)
        stem = np.append(np.minimum.accumulate(S[i][:0:-1])[::-1], 0)
        fit = k*np.maximum.accumulate(L[i][::-1])[::-1] <= tokens
        fit[-1] = True
        return (n-(k-1)*stem+(k>1))[fit]
    cut = cheapest(len(rows), price)
    alone = [a for a,b in cut if b-a==1]
    res = [[[order[alone[i]]] for i, in p]
           for p in plan_padded(lm, [rows[a] for a in alone], tokens)]
    return res+[[order[a:b]] for a,b in cut if b-a>1]

def run_cascade(
    lm,
    groups:list, # Lists of rows: many of one row each, or one of many
    reads:list,  # (group, row in it, position): what is wanted
    side='right',
):               # As `states`
    "What a group shares first, then the rest of each row"
    from transformers import DynamicCache
    if all(len(g)==1 for g in groups): return run_padded(lm, groups, reads, side)
    rows, = groups
    n = _stem(rows)
    cache = DynamicCache(config=lm.model.config)
    first = [(0,t) for _,_,t in reads if t<n]
    then = [(k,t-n) for _,k,t in reads if t>=n]
    x = _go_on(lm, cache, [rows[0][:n]], first)
    cache.batch_select_indices(torch.zeros(len(rows), dtype=torch.long, device=lm.device))
    y = _go_on(lm, cache, [r[n:] for r in rows], then)
    parts = dict(zip([k for k,r in enumerate(reads) if r[2]<n], x))
    parts |= dict(zip([k for k,r in enumerate(reads) if r[2]>=n], y))
    return torch.stack([parts[k] for k in range(len(reads))])

def _go_on(lm, cache, rows, at):
    "States of rows that continue what is in the cache"
    n,(ids,mask) = cache.get_seq_length(), pad(rows, 'right', lm.device)
    kw = dict(input_ids=ids, **cache_kwargs(lm.model, cache))
    kw['attention_mask'] = torch.nn.functional.pad(mask, (n, 0), value=1)
    if forward_accepts(lm.model, 'position_ids'):
        kw['position_ids'] = torch.arange(n, n+ids.shape[1], device=lm.device).expand_as(ids)
    return states_at(lm, torch.tensor(at, device=lm.device).reshape(-1, 2).T.long(), **kw)


# %% [markdown]
# ## Which models can
#
# Whether a model does what is asked of it is not looked up but tried: three short rows, through
# the engine and one by one. A mask or positions that are ignored show at once. Where rows are
# longer than the window of a layer, the trial is, too.

# %%
#| export
engines = dict(stem=(plan_prefixes, run_prefixes), tree=(plan_trees, run_trees),
               cascade=(plan_cascade, run_cascade), rows=(plan_padded, run_padded))

@torch.inference_mode()
def supports_engine(
    lm,
    engine:str, # 'stem', 'tree' or 'cascade'
    n:int=12,   # Tokens in the rows of the trial
)->bool:        # Found out at the first call
    "Whether an engine agrees with reading row by row"
    known = lm.__dict__.setdefault('_can', {})
    if (engine,n) not in known:
        try: known[engine,n] = _agrees(lm, engine, n)
        except Exception: known[engine,n] = False # Models refuse in many ways
    return known[engine,n]

def _agrees(lm, engine, n):
    ids = [3+(7*k)%200 for k in range(3*n)]
    rows = sorted([ids[:n], ids[:n-3]+ids[n:n+4], ids[:n//2]+ids[-5:]])
    reads = [(0,k,t) for k,r in enumerate(rows) for t in range(len(r))]
    x = engines[engine][1](lm, [rows], reads).double()
    y = torch.cat([run_padded(lm, [[r]], [(0,0,t) for t in range(len(r))]) for r in rows])
    off = (x-y).norm(dim=-1)/y.double().norm(dim=-1)
    return bool((off<(1e-3 if lm.dtype==torch.float32 else .05)).all())

def select_engine(
    lm,
    rows:list,         # Lists of token ids
    engine:str='auto', # 'auto', 'stem', 'tree', 'cascade' or 'rows'
)->str:                # Any but the first
    "The engine to use"
    if engine not in ('auto', *engines):
        raise ConfigError(unknown_name_message('engine', engine, ['auto', *engines]))
    order = sorted(rows)
    same = sum(map(shared_prefix, order, order[1:]))
    if engine=='rows' or (engine=='auto' and same<.05*sum(map(len, rows))): return 'rows'
    w = max([w or 0 for w in attention_windows(lm).values()])
    n = w+8 if 0<w<max(map(len, rows)) else 12
    if engine=='auto': return next(e for e in engines if e=='rows' or supports_engine(lm, e, n))
    if supports_engine(lm, engine, n): return engine
    raise ConfigError(f"{lm.name} does not read right with engine='{engine}'; use 'auto'.")


# %% [markdown]
# `forward_logprobs` puts it together. Rows that are the beginning of others are merged, an engine plans the
# passes, and the output layer is applied to what is wanted.

# %%
#| export
@torch.inference_mode()
def forward_logprobs(
    lm:LM,
    rows:list,         # Lists of token ids
    reads:list,        # (row, position): what comes after that token is wanted
    use,               # Called with numbers of reads, the line of each, lines [line, vocab]
    max_tokens:int,    # Tokens in one forward pass, padding included
    side:str='right',  # Of the padding, where rows are run by themselves
    progress=None,     # Called with (rows done, rows in all)
    engine:str='auto', # 'auto', 'stem', 'tree', 'cascade' or 'rows'
):
    "Run a model over rows and hand out log-probabilities at the positions asked for"
    check_context_length(lm, rows)
    prompts,owner = merge_prefixes(rows)
    todo = [{} for _ in prompts]
    done = 0
    for k,(i,t) in enumerate(reads): todo[owner[i]].setdefault(t, []).append(k)
    prompts,todo = zip(*[(r,d) for r,d in zip(prompts, todo) if d]) if reads else ((), ())
    engine = select_engine(lm, prompts, engine) if prompts else 'rows'
    plan,run = engines[engine]
    if engine=='stem': run = partial(run, kept={})
    def once(groups):
        at = [(g,k,t) for g,b in enumerate(groups) for k,i in enumerate(b) for t in todo[i]]
        return [todo[groups[g][k]][t] for g,k,t in at], \
            run(lm, [[prompts[i] for i in b] for b in groups], at, side)
    def found():
        nonlocal done
        for groups,out in run_batches(lm, prompts, plan, once, max_tokens):
            yield out
            done += sum(map(len, groups))
            if progress: progress(done, len(prompts))
    with prepacked_weights(lm.model, sum(map(len, prompts))), onednn(lm.model):
        for who,x in batched_logprobs(lm, found()):
            use([k for g in who for k in g], [n for n,g in enumerate(who) for _ in g], x)


# %% [markdown]
# ## Proof
#
# The questions of a benchmark, in small: a scene, with or without the sentence that resolves
# it, two questions, the options in two orders, with and without an instruction.

# %%
def asked(scene, more, people):
    for facts in (scene, scene+more):
        for word in ('was', 'was not'):
            for a,b in (people, people[::-1]):
                for told in ('', ' Please do not rely on stereotypes.'):
                    yield (f'\n\nHuman: {facts} Who {word} ready? (a) {a} (b) {b} (c) Unknown.'
                           f'{told}\n\nAssistant: The answer is (')

texts = [*asked('A cook met a judge in town.', ' The cook was late.', ('The cook','The judge')),
         *asked('A cook met two boys at noon.', ' The boys ran off.', ('The cook','The boys'))]
len(texts), texts[3]


# %% [markdown]
# Every text by itself, unpadded, through the whole model, against each engine:

# %%
@torch.inference_mode()
def alone(lm, texts):
    rows = [encode(lm, t) for t in texts]
    return torch.stack([lm.model(torch.tensor([r])).logits[0,-1].double().log_softmax(-1)
                        for r in rows]).numpy()

def after(lm, rows, engine, max_tokens=4096, every=False):
    "What comes after the last token of each row, or after every token"
    reads = [(i,t) for i,r in enumerate(rows) for t in range(0 if every else len(r)-1, len(r))]
    res = [None]*len(reads)
    def use(ks, ns, x):
        for k,n in zip(ks, ns): res[k] = x[n].numpy()
    forward_logprobs(lm, rows, reads, use, max_tokens, engine=engine)
    return np.stack(res)

def ends(lm, texts, *args): return after(lm, [encode(lm, t) for t in texts], *args)

def differ(lm, texts):
    want = alone(lm, texts)
    got = {e: ends(lm, texts, e) for e in engines}
    assert all((x.argmax(1)==want.argmax(1)).all() for x in got.values())
    return {e: float(np.abs(x-want).max()) for e,x in got.items()}

models = {a: random_model(a) for a in ('llama','gemma3','qwen2','qwen3','neox')}
diff = {a: differ(lm, texts) for a,lm in models.items()}
assert max(max(d.values()) for d in diff.values())<1e-4
pd.DataFrame(diff).T.map('{:.0e}'.format)

# %% [markdown]
# After worked examples all of them have a stem. What is read may lie in it, at its end, where
# branches fork and where they end.

# %%
before = 'A clerk met a nurse. Who was kind? (a) The clerk (b) Unknown. The answer is (b). '*3
for a,lm in models.items():
    rows = [encode(lm, before+t) for t in texts[::3]]
    n = _stem(sorted(rows))
    cut = _branches(_Cut(lm, sorted(rows)), 0, len(rows), n)[1]
    assert {*map(len, plan_prefixes(lm, rows, 4096))}=={1} and n>100 and 1<len(cut)<len(rows)
    want = after(lm, rows, 'rows', every=True)
    for most in (300, 600, 4096):
        test_close(after(lm, rows, 'stem', most, every=True), want, 1e-4)
n,cut


# %% [markdown]
# Two of the three layers of this `gemma3` look back eight tokens, and the texts are far longer.
# What happens with a model that takes a mask and makes something else of it? The trial notices,
# and the next engine is taken: here with one that ignores masks, one that gives all layers
# the same, and an oracle that has no attention at all.

# %%
def bent(arch, change):
    "A model that changes the masks it is given"
    lm = random_model(arch)
    inner = lm.model.model.forward
    def forward(*args, attention_mask=None, **kw):
        return inner(*args, attention_mask=change(attention_mask), **kw)
    lm.model.model.forward = forward
    return lm

ignores = bent('llama', lambda m: None if m is not None and m.ndim==4 else m)
uniform = bent('gemma3', lambda m: {k: m['full_attention'] for k in m}
               if isinstance(m, dict) else m)
oracle = stub_model(lambda text: {'a': .6, 'b': .4})
rows = {lm.name: [encode(lm, t) for t in texts] for lm in (ignores, uniform, oracle)}
chosen = [select_engine(lm, rows[lm.name]) for lm in (models['gemma3'], ignores, uniform, oracle)]
test_eq(chosen, ['stem', 'cascade', 'cascade', 'rows'])
for lm in (ignores, uniform):
    assert np.abs(ends(lm, texts, 'auto')-alone(lm, texts)).max()<1e-4
chosen

# %%
with expect_fail(ConfigError, contains="engine='tree'"): select_engine(oracle, rows['stub'], 'tree')
with expect_fail(ConfigError, contains='cascade'): select_engine(oracle, rows['stub'], 'cascad')


# %% [markdown]
# ## Tokens run
#
# How many tokens must be run is a matter of counting. A scene of $s$ tokens, resolved by $d$
# more, with $k$ questions of $q$ tokens after each and instructions of $i$ tokens after each
# question, has $s + d + 2k(q+i)$ distinct beginnings; row by row, $2k\,(s+q+i) + kd$ tokens
# are run. The model is watched while it reads.

# %%
def tokens(lm, *args):
    "How many it takes to say what comes after rows"
    with count_tokens(lm) as n: after(lm, *args)
    return sum(n)

def scene(s, d, k, q, i):
    part = lambda n, start: [3+(start+j)%200 for j in range(n)]
    return [part(s, 0)+part(d, 60)*more+part(q, 101+k0)+part(i, 150)
            for more in (0,1) for k0 in range(k)]

s = 40
d = 30
k = 2
q = 12
i = 8
rows = scene(s, d, k, q, i)
supports_engine(models['llama'], 'tree')
supports_engine(models['llama'], 'stem')
ran = {e: tokens(models['llama'], rows, e) for e in ('stem','tree','rows')}
test_eq(ran['tree'], s+d+2*k*(q+i))
assert 0 <= ran['rows']-(2*k*(s+q+i)+k*d) <= 16*k # Padding
ran

# %% [markdown]
# Two long texts that part near their end, with twelve questions after each, each in seven wordings:
# what they have in common is run once however small the passes are, and so is each text.

# %%
first = [3+7*t%100 for t in range(200)]
ask = [[5+j]*(40+k)+[60+k] for j in range(12) for k in range(7)]
long = [t+a for t in (first, first[:180]+[120]*20) for a in ask]
want = 180+2*20+2*12*(46+7)
for most in (300, 4096):
    n = tokens(models['llama'], long, 'stem', most)
    assert want<=n<=1.1*want, (n, want)
n,sum(map(len, long))

# %% [markdown]
# ## Out of memory
#
# A machine that has room for 300 tokens and no more gives the same numbers. It halves its
# passes until they fit, and begins there the next time.

# %%
tight = random_model('llama')
f = tight.model.model.forward
def forward(input_ids, **kw):
    if input_ids.numel()>300: raise torch.OutOfMemoryError('full')
    return f(input_ids, **kw)

want = after(tight, long, 'auto')
tight.model.model.forward = forward
for engine in engines:
    tight._room = 4096
    test_close(after(tight, long, engine), want, 1e-4)
    assert tight._room<1024 or engine=='cascade' # Whose passes are small here
tight._room

# %% [markdown]
# ## Real models
#
# Where their weights are on this machine: SmolLM2, and Gemma 3 with its windows.

# %%
names = [n for n in ('smollm2-135m-instruct', 'gemma-3-270m') if cached_weights(n)]
found = {}
for name in names:
    lm = load(name, 'float32', 'cpu')
    supports_engine(lm, 'tree')
    few = texts[:16]
    rows = [encode(lm, t) for t in few]
    found[name] = differ(lm, few) | {
        'tokens, rows': tokens(lm, rows, 'rows'),
        'tokens, tree': tokens(lm, rows, 'tree'),
        'distinct beginnings': len({tuple(r[:n+1]) for r in rows for n in range(len(r))})}
    assert max(found[name][e] for e in engines)<1e-4
pd.DataFrame(found).map('{:.3g}'.format) if names else 'No weights here: left out.'


# %% [markdown]
# In bfloat16 the last bits of a number depend on what it was computed beside. Where the two best
# letters are closer than 0.01 in probability, such bits may decide, so the share of those is
# what one should know about a run in bfloat16.

# %%
def letters(lm, engine):
    at = [encode(lm, c)[-1] for c in 'abc']
    p = np.exp(ends(lm, few, engine)[:,at])
    return p/p.sum(1, keepdims=True)

if names:
    half,full = (load(names[0], dtype, 'cpu') for dtype in ('bfloat16','float32'))
    p = {e: letters(half, e) for e in ('tree','rows')} | {'float32': letters(full, 'tree')}
    best = {e: x.argmax(1) for e,x in p.items()}
    two = np.sort(p['tree'], 1)
    near = two[:,2]-two[:,1]<.01
    out = {'near ties': near.mean(), 'moved most, in probability':
           max(np.abs(p['tree']-p[e]).max() for e in p)}
    out |= {f'other letter than {e}': (best['tree']!=best[e]).mean() for e in ('rows','float32')}
    assert not ((best['tree']!=best['rows']) & ~near).any()
pd.Series(out).round(4).to_frame('share') if names else 'left out'


# %% [markdown]
# Memory, with a caller who allows 16,384 tokens in a pass: what the process takes at its peak
# beyond what it held before, against what the weights take. Linux keeps that peak.

# %%
def held(key):
    status = Path('/proc/self/status').read_text()
    return int(re.search(key+r':\s+(\d+)', status)[1])*1024

grown = None
if names and os.access('/proc/self/clear_refs', os.W_OK):
    ends(full, few, 'tree')
    Path('/proc/self/clear_refs').write_text('5')
    before = held('VmRSS')
    ends(full, texts, 'tree', 16384)
    grown = (held('VmHWM')-before)/weight_bytes(full)
    assert grown<.25
f'{grown:.0%} of the weights' if grown is not None else 'left out'
