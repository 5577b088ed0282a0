"""Experts that the same prompts use: the shares of tokens that go to them rise and fall together over prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hf_mote.errors import DataError, whole

__all__ = ["most_alike"]


def most_alike(shares: npt.ArrayLike, chosen: Sequence[int], n: int) -> list[list[tuple[int, float]]]:
    """Return, for some columns, those that go with them most.

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
    if values.ndim != 2 or len(values) < 3 or not np.isfinite(values).all():
        what = "too few prompts, or no numbers"
        raise DataError("most_alike.shares", what, got=values.shape, expected="(3 or more, experts)")
    whole("most_alike.n", n)
    centred = values - values.mean(axis=0)
    lengths = np.sqrt((centred**2).sum(axis=0))
    # Of equal numbers rounding leaves a little.
    still = lengths <= 1e-9 * np.abs(values).max(axis=0, initial=0.0) * len(values)
    centred = np.where(still, 0.0, centred) / np.where(still, 1.0, lengths)
    found = []
    for column in chosen:
        alike = centred.T @ centred[:, column]
        alike[column] = 0.0
        order = np.argsort(-alike, kind="stable")[:n]
        found.append([(int(other), min(1.0, float(alike[other]))) for other in order if alike[other] > 0])
    return found
