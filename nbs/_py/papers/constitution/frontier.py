# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Pareto frontier: RL-CAI against helpful RL and HH RL
#
# > RL-CAI dominates helpful RL (Figure 2); that it dominates HH RL is partly built into the labels.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds, too small to show anything; cpu: minutes; gpu: larger
seed = 0         # of every model, draw and prompt

# %%
#| hide
import pandas as pd, torch
from moral_sc.constitution.evaluation.elo import tournament
from moral_sc.constitution.evaluation.pareto import order_test, pareto_frontier
from moral_sc.constitution.plots import plot_frontier, plot_ratings
from moral_sc.constitution.preference import fit_preference
from moral_sc.constitution.revision import STOPS
from moral_sc.constitution.toy import environment
from moral_sc.constitution.toy.experiments import (
    ENGAGED, RUNS, answer_requests, collect_votes, different_pairs, list_players,
    rating_agreement, split_requests, train_models, true_scores)
from moral_sc.foundation.runs import content_key
from moral_sc.foundation.statistics import cluster_bootstrap, paired_difference
from moral_sc.lab.claims import record
from moral_sc.lab.paths import work_dir
from moral_sc.lab.scales import at_scale

torch.set_num_threads(1)

# %%
size = at_scale(scale, # requests of each kind; steps of pretraining, RL, snapshots; seeds
    quick=dict(more=(), train=32, test=16, steps=4, every=2, batch=16, pm=1, read=40,
               trainings=2),
    cpu=dict(more=('small',), train=600, test=150, steps=90, every=15, batch=32, pm=2,
             read=900, trainings=6),
    gpu=dict(more=('small', 'medium'), train=600, test=150, steps=300, every=50, batch=64,
             pm=2, read=2000, trainings=6),
)
model_size = 'tiny' # Of Figures 2 and 8; the other sizes are trained for Figure 3
folder = work_dir(f'frontier-{scale}-{seed}-{content_key(size=size)[:8]}')
device = 'auto' if scale=='gpu' else 'cpu'
seeds = [seed+s for s in range(size['trainings'])]
size

# %% [markdown]
# ## Figure 2: helpfulness and harmlessness
#
# > Crowd workers rate every snapshot of every run for helpfulness and for harmlessness. Training on
# > helpfulness alone increases help and harm together. Training on human votes about harm as well
# > gives harmlessness at the price of evasion. Training on a model's own labels under a constitution
# > is less harmful at the same helpfulness, and hardly ever evasive [@bai2022constitutional].
#
# The crowd workers' ratings are not public. A preference model that replaces them may be the
# one that was trained against. In the
# [toy environment](../../constitution/toy/10_environment.ipynb) helpfulness and harmlessness are
# known functions. We draw the figure by the truth, and again by a held-out preference model.
#
# All runs begin with one model that answers every request. Requests for training, for the held-out
# judge and for the tournament have different texts.

# %%
requests = split_requests(dict(train=size['train'], judge=size['train'], test=size['test']), seed)
train, judge, test = ({k: parts[p] for k,parts in requests.items()}
                      for p in ('train', 'judge', 'test'))
{k: {p: len(r) for p,r in parts.items()} for k,parts in requests.items()}

# %%
sampling = dict(max_new_tokens=40, stop=STOPS) # An answer ends where a critique of it would begin


# %% [markdown]
# ### Five kinds of runs
#
# The runs differ in the labels of their preference models. Simulated raters always judge
# helpfulness. The labels of harm are:
#
# - `helpful RL`: none.
# - `HH RL`: raters for whom an evasion is safe, as in the paper's predecessor [@bai2022hh].
# - `HH RL, engaging rater`: raters who prefer an answer that takes up the question.
# - `RL-CAI`: the soft labels of a labeller with principles.
# - `RL-CAI, CoT`: the same labels, sharpened fourfold and clamped to 40-60 %. The paper clamps labels
#   that follow a chain of thought, which makes them sharp. The toy environment has no thoughts: read
#   the name in the figures as "sharpened, clamped".
#
# Raters compare answers of the first model, the labeller those of SL-CAI. Every run sees the same
# requests of both kinds in the same order.
#
# One training is not enough. Models that differ only by their seed, or by rounding on another
# processor, become policies that differ more than kinds of training do: recordings of one training
# each on two processors gave five of the eleven verdicts differently. Therefore everything,
# including the first model and the raters' votes, is repeated from several seeds.

