"""The two products of sparse latents with dense matrices; decoding and every gradient is one of them.

`weighted_sum` adds up rows of a matrix, `row_dots` multiplies rows of two matrices. Each is written three times:
plainly, for any device; for the CPU; and for CUDA in Triton (`triton_products.py`), which is used where triton is
installed. The last two add to no place from two threads, so that results do not change from run to run.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache

import torch
from torch import Tensor

from hf_mote.sae.kernels.torch_products import (
    Products,
    cpu_products,
    plain_products,
)

__all__ = ["products_for", "row_dots", "sums", "weighted_sum"]


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


def sums(values: Tensor, targets: Tensor, num_targets: int) -> Tensor:
    """Return `out[t]`, the sum of `values[i]` over all i of which `targets[i]` is t, in their order.

    Args:
        values (`torch.Tensor` of shape `(active,)`, float): What is added up.
        targets (`torch.Tensor` of shape `(active,)`, int64): Ascending.
        num_targets (`int`): Length of the result.

    Returns:
        `torch.Tensor` of shape `(num_targets,)`: float64 if `values` is, otherwise float32.
    """
    (values, _) = _wide(values, values)
    if values.device.type == "cpu":
        return values.new_zeros(num_targets).index_add_(0, targets, values)
    # As a product, which is the same in every run on a GPU, too.
    sources = torch.zeros_like(targets)
    return weighted_sum(values, targets, sources, values.new_ones(1, 1), num_targets).squeeze(1)


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


def _wide(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if torch.float64 in (first.dtype, second.dtype) else torch.float32
    return first.detach().to(dtype), second.detach().to(dtype)
