# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Small models hear a sentence, and not what it asks
#
# > Nine wordings of the instruction, of its opposite and of a note about something else. The
# > site shows a run recorded at `scale = 'cpu'`, SmolLM2-135M-Instruct and Gemma-3-270M.

# %% tags=["parameters"]
scale = 'quick'  # quick: two scenes; cpu: 32, nine wordings, minutes; gpu: all of BBQ
seed = 0         # which scenes are taken, and the draws behind the intervals

# %%
#| hide
import warnings
import numpy as np, pandas as pd
from moral_sc.bias import bbq, winogender
from moral_sc.bias.benchmarks import mean_probabilities
from moral_sc.bias.conditions import wordings
from moral_sc.bias.bbq.items import stratified
from moral_sc.bias.plots import condition_style
from moral_sc.bias.variance import (collect_records, item_values, mean_effect, plot_wordings,
                                    scores_by_wording, variance_components, wording_share,
                                    wording_stub_model, wording_table)
from moral_sc.foundation.statistics import Estimate
from moral_sc.lab.claims import record
from moral_sc.lab.paths import work_dir
from moral_sc.lab.scales import at_scale
from moral_sc.language.loading import load_or_stub

# %%
size = at_scale(scale, # scenes, occupations, wordings of each request, option orders, models
    quick=dict(scenes=2, jobs=4, K=2, orders=1, models=['smollm2-135m-instruct']),
    cpu=dict(scenes=32, jobs=None, K=9, orders=1,
             models=['smollm2-135m-instruct', 'gemma-3-270m']),
    gpu=dict(scenes=None, jobs=None, K=9, orders=3,
             models=['smollm2-135m-instruct', 'gemma-3-270m']),
)
ASKED = ['q+if', 'q+anti', 'q+note']
K = size['K']
conditions = ['q', *[f'{c}:{k}' for c in ASKED for k in range(K)]]

# %% [markdown]
# > The authors chose each instruction once. They write that they did not study how much their
# > results hang on its wording, and leave it open whether a model that can be told to avoid
# > stereotypes could as easily be told to follow them [@ganguli2023].
#
# Both questions have one experiment. Each request is asked in nine wordings: the instruction
# (Q+IF), the instruction turned round in nearly the same words (Q+anti), and a note of the same
# form about something else (Q+note). If a model heeds what is asked, Q+IF and Q+anti part, and
# Q+note stays with the plain question. If it hears only that a sentence has been added, all
# three move together, and wordings scatter.

# %%
some = dict(list(enumerate(zip(*(wordings('bbq', c) for c in ASKED))))[:3])
pd.DataFrame(some, [condition_style(c)[0] for c in ASKED]).T.style.set_properties(
    **{'text-align':'left', 'white-space':'pre-wrap'})

# %% [markdown]
# ## Two models whose answer is known
#
# One heeds: its lean towards the stereotype is halved by the instruction and grows with its
# opposite, whatever the words. The other is moved by the words, each wording by its own amount,
# and deaf to what they ask.

# %%
ours = [i for i in stratified(bbq.load(source='ours'), 24) if i.context_condition=='ambig']

def leans(item, lean):
    p = {item.unknown:.4, item.biased:.3+lean/2, item.counter:.3-lean/2}
    return [p[k] for k in range(3)]

def heeds(item, condition):
    return leans(item, {'q+if':.15, 'q+anti':.45}.get(condition.partition(':')[0], .3))

def deaf(item, condition):
    return leans(item, .3 + .1*np.random.default_rng(sum(map(ord, condition))).normal())

def bias(records): return wording_table(records, item_values(records, 'bias_ambig'))

asked = lambda rule: collect_records(wording_stub_model(rule, ours), ours, conditions)
known = {f.__name__: bias(asked(f)) for f in (heeds, deaf)}
pd.DataFrame({n:{'share of wording': wording_share(y[ASKED]).value,
                 'Q+IF less Q+anti': mean_effect(y['q+if']-y['q+anti']).value,
                 'Q+note less Q': mean_effect(y['q+note'].sub(y['q'][0], axis=0)).value}
              for n,y in known.items()}).round(3)

# %%
assert wording_share(known['heeds'][ASKED]).value<1e-6
assert abs(mean_effect(known['heeds']['q+if']-known['heeds']['q+anti']).value+.3)<1e-6

# %% [markdown]
# ## Real models
#
# Only open questions are asked here, the ambiguous ones, once each in the order of the file. A
# scene asks both the unflattering question and the other one, and a liking for a letter helps
# each person once; what is left is small, and every wording meets the same questions.

# %%
items = bbq.load(source='auto')
scenes = stratified(items, size['scenes'] and 4*size['scenes'], seed)
open_ = [i for i in scenes if i.context_condition=='ambig' and i.biased is not None]

def run(name):
    lm = load_or_stub(name, lambda: wording_stub_model(deaf, open_))
    out = work_dir(f'wordings-{scale}-{seed}-{lm.name}-{len(open_)}')
    return lm, collect_records(lm, open_, conditions, orders=size['orders'], seed=seed, out=out)

found = {}
lms = []
real = True
for name in size['models']:
    lm,records = run(name)
    found[lm.name] = records
    real = real and not lm.is_stub
    lms.append(lm)
tables = {n:bias(r) for n,r in found.items()}
pd.DataFrame({n:dict(questions=r.id.nunique(), templates=r.template.nunique(),
                     mass=r['mass'].mean().round(2)) for n,r in found.items()})

# %%
#| label: fig-smollm
#| fig-cap: Soft bias score on ambiguous questions under each wording, SmolLM2-135M-Instruct; the large mark is the paper's wording and what was made from it, bars are means of a condition.
AXIS = 'Bias score, ambiguous, from probabilities'
plot_wordings(scores_by_wording(list(tables.values())[0]), AXIS)

