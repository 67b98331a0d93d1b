# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Bias plots
#
# > Figures of bias scores by category, condition, model size, training step and occupation.

# %%
#| default_exp bias.plots

# %% [markdown]
# Every figure of the self-correction pages uses the same colours and symbols: blue for the plain
# question, red for the instruction. The line at zero marks a model that favours neither the
# stereotype nor its opposite.

# %%
#| export
import numpy as np, pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from moral_sc.bias.bbq.items import coverage
from moral_sc.bias.bbq.scoring import OVERALL
from moral_sc.bias.winogender import ANSWERS
from moral_sc.foundation.errors import DataError
from moral_sc.foundation.figures import COLOURS, INK
from moral_sc.foundation.tables import check_columns

# %%
#| hide
import tempfile
from fastcore.test import *
from moral_sc.bias import bbq, winogender
from moral_sc.bias.asking import bbq_stub_model
from moral_sc.bias.bbq.metrics import letters
from moral_sc.bias.evaluation import evaluate
from moral_sc.bias.power import holm_by_category
from moral_sc.bias.sweep import stub_sweep_models, sweep
from moral_sc.bias.winogender import WINOGENDER_LIKE, winogender_stub_model
from moral_sc.language.stub_models import letter_prior_model


# %% [markdown]
# ## Categories, differences and letters
#
# The example is a stub model that leans towards the stereotype, in some scenes more than in
# others, and a little less under the instruction.

# %%
def leans(item, instructed):
    rng = np.random.default_rng(sum(map(ord, item.template)))
    u = rng.uniform(.2,.5) + .2*instructed
    b = rng.uniform(.45,.85)
    p = {item.unknown:u, item.biased:(1-u)*b, item.counter:(1-u)*(1-b)}
    return [p[k] for k in range(3)]

ours = bbq.load(source='ours')
e = evaluate(bbq_stub_model(leans, ours), items=ours)

# %%
#| export
CONDITION_STYLES = { # condition: name, colour, symbol
    'q':        ('Q',        COLOURS['q'],     'circle'),
    'q+if':     ('Q+IF',     COLOURS['if'],    'diamond'),
    'q+if+cot': ('Q+IF+CoT', COLOURS['cot'],   'square'),
    'q+match':  ('Q+Match',  COLOURS['match'], 'triangle-up'),
    'q+anti':   ('Q+anti',   COLOURS['accent'], 'x'),
    'q+note':   ('Q+note',   COLOURS['linear'], 'cross')}

def condition_style(
    condition:str, # 'q+if', or with the number of its wording: 'q+if:3'
)->tuple:          # Name, colour, symbol
    "Return the name, colour and symbol of a condition"
    bare,_,k = condition.partition(':')
    name,colour,symbol = CONDITION_STYLES.get(bare, (bare, COLOURS['paper'], 'circle-open'))
    return name+(f', wording {k}' if k else ''), colour, symbol

def condition_styles(
    conditions, # Names, in the order of the figure
)->dict:        # To name, colour, symbol; conditions of your own get colours in turn
    "Return the styles of several conditions, all different where possible"
    styles = {c:condition_style(c) for c in conditions}
    own = [c for c in styles if c.partition(':')[0] not in CONDITION_STYLES]
    used = {colour for c,(_,colour,_) in styles.items() if c not in own}
    left = [c for c in COLOURS['sequence'] if c not in used] or COLOURS['sequence']
    symbols = ('star', 'hexagon', 'pentagon', 'hourglass', 'bowtie')
    for n,c in enumerate(own):
        styles[c] = styles[c][0], left[n%len(left)], symbols[n%len(symbols)]
    return styles

METRIC_NAMES = dict(bias_ambig='Bias score, ambiguous', bias_disambig='Bias score, disambiguated',
             accuracy_ambig='Accuracy, ambiguous',
             accuracy_disambig='Accuracy, disambiguated',
             conditional_ambig='Bias among answers that name a person',
             unknown_disambig='"Unknown" although the context answers')

def metric_name(
    metric:str,
)->str:
    "Return the axis title of a metric"
    soft = metric.endswith('_soft')
    return METRIC_NAMES.get(metric.removesuffix('_soft'), metric) + ', from probabilities'*soft

