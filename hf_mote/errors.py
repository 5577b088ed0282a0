"""The errors that `hf_mote` raises.

```
HFMoTEError
├── ConfigError           (ValueError)    a setting is malformed, for any model
├── FileFormatError       (ValueError)    a file is truncated, edited, oversized or of a foreign format
├── DataError             (ValueError)    prompts, responses or classes that nothing can be computed from
├── ModelMismatchError    (ValueError)    a well-formed config or map that belongs to another model
├── UnknownNameError      (LookupError)   a name that is not in a list of known ones
├── RouterContractError   (RuntimeError)  a router that does not do what its row in the table says
├── LivenessError         (RuntimeError)  a hooked router that never ran
└── UnsupportedError      (RuntimeError)  a combination that would give wrong results and is refused
```

Every message says where, what, what was got, what was expected, and how to fix it. Every leaf is also a builtin error,
so `except ValueError` keeps working.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = [
    "ConfigError",
    "DataError",
    "FileFormatError",
    "HFMoTEError",
    "LivenessError",
    "ModelMismatchError",
    "RouterContractError",
    "UnknownNameError",
    "UnsupportedError",
    "first_line",
    "is_finite",
    "mapping",
    "one_of",
    "real",
    "whole",
]


_LONGEST = 4000
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


class HFMoTEError(Exception):
    """Base of all errors of this package.

    Args:
        where (`str`):
            The place: a function's argument, a config's field, a file's path, a module's path.
        what (`str`):
            What is wrong, as a clause.
        got (`object`, *optional*):
            The value found there.
        expected (`object`, *optional*):
            What is allowed.
        fix (`str`, *optional*):
            What the reader can do about it, as a sentence.
    """

    def __init__(
        self, where: str, what: str, *, got: object = None, expected: object = None, fix: str | None = None
    ) -> None:
        found = [
            f"{label} {_shortened(value)}"
            for label, value in (("got", got), ("expected", expected))
            if value is not None
        ]
        where = _shortened(where)
        message = f"{where}: {what}"
        if found:
            message += f" ({', '.join(found)})"
        super().__init__(_printable(f"{message}. {fix}" if fix else f"{message}."))
        self.where = _printable(where)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.args[0], self.where))


class ConfigError(HFMoTEError, ValueError):
    """A setting is malformed, for any model."""


class FileFormatError(HFMoTEError, ValueError):
    """A file is truncated, edited, oversized or of a foreign format."""


class DataError(HFMoTEError, ValueError):
    """Prompts, responses or classes that nothing can be computed from."""


class ModelMismatchError(HFMoTEError, ValueError):
    """A well-formed config or map that belongs to another model."""


class UnknownNameError(HFMoTEError, LookupError):
    """A name that is not in a list of known ones; `of` lists them and names the nearest."""

    @classmethod
    def of(cls, where: str, name: object, known: Iterable[str], *, fix: str | None = None) -> UnknownNameError:
        """Return the error for `name`, listing `known` and the nearest match.

        Args:
            where (`str`): The place the name was given in.
            name (`object`): The name that is not known.
            known (`Iterable[str]`): The names that are.
            fix (`str`, *optional*): What to do when no listed name is meant.
        """
        names = sorted(known)
        near = difflib.get_close_matches(str(name), names, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else None
        advice = " ".join(part for part in (hint, fix) if part) or None
        return cls(where, "unknown name", got=repr(name), expected=f"one of {', '.join(names) or 'none'}", fix=advice)


class RouterContractError(HFMoTEError, RuntimeError):
    """A router that does not do what its row in the table says."""


class LivenessError(HFMoTEError, RuntimeError):
    """A hooked router that never ran."""


class UnsupportedError(HFMoTEError, RuntimeError):
    """A combination that would give wrong results and is refused."""


def first_line(error: BaseException) -> str:
    """Return the message of another library's error in one line, or its name if the message is empty."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text.strip() or type(error).__name__).splitlines()[0]


def whole(where: str, value: object, *, least: int = 0, most: int | None = None) -> int:
    """Return a value that must be a whole number.

    Args:
        where (`str`): The place it was given in, as "ftri.repeats".
        value (`object`): What was given there; a `bool` is not a number.
        least (`int`, *optional*, defaults to 0): The least that it may be.
        most (`int`, *optional*): The most that it may be.

    Raises:
        [`ConfigError`]: if it is something else, or out of range.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or value < least
        or value > (value if most is None else most)
    ):
        expected = f"{least} or more" if most is None else f"{least} to {most}"
        raise ConfigError(where, "must be a whole number", got=repr(value), expected=expected)
    return value


def is_finite(value: object) -> bool:
    """Whether a value is a finite number that a float can hold; a `bool` is not a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def real(
    where: str,
    value: object,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
    fix: str | None = None,
) -> float:
    """Return a value that must be a finite number.

    Args:
        where (`str`): The place it was given in, as "attribute_experts.gain".
        value (`object`): What was given there; a `bool` is not a number.
        least (`float`, *optional*): The least that it may be.
        above (`float`, *optional*): What it must be above.
        most (`float`, *optional*): The most that it may be.
        below (`float`, *optional*): What it must be below.
        fix (`str`, *optional*): What else the reader can do.

    Raises:
        [`ConfigError`]: if it is something else, or out of range.
    """
    number = is_finite(value)
    if not number or not (least <= value <= most and above < value < below):  # type: ignore[operator]
        ends = (("at least", least), ("above", above), ("at most", most), ("below", below))
        limits = [f"{name} {end:g}" for name, end in ends if math.isfinite(end)]
        expected = ", ".join(limits) or "a finite one"
        raise ConfigError(where, "must be a number", got=repr(value), expected=expected, fix=fix)
    return value  # type: ignore[return-value]


def one_of(where: str, value: object, known: Iterable[str]) -> str:
    """Return a value that must be one of some names.

    Args:
        where (`str`): The place it was given in, as "contrast.score".
        value (`object`): What was given there.
        known (`Iterable[str]`): The names.

    Raises:
        [`UnknownNameError`]: if it is not one of them.
    """
    names = list(known)
    if not isinstance(value, str) or value not in names:
        raise UnknownNameError.of(where, value, names)
    return value


def mapping(where: str, value: object) -> dict[str, Any]:
    """Return a copy of a value that must be a dict.

    Args:
        where (`str`): The place it was given in, as "ActivationMap.provenance".
        value (`object`): What was given there.

    Raises:
        [`DataError`]: if it is not one; pairs in a list are not taken for one.
    """
    if not isinstance(value, Mapping):
        raise DataError(where, "must be a dict", got=type(value).__name__)
    return dict(value)


def _shortened(value: object) -> str:
    """Return a value as text; of a very long one, the beginning and the end."""
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 4 :]}"


def _printable(text: str) -> str:
    """Return a text without characters that cannot be written, as names quoted from a file can hold."""
    return text.translate(_ESCAPES).encode(errors="backslashreplace").decode()


def _rebuild(cls: type[HFMoTEError], message: str, where: str) -> HFMoTEError:
    error = cls.__new__(cls)
    Exception.__init__(error, message)
    error.where = where
    return error
