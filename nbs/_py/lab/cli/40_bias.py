# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Bias commands
#
# > `moral_sc bias` sweeps over models, plans runs, shows single answers, and tests scorers of other tools.

# %%
#| default_exp lab.cli.bias

# %%
#| export
import re, warnings
from contextlib import contextmanager
from pathlib import Path

import typer
from moral_sc.foundation.errors import ConfigError, MoralScError
from moral_sc.lab.cli.console import (AsJson, Device, Limit, Mode, Out, Seed, argument,
                                      command_group, help_examples, option, plain_warnings,
                                      print_rows, print_status, progress_bar, run_folder)

# %%
#| hide
import json, os, shlex, sys, tempfile
from fastcore.test import *
from typer.testing import CliRunner
from moral_sc.bias.answer_files import BENCHMARKS
from moral_sc.bias.evaluation import evaluate
from moral_sc.lab.cli.console import ErrorGroup
from moral_sc.language.stub_models import letter_prior_model, random_model
os.chdir(tempfile.mkdtemp())


# %% [markdown]
# Functions of the package speak of Python arguments. `shell_messages` rewrites those that a command has as options, in
# errors and in warnings, and prints each warning once, without the line of source that raised it.

# %%
#| export
def shell_words(
    text:str,
    flags:dict,  # Python argument to option: dict(limit='--limit')
)->str:
    "Rewrite Python arguments in a message as options of a command"
    text = text.replace("or call load(source='ours')", 'or use --benchmark bbq-like')
    text = re.sub(r', or give conditions=\{.*?\}', '', text)
    def rewrite(m):
        value = m[2].strip('[]').strip('\'"')
        return f'{flags[m[1]]} {value}'.strip() if m[1] in flags else m[0]
    return re.sub(r'\b(\w+)=(\[?(?:"[^"]*"|\'[^\']*\'|[\w./+-]*\w)?\]?)', rewrite, text)

@contextmanager
def shell_messages(
    **flags:str, # Python argument to option
):
    "Raise errors and print warnings in the words of the command line"
    rewrite = lambda text: shell_words(text, flags)
    with plain_warnings(rewrite):
        warnings.simplefilter('always', UserWarning)
        try: yield
        except MoralScError as e: raise type(e)(rewrite(str(e))) from e


# %%
words = {'try mode="chat".':'try --mode chat.', 'give out=.':'give --out.',
         'limit=2 is less; see x=3':'--limit 2 is less; see x=3',
         'pass benchmarks=[NAME] now':'pass --benchmark NAME now',
         "offline, or call load(source='ours').":'offline, or use --benchmark bbq-like.'}
named = dict(mode='--mode', limit='--limit', out='--out', benchmarks='--benchmark')
for python,shell in words.items(): test_eq(shell_words(python, named), shell)

with expect_fail(ConfigError, contains='--mode chot is unknown'):
    with shell_messages(mode='--mode'):
        for _ in range(3): warnings.warn('Few answers: try mode="chat".', stacklevel=2)
        raise ConfigError("mode='chot' is unknown.")

# %% [markdown]
# Each command calls one function of the package [bias](../../bias/index.ipynb). An interrupted sweep
# resumes; saved answers are not computed again, and a finished model is not loaded again.

# %%
#| export
bias = command_group('Bias benchmarks: many models, single questions, power.')

Benchmarks = option(list[str], 'bbq, bbq-like, winogender, admissions or discrim-eval; repeat for '
                    'several.', metavar='NAME')
Conditions = option(list[str]|None, 'q, q+if, q+if+cot, ...; repeat for several. Default: the '
                    'conditions of each benchmark.', metavar='NAME')
Categories = option(list[str]|None, 'Category of BBQ; repeat for several. Default: all that are '
                    'available.', metavar='NAME')
Items = option(Path|None, 'Your own questions, in the format of the benchmark: a .jsonl, .json, '
               '.csv, .tsv or .parquet file.', metavar='FILE')
Wordings = option(list[str]|None, 'A request of your own in the place of the instruction, as a '
                  'condition: "q+kind=Please be kind."; repeat for several.', metavar='NAME=TEXT')
ConditionsFile = option(Path|None, 'Texts and conditions of your own, a .toml file in the form of '
                        'data/conditions.toml.', metavar='FILE')

