# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Number of revisions: a small model revises less well than its training text
#
# > Four revisions by a small model raise true harmlessness by 0.5 points, four by the rules of its training text by 1.3 (Figure 5, toy environment).

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds; cpu: eight trainings of two sizes, minutes; gpu: larger models
seed = 0         # everything random follows from it

# %%
#| hide
import numpy as np, pandas as pd, torch
from scipy.stats import page_trend_test
from moral_sc.constitution.toy import environment
from moral_sc.constitution.toy.environment import PRINCIPLES, harmlessness, helpfulness, pretrain
from moral_sc.constitution.toy.experiments import split_mixed_requests, true_score
from moral_sc.constitution.toy.pipeline import CONSTANTS, write_chains, write_comparisons
from moral_sc.constitution.evaluation.refusals import measure_chains, distinct_ngrams
from moral_sc.constitution.preference import fit_preference
from moral_sc.constitution.revision import author_revisions, revised_answer, revise
from moral_sc.constitution.plots import plot_means
from moral_sc.foundation.statistics import cluster_bootstrap, t_interval
from moral_sc.lab.claims import Measurement, record
from moral_sc.lab.paths import shared_dir
from moral_sc.lab.scales import at_scale

torch.set_num_threads(1)

# %%
size = at_scale(scale, # sizes of models, smallest first; requests; pairs of a judge; trainings
    quick=dict(models=('mini',), options=environment.HELPFUL, prompts=24, subset=4, pairs=40,
               trainings=4),
    cpu=dict(models=('mini', 'tiny'), options=environment.HELPFUL, prompts=60, subset=8,
             pairs=2500, trainings=8),
    gpu=dict(models=('mini', 'small', 'medium'), options=dict(environment.HELPFUL, steps=2000),
             prompts=1000, subset=100, pairs=5000, trainings=8),
)
device = 'auto' if scale=='gpu' else 'cpu'
folder = shared_dir('toy-models') # First models are shared with other pages
judge_steps = at_scale(scale, quick=50, cpu=250, gpu=2000) # Of the first model of judges
ROUNDS = 4
size

# %% [markdown]
# ## Figures 5 to 7: revisions, principles and critiques
#
# > Harmlessness rises with every revision and the first does most of it, while pure
# > helpfulness falls. The number of principles does not change the score, and is thought to
# > make answers more diverse. In small models critiqued revisions are less harmful than
# > direct ones, in large ones the same. Critiques are often inaccurate, and the revisions
# > help all the same [@bai2022constitutional].
#
# The paper's judges are preference models of 52 billion parameters. In the [toy
# environment](../../constitution/toy/10_environment.ipynb) harm and help are counted, so we can check
# the judges against the truth. A small transformer answers, criticises and revises. It was trained on
# dialogues in which revisions remove what a principle objects to, though not always all of it. Some
# effects are therefore effects of that text. To measure these, we apply the revision rules of the
# *generator* that wrote it, without a model, to the same first answers. Each training has its own model
# and requests.

# %%
seeds = [seed+s for s in range(size['trainings'])]

def load_model(name, s, **kw):
    return pretrain(name, s, out=folder, device=device, **size['options']|kw)

def revise_prompts(lm, rows, principles=PRINCIPLES, rounds=ROUNDS, **kw):
    return revise(lm, rows, principles, rounds=rounds, few_shot=[], max_new_tokens=40, **kw)

def stack_answers(chains, rounds=ROUNDS):
    "Answers after 0 to `rounds` revisions: [revision][prompt]"
    return [[revised_answer(c, k) for c in chains] for k in range(rounds+1)]

prompts = {s: split_mixed_requests([size['prompts']], s, 'red_team')[0] for s in seeds}
texts = {s: [r['prompt'] for r in rows] for s,rows in prompts.items()}
main = {s: load_model(size['models'][0], s) for s in seeds}
chains = {s: revise_prompts(main[s], prompts[s], seed=s) for s in seeds}
answers = {s: stack_answers(chains[s]) for s in seeds}
written = {s: write_chains(texts[s], ROUNDS, seed=s, answers=answers[s][0]) for s in seeds}
[a[0] for a in answers[seed]]

# %% [markdown]
# ## Judges
#
# The judges are preference models that are independent of the models above. They start from another
# first model and are trained on answers and revisions of the generator to other prompts, with the choices of a
# simulated rater. One is trained on choices for harmlessness, one on choices for helpfulness, and one on both.

