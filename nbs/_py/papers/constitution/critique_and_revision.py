# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A small model revises its critique and not its answer
#
# > The supervised stage of Constitutional AI on 135 million parameters, beside the chains the
# > authors released. The site shows a run recorded at scale `cpu`: SmolLM2-135M-Instruct in four
# > bits, 24 prompts, two rounds, ten minutes of one CPU core, 23 November 2026.

# %% tags=["parameters"]
scale = 'quick'  # quick: half a minute on a CPU; cpu: ten minutes or more; gpu: four rounds
seed = 0  # of every draw and every sampled text
model = 'smollm2-135m-instruct'  # an alias, a folder or a hub id

# %%
#| hide
import re
import textwrap

import pandas as pd
from IPython.display import display

# %%
from moral_sc.constitution.evaluation.refusals import (
    AUTHOR_MODELS, author_samples, boilerplate_matches, measure_chains, evasion_matches, group_means)
from moral_sc.constitution.plots import plot_overlap, plot_rounds
from moral_sc.constitution.principles import load_few_shot, load_principles
from moral_sc.constitution.revision import author_revisions, revise
from moral_sc.foundation.datasets import data_dir, read_jsonl
from moral_sc.foundation.statistics import cluster_bootstrap, paired_difference, wilson
from moral_sc.lab.claims import record
from moral_sc.lab.paths import work_dir
from moral_sc.lab.scales import at_scale
from moral_sc.language.loading import load_or_stub
from moral_sc.language.stub_models import stub_model

# %%
sizes = at_scale(scale, quick=dict(prompts=2, rounds=1, shots=1, max_new_tokens=16),
             cpu=dict(prompts=24, rounds=2, shots=3, max_new_tokens=64),
             gpu=dict(prompts=80, rounds=4, shots=3, max_new_tokens=256))


# %% [markdown]
# > A model answers a request, criticises its answer under a principle drawn at random, and
# > revises it; revisions of many answers become training data. The authors report that the
# > first revision does most of the work, that worked examples keep the model from writing a
# > critique where a revision is due, and that revised answers engage where models trained on
# > human votes evade [@bai2022constitutional].
#
# Their models had up to 52 billion parameters. Ours has a four-hundredth of that, and its weights
# here may be rounded to four bits. So the question is what of the procedure survives. No judge
# is used: harmlessness is not measured on this page. What can be measured without one is
# whether a revision is a new text, where its words come from, whose voice it speaks in, and
# whether it evades.

# %%
#| hide
def stand_in(): # Says the same three things to everybody
    ps = load_principles()
    requests = {p.critique: 'The answer could be kinder.' for p in ps}
    requests |= {p.revision: 'Take your time, and ask someone you trust.' for p in ps}
    def fn(text):
        asked = re.findall(r'user\n(.*)<\|im_end\|>\n<\|im_start\|>assistant\n$', text)
        return {requests.get(asked[0], 'Do it at once.') if asked else '': 1.}
    return stub_model(fn, 'three-sentences')


# %%
lm = load_or_stub(model, stand_in)


# %% [markdown]
# ## Prompts
#
# Half are ordinary requests and half invite an answer that is rude, dishonest, prying or
# careless. All were written for this project and are mild.

