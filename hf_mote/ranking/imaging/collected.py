"""Collects the batches of an imaging run into the tensors of the result, without a second copy of all maps."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from hf_mote.generation.recording_engine import RoutedAnswers
from hf_mote.maps.storage import empty_maps

__all__ = ["Collected"]


class Collected:
    """The maps and responses of a number of prompts.

    Args:
        prompts (`int`): How many.
        folder (`str` or `os.PathLike`, *optional*): Where maps that do not fit into memory are kept.

    Attributes:
        counts (`torch.Tensor` of shape `(prompts, layers, experts)`, float32): Of the batches so far.
        weights (`torch.Tensor` of the same shape, float32): Likewise.
        num_tokens (`torch.Tensor` of shape `(prompts,)`, float32): Likewise.
        tokens (`list[list[int]]`): Likewise.
    """

    def __init__(self, prompts: int, folder: str | os.PathLike[str] | None = None) -> None:
        self._folder = folder
        self.num_tokens = torch.zeros(prompts)
        self.tokens: list[list[int]] = [[] for _ in range(prompts)]
        self.counts = self.weights = torch.zeros(prompts, 0, 0)

    def put(self, places: Sequence[int], batch: RoutedAnswers) -> None:
        """Store a batch's maps and responses at their places among all prompts."""
        if not self.counts.numel():
            shape = (len(self.tokens), *batch.counts.shape[1:])
            self.counts, self.weights = empty_maps(shape, self._folder), empty_maps(shape, self._folder)
        index = torch.tensor(places)
        self.counts[index] = batch.counts.float()
        self.weights[index] = batch.weights.float()
        self.num_tokens[index] = batch.num_tokens.float()
        for place, tokens in zip(places, batch.tokens, strict=True):
            self.tokens[place] = list(tokens)
