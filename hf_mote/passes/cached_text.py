"""`CachedText`: what passes that share a cache have read so far, and what of it is thinking or answer."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["CachedText", "ThinkingTokens", "label_thinking", "last_keys", "moved_from"]

ThinkingTokens = tuple[int, int]
"""The tokens that open and close the thinking."""


class CachedText(NamedTuple):
    """What a cache holds, as its last pass left it.

    Attributes:
        run_id (`int`): Number of the run.
        before (`int`): Tokens that it held before that pass.
        length (`int`): Tokens of that pass.
        rows_may_move (`bool`): Whether sequences of the batch began alike, as beams do.
        thinking (`dict`): For each pair of marks, what the text belonged to before that pass and after each of its
            tokens, `(batch, 1 + length)`.
        keys (`torch.Tensor`, *optional*): What `last_keys` knows its rows by; kept only where rows may move.
    """

    run_id: int
    before: int
    length: int
    rows_may_move: bool = False
    thinking: dict[ThinkingTokens, Tensor] = {}
    keys: Tensor | None = None

    def shortened_to(self, past: int) -> bool:
        """Return whether tokens were taken back, so that the cache holds no more than `past`."""
        return past < self.before + self.length

    def thinking_at(self, past: int, moved: Tensor | None) -> dict[ThinkingTokens, Tensor]:
        """Return what the text belongs to after its first `past` tokens, `(batch,)`, as far as it is known.

        Args:
            past (`int`): Tokens that the cache holds now.
            moved (`torch.Tensor`, *optional*): The row that each row's sequence was in, `(batch,)`, -1 for none.
        """
        column = past - self.before
        if not 0 <= column <= self.length or (moved is not None and bool((moved < 0).any())):
            return {}
        ends = {marks: labels[:, column] for marks, labels in self.thinking.items()}
        return ends if moved is None else {marks: end[moved] for marks, end in ends.items()}


def label_thinking(ids: Tensor, marks: ThinkingTokens, begun: Tensor) -> Tensor:
    """Return what each token belongs to: 0 neither, 1 thinking, 2 answer, as `ids`.

    Args:
        ids (`torch.Tensor` of shape `(batch, length)`, int64): Tokens.
        marks (`tuple[int, int]`): The tokens that open and close the thinking.
        begun (`torch.Tensor` of shape `(batch,)`, int64): What the text before them belongs to.
    """
    opens, closes = marks
    # The last mark at or before each token decides; without one, what held when the pass began.
    found = (ids == opens).long() + 2 * (ids == closes).long()
    columns = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    last = torch.where(found > 0, columns, -1).cummax(dim=1).values
    return torch.where(last >= 0, found.gather(1, last.clamp(min=0)), begun[:, None])


def last_keys(cache: Any) -> Tensor | None:
    """Return what a cache knows each row by: keys of the last token in the deepest layer that has any.

    Args:
        cache (`Cache`, *optional*): The cache.

    Returns:
        `torch.Tensor` of shape `(batch, heads, head_dim)`, or `None` if there are none.
    """
    for layer in reversed(getattr(cache, "layers", ())):
        keys = getattr(layer, "keys", None)
        if isinstance(keys, Tensor) and keys.numel():
            length = int(layer.get_seq_length())
            return keys[:, :, min(length, keys.shape[-2]) - 1]
    return None


def moved_from(before: Tensor, now: Tensor) -> Tensor | None:
    """Return the row that each row's sequence was in before, `(batch,)` int64, or `None` if none has moved.

    Args:
        before (`torch.Tensor`): What `last_keys` returned when a pass ended.
        now (`torch.Tensor`): What it returns when the next one begins.

    Returns:
        -1 for a row whose sequence was in none. Rows that hold the same count as not moved.
    """
    if before.shape != now.shape:
        return torch.full((len(now),), -1, device=now.device)
    if torch.equal(before, now):
        return None
    same = (now[:, None] == before[None]).flatten(2).all(dim=-1)
    rows = torch.arange(len(now), device=now.device)
    found = torch.where(same.any(dim=1), same.long().argmax(dim=1), -1)
    return torch.where(same.diagonal(), rows, found)
