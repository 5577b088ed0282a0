"""`Pattern`: which latents are active on which tokens, as coordinates."""

from __future__ import annotations

from typing import NamedTuple

import torch

__all__ = ["Pattern"]


class Pattern(NamedTuple):
    """The active (token, latent) pairs of a batch, ascending by token and then by latent; no pair occurs twice.

    Args:
        rows (`torch.Tensor` of shape `(active,)`, int64):
            Token of each pair, ascending.
        columns (`torch.Tensor` of shape `(active,)`, int64):
            Latent of each pair, ascending within a token.
        num_rows (`int`): Tokens in the batch.
        num_columns (`int`): Latents of the autoencoder.
    """

    rows: torch.Tensor
    columns: torch.Tensor
    num_rows: int
    num_columns: int

    def counts(self) -> torch.Tensor:
        """Return the active latents of each token, int64 `(tokens,)`: its L0."""
        return torch.bincount(self.rows, minlength=self.num_rows)

    def latent_counts(self) -> torch.Tensor:
        """Return the tokens each latent is active on, int64 `(num_latents,)`."""
        return torch.bincount(self.columns, minlength=self.num_columns)

    @classmethod
    def from_mask(cls, mask: torch.Tensor) -> Pattern:
        """Return the pattern of a dense bool mask `(tokens, num_latents)`."""
        rows, columns = mask.nonzero(as_tuple=True)
        return cls(rows, columns, *mask.shape)
