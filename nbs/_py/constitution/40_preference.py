# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Preference models
#
# > A preference model learns a reward from comparisons whose labels may be probabilities.

# %%
#| default_exp constitution.preference

# %%
#| export
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np, pandas as pd, torch
from fastcore.meta import delegates
from torch import nn
from torch.nn.functional import logsigmoid

# %%
#| export
from moral_sc.constitution.prompts import load_pairs, tokenize_examples
from moral_sc.foundation.arguments import checked
from moral_sc.foundation.errors import ConfigError, DataError, ModelError, unknown_name_message
from moral_sc.foundation.manifest import Manifest
from moral_sc.foundation.runs import process_rank
from moral_sc.foundation.statistics import Estimate, cluster_bootstrap
from moral_sc.foundation.tables import number_field
from moral_sc.language.chat import modes
from moral_sc.language.loading import load
from moral_sc.language.reward_head import (
    build_reward_model, load_reward_model, reward_scores, save_reward_model)
from moral_sc.language.models import LM, weights_digest
from moral_sc.language.engine import inference
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
# A preference model gives each answer a score. Of two answers whose scores differ by $\Delta$, the
# first is better with probability $\sigma(\Delta)$. The model is trained on comparisons. A human
# label is 0 or 1; a label by a language model is a probability $p$, which the paper keeps as the
# target [@bai2022constitutional]:
#
# $$L = -p\log\sigma(\Delta) - (1-p)\log\sigma(-\Delta).$$

# %%
#| export
def soft_label_loss(
    margin, # Score of a less score of b
    label,  # Probability that a is better
):          # Elementwise, nats
    "Return the cross-entropy of comparisons with labels between 0 and 1"
    return -(label*logsigmoid(margin) + (1-label)*logsigmoid(-margin))


# %% [markdown]
# The loss is smallest at $\Delta=\operatorname{logit} p$, where it equals the entropy of the label.
# The excess over that is the KL divergence of label and prediction. Labels clamped to 40-60 %
# therefore have optimal margins of 0.405 at most.

# %%
p = torch.tensor([.6, .8, .5, .4], dtype=torch.float64)
at = torch.logit(p).requires_grad_()
minimum = soft_label_loss(at, p)
minimum.sum().backward()
test_close(at.grad, 0, 1e-12)
test_close(at[:2].tolist(), [.405465, 1.386294], 1e-6)
test_close(minimum[:2].tolist(), [.673012, .500402], 1e-6)
minimum.detach()

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
# For two comparisons of the same answers, one with a human label and one with a model's, the
# optimal margin is the logit of the weighted mean label.

# %%
m = torch.zeros(1, dtype=torch.float64, requires_grad=True)
label = torch.tensor([1., .55])
weight = torch.tensor([1., 3.])
for _ in range(60):
    g, = torch.autograd.grad((weight*soft_label_loss(m, label)).sum(), m)
    m = (m-g).detach().requires_grad_()
optimum = torch.logit((weight*label).sum()/weight.sum()).item()
test_close(m.item(), optimum, 1e-5)
m.item()


# %% [markdown]
# ## The model
#
# As in the papers, the score is computed at the end token after the answer, where the model has
# processed the whole text. Prompt and answer are rendered by the
# [same function](12_prompts.ipynb) as in finetuning and RL. Comparisons determine scores up to a
# constant; we choose it so that the mean score of the training answers is zero.

