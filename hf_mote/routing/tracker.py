"""Where in a text a forward pass stands: which tokens are prompt, which are generated, which are padding.

Routers see flattened rows without any of this. One [`TokenTracker`] sits on the decoder, reads the arguments of each
forward, and tells routers' edits and recorders what the rows are. It also checks that every hooked router really ran.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hf_mote.errors import LivenessError, UnsupportedError
from hf_mote.hooks import HookStack, Participant
from hf_mote.routing.forward import Forward, real_tokens

__all__ = ["TokenTracker", "Watcher", "recomputing"]


class TokenTracker(HookStack):
    """The hook on the decoder, shared by all interventions of a model.

    A forward with an empty cache reads prompt; a single token on a filled cache is a generated one. Where the caller
    asks for no cache and gives position ids, as `generate` does, a forward whose tokens extend those of the one before
    by exactly one column is the next step of a generation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0
        self._now: Forward | None = None
        self._inside = False
        self._run = 0
        self._prompt_length = 0
        self._previous: Tensor | None = None
        self._parts: dict[tuple[int, int], Tensor] = {}

    def forward_of(self, rows: int) -> Forward | None:
        """Return the pass that a router's rows belong to, or `None` if they belong to none.

        Gradient checkpointing runs layers again outside the pass; those rows are a training step's, all prompt.

        Args:
            rows (`int`): Rows that the router sees.
        """
        now = self._now
        if now is None:
            return None
        if self._inside:
            return now if now.batch * now.length == rows else None
        if recomputing() and rows % now.batch == 0:
            length = rows // now.batch
            return Forward(now.batch, length, now.device, generation_from=length)
        return None

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Read the arguments of a decoder's forward."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        tokens = ids if ids is not None else kwargs.get("inputs_embeds")
        if tokens is None:
            raise UnsupportedError(
                type(module).__name__, "the forward has neither input_ids nor inputs_embeds", got=sorted(kwargs)
            )
        batch, length = tokens.shape[:2]
        cache = kwargs.get("past_key_values")
        if torch.compiler.is_compiling():
            self._trace(ids, tokens, cache)
            return
        past = int(cache.get_seq_length()) if cache is not None else 0
        seen, generation_from = 0, length
        if past:
            generation_from = 0
        elif self._extends_previous(ids, kwargs):
            seen, generation_from = length - 1, self._prompt_length
        else:
            self._run += 1
            self._prompt_length = length
        self._previous = ids if cache is None else None
        self._now = Forward(
            batch,
            length,
            tokens.device,
            run=self._run,
            generation_from=generation_from,
            seen=seen,
            real=real_tokens(kwargs.get("attention_mask"), batch, length, past),
            ids=ids,
            ambiguous=past > 0 and length > 1,
            parts=self._parts_of(ids, continues=past > 0),
        )
        self._inside = True
        self.passes += 1
        for participant in self.participants:
            if isinstance(participant, Watcher) and participant.active:
                participant.on_forward(self._now, cache)

    def _trace(self, ids: Tensor | None, tokens: Tensor, cache: Any) -> None:
        """What can be said in a graph that will run many times: no counters, no lengths that live on a device."""
        batch, length = tokens.shape[:2]
        self._now = Forward(
            batch,
            length,
            tokens.device,
            generation_from=0 if cache is not None and length == 1 else length,
            ids=ids,
            ambiguous=cache is not None and length > 1,
            parts=self._parts_of(ids, continues=cache is not None and length == 1),
        )
        self._inside = True
        for participant in self.participants:
            if isinstance(participant, Watcher) and participant.active:
                participant.on_trace(self._now)

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Check that the routers of newly attached interventions ran."""
        self._inside = False
        if torch.compiler.is_compiling():
            return
        for participant in self.participants:
            if isinstance(participant, Watcher):
                participant.check_alive(self.passes)
                if participant.active and self._now is not None:
                    participant.on_end(self._now, getattr(output, "past_key_values", None))

    def _extends_previous(self, ids: Tensor | None, kwargs: dict[str, Any]) -> bool:
        # Only where the caller asks for no cache, as `generate` does: plain forwards leave the choice to the config.
        # It also hands over position ids, which plain forwards leave to the model.
        before = self._previous
        by_generate = kwargs.get("use_cache") is False and kwargs.get("position_ids") is not None
        if before is None or ids is None or not by_generate:
            return False
        grown = ids.shape[0] == before.shape[0] and ids.shape[1] == before.shape[1] + 1
        return grown and torch.equal(ids[:, :-1], before)

    def _parts_of(self, ids: Tensor | None, *, continues: bool) -> dict[tuple[int, int], Tensor]:
        """For each pair of thinking tokens that somebody asks for, what each token belongs to."""
        pairs = {
            pair
            for participant in self.participants
            if isinstance(participant, Watcher)
            for pair in participant.thinking_tokens
        }
        if ids is None:
            self._parts = {}
            return {}
        carried = self._parts if continues else {}
        found = {}
        for opens, closes in pairs:
            begun = carried.get((opens, closes))
            if begun is None or len(begun) != len(ids):
                begun = torch.zeros(len(ids), dtype=torch.long, device=ids.device)
            # The last mark at or before each token decides; without one, what held when the pass began.
            marks = (ids == opens).long() + 2 * (ids == closes).long()
            columns = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
            last = torch.where(marks > 0, columns, -1).cummax(dim=1).values
            found[opens, closes] = torch.where(last >= 0, marks.gather(1, last.clamp(min=0)), begun[:, None])
        self._parts = {pair: parts[:, -1] for pair, parts in found.items()}
        return found


class Watcher(Participant):
    """A participant on the decoder: hears of each forward, and knows which routers must run in it."""

    thinking_tokens: frozenset[tuple[int, int]] = frozenset()
    """Pairs of tokens that open and close the thinking, which the intervention wants to know about."""

    def __init__(self) -> None:
        self.fired: dict[str, int] = {}
        self._proven = False

    def expect(self, path: str) -> None:
        """Expect the router at a path to run in every forward."""
        self.fired[path] = 0

    def on_forward(self, forward: Forward, cache: Any) -> None:
        """Hear of a forward that begins, with the cache it is given."""

    def on_trace(self, forward: Forward) -> None:
        """Hear of a forward that is being compiled; raise if that cannot work."""

    def on_end(self, forward: Forward, cache: Any) -> None:
        """Hear of a forward that ends, with the cache it leaves."""

    def check_alive(self, passes: int) -> None:
        """Raise [`LivenessError`] if a router did not run in the first forward since attaching."""
        if self._proven or not self.active:
            return
        silent = [path for path, last in self.fired.items() if last != passes]
        if silent:
            raise LivenessError(
                silent[0],
                f"{len(silent)} of {len(self.fired)} hooked routers did not run in the forward pass",
                expected="every router to run",
                fix="A fused kernel bypasses the module: load without use_kernels, and dequantise MXFP4 weights.",
            )
        self._proven = True


def recomputing() -> bool:
    """Whether gradient checkpointing is running a layer again, during a backward pass."""
    return torch._C._current_graph_task_id() != -1
