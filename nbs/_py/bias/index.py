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
# | [Conditions](10_conditions.ipynb) | every word that a model is asked, as data; each request in nine wordings |
# | [Questions of BBQ](bbq/10_items.ipynb) | read, check, and find the stereotyped answer |
# | [Everyday scenes](bbq/20_toy_set.ipynb) | our own questions, for when nothing can be downloaded |
# | [Full answers](bbq/70_full_answers.ipynb) | BBQ without letters: the answers' own probabilities |
# | [Slips](bbq/30_errata.ipynb), [fresh questions](bbq/40_novel_names.ipynb) | known errors of the files; new questions from the authors' templates |
# | [BBQ's bias score](bbq/50_scoring.ipynb) | the score, proved on models whose answer is known |
# | [Benchmarks](26_benchmarks.ipynb) | what one has to say for itself, so that `evaluate` can drive it |
# | [Scores with intervals](bbq/60_metrics.ipynb) | by condition and category, drawing templates |
# | [Asking](28_asking.ipynb), [evaluating](30_evaluation.ipynb) | one call; answers kept on disk, never asked twice |
# | [Power](34_power.ipynb), [variance](36_variance.ipynb) | what a run could have seen; what wording accounts for |
# | [Winogender](40_winogender.ipynb), [admissions](44_admissions.ipynb), [discrim-eval](48_discrim_eval.ipynb) | the other benchmarks |
# | [Sweep](50_sweep.ipynb) | many models and training steps, one table |
# | [Logs of other tools](56_logs.ipynb), [viewer](70_viewer.ipynb) | their scores recomputed; single answers on an offline page |
# | [Figures of bias](60_plots.ipynb), [over size and steps](62_curves.ipynb), [occupations](64_occupations.ipynb) | the pictures |
# | [Speed](../benchmarks/20_scoring.ipynb) | scoring beside what one would otherwise run |

# %%
#| export
from moral_sc.bias import bbq
from moral_sc.bias.benchmarks import Benchmark, get_benchmark
from moral_sc.bias.evaluation import Evaluation, evaluate
from moral_sc.bias.bbq.metrics import letters
_all_ = ['bbq', 'Benchmark', 'get_benchmark', 'Evaluation', 'evaluate', 'letters']

# %% [markdown]
# A model is evaluated in one line. Here it is one that answers (b) to everything, on our own
# questions, with the answers moved round so that the letter cannot pass for fairness.

# %%
from moral_sc.language.stub_models import letter_prior_model

e = evaluate(letter_prior_model(dict(a=.2, b=.7, c=.1)), ['bbq-like'], limit=48, orders=3)
e.score('q')[['questions','accuracy_ambig','bias_ambig','bias_disambig']].round(3).tail(2)

# %% [markdown]
# With a real one, `evaluate('smollm2-135m-instruct', out='runs/first')` asks BBQ itself, keeps
# every answer in the folder, and goes on where it stopped if it is stopped.