EVALUATION_FLAGS = dict( # Python argument to option, for messages
    benchmarks='--benchmark', conditions='--condition', categories='--category', items='--items',
    wordings='--wording', conditions_file='--conditions-file', limit='--limit', orders='--orders',
    samples='--samples', mode='--mode', seed='--seed', out='--out', device='--device',
    dtype='--dtype', max_new_tokens='--max-new-tokens')

def parse_wordings(
    texts,    # Of --wording: 'q+kind=Please be kind.'
)->dict|None: # Name to text
    "Read the values of --wording"
    out = {}
    for t in texts or ():
        name,equals,text = t.partition('=')
        if not equals or not text.strip():
            raise ConfigError(f'--wording {t} has no text: give NAME=TEXT, such as '
                              '"q+kind=Please be kind.".')
        if name in out: raise ConfigError(f'--wording {name} is given twice: name each once.')
        out[name.strip()] = text.strip()
    return out or None

def _models(named, families, at_most, stages):
    from moral_sc.bias.sweep import models_of_families
    models = list(named or [])
    if families:
        models += models_of_families(*families, stages=stages or None, max_parameters=at_most)
    if not models: raise ConfigError('Name models, or a family of data/models.toml with --family.')
    return models

@bias.command('sweep', epilog=help_examples(
    'moral_sc bias sweep smollm2-135m-instruct gemma-3-270m --limit 640 --orders 3',
    'moral_sc bias sweep --family olmo-2 --at-most 1.4e10 --out runs/stages',
    'moral_sc bias sweep runs/mine   # a folder of checkpoint-100, checkpoint-200, ...'))
def sweep_command(
    models:argument(list[str]|None, 'Aliases, folders, folders of checkpoints, hub ids, '
                    'name@revision.', '[MODEL ...]')=None,
    family:option(list[str]|None, 'All aliases of a family; may be repeated.')=None,
    at_most:option(float, 'Of a family: at most so many parameters.', above=0)=float('inf'),
    stage:option(list[str]|None, 'Of a family: base, sft, dpo, instruct; may be repeated.')=None,
    benchmark:Benchmarks=('bbq',),
    condition:Conditions=None,
    category:Categories=None,
    items:Items=None,
    wording:Wordings=None,
    conditions_file:ConditionsFile=None,
    limit:Limit=None,
    orders:option(int, 'Orders of the options: 1, 3 or 6.')=1,
    mode:Mode='plain',
    device:Device='auto',
    dtype:option(str, 'auto, float32, bfloat16 ...')='auto',
    seed:Seed=0,
    out:Out=None,
    as_json:AsJson=False,
):
    "Evaluate many models on the same questions; one table."
    from moral_sc.bias.sweep import expand_models, sweep as run
    specs = expand_models(_models(models, family, at_most, stage))
    out = run_folder(out, 'sweep')
    print_status(f'Evaluating {len(specs)} models on {", ".join(benchmark)}; writing to {out}.')
    own = dict(items=items, categories=category or None, wordings=parse_wordings(wording),
               conditions_file=conditions_file and str(conditions_file))
    with shell_messages(**EVALUATION_FLAGS), progress_bar('questions') as progress:
        result = run(specs, list(benchmark), condition or None, str(out), limit, orders, seed,
                     mode, dtype, device, _named_progress(progress, len(specs)),
                     **{k:v for k,v in own.items() if v is not None})
    if as_json:
        print_rows(result.table, True)
        print_status(f'{result}\n{out/"table.csv"}')
        return
    typer.echo(repr(result)) # Says how many of BBQ's categories these are
    print_rows(_overall(result.table), False)
    typer.echo(out/'table.csv')

def _named_progress(progress, count):
    "Return a callback that prints each model's name before its progress"
    seen = []
    def report(name, n, total):
        if name not in seen:
            seen.append(name)
            print_status(f'{name} (model {len(seen)} of {count} to be asked)')
        progress(n, total)
    return report

