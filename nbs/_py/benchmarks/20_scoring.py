# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Scoring benchmark
#
# > Speed of option scoring compared with lm-evaluation-harness and plain transformers.

# %%
#| default_exp benchmarks.scoring

# %% [markdown]
# A speed-up over a tool means something only if the tool gets the same task: the same weights in
# the same number type, the same threads, its own best batch size, and the same answers at the end.
# The [harness](05_harness.ipynb) runs both sides alternately in one process. This page defines
# the tasks.

# %%
#| export
import contextlib, copy, io, logging, re
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np, pandas as pd, torch
from moral_sc.benchmarks.harness import (BenchmarkRow, baseline_generate, baseline_logprobs,
                                         choose_batch_size, format_ratio, format_summary,
                                         interleave, load_record, describe_machine, measure_rows,
                                         recorded_row, check_row_names, start_record, summarise,
                                         torch_threads)
from moral_sc.bias import bbq
from moral_sc.bias.admissions import build_applicants, load_students
from moral_sc.bias.asking import STOP
from moral_sc.bias.bbq.items import stratified
from moral_sc.bias.conditions import build_prompt
from moral_sc.foundation.datasets import available, fetch, read_jsonl
from moral_sc.foundation.errors import ConfigError
from moral_sc.foundation.runs import utc_now
from moral_sc.language.generation import sample
from moral_sc.language.loading import load
from moral_sc.language.models import LM
from moral_sc.language.scoring import option_logprobs

# %%
#| hide
import json, tempfile
from fastcore.test import *
from moral_sc.language.stub_models import random_model
from moral_sc.language.weights import cached_weights
torch.set_num_threads(1)


# %% [markdown]
# ## Workload
#
# The questions are scenes of BBQ, each with its four questions, sampled over categories as in an
# evaluation.

# %%
#| export
@dataclass
class ScoringWorkload:
    "Model and questions that both sides work on"
    lm:LM
    scenes:list         # Lists of BBQ items, or of our own set where BBQ is not available
    original:bool=True  # The items are from the authors' files
    bfloat16_lm:LM=None # The same weights in bfloat16, made when first needed

def scoring_workload(
    lm,          # An `LM`, or a name or folder to load
    n:int=64,    # At most so many questions
    seed:int=0,
)->ScoringWorkload:
    "Load a model and sample questions for it"
    lm = load(lm) if isinstance(lm, (str,Path)) else lm
    original = bool(bbq.reachable())
    items = bbq.load() if original else bbq.load(source='ours')
    scenes = list(bbq.by_quad(stratified(items, n, seed)).values())
    order = np.random.default_rng(seed).permutation(len(scenes))
    return ScoringWorkload(lm, [scenes[i] for i in order], original)

def scoring_prompts(
    lm, scenes, conditions=('q',),
    orders:int=1,  # 1, 3 or 6 orders of the options
)->list:           # Of `Prompt`
    "Build the prompt of every question in every condition and order"
    return [build_prompt(lm, 'bbq', c, bbq.reorder(i, o).fields) for s in scenes for i in s
            for c in conditions for o in bbq.orders_of(orders)]


# %%
tiny = scoring_workload(random_model('llama'), n=16)
prompts = scoring_prompts(tiny.lm, tiny.scenes, ('q','q+if'), 3)
len(tiny.scenes), len(prompts)


# %% [markdown]
# ## lm-evaluation-harness
#
# Most published scores come from EleutherAI's evaluation harness [@gao2024harness]. Its own BBQ
# task does not show the options: it compares twelve strings after "A:", the two people and ten
# ways to say "unknown". A task that compares letters, as @ganguli2023 did, has to be written by
# hand. Both tasks get our model object and the same questions through the harness's own
# interface. Nothing else in the project needs the harness; where it is not installed, its rows
# are skipped.

# %%
#| export
@contextlib.contextmanager
def _silence():
    "Hide progress bars and the harness's log"
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()): yield
    finally: logging.disable(level)

def _task(config, docs):
    import datasets
    from lm_eval.api.task import ConfigurableTask
    data = datasets.DatasetDict(test=datasets.Dataset.from_list(docs))
    return ConfigurableTask(config=config | dict(
        dataset_path='json', test_split='test', custom_dataset=lambda **_: data))

def _bbq_task(rows):
    "Build the harness's own BBQ task on these rows of BBQ's files"
    import lm_eval
    from lm_eval.tasks._yaml_loader import load_yaml
    path = Path(lm_eval.__file__).parent/'tasks'/'bbq'/'bbq_multiple_choice.yaml'
    return _task({k:v for k,v in load_yaml(path).items()
                  if k not in ('dataset_path','dataset_name','tag')}, rows)

