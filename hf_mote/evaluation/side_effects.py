"""Effects of a config on other text: divergence of the predictions, and perplexity."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mote.errors import DataError, is_finite, whole
from hf_mote.evaluation.changes import Change, attached, with_fields
from hf_mote.generation.decoding import pad_token_of
from hf_mote.generation.prompts import padded
from hf_mote.generation.randomness import without_randomness
from hf_mote.mote.config import CHOICES, MoTEConfig
from hf_mote.progress import progress_bar
from hf_mote.routing.sites.routed_model import RoutedModel
from hf_mote.runs.folder import RunFolder

__all__ = [
    "SideEffects",
    "encoded_texts",
    "measure_side_effects",
    "on_plain_text",
    "perplexity_of",
    "perplexity_text",
    "side_effects",
]

_NOT_IN_PLAIN_TEXT = ("generation", "thinking", "answer")

LARGEST_LOSS = math.log(sys.float_info.max)  # nats per token whose perplexity is still a number: 709.8


@dataclass(frozen=True)
class SideEffects:
    """How predictions of plain text change.

    Attributes:
        kl (`float`, *optional*):
            Mean of KL(untouched || with the config) over predicted tokens, in nats, 0 or more; `None` for
            an engine that returns the probabilities of the text's own tokens only.
        perplexity_before (`float`, *optional*):
            Of the texts, in the untouched model; `None` where it is above the largest float, 1.8e308: a mean loss of
            more than 709.8 nats per token, or a token of the text with probability 0.
        perplexity_after (`float`, *optional*): With the config.
        num_tokens (`int`): Predicted tokens.
        scope (`str`, *optional*, defaults to `"all"`):
            The scope that the config was measured with; see [`side_effects`].
    """

    kl: float | None
    perplexity_before: float | None
    perplexity_after: float | None
    num_tokens: int
    scope: str = "all"

    def __post_init__(self) -> None:
        numbers = (self.kl, self.perplexity_before, self.perplexity_after)
        sane = isinstance(self.num_tokens, int) and not isinstance(self.num_tokens, bool) and self.num_tokens > 0
        for number, least in zip(numbers, (0, 1, 1), strict=True):
            if number is not None:
                sane = sane and is_finite(number) and number >= least
        scopes = CHOICES["scope"]
        if self.scope not in scopes:
            raise DataError("SideEffects.scope", "must be a scope", got=repr(self.scope), expected=f"one of {scopes}")
        if not sane:
            raise DataError("SideEffects", "must hold finite numbers", got=f"{numbers}, {self.num_tokens} tokens")

    def __str__(self) -> str:
        change = f"perplexity {perplexity_text(self.perplexity_before)} to {perplexity_text(self.perplexity_after)}"
        scope = "" if self.scope == "all" else f", scope {self.scope}"
        divergence = "" if self.kl is None else f"{self.kl:.3g} nats of KL per token, "
        return f"{divergence}{change} ({self.num_tokens} tokens{scope})"


def perplexity_text(perplexity: float | None) -> str:
    """Return a perplexity as text.

    Args:
        perplexity (`float`, *optional*): As [`SideEffects`] has it.
    """
    return "above 1.8e308" if perplexity is None else f"{perplexity:.4g}"


def side_effects(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: Change,
    texts: Sequence[str],
    *,
    batch_size: int = 8,
    max_tokens: int = 512,
    progress: bool = True,
) -> SideEffects:
    """Return how far a config changes the model's predictions of plain texts.

    To the model a plain text is all prompt. A config with scope `"generation"`, `"thinking"` or `"answer"` would not
    change it, so it is measured with scope `"all"`: its effect on generated text, with all of the text before it
    changed, too. `SideEffects.scope` is the scope that was used. A config with negative positions is measured at all
    tokens likewise, as no prompt ends in a plain text.

    Args:
        model (`PreTrainedModel`): The language model; left as it is.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer; no chat template is applied.
        config (`MoTEConfig`, or a steering config with its SAE): What to measure.
        texts (`Sequence[str]`): Texts that have nothing to do with the behaviour.
        batch_size (`int`, *optional*, defaults to 8): Texts that run together.
        max_tokens (`int`, *optional*, defaults to 512): Each text is cut to so many tokens.
        progress (`bool`, *optional*, defaults to `True`): Show a progress bar.

    Returns:
        [`SideEffects`]

    Raises:
        [`DataError`]: if there are no texts, one has fewer than two tokens, or the predictions are not numbers.
        [`ConfigError`]: if batch size or `max_tokens` is out of range.
        [`UnsupportedError`]: if the model draws random numbers, as with dropout in training mode.

    Example:

    ```python
    from hf_mote import MoTEConfig, load_organism
    from hf_mote.evaluation.side_effects import side_effects

    organism = load_organism("refusal")
    config = MoTEConfig.for_model(organism.model, suppress=[[2, 0]])
    found = side_effects(organism.model, organism.tokenizer, config, ["Two and two is four."], progress=False)
    assert found.kl >= 0 and found.num_tokens > 1
    ```
    """
    routed = RoutedModel(model)
    return measure_side_effects(
        routed, tokenizer, config, texts, batch_size=batch_size, max_tokens=max_tokens, progress=progress
    )


def measure_side_effects(
    routed: RoutedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: Change,
    texts: Sequence[str],
    *,
    batch_size: int,
    max_tokens: int = 512,
    folder: RunFolder | None = None,
    progress: bool,
) -> SideEffects:
    """Return what [`side_effects`] returns, for a model whose routers were found.

    Args:
        routed (`RoutedModel`): The model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        config (`MoTEConfig` or [`LatentChange`]): What to measure.
        texts (`Sequence[str]`): The texts.
        batch_size (`int`): Texts that run together.
        max_tokens (`int`, *optional*, defaults to 512): Each text is cut to so many tokens.
        folder ([`RunFolder`], *optional*): Where the sums of each batch are kept as they come.
        progress (`bool`): Show a progress bar.
    """
    model: Any = routed.model
    whole("batch_size", batch_size, least=1)
    encoded = encoded_texts(tokenizer, texts, max_tokens)
    config = on_plain_text(config)
    pad = pad_token_of(tokenizer)
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    divergence, before, after, tokens = 0.0, 0.0, 0.0, 0
    handle = attached(routed, config)
    repeats = False

    def sums(rows: list[list[int]]) -> dict[str, Tensor]:
        """Return the sums over the tokens of a batch: divergence, losses before and after, and how many."""
        nonlocal repeats
        batch = padded(rows, pad, side="right", device=model.device)
        handle.active = False
        with nullcontext() if repeats else without_randomness("side_effects", model):
            plain = model(**batch, use_cache=False).logits[:, :-1].float().log_softmax(-1)
        repeats = True
        handle.active = True
        changed = model(**batch, use_cache=False).logits[:, :-1].float().log_softmax(-1)
        real = batch["attention_mask"][:, 1:].bool()
        next_ids = batch["input_ids"][:, 1:, None]
        # A token that is impossible in the untouched model adds nothing.
        kl = (plain.exp() * (plain - changed)).masked_fill(plain == -math.inf, 0).sum(-1)
        losses = [-float(one.gather(-1, next_ids)[..., 0][real].double().sum()) for one in (plain, changed)]
        found = [float(kl[real].double().sum()), *losses, float(real.sum())]
        return {"sums": torch.tensor(found, dtype=torch.float64)}

    with (
        handle,
        torch.no_grad(),
        progress_bar(total=len(texts), desc="side effects", disable=not progress) as bar,
    ):
        for number, start in enumerate(range(0, len(order), batch_size)):
            rows = [encoded[index] for index in order[start : start + batch_size]]
            name, make = f"side-effects-{number:06d}", partial(sums, rows)
            found = make() if folder is None else folder.kept(name, make, {"sums": (4,)})
            kl, loss_before, loss_after, seen = found["sums"].tolist()
            divergence, before, after = divergence + kl, before + loss_before, after + loss_after
            tokens += int(seen)
            bar.update(len(rows))
    if not math.isfinite(divergence):
        raise DataError(
            "side_effects.model",
            "its predictions cannot be compared",
            got=f"{divergence / tokens} nats of KL per token",
            expected="logits without NaN, and none of minus infinity that the config brings about",
        )
    # Rounding can leave a sum of divergences a little below 0.
    kl, losses = max(divergence, 0.0) / tokens, (before / tokens, after / tokens)
    return SideEffects(kl, perplexity_of(losses[0]), perplexity_of(losses[1]), tokens, config.scope)


def on_plain_text(config: Change) -> Change:
    """Return the config to measure on plain text; one that would change nothing there gets scope "all".

    Positions that are counted from the end of the prompt are left out: none ends in a plain text.

    Args:
        config (`MoTEConfig` or [`LatentChange`]): What to measure.
    """
    if isinstance(config, MoTEConfig) and config.positions is not None and config.positions[0] < 0:
        config = with_fields(config, positions=None)
    return with_fields(config, scope="all", thinking_tokens=None) if config.scope in _NOT_IN_PLAIN_TEXT else config


def encoded_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int = 512) -> list[list[int]]:
    """Return the tokens of plain texts.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer.
        texts (`Sequence[str]`): The texts.
        max_tokens (`int`, *optional*, defaults to 512): Each is cut to so many tokens.

    Raises:
        [`DataError`]: if there are no texts, or one has fewer than two tokens.
    """
    if isinstance(texts, str) or not texts:
        raise DataError("side_effects.texts", "must hold texts", got=repr(texts)[:60], expected="a list of texts")
    whole("side_effects.max_tokens", max_tokens, least=2)
    wrong = next((index for index, text in enumerate(texts) if not isinstance(text, str)), None)
    if wrong is not None:
        raise DataError(f"side_effects.texts[{wrong}]", "not a text", got=repr(texts[wrong])[:60])
    encoded = [list(tokenizer(text)["input_ids"])[:max_tokens] for text in texts]
    for index, ids in enumerate(encoded):
        if len(ids) < 2:
            raise DataError(
                f"side_effects.texts[{index}]", "too short to predict a token of", got=repr(texts[index])[:60]
            )
    return encoded


def perplexity_of(loss: float) -> float | None:
    """Return the perplexity of a mean loss in nats per token; `None` above the largest float.

    Args:
        loss (`float`): Infinite where a token of the text is impossible.
    """
    return None if loss > LARGEST_LOSS else math.exp(loss)
