# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Known mistakes
#
# > Forty-four ways to get RL from feedback wrong, each with the page that tests for it.

# %% [markdown]
# Nearly every line below was once a bug in a program that people trained models with: the
# run finished, the curves looked normal, and the model was worse than it should have been. A
# test that merely runs the program does not detect such a bug. Each mistake therefore has a reference: a
# closed form, an enumeration, a slow definition, or a stub model with known answers. The named page
# asserts agreement with the reference, and fails if the mistake is made.
#
# ## Tokens
#
# | mistake | reference | page |
# | --- | --- | --- |
# | a token is scored by the logits at its own position | a table of known probabilities; float64 by the row | [reward head](../language/48_reward_head.ipynb) |
# | temperature when sampling, none when training | ratio 1 at the first step at T = .7, 1, 1.3 | [trainer](rl/30_trainer.ipynb) |
# | top-p cuts what training does not | the ratio becomes the kept mass; refused | [rollouts](rl/20_rollouts.ipynb) |
# | left padding shifts positions | each row alone and padded either way | [reward head](../language/48_reward_head.ipynb) |
# | an end token inside a dialogue is masked as padding | a row with one inside | [reward head](../language/48_reward_head.ipynb) |
# | the end token is masked out of training | a model that learned one sentence stops | [finetuning](24_finetuning.ipynb) |
# | two BOS tokens, or another template in each stage | one renderer, golden ids | [prompts](12_prompts.ipynb), [finetuning](24_finetuning.ipynb) |
# | prompts are trained on too | decoded targets; gradient of the answer alone | [finetuning](24_finetuning.ipynb) |
# | the mean of means over micro-batches | gradient the same however the step is cut; the other mean differs | [training](../language/46_training.ipynb) |
# | options that merge with preceding tokens | full strings, one by one | [scoring](../language/30_scoring.ipynb), [feedback](30_feedback.ipynb) |
# | a KV cache is reused for another prefix | trees, cascades and rows against text by text | [prefix tree](../language/engine/20_prefix_tree.ipynb) |
#
# ## Critique, revision, labels
#
# | mistake | reference | page |
# | --- | --- | --- |
# | worked comparisons reveal a letter or a principle | draws uniform by chi-squared, letters balanced | [feedback](30_feedback.ipynb) |
# | principles drawn without replacement, or once a chain | share of repeats .333 | [feedback](30_feedback.ipynb), [principles](10_principles.ipynb) |
# | headings stay in a revision | the authors' own chains, parsed | [revision](20_revision.ipynb) |
# | critiques are trained on instead of answers | decoded targets | [finetuning](24_finetuning.ipynb) |
# | the first position is preferred | both orders; p(A,B) + p(B,A) = 1 | [feedback](30_feedback.ipynb) |
# | labels are clamped after the average, or before | both computed, and they differ | [feedback](30_feedback.ipynb) |
# | calibration from too few bins or one order | a calibrated source: error goes to 0 as n grows | [calibration](evaluation/30_calibration.ipynb) |
# | a row depends on its neighbours or on a restart | any order, any batch, killed with -9 | [revision](20_revision.ipynb), [feedback](30_feedback.ipynb), [generation](../language/40_generation.ipynb) |
#
# ## Preference models
#
# | mistake | reference | page |
# | --- | --- | --- |
# | the score is read at padding or at the first end token | a model whose score is the token read | [reward head](../language/48_reward_head.ipynb) |
# | the head shares weights, or begins too large | storage; standard deviation $1/\sqrt{d+1}$; saved and read | [reward head](../language/48_reward_head.ipynb) |
# | a score has no zero | centred; a shift changes no margin | [preference](40_preference.ipynb) |
# | soft labels are rounded, or the loss has another optimum | optimum at logit p, rest is the entropy | [preference](40_preference.ipynb) |
# | human and model labels mixed without weights | logit of the weighted mean | [preference](40_preference.ipynb) |
# | prompts leak from training to test | refused | [prompts](12_prompts.ipynb), [preference](40_preference.ipynb) |
#
# ## Reinforcement
#
# | mistake | reference | page |
# | --- | --- | --- |
# | dropout is active while rewards and ratios are computed | a model made with dropout: ratio 1 | [trainer](rl/30_trainer.ipynb) |
# | the wrong estimator of KL in the wrong place | gradients by enumeration | [PPO](rl/10_ppo.ipynb), [bandits](rl/15_bandits.ipynb) |
# | KL of padding is counted | reward less score = KL coefficient times KL | [trainer](rl/30_trainer.ipynb) |
# | the score is placed after the end token | known advantages, and those of the mistake | [PPO](rl/10_ppo.ipynb) |
# | advantages depend on tokens after the end | a million in the padding changes nothing | [PPO](rl/10_ppo.ipynb) |
# | generalised advantages | the sum of their definition, float64 | [PPO](rl/10_ppo.ipynb) |
# | whitening by process, or of the mean of rewards | two processes against one; numpy | [PPO](rl/10_ppo.ipynb) |
# | the clip has the wrong sign | a table of ten slopes | [PPO](rl/10_ppo.ipynb) |
# | the clip of the critic | slopes on either side | [PPO](rl/10_ppo.ipynb) |
# | ratios in half precision | 49,152 words: beyond .001 in bfloat16, below in float32 | [rollouts](rl/20_rollouts.ipynb) |
# | old probabilities are recomputed in a second forward pass | they stay; nothing is clipped at first | [trainer](rl/30_trainer.ipynb) |
# | training ends elsewhere | $\pi^*$ on tables and for a transformer | [bandits](rl/15_bandits.ipynb), [proofs](rl/50_policy_proofs.ipynb) |
# | the gradient is biased | 27 answers enumerated, 250,000 sampled | [bandits](rl/15_bandits.ipynb) |
# | the KL coefficient adapts too fast | the step in closed form | [PPO](rl/10_ppo.ipynb) |
# | Adam's epsilon and bias correction | three steps by hand | [optimization](../language/44_optimization.ipynb) |
# | a resumed run is another run | killed with -9, equal to the bit | [training](../language/46_training.ipynb), [policy](rl/40_policy.ipynb) |
#
# ## Evaluation
#
# | mistake | reference | page |
# | --- | --- | --- |
# | ratings that do not exist, or depend on the order of votes | closed form, grid search, statsmodels; separable votes raise an error | [Elo ratings](evaluation/10_elo.ipynb) |
# | votes on one prompt count as independent | simulated: .95 by cluster, less than .9 without | [Elo ratings](evaluation/10_elo.ipynb) |
# | the judge is the reward model | another judge, and the true score | [over-optimisation](../papers/constitution/over_optimisation.ipynb) |
