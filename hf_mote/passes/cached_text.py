"""`CachedText`: what passes that share a cache have read so far: how many tokens, and which are thinking or answer."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["CachedRows", "CachedText", "ThinkingTokens", "count_tokens", "label_thinking", "moved_from", "rows_of"]

ThinkingTokens = tuple[int, int]
"""The tokens that open and close the thinking."""


class CachedRows(NamedTuple):
    """What identifies the rows of a cache after a pass: the state of its deepest layer.

    Attributes:
        state (`tuple`): The layer's tensors, each with its version counter.
        keys (`torch.Tensor`, *optional*): Its keys, `(batch, heads, places, head_dim)`, if available.
        length (`int`): Tokens that it held.
    """

    state: tuple[tuple[object, int], ...]
    keys: Tensor | None
    length: int

    def is_untouched(self, now: CachedRows) -> bool:
        """Return whether the layer is unchanged; after a reordering or selection it holds other tensors.

        Args:
            now (`CachedRows`): Its state now.
        """
        return len(self.state) == len(now.state) and all(
            one is other and version == its_version
            for (one, version), (other, its_version) in zip(self.state, now.state, strict=True)
        )

    def moved_to(self, now: CachedRows) -> Tensor | None:
        """Return the row that each row's sequence was in, as `moved_from` does.

        Args:
            now (`CachedRows`): The layer's state now.

        Raises:
            `LookupError`: if this cannot be determined.
        """
        if self.is_untouched(now):
            return None
        before, after = self.keys, now.keys
        if before is None or after is None:
            raise LookupError
        if not any(part is before and version == _version(before) for part, version in self.state):
            raise LookupError  # the keys have been overwritten
        ends = [_last(keys, rows.length, now.length) for keys, rows in ((before, self), (after, now))]
        if ends[0] is None or ends[1] is None:
            raise LookupError
        found = moved_from(ends[0], ends[1])
        length = min(before.shape[-2], after.shape[-2], now.length)
        whole = all(keys.shape[-2] >= rows.length for keys, rows in ((before, self), (after, now)))
        if not whole or (found is not None and bool((found < 0).any())):
            return found
        # In a deep model the last token's key depends on the whole text; in a shallow one on the last tokens only.
        before, after = before[:, :, :length].to(after.device), after[:, :, :length]
        if torch.equal(after, before if found is None else before[found]):
            return found
        return moved_from(before, after)


class CachedText(NamedTuple):
    """What a cache holds after its last pass.

    Attributes:
        run_id (`int`): Number of the run.
        before (`int`): Tokens that it held before that pass.
        length (`int`): Tokens of that pass.
        thinking (`dict`): For each pair of marks, the part of the text before that pass and after each of its
            tokens, `(batch, 1 + length)`.
        batch (`int`): Sequences.
        rows (`CachedRows`, *optional*): What identifies its rows; kept only where moved rows matter.
        counts (`torch.Tensor`, *optional*): Tokens of each sequence before that pass and after each of its columns,
            padding not counted, `(batch, 1 + length)`; kept only where places matter.
    """

    run_id: int
    before: int
    length: int
    thinking: dict[ThinkingTokens, Tensor] = {}
    batch: int = 0
    rows: CachedRows | None = None
    counts: Tensor | None = None

    def count_at(self, past: int, moved: Tensor | None) -> Tensor | None:
        """Return the tokens of each sequence among the first `past`, `(batch,)`; `None` if that is not known.

        Args:
            past (`int`): Tokens that the cache holds now, padding among them.
            moved (`torch.Tensor`, *optional*): As in `thinking_at`.
        """
        column = self._column(past, moved)
        if column is None or self.counts is None:
            return None
        return self.counts[:, column] if moved is None else self.counts[moved, column]

    def thinking_at(self, past: int, moved: Tensor | None) -> dict[ThinkingTokens, Tensor]:
        """Return the part of the text after its first `past` tokens, `(batch,)`, if known.

        Args:
            past (`int`): Tokens that the cache holds now.
            moved (`torch.Tensor`, *optional*): The row that each row's sequence was in, `(batch,)`, -1 for none.
        """
        column = self._column(past, moved)
        if column is None:
            return {}
        ends = {marks: labels[:, column] for marks, labels in self.thinking.items()}
        return ends if moved is None else {marks: end[moved] for marks, end in ends.items()}

    def _column(self, past: int, moved: Tensor | None) -> int | None:
        """The column of what was known after the first `past` tokens; `None` if it was not kept."""
        column = past - self.before
        known = 0 <= column <= self.length and (moved is None or not bool((moved < 0).any()))
        return column if known else None


def count_tokens(begun: Tensor, real: Tensor | None, length: int) -> Tensor:
    """Return the tokens of each sequence before a pass and after each of its columns, `(batch, 1 + length)` int64.

    Args:
        begun (`torch.Tensor` of shape `(batch,)`, int64): Tokens before the pass.
        real (`torch.Tensor` of shape `(batch, length)`, *optional*): False for padding; `None` if there is none.
        length (`int`): Columns of the pass.
    """
    if real is None:
        return begun[:, None] + torch.arange(length + 1, device=begun.device)
    return torch.nn.functional.pad(real.long().cumsum(dim=1), (1, 0)) + begun[:, None]


def label_thinking(ids: Tensor, marks: ThinkingTokens, begun: Tensor) -> Tensor:
    """Return the part that each token belongs to, of the shape of `ids`: 0 neither, 1 thinking, 2 answer.

    Args:
        ids (`torch.Tensor` of shape `(batch, length)`, int64): Tokens.
        marks (`tuple[int, int]`): The tokens that open and close the thinking.
        begun (`torch.Tensor` of shape `(batch,)`, int64): The part of the text before them.
    """
    opens, closes = marks
    # The last mark at or before each token decides; without one, what held when the pass began.
    found = (ids == opens).long() + 2 * (ids == closes).long()
    columns = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    last = torch.where(found > 0, columns, -1).cummax(dim=1).values
    return torch.where(last >= 0, found.gather(1, last.clamp(min=0)), begun[:, None])


def rows_of(cache: Any) -> CachedRows | None:
    """Return what identifies the rows of a cache, or `None` if its layers are of unknown types.

    Args:
        cache (`Cache`, *optional*): The cache.
    """
    layers = [
        layer
        for layer in getattr(getattr(cache, "self_attention_cache", cache), "layers", ())
        if callable(getattr(layer, "get_seq_length", None))
    ]
    if not layers:
        return None
    layer = next((layer for layer in reversed(layers) if _keys(layer) is not None), layers[-1])
    parts: list[object] = []
    for value in vars(layer).values():
        parts += value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
    state = tuple((part, _version(part)) for part in parts if not isinstance(part, bool | int | float | str))
    return CachedRows(state, _keys(layer), int(layer.get_seq_length()))


def _keys(layer: object) -> Tensor | None:
    keys = getattr(layer, "keys", None)
    return keys if isinstance(keys, Tensor) and keys.ndim == 4 and keys.numel() else None


def _version(part: object) -> int:
    return part._version if isinstance(part, Tensor) and not part.is_inference() else 0


def _last(keys: Tensor, held: int, length: int) -> Tensor | None:
    """The key of the last of a number of tokens, `(batch, heads, head_dim)`; `None` if it is no longer held."""
    place = min(held, keys.shape[-2]) - 1 - (held - length)
    return keys[:, :, place] if 0 <= place < keys.shape[-2] else None


def moved_from(before: Tensor, now: Tensor) -> Tensor | None:
    """Return the row that each row's sequence was in before, `(batch,)` int64, or `None` if none has moved.

    Args:
        before (`torch.Tensor` of shape `(batch before, ...)`): What identified each row when a pass ended.
        now (`torch.Tensor` of shape `(batch, ...)`): What identifies it when the next one begins.

    Returns:
        -1 for a new sequence. Rows with equal content count as not moved.
    """
    before = before.to(now.device)
    if before.shape[1:] != now.shape[1:]:
        return torch.full((len(now),), -1, device=now.device)
    if torch.equal(before, now):
        return None
    same = torch.stack([(row[None] == before).flatten(1).all(dim=1) for row in now])
    rows = torch.arange(len(now), device=now.device)
    found = torch.where(same.any(dim=1), same.long().argmax(dim=1), -1)
    own = same[rows, rows.clamp(max=len(before) - 1)] & (rows < len(before))
    return torch.where(own, rows, found)
