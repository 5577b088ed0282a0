"""The tokens that an SAE leaves alone: padding, special tokens, positions, and tokens of unusual length."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hf_mote.errors import DataError, real
from hf_mote.sae.fields import excluded_positions
from hf_mote.sae.hookpoints import Hookpoint
from hf_mote.sae.tapped import activations_of
from hf_mote.sae.training.sequences import batch_of

__all__ = ["LeftOut", "norm_limit_of"]


class LeftOut(NamedTuple):
    """Which tokens of a text an SAE neither reconstructs nor is measured on.

    Attributes:
        special (`tuple[int, ...]`): Ids of tokens.
        positions (`slice`, *optional*): Positions of each sequence.
        max_norm (`float`, *optional*): Times the median length of a forward above which tokens are left out.
    """

    special: tuple[int, ...] = ()
    positions: slice | None = None
    max_norm: float | None = None

    @classmethod
    def of(
        cls, where: str, tokenizer: Any, *, special: bool, positions: str | None, max_norm: float | None
    ) -> LeftOut:
        """Return it from the arguments of a public function.

        Args:
            where (`str`): The function, for errors.
            tokenizer (`PreTrainedTokenizerBase`, *optional*): Whose special tokens are meant; `None` has none.
            special (`bool`): Whether special tokens are left out.
            positions (`str`, *optional*): As [`collect_activations`] takes `exclude_positions`.
            max_norm (`float`, *optional*): As above.

        Raises:
            [`ConfigError`]: if one is out of range.
        """
        if max_norm is not None:
            real(f"{where}.max_norm", max_norm, above=0)
        ids = tuple(sorted(tokenizer.all_special_ids)) if special and tokenizer is not None else ()
        return cls(ids, excluded_positions(positions), max_norm)

    def identity(self) -> list[Any]:
        """Return what distinguishes it from others, JSON-native, for a run folder."""
        positions = None if self.positions is None else [self.positions.start, self.positions.stop]
        return [list(self.special), positions, self.max_norm]

    def kept(self, ids: Tensor, mask: Tensor, inputs: Tensor | None = None) -> Tensor:
        """Return which tokens are not left out, bool `(batch, length)`.

        Args:
            ids (`torch.Tensor` of shape `(batch, length)`, int64): Tokens, padded on the right.
            mask (`torch.Tensor`, like `ids`): 0 at padding.
            inputs (`torch.Tensor` of shape `(batch * length, width)`, *optional*):
                The SAE's inputs; without them nothing is left out for its length.
        """
        kept = mask.bool()
        if self.special:
            kept &= ~torch.isin(ids, torch.tensor(self.special))
        if self.positions is not None:
            kept[:, self.positions] = False
        if self.max_norm is not None and inputs is not None and bool(kept.any()):
            lengths = _lengths(inputs).reshape(kept.shape)
            kept &= lengths <= self.max_norm * lengths[kept].median()
        return kept


def norm_limit_of(
    model: nn.Module, reads: Hookpoint, forwards: Iterable[list[list[int]]], left_out: LeftOut
) -> float | None:
    """Return the length above which activations are left out: `max_norm` times their median, or `None` without it.

    Args:
        model (`nn.Module`): The model.
        reads ([`Hookpoint`]): Where the SAE reads.
        forwards (`Iterable[list[list[int]]]`): The sequences of each forward.
        left_out ([`LeftOut`]): What else is left out, before the median is taken.

    Raises:
        [`DataError`]: if nothing is left, or activations are not finite.
    """
    if left_out.max_norm is None:
        return None
    found = []
    for sequences in forwards:
        ids, mask = batch_of(sequences)
        inputs = activations_of(model, ids, mask, [reads])[reads.name]
        found.append(_lengths(inputs.reshape(ids.numel(), -1)).reshape(ids.shape)[left_out.kept(ids, mask)])
    lengths = torch.cat(found) if found else torch.empty(0)
    if not len(lengths):
        raise DataError(reads.name, "has no token left whose length could be measured", fix="Exclude less.")
    if not bool(lengths.isfinite().all()):
        raise DataError(reads.name, "the model's activations hold NaN or infinite numbers")
    return left_out.max_norm * float(lengths.median())


def _lengths(inputs: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(inputs, dim=1, dtype=torch.float32)
    return lengths.cpu()
