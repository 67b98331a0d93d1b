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
# > One loop that trains any model on any loss, the same whether it is cut into pieces, shared among processes, or killed.

# %%
#| default_exp language.training

# %%
#| export
import math
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist

from moral_sc.foundation.errors import ConfigError, ModelError, unknown
from moral_sc.foundation.runs import content_key, open_run, process
from moral_sc.language.heads import answer_logprobs
from moral_sc.language.reading import batches

# %%
#| hide
import tempfile
from fastcore.test import *
from moral_sc.language.heads import small_lm, word_tokenizer
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
# rows of like length together. Where memory runs out, the step begins again in passes half the size.

# %%
#| export
def size_of(example)->int:
    "Tokens in an example: a mapping with `ids`, or a sequence that begins with them"
    return len(example['ids'] if isinstance(example, dict) else example[0])

def accumulate(
    model,
    examples:list,
    loss,            # loss(model, examples) -> sum, count, sums to keep
    max_tokens:int,  # In one pass, padding included
    size=size_of,
)->tuple:            # {'loss', 'count', 'tokens', ...: sums over the examples}, max_tokens
    "Add the gradient of the whole sum; smaller passes where memory runs out"
    lengths = [size(e) for e in examples]
    while True:
        try: return _accumulate(model, examples, loss, lengths, max_tokens),max_tokens
        except RuntimeError as e: max_tokens = _half(e, lengths, max_tokens)
        model.zero_grad(set_to_none=True)

def _accumulate(model, examples, loss, lengths, max_tokens):
    sums = []
    for some in batches(lengths, max_tokens):
        total,count,logs = loss(model, [examples[i] for i in some])
        total.backward()
        sums.append(dict(loss=total.detach(), count=count) | logs)
    res = {k: sum(float(s[k]) for s in sums) for k in (sums[0] if sums else ())}
    return res | dict(tokens=sum(lengths))

def _half(e, lengths, max_tokens):
    if not isinstance(e, torch.OutOfMemoryError) and 'allocate memory' not in str(e): raise e
    if len(lengths)==1 or max_tokens<=max(lengths):
        raise ModelError(f'Memory runs out on one example of {max(lengths)} tokens; shorten '
                         'it, or train a smaller model.') from None
    if torch.cuda.is_available(): torch.cuda.empty_cache()
    return min(max_tokens, sum(lengths))//2


# %% [markdown]
# The gradient does not depend on how the examples are divided.

# %%
def gradient(max_tokens):
    lm.model.zero_grad()
    sums,_ = accumulate(lm.model, data, answer_loss, max_tokens)
    return torch.cat([p.grad.flatten() for p in lm.model.parameters()])/sums['count']

whole = gradient(4096)
for n in (1, 20, 40): test_close(gradient(n), whole, 1e-6)

# %% [markdown]
# ## The learning rate

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
    if schedule not in schedules: raise ConfigError(unknown('schedule', schedule, [*schedules]))
    if step<warmup: return lr*(step+1)/warmup
    return lr*schedules[schedule]((step-warmup)/max(1, total-warmup))

def update(
    optimizer,
    count:float,   # What the sum in the gradients is divided by
    clip:float=0., # Largest norm of the gradient; 0: any
    lr:float=None,
)->float:          # The norm before clipping
    "One step of the optimiser, unless the gradient is not finite"
    groups = optimizer.param_groups
    ps = [p for g in groups for p in g['params'] if p.grad is not None]
    grads = [p.grad for p in ps]
    torch._foreach_div_(grads, float(count))
    norm = torch.nn.utils.get_total_norm(grads)
    if clip: torch.nn.utils.clip_grads_with_norm_(ps, clip, norm)
    norm = norm.item()
    if lr is not None:
        for g in groups: g['lr'] = lr
    if math.isfinite(norm): optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm

def adamw(
    model, lr:float=1e-4, weight_decay:float=0., betas:tuple=(.9, .999), eps:float=1e-8,
):
    "AdamW over what can be trained"
    ps = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(ps, lr=lr, weight_decay=weight_decay, betas=betas, eps=eps,
                             fused=True)


# %% [markdown]
# ## The loop

# %%
#| export
def order(
    n:int,    # Examples
    batch:int,
    seed:int,
    epoch:int,
)->list:      # Lists of example numbers, one a step
    "The steps of an epoch; they depend on the seed and its number alone"
    at = np.random.default_rng([seed, epoch]).permutation(n)
    return [at[k:k+batch].tolist() for k in range(0, n, batch)]

def fit(
    model,                  # Trained in place
    examples:list,
    loss,                   # loss(model, examples) -> sum, count, sums to keep
    *,
    size=size_of,           # Tokens in an example
    batch:int=32,           # Examples in a step
    epochs:int=1,
    max_tokens:int=4096,    # In one pass, padding included
    lr:float=1e-4,
    warmup:int=0,           # Steps
    schedule:str='constant',
    weight_decay:float=0.,
    betas:tuple=(.9, .999),
    eps:float=1e-8,
    clip:float=1.,          # Largest norm of a gradient
    seed:int=0,
    out=None,               # Folder of checkpoints
    every:int=None,         # Steps between checkpoints
    save=None,              # Called with model and step at each checkpoint
    dropout:bool=False,
    progress=None,          # Called with steps done and steps in all
)->pd.DataFrame:            # One row a step: step, epoch, loss, grad_norm, lr, tokens, ...
    "Train a model"
    opt = adamw(model, lr, weight_decay, betas, eps)
    model.train(dropout)
    per = math.ceil(len(examples)/batch)
    total,rows = per*epochs, []
    for step in range(total):
        epoch,k = divmod(step, per)
        some = [examples[i] for i in order(len(examples), batch, seed, epoch)[k]]
        rate = learning_rate(step, total, lr, warmup, schedule)
        torch.manual_seed(hash((seed, step)))
        sums,max_tokens = accumulate(model, some, loss, max_tokens, size)
        norm = update(opt, sums['count'], clip, rate)
        rows.append(_row(step, epoch, rate, norm, sums))
        if not math.isfinite(rows[-1]['loss']+norm):
            raise ModelError(f'The loss is not finite at step {step}; lower the learning rate.')
        if progress: progress(step+1, total)
    model.eval()
    return pd.DataFrame(rows)

def _row(step, epoch, lr, norm, sums):
    n = sums['count']
    more = {k: v/n for k,v in sums.items() if k not in ('count', 'tokens')}
    return dict(step=step, epoch=epoch, lr=lr, grad_norm=norm) | more | dict(
        count=n, tokens=sums['tokens'])


# %%
history = fit(lm.model, data, answer_loss, batch=4, epochs=80, lr=.01)
history.iloc[[0, -1]].round(3)
