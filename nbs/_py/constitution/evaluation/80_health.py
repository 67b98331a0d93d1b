# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Health of a preference model
#
# > Decide from held-out comparisons whether a preference model may be optimised, and how far.

# %%
#| default_exp constitution.evaluation.health

# %%
#| export
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np, pandas as pd

# %%
#| export
from moral_sc.constitution.evaluation.elo import bootstrap_counts
from moral_sc.constitution.preference import PreferenceModel, load_labels
from moral_sc.constitution.prompts import check_disjoint, load_pairs
from moral_sc.foundation.arguments import checked
from moral_sc.foundation.errors import ConfigError, DataError, short_repr
from moral_sc.foundation.statistics import Estimate, cluster_bootstrap, wilson
from moral_sc.foundation.tables import number_field, read_rows, text_field
from moral_sc.language.loading import load

# %%
#| hide
import json, tempfile
from fastcore.test import *
from scipy.stats import spearmanr
from moral_sc.language.reward_head import build_reward_model
from moral_sc.language.stub_models import random_model

tmp = Path(tempfile.mkdtemp())


# %% [markdown]
# A policy that is trained against a preference model finds its errors. The learned score then rises while
# the true one falls [@gao2023overoptimization]. The errors can be seen beforehand, in comparisons that the
# preference model was not fitted on and whose labels you trust: votes of people, or of a better labeller.
#
# ## Best of n
#
# The simplest optimiser samples $n$ answers and returns the one with the highest score. Its KL divergence
# from the sampling policy is known, whatever the score: $\log n-(n-1)/n$.

# %%
#| export
def best_of_n_kl(
    n, # Samples, 1 or more; need not be whole
):     # Nats
    "Return the KL divergence of best-of-n sampling from the policy that is sampled"
    n = np.asarray(n, float)
    return np.log(n)-(n-1)/n

def best_of_n_means(
    scores, # [prompt, answer]: what is optimised
    values, # [prompt, answer]: what is measured
    ns,     # Numbers of samples, drawn with replacement from the answers to a prompt
)->np.ndarray: # [n]
    "Return the exact mean value of best-of-n answers over all draws"
    from scipy.stats import rankdata
    scores = np.asarray(scores, float)
    high = rankdata(scores, 'max', axis=1)/scores.shape[1] # Equal scores share their chance
    low = (rankdata(scores, 'min', axis=1)-1)/scores.shape[1]
    share = [(high**n-low**n)/(high-low)/scores.shape[1] for n in ns]
    return np.array([(w*values).sum(1).mean() for w in share])


# %%
test_close(best_of_n_kl([1, 4, 16, 64]), [0, .6363, 1.8351, 3.1745], 1e-4)
rng = np.random.default_rng(0)
scores = rng.integers(0, 4, (2, 6)) # With ties
values = rng.normal(size=(2, 6))
drawn = rng.integers(0, 6, (2, 200_000, 3))
top = np.array([s[d] for s,d in zip(scores, drawn)])
best = (top+rng.random(top.shape)/2).argmax(2)
simulated = np.mean([v[d[range(len(b)), b]] for v,d,b in zip(values, drawn, best)])
test_close(best_of_n_means(scores, values, [3])[0], simulated, .01)
test_close(best_of_n_means(scores, values, [1])[0], values.mean())

# %% [markdown]
# ## Forecast
#
# How does the true score change when the learned score is optimised? Nothing has to be optimised to find out.
# Let $z$ be the normal quantile of an answer's score among the answers to its prompt, so that the
# policy's own answers have standard normal $z$. We assume that the true score, in nats of a vote's log-odds,
# is $\alpha z+\beta z^2$, and estimate both numbers from the votes:
#
# $$\operatorname{logit} P(a\succ b) = \alpha(z_a-z_b)+\beta(z_a^2-z_b^2).$$
#
# Best-of-n replaces the distribution of $z$ by that of the largest of $n$ normal numbers, so the gain is
#
# $$R(n) = \alpha\,E[z_{(n)}] + \beta\,(E[z_{(n)}^2]-1).$$
#
# $E[z_{(n)}]$ grows like the square root of the KL, so this is the law $d(\alpha-\beta d)$, $d=\sqrt{KL}$,
# that @gao2023overoptimization found to fit best-of-n, and its peak is where the true score begins to fall.

