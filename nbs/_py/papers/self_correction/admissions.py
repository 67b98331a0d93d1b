# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A capital letter outweighs the professor's request
#
# > Law-school admissions, one student as Black and as white: SmolLM2-135M-Instruct and
# > Gemma-3-270M, all 3,888 prompts. The site shows a run recorded at `scale = 'cpu'`.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds; cpu: all prompts, an hour a model; gpu: reasoning on more
seed = 0         # which students are taken, what is sampled, and the draws behind intervals

# %%
#| hide
import numpy as np, pandas as pd, plotly.graph_objects as go
from moral_sc.bias import evaluate
from moral_sc.bias.admissions import (ADMISSIONS, RACE_WORDS, admissions_metrics, build_applicants,
                                      load_applicants, load_students, paired_gaps, sample_students,
                                      student_bootstrap)
from moral_sc.bias.conditions import build_prompt
from moral_sc.bias.plots import CONDITION_STYLES
from moral_sc.foundation.figures import COLOURS, INK
from moral_sc.lab.claims import record
from moral_sc.lab.paths import work_dir
from moral_sc.lab.scales import at_scale
from moral_sc.language.loading import load_or_stub
from moral_sc.language.stub_models import stub_model

# %%
size = at_scale(scale, # prompts a condition; a spelling; with reasoning, and its tokens; models
    quick=dict(limit=4, spelling=2, think=2, new=8, models=1),
    cpu=dict(limit=None, spelling=48, think=8, new=32, models=2),
    gpu=dict(limit=None, spelling=None, think=400, new=256, models=2),
)

def stand_in(): # Says yes two times in three, whoever asks
    done = lambda t: t.endswith('answer would be "')
    says = dict(yes=.6, no=.3, perhaps=.1)
    return stub_model(lambda t: says if done(t) else {'':1.}, 'two in three')

names = ['smollm2-135m-instruct', 'gemma-3-270m'][:size['models']]
models = {n:load_or_stub(n, stand_in) for n in names}
students = load_students('auto')

# %% [markdown]
# The paper describes a law student to a model and asks whether to admit them, once as Black
# and once as white:
#
# > *Below 52 billion parameters race makes no difference. At 52 billion a Black student is 15
# > points less likely to get a yes, and the instruction not to be biased turns that into 5
# > points more; at 175 billion it is 3 points less, and 7 more with reasoning*
# > [@ganguli2023].
#
# Ours are a thousand times smaller. By the paper, then, there is nothing to be seen. What
# can be seen is how the number behaves where there is nothing: which reading of the
# probabilities, which spelling of two words and which students it depends on.
#
# ## What is asked

# %%
lm = models[names[0]]
one = build_applicants(sample_students(students, 2, seed))
print(build_prompt(lm, 'admissions', 'q+if', one[1].fields).text)


# %% [markdown]
# The model goes on after the opening quotation mark. The last turn speaks of a "reasoning
# above" in every condition, also where there is none; that is the paper's.
#
# ## What is answered

# %%
def put(lm, name, limit=size['limit'], benchmark=ADMISSIONS, **kw):
    items = load_applicants(limit, seed, source='auto', words=kw.pop('words', 'paper'),
                 phrase=kw.pop('phrase', 'race first'),
                 population=kw.pop('population', 'all'))
    out = work_dir(f'admissions-{name}-{scale}-{seed}-{lm.name}-{len(students)}')
    e = evaluate(lm, benchmark, items=items, out=out, seed=seed, **kw)
    return e.records

runs = {n:put(m, 'plain') for n,m in models.items()}
d = runs[names[0]]
d[['id','condition','weight','lp_yes','lp_no','mass']].head(4).round(3)

# %%
found = pd.concat([admissions_metrics(r, seed=seed).assign(model=n) for n,r in runs.items()])
shown = ['p_yes_white', 'p_yes_black', 'gap', 'gap_raw', 'gap_logit', 'gap_hard', 'mass']
every = found[found.category=='all'].set_index(['model','condition','metric']).value
every.unstack()[shown].round(4)

# %% [markdown]
# The likelier answer is never another one, and the chance of it moves by about a hundredth
# or less. For SmolLM2 the sign depends on the reading: as Black the student gets less
# probability of "yes" as it is (`gap_raw`) and more relative to "no" (`gap`), because both
# words get less and something else gets more. The paper does not say which of the two it
# plots. The instruction moves the chance of a yes for both races alike, and by far more
# than the difference between them.

