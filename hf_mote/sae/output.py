"""`SAEOutput`: the output of an SAE's forward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.utils.generic import ModelOutput

from hf_mote.sae.kernels.sparse import SparseLatents

__all__ = ["Encoding", "Penalty", "SAEOutput"]


@dataclass
class SAEOutput(ModelOutput):
    """The output of an SAE's forward; fields that were not requested are `None`.

    Attributes:
        loss (`torch.Tensor` of shape `()`, *optional*):
            Reconstruction loss; in training plus the architecture's penalties, each times its coefficient.
        reconstruction (`torch.Tensor` of shape `(..., output_size)`):
            In the dtype of the parameters. Where the mask says padding, no latent is active.
        latents (`torch.Tensor` of shape `(..., num_latents)`, *optional*):
            Only with `output_latents=True`.
        fvu (`torch.Tensor` of shape `()`, *optional*):
            Fraction of variance unexplained: squared error over squared distance from the batch's mean.
        mse (`torch.Tensor` of shape `()`, *optional*):
            Squared error, mean over tokens and dimensions.
        l0 (`torch.Tensor` of shape `()`, *optional*):
            Mean number of active latents per token.
        sparsity_loss (`torch.Tensor` of shape `()`, *optional*):
            The architecture's sparsity penalty before its coefficient; in training.
        aux_loss (`torch.Tensor` of shape `()`, *optional*):
            The auxiliary loss before its coefficient; in training, where a latent needs it.
        dead_fraction (`torch.Tensor` of shape `()`, *optional*):
            Share of latents not active in `config.dead_after_tokens` training tokens.
    """

    loss: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    latents: torch.Tensor | None = None
    fvu: torch.Tensor | None = None
    mse: torch.Tensor | None = None
    l0: torch.Tensor | None = None
    sparsity_loss: torch.Tensor | None = None
    aux_loss: torch.Tensor | None = None
    dead_fraction: torch.Tensor | None = None


class Encoding(NamedTuple):
    """Latents of a batch, and further values for the architecture's losses.

    Attributes:
        latents (`torch.Tensor` of shape `(tokens, num_latents)` or [`SparseLatents`]): Not negative, none at padding.
        extra (`Any`, *optional*): The architecture's own.
    """

    latents: Tensor | SparseLatents
    extra: Any = None


class Penalty(NamedTuple):
    """A term of the loss: its value, a scalar, and its coefficient."""

    value: Tensor
    coefficient: float
