# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Sweep
#
# > Evaluation of many models and training steps on many benchmarks, with one table of results.

# %%
#| default_exp bias.sweep

# %% [markdown]
# The paper asks how bias depends on model size and on the number of RLHF steps; it evaluates 88 models,
# eight sizes at eleven steps [@ganguli2023]. `sweep` evaluates any list of models and saves a folder for
# each model and benchmark. A sweep that was stopped continues where it was, and a model that has been
# evaluated completely is not loaded again.

# %%
#| export
import gc, inspect, json, re, warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np, pandas as pd
from moral_sc.bias.bbq.items import coverage, load_items, reachable_categories
from moral_sc.bias.bbq.scoring import directions
from moral_sc.bias.evaluation import TABLES, plan_evaluation, run_plan
from moral_sc.bias.bbq.metrics import asked_items, condition_probabilities
from moral_sc.foundation.arguments import checked, unknown_argument_message
from moral_sc.foundation.errors import ConfigError, ModelError, unknown_name_message
from moral_sc.foundation.files import write_file
from moral_sc.foundation.runs import content_key
from moral_sc.foundation.statistics import Estimate, FunctionOfMeans, cluster_bootstrap
from moral_sc.foundation.tables import check_columns
from moral_sc.language.loading import load as load_model
from moral_sc.language.models import LM
from moral_sc.language.weights import get_alias, aliases

# %%
#| hide
import os, shutil, signal, tempfile
from fastcore.test import *
from moral_sc.bias import bbq
from moral_sc.bias.asking import bbq_stub_model
from moral_sc.foundation.runs import start_ranks
from moral_sc.language.stub_models import letter_prior_model, random_model

tmp = Path(tempfile.mkdtemp())
ours = bbq.load(source='ours')


# %% [markdown]
# ## Models
#
# A model is an alias, a folder or a repository on the hub, each with an optional `@revision`. A folder that
# holds checkpoints, such as `checkpoint-100` and `step_50`, stands for all of them in the order of their
# steps.

# %%
#| export
@dataclass(frozen=True)
class ModelSpec:
    "One model of a sweep"
    name:str            # In tables; unique within a sweep
    source:object       # What `load` takes, or a loaded model
    family:str          # Models of one family are compared over size, or over steps
    stage:str=''        # 'base', 'sft', 'dpo', 'instruct', ...
    step:int|None=None  # Training step, if known
    parameters:int|None=None # Default: counted when the model is loaded

def parse_step(
    text:str,  # Name of a checkpoint or revision
)->int|None:
    "Parse the training step in a name: 'checkpoint-100', 'step_100', 'step100-tokens2B'"
    m = re.search(r'(?:^|[^a-z])(?:checkpoint|step|global_step|iter)[-_]?(\d+)', text.lower())
    return int(m[1]) if m else None

def _snapshots(folder):
    if (folder/'config.json').is_file(): return []
    snapshots = [(parse_step(d.name), d) for d in folder.glob('[!.]*')
                 if (d/'config.json').is_file()]
    return sorted((s,d) for s,d in snapshots if s is not None)


# %%
#| export
def _expand_model(model):
    "Return the models that one name stands for"
    if isinstance(model, ModelSpec): return [model]
    if isinstance(model, LM): return [ModelSpec(model.name, model, model.name)]
    name = str(model)
    path = Path(model).expanduser()
    if path.is_dir():
        if (path/'config.json').is_file():
            return [ModelSpec(path.name, str(path), path.parent.name, step=parse_step(path.name))]
        snapshots = _snapshots(path)
        if not snapshots: raise ModelError(f'{path} has neither a model nor checkpoints with a '
                                           'step in their names, such as checkpoint-100.')
        return [ModelSpec(f'{path.name}/{d.name}', str(d), path.name, step=s) for s,d in snapshots]
    base,_,revision = name.partition('@')
    if base in aliases() or '/' not in base and path.suffix!='.gguf':
        a = get_alias(name)
        step = parse_step(revision) if revision else a.step
        return [ModelSpec(name, name, a.family or base, a.stage, step)]
    return [ModelSpec(name, name, base, step=parse_step(revision) if revision else None)]

