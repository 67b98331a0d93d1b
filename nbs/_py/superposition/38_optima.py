# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Table of optima
#
# > The lowest exact losses that many starts found, for two to eight features in two dimensions.

# %%
#| default_exp superposition.optima

# %%
#| export
import json, torch
from moral_sc.foundation.arguments import checked
from moral_sc.foundation.datasets import data_dir
from moral_sc.foundation.errors import ConfigError, short_repr

# %%
#| hide
import math
from fastcore.test import *
from moral_sc.superposition.exact_loss import exact_loss, fit_exact
from moral_sc.superposition.features import moments
from moral_sc.superposition.geometry import planar_shape
from moral_sc.superposition.model import ToyConfig
from moral_sc.superposition.training import train
torch.set_num_threads(1)


# %% [markdown]
# Training often ends in a worse shape than the best one. To see when, one needs the optimum. The
# [figure that runs in the browser](../lab/site/15_interactive.ipynb) compares its models with a
# table of optima, which this page makes and checks.
#
# A start is a short training at a learning rate that falls to zero, from small or from large initial
# weights. The best of the trained models, and the next best with another loss, are then fitted to the
# [exact loss](30_exact_loss.ipynb).

# %%
def trained_starts(n, grid, restarts, steps, seed):
    "Return trained W [point, model, feature, 2] and exact losses [point, model]"
    p,r = torch.tensor(grid, dtype=torch.float64).repeat_interleave(restarts, 0).split(1, 1)
    importance = r**torch.arange(n)
    models = []
    for std in (.2,.7):
        config = ToyConfig(n, 2, len(p), density=p, importance=importance, init=std)
        run = train(config, steps=steps, batch_size=256, lr=.03, schedule='cosine',
                    seed=seed+int(10*std), log_every=steps, weight_decay=0.)
        with torch.no_grad():
            loss = torch.cat([exact_loss(*part) for part in zip(*[
                t.split(72) for t in (run.W,run.b,p,importance)], strict=True)])
        models.append([t.unflatten(0, (-1,restarts)) for t in (run.W,loss)])
    return tuple(torch.cat(t, 1) for t in zip(*models, strict=True))

def distinct(loss, most):
    "Return the indices of the lowest losses that differ by more than 0.3 % from each other"
    order = loss.argsort().tolist()
    chosen = order[:1]
    for i in order[1:]:
        if loss[i]>1.003*loss[chosen[-1]] and len(chosen)<most: chosen.append(i)
    return chosen

def find_optima(
    n_features,
    density=(.1,),   # Of every feature
    decay=(1.,),     # $r$ of the importance $r^i$
    restarts=12,     # Trained models for each initial scale
    steps=1500,      # Of their training
    fits=3,          # Of them fitted to the exact loss
    maxiter=250,     # Of a fit
    seed=0,
)->tuple:            # W [decay, density, feature, 2]; loss [decay, density], float64
    "Return the lowest exact losses found in two hidden dimensions, and their models"
    grid = [(p,r) for r in decay for p in density]
    W,loss = trained_starts(n_features, grid, restarts, steps, seed)
    found = []
    for w,l,(p,r) in zip(W, loss, grid, strict=True):
        config = ToyConfig(n_features, 2, density=p, importance=[r**i for i in range(n_features)])
        found.append(fit_exact(config, starts=w[distinct(l, fits)], maxiter=maxiter))
    shape = (len(decay),len(density))
    return (torch.stack([f['W'][0,0] for f in found]).unflatten(0, shape),
            torch.stack([f['loss'][0,0] for f in found]).unflatten(0, shape))


# %% [markdown]
# Where a model should ignore a feature, these fits often stop early: the best bias of an ignored
# feature is its mean, but once the bias is negative its gradient is 0. The optimum of one feature less,
# with an ignored feature added, is then lower. Its loss needs no fit: the variance of the feature,
# times its importance, is added.

# %%
def add_ignored_feature(
    found:tuple,   # W [decay, density, feature, 2] and loss [decay, density] from `find_optima`
    smaller:tuple, # The same for one feature less
    density,       # As given to `find_optima`
    decay,         # As given to `find_optima`
)->tuple:          # As `found`, no loss above it
    "Replace optima that a model which ignores the last feature beats"
    n = found[0].shape[2]
    importance = torch.tensor(decay, dtype=torch.float64)[:,None]**(n-1)
    loss = smaller[1] + importance*moments(torch.tensor(density, dtype=torch.float64))[1]
    W = torch.nn.functional.pad(smaller[0], (0,0,0,1))
    better = loss<found[1]
    return torch.where(better[...,None,None], W, found[0]), torch.where(better, loss, found[1])


# %% [markdown]
# At density 0.1 the best model of five features is a pentagon. Of antipodal pairs, which training
# reaches about as often, the loss is higher.

# %%
W,loss = find_optima(5, [.2,.1], [.9], restarts=6, steps=800, fits=2, maxiter=100)
[(planar_shape(w), round(l.item(), 5)) for w,l in zip(W[0], loss[0])]

# %%
test_eq([planar_shape(w) for w in W[0]], ['antipodal pairs','pentagon'])

