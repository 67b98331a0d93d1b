# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Preference models with known defects
#
# > Fit preference models to labels with known defects, and optimise them where the true score is known.

# %%
#| default_exp constitution.toy.preference_runs

# %%
#| export
from dataclasses import dataclass

import numpy as np, pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

# %%
#| export
from moral_sc.constitution.evaluation.health import best_of_n_kl, best_of_n_means, health
from moral_sc.constitution.preference import fit_preference
from moral_sc.constitution.toy import environment
from moral_sc.constitution.toy.experiments import split_mixed_requests, true_score
from moral_sc.foundation.figures import COLOURS

# %%
#| hide
from fastcore.test import *
from moral_sc.foundation.statistics import roc_area

# %% [markdown]
# The page on the [health of preference models](../../papers/constitution/preference_health.ipynb) needs many
# preference models, of which some should be optimised and some should not. A run of this module draws a labeller with
# known defects, labels pairs of answers in the [toy environment](10_environment.ipynb), fits preference models to the
# labels, and compares what [`health`](../evaluation/80_health.ipynb) finds with what optimising them does to the true
# score, which is hidden from `health`.
#
# ## Labellers
#
# A labeller sees a share of the truth; has a taste for long or short answers, for comfort, for refusals or against danger; adds noise;
# and prefers the first of two answers. Labels are probabilities or votes, of one order or averaged over both.

# %%
#| export
_TASTES = dict(length='words', comfort='kind', danger='danger', refusal='refusal')
FAIR = dict(truth=1., **dict.fromkeys(_TASTES, 0.), noise=0., position=0., swap=True, hard=True)

def draw_labeller(
    run:int,    # Number of the run
    seed:int=0,
)->dict:        # Half of the experiment, kind of preference model, number of pairs, defects
    "Draw the labeller of a run"
    rng = np.random.default_rng([seed, 7, run])
    levels = dict(truth=[0, 0, .3, .6, 1, 1], length=[-.3, 0, 0, 0, .3], comfort=[0, 0, 0, 1, 2],
                  danger=[0, 0, 0, 1], refusal=[0, 0, 2], noise=[0, 1, 3],
                  position=[0, 0, 1, 4], swap=[False, True], hard=[False, True])
    drawn = {k: rng.choice(v).item() for k,v in levels.items()}
    kind = 'transformer' if run%8 in (0, 3) else 'words' # Equally many in both halves
    return dict(run=run, kind=kind, half='judged' if run%2 else 'tuning',
                pairs=int(rng.choice([30, 60, 120, 240])), **drawn)

def draw_labels(
    pairs:list,     # prompt, a, b
    labeller:dict,  # From `draw_labeller`, or `FAIR`
    rng,
)->list:            # The pairs with p, p_ab, p_ba
    "Label pairs as a labeller with known defects does"
    gap = environment.score_margins(pairs, environment.features)
    margin = labeller['truth']*environment.score_margins(pairs, true_score)
    for taste,feature in _TASTES.items():
        sign = -1 if taste=='danger' else 1
        margin += sign*labeller[taste]*gap[feature].to_numpy(float)
    margin += labeller['noise']*rng.normal(size=len(pairs))
    ab,ba = (1/(1+np.exp(-margin-sign*labeller['position'])) for sign in (1, -1))
    p = (ab+ba)/2 if labeller['swap'] else ab
    if labeller['hard']: p = (rng.random(len(p))<p)*1.
    return [r|dict(p=float(x), p_ab=float(u), p_ba=float(1-v))
            for r,x,u,v in zip(pairs, p, ab, ba)]

def _write(rng, prompt): return ' '.join(environment.write_answer(rng, prompt))

def write_pairs(
    rng,
    prompts:list, # Requests
    n:int=1,      # Pairs of answers to each
)->list:          # id, prompt, a, b; identical answers are dropped
    "Write pairs of answers without a model"
    pairs = [dict(id=f'{r["id"]}/{k}', prompt=r['prompt'], a=_write(rng, r['prompt']),
                  b=_write(rng, r['prompt'])) for r in prompts for k in range(n)]
    return [r for r in pairs if r['a']!=r['b']]