# %%
def train_size(name, runs, seed):
    "Train all runs of one model size from one seed"
    return train_models(name, **train, out=folder/name/str(seed), runs=runs, seed=seed,
                        pretraining_steps=size['read'], epochs=size['pm'], device=device,
                        steps=size['steps'], every=size['every'], batch=size['batch'], **sampling)

models_by_seed = {s: train_size(model_size, (*RUNS, ENGAGED), s) for s in seeds}
columns = ['score', 'kl3', 'entropy', 'length']
policies = {k: [t.policies[k] for t in models_by_seed.values()] for k in (*RUNS, ENGAGED)}
pd.DataFrame({k: pd.DataFrame([p.history.iloc[-1] for p in v])[columns].mean().round(2).to_dict()
              | dict(stopped=sum(bool(p.stopped) for p in v)) for k,v in policies.items()}).T

# %% [markdown]
# Means over trainings, at the last step. A run is stopped early when its answers are all alike or
# its entropy is near zero; it then stays at its last good snapshot. Finished trainings are loaded
# from disk, so the recorded duration of this page does not include them.
#
# ### Tournament
#
# Every snapshot answers every request of the tournament, and every two snapshots of one training
# meet on each. The true helpfulness decides on ordinary requests, the true harmlessness on red-team
# ones; with a difference of one the better answer wins with probability 73 %. The votes of all
# trainings give one rating for each kind of run and step. Intervals resample trainings.

# %%
steps = range(size['every'], size['steps']+1, size['every'])
answers = {s: answer_requests(list_players(t, RUNS, steps), test, device, seed=s, **sampling)
           for s,t in models_by_seed.items()}
votes = collect_votes(answers, test, true_scores(seeds))
players = list_players(models_by_seed[seed], RUNS, steps)
frontier = pareto_frontier(votes['helpful'], votes['red_team'], players, gauge='SL-CAI 0',
                           seed=seed)
frontier.table[['player', 'helpful', 'harmless', 'pareto']].round(0)

# %%
#| label: fig-frontier
#| fig-cap: True helpfulness and harmlessness Elo of every snapshot, with SL-CAI at zero; filled marks are last snapshots, bars are 95 % intervals that resample trainings.
plot_frontier(frontier)

# %% [markdown]
# The area that the snapshots of a run dominate, in thousands of square Elo, from the lowest
# rating on each axis, and how much more RL-CAI dominates than the others:

# %%
gain = {k: frontier.gain('RL-CAI', k) for k in ('HH RL', 'helpful RL')}
areas = ({k: frontier.area(k) for k in RUNS}
         | {f'RL-CAI beyond {k}': difference for k,difference in gain.items()})
pd.DataFrame(areas.values(), areas, ['area', 'low', 'high']).div(1000).round(1)