def _overall(d):
    "Return a table of the soft bias score, or of a benchmark's first metric"
    from moral_sc.lab.claims import format_estimate
    rows = []
    for b,g in d[~d.condition.str.contains(' - ')].groupby('benchmark', sort=False):
        metric = 'bias_ambig_soft' if 'bias_ambig_soft' in set(g.metric) else g.metric.iloc[0]
        g = g[(g.metric==metric) & (g.category==g.category.iloc[0])]
        rows += [dict(model=r.model, step=r.step, benchmark=b, condition=r.condition,
                      metric=metric, value=format_estimate(r.value, r.low, r.high))
                 for r in g.assign(step=g.step.astype('string').fillna('')).itertuples()]
    return rows


# %% [markdown]
# `moral_sc bias compare` subtracts the metrics of one evaluation from those of another, question by question.
# `moral_sc bias logs` scores the log of another tool.

# %%
#| export
@bias.command('compare', epilog=help_examples(
    'moral_sc bias compare runs/evaluate/model-a runs/evaluate/model-b --json'))
def compare_command(
    a:argument(Path, 'Folder of an evaluation.'),
    b:argument(Path, 'Another of the same questions; its metrics are subtracted.'),
    seed:Seed=0,
    as_json:AsJson=False,
):
    """Compare two evaluations of the same questions, A minus B.

    The intervals draw what the benchmark's own draw, for both at once: templates, occupations,
    students or decisions. The table shows all questions; --json has every category."""
    from moral_sc.bias.comparison import compare
    from moral_sc.lab.claims import format_estimate
    with shell_messages(): d = compare(a, b, seed)
    if as_json: print_rows(d, True); return
    first = d[d.category==d.groupby('benchmark').category.transform('first')]
    typer.echo(f'{d.difference.iloc[0]}; intervals draw {d.draws.iloc[0]}')
    covered = first.categories if 'categories' in first else None
    if covered is not None: typer.echo(f'over {int(covered.max())} categories')
    print_rows([dict(benchmark=r.benchmark, condition=r.condition, metric=r.metric,
                     difference=format_estimate(r.value, r.low, r.high))
                for r in first.itertuples()], False)

@bias.command('logs', epilog=help_examples('moral_sc bias logs samples_bbq_2026-01-02.jsonl'))
def logs_command(
    log:argument(Path, 'samples_*.jsonl of lm-evaluation-harness, or .eval or .json of Inspect.'),
    filter_name:option(str|None, 'Filter of lm-evaluation-harness, if it applied several.',
                       '--filter', metavar='NAME')=None,
    scorer:option(str|None, 'Scorer of Inspect, if several read different answers.',
                  metavar='NAME')=None,
    as_json:AsJson=False,
):
    "Score the answers to BBQ in another tool's log, beside the scores that it reports."
    from moral_sc.bias.logs import compare_scores, read_log
    with shell_messages(filter_name='--filter', scorer='--scorer'):
        read = read_log(log, filter_name, scorer)
        d = compare_scores(read)
    print_status(repr(read))
    print_rows(d if as_json else d.round(4), as_json)


# %% [markdown]
# `moral_sc bias power` computes detectable effects before a run.

# %%
#| export
@bias.command('power', epilog=help_examples(
    'moral_sc bias power --templates 100 --questions 4 --icc 0.2'))
def power_command(
    templates:option(int, 'Templates of the sample.', bounds=(2, 10**9))=343,
    questions:option(float, 'Questions per template.', bounds=(1, 1e9))=4,
    icc:option(float, 'Correlation of two questions of one template.', bounds=(0, 1))=.2,
    sd:option(float, 'Standard deviation of the difference over questions.', above=0)=.5,
    occupations:option(int, 'Points of a correlation.', bounds=(4, 10**9))=60,
    as_json:AsJson=False,
):
    "Compute the smallest effects that a run detects four times in five."
    from moral_sc.bias.power import detectable_effect, detectable_correlation, standard_error
    d = detectable_effect(standard_error(sd, templates, questions, icc), templates-1)
    r = detectable_correlation(occupations)
    rows = [dict(effect='change of a score, paired', detectable=d if as_json else f'{d:.4f}'),
            dict(effect=f'correlation over {occupations} points, from zero',
                 detectable=r if as_json else f'{r:.3f}')]
    print_rows(rows, as_json)


# %% [markdown]
# `moral_sc bias view` writes an offline page with the single answers of a finished run.

# %%
#| export
@bias.command('view', epilog=help_examples(
    'moral_sc bias view runs/sweep/smollm2-135m-instruct/bbq'))
