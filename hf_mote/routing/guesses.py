"""Are the last tokens of a pass guesses of assisted decoding? Only the model that `generate` calls is told.

The first pass of assisted decoding, or of prompt lookup, reads the prompt and guesses at once. What gives the guesses
away is that logits are asked for behind each of them: `logits_to_keep`, which the decoder does not get to see.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin

from hf_mote.hooks import Attachment, HookStack, stack_on
from hf_mote.routing.arguments import caches_in
from hf_mote.routing.tracker import TokenTracker
from hf_mote.routing.watcher import Watcher

__all__ = ["attachments_to_callers"]


def attachments_to_callers(
    model: nn.Module, decoder: nn.Module, tracker: TokenTracker, watcher: Watcher
) -> list[Attachment]:
    """Return what to attach so that a decoder's tracker hears of guesses.

    Args:
        model (`nn.Module`): The model.
        decoder (`nn.Module`): Its decoder.
        tracker (`TokenTracker`): The hook on the decoder.
        watcher (`Watcher`): The intervention's watcher.
    """
    callers = [
        part
        for part in model.modules()
        if isinstance(part, GenerationMixin) and any(inner is decoder for inner in part.modules())
    ]
    return [Attachment(caller, stack_on(caller, _CallerStack) or _CallerStack(tracker), watcher) for caller in callers]


class _CallerStack(HookStack):
    """The hook on a model that `generate` calls."""

    def __init__(self, tracker: TokenTracker) -> None:
        super().__init__()
        self.tracker = tracker

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Tell the tracker whether guesses follow."""
        if torch.compiler.is_compiling():
            return
        keep = kwargs.get("logits_to_keep")
        by_generate = kwargs.get("position_ids") is not None and next(caches_in(kwargs), None) is not None
        self.tracker.expect_guesses(by_generate and isinstance(keep, int) and keep > 1)
