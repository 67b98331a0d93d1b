# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Geometry plots
#
# > These figures show dimensionality, feature graphs, polytopes and training.

# %%
#| default_exp superposition.geometry_plots

# %%
#| export
import numpy as np, plotly.graph_objects as go, torch
from plotly.subplots import make_subplots
from moral_sc.foundation.arguments import checked
from moral_sc.foundation.errors import ConfigError
from moral_sc.foundation.figures import COLOURS, INK
from moral_sc.superposition.dimensionality import LEVELS, DimensionalitySweep
from moral_sc.superposition.feature_graphs import feature_components
from moral_sc.superposition.geometry import align_to_axes, feature_dimensionality, represented

# %%
#| hide
from fastcore.test import *
from moral_sc.superposition.dimensionality import dimensionality_sweep
from moral_sc.superposition.geometry import polygon, simplex, tegum


# %% [markdown]
# These figures show the arrangement of the columns of $W$ in the hidden space; matrices and curves
# are in [plots](60_plots.ipynb). Values are rounded to what is visible, so that a page with a dozen
# polytopes and an animation stays small.
#
# ## Feature dimensionality
#
# The paper's figure on feature dimensionality shows the curve of $D^*$ against sparsity and, around
# it, a dot at $D_i$ for each stored feature. The guide lines are the levels of the
# [polytopes](54_dimensionality.ipynb).

# %%
#| export
def _round(t, digits=3): return np.round(np.asarray(t, np.float64), digits).tolist()

def _log_ticks(x):
    "Return ticks of a logarithmic axis at 1, 2, 5 times powers of ten"
    ticks = [m*10.**e for e in range(-3, 5) for m in (1,2,5)]
    ticks = [t for t in ticks if .9*min(x)<=t<=1.1*max(x)]
    return dict(type='log', tickvals=ticks, ticktext=[f'{t:g}' for t in ticks])

def _label(name):
    below = dict(y=LEVELS[name], yanchor='top') if name=='antiprism' else {}
    return dict(text=name, font_size=11, xanchor='right') | below

@checked
def plot_dimensionality(
    sweep:DimensionalitySweep,
    levels=('tetrahedron','triangle','digon','pentagon','antiprism'), # Guide lines
)->go.Figure:
    "Plot the dimensionality of each stored feature, and the curve of D*, against sparsity"
    x = np.repeat(1/np.array(sweep.density), sweep.W.shape[1])
    jitter = np.random.default_rng(0).normal(0, .006, sweep.stored.shape)
    xs = (x.reshape(sweep.d_star.shape)[...,None]*np.exp(jitter))[sweep.stored.numpy()]
    fig = go.Figure(go.Scattergl(x=_round(xs), y=_round(sweep.D[sweep.stored]), mode='markers',
        name='features', marker=dict(size=4, color=COLOURS['q'], opacity=.5),
        hovertemplate='D = %{y}, 1/p = %{x}<extra></extra>'))
    star = sweep.d_star.double().mean(1).numpy()
    fig.add_scatter(x=_round(1/np.array(sweep.density)), y=_round(star), name='D* = m/‖W‖²',
                    mode='lines', line=dict(color=COLOURS['accent'], width=2))
    for name in levels:
        fig.add_hline(LEVELS[name], line=dict(color=INK, width=1, dash='dot'), layer='below',
                      annotation=_label(name))
    fig.update_xaxes(title='sparsity 1/p', **_log_ticks(x))
    return fig.update_yaxes(title='share of a dimension', range=[0,1.08])


# %%
#| label: fig-shares
#| fig-cap: Forty features in six dimensions at twelve densities, two models each; a dot is a stored feature
density = [1,.85,.75,.7,.6,.5,.4,.33,.25,.2,.15,.1]
sweep = dimensionality_sweep(40, 6, density, 2, steps=1500, batch_size=128, lr=5e-3,
                             schedule='cosine')
plot_dimensionality(sweep)