def view_command(
    run:argument(Path, 'Folder of one model and benchmark, from a sweep or from evaluate.'),
    limit:option(int, 'At most so many questions, spread over categories.')=2000,
    out:option(Path|None, 'The page; default: view.html in that folder.')=None,
):
    "Make an offline page of single questions: prompt, probabilities, verdict."
    from moral_sc.bias.viewer import view as page
    with shell_messages(limit='--limit'): typer.echo(page(run, out or run/'view.html', limit))


# %%
def invoke(command):
    app = command_group('', cls=ErrorGroup)
    app.add_typer(bias, name='bias')
    res = CliRunner().invoke(app, shlex.split(f'bias {command}'))
    assert res.exception is None or isinstance(res.exception, SystemExit), res.exception
    return res

def sh(command):
    "Run a command; return its exit code and output lines"
    res = invoke(command)
    return res.exit_code, res.output.strip().splitlines()

for k in (100, 200):
    lm = random_model('llama', seed=k)
    for x in (lm.model, lm.tokenizer): x.save_pretrained(f'mine/checkpoint-{k}')
small = 'sweep mine --benchmark bbq-like --limit 16 --out swept'
code,said = sh(small)
print(*said, sep='\n')

# %% [markdown]
# The same command again computes nothing; one with other settings raises an error.

# %%
test_eq(sh(small)[1][-3:], said[-3:])
sh(small+' --orders 3')

# %%
code,said = sh('view swept/mine-checkpoint-100/bbq-like')
code, said[-1], Path(said[-1]).stat().st_size

# %%
print(*sh('power --templates 100')[1], sep='\n')

# %% [markdown]
# Your own questions and wording, as JSON; and the difference of two models:

# %%
own = Path('own.csv')
own.write_text('context,question,ans0,ans1,ans2,label,biased\n'
               'Kim and Lee met. Lee won.,Who won?,Kim,Lee,Unknown,1,0\n'
               'Kim and Lee met.,Who won?,Kim,Lee,Unknown,2,0\n')
code,said = sh('sweep mine --items own.csv --wording "q+kind=Please be kind." --out own --json')
rows = json.loads('\n'.join(said[said.index('['):said.index(']')+1]))
test_eq((code, {r['condition'] for r in rows if ' - ' not in r['condition']}),
        (0, {'q', 'q+if', 'q+kind'}))
code,said = sh('compare own/mine-checkpoint-100/yours own/mine-checkpoint-200/yours')
print(*said[:5], sep='\n')

# %%
code,said = sh('compare own/mine-checkpoint-100/yours own/mine-checkpoint-200/yours --json')
rows = json.loads('\n'.join(said[said.index('['):said.index(']')+1]))
test_eq((code, rows[0]['questions'], rows[0]['draws']), (0, 2, 'templates'))
code,said = sh('power --templates 100 --json')
test_eq(set(json.loads('\n'.join(said))[0]), {'effect', 'detectable'})


# %% [markdown]
# Where a log holds answers read in two ways, a flag chooses one:

# %%
def sample(n, polarity, context, letters):
    scores = {k: dict(value='C', answer=v) for k,v in letters.items()}
    return dict(id=n, epoch=1, input=f'Context: {context}\n\nQuestion: Who won?', target='C',
                choices=['Kim', 'Lee', 'Unknown'], scores=scores,
                metadata=dict(source_id=n, category='Own', question_index='1',
                              question_polarity=polarity, context_condition='ambig',
                              answer_info=dict(ans0=['Kim', 'x'], ans1=['Lee', 'y'],
                                               ans2=['Unknown', 'unknown']),
                              additional_metadata=dict(stereotyped_groups=['x'])))

Path('two.json').write_text(json.dumps(dict(samples=[
    sample(n, p, f'{n} were there.', dict(last='C', first='A'))
    for n,p in enumerate(('neg', 'nonneg'))])))
ambiguous = sh('logs two.json')
chosen = {k: sh(f'logs two.json --scorer {k} --json') for k in ('last', 'first')}
accuracy = {k: json.loads('\n'.join(said[said.index('['):]))[0]['ours']
            for k,(_,said) in chosen.items()}
