# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Steps
#
# > One training step of a toy model, written out instruction by instruction for its size.

# %%
#| default_exp superposition.engines.codegen

# %%
#| export
import numpy as np
from dataclasses import dataclass
from fastcore.basics import patch
from llvmlite import ir
from numba import types
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model, typeof_impl, unbox, NativeValue
from moral_sc.superposition.engines.simd import (Accumulator, FloatArray, Integer, absolute, logical_and, array_memory, fma,
    horizontal_sums, hash_vector, to_integers, iota, loop, n_lanes, relu, broadcast_constant, broadcast_scalar, sqrt, select)

# %%
#| hide
import torch
from fastcore.test import *
from numba import njit
from moral_sc.superposition.features import expand, keys, Sampler
from moral_sc.superposition.model import ToyConfig
from moral_sc.superposition.training import objective
torch.set_num_threads(1)


# %% [markdown]
# A step draws a batch, encodes and decodes it, and takes the gradient. Written with arrays, each
# of these reads and writes the whole batch; yet a model of twenty features has a hundred
# weights, and a processor core could keep all it needs beside its arithmetic. This page writes
# the step so that nothing but the weights ever leaves the core. It uses [lanes](10_simd.ipynb):
# sixteen samples go through the model at once, each weight spread over them.
#
# The gradient is known in closed form. With errors $e = y - x$ and weights
# $t_i = 2 I_i/(nB)$,
#
# $$g_i = t_i\, e_i\, [z_i>0], \qquad d = \sum_i W_i g_i, \qquad
# \partial W_i = g_i h + x_i d, \qquad \partial b_i = g_i.$$
#
# ## What is fixed
#
# Everything that is known beforehand is a constant for the compiler. A `Plan` holds it, and each
# plan gets a kernel of its own.

# %%
#| export
@dataclass(frozen=True)
class Plan:
    "All that is fixed when a kernel is compiled"
    n:int                        # Features
    m:int                        # Hidden units
    activation:str = 'relu'      # 'relu' or 'linear', like `hidden`
    hidden:str = 'linear'
    target:str = 'identity'
    features:str = 'independent'
    sets:int = 1
    bias:bool = True
    hidden_bias:bool = False
    tied:bool = True
    signed:bool = False
    unit:bool = False
    l1:bool = False
    ragged:bool = False          # The batch does not fill its last sixteen
    edition:int = 0              # Of the code, so that no outdated kernel is taken from a cache


# %% [markdown]
# ## Where the weights lie
#
# Each gradient entry needs an accumulator of sixteen lanes. Thirty-two registers hold
# those of a small rectangle of the matrix: five features by five columns read ten vectors to do
# twenty-five multiplications. So matrices are cut into such tiles, and a tile's entries
# lie together, because `horizontal_sums` turns sixteen accumulators into sixteen neighbours. The bias is one
# more column, for a hidden unit that is always 1.

