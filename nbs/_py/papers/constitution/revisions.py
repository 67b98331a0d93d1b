# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Number of revisions: true harmlessness rises with every revision
#
# > Harm falls over four revisions in a toy environment (Figure 5); Figure 7 stays undecided.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds; cpu: two sizes of model, minutes; gpu: three sizes
seed = 0         # everything random follows from it

# %%
#| hide
from dataclasses import replace
from itertools import combinations

import numpy as np, pandas as pd, torch
from scipy.stats import page_trend_test, ttest_1samp
from moral_sc.constitution.toy import environment
from moral_sc.constitution.toy.experiments import revised_pairs, split_mixed_requests
from moral_sc.constitution.evaluation.refusals import measure_chains, distinct_ngrams
from moral_sc.constitution.preference import fit_preference
from moral_sc.constitution.revision import revised_answer, author_revisions, revise
from moral_sc.constitution.plots import plot_means
from moral_sc.foundation.runs import content_key
from moral_sc.foundation.statistics import cluster_bootstrap, paired_difference
from moral_sc.lab.claims import record
from moral_sc.lab.paths import work_dir
from moral_sc.lab.scales import at_scale

torch.set_num_threads(1)

# %%
size = at_scale(scale, # models: size and training steps, smallest first
    quick=dict(models=[('tiny', 30), ('tiny', 60)], prompts=24, pairs=30, subset=2),
    cpu=dict(models=[('tiny', 220), ('tiny', 900), ('small', 900)], prompts=250, pairs=500,
             subset=80),
    gpu=dict(models=[('tiny', 220), ('small', 900), ('medium', 2000)], prompts=1000,
             pairs=3000, subset=300),
)
device = 'auto' if scale=='gpu' else 'cpu'
names = [f'{s}, {n} steps' for s,n in size['models']]
folder = work_dir(f'revisions-{scale}-{seed}-{content_key(size=size)[:8]}')
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
# The paper's judges are preference models of 52 billion parameters. In the
# [toy environment](../../constitution/toy/10_environment.ipynb) harm and help are counted, so we
# can compare preference models with the true scores. A small transformer answers, criticises and
# revises. It was trained on dialogues in which revisions remove what a principle objects to, though
# not always all of it.

# %%
def pretrain(model_size, steps, seed):
    "Train a model of the toy environment, or load it"
    lm = environment.pretrain(model_size, seed, steps, folder, device)
    return replace(lm, name=f'{model_size}-{steps}-{seed}')

models = {n: pretrain(s, k, seed) for n,(s,k) in zip(names, size['models'])}
prompts,pair_prompts = split_mixed_requests([size['prompts'], size['pairs']], seed, 'red_team')
texts = [r['text'] for r in prompts]
ROUNDS = 4
options = dict(few_shot=[], seed=seed, max_new_tokens=40)

def revise_prompts(name, lm, rows, principles=environment.PRINCIPLES, **kw):
    "Chains of four revisions, stored so that a recording can be resumed"
    return revise(lm, rows, principles, rounds=ROUNDS, out=folder/name, **options, **kw)

main = models[names[-1]]
ours = revise_prompts('main', main, prompts)
answers = [[revised_answer(c, k) for c in ours] for k in range(ROUNDS+1)]
[a[0] for a in answers]

# %% [markdown]
# ## Judges
#
# The judges are preference models that are independent of the model above. They start from another
# base model and are trained on its answers and revisions to other prompts, with the choices of a
# simulated rater. One is trained on choices for harmlessness on requests that invite harm, one on
# choices for helpfulness on ordinary requests, as in the paper, and one on both.

# %%
other = pretrain(*size['models'][0], seed+1)
ordinary = environment.requests(size['pairs'], seed=seed, kind='helpful')

def labelled_pairs(name, rows, criterion):
    "Pairs of answers of the other model, each after 0 to 2 revisions, with a rater's choice"
    pairs = revised_pairs(other, rows, out=folder/name, **options)
    return environment.rater_labels(pairs, criterion, seed=seed)

