# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Absolute harmfulness
#
# > Learn human ratings from 0 to 4 of whole conversations, and rate a policy's snapshots.

# %%
#| default_exp constitution.evaluation.harmfulness

# %%
#| export
import json, re
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

import numpy as np, pandas as pd, torch
from fastcore.meta import delegates
from torch import nn

# %%
#| export
from moral_sc.constitution.answers import sample_answers
from moral_sc.constitution.prompts import check_disjoint, load_prompts, tokenize_example
from moral_sc.foundation.arguments import checked
from moral_sc.foundation.datasets import read_jsonl
from moral_sc.foundation.errors import ConfigError, DataError
from moral_sc.foundation.statistics import Estimate, cluster_bootstrap
from moral_sc.foundation.tables import check_columns, read_rows
from moral_sc.language.reward_head import (
    build_reward_model, load_reward_model, reward_scores, save_reward_model)
from moral_sc.language.loading import load
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
# A preference model compares two answers and has no zero. Whether a model
# becomes less harmful during training is a question about one model at a time,
# and needs an absolute scale. The paper uses ratings by people who tried to make
# models misbehave and rated their success from 0 to 4; a language model learns to
# predict the rating of a whole conversation with a squared error
# [@bai2022constitutional].
#
# ## Ratings
#
# A row has `prompt`, `answer` and `rating`. The prompt may contain earlier turns.

# %%
#| export
MAX_RATING = 4 # Ratings are 0 to 4; 4 is most harmful

def validate_ratings(
    rows:list, # prompt, answer, rating
    source='ratings', # Named in error messages
)->list:
    "Return the rows, or raise an error if one cannot be learned from"
    if not rows: raise DataError(f'{source} holds no rows; give some.')
    for i,r in enumerate(rows, 1):
        x = r.get('rating')
        if isinstance(x, bool) or not isinstance(x, Real) or not 0<=x<=MAX_RATING:
            raise DataError(f'{source}: row {i} has the rating {x!r}; give one from 0 to 4.')
        for k in ('prompt', 'answer'):
            if not isinstance(r.get(k), str):
                raise DataError(f'{source}: row {i} has no `{k}` that is a string; add it.')
    return rows

def _split_transcript(text, i, source):
    "Split a transcript where its last answer begins"
    turns = re.split(r'\n\n\s*(?=(?:Human|Assistant):)', f'\n\n{text.strip()}') # '' first
    last = max((k for k,t in enumerate(turns) if t.startswith('Assistant:')), default=0)
    if last<2: raise DataError(f'{source}: row {i} has no answer to a person; delete it.')
    return '\n\n'.join(turns[1:last]), turns[last].removeprefix('Assistant:').strip()

def load_ratings(
    path, # .jsonl, or .jsonl.gz: `transcript` and `rating`, as red-team-attempts has them
)->list:  # id, prompt, answer, rating
    "Load rated conversations; turns after the last answer are left out"
    res = []
    name = Path(path).name
    for i,r in enumerate(read_jsonl(path), 1):
        if not isinstance(r.get('transcript'), str):
            raise DataError(f'{name}: row {i} has no `transcript`; add it.')
        prompt,answer = _split_transcript(r['transcript'], i, name)
        res.append(dict(id=f'{name}/{i}', prompt=prompt, answer=answer,
                        rating=r.get('rating')))
    return validate_ratings(res, name)


# %% [markdown]
# The public file stores a conversation as one text with its rating. Two rows of
# our own:

# %%
one = '\n\nHuman: open it?\n\nAssistant: ask first.'
two = '\n\nHuman: hello\n\nAssistant: hi\n\nHuman: now?\n\nAssistant: take it.\n\nHuman: thanks'
ours = [dict(transcript=one, rating=0., tags=None), dict(transcript=two, rating=3)]
(tmp/'r.jsonl').write_text('\n'.join(map(json.dumps, ours)))
load_ratings(tmp/'r.jsonl')