# %%
#| label: fig-size
#| fig-cap: p(yes) for a student as Black less as white, against size; filled marks are ours with 95 % intervals, open ones what the paper's text gives for its own models at 800 steps of RLHF.
PAPER = {'q':[(52e9,-.15), (175e9,-.03)], 'q+if':[(52e9,.05)], 'q+if+cot':[(175e9,.07)]}

def bars(g):
    return dict(type='data', symmetric=False, array=g.high-g.value,
                arrayminus=g.value-g.low, thickness=1.5, width=3)

def plot_size(found, models):
    g0 = found.query('category=="all" and metric=="gap"')
    fig = go.Figure()
    for c in ('q', 'q+if', 'q+if+cot'):
        name,colour,symbol = CONDITION_STYLES[c]
        g = g0[g0.condition==c]
        theirs = PAPER[c]
        if len(g): fig.add_scatter(x=[models[m].parameters for m in g.model], y=g.value,
                                   error_y=bars(g), mode='markers', name=name,
                                   marker=dict(color=colour, symbol=symbol, size=9))
        fig.add_scatter(x=[x for x,_ in theirs], y=[y for _,y in theirs], mode='markers',
                        name=f'{name}, paper', marker=dict(color=colour, size=9,
                                                           symbol=symbol+'-open'))
    fig.add_hline(y=0, line=dict(color=INK, width=1))
    fig.update_xaxes(type='log', title_text='Parameters', dtick=1)
    return fig.update_yaxes(title_text='Gap in p(yes), Black less white')

plot_size(found, models)

# %% [markdown]
# Near zero at this size, as @fig-size shows on the paper's scale; but Gemma's gap is
# farther from it than the hundredth within which we meant to call it parity.

# %% [markdown]
# What the instruction changes, student by student:

# %%
change = pd.concat([admissions_metrics(r, against='q', seed=seed).assign(model=n)
                    for n,r in runs.items()])
t = change.query('category=="all"').set_index(['model','metric'])
t.loc[(slice(None), ['gap','gap_logit','p_yes_black','p_yes_white']),
      ['value','low','high']].round(4)

# %% [markdown]
# ## A capital letter
#
# The prompt says "white" and "Black". Written alike, both with a capital or neither, the
# two words differ in race only:

# %%
spelled = {w:put(lm, f'spelling-{w}', size['spelling'], words=w, conditions=['q'])
           for w in RACE_WORDS}
spelled['sex first'] = put(lm, 'phrase', size['spelling'], phrase='sex first',
                           conditions=['q'])
rows = pd.concat([admissions_metrics(r, seed=seed).assign(said=w) for w,r in spelled.items()])
rows = rows[(rows.category=='all') & (rows.metric=='gap')].set_index('said')
rows[['value','low','high']].round(4)

# %%
#| label: fig-spelling
#| fig-cap: The gap of SmolLM2-135M-Instruct under Q with the two words spelled in three ways, and with the order of race and sex reversed; bars are 95 % intervals that draw students.
said = {'paper':'white / Black', 'upper':'White / Black', 'lower':'white / black',
        'sex first':'sex first'}
fig = go.Figure(go.Scatter(x=rows.value, y=[said[w] for w in rows.index], mode='markers',
                           error_x=bars(rows), marker=dict(color=COLOURS['q'], size=9)))
fig.add_vline(x=0, line=dict(color=INK, width=1))
fig.update_yaxes(autorange='reversed', showgrid=False)
fig.update_xaxes(title_text='Gap in p(yes), Black less white', showgrid=True)


# %% [markdown]
# @fig-spelling puts the capital letter beside race. With both words in small letters the
# gap is gone, and naming sex first makes it larger than any instruction makes it smaller: a
# study that compares "white" with "Black" in a small model measures letters along with
# people. Intervals draw students, and no number of students narrows that down.

# %%
def changed(other):
    a = paired_gaps(spelled['paper']).loc['q']
    b = paired_gaps(spelled[other]).loc['q']
    e, = student_bootstrap((b.gap-a.gap).to_numpy()[:,None], a.weight, seed=seed)
    return e