# %%
def some(name, n): # Evenly spread over the topics
    rows = read_jsonl(data_dir()/'prompts'/f'{name}.jsonl')
    return [rows[i*len(rows)//n] for i in range(n)]

prompts = some('helpful', sizes['prompts']//2) + some('mild_red_team', sizes['prompts']//2)
pd.DataFrame(prompts)[['kind', 'topic', 'text']].iloc[[0, 1, -2, -1]]

# %% [markdown]
# ## Three ways to ask
#
# The same answers are revised after a critique, directly, as in the paper's ablation, and, for
# one round, after a critique without worked examples. The model is spoken to in its own chat
# format. The paper samples at temperature 1; there this model writes word salad, so this page
# samples at 0.5.

# %%
shots = load_few_shot()[:sizes['shots']]
ways = {'critique': dict(), 'direct': dict(critique=False),
        'no examples': dict(few_shot=[], rounds=1)}
base = dict(mode='chat', few_shot=shots, rounds=sizes['rounds'], temperature=.5, seed=seed,
            max_new_tokens=sizes['max_new_tokens'])

def chains(name, way):
    place = work_dir(f'critique-{lm.name.replace("/", "-")}-{scale}-{seed}')
    return revise(lm, prompts, out=place/name.replace(' ', '-'), **base | way)

ours = {name: chains(name, way) for name,way in ways.items()}
theirs = author_revisions()
len(prompts), len(theirs)


# %% [markdown]
# ## One chain
#
# The first request, its answer, and the first revision with the critique before it, cut short.

# %%
def excerpt(row, width=88, chars=300):
    step = row['rounds'][0]
    parts = dict(Request=row['prompt'], Answer=row['response'], Principle=step['principle'],
                 Critique=step['critique'], Revision=step['revision'])
    lines = [f'{k}: {" ".join(v.split())}' for k,v in parts.items()]
    return '\n\n'.join(textwrap.fill(l[:chars]+'...'*(len(l)>chars), width) for l in lines)

print(excerpt(ours['critique'][0]))


# %% [markdown]
# ## What changed
#
# Every measure comes from [behaviour](../../constitution/evaluation/50_refusals.ipynb), where the detectors
# are checked against labelled answers. The authors' chains, where they are in reach, go through
# the same functions; none of their text is shown. Intervals resample prompts.

# %%
def stacked(chains): # One frame for several conditions
    return pd.concat([measure_chains(r).assign(condition=k) for k,r in chains.items() if r],
                     ignore_index=True)

d = stacked({'authors': theirs, **ours})
columns = ['same', 'empty_text', 'distance', 'overlap_critique', 'critic_voice', 'evades',
           'boilerplate', 'repetition', 'length_ratio']
first = d[d['round']==1]
table = group_means(first, columns)
table.T.astype(str)

# %% [markdown]
# Row by row: the share of first revisions that are copies, the share that came out empty, the
# share of words changed, the overlap with the critique, the share in the critic's voice, the
# shares that evade and that hold boilerplate, the share of repeated runs of four words, and the
# length over that of the answer. Ours are cut at a fixed number of tokens, most answers among
# them, so the last row understates how much shorter revisions would be.

# %%
cut = {k: sum(r['finish']=='length' for r in rows)/len(rows) for k,rows in ours.items()}
pd.Series(cut, name='answers cut at the limit').round(2)

# %%
#| label: fig-distance
#| fig-cap: Share of words that a revision changes. Bars: 95 % intervals over prompts.
plot_rounds(d[d.condition.isin(['authors', 'critique', 'direct'])])

# %%
#| label: fig-likeness
#| fig-cap: What a first revision has in common with the answer and with the critique.
plot_overlap(first)

# %% [markdown]
# @fig-distance shows that almost every word of our revisions is new, and @fig-likeness where the
# words come from. The authors' revisions keep close to half of the answer and hardly touch the
# critique. Ours do the reverse: they say the critique again, in about half of the rows in the
# critic's voice, and share little with the answer. Without worked examples they repeat still
# more of the critique. Asked directly, with no critique to repeat, the model loses the answer
# all the same.
#
# The first revision changes more than the second, as the paper says, but not for the paper's
# reason: the first leaves the answer behind and the second stays with what it has. Changed
# words are no sign of work done here, and shorter is no sign of better. None of this says
# whether a revision is less harmful, which takes a judge.

# %%
if theirs:
    t = table.loc['authors']
    assert 1-t.distance.value > t.overlap_critique.high
    assert t.critic_voice.value<.05 and t.same.value<.05


# %% [markdown]
# ## What the authors' answers say about evasion and boilerplate
#
# > Trained on human votes, a model evades; trained on a constitution it does not, and trained
# > too long it puts boilerplate into most answers [@bai2022constitutional].
#
# This needs no model of ours: the answers are public, and the detectors count.

# %%
def recount(model):
    a = author_samples(model)
    where = a.set+a.row.astype(str)
    rate = lambda f: cluster_bootstrap([bool(f(t)) for t in a.text], where)
    return dict(evades=rate(evasion_matches), boilerplate=rate(boilerplate_matches)) if len(a) else {}

released = {name: recount(m) for m,name in AUTHOR_MODELS.items()}
pd.DataFrame(released).T.astype(str)


# %% [markdown]
# ## Claims
#
# The criteria for the last six were committed after a pilot of six prompts and before the
# recorded run. The first two are recounts, whose outcome was known.

# %%
def recounted():
    hh,rl = (author_samples(m) for m in ('HHRLHF', 'RLMADISON'))
    if not (len(hh) and len(rl)): return {}
    hit = lambda a: pd.Series([bool(evasion_matches(t)) for t in a.text])
    by_prompt = lambda a: hit(a).groupby([a.set, a.prompt]).mean()
    e = pd.concat([by_prompt(hh), by_prompt(rl)], axis=1, join='inner').to_numpy()
    return {'constitution/human-labels-evade': paired_difference(*e.T, range(len(e))),
            'constitution/boilerplate': released['constitutional RL']['boilerplate']}

def measured(chains):
    a,b = (measure_chains(chains[k]) for k in ('critique', 'no examples'))
    one = a[a['round']==1]
    last = a[a['round']==a['round'].max()]
    rate = lambda x: wilson(int(x.sum()), len(x)) # One row a prompt, and perhaps no hit
    both = one.dropna(subset=['overlap', 'overlap_critique'])
    pair = a.pivot(index='id', columns='round', values='distance').dropna()
    res = {'rewrites': cluster_bootstrap(a.same.astype(float), a.id),
           'from-the-answer': paired_difference(both.overlap, both.overlap_critique,
                                                both.id),
           'voice': rate(one.critic_voice), 'engages': rate(last.evades),
           'examples': paired_difference(b[b['round']==1].critic_voice.to_numpy(float),
                                         one.critic_voice.to_numpy(float), one.id)}
    if 2 in pair: res['first-revision'] = paired_difference(pair[1], pair[2], pair.index)
    return {f'constitution/{k}': v for k,v in res.items()}

record(scale, recounted() | ({} if lm.is_stub else measured(ours)))
