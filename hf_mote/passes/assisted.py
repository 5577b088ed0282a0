"""What only the model that `generate` calls is told: guesses of assisted decoding, and continuous batching.

The first pass of assisted decoding, or of prompt lookup, reads the prompt and guesses at once. What gives the guesses
away is that logits are asked for behind each of them: `logits_to_keep`, which the decoder does not get to see.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin

from hf_mote.errors import UnsupportedError
from hf_mote.hooks import Attachment, SharedHook, stack_on
from hf_mote.passes.arguments import caches_in
from hf_mote.passes.decoder_hook import DecoderHook
from hf_mote.passes.forward import DecoderParticipant

__all__ = ["assisted_decoding_hooks"]


def assisted_decoding_hooks(
    model: nn.Module, decoder: nn.Module, tracker: DecoderHook, watcher: DecoderParticipant
) -> list[Attachment]:
    """Return what to attach so that a decoder's tracker hears of guesses.

    Args:
        model (`nn.Module`): The model.
        decoder (`nn.Module`): Its decoder.
        tracker (`DecoderHook`): The hook on the decoder.
        watcher (`DecoderParticipant`): The intervention's watcher.
    """
    callers = [
        part
        for part in model.modules()
        if isinstance(part, GenerationMixin) and any(inner is decoder for inner in part.modules())
    ]
    for caller in callers:
        # A manager of continuous batching that is kept running would go on in a thread of its own.
        for value in vars(caller).values():
            if hasattr(value, "add_requests") and getattr(value, "is_running", bool)():
                raise _rows_are_tokens(type(value).__name__)
    return [Attachment(caller, stack_on(caller, _CallerStack) or _CallerStack(tracker), watcher) for caller in callers]


class _CallerStack(SharedHook):
    """The hook on a model that `generate` calls; it refuses continuous batching."""

    entrances = ("init_continuous_batching", "continuous_batching_context_manager", "generate_batch")

    def __init__(self, tracker: DecoderHook) -> None:
        super().__init__()
        self.tracker = tracker

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Tell the tracker whether guesses follow."""
        if torch.compiler.is_compiling():
            return
        keep = kwargs.get("logits_to_keep")
        by_generate = kwargs.get("position_ids") is not None and next(caches_in(kwargs), None) is not None
        self.tracker.expect_guesses(by_generate and isinstance(keep, int) and keep > 1)

    def entered(self, module: nn.Module, method: str) -> None:
        """Refuse to run many requests in one row."""
        raise _rows_are_tokens(method)


def _rows_are_tokens(what: str) -> UnsupportedError:
    return UnsupportedError(
        what,
        "continuous batching packs the tokens of many requests into one row, so that neither phases, thinking nor the "
        "rows of a batch can be told",
        got="a record, a scope other than 'all', or one config for each row",
        expected="one config with scope 'all'",
        fix="Use generate with a padded batch, or remove the intervention before.",
    )
