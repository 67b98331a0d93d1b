# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Heads
#
# > Small models from nothing, scores and values on a trunk, and log-probabilities to learn from.

# %%
#| default_exp language.reward_head

# %%
#| export
import copy
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from moral_sc.foundation.errors import ConfigError, ModelError
from moral_sc.language.models import LM, pad
from moral_sc.language.engine.batching import has_plain_lm_head
from moral_sc.language.weights import call_quietly

# %%
#| hide
import tempfile
import numpy as np
from fastcore.test import *
from moral_sc.language.loading import load
from moral_sc.language.models import decode, encode
from moral_sc.language.stub_models import stub_model, random_model
from moral_sc.language.scoring import token_logprobs

tmp = Path(tempfile.mkdtemp())
torch.set_num_threads(1)

# %% [markdown]
# What is trained in this project are ordinary transformers models with ordinary heads. This page
# makes them, and reads from them what losses are made of. Two things are done with more care
# than is usual. A number is always read at the place where a row really ends, known from its
# length and not from a search for padding; and the output layer, a vocabulary wide, is applied
# only where a token is judged and never stored.
#
# ## A model from nothing
#
# A language of a hundred words needs no tokenizer of fifty thousand pieces. This one has a token
# for each word it is given, with and without a space before it, and one for each heading, so that
# a text of words comes back as it was.

# %%
#| export
HEADINGS = ('Human', 'Assistant', 'CritiqueRequest', 'Critique', 'RevisionRequest', 'Revision')

def word_tokenizer(
    words,             # Words and marks: 'tea', '.', '?'
    headings=HEADINGS, # One token each, with the line breaks and colon around it
):                     # A fast tokenizer; <unk> stands for what it does not know
    "A token for each word"
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    pieces = ['<pad>', '<eos>', '<unk>', '\n', '\n\n', ' ', *(f'\n\n{h}:' for h in headings),
              *(f' {w}' for w in words), *words]
    vocab = {p: i for i,p in enumerate(dict.fromkeys(pieces))}
    tok = Tokenizer(models.WordLevel(vocab, unk_token='<unk>'))
    split = r'\n\n[A-Z][A-Za-z]*:|\n+| ?[\w\'-]+| ?[^\w\s]| '
    tok.pre_tokenizer = pre_tokenizers.Split(Regex(split), 'isolated')
    tok.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tok, pad_token='<pad>', eos_token='<eos>',
                                   unk_token='<unk>')

def small_llama(
    tokenizer,
    layers:int=4,
    width:int=128,
    heads:int=4,
    seed:int=0,
    context:int=512, # Longest text, in tokens
    name:str='',
    device='cpu',
)->LM:
    "A Llama with random weights"
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=width, intermediate_size=3*width,
        num_hidden_layers=layers, num_attention_heads=heads, max_position_embeddings=context,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).eval()
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    return LM(model.to(device), tokenizer, name or f'small-{layers}x{width}',
              f'random weights, seed {seed}')


# %%
words = 'is it far tea the cup . ? , yes no'.split()
tok = word_tokenizer(words)
text = '\n\nHuman: is it far?\n\nAssistant: no, the tea is far.'
lm = small_llama(tok, layers=2, width=32)
tok.convert_ids_to_tokens(encode(lm, text))

# %%
test_eq(decode(lm, encode(lm, text)), text)
test_eq(tok.convert_ids_to_tokens(encode(lm, ' tea pot')), [' tea', '<unk>'])
test_ne(tok.pad_token_id, tok.eos_token_id)
lm


# %% [markdown]
# ## Log-probabilities to learn from
#
# `answer_logprobs` judges the tokens of an answer by the hidden states one place before them. A
# naive loss keeps logits for every place of every row, a vocabulary each, in float32, and most
# of them belong to the prompt or to padding. Here hidden states of answers alone go through the
# output layer, some at a time, and the backward pass computes their logits once more.

# %%
#| export
def backbone(model):
    "The part of a causal or a scoring model below its head"
    return getattr(model, model.base_model_prefix)

def pad_right(
    rows:list, # Token ids
    device,
)->dict:       # input_ids, padded on the right: nothing looks ahead, so no mask is needed
    "What a model's `forward` takes"
    return dict(input_ids=pad(rows, 'right', device)[0], use_cache=False)

