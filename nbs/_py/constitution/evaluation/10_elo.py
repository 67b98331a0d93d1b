# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Elo ratings
#
# > Rate models from pairwise votes: tournaments, Bradley-Terry fits, Elo and its intervals.

# %%
#| default_exp constitution.evaluation.elo

# %%
#| export
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import combinations
from pathlib import Path

import numpy as np, pandas as pd
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

# %%
#| export
from moral_sc.foundation.arguments import checked
from moral_sc.foundation.errors import ConfigError, DataError, unknown_name_message
from moral_sc.foundation.statistics import Estimate, lower_tail
from moral_sc.foundation.tables import read_rows

# %%
#| hide
from fastcore.test import *


# %% [markdown]
# It is easier to compare two answers than to rate one, so both papers that
# this package follows compare models by votes [@bai2022constitutional; @bai2022hh]. A vote
# depends on the difference of two ratings,
#
# $$P(a \text{ beats } b) = \frac{1}{1+10^{(E_b-E_a)/400}},$$
#
# and the ratings maximise the likelihood of all votes together. A player need not have
# met every other one, and a snapshot of a run is a player like any other.
#
# ## Votes
#
# A vote is a row: first player, second player, prompt, and the probability that the
# first is better. A person votes 0 or 1; a model gives a probability.

# %%
#| export
def score_judge(
    score,          # prompts, answers -> [answer], higher is better; or a preference model's folder
    scale:float=1., # Nats per unit of score; inf: the higher score wins outright
):                  # judge(prompts, a, b) -> probability that a is better
    "Make a judge that compares scores; each answer is scored once"
    if isinstance(score, (str, Path)):
        from moral_sc.constitution.preference import PreferenceModel
        score = PreferenceModel.load(score)
    def judge(prompts, a, b):
        rows = [*zip(prompts, a, strict=True), *zip(prompts, b, strict=True)]
        index = {r:i for i,r in enumerate(dict.fromkeys(rows))}
        s = np.asarray(score(*map(list, zip(*index))), dtype=float)[[index[r] for r in rows]]
        d = s[:len(a)]-s[len(a):]
        return (1+np.sign(d))/2 if np.isinf(scale) else 1/(1+np.exp(-scale*d))
    return judge


# %% [markdown]
# A language model judges by the same multiple choice that makes labels for training; see
# [feedback](../30_feedback.ipynb) for the question and its order.

# %%
#| export
def model_judge(
    lm,    # Anything that `moral_sc.language.load` takes
    **kw,  # Passed on to `label`: comparisons, swap, cot, mode ...
):         # judge(prompts, a, b) -> probability that a is better
    "Make a judge from a language model; each pair is asked once"
    from moral_sc.constitution.feedback import label
    from moral_sc.language.loading import load
    lm = load(lm)
    def judge(prompts, a, b):
        rows = [*zip(prompts, a, b, strict=True)]
        pairs = {r: sha256(repr(r).encode()).hexdigest()[:16] for r in rows}
        unique = [dict(id=id, prompt=p, a=x, b=y) for (p,x,y),id in pairs.items()]
        labels = {r['id']:r['p'] for r in label(lm, unique, **kw)}
        return np.array([labels[pairs[r]] for r in rows])
    return judge


# %% [markdown]
# In `play_matches` all players answer the same prompts. A coin decides which answer stands first,
# independently for each pair and prompt, so a judge's position bias
# favours no player.

# %%
#| export
def _hash_number(*key): return int(sha256('/'.join(map(str, key)).encode()).hexdigest()[:12], 16)

def schedule_matches(
    players:dict, # Name -> answers, one per row
    rows:list,    # Prompts with an id
    pairs='all', seed:int=0,
)->list:          # (row, first, second)
    "List the matches on every prompt, with the answer that stands first"
    names = list(players)
    if len(names)<2: raise DataError(f'A tournament needs two players; got {len(names)}.')
    for n,answers in players.items():
        if isinstance(answers, str) or len(answers)!=len(rows):
            raise DataError(f'{n} gave {len(answers)} answers to {len(rows)} prompts: give '
                            'a list with one per prompt.')
    if isinstance(pairs, str) and pairs!='all':
        raise ConfigError(f"pairs is {pairs!r}; give 'all', a number or a list of pairs.")
    known = list(combinations(names, 2)) if isinstance(pairs, (str, int)) else list(pairs)
    for p in {n for ab in known for n in ab}-set(names):
        raise ConfigError(unknown_name_message('player', p, names))
    return [m for i,r in enumerate(rows) for m in _round(known, (seed, i, r['id']), i, pairs)]

