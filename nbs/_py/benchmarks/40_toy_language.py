# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Toy-language benchmark
#
# > Training speed of stacked models of the toy language compared with the Trainer of transformers.

# %%
#| default_exp benchmarks.toy_language

# %% [markdown]
# [`train_ladder`](../bias/toy/30_ladder.ipynb) trains several seeds of a width at once, with
# [stacked weights](../bias/toy/20_training.ipynb). The baseline is the `Trainer` of transformers,
# which trains the same models one after the other on the same batches. Both sides start from the
# same weights and use the same loss, optimizer, schedule and clipping, so that they end with the
# same loss up to rounding. They run alternately in one process and on the same threads, as described
# in the [harness](05_harness.ipynb).

# %%
#| export
import tempfile
from dataclasses import dataclass

import numpy as np, pandas as pd, torch
from moral_sc.benchmarks.harness import (BenchmarkRow, check_row_names, describe_machine,
                                         format_ratio, format_summary, interleave, load_record,
                                         measure_rows, recorded_row, start_record, summarise,
                                         torch_threads)
from moral_sc.bias.toy.environment import ToyLanguage, encoded_documents
from moral_sc.bias.toy.ladder import Ladder, new_model
from moral_sc.bias.toy.training import fit_stacked
from moral_sc.foundation.runs import utc_now
from moral_sc.language.training import answer_loss, epoch_batches

# %%
#| hide
import json
from pathlib import Path
from fastcore.test import *
from moral_sc.foundation.errors import ConfigError
torch.set_num_threads(1)


# %% [markdown]
# ## Both sides
#
# A turn trains new models from the start, over one pass of their documents, and returns their mean
# loss on the last batch after training. The preparation of models and documents is not timed, that
# of the `Trainer` and of stacked weights is. The `Trainer` has what it does besides switched off:
# logging, saving, progress bars.

# %%
#| export
@dataclass
class TrainingWork:
    "Models and documents that both sides train"
    ladder:Ladder
    width:int
    corpora:list # For each model its examples, in the order of training

def training_work(
    width:int,
    steps:int=40,  # Of each model
    models:int=3,
    ladder:Ladder=Ladder(),
)->TrainingWork:
    "Write the documents of several seeds, in the order in which `fit_stacked` draws them"
    n = steps*ladder.batch
    corpora = [encoded_documents(ToyLanguage(seed=s), n, s) for s in range(models)]
    return TrainingWork(ladder, width, corpora)

def _models(work): return [new_model(work.ladder, work.width, s) for s in range(len(work.corpora))]

def _losses(work, models):
    "Return the loss of each trained model on the documents of its last batch"
    found = []
    with torch.no_grad():
        for seed,(lm,corpus) in enumerate(zip(models, work.corpora)):
            last = epoch_batches(len(corpus), work.ladder.batch, seed, 0)[-1]
            total,count,_ = answer_loss(lm.model, [corpus[i] for i in last])
            found.append(float(total)/count)
    return found

def train_stacked(work):
    "Return our side: all models at once"
    models = _models(work)
    l = work.ladder
    def run():
        fit_stacked([m.model for m in models], work.corpora, range(len(models)), batch=l.batch,
                    lr=l.lr/work.width**.5)
        return models
    return run

def _collate(pad):
    "Pad examples; tokens before the answer have no loss"
    def collate(rows):
        n = max(len(ids) for ids,_ in rows)
        ids = torch.full((len(rows), n), pad)
        labels = torch.full((len(rows), n), -100)
        for k,(row,start) in enumerate(rows):
            ids[k,:len(row)] = torch.tensor(row)
            labels[k,start:len(row)] = torch.tensor(row[start:])
        # Padding comes last, where attention to earlier tokens does not see it
        return dict(input_ids=ids, labels=labels)
    return collate

def train_with_trainer(work):
    "Return the baseline: the Trainer of transformers, one model after the other"
    from transformers import PrinterCallback, Trainer, TrainingArguments
    models = _models(work)
    l = work.ladder
    def run():
        for seed,(lm,corpus) in enumerate(zip(models, work.corpora)):
            order = sum(epoch_batches(len(corpus), l.batch, seed, 0), [])
            args = TrainingArguments(
                tempfile.gettempdir(), per_device_train_batch_size=l.batch, num_train_epochs=1,
                learning_rate=l.lr/work.width**.5, lr_scheduler_type='cosine', max_grad_norm=1.,
                weight_decay=0., optim='adamw_torch_fused', train_sampling_strategy='sequential',
                remove_unused_columns=False, use_cpu=True, report_to='none', disable_tqdm=True,
                save_strategy='no', logging_strategy='no')
            trainer = Trainer(lm.model, args, _collate(lm.tokenizer.pad_token_id),
                              [corpus[i] for i in order])
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return models
    return run


# %%
work = training_work(8, steps=4, models=2, ladder=Ladder(batch=16))
theirs,ours = (_losses(work, side(work)()) for side in (train_with_trainer, train_stacked))
test_close(theirs, ours, 1e-4)
before = _losses(work, _models(work))
assert min(np.subtract(before, ours))>.05
np.round([before, theirs, ours], 4)