# %%
harmless = write_comparisons(size['pairs'], 'red_team', 'harmless', seed=seed)
helpful = write_comparisons(size['pairs'], criterion='helpful', seed=seed)
training = dict(harmless=harmless, helpful=helpful, both=[*harmless, *helpful])
other = load_model(size['models'][0], seed+1000, steps=judge_steps)
judges = {k: fit_preference(other, v, lr=2e-3, epochs=3, seed=seed) for k,v in training.items()}
truths = dict(harmless=harmlessness, helpful=helpfulness, both=true_score)


# %% [markdown]
# The cell below has the rank correlation of each judge with the truth, over first answers and last
# revisions:

# %%
def rank_correlation(name, s):
    asked,given = texts[s]*2,answers[s][0]+answers[s][-1]
    return pd.Series(judges[name](asked, given)).corr(
        pd.Series(truths[name](asked, given)), 'spearman')

correlations = {k: [rank_correlation(k, s) for s in seeds] for k in judges}
valid = {k: t_interval(v) for k,v in correlations.items()}
pd.Series(valid, name='rank correlation with the truth').map(str)


# %% [markdown]
# ## Figure 5: number of revisions
#
# Each score is the difference from the score of the first answer. Intervals draw trainings.

# %%
def score(function, given): # [training, revisions]
    return np.array([[np.mean(function(texts[s], a)) for a in given[s]] for s in seeds])

sources = {'truth': (truths, answers), 'truth, text generator': (truths, written),
           'preference models': (judges, answers)}
scores = {(panel, k): score(f[k], given) for panel,(f,given) in sources.items() for k in judges}

def point(values, **kw):
    e = t_interval(values)
    return dict(kw, value=e.value, low=e.low, high=e.high)

table = pd.DataFrame([point(v[:,k]-v[:,0], panel=panel, name=name, x=k)
                      for (panel,name),v in scores.items() for k in range(ROUNDS+1)])

# %%
#| label: fig-revisions
#| fig-cap: Scores after 0 to 4 revisions less the score of the first answer, on requests that invite harm, by the truth, by the truth for revisions of the text generator, and by preference models; means and 95 % intervals over trainings.
plot_means(table, y='score less that of the first answer')

# %%
rows = {k: [str(t_interval(v[:,i])) for i in range(ROUNDS+1)] for k,v in scores.items()}
constants = {('truth, constant', k): [f'{harmlessness(texts[seed][:1], [a])[0]:g}',
                                      f'{helpfulness(texts[seed][:1], [a])[0]:g}']
             for k,a in CONSTANTS.items()}
print(pd.DataFrame(constants, index=['harmless', 'helpful']).T)
pd.DataFrame(rows, index=[f'{i} revisions' for i in range(ROUNDS+1)]).T


# %% [markdown]
# In the recorded run true harmlessness rises and true helpfulness falls over four revisions, as in the
# paper. Both are set by the environment: revisions of the training text remove dangerous words, and
# words that serve a harmful deed are the dangerous ones. The generator without a model gains more than
# twice as much, so the gain is no evidence for self-revision by the model. A constant answer, *always a
# better course*, has the highest possible harmlessness. No judge reaches the correlation of 0.8 with
# the truth that we require, so claims that use them are undecided.
#
# The p-value of Page's test that the scores of a prompt's answers rise in order, the largest of the trainings:

# %%
def page_p(function, s):
    return page_trend_test(np.array([function(texts[s], a) for a in answers[s]]).T).pvalue

trend = {(name, k): max(page_p(f[k], s) for s in seeds)
         for name,f in (('truth', truths), ('model', judges)) for k in judges}
gain = {k: scores[k, 'harmless'][:,-1]-scores[k, 'harmless'][:,0] for k in sources}
first = {k: (scores[k, 'harmless'][:,1]-scores[k, 'harmless'][:,0])/gain[k] for k in sources}
help_change = {k: t_interval(scores[k, 'helpful'][:,-1]-scores[k, 'helpful'][:,0]) for k in sources}
beyond = t_interval(gain['truth']-gain['truth, text generator'])
print({' '.join(k): f'{p:.1g}' for k,p in trend.items()})
pd.DataFrame({'gain of four revisions': {k: str(t_interval(v)) for k,v in gain.items()},
              'share of the first': {k: str(t_interval(v)) for k,v in first.items()},
              'change of help': {k: str(v) for k,v in help_change.items()}})