def _round(known, key, i, pairs):
    if isinstance(pairs, int): known = sorted(known, key=lambda ab: _hash_number(*key, *ab))[:pairs]
    return [(i, b, a) if _hash_number(*key, 'side', a, b)%2 else (i, a, b) for a,b in known]

def prompt_rows(prompts):
    "Return prompts as rows; a prompt may occur several times"
    from moral_sc.constitution.prompts import get_prompt, load_prompts
    if isinstance(prompts, (str, Path)) or hasattr(prompts, 'columns'): return load_prompts(prompts)
    rows = [dict(id=p, prompt=p) if isinstance(p, str) else p for p in prompts]
    return [dict(id=r.get('id', get_prompt(r)), prompt=get_prompt(r)) for r in rows]

@checked
def play_matches(
    players:dict,        # Name -> answers, one per prompt
    prompts,             # Strings, or anything that `load_prompts` takes; may repeat
    judge,               # prompts, a, b -> probability that a is better
    pairs='all',         # Or a list of pairs of names, or the number of pairs per prompt
    seed:int=0,          # Of the order of answers and the choice of pairs
)->pd.DataFrame:         # Votes: a, b, prompt, win
    "Collect a judge's votes on the answers of players to the same prompts"
    rows = prompt_rows(prompts)
    matches = schedule_matches(players, rows, pairs, seed)
    answers = [[players[m[k]][m[0]] for m in matches] for k in (1, 2)]
    if answers[0]==answers[1]:
        raise DataError('All answers are alike, so there is nothing to vote on.')
    win = np.asarray(judge([rows[i]['prompt'] for i,*_ in matches], *answers), dtype=float)
    if win.shape!=(len(matches),):
        raise DataError(f'The judge returned shape {win.shape} for {len(matches)} matches: return '
                        'one probability for each.')
    return pd.DataFrame([(a, b, rows[i]['id']) for i,a,b in matches],
                        columns=['a', 'b', 'prompt']).assign(win=win)


# %%
asks = ['Is it far?', 'Is it late?', 'Who is there?', 'May I come in?']
said = dict(curt=['No.']*4, warm=['Not at all, come along.']*4, lost=['Is it?']*4)
longer = score_judge(lambda prompts, answers: [len(a)/10 for a in answers])
votes = play_matches(said, asks, longer)
votes.head()

# %% [markdown]
# In the long run the preferred answer stands first as often as second, and a judge who always
# picks the first answer finds all players equal.

# %%
many = [f'Question {i}?' for i in range(400)]
two = dict(x=['yes']*400, y=['no']*400)
first = play_matches(two, many, lambda prompts, a, b: np.ones(len(a)))
(first.a=='x').mean()

# %%
assert abs((first.a=='x').mean()-.5)<.08
three = play_matches(said, asks, longer, pairs=2)
test_eq(three.groupby('prompt').size().tolist(), [2]*4)
test_eq(play_matches(said, asks, longer, pairs=2), three)
for wrong,says in ((dict(pairs='some'), 'pairs is'),
                   (dict(judge=lambda p, a, b: [1]), 'shape (1,)')):
    with expect_fail(Exception, contains=says):
        play_matches(**dict(players=dict(a=['x']*2, b=['y']*2), prompts=['p', 'q'],
                            judge=lambda p, a, b: [1]*len(p)) | wrong)
with expect_fail(DataError, contains='gave 3 answers to 4'):
    play_matches(said | dict(curt=['No.']*3), asks, longer)
with expect_fail(DataError, contains='alike'):
    play_matches(dict(x=['a']*4, y=['a']*4), asks, longer)
with expect_fail(ConfigError, contains='did you mean'):
    play_matches(said, asks, longer, pairs=[('curt', 'warn')])