def expand_models(
    models,   # One or several: aliases, folders, 'name@revision', loaded models, `ModelSpec`s
)->list:
    "List all models of a sweep, with one entry per checkpoint"
    listed = models if isinstance(models, (list,tuple)) else [models]
    specs = [s for m in listed for s in _expand_model(m)]
    names = [s.name for s in specs]
    repeated = {n for n in names if names.count(n)>1}
    if repeated: raise ConfigError(f'{sorted(repeated)[0]} is named twice; name each model once.')
    if not specs: raise ConfigError('A sweep needs at least one model.')
    return specs


# %%
for k in (200, 50, 1000): # The weights of one model at three steps
    lm = random_model('llama', seed=k)
    for x in (lm.model, lm.tokenizer): x.save_pretrained(tmp/'mine'/f'checkpoint-{k}')

pd.DataFrame([s.__dict__ for s in expand_models(['smollm2-135m-instruct', 'pythia-410m@step1000',
                                            'olmo-2-7b-dpo', tmp/'mine'])]).drop(columns='source')

# %%
test_eq([s.step for s in expand_models(tmp/'mine')], [50,200,1000])
test_eq([parse_step(n) for n in ('step_7', 'main', 'global_step143000', 'v2-step3', 'misstep3')],
        [7, None, 143000, 3, None])
with expect_fail(ConfigError, contains='named twice'): expand_models(['pythia-70m']*2)
with expect_fail(ConfigError, contains="did you mean 'pythia-70m'"): expand_models('pythia-70')
with expect_fail(ModelError, contains='has neither'): expand_models(tmp)


# %% [markdown]
# The aliases of `data/models.toml` group models by family: all sizes, or all stages of one size.

# %%
#| export
def models_of_families(
    *families:str,          # 'qwen2.5', 'olmo-2', ...
    stages=None,            # 'instruct', ...; default: all
    max_parameters:float=np.inf,   # Parameters
)->list:                    # Names, smallest first
    "List the aliases of model families"
    known = {a.family for a in aliases().values()}
    for f in families:
        if f not in known: raise ConfigError(unknown_name_message('family', f, sorted(known)))
    matches = [a for a in aliases().values()
               if a.family in families and a.parameters<=max_parameters
               and (stages is None or a.stage in stages)]
    return [a.name for a in sorted(matches, key=lambda a: (families.index(a.family), a.parameters))]


# %%
(models_of_families('qwen2.5', stages=['instruct'], max_parameters=2e9),
 models_of_families('olmo-2', max_parameters=2e9))

# %%
with expect_fail(ConfigError, contains="did you mean 'qwen3'"): models_of_families('qwen4')


# %% [markdown]
# ## Folders
#
# The answers of one model to one benchmark are a run of `evaluate`. When it is complete, its tables are
# written beside it, and last a note of the settings and the model. A folder with a matching note is read
# instead of evaluated; a different note raises an error. For a model in a local folder the note holds
# sizes and dates of its files, so weights that were trained further are recognised as new.

# %%
#| export
def _safe(name): return re.sub(r'[^\w.@-]', '-', str(name))

def _fingerprint(spec):
    "Identify a model without loading it"
    if isinstance(spec.source, LM): return content_key(model=spec.source.identity)
    d = Path(spec.source).expanduser()
    if not d.is_dir(): return str(spec.source)
    files = [(p.name, p.stat().st_size, p.stat().st_mtime_ns)
             for p in sorted(d.glob('[!.]*')) if p.is_file()]
    return content_key(files=files)

def _read_note(folder, asked):
    "Read the note of a finished folder; None if it is not finished"
    note = folder/'sweep.json'
    if not note.is_file(): return None
    stored = json.loads(note.read_text(encoding='utf-8'))
    conflicts = [f'{k}: {stored["asked"].get(k)} there, {v} now' for k,v in asked.items()
                 if stored['asked'].get(k)!=v]
    if conflicts: raise ConfigError(f'{folder} has results of other settings '
                                    f'({"; ".join(conflicts)}); choose another folder with out=.')
    return stored

