"""Encode, select and decode without dense latents: used in training by architectures that choose few latents.

`sparse_encode` computes pre-activations block by block, shows each block to the rules that choose from it (`by_token`,
`by_latent`, `by_batch`) and keeps what they chose; `sparse_decode` adds up dictionary rows. Both are differentiable,
and both backwards are products of the chosen entries (`products.py`): nothing of the size of tokens x latents is
saved, and no other dense work is done than the encoder product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hf_mote.sae.kernels.blocks import encode_and_choose
from hf_mote.sae.kernels.by_batch import SelectMutual
from hf_mote.sae.kernels.by_latent import SelectByLatent
from hf_mote.sae.kernels.by_token import SelectByToken
from hf_mote.sae.kernels.pattern import ByColumn, Pattern
from hf_mote.sae.kernels.products import row_dots, sums, weighted_sum
from hf_mote.sae.kernels.selectors import Selector

__all__ = [
    "Pattern",
    "SelectByLatent",
    "SelectByToken",
    "SelectMutual",
    "Selector",
    "SparseLatents",
    "sparse_decode",
    "sparse_encode",
]


_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def _eagerly(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Keep a function whose shapes depend on the data out of compiled graphs."""
    eager: Callable[_Arguments, _Result] = torch.compiler.disable(function)
    return eager


class SparseLatents(NamedTuple):
    """Latents of a batch: the positive ones and where they are.

    Args:
        values (`torch.Tensor` of shape `(active,)`, float): Positive, in the order of `pattern`.
        pattern ([`Pattern`]): Which latents are active on which tokens.

    Example:

    ```python
    import torch
    from hf_mote.sae.kernels.sparse import SparseLatents

    latents = SparseLatents.from_dense(torch.tensor([[0.0, 2.0], [1.0, 0.0], [0.0, 0.0]]))
    assert latents.values.tolist() == [2.0, 1.0]
    assert latents.pattern.columns.tolist() == [1, 0] and latents.pattern.counts().tolist() == [1, 1, 0]
    ```
    """

    values: Tensor
    pattern: Pattern

    @classmethod
    def from_dense(cls, latents: Tensor, *, signed: bool = False) -> SparseLatents:
        """Return the positive entries of `(tokens, num_latents)`, or if `signed` all but zeros; differentiable."""
        pattern = Pattern.from_mask(latents != 0 if signed else latents > 0)
        return cls(latents[pattern.rows, pattern.columns], pattern)

    @classmethod
    def cat(cls, parts: Sequence[SparseLatents], num_columns: int) -> SparseLatents:
        """Return the latents of several lots of tokens, one after the other; differentiable.

        Args:
            parts (`Sequence[SparseLatents]`): The lots; it may be empty.
            num_columns (`int`): Latents of the autoencoder.
        """
        if not parts:
            return cls.from_dense(torch.zeros(0, num_columns))
        starts = [0]
        for part in parts:
            starts.append(starts[-1] + part.pattern.num_rows)
        pattern = Pattern(
            torch.cat([part.pattern.rows + start for part, start in zip(parts, starts, strict=False)]),
            torch.cat([part.pattern.columns for part in parts]),
            starts[-1],
            num_columns,
        )
        return cls(torch.cat([part.values for part in parts]), pattern)

    def dense(self) -> Tensor:
        """Return the latents as `(tokens, num_latents)`, of the dtype of `values`; differentiable."""
        empty = self.values.new_zeros(self.pattern.num_rows, self.pattern.num_columns)
        return empty.index_put((self.pattern.rows, self.pattern.columns), self.values)

    def select(self, mask: Tensor) -> SparseLatents:
        """Return the entries where `mask`, bool `(active,)`, is `True`; differentiable."""
        rows, columns = self.pattern.rows[mask], self.pattern.columns[mask]
        return SparseLatents(self.values[mask], replace(self.pattern, rows=rows, columns=columns))


@_eagerly
def sparse_encode(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    selectors: Sequence[Selector],
    *,
    pre_bias: Tensor | None = None,
    valid: Tensor | None = None,
) -> list[SparseLatents]:
    """Return, for each rule, the latents it chooses from ReLU(W_enc (x - pre_bias) + b_enc).

    Differentiable in `x`, `pre_bias`, `W_enc` and `b_enc`, once; the choice itself has no gradient. The encoder
    product is computed block by block, in the dtype of autocast where that is on.

    Args:
        x (`torch.Tensor` of shape `(tokens, hidden_size)`, any float dtype):
            Activations, finite outside of padding.
        W_enc (`torch.Tensor` of shape `(num_latents, hidden_size)`): Encoder, one row for each latent.
        b_enc (`torch.Tensor` of shape `(num_latents,)`): Encoder bias.
        selectors (`Sequence[Selector]`):
            The rules, such as [`SelectByToken`], [`SelectMutual`] or [`SelectByLatent`].
        pre_bias (`torch.Tensor` of shape `(hidden_size,)`, *optional*):
            Subtracted from every token. Its gradient costs far less than that of an `x` it was subtracted from.
        valid (`torch.Tensor` of shape `(tokens,)`, bool, *optional*):
            `False` at padding, which is not encoded and gets no latent.

    Returns:
        `list[SparseLatents]`: one for each rule; values float32, or float64 if `x` or `W_enc` is.

    Raises:
        [`ConfigError`]: if a rule does not fit the number of latents.

    Example:

    ```python
    import torch
    from hf_mote.sae.kernels.sparse import SelectByToken, sparse_decode, sparse_encode

    x, W_enc, W_dec = torch.randn(5, 8), torch.randn(32, 8, requires_grad=True), torch.randn(32, 8)
    (latents,) = sparse_encode(x, W_enc, torch.zeros(32), [SelectByToken(4)])
    sparse_decode(latents, W_dec).pow(2).sum().backward()
    assert latents.pattern.counts().max() <= 4 and W_enc.grad.shape == (32, 8)
    ```
    """
    with torch.no_grad():
        dtype = torch.promote_types(x.dtype, W_enc.dtype)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        if dtype != torch.float64 and torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
        inputs = _centred(x, pre_bias).to(dtype)
        chosen = encode_and_choose(inputs, W_enc.to(dtype), b_enc.to(dtype), selectors, valid)
    patterns = [pattern for _, pattern in chosen]
    values = _Encode.apply(  # type: ignore[no-untyped-call]
        x, pre_bias, W_enc, b_enc, patterns, *(value.to(wide) for value, _ in chosen)
    )
    return [SparseLatents(value, pattern) for value, pattern in zip(values, patterns, strict=True)]


