# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Bench
#
# > How much sooner labels, revisions and steps of training are done than by what one would
# > otherwise run.

# %%
#| default_exp benchmarks.rlaif

# %%
#| export
import copy, json, os, re, subprocess, sys, tempfile
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from time import perf_counter, process_time
from types import SimpleNamespace

import numpy as np, pandas as pd, torch
from moral_sc.constitution.feedback import (LETTERS, Labeller, combine_readings, label,
                                            load_comparisons, load_worked_comparisons)
from moral_sc.constitution.rl.trainer import RLTrainer, RLConfig
from moral_sc.constitution.preference import PreferenceModel
from moral_sc.constitution.principles import draw_principles, load_principles
from moral_sc.constitution.prompts import render_prompt, load_prompts
from moral_sc.constitution.revision import RevisionChains, load_few_shot, revise, STOPS
from moral_sc.constitution.rl.rollouts import rollout_logprobs, generate_rollouts
from moral_sc.foundation.datasets import data_dir
from moral_sc.foundation.errors import ConfigError, ModelError, unknown_name_message
from moral_sc.foundation.runs import provenance
from moral_sc.language.reward_head import build_reward_model
from moral_sc.language.engine.batch_invariant import batch_invariant
from moral_sc.language.loading import load
from moral_sc.language.models import LM, decode, eos_ids
from moral_sc.language.stub_models import random_model
from moral_sc.language.engine.batching import count_tokens
from moral_sc.language.generation import sample
from moral_sc.language.engine.allocator import retain_freed_memory

# %%
#| hide
from fastcore.test import *
torch.set_num_threads(1)


# %% [markdown]
# Constitutional AI spends its hours on three things: reading comparisons, writing critiques
# and revisions, and training a policy. Each is measured beside what one would otherwise run,
# with the same weights in float32, the same prompts and the same threads. The two sides take
# turns; a ratio is the median over the turns with its range. Where sides write texts of
# different length, useful tokens a second are compared: those up to where an answer ends, and
# none of padding.
#
# ## What is asked
#
# Requests of [our own set](../constitution/12_prompts.ipynb), and for comparisons two answers to each, which the
# model itself gives at temperature 1.

# %%
#| export
@dataclass
class Setting:
    "What both sides work on"
    lm:LM
    prompts:list       # Rows with `id` and `text`
    pairs:list         # Rows with `id`, `prompt`, `a`, `b`
    size:dict=field(default_factory=dict) # Of the work, by row
    threads:int=1
    python:dict=field(default_factory=dict) # Interpreters that have TRL

def _requests(n):
    "Requests of both kinds in turns"
    both = zip(load_prompts('helpful'), load_prompts('red_team'))
    return [p for two in both for p in two][:n]

def setting(
    lm,              # An `LM`, or a name or folder to load
    n:int=80,        # Prompts
    new:int=48,      # Tokens of an answer that is compared, at most
    **kw
)->Setting:
    "A model, prompts, and two answers to each"
    lm = load(lm, 'float32', 'cpu') if isinstance(lm, (str,Path)) else lm
    prompts = _requests(n)
    asks = [render_prompt(lm, p['text'], form(lm)) for p in prompts for _ in 'ab']
    said = [s.text.strip() for s in sample(lm, asks, new)]
    pairs = [dict(id=p['id'], prompt=p['text'], a=a, b=b)
             for p,a,b in zip(prompts, said[::2], said[1::2])]
    return Setting(lm, prompts, [r for r in pairs if r['a']!=r['b']], **kw)

def form(lm): return 'chat' if lm.tokenizer.chat_template else 'plain'


# %%
small = random_model('llama')
small.model.config.max_position_embeddings = 8192 # It reads bytes
tiny = setting(small, 4, 8)
len(tiny.prompts), tiny.pairs[0]['prompt']


# %% [markdown]
# ## Labels
#
# What one would write: all questions of all pairs as texts up to ` (`, padded on the left in
# batches, one forward pass each, the output layer at the last position only, and the
# probability of `A` against `B` there. It reads the same questions as `label`. The closing
# bracket is not read, for which a careful person would have to run each text twice; how far
# the labels are apart for it is recorded as `gap`.

# %%
#| export
def _tokens(lm, texts):
    "Padded on the left, as `generate` and a last position want it"
    tok = copy.copy(lm.tokenizer)
    if tok.pad_token is None: tok.pad_token = tok.eos_token
    tok.padding_side = 'left'
    return tok(texts, return_tensors='pt', padding=True).to(lm.device)