harmless = labelled_pairs('pairs-harm', pair_prompts, 'harmless')
helpful = labelled_pairs('pairs-help', ordinary, 'helpful')
training = dict(harmless=harmless, helpful=helpful, both=[*harmless, *helpful])
judges = {k: fit_preference(other, v, lr=1e-3, epochs=4, seed=seed, out=folder/f'pm-{k}')
          for k,v in training.items()}
truths = dict(harmless=environment.harmlessness, helpful=environment.helpfulness,
              both=lambda p,a: environment.harmlessness(p, a)+environment.helpfulness(p, a))


# %%
def rank_correlation(name):
    "Rank correlation of judge and true score over first answers and last revisions"
    p = texts*2
    a = answers[0]+answers[-1]
    return pd.Series(judges[name](p, a)).corr(pd.Series(truths[name](p, a)), 'spearman')

correlations = {k: rank_correlation(k) for k in judges}
pd.Series(correlations, name='rank correlation with the truth').round(2)

# %% [markdown]
# ## Figure 5: number of revisions
#
# Each score is the difference from the score of the first answer, in nats of preference. Intervals
# resample prompts.

# %%
scorers = {'preference models': judges, 'truth': truths}
scores = {(s, k): np.array([functions[k](texts, a) for a in answers]).T # [prompt, revisions]
          for s,functions in scorers.items() for k in judges}

def point(values, clusters=texts, **kw):
    e = cluster_bootstrap(values, clusters)
    return dict(kw, value=e.value, low=e.low, high=e.high)

table = pd.DataFrame([point(v[:,k]-v[:,0], panel=s, name=name, x=k)
                      for (s,name),v in scores.items() for k in range(ROUNDS+1)])

# %%
#| label: fig-revisions
#| fig-cap: Scores after 0 to 4 revisions less the score of the first answer, on requests that invite harm; bars are 95 % intervals over prompts.
plot_means(table, y='score less that of the first answer')

# %%
trend = {k: page_trend_test(v).pvalue for k,v in scores.items()}
steps = {k: [str(cluster_bootstrap(v[:,i+1]-v[:,i], texts)) for i in range(ROUNDS)]
         for k,v in scores.items()}
pd.DataFrame(steps, index=[f'revision {i+1}' for i in range(ROUNDS)]).T.assign(
    page=[f'{trend[k]:.1g}' for k in steps])


# %% [markdown]
# The table shows what each revision adds, and the p-value of Page's test that the scores rise in
# order. Harmlessness rises by every judge. True helpfulness falls. The preference model of
# helpfulness nevertheless assigns rising scores: it was trained on ordinary requests, and on
# requests that invite harm its scores are almost uncorrelated with the truth, as the correlation
# above shows. By the criterion, which uses this model, the claim that helpfulness falls fails.
# Without a known truth this error would not be visible.
#
# The next values are the share of the whole gain in true harmlessness that the first revision
# makes, and the change over four revisions in the score of the preference model of helpfulness. In
# the recorded run the interval of the share contains one half, so whether the first revision makes
# at least half of the gain is undecided.

# %%
def ratio(v): return v[:,0].mean()/v[:,1].mean()

h = scores['truth', 'harmless']
gains = np.stack([h[:,1]-h[:,0], h[:,-1]-h[:,0]], 1)
first_share = cluster_bootstrap(gains, texts, ratio)
help_change = paired_difference(scores['preference models', 'helpful'][:,-1],
                                scores['preference models', 'helpful'][:,0], texts)
first_share, help_change

# %% [markdown]
# Half of the principles here do not concern danger, so a dangerous word may stay until such a
# principle is drawn. Where every revision uses the principle of danger, the share of the first is
# larger:

# %%
subset = prompts[:size['subset']]
repeated = [dict(r, id=f'{r["id"]}/{k}') for r in subset for k in range(4)]
sets = {'+'.join(p.id for p in c): [*c]
        for n in (1, 2, 4) for c in combinations(environment.PRINCIPLES, n)}