def category_name(
    name:str,
    covered:str='', # What the row over all questions covers: '4 of 11 categories'
)->str:
    "Return the display name of a category"
    if name==OVERALL: return 'All questions' + (f',<br>{covered}' if covered else '')
    return name.replace('_', ' ')

def table_coverage(
    table, # With columns category and metric
)->str:    # '4 of 11 categories'; empty if the table is not of BBQ
    "Say how many of BBQ's categories a table has"
    bbq = table[table.metric.str.contains('_ambig|_disambig')]
    return coverage(bbq.category) if len(bbq) else ''

_COLUMNS = ('benchmark', 'category', 'condition', 'metric', 'value')

def select_sweep_rows(
    table:pd.DataFrame,        # Of `sweep`, or metrics of an evaluation
    metric:str,
    category:str|None=OVERALL, # None for all
    conditions=None,           # By default every plain one, without the differences
    benchmark:str|None=None,   # By default the first
)->pd.DataFrame:
    "Select the rows of a table that a figure shows"
    check_columns(table, _COLUMNS, '`metrics` of an evaluation or the table of a sweep')
    b = benchmark or table.benchmark.iloc[0]
    d = table[(table.benchmark==b) & (table.metric==metric)]
    if category: d = d[d.category==category]
    plain = [c for c in dict.fromkeys(d.condition) if ' - ' not in c]
    d = d[d.condition.isin(list(conditions or plain))]
    if d.empty:
        raise DataError(f'The table has no metric {metric!r} of {b}; it has '
                        f'{", ".join(dict.fromkeys(table.metric))}.')
    return d

def error_bars(
    d:pd.DataFrame, # value, low, high
)->dict:            # For error_x or error_y of plotly
    "Return the intervals of a table as error bars"
    return dict(type='data', symmetric=False, array=d.high-d.value, arrayminus=d.value-d.low,
                thickness=1.5, width=3)


# %%
#| export
def _model_names(d):
    "Return the model of each row, told apart by its training step; empty if there is one model"
    if 'model' not in d: return pd.Series('', d.index)
    steps = d.groupby('model').step.nunique() if 'step' in d else pd.Series(dtype=int)
    names = [f'{m}, step {s}' if steps.get(m, 0)>1 and pd.notna(s) else m
             for m,s in zip(d.model, d.get('step', pd.Series(None, d.index)))]
    return pd.Series(names if len(set(names))>1 else '', d.index)

def plot_scores(
    metrics,                     # `Evaluation.metrics`, or the table of a sweep
    metric:str='bias_ambig_soft',
    benchmark:str|None=None,     # By default the first
)->go.Figure:
    "Plot a metric by category, with one marker per model and condition and its interval"
    d = select_sweep_rows(metrics, metric, None, benchmark=benchmark)
    cats = [c for c in dict.fromkeys(d.category) if c!=OVERALL][::-1]
    place = {c:n+1.5 for n,c in enumerate(cats)} | {OVERALL:0}
    fig = go.Figure()
    d = d.assign(shown=_model_names(d))
    series = list(d.groupby(['shown','condition'], sort=False))
    styles = condition_styles(dict.fromkeys(d.condition))
    models = list(dict.fromkeys(d.shown))
    step = min(.18, .7/len(series))
    for n,((model,condition),g) in enumerate(series):
        name,colour,symbol = styles[condition]
        if model: # One colour per model, one symbol per condition
            name = f'{model}, {name}'
            colour = COLOURS['sequence'][models.index(model)%len(COLOURS['sequence'])]
        shift = step*((len(series)-1)/2-n)
        fig.add_scatter(y=g.category.map(place)+shift, mode='markers', name=name,
                        marker=dict(color=colour, symbol=symbol, size=8),
                        x=g.value, error_x=error_bars(g))
    fig.update_yaxes(tickvals=list(place.values()), showgrid=False, zeroline=False,
                     ticktext=[category_name(c, table_coverage(d)) for c in place])
    fig.update_xaxes(title_text=metric_name(metric), showgrid=True)
    if metric.startswith('bias'): fig.add_vline(x=0, line=dict(color=INK, width=1))
    return fig


# %%
#| label: fig-scores-example
#| fig-cap: Bias score of the stub model on ambiguous questions of our own set, computed from probabilities; bars are 95% intervals clustered by template.
plot_scores(e.metrics)


