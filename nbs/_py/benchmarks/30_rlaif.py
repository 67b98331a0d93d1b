# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # RLAIF benchmark
#
# > Speed of labels, revisions and PPO steps compared with plain transformers and TRL.

# %%
#| default_exp benchmarks.rlaif

# %%
#| export
import copy, json, os, re, subprocess, sys, tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from time import perf_counter, process_time
from types import SimpleNamespace

import numpy as np, pandas as pd, torch
from moral_sc.benchmarks.harness import (BenchmarkRow, baseline_generate, baseline_logprobs,
                                         choose_batch_size, format_ratio, interleave, load_record,
                                         check_row_names, describe_machine, measure_rows,
                                         recorded_row, start_record, summarise,
                                         torch_threads)
from moral_sc.constitution.feedback import (LETTERS, Labeller, label, load_comparisons,
                                            load_worked_comparisons)
from moral_sc.constitution.preference import PreferenceModel
from moral_sc.constitution.principles import draw_principles, load_principles
from moral_sc.constitution.prompts import load_prompts, render_prompt
from moral_sc.constitution.revision import STOPS, RevisionChains, load_few_shot, revise
from moral_sc.constitution.rl.rollouts import generate_rollouts, rollout_logprobs
from moral_sc.constitution.rl.trainer import RLConfig, RLTrainer
from moral_sc.foundation.errors import ModelError
from moral_sc.foundation.runs import utc_now
from moral_sc.language.engine import inference, training
from moral_sc.language.engine.batching import count_tokens
from moral_sc.language.generation import sample
from moral_sc.language.loading import load
from moral_sc.language.models import LM
from moral_sc.language.reward_head import build_reward_model
from moral_sc.language.stub_models import random_model

# %%
#| hide
from fastcore.test import *
from moral_sc.constitution.feedback import combine_readings
from moral_sc.foundation.errors import ConfigError
torch.set_num_threads(1)


# %% [markdown]
# Constitutional AI spends its time on three things: labelling comparisons, writing critiques and
# revisions, and training a policy. Each is measured against a baseline with the same weights in
# float32, the same prompts and the same threads, as described in the [harness](05_harness.ipynb).
# Where the two sides write texts of different length, useful tokens per second are compared: tokens
# up to the end of an answer, without padding.
#
# ## Workload
#
# The prompts are requests of [our own set](../constitution/12_prompts.ipynb). For comparisons the
# model gives two answers to each at temperature 1.

# %%
#| export
@dataclass
class RLAIFWorkload:
    "Model and prompts that both sides work on"
    lm:LM
    prompts:list       # Rows with `id` and `text`
    pairs:list         # Rows with `id`, `prompt`, `a`, `b`
    size:dict=field(default_factory=dict) # Amount of work, by row
    threads:int=1
    python:dict=field(default_factory=dict) # Interpreters that have TRL

def _requests(n):
    "Return n requests, helpful and red-team alternately"
    kinds = zip(load_prompts('helpful'), load_prompts('red_team'))
    return [p for pair in kinds for p in pair][:n]

def rlaif_workload(
    lm,                  # An `LM`, or a name or folder to load
    n:int=80,            # Prompts
    max_new_tokens:int=48, # Of each compared answer
    **kw
)->RLAIFWorkload:
    "Load a model and sample two answers to each prompt"
    lm = load(lm, 'float32', 'cpu') if isinstance(lm, (str,Path)) else lm
    prompts = _requests(n)
    rendered = [render_prompt(lm, p['prompt'], _mode(lm)) for p in prompts for _ in 'ab']
    answers = [s.text.strip() for s in sample(lm, rendered, max_new_tokens)]
    pairs = [dict(id=p['id'], prompt=p['prompt'], a=a, b=b)
             for p,a,b in zip(prompts, answers[::2], answers[1::2])]
    return RLAIFWorkload(lm, prompts, [r for r in pairs if r['a']!=r['b']], **kw)

def _mode(lm): return 'chat' if lm.tokenizer.chat_template else 'plain'


# %%
small = random_model('llama')
small.model.config.max_position_embeddings = 8192 # A byte-level tokenizer
tiny = rlaif_workload(small, 4, 8)
len(tiny.prompts), tiny.pairs[0]['prompt']


