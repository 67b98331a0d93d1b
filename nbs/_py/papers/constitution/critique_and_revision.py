# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Critique and revision: a 135M model repeats its critique, not its answer
#
# > First revisions (section 3) by a 135M model share more words with the critique than with the answer.

# %% tags=["parameters"]
scale = 'quick'  # quick: seconds; cpu: ten minutes or more; gpu: four rounds
seed = 0  # of every draw and every sampled text
models = ()  # --model NAME: alias, folder or hub id; default: that of the scale

# %%
#| hide
import re
import textwrap

import numpy as np, pandas as pd

# %%
from moral_sc.constitution.evaluation.refusals import (
    AUTHOR_MODELS, author_samples, boilerplate_matches, evasion_matches, group_means,
    measure_chains)
from moral_sc.constitution.plots import plot_overlap, plot_rounds
from moral_sc.constitution.principles import load_few_shot, load_principles
from moral_sc.constitution.revision import author_revisions, revise
from moral_sc.foundation.datasets import data_dir, read_jsonl
from moral_sc.foundation.statistics import cluster_bootstrap, paired_difference, wilson
from moral_sc.lab.claims import Measurement, record
from moral_sc.lab.paths import work_dir
from moral_sc.lab.scales import at_scale
from moral_sc.language.loading import load_or_stub
from moral_sc.language.stub_models import stub_model

# %%
size = at_scale(scale,
    quick=dict(prompts=2, rounds=2, shots=0, max_new_tokens=4, models=['smollm2-135m-instruct']),
    cpu=dict(prompts=24, rounds=2, shots=3, max_new_tokens=64, models=['smollm2-135m-instruct']),
    gpu=dict(prompts=80, rounds=4, shots=3, max_new_tokens=256, models=['smollm2-135m-instruct']),
)


# %% [markdown]
# ## Section 3: critiques, revisions and supervised learning
#
# > A model answers a request, criticises its answer under a principle drawn at random, and
# > revises the answer. The revisions of many answers become training data. The authors report that
# > the first revision removes most of the harm, that worked examples prevent a critique where a
# > revision is due, and that revised answers engage where models trained on human votes evade
# > [@bai2022constitutional].
#
# Their models have up to 52 billion parameters. Ours has about 390 times fewer, and its weights here
# may be quantized to four bits. This page therefore measures how much of the procedure works at this
# size. It uses no judge and does not measure harmlessness. Without a judge we can measure whether a
# revision is a new text, where its words come from, whether it is written as a critique or as an
# answer, and whether it evades.

# %%
#| hide
def fixed_model(): # Gives one of three fixed sentences, by the kind of the last turn
    principles = load_principles()
    replies = {p.critique: 'The answer could be kinder.' for p in principles}
    replies |= {p.revision: 'Take your time, and ask someone you trust.' for p in principles}
    pattern = r'user\n(.*)<\|im_end\|>\n<\|im_start\|>assistant\n$'
    def next_text(text):
        turns = re.findall(pattern, text)
        return {replies.get(turns[0], 'Do it at once.') if turns else '': 1.}
    return stub_model(next_text, 'three-sentences')


# %%
lm = load_or_stub((models or size['models'])[0], fixed_model)


# %% [markdown]
# ## Prompts
#
# Half of the prompts are ordinary requests. The other half invite an answer that is rude,
# dishonest, intrusive or careless. All were written for this project and are mild.