# %% [markdown]
# ## Feature graphs
#
# Two features are joined by an edge if they interfere, that is, if $|W_i\cdot W_j|$ is not small.
# Polytopes in orthogonal subspaces fall apart into components, which are drawn side by side. The
# colour is the feature dimensionality.

# %%
#| export
def _ring_order(G):
    "Sort the corners around the shape, by its two leading directions"
    if len(G)==1: return np.array([0])
    values,vectors = np.linalg.eigh(G)
    return np.argsort(np.arctan2(vectors[:,-1]*values[-1], vectors[:,-2]*values[-2]))

def _layout(G, parts, row_width):
    "Return positions [feature, 2]: components on a grid, their corners on rings"
    positions = np.zeros((len(G),2))
    x = 0.
    y = 0.
    row_height = 0.
    for c in parts:
        r = .25*len(c)**.6
        if x+2*r > row_width and x:
            x = 0.
            y = y-row_height-.35
            row_height = 0.
        t = 2*np.pi*np.arange(len(c))/len(c) + np.pi/2
        ring = c[_ring_order(G[np.ix_(c,c)])]
        positions[ring] = np.stack([x+r+r*np.cos(t), y-r+r*np.sin(t)], 1)
        x = x+2*r+.35
        row_height = max(row_height, 2*r)
    return positions

@checked
def plot_feature_graphs(
    Ws,           # Models, [feature, hidden] each
    titles,       # One for each
    threshold=.1,     # Smallest |W_i . W_j| that counts as an edge
    per_row=6.,   # Width of a panel: raise it for models of many components
)->go.Figure:
    "Plot feature graphs of several models side by side"
    fig = make_subplots(1, len(Ws), subplot_titles=list(titles), horizontal_spacing=.03)
    for col,W in enumerate(Ws, 1):
        W = W[represented(W)].double().cpu()
        G = (W@W.T).numpy()
        D = feature_dimensionality(W).numpy()
        parts = sorted(map(np.array, feature_components(W, threshold)), key=len, reverse=True)
        corners = _layout(G, parts, per_row)
        i,j = np.nonzero(np.triu(np.abs(G)>threshold, 1))
        gaps = np.full((len(i),2), np.nan)
        ends = np.stack([corners[i],corners[j],gaps], 1).reshape(-1,2)
        fig.add_scatter(x=_none_for_nan(ends[:,0]), y=_none_for_nan(ends[:,1]), mode='lines',
                        row=1, col=col, hoverinfo='skip', line=dict(color=INK, width=1), opacity=.6)
        fig.add_scatter(x=_round(corners[:,0],2), y=_round(corners[:,1],2), mode='markers',
            row=1, col=col,
            marker=dict(size=7, color=_round(D), coloraxis='coloraxis'), text=_round(D),
            hovertemplate='D = %{text}<extra></extra>')
        fig.update_yaxes(scaleanchor=f'x{col if col>1 else ""}', row=1, col=col)
    fig.update_xaxes(visible=False).update_yaxes(visible=False).update_annotations(font_size=12)
    bar = dict(title='D', thickness=10, tickvals=[1/3,2/5,1/2,2/3,3/4],
               ticktext=['1/3','2/5','1/2','2/3','3/4'])
    return fig.update_layout(showlegend=False, height=300, margin=dict(l=5, r=5, t=40, b=5),
        coloraxis=dict(colorscale='Turbo', cmin=.25, cmax=.8, colorbar=bar))

def _none_for_nan(v): return [None if np.isnan(x) else round(float(x), 2) for x in v]


# %%
#| label: fig-graphs
#| fig-cap: Two bipyramids with two digons, and the trained models at densities 1/3 and 1/5
made = tegum(polygon(3), polygon(2), polygon(5), polygon(2))
plot_feature_graphs([made, sweep.W[7,0], sweep.W[9,0]], ['made by hand','p = 0.33','p = 0.2'])


