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
from hf_mote.ftri.decoding import answer_text, answer_tokens, generation_settings, seeded
from hf_mote.ftri.templates import check_template_kwargs, rendered

__all__ = [
    "Prompt",
    "batches_of",
    "check_batch_size",
    "checked_prompts",
    "encode_prompts",
    "generate_responses",
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
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    system_prompt: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    where: str = "prompts",
) -> list[list[int]]:
    """Return each prompt's token ids, ready for a response to follow.

    A tokenizer with a chat template gets it applied, with the generation prompt; one without gets the text as it is.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The model's tokenizer.
        prompts (`Sequence[Prompt]`): Texts or chats.
        system_prompt (`str`, *optional*): First message of every prompt that is a text.
        chat_template_kwargs (`Mapping[str, Any]`, *optional*): What the template is told besides, as
            `{"enable_thinking": False}`.
        where (`str`, *optional*, defaults to `"prompts"`): The place, for errors.

    Raises:
        [`ConfigError`]: if a chat or a system prompt meets a tokenizer without a chat template, or the template fails.
        [`UnknownNameError`]: if the template does not read a name of `chat_template_kwargs`.
        [`DataError`]: if a prompt has no token, or is not Unicode; it is named.
    """
    plain = tokenizer.chat_template is None
    told = check_template_kwargs(tokenizer, chat_template_kwargs)
    encoded = []
    for index, prompt in enumerate(prompts):
        text = rendered(tokenizer, prompt, system_prompt, told, f"{where}[{index}]")
        ids = list(tokenizer(text, add_special_tokens=plain)["input_ids"])
        if not ids:
            raise DataError(
                f"{where}[{index}]",
                "has no token that the tokenizer knows",
                got=repr(prompt)[:60],
                expected="one token or more",
                fix="Leave the prompt out.",
            )
        encoded.append(ids)
    return encoded


def padded(rows: Sequence[Sequence[int]], pad_token_id: int, *, side: str, device: torch.device) -> dict[str, Tensor]:
    """Return `input_ids` and `attention_mask`, both `(rows, longest)` int64.

    Args:
        rows (`Sequence[Sequence[int]]`): Token ids.
        pad_token_id (`int`): What to fill up with.
        side (`str`): `"left"` or `"right"`.
        device (`torch.device`):
            Where the tensors go: the model's. If that is "meta", as an offloaded model's, they stay on the CPU, and
            accelerate takes them to where the model runs.
    """
    if device.type == "meta":
        device = torch.device("cpu")
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad_token_id)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        place = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        ids[index, place] = torch.tensor(row)
        mask[index, place] = 1
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def user_text_of(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    system_prompt: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[list[bool]]:
    """Return for each prompt which of the tokens of [`encode_prompts`] are the user's own text, not the template's.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The model's tokenizer, a fast one.
        prompts (`Sequence[Prompt]`): Texts, or chats, of which the last message counts.
        system_prompt (`str`, *optional*): As in [`encode_prompts`].
        chat_template_kwargs (`Mapping[str, Any]`, *optional*): As in [`encode_prompts`].

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
    told = check_template_kwargs(tokenizer, chat_template_kwargs)
    for index, prompt in enumerate(prompts):
        where = f"prompts[{index}]"
        text, own = rendered(tokenizer, prompt, system_prompt, told, where), prompt_text(prompt)
        # Where a stand-in comes to lie that no template contains; the text itself may occur in the template as well.
        other = _STAND_IN if isinstance(prompt, str) else [*prompt[:-1], {**prompt[-1], "content": _STAND_IN}]
        before, _, after = rendered(tokenizer, other, system_prompt, told, where).partition(_STAND_IN)
        if text != before + own + after:
            own = own.strip()
        if text != before + own + after:
            raise DataError(where, "is changed by the chat template", got=repr(own)[:60])
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


def respond(
    model: PreTrainedModel,
    encoded: Sequence[Sequence[int]],
    settings: Mapping[str, Any],
) -> list[list[int]]:
    """Return the tokens of the responses to a batch of prompts.

    Args:
        model (`PreTrainedModel`): A causal language model.
        encoded (`Sequence[Sequence[int]]`): Token ids of each prompt.
        settings (`Mapping`): What [`generation_settings`] returned.
    """
    batch = padded(encoded, settings["pad_token_id"], side="left", device=model.device)
    return answer_tokens(model, batch, settings)


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
