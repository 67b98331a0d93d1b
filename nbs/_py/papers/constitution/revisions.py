# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What a revision is worth
#
# > Figures 5, 6 and 7 of Constitutional AI in a world of words: how many revisions, how
# > many principles, and whether a critique helps, with the truth beside every judge. The
# > last cell says at which scale, and in how many minutes, this page was recorded.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds; cpu: two sizes of model, minutes; gpu: three sizes
seed = 0         # everything random follows from it

# %%
#| hide
from dataclasses import replace
from itertools import combinations
from time import perf_counter

import numpy as np, pandas as pd, torch
from scipy.stats import page_trend_test, ttest_1samp
from moral_sc.constitution.toy import environment
from moral_sc.constitution.evaluation.refusals import measure_chains, distinct_ngrams
from moral_sc.constitution.preference import fit_preference
from moral_sc.constitution.prompts import split_by_prompt
from moral_sc.constitution.revision import revised_answer, author_revisions, revise
from moral_sc.constitution.plots import plot_means
from moral_sc.foundation.runs import content_key
from moral_sc.foundation.statistics import cluster_bootstrap, paired_difference
from moral_sc.lab.claims import record
from moral_sc.lab.paths import work_dir
from moral_sc.lab.scales import at_scale

torch.set_num_threads(1)
began = perf_counter()

# %%
size = at_scale(scale, # models: size and steps of reading, smallest first
    quick=dict(models=[('tiny', 30), ('tiny', 60)], asks=24, pairs=30, few=2),
    cpu=dict(models=[('tiny', 220), ('tiny', 900), ('small', 900)], asks=250, pairs=500,
             few=80),
    gpu=dict(models=[('tiny', 220), ('small', 900), ('medium', 2000)], asks=1000,
             pairs=3000, few=300),
)
on = 'auto' if scale=='gpu' else 'cpu'
names = [f'{s}, {n} steps' for s,n in size['models']]
place = work_dir(f'revisions-{scale}-{seed}-{content_key(size=size)[:8]}')
size


# %% [markdown]
# > Harmlessness rises with every revision and the first does most of it, while pure
# > helpfulness falls. The number of principles does not change the score, and is thought to
# > make answers more diverse. In small models critiqued revisions are less harmful than
# > direct ones, in large ones the same. Critiques are often inaccurate, and the revisions
# > help all the same [@bai2022constitutional].
#
# The paper's judges are preference models of 52 billion parameters. In the
# [toy world](../../constitution/toy/10_environment.ipynb) harm and help are counted, so the same
# question can be put to preference models and to the truth. The model that answers,
# criticises and revises is a small transformer that has read dialogues in which revisions
# leave out what a principle minds, not always all of it.

# %%
def model(size, steps, seed):
    "A model of the world under one name, trained or read back"
    lm = environment.pretrain(size, seed, steps, place, on)
    return replace(lm, name=f'{size}-{steps}-{seed}')

models = {n: model(s, k, seed) for n,(s,k) in zip(names, size['models'])}
n = size['asks']+size['pairs']
rows = [*{r['text']: r for r in environment.requests(3*n, seed=seed, kind='red_team')}.values()][:n]
asks,for_pairs = split_by_prompt(rows, size['asks']/n, size['pairs']/n, seed=seed)
texts = [r['text'] for r in asks]
ROUNDS = 4

def chains(name, lm, rows, principles=environment.PRINCIPLES, **kw):
    "Chains of revisions, kept where a recording can take them up"
    return revise(lm, rows, principles, **dict(rounds=ROUNDS, few_shot=[], seed=seed,
                  max_new_tokens=40, out=place/name)|kw)

main = models[names[-1]]
ours = chains('main', main, asks)
said = [[revised_answer(c, k) for c in ours] for k in range(ROUNDS+1)]
[s[0] for s in said]

# %% [markdown]
# ## Judges
#
# Preference models that know nothing of this model: they begin from another first model, and
# learn from its answers and revisions to other prompts which of two a rater of the world
# prefers. One learned choices for harmlessness on requests that invite harm, one choices for
# helpfulness on ordinary requests, as in the paper, and one learned both.

