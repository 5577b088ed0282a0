"""Experts that the same prompts use: their shares of tokens correlate over prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from hf_mote.errors import DataError, whole

__all__ = ["most_alike", "most_alike_in_blocks"]

Array: TypeAlias = npt.NDArray[np.float64]

VALUES_PER_BLOCK = 2**24  # of float64 in a block of columns: bounds memory


def most_alike(shares: npt.ArrayLike, chosen: Sequence[int], n: int) -> list[list[tuple[int, float]]]:
    """Return, for some columns, the most correlated other ones.

    Args:
        shares (`np.ndarray` of shape `(prompts, experts)`, any real dtype): The share of a prompt's tokens of each.
        chosen (`Sequence[int]`): Columns to compare with all others.
        n (`int`): How many of the others to return at most.

    Returns:
        `list[list[tuple[int, float]]]`: for each chosen column the others with their Pearson correlation over prompts,
        highest first, ties by column; none with one that is not above 0, or of a column that is the same everywhere.

    Raises:
        [`DataError`]: if there are fewer than 3 prompts, of which any two columns go together.

    Example:
        ```python
        from hf_mote.statistics.alike import most_alike

        shares = [[0.1, 0.2, 0.9], [0.5, 0.6, 0.3], [0.3, 0.4, 0.5]]
        assert [expert for expert, _ in most_alike(shares, [0], 5)[0]] == [1]
        ```
    """
    values = np.asarray(shares, dtype=np.float64)
    if values.ndim != 2:
        raise DataError(
            "most_alike.shares", "must have a row for each prompt", got=values.shape, expected="(prompts, experts)"
        )
    return most_alike_in_blocks(lambda start, stop: values[:, start:stop], values.shape, chosen, n)


def most_alike_in_blocks(
    columns: Callable[[int, int], Array], shape: tuple[int, int], chosen: Sequence[int], n: int
) -> list[list[tuple[int, float]]]:
    """Return what [`most_alike`] returns, a block of columns at a time: memory is that of a block and the chosen ones.

    Args:
        columns (`Callable[[int, int], np.ndarray]`):
            Returns the columns from one number to another, `(prompts, columns)`, float64.
        shape (`tuple[int, int]`): Prompts and columns.
        chosen (`Sequence[int]`): Columns to compare with all others.
        n (`int`): How many of the others to return at most.

    Raises:
        [`DataError`]: if there are fewer than 3 prompts, or a share is not finite.
    """
    prompts, width = shape
    if prompts < 3:
        raise DataError("most_alike.shares", "too few prompts", got=prompts, expected="3 or more")
    whole("most_alike.n", n)
    mine = np.concatenate(
        [_unit(columns(column, column + 1)) for column in chosen] or [np.zeros((prompts, 0))], axis=1
    )
    alike = np.zeros((len(chosen), width))
    step = max(1, VALUES_PER_BLOCK // prompts)
    for start in range(0, width, step):
        alike[:, start : start + step] = mine.T @ _unit(columns(start, min(start + step, width)))
    found = []
    for column, row in zip(chosen, alike, strict=True):
        row[column] = 0.0
        order = np.argsort(-row, kind="stable")[:n]
        found.append([(int(other), min(1.0, float(row[other]))) for other in order if row[other] > 0])
    return found


def _unit(values: Array) -> Array:
    """Return columns less their means and of unit length; 0 for one that is the same everywhere."""
    if not np.isfinite(values).all():
        raise DataError("most_alike.shares", "must be numbers", got="NaN or infinity", expected="finite shares")
    centred = values - values.mean(axis=0)
    lengths = np.sqrt((centred**2).sum(axis=0))
    # Equal numbers leave rounding errors.
    still = lengths <= 1e-9 * np.abs(values).max(axis=0, initial=0.0) * len(values)
    unit: Array = np.where(still, 0.0, centred) / np.where(still, 1.0, lengths)
    return unit
