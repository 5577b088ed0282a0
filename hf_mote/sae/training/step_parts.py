"""The micro-batches of an optimizer step: divisors of their losses, joining them, and their gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hf_mote.sae.inputs import Tokens
from hf_mote.sae.modeling import SAEModel
from hf_mote.sae.step import TrainingStep, scale_of, summed
from hf_mote.sae.training.group import record_for

__all__ = ["drop_parallel", "joined", "step_of"]

# Dictionary rows that are projected together on a CPU, and numbers elsewhere.
_ROWS, _ENTRIES = 512, 2**24


def step_of(
    sae: SAEModel, name: str, batches: Sequence[Any], *, shared: bool, choose_globally: bool, sparsity: float
) -> TrainingStep:
    """Return the step of micro-batches, for one SAE.

    Args:
        sae ([`SAEModel`]): The SAE; it is in training mode afterwards.
        name (`str`): What an error calls it.
        batches (`Sequence`): The micro-batches of this process.
        shared (`bool`): Whether other processes have parts of the step, too.
        choose_globally (`bool`): Whether choices across tokens look at those of all processes.
        sparsity (`float`): What sparsity penalties are multiplied by.
    """
    tokens: list[Tokens] = []
    targets = []
    for batch in batches:
        record = record_for(sae, batch, name)
        mask = record.get("attention_mask")
        part = sae._tokens(record["activations"], mask)
        sae.train()
        target = sae._target(record.get("targets"), mask, part)
        assert target is not None
        tokens.append(part)
        targets.append((target, part.valid))
    total = None
    if len(batches) > 1 or shared:
        with torch.no_grad():
            totals = [sae._total_of(part) for part in tokens]
        known = [value for value in totals if value is not None]
        total = torch.stack(known).sum(0) if known else None
    count = torch.tensor(sum(part.num_tokens for part in tokens), device=tokens[0].values.device)
    if shared:
        count = summed(count)
        total = None if total is None else summed(total)
    return TrainingStep(
        num_tokens=int(count),
        scale=scale_of(targets, shared=shared),
        num_parts=len(batches),
        shared=shared,
        choose_globally=choose_globally,
        total=total,
        sparsity=sparsity,
    )


def joined(batches: Sequence[Any]) -> Any:
    """Return micro-batches as one, tokens one after the other."""
    if "activations" not in batches[0]:
        return {key: joined([batch[key] for batch in batches]) for key in batches[0]}
    found = {}
    masked = any(batch.get("attention_mask") is not None for batch in batches)
    for key in batches[0].keys() - {"attention_mask"}:
        found[key] = torch.cat([batch[key].reshape(-1, batch[key].shape[-1]) for batch in batches])
    if masked:
        masks = [batch.get("attention_mask") for batch in batches]
        found["attention_mask"] = torch.cat(
            [
                batch["activations"].new_ones(batch["activations"].shape[:-1]).reshape(-1)
                if mask is None
                else mask.reshape(-1).to(batch["activations"].dtype)
                for mask, batch in zip(masks, batches, strict=True)
            ]
        )
    return found


@torch.no_grad()
def drop_parallel(sae: SAEModel) -> None:
    """Remove the part of the gradient that would change the lengths of unit rows."""
    gradient, rows = sae.W_dec.grad, sae.W_dec
    if gradient is not None and sae.config.normalize_decoder:
        # In parts, since a dictionary is large and the products of its numbers are a tensor as large.
        lines = _ROWS if gradient.device.type == "cpu" else max(_ENTRIES // gradient.shape[1], 1)
        for part, directions in zip(gradient.split(lines), rows.split(lines), strict=True):
            part.addcmul_(directions, torch.linalg.vecdot(part, directions)[:, None], value=-1)
