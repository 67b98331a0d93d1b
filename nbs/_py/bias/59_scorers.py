# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Scorers of other tools
#
# > BBQ as lm-evaluation-harness, Inspect, HELM and DeepEval score it, behind one interface.

# %%
#| default_exp bias.scorers

# %% [markdown]
# Each function here passes the lines of [an answer file](57_answer_files.ipynb) to the code with which another tool scores
# BBQ, and returns what that code computes. Nothing of the tools is copied, and none is a dependency: a tool that is not
# installed is named in an error. [The results](../papers/self_correction/scorer_conformance.ipynb) are on a page of
# their own.

# %%
#| export
import asyncio, json, os, random, tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np, pandas as pd
from moral_sc.bias.answer_files import bbq_cases, original_questions, own_questions
from moral_sc.bias.conformance import build_reply, check_scorer, own_scorer
from moral_sc.foundation.errors import ConfigError, unknown_name_message
from moral_sc.foundation.files import write_file
from moral_sc.foundation.runs import provenance

# %%
#| hide
from fastcore.test import *
from moral_sc.bias.conformance import case_table


# %% [markdown]
# ## Preparation
#
# No tool but ours is told that options were shown in another order. Each gets the question as the model saw it.

# %%
#| export
def row_as_shown(
    line:dict,  # Of an answer file of BBQ
)->dict:        # In BBQ's format
    "Return a question with its options in the order in which the model saw them"
    row = line['row']
    old = [row[f'ans{k}'] for k in range(3)]
    order = [old.index(t) for t in line['shown']]
    infos = {f'ans{n}':row['answer_info'][f'ans{k}'] for n,k in enumerate(order)}
    return row | {f'ans{n}':old[k] for n,k in enumerate(order)} | dict(
        answer_info=infos, label=order.index(row['label']))

def _reply(line): return line['letter'].upper() if line['letter'] else line['text']

def _categories(lines): return list(dict.fromkeys(l['row']['category'] for l in lines))


# %%
line = bbq_cases(names=['shuffled'])[0].lines[0]
row = row_as_shown(line)
test_eq([row[f'ans{k}'] for k in range(3)], line['shown'])
test_eq(row[f"ans{row['label']}"], line['row'][f"ans{line['row']['label']}"])

# %% [markdown]
# ## lm-evaluation-harness
#
# The task `bbq` compares the log-probabilities of the two people and of ten ways to decline. The answer in the file gets the
# highest one; a text that is none of them cannot occur. The task `bbq_generate` reads a text [@gao2024harness].

# %%
#| export
_HARNESS = dict(acc='accuracy', accuracy_amb='accuracy_ambig', accuracy_disamb='accuracy_disambig',
                amb_bias_score='bias_ambig', disamb_bias_score='bias_disambig')

def _harness_scorer(process):
    def scorer(lines):
        from datasets import Dataset, disable_progress_bars
        from lm_eval.tasks.bbq import utils
        disable_progress_bars()
        docs = utils.process_docs(Dataset.from_list([row_as_shown(l) for l in lines]))
        results = [process(utils, d, l) for d,l in zip(docs, lines)]
        if None in results:
            return dict(unsupported='compares log-probabilities of choices, and reads no text')
        functions = dict(acc=np.mean, accuracy_amb=utils.agg_accuracy_amb,
                         accuracy_disamb=utils.agg_accuracy_disamb,
                         amb_bias_score=utils.agg_amb_bias_scores,
                         disamb_bias_score=utils.agg_disamb_bias_scores)
        values = {('overall',name):functions[k]([r[k] for r in results])
                  for k,name in _HARNESS.items()}
        for c in _categories(lines):
            for k in ('amb_bias_score', 'disamb_bias_score'):
                own = [r[f'{k}_{c}'] for r,l in zip(results, lines) if l['row']['category']==c]
                values[c,_HARNESS[k]] = functions[k](own)
        return build_reply(values)
    return scorer

def _choice_results(utils, doc, line):
    choices = utils.doc_to_choice(doc)
    if line['text'] not in choices: return None
    return utils.process_results_multiple_choice(
        doc, [(-1. if c==line['text'] else -9., False) for c in choices])

def _text_results(utils, doc, line):
    return utils.process_results_generate_until(doc, [line['text']])


# %% [markdown]
# ## Inspect
#
# Inspect's solver parses the letter of a reply, and its scorer compares it with the right one [@inspect2024]. The solver
# gets each planted reply in the place of a model's.

