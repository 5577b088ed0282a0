"""Values of foreign JSON files: checked for their type, or refused with file and key."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hf_mote.errors import FileFormatError

__all__ = ["agree", "check_keys", "check_near", "choice", "flag", "integer", "number", "section", "text"]

_LEAST_NEAR = 6  # letters of a key: of shorter ones, one that is not meant may be one letter away
_LEAST_LEFT, _SHARE_LEFT = 8, 0.75  # letters that are left of a key, and their share of it
_LEAST_TO_DECIDE = 4  # letters that are left of one whose default would make another SAE


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


def choice(path: Path, data: Mapping[str, Any], key: str, *, default: str = "") -> str:
    """Return a text that chooses among values, `default` if the key is missing or null.

    An empty one chooses nothing: it is refused, since to take it for a missing one could make another SAE of the file.
    """
    if data.get(key) == "":
        fix = f"Leave the key out for {default!r}, or put its value back." if default else "Leave the key out."
        raise FileFormatError(f"{path}: {key}", "must not be empty", got="''", expected="a value, or no key", fix=fix)
    return text(path, data, key) or default


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


def check_near(
    path: Path,
    data: Mapping[str, Any],
    read: Iterable[str],
    *,
    prefixes: tuple[str, ...] = (),
    deciding: Iterable[str] = (),
) -> None:
    """Refuse a key that is one letter away from one that is read, or is what is left of one that is missing.

    It is that key, misspelt or damaged, and would be left alone.

    Args:
        path (`Path`): The file an error names.
        data (`Mapping[str, Any]`): Its values; other keys than these are of training, and may be anything.
        read (`Iterable[str]`): Keys that are read.
        prefixes (`tuple[str, ...]`, *optional*): How keys begin that would change what the weights mean.
        deciding (`Iterable[str]`, *optional*):
            Keys whose defaults would make another SAE; of these four letters that are left are enough.

    Raises:
        [`FileFormatError`]: with the key.
    """
    read = list(read)
    for key in data:
        if key in read:
            continue
        near = next((name for name in read if len(name) >= _LEAST_NEAR and _is_one_letter_away(key, name)), None)
        near = near or next((name for name in read if name not in data and _is_left_of(key, name)), None)
        near = near or next((name for name in deciding if name not in data and _is_rest_of(key, name)), None)
        if near is not None or key.startswith(prefixes):
            fix = f"Did you mean {near!r}?" if near else "Take it out if it is the default of the library."
            what, expected = "unknown key, which may change what the weights mean", ", ".join(sorted(read))
            raise FileFormatError(f"{path}: {key}", what, expected=f"only {expected}", fix=fix)


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


def _is_one_letter_away(one: str, other: str) -> bool:
    """Whether a text is another with one letter changed, added or left out, or of another case."""
    one, other = one.lower(), other.lower()
    start = len(os.path.commonprefix((one, other)))
    return one[start + 1 :] in (other[start:], other[start + 1 :]) or one[start:] == other[start + 1 :]


def _is_left_of(one: str, other: str) -> bool:
    """Whether a text is most of another, with one piece of it cut out."""
    return len(one) >= _LEAST_LEFT and len(one) / len(other) >= _SHARE_LEFT and _is_rest_of(one, other)


def _is_rest_of(one: str, other: str) -> bool:
    """Whether a text is another with one piece of it cut out, however long."""
    start = len(os.path.commonprefix((one, other)))
    return _LEAST_TO_DECIDE <= len(one) < len(other) and other.endswith(one[start:])


def _wrong(path: Path, data: Mapping[str, Any], key: str, expected: str) -> FileFormatError:
    if key not in data:
        return FileFormatError(f"{path}: {key}", "is missing", expected=expected)
    return FileFormatError(f"{path}: {key}", "wrong type or value", got=repr(data[key]), expected=expected)
