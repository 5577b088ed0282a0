"""Groups of prompts that are one piece of evidence: wordings of one subject, fillings of one template.

Prompts on one subject have similar routing in every class. If they were taken for independent, p values would be far
too small where the class depends on the subject. Here every group becomes one unit, its mean, which counts as one
prompt in the permutation test, the bootstrap and the intervals.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from hf_mote.errors import DataError

__all__ = ["checked_groups", "group_means", "paired_groups"]

Array: TypeAlias = npt.NDArray[np.float64]
Indices: TypeAlias = npt.NDArray[np.int64]


def checked_groups(where: str, groups: object, prompts: int) -> list[int] | None:
    """Return the number of each prompt's group, 0 for the first that comes; `None` where no groups are given.

    Args:
        where (`str`): The place, for the error.
        groups (`Sequence[Hashable]`, *optional*): One key for each prompt, equal for those of one group.
        prompts (`int`): How many prompts there are.

    Raises:
        [`DataError`]: if `groups` is not a sequence of one hashable key for each prompt, or a key is missing.
    """
    if groups is None:
        return None
    if isinstance(groups, str | bytes) or not isinstance(groups, Sequence) or len(groups) != prompts:
        got = f"{len(groups)} of {type(groups).__name__}" if isinstance(groups, Sequence) else repr(groups)[:60]
        raise DataError(where, "not one key for each prompt", got=got, expected=f"a list of {prompts} keys")
    numbers: dict[Hashable, int] = {}
    found = []
    for place, key in enumerate(groups):
        if key is None or not isinstance(key, Hashable) or key != key:
            raise DataError(f"{where}[{place}]", "must be a key", got=repr(key)[:60], expected="a text or a number")
        found.append(numbers.setdefault(key, len(numbers)))
    return found


def group_means(values: Array, groups: Sequence[int]) -> Array:
    """Return the mean of each group, in the order of their numbers, `(groups, ...)`, float64.

    Args:
        values (`np.ndarray` of shape `(prompts, ...)`, float64): One row per prompt.
        groups (`Sequence[int]`): The number of each prompt's group, as [`checked_groups`] gives them.
    """
    index = np.asarray(groups, dtype=np.int64)
    times = np.bincount(index).astype(np.float64)
    sums = np.zeros((len(times), *values.shape[1:]))
    np.add.at(sums, index, values)
    return sums / times.reshape(-1, *[1] * (values.ndim - 1))


def paired_groups(values: Array, groups: Sequence[int] | None) -> tuple[Array, list[bool]]:
    """Return one pair of units for each group, and which are of the target side: what `contrast` takes with "paired".

    Args:
        values (`np.ndarray` of shape `(2 * prompts, ...)`, float64): The target side of each prompt, then the other.
        groups (`Sequence[int]`, *optional*): The number of each prompt's group; every prompt its own by default.
    """
    target, rest = np.split(values, 2)
    if groups is not None:
        target, rest = group_means(target, groups), group_means(rest, groups)
    return np.concatenate([target, rest]), [True] * len(target) + [False] * len(rest)