# %%
#| export
MAX_KL = 5. # Forecasts reach at least as far, nats

def _grid(kl):
    "Return KL divergences from 0 on, and numbers of samples that reach them"
    ns = np.exp(np.linspace(0, max(kl, MAX_KL)+1.1, 400))
    grid = np.linspace(0, max(kl, MAX_KL), 101)
    return grid, np.interp(grid, best_of_n_kl(ns), ns)

def normal_maximum(
    ns, # Sample sizes, 1 or more
)->np.ndarray: # [n, 2]: E[z], E[z^2] of the largest of n standard normal numbers
    "Return two moments of the maximum of normal numbers"
    from scipy.special import log_ndtr
    z = np.linspace(-9, 9, 6001)
    ns = np.asarray(ns, float)[:,None]
    density = np.exp(np.log(ns)-z**2/2+(ns-1)*log_ndtr(z))
    density /= density.sum(1, keepdims=True)
    return np.stack([density@z, density@z**2], 1)

def _vote_weights(
    D,     # [row, column] differences
    y,     # [row] probability that a is better
    drawn, # [draw, row] how often each row is drawn
    l2,    # [column] precision of the normal prior of each coefficient
)->np.ndarray: # [draw, column]
    "Fit logistic regressions without an intercept by Newton's method"
    w = np.zeros((len(drawn), D.shape[1]))
    for _ in range(25):
        q = 1/(1+np.exp(-np.clip(w@D.T, -30, 30)))
        slope = (drawn*(q-y))@D+w*l2
        H = np.einsum('dr,ri,rj->dij', drawn*q*(1-q), D, D, optimize=True)+np.diag(l2)
        w = w-np.linalg.solve(H, slope[...,None])[...,0]
    return w

def _cluster_draws(clusters, n, seed):
    "Return how often each row is drawn, [1+n, row]; first all rows once"
    code,names = pd.factorize(np.asarray(clusters))
    counts = bootstrap_counts(len(names), n, seed)
    return np.concatenate([np.ones((1, len(code))), counts[:,code]])

def _estimate(draws):
    "Return the first value with the interval of the others"
    return Estimate(float(draws[0]), *map(float, np.quantile(draws[1:], [.025, .975])))

# Precision of alpha and beta, 1/nats^2. Of 5 to 1,000 for beta, 100 gave the best rank correlation
# of forecast and actual peaks in 33 pilot runs
PRIOR = (5., 100.)

@dataclass
class Forecast:
    "The forecast true score along best-of-n sampling"
    curve:pd.DataFrame # kl, n, gain, low, high; nats of a vote's log-odds
    peak:Estimate      # KL with the highest true score, nats
    gain:Estimate      # Gain of true score at the KL that is intended

def forecast(
    z_a, z_b,      # Normal quantiles of the scores of two answers, [comparison]
    p,             # P(a is better)
    prompts,       # Clusters of the comparisons
    kl:float=3.,   # Intended, nats
    draws:int=200, # Of the bootstrap over prompts
    seed:int=0,
)->Forecast:
    "Forecast the true score under optimisation from votes on unoptimised answers"
    D = np.stack([z_a-z_b, z_a**2-z_b**2], 1)
    w = _vote_weights(D, np.asarray(p, float), _cluster_draws(prompts, draws, seed), PRIOR)
    grid,ns = _grid(kl)
    gains = w@(normal_maximum(ns)-[0, 1]).T # [draw, kl]
    low,high = np.quantile(gains[1:], [.025, .975], 0)
    curve = pd.DataFrame(dict(kl=grid, n=ns, gain=gains[0], low=low, high=high))
    at = [np.interp(kl, grid, g) for g in gains]
    return Forecast(curve, _estimate(grid[gains.argmax(1)]), _estimate(np.array(at)))


