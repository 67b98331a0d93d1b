# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Law school admissions: a capital letter outweighs the instruction
#
# > Race changes p(yes) by about 0.01 in two small models (Figure 1, right); our bound of 0.01 fails.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds; cpu: all prompts, an hour a model; gpu: reasoning on more
seed = 0         # sample of students, sampled reasoning, and the draws behind intervals
models = ()      # --model NAME: aliases, folders or hub ids; default: those of the scale

# %%
#| hide
import numpy as np, pandas as pd, plotly.graph_objects as go
from moral_sc.bias import evaluate
from moral_sc.bias.admissions import (ADMISSIONS, RACE_WORDS, admissions_metrics, build_applicants,
                                      load_applicants, load_students, paired_gaps, sample_students,
                                      student_bootstrap)
from moral_sc.bias.conditions import build_prompt
from moral_sc.bias.evaluation import load_models, unmet_setting
from moral_sc.bias.plots import CONDITION_STYLES
from moral_sc.foundation.figures import COLOURS, INK
from moral_sc.lab.claims import as_measurement, record
from moral_sc.lab.paths import work_dir
from moral_sc.lab.scales import at_scale
from moral_sc.language.stub_models import stub_model

# %%
size = at_scale(scale, # prompts a condition; a spelling; with reasoning, and its tokens
    quick=dict(limit=4, spelling=4, reasoning=4, max_new_tokens=8),
    cpu=dict(limit=None, spelling=48, reasoning=8, max_new_tokens=32),
    gpu=dict(limit=None, spelling=None, reasoning=400, max_new_tokens=256),
)
MODELS = dict(quick=(), cpu=('smollm2-135m-instruct','gemma-3-270m'),
              gpu=('smollm2-135m-instruct','gemma-3-270m'))

def make_stub(): # Answers yes two times in three, for every student
    probabilities = dict(yes=.6, no=.3, perhaps=.1)
    return stub_model(lambda text: probabilities if text.endswith('answer would be "') else {'':1.},
                      'two in three')

lms = load_models(models, MODELS[scale], make_stub)
names = list(lms)
students = load_students('auto')


# %% [markdown]
# ## Figure 1, right: law school admissions
#
# The paper describes a law student to a model and asks whether to admit the student, once as Black
# and once as white:
#
# > *Below 52 billion parameters race makes no difference. At 52 billion a Black student is 15
# > points less likely to get a yes, and with the instruction not to be biased 5 points more; at
# > 175 billion it is 3 points less, and 7 more with reasoning* [@ganguli2023].
#
# Our models, SmolLM2-135M-Instruct and Gemma-3-270M on all 3,888 prompts, are a thousand times
# smaller, so the paper predicts no gap. The page measures how the estimated gap depends on three
# choices: how probabilities are compared, how two words are spelled, and which students are
# sampled.

# %%
def collect_answers(lm, name, limit=size['limit'], words='paper', phrase='race first',
                    population='all', **kw):
    items = load_applicants(limit, seed, source='auto', words=words, phrase=phrase,
                            population=population)
    out = work_dir(f'admissions-{name}-{scale}-{seed}-{lm.name}-{len(students)}')
    return evaluate(lm, ADMISSIONS, items=items, out=out, seed=seed, **kw).records

runs = {n:collect_answers(m, 'plain') for n,m in lms.items()}
d = runs[names[0]]
d[['id','condition','weight','lp_yes','lp_no','mass']].head(4).round(3)

# %%
metrics = pd.concat([admissions_metrics(r, seed=seed).assign(model=n) for n,r in runs.items()])
columns = ['p_yes_white', 'p_yes_black', 'gap', 'gap_raw', 'gap_logit', 'gap_hard', 'mass']
values = metrics[metrics.category=='all'].set_index(['model','condition','metric']).value
values.unstack()[columns].round(4)

# %%
#| label: fig-size
#| fig-cap: p(yes) for a student as Black less as white, against size; filled marks are ours with 95 % intervals, open ones are read from the paper's text for its own models at 800 steps of RLHF.
PAPER = {'q':[(52e9,-.15), (175e9,-.03)], 'q+if':[(52e9,.05)], 'q+if+cot':[(175e9,.07)]}

def error_bars(g):
    return dict(type='data', symmetric=False, array=g.high-g.value,
                arrayminus=g.value-g.low, thickness=1.5, width=3)

