"""What Mutual and Feature Choice share: how dense each latent is, and how dense Zipf's law would have it.

Densities are followed in training, decayed by tokens and not by steps. `aux_zipf` gives the residual to latents below
their share of the law, dead ones among them, and is `aux_k` in the limit.

Source: after Ayonrinde, arXiv 2411.02124, whose public text names `aux_zipf_loss` as a generalisation of `aux_k` but
does not define it: the definition here is a reconstruction of ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor, nn
from transformers import initialization as init

from hf_mote.errors import ConfigError
from hf_mote.sae.fields import check_positive
from hf_mote.sae.inputs import Tokens
from hf_mote.sae.kernels.sparse import SparseLatents
from hf_mote.sae.output import Encoding
from hf_mote.sae.variants.bases.budgets import zipf_budgets
from hf_mote.sae.variants.bases.thresholded import ThresholdedSAEConfig, ThresholdedSAEModel
from hf_mote.sae.weights import wide_dtype

__all__ = ["ZipfianSAEConfig", "ZipfianSAEModel"]

# Tokens that the law's densities are computed for: many, so that rounding to whole tokens does not show.
_LAW_TOKENS = 2**20
# Laws beyond are a single latent, and overflow.
_STEEPEST = 20


class ZipfianSAEConfig(ThresholdedSAEConfig):
    """Fields of Mutual and Feature Choice.

    Args:
        zipf_exponent (`float`, *optional*, defaults to 0.8):
            Alpha of the Zipf-Mandelbrot law that densities are held to; see
            `hf_mote.sae.variants.bases.budgets.fit_zipf`.
        zipf_offset (`float`, *optional*, defaults to 0.0):
            Beta of that law.
        aux_loss (`"aux_k"` or `"aux_zipf"`, *optional*, defaults to `"aux_k"`):
            Auxiliary loss on dead latents, or on those below their share of the law; `None` for neither.
        aux_zipf_share (`float`, *optional*, defaults to 0.5):
            In `aux_zipf` a latent is neglected below this share, 0 to 1, of the law's density at its rank. At 0 it is
            neglected when it is dead, which is `aux_k`.
        density_window (`int`, *optional*, defaults to 1,000,000):
            Tokens after which an observation has lost 63 % of its weight. `aux_zipf` waits for as many.
        kwargs: The fields of [`ThresholdedSAEConfig`].
    """

    _aux_losses = ("aux_k", "aux_zipf")

    zipf_exponent: float = 0.8
    zipf_offset: float = 0.0
    aux_zipf_share: float = 0.5
    density_window: int = 1_000_000

    def check(self) -> None:
        """Check the fields; see [`SAEConfig.check`]."""
        super().check()
        check_positive(self, "zipf_exponent", "zipf_offset", "aux_zipf_share", zero=True)
        check_positive(self, "density_window")
        if self.zipf_exponent > _STEEPEST:
            raise ConfigError(
                f"{type(self).__name__}.zipf_exponent",
                "out of range",
                got=self.zipf_exponent,
                expected=f"0 to {_STEEPEST}",
            )
        if self.aux_zipf_share > 1:
            raise ConfigError(
                f"{type(self).__name__}.aux_zipf_share", "out of range", got=self.aux_zipf_share, expected="0 to 1"
            )


class ZipfianSAEModel(ThresholdedSAEModel):
    """Base of Mutual and Feature Choice.

    Attributes:
        density (`torch.Tensor` of shape `(num_latents,)`, float32 or wider):
            Share of recent training tokens on which each latent was active.
        density_tokens (`torch.Tensor` of shape `()`, int64): Training tokens it was computed from.
    """

    config: ZipfianSAEConfig
    density: Tensor
    density_tokens: Tensor
    _float32_tensors = ("threshold", "density")
    _keys_to_ignore_on_load_missing = [
        *(ThresholdedSAEModel._keys_to_ignore_on_load_missing),
        r"density",
        r"density_tokens",
    ]
    _needs = (*ThresholdedSAEModel._needs, ("density", "density_tokens"), ("density_tokens", "density"))

    def _add_tensors(self) -> None:
        super()._add_tensors()
        self.register_buffer("density", torch.zeros(self.config.num_latents, dtype=wide_dtype()))
        self.register_buffer("density_tokens", torch.zeros((), dtype=torch.long))

    def neglected_latents(self) -> Tensor:
        """Return which latents are dead, or rarer than `aux_zipf_share` of Zipf's law at their rank.

        Bool `(num_latents,)`. With a share of 0, or before `density_window` training tokens, only the dead ones.
        """
        config = self.config
        law = _law(config.num_latents, config.k, config.zipf_exponent, config.zipf_offset).to(self.density.device)
        order = self.density.sort(descending=True, stable=True).indices
        wanted = torch.empty_like(self.density).scatter_(0, order, law.to(self.density.dtype))
        known = self.density_tokens >= config.density_window
        return self.dead_latents() | ((self.density < config.aux_zipf_share * wanted) & known)

    def _neglected(self) -> Tensor:
        return self.neglected_latents() if self.config.aux_loss == "aux_zipf" else self.dead_latents()

    def _follow(self, encoding: Encoding, tokens: Tokens) -> None:
        super()._follow(encoding, tokens)
        count = tokens.step_tokens
        if count and isinstance(encoding.latents, SparseLatents):
            fired = encoding.latents.pattern.latent_counts()
            observed = (fired if tokens.step is None else tokens.step.sum(fired)) / count
            self.density_tokens.add_(count)
            forgotten = 1 - torch.exp(torch.tensor(-count / self.config.density_window))
            weight = (count / self.density_tokens).clamp(min=forgotten.to(self.density.device)).to(self.density.dtype)
            self.density.lerp_(observed.to(self.density.dtype), weight)

    def _wrong_tensors(self) -> Iterator[tuple[str, str]]:
        yield from super()._wrong_tensors()
        if self.density.is_meta:
            return
        if bool((self.density < 0).any() or (self.density > 1).any()):
            found = f"{float(self.density.min()):.9g} to {float(self.density.max()):.9g}"
            yield "density", f"must be shares of tokens, from 0 to 1, and holds {found}"
        if bool(self.density.any()) and not int(self.density_tokens):
            yield "density_tokens", "must be the tokens that the densities are of, and is 0"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.zeros_(self.density)
            init.zeros_(self.density_tokens)


@lru_cache(maxsize=8)
def _law(num_latents: int, k: int, exponent: float, offset: float) -> Tensor:
    """Densities by rank that add up to k, float64 `(num_latents,)`."""
    counts = zipf_budgets(num_latents, k * _LAW_TOKENS, cap=_LAW_TOKENS, floor=0, exponent=exponent, offset=offset)
    return counts.double() / _LAW_TOKENS
