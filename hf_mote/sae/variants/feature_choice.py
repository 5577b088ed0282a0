"""Feature Choice sparse autoencoder: every latent chooses the tokens it matches best, as many as its budget says.

Budgets are equal, or follow Zipf's law by rank; either way they add up to k times the tokens of the batch. Outside
training each latent is active above a threshold of its own.

Source: Ayonrinde, arXiv 2411.02124; integer budgets, ranks and thresholds are ours (see `budgets.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import initialization as init

from hf_mote.errors import DataError
from hf_mote.sae.fields import check_positive
from hf_mote.sae.inputs import Tokens
from hf_mote.sae.kernels.by_latent import SelectByLatent
from hf_mote.sae.kernels.selectors import Selector
from hf_mote.sae.variants.bases.budgets import uniform_budgets, zipf_budgets
from hf_mote.sae.variants.bases.zipfian import ZipfianSAEConfig, ZipfianSAEModel

__all__ = ["FeatureChoiceSAEConfig", "FeatureChoiceSAEModel"]


class FeatureChoiceSAEConfig(ZipfianSAEConfig):
    """Configuration of a Feature Choice sparse autoencoder.

    Args:
        budget (`"zipf"` or `"uniform"`, *optional*, defaults to `"zipf"`):
            How the matches of a batch are shared out: by the law of `zipf_exponent` and `zipf_offset`, or equally.
        min_budget (`int`, *optional*, defaults to 1):
            Least tokens of a batch for each latent. A batch needs at least `min_budget * num_latents / k` tokens.
        kwargs: The fields of [`ZipfianSAEConfig`].
    """

    model_type = "feature_choice_sae"

    budget: Literal["zipf", "uniform"] = "zipf"
    min_budget: int = 1

    def check(self) -> None:
        """Check the fields; see [`SAEConfig.check`]."""
        super().check()
        check_positive(self, "min_budget", zero=True)


class FeatureChoiceSAEModel(ZipfianSAEModel):
    """Training: for each latent its m_i largest tokens of ReLU(W_enc (x - b_dec) + b_enc); else above its threshold.

    Attributes:
        latent_rank (`torch.Tensor` of shape `(num_latents,)`, int64):
            Rank of each latent in the budgets, from 0; at first its index. See [`assign_ranks`].
    """

    config: FeatureChoiceSAEConfig
    latent_rank: Tensor
    config_class = FeatureChoiceSAEConfig
    _threshold_per_latent = True

    def _add_tensors(self) -> None:
        super()._add_tensors()
        self.register_buffer("latent_rank", torch.arange(self.config.num_latents))

    @torch.no_grad()
    def assign_ranks(self, densities: Tensor) -> None:
        """Give the larger budgets to the denser latents, ties to the lower index.

        Args:
            densities (`torch.Tensor` of shape `(num_latents,)`): For instance those of a Mutual Choice run.

        Raises:
            [`DataError`]: if the shape is wrong or a density is not finite.
        """
        densities = torch.as_tensor(densities)
        if densities.shape != self.latent_rank.shape or not bool(densities.isfinite().all()):
            raise DataError(
                "assign_ranks: densities",
                "not one finite number for each latent",
                got=tuple(densities.shape),
                expected=tuple(self.latent_rank.shape),
            )
        order = densities.to(self.latent_rank.device).sort(descending=True, stable=True).indices
        self.latent_rank[order] = torch.arange(len(order), device=order.device)

    def _require_trainable(self, tokens: Tokens) -> None:
        self._budgets_by_rank(tokens.choice_tokens)

    def _selector(self, num_tokens: int, scale: Tensor | None) -> Selector:
        return SelectByLatent(self._budgets(num_tokens).to(self.W_enc.device), scale=scale)

    def _budgets(self, num_tokens: int) -> Tensor:
        return self._budgets_by_rank(num_tokens)[self.latent_rank.cpu()]

    def _budgets_by_rank(self, num_tokens: int) -> Tensor:
        config = self.config
        if not num_tokens:
            return torch.zeros(config.num_latents, dtype=torch.long)
        return _by_rank(
            config.budget,
            config.num_latents,
            config.k * num_tokens,
            num_tokens,
            config.min_budget,
            config.zipf_exponent,
            config.zipf_offset,
        )

    def _wrong_tensors(self) -> Iterator[tuple[str, str]]:
        yield from super()._wrong_tensors()
        ranks = self.latent_rank
        if not ranks.is_meta and not torch.equal(ranks.sort().values, torch.arange(len(ranks), device=ranks.device)):
            yield "latent_rank", "does not hold each rank once"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.copy_(self.latent_rank, torch.arange(self.config.num_latents))


@lru_cache(maxsize=8)
def _by_rank(
    budget: str, num_latents: int, total: int, num_tokens: int, floor: int, exponent: float, offset: float
) -> Tensor:
    if budget == "uniform":
        return uniform_budgets(num_latents, total, cap=num_tokens, floor=floor)
    return zipf_budgets(num_latents, total, cap=num_tokens, floor=floor, exponent=exponent, offset=offset)
