"""What the architectures share that select across a batch in training, and by thresholds outside of it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from hf_mote.errors import ConfigError, DataError, UnsupportedError
from hf_mote.sae.fields import check_positive
from hf_mote.sae.inputs import Tokens, in_blocks, stream
from hf_mote.sae.kernels.sparse import SparseLatents
from hf_mote.sae.output import Encoding
from hf_mote.sae.variants.bases.selective import SelectiveSAEConfig, SelectiveSAEModel
from hf_mote.sae.variants.bases.thresholds import CLOSED, ThresholdSearch, follow
from hf_mote.sae.weights import wide_dtype

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ThresholdedSAEConfig", "ThresholdedSAEModel"]

# Tokens whose affinities are in memory at once while thresholds are calibrated; a multiple of the block size.
_CALIBRATION_ROWS = 1024


class ThresholdedSAEConfig(SelectiveSAEConfig):
    """Fields of the architectures that select across a batch.

    Args:
        threshold_decay (`float`, *optional*, defaults to 0.99):
            Share of the running threshold that stays in each training step, 0 up to below 1.
        kwargs: The fields of [`SelectiveSAEConfig`].
    """

    threshold_decay: float = 0.99

    def check(self) -> None:
        """Check the fields; see [`SAEConfig.check`]."""
        super().check()
        check_positive(self, "threshold_decay", zero=True)
        if self.threshold_decay >= 1:
            raise ConfigError(
                f"{type(self).__name__}.threshold_decay", "out of range", got=self.threshold_decay, expected="below 1"
            )


class ThresholdedSAEModel(SelectiveSAEModel):
    """Base of the architectures that select across a batch: outside training a latent is active above its threshold.

    Attributes:
        threshold (`torch.Tensor`, float32 or wider, of shape `()` or `(num_latents,)`):
            NaN until it is followed in training or calibrated.
        threshold_steps (`torch.Tensor` of shape `()`, int64): Training steps it followed.
    """

    config: ThresholdedSAEConfig
    threshold: Tensor
    threshold_steps: Tensor
    _float32_tensors: tuple[str, ...] = ("threshold",)
    _threshold_per_latent = False
    _keys_to_ignore_on_load_missing = [r"tokens_since_fired", r"threshold_steps"]

    def _add_tensors(self) -> None:
        shape = (self.config.num_latents,) if self._threshold_per_latent else ()
        self.register_buffer("threshold", torch.full(shape, torch.nan, dtype=wide_dtype()))
        self.register_buffer("threshold_steps", torch.zeros((), dtype=torch.long))

    @abstractmethod
    def _budgets(self, num_tokens: int) -> Tensor:
        """Return how many entries each threshold lets through in so many tokens: int64 `(thresholds,)`, on the CPU."""

    @property
    def is_calibrated(self) -> bool:
        """Whether the thresholds were set, by training or by [`calibrate_threshold`]."""
        return bool(self.threshold.isfinite().all())

    def _require_ready(self) -> None:
        _check_calibrated(type(self).__name__, self.threshold)

    def _activate(self, preactivations: Tensor) -> Tensor:
        active = preactivations.relu()
        # With a dimension, as a scalar would be rounded to the dtype that it is compared with.
        return active * (active > self.threshold.reshape(-1))

    def _follow(self, encoding: Encoding, tokens: Tokens) -> None:
        latents = encoding.latents
        if tokens.num_tokens and isinstance(latents, SparseLatents):
            observed = self._smallest_selected(latents, tokens.num_tokens)
            follow(self.threshold, self.threshold_steps, observed, self.config.threshold_decay)

    def _smallest_selected(self, latents: SparseLatents, num_tokens: int) -> Tensor:
        """Return the thresholds of this batch: the smallest selected entries.

        0 where the budget was not spent, infinite where there was none.
        """
        group = latents.pattern.columns if self._threshold_per_latent else torch.zeros_like(latents.pattern.columns)
        budgets = self._budgets(num_tokens).to(group.device)
        smallest = torch.full(budgets.shape, torch.inf, dtype=self.threshold.dtype, device=group.device)
        smallest.scatter_reduce_(0, group, latents.values.to(smallest.dtype), "amin")
        spent = torch.bincount(group, minlength=len(budgets)) >= budgets
        return torch.where(spent, smallest, 0.0).reshape(self.threshold.shape)

    @torch.no_grad()
    def calibrate_threshold(self, activations: Tensor | Iterable[Any], *, max_tokens: int = 65_536) -> Self:
        """Set the thresholds so that on these activations exactly as many latents are active as the budget says.

        The budget is what training would spend if all tokens were one batch; fewer are active only where entries are
        equal to a threshold or not positive. Memory grows with k times `max_tokens`, not with the latents.

        Args:
            activations (`torch.Tensor` of shape `(..., hidden_size)`, mapping, or iterable of both):
                One batch or several: a tensor, or a mapping with `"activations"` and perhaps `"attention_mask"`.
            max_tokens (`int`, *optional*, defaults to 65,536):
                Only so many tokens are taken from an iterable, or all of a tensor.

        Returns:
            The model itself.

        Raises:
            [`DataError`]: if there are no tokens, or a batch is malformed; the thresholds stay as they were.
            [`ConfigError`]: if the budget of so few tokens cannot be met.
        """
        nothing = DataError("calibrate_threshold: activations", "hold no tokens")
        if isinstance(activations, Tensor):
            max_tokens = activations.shape[:-1].numel()
            if not max_tokens:
                raise nothing
        if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1:
            expected = "an integer, 1 or more"
            raise DataError(
                "calibrate_threshold: max_tokens", "no number of tokens", got=max_tokens, expected=expected
            )
        search = ThresholdSearch(self._budgets, max_tokens)
        taken = 0
        for batch, mask in stream(activations):
            tokens = self._tokens(batch, mask)
            values = tokens.values if tokens.valid is None else tokens.values[tokens.valid]
            values = values[: max_tokens - taken]
            for block in self._centred(values).split(_CALIBRATION_ROWS):
                # The very numbers that inference compares.
                search.add(in_blocks(block, lambda rows: self._preactivations(rows).relu()))
            taken += len(values)
            if taken >= max_tokens:
                break
        if not taken:
            raise nothing
        self.threshold.copy_(search.finish().reshape(self.threshold.shape))
        return self

    @torch.no_grad()
    def fold_scale(self, scale: float) -> Self:
        """Make an SAE that was trained on `scale * x` one for `x`; see [`SAEModel.fold_scale`]."""
        closed = self.threshold >= CLOSED
        super().fold_scale(scale)
        self.threshold.div_(scale).masked_fill_(closed, CLOSED)
        return self

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.constant_(self.threshold, torch.nan)
            init.zeros_(self.threshold_steps)


# Runs as it is, once, while a graph is compiled; where it raises there is no graph, and the next call tries again.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _check_calibrated(name: str, threshold: Tensor) -> bool:
    if not bool(threshold.isfinite().all()):
        raise UnsupportedError(
            name,
            "has no threshold yet, and outside training it must not look across the batch",
            fix="Train it, or call calibrate_threshold(activations).",
        )
    return True
