# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The whole pipeline in a world of words
#
# > Figure 1 of Constitutional AI, from an untrained model to a tournament of three, with
# > the true worth of every answer beside it. The last cell says in how many seconds.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds; cpu: three seeds, minutes; gpu: a larger model
seed = 0         # everything random follows from it

# %%
#| hide
from time import perf_counter

import numpy as np, pandas as pd, torch
from moral_sc.constitution.toy import environment
from moral_sc.constitution.answers import answer_pairs, sample_answers
from moral_sc.constitution.pipeline_diagram import plot_pipeline
from moral_sc.constitution.plots import plot_stages
from moral_sc.constitution.feedback import label
from moral_sc.constitution.finetuning import training_examples, finetune, count_faults
from moral_sc.constitution.toy.judge_model import COMPARISONS, CURRICULUM, vote_margins, train_judge_model, simulate_votes
from moral_sc.constitution.rl.policy import train_policy
from moral_sc.constitution.preference import fit_preference
from moral_sc.constitution.prompts import split_by_prompt
from moral_sc.constitution.revision import revise, STOPS
from moral_sc.constitution.evaluation.elo import score_judge, play_matches, tournament
from moral_sc.foundation.statistics import cluster_bootstrap, paired_difference
from moral_sc.lab.claims import record
from moral_sc.lab.scales import at_scale

torch.set_num_threads(1)
began = perf_counter()
clock = {}

# %%
size = at_scale(scale,
    quick=dict(model='tiny', read=100, principles=['danger'],
               lessons=[(40, (1,), 1), (30, (1, 2), 1)], rounds=2,
               revise=80, asks=160, steps=12, batch=32, held=60, seeds=1),
    cpu=dict(model='tiny', read=None, lessons=CURRICULUM, principles=[*environment.PRINCIPLE_WEIGHTS], rounds=3,
             revise=300, asks=500, steps=60, batch=64, held=150, seeds=3),
    gpu=dict(model='medium', read=None, lessons=CURRICULUM, principles=[*environment.PRINCIPLE_WEIGHTS], rounds=4,
             revise=3000, asks=5000, steps=300, batch=256, held=500, seeds=3),
)
on = 'auto' if scale=='gpu' else 'cpu'
size


# %% [markdown]
# > A model answers requests that invite harm, criticises and revises its answers, and is
# > finetuned on the revisions (SL-CAI). Pairs of its answers are compared by a model under
# > a principle, a preference model learns the comparisons, and reinforcement learning
# > against it makes RL-CAI [@bai2022constitutional].
#
# Every step below is the function that serves real models, on a model of [the toy
# world](../../constitution/toy/10_environment.ipynb), where help and harm are counted. So after each
# stage we can say what it did, and no judge stands between. No person says anything about
# harm; as in the paper, people compare answers for helpfulness only.

# %% [markdown]
# ## The first stage
#
# Half of the prompts invite harm. To those the model answers, criticises and revises; to
# the others it only answers, and those answers keep it from forgetting how to help.

# %%
def timed(name, f, *args, **kw):
    "Call `f` and put its seconds on the clock"
    start = perf_counter()
    res = f(*args, **kw)
    clock[name] = clock.get(name, 0)+perf_counter()-start
    return res

def prompts(seed):
    "Prompts for revision, for feedback and RL, and held out; different by text"
    n = [2*size['revise'], size['asks'], 2*size['held']]
    rows = [*{r['text']: r for r in environment.requests(3*sum(n), seed=seed)}.values()][:sum(n)]
    return split_by_prompt(rows, *(k/sum(n) for k in n), seed=seed)

def kind(rows, k): return [r for r in rows if r['kind']==k]

brief = dict(max_new_tokens=40)
short = brief|dict(stop=STOPS) # An answer ends where a critique of it would begin
def supervise(base, rows, seed):
    "SL-CAI: finetuned on revisions and on helpful answers"
    chains = timed('revise', revise, base, kind(rows, 'red_team'), environment.PRINCIPLES,
                   rounds=size['rounds'], few_shot=[], seed=seed, **brief)
    good = kind(rows, 'helpful')
    said = timed('sample', sample_answers, base, good, seed=seed, **short)
    plain = [dict(text=r['text'], answer=a) for r,(a,) in zip(good, said)]
    learn = training_examples(chains, 'all', plain)
    return timed('finetune', finetune, base, learn, lr=1e-3, epochs=2, seed=seed)[0],learn

for_sl,for_rl,held = prompts(seed)
first = timed('pretrain', environment.pretrain, size['model'], seed, size['read'], device=on)
sl,learned = supervise(first, for_sl, seed)
count_faults(learned)

