# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # SIMD vectors
#
# > Python expressions emit LLVM vector instructions on sixteen float32 lanes.

# %%
#| default_exp superposition.engines.simd

# %%
#| export
from llvmlite import ir
import warnings
from functools import cache
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

# %%
#| hide
import numpy as np, torch
from fastcore.test import *
from moral_sc.superposition.features import hash32, keys

# %% [markdown]
# A processor core can multiply and add sixteen numbers in one instruction. Numba's compiler finds such
# instructions in plain loops, but not across the loops of a toy model, and it does not keep arrays in
# registers. We therefore emit the instructions ourselves. A kernel is an ordinary Python function that
# is traced once, when it is compiled, and each of its operators emits one instruction. A `for` over
# `range` is unrolled; a `for` over `loop` becomes a loop of the compiled program. This gives us in
# Python what intrinsics give in C.
#
# The compiler maps the sixteen lanes to the machine: one register of AVX-512, two of AVX2, four of
# NEON.

# %%
#| export
n_lanes = 16
_f32 = ir.FloatType()
_i32 = ir.IntType(32)
_i64 = ir.IntType(64)
_floats = ir.VectorType(_f32, n_lanes)
_ints = ir.VectorType(_i32, n_lanes)

def _constant(kind, value): return ir.Constant(kind, [value]*n_lanes)

class Vector:
    "Sixteen numbers in a register of the kernel that is being traced"
    def __init__(self, b, v):
        self.b = b
        self.v = v
    def _binary(self, o, float_op, int_op):
        kind = self.v.type
        o = o.v if isinstance(o, Vector) else _constant(kind, o)
        return Vector(self.b, getattr(self.b, float_op if kind==_floats else int_op)(self.v, o))
    def __add__(self, o): return self._binary(o, 'fadd', 'add')
    def __sub__(self, o): return self._binary(o, 'fsub', 'sub')
    def __mul__(self, o): return self._binary(o, 'fmul', 'mul')
    def __truediv__(self, o): return self._binary(o, 'fdiv', 'udiv')
    def __xor__(self, o): return self._binary(o, '', 'xor')
    def __and__(self, o): return self._binary(o, '', 'and_')
    def __rshift__(self, o): return self._binary(o, '', 'lshr')
    def _compare(self, sign, o):
        o = o.v if isinstance(o, Vector) else _constant(self.v.type, o)
        test = self.b.fcmp_ordered if self.v.type==_floats else self.b.icmp_unsigned
        return Vector(self.b, test(sign, self.v, o))
    def __lt__(self, o): return self._compare('<', o)
    def __le__(self, o): return self._compare('<=', o)
    def __gt__(self, o): return self._compare('>', o)
    def equals(self, o): return self._compare('==', o)


# %% [markdown]
# ## Functions of vectors
#
# Comparisons return masks, and `select` chooses by a mask. `fma` multiplies and adds in one
# instruction where the machine has one.

# %%
#| export
def _call(name, *xs):
    "Call one of LLVM's vector functions"
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
    "Return `x` where `mask` is set, else `y`; numbers are broadcast"
    kind = next(o.v.type for o in (x,y) if isinstance(o, Vector))
    x,y = (o.v if isinstance(o, Vector) else _constant(kind, o) for o in (x,y))
    return Vector(mask.b, mask.b.select(mask.v, x, y))

def relu(x):
    "Return max(x, 0); NaN stays NaN, so that a diverging run is noticed"
    return select(x<0., 0., x)


# %% [markdown]
# ## Integers and memory
#
# `Integer` is a whole number of the compiled program that can be added and multiplied. `FloatArray` is
# memory: `load` and `store` move sixteen numbers at a time, and `load_scalar` copies one number into all
# lanes.

# %%
#| export
def _int_value(b, i): return i.v if isinstance(i, Integer) else ir.Constant(_i64, int(i))

class Integer:
    "A whole number of the compiled program"
    def __init__(self, b, v):
        self.b = b
        self.v = v
    def _binary(self, name, o):
        return Integer(self.b, getattr(self.b, name)(self.v, _int_value(self.b, o)))
    def __add__(self, o): return self._binary('add', o)
    def __sub__(self, o): return self._binary('sub', o)
    def __mul__(self, o): return self._binary('mul', o)
    def __floordiv__(self, o): return self._binary('udiv', o)
    __radd__ = __add__
    __rmul__ = __mul__
    def minimum(self, o):
        o = _int_value(self.b, o)
        return Integer(self.b, self.b.select(self.b.icmp_unsigned('<', self.v, o), self.v, o))
    def to_vector(self): return broadcast_scalar(self.b, self.b.trunc(self.v, _i32))

def broadcast_constant(b, value):
    "Return a vector with a constant in all lanes"
    return Vector(b, _constant(_floats, value))

def broadcast_scalar(b, v):
    "Return a vector with one number of the program in all lanes"
    kind = ir.VectorType(v.type, n_lanes)
    first = b.insert_element(ir.Constant(kind, ir.Undefined), v, ir.Constant(_i32, 0))
    zeros = ir.Constant(_ints, [0]*n_lanes)
    return Vector(b, b.shuffle_vector(first, ir.Constant(kind, ir.Undefined), zeros))

class FloatArray:
    "Memory of a kernel"
    def __init__(self, b, base):
        self.b = b
        self.base = base
    def _pointer(self, i): return self.b.gep(self.base, [_int_value(self.b, i)])
    def _vector(self, i): return self.b.bitcast(self._pointer(i), _floats.as_pointer())
    def __add__(self, i): return FloatArray(self.b, self._pointer(i))
    def load_scalar(self, i): return broadcast_scalar(self.b, self.b.load(self._pointer(i)))
    def load(self, i): return Vector(self.b, self.b.load(self._vector(i), align=4))
    def store(self, i, x): self.b.store(x.v, self._vector(i), align=4)
    def add(self, i, x): self.store(i, self.load(i) + x)


