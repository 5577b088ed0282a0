"""Thresholds for inference: found exactly on a stream of affinities, and followed during training.

Outside training a token's latents depend on that token alone: a latent is active where its affinity is above a
threshold, one for all latents (Mutual Choice, BatchTopK, Matryoshka) or one for each (Feature Choice). Thresholds are
float32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["CLOSED", "ThresholdSearch", "follow"]

CLOSED = torch.finfo(torch.float32).max
"""The threshold of a latent that may not be active at all: a number that files and every dtype can hold."""


class ThresholdSearch:
    """Finds the thresholds above which as many entries of a stream lie as a budget says, exactly and in one pass.

    Only entries that can still matter are kept: for each group of latents (all of them, or each alone) as many of the
    largest as its budget for the longest possible stream, so memory is that budget and not the stream.

    Args:
        budgets (`Callable[[int], Tensor]`):
            From a number of tokens to the most entries of each group, int64 of shape `(groups,)`. Must not fall
            by more than one, as rounding may have it, when tokens are added.
        max_tokens (`int`):
            The stream has no more tokens than this.
    """

    def __init__(self, budgets: Callable[[int], Tensor], max_tokens: int) -> None:
        self._budgets = budgets
        # One more than the budget, as the threshold is the largest entry left out, and one more for rounding.
        self._kept = budgets(max_tokens) + 2
        self._groups = len(self._kept)
        self._tokens = 0
        self._values = torch.empty(0)
        self._group_of = torch.empty(0, dtype=torch.long)
        self._bound = torch.zeros(self._groups)

    def add(self, affinity: Tensor) -> None:
        """Take in the affinities of more tokens.

        Args:
            affinity (`torch.Tensor` of shape `(tokens, num_latents)`, any float dtype): Without padding.
        """
        self._tokens += len(affinity)
        affinity = affinity.detach().cpu()
        affinity = affinity.to(torch.promote_types(affinity.dtype, torch.float32))
        # Torch takes the wider dtype of two, so that all are of the affinities' from here on.
        self._bound = self._bound.to(affinity.dtype)
        bound = self._bound if self._groups > 1 else self._bound[0]
        rows, columns = (affinity > bound).nonzero(as_tuple=True)
        self._values = torch.cat([self._values, affinity[rows, columns]])
        self._group_of = torch.cat([self._group_of, columns if self._groups > 1 else torch.zeros_like(columns)])
        if len(self._values) > 2 * int(self._kept.sum()) + affinity.numel() // 8:
            self._prune()

    def finish(self) -> Tensor:
        """Return the thresholds, float32 or wider `(groups,)`: in each group, the largest entry that is left out.

        Where a group has no more positive entries than its budget, the threshold is 0.
        """
        starts = self._prune()
        budgets = self._budgets(self._tokens)
        sizes = torch.bincount(self._group_of, minlength=self._groups)
        place = (starts + budgets).clamp(max=max(len(self._values) - 1, 0))
        if not len(self._values):
            return torch.zeros(self._groups)
        return torch.where(sizes > budgets, self._values[place], 0.0)

    def _prune(self) -> Tensor:
        """Sort by group, largest first, and keep what can matter; returns where each group starts."""
        order = self._values.sort(descending=True, stable=True).indices
        order = order[self._group_of[order].sort(stable=True).indices]
        values, group_of = self._values[order], self._group_of[order]
        sizes = torch.bincount(group_of, minlength=self._groups)
        starts = sizes.cumsum(0) - sizes
        rank = torch.arange(len(values)) - starts[group_of]
        keep = rank < self._kept[group_of]
        self._values, self._group_of = values[keep], group_of[keep]
        sizes = torch.bincount(self._group_of, minlength=self._groups)
        starts = sizes.cumsum(0) - sizes
        full = sizes == self._kept
        if bool(full.any()):
            # What does not exceed the smallest kept entry of a full group cannot be among its largest.
            self._bound[full] = self._values[(starts + sizes - 1)[full]]
        return starts


def follow(average: Tensor, seen: Tensor, observed: Tensor, decay: float) -> None:
    """Move an average of thresholds, in place: the plain mean at first, exponential from 1 / (1 - decay) steps on.

    Args:
        average (`torch.Tensor`, float32): NaN before the first step. Changed in place.
        seen (`torch.Tensor` of shape `()`, int64): Steps so far. Changed in place.
        observed (`torch.Tensor`, like `average`):
            The thresholds of this step. Where one is infinite, as nothing could be active, the average stays; it is
            [`CLOSED`] where nothing ever could.
        decay (`float`): Share of the old average that stays, 0 to 1.
    """
    seen += 1
    observed = observed.to(average.dtype)
    rate = (1.0 / seen.to(average.dtype)).clamp(min=1.0 - decay)
    unset = average.isnan() | (average >= CLOSED)
    moved = torch.where(unset | (rate >= 1), observed, average + rate * (observed - average))
    average.copy_(torch.where(observed.isinf(), average.nan_to_num(nan=CLOSED), moved))
