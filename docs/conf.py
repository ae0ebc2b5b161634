"""Sphinx configuration of the documentation site: `make docs`, which also runs the notebooks."""

import dataclasses
import logging
import os
import re
from pathlib import Path

from jupyter_cache import get_cache
from jupyter_cache.executors import load_executor

from vitsplit.cli.flags import setting_texts
from vitsplit.config import Settings
from vitsplit.config_errors import describe, field_kinds, flag_of
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
# The kernels run at the same time, one per core (`run_notebooks`).
os.environ.setdefault("OMP_NUM_THREADS", "1")
# tqdm asks for ipywidgets in a notebook, which no page shows.
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False


def list_settings(app, what, name, obj, options, lines):
    """Appends the fields of a settings class to its docstring: flag, type with bounds, default, and description."""
    if what != "class" or not issubclass(obj, Settings):
        return
    texts, kinds = setting_texts(obj), field_kinds(obj)
    for field in dataclasses.fields(obj):
        kind, flag = kinds[field.name], flag_of(field.name)
        flags = [flag, *[f"--no-{flag[2:]}"] * (kind is bool)]
        values = describe(kind)
        # Groups of settings have no flag of their own.
        words = "" if values.startswith("an object with settings") else f"``{', '.join(flags)}``: {values}."
        default = default_of(field)
        lines += ["", f".. attribute:: {field.name}", *[f"   :value: {default}"] * (default is not None), ""]
        text = re.sub(r"`([^`]+)`", r"``\1``", texts[field.name])  # code, as in Markdown
        lines += [f"   {text}", "", f"   {words}"]


def default_of(field):
    """The default of a field as Python code; None: required."""
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if value is dataclasses.MISSING:
        return None
    return f"{type(value).__name__}()" if isinstance(value, Settings) else repr(value)


def without_signature(app, what, name, obj, options, signature, return_annotation):
    """The constructor of a settings class takes the fields that are listed."""
    return ("", None) if what == "class" and issubclass(obj, Settings) else None


def run_notebooks(app):
    """Runs the notebooks that are not in the cache at the same time; Sphinx would run them one by one.

    One that fails is not in the cache afterwards: Sphinx runs it again, and reports the error.
    """
    if app.config.nb_execution_mode != "cache":
        return
    cache = get_cache(Path(app.outdir).parent / ".jupyter_cache")
    names = sorted(map(str, (Path(app.srcdir) / "notebooks").glob("*.md")))
    for name in names:
        cache.add_nb_to_project(name, read_data={"name": "myst_nb_md", "type": "plugin"})
    logger = logging.getLogger("jupyter_cache")
    logger.setLevel(logging.WARNING)
    executor = load_executor("temp-parallel", cache, logger)
    executor.run_and_cache(filter_uris=names, timeout=app.config.nb_execution_timeout)


def setup(app):
    """Called by Sphinx."""
    app.connect("builder-inited", run_notebooks)
    app.connect("autodoc-process-docstring", list_settings)
    app.connect("autodoc-process-signature", without_signature)
