"""The public names: `__all__` is sorted and is what is exported, each is documented, examples are announced."""

from __future__ import annotations
import __future__

from types import ModuleType

import pytest
from documents import DOCUMENTS

import hf_mote

WRITTEN = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
NAMES = [name for name in hf_mote.__all__ if not name.startswith("_")]


def test_all_is_sorted_without_repeats() -> None:
    # Constants, classes, the rest: ruff's RUF022.
    kind = {name: 0 if name.isupper() else 1 if name[0].isupper() else 2 for name in hf_mote.__all__}
    assert list(hf_mote.__all__) == sorted(set(hf_mote.__all__), key=lambda name: (kind[name], name))


def test_all_equals_what_is_exported() -> None:
    for name in hf_mote.__all__:
        getattr(hf_mote, name)  # which imports it
    exported = {
        name
        for name, value in vars(hf_mote).items()
        if not name.startswith("_")
        and name != "TYPE_CHECKING"
        and not isinstance(value, ModuleType | __future__._Feature)
    }
    assert exported == {name for name in NAMES if not isinstance(getattr(hf_mote, name), ModuleType)}


def test_version_is_exported() -> None:
    assert hf_mote.__version__


@pytest.mark.parametrize("name", NAMES)
def test_public_name_has_docstring(name: str) -> None:
    assert (getattr(hf_mote, name).__doc__ or "").strip()


@pytest.mark.parametrize("name", [name for name in NAMES if "Example:" in (getattr(hf_mote, name).__doc__ or "")])
def test_public_name_with_example_is_in_readme_or_docs(name: str) -> None:
    assert name in WRITTEN