@torch.inference_mode()
def padded(
    lm, texts,
    ids:list,  # Tokens to compare
    size:int,  # Texts in a batch
)->np.ndarray: # [text, token] log-probabilities
    "The next token after each text, by transformers alone"
    res = []
    for k in range(0, len(texts), size):
        x = lm.model(**_tokens(lm, texts[k:k+size]), logits_to_keep=1, use_cache=False)
        res.append(x.logits[:,-1].float().log_softmax(-1)[:,ids].numpy())
    return np.concatenate(res)

def _questions(lm, pairs, **how):
    "The texts that `label` asks with the same settings"
    lab = Labeller(lm, load_comparisons(), load_worked_comparisons(), cot=False, mode='plain', seed=0,
                    prefixes=4, **how)
    texts = [[q if isinstance(q, str) else q.text for q in lab.questions(r)] for r in pairs]
    return lab,texts

def _split(lm):
    "What comes before the letter, and the letters' tokens"
    ids = [lm.tokenizer(x, add_special_tokens=False).input_ids for x in LETTERS]
    n = next(k for k,(a,b) in enumerate(zip(*ids)) if a!=b)
    return lm.tokenizer.decode(ids[0][:n]),[x[n] for x in ids]

def labelled_by_transformers(per, swap):
    "Their side: one forward pass a question"
    def side(s, pairs, size):
        def go():
            lab,texts = _questions(s.lm, pairs, per=per, swap=swap)
            before,ids = _split(s.lm)
            with count_tokens(s.lm) as n:
                lp = padded(s.lm, [t+before for x in texts for t in x], ids, size)
            A = 1/(1+np.exp(lp[:,1]-lp[:,0]))
            k = 0
            res = []
            for r,x in zip(pairs, texts):
                each = A[k:k+len(x)].reshape(-1, len(lab.orders(r))); k += len(x)
                res.append(np.where(lab.orders(r), 1-each, each).mean())
            return dict(units=len(pairs), p=res, tokens=sum(n))
        return go
    return side

def labelled(per, swap):
    "Our side"
    def side(s, pairs, size):
        def go():
            with count_tokens(s.lm) as n:
                rows = label(s.lm, pairs, principles_per_pair=per, swap=swap, max_tokens=size)
            return dict(units=len(pairs), p=[r['p'] for r in rows], tokens=sum(n))
        return go
    return side


# %%
a,b = (f(1, False)(tiny, tiny.pairs, n)() for f,n in ((labelled_by_transformers,2),
                                                     (labelled,4096)))
assert b['tokens']<a['tokens']
np.round([a['p'], b['p']], 3)


# %% [markdown]
# With both letters written out and read in full, the two sides agree to rounding:

# %%
#| export
@torch.inference_mode()
def written_out(lm, pairs, per=1, swap=False)->list:
    "Labels with every letter's text run whole, one by one"
    lab,texts = _questions(lm, pairs, per=per, swap=swap)
    def lp(text, letter):
        ids = lm.tokenizer(text+letter).input_ids
        n = len(lm.tokenizer(text).input_ids)
        x = lm.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        return sum(x[i-1,ids[i]].item() for i in range(n, len(ids)))
    return [combine_readings(np.array([[[lp(t, l) for l in LETTERS]] for t in x]), lab.orders(r))[0]
            for r,x in zip(pairs, texts)]


# %%
for how in dict(per=1, swap=False), dict(per=2, swap=True):
    a = written_out(tiny.lm, tiny.pairs[:1], **how)
    b = labelled(**how)(tiny, tiny.pairs[:1], 4096)()['p']
    test_close(a, b, 1e-4)
np.round(a, 4)


# %% [markdown]
# ## Chains of critique and revision
#
# The same rounds, worked examples and principles, and in the middle `generate` of transformers:
# a batch padded on the left, the whole dialogue read from its beginning for every part, stopped
# where a new turn begins, and all rows at the same part. Both sides take the likeliest token, so that they write the same
# texts; `same` says on how many parts they agree to the letter. Rounding differs between
# batches of different shape, and a chain that once differs goes on differing.

# %%
#| export
def _upto(ids, ends): return ids[:next((i for i,t in enumerate(ids) if t in ends), None)]

