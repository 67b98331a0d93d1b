# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Interactive figures
#
# > A block of a page becomes a figure that runs in the reader's browser, without a server.

# %%
#| default_exp lab.site.interactive

# %%
#| export
import os, re, subprocess
from pathlib import Path

from moral_sc.foundation.errors import ConfigError, unknown_name_message

# %%
#| hide
import json, tempfile
import torch
from fastcore.test import *
from moral_sc.foundation.datasets import data_dir
from moral_sc.superposition import ToyConfig, exact_loss, train
from moral_sc.superposition.features import Sampler
from moral_sc.superposition.model import initial_weights
torch.set_num_threads(1)

# %% [markdown]
# A reader who can change density and seed sees more than one who looks at three pictures. Raw HTML
# is not allowed on our pages, so a figure that runs has a block of its own. It holds what is shown
# where no script runs, on GitHub for instance: a picture and a sentence.
#
#     ::: {.interactive name=toy-model}
#     ![Columns of W of five models.](../../../docs/pictures/toy-model.png)
#     :::
#
# On the site and in a report, the scripts of that figure replace the content of the block.
# They are plain JavaScript files in `data/interactive`, are not minified, and load nothing, so the
# figure also runs from a folder.

# %%
#| export
FIGURES = {'toy-model': ('toy_model.js', 'toy_optima.js', 'toy_figure.js')} # Scripts of each
STYLE = 'interactive.css'

def replace_blocks(
    text:str,  # Markdown
    render,    # Function of a figure's name and the Markdown inside its block
)->str:
    "Replace each block of an interactive figure."
    def block(m):
        if m[1] not in FIGURES:
            raise ConfigError(unknown_name_message('interactive figure', m[1], list(FIGURES)))
        if inner := re.search('^:::.*', m[2], re.M):
            raise ConfigError(f'The block of {m[1]} holds {inner[0]!r:.60}: move that block out of '
                              'it and leave a picture and text.')
        return render(m[1], m[2].strip())
    text = _block.sub(block, text)
    if m := _opening.search(text):
        raise ConfigError(f'{m[0]!r:.80} opens no block: write "::: {{.interactive name=NAME}}", '
                          'the text, and ":::" on a line of its own.')
    return text

_opening = re.compile(r'^:::.*\.interactive\b.*$', re.M)
_block = re.compile(r'^::: *\{\.interactive +name=([\w-]+)\} *\n(.*?)^:::+ *$', re.M|re.S)

def myst_block(name, body):
    "Return the block of an interactive figure as MyST; arguments as `replace_blocks` gives them."
    return f':::{{container}} interactive {name}\n{body}\n:::'

def scripts_of(
    html:str, # A page
)->list:      # Names of files in `data/interactive`
    "List the scripts of the interactive figures of a page."
    found = re.findall(r'class="(?:[\w-]+ )*interactive ([\w-]+)', html)
    return list(dict.fromkeys(f for name in found for f in FIGURES.get(name, ())))


# %%
replace_blocks('''Try it.

::: {.interactive name=toy-model}
![Columns.](toy-model.png)
:::''', myst_block)

# %%
test_eq(scripts_of('<div class="interactive toy-model docutils container">'),
        list(FIGURES['toy-model']))
test_eq(scripts_of('<p class="interactively">interactive toy-model</p>'), [])
with expect_fail(ConfigError, contains='toy-model'):
    replace_blocks('::: {.interactive name=toy-modle}\nx\n:::', myst_block)
nested = '::: {.interactive name=toy-model}\n::: {.callout-note}\nx\n:::\n:::'
with expect_fail(ConfigError, contains='.callout-note'): replace_blocks(nested, myst_block)


# %% [markdown]
# ## A browser for tests and pictures
#
# What a figure computes is tested in the program that readers use: a Chromium without a window.

# %%
#| export
def is_chromium(
    path, # A program
)->bool:
    "Whether a program calls itself Chromium or Chrome; kaleido waits for others for ever."
    try: run = subprocess.run([path, '--version'], capture_output=True, timeout=30) # noqa: S603
    except (OSError, subprocess.TimeoutExpired): return False
    return b'Chrom' in run.stdout