def read_exact_csv(
    path, # A .csv file
)->pd.DataFrame:
    "Read a table with exactly the numbers that were written"
    return pd.read_csv(path, float_precision='round_trip')


# %% [markdown]
# ## `sweep`
#
# A sweep over sixty models should not stop at one whose licence was not accepted. Errors of single models
# are saved in `failed` and reported at the end; the other models are evaluated.

# %%
#| export
@dataclass(repr=False)
class SweepResult:
    "Results of `sweep`"
    table:pd.DataFrame  # One row per model, benchmark, condition, category and metric
    out:str             # Its folder
    runs:dict           # (model, benchmark) to folder
    failed:dict         # Model to its error message

    def __repr__(self):
        t = self.table
        n = 0 if t.empty else t.model.nunique()
        bad = f', {len(self.failed)} failed' if self.failed else ''
        bbq = t[t.metric.str.startswith('bias_')]
        covered = '' if bbq.empty else f'; BBQ: {coverage(bbq.category)}'
        return f'Sweep of {n} models{bad}: {len(t):,} rows in {Path(self.out).name}{covered}'

    def records(self, model, benchmark=None): # Every answer of one model
        b = benchmark or next(b for m,b in self.runs if m==model)
        return read_exact_csv(Path(self.runs[model, b])/'records.csv')

COLUMNS = ['model', 'family', 'stage', 'parameters', 'step', 'benchmark', 'condition',
           'category', 'metric', 'value', 'low', 'high']

def _result_rows(note, folder):
    "Return metrics and differences of one run, with columns for its model"
    tables = [read_exact_csv(folder/f'{t}.csv') for t in TABLES[1:]]
    d = pd.concat(tables, ignore_index=True).assign(**note['model'])
    return d.assign(step=d.step.astype('Int64'), stage=d.stage.fillna(''))[COLUMNS]


# %%
#| export
@checked
def sweep(
    models,                   # See `expand_models`
    benchmarks=('bbq',),      # See `evaluate`
    conditions=None,          # Default: those of each benchmark
    out='runs/sweep',         # Folder of all runs
    limit:int|None=None,      # At most so many questions per benchmark
    orders:int=1,             # Option orders: 1, 3 or 6
    seed:int=0,
    mode:str='plain',
    dtype='auto',
    device='auto',
    progress=None,            # True for bars, or a function (model, saved answers, all answers)
    **kw,                     # items, wordings, samples, categories, ... of `evaluate`
)->SweepResult:
    "Evaluate many models; an interrupted sweep resumes"
    known = list(inspect.signature(plan_evaluation).parameters)
    for k in kw:
        if k not in known: raise ConfigError(unknown_argument_message('sweep', k, known))
    specs = expand_models(models)
    plans = plan_evaluation(benchmarks, conditions, limit, orders, seed, mode, **kw).split()
    settings = dict(limit=limit, orders=orders, seed=seed, mode=mode, dtype=str(dtype)) | {
        k:v for k,v in kw.items() if k not in ('portion','max_tokens',*_TEXTS)}
    asked = {n:settings|dict(conditions=p.conditions[n])|_own_texts(p, n, kw)
             for n,p in plans.items()}
    runs = {}
    failed = {}
    for s in specs:
        todo = {n:(Path(out)/_safe(s.name)/_safe(n), a|dict(weights=_fingerprint(s)))
                for n,a in asked.items()}
        report = _report_for(progress, s)
        try: _evaluate_model(s, plans, todo, dtype, device, report)
        except ModelError as e: failed[s.name] = str(e)
        runs |= {(s.name, n):str(d) for n,(d,a) in todo.items() if _read_note(d, a)}
    return _collect_results(out, runs, failed)

_TEXTS = ('items', 'wordings', 'conditions_file')

def _own_texts(plan, name, kw):
    "Return what identifies the user's questions and texts"
    out = {} if kw.get('items') is None else dict(questions=plan.digests[name])
    return out if plan.texts is None else out|dict(texts=plan.texts[name])

def _report_for(progress, s):
    return (lambda n,total: progress(s.name, n, total)) if callable(progress) else progress