# %%
test_close(normal_maximum([1, 2, 3])[:,0], [0, np.pi**-.5, 1.5*np.pi**-.5], 1e-6)
test_close(normal_maximum([1, 2])[:,1], [1, 1], 1e-6)


# %% [markdown]
# If votes follow the assumed law, the forecast finds its peak. Here it lies where
# $\alpha\,E[z_{(n)}]+\beta\,E[z_{(n)}^2]$ is largest, for three values of $\beta$; the last one has no peak:

# %%
def simulate_votes(alpha, beta, n=4000, seed=0):
    rng = np.random.default_rng(seed)
    a,b = rng.normal(size=(2, n))
    odds = alpha*(a-b)+beta*(a**2-b**2)
    return a, b, (rng.random(n)<1/(1+np.exp(-odds)))*1.

def true_peak(alpha, beta):
    grid,ns = _grid(3)
    return grid[((normal_maximum(ns)-[0, 1])@[alpha, beta]).argmax()]

laws = [(.8, -.4), (.8, -.25), (.8, .1)]
found = {(a, b): forecast(*simulate_votes(a, b), range(4000), draws=60) for a,b in laws}
pd.DataFrame({k: dict(true=true_peak(*k), forecast=str(f.peak), gain=str(f.gain))
              for k,f in found.items()}).T

# %%
for k,f in found.items(): assert f.peak.low<=true_peak(*k)+.05 and true_peak(*k)<=f.peak.high

# %% [markdown]
# A normal prior keeps $\alpha$ and $\beta$ near zero if there are few votes. Over laws drawn from it, the interval of the gain from 400 votes
# covers the true one about as often as it should:

# %%
rng = np.random.default_rng(0)
laws = rng.normal(size=(100, 2))/np.sqrt(PRIOR)
moments = (normal_maximum([np.interp(3., *_grid(3.))])-[0, 1])[0]
gains = [forecast(*simulate_votes(*law, 400, s), range(400), draws=60).gain
         for s,law in enumerate(laws)]
covered = np.mean([e.low<=law@moments<=e.high for e,law in zip(gains, laws)])
assert .85<covered
covered

# %% [markdown]
# ## Probes
#
# Each probe has a limit, and a sentence for a value beyond it. For accuracy the middle between the value and the lower end of
# its interval has to exceed chance, which is about one standard error. The forecast gain and the spread of an ensemble are judged by their
# values. For the others the whole interval has to be beyond the limit.
#
# | Probe | What is measured | Needs |
# | --- | --- | --- |
# | accuracy | share of held-out votes on the side of the score | |
# | slope | calibration: logistic regression of votes on score differences, 1 if calibrated | |
# | length | rank correlation of score and length, less that of the votes and length, on the same pairs | |
# | position | share of pairs whose better answer depends on which one is scored first | |
# | flips | share of the labels it was fitted on that flip when the answers change places | `labels` |
# | spread | share of held-out pairs on which two preference models of an ensemble disagree | `ensemble` |
# | gain | forecast gain of true score at the intended KL | `answers`, better |
#
# The limits of accuracy, gain and slope follow from what these mean: chance, no gain, a tenth of the right slope. Those of
# flips, spread and length were chosen on 81 pilot runs with known truth, so that few of the runs whose true score rose
# lay beyond them (.07, .02 and .11). How often the verdict is right on other runs is measured on
# [a page of its own](../../papers/constitution/preference_health.ipynb). In the pilot length did not tell at all which runs
# go wrong; its limit only finds scorers of hardly anything else.