# %% [markdown]
# Revisions that only copy what was there are left out. What is left is text that the model
# wrote itself.
#
# ## The second stage
#
# SL-CAI answers each prompt twice. Pairs on red-team prompts are labelled by a model, asked
# in both orders under a principle drawn for each pair. The policy itself cannot do it: it
# has read no verdicts and does not know the words of the question. So the labels come from
# [a model that has](../../constitution/toy/30_judge_model.ipynb), one that has seen no answer of
# this policy. How good is it on its own ground, heaps of sentences?

# %%
principles = [c for c in COMPARISONS if c.id in size['principles']]

def read_votes(seed):
    "The labelling model"
    return timed('judge', train_judge_model, size['model'], seed, size['lessons'],
                 size['principles'], device=on)

def agreement(judge, principle):
    "Share of labels on the side of what a principle sees, on fresh votes"
    fresh = simulate_votes(200, seed+1, [principle.id])
    p = [r['p'] for r in label(judge, fresh, [principle], few_shot=[])]
    return cluster_bootstrap(np.sign(np.array(p)-.5)==np.sign(vote_margins(fresh)), range(200))

judge = read_votes(seed)
pd.Series({c.id: agreement(judge, c) for c in principles}).map(str).to_dict()


# %% [markdown]
# Pairs on helpful prompts are compared by people. The preference model learns both, and
# SL-CAI is trained against it.

# %%
def feedback(sl, judge, rows, seed):
    "Pairs of answers, harm labelled by a model, help by people"
    pairs = timed('sample', answer_pairs, sl, rows, seed=seed, **short)
    pairs = [dict(p, kind=r['kind']) for p,r in zip(pairs, rows) if p['a']!=p['b']]
    return [*timed('label', label, judge, kind(pairs, 'red_team'), principles,
                   few_shot=[], seed=seed),
            *timed('label', environment.rater_labels, kind(pairs, 'helpful'), 'helpful', seed=seed)]

def reinforce(sl, rows, labels, seed):
    "RL-CAI: trained against a preference model of the labels"
    pm = timed('prefer', fit_preference, sl, labels, lr=1e-3, epochs=3, seed=seed)
    return timed('reinforce', train_policy, sl, rows, pm, steps=size['steps'],
                 batch=size['batch'], max_new_tokens=32, stop=STOPS, lr=1e-3, kl_coef=.1,
                 seed=seed)

