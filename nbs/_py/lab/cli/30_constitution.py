# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Constitution commands
#
# > Constitutional AI in ten commands, each of which reads the output of the one before.

# %%
#| default_exp lab.cli.constitution

# %%
#| export
import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import typer
from moral_sc.foundation.errors import ConfigError, unknown_name_message
from moral_sc.foundation.files import write_file
from moral_sc.lab.cli.console import (
    AsJson, Limit, Mode, Model, Out, Seed, argument, command_group, help_examples, option,
    print_rows, print_status, progress_bar, run_folder)

# %%
#| hide
import os, shlex, tempfile
from fastcore.test import *
from typer.testing import CliRunner
from moral_sc.constitution.prompts import load_prompts
from moral_sc.lab.cli.console import ErrorGroup
from moral_sc.language.reward_head import save_model, small_llama
from moral_sc.language.models import encode
from moral_sc.language.stub_models import byte_tokenizer
from moral_sc.language.training import answer_loss, fit
os.chdir(tempfile.mkdtemp())

# %% [markdown]
# Each stage of the [constitution package](../../constitution/index.ipynb) is a command. It reads and
# writes JSON lines and model folders, so you can inspect or replace each stage, or run it on another
# machine. A killed command resumes when you repeat it.

# %%
#| export
constitution = command_group('Constitutional AI, stage by stage.')

def _write_rows(path, rows):
    "Write rows as JSON lines, and print the path as the last line of output"
    typer.echo(write_file(path, ''.join(json.dumps(r, ensure_ascii=False)+'\n' for r in rows)))

def _model(name, dtype='auto'):
    from moral_sc import language
    lm = language.load(name, dtype)
    print_status(repr(lm))
    return lm

def _preference(path):
    from moral_sc.constitution.preference import PreferenceModel
    return PreferenceModel.load(path)

def _reward(path):
    "Load a preference model, or a function of a file: reward.py:length"
    file,_,function = str(path).rpartition(':')
    return read_function(file, function) if file.endswith('.py') else _preference(path)

def read_function(
    file,     # Path of a .py file; it is run
    name:str, # Of the function in it
):
    "Load a function from a file of Python"
    if not Path(file).is_file(): raise ConfigError(f'There is no file {file}; check the path.')
    spec = spec_from_file_location(f'user_{Path(file).stem}', file)
    module = module_from_spec(spec)
    try: spec.loader.exec_module(module)
    except Exception as e: raise ConfigError(f'{file} cannot be run ({e!r:.150}).') from e
    functions = [k for k,v in vars(module).items() if callable(v) and not k.startswith('_')]
    if name not in functions: raise ConfigError(unknown_name_message('function', name, functions))
    return getattr(module, name)

Prompts = option(
    str, 'helpful, red_team, hh/harmless-base/test, or a .jsonl, .csv or .txt file of prompts.')
Tokens = option(int, 'Largest number of tokens of each text.')
Temperature = option(float, 'Sampling temperature; 0: greedy.', bounds=(0, 100))
Batch = option(int, 'Examples per step.')
Rate = option(float, 'Learning rate.', above=0)


# %% [markdown]
# ## Supervised stage

# %%
#| export
@constitution.command('revise', epilog=help_examples(
    'moral_sc constitution revise smollm2-135m-instruct --limit 4 --rounds 2 --mode chat'))
def revise_command(
    model:Model,
    prompts:Prompts='red_team',
    principles:option(Path|None, 'File of principles: .toml, .txt, .jsonl or .csv; default: '
                      'ours.')=None,
    rounds:option(int, 'Critiques and revisions per answer.', bounds=(1, 1000))=1,
    critique:option(bool, 'Without: revise directly, the paper\'s ablation.')=True,
    max_new_tokens:Tokens=256,
    temperature:Temperature=1.,
    limit:Limit=None,
    mode:Mode='plain',
    seed:Seed=0,
    out:Out=None,
):
    "Let a model answer prompts, criticise its answers and revise them."
    from moral_sc.constitution.principles import load_principles
    from moral_sc.constitution.prompts import load_prompts
    from moral_sc.constitution.revision import revise
    rows = load_prompts(prompts, limit, seed)
    given = load_principles(principles)
    out = run_folder(out, 'revise', Path(model).name)
    print_status(f'{model}: {len(rows)} prompts, rounds of revision: {rounds}; writing to {out}.')
    lm = _model(model)
    with progress_bar('texts') as progress:
        rows = revise(lm, rows, given, rounds, critique, mode=mode, temperature=temperature,
                      max_new_tokens=max_new_tokens, seed=seed, out=str(out), progress=progress)
    _write_rows(out/'revisions.jsonl', rows)

