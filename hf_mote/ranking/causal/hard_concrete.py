"""Gates that are learnt by gradient but can be fully open or closed: the hard concrete distribution.

A gate closes its expert by a number from 0 (open) to 1 (closed). Both ends have a probability of their own, so that
the expected number of gates that close at all is a differentiable penalty.

Source: Louizos, Welling and Kingma (2018), "Learning Sparse Neural Networks through L0 Regularization" (arXiv
1712.01312), eqs. 10-12, with their stretch and temperature; what differs here: 1 closes a gate, so that the penalty
counts closed gates, of which there should be few.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["ClosingGates"]

LOW, HIGH = -0.1, 1.1  # how far the unit interval is stretched before it is clipped
TEMPERATURE = 2 / 3
MOST = 5.0  # largest logit in either direction, so that an almost certain gate can still change
_SHIFT = TEMPERATURE * math.log(-LOW / HIGH)


class ClosingGates:
    """Gates of a grid of experts, and how likely each is to close.

    Args:
        shape (`tuple[int, int]`): (layers, experts).
        closed (`float`): Initial probability of each gate to close, between 0 and 1.
        seed (`int`): Of the samples.

    Attributes:
        seed (`int`): Of the samples.
        logits (`torch.Tensor` of shape `(layers, experts)`, float32, CPU): The learnt parameters; the median gate is
            more closed than open where it is above 0.
    """

    def __init__(self, shape: tuple[int, int], *, closed: float, seed: int) -> None:
        self.seed = seed
        first = math.log(closed / (1 - closed)) + _SHIFT
        self.logits = torch.full(shape, first).requires_grad_()
        self._random = torch.Generator().manual_seed(seed)

    def sample(self, num: int) -> Tensor:
        """Return how far each gate closes, `(num, layers, experts)`, float32, 0 to 1, differentiable by `logits`."""
        drawn = torch.rand((num, *self.logits.shape), generator=self._random).clamp(1e-6, 1 - 1e-6)
        soft = torch.sigmoid((drawn.logit() + self.logits) / TEMPERATURE)
        return (soft * (HIGH - LOW) + LOW).clamp(0, 1)

    def closing(self) -> Tensor:
        """Return the probability of each gate to close at all, `(layers, experts)`, differentiable: the L0 penalty."""
        return torch.sigmoid(self.logits - _SHIFT)

    def state(self) -> dict[str, Tensor]:
        """Return what the next steps depend on: the logits, and where the samples are."""
        return {"logits": self.logits.detach().clone(), "random": self._random.get_state()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore a state.

        Args:
            state (`Mapping[str, torch.Tensor]`): What `state` returned, of gates of the same shape.
        """
        with torch.no_grad():
            self.logits.copy_(state["logits"])
        self._random.set_state(state["random"])

    def bound(self) -> None:
        """Clip the logits so that a gate still has a gradient at times."""
        with torch.no_grad():
            self.logits.clamp_(-MOST, MOST)