# %%
#| export
@dataclass
class PreferenceModel:
    "A reward function: call it with prompts and answers"
    model:nn.Module           # A sequence classifier with one output
    lm:LM                     # The source of tokenizer and prompt format
    mode:str='plain'          # Format of prompts
    offset:float=0.           # Subtracted from every score
    history:pd.DataFrame=None # Of training

    def encode(self, prompts, answers):
        "Return the token ids of prompts with their answers"
        return [ids for ids,_ in tokenize_examples(self.lm, prompts, answers, self.mode)]

    def __call__(self, prompts, answers, max_tokens=8192):
        "Return the score of each answer; of one answer if prompt and answer are strings"
        if isinstance(prompts, str) and isinstance(answers, str):
            return float(self([prompts], [answers])[0])
        if isinstance(prompts, str) or isinstance(answers, str) or prompts is None \
                or answers is None or len(prompts)!=len(answers):
            raise DataError('A preference model takes a prompt and an answer, or lists of equally '
                            'many prompts and answers.')
        if not all(isinstance(t, str) for t in [*prompts, *answers]):
            raise DataError('A preference model takes texts; one of these prompts or answers is '
                            'none.')
        return self._score(self.encode(prompts, answers), max_tokens)

    @torch.no_grad()
    def _score(self, rows, max_tokens=8192):
        "Return the scores of token ids"
        out = np.zeros(len(rows))
        with inference(self.model, tokens=sum(map(len, rows))):
            for group in batches([len(r) for r in rows], max_tokens):
                out[group] = reward_scores(self.model, [rows[i] for i in group]).cpu().numpy()
        if not np.isfinite(out).all():
            raise ModelError('The scores of the preference model are not finite; train it with a '
                             'lower learning rate.')
        return out-self.offset

    @property
    def identity(self):
        "Everything that determines its scores"
        return self.lm.identity|dict(weights=weights_digest(self.model), offset=self.offset,
                                     mode=self.mode)

    def margins(self, rows):
        "Return the score differences of comparisons"
        a,b = (self([r['prompt'] for r in rows], [r[k] for r in rows]) for k in 'ab')
        return a-b

    def accuracy(self, rows)->Estimate:
        "Return the accuracy on comparisons with a label other than 0.5, clustered by prompt"
        p = np.array([r['p'] for r in rows])
        if (p==.5).all(): return Estimate(np.nan)
        correct = (1+np.sign(self.margins(rows))*np.sign(p-.5))/2
        decided = p!=.5
        return cluster_bootstrap(correct[decided], [r['prompt'] for r,d in zip(rows, decided) if d])

    def save(self, folder):
        "Save the model, with offset and prompt format in preference.json"
        save_reward_model(self.model, self.lm.tokenizer, folder, self.offset)
        settings = json.dumps(dict(zero=self.offset, mode=self.mode))
        (Path(folder)/'preference.json').write_text(settings)
        return Path(folder)

    @classmethod
    def load(cls, folder, device='cpu'):
        "Load a saved preference model, or any sequence classifier with one output"
        model,tokenizer = load_reward_model(folder, device)
        settings = _read_settings(Path(folder)/'preference.json')
        return cls(model, LM(model, tokenizer, str(folder)), settings.get('mode', 'plain'),
                   settings.get('zero', 0.))

def _read_settings(path):
    "Read offset and prompt format; a folder of others has none"
    if not path.is_file(): return {}
    try:
        settings = json.loads(path.read_text())
        if math.isfinite(settings.get('zero', 0.)) and settings.get('mode', 'plain') in modes:
            return settings
    except (ValueError, AttributeError, TypeError, RecursionError): pass
    raise DataError(f'{path} is damaged; save the preference model again.')


# %% [markdown]
# ## Training

# %%
#| export
def load_labels(
    source,      # A list of rows, a DataFrame, or a file, as in `load_pairs`
    name='rows', # In error messages
)->list:         # Rows of prompt, a, b, p and what else they have
    "Load comparisons with their labels"
    where = str(source) if isinstance(source, (str, Path)) else name
    res = []
    for i,r in enumerate(load_pairs(source, name), 1):
        location = f'{where}: row {i}'
        if r.get('p') is None:
            raise DataError(f'{location} has no label; add `p`, the probability that `a` is '
                            'better, or name the answers `chosen` and `rejected`.')
        numbers = dict(p=number_field(r, 'p', location, 0, 1))
        if 'weight' in r: numbers['weight'] = number_field(r, 'weight', location, 0, math.inf)
        res.append(r|numbers)
    return res

def _check_comparisons(rows, test):
    if all(r['a']==r['b'] for r in rows):
        raise DataError('Every comparison is between two equal answers, from which nothing can be '
                        'learned; sample at a higher temperature.')
    shared = {r['prompt'] for r in rows}&{r['prompt'] for r in test or []}
    if shared:
        raise DataError(f'{len(shared)} prompts are in training and in test, the first is '
                        f'{min(shared)[:60]!r}; divide the prompts with `split_by_prompt`.')

