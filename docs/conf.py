"Settings of the site; `moral_sc site build`, or `sphinx-build -W -c docs nbs _build/html`"
import warnings
from pathlib import Path

import font_source_serif_pro
import plotly
import ziamath

import moral_sc
from moral_sc.lab.site.build import linkcode, write_toc
from moral_sc.lab.site.pages import REPOSITORY

here = Path(__file__).parent
beside = lambda module, name: str(Path(module.__file__).parent / name)
cuts = ("Regular", "It", "Semibold", "SemiboldIt")
typeface = [f"files/SourceSerifPro-{cut}.ttf" for cut in cuts]

project, author, release = "moral_sc", "moral_sc contributors", moral_sc.__version__
copyright = "2026 moral_sc contributors, Apache-2.0"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.linkcode",
    "sphinxcontrib.bibtex",
    "sphinx_copybutton",
    "sphinx_external_toc",
    "moral_sc.lab.site.build",
]
external_toc_path = str(write_toc(here.parent))
exclude_patterns = ["_py", "**.ipynb_checkpoints"]
suppress_warnings = ["config.cache"]

# Our reader converts the notebooks; nothing is executed while the site is built.
nb_execution_mode = "off"
nb_custom_formats = {".ipynb": ["moral_sc.lab.site.pages.read_page", {}]}
nb_render_markdown_format = "myst"
nb_output_stderr = "remove"
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3
html_math_renderer = "mathml"

bibtex_bibfiles = [str(here / "references.bib")]
bibtex_reference_style = "author_year"
bibtex_default_style = "plain"

# Each of our own names must resolve; those of other libraries have no pages here.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!moral_sc).*")]
linkcode_resolve = linkcode
add_module_names = False
autodoc_mock_imports = ["inspect_ai"]  # of bias.inspect_tasks; not needed to build the site
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_default_options = {"members": True, "member-order": "bysource"}
python_maximum_signature_line_length = 60
warnings.filterwarnings("ignore", module="furo")

# Looks
html_theme, html_title = "furo", "moral_sc"
html_logo = html_favicon = str(here / "logo.svg")
html_static_path = [
    beside(plotly, "package_data/plotly.min.js"),
    beside(ziamath, "fonts/STIXTwoMath-Regular.ttf"),
    *[beside(font_source_serif_pro, f) for f in typeface],
    str(here / "style.css"),
    str(here.parent / "data" / "report" / "figures.js"),
    str(here / "page.js"),
    str(here.parent / "data" / "interactive"),
]
html_css_files = ["style.css"]
html_js_files = [("page.js", {"defer": "defer"})]
html_search_scorer = str(here / "scorer.js")
html_copy_source = False
pygments_style, pygments_dark_style = "xcode", "github-dark"
copybutton_selector = "div.highlight:not(.output *) pre"
copybutton_prompt_text = "$ "
html_theme_options = {
    "source_view_link": REPOSITORY + "/blob/main/nbs/{filename}",
    "top_of_page_buttons": ["view"],
}
