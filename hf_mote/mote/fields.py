"""Checks of single fields of a `MoTEConfig`: each raises with the field's name, or returns what is stored."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from numbers import Real
from typing import TYPE_CHECKING, Any

from hf_mote.errors import ConfigError, DataError
from hf_mote.routing.sites.fingerprint import SAMPLED

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "FLOAT32_MAX",
    "TARGETS",
    "check_experts_of",
    "checked_fingerprint",
    "gain_at",
    "json_copy",
    "number",
    "pairs",
    "token_pair",
    "token_positions",
    "triples",
]

_FINGERPRINT_KEYS = ("layers", "model_type", "num_experts", "router_sha256", "top_k")
_MAX_PAIRS = 1_000_000
_MAX_POSITION = 2**31
TARGETS = ("suppress", "stimulate", "bias", "gain")
"""Fields that name experts: lists of which each entry begins with layer and expert."""
FLOAT32_MAX = 3.4028234663852886e38
"""Routing is computed in float32; a number beyond is infinite there."""


def pairs(name: str, value: Any) -> list[list[int]]:
    """Return `[layer, expert]` pairs, sorted; refuses repeated, negative and non-integer ones."""
    entries = _entries(name, value, 2, "[layer, expert] pairs")
    found = [(_index(f"{name}[{i}]", a), _index(f"{name}[{i}]", b)) for i, (a, b) in enumerate(entries)]
    return [list(pair) for pair in _distinct(name, found)]


def triples(name: str, value: Any) -> list[list[Any]]:
    """Return `[layer, expert, value]` triples, sorted; refuses invalid pairs and values that are not finite."""
    entries = _entries(name, value, 3, "[layer, expert, value] triples")
    values = {(_index(name, a), _index(name, b)): number(name, v, "a finite value") for a, b, v in entries}
    ordered = _distinct(name, [(_index(name, a), _index(name, b)) for a, b, _ in entries])
    return [[layer, expert, values[layer, expert]] for layer, expert in ordered]


def gain_at(value: float, strength: float) -> float:
    """Return the factor that a gain is at a strength: 1 at 0, the gain itself at 1."""
    return value if strength == 1 else 1.0 + strength * (value - 1.0)


def _entries(name: str, value: Any, length: int, expected: str) -> list[Any]:
    if isinstance(value, str | Mapping) or not isinstance(value, Iterable):
        raise ConfigError(
            f"MoTEConfig.{name}", "not a list", got=type(value).__name__, expected=f"a list of {expected}"
        )
    entries = list(value)
    if len(entries) > _MAX_PAIRS:
        raise ConfigError(f"MoTEConfig.{name}", "too long", got=len(entries), expected=f"at most {_MAX_PAIRS}")
    for position, entry in enumerate(entries):
        if isinstance(entry, str | Mapping) or not hasattr(entry, "__len__") or len(entry) != length:
            raise ConfigError(f"MoTEConfig.{name}[{position}]", "malformed entry", got=repr(entry), expected=expected)
    return entries


def _index(name: str, value: Any) -> int:
    try:
        index = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        index = None
    if index is None or index < 0:
        raise ConfigError(f"MoTEConfig.{name}", "not an index", got=repr(value), expected="an integer, 0 or more")
    return index


def _distinct(name: str, found: list[tuple[int, int]]) -> list[tuple[int, int]]:
    ordered = sorted(found)
    for one, other in zip(ordered, ordered[1:], strict=False):
        if one == other:
            raise ConfigError(f"MoTEConfig.{name}", "the same expert twice", got=list(one), fix="List it once.")
    return ordered


def number(name: str, value: Any, expected: str) -> float:
    """Return a finite number as a float."""
    good = isinstance(value, Real) and not isinstance(value, bool) and abs(value) <= FLOAT32_MAX  # type: ignore[operator]
    if not good:  # NaN compares as false
        got = repr(value)[:40]
        raise ConfigError(f"MoTEConfig.{name}", "not a finite number of float32", got=got, expected=expected)
    return float(value)


def token_pair(name: str, value: Any) -> list[int]:
    """Return the two token ids that open and close the thinking; they must differ."""
    tokens = list(value) if isinstance(value, Iterable) and not isinstance(value, str | Mapping) else []
    if len(tokens) != 2 or tokens[0] == tokens[1]:
        raise ConfigError(f"MoTEConfig.{name}", "not two token ids", got=repr(value), expected="[opens, closes]")
    return [_index(name, token) for token in tokens]


def token_positions(where: str, value: Any) -> list[int]:
    """Return positions of tokens, sorted; refuses repeated and non-integer ones, and none at all."""
    expected = (
        "a list of whole numbers, 0, 1, ... from the first token on, -1, -2, ... from the prompt's last one back"
    )
    entries = list(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping) else []
    if not entries or len(entries) > _MAX_PAIRS:
        got = repr(value)[:80] if not entries else f"{len(entries)} of them"
        raise ConfigError(where, "are no positions", got=got, expected=expected)
    found = []
    for entry in entries:
        try:
            position = None if isinstance(entry, bool) else operator.index(entry)
        except TypeError:
            position = None
        if position is None or not -_MAX_POSITION <= position < _MAX_POSITION:
            raise ConfigError(where, "not a position", got=repr(entry)[:40], expected=expected)
        found.append(position)
    ordered = sorted(found)
    for one, other in pairwise(ordered):
        if one == other:
            raise ConfigError(where, "the same position twice", got=one, fix="List it once.")
    return ordered


def checked_fingerprint(value: Any) -> dict[str, Any]:
    """Return a fingerprint with exactly its keys, one layer, expert count and top-k for each router.

    The sample of other weights may be missing: earlier versions took none.
    """
    where = "MoTEConfig.fingerprint"
    if not isinstance(value, Mapping) or sorted({*value} - {SAMPLED}) != sorted(_FINGERPRINT_KEYS):
        keys = sorted(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
        raise ConfigError(
            where, "malformed", got=keys, expected=f"a dict with the keys {', '.join(_FINGERPRINT_KEYS)}"
        )
    lists = [value[key] for key in ("layers", "num_experts", "top_k")]
    for key, numbers in zip(("layers", "num_experts", "top_k"), lists, strict=True):
        if not isinstance(numbers, list) or not numbers or len(numbers) != len(lists[0]):
            raise ConfigError(f"{where}.{key}", "not one number for each router", got=repr(numbers))
        for entry in numbers:
            _index(f"fingerprint.{key}", entry)
    if any(one >= other for one, other in pairwise(lists[0])):
        raise ConfigError(f"{where}.layers", "not in ascending order, each once", got=repr(lists[0])[:80])
    for layer, experts, chosen in zip(*lists, strict=True):
        if not 1 <= chosen <= experts:
            what, got = f"must be possible at layer {layer}", f"{chosen} of {experts} experts"
            raise ConfigError(f"{where}.top_k", what, got=got, expected=f"1..{experts} experts")
    for key in ("model_type", "router_sha256"):
        if not isinstance(value[key], str) and not (key == "router_sha256" and value[key] is None):
            raise ConfigError(f"{where}.{key}", "is not text", got=repr(value[key]), expected="str")
    found = {key: list(value[key]) if isinstance(value[key], list) else value[key] for key in _FINGERPRINT_KEYS}
    if SAMPLED in value:
        sampled = value[SAMPLED]
        texts = sampled if isinstance(sampled, Mapping) else {"reason": sampled}
        if not all(isinstance(text, str) for entry in texts.items() for text in entry):
            expected = "a dict of names and digests, or the reason why it is missing"
            raise ConfigError(f"{where}.{SAMPLED}", "is malformed", got=repr(sampled)[:80], expected=expected)
        found[SAMPLED] = dict(sampled) if isinstance(sampled, Mapping) else sampled
    return found


def check_experts_of(
    where: str,
    layers: Sequence[int],
    num_experts: int,
    fingerprint: Mapping[str, Any],
    grids: Mapping[str, Tensor] | None = None,
) -> None:
    """Raise unless a fingerprint has the layers and experts of a grid.

    Args:
        where (`str`): The place, for the error.
        layers (`Sequence[int]`): Absolute decoder layers.
        num_experts (`int`): Columns of the grid: those of the layer with most experts; a layer may have fewer.
        fingerprint (`Mapping`): What [`checked_fingerprint`] returned.
        grids (`Mapping[str, torch.Tensor]`, *optional*):
            By name values of shape `(..., layers, experts)` that must be 0 where a layer has no such expert.

    Raises:
        [`DataError`]: if it lacks a layer, or has other experts.
    """
    if unknown := sorted(set(layers) - set(fingerprint["layers"])):
        got, expected = f"layer {unknown[0]}", f"layers {fingerprint['layers']}"
        raise DataError(f"{where}.layers", "are not those of the fingerprint", got=got, expected=expected)
    sizes = dict(zip(fingerprint["layers"], fingerprint["num_experts"], strict=True))
    most = max(sizes.values())
    if num_experts > most:
        what = "holds experts that the fingerprint does not have"
        raise DataError(where, what, got=f"{num_experts} experts", expected=f"at most {most}")
    if num_experts not in (most, own := max(sizes[layer] for layer in layers)):
        what, fix = "must hold all experts of the fingerprint", "Take a whole copy, or make it again."
        raise DataError(where, what, got=f"{num_experts} experts", expected=own, fix=fix)
    for name, grid in (grids or {}).items():
        for row, layer in enumerate(layers):
            if bool((grid[..., row, sizes[layer] :] != 0).any()):
                what, expected = "must be 0 for experts that a layer does not have", f"{sizes[layer]} experts"
                raise DataError(f"{where}.{name}", what, got=f"another value at layer {layer}", expected=expected)


def json_copy(name: str, value: Any) -> Any:
    """Return a deep copy of a JSON-native value; refuses any other."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ConfigError(f"MoTEConfig.{name}", "a key is not text", got=repr(key), expected="str")
        return {key: json_copy(f"{name}.{key}", entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [json_copy(f"{name}[{position}]", entry) for position, entry in enumerate(value)]
    raise ConfigError(f"MoTEConfig.{name}", "not a JSON value", got=f"{type(value).__name__} {value!r}"[:60])