# %%
#| export
# Name -> bound, limit, part of the interval that counts, sentence
LIMITS = dict(
    accuracy=('above', .5, 'half', 'its choices are not shown to be better than chance on held-out '
              'comparisons: accuracy {e}'),
    slope=('above', .1, 'all', 'it is overconfident: votes follow its log-odds with a slope of {e} '
           'in place of 1'),
    length=('between', .7, 'all', 'it scores by length and the votes do not: the rank correlation '
            'with length differs by {e}'),
    position=('below', .1, 'all', 'its scores depend on the order of the answers: {e} of the '
              'choices change with it'),
    flips=('below', .8, 'all', 'it was fitted on labels that follow the order of the answers: {e} '
           'of them flip when the answers change places'),
    spread=('below', .3, 'value', 'preference models fitted to the same labels disagree on {e} of '
            'the pairs'),
    gain=('above', 0., 'value', 'at a KL of {kl:g} nats the true score is not expected to rise: '
          'forecast gain {e} nats'))

def _within(e, bound, limit, part):
    "Is an estimate on the right side of its limit?"
    low,high = ((e.low, e.high) if e.low==e.low and part!='value' else (e.value, e.value))
    if part=='half': return (e.value+low)/2>limit # About one standard error
    if bound=='between': return high>=-limit and low<=limit
    return high>limit if bound=='above' else low<=limit

def _number(x): return '' if x!=x else f'{x:.2f}'
def _text(e):
    if e.low!=e.low: return _number(e.value)
    return f'{_number(e.value)} ({_number(e.low)} to {_number(e.high)})'

@dataclass
class Health:
    "What the probes found, and the verdict"
    measures:dict      # Probe -> `Estimate`
    forecast:Forecast
    kl:float           # Intended, nats
    comparisons:int    # Held out

    @property
    def reasons(self)->list:
        "Sentences, one for each probe beyond its limit"
        return [LIMITS[k][-1].format(e=_text(e), kl=self.kl)
                for k,e in self.measures.items() if not self.passes(k)]

    def passes(self, name):
        "Is a probe within its limit?"
        return bool(_within(self.measures[name], *LIMITS[name][:3]))

    @property
    def ok(self)->bool: return not self.reasons

    @property
    def peak_kl(self)->float: return self.forecast.peak.value

    @property
    def missing(self)->list: return [k for k in LIMITS if k not in self.measures]

    @property
    def table(self)->pd.DataFrame: # One row per probe: value, low, high, bound, limit, ok
        "Tabulate the probes"
        rows = {k: dict(e._asdict(), bound=LIMITS[k][0], limit=LIMITS[k][1], ok=self.passes(k))
                for k,e in self.measures.items()}
        return pd.DataFrame.from_dict(rows, orient='index').rename_axis('probe')

    def to_dict(self)->dict:
        "Return verdict, reasons, probes and forecast as JSON values"
        number = lambda x: None if isinstance(x, float) and not math.isfinite(x) else x
        rows = self.table.reset_index().to_dict('records')
        return dict(ok=self.ok, reasons=self.reasons, not_measured=self.missing, kl=self.kl,
                    comparisons=self.comparisons, peak_kl=[*map(number, self.forecast.peak)],
                    probes=[{k: number(v) for k,v in r.items()} for r in rows])

    def __str__(self):
        peak = self.forecast.peak
        lines = [f'No objection to optimising it up to a KL of {self.kl:g} nats, from '
                 f'{self.comparisons} held-out comparisons.' if self.ok else
                 'Do not optimise against this:']
        lines += [f'- {r}.' for r in self.reasons]
        lines.append(f'The true score is forecast to be highest at a KL of {_text(peak)} nats'
                     f'{" or beyond" if peak.high>=self.forecast.curve.kl.max() else ""}.')
        if self.missing: lines.append(f'Not measured: {", ".join(self.missing)}.')
        return '\n'.join(lines)

    __repr__ = __str__


# %% [markdown]
# ## The verdict
#
# Votes should come from somebody whom you trust more than the labels: a forecast from votes with the same defects as the labels is
# [worth little](../../papers/constitution/preference_health.ipynb). Give `answers`, some samples of the policy to each held-out prompt, if
# you can. Without them an answer's score is placed among those of all held-out answers, which presumes that scores of
# different prompts can be compared.