@constitution.command('finetune', epilog=help_examples(
    'moral_sc constitution finetune smollm2-135m-instruct '
    'runs/revise/smollm2-135m-instruct/revisions.jsonl'))
def finetune_command(
    model:Model,
    revisions:argument(Path, 'As revise wrote them.', 'REVISIONS'),
    select:option(str, 'all revisions of a chain, or the final one.')='all',
    helpful:option(Path|None, 'File of further rows with prompt and answer.')=None,
    epochs:option(int, 'Times that each row is seen.')=1,
    batch:Batch=32,
    lr:Rate=1e-4,
    mode:Mode='plain',
    seed:Seed=0,
    out:Out=None,
):
    "Finetune a copy of the model on its revisions."
    from moral_sc.constitution.finetuning import (
        count_faults, finetune, load_examples, training_examples)
    extra = load_examples(helpful) if helpful else ()
    rows = training_examples(revisions, select, extra)
    out = run_folder(out, 'finetune', Path(model).name)
    print_status(f'{model}: {len(rows)} answers; writing to {out}.')
    print_status(count_faults(rows).to_string())
    with progress_bar('steps') as progress:
        finetune(_model(model, 'float32'), rows, out, mode, epochs, lr, seed, batch=batch,
                 progress=progress)
    typer.echo(out/'model')


# %% [markdown]
# ## Feedback

# %%
#| export
@constitution.command('pairs', epilog=help_examples(
    'moral_sc constitution pairs runs/finetune/mine/model'))
def pairs_command(
    model:Model,
    prompts:Prompts='red_team',
    max_new_tokens:Tokens=128,
    temperature:Temperature=1.,
    limit:Limit=None,
    mode:Mode='plain',
    seed:Seed=0,
    out:Out=None,
):
    "Sample two answers to every prompt."
    from moral_sc.constitution.answers import answer_pairs
    from moral_sc.constitution.prompts import load_prompts
    rows = load_prompts(prompts, limit, seed)
    out = run_folder(out, 'pairs', Path(model).name)
    print_status(f'{model}: two answers to each of {len(rows)} prompts; writing to {out}.')
    with progress_bar('answers') as progress:
        rows = answer_pairs(_model(model), rows, mode=mode, temperature=temperature, seed=seed,
                            max_new_tokens=max_new_tokens, out=str(out), progress=progress)
    _write_rows(out/'pairs.jsonl', rows)

@constitution.command('label', epilog=help_examples(
    'moral_sc constitution label smollm2-135m-instruct runs/pairs/mine/pairs.jsonl '
    '--principles 16'))
def label_command(
    model:Model,
    pairs:argument(Path, 'File of id, prompt, a, b: .jsonl or .csv.', 'PAIRS'),
    comparisons:option(Path|None, 'File of questions: .toml, .txt, .jsonl or .csv; default: '
                       'ours.')=None,
    principles:option(int, 'Drawn for each pair; 0: all of them, averaged.', bounds=(0, 1000))=1,
    swap:option(bool, 'Ask in both orders and average.')=True,
    cot:option(bool, 'Let the model think first; labels are then clamped to [.4, .6].')=False,
    mode:Mode='plain',
    seed:Seed=0,
    out:Out=None,
):
    "Ask a model which answer of each pair is better."
    from moral_sc.constitution.feedback import label, label_report
    from moral_sc.constitution.principles import load_comparisons
    from moral_sc.constitution.prompts import load_pairs
    rows = load_pairs(pairs)
    given = load_comparisons(comparisons)
    out = run_folder(out, 'label', Path(model).name)
    print_status(f'{model}: {len(rows)} pairs; writing to {out}.')
    with progress_bar('pairs') as progress:
        rows = label(_model(model), rows, given, principles_per_pair=principles or 'all', swap=swap,
                     cot=cot, mode=mode, seed=seed, out=str(out), progress=progress)
    print_status(label_report(rows).to_string())
    _write_rows(out/'labels.jsonl', rows)

