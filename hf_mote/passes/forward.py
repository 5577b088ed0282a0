"""`Forward`: what the rows of one forward pass are: prompt or generated, thinking or answer, padding, which place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from hf_mote.errors import LivenessError, UnsupportedError
from hf_mote.hooks import Participant, compiled_parts
from hf_mote.passes.arguments import widest
from hf_mote.passes.cached_text import ThinkingTokens

__all__ = ["DecoderParticipant", "Forward", "Phase", "ThinkingPart", "all_of", "are_at", "real_tokens", "why_stopped"]

Phase = Literal["prompt", "generation"]
ThinkingPart = Literal["thinking", "answer"]

_UNSEEN = "a cache that was filled in passes that were not seen, or whose sequences were exchanged"
_UNCOMPILED = "Do not compile the model; generate takes disable_compile=True. Or use scope 'all'."


@dataclass(frozen=True)
class Forward:
    """One forward pass of the decoder.

    Attributes:
        batch (`int`): Sequences.
        length (`int`): Tokens of each sequence in this pass.
        device (`torch.device`): Where the tokens are.
        run_id (`int`): Number of the run; passes that continue the same sequences share it.
        generation_from (`int`): Columns from here on are generated tokens, those before are prompt.
        first_new_column (`int`): Columns before this were routed in an earlier pass (generation without a cache).
        real (`torch.Tensor`, *optional*): False for padding, `(batch, length)`; `None` if there is none.
        ids (`torch.Tensor`, *optional*): Token ids, `(batch, length)`; `None` if the forward was given embeddings.
        unclear (`str`, *optional*): Why prompt and generation cannot be distinguished; `None` if they can.
        unread (`str`, *optional*): Why it is not known what was read before, nor in which row; `None` if it is.
        packed (`str`, *optional*): What shows that a row holds several sequences, one after the other; `None` if
            nothing does.
        compiled (`bool`): Whether the pass is one of a graph that is being compiled.
        recomputed (`bool`): Whether gradient checkpointing runs layers of a pass again, of which little is known.
        thinking (`dict`): For each pair of tokens that open and close the thinking, the part of each token,
            `(batch, length)`: 0 neither, 1 thinking, 2 answer.
        moved (`torch.Tensor`, *optional*): The row that each row's sequence was in, in the pass before, `(batch,)`, -1
            for a new one; `None` if no row is known to have moved, as beams do.
        places (`torch.Tensor`, *optional*): The place of each token in its sequence, counted from 0 without padding,
            `(batch, length)`; `None` if it was not asked for, or is not known.
    """

    batch: int
    length: int
    device: torch.device
    run_id: int = 0
    generation_from: int = 0
    first_new_column: int = 0
    real: Tensor | None = None
    ids: Tensor | None = None
    unclear: str | None = None
    unread: str | None = None
    packed: str | None = None
    compiled: bool = False
    recomputed: bool = False
    thinking: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    moved: Tensor | None = None
    places: Tensor | None = None

    def check_rows(self, where: str) -> None:
        """Refuse a pass whose rows may not be whole sequences.

        Args:
            where (`str`): The caller, for the error.

        Raises:
            [`UnsupportedError`]: if a row holds several sequences, or it is not known what was read before.
        """
        reason = self.unread or self.packed
        if reason is not None:
            raise UnsupportedError(
                where,
                f"the rows of the batch may not be sequences: {reason}",
                expected="one sequence in each row, padded",
                fix="Give one sequence to each row and use generate, not generate_batch or packed sequences; "
                "or use scope 'all', one config and no record.",
            )

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases of the tokens of this pass.

        Raises:
            [`UnsupportedError`]: if prompt and generation cannot be distinguished.
        """
        if self.unclear is not None:
            raise UnsupportedError(
                "forward pass",
                f"prompt and generation cannot be distinguished: {self.unclear}",
                got=f"{self.length} tokens in one pass",
                expected="the whole prompt on an empty cache, or one token after all that was read before",
                fix=_UNCOMPILED
                if self.compiled
                else "Generate without prefill_chunk_size, assistant or prompt lookup, and without a cache from "
                "before; or use scope 'all', no positions and no record.",
            )
        if self.generation_from >= self.length:
            return ("prompt",)
        return ("generation",) if self.generation_from == 0 else ("prompt", "generation")

    def tokens_of(self, phase: Phase) -> Tensor | None:
        """Return which rows are of a phase, bool `(batch * length,)`; `None` means all of them."""
        if self.phases == (phase,):
            return None
        if phase not in self.phases:
            return torch.zeros(self.batch * self.length, dtype=torch.bool, device=self.device)
        columns = torch.arange(self.length, device=self.device) >= self.generation_from
        return (columns if phase == "generation" else ~columns).repeat(self.batch)

    def tokens_in(self, part: ThinkingPart, thinking_tokens: tuple[int, int]) -> Tensor:
        """Return which rows are thinking or answer, bool `(batch * length,)`.

        Thinking is between the tokens that open and close it, the opening one included; the answer begins with the
        closing one. A sequence without these tokens has neither.

        Args:
            part (`str`): `"thinking"` or `"answer"`.
            thinking_tokens (`tuple[int, int]`): The tokens that open and close the thinking.

        Raises:
            [`UnsupportedError`]: if the pass was given embeddings, is a recomputation of gradient checkpointing, or
                continues a text in a compiled graph, and if a row holds several sequences.
        """
        labels = self.thinking.get(thinking_tokens)
        if labels is None or self.packed is not None:
            got, fix = self.unread or self.packed, "Give input_ids and the whole text, one to each row."
            if got is None and self.compiled:
                got, fix = "a compiled graph, which cannot know whether the text in the cache is thinking", _UNCOMPILED
            elif got is None and self.ids is None:
                got = "embeddings, or layers that gradient checkpointing runs again"
                fix = "Give input_ids, and train without gradient checkpointing under this scope."
            raise UnsupportedError(
                "forward pass",
                f"cannot determine which tokens are {part}",
                got=got or _UNSEEN,
                expected="token ids, from the beginning of the text on",
                fix=fix,
            )
        return (labels == (1 if part == "thinking" else 2)).reshape(-1)

    def tokens_at(self, positions: Sequence[int]) -> Tensor:
        """Return which rows are at some positions of their sequence, bool `(batch * length,)`; padding is at none.

        Args:
            positions (`Sequence[int]`): 0, 1, ... from the first token of the sequence on, prompt and generated tokens
                alike; -1, -2, ... from the last token of the prompt back.

        Raises:
            [`UnsupportedError`]: if prompt and generation cannot be told apart, or the tokens before the pass cannot
                be counted: in a compiled graph, in layers that gradient checkpointing runs again, on a cache that was
                filled unseen, and if a row holds several sequences.
        """
        places = self._known_places()
        phases = self.phases
        prompt = None
        if "prompt" in phases:
            columns = torch.arange(self.length, device=self.device) < self.generation_from
            prompt = columns.expand_as(places) if self.real is None else columns & self.real
        found = are_at(positions, places, prompt)
        return (found if self.real is None else found & self.real).reshape(-1)

    def tokens_between(self, start: int, stop: int | None) -> Tensor:
        """Return which rows are at positions from `start` on and before `stop`, bool `(batch * length,)`.

        Positions count from the first token of the sequence, prompt and generated tokens alike; padding has none.

        Args:
            start (`int`): 0 or more.
            stop (`int`, *optional*): The position after the last one; `None` for all to the end.

        Raises:
            [`UnsupportedError`]: if the tokens before the pass cannot be counted, as for [`Forward.tokens_at`].
        """
        places = self._known_places()
        found = places >= start
        if stop is not None:
            found = found & (places < stop)
        return (found if self.real is None else found & self.real).reshape(-1)

    def _known_places(self) -> Tensor:
        if self.places is None or self.packed is not None:
            got, fix = self.unread or self.packed, "Give the whole text, one sequence to each row, padded."
            if got is None and self.compiled:
                got = "a compiled graph, which cannot count what is in the cache"
                fix = "Do not compile the model; generate takes disable_compile=True. Or name no positions."
            elif got is None and self.recomputed:
                got = "layers that gradient checkpointing runs again"
                fix = "Train without gradient checkpointing where tokens are named by their positions."
            raise UnsupportedError(
                "forward pass",
                "cannot tell which position each token is at",
                got=got or _UNSEEN,
                expected="the whole text from its first token on, or one token after all that was read before",
                fix=fix,
            )
        return self.places

    def countable(self, phase: Phase) -> Tensor | None:
        """Return which rows to count for a phase: real tokens, each once; `None` means all of them."""
        real = None if self.real is None else self.real.reshape(-1)
        new = None
        if self.first_new_column:
            new = (torch.arange(self.length, device=self.device) >= self.first_new_column).repeat(self.batch)
        return all_of(self.tokens_of(phase), real, new)


