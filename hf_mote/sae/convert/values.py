"""Values of foreign JSON files: checked for their type, or refused with file and key."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hf_mote.errors import FileFormatError

__all__ = ["agree", "check_keys", "flag", "integer", "number", "section", "text"]


def integer(path: Path, data: Mapping[str, Any], key: str, *, least: int = 1) -> int:
    """Return an integer of at least `least`."""
    value = data.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise _wrong(path, data, key, f"an integer of at least {least}")
    return value


def flag(path: Path, data: Mapping[str, Any], key: str, *, default: bool) -> bool:
    """Return a truth value, `default` if the key is missing."""
    value = data.get(key, default)
    if not isinstance(value, bool):
        raise _wrong(path, data, key, "true or false")
    return value


def text(path: Path, data: Mapping[str, Any], key: str) -> str | None:
    """Return a text, `None` if the key is missing, null or empty."""
    value = data.get(key)
    if value is not None and not isinstance(value, str):
        raise _wrong(path, data, key, "a text")
    return value or None


def section(path: Path, data: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the object under a key, empty if the key is missing or null."""
    value = data.get(key)
    if value is not None and not isinstance(value, Mapping):
        raise _wrong(path, data, key, "an object")
    return dict(value or {})


def check_keys(path: Path, data: Mapping[str, Any], known: Iterable[str], *, fix: str | None = None) -> None:
    """Refuse a key that is not known: it may change what the weights mean."""
    known = list(known)
    for key in data:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise FileFormatError(
                f"{path}: {key}",
                "unknown key, which may change what the weights mean",
                expected=f"only {', '.join(sorted(known))}",
                fix=f"Did you mean {near[0]!r}?" if near else fix,
            )


def agree(path: Path, key: str, said: object, found: object) -> None:
    """Refuse a config that contradicts its weights; a missing value fits any."""
    if said is not None and said != found:
        raise FileFormatError(f"{path}: {key}", "contradicts the weights", got=said, expected=found)


def number(path: Path, data: Mapping[str, Any], key: str) -> float:
    """Return a number above 0."""
    value = data.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
        raise _wrong(path, data, key, "a number above 0")
    return float(value)


def _wrong(path: Path, data: Mapping[str, Any], key: str, expected: str) -> FileFormatError:
    if key not in data:
        return FileFormatError(f"{path}: {key}", "is missing", expected=expected)
    return FileFormatError(f"{path}: {key}", "wrong type or value", got=repr(data[key]), expected=expected)