def _letter_task(texts):
    "Build a task that compares letters"
    config = dict(task='letters', output_type='multiple_choice', doc_to_text='{{prompt}}',
                  doc_to_choice=list('abc'), doc_to_target=0, target_delimiter='',
                  metric_list=[dict(metric='acc')])
    return _task(config, [dict(prompt=t) for t in texts])

def run_harness(lm, task, batch_size)->np.ndarray: # [question, option] log-probabilities
    "Run a task of lm-evaluation-harness"
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    with _silence():
        model = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=batch_size)
        results = evaluate(lm=model, task_dict=dict(tasks=dict(t=task), groups={}, group_map={}),
                           bootstrap_iters=0)
    rows, = results['samples'].values()
    rows = sorted(rows, key=lambda r: r['doc_id'])
    return np.array([[x[0] for x in r['filtered_resps']] for r in rows])


# %% [markdown]
# ## Sides
#
# A side takes a workload, units of work and a batch size (texts for the baselines, tokens for
# ours) and returns a function to be timed. Preparation, such as building the harness's task, is
# not timed. Our side starts from items, so building prompts is part of its time.

# %%
#| export
LETTERS = list('abc')

def score_letters(conditions=('q',), orders=1, model=lambda w: w.lm):
    "Return our side: letters, all in one call"
    def side(w, scenes, size):
        def run():
            prompts = scoring_prompts(model(w), scenes, conditions, orders)
            return dict(lp=option_logprobs(model(w), prompts, LETTERS, max_tokens=size))
        return run
    return side

def harness_letters(conditions=('q',), orders=1):
    "Return the harness's side: the same prompts as a task of letters"
    def side(w, scenes, size):
        texts = [p.text for p in scoring_prompts(w.lm, scenes, conditions, orders)]
        with _silence(): task = _letter_task(texts)
        return lambda: dict(lp=run_harness(w.lm, task, size))
    return side

def _file_rows(items)->list:
    "Return the rows of BBQ's files that items were read from"
    rows = {}
    for c in {i.category for i in items}:
        for r in read_jsonl(fetch(f'bbq/{c}')): rows[f'{c}/{r["example_id"]}'] = r
    return [rows[i.id] for i in items]

def harness_bbq_task(w, scenes, size):
    "Return the harness's side: its own BBQ task"
    with _silence(): task = _bbq_task(_file_rows([i for scene in scenes for i in scene]))
    return lambda: dict(lp=run_harness(w.lm, task, size))

def bfloat16_model(w)->LM:
    "Return the model in bfloat16"
    if w.bfloat16_lm is None:
        w.bfloat16_lm = replace(w.lm, model=copy.deepcopy(w.lm.model).bfloat16())
    return w.bfloat16_lm

def _token_ids(lm, options):
    return [lm.tokenizer(o, add_special_tokens=False).input_ids[0] for o in options]


# %%
p = scoring_prompts(tiny.lm, tiny.scenes[:1])
ours = option_logprobs(tiny.lm, p, LETTERS)
texts = [x.text for x in p]
test_close(baseline_logprobs(tiny.lm, texts, _token_ids(tiny.lm, LETTERS), 2), ours, 1e-4)
ours.round(2)


# %% [markdown]
# The admissions question is asked about each student of a law school's table, once as white and
# once as Black. The [profiles](../bias/44_admissions.ipynb) are far fewer and give the same
# number when weighted by how often they occur. Time is measured on a part of either list and
# scaled to the whole.

# %%
#| export
def profile_pairs(w=None)->list: # (white, Black) applicants
    "Return one pair per profile of the law school's table, or of our own"
    return _pair_up(_students())

def student_pairs(w=None)->list: # (white, Black) applicants
    "Return one pair per student, in the table's order"
    students = _students()
    pairs = {(a.sex, a.lsat, a.gpa): (a,b) for a,b in _pair_up(students)}
    return [pairs[k] for k in zip(students.sex, students.lsat, students.gpa)]

def _students(): return load_students('law' if available('law/law_data') else 'ours')

def _pair_up(students):
    applicants = build_applicants(students)
    return list(zip(applicants[::2], applicants[1::2]))

def _admission_prompts(lm, pairs):
    return [build_prompt(lm, 'admissions', 'q', a.fields) for pair in pairs for a in pair]

