"""Routing of single texts, token by token, for the first experts of a ranking."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mote.generation.asking import Chat
from hf_mote.generation.chat import Prompt
from hf_mote.reports.tokens import RoutedText
from hf_mote.routing.recording.record import record_routing

__all__ = ["chosen_texts", "token_texts", "trace_texts"]

LONGEST_CHARACTER = 4  # bytes of one character in UTF-8, and so the most tokens of it


def chosen_texts(classes: Sequence[str], target: str, number: int) -> list[int]:
    """Return the first `number` positions of a class, and as many of the other classes in turn.

    Args:
        classes (`Sequence[str]`): The class of each text.
        target (`str`): The class of interest.
        number (`int`): Maximum number on each side.
    """
    places: dict[str, list[int]] = {}
    for index, name in enumerate(classes):
        places.setdefault(name, []).append(index)
    of_target = places.pop(target, [])
    others = (index for turn in zip_longest(*places.values()) for index in turn if index is not None)
    return [*of_target[:number], *list(others)[:number]]


def trace_texts(
    model: PreTrainedModel,
    chat: Chat,
    prompts: Sequence[Prompt],
    responses: Sequence[str | Sequence[int]],
    labels: Sequence[str],
    experts: Sequence[tuple[int, int]],
) -> list[RoutedText]:
    """Return the routing weight of some experts on each token of some prompts and their responses.

    Each prompt runs with its response in one forward pass, without padding, so that routing is that of `generate`.

    Args:
        model (`PreTrainedModel`): The model.
        chat (`Chat`): How its prompts become tokens.
        prompts (`Sequence[Prompt]`): The prompts.
        responses (`Sequence[str]` or of tokens): The response to each: its tokens as they were generated, or a text.
        labels (`Sequence[str]`): The class of each.
        experts (`Sequence[tuple[int, int]]`): (layer, expert) to follow.

    Returns:
        `list[RoutedText]`: one for each prompt; none if there are no experts to follow.
    """
    tokenizer = chat.tokenizer
    if not experts:
        return []
    asked = chat.encode(prompts)
    texts = []
    for ids, response, label in zip(asked, responses, labels, strict=True):
        if isinstance(response, str):
            response_ids = list(tokenizer(response, add_special_tokens=False)["input_ids"]) if response else []
        else:
            response_ids = list(response)
        with record_routing(model, trace=True) as record, torch.no_grad():
            model(input_ids=torch.tensor([ids + response_ids], device=model.device), use_cache=False)
        (trace,) = record.traces()
        rows = {layer: row for row, layer in enumerate(trace.layers)}
        weights = [
            (trace.weights[:, rows[layer]] * (trace.indices[:, rows[layer]] == expert)).sum(dim=-1).tolist()
            for layer, expert in experts
        ]
        texts.append(RoutedText(label, token_texts(tokenizer, ids + response_ids), len(ids), weights))
    return texts


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """Return what each token adds to the text, special tokens included; joined they are the text.

    A token that is part of a character adds nothing, and the one that completes it the whole character.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer.
        ids (`Sequence[int]`): Tokens.
    """

    def text(first: int, last: int) -> str:
        found = tokenizer.decode(list(ids[first:last]), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(found)

    pieces: list[str] = []
    # Decoded with the token before it, because the text that a token adds depends on that.
    begin = read = 0
    for end in range(1, len(ids) + 1):
        whole = text(begin, end)
        if whole.endswith("\ufffd") and end < len(ids) and end - read < LONGEST_CHARACTER:
            pieces.append("")
            continue
        pieces.append(whole[len(text(begin, read)) :])
        begin, read = read, end
    return pieces
