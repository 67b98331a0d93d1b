# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Step code generator
#
# > The generator emits SIMD code for one training step of a toy model.

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
from moral_sc.superposition.engines.simd import (Accumulator, FloatArray, Integer, absolute,
    array_memory, broadcast_constant, broadcast_scalar, fma, hash_vector, horizontal_sums, iota,
    logical_and, loop, n_lanes, relu, select, sqrt, to_integers)

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
# A training step draws a batch, encodes and decodes it, and computes the gradient. Written with
# arrays, each of these operations reads and writes the whole batch, although a model of twenty
# features has only a hundred weights. This module generates the step so that only the weights leave
# the processor core. It uses [SIMD vectors](10_simd.ipynb): sixteen samples pass through the model
# at once, and each weight is broadcast to all lanes.
#
# The gradient has a closed form. With errors $e = y - x$, pre-activations $z$ and weights $t_i = 2
# I_i/(nB)$,
#
# $$g_i = t_i\, e_i\, [z_i>0], \qquad d = \sum_i W_i g_i, \qquad
# \partial W_i = g_i h + x_i d, \qquad \partial b_i = g_i.$$
#
# ## Compile-time plan
#
# Everything that is known in advance is a constant for the compiler. A `Plan` holds these
# constants, and each plan gets its own kernel.

# %%
#| export
@dataclass(frozen=True)
class Plan:
    "Constants of a compiled kernel"
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
    edition:int = 0              # Checksum of the code, which invalidates cached kernels


# %% [markdown]
# ## Weight layout
#
# Each entry of the gradient needs an accumulator of sixteen lanes. Thirty-two registers hold those
# of a small rectangle of the matrix: five features by five columns read ten vectors for twenty-five
# multiplications. Matrices are therefore cut into such tiles. The entries of a tile are contiguous
# in memory, because `horizontal_sums` turns sixteen accumulators into sixteen neighbours. The bias
# is an additional column, for a hidden unit that is always 1.

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

    def offset(self, f, k):
        "Return the offset of row `f`, column `k` in its block of rows"
        start,(a,b) = next(s for s in zip(self.starts, self.spans) if s[1][0]<=k<s[1][1])
        return start + f*(b-a) + k-a

    def indices(self):
        "Return the indices of all entries, [feature, column]"
        return np.array([[i//self.rows*self.stride + self.offset(i%self.rows, k)
                          for k in range(self.columns)] for i in range(self.n)])


# %%
t = Tiles(400, 31, 4)
test_eq(len(np.unique(t.indices())), 400*31)
t.spans, t.size/(400*31)


# %% [markdown]
# The smallest models (up to sixteen parameters) are *fused*: they have one tile and use no memory
# at all. Larger models take a few groups of sixteen samples forward and backward, keep the
# activations and errors in the nearest cache, and then accumulate the gradient tile by tile.

