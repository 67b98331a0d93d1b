# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Constitutional AI pipeline: SL-CAI and RL-CAI against answers without a model
#
# > In a toy version of Figure 1, over eight trainings, SL-CAI is less helpful than helpful RLHF, and no model reaches the score of the revised text generator.

# %% tags=["parameters"]
scale = 'quick'  # quick: four trainings up to SL-CAI; cpu: eight, minutes; gpu: a larger model
seed = 0         # everything random follows from it

# %%
#| hide
from time import perf_counter

import numpy as np, pandas as pd, torch
from moral_sc.constitution.toy import environment
from moral_sc.constitution.finetuning import count_faults
from moral_sc.constitution.pipeline_diagram import plot_pipeline
from moral_sc.constitution.plots import plot_stages
from moral_sc.constitution.toy.experiments import (
    principle_agreement, select_kind, split_mixed_requests, true_side)
from moral_sc.constitution.toy.judge_model import COMPARISONS, train_judge_model
from moral_sc.constitution.toy.pipeline import (
    STAGES, beyond_baselines, measure_pipeline, stage_difference, stage_estimates, train_pipeline)
from moral_sc.constitution.evaluation.elo import score_judge, play_matches, tournament
from moral_sc.foundation.statistics import t_interval
from moral_sc.lab.claims import Measurement, record
from moral_sc.lab.paths import shared_dir, work_dir
from moral_sc.lab.scales import at_scale

torch.set_num_threads(1)
start = perf_counter()

# %%
size = at_scale(scale, # requests, those of RL-CAI; steps of the judge, of RL; trainings; votes
    quick=dict(model='mini', options=environment.HELPFUL, rounds=4, revise=100, asks=300,
               helpful_steps=10, batch=48, held=60, trainings=4, # To SL-CAI as at scale cpu
               lessons=30, ai_asks=20, steps=2, votes=10),
    cpu=dict(model='mini', options=environment.HELPFUL, rounds=4, revise=100, asks=300,
             helpful_steps=10, batch=48, held=60, trainings=8,
             lessons=400, ai_asks=300, steps=60, votes=200),
    gpu=dict(model='medium', options=dict(environment.HELPFUL, steps=4000), rounds=4, revise=3000,
             asks=5000, helpful_steps=30, batch=256, held=500, trainings=8,
             lessons=2000, ai_asks=5000, steps=300, votes=200),
)
device = 'auto' if scale=='gpu' else 'cpu'
folder = shared_dir('toy-models') # First models are shared with other pages
size

# %% [markdown]
# ## Figure 1: the pipeline
#
# > A helpful model answers requests that invite harm, criticises and revises its answers, and a
# > pre-trained model is finetuned on the revisions (SL-CAI). Pairs of its answers are compared by a model
# > under a principle, a preference model is trained on the comparisons, and reinforcement learning
# > against it gives RL-CAI [@bai2022constitutional].
#
# Every step below uses the same function as for real models. The models are those of the [toy
# environment](../../constitution/toy/10_environment.ipynb), where help and harm are counted, so we
# measure the effect of each stage without a judge. No human label of harm is used; as in the paper,
# (simulated) raters compare answers for helpfulness only. The
# [steps](../../constitution/toy/60_pipeline.ipynb) train four models:
#
# - The *pre-trained* model is trained on dialogues until its answers help.
# - *Helpful RLHF* is trained from it by RL on raters' comparisons of helpfulness.
# - *SL-CAI* is the pre-trained model, finetuned on revisions that helpful RLHF made of its answers to
#   red-team requests, and on its answers to ordinary requests.
# - *RL-CAI* is trained from SL-CAI by RL against a preference model of AI labels of harm and raters'
#   labels of help.
#
# The labels of harm come from a [judge model](../../constitution/toy/30_judge_model.ipynb) that was
# trained on simulated votes and on no answer of these models. One judge serves all trainings.

# %%
judge = train_judge_model('mini', seed, [(size['lessons'], (1, 4), None)], lr=.01,
                          out=work_dir('judge'), device=device, init_std=.15)

