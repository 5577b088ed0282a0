"""Mutual Choice sparse autoencoder: the budget of a batch goes to its largest affinities, of any token and latent.

It selects as BatchTopK does; what is its own is the auxiliary loss by Zipf's law.

Source: Ayonrinde, arXiv 2411.02124; what the public text leaves open is ours (see `zipfian.py` and `budgets.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hf_mote.sae.kernels.by_batch import SelectMutual
from hf_mote.sae.kernels.selectors import Selector
from hf_mote.sae.variants.bases.zipfian import ZipfianSAEConfig, ZipfianSAEModel

__all__ = ["MutualChoiceSAEConfig", "MutualChoiceSAEModel"]


class MutualChoiceSAEConfig(ZipfianSAEConfig):
    """Configuration of a Mutual Choice sparse autoencoder; its fields are those of [`ZipfianSAEConfig`]."""

    model_type = "mutual_choice_sae"


class MutualChoiceSAEModel(ZipfianSAEModel):
    """Training: the k * tokens largest entries of ReLU(W_enc (x - b_dec) + b_enc); else those above one threshold."""

    config: MutualChoiceSAEConfig
    config_class = MutualChoiceSAEConfig

    def _selector(self, num_tokens: int, scale: Tensor | None) -> Selector:
        return SelectMutual(self.config.k * num_tokens, scale=scale)

    def _budgets(self, num_tokens: int) -> Tensor:
        return torch.tensor([self.config.k * num_tokens])
