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
# > In a toy environment, with models of 121,920 parameters, RL-CAI dominates a larger area than helpful RL; its lead over HH RL is undecided after eight trainings.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds, too small to show anything; cpu: minutes; gpu: larger
seed = 0         # of prompts; trainings use the seeds from 100 + seed on

# %%
#| hide
import pandas as pd, torch
from moral_sc.constitution.evaluation.elo import tournament
from moral_sc.constitution.evaluation.pareto import order_test, pareto_frontier
from moral_sc.constitution.plots import plot_frontier, plot_ratings
from moral_sc.constitution.preference import fit_preference
from moral_sc.constitution.revision import STOPS
from moral_sc.constitution.toy import environment
from moral_sc.constitution.toy.controls import (
    CELLS, FACTORS, add_baselines, baseline_answers, baseline_players, factor_effects,
    label_quality, lacks_content, mean_true_scores, measure_model, train_cells, worker_score)
from moral_sc.constitution.toy.experiments import (
    ENGAGED, RUNS, answer_requests, collect_votes, different_pairs, label_comparisons,
    list_players, rating_agreement, split_requests, train_models, true_scores)
from moral_sc.foundation.runs import content_key
from moral_sc.foundation.statistics import cluster_bootstrap, paired_difference, t_interval
from moral_sc.lab.claims import Measurement, record
from moral_sc.lab.paths import work_dir
from moral_sc.lab.scales import at_scale

torch.set_num_threads(1)

# %%
size = at_scale(scale, # requests of each kind; steps of pretraining, RL, snapshots; seeds
    quick=dict(more=(), train=8, test=6, steps=2, every=1, batch=4, pm=1, read=15,
               trainings=2),
    cpu=dict(more=(), train=200, test=60, steps=40, every=10, batch=32, pm=2, read=600,
             trainings=8),
    gpu=dict(more=('small', 'medium'), train=600, test=150, steps=300, every=50, batch=64,
             pm=2, read=2000, trainings=8),
)
# Of Figures 2 and 8; the other sizes are trained for Figure 3
model_size = at_scale(scale, quick='mini', cpu='tiny', gpu='tiny')
folder = work_dir(f'frontier-{scale}-{seed}-{content_key(size=size)[:8]}')
device = 'auto' if scale=='gpu' else 'cpu'
seeds = [100+seed+s for s in range(size['trainings'])]
size

# %% [markdown]
# ## Figure 2: helpfulness and harmlessness
#
# > Crowd workers rate every snapshot of every run for helpfulness and for harmlessness. Training on
# > helpfulness alone increases help and harm together. Training on human votes about harm as well
# > gives harmlessness at the price of evasion. Training on a model's own labels under a constitution
# > is less harmful at the same helpfulness, and hardly ever evasive [@bai2022constitutional].
#
# The crowd workers' ratings are not public. A preference model that replaces them may be the one that
# was trained against. In the [toy environment](../../constitution/toy/10_environment.ipynb) helpfulness
# and harmlessness are known functions. We draw the figure once with the true scores and once with a
# held-out preference model. The models are transformers of two layers with 121,920 parameters, trained
# on a CPU.
#
# All runs of one training begin with the same model, which answers every request. Requests for
# training, for the held-out judge and for the tournament have different texts.

# %%
requests = split_requests(dict(train=size['train'], judge=size['train'], test=size['test']), seed)
train, judge, test = ({k: parts[p] for k,parts in requests.items()}
                      for p in ('train', 'judge', 'test'))
texts = {k: [r['prompt'] for r in rows] for k,rows in test.items()}
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
# - `HH RL`: raters who count an evasion as harmless, as in the earlier paper [@bai2022hh].
# - `HH RL, engaging rater`: raters who prefer an answer that engages with the request.
# - `RL-CAI`: the soft labels of a labeller with principles.
# - `RL-CAI, clamped`: the same labels, sharpened fourfold and clamped to 40-60 %. The paper clamps the
#   sharp labels that follow a chain of thought; the toy environment has no chain of thought.
#
# Raters compare answers of the first model; the labeller compares answers of SL-CAI. Every run sees the
# same requests of both kinds in the same order.
#
# One training is not enough. Models that differ only by their seed, or by rounding on another
# processor, become policies that differ more than kinds of training do: recordings of one training
# each on two processors gave five of the eleven verdicts differently. Therefore everything,
# including the first model and the raters' votes, is repeated from several seeds.

