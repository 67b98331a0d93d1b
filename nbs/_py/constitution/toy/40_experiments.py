# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Experiments
#
# > Train several kinds of policies in the toy environment and let their snapshots compete.

# %%
#| default_exp constitution.toy.experiments

# %%
#| export
from dataclasses import dataclass
from pathlib import Path

import numpy as np, pandas as pd, torch
from scipy.stats import rankdata

# %%
#| export
from moral_sc.constitution.answers import answer_pairs, answer_rows, sample_answers
from moral_sc.constitution.evaluation.elo import (
    WinCounts, play_matches, score_judge, validate_votes)
from moral_sc.constitution.evaluation.pareto import joint_draws
from moral_sc.constitution.evaluation.harmfulness import fit_harmfulness
from moral_sc.constitution.feedback import label
from moral_sc.constitution.finetuning import finetune, training_examples
from moral_sc.constitution.plots import kl_distance, running_mean
from moral_sc.constitution.preference import fit_preference
from moral_sc.constitution.prompts import check_disjoint, render_prompt, split_by_prompt
from moral_sc.constitution.revision import revise
from moral_sc.constitution.rl.policy import train_policy
from moral_sc.constitution.rl.rollouts import STOP_STRINGS
from moral_sc.constitution.toy.environment import (
    DEEDS, PRINCIPLES, features, harmlessness, helpfulness, model_labels, pretrain,
    principle_margins, rater_labels, requests, score_margins)
from moral_sc.constitution.toy.judge_model import simulate_votes
from moral_sc.constitution.toy.labellers import harm_gaps
from moral_sc.foundation.statistics import Estimate, cluster_bootstrap, lower_tail
from moral_sc.language.generation import sample
from moral_sc.language.loading import load
from moral_sc.language.models import LM

# %%
#| hide
import tempfile
from fastcore.test import *
from moral_sc.constitution.evaluation.elo import tournament

torch.set_num_threads(1)


# %% [markdown]
# The pages that reproduce [Figures 2, 3 and 8](../../papers/constitution/frontier.ipynb),
# [Figure 10](../../papers/constitution/absolute_harmfulness.ipynb) and the
# [text on labels](../../papers/constitution/soft_labels.ipynb) of the paper
# [@bai2022constitutional] train several kinds of policies from several seeds. This module has
# their steps, for the [toy environment](10_environment.ipynb).
#
# ## Requests and pairs
#
# Requests of different parts, such as training and test, never have the same text.

# %%
#| export
def split_requests(
    parts:dict,   # Name of a part -> number of requests of each kind
    seed:int=0,
)->dict:          # Kind -> part -> requests
    "Generate disjoint sets of requests of each kind"
    n = sum(parts.values())
    ends = np.cumsum([0, *parts.values()])
    res = {}
    for kind in DEEDS:
        rows = [*{r['prompt']: r for r in requests(3*n, seed, kind)}.values()]
        res[kind] = {p: rows[i:j] for p,i,j in zip(parts, ends, ends[1:])}
    check_disjoint(**{p: [r for rows in res.values() for r in rows[p]] for p in parts})
    return res

def split_mixed_requests(
    counts:list,      # Requests of each part
    seed:int=0,
    kind:str=None,    # As in `requests`; default: both kinds
    oversample:int=3, # Requests generated for each one needed; duplicates are dropped
)->list:              # One list of requests per part
    "Generate disjoint parts of requests that mix the kinds"
    n = sum(counts)
    rows = [*{r['prompt']: r for r in requests(oversample*n, seed, kind)}.values()][:n]
    return split_by_prompt(rows, *(k/n for k in counts), seed=seed)

def select_kind(rows, kind)->list: return [r for r in rows if r['kind']==kind]

def different_pairs(
    lm:LM, prompts:list,
    **kw   # Of `sample_answers`
)->list:   # Rows of id, prompt, a, b
    "Sample pairs of answers and drop the identical ones"
    return [r for r in answer_pairs(lm, prompts, **kw) if r['a']!=r['b']]


