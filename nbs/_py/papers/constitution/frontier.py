# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Helpfulness against harmlessness
#
# > Figures 2, 3 and 8 of Constitutional AI in a world of words: five ways to train one
# > model, rated by the truth and by a judge that took no part. At `cpu` its trainings are
# > kept, and the minutes that the last cell names are what comes after them.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds, far too small to show anything; cpu: minutes; gpu: larger
seed = 0         # of every model, draw and prompt

# %%
#| hide
from time import process_time

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
began = process_time()

# %%
size = at_scale(scale, # requests of each kind; steps of pretraining, RL, snapshots; seeds
    quick=dict(more=(), train=32, test=16, steps=4, every=2, batch=16, pm=1, read=40,
               trainings=2),
    cpu=dict(more=('small',), train=600, test=150, steps=90, every=15, batch=32, pm=2,
             read=900, trainings=6),
    gpu=dict(more=('small', 'medium'), train=600, test=150, steps=300, every=50, batch=64,
             pm=2, read=2000, trainings=6),
)
main = 'tiny' # The size of Figures 2 and 8; others are trained for Figure 3
place = work_dir(f'frontier-{scale}-{seed}-{content_key(size=size)[:8]}')
on = 'auto' if scale=='gpu' else 'cpu'
seeds = [seed+s for s in range(size['trainings'])]
size

# %% [markdown]
# > Every snapshot of every run is rated by crowd workers for helpfulness and for
# > harmlessness. Training on helpfulness alone gives help and harm together. Training on
# > human votes about harm as well gives harmlessness at the price of evasion. Training on a
# > model's own labels under a constitution is less harmful at the same helpfulness, and
# > hardly ever evasive [@bai2022constitutional].
#
# The crowd is the weak point of that figure: nobody else has it, and a preference model
# that stands in for it may be the very one that was trained against. In the [world of
# words](../../constitution/toy/10_environment.ipynb) what helps and what harms is a known function,
# so the figure can be drawn by the truth, and beside it the figure that a held-out
# preference model draws.
#
# ## Five ways to train
#
# All begin with one model that answers whatever it is asked. Requests of training, of the
# held-out judge and of the tournament are different by text.

# %%
requests = split_requests(dict(train=size['train'], judge=size['train'], test=size['test']), seed)
train, judge, test = ({k: parts[p] for k,parts in requests.items()}
                      for p in ('train', 'judge', 'test'))
{k: {p: len(r) for p,r in parts.items()} for k,parts in requests.items()}

# %%
sampling = dict(max_new_tokens=40, stop=STOPS) # An answer ends where a critique of it would begin


# %% [markdown]
# What a preference model is trained on decides what a run becomes. Helpfulness is always
# judged by the world's raters. Harm is not judged at all; or by raters for whom an evasion
# is safe, as those of the paper's predecessor were [@bai2022hh]; or by raters who want an
# answer that takes up the question; or by a labeller with principles. The labeller is read
# in two ways: its soft labels as they are, and its labels sharpened, as a chain of thought
# makes them, and clamped to 40-60 %. People compare answers of the first model, the
# labeller those of SL-CAI.

# %% [markdown]
# Every run sees the same requests of both kinds in the same order. One training says little: models
# that differ by their seed alone, or by the last digits of sums on another processor, become policies
# that differ more than kinds of training do. Two earlier recordings of this page, of one training each
# on two processors, gave five of its eleven verdicts differently. So all of it, first model and people's
# votes included, is done anew from several seeds.

# %%
def train_size(name, runs, seed):
    "Train all runs of one model size from one seed"
    return train_models(name, **train, out=place/name/str(seed), runs=runs, seed=seed,
                        pretraining_steps=size['read'], epochs=size['pm'], device=on,
                        steps=size['steps'], every=size['every'], batch=size['batch'], **sampling)

trained = {s: train_size(main, (*RUNS, ENGAGED), s) for s in seeds}
columns = ['score', 'kl3', 'entropy', 'length']
policies = {k: [t.policies[k] for t in trained.values()] for k in (*RUNS, ENGAGED)}
pd.DataFrame({k: pd.DataFrame([p.history.iloc[-1] for p in v])[columns].mean().round(2).to_dict()
              | dict(stopped=sum(bool(p.stopped) for p in v)) for k,v in policies.items()}).T

