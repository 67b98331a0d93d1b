# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lanes
#
# > Sixteen samples in one register, and Python loops that write the instructions.

# %%
#| default_exp superposition.engines.simd

# %%
#| export
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

# %%
#| hide
import numpy as np, torch
from fastcore.test import *
from moral_sc.superposition.features import hash32, keys

# %% [markdown]
# A processor core multiplies and adds sixteen numbers in one instruction, if somebody tells it
# to. Numba's compiler finds such instructions in plain loops, but not across the loops of a toy
# model, and it never keeps an array in registers. So we say it ourselves: a kernel is an ordinary
# Python function that runs once, when it is compiled, and writes down each instruction that its
# operators stand for. A `for` over `range` is thereby unrolled; a `for` over `loop` becomes a
# loop of the program. This is all it takes to have what C programmers get from intrinsics.
#
# The compiler fits the sixteen lanes to the machine: one register of AVX-512, two of AVX2,
# four of NEON.

# %%
#| export
n_lanes = 16
_f32 = ir.FloatType()
_i32 = ir.IntType(32)
_i64 = ir.IntType(64)
_floats = ir.VectorType(_f32, n_lanes)
_ints = ir.VectorType(_i32, n_lanes)

def _splat(kind, value): return ir.Constant(kind, [value]*n_lanes)

class Vector:
    "Sixteen numbers in a register of the kernel that is being written"
    def __init__(self, b, v): self.b,self.v = b,v
    def _both(self, o, real, whole):
        kind = self.v.type
        o = o.v if isinstance(o, Vector) else _splat(kind, o)
        return Vector(self.b, getattr(self.b, real if kind==_floats else whole)(self.v, o))
    def __add__(self, o): return self._both(o, 'fadd', 'add')
    def __sub__(self, o): return self._both(o, 'fsub', 'sub')
    def __mul__(self, o): return self._both(o, 'fmul', 'mul')
    def __truediv__(self, o): return self._both(o, 'fdiv', 'udiv')
    def __xor__(self, o): return self._both(o, '', 'xor')
    def __and__(self, o): return self._both(o, '', 'and_')
    def __rshift__(self, o): return self._both(o, '', 'lshr')
    def _than(self, sign, o):
        o = o.v if isinstance(o, Vector) else _splat(self.v.type, o)
        test = self.b.fcmp_ordered if self.v.type==_floats else self.b.icmp_unsigned
        return Vector(self.b, test(sign, self.v, o))
    def __lt__(self, o): return self._than('<', o)
    def __le__(self, o): return self._than('<=', o)
    def __gt__(self, o): return self._than('>', o)
    def same(self, o): return self._than('==', o)


# %% [markdown]
# Comparisons give masks; `select` chooses by them. `fma` multiplies and adds in one
# instruction where the machine has it. Functions that are more than an operator:

# %%
#| export
def _call(name, *xs):
    "One of LLVM's vector functions"
    b = xs[0].b
    kinds = [x.v.type for x in xs]
    f = cgutils.get_or_insert_function(
        b.module, ir.FunctionType(_floats, kinds), f'llvm.{name}.v{n_lanes}f32')
    return Vector(b, b.call(f, [x.v for x in xs]))

def fma(x, y, z): return _call('fmuladd', x, y, z)
def sqrt(x): return _call('sqrt', x)
def absolute(x): return _call('fabs', x)
def to_floats(x): return Vector(x.b, x.b.sitofp(x.v, _floats))
def to_integers(x): return Vector(x.b, x.b.fptosi(x.v, _ints))
def logical_and(x, y): return Vector(x.b, x.b.and_(x.v, y.v))

def select(mask, x, y):
    "`x` where `mask`, else `y`; numbers are spread"
    kind = next(o.v.type for o in (x,y) if isinstance(o, Vector))
    x,y = (o.v if isinstance(o, Vector) else _splat(kind, o) for o in (x,y))
    return Vector(mask.b, mask.b.select(mask.v, x, y))

def relu(x):
    "Not negative; what is not a number stays so, or a diverging run would go unnoticed"
    return select(x<0., 0., x)


# %% [markdown]
# A kernel also counts, and reads and writes memory. `Integer` is a whole number of the program that
# can be added and multiplied; `FloatArray` is memory, read sixteen at a time or one number spread
# over all lanes.

# %%
#| export
def _word(b, i): return i.v if isinstance(i, Integer) else ir.Constant(_i64, int(i))

class Integer:
    "A whole number of the program"
    def __init__(self, b, v): self.b,self.v = b,v
    def _do(self, name, o): return Integer(self.b, getattr(self.b, name)(self.v, _word(self.b, o)))
    def __add__(self, o): return self._do('add', o)
    def __sub__(self, o): return self._do('sub', o)
    def __mul__(self, o): return self._do('mul', o)
    def __floordiv__(self, o): return self._do('udiv', o)
    __radd__ = __add__
    __rmul__ = __mul__
    def least(self, o):
        o = _word(self.b, o)
        return Integer(self.b, self.b.select(self.b.icmp_unsigned('<', self.v, o), self.v, o))
    def lanes(self): return broadcast_scalar(self.b, self.b.trunc(self.v, _i32))

def broadcast_constant(b, value):
    "A constant in all lanes"
    return Vector(b, _splat(_floats, value))