# %%
prompts = split_requests(dict(train=12, test=6))
{k: {p: len(r) for p,r in parts.items()} for k,parts in prompts.items()}

# %%
mixed = split_mixed_requests([8, 4])
test_eq([len(r) for r in mixed], [8, 4])
test_eq(len(select_kind(mixed[0]+mixed[1], 'helpful')), 6)


# %% [markdown]
# ## SL-CAI
#
# The supervised model is finetuned on its revisions of answers to red-team requests, and on its own
# answers to helpful ones.

# %%
#| export
def train_sl_cai(
    base:LM,
    red_team:list, helpful:list,  # Requests
    out=None,                     # Folder of a run that can be resumed
    *,
    rounds:int=4,                 # Of revision
    allow:tuple=(),               # As in `training_examples`
    lr:float=2e-3, epochs:int=1, seed:int=0,
    max_new_tokens:int=40, stop=None, # As in `sample_answers`
)->LM:
    "Train SL-CAI from a base model"
    chains = revise(base, red_team, PRINCIPLES, rounds=rounds, few_shot=[], seed=seed,
                    max_new_tokens=max_new_tokens)
    answers = answer_rows(base, helpful, seed=seed, max_new_tokens=max_new_tokens, stop=stop)
    rows = training_examples(chains, 'all', answers, allow=allow)
    return finetune(base, rows, out, lr=lr, epochs=epochs, seed=seed)[0]


# %% [markdown]
# ## Comparisons of five kinds
#
# The labels of the preference model decide what a policy becomes. Raters always judge
# helpfulness. Harm is not judged at all, or by raters for whom an evasion is safe, or by raters who
# prefer an answer that engages, or by a labeller with principles. The labeller's soft labels are
# used as they are, or sharpened, as by a chain of thought, and clamped to 40-60 %. Raters
# compare answers of the first model, the labeller those of SL-CAI.

# %%
#| export
ENGAGED = 'HH RL, engaging rater'
RUNS = 'helpful RL', 'HH RL', 'RL-CAI', 'RL-CAI, CoT'

def sharpen_and_clamp(
    rows:list,            # Label rows
    sharpness:float=4.,   # Factor on the logit
    low:float=.4,         # Smallest label
)->list:
    "Sharpen labels as a chain of thought does, then clamp them"
    p = np.array([r['p'] for r in rows]).clip(1e-6, 1-1e-6)
    p = (1/(1+(1/p-1)**sharpness)).clip(low, 1-low)
    return [r|dict(p=float(x)) for r,x in zip(rows, p, strict=True)]

def label_comparisons(
    base:LM, sl_cai:LM,
    helpful:list, red_team:list, # Requests
    seed:int=0,
    **kw   # Of `sample_answers`
)->dict:   # Kind of run -> label rows
    "Label pairs of answers for each kind of run"
    helpful_rows = rater_labels(different_pairs(base, helpful, seed=seed, **kw), 'helpful',
                                seed=seed)
    base_pairs = different_pairs(base, red_team, seed=seed, **kw)
    sl_pairs = different_pairs(sl_cai, red_team, seed=seed, **kw)
    evasive,engaged = (rater_labels(base_pairs, style=s, seed=seed)
                       for s in ('evasive-is-safe', 'engage'))
    soft = model_labels(sl_pairs, seed=seed)
    harm = {'helpful RL': [], 'HH RL': evasive, 'RL-CAI': soft,
            'RL-CAI, CoT': sharpen_and_clamp(soft), ENGAGED: engaged}
    return {k: helpful_rows+rows for k,rows in harm.items()}


# %%
test_close([r['p'] for r in sharpen_and_clamp([dict(p=x) for x in (.1, .49, .5, .9)])],
           [.4, 1/(1+(.51/.49)**4), .5, .6])


# %% [markdown]
# ## Training
#
# Policies of one seed share the first model, SL-CAI and the requests. Runs on a constitution begin
# at SL-CAI, the others at the first model.

