"""Sphinx configuration of the documentation site: `make docs`."""

from vitsplit.version import __version__

project = "vitsplit"
author = "The vitsplit developers"
copyright = "The vitsplit developers, Apache-2.0"
release = version = __version__

extensions = [
    "myst_parser",
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
html_static_path: list[str] = []

# Links to headings, as in the pages on GitHub.
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist"]

autodoc_typehints = "description"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
