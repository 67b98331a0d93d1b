# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Benchmark harness
#
# > Interleaved timing of two implementations, and records of the results on disk.

# %%
#| default_exp benchmarks.harness

# %% [markdown]
# A speed-up is a ratio of two times, and both times drift: with the clock of the processor, with
# other load on the machine, with the number of threads. The benchmarks therefore run both sides
# alternately in one process and on the same threads, and report the median over turns of their
# ratio, with its range. This page holds what the benchmarks share: timing, baselines
# written with plain transformers, and the JSON record.

# %%
#| export
import contextlib, copy, json, re
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time

import numpy as np, torch
from moral_sc.foundation.datasets import data_dir
from moral_sc.foundation.errors import ConfigError, unknown_name_message
from moral_sc.foundation.runs import provenance
from moral_sc.language.models import decode, eos_ids

# %%
#| hide
import tempfile
from time import sleep
from fastcore.test import *
from moral_sc.language.scoring import option_logprobs
from moral_sc.language.stub_models import random_model
torch.set_num_threads(1)


# %% [markdown]
# ## Timing
#
# Times are kept by the wall clock and by the processor. On a machine that also runs other jobs,
# processor time is the one to trust.

# %%
#| export
def time_call(
    f,             # Called without arguments
    device='cpu',  # Synchronised before and after, if it is a GPU
)->tuple:          # Wall-clock seconds, processor seconds, result
    "Time one call"
    cuda = torch.device(device).type=='cuda'
    if cuda: torch.cuda.synchronize()
    wall = perf_counter()
    cpu = process_time()
    result = f()
    if cuda: torch.cuda.synchronize()
    return perf_counter()-wall, process_time()-cpu, result

def interleave(
    sides,             # Functions without arguments, called in turn
    repeats:int=5,     # Turns of each side
    seconds=np.inf,    # Start no further turn that would exceed this time; one turn is always taken
    device='cpu',
)->list:               # [turn][side] of `time_call`
    "Time several functions alternately"
    turns = []
    start = perf_counter()
    while len(turns)<repeats:
        elapsed = perf_counter()-start
        if turns and elapsed*(1+1/len(turns))>=seconds: break
        turns.append([time_call(f, device) for f in sides])
    return turns

def summarise(
    x,         # Values of all turns
    scale=1.,  # Multiplies each value
)->dict:       # mid, low, high
    "Return the median and range of measurements"
    return dict(mid=scale*float(np.median(x)), low=scale*float(np.min(x)),
                high=scale*float(np.max(x)))

def format_summary(
    d:dict,  # Of `summarise`
)->str:
    "Format a summary as 'median [low, high]'"
    return '{mid:.3g} [{low:.3g}, {high:.3g}]'.format(**d)


# %%
turns = interleave([lambda: sleep(.06), lambda: sleep(.03)], 5)
wall = np.array([[side[0] for side in turn] for turn in turns]) # [turn, side]
format_summary(summarise(wall[:,0]/wall[:,1]))

# %%
assert 1.3<np.median(wall[:,0]/wall[:,1])<3
test_eq(len(interleave([lambda: sleep(.01)], 9, seconds=0)), 1)
test_eq(format_summary(summarise([1, 2, 30])), '2 [1, 30]')


# %%
#| export
@contextlib.contextmanager
def torch_threads(
    n:int,  # Threads of torch inside the block
):
    "Set the number of threads, and restore it afterwards"
    previous = torch.get_num_threads()
    torch.set_num_threads(n)
    try: yield
    finally: torch.set_num_threads(previous)


# %% [markdown]
# ## Baselines with plain transformers
#
# These are the baselines where no public tool does the same: left-padded batches, the output layer
# at the last position only, and `generate` with stop strings.

# %%
#| export
def _tokenize_left_padded(lm, texts):
    tokenizer = copy.copy(lm.tokenizer)
    if tokenizer.pad_token is None: tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = 'left'
    return tokenizer(texts, return_tensors='pt', padding=True).to(lm.device)

@torch.inference_mode()
def baseline_logprobs(
    lm, texts,
    ids:list,        # Token ids to compare
    batch_size:int,  # Texts per batch
)->np.ndarray:       # [text, token] log-probabilities
    "Return next-token log-probabilities, computed with plain transformers"
    rows = []
    for k in range(0, len(texts), batch_size):
        inputs = _tokenize_left_padded(lm, texts[k:k+batch_size])
        logits = lm.model(**inputs, logits_to_keep=1, use_cache=False).logits[:,-1].float()
        rows.append(logits.log_softmax(-1)[:,ids].cpu().numpy())
    return np.concatenate(rows)

@torch.inference_mode()
def baseline_generate(
    lm, texts,
    max_new_tokens:int,
    batch_size:int,  # Texts per batch
    stop,            # Strings that end a continuation
    **kw,            # Of `generate`: sampling
)->list:             # One continuation per text
    "Continue texts with `generate` of transformers"
    ends = eos_ids(lm)
    pattern = '|'.join(map(re.escape, stop))
    texts_out = []
    for k in range(0, len(texts), batch_size):
        inputs = _tokenize_left_padded(lm, texts[k:k+batch_size])
        ids = lm.model.generate(**inputs, max_new_tokens=max_new_tokens, stop_strings=list(stop),
                                pad_token_id=lm.tokenizer.eos_token_id, tokenizer=lm.tokenizer,
                                **kw)
        for row in ids[:,inputs.input_ids.shape[1]:].tolist():
            n = next((i for i,t in enumerate(row) if t in ends), len(row))
            texts_out.append(re.split(pattern, decode(lm, row[:n]))[0])
    return texts_out


