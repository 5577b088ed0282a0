"""Matryoshka sparse autoencoder: BatchTopK whose first latents must reconstruct on their own, prefix by prefix.

Source: Bussmann et al., arXiv 2503.17547, eqs. 4-6: selection over the whole dictionary, the loss over nested
prefixes. The losses are averaged over prefixes here, so that they compare with those of the other architectures.
"""

from __future__ import annotations

from itertools import accumulate, pairwise

from torch import Tensor

from hf_mote.errors import ConfigError
from hf_mote.sae.inputs import Tokens
from hf_mote.sae.kernels.sparse import SparseLatents, sparse_decode
from hf_mote.sae.output import Encoding
from hf_mote.sae.variants.batch_topk import BatchTopKSAEConfig, BatchTopKSAEModel

__all__ = ["MatryoshkaSAEConfig", "MatryoshkaSAEModel"]


class MatryoshkaSAEConfig(BatchTopKSAEConfig):
    """Configuration of a Matryoshka sparse autoencoder.

    Args:
        group_sizes (`list[int]`, *optional*):
            Sizes of the groups of latents, in order; the prefixes end where groups do. They add up to `num_latents`.
            By default a sixteenth, an eighth, a quarter and the rest.
        kwargs: The fields of [`ThresholdedSAEConfig`].
    """

    model_type = "matryoshka_sae"

    group_sizes: list[int] | None = None

    def check(self) -> None:
        """Check the fields; see [`SAEConfig.check`]."""
        super().check()
        if self.group_sizes is None:
            parts = [max(self.num_latents // share, 1) for share in (16, 8, 4)]
            rest = self.num_latents - sum(parts)
            self.group_sizes = [*parts, rest] if rest > 0 else [self.num_latents]
        where = f"{type(self).__name__}.group_sizes"
        if not self.group_sizes or min(self.group_sizes) < 1:
            raise ConfigError(where, "every group needs a latent", got=self.group_sizes)
        if sum(self.group_sizes) != self.num_latents:
            raise ConfigError(
                where, "do not add up", got=sum(self.group_sizes), expected=f"num_latents = {self.num_latents}"
            )


class MatryoshkaSAEModel(BatchTopKSAEModel):
    """BatchTopK with the reconstruction loss averaged over the prefixes of `config.group_sizes`."""

    config: MatryoshkaSAEConfig
    config_class = MatryoshkaSAEConfig

    def _reconstruction_loss(
        self, encoding: Encoding, tokens: Tokens, target: Tensor, rebuilt: Tensor, error: Tensor
    ) -> Tensor:
        latents = self._unscaled(encoding.latents)
        sizes = self.config.group_sizes or []
        # From the whole down: what a prefix lacks is taken off, so that the last prefix is the reconstruction itself.
        prefix, total = rebuilt, self._error(tokens, target, rebuilt, error)
        for start, end in reversed(list(pairwise(accumulate(sizes, initial=0)))[1:]):
            prefix = prefix - self._decode_group(latents, start, end)
            total = total + self._error(tokens, target, prefix)
        return total / len(sizes)

    def _decode_group(self, latents: Tensor | SparseLatents, start: int, end: int) -> Tensor:
        if isinstance(latents, SparseLatents):
            columns = latents.pattern.columns
            return sparse_decode(latents.select((columns >= start) & (columns < end)), self.W_dec)
        decoded: Tensor = latents[:, start:end] @ self.W_dec[start:end]
        return decoded
