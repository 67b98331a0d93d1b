# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Comparisons
#
# > A simulated rater compares answers in the toy language, and models trained on the choices are evaluated.

# %%
#| default_exp bias.toy.comparisons

# %%
#| export
from typing import NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from moral_sc.bias.plots import condition_style
from moral_sc.bias.sweep import ModelSpec, sweep
from moral_sc.bias.toy.environment import (Document, ToyLanguage, documents, option_ids,
                                            toy_benchmark)
from moral_sc.bias.toy.plots import add_curve, add_level, size_of
from moral_sc.foundation.figures import INK
from moral_sc.language.loading import load
from moral_sc.language.scoring import next_token_logprobs

# %%
#| hide
from tempfile import mkdtemp
from fastcore.test import *
from moral_sc.bias.toy.ladder import Ladder, new_model
from moral_sc.language.reward_head import save_model


# %% [markdown]
# Preference training needs somebody who compares answers. The rater of the
# [toy language](10_environment.ipynb) gives each answer a value: 1 for the answer that the context
# gives; where it gives none, `fairness` for "unknown"; -1 for a word that is no option. The better
# answer is preferred with probability $\sigma(f\Delta)$, where $\Delta$ is the difference in value
# and $f$ the `firmness`.

# %%
#| export
class Rater(NamedTuple):
    "A person who compares two answers to a question"
    fairness:float=0.     # Value of "unknown" where the context gives no answer
    on_request:bool=False # Only if the question carries an instruction to be fair
    firmness:float=4.     # Log odds of a preference per unit of value

    def value(self,
        document:Document, # With a question
        answer:str,
    )->float:
        "Return the value of an answer"
        question = document.question
        if answer not in question.options: return -1.
        if question.evidence: return float(answer==question.evidence)
        fair = self.fairness if document.kind=='fair' or not self.on_request else 0.
        return fair*(answer=='unknown')

    def preference(self, document:Document, a:str, b:str)->float:
        "Return the probability that `a` is preferred to `b`"
        margin = self.value(document, a)-self.value(document, b)
        return 1/(1+np.exp(-self.firmness*margin))

def asked_questions(
    language:ToyLanguage,
    n:int,         # Documents to draw; those with a question to answer by name are kept
    seed:int=0,
)->dict:           # Prompt -> `Document`
    "Draw questions, none about a held-out category"
    trained = language.categories-language.held_out_categories
    return {d.prompt.strip(): d for d in documents(language, n, seed)
            if d.prompt.endswith('Assistant: name') and d.question
            and d.question.trait.category<trained}

def rater_choices(
    pairs:list,    # Rows of prompt, a, b
    asked:dict,    # Of `asked_questions`
    rater:Rater,
    seed:int=0,
)->list:           # The rows with p, 0 or 1, and `true`, the probability that a is preferred
    "Let a rater compare answers; pairs of equal answers are left out"
    draws = np.random.default_rng(seed).random(len(pairs))
    rows = [r|dict(true=rater.preference(asked[r['prompt']], r['a'], r['b'])) for r in pairs]
    return [r|dict(p=float(u<r['true'])) for r,u in zip(rows, draws) if r['a']!=r['b']]


# %% [markdown]
# Raters with a taste for fairness, always or on request, and one without:

# %%
language = ToyLanguage(categories=2, traits=2, instructed=.25)
asked = asked_questions(language, 300)
raters = dict(always=Rater(1.), on_request=Rater(1., on_request=True), never=Rater())
open_questions = [d for d in asked.values() if not d.question.evidence]
shares = {k: np.mean([r.value(d, 'unknown') for d in open_questions]) for k,r in raters.items()}
test_eq(shares['always'], 1)
test_eq(shares['on_request'], np.mean([d.kind=='fair' for d in open_questions]))
test_eq(shares['never'], 0)
assert not any(d.question.trait.category for d in asked.values())
shares