# %% [markdown]
# ## Labels
#
# The baseline renders all questions of all pairs as texts up to ` (`, runs them left-padded in
# batches with the output layer at the last position only, and compares the probabilities of `A` and
# `B`. It scores the same questions as `label`. It does not score the closing bracket, which would
# need a second forward pass per text; the resulting difference of labels is recorded as `gap`.

# %%
#| export
def _questions(lm, pairs, **kw):
    "Return the labeller and the texts that `label` asks with the same settings"
    labeller = Labeller(lm, load_comparisons(), load_worked_comparisons(), cot=False, mode='plain',
                        seed=0, prefixes=4, **kw)
    texts = [[q if isinstance(q, str) else q.text for q in labeller.questions(r)] for r in pairs]
    return labeller, texts

def _split_letters(lm):
    "Return the text before the letter, and the letters' tokens"
    ids = [lm.tokenizer(x, add_special_tokens=False).input_ids for x in LETTERS]
    n = next(k for k,(a,b) in enumerate(zip(*ids)) if a!=b)
    return lm.tokenizer.decode(ids[0][:n]), [x[n] for x in ids]

def label_with_transformers(per, swap):
    "Return the baseline: one forward pass per question"
    def side(w, pairs, size):
        def run():
            labeller,texts = _questions(w.lm, pairs, per=per, swap=swap)
            prefix,ids = _split_letters(w.lm)
            with count_tokens(w.lm) as n:
                lp = baseline_logprobs(w.lm, [t+prefix for x in texts for t in x], ids, size)
            A = 1/(1+np.exp(lp[:,1]-lp[:,0]))
            k = 0
            labels = []
            for r,x in zip(pairs, texts):
                orders = labeller.orders(r)
                p = A[k:k+len(x)].reshape(-1, len(orders))
                k += len(x)
                labels.append(np.where(orders, 1-p, p).mean())
            return dict(units=len(pairs), p=labels, tokens=sum(n))
        return run
    return side

def label_pairs(per, swap):
    "Return our side"
    def side(w, pairs, size):
        def run():
            with count_tokens(w.lm) as n:
                rows = label(w.lm, pairs, principles_per_pair=per, swap=swap, max_tokens=size)
            return dict(units=len(pairs), p=[r['p'] for r in rows], tokens=sum(n))
        return run
    return side


# %%
a,b = (f(1, False)(tiny, tiny.pairs, n)() for f,n in ((label_with_transformers,2),
                                                     (label_pairs,4096)))
assert b['tokens']<a['tokens']
np.round([a['p'], b['p']], 3)


# %% [markdown]
# A separate forward pass for each letter, with letter and bracket scored in full, gives the same labels.

# %%
@torch.inference_mode()
def label_one_by_one(lm, pairs, per=1, swap=False)->list: # One label per pair
    "Label pairs with a separate forward pass for each letter"
    labeller,texts = _questions(lm, pairs, per=per, swap=swap)
    def logprob(text, letter):
        ids = lm.tokenizer(text+letter).input_ids
        n = len(lm.tokenizer(text).input_ids)
        x = lm.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        return sum(x[i-1,ids[i]].item() for i in range(n, len(ids)))
    lp = [np.array([[[logprob(t, l) for l in LETTERS]] for t in x]) for x in texts]
    return [combine_readings(x, labeller.orders(r))[0] for r,x in zip(pairs, lp)]


# %%
for kw in dict(per=1, swap=False), dict(per=2, swap=True):
    a = label_one_by_one(tiny.lm, tiny.pairs[:1], **kw)
    b = label_pairs(**kw)(tiny, tiny.pairs[:1], 4096)()['p']
    test_close(a, b, 1e-4)
np.round(a, 4)


# %% [markdown]
# ## Critiques and revisions
#
# The baseline runs the same rounds, worked examples and principles with `generate` of transformers:
# a left-padded batch, the whole dialogue recomputed for every part, and all rows at the same part.
# Both sides decode greedily, so they write the same texts; `same` is the share of parts that are
# identical. Rounding differs between batches of different shape, and a dialogue that has diverged
# once stays different.