def run(s):
    "Train the pipeline from one seed; return it with its measurements"
    parts = split_mixed_requests([2*size['revise'], size['asks'], 2*size['held']], s)
    base = environment.pretrain(size['model'], s, out=folder, device=device, **size['options'])
    options = {k: size[k] for k in ('rounds', 'helpful_steps', 'steps', 'batch')}
    trained = train_pipeline(base, judge, COMPARISONS, *parts[:2], s, lr=1.5e-3, kl_coef=.1,
                             ai_prompts=parts[1][:size['ai_asks']], **options)
    return trained, *measure_pipeline(trained, parts[2], size['rounds'], s), parts[2]

seeds = [seed+s for s in range(size['trainings'])]
runs = [run(s) for s in seeds]
first = runs[0][0]
tables = [r[1] for r in runs]

# %%
#| label: fig-stages
#| fig-cap: True helpfulness of answers to held-out ordinary requests, true harmlessness of answers to held-out red-team requests, and their sum, for each stage and for five kinds of answers without a model; means and 95 % intervals over trainings.
titles = dict(help='help', harmless='harmlessness', total='sum')
plot_stages(pd.DataFrame({v: stage_estimates(tables, k) for k,v in titles.items()}), baselines=5)

# %% [markdown]
# The constant answer *better talk to a friend first* has the highest possible harmlessness and no
# helpfulness. Harmlessness alone therefore cannot distinguish a method from a constant answer; the sum
# of helpfulness and harmlessness can. The *generator* is the program that wrote the text of the
# pre-trained models. Its answers, revised by its own rules, show the score of a model that only copies
# its training text.
#
# In the recorded run RL for helpfulness alone makes answers more helpful and more harmful, as in the
# paper. SL-CAI lies between the pre-trained model and helpful RLHF in both. That it is less helpful
# than helpful RLHF agrees with the paper; whether it is more helpful than the pre-trained model is
# undecided. Its mean harmlessness is not above that of the pre-trained model: it was trained on
# revisions of the more harmful answers of helpful RLHF. RL-CAI is less harmful than SL-CAI, and differs
# widely between trainings. No model reaches the sum of the revised generator, or of the constant
# *always a better course*. This run therefore does not show that the method works here. Training is
# short: a hundred revised requests, and 60 steps of RL.
#
# Means over trainings: `useful` tools in answers to ordinary requests, and dangerous words and refusals
# in answers to red-team requests.

# %%
mean_table = pd.concat(tables, keys=seeds).groupby(level=1, sort=False).mean()
mean_table.round(2)


# %% [markdown]
# ## Steps of one training
#
# The numbers of prompts, examples, pairs and steps in the training of the first seed:

# %%
#| label: fig-pipeline
#| fig-cap: The pipeline, with the numbers of prompts, examples, pairs and steps in the training of the first seed.
def n_labels(kind): return len(select_kind(first.labels, kind))
plot_pipeline(dict(
    base=f'{first.models["helpful RLHF"].parameters:,} weights',
    answers=f'{size["revise"]} prompts',
    revisions=f'{size["rounds"]} rounds', pairs=f'{len(first.labels)} pairs',
    supervised=f'{count_faults(first.examples)["used"]} examples',
    reinforced=f'{size["steps"]} steps',
    labels=f'{n_labels("red_team")} by AI<br>{n_labels("helpful")} by people'))

# %% [markdown]
# Revisions that only copy earlier text are left out of the training of SL-CAI:

# %%
count_faults(first.examples)

# %% [markdown]
# The judge compares the pairs on red-team requests in both orders, under a principle drawn for each
# pair. Its agreement with each principle on new examples of its own training distribution, and the
# share of its labels on the side of the truth in each training, among pairs that differ in harm:

# %%
correct = [true_side(r[0].labels)[0].mean() for r in runs]
({c.id: str(principle_agreement(judge, c, seed+1, size['votes'])) for c in COMPARISONS},
 np.round(correct, 3).tolist())

# %% [markdown]
# RL of RL-CAI against its preference model, first seed:

