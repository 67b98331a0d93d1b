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
# > Provide the command line, reports of the papers' pages and the site.

# %%
#| default_exp lab.__init__

# %% [markdown]
# The package `lab` is the user interface. It runs pages in kernels of their own, [judges the papers'
# claims](10_claims.ipynb) by criteria that were fixed before the runs, collects [pages in a
# report](20_reproduce.ipynb) that survives interruptions, and makes [the site](site/30_build.ipynb) from the same notebooks. All of
# this is available from [the command line](cli/50_app.ipynb):
#
# ```
# moral_sc reproduce            # run all papers and write a report that opens offline
# moral_sc claims               # list the papers' claims, our criteria and the verdicts
# moral_sc evaluate MODEL       # measure the bias of your model
# ```
#
# No other package imports `lab`, and importing it takes almost no time: each module imports what it needs when it is called.

# %%
import sys

import moral_sc.lab

# %%
sorted(m for m in sys.modules if m.startswith('moral_sc.'))

# %% [markdown]
# From Python, `reproduce` runs pages and returns the report. `find_pages` lists the pages.

# %%
from moral_sc.lab.reproduce import find_pages, reproduce

# %%
[p.stem for p in find_pages('superposition')][:4]
