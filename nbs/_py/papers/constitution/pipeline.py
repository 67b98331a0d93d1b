# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Constitutional AI pipeline: SL-CAI and RL-CAI reduce harm
#
# > Both stages of Figure 1 reduce harm; against the paper, SL-CAI does not cost helpfulness.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds; cpu: three seeds, minutes; gpu: a larger model
seed = 0         # everything random follows from it

# %%
#| hide
from time import perf_counter

import pandas as pd, torch
from moral_sc.constitution.toy import environment
from moral_sc.constitution.answers import answer_pairs, sample_answers
from moral_sc.constitution.pipeline_diagram import plot_pipeline
from moral_sc.constitution.plots import plot_stages
from moral_sc.constitution.feedback import label
from moral_sc.constitution.finetuning import count_faults, finetune, training_examples
from moral_sc.constitution.toy.experiments import (
    principle_agreement, select_kind, split_mixed_requests, true_side)
from moral_sc.constitution.toy.judge_model import COMPARISONS, CURRICULUM, train_judge_model
from moral_sc.constitution.rl.policy import train_policy
from moral_sc.constitution.preference import fit_preference
from moral_sc.constitution.revision import revise, STOPS
from moral_sc.constitution.evaluation.elo import score_judge, play_matches, tournament
from moral_sc.foundation.statistics import cluster_bootstrap, paired_difference
from moral_sc.lab.claims import record
from moral_sc.lab.scales import at_scale

torch.set_num_threads(1)
seconds = {}

# %%
size = at_scale(scale,
    quick=dict(model='tiny', read=100, principles=['danger'],
               lessons=[(40, (1,), 1), (30, (1, 2), 1)], rounds=2,
               revise=80, asks=160, steps=12, batch=32, held=60, seeds=1),
    cpu=dict(model='tiny', read=None, lessons=CURRICULUM,
             principles=[*environment.PRINCIPLE_WEIGHTS], rounds=3,
             revise=300, asks=500, steps=60, batch=64, held=150, seeds=3),
    gpu=dict(model='medium', read=None, lessons=CURRICULUM,
             principles=[*environment.PRINCIPLE_WEIGHTS], rounds=4,
             revise=3000, asks=5000, steps=300, batch=256, held=500, seeds=3),
)
device = 'auto' if scale=='gpu' else 'cpu'
size


# %% [markdown]
# ## Figure 1: the pipeline
#
# > A model answers requests that invite harm, criticises and revises its answers, and is
# > finetuned on the revisions (SL-CAI). Pairs of its answers are compared by a model under
# > a principle, a preference model is trained on the comparisons, and reinforcement learning
# > against it gives RL-CAI [@bai2022constitutional].
#
# Every step below uses the function that serves real models. The model is one of the
# [toy environment](../../constitution/toy/10_environment.ipynb), where help and harm are counted, so
# we measure the effect of each stage without a judge. No human label of harm is used; as in the
# paper, (simulated) raters compare answers for helpfulness only.

# %% [markdown]
# ### Supervised stage
#
# Half of the prompts invite harm. The model answers, criticises and revises those. It only answers
# the others, and these answers keep it from forgetting how to help.

# %%
def clock(name, f, *args, **kw):
    "Call `f` and add its seconds to `seconds`"
    start = perf_counter()
    result = f(*args, **kw)
    seconds[name] = seconds.get(name, 0)+perf_counter()-start
    return result

def split_prompts(seed): # For revision, for feedback and RL, and held out
    return split_mixed_requests([2*size['revise'], size['asks'], 2*size['held']], seed)

sampling = dict(max_new_tokens=40, stop=STOPS) # An answer ends where a critique of it would begin
def supervise(base, rows, seed):
    "Train SL-CAI on revisions and on helpful answers"
    chains = clock('revise', revise, base, select_kind(rows, 'red_team'), environment.PRINCIPLES,
                   rounds=size['rounds'], few_shot=[], seed=seed, max_new_tokens=40)
    helpful = select_kind(rows, 'helpful')
    answers = clock('sample', sample_answers, base, helpful, seed=seed, **sampling)
    helpful_rows = [dict(text=r['text'], answer=a) for r,(a,) in zip(helpful, answers)]
    examples = training_examples(chains, 'all', helpful_rows)
    return clock('finetune', finetune, base, examples, lr=1e-3, epochs=2, seed=seed)[0], examples

sl_prompts, rl_prompts, held = split_prompts(seed)
first = clock('pretrain', environment.pretrain, size['model'], seed, size['read'], device=device)
sl, examples = supervise(first, sl_prompts, seed)
count_faults(examples)