def are_at(positions: Sequence[int], places: Tensor, prompt: Tensor | None) -> Tensor:
    """Return which tokens are at some positions, bool `(batch, length)`; what is padding is left to the caller.

    Args:
        positions (`Sequence[int]`): As [`Forward.tokens_at`] has them.
        places (`torch.Tensor` of shape `(batch, length)`, int64): The place of each token in its sequence, from 0.
        prompt (`torch.Tensor` of shape `(batch, length)`, bool, *optional*): The tokens of the whole prompt; `None` if
            the pass has none of them.
    """
    ahead, back = [at for at in positions if at >= 0], [at for at in positions if at < 0]
    found = torch.isin(places, torch.tensor(ahead, dtype=torch.long, device=places.device))
    if not back or prompt is None:
        return found
    from_end = places - prompt.sum(dim=1, keepdim=True)
    return found | (prompt & torch.isin(from_end, torch.tensor(back, device=places.device)))


def all_of(*masks: Tensor | None) -> Tensor | None:
    """Return where all masks are true; `None` stands for everywhere."""
    found = None
    for mask in masks:
        if mask is not None:
            found = mask if found is None else found & mask
    return found


def real_tokens(mask: object, batch: int, length: int, past: int, *, by_place: bool = False) -> Tensor | None:
    """Return False for padding, `(batch, length)`, from a decoder's attention mask; `None` if there is no mask.

    Args:
        mask (`object`): The mask, 2-D or as a static cache has it, or a dict of masks.
        batch (`int`): Sequences.
        length (`int`): Tokens of each in this pass.
        past (`int`): Tokens in the cache.
        by_place (`bool`, *optional*, defaults to `False`): Whether a 2-D mask has a column for each place of a cache
            of fixed size, and not for each token that was read.

    Raises:
        [`UnsupportedError`]: if the mask is of another kind.
    """
    mask = widest(mask)
    if mask is None:
        return None
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] >= length:
        return (mask[:, past : past + length] if by_place else mask[:, -length:]).bool()
    if isinstance(mask, Tensor) and mask.ndim == 4:
        # A static cache comes with a ready (batch, 1, length, cache) mask: a token is real if it attends to itself.
        # Past the end of a window the newest tokens stand last.
        full = past + length > mask.shape[-1]
        own = (mask[..., -length:] if full else mask)[:, 0].diagonal(offset=0 if full else past, dim1=-2, dim2=-1)
        own = own[:, :length]
        return (own if own.dtype == torch.bool else own > torch.finfo(own.dtype).min / 2).expand(batch, length)
    raise UnsupportedError(
        "attention_mask",
        "cannot tell padding from tokens",
        got=type(mask).__name__ + (str(tuple(mask.shape)) if isinstance(mask, Tensor) else ""),
        expected="a 2-D mask (batch, seq), or none",
        fix='Use attn_implementation="sdpa" or "eager".',
    )


