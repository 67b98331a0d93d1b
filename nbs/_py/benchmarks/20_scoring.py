# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Bench
#
# > How much faster than what one would otherwise run, with both sides asked the same.

# %%
#| default_exp benchmarks.scoring

# %%
#| export
import contextlib, copy, io, json, logging, re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter, process_time

import numpy as np, pandas as pd, torch
from moral_sc.foundation.datasets import available, data_dir, fetch, read_jsonl
from moral_sc.foundation.errors import ConfigError, unknown_name_message
from moral_sc.foundation.runs import provenance
from moral_sc.language.loading import load
from moral_sc.language.models import LM
from moral_sc.language.generation import sample
from moral_sc.language.scoring import option_logprobs
from moral_sc.bias import bbq
from moral_sc.bias.admissions import build_applicants, load_students
from moral_sc.bias.asking import STOP
from moral_sc.bias.conditions import build_prompt
from moral_sc.bias.bbq.items import stratified

# %%
#| hide
import tempfile
from fastcore.test import *
from moral_sc.language.stub_models import random_model
from moral_sc.language.weights import cached_weights
torch.set_num_threads(1)


# %% [markdown]
# A speed-up over a tool means something only if the tool is asked the same thing, of the same
# weights in the same number type, on the same threads, at its own best batch size, and comes
# to the same answers. All of that happens here in one process: the two sides take turns, a
# ratio is the median over the turns with its range, and the answers are compared.
#
# ## What is asked
#
# Scenes of BBQ, each with its four questions, drawn over the categories like those of an
# evaluation.

# %%
#| export
@dataclass
class Setting:
    "What both sides work on"
    lm:LM
    scenes:list       # Lists of items of BBQ, or of our set where BBQ is out of reach
    authors:bool=True # They are the authors'
    half:LM=None      # The same weights in bfloat16, made when first needed

def setting(lm, n=64, seed=0)->Setting: # n: questions at most
    "A model and questions for it"
    lm = load(lm) if isinstance(lm, (str,Path)) else lm
    items = bbq.load() if bbq.reachable() else bbq.load(source='ours')
    scenes = list(bbq.by_quad(stratified(items, n, seed)).values())
    order = np.random.default_rng(seed).permutation(len(scenes))
    return Setting(lm, [scenes[i] for i in order], bool(bbq.reachable()))

def prompts(
    lm, scenes, conditions=('q',),
    orders=1, # 1, 3 or 6 orders of the options
)->list:
    "Every question in every condition and order"
    return [build_prompt(lm, 'bbq', c, bbq.reorder(i, o).fields) for s in scenes for i in s
            for c in conditions for o in bbq.orders_of(orders)]


# %%
tiny = setting(random_model('llama'), n=16)
many = prompts(tiny.lm, tiny.scenes, ('q','q+if'), 3)
len(tiny.scenes), len(many)


# %% [markdown]
# ## The other sides
#
# The evaluation harness of EleutherAI is what most published scores come from
# [@gao2024harness]. Its own BBQ task does not show the options; it asks how probable each of
# twelve strings is after "A:", the two people and ten ways to say "unknown". A task that asks
# for letters, as @ganguli2023 did, one writes by hand. Both get our model object and the same
# questions, through the harness's own interface. It is not needed for anything else in this
# project, and where it is not installed its rows are left out.

# %%
#| export
@contextlib.contextmanager
def _quietly():
    "Without progress bars and the harness's log"
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()): yield
    finally: logging.disable(before)

def _task(config, docs):
    import datasets
    from lm_eval.api.task import ConfigurableTask
    there = datasets.DatasetDict(test=datasets.Dataset.from_list(docs))
    return ConfigurableTask(config=config | dict(
        dataset_path='json', test_split='test', custom_dataset=lambda **_: there))

def _own_task(rows):
    "The harness's bbq task on these rows of BBQ's files"
    import lm_eval
    from lm_eval.tasks._yaml_loader import load_yaml
    path = Path(lm_eval.__file__).parent/'tasks'/'bbq'/'bbq_multiple_choice.yaml'
    return _task({k:v for k,v in load_yaml(path).items()
                  if k not in ('dataset_path','dataset_name','tag')}, rows)

