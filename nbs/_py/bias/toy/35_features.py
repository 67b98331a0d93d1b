# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Features in the residual stream
#
# > Directions of known features are read out of the residual stream, and changed at test time.

# %%
#| default_exp bias.toy.features

# %%
#| export
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pandas as pd
import torch

from moral_sc.bias.toy.environment import (CONDITION_MEANINGS, NOUNS, VERBS, ToyLanguage,
                                           ToyQuestion, documents, instructions, lexicon,
                                           option_ids)
from moral_sc.foundation.errors import ConfigError
from moral_sc.foundation.statistics import roc_area

# %%
#| hide
from fastcore.test import *
from moral_sc.bias.toy.environment import toy_items
from moral_sc.bias.toy.ladder import Ladder, new_model
from moral_sc.language.scoring import next_token_logprobs

torch.set_num_threads(1)


# %% [markdown]
# The [toy language](10_environment.ipynb) says exactly what a question is about: two groups, a trait,
# the answer that agrees with the stereotype, polarity, evidence, and an instruction made of two
# words whose pair has a meaning. This page finds the direction of each of these features in the
# residual stream of a [model](30_ladder.ipynb), in the sense of the toy models of superposition: how
# the hidden state changes when the feature is there.
#
# ## Questions and their features
#
# Every question carries an instruction that is fair or its opposite, and is answered by name. The two
# meanings consist of the same words, so no single word tells them apart.

# %%
#| export
def instructed_questions(
    language:ToyLanguage,
    n:int,
    seed:int=0,
    held_out:bool=False, # Instructions that occur in no document, instead of those that do
)->list:                 # Of `ToyQuestion`
    "Draw questions of all categories that carry an instruction"
    drawn = replace(language, statements=0., notes=0., instructed=1., held_out_categories=0)
    texts = instructions(language, held_out)
    rng = np.random.default_rng([language.seed, 4, seed])
    return [d.question._replace(instruction=str(rng.choice(texts[d.kind])))
            for d in documents(drawn, n, seed)]

def name_prompt(
    question:ToyQuestion,
)->str:
    "Return the prompt of a question that is answered by name"
    return f'\n\nHuman: {question.text}\n\nAssistant: name'

def question_features(
    language:ToyLanguage,
    questions:list, # Of `instructed_questions`
)->pd.DataFrame:    # [question, (kind, name)] 1 where the feature is there, otherwise 0
    "Tabulate the features of questions"
    return _feature_table(language, tuple(questions)).copy()

@lru_cache(8) # Models of all sizes, read at several places, are asked the same questions
def _feature_table(language, questions):
    known = lexicon(language)
    groups = [g for c in known.groups for g in c]
    words = [w for kinds in (VERBS, NOUNS) for kind in kinds if kind!='style'
             for w in kinds[kind][:language.words]]
    names = dict(group=groups, trait=[t.word for t in known.traits], stereotype=groups, word=words,
                 polarity=['negative'], evidence=['given'], meaning=['fair'])
    columns = pd.MultiIndex.from_tuples([(k, x) for k,xs in names.items() for x in xs],
                                        names=['kind', 'name'])
    fair = set(instructions(language)['fair']+instructions(language, True)['fair'])
    present = [_present(q, q.instruction in fair) for q in questions]
    return pd.DataFrame([[float(c in p) for c in columns] for p in present], columns=columns)

def _present(q, fair):
    found = {('group', g) for g in q.people} | {('word', w) for w in q.instruction.split()}
    found |= {('trait', q.trait.word), ('stereotype', q.biased)}
    single = dict(polarity=('negative', q.negative), evidence=('given', q.evidence),
                  meaning=('fair', fair))
    return found | {(kind, name) for kind,(name,there) in single.items() if there}


# %%
language = ToyLanguage(categories=2, traits=2)
questions = instructed_questions(language, 400)
present = question_features(language, questions)
test_eq(present['group'].sum(axis=1).unique(), [2])
for kind in ('trait', 'stereotype'): test_eq(present[kind].sum(axis=1).unique(), [1])
test_eq(present['word'].sum(axis=1).unique(), [2])
assert all(present['stereotype', q.biased][k]==1 for k,q in enumerate(questions))
questions[0].text, [f'{k} {n}'.strip() for (k,n),x in present.loc[0].items() if x]

# %% [markdown]
# No single word is related to the meaning, and the held-out instructions share none of the pairs:

# %%
fair = present['meaning', 'fair']
assert present['word'].corrwith(fair).abs().max()<.15
unseen = instructed_questions(language, 400, held_out=True)
assert not {q.instruction for q in questions}&{q.instruction for q in unseen}

