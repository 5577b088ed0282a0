"""Checks of the position in a stream that a checkpoint names, before the stream is moved there."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_mote.errors import ConfigError, DataError, real, whole

__all__ = ["check_state"]

_WHERE = "ActivationStream.load_state_dict"
_KEYS = {"epoch", "window", "batch", "yielded", "share", "settings", "scales", "counts", "carried"}
_MOST = 2**53
_MOST_WINDOWS = 2**31


def check_state(
    state: object,
    counted: Collection[str],
    tensors: Sequence[str],
    dtype: torch.dtype,
    unit: int,
    sequences_per_window: int | None,
) -> None:
    """Raise unless a value is a state as [`ActivationStream.state_dict`] returns it.

    Args:
        state (`object`): The value.
        counted (`Collection[str]`): Keys of the counts.
        tensors (`Sequence[str]`): Names of the tensors of a window.
        dtype (`torch.dtype`): Of its activations.
        unit (`int`): Rows of a batch; fewer are left of a window.
        sequences_per_window (`int`, *optional*): Rows of a window, where they are whole sequences.

    Raises:
        [`DataError`]: with what is wrong.
    """
    if not isinstance(state, Mapping) or set(state) != _KEYS:
        got = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
        raise DataError(_WHERE, "must be the state of a stream", got=got, expected=sorted(_KEYS))
    try:
        for key, most in (("epoch", _MOST), ("window", _MOST_WINDOWS), ("batch", _MOST), ("yielded", _MOST)):
            whole(f"{_WHERE}: {key}", state[key], most=most)
        _check_share(state["share"])
        _check_scales(state["scales"], tensors)
        if not isinstance(state["settings"], Mapping):
            raise ConfigError(f"{_WHERE}: settings", "must be a dict", got=repr(state["settings"])[:80])
        if not isinstance(state["counts"], Mapping) or set(state["counts"]) != set(counted):
            raise ConfigError(f"{_WHERE}: counts", "must hold the counts of a stream", got=repr(state["counts"])[:80])
        for key, value in state["counts"].items():
            whole(f"{_WHERE}: counts.{key}", value, most=_MOST)
    except ConfigError as error:
        raise DataError(_WHERE, str(error).rstrip(".")) from error
    _check_carried(state["carried"], tensors, dtype, unit)
    _check_batches(state, unit, sequences_per_window)


def _check_batches(state: Mapping[str, Any], unit: int, sequences_per_window: int | None) -> None:
    """Refuse numbers that no stream has together.

    The batches of this pass are those of whole windows, which are counted and of which less than a batch is left, and
    those of the present window.
    """
    epoch, window, batch, yielded = (state[key] for key in ("epoch", "window", "batch", "yielded"))
    of_whole = yielded - batch
    left = len(next(iter(state["carried"].values()))) if state["carried"] else 0
    rows, kept = of_whole * unit + left, state["counts"]["kept"]
    expected = None
    if of_whole < 0 or (not window and of_whole):
        expected = f"batch {yielded}" if not window else f"up to {yielded}"
    elif not window and (left or (not epoch and any(state["counts"].values()))):
        expected = "nothing counted or left before the first window"
    elif (total := sum(state["counts"].values())) < window:
        expected = f"a token of each window, not {total}"
    elif sequences_per_window is not None and rows != window * sequences_per_window:
        expected = f"{window * sequences_per_window} rows of whole windows, not {rows}"
    elif sequences_per_window is None and (rows > kept or (not epoch and rows != kept)):
        expected = f"{kept} tokens kept of whole windows, not {rows}"
    if expected is not None:
        what, got = "contradict each other", f"window {window}, batch {batch} of {yielded}, {left} rows left"
        fix = "Go on from another checkpoint, or begin anew."
        raise DataError(f"{_WHERE}: window, batch, yielded, counts", what, got=got, expected=expected, fix=fix)


def _check_share(share: object) -> None:
    if not isinstance(share, list | tuple) or len(share) != 2:
        raise ConfigError(f"{_WHERE}: share", "must be (process, processes)", got=repr(share)[:80])
    world = whole(f"{_WHERE}: share", share[1], least=1, most=2**20)
    whole(f"{_WHERE}: share", share[0], most=world - 1)


def _check_scales(scales: object, tensors: Sequence[str]) -> None:
    if not isinstance(scales, Mapping) or not set(scales) <= set(tensors):
        raise ConfigError(f"{_WHERE}: scales", "are of other hookpoints", got=repr(scales)[:80])
    for key, scale in scales.items():
        for value in scale if isinstance(scale, list | tuple) and scale else [scale]:
            real(f"{_WHERE}: scales.{key}", value, above=0, most=math.inf)


def _check_carried(carried: Any, tensors: Sequence[str], dtype: torch.dtype, unit: int) -> None:
    if not carried and isinstance(carried, Mapping):
        return
    right = isinstance(carried, Mapping) and set(carried) == set(tensors)
    right = right and all(isinstance(part, Tensor) and part.ndim > 0 for part in carried.values())
    if not right or len({len(part) for part in carried.values()}) > 1:
        got = sorted(carried) if isinstance(carried, Mapping) else type(carried).__name__
        raise DataError(f"{_WHERE}: carried", "must be rows of a window", got=got, expected=sorted(tensors))
    for key, part in carried.items():
        activations = part.ndim > 1 and not key.startswith(".")
        fits = part.dtype == dtype if not key.startswith(".") else not part.is_floating_point()
        if len(part) >= unit or not fits or (activations and not bool(part.isfinite().all())):
            got, expected = f"{len(part)} rows of {part.dtype}", f"finite rows of {dtype}, fewer than {unit}"
            raise DataError(f"{_WHERE}: carried.{key}", "is not what was left of a window", got=got, expected=expected)
