"""Imaging results kept batch by batch in a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hf_mote.errors import DataError
from hf_mote.ranking.imaging.result_file import check_chosen, check_recorded, split_tokens
from hf_mote.runs.folder import RunFolder

__all__ = ["ExpectedBatch", "ImagedBatch", "read_batch", "write_batch"]


class ImagedBatch(NamedTuple):
    """The imaging of one batch.

    Attributes:
        tokens (`list[list[int]]`): The tokens of each prompt's response.
        counts (`torch.Tensor` of shape `(prompts, layers, experts)`, float32): Tokens for which an expert was chosen.
        weights (`torch.Tensor` of shape `(prompts, layers, experts)`, float32): Sum of its routing weights.
        num_tokens (`torch.Tensor` of shape `(prompts,)`, float32): Tokens counted.
    """

    tokens: list[list[int]]
    counts: Tensor
    weights: Tensor
    num_tokens: Tensor


class ExpectedBatch(NamedTuple):
    """Bounds on the content of a batch.

    Attributes:
        prompt_lengths (`Sequence[int]`): Tokens of each prompt in it.
        counts_prompts (`bool`): Whether all tokens of a prompt are counted.
        top_k (`Sequence[int]`): Experts that each router chooses for a token.
        num_experts (`int`): Experts of a layer.
        vocab_size (`int`, *optional*): Tokens that the model knows.
        max_new_tokens (`int`): Most tokens of a response.
    """

    prompt_lengths: Sequence[int]
    counts_prompts: bool
    top_k: Sequence[int]
    num_experts: int
    vocab_size: int | None
    max_new_tokens: int


def read_batch(folder: RunFolder, number: int, batch: ExpectedBatch) -> ImagedBatch | None:
    """Return a finished batch, or `None` if it is not finished.

    Args:
        folder ([`RunFolder`]): The run's.
        number (`int`): Its number.
        batch ([`ExpectedBatch`]): Bounds on its content in this run.

    Raises:
        [`FileFormatError`]: if its file is damaged, or holds what no batch of this run can.
    """
    record = folder.read(_name(number))
    if record is None:
        return None
    try:
        tokens = split_tokens(record.tensors, batch.vocab_size)
        counts, weights, num_tokens = (record.tensors[name] for name in ("counts", "weights", "num_tokens"))
        check_recorded(counts, weights, num_tokens)
        shape, grid = tuple(counts.shape), (len(batch.top_k), batch.num_experts)
        number_of_prompts = len(batch.prompt_lengths)
        if shape != (number_of_prompts, *grid) or len(tokens) != number_of_prompts:
            got = f"{len(tokens)} responses, maps of shape {shape}"
            expected = f"{number_of_prompts} responses, and maps of {grid[0]} layers and {grid[1]} experts"
            raise DataError("batch", "is of another run", got=got, expected=expected)
        longest = max((len(part) for part in tokens), default=0)
        if longest > batch.max_new_tokens:
            raise DataError("response_tokens", "are too many", got=longest, expected=batch.max_new_tokens)
        for counted, prompt, response in zip(num_tokens.tolist(), batch.prompt_lengths, tokens, strict=True):
            least = prompt if batch.counts_prompts else 0
            if not least <= counted <= prompt + len(response):
                expected = f"{least}..{prompt + len(response)}"
                raise DataError("num_tokens", "is not of this prompt", got=counted, expected=expected)
        check_chosen(counts, num_tokens, batch.top_k)
    except (KeyError, DataError) as error:
        got = f"no {error}" if isinstance(error, KeyError) else str(error).rstrip(".")
        raise folder.damaged(_name(number), got) from error
    return ImagedBatch(tokens, counts, weights, num_tokens)


def write_batch(folder: RunFolder, number: int, batch: ImagedBatch) -> None:
    """Keep a finished batch.

    Args:
        folder ([`RunFolder`]): The run's.
        number (`int`): Its number.
        batch ([`ImagedBatch`]): The batch.
    """
    tensors = {
        "counts": batch.counts,
        "weights": batch.weights,
        "num_tokens": batch.num_tokens,
        "response_tokens": torch.tensor([token for tokens in batch.tokens for token in tokens], dtype=torch.int64),
        "response_lengths": torch.tensor([len(tokens) for tokens in batch.tokens]),
    }
    folder.write(_name(number), tensors)


def _name(number: int) -> str:
    return f"batch-{number:06d}"
