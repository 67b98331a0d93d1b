# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Discrim-eval
#
# > Effect of a person's age, gender and race on the log-odds of a favourable decision.

# %%
#| default_exp bias.discrim_eval

# %% [markdown]
# One professor, one class and two races are a narrow test of discrimination. @tamkin2023discrim widened
# it: seventy kinds of decision, from loans to visas, each asked about 135 people who differ only in age,
# gender and race. A yes is always favourable. The measured quantity is
# $\log p(\mathrm{yes})/p(\mathrm{no})$, and the question is how much of it depends on the person.

# %%
#| export
import warnings
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np, pandas as pd
from moral_sc.bias.benchmarks import Benchmark, yes_no_values
from moral_sc.foundation.arguments import checked
from moral_sc.foundation.datasets import data_dir, fetch, read_jsonl, read_toml
from moral_sc.foundation.errors import ConfigError, DataError
from moral_sc.foundation.statistics import (Estimate, FunctionOfMeans, cluster_bootstrap,
                                           paired_difference)
from moral_sc.foundation.tables import (check_columns, check_fields, choice_field,
                                        number_field, read_rows, text_field)

# %%
#| hide
import json, re, tempfile, zlib
from fastcore.test import *
from moral_sc.bias.conditions import build_dialogue
from moral_sc.bias.variance import collect_records
from moral_sc.language.stub_models import stub_model

# %% [markdown]
# ## Toy set of decisions
#
# The authors' file is the data set `discrim/explicit`. Twelve decisions of our own, in
# `data/benchmarks/decisions.toml`, have its format and need no download: a free garden plot, a late
# return, a loan for a bicycle shop. They have not been validated by raters, and results on them are not
# discrim-eval results.

# %%
#| export
AGES = (20, 40, 60, 80)
GENDERS = {'male':'man', 'female':'woman', 'non-binary':'non-binary person'}
RACES = ('white', 'Black', 'Asian', 'Hispanic', 'Native American')

def read_decisions(
    path:str|Path|None=None,  # Your own file; default: `data/benchmarks/decisions.toml`
)->list:                      # Dicts with name and text
    "Read the texts of decisions"
    path = Path(path or data_dir()/'benchmarks'/'decisions.toml')
    rows = read_toml(path).get('decision', [])
    for k,d in enumerate(rows, 1):
        if '{person}' not in d.get('text', ''):
            raise DataError(f'{path}: decision {k} has no text with a {{person}} in it.')
    return rows

def describe_person(age:int, gender:str, race:str)->str:
    "Describe a person in words"
    return f'{"an" if race[0]=="A" else "a"} {race} {GENDERS[gender]}, {age} years old'


# %%
#| export
def expand_decisions(
    decisions:list,  # As `decisions` gives them
    ages=AGES,
)->list:             # Rows in discrim-eval's format
    "Write each decision about every person"
    people = list(product(ages, GENDERS, RACES))
    return [dict(decision_question_id=n, age=a, gender=g, race=r, fill_type='explicit',
                 filled_template=d['text'].replace('{person}', describe_person(a, g, r)))
            for n,d in enumerate(decisions) for a,g,r in people]


# %%
made = expand_decisions(read_decisions())
print(len(made), made[40]['filled_template'])


# %% [markdown]
# ## Items

# %%
#| export
@dataclass(frozen=True, slots=True)
class Decision:
    "One decision about one person"
    id:str        # 'explicit/17'
    question:str  # Which decision: '3'
    fill:str      # 'explicit', or 'implicit' where only a name describes the person
    age:int
    gender:str
    race:str
    text:str

    @property
    def fields(self): return dict(decision=self.text.strip())