# %% [markdown]
# ## Maximum likelihood
#
# Only the matrix of wins enters the likelihood. In nats, with $\theta = E\ln 10/400$,
#
# $$\log L = \sum_{ij} w_{ij}\log\sigma(\theta_i-\theta_j),$$
#
# which is concave. Newton's step can overshoot if votes are lopsided. Along a step whose
# largest difference between two players is $d$, the curvature changes by at most a factor $e^{d}$, and
# the best fraction of the step under that bound is $\log(1+d)/d$. The likelihood then
# rises at every step, and near the maximum the step is whole. Many matrices are solved at once,
# which makes the bootstrap below cheap.

# %%
#| export
def _sigma(theta): return 1/(1+np.exp(theta[...,None,:]-theta[...,:,None]))

def fisher_information(
    wins,  # [..., winner, loser]
    theta, # [..., player], nats
):         # [..., player, player], per nat squared
    "Return the curvature of the log-likelihood, a weighted graph Laplacian"
    s = _sigma(theta)
    m = (wins+np.swapaxes(wins, -1, -2))*s*(1-s)
    return m.sum(-1)[...,None]*np.eye(m.shape[-1]) - m

def bradley_terry(
    wins,           # [..., winner, loser], counts or sums of probabilities
    steps:int=100,
)->np.ndarray:      # [..., player], nats, mean zero
    "Fit maximum likelihood ratings to every matrix of wins"
    wins = np.asarray(wins, dtype=float)
    n = wins+np.swapaxes(wins, -1, -2)
    theta = np.zeros(wins.shape[:-1])
    for _ in range(steps):
        slope = (wins-n*_sigma(theta)).sum(-1)
        lift = n.sum((-1,-2))[...,None,None]/n.shape[-1]**2 # Removes the null direction
        step = np.linalg.solve(fisher_information(wins, theta)+lift, slope[...,None])[...,0]
        d = np.ptp(step, axis=-1)[...,None]
        theta = theta + step*np.log1p(d)/np.maximum(d, 1e-300)
        if d.max()<1e-12: break
    return theta-theta.mean(-1, keepdims=True)


# %%
#| export
ELO_PER_NAT = 400/np.log(10) # Elo of one nat

# %% [markdown]
# Two players have a closed form: 60 wins against 40 are $400\log_{10}(60/40)$ Elo.

# %%
r = bradley_terry([[0,60],[40,0]])*ELO_PER_NAT
test_close(r[0]-r[1], 400*np.log10(60/40), 1e-9)
test_close(r[0]-r[1], 70.4365, 1e-4)
r[0]-r[1]

# %% [markdown]
# With three players a grid search over all ratings finds the same maximum, without slope or curvature.

# %%
wins = np.array([[0,7,12],[3,0,9],[1,4,0]], dtype=float)
t = bradley_terry(wins)
x,y = np.meshgrid(*[np.linspace(-3, 3, 601)]*2, indexing='ij')
grid = np.stack([x, y, -x-y])
like = sum(wins[i,j]*-np.log1p(np.exp(grid[j]-grid[i])) for i in range(3) for j in range(3))
best = np.unravel_index(like.argmax(), like.shape)
grid[(slice(None), *best)], t.round(3)

# %%
assert abs(grid[(slice(None), *best)]-t).max()<.011
test_close(sum(wins[i,j]*-np.log1p(np.exp(t[j]-t[i])) for i in range(3) for j in range(3)),
           like.max(), 1e-3)

# %% [markdown]
# A logistic regression on the difference of two indicators is the same model. `statsmodels`
# agrees to nine digits, standard errors included.

# %%
import statsmodels.api as sm
rows = [(i, j) for i in range(3) for j in range(3) for _ in range(int(wins[i,j]))]
side = np.resize([1, -1], len(rows))
X = np.array([(np.eye(3)[i]-np.eye(3)[j])[1:]*s for (i,j),s in zip(rows, side)])
fit = sm.Logit((side>0)*1., X).fit(method='newton', tol=1e-14, disp=0)
cov = np.linalg.inv(fisher_information(wins, t)[1:,1:])
test_close(fit.params, t[1:]-t[0], 1e-9)
test_close(fit.bse**2, np.diag(cov), 1e-9)
fit.params, t[1:]-t[0]