# %%
CLAMPED = 'RL-CAI, clamped'
KINDS = 'helpful RL', 'HH RL', ENGAGED, 'RL-CAI', CLAMPED

def train_size(name, runs, seed):
    "Train all runs of one model size from one seed"
    models = train_models(name, **train, out=folder/name/str(seed), runs=runs, seed=seed,
                          pretraining_steps=size['read'], epochs=size['pm'], device=device,
                          steps=size['steps'], every=size['every'], batch=size['batch'],
                          **sampling)
    for d in (models.policies, models.scores):
        if 'RL-CAI, CoT' in d: d[CLAMPED] = d.pop('RL-CAI, CoT')
    return models

models_by_seed = {s: train_size(model_size, (*RUNS, ENGAGED), s) for s in seeds}

# %% [markdown]
# ### Tournament
#
# Every snapshot answers every request of the tournament, and every two snapshots of one training
# meet on each. The true helpfulness decides on ordinary requests, the true harmlessness on red-team
# ones; with a difference of one the better answer wins with probability 73 %. The votes of all
# trainings give one rating for each kind of run and step. Intervals resample trainings.
#
# Four players are [no model](../../constitution/toy/50_controls.ipynb): an empty answer, the constant
# "i am here for you .", the generator of the text that first models read, and this text with four
# rounds of the generator's own revisions of answers to red-team requests.

# %%
steps = range(size['every'], size['steps']+1, size['every'])
answers = {s: add_baselines(answer_requests(list_players(t, KINDS, steps), test, device, seed=s,
                                            **sampling), test, s)
           for s,t in models_by_seed.items()}
votes = collect_votes(answers, test, true_scores(seeds))
snapshots = list_players(models_by_seed[seeds[0]], KINDS, steps)
players = pd.concat([snapshots, baseline_players()], ignore_index=True)

def rate_frontier(votes, players):
    "Rate players on both axes; areas begin at the lowest rating of a snapshot"
    rate = lambda **kw: pareto_frontier(votes['helpful'], votes['red_team'], players,
                                        gauge='SL-CAI 0', seed=seed, **kw)
    return rate(reference=rate(n=2).ratings[(players.run!='no model').to_numpy()].min(0))

frontier = rate_frontier(votes, players)
frontier.table[['player', 'helpful', 'harmless', 'pareto']].round(0)

# %%
#| label: fig-frontier
#| fig-cap: True helpfulness and harmlessness Elo of every snapshot and of answers that no model wrote, with SL-CAI at zero; filled marks are last snapshots, bars are 95 % intervals that resample trainings.
fig = plot_frontier(frontier)
fig.update_traces(mode='markers+text', text=list(baseline_players().player),
                  textposition='bottom center', marker_symbol='cross',
                  selector=dict(name='no model'))
fig

# %% [markdown]
# The area that the snapshots of a run dominate, in thousands of square Elo, from the lowest
# rating of a snapshot on each axis, and how much more RL-CAI dominates than the others:

# %%
others = 'HH RL', ENGAGED, 'helpful RL', 'no model'
gain = {k: frontier.gain('RL-CAI', k) for k in others}
areas = ({k: frontier.area(k) for k in (*KINDS, 'no model')}
         | {f'RL-CAI beyond {k}': difference for k,difference in gain.items()})
pd.DataFrame(areas.values(), areas, ['area', 'low', 'high']).div(1000).round(1)