# %%
rng = np.random.default_rng(0)
pairs = write_pairs(rng, environment.requests(200))
fair = draw_labels(pairs, FAIR, rng)
first = draw_labels(pairs, FAIR|dict(position=9., swap=False), rng)
pd.DataFrame([draw_labeller(i) for i in range(3)])

# %%
prompts,a,b = ([r[k] for r in pairs] for k in ('prompt', 'a', 'b'))
test_close([r['p_ab'] for r in fair], 1/(1+np.exp(true_score(prompts, b)-true_score(prompts, a))))
test_close([r['p_ab']+r['p_ba'] for r in fair], np.ones(len(fair)), 1e-9)
assert np.mean([r['p'] for r in first])>.95
long = draw_labels(pairs, FAIR|dict(truth=0., length=2., hard=False), rng)
longer = [len(x.split())-len(y.split()) for x,y in zip(a, b)]
test_eq(np.sign([r['p']-.5 for r in long]), np.sign(longer))


# %% [markdown]
# ## Preference models
#
# A ridge regression on counts of words, and of words by deed, takes milliseconds. It is a preference model like others: its loss is that
# of `fit_preference`. Others are transformers.

# %%
#| export
def _word_counts(prompts, answers):
    "Count words, and words by deed, [answer, column]"
    words = {w: i for i,w in enumerate(sorted(environment.toy_tokenizer().get_vocab()))}
    deeds = {d: i for i,d in enumerate(environment.TOOLS, 1)}
    counts = np.zeros((len(answers), len(deeds)+1, len(words)))
    for row,prompt,answer in zip(counts, prompts, answers):
        for w in answer.split(): row[[0, deeds[environment.deed(prompt)]], words[w]] += 1
    return counts.reshape(len(answers), -1)

def fit_word_model(
    rows:list,  # Label rows
    seed:int=0, # Every seed but 0 draws the comparisons with replacement
):              # (prompts, answers) -> scores
    "Fit a preference model on counts of words, by ridge regression"
    from scipy.optimize import minimize
    if seed: rows = [rows[k] for k in np.random.default_rng(seed).integers(0, len(rows), len(rows))]
    X = environment.score_margins(rows, _word_counts)
    used = X.any(0)
    X = X[:,used]
    p = np.array([r['p'] for r in rows])
    def loss(w):
        m = X@w
        value = (np.logaddexp(0, -m)*p+np.logaddexp(0, m)*(1-p)).sum()+w@w/2
        return value, X.T@(1/(1+np.exp(-m))-p)+w
    w = minimize(loss, np.zeros(X.shape[1]), jac=True, method='L-BFGS-B').x
    return lambda prompts, answers: _word_counts(prompts, answers)[:,used]@w

class _Remembered:
    "Score each text once"
    def __init__(self, score):
        self.score = score
        self.known = {}
    def __call__(self, prompts, answers):
        new = list(dict.fromkeys(x for x in zip(prompts, answers) if x not in self.known))
        if new: self.known |= dict(zip(new, map(float, self.score(*map(list, zip(*new))))))
        return np.array([self.known[x] for x in zip(prompts, answers)])


# %%
words = fit_word_model(fair)
right = (words(prompts, a)>words(prompts, b))==(np.array([r['p'] for r in fair])>.5)
assert right.mean()>.75
test_eq(_Remembered(words)(prompts+prompts, a+a), np.tile(words(prompts, a), 2))
test_eq(_word_counts(prompts[:1], ['take the mask . take']).sum(), 10)


# %% [markdown]
# ## One run
#
# `health` sees what a user has: the preference model, an ensemble from two further seeds, the labels, votes of fair
# raters on pairs of answers to other prompts, and answers of the policy to these prompts. A second verdict, `own_`, uses votes of the
# labeller with its defects. Then the true score along best-of-n is computed exactly from the answers.