def check_plain_lm_head(model):
    "Refuse a model whose logits are more than its output layer; found out once"
    if not hasattr(model, '_only_head'):
        on = model.training
        device = next(model.parameters()).device
        model._only_head = has_plain_lm_head(SimpleNamespace(model=model.eval(), device=device))
        model.train(on)
    if not model._only_head:
        raise ModelError(f'{type(model).__name__} caps or scales its logits after the output '
                         'layer; train a model that does not.')

def _full(x): return x if x is None or x.dtype.itemsize>2 else x.float()

def _judge(h, weight, bias, want, temperature, entropy):
    "Log-probability of one token a row of hidden states, in float32; and the entropy"
    with torch.autocast(h.device.type, enabled=False):
        x = nn.functional.linear(_full(h), _full(weight).to(_full(h).dtype), _full(bias))
        x = x/temperature
        norm = x.logsumexp(-1, keepdim=True) # `log_softmax` drops the smallest terms
        lp = (x.gather(-1, want[:,None])-norm)[:,0]
        if not entropy: return lp,
        x = x-norm
        return lp,-(x.exp()*x).sum(-1)

def _judged(model, h, want, temperature, chunk, entropy):
    out = model.get_output_embeddings()
    args = out.weight,getattr(out, 'bias', None)
    if len(h)*len(out.weight)<2**19: return _judge(h, *args, want, temperature, entropy)
    parts = [checkpoint(_judge, a, *args, b, temperature, entropy, use_reentrant=False)
             for a,b in zip(h.split(chunk), want.split(chunk))]
    return [torch.cat(x) for x in zip(*parts)]

def answer_hidden(
    model,              # A transformers causal model
    rows:list,          # Ids of prompt and answer
    starts:list,        # Where each answer begins, 1 or more
    temperature:float=1.,
    chunk:int=1024,     # Places whose logits exist at one time
    entropy:bool=False, # Also the entropy at each place
)->tuple: # log p [row, token], mask [row, token], hidden states [row, token, width], entropy
    "What a loss on answers needs, with gradient; 0 behind the end of an answer"
    check_plain_lm_head(model)
    device = next(model.parameters()).device
    n = [len(r)-s for r,s in zip(rows, starts)]
    if min(n)<1: raise ConfigError(f'Row {n.index(min(n))} has no answer to learn from.')
    if min(starts)<1: raise ConfigError(f'Row {[*starts].index(min(starts))} has no prompt: '
                                        'nothing stands before its first token.')
    h = backbone(model)(**pad_right(rows, device)).last_hidden_state
    mask = torch.arange(max(n), device=device)<torch.tensor(n, device=device)[:,None]
    at = (torch.tensor(starts, device=device)[:,None]-1+torch.arange(max(n), device=device))
    at = at.clamp(max=h.shape[1]-1)
    before = h.gather(1, at[:,:,None].expand(-1, -1, h.shape[2]))
    want = torch.tensor([t for r,s in zip(rows, starts) for t in r[s:]], device=device)
    lp,*e = _judged(model, before[mask], want, temperature, chunk, entropy)
    fill = lambda x: x.new_zeros(mask.shape).masked_scatter(mask, x)
    return fill(lp),mask,before,fill(e[0]) if e else None

def answer_logprobs(
    model, rows:list, starts:list, temperature:float=1., chunk:int=1024,
    entropy:bool=False, # Also the entropy at each place
)->tuple:               # log p [row, token], mask [row, token]; entropy [row, token]
    "Log-probability of the tokens of answers, with gradient"
    lp,mask,_,e = answer_hidden(model, rows, starts, temperature, chunk, entropy)
    return (lp,mask,e) if entropy else (lp,mask)


# %%
rows = [encode(lm, text), encode(lm, '\n\nHuman: is it?\n\nAssistant: yes')]
starts = [6, 5]
lp,mask = answer_logprobs(lm.model, rows, starts)
lp.detach().round(decimals=2), mask.sum(1)

# %% [markdown]
# A token is judged one place before it stands. A model whose every state is the one-hot vector
# of its token, and whose output layer is a table of log-probabilities, knows pairs of words and
# nothing else; what it says of a row is a product of entries of the table.

