"""Predictions of a language model with other activations at a hookpoint: logits, cross entropy, KL divergence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_mote.hooks import attach
from hf_mote.sae.hookpoints import AtHookpoint, Hookpoint, attachments_at

__all__ = ["Replace", "cross_entropies", "divergences", "frozen", "in_evaluation_mode", "logits_with"]


class Replace(AtHookpoint):
    """Replaces activations where a mask is true; elsewhere the model's own stay, without their gradient.

    Args:
        new (`torch.Tensor`): As many rows of the activations' width as there are tokens; gradients flow to it.
        where (`torch.Tensor`, bool): One for each token.
    """

    def __init__(self, new: Tensor, where: Tensor) -> None:
        self.new, self.where = new, where

    def apply(self, activations: Tensor) -> Tensor:
        """Return the activations with the new ones in their place."""
        new = self.new.to(activations.device, activations.dtype).reshape(activations.shape)
        where = self.where.to(activations.device).reshape(*activations.shape[:-1], 1)
        return torch.where(where, new, activations.detach())


def logits_with(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, places: list[tuple[Hookpoint, AtHookpoint]]
) -> Tensor:
    """Return the logits of a pass with participants at hookpoints, float32 `(batch, length, vocabulary)`."""
    device = next(model.parameters()).device
    with attach(lambda: attachments_at(places)):
        output = model(input_ids=input_ids.to(device), attention_mask=attention_mask.to(device), use_cache=False)
    logits: Tensor = output.logits
    return logits.float()


def cross_entropies(logits: Tensor, input_ids: Tensor) -> Tensor:
    """Return the cross entropy of each prediction in nats, `(batch, length - 1)`."""
    wanted = input_ids[:, 1:].to(logits.device)
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), wanted, reduction="none")


def divergences(clean: Tensor, other: Tensor) -> Tensor:
    """Return the KL divergence of each prediction from the clean one in nats, `(batch, length - 1)`."""
    p, q = clean[:, :-1].log_softmax(-1), other[:, :-1].log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Within the block, no parameter of a module requires a gradient, so that nothing is kept for it."""
    asking = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


@contextmanager
def in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Within the block, a model and its parts are in evaluation mode."""
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in was_training:
            module.training = True