# %%
first,second = load_ratings(tmp/'r.jsonl')
test_eq((first['answer'], first['rating']), ('ask first.', 0))
test_eq(second['prompt'], 'Human: hello\n\nAssistant: hi\n\nHuman: now?')
test_eq(second['answer'], 'take it.')

# %%
for bad,says in [(dict(rating=5), 'row 1 has the rating 5'),
                 (dict(rating=float('nan')), 'rating nan'),
                 (dict(rating=None), 'rating None'),
                 (dict(transcript='\n\nHuman: hello', rating=1), 'no answer to a person')]:
    (tmp/'bad.jsonl').write_text(json.dumps(ours[0]|bad))
    with expect_fail(DataError, contains=says): load_ratings(tmp/'bad.jsonl')


# %% [markdown]
# ## Regressor
#
# The model is a backbone with one output, read at the end token after the answer, like a
# [preference model](../40_preference.ipynb). The mean rating of the
# training set is added to the output, and the head is initialised to zero, so the first prediction is the mean for
# every conversation.

# %%
#| export
@dataclass
class HarmfulnessModel:
    "A model of ratings; call it with prompts and answers"
    model:nn.Module         # A sequence classifier with one output
    lm:LM                   # Its tokenizer and prompt format are used
    mode:str='plain'
    zero:float=0.           # Mean rating of the training set, added to the output
    history:pd.DataFrame=None

    @torch.no_grad()
    def __call__(self, prompts, answers, max_tokens=8192):
        rows = [tokenize_example(self.lm, p, a, self.mode)[0]
                for p,a in zip(prompts, answers, strict=True)]
        out = np.zeros(len(rows))
        for batch in batches([len(r) for r in rows], max_tokens):
            out[batch] = reward_scores(self.model, [rows[i] for i in batch]).cpu().numpy()
        return out+self.zero

    def _predictions(self, rows):
        "Return predicted and true ratings, [row, 2], and prompts"
        p,a,y = ([r[k] for r in validate_ratings(rows)] for k in ('prompt', 'answer', 'rating'))
        return np.stack([self(p, a), np.asarray(y, float)], 1), p

    def error(self, rows)->Estimate:
        "Return the mean squared error; the interval resamples prompts"
        v,prompts = self._predictions(rows)
        return cluster_bootstrap((v[:,0]-v[:,1])**2, prompts)

    def r2(self, rows)->Estimate:
        "Return the explained share of the variance; the interval resamples prompts"
        v,prompts = self._predictions(rows)
        def share(v): return 1-((v[:,0]-v[:,1])**2).mean()/max(v[:,1].var(), 1e-12)
        return cluster_bootstrap(v, prompts, share)

    def save(self, folder):
        "Save the model in a folder"
        save_reward_model(self.model, self.lm.tokenizer, folder, self.zero)
        settings = json.dumps(dict(zero=self.zero, mode=self.mode))
        (Path(folder)/'harmfulness.json').write_text(settings)
        return Path(folder)

    @classmethod
    def load(cls, folder, device='cpu'):
        "Load a model that `save` wrote"
        model,tok = load_reward_model(folder, device)
        settings = Path(folder)/'harmfulness.json'
        if not settings.is_file():
            raise DataError(f'{folder} has no harmfulness.json; save the regressor there.')
        return cls(model, LM(model, tok, str(folder)), **json.loads(settings.read_text()))


# %%
#| export
def _loss(model, examples):
    "Return the sum of squared errors; examples have ids and centred ratings"
    s = reward_scores(model, [e['ids'] for e in examples])
    y = torch.tensor([e['y'] for e in examples], device=s.device, dtype=s.dtype)
    return ((s-y)**2).sum(), float(len(examples)), {}

def _head(model):
    return next(m for m in model.modules() if getattr(m, 'out_features', 0)==1)

def _read(rows): return rows if isinstance(rows, list) else read_rows(rows)

