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
    "batches_of",
    "check_batch_size",
    "checked_prompts",
    "encode_prompts",
    "generate_responses",
    "generation_settings",
    "padded",
    "prompt_text",
    "respond",
    "user_text_of",
]

_STAND_IN = "\ue000user text\ue001"

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
    plain = tokenizer.chat_template is None
    texts = [_rendered(tokenizer, prompt, system_prompt) for prompt in prompts]
    return [list(tokenizer(text, add_special_tokens=plain)["input_ids"]) for text in texts]


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


def user_text_of(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], *, system_prompt: str | None = None
) -> list[list[bool]]:
    """Return for each prompt which of the tokens of [`encode_prompts`] are the user's own text, not the template's.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The model's tokenizer, a fast one.
        prompts (`Sequence[Prompt]`): Texts, or chats, of which the last message counts.
        system_prompt (`str`, *optional*): As in [`encode_prompts`].

    Raises:
        [`ConfigError`]: if the tokenizer does not tell where in the text its tokens are.
        [`DataError`]: if the template changes the user's text, so that it is not found again.
    """
    if not tokenizer.is_fast:
        raise ConfigError(
            "tokenizer",
            "does not tell where its tokens are",
            got=type(tokenizer).__name__,
            expected="a fast tokenizer",
        )
    marks = []
    for index, prompt in enumerate(prompts):
        text, own = _rendered(tokenizer, prompt, system_prompt), prompt_text(prompt)
        # Where a stand-in comes to lie that no template contains; the text itself may occur in the template as well.
        other = _STAND_IN if isinstance(prompt, str) else [*prompt[:-1], {**prompt[-1], "content": _STAND_IN}]
        before, _, after = _rendered(tokenizer, other, system_prompt).partition(_STAND_IN)
        if text != before + own + after:
            own = own.strip()
        if text != before + own + after:
            raise DataError(f"prompts[{index}]", "is changed by the chat template", got=repr(own)[:60])
        start = len(before)
        found = tokenizer(text, add_special_tokens=tokenizer.chat_template is None, return_offsets_mapping=True)[
            "offset_mapping"
        ]
        end = start + len(own)
        marks.append([a < end and b > start and b > a for a, b in found])
    return marks


def batches_of(encoded: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """Return the positions of prompts in batches of like length; the same for the same lengths.

    Args:
        encoded (`Sequence[Sequence[int]]`): Token ids.
        batch_size (`int`): Prompts that run together.
    """
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def generation_settings(
    tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, generate_kwargs: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the arguments of `generate`, greedy by default.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The model's tokenizer.
        max_new_tokens (`int`): Longest response, in tokens.
        generate_kwargs (`Mapping`, *optional*): Further arguments of `generate`.

    Raises:
        [`ConfigError`]: if they ask for something else than one plain response for each prompt.
    """
    given = generate_kwargs or {}
    for name, usual in (("num_return_sequences", 1), ("num_beams", 1), ("return_dict_in_generate", False)):
        if given.get(name, usual) not in (usual, None):
            raise ConfigError(
                f"generate_kwargs.{name}", "one plain response is needed for each prompt", got=generate_kwargs
            )
    pad = next(t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if t is not None)
    return {"do_sample": False, "max_new_tokens": max_new_tokens, "pad_token_id": pad, **given}


def respond(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[Sequence[int]],
    settings: Mapping[str, Any],
) -> list[str]:
    """Return the responses to a batch of prompts, special tokens left out.

    Args:
        model (`PreTrainedModel`): A causal language model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        encoded (`Sequence[Sequence[int]]`): Token ids of each prompt.
        settings (`Mapping`): What [`generation_settings`] returned.
    """
    batch = padded(encoded, settings["pad_token_id"], side="left", device=model.device)
    output = model.generate(**batch, **settings)  # type: ignore[operator]
    new = output[:, batch["input_ids"].shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]


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
    settings = generation_settings(tokenizer, max_new_tokens, generate_kwargs)
    encoded = encode_prompts(tokenizer, prompts, system_prompt=system_prompt)
    with logging.tqdm(total=len(prompts), desc=progress, disable=progress is None, leave=False) as bar:
        for positions in batches_of(encoded, batch_size):
            yield positions, respond(model, tokenizer, [encoded[i] for i in positions], settings)
            bar.update(len(positions))


def _rendered(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, system_prompt: str | None) -> str:
    """Return the text that is tokenised for a prompt."""
    if tokenizer.chat_template is None:
        if system_prompt is not None or not isinstance(prompt, str):
            raise ConfigError(
                "tokenizer.chat_template",
                "chats and system prompts need one",
                got=None,
                fix="Set tokenizer.chat_template, or give plain text prompts.",
            )
        return prompt
    system = [{"role": "system", "content": system_prompt}] if system_prompt is not None else []
    messages = [*system, {"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