def score_students(w, pairs, size):
    "Return the baseline: every student is scored"
    def run():
        texts = [p.text for p in _admission_prompts(w.lm, pairs)]
        return dict(lp=baseline_logprobs(w.lm, texts, _token_ids(w.lm, ['yes','no']), size))
    return run

def score_profiles(w, pairs, size):
    "Return our side: every profile is scored once"
    return lambda: dict(lp=option_logprobs(w.lm, _admission_prompts(w.lm, pairs), ['yes','no'],
                                           max_tokens=size))


# %%
len(student_pairs()), len(profile_pairs())

# %% [markdown]
# Both sides give the same log-probabilities for the same profiles; this is checked on a real model
# if one is in the cache:

# %%
name = 'smollm2-135m-instruct'
if cached_weights(name):
    real = ScoringWorkload(load(name, 'float32', 'cpu'), [])
    sides = (score_students,4), (score_profiles,900)
    a,b = (f(real, profile_pairs()[:2], n)()['lp'] for f,n in sides)
    test_close(a, b, 1e-3)
np.exp(b).round(4) if cached_weights(name) else f'{name} is not in the cache: left out here.'


# %% [markdown]
# In the reasoning row the model first samples at most 256 tokens at temperature 1, up to the next
# turn, and the letters are scored after them. The two sides sample different texts.

# %%
#| export
def _reasoning_sides(max_new_tokens=256):
    condition = 'q+if+cot'
    all_fields = lambda scenes: [i.fields for scene in scenes for i in scene]
    def theirs(w, scenes, size):
        def run():
            fields = all_fields(scenes)
            first = [build_prompt(w.lm, 'bbq', condition, f).text for f in fields]
            texts = baseline_generate(w.lm, first, max_new_tokens, size, STOP, do_sample=True,
                                      temperature=1., top_k=0, top_p=1.)
            full = [build_prompt(w.lm, 'bbq', condition, f, t).text for f,t in zip(fields, texts)]
            lp = baseline_logprobs(w.lm, full, _token_ids(w.lm, LETTERS), min(size, 8))
            return dict(lp=lp, wrote=np.mean([len(t) for t in w.lm.tokenizer(texts).input_ids]))
        return run
    def ours(w, scenes, size):
        def run():
            fields = all_fields(scenes)
            first = [build_prompt(w.lm, 'bbq', condition, f) for f in fields]
            stage2 = build_prompt(w.lm, 'bbq', condition, fields[0], '').text[len(first[0].text):]
            samples = sample(w.lm, first, max_new_tokens, stop=STOP, batch=size,
                             after=[(stage2, LETTERS)]*len(fields))
            return dict(lp=np.array([s.after for s in samples]),
                        wrote=np.mean([len(s.ids) for s in samples]))
        return run
    return theirs, ours


# %%
theirs,ours = (f(tiny, tiny.scenes[:1], 4)() for f in _reasoning_sides(8))
theirs['lp'].shape, theirs['wrote'], ours['wrote']


# %% [markdown]
# ## Rows
#
# Where both sides answer the same questions, `same_task`, their letters are compared. The harness's
# own task compares twelve strings, so that row measures the cost of a BBQ score and not the
# speed of an engine; the rows of letters compare engines.

# %%
#| export
@dataclass(frozen=True)
class ScoringRow(BenchmarkRow):
    "One comparison of scoring"
    sizes:tuple = ((1,4,16), (1024,4096)) # Batch sizes to choose from, theirs and ours
    same_task:bool = True # Both sides answer the same questions
    units:tuple = None    # All units of work of each side, called with the workload
    needs:tuple = ()      # 'lm_eval', 'bbq', 'bfloat16', 'cuda'
    max_units:int = 8     # Of a turn
    min_units:int = 2
    probe:int = 2         # Units on which the batch size is chosen
    repeats:int = 5       # Turns at most
    one_thread:bool = True # Also measured with one thread

