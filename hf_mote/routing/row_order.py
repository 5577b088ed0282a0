"""Do the sequences of a batch stay in their rows? Beam search moves them, and says so nowhere but in the cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_mote.errors import UnsupportedError
from hf_mote.routing.forward import Forward

__all__ = ["RowOrder"]


class RowOrder:
    """Compares the cached keys of the last token with what they were when it was written.

    Only where a batch holds the same prompt twice, as beams do; other batches cost nothing.
    """

    def __init__(self) -> None:
        self._run = -1
        self._suspect = False
        self._keys: Tensor | None = None

    def check(self, forward: Forward, cache: Any) -> None:
        """Raise [`UnsupportedError`] if rows have moved since the last pass.

        Args:
            forward (`Forward`): The pass that begins.
            cache (`Cache`, *optional*): The cache that it is given.
        """
        if forward.run != self._run:
            self._run, self._keys = forward.run, None
            ids = forward.ids
            self._suspect = forward.batch > 1 and (ids is None or len(torch.unique(ids, dim=0)) < len(ids))
            return
        before, now = self._keys, _last_keys(cache)
        if self._suspect and before is not None and now is not None and not torch.equal(before, now):
            raise UnsupportedError(
                "record_routing",
                "the sequences of the batch changed their rows during the generation, as beams do",
                expected="every sequence in its row",
                fix="Record greedy search or sampling, or run the finished sequences through a plain forward.",
            )

    def remember(self, forward: Forward, cache: Any) -> None:
        """Take note of the last token's keys when a pass ends.

        Args:
            forward (`Forward`): The pass that ends.
            cache (`Cache`, *optional*): The cache that it leaves.
        """
        keys = _last_keys(cache) if self._suspect else None
        self._keys = None if keys is None else keys.clone()


def _last_keys(cache: Any) -> Tensor | None:
    """Keys of the last cached token in the deepest layer that has any, `(batch, heads, head_dim)`."""
    for layer in reversed(getattr(cache, "layers", ())):
        keys = getattr(layer, "keys", None)
        if isinstance(keys, Tensor) and keys.numel():
            length = int(layer.get_seq_length())
            return keys[:, :, min(length, keys.shape[-2]) - 1]
    return None
