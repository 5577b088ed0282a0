"""BatchTopK sparse autoencoder: a batch keeps its k largest latents per token on average, a token as many as it needs.

Source: Bussmann et al., arXiv 2412.06410, section 3; inference by a threshold, eq. 5 (calibrated exactly here, or
followed in training).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hf_mote.sae.kernels.by_batch import SelectMutual
from hf_mote.sae.kernels.selectors import Selector
from hf_mote.sae.variants.bases.thresholded import ThresholdedSAEConfig, ThresholdedSAEModel

__all__ = ["BatchTopKSAEConfig", "BatchTopKSAEModel"]


class BatchTopKSAEConfig(ThresholdedSAEConfig):
    """Configuration of a BatchTopK sparse autoencoder; its fields are those of [`ThresholdedSAEConfig`]."""

    model_type = "batch_topk_sae"


class BatchTopKSAEModel(ThresholdedSAEModel):
    """Training: the k * tokens largest entries of ReLU(W_enc (x - b_dec) + b_enc); else those above one threshold."""

    config: BatchTopKSAEConfig
    config_class = BatchTopKSAEConfig

    def _selector(self, num_tokens: int, scale: Tensor | None) -> Selector:
        return SelectMutual(self.config.k * num_tokens, scale=scale)

    def _budgets(self, num_tokens: int) -> Tensor:
        return torch.tensor([self.config.k * num_tokens])
