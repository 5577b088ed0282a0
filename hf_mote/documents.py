"""JSON and YAML files that others wrote, read into plain values, both equally strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from hf_mote.errors import FileFormatError, first_line, is_finite
from hf_mote.files import read_json

__all__ = ["read_document", "read_yaml"]

_LIMIT = 2**20  # bytes of YAML: configs take a few thousand
_MAX_DEPTH = 32


class _TwoReadings(yaml.YAMLError):  # type: ignore[misc]
    """A number that YAML 1.1, which the library reads, takes for another than it looks like."""

    def __init__(self, node: Any, number: object) -> None:
        super().__init__(f"{node.value} in line {node.start_mark.line + 1}, which is {number} by YAML 1.1")


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Plain values only; no aliases, with which a short file can stand for gigabytes, and no key twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it holds an alias")
        self.depth = getattr(self, "depth", 0) + 1
        if self.depth > _MAX_DEPTH:
            raise yaml.YAMLError(f"it is nested deeper than {_MAX_DEPTH} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        found: dict[Any, Any] = super().construct_mapping(node, deep=True)
        if len(found) != len(node.value):
            raise yaml.YAMLError("it holds a key twice")
        return found

    def construct_yaml_int(self, node: Any) -> int:
        number: int = super().construct_yaml_int(node)
        digits = node.value.replace("_", "").lstrip("+-")
        # 1:30 would be 90, and 010 would be 8; 07 is 7 either way.
        if ":" in digits or (digits.isdecimal() and int(digits) != abs(number)):
            raise _TwoReadings(node, number)
        return number

    def construct_yaml_float(self, node: Any) -> float:
        number: float = super().construct_yaml_float(node)
        if ":" in node.value:
            raise _TwoReadings(node, number)
        return number


for _kind, _construct in (("int", _Loader.construct_yaml_int), ("float", _Loader.construct_yaml_float)):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _construct)


def read_document(path: Path) -> dict[str, Any]:
    """Return the object in a JSON or YAML file.

    Raises:
        [`FileFormatError`]: if the file is missing, too large, damaged, no object, nested deeper than 32, or holds a
            key twice, an alias, a value that JSON does not have, or a number that YAML 1.1 takes for another than it
            looks like: 010 for 8, and 1:30 for 90.
    """
    if path.suffix not in (".yaml", ".yml"):
        return read_json(path)
    found = _yaml_in(path)
    if found is None:
        raise FileFormatError(str(path), "must hold an object", got="an empty file")
    return found


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the object in a YAML file of any name; an empty one for an empty file.

    Raises:
        [`FileFormatError`]: as for [`read_document`].
    """
    return _yaml_in(path) or {}


def _yaml_in(path: Path) -> dict[str, Any] | None:
    try:
        with path.open("rb") as file:
            content = file.read(_LIMIT + 1)
    # ValueError for a path that holds a NUL.
    except (OSError, ValueError) as error:
        raise FileFormatError(str(path), "cannot be read", got=first_line(error)) from error
    if len(content) > _LIMIT:
        raise FileFormatError(str(path), "is too large", got=f"over {_LIMIT} bytes")
    try:
        # A subclass of the safe loader: nothing of the file is run.
        found = yaml.load(content.decode("utf-8"), Loader=_Loader)  # noqa: S506
    except _TwoReadings as error:
        fix = "Write it as a plain decimal number, or in quotes if it is a text."
        what = "holds a number that can be read in two ways"
        raise FileFormatError(str(path), what, got=str(error), fix=fix) from error
    # What the parser raises on malformed scalars (dates, numbers, surrogates) has no common base.
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError, AttributeError, KeyError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FileFormatError(str(path), "must be valid YAML", got=reason[:200]) from error
    if found is None:
        return None
    if not isinstance(found, dict):
        raise FileFormatError(str(path), "must hold an object", got=type(found).__name__)
    _check(path, found)
    return found


def _check(path: Path, value: Any) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise FileFormatError(str(path), "keys must be texts", got=repr(key))
            _check(path, item)
    elif isinstance(value, list):
        for item in value:
            _check(path, item)
    elif isinstance(value, int | float) and not isinstance(value, bool) and not is_finite(value):
        got = value if isinstance(value, float) else "a whole number beyond all floats"
        raise FileFormatError(str(path), "holds NaN or an infinite number", got=got)
    elif not isinstance(value, str | int | float | None):
        raise FileFormatError(str(path), "holds what JSON cannot", got=type(value).__name__)