# %% [markdown]
# In @fig-frontier helpful RL gains help at first and little harmlessness, and both HH runs become
# harmless and less helpful. On average RL-CAI ends about as harmless as both HH runs (the difference
# from HH RL is 0 ± 102 Elo) and is more helpful. It dominates a larger area than helpful RL. Its lead
# over HH RL is undecided, and its lead over HH RL with the engaging rater is half as large and
# undecided too. No snapshot is both as helpful and as harmless as the revised text, which no model
# wrote: this text is as harmless as the end of RL-CAI and more helpful than SL-CAI. The first models
# were trained on such text, so the runs do not show more than copying it would give. The empty answer
# and the constant answer are nearly as harmless, and they do not help.
#
# True scores per answer, means over trainings: help on ordinary requests, harmlessness on red-team
# requests, their sum, and the shares of answers to red-team requests that refuse, or that have no
# content (no tool and no better course):

# %%
def last_player(run): return 'SL-CAI 0' if run=='SL-CAI' else f'{run} {size["steps"]}'

def scores_of(player):
    "Mean true scores of a player, one row per training"
    return pd.DataFrame([mean_true_scores({k: answers[s][k][player] for k in test}, test)
                         for s in seeds], seeds)

shown = [*baseline_players().player, 'base 0', 'SL-CAI 0', *map(last_player, KINDS)]
pd.DataFrame({p: scores_of(p).mean() for p in shown}).T.round(2)

# %% [markdown]
# Training at the last step, means over trainings. A run is stopped early when its answers are all
# alike or its entropy is near zero; it then stays at its last good snapshot. Finished trainings are
# loaded from disk, so the recorded duration of this page does not include them.

# %%
columns = ['score', 'kl3', 'entropy', 'length']
policies = {k: [t.policies[k] for t in models_by_seed.values()] for k in KINDS}
pd.DataFrame({k: pd.DataFrame([p.history.iloc[-1] for p in v])[columns].mean().round(2).to_dict()
              | dict(stopped=sum(bool(p.stopped) for p in v)) for k,v in policies.items()}).T


# %% [markdown]
# ### What is built in
#
# A labeller judges a pair under one of three principles, at random. One of the three is the true
# harmlessness itself: a probability without noise, on the same scale as the votes of the
# tournament. A rater gives one vote for each pair, drawn from the same probability, and the evasive
# rater counts a refusal as two dangers avoided. The labels of harm therefore differ before anything
# is trained. Share of pairs on the side of the truth, and expected log loss beyond the least
# possible:

# %%
def quality(s):
    "Compare the labels of harm of one training with the truth"
    t = models_by_seed[s]
    rows = label_comparisons(t.base, t.sl_cai, train['helpful'][:2], train['red_team'], s,
                             **sampling)
    harm = {k: [r for r in v if environment.deed(r['prompt']) in environment.DEEDS['red_team']]
            for k,v in rows.items()}
    return pd.DataFrame({k: label_quality(v) for k,v in harm.items() if v}).T

sum(map(quality, seeds[:2])).div(2).rename({'RL-CAI, CoT': CLAMPED}).round(3)

# %% [markdown]
# Labels under principles are on the side of the truth slightly more often than votes, and they are far
# better calibrated. Part of any advantage of RL-CAI therefore follows from these constants. The claims
# about it are marked as claims about such a toy environment.
#
# ## Factorial design of raters
#
# HH RL and RL-CAI differ in the labeller and in three further factors: the rater's taste, hard or soft
# labels, and the model with which they begin and whose answers are compared. All eight combinations are
# trained with raters. Means over trainings half-way through training:

# %%
half = size['steps']//2

def measure_cells(s):
    "Train the cells of one seed and measure them half-way"
    cells = train_cells(models_by_seed[s], **train, out=folder/model_size/str(s)/'cells',
                        steps=half, epochs=size['pm'], batch=size['batch'], seed=s, **sampling)
    return pd.DataFrame([dict(zip(FACTORS, c), training=s)
                         | measure_model(m, test, device, seed=s, **sampling)
                         for c,m in cells.items()])

cells = pd.concat(map(measure_cells, seeds), ignore_index=True)
measures = ['help', 'harmless', 'both', 'refuses', 'empty']
cells.groupby([*FACTORS])[measures].mean().round(2)

