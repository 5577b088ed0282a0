"""What the architectures share that select across a batch in training, and by thresholds outside of it."""

from __future__ import annotations

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
    from typing import Self

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
        threshold_steps (`torch.Tensor` of shape `()`, int64): Training steps it followed, with the present `k`.
        threshold_k (`torch.Tensor` of shape `()`, int64): The `k` that it is for; 0 if that is not known.
    """

    config: ThresholdedSAEConfig
    threshold: Tensor
    threshold_steps: Tensor
    threshold_k: Tensor
    _float32_tensors: tuple[str, ...] = ("threshold",)
    _threshold_per_latent = False
    _keys_to_ignore_on_load_missing = [r"tokens_since_fired", r"threshold_steps", r"threshold_k"]
    _needs: tuple[tuple[str, str], ...] = (("threshold", "threshold_k"),)

    def _add_tensors(self) -> None:
        shape = (self.config.num_latents,) if self._threshold_per_latent else ()
        self.register_buffer("threshold", torch.full(shape, torch.nan, dtype=wide_dtype()))
        self.register_buffer("threshold_steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("threshold_k", torch.zeros((), dtype=torch.long))

    def _budgets(self, num_tokens: int) -> Tensor:
        """Return how many entries each threshold lets through in so many tokens: int64 `(thresholds,)`, on the CPU."""
        raise NotImplementedError

    @property
    def is_calibrated(self) -> bool:
        """Whether the thresholds were set, by training or by [`calibrate_threshold`]."""
        return bool(self.threshold.isfinite().all())

    def _require_ready(self) -> None:
        _check_calibrated(type(self).__name__, self.threshold, self.threshold_k, self.config.k)

    def _activate(self, preactivations: Tensor) -> Tensor:
        active = preactivations.relu()
        # With a dimension, as a scalar would be rounded to the dtype that it is compared with.
        return active * (active > self.threshold.reshape(-1))

    def _follow(self, encoding: Encoding, tokens: Tokens) -> None:
        latents = encoding.latents
        if tokens.step_tokens and isinstance(latents, SparseLatents):
            observed = self._smallest_selected(latents, tokens)
            if self.threshold_k != self.config.k:
                # Thresholds of another budget tell nothing about this one's.
                self.threshold_steps.zero_()
                self.threshold_k.fill_(self.config.k)
            follow(self.threshold, self.threshold_steps, observed, self.config.threshold_decay)

    def _step_budgets(self, num_tokens: int) -> Tensor | None:
        return self._budgets(num_tokens)

    def _smallest_selected(self, latents: SparseLatents, tokens: Tokens) -> Tensor:
        """Return the thresholds of this step: the smallest selected entries.

        0 where the budget was not spent, infinite where there was none. Where processes choose each by itself, the
        mean of theirs.
        """
        step = tokens.step
        group = latents.pattern.columns if self._threshold_per_latent else torch.zeros_like(latents.pattern.columns)
        budgets = self._budgets(tokens.choice_tokens).to(group.device)
        smallest = torch.full(budgets.shape, torch.inf, dtype=self.threshold.dtype, device=group.device)
        smallest.scatter_reduce_(0, group, latents.values.to(smallest.dtype), "amin")
        counts = torch.bincount(group, minlength=len(budgets))
        if step is not None and step.choose_globally:
            smallest, counts = step.smallest(smallest), step.sum(counts)
        found = torch.where(counts >= budgets, smallest, 0.0)
        if step is not None and not step.choose_globally:
            known = found.isfinite() & (budgets > 0)
            seen = step.sum(known.to(found.dtype))
            found = torch.where(seen > 0, step.sum(torch.where(known, found, 0.0)) / seen, torch.inf)
        return found.reshape(self.threshold.shape)

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
                "calibrate_threshold: max_tokens", "must be a number of tokens", got=max_tokens, expected=expected
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
        self.threshold_k.fill_(self.config.k)
        return self

    @torch.no_grad()
    def fold_scale(self, scale: float | Tensor, output_scale: float | Tensor | None = None) -> Self:
        """Make an SAE that was trained on `scale * x` one for `x`; see [`SAEModel.fold_scale`]."""
        closed = self.threshold >= CLOSED
        super().fold_scale(scale, output_scale)
        if not isinstance(scale, Tensor) and not isinstance(output_scale, Tensor):
            self.threshold.div_(scale if output_scale is None else output_scale).masked_fill_(closed, CLOSED)
        return self

    @torch.no_grad()
    def fold_decoder_norm(self) -> Self:
        """Set the rows of `W_dec` to unit length and keep reconstructions; see [`SAEModel.fold_decoder_norm`]."""
        closed = self.threshold >= CLOSED
        super().fold_decoder_norm()
        self.threshold.masked_fill_(closed, CLOSED)
        return self

    @property
    def _compares_latents(self) -> bool:
        # A latent with a threshold of its own is compared with nothing else, in training with itself alone.
        return super()._compares_latents and not self._threshold_per_latent

    def _latent_tensors(self) -> list[Tensor]:
        # Scaled latents are compared in the unit that folding gives them.
        own = [] if self.config.scale_latents_by_decoder_norm else [self.threshold]
        return [*super()._latent_tensors(), *own]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.constant_(self.threshold, torch.nan)
            init.zeros_(self.threshold_steps)
            init.zeros_(self.threshold_k)


# Runs as it is, once, while a graph is compiled; where it raises there is no graph, and the next call tries again.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _check_calibrated(name: str, threshold: Tensor, threshold_k: Tensor, k: int) -> bool:
    if not bool(threshold.isfinite().all()):
        raise UnsupportedError(
            name,
            "has no threshold yet, and outside training it must not look across the batch",
            fix="Train it, or call calibrate_threshold(activations).",
        )
    if int(threshold_k) not in (0, k):
        raise UnsupportedError(
            f"{name}.config.k",
            "is another than the thresholds are for",
            got=k,
            expected=int(threshold_k),
            fix="Call calibrate_threshold(activations) after k was changed, or train on.",
        )
    return True
