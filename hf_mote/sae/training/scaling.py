"""The factors on the activations of a stream, measured on its first window."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from hf_mote.errors import DataError

__all__ = ["NORMALIZATIONS", "Normalization", "factor_for", "fitted_scale"]

Normalization = Literal["mean_square", "per_dimension"]
NORMALIZATIONS = get_args(Normalization)

# Numbers of a window that are squared together.
_MEASURED_TOGETHER = 2**18


def fitted_scale(name: str, rows: Tensor, normalization: Normalization) -> float | list[float]:
    """Return the scale that normalises activations: one number, or one for each dimension.

    Args:
        name (`str`): The hookpoint, for errors.
        rows (`torch.Tensor` of shape `(tokens, width)`): The activations.
        normalization (`"mean_square"` or `"per_dimension"`): What is 1 after the scaling.

    Raises:
        [`DataError`]: if the activations do not vary.
    """
    measured = _mean_square(rows) if normalization == "mean_square" else _variances(rows)
    if not len(rows) or not bool((measured > 0).any()):
        raise DataError(name, "activations are the same throughout, and cannot be scaled")
    # A dimension that does not vary is left unscaled.
    scale: float | list[float] = torch.where(measured > 0, measured, 1.0).rsqrt().tolist()
    return scale


def factor_for(scale: float | list[float], rows: Tensor) -> float | Tensor:
    """Return a scale as a factor on rows, in their dtype and on their device."""
    return torch.tensor(scale, dtype=rows.dtype, device=rows.device) if isinstance(scale, list) else scale


def _mean_square(rows: Tensor) -> Tensor:
    """The mean of all squares, float64, a few tokens at a time: a window is large, and in float64 larger."""
    return torch.stack([part.double().pow(2).sum() for part in _few(rows)]).sum() / rows.numel()


def _variances(rows: Tensor) -> Tensor:
    """The variance of each dimension, float64 `(width,)`, a few tokens at a time."""
    mean = torch.stack([part.double().sum(0) for part in _few(rows)]).sum(0) / len(rows)
    return torch.stack([(part.double() - mean).pow(2).sum(0) for part in _few(rows)]).sum(0) / len(rows)


def _few(rows: Tensor) -> tuple[Tensor, ...]:
    parts: tuple[Tensor, ...] = rows.split(max(_MEASURED_TOGETHER // max(rows.shape[1], 1), 1))
    return parts
