# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Training
#
# > One loop for any model and any loss: cut into pieces, shared or killed, it learns the same.

# %%
#| default_exp language.training

# %%
#| export
import math
import os
import random
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist

from moral_sc.foundation.errors import ConfigError, ModelError, unknown_name_message
from moral_sc.foundation.runs import content_key, open_run, process_rank
from moral_sc.language.reward_head import answer_logprobs
from moral_sc.language.engine.onednn import onednn
from moral_sc.language.engine.batching import batches
from moral_sc.language.fsdp import FSDPModules, full_tensors, fsdp_enabled
from moral_sc.language.engine.allocator import retain_freed_memory

# %%
#| hide
import tempfile
from fastcore.test import *
from moral_sc.language.reward_head import small_lm, word_tokenizer
from moral_sc.language.models import decode, encode

tmp = Path(tempfile.mkdtemp())
torch.set_num_threads(1)


# %% [markdown]
# Supervised finetuning, a preference model and a policy are trained by the same few lines, and
# what goes wrong in them goes wrong silently. A mean of means weighs short texts more than long
# ones. A run that was killed goes on with other data than it would have had. This page has the
# lines once.
#
# ## A loss is a sum and a count
#
# A loss here returns the sum over whatever it averages, tokens or comparisons, and how many
# there are. Sums can be cut anywhere; means cannot. The first loss is that of answers.

# %%
#| export
def answer_loss(
    model,
    examples, # (token ids, where the answer begins)
)->tuple:     # Sum in nats, number of tokens, more sums to keep
    "Cross-entropy of the tokens of answers, given what stands before"
    lp,mask = answer_logprobs(model, [e[0] for e in examples], [e[1] for e in examples])
    return -lp.sum(),mask.sum().item(),{}


# %%
tok = word_tokenizer('is it far tea the cup here . ? , yes no'.split())
def example(ask, answer):
    ids = tok(f'\n\nHuman: {ask}\n\nAssistant:').input_ids
    return [*ids, *tok(f' {answer}').input_ids, tok.eos_token_id],len(ids)

data = [example('is it far?', 'no, the tea is here.'), example('is it tea?', 'yes.'),
        example('the cup, is it here?', 'no.'), example('far?', 'yes, the cup is far, far.')]
lm = small_lm(tok, layers=2, width=32)
answer_loss(lm.model, data)


# %% [markdown]
# ## Parts of a step
#
# A step of the optimiser takes `batch` examples. They pass through the model some at a time,
# rows of like length together. Where memory runs out, the step begins again in passes of half
# the size.

# %%
#| export
def example_length(example)->int:
    "Tokens in an example: a mapping with `ids`, or a sequence that begins with them"
    return len(example['ids'] if isinstance(example, dict) else example[0])

def accumulate_gradients(
    model,
    examples:list,
    loss,            # loss(model, examples) -> sum, count, sums to keep
    max_tokens:int,  # In one pass, padding included
    size=example_length,
)->tuple:            # {'loss', 'count', 'tokens', ...: sums over the examples}, max_tokens
    "Add the gradient of the whole sum; smaller passes where memory runs out"
    lengths = [size(e) for e in examples]
    while True:
        try: return _accumulate(model, examples, loss, lengths, max_tokens),max_tokens
        except RuntimeError as e: max_tokens = _half(e, lengths, max_tokens)
        model.zero_grad(set_to_none=True)

def _accumulate(model, examples, loss, lengths, max_tokens):
    said = []
    for some in batches(lengths, max_tokens, max_padding=_slack(model)):
        total,*more = loss(model, [examples[i] for i in some])
        total.backward()
        said.append((total.detach(), *more))
    return _summed(said, sum(lengths))

def _summed(said, tokens):
    return _added([dict(loss=t, count=n) | logs for t,n,logs in said]) | dict(tokens=tokens)

def _slack(model): return 160 if next(model.parameters()).device.type=='cpu' else None

def _added(sums): # A process without examples has none
    keys = dict.fromkeys(k for s in sums for k in s)
    return {k: math.fsum(float(s.get(k, 0)) for s in sums) for k in keys}