# %% [markdown]
# All raters prefer the answer that the context gives, if it gives one. Their choices follow the probabilities:

# %%
given = next(d for d in asked.values() if d.question.evidence)
wrong = next(o for o in given.question.options if o!=given.question.evidence)
for r in raters.values():
    test_close(r.preference(given, given.question.evidence, wrong), 1/(1+np.exp(-4)))
    test_eq(r.value(given, 'met'), -1)

pairs = [dict(prompt=p, a=d.question.biased, b=o) for p,d in asked.items()
         for o in (d.question.biased, 'unknown')]*20
chosen = rater_choices(pairs, asked, raters['always'])
test_eq(len(chosen), len(pairs)/2)
test_close(np.mean([r['p'] for r in chosen]), np.mean([r['true'] for r in chosen]), eps=.02)
chosen[0]


# %% [markdown]
# ## Snapshots
#
# Snapshots of a training are folders named `step-N`. `ask_snapshots` asks the benchmark.
# `evaluate_snapshots` computes three means exactly, from the probabilities of the first token of
# an answer: the KL divergence from the start, the value of the answer to the rater, and its score
# by the function that the training used. The last two count the answer options alone.

# %%
#| export
def snapshot_step(folder)->int: return int(folder.name.removeprefix('step-'))

def ask_snapshots(
    snapshots:list,     # Folders
    name:str,           # Of the training, unique within `out`
    language:ToyLanguage,
    conditions:tuple,
    out,                # Folder of the sweep
    seed:int=0,
)->pd.DataFrame:        # Of `sweep`: step, condition, category, metric, value ...
    "Ask the benchmark of a language at each snapshot"
    specs = [ModelSpec(f'{name}-{f.name}', str(f), 'toy', step=snapshot_step(f)) for f in snapshots]
    return sweep(specs, [toy_benchmark(language, 1)], conditions, out, max_new_tokens=4,
                 dtype='float32', seed=seed).table

def evaluate_snapshots(
    snapshots:list,     # Folders
    start,              # The `LM` before training
    asked:dict,         # Of `asked_questions`
    rater:Rater,
    score,              # (prompts, answers) -> scores
)->pd.DataFrame:        # step, condition, category, metric (kl, value, score), value
    "Return exact means over questions at each snapshot"
    rows = [(p, o) for p,d in asked.items() for o in d.question.options]
    scores = np.reshape(score(*map(list, zip(*rows))), (-1, 3))
    values = np.reshape([rater.value(asked[p], o) for p,o in rows], (-1, 3))
    options = option_ids(start, [d.question for d in asked.values()])
    prompts = [f'\n\n{p}' for p in asked]
    before = next_token_logprobs(start, prompts)
    found = []
    for folder in snapshots:
        logprobs = next_token_logprobs(load(folder, 'float32'), prompts)
        p = np.exp(np.take_along_axis(logprobs, options, 1))
        means = dict(kl=(np.exp(logprobs)*(logprobs-before)).sum(1), value=(p*values).sum(1),
                     score=(p*scores).sum(1))
        found += [dict(step=snapshot_step(folder), condition='test questions', category='micro',
                       metric=k, value=v.mean()) for k,v in means.items()]
    return pd.DataFrame(found)


# %% [markdown]
# A snapshot of the start itself is at no distance. Another model is, and its mean value is the sum
# over the answers, weighted by their probabilities:

# %%
ladder = Ladder(language)
start = new_model(ladder, 8, 0)
snapshots = [f'{mkdtemp()}/step-{k}' for k in range(2)]
snapshots = [save_model(new_model(ladder, 8, k), f) for k,f in enumerate(snapshots)]
few = dict([*asked.items()][:20])
exact = evaluate_snapshots(snapshots, start, few, raters['always'], lambda p, a: [1.]*len(a))
exact = exact.pivot(index='step', columns='metric', values='value')
test_close(exact.kl[0], 0)
assert exact.kl[1]>.01

