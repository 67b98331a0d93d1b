# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Neurons
#
# > A hidden ReLU layer has neurons, each of which serves one or more features.

# %%
#| default_exp superposition.neurons

# %%
#| export
import numpy as np, plotly.graph_objects as go, torch
from plotly.subplots import make_subplots
from moral_sc.foundation.arguments import checked

# %%
#| hide
from fastcore.test import *


# %% [markdown]
# With a ReLU on the hidden layer the units are neurons, and we can ask which features each of them
# responds to [@elhage2022]. Inputs of the paper's experiments with such models are positive, so a
# feature *excites* the neurons to which its weight is positive and inhibits those to which it is
# negative. A feature is coded by the set of neurons that it excites. A neuron excited by one
# feature is monosemantic; a neuron excited by several is polysemantic.

# %%
#| export
def excited_neurons(
    W:torch.Tensor, # [..., feature, hidden]
    min_weight=.3,       # Smallest weight that counts
)->torch.Tensor:    # [..., feature, hidden], bool
    "Return which features excite which neurons"
    return W > min_weight

def count_neurons(
    W:torch.Tensor, # [feature, hidden]
    min_weight=.3,
)->dict:
    "Count the neurons with one and with several features, and the features in shared neurons only"
    excited = excited_neurons(W, min_weight)
    count = excited.sum(0)
    shared = excited[:,count>1].any(1) & ~excited[:,count==1].any(1)
    return dict(dedicated=int((count==1).sum()), shared=int((count>1).sum()),
                in_shared=int(shared.sum()), stored=int(excited.any(1).sum()))


# %% [markdown]
# Three features have a neuron each. Three more share two neurons: two of them excite one neuron
# each, and the third excites both.

# %%
W = torch.zeros(6, 5); W[0,0] = W[1,1] = W[2,2] = 1
W[3,3] = W[4,4] = .9; W[5,3:] = .8; W[3,4] = W[4,3] = -.8
test_eq(count_neurons(W), dict(dedicated=3, shared=2, in_shared=3, stored=6))
count_neurons(W)


# %% [markdown]
# In an untied model the scale of a neuron is arbitrary: its inputs can be doubled and its outputs
# halved without effect. To compare neurons, each is scaled so that its largest input weight is 1.

# %%
#| export
def rescale_neurons(
    W:torch.Tensor, # [..., feature, hidden], into the neurons
    V:torch.Tensor, # [..., feature, hidden], out of them
)->tuple:           # Rescaled W and V of the same model
    "Scale each neuron so that its largest input weight is 1 in size"
    s = W.abs().amax(-2, keepdim=True).clamp(min=1e-12)
    return W/s, V*s


# %%
from moral_sc.superposition.model import reconstruct
torch.manual_seed(0)
W1 = torch.randn(2,4,6)
V1 = torch.randn(2,4,6)
b1 = torch.randn(2,4)
x1 = torch.randn(2,9,4)
W2,V2 = rescale_neurons(W1, V1)
outputs = lambda W, V: reconstruct(W, b1, x1, hidden='relu', V=V)
test_close(outputs(W2, V2), outputs(W1, V1), eps=1e-4)
W2.abs().amax(-2)[0]


# %% [markdown]
# The share of a neuron's input weight that belongs to its largest feature separates the two kinds
# without a threshold on single weights. With absolute weights, a hundred small weights count as
# much as a large one; with squares they do not. `neuron_order` sorts neurons by the most important
# feature they serve.

# %%
#| export
def leading_share(
    W:torch.Tensor, # [..., feature, hidden]
    power=1,        # 1: of the absolute weights; 2: of their squares
)->torch.Tensor:    # [..., hidden], 1 for a neuron with a single feature
    "Return the share of a neuron's input weight that belongs to its largest feature"
    a = W.abs()**power
    return a.amax(-2)/a.sum(-2).clamp(min=1e-12)

def primary_and_secondary(
    W:torch.Tensor, # [..., feature, hidden]
    second=.8,      # Largest size of the second weight, as a share of the largest
    third=.15,      # Smallest size of the third weight, likewise
)->torch.Tensor:    # [..., hidden], bool
    "Return which neurons have one primary and at least two secondary features"
    top = W.abs().topk(3, dim=-2).values
    share = top/top[...,:1,:].clamp(min=1e-12)
    return (share[...,1,:]<=second) & (share[...,2,:]>=third)

def neuron_order(
    W:torch.Tensor, # [feature, hidden]
)->torch.Tensor:    # Indices of neurons, those of the most important feature first
    "Sort neurons by their leading feature"
    lead = W.abs().argmax(0)
    share = leading_share(W)
    return torch.as_tensor(np.lexsort((-share.numpy(), lead.numpy())))


# %%
mixed = torch.tensor([[0.,1,0],[1,0,1],[0,0,-.5]])
test_eq(neuron_order(mixed), [1,0,2])
leading_share(mixed)

# %% [markdown]
# A neuron may also serve one *primary* feature and several *secondary* ones. Of the neurons below, the
# first does; the second has two features of about the same weight, and the third has a single one.

# %%
graded = torch.tensor([[1.,1,0],[-.5,.9,1],[.3,-.3,.1]])
test_eq(primary_and_secondary(graded), [True,False,False])


# %% [markdown]
# ## Weight stacks
#
# Each neuron is a stack with one piece for each feature, whose length is the weight. Neurons that
# serve one feature have stacks of one piece.