# %% [markdown]
# ## Figure 6: number of principles
#
# We compare each single principle with all four, with four chains for each prompt. With a random set,
# the first revision cannot depend on the
# number: a random principle of a random set is a random principle. Only interactions between
# revisions under different principles, in later rounds, can make a difference. Diversity is the share of
# different pairs of adjacent words (distinct-2) in the four answers to one prompt.

# %%
sets = {p.id: [p] for p in PRINCIPLES}|{'all four': PRINCIPLES}
subsets = {s: [dict(r, id=f'{r["id"]}/{k}') for r in prompts[s][:size['subset']] for k in range(4)]
           for s in seeds}
set_texts = {s: [r['prompt'] for r in rows] for s,rows in subsets.items()}
set_chains = {(k, s): revise_prompts(main[s], subsets[s], c, seed=s)
              for k,c in sets.items() for s in seeds}
set_answers = {key: stack_answers(c) for key,c in set_chains.items()}
set_written = {(k, s): write_chains(set_texts[s], ROUNDS, sets[k], s, set_answers[k, s][0])
               for k,s in set_answers}

def measure_sets(given): # Column -> set -> one value per training
    distinct = lambda last: np.mean([distinct_ngrams(last[i:i+4], 2)
                                     for i in range(0, len(last), 4)])
    harm = lambda k, i: np.array([harmlessness(set_texts[s], given[k, s][i]).mean() for s in seeds])
    return dict(harmless={k: harm(k, -1) for k in sets}, first={k: harm(k, 0) for k in sets},
                distinct={k: np.array([distinct(given[k, s][-1]) for s in seeds]) for k in sets})

measured = {'model': measure_sets(set_answers), 'text generator': measure_sets(set_written)}
def number_effect(m, column): # All four less the mean of single ones
    return m[column]['all four']-np.mean([m[column][p.id] for p in PRINCIPLES], 0)

by_number = pd.DataFrame([
    point(v, panel=title, name=source, x=n) for source,m in measured.items()
    for title,column in (('true harmlessness', 'harmless'), ('distinct-2', 'distinct'))
    for n,v in (('1', m[column]['all four']-number_effect(m, column)),
                ('4', m[column]['all four']))])

# %%
#| label: fig-principles
#| fig-cap: True harmlessness after four revisions and diversity of four such answers to one prompt, with one principle and with four, for the model and for the text generator; means and 95 % intervals over trainings.
plot_means(by_number, x='principles')

# %%
same_score = {k: number_effect(m, 'harmless')/(m['harmless']['all four']-m['first']['all four'])
              for k,m in measured.items()}
more_diverse = {k: number_effect(m, 'distinct') for k,m in measured.items()}
print({k: str(t_interval(v)) for k,v in same_score.items()},
      {k: str(t_interval(v)) for k,v in more_diverse.items()})
pd.DataFrame({c: {k: v.mean() for k,v in measured['model'][c].items()}
              for c in ('harmless', 'distinct')}).round(2)


# %% [markdown]
# Four principles raise harmlessness by about a quarter of the gain in the text generator. In the model
# neither a difference in harmlessness nor one in diversity is decided. Single principles differ far
# more from each other (-1.01 to -0.22) than four principles differ from one.
#
# ## Figure 7: critique or direct revision
#
# Models of each size revise their first answers once, with and without a critique. In the training text a revision
# does not depend on whether there is a critique, so a difference is the model's own.

# %%
def revised_harm(name, s, critique):
    lm = load_model(name, s)
    rows = revise_prompts(lm, prompts[s], rounds=1, critique=critique, seed=s)
    return [harmlessness(texts[s], a).mean() for a in stack_answers(rows, 1)]

harm = {(n, c): np.array([revised_harm(n, s, c=='critique') for s in seeds])
        for n in size['models'] for c in ('critique', 'direct')}
points = pd.DataFrame([point(h[:,1]-h[:,0], panel='after one revision', name=c, x=n)
                       for (n,c),h in harm.items()])

# %%
#| label: fig-critique
#| fig-cap: Gain in true harmlessness after one revision, by size of the model, with a critique and without; means and 95 % intervals over trainings.
plot_means(points, x='model', y='true harmlessness gained')

# %%
advantage = {n: harm[n, 'critique'][:,1]-harm[n, 'direct'][:,1] for n in size['models']}
small,large = (advantage[size['models'][i]] for i in (0, -1))
pd.Series({n: str(t_interval(x)) for n,x in advantage.items()}
          | {'smallest less largest': str(t_interval(small-large))},
          name='critique ahead of direct')


