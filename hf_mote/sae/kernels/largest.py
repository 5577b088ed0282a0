"""The largest entries of each row, the first of equal ones, without sorting whole rows.

A row is cut into groups of neighbours and only the groups with the largest maxima are looked into: the `count` largest
entries lie in the `count` groups whose maxima come first, if groups and entries are both ordered by value, descending,
and then by position.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["GROUP", "group_maxima", "largest_in_rows"]

# A maximum over 64 neighbours costs less than reading them twice; rows are padded to a multiple of it.
GROUP = 64
# Shorter groups cost more to reduce and are worth it only where many entries are wanted.
_SMALLER_GROUPS = (32, 16)
_LOW_BITS = 32


def largest_in_rows(affinity: Tensor, count: int) -> Tensor:
    """Return the positions of the `count` largest entries of each row, best first.

    Entries that are not positive count as equal and come last: they are among the result only where a row has too few
    positive ones.

    Args:
        affinity (`torch.Tensor` of shape `(rows, width)`, any float dtype, contiguous): Free of NaN.
        count (`int`): 0 <= count <= width < 2**31.

    Returns:
        `torch.Tensor` of shape `(rows, count)`, int64.
    """
    rows, width = affinity.shape
    size = next((size for size in (GROUP, *_SMALLER_GROUPS) if width % size == 0 and 2 * count * size <= width), None)
    if size is None:
        return _ordered(affinity, count)
    # In ascending order, so that positions among the candidates are in the order of positions in the row.
    groups = _ordered(group_maxima(affinity, size), count).sort(dim=1).values
    flat = groups + torch.arange(rows, device=groups.device)[:, None] * (width // size)
    candidates = affinity.reshape(-1, size).index_select(0, flat.flatten()).reshape(rows, -1)
    found = _ordered(candidates, count)
    return groups.gather(1, found // size) * size + found % size


def group_maxima(affinity: Tensor, size: int = GROUP) -> Tensor:
    """Return the largest entry of each `size` neighbours, `(rows, width / size)`."""
    return affinity.reshape(len(affinity), affinity.shape[1] // size, size).amax(-1)


def _ordered(affinity: Tensor, count: int) -> Tensor:
    if affinity.dtype.itemsize > 4:
        return affinity.clamp_min(0).sort(dim=1, descending=True, stable=True).indices[:, :count]
    # Positive floats are ordered as their bits are; with the position below these, no two keys are equal.
    bits = affinity.float().clamp_min_(0) if affinity.dtype != torch.float32 else affinity.clamp_min(0)
    last = torch.arange(affinity.shape[1] - 1, -1, -1, device=affinity.device)
    keys = (bits.view(torch.int32).long() << _LOW_BITS) | last
    return keys.topk(count, dim=1).indices