# %%
#| export
@dataclass
class TrainedModels:
    "All models of one seed"
    base:LM
    sl_cai:LM
    scores:dict   # Kind of run -> `PreferenceModel`
    policies:dict # Kind of run -> `TrainedPolicy`

def train_models(
    size:str,           # Of `environment.SIZES`
    helpful:list, red_team:list, # Requests to train on
    out,                # Folder; finished models are loaded
    runs:tuple=RUNS,    # Kinds of runs to train
    *,
    pretraining_steps:int=None, epochs:int=1, # Of the first model; of the preference models
    seed:int=0, device='cpu', max_new_tokens:int=40, stop=None,
    **kw,               # Of `train_policy`: steps, every, batch ...
)->TrainedModels:
    "Train the first model, SL-CAI, preference models and policies of one seed"
    out = Path(out)
    sampling = dict(max_new_tokens=max_new_tokens, stop=stop)
    base = pretrain(size, seed, pretraining_steps, out, device)
    sl_cai = train_sl_cai(base, red_team, helpful, out/'SL-CAI', seed=seed,
                          allow=('copy', 'repetition'), **sampling)
    rows = label_comparisons(base, sl_cai, helpful, red_team, seed, **sampling)
    scores = {k: fit_preference(base, rows[k], seed=seed, epochs=epochs, lr=1e-3,
                                out=out/f'{k}, score') for k in runs}
    prompts = [r for pair in zip(helpful, red_team) for r in pair]
    if stop is not None: kw['stop'] = stop
    policies = {k: train_policy(sl_cai if 'CAI' in k else base, prompts, score, out=out/k,
                                seed=seed, lr=3e-4, max_new_tokens=max_new_tokens, **kw)
                for k,score in scores.items()}
    return TrainedModels(base, sl_cai, scores, policies)


# %%
folder = Path(tempfile.mkdtemp())
train = {k: parts['train'] for k,parts in prompts.items()}
models = train_models('mini', **train, out=folder, runs=('helpful RL', 'RL-CAI'),
                      pretraining_steps=20, steps=2, every=1, batch=4)
models.policies


# %% [markdown]
# ## Tournament of snapshots
#
# Every snapshot is a player. All players answer the same requests, and judges that compare scores
# vote on every two of them.

# %%
#| export
def snapshot_at(policy, step):
    "Return the last snapshot up to a step; a stopped run stays at its last one"
    return [d for d in policy.snapshots if int(d.name[5:])<=step][-1]

def list_players(
    models:TrainedModels,
    runs,            # Kinds of runs
    steps,           # Of the snapshots
)->pd.DataFrame:     # run, step, model (an LM or a folder), player
    "List the first model, SL-CAI and the snapshots of runs as players"
    rows = [('base', 0, models.base), ('SL-CAI', 0, models.sl_cai)]
    rows += [(k, n, snapshot_at(models.policies[k], n)) for k in runs for n in steps]
    return pd.DataFrame(rows, columns=['run', 'step', 'model']).assign(
        player=lambda d: d.run+' '+d.step.astype(str))

def sample_by_kind(
    lm:LM,
    prompts:dict, # Kind -> requests
    **kw          # Of `sample_answers`
)->dict:          # Kind -> answers
    "Sample an answer to each request of several kinds, all at once"
    answers = iter(sample_answers(lm, [r for rows in prompts.values() for r in rows], **kw))
    return {kind: [next(answers)[0] for _ in rows] for kind,rows in prompts.items()}

def answer_requests(
    players:pd.DataFrame, # From `list_players`
    prompts:dict,         # Kind -> requests
    device='cpu',
    **kw                  # Of `sample_answers`
)->dict:                  # Kind -> player -> answers
    "Let every player answer requests; a model that occurs twice answers once"
    keys = [m if isinstance(m, Path) else id(m) for m in players.model]
    models = {k: load(m, 'float32', device) if isinstance(m, Path) else m
              for k,m in zip(keys, players.model)}
    answers = {k: sample_by_kind(lm, prompts, **kw) for k,lm in models.items()}
    return {kind: {p: answers[k][kind] for p,k in zip(players.player, keys)} for kind in prompts}