# %%
#| export
def _revision_texts(w, rows):
    "Return every text of every dialogue, and their number of tokens"
    parts = [[r['response']]+[x[k] for x in r['rounds'] for k in ('critique', 'revision')]
             for r in rows]
    texts = [t for x in parts for t in x]
    return dict(units=sum(map(len, w.lm.tokenizer(texts).input_ids)), texts=texts)

def revise_with_generate(w, prompts, size):
    "Return the baseline for critiques and revisions"
    rounds,new = (w.size['chains'][k] for k in ('rounds', 'new'))
    def generate(prompts):
        texts = baseline_generate(w.lm, prompts, new, size, STOPS, do_sample=False)
        return [SimpleNamespace(text=t, finish='stop') for t in texts]
    def run():
        rows = [dict(id=p['id'], prompt=p['prompt']) for p in prompts]
        drawn = [draw_principles(load_principles(), rounds, 0, r['id']) for r in rows]
        chains = RevisionChains(w.lm, rows, drawn, load_few_shot(), True, 'plain')
        written = [[] for _ in rows]
        chains.set_answers(generate(chains.first_prompts()[1]))
        while (prompts_now := [chains.next(i, x) for i,x in enumerate(written)])[0]:
            for x,t in zip(written, generate([p for _,p in prompts_now])): x.append(t)
        return _revision_texts(w, rows)
    return run

def revise_prompts(w, prompts, size):
    "Return our side for critiques and revisions"
    rounds,new = (w.size['chains'][k] for k in ('rounds', 'new'))
    return lambda: _revision_texts(w, revise(w.lm, prompts, rounds=rounds, temperature=0.,
                                             max_new_tokens=new))


# %%
tiny.size = dict(chains=dict(rounds=2, new=6))
a,b = (f(tiny, tiny.prompts[:2], 2)() for f in (revise_with_generate, revise_prompts))
test_eq(a['texts'], b['texts'])
len(a['texts']), a['units']


# %% [markdown]
# ## Training steps
#
# The baselines are two versions of TRL: its PPO, which has left the library's main part, and its
# RLOO. They need environments of their own:
#
# ```sh
# python -m venv trl-ppo && trl-ppo/bin/pip install moral_sc "trl==1.9.2"
# python -m venv trl-rloo && trl-rloo/bin/pip install moral_sc "trl==1.16.0"
# ```
#
# Each side runs in a process of its own, ours in the same environment as TRL's. A process loads
# the model and then takes one step per request; TRL waits in a callback at the end of each step.
# Features that we do not have are switched off: gradient checkpointing, mixed precision, sample
# tables, logging and saving. Both sides use the same prompts, sample at temperature 1 to the end
# token or the limit, and score with the same reward model.
#
# Most rows ask for an answer in one sentence. Such answers have some thirty tokens, and the longest
# has three times as many, as answers differ in a real run; TRL pads all of them to the longest, in
# sampling and in every later forward pass. `full` is the other extreme: open questions and a limit of
# 48 tokens that nearly every answer reaches, so there is no padding to save. A step of PPO there has
# eight answers: with sixteen, TRL's took more than 13 GB and was killed on a machine of 23 GB.

# %%
#| export
class StepTimer:
    "Wait for a request, time one step, and print what it took; used in the worker process"
    def begin(self):
        if not sys.stdin.readline(): os._exit(0)
        self.peak = PeakMemory()
        self.wall = perf_counter()
        self.cpu = process_time()

    def end(self, **results):
        results = dict(seconds=perf_counter()-self.wall, cpu=process_time()-self.cpu, **results)
        print('@'+json.dumps(results), flush=True)

class PeakMemory:
    "Measure how far the memory of this process rises above its current value, in bytes"
    def __init__(self):
        Path('/proc/self/clear_refs').write_text('5') # Resets the high-water mark
        self.start = self.read('VmRSS')

    def read(self, name):
        return int(re.search(rf'{name}:\s+(\d+)', Path('/proc/self/status').read_text())[1])*1024

    def __call__(self): return self.read('VmHWM')-self.start


# %%
if Path('/proc/self/clear_refs').exists():
    peak = PeakMemory()
    x = torch.ones(2**22)
    del x
    print(f'{peak()/2**20:.0f} MiB') # Sixteen were allocated and freed


# %% [markdown]
# Our side:

# %%
#| export
def _load_in_memory(model):
    "Load a model by name, or 'tiny', and read every weight once"
    lm = random_model('llama') if model=='tiny' else load(model, 'float32', 'cpu')
    sum(p.sum().item() for p in lm.model.parameters())
    return lm

def _extended_requests(n, tail):
    return [p|dict(prompt=p['prompt']+tail) for p in _requests(n)]

class _MeasuredTrainer(RLTrainer):
    "Our trainer; it records the peak of memory after each rollout"
    def collect_rollouts(self, *args):
        batch = super().collect_rollouts(*args)
        self.rise = self.timer.peak()
        return batch

    def rollout(self, prompts, k):
        "Collect a rollout with its values, without a training step"
        batch = self.collect_rollouts(prompts, k)
        self.critic_values(batch.rollouts, keep_graph=False)
        self.rise = self.timer.peak()
        return dict(length=float(batch.rollouts.mask.sum())/len(batch.rollouts))

def our_steps(timer, model, batch, new, tail='', epochs=1, critic='separate', generations=1,
              rollout_only=False):
    "Take steps of our PPO"
    lm = _load_in_memory(model)
    c = RLConfig(batch=batch, num_generations=generations, max_new_tokens=new,
                 num_ppo_epochs=epochs, critic=critic, mode=_mode(lm), lr=1e-6, steps=10**6,
                 kl_coef=.05)
    trainer = _MeasuredTrainer(lm, PreferenceModel(build_reward_model(lm), lm, _mode(lm)), c)
    trainer.timer = timer
    prompts = _extended_requests(batch//generations, tail)
    modules = trainer.computing_modules()
    engine = inference(*modules, tokens=0, batch_invariant=True) if rollout_only \
        else training(*modules, batch_invariant=True) # As in `train_policy`
    with engine:
        for k in count():
            timer.begin()
            row = (trainer.rollout if rollout_only else trainer.train_step)(prompts, k)
            timer.end(units=row['length']*batch, rise=trainer.rise, ratio=row.get('ratio'))


# %% [markdown]
# TRL's PPO ends its rollout where the model is first called with a gradient, which is where the
# memory of the rollout is measured. It samples until all answers have ended, and trains on a mask
# of the tokens before the end token; only those are useful.

# %%
#| export
class _WaitForTurn:
    "A callback of TRL's trainers that waits for the next request"
    def __init__(self, timer, results): self.timer,self.results = timer,results
    def on_train_begin(self, *args, **kw): self.timer.begin()
    def on_step_end(self, *args, **kw):
        self.timer.end(**self.results())
        self.timer.begin()
    def __getattr__(self, name):
        if not name.startswith('on_'): raise AttributeError(name)
        return lambda *args, **kw: None

def _padding_tokenizer(lm):
    "Return a tokenizer that pads with a token other than the end token"
    tokenizer = copy.copy(lm.tokenizer)
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        tokenizer.pad_token = tokenizer.unk_token
    tokenizer.padding_side = 'left'
    return tokenizer

_plain = dict(bf16=False, gradient_checkpointing=False, use_cpu=True, report_to='none',
              save_strategy='no', logging_strategy='no', disable_tqdm=True, learning_rate=1e-6,
              lr_scheduler_type='constant', temperature=1.)

def _useful_tokens(ids, end):
    "Count tokens up to and including the end token"
    ended = (ids==end).long().cumsum(1)-(ids==end).long() # 0 up to the end token
    return int((ended==0).sum())

def trl_ppo(timer, model, batch, new, tail='', epochs=1, rollout_only=False):
    "Take steps of TRL's PPO"
    os.environ['TRL_EXPERIMENTAL_SILENCE'] = '1'
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer
    lm = _load_in_memory(model)
    results = {}
    tokenizer = _padding_tokenizer(lm)
    prompts = [render_prompt(lm, p['prompt'], _mode(lm)) for p in _extended_requests(batch, tail)]
    begin = max(len(p.ids) for p in prompts) # All answers may end before `new` tokens
    args = PPOConfig(output_dir=tempfile.mkdtemp(), per_device_train_batch_size=batch,
        num_mini_batches=1, gradient_accumulation_steps=1, num_ppo_epochs=epochs,
        total_episodes=batch*10**6, response_length=new, stop_token='eos',
        num_sample_generations=0, kl_coef=.05, **_plain)
    data = Dataset.from_list([dict(input_ids=list(p.ids)) for p in prompts])
    trainer = PPOTrainer(args, tokenizer, copy.deepcopy(lm.model), copy.deepcopy(lm.model),
        build_reward_model(lm), data, build_reward_model(lm), eval_dataset=data,
        callbacks=[_WaitForTurn(timer, lambda: results)])
    def end_rollout(module, args, kw):
        units = _useful_tokens(kw['input_ids'][:,begin:], tokenizer.eos_token_id)
        results.update(rise=timer.peak(), units=units)
        if rollout_only: timer.end(**results); timer.begin()
    trainer.model.register_forward_pre_hook(end_rollout, with_kwargs=True)
    trainer.train()

def trl_rloo(timer, model, batch, new, tail='', generations=2):
    "Take steps of TRL's RLOO"
    from datasets import Dataset
    from trl import RLOOConfig, RLOOTrainer
    lm = _load_in_memory(model)
    results = {}
    score = PreferenceModel(build_reward_model(lm), lm, _mode(lm))
    if not lm.model.config._name_or_path: # TRL loads its reference model from there
        lm.model.config._name_or_path = tempfile.mkdtemp()
        lm.model.save_pretrained(lm.model.config._name_or_path)
    requests = _extended_requests(batch//generations, tail)
    texts = {render_prompt(lm, p['prompt'], _mode(lm)).text: p['prompt'] for p in requests}
    def reward(prompts, completions, completion_ids, **kw):
        results['units'] = sum(map(len, completion_ids))
        return score([texts[p] for p in prompts], completions).tolist()
    args = RLOOConfig(output_dir=tempfile.mkdtemp(), per_device_train_batch_size=batch,
        gradient_accumulation_steps=1, num_generations=generations, max_completion_length=new,
        max_steps=10**6, beta=.05, num_iterations=1, **_plain)
    data = Dataset.from_list([dict(prompt=t) for t in texts])
    RLOOTrainer(lm.model.requires_grad_(True), reward, args, data,
                processing_class=_padding_tokenizer(lm),
                callbacks=[_WaitForTurn(timer, lambda: results)]).train()

WORKERS = dict(ours=our_steps, trl_ppo=trl_ppo, trl_rloo=trl_rloo)

def run_worker(name, threads, **kw):
    "Take steps of one side on request; the entry point of a worker process"
    torch.set_num_threads(threads)
    WORKERS[name](StepTimer(), **kw)


# %%
test_eq(_useful_tokens(torch.tensor([[5,2,2,7], [5,6,7,8], [2,5,5,2]]), 2), 2+4+1)


# %% [markdown]
# The measuring process sends a line for each step and reads the answer. If a worker process dies,
# the error quotes the end of its output.

# %%
#| export
class Worker:
    "A worker process that takes steps on request"
    def __init__(self, python, name, threads, **kw):
        code = ('import sys, json; from moral_sc.benchmarks.rlaif import run_worker; '
                'run_worker(**json.loads(sys.argv[1]))')
        env = os.environ|dict(OMP_NUM_THREADS=str(threads), TOKENIZERS_PARALLELISM='false')
        self.log = tempfile.TemporaryFile('w+')
        args = json.dumps(dict(name=name, threads=threads, **kw))
        self.child = subprocess.Popen( # noqa: S603
            [str(python), '-c', code, args], text=True, env=env, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self.log)

    def __call__(self):
        try: self.child.stdin.write('go\n'); self.child.stdin.flush()
        except BrokenPipeError: pass
        for line in self.child.stdout:
            if line[0]=='@': return json.loads(line[1:])
        self.child.wait(); self.log.seek(0)
        raise ModelError('The worker process died; the end of its output: '
                         +self.log.read()[-1500:].strip())

    def close(self):
        self.child.stdin.close()
        try: self.child.wait(10)
        except subprocess.TimeoutExpired: self.child.kill()


# %%
step = Worker(sys.executable, 'ours', 1, model='tiny', batch=4, new=6)
results = [step() for _ in range(2)]
step.close()
test_close(results[0]['ratio'], 1., 1e-5)
results[1]


# %% [markdown]
# ## Rows
#
# A row of texts runs in this process, with each side at the batch size that suits it; a row of
# training steps runs in worker processes. `works` is the amount of work: all pairs, or fewer where
# each pair has thirty-two questions. The amount matters, because worked examples are in one of four
# orders and their prefix is computed once for all pairs with the same order.

# %%
#| export
@dataclass(frozen=True)
class RLAIFRow(BenchmarkRow):
    "One comparison; each side is a function, or the name of a worker"
    quantity:str='units' # Compared: 'units' per second, or 'rise' of memory
    sizes:tuple=((4,8,16), (4096,))  # Batch sizes to choose from, theirs and ours
    works:int|None=None  # Prompts or pairs in a turn; None: all
    texts:int=1          # Per prompt or pair, for the trial of batch sizes
    agreement:str=''     # Result on which both sides must agree: 'p' or 'texts'
    python:str=''        # Environment that it needs
    options:tuple=({}, {}) # Of the workers
    cuda:bool=False

_ppo = 'TRL 1.9 PPO'
_step = dict(batch=16, new=96, tail=' Answer in one sentence.')
_full = dict(batch=8, new=48)
_half = _step|dict(batch=8)
_rollout = _step|dict(rollout_only=True)
RLAIF_ROWS = {
    'labels': RLAIFRow('transformers, one principle, one order', label_with_transformers(1, False),
                       label_pairs(1, False), 2.5, 4, agreement='p'),
    'ensemble': RLAIFRow('transformers, 16 principles, both orders',
                         label_with_transformers('all', True), label_pairs('all', True), 6, 9,
                         works=8, texts=32, agreement='p'),
    'chains': RLAIFRow('generate, 4 rounds', revise_with_generate, revise_prompts, 3, 5, works=16,
                       sizes=((16,), (16,)), agreement='texts'),
    'ppo': RLAIFRow(f'{_ppo}, separate critic, K = 1', 'trl_ppo', 'ours', 1.3, 1.8,
                    python='ppo', options=(_half, _half)),
    'full': RLAIFRow(f'{_ppo}, the same, every answer at the limit', 'trl_ppo', 'ours',
                     1.3, 1.8, python='ppo', options=(_full, _full)),
    'rloo': RLAIFRow('TRL 1.16 RLOO, 2 generations: our PPO, shared backbone, K = 1', 'trl_rloo',
                     'ours', 1.2, 1.5, python='rloo',
                     options=(_step, _step|dict(critic='shared', generations=2))),
    'memory': RLAIFRow(f'{_ppo}, peak memory of a rollout', 'trl_ppo', 'ours', 3, 4,
                       quantity='rise', python='ppo', options=(_rollout, _rollout)),
    'h100': RLAIFRow('all of these on an H100', None, None, 1, 1, cuda=True),
}

def _skip_reason(row, w)->str: # Empty if the row can be measured
    if row.cuda: return 'not yet measured'
    if row.python and not w.python.get(row.python):
        return f'needs an environment with TRL: give {row.python}_python'
    if row.quantity=='rise' and not Path('/proc/self/clear_refs').exists():
        return 'peak memory is measured on Linux only'
    return ''


# %%
pd.DataFrame([(k, r.against, r.floor, r.aim) for k,r in RLAIF_ROWS.items() if not r.cuda],
             columns=['row','against','floor','aim']).set_index('row')


# %% [markdown]
# ## Measuring a row
#
# Each side warms up, on a few pairs or with a first step, and chooses its batch size there. Then
# both take turns until the time of the row is spent, at least once each.

# %%
#| export
def _batch_size(side, w, units, sizes, texts=1):
    "Warm up, and choose the batch size if there is a choice"
    side(w, units, sizes[0])()
    fitting = [n for n in sizes if n<=2*texts*len(units)]
    if len(sizes)==1 or len(fitting)<2: return (fitting or sizes)[0]
    return choose_batch_size(lambda u, n: side(w, u, n), units, fitting)[0]

def _text_sides(row, w):
    "Return both sides of a row of texts, and their batch sizes"
    work = w.prompts if row.agreement=='texts' else w.pairs
    sizes = [_batch_size(row.theirs, w, work[:max(1, 8//row.texts)], row.sizes[0], row.texts),
             _batch_size(row.ours, w, work[:1], row.sizes[1])]
    n = w.size.get('works', row.works)
    return [f(w, work[:n], size) for f,size in zip((row.theirs, row.ours), sizes)], sizes

def _worker_sides(row, w, stack):
    "Return both sides of a row of training steps, after one step each"
    model = w.size.get('model', w.lm.name)
    workers = []
    for name,options in zip((row.theirs, row.ours), row.options):
        worker = Worker(w.python[row.python], name, w.threads, model=model,
                        **options|w.size.get('steps', {}))
        stack.callback(worker.close)
        if row.quantity=='units': worker()
        workers.append(worker)
    return workers

def _agreement(row, a, b):
    "Compare the results of both sides"
    if row.agreement=='p': return dict(gap=float(np.abs(np.array(a['p'])-b['p']).max()))
    if row.agreement=='texts':
        return dict(same=float(np.mean([x==y for x,y in zip(a['texts'], b['texts'])])))
    return {}

def measure_rlaif(
    row:RLAIFRow, w:RLAIFWorkload,
    seconds=60., # Approximate time for its turns
    repeats=5,   # Turns at most
)->dict:
    "Measure one row with the current number of threads"
    start = perf_counter()
    sizes = []
    with ExitStack() as stack:
        if row.python: sides = _worker_sides(row, w, stack)
        else: sides,sizes = _text_sides(row, w)
        turns = interleave(sides, 1 if row.quantity=='rise' else repeats, seconds)
    turns = [[dict(seconds=wall, cpu=cpu)|results for wall,cpu,results in turn] for turn in turns]
    rate = np.array([[[x['units']/x['seconds'], x['units']/x['cpu']] if row.quantity=='units'
                      else [1/x['rise']]*2 for x in turn] for turn in turns])
    ratio = rate[:,1]/rate[:,0] # [turn, wall or processor time]
    columns = dict(seconds='seconds', units='units', memory='rise', tokens='tokens')
    return dict(turns=len(turns), sizes=sizes, ratio=summarise(ratio[:,0]),
        cpu_ratio=summarise(ratio[:,1]), **_agreement(row, *turns[-1]),
        **{k: [summarise([turn[i][x] for turn in turns]) for i in (0,1)]
           for k,x in columns.items() if all(x in side for side in turns[0])},
        took=perf_counter()-start)


# %% [markdown]
# ## Log-probabilities before the first step
#
# Before the first update, the log-probability that the trainer computes for a token must equal the
# one with which it was sampled. Models of some size are computed
# [bit for bit alike](../language/engine/60_batch_invariant.ipynb) by both; in small models, and in
# the last logarithm, rounding remains. `logprob_gap` measures the difference over the tokens of some
# answers at two temperatures, and the distance of each from float64.

# %%
#| export
def logprob_gap(
    lm, n:int=16,            # Answers
    max_new_tokens:int=48,
    temperatures=(.7, 1.),
)->dict: # gap (largest), mean, tokens; sampler and trainer: largest distances from float64
    "Compare log-probabilities of sampler and trainer before the first step"
    gaps = []
    double = copy.deepcopy(lm.model).double()
    for t in temperatures:
        with training(lm.model, batch_invariant=True): # As in `train_policy`
            r = generate_rollouts(lm, _requests(n), list(range(n)), max_new_tokens, t,
                                  mode=_mode(lm))
            trained = rollout_logprobs(lm.model, r, t)
        exact = rollout_logprobs(double, r, t)
        sampled,trained,exact = (x[r.mask].double() for x in (r.logp, trained, exact))
        gaps.append(torch.stack([sampled-trained, sampled-exact, trained-exact]).abs())
    x = torch.cat(gaps, 1)
    gap,sampler,trainer = x.max(1).values.tolist()
    return dict(gap=gap, mean=x[0].mean().item(), tokens=x.shape[1], sampler=sampler,
                trainer=trainer)


# %%
gap = logprob_gap(tiny.lm)
assert gap['gap']<1e-5 and max(gap['sampler'], gap['trainer'])<3e-5
gap


# %% [markdown]
# ## Running the benchmark
#
# The command `moral_sc bench rlaif` calls `bench_rlaif`, which writes its record after each row, so
# that it can be stopped at any time.

# %%
#| export
def bench_rlaif(
    rows=None,        # Keys of `RLAIF_ROWS`, and 'gap'; None for all
    repeats=5,        # Turns of each side, at most
    threads=None,     # Of both sides; None: as many as there are
    seconds=60.,      # Approximate time for the turns of a row; one turn of each is always taken
    model='smollm2-135m-instruct', # Or an `LM`
    ppo_python=None,  # Interpreter of an environment with TRL 1.9
    rloo_python=None, # Interpreter of an environment with TRL 1.16
    out=None,         # JSON file, written after each row; other rows in it are kept
    size=None,        # Smaller work, for a trial
    progress=None,    # As in `measure_rows`
)->pd.DataFrame:      # See `rlaif_ratios`
    "Measure our labels, revisions and training steps against transformers and TRL"
    names = check_row_names(rows, RLAIF_ROWS, ['gap'])
    threads = threads or torch.get_num_threads()
    with torch_threads(threads):
        size = dict(prompts=80, chains=dict(rounds=4, new=64))|(size or {})
        if isinstance(model, (str,Path)): size.setdefault('model', str(model))
        w = rlaif_workload(model, size['prompts'], threads=threads, size=size,
                           python=dict(ppo=ppo_python, rloo=rloo_python))
        record = start_record(out, describe_machine('cpu', threads, dtype='float32'),
                              model=repr(w.lm))
        stamp = lambda: dict(commit=record['provenance']['commit'], threads=threads,
                             end=utc_now())
        measure = lambda name: _measure_entry(name, w, seconds, repeats)|stamp()
        return rlaif_ratios(measure_rows(record, names, measure, out, progress))

def _measure_entry(name, w, seconds, repeats):
    if name=='gap': return dict(models={m.name: logprob_gap(m)
                                        for m in (w.lm, random_model('llama'))})
    reason = _skip_reason(RLAIF_ROWS[name], w)
    return dict(skipped=reason) if reason else measure_rlaif(RLAIF_ROWS[name], w, seconds, repeats)


# %% [markdown]
# ## Official record
#
# Official measurements are in `data/results`, with the machine they were made on.

# %%
#| export
def rlaif_ratios(
    record=None,  # Of `bench_rlaif`; default: the official one
)->pd.DataFrame:  # ratio, cpu_ratio, floor, aim, turns, answers
    "Show ratio, floor and aim of every row"
    record = record or load_record('rlaif')
    def line(name, row):
        entry = recorded_row(record, name)
        agreement = f"gap {entry['gap']:.0e}" if 'gap' in entry else \
            f"{entry['same']:.0%} the same" if 'same' in entry else ''
        return dict(ratio=format_ratio(entry), cpu_ratio=format_ratio(entry, 'cpu_ratio'),
                    floor='' if row.cuda else row.floor, aim='' if row.cuda else row.aim,
                    turns=entry.get('turns', ''), answers=agreement)
    return pd.DataFrame({r.against: line(k, r) for k,r in RLAIF_ROWS.items()}).T

def rlaif_gaps(
    record=None,  # Of `bench_rlaif`; default: the official one
)->pd.DataFrame:  # By model, as of `logprob_gap`
    "Show the recorded differences between sampler and trainer"
    return pd.DataFrame(recorded_row(record or load_record('rlaif'), 'gap').get('models', {})).T


# %%
little = dict(prompts=2, works=1, chains=dict(rounds=1, new=6))
with tempfile.TemporaryDirectory() as d:
    out = Path(d)/'bench.json'
    bench_rlaif(['labels', 'gap'], 2, 1, .5, tiny.lm, size=little, out=out)
    table = bench_rlaif(['chains', 'ppo'], 2, 1, .5, tiny.lm, size=little, out=out)
    record = json.loads(out.read_text())
test_eq(list(record['rows']), ['labels', 'gap', 'chains', 'ppo'])
assert table.loc[RLAIF_ROWS['ppo'].against].ratio.startswith('needs an environment with TRL')
test_eq(record['rows']['chains']['same'], 1.)
table

# %%
assert rlaif_gaps(record).gap.max()<1e-5
test_eq(set(rlaif_ratios({'rows':{}}).ratio), {'not yet measured'})
with expect_fail(ConfigError, contains="did you mean 'chains'"): bench_rlaif(['chain'])
