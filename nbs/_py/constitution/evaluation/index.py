# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Evaluation
#
# > The package compares models by votes, Elo ratings, calibration, refusals and harmfulness.

# %%
#| default_exp constitution.evaluation.__init__

# %%
#| export
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=[
    'calibration', 'elo', 'harmfulness', 'health', 'hhh', 'human_votes', 'pareto', 'refusals'])

# %% [markdown]
# | You want to | Page | Function |
# | --- | --- | --- |
# | compare models in pairs and rate them | [Elo ratings](10_elo.ipynb) | `tournament`, `Elo` |
# | compare whole training runs | [Pareto frontiers](20_pareto.ipynb) | `pareto_frontier` |
# | test whether label probabilities are calibrated | [Calibration](30_calibration.ipynb) | `calibration` |
# | choose a labeller | [HHH evaluation](40_hhh.ipynb) | `evaluate_hhh` |
# | count refusals, evasion and repetition | [Refusals and repetition](50_refusals.ipynb) | `measure_answers` |
# | rate the harm of whole conversations | [Absolute harmfulness](60_harmfulness.ipynb) | `absolute_harmfulness` |
# | decide whether to optimise a preference model | [Health of a preference model](80_health.ipynb) | `health` |
# | collect votes of people | [Human votes](70_human_votes.ipynb) | `write_vote_page` |

# %%
from moral_sc.constitution.evaluation import elo

[n for n in elo.__all__ if n[0].isupper()]
