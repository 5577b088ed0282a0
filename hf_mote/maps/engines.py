"""Routing that an inference engine recorded, counted as this package counts.

vLLM and SGLang can return the experts of each token, integers of shape `(tokens, layers, top_k)`. They need
checks: what was not recorded (a layer without experts, a prefix from the cache, or everything) is returned as zeros,
which would be counted as expert 0; the last sampled token has no routing, since it was never fed back; and
with load balancing experts may be named by the place of a copy.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hf_mote.errors import DataError, first_line
from hf_mote.maps.grid import check_layers

__all__ = ["RoutedCounts", "count_routed_experts"]

_WHERE = "from_routed_experts"
_MANY_ZEROS = 16  # of a model that chooses one expert a token; fewer may be its routing
_CACHED = (
    "A prefix that comes out of the cache is not run, and has no routing: switch prefix caching off "
    "(enable_prefix_caching=False), or give every request a cache_salt of its own."
)
_NO_EXPERT = (
    "With load balancing (EPLB) an engine may name places of copies: give physical_to_logical. In unsigned numbers -1 "
    "is the largest one: give tokens that were not recorded as signed numbers."
)
_MOST_PLACES = 2**24  # experts of all layers together


class RoutedCounts(NamedTuple):
    """Counts and weights of shape `(layers, experts)`, float64, and the tokens that were counted."""

    counts: Tensor
    weights: Tensor
    num_tokens: float


def count_routed_experts(
    experts: Any,
    *,
    num_experts: int,
    layers: Sequence[int],
    num_tokens: int | None = None,
    weights: Any | None = None,
    physical_to_logical: Any | None = None,
) -> RoutedCounts:
    """Return how often each expert was chosen in one sequence.

    Args:
        experts (integer array of shape `(tokens, layers, top_k)`):
            `torch.Tensor`, `np.ndarray` or nested lists. Its layers are the model's decoder layers, those without
            experts included, or exactly those named by `layers`. A token of -1 alone was not recorded and does not
            count. Nor does a last token of zeros alone if `top_k` is 2 or more: it cannot be routing, since no expert
            is chosen twice, and stands for the last sampled token, which is never fed back. With a `top_k` of 1 it
            cannot be distinguished from a token that chose expert 0 in every layer, and counts: leave such a row out.
        num_experts (`int`):
            Experts of each layer.
        layers (`Sequence[int]`):
            Absolute decoder layers that have experts, as `find_routers(model)` or the config has them; the others are
            left out.
        num_tokens (`int`, *optional*):
            Tokens of the sequence. The array must hold as many, or one less: the last sampled token is never fed back.
        weights (float array like `experts`, *optional*):
            Routing weights; engines do not return them. Without them the map's weights are 0.
        physical_to_logical (integer array of shape `(layers, places)`, *optional*):
            For an engine that balances its load and names experts by the place of a copy: the expert at each place,
            -1 for an empty place, with the layers of `experts`.

    Raises:
        [`DataError`]: if the array does not fit or cannot hold the experts' numbers; if it, a layer or tokens other
            than the last hold zeros alone; if tokens are missing, as those of a cached prefix; if an expert does not
            exist, as the number of a place may; or if a token has one twice in a layer.
    """
    layers = check_layers(_WHERE, layers)
    num_experts = _whole("num_experts", num_experts, 1, _MOST_PLACES // len(layers))
    if num_tokens is not None:
        num_tokens = _whole("num_tokens", num_tokens, 0, 2**53)
    chosen = _array("experts", experts)
    if chosen.ndim != 3 or chosen.dtype.kind not in "iu" or 0 in chosen.shape[1:]:
        raise DataError(
            f"{_WHERE}: experts",
            "not a table of experts",
            got=f"{chosen.dtype} of shape {chosen.shape}",
            expected="integers of shape (tokens, layers, top_k)",
        )
    places = num_experts if physical_to_logical is None else np.shape(physical_to_logical)[-1]
    if np.iinfo(chosen.dtype).max < places - 1:
        what, fix = "cannot hold the numbers of all experts, which begin again at 0", "Have it recorded in more bits."
        raise DataError(f"{_WHERE}: experts", what, got=chosen.dtype, expected=f"0..{places - 1}", fix=fix)
    if num_tokens is not None and len(chosen) not in (num_tokens, num_tokens - 1):
        missing = num_tokens - 1 - len(chosen)
        raise DataError(
            f"{_WHERE}: num_tokens",
            f"the first {missing} tokens may be missing" if missing > 0 else "does not fit",
            got=f"{len(chosen)} rows",
            expected=f"{num_tokens} or one less",
            fix=_CACHED if missing > 0 else None,
        )
    shape = chosen.shape
    complete = num_tokens is None or len(chosen) == num_tokens
    chosen = _rows_of("experts", chosen, layers).astype(np.int64)
    recorded = ~(chosen == -1).all(axis=(1, 2))
    if complete and _lacks_last_token(chosen):
        recorded[-1] = False
    chosen = chosen[recorded]
    _check_zeros(chosen, np.flatnonzero(recorded), layers, num_experts)
    if physical_to_logical is not None:
        chosen = _logical(chosen, physical_to_logical, layers, num_experts)
    wrong = np.argwhere((chosen < 0) | (chosen >= num_experts))
    if len(wrong):
        token, row, slot = wrong[0]
        raise DataError(
            f"{_WHERE}: experts[{token}, layer {layers[row]}]",
            "no such expert",
            got=int(chosen[token, row, slot]),
            expected=f"0..{num_experts - 1}",
            fix=_NO_EXPERT if chosen[token, row, slot] >= num_experts else None,
        )
    ordered = np.sort(chosen, axis=2)
    twice = np.argwhere(ordered[..., 1:] == ordered[..., :-1])
    if len(twice):
        token, row, _ = twice[0]
        raise DataError(
            f"{_WHERE}: experts[{token}, layer {layers[row]}]",
            "one expert twice",
            got=chosen[token, row].tolist(),
            fix="A token that a layer did not record may come back as zeros: leave its row out, or fill it with -1.",
        )
    flat = torch.from_numpy(chosen) + torch.arange(len(layers))[:, None] * num_experts
    length = len(layers) * num_experts
    counts = torch.bincount(flat.reshape(-1), minlength=length).double().view(len(layers), num_experts)
    weighed = torch.zeros(length, dtype=torch.float64)
    if weights is not None:
        given = _array("weights", weights)
        if given.shape != shape or given.dtype.kind not in "iuf" or not np.isfinite(given).all():
            got = f"{given.dtype} of shape {given.shape}"
            raise DataError(f"{_WHERE}: weights", "not one finite number for each expert", got=got, expected=shape)
        given = _rows_of("weights", given, layers)[recorded].astype(np.float64)
        weighed.index_add_(0, flat.reshape(-1), torch.from_numpy(given).reshape(-1))
    return RoutedCounts(counts, weighed.view(len(layers), num_experts), float(len(chosen)))


def _check_zeros(chosen: Any, tokens: Any, layers: Sequence[int], num_experts: int) -> None:
    """Refuse zeros that cannot be routing: no expert is chosen twice.

    Where one expert is chosen a token, zeros can be routing, and only a whole table of them is refused.
    """
    if not len(chosen) or num_experts == 1:
        return
    several = chosen.shape[2] > 1
    if not chosen.any() and (several or chosen.size >= _MANY_ZEROS):
        fix = (
            "The engine returned a buffer that it never filled. Look whether recording is on for this model and "
            "runner, and whether the request was the first to end."
        )
        raise DataError(f"{_WHERE}: experts", "holds zeros alone", got=f"{len(chosen)} tokens", fix=fix)
    if not several:
        return
    zeros = ~chosen.any(axis=(1, 2))
    leading = int(np.argmin(zeros))
    if leading:
        what = f"the first {leading} tokens hold zeros alone"
        raise DataError(f"{_WHERE}: experts", what, got=f"{len(chosen)} tokens", fix=_CACHED)
    if zeros.any():
        raise DataError(
            f"{_WHERE}: experts[{tokens[np.argmax(zeros)]}]",
            "holds zeros alone, as a token that was not recorded may come back",
            got=f"{int(zeros.sum())} such tokens of {len(chosen)}",
            fix="Leave such rows out, or fill them with -1; a last one is left out by itself.",
        )
    silent = np.flatnonzero(~chosen.any(axis=(0, 2)))
    if len(silent):
        raise DataError(
            f"{_WHERE}: experts[:, layer {layers[silent[0]]}]",
            "holds zeros alone, as a layer without experts comes back",
            got=f"{len(silent)} such layers of {len(layers)}",
            fix="Leave it out of `layers`.",
        )


def _logical(chosen: Any, physical_to_logical: Any, layers: Sequence[int], num_experts: int) -> Any:
    """Return the experts at the places of copies."""
    where = f"{_WHERE}: physical_to_logical"
    table = _array("physical_to_logical", physical_to_logical)
    if table.ndim != 2 or table.dtype.kind not in "iu" or not table.size:
        got = f"{table.dtype} of shape {table.shape}"
        raise DataError(where, "not a table of experts", got=got, expected="integers of shape (layers, places)")
    table = _rows_of("physical_to_logical", table[None], layers)[0].astype(np.int64)
    for row, layer in enumerate(layers):
        there = sorted(set(table[row].tolist()) - {-1})
        if there != list(range(num_experts)):
            what, everyone = "not each expert has a place", f"all of 0..{num_experts - 1}, and -1 for no expert"
            raise DataError(f"{where}[layer {layer}]", what, got=there[:20], expected=everyone)
    wrong = np.argwhere((chosen < 0) | (chosen >= table.shape[1]))
    if len(wrong):
        token, row, slot = wrong[0]
        where = f"{_WHERE}: experts[{token}, layer {layers[row]}]"
        found, most = int(chosen[token, row, slot]), table.shape[1] - 1
        raise DataError(where, "no such place", got=found, expected=f"0..{most}")
    return table[np.arange(len(layers))[:, None], chosen]


def _lacks_last_token(chosen: Any) -> bool:
    """Return whether the last row holds zeros that cannot be routing, and the row before it does not."""
    return bool(chosen.shape[2] > 1 and len(chosen) > 1 and not chosen[-1].any() and chosen[-2].any())


def _whole(name: str, value: Any, least: int, most: int) -> int:
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = least - 1
    if not least <= number <= most:
        got = repr(value)[:80]
        raise DataError(f"{_WHERE}: {name}", "must be a number", got=got, expected=f"{least}..{most}, a whole number")
    return number


def _array(name: str, table: Any) -> Any:
    try:
        if isinstance(table, np.ma.MaskedArray):
            raise TypeError("a masked array, whose mask would be lost")
        if isinstance(table, Tensor):
            table = table.detach().cpu()
            table = table.float() if table.dtype == torch.bfloat16 else table  # which numpy does not have
        return np.asarray(table)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise DataError(f"{_WHERE}: {name}", "not a table", got=first_line(error)) from error


def _rows_of(name: str, table: Any, layers: Sequence[int]) -> Any:
    """Return the layers asked for: all of them if there are as many, else by their number."""
    if table.shape[1] == len(layers):
        return table
    if table.shape[1] <= layers[-1]:
        raise DataError(
            f"{_WHERE}: {name}",
            "lacks some of the layers",
            got=f"{table.shape[1]} layers",
            expected=f"{len(layers)}, or all decoder layers up to {layers[-1]} at least",
        )
    return table[:, list(layers)]