def broadcast_scalar(b, v):
    "One number of the program in all lanes"
    kind = ir.VectorType(v.type, n_lanes)
    one = b.insert_element(ir.Constant(kind, ir.Undefined), v, ir.Constant(_i32, 0))
    zeros = ir.Constant(_ints, [0]*n_lanes)
    return Vector(b, b.shuffle_vector(one, ir.Constant(kind, ir.Undefined), zeros))

class FloatArray:
    "Memory of a kernel"
    def __init__(self, b, base): self.b,self.base = b,base
    def _at(self, i): return self.b.gep(self.base, [_word(self.b, i)])
    def _vector(self, i): return self.b.bitcast(self._at(i), _floats.as_pointer())
    def __add__(self, i): return FloatArray(self.b, self._at(i))
    def one(self, i): return broadcast_scalar(self.b, self.b.load(self._at(i)))
    def get(self, i): return Vector(self.b, self.b.load(self._vector(i), align=4))
    def put(self, i, x): self.b.store(x.v, self._vector(i), align=4)
    def add(self, i, x): self.put(i, self.get(i) + x)


# %% [markdown]
# Loops, and a `Accumulator` for what changes within them: the compiler keeps a cell in a register.

# %%
#| export
class Accumulator:
    "A register that changes"
    def __init__(self, b, start=0.):
        self.b = b
        self.at = cgutils.alloca_once(b, _floats)
        self.set(broadcast_constant(b, start))
    def get(self): return Vector(self.b, self.b.load(self.at))
    def set(self, x): self.b.store(x.v, self.at)
    def add(self, x): self.set(self.get() + x)
    def fma(self, x, y): self.set(fma(x, y, self.get()))

def loop(b, count):
    "`for i in loop(b, count)` writes its body once, as a loop"
    with cgutils.for_range(b, _word(b, count)) as now: yield Integer(b, now.index)

def iota(b): return Vector(b, ir.Constant(_ints, list(range(n_lanes))))


# %% [markdown]
# Sums over lanes come in sixteens: sixteen vectors become one that holds their sums, in four
# rounds that each halve the number of vectors. It costs three instructions a sum, where
# sixteen sums one by one would take eight each.

# %%
#| export
def horizontal_sums(vectors:list)->Vector: # At most sixteen; lane j of the result is the sum of vector j
    "Sum sixteen vectors over their lanes"
    vs = vectors + [None]*(n_lanes-len(vectors))
    b = vectors[0].b
    for w in 8,4,2,1: vs = [_halve(b, vs[j], vs[j+w], w) for j in range(w)]
    return vs[0]

def _halve(b, x, y, w):
    if x is None: return None
    if y is None: y = x
    pick = lambda flip: Vector(b, b.shuffle_vector(x.v, y.v, ir.Constant(
        _ints, [(l^flip) + (n_lanes if l&w else 0) for l in range(n_lanes)])))
    return pick(0) + pick(w)


# %% [markdown]
# To see a trace at work, `compile_kernel` turns one into a function for numpy arrays. Its arguments
# are `FloatArray`.

# %%
#| export
def array_memory(context, b, kind, value):
    "The memory of a numpy array of float32"
    return FloatArray(b, context.make_array(kind)(context, b, value).data)

def compile_kernel(trace):
    "Compile `trace(b, *memory)`, for a try"
    @intrinsic
    def run(typing, arrays):
        def code(context, b, sig, args):
            each = cgutils.unpack_tuple(b, args[0])
            trace(b, *(array_memory(context, b, k, v) for k,v in zip(arrays.types, each)))
            return context.get_dummy_value()
        return types.void(arrays),code
    @njit
    def call(*arrays): run(arrays)
    return call


# %%
@compile_kernel
def sums(b, x, out): out.put(0, horizontal_sums([x.get(16*j) for j in range(16)]))

x = np.random.rand(16,16).astype(np.float32)
out = np.zeros(16, np.float32)
sums(x, out)
test_close(out, x.sum(1), eps=1e-5)
out[:4], x.sum(1)[:4]


# %% [markdown]
# A loop over memory with a cell for the sum: the squared norm of sixteen vectors at once.

# %%
@compile_kernel
def norms(b, x, out):
    total = Accumulator(b)
    for i in loop(b, 100): total.fma(x.get(i*16), x.get(i*16))
    out.put(0, total.get())

x = np.random.rand(100,16).astype(np.float32)
norms(x, out)
test_close(out, (x**2).sum(0), eps=1e-4)
out[:4]


# %% [markdown]
# ## Random numbers in lanes
#
# The hash of [the features](../10_features.ipynb), bit for bit: fourteen instructions give sixteen
# numbers.

# %%
#| export
def hash_vector(
    index:Vector, # Number of the element within its batch
    k0, k1,      # The two keys
)->Vector:        # 31 random bits, as floats
    "`features.hash32` of sixteen elements"
    x = index ^ k0
    x = x ^ (x >> 16)
    x = (x * 0x7feb352d) ^ k1
    x = x ^ (x >> 15)
    x = x * 0x846ca68b
    return to_floats((x ^ (x >> 16)) & 0x7fffffff)


# %%
ks = keys(seed=0, instances=[3], steps=[8])[0]
k0,k1 = ks[0].numpy().view(np.uint32)

@compile_kernel
def sixteen(b, out):
    spread_ = lambda k: broadcast_scalar(b, ir.Constant(ir.IntType(32), int(k)))
    out.put(0, hash_vector(iota(b), spread_(k0), spread_(k1)))

sixteen(out)
test_eq(torch.from_numpy(out), hash32(ks, 16)[0].float())
out[:4].astype(int)
