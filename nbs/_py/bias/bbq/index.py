# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # BBQ
#
# > The Bias Benchmark for QA: items, scores and variants.

# %%
#| default_exp bias.bbq.__init__

# %%
#| export
from moral_sc.bias.bbq.items import (CATEGORIES, INTERSECTIONAL, Item, by_quad, census, faults,
                                     parse_item as parse, reachable_categories as reachable,
                                     read_items as read, stratified, validate)
from moral_sc.bias.bbq.scoring import (COUNTS, ORDERS, OVERALL, accuracy, ambiguous_score,
                                       answer_probabilities, bias_score, conditional_bias,
                                       directions, disambiguated_score, letter_worth,
                                       load_bbq as load, offset, one_context, orders_of, recall,
                                       reorder, score, undo_option_order, without_letters)
_all_ = ['CATEGORIES', 'INTERSECTIONAL', 'Item', 'by_quad', 'census', 'faults', 'parse', 'reachable',
         'read', 'stratified', 'validate', 'COUNTS', 'ORDERS', 'OVERALL', 'accuracy',
         'ambiguous_score', 'answer_probabilities', 'bias_score', 'conditional_bias', 'directions',
         'disambiguated_score', 'letter_worth', 'load', 'offset', 'one_context', 'orders_of',
         'recall', 'reorder', 'score', 'undo_option_order', 'without_letters']

# %% [markdown]
# `bbq.load` reads the questions of some categories and `bbq.bias_score` scores answers to them:

# %%
from moral_sc.bias import bbq

items = bbq.load(limit=8)
bbq.bias_score([i.unknown for i in items if i.context_condition=='ambig'],
               [i for i in items if i.context_condition=='ambig'])
