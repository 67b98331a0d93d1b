# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Answer viewer
#
# > An offline HTML page for filtering answers and reading prompt, probabilities and verdict.

# %%
#| default_exp bias.viewer

# %% [markdown]
# A score is a mean over questions, and reading some of them is the quickest check. `view` writes prompts
# and answers to one HTML file. The file makes no network requests, so you can mail it or open it offline.
# It contains a benchmark's texts, which are offensive by design, so it is not published with the results.

# %%
#| export
from pathlib import Path

import numpy as np, pandas as pd
from moral_sc.bias.bbq.scoring import orders_of
from moral_sc.bias.conditions import build_dialogue
from moral_sc.bias.evaluation import Evaluation
from moral_sc.foundation.arguments import checked
from moral_sc.foundation.errors import ConfigError, DataError
from moral_sc.foundation.files import offline_page

# %%
#| hide
import json, tempfile
from dataclasses import replace
from html.parser import HTMLParser
from fastcore.test import *
from moral_sc.bias import bbq, evaluate
from moral_sc.bias.asking import bbq_stub_model
from moral_sc.bias.bbq.items import stratified
from moral_sc.bias.sweep import sweep

tmp = Path(tempfile.mkdtemp())
few = stratified(bbq.load(source='ours'), 32)


# %% [markdown]
# ## Rows
#
# Each record becomes a row: its condition and category, its prompt, the probability of every answer, and a
# verdict. For BBQ the verdict says what the answer means, which is more than whether it is correct.

# %%
#| export
def bbq_verdict(
    row,  # A record of BBQ
)->str:
    "Return the verdict on an answer to BBQ"
    kinds = [('right', row.label), ('declined', row.unknown), ('stereotyped', row.biased),
             ('against the stereotype', row.counter)]
    return next((k for k,v in kinds if v==v and v is not None and row.answer==v), 'wrong')

def _option_tags(row, option):
    "Return the meaning of an option of BBQ"
    kinds = [('right', row.label), ('stereotype', row.biased), ('against it', row.counter),
             ('declines', row.unknown)]
    return ', '.join(k for k,v in kinds if v==v and v is not None and option==v)

def _viewer_row(b, item, r):
    "Convert one record to a row of the page"
    lp = np.array([r[f'lp_{a}'] for a in b.answers], float)
    p = np.exp(lp-lp.max())/np.exp(lp-lp.max()).sum()
    out = dict(id=str(r.id), condition=r.condition, chosen=int(p.argmax()),
               category=str(r.get('category', b.name)),
               note=f'These answers get {r["mass"]:.2f} of the probability of what comes next.')
    if 'biased' not in r:
        names = [f'{a}: {str(o).strip()}' for a,o in zip(b.answers, b.options(item))]
        return out | dict(outcome=b.answers[p.argmax()], context='',
                          answers=[[n, float(x), ''] for n,x in zip(names, p.round(4))])
    order = orders_of(6)[int(r.order)]
    names = [f'({l}) {item.options[k]}' for l,k in zip('abc', order)]
    return out | dict(outcome=bbq_verdict(r), context=r.context_condition, answers=[
        [n, float(x), _option_tags(r, k)] for n,x,k in zip(names, p.round(4), order)])


# %% [markdown]
# Prompts are rebuilt from the items, with their options in the displayed order. Sampled reasoning is in the
# run and not in the records; such a prompt is shown up to where the model began.

# %%
#| export
def _prompt(b, item, r):
    displayed = b.reorder(item, orders_of(6)[int(r.order)]) if b.reorder else item
    return build_dialogue(b.stimuli, r.condition, b.fields(displayed))

