"""The Markdown that is written by hand: README.md and the pages of the documentation."""

from __future__ import annotations

from pathlib import Path

__all__ = ["DOCUMENTS", "ROOT", "generated"]

ROOT = Path(__file__).parents[1]
_MADE = ("_build", "_extensions", "_static", "reference")  # of docs/


def generated(path: Path) -> bool:
    """Return whether a page of the documentation is made by its build."""
    return path.relative_to(ROOT / "docs").parts[0] in _MADE


DOCUMENTS = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").rglob("*.md") if not generated(path))]
