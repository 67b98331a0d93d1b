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
# > Moral self-correction: bias benchmarks with plain question, instruction and reasoning.

# %%
#| default_exp bias.__init__

# %% [markdown]
# Is a model less biased when it is asked to be? @ganguli2023 put the same questions to models of eight sizes
# under up to four conditions, and found that the instruction reduces the bias of the largest models. This
# package puts the same questions to any model.
#
# | what you want to do | page | function |
# | --- | --- | --- |
# | evaluate one model | [Evaluation](30_evaluation.ipynb) | `evaluate` |
# | evaluate many models or checkpoints | [Sweep](50_sweep.ipynb) | `sweep` |
# | save, load and compare results | [Comparison](32_comparison.ipynb) | `Evaluation.save`, `Evaluation.load`, `compare` |
# | ask your own questions | [BBQ items](bbq/10_items.ipynb) | `evaluate(lm, items='mine.jsonl')` |
# | read or change the prompts | [Conditions](10_conditions.ipynb) | `conditions_table`, `add_wordings` |
# | work with BBQ | [BBQ](bbq/index.ipynb) | `bbq.load`, `bbq.score` |
# | measure pronouns by occupation | [Winogender](40_winogender.ipynb) | `load_winogender` |
# | measure a gap in admissions | [Admissions](44_admissions.ipynb) | `load_applicants` |
# | measure discrimination in decisions | [Discrim-eval](48_discrim_eval.ipynb) | `load_decisions` |
# | add a benchmark | [Benchmarks](26_benchmarks.ipynb) | `Benchmark`, `REGISTRY` |
# | plan a run | [Statistical power](34_power.ipynb) | `detectable_effect` |
# | measure the effect of wording | [Wording variance](36_variance.ipynb) | `wording_share` |
# | separate abstention from correction | [Abstention and correction](38_abstention.ipynb) | `decompose_change` |
# | plot results | [Bias plots](60_plots.ipynb) | `plot_scores`, `plot_size` |
# | read single answers | [Answer viewer](70_viewer.ipynb) | `view` |
# | check another tool's score | [Logs of other tools](56_logs.ipynb) | `compare_scores` |
# | test a scorer on answers with known scores | [Answer files](57_answer_files.ipynb), [Conformance](58_conformance.ipynb) | `load_cases`, `check_scorer` |
# | build prompts and save answers | [Scoring questions](28_asking.ipynb) | `build_questions` |
# | train small models on an invented language | [Toy language](toy/10_environment.ipynb), [Ladder](toy/30_ladder.ipynb), [Released ladder](toy/32_released.ipynb) | `train_ladder`, `evaluate_ladder`, `released_ladder` |
# | read what these models represent, and change it | [Features](toy/35_features.ipynb), [Steering](toy/36_steering.ipynb) | `residual_stream`, `feature_directions`, `measure_steering` |
# | ask them again in a second round | [Rounds](toy/37_rounds.ipynb) | `ask_rounds`, `score_rounds` |
# | let a simulated rater compare their answers | [Comparisons](toy/38_comparisons.ipynb) | `Rater`, `rater_choices`, `evaluate_snapshots` |
# | understand an error | [Error messages](90_bad_input.ipynb) | |
# | compare speed | [Scoring benchmark](../benchmarks/20_scoring.ipynb) | `bench_scoring` |

# %%
#| export
import lazy_loader
from typing import TYPE_CHECKING

if TYPE_CHECKING: # For editors and type checkers; at run time names are imported on first use
    from moral_sc.bias import bbq
    from moral_sc.bias.benchmarks import Benchmark, get_benchmark
    from moral_sc.bias.comparison import compare
    from moral_sc.bias.evaluation import Evaluation, evaluate
    from moral_sc.bias.bbq.metrics import letters

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    'benchmarks': ['Benchmark', 'get_benchmark'],
    'comparison': ['compare'],
    'evaluation': ['Evaluation', 'evaluate'],
    'bbq.metrics': ['letters'],
}, submodules=['bbq'])

# %% [markdown]
# One call evaluates a model. This one is a stub model that prefers the letter (b), on our own questions in
# three option orders, so that the letter preference does not look like fairness.

# %%
from moral_sc.bias import evaluate
from moral_sc.language import letter_prior_model

e = evaluate(letter_prior_model(dict(a=.2, b=.7, c=.1)), ['bbq-like'], limit=48, orders=3)
e.score('q')[['questions','accuracy_ambig','bias_ambig','bias_disambig']].round(3).tail(2)

# %% [markdown]
# For a real model, `evaluate('smollm2-135m-instruct', out='runs/first')` asks BBQ, saves every answer in the
# folder, and resumes there after an interruption.
