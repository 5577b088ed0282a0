"""Makes the pages that are not written by hand before Sphinx looks for pages: reference, commands, tutorials."""

from __future__ import annotations

from pathlib import Path

from api_pages import write_api_pages
from command_page import write_command_page
from notebook_pages import copy_notebooks
from sphinx.application import Sphinx

__all__ = ["setup"]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("builder-inited", _make_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _make_pages(app: Sphinx) -> None:
    docs = Path(app.srcdir)
    write_api_pages(docs / "reference")
    write_command_page(docs / "reference" / "commands.md")
    copy_notebooks(docs.parent / "notebooks", docs / "tutorials")
