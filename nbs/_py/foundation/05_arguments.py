# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Arguments
#
# > Check the arguments of public functions and dataclasses before any work begins.

# %%
#| default_exp foundation.arguments

# %%
#| export
import functools, inspect, types, typing
from numbers import Integral, Real
from pathlib import Path

from moral_sc.foundation.errors import ConfigError, short_repr, unknown_name_message

# %%
#| hide
from dataclasses import dataclass
from fastcore.meta import delegates
from fastcore.test import *

# %% [markdown]
# A misspelt keyword, or a string where a number belongs, should cost no model that is loaded first, and its
# message should name the argument. `checked` binds the arguments of a call to its signature, and compares
# those that are annotated as numbers, strings or truth values with their type. Other libraries call
# some arguments differently; those names are answered with ours.

# %%
#| export
_synonyms = {
    'lr': 'learning_rate learningrate step_size',
    'epochs': 'num_train_epochs num_epochs n_epochs epoch',
    'batch': 'batch_size per_device_train_batch_size train_batch_size mini_batch_size bs',
    'batch_size': 'batch per_device_train_batch_size bs',
    'steps': 'max_steps num_steps n_steps total_steps iterations total_episodes',
    'warmup': 'warmup_steps num_warmup_steps', 'schedule': 'lr_scheduler_type scheduler',
    'max_grad_norm': 'grad_clip clip_grad_norm', 'weight_decay': 'wd',
    'out': 'output_dir out_dir output_path save_dir folder path',
    'max_new_tokens': 'max_completion_length max_length max_tokens response_length num_tokens',
    'num_generations': 'group_size num_return_sequences k', 'n': 'num_return_sequences',
    'kl_coef': 'beta init_kl_coef kl_penalty', 'cliprange': 'clip_range epsilon clip',
    'num_ppo_epochs': 'ppo_epochs num_iterations', 'every': 'save_steps',
    'reward': 'reward_funcs reward_fn reward_function reward_model reward_funcs',
    'lm': 'model policy', 'prompts': 'train_dataset dataset prompt questions',
    'rows': 'train_dataset dataset data examples', 'test': 'eval_dataset test_rows',
    'principles': 'constitution principle', 'comparisons': 'principles constitution',
    'rounds': 'num_rounds n_revisions revisions', 'few_shot': 'shots num_fewshot',
    'temperature': 'temp', 'seed': 'random_state random_seed rng', 'stop': 'stop_strings',
    'density': 'sparsity', 'progress': 'verbose progress_bar show_progress tqdm'}

def _nearest(name, known):
    "Return the argument that another library calls by this name"
    folded = name.lower().replace('-', '_')
    return next((k for k in known if folded in _synonyms.get(k, '').split()), None)

def unknown_argument_message(
    function:str, # Its name
    name:str,     # The unknown argument
    known:list,   # Its arguments
)->str:
    "Return the message for an unknown argument, with the nearest known one"
    nearest = _nearest(name, known)
    if nearest: return f'{function} has no argument {name!r}; did you mean {nearest!r}?'
    end = unknown_name_message('argument', name, known).split('; ', 1)[1]
    return f'{function} has no argument {name!r}; {end}'


# %%
unknown_argument_message('finetune', 'learning_rate', ['rows', 'lr', 'epochs'])


# %%
#| export
def _is_bool(x): return isinstance(x, bool) or type(x).__name__=='bool_'
def _is_int(x): return isinstance(x, Integral) and not _is_bool(x)
def _is_number(x): return isinstance(x, Real) and not _is_bool(x) and x==x
def _is_list(x): return all(hasattr(x, k) for k in ('__len__', '__iter__')) and \
    not isinstance(x, (str, bytes, dict))

