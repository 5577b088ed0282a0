"""All problems of a config's file, for `hf-mote validate`.

A config raises an error for its first wrong field. Here it is made again without that field, until none is refused.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hf_mote.errors import ConfigError, HFMoTEError, UnknownNameError
from hf_mote.files import read_json
from hf_mote.version import STAMPS

__all__ = ["Reading", "read_all"]

_MOST = 200  # problems of one file
_STAMPS = ("schema_version", *STAMPS)
_TOGETHER = {"thinking_tokens": "scope"}
# Fields that a config requires, and the value that replaces a refused one.
_NEEDED: Mapping[str, Any] = {"edits": [], "hookpoint": "model"}


class Reading(NamedTuple):
    """The contents of a config's file.

    Attributes:
        config (`Any`): The config made of the valid fields; `None` if none could be made.
        wrong (`list[str]`): The problems, each with file and field.
        left_out (`set[str]`): Fields that were refused.
    """

    config: Any
    wrong: list[str]
    left_out: set[str]


def read_all(path: Path, kind: Any) -> Reading:
    """Return the contents of a config's file, and all problems in it.

    Args:
        path (`Path`): The file.
        kind (`type`): `MoTEConfig` or `SteeringConfig`.
    """
    from hf_mote.mote.fields import TARGETS  # imports torch

    try:
        values = dict(read_json(path))
    except HFMoTEError as error:
        return Reading(None, [f"{path.name}{str(error)[len(error.where) :].rstrip('.')}"], set())
    known = [field.name for field in dataclasses.fields(kind)]
    wrong = [
        str(UnknownNameError.of(path.name, key, known)).replace("unknown name", "unknown field", 1)
        for key in values
        if key not in known and key not in _STAMPS
    ]
    left_out = set(values) - {*known, *_STAMPS}
    values = {key: value for key, value in values.items() if key not in left_out}
    # What a field that is refused is replaced with: a stamped config must hold all of them.
    defaults = {field.name: _default(field) for field in dataclasses.fields(kind)} | dict.fromkeys(STAMPS, "?")
    needed = [name for name in _NEEDED if name in known]
    for name in needed:
        if name not in values:
            wrong.append(f"{path.name}: {name}: is missing")
            values[name] = _NEEDED[name]
            left_out.add(name)
    # The index in the file of each entry of a list, after some are removed.
    places = {name: list(range(len(values[name]))) for name in TARGETS if isinstance(values.get(name), list)}
    for _ in range(_MOST):
        try:
            return Reading(kind.from_dict(values), wrong, left_out)
        except ConfigError as error:
            place = re.match(rf"{kind.__name__}\.(\w+)(?:\[(\d+)\])?", error.where)
            if place is not None and str(error).startswith(f"{error.where}: is missing"):
                wrong.append(f"{path.name}: {place[1]}{str(error)[len(error.where) :].rstrip('.')}")
                lost = {*known, place[1]} - values.keys()
                values |= {name: defaults[name] for name in lost}
                left_out |= lost
                continue
            # Of two fields that depend on each other, the one that is present may be wrong.
            present = place is not None and ({place[1], _TOGETHER.get(place[1], "")} & values.keys())
            if place is None or not present:
                return Reading(None, [*wrong, f"{path.name}: {error}".rstrip(".")], left_out)
            name, text = place[1], str(error)[len(error.where) :].rstrip(".")
            inner = error.where[len(f"{kind.__name__}.{name}") :]
            if place[2] is not None and name in places:
                entry = int(place[2])
                inner = f"[{places[name].pop(entry)}]"
                values[name] = [one for number, one in enumerate(values[name]) if number != entry]
                left_out.add(name)
            else:
                left_out |= set(_remove(values, name, defaults))
            wrong.append(f"{path.name}: {name}{inner}{text}")
    return Reading(None, wrong, left_out)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.name in _NEEDED:
        return _NEEDED[field.name]
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _remove(values: dict[str, Any], name: str, defaults: Mapping[str, Any]) -> Iterator[str]:
    """Replace a field and those that depend on it by their defaults, and yield the replaced fields."""
    yield name
    if name == "schema_version":
        values[name] = 1
    elif name == "scope" and "thinking_tokens" in values and values["scope"] not in ("thinking", "answer"):
        values[name] = "thinking"  # so that the tokens are checked, too
    elif name in ("scope", "thinking_tokens"):
        values |= {"scope": defaults["scope"], "thinking_tokens": defaults["thinking_tokens"]}
        yield from ("scope", "thinking_tokens")
    else:
        values[name] = defaults[name]