def _letter_task(texts):
    "What one would write to have letters compared"
    config = dict(task='letters', output_type='multiple_choice', doc_to_text='{{prompt}}',
                  doc_to_choice=list('abc'), doc_to_target=0, target_delimiter='',
                  metric_list=[dict(metric='acc')])
    return _task(config, [dict(prompt=t) for t in texts])

def harness(lm, task, size):
    "Run a task of lm-evaluation-harness: [question, option] log-probabilities"
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    with _quietly():
        h = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=size)
        found = evaluate(lm=h, task_dict=dict(tasks=dict(t=task), groups={}, group_map={}),
                         bootstrap_iters=0)
    rows, = found['samples'].values()
    rows = sorted(rows, key=lambda r: r['doc_id'])
    return np.array([[x[0] for x in r['filtered_resps']] for r in rows])


# %% [markdown]
# For the other rows there is no tool, so we write what a careful person would: batches padded
# on the left, the output layer at the last position only, and `generate` where the model
# is to reason first, with its second stage read from the text anew.

# %%
#| export
def _tokens(lm, texts):
    tok = copy.copy(lm.tokenizer)
    if tok.pad_token is None: tok.pad_token = tok.eos_token
    tok.padding_side = 'left'
    return tok(texts, return_tensors='pt', padding=True).to(lm.device)

@torch.inference_mode()
def padded(
    lm, texts,
    options,  # Strings of one token each
    size,     # Texts in a batch
)->np.ndarray:
    "[text, option] log-probabilities by transformers alone"
    ids = [lm.tokenizer(o, add_special_tokens=False).input_ids[0] for o in options]
    res = []
    for k in range(0, len(texts), size):
        kw = _tokens(lm, texts[k:k+size])
        x = lm.model(**kw, logits_to_keep=1, use_cache=False).logits[:,-1].float()
        res.append(x.log_softmax(-1)[:,ids].cpu().numpy())
    return np.concatenate(res)

@torch.inference_mode()
def generated(lm, texts, new, size, seed=0)->list:
    "Continuations by `generate`, each cut where a new turn begins"
    torch.manual_seed(seed); res = []
    for k in range(0, len(texts), size):
        kw = _tokens(lm, texts[k:k+size])
        out = lm.model.generate(**kw, max_new_tokens=new, do_sample=True, temperature=1.,
            top_k=0, top_p=1., stop_strings=list(STOP), tokenizer=lm.tokenizer,
            pad_token_id=lm.tokenizer.eos_token_id)
        said = lm.tokenizer.batch_decode(out[:,kw.input_ids.shape[1]:],
                                         skip_special_tokens=True)
        res += [re.split('|'.join(STOP), s)[0] for s in said]
    return res


# %%
p = prompts(tiny.lm, tiny.scenes[:1])
ours = option_logprobs(tiny.lm, p, list('abc'))
test_close(padded(tiny.lm, [x.text for x in p], list('abc'), 2), ours, 1e-4)
ours.round(2)

# %% [markdown]
# ## Sides
#
# A side is made from units of work and a batch size (texts for the other tools, tokens for
# ours) and then run: what is made beforehand, such as the harness's task, is not timed. Ours
# begins with items and makes its prompts within the time.

# %%
#| export
letters = list('abc')

def asked(conditions=('q',), orders=1, lm=lambda s: s.lm):
    "Our side: letters, all in one call"
    def side(s, scenes, size):
        return lambda: dict(lp=option_logprobs(lm(s), prompts(lm(s), scenes, conditions,
                                                orders), letters, max_tokens=size))
    return side

def asked_by_harness(conditions=('q',), orders=1):
    "Its side: the same prompts as a task of letters"
    def side(s, scenes, size):
        texts = [p.text for p in prompts(s.lm, scenes, conditions, orders)]
        with _quietly(): task = _letter_task(texts)
        return lambda: dict(lp=harness(s.lm, task, size))
    return side

