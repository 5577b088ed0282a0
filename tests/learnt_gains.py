"""Learnt gains and biases without learning: random values, and what a model answers under them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hf_mote import TunableMoTE

TOKENS = torch.randint(5, 95, (3, 9), generator=torch.Generator().manual_seed(5))


def randomise(tunable: TunableMoTE, scale: float = 0.5, seed: int = 0) -> None:
    """Give all parameters random values, the same at every call."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for table in tunable.parameters():
            table.copy_(torch.randn(table.shape, generator=noise) * scale)


def logits(model: nn.Module, ids: Tensor = TOKENS, **inputs: Any) -> Tensor:
    """Return the logits of a model, without gradients."""
    with torch.no_grad():
        output: Tensor = model(input_ids=ids, **inputs).logits
    return output
