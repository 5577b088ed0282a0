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

__all__ = ["Reading", "read_all"]

_MOST = 200  # problems of one file
_STAMPS = ("schema_version", "hf_mote_version", "transformers_version")
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
                left_out |= set(_remove(values, name))
            wrong.append(f"{path.name}: {name}{inner}{text}")
    return Reading(None, wrong, left_out)


def _remove(values: dict[str, Any], name: str) -> Iterator[str]:
    """Remove a field and those that depend on it, and yield the removed fields."""
    yield name
    if name == "schema_version":
        values[name] = 1
    elif name == "scope" and "thinking_tokens" in values and values["scope"] not in ("thinking", "answer"):
        values[name] = "thinking"  # so that the tokens are checked, too
    elif name in ("scope", "thinking_tokens"):
        values.pop("scope", None)
        values.pop("thinking_tokens", None)
        yield from ("scope", "thinking_tokens")
    elif name in _NEEDED:
        values[name] = _NEEDED[name]
    else:
        del values[name]