# %% [markdown]
# In the recorded runs @fig-frontier resembles the paper's figure. Under helpful RL help and harm
# first increase together, HH RL becomes harmless and less helpful, and RL-CAI is harmless at more
# help. RL-CAI dominates more than helpful RL. It also dominates more than HH RL, with an interval
# that begins just above zero; with four trainings this was undecided, so the claim is closed. Unlike
# the paper's figure, ours shows that all runs lose helpfulness in the end. Helpful RL does so, too,
# while the score of its preference model still rises.
#
# Part of the distance from HH RL is built in. A labeller judges each pair under one of three principles
# at random. One of the three is the true harmlessness itself, as a probability without noise, while a
# rater gives one vote per pair, and the evasive rater counts a refusal as two dangers avoided. Before any
# training, labels under principles are on the side of the truth in 82 % of pairs of written answers, votes
# in 72 to 78 %, and only the labels are nearly calibrated
# ([controls](../../constitution/toy/50_controls.ipynb)). The run with the engaging rater, which the
# figure leaves out, ends with as few dangerous words and refusals as RL-CAI (see Evasiveness below).
# Nor does the figure have answers without a model: the revised text that first models read helps as
# much as they do and does no harm.
#
# ## Figure 8: ratings against RL sequences
#
# Figure 8 of the paper shows the same ratings against the number of answers sampled in RL. Runs on a
# constitution begin at SL-CAI, where both ratings are zero, the others at the first model.

# %%
def ratings_by_sequences(elo):
    "List ratings of each run from its start, against sequences"
    ratings = players.merge(elo.table)
    start = {k: ratings[ratings.player==('SL-CAI 0' if 'CAI' in k else 'base 0')] for k in RUNS}
    rows = [d.assign(kind=k) for k in RUNS for d in (start[k], ratings[ratings.run==k])]
    return pd.concat(rows).assign(sequences=lambda d: d.step*size['batch'])

elo = {k: tournament(v, gauge='SL-CAI 0') for k,v in votes.items()}

# %%
#| label: fig-harmless
#| fig-cap: True harmlessness Elo against the number of answers sampled in RL, with SL-CAI at zero; bars are 95 % intervals that resample trainings.
plot_ratings(ratings_by_sequences(elo['red_team']), 'sequences', 'RL sequences',
             'harmlessness, Elo')

# %%
#| label: fig-helpful
#| fig-cap: True helpfulness Elo against the number of answers sampled in RL, with SL-CAI at zero; bars are 95 % intervals that resample trainings.
plot_ratings(ratings_by_sequences(elo['helpful']), 'sequences', 'RL sequences', 'helpfulness, Elo')


# %% [markdown]
# In the recorded runs RL-CAI gains most of its harmlessness in the first half of training and loses
# helpfulness until the end. The KL from the first model, in the table above, is large at the end,
# because the KL coefficient is close to zero, as in the paper. Claims about last snapshots describe
# this end. A KL coefficient that keeps a policy near its best snapshot is the subject of
# [over-optimisation](over_optimisation.ipynb).
#
# The paper's order of harmlessness, step by step, at the end of training:

# %%
def last_player(run): return 'SL-CAI 0' if run=='SL-CAI' else f'{run} {size["steps"]}'

order = [last_player(k) for k in ('helpful RL', 'SL-CAI', 'HH RL', 'RL-CAI')]
order_test(elo['red_team'], order).round(3)

# %% [markdown]
# ## Evasiveness
#
# Rates on red-team requests at the end of training: the share of answers that refuse, the mean
# numbers of dangerous words and of better courses, and the share with a phrase of comfort. The
# table includes the run with engaging raters, which the figures leave out. Its raters saw the
# same answers as those of HH RL and differ only in their preference.

# %%
red_team = dict(red_team=test['red_team'])
texts = [p['text'] for p in test['red_team']]
def final_answers(s, run):
    "Return answers of the last snapshot of a run to red-team requests"
    if run!=ENGAGED:
        return answers[s]['red_team']['base 0' if run=='base' else last_player(run)]
    last = list_players(models_by_seed[s], [run], steps[-1:])[-1:]
    return answer_requests(last, red_team, device, seed=s, **sampling)['red_team'][last_player(run)]

traits = {k: pd.concat([environment.features(texts, final_answers(s, k)).assign(training=s)
                       for s in seeds])
          for k in ('base', 'SL-CAI', *RUNS, ENGAGED)}