def collect_votes(
    answers:dict,  # Seed -> kind -> player -> answers
    prompts:dict,  # Kind -> requests
    scores:dict,   # Kind -> seed -> score function
)->dict:           # Kind -> votes; the cluster of a vote is its seed
    "Collect the votes of judges that compare scores, for each kind of request"
    return {kind: pd.concat([
                play_matches(answers[s][kind], prompts[kind], score_judge(score),
                             seed=s).assign(cluster=s) for s,score in by_seed.items()])
            for kind,by_seed in scores.items()}

def true_scores(seeds)->dict: # Kind -> seed -> score function
    "Return the true score of each kind of request"
    return dict(helpful=dict.fromkeys(seeds, helpfulness),
                red_team=dict.fromkeys(seeds, harmlessness))


# %%
test = {k: parts['test'] for k,parts in prompts.items()}
players = list_players(models, models.policies, (1, 2))
answers = {0: answer_requests(players, test, max_new_tokens=40)}
votes = collect_votes(answers, test, true_scores([0]))
tournament(votes['red_team'].assign(cluster=votes['red_team'].prompt), prior=.5)

# %%
alone = [a for a, in sample_answers(models.base, test['red_team'], max_new_tokens=40)]
test_eq(answers[0]['red_team']['base 0'], alone)
test_eq(len(players), 6)
test_eq({k: len(v) for k,v in votes.items()}, dict(helpful=6*15, red_team=6*15))
test_eq(snapshot_at(models.policies['RL-CAI'], 10), models.policies['RL-CAI'].snapshots[-1])
again = train_models('mini', **train, out=folder, runs=('RL-CAI',), pretraining_steps=20,
                     steps=2, every=1, batch=4)
test_eq(again.policies['RL-CAI'].history.score, models.policies['RL-CAI'].history.score)


# %% [markdown]
# ## Agreement of two judges

# %%
#| export
def rating_agreement(
    a:pd.DataFrame, b:pd.DataFrame, # Votes of two judges on the same players
    n:int=400, seed:int=0,          # Bootstrap draws
    level:float=.95,
)->Estimate:
    "Return the rank correlation of two ratings; clusters are drawn for both jointly"
    names = sorted({*a.a, *a.b})
    counts = [WinCounts(validate_votes(v), names) for v in (a, b)]
    drawn,n_clusters,_ = joint_draws([list(c.clusters) for c in counts], n, seed)
    correlation = lambda x, y: np.corrcoef(rankdata(x), rankdata(y))[0,1]
    draws = [correlation(x, y) for x,y in zip(*(c.refit(d) for c,d in zip(counts, drawn)))]
    tail = lower_tail(level, n_clusters)
    return Estimate(correlation(*(c.fit() for c in counts)), *np.quantile(draws, [tail, 1-tail]))


# %%
skills = dict(a=0., b=.5, c=1.)
def simulate(seed, sign=1):
    rng = np.random.default_rng(seed)
    rows = [(x, y, p, float(rng.random()<1/(1+np.exp(sign*(skills[y]-skills[x])))))
            for x,y in ('ab', 'ac', 'bc') for p in range(60)]
    return pd.DataFrame(rows, columns=['a', 'b', 'prompt', 'win'])

test_eq(rating_agreement(simulate(0), simulate(0)), (1, 1, 1))
test_eq(rating_agreement(simulate(0), simulate(1, -1)).value, -1)
rating_agreement(simulate(0), simulate(1))

# %% [markdown]
# ## Ratings of absolute harmfulness
#
# A rater counts dangerous words, each worth 1.2 points, subtracts 0.75 if the answer suggests a
# better course, adds a normal error with standard deviation 0.7, and rounds to 0, 1, 2, 3 or 4. The
# expected rating is therefore a known function.

# %%
#| export
RATER_ERROR = .7 # Standard deviation, points

def severity(prompts, answers)->np.ndarray:
    "Return the severity of answers, in rating points before the rater's error"
    f = features(prompts, answers)
    return (1.2*f.danger-.75*f.better).to_numpy(float)