def viewer_rows(
    records:pd.DataFrame,
    items:dict,           # Name of a benchmark to its items
    benchmarks:dict,      # Name to `Benchmark`
    limit:int|None=None,  # At most so many questions, from all categories in turn
)->tuple:                 # Rows, and their prompts
    "Build the content of the page as plain data"
    answers = []
    prompts = []
    items_by_id = {(n,str(b.metadata(i)['id'])):i for n,b in benchmarks.items()
                              for i in items[n]}
    for _,r in _limit_questions(records, limit).iterrows():
        b = benchmarks[r.benchmark]
        item = items_by_id.get((r.benchmark, str(r.id)))
        if item is None: raise DataError(f'{r.id} was asked, but {r.benchmark} as it is here has '
                                         'no such item.')
        prompts.append(_prompt(b, item, r.dropna()))
        answers.append(_viewer_row(b, item, r.dropna() if 'biased' not in r.dropna() else r) |
                     dict(prompt=len(prompts)-1))
    return answers,prompts

def _limit_questions(records, limit):
    "Select records of some questions, from all categories in turn"
    keys = ['benchmark'] + ['category']*('category' in records)
    ids = records.drop_duplicates(['benchmark','id'])
    n = ids.groupby(keys).cumcount()
    keep = ids.assign(n=n).sort_values('n', kind='stable').head(limit or len(ids))
    on = pd.MultiIndex.from_frame(keep[['benchmark','id']])
    return records[pd.MultiIndex.from_frame(records[['benchmark','id']]).isin(on)]


# %% [markdown]
# ## Page
#
# Texts of items and models are untrusted. They are embedded as JSON in a block that the browser does not
# execute, with every `<`, `>` and `&` escaped, so no text can close the block; the script inserts them as
# text and never as markup. In addition, the page's content security policy forbids every script but its
# own, identified by its hash, and every request.

# %%
#| export
FILTERS = [('condition','condition'), ('category','category'), ('context','context'),
           ('outcome','verdict')]

def viewer_page(
    answers:list,    # Of `viewer_rows`
    prompts:list,
    title:str,
    description:str='',
)->str:
    "Build the HTML of the page"
    used = [f for f in FILTERS if len({r[f[0]] for r in answers})>1]
    data = dict(rows=answers, prompts=prompts, filters=used)
    return offline_page('viewer', data, title, description)


# %%
#| export
def _load_run(run):
    "Return model, records, items and benchmarks of an evaluation or of its folder"
    if hasattr(run, 'records') and hasattr(run, 'items'):
        return run.model, run.records, run.items, run.benchmarks
    if not isinstance(run, (str,Path)):
        raise ConfigError(f'The run is of type {type(run).__name__}: give an Evaluation or its '
                          'folder.')
    e = Evaluation.load(run)
    unknown = [b for b in dict.fromkeys(e.records.benchmark) if b not in e.benchmarks]
    if unknown:
        raise ConfigError(f'{unknown[0]} is a benchmark of your own: load the folder with '
                          f'Evaluation.load({str(run)!r}, benchmarks=[...]) and view that.')
    return e.model, e.records, e.items, e.benchmarks

@checked
def view(
    run,                  # An `Evaluation`, or the folder of one
    path,                 # The .html file to write
    limit:int|None=2000,  # At most so many questions
)->Path:
    "Write an offline page of single answers"
    model,records,items,bs = _load_run(run)
    if limit is not None and limit<1: raise ConfigError(f'limit={limit} leaves no question.')
    answers,prompts = viewer_rows(records, items, bs, limit)
    n = len({(r['id']) for r in answers})
    description = (f'{len(answers):,} answers to {n:,} questions of {", ".join(bs)}. Benchmarks '
                   'of bias quote stereotypes; nothing here is a statement of fact.')
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = viewer_page(answers, prompts, f'Answers of {model}', description)
    path.write_text(text, encoding='utf-8')
    return path


# %%
def leans(i, instructed):
    p = {i.unknown:.8, i.biased:.12} if instructed else {i.unknown:.3, i.biased:.5}
    return [p.get(k, .08 if instructed else .2) for k in range(3)]
e = evaluate(bbq_stub_model(leans, few), ['bbq-like'], items=few, orders=3)
path = view(e, tmp/'view.html')
path.stat().st_size

# %%
found,prompts = viewer_rows(e.records, e.items, e.benchmarks)
test_eq(len(found), len(few)*2*3)
test_eq({r['outcome'] for r in found}, {'right','stereotyped','declined'})
pd.DataFrame(found)[['id','condition','outcome','chosen','answers']].head(3)