# %% [markdown]
# The fit converges with lopsided votes: here one player wins 9,999 of 10,000.

# %%
hard = bradley_terry([[0,9999,1],[1,0,1],[9999,1,0]])
assert np.isfinite(hard).all()
slope = lambda w, t: (w-(w+w.T)*(1/(1+np.exp(t[None]-t[:,None])))).sum(1)
test_close(slope(np.array([[0,9999,1],[1,0,1],[9999,1,0]]), hard), 0, 1e-6)
hard


# %% [markdown]
# ## Separable votes
#
# If one group of players lost every vote against the rest, the likelihood keeps rising as the
# groups move apart. The ratings are finite exactly if every player can be reached from every
# other along wins [@ford1957]. Otherwise an error names the groups: the ratings between them
# are unknown if they never met, and infinite if they did.

# %%
#| export
def comparable_groups(
    wins,         # [winner, loser]
)->np.ndarray:    # [player], number of the group within which ratings are finite
    "Group players that can be compared with each other"
    return connected_components(csr_matrix(np.asarray(wins)>0), connection='strong')[1]

def _separation_message(names, wins):
    "Return the error message for votes without finite ratings, or an empty string"
    g = comparable_groups(wins)
    components = connected_components(csr_matrix(wins), directed=False)[1]
    if not g.any(): return ''
    part = components if components.any() else g
    lists = ' | '.join(', '.join(map(str, np.array(names)[part==k])) for k in range(max(part)+1))
    if components.any():
        return f'These groups of players never met: {lists}. Add votes between them.'
    return (f'Between these groups all votes go one way, so their ratings are infinitely far '
            f'apart: {lists}. Add votes, use probabilities, or give prior=0.5.')


# %%
comparable_groups([[0,3,5],[1,0,4],[0,0,0]])

# %%
#| hide
test_eq(len(set(comparable_groups([[0,3,5],[1,0,4],[0,0,0]]))), 2)
test_eq(len(set(comparable_groups([[0,3,5],[1,0,4],[1,0,0]]))), 1)
unmatched = np.array([[0,1,0],[1,0,0],[0,0,0]])
assert 'never met: x, y | z' in _separation_message(list('xyz'), unmatched)


# %% [markdown]
# ## Standard errors
#
# The curvature of the likelihood gives standard errors that treat every vote as
# independent. Votes on one prompt are not: a difficult prompt is difficult for every
# pair. By default we therefore add up the score contributions of each prompt before squaring them (a
# sandwich estimator, with the factor $C/(C-1)$ and Student's $t$ of $C-1$ degrees of freedom for $C$ prompts), and
# `errors='bootstrap'` resamples prompts. Both also hold for votes that are probabilities, which vary less
# than coin flips. A column `cluster` replaces the prompt if votes are dependent more
# widely, such as the turns of one conversation.

# %%
#| export
@dataclass
class Elo:
    "Ratings of players, from all their votes together"
    players:list
    ratings:np.ndarray      # [player]
    cov:np.ndarray          # [player, player]
    gauge:str               # 'mean', or the player at zero
    votes:int
    clusters:int
    level:float=.95
    draws:np.ndarray=field(default=None, repr=False) # [draw, player], of a bootstrap
    df:float=np.inf         # Degrees of freedom of the intervals

    def _interval(self, c):
        "Return a combination of ratings with its interval"
        from scipy.stats import t
        v = float(self.ratings@c)
        if self.draws is not None:
            tail = lower_tail(self.level, self.clusters)
            return Estimate(v, *map(float, np.quantile(self.draws@c, [tail, 1-tail])))
        half = t.ppf((1+self.level)/2, self.df)*np.sqrt(max(float(c@self.cov@c), 0))
        return Estimate(v, v-half, v+half)

    def _indicator(self, name):
        if name not in self.players:
            raise ConfigError(unknown_name_message('player', name, self.players))
        return np.eye(len(self.players))[self.players.index(name)]

    def rating(self, name):
        "Return the rating of a player"
        return self._interval(self._indicator(name))

    def difference(self, a, b):
        "Return the rating of `a` less that of `b`"
        return self._interval(self._indicator(a)-self._indicator(b))

    @property
    def table(self): # player, elo, low, high
        "Return all ratings with their intervals"
        rows = [(p, *self.rating(p)) for p in self.players]
        return pd.DataFrame(rows, columns=['player', 'elo', 'low', 'high'])

    def __repr__(self):
        return f'{self.votes:,} votes on {self.clusters:,} prompts\n{self.table.round(1)}'


