# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Plots
#
# > Figures of revisions, labels, ratings, training curves and harmfulness.

# %%
#| default_exp constitution.plots

# %%
#| export
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import hex_to_rgb
from plotly.subplots import make_subplots

# %%
#| export
from moral_sc.constitution.evaluation.calibration import reliability
from moral_sc.constitution.evaluation.refusals import group_means
from moral_sc.foundation.figures import COLOURS
from moral_sc.foundation.tables import check_columns

# %%
#| hide
from fastcore.test import *

from moral_sc.constitution.evaluation.elo import play_matches, score_judge, tournament
from moral_sc.constitution.evaluation.pareto import pareto_frontier
from moral_sc.foundation.errors import DataError
from moral_sc.foundation.statistics import Estimate, cluster_bootstrap, wilson

rng = np.random.default_rng(0)


# %% [markdown]
# The pages on Constitutional AI [@bai2022constitutional] share the figures below. Each function takes
# a table or `Estimate`s and returns a plotly figure, so a page can change titles and layout. A kind
# of model or a way of revising has the same colour in every figure. All examples are made-up numbers.

# %%
#| export
def _error_bars(values, lows, highs, **kw):
    "Make error bars from values and the ends of their intervals"
    values,lows,highs = (np.asarray(x, float) for x in (values, lows, highs))
    return dict(type='data', array=highs-values, arrayminus=values-lows, symmetric=False,
                width=4, thickness=1.2, **kw)

def _estimate_bars(estimates): # Error bars from a list of `Estimate`s
    return _error_bars(*([e[i] for e in estimates] for i in range(3)))

def _values(estimates): return [e[0] for e in estimates]

def _dotted_line(fig, x, y):
    fig.add_scatter(x=x, y=y, mode='lines', showlegend=False, hoverinfo='skip',
                    line=dict(dash='dot', width=1, color=COLOURS['paper']))


# %% [markdown]
# ## Revisions, round by round
#
# These two figures take the table that `measure_chains` returns, with a column `condition`. The
# authors' chains are grey, as everything that a paper reports. A revision after a critique has
# the colour of a chain of thought, and a direct revision that of a plain question.

# %%
#| export
CONDITION_COLOURS = dict(authors='paper', critique='cot', direct='q')

def plot_rounds(
    table:pd.DataFrame,         # From `measure_chains`, with a column `condition`
    column:str='distance',      # Measure to average in each round
    title:str='share of words changed',
)->go.Figure:
    "Plot a measure against the round, one line per condition"
    check_columns(table, ['condition'], 'the table of measure_chains with a column condition')
    fig = go.Figure()
    for name,g in table.groupby('condition', sort=False):
        e = group_means(g, [column], 'round')[column]
        fig.add_scatter(x=list(e.index), y=_values(e), error_y=_estimate_bars(e), name=name,
                        mode='lines+markers',
                        line_color=COLOURS[CONDITION_COLOURS.get(name, 'accent')])
    fig.update_xaxes(title='revision', dtick=1)
    return fig.update_yaxes(title=title, rangemode='tozero')


# %%
#| hide
chains = pd.DataFrame([dict(id=i, round=k, condition=c, distance=rng.beta(6, 4*k+3),
                            overlap=rng.beta(4, 2+m),
                            overlap_critique=rng.beta(2, 6) if m!=2 else np.nan)
                       for m,c in enumerate(['authors', 'critique', 'direct'])
                       for i in range(20) for k in (1, 2, 3)])

# %%
plot_rounds(chains)

# %%
test_eq([t.name for t in plot_rounds(chains).data], ['authors', 'critique', 'direct'])
y = plot_rounds(chains).data[1].y
assert y[0]>y[1]>y[2]


# %% [markdown]
# ## Overlap with answer and critique

