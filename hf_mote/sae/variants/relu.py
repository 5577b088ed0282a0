"""ReLU sparse autoencoder: sparsity by an L1 penalty.

Source: Bricken et al., Towards Monosemanticity, 2023; the penalty weighted by the dictionary's lengths: Conerly et
al., Circuits Updates April 2024.
"""

from __future__ import annotations

from torch import Tensor

from hf_mote.sae.configuration import SAEConfig
from hf_mote.sae.fields import check_positive
from hf_mote.sae.inputs import Tokens
from hf_mote.sae.losses import weighted_l1
from hf_mote.sae.modeling import SAEModel
from hf_mote.sae.output import Encoding, Penalty

__all__ = ["ReLUSAEConfig", "ReLUSAEModel"]


class ReLUSAEConfig(SAEConfig):
    """Configuration of a ReLU sparse autoencoder.

    Args:
        l1_coefficient (`float`, *optional*, defaults to 1e-3):
            Of the L1 norm of the latents, each times the length of its dictionary row, mean over tokens.
        kwargs: The fields of [`SAEConfig`].
    """

    model_type = "relu_sae"

    l1_coefficient: float = 1e-3

    def check(self) -> None:
        """Check the fields; see [`SAEConfig.check`]."""
        super().check()
        check_positive(self, "l1_coefficient", zero=True)


class ReLUSAEModel(SAEModel):
    """latents = ReLU(W_enc (x - b_dec) + b_enc); loss = reconstruction + l1_coefficient * L1."""

    config: ReLUSAEConfig
    config_class = ReLUSAEConfig

    def _activate(self, preactivations: Tensor) -> Tensor:
        return preactivations.relu()

    def _penalties(self, encoding: Encoding, tokens: Tokens, target: Tensor, rebuilt: Tensor) -> dict[str, Penalty]:
        assert isinstance(encoding.latents, Tensor)
        l1 = weighted_l1(encoding.latents, self.W_dec.norm(dim=1), max(tokens.step_tokens, 1))
        return {"sparsity_loss": Penalty(l1, self.config.l1_coefficient)}