# %%
V = 7
table = torch.rand(V, V, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
class Pairs(nn.Module):
    base_model_prefix = 'trunk'
    _only_head = True
    def __init__(self):
        super().__init__()
        self.trunk = nn.Embedding(V, V)
        self.out = nn.Linear(V, V, bias=False)
        self.trunk.weight.data = torch.eye(V)
        self.out.weight.data = table.T.clone()
        look = self.trunk.forward
        self.trunk.forward = lambda input_ids, **_: SimpleNamespace(
            last_hidden_state=look(input_ids))
    def get_output_embeddings(self): return self.out

said,mask = answer_logprobs(Pairs(), [[1, 5, 2, 2], [3, 0, 6]], [1, 2])
want = [[table[1,5], table[5,2], table[2,2]], [table[0,6], 0, 0]]
test_close(said.detach(), torch.tensor(want), 1e-6)
said.detach().round(decimals=2)


# %% [markdown]
# The slow way keeps all logits, of one row at a time. In float64 the two agree in value and in
# gradient to eleven digits, at two temperatures, however the places are cut. Three of these four
# architectures compute their norms in float32 at all times, which leaves seven digits of a
# gradient.

# %%
def slow(model, rows, starts, temperature=1.):
    res = []
    for r,s in zip(rows, starts):
        x = model(torch.tensor([r])).logits[0]/temperature
        res.append(x.log_softmax(-1)[range(s-1, len(r)-1), r[s:]])
    return torch.cat(res)

def gradient(total, model):
    model.zero_grad()
    total.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])

def gap(model, rows, starts, T=1., **kw):
    "Largest differences of values and of gradients"
    fast,mask = answer_logprobs(model, rows, starts, T, **kw)
    want = slow(model, rows, starts, T)
    w = torch.linspace(-1, 2, mask.sum().item())
    a,b = (gradient((w*x).sum(), model) for x in (fast[mask], want))
    return (fast[mask]-want).abs().max().item(),(a-b).abs().max().item()

for arch in ('llama', 'qwen3', 'gemma3', 'neox'):
    m = random_model(arch)
    rs = [encode(m, 'It is (a) far.'), encode(m, 'No.'), encode(m, 'A longer row, say.')]
    ss = [3, 2, 9]
    m.model.double()
    eps = 1e-11 if arch=='neox' else 1e-5
    for T in (1., .7): test_close(gap(m.model, rs, ss, T), [0, 0], eps)
gap(m.model, rs, ss)

# %% [markdown]
# The fast reading without gradient is [the scorer's](30_scoring.ipynb), and says the same.

# %%
m = random_model('llama')
fast,mask = answer_logprobs(m.model, rs, ss)
test_close(np.concatenate(token_logprobs(m, rs, ss)), fast[mask].detach().numpy(), 1e-5)

# %% [markdown]
# A row is the same alone and among others, padded on either side. The token that ends answers
# may stand inside a row, between earlier turns, and hides nothing. Tokens of a prompt are no
# part of a loss: its sum is the sum over the mask, and so is its gradient.

# %%
inside = [*rs[0][:3], tok.eos_token_id, *rs[0][3:]]
many = [*rs, inside]
at = [*ss, 5]
fast,mask = answer_logprobs(m.model, many, at)
for r,s,f,k in zip(many, at, fast, mask):
    test_close(answer_logprobs(m.model, [r], [s])[0][0].detach(), f[k].detach(), 1e-5)
    ids,on = pad([r, [1]*40], 'left')
    left = m.model(ids, attention_mask=on, position_ids=on.cumsum(-1).sub(1).clamp(0)).logits[0]
    left = left[40-len(r):].log_softmax(-1)[range(s-1, len(r)-1), r[s:]]
    test_close(left.detach(), f[k].detach(), 1e-5)
test_eq(mask.sum(1).tolist(), [len(r)-s for r,s in zip(many, at)])
assert fast[~mask].abs().sum()==0

# %%
sums = gradient(fast.sum(), m.model)
parts = sum(gradient(slow(m.model, [r], [s]).sum(), m.model) for r,s in zip(many, at))
assert (sums-parts).norm()<1e-5*parts.norm()
with expect_fail(ConfigError, contains='Row 1 has no answer'):
    answer_logprobs(m.model, rs, [1, 99, 1])


# %% [markdown]
# ### Memory
#
# What waits for the backward pass can be counted. With a vocabulary of 49 thousand the slow way
# keeps the logits twice, and ours hardly more than the hidden states.