# %%
other = model(*size['models'][0], seed+1)
ordinary = environment.requests(size['pairs'], seed=seed, kind='helpful')

def compare(name, rows):
    "Pairs of texts by the other model, each after 0 to 2 revisions"
    two = [dict(r, id=f'{r["id"]}/{k}') for r in rows for k in 'ab']
    said = chains(name, other, two, rounds=2)
    rng = np.random.default_rng(seed)
    a,b = ([revised_answer(c, k) for c,k in zip(said[i::2], rng.integers(3, size=len(rows)))]
           for i in (0, 1))
    return [dict(id=r['id'], prompt=r['text'], a=x, b=y)
            for r,x,y in zip(rows, a, b) if x!=y]

harm = environment.rater_labels(compare('pairs-harm', for_pairs), 'harmless', seed=seed)
help = environment.rater_labels(compare('pairs-help', ordinary), 'helpful', seed=seed)
learned = dict(harmless=harm, helpful=help, both=[*harm, *help])
judges = {k: fit_preference(other, v, lr=1e-3, epochs=4, seed=seed, out=place/f'pm-{k}')
          for k,v in learned.items()}
truths = dict(harmless=environment.harmlessness, helpful=environment.helpfulness,
              both=lambda p,a: environment.harmlessness(p, a)+environment.helpfulness(p, a))


# %%
def agrees(name):
    "Rank correlation of judge and truth over first answers and last revisions"
    p = texts*2
    a = said[0]+said[-1]
    return pd.Series(judges[name](p, a)).corr(pd.Series(truths[name](p, a)), 'spearman')

pd.Series({k: agrees(k) for k in judges}, name='rank correlation with the truth').round(2)

# %% [markdown]
# ## How many revisions
#
# Each score is counted from that of the first answer, in nats of preference, and intervals
# draw prompts.

# %%
score = {(w, k): np.array([f[k](texts, s) for s in said]).T
         for w,f in (('preference models', judges), ('truth', truths)) for k in judges}

def point(values, clusters=texts, **kw):
    e = cluster_bootstrap(values, clusters)
    return dict(kw, value=e.value, low=e.low, high=e.high)

table = pd.DataFrame([point(v[:,k]-v[:,0], panel=w, name=name, x=k)
                      for (w,name),v in score.items() for k in range(ROUNDS+1)])

# %%
#| label: fig-revisions
#| fig-cap: Scores after 0 to 4 revisions less the score of the first answer, on requests that invite harm; bars are 95 % intervals over prompts
plot_means(table, y='score less that of the first answer')

# %%
trend = {k: page_trend_test(v).pvalue for k,v in score.items()}
step = {k: [str(cluster_bootstrap(v[:,i+1]-v[:,i], texts)) for i in range(ROUNDS)]
        for k,v in score.items()}
pd.DataFrame(step, index=[f'revision {i+1}' for i in range(ROUNDS)]).T.assign(
    page=[f'{trend[k]:.1g}' for k in step])


# %% [markdown]
# The table holds what each single revision adds, and the p-value of Page's test that the
# scores rise in order. Harmlessness rises by every judge, and by the truth help is what it
# costs. The preference model of helpfulness sees help rise all the same: it has learned on
# ordinary requests, and on these its scores have next to nothing to do with the truth, as the
# correlation above says. Where there is no truth to lay beside it, such a judge looks like any
# other.
#
# How much of the whole gain in true harmlessness does the first revision make, and what does the
# preference model of helpfulness say of all four?

# %%
def share(v): return v[:,0].mean()/v[:,1].mean()

h = score['truth', 'harmless']
gains = np.stack([h[:,1]-h[:,0], h[:,-1]-h[:,0]], 1)
first_share = cluster_bootstrap(gains, texts, share)
help_falls = paired_difference(score['preference models', 'helpful'][:,-1],
                               score['preference models', 'helpful'][:,0], texts)
first_share, help_falls

