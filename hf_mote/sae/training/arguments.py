"""`SAETrainingArguments`: the arguments of `SAETrainer`, with their checks."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import TrainingArguments

from hf_mote.errors import ConfigError, is_finite
from hf_mote.sae.training.start import INITS

__all__ = ["SAETrainingArguments"]


@dataclass
class SAETrainingArguments(TrainingArguments):
    """Arguments of [`SAETrainer`]: those of `TrainingArguments`, a few with other defaults, and these.

    Args:
        init (`"mean"`, `"geometric_median"`, `"zero"` or `"none"`, *optional*, defaults to `"mean"`):
            Where `b_dec` of a new SAE starts; the encoder's scale is fitted with it. `"none"` does not change the
            SAE; trained SAEs are never changed.
        choice (`"global"` or `"process"`, *optional*, defaults to `"global"`):
            Whether architectures that choose across tokens choose among those of all processes, or of each.
        k_start (`int`, *optional*):
            First value of `k`, which changes to `config.k` in equal steps over the first `k_steps`.
        k_steps (`int`, *optional*, defaults to 0): Steps until `k` is `config.k`.
        sparsity_steps (`int`, *optional*, defaults to 0):
            Steps over which the coefficient of the sparsity penalty rises from 0.
        ce_coefficient (`float`, *optional*, defaults to 0.0):
            Coefficient of the cross entropy of the model with the SAE spliced in, in nats, besides the
            reconstruction's error. Needs a stream of `whole_sequences`, as does `kl_coefficient`.
        kl_coefficient (`float`, *optional*, defaults to 0.0):
            Coefficient of the KL divergence of the spliced model's predictions from the plain model's.
        per_device_train_batch_size (`int`, *optional*, defaults to 2048):
            Tokens of a micro-batch. An [`ActivationStream`] has its own `batch_size`, which replaces it.
        learning_rate (`float`, *optional*, defaults to 1e-3): Of Adam.
        num_train_epochs (`float`, *optional*, defaults to 1.0): Passes over the activations.
        kwargs: The other fields of `TrainingArguments`.
    """

    init: str = "mean"
    choice: str = "global"
    k_start: int | None = None
    k_steps: int = 0
    sparsity_steps: int = 0
    ce_coefficient: float = 0.0
    kl_coefficient: float = 0.0
    per_device_train_batch_size: int = 2048
    per_device_eval_batch_size: int = 2048
    learning_rate: float = 1e-3
    num_train_epochs: float = 1.0
    remove_unused_columns: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        for name, choices in (("init", (*INITS, "none")), ("choice", ("global", "process"))):
            value = getattr(self, name)
            if value not in choices:
                expected = ", ".join(map(repr, choices))
                raise ConfigError(f"SAETrainingArguments.{name}", "unknown name", got=repr(value), expected=expected)
        for name, least in (("k_steps", 0), ("sparsity_steps", 0), ("k_start", 1)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                expected = f"a whole number, {least} or more"
                raise ConfigError(f"SAETrainingArguments.{name}", "out of range", got=value, expected=expected)
        for name in ("ce_coefficient", "kl_coefficient"):
            value = getattr(self, name)
            if not is_finite(value) or value < 0:
                raise ConfigError(f"SAETrainingArguments.{name}", "out of range", got=value, expected="0 or more")
        if (self.k_start is None) != (self.k_steps == 0):
            raise ConfigError(
                "SAETrainingArguments.k_steps", "and k_start are given together", got=f"{self.k_steps}, {self.k_start}"
            )
