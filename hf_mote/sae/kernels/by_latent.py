"""`SelectByLatent`: each latent's largest positive tokens within its budget, which is Feature Choice."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from hf_mote.errors import ConfigError
from hf_mote.sae.kernels.largest import positive_in_rows
from hf_mote.sae.kernels.selectors import Block, Entries, Layout, check_latents

__all__ = ["SelectByLatent"]


@dataclass(frozen=True)
class SelectByLatent:
    """The `budgets[latent]` largest positive tokens of each latent; of equal ones the first.

    Latents are shown by budget, so that those of a block differ little and each block is searched for about as many
    tokens as it needs.

    Args:
        budgets (`torch.Tensor` of shape `(num_latents,)`, int64):
            Most tokens of each latent, not negative; more than there are means all.
        scale (`torch.Tensor` of shape `(num_latents,)`, *optional*):
            Not negative; pre-activations are compared multiplied by this.

    Raises:
        [`ConfigError`]: if a budget is negative or no whole number.
    """

    budgets: Tensor
    scale: Tensor | None = None
    among: None = field(default=None, init=False)
    layout: Layout = field(default="latents", init=False)

    def __post_init__(self) -> None:
        if self.budgets.dtype != torch.long or (self.budgets.numel() and bool(self.budgets.min() < 0)):
            raise ConfigError("SelectByLatent: budgets", "must be int64, and none negative", got=self.budgets)

    def order(self) -> Tensor | None:
        """Return the latents by budget, the largest first."""
        return self.budgets.argsort(descending=True, stable=True)

    def search(self, num_tokens: int, num_latents: int) -> _Search:
        """Return a new search; raises [`ConfigError`] if a tensor does not fit the number of latents."""
        check_latents("SelectByLatent", num_latents, budgets=self.budgets, scale=self.scale)
        return _Search(self, num_tokens)


class _Search:
    def __init__(self, rule: SelectByLatent, num_tokens: int) -> None:
        self.rule = rule
        self.budgets = rule.budgets.clamp(max=num_tokens)
        self.found: list[Entries] = []

    def add(self, block: Block) -> None:
        budgets = self.budgets[block.lines]
        affinity = block.scaled(self.rule.scale, by="lines")
        for start, stop, most in _buckets(budgets.tolist()):
            # Columns of padding are not positive.
            lines, columns, ranks = positive_in_rows(affinity[start:stop], most)
            lines = lines + start
            allowed = ranks < budgets[lines]
            lines, columns = lines[allowed], columns[allowed]
            values, latents, tokens = block.entries(lines, columns)
            self.found.append(Entries(values, tokens, latents))

    def finish(self) -> Entries | None:
        return Entries.join(self.found)


def _buckets(budgets: list[int]) -> list[tuple[int, int, int]]:
    """Return (start, stop, largest budget) of runs in which no budget is less than half of the largest."""
    runs: list[tuple[int, int, int]] = []
    for index, budget in enumerate(budgets):
        if not runs or budget * 2 < runs[-1][2]:
            runs.append((index, index + 1, budget))
        else:
            start, _, most = runs[-1]
            runs[-1] = (start, index + 1, max(most, budget))
    return runs
