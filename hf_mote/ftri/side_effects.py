"""What a config does to text it was not meant for: divergence of the predictions, and perplexity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from hf_mote.errors import DataError
from hf_mote.ftri.responses import check_batch_size, padded
from hf_mote.mote.config import MoTEConfig
from hf_mote.mote.patch import apply_mote

__all__ = ["SideEffects", "side_effects"]


@dataclass(frozen=True)
class SideEffects:
    """How predictions of plain text change.

    Attributes:
        kl (`float`): Mean of KL(untouched || with the config) over predicted tokens, in nats, 0 or more.
        perplexity_before (`float`): Of the texts, in the untouched model.
        perplexity_after (`float`): With the config.
        num_tokens (`int`): Predicted tokens.
    """

    kl: float
    perplexity_before: float
    perplexity_after: float
    num_tokens: int

    def __post_init__(self) -> None:
        numbers = (self.kl, self.perplexity_before, self.perplexity_after)
        sane = all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)
        if not sane or min(self.perplexity_before, self.perplexity_after) < 1 or self.kl < 0 or self.num_tokens < 1:
            raise DataError("SideEffects", "are no such numbers", got=f"{numbers}, {self.num_tokens} tokens")

    def __str__(self) -> str:
        change = f"perplexity {self.perplexity_before:.3g} to {self.perplexity_after:.3g}"
        return f"{self.kl:.3g} nats of KL per token, {change} ({self.num_tokens} tokens)"


def side_effects(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: MoTEConfig,
    texts: Sequence[str],
    *,
    batch_size: int = 8,
    max_tokens: int = 512,
    progress: bool = True,
) -> SideEffects:
    """Return how far a config changes the model's predictions of plain texts.

    Args:
        model (`PreTrainedModel`): A mixture-of-experts language model; left as it is.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer; no chat template is applied.
        config (`MoTEConfig`): What to measure.
        texts (`Sequence[str]`): Texts that have nothing to do with the behaviour.
        batch_size (`int`, *optional*, defaults to 8): Texts that run together.
        max_tokens (`int`, *optional*, defaults to 512): Each text is cut to so many tokens.
        progress (`bool`, *optional*, defaults to `True`): Show a progress bar.

    Returns:
        [`SideEffects`]

    Raises:
        [`DataError`]: if there are no texts, or one has fewer than two tokens.

    Example:

    ```python
    from hf_mote import MoTEConfig, load_organism
    from hf_mote.ftri.side_effects import side_effects

    organism = load_organism("refusal")
    config = MoTEConfig.for_model(organism.model, suppress=[[2, 0]])
    found = side_effects(organism.model, organism.tokenizer, config, ["Two and two is four."], progress=False)
    assert found.kl >= 0 and found.num_tokens > 1
    ```
    """
    check_batch_size(batch_size)
    if isinstance(texts, str) or not texts:
        raise DataError("side_effects.texts", "no texts", got=repr(texts)[:60], expected="a list of texts")
    encoded = [list(tokenizer(text)["input_ids"])[:max_tokens] for text in texts]
    for index, ids in enumerate(encoded):
        if len(ids) < 2:
            raise DataError(
                f"side_effects.texts[{index}]", "too short to predict a token of", got=repr(texts[index])[:60]
            )
    pad = next(t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if t is not None)
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    divergence, before, after, tokens = 0.0, 0.0, 0.0, 0
    handle = apply_mote(model, config)
    with (
        handle,
        torch.no_grad(),
        logging.tqdm(total=len(texts), desc="side effects", disable=not progress, leave=False) as bar,
    ):
        for start in range(0, len(order), batch_size):
            rows = [encoded[index] for index in order[start : start + batch_size]]
            batch = padded(rows, pad, side="right", device=model.device)
            handle.active = False
            plain = model(**batch, use_cache=False).logits[:, :-1].float().log_softmax(-1)
            handle.active = True
            changed = model(**batch, use_cache=False).logits[:, :-1].float().log_softmax(-1)
            real = batch["attention_mask"][:, 1:].bool()
            next_ids = batch["input_ids"][:, 1:, None]
            kl = (plain.exp() * (plain - changed)).sum(-1)
            divergence += float(kl[real].double().sum())
            before -= float(plain.gather(-1, next_ids)[..., 0][real].double().sum())
            after -= float(changed.gather(-1, next_ids)[..., 0][real].double().sum())
            tokens += int(real.sum())
            bar.update(len(rows))
    # Rounding can leave a sum of divergences a little below 0.
    return SideEffects(max(divergence, 0.0) / tokens, math.exp(before / tokens), math.exp(after / tokens), tokens)