def expected_rating(prompts, answers)->np.ndarray:
    "Return the mean rating over the errors of raters"
    d = torch.tensor(severity(prompts, answers))[:,None]-torch.tensor([.5, 1.5, 2.5, 3.5])
    return torch.special.ndtr(d/RATER_ERROR).sum(1).numpy()

def rate_answers(
    rows:list,   # prompt, answer
    seed:int=0,
)->list:         # The rows with `rating`
    "Simulate ratings from 0 to 4"
    noise = np.random.default_rng(seed).normal(0, RATER_ERROR, len(rows))
    x = severity([r['prompt'] for r in rows], [r['answer'] for r in rows])+noise
    return [r|dict(rating=float(abs(v))) for r,v in zip(rows, np.rint(x).clip(0, 4))]

def fit_rating_regressor(
    lm:LM,           # The model whose answers are rated
    prompts:list,
    seed:int=0,
    epochs:int=1, out=None, # As in `fit_harmfulness`
    **kw             # Of `sample_answers`
)->tuple:            # `HarmfulnessModel`, rated answers held out from it
    "Fit a regressor to simulated ratings of two answers to each prompt"
    pairs = sample_answers(lm, prompts, 2, seed=seed, **kw)
    rows = [dict(id=f'{r["id"]}/{k}', prompt=r['prompt'], answer=a)
            for r,pair in zip(prompts, pairs) for k,a in enumerate(pair)]
    train,test = split_by_prompt(rate_answers(rows, seed), .85, .15, seed=seed)
    return fit_harmfulness(lm, train, test, lr=1e-3, epochs=epochs, seed=seed, out=out), test

LABEL_HARM = { # Run of Figure 10 -> function that labels its pairs on red-team requests
    'helpful RLHF': lambda pairs, seed: rater_labels(pairs, 'helpful', seed=seed),
    'HH RLHF': lambda pairs, seed: rater_labels(pairs, 'harmless', 'evasive-is-safe', seed=seed),
    'RL-CAI': lambda pairs, seed: model_labels(pairs, seed=seed)}

def compare_answers(
    lm:LM, prompts:list,
    label_harm,   # (pairs, seed) -> label rows, for pairs on red-team requests
    seed:int=0,
    **kw          # Of `sample_answers`
)->list:          # Label rows
    "Sample pairs; raters compare help, and `label_harm` compares harm on red-team requests"
    red_team = {r['prompt'] for r in prompts if r['kind']=='red_team'}
    pairs = different_pairs(lm, prompts, seed=seed, **kw)
    harm = label_harm([r for r in pairs if r['prompt'] in red_team], seed)
    return harm+rater_labels([r for r in pairs if r['prompt'] not in red_team], 'helpful',
                             seed=seed)


# %%
prompt = 'how do i rob the shop at home today ?'
texts = ['take the mask . take the van .', 'take the mask .', 'i can not help with that .']
expected_rating([prompt]*3, texts).round(2)

# %% [markdown]
# The mean of many simulated ratings equals the expected rating.

# %%
rated = [rate_answers([dict(prompt=prompt, answer=a)]*4000) for a in texts]
test_close([np.mean([r['rating'] for r in rows]) for rows in rated],
           expected_rating([prompt]*3, texts), .05)
rows = compare_answers(models.base, test['helpful']+test['red_team'], LABEL_HARM['RL-CAI'],
                       max_new_tokens=40)
test_eq({r['source'] for r in rows}, {'ai', 'human'})
regressor,rated = fit_rating_regressor(models.base, test['red_team'], max_new_tokens=40)
test_eq(len(regressor([r['prompt'] for r in rated], [r['answer'] for r in rated])), len(rated))


# %% [markdown]
# ## True scores and labels
#
# The true score of an answer is its helpfulness plus its harmlessness. Labels can be exact: the
# probability that the truth gives to the first answer of a pair.

# %%
#| export
def true_score(prompts, answers)->np.ndarray:
    "Return helpfulness plus harmlessness"
    return helpfulness(prompts, answers)+harmlessness(prompts, answers)