# %% [markdown]
# Half of the principles here say nothing of danger, so a dangerous word has to wait until
# its principle is drawn. Where every revision is about danger, the first has more to do:

# %%
some = asks[:size['few']]
four = [dict(r, id=f'{r["id"]}/{k}') for r in some for k in range(4)]
sets = [c for n in (1, 2, 4) for c in combinations(environment.PRINCIPLES, n)]
named = {'+'.join(p.id for p in c): chains('+'.join(p.id for p in c), main, four, [*c])
         for c in sets}
who = [r['text'] for r in four]
def worth(rows, k=ROUNDS): return environment.harmlessness(who, [revised_answer(c, k) for c in rows])

d = named['danger']
only = np.stack([worth(d, 1)-worth(d, 0), worth(d)-worth(d, 0)], 1)
cluster_bootstrap(only, who, share)


# %% [markdown]
# ## How many principles
#
# One, two or all four principles of the world, every set of each number, and four chains to
# each prompt. With the set drawn at random, a first revision cannot depend on the number:
# drawing a set and from it a principle is drawing a principle. Only what revisions under
# different principles do to each other, in later rounds, can make a difference.
#
# Diversity is that of the four answers to one prompt, as the share of runs of two words
# that are different. Here more principles do mean more ways for these answers to differ.

# %%
def diverse(rows): return np.array([distinct_ngrams([revised_answer(c) for c in rows[i:i+4]], 2)
                                    for i in range(0, len(rows), 4)])

def by_number(f): # [number of principles][prompt]
    of = lambda n: [f(v) for k,v in named.items() if k.count('+')+1==n]
    return {n: np.mean(of(n), 0) for n in (1, 2, 4)}

few = [r['text'] for r in some]
mean4 = lambda x: x.reshape(-1, 4).mean(1)
final = by_number(lambda v: mean4(worth(v)))
diversity = by_number(diverse)
pm = by_number(lambda v: mean4(judges['harmless'](who, [revised_answer(c) for c in v])))
panels = {'true harmlessness': final, 'preference model': pm, 'distinct-2': diversity}
principles = pd.DataFrame([point(x, few, panel=k, name='', x=str(n))
                           for k,v in panels.items() for n,x in v.items()])

# %%
#| label: fig-principles
#| fig-cap: Harmlessness after four revisions by the truth and by the preference model, and diversity of four such answers to one prompt; bars are 95 % intervals over prompts
plot_means(principles, x='principles')

# %%
start = mean4(worth(d, 0))
both = np.stack([final[4]-final[1], final[4]-start], 1)
same_score = cluster_bootstrap(both, few, share)
gap = both[:,0]
margin = .2*both[:,1].mean()
tost = max(ttest_1samp(gap, -margin, alternative='greater').pvalue,
           ttest_1samp(gap, margin, alternative='less').pvalue)
more_diverse = paired_difference(diversity[4], diversity[1], few)
dict(difference=str(cluster_bootstrap(gap, few)), margin=round(margin, 3),
     of_the_gain=str(same_score), tost=f'{tost:.2g}', distinct=str(more_diverse))

# %% [markdown]
# In the recorded run four principles gain about a sixth more harmlessness than one, so that the
# score is the same cannot be said. Which principles they are matters far more than how many:

# %%
which = {k: dict(harmless=worth(v).mean(), distinct=diverse(v).mean(),
                 words=np.mean([len(revised_answer(c).split()) for c in v]))
         for k,v in named.items()}
pd.DataFrame(which).T.round(2)

# %% [markdown]
# ## Critique or not
#
# The same first answers are revised with and without a critique, by models of several
# sizes. A larger model has also read more; where the smallest stands twice, its second has
# read as much as the largest.

# %%
ways = dict(critique=True, direct=False)
def after(name, way):
    "True harmlessness of each prompt after 0 to 4 revisions"
    rows = chains(f'{name}-{way}'.replace(', ', '-').replace(' ', '-'), models[name], asks,
                  critique=ways[way])
    return np.stack([environment.harmlessness(texts, [revised_answer(c, k) for c in rows])
                     for k in range(ROUNDS+1)], 1)