moves = {w:changed(w) for w in ('upper','lower')}
most = max(moves.values(), key=lambda e: abs(e.value))
letter = most if most.value>0 else (-most.value, -most.high, -most.low)
pd.DataFrame(moves, ['value','low','high']).T.round(4)

# %% [markdown]
# ## Who is asked about
#
# The gap is an average over students. It could differ between them, and one might expect it
# to be larger where a score leaves the decision open:

# %%
#| label: fig-score
#| fig-cap: The gap for each profile that was asked about, SmolLM2-135M-Instruct, against its LSAT score; the size of a mark is the number of students.
fig = go.Figure()
by_profile = paired_gaps(runs[names[0]])
for c in ('q','q+if'):
    g,(name,colour,symbol) = by_profile.loc[c], CONDITION_STYLES[c]
    score = [float(p.split('/')[1]) for p in g.index]
    fig.add_scatter(x=score, y=g.gap, mode='markers', name=name, opacity=.7,
                    marker=dict(color=colour, symbol=symbol, size=4+2*np.sqrt(g.weight)))
fig.add_hline(y=0, line=dict(color=INK, width=1))
fig.update_xaxes(title_text='LSAT score')
fig.update_yaxes(title_text='Gap in p(yes), Black less white')

# %% [markdown]
# It does nothing of the kind. The marks lie in bands: women and men, and scores with a
# decimal, as if the gap were a matter of sentences and not of students. The score itself
# hardly moves the answer, from the lowest fifth of these students to the highest:

# %%
plain = by_profile.loc['q']
score = pd.Series([float(p.split('/')[1]) for p in plain.index], plain.index)
fifth = np.minimum((score.rank(pct=True)*5).astype(int), 4)
pd.DataFrame(dict(lsat=score, p_yes=plain.p_yes_white, gap=plain.gap)).groupby(
    fifth.map('{}'.format).rename('fifth')).mean().round(4)

# %% [markdown]
# So it makes no difference here whether the average is over all students, as in the paper,
# or over the Black ones, whose scores in the table are lower; in a model that goes by the
# score it would.

# %%
black = put(lm, 'black', size['spelling'], population='black')
groups = dict(all=d, black=black)
rows = pd.concat([admissions_metrics(r, seed=seed).assign(population=k) for k,r in groups.items()])
rows = rows[(rows.category=='all') & (rows.metric=='gap')]
rows = rows.set_index(['population','condition'])
rows[['value','low','high']].round(4)

# %% [markdown]
# ## Reasoning first
#
# With reasoning the model first continues "Let's think about how to answer this question in
# a way that is fair", and answers after that. A model of this size continues, and does not
# reason. What it happens to write now differs between the two versions of a student, and
# the interval is wider by far than any gap above.

# %%
thought = put(lm, 'think', size['think'], conditions=['q+if+cot'],
              max_new_tokens=size['new'])
t = admissions_metrics(thought, seed=seed).query('category=="all"').set_index('metric')
t.loc[['gap','p_yes_white','p_yes_black','mass'], ['value','low','high']].round(4)


# %% [markdown]
# ## Claims
#
# The criteria lie in `data/claims/self_correction_admissions.toml` and were written before
# this run, with the pilot known that is described there.

# %%
def of(table, model, metric, condition):
    d = table.query('model==@model and metric==@metric and condition==@condition'
                    ' and category=="all"')
    return tuple(d[['value','low','high']].iloc[0])

both = [of(found, n, 'gap', c) for n in names for c in ('q','q+if')]
farthest = max(both, key=lambda e: abs(e[0]))
outcomes = {
    'parity-when-small': farthest,
    'plain-against-black': of(found, names[0], 'gap', 'q'),
    'instruction-raises-gap': of(change, names[0], 'gap', 'q+if - q'),
    'reasoning-favours-black': tuple(t.loc['gap', ['value','low','high']]),
    'spelling-matters': tuple(letter),
    'never-changes-the-answer': of(found, names[0], 'gap_hard', 'q')}
outcomes = {f'self_correction/admissions-{k}':v for k,v in outcomes.items()}
real = not lm.is_stub and len(students)>20_000
if lm.is_stub: print('An oracle answered, so no claim about models is recorded.')
else: record(scale if real else 'quick', outcomes)

# %% [markdown]
# What this does not show: that small models are fair to applicants. They hardly read that
# part of the prompt, and at this size the experiment measures its own wording.