refusals = {k: d.refusal.to_numpy(float) for k,d in traits.items()}
training = traits['base'].training.to_numpy()
rates = {k: cluster_bootstrap(r, training) for k,r in refusals.items()}
pd.DataFrame({k: dict(refuses=str(rates[k]), danger=d.danger.mean(), better=d.better.mean(),
                      comfort=(d.kind>0).mean(), words=d.words.mean())
              for k,d in traits.items()}).T


# %% [markdown]
# Raters who accept evasion make evasive policies in some trainings and not in others. On average a
# third of the answers of HH RL refuse; the interval, which resamples trainings, goes from none to
# eight in ten. In trainings without refusals the policy is safe in another way: its answers are
# short, with little danger and few better courses. With a single training the result would have
# depended on the seed.
#
# ## Figure 3: harmlessness and model size
#
# Figure 3 has seven sizes; we show the sizes that were trained. At sizes other than the first we
# train only helpful RL and RL-CAI, the two runs that differ most. The last snapshots of all sizes
# meet in one tournament per training, so that sizes can be compared.

# %%
def last_snapshots(name, models):
    "List players of one size: SL-CAI and the last snapshots"
    p = list_players(models, [k for k in RUNS if k in models.policies], steps[-1:])
    return p[p.run!='base'].assign(player=p.run+f' {name}', size=models.base.parameters)

sizes = {model_size: models_by_seed,
         **{n: {s: train_size(n, ('helpful RL', 'RL-CAI'), s) for s in seeds}
            for n in size['more']}}
rosters = {s: pd.concat([last_snapshots(n, t[s]) for n,t in sizes.items()]) for s in seeds}
roster = rosters[seed]
size_votes = collect_votes({s: answer_requests(r, test, device, seed=s, **sampling)
                            for s,r in rosters.items()}, test, true_scores(seeds))
by_size = {k: tournament(v, gauge=f'SL-CAI {model_size}') for k,v in size_votes.items()}

# %%
#| label: fig-size
#| fig-cap: True harmlessness Elo of last snapshots against model size, with the smallest SL-CAI at zero; bars are 95 % intervals that resample trainings.
plot_ratings(roster.merge(by_size['red_team'].table).rename(columns=dict(run='kind'))
             .sort_values('size'), 'size', 'parameters', 'harmlessness, Elo', log=True)


# %% [markdown]
# ## A held-out preference model as judge
#
# With real models the truth is unknown and a preference model has to judge. It must not be the
# one that was trained against, nor share its labels. Our two judges, one for each axis, are trained
# on raters' comparisons of answers to requests that no run was trained on. The rater of harm is the
# engaging one.

# %%
def held_out_judge(s, kind, criterion):
    base = models_by_seed[s].base
    pairs = different_pairs(base, judge[kind], seed=s, **sampling)
    rows = environment.rater_labels(pairs, criterion, seed=1000+s)
    return fit_preference(base, rows, seed=1000+s, epochs=size['pm'], lr=1e-3,
                          out=folder/model_size/str(s)/f'judge-{kind}')

judges = {k: {s: held_out_judge(s, k, c) for s in seeds}
          for k,c in (('helpful', 'helpful'), ('red_team', 'harmless'))}
judge_votes = collect_votes(answers, test, judges)
judge_frontier = pareto_frontier(judge_votes['helpful'], judge_votes['red_team'], players,
                                 gauge='SL-CAI 0', seed=seed)

# %%
#| label: fig-judge
#| fig-cap: Helpfulness and harmlessness Elo of every snapshot by two held-out preference models, with SL-CAI at zero; bars are 95 % intervals that resample trainings.
plot_frontier(judge_frontier)

# %% [markdown]
# A judge could miss that a run becomes worse again. The change of RL-CAI's harmlessness over its
# last stretch of training, by the truth and by the judge:

# %%
stretch = [f'RL-CAI {k}' for k in (size['steps']-size['every'], size['steps'])]
ratings = dict(truth=elo['red_team'], judge=tournament(judge_votes['red_team'], gauge='SL-CAI 0'))
{k: str(e.difference(stretch[1], stretch[0])) for k,e in ratings.items()}

