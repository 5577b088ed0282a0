"""`SelectMutual`: the largest positive entries of the whole batch, which is Mutual Choice and BatchTopK.

Sorting a batch costs more than encoding it. Blocks hold tokens from all over the batch, so the first one gives an
estimate of the last chosen entry; of every block only the entries above that estimate are kept, a little more than
needed, and the largest of them are the result. If too few were kept, the blocks are shown once more with a certain
bound: the first block alone has the needed number of entries above it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hf_mote.sae.kernels.largest import GROUP, group_maxima
from hf_mote.sae.kernels.selectors import Block, Entries, Layout, check_count, check_latents

__all__ = ["SelectMutual"]

# The first block's share is raised by so many standard deviations of a mean over its tokens; L0 is taken to deviate
# from token to token by as much as it is.
_DEVIATIONS = 5
# Entries beyond this many times the needed ones are reduced as soon as they are found.
_MOST = 4


@dataclass(frozen=True)
class SelectMutual:
    """The `total` largest positive entries of all tokens; of equal ones the first, by token and then by latent.

    Args:
        total (`int`): Most entries, not negative; more than there are means all.
        scale (`torch.Tensor` of shape `(num_latents,)`, *optional*):
            Not negative; pre-activations are compared multiplied by this.

    Raises:
        [`ConfigError`]: if `total` is negative or no whole number.
    """

    total: int
    scale: Tensor | None = None
    among: None = field(default=None, init=False)
    layout: Layout = field(default="tokens", init=False)

    def __post_init__(self) -> None:
        check_count("SelectMutual: total", self.total)

    def order(self) -> Tensor | None:
        """Return `None`: the order of latents does not matter."""
        return None

    def search(self, num_tokens: int, num_latents: int) -> _Search:
        """Return a new search; raises [`ConfigError`] if a tensor does not fit the number of latents."""
        check_latents("SelectMutual", num_latents, scale=self.scale)
        return _Search(self, num_tokens, num_latents)


class _Search:
    def __init__(self, rule: SelectMutual, num_tokens: int, num_latents: int) -> None:
        self.rule = rule
        self.num_tokens = num_tokens
        self.num_latents = num_latents
        self.certain = False
        self.bound: Tensor | None = None
        self.found: list[Entries] = []
        self.affinities: list[Tensor] = []

    def add(self, block: Block) -> None:
        affinity = block.scaled(self.rule.scale, by="columns")
        maxima = group_maxima(affinity)
        if self.bound is None:
            self.bound = self._first_bound(maxima)
        # Groups first: there are 64 times fewer.
        lines, groups = ((maxima >= self.bound) & (maxima > 0)).nonzero(as_tuple=True)
        candidates = affinity.reshape(-1, GROUP).index_select(0, lines * maxima.shape[1] + groups)
        hits, offsets = ((candidates >= self.bound) & (candidates > 0)).nonzero(as_tuple=True)
        lines, columns = lines[hits], groups[hits] * GROUP + offsets
        self.affinities.append(candidates[hits, offsets])
        self.found.append(block.entries(lines, columns))
        if sum(map(len, self.affinities)) > _MOST * self.rule.total:
            self._thin_out()

    def finish(self) -> Entries | None:
        found = sum(map(len, self.affinities))
        if found < self.rule.total and not self.certain and self.bound is not None and bool(self.bound > 0):
            self.certain, self.bound, self.found, self.affinities = True, None, [], []
            return None
        if found > self.rule.total:
            self._thin_out()
        return Entries.join(self.found)

    def _first_bound(self, maxima: Tensor) -> Tensor:
        """Bound from the group maxima of the first block: at least the share has entries above it."""
        lines, total = len(maxima), self.rule.total
        share = total
        if not self.certain:
            share = min(total, math.ceil(total * lines / self.num_tokens * (1 + _DEVIATIONS / lines**0.5)))
        if not 0 < share <= maxima.numel():
            return maxima.new_tensor(math.inf if total == 0 else 0)
        return _kth_largest(maxima.flatten(), share).clamp_min(0)

    def _thin_out(self) -> None:
        """Keep the largest only; what is found from now on must not be below them."""
        affinity, entries = torch.cat(self.affinities), Entries.join(self.found)
        self.bound = _kth_largest(affinity, self.rule.total)
        kept = affinity > self.bound
        equal = (affinity == self.bound).nonzero().squeeze(1)
        flat = entries.tokens[equal] * self.num_latents + entries.latents[equal]
        kept[equal[flat.argsort()[: self.rule.total - int(kept.sum())]]] = True
        self.affinities = [affinity[kept]]
        self.found = [Entries(*(tensor[kept] for tensor in entries))]


def _kth_largest(values: Tensor, k: int) -> Tensor:
    return values.topk(k, sorted=False).values.min()
