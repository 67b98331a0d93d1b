# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Instruction wordings: instruction and opposite do not differ at 135M
#
# > At 135M parameters the instruction, its opposite and an unrelated note change the BBQ score (Figure 1, left) alike, within our bounds.

# %% tags=["parameters"]
scale = 'quick'  # quick: two scenes; cpu: 32, nine wordings, minutes; gpu: all of BBQ
seed = 0         # sample of scenes, and the draws behind the intervals
models = ()      # --model NAME: aliases, folders or hub ids; default: those of the scale

# %%
#| hide
import warnings
import numpy as np, pandas as pd
from scipy.stats import chi2
from moral_sc.bias import bbq, winogender
from moral_sc.bias.benchmarks import mean_probabilities
from moral_sc.bias.conditions import wordings
from moral_sc.bias.evaluation import load_models, unmet_setting
from moral_sc.bias.bbq.items import stratified
from moral_sc.bias.plots import condition_style
from moral_sc.bias.variance import (collect_records, item_values, mean_effect, plot_wordings,
                                    scores_by_wording, variance_components, wording_share,
                                    wording_stub_model, wording_table)
from moral_sc.foundation.statistics import Estimate
from moral_sc.lab.claims import as_measurement, record
from moral_sc.lab.paths import work_dir
from moral_sc.lab.scales import at_scale

# %%
size = at_scale(scale, # scenes, occupations, wordings of each request, option orders
    quick=dict(scenes=2, jobs=4, K=2, orders=1),
    cpu=dict(scenes=32, jobs=None, K=9, orders=1),
    gpu=dict(scenes=None, jobs=None, K=9, orders=3),
)
MODELS = dict(quick=(), cpu=('smollm2-135m-instruct','gemma-3-270m'),
              gpu=('smollm2-135m-instruct','gemma-3-270m'))
REQUESTS = ['q+if', 'q+anti', 'q+note']
K = size['K']
conditions = ['q', *[f'{c}:{k}' for c in REQUESTS for k in range(K)]]

# %% [markdown]
# ## Figure 1, left: wording of the instruction
#
# > The authors chose each instruction once. They write that they did not study how much their
# > results depend on its wording, and leave open whether a model that follows an instruction to
# > avoid stereotypes would also follow the opposite one [@ganguli2023].
#
# One experiment answers both questions. Each request has nine wordings: the instruction (Q+IF), the
# opposite instruction in nearly the same words (Q+anti), and a note of the same form about something
# else (Q+note). If a model follows requests, Q+IF and Q+anti differ, and Q+note stays with the plain
# question. If its output depends only on the presence of another sentence, all three conditions change
# equally, and wordings vary at random.

# %%
examples = dict(list(enumerate(zip(*(wordings('bbq', c) for c in REQUESTS))))[:3])
pd.DataFrame(examples, [condition_style(c)[0] for c in REQUESTS]).T.style.set_properties(
    **{'text-align':'left', 'white-space':'pre-wrap'})


# %% [markdown]
# ## BBQ bias score by wording
#
# Only ambiguous questions are used, once each in the order of the file. A scene has a negative and
# a non-negative question, so a letter preference favours each person once; what remains is small,
# and every wording has the same questions.

# %%
def options_with_lean(item, lean):
    p = {item.unknown:.4, item.biased:.3+lean/2, item.counter:.3-lean/2}
    return [p[k] for k in range(3)]

def deaf(item, condition): # Stub model whose bias depends on the wording only
    noise = np.random.default_rng(sum(map(ord, condition))).normal()
    return options_with_lean(item, .3 + .1*noise)

def bias_table(records): return wording_table(records, item_values(records, 'bias_ambig'))

items = bbq.load(source='auto')
scenes = stratified(items, size['scenes'] and 4*size['scenes'], seed)
ambiguous = [i for i in scenes if i.context_condition=='ambig' and i.biased is not None]
lms = load_models(models, MODELS[scale], lambda: wording_stub_model(deaf, ambiguous))
records = {}
for lm in lms.values():
    out = work_dir(f'wordings-{scale}-{seed}-{lm.name}-{len(ambiguous)}')
    records[lm.name] = collect_records(lm, ambiguous, conditions, orders=size['orders'], seed=seed,
                                       out=out)