# %%
#| export
@checked
def plot_weight_stacks(
    Ws,             # [feature, hidden] each
    titles,         # One for each
    min_share=.15,  # Pieces below this share of the neuron's largest weight are left out
    height=300,
)->go.Figure:
    "Plot input weights of neurons as stacks, coloured by feature"
    fig = make_subplots(len(Ws), 1, subplot_titles=list(titles), shared_xaxes=False,
                        vertical_spacing=.5/max(2, len(Ws)+1))
    last = 1
    for r,W in enumerate(Ws, 1):
        W = W[:,neuron_order(W)]
        xs = []
        ys = []
        colours = []
        texts = []
        for k in range(W.shape[1]):
            w = W[:,k]
            for i in torch.where(w.abs() >= min_share*w.abs().max().clamp(min=1e-9))[0].tolist():
                xs.append(k)
                ys.append(round(abs(float(w[i])), 3))
                colours.append(i)
                texts.append(f'feature {i}: {float(w[i]):+.2f}')
        last = max(last, *colours)
        fig.add_bar(x=xs, y=ys, text=texts, textposition='none', row=r, col=1, hovertemplate=
            'neuron %{x}, %{text}<extra></extra>', marker=dict(color=colours, coloraxis='coloraxis',
            line=dict(color='white', width=.6)))
        fig.update_yaxes(title='|W|', row=r, col=1)
    fig.update_xaxes(title='neuron', row=len(Ws), col=1)
    return fig.update_annotations(font_size=12).update_layout(barmode='stack', showlegend=False,
        height=height, margin=dict(t=30), coloraxis=dict(colorscale='Plasma', cmin=0, cmax=last*1.1,
        colorbar=dict(title='feature', thickness=10)))


# %%
#| label: fig-stacks
#| fig-cap: The six features of the example above; colour is the number of the feature
plot_weight_stacks([W], ['three neurons serve one feature each, two serve three'])


# %% [markdown]
# ## Neurons that serve two features
#
# In a model of the absolute value every feature needs a neuron for each of its signs.
# `count_complete_pairs` counts the features for which this is so. If there are fewer neurons, some
# serve two features. In the paper's asymmetric motif, a neuron reads one feature strongly and writes
# it weakly, and the other way round for a second feature of the opposite sign; another neuron
# inhibits the output that the first feature reaches by this.

# %%
#| export
def count_complete_pairs(
    W:torch.Tensor, # [feature, hidden]
)->int:
    "Count the features with exactly one neuron of their own for each sign"
    lead = torch.where(leading_share(W)>.9, W.abs().argmax(0), -1)
    sign = W.sum(0).sign()
    return sum(sorted(sign[lead==i].tolist())==[-1.,1.] for i in range(len(W)))

def opposed_pairs(
    W:torch.Tensor, # [feature, hidden]
    min_share=.15,  # Smallest share of the neuron's largest input weight that counts
)->dict:            # neuron -> its two features, the one with the larger weight first
    "Find the neurons that serve exactly two features, with input weights of opposite sign"
    pairs = {}
    for k,w in enumerate(W.T):
        features = torch.where(w.abs() >= min_share*w.abs().max())[0]
        if len(features)!=2: continue
        i,j = features[w[features].abs().argsort(descending=True)].tolist()
        if w[i]*w[j] < 0: pairs[k] = i,j
    return pairs

def asymmetric_neurons(
    W:torch.Tensor,     # [feature, hidden], input weights
    V:torch.Tensor,     # [feature, hidden], output weights
    min_share=.15,
    bounds=(2.5,6.5),   # Of both ratios; the paper's is 4
)->list:                # (neuron, first feature, second feature, input ratio, output ratio)
    "Find the neurons with the asymmetric motif"
    low,high = bounds
    rows = [(k, i, j, float(-W[i,k]/W[j,k]), float(V[j,k]/V[i,k]))
            for k,(i,j) in opposed_pairs(W, min_share).items()]
    return [row for row in rows if low<row[3]<high and low<row[4]<high]

def inhibition(
    W, V,    # [feature, hidden], input and output weights
    b,       # [feature]
    k, i, j, # Neuron with the motif, its first and its second feature
)->dict:     # Sent by the neuron, the inhibitor, returned by it, and left with all neurons and bias
    "Measure what feature i alone sends to output j"
    parts = (W[i]*W[i,k].sign()).relu()*V[j]
    inhibitor = int(parts.argmin())
    return dict(sent=float(parts[k]), inhibitor=inhibitor, returned=float(parts[inhibitor]),
                left=float(parts.sum()+b[j]))


# %% [markdown]
# The search finds a motif that we build, whatever the scale of the neuron. It finds nothing in the
# same neuron with its output weights exchanged. A second neuron inhibits the output completely.

# %%
W = torch.zeros(4, 2)
V = torch.zeros(4, 2)
W[:2,0] = torch.tensor([2.,-.5])
V[:2,0] = torch.tensor([.5,2.])
W[0,1] = 1.
V[1,1] = -4.
test_eq(asymmetric_neurons(3*W, V/3), [(0, 0, 1, 4., 4.)])
test_eq(asymmetric_neurons(W, V[[1,0,2,3]]), [])
inhibition(W, V, torch.zeros(4), 0, 0, 1)

# %% [markdown]
# Two features with two neurons each make two complete pairs. One neuron fewer makes one.

# %%
pairs = torch.tensor([[1.,-1,0,0],[0,0,1,-1]])
test_eq(count_complete_pairs(pairs), 2)
test_eq(count_complete_pairs(pairs[:,:3]), 1)