def raw(items)->list:
    "The rows of BBQ's files that items were read from"
    items = list(items)
    rows = {}
    for c in {i.category for i in items}:
        for r in read_jsonl(fetch(f'bbq/{c}')): rows[f'{c}/{r["example_id"]}'] = r
    return [rows[i.id] for i in items]

def own_task(s, scenes, size):
    "Its side: its bbq task"
    with _quietly(): task = _own_task(raw(i for q in scenes for i in q))
    return lambda: dict(lp=harness(s.lm, task, size))

def half(s)->LM:
    "The model in bfloat16"
    if s.half is None: s.half = replace(s.lm, model=copy.deepcopy(s.lm.model).bfloat16())
    return s.half


# %% [markdown]
# The admissions question is about each student of a law school's table, once as white and once as
# Black. [The profiles](../bias/44_admissions.ipynb) are far fewer, and say the same if each is counted as
# often as it occurs. Time is measured on a part of either list and scaled to the whole.

# %%
#| export
def profiles(s=None)->list: # Pairs: white and Black
    "Every profile of the law school's table, or of ours where that is out of reach"
    return _pairs(_table())

def students(s=None)->list:
    "The pair of each student, in the table's order"
    d = _table()
    at = {(a.sex, a.lsat, a.gpa): (a,b) for a,b in _pairs(d)}
    return [at[k] for k in zip(d.sex, d.lsat, d.gpa)]

def _table(): return load_students('law' if available('law/law_data') else 'ours')

def _pairs(d):
    a = build_applicants(d)
    return list(zip(a[::2], a[1::2]))

def admitted(lm, pairs)->list: # Of `Prompt`
    return [build_prompt(lm, 'admissions', 'q', a.fields) for pair in pairs for a in pair]

def each_student(s, people, size):
    "One by one: their side"
    return lambda: dict(lp=padded(s.lm, [p.text for p in admitted(s.lm, people)],
                                  ['yes','no'], size))

def each_profile(s, people, size):
    "Our side"
    return lambda: dict(lp=option_logprobs(s.lm, admitted(s.lm, people), ['yes','no'],
                                           max_tokens=size))


# %%
len(students()), len(profiles())

# %% [markdown]
# The two lists of prompts are answered alike, if a real model is at hand:

# %%
name = 'smollm2-135m-instruct'
if cached_weights(name):
    real = Setting(load(name, 'float32', 'cpu'), [])
    sides = (each_student,4), (each_profile,900)
    a,b = (f(real, profiles()[:2], n)()['lp'] for f,n in sides)
    test_close(a, b, 1e-3)
np.exp(b).round(4) if cached_weights(name) else f'{name} is not in the cache: left out here.'


# %% [markdown]
# Reasoning first: what the model writes is sampled, at most 256 tokens at temperature 1 and to
# the next turn, and the letters are read after it. The two sides draw different words.

# %%
#| export
def _cot(new=256):
    condition = 'q+if+cot'
    fields = lambda scenes: [i.fields for q in scenes for i in q]
    def theirs(s, scenes, size):
        def go():
            f = fields(scenes)
            first = [build_prompt(s.lm, 'bbq', condition, x).text for x in f]
            said = generated(s.lm, first, new, size)
            full = [build_prompt(s.lm, 'bbq', condition, x, t).text for x,t in zip(f, said)]
            wrote = np.mean([len(t) for t in s.lm.tokenizer(said).input_ids])
            return dict(lp=padded(s.lm, full, letters, min(size, 8)), wrote=wrote)
        return go
    def ours(s, scenes, size):
        def go():
            f = fields(scenes)
            first = [build_prompt(s.lm, 'bbq', condition, x) for x in f]
            turn = build_prompt(s.lm, 'bbq', condition, f[0], '').text[len(first[0].text):]
            said = sample(s.lm, first, new, stop=STOP, batch=size,
                          after=[(turn, letters)]*len(f))
            return dict(lp=np.array([t.after for t in said]),
                        wrote=np.mean([len(t.ids) for t in said]))
        return go
    return theirs,ours


