"""The interface of a rule that chooses latents.

A rule is shown pre-activations block by block, so that no more than one block is ever held. The choices are defined
by plain code in `tests/sae/allocation_reference.py`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_mote.errors import ConfigError, whole
from hf_mote.sae.kernels.largest import GROUP

__all__ = ["Block", "Entries", "Layout", "Search", "Selector", "check_count", "check_latents", "padded"]

Layout = Literal["tokens", "latents"]


class Entries(NamedTuple):
    """Chosen entries in any order: pre-activations `(active,)`, tokens and latents, int64 `(active,)` each."""

    values: Tensor
    tokens: Tensor
    latents: Tensor

    @classmethod
    def join(cls, parts: list[Entries]) -> Entries:
        """Return the entries of all `parts`, of which there is at least one."""
        return cls(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


class Block(NamedTuple):
    """Pre-activations of some tokens and latents.

    Args:
        values (`torch.Tensor` of shape `(lines, width)`):
            Lines are tokens and columns latents (layout "tokens"), or the other way round. Contiguous; `width` is the
            number of columns padded by zeros to a multiple of `GROUP`. The next block is written over it.
        lines (`torch.Tensor` of shape `(lines,)`, int64): Index of each line.
        columns (`torch.Tensor` of shape `(columns,)`, int64): Index of each column, ascending.
    """

    values: Tensor
    lines: Tensor
    columns: Tensor

    def entries(self, lines: Tensor, columns: Tensor) -> Entries:
        """Return the entries at these places, int64 `(entries,)` both, of a block whose lines are tokens.

        Of a block whose lines are latents, the second and the third tensor change places.
        """
        flat = lines * self.values.shape[1] + columns
        values = self.values.view(-1).index_select(0, flat)
        return Entries(values, self.lines.index_select(0, lines), self.columns.index_select(0, columns))

    def among(self, allowed: Tensor | None) -> Block:
        """Return the block with those columns only whose index `allowed`, a bool mask, has; itself if it has all."""
        if allowed is None or bool((kept := allowed[self.columns]).all()):
            return self
        positions = kept.nonzero().squeeze(1)
        return Block(padded(self.values.index_select(1, positions)), self.lines, self.columns[positions])

    def scaled(self, factors: Tensor | None, *, by: Literal["lines", "columns"]) -> Tensor:
        """Return the values times the factor of their line's or column's index."""
        if factors is None:
            return self.values
        if by == "lines":
            return self.values * factors[self.lines][:, None]
        return self.values * F.pad(factors[self.columns], (0, self.values.shape[1] - len(self.columns)))


class Search(Protocol):
    """One search over all blocks of a batch."""

    def add(self, block: Block) -> None:
        """Search the next block."""
        ...

    def finish(self) -> Entries | None:
        """Return what is chosen, or `None` if all blocks must be shown once more."""
        ...


class Selector(Protocol):
    """A rule."""

    @property
    def layout(self) -> Layout:
        """The layout of its blocks."""
        ...

    @property
    def among(self) -> Tensor | None:
        """The latents it chooses from, bool `(num_latents,)`; `None` for all."""
        ...

    def order(self) -> Tensor | None:
        """Return the order in which latents are to be shown, int64 `(num_latents,)`, if it matters."""
        ...

    def search(self, num_tokens: int, num_latents: int) -> Search:
        """Return a new search over that many tokens."""
        ...


def check_count(where: str, count: int) -> None:
    """Raise [`ConfigError`] if `count`, which an error calls `where`, is not a number of entries."""
    whole(where, count)


def check_latents(where: str, num_latents: int, **tensors: Tensor | None) -> None:
    """Raise [`ConfigError`] if one of `tensors` does not have one number for each latent."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.shape != (num_latents,):
            raise ConfigError(f"{where}: {name}", "wrong shape", got=tuple(tensor.shape), expected=(num_latents,))


def padded(values: Tensor) -> Tensor:
    """Return `(lines, columns)`, contiguous, with columns of zeros up to a multiple of `GROUP`."""
    return F.pad(values, (0, -values.shape[1] % GROUP)).contiguous()
