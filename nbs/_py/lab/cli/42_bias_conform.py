# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Commands for other tools
#
# > `moral_sc bias conform` tests a scorer; `answer-files` and `plugins` give other tools our files and tasks.

# %%
#| default_exp lab.cli.bias_conform

# %%
#| export
from pathlib import Path

import typer
from moral_sc.lab.cli.bias import bias, shell_messages
from moral_sc.lab.cli.console import (AsJson, argument, help_examples, option, print_rows,
                                      print_status, progress_bar)

# %%
#| hide
import json, os, shlex, sys, tempfile
from fastcore.test import *
from typer.testing import CliRunner
from moral_sc.bias.answer_files import BENCHMARKS
from moral_sc.bias.evaluation import evaluate
from moral_sc.lab.cli.console import ErrorGroup, command_group
from moral_sc.language.stub_models import letter_prior_model
os.chdir(tempfile.mkdtemp())

# %% [markdown]
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
    typer.echo(plugin_folder(tool))


# %%
def sh(command):
    "Run a command; return its exit code, and its output lines without messages"
    app = command_group('', cls=ErrorGroup)
    app.add_typer(bias, name='bias')
    res = CliRunner().invoke(app, shlex.split(f'bias {command}'))
    assert res.exception is None or isinstance(res.exception, SystemExit), res.exception
    return res.exit_code, res.stdout.strip().splitlines(), res.stderr.strip().splitlines()

code,said,_ = sh('conform moral_sc --case stereotype --case counter --case unreadable')
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
code,said,_ = sh(f'conform {command} --case stereotype --case polarity-blind')
test_eq(code, 1)
print(*said, sep='\n')

# %%
code,said,_ = sh(f'conform {command} --case stereotype --json')
rows = [r for r in json.loads('\n'.join(said)) if r['verdict']=='wrong']
test_eq(code, 1)
test_eq([(r['category'], r['metric'], r['got']) for r in rows], [('Age', 'bias_disambig', 0)])
code,said,_ = sh('conform moral_sc --benchmark winogender --benchmark discrim-eval')
test_eq(code, 0)
test_eq(sh('answer-files answers --benchmark winogender')[:2], (0, ['answers']))
test_eq(len(list(Path('answers').iterdir())), 9)

# %%
e = evaluate(letter_prior_model(dict(a=.2, b=.7, c=.1)), ['bbq-like'], limit=16)
e.save('saved')
code,said,_ = sh('export saved --to inspect')
test_eq((code, sorted(p.name for p in Path(said[-1]).iterdir())),
        (0, ['moral_sc_bbq_like_q.json', 'moral_sc_bbq_like_q_if.json']))
code,said,_ = sh('plugins')
assert (Path(said[-1])/'moral_sc_bbq_q.yaml').is_file()

# %%
wrong = ['export saved --to lm', 'export nowhere --to lm-eval', 'plugins inspct',
         'conform moral_sc --case stereotyp', 'conform moral_sc --benchmark bqb', 'conform ""',
         'conform /no/such', 'conform moral_sc --timeout 0']
for w in wrong: print(w, sh(w)[2][-1], sep='\n    ')

# %%
test_eq({sh(w)[0] for w in wrong}, {2})
test_eq(_NAMES, BENCHMARKS)