# %%
#| export
class Tiles:
    "A matrix [feature, column] in rectangles that fit into registers"
    def __init__(self, n, columns, rows):
        self.n = n
        self.columns = columns
        self.rows = rows
        count = -(-columns//max(1, 26//rows)) if rows<=8 else 1
        cuts = [j*columns//count for j in range(count+1)]
        self.spans = list(zip(cuts, cuts[1:]))
        sizes = [-(-rows*(b-a)//n_lanes)*n_lanes for a,b in self.spans]
        self.starts = [sum(sizes[:j]) for j in range(count)]
        self.stride = sum(sizes)
        self.blocks = -(-n//rows)
        self.size = self.stride*self.blocks

    def within(self, f, k):
        "Place of row `f`, column `k` in its block of rows"
        start,(a,b) = next(s for s in zip(self.starts, self.spans) if s[1][0]<=k<s[1][1])
        return start + f*(b-a) + k-a

    def places(self):
        "Places of all entries, [feature, column]"
        return np.array([[i//self.rows*self.stride + self.within(i%self.rows, k)
                          for k in range(self.columns)] for i in range(self.n)])


# %%
t = Tiles(400, 31, 4)
test_eq(len(np.unique(t.places())), 400*31)
t.spans, t.size/(400*31)


# %% [markdown]
# The smallest models (up to sixteen parameters) are *fused*: one tile, and no memory at all. The
# others take a handful of sample groups through the model, keep what these leave behind
# in the nearest cache, and then pass tile by tile over it.

# %%
#| export
@patch(as_prop=True)
def fused(self:Plan): return self.n*(self.m+1 if self.tied else 2*self.m+1)<=16
@patch(as_prop=True)
def rows(self:Plan):
    "Features of a tile; the fewest left over"
    return self.n if self.fused else min((4,5,3), key=lambda r: -(-self.n//r)*r)
@patch(as_prop=True)
def groups(self:Plan):
    "Sample groups between two passes over the gradient"
    return 1 if self.fused else max(2, min(16, 4096//self.n))
@patch(as_prop=True)
def read(self:Plan): return Tiles(self.n, self.m+1, self.rows)
@patch(as_prop=True)
def write(self:Plan): return self.read if self.tied else Tiles(self.n, self.m, self.rows)
@patch(as_prop=True)
def padded(self:Plan): return self.read.blocks*self.rows
@patch(as_prop=True)
def c_at(self:Plan): return self.read.size + (0 if self.tied else self.write.size)
@patch(as_prop=True)
def size(self:Plan):
    "Numbers that hold the parameters"
    return self.c_at + self.hidden_bias*-(-self.m//n_lanes)*n_lanes
@patch(as_prop=True)
def work(self:Plan):
    "Numbers that hold the samples under way"
    return n_lanes*(2*self.groups*(self.padded+self.m) + self.m + 1)


# %%
[(p.n, p.m, p.fused, p.rows, p.groups, p.work*4/1024)
 for p in (Plan(2,1), Plan(5,2), Plan(20,5), Plan(200,20), Plan(400,30))]


# %% [markdown]
# ## Writing a step
#
# `Step` knows where everything is. In a fused model inputs and hidden units are registers under
# names, else places in memory; the code that follows does not see the difference.

# %%
#| export
class Held(dict):
    "Registers under numbers, for a kernel that needs no memory"
    get = dict.__getitem__
    put = dict.__setitem__

class Step:
    "Writes one training step"
    def __init__(self, b, plan, theta, grad, table, work, ks, rows, l1):
        self.b = b
        self.p = plan
        self.theta = theta
        self.grad = grad
        self.ks = ks
        self.l1 = l1
        self.rows = rows
        S = plan.groups
        n = plan.padded
        m = plan.m
        self.th,self.scale,self.coef = (table + j*n for j in range(3))
        sizes = [n*S, n*S, m*S, m*S]
        memory = [work + n_lanes*sum(sizes[:j]) for j in range(5)]
        self.x,self.g,self.h,self.d = (Held() for _ in range(4)) if plan.fused else memory[:4]
        self.dc = memory[4]
        self.loss = Accumulator(b)
        self.read = plan.read
        self.write = self.read if plan.tied else plan.write

    def blocks(self): return [0] if self.p.fused else loop(self.b, self.read.blocks)
    def at(self, i, s, count=None):
        "Place of feature `i` (or of one of `count` units) of sample group `s`"
        return i if self.p.fused else (s*(count or self.p.padded) + i)*n_lanes
    def weight(self, tiles, q, f, k):
        "Row `f` and column `k` of block `q`, in all lanes"
        base = 0 if tiles is self.read else self.read.size
        return self.theta.one(q*tiles.stride + base + tiles.within(f, k))


# %% [markdown]
# ### Samples
#
# A feature is active if its random number lies below a threshold. The 31 random bits are
# compared as they are: $2^{31}p$ and $2^{-31}/p$ are tabulated, which saves a multiplication
# for each element. Padding features have a threshold of -1 and are never active. Sets have
# their gates as in [the features](../10_features.ipynb).

# %%
#| export
def _number(i): return i.lanes() if isinstance(i, Integer) else i

@patch
def draw(self:Step, i):
    "Feature `i` of sixteen samples"
    p = self.p
    u = hash_vector(self.element + _number(i), *self.ks[:2])
    if p.features=='independent': on,size = u <= self.th.one(i), u*self.scale.one(i)
    else: on,size = self.present(i), u*2.**-31
    return select(on, size*2. - 1. if p.signed else size, 0.)

@patch
def present(self:Step, i):
    "Whether feature `i` is active, in sets that know of each other"
    p,members,th = self.p,self.p.n//self.p.sets,self.th.one(i)
    gate = hash_vector(self.row*p.sets + _number(i//members), *self.ks[2:])
    if p.features=='correlated': return gate <= th
    place = gate/th
    place = select(place < 1-2**-24, place, 1-2**-24)*float(members)
    return logical_and(gate <= th, to_integers(place).same(_number(i - i//members*members)))

@patch
def begin(self:Step, group):
    "Turn to the next sixteen samples"
    self.row = (group*n_lanes).lanes() + iota(self.b)
    self.element,self.live = self.row*self.p.n,self.row < self.rows

@patch
def fresh(self:Step, i, s):
    "Draw and keep"
    x = self.draw(i)
    self.x.put(self.at(i, s), x)
    return x

@patch
def shortened(self:Step, s):
    "Draw samples of length 1"
    square = Accumulator(self.b)
    p = self.p
    for again in False,True:
        length = sqrt(square.get())
        for q in self.blocks():
            for i in (q*p.rows + f for f in range(p.rows)):
                if again: self.x.put(self.at(i, s), self.x.get(self.at(i, s))/
                                     select(length < 1e-12, 1e-12, length))
                else: x = self.fresh(i, s); square.fma(x, x)


# %% [markdown]
# ### Forward
#
# All hidden units of sixteen samples are in registers while features pass by; more than
# twenty-six would not fit and take turns. Four or five outputs are summed at a time, so that
# one multiplication need not wait for another.

# %%
#| export
def _spans(m, size=26):
    count = -(-m//size)
    return [range(j*m//count, (j+1)*m//count) for j in range(count)]

@patch
def gather(self:Step, tiles, input, span, s):
    "Sums over features of weight times input, for the hidden units of `span`"
    sums = {k: Accumulator(self.b) for k in span}
    for q in self.blocks():
        for f in range(self.p.rows): self.one(tiles, q, f, input(q*self.p.rows + f, s), sums)
    return {k: c.get() for k,c in sums.items()}

@patch
def one(self:Step, tiles, q, f, x, sums):
    for k,c in sums.items(): c.fma(self.weight(tiles, q, f, k), x)

@patch
def encode(self:Step, s, group):
    p = self.p
    self.begin(group)
    if p.unit: self.shortened(s)
    for span in _spans(p.m):
        new = span[0]==0 and not p.unit
        input = self.fresh if new else lambda i, s: self.x.get(self.at(i, s))
        for k,h in self.gather(self.write, input, span, s).items():
            if p.hidden_bias: h = h + self.theta.one(p.c_at + k)
            self.h.put(self.at(k, s, p.m), relu(h) if p.hidden=='relu' else h)

@patch
def decode(self:Step, s):
    "Outputs and their errors; what these ask of few hidden units is summed on the way"
    p = self.p
    sums = {k: Accumulator(self.b) for k in range(p.m)} if p.m<=12 else {}
    for q in self.blocks():
        z = [self.weight(self.read, q, f, p.m) for f in range(p.rows)]
        for k in range(p.m):
            h = self.h.get(self.at(k, s, p.m))
            z = [fma(self.weight(self.read, q, f, k), h, z[f]) for f in range(p.rows)]
        for f in range(p.rows): self.error(q*p.rows + f, z[f], s)
        for f in range(p.rows) if sums else []: self.one(
            self.read, q, f, self.g.get(self.at(q*p.rows + f, s)), sums)
    return {k: c.get() for k,c in sums.items()}


# %% [markdown]
# ### Backward
#
# Loss and gradient share $t_i e_i$. Lanes beyond the batch's last row count for nothing.

# %%
#| export
@patch
def error(self:Step, i, z, s):
    "Error of output `i` as the gradient of its pre-activation"
    p = self.p
    x = self.x.get(self.at(i, s))
    e = (relu(z) if p.activation=='relu' else z) - (absolute(x) if p.target=='abs' else x)
    g = e*self.coef.one(i)
    if p.ragged: g = select(self.live, g, 0.)
    self.loss.fma(g, e)
    self.g.put(self.at(i, s), select(z > 0., g, 0.) if p.activation=='relu' else g)

@patch
def back(self:Step, s):
    "What the errors of the outputs ask of the hidden units"
    asked = self.decode(s)
    for span in [] if asked else _spans(self.p.m):
        asked |= self.gather(self.read, lambda i, s: self.g.get(self.at(i, s)), span, s)
    for k,d in asked.items(): self.d.put(self.at(k, s, self.p.m), self.inward(k, d, s))

@patch
def inward(self:Step, k, d, s):
    "Through a hidden unit, with its penalty"
    p,h,l1 = self.p,self.h.get(self.at(k, s, self.p.m)),self.l1
    if p.l1:
        size = absolute(h)*l1
        push = select(h < 0., l1*-1., select(h > 0., l1, 0.))
        if p.ragged: size,push = (select(self.live, v, 0.) for v in (size,push))
        d = d + push; self.loss.add(size*2.)
    if p.hidden=='relu': d = select(h > 0., d, 0.)
    if p.hidden_bias: self.dc.add(k*n_lanes, d)
    return d


# %% [markdown]
# The gradient of a tile sums $g_i h_k$ and $x_i d_k$ over sample groups. A tied matrix
# gets both; otherwise the readout gets the first and the encoder the second.

# %%
#| export
@patch
def outer(self:Step, tiles, span, cells, q, s):
    "Add one sample group to the gradient of a tile"
    p = self.p
    width = span[1]-span[0]
    i = [self.at(q*p.rows + f, s) for f in range(p.rows)]
    g,x = ([v.get(j) for j in i] for v in (self.g,self.x))
    for k,c in zip(range(*span), (cells[c::width] for c in range(width))):
        if k==p.m: _each(c, g if p.bias else [], None)
        else:
            if tiles is self.read: _each(c, g, self.h.get(self.at(k, s, p.m)))
            if tiles is self.write: _each(c, x, self.d.get(self.at(k, s, p.m)))

def _each(cells, xs, y):
    for c,x in zip(cells, xs): c.add(x) if y is None else c.fma(x, y)

@patch
def tiles(self:Step):
    "Each tile's matrix, columns and place within a block"
    for t,base in [(self.read,0)] + ([] if self.p.tied else [(self.write,self.read.size)]):
        for span,start in zip(t.spans, t.starts): yield t,span,base+start

@patch
def cells(self:Step, span): return [Accumulator(self.b) for _ in range(self.p.rows*(span[1]-span[0]))]

@patch
def keep(self:Step, cells, at):
    "Add up the lanes into the gradient"
    for j in range(0, len(cells), n_lanes):
        self.grad.add(at + j, horizontal_sums([c.get() for c in cells[j:j+n_lanes]]))


# %% [markdown]
# ### The order of things
#
# Fused: for each group all three. Tiled: several groups forward and backward, then each tile
# once over all of them.

# %%
#| export
@patch
def registers(self:Step, groups):
    "A fused model"
    tiles = [(t,span,at,self.cells(span)) for t,span,at in self.tiles()]
    for group in loop(self.b, groups):
        self.encode(0, group); self.back(0)
        for t,span,_,cells in tiles: self.outer(t, span, cells, 0, 0)
    for _,_,at,cells in tiles: self.keep(cells, at)

@patch
def caches(self:Step, groups):
    "A tiled model"
    S = self.p.groups
    for chunk in loop(self.b, (groups + (S-1))//S):
        now = (groups - chunk*S).least(S)
        for s in loop(self.b, now):
            self.encode(s, chunk*S + s); self.back(s)
        for t,span,at in self.tiles():
            for q in self.blocks():
                cells = self.cells(span)
                for s in loop(self.b, now): self.outer(t, span, cells, q, s)
                self.keep(cells, q*t.stride + at)

@patch
def __call__(self:Step, groups):
    "The loss in lane 0, and the gradient in its place"
    b = self.b
    p = self.p
    for j in loop(b, p.size//n_lanes): self.grad.put(j*n_lanes, broadcast_constant(b, 0.))
    units = range(p.m) if p.hidden_bias else []
    for k in units: self.dc.put(k*n_lanes, broadcast_constant(b, 0.))
    (self.registers if p.fused else self.caches)(groups)
    for k in units[::n_lanes]:
        self.grad.put(p.c_at + k, horizontal_sums([self.dc.get(j*n_lanes) for j in units[k:k+n_lanes]]))
    return horizontal_sums([self.loss.get()])*(p.n/2)


# %% [markdown]
# ## As a function of numba
#
# A plan is passed like any argument, but all of it lies in its type: numba compiles once for each
# plan, keeps the result on disk, and at run time nothing is passed at all.

# %%
#| export
class PlanType(types.Type):
    "A plan as a type"
    def __init__(self, plan):
        self.plan = plan
        super().__init__(f'{plan}')

@typeof_impl.register(Plan)
def _typeof(plan, c): return PlanType(plan)

register_model(PlanType)(models.OpaqueModel)

@unbox(PlanType)
def _unbox(typ, obj, c): return NativeValue(c.context.get_dummy_value())

@intrinsic
def gradient(typing, plan, theta, grad, table, work, ks, rows, l1):
    "A step as numba sees it: arrays, four keys, rows of the batch, penalty; the loss"
    def code(context, b, sig, args):
        theta,grad,table,work = (array_memory(context, b, t, v)
                                 for t,v in zip(sig.args[1:5], args[1:5]))
        k = [broadcast_scalar(b, b.trunc(b.extract_value(args[5], j), ir.IntType(32))) for j in range(4)]
        rows = Integer(b, args[6])
        step = Step(b, plan.plan, theta, grad, table, _aligned(work), k, rows.lanes(),
                    broadcast_scalar(b, args[7]))
        loss = step((rows + n_lanes-1)//n_lanes)
        return b.extract_element(loss.v, ir.Constant(ir.IntType(32), 0))
    four = types.UniTuple(types.uint64, 4)
    return types.float32(plan, theta, grad, table, work, four, types.int64, types.float32),code

def _aligned(mem):
    "The same memory from its next cache line on"
    b = mem.b
    word = ir.IntType(64)
    at = b.and_(b.add(b.ptrtoint(mem.base, word), word(63)), word(-64))
    return FloatArray(b, b.inttoptr(at, mem.base.type))


# %% [markdown]
# ## Proof
#
# One step of a hard case, next to automatic differentiation of the same batch in double
# precision: sets, two matrices, both biases, a penalty, and a batch that leaves lanes empty.

# %%
c = ToyConfig(6, 3, features='correlated', sets=3, density=.6, hidden='relu', tied=False,
              hidden_bias=True, l1=.2, signed=True, target='abs', importance=[1,2,3,1,2,3])
plan = Plan(6, 3, hidden='relu', features='correlated', sets=3, tied=False, hidden_bias=True,
            l1=True, signed=True, target='abs', ragged=True)
rows = 77
rng = np.random.default_rng(0)
params = dict(W=rng.normal(size=(6,3)), V=rng.normal(size=(6,3)), b=rng.normal(size=6),
              c=rng.normal(size=3))
places = dict(V=plan.read.places()[:,:-1], b=plan.read.places()[:,-1],
              W=plan.read.size+plan.write.places(), c=plan.c_at+np.arange(3))


# %% [markdown]
# Memory as the kernel wants it, and one call:

# %%
@njit
def once(plan, theta, grad, table, work, ks, l1):
    return gradient(plan, theta, grad, table, work, ks, 77, l1)

theta,grad,work = (np.zeros(k, np.float32) for k in (plan.size, plan.size, plan.work+n_lanes))
for k,v in params.items(): theta[places[k]] = v
table = np.stack([np.full(6, .6)*2**31, 2**-31/np.full(6, .6),
                  np.array(c.importance)*2/(rows*6)]).astype(np.float32)
four = torch.stack([keys(0, [0], [0], stream)[0,0] for stream in (0,2)]).numpy().view(np.uint32)
loss = once(plan, theta, grad, table.ravel(), work, tuple(np.uint64(k) for k in four.ravel()),
            np.float32(.2/(rows*6)))

# %%
x = Sampler(c.densities, [0], rows, distribution=c.features, sets=3, signed=True)(0).double()
exact = {k: torch.tensor(v)[None].float().double().requires_grad_() for k,v in params.items()}
wanted = objective(c, exact, x, c.importances, c.per_instance('l1'))
slopes = torch.autograd.grad(wanted.sum()/6, list(exact.values()))
apart = {k: np.abs(grad[places[k]] - g[0].numpy()).max() for k,g in zip(exact, slopes)}
assert max(apart.values()) < 1e-6; test_close(loss, wanted[0].item(), eps=1e-5)
loss, wanted[0].item(), apart