def _half(e, lengths, max_tokens):
    if not isinstance(e, torch.OutOfMemoryError) and 'allocate memory' not in str(e): raise e
    if len(lengths)==1 or max_tokens<=max(lengths):
        raise ModelError(f'Memory runs out on one example of {max(lengths)} tokens; shorten '
                         'it, or train a smaller model.') from None
    if torch.cuda.is_available(): torch.cuda.empty_cache()
    return min(max_tokens, sum(lengths))//2


# %% [markdown]
# The gradient does not depend on how the examples are divided. The mean of the parts' means is
# another gradient: it counts a token of a short answer more than a token of a long one.

# %%
def flat(model): return torch.cat([p.grad.flatten() for p in model.parameters()])

def gradient(max_tokens, loss=answer_loss):
    lm.model.zero_grad()
    sums,_ = accumulate_gradients(lm.model, data, loss, max_tokens)
    return flat(lm.model)/sums['count']

def means(model, some):
    total,count,_ = answer_loss(model, some)
    return total/count,1,{}

whole = gradient(4096)
for n in (1, 20, 40): test_close(gradient(n), whole, 1e-6)
assert (gradient(1, means)-whole).norm()>.1*whole.norm()


# %% [markdown]
# A machine without room for 40 tokens, as far as the code can tell, gives the same again, and
# what half of the failed pass had left behind is not in it.

# %%
def cramped(model, some):
    if sum(map(example_length, some))>20: raise torch.OutOfMemoryError
    return answer_loss(model, some)

lm.model.zero_grad()
sums,room = accumulate_gradients(lm.model, data, cramped, 4096)
test_close(flat(lm.model)/sums['count'], whole, 1e-6)
with expect_fail(ModelError, contains='of 14 tokens'):
    accumulate_gradients(lm.model, data, lambda m,e: cramped(m, e*9), 4096)
room

# %% [markdown]
# ## A step of the optimiser
#
# AdamW [@loshchilov2019adamw] is torch's own. The rate may rise at first and fall at the end.

# %%
#| export
schedules = dict(constant=lambda x: 1., linear=lambda x: 1-x,
                 cosine=lambda x: (1+math.cos(math.pi*x))/2)

def learning_rate(
    step:int,   # From 0
    total:int,  # Steps in all
    lr:float,   # The highest
    warmup:int=0,
    schedule:str='constant', # 'constant', 'linear' or 'cosine', down to 0
)->float:
    "The rate of one step: a straight way up, then down as the schedule says"
    if schedule not in schedules: raise ConfigError(unknown_name_message('schedule', schedule, [*schedules]))
    if step<warmup: return lr*(step+1)/warmup
    return lr*schedules[schedule]((step-warmup)/max(1, total-warmup))


# %%
rates = {s: [round(learning_rate(i, 10, 1., 2, s), 2) for i in range(10)] for s in schedules}
rates

# %%
test_eq(rates['linear'], [.5, 1, 1, .88, .75, .62, .5, .38, .25, .12])
test_eq(rates['cosine'][6], .5)
with expect_fail(ConfigError, contains="mean 'cosine'"): learning_rate(0, 9, 1., 0, 'cosin')


# %%
#| export
def build_optimizer(
    model, lr:float=1e-4, weight_decay:float=0., betas:tuple=(.9, .999), eps:float=1e-8,
)->torch.optim.Optimizer:
    "AdamW over what can be trained"
    ps = [p for p in model.parameters() if p.requires_grad]
    if low := [p.dtype for p in ps if p.dtype.itemsize<4]:
        raise ModelError(f'Small steps are lost in {str(low[0])[6:]} weights; load the model '
                         "with dtype='float32', and pass autocast='bfloat16' for speed.")
    return torch.optim.AdamW(ps, lr=lr, weight_decay=weight_decay, betas=tuple(betas), eps=eps,
                             fused=True)

def clipped_step(
    optimizer,
    count:float,   # What the sum in the gradients is divided by
    clip:float=0., # Largest norm of the gradient; 0: any
    lr:float=None, # Of this step; None: as it was
)->float:          # The norm before clipping
    "One step, unless the gradient is not finite"
    ps = [p for g in optimizer.param_groups for p in g['params'] if p.grad is not None]
    grads = [p.grad for p in ps]
    torch._foreach_div_(grads, float(count))
    norm = torch.nn.utils.get_total_norm(grads)
    if clip: torch.nn.utils.clip_grads_with_norm_(ps, clip, norm)
    norm = full_tensors(norm).item()
    for g in optimizer.param_groups: g['lr'] = g['lr'] if lr is None else lr
    if math.isfinite(norm): optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


