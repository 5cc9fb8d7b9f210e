"""The documentation site; `make docs` builds it, and a warning is an error."""

from sphinx.application import Sphinx

import torchfault

project, author = "torchfault", "The torchfault contributors"
copyright = "2026, The torchfault contributors"
version = release = torchfault.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary"]
exclude_patterns = ["_build", "figures"]
html_theme = "furo"
html_title = f"torchfault {version}"
html_copy_source = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4

autodoc_typehints = "none"  # signatures show them
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": False}
autosummary_generate = True
autosummary_ignore_module_all = False
autosummary_context = {"explained": torchfault.__all__}  # on pages of their own, so modules leave them out
templates_path = ["_templates"]
python_use_unqualified_type_names = True
add_module_names = False


def setup(app: Sphinx) -> None:
    """Let links to CONTRIBUTING.md lead to its page, and no page be left out."""
    app.connect("source-read", _read)


def _read(app: Sphinx, name: str, source: list[str]) -> None:
    source[0] = source[0].replace("](../CONTRIBUTING.md", "](contributing.md")
    if name == "index":
        named = set(source[0].split())
        pages = sorted(page for page in app.env.found_docs if "generated/" not in page)
        if left := [page for page in pages if page not in {*named, "index", "contributing"}]:
            source[0] += "\n".join(["\n```{toctree}", ":hidden:", ":caption: More", "", *left, "```\n"])
