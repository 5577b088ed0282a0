"""The output of `generate` as tokens without padding and as texts; and its random numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mote.errors import ConfigError, whole

__all__ = [
    "answer_text",
    "answer_tokens",
    "check_seed",
    "ends_of",
    "engine_sampling",
    "pad_token_of",
    "seeded",
    "without_padding",
]

SAMPLING = ("temperature", "top_p", "top_k")
"""Arguments of `generate` that have the same names in inference engines."""

LARGEST_SEED = 2**42  # with the batch's number added, it still fits into the range of torch's seeds


def pad_token_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that fills up shorter rows: the tokenizer's for padding, else its end of sequence, else 0."""
    return next(token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if token is not None)


def check_seed(where: str, seed: object) -> None:
    """Raise [`ConfigError`] unless a seed is one.

    Args:
        where (`str`): The place, for the error.
        seed (`object`): What was given.
    """
    whole(where, seed, most=LARGEST_SEED - 1)


@contextmanager
def seeded(seed: int, number: int, sampled: bool, device: torch.device) -> Iterator[None]:
    """Give each batch random numbers of its own, the same in every run and process; the caller's state is restored.

    Args:
        seed (`int`): Of the run.
        number (`int`): Of the batch.
        sampled (`bool`): Whether random numbers are drawn.
        device (`torch.device`): The model's.
    """
    if not sampled:
        yield
        return
    devices = [] if device.type in ("cpu", "meta") else [device]
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        torch.manual_seed(seed * 1_000_003 + number)
        yield


def answer_tokens(
    model: PreTrainedModel,
    batch: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    check: Callable[[Tensor, int], None] | None = None,
) -> list[list[int]]:
    """Return the tokens that a model answers with, the one that ends an answer included, padding left out.

    Args:
        model (`PreTrainedModel`): A causal language model.
        batch (`Mapping[str, torch.Tensor]`): `input_ids` and `attention_mask`, padded on the left.
        settings (`Mapping`): What `Decoding.settings` returned.
        check (`Callable[[torch.Tensor, int], None]`, *optional*):
            Called with the output of `generate` and the prompts' length with padding; raises an error if they do not
            fit.

    Raises:
        [`ConfigError`]: if `generate` does not know an argument.
    """
    try:
        output = model.generate(**batch, **settings)  # type: ignore[operator]
    except ValueError as error:  # said before the first forward
        names = re.search(r"`model_kwargs` are not used by the model: (\[.*?\])", str(error))
        if names is None:
            raise
        fix = "Look at the spelling."
        raise ConfigError("generate_kwargs", "generate has no such argument", got=names[1], fix=fix) from error
    if check is not None:
        check(output, batch["input_ids"].shape[1])
    rows: list[list[int]] = output[:, batch["input_ids"].shape[1] :].tolist()
    ends = ends_of(model, settings)
    return [without_padding(row, ends, settings["pad_token_id"]) for row in rows]


def answer_text(
    tokenizer: PreTrainedTokenizerBase,
    answers: Sequence[Sequence[int]],
    *,
    special_tokens: bool = False,
) -> list[str]:
    """Return the texts of answers.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The model's tokenizer.
        answers (`Sequence[Sequence[int]]`): What [`answer_tokens`] returned.
        special_tokens (`bool`, *optional*, defaults to `False`):
            Keep special tokens, such as the marks of thinking; those that end the answer are always left out.
    """
    if special_tokens:
        ends = {token for token in (tokenizer.eos_token_id, tokenizer.pad_token_id) if token is not None}
        kept = [list(answer) for answer in answers]
        for answer in kept:
            while answer and answer[-1] in ends:
                answer.pop()
        answers = kept
    texts = tokenizer.batch_decode([list(answer) for answer in answers], skip_special_tokens=not special_tokens)
    return [text.strip() for text in texts]


def engine_sampling(settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the sampling arguments of an inference engine, `None` for greedy decoding.

    Args:
        settings (`Mapping`): What `Decoding.settings` returned.

    Raises:
        [`ConfigError`]: if `generate` is asked for what engines call otherwise.
    """
    known = {"do_sample", "max_new_tokens", "pad_token_id", *SAMPLING}
    others = sorted(set(settings) - known)
    if others:
        expected = ", ".join(SAMPLING)
        raise ConfigError("generate_kwargs", "an engine does not support it", got=others[0], expected=expected)
    if not settings["do_sample"]:
        return None
    sampling = {name: settings[name] for name in SAMPLING if settings.get(name) is not None}
    sampling.setdefault("temperature", 1.0)
    return sampling


def ends_of(model: PreTrainedModel, settings: Mapping[str, Any]) -> set[int]:
    """Return the tokens that end a response.

    Args:
        model (`PreTrainedModel`): A causal language model.
        settings (`Mapping`): What `Decoding.settings` returned.
    """
    config = settings.get("generation_config") or model.generation_config
    ends = settings.get("eos_token_id", getattr(config, "eos_token_id", None))
    if ends is None:
        return set()
    return {int(end) for end in (torch.as_tensor(ends).reshape(-1).tolist())}


def without_padding(row: list[int], ends: set[int], pad: int) -> list[int]:
    """Return the tokens of a response up to the one that ends it.

    Args:
        row (`list[int]`): Tokens.
        ends (`set[int]`): What [`ends_of`] returned.
        pad (`int`): What fills up shorter rows.
    """
    for place, token in enumerate(row):
        if token in ends:
            return row[: place + 1]
    length = len(row)
    while length and row[length - 1] == pad:  # ended by something else, such as a stop string
        length -= 1
    return row[:length]
