# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Reinforcement learning
#
# > The package trains a policy against a reward by PPO or RLOO and proves both on known optima.

# %%
#| default_exp constitution.rl.__init__

# %%
#| export
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submodules=['policy', 'ppo', 'rollouts', 'trainer'])

# %% [markdown]
# | You want to | Page | Function |
# | --- | --- | --- |
# | train a model against a reward, with checkpoints | [Policy training](40_policy.ipynb) | `train_policy` |
# | change one step of the algorithm | [RL trainer](30_trainer.ipynb) | `RLTrainer`, `RLConfig` |
# | sample answers with log-probabilities and values | [Rollouts](20_rollouts.ipynb) | `generate_rollouts` |
# | use an advantage, a loss or a KL estimator by itself | [PPO and RLOO](10_ppo.ipynb) | `gae`, `rloo` |
# | see that the estimators are unbiased | [Tabular PPO and RLOO](15_bandits.ipynb) | |
# | see that transformers reach the known optimum | [Proofs of policy training](50_policy_proofs.ipynb) | |
#
# Advantages of four tokens, of which the last brings a reward of one:

# %%
import torch
from moral_sc.constitution.rl import ppo

rewards = torch.tensor([[0., 0., 0., 1.]])
ppo.gae(rewards, torch.zeros(1, 4), torch.ones(1, 4, dtype=torch.bool), gamma=1., lam=.5)