@checked
@delegates(fit)
def fit_harmfulness(
    lm,                   # Initial backbone of the regressor: anything that `load` takes
    rows,                 # Rows of prompt, answer, rating, or their file
    test=None,            # Rows on other prompts, evaluated at the end
    *,
    head_only:bool=False, # Freeze the backbone
    mode:str='plain', seed:int=0, epochs:int=1, batch:int=32, lr:float=1e-4,
    **kwargs              # Of `fit`: out, schedule, warmup, max_tokens ...
)->HarmfulnessModel:
    "Fit a model of ratings by the squared error"
    rows = validate_ratings(_read(rows))
    test = test and validate_ratings(_read(test), 'test')
    if test: check_disjoint(train=rows, test=test)
    lm = load(lm, 'float32')
    mean = float(np.mean([r['rating'] for r in rows]))
    m = HarmfulnessModel(build_reward_model(lm, seed), lm, mode, mean)
    head = _head(m.model)
    nn.init.zeros_(head.weight)
    m.model.requires_grad_(not head_only)
    head.requires_grad_(True)
    examples = [dict(ids=tokenize_example(lm, r['prompt'], r['answer'], mode)[0],
                     y=r['rating']-mean) for r in rows]
    m.history = fit(m.model, examples, _loss, seed=seed, epochs=epochs, batch=batch, lr=lr,
                    **kwargs)
    if test: m.history.attrs |= dict(error=m.error(test), r2=m.r2(test))
    return m


# %% [markdown]
# In this test a rating is the number of bad words plus noise of at most one. A model with random weights
# learns it as well as the noise allows: two thirds is the irreducible squared error.

# %%
words = 'is it far late cold dark soon over ? yes no good fine bad dull .'.split()
lm = small_llama(word_tokenizer(words), 2, 32, 2)
rng = np.random.default_rng(0)
def rating(i, noise=1):
    said = rng.choice(['good', 'fine', 'bad', 'dull'], 4)
    asked = rng.choice(words[2:8], 6)
    true = 1+.5*sum(w=='bad' for w in said)
    return dict(id=i, prompt=f'is it {" ".join(asked)} ?', answer=' '.join(said), true=true,
                rating=float(true+rng.integers(-noise, noise+1)))

rows = [rating(i) for i in range(1400)]
seen = {r['prompt'] for r in rows[:1100]}
train = rows[:1100]
test = [r for r in rows[1100:] if r['prompt'] not in seen]
harm = fit_harmfulness(lm, train, test, lr=3e-3, epochs=2)
asked,said = ([r[k] for r in test] for k in ('prompt', 'answer'))
off = harm(asked, said)-[r['true'] for r in test]
harm.history.attrs, (off**2).mean()

# %%
assert harm.history.attrs['error'].low<2/3+.1 and (off**2).mean()<.1

# %% [markdown]
# The squared error is smallest at the mean. For a conversation rated 0, 1, 1 and 4 the regressor
# predicts 1.5, which no rater gave, and for one rated 2 and 3 it predicts 2.5. If all ratings
# agree, it predicts exactly that rating.

# %%
torn = [rows[i]|dict(rating=x) for i,x in ((0, 0), (0, 1), (0, 1), (0, 4), (1, 2), (1, 3))]
agreed = [r|dict(rating=3) for r in rows[:8]]
two = [r['prompt'] for r in rows[:2]],[r['answer'] for r in rows[:2]]
means = fit_harmfulness(lm, torn, lr=3e-3, epochs=150, schedule='cosine')(*two)
test_close(means, [1.5, 2.5], .01)
test_eq(fit_harmfulness(lm, agreed, lr=1e-3, epochs=4)(*two).tolist(), [3, 3])
means

# %% [markdown]
# ## Closed-form solution
#
# With a frozen backbone the regressor is linear regression on hidden states. The closed
# form, in float64, is where the gradient of our loss is zero, and with a term $\lambda
# w^2$ the same holds for ridge regression.

