"""The products of `products.py` for CUDA, in Triton.

One program adds up one target's entries over one span of the width, in their order; one program multiplies one entry's
rows. Nothing is added atomically, so that results do not change from run to run. This module needs triton, so
`products_for` imports it only where triton is installed.

The kernels were run in triton's interpreter and compiled for NVIDIA's sm_90, but not run on a GPU; the tests that do
so are marked `gpu`.
"""

# Kernels have no types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]
from torch import Tensor

from hf_mote.sae.kernels.torch_products import Products, offsets_of

__all__ = ["triton_products"]

# Columns that one program holds at once.
_SPAN = 512
# Given explicitly, because triton's default changes with its version.
_OPTIONS = {"enable_fp_fusion": True}


@triton.jit
def _weighted_sum_kernel(values, sources, offsets, matrix, out, width, SPAN: tl.constexpr):
    target = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * SPAN + tl.arange(0, SPAN)
    inside = columns < width
    total = tl.zeros((SPAN,), dtype=out.dtype.element_ty)
    for entry in range(tl.load(offsets + target), tl.load(offsets + target + 1)):
        source = tl.load(sources + entry)
        row = tl.load(matrix + source * width + columns, mask=inside, other=0.0)
        total += tl.load(values + entry) * row
    tl.store(out + target * width + columns, total, mask=inside)


@triton.jit
def _row_dots_kernel(left, right, rows, columns, out, width, SPAN: tl.constexpr):
    entry = tl.program_id(0).to(tl.int64)
    left += tl.load(rows + entry) * width
    right += tl.load(columns + entry) * width
    total = tl.zeros((SPAN,), dtype=out.dtype.element_ty)
    for start in range(0, width, SPAN):
        places = start + tl.arange(0, SPAN)
        inside = places < width
        first = tl.load(left + places, mask=inside, other=0.0)
        total += first * tl.load(right + places, mask=inside, other=0.0)
    tl.store(out + entry, tl.sum(total, axis=0))


def _weighted_sum(values: Tensor, targets: Tensor, sources: Tensor, matrix: Tensor, num_targets: int) -> Tensor:
    width, span = matrix.shape[1], _span(matrix.shape[1])
    out = matrix.new_empty(num_targets, width)
    operands = [each.contiguous() for each in (values, sources, offsets_of(targets, num_targets), matrix)]
    if out.numel():
        # Kernels run on the current device, not on that of their operands.
        with torch.cuda.device_of(out):
            programs = (num_targets, triton.cdiv(width, span))
            _weighted_sum_kernel[programs](*operands, out, width, SPAN=span, **_OPTIONS)
    return out


def _row_dots(left: Tensor, right: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    width, span = left.shape[1], _span(left.shape[1])
    out = left.new_empty(len(rows))
    operands = [each.contiguous() for each in (left, right, rows, columns)]
    if out.numel():
        with torch.cuda.device_of(out):
            _row_dots_kernel[(len(rows),)](*operands, out, width, SPAN=span, **_OPTIONS)
    return out


def _span(width: int) -> int:
    return min(_SPAN, 1 << max(width - 1, 0).bit_length())


triton_products = Products(_weighted_sum, _row_dots)
