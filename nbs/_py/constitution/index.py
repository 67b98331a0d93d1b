# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Constitution
#
# > Constitutional AI: models critique, revise and compare answers under written principles.

# %%
#| default_exp constitution.__init__

# %% [markdown]
# Constitutional AI [@bai2022constitutional] replaces human labels of harmlessness with a short list
# of written principles. This package has one module for each stage of the paper. All functions
# accept any language model of [`language`](../language/index.ipynb).
#
# | Stage of the paper | Page | Functions |
# | --- | --- | --- |
# | Principles | [Principles](10_principles.ipynb) | `load_principles`, `load_comparisons`, `draw_principles` |
# | Prompts | [Prompts](12_prompts.ipynb) | `load_prompts`, `human_comparisons`, `split_by_prompt` |
# | Critique and revision | [Critique and revision](20_revision.ipynb) | `revise`, `chain_table` |
# | Supervised finetuning (SL-CAI) | [Finetuning](24_finetuning.ipynb) | `training_examples`, `finetune` |
# | Pairs of answers | [Answers](28_answers.ipynb) | `sample_answers`, `answer_pairs` |
# | AI feedback | [Feedback](30_feedback.ipynb) | `label`, `label_report` |
# | Preference model | [Preference models](40_preference.ipynb) | `fit_preference` |
# | Reinforcement learning (RL-CAI) | [PPO and RLOO](rl/10_ppo.ipynb), [tabular tests](rl/15_bandits.ipynb), [rollouts](rl/20_rollouts.ipynb), [trainer and its options](rl/30_trainer.ipynb), [policy training](rl/40_policy.ipynb), [tests against known optima](rl/50_policy_proofs.ipynb) | `train_policy`, `RLConfig` |
# | Elo ratings | [Elo ratings](evaluation/10_elo.ipynb), [human votes](evaluation/70_human_votes.ipynb) | `play_matches`, `tournament`, `write_vote_page` |
# | Helpfulness against harmlessness | [Pareto frontiers](evaluation/20_pareto.ipynb) | `pareto_frontier`, `order_test` |
# | Health of a preference model | [Health](evaluation/80_health.ipynb) | `health` |
# | Calibration of labels | [Calibration](evaluation/30_calibration.ipynb) | `calibration`, `reliability` |
# | HHH comparisons | [HHH evaluation](evaluation/40_hhh.ipynb) | `load_hhh`, `evaluate_hhh` |
# | Evasiveness and boilerplate | [Refusals and repetition](evaluation/50_refusals.ipynb) | `measure_answers`, `measure_chains` |
# | Absolute harmfulness | [Absolute harmfulness](evaluation/60_harmfulness.ipynb) | `fit_harmfulness`, `absolute_harmfulness` |
# | Figures | [Plots](70_plots.ipynb), [pipeline diagram](72_pipeline_diagram.ipynb) | `plot_frontier`, `plot_training`, `plot_pipeline` |
#
# The [toy environment](toy/10_environment.ipynb) has known true scores
# ([assumptions](toy/20_labellers.ipynb)). It comes with a [judge model](toy/30_judge_model.ipynb) and
# [experiments](toy/40_experiments.ipynb) with several kinds of policies, and
# [preference models](toy/70_preference_runs.ipynb) with known defects.
# [Known mistakes](90_traps.ipynb) lists forty-four errors and the page that tests for each.
# [A real run](../papers/constitution/real_run.ipynb) applies all stages to a pretrained model, and
# [`benchmarks.rlaif`](../benchmarks/30_rlaif.ipynb) measures speed. On the command line the stages are
# `moral_sc constitution revise|finetune|pairs|label|prefer|health|rl|tournament|vote`.
#
# These names can be imported from `moral_sc.constitution` directly:

# %%
#| export
import lazy_loader
from typing import TYPE_CHECKING

if TYPE_CHECKING: # For editors and type checkers; at run time names are imported on first use
    # Supervised stage
    from moral_sc.constitution.principles import (
        Comparison, Principle, load_comparisons, load_principles)
    from moral_sc.constitution.prompts import human_comparisons, load_prompts, split_by_prompt
    from moral_sc.constitution.revision import chain_table, revise
    from moral_sc.constitution.finetuning import finetune, training_examples
    # Feedback and preference models
    from moral_sc.constitution.answers import answer_pairs, sample_answers
    from moral_sc.constitution.feedback import label, label_report
    from moral_sc.constitution.preference import PreferenceModel, fit_preference
    # Reinforcement learning
    from moral_sc.constitution.rl.policy import train_policy
    # Evaluation
    from moral_sc.constitution.evaluation.elo import (model_judge, play_matches, score_judge,
                                                      tournament)
    from moral_sc.constitution.evaluation.harmfulness import absolute_harmfulness, fit_harmfulness
    from moral_sc.constitution.evaluation.health import health
    # Modules
    from moral_sc.constitution import preference
    from moral_sc.constitution.evaluation import refusals
    from moral_sc.constitution.rl import ppo

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    'principles': ['Comparison', 'Principle', 'load_comparisons', 'load_principles'],
    'prompts': ['human_comparisons', 'load_prompts', 'split_by_prompt'],
    'revision': ['chain_table', 'revise'],
    'finetuning': ['finetune', 'training_examples'],
    'answers': ['answer_pairs', 'sample_answers'],
    'feedback': ['label', 'label_report'],
    'preference': ['PreferenceModel', 'fit_preference'],
    'rl.policy': ['train_policy'],
    'evaluation.elo': ['model_judge', 'play_matches', 'score_judge', 'tournament'],
    'evaluation.harmfulness': ['absolute_harmfulness', 'fit_harmfulness'],
    'evaluation.health': ['health'],
    'evaluation': ['refusals'],
    'rl': ['ppo'],
}, submodules=['preference'])

# %% [markdown]
# Critique and revision in two lines, with a stub model that has three fixed replies:

# %%
#| hide
from moral_sc.language import stub_model

replies = {'Assistant': 'Because I say so.', 'Critique': 'That is no reason.',
           'Revision': 'Warm air holds more water.'}
def fn(text):
    open = [k for k in replies if text.endswith(f'\n{k}:')]
    return {f' {replies[open[0]]}' if open else '': 1.}

lm = stub_model(fn, 'three replies')

# %%
from moral_sc.constitution import load_principles, revise

row, = revise(lm, ['Why does it rain in autumn?'], load_principles(), few_shot=[])
row['response'], row['rounds'][0]

# %%
#| hide
assert row['rounds'][0]['revision']==replies['Revision']