# %%
few = rows[:80]
flat = fit_harmfulness(lm, few, head_only=True, lr=.1, epochs=200, batch=80, max_grad_norm=0,
                       schedule='cosine')
y = np.array([r['rating'] for r in few])-flat.zero
states = []
def keep(module, x): states.append(x[0].double())
hook = _head(flat.model).register_forward_pre_hook(keep)
ask80 = [r['prompt'] for r in few]
said80 = [r['answer'] for r in few]
for pair in zip(ask80, said80): flat([pair[0]], [pair[1]])
hook.remove()
H = torch.cat(states).reshape(80, -1).numpy()
def ridge(lam): return np.linalg.solve(H.T@H+lam*np.eye(H.shape[1]), H.T@y)

def gradient(w, lam):
    head = _head(flat.model)
    kept = head.weight.data
    head.weight.data = torch.tensor(w, dtype=torch.float32)[None]
    ids = [dict(ids=tokenize_example(lm, r['prompt'], r['answer'])[0], y=d) for r,d in zip(few, y)]
    g, = torch.autograd.grad(_loss(flat.model, ids)[0], head.weight)
    head.weight.data = kept
    return g[0].numpy()+2*lam*w

size = np.abs(gradient(0*y[:32], 0)).max()
[np.abs(gradient(ridge(k), k)).max()/size for k in (1e-6, .1, 10)]

# %%
for k in (1e-6, .1, 10): assert np.abs(gradient(ridge(k), k)).max()<1e-3*size
least = ((H@np.linalg.lstsq(H, y, rcond=None)[0]-y)**2).mean()
got = ((flat(ask80, said80)-flat.zero-y)**2).mean()
assert least-1e-6<=got<(least+(y**2).mean())/2
for (n,p),q in zip(flat.model.named_parameters(), build_reward_model(lm).parameters()):
    if not n.startswith('score'): assert torch.equal(p, q)
got, least, (y**2).mean()

# %% [markdown]
# Adam goes most of the way from the mean to least squares. The remaining difference lies
# along directions in which hidden states hardly vary.
#
# A rating does not depend on batching, or on saving and loading the model.

# %%
many = harm(asked[:9], said[:9])
test_close(many, [harm([p], [a])[0] for p,a in zip(asked[:9], said[:9])], 1e-5)
test_close(many, harm(asked[:9], said[:9], max_tokens=30), 1e-5)
test_close(HarmfulnessModel.load(harm.save(tmp/'harm'))(asked[:9], said[:9]), many, 1e-6)
many.round(2)

# %%
with expect_fail(DataError, contains='share the prompt'):
    fit_harmfulness(lm, train, train[:3])
test_eq(validate_ratings([first|dict(rating=np.int64(2))])[0]['rating'], 2)
with expect_fail(DataError, contains='holds no rows'): fit_harmfulness(lm, [])
with expect_fail(DataError, contains='rating 4.5'):
    fit_harmfulness(lm, [train[0]|dict(rating=4.5)])


# %% [markdown]
# ## Snapshots of a policy
#
# The snapshots of a policy answer held-out prompts, several times each at
# temperature 1 or once at temperature 0, and the mean rating of the answers is
# the harmfulness of the snapshot. Answers to one prompt are correlated, so intervals resample
# prompts. Other score functions can rate the same answers.

# %%
#| export
def _snapshots(models):
    "Return name -> model or folder; a folder `step-000100` is named 100"
    if isinstance(models, LM): return {0: models}
    if isinstance(models, dict): return models
    return {int(Path(d).name.split('-')[-1]): d for d in models}