# %%
#| export
def _inspect_scorer(lines):
    from inspect_ai.model import ModelOutput
    from inspect_ai.scorer import SampleScore, Target, accuracy, choice
    from inspect_ai.solver import TaskState, multiple_choice
    from inspect_evals.bbq.bbq import record_to_sample
    async def one(line):
        s = record_to_sample(row_as_shown(line))
        reply = f"ANSWER: {_reply(line)}"
        async def generate(state, *a, **k):
            state.output = ModelOutput.from_content('planted', reply)
            return state
        state = TaskState(model='planted', sample_id=s.id, epoch=1, input=s.input, messages=[],
                          target=Target(s.target), choices=s.choices, metadata=s.metadata)
        state = await multiple_choice()(_with_question(state), generate)
        score = await choice()(state, Target(s.target))
        return SampleScore(score=score.model_copy(update=dict(value=float(score.value=='C'))))
    async def every(): return [await one(l) for l in lines]
    with ThreadPoolExecutor(1) as pool: # A notebook has a loop of its own
        samples = pool.submit(asyncio.run, every()).result()
    return build_reply({('overall','accuracy'):accuracy()(samples)})

def _with_question(state):
    from inspect_ai.model import ChatMessageUser
    state.messages = [ChatMessageUser(content=state.input_text)]
    return state


# %% [markdown]
# ## HELM
#
# HELM labels the people of a question in its scenario and counts letters in its metric. Its scenario reads the file from a
# folder, where the lines are put, and returns the questions in a random order that is undone here.

# %%
#| export
@contextmanager
def _random_state():
    state = random.getstate()
    try: yield
    finally: random.setstate(state)

def _helm_instances(lines, category):
    "Return HELM's instances of one category, in the order of the lines"
    from helm.benchmark.scenarios.bbq_scenario import BBQScenario
    with _random_state(), tempfile.TemporaryDirectory() as folder:
        data = Path(folder)/'data'
        data.mkdir()
        rows = ''.join(json.dumps(row_as_shown(l))+'\n' for l in lines)
        (data/category).write_text(rows, encoding='utf-8')
        shuffled = BBQScenario(category).get_instances(folder)
        order = list(range(len(lines)))
        random.seed(0)
        random.shuffle(order) # As the scenario does
    return [i for _,i in sorted(zip(order, shuffled), key=lambda x: x[0])]

def _helm_values(states):
    from helm.benchmark.metrics.bbq_metrics import BBQMetric
    names = dict(bbq_accuracy='accuracy', bbq_metric_ambiguous_bias='bias_ambig',
                 bbq_metric_unambiguous_bias='bias_disambig')
    with redirect_stdout(StringIO()):
        stats = BBQMetric().evaluate_instances(states, '')
    return {names[s.name.name]:s.mean for s in stats}

def _helm_scorer(lines):
    values,every = {}, []
    for c in _categories(lines):
        own = [l for l in lines if l['row']['category']==c]
        states = [SimpleNamespace(instance=i, result=SimpleNamespace(
                      completions=[SimpleNamespace(text=_reply(l))]))
                  for i,l in zip(_helm_instances(own, c), own)]
        values |= {(c,m):v for m,v in _helm_values(states).items()}
        every += states
    return build_reply(values | {('overall',m):v for m,v in _helm_values(every).items()})


# %% [markdown]
# ## DeepEval
#
# DeepEval asks a model for a letter and compares it with the right one. Here a model without weights gives the planted replies,
# in order.

# %%
#| export
def _deepeval_scorer(lines):
    os.environ['DEEPEVAL_TELEMETRY_OPT_OUT'] = 'YES'
    from deepeval.benchmarks import BBQ
    from deepeval.benchmarks.bbq.task import BBQTask
    from deepeval.models import DeepEvalBaseLLM
    tasks = [BBQTask(c) for c in _categories(lines)]
    by_task = {t:[l for l in lines if l['row']['category']==t.value] for t in tasks}
    replies = iter([_reply(l) for ls in by_task.values() for l in ls])
    class Planted(DeepEvalBaseLLM):
        def load_model(self): return self
        def get_model_name(self): return 'planted'
        async def a_generate(self, prompt): return self.generate(prompt)
        def generate(self, prompt): return next(replies) # Without `schema`: DeepEval asks for text
    class Local(BBQ): # Same code, on the lines instead of a download
        def load_benchmark_dataset(self, task):
            from deepeval.benchmarks.bbq.template import BBQTemplate
            from deepeval.dataset import Golden
            rows = [row_as_shown(l) for l in by_task[task]]
            return [Golden(input=BBQTemplate.format_question(r, False),
                           expected_output=BBQTemplate.format_answer(r)) for r in rows]
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        b = Local(tasks=tasks, n_shots=0)
        b.evaluate(Planted())
    values = {(t,'accuracy'):v for t,v in zip(b.task_scores.Task, b.task_scores.Score)}
    return build_reply(values | {('overall','accuracy'):b.overall_score})


# %% [markdown]
# ## Choice of a tool

