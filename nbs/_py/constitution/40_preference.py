# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %%

# %% [markdown]
# # Preference models
#
# > A score for answers, learned from comparisons whose labels may be probabilities.

# %%
#| default_exp constitution.preference

# %%
#| export
import json
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

import numpy as np, pandas as pd, torch
from torch import nn
from torch.nn.functional import logsigmoid

# %%
#| export
from moral_sc.constitution.prompts import tokenize_example
from moral_sc.foundation.errors import DataError
from moral_sc.foundation.statistics import Estimate, cluster_bootstrap
from moral_sc.language.reward_head import load_reward_model, save_reward_model, build_reward_model, reward_scores
from moral_sc.language.models import LM
from moral_sc.language.engine.batching import batches
from moral_sc.language.training import fit

# %%
#| hide
import tempfile
from fastcore.test import *
from moral_sc.language.reward_head import small_llama, word_tokenizer

tmp = Path(tempfile.mkdtemp())
torch.set_num_threads(1)


# %% [markdown]
# A preference model gives each answer a number, and of two answers the one with the higher number
# is taken to be better, with probability $\sigma(\Delta)$ for a difference of $\Delta$. It is
# trained on comparisons. A person says which is better; a model that labels says with which
# probability $p$, and the paper keeps that probability as the target [@bai2022constitutional]:
#
# $$L = -p\log\sigma(\Delta) - (1-p)\log\sigma(-\Delta).$$

# %%
#| export
def soft_label_loss(
    margin, # Score of a less score of b
    label,  # Probability that a is better
):          # Elementwise, nats
    "Cross-entropy of a comparison with a label that may be a probability"
    return -(label*logsigmoid(margin) + (1-label)*logsigmoid(-margin))


# %% [markdown]
# It is smallest at $\Delta=\operatorname{logit} p$, where what is left is the label's own entropy,
# and above that it is the divergence of what the model believes from what the label says. So
# labels kept within 40-60 % ask for margins of 0.405 at most.

# %%
p = torch.tensor([.6, .8, .5, .4], dtype=torch.float64)
at = torch.logit(p).requires_grad_()
left = soft_label_loss(at, p)
left.sum().backward()
test_close(at.grad, 0, 1e-12)
test_close(at[:2].tolist(), [.405465, 1.386294], 1e-6)
test_close(left[:2].tolist(), [.673012, .500402], 1e-6)
left.detach()

# %%
d = torch.linspace(-4, 4, 81, dtype=torch.float64)[:,None]
q = torch.sigmoid(d)
kl = p*(p/q).log() + (1-p)*((1-p)/(1-q)).log()
entropy = -(p*p.log() + (1-p)*(1-p).log())
test_close(soft_label_loss(d, p)-entropy, kl, 1e-9)
test_close(soft_label_loss(d, p), soft_label_loss(-d, 1-p), 1e-12)
test_close(soft_label_loss(d, torch.tensor(1.)), -logsigmoid(d), 1e-12)
assert (kl>=-1e-12).all()

# %% [markdown]
# Two comparisons of the same answers, one labelled by a person and one by a model, end at the
# logit of their weighted mean.

# %%
m = torch.zeros(1, dtype=torch.float64, requires_grad=True)
label = torch.tensor([1., .55])
weight = torch.tensor([1., 3.])
for _ in range(60):
    g, = torch.autograd.grad((weight*soft_label_loss(m, label)).sum(), m)
    m = (m-g).detach().requires_grad_()
goal = torch.logit((weight*label).sum()/weight.sum()).item()
test_close(m.item(), goal, 1e-5)
m.item()


# %% [markdown]
# ## Where the score is read
#
# On the end token behind the answer, as the papers do: there the model has read everything. Text
# of prompt and answer is written by the [one renderer](12_prompts.ipynb) that finetuning and
# reinforcement use too. Only differences are learned, so scores have no zero of their own; they
# are centred on the answers of the training set, which makes them a reward of mean zero.