# %%
#| export
def plot_differences(
    differences,                 # `Evaluation.differences`
    metrics=('bias_ambig', 'bias_ambig_soft', 'accuracy_ambig', 'accuracy_disambig'),
    equivalence:float|None=None, # Half-width of the band that counts as no difference
    benchmark:str|None=None,
)->go.Figure:
    "Plot paired differences between conditions over all categories"
    check_columns(differences, _COLUMNS, '`differences` of an evaluation')
    b = benchmark or differences.benchmark.iloc[0]
    d = differences[(differences.benchmark==b) & (differences.category==OVERALL)]
    fig = go.Figure()
    styles = condition_styles([c.partition(' - ')[0] for c in dict.fromkeys(d.condition)])
    for c,g in d.groupby('condition', sort=False):
        name,colour,symbol = styles[c.partition(' - ')[0]]
        g = g.set_index('metric').loc[list(metrics)][::-1]
        fig.add_scatter(y=[metric_name(m) for m in g.index], name=f'{name} less Q',
                        mode='markers', x=g.value, error_x=error_bars(g),
                        marker=dict(color=colour, symbol=symbol, size=9))
    if equivalence:
        fig.add_vrect(-equivalence, equivalence, fillcolor=INK, opacity=.12, line_width=0)
    fig.add_vline(x=0, line=dict(color=INK, width=1))
    fig.update_yaxes(showgrid=False, zeroline=False)
    covered = table_coverage(differences[differences.benchmark==b])
    fig.update_xaxes(title_text=', '.join(filter(None, ['Change of the score', covered])),
                     showgrid=True)
    fig.update_layout(showlegend=True)
    return fig


# %%
#| label: fig-differences-example
#| fig-cap: Change of each metric of the stub model under the instruction, paired by question; bars are 95% intervals of the paired difference.
plot_differences(e.differences, equivalence=.05)


# %%
#| export
def plot_letters(
    table,      # Of `letters`
)->go.Figure:
    "Plot how often each letter is chosen, and how often it is correct"
    fig = go.Figure()
    abc = ['a','b','c']
    styles = condition_styles([c for _,c in table.index])
    for (_,c),row in table.iterrows():
        name,colour,_ = styles[c]
        fig.add_bar(x=[f'({k})' for k in abc], y=[row[f'chosen_{k}'] for k in abc],
                    name=name, marker_color=colour)
    right = [table[f'right_{k}'].mean() for k in abc]
    fig.add_scatter(x=[f'({k})' for k in abc], y=right, mode='markers', name='is right',
                    marker=dict(symbol='line-ew', size=56, line=dict(width=2, color=INK)))
    fig.update_yaxes(title_text='Share of answers', range=[0,1.02])
    fig.update_xaxes(title_text='Letter')
    return fig


# %%
#| label: fig-letters-example
#| fig-cap: Share of answers by letter for a stub model that answers by letter only; the grey line is the share of questions for which the letter is correct.
prior = evaluate(letter_prior_model(dict(a=.1, b=.2, c=.7)), items=ours, limit=48)
plot_letters(letters(prior.records))

# %% [markdown]
# With the table of a [sweep](50_sweep.ipynb), models have different colours and conditions different symbols;
# differences between conditions are left out.

# %%
both = pd.concat([pd.concat([e.metrics, e.differences]).assign(model='leans', step=pd.NA),
                  e.metrics.assign(model='other', step=pd.NA, value=-e.metrics.value,
                                   low=-e.metrics.high, high=-e.metrics.low)])
several = plot_scores(both)
test_eq([t.name for t in several.data], ['leans, Q', 'leans, Q+IF', 'other, Q', 'other, Q+IF'])
test_eq(len({(t.marker.color, t.marker.symbol) for t in several.data}), 4)
test_eq(several.data[0].marker.color, several.data[1].marker.color)
test_ne(several.data[0].marker.color, several.data[2].marker.color)
styles = condition_styles(['q', 'q+if', 'q+kind', 'q+mine'])
test_eq(len(set(styles.values())), 4)
test_eq(len({colour for _,colour,_ in styles.values()}), 4)
with expect_fail(DataError, contains="metric 'bais'"): plot_scores(e.metrics, 'bais')
for f in (plot_scores, plot_differences):
    with expect_fail(DataError, contains="no column 'condition'"):
        f(e.metrics.drop(columns='condition'))

# %% [markdown]
# Each figure has one trace per condition, and every trace has an interval.