# %% [markdown]
# Means over trainings, at the last step. A run is stopped before it when its answers are all alike or
# its entropy is gone, and stays what it was at its last good snapshot.
#
# ## The tournament
#
# Every snapshot answers every request of the tournament, and every two snapshots of one training
# meet on each. On ordinary requests the judge goes by the world's helpfulness, on red-team ones by
# its harmlessness; a difference of one in either makes the better answer the winner with
# 73 %. Votes of all trainings make one rating for each kind of run and step, and intervals draw
# trainings.

# %%
steps = range(size['every'], size['steps']+1, size['every'])
answers = {s: answer_requests(list_players(t, RUNS, steps), test, on, seed=s, **sampling)
           for s,t in trained.items()}
votes = collect_votes(answers, test, true_scores(seeds))
players = list_players(trained[seed], RUNS, steps)
f = pareto_frontier(votes['helpful'], votes['red_team'], players, gauge='SL-CAI 0', seed=seed)
f.table[['player', 'helpful', 'harmless', 'pareto']].round(0)

# %%
#| label: fig-frontier
#| fig-cap: Helpfulness and harmlessness Elo of every snapshot by the world's truth, SL-CAI at zero; filled marks are last snapshots, bars are 95 % intervals that draw trainings
plot_frontier(f)

# %% [markdown]
# The area that the snapshots of a run dominate, in thousands of square Elo, from the lowest
# rating on each axis, and how much more RL-CAI dominates than the others:

# %%
gain = {k: f.gain('RL-CAI', k) for k in ('HH RL', 'helpful RL')}
areas = {k: f.area(k) for k in RUNS} | {f'RL-CAI beyond {k}': g for k,g in gain.items()}
pd.DataFrame(areas.values(), areas, ['area', 'low', 'high']).div(1000).round(1)


# %% [markdown]
# In the runs recorded at `cpu` RL-CAI dominates more than helpful RL, and to the eye
# the figure is the paper's: help and harm rise together at first under helpful RL, HH RL becomes
# harmless and useless, RL-CAI is harmless at more help. It dominates more than HH RL, too, with an
# interval that begins just above zero; an earlier recording, of four trainings, did not decide that.
# What the paper's figure does not show is the way back: all runs lose help in the end, helpful RL too,
# whose answers its preference model scores higher and higher.
#
# ## Along the way
#
# Figure 8 of the paper shows the same points against what led to them. Runs on a
# constitution begin at SL-CAI, where both ratings are zero, the others at the first model.

# %%
def along(elo):
    "Ratings of each run from its start, against sequences"
    d = players.merge(elo.table)
    start = {k: d[d.player==('SL-CAI 0' if 'CAI' in k else 'base 0')] for k in RUNS}
    rows = [g.assign(kind=k) for k in RUNS for g in (start[k], d[d.run==k])]
    return pd.concat(rows).assign(sequences=lambda x: x.step*size['batch'])

elo = {k: tournament(v, gauge='SL-CAI 0') for k,v in votes.items()}

# %%
#| label: fig-harmless
#| fig-cap: Harmlessness Elo by the world's truth against answers seen in RL, SL-CAI at zero; bars are 95 % intervals that draw trainings
plot_ratings(along(elo['red_team']), 'sequences', 'RL sequences', 'harmlessness, Elo')

# %%
#| label: fig-helpful
#| fig-cap: Helpfulness Elo by the world's truth against answers seen in RL, SL-CAI at zero; bars are 95 % intervals that draw trainings
plot_ratings(along(elo['helpful']), 'sequences', 'RL sequences', 'helpfulness, Elo')


# %% [markdown]
# In the recorded runs RL-CAI gains most of its harmlessness in the first half of training and loses
# help until the end. Distances from the first model, above, are large at the end, for as in the paper there is next
# to no price on them. Claims about last snapshots are about what is left then. A price of KL that
# holds a policy near the best place it passes is [another page's subject](over_optimisation.ipynb).
#
# The paper's order of harmlessness, step by step, at the end of training:

# %%
def end(k): return 'SL-CAI 0' if k=='SL-CAI' else f'{k} {size["steps"]}'

order = [end(k) for k in ('helpful RL', 'SL-CAI', 'HH RL', 'RL-CAI')]
order_test(elo['red_team'], order).round(3)

# %% [markdown]
# ## Who evades
#
# Rates on red-team requests at the end of training, as a refusal at all, and in means what is
# dangerous, what is a better course and what is comfort. One more run is here that the figures above
# leave out: its raters saw the same answers as those of HH RL, and only their taste is another.

# %%
red_team = dict(red_team=test['red_team'])
texts = [p['text'] for p in test['red_team']]
def final_answers(s, k):
    "Answers of the last snapshot of a run to red-team requests"
    if k!=ENGAGED: return answers[s]['red_team']['base 0' if k=='base' else end(k)]
    last = list_players(trained[s], [k], steps[-1:])[-1:]
    return answer_requests(last, red_team, on, seed=s, **sampling)['red_team'][end(k)]

traits = {k: pd.concat([environment.features(texts, final_answers(s, k)).assign(training=s)
                       for s in seeds])
          for k in ('base', 'SL-CAI', *RUNS, ENGAGED)}
refused = {k: d.refusal.to_numpy(float) for k,d in traits.items()}
training = traits['base'].training.to_numpy()
rates = {k: cluster_bootstrap(r, training) for k,r in refused.items()}
pd.DataFrame({k: dict(refuses=str(rates[k]), danger=d.danger.mean(), better=d.better.mean(),
                      comfort=(d.kind>0).mean(), words=d.words.mean())
              for k,d in traits.items()}).T


# %% [markdown]
# A taste for evasion makes evaders in some trainings and not in others: a third of the answers of HH RL
# refuse in the mean, and the interval, which draws trainings, goes from none to eight in ten. Where it
# does not refuse it has found another way to be safe, short answers that say neither danger nor much
# that is better. One training of this recipe would have been called a reproduction or a failure, by
# luck.
#
# ## By size
#
# Figure 3 has seven sizes; here are as many as were trained. At sizes other than the first
# only the two runs that differ most are made. All last snapshots of all sizes meet in one
# tournament for each training, so that sizes can be compared.

# %%
def last_snapshots(name, t):
    "Players of one size: SL-CAI and the last snapshots"
    p = list_players(t, [k for k in RUNS if k in t.policies], steps[-1:])
    return p[p.run!='base'].assign(player=p.run+f' {name}', size=t.base.parameters)

sizes = {main: trained, **{n: {s: train_size(n, ('helpful RL', 'RL-CAI'), s) for s in seeds}
                           for n in size['more']}}
rosters = {s: pd.concat([last_snapshots(n, t[s]) for n,t in sizes.items()]) for s in seeds}
roster = rosters[seed]
size_votes = collect_votes({s: answer_requests(r, test, on, seed=s, **sampling)
                            for s,r in rosters.items()}, test, true_scores(seeds))
by_size = {k: tournament(v, gauge=f'SL-CAI {main}') for k,v in size_votes.items()}

# %%
#| label: fig-size
#| fig-cap: Harmlessness Elo by the world's truth against size, last snapshots, the smallest SL-CAI at zero; bars are 95 % intervals that draw trainings
plot_ratings(roster.merge(by_size['red_team'].table).rename(columns=dict(run='kind'))
             .sort_values('size'), 'size', 'parameters', 'harmlessness, Elo', log=True)


# %% [markdown]
# ## A judge who does not know
#
# Elsewhere nobody knows the truth, and a preference model has to judge. It must not be the
# one that was trained against, nor have seen its labels. These two, one for each axis,
# learned choices of raters on requests that no run was trained on; the rater of harm is the
# one who engages.

# %%
def held_out_judge(s, kind, criterion):
    base = trained[s].base
    pairs = different_pairs(base, judge[kind], seed=s, **sampling)
    rows = environment.rater_labels(pairs, criterion, seed=1000+s)
    return fit_preference(base, rows, seed=1000+s, epochs=size['pm'], lr=1e-3,
                          out=place/main/str(s)/f'judge-{kind}')