# %% [markdown]
# With a sixth feature of importance 0.5, ignoring it costs half its variance:

# %%
six = add_ignored_feature((torch.ones(1, 2, 6, 2), torch.full((1,2), torch.inf)), (W,loss),
                          [.2,.1], [.5**.2])
bias = torch.tensor([0.,0,0,0,0,.1])
test_close((six[1]-loss)[0].tolist(), [moments(.2)[1]/2,moments(.1)[1]/2], eps=1e-12)
test_close(exact_loss(six[0][0,0], bias, .2, [0,0,0,0,0,.5]), moments(.2)[1]/2, eps=1e-12)


# %% [markdown]
# The table is a JavaScript file, since a page that is opened from a folder may not read JSON. An
# entry holds the loss with six digits, and a length in hundredths and an angle in degrees for each
# column.

# %%
#| export
@checked
def best_known(
    n_features:int,
    density=.1,    # Of every feature
    decay=1,       # $r$ of the importance $r^i$
)->tuple:          # Loss; W [feature, 2], float64, as rounded in the table
    "Return the lowest exact loss known, and its model, from a table"
    text = (data_dir()/'interactive'/'toy_optima.js').read_text(encoding='utf-8')
    table = json.loads(text.partition('globalThis.toyOptima = ')[2].rstrip(';\n'))
    known = dict(n_features=[int(n) for n in table['optima']], density=table['density'],
                 decay=table['decay'])
    for k,v in dict(n_features=n_features, density=density, decay=decay).items():
        if v not in known[k]: raise ConfigError(f'{k} is {short_repr(v)}: give one of {known[k]}.')
    entry = table['optima'][str(n_features)][known['decay'].index(decay)][
        known['density'].index(density)]
    length,angle = torch.tensor(entry[1:], dtype=torch.float64).view(-1, 2).T
    angle = torch.deg2rad(angle)
    return entry[0], torch.stack([angle.cos(),angle.sin()], 1)*length[:,None]/100


# %%
best_known(5, .1, .9)

# %%
test_eq(planar_shape(best_known(5, .1, .9)[1]), 'pentagon')
with expect_fail(ConfigError, contains='density is 0.11'): best_known(5, .11)
with expect_fail(ConfigError, contains='n_features is 9'): best_known(9)

# %% [markdown]
# The text of the table comes from such optima: here it is written again from its own entries.

# %%
DENSITIES = (1,.7,.5,.3,.2,.1,.05,.02,.01)
DECAYS = (1,.9,.8,.5)
head = ('// Lowest exact losses known, by features, decay of importance and density, made by '
        'moral_sc.superposition.optima.\n'
        '// An entry: loss, and length in hundredths and angle in degrees of each column.\n'
        'globalThis.toyOptima = ')

def table_entry(loss, W):
    "Return loss, lengths and angles, the first column pointing up"
    length = (100*W.norm(dim=-1)).round().long()
    turn = math.pi/2 - torch.atan2(W[0,1], W[0,0]) if length[0] else 0. # An ignored one has none
    angle = torch.rad2deg(torch.atan2(W[:,1], W[:,0]) + turn).round().long() % 360
    columns = torch.where(length[:,None]>0, torch.stack([length,angle], 1), 0)
    return [0 if loss<1e-9 else float(f'{loss:.6g}'), *columns.flatten().tolist()]

def table_text(optima): # Number of features -> [decay][density] entries
    "Write the table of optima"
    table = dict(density=DENSITIES, decay=DECAYS, optima=optima)
    text = json.dumps(table, separators=(',',':')).replace('"optima":{', '"optima":{\n')
    text = text.replace(']]],"', ']]],\n"')
    return f'{head}{text};\n'

text = table_text({n: [[table_entry(*best_known(n, p, r)) for p in DENSITIES] for r in DECAYS]
                   for n in range(2, 9)})
assert text==(data_dir()/'interactive'/'toy_optima.js').read_text(encoding='utf-8')

# %% [markdown]
# No start proves that a loss is the lowest. These are checks that a table with a missed optimum
# would probably fail; without the ignored features that were added, it failed the last of them in 17 of 252 entries. A fit from the rounded columns must come back to the loss of the table; other starts must not
# find less; and an additional feature costs at most its own variance, since a model may ignore it,
# and never reduces the loss.

# %%
for n,p,r in ((2,.5,1),(3,.3,1),(4,.2,.8),(5,.1,.9)):
    known,W = best_known(n, p, r)
    config = ToyConfig(n, 2, density=p, importance=[r**i for i in range(n)])
    again = fit_exact(config, starts=W[None], maxiter=60)['loss'].item()
    other = fit_exact(config, restarts=2, seed=1, maxiter=60)['loss'].min().item()
    assert abs(again-known)<1e-4*known+1e-8, (n, p, r, again, known)
    assert other>known*(1-1e-5)-1e-8, (n, p, r, other, known)

# %%
for r in DECAYS:
    for p in DENSITIES:
        losses = [best_known(n, p, r)[0] for n in range(2, 9)]
        for n,(a,b) in enumerate(zip(losses, losses[1:]), 2):
            assert a-1e-6 <= b <= a + r**n*moments(p)[1] + 1e-6
