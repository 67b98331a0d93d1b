# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Ladder
#
# > Train transformers of many sizes and seeds on the toy language, and evaluate all of them.

# %%
#| default_exp bias.toy.ladder

# %%
#| export
import math
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout

from moral_sc.bias.bbq.scoring import accuracy, bias_score
from moral_sc.bias.sweep import ModelSpec, read_exact_csv, sweep
from moral_sc.bias.toy.environment import (
    CONDITION_MEANINGS, ToyLanguage, documents, encoded_documents, ideal_answer, lexicon,
    statement_prompt, tokenizer, toy_benchmark)
from moral_sc.bias.toy.training import fit_stacked
from moral_sc.foundation.errors import ConfigError
from moral_sc.foundation.files import replace_file
from moral_sc.foundation.runs import note_opened, open_run
from moral_sc.foundation.statistics import t_interval
from moral_sc.language.loading import load
from moral_sc.language.reward_head import save_model, small_llama
from moral_sc.language.scoring import next_token_logprobs

# %%
#| hide
import shutil, tempfile
from fastcore.test import *

tmp = Path(tempfile.mkdtemp())
torch.set_num_threads(1)


# %% [markdown]
# ## Sizes
#
# The models of a ladder differ in width alone. A width fixes the number of heads and the learning
# rate, which falls with the square root of the width. Beyond width 32 the initial weights are
# smaller as well, because sums over more inputs would otherwise start too large. Seeds draw
# everything: the stereotypes of the language, the documents, their order and the initial weights.

# %%
#| export
@dataclass(frozen=True)
class Ladder:
    "Settings that all models of a ladder share"
    language:ToyLanguage=ToyLanguage() # Its seed is replaced by that of each model
    layers:int=2
    documents:int=32_000 # Of each seed
    epochs:int=3
    batch:int=64         # Documents a step
    lr:float=.028        # Of a width: see `peak_rate`
    warmup:int=100       # Steps
    init:float=.15       # Standard deviation of initial weights up to width 32
    together:int=3       # Seeds that are trained at once

def head_count(
    width:int,
)->int:
    "Return the number of attention heads of a width"
    heads = 1 if width<8 else 2 if width<24 else 4
    if width<4 or width%(2*heads):
        raise ConfigError(f'width {width} does not fit: give 4 or more, a multiple of {2*heads}.')
    return heads

def _wide_factor(width): return min(1, math.sqrt(32/width))

def peak_rate(
    ladder:Ladder,
    width:int,
)->float:
    "Return the peak learning rate of a width"
    return ladder.lr/width**.5*_wide_factor(width)

def model_name(width, seed): return f'width-{width}-seed-{seed}'

def new_model(
    ladder:Ladder,
    width:int,
    seed:int=0,
):                   # An `LM`
    "Return a small Llama model with random weights"
    lm = small_llama(tokenizer(ladder.language), ladder.layers, width, head_count(width), seed,
                     context=64, name=model_name(width, seed))
    deviation = ladder.init*_wide_factor(width)
    with torch.no_grad():
        for p in lm.model.parameters():
            if p.ndim==2: p.mul_(deviation/lm.model.config.initializer_range)
    return lm


# %%
pd.Series({w: new_model(Ladder(), w).parameters for w in (4, 8, 12, 16, 24, 32, 64)})

# %%
with expect_fail(ConfigError, contains='width 10 does not fit'): head_count(10)
with expect_fail(ConfigError, contains='width 2 does not fit'): head_count(2)
deviations = {w: new_model(Ladder(), w).model.get_input_embeddings().weight.std().item()
              for w in (8, 32, 128)}
test_close([deviations[w] for w in (8, 32, 128)], [.15, .15, .075], eps=.01)
rates = [peak_rate(Ladder(lr=.032), w) for w in (4, 32, 128)]
test_close(rates, [.016, .032/32**.5, .032/32**.5/4])


# %% [markdown]
# ## Training
#
# `train_ladder` trains the seeds of a width in blocks and saves each model in a folder of its own.
# A block that was killed continues from its last checkpoint. Processes that are given the same
# folder share the blocks, and each block is trained in the same way by any of them. A folder with
# other settings is refused with the difference.