# %%
#| label: fig-gemma
#| fig-cap: The same for the last of the models asked, at scale cpu Gemma-3-270M.
plot_wordings(scores_by_wording(list(tables.values())[-1]), AXIS)


# %% [markdown]
# ## What the requests do
#
# Intervals treat wordings and templates both as few of many: they are about other wordings and
# other questions of this kind.

# %%
def effects(records, metric='bias_ambig'):
    "What each request changes, and what its sense does"
    y = wording_table(records, item_values(records, metric))
    less = {f'{condition_style(c)[0]} less Q': y[c].sub(y['q'][0], axis=0) for c in ASKED}
    for c in ('q+anti','q+note'): less[f'Q+IF less {condition_style(c)[0]}'] = y['q+if']-y[c]
    return pd.DataFrame({k:mean_effect(d)._asdict() for k,d in less.items()}).T

changes = {n:effects(r) for n,r in found.items()}
pd.concat(changes).round(4)

# %% [markdown]
# A sentence of any kind moves the first model's score a little, and which sentence hardly
# matters. Half of what separates the instruction from its opposite, which has nearly the same
# words, is the effect of its sense:

# %%
moved = list(changes.values())[0].value
pd.Series({'a sentence is added': moved.iloc[:3].mean(),
           'its sense': moved['Q+IF less Q+anti']/2}, name=list(changes)[0]).round(4)

# %% [markdown]
# A bias score can stand still while the answers move. How often the unknown answer is given
# tells more about what an added sentence does:

# %%
declining = {n:effects(r, 'accuracy_ambig') for n,r in found.items()}
pd.concat(declining).round(4)


# %% [markdown]
# ## Shares
#
# Of the variance of a template's score, by where it comes from, and for comparison that of its
# declining:

# %%
def parts(records, metric):
    y = wording_table(records, item_values(records, metric))
    c = variance_components(y[ASKED], seed=seed)
    c['sd'] = c.variance.clip(lower=0)**.5
    return c[['sd','share','share_low','share_high']]

first = next(iter(found.values()))
pd.concat({m:parts(first, m) for m in ('bias_ambig','accuracy_ambig')}, axis=1).round(3)

# %%
shares = {n:{m:wording_share(wording_table(r, item_values(r, m))[ASKED], seed=seed)
             for m in ('bias_ambig','accuracy_ambig')} for n,r in found.items()}
pd.DataFrame(shares)

# %% [markdown]
# ## Pronouns
#
# Winogender has a measure that cannot be zero for want of understanding: the correlation of the
# female pronoun's probability, of female and male, with the share of women in an occupation. It
# is near 0.5 at all sizes in the paper. The first model, in every wording, and asked to match
# the statistics too:

# %%
TOLD = ['q+if', 'q+anti', 'q+match']
jobs = winogender.load_winogender(size['jobs'], seed, source='auto')
pronouns = ['q', *[f'{c}:{k}' for c in TOLD for k in range(K)]]
with warnings.catch_warnings():
    warnings.simplefilter('ignore') # Much of the probability is of other words: shown below
    w = collect_records(lms[0], jobs, pronouns, winogender.WINOGENDER, seed=seed,
                out=work_dir(f'pronouns-{scale}-{seed}-{lms[0].name}-{len(jobs)}'))
p = mean_probabilities(w, winogender.ANSWERS, normalise=False)
share = np.array([j.female for j in jobs])
each = {c: winogender.pronoun_metrics(p.loc[c].to_numpy(), share) for c in pronouns}
at = [(c.partition(':')[0], int(c.partition(':')[2] or 0)) for c in pronouns]
rho = pd.Series([m['rho_two'] for m in each.values()], pd.MultiIndex.from_tuples(at))

# %%
#| label: fig-rho
#| fig-cap: Correlation of the female pronoun's probability with the share of women, 60 occupations at scale cpu, under each wording; the large mark is the paper's, or ours turned round.
plot_wordings(rho, 'Correlation over occupations')


# %%
def spread_of(x, level=.95):
    "Standard deviation over wordings, with the interval of a normal sample"
    from scipy.stats import chi2
    n = len(x)-1
    sd = x.std()
    return Estimate(sd, *(sd*np.sqrt(n/chi2.ppf([(1+level)/2, (1-level)/2], n))))

pd.DataFrame({condition_style(c)[0]:dict(lowest=rho[c].min(), highest=rho[c].max(), sd=rho[c].std(),
              mass=np.mean([each[f'{c}:{k}']['mass'] for k in range(K)]))
              for c in TOLD}).round(3)

# %% [markdown]
# ## Claims
#
# The criteria lie in `data/claims/self_correction_wording.toml` and were fixed before this run;
# what a pilot had shown by then is written there. They are judged on the first of the models.

# %%
y = tables[next(iter(found))]
w = variance_components(y[ASKED], seed=seed).loc['wording', ['variance','low','high']]
lean = effects(first)
declines = effects(first, 'accuracy_ambig')
outcomes = {
    'self_correction/request-matters-more-than-wording': wording_share(y[ASKED], seed=seed),
    'self_correction/every-wording-agrees': tuple(w.clip(lower=0)**.5),
    'self_correction/inverted-raises-bias': tuple(lean.loc['Q+anti less Q']),
    'self_correction/sense-is-lost-when-small': tuple(lean.loc['Q+IF less Q+anti']),
    'self_correction/rho-by-wording': spread_of(rho['q+if']),
    'self_correction/any-sentence-will-do': tuple(declines.loc['Q+IF less Q+note'])}
theirs = items[0] is not bbq.load(source='ours')[0]
if real: record(scale if theirs else 'quick', outcomes)
else: print('An oracle answered, so no claim about models is recorded.')
