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
from pathlib import Path
from time import process_time

import numpy as np, pandas as pd, torch
from scipy.stats import rankdata
from moral_sc.constitution.toy import environment
from moral_sc.constitution.answers import answer_pairs, sample_answers
from moral_sc.constitution.plots import plot_frontier, plot_ratings
from moral_sc.constitution.finetuning import training_examples, finetune
from moral_sc.constitution.evaluation.pareto import pareto_frontier, joint_draws, order_test
from moral_sc.constitution.rl.policy import train_policy
from moral_sc.constitution.preference import fit_preference
from moral_sc.constitution.prompts import check_disjoint
from moral_sc.constitution.revision import revise, STOPS
from moral_sc.constitution.evaluation.elo import WinCounts, validate_votes, score_judge, play_matches, tournament
from moral_sc.foundation.runs import content_key
from moral_sc.foundation.statistics import (Estimate, cluster_bootstrap, lower_tail,
                                            paired_difference)
from moral_sc.lab.claims import record
from moral_sc.lab.paths import work_dir
from moral_sc.lab.scales import at_scale
from moral_sc.language.loading import load

torch.set_num_threads(1)
began = process_time()

# %%
size = at_scale(scale, # requests of each kind; steps of reading, of RL, between snapshots; trainings
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
KINDS = 'helpful', 'red_team'
parts = dict(train=size['train'], judge=size['train'], test=size['test'])

def requests(kind):
    "Requests of one kind for each part; no two have the same words"
    rows = {r['text']: r for r in environment.requests(3*sum(parts.values()), seed, kind)}
    cut = np.cumsum([0, *parts.values()])
    return {p: list(rows.values())[i:j] for p,i,j in zip(parts, cut, cut[1:])}

of = {k: requests(k) for k in KINDS}
check_disjoint(**{p: [r for k in KINDS for r in of[k][p]] for p in parts})
{k: {p: len(r) for p,r in rows.items()} for k,rows in of.items()}

# %%
brief = dict(max_new_tokens=40)
short = brief|dict(stop=STOPS) # An answer ends where a critique of it would begin
def say(lm, prompts, seed): return [a for a, in sample_answers(lm, prompts, seed=seed, **short)]

def pairs(lm, prompts, seed):
    "Two different answers a prompt"
    return [r for r in answer_pairs(lm, prompts, seed=seed, **short) if r['a']!=r['b']]

def supervised(base, out, seed):
    "SL-CAI: finetuned on its revisions, and on its own answers to harmless requests"
    asked = of['helpful']['train']
    chains = revise(base, of['red_team']['train'], environment.PRINCIPLES, rounds=4, few_shot=[],
                    seed=seed, **brief)
    own = [dict(text=p['text'], answer=a) for p,a in zip(asked, say(base, asked, seed))]
    rows = training_examples(chains, 'all', own, allow=('copy', 'repetition'))
    return finetune(base, rows, out, seed=seed, lr=2e-3)[0]


# %% [markdown]
# What a preference model is trained on decides what a run becomes. Helpfulness is always
# judged by the world's raters. Harm is not judged at all; or by raters for whom an evasion
# is safe, as those of the paper's predecessor were [@bai2022hh]; or by raters who want an
# answer that takes up the question; or by a labeller with principles. The labeller is read
# in two ways: its soft labels as they are, and its labels sharpened, as a chain of thought
# makes them, and clamped to 40-60 %. People compare answers of the first model, the
# labeller those of SL-CAI.

# %%
def clamped(rows, by=4., low=.4):
    "Labels made extreme, then clamped"
    p = np.array([r['p'] for r in rows]).clip(1e-6, 1-1e-6)
    sure = (1/(1+(1/p-1)**by)).clip(low, 1-low)
    return [r|dict(p=float(x)) for r,x in zip(rows, sure, strict=True)]

def comparisons(base, sl, seed):
    "Labelled pairs for each kind of run"
    useful = environment.rater_labels(pairs(base, of['helpful']['train'], seed), 'helpful', seed=seed)
    harm,own = (pairs(lm, of['red_team']['train'], seed) for lm in (base, sl))
    evasive,engaged = (environment.rater_labels(harm, style=s, seed=seed) for s in
                       ('evasive-is-safe', 'engage'))
    soft = environment.model_labels(own, seed=seed)
    return {'helpful RL': useful, 'HH RL': useful+evasive, 'RL-CAI': useful+soft,
            'RL-CAI, CoT': useful+clamped(soft), 'HH RL, engaging rater': useful+engaged}


# %% [markdown]
# Every run sees the same requests of both kinds in the same order. One training says little: models
# that differ by their seed alone, or by the last digits of sums on another processor, become policies
# that differ more than kinds of training do. Two earlier recordings of this page, of one training each
# on two processors, gave five of its eleven verdicts differently. So all of it, first model and people's
# votes included, is done anew from several seeds.

# %%
learn = dict(short, lr=3e-4, **{k: size[k] for k in ('steps', 'every', 'batch')})

def prefer(base, rows, seed, **kw):
    return fit_preference(base, rows, seed=seed, epochs=size['pm'], lr=1e-3, **kw)

def train(name, wanted, seed):
    "Every run of one size from one seed: first model, SL-CAI, scores, policies"
    at = place/name/str(seed)
    base = environment.pretrain(name, seed, size['read'], at, on)
    sl = supervised(base, at/'SL-CAI', seed)
    rows = comparisons(base, sl, seed)
    scores = {k: prefer(base, rows[k], seed, out=at/f'{k}, score') for k in wanted}
    asked = [p for ps in zip(*(of[k]['train'] for k in KINDS)) for p in ps]
    runs = {k: train_policy(sl if 'CAI' in k else base, asked, pm, out=at/k, seed=seed, **learn)
            for k,pm in scores.items()}
    return dict(base=base, sl=sl, scores=scores, runs=runs)

WAYS = 'helpful RL', 'HH RL', 'RL-CAI', 'RL-CAI, CoT'
ENGAGED = 'HH RL, engaging rater'
trained = {s: train(main, (*WAYS, ENGAGED), s) for s in seeds}
shown = ['score', 'kl3', 'entropy', 'length']
ends = {k: [t['runs'][k] for t in trained.values()] for k in (*WAYS, ENGAGED)}
pd.DataFrame({k: pd.DataFrame([p.history.iloc[-1] for p in v])[shown].mean().round(2).to_dict()
              | dict(stopped=sum(bool(p.stopped) for p in v)) for k,v in ends.items()}).T


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
def at_step(policy, step):
    "The last snapshot up to a step"
    return [d for d in policy.snapshots if int(d.name[5:])<=step][-1]

def field(t, ways):
    "Players of one training: run, step, model"
    rows = [('base', 0, t['base']), ('SL-CAI', 0, t['sl'])]
    rows += [(k, n, at_step(t['runs'][k], n)) for k in ways
             for n in range(size['every'], size['steps']+1, size['every'])]
    return pd.DataFrame(rows, columns=['run', 'step', 'model']).assign(
        player=lambda d: d.run+' '+d.step.astype(str))

def read(m): return load(m, 'float32', on) if isinstance(m, Path) else m

def heard(players, seed):
    "Answers of every player to the requests of the tournament, by kind"
    key = [m if isinstance(m, Path) else id(m) for m in players.model] # Some stand twice
    known = {k: read(m) for k,m in zip(key, players.model)}
    told = {k: {n: say(lm, of[k]['test'], seed) for n,lm in known.items()} for k in KINDS}
    return {k: {p: told[k][n] for p,n in zip(players.player, key)} for k in KINDS}

def meet(said, judges):
    "Votes of judges who go by scores, each training its own, by kind of request"
    return {k: pd.concat([play_matches(said[s][k], of[k]['test'], score_judge(judges[k][s]),
                               seed=s).assign(cluster=s) for s in seeds]) for k in judges}

truth = {k: dict.fromkeys(seeds, f) for k,f in
         zip(KINDS, (environment.helpfulness, environment.harmlessness))}
fields = {s: field(t, WAYS) for s,t in trained.items()}
players = fields[seed]
said = {s: heard(f, s) for s,f in fields.items()}
votes = meet(said, truth)
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
areas = {k: f.area(k) for k in WAYS} | {f'RL-CAI beyond {k}': g for k,g in gain.items()}
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
    start = {k: d[d.player==('SL-CAI 0' if 'CAI' in k else 'base 0')] for k in WAYS}
    rows = [g.assign(kind=k) for k in WAYS for g in (start[k], d[d.run==k])]
    return pd.concat(rows).assign(sequences=lambda x: x.step*size['batch'])

elo = {k: tournament(votes[k], gauge='SL-CAI 0') for k in KINDS}

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
texts = [p['text'] for p in of['red_team']['test']]
def last_words(s, k):
    "What the last snapshot of a run says to red-team requests"
    if k!=ENGAGED: return said[s]['red_team']['base 0' if k=='base' else end(k)]
    return say(read(trained[s]['runs'][k].snapshots[-1]), of['red_team']['test'], s)

traits = {k: pd.concat([environment.features(texts, last_words(s, k)).assign(training=s)
                       for s in seeds])
          for k in ('base', 'SL-CAI', *WAYS, ENGAGED)}
refused = {k: d.refusal.to_numpy(float) for k,d in traits.items()}
which = traits['base'].training.to_numpy()
rates = {k: cluster_bootstrap(r, which) for k,r in refused.items()}
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
def cast(name, t):
    "Last snapshots of one size, with SL-CAI"
    p = field(t, [k for k in WAYS if k in t['runs']]).groupby('run', sort=False).tail(1)
    return p[p.run!='base'].assign(player=p.run+f' {name}', size=t['base'].parameters)

sizes = {main: trained, **{n: {s: train(n, ('helpful RL', 'RL-CAI'), s) for s in seeds}
                           for n in size['more']}}
rosters = {s: pd.concat([cast(n, t[s]) for n,t in sizes.items()]) for s in seeds}
roster = rosters[seed]
whole = meet({s: heard(r, s) for s,r in rosters.items()}, truth)
by_size = {k: tournament(v, gauge=f'SL-CAI {main}') for k,v in whole.items()}

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
def held_out(s, kind, of_what):
    base = trained[s]['base']
    rows = environment.rater_labels(pairs(base, of[kind]['judge'], s), of_what, seed=1000+s)
    return prefer(base, rows, 1000+s, out=place/main/str(s)/f'judge-{kind}')

unseen = {k: {s: held_out(s, k, what) for s in seeds}
          for k,what in zip(KINDS, ('helpful', 'harmless'))}
told = meet(said, unseen)
g = pareto_frontier(told['helpful'], told['red_team'], players, gauge='SL-CAI 0', seed=seed)

# %%
#| label: fig-judge
#| fig-cap: The snapshots of the first figure as two held-out preference models rate them, SL-CAI at zero; bars are 95 % intervals that draw trainings
plot_frontier(g)

# %% [markdown]
# A judge could miss that a run turns back. What the last stretch of RL-CAI did to its harmlessness,
# by either:

# %%
late,last = (f'RL-CAI {k}' for k in (size['steps']-size['every'], size['steps']))
by = dict(truth=elo['red_team'], judge=tournament(told['red_team'], gauge='SL-CAI 0'))
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
def agreement(a, b, n=400):
    "Rank correlation of two ratings of the same players, trainings drawn for both at once"
    names = sorted({*a.a, *a.b})
    counts = [WinCounts(validate_votes(v), names) for v in (a, b)]
    drawn,*_ = joint_draws([list(c.clusters) for c in counts], n, seed)
    rank = lambda x, y: np.corrcoef(rankdata(x), rankdata(y))[0,1]
    draws = [rank(x, y) for x,y in zip(*(c.again(d) for c,d in zip(counts, drawn)))]
    tail = lower_tail(.95, len(seeds))
    return Estimate(rank(*(c.fit() for c in counts)), *np.quantile(draws, [tail, 1-tail]))

own = meet(said, dict(red_team={s: t['scores']['RL-CAI'] for s,t in trained.items()}))
agree = {k: agreement(votes['red_team'], v) for k,v in
         {'held out': told['red_team'], "RL-CAI's own": own['red_team']}.items()}
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
        refused['HH RL'], refused[ENGAGED], which),
    'constitution/frontier-not-evasive': rates['RL-CAI'],
    'constitution/frontier-judges-agree': agree['held out'],
    'constitution/frontier-sizes': least(by_size['red_team'], across),
})

# %%
f'{scale}: {(process_time()-began)/60:.1f} minutes of one processor'
