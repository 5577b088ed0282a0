"""`fit_start`: fits a new SAE to the first batch, so that training starts at least as well as with the batch's mean.

A dictionary of random rows does not fit the activations' centre and scale: activations far from 0 leave most latents
dead, and a wide dictionary overshoots many times. Both are estimated from one batch.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from hf_mote.errors import ConfigError
from hf_mote.sae.inputs import Tokens
from hf_mote.sae.kernels.sparse import SparseLatents
from hf_mote.sae.losses import fvu
from hf_mote.sae.modeling import SAEModel
from hf_mote.sae.output import Encoding
from hf_mote.sae.variants.bases.thresholded import ThresholdedSAEModel

__all__ = ["INITS", "Init", "fit_start", "geometric_median", "is_new"]

Init = Literal["mean", "geometric_median", "zero"]
INITS = ("mean", "geometric_median", "zero")

# Rounds in which the scale settles; where latents are linear in it, the first one is exact.
_ROUNDS = 8
_SETTLED = 1e-3
_MEDIAN_ROUNDS = 100


def is_new(sae: SAEModel) -> bool:
    """Whether an SAE is untrained: its biases are 0, as those of a trained one never are."""
    return not bool(sae.b_dec.any()) and not bool(sae.b_enc.any())


@torch.no_grad()
def fit_start(
    sae: SAEModel,
    activations: Tensor,
    targets: Tensor | None = None,
    attention_mask: Tensor | None = None,
    *,
    init: Init = "mean",
) -> SAEModel:
    """Fit where a new SAE starts to a batch, in place: `b_dec` to its centre, the encoder's scale to its errors.

    `b_dec` starts at the centre of what is reconstructed, and pre-activations at 0 for the centre of the input. Rows
    of a transcoder's decoder start along what their latents' targets have in common. The encoder is scaled for the
    least error: with `init="mean"` the FVU of the batch is at most 1, for every architecture. Thresholds are
    calibrated on the batch, so that an SAE can be evaluated before its first step.

    Args:
        sae ([`SAEModel`]): As it was made.
        activations (`torch.Tensor` of shape `(..., hidden_size)`): The batch.
        targets (`torch.Tensor` of shape `(..., output_size)`, *optional*): Of a transcoder.
        attention_mask (`torch.Tensor` of the leading shape, *optional*): Zero at padding.
        init (`"mean"`, `"geometric_median"` or `"zero"`, *optional*, defaults to `"mean"`):
            What the centre is: the mean, the point with the least summed distance, or the origin.

    Returns:
        [`SAEModel`]: `sae` itself.

    Raises:
        [`ConfigError`]: if `init` is not one of these, or the batch is too small for the budgets of Feature Choice.
        [`DataError`]: if the batch is malformed.
    """
    if init not in INITS:
        raise ConfigError("init", "unknown name", got=repr(init), expected=", ".join(map(repr, INITS)))
    tokens = sae._tokens(activations, attention_mask)
    target = sae._target(targets, attention_mask, tokens)
    if target is None or not tokens.num_tokens:
        return sae
    if tokens.valid is not None:
        target, values = target[tokens.valid], tokens.values[tokens.valid]
        tokens = Tokens(values, None, (len(values),))
    sae._require_trainable(tokens)
    sae.normalize_decoder()
    sae.b_dec.copy_(_centre(target, init))
    within = _centre(tokens.values, init) - (sae.b_dec if sae.config.subtract_decoder_bias else 0)
    offset = -(within.to(sae.W_enc.dtype) @ sae.W_enc.T)
    for bias in sae._encoder_biases():
        bias.copy_(offset)
    if sae.config.is_transcoder:
        _align_decoder(sae, tokens, target)
    _fit_scale(sae, tokens, target)
    if isinstance(sae, ThresholdedSAEModel):
        sae.calibrate_threshold(tokens.values)
    return sae


def geometric_median(points: Tensor) -> Tensor:
    """Return the point with the least summed distance to points, `(points, width)` to `(width,)`, by Weiszfeld."""
    points = points.to(torch.promote_types(points.dtype, torch.float32))
    median = points.mean(0)
    for _ in range(_MEDIAN_ROUNDS):
        distance = torch.linalg.vector_norm(points - median, dim=1)
        weight = 1 / distance.clamp(min=torch.finfo(points.dtype).eps)
        moved = (weight[:, None] * points).sum(0) / weight.sum()
        step = torch.linalg.vector_norm(moved - median)
        median = moved
        if step <= 1e-6 * torch.linalg.vector_norm(median):
            break
    return median


def _centre(points: Tensor, init: Init) -> Tensor:
    if init == "zero":
        return points.new_zeros(points.shape[1])
    if init == "geometric_median":
        return geometric_median(points).to(points.dtype)
    return points.mean(0, dtype=torch.promote_types(points.dtype, torch.float32)).to(points.dtype)


def _align_decoder(sae: SAEModel, tokens: Tokens, target: Tensor) -> None:
    """Point each decoder row of a transcoder to the mean target of its latent, weighted by the latent."""
    latents = _dense(sae._encode_for_training(tokens))
    rows = latents.T @ (target - sae.b_dec)
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    # Latents that are nowhere active keep their random row.
    sae.W_dec.copy_(torch.where(lengths > 0, functional.normalize(rows, dim=1), sae.W_dec))


def _fit_scale(sae: SAEModel, tokens: Tokens, target: Tensor) -> None:
    wanted = target - sae.b_dec
    for _ in range(_ROUNDS):
        decoded = _decoded(sae, tokens) - sae.b_dec
        length = decoded.pow(2).sum()
        along = (decoded * wanted).sum()
        if not bool(length > 0) or not bool(along > 0):
            break
        factor = float(along / length)
        _scale_encoder(sae, factor)
        if abs(factor - 1) < _SETTLED:
            break
    # Thresholds are not scaled: if a step went too far, it is undone.
    for _ in range(_ROUNDS):
        error = fvu(target, _decoded(sae, tokens))
        if bool(error <= fvu(target, sae.b_dec.expand_as(target))):
            break
        _scale_encoder(sae, 0.5)


def _decoded(sae: SAEModel, tokens: Tokens) -> Tensor:
    return sae._decode(sae._encode_for_training(tokens).latents, tokens.values).to(sae.W_dec.dtype)


def _scale_encoder(sae: SAEModel, factor: float) -> None:
    for tensor in (sae.W_enc, *sae._encoder_biases()):
        tensor.mul_(factor)


def _dense(encoding: Encoding) -> Tensor:
    latents = encoding.latents
    return latents.dense() if isinstance(latents, SparseLatents) else latents