tables = {n:bias_table(r) for n,r in records.items()}
first = list(records)[0]
last = list(records)[-1]
pd.DataFrame({n:dict(questions=r.id.nunique(), templates=r.template.nunique(),
                     mass=r['mass'].mean().round(2)) for n,r in records.items()})

# %%
#| label: fig-smollm
#| fig-cap: Soft bias score on ambiguous questions under each wording, SmolLM2-135M-Instruct; the large mark is the paper's wording or the one derived from it, bars are means of a condition.
AXIS = 'Bias score, ambiguous, from probabilities'
plot_wordings(scores_by_wording(tables[first]), AXIS)

# %%
#| label: fig-gemma
#| fig-cap: Soft bias score on ambiguous questions under each wording, last model (at scale cpu Gemma-3-270M); marks and bars as above.
plot_wordings(scores_by_wording(tables[last]), AXIS)


# %% [markdown]
# ## Effect of each request
#
# The intervals treat wordings and templates as samples: they hold for other wordings and other
# questions of this kind.

# %%
def request_effects(records, metric='bias_ambig'):
    "Estimate the change due to each request, and the differences between requests"
    y = wording_table(records, item_values(records, metric))
    changes = {f'{condition_style(c)[0]} less Q': y[c].sub(y['q'][0], axis=0) for c in REQUESTS}
    for c in ('q+anti','q+note'):
        changes[f'Q+IF less {condition_style(c)[0]}'] = y['q+if']-y[c]
    return pd.DataFrame({k:mean_effect(d)._asdict() for k,d in changes.items()}).T

effects = {n:request_effects(r) for n,r in records.items()}
pd.concat(effects).round(4)

# %% [markdown]
# Any added sentence changes the first model's score a little, and the content of the sentence
# hardly matters. The instruction and its opposite have nearly the same words, so half of their
# difference is the effect of the meaning:

# %%
value = effects[first].value
pd.Series({'a sentence is added': value.iloc[:3].mean(),
           'its sense': value['Q+IF less Q+anti']/2}, name=first).round(4)

# %% [markdown]
# A bias score can stay constant while answers change. The table has the changes of the probability of
# the unknown answer; all of their intervals include zero:

# %%
declining = {n:request_effects(r, 'accuracy_ambig') for n,r in records.items()}
pd.concat(declining).round(4)

# %% [markdown]
# ## Two stub models with known answers
#
# The measures are checked on two stub models. `heeds` follows requests: its bias is halved by the
# instruction and raised by the opposite, whatever the words. `deaf` ignores their meaning: its bias
# changes with each wording by a random amount.

# %%
ours = [i for i in stratified(bbq.load(source='ours'), 24) if i.context_condition=='ambig']

def heeds(item, condition):
    lean = {'q+if':.15, 'q+anti':.45}.get(condition.partition(':')[0], .3)
    return options_with_lean(item, lean)

known = {f.__name__: bias_table(collect_records(wording_stub_model(f, ours), ours, conditions))
         for f in (heeds, deaf)}
pd.DataFrame({n:{'share of wording': wording_share(y[REQUESTS]).value,
                 'Q+IF less Q+anti': mean_effect(y['q+if']-y['q+anti']).value,
                 'Q+note less Q': mean_effect(y['q+note'].sub(y['q'][0], axis=0)).value}
              for n,y in known.items()}).round(3)

# %%
assert wording_share(known['heeds'][REQUESTS]).value<1e-6
assert abs(mean_effect(known['heeds']['q+if']-known['heeds']['q+anti']).value+.3)<1e-6


# %% [markdown]
# ## Variance components
#
# The variance of a template's bias score by its source and, for comparison, that of its probability
# of the unknown answer, for the first model:

# %%
def components(records, metric):
    y = wording_table(records, item_values(records, metric))
    c = variance_components(y[REQUESTS], seed=seed)
    c['sd'] = c.variance.clip(lower=0)**.5
    return c[['sd','share','share_low','share_high']]

METRICS = ['bias_ambig', 'accuracy_ambig']
pd.concat({m:components(records[first], m) for m in METRICS}, axis=1).round(3)

# %% [markdown]
# The table has the share of wording in the variance among requests alone. For the first model its
# interval goes from 0 to 1, because requests hardly change the answers:

# %%
shares = {n:{m:wording_share(wording_table(r, item_values(r, m))[REQUESTS], seed=seed)
             for m in METRICS} for n,r in records.items()}
pd.DataFrame(shares)

# %% [markdown]
# ## Winogender correlation by wording
#
# Winogender's measure is not zero for a model that does not follow the text: it is the correlation
# between the female pronoun's share of female and male and the share of women in an occupation. In
# the paper it is near 0.5 at all sizes. This is the first model in every wording, also under
# Q+Match, with the statistics in the prompt:

# %%
PRONOUN_REQUESTS = ['q+if', 'q+anti', 'q+match']
jobs = winogender.load_winogender(size['jobs'], seed, source='auto')
pronoun_model = next(iter(lms.values()))
if pronoun_model.is_stub: # That of BBQ's questions completes no sentence
    pronoun_model = winogender.winogender_stub_model(
        lambda item, condition: (.3+.2*item.female, .5-.2*item.female, .2), jobs, 'pronouns')
pronoun_conditions = ['q', *[f'{c}:{k}' for c in PRONOUN_REQUESTS for k in range(K)]]
with warnings.catch_warnings():
    warnings.simplefilter('ignore') # Much of the probability is on other words: see `mass`
    pronoun_records = collect_records(
        pronoun_model, jobs, pronoun_conditions, winogender.WINOGENDER, seed=seed,
        out=work_dir(f'pronouns-{scale}-{seed}-{pronoun_model.name}-{len(jobs)}'))
p = mean_probabilities(pronoun_records, winogender.ANSWERS, normalise=False)
share = np.array([j.female for j in jobs])
by_condition = {c: winogender.pronoun_metrics(p.loc[c].to_numpy(), share)
                for c in pronoun_conditions}
index = [(c.partition(':')[0], int(c.partition(':')[2] or 0)) for c in pronoun_conditions]
rho = pd.Series([m['rho_two'] for m in by_condition.values()], pd.MultiIndex.from_tuples(index))

# %%
#| label: fig-rho
#| fig-cap: Correlation of the female pronoun's probability with the share of women, 60 occupations at scale cpu, under each wording; the large mark is the paper's wording, or ours that reverses it.
plot_wordings(rho, 'Correlation over occupations')


# %%
def standard_deviation(x, level=.95):
    "Estimate the standard deviation over wordings, with the interval of a normal sample"
    df = len(x)-1
    sd = x.std()
    return Estimate(sd, *(sd*np.sqrt(df/chi2.ppf([(1+level)/2, (1-level)/2], df))))

pd.DataFrame({condition_style(c)[0]:dict(
    lowest=rho[c].min(), highest=rho[c].max(), sd=rho[c].std(),
    mass=np.mean([by_condition[f'{c}:{k}']['mass'] for k in range(K)]))
    for c in PRONOUN_REQUESTS}).round(3)

# %% [markdown]
# ## What this does not show
#
# This page does not show that wording is unimportant for models that follow requests. The criterion
# that compares requests with wordings needs such a model, and the one on Winogender's correlation is
# undecided.
#
# ## Claims
#
# The criteria are in `data/claims/self_correction_wording.toml` and were fixed before this run; the
# file states what a pilot had shown by then. They are judged on the first model.

# %%
y = tables[first]
wording = variance_components(y[REQUESTS], seed=seed).loc['wording', ['variance','low','high']]
outcomes = {
    'self_correction/request-matters-more-than-wording': wording_share(y[REQUESTS], seed=seed),
    'self_correction/every-wording-agrees': tuple(wording.clip(lower=0)**.5),
    'self_correction/inverted-raises-bias': tuple(effects[first].loc['Q+anti less Q']),
    'self_correction/sense-is-lost-when-small': tuple(effects[first].loc['Q+IF less Q+anti']),
    'self_correction/rho-by-wording': standard_deviation(rho['q+if']),
    'self_correction/any-sentence-will-do': tuple(declining[first].loc['Q+IF less Q+note'])}
unmet = unmet_setting(lms, questions=bool(bbq.reachable()))
record(scale, {k: as_measurement(v)._replace(unmet=unmet) for k,v in outcomes.items()},
       parameters=next(iter(lms.values())).parameters)
