"""The two products of sparse latents with dense matrices; decoding and every gradient is one of them.

`weighted_sum` adds up rows of a matrix, `row_dots` multiplies rows of two matrices. Each is written three times:
plainly, for any device; for the CPU; and for CUDA in Triton (`triton_products.py`), which is used where triton is
installed. The last two add to no place from two threads, so that results do not change from run to run.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Products", "cpu_products", "offsets_of", "plain_products", "products_for", "row_dots", "weighted_sum"]

# Entries that the plain path holds the rows of at once.
_PLAIN_ENTRIES = 2**14


class Products(NamedTuple):
    """One implementation of the two products; arguments and results as those of [`weighted_sum`] and [`row_dots`]."""

    weighted_sum: Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]
    row_dots: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def weighted_sum(values: Tensor, targets: Tensor, sources: Tensor, matrix: Tensor, num_targets: int) -> Tensor:
    """Return `out[t]`, the sum of `values[i] * matrix[sources[i]]` over all i of which `targets[i]` is t.

    Args:
        values (`torch.Tensor` of shape `(active,)`, float): Weights.
        targets (`torch.Tensor` of shape `(active,)`, int64): Ascending.
        sources (`torch.Tensor` of shape `(active,)`, int64): Rows of `matrix`.
        matrix (`torch.Tensor` of shape `(sources, width)`, float): What is added up.
        num_targets (`int`): Rows of the result.

    Returns:
        `torch.Tensor` of shape `(num_targets, width)`: float64 if `values` or `matrix` is, otherwise float32.
    """
    values, matrix = _wide(values, matrix)
    return products_for(matrix.device.type).weighted_sum(values, targets, sources, matrix, num_targets)


def row_dots(left: Tensor, right: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the dot product of `left[rows[i]]` and `right[columns[i]]` for every i.

    Args:
        left (`torch.Tensor` of shape `(rows, width)`, float): One factor.
        right (`torch.Tensor` of shape `(columns, width)`, float): The other.
        rows (`torch.Tensor` of shape `(active,)`, int64): Ascending.
        columns (`torch.Tensor` of shape `(active,)`, int64): Rows of `right`; no pair occurs twice.

    Returns:
        `torch.Tensor` of shape `(active,)`: float64 if `left` or `right` is, otherwise float32.
    """
    left, right = _wide(left, right)
    return products_for(left.device.type).row_dots(left, right, rows, columns)


@lru_cache
def products_for(device_type: str) -> Products:
    """Return the implementation that is used on a type of device."""
    if device_type == "cpu":
        return cpu_products
    if device_type == "cuda" and importlib.util.find_spec("triton") is not None:
        from hf_mote.sae.kernels import triton_products

        return triton_products.triton_products
    return plain_products


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
    return torch.searchsorted(targets, torch.arange(num_targets + 1, device=targets.device))


def _wide(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if torch.float64 in (first.dtype, second.dtype) else torch.float32
    return first.detach().to(dtype), second.detach().to(dtype)


plain_products = Products(_plain_weighted_sum, _plain_row_dots)
cpu_products = Products(_cpu_weighted_sum, _cpu_row_dots)