# %% [markdown]
# Three steps on one number, by hand: the averages are corrected for having started at zero, and
# $\epsilon$ is added to the root, not inside it.

# %%
class One(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.x = torch.nn.Parameter(torch.tensor([1.], dtype=torch.float64))

def by_hand(x, gs, lr, b1, b2, eps, decay):
    m = v = 0
    for t,g in enumerate(gs, 1):
        m = b1*m+(1-b1)*g
        v = b2*v+(1-b2)*g*g
        x = x*(1-lr*decay) - lr*(m/(1-b1**t))/(math.sqrt(v/(1-b2**t))+eps)
    return x

gs = [.5, -.001, 2.]
for eps in (1e-8, 1e-5, .1):
    one = One()
    opt = build_optimizer(one, .1, .01, eps=eps)
    for g in gs:
        one.x.grad = torch.tensor([g*4], dtype=torch.float64)
        test_close(clipped_step(opt, 4), abs(g), 1e-12)
    test_close(one.x.item(), by_hand(1, gs, .1, .9, .999, eps, .01), 1e-12)
one.x.item()

# %% [markdown]
# Weights in bfloat16 are refused: near 1 their neighbours are a hundredth away, and a step of a
# thousandth is no step.

# %%
with expect_fail(ModelError, contains='autocast'): build_optimizer(One().bfloat16())


# %% [markdown]
# ## Checkpoints
#
# A checkpoint is seen whole or not at all, and the one before it is kept until it is there. It
# holds tensors and plain numbers, so that reading one runs no code of whoever wrote it.

# %%
#| export
class Checkpoints:
    "States of a training in a folder, the latest few"
    def __init__(self,
        out,        # Folder, made if it is not there
        keep:int=2, # How many stay
    ):
        self.out = Path(out)
        self.keep = keep
        self.out.mkdir(parents=True, exist_ok=True)

    def steps(self): return sorted(int(p.stem[5:]) for p in self.out.glob('step-*.pt'))
    def path(self, step): return self.out/f'step-{step:08}.pt'

    def save(self, step:int, state:dict):
        "Tensors, numbers, text, lists and dictionaries"
        part = self.out/f'.{os.getpid()}.part'
        with open(part, 'wb') as f:
            torch.save(state, f)
            f.flush(); os.fsync(f.fileno())
        part.replace(self.path(step))
        for old in self.steps()[:-self.keep]: self.path(old).unlink(missing_ok=True)

    def latest(self)->tuple: # (step, state), or (0, None)
        "The last one that can be read"
        for step in reversed(self.steps()):
            try: return step,torch.load(self.path(step), 'cpu', weights_only=True)
            except Exception: continue # noqa: S112 a damaged file: the one before it
        return 0,None

def get_random_state()->dict:
    "Where all generators of random numbers stand"
    kind,keys,*more = np.random.get_state() # noqa: NPY002
    return dict(torch=torch.get_rng_state(), cuda=torch.cuda.get_rng_state_all(),
                numpy=[kind, keys.tolist(), *more], python=random.getstate())

def set_random_state(state):
    "Put them back there"
    torch.set_rng_state(state['torch'])
    np.random.set_state(tuple(state['numpy'])) # noqa: NPY002
    v,s,g = state['python']
    random.setstate((v, tuple(s), g))
    if state['cuda'] and len(state['cuda'])==torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state['cuda'])


# %%
ck = Checkpoints(tmp/'ck')
draw = lambda: (torch.rand(2).tolist(), np.random.rand(), random.random())
for step in (3, 5, 9): ck.save(step, dict(rng=get_random_state(), x=torch.ones(2)))
want = draw()
step,state = ck.latest()
set_random_state(state['rng'])
test_eq(draw(), want)
step,ck.steps()

# %% [markdown]
# A file that was cut short is passed over.