# %%
#| export
def _as_score(pm, name='pm'):
    "Return a function of prompts and answers"
    if isinstance(pm, (str, Path)): return PreferenceModel.load(pm)
    if isinstance(pm, (tuple, list)) and len(pm)==2 and hasattr(pm[0], 'parameters'):
        return PreferenceModel(pm[0].eval(), load(pm))
    if hasattr(pm, 'parameters'):
        raise ConfigError(f'{name} is a model without its tokenizer; give (model, tokenizer).')
    if callable(pm): return pm
    raise ConfigError(f'{name} is {pm!r:.60}; give a preference model, its folder, (model, '
                      'tokenizer) or a function of prompts and answers.')

def _scores(score, prompts, answers):
    s = score(list(prompts), list(answers))
    if hasattr(s, 'detach'): s = s.detach().cpu().double()
    try: s = np.asarray(s, float)
    except (TypeError, ValueError):
        raise DataError(f'The preference model returned {short_repr(s)}; return one number for '
                        'each answer.') from None
    if s.shape!=(len(answers),) or not np.isfinite(s).all():
        raise DataError(f'The preference model returned {s.shape} scores for {len(answers)} '
                        'answers, or some that are not finite; return one number for each.')
    return s

def _pair_scores(score, rows, first='a'):
    "Return scores of a and b when the answers of a pair are given one after the other"
    order = 'ab' if first=='a' else 'ba'
    s = _scores(score, [r['prompt'] for r in rows for _ in 'ab'],
                [r[k] for r in rows for k in order]).reshape(-1, 2)
    return s if first=='a' else s[:,::-1]

def _length_excess(margin, length, p, prompts):
    "Return the rank correlation of margins with length less that of votes with length"
    from scipy.stats import rankdata
    pairs = margin, p-.5, length # Mirrored, so that nothing depends on which answer is called a
    columns = np.stack([rankdata(np.concatenate([x, -x])) for x in pairs], 1)
    prompts = [*prompts, *prompts]
    if not columns.std(0).all(): return Estimate(np.nan) # One of them is constant
    def excess(v):
        c = np.corrcoef(v.T) if v.std(0).all() else np.full((3, 3), np.nan)
        return c[0,2]-c[1,2]
    return cluster_bootstrap(columns, prompts, excess, n=400)

def _slope(margin, p, drawn):
    "Return the slope of votes on score differences"
    spread = margin.std() or 1.
    return _estimate(_vote_weights(margin[:,None]/spread, p, drawn, [.01])[:,0]/spread)

def _accuracy(margin, p, prompts):
    decided = p!=.5
    if not decided.any():
        raise DataError('Every held-out label is one half; give votes that decide.')
    correct = (1+np.sign(margin)*np.sign(p-.5))/2
    return cluster_bootstrap(correct[decided], np.asarray(prompts)[decided])

def label_flips(
    labels:list, # Rows with p_ab and p_ba, as `label` returns them
)->Estimate:
    "Return the share of labels that flip when the answers change places"
    both = [[number_field(r, k, f'labels: row {i}', 0, 1) for k in ('p_ab','p_ba')]
            for i,r in enumerate(labels, 1) if r.get('p_ab') is not None
            and r.get('p_ba') is not None]
    if not both:
        raise DataError('labels have no p_ab and p_ba; label the pairs in both orders (swap).')
    return wilson(sum((ab>.5)!=(ba<.5) for ab,ba in both), len(both))

def _spread(margins):
    "Return the share of pairs on which two of several models disagree"
    signs = np.sign(margins)
    return float(np.mean([(a!=b).mean() for i,a in enumerate(signs) for b in signs[:i]]))

def normal_quantiles(
    scores,    # Scores to place
    reference, # Scores among which they are placed
)->np.ndarray: # Standard normal for scores drawn like the reference
    "Return the normal quantiles of scores among reference scores"
    from scipy.stats import norm
    ref = np.sort(np.asarray(reference, float))
    rank = (np.searchsorted(ref, scores, 'left')+np.searchsorted(ref, scores, 'right'))/2
    return norm.ppf((rank+.5)/(len(ref)+1))