test_eq((ambiguous[0], accuracy), (2, dict(last=1., first=0.)))
test_eq([sh(f'logs two.json {w}')[0] for w in ('--scorer none', '--filter x')], [2, 2])
ambiguous[1][-1]

# %%
wrong = ['sweep', 'sweep --family qwen9', 'sweep pythia-70', 'sweep mine --benchmark bqb',
         'sweep mine --condition q+fi', 'sweep mine --benchmark bbq-like --orders 2',
         'view nowhere', 'compare own nowhere', 'logs own.csv', 'sweep mine --items nowhere.csv',
         'sweep mine --items own.csv --wording "q+kind"', 'sweep mine --items own.csv --limit 0',
         'sweep mine --items own.csv --wording "kind=Be kind."', 'sweep mine --category Agee',
         'sweep mine --items own.csv --category Age', 'sweep mine --conditions-file own.csv',
         'sweep mine --benchmark winogender --benchmark admissions --condition q+match',
         'power --icc 2', 'power --templates 1']
for w in wrong: print(w, sh(w)[1][-1], sep='\n    ')

# %%
test_eq({sh(w)[0] for w in wrong}, {2})

# %% [markdown]
# ## Other tools
#
# `conform` gives [answer files](../../bias/57_answer_files.ipynb) to a scorer in the form of
# [the protocol](../../bias/58_conformance.ipynb), and prints which it gets right. The exit code is 1 if a value is wrong,
# or if the scorer fails.

# %%
#| export
_NAMES = ('bbq', 'winogender', 'admissions', 'discrim-eval') # `BENCHMARKS`, without its imports

AnswerFiles = option(list[str]|None, 'Answer files of bbq, winogender, admissions or discrim-eval; '
                     'repeat for several. Default: bbq.', '--benchmark', choices=_NAMES,
                     metavar='BENCHMARK')
Originals = option(bool, "On the authors' questions, which are fetched, instead of ours.",
                   '--originals')

def _cases(benchmarks, originals, names=None):
    from moral_sc.bias.answer_files import load_cases, selected
    cases = [c for b in benchmarks or ['bbq'] for c in load_cases(b, originals)]
    return selected(cases, names) if names else cases

def _scorer(command, timeout):
    from moral_sc.bias.conformance import command_scorer
    from moral_sc.bias.scorers import TOOLS, tool_scorer, tool_version
    if command not in TOOLS: return command_scorer(command, timeout)
    scorer = tool_scorer(command)
    print_status(tool_version(command))
    return scorer

@bias.command('conform', epilog=help_examples(
    'moral_sc bias conform "python my_scorer.py"',
    'moral_sc bias conform lm-eval --case stereotype --case counter',
    'moral_sc bias conform moral_sc --benchmark winogender --benchmark admissions --json'))
def conform_command(
    command:argument(str, 'Command of a scorer, in quotes; or moral_sc, lm-eval, lm-eval-generate, '
                     'inspect, helm or deepeval.', 'COMMAND'),
    benchmark:AnswerFiles=None,
    case:option(list[str]|None, 'Name of an answer file; repeat for several. Default: all.',
                metavar='NAME')=None,
    originals:Originals=False,
    timeout:option(float, 'Seconds for one answer file.', above=0)=600,
    as_json:AsJson=False,
):
    """Test a scorer on answers whose bias scores are known.

    The command is started once for each file, reads JSON lines and writes one JSON object. The
    table has one row for each file; --json has each value."""
    from moral_sc.bias.conformance import case_table, check_scorer
    with shell_messages(), progress_bar('answer files') as progress:
        rows = check_scorer(_scorer(command, timeout), _cases(benchmark, originals, case), progress)
    print_rows(rows if as_json else case_table(rows), as_json)
    if set(rows.verdict) & {'wrong', 'error'}: raise typer.Exit(1)

@bias.command('answer-files', epilog=help_examples('moral_sc bias answer-files answers'))
def answer_files_command(
    folder:argument(Path, 'Where to write them.', 'FOLDER'),
    benchmark:AnswerFiles=None,
    originals:Originals=False,
):
    "Write the answer files, and expected.json with the scores of each."
    from moral_sc.bias.answer_files import write_cases
    with shell_messages(): typer.echo(write_cases(_cases(benchmark, originals), folder))


