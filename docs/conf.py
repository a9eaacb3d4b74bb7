"""The site's settings: `make docs`. Sphinx and MyST are maintained, read Markdown, and need no network."""

import re
from importlib import metadata
from typing import Any


project = "hf_igpt"
author = "The hf_igpt contributors"
copyright = author
version = release = metadata.version("hf-igpt")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "index"
# README.md is part of index.rst.
exclude_patterns = ["README.md", "results", "*.py"]
html_theme = "furo"
html_title = "hf_igpt"
html_copy_source = False
html_show_sphinx = False
pygments_style = "default"

# A test executes the notebooks; the site shows what they hold.
nb_execution_mode = "off"
myst_heading_anchors = 3
# The text between backticks in docstrings is code, as in Markdown.
default_role = "code"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_default_options = {"show-inheritance": False}


def as_rst(app: Any, what: str, name: str, thing: object, options: Any, lines: list[str]) -> None:
    """Docstrings are written to be read as they stand; what Sphinx would take for markup of its own is escaped."""
    if what == "class" and not (getattr(thing, "__doc__", None) or "").strip():
        lines[:] = []
    for place, line in enumerate(lines):
        line = re.sub(r"(?<![`*])\*\*(?=\w)", r"\*\*", line)
        lines[place] = re.sub(r"\[(`[^`]+`)\]", r"\1", line)


def setup(app: Any) -> dict[str, bool]:
    """Before napoleon, which has the priority 500."""
    app.connect("autodoc-process-docstring", as_rst, priority=400)
    return {"parallel_read_safe": True}