# %%
lm = random_model('llama')
texts = ['One two', 'Three']
ids = [lm.tokenizer(x, add_special_tokens=False).input_ids[0] for x in 'ab']
test_close(baseline_logprobs(lm, texts, ids, 2), option_logprobs(lm, texts, ['a','b']), 1e-4)
test_eq(len(baseline_generate(lm, texts, 4, 1, ['\n'], do_sample=False)), 2)


# %%
#| export
def choose_batch_size(
    make,    # (units, batch size) -> function to time
    units,   # A few units of work
    sizes,   # Batch sizes to choose from
)->tuple:    # Batch size, and the seconds it took
    "Return the fastest batch size on a few units of work"
    seconds = {n: time_call(make(units, n))[0] for n in sizes}
    best = min(seconds, key=seconds.get)
    return best, seconds[best]


# %%
test_eq(choose_batch_size(lambda _, n: lambda: sleep(.2/n), None, (1,8))[0], 8)


# %% [markdown]
# ## Rows
#
# A row compares one baseline with one function of this project. `floor` and `aim` are ratios that
# were fixed before the first measurement: the least that we ask of ourselves, and the goal.

# %%
#| export
@dataclass(frozen=True)
class BenchmarkRow:
    "One comparison"
    against:str     # Name of the baseline
    theirs:object   # The baseline
    ours:object
    floor:float     # Least acceptable ratio
    aim:float       # Ratio aimed at

def check_row_names(
    names,      # Keys of `rows`; None for all
    rows:dict,  # Known rows
    extra=(),   # Names of further measurements
)->list:
    "Check names of rows"
    known = [*rows, *extra]
    unknown = [k for k in names or () if k not in known]
    if unknown: raise ConfigError(unknown_name_message('row', unknown[0], known))
    return list(names or known)


# %% [markdown]
# ## The record
#
# A record is a JSON file with the machine, the model and one entry per row. It is written after
# each row, so a benchmark can be stopped at any time. A later run on the same machine and model
# replaces its own rows and keeps the others.

# %%
#| export
def describe_machine(device, threads, **kw)->dict: # As of `provenance`
    "Describe the machine that a benchmark runs on"
    cuda = torch.device(device).type=='cuda'
    return provenance(device=str(device), threads=threads,
                      gpu=torch.cuda.get_device_name() if cuda else None, **kw)

def start_record(
    path,          # JSON file, or None
    machine:dict,  # Of `describe_machine`
    **extra,       # Further entries, such as `model`
)->dict:
    "Return a record to be filled; rows of the same machine and model are kept"
    stored = json.loads(Path(path).read_text()) if path and Path(path).exists() else {}
    reusable = stored and stored.get('model')==extra.get('model') and all(
        stored['provenance'].get(k)==machine.get(k) for k in ('cpu','gpu','cores','torch'))
    return dict(provenance=machine, **extra, rows=stored['rows'] if reusable else {})

def measure_rows(
    record:dict,    # Of `start_record`
    names:list,     # Rows to measure
    measure,        # Name -> entry of the record
    path=None,      # JSON file, written after each row
    progress=None,  # Called with a line for each row, and with the reason for one left out
)->dict:            # The record
    "Measure rows one after another and keep the record up to date"
    for name in names:
        if progress: progress(f'{name} …')
        entry = record['rows'][name] = measure(name)
        if progress and 'skipped' in entry: progress(f'{name} is left out: {entry["skipped"]}.')
        if path: Path(path).write_text(json.dumps(record, indent=1)+'\n')
    return record

def load_record(
    benchmark:str,    # 'superposition', 'scoring', 'rlaif' or 'toy_language'
    kind:str='cpu',   # 'cpu' or 'gpu'
)->dict|None:
    "Load the official record of a benchmark; None if there is none"
    path = data_dir()/'results'/f'bench_{benchmark}_{kind}.json'
    return json.loads(path.read_text()) if path.exists() else None

def recorded_row(
    record:dict|None,
    name:str,
)->dict:  # Empty if the row was not measured
    "Return one row of a record"
    return ((record or {}).get('rows') or {}).get(name) or {}

def format_ratio(
    row:dict,     # Of `recorded_row`
    key='ratio',
)->str:
    "Format the ratio of a row, or the reason why there is none"
    if key in row: return format_summary(row[key])
    return row.get('skipped') or 'not yet measured'


# %%
with tempfile.TemporaryDirectory() as d:
    path = Path(d)/'record.json'
    machine = describe_machine('cpu', 1)
    for name in 'ab':
        record = start_record(path, machine, model='m')
        measure_rows(record, [name], lambda name: dict(ratio=summarise([1,2,3])), path)
    said = []
    measure_rows(dict(rows={}), ['c'], lambda name: dict(skipped='no GPU'), progress=said.append)
    other = start_record(path, machine, model='another')
test_eq((list(record['rows']), list(other['rows'])), (['a','b'], []))
test_eq(said, ['c …', 'c is left out: no GPU.'])
format_ratio(recorded_row(record, 'a')), format_ratio(recorded_row(record, 'c'))

# %%
with expect_fail(ConfigError, contains="did you mean 'orders'"):
    check_row_names(['order'], dict(orders=None))
