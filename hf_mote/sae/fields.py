"""Checks of the fields of an SAE's config: every value has its declared type, and every key is known; of positions."""

from __future__ import annotations

import inspect
import re
import sys
import types
from collections.abc import Iterable
from typing import Any, Literal, Union, get_args, get_origin

from hf_mote.errors import ConfigError, UnknownNameError

__all__ = ["check_known", "check_positive", "check_types", "excluded_positions"]

_POSITIONS = re.compile(r"first:(\d+)|(\d*):(\d*)")


def check_types(config: object, names: Iterable[str]) -> None:
    """Raise [`ConfigError`] with the field's name unless each named field holds a value of its annotated type.

    A `bool` is not a number, an `int` is a `float`, and numbers are finite.
    """
    names = list(names)
    hints: dict[str, Any] = {}
    for part in reversed(type(config).__mro__):
        # Classes of other libraries may have annotations that only their type checker can resolve.
        if not set(names).isdisjoint(part.__dict__.get("__annotations__", {})):
            hints |= inspect.get_annotations(part, eval_str=True)
    for name in names:
        value = getattr(config, name)
        if not _is(value, hints[name]):
            raise ConfigError(
                f"{type(config).__name__}.{name}", "wrong type or value", got=repr(value), expected=_text(hints[name])
            )


def check_known(config: object, keys: Iterable[str], known: Iterable[str], version: str | None) -> None:
    """Raise [`UnknownNameError`] with the nearest match, and the version that wrote it, if a key is not a field."""
    known = list(known)
    for key in keys:
        if key not in known:
            fix = None if version is None else f"The config was written by hf_mote {version}."
            where = config.__name__ if isinstance(config, type) else type(config).__name__
            raise UnknownNameError.of(where, key, known, fix=fix)


def check_positive(config: object, *names: str, zero: bool = False) -> None:
    """Raise [`ConfigError`] unless each named field is above 0 (or 0, if allowed); `None` passes."""
    for name in names:
        value = getattr(config, name)
        if value is not None and (value < 0 or (value == 0 and not zero)):
            expected = "0 or more" if zero else "above 0"
            raise ConfigError(f"{type(config).__name__}.{name}", "out of range", got=value, expected=expected)


def _is(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_is(value, part) for part in get_args(hint))
    if origin is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if origin is list:
        (item,) = get_args(hint)
        return isinstance(value, list) and all(_is(entry, item) for entry in value)
    if origin is dict:
        (_, item) = get_args(hint)
        return isinstance(value, dict) and all(isinstance(key, str) and _is(value[key], item) for key in value)
    if hint is Any:
        # Values that JSON restores exactly.
        return _is(value, dict[str, Any] | list[Any] | str | bool | int | float | None)
    if hint is type(None):
        return value is None
    if hint is float:
        # Compared, since an integer may be too large to become a float.
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _text(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_text(part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, get_args(hint)))
    if hint is type(None):
        return "None"
    return hint.__name__ if isinstance(hint, type) and get_origin(hint) is None else str(hint)


def excluded_positions(positions: str | None, where: str = "exclude_positions") -> slice | None:
    """Return the slice of "first:N", or of a slice such as "0:4"; `None` for `None`.

    Raises:
        [`ConfigError`]: if it is neither.
    """
    if positions is None:
        return None
    form = _POSITIONS.fullmatch(positions)
    if form is None:
        expected = "'first:N', or a slice such as '0:4'"
        raise ConfigError(where, "must be a range", got=repr(positions), expected=expected)
    if form[1] is not None:
        found = slice(0, int(form[1]))
    else:
        found = slice(int(form[2]) if form[2] else None, int(form[3]) if form[3] else None)
    if found.stop is not None and found.stop <= (found.start or 0):
        raise ConfigError(where, "must be a range with a position in it", got=repr(positions))
    return found