# %%
theirs,ours = (f(tiny, tiny.scenes[:1], 4)() for f in _cot(new=8))
theirs['lp'].shape, theirs['wrote'], ours['wrote']


# %% [markdown]
# ## Rows
#
# `floor` and `aim` are the ratios that this project set itself before it measured them. Where both
# sides answer the same questions, `like`, they must give the same letters. The twelve strings
# of the harness's own task are another measurement than ours, so that row counts what a
# score costs, and the rows of letters compare engines.

# %%
#| export
@dataclass(frozen=True)
class Row:
    "One comparison"
    against:str
    theirs:object
    ours:object
    floor:float
    aim:float
    sizes:tuple = ((1,4,16), (1024,4096)) # Batch sizes to choose from, theirs and ours
    like:bool = True    # Both sides answer the same questions
    units:tuple = None  # What each side has to do in all, called with the setting
    needs:tuple = ()    # 'lm_eval', 'bbq', 'bfloat16', 'cuda'
    most:int = 8        # Units in a turn
    least:int = 2
    probe:int = 2       # Units on which the batch size is chosen
    turns:int = 5       # At most
    one:bool = True     # Measured with one thread as well

_lm_eval = 'lm-evaluation-harness'
_with = ('q','q+if')
_harness = dict(needs=('lm_eval',))
_long = dict(probe=1, most=2, turns=3, one=False)
rows = {
    'task': Row(f'{_lm_eval}, its bbq task, Q', own_task, asked(), 15, 25, like=False,
                needs=('lm_eval','bbq'), sizes=((4,16), (1024,4096)), **_long),
    'letters': Row(f'{_lm_eval}, letters, Q', asked_by_harness(), asked(), 1.9, 3,
                   **_harness),
    'both': Row(f'{_lm_eval}, letters, Q and Q+IF', asked_by_harness(_with), asked(_with),
                3, 3.5, **_harness),
    'orders': Row(f'{_lm_eval}, letters, Q and Q+IF in 3 orders',
                  asked_by_harness(_with, 3), asked(_with, 3), 4, 5, **_harness, **_long),
    'bfloat16': Row('ours in float32', asked(), asked(lm=half), 1.5, 2,
                    sizes=((1024,4096), (1024,4096)), needs=('bfloat16',)),
    'admissions': Row('transformers, student by student', each_student, each_profile,
                      19, 25, sizes=((4,16), (2048,8192)), like=False, least=96, most=400,
                      turns=3, units=(students, profiles), one=False),
    'reasoning': Row('generate, and all read again', *_cot(), 2, 5, like=False,
                     sizes=((24,), (24,)), least=16, most=16, probe=1, turns=2, one=False),
    'h100': Row(f'{_lm_eval}, letters, a model of 7B on an H100', asked_by_harness(),
                asked(), 3, 5, needs=('lm_eval','cuda')),
}

def missing(row, s)->str: # Empty if nothing is
    "Why a row cannot be measured here"
    cpu = Path('/proc/cpuinfo')
    flags = cpu.read_text() if cpu.exists() else ''
    have = dict(lm_eval=find_spec('lm_eval'), bbq=s.authors, cuda=torch.cuda.is_available(),
                bfloat16=re.search('avx512_bf16|amx_bf16', flags))
    said = dict(lm_eval='lm_eval is not installed', bbq="BBQ's files are out of reach",
                cuda='there is no GPU', bfloat16='this processor has no bfloat16')
    return '; '.join(said[k] for k in row.needs if not have[k])


# %%
pd.DataFrame([(k, r.against, r.floor, r.aim) for k,r in rows.items()],
             columns=['row','against','floor','aim']).set_index('row')


# %% [markdown]
# ## Taking turns
#
# Each side first chooses its batch size on few units. Then both take turns; a turn is as
# long as the time that a row may take allows. Times are kept by the clock and by the processor: on
# a machine that others use as well, the second is the one to trust.

