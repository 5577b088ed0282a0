"""What architectures share that select a budget of latents: TopK, BatchTopK, Matryoshka, Mutual and Feature Choice.

In training they select from the whole batch's pre-activations and go on with the selected entries alone: nothing of
tokens x latents is kept for backward, and neither decoder nor gradients do dense work (`sparse.py`). An auxiliary loss
gives latents that are dead, or rarer than Zipf's law has them, the residual to explain.
"""

from __future__ import annotations

from typing import ClassVar, Literal, overload

import torch
from torch import Tensor

from hf_mote.errors import ConfigError
from hf_mote.sae.configuration import SAEConfig
from hf_mote.sae.fields import check_positive
from hf_mote.sae.inputs import Tokens
from hf_mote.sae.kernels.by_token import SelectByToken
from hf_mote.sae.kernels.selectors import Selector
from hf_mote.sae.kernels.sparse import SparseLatents, sparse_decode, sparse_encode
from hf_mote.sae.losses import fvu
from hf_mote.sae.modeling import SAEModel
from hf_mote.sae.output import Encoding, Penalty

__all__ = ["SelectiveSAEConfig", "SelectiveSAEModel"]


class SelectiveSAEConfig(SAEConfig):
    """Fields of the architectures that select a budget of latents.

    Args:
        k (`int`, *optional*, defaults to 32):
            Most active latents per token; on average over a batch, where the selection looks across it.
        scale_latents_by_decoder_norm (`bool`, *optional*, defaults to `False`):
            Whether latents are selected and returned times the length of their dictionary row, and divided by it again
            on decoding. Without effect on a dictionary of unit rows.
        aux_loss (`"aux_k"`, *optional*, defaults to `"aux_k"`):
            Auxiliary loss on dead latents (Gao et al., arXiv 2406.04093, A.2), or `None`.
        aux_k (`int`, *optional*):
            Most latents per token in the auxiliary loss; half of `hidden_size` by default.
        aux_coefficient (`float`, *optional*, defaults to 1/32):
            Of the auxiliary loss.
        kwargs: The fields of [`SAEConfig`].
    """

    # Auxiliary losses that the architecture has.
    _aux_losses: ClassVar[tuple[str, ...]] = ("aux_k",)
    _needed = (*SAEConfig._needed, "k", "scale_latents_by_decoder_norm")

    k: int = 32
    scale_latents_by_decoder_norm: bool = False
    aux_loss: Literal["aux_k", "aux_zipf"] | None = "aux_k"
    aux_k: int | None = None
    aux_coefficient: float = 1 / 32

    def check(self) -> None:
        """Check the fields; see [`SAEConfig.check`]."""
        super().check()
        check_positive(self, "k", "aux_k")
        check_positive(self, "aux_coefficient", zero=True)
        if self.aux_loss not in (None, *self._aux_losses):
            raise ConfigError(
                f"{type(self).__name__}.aux_loss",
                "is not one of this architecture",
                got=repr(self.aux_loss),
                expected=f"None or one of {', '.join(map(repr, self._aux_losses))}",
            )
        for name in ("k", "aux_k"):
            value = getattr(self, name)
            if value is not None and value > self.num_latents:
                raise ConfigError(
                    f"{type(self).__name__}.{name}",
                    "more latents than there are",
                    got=value,
                    expected=f"at most num_latents = {self.num_latents}",
                )


class SelectiveSAEModel(SAEModel):
    """Base of the architectures that select; a subclass says how, in training and outside."""

    config: SelectiveSAEConfig
    _sparse_training = True

    def _selector(self, num_tokens: int, scale: Tensor | None) -> Selector:
        """Return what chooses the active latents of a training batch.

        Args:
            num_tokens (`int`): Tokens besides padding.
            scale (`torch.Tensor` of shape `(num_latents,)`, *optional*): What affinities are multiplied by.
        """
        raise NotImplementedError

    def _neglected(self) -> Tensor:
        """Return the latents that the auxiliary loss is for, bool `(num_latents,)`."""
        return self.dead_latents()

    def _scale(self) -> Tensor | None:
        """Lengths of the dictionary rows, where latents are scaled by them; `None` where not."""
        if not self.config.scale_latents_by_decoder_norm:
            return None
        norms: Tensor = torch.linalg.vector_norm(self.W_dec, dim=1)
        return norms

    @property
    def _compares_latents(self) -> bool:
        return not self.config.scale_latents_by_decoder_norm

    @property
    def _measures_rows(self) -> bool:
        return self.config.scale_latents_by_decoder_norm

    def _preactivations(self, inputs: Tensor) -> Tensor:
        preactivations, scale = super()._preactivations(inputs), self._scale()
        return preactivations if scale is None else preactivations * scale

    def _encode_for_training(self, tokens: Tokens) -> Encoding:
        scale = self._scale()
        # Decoding divides by the lengths again, so that no gradient flows through them.
        scale = None if scale is None else scale.detach()
        selectors = [self._selector(tokens.choice_tokens, scale)]
        if self.config.aux_loss is not None and bool((neglected := self._neglected()).any()):
            num = self.config.aux_k or max(self.config.hidden_size // 2, 1)
            selectors.append(SelectByToken(num, among=neglected))
        latents, *auxiliary = sparse_encode(
            tokens.values,
            self.W_enc,
            self.b_enc,
            selectors,
            pre_bias=self.b_dec if self.config.subtract_decoder_bias else None,
            valid=tokens.valid,
        )
        if scale is not None:
            latents = latents._replace(values=latents.values * scale[latents.pattern.columns])
        step = tokens.step
        budgets = self._step_budgets(tokens.choice_tokens)
        if budgets is not None and step is not None and step.shared and step.choose_globally:
            latents = latents.select(step.among_largest(latents, latents.values.detach(), budgets))
        return Encoding(latents, auxiliary[0] if auxiliary else None)

    def _step_budgets(self, num_tokens: int) -> Tensor | None:
        """Return how many entries so many tokens may have, of shape `(1,)` in all or `(num_latents,)` for each latent.

        `None` where tokens choose each by itself.
        """
        return None

    @overload
    def _unscaled(self, latents: Tensor) -> Tensor: ...

    @overload
    def _unscaled(self, latents: SparseLatents) -> SparseLatents: ...

    def _unscaled(self, latents: Tensor | SparseLatents) -> Tensor | SparseLatents:
        """Return latents divided by the lengths of their dictionary rows, where they are scaled by them."""
        scale = self._scale()
        if scale is None:
            return latents
        scale = torch.where(scale > 0, scale, 1.0)
        if isinstance(latents, SparseLatents):
            return latents._replace(values=latents.values / scale.detach()[latents.pattern.columns])
        return latents / scale

    def _decode(self, latents: Tensor | SparseLatents, inputs: Tensor | None) -> Tensor:
        return super()._decode(self._unscaled(latents), inputs)

    def _penalties(self, encoding: Encoding, tokens: Tokens, target: Tensor, rebuilt: Tensor) -> dict[str, Penalty]:
        if encoding.extra is None:
            return {}
        # The residual is a target, not a path for gradients; without b_dec, which explains the mean.
        error = target - rebuilt.detach()
        scale = None if tokens.step is None else tokens.step.scale_of(error, tokens.valid)
        loss = fvu(error, sparse_decode(encoding.extra, self.W_dec), tokens.valid, scale=scale)
        return {"aux_loss": Penalty(loss, self.config.aux_coefficient)}