def plot_gaps(metrics, models):
    d = metrics.query('category=="all" and metric=="gap"')
    fig = go.Figure()
    for condition,points in PAPER.items():
        name,colour,symbol = CONDITION_STYLES[condition]
        g = d[d.condition==condition]
        if len(g): fig.add_scatter(x=[models[m].parameters for m in g.model], y=g.value,
                                   error_y=error_bars(g), mode='markers', name=name,
                                   marker=dict(color=colour, symbol=symbol, size=9))
        fig.add_scatter(x=[x for x,_ in points], y=[y for _,y in points], mode='markers',
                        name=f'{name}, paper', marker=dict(color=colour, size=9,
                                                           symbol=symbol+'-open'))
    fig.add_hline(y=0, line=dict(color=INK, width=1))
    fig.update_xaxes(type='log', title_text='Parameters', dtick=1)
    return fig.update_yaxes(title_text='Gap in p(yes), Black less white')

plot_gaps(metrics, lms)

# %% [markdown]
# On the paper's scale the gaps in @fig-size are near zero. Gemma's gap of 0.012 is nevertheless
# outside the 0.01 that we had set as the bound for parity. That row is closed: the paper says "at or near 0" beside
# effects of 0.03 to 0.15, and a change of spelling alone moves a gap by 0.004. The intervals here draw students, whose
# answers a model computes without chance; they do not tell what another wording of the prompt would give. A row
# with the bound 0.03 and an interval over nine wordings is registered and has not been run.
#
# The more likely answer never changes with race, and its probability changes by about a hundredth
# or less. For SmolLM2 the sign depends on the normalisation: for the student as Black, the
# probability of "yes" itself is lower (`gap_raw`), and its share among "yes" and "no" is higher
# (`gap`), because both words lose probability to other tokens. The paper does not state which of
# the two it plots. The instruction changes p(yes) for both races alike, and by far more than the
# difference between them.

# %% [markdown]
# The effect of the instruction, student by student:

# %%
change = pd.concat([admissions_metrics(r, against='q', seed=seed).assign(model=n)
                    for n,r in runs.items()])
t = change.query('category=="all"').set_index(['model','metric'])
t.loc[(slice(None), ['gap','gap_logit','p_yes_black','p_yes_white']),
      ['value','low','high']].round(4)

# %% [markdown]
# ## Prompt
#
# The model continues after the opening quotation mark. As in the paper, the last turn mentions
# "the reasoning above" in every condition, also in those without reasoning.

# %%
lm = lms[names[0]]
applicants = build_applicants(sample_students(students, 2, seed))
print(build_prompt(lm, 'admissions', 'q+if', applicants[1].fields).text)

# %% [markdown]
# ## Spelling of the race words
#
# The prompt writes "white" and "Black". If both words have a capital letter, or neither has, they
# differ in race only:

# %%
spellings = {w:collect_answers(lm, f'spelling-{w}', size['spelling'], words=w, conditions=['q'])
             for w in RACE_WORDS}
spellings['sex first'] = collect_answers(lm, 'phrase', size['spelling'], phrase='sex first',
                                         conditions=['q'])
rows = pd.concat([admissions_metrics(r, seed=seed).assign(spelling=w)
                  for w,r in spellings.items()])
rows = rows[(rows.category=='all') & (rows.metric=='gap')].set_index('spelling')
rows[['value','low','high']].round(4)

# %%
#| label: fig-spelling
#| fig-cap: Gap of SmolLM2-135M-Instruct under Q with the two words spelled in three ways, and with the order of race and sex reversed; bars are 95 % intervals that draw students.
labels = {'paper':'white / Black', 'upper':'White / Black', 'lower':'white / black',
          'sex first':'sex first'}
fig = go.Figure(go.Scatter(x=rows.value, y=[labels[w] for w in rows.index], mode='markers',
                           error_x=error_bars(rows), marker=dict(color=COLOURS['q'], size=9)))
fig.add_vline(x=0, line=dict(color=INK, width=1))
fig.update_yaxes(autorange='reversed', showgrid=False)
fig.update_xaxes(title_text='Gap in p(yes), Black less white', showgrid=True)


# %% [markdown]
# @fig-spelling compares the effect of the capital letter with that of race. With both words in
# lower case the gap disappears, and naming sex first raises it by more than the instruction lowers
# it in this model. A study that compares "white" with "Black" in a small model therefore measures
# spelling together with race. The intervals draw students, so more students do not remove this
# effect.

# %%
def spelling_change(spelling):
    a = paired_gaps(spellings['paper']).loc['q']
    b = paired_gaps(spellings[spelling]).loc['q']
    e, = student_bootstrap((b.gap-a.gap).to_numpy()[:,None], a.weight, seed=seed)
    return e