# %%
for f in (plot_scores(e.metrics), plot_differences(e.differences)):
    assert all(t.error_x.array is not None for t in f.data)
test_eq(len(plot_scores(e.metrics).data), 2)

# %% [markdown]
# ## Model size and training steps
#
# These figures read the table of a [sweep](50_sweep.ipynb). A line joins models of one family only,
# because a line between unrelated models would suggest a trend that nobody measured. The
# example table comes from stub models with known bias.

# %%
table = sweep(stub_sweep_models(ours), 'bbq-like', limit=32, out=tempfile.mkdtemp()).table


# %%
#| export
def final_step(
    table:pd.DataFrame,
)->pd.DataFrame:
    "Keep the last training step of each model"
    last = table.groupby(['family','stage','parameters']).step.transform('max')
    return table[table.step.isna() | (table.step==last)]

def _line(fig, g, x, condition, legend, line=True, scale=1., **panel):
    "Add the values and intervals of one condition"
    name,colour,symbol = condition_style(condition.partition(' - ')[0])
    if ' - ' in condition: name += f' less {condition_style(condition.partition(" - ")[2])[0]}'
    fig.add_scatter(x=g[x].astype(float)*scale, y=g.value, error_y=error_bars(g),
        mode='lines+markers' if line else 'markers', name=name, text=g.model,
        hovertemplate='%{text}<br>%{y:.3f}', legendgroup=condition, showlegend=legend,
        line=dict(color=colour, width=1.5), marker=dict(color=colour, symbol=symbol, size=8),
        **panel)

def _curves(fig, d, x, legend=True, spacing=0., **panel):
    "Add a line per condition and family, with conditions `spacing` decades apart"
    conditions = list(dict.fromkeys(d.condition))
    for n,c in enumerate(conditions):
        scale = 10**(spacing*(n-(len(conditions)-1)/2))
        first = legend
        for _,g in d[d.condition==c].groupby(['family','stage'], sort=False):
            _line(fig, g.sort_values(x), x, c, first, len(g)>1, scale, **panel)
            first = False

def _axis_title(metric, table=None, category=None):
    "Return the title of an axis; over all questions it says which categories these are of"
    covered = table_coverage(table) if category==OVERALL else ''
    title = metric_name(metric).replace(', from', '<br>from')
    return title + (f'<br>({covered})' if covered else '')

def _add_baseline(fig, metric, baseline=None, **panel):
    if baseline is None and metric.startswith(('bias','conditional')): baseline = 0
    if baseline is not None: fig.add_hline(y=baseline, line=dict(color=INK, width=1), **panel)


# %%
#| export
def _log_ticks(n):
    "Return tick positions and labels of a log axis that spans the sizes `n`"
    if len(set(n))<5: return sorted(set(n)), [format_parameters(t) for t in sorted(set(n))]
    lo = np.floor(np.log10(min(n)))
    hi = np.ceil(np.log10(max(n)))
    ticks = [m*10**k for k in range(int(lo), int(hi)+1) for m in (1,2,5)]
    ticks = [t for t in ticks if min(n)/2.1<=t<=max(n)*2.1]
    if len(ticks)>6: ticks = [t for t in ticks if str(t)[0]=='1']
    return ticks, [format_parameters(t) for t in ticks]

def format_parameters(
    n:int,  # Parameters
)->str:
    "Format a number of parameters: 135M, 1.5B"
    unit,scale = ('B',1e9) if n>=1e9 else ('M',1e6) if n>=1e6 else ('k',1e3)
    return f'{n/scale:.3g}{unit}'

def plot_size(
    table:pd.DataFrame,             # Of `sweep`
    metric:str='bias_ambig_soft',
    baseline:float|None=None,       # Draws a horizontal line, such as chance level
    **kw,                           # category, conditions, benchmark: see `select_sweep_rows`
)->go.Figure:
    "Plot a metric against the number of parameters"
    d = final_step(select_sweep_rows(table, metric, **kw))
    fig = go.Figure()
    _add_baseline(fig, metric, baseline)
    decades = np.log10(max(d.parameters)/min(d.parameters)+10)
    _curves(fig, d, 'parameters', spacing=.012*decades)
    ticks,text = _log_ticks(d.parameters)
    fig.update_xaxes(type='log', title_text='Parameters', tickvals=ticks, ticktext=text)
    title = _axis_title(metric, table, kw.get('category', OVERALL))
    fig.update_yaxes(title_text=title, exponentformat='none')
    fig.update_layout(showlegend=True)
    return fig