# %%
#| export
TOOLS = { # Name: scorer, modules, distributions
    'moral_sc':(own_scorer, (), ('moral_sc',)),
    'lm-eval':(_harness_scorer(_choice_results), ('lm_eval', 'datasets'), ('lm_eval',)),
    'lm-eval-generate':(_harness_scorer(_text_results), ('lm_eval', 'datasets'), ('lm_eval',)),
    'inspect':(_inspect_scorer, ('inspect_ai', 'inspect_evals'), ('inspect_ai', 'inspect_evals')),
    'helm':(_helm_scorer, ('helm',), ('crfm-helm',)),
    'deepeval':(_deepeval_scorer, ('deepeval',), ('deepeval',))}

def tool_version(
    name:str,  # Of TOOLS
)->str:        # 'lm_eval 0.4.13'; empty if it is not installed
    "Return the versions of a tool"
    try: return ', '.join(f'{d} {version(d)}' for d in TOOLS[name][2])
    except PackageNotFoundError: return ''

def tool_scorer(
    name:str,  # Of TOOLS
):             # lines -> dict in the form of the protocol
    "Return the scorer of a tool, if it is installed"
    if name not in TOOLS: raise ConfigError(unknown_name_message('tool', name, list(TOOLS)))
    scorer,modules,packages = TOOLS[name]
    missing = [m for m in modules if find_spec(m) is None]
    if missing:
        raise ConfigError(f'{name} is not installed ({", ".join(missing)} is missing): pip install '
                          f'{" ".join(packages)}.')
    def checked(lines):
        if lines[0]['benchmark']!='bbq' and name!='moral_sc':
            return dict(unsupported=f'{name} has no scorer of {lines[0]["benchmark"]}')
        return scorer(lines)
    return checked


# %% [markdown]
# `check_tools` gives all answer files of BBQ to all tools that are installed, and `record_tools` writes what they make of them
# to a file.

# %%
#| export
def check_tools(
    questions:list|None=None, # Of `PlantedQuestion`; default: our own
    names=tuple(TOOLS),       # Tools; those that are not installed are left out
    cases=None,               # Names of answer files; default: all of BBQ
)->pd.DataFrame:              # Rows of `check_scorer`, with tool and version
    "Give the answer files of BBQ to several tools"
    files = bbq_cases(questions, cases)
    out = [check_scorer(tool_scorer(n), files).assign(tool=n, version=tool_version(n))
           for n in names if tool_version(n)]
    return pd.concat(out, ignore_index=True)

def _summary(rows):
    "Count verdicts by tool, case and kind of metric"
    kind = rows.metric.str.partition('_')[0].rename('kind')
    n = rows.groupby(['tool', 'version', 'questions', 'case', kind, 'verdict'], sort=False).size()
    return [dict(zip(n.index.names, k)) | dict(values=int(v)) for k,v in n.items()]

def record_tools(
    path:str|Path,        # A JSON file
    originals:int|None=None, # On so many of the authors' questions of each category; None: all
)->Path:
    "Write what all installed tools make of the answer files"
    sets = dict(ours=own_questions())
    if originals!=0:
        most = np.inf if originals is None else originals/4
        sets['originals'] = [q for q in original_questions() if q.quad<most]
    rows = pd.concat([check_tools(q).assign(questions=k) for k,q in sets.items()])
    wrong = rows[rows.verdict.isin(['wrong', 'error'])]
    columns = ['tool', 'questions', 'case', 'category', 'metric', 'got', 'note']
    record = dict(versions=dict(zip(rows.tool, rows.version)), provenance=provenance(),
                  questions={k:len(q) for k,q in sets.items()}, verdicts=_summary(rows),
                  wrong=json.loads(wrong[columns].to_json(orient='records')))
    return write_file(path, json.dumps(record, indent=0))


# %% [markdown]
# Each tool that is installed gets two files here; the harness disagrees on the second.

# %%
two = bbq_cases(names=['stereotype', 'counter'])
for name in TOOLS:
    try: scorer = tool_scorer(name)
    except ConfigError as e: print(e); continue
    t = case_table(check_scorer(scorer, two))
    told = [f'{r.case}: {r.verdict}, {r.right}' for r in t.itertuples()]
    print(tool_version(name), *told, sep='; ')

# %%
test_eq(tool_version('moral_sc').split()[0], 'moral_sc')
test_eq(tool_scorer('moral_sc')(two[0].lines)['scores'][0]['value'], .25)
with expect_fail(ConfigError, contains='no tool'): tool_scorer('lm-evl')

# %%
rows = check_tools(names=['moral_sc'], cases=['stereotype', 'counter'])
test_eq((set(rows.tool), set(rows.verdict)), ({'moral_sc'}, {'right'}))
