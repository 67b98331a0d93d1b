# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The whole pipeline on a real model
#
# > SmolLM2-135M-Instruct criticises itself, is trained on its own feedback, and is then asked for
# > bias: Constitutional AI end to end on a processor, and its snapshots in the third paper's test.

# %% tags=["parameters"]
scale = 'quick'  # quick: a random model, seconds; cpu: about an hour; gpu: paper-like sizes
seed = 0         # of every draw, every sampled text and every order of training
model = 'smollm2-135m-instruct'  # an alias, a folder or a hub id
judge = 'gemma-3-270m'           # who compares the answers afterwards

# %%
#| hide
import json
import warnings
from time import perf_counter

import numpy as np, pandas as pd, torch
from moral_sc.bias.plots import plot_steps
from moral_sc.bias.sweep import ModelSpec, item_bias, sweep
from moral_sc.constitution.answers import answer_pairs, sample_answers
from moral_sc.constitution.evaluation.refusals import boilerplate_matches, evasion_matches
from moral_sc.constitution.plots import plot_training
from moral_sc.constitution.feedback import label, label_report
from moral_sc.constitution.finetuning import training_examples, find_fault, FAULT_KINDS, finetune, count_faults
from moral_sc.constitution.rl.policy import train_policy
from moral_sc.constitution.preference import fit_preference
from moral_sc.constitution.principles import load_few_shot
from moral_sc.constitution.prompts import load_prompts, split_by_prompt
from moral_sc.constitution.revision import revise
from moral_sc.constitution.evaluation.elo import model_judge, play_matches
from moral_sc.foundation.errors import DataError
from moral_sc.foundation.statistics import cluster_bootstrap, paired_difference
from moral_sc.lab.claims import record
from moral_sc.lab.paths import work_dir
from moral_sc.lab.scales import at_scale
from moral_sc.language.loading import load
from moral_sc.language.stub_models import random_model

warnings.filterwarnings('ignore', message='.*hardly considers')
began = perf_counter()

# %%
size = at_scale(scale,
    quick=dict(hh=0, ours=20, rounds=1, shots=0, tokens=6, mode='plain', steps=2, batch=4, every=1,
               questions=8, orders=1, lr=1e-4),
    cpu=dict(hh=160, ours=80, rounds=1, shots=1, tokens=48, mode='chat', steps=24, batch=16,
             every=8, questions=160, orders=3, lr=3e-5),
    gpu=dict(hh=2000, ours=80, rounds=4, shots=5, tokens=128, mode='chat', steps=500, batch=256,
             every=50, questions=None, orders=3, lr=1e-5),
)
quick = scale=='quick'
first = random_model('llama') if quick else load(model)
place = work_dir(f'real-{first.name.replace("/", "-")}-{scale}-{seed}')
how = dict(mode=size['mode'], seed=seed)
short = dict(how, max_new_tokens=size['tokens'])
first


# %% [markdown]
# The paper's models had up to 52 billion parameters, its RL runs some 250,000 answers. Here a
# model of 135 million writes a few hundred. What can such a run show? That every stage does on
# real weights and real prompts what it does in [the toy world](pipeline.ipynb); what it costs;
# and how far a model moves that can hardly judge. Nobody should expect a more harmless model. A
# result that is indistinguishable from nothing is reported as that.
#
# ## Prompts
#
# Our own, half of them mild invitations to harm, and short ones from the public set of
# red-teaming dialogues [@bai2022hh] where that is within reach. They are parted by text:
# some for critique and revision, some for feedback and RL, and some that no training sees.

