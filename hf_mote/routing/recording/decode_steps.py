"""Decode steps that wait to be added up together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["DecodeStep", "RoutedRows", "stacked"]


class RoutedRows(NamedTuple):
    """What routers of one kind and width decided in one pass, `(routers, rows, top_k)`."""

    kind: str
    rows: list[int]
    indices: Tensor
    weights: Tensor


class DecodeStep(NamedTuple):
    """A decode step that waits: the tokens it read, which of them are real, which are asked for, and the routing."""

    last: Tensor | None
    real: Tensor | None
    only: Tensor | None
    parts: list[RoutedRows]

    @classmethod
    def of(cls, last: Tensor | None, real: Tensor | None, only: Tensor | None, parts: list[RoutedRows]) -> DecodeStep:
        """Return a step with copies of its marks, as callers may use one tensor for all steps."""
        copies = [None if marks is None else marks.clone() for marks in (last, real, only)]
        return cls(copies[0], copies[1], copies[2], parts)

    def resembles(self, other: DecodeStep) -> bool:
        """Whether both can be added up together, and the sums still grow in the order of the steps."""
        return (
            [part is None for part in self[:3]] == [part is None for part in other[:3]]
            and [part[:2] for part in self.parts] == [part[:2] for part in other.parts]
            and all(mine.weights.dtype == its.weights.dtype for mine, its in zip(self.parts, other.parts, strict=True))
        )


def stacked(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """Return tensors as one, or `None` if there are none."""
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(present) if present else None
