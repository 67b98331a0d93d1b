# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Pipeline on SmolLM2-135M: its labels carry almost no signal
#
# > On SmolLM2-135M the reward rises by 0.05 nats, but an independent judge does not prefer the answers after RL (compare Figure 3).

# %% tags=["parameters"]
scale = 'quick'  # quick: a random model, seconds; cpu: about an hour; gpu: paper-like sizes
seed = 0         # of every draw, every sampled text and every order of training
models = ()      # --model NAME, twice: the trained model and the judge; default: of the scale

# %%
#| hide
import json
import warnings
from functools import partial

import numpy as np, pandas as pd
from moral_sc.bias.plots import plot_steps
from moral_sc.bias.sweep import ModelSpec, item_bias, sweep
from moral_sc.constitution.answers import answer_pairs, answer_rows, sample_answers
from moral_sc.constitution.evaluation.refusals import boilerplate_matches, evasion_matches
from moral_sc.constitution.plots import plot_training
from moral_sc.constitution.feedback import label, label_report
from moral_sc.constitution.finetuning import (
    FAULT_KINDS, count_faults, find_fault, finetune, training_examples)
from moral_sc.constitution.rl.policy import train_policy
from moral_sc.constitution.preference import fit_preference
from moral_sc.constitution.principles import load_few_shot
from moral_sc.constitution.prompts import draw_short_prompts, load_prompts, split_by_prompt
from moral_sc.constitution.revision import revise
from moral_sc.constitution.evaluation.elo import model_judge, play_matches
from moral_sc.foundation.errors import DataError
from moral_sc.foundation.runs import time_stage
from moral_sc.foundation.statistics import cluster_bootstrap, paired_difference
from moral_sc.lab.claims import Measurement, record
from moral_sc.lab.paths import work_dir
from moral_sc.lab.scales import at_scale
from moral_sc.language.loading import load
from moral_sc.language.stub_models import random_model

warnings.filterwarnings('ignore', message='.*hardly considers')

# %%
size = at_scale(scale,
    quick=dict(hh=0, ours=20, rounds=1, shots=0, tokens=6, mode='plain', steps=2, batch=4, every=1,
               questions=8, orders=1, lr=1e-4, models=['random', 'random']),
    cpu=dict(hh=160, ours=80, rounds=1, shots=1, tokens=48, mode='chat', steps=24, batch=16,
             every=8, questions=160, orders=3, lr=3e-5,
             models=['smollm2-135m-instruct', 'gemma-3-270m']),
    gpu=dict(hh=2000, ours=80, rounds=4, shots=5, tokens=128, mode='chat', steps=500, batch=256,
             every=50, questions=None, orders=3, lr=1e-5,
             models=['smollm2-135m-instruct', 'gemma-3-270m']),
)
quick = scale=='quick'
names = [*models, *size['models'][len(models):]]
random = 'random' in names
def load_model(name, seed=0):
    return random_model('llama', seed=seed) if name=='random' else load(name)

first = load_model(names[0])
folder = work_dir(f'real-{first.name.replace("/", "-")}-{scale}-{seed}')
options = dict(mode=size['mode'], seed=seed)
sampling = dict(options, max_new_tokens=size['tokens'])
first


# %% [markdown]
# ## Figure 1 at 135 million parameters
#
# > Models with up to 52 billion parameters criticise and revise their answers, label pairs of answers
# > under principles, and are trained against a preference model of these labels, with some 250,000
# > answers in RL. RL-CAI is preferred to the model it began from [@bai2022constitutional].
#
# Our model has 135 million parameters and samples a few hundred answers. The page runs every stage of
# the [toy environment](pipeline.ipynb) on real weights and prompts, and measures its cost and its
# effect. We do not expect a more harmless model, because one of this size can hardly judge. A result
# that is indistinguishable from no effect is reported as such.
#
# ### Prompts
#
# We use our own prompts, half of them mild invitations to harm, and short ones from the public set
# of red-teaming dialogues [@bai2022hh] if it is available. They are split by text: for critique and
# revision, for feedback and RL, and held out.