# %%
def prompts():
    rows = load_prompts('helpful')[:size['ours']//2]+load_prompts('red_team')[:size['ours']//2]
    if not size['hh']: return rows
    try: more = load_prompts('hh/harmless-base/test')
    except DataError as e: print(e); return rows
    brief = [r for r in more if len(r['text'])<200]
    order = np.random.default_rng(seed).permutation(len(brief))[:size['hh']]
    return rows+[brief[i] for i in order]

for_sl,for_rl,held = split_by_prompt(prompts(), .3, .5, .2, seed=seed)
{k: len(v) for k,v in dict(revision=for_sl, feedback=for_rl, held=held).items()}


# %% [markdown]
# ## The first stage
#
# The model answers; what could harm is criticised and revised; it learns the revisions, and its
# own answers to helpful prompts.

# %%
def timed(name, f, *args, **kw):
    "Call `f` and note its seconds; what was done before is not timed again"
    path = place/'seconds.json'
    start = perf_counter()
    res = f(*args, **kw)
    known = json.loads(path.read_text()) if path.exists() else {}
    known[name] = max(known.get(name, 0), round(perf_counter()-start, 1))
    path.write_text(json.dumps(known))
    return res

red,good = ([r for r in for_sl if (r['kind']=='helpful')==k] for k in (False, True))
chains = timed('critique and revision', revise, first, red, rounds=size['rounds'],
               few_shot=load_few_shot()[:size['shots']], temperature=.7, out=place/'revise', **short)
said = timed('helpful answers', sample_answers, first, good, temperature=.7, out=place/'helpful', **short)
rows = training_examples(chains, 'all', [dict(text=r['text'], answer=a) for r,(a,) in zip(good, said)],
                   allow=FAULT_KINDS if quick else ['no end'])
count_faults(rows)

# %%
sl,history = timed('finetuning', finetune, first, rows, place/'sl', size['mode'], 1, size['lr'],
                   seed, batch=16, max_tokens=2048)
history[['step', 'loss', 'grad_norm', 'tokens']].iloc[[0, -1]].round(3)

# %% [markdown]
# ## Feedback
#
# Two answers to each prompt, compared by the same model under principles, in both orders. A
# label is $p$ of the first answer; if both orders agree about nothing, it is near one half.

# %%
pairs = timed('pairs of answers', answer_pairs, sl, for_rl, temperature=1., out=place/'pairs', **short)
pairs = [p for p in pairs if p['a'].strip() and p['b'].strip() and p['a']!=p['b']]
labels = timed('labels', label, first, pairs, principles_per_pair=1 if quick else 4,
               few_shot=[] if quick else None, out=place/'labels', max_tokens=2048, **how)
label_report(labels).map(repr).to_frame('labels')


# %% [markdown]
# Half of the prompts make the preference model that is the reward, the other half a second one
# that is only watched.

# %%
def preference(name, rows):
    return timed('preference models', fit_preference, sl, rows, epochs=2, batch=16, lr=size['lr'],
                 out=place/name, max_tokens=2048, **how)

mine,other = split_by_prompt(labels, .5, .5, seed=seed)
reward = preference('reward', mine)
watched = preference('watched', other)
pd.DataFrame({k: m.history.loss.iloc[[0, -1]].tolist() for k,m in
              dict(reward=reward, watched=watched).items()}, ['first step', 'last step']).round(4)

# %% [markdown]
# ## Reinforcement learning

# %%
policy = timed('reinforcement learning', train_policy, sl, for_rl, reward,
               steps=size['steps'], batch=size['batch'], every=size['every'],
               lr=size['lr'], kl_coef=.02, warmup=2, max_tokens=2048, out=place/'rl',
               watch=dict(watched=watched), kl_max=60., **short)
policy.stopped or 'ran to its last step'

# %%
#| label: fig-real-training
#| fig-cap: The run step by step, the means of an answer; `watched` is the score of the second preference model, on which nothing was trained.
plot_training(policy.history, ('score', 'watched', 'kl3', 'entropy', 'length', 'ended'), 5)

# %% [markdown]
# ## What came of it
#
# Held-out prompts, answered by the first model, by SL-CAI and by the last snapshot. Refusals and
# stock phrases are found by [the patterns](../../constitution/evaluation/50_refusals.ipynb) that count them
# in the authors' samples.

# %%
models = {'first': first, 'SL-CAI': sl, 'RL-CAI': policy.lm}
asked = [r['text'] for r in held for _ in range(2)]
texts = {k: sum(timed('answers at the end', sample_answers, m, held, 2, out=place/f'said-{k}', **short), [])
         for k,m in models.items()}
measures = {k: pd.DataFrame(dict(
    reward=reward(asked, t), watched=watched(asked, t), words=[len(x.split()) for x in t],
    refusals=[float(bool(evasion_matches(x))) for x in t], stock=[float(bool(boilerplate_matches(x))) for x in t],
    repeats=[float(find_fault(x)=='repetition') for x in t])) for k,t in texts.items()}
pd.DataFrame({k: {c: cluster_bootstrap(d[c].to_numpy(), asked) for c in d}
              for k,d in measures.items()}).map(repr)

# %%
gain = {c: paired_difference(measures['RL-CAI'][c].to_numpy(), measures['SL-CAI'][c].to_numpy(),
                             asked) for c in measures['first']}
pd.Series(gain, name='RL-CAI less SL-CAI').map(repr).to_frame()

# %% [markdown]
# And by a judge who took no part, a model of another maker under our principles, in both orders:

# %%
who = random_model('llama', seed=1) if quick else load(judge)
votes = timed('judging', play_matches, texts, asked, model_judge(
    who, few_shot=[] if quick else None, max_tokens=2048, out=None, seed=seed), seed=seed)
wins = {}
for a,b in (('SL-CAI', 'first'), ('RL-CAI', 'first'), ('RL-CAI', 'SL-CAI')):
    d = votes[votes.a.isin([a, b]) & votes.b.isin([a, b])]
    wins[a, b] = cluster_bootstrap(np.where(d.a==a, d.win, 1-d.win)-.5, d.prompt)
pd.Series(wins, name='chance to be preferred, less one half').map(repr).to_frame()

# %% [markdown]
# ## Bias against steps
#
# The third paper asks how bias changes with training on preferences [@ganguli2023]. Nobody has
# released the steps of its models; these are steps of a model whose whole training is on this
# page. Every snapshot answers the same questions of BBQ, as they are and with the request to be
# unbiased.

# %%
line = [ModelSpec('first', first, 'first', 'instruct'), ModelSpec('step 0', sl, 'RL-CAI', 'rl', 0),
        *(ModelSpec(f'step {int(s.name[5:])}', s, 'RL-CAI', 'rl', int(s.name[5:]))
          for s in policy.snapshots)]
line = list({s.name: s for s in line}.values())
found = timed('bias', sweep, line, 'bbq-like' if quick else 'bbq', ['q', 'q+if'], place/'bias',
              size['questions'], size['orders'], seed, size['mode'] if quick else 'plain')

# %%
#| label: fig-real-bias
#| fig-cap: Bias on ambiguous questions of BBQ over the steps of RL; step 0 is SL-CAI. Bars are 95% intervals that draw templates.
plot_steps(found.table)

# %%
bench = 'bbq-like' if quick else 'bbq'
def bias(name): # Of each ambiguous question under Q
    return item_bias(found.records(name, bench))

last = line[-1].name
start = bias('first')
end = bias(last)
both = start.merge(end, on=['id', 'template'], suffixes=('_start', '_end'))
moved = paired_difference(both.value_end, both.value_start, both.template)
moved

# %% [markdown]
# ## Reading it
#
# At this size the chain breaks at the labels. Asked which answer is better, the model names the
# same letter whatever stands there: nearly every label flips with the order, and the average of
# both orders lies a hundredth or two from one half. A preference model of such labels has next to
# nothing to learn. Reinforcement finds what little there is: the score it is given rises by a
# twentieth of a nat on prompts it never saw, the answers become shorter, and the second preference
# model, trained on other prompts, does not agree that they became better. Neither does the judge.
# Bias does not move. That is the whole pipeline at work on a model that cannot be its own judge,
# and it says nothing about larger ones.
#
# ## Cost
#
# The longest call of each kind, while other work ran on the same machine and held up reinforcement
# learning most; an idle one is faster.

# %%
seconds = pd.Series(json.loads((place/'seconds.json').read_text()), name='seconds')
seconds['all'] = seconds.sum()
seconds.to_frame()

# %% [markdown]
# ## Claims
#
# Written in `data/claims/constitution_realrun.toml` before the run. One seed: the intervals draw
# prompts and templates, and say nothing about another run. An earlier recording, by earlier
# code, sampled other texts. It had one bare refusal among 96 answers in place of
# two, and its claim about evasion held; its other verdicts were the same.

# %%
verdicts = {'constitution/real-score-rises': gain['reward'],
            'constitution/real-other-score-rises': gain['watched'],
            'constitution/real-judged-better': wins['RL-CAI', 'first'],
            'constitution/real-never-evasive': cluster_bootstrap(
                measures['RL-CAI'].refusals.to_numpy(), asked),
            'constitution/real-bias-with-steps': moved}
if quick: print('A random model answered, so no claim about models is recorded.')
else: record(scale, verdicts)

# %%
minutes = (perf_counter()-began)/60
f'{scale}: {minutes:.1f} minutes on {torch.get_num_threads()} thread(s), read back where it was done'
