"""What an engine answered and recorded, as this package counts: answers, activation maps, and both together."""

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


class Answered(NamedTuple):
    """An answer.

    Attributes:
        tokens (`list[int]`): Its tokens, the one that ends it included.
        log_probabilities (`list[float]`): Of each, in nats, before temperature and the like.
    """

    tokens: list[int]
    log_probabilities: list[float]


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
    """Return activation maps by phase from what a worker recorded.

    Args:
        recorded (`Mapping`): What `ProfileTables.take` returned.
        fingerprint (`Mapping`): The model's.
        model (`str`): Its name.
    """
    found = recorded["layers"]
    layers = sorted(map(int, found))
    if layers != sorted(fingerprint["layers"]):
        raise DataError("recording", "lacks layers", got=layers, expected=fingerprint["layers"])
    maps = {}
    for place, phase in enumerate(("prompt", "generation")):
        counts, weights = (
            torch.tensor([found[str(layer)][kind][place] for layer in layers], dtype=torch.float64) for kind in (0, 1)
        )
        told: dict[str, str | int | float] = {"source": "vllm", "phase": phase, "model": model}
        maps[phase] = ActivationMap(counts, weights, tuple(layers), float(recorded["tokens"][place]), told)
    return maps


def of_phase(maps: Mapping[str, ActivationMap], phase: str) -> ActivationMap:
    """Return the map of a phase, or of all tokens."""
    return maps["prompt"] + maps["generation"] if phase == "all" else maps[phase]


def check_raw(where: str, mode: str) -> None:
    """Raise unless an engine tells the model's own probabilities, and not those after temperature and the like.

    Args:
        where (`str`): The engine, for the error.
        mode (`str`): Its `logprobs_mode`.
    """
    if mode != RAW:
        what = "tells no probabilities of the model itself, by which junk is known"
        fix = f"Start the engine with --logprobs-mode {RAW}, vLLM's default."
        raise UnsupportedError(where, what, got=f"logprobs_mode {mode!r}", expected=repr(RAW), fix=fix)


def numbers_of(log_probabilities: Sequence[float | None]) -> list[float]:
    """Return log probabilities as numbers.

    Args:
        log_probabilities (`Sequence[float]`): As vLLM has them, which says -9999 where it is minus infinity.

    Raises:
        [`DataError`]: if one is missing, or no number.
    """
    found = []
    for value in log_probabilities:
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            raise DataError("engine", "gives no log probability of a token", got=repr(value))
        found.append(-math.inf if value <= _IMPOSSIBLE else float(value))
    return found
