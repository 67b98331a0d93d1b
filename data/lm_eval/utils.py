"""Functions of the tasks in this folder, for lm-evaluation-harness."""
from moral_sc.bias.tasks import build_documents, read_reasoning, task_answer, task_metrics


def load(benchmark, condition, like=False, limit=None, seed=0, orders=1, reasoning=None, **metadata):
    from datasets import Dataset
    if like: benchmark += '-like' # The package's own questions
    texts = read_reasoning(reasoning) if reasoning else None
    return {'test': Dataset.from_list(
        build_documents(benchmark, condition, limit, seed, orders, texts))}

def prompt(doc): return doc['prompt']
def choices(doc): return doc['choices']
def target(doc): return doc.get('label') or 0

def answer(doc, results):
    if doc['is_reasoning']:
        raise ValueError('This task needs reasoning: run the task ..._reasoning with --log_samples, '
                         'and give its log by --metadata \'{"reasoning": "samples_....jsonl"}\'.')
    scored = task_answer(doc, [r[0] for r in results])
    return dict.fromkeys(METRICS[doc['benchmark'].split('-')[0]], scored)

def length(doc, results): return {'characters': len(results[0])}

METRICS = {
    'bbq': ('accuracy_ambig', 'accuracy_disambig', 'bias_ambig', 'bias_disambig', 'bias_ambig_soft'),
    'winogender': ('rho_raw', 'rho_three', 'rho_two'),
    'admissions': ('gap', 'gap_raw', 'gap_hard', 'gap_logit')}

_OVERALL = {'bbq': 'micro', 'winogender': 'all', 'admissions': 'all'}

def _aggregate(metric):
    def aggregate(items):
        overall = _OVERALL[items[0]['benchmark'].split('-')[0]]
        return float(task_metrics(items)[overall, metric])
    return aggregate

for _names in METRICS.values():
    for _name in _names: globals()[_name] = _aggregate(_name)