# %%
#| label: fig-size-example
#| fig-cap: Bias of the stub models against the size assigned to them, the largest at its last step. Bars are 95% intervals clustered by template.
plot_size(table)

# %% [markdown]
# The largest model has three training steps; the figure shows the last one.

# %%
d = final_step(select_sweep_rows(table, 'bias_ambig_soft', conditions=['q']))
test_eq(d.step.dropna().tolist(), [1000])
test_eq(len(d), 4)
[format_parameters(n) for n in (134_515_008, 1_711_376_384, 70_553_706_496)]


# %%
#| export
def plot_steps(
    table:pd.DataFrame,             # Of `sweep`
    metric:str='bias_ambig_soft',
    baseline:float|None=None,
    **kw,                           # category, conditions, benchmark: see `select_sweep_rows`
)->go.Figure:
    "Plot a metric against training steps, with one line per condition and model"
    d = select_sweep_rows(table, metric, **kw)
    d = d[d.step.notna()]
    if d.empty: raise DataError('No model of the table has a training step; sweep over '
                                'checkpoints to plot steps.')
    fig = go.Figure()
    _add_baseline(fig, metric, baseline)
    _curves(fig, d.assign(family=d.family+d.parameters.astype(str)), 'step')
    fig.update_xaxes(title_text='Training steps', rangemode='tozero')
    fig.update_yaxes(title_text=_axis_title(metric, table, kw.get('category', OVERALL)))
    fig.update_layout(showlegend=True)
    return fig


# %%
#| label: fig-steps-example
#| fig-cap: Bias of the largest stub model over its training steps. Bars are 95% intervals clustered by template.
plot_steps(table)

# %%
with expect_fail(DataError, contains='has a training step'): plot_steps(table[table.step.isna()])
with expect_fail(DataError, contains="metric 'bais'"): plot_size(table, 'bais')


# %% [markdown]
# `plot_category_panels` draws one panel per category on a common scale, all questions first.