# %%
#| export
def plot_overlap(
    table:pd.DataFrame, # From `measure_chains`, with a column `condition`
)->go.Figure:
    "Plot the overlap of revisions with the answer and with the critique, per condition"
    means = group_means(table, ['overlap', 'overlap_critique'])
    fig = go.Figure()
    for c,name,symbol,colour in (('overlap', 'the answer', 'circle', 'q'),
                                 ('overlap_critique', 'the critique', 'x', 'cot')):
        e = means[c][[bool(v) for v in means[c]]]
        fig.add_scatter(x=_values(e), y=list(e.index), error_x=_estimate_bars(e),
                        mode='markers', name=f'with {name}',
                        marker=dict(symbol=symbol, size=11, color=COLOURS[colour]))
    fig.update_xaxes(title='words in common, in order (1: a copy)', range=[0, 1],
                     showgrid=True)
    return fig.update_yaxes(autorange='reversed')


# %%
plot_overlap(chains)

# %%
test_eq(list(plot_overlap(chains).data[1].y), ['authors', 'critique'])


# %% [markdown]
# ## Means in panels
#
# Figures 5 to 7 of the paper plot means against the number of revisions, the number of principles,
# or the size of the model. `plot_means` draws them from one long table, one row per point. Each
# panel has its own axis, because scores of different judges have no common unit.

# %%
#| export
def plot_means(
    table:pd.DataFrame, # panel, name, x, value, low, high
    x:str='revisions',  # Title of the axis of what was varied
    y:str='',           # Title of the first panel's values
    join:bool=True,     # False: points only, where `x` has no order
)->go.Figure:
    "Plot means with intervals, one panel per measure and one line per name"
    columns = ['panel', 'name', 'x', 'value', 'low', 'high']
    check_columns(table, columns, f'rows of {", ".join(columns)}')
    panels = [*table.panel.unique()]
    names = [*table.name.unique()]
    fig = make_subplots(1, len(panels), subplot_titles=panels, horizontal_spacing=.11)
    for (panel,name),d in table.groupby(['panel', 'name'], sort=False):
        colour = (COLOURS[CONDITION_COLOURS[name]] if name in CONDITION_COLOURS else
                  COLOURS['sequence'][names.index(name)])
        first = panel==table[table.name==name].panel.iloc[0]
        fig.add_scatter(x=d.x, y=d.value, error_y=_error_bars(d.value, d.low, d.high),
                        name=name, mode='lines+markers', line_color=colour, legendgroup=name,
                        showlegend=first and len(names)>1, row=1, col=panels.index(panel)+1)
    if not join: fig.update_traces(mode='markers', marker_size=8)
    fig.update_annotations(font_size=12)
    fig.update_xaxes(title=x, type='category' if table.x.dtype==object else None)
    return fig.update_yaxes(title=y, col=1).update_layout(
        margin_t=70 if len(names)>1 else 40, legend_y=1.1)


# %%
rows = [dict(panel=p, name=n, x=k, value=s*(1-.6**k), low=s*(1-.6**k)-.1,
             high=s*(1-.6**k)+.1) for p,n,s in [('judge', 'harmless', 1.), ('judge', 'help', -.5),
             ('truth', 'harmless', 2.)] for k in range(5)]
fig = plot_means(pd.DataFrame(rows), y='score')
fig

# %%
test_eq([d.name for d in fig.data if d.showlegend], ['harmless', 'help'])
test_eq(len({d.yaxis for d in fig.data}), 2)
test_eq({d.mode for d in plot_means(pd.DataFrame(rows), join=False).data}, {'markers'})
test_eq(len({d.line.color for d in fig.data if d.name=='harmless'}), 1)
pair = pd.DataFrame(rows[:2]).assign(name=['critique', 'direct'], x=['tiny', 'small'])
test_eq([d.line.color for d in plot_means(pair).data], [COLOURS['cot'], COLOURS['q']])
with expect_fail(DataError, contains="no column 'name'"):
    plot_means(pd.DataFrame(rows).drop(columns='name'))


# %% [markdown]
# ## Rates of behaviours