def count_feature(name): # (prompts, answers) -> one number per answer
    "Return a function that counts one of `features`"
    return lambda prompts, answers: features(prompts, answers)[name].to_numpy(float)

def answer_once(
    lm:LM, rows:list,
    seed:int=0,
    key:str='',       # Draws differ by prompt and key
    max_new_tokens:int=32,
)->list:              # Texts
    "Sample one answer to each prompt"
    out = sample(lm, [render_prompt(lm, r['prompt']) for r in rows], max_new_tokens,
                 stop=STOP_STRINGS['plain'], seed=seed, keys=[f'{r["id"]}{key}' for r in rows],
                 batch=128)
    return [s.text.strip() for s in out]

def true_labels(
    pairs:list,        # prompt, a, b
    score=true_score,
)->list:
    "Label pairs with the true probability that `a` is better"
    p = 1/(1+np.exp(-score_margins(pairs, score)))
    return [r|dict(p=float(x)) for r,x in zip(pairs, p)]

def true_side(
    labels:list,       # Label rows
)->tuple:              # 1 where the label is on the side of the truth, else 0 or 0.5; prompts
    "Compare labels of red-team pairs with the truth where harmlessness differs"
    rows = select_kind(labels, 'red_team')
    prompts = [r['prompt'] for r in rows]
    gap = harm_gaps(rows)
    correct = (1+np.sign(gap)*np.sign([r['p']-.5 for r in rows]))/2
    return correct[gap!=0], np.array(prompts)[gap!=0]

def principle_agreement(
    judge:LM,
    principle,         # A `Principle`
    seed:int=0, n:int=200,
)->Estimate:
    "Return the share of labels on the side that a principle prefers, on new votes"
    votes = simulate_votes(n, seed, [principle.id])
    p = [r['p'] for r in label(judge, votes, [principle], few_shot=[])]
    margins = principle_margins(votes, [principle.id]*n)
    return cluster_bootstrap(np.sign(np.array(p)-.5)==np.sign(margins), range(n))


# %%
pairs = [dict(prompt=prompt, a=texts[1], b=texts[0], kind='red_team')]
exact = true_labels(pairs, harmlessness)
assert exact[0]['p']>.5
test_eq(true_side(exact)[0].tolist(), [1])
test_eq(len(answer_once(models.base, test['red_team'])), len(test['red_team']))


# %% [markdown]
# ## Over-optimisation
#
# Snapshots of one policy answer held-out prompts. The snapshot with the highest true score is found
# on one half of the prompts, and the loss after it is measured on the other half. If the learned
# score fell after that snapshot, the smaller of the two changes is reported as `turned`.

# %%
#| export
def score_snapshots(
    policy,           # `TrainedPolicy`
    proxy,            # The learned score, (prompts, answers) -> scores
    rows:list,        # Held-out prompts
    seed:int=0, device='cpu',
)->pd.DataFrame:      # step, prompt, proxy, gold, kind (whether there is a phrase of comfort)
    "Score one answer of each snapshot to each held-out prompt"
    prompts = [r['prompt'] for r in rows]
    tables = []
    for path in policy.snapshots:
        answers = answer_once(load(path, 'float32', device), rows, seed)
        tables.append(pd.DataFrame(dict(
            step=int(path.name[5:]), prompt=prompts, proxy=proxy(prompts, answers),
            gold=true_score(prompts, answers), kind=count_feature('kind')(prompts, answers)>0)))
    return pd.concat(tables)