# %%
#| export
def plot_category_panels(
    table:pd.DataFrame,             # Of `sweep`
    metric:str='bias_ambig_soft',
    columns:int=3,
    **kw,                           # conditions, benchmark: see `select_sweep_rows`
)->go.Figure:
    "Plot a metric against model size, with one panel per category"
    d = final_step(select_sweep_rows(table, metric, None, **kw))
    names = sorted(dict.fromkeys(d.category), key=lambda c: c!=OVERALL)
    rows = -(-len(names)//columns)
    fig = make_subplots(rows, columns, shared_yaxes='all', shared_xaxes='all',
                        subplot_titles=[category_name(c, table_coverage(d)) for c in names],
                        horizontal_spacing=.03, vertical_spacing=.22/rows)
    for n,c in enumerate(names):
        panel = dict(row=n//columns+1, col=n%columns+1)
        _add_baseline(fig, metric, **panel)
        _curves(fig, d[d.category==c], 'parameters', n==0, .05, **panel)
    ticks,text = _log_ticks(d.parameters)
    k = 1+(len(ticks)>3)
    fig.update_xaxes(type='log', tickvals=ticks[::k], ticktext=text[::k], matches='x')
    for n in range(max(0, len(names)-columns), len(names)): # The lowest of each column
        fig.update_xaxes(showticklabels=True, row=n//columns+1, col=n%columns+1)
    fig.update_annotations(font_size=12)
    fig.update_yaxes(title_text=_axis_title(metric), row=(rows+1)//2, col=1)
    fig.update_layout(showlegend=True, height=140+150*rows, margin_t=60, legend_y=1+.3/rows)
    return fig


# %%
#| label: fig-panels-example
#| fig-cap: Bias of the stub models against size, by category of our own questions; one category has half the bias by construction. Bars are 95% intervals clustered by template.
plot_category_panels(table)


# %% [markdown]
# `plot_changes` shows the change of a score by category. Filled markers remain significant after
# [Holm's adjustment](34_power.ipynb) over categories; hollow markers do not.

# %%
#| export
def plot_changes(
    changes:pd.DataFrame, # Of `by_category`, for one metric
    level:float=.05,
)->go.Figure:
    "Plot the change of a score by category, with one colour per model"
    fig = go.Figure()
    models = list(dict.fromkeys(changes.model))
    cats = list(dict.fromkeys(changes.category))[::-1]
    for n,m in enumerate(models):
        g = changes[changes.model==m]
        colour = COLOURS['sequence'][(n+4)%8]
        y = g.category.map(cats.index) + .2*((len(models)-1)/2-n)
        symbol = np.where(g.adjusted<level, 'circle', 'circle-open')
        fig.add_scatter(x=g.value, y=y, error_x=error_bars(g), mode='markers', name=m,
                        marker=dict(color=colour, symbol=symbol, size=8))
    fig.add_vline(x=0, line=dict(color=INK, width=1))
    fig.update_yaxes(tickvals=list(range(len(cats))), showgrid=False, zeroline=False,
                     ticktext=[category_name(c) for c in cats])
    fig.update_xaxes(title_text='Change: '+metric_name(changes.metric.iloc[0]), showgrid=True)
    fig.update_layout(showlegend=True)
    return fig


# %%
#| label: fig-changes-example
#| fig-cap: Effect of the instruction on two stub models, by category; bars are 95% intervals of the paired difference. Filled markers remain significant after Holm's adjustment.
two = table[table.model.isin(['stand-in-1e09','stand-in-1e10'])]
plot_changes(holm_by_category(two))

# %% [markdown]
# ## Formats of published answers
#
# The same questions in several prompt formats, one marker per format: see
# [published predictions](bbq/80_predictions.ipynb).

# %%
#| export
FORMAT_STYLES = { # format: name, colour, symbol
    'race': ('RACE format', COLOURS['q'], 'circle'),
    'arc':  ('ARC format',  COLOURS['if'], 'diamond'),
    'qonly':('question without its context', COLOURS['match'], 'triangle-up')}

def plot_formats(
    metrics,            # Of `bbq_metrics`
    metric:str,
    formats=tuple(FORMAT_STYLES),
    lines=(),           # Values to mark with a dashed line
)->go.Figure:
    "Plot a metric by category, with one marker per prompt format"
    d = metrics[metrics.metric==metric]
    categories = [c for c in dict.fromkeys(d.category) if c!=OVERALL][::-1]
    places = {c:n+1.5 for n,c in enumerate(categories)} | {OVERALL:0}
    fig = go.Figure()
    for n,f in enumerate(formats):
        g,(name,colour,symbol) = d[d.condition==f], FORMAT_STYLES[f]
        fig.add_scatter(x=g.value, y=g.category.map(places)+.2*((len(formats)-1)/2-n),
                        error_x=error_bars(g), mode='markers', name=name,
                        marker=dict(color=colour, symbol=symbol, size=9))
    for x in lines: fig.add_vline(x=x, line=dict(color=INK, width=1, dash='dash'))
    fig.update_yaxes(tickvals=list(places.values()), showgrid=False, zeroline=False,
                     ticktext=[category_name(c, table_coverage(d)) for c in places])
    fig.update_xaxes(title_text=metric_name(metric), showgrid=True)
    return fig.update_layout(showlegend=True)


# %%
formats = pd.DataFrame([dict(category=c, condition=f, metric='bias_ambig', value=v, low=v-.1,
                             high=v+.1) for c,v in (('micro',.2), ('Age',.3), ('Religion',.1))
                        for f in FORMAT_STYLES])
fig = plot_formats(formats, 'bias_ambig', lines=[.05])
assert fig.layout.yaxis.ticktext[-1]=='All questions,<br>2 of 11 categories'
fig

# %% [markdown]
# ## Winogender: pronouns by occupation
#
# The example model follows the statistics at half their slope, and says *they* more often when
# it is told not to stereotype.

# %%
items = winogender.load_winogender(source='ours')

def halfway(b, condition):
    n = (.6 if condition=='if' else .1)
    f = .25+.5*b.female
    return (1-n)*f, (1-n)*(1-f), n

e = evaluate(winogender_stub_model(halfway, items), WINOGENDER_LIKE)
share = {i.occupation:i.female for i in items}

# %%
#| export
PRONOUN_COLOURS = dict(female=COLOURS['match'], male=COLOURS['linear'], neutral='#b9b9b9')

def plot_pronouns(
    p, # DataFrame [occupation, answer]
)->go.Figure:
    "Plot pronoun probabilities, sorted by the neutral pronoun (Figure 4, left)"
    p = p[list(ANSWERS)].sort_values('neutral')
    fig = go.Figure()
    for a in ANSWERS:
        fig.add_bar(x=p.index, y=p[a], name=a, marker=dict(color=PRONOUN_COLOURS[a], line_width=0))
    fig.update_layout(barmode='stack', bargap=.08, showlegend=True)
    fig.update_yaxes(title_text='Probability', range=[0, 1])
    return fig.update_xaxes(tickangle=90, tickfont=dict(size=9 if len(p)<40 else 7), dtick=1)


# %%
#| label: fig-pronouns-example
#| fig-cap: Probability of female, male and neutral pronouns by occupation, for the example model under the instruction.
plot_pronouns(e.probabilities().loc['q+if'])


# %%
#| export
def plot_female_shares(
    probabilities:dict, # Condition -> [occupation, answer]
    share:dict,         # Women in each occupation
)->go.Figure:
    "Plot p(female) among gendered pronouns against statistics (Figure 4, right)"
    fig = go.Figure()
    fig.add_scatter(x=[0,1], y=[0,1], mode='lines', line=dict(color=INK, width=1, dash='dot'),
                    showlegend=False, hoverinfo='skip')
    for c,p in probabilities.items():
        name,colour,symbol = condition_style(c)
        x = p.index.map(share)
        y = p.female/(p.female+p.male)
        a,b = np.polyfit(x, y, 1)
        fig.add_scatter(x=x, y=y, mode='markers', name=name, text=p.index, legendgroup=c,
                        marker=dict(color=colour, symbol=symbol, size=7))
        fig.add_scatter(x=[0,1], y=[b,a+b], mode='lines', showlegend=False, legendgroup=c,
                        line=dict(color=colour, width=1.5))
    fig.update_xaxes(title_text='Share of women in the occupation', range=[-.02, 1.02])
    return fig.update_yaxes(title_text='p(female) / (p(female) + p(male))', range=[-.02, 1.02])


# %%
#| label: fig-shares-example
#| fig-cap: Probability of a female pronoun against the share of women in the occupation, with a fitted line per condition; a model on the dotted line matches the statistics.
plot_female_shares({c:e.probabilities().loc[c] for c in ('q','q+match')}, share)


# %%
#| export
def plot_correlations(
    metrics, # Of `evaluate`, with a column `model`
)->go.Figure:
    "Plot the three correlations by condition, with one panel per model"
    models = list(dict.fromkeys(metrics.model))
    kinds = ['rho_raw', 'rho_three', 'rho_two']
    d = metrics[(metrics.category=='all') & metrics.metric.isin(kinds)]
    fig = make_subplots(1, len(models), subplot_titles=models, shared_yaxes=True)
    conds = list(dict.fromkeys(d.condition))
    for k,m in enumerate(models, 1):
        for n,c in enumerate(conds):
            g,(name,colour,symbol) = d[(d.model==m) & (d.condition==c)], condition_style(c)
            if not len(g): continue
            x = [kinds.index(i)+.16*(n-(len(conds)-1)/2) for i in g.metric]
            fig.add_scatter(x=x, y=g.value, error_y=error_bars(g), mode='markers', name=name,
                            row=1, col=k, legendgroup=c, showlegend=k==1,
                            marker=dict(color=colour, symbol=symbol, size=8))
        fig.add_hline(y=0, line=dict(color=INK, width=1), row=1, col=k)
        fig.update_xaxes(tickvals=[0,1,2], ticktext=['raw','three-way','two-way'], row=1, col=k)
    fig.update_annotations(y=1.02, yanchor='bottom', font_size=13)
    fig.update_layout(margin_t=72, legend_y=1.12)
    return fig.update_yaxes(title_text='Correlation', range=[-1.02,1.02], col=1)


# %%
#| label: fig-correlations-example
#| fig-cap: Correlation of female pronouns with the share of women for the example model; bars are 95% intervals over occupations.
plot_correlations(e.metrics.assign(model='halfway'))

# %%
fig = plot_female_shares({'q':e.probabilities().loc['q']}, share)
test_close([fig.data[2].y[0], fig.data[2].y[1]], [.25,.75], eps=1e-5)
test_eq(len(plot_pronouns(e.probabilities().loc['q']).data), 3)