# %%
columns = ['step', 'score', 'kl3', 'entropy', 'length']
first.history[columns].iloc[::max(1, size['steps']//6)].round(2)


# %% [markdown]
# ## Tournament
#
# In the paper people vote. Here votes are drawn from true scores: the better answer wins with the
# probability that follows from the difference of the scores. Elo ratings are fitted to the votes; a
# cluster is a training.

# %%
def ratings(kind, score):
    "Elo of the models on prompts of one kind"
    votes = []
    for s,(_,_,answers,rows) in zip(seeds, runs):
        chosen = [i for i,r in enumerate(rows) if r['kind']==kind]
        prompts = [dict(id=f'{s}/{i}', prompt=rows[i]['prompt']) for i in chosen]
        players = {k: [a[i] for i in chosen] for k,a in answers.items()}
        votes.append(play_matches(players, prompts, score_judge(score), seed=s).assign(cluster=s))
    return tournament(pd.concat(votes), gauge=STAGES[0])

elo = dict(help=ratings('helpful', environment.helpfulness),
           harmless=ratings('red_team', environment.harmlessness))
pd.concat({k: e.table.set_index('player').round(0) for k,e in elo.items()}, axis=1)

# %% [markdown]
# Answers of each model, first seed:

# %%
_,_,answers,held = runs[0]
for kind in ('helpful', 'red_team'):
    i = next(i for i,r in enumerate(held) if r['kind']==kind)
    print(held[i]['prompt'], *(f'  {k}: {a[i]}' for k,a in answers.items()), sep='\n')


# %% [markdown]
# ## Claims
#
# The criteria in `data/claims/constitution_pipeline.toml` were fixed before the run that judges them. A
# claim on RL-CAI is undecided where a baseline does as well. The claim that the supervised stage costs
# helpfulness is closed, because the paper does not say it: in section 3.3 SL-CAI is more helpful than
# the pre-trained model and less helpful than models trained by RL. In the recorded run the second of
# these holds, and so do two claims of ours, on the labels and on the helpfulness of the pre-trained
# model. The two claims of ours that compare models with baselines fail. The other five are undecided.
#
# In an earlier recording one model was both the pre-trained and the helpful one. It was trained too
# briefly to help (true helpfulness -0.72), intervals drew prompts, and five of six claims held,
# although the constant *always comfort* scored better than all three models.

# %%
def change(column, after, before): return stage_difference(tables, column, after, before)
base,helpful,sl,rl = STAGES
better,best = beyond_baselines(tables)
help_better,most_helpful = beyond_baselines(tables, column='help')

def unless_baseline(estimate, margin, name, column):
    "Mark an estimate as undecided where a baseline does as well as RL-CAI"
    if margin.low>0: return estimate
    text = f'{column} of RL-CAI less that of the baseline "{name}" is {margin}'
    return Measurement(*estimate, unmet=text)

results = {
    'sl-harmless': change('harmless', sl, base),
    'rl-harmless': unless_baseline(change('harmless', rl, sl), better, best,
                                   'help plus harmlessness'),
    'labels': t_interval(correct),
    'sl-help': change('help', sl, base),
    'sl-help-pretrained': change('help', sl, base),
    'sl-help-rlhf': change('help', sl, helpful),
    'rl-help': unless_baseline(change('help', rl, sl), help_better, most_helpful, 'help'),
    'not-evasive': unless_baseline(stage_estimates(tables, 'refusal')[rl], better, best,
                                   'help plus harmlessness'),
    'first-helps': stage_estimates(tables, 'help')[base],
    'beats-baselines': better,
    'sl-beats-generator': change('total', sl, 'generator, revised')}
record(scale, {f'constitution/pipeline-{k}': v for k,v in results.items()})

# %% [markdown]
# ## What this does not show
#
# The results say nothing about large models. The models are far smaller than the paper's, and their
# texts contain good revisions by construction. The labeller was trained on votes that follow the truth,
# with sharper probabilities, and one of its three principles is the true harmlessness. The assumptions
# are listed on the page about [labellers](../../constitution/toy/20_labellers.ipynb). Intervals draw
# trainings, all with the same labeller. The larger model has not yet been run on a GPU.
#
# Minutes of the run on one thread, without first models that another page has trained:

# %%
round((perf_counter()-start)/60, 1)
