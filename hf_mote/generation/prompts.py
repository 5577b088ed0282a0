"""Prompts checked, what a judge sees of them, and rows of tokens padded to one length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_mote.errors import DataError
from hf_mote.generation.chat import Prompt
from hf_mote.messages import check_message

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["checked_prompts", "padded", "prompt_text"]


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
        raise DataError(where, "must hold prompts", got="an empty list", expected="at least one prompt")
    for index, prompt in enumerate(prompts):
        chat = isinstance(prompt, Sequence) and not isinstance(prompt, str)
        if not prompt or not (chat or isinstance(prompt, str)):
            raise DataError(
                f"{where}[{index}]",
                "not a prompt",
                got=repr(prompt)[:80],
                expected="text, or a list of messages with role and content",
            )
        for place, message in enumerate(prompt if chat else ()):
            # The last one is what a judge sees.
            check_message(f"{where}[{index}], message {place}", message, calls=place < len(prompt) - 1)
    return list(prompts)


def prompt_text(prompt: Prompt) -> str:
    """Return the text that a judge sees: the prompt, or the last message of a chat."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def padded(rows: Sequence[Sequence[int]], pad_token_id: int, *, side: str, device: torch.device) -> dict[str, Tensor]:
    """Return `input_ids` and `attention_mask`, both `(rows, longest)` int64.

    Args:
        rows (`Sequence[Sequence[int]]`): Token ids.
        pad_token_id (`int`): Token for padding.
        side (`str`): `"left"` or `"right"`.
        device (`torch.device`):
            Where the tensors go: the model's. If that is "meta", as an offloaded model's, they stay on the CPU, and
            accelerate moves them to the device of the model.
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
