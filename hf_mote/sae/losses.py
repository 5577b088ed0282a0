"""Losses of sparse autoencoders, as pure functions of tensors.

Every function takes flattened tokens, `(tokens, ...)`, and leaves padding out if a mask of valid tokens is given.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["RECONSTRUCTION_LOSSES", "fvu", "fvu_scale", "mse", "squared_error", "total_variance", "weighted_l1"]


def squared_error(target: Tensor, reconstruction: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return the summed squared error over valid tokens, a float32 (float64) scalar.

    Args:
        target (`torch.Tensor` of shape `(tokens, width)`): What should come out.
        reconstruction (`torch.Tensor` of shape `(tokens, width)`): What came out.
        valid (`torch.Tensor` of shape `(tokens,)`, bool, *optional*): `False` at padding.
    """
    error = _wide(target) - _wide(reconstruction)
    if valid is not None:
        error = error * valid[:, None]
    return error.pow(2).sum()


def total_variance(target: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return the summed squared distance of valid tokens from their mean, a scalar; shapes as in [`squared_error`]."""
    target = _wide(target)
    if valid is None:
        return (target - target.mean(0)).pow(2).sum()
    weight = valid[:, None].to(target.dtype)
    mean = (target * weight).sum(0) / weight.sum().clamp(min=1)
    return ((target - mean) * weight).pow(2).sum()


def fvu(
    target: Tensor,
    reconstruction: Tensor,
    valid: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    error: Tensor | None = None,
) -> Tensor:
    """Return the fraction of variance unexplained: [`squared_error`] over [`total_variance`].

    0 is perfect, 1 is as good as the mean of the batch. A batch without variance (one token, or none) is measured
    against its squared length instead, and gives 0 if that is 0 too. With `scale`, the variance of a whole step of
    which this is a part, the parts add up to the step's FVU. `error` is the squared error, if known already.
    """
    error = squared_error(target, reconstruction, valid) if error is None else error
    return error / (fvu_scale(target, valid) if scale is None else scale)


def fvu_scale(target: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return what [`fvu`] divides the squared error of a batch by, a scalar; shapes as in [`squared_error`]."""
    variance = total_variance(target, valid)
    length = (_wide(target) if valid is None else _wide(target) * valid[:, None]).pow(2).sum()
    scale = variance.where(variance > 1e-12 * length, length)
    return scale.where(scale > 0, scale.new_ones(()))


def mse(
    target: Tensor,
    reconstruction: Tensor,
    valid: Tensor | None = None,
    *,
    num_tokens: int | None = None,
    error: Tensor | None = None,
) -> Tensor:
    """Return the squared error, mean over valid tokens (a sum over them, by `num_tokens`) and over dimensions.

    `error` is the squared error, if known already.
    """
    tokens: int | Tensor
    if num_tokens is not None:
        tokens = max(num_tokens, 1)
    else:
        tokens = max(len(target), 1) if valid is None else valid.sum().clamp(min=1)
    error = squared_error(target, reconstruction, valid) if error is None else error
    return error / (target.shape[1] * tokens)


def weighted_l1(latents: Tensor, decoder_norms: Tensor, tokens: int | Tensor) -> Tensor:
    """Return the L1 norm of latents times the length of their dictionary rows, mean over tokens.

    Args:
        latents (`torch.Tensor` of shape `(tokens, num_latents)`): Not negative, zero at padding.
        decoder_norms (`torch.Tensor` of shape `(num_latents,)`): Lengths of the rows of `W_dec`.
        tokens (`int` or `torch.Tensor` of shape `()`): Number of valid tokens.

    Source: Conerly et al., Circuits Updates April 2024 (the penalty that a rescaled dictionary does not change).
    """
    # Summed in float32 (float64), also under autocast.
    total = latents.sum(0, dtype=torch.promote_types(latents.dtype, torch.float32))
    return (total * _wide(decoder_norms)).sum() / tokens


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype.itemsize >= 4 else values.float()


RECONSTRUCTION_LOSSES = {"fvu": fvu, "mse": mse}
"""By the name that `SAEConfig.reconstruction_loss` takes."""