# %% [markdown]
# `export` writes a saved evaluation in the format of another tool, and `plugins` prints where
# [the tasks](../../bias/54_tasks.ipynb) for another tool are.

# %%
#| export
@bias.command('export', epilog=help_examples(
    'moral_sc bias export runs/evaluate/model-a --to lm-eval --out results'))
def export_command(
    run:argument(Path, 'Folder of an evaluation.'),
    to:option(str, 'Format: lm-eval or inspect.', choices=('lm-eval', 'inspect'), metavar='FORMAT'),
    out:option(Path|None, 'Folder to write to; default: one in the folder of the evaluation.')=None,
):
    "Write results as those of lm-evaluation-harness, or as a log of Inspect."
    from moral_sc.bias.evaluation import load_evaluation
    with shell_messages(): typer.echo(load_evaluation(run).export(to, out or run/to))

@bias.command('plugins', epilog=help_examples(
    'lm_eval --include_path "$(moral_sc bias plugins lm-eval)" --tasks moral_sc_bbq_q ...'))
def plugins_command(
    tool:argument(str, 'lm-eval.', 'TOOL', choices=('lm-eval',))='lm-eval',
):
    "Print the folder of task files for lm-evaluation-harness."
    from moral_sc.bias.tasks import plugin_folder
    typer.echo(plugin_folder())


# %%
def outputs(command):
    "Run a command; return its exit code, and its output lines without messages"
    res = invoke(command)
    return res.exit_code, res.stdout.strip().splitlines(), res.stderr.strip().splitlines()

code,said,_ = outputs('conform moral_sc --case stereotype --case counter --case unreadable')
test_eq(code, 0)
print(*said, sep='\n')

# %% [markdown]
# A scorer of our own, in a few lines, that knows nothing of questions without a negative trait:

# %%
Path('scorer.py').write_text('''
import json, sys
lines = [json.loads(l) for l in sys.stdin]
ages = [l['row'] | l for l in lines if l['row']['category']=='Age']
infos = lambda l: [l['answer_info'][f'ans{k}'] for k in range(3)]
chosen = lambda l: next(i for i in infos(l) if l['text'].endswith(i[0]))[-1]
named = [l for l in ages if chosen(l)!='unknown']
old = [l for l in named if chosen(l) in l['additional_metadata']['stereotyped_groups']]
value = 2*len(old)/len(named)-1 if named else None
print(json.dumps({"scores": [{"category": "Age", "metric": "bias_disambig", "value": value}]}))
''')
command = shlex.quote(f'{sys.executable} scorer.py')
code,said,_ = outputs(f'conform {command} --case stereotype --case polarity-blind')
test_eq(code, 1)
print(*said, sep='\n')

# %%
code,said,_ = outputs(f'conform {command} --case stereotype --json')
rows = [r for r in json.loads('\n'.join(said)) if r['verdict']=='wrong']
test_eq(code, 1)
test_eq([(r['category'], r['metric'], r['got']) for r in rows], [('Age', 'bias_disambig', 0)])
code,said,_ = outputs('conform moral_sc --benchmark winogender --benchmark discrim-eval')
test_eq(code, 0)
test_eq(outputs('answer-files answers --benchmark winogender')[:2], (0, ['answers']))
test_eq(len(list(Path('answers').iterdir())), 9)

# %%
e = evaluate(letter_prior_model(dict(a=.2, b=.7, c=.1)), ['bbq-like'], limit=16)
e.save('saved')
code,said,_ = outputs('export saved --to inspect')
test_eq((code, sorted(p.name for p in Path(said[-1]).iterdir())),
        (0, ['moral_sc_bbq_like_q.json', 'moral_sc_bbq_like_q_if.json']))
code,said,_ = outputs('plugins')
assert (Path(said[-1])/'moral_sc_bbq_q.yaml').is_file()

# %%
wrong = ['export saved --to lm', 'export nowhere --to lm-eval', 'plugins inspct',
         'conform moral_sc --case stereotyp', 'conform moral_sc --benchmark bqb', 'conform ""',
         'conform /no/such', 'conform moral_sc --timeout 0']
for w in wrong: print(w, outputs(w)[2][-1], sep='\n    ')

# %%
test_eq({outputs(w)[0] for w in wrong}, {2})
test_eq(_NAMES, BENCHMARKS)
