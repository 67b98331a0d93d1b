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
#| default_exp language.heads

# %%
#| export
import copy
from pathlib import Path

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from moral_sc.foundation.errors import ConfigError, ModelError
from moral_sc.language.models import LM, pad

# %%
#| hide
import tempfile
import numpy as np
from fastcore.test import *
from moral_sc.language.models import decode, encode, load
from moral_sc.language.oracle import lookup, random_model
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

def small_lm(
    tokenizer,
    layers:int=4,
    width:int=128,
    heads:int=4,
    seed:int=0,
    context:int=512, # Longest text, in tokens
    name:str='',
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
    return LM(model, tokenizer, name or f'small-{layers}x{width}', f'random weights, seed {seed}')


# %%
words = 'is it far tea the cup . ? , yes no'.split()
tok = word_tokenizer(words)
text = '\n\nHuman: is it far?\n\nAssistant: no, the tea is far.'
lm = small_lm(tok, layers=2, width=32)
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
def trunk(model):
    "The part of a causal or a scoring model below its head"
    return getattr(model, model.base_model_prefix)

def rectangle(
    rows:list, # Token ids
    device,
)->dict:       # input_ids, attention_mask: padded on the right
    "What a model's `forward` takes"
    ids,mask = pad(rows, 'right', device)
    return dict(input_ids=ids, attention_mask=mask, use_cache=False)

def _judge(h, weight, bias, want, temperature, entropy):
    "Log-probability of one token a row of hidden states, in float32; and the entropy"
    x = nn.functional.linear(h.float(), weight.float(), None if bias is None else bias.float())
    lp = (x/temperature).log_softmax(-1)
    own = lp.gather(-1, want[:,None])[:,0]
    return own,(-(lp.exp()*lp).sum(-1) if entropy else own.new_zeros(own.shape))

def _judged(model, h, want, temperature, chunk, entropy):
    out = model.get_output_embeddings()
    args = out.weight,getattr(out, 'bias', None)
    parts = [checkpoint(_judge, a, *args, b, temperature, entropy, use_reentrant=False)
             for a,b in zip(h.split(chunk), want.split(chunk))]
    return [torch.cat(x) for x in zip(*parts)]

def answer_hidden(
    model,              # A transformers causal model
    rows:list,          # Ids of prompt and answer
    starts:list,        # Where each answer begins, 1 or more
    temperature:float=1.,
    chunk:int=1024,     # Places whose logits exist at one time
    entropy:bool=False,
)->tuple: # log p [row, token], mask [row, token], hidden states [row, token, width], entropy
    "What a loss on answers needs, with gradient; 0 behind the end of an answer"
    device = next(model.parameters()).device
    h = trunk(model)(**rectangle(rows, device)).last_hidden_state
    n = [len(r)-s for r,s in zip(rows, starts)]
    if min(n)<1: raise ConfigError(f'Row {n.index(min(n))} has no answer to learn from.')
    mask = torch.arange(max(n), device=device)<torch.tensor(n, device=device)[:,None]
    at = (torch.tensor(starts, device=device)[:,None]-1+torch.arange(max(n), device=device))
    at = at.clamp(max=h.shape[1]-1)
    before = h.gather(1, at[:,:,None].expand(-1, -1, h.shape[2]))
    want = torch.tensor([t for r,s in zip(rows, starts) for t in r[s:]], device=device)
    lp,e = _judged(model, before[mask], want, temperature, chunk, entropy)
    fill = lambda x: x.new_zeros(mask.shape).masked_scatter(mask, x)
    return fill(lp),mask,before,fill(e)

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
# The slow way, with all logits, gives the same numbers and the same gradient; the fast one
# without a gradient is [the scorer's](30_scoring.ipynb).

# %%
def slow(model, rows, starts, temperature):
    res = []
    for r,s in zip(rows, starts):
        x = model(torch.tensor([r])).logits[0].double()/temperature
        res.append(x.log_softmax(-1)[range(s-1, len(r)-1), r[s:]])
    return res

def gradient(total, model):
    model.zero_grad()
    total.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])

for arch in ('llama', 'qwen3', 'gemma3', 'neox'):
    m = random_model(arch)
    rs = [encode(m, 'It is (a) far.'), encode(m, 'No.'), encode(m, 'A longer row, say.')]
    ss = [3, 2, 9]
    for T in (1., .7):
        fast,mask = answer_logprobs(m.model, rs, ss, T, chunk=5)
        want = slow(m.model, rs, ss, T)
        test_close(fast[mask].detach(), torch.cat(want).detach(), 1e-5)
        a = gradient(fast.sum(), m.model)
        b = gradient(torch.cat(want).sum(), m.model)
        assert (a-b).norm()<1e-4*b.norm(), arch
test_close(np.concatenate(token_logprobs(m, rs, ss)),
           torch.cat(slow(m.model, rs, ss, 1.)).detach().numpy(), 1e-5)

# %% [markdown]
# A row is the same alone and among others, and a prompt's own tokens are no part of any loss.

# %%
alone = [answer_logprobs(m.model, [r], [s])[0][0] for r,s in zip(rs, ss)]
fast,mask = answer_logprobs(m.model, rs, ss)
for a,f,k in zip(alone, fast, mask): test_close(a.detach(), f[k].detach(), 1e-5)
test_eq(mask.sum(1).tolist(), [len(r)-s for r,s in zip(rs, ss)])