@constitution.command('prefer', epilog=help_examples(
    'moral_sc constitution prefer smollm2-135m-instruct runs/label/mine/labels.jsonl --test 0.2'))
def prefer_command(
    model:Model,
    labels:argument(list[Path], 'Files of prompt, a, b, p or prompt, chosen, rejected; mixed.',
                    'LABELS...'),
    test:option(float, 'Share of the prompts that is kept for testing.', bounds=(0, 1))=.1,
    hard:option(bool, 'Round labels to 0 and 1: the ablation.')=False,
    epochs:option(int, 'Times that each pair is seen.')=1,
    batch:Batch=32,
    lr:Rate=1e-4,
    mode:Mode='plain',
    seed:Seed=0,
    out:Out=None,
):
    "Train a preference model on comparisons."
    from moral_sc.constitution.preference import fit_preference, load_labels
    from moral_sc.constitution.prompts import split_by_prompt
    if not 0<=test<1: raise ConfigError(f'test is {test}: give a share from 0 to below 1.')
    rows = [r for f in labels for r in load_labels(f)]
    train,held = split_by_prompt(rows, 1-test, test, seed=seed) if test else (rows, [])
    out = run_folder(out, 'prefer', Path(model).name)
    print_status(f'{model}: {len(train)} comparisons, {len(held)} for testing; writing to {out}.')
    with progress_bar('steps') as progress:
        pm = fit_preference(_model(model, 'float32'), train, held or None, hard=hard, mode=mode,
                            seed=seed,
                            epochs=epochs, batch=batch, lr=lr, out=str(out), progress=progress)
    if held: print_status(f'Accuracy on the test prompts: {pm.accuracy(held)}')
    typer.echo(out/'model')

@constitution.command('health', epilog=help_examples(
    'moral_sc constitution health runs/prefer/mine/model --held-out votes.jsonl '
    '--labels runs/label/mine/labels.jsonl'))
def health_command(
    model:argument(str, 'Folder of a preference model, or FILE.py:FUNCTION of prompts and '
                   'answers.', 'MODEL'),
    held_out:option(Path|None, 'File of prompt, a, b, p or prompt, chosen, rejected, not used in '
                    'training, with labels you trust.')=None,
    labels:option(Path|None, 'Labels it was fitted on, as label wrote them.')=None,
    ensemble:option(list[str]|None, 'Preference model of the same labels from another seed; '
                    'repeatable.')=None,
    answers:option(Path|None, 'File of prompt, answer: samples of the policy to the held-out '
                   'prompts.')=None,
    kl:option(float, 'Intended KL from the initial policy, nats.', above=0)=3.,
    seed:Seed=0,
    as_json:AsJson=False,
):
    """Say whether a preference model may be optimised, and why not.

    The exit code is 1 if it should not."""
    from moral_sc.constitution.evaluation.health import health
    if not held_out:
        raise ConfigError('The verdict needs comparisons that the model was not fitted on: name '
                          'their file with --held-out.')
    found = health(_reward(model), held_out, labels=labels, answers=answers, kl=kl, seed=seed,
                   ensemble=[_reward(m) for m in ensemble or ()])
    typer.echo(json.dumps(found.to_dict(), indent=1) if as_json else str(found))
    if not found.ok: raise typer.Exit(1)


# %% [markdown]
# ## Reinforcement learning

# %%
#| export
@constitution.command('rl', epilog=help_examples(
    'moral_sc constitution rl runs/finetune/mine/model --reward runs/prefer/mine/model',
    'moral_sc bias sweep runs/rl/model/snapshots   # its snapshots, asked for their bias'))