def _preference_loss(model, examples):
    "Return the summed soft-label loss of examples with the ids of both answers"
    n = len(examples)
    s = reward_scores(model, [e['pair'][k] for k in (0, 1) for e in examples])
    label = torch.tensor([e['p'] for e in examples], device=s.device, dtype=s.dtype)
    weight = torch.tensor([e['weight'] for e in examples], device=s.device, dtype=s.dtype)
    margin = s[:n]-s[n:]
    correct = ((margin>0)==(label>.5)).float().sum().item()
    loss = (weight*soft_label_loss(margin, label)).sum()
    return loss, float(weight.sum()), dict(accuracy=correct)

def _encode_comparisons(pm, rows, hard):
    "Return an example for each comparison, with the ids of both answers"
    a,b = (pm.encode([r['prompt'] for r in rows], [r[k] for r in rows]) for k in 'ab')
    label = lambda p: float(p>.5)+.5*(p==.5) if hard else float(p)
    return [dict(ids=[*x, *y], pair=[x, y], p=label(r['p']), weight=float(r.get('weight', 1.)))
            for r,x,y in zip(rows, a, b)]

@checked
@delegates(fit)
def fit_preference(
    lm,                # Its backbone initialises the preference model; anything that `load` takes
    rows,              # Rows of prompt, a, b, p (or chosen, rejected), optionally weight; or a file
    test=None,         # Comparisons on other prompts, for the accuracy after training
    *,
    hard:bool=False,   # Round labels to 0 and 1
    mode:str='plain', seed:int=0, epochs:int=1, batch:int=32, lr:float=1e-4,
    out=None,          # Folder of a run that can be resumed; the model is saved in out/model
    **kwargs           # Of `fit`: schedule, warmup, max_tokens, progress ...
)->PreferenceModel:
    "Train a preference model on comparisons"
    rows = load_labels(rows, 'rows')
    test = None if test is None else load_labels(test, 'test')
    _check_comparisons(rows, test)
    if mode not in modes: raise ConfigError(unknown_name_message('mode', mode, list(modes)))
    lm = load(lm, 'float32')
    pm = PreferenceModel(build_reward_model(lm, seed), lm, mode)
    examples = _encode_comparisons(pm, rows, hard)
    pm.history = fit(pm.model, examples, _preference_loss, seed=seed, epochs=epochs, batch=batch,
                     lr=lr, out=out, **kwargs)
    pm.offset += float(pm._score([e['pair'][k] for k in (0, 1) for e in examples]).mean())
    if test: pm.history.attrs['test'] = pm.accuracy(test)
    if out and process_rank()[0]==0: Manifest(out).build(Path(out)/'model', pm.save)
    return pm


# %% [markdown]
# A model with random weights learns comparisons in which the better answer has more good words.

# %%
words = 'is it far late cold dark soon over ? yes no good fine bad dull .'.split()
lm = small_llama(word_tokenizer(words), 2, 32, 2)
rng = np.random.default_rng(0)
def pair(i):
    a,b = (' '.join(rng.choice(['good', 'fine', 'bad', 'dull'], 4)) for _ in 'ab')
    prompt = f'is it {" ".join(rng.choice(words[2:8], 6))} ?'
    odds = sum((w in 'good fine')-(w in 'bad dull') for w in a.split())
    odds -= sum((w in 'good fine')-(w in 'bad dull') for w in b.split())
    return dict(id=i, prompt=prompt, a=a, b=b, p=float(1/(1+np.exp(-odds/2))))

rows = [pair(i) for i in range(1200)]
train = rows[:1000]
train_prompts = {r['prompt'] for r in train}
test = [r for r in rows[1000:] if r['prompt'] not in train_prompts]
pm = fit_preference(lm, train, test, lr=3e-3)
pm.history.attrs['test'], np.corrcoef(pm.margins(test),
                                      [np.log(r['p']/(1-r['p'])) for r in test])[0,1]