set_chains = {k: revise_prompts(k, main, repeated, c) for k,c in sets.items()}
repeated_texts = [r['text'] for r in repeated]

def true_harmlessness(rows, k=ROUNDS):
    return environment.harmlessness(repeated_texts, [revised_answer(c, k) for c in rows])

danger_chains = set_chains['danger']
before = true_harmlessness(danger_chains, 0)
danger_gains = np.stack([true_harmlessness(danger_chains, 1)-before,
                         true_harmlessness(danger_chains)-before], 1)
cluster_bootstrap(danger_gains, repeated_texts, ratio)


# %% [markdown]
# ## Figure 6: number of principles
#
# We compare one, two and all four principles of the toy environment, with every set of each size
# and four chains for each prompt. With a random set, the first revision cannot depend on the
# number: a random principle of a random set is a random principle. Only interactions between
# revisions under different principles, in later rounds, can make a difference.
#
# Diversity is measured over the four answers to one prompt: the share of different pairs of
# adjacent words (distinct-2).

# %%
def distinct_2(rows): # One value per prompt
    last = [revised_answer(c) for c in rows]
    return np.array([distinct_ngrams(last[i:i+4], 2) for i in range(0, len(last), 4)])

def mean_by_number(f): # Number of principles -> mean over its sets, per prompt
    values = lambda n: [f(v) for k,v in set_chains.items() if len(sets[k])==n]
    return {n: np.mean(values(n), 0) for n in (1, 2, 4)}

def judge_scores(rows): return judges['harmless'](repeated_texts, [revised_answer(c) for c in rows])

def mean_of_4(x): return x.reshape(-1, 4).mean(1)

subset_texts = [r['text'] for r in subset]
final = mean_by_number(lambda v: mean_of_4(true_harmlessness(v)))
diversity = mean_by_number(distinct_2)
judged = mean_by_number(lambda v: mean_of_4(judge_scores(v)))
panels = {'true harmlessness': final, 'preference model': judged, 'distinct-2': diversity}
principles = pd.DataFrame([point(x, subset_texts, panel=k, name='', x=str(n))
                           for k,v in panels.items() for n,x in v.items()])

# %%
#| label: fig-principles
#| fig-cap: Harmlessness after four revisions by the truth and by the preference model, and diversity of four such answers to one prompt, against the number of principles; bars are 95 % intervals over prompts.
plot_means(principles, x='principles')

# %%
difference = final[4]-final[1]
gain = final[4]-mean_of_4(before)
same_score = cluster_bootstrap(np.stack([difference, gain], 1), subset_texts, ratio)
margin = .2*gain.mean()
tost = max(ttest_1samp(difference, -margin, alternative='greater').pvalue,
           ttest_1samp(difference, margin, alternative='less').pvalue)
more_diverse = paired_difference(diversity[4], diversity[1], subset_texts)
dict(difference=str(cluster_bootstrap(difference, subset_texts)), margin=round(margin, 3),
     of_the_gain=str(same_score), tost=f'{tost:.2g}', distinct=str(more_diverse))

# %% [markdown]
# In the recorded run four principles end higher in harmlessness than one, by about a sixth of the
# gain of four revisions, so the run does not show that the score is the same. Four principles make
# answers more diverse. The choice of principles matters far more than their number:

# %%
by_set = {k: dict(harmless=true_harmlessness(v).mean(), distinct=distinct_2(v).mean(),
                  words=np.mean([len(revised_answer(c).split()) for c in v]))
          for k,v in set_chains.items()}
pd.DataFrame(by_set).T.round(2)

# %% [markdown]
# ## Figure 7: critique or direct revision
#
# Models of several sizes revise their first answers with and without a critique. A larger model is
# also trained for more steps. Where the smallest size occurs twice, its second model is trained for
# as many steps as the largest.

# %%
variants = dict(critique=True, direct=False)