# %% [markdown]
# ## Loops and accumulators
#
# An `Accumulator` is a variable that changes within a loop; the compiler keeps it in a register.

# %%
#| export
class Accumulator:
    "A vector variable, kept in a register"
    def __init__(self, b, start=0.):
        self.b = b
        self.slot = cgutils.alloca_once(b, _floats)
        self.set(broadcast_constant(b, start))
    def get(self): return Vector(self.b, self.b.load(self.slot))
    def set(self, x): self.b.store(x.v, self.slot)
    def add(self, x): self.set(self.get() + x)
    def fma(self, x, y): self.set(fma(x, y, self.get()))

def loop(b, count):
    "Emit a loop: `for i in loop(b, count)` traces its body once"
    with cgutils.for_range(b, _int_value(b, count)) as index: yield Integer(b, index.index)

def iota(b): return Vector(b, ir.Constant(_ints, list(range(n_lanes))))


# %% [markdown]
# `horizontal_sums` adds up the lanes of up to sixteen vectors: the vectors become one vector that holds
# their sums, in four rounds that each halve the number of vectors. This takes three instructions per
# sum; sixteen separate sums would take eight each.

# %%
#| export
def horizontal_sums(
    vectors:list, # At most sixteen
)->Vector:        # Lane j is the sum of vector j
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
# To try out a kernel, `compile_kernel` turns a traced function into a function of numpy arrays. Its
# arguments are `FloatArray` objects.

# %%
#| export
def array_memory(context, b, kind, value):
    "Return the memory of a numpy array of float32"
    return FloatArray(b, context.make_array(kind)(context, b, value).data)

def compile_kernel(trace):
    "Compile `trace(b, *memory)` to a function of numpy arrays"
    @intrinsic
    def run(typing, arrays):
        def code(context, b, sig, args):
            values = cgutils.unpack_tuple(b, args[0])
            trace(b, *(array_memory(context, b, k, v) for k,v in zip(arrays.types, values)))
            return context.get_dummy_value()
        return types.void(arrays),code
    @njit
    def call(*arrays): run(arrays)
    return call


# %%
@compile_kernel
def sums(b, x, out): out.store(0, horizontal_sums([x.load(16*j) for j in range(16)]))

x = np.random.rand(16,16).astype(np.float32)
out = np.zeros(16, np.float32)
sums(x, out)
test_close(out, x.sum(1), eps=1e-5)
out[:4], x.sum(1)[:4]


# %% [markdown]
# A loop over memory with an accumulator: the squared norms of sixteen vectors at once.

# %%
@compile_kernel
def norms(b, x, out):
    total = Accumulator(b)
    for i in loop(b, 100): total.fma(x.load(i*16), x.load(i*16))
    out.store(0, total.get())

x = np.random.rand(100,16).astype(np.float32)
norms(x, out)
test_close(out, (x**2).sum(0), eps=1e-4)
out[:4]


# %% [markdown]
# ## Functions kept for later processes
#
# Numba stores compiled functions beside the package, or in the user's cache. If neither can be
# written, for example in a container with another user, functions are compiled in each process.

# %%
#| export
def cached_njit(**options): # Of `njit`
    "Compile a function by numba and keep the result for later processes, where that is possible"
    def compile_function(f):
        try: return njit(cache=True, **options)(f)
        except RuntimeError as e: # There is no class of its own for this
            if 'cannot cache' not in str(e): raise
        _warn_of_missing_cache()
        return njit(**options)(f)
    return compile_function

@cache
def _warn_of_missing_cache():
    warnings.warn('Numba has no folder for compiled functions, so each process compiles them again '
                  '(seconds): set NUMBA_CACHE_DIR to a folder of yours.', stacklevel=3)


# %%
import importlib, subprocess, sys, tempfile
from pathlib import Path

tmp = Path(tempfile.mkdtemp())
(tmp/'__pycache__').touch() # So that no cache beside the file can be made
(tmp/'mine.py').write_text('''
from moral_sc.superposition.engines.simd import cached_njit
@cached_njit(nogil=True)
def double(x): return 2*x
print(double(2))
''')
env = dict(PATH='', HOME=str(tmp/'__pycache__'), XDG_CACHE_HOME=str(tmp/'__pycache__'),
           PYTHONDONTWRITEBYTECODE='1',
           PYTHONPATH=str(Path(importlib.util.find_spec('moral_sc').origin).parents[1]))
run = subprocess.run([sys.executable, tmp/'mine.py'], env=env, capture_output=True, text=True)
test_eq(run.stdout.strip(), '4')
assert 'set NUMBA_CACHE_DIR' in run.stderr and run.stderr.count('Numba has no folder')==1


# %% [markdown]
# ## Random numbers
#
# The hash of [the features](../10_features.ipynb), bit for bit: fourteen instructions return
# sixteen numbers.

# %%
#| export
def hash_vector(
    index:Vector, # Number of the element within its batch
    k0, k1,      # The two keys
)->Vector:        # 31 random bits, as floats
    "Compute `features.hash32` of sixteen elements"
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
    key = lambda k: broadcast_scalar(b, ir.Constant(ir.IntType(32), int(k)))
    out.store(0, hash_vector(iota(b), key(k0), key(k1)))

sixteen(out)
test_eq(torch.from_numpy(out), hash32(ks, 16)[0].float())
out[:4].astype(int)