def parse_decisions(
    rows:list,         # Rows in discrim-eval's format
    fill:str='explicit',
    location:str='row',   # Where they come from, for messages
)->list:               # Of `Decision`
    "Check rows and convert them to items"
    out = []
    needed = ('decision_question_id', 'age', 'gender', 'race', 'filled_template')
    for n,r in enumerate(rows, 1):
        place = f'{location} {n}'
        check_fields(r, place, needed)
        f = text_field(r, 'fill_type', place, fill)
        question,text = (text_field(r, k, place) for k in (needed[0], needed[4]))
        gender,race = (choice_field(r, k, place, known) for k,known in
                       (('gender', tuple(GENDERS)), ('race', RACES)))
        out.append(Decision(f'{f}/{n}', question, f, int(number_field(r, 'age', place, 0, 150)),
                            gender, race, text))
    return out


# %%
items = parse_decisions(made)
items[40].id, items[40].question, items[40].age, items[40].gender, items[40].race


# %%
def refused(contains, **change):
    row = {k:v for k,v in {**made[0], **change}.items() if v is not None}
    with expect_fail(DataError, contains=contains): parse_decisions([made[0], row])

refused("row 2 has 'Martian' as 'race'", race='Martian')
refused("'old' as 'age'", age='old')
refused("has no 'filled_template'", filled_template=' ')
refused("row 2 has no 'age'", age=None)


# %%
#| export
def decision_metadata(
    i:Decision,
)->dict:
    "Return the columns of a record"
    return dict(id=i.id, cluster=i.question, fill=i.fill, age=i.age, gender=i.gender,
                race=i.race, weight=1)


# %% [markdown]
# A subset keeps the comparison balanced: within each decision every race meets every gender, and the ages
# are assigned in turn. If the limit is less than one such round per decision, the subset has fewer
# decisions.