# %%
#| export
@dataclass
class PreferenceModel:
    "Scores for answers: call it with prompts and answers"
    model:nn.Module           # A sequence classifier with one output
    lm:LM                     # Whose tokenizer and form of a prompt it uses
    mode:str='plain'
    zero:float=0.             # Taken off every score
    history:pd.DataFrame=None

    def _rows(self, prompts, answers):
        said = zip(prompts, answers, strict=True)
        return [tokenize_example(self.lm, p, a, self.mode)[0] for p,a in said]

    @torch.no_grad()
    def __call__(self, prompts, answers, max_tokens=8192):
        rows = self._rows(prompts, answers)
        out = np.zeros(len(rows))
        for some in batches([len(r) for r in rows], max_tokens):
            out[some] = reward_scores(self.model, [rows[i] for i in some]).cpu().numpy()
        return out-self.zero

    def centre(self, prompts, answers):
        "Make the mean score of these answers zero"
        self.zero += float(self(prompts, answers).mean())
        return self

    def margins(self, rows):
        a,b = (self([r['prompt'] for r in rows], [r[k] for r in rows]) for k in 'ab')
        return a-b

    def accuracy(self, rows)->Estimate:
        "Share of decided comparisons on whose better side it is; drawn by prompt"
        p = np.array([r['p'] for r in rows])
        if (p==.5).all(): return Estimate(np.nan) # Nobody said which is better
        right = (1+np.sign(self.margins(rows))*np.sign(p-.5))/2
        return cluster_bootstrap(right[p!=.5], [r['prompt'] for r,k in zip(rows, p!=.5) if k])

    def save(self, folder):
        save_reward_model(self.model, self.lm.tokenizer, folder)
        (Path(folder)/'preference.json').write_text(json.dumps(dict(zero=self.zero,
                                                                    mode=self.mode)))
        return Path(folder)

    @classmethod
    def load(cls, folder, device='cpu'):
        model,tok = load_reward_model(folder, device)
        told = Path(folder)/'preference.json'
        said = json.loads(told.read_text()) if told.is_file() else {}
        return cls(model, LM(model, tok, str(folder)), **said)


# %%
#| export
def _checked(rows, test):
    if not rows: raise DataError('There are no comparisons to learn from.')
    for i,r in enumerate([*rows, *(test or [])], 1):
        p = r.get('p')
        if not isinstance(p, Real) or not 0<=p<=1:
            raise DataError(f'Comparison {i} has the label {p!r}; a label lies between 0 and 1.')
    if all(r['a']==r['b'] for r in rows):
        raise DataError('Every comparison is between two equal answers, from which nothing can be '
                        'learned; sample at a higher temperature.')
    leak = {r['prompt'] for r in rows}&{r['prompt'] for r in test or []}
    if leak:
        raise DataError(f'{len(leak)} prompts are in training and in test, the first is '
                        f'{min(leak)[:60]!r}; part them with `prompts.split`.')

def _loss(model, examples):
    "Sum of the soft-label loss; examples hold the ids of both answers"
    n = len(examples)
    s = reward_scores(model, [e['both'][k] for k in (0, 1) for e in examples])
    label = torch.tensor([e['p'] for e in examples], device=s.device, dtype=s.dtype)
    weight = torch.tensor([e['weight'] for e in examples], device=s.device, dtype=s.dtype)
    d = s[:n]-s[n:]
    right = ((d>0)==(label>.5)).float().sum().item()
    return (weight*soft_label_loss(d, label)).sum(), float(weight.sum()), dict(right=right)

def _example(pm, r, hard):
    both = pm._rows([r['prompt']]*2, [r['a'], r['b']])
    p = float(r['p']>.5)+.5*(r['p']==.5) if hard else float(r['p'])
    return dict(ids=[*both[0], *both[1]], both=both, p=p, weight=float(r.get('weight', 1.)))