def find_browser()->str|None:
    "Return the path of a Chromium, from `BROWSER_PATH` or where kaleido finds one, or None."
    try: from choreographer.browsers.chromium import Chromium
    except ImportError: return None
    path = os.environ.get('BROWSER_PATH') or Chromium.find_browser(skip_local=False)
    return path if path and Path(path).is_file() and is_chromium(path) else None


# %%
#| hide
def figure_page(
    name:str,      # An interactive figure
    script:str='', # JavaScript that runs when the figure is ready
    style:str='',  # CSS of the page around it
)->str:
    "Return an HTML page that consists of one interactive figure."
    read = lambda f: (data_dir()/'interactive'/f).read_text(encoding='utf-8')
    scripts = ''.join(f'<script>{read(f)}</script>' for f in FIGURES[name])
    return (f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<style>{read(STYLE)}{style}</style><body><main><div class="interactive {name}"></div>'
            f'{scripts}<script>addEventListener("DOMContentLoaded", () => {{{script}}})</script>'
            '</main></body></html>')

def run_in_browser(
    page:str,       # HTML
    *options,       # Command-line options of Chromium, such as `--window-size=390,800`
    seconds=300,    # After which it is stopped
)->str:             # The page after its scripts have run
    "Open a page in a Chromium without a window."
    browser = find_browser()
    if not browser:
        raise ConfigError('This needs Chromium: install it, or set BROWSER_PATH to it.')
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        file = Path(folder)/'page.html'
        file.write_text(page, encoding='utf-8')
        command = [browser, '--headless=new', '--no-sandbox', '--disable-gpu',
                   f'--user-data-dir={folder}/profile', *options, '--dump-dom', file.as_uri()]
        run = subprocess.run(command, capture_output=True, timeout=seconds, text=True) # noqa: S603
    return run.stdout


# %% [markdown]
# The picture that a block holds is a screenshot of its figure.

# %%
SCRIPTS = {'toy-model': '''
    document.querySelector('[id$=speed]').value = '1000000000';
    document.querySelector('button').click();'''} # Bring a figure into the state of its picture

def draw_picture(
    name:str,  # An interactive figure
    path,      # A PNG
    width=680, # Pixels
)->Path:
    "Draw the picture of an interactive figure."
    from PIL import Image, ImageChops
    path = Path(path).resolve()
    page = figure_page(name, SCRIPTS[name], 'body{margin:8px;background:#fff}')
    run_in_browser(page, f'--window-size={width},1200', '--virtual-time-budget=60000',
                   f'--screenshot={path}')
    image = Image.open(path).convert('RGB')
    box = ImageChops.difference(image, Image.new('RGB', image.size, 'white')).getbbox()
    image.crop((0, 0, width, box[3]+8)).quantize(64).save(path, optimize=True)
    return path


# %%
if find_browser():
    with tempfile.TemporaryDirectory() as folder:
        picture = draw_picture('toy-model', Path(folder)/'toy-model.png')
        assert picture.stat().st_size>5000
        print(f'{picture.stat().st_size/1000:.0f} kB')


# %% [markdown]
# ## The toy model in the browser
#
# `toy-model` trains the [ReLU output model](../../superposition/20_model.ipynb) with two hidden
# dimensions. Its random numbers come from the same
# [counter](../../superposition/10_features.ipynb), so a seed gives the same models as the same seed
# in Python. Both train from it for 200 steps below, and then we compare.

# %%
#| hide
def results_in_browser(
    name:str,       # An interactive figure
    expression:str, # JavaScript that uses its functions
):                  # What JSON holds of its value
    "Evaluate an expression on the page of an interactive figure."
    script = ("const node = document.createElement('script'); node.type = 'application/json'; "
              f"node.id = 'result'; node.textContent = JSON.stringify({expression}); "
              "document.body.append(node)")
    dom = run_in_browser(figure_page(name, script))
    found = re.search(r'<script type="application/json" id="result">(.*?)</script>', dom, re.S)
    if not found: raise ConfigError(f'The page of {name} ended without a result: run its script '
                                    'in a browser and look at the console.')
    return json.loads(found[1])


# %%
importance = [.9**i for i in range(5)]
config = ToyConfig(5, 2, 2, density=.1, importance=importance)
run = train(config, steps=10_000, stop=200, batch_size=256, seed=3, engine='eager', log_every=1)
start = initial_weights(config, seed=3)[0]
batches = Sampler(config.densities, range(2), 256, seed=3)

