"""Refuses models that draw random numbers, where two runs of one text are compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_mote.errors import UnsupportedError

__all__ = ["without_randomness"]


@contextmanager
def without_randomness(where: str, model: PreTrainedModel) -> Iterator[None]:
    """Refuse a model that draws torch's random numbers inside the block; their state is restored then.

    Args:
        where (`str`): The place, for the error.
        model (`PreTrainedModel`): The model that runs inside.

    Raises:
        [`UnsupportedError`]: on leaving, if random numbers were drawn on the CPU or the model's device.
    """
    device = model.device
    accelerator = getattr(torch, device.type) if device.type in ("cuda", "xpu") else None
    before = _states(accelerator, device)
    yield
    if all(map(torch.equal, before, _states(accelerator, device))):
        return
    torch.set_rng_state(before[0])
    if accelerator is not None:
        accelerator.set_rng_state(before[1], device)
    raise UnsupportedError(
        where,
        "the model draws random numbers as it runs, so that two runs of one text differ by more than what is measured",
        got="a model in training mode" if model.training else "a model in evaluation mode",
        fix="Call model.eval(), or set its dropout and router noise to 0." if model.training else None,
    )


def _states(accelerator: Any, device: torch.device) -> list[Tensor]:
    cpu = torch.get_rng_state()
    return [cpu] if accelerator is None else [cpu, accelerator.get_rng_state(device)]