# %%
def collect_prompts():
    rows = load_prompts('helpful')[:size['ours']//2]+load_prompts('red_team')[:size['ours']//2]
    if size['hh']:
        try: return rows+draw_short_prompts('hh/harmless-base/test', size['hh'], seed=seed)
        except DataError as e: print(e)
    return rows

sl_prompts, rl_prompts, held = split_by_prompt(collect_prompts(), .3, .5, .2, seed=seed)
{k: len(v) for k,v in dict(revision=sl_prompts, feedback=rl_prompts, held=held).items()}

# %% [markdown]
# ### Supervised stage
#
# The model answers all prompts, and criticises and revises its answers to prompts that invite harm.
# It is finetuned on the revisions and on its own answers to helpful prompts.

# %%
clock = partial(time_stage, folder/'seconds.json') # Stores how long each stage takes
red_team, helpful = ([r for r in sl_prompts if (r['kind']=='helpful')==k] for k in (False, True))
chains = clock('critique and revision', revise, first, red_team, rounds=size['rounds'],
               few_shot=load_few_shot()[:size['shots']], temperature=.7, out=folder/'revise',
               **sampling)
answers = clock('helpful answers', answer_rows, first, helpful, temperature=.7,
                out=folder/'helpful', **sampling)
examples = training_examples(chains, 'all', answers, allow=FAULT_KINDS if quick else ['no end'])
count_faults(examples)

# %%
sl, history = clock('finetuning', finetune, first, examples, folder/'sl', size['mode'], 1,
                    size['lr'], seed, batch=16, max_tokens=2048)
history[['step', 'loss', 'grad_norm', 'tokens']].iloc[[0, -1]].round(3)

# %% [markdown]
# ### AI feedback
#
# The same model compares two answers to each prompt under principles, in both orders. A label is the
# probability $p$ of the first answer. If swapping the answers flips the preference, the averaged
# label is near 0.5.

# %%
pairs = clock('pairs of answers', answer_pairs, sl, rl_prompts, temperature=1.,
              out=folder/'pairs', **sampling)
pairs = [p for p in pairs if p['a'].strip() and p['b'].strip() and p['a']!=p['b']]
labels = clock('labels', label, first, pairs, principles_per_pair=1 if quick else 4,
               few_shot=[] if quick else None, out=folder/'labels', max_tokens=2048, **options)
label_report(labels).map(repr).to_frame('labels')

# %% [markdown]
# The labels of one half of the prompts train the preference model that is the reward. The other half
# trains a second one (`watched`), which is only recorded.

# %%
reward,watched = (clock('preference models', fit_preference, sl, rows, epochs=2, batch=16,
                        lr=size['lr'], out=folder/name, max_tokens=2048, **options)
                  for name,rows in zip(('reward', 'watched'),
                                       split_by_prompt(labels, .5, .5, seed=seed)))
pd.DataFrame({k: m.history.loss.iloc[[0, -1]].tolist() for k,m in
              dict(reward=reward, watched=watched).items()}, ['first step', 'last step']).round(4)

# %% [markdown]
# ### Reinforcement learning

# %%
policy = clock('reinforcement learning', train_policy, sl, rl_prompts, reward,
               steps=size['steps'], batch=size['batch'], every=size['every'],
               lr=size['lr'], kl_coef=.02, warmup=2, max_tokens=2048, out=folder/'rl',
               watch=dict(watched=watched), kl_max=60., **sampling)
policy.stopped or 'ran to its last step'

# %%
#| label: fig-real-training
#| fig-cap: Means over the answers of each step of RL; `watched` is the score of the second preference model, which is not used in training.
plot_training(policy.history, ('score', 'watched', 'kl3', 'entropy', 'length', 'ended'), 5)

# %% [markdown]
# ## Answers to held-out prompts
#
# The first model, SL-CAI and the last snapshot answer held-out prompts. Refusals and stock phrases
# are found by [the patterns](../../constitution/evaluation/50_refusals.ipynb) that count them in the
# authors' samples.

# %%
models = {'first': first, 'SL-CAI': sl, 'RL-CAI': policy.lm}
prompts = [r['prompt'] for r in held for _ in range(2)]
texts = {k: sum(clock('answers at the end', sample_answers, m, held, 2,
                      out=folder/f'answers-{k}', **sampling), []) for k,m in models.items()}
measures = {k: pd.DataFrame(dict(
    reward=reward(prompts, t), watched=watched(prompts, t), words=[len(x.split()) for x in t],
    refusals=[float(bool(evasion_matches(x))) for x in t],
    stock=[float(bool(boilerplate_matches(x))) for x in t],
    repeats=[float(find_fault(x)=='repetition') for x in t])) for k,t in texts.items()}
pd.DataFrame({k: {c: cluster_bootstrap(d[c].to_numpy(), prompts) for c in d}
              for k,d in measures.items()}).map(repr)

# %%
gain = {c: paired_difference(measures['RL-CAI'][c].to_numpy(), measures['SL-CAI'][c].to_numpy(),
                             prompts) for c in measures['first']}
pd.Series(gain, name='RL-CAI less SL-CAI').map(repr).to_frame()

# %% [markdown]
# An independent judge, a model by another developer, compares the answers under our principles, in
# both orders:

# %%
judge_model = load_model(names[1], seed=1)
votes = clock('judging', play_matches, texts, prompts, model_judge(
    judge_model, few_shot=[] if quick else None, max_tokens=2048, out=None, seed=seed), seed=seed)
wins = {}
for a,b in (('SL-CAI', 'first'), ('RL-CAI', 'first'), ('RL-CAI', 'SL-CAI')):
    d = votes[votes.a.isin([a, b]) & votes.b.isin([a, b])]
    wins[a, b] = cluster_bootstrap(np.where(d.a==a, d.win, 1-d.win)-.5, d.prompt)
pd.Series(wins, name='chance to be preferred, less one half').map(repr).to_frame()

# %% [markdown]
# ## Bias against RL steps
#
# @ganguli2023 measure how bias changes with training on preferences. Snapshots of their models are
# not public. Here the whole training of the model is on this page. Every snapshot answers the same
# BBQ questions, without and with the instruction to be unbiased.

# %%
specs = [ModelSpec('first', first, 'first', 'instruct'),
         ModelSpec('step 0', sl, 'RL-CAI', 'rl', 0),
         *(ModelSpec(f'step {int(s.name[5:])}', s, 'RL-CAI', 'rl', int(s.name[5:]))
           for s in policy.snapshots)]
specs = list({s.name: s for s in specs}.values())
benchmark = 'bbq-like' if quick else 'bbq'
results = clock('bias', sweep, specs, benchmark, ['q', 'q+if'], folder/'bias', size['questions'],
                size['orders'], seed, size['mode'] if quick else 'plain')

# %%
#| label: fig-real-bias
#| fig-cap: Bias on ambiguous BBQ questions against steps of RL, without and with the instruction; step 0 is SL-CAI, bars are 95 % intervals that resample templates.
plot_steps(results.table)


# %%
def bias(name): # Of each ambiguous question under Q
    return item_bias(results.records(name, benchmark))

items = bias('first').merge(bias(specs[-1].name), on=['id', 'template'],
                            suffixes=('_start', '_end'))
bias_change = paired_difference(items.value_end, items.value_start, items.template)
bias_change

# %% [markdown]
# ## Interpretation
#
# At this size the pipeline fails at the labels. When the model has to choose the better answer, it
# chooses the same letter in either order. Every label flips with the order, and the average of both
# orders differs from one half by 0.014 on average. A preference model can learn almost nothing from
# such labels. After RL the reward is higher by 0.05 nats on held-out prompts, and the answers are
# shorter. The second preference model, trained on other prompts, does not show an improvement, nor does
# the judge. Bias does not change.
#
# ## What this does not show
#
# The results say nothing about larger models: this one cannot label its own answers. There is one seed,
# so intervals over prompts and templates do not cover differences between runs. The paper-like sizes
# have not yet been run on a GPU.
#
# ## Cost
#
# The longest call of each kind. Other work ran on the same machine and slowed reinforcement learning
# most; an idle machine is faster.

# %%
seconds = pd.Series(json.loads((folder/'seconds.json').read_text()), name='seconds')
seconds['all'] = seconds.sum()
seconds.to_frame()

# %% [markdown]
# ## Claims
#
# The criteria in `data/claims/constitution_realrun.toml` were written before the run. Two claims of
# ours hold: the reward rises, and bias changes by less than 0.05. A model that answers these questions
# at chance can hardly change its bias, so the second is weak evidence. The second score and evasion,
# with two refusals among 96 answers, are undecided. The judge's preference needs a larger model: both
# models are smaller than the 52 billion parameters for which the paper reports it. In an earlier
# recording with other sampled texts there was one refusal and the claim about evasion held; the other
# estimates led to the same verdicts.

# %%
verdicts = {'constitution/real-score-rises': gain['reward'],
            'constitution/real-other-score-rises': gain['watched'],
            'constitution/real-judged-better': wins['RL-CAI', 'first'],
            'constitution/real-never-evasive': cluster_bootstrap(
                measures['RL-CAI'].refusals.to_numpy(), prompts),
            'constitution/real-bias-with-steps': bias_change}
smaller = min(first.parameters, judge_model.parameters)
sizes = {'constitution/real-judged-better': smaller} # Both have to tell answers apart
record(scale, {k: Measurement(*e, unmet='a model with random weights answered' if random else '',
                              parameters=sizes.get(k, first.parameters))
               for k,e in verdicts.items()})