# %%
#| export
def _clock(go):
    "Seconds by the clock and of the processor, and what came out"
    t = perf_counter()
    c = process_time()
    res = go()
    return perf_counter()-t, process_time()-c, res

def _best(side, s, units, sizes):
    "Batch size with the least time, and that time"
    took = {n: _clock(side(s, units, n))[0] for n in sizes}
    n = min(took, key=took.get)
    return n,took[n]

def _agree(a, b):
    "How far the answers of two sides are apart"
    if a.shape!=b.shape: return {}
    top = np.sort(a, 1)
    near = top[:,-1]-top[:,-2]<1e-3
    return dict(answers=len(a), same=float((a.argmax(1)==b.argmax(1)).mean()),
                near=float(near.mean()), gap=float(np.abs(a-b).max()))

def _span(x, scale=1.):
    return dict(mid=scale*float(np.median(x)), low=scale*float(np.min(x)),
                high=scale*float(np.max(x)))

def measure(
    row:Row, s:Setting,
    seconds=40.,  # What it may take, about
    repeats=5,
)->dict:
    "One row, with the threads as they are"
    whole = [u(s) for u in row.units] if row.units else [s.scenes]*2
    few = [w[:row.probe] for w in whole]
    sides = (row.theirs, row.ours)
    repeats = min(repeats, row.turns)
    chosen = [_best(f, s, u, z) for f,u,z in zip(sides, few, row.sizes)]
    each = [t/row.probe for _,t in chosen] # Of a unit, of a turn
    turn = seconds*.7/repeats
    share = (turn*.75/each[0],turn*.25/each[1]) if row.units else [turn/sum(each)]*2
    n = [int(np.clip(k, row.least, min(row.most, len(w)))) for k,w in zip(share, whole)]
    runs = [f(s, w[:k], size) for f,w,k,(size,_) in zip(sides, whole, n, chosen)]
    times = []
    last = None
    for _ in range(repeats):
        got = [_clock(go) for go in runs]
        times.append([t[:2] for t in got]); last = [t[2] for t in got]
    part_of = np.array([len(w)/k for w,k in zip(whole, n)])
    t = np.array(times)*part_of[:,None] # [turn, side, clock or processor]
    return dict(units=n, sizes=[size for size,_ in chosen], repeats=repeats,
        theirs=_span(t[:,0,0]), ours=_span(t[:,1,0]), ratio=_span(t[:,0,0]/t[:,1,0]),
        cpu_ratio=_span(t[:,0,1]/t[:,1,1]),
        **(_agree(*(x['lp'] for x in last)) if row.like else {}),
        **{k: [float(x[k]) for x in last] for k in last[0] if k!='lp'})


# %%
found = measure(replace(rows['admissions'], least=2), tiny, .5, 3)
found['units'], found['ratio'], found['cpu_ratio']


# %% [markdown]
# ## The table
#
# `bench` is what the command `moral_sc bench scoring` runs: every row with all threads, and
# those that do not take long with one as well.

# %%
#| export
def _machine(device, threads):
    gpu = torch.cuda.get_device_name() if device=='cuda' else None
    return provenance(device=device, threads=threads, gpu=gpu)

def _names(names):
    bad = [k for k in names or () if k not in rows]
    if bad: raise ConfigError(unknown_name_message('row', bad[0], list(rows)))
    return names or list(rows)

@contextlib.contextmanager
def _on(n):
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try: yield
    finally: torch.set_num_threads(before)

def _record(out, told, model): # To be filled; rows of the same machine and model are kept
    old = json.loads(Path(out).read_text()) if out and Path(out).exists() else {}
    same = old and old['model']==model and all(
        old['provenance'].get(k)==told.get(k) for k in ('cpu','gpu','cores','torch'))
    return dict(provenance=told, model=model, rows=old['rows'] if same else {})