# %%
#| export
def plot_rates(
    rates:pd.DataFrame, # `Estimate`s: one row per model, one column per kind of answer
)->go.Figure:
    "Plot rates with intervals, one line per model"
    fig = go.Figure()
    for c,symbol,colour in zip(rates, ('circle', 'x', 'diamond'), ('q', 'cot', 'if')):
        e = list(rates[c])
        fig.add_scatter(x=_values(e), y=list(rates.index), error_x=_estimate_bars(e),
                        mode='markers', name=c,
                        marker=dict(symbol=symbol, size=11, color=COLOURS[colour]))
    fig.update_xaxes(title='share of answers', range=[-.02, 1], tickformat='.0%', showgrid=True)
    return fig.update_yaxes(autorange='reversed')

def plot_prompt_shares(
    shares:dict, # Model name -> share of its answers, one per prompt
)->go.Figure:
    "Plot prompts in the order of their share, one line per model"
    fig = go.Figure()
    for (name,s),dash in zip(shares.items(), ('solid', 'dash', 'dot', 'dashdot')):
        y = sorted(s, reverse=True)
        fig.add_scatter(x=[(i+.5)/len(y) for i in range(len(y))], y=y, name=name, mode='lines',
                        line=dict(dash=dash, shape='hvh'))
    fig.update_xaxes(title='prompts', range=[0, 1], tickformat='.0%')
    return fig.update_yaxes(title='share of answers', range=[-.02, 1.02], tickformat='.0%')


# %%
#| hide
estimates = {k: wilson(n, 40) for k,n in dict(a=3, b=20, c=38).items()}
rates = pd.DataFrame(dict(evades=estimates,
                          comforts=dict(zip('abc', list(estimates.values())[::-1]))))

# %%
plot_rates(rates)

# %%
plot_prompt_shares(dict(votes=rng.beta(.3, .9, 30), principles=rng.beta(.6, .3, 30)))

# %%
test_eq(list(plot_rates(rates).data[0].y), ['a', 'b', 'c'])
test_eq(list(plot_prompt_shares(dict(a=[.1, .9, .5])).data[0].y), [.9, .5, .1])


# %% [markdown]
# ## Reliability
#
# A calibrated labeller lies on the diagonal. Every pair is entered both ways round, so the curve is
# symmetric about its centre.

# %%
#| export
def plot_reliability(
    labels:dict,  # Name -> (labels, outcomes)
    bins:int=10,
)->go.Figure:
    "Plot the share of true outcomes against the label, with Wilson intervals"
    fig = go.Figure()
    _dotted_line(fig, [0, 1], [0, 1])
    for (name,(p,y)),colour in zip(labels.items(), ('q', 'cot', 'if', 'match')):
        d = reliability(p, y, bins)
        fig.add_scatter(x=d.p, y=d.y, error_y=_error_bars(d.y, d.low, d.high), name=name,
                        mode='lines+markers', line_color=COLOURS[colour])
    fig.update_xaxes(title='label: P(a is better)', range=[0, 1])
    return fig.update_yaxes(title='share in which a is better', range=[0, 1])


# %%
p = rng.beta(2, 2, 600)
y = rng.random(600)<p
overconfident = 1/(1+((1-p)/p)**3)
fig = plot_reliability({'calibrated': (p, y), 'overconfident': (overconfident, y)})
fig

# %%
test_eq([t.name for t in fig.data[1:]], ['calibrated', 'overconfident'])
errors = [abs(np.array(t.x)-np.array(t.y)).mean() for t in fig.data[1:]]
assert errors[1]>2*errors[0]


# %% [markdown]
# ## Accuracy
#
# One row per method. Baselines that need no model are vertical lines.