@_eagerly
def sparse_decode(latents: SparseLatents, W_dec: Tensor) -> Tensor:
    """Return latents times dictionary, differentiable in both, once.

    Args:
        latents ([`SparseLatents`]): Of `(tokens, num_latents)`.
        W_dec (`torch.Tensor` of shape `(num_latents, output_size)`): Dictionary, one row for each latent.

    Returns:
        `torch.Tensor` of shape `(tokens, output_size)`: of the dtype of `W_dec`, added up in float32, or in float64 if
        the latents or `W_dec` are float64.
    """
    decoded: Tensor = _Decode.apply(latents.values, W_dec, latents.pattern)  # type: ignore[no-untyped-call]
    return decoded


class _Encode(torch.autograd.Function):
    """Passes the chosen values on; its backward is that of the whole encoder, restricted to the chosen entries."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        pre_bias: Tensor | None,
        W_enc: Tensor,
        b_enc: Tensor,
        patterns: list[Pattern],
        *values: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.patterns = patterns
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (x, pre_bias, W_enc, b_enc)]
        ctx.save_for_backward(x, pre_bias, W_enc)
        return tuple(value.view_as(value) for value in values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, pre_bias, W_enc = ctx.saved_tensors
        used = [(grad, pattern) for grad, pattern in zip(grads, ctx.patterns, strict=True) if grad is not None]
        found: list[Tensor | None] = [None] * 4
        if used:
            (values, pattern), *others = used
            rows, columns = pattern.rows, pattern.columns
            if others:
                values = torch.cat([grad for grad, _ in used])
                rows = torch.cat([pattern.rows for _, pattern in used])
                columns = torch.cat([pattern.columns for _, pattern in used])
            needs_x, needs_pre_bias, needs_W_enc, needs_b_enc = ctx.needs_input_grad[:4]
            if needs_x:
                found[0] = _scattered(values, rows, columns, W_enc, len(x))
            if needs_W_enc or needs_pre_bias or needs_b_enc:
                order, rows, columns = ByColumn.of(rows, columns) if others else pattern.by_column
                values = values.index_select(0, order)
            if needs_W_enc:
                found[2] = weighted_sum(values, columns, rows, _centred(x, pre_bias), len(W_enc))
            if needs_pre_bias or needs_b_enc:
                found[3] = sums(values, columns, len(W_enc))
                found[1] = -(found[3] @ W_enc.to(values.dtype)) if needs_pre_bias else None
        return (
            *(None if grad is None else grad.to(dtype) for grad, dtype in zip(found, ctx.dtypes, strict=True)),
            None,
            *(None for _ in grads),
        )


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, W_dec: Tensor, pattern: Pattern) -> Tensor:
        ctx.pattern = pattern
        ctx.save_for_backward(values, W_dec)
        return weighted_sum(values, pattern.rows, pattern.columns, W_dec, pattern.num_rows).to(
            _decoded_dtype(values, W_dec)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, W_dec = ctx.saved_tensors
        grad_values = grad_W_dec = None
        # By latents: a dictionary row is read once for all of its tokens.
        order, rows, columns = ctx.pattern.by_column
        if ctx.needs_input_grad[0]:
            grad_values = torch.empty_like(values)
            grad_values.scatter_(0, order, row_dots(W_dec, grad, columns, rows).to(values.dtype))
        if ctx.needs_input_grad[1]:
            ordered = values.index_select(0, order)
            grad_W_dec = weighted_sum(ordered, columns, rows, grad, ctx.pattern.num_columns).to(W_dec.dtype)
        return grad_values, grad_W_dec, None


def _centred(x: Tensor, pre_bias: Tensor | None) -> Tensor:
    return x if pre_bias is None else x - pre_bias


def _decoded_dtype(values: Tensor, W_dec: Tensor) -> torch.dtype:
    return torch.float64 if values.dtype == torch.float64 else W_dec.dtype


def _scattered(values: Tensor, targets: Tensor, sources: Tensor, matrix: Tensor, num_targets: int) -> Tensor:
    """As [`weighted_sum`], of targets in any order."""
    order = targets.argsort(stable=True)
    return weighted_sum(values[order], targets[order], sources[order], matrix, num_targets)