def _evaluate_model(s, plans, todo, dtype, device, progress):
    "Evaluate one model on the benchmarks that are not finished"
    left = {n:x for n,x in todo.items() if not _read_note(*x)}
    if not left: return
    lm = s.source if isinstance(s.source, LM) else load_model(s.source, dtype, device)
    model = dict(model=s.name, family=s.family, stage=s.stage, step=s.step,
                 parameters=s.parameters or lm.parameters)
    for n,(folder,a) in left.items():
        e = run_plan(plans[n], lm, folder, progress)
        note = dict(model=model, asked=a, source=lm.source, is_stub=lm.is_stub,
                    provenance=e.provenance)
        write_file(folder/'sweep.json', json.dumps(note, indent=1))
    del lm
    if model['parameters']>10**7: gc.collect() # The next model may need the memory

def _collect_results(out, runs, failed):
    "Collect all finished runs in one table"
    notes = {k:json.loads((Path(d)/'sweep.json').read_text()) for k,d in runs.items()}
    rows = [_result_rows(notes[k], Path(d)) for k,d in runs.items()]
    for m,message in failed.items(): warnings.warn(f'{m} was left out: {message}', stacklevel=3)
    if not rows: raise ModelError(f'No model could be asked; {next(iter(failed.values()))}')
    result = SweepResult(pd.concat(rows, ignore_index=True), str(out), runs, failed)
    write_file(Path(out)/'table.csv', result.table.to_csv(index=False))
    return result


# %% [markdown]
# The example has two stub models with a stereotype bias, one of which follows the instruction, and the
# three checkpoints, on a subset of our own questions:

# %%
def leans(item, instructed): return [{item.unknown:.4, item.biased:.4}.get(k, .2) for k in range(3)]
def heeds(item, instructed):
    p = {item.unknown:.8} if instructed else {item.unknown:.4, item.biased:.4}
    return [p.get(k, .1 if instructed else .2) for k in range(3)]

ask = dict(benchmarks='bbq-like', limit=16, orders=3, out=tmp/'sweep')
models = [bbq_stub_model(leans, ours), bbq_stub_model(heeds, ours), tmp/'mine']
found = sweep(models, **ask)
found


# %%
def soft(t, metric='bias_ambig_soft'):
    d = t.query('category=="micro" and metric==@metric')
    return d.pivot_table(index='model', columns='condition', values='value', sort=False)
soft(found.table).round(3)

# %%
t = soft(found.table)
test_close(t.loc['heeds'], [.2, 0, -.2], eps=1e-6)
test_close(t.loc['leans'], [.2, .2, 0], eps=1e-6)
found.table[['model','family','parameters','step']].drop_duplicates()


# %% [markdown]
# Nothing is loaded twice. If everything is finished, the same call reads five folders; if a sixth model is
# added, only that one is evaluated. The next cell would fail if a model were loaded.

# %%
def never(*a, **k): raise AssertionError('A model was loaded.')

from unittest import mock
with mock.patch('moral_sc.bias.sweep.load_model', never), \
     mock.patch('moral_sc.bias.sweep.run_plan', never):
    again = sweep(models, **ask)
pd.testing.assert_frame_equal(again.table, found.table)

more = sweep([*models, letter_prior_model(dict(a=.1, b=.2, c=.7))], **ask)
test_eq(more.table.model.nunique(), 6)
more

# %% [markdown]
# Other settings in the same folder raise an error, and so do weights that have changed. Settings are checked before a
# model is loaded.

# %%
with mock.patch('moral_sc.bias.sweep.load_model', never):
    for wrong,said in ((dict(order=3), "did you mean 'orders'"), (dict(limit='8'), 'whole number'),
                       (dict(wordings={'kind':'x'}), "'kind' needs a name")):
        with expect_fail(ConfigError, contains=said): sweep(tmp/'mine', 'bbq-like', **wrong)
with expect_fail(ConfigError, contains='limit: 16 there, 48 now'):
    sweep(models, **ask|dict(limit=48))
lm.model.save_pretrained(tmp/'mine'/'checkpoint-50')
with expect_fail(ConfigError, contains='weights'): sweep(tmp/'mine', **ask)