_lm_eval = 'lm-evaluation-harness'
_two_conditions = ('q','q+if')
_harness = dict(needs=('lm_eval',))
_long = dict(probe=1, max_units=2, repeats=3, one_thread=False)
SCORING_ROWS = {
    'task': ScoringRow(f'{_lm_eval}, its bbq task, Q', harness_bbq_task, score_letters(), 15, 25,
                       same_task=False, needs=('lm_eval','bbq'), sizes=((4,16), (1024,4096)),
                       **_long),
    'letters': ScoringRow(f'{_lm_eval}, letters, Q', harness_letters(), score_letters(), 1.9, 3,
                          **_harness),
    'both': ScoringRow(f'{_lm_eval}, letters, Q and Q+IF', harness_letters(_two_conditions),
                       score_letters(_two_conditions), 3, 3.5, **_harness),
    'orders': ScoringRow(f'{_lm_eval}, letters, Q and Q+IF in 3 orders',
                         harness_letters(_two_conditions, 3), score_letters(_two_conditions, 3),
                         4, 5, **_harness, **_long),
    'bfloat16': ScoringRow('ours in float32', score_letters(), score_letters(model=bfloat16_model),
                           1.5, 2, sizes=((1024,4096), (1024,4096)), needs=('bfloat16',)),
    'admissions': ScoringRow('transformers, student by student', score_students, score_profiles,
                             19, 25, sizes=((4,16), (2048,8192)), same_task=False, min_units=96,
                             max_units=400, repeats=3, units=(student_pairs, profile_pairs),
                             one_thread=False),
    'reasoning': ScoringRow('generate, second stage without cache', *_reasoning_sides(), 2, 5,
                            same_task=False, sizes=((24,), (24,)), min_units=16, max_units=16,
                            probe=1, repeats=2, one_thread=False),
    'h100': ScoringRow(f'{_lm_eval}, letters, a model of 7B on an H100', harness_letters(),
                       score_letters(), 3, 5, needs=('lm_eval','cuda')),
}

def _skip_reason(row, w)->str: # Empty if the row can be measured
    cpuinfo = Path('/proc/cpuinfo')
    flags = cpuinfo.read_text() if cpuinfo.exists() else ''
    available = dict(lm_eval=find_spec('lm_eval'), bbq=w.original, cuda=torch.cuda.is_available(),
                     bfloat16=re.search('avx512_bf16|amx_bf16', flags))
    reasons = dict(lm_eval='lm_eval is not installed', bbq="BBQ's files are not available",
                   cuda='there is no GPU', bfloat16='this processor has no bfloat16')
    return '; '.join(reasons[k] for k in row.needs if not available[k])


# %%
pd.DataFrame([(k, r.against, r.floor, r.aim) for k,r in SCORING_ROWS.items()],
             columns=['row','against','floor','aim']).set_index('row')


# %% [markdown]
# ## Measuring a row
#
# Each side first chooses its batch size on a few units. Then both take turns; the number of units
# in a turn follows from the time that the row may take.

# %%
#| export
def _agreement(a, b):
    "Compare the answers of both sides, [question, option] log-probabilities"
    if a.shape!=b.shape: return {}
    top = np.sort(a, 1)
    ties = top[:,-1]-top[:,-2]<1e-3
    return dict(answers=len(a), same=float((a.argmax(1)==b.argmax(1)).mean()),
                near=float(ties.mean()), gap=float(np.abs(a-b).max()))

def measure_scoring(
    row:ScoringRow, w:ScoringWorkload,
    seconds=40.,  # Approximate time for the row
    repeats=5,
    max_units=None, # Units of work in a turn, at most; None: as the row needs
)->dict:
    "Measure one row with the current number of threads"
    work = [units(w) for units in row.units] if row.units else [w.scenes]*2
    sides = (row.theirs, row.ours)
    repeats = min(repeats, row.repeats)
    best = [choose_batch_size(lambda u, n, f=f: f(w, u, n), u[:row.probe], sizes)
            for f,u,sizes in zip(sides, work, row.sizes)]
    per_unit = [t/row.probe for _,t in best]
    turn = seconds*.7/repeats
    fit = (turn*.75/per_unit[0], turn*.25/per_unit[1]) if row.units else [turn/sum(per_unit)]*2
    most = [min(row.max_units, len(u), max_units or len(u)) for u in work]
    n = [int(np.clip(k, min(row.min_units, m), m)) for k,m in zip(fit, most)]
    runs = [f(w, u[:k], size) for f,u,k,(size,_) in zip(sides, work, n, best)]
    turns = interleave(runs, repeats)
    scale = np.array([len(u)/k for u,k in zip(work, n)])
    clocks = np.array([[side[:2] for side in turn] for turn in turns]) # [turn, side, clock]
    t = clocks*scale[:,None]
    results = [side[2] for side in turns[-1]]
    return dict(units=n, sizes=[size for size,_ in best], repeats=repeats,
        theirs=summarise(t[:,0,0]), ours=summarise(t[:,1,0]),
        ratio=summarise(t[:,0,0]/t[:,1,0]), cpu_ratio=summarise(t[:,0,1]/t[:,1,1]),
        **(_agreement(*(x['lp'] for x in results)) if row.same_task else {}),
        **{k: [float(x[k]) for x in results] for k in results[0] if k!='lp'})