def why_stopped(model: nn.Module) -> str | None:
    """Return why hooks on a model's parts may be bypassed since they first ran; `None` if nothing shows it.

    Args:
        model (`nn.Module`): The model.
    """
    parts = compiled_parts(model)
    if not parts:
        return None
    return (
        f"{len(parts)} parts, such as {parts[0] or type(model).__name__}, were compiled by themselves, and torch runs "
        "the graph of one part for all of its kind, with or without hooks"
    )


class DecoderParticipant(Participant):
    """A participant on the decoder: it is called for each forward, and has the list of routers that must run in it."""

    thinking_tokens: frozenset[ThinkingTokens] = frozenset()
    """Pairs of tokens that open and close the thinking, which the intervention distinguishes."""

    needs_passes: bool = True
    """Whether it depends on what the tokens of a pass are, and on when it begins and ends."""

    needs_rows: bool = False
    """Whether it depends on sequences that move to another row of the batch."""

    needs_phases: bool = False
    """Whether it depends on which tokens are prompt and which are generated."""

    needs_places: bool = False
    """Whether it matters to it at which place of its sequence a token is."""

    why_silent: Callable[[str], str] | None = None
    """Returns the visible reason why a router did not run, from its path."""

    def __init__(self) -> None:
        self._expected: dict[str, Participant] = {}
        self._proven = False

    def expect(self, path: str, participant: Participant) -> None:
        """Expect the router at a path, and this participant on it, to run in every forward."""
        participant.ran = False
        self._expected[path] = participant

    why_stopped: Callable[[], str | None] | None = None
    """Returns why a router that had run before did not run again, if it was bypassed."""

    def begin(self) -> None:
        """Called when a forward pass begins and no other is running, for all participants: nothing has run yet."""
        if self.active:
            for participant in self._expected.values():
                participant.ran = False

    def on_forward(self, forward: Forward) -> None:
        """Called when a forward pass begins."""

    def reads(self, forward: Forward) -> bool:
        """Return whether its observers use what routers do in the current forward."""
        return True

    def needs_routers(self, forward: Forward) -> bool:
        """Return whether routers must be observed: for its observers, or to check that they run."""
        return self.active and (not self._proven or self.reads(forward))

    def on_trace(self, forward: Forward) -> None:
        """Called when a forward pass is being compiled; raises if that cannot work."""

    def on_end(self, forward: Forward) -> None:
        """Called when a forward pass ends."""

    def check_alive(self) -> None:
        """Raise [`LivenessError`] if a router did not run in the first forward since attaching, or was bypassed."""
        if not self.active:
            return
        silent = [path for path, participant in self._expected.items() if not participant.ran]
        if silent and self._proven:
            self.check_stopped(silent)
        elif silent:
            raise LivenessError(
                silent[0],
                f"{len(silent)} of {len(self._expected)} hooked routers did not run in the forward pass",
                expected="every router to run",
                fix=None if self.why_silent is None else self.why_silent(silent[0]),
            )
        self._proven = True

    def check_stopped(self, silent: list[str]) -> None:
        """Raise [`LivenessError`] if parts that had run before were bypassed; layers may be skipped on purpose.

        Args:
            silent (`list[str]`): The paths of the parts.
        """
        why = None if self.why_stopped is None else self.why_stopped()
        if why is not None:
            raise LivenessError(
                silent[0],
                f"{len(silent)} of {len(self._expected)} hooks did not run in a forward pass: {why}",
                expected="every hook to run",
                fix="Remove what is attached and attach it again, or do not compile parts of the model.",
            )