# %% [markdown]
# The browser starts from weights of its own, and once more from Python's. It returns
# the inputs of three steps, what 200 steps lead to, and exact losses, also where columns are zero or
# orthogonal, features always on, and densities low.

# %%
_ = torch.manual_seed(0)
cases = [dict(n=n, density=p, W=W.flatten().tolist(), b=b.tolist(), importance=i.tolist())
         for n,p in ((2,1.),(3,.5),(5,.1),(8,.2),(8,.01))
         for W,b,i in [(torch.randn(n, 2, dtype=torch.float64), .2*torch.randn(n).double()-.1,
                        torch.rand(n).double())]]
cases.append(cases[2] | dict(W=[1.,0, 0,1, 0,0, -1,1e-5, 1e-9,0]))
expression = f'''(() => {{
  const settings = {{n: 5, density: .1, importance: {importance}, seed: 3}};
  const make = i => toyModel.create({{...settings, instance: i}});
  const start = {start.flatten(1).tolist()};
  return {{
    models: [0, 1].map(i => {{
      const own = make(i), given = make(i), W0 = [...own.W];
      given.W.set(start[i]);
      const inputs = [0, 1, 199].map(s => [...toyModel.inputs(own, s)]), loss = [];
      for (let s = 0; s < 200; s++) {{ toyModel.train(own); loss.push(own.loss); }}
      toyModel.train(given, 200);
      return {{W0, inputs, loss, W: [...own.W], b: [...own.b],
              Wgiven: [...given.W], bgiven: [...given.b]}};
    }}),
    exact: {json.dumps(cases)}.map(toyModel.exactLoss),
    normal: [1e-9, .001, .3, .5, .9, .9999].map(toyModel.normalQuantile),
    text: document.querySelector('.interactive .result').textContent}};
}})()'''
found = results_in_browser('toy-model', expression) if find_browser() else None
print('compared' if found else 'Not compared: there is no Chromium here.')


# %%
#| hide
def difference(key, expected):
    "Return the largest difference between the browser's models and Python's"
    return max((torch.tensor(m[key])-e.flatten()).abs().max().item()
               for m,e in zip(found['models'], expected))


# %%
if found:
    drawn = [torch.stack([batches(s)[i] for s in (0,1,199)]) for i in range(2)]
    double = lambda v: torch.tensor(v, dtype=torch.float64)
    expected = [exact_loss(double(c['W']).view(-1, 2), double(c['b']), c['density'],
                           c['importance']).item() for c in cases]
    differences = dict(
        inputs=max((torch.tensor(m['inputs'])-x.flatten(1)).abs().max().item()
                   for m,x in zip(found['models'], drawn)),
        initial_W=difference('W0', start), loss=difference('loss', run.loss),
        W=difference('W', run.W), b=difference('b', run.b),
        W_from_given_start=difference('Wgiven', run.W),
        b_from_given_start=difference('bgiven', run.b),
        exact_loss=max(abs(a-b) for a,b in zip(found['exact'], expected)))
    print(differences)

# %% [markdown]
# Inputs are equal to the bit, and weights differ by rounding.

# %%
if found:
    test_eq(differences['inputs'], 0)
    assert differences['initial_W']<1e-6 and differences['exact_loss']<1e-9
    assert differences['W_from_given_start']<1e-4 and differences['b_from_given_start']<1e-4
    assert all(differences[k]<1e-4 for k in ('loss','W','b'))
    normal = torch.special.ndtri(double([1e-9,.001,.3,.5,.9,.9999]))
    test_close(found['normal'], normal.tolist(), 1e-6)
    assert 'optimum' in found['text']

# %% [markdown]
# The random numbers are those of Python, so their distribution needs no test of its own: shares and
# moments are tested [there](../../superposition/10_features.ipynb).
#
# Scripts, table and style of a figure have at most 60 kB, and no file names an address to load from.

# %%
texts = [(data_dir()/'interactive'/f).read_text() for f in (*FIGURES['toy-model'], STYLE)]
size = sum(len(t.encode()) for t in texts)
assert size<60_000
assert not any(re.search(r'fetch\(|import\(|XMLHttpRequest|@import|url\(', t) for t in texts)
addresses = {u for t in texts for u in re.findall(r'https?://[^"\s]+', t)}
test_eq(addresses, {'http://www.w3.org/2000/svg'})
size
