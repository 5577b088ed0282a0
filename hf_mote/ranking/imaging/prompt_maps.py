"""Maps of many prompts, of which a few columns at a time are computed in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["PromptMaps", "Step"]

Step: TypeAlias = Callable[[Tensor], Tensor]
"""A function of maps, float64 of shape `(rows, columns)`, for each column separately."""


@dataclass(frozen=True)
class PromptMaps:
    """Recorded maps, and the steps that are applied before they are compared.

    Args:
        recorded (`torch.Tensor` of shape `(runs, layers, experts)`): As they were recorded. Not modified.
        steps (`tuple[Callable]`, *optional*): Applied to the requested columns, in this order.
    """

    recorded: Tensor
    steps: tuple[Step, ...] = field(default=())

    def then(self, step: Step) -> PromptMaps:
        """Return these maps with one more step."""
        return PromptMaps(self.recorded, (*self.steps, step))

    @property
    def grid(self) -> tuple[int, int]:
        """Layers and experts."""
        layers, experts = self.recorded.shape[1:]
        return layers, experts

    def columns(self, start: int, stop: int) -> Tensor:
        """Return some columns of the flat `(layers, experts)` grid, `(units, stop - start)`, float64."""
        found = self.recorded.flatten(1)[:, start:stop].to(torch.float64)
        for step in self.steps:
            found = step(found)
        return found

    def whole(self) -> Tensor:
        """Return all of them, `(units, layers, experts)`, float64."""
        layers, experts = self.grid
        return self.columns(0, layers * experts).reshape(-1, layers, experts)