# %% [markdown]
# In the recorded runs neither shows a detectable change. But @fig-judge shows errors of such a
# judge. It rates the last snapshots of helpful RL and of RL-CAI, CoT as the most helpful, although
# they are less helpful than SL-CAI by the truth. It gives RL-CAI a fifth of its true gain in
# harmlessness, with intervals too wide to tell it from SL-CAI. The judge was trained on answers of
# the first model; late-policy answers are out of distribution for it.
#
# Rank correlation over all snapshots between the true harmlessness Elo and the Elo by this judge,
# and the same for the preference model of RL-CAI itself, which is not independent:

# %%
own_scores = dict(red_team={s: t.scores['RL-CAI'] for s,t in models_by_seed.items()})
own_votes = collect_votes(answers, test, own_scores)
agreement = {k: rating_agreement(votes['red_team'], v['red_team'], seed=seed)
             for k,v in {'held out': judge_votes, "RL-CAI's own": own_votes}.items()}
{k: str(v) for k,v in agreement.items()}


# %% [markdown]
# ## What this does not show
#
# The toy environment says nothing about large language models: its harm is a known function of
# words, its raters are simulated, and two model sizes cannot establish a trend. The largest scale
# has not yet been run on a GPU. With six trainings the intervals are wide, and a single training
# mostly shows the effect of its seed.
#
# ## Claims
#
# The criteria are in `data/claims/constitution_frontier.toml` and were written before the first
# policy was trained in the toy environment. That intervals resample trainings was fixed before any
# such recording. The first such recording had four trainings. Two more were added after it was seen,
# because intervals of four cannot cover the truth in 19 cases of 20; no training was left out.
#
# Six of eleven rows are closed. Two were decided only by the trainings that were added: RL-CAI dominates
# more than HH RL, and at the end of training without a KL penalty SL-CAI is not the least helpful (after
# 15 steps helpful RL is well above it). Two are passed by an empty answer, which does no harm and
# does not refuse: RL-CAI is more harmless than SL-CAI, and does not refuse. One is not what the paper
# says (helpful RL ends more harmful than it began; the paper says that harmlessness declines late),
# and one measures sharpened labels and not thoughts. Of the others one holds: RL-CAI dominates more
# than helpful RL. Four are undecided. All three steps of the paper's order have its sign, and only the
# last of them, from HH RL to RL-CAI, is not settled.

# %%
def least_certain(elo, pairs):
    "Return the difference with the lowest lower bound"
    return min((elo.difference(a, b) for a,b in pairs), key=lambda e: e.low)

harmless = elo['red_team']
helpful = elo['helpful']
above_sl = [(last_player(k), last_player('SL-CAI')) for k in ('helpful RL', 'HH RL', 'RL-CAI')]
size_pairs = [(f'RL-CAI {n}', f'helpful RL {n}') for n in sizes]
record(scale, {
    'constitution/frontier-beats-hh': gain['HH RL'],
    'constitution/frontier-beats-helpful': gain['helpful RL'],
    'constitution/frontier-order': least_certain(harmless, zip(order[1:], order)),
    'constitution/frontier-sl-least-helpful': least_certain(helpful, above_sl),
    'constitution/frontier-cot': harmless.difference(last_player('RL-CAI, CoT'),
                                                     last_player('RL-CAI')),
    'constitution/frontier-helpful-harms': harmless.difference(last_player('helpful RL'), 'base 0'),
    'constitution/frontier-cai-improves': harmless.difference(last_player('RL-CAI'), 'SL-CAI 0'),
    'constitution/frontier-evasive-rater': paired_difference(
        refusals['HH RL'], refusals[ENGAGED], training),
    'constitution/frontier-not-evasive': rates['RL-CAI'],
    'constitution/frontier-judges-agree': agreement['held out'],
    'constitution/frontier-sizes': least_certain(by_size['red_team'], size_pairs),
})
