# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Steering
#
# > Features are measured, and answers are steered along one of them, each beside its controls.

# %%
#| default_exp bias.toy.steering

# %%
#| export
import numpy as np
import pandas as pd

from moral_sc.bias.bbq.scoring import bias_score
from moral_sc.bias.toy.environment import ToyLanguage
from moral_sc.bias.toy.features import (
    condition_prompts, feature_directions, name_answers, name_prompt, question_features,
    random_directions, reading_areas, residual_stream)

# %%
#| hide
from fastcore.test import *
from moral_sc.bias.toy.environment import toy_items
from moral_sc.bias.toy.features import ANSWER_TOKEN, instructed_questions
from moral_sc.bias.toy.ladder import Ladder, new_model


# %% [markdown]
# A number about a [feature direction](35_features.ipynb) means something beside the number that
# would be found without the feature. `measure_features` has two such controls: random directions of
# the same lengths, and features that are shuffled over the questions.

# %%
#| export
def measure_features(
    lm,
    language:ToyLanguage,
    questions:tuple,  # Those to fit and those to test, of `instructed_questions`
    measure,          # [feature, width] directions -> [feature], such as a dimensionality
    n_random:int=10,  # Draws of random directions
    seed:int=0,       # Of the shuffling
    **place,          # layer, token: see `residual_stream`
)->tuple:             # Directions [(kind, name), width]; table of D, area and their controls
    "Measure feature directions, and how well a linear reader finds each feature"
    present = [question_features(language, q) for q in questions]
    shuffled = [p.sample(frac=1, random_state=seed) for p in present]
    stream = [residual_stream(lm, map(name_prompt, q), **place) for q in questions]
    areas = [reading_areas(stream[0], fit, stream[1], test) for fit,test in (present, shuffled)]
    W,noise = (pd.DataFrame(feature_directions(stream[0], fit), fit.columns)
               for fit,_ in (present, shuffled))
    drawn = [measure(random_directions(W.to_numpy(), k)) for k in range(n_random)]
    table = pd.DataFrame(dict(D=measure(W.to_numpy()), area=areas[0],
                              D_random=np.mean(drawn, axis=0),
                              D_shuffled=measure(noise.to_numpy()), area_shuffled=areas[1]))
    return W,table.reset_index()


# %%
language = ToyLanguage(categories=2, traits=2)
lm = new_model(Ladder(language), 8, 0)
questions = [instructed_questions(language, n, k) for k,n in enumerate((200, 100))]
def squared_length(W): return (W**2).sum(1)

W,table = measure_features(lm, language, questions, squared_length, 2, token=ANSWER_TOKEN)
test_close(table.D, squared_length(W.to_numpy()))
test_close(table.D_random, table.D) # Random directions have the same lengths
assert table.area.mean()>table.area_shuffled.mean()+.05
table.groupby('kind', sort=False)[['D', 'D_shuffled', 'area', 'area_shuffled']].mean().round(2)


# %% [markdown]
# ## Steering
#
# Under the instruction to be fair, a direction is subtracted from the state of one token. Random
# directions of the same length are the control; the upper bound replaces the whole state by that
# under the opposite instruction.

# %%
#| export
def measure_steering(
    lm,
    items:list,           # Ambiguous ones of `toy_items`
    direction:np.ndarray, # [width], subtracted
    n_random:int=10,      # Random directions
    seed:int=0,
    **place,              # layer, token: see `residual_stream`
)->dict:                  # steered, replaced, sham: bias scores
    "Return the bias under the instruction with the state of a token edited"
    def bias(edit): return bias_score(name_answers(lm, items, 'q+if', edit, **place), items)
    opposite = residual_stream(lm, condition_prompts(items, 'q+anti'), **place)
    drawn = random_directions(np.tile(direction, (n_random, 1)), seed)
    return dict(steered=bias(lambda h: h-direction), replaced=bias(lambda h: opposite),
                sham=np.mean([bias(lambda h, v=v: h-v) for v in drawn]))


# %% [markdown]
# At the answer, after the last layer, the whole state is all that an answer depends on, so
# replacing it gives the answers under the opposite instruction. A direction of length zero changes
# nothing:

# %%
items = [i for i in toy_items(language, 1) if i.context_condition=='ambig']
last = dict(layer=1, token=ANSWER_TOKEN)
found = measure_steering(lm, items, np.full(8, 1e-12), 2, **last)
for k,condition in dict(replaced='q+anti', steered='q+if', sham='q+if').items():
    test_close(found[k], bias_score(name_answers(lm, items, condition), items), eps=1e-5)
strong = measure_steering(lm, items, 3*W.loc['meaning', 'fair'].to_numpy(), 2, **last)
test_ne(strong['steered'], found['steered'])
strong