# %% [markdown]
# The table has the main effect of each factor: engaging minus evasive, soft minus hard, SL-CAI minus
# the first model. The last row is RL-CAI minus the cell that differs from it only in the labeller
# (engaging, soft, SL-CAI). Intervals are Student's, over trainings:

# %%
effects = {m: factor_effects(cells, m) for m in measures}
like_cai = cells[(cells.taste=='engage')&(cells.labels=='soft')&(cells.start=='SL')]
like_cai = like_cai.set_index('training')
cai_half = scores_of(f'RL-CAI {half}')
principles = {m: t_interval((cai_half[m]-like_cai[m]).loc[seeds]) for m in measures}
pd.DataFrame({m: {k: str(e) for k,e in effects[m].items()} | dict(principles=str(principles[m]))
              for m in measures})


# %% [markdown]
# Half-way through training the start explains most of the harmlessness: policies that begin at SL-CAI
# are 0.6 more harmless and 0.2 less helpful than those that begin at the first model. The taste of the
# rater changes refusals by ten points. Soft labels of raters make no detectable difference. With all
# three factors equal, RL-CAI is more helpful and less harmless than a policy trained on the engaging
# rater's soft labels, and the sum does not differ detectably. The lead of RL-CAI over HH RL half-way is
# therefore mostly that of its start.
#
# ## Figure 8: ratings against RL sequences
#
# Figure 8 of the paper shows the same ratings against the number of answers sampled in RL. Runs on a
# constitution begin at SL-CAI, where both ratings are zero, the others at the first model. Its
# workers were asked to prefer an answer that is not evasive where both are harmless. Here workers
# count a refusal as one danger:

# %%
def ratings_by_sequences(elo):
    "List ratings of each run from its start, against sequences"
    ratings = players.merge(elo.table)
    start = {k: ratings[ratings.player==('SL-CAI 0' if 'CAI' in k else 'base 0')] for k in KINDS}
    rows = [d.assign(kind=k) for k in KINDS for d in (start[k], ratings[ratings.run==k])]
    return pd.concat(rows).assign(sequences=lambda d: d.step*size['batch'])

worker_votes = collect_votes(answers, test, dict(red_team=dict.fromkeys(seeds, worker_score)))
elo = {k: tournament(v, gauge='SL-CAI 0')
       for k,v in (votes | dict(workers=worker_votes['red_team'])).items()}

# %%
#| label: fig-harmless
#| fig-cap: Harmlessness Elo by workers who count a refusal as one danger, against the number of answers sampled in RL, with SL-CAI at zero; bars are 95 % intervals that resample trainings.
plot_ratings(ratings_by_sequences(elo['workers']), 'sequences', 'RL sequences',
             'harmlessness, Elo')

# %%
#| label: fig-helpful
#| fig-cap: True helpfulness Elo against the number of answers sampled in RL, with SL-CAI at zero; bars are 95 % intervals that resample trainings.
plot_ratings(ratings_by_sequences(elo['helpful']), 'sequences', 'RL sequences', 'helpfulness, Elo')


# %% [markdown]
# Changes of harmlessness from half-way to the end, by these workers and by the truth:

# %%
def late(elo, run): return elo.difference(last_player(run), f'{run} {half}')
pd.DataFrame({k: {w: str(late(elo[w], k)) for w in ('workers', 'red_team')} for k in KINDS}).T

# %% [markdown]
# The paper's late decline does not appear within 40 steps. In the second half mean harmlessness rises
# under every kind of training, by the votes of these workers and by the truth. By the truth the rise is
# detectable under three kinds of five. Helpful RL is one of them: its last answers name 1.0 dangerous
# tools, those of the first model 1.4. Six earlier trainings of 90 steps had the same sign (31 Elo by
# the truth from step 45 on). HH RL gains 57 Elo by the votes of workers, who dislike refusals, and 69
# by the truth; the difference is within the intervals.
#
# The paper's order of harmlessness, step by step, at the end of training:

# %%
order = [last_player(k) for k in ('helpful RL', 'SL-CAI', 'HH RL', 'RL-CAI')]
order_test(elo['red_team'], order).round(3)

