# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Kernels for the CPU
#
# > A toy model's whole training inside one processor core.

# %%
#| default_exp superposition.kernels_cpu

# %%
#| export
import math, os
import numpy as np, torch
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from llvmlite import ir
from numba import njit, types
from numba.core.datamodel import models
from numba.extending import (intrinsic, register_model, typeof_impl, unbox, NativeValue)
from moral_sc.superposition.compiled import factors, settle, stretches
from moral_sc.superposition.features import _mix64
from moral_sc.superposition.lanes import (Cell, Floats, Index, Lanes, absolute, both, floats_of,
    fma, fold, hashed, integers, iota, loop, n_lanes, relu, spread, sqrt, where)
from moral_sc.superposition.model import ToyConfig

# %%
#| hide
import time
from fastcore.test import *
from moral_sc.superposition.training import train
torch.set_num_threads(1)


# %%
#| export
class Tiles:
    "Where a matrix [feature, column] lies in memory: rectangles that fit into registers"
    def __init__(self, n, columns, rows):
        self.n,self.columns,self.rows = n,columns,rows
        count = -(-columns//(26//rows)) if rows<=8 else 1
        cuts = [j*columns//count for j in range(count+1)]
        self.spans = list(zip(cuts, cuts[1:]))
        sizes = [-(-rows*(b-a)//n_lanes)*n_lanes for a,b in self.spans]
        self.starts = [sum(sizes[:j]) for j in range(count)]
        self.stride,self.blocks = sum(sizes),-(-n//rows)
        self.size = self.stride*self.blocks

    def within(self, f, k):
        "Place of row `f`, column `k` in its block"
        j,(a,b) = next((j,s) for j,s in enumerate(self.spans) if s[0]<=k<s[1])
        return self.starts[j] + f*(b-a) + k-a

    def places(self):
        "Places of all entries, [feature, column]"
        return np.array([[i//self.rows*self.stride + self.within(i%self.rows, k)
                          for k in range(self.columns)] for i in range(self.n)])

@dataclass(frozen=True)
class Plan:
    "All that is fixed when a kernel is compiled"
    n:int; m:int
    activation:str = 'relu'; hidden:str = 'linear'; target:str = 'identity'
    features:str = 'independent'; sets:int = 1
    bias:bool = True; hidden_bias:bool = False; tied:bool = True
    signed:bool = False; unit:bool = False; l1:bool = False; ragged:bool = False

    @property
    def fused(self): return self.n*(self.m+1)*(1 if self.tied else 2)<=16
    @property
    def rows(self):
        if self.fused: return self.n
        return min((4,5,3), key=lambda r: -(-self.n//r)*r)
    @property
    def groups(self): return max(2, min(16, 4096//self.n)) if not self.fused else 1
    @cached_property
    def read(self): return Tiles(self.n, self.m+1, self.rows)
    @cached_property
    def write(self): return self.read if self.tied else Tiles(self.n, self.m, self.rows)
    @property
    def tiles(self): return [self.read] if self.tied else [self.read,self.write]
    @property
    def padded(self): return self.read.blocks*self.rows
    @property
    def c_at(self): return sum(t.size for t in self.tiles)
    @property
    def size(self): return self.c_at + self.hidden_bias*-(-self.m//n_lanes)*n_lanes
    @property
    def work(self): return n_lanes*(2*self.groups*(self.padded+self.m) + self.m + 1)


# %%
#| export
class Held(dict):
    "Registers under numbers, for a kernel that needs no memory"
    get,put = dict.__getitem__,dict.__setitem__

class Step:
    "Writes one training step"
    def __init__(self, b, plan, theta, grad, table, work, ks, rows, l1):
        self.b,self.p,self.theta,self.grad,self.ks,self.l1 = b,plan,theta,grad,ks,l1
        self.rows,S,n,m = rows,plan.groups,plan.padded,plan.m
        self.th,self.scale,self.coef = (table + j*n for j in range(3))
        sizes = [n*S, n*S, m*S, m*S]
        if plan.fused: self.x,self.g,self.h,self.d = (Held() for _ in range(4))
        else: self.x,self.g,self.h,self.d = (work + n_lanes*sum(sizes[:j]) for j in range(4))
        self.dc = work + n_lanes*sum(sizes)
        self.loss = Cell(b)

    def blocks(self): return [0] if self.p.fused else loop(self.b, self.p.read.blocks)
    def at(self, i, s): return i if self.p.fused else (i*self.p.groups + s)*n_lanes
    def read(self, q, f, k): return self._weight(self.p.read, 0, q, f, k)
    def write(self, q, f, k):
        return self._weight(self.p.write, 0 if self.p.tied else self.p.read.size, q, f, k)
    def _weight(self, tiles, base, q, f, k):
        return self.theta.one(q*tiles.stride + base + tiles.within(f, k))
    def number(self, i): return i.lanes() if isinstance(i, Index) else i

    def draw(self, i):
        "Feature `i` of sixteen samples"
        p,u = self.p,hashed(self.element + self.number(i), *self.ks[:2])
        if p.features=='independent': on,size = u <= self.th.one(i), u*self.scale.one(i)
        else: on,size = self.present(i), u*2.**-31
        return where(on, size*2. - 1. if p.signed else size, 0.)

    def present(self, i):
        "Whether feature `i` is active, in sets that know of each other"
        p,members,th = self.p,self.p.n//self.p.sets,self.th.one(i)
        gate = hashed(self.row*p.sets + self.number(i//members), *self.ks[2:])
        if p.features=='correlated': return gate <= th
        place = gate/th
        place = where(place < 1-2**-24, place, 1-2**-24)*float(members)
        return both(gate <= th, integers(place).same(self.number(i - i//members*members)))

    def encode(self, s, group):
        "Draw sixteen samples and compress them"
        b,p = self.b,self.p
        self.row = (group*n_lanes).lanes() + iota(b)
        self.element,self.live = self.row*p.n,self.row < self.rows
        drawn = False
        if p.unit: self.unit(s); drawn = True
        for span in _spans(p.m, 26):
            h = {k: Cell(b) for k in span}
            for q in self.blocks():
                for f in range(p.rows):
                    i = q*p.rows + f
                    x = self.x.get(self.at(i, s)) if drawn else self.draw(i)
                    if not drawn: self.x.put(self.at(i, s), x)
                    for k in span: h[k].fma(self.write(q, f, k), x)
            drawn = True
            for k in span:
                if p.hidden_bias: h[k].add(self.theta.one(p.c_at + k))
                v = h[k].get()
                self.h.put(self.at(k, s), relu(v) if p.hidden=='relu' else v)

    def unit(self, s):
        "Draw samples of length 1"
        square = Cell(self.b)
        for redo in False,True:
            if redo:
                length = sqrt(square.get())
                length = where(length < 1e-12, 1e-12, length)
            for q in self.blocks():
                for f in range(self.p.rows):
                    at = self.at(q*self.p.rows + f, s)
                    if redo: self.x.put(at, self.x.get(at)/length)
                    else:
                        x = self.draw(q*self.p.rows + f)
                        self.x.put(at, x); square.fma(x, x)

    def decode(self, s):
        "Outputs, their errors, and what the errors ask of the hidden layer"
        b,p = self.b,self.p
        together = 2*p.m<=24
        d = {k: Cell(b) for k in range(p.m)} if together else {}
        for q in self.blocks():
            z = [self.read(q, f, p.m) for f in range(p.rows)]
            for k in range(p.m):
                h = self.h.get(self.at(k, s))
                z = [fma(self.read(q, f, k), h, z[f]) for f in range(p.rows)]
            for f in range(p.rows): self.error(q*p.rows + f, z[f], s)
            self.back(q, d, s)
        for span in [] if together else _spans(p.m, 26):
            d |= {k: Cell(b) for k in span}
            for q in self.blocks(): self.back(q, {k: d[k] for k in span}, s)
        for k in range(p.m): self.d.put(self.at(k, s), self.inward(k, d[k].get(), s))

    def error(self, i, z, s):
        "Error of output `i`, scaled to be the gradient of its pre-activation"
        p,x = self.p,self.x.get(self.at(i, s))
        e = (relu(z) if p.activation=='relu' else z) - (absolute(x) if p.target=='abs' else x)
        g = e*self.coef.one(i)
        if p.ragged: g = where(self.live, g, 0.)
        self.loss.fma(g, e)
        self.g.put(self.at(i, s), where(z > 0., g, 0.) if p.activation=='relu' else g)

    def back(self, q, d, s):
        for f in range(self.p.rows):
            g = self.g.get(self.at(q*self.p.rows + f, s))
            for k in d: d[k].fma(self.read(q, f, k), g)

    def inward(self, k, d, s):
        "Gradient of a hidden unit's pre-activation"
        p,h = self.p,self.h.get(self.at(k, s))
        if p.l1:
            size,push = absolute(h)*self.l1,where(h < 0., self.l1*-1., where(h > 0., self.l1, 0.))
            if p.ragged: size,push = (where(self.live, v, 0.) for v in (size,push))
            d = d + push; self.loss.add(size*2.)
        if p.hidden=='relu': d = where(h > 0., d, 0.)
        if p.hidden_bias: self.dc.add(k*n_lanes, d)
        return d

    def outer(self, tiles, span, cells, q, s):
        "Add one group's share to the gradient of a tile"
        p = self.p
        i = [q*p.rows + f for f in range(p.rows)]
        g,x = ([v.get(self.at(j, s)) for j in i] for v in (self.g,self.x))
        for c,k in enumerate(range(*span)):
            row = cells[c::span[1]-span[0]]
            for f in range(p.rows):
                if k==p.m:
                    if p.bias: row[f].add(g[f])
                    continue
                if tiles is p.read: row[f].fma(g[f], self.h.get(self.at(k, s)))
                if tiles is p.write: row[f].fma(x[f], self.d.get(self.at(k, s)))

    def settle(self, cells, at):
        "Add up lanes into the gradient"
        for j in range(0, len(cells), n_lanes):
            self.grad.add(at + j, fold([c.get() for c in cells[j:j+n_lanes]]))

    def spans(self):
        "Each tile's matrix, columns and place within a block"
        base = 0
        for tiles in self.p.tiles:
            for span,start in zip(tiles.spans, tiles.starts): yield tiles,span,base+start
            base += tiles.size

    def cells(self, span): return [Cell(self.b) for _ in range(self.p.rows*(span[1]-span[0]))]

    def fused(self, groups):
        "All of a small model in registers"
        tiles = [(t,span,at,self.cells(span)) for t,span,at in self.spans()]
        for group in loop(self.b, groups):
            self.encode(0, group); self.decode(0)
            for t,span,_,cells in tiles: self.outer(t, span, cells, 0, 0)
        for _,_,at,cells in tiles: self.settle(cells, at)

    def tiled(self, groups):
        "A larger model, a handful of sample groups at a time"
        S = self.p.groups
        for chunk in loop(self.b, (groups + (S-1))//S):
            now = (groups - chunk*S).least(S)
            for s in loop(self.b, now): self.encode(s, chunk*S + s); self.decode(s)
            for tiles,span,at in self.spans():
                for q in self.blocks():
                    cells = self.cells(span)
                    for s in loop(self.b, now): self.outer(tiles, span, cells, q, s)
                    self.settle(cells, q*tiles.stride + at)

    def __call__(self, groups):
        b,p,zero = self.b,self.p,Lanes(self.b, ir.Constant(iota(self.b).v.type, None))
        zero = where(iota(b) < 0, 0., Cell(b).get())
        for j in loop(b, p.size//n_lanes): self.grad.put(j*n_lanes, zero)
        for k in range(p.m) if p.hidden_bias else []: self.dc.put(k*n_lanes, zero)
        (self.fused if p.fused else self.tiled)(groups)
        for k in range(0, p.m, n_lanes) if p.hidden_bias else []:
            self.grad.put(p.c_at + k, fold([self.dc.get(j*n_lanes)
                                            for j in range(k, min(p.m, k+n_lanes))]))
        return fold([self.loss.get()])*(p.n/2)

def _spans(m, size):
    count = -(-m//size)
    return [range(j*m//count, (j+1)*m//count) for j in range(count)]


# %%
#| export
class PlanType(types.Type):
    "A plan as a type: what is known when compiling"
    def __init__(self, plan):
        self.plan = plan
        super().__init__(f'{plan}')

@typeof_impl.register(Plan)
def _typeof(plan, c): return PlanType(plan)

register_model(PlanType)(models.OpaqueModel)

@unbox(PlanType)
def _unbox(typ, obj, c): return NativeValue(c.context.get_dummy_value())

@intrinsic
def _gradient(typing, plan, theta, grad, table, work, k0, k1, q0, q1, rows, l1):
    def code(context, b, sig, args):
        theta,grad,table,work = (floats_of(context, b, t, v)
                                 for t,v in zip(sig.args[1:5], args[1:5]))
        ks = [spread(b, b.trunc(k, ir.IntType(32))) for k in args[5:9]]
        rows = Index(b, args[9])
        step = Step(b, plan.plan, theta, grad, table, _aligned(work), ks, rows.lanes(),
                    spread(b, args[10]))
        return b.extract_element(step((rows + 15)//16).v, ir.Constant(ir.IntType(32), 0))
    return types.float32(plan, theta, grad, table, work, *[types.uint64]*4, types.int64,
                         types.float32),code

def _aligned(mem):
    "The same memory from its next cache line on"
    b,word = mem.b,ir.IntType(64)
    at = b.and_(b.add(b.ptrtoint(mem.base, word), word(63)), word(-64))
    return Floats(b, b.inttoptr(at, mem.base.type))

@intrinsic
def _adamw(typing, theta, grad, mean, square, rate, keep, root):
    def code(context, b, sig, args):
        theta,grad,mean,square = (floats_of(context, b, t, v)
                                  for t,v in zip(sig.args[:4], args[:4]))
        rate,keep,root = (spread(b, v) for v in args[4:])
        count = context.make_array(sig.args[0])(context, b, args[0]).nitems
        for j in loop(b, Index(b, count)//n_lanes):
            at = j*n_lanes
            g,m,v = grad.get(at),mean.get(at),square.get(at)
            m = m + (g-m)*.1
            v = v*.999 + g*g*.001
            mean.put(at, m); square.put(at, v)
            theta.put(at, theta.get(at)*keep - rate*m/(sqrt(v)*root + 1e-8))
        return context.get_dummy_value()
    return types.void(theta, grad, mean, square, *[types.float32]*3),code


# %%
#| export
_g,_a,_c = (np.uint64(k) for k in (0x9e3779b97f4a7c15,0xbf58476d1ce4e5b9,0x94d049bb133111eb))
_30,_27,_31,_32,_1 = (np.uint64(k) for k in (30,27,31,32,1))

@njit(inline='always')
def _mix(z):
    z = (z ^ (z >> _30))*_a
    z = (z ^ (z >> _27))*_c
    return z ^ (z >> _31)

@njit(nogil=True, cache=True)
def _advance(plan, lo, hi, first, roots, finite, theta, mean, square, tables, work,
             lr, decay, l1, now, rows, losses):
    "Train the instances lo, ..., hi-1"
    grad = np.zeros_like(theta[0])
    for j in range(lo, hi):
        th,m,v,table = theta[j],mean[j],square[j],tables[j]
        for t in range(len(now)):
            at = _mix(np.uint64(0 if finite else first+t) + _1)
            k,q = _mix((roots[0,j] + _g) ^ at),_mix((roots[1,j] + _g) ^ at)
            loss = _gradient(plan, th, grad, table, work, k >> _32, k, q >> _32, q, rows, l1[j])
            losses[j,t] = loss
            if not math.isfinite(loss):
                losses[j,t:] = np.nan
                break
            rate = lr[j]*now[t,0]
            _adamw(th, grad, m, v, np.float32(rate/now[t,1]), np.float32(1)-rate*decay[j],
                   np.float32(1)/now[t,2])


# %%
#| export
def plan_of(config:ToyConfig, rows:int)->Plan:
    "What the kernel of a config has to know"
    c = config
    return Plan(c.n_features, c.n_hidden, c.activation, c.hidden, c.target, 
                'anticorrelated' if c.features=='one-hot' else c.features, c.sets, c.bias,
                c.hidden_bias, c.tied, c.signed, c.unit, bool(c.per_instance('l1').any()),
                rows%n_lanes>0)

def _roots(seed, ids, streams):
    "Keys before the step is mixed in, [stream, instance]"
    z = np.full((len(streams),1), seed % 2**64, np.uint64)
    for part in np.array(streams, np.uint64)[:,None],np.array(ids, np.uint64)[None]:
        z = _mix64((z + np.uint64(0x9e3779b97f4a7c15)) ^ _mix64(part + np.uint64(1)))
    return z

def _tables(config, ids, plan, rows):
    "Threshold, scale and weight of each feature, [instance, 3·feature]"
    p = config.densities[ids].float().double().numpy()
    t = np.zeros((len(ids),3,plan.padded), np.float32)
    t[:,0] = -1
    t[:,:,:plan.n] = np.stack([p*2**31, 2**-31/p,
        config.importances[ids].numpy()*2/(rows*plan.n)], 1)
    return t.reshape(len(ids), -1)

class _State:
    "Parameters and moments in the order of the tiles"
    def __init__(self, run, plan):
        self.run,at = run,plan.read.places()
        self.places = dict(b=at[:,-1], **{'W' if plan.tied else 'V': at[:,:-1]})
        if not plan.tied: self.places['W'] = plan.read.size + plan.write.places()
        if plan.hidden_bias: self.places['c'] = plan.c_at + np.arange(plan.m)
        self.flat = [np.zeros((len(run.W),plan.size), np.float32) for _ in range(3)]
        for flat,k,t in self.parts(): flat[:,self.places[k]] = t.numpy()

    def parts(self):
        for k in self.places:
            yield from zip(self.flat, [k]*3, (self.run.params[k],*self.run.moments[k]))

    def back(self):
        for flat,k,t in self.parts(): t.copy_(torch.from_numpy(flat[:,self.places[k]]))

def threads():
    "As many as torch uses, and NUMBA_NUM_THREADS allows"
    return min(torch.get_num_threads(), int(os.environ.get('NUMBA_NUM_THREADS', 1024)))

def numba_engine(run, to:int, batch, lr, decay, schedule, log:set, snap:set):
    "Train in the processor's registers; arguments as in `eager`"
    c,ids,I,rows = run.config,run.instances,len(run.W),batch.batch_size
    plan = plan_of(c, rows)
    wide = lambda x: np.ascontiguousarray(np.broadcast_to(np.asarray(x, np.float32), I))
    roots,tables,state = _roots(batch.seed, ids, (0,2)),_tables(c, ids, plan, rows),_State(run, plan)
    l1 = wide(c.per_instance('l1')[ids]/(rows*plan.n))
    lr,decay = wide(lr),wide(decay)
    count = max(1, min(threads(), I))
    cuts = np.linspace(0, I, min(I, 8*count)+1).astype(int).tolist()
    for first,end in stretches(run.step, to, snap, max(1, min(1024, 2**22//I))):
        now = factors(run, first, end, schedule).numpy()
        losses = np.empty((I,end-first), np.float32)
        def train(a, z): _advance(plan, a, z, first, roots, batch.finite, *state.flat, tables,
            np.empty(plan.work+n_lanes, np.float32), lr, decay, l1, now, rows, losses)
        if count==1: train(0, I)
        else:
            with ThreadPoolExecutor(count) as pool: list(pool.map(train, cuts[:-1], cuts[1:]))
        state.back()
        settle(run, first, end, torch.from_numpy(losses).T, log, snap)

def serves(config:ToyConfig, device='cpu'):
    "None, or in one sentence why this engine cannot train `config` on `device`"
    if torch.device(device).type!='cpu': return 'engine numba runs on the CPU: leave device at cpu.'
    for k in 'activation','hidden':
        if getattr(config, k) not in ('relu','linear'): return (
            f'engine numba knows {k} relu and linear, not {getattr(config, k)}: use eager.')
    if config.per_instance('attack').any():
        return 'engine numba does not attack its inputs: use eager.'


# %%
cfg = ToyConfig(5, 2, 3, density=[[1.],[.2],[.05]], importance=[.6**i for i in range(5)], init=.1)
args = dict(steps=50, batch_size=128, lr=.01, log_every=1)
slow,fast = (train(cfg, engine=e, **args) for e in ('eager','numba'))
(slow.loss/fast.loss-1).abs().max(), (slow.W-fast.W).abs().max()