# %%
assert pm.history.attrs['test'].low>.85
prompts = [r['prompt'] for r in train]
answers = [r['a'] for r in train]
test_close(np.mean([pm(prompts, answers), pm(prompts, [r['b'] for r in train])]), 0, 1e-6)

# %% [markdown]
# A score does not depend on the other rows of its batch, and is the same after saving and loading.

# %%
few = pm(prompts[:9], answers[:9])
test_close(few, [pm([p], [a])[0] for p,a in zip(prompts[:9], answers[:9])], 1e-5)
test_close(PreferenceModel.load(pm.save(tmp/'pm'))(prompts[:9], answers[:9]), few, 1e-6)
few.round(2)

# %% [markdown]
# Bad labels, and prompts that are in both sets, are refused.

# %%
with expect_fail(DataError, contains='in training and in test'):
    fit_preference(lm, train, train[:3])
with expect_fail(DataError, contains="rows: row 1 has 1.5 as 'p', not a number from 0 to 1"):
    fit_preference(lm, [train[0]|dict(p=1.5)])
with expect_fail(DataError, contains="row 1 has nan as 'p', not a number"):
    fit_preference('none', [train[0]|dict(p=np.nan)])
with expect_fail(DataError, contains='row 1 has no label; add `p`'):
    fit_preference('none', [{k: train[0][k] for k in ('prompt', 'a', 'b')}])
with expect_fail(DataError, contains='rows has no rows'): fit_preference('none', [])
mistakes = [(dict(learning_rate=1), "no argument 'learning_rate'; did you mean 'lr'?"),
            (dict(num_train_epochs=1), "did you mean 'epochs'?"),
            (dict(hard='yes'), "hard is 'yes'"),
            (dict(mode='chatty'), "mean 'chat'?"), ({}, "no model 'none'"),
            (dict(per_device_train_batch_size=8), "did you mean 'batch'?")]
for bad,message in mistakes:
    with expect_fail(ConfigError, contains=message): fit_preference('none', train[:4], **bad)
for given in ((['q'], ['a', 'b']), (None, None)):
    with expect_fail(DataError, contains='equally many'): pm(*given)
with expect_fail(DataError, contains='takes texts'): pm(['q'], [1])
with expect_fail(ModelError, contains='lower learning rate'):
    fit_preference(lm, train[:4], lr=1e12, epochs=1)

# %% [markdown]
# One pair has one score. Rows of `chosen` and `rejected` answers are comparisons, too, and a file serves as
# well as a list. With `out`, the model is saved in `out/model`.

# %%
test_eq(pm('is it far ?', 'good'), pm(['is it far ?'], ['good'])[0])
chosen = [dict(prompt=r['prompt'], chosen=r['a'], rejected=r['b']) for r in train[:40]]
pd.DataFrame(chosen).to_csv(tmp/'mine.csv', index=False)
mine = fit_preference(lm, chosen, out=tmp/'chosen')
again = fit_preference((lm.model, lm.tokenizer), tmp/'mine.csv', out=tmp/'chosen')
loaded = PreferenceModel.load(tmp/'chosen'/'model')
test_eq(mine.history.loss.tolist(), again.history.loss.tolist())
test_close(loaded(['is it far ?'], ['good']), mine(['is it far ?'], ['good']))
(tmp/'chosen'/'model'/'preference.json').write_text('[1]')
with expect_fail(DataError, contains='preference.json is damaged'):
    PreferenceModel.load(tmp/'chosen'/'model')
with expect_fail(DataError, contains='two equal answers'):
    fit_preference(lm, [r|dict(b=r['a']) for r in train[:9]])

# %% [markdown]
# If all test labels are 0.5, the accuracy is not a number. Labels may be numpy numbers. Adding a
# constant to every score changes no margin.

# %%
undecided = [r|dict(p=np.float32(.5)) for r in test]
pm = fit_preference(lm, train[:32], undecided)
assert np.isnan(pm.history.attrs['test'].value)
before = pm.margins(test[:9])
pm.offset += 7.
test_close(pm.margins(test[:9]), before, 1e-9)