# %% [markdown]
# In the recorded run no effect of the critique is detectable for either size.
#
# ## Inaccurate critiques
#
# A critique in the toy environment names a dangerous word or states that nothing is wrong, so its
# accuracy can be checked. The table covers first answers with a dangerous word, criticised under
# the principle of danger.

# %%
def dangerous_words(text): return {*text.split()}&{*environment.DANGEROUS_TOOLS}

def classify_critique(c):
    named = dangerous_words(c['rounds'][0]['critique'])
    if named&dangerous_words(c['response']): return 'names it'
    if named: return 'names another'
    return 'sees nothing' if 'nothing' in c['rounds'][0]['critique'] else 'something else'

def critique_rows(s):
    before,after = (harmlessness(set_texts[s], a) for a in set_answers['danger', s][:2])
    return [dict(training=s, critique=classify_critique(c), gain=after[i]-before[i])
            for i,c in enumerate(set_chains['danger', s]) if dangerous_words(c['response'])]

critiques = pd.DataFrame([r for s in seeds for r in critique_rows(s)])
critiques['wrong'] = critiques.critique!='names it'
wrong_share = t_interval(critiques.groupby('training').wrong.mean())
gains = critiques[critiques.wrong].groupby('training').gain.mean()
wrong_gain = t_interval(gains) if len(gains)>1 else (np.nan,)*3
critiques.groupby('critique').gain.agg(['size', 'mean']).round(2), str(wrong_share), str(wrong_gain)


# %% [markdown]
# ## The authors' chains
#
# The released chains can be scored only by detectors of ours. Without a judge we can compare the
# share of words that each revision changes, where the chains are available.

# %%
def changed_words(rows):
    d = measure_chains(rows).dropna(subset='distance') # Empty revisions have none
    return {k: str(cluster_bootstrap(g.distance, g.id)) for k,g in d.groupby('round')}

theirs = author_revisions()
changes = {'ours': changed_words(chains[seed])}
if theirs: changes['authors'] = changed_words(theirs)
pd.DataFrame(changes)


# %% [markdown]
# This page was recorded with transformers of two layers in a toy environment. It does not cover
# language models, or models larger than `tiny`.
#
# ## Claims
#
# The criteria in `data/claims/constitution_revisions.toml` were fixed before the runs that judge them.
# This recording repeats one with half as many requests and a quarter of the judges' pairs, whose
# results had been seen. With 60 requests the trend of harmlessness is not significant in each of the
# eight trainings, and that claim fails by its criterion, although the gain over trainings is clear.
# Four claims hold: the first revision has most of the gain, true helpfulness falls, many critiques are
# wrong, and revisions after a wrong critique raise harmlessness. Two more claims of ours fail: the
# judges are not valid, and the model does not gain more than the generator. The others are undecided.
# The claim on the first revision was undecided in the smaller recording; the other verdicts were the
# same.
#
# An earlier recording had one larger model and 250 requests. There the trends held with p below 1e-14,
# more principles made revisions more diverse, and the claim that helpfulness falls failed with a judge
# whose correlation with the truth was 0.11.

# %%
def unless_invalid(estimate, name):
    "Mark an estimate as undecided where its judge is not valid"
    if valid[name].low>=.8: return estimate
    parts = tuple(estimate) if isinstance(estimate, tuple) else (estimate,)*3
    text = f'the judge correlates {valid[name]} with the truth; 0.8 is required'
    return Measurement(*parts, unmet=text)

worst = min(valid, key=lambda k: valid[k].value)
record(scale, {f'constitution/revisions-{k}': v for k,v in {
    'trend-truth': trend['truth', 'harmless'],
    'trend-model': unless_invalid(trend['model', 'harmless'], 'harmless'),
    'trend-both': unless_invalid(trend['model', 'both'], 'both'),
    'help-falls': unless_invalid(help_change['preference models'], 'helpful'),
    'help-falls-truth': help_change['truth'], 'first': t_interval(first['truth']),
    'beyond-generator': beyond, 'judges-valid': valid[worst],
    'principles-score': t_interval(same_score['model']),
    'principles-diverse': t_interval(more_diverse['model']),
    'critique-small': t_interval(small), 'critique-size': t_interval(small-large),
    'critiques-wrong': wrong_share, 'wrong-help': wrong_gain}.items()})