def rl_command(
    model:Model,
    reward:option(list[str], 'Folder of a preference model, or FILE.py:FUNCTION of prompts and '
                  'answers; several are added.')=(),
    watch:option(list[str]|None, 'Rewards that are only logged; repeatable.')=None,
    prompts:Prompts='red_team',
    algorithm:option(str, 'ppo or rloo.')='ppo',
    steps:option(int, 'Of training.')=100,
    batch:option(int, 'Answers per step.')=32,
    kl_coef:option(float, 'Reward points a nat of KL from the initial policy.',
                   bounds=(0, 1e6))=.001,
    num_ppo_epochs:option(int, 'Epochs over each batch, K in the papers.')=1,
    critic:option(str, 'shared: on the policy\'s backbone; separate: its own.')='shared',
    every:option(int|None, 'Steps between snapshots; default: a tenth of all.')=None,
    max_new_tokens:Tokens=128,
    temperature:Temperature=1.,
    lr:Rate=1e-5,
    limit:Limit=None,
    mode:Mode='plain',
    tensorboard:option(bool, 'Write event files too.')=False,
    seed:Seed=0,
    out:Out=None,
):
    "Train a policy against a preference model, with snapshots."
    from moral_sc.constitution.rl.trainer import combine_rewards
    from moral_sc.constitution.rl.policy import train_policy
    from moral_sc.constitution.prompts import load_prompts
    if not reward:
        raise ConfigError('A policy needs a reward: name a preference model, or FILE.py:FUNCTION, '
                          'with --reward.')
    rows = load_prompts(prompts, limit, seed)
    out = run_folder(out, 'rl', Path(model).name)
    score = [_reward(r) for r in reward]
    score = score[0] if len(score)==1 else combine_rewards(*score)
    print_status(f'{model}: {steps} steps of {algorithm} on {len(rows)} prompts; writing to {out}.')
    with progress_bar('steps') as progress:
        trained = train_policy(
            _model(model, 'float32'), rows, score, steps=steps, out=str(out), every=every,
            watch={Path(w).parent.name or w: _reward(w) for w in watch or ()},
            tensorboard=tensorboard,
            progress=progress, algorithm=algorithm, batch=batch, kl_coef=kl_coef,
            num_ppo_epochs=num_ppo_epochs, critic=critic,
            max_new_tokens=max_new_tokens, temperature=temperature, lr=lr, mode=mode, seed=seed)
    if trained.stopped: print_status(f'Stopped: {trained.stopped}.')
    for s in trained.snapshots: typer.echo(s)
    typer.echo(out/'model')


# %% [markdown]
# ## Evaluation
#
# Models answer the same prompts. The judge should not be the reward model of a policy that takes part.

# %%
#| export
def _judge(name, mode):
    from moral_sc.constitution.evaluation.elo import score_judge, model_judge
    classifier = 'SequenceClassification'
    config = Path(name)/'config.json'
    if config.is_file() and classifier in config.read_text(encoding='utf-8'):
        return score_judge(_preference(name))
    return model_judge(_model(name), mode=mode)

def _answers(models, prompts, limit, max_new_tokens, temperature, mode, seed, out):
    from moral_sc.constitution.answers import sample_answers
    from moral_sc.constitution.prompts import load_prompts
    from moral_sc.language.weights import check_model_folder, find_weights
    rows = load_prompts(prompts, limit, seed)
    answers = {}
    names = [Path(m).parent.name if Path(m).name=='model' else Path(m).name for m in models]
    if len(set(names))<len(names): names = [str(m) for m in models]
    if len(set(names))<2: raise ConfigError('A comparison needs two different models or more.')
    for m in models: check_model_folder(find_weights(m)) # Before the first one answers
    for m,name in zip(models, names):
        with progress_bar(f'answers of {name}') as progress:
            texts = sample_answers(_model(m), rows, mode=mode, temperature=temperature, seed=seed,
                            max_new_tokens=max_new_tokens, progress=progress,
                            out=str(run_folder(out/name, name)))
        answers[name] = [t[0] for t in texts]
    return rows, answers