def fit_preference(
    lm:LM,             # Whose trunk the model begins as
    rows:list,         # Comparisons: prompt, a, b, p, perhaps weight
    test:list=None,    # Comparisons on other prompts, measured at the end
    *,
    hard:bool=False,   # Round labels to 0 and 1
    mode:str='plain', seed:int=0, epochs:int=1, batch:int=32, lr:float=1e-4,
    **kw,              # Of `fit`: out, schedule, warmup, max_tokens ...
)->PreferenceModel:
    "Learn a score from comparisons"
    _checked(rows, test)
    pm = PreferenceModel(build_reward_model(lm, seed), lm, mode)
    examples = [_example(pm, r, hard) for r in rows]
    pm.history = fit(pm.model, examples, _loss, seed=seed, epochs=epochs, batch=batch, lr=lr,
                     **kw)
    pm.centre([r['prompt'] for r in rows]*2, [r[k] for k in 'ab' for r in rows])
    if test: pm.history.attrs['test'] = pm.accuracy(test)
    return pm


# %% [markdown]
# Where the better answer is the one with more good words, a model of random weights learns it.

# %%
words = 'is it far late cold dark soon over ? yes no good fine bad dull .'.split()
lm = small_llama(word_tokenizer(words), 2, 32, 2)
rng = np.random.default_rng(0)
def pair(i):
    a,b = (' '.join(rng.choice(['good', 'fine', 'bad', 'dull'], 4)) for _ in 'ab')
    asked = f'is it {" ".join(rng.choice(words[2:8], 6))} ?'
    odds = sum((w in 'good fine')-(w in 'bad dull') for w in a.split())
    odds -= sum((w in 'good fine')-(w in 'bad dull') for w in b.split())
    return dict(id=i, prompt=asked, a=a, b=b, p=float(1/(1+np.exp(-odds/2))))

rows = [pair(i) for i in range(1200)]
seen = {r['prompt'] for r in rows[:1000]}
train = rows[:1000]
test = [r for r in rows[1000:] if r['prompt'] not in seen]
pm = fit_preference(lm, train, test, lr=3e-3)
pm.history.attrs['test'], np.corrcoef(pm.margins(test),
                                      [np.log(r['p']/(1-r['p'])) for r in test])[0,1]

# %%
assert pm.history.attrs['test'].low>.85
ask = [r['prompt'] for r in train]
said = [r['a'] for r in train]
test_close(np.mean([pm(ask, said), pm(ask, [r['b'] for r in train])]), 0, 1e-6)

# %% [markdown]
# A score is the same alone and among others, in memory and from its folder.

# %%
few = pm(ask[:9], said[:9])
test_close(few, [pm([p], [a])[0] for p,a in zip(ask[:9], said[:9])], 1e-5)
test_close(PreferenceModel.load(pm.save(tmp/'pm'))(ask[:9], said[:9]), few, 1e-6)
few.round(2)

# %% [markdown]
# Prompts in both sets and labels that are none are refused.

# %%
with expect_fail(DataError, contains='in training and in test'):
    fit_preference(lm, train, train[:3])
with expect_fail(DataError, contains='has the label 1.5'):
    fit_preference(lm, [train[0]|dict(p=1.5)])
with expect_fail(DataError, contains='has the label nan'):
    fit_preference(lm, [train[0]|dict(p=np.nan)])
with expect_fail(DataError, contains='no comparisons'): fit_preference(lm, [])
with expect_fail(DataError, contains='two equal answers'):
    fit_preference(lm, [r|dict(b=r['a']) for r in train[:9]])

# %% [markdown]
# Where no test comparison is decided, there is no accuracy, and that is what is said. Labels may
# be numpy's numbers. Adding a constant to every score changes no margin.

# %%
even = [r|dict(p=np.float32(.5)) for r in test]
some = fit_preference(lm, train[:32], even)
assert np.isnan(some.history.attrs['test'].value)
before = some.margins(test[:9])
some.zero = some.zero+7.
test_close(some.margins(test[:9]), before, 1e-9)
