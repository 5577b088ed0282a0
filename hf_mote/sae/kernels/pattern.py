"""`Pattern`: which latents are active on which tokens, as coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

__all__ = ["ByColumn", "Pattern"]


class ByColumn(NamedTuple):
    """The pairs of a [`Pattern`] ascending by latent and then by token, int64 `(active,)` each.

    Args:
        order (`torch.Tensor`): Place of each pair in the pattern.
        rows (`torch.Tensor`): Token of each pair.
        columns (`torch.Tensor`): Latent of each pair, ascending.
    """

    order: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor

    @classmethod
    def of(cls, rows: torch.Tensor, columns: torch.Tensor) -> ByColumn:
        """Sort pairs by latent; those of one latent stay in their order."""
        order = columns.argsort(stable=True)
        return cls(order, rows.index_select(0, order), columns.index_select(0, order))


@dataclass(frozen=True, eq=False)
class Pattern:
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

    @cached_property
    def by_column(self) -> ByColumn:
        """The pairs by latent; sorted once, for the backwards of encoder and decoder."""
        return ByColumn.of(self.rows, self.columns)

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
