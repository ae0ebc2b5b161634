"""Sphinx configuration of the documentation site: `make docs`, which also runs the notebooks."""

import os

from vitsplit.version import __version__

project = "vitsplit"
author = "The vitsplit developers"
copyright = "The vitsplit developers, Apache-2.0"
release = version = __version__

extensions = [
    "myst_nb",  # myst_parser, and notebooks
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
nitpicky = False

highlight_language = "none"

html_theme = "furo"
html_title = "vitsplit"
html_static_path = ["_static"]
html_css_files = ["site.css"]

# Links to headings, as in the pages on GitHub.
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist"]

# Pages in notebooks/ are run once and again after a change of their code, and their pictures are those of the site.
nb_execution_mode = "cache"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 600  # seconds of a cell
nb_merge_streams = True
# tqdm asks for ipywidgets in a notebook, which no page shows.
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"

autodoc_typehints = "description"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
