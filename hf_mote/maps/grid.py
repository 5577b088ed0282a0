"""The (layer, expert) grid that maps and rankings are laid out on: its checks, its order, its look-up.

A grid is a float64 CPU tensor of shape `(layers, experts)` and the absolute decoder layer of each row.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch

from hf_mote.errors import ConfigError, DataError, UnknownNameError

__all__ = ["check_grid", "check_layers", "descending", "row_of"]

_LAST = 2**31


def check_layers(where: str, layers: Sequence[int]) -> tuple[int, ...]:
    """Return the layers as a tuple of ints.

    Raises:
        [`DataError`]: if there are none, or they are not ascending numbers from 0.
    """
    try:
        numbers = tuple(layers)
    except TypeError:
        numbers = ()
    whole = all(isinstance(layer, int) and not isinstance(layer, bool) and 0 <= layer < _LAST for layer in numbers)
    if not numbers or not whole or list(numbers) != sorted(set(numbers)):
        expected = "absolute decoder layers, ascending, each once"
        raise DataError(f"{where}.layers", "must be layers", got=numbers or repr(layers)[:80], expected=expected)
    return numbers


def check_grid(where: str, grid: object, rows: int, *, allow_nan: bool = False) -> torch.Size:
    """Return the shape of a grid of `rows` layers.

    Raises:
        [`DataError`]: if it is not a float64 CPU tensor of shape `(rows, experts)`, or a number is not finite.
    """
    expected = f"a float64 CPU tensor of shape ({rows}, experts)"
    if not isinstance(grid, torch.Tensor):
        raise DataError(where, "must be a tensor", got=type(grid).__name__, expected=expected)
    if grid.ndim != 2 or grid.shape[0] != rows or grid.shape[1] == 0:
        raise DataError(where, "wrong shape", got=tuple(grid.shape), expected=expected)
    if grid.dtype != torch.float64 or grid.device.type != "cpu":
        fix = "Convert it with .double().cpu()."
        raise DataError(
            where, "wrong dtype or device", got=f"{grid.dtype} on {grid.device}", expected=expected, fix=fix
        )
    bad = torch.isinf(grid) if allow_nan else ~torch.isfinite(grid)
    if bool(bad.any()):
        row, expert = bad.nonzero()[0].tolist()
        raise DataError(where, "not finite", got=f"{float(grid[row, expert])} in row {row}, expert {expert}")
    return grid.shape


def descending(
    where: str, grid: torch.Tensor, layers: Sequence[int], n: int, sizes: Sequence[int] | None = None
) -> list[tuple[int, int]]:
    """Return the `n` highest places of a grid as (layer, expert), highest first, ties by layer and expert.

    Args:
        where (`str`): The place, for the error.
        grid (`torch.Tensor` of shape `(layers, experts)`): The values.
        layers (`Sequence[int]`): Absolute decoder layer of each row.
        n (`int`): How many.
        sizes (`Sequence[int]`, *optional*):
            Experts of each row, where a layer may have fewer than the grid has columns.

    Raises:
        [`ConfigError`]: if `n` is negative, not a whole number, or too large.
    """
    # Whole numbers of numpy are accepted, too.
    most = grid.numel() if sizes is None else sum(sizes)
    if isinstance(n, bool) or not hasattr(n, "__index__") or not 0 <= operator.index(n) <= most:
        raise ConfigError(f"{where}.n", "must be a number of experts", got=n, expected=f"0..{most}")
    order = grid.flatten().argsort(descending=True, stable=True)
    if sizes is not None:
        there = torch.arange(grid.shape[1]) < torch.tensor(sizes)[:, None]
        order = order[there.flatten()[order]]
    places: list[int] = order[: operator.index(n)].tolist()
    return [(layers[index // grid.shape[1]], index % grid.shape[1]) for index in places]


def row_of(where: str, layers: Sequence[int], num_experts: int, layer: int, expert: int) -> int:
    """Return the row of a layer, after a check of the expert.

    Raises:
        [`UnknownNameError`]: if there is no such layer or expert.
    """
    if layer not in layers:
        known = ", ".join(map(str, layers))
        fix = "Layers are absolute decoder layers; dense layers have no experts."
        raise UnknownNameError(where, f"layer {layer} is not here", got=layer, expected=f"one of {known}", fix=fix)
    if not 0 <= expert < num_experts:
        what = f"expert {expert} at layer {layer} does not exist"
        raise UnknownNameError(where, what, got=expert, expected=f"0..{num_experts - 1}")
    return list(layers).index(layer)
