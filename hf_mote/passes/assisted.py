"""The hook on the model that `generate` calls: token ids, guesses of assisted decoding, continuous batching.

The first pass of assisted decoding, or of prompt lookup, reads the prompt and guesses at once. The guesses
are recognised by `logits_to_keep`, which asks for logits after each of them and which the decoder does not receive.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import GenerationMixin

from hf_mote.errors import RouterContractError, UnsupportedError
from hf_mote.hooks import Attachment, SharedHook, stack_on
from hf_mote.passes.arguments import caches_in
from hf_mote.passes.decoder_hook import DecoderHook
from hf_mote.passes.forward import DecoderParticipant, Phase

__all__ = ["assisted_decoding_hooks"]


def assisted_decoding_hooks(
    model: nn.Module, decoder: nn.Module, tracker: DecoderHook, watcher: DecoderParticipant
) -> list[Attachment]:
    """Return the attachments by which a decoder's tracker is informed of guesses.

    Args:
        model (`nn.Module`): The model.
        decoder (`nn.Module`): Its decoder.
        tracker (`DecoderHook`): The hook on the decoder.
        watcher (`DecoderParticipant`): The intervention's watcher.
    """
    callers = _callers(model.modules(), decoder) or _callers(gc.get_objects(), decoder)
    for caller in callers:
        # A running manager of continuous batching would continue in a thread of its own.
        for value in vars(caller).values():
            if hasattr(value, "add_requests") and getattr(value, "is_running", bool)():
                raise _rows_are_tokens(type(value).__name__)
    if callers:
        tracker.watches_generate = True
    return [Attachment(caller, stack_on(caller, _CallerStack) or _CallerStack(tracker), watcher) for caller in callers]


def _callers(among: Iterable[object], decoder: nn.Module) -> list[nn.Module]:
    """The models whose `generate` calls a decoder.

    A decoder has no reference to the model that contains it. Where only the decoder is given, that model is searched
    among all live objects: otherwise its `generate` would not be observed, and guesses would be taken for prompts.
    """
    # By type(), since isinstance() asks objects that answer for others, such as weak proxies.
    found = [part for part in among if issubclass(type(part), GenerationMixin)]
    modules = [cast("nn.Module", part) for part in found if issubclass(type(part), nn.Module)]
    return [part for part in modules if any(inner is decoder for inner in part.modules())]


class _CallerStack(SharedHook):
    """The hook on a model that `generate` calls; it refuses continuous batching and checks the output."""

    entrances = ("generate", "init_continuous_batching", "continuous_batching_context_manager", "generate_batch")

    def __init__(self, tracker: DecoderHook) -> None:
        super().__init__()
        self.tracker = tracker

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Inform the tracker whether guesses follow, and which ids the decoder will get as embeddings."""
        keep = kwargs.get("logits_to_keep")
        several = isinstance(keep, int) and keep > 1 and kwargs.get("position_ids") is not None
        guessed = several and next(caches_in(kwargs), None) is not None
        self.tracker.compiled_guesses = guessed
        if torch.compiler.is_compiling():
            return
        ids = kwargs.get("input_ids", args[0] if args else None)
        self.tracker.expect(guessed, ids if isinstance(ids, Tensor) and not ids.is_floating_point() else None)

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Reset the tracker if no decoder ran."""
        if not torch.compiler.is_compiling():
            self.tracker.expect(False, None)
        self.tracker.compiled_guesses = False

    def failed(self) -> None:
        """Reset the tracker."""
        self.tracker.expect(False, None)
        self.tracker.compiled_guesses = False

    def around(self, module: nn.Module, method: str, call: Callable[[], Any], args: Any, kwargs: Any) -> Any:
        """Refuse to run many requests in one row, and a generation whose passes were misread."""
        if method != "generate":
            raise _rows_are_tokens(method)
        self.tracker.compiled_passes, self.tracker.compiled_prompt = False, 0
        with self.tracker.generating() as columns:
            output = call()
        compiled = self.tracker.compiled_passes
        # Rejected guesses are counted, too; where phases matter they are refused.
        if any(p.active and isinstance(p, DecoderParticipant) and p.needs_phases for p in self.participants):
            if self.tracker.compiled_without_cache:
                raise UnsupportedError(
                    "generate",
                    "in a graph compiled without a cache every step looks like a prompt",
                    got="a compiled model that generates without a cache, under a scope",
                    fix="Generate with a cache, or do not compile the model.",
                )
            if compiled:
                columns["prompt"] += self.tracker.compiled_prompt
            _check_columns(columns, output, [*args, *kwargs.values()], compiled=compiled)
        return output


def _check_columns(columns: Mapping[Phase, int], output: Any, given: Sequence[object], *, compiled: bool) -> None:
    """Compare the columns that were read as prompt with the prompt, as far as input and output show it.

    Of what a compiled graph ran, generated tokens are not counted. A prompt that is more than token ids is not looked
    at.
    """
    tensors = [value for value in given if isinstance(value, Tensor)]
    sequences = output if isinstance(output, Tensor) else getattr(output, "sequences", None)
    if sequences is None or any(tensor.is_floating_point() for tensor in tensors):
        return
    start = next((ids for ids in tensors if _begins(sequences, ids)), None)
    if start is None:
        return
    length = start.shape[1]
    prompt, generated = columns["prompt"], columns["generation"]
    whole = compiled or prompt + generated == sequences.shape[1] - 1
    if prompt > length or (whole and prompt != length):
        raise RouterContractError(
            "generate",
            "its passes were misread: prompt and generated tokens do not add up to the output",
            got=f"{prompt} prompt" + ("" if compiled else f" and {generated} generated") + " tokens",
            expected=f"{length}" + ("" if compiled else f" and {sequences.shape[1] - length - 1}"),
            fix="Generate without prefill_chunk_size"
            + (", or with disable_compile=True" if compiled else "")
            + "; if it persists, run the canaries and report the version of transformers.",
        )


def _begins(sequences: Tensor, ids: Tensor) -> bool:
    """Whether the rows of ids each begin the same number of sequences, one after the other."""
    if ids.ndim != 2 or ids.shape[1] > sequences.shape[1] or not len(ids) or len(sequences) % len(ids):
        return False
    return torch.equal(sequences[:: len(sequences) // len(ids), : ids.shape[1]], ids.to(sequences.device))


def _rows_are_tokens(what: str) -> UnsupportedError:
    return UnsupportedError(
        what,
        "continuous batching packs the tokens of many requests into one row, so that neither phases, thinking nor the "
        "rows of a batch are known",
        got="a record, a scope other than 'all', positions, or one config for each row",
        expected="one config with scope 'all' and without positions",
        fix="Use generate with a padded batch, or remove the intervention before.",
    )