# %% [markdown]
# A sweep of one condition has no differences, and is read again all the same.

# %%
single = dict(benchmarks='bbq-like', conditions=['q'], limit=4, out=tmp/'single')
one,two = (sweep(models[0], **single).table for _ in range(2))
pd.testing.assert_frame_equal(one, two)

# %% [markdown]
# A model that cannot be loaded is skipped with a warning.

# %%
(tmp/'empty').mkdir(); (tmp/'empty'/'config.json').write_text('{}')
with warnings.catch_warnings(record=True) as messages:
    warnings.simplefilter('always')
    some = sweep([models[0], tmp/'empty'], **ask)
test_eq(list(some.failed), ['empty'])
str(messages[-1].message).replace(f'{tmp}/', '')

# %% [markdown]
# ### Resuming
#
# A process is killed without warning while it evaluates its second model, and the sweep is started again
# here. The table equals that of an uninterrupted sweep, in whatever order models are given.

# %%
ask = dict(benchmarks='bbq-like', limit=16, portion=8)
def die(model, done, total):
    if 'checkpoint-200' in model: os.kill(os.getpid(), signal.SIGKILL)

victim, = start_ranks(lambda: sweep(tmp/'mine', out=tmp/'cut', progress=die, **ask), 1)
victim.join()
done = sorted(p.parent.parent.name for p in (tmp/'cut').rglob('sweep.json'))
done, victim.exitcode

# %%
cut = sweep(tmp/'mine', out=tmp/'cut', **ask)
whole = sweep(tmp/'mine', out=tmp/'whole', **ask)
test_eq(done, ['mine-checkpoint-50'])
pd.testing.assert_frame_equal(cut.table, whole.table)
backwards = sweep(expand_models(tmp/'mine')[::-1], out=tmp/'cut', **ask)
test_eq(set(backwards.table.value.dropna()), set(cut.table.value.dropna()))


# %% [markdown]
# ## Trends
#
# Whether bias rises with size is one number: the slope of the score over the logarithm of the number of
# parameters. All models answer the same questions, so templates are drawn once for all of them, and
# effects that a template has on every model do not widen the interval.

# %%
#| export
def item_bias(
    records:pd.DataFrame,  # Of BBQ, one model
    condition:str='q',
    soft:bool=True,        # From probabilities
)->pd.DataFrame:           # id, template, category, value
    "Return the contribution of each ambiguous question to the bias score"
    qs = asked_items(records)
    d = directions(condition_probabilities(records, condition, soft), qs)
    rows = [dict(id=q.id, template=q.template, category=q.category, value=v)
            for q,v in zip(qs, d[:,0]-d[:,1]) if q.context_condition=='ambig' and v==v]
    return pd.DataFrame(rows)

def least_squares_slope(
    x,  # [model]
    y,  # [model] or [model, draw]
):      # A number, or one a draw
    "Return the least-squares slope of `y` over `x`"
    x = np.asarray(x, float)-np.mean(x)
    return x@y/(x@x)

def trend(
    values,    # Tables of `item_bias`, one per model, in the order of `x`
    x,         # [model] log10 of parameters, or training steps
    **kw,      # n, level, seed of the bootstrap
)->Estimate:   # Per unit of x
    "Estimate the slope of a score along an axis, over questions that all models were asked"
    if len(values)!=len(x) or len(set(x))<2:
        raise ConfigError(f'A trend needs two models or more that differ; got {list(x)}.')
    wide = pd.concat([v.set_index('id').value for v in values], axis=1, join='inner')
    at = values[0].set_index('id').loc[wide.index]
    sizes = at.groupby('category').template.nunique()
    strata = at.category if sizes.min()>1 else None
    slopes = FunctionOfMeans(lambda m: least_squares_slope(x, m.T))
    return cluster_bootstrap(wide.to_numpy(), at.template, slopes, strata=strata, **kw)


# %% [markdown]
# In the example, models of one million to one hundred million parameters have a score that grows by 0.05
# per factor of ten, and templates have large effects on all of them:

