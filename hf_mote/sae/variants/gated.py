"""Gated sparse autoencoder: one path says which latents are active, another how much.

Source: Rajamanoharan et al., arXiv 2404.16014, eqs. 6-9; the L1 penalty weighted by the dictionary's lengths, as in
the other architectures here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from hf_mote.sae.configuration import SAEConfig
from hf_mote.sae.fields import check_positive
from hf_mote.sae.inputs import Tokens
from hf_mote.sae.losses import weighted_l1
from hf_mote.sae.modeling import SAEModel
from hf_mote.sae.output import Encoding, Penalty

__all__ = ["GatedSAEConfig", "GatedSAEModel"]


class GatedSAEConfig(SAEConfig):
    """Configuration of a gated sparse autoencoder.

    Args:
        l1_coefficient (`float`, *optional*, defaults to 1e-3):
            Of the L1 norm of the gate's positive pre-activations, each times the length of its dictionary row.
        aux_coefficient (`float`, *optional*, defaults to 1.0):
            Of the reconstruction from the gate's positive pre-activations by a frozen decoder, which trains the gate.
        kwargs: The fields of [`SAEConfig`].
    """

    model_type = "gated_sae"

    l1_coefficient: float = 1e-3
    aux_coefficient: float = 1.0

    def check(self) -> None:
        """Check the fields; see [`SAEConfig.check`]."""
        super().check()
        check_positive(self, "l1_coefficient", "aux_coefficient", zero=True)


class GatedSAEModel(SAEModel):
    """latents = [gate > 0] ReLU(magnitude), gate = u + b_enc, magnitude = exp(r_mag) u + b_mag, u = W_enc (x - b_dec).

    Attributes:
        b_enc (`torch.nn.Parameter` of shape `(num_latents,)`): Bias of the gate.
        b_mag (`torch.nn.Parameter` of shape `(num_latents,)`): Bias of the magnitude.
        r_mag (`torch.nn.Parameter` of shape `(num_latents,)`): Logarithm of the magnitude's scale.
    """

    config: GatedSAEConfig
    config_class = GatedSAEConfig

    def _add_tensors(self) -> None:
        self.b_mag = nn.Parameter(torch.empty(self.config.num_latents))
        self.r_mag = nn.Parameter(torch.empty(self.config.num_latents))

    def _preactivations(self, inputs: Tensor) -> Tensor:
        return F.linear(inputs, self.W_enc)

    def _activate(self, preactivations: Tensor) -> Tensor:
        magnitude = (preactivations * self.r_mag.exp() + self.b_mag).relu()
        return magnitude * (preactivations + self.b_enc > 0)

    def _encode_for_training(self, tokens: Tokens) -> Encoding:
        preactivations = self._preactivations(self._centred(tokens.values))
        latents, gate = self._activate(preactivations), (preactivations + self.b_enc).relu()
        if tokens.valid is not None:
            latents, gate = latents * tokens.valid[:, None], gate * tokens.valid[:, None]
        return Encoding(latents, gate)

    def _penalties(self, encoding: Encoding, tokens: Tokens, target: Tensor, rebuilt: Tensor) -> dict[str, Penalty]:
        gate = encoding.extra
        l1 = weighted_l1(gate, self.W_dec.norm(dim=1), max(tokens.step_tokens, 1))
        # The decoder is frozen here: the term trains the gate alone (eq. 8).
        skip = F.linear(tokens.values, self.W_skip).detach() if self.config.skip_connection else 0
        by_gate = gate @ self.W_dec.detach() + self.b_dec.detach() + skip
        aux = self._error(tokens, target, by_gate)
        return {
            "sparsity_loss": Penalty(l1, self.config.l1_coefficient),
            "aux_loss": Penalty(aux, self.config.aux_coefficient),
        }

    def _encoder_biases(self) -> list[Tensor]:
        return [*super()._encoder_biases(), self.b_mag]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.zeros_(self.b_mag)
            init.zeros_(self.r_mag)