# %%
#| export
@patch(as_prop=True)
def fused(self:Plan): return self.n*(self.m+1 if self.tied else 2*self.m+1)<=16
@patch(as_prop=True)
def tile_rows(self:Plan):
    "Features of a tile, chosen to need the least padding"
    return self.n if self.fused else min((4,5,3), key=lambda r: -(-self.n//r)*r)
@patch(as_prop=True)
def sample_groups(self:Plan):
    "Sample groups between two updates of the gradient tiles"
    return 1 if self.fused else max(2, min(16, 4096//self.n))
@patch(as_prop=True)
def readout_tiles(self:Plan): return Tiles(self.n, self.m+1, self.tile_rows)
@patch(as_prop=True)
def encoder_tiles(self:Plan):
    return self.readout_tiles if self.tied else Tiles(self.n, self.m, self.tile_rows)
@patch(as_prop=True)
def padded_features(self:Plan): return self.readout_tiles.blocks*self.tile_rows
@patch(as_prop=True)
def hidden_bias_offset(self:Plan):
    return self.readout_tiles.size + (0 if self.tied else self.encoder_tiles.size)
@patch(as_prop=True)
def size(self:Plan):
    "Length of the parameter array"
    return self.hidden_bias_offset + self.hidden_bias*-(-self.m//n_lanes)*n_lanes
@patch(as_prop=True)
def scratch_size(self:Plan):
    "Length of the array that holds the samples in progress"
    return n_lanes*(2*self.sample_groups*(self.padded_features+self.m) + self.m + 1)


# %%
[(p.n, p.m, p.fused, p.tile_rows, p.sample_groups, p.scratch_size*4/1024)
 for p in (Plan(2,1), Plan(5,2), Plan(20,5), Plan(200,20), Plan(400,30))]


# %% [markdown]
# ## Step emitter
#
# `StepEmitter` holds the memory layout and emits the code. In a fused model, inputs and hidden units are
# numbered registers; otherwise they are memory locations. The functions below work with both.

# %%
#| export
class RegisterFile(dict):
    "Numbered registers, for a kernel that needs no memory"
    load = dict.__getitem__
    store = dict.__setitem__

class StepEmitter:
    "Emits the code of one training step"
    def __init__(self, b, plan, theta, grad, table, work, ks, rows, l1):
        self.b = b
        self.p = plan
        self.theta = theta
        self.grad = grad
        self.ks = ks
        self.l1 = l1
        self.rows = rows
        S = plan.sample_groups
        n = plan.padded_features
        m = plan.m
        self.threshold,self.scale,self.coef = (table + j*n for j in range(3))
        sizes = [n*S, n*S, m*S, m*S]
        memory = [work + n_lanes*sum(sizes[:j]) for j in range(5)]
        buffers = [RegisterFile() for _ in range(4)] if plan.fused else memory[:4]
        self.x,self.g,self.h,self.d = buffers
        self.dc = memory[4]
        self.loss = Accumulator(b)
        self.readout_tiles = plan.readout_tiles
        self.encoder_tiles = self.readout_tiles if plan.tied else plan.encoder_tiles

    def feature_blocks(self):
        return [0] if self.p.fused else loop(self.b, self.readout_tiles.blocks)
    def sample_offset(self, i, s, count=None):
        "Return the offset of feature `i` (or of one of `count` units) of sample group `s`"
        return i if self.p.fused else (s*(count or self.p.padded_features) + i)*n_lanes
    def load_weight(self, tiles, q, f, k):
        "Load row `f` and column `k` of block `q` into all lanes"
        base = 0 if tiles is self.readout_tiles else self.readout_tiles.size
        return self.theta.load_scalar(q*tiles.stride + base + tiles.offset(f, k))


# %% [markdown]
# ### Samples
#
# A feature is active if its random number is below a threshold. The 31 random bits are compared
# directly: $2^{31}p$ and $2^{-31}/p$ are tabulated, which saves one multiplication per element.
# Padding features have a threshold of -1 and are never active. Sets have gates as in [the
# features](../10_features.ipynb).

# %%
#| export
def _as_vector(i): return i.to_vector() if isinstance(i, Integer) else i

@patch
def draw_feature(self:StepEmitter, i):
    "Emit feature `i` of sixteen samples"
    p = self.p
    u = hash_vector(self.element + _as_vector(i), *self.ks[:2])
    if p.features=='independent':
        active = u <= self.threshold.load_scalar(i)
        value = u*self.scale.load_scalar(i)
    else:
        active = self.draw_activity(i)
        value = u*2.**-31
    return select(active, value*2. - 1. if p.signed else value, 0.)

@patch
def draw_activity(self:StepEmitter, i):
    "Emit whether feature `i` is active, for correlated and anticorrelated sets"
    p = self.p
    members = p.n//p.sets
    threshold = self.threshold.load_scalar(i)
    gate = hash_vector(self.row*p.sets + _as_vector(i//members), *self.ks[2:])
    if p.features=='correlated': return gate <= threshold
    position = gate/threshold
    position = select(position < 1-2**-24, position, 1-2**-24)*float(members)
    member = to_integers(position).equals(_as_vector(i - i//members*members))
    return logical_and(gate <= threshold, member)

@patch
def begin_group(self:StepEmitter, group):
    "Set the indices of the next sixteen samples"
    self.row = (group*n_lanes).to_vector() + iota(self.b)
    self.element = self.row*self.p.n
    self.in_batch = self.row < self.rows

@patch
def sample_feature(self:StepEmitter, i, s):
    "Draw and store feature `i` of sample group `s`"
    x = self.draw_feature(i)
    self.x.store(self.sample_offset(i, s), x)
    return x

@patch
def sample_unit_length(self:StepEmitter, s):
    "Draw and store samples, rescaled to length 1"
    square = Accumulator(self.b)
    p = self.p
    for rescale in False,True:
        length = sqrt(square.get())
        for q in self.feature_blocks():
            for i in (q*p.tile_rows + f for f in range(p.tile_rows)):
                if not rescale:
                    x = self.sample_feature(i, s)
                    square.fma(x, x)
                    continue
                offset = self.sample_offset(i, s)
                self.x.store(offset, self.x.load(offset)/select(length < 1e-12, 1e-12, length))


# %% [markdown]
# ### Forward pass
#
# All hidden units of sixteen samples stay in registers while the code iterates over the features;
# more than twenty-six do not fit and are processed in several spans. Four or five outputs are
# summed at a time, so that multiplications do not wait for each other.

# %%
#| export
def _spans(m, size=26):
    count = -(-m//size)
    return [range(j*m//count, (j+1)*m//count) for j in range(count)]

@patch
def weighted_sums(self:StepEmitter, tiles, input, span, s):
    "Sum weight times input over features, for the hidden units of `span`"
    sums = {k: Accumulator(self.b) for k in span}
    rows = self.p.tile_rows
    for q in self.feature_blocks():
        for f in range(rows): self.add_row(tiles, q, f, input(q*rows + f, s), sums)
    return {k: c.get() for k,c in sums.items()}

@patch
def add_row(self:StepEmitter, tiles, q, f, x, sums):
    "Add one feature's weight times `x` to the sums of the hidden units"
    for k,c in sums.items(): c.fma(self.load_weight(tiles, q, f, k), x)

@patch
def emit_encoder(self:StepEmitter, s, group):
    "Draw sample group `s` and emit its hidden layer"
    p = self.p
    self.begin_group(group)
    if p.unit: self.sample_unit_length(s)
    for span in _spans(p.m):
        undrawn = span[0]==0 and not p.unit
        input = self.sample_feature if undrawn else self.load_feature
        for k,h in self.weighted_sums(self.encoder_tiles, input, span, s).items():
            if p.hidden_bias: h = h + self.theta.load_scalar(p.hidden_bias_offset + k)
            self.h.store(self.sample_offset(k, s, p.m), relu(h) if p.hidden=='relu' else h)

@patch
def load_feature(self:StepEmitter, i, s): return self.x.load(self.sample_offset(i, s))

@patch
def emit_decoder(self:StepEmitter, s):
    "Emit outputs and errors; return the gradients of the hidden units if there are at most 12"
    p = self.p
    sums = {k: Accumulator(self.b) for k in range(p.m)} if p.m<=12 else {}
    for q in self.feature_blocks():
        z = [self.load_weight(self.readout_tiles, q, f, p.m) for f in range(p.tile_rows)]
        for k in range(p.m):
            h = self.h.load(self.sample_offset(k, s, p.m))
            z = [fma(self.load_weight(self.readout_tiles, q, f, k), h, z[f])
                 for f in range(p.tile_rows)]
        for f in range(p.tile_rows): self.emit_error(q*p.tile_rows + f, z[f], s)
        for f in range(p.tile_rows) if sums else []: self.add_row(
            self.readout_tiles, q, f, self.g.load(self.sample_offset(q*p.tile_rows + f, s)), sums)
    return {k: c.get() for k,c in sums.items()}


# %% [markdown]
# ### Backward pass
#
# Loss and gradient share the product $t_i e_i$. Lanes beyond the last row of the batch contribute
# zero.

# %%
#| export
@patch
def emit_error(self:StepEmitter, i, z, s):
    "Store the gradient of pre-activation `i` and add to the loss"
    p = self.p
    x = self.x.load(self.sample_offset(i, s))
    e = (relu(z) if p.activation=='relu' else z) - (absolute(x) if p.target=='abs' else x)
    g = e*self.coef.load_scalar(i)
    if p.ragged: g = select(self.in_batch, g, 0.)
    self.loss.fma(g, e)
    self.g.store(self.sample_offset(i, s), select(z > 0., g, 0.) if p.activation=='relu' else g)

@patch
def emit_backward(self:StepEmitter, s):
    "Emit the decoder and store the gradients of the hidden units"
    gradients = self.emit_decoder(s)
    load = lambda i, s: self.g.load(self.sample_offset(i, s))
    for span in [] if gradients else _spans(self.p.m):
        gradients |= self.weighted_sums(self.readout_tiles, load, span, s)
    for k,d in gradients.items():
        self.d.store(self.sample_offset(k, s, self.p.m), self.hidden_gradient(k, d, s))

@patch
def hidden_gradient(self:StepEmitter, k, d, s):
    "Backpropagate through a hidden unit, including its L1 penalty"
    p = self.p
    l1 = self.l1
    h = self.h.load(self.sample_offset(k, s, p.m))
    if p.l1:
        penalty = absolute(h)*l1
        slope = select(h < 0., l1*-1., select(h > 0., l1, 0.))
        if p.ragged: penalty,slope = (select(self.in_batch, v, 0.) for v in (penalty,slope))
        d = d + slope
        self.loss.add(penalty*2.)
    if p.hidden=='relu': d = select(h > 0., d, 0.)
    if p.hidden_bias: self.dc.add(k*n_lanes, d)
    return d


# %% [markdown]
# The gradient of a tile sums $g_i h_k$ and $x_i d_k$ over the sample groups. A tied matrix receives
# both terms; in an untied model the readout receives the first and the encoder the second.

# %%
#| export
@patch
def add_tile_gradient(self:StepEmitter, tiles, span, cells, q, s):
    "Add one sample group to the gradient of a tile"
    p = self.p
    width = span[1]-span[0]
    offsets = [self.sample_offset(q*p.tile_rows + f, s) for f in range(p.tile_rows)]
    g,x = ([v.load(j) for j in offsets] for v in (self.g,self.x))
    for k,c in zip(range(*span), (cells[c::width] for c in range(width))):
        if k==p.m:
            _add_products(c, g if p.bias else [], None)
            continue
        offset = self.sample_offset(k, s, p.m)
        if tiles is self.readout_tiles: _add_products(c, g, self.h.load(offset))
        if tiles is self.encoder_tiles: _add_products(c, x, self.d.load(offset))

def _add_products(cells, xs, y):
    "Add each x (times y, if there is one) to its accumulator"
    for c,x in zip(cells, xs):
        if y is None: c.add(x)
        else: c.fma(x, y)

@patch
def all_tiles(self:StepEmitter):
    "Yield matrix, columns and offset within a block of each tile"
    matrices = [(self.readout_tiles,0)]
    if not self.p.tied: matrices.append((self.encoder_tiles,self.readout_tiles.size))
    for t,base in matrices:
        for span,start in zip(t.spans, t.starts): yield t,span,base+start

@patch
def new_accumulators(self:StepEmitter, span):
    return [Accumulator(self.b) for _ in range(self.p.tile_rows*(span[1]-span[0]))]

@patch
def store_gradient(self:StepEmitter, cells, offset):
    "Add the lane sums of accumulators to the gradient"
    for j in range(0, len(cells), n_lanes):
        self.grad.add(offset + j, horizontal_sums([c.get() for c in cells[j:j+n_lanes]]))


# %% [markdown]
# ### Loop order
#
# A fused model performs all three phases for each sample group. A tiled model takes several groups
# forward and backward, and then goes over each tile once for all of them.

# %%
#| export
@patch
def emit_fused(self:StepEmitter, groups):
    "Emit the step of a fused model"
    tiles = [(t,span,offset,self.new_accumulators(span)) for t,span,offset in self.all_tiles()]
    for group in loop(self.b, groups):
        self.emit_encoder(0, group)
        self.emit_backward(0)
        for t,span,_,cells in tiles: self.add_tile_gradient(t, span, cells, 0, 0)
    for _,_,offset,cells in tiles: self.store_gradient(cells, offset)

@patch
def emit_tiled(self:StepEmitter, groups):
    "Emit the step of a tiled model"
    S = self.p.sample_groups
    for chunk in loop(self.b, (groups + (S-1))//S):
        count = (groups - chunk*S).minimum(S)
        for s in loop(self.b, count):
            self.emit_encoder(s, chunk*S + s)
            self.emit_backward(s)
        for t,span,offset in self.all_tiles():
            for q in self.feature_blocks():
                cells = self.new_accumulators(span)
                for s in loop(self.b, count): self.add_tile_gradient(t, span, cells, q, s)
                self.store_gradient(cells, q*t.stride + offset)

@patch
def __call__(self:StepEmitter, groups):
    "Emit the step; return the loss in lane 0 and write the gradient to `grad`"
    b = self.b
    p = self.p
    for j in loop(b, p.size//n_lanes): self.grad.store(j*n_lanes, broadcast_constant(b, 0.))
    units = range(p.m) if p.hidden_bias else []
    for k in units: self.dc.store(k*n_lanes, broadcast_constant(b, 0.))
    (self.emit_fused if p.fused else self.emit_tiled)(groups)
    for k in units[::n_lanes]:
        sums = horizontal_sums([self.dc.load(j*n_lanes) for j in units[k:k+n_lanes]])
        self.grad.store(p.hidden_bias_offset + k, sums)
    return horizontal_sums([self.loss.get()])*(p.n/2)


# %% [markdown]
# ## Numba intrinsic
#
# A plan is passed like any argument, but all of it is in its type. Numba compiles once for each
# plan and caches the result on disk; at run time no argument is passed.

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
    "Run one step on arrays, four keys, the batch size and the L1 weight; return the loss"
    def code(context, b, sig, args):
        theta,grad,table,work = (array_memory(context, b, t, v)
                                 for t,v in zip(sig.args[1:5], args[1:5]))
        k = [broadcast_scalar(b, b.trunc(b.extract_value(args[5], j), ir.IntType(32)))
             for j in range(4)]
        rows = Integer(b, args[6])
        emit = StepEmitter(b, plan.plan, theta, grad, table, _aligned(work), k,
                           rows.to_vector(), broadcast_scalar(b, args[7]))
        loss = emit((rows + n_lanes-1)//n_lanes)
        return b.extract_element(loss.v, ir.Constant(ir.IntType(32), 0))
    four = types.UniTuple(types.uint64, 4)
    return types.float32(plan, theta, grad, table, work, four, types.int64, types.float32),code

def _aligned(mem):
    "Return the same memory, starting at the next cache line"
    b = mem.b
    word = ir.IntType(64)
    address = b.and_(b.add(b.ptrtoint(mem.base, word), word(63)), word(-64))
    return FloatArray(b, b.inttoptr(address, mem.base.type))


# %% [markdown]
# ## Comparison with autograd
#
# One step of a demanding case is compared with automatic differentiation of the same batch in
# double precision: sets, two matrices, both biases, an L1 penalty, and a batch that leaves some
# lanes empty.

# %%
c = ToyConfig(6, 3, features='correlated', sets=3, density=.6, hidden='relu', tied=False,
              hidden_bias=True, l1=.2, signed=True, target='abs', importance=[1,2,3,1,2,3])
plan = Plan(6, 3, hidden='relu', features='correlated', sets=3, tied=False, hidden_bias=True,
            l1=True, signed=True, target='abs', ragged=True)
rows = 77
rng = np.random.default_rng(0)
params = dict(W=rng.normal(size=(6,3)), V=rng.normal(size=(6,3)), b=rng.normal(size=6),
              c=rng.normal(size=3))
tiles = plan.readout_tiles
indices = dict(V=tiles.indices()[:,:-1], b=tiles.indices()[:,-1],
               W=tiles.size+plan.encoder_tiles.indices(), c=plan.hidden_bias_offset+np.arange(3))


# %% [markdown]
# The memory in the layout of the kernel, and one call:

# %%
@njit
def run_step(plan, theta, grad, table, work, ks, l1):
    return gradient(plan, theta, grad, table, work, ks, 77, l1)

theta,grad,work = (np.zeros(k, np.float32)
                   for k in (plan.size, plan.size, plan.scratch_size+n_lanes))
for k,v in params.items(): theta[indices[k]] = v
table = np.stack([np.full(6, .6)*2**31, 2**-31/np.full(6, .6),
                  np.array(c.importance)*2/(rows*6)]).astype(np.float32)
key_pair = torch.stack([keys(0, [0], [0], stream)[0,0] for stream in (0,2)]).numpy().view(np.uint32)
four_keys = tuple(np.uint64(k) for k in key_pair.ravel())
loss = run_step(plan, theta, grad, table.ravel(), work, four_keys, np.float32(.2/(rows*6)))

# %%
x = Sampler(c.densities, [0], rows, distribution=c.features, sets=3, signed=True)(0).double()
exact = {k: torch.tensor(v)[None].float().double().requires_grad_() for k,v in params.items()}
expected = objective(c, exact, x, c.importances, c.per_instance('l1'))
gradients = torch.autograd.grad(expected.sum()/6, list(exact.values()))
differences = {k: np.abs(grad[indices[k]] - g[0].numpy()).max() for k,g in zip(exact, gradients)}
assert max(differences.values()) < 1e-6; test_close(loss, expected[0].item(), eps=1e-5)
loss, expected[0].item(), differences
