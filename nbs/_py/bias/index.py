# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Bias
#
# > The Capacity for Moral Self-Correction: bias benchmarks under plain question, instruction and reasoning.

# %%
#| default_exp bias.__init__

# %% [markdown]
# Can a model be less biased because it is asked to be? @ganguli2023 put the same questions to
# models of eight sizes in up to four wordings and found that the largest could. This room asks
# those questions of any model.
#
# | page | what it is for |
# | --- | --- |
# | [Conditions](10_conditions.ipynb) | every word that a model is asked, as data |
# | [Questions of BBQ](20_items.ipynb) | read, check, and find the stereotyped answer |
# | [Everyday scenes](22_everyday.ipynb) | our own questions, for when nothing can be downloaded |
# | [BBQ's bias score](25_bbq.ipynb) | the score, proved on models whose answer is known |
# | [Asking](28_asking.ipynb) | which questions a budget buys, and answers kept on disk |
# | [Evaluating a model](30_evaluation.ipynb) | one call, with clustered intervals |
# | [Figures of bias](60_plots.ipynb) | scores, differences, letters |

# %%
#| export
from moral_sc.bias import bbq
from moral_sc.bias.benchmarks import Benchmark, benchmark
from moral_sc.bias.evaluation import Evaluation, evaluate
from moral_sc.bias.scores import letters
_all_ = ['bbq', 'Benchmark', 'benchmark', 'Evaluation', 'evaluate', 'letters']

# %% [markdown]
# A model is evaluated in one line. Here it is one that answers (b) to everything, on our own
# questions, with the answers moved round so that the letter cannot pass for fairness.

# %%
from moral_sc.language.oracle import letter_prior

e = evaluate(letter_prior(dict(a=.2, b=.7, c=.1)), ['bbq-like'], limit=48, orders=3)
e.score('q')[['questions','accuracy_ambig','bias_ambig','bias_disambig']].round(3).tail(2)

# %% [markdown]
# With a real one, `evaluate('smollm2-135m-instruct', out='runs/first')` asks BBQ itself, keeps
# every answer in the folder, and goes on where it stopped if it is stopped.