# %%
ck.path(9).write_bytes(ck.path(9).read_bytes()[:900])
test_eq(ck.latest()[0], 5)


# %% [markdown]
# ## Several processes
#
# Processes that were launched together share the examples of each step, add up their
# gradients and counts, and so take the very step that one would have taken.

# %%
#| export
def init_distributed()->tuple: # This process and how many there are
    "Let processes that were launched together add up numbers"
    rank,world = process_rank()
    if world>1 and not dist.is_initialized():
        if 'MASTER_ADDR' not in os.environ:
            raise ConfigError(f'{world} processes cannot find each other; start them by '
                              '`accelerate launch --multi_gpu` or `torchrun`.')
        cuda = torch.cuda.is_available()
        if cuda: torch.cuda.set_device(int(os.environ.get('LOCAL_RANK', 0)))
        dist.init_process_group('nccl' if cuda else 'gloo', rank=rank, world_size=world)
    return rank,world

def broadcast_from_rank0(x):
    "What the first of several processes has; what each finds in a folder may change meanwhile"
    if process_rank()[1]==1: return x
    said = [x]
    dist.broadcast_object_list(said)
    return said[0]

def split_across_ranks(
    examples:list, rank:int, world:int, size=example_length,
)->list:
    "The part of a step's examples that one process takes; all parts are about equally long"
    if world==1: return examples
    at = sorted(range(len(examples)), key=lambda i: (-size(examples[i]), i))
    return [examples[i] for i in at[rank::world]]

def reduce_gradients(
    model, sums:dict, world:int,
)->dict:
    "Add gradients and sums of all processes"
    if world==1: return sums
    ps = [p for p in model.parameters() if p.requires_grad]
    parts = [None]*world
    dist.all_gather_object(parts, (sums, [p.grad is not None for p in ps]))
    for p,*had in zip(ps, *(h for _,h in parts)):
        if not any(had): continue
        if p.grad is None: p.grad = torch.zeros_like(p)
        dist.all_reduce(p.grad)
    return _added([s for s,_ in parts])


# %% [markdown]
# ## The loop
#
# What a step learns from is a matter of the seed and its number, and so is what is drawn at
# random in it. A run that is killed goes on from its last checkpoint to the same weights, bit
# for bit on a CPU; a run that is finished is read back.

# %%
#| export
def epoch_batches(
    n:int,    # Examples
    batch:int,
    seed:int,
    epoch:int,
)->list:      # Lists of example numbers, one a step
    "The steps of an epoch; they depend on the seed and its number alone"
    at = np.random.default_rng([seed, epoch]).permutation(n)
    return [at[k:k+batch].tolist() for k in range(0, n, batch)]

