"""The settings of the docs site; `make docs` builds it into `site/`."""

import sys
from pathlib import Path

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))

import reference_pages

from titok_hf.version import __version__

project = "titok_hf"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["images/README.md"]
html_theme = "furo"
html_title = f"titok_hf {__version__}"
html_show_sourcelink = False
myst_heading_anchors = 3
autodoc_typehints = "none"  # they stand in the signature already
autodoc_default_options = {"members": True, "inherited-members": False}
napoleon_google_docstring = True


def setup(app: Sphinx) -> None:
    """Writes the pages that are made from the package itself."""
    app.add_lexer("mermaid", TextLexer)  # drawn on GitHub alone
    reference_pages.write(Path(app.srcdir) / "reference")