labels = feedback(sl, judge, for_rl, seed)
rl = reinforce(sl, for_rl, labels, seed)
shown = ['step', 'score', 'kl3', 'entropy', 'length']
rl.history[shown].iloc[::max(1, size['steps']//6)].round(2)


# %% [markdown]
# How often does a label take the side of the truth, where the two answers differ in harm?

# %%
def sides(labels):
    "1 where a label is on the side of the truth, and the prompts"
    rows = kind(labels, 'red_team')
    p,a,b = ([r[k] for r in rows] for k in ('prompt', 'a', 'b'))
    gap = environment.harmlessness(p, a)-environment.harmlessness(p, b)
    right = (1+np.sign(gap)*np.sign([r['p']-.5 for r in rows]))/2
    return right[gap!=0],np.array(p)[gap!=0]

cluster_bootstrap(*sides(labels))

# %%
#| label: fig-pipeline
#| fig-cap: The pipeline with what passed through it in the run of the first seed
n = lambda k: len(kind(labels, k))
plot_pipeline(dict(
    base=f'{first.parameters:,} weights', answers=f'{size["revise"]} prompts',
    revisions=f'{size["rounds"]} rounds', supervised=f'{count_faults(learned)["used"]} examples',
    pairs=f'{len(labels)} pairs', reinforced=f'{size["steps"]} steps',
    labels=f'{n("red_team")} by AI<br>{n("helpful")} by people'))

# %% [markdown]
# ## What each stage did
#
# All three models answer the same held-out prompts. With more than one seed the whole
# pipeline, first model included, is run again for each.

# %%
STAGES = 'first model', 'SL-CAI', 'RL-CAI'
def measure(models, held, seed):
    "A row for each held-out prompt and model, with the truth"
    texts = [r['text'] for r in held]
    res = []
    for name,lm in zip(STAGES, models):
        said = [a for a, in timed('sample', sample_answers, lm, held, seed=seed, **short)]
        res.append(environment.features(texts, said).assign(
            model=name, seed=seed, prompt=texts, kind=[r['kind'] for r in held],
            answer=said, help=environment.helpfulness(texts, said),
            harmless=environment.harmlessness(texts, said)))
    return pd.concat(res).assign(cluster=lambda d: [f'{seed}/{t}' for t in d.prompt])

def again(seed):
    "The whole pipeline with another seed"
    for_sl,for_rl,held = prompts(seed)
    base = timed('pretrain', environment.pretrain, size['model'], seed, size['read'], device=on)
    sl = supervise(base, for_sl, seed)[0]
    labels = feedback(sl, read_votes(seed), for_rl, seed)
    rl = reinforce(sl, for_rl, labels, seed)
    return measure([base, sl, rl.lm], held, seed),sides(labels)

runs = [(measure([first, sl, rl.lm], held, seed), sides(labels))]
runs += [again(seed+s) for s in range(1, size['seeds'])]
d = pd.concat([r for r,_ in runs])

def part(model, k): return d[(d.model==model)&(d.kind==k)]
def mean(model, k, column):
    x = part(model, k)
    return cluster_bootstrap(x[column].to_numpy(float), x.cluster, strata=x.seed)

stages = pd.DataFrame({
    'help, helpful prompts': [mean(m, 'helpful', 'help') for m in STAGES],
    'harmlessness, red-team': [mean(m, 'red_team', 'harmless') for m in STAGES]},
    index=STAGES)

# %%
#| label: fig-stages
#| fig-cap: True helpfulness of answers to helpful prompts and true harmlessness of answers to red-team prompts, held out; bars are 95 % intervals over prompts
plot_stages(stages)

# %%
shown = ['danger', 'better', 'useful', 'refusal', 'words', 'help', 'harmless']
d.groupby(['kind', 'model'], sort=False)[shown].mean().round(2)


# %% [markdown]
# An answer with nothing in it harms nobody. So the line of harmlessness in @fig-stages has
# to be read with the columns `useful` and `words`. In the run recorded here the supervised
# stage costs no help, against the paper: on helpful prompts useful tools stay almost where
# they were, and dangerous and wrong ones, which take points off, get fewer. RL-CAI is harmless
# partly by saying less.
#
# ## A tournament
#
# The paper cannot count and lets people vote. Here the truth votes, for the better answer
# with the probability that the difference allows, and ratings follow.

# %%
def ratings(k, score):
    "Elo of the models on prompts of one kind"
    asked = part(STAGES[0], k)
    rows = [dict(id=c, text=p) for c,p in zip(asked.cluster, asked.prompt)]
    said = {m: part(m, k).answer.tolist() for m in STAGES}
    return tournament(play_matches(said, rows, score_judge(score), seed=seed), gauge=STAGES[0])

elo = dict(help=ratings('helpful', environment.helpfulness),
           harmless=ratings('red_team', environment.harmlessness))
pd.concat({k: e.table.set_index('player').round(0) for k,e in elo.items()}, axis=1)

# %% [markdown]
# One answer of each:

# %%
asked = next(r['text'] for r in held if r['kind']=='red_team')
one = d[(d.seed==seed)&(d.prompt==asked)].set_index('model').answer
print(asked, *(f'{k}: {a}' for k,a in one.items()), sep='\n')


# %% [markdown]
# ## Claims
#
# Criteria were fixed in `data/claims/constitution_pipeline.toml` before the first run at
# the scale that judges them.

# %%
def change(column, k, a, b):
    "How much more model b has than model a"
    x = part(a, k)
    y = part(b, k)
    return paired_difference(y[column].to_numpy(float), x[column].to_numpy(float),
                             x.cluster, strata=x.seed)

right,which = (np.concatenate([s[i] for _,s in runs]) for i in (0, 1))
base,sft,last = STAGES
record(scale, {
    'constitution/pipeline-sl-harmless': change('harmless', 'red_team', base, sft),
    'constitution/pipeline-rl-harmless': change('harmless', 'red_team', sft, last),
    'constitution/pipeline-labels': cluster_bootstrap(right, which),
    'constitution/pipeline-sl-help': change('help', 'helpful', base, sft),
    'constitution/pipeline-rl-help': change('help', 'helpful', sft, last),
    'constitution/pipeline-not-evasive': mean(last, 'red_team', 'refusal'),
})

# %% [markdown]
# What this page does not show: anything about large models. The first model is far smaller
# than the paper's, its texts contain good revisions by construction, and its labeller was
# taught by votes that rest on the truth, if sharper than it. What is assumed and what is
# not stands [here](../../constitution/toy/20_labellers.ipynb).
#
# Seconds of each step, of all seeds together, on one thread:

# %%
pd.Series(clock).round(1).to_dict()

# %%
f'{scale}: {perf_counter()-began:.0f} seconds on {torch.get_num_threads()} thread(s)'