def _load_answers(answers, rows):
    "Return prompt -> answers"
    if isinstance(answers, dict):
        by_prompt = answers
        for k,v in answers.items():
            if not isinstance(v, (list, tuple)) or not all(isinstance(a, str) for a in v):
                raise DataError(f'answers[{k!r:.60}] is {short_repr(v)}; give a list of texts.')
    else:
        by_prompt = {}
        for i,r in enumerate(read_rows(answers, 'answers'), 1):
            by_prompt.setdefault(text_field(r, 'prompt', f'answers: row {i}'), []).append(
                text_field(r, 'answer', f'answers: row {i}'))
    lacking = {r['prompt'] for r in rows}-{k for k,v in by_prompt.items() if v}
    if lacking:
        raise DataError(f'{len(lacking)} held-out prompts have no answers, the first is '
                        f'{min(lacking)[:60]!r}; sample answers to the held-out prompts.')
    return by_prompt

def _quantiles(score, rows, pairs, answers):
    "Return the normal quantiles of both answers of each comparison, [comparison, 2]"
    if answers is None: return normal_quantiles(pairs, pairs.ravel())
    by_prompt = _load_answers(answers, rows)
    names = sorted({r['prompt'] for r in rows})
    pool = _scores(score, [p for p in names for _ in by_prompt[p]],
                   [a for p in names for a in by_prompt[p]])
    ends = np.cumsum([len(by_prompt[p]) for p in names])[:-1]
    reference = dict(zip(names, np.split(pool, ends)))
    return np.array([normal_quantiles(s, reference[r['prompt']]) for r,s in zip(rows, pairs)])

@checked
def health(
    pm,            # `PreferenceModel`, folder, (model, tokenizer), or (prompts, answers) -> scores
    held_out,      # Comparisons that it was not fitted on, with labels you trust; rows or a file
    *,
    labels=None,   # The labels it was fitted on, with p_ab and p_ba, as `label` returns them
    ensemble=(),   # Further preference models of the same labels, from other seeds
    answers=None,  # Prompt -> answers of the policy, or rows of prompt and answer
    kl:float=3.,   # Intended KL from the initial policy, nats, at most 30
    draws:int=200, # Of bootstraps over prompts
    seed:int=0,
)->Health:
    "Probe a preference model and decide whether to optimise against it"
    if not 0<kl<=30 or draws<2:
        raise ConfigError(f'kl is {kl}, draws is {draws}; give kl above 0, at most 30, and draws '
                          'of 2 or more.')
    if not isinstance(ensemble, (list, tuple)):
        raise ConfigError(f'ensemble is {short_repr(ensemble)}; give a list of preference models.')
    score = _as_score(pm)
    rows = load_labels(held_out, 'held_out')
    if any(r.get('weight', 1)!=1 for r in rows):
        raise DataError('held_out has weights, which health does not use; leave them out.')
    prompts = [r['prompt'] for r in rows]
    if len(set(prompts))<2: raise DataError('held_out has one prompt; give several.')
    if labels is not None:
        labels = load_pairs(labels, 'labels')
        check_disjoint(labels=labels, held_out=rows)
    p = np.array([r['p'] for r in rows])
    pairs = _pair_scores(score, rows)
    margin = pairs[:,0]-pairs[:,1]
    swapped = _pair_scores(score, rows, 'b')
    length = np.array([len(r['a'].split())-len(r['b'].split()) for r in rows], float)
    other = swapped[:,0]-swapped[:,1]
    flipped = (np.sign(margin)!=np.sign(other))&(abs(margin-other)>1e-4*margin.std())
    z = _quantiles(score, rows, pairs, answers)
    future = forecast(z[:,0], z[:,1], p, prompts, kl, draws, seed)
    measures = dict(
        accuracy=_accuracy(margin, p, prompts),
        slope=_slope(margin, p, _cluster_draws(prompts, draws, seed)),
        length=_length_excess(margin, length, p, prompts),
        position=cluster_bootstrap(flipped.astype(float), prompts), gain=future.gain)
    if labels is not None: measures['flips'] = label_flips(labels)
    if len(ensemble):
        others = [_pair_scores(_as_score(m, 'ensemble'), rows) for m in ensemble]
        measures['spread'] = Estimate(_spread([margin, *(s[:,0]-s[:,1] for s in others)]))
    found = {k: measures[k] for k in LIMITS if k in measures and not np.isnan(measures[k].value)}
    return Health(found, future, float(kl), len(rows))


