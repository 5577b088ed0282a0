"""The tutorials: the notebooks of the repository as pages, with the outputs that are committed."""

from __future__ import annotations

from pathlib import Path

__all__ = ["copy_notebooks"]


def copy_notebooks(notebooks: Path, folder: Path) -> None:
    """Copy the notebooks to where Sphinx reads them; what is no notebook any more goes.

    Args:
        notebooks (`Path`): The folder of the repository.
        folder (`Path`): That of the pages; its own Markdown stays.
    """
    found = sorted(notebooks.glob("*.ipynb"))
    for old in folder.glob("*.ipynb"):
        if old.name not in {path.name for path in found}:
            old.unlink()
    for path in found:
        page, content = folder / path.name, path.read_bytes()
        if not page.exists() or page.read_bytes() != content:
            page.write_bytes(content)
