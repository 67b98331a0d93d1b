# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Language models
#
# > The package loads, scores, samples and trains language models.

# %%
#| default_exp language.__init__

# %% [markdown]
# This package is the only one that imports transformers; it contains nothing specific to bias or
# constitutions. The example loads a model, renders a prompt and computes the log-probabilities of
# three options; here a stub model that prefers (b) replaces a real one:

# %%
#| export
import lazy_loader
from typing import TYPE_CHECKING

if TYPE_CHECKING: # For editors and type checkers; at run time names are imported on first use
    from moral_sc.language.weights import aliases, cached_weights, can_load, find_weights
    from moral_sc.language.models import LM, decode, encode, eos_ids, pad
    from moral_sc.language.loading import load, load_or_stub
    from moral_sc.language.api_models import connect
    from moral_sc.language.chat import Prompt, encode_prompt, modes, render
    from moral_sc.language.scoring import (next_token_logprobs, option_logprobs, option_mass,
                                           token_logprobs)
    from moral_sc.language.generation import Sample, append_turn, sample
    from moral_sc.language.multi_turn import generate_multi_turn
    from moral_sc.language.training import fit
    from moral_sc.language.lora import add_lora, merge_lora
    from moral_sc.language.reward_head import (build_reward_model, load_reward_model, reward_scores,
                                               save_model, save_reward_model, small_llama)
    from moral_sc.language.stub_models import letter_prior_model, random_model, stub_model

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    'weights': ['aliases', 'cached_weights', 'can_load', 'find_weights'],
    'models': ['LM', 'decode', 'encode', 'eos_ids', 'pad'],
    'loading': ['load', 'load_or_stub'],
    'api_models': ['connect'],
    'chat': ['Prompt', 'encode_prompt', 'modes', 'render'],
    'scoring': ['next_token_logprobs', 'option_logprobs', 'option_mass', 'token_logprobs'],
    'generation': ['Sample', 'append_turn', 'sample'],
    'multi_turn': ['generate_multi_turn'],
    'training': ['fit'],
    'lora': ['add_lora', 'merge_lora'],
    'reward_head': ['build_reward_model', 'load_reward_model', 'reward_scores', 'save_model',
                    'save_reward_model', 'small_llama'],
    'stub_models': ['letter_prior_model', 'random_model', 'stub_model'],
})

# %%
from moral_sc.language import letter_prior_model, load, option_logprobs, render

lm = letter_prior_model(dict(a=.2, b=.5, c=.3)) # Or load('smollm2-135m-instruct')
prompt = render(lm, [('human', 'Who was late?\n(a) Kim\n(b) Ann\n(c) Unknown')], 'The answer is (')
option_logprobs(lm, [prompt], ['a', 'b', 'c']).round(3)

# %% [markdown]
# ## Where to find what
#
# | You want to | Page | Function |
# | --- | --- | --- |
# | load a model by name, folder, GGUF file or hub repository | [Loading](12_loading.ipynb) | `load` |
# | use a stub model if a model cannot be loaded | [Loading](12_loading.ipynb) | `load_or_stub` |
# | use a model behind an API | [API models](60_api_models.ipynb) | `connect` |
# | list the models with short names, or find their weights | [Weights](05_weights.ipynb) | `aliases`, `find_weights` |
# | convert text to token ids and back | [Models](10_models.ipynb) | `encode`, `decode`, `pad` |
# | turn a conversation into a prompt | [Chat](20_chat.ipynb) | `render` |
# | compute log-probabilities of options or tokens | [Scoring](30_scoring.ipynb) | `option_logprobs`, `token_logprobs` |
# | sample answers | [Sampling](40_generation.ipynb) | `sample` |
# | sample prompts that depend on earlier answers | [Multi-turn generation](42_multi_turn.ipynb) | `generate_multi_turn` |
# | sample with vLLM | [Sampling with vLLM](62_vllm.ipynb) | `use_vllm` |
# | train a model | [Training](46_training.ipynb) | `fit` |
# | set learning rates, warm-up and clipping | [Optimization](44_optimization.ipynb) | |
# | train only low-rank adapters | [LoRA](47_lora.ipynb) | `add_lora`, `merge_lora` |
# | shard a model over several GPUs | [FSDP](49_fsdp.ipynb) | `FSDPModules` |
# | train a reward model | [Reward head](48_reward_head.ipynb) | `build_reward_model`, `reward_scores` |
# | test a measure on a model with known answers | [Stub models](50_stub_models.ipynb) | `stub_model`, `letter_prior_model`, `random_model` |
#
# The functions above use the engine, which makes inference and training fast. To check a result
# without its layers and packed weights, set [`MORAL_SC_ENGINE=off`](engine/70_contexts.ipynb) in the
# environment. Batching and shared prefixes stay on; `token_logprobs(..., engine='padded')` runs every
# row from its first token.
#
# | Page | Purpose |
# | --- | --- |
# | [Out of memory](engine/05_oom.ipynb) | smaller batches after an out-of-memory error |
# | [Batching](engine/10_batching.ipynb) | batches that fit into memory |
# | [Prefix trees](engine/20_prefix_tree.ipynb) | one forward pass for a prefix shared by several prompts |
# | [oneDNN](engine/30_onednn.ipynb) | the faster of two matrix-multiplication libraries on a CPU |
# | [Weight packing](engine/40_weight_packing.ipynb) | prepacked weights for inference on a CPU |
# | [Allocator](engine/50_allocator.ipynb) | reuse of freed memory during training |
# | [Batch invariance](engine/60_batch_invariant.ipynb) | bitwise equal results in sampling and in training |