_kinds = { # Annotation -> test, and what to give
    int: (_is_int, 'a whole number'), float: (_is_number, 'a number'),
    bool: (_is_bool, 'True or False'),
    str: (lambda x: isinstance(x, (str, Path)), 'a string'),
    Path: (lambda x: isinstance(x, (str, Path)), 'a path'),
    dict: (lambda x: isinstance(x, dict), 'a dict'), list: (_is_list, 'a list')}

MAX_SEED = 2**63-1

def check_seed(
    function:str, # Name of the function that takes it
    seed,
):
    "Raise an error unless a seed is a whole number from 0 to `MAX_SEED`"
    if not _is_int(seed) or not 0<=seed<=MAX_SEED:
        raise ConfigError(f'{function}: seed is {short_repr(seed)}; give a whole number from 0 to '
                          '2**63-1.')

def _alternatives(annotation):
    "Return the types that an annotation allows"
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return annotation,

def _check_type(function, p, value):
    "Raise an error if a value is not of the annotated type, where that is a simple one"
    kinds = _alternatives(p.annotation)
    if value is None and (p.default is None or type(None) in kinds): return
    if p.name=='seed': check_seed(function, value)
    known = [_kinds[k] for k in kinds if k in _kinds]
    if len(known)<len([k for k in kinds if k is not type(None)]): return
    if not known or any(test(value) for test,_ in known): return
    text = ' or '.join(text for _,text in known)
    default = f', such as {p.default!r}' if _has_default(p) and p.default not in (None, '') else ''
    raise ConfigError(f'{function}: {p.name} is {short_repr(value)}; give {text}{default}.')

def _has_default(p): return p.default is not p.empty

def check_items(
    name:str,    # Of the argument: 'items'
    values,
    kind:type,   # Of each value
    source:str,  # What makes such values: '`load_winogender`'
)->list:
    "Return values as a list, or raise an error for one of another type"
    if not _is_list(values):
        raise ConfigError(f'{name} is {short_repr(values)}; give a list, as from {source}.')
    for n,v in enumerate(values, 1):
        if isinstance(v, kind): continue
        raise ConfigError(f'Number {n} of {name} is {short_repr(v)}; give those of {source}.')
    return list(values)

def _bind(function, signature, args, kwargs):
    "Bind arguments to a signature; the error names the argument that does not fit"
    params = signature.parameters
    takes_any = any(p.kind==p.VAR_KEYWORD for p in params.values())
    names = [k for k,p in params.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for k in kwargs:
        if k not in names and not takes_any:
            raise ConfigError(unknown_argument_message(function, k, names))
    try: return signature.bind(*args, **kwargs)
    except TypeError: pass
    places = [k for k in names if params[k].kind!=inspect.Parameter.KEYWORD_ONLY]
    double = [k for k in places[:len(args)] if k in kwargs]
    if double: raise ConfigError(f'{function}: {double[0]} is given twice; give it once.')
    if len(args)>len(places):
        raise ConfigError(f'{function} takes {len(places)} arguments without a name '
                          f'({", ".join(places)}) and got {len(args)}; name the others.')
    lacking = [k for k in names if not _has_default(params[k]) and k not in kwargs
               and k not in places[:len(args)]]
    raise ConfigError(f'{function} needs {" and ".join(lacking)}: '
                      f'{function}({", ".join(k for k in names if not _has_default(params[k]))}).')

def checked(
    f, # A function, or a dataclass
):
    "Make a function or dataclass check its arguments; its signature stays"
    if inspect.isclass(f):
        f.__init__ = _checked(f.__init__, f.__name__, inspect.signature(f), 1)
        return f
    return _checked(f, f.__name__, inspect.signature(f))

def _checked(f, name, signature, n_self=0):
    @functools.wraps(f)
    def call(*args, **kwargs):
        bound = _bind(name, signature, args[n_self:], kwargs)
        for k,value in bound.arguments.items():
            p = signature.parameters[k]
            if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD): _check_type(name, p, value)
        return f(*args, **kwargs)
    call.__signature__ = inspect.signature(f) if n_self else signature
    return call


