"""The two products in torch: plainly for any device, and for the CPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Products", "cpu_products", "offsets_of", "plain_products"]

# Entries that the plain path holds the rows of at once.
_PLAIN_ENTRIES = 2**14


class Products(NamedTuple):
    """One implementation of the two products; arguments and results as those of [`weighted_sum`] and [`row_dots`]."""

    weighted_sum: Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]
    row_dots: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _plain_weighted_sum(values: Tensor, targets: Tensor, sources: Tensor, matrix: Tensor, num_targets: int) -> Tensor:
    out = matrix.new_zeros(num_targets, matrix.shape[1])
    for some in torch.arange(len(values), device=values.device).split(_PLAIN_ENTRIES):
        out.index_add_(0, targets[some], values[some, None] * matrix[sources[some]])
    return out


def _plain_row_dots(left: Tensor, right: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    parts = zip(rows.split(_PLAIN_ENTRIES), columns.split(_PLAIN_ENTRIES), strict=True)
    return torch.cat([left.new_empty(0), *((left[some] * right[others]).sum(1) for some, others in parts)])


def _cpu_weighted_sum(values: Tensor, targets: Tensor, sources: Tensor, matrix: Tensor, num_targets: int) -> Tensor:
    # A bag is a target; the last one ends where the entries do.
    bags = offsets_of(targets, num_targets)
    total: Tensor = F.embedding_bag(
        sources, matrix.contiguous(), bags, mode="sum", per_sample_weights=values, include_last_offset=True
    )
    return total


def _cpu_row_dots(left: Tensor, right: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    shape = (len(left), len(right))
    offsets = offsets_of(rows, len(left))
    with warnings.catch_warnings():
        # torch calls its compressed rows a beta; they do not leave this function.
        warnings.simplefilter("ignore", UserWarning)
        pattern = torch.sparse_csr_tensor(offsets, columns, left.new_zeros(len(rows)), shape, check_invariants=False)
        dots: Tensor = torch.sparse.sampled_addmm(pattern, left.contiguous(), right.t(), beta=0.0).values()
    return dots


def offsets_of(targets: Tensor, num_targets: int) -> Tensor:
    """Return where the entries of each target begin, and where the last ones end: int64 `(num_targets + 1,)`."""
    if targets.device.type != "cpu":
        # To count waits for a GPU.
        return torch.searchsorted(targets, torch.arange(num_targets + 1, device=targets.device))
    return F.pad(torch.bincount(targets, minlength=num_targets).cumsum(0), (1, 0))


plain_products = Products(_plain_weighted_sum, _plain_row_dots)


cpu_products = Products(_cpu_weighted_sum, _cpu_row_dots)