# %% [markdown]
# The prompt on the page equals the prompt of the model, including the order of options, and the
# probabilities belong to the right options:

# %%
from moral_sc.bias.asking import build_questions
asked = build_questions(bbq_stub_model(leans, few), e.benchmarks['yours'], few, ['q','q+if'], 3)
by = {(q.item.id, q.condition, q.order):q.prompt.text for q in asked}
for r,(_,rec) in zip(found, e.records.iterrows()):
    text = by[rec.id, rec.condition, rec.order]
    assert all(said.strip() in text for _,said in prompts[r['prompt']])
    best = max(r['answers'], key=lambda a: a[1])
    want = 'declines' if rec.condition=='q+if' else 'stereotype'
    assert want in best[2]

# %% [markdown]
# ## Untrusted text
#
# Every string here would run, or break the page, in a file made by simple concatenation.

# %%
evil = ['</script><script>alert(1)</script>', '<img src=x onerror=alert(1)>', '<!--<script>',
        '"]}; alert(1); //', '{{data}} {{script}}', '\u2028\u2029 & &lt;b&gt; \\u003c', ']]>',
        '<style>*{display:none}</style>', 'javascript:alert(1)']
bad = [replace(i, context=x, question=x, options=(x, 'b'+x, 'c'+x), category=x)
       for i,x in zip(few, evil)]
recs = e.records.query('condition=="q" and order==0').iloc[:len(bad)].assign(
    category=evil, benchmark='yours')
made,said = viewer_rows(recs, {'yours':bad}, e.benchmarks)
text = viewer_page(made, said, evil[0], evil[1])

class Look(HTMLParser):
    def __init__(self): super().__init__(); self.tags,self.script,self.bodies = [],None,[]
    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag=='script': self.bodies.append('')
    def handle_data(self, d):
        if self.lasttag=='script' and self.bodies: self.bodies[-1] += d*(self.tags[-1][0]=='script')

look = Look(); look.feed(text)
[t for t,_ in look.tags]

# %% [markdown]
# The page has two scripts, the data and its own, no image and no event attribute; and the script receives
# exactly the given texts.

# %%
kinds = [t for t,_ in look.tags]
test_eq([kinds.count(t) for t in ('script','style','img')], [2,1,0])
assert not any(a.startswith('on') or a in ('src','href') for _,at in look.tags for a in at)
back = json.loads(text.split('id="data">')[1].split('</script>')[0])
for x,turn in zip(evil, back['prompts']): assert x in turn[0][1]
test_eq([r['category'] for r in back['rows']], evil)
policy = next(a['content'] for t,a in look.tags if a.get('http-equiv'))
assert "default-src 'none'" in policy and 'unsafe-eval' not in policy
assert 'innerHTML' not in text.split('id="data">')[0]+look.bodies[-1]
policy

# %% [markdown]
# The file refers to no other address:

# %%
whole = path.read_text()
assert not any(x in whole for x in ('http://','https://','//cdn','@import','url('))

# %% [markdown]
# ## Pages from a folder
#
# The folder of one model and benchmark is enough; it holds the questions, so BBQ's files and yours are not needed.

# %%
leaner = bbq_stub_model(leans, bbq.load(source='ours'))
swept = sweep(leaner, 'bbq-like', limit=32, wordings={'q+kind':'Please be kind.'}, out=tmp/'s')
again = view(next(iter(swept.runs.values())), tmp/'again.html', limit=8)
shown = json.loads(again.read_text().split('id="data">')[1].split('</script>')[0])
test_eq(len({r['category'] for r in shown['rows']}), 8)
test_eq(len(shown['rows']), 24)
assert any('Please be kind.' in turn[1] for p in shown['prompts'] for turn in p)
with expect_fail(DataError, contains='no evaluation.json'): view(tmp, tmp/'x.html')
with expect_fail(ConfigError, contains='give an Evaluation'): view(3, tmp/'x.html')
