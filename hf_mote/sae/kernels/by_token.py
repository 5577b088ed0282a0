"""`SelectByToken`: the k largest positive latents of each token, which is TopK."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from hf_mote.sae.kernels.largest import positive_in_rows
from hf_mote.sae.kernels.selectors import Block, Entries, Layout, check_count, check_latents

__all__ = ["SelectByToken"]


@dataclass(frozen=True)
class SelectByToken:
    """The `k` largest positive latents of each token; of equal ones the first.

    Args:
        k (`int`): Most latents per token, not negative; more than there are means all.
        scale (`torch.Tensor` of shape `(num_latents,)`, *optional*):
            Not negative; pre-activations are compared multiplied by this.
        among (`torch.Tensor` of shape `(num_latents,)`, bool, *optional*): Only these latents are chosen from.

    Raises:
        [`ConfigError`]: if `k` is negative or no whole number.
    """

    k: int
    scale: Tensor | None = None
    among: Tensor | None = None
    layout: Layout = field(default="tokens", init=False)

    def __post_init__(self) -> None:
        check_count("SelectByToken: k", self.k)

    def order(self) -> Tensor | None:
        """Return `None`: the order of latents does not matter."""
        return None

    def search(self, num_tokens: int, num_latents: int) -> _Search:
        """Return a new search; raises [`ConfigError`] if a tensor does not fit the number of latents."""
        check_latents("SelectByToken", num_latents, scale=self.scale, among=self.among)
        return _Search(self)


class _Search:
    def __init__(self, rule: SelectByToken) -> None:
        self.rule = rule
        self.found: list[Entries] = []

    def add(self, block: Block) -> None:
        block = block.among(self.rule.among)
        count = min(self.rule.k, len(block.columns))
        affinity = block.scaled(self.rule.scale, by="columns")
        # Columns of padding are not positive.
        lines, columns, _ = positive_in_rows(affinity, count, ranked=False)
        self.found.append(block.entries(lines, columns))

    def finish(self) -> Entries | None:
        return Entries.join(self.found)
