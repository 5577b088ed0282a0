"""Normalisation of an SAE's input, token by token, and its inverse for a reconstruction.

SAEs of other libraries were trained on normalised activations, and some libraries normalise inside of the SAE. With
`config.input_normalization` an SAE here does so too: it takes the model's own activations and returns such ones.

| `input_normalization` | encoded is | an autoencoder's reconstruction is |
| --- | --- | --- |
| `"center"` | x - mean(x) | x̂ + mean(x) |
| `"rms_norm"` | x / s, s = √(mean(x²) + eps) | x̂ s |
| `"standardize"` | (x - mean(x)) / (std(x) + eps) | x̂ (std(x) + eps) + mean(x) |
| `"layer_norm"` | (x - mean(x)) / (std(x) + eps) | x̂ std(x) + mean(x), the inverse up to eps only |

The standard deviation is that of a sample (n - 1). A transcoder does not reconstruct its input, so the inverse
is not applied. Normalising twice is normalising once, up to eps, so that activations that were already normalised
outside (by TransformerLens, say) may be given as well.

Source: `"layer_norm"` is that of OpenAI's and SAELens' SAEs, `"standardize"` that of OpenSAE, `"rms_norm"` with an eps
of 0 is SAELens' `constant_norm_rescale`, and with a model's own eps the input of Gemma Scope's transcoders.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["InputNormalization", "normalized", "restored", "restored_scale"]

InputNormalization = Literal["center", "rms_norm", "standardize", "layer_norm"]


def normalized(inputs: Tensor, kind: InputNormalization | None, eps: float) -> Tensor:
    """Return the normalised inputs, `(tokens, width)` and of the dtype of the inputs; computed in float32 or wider."""
    if kind is None:
        return inputs
    wide = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
    shift, scale = _shift_and_scale(wide, kind, eps)
    # A token without any spread, padding among them, has nothing to be scaled.
    return ((wide - shift) / torch.where(scale > 0, scale, 1)).to(inputs.dtype)


def restored(decoded: Tensor, inputs: Tensor, kind: InputNormalization | None, eps: float) -> Tensor:
    """Return a reconstruction in the scale of the inputs, in its own dtype."""
    if kind is None:
        return decoded
    shift, scale = _way_back(inputs, kind, eps)
    return (decoded * scale + shift).to(decoded.dtype)


def restored_scale(inputs: Tensor, kind: InputNormalization, eps: float) -> Tensor:
    """Return the factor on each token's reconstruction in the inverse, `(tokens, 1)`."""
    return _way_back(inputs, kind, eps)[1]


def _way_back(inputs: Tensor, kind: InputNormalization, eps: float) -> tuple[Tensor, Tensor]:
    wide = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
    # The one kind with another inverse: without eps.
    return _shift_and_scale(wide, kind, 0.0 if kind == "layer_norm" else eps)


def _shift_and_scale(inputs: Tensor, kind: InputNormalization, eps: float) -> tuple[Tensor, Tensor]:
    """Shift and divisor, `(tokens, 1)` both."""
    mean = inputs.mean(-1, keepdim=True)
    if kind == "rms_norm":
        return torch.zeros_like(mean), (inputs.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    if kind == "center":
        return mean, torch.ones_like(mean)
    return mean, (inputs - mean).std(-1, keepdim=True) + eps