# %% [markdown]
# ## Rows
#
# `floor` was fixed when the training was planned, before the first measurement. Three models are
# stacked, as in `Ladder`.

# %%
#| export
@dataclass(frozen=True)
class ToyTrainingRow(BenchmarkRow):
    "One width"
    width:int=8

TOY_TRAINING_ROWS = {f'width-{w}': ToyTrainingRow('Trainer of transformers', train_with_trainer,
                                                  train_stacked, 2, 4, w) for w in (4, 8, 16, 32)}

def measure_toy_training(
    row:ToyTrainingRow,
    repeats:int=5,    # Turns of each side, at most
    seconds=45.,      # Start no turn that would exceed this time
    steps:int=40,     # Of each model in a turn
    models:int=3,
)->dict:
    "Measure one row with the current number of threads"
    work = training_work(row.width, steps, models)
    def turn(side): # New models for each turn
        prepared = iter([side(work) for _ in range(repeats+1)])
        return lambda: next(prepared)()
    sides = [turn(row.theirs), turn(row.ours)]
    trained = [side() for side in sides] # Warm up
    turns = interleave(sides, repeats, seconds)
    clock = np.array([[side[:2] for side in t] for t in turns]) # [turn, side, wall or processor]
    gap = np.abs(np.subtract(*(_losses(work, m) for m in trained))).max()
    milliseconds = 1e3/(steps*models)
    return dict(turns=len(turns), steps=steps, models=models, gap=float(gap),
                parameters=trained[0][0].parameters,
                ratio=summarise(clock[:,0,0]/clock[:,1,0]),
                cpu_ratio=summarise(clock[:,0,1]/clock[:,1,1]),
                ms=[summarise(clock[:,k,0], milliseconds) for k in (0,1)])


# %%
entry = measure_toy_training(TOY_TRAINING_ROWS['width-4'], repeats=1, steps=3, models=2)
assert entry['gap']<1e-4
entry['parameters'], entry['turns']


# %% [markdown]
# ## Running the benchmark
#
# The command `moral_sc bench toy-language` calls `bench_toy_language`.

# %%
#| export
def bench_toy_language(
    rows=None,      # Keys of `TOY_TRAINING_ROWS`; None for all
    repeats=5,      # Turns of each side, at most
    threads=None,   # Of both sides; None: as many as there are
    seconds=45.,    # Start no turn of a row that would exceed this time
    out=None,       # JSON file, written after each row; other rows in it are kept
    progress=None,  # As in `measure_rows`
    **size,         # steps, models: of a turn
)->pd.DataFrame:    # See `toy_language_ratios`
    "Measure our training of toy-language models against the Trainer of transformers"
    names = check_row_names(rows, TOY_TRAINING_ROWS)
    threads = threads or torch.get_num_threads()
    with torch_threads(threads):
        record = start_record(out, describe_machine('cpu', threads, dtype='float32'))
        def measure(name):
            entry = measure_toy_training(TOY_TRAINING_ROWS[name], repeats, seconds, **size)
            return entry|dict(threads=threads, end=utc_now())
        return toy_language_ratios(measure_rows(record, names, measure, out, progress))

def toy_language_ratios(
    record=None,    # Of `bench_toy_language`; default: the official one
)->pd.DataFrame:    # One row a width; ms: of a step of one model
    "Show ratio, floor and aim of every row, and the largest difference of losses"
    record = record or load_record('toy_language')
    def line(name, row):
        entry = recorded_row(record, name)
        details = dict(parameters=entry['parameters'], gap=f"{entry['gap']:.0e}",
                       trainer_ms=format_summary(entry['ms'][0]),
                       ours_ms=format_summary(entry['ms'][1])) if entry else {}
        return dict(ratio=format_ratio(entry), cpu_ratio=format_ratio(entry, 'cpu_ratio'),
                    floor=row.floor, aim=row.aim, **details)
    return pd.DataFrame({k: line(k, r) for k,r in TOY_TRAINING_ROWS.items()}).T


# %%
with tempfile.TemporaryDirectory() as d:
    out = Path(d)/'bench.json'
    table = bench_toy_language(['width-4'], 1, 1, out=out, steps=2, models=2)
    record = json.loads(out.read_text())
test_eq(list(record['rows']), ['width-4'])
assert ' [' in table.ratio['width-4'] and table.ratio['width-8']=='not yet measured'
with expect_fail(ConfigError, contains="did you mean 'width-8'"): bench_toy_language(['width8'])

# %% [markdown]
# ## Official record
#
# The official measurement is in `data/results`: one thread, five turns, three models, 40 steps of each
# in a turn. `ms` are milliseconds of wall-clock time for a step of one model. The floor is reached at
# every width, the aim at the smallest only: the wider a model, the less of its time is overhead. The
# losses of both sides differ by less than 1e-6. The benchmark runs on a CPU only.

# %%
toy_language_ratios()

# %%
record = load_record('toy_language')
assert all(recorded_row(record, k)['gap']<1e-4 for k in TOY_TRAINING_ROWS)
{k: record['provenance'][k] for k in ('cpu', 'threads', 'torch', 'transformers', 'start')}
