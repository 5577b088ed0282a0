"""End-to-end losses of an SAE: cross entropy of the spliced model, and KL divergence from the plain one.

Besides the error of the activations an SAE may be trained on the effect of its reconstructions in later layers (Braun
et al., arXiv 2405.12241). The model runs on a few sequences at a time, and only the gradient with regard to
reconstructions is kept of it: memory is that of one such forward and backward, for any batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from hf_mote.sae.spliced import Replace, cross_entropies, divergences, frozen, in_evaluation_mode, logits_with
from hf_mote.sae.training.activations import ActivationStream, scales_for

__all__ = ["EndToEnd", "EndToEndLoss"]


class EndToEndLoss(NamedTuple):
    """A part of a step's losses, scalars: the term of the loss, and the reported values."""

    loss: Tensor
    ce: Tensor | None
    kl: Tensor | None


class EndToEnd:
    """The end-to-end losses of SAEs on a stream of whole sequences.

    Args:
        stream ([`ActivationStream`]): Made with `whole_sequences=True`.
        ce_coefficient (`float`): Of the spliced model's mean cross entropy in nats; 0 leaves it out.
        kl_coefficient (`float`): Of the mean KL divergence of the spliced model from the plain one; 0 leaves it out.
    """

    def __init__(self, stream: ActivationStream, ce_coefficient: float, kl_coefficient: float) -> None:
        self.stream = stream
        self.ce_coefficient, self.kl_coefficient = ce_coefficient, kl_coefficient

    def num_predictions(self, record: Mapping[str, Tensor]) -> int:
        """Return how many predictions of a batch count: those after a token that the SAE reconstructs."""
        return int(_scored(record).sum())

    def __call__(self, reconstruction: Tensor, record: Mapping[str, Tensor], num_predictions: int) -> EndToEndLoss:
        """Return the losses of reconstructions, sums over predictions divided by those of the whole step.

        Args:
            reconstruction (`torch.Tensor` of shape `(..., output_size)`):
                Of all tokens of the batch, in the units of the stream; gradients flow to it.
            record (`Mapping[str, torch.Tensor]`): The batch, as the stream yields it.
            num_predictions (`int`): Predictions of the step, of which this batch may be a part.
        """
        model, stream = self.stream.model, self.stream
        ids, mask, scored = record["input_ids"], record["text_mask"], _scored(record)
        kept = record["attention_mask"].bool().reshape(ids.shape)
        flat = reconstruction.detach().reshape(*ids.shape, -1)
        scale = scales_for(stream, None)[1]
        if isinstance(scale, Tensor):
            scale = scale.to(flat.device, flat.dtype)
        gradients, ce, kl = [], flat.new_zeros(()), flat.new_zeros(())
        size = stream.sequences_per_forward
        device_type = next(model.parameters()).device.type
        with (
            frozen(model),
            in_evaluation_mode(model),
            torch.autocast(device_type, enabled=False),
            torch.enable_grad(),
        ):
            for start in range(0, len(ids), size):
                rows = slice(start, start + size)
                part = flat[rows].clone().requires_grad_()
                places = [(stream.writes, Replace(part / scale, kept[rows]))]
                logits = logits_with(model, ids[rows], mask[rows], list(places))
                here = scored[rows].to(logits.device)
                loss = logits.new_zeros(())
                if self.ce_coefficient:
                    found = cross_entropies(logits, ids[rows])[here].sum() / max(num_predictions, 1)
                    loss = loss + self.ce_coefficient * found
                    ce += found.detach().to(ce)
                if self.kl_coefficient:
                    with torch.no_grad():
                        clean = logits_with(model, ids[rows], mask[rows], [])
                    found = divergences(clean, logits)[here].sum() / max(num_predictions, 1)
                    loss = loss + self.kl_coefficient * found
                    kl += found.detach().to(kl)
                gradients.append(torch.autograd.grad(loss, part)[0])
        gradient = torch.cat(gradients).reshape_as(reconstruction)
        value = self.ce_coefficient * ce + self.kl_coefficient * kl
        # The value, and the gradient that was found; the model's own graph is gone by now.
        moving = ((reconstruction - reconstruction.detach()) * gradient).sum()
        return EndToEndLoss(value + moving, ce if self.ce_coefficient else None, kl if self.kl_coefficient else None)


def _scored(record: Mapping[str, Tensor]) -> Tensor:
    """Which predictions count, bool `(sequences, length - 1)`."""
    ids = record["input_ids"]
    kept = record["attention_mask"].bool().reshape(ids.shape)
    return kept[:, :-1] & record["text_mask"][:, 1:].bool()
