# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab
#
# > The front door: run the papers, read the ledger of claims, build the site.

# %%
#| default_exp lab.__init__

# %% [markdown]
# The other rooms answer questions; this one shows people in. It runs a page in a kernel of its
# own, [keeps what a page claims](10_claims.ipynb) beside the criterion that was fixed before,
# gathers [many pages into a report](20_reproduce.ipynb) that survives being interrupted, and
# turns the same notebooks into [the site](site/30_build.ipynb). All of it can be had from
# [the command line](cli/50_app.ipynb):
#
# ```
# moral_sc reproduce            # every paper, a few minutes, a report that opens offline
# moral_sc claims               # what the papers claim, and what we found
# moral_sc evaluate MODEL       # the same questions for a model of yours
# ```
#
# Nothing imports this room, and importing it costs next to nothing: each of its modules brings
# in what it needs when it is called.

# %%
import sys

import moral_sc.lab

# %%
sorted(m for m in sys.modules if m.startswith('moral_sc.'))

# %% [markdown]
# From Python the front door is one function. It returns where the report is and what came of
# each page.

# %%
from moral_sc.lab.reproduce import find_pages, reproduce

# %%
[p.stem for p in find_pages()]