# %% [markdown]
# ## Residual stream
#
# The stream is read after a layer, before any normalisation, at a token counted from the end of
# the prompt: `ANSWER_TOKEN` predicts the answer, `INSTRUCTION_TOKEN` is the last word of the
# instruction. Prompts are padded on the left, which changes nothing: positions are relative.

# %%
#| export
ANSWER_TOKEN = -1
INSTRUCTION_TOKEN = -3 # Before the assistant's heading and " name"

@contextmanager
def _layer_output(lm, layer, use):
    "Replace the output of a layer by what `use` returns, unless it is None"
    layers = lm.model.model.layers
    if not 0<=layer<len(layers):
        raise ConfigError(f'layer is {layer}; {lm.name} has layers 0 to {len(layers)-1}.')
    handle = layers[layer].register_forward_hook(lambda module, given, found: use(found))
    try: yield
    finally: handle.remove()

@torch.no_grad()
def _answer_logits(lm, prompts):
    batch = lm.tokenizer(list(prompts), padding=True, padding_side='left', return_tensors='pt')
    ids = {k: batch[k].to(lm.model.device) for k in ('input_ids', 'attention_mask')}
    return lm.model(**ids).logits[:,-1]

def residual_stream(
    lm,
    prompts:list,            # Of `name_prompt`
    layer:int=0,             # Behind this layer, counted from 0
    token:int=ANSWER_TOKEN,  # Counted from the end
)->np.ndarray:               # [prompt, width]
    "Return hidden states of a model without normalisation"
    found = []
    def keep(h): found.append(h[:,token].double().cpu().numpy())
    with _layer_output(lm, layer, keep): _answer_logits(lm, prompts)
    return found[0]

def name_answers(
    lm,
    items:list,              # Of `toy_items`
    condition:str='q',       # 'q', 'q+if', 'q+anti' or 'q+note'
    edit=None,               # Takes and returns hidden states [item, width]
    layer:int=0,             # Where the edit takes place, as in `residual_stream`
    token:int=ANSWER_TOKEN,
)->np.ndarray:               # [item, option] probabilities
    "Ask for the names of answers, with an edit of the residual stream if one is given"
    prompts = condition_prompts(items, condition)
    def change(h):
        if edit is None: return None
        h = h.clone()
        h[:,token] = torch.as_tensor(edit(h[:,token].double().cpu().numpy())).to(h)
        return h
    with _layer_output(lm, layer, change): logits = _answer_logits(lm, prompts)
    chosen = logits.cpu().double().gather(1, torch.from_numpy(option_ids(lm, items)))
    return chosen.softmax(1).numpy()

def condition_prompts(
    items:list,    # Of `toy_items`
    condition:str, # Without reasoning
)->list:
    "Return the prompts of items that are answered by name"
    meaning = CONDITION_MEANINGS[condition]
    return [name_prompt(i.source._replace(instruction=getattr(i, meaning) if meaning else ''))
            for i in items]


# %% [markdown]
# Padding leaves the answers as they are, an edit that changes nothing does too, and an edit after
# the last layer replaces the state that the answer is read from:

# %%
lm = new_model(Ladder(language), 8)
items = toy_items(language)
def logprobs(condition):
    rows = next_token_logprobs(lm, condition_prompts(items, condition))
    ids = [lm.tokenizer.convert_tokens_to_ids([f' {o}' for o in i.options]) for i in items]
    p = np.exp(np.take_along_axis(rows, np.array(ids), 1))
    return p/p.sum(1, keepdims=True)

for condition in ('q', 'q+if'): test_close(name_answers(lm, items, condition), logprobs(condition))
plain = name_answers(lm, items, 'q+if')
assert np.array_equal(plain, name_answers(lm, items, 'q+if', lambda h: h, layer=1))
everywhere = name_answers(lm, items, 'q+if', lambda h: 0*h+1, layer=1)
same = [[i.options.index(o) for o in ('unknown', i.source.biased)] for i in items]
ratio = np.array([p[a]/p[b] for p,(a,b) in zip(everywhere, same)])
groups = np.array([i.source.biased for i in items])
for g in set(groups): test_close(ratio[groups==g].std(), 0)
with expect_fail(ConfigError, contains='layers 0 to 1'): residual_stream(lm, ['a'], layer=2)

# %% [markdown]
# The last word of an instruction is where it should be, whatever the length of the prompt:

# %%
prompts = [name_prompt(q) for q in questions]
ends = {lm.tokenizer.convert_ids_to_tokens(lm.tokenizer(p).input_ids[INSTRUCTION_TOKEN]).strip()
        for p in prompts}
