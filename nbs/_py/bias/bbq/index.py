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
from moral_sc.bias.bbq.scoring import *

# %% [markdown]
# `bbq.load` reads the questions of some categories and `bbq.bias_score` scores answers to them:

# %%
from moral_sc.bias import bbq

items = bbq.load(limit=8)
bbq.bias_score([i.unknown for i in items if i.context_condition=='ambig'],
               [i for i in items if i.context_condition=='ambig'])