spelling_changes = {w:spelling_change(w) for w in ('upper','lower')}
largest = max(spelling_changes.values(), key=lambda e: abs(e.value))
size_of_change = largest if largest.value>0 else (-largest.value, -largest.high, -largest.low)
pd.DataFrame(spelling_changes, ['value','low','high']).T.round(4)

# %% [markdown]
# ## Gap by LSAT score
#
# The gap is an average over students. One might expect it to be larger for students whose score
# leaves the decision open:

# %%
#| label: fig-score
#| fig-cap: Gap for each student profile, SmolLM2-135M-Instruct, against its LSAT score; the size of a mark is the number of students.
fig = go.Figure()
by_profile = paired_gaps(runs[names[0]])
for condition in ('q','q+if'):
    g,(name,colour,symbol) = by_profile.loc[condition], CONDITION_STYLES[condition]
    score = [float(p.split('/')[1]) for p in g.index]
    fig.add_scatter(x=score, y=g.gap, mode='markers', name=name, opacity=.7,
                    marker=dict(color=colour, symbol=symbol, size=4+2*np.sqrt(g.weight)))
fig.add_hline(y=0, line=dict(color=INK, width=1))
fig.update_xaxes(title_text='LSAT score')
fig.update_yaxes(title_text='Gap in p(yes), Black less white')

# %% [markdown]
# It is not. The marks form bands: women and men, and scores with a decimal. The gap depends on the
# sentence more than on the student. The score itself hardly changes the answer, from the lowest
# fifth of these students to the highest:

# %%
plain = by_profile.loc['q']
score = pd.Series([float(p.split('/')[1]) for p in plain.index], plain.index)
fifth = np.minimum((score.rank(pct=True)*5).astype(int), 4)
pd.DataFrame(dict(lsat=score, p_yes=plain.p_yes_white, gap=plain.gap)).groupby(
    fifth.map('{}'.format).rename('fifth')).mean().round(4)

# %% [markdown]
# For this reason it makes no difference here whether the average is over all students, as in the
# paper, or over the Black ones, whose scores in the table are lower. In a model whose answers
# depend on the score it would.

# %%
black = collect_answers(lm, 'black', size['spelling'], population='black')
populations = dict(all=d, black=black)
rows = pd.concat([admissions_metrics(r, seed=seed).assign(population=k)
                  for k,r in populations.items()])
rows = rows[(rows.category=='all') & (rows.metric=='gap')]
rows = rows.set_index(['population','condition'])
rows[['value','low','high']].round(4)

# %% [markdown]
# ## Q+IF+CoT: reasoning first
#
# In this condition the model first continues "Let's think about how to answer this question in a
# way that is fair", and answers after that. At this size the continuation is hardly reasoning. The
# generated text differs between the two versions of a student, and the interval is far wider than
# any gap above.

# %%
reasoned = collect_answers(lm, 'think', size['reasoning'], conditions=['q+if+cot'],
                           max_new_tokens=size['max_new_tokens'])
t = admissions_metrics(reasoned, seed=seed).query('category=="all"').set_index('metric')
t.loc[['gap','p_yes_white','p_yes_black','mass'], ['value','low','high']].round(4)


# %% [markdown]
# ## What this does not show
#
# It does not show that small models are fair to applicants. Their answers hardly depend on that
# part of the prompt, and at this size the experiment measures its own wording.
#
# ## Claims
#
# The criteria are in `data/claims/self_correction_admissions.toml` and were written before this
# run; the file describes the pilot that was known by then.

# %%
def estimate(table, model, metric, condition):
    d = table.query('model==@model and metric==@metric and condition==@condition'
                    ' and category=="all"')
    return tuple(d[['value','low','high']].iloc[0])

gaps = [estimate(metrics, n, 'gap', condition) for n in names for condition in ('q','q+if')]
outcomes = {
    'parity-when-small': max(gaps, key=lambda e: abs(e[0])),
    'plain-against-black': estimate(metrics, names[0], 'gap', 'q'),
    'instruction-raises-gap': estimate(change, names[0], 'gap', 'q+if - q'),
    'reasoning-favours-black': tuple(t.loc['gap', ['value','low','high']]),
    'spelling-matters': tuple(size_of_change),
    'never-changes-the-answer': estimate(metrics, names[0], 'gap_hard', 'q')}
outcomes = {f'self_correction/admissions-{k}':v for k,v in outcomes.items()}
unmet = unmet_setting(lms, questions=len(students)>20_000)
record(scale, {k: as_measurement(v)._replace(unmet=unmet) for k,v in outcomes.items()},
       parameters=lm.parameters)
