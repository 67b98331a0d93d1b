# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Agreement with lm-evaluation-harness
#
# > Our tasks, run by lm-evaluation-harness, have our results, and its logs are read.

# %%
#| hide
#| needs: lm_eval
import json, tempfile, warnings
from pathlib import Path
import lm_eval
import pandas as pd
from fastcore.test import *
from lm_eval.api.model import LM
from lm_eval.loggers import EvaluationTracker
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from moral_sc.bias.answer_files import bbq_cases
from moral_sc.bias.evaluation import evaluate
from moral_sc.bias.logs import compare_scores, read_log
from moral_sc.bias.scorers import row_as_shown
from moral_sc.bias.tasks import (build_documents, plugin_folder, read_reasoning, task_answer,
                                 task_metrics)
from moral_sc.foundation.datasets import available
from moral_sc.language.scoring import option_logprobs
from moral_sc.language.stub_models import random_model

# %% [markdown]
# [Our tasks](54_tasks.ipynb) hand questions to lm-evaluation-harness [@gao2024harness] and score its answers. This page runs
# the harness itself, on a small model with random weights, and is skipped where the package `lm_eval` is not
# installed. With SmolLM2-135M-Instruct and lm_eval 0.4.13 the largest difference of a metric was $5\cdot10^{-6}$ for
# `q` and `q+if`, and for `q+if+cot` $2\cdot10^{-6}$ for BBQ (twelve prompts) and $6\cdot10^{-6}$ for Winogender (four). For admissions
# it was 0.0003, [because samples ended with a line break](54_tasks.ipynb).

# %%
warnings.simplefilter('ignore') # A model without training knows no letters
lm = random_model('llama', seed=1)
model = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, device='cpu', batch_size=4)
folder = Path(tempfile.mkdtemp())

def run(task, model, tasks=plugin_folder(), name='log', metadata=None, **kw):
    "Run a task; return its results and the path of its samples"
    log = EvaluationTracker(output_path=str(folder/name))
    out = lm_eval.simple_evaluate(model, tasks=[task], log_samples=True, bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(tasks), metadata=metadata), **kw)
    samples = out.pop('samples')
    log.save_results_aggregated(results=out, samples=samples)
    log.save_results_samples(task_name=task, samples=samples[task])
    return out['results'][task], max((folder/name).rglob(f'samples_{task}_2*.jsonl'))


# %% [markdown]
# ## Results
#
# Under `q+if+cot` the first task lets the model reason, and the second reads what it wrote. The text of a model with random weights is tokenised differently when it is read again, so the harness is compared there with our scores of the same texts.

# %%
def reasoning_of(benchmark, metadata):
    "Let the model reason, always with the most likely token; return the path of the samples"
    greedy = 'max_gen_toks=8,do_sample=false,temperature=0'
    return run(f'moral_sc_{benchmark}_reasoning', model, metadata=metadata, gen_kwargs=greedy)[1]

def own_metrics(name, condition, path, **kw):
    "Return (category, metric) -> value, from `evaluate` or of the samples of reasoning"
    if path:
        docs = build_documents(name, condition, reasoning=read_reasoning(path), **kw)
        lp = option_logprobs(lm, [d['prompt'] for d in docs], [d['choices'] for d in docs])
        return task_metrics([task_answer(d, x) for d,x in zip(docs, lp)])
    d = evaluate(lm, name, [condition], **kw).metrics
    return dict(zip(zip(d.category, d.metric), d.value))

def largest_difference(benchmark, condition, name=None, **kw):
    "Return the largest difference between the harness's metrics and ours"
    task = f"moral_sc_{benchmark}_{condition.replace('+', '_')}"
    metadata = kw | dict(like=name is not None)
    path = reasoning_of(benchmark, metadata) if condition.endswith('cot') else None
    if path: metadata['reasoning'] = str(path)
    results = run(task, model, metadata=metadata)[0]
    ours = own_metrics(name or benchmark, condition, path, **kw)
    return max(abs(results[f'{m},none']-v) for (c,m),v in ours.items()
               if c in ('micro', 'all') and f'{m},none' in results and v==v)

cases = {'bbq':dict(name='bbq-like', limit=4, orders=3),
         'winogender':dict(name='winogender-like', limit=4)}
if available('law/law_data'): cases['admissions'] = dict(limit=4)
differences = pd.DataFrame({b:{c:largest_difference(b, c, **kw) for c in ('q', 'q+if', 'q+if+cot')}
                            for b,kw in cases.items()})
assert (differences<1e-5).all(axis=None)
differences


# %% [markdown]
# ## Logs
#
# The tool's own task `bbq` is run on questions whose options are in another order than in the file.
# A model with planted answers gives them, so that the right scores [are
# known](57_answer_files.ipynb). The scores computed [from the log](56_logs.ipynb) equal them.

# %%
class Planted(LM):
    "A model that gives the planted answer to each question"
    def __init__(self, lines):
        super().__init__()
        self.texts = {(l['row']['context'], l['row']['question']):l['text'] for l in lines}
    def _text(self, prompt):
        context,_,question = prompt.removesuffix('\nA:').rpartition('\n\nQ: ')
        return self.texts[context,question]
    def loglikelihood(self, requests, **kw):
        pairs = [r.args for r in requests]
        return [(-1. if a.strip()==self._text(prompt) else -9., False) for prompt,a in pairs]
    def generate_until(self, requests, **kw): return [self._text(r.args[0]) for r in requests]
    def loglikelihood_rolling(self, requests, **kw): raise NotImplementedError

def log_of(case, kind):
    "Run the tool's task on the questions of an answer file; return the path of the log"
    tasks = folder/f'{case.name}-{kind}'
    tasks.mkdir(parents=True)
    rows = [json.dumps(row_as_shown(l)) for l in case.lines]
    (tasks/'rows.jsonl').write_text('\n'.join(rows))
    original = Path(lm_eval.__file__).parent/'tasks'/'bbq'/f'bbq_{kind}.yaml'
    (tasks/f'own_{kind}.yaml').write_text(
        f'include: {original}\ntask: own_{kind}\ndataset_path: json\ndataset_name: null\n'
        f'dataset_kwargs: {{data_files: {{test: {tasks}/rows.jsonl}}}}\n')
    return run(f'own_{kind}', Planted(case.lines), tasks, tasks.name)[1]

shuffled, = bbq_cases(names=['shuffled'])
for kind in ('multiple_choice', 'generate'):
    t = compare_scores(log_of(shuffled, kind))
    for r in t.itertuples():
        expected = shuffled.expected['overall' if r.category=='micro' else r.category, r.metric]
        assert expected.matching(r.ours, 1e-9), (kind, r)
t[t.category=='micro'].round(3)
