"""`TrainingStep`: the optimizer step that a training batch is a part of.

A step may come in several micro-batches and be shared by several processes. The divisor of a loss, the tokens of
a choice across tokens and the counters belong to the step and not to one part of it: so neither the size of the parts
nor the number of processes changes the gradient or the counters.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, distributed

from hf_mote.sae.kernels.sparse import SparseLatents

__all__ = ["TrainingStep", "scale_of"]


@dataclass
class TrainingStep:
    """The values that the parts of one optimizer step share.

    Args:
        num_tokens (`int`): Tokens of the whole step, padding left out.
        scale (`torch.Tensor` of shape `()`): What squared errors are divided by for FVU; see [`scale_of`].
        num_parts (`int`, *optional*, defaults to 1): Micro-batches in this process.
        shared (`bool`, *optional*, defaults to `False`): Whether other processes have parts of it, too.
        choose_globally (`bool`, *optional*, defaults to `True`):
            Whether choices across tokens look at the tokens of all processes, or at those of each.
        total (`torch.Tensor` of shape `()`, *optional*):
            Sum of `SAEModel._total_of` over the whole step.
        sparsity (`float`, *optional*, defaults to 1.0): What sparsity penalties are multiplied by.
    """

    num_tokens: int
    scale: Tensor
    num_parts: int = 1
    shared: bool = False
    choose_globally: bool = True
    total: Tensor | None = None
    sparsity: float = 1.0
    _parts_seen: int = field(default=0, init=False)
    _fired: Tensor | None = field(default=None, init=False)

    @property
    def num_processes(self) -> int:
        """Processes that share the step."""
        return distributed.get_world_size() if self.shared else 1

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over processes; no gradient flows through it."""
        return summed(values) if self.shared else values.detach()

    def smallest(self, values: Tensor) -> Tensor:
        """Return the least over processes, element by element."""
        return _reduced(values, distributed.ReduceOp.MIN) if self.shared else values

    def scale_of(self, target: Tensor, valid: Tensor | None) -> Tensor:
        """Return [`scale_of`] for this process's part of the targets, `(tokens, width)`."""
        return scale_of([(target, valid)], shared=self.shared)

    def fired(self, mask: Tensor) -> Tensor | None:
        """Add the latents that fired in a part, and return those of the whole step after its last part.

        Args:
            mask (`torch.Tensor` of shape `(num_latents,)`, bool): Latents that are active on a token of the part.
        """
        self._fired = mask if self._fired is None else self._fired | mask
        self._parts_seen += 1
        if self._parts_seen < self.num_parts:
            return None
        return self.sum(self._fired.long()) > 0

    @torch.no_grad()
    def among_largest(self, latents: SparseLatents, affinity: Tensor, budgets: Tensor) -> Tensor:
        """Return which entries are among the largest of all processes, bool `(active,)`.

        Of equal entries the first in the order of processes, tokens and latents count, as in one batch.

        Args:
            latents ([`SparseLatents`]): What this process would choose if the budget were its own alone.
            affinity (`torch.Tensor` of shape `(active,)`): What its entries are compared by.
            budgets (`torch.Tensor`, int64): Entries that the step may have: of shape `(1,)` in all, of shape
                `(num_latents,)` for each latent.
        """
        group = latents.pattern.columns if len(budgets) > 1 else torch.zeros_like(latents.pattern.columns)
        parts = _gathered(affinity.double()), _gathered(group)
        values, groups = torch.cat(parts[0]), torch.cat(parts[1])
        order = values.sort(descending=True, stable=True).indices
        order = order[groups[order].sort(stable=True).indices]
        sizes = torch.bincount(groups, minlength=len(budgets))
        starts = sizes.cumsum(0) - sizes
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device) - starts[groups[order]]
        start = sum(len(part) for part in parts[0][: distributed.get_rank()])
        mine = slice(start, start + len(affinity))
        return rank[mine] < budgets.to(order.device)[groups[mine]]


@torch.no_grad()
def scale_of(parts: Iterable[tuple[Tensor, Tensor | None]], *, shared: bool = False) -> Tensor:
    """Return the divisor of a step's squared errors for FVU, a float32 (float64) scalar.

    It is the summed squared distance of all tokens from their common mean; if that is 0 (one token, or equal ones),
    their summed squared length; 1 if that is 0, too.

    Args:
        parts (`Iterable[tuple[Tensor, Tensor | None]]`):
            Targets `(tokens, width)` of each part, and which tokens are valid, bool `(tokens,)`, if some are padding.
        shared (`bool`, *optional*, defaults to `False`): Whether other processes have parts, too.
    """
    kept = [target if valid is None else target[valid] for target, valid in parts]
    wide = [part if part.dtype.itemsize >= 4 else part.float() for part in kept]

    def total(values: list[Tensor]) -> Tensor:
        found = torch.stack(values).sum(0)
        return summed(found) if shared else found

    first = wide[0]
    count = total([first.new_tensor(float(len(part))) for part in wide])
    mean = total([part.sum(0) for part in wide]) / count.clamp(min=1)
    variance = total([(part - mean).pow(2).sum() for part in wide])
    length = total([part.pow(2).sum() for part in wide])
    scale = variance.where(variance > 1e-12 * length, length)
    return scale.where(scale > 0, scale.new_ones(()))


def summed(values: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes; no gradient flows through it."""
    return _reduced(values, distributed.ReduceOp.SUM)


def _reduced(values: Tensor, operation: distributed.ReduceOp.RedOpType) -> Tensor:
    found = values.detach().clone()
    distributed.all_reduce(found, operation)
    return found


def _gathered(values: Tensor) -> list[Tensor]:
    """The one-dimensional tensors of all processes, of any lengths, in the order of processes."""
    world = distributed.get_world_size()
    lengths = [torch.zeros(1, dtype=torch.long, device=values.device) for _ in range(world)]
    distributed.all_gather(lengths, torch.tensor([len(values)], device=values.device))
    longest = max(int(length) for length in lengths)
    padded = values.new_zeros(longest)
    padded[: len(values)] = values
    found = [torch.empty_like(padded) for _ in range(world)]
    distributed.all_gather(found, padded)
    return [part[: int(length)] for part, length in zip(found, lengths, strict=True)]
