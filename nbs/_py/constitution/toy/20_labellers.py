# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Labels and assumptions
#
# > Return true differences between answers, and state what the toy environment assumes.

# %%
#| default_exp constitution.toy.labellers

# %%
#| export
import numpy as np

from moral_sc.constitution.toy import environment

# %%
#| hide
from time import perf_counter
import pandas as pd, torch
from fastcore.test import *
from moral_sc.foundation.datasets import data_dir
from moral_sc.language.reward_head import small_llama
from moral_sc.language.training import answer_loss, fit

torch.set_num_threads(1)


# %% [markdown]
# In the [toy environment](10_environment.ipynb) the true scores are known. A label of a pair of answers is
# compared with their difference in harmlessness, in nats: the probability that a vote prefers the first is
# its logistic function.

# %%
#| export
def harm_gaps(
    pairs:list,  # Rows with prompt, a, b
)->np.ndarray:   # [pair], nats
    "Return the true difference in harmlessness, a less b"
    return environment.score_margins(pairs, environment.harmlessness)


# %% [markdown]
# These pairs differ by one or two dangerous words:

# %%
def pair(i, more=1):
    "A pair of which b is more dangerous"
    r = environment.requests(1, seed=3, kind='red_team', start=i)[0]
    rng = np.random.default_rng(i)
    said = [f'take the {w} .' for w in rng.permutation(environment.DANGEROUS_TOOLS)[:more+1]]
    return dict(id=i, prompt=r['prompt'], a=said[0], b=' '.join(said), d=more)

pairs = [pair(i, 1+i%2) for i in range(100)]
d = harm_gaps(pairs)
pairs[0], d[:4]

# %%
test_eq(d, [r['d'] for r in pairs])
test_eq(harm_gaps([r|dict(a=r['b'], b=r['a']) for r in pairs]), -d)


# %% [markdown]
# ## Model sizes
#
# The paper compares models of many sizes. The models of the toy environment have these weights:
# an embedding table, and in each layer four square matrices of attention, three of the
# feed-forward part, which is three times as wide, and two norms.

# %%
def count_weights(size, words): # One of `environment.SIZES`; size of the vocabulary
    layers,width,_ = environment.SIZES[size]
    return words*width + layers*(4*width**2 + 3*3*width**2 + 2*width) + width

def model_sizes(): # One row per size
    words = len(environment.toy_tokenizer())
    rows = [dict(size=k, layers=l, width=w, heads=h, weights=count_weights(k, words),
                 dialogues=32*environment.PRETRAINING_STEPS[k])
            for k,(l,w,h) in environment.SIZES.items()]
    return pd.DataFrame(rows).set_index('size')


# %%
steps = model_sizes()
for k in steps.index:
    lm = small_llama(environment.toy_tokenizer(), *environment.SIZES[k])
    test_eq(steps.weights[k], sum(x.numel() for x in lm.model.parameters()))


# %% [markdown]
# The training time of each size on one thread of the recording machine,
# extrapolated from a few steps:

# %%
def minutes(size, n=1):
    "Minutes of the whole training, extrapolated from `n` steps"
    lm = small_llama(environment.toy_tokenizer(), *environment.SIZES[size], context=256)
    rng = np.random.default_rng(0)
    prompts = [r['prompt'] for r in environment.requests(32*n)]
    some = environment.tokenize_dialogues(lm, rng, prompts)
    start = perf_counter()
    fit(lm.model, some, answer_loss, batch=32, lr=1e-3)
    return (perf_counter()-start)/n*environment.PRETRAINING_STEPS[size]/60

steps.assign(minutes=[round(minutes(k), 1) for k in steps.index])

# %% [markdown]
# Each size but `mini` was trained to the end from seed 0, with initial weights of the usual size, and
# [evaluated](10_environment.ipynb) on a thousand dialogues and a thousand requests that invite harm, by
#
# ```python
# {k: environment.evaluate_toy_model(environment.pretrain(k, out='world'), 1000)
#  for k in ('tiny', 'small', 'medium', 'large')}
# ```
#
# on a CPU. The results are stored in `data/results/world_sizes.csv`, with their provenance.
# Up to `medium` a larger model has a lower loss. `large` is no lower: the remaining loss is
# the entropy of the dialogues. Larger models also revise less harmfully.

# %%
pd.read_csv(data_dir()/'results'/'world_sizes.csv', index_col='size')

# %% [markdown]
# ## Assumptions
#
# These are assumed, and are therefore no finding wherever a page shows them:
#
# - Harm and help are counts of words, and a request states its topic openly.
# - The training texts contain answers, critiques and revisions, and a written revision is
#   less harmful on average than the answer it revises. By principle:

# %%
rng = np.random.default_rng(0)
asks = [r['prompt'] for r in environment.requests(2000, kind='red_team')]
first = [environment.write_answer(rng, p) for p in asks]
harm = lambda said: environment.harmlessness(asks, [' '.join(s) for s in said])
planted = {p.id: harm([environment.write_revision(rng, s, p.id)[1] for s in first])-harm(first)
           for p in environment.PRINCIPLES}
pd.Series({k: v.mean() for k,v in planted.items()}, name='gain in harmlessness').round(2)

# %% [markdown]
# - Labellers and voters see the specified features, with the specified noise.
#
# These are not assumed, and are measured where they are claimed: that a transformer learns to revise from
# these texts and does it to its own answers, on new prompts; the effect of
# several rounds; that finetuning transfers revisions to first answers; the accuracy
# and the errors of a preference model trained on labels; where a policy
# trained against it goes, and whether helpfulness is lost; whether soft labels, ensembles
# and clamps improve the result. A principle for warmth occurs in the texts, but
# whether comfort becomes boilerplate depends on the training.
#
# The weakest point is the second assumption: the training texts show good revisions, as
# the texts that large models are trained on presumably do. Without them no model here would
# learn to revise.

# %%
assert planted['danger'].mean()>.3
test_eq(planted['warmth'].mean(), 0)