# %% [markdown]
# ## Scorers with known defects
#
# In this small world the truth is the number of *good* words less that of *bad* ones, and other words count
# nothing. Votes follow the difference. Each scorer has one defect, and fails for that reason:

# %%
words = ['good', 'bad', *'well so then it is far and dark in here'.split()]
rng = np.random.default_rng(0)
def write(): return ' '.join(rng.choice(words, rng.integers(3, 15)))
def count(word): return lambda prompts, answers: np.array([a.split().count(word) for a in answers])
def truth(prompts, answers):
    return count('good')(prompts, answers)-count('bad')(prompts, answers)*1.

def vote(rows, score=truth, seed=0):
    prompts,a,b = ([r[k] for r in rows] for k in ('prompt', 'a', 'b'))
    p = 1/(1+np.exp(score(prompts, b)-score(prompts, a)))
    draws = np.random.default_rng(seed).random(len(rows))
    return [r|dict(p=float(u<x)) for r,x,u in zip(rows, p, draws)]

pairs = [dict(prompt=f'is it {i%80} ?', a=write(), b=write()) for i in range(800)]
held_out = vote(pairs)

def noise(prompts, answers):
    return np.array([np.random.default_rng([*a.encode()]).normal() for a in answers])
def length(prompts, answers): return np.array([len(a.split()) for a in answers])/4
def first_is_better(prompts, answers):
    return truth(prompts, answers)+4*(np.arange(len(answers))%2==0)
scorers = dict(perfect=truth, length=length, random=noise, order=first_is_better,
               overconfident=lambda p, a: 15*truth(p, a))
found = {k: health(s, held_out) for k,s in scorers.items()}
pd.DataFrame({k: {m: _text(e) for m,e in h.measures.items()} for k,h in found.items()}).T

# %%
failed = {k: {m for m in h.measures if not h.passes(m)} for k,h in found.items()}
test_eq(failed['perfect'], set())
test_eq([k for k,f in failed.items() if 'position' in f], ['order'])
test_eq(failed['overconfident'], {'slope'})
assert {'length', 'accuracy'}<=failed['length']<={'length', 'slope', 'accuracy', 'gain'}
assert {'accuracy'}<=failed['random']<={'accuracy', 'slope', 'gain'}
print(found['perfect'], found['length'], sep='\n\n')

# %% [markdown]
# The accuracy of the perfect scorer is what votes allow, not 1. Its calibration slope is 1, and length correlates with its
# scores as with the votes.

# %%
h = found['perfect']
prompts,a,b = ([r[k] for r in held_out] for k in ('prompt', 'a', 'b'))
margin = truth(prompts, a)-truth(prompts, b)
best = np.mean(1/(1+np.exp(-abs(margin))))
test_close(h.measures['accuracy'].value, best, .03)
assert h.measures['slope'].low<1<h.measures['slope'].high
votes = [r['p'] for r in held_out]
longer = length(prompts, a)-length(prompts, b)
test_close(found['length'].measures['length'].value,
           1-spearmanr([*votes, *(1-v for v in votes)], [*longer, *-longer])[0], 1e-9)
best

# %% [markdown]
# Nothing depends on which answer of a pair is called `a`, so rows of `chosen` and `rejected` answers give the same verdict.

# %%
chosen = [dict(prompt=r['prompt'], chosen=r['a' if r['p'] else 'b'],
               rejected=r['b' if r['p'] else 'a']) for r in held_out]
again = health(length, chosen)
for k,e in again.measures.items(): test_close(e, found['length'].measures[k], 1e-6)