# %%
#| export
def plot_accuracy(
    rates:dict,           # Method -> `Estimate`
    baselines:dict=None,  # Name -> share, drawn as vertical lines
)->go.Figure:
    "Plot accuracies with intervals, beside baselines"
    fig = go.Figure()
    e = list(rates.values())
    fig.add_scatter(x=_values(e), y=list(rates), error_x=_estimate_bars(e), mode='markers',
                    marker=dict(size=10, color=COLOURS['q']), showlegend=False)
    for k,(name,share) in enumerate((baselines or {}).items()):
        fig.add_vline(x=share, line=dict(dash='dot', width=1, color=COLOURS['paper']),
                      annotation_text=name, annotation_position='top',
                      annotation_yshift=14*(k%2), annotation_font_size=11)
    fig.update_xaxes(title='share of right answers', range=[0, 1], tickformat='.0%',
                     showgrid=True)
    fig.update_layout(margin_t=50)
    return fig.update_yaxes(autorange='reversed')


# %%
methods = {'direct': wilson(24, 50), 'chain of thought': wilson(31, 50)}
plot_accuracy(methods, {'chance': .5, 'gate': .608})

# %%
test_eq(list(plot_accuracy(methods).data[0].y), ['direct', 'chain of thought'])
test_eq(len(plot_accuracy(methods, dict(chance=.5, gate=.6)).layout.shapes), 2)


# %% [markdown]
# ## Position bias
#
# Error of labels against a planted position bias.

# %%
#| export
def plot_position_bias(
    table:pd.DataFrame, # `bias`, and an `Estimate` of the error in `one order` and `both`
)->go.Figure:
    "Plot the error of labels asked in one order and in both, against the planted bias"
    fig = go.Figure()
    for name,colour in (('one order', 'if'), ('both', 'q')):
        e = list(table[name])
        fig.add_scatter(x=table.bias, y=_values(e), error_y=_estimate_bars(e), name=name,
                        mode='lines+markers', line_color=COLOURS[colour])
    fig.update_xaxes(title='planted liking for what stands first, nats')
    return fig.update_yaxes(title='mean distance of the label from the truth',
                            rangemode='tozero')


# %%
bias = pd.DataFrame(dict(bias=[0, 1, 2]))
bias['one order'] = [wilson(k, 100) for k in (5, 20, 35)]
bias['both'] = [wilson(k, 100) for k in (4, 5, 8)]
plot_position_bias(bias)

# %%
test_eq([t.name for t in plot_position_bias(bias).data], ['one order', 'both'])

# %% [markdown]
# ## Elo ratings
#
# The paper compares five kinds of model, and each keeps its colour and marker on every page: RL on
# helpfulness alone, RL on helpfulness and human harmlessness votes, supervised finetuning on
# revisions, and RL on a constitution, without and with a chain of thought.

# %%
#| export
MODEL_STYLES = { # Colour and marker of each kind of model
    'helpful RL':    ('match', 'circle'),
    'HH RL':         ('if', 'square'),
    'SL-CAI':        ('paper', 'x'),
    'RL-CAI':        ('linear', 'diamond'),
    'RL-CAI, CoT':   ('cot', 'triangle-up'),
    'RL-CAI, clamped':       ('cot', 'triangle-up'),
    'HH RL, engaging rater': ('accent', 'square'),
    'base':                  ('paper', 'star'),
    'no model':              ('relu', 'cross'),
}

def _model_style(kind):
    colour,symbol = MODEL_STYLES.get(kind, ('accent', 'star'))
    return COLOURS[colour], symbol

def plot_ratings(
    table:pd.DataFrame,   # kind, x, elo, low, high
    x:str='size',         # Column along the axis
    title:str='parameters',
    axis:str='Elo',
    log:bool=False,
)->go.Figure:
    "Plot ratings with intervals, one line per kind of model"
    check_columns(table, ['kind', x, 'elo', 'low', 'high'], 'ratings with a column kind')
    fig = go.Figure()
    for kind,g in table.groupby('kind', sort=False):
        colour,symbol = _model_style(kind)
        fig.add_scatter(x=g[x], y=g.elo, error_y=_error_bars(g.elo, g.low, g.high), name=kind,
                        mode='lines+markers', line_color=colour,
                        marker=dict(symbol=symbol, size=9))
    fig.update_xaxes(title=title, type='log' if log else 'linear')
    return fig.update_yaxes(title=axis, zeroline=True)


