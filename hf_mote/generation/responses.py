"""Prompts in, responses out: batches of like length, left padding, greedy decoding, progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from hf_mote.generation.asking import Chat, Decoding
from hf_mote.generation.chat import Prompt
from hf_mote.generation.decoding import answer_text, answer_tokens, seeded
from hf_mote.generation.prompts import padded
from hf_mote.progress import progress_bar

__all__ = ["batches_of", "generate_responses", "respond"]


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
        settings (`Mapping`): What `Decoding.settings` returned.
        check (`Callable`, *optional*): As in [`answer_tokens`].
    """
    batch = padded(encoded, settings["pad_token_id"], side="left", device=model.device)
    return answer_tokens(model, batch, settings, check)


def generate_responses(
    model: PreTrainedModel,
    chat: Chat,
    prompts: Sequence[Prompt],
    decoding: Decoding,
    *,
    special_tokens: bool = False,
    progress: str | None = None,
    known: Callable[[int, list[int]], list[str] | None] | None = None,
) -> Iterator[tuple[list[int], list[str]]]:
    """Yield batches of responses with the prompts' positions; prompts of like length share a batch.

    Args:
        model (`PreTrainedModel`): A causal language model.
        chat (`Chat`): How the prompts become tokens.
        prompts (`Sequence[Prompt]`): Texts or chats.
        decoding (`Decoding`): How the responses come.
        special_tokens (`bool`, *optional*, defaults to `False`): Keep special tokens in the responses.
        progress (`str`, *optional*): Label of the progress bar; none without it.
        known (`Callable[[int, list[int]], list[str] | None]`, *optional*):
            From a batch's number and the positions of its prompts to responses that were kept, or to `None`.

    Yields:
        `tuple[list[int], list[str]]`: positions in `prompts` and the responses to them.
    """
    settings, seed = decoding.settings(chat.tokenizer), decoding.seed
    encoded = chat.encode(prompts)
    own = bool(settings["do_sample"]) and seed is not None
    with progress_bar(total=len(prompts), desc=progress, disable=progress is None) as bar:
        for number, positions in enumerate(batches_of(encoded, decoding.batch_size)):
            responses = None if known is None else known(number, positions)
            if responses is None:
                with seeded(seed or 0, number, own, model.device):
                    answers = respond(model, [encoded[i] for i in positions], settings)
                responses = answer_text(chat.tokenizer, answers, special_tokens=special_tokens)
            yield positions, responses
            bar.update(len(positions))