# %% [markdown]
# ## One feature among five
#
# When one feature's density changes, its column and those of its neighbours move. Each model is
# [aligned](50_geometry.ipynb) with the varied feature to the right. The other features are sorted
# by angle, so that the same colour marks the same neighbour.

# %%
#| export
def order_by_angle(
    W:torch.Tensor, # [model, feature, 2], the varied feature first
)->torch.Tensor:    # Same shape: first feature to the right, the others by angle
    "Align each model to the axes and sort its features by angle"
    models = []
    for w in align_to_axes(W.double()):
        t = torch.atan2(w[1:,1], w[1:,0]) % (2*torch.pi)
        models.append(torch.cat([w[:1],w[1:][t.argsort()]]))
    return torch.stack(models)

@checked
def plot_neighbours(
    W:torch.Tensor, # [model, feature, 2], the varied feature first
    titles,         # One for each model
)->go.Figure:
    "Plot the columns of W, with the varied feature in red"
    fig = make_subplots(1, len(W), subplot_titles=list(titles), horizontal_spacing=.02)
    r = max(1.3, 1.08*float(W.abs().max()))
    for c,w in enumerate(order_by_angle(W), 1):
        xs,ys = w.numpy().round(3).T
        for i in range(len(w)):
            fig.add_scatter(x=[0,xs[i]], y=[0,ys[i]], mode='lines+markers', row=1, col=c,
                marker=dict(size=[0,11]), line=dict(width=3),
                marker_color=COLOURS['relu' if i==0 else 'q'], name=f'feature {i}')
        fig.add_shape(type='circle', x0=-1, x1=1, y0=-1, y1=1, row=1, col=c,
                      line=dict(color=COLOURS['paper'], width=1, dash='dot'))
        fig.update_yaxes(scaleanchor=f'x{c if c>1 else ""}', row=1, col=c)
    fig.update_xaxes(range=[-r,r], visible=False).update_yaxes(range=[-r,r], visible=False)
    return fig.update_annotations(font_size=12).update_layout(showlegend=False, height=200,
        margin=dict(l=5, r=5, t=40, b=5))


# %%
#| label: fig-corners
#| fig-cap: A pentagon, and two antipodal pairs without the first feature
W = torch.stack([polygon(5), torch.cat([torch.zeros(1,2),polygon(4)])])
plot_neighbours(W, ['pentagon','two digons'])

# %% [markdown]
# Rotations, reflections and permutations of the other features leave the result unchanged:

# %%
O = torch.linalg.qr(torch.randn(2,2, dtype=torch.float64)).Q
test_close(order_by_angle((W@O)[:,[0,3,1,4,2]])[0], order_by_angle(W)[0], eps=1e-6)
order_by_angle(W)[0]


# %% [markdown]
# ## Shapes in three dimensions
#
# Models with three hidden dimensions can be shown directly. Spokes lead from the origin to the
# corners, and the edges are those of the convex hull. You can rotate each shape with the mouse.

# %%
#| export
def hull_edges(
    V:torch.Tensor, # [corner, 3]
)->list:            # Pairs of corners
    "Return the edges of the convex hull, without the diagonals of its flat faces"
    V = np.asarray(V, np.float64)
    if len(V)<4 or np.linalg.matrix_rank(V-V.mean(0), tol=1e-3)<3: return _flat_edges(V)
    from scipy.spatial import ConvexHull
    hull = ConvexHull(V)
    sides = {}
    for face,normal in zip(hull.simplices, hull.equations[:,:3], strict=True):
        for a,b in ((0,1),(1,2),(0,2)):
            sides.setdefault(tuple(sorted(map(int, face[[a,b]]))), []).append(normal)
    return [e for e,(n,k) in sides.items() if n@k < .98]

def _flat_edges(V):
    "Return the sides of a polygon; a digon has none"
    if len(V)<3: return []
    x = np.linalg.svd(V-V.mean(0), full_matrices=False)
    t = np.argsort(np.arctan2(x[0][:,1], x[0][:,0])).tolist()
    return list(zip(t, t[1:]+t[:1], strict=True))

