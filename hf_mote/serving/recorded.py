"""Answers and recordings of an engine: answers, activation maps, and both together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from hf_mote.errors import DataError, UnsupportedError
from hf_mote.maps.activation_map import ActivationMap

__all__ = ["RAW", "Answered", "RecordedBatch", "check_raw", "maps_of", "numbers_of", "of_phase"]

RAW = "raw_logprobs"
_IMPOSSIBLE = -9999.0
_ROUNDING = 1e-5  # by which a logarithm of float32 may be above 0


class Answered(NamedTuple):
    """An answer.

    Attributes:
        tokens (`list[int]`): Its tokens, the one that ends it included.
        log_probabilities (`list[float]`): Of each, in nats, before temperature and the like.
    """

    tokens: list[int]
    log_probabilities: list[float]


PHASES = ("prompt", "generation")
_MOST = 2**53  # tokens; float64 counts no more of them exactly


class RecordedBatch(NamedTuple):
    """Answers to a batch of prompts, with the routing that led to them.

    Attributes:
        tokens (`list[list[int]]`): Of each answer, the token that ended it included.
        counts, weights (`torch.Tensor` of shape `(prompts, layers, experts)`, float64): As in [`ActivationMap`].
        num_tokens (`torch.Tensor` of shape `(prompts,)`, float64): Tokens that were counted.
    """

    tokens: list[list[int]]
    counts: torch.Tensor
    weights: torch.Tensor
    num_tokens: torch.Tensor

    @classmethod
    def of(cls, tokens: list[list[int]], maps: Sequence[ActivationMap]) -> RecordedBatch:
        """Return the batch of answers and of the map of each."""
        return cls(
            tokens,
            torch.stack([one.counts for one in maps]),
            torch.stack([one.weights for one in maps]),
            torch.tensor([one.num_tokens for one in maps], dtype=torch.float64),
        )


def maps_of(recorded: Mapping[str, Any], fingerprint: Mapping[str, Any], model: str) -> dict[str, ActivationMap]:
    """Return activation maps by phase from the recording of a worker.

    Args:
        recorded (`Mapping`): What `ProfileTables.take` returned.
        fingerprint (`Mapping`): The model's.
        model (`str`): Its name.

    Raises:
        [`DataError`]: if it is of other layers or experts, or its counts are none that its tokens can give.
    """
    given: Any = recorded if isinstance(recorded, Mapping) else {}
    found: Any = given.get("layers")
    tokens: Any = given.get("tokens")
    names = [str(layer) for layer in fingerprint["layers"]]
    if not isinstance(found, Mapping) or sorted(map(str, found)) != sorted(names):
        got = sorted(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
        raise DataError("recording", "lacks layers", got=got, expected=fingerprint["layers"])
    is_pair = isinstance(tokens, list | tuple) and len(tokens) == len(PHASES)
    if not is_pair or not all(_is_number(number) and number == int(number) for number in tokens):
        raise DataError("recording: tokens", "must be two numbers of tokens", got=repr(tokens)[:80])
    maps = {}
    layers = sorted(fingerprint["layers"])
    for place, phase in enumerate(PHASES):
        rows: list[list[list[float]]] = [[], []]
        for layer in layers:
            index, where = fingerprint["layers"].index(layer), f"recording: layer {layer}"
            width = fingerprint["num_experts"][index]
            for kind, row in enumerate(rows):
                row.append(_row(found[str(layer)], kind, place, width, where))
            _check_counts(rows[0][-1], rows[1][-1], int(tokens[place]), fingerprint["top_k"][index], where)
        if len({len(row) for row in rows[0]}) > 1:
            raise DataError("recording", "has layers that differ in experts", got=[len(row) for row in rows[0]])
        counts, weights = (torch.tensor(row, dtype=torch.float64) for row in rows)
        provenance: dict[str, str | int | float] = {"source": "vllm", "phase": phase, "model": model}
        maps[phase] = ActivationMap(counts, weights, tuple(layers), float(tokens[place]), provenance)
    return maps


def _row(of_layer: object, kind: int, place: int, width: int, where: str) -> list[float]:
    """Return the counts, or weights, of a layer's experts in a phase."""
    row: Any = of_layer
    for step in (kind, place):
        if not isinstance(row, list | tuple) or len(row) != 2:
            raise DataError(where, "holds no counts and weights by phase", got=repr(row)[:80])
        row = row[step]
    right = isinstance(row, list | tuple) and len(row) == width
    if not right or not all(_is_number(number) for number in row):
        got, expected = repr(row)[:80], f"{width} numbers, 0 or more"
        raise DataError(where, f"has no {'weights' if kind else 'counts'} of its experts", got=got, expected=expected)
    return [float(number) for number in row]


def _check_counts(counts: Sequence[float], weights: Sequence[float], tokens: int, top_k: int, where: str) -> None:
    """Refuse counts that so many tokens, each with at most `top_k` experts, cannot give."""
    possible = all(count <= tokens and count == int(count) for count in counts) and sum(counts) <= top_k * tokens
    if not possible:
        expected = f"whole numbers, each at most {tokens} and together at most {top_k} times that"
        what = "has counts that its tokens cannot give"
        raise DataError(where, what, got=f"{repr(list(counts))[:80]} of {tokens} tokens", expected=expected)
    if any(weight and not count for count, weight in zip(counts, weights, strict=True)):
        raise DataError(where, "has weights of an expert that was never chosen", got=repr(list(weights))[:80])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MOST


def of_phase(maps: Mapping[str, ActivationMap], phase: str) -> ActivationMap:
    """Return the map of a phase, or of all tokens."""
    return maps["prompt"] + maps["generation"] if phase == "all" else maps[phase]


def check_raw(where: str, mode: str) -> None:
    """Raise unless an engine returns the model's own probabilities, before temperature and the like.

    Args:
        where (`str`): The engine, for the error.
        mode (`str`): Its `logprobs_mode`.
    """
    if mode != RAW:
        what = "does not return the model's own probabilities, by which incoherent text is recognised"
        fix = f"Start the engine with --logprobs-mode {RAW}, vLLM's default."
        raise UnsupportedError(where, what, got=f"logprobs_mode {mode!r}", expected=repr(RAW), fix=fix)


def numbers_of(log_probabilities: Sequence[float | None]) -> list[float]:
    """Return log probabilities as numbers.

    Args:
        log_probabilities (`Sequence[float]`): As vLLM has them, with -9999 for minus infinity.

    Raises:
        [`DataError`]: if one is missing, no number, or above 0.
    """
    found = []
    for value in log_probabilities:
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            raise DataError("engine", "lacks the log probability of a token", got=repr(value))
        if value > _ROUNDING:
            raise DataError("engine", "log probabilities must be at most 0", got=repr(value))
        found.append(-math.inf if value <= _IMPOSSIBLE else min(float(value), 0.0))
    return found