test_eq(ends, {q.instruction.split()[1] for q in questions})


# %% [markdown]
# ## Directions
#
# The direction of a feature is its coefficient in a least-squares regression of the hidden state
# on all features: the difference between the means with and without it, other features equal. Where
# features determine each other (the traits of all questions add up to one), the smallest solution is
# taken. These are the columns of the paper's matrix $W$ [@elhage2022].

# %%
#| export
def feature_directions(
    stream:np.ndarray,    # [prompt, width]
    present:pd.DataFrame, # [prompt, feature], of `question_features`
)->np.ndarray:            # [feature, width]
    "Return how the hidden state changes with each feature"
    x = present.to_numpy()
    return np.linalg.lstsq(x-x.mean(0), stream-stream.mean(0), rcond=1e-8)[0]

def reading_areas(
    stream:np.ndarray,        # [prompt, width]
    present:pd.DataFrame,     # [prompt, feature]
    test_stream:np.ndarray,   # Of other prompts
    test_present:pd.DataFrame,
)->pd.Series:                 # [feature]; not a number where all test prompts are alike
    "Fit a linear reader of each feature and return its area under the ROC curve on other prompts"
    x = present.to_numpy()
    centre = stream.mean(0)
    reader = np.linalg.lstsq(stream-centre, x-x.mean(0), rcond=1e-8)[0]
    scores = (test_stream-centre)@reader
    return pd.Series([roc_area(f>0, s) for s,f in zip(scores.T, test_present.to_numpy().T)],
                     present.columns)


# %% [markdown]
# With a stream that is made of known directions, they come back. Directions that features share
# with others are found up to the sum that cannot be told apart:

# %%
rng = np.random.default_rng(0)
true = rng.normal(size=(present.shape[1], 8))
made = present.to_numpy()@true
found = feature_directions(made, present)
x = present.to_numpy()-present.to_numpy().mean(0)
test_close(x@found, made-made.mean(0))
single = [present.columns.get_loc((k, n)) for k,n in
          (('polarity', 'negative'), ('evidence', 'given'), ('meaning', 'fair'))]
test_close(found[single], true[single])

# %% [markdown]
# A reader is judged on other prompts. Where the stream holds a feature its area is 1, and where
# features are shuffled over prompts it is near one half:

# %%
other = question_features(language, unseen)
noisy = lambda f: f.to_numpy()[:,single]@np.eye(3, 8)+.05*rng.normal(size=(len(f), 8))
stream,test_stream = noisy(present),noisy(other)
areas = reading_areas(stream, present, test_stream, other)
test_close(areas.iloc[single], 1, eps=.01)
shuffled = [f.sample(frac=1, random_state=0) for f in (present, other)]
chance = reading_areas(stream, shuffled[0], test_stream, shuffled[1]).iloc[single]
assert (chance-.5).abs().max()<.1
areas.groupby('kind', sort=False).mean().round(2).to_dict()


# %% [markdown]
# ## Lengths and angles of random directions
#
# In few dimensions any two directions overlap: the squared cosine of random ones is one over the
# width. A model's use of its dimensions is therefore compared with that of random directions of the
# same lengths.

# %%
#| export
def random_directions(
    W:np.ndarray, # [feature, width]
    seed:int=0,
)->np.ndarray:    # Same shape and lengths
    "Draw random directions of given lengths"
    z = np.random.default_rng(seed).normal(size=W.shape)
    return z*(np.linalg.norm(W, axis=1)/np.linalg.norm(z, axis=1))[:,None]

def relative_interference(
    direction:np.ndarray, # [width]
    others:np.ndarray,    # [feature, width]; zeros are left out
)->float:                 # 1: as random directions, 0: orthogonal
    "Return the mean squared cosine of a direction with others, times the width"
    lengths = np.linalg.norm(others, axis=1)
    used = lengths>0
    if not used.any() or not direction.any(): return np.nan
    cosines = others[used]@direction/(lengths[used]*np.linalg.norm(direction))
    return float((cosines**2).mean()*len(direction))


# %%
W = rng.normal(size=(2000, 16))
R = random_directions(W)
test_close(np.linalg.norm(W, axis=1), np.linalg.norm(R, axis=1))
test_close(relative_interference(W[0], R), 1, eps=.1)
test_close(relative_interference(np.eye(4)[0], np.eye(4)[1:]), 0)
test_close(relative_interference(np.eye(4)[0], np.array([[2., 0, 0, 0], [0, 0, 0, 0]])), 4)