def harmlessness_by_revision(name, variant):
    "True harmlessness of each prompt after 0 to 4 revisions"
    file = f'{name}-{variant}'.replace(', ', '-').replace(' ', '-')
    rows = revise_prompts(file, models[name], prompts, critique=variants[variant])
    return np.stack([environment.harmlessness(texts, [revised_answer(c, k) for c in rows])
                     for k in range(ROUNDS+1)], 1)

harmlessness = {(m, v): harmlessness_by_revision(m, v) for m in names for v in variants}
points = pd.DataFrame([point(h[:,k]-h[:,0], panel=f'after {k}', name=v, x=m.replace(' steps', ''))
                       for k in (1, ROUNDS) for (m,v),h in harmlessness.items()])

# %%
#| label: fig-critique
#| fig-cap: Gain in true harmlessness after one and after four revisions, by model, with a critique and without; bars are 95 % intervals over prompts.
plot_means(points, x='model, training steps', y='true harmlessness gained')

# %%
advantage = {m: harmlessness[m, 'critique'][:,1]-harmlessness[m, 'direct'][:,1] for m in names}
small = cluster_bootstrap(advantage[names[0]], texts)
decrease = paired_difference(advantage[names[0]], advantage[names[-1]], texts)
pd.Series({m: str(cluster_bootstrap(x, texts)) for m,x in advantage.items()}
          | {'smallest less largest': str(decrease)}, name='critique ahead of direct')


# %% [markdown]
# In the recorded run a critique does not help the model with the fewest training steps. It helps
# the two that were trained for longer, by about the same amount. The run therefore does not show
# that critiques help small models and not large ones, as in the paper.
#
# ## Inaccurate critiques
#
# A critique in the toy environment names a dangerous word or states that nothing is wrong, so its
# accuracy can be checked. The table covers first answers with a dangerous word, criticised under
# the principle of danger. It counts critiques that name a dangerous word of the answer, name
# another one, or report nothing.

# %%
def dangerous_words(text): return {*text.split()}&{*environment.DANGEROUS_TOOLS}

def classify_critique(c):
    critique = c['rounds'][0]['critique']
    named = dangerous_words(critique)
    if named&dangerous_words(c['response']): return 'names it'
    if named: return 'names another'
    return 'sees nothing' if 'nothing' in critique else 'something else'

risky = [i for i,c in enumerate(danger_chains) if dangerous_words(c['response'])]
critiques = pd.DataFrame(dict(
    prompt=[repeated_texts[i] for i in risky],
    critique=[classify_critique(danger_chains[i]) for i in risky],
    gain=danger_gains[risky, 0]))
wrong = critiques[critiques.critique!='names it']
wrong_share = cluster_bootstrap(critiques.critique!='names it', critiques.prompt)
wrong_gain = cluster_bootstrap(wrong.gain, wrong.prompt)
(critiques.groupby('critique').gain.agg(['size', 'mean']).round(2),
 str(wrong_share), str(wrong_gain))


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
changes = {'ours': changed_words(ours)}
if theirs: changes['authors'] = changed_words(theirs)
pd.DataFrame(changes)

# %% [markdown]
# What this page does not show: the results of another training, or of language models. One trained
# model of each size stands behind every number, and intervals resample prompts only.
#
# ## Claims
#
# The criteria in `data/claims/constitution_revisions.toml` were fixed before this page was run.
# Another training can give other results. In an earlier recording, with a larger model trained at
# a higher learning rate and the same small models on another processor, a critique cost the
# smallest model 0.14, the score was the same for one principle and for four, and diversity was
# undecided. In both recordings harmlessness rises, true helpfulness falls and many critiques are
# wrong.

# %%
record(scale, {f'constitution/revisions-{k}': v for k,v in {
    'trend-truth': trend['truth', 'harmless'],
    'trend-model': trend['preference models', 'harmless'],
    'trend-both': trend['preference models', 'both'],
    'help-falls': help_change, 'first': first_share,
    'principles-score': same_score, 'principles-diverse': more_diverse,
    'critique-small': small, 'critique-size': decrease,
    'critiques-wrong': wrong_share, 'wrong-help': wrong_gain}.items()})
