"""TopK sparse autoencoder: each token keeps its k largest latents (token choice).

Source: Gao et al., arXiv 2406.04093, section 2.3; the ReLU after the choice is theirs too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hf_mote.sae.kernels.by_token import SelectByToken
from hf_mote.sae.kernels.largest import largest_in_rows
from hf_mote.sae.kernels.selectors import Selector
from hf_mote.sae.variants.bases.selective import SelectiveSAEConfig, SelectiveSAEModel

__all__ = ["TopKSAEConfig", "TopKSAEModel"]


class TopKSAEConfig(SelectiveSAEConfig):
    """Configuration of a TopK sparse autoencoder; its fields are those of [`SelectiveSAEConfig`]."""

    model_type = "topk_sae"


class TopKSAEModel(SelectiveSAEModel):
    """latents = the k largest of ReLU(W_enc (x - b_dec) + b_enc), for each token; of equal ones, the first."""

    config: TopKSAEConfig
    config_class = TopKSAEConfig

    def _selector(self, num_tokens: int, scale: Tensor | None) -> Selector:
        return SelectByToken(self.config.k, scale=scale)

    def _activate(self, preactivations: Tensor) -> Tensor:
        largest = largest_in_rows(preactivations.detach().contiguous(), self.config.k)
        chosen = torch.zeros_like(preactivations, dtype=torch.bool).scatter(1, largest, True)
        return preactivations.relu() * chosen