judges = {k: {s: held_out_judge(s, k, c) for s in seeds}
          for k,c in (('helpful', 'helpful'), ('red_team', 'harmless'))}
judge_votes = collect_votes(answers, test, judges)
g = pareto_frontier(judge_votes['helpful'], judge_votes['red_team'], players, gauge='SL-CAI 0',
                    seed=seed)

# %%
#| label: fig-judge
#| fig-cap: The snapshots of the first figure as two held-out preference models rate them, SL-CAI at zero; bars are 95 % intervals that draw trainings
plot_frontier(g)

# %% [markdown]
# A judge could miss that a run turns back. What the last stretch of RL-CAI did to its harmlessness,
# by either:

# %%
late,last = (f'RL-CAI {k}' for k in (size['steps']-size['every'], size['steps']))
by = dict(truth=elo['red_team'], judge=tournament(judge_votes['red_team'], gauge='SL-CAI 0'))
{k: str(e.difference(last, late)) for k,e in by.items()}

# %% [markdown]
# In the recorded runs neither sees a turn. But the figure shows where such a judge errs: the last
# snapshots of helpful RL and those with sharp labels are the most helpful by it, and less helpful
# than SL-CAI by the truth, and of harmlessness it gives RL-CAI a fifth of the gain that is true, with intervals
# too wide to tell it from SL-CAI. It knows answers of the first model, and what a policy says at the
# end of a long way is like none of them.
#
# Rank correlation of harmlessness by the truth with harmlessness by this judge, over all
# snapshots, and by the preference model of RL-CAI itself, which is a judge in its own
# cause:

# %%
own_scores = dict(red_team={s: t.scores['RL-CAI'] for s,t in trained.items()})
own_votes = collect_votes(answers, test, own_scores)
agree = {k: rating_agreement(votes['red_team'], v['red_team'], seed=seed)
         for k,v in {'held out': judge_votes, "RL-CAI's own": own_votes}.items()}
{k: str(v) for k,v in agree.items()}


# %% [markdown]
# ## Claims
#
# The criteria lie in `data/claims/constitution_frontier.toml` and were written before the
# world's first policy was trained. That intervals draw trainings was settled before any such
# recording. The first of those had four trainings; two more were added after it was seen, because
# intervals of four cannot hold the truth in 19 cases of 20, and not one was left out.
#
# Four hold: RL-CAI dominates more than HH RL and more than helpful RL, gains on SL-CAI, and does not
# refuse. One fails: trained models are not more helpful than the supervised one at the end of a way that
# has no price. Six are open. All three steps of the paper's order have its sign, and only the last of
# them, from HH RL to RL-CAI, is not settled; sharp labels lean the other way. Intervals of six
# trainings are still wide, and that is this page's plainest result: what a single training shows of such
# runs is mostly its luck.

# %%
def least(elo, steps):
    "The step of an order that is least certain"
    return min((elo.difference(a, b) for a,b in steps), key=lambda d: d.low)

safe = elo['red_team']
kind = elo['helpful']
better = [(end(k), end('SL-CAI')) for k in ('helpful RL', 'HH RL', 'RL-CAI')]
across = [(f'RL-CAI {n}', f'helpful RL {n}') for n in sizes]
record(scale, {
    'constitution/frontier-beats-hh': gain['HH RL'],
    'constitution/frontier-beats-helpful': gain['helpful RL'],
    'constitution/frontier-order': least(safe, zip(order[1:], order)),
    'constitution/frontier-sl-least-helpful': least(kind, better),
    'constitution/frontier-cot': safe.difference(end('RL-CAI, CoT'), end('RL-CAI')),
    'constitution/frontier-helpful-harms': safe.difference(end('helpful RL'), 'base 0'),
    'constitution/frontier-cai-improves': safe.difference(end('RL-CAI'), 'SL-CAI 0'),
    'constitution/frontier-evasive-rater': paired_difference(
        refused['HH RL'], refused[ENGAGED], training),
    'constitution/frontier-not-evasive': rates['RL-CAI'],
    'constitution/frontier-judges-agree': agree['held out'],
    'constitution/frontier-sizes': least(by_size['red_team'], across),
})

# %%
f'{scale}: {(process_time()-began)/60:.1f} minutes of one processor'