# %%
result = measure_scoring(replace(SCORING_ROWS['admissions'], min_units=2), tiny, .5, 3)
result['units'], result['ratio'], result['cpu_ratio']


# %% [markdown]
# ## Running the benchmark
#
# The command `moral_sc bench scoring` calls `bench_scoring`. Every row is measured with all
# threads, and short rows also with one.

# %%
#| export
def bench_scoring(
    rows=None,      # Keys of `SCORING_ROWS`; None for all
    repeats=5,      # Turns of each side
    threads=None,   # Of both sides; None: one, then as many as there are
    device='cpu',   # Or 'cuda'
    seconds=40.,    # Approximate time per row and number of threads; long rows take more
    max_units=None, # Work in a turn, at most, for a trial; None: as the row needs
    model='smollm2-135m-instruct', # Or an `LM`
    out=None,       # JSON file, written after each row; other rows in it are kept
    progress=None,  # As in `measure_rows`
)->pd.DataFrame:    # See `scoring_table`
    "Measure our scoring against lm-evaluation-harness and transformers"
    if repeats<1: raise ConfigError(f'repeats is {repeats}; give 1 or more.')
    names = check_row_names(rows, SCORING_ROWS)
    counts = [threads] if threads else sorted({1, torch.get_num_threads()})
    lm = load(model, device=device) if isinstance(model, (str,Path)) else model
    w = scoring_workload(lm)
    record = start_record(out, describe_machine(device, counts), model=repr(w.lm))
    score_letters()(w, w.scenes[:1], 1024)() # Warm up
    def measure(name):
        row = SCORING_ROWS[name]
        reason = _skip_reason(row, w)
        if reason: return dict(skipped=reason)
        entry = {}
        for n in counts if row.one_thread else counts[-1:]:
            with torch_threads(n): result = measure_scoring(row, w, seconds, repeats, max_units)
            entry[str(n)] = result | dict(commit=record['provenance']['commit'], end=utc_now())
        return entry
    return scoring_table(measure_rows(record, names, measure, out, progress))

def scoring_table(
    record:dict,
)->pd.DataFrame: # One line per row and number of threads
    "Show a record of `bench_scoring`"
    return pd.DataFrame([dict(against=SCORING_ROWS[k].against, threads=int(n),
        theirs_s=format_summary(r['theirs']), ours_s=format_summary(r['ours']),
        ratio=format_summary(r['ratio']), cpu_ratio=format_summary(r['cpu_ratio']),
        same=f"{r['same']:.0%} of {r['answers']}" if 'same' in r else '',
        sizes=' / '.join(map(str, r['sizes'])), measured=r['end'][:10])
        for k,entry in record['rows'].items() for n,r in entry.items() if n!='skipped'])


# %%
with tempfile.TemporaryDirectory() as d:
    path = Path(d)/'bench.json'
    trial = dict(seconds=.2, max_units=2, model=tiny.lm, out=path)
    table = bench_scoring(['bfloat16','admissions'], 2, 1, **trial)
    bench_scoring(['orders'], 1, 1, **trial)
    record = json.loads(path.read_text())
test_eq(list(record['rows']), ['bfloat16','admissions','orders'])
assert record['provenance']['cpu'] and record['rows']['admissions']['1']['repeats']==2
table[['against','threads','ratio']]

# %%
with expect_fail(ConfigError, contains="There is no row 'order'; did you mean 'orders'"):
    bench_scoring(['order'])


# %% [markdown]
# ## Official record
#
# Official measurements are in `data/results`, one file per kind of device, with the machine they
# were made on.

# %%
#| export
def scoring_ratios(
    **records,    # cpu=record, gpu=record; default: the official ones
)->pd.DataFrame:  # Index: baseline; columns ratio, floor, aim
    "Show ratio, floor and aim of every row"
    records = records or {k:load_record('scoring', k) for k in ('cpu','gpu')}
    def line(name, row):
        kind = 'gpu' if 'cuda' in row.needs else 'cpu'
        entry = recorded_row(records.get(kind), name)
        if entry and 'skipped' not in entry: entry = entry[max(entry, key=int)]
        return dict(ratio=format_ratio(entry), floor=row.floor, aim=row.aim)
    return pd.DataFrame({r.against: line(k, r) for k,r in SCORING_ROWS.items()}).T


# %%
table = scoring_ratios(cpu=record)
test_eq(table.ratio.iloc[-1], 'not yet measured')
table