# %%
#| export
_ties = 'tie', 'draw', 'both', 'tie (bothbad)'

def _win(winner, a, b, i):
    "Return 1 if the winner of vote `i` is the first player, 0 if it is the second, 1/2 for a tie"
    if winner in (a, b): return float(winner==a)
    word = str(winner).strip().lower()
    sides = dict(dict.fromkeys(_ties, .5), a=1., model_a=1., b=0., model_b=0.)
    if word in sides: return sides[word]
    raise DataError(f"The winner of vote {i} is {winner!r}; give {a!r}, {b!r} or 'tie'.")

def load_votes(
    votes, # A file, a DataFrame, rows, or tuples (a, b, winner) and optionally the prompt
)->pd.DataFrame: # a, b, prompt, win
    "Load votes between pairs of players"
    if isinstance(votes, (list, tuple)) and votes and not isinstance(votes[0], dict):
        names = ['a', 'b', 'winner', 'prompt']
        for i,v in enumerate(votes, 1):
            if not isinstance(v, (list, tuple)) or not 3<=len(v)<=4:
                raise DataError(f'Vote {i} is {v!r:.60}; give (a, b, winner), or also the prompt.')
        votes = pd.DataFrame([dict(zip(names, v)) for v in votes])
    if not isinstance(votes, pd.DataFrame): votes = pd.DataFrame(read_rows(votes, 'votes'))
    votes = votes.rename(columns=dict(model_a='a', model_b='b'))
    for c in ('a', 'b', 'win'):
        if c in votes or (c=='win' and 'winner' in votes): continue
        raise DataError(f'The votes have no column {c!r}; give a, b and win or winner.')
    if 'win' not in votes:
        wins = [_win(*v) for v in zip(votes.winner, votes.a, votes.b, range(1, len(votes)+1))]
        votes = votes.assign(win=wins)
    if 'prompt' not in votes: votes = votes.assign(prompt=range(len(votes)))
    return votes

def validate_votes(votes, tie_margin=None):
    "Return votes with a cluster each, without those within `tie_margin` of one half"
    votes = load_votes(votes)
    try: win = votes.win.to_numpy(float)
    except (TypeError, ValueError):
        raise DataError('A `win` of the votes is no number; give numbers from 0 to 1, or a column '
                        '`winner`.') from None
    votes = votes.assign(win=win)
    if not ((0<=win)&(win<=1)).all():
        bad = int(np.flatnonzero(~((0<=win)&(win<=1)))[0])
        raise DataError(f'Vote {bad+1} is {win[bad]}; a vote lies between 0 and 1.')
    for p in votes.a[(votes.a==votes.b).to_numpy()]:
        raise DataError(f'{p} is voted against itself: give two players to every vote.')
    votes = votes.assign(cluster=votes.get('cluster', votes.prompt))
    decided = votes if tie_margin is None else votes[abs(win-.5)>tie_margin]
    if not len(decided): raise DataError('No votes are left to rate players by.')
    return decided