# %%
#| export
def ladder_models(
    out,     # Folder of a ladder
    widths,
    seeds,
)->list:     # Of `ModelSpec`, for `bias.sweep`
    "List the models of a ladder"
    return [ModelSpec(model_name(w, s), str(Path(out)/model_name(w, s)), 'toy')
            for w in widths for s in seeds]

def train_ladder(
    widths,             # Smallest first
    seeds=range(5),
    out='runs/toy-ladder',
    ladder:Ladder=Ladder(),
    every:int=250,      # Steps between checkpoints
    progress=None,      # Called with (steps done, steps of all blocks)
    device='cpu',       # 'cuda' is worth it for large widths; not yet run on a GPU
)->list:                # Of `ModelSpec`
    "Train models of all widths and seeds; finished ones are not trained again"
    widths,seeds = list(widths),list(seeds)
    if not widths or not seeds: raise ConfigError('Give one width and one seed or more.')
    for w in widths: head_count(w)
    with open_run(out, asdict(ladder)): pass # Refuses other settings
    n = ladder.together
    blocks = [(w, seeds[k:k+n]) for k in range(0, len(seeds), n) for w in widths]
    steps = -(-ladder.documents//ladder.batch)*ladder.epochs
    for k,(w,block) in enumerate(blocks):
        report = progress and (lambda done, _, k=k: progress(k*steps+done, len(blocks)*steps))
        _train_block(ladder, w, block, Path(out), every, report, device)
    return ladder_models(out, widths, seeds)

def _train_block(ladder, width, seeds, out, every, progress, device):
    folders = [out/model_name(width, s) for s in seeds]
    block = f'block-{width}-{"-".join(map(str, seeds))}'
    with FileLock(out/f'{block}.lock'):
        if all((f/'config.json').is_file() for f in folders): return note_opened(out/block)
        models = [new_model(ladder, width, s) for s in seeds]
        fit_stacked([m.model for m in models], [_corpus(ladder, s) for s in seeds], seeds,
                    batch=ladder.batch, epochs=ladder.epochs, lr=peak_rate(ladder, width),
                    warmup=ladder.warmup, schedule='cosine', out=out/block, every=every,
                    progress=progress, device=device)
        for m,f in zip(models, folders):
            if not f.exists(): save_model(m, f)

@cache
def _corpus(ladder, seed):
    return encoded_documents(replace(ladder.language, seed=seed), ladder.documents, seed)


# %% [markdown]
# ## Evaluation
#
# `evaluate_ladder` sweeps all models over the benchmark of their seed's language. Beside BBQ's
# metrics, the table has the stereotype knowledge of each model: for each trait, how much more
# often a stereotyped group than another one is named after "who is often ...", on the scale of the
# bias score. For the ideal reader it is $2s-1$.

# %%
#| export
def stereotype_knowledge(
    lm,
    language:ToyLanguage,
)->float:
    "Return the mean preference for stereotyped groups in statements, from -1 to 1"
    traits = lexicon(language).traits
    lp = next_token_logprobs(lm, [statement_prompt(t) for t in traits])
    ids = lm.tokenizer.convert_tokens_to_ids
    p = [{g: np.exp(row[ids(f' {g}')]) for g in (*t.stereotyped, *t.others)}
         for t,row in zip(traits, lp)]
    return float(np.mean([_preference(t, x) for t,x in zip(traits, p)]))

def _preference(trait, p):
    return np.mean([(p[g]-p[h])/(p[g]+p[h]) for g in trait.stereotyped for h in trait.others])

def evaluate_ladder(
    widths,
    seeds=range(5),
    out='runs/toy-ladder',
    ladder:Ladder=Ladder(),
    scenes:int=1,         # Scenes of each trait in the benchmark
    letters=('q', 'q+if'),# Conditions that are also asked by letter
    conditions=None,      # Default: those of the toy benchmark
    progress=None,        # Called with (model, saved answers, all answers)
)->pd.DataFrame:          # width, seed, parameters, benchmark, condition, category, metric, value
    "Evaluate the models of a ladder; finished evaluations are read"
    seeds = list(dict.fromkeys(seeds))
    found = {}
    for timeout in (0, -1): # Seeds that another process evaluates come last
        for s in [s for s in seeds if s not in found]:
            with suppress(Timeout), FileLock(Path(out)/f'sweep-{s}.lock', timeout):
                found[s] = _evaluate_seed(widths, s, Path(out), replace(ladder.language, seed=s),
                                          scenes, letters, conditions, progress)
    d = pd.concat([found[s] for s in seeds], ignore_index=True)
    d.insert(0, 'width', d.model.str.extract(r'width-(\d+)-')[0].astype(int))
    return d[TOY_COLUMNS]

def _evaluate_seed(widths, seed, out, language, scenes, letters, conditions, progress):
    "Evaluate the models of one seed"
    models = ladder_models(out, widths, [seed])
    def ask(conditions, **form):
        return sweep(models, [toy_benchmark(language, scenes, **form)], conditions,
                     out/f'sweep-{seed}', progress=progress, max_new_tokens=4, dtype='float32',
                     seed=seed, portion=1024, max_tokens=2**14).table
    tables = [ask(conditions)]
    if letters: tables.append(ask(list(letters), letters=True))
    tables.append(_knowledge_table(models, language, tables[0]))
    return pd.concat(tables, ignore_index=True).assign(seed=seed)

TOY_COLUMNS = ['width', 'seed', 'parameters', 'benchmark', 'condition', 'category', 'metric',
               'value']

def _knowledge_table(models, language, table):
    parameters = table.groupby('model').parameters.first()
    return pd.DataFrame([dict(model=m.name, parameters=parameters[m.name],
                              benchmark='statements', condition='statement', category='micro',
                              metric='knowledge', value=_saved_knowledge(m, language))
                         for m in models])

def _saved_knowledge(model, language):
    path = Path(f'{model.source}.knowledge') # Beside the folder, which a sweep has dated
    if not path.exists():
        knowledge = stereotype_knowledge(load(model.source), language)
        with replace_file(path) as part: part.write_text(repr(knowledge))
    return float(path.read_text())


# %% [markdown]
# The sizes of the example are tiny, and so is its training.

# %%
import warnings
warnings.simplefilter('ignore') # Untrained models give the answers little probability
small = Ladder(ToyLanguage(categories=2, traits=2), documents=128, epochs=2, batch=32, together=2)
models = train_ladder([4, 8], [0, 1], tmp/'ladder', small)
ask = dict(out=tmp/'ladder', ladder=small, conditions=['q', 'q+if'], letters=['q'])
table = evaluate_ladder([4, 8], [0, 1], **ask)
table.query('category=="micro" and metric in ("bias_ambig_soft", "knowledge") and seed==0')

# %% [markdown]
# A second call trains and asks nothing; other settings are refused.

# %%
from unittest import mock
def never(*a, **k): raise AssertionError('A model was trained.')
with mock.patch('moral_sc.bias.toy.ladder.fit_stacked', never):
    train_ladder([4, 8], [0, 1], tmp/'ladder', small)
pd.testing.assert_frame_equal(table, evaluate_ladder([4, 8], [0, 1], **ask))
with expect_fail(ConfigError, contains='epochs: 2 stored, 3 requested'):
    train_ladder([4], [0], tmp/'ladder', replace(small, epochs=3))
with expect_fail(ConfigError, contains='language.strength'):
    other = ToyLanguage(2, traits=2, strength=(.5, .5))
    train_ladder([4], [0], tmp/'ladder', replace(small, language=other))
with expect_fail(ConfigError, contains='one width'): train_ladder([], [0], tmp/'none', small)


# %% [markdown]
# A ladder that is stopped and started again has the same weights, whichever block comes first.

# %%
def stop_after(n):
    def stop(done, total):
        if done==n: raise KeyboardInterrupt
    return stop
try: train_ladder([8, 4], [0, 1], tmp/'cut', small, every=2, progress=stop_after(5))
except KeyboardInterrupt: pass
train_ladder([4, 8], [0, 1], tmp/'cut', small)
for m in models:
    a,b = (load(tmp/d/m.name).model.state_dict() for d in ('ladder', 'cut'))
    for k in a: assert torch.equal(a[k], b[k])


# %% [markdown]
# ## Answers one by one
#
# The records of an evaluation are read for one model, and `answer_changes` compares the answers of
# two conditions question by question.

# %%
#| export
def read_records(
    width:int,
    seed:int,
    out='runs/toy-ladder',
    benchmark:str='toy', # Or 'toy-letters'
)->pd.DataFrame:
    "Read the records of one evaluated model"
    path = Path(out)/f'sweep-{seed}'/model_name(width, seed)/benchmark/'records.csv'
    if not path.is_file():
        raise ConfigError(f'{path} does not exist; call `evaluate_ladder` for this width and seed.')
    return read_exact_csv(path)

ANSWER_KINDS = ('biased', 'counter', 'unknown')

def answer_changes(
    records:pd.DataFrame, # Of `read_records`
    before:str='q',
    after:str='q+if',
    kind:str='ambig',     # 'ambig' or 'disambig'
)->pd.DataFrame:          # [answer before, answer after] share of questions
    "Count how answers to the same questions change between two conditions"
    d = records[records.context_condition==kind]
    named = pd.Series('unknown', d.index)
    for k in ANSWER_KINDS[:2]: named[d.answer==d[k]] = k
    wide = pd.DataFrame(dict(id=d.id, condition=d.condition, answer=named)).pivot(
        index='id', columns='condition', values='answer')
    table = pd.crosstab(wide[before], wide[after], normalize='all')
    return table.reindex(index=ANSWER_KINDS, columns=ANSWER_KINDS, fill_value=0.)


# %%
changes = answer_changes(read_records(8, 0, tmp/'ladder'))
test_close(changes.to_numpy().sum(), 1)
records = pd.DataFrame(dict(id=list('aabb'), condition=['q', 'q+if']*2, context_condition='ambig',
                            biased=0, counter=1, unknown=2, answer=[0, 2, 1, 1]))
test_eq(answer_changes(records).loc['biased', 'unknown'], .5)
test_eq(answer_changes(records).loc['counter', 'counter'], .5)
with expect_fail(ConfigError, contains='evaluate_ladder'): read_records(8, 7, tmp/'ladder')
changes


# %% [markdown]
# ## Baselines
#
# The ideal reader gives each curve its ceiling or floor. Two baselines know the documents and
# nothing about their structure: a constant answer, and an n-gram model, which reads the last words
# of a prompt.

# %%
#| export
def ideal_answers(
    language:ToyLanguage,
    items:list,     # Of `toy_items`
    condition:str,
)->np.ndarray:      # [item, option] probabilities
    "Return the answers of an ideal reader"
    meaning = CONDITION_MEANINGS[condition]
    p = [ideal_answer(language, i.source, meaning) for i in items]
    return np.array([[d[o] for o in i.options] for d,i in zip(p, items)])

class NGram:
    "An n-gram model of the documents, with backoff to shorter contexts"
    def __init__(self,
        rows:list, # Of `Document`
        n:int=4,   # Words of the context and the answer
    ):
        self.n = n
        self.counts = defaultdict(Counter)
        for d in rows:
            words = (d.prompt+d.answer).split()
            for k in range(len(d.prompt.split()), len(words)):
                for j in range(n): self.counts[tuple(words[max(0, k-j):k])][words[k]] += 1

    def __call__(self, prompt, options)->np.ndarray: # One word each
        "Return the probabilities of some next words, from the longest context that has any"
        words = prompt.split()
        for j in range(self.n-1, -1, -1):
            counts = self.counts[tuple(words[len(words)-j:])]
            p = np.array([counts[o] for o in options], float)
            if p.sum(): return p/p.sum()
        return np.full(len(options), 1/len(options))

def ngram_answers(
    ngram:NGram,
    items:list,
    condition:str,
)->np.ndarray: # [item, option]
    "Return the answers of an n-gram model, in words and without reasoning"
    meaning = CONDITION_MEANINGS[condition]
    texts = [f'{i.source.text} {getattr(i, meaning)}' if meaning else i.source.text for i in items]
    return np.array([ngram(f'\n\nHuman: {t}\n\nAssistant: name', i.options)
                     for t,i in zip(texts, items)])

def baseline_table(
    language:ToyLanguage,
    items:list,
    n:int=4000,            # Documents of the n-gram model
    conditions=tuple(CONDITION_MEANINGS),
)->pd.DataFrame:           # reader, condition, bias, unknown, accuracy
    "Score an ideal reader, an n-gram model and a constant answer"
    ngram = NGram(documents(language, n))
    kinds = ('ambig', 'disambig')
    part = {k: [i for i in items if i.context_condition==k] for k in kinds}
    readers = dict(ideal=lambda i, c: ideal_answers(language, i, c),
                   ngram=lambda i, c: ngram_answers(ngram, i, c),
                   constant=lambda i, c: np.array([[k==x.unknown for k in range(3)] for x in i]))
    labels = [i.label for i in part['disambig']]
    rows = []
    for name,reader in readers.items():
        for c in conditions:
            ambiguous,settled = (reader(part[k], c) for k in kinds)
            rows.append(dict(reader=name, condition=c,
                             bias=bias_score(ambiguous, part['ambig']),
                             unknown=accuracy(ambiguous, part['ambig']),
                             accuracy=np.mean(settled.argmax(1)==labels)))
    return pd.DataFrame(rows)

def baseline_scores(
    language:ToyLanguage,
    seeds,
    scenes:int=1,    # Of `evaluate_ladder`
)->pd.DataFrame:     # [seed] knowledge, bias: of the reader; ngram_bias, ngram_following
    "Score an ideal reader and a 4-gram model on the questions of each seed"
    rows = {}
    for s in seeds:
        of_seed = replace(language, seed=s)
        base = baseline_table(of_seed, toy_benchmark(of_seed, scenes).load()).set_index(
            ['reader', 'condition'])
        unknown = base.unknown['ngram']
        rows[s] = dict(knowledge=np.mean([2*t.strength-1 for t in lexicon(of_seed).traits]),
                       bias=base.bias['ideal', 'q'], ngram_bias=base.bias['ngram', 'q'],
                       ngram_following=unknown['q+if']-unknown['q+anti'])
    return pd.DataFrame(rows).T


# %%
language = ToyLanguage()
benchmark = toy_benchmark(language, 4)
base = baseline_table(language, benchmark.load())
base.query('condition in ("q", "q+if", "q+anti")').round(3)

# %%
of = base.set_index(['reader', 'condition'])
mean = np.mean([2*t.strength-1 for t in lexicon(language).traits])
test_close(of.bias['ideal', 'q'], .75*mean)
test_close(of.bias['ideal', 'q+anti'], mean)
test_eq(of.bias['ideal', 'q+if'], 0)
test_eq(of.unknown['ideal', 'q+if'], 1)
test_eq(of.accuracy['ideal', 'q'], 1)
assert abs(of.bias['ngram']).max()<.1


# %% [markdown]
# ## Trainings as units
#
# Intervals draw trainings. `by_size` gives a metric's mean over seeds with its interval, and
# `differences` the paired change between two conditions.

# %%
#| export
def select_metric(
    table:pd.DataFrame, # Of `evaluate_ladder`
    condition:str,
    metric:str='bias_ambig_soft',
    benchmark:str='toy',
    category:str='micro',
)->pd.DataFrame:        # [seed, width]
    "Return one metric as a table of seeds and widths"
    d = table[(table.condition==condition) & (table.metric==metric)
              & (table.benchmark==benchmark) & (table.category==category)]
    return d.pivot(index='seed', columns='width', values='value')

def instruction_following(
    table:pd.DataFrame, # Of `evaluate_ladder`
)->pd.DataFrame:        # [seed, width], 1 for an ideal reader
    "Return p(unknown) on ambiguous questions under the instruction less under its opposite"
    fair,opposite = (select_metric(table, c, 'accuracy_ambig_soft') for c in ('q+if', 'q+anti'))
    return fair-opposite

def relative_scores(
    table:pd.DataFrame,     # Of `evaluate_ladder`
    baselines:pd.DataFrame, # Of `baseline_scores`
)->dict:                    # Ability -> [seed, width]
    "Return knowledge, bias and following relative to those of an ideal reader"
    knowledge = select_metric(table, 'statement', 'knowledge', 'statements')
    return {'Stereotype knowledge': knowledge.div(baselines.knowledge, axis=0),
            'Bias, Q': select_metric(table, 'q').div(baselines.bias, axis=0),
            'Instruction following': instruction_following(table)}

def by_size(
    values:pd.DataFrame, # [seed, width]
)->pd.DataFrame:         # One row a width: value, low, high
    "Return means over seeds with Student intervals"
    return pd.DataFrame({w: _mean(v) for w,v in values.items()}, index=['value', 'low', 'high']).T

def _mean(v):
    return tuple(t_interval(v)) if len(v)>1 else (float(v.iloc[0]), np.nan, np.nan)

def slope(
    values:pd.DataFrame, # [seed, width]
    parameters,          # [width] number of parameters
)->np.ndarray:           # [seed] change per factor of ten in parameters
    "Return the least-squares slope over the logarithm of size, for each seed"
    x = np.log10(np.asarray(parameters, float))
    x = x-x.mean()
    return values.to_numpy()@x/(x@x)

def decompose(
    bias:tuple,    # Before and after: [seed, width] bias scores
    unknown:tuple, # Before and after: [seed, width] shares of "unknown"
)->tuple:          # Abstention and correction, [seed, width]
    "Divide the change of a score into the parts of naming fewer people and of naming others"
    naming = [1-u for u in unknown]
    lean = [b/x for b,x in zip(bias, naming)]
    abstention = (naming[1]-naming[0])*(lean[0]+lean[1])/2
    correction = (lean[1]-lean[0])*(naming[0]+naming[1])/2
    return abstention,correction

def onset_size(
    change:pd.DataFrame, # [seed, width] paired differences
    parameters:dict,     # Width -> number of parameters
)->float:                # Not a number if there is none
    "Return the smallest size from which on the interval of the change lies below zero"
    below = by_size(change).high<0
    first = None
    for w in change.columns: first = (first or w) if below[w] else None
    return float(parameters[first]) if first else float('nan')

def crossing_size(
    values:pd.DataFrame, # [seed, width], such as scores relative to those of an ideal reader
    parameters:dict,     # Width -> number of parameters
    level:float=.5,
)->np.ndarray:           # [seed] number of parameters, not a number if no size reaches the level
    "Return the size at which each seed first reaches a level, interpolated over log size"
    x = np.log10([parameters[w] for w in values.columns])
    return 10**np.array([_crossing(x, y, level) for y in values.to_numpy()])

def _crossing(x, y, level):
    k = int(np.argmax(y>=level))
    if not y[k]>=level: return np.nan
    return np.interp(level, y[k-1:k+1], x[k-1:k+1]) if k else x[0]


# %%
two = pd.DataFrame([
    dict(seed=s, width=4, benchmark=b, condition=c, category='micro', metric=m, value=x)
    for s in (0, 1) for b,c,m,x in (
        ('toy', 'q', 'bias_ambig_soft', .1), ('statements', 'statement', 'knowledge', .2),
        ('toy', 'q+if', 'accuracy_ambig_soft', .9), ('toy', 'q+anti', 'accuracy_ambig_soft', .3))])
found = relative_scores(two, pd.DataFrame(dict(bias=[.5, .4], knowledge=[.4, .8])))
test_close([v[4].tolist() for v in found.values()], [[.5, .25], [.2, .25], [.6, .6]])
d = pd.DataFrame([[0., .1, .2], [.02, .1, .22]], columns=[4, 8, 16])
test_close(slope(d, [10, 100, 1000]), [.1, .1])
test_eq(onset_size(pd.DataFrame([[-.1, .1, -.2, -.3], [-.1, 0, -.2, -.3001]],
                                columns=[4, 8, 16, 24]), {16: 99.}), 99)
assert np.isnan(onset_size(d, {}))
y = pd.DataFrame([[0., .4, .6, .3], [.5, 0, 1, 1], [0, .1, .2, np.nan]], columns=[4, 8, 16, 24])
test_close(crossing_size(y, {4: 1, 8: 10, 16: 1000, 24: 10**4})[:2], [100, 1])
assert np.isnan(crossing_size(y, dict(zip(y, y)))[2])
u = pd.DataFrame([[.2, .2, .2]]*2, columns=d.columns)
abstention,correction = decompose((d, d/2), (u, u+.4))
test_close((abstention+correction).to_numpy(), (-d/2).to_numpy())
test_close(decompose((d, d/2), (u, u))[0].to_numpy(), 0)
by_size(d).round(3)

# %%
#| hide
shutil.rmtree(tmp)