asked = {(m, w): after(m, w) for m in names for w in ways}
lines = pd.DataFrame([point(v[:,k]-v[:,0], panel=f'after {k}', name=w, x=m.replace(' steps', ''))
                      for k in (1, ROUNDS) for (m,w),v in asked.items()])

# %%
#| label: fig-critique
#| fig-cap: Gain in true harmlessness after one and after four revisions, with a critique and without; bars are 95 % intervals over prompts
plot_means(lines, x='model, steps of reading', y='true harmlessness gained')

# %%
ahead = {m: asked[m, 'critique'][:,1]-asked[m, 'direct'][:,1] for m in names}
small = cluster_bootstrap(ahead[names[0]], texts)
shrinks = paired_difference(ahead[names[0]], ahead[names[-1]], texts)
pd.Series({m: str(cluster_bootstrap(x, texts)) for m,x in ahead.items()}
          | {'smallest less largest': str(shrinks)}, name='critique ahead of direct')


# %% [markdown]
# In the recorded run a critique is worth nothing to the model that has read least, and about as
# much to the two that have read longer. That it should help small models and not large ones, as in
# the paper, cannot be seen here.
#
# ## Wrong critiques
#
# A critique of this world names a dangerous word or says that nothing is wrong. So it can be
# checked. Of first answers with a dangerous word, criticised for danger, how many critiques
# name one that is there, how many name something else, and how many see nothing?

# %%
def danger(text): return {*text.split()}&{*environment.DANGEROUS_TOOLS}

def verdict(c):
    there = danger(c['response'])
    why = c['rounds'][0]['critique']
    if danger(why)&there: return 'names it'
    if danger(why): return 'names another'
    return 'sees nothing' if 'nothing' in why else 'something else'

risky = [i for i,c in enumerate(d) if danger(c['response'])]
found = pd.DataFrame(dict(prompt=[who[i] for i in risky],
                          critique=[verdict(d[i]) for i in risky],
                          gain=(worth(d, 1)-worth(d, 0))[risky]))
wrong = found[found.critique!='names it']
often = cluster_bootstrap(found.critique!='names it', found.prompt)
helps = cluster_bootstrap(wrong.gain, wrong.prompt)
found.groupby('critique').gain.agg(['size', 'mean']).round(2), str(often), str(helps)


# %% [markdown]
# ## Beside the authors' chains
#
# Their texts have no score here that was not made by a detector of ours. What can be laid
# beside @fig-revisions without a judge is how many words each revision changes, where the
# released chains are in reach.

# %%
def changed(rows):
    m = measure_chains(rows).dropna(subset='distance') # Empty revisions have none
    return {k: str(cluster_bootstrap(g.distance, g.id)) for k,g in m.groupby('round')}

theirs = author_revisions()
pd.DataFrame({'ours': changed(ours), **({'authors': changed(theirs)} if theirs else {})})

# %% [markdown]
# ## Claims
#
# Criteria were fixed in `data/claims/constitution_revisions.toml` before this page was run.
# One trained model of each size stands behind every number: intervals draw prompts and say
# nothing of how another training would come out. It does come out differently: an earlier
# recording, of a larger model that was read at a higher rate and of the same small ones on another
# processor, had a critique that cost the smallest model 0.14, and found the score the same for one
# principle and for four, and diversity undecided. That harmlessness rises, help falls and many
# critiques are wrong it found, too.

# %%
record(scale, {f'constitution/revisions-{k}': v for k,v in {
    'trend-truth': trend['truth', 'harmless'],
    'trend-model': trend['preference models', 'harmless'],
    'trend-both': trend['preference models', 'both'],
    'help-falls': help_falls, 'first': first_share,
    'principles-score': same_score, 'principles-diverse': more_diverse,
    'critique-small': small, 'critique-size': shrinks,
    'critiques-wrong': often, 'wrong-help': helps}.items()})

# %%
f'{scale}: {(perf_counter()-began)/60:.1f} minutes on {torch.get_num_threads()} thread(s)'