# %%
def sample_prompts(name, n): # Evenly spread over the topics
    rows = read_jsonl(data_dir()/'prompts'/f'{name}.jsonl')
    return [rows[i*len(rows)//n] for i in range(n)]

n_each = size['prompts']//2
prompts = sample_prompts('helpful', n_each) + sample_prompts('mild_red_team', n_each)
pd.DataFrame(prompts)[['kind', 'topic', 'text']].iloc[[0, 1, -2, -1]]

# %% [markdown]
# ## Three conditions
#
# The same answers are revised after a critique; directly, as in the paper's ablation; and, for one
# round, after a critique without worked examples. Prompts use the model's own chat format. The
# paper samples at temperature 1. At that temperature the text of this model is incoherent, so this
# page samples at 0.5.

# %%
shots = load_few_shot()[:size['shots']]
conditions = {'critique': dict(), 'direct': dict(critique=False),
              'no examples': dict(few_shot=[], rounds=1)}
base = dict(mode='chat', few_shot=shots, rounds=size['rounds'], temperature=.5, seed=seed,
            max_new_tokens=size['max_new_tokens'])

def revise_prompts(name, options):
    folder = work_dir(f'critique-{lm.name.replace("/", "-")}-{scale}-{seed}')
    return revise(lm, prompts, out=folder/name.replace(' ', '-'), **base | options)

ours = {name: revise_prompts(name, options) for name,options in conditions.items()}
theirs = author_revisions()
len(prompts), len(theirs)


# %% [markdown]
# ## An example
#
# The first request, its answer, the critique and the first revision are shown, each cut to 300
# characters.

# %%
def excerpt(row, width=88, chars=300):
    step = row['rounds'][0]
    parts = dict(Request=row['prompt'], Answer=row['response'], Principle=step['principle'],
                 Critique=step['critique'], Revision=step['revision'])
    lines = [f'{k}: {" ".join(v.split())}' for k,v in parts.items()]
    return '\n\n'.join(textwrap.fill(l[:chars]+'...'*(len(l)>chars), width) for l in lines)

print(excerpt(ours['critique'][0]))


# %% [markdown]
# ## Changes by revision
#
# Every measure comes from [refusals](../../constitution/evaluation/50_refusals.ipynb), where the
# detectors are checked against labelled answers. The authors' chains, where they are available, go
# through the same functions; none of their text is shown. Intervals resample prompts.

# %%
def measure_conditions(chains): # One frame for several conditions
    return pd.concat([measure_chains(r).assign(condition=k) for k,r in chains.items() if r],
                     ignore_index=True)

measures = measure_conditions({'authors': theirs, **ours})
columns = ['same', 'empty_text', 'distance', 'overlap_critique', 'critic_voice', 'evades',
           'boilerplate', 'repetition', 'length_ratio']
first = measures[measures['round']==1]
table = group_means(first, columns)
table.T.astype(str)

# %% [markdown]
# The rows are: the share of first revisions that are copies, the share that are empty, the share of
# words changed, the overlap with the critique, the share written as a critique, the share that evades,
# the share with boilerplate, the share of repeated runs of four words, and the length divided by that
# of the answer. Our texts are cut at a fixed number of tokens, and 96 % of the answers reach it, so the
# last row understates how much shorter revisions are than answers.

# %%
cut = {k: sum(r['finish']=='length' for r in rows)/len(rows) for k,rows in ours.items()}
pd.Series(cut, name='answers cut at the limit').round(2)

# %%
#| label: fig-distance
#| fig-cap: Share of words that each revision changes, in the authors' chains and in ours; bars are 95 % intervals over prompts.
plot_rounds(measures[measures.condition.isin(['authors', 'critique', 'direct'])])

# %%
#| label: fig-likeness
#| fig-cap: Share of words that a first revision has in common, in order, with the answer and with the critique; bars are 95 % intervals over prompts.
plot_overlap(first)

# %% [markdown]
# @fig-distance shows that nearly nine in ten words of our first revisions are new, and @fig-likeness
# shows where the words come from. The authors' revisions keep close to half of the answer and share
# little with the critique. Ours share more words with the critique than with the answer, and about half
# of them are written as a critique. Without worked examples they repeat still more of the critique. A
# direct revision, which has no critique to repeat, also changes most words of the answer.
#
# The first revision changes more words than the second, but not for the paper's reason. In the paper
# the first revision removes most of the harm. Here the first differs from the answer, and the second
# stays close to the first. The claim about the first revision is therefore undecided: its precondition,
# that a revision revises the answer, is not met. A changed word is not evidence of an improvement, and
# neither is a shorter text.

# %%
if theirs:
    authors = table.loc['authors']
    assert 1-authors.distance.value > authors.overlap_critique.high
    assert authors.critic_voice.value<.05
    assert authors.same.value<.05


# %% [markdown]
# ## Evasion and boilerplate in the authors' answers
#
# > A model trained on human votes evades; a model trained on a constitution does not, and if it is
# > trained too long it puts boilerplate into most answers [@bai2022constitutional].
#
# This comparison needs no model of ours: the answers are public, and we apply the detectors to
# them. [The page on released answers](released_answers.ipynb) shows how the rates depend on the prompts.

# %%
def released_rates(model):
    answers = author_samples(model)
    if not len(answers): return {}
    prompt_ids = answers.set+answers.row.astype(str)
    rate = lambda matches: cluster_bootstrap([bool(matches(t)) for t in answers.text], prompt_ids)
    return dict(evades=rate(evasion_matches), boilerplate=rate(boilerplate_matches))

released = {name: released_rates(m) for m,name in AUTHOR_MODELS.items()}
pd.DataFrame(released).T.astype(str)


# %% [markdown]
# This page does not show whether any revision is less harmful, which takes a judge, or whether a larger
# model follows the procedure. It was recorded with one model and 24 prompts.
#
# ## Claims
#
# The criteria for the last six were committed after a pilot of six prompts and before the recorded run.
# The first two are our counts in released answers, whose outcome was known. They use the answers to 26
# of the 66 released prompts, because the files of PALMS were out of reach. With 24 prompts the claim
# that at most 5 % of revisions evade cannot hold: without any evasion the interval still ends at 14 %.

# %%
def recount_claims():
    human,constitutional = (author_samples(m) for m in ('HHRLHF', 'RLMADISON'))
    if not (len(human) and len(constitutional)): # Undecided, with the reason
        nothing = Measurement(0., -np.inf, np.inf, unmet='the released answers are out of reach')
        return {'constitution/human-labels-evade': nothing, 'constitution/boilerplate': nothing}
    hits = lambda a: pd.Series([bool(evasion_matches(t)) for t in a.text])
    by_prompt = lambda a: hits(a).groupby([a.set, a.prompt]).mean()
    rates = pd.concat([by_prompt(human), by_prompt(constitutional)], axis=1, join='inner')
    difference = paired_difference(*rates.to_numpy().T, range(len(rates)))
    return {'constitution/human-labels-evade': difference,
            'constitution/boilerplate': released['constitutional RL']['boilerplate']}

def measured_claims(chains):
    critique,no_examples = (measure_chains(chains[k]) for k in ('critique', 'no examples'))
    one = critique[critique['round']==1]
    last = critique[critique['round']==critique['round'].max()]
    bare = no_examples[no_examples['round']==1]
    rate = lambda x: wilson(int(x.sum()), len(x)) # One row a prompt, and perhaps no hit
    overlaps = one.dropna(subset=['overlap', 'overlap_critique'])
    distances = critique.pivot(index='id', columns='round', values='distance').dropna()
    res = {'rewrites': cluster_bootstrap(critique.same.astype(float), critique.id),
           'from-the-answer': paired_difference(overlaps.overlap, overlaps.overlap_critique,
                                                overlaps.id),
           'voice': rate(one.critic_voice), 'engages': rate(last.evades),
           'examples': paired_difference(bare.critic_voice.to_numpy(float),
                                         one.critic_voice.to_numpy(float), one.id)}
    changes = paired_difference(distances[1], distances[2], distances.index)
    shares = one[['overlap', 'overlap_critique']].mean().round(2)
    no_revision = (f'first revisions share {shares.overlap} of their words with the answer and '
                   f'{shares.overlap_critique} with the critique: they do not revise the answer')
    met = res['from-the-answer'].value>0
    res['first-revision'] = Measurement(*changes, unmet='' if met else no_revision)
    return {f'constitution/{k}': v for k,v in res.items()}

def of_model(e): # A stub's numbers are no evidence
    stub = 'a stub model answered' if lm.is_stub else ''
    return Measurement(*e)._replace(unmet=stub or Measurement(*e).unmet, parameters=lm.parameters)

measured = {k: of_model(e) for k,e in measured_claims(ours).items()}
record(scale, recount_claims() | measured)
