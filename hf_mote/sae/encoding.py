"""What a forward pass hands from its encoder to its losses."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from hf_mote.sae.sparse import SparseLatents

__all__ = ["Encoding", "Penalty"]


class Encoding(NamedTuple):
    """Latents of a batch, and what the architecture's losses need besides.

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