@constitution.command('tournament', epilog=help_examples(
    'moral_sc constitution tournament smollm2-135m-instruct runs/rl/mine/snapshots/step-000100 '
    '--judge runs/prefer/other/model'))
def tournament_command(
    models:argument(list[str], 'Two models or more, or snapshots.', 'MODEL...'),
    judge:option(str, 'Folder of a preference model, or a language model.')='',
    prompts:Prompts='helpful',
    max_new_tokens:Tokens=128,
    temperature:Temperature=1.,
    limit:Limit=None,
    mode:Mode='plain',
    seed:Seed=0,
    as_json:AsJson=False,
    out:Out=None,
):
    "Let models answer the same prompts and rate them by a judge's votes."
    from moral_sc.constitution.evaluation.elo import play_matches, tournament
    if not judge: raise ConfigError('A tournament needs a judge: name a model, --judge.')
    out = run_folder(out, 'tournament')
    print_status(f'{len(models)} models, judged by {judge}; writing to {out}.')
    ask = _judge(judge, mode)
    rows,answers = _answers(models, prompts, limit, max_new_tokens, temperature, mode, seed,
                            out)
    votes = play_matches(answers, rows, ask, seed=seed)
    elo = tournament(votes, seed=seed)
    write_file(out/'votes.csv', votes.to_csv(index=False))
    print_rows(elo.table.round(1), as_json)
    if as_json: return
    typer.echo(write_file(out/'elo.csv', elo.table.to_csv(index=False)))

@constitution.command('elo', epilog=help_examples(
    'moral_sc constitution elo runs/tournament/votes.csv'))
def elo_command(
    votes:argument(Path, 'File of a, b, winner (or win, from 0 to 1), optionally prompt: .csv '
                   'or .jsonl.', 'VOTES'),
    as_json:AsJson=False,
):
    "Rate models by votes that you have."
    from moral_sc.constitution.evaluation.elo import tournament
    print_rows(tournament(votes).table.round(1), as_json)

@constitution.command('vote', epilog=help_examples(
    'moral_sc constitution vote smollm2-135m-instruct runs/rl/mine/snapshots/step-000100 '
    '--limit 40'))
def vote_command(
    models:argument(list[str], 'Two models or more, or snapshots.', 'MODEL...'),
    prompts:Prompts='helpful',
    max_new_tokens:Tokens=128,
    temperature:Temperature=1.,
    limit:Limit=None,
    mode:Mode='plain',
    seed:Seed=0,
    out:Out=None,
):
    "Make an offline page on which a person votes between two answers, blind."
    from moral_sc.constitution.evaluation.human_votes import write_vote_page
    out = run_folder(out, 'vote')
    print_status(f'{len(models)} models; writing to {out}.')
    rows,answers = _answers(models, prompts, limit, max_new_tokens, temperature, mode, seed,
                            out)
    typer.echo(write_vote_page(answers, rows, out/'vote.html', seed=seed))


# %% [markdown]
# ## End-to-end test
#
# A model of one layer is trained for ten seconds to answer any request with a short text and an end token. It
# then goes through all stages. The test is that each stage reads the output of the one before.

# %%
def sh(command):
    "Run a command; return its exit code and lines of output"
    app = command_group('', cls=ErrorGroup)
    app.add_typer(constitution, name='constitution')
    res = CliRunner().invoke(app, shlex.split(f'constitution {command}'))
    assert res.exception is None or isinstance(res.exception, SystemExit), res.exception
    return res.exit_code, res.output.strip().splitlines()

tiny = small_llama(byte_tokenizer(), layers=1, width=64, context=16_384)
before = '\n\n'.join(f'Human: {r["prompt"]}' for r in load_prompts('helpful'))*2
said = [(h, a) for h in ('Assistant', 'Critique', 'Revision') for a in ('It is so.', 'Not far.')]
lessons = [(encode(tiny, f'{before[:n]}\n\n{h}: {a}')+[1], n+len(h)+3)
           for h,a in said for n in (40, 300, 900)]
