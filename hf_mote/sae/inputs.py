"""The input activations of an SAE: checked, flattened to tokens, and reshaped back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from hf_mote.errors import DataError

if TYPE_CHECKING:
    from hf_mote.sae.step import TrainingStep

__all__ = ["Tokens", "blocks_of", "flatten", "in_blocks", "stream"]

_BLOCK_ROWS = {"cpu": 32}
_BLOCK_ROWS_ELSEWHERE = 256
# Elements from one row to the next are a multiple of this.
_ALIGNED = 16


class Tokens(NamedTuple):
    """Activations as a list of tokens.

    Attributes:
        values (`torch.Tensor` of shape `(tokens, width)`): Zero at padding.
        valid (`torch.Tensor` of shape `(tokens,)`, bool, *optional*): `False` at padding; `None` if there is none.
        leading (`tuple[int, ...]`): The shape that the tokens had.
        step ([`TrainingStep`], *optional*): The optimizer step that they are a part of.
        scale (`torch.Tensor` of shape `()`, *optional*): What squared errors of their targets are divided by for FVU.
    """

    values: Tensor
    valid: Tensor | None
    leading: tuple[int, ...]
    step: TrainingStep | None = None
    scale: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """Number of tokens that are not padding."""
        return len(self.values) if self.valid is None else int(self.valid.sum())

    @property
    def step_tokens(self) -> int:
        """Number of tokens of the whole step that are not padding."""
        return self.num_tokens if self.step is None else self.step.num_tokens

    @property
    def choice_tokens(self) -> int:
        """Number of tokens that a choice across tokens looks at."""
        return self.step_tokens if self.step is not None and self.step.choose_globally else self.num_tokens

    def shaped(self, values: Tensor) -> Tensor:
        """Return `(tokens, ...)` as `(*leading, ...)`."""
        return values.reshape(*self.leading, *values.shape[1:])


def flatten(where: str, activations: Tensor, attention_mask: Tensor | None, width: int, dtype: torch.dtype) -> Tokens:
    """Return activations as tokens.

    Args:
        where (`str`): What an error names.
        activations (`torch.Tensor` of shape `(..., width)`): Any float dtype; cast to `dtype`.
        attention_mask (`torch.Tensor` of the leading shape, *optional*): Non-zero at tokens, zero at padding.
        width (`int`): The width that is expected.
        dtype (`torch.dtype`): Of the result.

    Raises:
        [`DataError`]: if it is not a float tensor of that width, holds a NaN or an infinite number outside of padding,
            or the mask has another shape.
    """
    if not isinstance(activations, Tensor) or not activations.is_floating_point():
        got = activations.dtype if isinstance(activations, Tensor) else type(activations).__name__
        raise DataError(where, "must be a float tensor", got=got, expected=f"a float tensor of shape (..., {width})")
    if activations.ndim == 0 or activations.shape[-1] != width:
        raise DataError(where, "wrong width", got=tuple(activations.shape), expected=f"(..., {width})")
    leading = tuple(activations.shape[:-1])
    values, valid = activations.reshape(-1, width).to(dtype), None
    if attention_mask is not None:
        if not isinstance(attention_mask, Tensor):
            raise DataError(f"{where}: attention_mask", "must be a tensor", got=type(attention_mask).__name__)
        if tuple(attention_mask.shape) != leading:
            raise DataError(
                f"{where}: attention_mask", "wrong shape", got=tuple(attention_mask.shape), expected=leading
            )
        valid = attention_mask.reshape(-1).to(device=values.device, dtype=torch.bool)
        # Not a product: padding may hold NaN.
        values = values.masked_fill(~valid[:, None], 0)
    if not torch.compiler.is_compiling() and values.numel() and not _all_finite(values.detach()):
        wrong = int((~values.detach().isfinite().all(1)).nonzero()[0])
        raise DataError(
            where, f"token {wrong} holds NaN or an infinite number", fix="Leave it out, or mask it by attention_mask."
        )
    return Tokens(values, valid, leading)


def _all_finite(values: Tensor) -> bool:
    # Both ends are NaN if a number is: no copy of the batch is made.
    low, high = values.aminmax()
    return bool(low.isfinite() & high.isfinite())


def in_blocks(inputs: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Return a function of tokens, called so that no token's result depends on the others, bit for bit.

    It is called on blocks of one size, the last padded with zeros: a matrix product of another shape may round
    differently. In a compiled graph it is called once.

    Args:
        inputs (`torch.Tensor` of shape `(tokens, width)`): What it is a function of.
        function (`Callable[[Tensor], Tensor]`): From `(rows, width)` to `(rows, ...)`, each row by itself.
    """
    if torch.compiler.is_compiling() or not len(inputs):
        return function(inputs)
    return torch.cat([function(block)[:rows] for block, rows in blocks_of(inputs)])


def blocks_of(inputs: Tensor) -> Iterator[tuple[Tensor, int]]:
    """Yield tokens in blocks of one size and alignment, the last padded with zeros, and how many of each are real.

    Args:
        inputs (`torch.Tensor` of shape `(tokens, width)`): The tokens.
    """
    rows = _BLOCK_ROWS.get(inputs.device.type, _BLOCK_ROWS_ELSEWHERE)
    width = inputs.shape[1]
    for block in inputs.split(rows):
        # Rows begin at cache lines: otherwise products may round differently from row to row.
        padded = functional.pad(block, (0, -width % _ALIGNED, 0, rows - len(block)))
        yield padded[:, :width], len(block)


def stream(activations: Any) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield activations and mask of each batch of a stream.

    Args:
        activations (`torch.Tensor`, mapping, or iterable of both):
            One batch or several: a tensor, or a mapping with `"activations"` and perhaps `"attention_mask"`.

    Raises:
        [`DataError`]: if it is not one of these, or a mapping has no activations.
    """
    if not isinstance(activations, Iterable):
        got = type(activations).__name__
        raise DataError("activations", "must be a stream", got=got, expected="a tensor or an iterable of batches")
    for batch in [activations] if isinstance(activations, Tensor | Mapping) else activations:
        if isinstance(batch, Mapping):
            if "activations" not in batch:
                keys = sorted(map(str, batch))
                raise DataError("batch", "has no activations", got=keys, expected="a key 'activations'")
            yield batch["activations"], batch.get("attention_mask")
        else:
            yield batch, None
