"""`SAEModel`: the base of all sparse autoencoder architectures.

A `PreTrainedModel` whose forward takes activations, encodes them to sparse latents, decodes these and compares. An
architecture derives from it in `variants/` and defines how pre-activations become latents and what is penalised;
loading, checks, masks, losses, dead latents and thresholds are defined here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_mote.errors import DataError, UnsupportedError
from hf_mote.sae.inputs import Tokens, blocks_of, flatten, in_blocks
from hf_mote.sae.kernels.sparse import SparseLatents, sparse_decode
from hf_mote.sae.losses import fvu, fvu_scale, mse, squared_error
from hf_mote.sae.normalization import normalized, restored, restored_scale
from hf_mote.sae.output import Encoding, Penalty, SAEOutput
from hf_mote.sae.step import TrainingStep
from hf_mote.sae.weights import SAEWeights

if TYPE_CHECKING:
    from typing import Self

__all__ = ["SAEModel"]


class SAEModel(SAEWeights):
    """A sparse autoencoder or transcoder: latents = activate(W_enc (x - b_dec) + b_enc), x̂ = latents W_dec + b_dec.

    Attributes:
        W_enc (`torch.nn.Parameter` of shape `(num_latents, hidden_size)`): Encoder, one row for each latent.
        b_enc (`torch.nn.Parameter` of shape `(num_latents,)`): Encoder bias.
        W_dec (`torch.nn.Parameter` of shape `(num_latents, output_size)`): Dictionary, one row for each latent.
        b_dec (`torch.nn.Parameter` of shape `(output_size,)`): Decoder bias.
        W_skip (`torch.nn.Parameter` of shape `(output_size, hidden_size)`): Only with `config.skip_connection`.
        tokens_since_fired (`torch.Tensor` of shape `(num_latents,)`, int64):
            Training tokens since each latent was active last.

    With `config.normalize_decoder` the forward of a training step first sets the rows of `W_dec` to unit length, in
    place, so that any optimizer and any trainer keep them near it; `normalize_decoder` does so after the last step. A
    decoder that is frozen stays as it is. A forward uses its own batch alone, unless it is given the step of the
    batch, as by [`SAETrainer`]: with another trainer, accumulation and data parallelism select, count and follow
    statistics in each part separately, and the statistics are those of the first process.

    Example:

    ```python
    import torch
    from transformers import AutoModel
    from hf_mote import TopKSAEConfig, TopKSAEModel

    sae = TopKSAEModel(TopKSAEConfig(hidden_size=16, num_latents=64, k=4)).eval()
    output = sae(torch.randn(2, 5, 16), output_latents=True)
    assert output.latents.shape == (2, 5, 64) and output.l0 <= 4
    sae.save_pretrained("my-sae")
    assert torch.equal(AutoModel.from_pretrained("my-sae").W_dec, sae.W_dec)
    ```
    """

    # What an architecture overrides.

    _sparse_training = False  # whether latents are sparse in training

    def _activate(self, preactivations: Tensor) -> Tensor:
        """Return the latents of pre-activations, `(tokens, num_latents)` both, each token by itself."""
        raise NotImplementedError

    def _preactivations(self, inputs: Tensor) -> Tensor:
        """Return the pre-activations of centred inputs, `(tokens, hidden_size)` to `(tokens, num_latents)`."""
        return F.linear(inputs, self.W_enc, self.b_enc)

    def _encode_for_training(self, tokens: Tokens) -> Encoding:
        """Return the encoding of a training batch; may look across it."""
        latents = self._activate(self._preactivations(self._centred(tokens.values)))
        return Encoding(latents if tokens.valid is None else latents * tokens.valid[:, None])

    def _penalties(self, encoding: Encoding, tokens: Tokens, target: Tensor, rebuilt: Tensor) -> dict[str, Penalty]:
        """Return the further terms of the training loss, by the names of the fields in [`SAEOutput`]."""
        return {}

    def _reconstruction_loss(
        self, encoding: Encoding, tokens: Tokens, target: Tensor, rebuilt: Tensor, error: Tensor
    ) -> Tensor:
        """Return the reconstruction loss, a scalar; `error` is the squared error of what was rebuilt."""
        return self._error(tokens, target, rebuilt, error)

    def _total_of(self, tokens: Tokens) -> Tensor | None:
        """Return the sum over a step's tokens that a penalty needs, if it is not a mean over tokens."""
        return None

    def _follow(self, encoding: Encoding, tokens: Tokens) -> None:
        """Update the state that training keeps, without gradients."""

    def _require_ready(self) -> None:
        """Raise if the model cannot be used outside training yet."""

    def _require_trainable(self, tokens: Tokens) -> None:
        """Raise if a training batch cannot be encoded; called before a training step changes anything."""

    # For users.

    def encode(self, activations: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the latents of activations.

        Outside training (`eval()`) each token's latents depend on that token alone: bit for bit, unless compiled.

        Args:
            activations (`torch.Tensor` of shape `(..., hidden_size)`, any float dtype):
                Cast to the dtype of the parameters.
            attention_mask (`torch.Tensor` of the leading shape, *optional*):
                Zero at padding, where no latent is active.

        Returns:
            `torch.Tensor` of shape `(..., num_latents)`, not negative.

        Raises:
            [`DataError`]: if the width or dtype is wrong, or a token is not finite.
            [`UnsupportedError`]: outside training, if the thresholds were never set.
        """
        tokens = self._tokens(activations, attention_mask)
        return tokens.shaped(_dense(self._encode(tokens).latents))

    def encode_sparse(self, activations: Tensor, attention_mask: Tensor | None = None) -> SparseLatents:
        """Return only the active latents of activations: values, and which token and latent each is of.

        The same numbers as [`encode`] without its zeros, in memory that grows with what is active.

        Args:
            activations (`torch.Tensor` of shape `(..., hidden_size)`, any float dtype): As in [`encode`].
            attention_mask (`torch.Tensor` of the leading shape, *optional*): Zero at padding.

        Returns:
            [`SparseLatents`]: `values` `(active,)`, `pattern.rows` (tokens, counted over the leading shape) and
            `pattern.columns` (latents), int64 `(active,)` each, ascending; `dense()` gives `(tokens, num_latents)`.

        Raises:
            [`DataError`]: if the width or dtype is wrong, or a token is not finite.
            [`UnsupportedError`]: outside training, if the thresholds were never set.
        """
        latents = self._encode(self._tokens(activations, attention_mask)).latents
        return latents if isinstance(latents, SparseLatents) else SparseLatents.from_dense(latents)

    def decode(self, latents: Tensor, activations: Tensor | None = None) -> Tensor:
        """Return the reconstruction of latents.

        Args:
            latents (`torch.Tensor` of shape `(..., num_latents)`):
                As [`encode`] returns them, or changed: decoding is linear, and differentiable in every latent.
            activations (`torch.Tensor` of shape `(..., hidden_size)`, *optional*): What was encoded; only a skip
                connection and an autoencoder with `config.input_normalization` need it.

        Returns:
            `torch.Tensor` of shape `(..., output_size)`.

        Raises:
            [`DataError`]: if a shape is wrong, or activations that are needed are missing.
        """
        if self.config.input_normalization is not None and not self.config.is_transcoder and activations is None:
            raise DataError("decode: activations", "are needed to undo config.input_normalization")
        values = flatten("decode: latents", latents, None, self.config.num_latents, self.W_dec.dtype)
        inputs = None if activations is None else self._tokens(activations, None)
        if inputs and inputs.leading != values.leading:
            what = "not as many tokens as latents"
            raise DataError("decode: activations", what, got=inputs.leading, expected=values.leading)
        dense = values.values
        # Densely only if every latent needs its derivative; else as forward does, to the same bits.
        needs_all = torch.compiler.is_compiling() or (torch.is_grad_enabled() and dense.requires_grad)
        entries = dense if needs_all else SparseLatents.from_dense(dense, signed=True)
        return values.shaped(self._decode(entries, inputs and inputs.values).to(self.W_dec.dtype))

    def forward(
        self,
        activations: Tensor,
        targets: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_loss: bool = True,
        output_latents: bool = False,
        step: TrainingStep | None = None,
    ) -> SAEOutput:
        """Encode, decode and compare.

        Args:
            activations (`torch.Tensor` of shape `(..., hidden_size)`, any float dtype):
                Cast to the dtype of the parameters.
            targets (`torch.Tensor` of shape `(..., output_size)`, *optional*):
                Targets of a transcoder; an autoencoder reconstructs `activations`.
            attention_mask (`torch.Tensor` of the leading shape, *optional*):
                Zero at padding, which is ignored.
            return_loss (`bool`, *optional*, defaults to `True`):
                Whether to compute the losses. Without `targets` a transcoder has none.
            output_latents (`bool`, *optional*, defaults to `False`):
                Whether to return the latents, as a dense tensor.
            step ([`TrainingStep`], *optional*):
                In training, the optimizer step that this is a part of: losses, FVU, MSE and L0 of its parts add up to
                the step's, however it is cut up. By default the batch is a step of its own.

        Returns:
            [`SAEOutput`]

        Raises:
            [`DataError`]: if a shape or dtype is wrong, a token is not finite, or targets are missing in training.
            [`UnsupportedError`]: outside training, if the thresholds were never set.
        """
        tokens = self._tokens(activations, attention_mask)._replace(step=step if self.training else None)
        target = self._target(targets, attention_mask, tokens)
        run = self._run_uncompiled if self.training and self._sparse_training else self._run
        return run(tokens, target, return_loss, output_latents)

    def dead_latents(self) -> Tensor:
        """Return which latents were not active in `config.dead_after_tokens` training tokens: bool, one each."""
        return self.tokens_since_fired >= self.config.dead_after_tokens

    def calibrate_threshold(self, activations: Tensor | Iterable[Any], *, max_tokens: int = 65_536) -> Self:
        """Set the thresholds for inference from activations; only for architectures that select across a batch."""
        what = "has no threshold to calibrate: its latents are chosen token by token in training too"
        raise UnsupportedError(type(self).__name__, what, fix="Use it as it is.")

    # Implementation.

    def _tokens(self, activations: Tensor, attention_mask: Tensor | None) -> Tokens:
        where = f"{type(self).__name__}: activations"
        return flatten(where, activations, attention_mask, self.config.hidden_size, self.W_enc.dtype)

    def _target(self, targets: Tensor | None, attention_mask: Tensor | None, tokens: Tokens) -> Tensor | None:
        where = f"{type(self).__name__}: targets"
        if not self.config.is_transcoder:
            if targets is not None:
                raise DataError(where, "an autoencoder reconstructs its input", fix="Leave targets out.")
            return tokens.values
        if targets is None:
            if self.training:
                raise DataError(where, "a transcoder cannot be trained without them", expected="(..., output_size)")
            return None
        found = flatten(where, targets, attention_mask, self.config.decoder_size, self.W_dec.dtype)
        if found.leading != tokens.leading:
            raise DataError(where, "not as many tokens as activations", got=found.leading, expected=tokens.leading)
        return found.values

    def _run(self, tokens: Tokens, target: Tensor | None, return_loss: bool, output_latents: bool) -> SAEOutput:
        if self.training:
            self._require_plain_input()
            self._require_trainable(tokens)
            if torch.is_grad_enabled() and self.W_dec.requires_grad and self.config.normalize_decoder:
                self.normalize_decoder()
        encoding = self._encode(tokens)
        reconstruction = self._decode(encoding.latents, tokens.values)
        measured: dict[str, Tensor] = {}
        if target is not None and return_loss:
            measured = self._measure(encoding, tokens, target, reconstruction)
        if self.training:
            with torch.no_grad():
                self._count_tokens(encoding, tokens)
                self._follow(encoding, tokens)
        return SAEOutput(
            reconstruction=tokens.shaped(reconstruction.to(self.W_dec.dtype)),
            latents=tokens.shaped(_dense(encoding.latents)) if output_latents else None,
            **measured,
        )

    # What is active differs in number from batch to batch, and a graph would be compiled for each.
    _run_uncompiled = torch.compiler.disable(_run)

    def _encode(self, tokens: Tokens) -> Encoding:
        if self.training:
            self._require_plain_input()
            return self._encode_for_training(tokens)
        self._require_ready()
        inputs = self._centred(tokens.values)
        if torch.compiler.is_compiling():
            dense = self._activate(self._preactivations(inputs))
            return Encoding(dense if tokens.valid is None else dense * tokens.valid[:, None])
        latents = SparseLatents.cat(
            [
                SparseLatents.from_dense(self._activate(self._preactivations(block))[:rows])
                for block, rows in blocks_of(inputs)
            ],
            self.config.num_latents,
        )
        return Encoding(latents if tokens.valid is None else latents.select(tokens.valid[latents.pattern.rows]))

    def _require_plain_input(self) -> None:
        if self.config.input_normalization is not None:
            what = "is not trained with input_normalization: its losses would not be in the units of its latents"
            raise UnsupportedError(type(self).__name__, what, fix="Call eval(), or train on normalised activations.")

    def _centred(self, inputs: Tensor) -> Tensor:
        inputs = self._normalized(inputs)
        return inputs - self.b_dec if self.config.subtract_decoder_bias else inputs

    def _normalized(self, inputs: Tensor) -> Tensor:
        return normalized(inputs, self.config.input_normalization, self.config.input_normalization_eps)

    def _restored_scale(self, inputs: Tensor) -> Tensor | None:
        """What decoding multiplies dictionary rows by for each token, `(tokens, 1)`; `None` without a factor."""
        if self.config.input_normalization is None or self.config.is_transcoder:
            return None
        return restored_scale(inputs, self.config.input_normalization, self.config.input_normalization_eps)

    def _decode(self, latents: Tensor | SparseLatents, inputs: Tensor | None) -> Tensor:
        if isinstance(latents, SparseLatents):
            # As in training: sums of dictionary rows in float32, before the final rounding.
            wide = torch.promote_types(latents.values.dtype, torch.float32)
            decoded = sparse_decode(latents._replace(values=latents.values.to(wide)), self.W_dec) + self.b_dec
        else:
            decoded = latents @ self.W_dec + self.b_dec
        if self.config.input_normalization is not None and not self.config.is_transcoder:
            assert inputs is not None
            config = self.config
            return restored(decoded, inputs, config.input_normalization, config.input_normalization_eps)
        if not self.config.skip_connection:
            return decoded
        if inputs is None:
            raise DataError("decode: activations", "are needed for the skip connection")
        inputs = self._normalized(inputs)
        if self.training:
            return decoded + F.linear(inputs, self.W_skip)
        return decoded + in_blocks(inputs, lambda block: F.linear(block, self.W_skip))

    def _measure(
        self, encoding: Encoding, tokens: Tokens, target: Tensor, reconstruction: Tensor
    ) -> dict[str, Tensor]:
        """Return the loss and the other reported values, by the names of the fields in [`SAEOutput`]."""
        step = tokens.step
        tokens = tokens._replace(scale=fvu_scale(target, tokens.valid) if step is None else step.scale)
        error = squared_error(target, reconstruction, tokens.valid)
        loss = self._reconstruction_loss(encoding, tokens, target, reconstruction, error)
        penalties = self._penalties(encoding, tokens, target, reconstruction) if self.training else {}
        for name, penalty in penalties.items():
            raised = step.sparsity if step is not None and name == "sparsity_loss" else 1.0
            loss = loss + penalty.coefficient * raised * penalty.value
        with torch.no_grad():
            latents = encoding.latents
            active = (latents.values if isinstance(latents, SparseLatents) else latents) > 0
            num_tokens = None if step is None else step.num_tokens
            return {
                "loss": loss,
                "fvu": fvu(target, reconstruction, tokens.valid, scale=tokens.scale, error=error),
                "mse": mse(target, reconstruction, tokens.valid, num_tokens=num_tokens, error=error),
                "l0": active.sum() / max(tokens.step_tokens, 1),
                **{name: penalty.value for name, penalty in penalties.items()},
                "dead_fraction": self.dead_latents().float().mean(),
            }

    def _count_tokens(self, encoding: Encoding, tokens: Tokens) -> None:
        latents = encoding.latents
        if isinstance(latents, SparseLatents):
            fired = torch.zeros_like(self.tokens_since_fired, dtype=torch.bool)
            fired.index_fill_(0, latents.pattern.columns, True)
        else:
            fired = (latents > 0).any(0)
        if tokens.step is not None:
            # Nothing moves before the last part: what is dead is the same for all of them.
            whole = tokens.step.fired(fired)
            if whole is None:
                return
            fired = whole
        self.tokens_since_fired.add_(tokens.step_tokens).masked_fill_(fired, 0)

    def _error(self, tokens: Tokens, target: Tensor, rebuilt: Tensor, error: Tensor | None = None) -> Tensor:
        """Return the error of a reconstruction as `config.reconstruction_loss` measures it, a scalar.

        `error` is the squared error, where it is known already.
        """
        step = tokens.step
        if self.config.reconstruction_loss == "fvu":
            return fvu(target, rebuilt, tokens.valid, scale=tokens.scale, error=error)
        num_tokens = None if step is None else step.num_tokens
        return mse(target, rebuilt, tokens.valid, num_tokens=num_tokens, error=error)


def _dense(latents: Tensor | SparseLatents) -> Tensor:
    return latents.dense() if isinstance(latents, SparseLatents) else latents
