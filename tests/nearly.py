"""What two reports of the same measurement may differ by: float32, summed in another order."""

from __future__ import annotations

from typing import Any

import pytest

__all__ = ["different", "nearly"]


def nearly(mine: Any, theirs: Any) -> bool:
    """Whether two values, JSON-native, are the same but for the last digits of their numbers."""
    if isinstance(theirs, float):
        return bool(mine == pytest.approx(theirs, abs=1e-4, rel=1e-4))
    if isinstance(theirs, dict):
        return mine.keys() == theirs.keys() and all(nearly(mine[name], theirs[name]) for name in theirs)
    if isinstance(theirs, list | tuple):
        return len(mine) == len(theirs) and all(map(nearly, mine, theirs))
    return bool(mine == theirs)


def different(mine: dict[str, Any], theirs: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The fields in which two reports are not nearly the same."""
    return {name: (mine[name], theirs[name]) for name in theirs if not nearly(mine[name], theirs[name])}