# %% [markdown]
# This score counts good words, of which a few are good and many are bad. On ordinary pairs it is right more often
# than not; optimised far enough, it is not:

# %%
def few_are_good(prompts, answers):
    n = count('good')(prompts, answers)
    return 2.*n-.7*n**2

h = health(count('good'), vote(pairs, few_are_good), answers={
    f'is it {i} ?': [write() for _ in range(100)] for i in range(80)})
pool = np.array([[count('good')([''], [write()])[0] for _ in range(400)] for _ in range(20)])
ns = np.interp([0, h.peak_kl, 4.], best_of_n_kl(np.arange(1, 400)), np.arange(1, 400))
actual = best_of_n_means(pool, 2.*pool-.7*pool**2, ns)
assert actual[1]>actual[0]>actual[2] and not h.passes('gain')
h

# %% [markdown]
# Labels that follow the order of the answers, and an ensemble that disagrees, are reasons too.

# %%
ordered = [dict(prompt=f'was it {i} ?', a='so', b='no', p=.5, p_ab=.9, p_ba=.8 if i%10 else .1)
           for i in range(800)]
h = health(truth, held_out, labels=ordered, ensemble=[noise, lambda p, a: noise(p, a[::-1])[::-1]])
test_eq([m for m in h.measures if not h.passes(m)], ['flips', 'spread'])
test_eq((h.measures['flips'].value, h.missing), (.9, []))
json.dumps(h.to_dict())[:200]

# %% [markdown]
# A model, its folder and its parts give the same verdict. Rows, frames and files are read as in `fit_preference`.

# %%
lm = random_model()
pm = PreferenceModel(build_reward_model(lm), lm)
few = held_out[:24]
pd.DataFrame(few).to_csv(tmp/'held.csv', index=False)
kinds = [health(pm, few, draws=20), health(pm.save(tmp/'pm'), tmp/'held.csv', draws=20),
         health((pm.model, lm.tokenizer), pd.DataFrame(few), draws=20)]
for h in kinds[1:]: pd.testing.assert_frame_equal(h.table, kinds[0].table, atol=1e-4)
for bad,message in [((pm.model, few), 'without its tokenizer'), ((7, few), 'pm is 7')]:
    with expect_fail(ConfigError, contains=message): health(*bad)
with expect_fail(ConfigError, contains='of 2 or more'): health(truth, few, draws=1)
with expect_fail(ConfigError, contains='at most 30'): health(truth, few, kl=50.)
with expect_fail(ConfigError, contains='give a list of pref'): health(truth, few, ensemble='runs/a')
with expect_fail(DataError, contains='one prompt'): health(truth, few[:1])
weighted = [r|dict(weight=2.) for r in few]
with expect_fail(DataError, contains='has weights'): health(truth, weighted)
with expect_fail(DataError, contains='share the prompt'): health(truth, few, labels=few)
unordered = [dict(prompt='was it ?', a='so', b='no', p=1.)]
with expect_fail(DataError, contains='no p_ab and p_ba'): health(truth, few, labels=unordered)
with expect_fail(DataError, contains='have no answers'): health(truth, few, answers={'x': ['y']})
with expect_fail(DataError, contains='are not finite'): health(lambda p, a: [np.nan]*len(a), few)
with expect_fail(DataError, contains='one number for'): health(lambda p, a: [None, 'x'], few)
for wrong in ('one text', [], [1]):
    with expect_fail(DataError): health(truth, few, answers={r['prompt']:wrong for r in few})
for p_ab,p_ba,flips in ((.9, .1, 0), (.9, .9, 1), (.5, .5, 0), ('.9', '.8', 1)):
    test_eq(label_flips([dict(p_ab=p_ab, p_ba=p_ba)]).value, flips)
for wrong in (float('nan'), 7, 'yes'):
    with expect_fail(DataError, contains='p_ab'): label_flips([dict(p_ab=wrong, p_ba=.2)])
with expect_fail(DataError, contains='is one half'): health(truth, [r|dict(p=.5) for r in few])