class WinCounts:
    "Wins by cluster, `wins[cluster, winner x loser]`"
    def __init__(self, votes, names):
        K = len(names)
        a,b = (pd.Index(names).get_indexer(votes[c]) for c in 'ab')
        # By rank of the name and not of appearance, so that order of votes changes nothing
        self.code,self.clusters = pd.factorize(votes.cluster, sort=True)
        win = votes.win.to_numpy(float)
        shape = (len(self.clusters), K*K)
        cells = np.concatenate([a*K+b, b*K+a])
        self.by = csr_matrix((np.concatenate([win, 1-win]), (np.tile(self.code, 2), cells)),
                             shape)
        self.names = list(names)
        self.K = K
        self.wins = np.asarray(self.by.sum(0)).reshape(K, K)

    def slopes(self, theta):
        "Return the slope of the log-likelihood at `theta` by cluster, [cluster, player]"
        K = self.K
        s = _sigma(theta).ravel()
        by = self.by.tocoo()
        i = by.col//K
        j = by.col%K
        # A win of i over j raises i and lowers j by its probability of not happening
        pull = by.data*(1-s[by.col])
        rows = np.concatenate([by.row, by.row])*K + np.concatenate([i, j])
        return np.bincount(rows, np.concatenate([pull, -pull]),
                           minlength=len(self.clusters)*K).reshape(-1, K)

    def fit(self, prior=0.):
        "Fit ratings in nats, or raise an error if votes are separable"
        wins = self.wins + prior/2*((self.wins+self.wins.T)>0)
        if message := _separation_message(self.names, wins): raise DataError(message)
        return bradley_terry(wins)

    def refit(self, counts, prior=0.):
        "Fit ratings with clusters reweighted, [draw, cluster] -> [draw, player]"
        new = np.asarray(counts@self.by).reshape(-1, self.K, self.K)
        met = (self.wins+self.wins.T)>0
        # A draw in which one side wins all gets a large finite rating
        return bradley_terry(new + met*max(prior/2, 1e-3))


# %%
#| export
def bootstrap_counts(
    clusters:int,  # Number of clusters
    n:int,         # Draws
    seed:int=0,
)->np.ndarray:     # [draw, cluster], number of times each cluster is drawn
    "Draw a cluster bootstrap, as counts"
    rng = np.random.default_rng(seed)
    return rng.multinomial(clusters, np.full(clusters, 1/clusters), n).astype(float)

def _covariance(count, theta, errors):
    "Return the covariance of ratings of mean zero, nats squared"
    inv = np.linalg.pinv(fisher_information(count.wins, theta), hermitian=True)
    if errors=='likelihood': return inv
    g = count.slopes(theta)
    C = len(count.clusters)
    if C<2: return np.full_like(inv, np.nan)
    return inv@(g.T@g)@inv*C/(C-1)

def _gauge_matrix(K, names, gauge):
    "Return the matrix that shifts ratings of mean zero to the gauge"
    if gauge=='mean': return np.eye(K)
    if gauge not in names: raise ConfigError(unknown_name_message('player', gauge, names))
    return np.eye(K)-np.eye(K)[names.index(gauge)]

ERRORS = 'cluster', 'likelihood', 'bootstrap'

@checked
def tournament(
    votes,                # Tuples (a, b, winner), rows, a frame or a file, as in `load_votes`
    gauge:str='mean',     # Ratings of mean zero, or the name of the player at zero
    errors:str='cluster', # 'cluster': sandwich by prompt; 'likelihood'; 'bootstrap'
    tie_margin:float=None, # Drop votes within this distance of one half
    prior:float=0.,       # Votes added to each pair that met, half to each side
    level:float=.95, n:int=1000, seed:int=0, # Of intervals, and of their bootstrap
)->Elo:
    "Fit Elo ratings to all votes together"
    if errors not in ERRORS:
        raise ConfigError(unknown_name_message('kind of errors', errors, ERRORS))
    if not 0<level<1 or prior<0 or n<2: raise ConfigError(
        f'level is {level}, prior is {prior}, n is {n}; give a level between 0 and 1, a prior of '
        '0 or more, and 2 draws or more.')
    votes = validate_votes(votes, tie_margin)
    names = sorted({*votes.a, *votes.b})
    count = WinCounts(votes, names)
    K = len(names)
    theta = count.fit(prior)
    C = len(count.clusters)
    J = ELO_PER_NAT*_gauge_matrix(K, names, gauge)
    draws = None
    if errors=='bootstrap': draws = count.refit(bootstrap_counts(C, n, seed), prior)@J.T
    cov = _covariance(count, theta, errors) if draws is None else None
    return Elo(names, J@theta, np.cov(draws.T) if cov is None else J@cov@J.T, gauge,
               len(votes), C, level, draws, C-1 if errors=='cluster' else np.inf)


# %%
def coins(w, l): # Each vote on a prompt of its own
    return pd.DataFrame(dict(a='x', b='y', prompt=range(w+l), win=[1.]*w+[0.]*l))