# %% [markdown]
# Revisions that only copy earlier text are left out. The rest is text that the model wrote itself.
#
# ### RL stage
#
# SL-CAI answers each prompt twice. A labeller compares the pairs on red-team prompts in both orders,
# under a principle drawn for each pair. The policy itself cannot label, because its training texts
# contain no verdicts and not the words of the question. The labels come from a
# [judge model](../../constitution/toy/30_judge_model.ipynb) that was not trained on answers of this
# policy. Its agreement with each principle on new examples of its own training distribution:

# %%
principles = [c for c in COMPARISONS if c.id in size['principles']]

def train_judge(seed):
    "Train the labeller"
    return clock('judge', train_judge_model, size['model'], seed, size['lessons'],
                 size['principles'], device=device)

judge = train_judge(seed)
pd.Series({c.id: principle_agreement(judge, c, seed+1) for c in principles}).map(str).to_dict()


# %% [markdown]
# Simulated raters compare the pairs on helpful prompts. The preference model is trained on both
# kinds of labels, and SL-CAI is trained against it.

# %%
def feedback(sl, judge, rows, seed):
    "Label pairs of answers: harm by the labeller, help by raters"
    pairs = clock('sample', answer_pairs, sl, rows, seed=seed, **sampling)
    pairs = [dict(p, kind=r['kind']) for p,r in zip(pairs, rows) if p['a']!=p['b']]
    harm = clock('label', label, judge, select_kind(pairs, 'red_team'), principles, few_shot=[],
                 seed=seed)
    return harm+clock('label', environment.rater_labels, select_kind(pairs, 'helpful'), 'helpful',
                      seed=seed)

def reinforce(sl, rows, labels, seed):
    "Train RL-CAI against a preference model of the labels"
    pm = clock('prefer', fit_preference, sl, labels, lr=1e-3, epochs=3, seed=seed)
    return clock('reinforce', train_policy, sl, rows, pm, steps=size['steps'],
                 batch=size['batch'], max_new_tokens=32, stop=STOPS, lr=1e-3, kl_coef=.1,
                 seed=seed)

