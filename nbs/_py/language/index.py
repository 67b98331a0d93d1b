# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Language
#
# > What the two language papers share: models, turns, log-probabilities, samples.

# %%
#| default_exp language.__init__

# %% [markdown]
# Nothing above this room touches transformers, and nothing here knows of bias or constitutions.
# A model has a [name](05_weights.ipynb) and is [loaded](10_models.ipynb); a conversation becomes
# [token ids](20_chat.ipynb); options are [scored](30_scoring.ipynb), what prompts share being
# [read once](engine/20_prefix_tree.ipynb), or answers [sampled](40_generation.ipynb), one
# [after another](42_multi_turn.ipynb) where a prompt follows from an answer. A model gets
# [heads](48_reward_head.ipynb) and is [trained](46_training.ipynb), whole, by
# [small matrices beside it](47_lora.ipynb), or [in parts](49_fsdp.ipynb) by several devices;
# it may also be [behind an API](60_api_models.ipynb); and all of it is proved on
# [oracles](50_stub_models.ipynb), models whose answers are known. On a CPU matrices are
# [multiplied](engine/30_onednn.ipynb) by the faster of two libraries, weights are
# [packed](engine/40_weight_packing.ipynb) while a model is asked, and memory is [kept](engine/50_allocator.ipynb) while it
# learns. A policy computes [the same bits](engine/60_batch_invariant.ipynb) when it answers and when it learns.

# %%
#| export
from moral_sc.language.weights import aliases, cached_weights, find_weights, can_load
from moral_sc.language.loading import load, load_or_stub
from moral_sc.language.models import LM, decode, encode, eos_ids, pad
from moral_sc.language.chat import Prompt, modes, encode_prompt, render
from moral_sc.language.scoring import (next_token_logprobs, option_logprobs, option_mass,
                                       token_logprobs)
from moral_sc.language.generation import Sample, append_turn, sample
from moral_sc.language.multi_turn import generate_multi_turn
from moral_sc.language.reward_head import save_model, small_llama
from moral_sc.language.training import fit
from moral_sc.language.stub_models import letter_prior_model, stub_model, random_model
_all_ = ['aliases', 'cached_weights', 'find_weights', 'can_load', 'LM', 'decode', 'encode', 'eos_ids',
         'load', 'load_or_stub', 'pad', 'Prompt', 'modes', 'encode_prompt', 'render',
         'next_token_logprobs', 'option_logprobs', 'option_mass', 'token_logprobs', 'Sample', 'generate_multi_turn',
         'append_turn', 'sample', 'save_model', 'small_llama', 'fit', 'letter_prior_model', 'stub_model', 'random_model']

# %% [markdown]
# From a name to a number in three lines, here on a model that was made to prefer (b):

# %%
lm = letter_prior_model(dict(a=.2, b=.5, c=.3))
asked = render(lm, [('human', 'Who was late?\n(a) Kim\n(b) Ann\n(c) Unknown')], 'The answer is (')
option_logprobs(lm, [asked], ['a', 'b', 'c']).round(3)