def _segments(V, pairs):
    "Return x, y, z of line segments with gaps between them"
    gap = [np.full(3, np.nan)]
    points = np.array([p for a,b in pairs for p in (V[a],V[b],*gap)]).reshape(-1,3)
    return {k: _none_for_nan(points[:,i]) for i,k in enumerate('xyz')}

def _set_scene(fig, largest):
    "Show a cube that holds all coordinates"
    axis = dict(visible=False, showbackground=False, range=[-1.05*largest,1.05*largest])
    return fig.update_scenes(xaxis=axis, yaxis=axis, zaxis=axis, aspectmode='cube',
                             dragmode='orbit', camera=dict(eye=dict(x=1.15, y=.75, z=.55)))

@checked
def plot_shapes_3d(
    shapes,       # [corner, 3] each; corners shorter than 1/2 are left out
    titles,       # One for each
    groups=None,  # Set of each corner for each solid; default: all one set
    columns=3,
)->go.Figure:
    "Plot shapes in three dimensions that can be rotated"
    rows = -(-len(shapes)//columns)
    fig = make_subplots(rows, columns, subplot_titles=list(titles), horizontal_spacing=.01,
        vertical_spacing=.08, specs=[[dict(type='scene')]*columns]*rows)
    for k,W in enumerate(shapes):
        keep = represented(W)
        V = W[keep].double().cpu().numpy()
        cell = dict(row=k//columns+1, col=k%columns+1)
        sets = np.asarray(groups[k])[keep.numpy()] if groups else np.zeros(len(V), int)
        hub = np.concatenate([V, np.zeros((1,3))])
        spokes = _segments(hub, [(i,len(V)) for i in range(len(V))])
        fig.add_scatter3d(**_segments(V, hull_edges(V)), mode='lines', hoverinfo='skip',
                          line=dict(color=INK, width=3), **cell)
        fig.add_scatter3d(**spokes, mode='lines', hoverinfo='skip',
                          line=dict(color=COLOURS['linear'], width=5), **cell)
        fig.add_scatter3d(**_points(V), mode='markers',
                          text=_round(feature_dimensionality(W[keep])),
            marker=dict(size=6, color=[COLOURS['sequence'][s] for s in sets]),
            hovertemplate='D = %{text}<extra></extra>', **cell)
    _set_scene(fig, max(float(W.abs().max()) for W in shapes))
    return fig.update_annotations(font_size=12).update_layout(
        showlegend=False, height=250*rows+20, margin=dict(l=0, r=0, t=30, b=0))

def _points(V): return {k: _round(V[:,i]) for i,k in enumerate('xyz')}


# %% [markdown]
# A cube has twelve edges, although its six faces are divided into twelve triangles:

# %%
cube = torch.cartesian_prod(*[torch.tensor([-1.,1])]*3)/3**.5
test_eq(len(hull_edges(cube)), 12); test_eq(len(hull_edges(simplex(3))), 6)
test_eq(len(hull_edges(torch.cat([polygon(5), torch.zeros(5,1)], 1))), 5)

# %%
#| label: fig-solids
#| fig-cap: Three shapes that features form in three dimensions
octahedron = tegum(*[polygon(2)]*3)
plot_shapes_3d([simplex(3), tegum(polygon(3), polygon(2)), octahedron],
            ['tetrahedron','triangular bipyramid','octahedron'])


# %% [markdown]
# ## Dimensionality over training
#
# The dimensionality of all features along one run, above the loss on the same axis of steps. A
# feature is drawn where its column is longer than a quarter.

# %%
#| export
@checked
def plot_dimensionality_over_time(
    steps,              # [time]
    W:torch.Tensor,     # [time, feature, hidden]
    loss,               # [time], or (steps, values)
    levels=('dedicated','triangle','digon','pentagon'),
    marks=(),           # Steps to point out
)->go.Figure:
    "Plot the dimensionality of each feature and the loss over training"
    D = torch.where(represented(W, .25), feature_dimensionality(W), torch.nan).cpu().numpy()
    x = _round(steps, 0)
    loss = loss if isinstance(loss, tuple) else (steps,loss)
    fig = make_subplots(2, 1, shared_xaxes=True, row_heights=[.68,.32], vertical_spacing=.04)
    for i in np.flatnonzero(~np.isnan(D).all(0)):
        fig.add_scatter(x=x, y=[None if np.isnan(v) else round(float(v), 3) for v in D[:,i]],
            mode='lines', line=dict(width=1.2, color=COLOURS['q']), opacity=.55, row=1, col=1,
            name=f'feature {i}', hovertemplate=f'feature {i}: D = %{{y}}<extra></extra>')
    fig.add_scatter(x=_round(loss[0], 0), y=_round(loss[1], 4), mode='lines', row=2, col=1,
                    line=dict(color=COLOURS['relu']), name='loss')
    for name in levels:
        fig.add_hline(LEVELS[name], line=dict(color=INK, width=1, dash='dot'), row=1, col=1,
                      annotation=_label(name))
    dashed = dict(color=COLOURS['accent'], width=1.5, dash='dash')
    for m in marks: fig.add_vline(int(m), line=dashed)
    fig.update_yaxes(title='share of a dimension', range=[0,1.05], row=1, col=1)
    fig.update_yaxes(title='loss', row=2, col=1).update_xaxes(title='step', row=2, col=1)
    return fig.update_layout(showlegend=False, height=460)


# %%
#| label: fig-levels
#| fig-cap: Shares of a dimension in a made-up run, in which a triangle becomes a digon
t = torch.linspace(0, 1, 20)[:,None,None]
start = polygon(3)
end = torch.tensor([[1.,0],[-1,0],[0,0]])
plot_dimensionality_over_time(range(20), (1-t)*start + t*end, np.linspace(1, .5, 20))


# %% [markdown]
# ## Animation of learning
#
# Frames show a model with three hidden dimensions, with its sets in two colours and the loss beside
# it. One rotation, the same for all frames, makes the line between the means of the two sets
# vertical, so that any rotation in the animation took place in training.

# %%
#| export
def upright_rotation(
    W:torch.Tensor, # [feature, 3]: the final model
    sets,           # Set of each feature, 0 or 1
)->torch.Tensor:    # [3, 3] rotation
    "Return the rotation that makes the line between the means of two sets vertical"
    W = W.double()
    sets = torch.as_tensor(sets)
    axis = W[sets==0].mean(0)-W[sets==1].mean(0)
    if axis.norm()<1e-6: raise ConfigError(
        'both sets have the same mean: choose two sets of features that differ.')
    first = W[(sets==0).nonzero()[0,0]]
    basis = torch.stack([axis,first,torch.linalg.cross(axis,first)], 1)
    return torch.linalg.qr(basis).Q[:,[1,2,0]]

def _frame_data(W, sets):
    hub = np.concatenate([W, np.zeros((1,3))])
    data = []
    for s in np.unique(sets):
        i = np.flatnonzero(sets==s)
        ring = _segments(hub, [(a,b) for k,a in enumerate(i) for b in i[k+1:]])
        data += [go.Scatter3d(**_segments(hub, [(k,len(W)) for k in i])),
                 go.Scatter3d(**ring), go.Scatter3d(**_points(W[i]))]
    return data

def _style_frame(fig, sets):
    for k,s in enumerate(np.unique(sets)):
        c = COLOURS['sequence'][s]
        for trace,style in zip(fig.data[3*k:3*k+3], (
                dict(mode='lines', line=dict(color=c, width=6), hoverinfo='skip'),
                dict(mode='lines', line=dict(color=c, width=2), opacity=.6, hoverinfo='skip'),
                dict(mode='markers', marker=dict(size=6, color=c))), strict=True):
            trace.update(showlegend=False, **style)

@checked
def animate_learning(
    steps,           # [time], at most 60
    W:torch.Tensor,  # [time, feature, 3]
    sets,            # Set of each feature, 0 or 1
    loss,            # [time]
)->go.Figure:
    "Animate two sets of features in three dimensions over training"
    if len(steps)>60: raise ConfigError(f'{len(steps)} frames are too many: give at most 60.')
    sets = np.asarray(sets)
    V = (W.double()@upright_rotation(W[-1], sets)).cpu().numpy()
    fig = make_subplots(1, 2, column_widths=[.62,.38], horizontal_spacing=.12,
                        specs=[[dict(type='scene'),dict(type='xy')]])
    for t in _frame_data(V[-1], sets): fig.add_trace(t, 1, 1)
    _style_frame(fig, sets)
    n = len(fig.data)
    x = _round(steps, 0)
    y = _round(loss, 5)
    fig.add_scatter(x=x, y=y, mode='lines', line=dict(color=COLOURS['relu']), row=1, col=2)
    fig.add_scatter(x=x[-1:], y=y[-1:], mode='markers', row=1, col=2,
                    marker=dict(size=11, color=COLOURS['accent']))
    fig.frames = [go.Frame(name=f'{s:g}', traces=[*range(n),n+1],
                           data=_frame_data(v, sets)+[go.Scatter(x=[s], y=[l])])
                  for s,v,l in zip(x, V, y, strict=True)]
    _set_scene(fig, float(np.abs(V).max()))
    fig.update_yaxes(type='log', dtick=1, title='loss').update_xaxes(
        title='step', type='log', tickvals=[s for s in (10,100,1000,10_000) if s<=max(x)])
    return fig.update_layout(showlegend=False, height=440, margin=dict(l=0, r=20, t=10, b=80),
                             **_animation_controls([f.name for f in fig.frames], 'step '))

def _animation_controls(names, prefix):
    "Return a play button and a slider; the site draws both as elements of a form"
    frame_args = lambda s, ms: [s, dict(mode='immediate', frame=dict(duration=ms, redraw=True),
                                transition=dict(duration=0))]
    play = dict(label='▶', method='animate', args=frame_args(None, 120))
    stop = dict(label='❚❚', method='animate', args=frame_args([None], 0))
    return dict(
        updatemenus=[dict(type='buttons', direction='left', x=0, y=-.06, yanchor='top',
                          xanchor='left', showactive=False, buttons=[play,stop])],
        sliders=[dict(active=len(names)-1, x=.16, len=.84, y=-.04, yanchor='top',
                      ticklen=0, minorticklen=0,
                      currentvalue=dict(prefix=prefix, font=dict(size=12, color=INK)),
                      font=dict(color='rgba(0,0,0,0)', size=1),
                      steps=[dict(label=s, method='animate', args=frame_args([s], 0))
                             for s in names])])


# %%
#| label: fig-film
#| fig-cap: Two triangles that move apart and twist into an octahedron (made by hand)
def twisted(t):
    a = torch.arange(3)*2*torch.pi/3
    height = min(1, 2*t)/3**.5
    r = t*(2/3)**.5
    ring = lambda z,turn: torch.stack([r*(a+turn).cos(), r*(a+turn).sin(), torch.full((3,), z)], 1)
    return torch.cat([ring(height, 0.), ring(-height, t*torch.pi/3)])

film = torch.stack([twisted(t) for t in np.linspace(.05, 1, 20)])
fig = animate_learning(np.geomspace(10, 1000, 20), film, [0,0,0,1,1,1], np.geomspace(1, .01, 20))
assert len(fig.to_json())<60_000
fig

# %%
O = torch.linalg.qr(torch.randn(3,3)).Q
turned = film[-1]@O@upright_rotation(film[-1]@O, [0,0,0,1,1,1]).float()
test_close(turned[:3,2].abs(), turned[3:,2].abs(), eps=1e-4)
test_close(turned[:3,2].std(), 0, eps=1e-4)
with expect_fail(ConfigError, contains='61 frames'):
    animate_learning(range(61), film, [0]*6, range(61))


# %% [markdown]
# Best models at several densities differ in kind. A slider shows one after the other, with the shares
# of a dimension of its features.

# %%
#| export
def _shape_data(W, p):
    "Return edges, spokes, corners and dimensionalities of one model"
    V = align_to_axes(W[represented(W)].double()).cpu().numpy()
    D = _round(feature_dimensionality(W)[represented(W)])
    hub = np.concatenate([V, np.zeros((1,3))])
    line = lambda pairs: go.Scatter3d(**_segments(hub, pairs))
    corners = go.Scatter3d(**_points(V), text=D, marker=dict(color=D, coloraxis='coloraxis'))
    return [line(hull_edges(V)), line([(i,len(V)) for i in range(len(V))]), corners,
            go.Scatter(x=[p]*len(D), y=D)]

@checked
def plot_shapes_by_density(
    density,        # [density], at most 60
    W:torch.Tensor, # [density, feature, 3]; columns shorter than 1/2 are left out
    names,          # Of the shape at each density
)->go.Figure:
    "Plot one shape for each density, chosen by a slider, beside the dimensionalities of them all"
    if len(density)>60: raise ConfigError(f'{len(density)} frames are too many: give at most 60.')
    labels = [f'p = {p:g}, {name}' for p,name in zip(density, names, strict=True)]
    frames = [_shape_data(w, p) for w,p in zip(W, density, strict=True)]
    fig = make_subplots(1, 2, column_widths=[.56,.44], horizontal_spacing=.12,
                        specs=[[dict(type='scene'),dict(type='xy')]])
    every = [(x,y) for f in frames for x,y in zip(f[3].x, f[3].y, strict=True)]
    fig.add_scatter(x=[x for x,_ in every], y=[y for _,y in every], mode='markers', row=1, col=2,
                    marker=dict(size=5, color=COLOURS['paper']), hoverinfo='skip')
    for t,col in zip(frames[0], (1,1,1,2), strict=True): fig.add_trace(t, 1, col)
    edges,spokes,corners,chosen = fig.data[1:]
    edges.update(mode='lines', hoverinfo='skip', line=dict(color=INK, width=3))
    spokes.update(mode='lines', hoverinfo='skip', line=dict(color=COLOURS['linear'], width=5))
    corners.update(mode='markers', marker_size=7, hovertemplate='D = %{text}<extra></extra>')
    chosen.update(mode='markers', marker=dict(size=10, color=COLOURS['accent']),
                  hovertemplate='D = %{y}<extra></extra>')
    fig.frames = [go.Frame(name=label, traces=[1,2,3,4], data=f)
                  for label,f in zip(labels, frames, strict=True)]
    controls = _animation_controls(labels, '')
    controls['sliders'][0]['active'] = 0
    fig.update_xaxes(title='density p').update_yaxes(title='share of a dimension', range=[0,1.08])
    return _set_scene(fig, float(W.abs().max())).update_layout(showlegend=False, height=400,
        margin=dict(l=0, r=20, t=10, b=80), **controls, coloraxis=dict(
            colorscale='Turbo', cmin=.25, cmax=1.05, showscale=False))


# %%
#| label: fig-by-density
#| fig-cap: Three shapes of five features in three dimensions (made by hand)
shapes = torch.stack([torch.cat([simplex(3), torch.zeros(1,3)]), tegum(polygon(3), polygon(2)),
                      torch.block_diag(polygon(2), polygon(2), torch.ones(1,1))])
fig = plot_shapes_by_density([.8,.5,.2], shapes,
                             ['tetrahedron','triangular bipyramid','two digons, one alone'])
fig

# %%
assert len(fig.to_json())<30_000
test_eq([f.name for f in fig.frames][1], 'p = 0.5, triangular bipyramid')
test_close(sorted(fig.frames[1].data[3].y), [.5,.5,.667,.667,.667], eps=1e-3)
with expect_fail(ValueError): plot_shapes_by_density([.8,.5], shapes, ['a','b'])