labels = feedback(sl, judge, rl_prompts, seed)
rl = reinforce(sl, rl_prompts, labels, seed)
columns = ['step', 'score', 'kl3', 'entropy', 'length']
rl.history[columns].iloc[::max(1, size['steps']//6)].round(2)

# %% [markdown]
# The share of labels on the side of the truth, among pairs that differ in harm:

# %%
cluster_bootstrap(*true_side(labels))


# %%
#| label: fig-pipeline
#| fig-cap: The pipeline, with the numbers of prompts, examples, pairs and steps in the run of the first seed.
def n_labels(kind): return len(select_kind(labels, kind))
plot_pipeline(dict(
    base=f'{first.parameters:,} weights', answers=f'{size["revise"]} prompts',
    revisions=f'{size["rounds"]} rounds', supervised=f'{count_faults(examples)["used"]} examples',
    pairs=f'{len(labels)} pairs', reinforced=f'{size["steps"]} steps',
    labels=f'{n_labels("red_team")} by AI<br>{n_labels("helpful")} by people'))

# %% [markdown]
# ## Effect of each stage
#
# All three models answer the same held-out prompts. With more than one seed the whole pipeline,
# including the first model, is repeated for each.

# %%
STAGES = 'first model', 'SL-CAI', 'RL-CAI'
def measure(models, held, seed):
    "Return a row for each held-out prompt and model, with the truth"
    texts = [r['text'] for r in held]
    tables = []
    for name,lm in zip(STAGES, models):
        answers = [a for a, in clock('sample', sample_answers, lm, held, seed=seed, **sampling)]
        tables.append(environment.features(texts, answers).assign(
            model=name, seed=seed, prompt=texts, kind=[r['kind'] for r in held],
            answer=answers, help=environment.helpfulness(texts, answers),
            harmless=environment.harmlessness(texts, answers)))
    return pd.concat(tables).assign(cluster=lambda d: [f'{seed}/{t}' for t in d.prompt])

def run_pipeline(seed):
    "Run the whole pipeline from one seed"
    sl_prompts, rl_prompts, held = split_prompts(seed)
    base = clock('pretrain', environment.pretrain, size['model'], seed, size['read'],
                 device=device)
    sl = supervise(base, sl_prompts, seed)[0]
    labels = feedback(sl, train_judge(seed), rl_prompts, seed)
    rl = reinforce(sl, rl_prompts, labels, seed)
    return measure([base, sl, rl.lm], held, seed), true_side(labels)

runs = [(measure([first, sl, rl.lm], held, seed), true_side(labels))]
runs += [run_pipeline(seed+s) for s in range(1, size['seeds'])]
table = pd.concat([t for t,_ in runs])

def select_rows(model, kind): return table[(table.model==model)&(table.kind==kind)]
def mean(model, kind, column):
    rows = select_rows(model, kind)
    return cluster_bootstrap(rows[column].to_numpy(float), rows.cluster, strata=rows.seed)

stages = pd.DataFrame({
    'help, helpful prompts': [mean(m, 'helpful', 'help') for m in STAGES],
    'harmlessness, red-team': [mean(m, 'red_team', 'harmless') for m in STAGES]},
    index=STAGES)

# %%
#| label: fig-stages
#| fig-cap: True helpfulness of answers to held-out helpful prompts and true harmlessness of answers to held-out red-team prompts, for each stage; bars are 95 % intervals over prompts.
plot_stages(stages)

# %%
columns = ['danger', 'better', 'useful', 'refusal', 'words', 'help', 'harmless']
table.groupby(['kind', 'model'], sort=False)[columns].mean().round(2)


# %% [markdown]
# An empty answer does no harm. The harmlessness in @fig-stages therefore has to be read together with
# the columns `useful` and `words`. In the recorded run the supervised stage does not cost
# helpfulness, against the paper. On helpful prompts the number of useful tools hardly changes, and
# dangerous and wrong tools, which reduce the score, become fewer. RL-CAI is harmless in part because
# its answers are shorter.
#
# ## Tournament
#
# In the paper people vote. Here the truth votes: the better answer wins with the probability that
# follows from the difference of true scores. Elo ratings are fitted to the votes.

# %%
def ratings(kind, score):
    "Elo of the models on prompts of one kind"
    rows = select_rows(STAGES[0], kind)
    prompts = [dict(id=c, text=p) for c,p in zip(rows.cluster, rows.prompt)]
    answers = {m: select_rows(m, kind).answer.tolist() for m in STAGES}
    return tournament(play_matches(answers, prompts, score_judge(score), seed=seed),
                      gauge=STAGES[0])

elo = dict(help=ratings('helpful', environment.helpfulness),
           harmless=ratings('red_team', environment.harmlessness))
pd.concat({k: e.table.set_index('player').round(0) for k,e in elo.items()}, axis=1)

# %% [markdown]
# One answer of each model:

# %%
prompt = next(r['text'] for r in held if r['kind']=='red_team')
answers = table[(table.seed==seed)&(table.prompt==prompt)].set_index('model').answer
print(prompt, *(f'{k}: {a}' for k,a in answers.items()), sep='\n')


# %% [markdown]
# ## Claims
#
# The criteria in `data/claims/constitution_pipeline.toml` were fixed before the first run at the
# scale that judges them. Five claims hold; the claim that the supervised stage costs helpfulness
# fails.

# %%
def change(column, kind, before, after):
    "Return the difference of a column between two models"
    x = select_rows(before, kind)
    y = select_rows(after, kind)
    return paired_difference(y[column].to_numpy(float), x[column].to_numpy(float),
                             x.cluster, strata=x.seed)

correct = [x for _,(correct,_) in runs for x in correct]
clusters = [x for _,(_,prompts) in runs for x in prompts]
base, sft, last = STAGES
record(scale, {
    'constitution/pipeline-sl-harmless': change('harmless', 'red_team', base, sft),
    'constitution/pipeline-rl-harmless': change('harmless', 'red_team', sft, last),
    'constitution/pipeline-labels': cluster_bootstrap(correct, clusters),
    'constitution/pipeline-sl-help': change('help', 'helpful', base, sft),
    'constitution/pipeline-rl-help': change('help', 'helpful', sft, last),
    'constitution/pipeline-not-evasive': mean(last, 'red_team', 'refusal'),
})

# %% [markdown]
# ## What this does not show
#
# The results say nothing about large models. The first model is far smaller than the paper's, and its
# texts contain good revisions by construction. Its labeller was trained on votes that follow the truth, with
# sharper probabilities. The assumptions are listed on the page about
# [labellers](../../constitution/toy/20_labellers.ipynb). The larger model has not yet been run on a
# GPU.
#
# Seconds of each step, over all seeds, on one thread:

# %%
pd.Series(seconds).round(1).to_dict()
