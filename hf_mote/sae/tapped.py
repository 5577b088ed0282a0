"""Activations at hookpoints in one forward, which runs no further than needed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor, nn

from hf_mote.errors import DataError
from hf_mote.hooks import attach
from hf_mote.sae.hookpoints import AtHookpoint, Hookpoint, attachments_at
from hf_mote.sae.spliced import in_evaluation_mode

__all__ = ["activations_of"]


class _Reached(Exception):  # noqa: N818 (no error)
    """The last hookpoint was reached; later modules are not needed."""


class _Tap(AtHookpoint):
    """Keeps the activations at a hookpoint."""

    def __init__(self, name: str, found: dict[str, Tensor], on_all: Callable[[], None]) -> None:
        self.name, self.found, self.on_all = name, found, on_all

    def apply(self, activations: Tensor) -> None:
        self.found[self.name] = activations.detach()
        self.on_all()


@torch.no_grad()
def activations_of(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, points: list[Hookpoint], *, whole: bool = False
) -> dict[str, Tensor]:
    """Return the activations of a forward, `(batch, length, width)` by the name of each hookpoint.

    The model runs in evaluation mode, and no further than the last hookpoint unless `whole`, or another
    attachment needs the end.

    Args:
        model (`nn.Module`): The model.
        input_ids (`torch.Tensor` of shape `(batch, length)`, int64): Tokens.
        attention_mask (`torch.Tensor`, like `input_ids`): 0 at padding.
        points (`list[Hookpoint]`): The hookpoints.
        whole (`bool`, *optional*, defaults to `False`): Whether to run all of the model.

    Raises:
        [`DataError`]: if a hookpoint did not run, or has not one row for each token.
    """
    found: dict[str, Tensor] = {}
    others = whole or any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())

    def stop() -> None:
        if not others and len(found) == len(points):
            raise _Reached

    device = next(model.parameters()).device
    taps = [(point, _Tap(point.name, found, stop)) for point in points]
    with in_evaluation_mode(model), attach(lambda: attachments_at(taps)), suppress(_Reached):
        model(input_ids=input_ids.to(device), attention_mask=attention_mask.to(device), use_cache=False)
    shaped = {}
    batch, length = input_ids.shape
    for point in points:
        values = found.get(point.name)
        if values is None:
            raise DataError(point.name, "did not run in the model's forward", fix="Take a module that it calls.")
        if values.shape[:-1].numel() != batch * length:
            raise DataError(
                point.name,
                "has not one row for each token",
                got=tuple(values.shape),
                expected=f"({batch}, {length}, width) or ({batch * length}, width)",
            )
        shaped[point.name] = values.reshape(batch, length, -1)
    return shaped