# %% [markdown]
# In the paper SL-CAI is the least helpful of the trained models. Differences of helpfulness from SL-CAI
# at each snapshot:

# %%
compared = 'helpful RL', 'HH RL', 'RL-CAI'
def above_sl(step):
    "Differences of helpfulness from SL-CAI at one snapshot"
    return {k: elo['helpful'].difference(f'{k} {step}', 'SL-CAI 0') for k in compared}

pd.DataFrame({n: {k: str(e) for k,e in above_sl(n).items()} for n in steps}).T

# %% [markdown]
# After ten steps all three are above SL-CAI; the difference is detectable for helpful RL only. At the
# end HH RL is below SL-CAI. The KL coefficient is close to zero, as in the paper, and training
# continues beyond the best snapshot. A KL coefficient that keeps a policy near its best snapshot is the
# subject of [over-optimisation](over_optimisation.ipynb).
#
# ## Evasiveness
#
# Rates on red-team requests at the end of training: the share of answers that refuse, the share
# without content, the mean numbers of dangerous words and of better courses, and the share with a
# phrase of comfort. The raters of both HH runs saw the same answers and differ only in their taste.

# %%
traits = {k: pd.concat([environment.features(texts['red_team'], a).assign(
                            training=s, empty=lacks_content(a))
                        for s in seeds for a in [answers[s]['red_team'][p]]])
          for k,p in {**{k: last_player(k) for k in ('SL-CAI', *KINDS)}, 'base': 'base 0',
                      'comfort': 'comfort'}.items()}
training = traits['base'].training.to_numpy()
def rate(k, column): return cluster_bootstrap(traits[k][column].to_numpy(float), training)
pd.DataFrame({k: dict(refuses=str(rate(k, 'refusal')), empty=str(rate(k, 'empty')),
                      danger=d.danger.mean(), better=d.better.mean(),
                      comfort=(d.kind>0).mean(), words=d.words.mean())
              for k,d in traits.items()}).T


# %% [markdown]
# Raters who accept evasion make evasive policies in some trainings and not in others. On average a
# fifth of the answers of HH RL refuse; the interval goes from one in a hundred to nearly half. With the
# engaging rater and with RL-CAI fewer than 1 % refuse. RL-CAI's answers have content: fewer than 3 %
# name neither a tool nor a better course, whereas all constant answers do so.
#
# ## Figure 3: harmlessness and model size
#
# Figure 3 has seven sizes; we show the sizes that were trained, which at scale `cpu` is one. At sizes
# other than the first we train only helpful RL and RL-CAI, the two runs that differ most. The last
# snapshots of all sizes meet in one tournament per training, so that sizes can be compared.

# %%
def last_snapshots(name, models):
    "List players of one size: SL-CAI and the last snapshots"
    p = list_players(models, [k for k in KINDS if k in models.policies], steps[-1:])
    return p[p.run!='base'].assign(player=p.run+f' {name}', size=models.base.parameters)

sizes = {model_size: models_by_seed,
         **{n: {s: train_size(n, ('helpful RL', 'RL-CAI'), s) for s in seeds}
            for n in size['more']}}
rosters = {s: pd.concat([last_snapshots(n, t[s]) for n,t in sizes.items()]) for s in seeds}
size_votes = collect_votes({s: answer_requests(r, test, device, seed=s, **sampling)
                            for s,r in rosters.items()}, test, true_scores(seeds))
by_size = {k: tournament(v, gauge=f'SL-CAI {model_size}') for k,v in size_votes.items()}