# %% [markdown]
# In bfloat16 only the hidden states are rounded: the softmax over a vocabulary of 49 thousand is
# taken in float32, and a ratio of two probabilities is off by less than a thousandth. Taken in
# bfloat16 it would be off by percents.

# %%
g = torch.Generator().manual_seed(0)
h,w = torch.randn(64, 64, generator=g).bfloat16(),torch.randn(49_152, 64, generator=g).bfloat16()
want = torch.randint(49_152, (64,), generator=g)
exact = (h.double()@w.double().T).log_softmax(-1).gather(-1, want[:,None])[:,0]
ours,_ = _judge(h, w, None, want, 1., False)
rough = (h@w.T).log_softmax(-1).gather(-1, want[:,None])[:,0]
off = lambda x: (x.double()-exact).exp().sub(1).abs().max().item()
assert off(ours)<1e-3
off(ours), off(rough)


# %% [markdown]
# ## Scores
#
# A preference model is a trunk with one number on top, read at the last token of the text. It is
# transformers' own sequence classifier, so that anybody can load the folder. Its head begins
# small, with a standard deviation of $1/\sqrt{d+1}$, and is not the output layer.

# %%
#| export
def score_model(
    lm:LM,
    seed:int=0,
)->nn.Module: # In evaluation mode: no dropout
    "A sequence classifier with one output, on a copy of a language model's trunk"
    from transformers import AutoModelForSequenceClassification
    config = copy.deepcopy(lm.model.config)
    config.num_labels,config.tie_word_embeddings = 1, False
    config.pad_token_id = _filler(lm)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
        d = _score_head(model).weight.shape[1]
        nn.init.normal_(_score_head(model).weight, std=(d+1)**-.5)
    trunk(model).load_state_dict(trunk(lm.model).state_dict())
    return model.to(lm.device).eval()

def _filler(lm):
    t = lm.tokenizer
    return next((i for i in (t.pad_token_id, t.unk_token_id, t.eos_token_id) if i is not None), 0)

def _score_head(model):
    heads = [m for n,m in model.named_modules() if isinstance(m, nn.Linear) and m.out_features==1]
    if len(heads)!=1: raise ModelError(f'{type(model).__name__} has no single score head.')
    return heads[0]

def scores(
    model,        # From `score_model`
    rows:list,    # Token ids of whole texts
    at:list=None, # Place to read in each row; default: its last token
)->torch.Tensor:  # [row] float32, with gradient
    "The score of each text"
    device = next(model.parameters()).device
    h = trunk(model)(**rectangle(rows, device)).last_hidden_state
    at = torch.tensor([len(r)-1 for r in rows] if at is None else at, device=device)
    return _score_head(model)(h[torch.arange(len(rows), device=device),at]).float()[:,0]

def save_scores(model, tokenizer, folder):
    "A folder that `AutoModelForSequenceClassification` reads"
    model.save_pretrained(folder); tokenizer.save_pretrained(folder)

def load_scores(folder, device='cpu')->tuple: # The model, its tokenizer
    "Read such a folder"
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    if not (Path(folder)/'config.json').is_file():
        raise ModelError(f'{folder} holds no model: it has no config.json.')
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    return model.to(device).eval(),AutoTokenizer.from_pretrained(folder)


# %%
pm = score_model(lm)
scores(pm, rows)

# %% [markdown]
# The number is that of the row by itself, whatever is put behind it, and that which transformers
# reads from the saved folder.

# %%
long = [*rows[1], *rows[0]]
test_close(scores(pm, [long, rows[0]], [len(rows[1])-1, len(rows[0])-1]).detach(),
           scores(pm, [rows[1], rows[0]]).detach(), 1e-6)
save_scores(pm, tok, tmp/'pm')
back,_ = load_scores(tmp/'pm')
kw = {k: v for k,v in rectangle(rows, 'cpu').items()}
test_close(back(**{**kw, 'input_ids': kw['input_ids'].masked_fill(
    kw['attention_mask']==0, tok.pad_token_id)}).logits[:,0].detach(),
    scores(pm, rows).detach(), 1e-5)

# %% [markdown]
# The trunk is a copy, and the head no part of the language model.

# %%
ptrs = {p.data_ptr() for p in lm.model.parameters()}
assert not ptrs & {p.data_ptr() for p in pm.parameters()}
wide = score_model(small_lm(tok, layers=1, width=512))
test_close(_score_head(wide).weight.std().item(), 513**-.5, .004)
test_eq(*(scores(pm, rows).tolist() for _ in range(2))) # No dropout


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
def save(
    lm:LM,
    folder,
)->Path:
    "A folder that `load` and transformers read"
    folder = Path(folder)
    lm.model.save_pretrained(folder); lm.tokenizer.save_pretrained(folder)
    return folder


# %%
again = load(save(lm, tmp/'mine'), 'float32', 'cpu')
test_eq(encode(again, text), encode(lm, text))
test_close(answer_logprobs(again.model, rows, starts)[0].detach(), lp.detach(), 1e-6)
again

# %%
#| hide
import shutil
shutil.rmtree(tmp)