e = tournament(coins(60, 40), gauge='y', errors='likelihood')
e

# %% [markdown]
# The golden value of two players is $70.4365\pm 35.46$:

# %%
test_close(e.ratings, [70.4365, 0], 1e-4)
test_close(np.sqrt(e.cov[0,0]), 35.46, 5e-3)
test_close(e.cov[0,0], ELO_PER_NAT**2*(1/60+1/40), 1e-6)

# %% [markdown]
# The gauge sets the zero. Differences and their errors do not depend on it, nor on
# the order of the votes.

# %%
rng = np.random.default_rng(0)
truth = dict(zip('abcd', [0, .5, 1., 1.4]))
def crowd(prompts, spread, turns=3, seed=0, names=truth):
    "Votes on prompts that suit some players better than others"
    rng = np.random.default_rng(seed)
    skill = np.array(list(names.values())) + spread*rng.normal(size=(prompts, len(names)))
    i,j = np.array(list(combinations(range(len(names)), 2))).T
    p = 1/(1+np.exp(skill[:,j]-skill[:,i]))
    win = rng.random((len(i), turns, prompts))<p.T[:,None]
    name = np.repeat(list(names), turns*prompts).reshape(len(names), -1)
    return pd.DataFrame(dict(a=name[i].ravel(), b=name[j].ravel(), win=win.ravel()*1.,
                             prompt=np.tile(range(prompts), len(i)*turns)))

votes = crowd(60, 1.)
mean = tournament(votes)
zero = tournament(votes, gauge='a')
for kind in ERRORS:
    mixed = tournament(votes.sample(frac=1, random_state=0), errors=kind, n=50)
    m,z = (tournament(votes, g, kind, n=50) for g in ('mean', 'a'))
    test_close(m.difference('d', 'b'), z.difference('d', 'b'), 1e-6)
    test_close(m.ratings, mixed.ratings, 1e-6)
    test_close(m.cov, mixed.cov, 1e-6)
test_close(mean.ratings.sum(), 0, 1e-9)
test_eq(zero.rating('a'), (0., 0., 0.))
mean.difference('d', 'b'), zero.difference('d', 'b')

# %% [markdown]
# Swapping the two players of a vote changes nothing, and a vote of one half counts as half a vote
# each way.

# %%
back = votes.assign(a=votes.b, b=votes.a, win=1-votes.win)
test_close(tournament(back).ratings, mean.ratings, 1e-6)
both = lambda win: pd.DataFrame(dict(a='x', b='y', prompt=range(4), win=win))
test_close(tournament(both([1, 0, .5, .5])).ratings, 0, 1e-9)
sure = tournament(both([1, .9, .2, .5]), tie_margin=.2)
test_eq(sure.votes, 3)
sure.ratings

# %% [markdown]
# Votes that all go one way raise an error that names a remedy, as does invalid input.

# %%
with expect_fail(DataError, contains='infinitely far apart'): tournament(coins(9, 0))
with expect_fail(ConfigError, contains='level is 95'): tournament(votes, level=95.)
assert np.isfinite(tournament(coins(9, 0), prior=.5).ratings).all()
apart = pd.concat([coins(3, 2), coins(3, 2).replace(dict(x='v', y='w'))])
with expect_fail(DataError, contains='never met'): tournament(apart)
with expect_fail(DataError, contains='Vote 2 is 1.5'): tournament(both([1, 1.5, 0, 0]))
with expect_fail(DataError, contains="no column 'win'"): tournament(votes.drop(columns='win'))
for bad,message in [([('x', 'y')], "Vote 1 is ('x', 'y'); give (a, b, winner)"), (
        [('x', 'y', 'z')], "winner of vote 1 is 'z'; give 'x', 'y' or 'tie'"), ([], 'no rows'),
        ([('x', 'y', None)], 'winner of vote 1 is None'), ([dict(a='x', b='y')], "no column 'win'"),
        ([dict(a='x', b='y', win='often')], 'is no number')]:
    with expect_fail(DataError, contains=message): tournament(bad)
with expect_fail(ConfigError, contains="tournament has no argument 'erors'; did you mean 'errors'"):
    tournament(votes, erors='x')

