"""Prompts checked and encoded: token ids with the chat template applied, and which of them are the user's own text.

The one place in which prompts become tokens, so that imaging, attribution and evaluation see the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_mote.errors import ConfigError, DataError
from hf_mote.generation.chat import Prompt, check_template_kwargs, rendered

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

__all__ = ["checked_prompts", "encode_prompts", "padded", "prompt_text", "user_text_of"]

_STAND_IN = "\ue000user text\ue001"


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
    import torch  # here, since the command line reads prompts before it loads torch

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