# %% [markdown]
# Annotations may allow several types, and `None` where it is the default. Numbers of numpy are numbers, `True`
# is none, and `nan` is refused. A tuple, an array or a table counts as a list, a string does not. A `seed` is at
# least 0 in every function.

# %%
@checked
def fit(rows:list, lr:float=1e-4, epochs:int=1, *, every:int|None=None, name:str=None,
        hard:bool=False):
    "Train"
    return len(rows), lr, epochs

fit([1, 2], 1, every=None)


# %%
@checked
@dataclass(frozen=True)
class Options:
    "Options of a training"
    lr:float=1e-4
    mode:str='plain'
    seed:int=0

faults = {
    lambda: fit([], learning_rate=1): "fit has no argument 'learning_rate'; did you mean 'lr'?",
    lambda: fit([], num_train_epochs=1): "did you mean 'epochs'?",
    lambda: fit([], evry=1): "did you mean 'every'?",
    lambda: fit([], zzzz=1): 'known are: epochs, every, hard, lr, name, rows.',
    lambda: fit([], epochs='two'): "fit: epochs is 'two'; give a whole number, such as 1.",
    lambda: fit([], epochs=1.5): 'epochs is 1.5; give a whole number',
    lambda: fit([], epochs=True): 'epochs is True; give a whole number',
    lambda: fit([], lr=float('nan')): 'lr is nan; give a number, such as 0.0001.',
    lambda: fit([], every='x'): "every is 'x'; give a whole number.",
    lambda: fit([], hard='no'): "hard is 'no'; give True or False, such as False.",
    lambda: fit([], name=[7]*99): 'name is a list of 99; give a string.',
    lambda: fit('a.csv'): "fit: rows is 'a.csv'; give a list.",
    lambda: fit(7): 'fit: rows is 7; give a list.',
    lambda: fit({}): 'fit: rows is {}; give a list.',
    lambda: fit(): 'fit needs rows: fit(rows).',
    lambda: fit([], lr=1, rows=[]): 'rows is given twice',
    lambda: fit([], 1, 1, 1): 'fit takes 3 arguments without a name (rows, lr, epochs) and got 4',
    lambda: Options(learning_rate=1): "Options has no argument 'learning_rate'; did you mean 'lr'?",
    lambda: Options(seed=-1): 'Options: seed is -1; give a whole number from 0 to 2**63-1.',
    lambda: Options(mode=7): "Options: mode is 7; give a string, such as 'plain'."}
for call,message in faults.items():
    with expect_fail(ConfigError, contains=message): call()
len(faults)

# %% [markdown]
# `check_items` checks a list of objects of one class.

# %%
with expect_fail(ConfigError, contains='Number 2 of options is 3; give those of `Options`.'):
    check_items('options', [Options(), 3], Options, '`Options`')
with expect_fail(ConfigError, contains='options is None; give a list, as from `Options`.'):
    check_items('options', None, Options, '`Options`')


# %% [markdown]
# A function that passes its keywords on shows those of the other function, by fastcore's `delegates`, and its
# errors bear its own name.

# %%
@checked
@delegates(fit)
def finetune(rows, out=None, **kwargs): return fit(rows, **kwargs)

with expect_fail(ConfigError, contains="finetune has no argument 'learning_rate'"):
    finetune([], learning_rate=1)
with expect_fail(ConfigError, contains="finetune: every is 'x'"): finetune([], every='x')
inspect.signature(finetune)

# %%
#| hide
import numpy as np

test_eq(fit([1], np.float32(.5), np.int64(2)), (1, .5, 2))
test_eq((fit.__name__, fit.__doc__, Options().lr), ('fit', 'Train', 1e-4))
test_eq(list(inspect.signature(Options).parameters), ['lr', 'mode', 'seed'])
def fails(): return checked(lambda x: x+'a')(1)
with expect_fail(TypeError): fails()
