"""JumpReLU sparse autoencoder: a learned threshold for each latent, trained through a straight-through estimator.

Source: Rajamanoharan et al., arXiv 2407.14435, eqs. 4 and 9-12 (rectangle kernel); the quadratic penalty on a target
L0 is that of dictionary_learning and of Anthropic's updates. The paper trains the logarithm of the threshold; here the
threshold itself is the parameter, so that files hold what is compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from hf_mote.errors import ConfigError
from hf_mote.sae.configuration import SAEConfig
from hf_mote.sae.fields import check_positive
from hf_mote.sae.inputs import Tokens
from hf_mote.sae.modeling import SAEModel
from hf_mote.sae.output import Encoding, Penalty
from hf_mote.sae.weights import wide_dtype

if TYPE_CHECKING:
    from typing import Self

__all__ = ["JumpReLUSAEConfig", "JumpReLUSAEModel"]


class JumpReLUSAEConfig(SAEConfig):
    """Configuration of a JumpReLU sparse autoencoder.

    Args:
        l0_coefficient (`float`, *optional*, defaults to 1e-3):
            Of the sparsity loss: L0 itself, or (L0 / l0_target - 1)² if a target is given.
        l0_target (`float`, *optional*):
            Mean number of active latents per token to train towards, up to `num_latents`.
        bandwidth (`float`, *optional*, defaults to 1e-3):
            Width of the straight-through estimator's window around the threshold, in the units of the pre-activations.
        initial_threshold (`float`, *optional*, defaults to 1e-3):
            Where the thresholds start.
        kwargs: The fields of [`SAEConfig`].
    """

    model_type = "jumprelu_sae"

    l0_coefficient: float = 1e-3
    l0_target: float | None = None
    bandwidth: float = 1e-3
    initial_threshold: float = 1e-3

    def check(self) -> None:
        """Check the fields; see [`SAEConfig.check`]."""
        super().check()
        check_positive(self, "l0_coefficient", "initial_threshold", zero=True)
        check_positive(self, "l0_target", "bandwidth")
        if self.l0_target is not None and self.l0_target > self.num_latents:
            where, what = f"{type(self).__name__}.l0_target", "more latents than there are"
            raise ConfigError(where, what, got=self.l0_target, expected=f"at most num_latents = {self.num_latents}")


class JumpReLUSAEModel(SAEModel):
    """latents = pre [pre > threshold] where pre = ReLU(W_enc (x - b_dec) + b_enc).

    Attributes:
        threshold (`torch.nn.Parameter` of shape `(num_latents,)`, float32 or wider):
            The gate is strict. Receives gradients through the estimator alone.
    """

    config: JumpReLUSAEConfig
    config_class = JumpReLUSAEConfig
    _float32_tensors = ("threshold",)

    def _add_tensors(self) -> None:
        self.threshold = nn.Parameter(torch.empty(self.config.num_latents, dtype=wide_dtype()))

    def _activate(self, preactivations: Tensor) -> Tensor:
        active = preactivations.relu()
        return active * (active > self.threshold)

    def _penalties(self, encoding: Encoding, tokens: Tokens, target: Tensor, rebuilt: Tensor) -> dict[str, Penalty]:
        count = max(tokens.step_tokens, 1)
        active, wanted, step = encoding.extra, self.config.l0_target, tokens.step
        if wanted is None or not tokens.step_tokens:
            return {"sparsity_loss": Penalty(active / count, self.config.l0_coefficient)}
        if step is None or step.total is None:
            return {"sparsity_loss": Penalty((active / count / wanted - 1).pow(2), self.config.l0_coefficient)}
        # The step's own value, and the gradient of this part of it; parts add up to both.
        off = (step.total / count / wanted - 1).detach()
        moving = 2 * off * (active - active.detach()) / count / wanted
        share = off.pow(2) / (step.num_parts * step.num_processes)
        return {"sparsity_loss": Penalty(share + moving, self.config.l0_coefficient)}

    def _total_of(self, tokens: Tokens) -> Tensor | None:
        if self.config.l0_target is None:
            return None
        active: Tensor = self._encode_for_training(tokens).extra
        return active

    def _encode_for_training(self, tokens: Tokens) -> Encoding:
        active = self._preactivations(self._centred(tokens.values)).relu()
        steps = _Step.apply(  # type: ignore[no-untyped-call]
            active, self.threshold, self.config.bandwidth
        )
        latents = _JumpReLU.apply(  # type: ignore[no-untyped-call]
            active, self.threshold, self.config.bandwidth
        )
        if tokens.valid is not None:
            steps, latents = steps * tokens.valid[:, None], latents * tokens.valid[:, None]
        return Encoding(latents, steps.sum())

    @torch.no_grad()
    def fold_scale(self, scale: float | Tensor, output_scale: float | Tensor | None = None) -> Self:
        """Make an SAE that was trained on `scale * x` one for `x`; see [`SAEModel.fold_scale`]."""
        super().fold_scale(scale, output_scale)
        if not isinstance(scale, Tensor) and not isinstance(output_scale, Tensor):
            # In the units of the pre-activations, too.
            self.config.bandwidth /= scale if output_scale is None else output_scale
        return self

    def _latent_tensors(self) -> list[Tensor]:
        return [*super()._latent_tensors(), self.threshold]

    def _scaled_tensors(self) -> list[Tensor]:
        return [*super()._scaled_tensors(), self.threshold]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.constant_(self.threshold, self.config.initial_threshold)


class _JumpReLU(torch.autograd.Function):
    """x [x > threshold], with the gradient of eq. 11 to the threshold."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(x, threshold)
        ctx.bandwidth = bandwidth
        return x * (x > threshold)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, threshold = ctx.saved_tensors
        inside = (x - threshold).abs() < ctx.bandwidth / 2
        to_threshold = -(threshold / ctx.bandwidth) * (inside * gradient).sum(0, dtype=threshold.dtype)
        return gradient * (x > threshold), to_threshold, None


class _Step(torch.autograd.Function):
    """[x > threshold], with the gradient of eq. 12 to the threshold and none to x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(x, threshold)
        ctx.bandwidth = bandwidth
        # Float32 at least, as steps are counted. A zero is not an active latent, even if a threshold fell below it.
        return (x > threshold.clamp(min=0)).to(torch.promote_types(x.dtype, torch.float32))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        x, threshold = ctx.saved_tensors
        inside = (x - threshold).abs() < ctx.bandwidth / 2
        return None, -(inside * gradient).sum(0, dtype=threshold.dtype) / ctx.bandwidth, None