def bench(
    names=None,     # Keys of `rows`; None for all
    repeats=5,      # Turns of each side
    threads=None,   # Of both sides; None: one, then as many as there are
    device='cpu',   # Or 'cuda'
    seconds=40.,    # For a row and number of threads, about; heavy rows take longer
    model='smollm2-135m-instruct', # Or an `LM`
    out=None,       # JSON file, written after each row; other rows in it are kept
    said=lambda name: None, # Called before each row, for a progress line
)->pd.DataFrame:
    "Measure our scoring beside what one would otherwise run"
    if repeats<1: raise ConfigError(f'repeats is {repeats}; give 1 or more.')
    names = _names(names)
    counts = [threads] if threads else sorted({1, torch.get_num_threads()})
    s = setting(load(model, device=device) if isinstance(model, (str,Path)) else model)
    record = _record(out, _machine(device, counts), repr(s.lm))
    asked()(s, s.scenes[:1], 1024)() # Warm
    for name in names:
        said(name)
        why = missing(rows[name], s)
        record['rows'][name] = dict(skipped=why) if why else {}
        for n in () if why else counts if rows[name].one else counts[-1:]:
            with _on(n): found = measure(rows[name], s, seconds, repeats)
            record['rows'][name][str(n)] = found | dict(
                commit=record['provenance']['commit'],
                end=datetime.now(UTC).isoformat(timespec='seconds'))
        if out: Path(out).write_text(json.dumps(record, indent=1)+'\n')
    return frame(record)

def frame(record:dict)->pd.DataFrame: # One line a row and number of threads
    "A record of `bench` as a table"
    span = lambda d: f"{d['mid']:.3g} [{d['low']:.3g}, {d['high']:.3g}]"
    return pd.DataFrame([dict(against=rows[k].against, threads=int(n),
        theirs_s=span(r['theirs']), ours_s=span(r['ours']), ratio=span(r['ratio']),
        cpu_ratio=span(r['cpu_ratio']),
        same=f"{r['same']:.0%} of {r['answers']}" if 'same' in r else '',
        sizes=' / '.join(map(str, r['sizes'])), measured=r['end'][:10])
        for k,found in record['rows'].items() for n,r in found.items() if n!='skipped'])


# %%
with tempfile.TemporaryDirectory() as d:
    found = bench(['bfloat16','admissions'], 2, 1, seconds=.2, model=tiny.lm,
                  out=Path(d)/'bench.json')
    bench(['orders'], 1, 1, seconds=.2, model=tiny.lm, out=Path(d)/'bench.json')
    kept = json.loads((Path(d)/'bench.json').read_text())
test_eq(list(kept['rows']), ['bfloat16','admissions','orders'])
assert kept['provenance']['cpu'] and kept['rows']['admissions']['1']['repeats']==2
found[['against','threads','ratio']]

# %%
with expect_fail(ConfigError, contains="There is no row 'order'; did you mean 'orders'"):
    bench(['order'])


# %% [markdown]
# ## The record
#
# Official measurements lie in `data/results`, one file for each kind of device, with the machine
# they come from.

# %%
#| export
def recorded(kind:str)->dict: # 'cpu' or 'gpu'
    "The official record of `bench`, or None"
    path = data_dir()/'results'/f'bench_scoring_{kind}.json'
    return json.loads(path.read_text()) if path.exists() else None

def comparison(**records)->pd.DataFrame: # kind -> record; without any, the official ones
    "Ratio, floor and aim of every row"
    records = records or dict(cpu=recorded('cpu'), gpu=recorded('gpu'))
    def cell(r):
        if not r: return 'not yet measured'
        if 'skipped' in r: return r['skipped']
        d = r[max(r, key=int)]['ratio']
        return '{mid:.3g} [{low:.3g}, {high:.3g}]'.format(**d)
    def line(k, r):
        kind = 'gpu' if 'cuda' in r.needs else 'cpu'
        found = ((records.get(kind) or {}).get('rows') or {}).get(k)
        return dict(ratio=cell(found), floor=r.floor, aim=r.aim)
    return pd.DataFrame({r.against: line(k, r) for k,r in rows.items()}).T


# %%
found = comparison(cpu=kept)
test_eq(found.ratio.iloc[-1], 'not yet measured')
found