# %%
def kept(f):
    "Bytes that wait for the backward pass, each storage once"
    seen = {}
    def note(t):
        seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes(); return t
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t): out = f()
    return sum(seen.values()),out

class Wide(list): pad_token_id = eos_token_id = 1
big = small_llama(Wide(range(49_152)), layers=1, width=16, heads=2).model
long = torch.randint(49_152, (4, 128), generator=torch.Generator().manual_seed(0)).tolist()
begins = [96]*4
def naive():
    x = big(torch.tensor(long)).logits[:,:-1].log_softmax(-1)
    return x.gather(-1, torch.tensor(long)[:,1:,None])[:,95:,0]

(a,x),(b,y) = kept(naive),kept(lambda: answer_logprobs(big, long, begins, chunk=32)[0])
weights = sum(p.nbytes for p in big.parameters())
test_close(x.detach(), y.detach(), 1e-5)
assert b-weights<.05*a
f'{a/1e6:.0f} MB of the slow way, {b/1e6:.0f} MB of ours, {weights/1e6:.0f} MB of them weights'

# %% [markdown]
# In bfloat16 only the hidden states are rounded: the softmax over a vocabulary of 49 thousand is
# taken in float32, and a ratio of two probabilities is off by less than a thousandth. Taken in
# bfloat16 it would be off by percents.

# %%
g = torch.Generator().manual_seed(0)
h = torch.randn(64, 64, generator=g).bfloat16()
w = torch.randn(49_152, 64, generator=g).bfloat16()
want = torch.randint(49_152, (64,), generator=g)
exact = (h.double()@w.double().T).log_softmax(-1).gather(-1, want[:,None])[:,0]
ours, = _judge(h, w, None, want, 1., False)
rough = (h@w.T).log_softmax(-1).gather(-1, want[:,None])[:,0]
off = lambda x: (x.double()-exact).exp().sub(1).abs().max().item()
assert off(ours)<1e-3
with torch.autocast('cpu', torch.bfloat16): cast, = _judge(h, w, None, want, 1., False)
assert off(cast)<1e-3
off(ours), off(rough)


# %% [markdown]
# ## Scores
#
# A preference model is a trunk with one number on top, read at the last token of the text. It is
# transformers' own sequence classifier, so that anybody can load the folder. Its head begins
# small, with a standard deviation of $1/\sqrt{d+1}$, and is not the output layer.

# %%
#| export
def build_reward_model(
    lm:LM,
    seed:int=0,
)->nn.Module: # In evaluation mode: no dropout
    "A sequence classifier with one output, on a copy of a language model's trunk"
    from transformers import AutoModelForSequenceClassification
    config = copy.deepcopy(lm.model.config)
    config.num_labels = 1
    config.tie_word_embeddings = False
    config.pad_token_id = _filler(lm)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
        d = _score_head(model).weight.shape[1]
        nn.init.normal_(_score_head(model).weight, std=(d+1)**-.5)
    backbone(model).load_state_dict(backbone(lm.model).state_dict())
    return model.to(lm.device).eval()

def _filler(lm):
    t = lm.tokenizer
    return next((i for i in (t.pad_token_id, t.unk_token_id, t.eos_token_id) if i is not None), 0)

def _score_head(model):
    heads = [m for n,m in model.named_modules() if isinstance(m, nn.Linear) and m.out_features==1]
    if len(heads)!=1: raise ModelError(f'{type(model).__name__} has no single score head.')
    return heads[0]

def reward_scores(
    model,        # From `score_model`
    rows:list,    # Token ids of whole texts
    positions:list=None, # Place to read in each row; default: its last token
)->torch.Tensor:  # [row] float32, with gradient
    "The score of each text"
    device = next(model.parameters()).device
    h = backbone(model)(**pad_right(rows, device)).last_hidden_state
    positions = torch.tensor([len(r)-1 for r in rows] if positions is None else positions, device=device)
    return _score_head(model)(h[torch.arange(len(rows), device=device),positions]).float()[:,0]

def save_reward_model(model, tokenizer, folder):
    "A folder that `AutoModelForSequenceClassification` reads"
    call_quietly(model.save_pretrained, folder); tokenizer.save_pretrained(folder)