@torch.inference_mode()
def generated(
    lm, texts,
    new:int,  # Tokens of each, at most
    size:int, # Texts in a batch
)->list:      # Each has a `text` and a `finish`
    "What comes after each text, by `generate`"
    ends = eos_ids(lm)
    res = []
    for k in range(0, len(texts), size):
        kw = _tokens(lm, texts[k:k+size])
        out = lm.model.generate(**kw, max_new_tokens=new, do_sample=False,
            stop_strings=list(STOPS), tokenizer=lm.tokenizer,
            pad_token_id=lm.tokenizer.eos_token_id)
        said = [decode(lm, _upto(x, ends)) for x in out[:,kw.input_ids.shape[1]:].tolist()]
        res += [SimpleNamespace(text=re.split('|'.join(map(re.escape, STOPS)), x)[0],
                                finish='stop') for x in said]
    return res

def _told(s, rows):
    "Every text of every chain, and their tokens"
    parts = [[r['response']]+[x[k] for x in r['rounds'] for k in ('critique', 'revision')]
             for r in rows]
    flat = [t for x in parts for t in x]
    return dict(units=sum(map(len, s.lm.tokenizer(flat).input_ids)), texts=flat)

def chained_by_generate(s, prompts, size):
    "Their side"
    rounds,new = (s.size['chains'][k] for k in ('rounds', 'new'))
    def go():
        rows = [dict(id=p['id'], prompt=p['text']) for p in prompts]
        drawn = [draw_principles(load_principles(), rounds, 0, r['id']) for r in rows]
        c = RevisionChains(s.lm, rows, drawn, load_few_shot(), True, 'plain')
        said = [[] for _ in rows]
        c.set_answers(generated(s.lm, c.first_prompts()[1], new, size))
        while (asks := [c.next(i, x) for i,x in enumerate(said)])[0]:
            texts = generated(s.lm, [a for _,a in asks], new, size)
            for x,t in zip(said, texts): x.append(t)
        return _told(s, rows)
    return go

def chained(s, prompts, size):
    "Our side"
    rounds,new = (s.size['chains'][k] for k in ('rounds', 'new'))
    return lambda: _told(s, revise(s.lm, prompts, rounds=rounds, temperature=0.,
                                   max_new_tokens=new))


# %%
tiny.size = dict(chains=dict(rounds=2, new=6))
a,b = (f(tiny, tiny.prompts[:2], 2)() for f in (chained_by_generate, chained))
test_eq(a['texts'], b['texts'])
len(a['texts']), a['units']


# %% [markdown]
# ## Steps of training
#
# TRL of two versions stands for what one would otherwise train with: its PPO, which has left the
# library's main part, and its RLOO. They need environments of their own:
#
# ```sh
# python -m venv trl-ppo && trl-ppo/bin/pip install moral_sc "trl==1.9.2"
# python -m venv trl-rloo && trl-rloo/bin/pip install moral_sc "trl==1.16.0"
# ```
#
# Each side runs in a process of its own, ours in the same environment as theirs. A process
# loads the model and then takes a step whenever it is told to: TRL through a callback that
# waits at the end of each step. What we do not do is switched off: gradient checkpointing,
# mixed precision, tables of samples, logging to services, saving. Both use the same prompts,
# sample at temperature 1 to the end token or the limit, and score with the same reward model.
#
# Most rows ask for an answer in one sentence. Those have some thirty tokens, and the longest
# three times as many, as answers differ in a real run; TRL pads them all to the longest, in
# sampling and in every pass that follows. `full` is the other extreme: open questions and a limit
# of 48 tokens that nearly every answer meets, so that there is no padding to be saved. A whole
# step of PPO has eight answers: with sixteen, TRL's took more than thirteen gigabytes and was
# killed on a machine of 23.

# %%
#| export
class Turns:
    "In the process that works: wait for a word, work, tell what it took"
    def begin(self):
        if not sys.stdin.readline(): os._exit(0)
        self.peak = Peak()
        self.t = perf_counter()
        self.c = process_time()

    def end(self, **told):
        told = dict(seconds=perf_counter()-self.t, cpu=process_time()-self.c, **told)
        print('@'+json.dumps(told), flush=True)