def _key(model, examples):
    "What a run started from; weights by a few numbers of each tensor"
    some = {n: p.detach().flatten()[::max(1, p.numel()//8)].double().tolist()
            for n,p in model.named_parameters()}
    try: data = content_key(e=[content_key(e=e) for e in examples])
    except TypeError: data = len(examples)
    return dict(weights=content_key(w=some), examples=data)

def _row(step, epoch, lr, norm, sums):
    n = sums['count']
    more = {k: v/n for k,v in sums.items() if k not in ('count', 'tokens')}
    return dict(step=step, epoch=epoch, lr=lr, grad_norm=norm) | more | dict(
        count=n, tokens=sums['tokens'])

def fit(
    model,                  # Trained in place; float32
    examples:list,
    loss,                   # loss(model, examples) -> sum, count, sums to keep
    *,
    size=example_length,           # Tokens in an example
    batch:int=32,           # Examples in a step
    epochs:int=1,
    max_tokens:int=4096,    # In one pass, padding included
    lr:float=1e-4,
    warmup:int=0,           # Steps
    schedule:str='constant',
    weight_decay:float=0.,
    betas:tuple=(.9, .999),
    eps:float=1e-8,
    max_grad_norm:float=1.,          # Largest norm of a gradient; 0: any
    seed:int=0,
    out=None,               # Folder of checkpoints
    every:int=None,         # Steps between them; default: a tenth of all
    save=None,              # Called with model and step at each of them
    dropout:bool=False,
    autocast:str=None,      # 'bfloat16': passes are computed in it, weights stay as they are
    progress=None,          # Called with steps done and steps in all
)->pd.DataFrame:            # One row a step: step, epoch, lr, grad_norm, loss, count, tokens
    "Train a model"
    if not examples: raise ConfigError('There are no examples to train on.')
    plan = dict(batch=batch, epochs=epochs, lr=lr, warmup=warmup, schedule=schedule,
                weight_decay=weight_decay, betas=betas, eps=eps, clip=max_grad_norm, seed=seed,
                dropout=dropout, autocast=autocast)
    per = math.ceil(len(examples)/batch)
    every = every or max(1, per*epochs//10)
    run = _Fit(model, loss, size, plan, per, max_tokens)
    on = next(model.parameters()).device
    rng = torch.random.fork_rng(devices=[on] if on.type=='cuda' else [])
    with rng, retain_freed_memory(on.type), onednn(model):
        return run.all(examples, out, every, save, progress)


# %% [markdown]
# The steps themselves know nothing of folders.

# %%
#| export
_adamw = 'lr', 'weight_decay', 'betas', 'eps'

class _Fit:
    "One training under way"
    def __init__(self, model, loss, size, plan, per, max_tokens):
        self.model = model
        self.loss = loss
        self.size = size
        self.plan = plan
        self.per = per
        self.max_tokens = max_tokens
        self.rows = []
        self.order = None
        self.total = per*plan['epochs']
        self.rank,self.world = init_distributed()
        self.shards = FSDPModules(model=model) if fsdp_enabled() else None
        self.opt = build_optimizer(self.shards or model, *(plan[k] for k in _adamw))
        device = next(model.parameters()).device.type
        dtype = getattr(torch, plan['autocast'] or 'bfloat16')
        self.cast = lambda: torch.autocast(device, dtype, enabled=bool(plan['autocast']))

    def sums(self, some, step):
        "The gradient of a step, added up over all processes"
        torch.manual_seed(1_000_003*self.plan['seed'] + step*self.world + self.rank)
        mine = split_across_ranks(some, self.rank, self.world, self.size)
        with self.cast():
            if self.shards: return self.in_parts(mine, some)
            sums,self.max_tokens = accumulate_gradients(self.model, mine, self.loss, self.max_tokens,
                                              self.size)
        return reduce_gradients(self.model, sums, self.world)

    def in_parts(self, mine, some):
        "The same where each process has a part of the model"
        lengths = [self.size(e) for e in mine]
        groups = [[mine[i] for i in g] for g in batches(lengths, self.max_tokens,
                                                        max_padding=_slack(self.model))]
        said = self.shards.backward(lambda parts,g: self.loss(parts['model'], g), groups, some[:1])
        parts = [None]*self.world
        dist.all_gather_object(parts, _summed(said, sum(lengths)))
        return _added(parts)

    def step(self, examples, step):
        p,(epoch,k) = self.plan,divmod(step, self.per)
        if k==0 or not self.order:
            self.order = epoch_batches(len(examples), p['batch'], p['seed'], epoch)
        some = [examples[i] for i in self.order[k]]
        rate = learning_rate(step, self.total, p['lr'], p['warmup'], p['schedule'])
        sums = self.sums(some, step)
        norm = clipped_step(self.opt, sums['count'], p['clip'], rate)
        self.rows.append(_row(step, epoch, rate, norm, sums))
        return math.isfinite(self.rows[-1]['loss']+norm)

    def all(self, examples, out, every, save, progress):
        with _kept(out, self, examples) as ck:
            (self.shards or self.model).train(self.plan['dropout'])
            try: self._steps(examples, ck, every, save, progress)
            finally: self.model.eval()
        return pd.DataFrame(self.rows)

    def _steps(self, examples, ck, every, save, progress):
        for step in range(len(self.rows), self.total):
            if not self.step(examples, step): raise ModelError(_broken(step, ck))
            if progress: progress(step+1, self.total)
            if (step+1)%every and step+1<self.total: continue
            state = self.state()
            if self.rank: continue
            if ck and step+1<self.total: ck.save(step+1, state)
            if save: save(self.model, step+1)

    def state(self):
        "What a checkpoint holds, the same in parts or not"
        if self.shards: self.shards.gather()
        return dict(model=self.model.state_dict(), optimizer=full_tensors(self.opt.state_dict()),
                    rows=self.rows, random=get_random_state(), max_tokens=self.max_tokens)

    def restore(self, state):
        self.model.load_state_dict(state['model'])
        if 'optimizer' in state: self.opt.load_state_dict(state['optimizer'])
        if self.shards: self.shards.scatter(self.opt)
        set_random_state(state['random'])
        self.rows = state['rows']
        self.max_tokens = state['max_tokens']

def _broken(step, ck):
    said = f'The loss or its gradient is not finite at step {step}; lower the learning rate.'
    last = ck.steps() if ck else []
    return said+(f' The last good state is {ck.path(last[-1])}.' if last else '')

@contextmanager
def _kept(out, fit, examples):
    "Checkpoints of a run: taken up, and closed when it ends well"
    if out is None: yield; return
    plan = fit.plan | _key(fit.model, examples) | dict(loss=getattr(fit.loss, '__name__', ''))
    with open_run(out, plan, seed=plan['seed']) as run:
        ck = Checkpoints(out)
        state = ck.latest()[1]
        if state: fit.restore(state)
        elif run.finished: raise ModelError(f'{out} is finished but its weights are gone; '
                                        'move it away and train again.')
        if fit.world>1: dist.barrier()
        yield ck
        last = fit.state()
        if fit.rank or run.finished: return
        ck.keep = 1
        ck.save(fit.total, {k: v for k,v in last.items() if k!='optimizer'})
        run.finish(steps=fit.total)


# %%
history = fit(lm.model, data, answer_loss, batch=4, epochs=80, lr=.01)
history.iloc[[0, -1]].round(3)

# %% [markdown]
# The end of an answer is a token like others, so a model that has learned one answer stops
# after it.

# %%
from moral_sc.language.generation import sample
ask = '\n\nHuman: is it far?\n\nAssistant:'
said = sample(lm, [ask], max_new_tokens=20, temperature=0)[0]
test_eq(said.finish, 'eos')
said.text

# %% [markdown]
# Nothing is drawn at random in a pass unless `dropout` is asked for, and a model is handed back
# as it was lent: in evaluation mode.

# %%
test_eq(*(answer_loss(lm.model, data)[0].item() for _ in range(2)))
assert not lm.model.training

# %% [markdown]
# ## Killed, and started again
#
# Here a process is killed without warning after step 5 of 12, in the middle of an epoch, two
# steps past its last checkpoint. Another takes the run up, and arrives at the weights and the
# losses of a run that nothing happened to.

# %%
from multiprocessing import get_context
def fork(f, *args):
    job = get_context('fork').Process(target=f, args=args)
    job.start()
    return job

def die_at(k): return lambda done,total: done==k and os.kill(os.getpid(), 9)

options = dict(batch=1, epochs=3, lr=.01, warmup=2, schedule='cosine', weight_decay=.1, every=3,
               dropout=True)
def start(out, progress=None, dropout=.1, **kw):
    lm = small_lm(tok, layers=2, width=32)
    lm.model.config.attention_dropout = dropout
    for l in lm.model.model.layers: l.self_attn.attention_dropout = dropout
    return lm.model,fit(lm.model, data, answer_loss, out=out, progress=progress, **options | kw)

a,whole = start(tmp/'whole')
job = fork(start, tmp/'cut', die_at(5))
job.join()
test_eq((job.exitcode, Checkpoints(tmp/'cut').steps()), (-9, [3]))
b,again = start(tmp/'cut')
for x,y in zip(a.state_dict().values(), b.state_dict().values()): assert torch.equal(x, y)
assert whole.equals(again)
again.loc[[2, 3, 11], ['step', 'epoch', 'loss', 'lr']].round(3)


# %% [markdown]
# The averages of the optimiser and everything else in a checkpoint are the same too: here that
# of step 9, of a run killed once and of one killed twice.

# %%
def same(x, y):
    if isinstance(x, torch.Tensor): return torch.equal(x, y)
    if isinstance(x, dict): return x.keys()==y.keys() and all(same(x[k], y[k]) for k in x)
    if isinstance(x, (list, tuple)): return len(x)==len(y) and all(map(same, x, y))
    return x==y

for out,k in ((tmp/'one', 10), (tmp/'two', 5), (tmp/'two', 10)): fork(start, out, die_at(k)).join()
one,two = (Checkpoints(tmp/n).latest() for n in ('one', 'two'))
test_eq([one[0], two[0]], [9, 9])
found = {k: same(one[1][k], two[1][k]) for k in ('model', 'optimizer', 'rows', 'max_tokens')}
assert all(found.values())
found

# %% [markdown]
# Dropout was on, so it too was drawn again as it had been. A finished run is read back, and
# one of other options, data or weights is another run.

# %%
_,read = start(tmp/'whole', lambda done,total: 1/0)
assert read.equals(whole)
with expect_fail(ConfigError, contains='lr: 0.01 there, 0.02 now'): start(tmp/'whole', lr=.02)


# %% [markdown]
# A loss that is no number ends the run before it reaches the weights, and says where to go on.

# %%
def sick(model, some):
    total,count,_ = answer_loss(model, some)
    return total*(math.nan if sick.left==0 else 1),count,{}

def ill(out, n=5):
    model = small_lm(tok, layers=1, width=16).model
    sick.left = n
    def tick(done, total): sick.left -= 1
    try: fit(model, data, sick, batch=1, epochs=3, every=2, out=out, progress=tick)
    finally: assert all(p.isfinite().all() for p in model.parameters())

with expect_fail(ModelError, contains='step 5'): ill(tmp/'ill')
test_eq(Checkpoints(tmp/'ill').steps(), [2, 4])

# %% [markdown]
# ## Two processes are one
#
# A step shared by two, of 3 examples so that the parts are unequal, and of 1 in the last step
# of an epoch so that one of them has nothing to do.

# %%
import socket, sys
def work(out, rank, world, port, die):
    "What one process does"
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR='127.0.0.1',
                      MASTER_PORT=str(port))
    if die: sys.stderr = open(os.devnull, 'w') # The other's last words
    model = small_lm(tok, layers=2, width=32).model.double()
    history = fit(model, data, answer_loss, batch=3, epochs=4, lr=.01, every=2, out=out/'run',
                  progress=die_at(die))
    history.to_pickle(out/f'{rank}.pkl')
    torch.save(model.state_dict(), out/f'{rank}.pt')

def launch(name, world, die=0):
    (tmp/name).mkdir(exist_ok=True)
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    jobs = [fork(work, tmp/name, r, world, port, die) for r in range(world)]
    for j in jobs: j.join()
    if not die: test_eq([j.exitcode for j in jobs], [0]*world)

def gap(a, b):
    "Largest difference of any column, and of any weight"
    (x,u),(y,v) = ((pd.read_pickle(tmp/f'{n}.pkl'), torch.load(tmp/f'{n}.pt')) for n in (a, b))
    return float((x-y).abs().max(axis=None)),max((u[k]-v[k]).abs().max().item() for k in u)

launch('world2', 2); launch('world1', 1)
test_eq(gap('world2/0', 'world2/1'), (0, 0))
test_close(gap('world2/0', 'world1/0'), (0, 0), 1e-9)
gap('world2/0', 'world1/0')

# %% [markdown]
# Two that are killed leave a run that one takes up.

# %%
launch('mixed', 2, die=5)
test_eq(Checkpoints(tmp/'mixed/run').steps(), [2, 4])
launch('mixed', 1)
test_close(gap('mixed/0', 'world1/0'), (0, 0), 1e-9)
with expect_fail(ConfigError, contains='accelerate launch'):
    os.environ.update(RANK='0', WORLD_SIZE='2')
    try: fit(lm.model, data, answer_loss)
    finally: del os.environ['RANK'],os.environ['WORLD_SIZE']

# %% [markdown]
# In a shell, a script that calls `fit` is started as
#
# ```sh
# accelerate launch --multi_gpu --num_processes 2 train.py
# ```
#
# on GPUs and on the CPU alike. Each process holds the whole model and its optimiser. Where
# these do not fit on one device, [parts](49_fsdp.ipynb) of them may, or
# [small matrices](47_lora.ipynb).

# %%
#| hide
import shutil
shutil.rmtree(tmp)