# %% [markdown]
# The judge of this example compares numbers, and models improve with steps:

# %%
rng = np.random.default_rng(0)
kinds = ['helpful RL', 'HH RL', 'RL-CAI']
runs = pd.DataFrame([(k, s, f'{k}/{s}') for k in kinds for s in (10, 20, 40, 80)]+
                    [('SL-CAI', 0, 'SL-CAI')], columns=['run', 'step', 'player'])
gain = dict(zip(kinds, [(.9, -.5), (.4, .8), (.6, 1.1)])) | {'SL-CAI':(0, 0)}
prompts = [f'Request {i}' for i in range(60)]
def made_up_votes(axis):
    skill = {p: gain[r][axis]*np.log1p(s/10) for r,s,p in runs.itertuples(index=False)}
    answers = {p: [str(v+rng.normal(0, .7)) for _ in prompts] for p,v in skill.items()}
    return play_matches(answers, prompts, score_judge(lambda _, a: [float(x) for x in a], 2.))

helpful = made_up_votes(0)
harmless = made_up_votes(1)
e = tournament(harmless, gauge='SL-CAI').table.merge(runs)
e = e.rename(columns=dict(run='kind')).sort_values(['kind', 'step'])
plot_ratings(e, 'step', 'steps of training', 'harmlessness, Elo')

# %%
fig = plot_ratings(e, 'step')
test_eq({t.name for t in fig.data}, set(e.kind))
test_eq(len({t.line.color for t in fig.data}), 4)


# %% [markdown]
# ## Helpfulness against harmlessness
#
# Snapshots of a run are joined in the order of its steps, and the last one is filled. Up and to
# the right is better. The dotted line bounds the area that the snapshots together dominate.

# %%
#| export
def _staircase(frontier):
    "Return the corners of the area that all snapshots dominate together"
    d = frontier.table[frontier.table.pareto].sort_values('helpful')
    x = [frontier.reference[0], *np.repeat(d.helpful.to_numpy(), 2)]
    return x, [*np.repeat(d.harmless.to_numpy(), 2), frontier.reference[1]]

def _faint(colour): return 'rgba({},{},{},.35)'.format(*hex_to_rgb(colour))

def plot_frontier(
    frontier, # `ParetoFrontier`
)->go.Figure:
    "Plot every snapshot on both axes with intervals, snapshots of a run joined"
    fig = go.Figure()
    _dotted_line(fig, *_staircase(frontier))
    for run,g in frontier.table.groupby('run', sort=False):
        g = g.sort_values('step')
        colour,symbol = _model_style(run)
        bars = [_error_bars(g[a], g[f'{a}_low'], g[f'{a}_high'], color=_faint(colour))
                | dict(width=0, thickness=1) for a in ('helpful', 'harmless')]
        markers = [f'{symbol}-open']*(len(g)-1)+[symbol]
        fig.add_scatter(x=g.helpful, y=g.harmless, error_x=bars[0], error_y=bars[1], name=run,
                        mode='lines+markers', line=dict(color=colour, width=1.5),
                        marker=dict(symbol=markers, size=9, color=colour),
                        text=[f'step {s}' for s in g.step])
    fig.update_xaxes(title='helpfulness, Elo', zeroline=True)
    return fig.update_yaxes(title='harmlessness, Elo', zeroline=True)


# %%
frontier = pareto_frontier(helpful, harmless, runs, gauge='SL-CAI', n=300)
fig = plot_frontier(frontier)
fig

# %%
test_eq([t.name for t in fig.data[1:]], [*kinds, 'SL-CAI'])
assert set(frontier.table[frontier.table.pareto].helpful)<=set(fig.data[0].x)


# %% [markdown]
# ## Training curves
#
# These figures take histories as [`train_policy`](rl/40_policy.ipynb) returns them, one row per
# step. A step has a few dozen answers and its numbers are noisy, so each figure shows a running mean
# with the steps as faint points behind it.

