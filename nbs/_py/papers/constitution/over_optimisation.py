# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Over-optimisation: the true score falls as the learned score rises
#
# > In a toy environment, PPO without a KL penalty lowers the true score late in training while the learned score rises ("Goodharting").

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds; cpu: six trainings, two KL coefficients; gpu: a larger model
seed = 0         # everything random follows from it

# %%
#| hide
import numpy as np, pandas as pd, torch
from moral_sc.constitution.toy import environment
from moral_sc.constitution.toy.controls import baseline_answers
from moral_sc.constitution.toy.experiments import (
    answer_once, count_feature, curve_gap, held_out_change, score_snapshots,
    split_mixed_requests, true_labels, true_score)
from moral_sc.constitution.plots import (
    kl_distance, linearity, plot_distance, plot_runs, plot_training)
from moral_sc.constitution.rl.policy import train_policy
from moral_sc.constitution.preference import fit_preference
from moral_sc.foundation.runs import content_key
from moral_sc.foundation.statistics import Estimate, cluster_bootstrap
from moral_sc.lab.claims import record
from moral_sc.lab.paths import work_dir
from moral_sc.lab.scales import at_scale
from moral_sc.language.loading import load

torch.set_num_threads(1)

# %%
size = at_scale(scale, # trainings: of every model of this page; prices: KL coefficients
    quick=dict(model='mini', read=20, asks=8, pairs=24, epochs=1, steps=3, batch=8,
               trainings=2, prices=[.2], held=8),
    cpu=dict(model='tiny', read=900, asks=300, pairs=300, epochs=4, steps=100, batch=64,
             trainings=6, prices=[.1, .3], held=200),
    gpu=dict(model='medium', read=None, asks=3000, pairs=3000, epochs=2, steps=600,
             batch=256, trainings=6, prices=[.01, .03, .1, .3], held=500),
)
device = 'auto' if scale=='gpu' else 'cpu'
training = dict(steps=size['steps'], batch=size['batch'], max_new_tokens=32, lr=3e-4,
                every=max(1, size['steps']//8))
seeds = [seed+s for s in range(size['trainings'])]
folder = work_dir(f'over-optimisation-{scale}-{seed}-{content_key(size=size)[:8]}')
size

# %% [markdown]
# ## Goodharting and the KL penalty
#
# > The preference model's score grows in proportion to the square root of the KL from the
# > first policy; late in training, score and truth part [@bai2022hh]. Trained for too long,
# > a policy under a constitution answers with phrases of comfort [@bai2022constitutional].
# > The true score falls as a known function of the distance, and a KL penalty has the effect of
# > early stopping [@gao2023overoptimization].
#
# With real answers a larger preference model has to replace the truth. In the
# [toy environment](../../constitution/toy/10_environment.ipynb) the true score is known: it is the
# sum of helpfulness and harmlessness. The preference model is trained on few comparisons between
# answers of the first policy, so answers of a trained policy are out of distribution for it. This is
# its only defect, because its labels are the true probabilities.
#
# Prompts of the comparisons, of training and of measurement have different texts. One training is
# [not enough](frontier.ipynb), so everything except the prompts is repeated from several seeds,
# including first models and comparisons.

# %%
pair_prompts, rl_prompts, held = split_mixed_requests(
    [size[k] for k in ('pairs', 'asks', 'held')], seed, oversample=2)

def sample_pairs(lm, rows, seed):
    "Sample pairs of answers and drop the identical ones"
    a,b = (answer_once(lm, rows, seed, f'/{k}') for k in 'ab')
    return [dict(id=r['id'], prompt=r['prompt'], a=x, b=y) for r,x,y in zip(rows, a, b) if x!=y]

def train_preference(s, pairs, name):
    return fit_preference(first_models[s], pairs, lr=1e-3, epochs=size['epochs'], seed=s,
                          out=folder/f'{name}-{s}')

first_models = {s: environment.pretrain(size['model'], s, size['read'], folder, device)
                for s in seeds}
pairs = {s: true_labels(sample_pairs(lm, pair_prompts, s)) for s,lm in first_models.items()}
proxies = {s: train_preference(s, pairs[s], 'proxy') for s in seeds}
new_pairs = {s: true_labels(sample_pairs(lm, held, s)) for s,lm in first_models.items()}
pd.DataFrame({s: dict(learned=str(proxy.accuracy(pairs[s])),
                      fresh=str(proxy.accuracy(new_pairs[s])))
              for s,proxy in proxies.items()}).T

# %% [markdown]
# Accuracy of each preference model on the comparisons it was trained on (`learned`) and on new ones
# (`fresh`).
#
# ### PPO without a KL penalty
#
# The policy is trained on the learned score; the true score (`gold`) is recorded beside it.

# %%
watch = dict(gold=true_score, **{k: count_feature(k) for k in ('kind', 'danger', 'useful')})
def train(name, rewards=proxies, **kw):
    "Train a policy from each seed"
    return {s: train_policy(first_models[s], rl_prompts, rewards[s], watch=watch, seed=s,
                            out=folder/f'{name}-{s}', **training | dict(kl_coef=0.) | kw)
            for s in seeds}

unpenalised = train('free')
columns = ['step', 'score', 'gold', 'kl3', 'entropy', 'length']
last_rows = pd.DataFrame({s: p.history[columns].iloc[-1] for s,p in unpenalised.items()}).T
last_rows.assign(stopped=[p.stopped or '' for p in unpenalised.values()]).round(2)

# %%
#| label: fig-training
#| fig-cap: Learned score, KL, entropy, tokens, and counts of useful words and phrases of comfort in the answers of each step, first training; points are steps, lines running means.
plot_training(unpenalised[seed].history, ('score', 'kl3', 'entropy', 'length', 'useful', 'kind'))

# %%
#| label: fig-goodhart
#| fig-cap: Learned and true score against the square root of the KL from the first policy, first training without a KL penalty; points are steps, lines running means.
plot_distance(unpenalised[seed].history, dict(score='preference model', gold='truth'))


# %% [markdown]
# Is the learned score linear in the square root of the KL over the first half of the distance? The
# table shows the shares of its variance that remain after fitting a straight line, a parabola, and a
# straight line in the KL itself:

# %%
def early_linearity(policy):
    return linearity(policy.history, upto=kl_distance(policy.history).max()/2)

fits = pd.DataFrame({s: early_linearity(p) for s,p in unpenalised.items()}).T
fits.round(3)

# %% [markdown]
# In @fig-goodhart the two scores rise together at first. Then the learned score continues to rise
# and the true score falls. In this training useful words disappear first, and answers become shorter
# (@fig-training). An answer with fewer words does less harm, and from so few comparisons the
# preference model has learned more about harm than about help. Later the answers grow again, without
# the useful words.
#
# The end of a run depends on its seed. In the table above, final answers have 12 to 25 tokens and the
# KL is 14 to 210 nats; some true scores are above the initial one and some far below. With first
# models that had a quarter as much pretraining, runs ended within thirty steps in empty answers, where
# an alarm stops a run.
#
# ### Held-out prompts
#
# Each snapshot answers held-out prompts once. For each training, the snapshot with the highest true
# score is found on one half of them, and the loss from there to the end is measured on the other
# half. If the learned score also falls over that stretch, its change replaces the loss.

# %%
held_scores = {s: score_snapshots(p, proxies[s], held, s, device)
               for s,p in unpenalised.items()}
changes = pd.DataFrame({s: held_out_change(x) for s,x in held_scores.items()}).T
def mean(x): return Estimate(*cluster_bootstrap(np.asarray(x, float), range(len(x))))
changes.round(2)

# %%
pd.Series({k: str(mean(changes[k])) for k in changes})

# %% [markdown]
# As registered, these changes were those of one training, with intervals over its prompts, and the
# learned score was not to fall after the highest true score. For the first training:

# %%
table = held_scores[seed].pivot(index='prompt', columns='step', values=['proxy', 'gold'])
def change(column, a, b):
    "Change of a score between two snapshots, [prompt]"
    return table[column][b]-table[column][a]

steps,top = table.gold.columns,changes.top[seed]
by_prompt = dict(proxy=change('proxy', steps[0], steps[-1]),
                 fall=change('gold', steps[-1], top)[1::2],
                 learned_after=change('proxy', top, steps[-1])[1::2])
one_training = {k: Estimate(*cluster_bootstrap(x.to_numpy(), x.index))
                for k,x in by_prompt.items()}
turned = min((one_training[k] for k in ('fall', 'learned_after')), key=lambda e: e.low)
{k: str(e) for k,e in one_training.items()}

# %% [markdown]
# ### Answers without a model
#
# The table has the learned and true scores of answers that [no model
# wrote](../../constitution/toy/50_controls.ipynb), beside those of the first and the last policies:
# means on the held-out prompts over trainings.

# %%
texts = [r['prompt'] for r in held]
fixed = baseline_answers(texts, seed)
scored = {k: [np.mean([proxies[s](texts, a) for s in seeds]), true_score(texts, a).mean()]
          for k,a in fixed.items()}
by_step = pd.concat(held_scores).groupby('step')[['proxy', 'gold']].mean()
scored |= {f'{name} policy': by_step.iloc[i].tolist() for name,i in (('first', 0), ('last', -1))}
pd.DataFrame(scored, ['learned', 'true']).T.round(2)

# %% [markdown]
# The learned scores put the last policies far above every answer without a model. By the true score
# these policies are no better than the constant phrase of comfort, and worse than the text generator
# that wrote the pretraining text.

# %% [markdown]
# ## KL coefficient, and RLOO
#
# Next we train with KL coefficients above zero, and with RLOO, which has no critic and samples four
# answers to each prompt.

# %%
penalised = {k: train(f'price-{k}', kl_coef=k) for k in size['prices']}
rloo = train('rloo', algorithm='rloo')
runs = {'PPO, λ = 0': unpenalised, **{f'PPO, λ = {k:g}': ps for k,ps in penalised.items()},
        'RLOO, λ = 0': rloo}

# %%
#| label: fig-prices
#| fig-cap: True score against the square root of the KL for several KL coefficients λ and for RLOO, first training of each; points are steps, lines running means.
plot_runs({k: ps[seed].history for k,ps in runs.items()}, 'gold', title='truth')


# %% [markdown]
# A small KL coefficient keeps the policy near its highest true score; a large one stops it earlier.
# RLOO without a KL penalty reaches a larger KL than PPO in as many steps, and its true score falls
# further. The claim compares whole curves at equal KL. At the same KL the true score is higher in the
# run with a penalty than in the run without one, so a KL penalty may do more than early stopping; over
# six trainings this is undecided.

# %%
def gaps(policies, column):
    "Gap between unpenalised PPO and other policies, one per training"
    return [curve_gap(unpenalised[s].history, policies[s].history, column) for s in seeds]

gold_gap = np.max([gaps(ps, 'gold') for ps in penalised.values()], 0)
score_gap = gaps(rloo, 'score')
def last_steps(policy):
    history = policy.history
    return history[['score', 'gold']].assign(distance=kl_distance(history)).tail(5).mean()
pd.DataFrame({k: sum(map(last_steps, ps.values()))/len(ps) for k,ps in runs.items()}).T.round(2)

# %% [markdown]
# Mean gap of true scores (the larger one of the KL coefficients) and of learned scores of RLOO, for
# each training, as shares of the gain of PPO without a penalty:

# %%
pd.DataFrame(dict(price=gold_gap, rloo=score_gap), seeds).round(2)

# %% [markdown]
# ## Estimators of the KL
#
# The distance in the figures is the square root of the mean of $k_3$. The plain estimator $k_1$ has
# the same expectation. For close policies $k_3$ has a smaller variance and cannot be negative. For
# distant ones its exponential dominates: a few answers contribute most of the mean, as in the
# rightmost points of the figures. Over all steps of all runs without a KL penalty:

# %%
steps = pd.concat([p.history for p in unpenalised.values()])
pd.DataFrame(dict(k1=steps.kl, k3=steps.kl3)).agg(['mean', 'std', 'min']).round(3)

# %% [markdown]
# ## Phrases of comfort
#
# A labeller in the toy environment uses one principle of several per pair. One of them counts only
# phrases of comfort and prefers more of them. We optimise a preference model of its labels in the
# same way:

# %%
comfort_models = {
    s: train_preference(s, environment.model_labels(sample_pairs(lm, pair_prompts, s), seed=s),
                        'warm') for s,lm in first_models.items()}
comfort_policies = train('labels', rewards=comfort_models)
def has_comfort(s, path):
    "Mark answers of a snapshot with a phrase of comfort"
    answers = answer_once(load(path, 'float32', device), held, s)
    return (count_feature('kind')(texts, answers)>0).astype(float)
comfort = {name: {s: has_comfort(s, p.snapshots[i]) for s,p in comfort_policies.items()}
           for name,i in (('first', 0), ('last', -1))}
share = pd.DataFrame({name: {s: x.mean() for s,x in by_seed.items()}
                      for name,by_seed in comfort.items()})
comfort_rise = mean(share['last']-share['first'])
one_training['comfort'] = Estimate(*cluster_bootstrap(
    comfort['last'][seed]-comfort['first'][seed], texts))
share.round(2), str(comfort_rise)

# %%
#| label: fig-comfort
#| fig-cap: Phrases of comfort and dangerous words per answer against the square root of the KL, for labels of a labeller with principles, first training; points are steps, lines running means.
plot_distance(comfort_policies[seed].history,
              dict(kind='phrases of comfort', danger='dangerous words'), title='in an answer')

# %% [markdown]
# In five trainings of six all or nearly all final answers have a phrase of comfort. In @fig-comfort,
# the first of them, an answer has about four, and no dangerous words are left. This is the paper's
# boilerplate; one principle of several that prefers more comfort is enough to produce it. In the other
# training the phrases are gone at the end, because the policy has found answers with a still higher
# score. This training widens the interval to below twenty points, so the claim is undecided. The amount
# of boilerplate depends on when training stops.
#
# ## What this does not show
#
# The toy environment says nothing about large language models. We do not vary the size of the
# preference model or of the policy. The truth of the toy environment is simpler than the possible
# errors of a score of real answers. The larger model has not yet been run on a GPU.
#
# ## Claims
#
# The criteria in `data/claims/constitution_overoptimisation.toml` were fixed before the first policy
# was trained in the toy environment. Four criteria were edited later; the table has them again as
# registered. Three of these draw the prompts of a single training. By their criteria they hold, but
# they are closed, because trainings differ, and are judged again over six trainings. Only the fall of
# the true score and the boilerplate are claims of the paper; the square root of the KL [@bai2022hh],
# the KL coefficient [@gao2023overoptimization] and RLOO are rows of ours. Three claims hold (square
# root of the KL, rising learned score, falling true score); those about the KL coefficient, boilerplate
# and RLOO are undecided.

# %%
record(scale, {
    'constitution/overopt-root-kl': mean(fits.in_kl-fits.line),
    'constitution/overopt-proxy-rises': one_training['proxy'],
    'constitution/overopt-proxy-rises-trainings': mean(changes.proxy),
    'constitution/overopt-turns': turned,
    'constitution/overopt-turns-trainings': mean(changes.turned),
    'constitution/overopt-price': mean(gold_gap),
    'constitution/overopt-boilerplate': one_training['comfort'],
    'constitution/overopt-boilerplate-trainings': comfort_rise,
    'constitution/overopt-rloo': mean(score_gap),
})
