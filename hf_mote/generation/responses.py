"""Prompts in, responses out: batches of like length, left padding, greedy decoding, progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from hf_mote.errors import whole
from hf_mote.generation.chat import Prompt
from hf_mote.generation.decoding import answer_text, answer_tokens, generation_settings, seeded
from hf_mote.generation.prompts import encode_prompts, padded

__all__ = ["batches_of", "check_batch_size", "generate_responses", "respond"]


def check_batch_size(batch_size: object) -> None:
    """Raise [`ConfigError`] unless a batch size is a number of prompts.

    Args:
        batch_size (`object`): What was given.
    """
    whole("batch_size", batch_size, least=1)


def batches_of(encoded: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """Return the positions of prompts in batches of like length; the same for the same lengths.

    Args:
        encoded (`Sequence[Sequence[int]]`): Token ids.
        batch_size (`int`): Prompts that run together.
    """
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def respond(
    model: PreTrainedModel,
    encoded: Sequence[Sequence[int]],
    settings: Mapping[str, Any],
    check: Callable[[Tensor, int], None] | None = None,
) -> list[list[int]]:
    """Return the tokens of the responses to a batch of prompts.

    Args:
        model (`PreTrainedModel`): A causal language model.
        encoded (`Sequence[Sequence[int]]`): Token ids of each prompt.
        settings (`Mapping`): What [`generation_settings`] returned.
        check (`Callable`, *optional*): As in [`answer_tokens`].
    """
    batch = padded(encoded, settings["pad_token_id"], side="left", device=model.device)
    return answer_tokens(model, batch, settings, check)


def generate_responses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    batch_size: int = 16,
    max_new_tokens: int = 64,
    system_prompt: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    generate_kwargs: Mapping[str, Any] | None = None,
    special_tokens: bool = False,
    seed: int | None = None,
    progress: str | None = None,
) -> Iterator[tuple[list[int], list[str]]]:
    """Yield batches of responses with the prompts' positions; prompts of like length share a batch.

    Args:
        model (`PreTrainedModel`): A causal language model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        prompts (`Sequence[Prompt]`): Texts or chats.
        batch_size (`int`, *optional*, defaults to 16): Prompts that run together.
        max_new_tokens (`int`, *optional*, defaults to 64): Longest response, in tokens.
        system_prompt (`str`, *optional*): First message of every prompt that is a text.
        chat_template_kwargs (`Mapping[str, Any]`, *optional*): As in [`encode_prompts`].
        generate_kwargs (`Mapping`, *optional*): Further arguments of `generate`. By default decoding is greedy.
        special_tokens (`bool`, *optional*, defaults to `False`): Keep special tokens in the responses.
        seed (`int`, *optional*): Of sampled responses, batch by batch; without it the caller's random state is used.
        progress (`str`, *optional*): Label of the progress bar; none without it.

    Yields:
        `tuple[list[int], list[str]]`: positions in `prompts` and the responses to them.
    """
    check_batch_size(batch_size)
    settings = generation_settings(tokenizer, max_new_tokens, generate_kwargs)
    encoded = encode_prompts(
        tokenizer, prompts, system_prompt=system_prompt, chat_template_kwargs=chat_template_kwargs
    )
    own = bool(settings["do_sample"]) and seed is not None
    with logging.tqdm(total=len(prompts), desc=progress, disable=progress is None, leave=False) as bar:
        for number, positions in enumerate(batches_of(encoded, batch_size)):
            with seeded(seed or 0, number, own, model.device):
                answers = respond(model, [encoded[i] for i in positions], settings)
            yield positions, answer_text(tokenizer, answers, special_tokens=special_tokens)
            bar.update(len(positions))
