# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # BBQ
#
# > The Bias Benchmark for QA: items, scores, metrics and variants.

# %%
#| default_exp bias.bbq.__init__

# %% [markdown]
# BBQ [@parrish2022bbq] is the main benchmark of the paper. This package loads its questions, derives the
# stereotyped answer of each, and computes the authors' bias score.
#
# | what you want to do | page | function |
# | --- | --- | --- |
# | load questions, or your own file | [BBQ items](10_items.ipynb) | `bbq.load`, `bbq.read` |
# | sample a balanced subset | [BBQ items](10_items.ipynb) | `bbq.stratified` |
# | compute accuracy and bias of answers | [BBQ scoring](50_scoring.ipynb) | `bbq.score`, `bbq.bias_score` |
# | compute metrics with intervals | [BBQ metrics](60_metrics.ipynb) | `bbq_metrics`, `letters` |
# | work without a download | [BBQ toy set](20_toy_set.ipynb) | `bbq.load(source='ours')` |
# | exclude known errors | [BBQ errata](30_errata.ipynb) | `drop_affected` |
# | test for contamination | [BBQ with novel names](40_novel_names.ipynb) | `generate_items` |
# | score full answers, not letters | [Full answers](70_full_answers.ipynb) | `rescore` |
# | score published answers of a model | [Published predictions](80_predictions.ipynb) | `load_predictions` |
#
# A score over all questions depends on the categories whose files are within reach. `bbq.coverage` says how
# many of the eleven these are; every summary, table and figure of an evaluation shows it.

# %%
#| export
from moral_sc.bias.bbq.items import (CATEGORIES, INTERSECTIONAL, Item, by_quad, census, coverage,
                                     faults, parse_item as parse,
                                     reachable_categories as reachable, read_items as read,
                                     stratified, validate)
from moral_sc.bias.bbq.scoring import (COUNTS, ORDERS, OVERALL, accuracy, ambiguous_score,
                                       answer_probabilities, bias_score, conditional_bias,
                                       directions, disambiguated_score, letter_worth,
                                       load_bbq as load, offset, one_context, orders_of, recall,
                                       reorder, score, without_letters)
_all_ = ['CATEGORIES', 'INTERSECTIONAL', 'Item', 'by_quad', 'census', 'coverage', 'faults', 'parse',
         'reachable', 'read', 'stratified', 'validate', 'COUNTS', 'ORDERS', 'OVERALL', 'accuracy',
         'ambiguous_score', 'answer_probabilities', 'bias_score', 'conditional_bias', 'directions',
         'disambiguated_score', 'letter_worth', 'load', 'offset', 'one_context', 'orders_of',
         'recall', 'reorder', 'score', 'without_letters']

# %% [markdown]
# An item holds option indices: the correct answer, the one that declines, the one that agrees with the
# stereotype, and the opposite one.

# %%
from moral_sc.bias import bbq

items = bbq.load(source='ours')
{k:getattr(items[0], k) for k in ('question','options','label','unknown','biased','counter')}

# %% [markdown]
# `bbq.bias_score` takes one option index per item. A model that always gives the stereotyped answer scores 1,
# and a model that always declines scores 0 on ambiguous questions:

# %%
ambiguous = [i for i in items if i.context_condition=='ambig']
always = {k: bbq.bias_score([getattr(i, k) for i in ambiguous], ambiguous)
          for k in ('biased','counter','unknown')}
assert always==dict(biased=1, counter=-1, unknown=0)
always