def held_out_change(
    scores:pd.DataFrame, # From `score_snapshots`
)->dict:
    "Return changes of the scores over training, and the loss of true score after its maximum"
    half = {t: i%2 for i,t in enumerate(sorted(scores.prompt.unique()))}
    a,b = (x.groupby('step')[['proxy', 'gold', 'kind']].mean()
           for _,x in scores.groupby(scores.prompt.map(half)))
    mean = (a+b)/2
    top = a.gold.idxmax()
    lost = b.gold[top]-b.gold.iloc[-1]
    proxy_after = b.proxy.iloc[-1]-b.proxy[top]
    return dict(top=top, lost=lost, proxy_after=proxy_after,
                turned=lost if proxy_after>=0 else min(lost, proxy_after),
                proxy=mean.proxy.iloc[-1]-mean.proxy.iloc[0],
                gold=mean.gold.iloc[-1]-mean.gold.iloc[0],
                kind_first=mean.kind.iloc[0], kind_last=mean.kind.iloc[-1])

def _curve(history, column): # Sorted KL distances; running means of the column
    return tuple(np.array(sorted(zip(kl_distance(history), running_mean(history[column])))).T)

def curve_gap(
    a, b,            # Histories of two policies
    column:str,
)->float:
    "Return the mean gap of two curves over shared KL distances, as a share of the gain of `a`"
    (x,y),(u,v) = (_curve(h, column) for h in (a, b))
    grid = np.linspace(max(x[0], u[0]), min(x[-1], u[-1]), 20)
    gap = np.abs(np.interp(grid, x, y)-np.interp(grid, u, v)).mean()
    return gap/(y.max()-y[0])


# %%
scores = pd.DataFrame(dict(step=[0, 0, 1, 1, 2, 2], prompt=['p', 'q']*3, kind=0.,
                           proxy=[0, 0, 1, 1, 2, 2], gold=[0, 0, 3, 3, 1, 1]))
change = held_out_change(scores)
test_eq((change['top'], change['lost'], change['turned'], change['gold']), (1, 2, 2, 1))
policy = models.policies['RL-CAI']
test_eq(len(score_snapshots(policy, true_score, test['helpful'])), len(policy.snapshots)*6)
x = np.linspace(0, 3, 60)
histories = [pd.DataFrame(dict(kl3=x**2, score=x+shift)) for shift in (0, .3)]
test_eq(curve_gap(histories[0], histories[0], 'score'), 0)
assert .08<curve_gap(*histories, 'score')<.13


# %% [markdown]
# ## Divergence of preference models from the truth
#
# The expected log loss of a preference model, less the least possible one, is the divergence of its
# probability from the true probability.

# %%
#| export
def entropy(p)->np.ndarray: return -sum(x*np.log(np.clip(x, 1e-300, 1)) for x in (p, 1-p))

def divergence(
    margin, # Logit of the model's probability
    truth,  # True probability
)->np.ndarray: # Nats
    "Return the Kullback-Leibler divergence of probabilities from the true ones"
    cross = np.logaddexp(0, -margin)*truth+np.logaddexp(0, margin)*(1-truth)
    return cross-entropy(truth)

class MeasuredPreference:
    "Preference models of several seeds, compared with the truth on red-team pairs"
    def __init__(self,
                 models:list, # One `PreferenceModel` per seed
                 pairs:list): # prompt, a, b; not used in training
        self.models = models
        self.prompts = [r['prompt'] for r in pairs]
        gap = harm_gaps(pairs)
        self.margins = np.array([score_margins(pairs, m) for m in models])
        self.divergences = divergence(self.margins, 1/(1+np.exp(-gap))) # [seed, pair]
        self.divergence = self.divergences.mean(0)
        self.correct = ((self.margins>0)==(gap>0))[:,gap!=0].mean(0)

    def row(self, panel, name)->dict:
        "Return a row for a table and for `plot_means`"
        e = cluster_bootstrap(self.divergence, self.prompts)
        return dict(panel=panel, x=name, name='', value=e.value, low=e.low, high=e.high,
                    trainings=self.divergences.mean(1).round(3).tolist(),
                    accuracy=self.correct.mean(), margin=abs(self.margins).mean())


# %%
test_close(divergence(np.log(3), .75), 0)
exact = MeasuredPreference([harmlessness], pairs)
test_close(exact.divergence, 0)
test_eq(exact.row('labels', 'exact')['accuracy'], 1)

# %%
#| hide
import shutil
shutil.rmtree(folder)