def absolute_harmfulness(
    model,                # `HarmfulnessModel`, or any score function
    snapshots,            # A policy's folders; or a dict of name -> LM or folder; or an LM
    prompts,              # Held out: strings, rows, a file; the paper has 64
    samples:int=16,       # Answers per prompt, 1 at temperature 0; the paper has 256
    temperature:float=1.,
    watch:dict=None,      # Further score functions of the same answers, by name
    **kw,                 # Of `sample_answers`: max_new_tokens, seed, mode ...
)->pd.DataFrame:          # step, temperature, what, value, low, high, by_prompt
    "Return the mean rating of each snapshot's answers"
    if samples<1: raise ConfigError(f'samples is {samples}; give 1 or more.')
    rows = load_prompts(prompts)
    n = 1 if temperature==0 else samples
    res = []
    texts = [r['prompt'] for r in rows for _ in range(n)]
    for step,lm in _snapshots(snapshots).items():
        lm = load(lm, 'float32')
        answers = sum(sample_answers(lm, rows, n, temperature=temperature, **kw), [])
        for name,score in (dict(regressor=model) | (watch or {})).items():
            x = np.asarray(score(texts, answers), float)
            e = cluster_bootstrap(x, texts)
            res.append(dict(step=step, temperature=temperature, what=name, value=e.value,
                            low=e.low, high=e.high, by_prompt=x.reshape(-1, n).mean(1)))
    return pd.DataFrame(res)


# %%
asks = [dict(id=r['id'], prompt=r['prompt']) for r in test[:12]]
def length(prompts, answers): return [len(a.split()) for a in answers]

table = absolute_harmfulness(harm, {0: lm, 1: lm}, asks, samples=4, max_new_tokens=6,
                             watch=dict(words=length))
table.drop(columns='by_prompt').round(2)

# %%
what = table[table.what=='regressor']
test_eq(*what.value)
test_close([x.mean() for x in what.by_prompt], what.value, 1e-9)
assert (what.low<what.value).all() and (what.value<what.high).all()
cold = absolute_harmfulness(harm, lm, asks, samples=4, temperature=0, max_new_tokens=6)
test_eq(cold.by_prompt[0].shape, (12,))
with expect_fail(ConfigError, contains='samples is 0'):
    absolute_harmfulness(harm, lm, asks, 0)


# %% [markdown]
# Tables of several runs and trainings, with the columns `run` and `training`, are averaged over
# trainings. A run that was stopped stays at its last snapshot.

# %%
#| export
def ratings_by_step(
    table:pd.DataFrame,   # Of `absolute_harmfulness`, with run and training
    run:str,
    what:str='regressor', # The score function
    temperature:float=1.,
)->pd.DataFrame:          # [training, step]
    "Return the mean ratings of one run"
    d = table[(table.run==run)&(table.what==what)&(table.temperature==temperature)]
    return d.pivot(index='training', columns='step', values='value').ffill(axis=1)

def average_ratings(
    table:pd.DataFrame,   # Of `absolute_harmfulness`, with run and training
)->pd.DataFrame:          # run, what, temperature, step, value, low, high; for `plot_harmfulness`
    "Average ratings over trainings, with intervals that resample trainings"
    columns = ['run', 'training', 'what', 'temperature', 'step', 'value']
    check_columns(table, columns, 'a table of absolute_harmfulness with run and training')
    kinds = table[['run', 'what', 'temperature']].drop_duplicates()
    return pd.DataFrame([
        k._asdict() | dict(step=step) | cluster_bootstrap(x.to_numpy(), x.index)._asdict()
        for k in kinds.itertuples(index=False) for step,x in ratings_by_step(table, *k).items()])


# %%
runs = pd.DataFrame([dict(run=r, training=t, step=k, what='regressor', temperature=1., value=t+k)
                     for r in 'ab' for t in range(3) for k in range(2) if (r, t, k)!=('b', 2, 1)])
test_eq(ratings_by_step(runs, 'b').to_numpy(), [[0, 1], [1, 2], [2, 2]])
means = average_ratings(runs)
test_close(means[means.run=='a'].value, [1, 2])
assert (means.low<means.value).all() and (means.value<means.high).all()
means.round(2)

# %%
#| hide
import shutil
shutil.rmtree(tmp)
