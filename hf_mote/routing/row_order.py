"""Do the sequences of a batch stay in their rows? Beam search moves them, and says so nowhere but in the cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["last_keys", "moved_from"]


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