# %%
#| export
def running_mean(
    x,            # [step]
    window:int=9,
)->np.ndarray:    # [step]; windows are shorter at both ends
    "Return the centred running mean"
    s = pd.Series(np.asarray(x, float))
    return s.rolling(window, center=True, min_periods=1).mean().to_numpy()


# %%
running_mean([0, 0, 3, 0, 0], 3)

# %%
test_close(running_mean(np.arange(20.), 5)[2:-2], np.arange(20.)[2:-2])
test_close(running_mean([1., 2.], 9), [1.5, 1.5])

# %%
#| export
TITLES = dict(score='score', reward='score less KL penalty', kl='KL from the start, nats',
              kl3='KL from the start, nats', entropy='entropy, nats per token',
              clip_fraction='clip fraction', length='tokens per answer',
              ended='share with an end token', unique_answers='different answers',
              grad_norm='gradient norm')

_history = 'a history of train_policy that has it'

def _add_curve(fig, x, y, name, colour, window, legend, **position):
    fig.add_scatter(x=x, y=y, mode='markers', marker=dict(size=3, color=colour, opacity=.25),
                    showlegend=False, hoverinfo='skip', **position)
    fig.add_scatter(x=x, y=running_mean(y, window), mode='lines', name=name,
                    line=dict(color=colour, width=2), legendgroup=name, showlegend=legend,
                    **position)