fit(tiny.model, lessons, answer_loss, lr=1e-2, epochs=40, batch=6, max_tokens=16_384)
save_model(tiny, 'tiny')
few = '--limit 8 --max-new-tokens 24'
stages = [f'revise tiny {few}',
          'finetune tiny runs/revise/tiny/revisions.jsonl --batch 2',
          f'pairs tiny {few}',
          'label tiny runs/pairs/tiny/pairs.jsonl',
          'prefer tiny runs/label/tiny/labels.jsonl --test 0.5 --batch 2',
          f'rl tiny --reward runs/prefer/tiny/model --steps 2 --batch 4 --every 1 --lr 0.01 {few}',
          'tournament tiny runs/rl/tiny/snapshots/step-000002 --judge runs/prefer/tiny/model '+few,
          f'vote tiny runs/rl/tiny/snapshots/step-000002 {few}',
          'elo runs/tournament/votes.csv',
          f'revise tiny --prompts mine.csv --principles mine.txt --out mine {few}',
          'prefer tiny chosen.jsonl --test 0 --batch 2 --out chosen',
          f'rl tiny --reward reward.py:length --steps 1 --batch 4 --out own {few}']
Path('mine.csv').write_text('prompt\nIs it far?\n')
Path('mine.txt').write_text('Be brief.\n')
Path('chosen.jsonl').write_text('{"prompt": "Is it far?", "chosen": "Yes.", "rejected": "No."}\n')
Path('reward.py').write_text('def length(prompts, answers): return [len(a) for a in answers]\n')
for s in stages:
    code,said = sh(s)
    print(f'{s}\n    {said[-1]}')
    assert code==0, said

# %% [markdown]
# Repeated commands load their finished runs. Invalid arguments give an error of one sentence.

# %%
assert all(sh(s)[0]==0 for s in stages[:3])
assert all(Path(p, 'config.json').is_file() for p in ('runs/rl/tiny/model', 'chosen/model'))
test_eq(len(json.loads('\n'.join(sh('elo runs/tournament/votes.csv --json')[1]))), 2)
wrong = ['revise tiny --limit 0', 'revise tiny --prompts red_tea', 'rl tiny',
         'tournament tiny tiny', 'tournament tiny --judge tiny', 'prefer tiny nowhere.jsonl',
         'prefer tiny runs/label/tiny/labels.jsonl --test 2', 'label tiny runs/revise/none.jsonl',
         'finetune tiny runs/revise/tiny/revisions.jsonl --select last',
         'tournament tiny missing --judge runs/prefer/tiny/model',
         'revise none --principles mine.xls',
         'rl none --reward reward.py:size', 'rl none --reward gone.py:size', 'elo chosen.jsonl']
for w in wrong: print(w, sh(w)[1][-1], sep='\n    ')

# %%
test_eq({sh(w)[0] for w in wrong}, {2})


# %% [markdown]
# The exit code of `health` says whether a preference model may be optimised. Here a count of the word *good* agrees
# with the votes, and the length of an answer does not.

# %%
def answer(k): return f'{"good "*k}{"so it is "*(4-k)}.'
rows = [dict(prompt=f'Is it {i%30}?', chosen=answer(max(i%5, i//5%5)),
             rejected=answer(min(i%5, i//5%5))) for i in range(240) if i%5!=i//5%5]
Path('votes.jsonl').write_text('\n'.join(map(json.dumps, rows)))
Path('reward.py').write_text(Path('reward.py').read_text()+
                             'def good(p, answers): return [a.count("good") for a in answers]\n')
verdicts = {k: sh(f'health reward.py:{k} --held-out votes.jsonl --kl 1')
            for k in ('good', 'length')}
for code,said in verdicts.values(): print(*said, sep='\n')

# %%
test_eq([code for code,_ in verdicts.values()], [0, 1])
code,said = sh('health reward.py:length --held-out votes.jsonl --json')
test_eq((code, json.loads('\n'.join(said))['ok']), (1, False))
assert sh('health runs/prefer/tiny/model --held-out votes.jsonl')[0] in (0, 1)
print(sh('health reward.py:good')[1][-1])
test_eq(sh('health reward.py:good')[0], 2)
