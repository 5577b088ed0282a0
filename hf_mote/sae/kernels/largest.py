"""The largest entries of each row, the first of equal ones, without sorting whole rows.

A row is cut into groups of neighbours and only some groups are searched. `largest_in_rows` searches those with
the largest maxima: the `count` largest entries lie in the `count` groups whose maxima come first, if groups and
entries are both ordered by value, descending, and then by position. `positive_in_rows` takes the least of the `count`
largest maxima as a bound, which at least `count` entries reach, and sorts those that reach it: few more than `count`.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["GROUP", "group_maxima", "largest_in_rows", "positive_in_rows"]

# A maximum over 64 neighbours costs less than reading them twice; rows are padded to a multiple of it.
GROUP = 64
# Shorter groups cost more to reduce and leave fewer entries to look into; the shortest is for many chosen entries.
_GROUPS = (GROUP, 32)
_SHORTEST_GROUP = 16
# To find a bound among maxima costs as much as to compare so many entries with it.
_MAXIMUM_COST = 3
_LOW_BITS = 32


def largest_in_rows(affinity: Tensor, count: int) -> Tensor:
    """Return the positions of the `count` largest entries of each row, best first.

    Entries that are not positive count as equal and come last: they are among the result only where a row has too few
    positive ones. Shapes do not depend on the data.

    Args:
        affinity (`torch.Tensor` of shape `(rows, width)`, any float dtype, contiguous): Free of NaN.
        count (`int`): 0 <= count <= width < 2**31.

    Returns:
        `torch.Tensor` of shape `(rows, count)`, int64.
    """
    rows, width = affinity.shape
    size = _group_size(width, count)
    if size is None:
        return _ordered(affinity, count)
    # In ascending order, so that positions among the candidates are in the order of positions in the row.
    groups = _ordered(group_maxima(affinity, size), count).sort(dim=1).values
    flat = groups + torch.arange(rows, device=groups.device)[:, None] * (width // size)
    candidates = affinity.reshape(-1, size).index_select(0, flat.flatten()).reshape(rows, count * size)
    found = _ordered(candidates, count)
    return groups.gather(1, found // size) * size + found % size


def positive_in_rows(affinity: Tensor, count: int, *, ranked: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Return where the `count` largest positive entries of each row are: fewer, where fewer are positive.

    Args:
        affinity (`torch.Tensor` of shape `(rows, width)`, any float dtype, contiguous): Free of NaN.
        count (`int`): 0 <= count <= width < 2**31.
        ranked (`bool`, *optional*, defaults to `True`):
            Whether the order within a row matters; without it nothing is sorted, and ranks say nothing.

    Returns:
        Rows, positions and ranks (the largest entry of a row has rank 0), int64 `(found,)` each, ascending by row and
        then by rank.
    """
    size = _group_size(affinity.shape[1], count)
    # Elsewhere to wait for the number of entries costs more than it saves, and wider numbers do not fit the keys.
    if size is None or count == 0 or affinity.device.type != "cpu" or affinity.dtype.itemsize > 4:
        positions = largest_in_rows(affinity, count)
        rows, ranks = (affinity.gather(1, positions) > 0).nonzero(as_tuple=True)
        return rows, positions[rows, ranks], ranks
    rows, positions, values = _at_least_the_bound(affinity, count, size)
    lengths = torch.bincount(rows, minlength=len(affinity))
    most = max(count, int(lengths.max()) if len(lengths) else 0)
    # Every entry to its row, from the left.
    starts = lengths.cumsum(0) - lengths
    places = torch.arange(len(rows)) + (torch.arange(len(lengths)) * most - starts).index_select(0, rows)
    last = affinity.shape[1] - 1
    keys = torch.full((len(affinity) * most,), -1).scatter_(0, places, _keys(values, last - positions))
    best = keys.reshape(len(affinity), most).topk(count, dim=1, sorted=ranked).values.flatten()
    found = (best >= 2**_LOW_BITS).nonzero().squeeze(1)
    rows, ranks = found // count, found % count
    return rows, last - (best.index_select(0, found) & (2**_LOW_BITS - 1)), ranks


def group_maxima(affinity: Tensor, size: int = GROUP) -> Tensor:
    """Return the largest entry of each `size` neighbours, `(rows, width / size)`."""
    return affinity.reshape(len(affinity), affinity.shape[1] // size, size).amax(-1)


def _at_least_the_bound(affinity: Tensor, count: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, positions and values of the positive entries that are not below the `count`-th largest maximum."""
    maxima = group_maxima(affinity, size)
    info = torch.finfo(affinity.dtype)
    smallest = info.smallest_normal * info.eps
    bound = maxima.topk(count, dim=1, sorted=False).values.amin(1, keepdim=True).clamp_min(smallest)
    # By places in flattened tensors: to index by rows and columns takes several times as long.
    groups = (maxima >= bound).flatten().nonzero().squeeze(1)
    rows = groups // maxima.shape[1]
    candidates = affinity.reshape(-1, size).index_select(0, groups)
    hits = (candidates >= bound.index_select(0, rows)).flatten().nonzero().squeeze(1)
    whose = hits // size
    rows, values = rows.index_select(0, whose), candidates.flatten().index_select(0, hits)
    places = groups.index_select(0, whose) * size + hits % size
    return rows, places - rows * affinity.shape[1], values


def _group_size(width: int, count: int) -> int | None:
    """The length of groups that costs least, or `None` where whole rows are as good."""
    sizes = [size for size in _GROUPS if width % size == 0 and 2 * count * size <= width]
    if sizes:
        return min(sizes, key=lambda size: _MAXIMUM_COST * (width // size) + count * size)
    shortest = _SHORTEST_GROUP
    return shortest if width % shortest == 0 and 2 * count * shortest <= width else None


def _ordered(affinity: Tensor, count: int) -> Tensor:
    if affinity.dtype.itemsize > 4:
        return affinity.clamp_min(0).sort(dim=1, descending=True, stable=True).indices[:, :count]
    last = torch.arange(affinity.shape[1] - 1, -1, -1, device=affinity.device)
    return _keys(affinity.clamp_min(0), last).topk(count, dim=1).indices


def _keys(values: Tensor, from_the_end: Tensor) -> Tensor:
    """Positive floats are ordered as their bits are; with the position below these, no two keys of a row are equal."""
    return (values.float().view(torch.int32).long() << _LOW_BITS) | from_the_end