def plot_training(
    runs,           # A history, or a dict of name -> history
    columns=('score', 'kl3', 'entropy', 'clip_fraction', 'length', 'ended'),
    window:int=9,   # Steps in the running mean
)->go.Figure:
    "Plot columns of histories against the step, one panel per column"
    runs = runs if isinstance(runs, dict) else {'': runs}
    n_cols = min(3, len(columns))
    n_rows = -(-len(columns)//n_cols)
    fig = make_subplots(n_rows, n_cols, horizontal_spacing=.11, vertical_spacing=.22,
                        subplot_titles=[TITLES.get(c, c) for c in columns])
    for i,c in enumerate(columns):
        for (name,d),colour in zip(runs.items(), COLOURS['sequence']):
            check_columns(d, [c], _history)
            _add_curve(fig, d.step, d[c], name, colour, window, bool(name) and i==0,
                       row=i//n_cols+1, col=i%n_cols+1)
    fig.update_annotations(font_size=12)
    for k in range(n_cols): fig.update_xaxes(title='step', row=n_rows, col=k+1)
    return fig.update_layout(margin=dict(t=60 if len(runs)>1 else 36, l=44),
                             legend=dict(y=1.12))


# %%
rng = np.random.default_rng(0)
def made_up_run(speed, steps=120):
    t = np.arange(1, steps+1)
    d = np.sqrt(speed*t/10)
    noise = lambda s: rng.normal(0, s, steps)
    return pd.DataFrame(dict(step=t, score=d+noise(.2), gold=d-.25*d**2+noise(.2),
        kl3=d**2+noise(.02).clip(0), entropy=3-.3*d+noise(.05), clip_fraction=.02+0*t,
        length=12+2*d+noise(.4), ended=np.ones(steps)))

histories = {'slow': made_up_run(.3), 'fast': made_up_run(1.2)}
fig = plot_training(histories)
fig

# %%
test_eq(len(fig.data), 2*2*6)
with expect_fail(DataError, contains="no column 'reword'"): plot_training(histories, ['reword'])


# %% [markdown]
# ## Scores against KL distance
#
# The distance from the initial policy is more informative than the number of steps: runs with
# different learning rates fall on one curve. The square root of the KL behaves like a length, and early
# in training the score is proportional to it [@bai2022hh].

# %%
#| export
def kl_distance(history)->np.ndarray: # [step]
    "Return the square root of the KL from the initial policy, in nats"
    check_columns(history, ['kl3'], _history)
    return np.sqrt(np.clip(history.kl3, 0, None).to_numpy())

def _plot_against_kl(curves, title):
    "Plot (history, column, name, colour, window) tuples against sqrt(KL)"
    fig = go.Figure()
    for history,column,name,colour,window in curves:
        check_columns(history, [column], _history)
        x = kl_distance(history)
        i = np.argsort(x)
        _add_curve(fig, x[i], history[column].to_numpy()[i], name, colour, window, True)
    fig.update_xaxes(title='√KL from the first policy, √nat')
    return fig.update_yaxes(title=title)

def plot_distance(
    history,         # Of one run
    scores:dict,     # Column -> name; the optimised score first, then the true one
    title:str='score',
)->go.Figure:
    "Plot several scores of one run against sqrt(KL)"
    colours = [COLOURS[c] for c in ('if', 'q', 'accent', 'cot')]
    return _plot_against_kl([(history, c, name, colour, 9)
                             for (c,name),colour in zip(scores.items(), colours)], title)

def plot_runs(
    runs:dict,       # Name -> history, or list of histories of several seeds
    column:str,
    title:str=None,
)->go.Figure:
    "Plot one score of several runs against sqrt(KL)"
    seeds = {k: d if isinstance(d, list) else [d] for k,d in runs.items()}
    return _plot_against_kl([(pd.concat(ds), column, name, colour, 9*len(ds))
                             for (name,ds),colour in zip(seeds.items(), COLOURS['sequence'])],
                            title or TITLES.get(column, column))


# %%
plot_distance(histories['fast'], dict(score='proxy', gold='truth'))

# %%
fig = plot_runs(histories, 'gold', title='truth')
test_eq([t.name for t in fig.data if t.name], ['slow', 'fast'])
fig


# %% [markdown]
# ## Over-optimisation
#
# A preference model agrees with the true score near the answers it was trained on, and not far from them.
# If a policy is trained long enough, its score rises while the true score falls. Before that the score is
# expected to rise linearly in the distance; `linearity` compares a line with other curves.

# %%
#| export
def linearity(
    history,
    column:str='score',
    upto:float=np.inf, # Largest distance used
)->dict: # Slope; shares of variance left by a line, a parabola, and a line in the KL
    "Measure how linear a score is in the KL distance"
    check_columns(history, [column], _history)
    x = kl_distance(history)
    y = history[column].to_numpy(float)
    x,y = x[x<=upto],y[x<=upto]
    residual = lambda x, n: float(np.var(y-np.polyval(np.polyfit(x, y, n), x))/np.var(y))
    return dict(slope=float(np.polyfit(x, y, 1)[0]), line=residual(x, 1),
                parabola=residual(x, 2), in_kl=residual(x**2, 1))


# %%
fit = linearity(histories['fast'])
test_close(fit['slope'], 1, .1)
assert fit['line']<fit['in_kl']
fit


# %% [markdown]
# ## Absolute harmfulness
#
# Figure 10 of the paper draws one curve per policy, solid for answers sampled at temperature 1 and
# dashed for temperature 0. Crosses show a second rating of the same answers, such as the true rating in
# the [toy environment](toy/10_environment.ipynb).

# %%
#| export
def _add_band(fig, d, colour):
    fig.add_scatter(x=[*d.step, *d.step[::-1]], y=[*d.high, *d.low[::-1]], fill='toself',
                    fillcolor=colour, opacity=.15, mode='none', hoverinfo='skip',
                    showlegend=False)

def plot_harmfulness(
    table:pd.DataFrame,     # run, step, temperature, what, value, low, high
    rating:str='regressor', # Value of `what` drawn as lines
    crosses:str=None,       # Value of `what` drawn as crosses, at temperature 1
)->go.Figure:
    "Plot ratings against steps; bands are intervals at temperature 1"
    check_columns(table, ['run', 'step', 'temperature', 'what', 'value', 'low', 'high'],
                  'a table of absolute_harmfulness with run')
    fig = go.Figure()
    for (run,d),colour in zip(table.groupby('run', sort=False), COLOURS['sequence']):
        for T,dash in ((1, 'solid'), (0, 'dash')):
            curve = d[(d.temperature==T)&(d.what==rating)].sort_values('step')
            if T and len(curve): _add_band(fig, curve, colour)
            fig.add_scatter(x=curve.step, y=curve.value, mode='lines', name=run, legendgroup=run,
                            line=dict(color=colour, dash=dash, width=2), showlegend=T==1)
        points = d[(d.temperature==1)&(d.what==crosses)]
        fig.add_scatter(x=points.step, y=points.value, mode='markers', showlegend=False,
                        legendgroup=run, marker=dict(symbol='x-thin', size=8,
                                                     line=dict(color=colour, width=2)))
    fig.update_xaxes(title='steps of RL')
    return fig.update_yaxes(title='harmfulness, 0 to 4')


# %%
t = np.arange(0, 101, 20)
def made_up_ratings(run, slope, T, rating):
    y = 1.5+slope*(1-np.exp(-t/40))-.2*(T==0)+.1*(rating=='truth')
    return pd.DataFrame(dict(run=run, step=t, temperature=T, what=rating, value=y, low=y-.15,
                             high=y+.15))

ratings = pd.concat([made_up_ratings(*r, T, w) for r in [('helpful', 1.), ('both', -1.)]
                     for T in (1, 0) for w in ('regressor', 'truth')])
fig = plot_harmfulness(ratings, crosses='truth')
fig

# %%
test_eq([d.name for d in fig.data if d.showlegend], ['helpful', 'both'])
test_eq([d.line.dash for d in fig.data if d.mode=='lines'], ['solid', 'dash']*2)
test_eq(sum(len(d.x) for d in fig.data if d.mode=='markers'), 2*len(t))
with expect_fail(DataError, contains="no column 'run'"):
    plot_harmfulness(ratings.drop(columns='run'))


# %% [markdown]
# ## Stages of the pipeline
#
# `plot_stages` shows measures of the models along the pipeline. The pipeline itself is drawn by
# [`plot_pipeline`](72_pipeline_diagram.ipynb).

# %%
#| export
def plot_stages(
    stages:pd.DataFrame, # `Estimate`s: one row per model in order, one column per measure
    title:str='true score of an answer',
    baselines:int=0,     # Last rows that are no stages: points, not joined by lines
)->go.Figure:
    "Plot measures of each model with intervals, one line per measure"
    fig = go.Figure()
    n = len(stages)-baselines
    for c,symbol,colour in zip(stages, ('circle', 'x', 'diamond'), ('q', 'if', 'cot')):
        for rows,mode in ((stages[c][:n], 'lines+markers'), (stages[c][n:], 'markers')):
            if not len(rows): continue
            fig.add_scatter(x=list(rows.index), y=_values(rows), error_y=_estimate_bars(list(rows)),
                            name=c, mode=mode, line_color=COLOURS[colour], legendgroup=c,
                            showlegend='lines' in mode, marker=dict(symbol=symbol, size=10))
    if baselines: fig.add_vline(n-.5, line=dict(dash='dot', width=1, color=COLOURS['paper']))
    return fig.update_yaxes(title=title, zeroline=True)


# %%
#| hide
rng = np.random.default_rng(0)
estimate = lambda m: Estimate(*cluster_bootstrap(rng.normal(m, 1, 60), range(60)))
stages = pd.DataFrame({'help': [estimate(m) for m in (1, .6, .5)],
                       'harmlessness': [estimate(m) for m in (-1, -.4, .5)]},
                      index=['first model', 'SL-CAI', 'RL-CAI'])

# %%
plot_stages(stages)

# %%
test_eq(list(plot_stages(stages).data[0].x), list(stages.index))
test_eq([t.name for t in plot_stages(stages).data], list(stages))
test_eq([len(t.x) for t in plot_stages(stages, baselines=1).data], [2, 1]*2)