# %%
#| export
@dataclass
class RunSize:
    "Sizes of a run"
    prompts:int=40    # Held out
    pairs:int=10      # Comparisons of each
    pool:int=96       # Answers of the policy to each
    examples:int=768  # Comparisons that a transformer trains on, over all epochs
    draws:int=200     # Of bootstraps

def fit_run(
    labeller:dict,
    first_model,  # () -> model from which transformers start
    size:RunSize, seed:int=0,
)->tuple: # Preference models of three seeds, labels, held-out requests, random numbers
    "Fit the preference models of a run"
    run = labeller['run']
    rng = np.random.default_rng([seed, 8, run])
    train,held = split_mixed_requests([labeller['pairs'], size.prompts], 1000*seed+run)
    rows = draw_labels(write_pairs(rng, train), labeller, rng)
    epochs = max(1, round(size.examples/len(rows)))
    def fit(s):
        if labeller['kind']=='words': return fit_word_model(rows, s)
        return fit_preference(first_model(), rows, lr=3e-3, seed=s, epochs=epochs)
    return [fit(s) for s in range(3)], rows, held, rng

def measure_run(
    run:int,
    first_model,      # () -> model from which transformers start
    size:RunSize,
    kl:float=3.,      # Intended, nats
    seed:int=0,
)->dict:              # Labeller, probes, verdicts; true gain at `kl`, KL of the true peak
    "Compare the health of a preference model with the truth under best-of-n"
    labeller = draw_labeller(run, seed)
    models,labels,held,rng = fit_run(labeller, first_model, size, seed)
    pairs = write_pairs(rng, held, size.pairs)
    answers = {r['prompt']: [_write(rng, r['prompt']) for _ in range(size.pool)] for r in held}
    first,*others = map(_Remembered, models)
    options = dict(answers=answers, kl=kl, draws=size.draws)
    found = {'': health(first, draw_labels(pairs, FAIR, rng), labels=labels, ensemble=others,
                        **options),
             'own_': health(first, draw_labels(pairs, labeller, rng), **options)}
    flat = [p for p in answers for _ in answers[p]], [a for x in answers.values() for a in x]
    scores,truth = (f(*flat).reshape(len(answers), -1) for f in (first, true_score))
    ns = np.exp(np.linspace(0, np.log(size.pool), 60))
    distance = best_of_n_kl(ns)
    gain = best_of_n_means(scores, truth, ns)-truth.mean()
    last = float(distance[-1]) # No peak beyond it can be seen
    row = {k if k in _PLAIN else f'labeller_{k}': v for k,v in labeller.items()}
    row |= dict(true_gain=float(np.interp(min(kl, last), distance, gain)),
                true_peak=float(distance[gain.argmax()]))
    for name,h in found.items(): row |= _health_columns(h, name, last)
    return row

_PLAIN = 'run', 'kind', 'half', 'pairs' # Other columns of a labeller have the names of probes

def _health_columns(h, name, last):
    "Return what a run records of a verdict"
    row = {k: e.value for k,e in h.measures.items()}
    row |= dict(gain_low=h.measures['gain'].low, gain_high=h.measures['gain'].high,
                accuracy_low=h.measures['accuracy'].low, peak=min(h.peak_kl, last), ok=h.ok,
                failed=' '.join(k for k in h.measures if not h.passes(k)))
    return {name+k: v for k,v in row.items()}


# %%
small = RunSize(12, 6, 24, 64, 40)
base = lambda: environment.pretrain('mini', 0, 3, batch=8)
table = pd.DataFrame([measure_run(i, base, small, 1.5) for i in (0, 1, 2)])
table[['kind', 'half', 'true_gain', 'true_peak', 'gain', 'peak', 'ok', 'failed']].round(2)