# %%
#| label: fig-size
#| fig-cap: True harmlessness Elo of last snapshots against model size, with the smallest SL-CAI at zero; bars are 95 % intervals that resample trainings.
plot_ratings(rosters[seeds[0]].merge(by_size['red_team'].table).rename(columns=dict(run='kind'))
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
judge_frontier = rate_frontier(judge_votes, players)

# %%
#| label: fig-judge
#| fig-cap: Helpfulness and harmlessness Elo of every snapshot by two held-out preference models, with SL-CAI at zero; bars are 95 % intervals that resample trainings.
fig = plot_frontier(judge_frontier)
fig.update_traces(mode='markers+text', text=list(baseline_players().player),
                  textposition='bottom center', marker_symbol='cross',
                  selector=dict(name='no model'))
fig


# %% [markdown]
# The order of the snapshots in @fig-judge is mostly that of the truth, but distances are compressed:
# the judges give the end of RL-CAI and of the HH runs less than half their gain in harmlessness. They
# rate the empty answer as the most harmless of all, and the end of clamped RL-CAI as about as helpful
# as that of helpful RL. They were trained on answers of the first model; answers of late policies are
# out of distribution.
#
# Rank correlation over all snapshots between the true harmlessness Elo and the Elo by this judge, and
# the same for the preference model of RL-CAI itself, which is not independent. The interval of the
# registered row draws prompts; the other two draw trainings:

# %%
def of_snapshots(v): return v[v.a.isin(snapshots.player) & v.b.isin(snapshots.player)]
own_scores = dict(red_team={s: t.scores['RL-CAI'] for s,t in models_by_seed.items()})
own_votes = collect_votes(answers, test, own_scores)
true_votes = of_snapshots(votes['red_team'])
agreement = {k: rating_agreement(true_votes, of_snapshots(v['red_team']), seed=seed)
             for k,v in {'held out': judge_votes, "RL-CAI's own": own_votes}.items()}
agreement['held out, over prompts'] = rating_agreement(
    *(v.drop(columns='cluster') for v in (true_votes, of_snapshots(judge_votes['red_team']))),
    seed=seed)
{k: str(v) for k,v in agreement.items()}

# %% [markdown]
# ## Four trainings and eight
#
# Two claims were first judged by four trainings and were decided only after two more were added. The
# cell below judges them as registered, by the first four of the present trainings and with the players
# of that time:

# %%
early_seeds = seeds[:4]
old_players = snapshots[snapshots.run!=ENGAGED].reset_index(drop=True)
def as_registered(v):
    "Votes of four trainings between the players of the first recordings"
    return v[v.cluster.isin(early_seeds) & v.a.isin(old_players.player)
             & v.b.isin(old_players.player)]
old_votes = {k: as_registered(v) for k,v in votes.items()}
old_gain = pareto_frontier(old_votes['helpful'], old_votes['red_team'], old_players,
                           gauge='SL-CAI 0', seed=seed).gain('RL-CAI', 'HH RL')
old_elo = tournament(old_votes['helpful'], gauge='SL-CAI 0')
old_least = min((old_elo.difference(last_player(k), 'SL-CAI 0') for k in compared),
                key=lambda e: e.low)
str(old_gain), str(old_least)


# %% [markdown]
# ## What this does not show
#
# The toy environment says nothing about large language models: its harm is a known function of
# words, its raters are simulated, and one or two model sizes cannot establish a trend. The largest
# scale has not yet been run on a GPU. A single training mostly shows the effect of its seed.
#
# The labeller of RL-CAI has no noise and knows the features that define the true harmlessness: one of
# its three principles is the true harmlessness on its scale, another has its features at 0.4 of the
# scale. Part of its advantage is built in, and the revised text, which no model wrote, does as well.
#
# ## Claims
#
# The criteria are in `data/claims/constitution_frontier.toml`, with their history. The first eleven were
# written before the first policy was trained in the toy environment, the others before the eight
# trainings of this recording, whose seeds no earlier recording used.
#
# Seven of 26 rows are closed: two were judged by four trainings, one of them at over-optimised last
# snapshots; two are met by a constant answer; one measures sharpening and not chains of thought; one is
# not what the paper says; and one draws only prompts. Of the paper's ten open claims two hold and eight
# are undecided. Those that hold: RL-CAI dominates a larger area than helpful RL, and it is not evasive.
# One of the eight misses its criterion here (the harmlessness of helpful RL does not decline late), but
# one experiment does not refute the paper. The other seven are: the lead over HH RL; the order of
# harmlessness (RL-CAI and HH RL end alike); that SL-CAI is the least helpful; the late decline of HH
# RL; that RL-CAI ends more harmless than a constant answer; that evasive raters raise refusals by
# twenty points; and the order at every size, because only one size was trained.
#
# Of our own claims, three hold: the rater's taste changes the share of refusals, policies that start at
# SL-CAI are more harmless, and the text without a model helps and does no harm. One fails: clamped
# labels make RL-CAI less harmless. Undecided are the lead over HH RL with the engaging rater and over
# answers without a model, soft against hard labels, principles against an engaging rater, and the
# held-out judge.
#
# An earlier recording had six trainings of 90 steps from other seeds and more requests. There the claim
# that RL-CAI leads HH RL just held, and helpful RL ended less helpful than SL-CAI.

# %%
def least_certain(estimates):
    "Return the estimate with the lowest lower bound"
    return min(estimates, key=lambda e: e.low)

harmless = elo['red_team']
asked = {k: [r['prompt'] for r in environment.requests(1000, seed, k)] for k in test}
written = {k: baseline_answers(t, seed)['revised text'] for k,t in asked.items()}
scored = dict(helpful=environment.helpfulness(asked['helpful'], written['helpful'])-.5,
              red_team=environment.harmlessness(asked['red_team'], written['red_team']))
margins = [cluster_bootstrap(scored[k], asked[k]) for k in asked]
rivals = 'SL-CAI 0', 'empty answer', 'comfort'
size_difference = least_certain([by_size['red_team'].difference(f'RL-CAI {n}', f'helpful RL {n}')
                                 for n in sizes])
unmet = f'{len(sizes)} of seven sizes trained' if len(sizes)<3 else ''
last_cai = last_player('RL-CAI')
taste = effects['refuses']['taste']
record(scale, {
    'constitution/frontier-beats-hh': old_gain,
    'constitution/frontier-beats-hh-eight': gain['HH RL'],
    'constitution/frontier-beats-hh-engaging': gain[ENGAGED],
    'constitution/frontier-beats-helpful': gain['helpful RL'],
    'constitution/frontier-beats-baselines': gain['no model'],
    'constitution/frontier-order': least_certain([harmless.difference(b, a)
                                                  for a,b in zip(order, order[1:])]),
    'constitution/frontier-sl-least-helpful': old_least,
    'constitution/frontier-sl-least-helpful-early': least_certain(above_sl(steps[0]).values()),
    'constitution/frontier-cot': harmless.difference(last_player(CLAMPED), last_cai),
    'constitution/frontier-clamped': harmless.difference(last_player(CLAMPED), last_cai),
    'constitution/frontier-helpful-harms': harmless.difference(last_player('helpful RL'), 'base 0'),
    'constitution/frontier-helpful-late': late(elo['workers'], 'helpful RL'),
    'constitution/frontier-hh-late': late(elo['workers'], 'HH RL'),
    'constitution/frontier-cai-improves': harmless.difference(last_cai, 'SL-CAI 0'),
    'constitution/frontier-cai-improves-beyond': least_certain([harmless.difference(last_cai, p)
                                                                for p in rivals]),
    'constitution/frontier-evasive-rater': paired_difference(
        *(traits[k].refusal.to_numpy(float) for k in ('HH RL', ENGAGED)), training),
    'constitution/frontier-not-evasive': rate('RL-CAI', 'refusal'),
    'constitution/frontier-not-evasive-content': rate('RL-CAI', 'empty'),
    'constitution/frontier-judges-agree': agreement['held out, over prompts'],
    'constitution/frontier-judges-agree-trainings': agreement['held out'],
    'constitution/frontier-sizes': Measurement(*size_difference, unmet),
    'constitution/frontier-factor-taste': tuple(-x for x in (taste.value, taste.high, taste.low)),
    'constitution/frontier-factor-labels': effects['both']['labels'],
    'constitution/frontier-factor-start': effects['harmless']['start'],
    'constitution/frontier-factor-principles': principles['both'],
    'constitution/frontier-text-helps': least_certain(margins),
})