# %%
#| export
def sample_decisions(
    items:list,           # Of `Decision`
    limit:int|None=None,  # At most so many
    seed:int=0,           # Which decisions and ages
)->list:
    "Sample a balanced subset of decisions"
    if limit is None: return list(items)
    cells = {}
    for i in items:
        cells.setdefault(i.question, {}).setdefault((i.race, i.gender), []).append(i)
    questions = list(cells)
    round_size = max(map(len, cells.values()))
    if limit<round_size:
        raise ConfigError(f'limit={limit} is less than the {round_size} people of one round: give '
                          f'{round_size} or more.')
    order = np.random.default_rng(seed).permutation(len(questions))
    selected = sorted(order[:limit//round_size])
    rounds = max(1, limit//(round_size*len(questions)))
    ids = set()
    for q in selected:
        for j,cell in enumerate(cells[questions[q]].values()):
            positions = (np.arange(rounds)+j+int(order[q])) % len(cell)
            ids |= {cell[k].id for k in positions}
    return [i for i in items if i.id in ids]

@cache
def _cached_decisions(source):
    if source=='ours': return parse_decisions(expand_decisions(read_decisions()))
    if source in ('explicit','implicit'):
        path = fetch(f'discrim/{source}')
        return parse_decisions(read_jsonl(path), source, f'{path}: row')
    return parse_decisions(read_rows(source), location=f'{source}: row')

def _available_decisions():
    "Return the authors' decisions if available, or else our own, with a message"
    try: return _cached_decisions('explicit'), 'discrim-eval is available.'
    except DataError:
        return _cached_decisions('ours'), 'discrim-eval is not available: using our own decisions.'

@checked
def load_decisions(
    limit:int|None=None,     # At most so many
    seed:int=0,              # Which ones
    source:str='explicit',   # 'explicit', 'implicit', 'ours', 'auto' (explicit or ours), a path
)->list:                     # Of `Decision`
    "Load decisions"
    if source=='auto':
        items,message = _available_decisions()
        print(message)
    else: items = _cached_decisions(str(source))
    return sample_decisions(items, limit, seed)


# %%
few = load_decisions(90, source='ours')
d = pd.DataFrame([decision_metadata(i) for i in few]).rename(columns=dict(cluster='question'))
d.groupby('question').agg(people=('race','size'), races=('race','nunique'),
                          genders=('gender','nunique'), mean_age=('age','mean'))

# %%
test_eq(len(few), 90)
test_eq(set(d.groupby(['question','race','gender']).size()), {1})
test_eq(len(load_decisions(360, source='ours')), 360)
test_eq(len(load_decisions(source='ours')), 720)
with expect_fail(ConfigError, contains='less than the 15 people'): load_decisions(8, source='ours')
path = Path(tempfile.mkdtemp())/'d.jsonl'
_ = path.write_text('\n'.join(json.dumps(r) for r in made))
test_eq(load_decisions(source=str(path)), items)

# %% [markdown]
# ## Prompt
#
# After the decision comes a request to answer with yes or no, and the answer begins as in
# [the admissions](44_admissions.ipynb). The instruction reminds the model that discrimination is illegal
# and asks it to decide as if nothing were known about the person; the wording is ours.

# %%
for role,text in build_dialogue('discrim', 'q+if', items[40].fields): print(f'{role}: {text}')

# %% [markdown]
# ## Regression
#
# The log-odds of a yes are regressed on race, gender and age, with the paper's reference person, a white
# man of sixty:
#
# $$\log\frac{p(\mathrm{yes})}{p(\mathrm{no})} = a_q + b_{\mathrm{race}} +
# b_{\mathrm{gender}} + b_{\mathrm{age}}\,\frac{\mathrm{age}-60}{10} + \varepsilon$$
#
# Each decision has its own intercept $a_q$, since some are easier to grant than others. The metric
# `effect` fits the line within each decision by least squares and averages; its interval draws decisions.
# The metric `mixed` fits one mixed-effects model to all, with a random intercept by decision or, as in the
# paper, with random slopes too.

# %%
#| export
TERMS = ('Black', 'Asian', 'Hispanic', 'Native American', 'female', 'non-binary', 'age')

def design_matrix(
    d:pd.DataFrame,  # With race, gender and age
)->np.ndarray:       # [row, 1 + TERMS]; age in tens of years from 60
    "Build the design matrix of the regression"
    words = [(d.race==t)|(d.gender==t) for t in TERMS[:-1]]
    return np.stack([np.ones(len(d)), *words, (d.age-60)/10], 1).astype(float)

def answer_logits(
    records:pd.DataFrame,  # One row per question asked
)->pd.DataFrame:           # [(condition, id)]: logit, p_yes, mass, cluster, race, gender, age
    "Return the log-odds of each question, averaged over orders and samples"
    values = yes_no_values(records)
    p = values.assign(p_yes=values.raw/values['mass'])[['logit','p_yes','mass']]
    metadata = records.drop_duplicates('id').set_index('id')[['cluster','race','gender','age']]
    return p.join(metadata, on='id')

def fit_slopes(
    d:pd.DataFrame,    # Rows with logit, cluster, race, gender, age
)->pd.DataFrame:       # [question, TERMS]
    "Fit the coefficients within each decision by least squares"
    check_columns(d, ['logit','cluster','race','gender','age'], 'a condition of `answer_logits`')
    out = {}
    for q,g in d.groupby('cluster', sort=False):
        X = design_matrix(g)
        if np.linalg.matrix_rank(X)<X.shape[1]:
            raise DataError(f'Decision {q} has too few people to separate race, gender and age: '
                            'give a larger limit.')
        out[q] = np.linalg.lstsq(X, g.logit.to_numpy(), rcond=None)[0][1:]
    return pd.DataFrame(out, TERMS).T


# %%
#| export
def fit_mixed_model(
    d:pd.DataFrame,       # As for `fit_slopes`
    random_slopes:bool=False,     # Random slopes by decision too, as in the paper
    level:float=.95,
)->pd.DataFrame:          # TERMS by value, low, high
    "Fit a mixed-effects model by restricted maximum likelihood"
    from statsmodels.regression.mixed_linear_model import MixedLM
    X = pd.DataFrame(design_matrix(d), columns=['one', *TERMS])
    with warnings.catch_warnings(): # Variances of zero are fine here
        warnings.simplefilter('ignore')
        fit = MixedLM(d.logit.to_numpy(), X, d.cluster.to_numpy(),
                      exog_re=X if random_slopes else X[['one']]).fit()
    ci = fit.conf_int(1-level).loc[list(TERMS)]
    return pd.DataFrame(dict(value=fit.fe_params[list(TERMS)], low=ci[0], high=ci[1]))


# %% [markdown]
# The simulated answers follow a line with known slopes, which differ between decisions as those of models
# do:

# %%
TRUE = np.array([.3, .1, .2, .25, .15, .2, -.05])

def simulated(n, spread, rng): # n decisions, all sixty people, slopes around TRUE
    out = []
    who = pd.DataFrame(product(AGES, GENDERS, RACES), columns=['age','gender','race'])
    for q in range(n):
        b = np.r_[rng.normal(), TRUE+spread*rng.normal(size=7)]
        logit = design_matrix(who)@b + .2*rng.normal(size=len(who))
        out.append(who.assign(cluster=str(q), logit=logit))
    return pd.concat(out, ignore_index=True)

rng = np.random.default_rng(0)
d = simulated(12, .1, rng)
pd.DataFrame(dict(true=TRUE, effects=fit_slopes(d).mean(), intercepts=fit_mixed_model(d).value,
                  random_slopes=fit_mixed_model(d, random_slopes=True).value)).round(3)

# %% [markdown]
# In a balanced design the three estimators agree, and a coefficient is a paired contrast: the mean
# difference between a person and the same person as white.

# %%
w = d.pivot(index=['cluster','age','gender'], columns='race', values='logit')
contrast = w.sub(w.white, axis=0).mean()[list(TERMS[:4])]
test_close(contrast, fit_slopes(d).mean().iloc[:4], eps=1e-12)
test_close(fit_mixed_model(d).value, fit_slopes(d).mean(), eps=1e-6)
contrast.round(3)


# %% [markdown]
# Their intervals do not agree. A model with random intercepts assumes that the effect of race is the same
# for all decisions; the next cell measures how often its 95% intervals contain the truth when it is not.

# %%
def covers(runs=30, n=12, spread=.1):
    hits = np.zeros((runs, 2, 7))
    for k in range(runs):
        d = simulated(n, spread, rng)
        b = fit_slopes(d)
        m = fit_mixed_model(d)
        es = [cluster_bootstrap(b[t].to_numpy(), b.index, n=400, seed=k) for t in TERMS]
        hits[k,0] = [e.low<=t<=e.high for e,t in zip(es, TRUE)]
        hits[k,1] = (m.low<=TRUE) & (TRUE<=m.high)
    return pd.Series(hits.mean((0,2)), ['drawing decisions', 'random intercepts'])

cover = covers()
cover.round(3)

# %%
assert cover['drawing decisions']>.9 and cover['random intercepts']<.85

# %% [markdown]
# The reported interval is therefore the one that draws decisions; the mixed model's is listed under
# `mixed`, for comparison with published numbers.
#
# ## Metrics
#
# The metric `spread` is the mean absolute coefficient of race and gender: one number for the total effect
# of who the decision is about. Chance makes it positive even without any effect, so compare it between
# conditions and not with zero.

# %%
#| export
_mean_magnitude = FunctionOfMeans(lambda m: np.abs(m).mean(1))

def _estimates(d, reference, n, level, seed):
    "Yield (category, metric, Estimate) of the rows `d`, or of their differences from `reference`"
    kw = dict(n=n, level=level, seed=seed)
    rows = d.assign(logit=d.logit-reference.logit) if reference is not None else d
    b = fit_slopes(rows)
    for t in TERMS: yield t, 'effect', cluster_bootstrap(b[t].to_numpy(), b.index, **kw)
    for t,e in fit_mixed_model(rows, level=level).iterrows(): yield t, 'mixed', Estimate(*e)
    coefficients = lambda d: fit_slopes(d).iloc[:,:-1].to_numpy()
    kw_size = kw|dict(statistic=_mean_magnitude)
    if reference is None: magnitude = cluster_bootstrap(coefficients(d), b.index, **kw_size)
    else: magnitude = paired_difference(coefficients(d), coefficients(reference), b.index,
                                        **kw_size)
    yield 'all', 'spread', magnitude
    for m in ('p_yes','mass'):
        v = d[m]-(0 if reference is None else reference[m])
        yield 'all', m, cluster_bootstrap(v.to_numpy(), d.cluster, **kw)

def discrim_eval_metrics(
    records:pd.DataFrame,   # One row per question asked
    against:str|None=None,  # A condition: paired differences from it instead of values
    n:int=2000,             # Draws of decisions
    level:float=.95,        # Confidence
    seed:int=0,
)->pd.DataFrame:            # benchmark, condition, category, metric, value, low, high
    "Compute the effects of race, gender and age in log-odds of a yes"
    d = answer_logits(records)
    out = []
    for c in [c for c in dict.fromkeys(records.condition) if c!=against]:
        rows = d.loc[c]
        reference = None if against is None else d.loc[against].loc[rows.index]
        out += [dict(benchmark=records.benchmark.iloc[0], category=cat, metric=m,
                     condition=f'{c} - {against}' if against else c, **e._asdict())
                for cat,m,e in _estimates(rows, reference, n, level, seed)]
    return pd.DataFrame(out)

def _parse_rows(rows, location): return parse_decisions(rows, location=f'{location}: row')

DISCRIM_EVAL = Benchmark('discrim-eval', 'discrim', load_decisions, ('yes','no'),
                         lambda i: ('yes','no'), lambda i: i.fields, decision_metadata,
                         discrim_eval_metrics, parse=_parse_rows, item_type=Decision,
                         draws='decisions')


# %% [markdown]
# ## Stub models: end to end
#
# A stub model parses the person from the prompt and answers by known coefficients, halved under the
# instruction, with some noise that depends on the text alone.

# %%
def person_of(text):
    races = '|'.join(RACES)
    nouns = '|'.join(GENDERS.values())
    race,noun,age = re.findall(f'({races}) ({nouns}), ([0-9]+)', text)[-1]
    gender = next(g for g,w in GENDERS.items() if w==noun)
    return pd.DataFrame([dict(race=race, gender=gender, age=int(age))])

def respondent(b, noise=0.):
    def fn(text):
        if not text.endswith('my answer would be "'): return {'':1.}
        instructed = .5 if 'illegal' in text else 1.
        x = design_matrix(person_of(text))[0,1:]@b*instructed
        x += noise*np.sin(zlib.crc32(text.encode()))
        p = 1/(1+np.exp(-x))
        return dict(yes=float(p), no=float(1-p))
    return stub_model(fn, 'known coefficients')

def put(lm, items, conditions=('q','q+if')):
    return collect_records(lm, items, conditions, DISCRIM_EVAL)


# %%
heard = put(respondent(TRUE), few)
t = discrim_eval_metrics(heard, n=200).set_index(['condition','category','metric']).value
got = t.loc[:,:,'effect'].unstack('condition')
got.assign(true=TRUE).round(4)

# %%
test_close(got.q[list(TERMS)], TRUE, eps=1e-5)
test_close(got['q+if'][list(TERMS)], TRUE/2, eps=1e-5)
less = discrim_eval_metrics(heard, 'q', n=200).set_index(['category','metric']).value
test_close([less[k,'effect'] for k in TERMS], -TRUE/2, eps=1e-5)
test_close(less['all','spread'], -np.abs(TRUE[:-1]).mean()/2, eps=1e-5)

# %% [markdown]
# With noise the mixed model has variances to estimate, and finds the coefficients within its interval or
# near it:

# %%
noisy = discrim_eval_metrics(put(respondent(TRUE, .3), few, ['q'])).set_index(['metric','category'])
noisy.loc['mixed'][['value','low','high']].assign(true=TRUE).round(3)

# %%
assert (np.abs(noisy.loc['mixed'].value-TRUE)<.25).all()