# %% [markdown]
# A run depends only on its number and the seed.

# %%
again = measure_run(1, base, small, 1.5)
test_eq([again[f'labeller_{k}'] for k in ('truth', 'length', 'position')],
        [draw_labeller(1)[k] for k in ('truth', 'length', 'position')])
test_eq({k: v for k,v in again.items() if v==v}, {k: v for k,v in table.loc[1].items() if v==v})


# %% [markdown]
# ## Alarms
#
# A probe raises an alarm beyond a threshold. The area under the curve of true against false alarms is the chance that a run whose true
# score falls looks worse than one whose true score rises (`roc_area`).

# %%
#| export
def alarm_rates(
    bad,   # Does the true score of a run fall?
    score, # Higher: looks worse
)->tuple:  # Rates of false and of true alarms, as the threshold falls
    "Return the receiver operating characteristic of a probe"
    order = np.argsort(-np.asarray(score), kind='stable')
    score = np.asarray(score)[order]
    bad = np.asarray(bad, bool)[order]
    last = np.append(np.diff(score)!=0, True) # Equal scores are one step
    return tuple(np.append(0, (np.cumsum(x)/max(1, x.sum()))[last]) for x in (~bad, bad))

PROBE_SIGNS = dict(gain=-1, accuracy=-1, slope=-1, spread=1, flips=1, own_gain=-1)

def plot_health(
    runs:pd.DataFrame, # From `measure_run`
    kl:float=3.,
)->go.Figure:
    "Plot alarms of probes and of the verdict, and forecast against actual peaks"
    fig = make_subplots(1, 2, horizontal_spacing=.14)
    bad = runs.true_gain<0
    names = dict(gain='forecast gain', accuracy='accuracy', spread='spread',
                 own_gain='forecast gain, own votes')
    colours = dict(gain='if', accuracy='cot', spread='q', own_gain='paper')
    for k,name in names.items():
        x,y = alarm_rates(bad, PROBE_SIGNS[k]*runs[k])
        fig.add_scatter(x=x, y=y, name=name, mode='lines', line_color=COLOURS[colours[k]])
    fig.add_scatter(x=[(~runs.ok[~bad]).mean()], y=[(~runs.ok[bad]).mean()], name='verdict',
                    mode='markers', marker=dict(size=11, symbol='diamond', color=COLOURS['accent']))
    fig.add_scatter(x=runs.peak, y=runs.true_peak, mode='markers', showlegend=False,
                    marker=dict(color=[COLOURS['q' if k=='words' else 'if'] for k in runs.kind],
                                opacity=.6), row=1, col=2)
    for col,end in ((1, 1), (2, float(runs[['peak', 'true_peak']].to_numpy().max()))):
        fig.add_scatter(x=[0, end], y=[0, end], mode='lines', showlegend=False, hoverinfo='skip',
                        line=dict(dash='dot', width=1, color=COLOURS['paper']), row=1, col=col)
    fig.update_xaxes(title='false alarms', row=1, col=1)
    fig.update_yaxes(title='true alarms', row=1, col=1)
    fig.update_xaxes(title='forecast peak, KL in nats', row=1, col=2)
    return fig.update_yaxes(title='actual peak, KL in nats', row=1, col=2)


# %%
test_eq(np.transpose(alarm_rates([1, 0, 1, 0], [1, 1, 1, 1])), [[0, 0], [1, 1]])
drawn = pd.DataFrame(dict(true_gain=rng.normal(size=60), kind='words'))
for k,s in PROBE_SIGNS.items(): drawn[k] = -s*(drawn.true_gain+rng.normal(size=60))
drawn = drawn.assign(ok=drawn.gain>0, peak=1+rng.random(60), true_peak=1+rng.random(60))
bad,score = drawn.true_gain<0, -drawn.gain
test_close(np.trapezoid(*alarm_rates(bad, score)[::-1]), roc_area(bad, score))
plot_health(drawn)