class Peak:
    "How far the memory of this process rises above what it is now"
    def __init__(self):
        Path('/proc/self/clear_refs').write_text('5') # The highest mark is set to here
        self.before = self.read('VmRSS')

    def read(self, name):
        return int(re.search(rf'{name}:\s+(\d+)', Path('/proc/self/status').read_text())[1])*1024

    def __call__(self): return self.read('VmHWM')-self.before


# %%
if Path('/proc/self/clear_refs').exists():
    peak = Peak()
    x = torch.ones(2**22)
    del x
    print(f'{peak()/2**20:.0f} MiB') # Sixteen were taken and given back


# %% [markdown]
# Ours:

# %%
#| export
def _given(model):
    "A model by name, or 'tiny'; every weight is read once, so that it is in memory"
    lm = random_model('llama') if model=='tiny' else load(model, 'float32', 'cpu')
    sum(p.sum().item() for p in lm.model.parameters())
    return lm

def _asked(n, tail):
    return [p|dict(text=p['text']+tail) for p in _requests(n)]

def our_steps(turns, model, batch, new, tail='', inner=1, critic='separate', copies=1,
              only=False):
    "Steps of our PPO"
    lm = _given(model)
    c = RLConfig(batch=batch, copies=copies, max_new_tokens=new, inner=inner,
                     critic=critic, mode=form(lm), lr=1e-6, steps=10**6, kl=.05)
    learner = RLTrainer(lm, PreferenceModel(build_reward_model(lm), lm, form(lm)), c)
    asked = _asked(batch//copies, tail)
    collect = learner.collect
    rise = []
    def watched(*args):
        b = collect(*args)
        rise.append(turns.peak())
        return b
    learner.collect = watched
    with batch_invariant(lm.model), nullcontext() if only else retain_freed_memory(): # As `train_policy` does
        for k in count():
            turns.begin()
            if only: row = _seen(learner, learner.collect(asked, k), rise, turns)
            else: row = learner.step(asked, k)
            turns.end(units=row['length']*batch, rise=rise[-1], ratio=row.get('ratio'))


def _seen(learner, b, rise, turns):
    "A rollout with its values, and no step"
    learner.valued(b.r)
    rise.append(turns.peak())
    return dict(length=float(b.r.mask.sum())/len(b.r))


# %% [markdown]
# TRL's PPO. Its rollout ends where the model is first called with a gradient, which is where the
# memory of the rollout is read. It samples until all answers have ended, and trains on a mask of
# what came before the end token; only that is useful.

# %%
#| export
class _Waits:
    "A callback of TRL's trainers that waits for its turn"
    def __init__(self, turns, told): self.turns,self.told = turns,told
    def on_train_begin(self, *args, **kw): self.turns.begin()
    def on_step_end(self, *args, **kw):
        self.turns.end(**self.told())
        self.turns.begin()
    def __getattr__(self, name):
        if not name.startswith('on_'): raise AttributeError(name)
        return lambda *args, **kw: None

def _padder(lm):
    "Its tokenizer, padding with a token that ends nothing"
    tok = copy.copy(lm.tokenizer)
    if tok.pad_token_id in (None, tok.eos_token_id): tok.pad_token = tok.unk_token
    tok.padding_side = 'left'
    return tok

_plain = dict(bf16=False, gradient_checkpointing=False, use_cpu=True, report_to='none',
              save_strategy='no', logging_strategy='no', disable_tqdm=True, learning_rate=1e-6,
              lr_scheduler_type='constant', temperature=1.)

def _useful(ids, end):
    "Tokens up to the end token, itself among them"
    over = (ids==end).long().cumsum(1)-(ids==end).long() # 0 up to there
    return int((over==0).sum())

def trl_ppo(turns, model, batch, new, tail='', inner=1, only=False):
    "Steps of TRL's PPO"
    os.environ['TRL_EXPERIMENTAL_SILENCE'] = '1'
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer
    lm = _given(model)
    seen = {}
    tok = _padder(lm)
    asks = [render_prompt(lm, p['text'], form(lm)) for p in _asked(batch, tail)]
    here = tempfile.mkdtemp() # All may end before `new`
    begin = max(len(a.ids) for a in asks)
    args = PPOConfig(output_dir=here, per_device_train_batch_size=batch, num_mini_batches=1,
        gradient_accumulation_steps=1, num_ppo_epochs=inner, total_episodes=batch*10**6,
        response_length=new, stop_token='eos', num_sample_generations=0, kl_coef=.05,
        **_plain)
    data = Dataset.from_list([dict(input_ids=list(a.ids)) for a in asks])
    t = PPOTrainer(args, tok, copy.deepcopy(lm.model), copy.deepcopy(lm.model),
        build_reward_model(lm), data, build_reward_model(lm), eval_dataset=data,
        callbacks=[_Waits(turns, lambda: seen)])
    def first(module, args, kw):
        seen.update(rise=turns.peak(), units=_useful(kw['input_ids'][:,begin:], tok.eos_token_id))
        if only: turns.end(**seen); turns.begin()
    t.model.register_forward_pre_hook(first, with_kwargs=True)
    t.train()

def trl_rloo(turns, model, batch, new, tail='', copies=2):
    "Steps of TRL's RLOO"
    from datasets import Dataset
    from trl import RLOOConfig, RLOOTrainer
    lm = _given(model)
    seen = {}
    score = PreferenceModel(build_reward_model(lm), lm, form(lm))
    if not lm.model.config._name_or_path: # From where TRL reads its reference
        lm.model.config._name_or_path = tempfile.mkdtemp()
        lm.model.save_pretrained(lm.model.config._name_or_path)
    asked = _asked(batch//copies, tail)
    texts = {render_prompt(lm, p['text'], form(lm)).text: p['text'] for p in asked}
    def reward(prompts, completions, completion_ids, **kw):
        seen['units'] = sum(map(len, completion_ids))
        return score([texts[p] for p in prompts], completions).tolist()
    args = RLOOConfig(output_dir=tempfile.mkdtemp(), per_device_train_batch_size=batch,
        gradient_accumulation_steps=1, num_generations=copies, max_completion_length=new,
        max_steps=10**6, beta=.05, num_iterations=1, **_plain)
    data = Dataset.from_list([dict(prompt=t) for t in texts])
    RLOOTrainer(lm.model.requires_grad_(True), reward, args, data, processing_class=_padder(lm),
                callbacks=[_Waits(turns, lambda: seen)]).train()

workers = dict(ours=our_steps, trl_ppo=trl_ppo, trl_rloo=trl_rloo)

def serve(name, threads, **kw):
    "What a process that works runs"
    torch.set_num_threads(threads)
    workers[name](Turns(), **kw)


# %%
test_eq(_useful(torch.tensor([[5,2,2,7], [5,6,7,8], [2,5,5,2]]), 2), 2+4+1)


# %% [markdown]
# In this process, a turn is a line to the other and the line that comes back. A process that
# dies is quoted.

# %%
#| export
class Worker:
    "Another process that takes steps when asked"
    def __init__(self, python, name, threads, **kw):
        code = ('import sys, json; from moral_sc.benchmarks.rlaif import serve; '
                'serve(**json.loads(sys.argv[1]))')
        env = os.environ|dict(OMP_NUM_THREADS=str(threads), TOKENIZERS_PARALLELISM='false')
        self.log = tempfile.TemporaryFile('w+')
        told = json.dumps(dict(name=name, threads=threads, **kw))
        self.child = subprocess.Popen([str(python), '-c', code, told], text=True, env=env, # noqa: S603
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log)

    def __call__(self):
        try: self.child.stdin.write('go\n'); self.child.stdin.flush()
        except BrokenPipeError: pass
        for line in self.child.stdout:
            if line[0]=='@': return json.loads(line[1:])
        self.child.wait(); self.log.seek(0)
        raise ModelError('The process that was measured died; it last said: '
                         +self.log.read()[-1500:].strip())

    def close(self):
        self.child.stdin.close()
        try: self.child.wait(10)
        except subprocess.TimeoutExpired: self.child.kill()


# %%
step = Worker(sys.executable, 'ours', 1, model='tiny', batch=4, new=6)
told = [step() for _ in range(2)]
step.close()
test_close(told[0]['ratio'], 1., 1e-5)
told[1]


# %% [markdown]
# ## Rows
#
# `floor` and `aim` are the ratios that this project set itself before it measured them. A row of
# texts runs here, with each side at the batch size that suits it; a row of steps runs in
# processes. `works` is how much each row has to do: all pairs, and fewer where each has thirty-two
# questions. It matters: worked examples stand in one of four orders and are read once for all pairs
# that have the same, so that few pairs share less than a whole set of them does.

# %%
#| export
@dataclass(frozen=True)
class Row:
    "One comparison"
    against:str
    theirs:object       # A side, or the name of a worker
    ours:object
    floor:float
    aim:float
    what:str='units'    # Compared: 'units' a second, or 'rise' of memory
    sizes:tuple=((4,8,16), (4096,))  # Batch sizes to choose from, theirs and ours
    works:int|None=None # Prompts or pairs in a turn; None: all
    texts:int=1         # Of each of them, for the trial of batch sizes
    alike:str=''        # What both sides must agree on
    python:str=''       # Which environment it needs
    options:tuple=({}, {}) # Of the workers
    cuda:bool=False

_trl = 'TRL 1.9 PPO','TRL 1.16 RLOO, 2 generations'
_step = dict(batch=16, new=96, tail=' Answer in one sentence.')
_full = dict(batch=8, new=48)
_half = _step|dict(batch=8)
_wide = _step|dict(only=True)
rows = {
    'labels': Row('transformers, one principle, one order', labelled_by_transformers(1, False),
                  labelled(1, False), 2.5, 4, alike='p'),
    'ensemble': Row('transformers, 16 principles, both orders',
                    labelled_by_transformers('all', True), labelled('all', True), 6, 9,
                    works=8, texts=32, alike='p'),
    'chains': Row('generate, 4 rounds', chained_by_generate, chained, 3, 5, works=16,
                  sizes=((16,), (16,)), alike='texts'),
    'ppo': Row(f'{_trl[0]}, separate critic, K = 1', 'trl_ppo', 'ours', 1.3, 1.8,
               python='ppo', options=(_half, _half)),
    'full': Row(f'{_trl[0]}, the same, where every answer meets the limit', 'trl_ppo', 'ours',
                1.3, 1.8, python='ppo', options=(_full, _full)),
    'rloo': Row(f'{_trl[1]}: our PPO, shared trunk, K = 1', 'trl_rloo', 'ours', 1.2, 1.5,
                python='rloo', options=(_step, _step|dict(critic='shared', copies=2))),
    'memory': Row(f'{_trl[0]}, peak of memory in a rollout', 'trl_ppo', 'ours', 3, 4,
                  what='rise', python='ppo', options=(_wide, _wide)),
    'h100': Row('all of these on an H100', None, None, 1, 1, cuda=True),
}

def missing(row, s)->str: # Empty if nothing is
    "Why a row cannot be measured here"
    if row.cuda: return 'not yet measured'
    if row.python and not s.python.get(row.python):
        return f'needs an environment with TRL: give {row.python}_python'
    if row.what=='rise' and not Path('/proc/self/clear_refs').exists():
        return 'the peak of memory is read as Linux tells it'
    return ''


# %%
pd.DataFrame([(k, r.against, r.floor, r.aim) for k,r in rows.items() if not r.cuda],
             columns=['row','against','floor','aim']).set_index('row')


# %% [markdown]
# ## Taking turns
#
# Each side warms up, on a few pairs or with a first step, and chooses its batch size there. Then
# both take turns until the time of the row is spent, at least once each. Times are kept by the
# clock and by the processor: on a machine that others use as well, the second is the one to
# trust.

# %%
#| export
def _clock(go):
    "What came out, with seconds by the clock and of the processor"
    t = perf_counter()
    c = process_time()
    told = go()
    return dict(seconds=perf_counter()-t, cpu=process_time()-c)|told

def _best(side, s, units, sizes, texts=1):
    "Batch size with the least time on few units; with one there is no choice"
    side(s, units, sizes[0])()
    if len(sizes)==1: return sizes[0]
    took = {n: _clock(side(s, units, n))['seconds'] for n in sizes
            if n<=2*texts*len(units)} or {sizes[0]: 0}
    return min(took, key=took.get)

def _here(row, s):
    "Both sides of a row of texts, and their batch sizes"
    work = s.prompts if row.alike=='texts' else s.pairs
    sizes = [_best(row.theirs, s, work[:max(1, 8//row.texts)], row.sizes[0], row.texts),
             _best(row.ours, s, work[:1], row.sizes[1])]
    n = s.size.get('works', row.works)
    return [f(s, work[:n], z) for f,z in zip((row.theirs, row.ours), sizes)],sizes

def _there(row, s, stack):
    "Both sides of a row of steps, after a step each"
    model = s.size.get('model', s.lm.name)
    python = s.python[row.python]
    res = []
    for name,options in zip((row.theirs, row.ours), row.options):
        w = Worker(python, name, s.threads, model=model, **options|s.size.get('steps', {}))
        stack.callback(w.close)
        if row.what=='units': w()
        res.append(w)
    return res

def _span(x):
    return dict(mid=float(np.median(x)), low=float(np.min(x)), high=float(np.max(x)))

def _apart(row, a, b):
    "How far the answers of both sides are apart"
    if row.alike=='p': return dict(gap=float(np.abs(np.array(a['p'])-b['p']).max()))
    if row.alike=='texts':
        return dict(same=float(np.mean([x==y for x,y in zip(a['texts'], b['texts'])])))
    return {}

def measure(
    row:Row, s:Setting,
    seconds=60., # What its turns may take, about
    repeats=5,   # Turns at most
)->dict:
    "One row, with the threads as they are"
    turns = []
    began = perf_counter()
    z = []
    with ExitStack() as stack:
        if row.python: sides = _there(row, s, stack)
        else: sides,z = _here(row, s)
        repeats = 1 if row.what=='rise' else repeats
        begun = perf_counter()
        while len(turns)<repeats and (not turns or
                (perf_counter()-begun)*(1+1/len(turns))<seconds):
            turns.append([_clock(go) for go in sides])
    rate = np.array([[[x['units']/x['seconds'], x['units']/x['cpu']] if row.what=='units'
                      else [1/x['rise']]*2 for x in t] for t in turns])
    ratio = rate[:,1]/rate[:,0] # [turn, clock or processor]
    return dict(turns=len(turns), sizes=z, ratio=_span(ratio[:,0]),
        cpu_ratio=_span(ratio[:,1]), **_apart(row, *turns[-1]),
        **{k: [_span([t[i][x] for t in turns]) for i in (0,1)]
           for k,x in (('seconds','seconds'), ('units','units'), ('memory','rise'),
                       ('tokens','tokens'))
           if x in turns[0][1] and (x!='rise' or 'rise' in turns[0][0])},
        took=perf_counter()-began)


# %% [markdown]
# ## The first step
#
# Before anything is learned, the log-probability that the trainer finds for a token has to be
# the one that the sampler drew it with. Models of some size are computed
# [with the same bits](../language/engine/60_batch_invariant.ipynb) by both; in small ones, and in the last
# logarithm, rounding remains. It is measured over the tokens of some answers at two temperatures,
# and so is how far each of the two is from reading the answers in float64.

# %%
#| export
def first_gap(
    lm, n:int=16,
    new:int=48,
    temperatures=(.7, 1.),
)->dict: # The largest gap, the mean one, of how many tokens; largest distances from float64
    "How far sampler and trainer are apart before the first step"
    gaps = []
    double = copy.deepcopy(lm.model).double()
    for t in temperatures:
        with batch_invariant(lm.model): # As `train_policy` does
            r = generate_rollouts(lm, _requests(n), list(range(n)), new, t, mode=form(lm))
            read = rollout_logprobs(lm.model, r, t)
        said,read,exact = (x[r.mask].double() for x in (r.logp, read, rollout_logprobs(double, r, t)))
        gaps.append(torch.stack([said-read, said-exact, read-exact]).abs())
    x = torch.cat(gaps, 1)
    gap,sampler,trainer = x.max(1).values.tolist()
    return dict(gap=gap, mean=x[0].mean().item(), tokens=x.shape[1], sampler=sampler,
                trainer=trainer)


# %%
found = first_gap(tiny.lm)
assert found['gap']<1e-5 and max(found['sampler'], found['trainer'])<3e-5
found


# %% [markdown]
# ## The table
#
# `bench` measures row after row and keeps its record up to date on disk, so that it can be
# stopped at any time.

# %%
#| export
@contextmanager
def _on(n):
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try: yield
    finally: torch.set_num_threads(before)

def _names(names):
    known = [*rows, 'gap']
    bad = [k for k in names or () if k not in known]
    if bad: raise ConfigError(unknown_name_message('row', bad[0], known))
    return names or known

def _record(out, told, model): # To be filled; rows of the same machine and model are kept
    old = json.loads(Path(out).read_text()) if out and Path(out).exists() else {}
    same = old and old['model']==model and all(
        old['provenance'].get(k)==told.get(k) for k in ('cpu','cores','torch'))
    return dict(provenance=told, model=model, rows=old['rows'] if same else {})

def bench(
    names=None,       # Keys of `rows`, and 'gap'; None for all
    repeats=5,        # Turns of each side, at most
    threads=None,     # Of both sides; None: as many as there are
    seconds=60.,      # For the turns of a row, about; one turn of each is always taken
    model='smollm2-135m-instruct', # Or an `LM`
    ppo_python=None,  # Interpreter of an environment with TRL 1.9
    rloo_python=None, # The same with TRL 1.16
    out=None,         # JSON file, written after each row; other rows in it are kept
    size=None,        # Smaller work, for a trial
    said=lambda name: None, # Called before each row, for a progress line
)->pd.DataFrame:
    "Measure our labels, chains and steps beside what one would otherwise run"
    names = _names(names)
    threads = threads or torch.get_num_threads()
    with _on(threads):
        size = dict(prompts=80, chains=dict(rounds=4, new=64))|(size or {})
        if isinstance(model, (str,Path)): size.setdefault('model', str(model))
        s = setting(model, size['prompts'], threads=threads, size=size,
                    python=dict(ppo=ppo_python, rloo=rloo_python))
        record = _record(out, provenance(device='cpu', dtype='float32', threads=threads),
                         repr(s.lm))
        for name in names:
            said(name)
            record['rows'][name] = _line(name, s, seconds, repeats)|dict(
                commit=record['provenance']['commit'], threads=threads,
                end=datetime.now(UTC).isoformat(timespec='seconds'))
            if out: Path(out).write_text(json.dumps(record, indent=1)+'\n')
    return comparison(record)

def _line(name, s, seconds, repeats):
    if name=='gap': return dict(models={m.name: first_gap(m)
                                        for m in (s.lm, random_model('llama'))})
    why = missing(rows[name], s)
    return dict(skipped=why) if why else measure(rows[name], s, seconds, repeats)


# %% [markdown]
# ## The record
#
# Official measurements lie in `data/results`, with the machine they come from.

# %%
#| export
def recorded()->dict:
    "The official record of `bench`, or None"
    path = data_dir()/'results'/'bench_rlaif_cpu.json'
    return json.loads(path.read_text()) if path.exists() else None

def _cell(r, key):
    if not r or 'skipped' in r: return 'not yet measured'
    return '{mid:.3g} [{low:.3g}, {high:.3g}]'.format(**r[key])

def comparison(
    record=None, # Of `bench`; default: the official one
)->pd.DataFrame: # ratio, cpu_ratio, floor, aim, agreement
    "Ratio, floor and aim of every row"
    found = ((record or recorded()) or {}).get('rows', {})
    def line(k, r):
        m = found.get(k) or {}
        agree = f"gap {m['gap']:.0e}" if 'gap' in m else \
            f"{m['same']:.0%} the same" if 'same' in m else ''
        return dict(ratio=_cell(m, 'ratio'), cpu_ratio=_cell(m, 'cpu_ratio'),
                    floor='' if r.cuda else r.floor, aim='' if r.cuda else r.aim,
                    turns=m.get('turns', ''), answers=agree)
    return pd.DataFrame({r.against: line(k, r) for k,r in rows.items()}).T

def gaps(record=None)->pd.DataFrame: # By model, as of `first_gap`
    "How far sampler and trainer were apart, by the record"
    found = ((record or recorded()) or {}).get('rows', {}).get('gap', {})
    return pd.DataFrame(found.get('models', {})).T


# %%
little = dict(prompts=2, works=1, chains=dict(rounds=1, new=6))
with tempfile.TemporaryDirectory() as d:
    out = Path(d)/'bench.json'
    bench(['labels', 'gap'], 2, 1, .5, tiny.lm, size=little, out=out)
    table = bench(['chains', 'ppo'], 2, 1, .5, tiny.lm, size=little, out=out)
    kept = json.loads(out.read_text())
test_eq(list(kept['rows']), ['labels', 'gap', 'chains', 'ppo'])
test_eq(table.loc[rows['ppo'].against].ratio, 'not yet measured')
test_eq(kept['rows']['chains']['same'], 1.)
table

# %%
assert gaps(kept).gap.max()<1e-5
test_eq(set(comparison({}).ratio) if recorded() is None else {'not yet measured'},
        {'not yet measured'})
with expect_fail(ConfigError, contains="did you mean 'chains'"): bench(['chain'])
