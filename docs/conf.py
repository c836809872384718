"""Sphinx configuration: ``sphinx-build -W --keep-going -b html docs docs/_build/html``."""

from __future__ import annotations

import re
from typing import Any

import gpu_als

project = "gpu_als"
author = "the gpu_als developers"
project_copyright = author
version = release = gpu_als.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}

myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"gpu_als {release}"
html_show_sphinx = False


def keep_formulas(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Show the indented formulas of docstrings as they are written.

    Docstrings set formulas off by indentation alone. To reStructuredText that is a quotation, in
    which ``|X|`` would be a substitution.
    """
    kept: list[str] = []
    last_text = ""
    for line in lines:
        indented = line.startswith("    ") and kept and not kept[-1].strip()
        if indented and last_text and not last_text.startswith((" ", "-")):
            kept += [] if last_text.endswith("::") else ["::", ""]
        kept.append(line)
        last_text = line if line.strip() else last_text
    lines[:] = kept


def keep_names(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Show attributes by their names: ``report_`` does not become a link, ``a, b`` become two."""

    def plain(match: re.Match[str]) -> str:
        names = match[2].replace(", ", ",")
        if names.endswith("_"):
            names = names[:-1] + r"\_"
        return f":{match[1]} {names}:"

    lines[:] = [re.sub(r"^:(ivar|vartype) ([^:]+):", plain, line) for line in lines]


def setup(app: Any) -> None:
    """Run before and after napoleon, whose priority is 500, rewrites the sections."""
    app.connect("autodoc-process-docstring", keep_formulas, priority=400)
    app.connect("autodoc-process-docstring", keep_names, priority=600)