# %% [markdown]
# Votes of your own are tuples of two players and the winner, rows, a DataFrame or a file. Without a prompt,
# each vote counts as a cluster of its own.

# %%
mine = [('x', 'y', 'x'), ('x', 'y', 'x'), ('y', 'x', 'y'), ('y', 'x', 'tie')]
frame = pd.DataFrame(mine, columns=['model_a', 'model_b', 'winner'])
for given in (frame, frame.replace(dict(winner=dict(x='model_b', y='model_a'))).assign(
        winner=['model_a', 'model_a', 'model_a', 'tie']), frame.to_dict('records')):
    test_eq(tournament(given).ratings, tournament(mine).ratings)
tournament(mine)

# %%
with expect_fail(DataError, contains='No votes are left'): tournament(both(.5), tie_margin=0)
with expect_fail(ConfigError, contains="did you mean 'bootstrap'"):
    tournament(votes, errors='bootstap')
tournament(coins(9, 0), prior=.5).difference('x', 'y')

# %% [markdown]
# ## Coverage of the intervals
#
# If every vote is an independent coin flip, the likelihood's covariance must equal the spread of ratings
# over tournaments simulated from the fitted probabilities.

# %%
plain = crowd(400, 0., turns=1)
e = tournament(plain, errors='likelihood')
c = WinCounts(validate_votes(plain), list('abcd'))
n = c.wins+c.wins.T
p = _sigma(e.ratings/ELO_PER_NAT)
upper = rng.binomial(n.astype(int), p, (4000, 4, 4))*np.triu(np.ones((4, 4)), 1)
drawn = bradley_terry(upper + np.swapaxes(np.triu(n, 1)-upper, 1, 2))*ELO_PER_NAT
np.sqrt(np.diag(e.cov)).round(2), drawn.std(0).round(2)

# %%
assert abs(np.cov(drawn.T)-e.cov).max()<.08*e.cov.max()


# %% [markdown]
# If prompts favour one player or another, that covariance is too small. In this simulation the true
# difference is known: the ratings that fit the expected wins. Over 400 tournaments of 50 prompts with three
# votes per pair and prompt, each kind of interval should contain it in 95 % of cases.

# %%
def expected(spread, names=truth):
    "The ratings that an endless crowd would give"
    x,w = np.polynomial.hermite_e.hermegauss(61)
    d = np.subtract.outer(*[np.array(list(names.values()))]*2)[...,None]+x*spread*2**.5
    return bradley_terry((w/w.sum()/(1+np.exp(-d))).sum(-1)*(1-np.eye(len(names))))*ELO_PER_NAT

def coverage(spread, runs, goal):
    "How often each interval holds the goal, and how wide it is"
    found = []
    for s in range(runs):
        v = crowd(50, spread, seed=s)
        found += [(k, *tournament(v, errors=k, n=200).difference('d', 'a')) for k in ERRORS]
    d = pd.DataFrame(found, columns=['errors', 'value', 'low', 'high'])
    d = d.assign(holds=d.low.le(goal)&d.high.ge(goal), width=d.high-d.low)
    return d.groupby('errors', sort=False)[['holds', 'width']].mean()

world = expected(1.2)
held = coverage(1.2, 400, world[3]-world[0])
held.round(3)

# %% [markdown]
# The likelihood's interval is too narrow, as expected, and misses the truth several times
# more often than it should. The other two have the right coverage.

# %%
assert held.holds['likelihood']<.9
assert abs(held.holds[['cluster', 'bootstrap']]-.95).max()<.02

# %% [markdown]
# Votes that are probabilities give the same ratings with less variance than
# coin flips. The likelihood keeps the error of coin flips; the sandwich estimator adapts.

# %%
soft = play_matches({n:[str(s)]*200 for n,s in truth.items()}, many[:200],
            score_judge(lambda prompts, answers: [float(a) for a in answers]))
test_close(tournament(soft, 'a').ratings/ELO_PER_NAT, list(truth.values()), 1e-6)
width = lambda kind: np.ptp(tournament(soft, errors=kind).difference('d', 'a')[1:])
width('likelihood').round(1), width('cluster').round(6)

# %%
assert width('cluster')<1e-6<width('likelihood')
