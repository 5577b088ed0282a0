"""Prompts in, responses out: chat template, batches of like length, left padding, greedy decoding, progress.

The one place in which prompts become tokens, so that imaging, attribution and evaluation see the same ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from hf_mote.errors import ConfigError, DataError

__all__ = [
    "Prompt",
    "check_batch_size",
    "checked_prompts",
    "encode_prompts",
    "generate_responses",
    "padded",
    "prompt_text",
]

Prompt: TypeAlias = str | Sequence[Mapping[str, str]]


def checked_prompts(where: str, prompts: Sequence[Prompt]) -> list[Prompt]:
    """Return the prompts as a list; refuses an empty list, empty prompts and a lone string.

    Args:
        where (`str`): The place, for the error.
        prompts (`Sequence[Prompt]`): Texts, or chats as lists of messages with `role` and `content`.

    Raises:
        [`DataError`]: if there is nothing to run; it names the first prompt that is wrong.
    """
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        raise DataError(
            where, "not a list of prompts", got=type(prompts).__name__, expected="a list of str or of chats"
        )
    if not prompts:
        raise DataError(where, "no prompts", got="an empty list", expected="at least one prompt")
    for index, prompt in enumerate(prompts):
        chat = isinstance(prompt, Sequence) and not isinstance(prompt, str)
        good = all(isinstance(m, Mapping) and {"role", "content"} <= set(m) for m in prompt) if chat else True
        if not prompt or not good or not (chat or isinstance(prompt, str)):
            raise DataError(
                f"{where}[{index}]",
                "not a prompt",
                got=repr(prompt)[:80],
                expected="text, or a list of messages with role and content",
            )
    return list(prompts)


def check_batch_size(batch_size: object) -> None:
    """Raise [`ConfigError`] unless a batch size is a number of prompts.

    Args:
        batch_size (`object`): What was given.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError("batch_size", "not a number of prompts", got=repr(batch_size), expected="1 or more")


def prompt_text(prompt: Prompt) -> str:
    """Return the text that a judge sees: the prompt, or the last message of a chat."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], *, system_prompt: str | None = None
) -> list[list[int]]:
    """Return each prompt's token ids, ready for a response to follow.

    A tokenizer with a chat template gets it applied, with the generation prompt; one without gets the text as it is.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The model's tokenizer.
        prompts (`Sequence[Prompt]`): Texts or chats.
        system_prompt (`str`, *optional*): First message of every prompt that is a text.

    Raises:
        [`ConfigError`]: if a chat or a system prompt meets a tokenizer without a chat template.
    """
    encoded = []
    for prompt in prompts:
        if tokenizer.chat_template is None:
            if system_prompt is not None or not isinstance(prompt, str):
                raise ConfigError(
                    "tokenizer.chat_template",
                    "chats and system prompts need one",
                    got=None,
                    fix="Set tokenizer.chat_template, or give plain text prompts.",
                )
            encoded.append(list(tokenizer(prompt)["input_ids"]))
            continue
        system = [{"role": "system", "content": system_prompt}] if system_prompt is not None else []
        chat = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(turn) for turn in prompt]
        messages = [*system, *chat] if isinstance(prompt, str) else chat
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        encoded.append(list(tokenizer(text, add_special_tokens=False)["input_ids"]))
    return encoded


def padded(rows: Sequence[Sequence[int]], pad_token_id: int, *, side: str, device: torch.device) -> dict[str, Tensor]:
    """Return `input_ids` and `attention_mask`, both `(rows, longest)` int64.

    Args:
        rows (`Sequence[Sequence[int]]`): Token ids.
        pad_token_id (`int`): What to fill up with.
        side (`str`): `"left"` or `"right"`.
        device (`torch.device`): Where the tensors go.
    """
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad_token_id)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        place = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        ids[index, place] = torch.tensor(row)
        mask[index, place] = 1
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def generate_responses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    batch_size: int = 16,
    max_new_tokens: int = 64,
    system_prompt: str | None = None,
    generate_kwargs: Mapping[str, Any] | None = None,
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
        generate_kwargs (`Mapping`, *optional*): Further arguments of `generate`. By default decoding is greedy.
        progress (`str`, *optional*): Label of the progress bar; none without it.

    Yields:
        `tuple[list[int], list[str]]`: positions in `prompts` and the responses to them, special tokens left out.
    """
    check_batch_size(batch_size)
    given = generate_kwargs or {}
    for name, usual in (("num_return_sequences", 1), ("num_beams", 1), ("return_dict_in_generate", False)):
        if given.get(name, usual) not in (usual, None):
            raise ConfigError(
                f"generate_kwargs.{name}", "one plain response is needed for each prompt", got=generate_kwargs
            )
    encoded = encode_prompts(tokenizer, prompts, system_prompt=system_prompt)
    order = sorted(range(len(prompts)), key=lambda index: len(encoded[index]))
    pad = next(t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if t is not None)
    settings = {"do_sample": False, "max_new_tokens": max_new_tokens, "pad_token_id": pad, **(generate_kwargs or {})}
    with logging.tqdm(total=len(prompts), desc=progress, disable=progress is None, leave=False) as bar:
        for start in range(0, len(order), batch_size):
            positions = order[start : start + batch_size]
            batch = padded([encoded[i] for i in positions], pad, side="left", device=model.device)
            output = model.generate(**batch, **settings)  # type: ignore[operator]
            new = output[:, batch["input_ids"].shape[1] :]
            yield positions, [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
            bar.update(len(positions))
