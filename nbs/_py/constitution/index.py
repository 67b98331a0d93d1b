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
# > Constitutional AI: a model critiques and revises its own answers under written principles.

# %%
#| default_exp constitution.__init__

# %% [markdown]
# Constitutional AI [@bai2022constitutional] replaces human votes on harmlessness by a short list
# of written principles. This room follows it stage by stage:
#
# - [Principles](10_principles.ipynb): sixteen for revising and sixteen for choosing, ours and the
#   authors', and how one is drawn. [Prompts](12_prompts.ipynb), checked and written in one form.
# - The supervised stage: [critique and revision](20_revision.ipynb), and
#   [finetuning](24_finetuning.ipynb) on what was revised.
# - Feedback: [answers](28_answers.ipynb) in pairs, [labels](30_feedback.ipynb) by a model that is
#   shown a principle, their [calibration](evaluation/30_calibration.ipynb), and
#   [what people found better](evaluation/40_hhh.ipynb).
# - [Preference models](40_preference.ipynb), on labels that may be probabilities.
# - Reinforcement: [the mathematics](rl/10_ppo.ipynb), [where it leads](rl/15_bandits.ipynb), [rollouts](rl/20_rollouts.ipynb),
#   [one step](rl/30_trainer.ipynb), [many steps](rl/40_policy.ipynb), and
#   [their proofs](rl/50_policy_proofs.ipynb).
# - Evaluation: [tournaments](evaluation/10_elo.ipynb), [frontiers](evaluation/20_pareto.ipynb), and
#   [votes by people](evaluation/70_human_votes.ipynb). [Behaviour](evaluation/50_refusals.ipynb): evasion, boilerplate,
#   copying and repetition, measured without a judge.
#   [Absolute harmfulness](evaluation/60_harmfulness.ipynb), rated from 0 to 4.
# - [A world](toy/10_environment.ipynb) in which all truths are known, [its people](toy/20_labellers.ipynb), and
#   [a judge](toy/30_judge_model.ipynb) that has read their votes.
# - Figures of [chains](70_plots.ipynb), [ratings](72_elo.ipynb),
#   [reliability](74_reliability.ipynb), [training](76_curves.ipynb),
#   [the pipeline](77_diagram.ipynb), [harmfulness](78_harm_plots.ipynb) and
#   [revisions](79_revision_plots.ipynb).
# - [Measuring speed](../benchmarks/30_rlaif.ipynb).
#
# [What goes wrong](90_traps.ipynb) lists forty-four mistakes and the page that tests for each. What
# a real model makes of it is on
# [a page of its own](../papers/constitution/real_run.ipynb).

# %%
#| export
from moral_sc.constitution.principles import (
    Comparison, Principle, Shot, author_comparisons, author_few_shot, author_principles,
    draw_principles, load_comparisons, load_few_shot, load_principles)
from moral_sc.constitution.prompts import human_comparisons, load_prompts
from moral_sc.constitution.revision import author_revisions, chain_table, revise
from moral_sc.constitution.finetuning import training_examples, finetune
from moral_sc.constitution.answers import answer_pairs, sample_answers
from moral_sc.constitution.feedback import label
from moral_sc.constitution.preference import PreferenceModel, fit_preference
from moral_sc.constitution.rl.policy import train_policy
from moral_sc.constitution.evaluation.elo import play_matches, tournament
from moral_sc.constitution.evaluation.harmfulness import absolute_harmfulness, fit_harmfulness
from moral_sc.constitution import preference
from moral_sc.constitution.evaluation import refusals as behaviour
from moral_sc.constitution.rl import ppo

_all_ = ['Comparison', 'Principle', 'Shot', 'author_comparisons', 'author_few_shot',
         'author_principles', 'draw_principles', 'load_comparisons', 'load_few_shot',
         'load_principles', 'human_comparisons', 'load_prompts', 'author_revisions',
         'chain_table', 'revise', 'training_examples', 'finetune', 'answer_pairs', 'sample_answers', 'label',
         'PreferenceModel', 'fit_preference', 'train_policy', 'play_matches', 'tournament',
         'absolute_harmfulness', 'fit_harmfulness', 'behaviour',
         'ppo', 'preference']

# %% [markdown]
# In four lines, on a stand-in that always gives the same three replies:

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