# %%
rng = np.random.default_rng(0)
template = np.repeat(range(40), 4)
sway = rng.normal(0, .3, 40)[template]
base = pd.DataFrame(dict(id=range(160), template=template, category='Age'))
grown = [base.assign(value=.05*k + sway + rng.normal(0, .1, 160)) for k in range(3)]
trend(grown, [6,7,8]), Estimate(*cluster_bootstrap(grown[2].value, template))

# %%
est = trend(grown, [6,7,8])
assert est.low<.05<est.high and est.high-est.low<.05
test_close(least_squares_slope([0,1,3], [0,2,6.]), 2)
with expect_fail(ConfigError, contains='two models or more'): trend(grown[:1], [6])


# %% [markdown]
# The onset of self-correction is the smallest size at which the instruction reduces the score: a paired
# difference whose interval lies below zero.

# %%
#| export
def onset(
    table:pd.DataFrame,            # Of a sweep
    condition:str='q+if - q',
    metric:str='bias_ambig_soft',
    category:str='micro',
)->dict|None:                      # Row of the smallest such model, None if there is none
    "Find the smallest model that is less biased under a condition"
    columns = ['condition','metric','category','high','parameters']
    check_columns(table, columns, 'the table of a sweep')
    d = table[(table.condition==condition) & (table.metric==metric)
              & (table.category==category) & (table.high<0)]
    return None if d.empty else d.sort_values('parameters').iloc[0].to_dict()


# %%
onset(found.table)['model']

# %% [markdown]
# ## Stub models for pages
#
# Pages about sweeps also run where no weights are available. Their stub models have a size and steps
# assigned to them, a bias that appears between the second and third size, and a largest model that
# increasingly follows the instruction over its steps.

# %%
#| export
STUB_SETTINGS = [ # parameters, step, p(unknown), bias, p(unknown) under the instruction
    (10**8, None, .34, .0, .34), (10**9, None, .36, .1, .36), (10**10, None, .4, .5, .45),
    (10**11, 100, .5, .8, .55), (10**11, 500, .5, .8, .7), (10**11, 1000, .5, .8, .9)]

def stub_sweep_models(
    items:list,  # Questions they can answer
)->list:         # Of `ModelSpec`
    "Return stub models of known bias, with several sizes and steps"
    from moral_sc.bias.asking import bbq_stub_model
    def one(n, step, unknown, lean, instructed_unknown):
        def rule(i, instructed):
            u = instructed_unknown if instructed else unknown
            b = (1+lean*(.5 if i.category=='Sexual_orientation' else 1))/2
            settled = i.context_condition=='disambig'
            p = {i.unknown:u, i.biased:(1-u)*b, i.counter:(1-u)*(1-b)}
            mix = min(1, n/10**10)*settled
            return [mix*(k==i.label) + (1-mix)*p[k] for k in range(3)]
        name = f'stand-in-{n:.0e}'.replace('+','') + (f'-step{step}' if step else '')
        lm = bbq_stub_model(rule, items, name)
        return ModelSpec(name, lm, 'stand-in', step=step, parameters=n)
    return [one(*x) for x in STUB_SETTINGS]


# %%
standing = sweep(stub_sweep_models(ours), 'bbq-like', limit=32, out=tmp/'standing').table
soft(standing).round(3)

# %%
test_close(soft(standing).q, [(1-u)*l*15/16 for _,_,u,l,_ in STUB_SETTINGS], eps=.03)
test_eq(onset(standing)['parameters'], 10**10)


# %% [markdown]
# A page that takes models by name asks these stub models when none is given.

# %%
#| export
def models_or_stubs(
    names,    # Names of models, may be empty
)->dict:      # Models and benchmark, as `sweep` takes them
    "Choose BBQ for named models, and the stub models on our own questions if there are none"
    if names: return dict(models=list(names),
                          benchmarks='bbq' if reachable_categories() else 'bbq-like')
    return dict(models=stub_sweep_models(load_items(source='ours')), benchmarks='bbq-like')


# %%
test_eq(models_or_stubs(())['benchmarks'], 'bbq-like')
test_eq(len(models_or_stubs(())['models']), len(STUB_SETTINGS))

# %%
#| hide
shutil.rmtree(tmp)
