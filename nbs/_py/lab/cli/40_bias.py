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
# > `moral_sc bias`: sweep over models and steps, view single answers, and plan a run.

# %%
#| default_exp lab.cli.bias

# %%
#| export
from pathlib import Path

import typer
from moral_sc.foundation.errors import ConfigError
from moral_sc.lab.cli.console import (Device, Limit, Mode, Out, Seed, argument, command_group,
                                      format_table, help_examples, option, print_status,
                                      progress_bar, run_folder)

# %%
#| hide
import os, shlex, tempfile, warnings
from fastcore.test import *
from typer.testing import CliRunner
from moral_sc.lab.cli.console import ErrorGroup
from moral_sc.language.stub_models import random_model
os.chdir(tempfile.mkdtemp())

# %% [markdown]
# Each command calls one function of the package [bias](../../bias/index.ipynb). An interrupted sweep
# resumes; saved answers are not computed again, and a finished model is not loaded again.

# %%
#| export
bias = command_group('Bias benchmarks: many models, single questions, power.')

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
    benchmark:option(list[str], 'See moral_sc evaluate; may be repeated.')=('bbq',),
    condition:option(list[str]|None, 'q, q+if ...; may be repeated. Default: those of each.')=None,
    limit:Limit=None,
    orders:option(int, 'Orders of the options: 1, 3 or 6.')=1,
    mode:Mode='plain',
    device:Device='auto',
    dtype:option(str, 'auto, float32, bfloat16 ...')='auto',
    seed:Seed=0,
    out:Out=None,
):
    "Evaluate many models on the same questions; one table."
    from moral_sc.bias.sweep import expand_models, sweep as run
    specs = expand_models(_models(models, family, at_most, stage))
    out = run_folder(out, 'sweep')
    print_status(f'Evaluating {len(specs)} models on {", ".join(benchmark)}; writing to {out}.')
    with progress_bar('questions') as progress:
        result = run(specs, list(benchmark), condition or None, str(out), limit, orders, seed,
                     mode, dtype, device, lambda name,n,total: progress(n, total))
    typer.echo(repr(result)) # Says how many of BBQ's categories these are
    typer.echo(_overall(result.table))
    typer.echo(out/'table.csv')

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
    return format_table(rows)


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
):
    "Compute the smallest effects that a run detects four times in five."
    from moral_sc.bias.power import detectable_effect, detectable_correlation, standard_error
    d = detectable_effect(standard_error(sd, templates, questions, icc), templates-1)
    typer.echo(format_table([dict(effect='change of a score, paired', detectable=f'{d:.4f}'),
                      dict(effect=f'correlation over {occupations} points, from zero',
                           detectable=f'{detectable_correlation(occupations):.3f}')]))


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
    typer.echo(page(run, out or run/'view.html', limit))


# %%
def sh(command):
    "Run a command; return its exit code and output lines"
    app = command_group('', cls=ErrorGroup)
    app.add_typer(bias, name='bias')
    with warnings.catch_warnings(): # Random models give letters next to nothing, and are told
        warnings.simplefilter('ignore')
        res = CliRunner().invoke(app, shlex.split(f'bias {command}'))
    assert res.exception is None or isinstance(res.exception, SystemExit), res.exception
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

# %%
wrong = ['sweep', 'sweep --family qwen9', 'sweep pythia-70', 'sweep mine --benchmark bqb',
         'sweep mine --condition q+fi', 'sweep mine --benchmark bbq-like --orders 2',
         'view nowhere',
         'power --icc 2', 'power --templates 1']
for w in wrong: print(w, sh(w)[1][-1], sep='\n    ')

# %%
test_eq({sh(w)[0] for w in wrong}, {2})