def load_reward_model(folder, device='cpu')->tuple: # The model, its tokenizer
    "Read such a folder"
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    if not (Path(folder)/'config.json').is_file():
        raise ModelError(f'{folder} holds no model: it has no config.json.')
    read = AutoModelForSequenceClassification.from_pretrained
    model = call_quietly(lambda: read(folder, dtype=torch.float32))
    return model.to(device).eval(),AutoTokenizer.from_pretrained(folder)


# %%
pm = build_reward_model(lm)
reward_scores(pm, rows)


# %% [markdown]
# A model whose score is the id of the token read shows where it is read: at the last token of
# each row, whatever fills the rectangle, even where that token is the one that fills or ends.

# %%
class Echo(nn.Module):
    base_model_prefix = 'trunk'
    def __init__(self):
        super().__init__()
        self.trunk = lambda input_ids, **_: SimpleNamespace(
            last_hidden_state=input_ids[...,None].float())
        self.score = nn.Linear(1, 1, bias=False)
        self.score.weight.data.fill_(1)

ended = [[5, 6, 7], [8], [9, tok.eos_token_id, 4, tok.eos_token_id], [3, tok.pad_token_id]]
test_eq(reward_scores(Echo(), ended).tolist(), [7, 8, tok.eos_token_id, tok.pad_token_id])
test_eq(reward_scores(Echo(), ended, [1, 0, 2, 0]).tolist(), [6, 8, 4, 3])

# %% [markdown]
# The score of a real trunk is that of the row by itself, whatever is put behind it, and it is
# the one that transformers reads from the saved folder.

# %%
behind = [[*rows[1], *rows[0]], [*rows[0], 7, 7, 9]]
ends = [len(rows[1])-1, len(rows[0])-1]
test_close(reward_scores(pm, behind, ends).detach(), reward_scores(pm, [rows[1], rows[0]]).detach(), 1e-6)
save_reward_model(pm, tok, tmp/'pm')
back,_ = load_reward_model(tmp/'pm')
for p,q in zip(pm.state_dict().values(), back.state_dict().values()): assert torch.equal(p, q)
for side in ('left', 'right'):
    ids,on = pad(rows, side)
    ids = ids.masked_fill(on==0, tok.pad_token_id)
    got = back(ids, attention_mask=on, position_ids=on.cumsum(-1).sub(1).clamp(0)).logits[:,0]
    test_close(got.detach(), reward_scores(pm, rows).detach(), 1e-5)

# %% [markdown]
# The trunk is a copy, and the head no part of the language model.

# %%
ptrs = {p.data_ptr() for p in lm.model.parameters()}
assert not ptrs & {p.data_ptr() for p in pm.parameters()}
wide = build_reward_model(small_llama(tok, layers=1, width=512))
test_close(_score_head(wide).weight.std().item(), 513**-.5, .004)
test_eq(*(reward_scores(pm, rows).tolist() for _ in range(2))) # No dropout
before = [p.clone() for p in lm.model.parameters()]
nn.init.ones_(_score_head(pm).weight)
for p,q in zip(lm.model.parameters(), before): assert torch.equal(p, q)


# %%
#| export
class ValueHead(nn.Module):
    "A value for every hidden state, 0 to begin with"
    def __init__(self,
        width:int, # Of the hidden states
    ):
        super().__init__()
        self.out = nn.Linear(width, 1)
        nn.init.zeros_(self.out.weight); nn.init.zeros_(self.out.bias)

    def forward(self, h): return self.out(h.float())[...,0]


# %%
test_eq(ValueHead(32)(answer_hidden(lm.model, rows, starts)[2]).detach().abs().sum().item(), 0)


# %% [markdown]
# ## Folders

# %%
#| export
def save_model(
    lm:LM,
    folder,
)->Path:
    "A folder that `load` and transformers read; a new one is seen whole or not at all"
    folder = Path(folder)
    part = folder if folder.exists() else folder.with_name(f'.{folder.name}.part')
    call_quietly(lm.model.save_pretrained, part); lm.tokenizer.save_pretrained(part)
    return part if part==folder else part.rename(folder)


# %%
again = load(save_model(lm, tmp/'mine'), 'float32', 'cpu')
test_eq(encode(again, text), encode(lm, text))
test_close(answer_logprobs(again.model, rows, starts)[0].detach(), lp.detach(), 1e-6)
again

# %%
#| hide
import shutil
shutil.rmtree(tmp)