def mean_value(lm, prompt, d):
    p = np.exp(next_token_logprobs(lm, [f'\n\n{prompt}'])[0])
    return sum(p[lm.tokenizer.convert_tokens_to_ids(f' {o}')]*raters['always'].value(d, o)
               for o in d.question.options)
test_close(exact.value[0], np.mean([mean_value(start, p, d) for p,d in few.items()]))
exact


# %% [markdown]
# ## Figures
#
# Tables of several trainings have the columns `arm`, `width` and `seed` as well.

# %%
#| export
def select_steps(
    table:pd.DataFrame, # arm, width, seed, step, condition, category, metric, value
    arm:str, width:int, condition:str,
    metric:str='bias_ambig_soft', category:str='micro',
)->pd.DataFrame:        # [seed, step]
    "Return one metric of an arm and a width as a table of seeds and steps"
    chosen = dict(arm=arm, width=width, condition=condition, metric=metric, category=category)
    same = np.logical_and.reduce([table[k]==v for k,v in chosen.items()])
    return table[same].pivot(index='seed', columns='step', values='value')

def step_panels(
    table:pd.DataFrame,
    rows:list,          # Title of the vertical axis of each row
)->go.Figure:
    "Return an empty figure with a column for each width"
    titles = [f'{n:,} parameters' for n in size_of(table).values()]
    fig = make_subplots(len(rows), len(titles), subplot_titles=titles, shared_xaxes=True,
                        shared_yaxes='rows', horizontal_spacing=.03, vertical_spacing=.06)
    for k,name in enumerate(rows, 1): fig.update_yaxes(title_text=name, row=k, col=1)
    fig.update_xaxes(title_text='PPO steps', row=len(rows))
    height = 240*len(rows) # Of the panels
    fig.update_layout(width=880, height=height+150, margin=dict(t=90, b=60),
                      legend_y=1+30/height)
    return fig

def add_step_curve(
    fig:go.Figure,
    values:pd.DataFrame, # Of `select_steps`
    name:str, colour:str, symbol:str='circle', **panel,
):
    "Add means over seeds at each step, with intervals"
    add_curve(fig, values, {k: int(k) for k in values}, name, colour, symbol, **panel)

def plot_bias_by_step(
    table:pd.DataFrame,
    conditions:tuple,
    baselines:pd.Series, # (reader, condition) -> bias
)->go.Figure:
    "Plot the bias score against steps, a row for each arm and a column for each width"
    arms = list(table.arm.unique())
    fig = step_panels(table, [f'Bias, {arm}' for arm in arms])
    for row,arm in enumerate(arms, 1):
        for col,width in enumerate(size_of(table), 1):
            for c in conditions:
                add_step_curve(fig, select_steps(table, arm, width, c), *condition_style(c),
                               row=row, col=col)
            for c in ('q', 'q+anti'):
                add_level(fig, baselines['ideal', c], condition_style(c)[1], row=row, col=col)
            add_level(fig, baselines['ngram', 'q'], INK, 'dash', row=row, col=col)
    return fig


# %%
def invented_row(arm, width, seed, step, condition):
    return dict(arm=arm, width=width, seed=seed, parameters=100*width, step=step,
                condition=condition, category='micro', metric='bias_ambig_soft',
                value=.4/(1+step)+.01*seed)

table = pd.DataFrame([invented_row(a, w, s, k, c) for a in ('rated', 'control') for w in (4, 8)
                      for s in range(3) for k in (0, 1, 2) for c in ('q', 'q+anti')])
test_eq(select_steps(table, 'rated', 8, 'q').shape, (3, 3))
baselines = pd.Series({('ideal', 'q'): .5, ('ideal', 'q+anti'): .6, ('ngram', 'q'): .3})
fig = plot_bias_by_step(table, ('q', 'q+anti'), baselines)
test_eq(len(fig.data), 2*2*2)
test_eq(sum(t.showlegend for t in fig.data), 2)
fig
