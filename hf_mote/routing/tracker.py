"""Where in a text a forward pass stands: which tokens are prompt, which are generated, which are padding.

Routers see flattened rows without any of this. One [`TokenTracker`] sits on the decoder, reads the arguments of each
forward, and tells routers' edits and recorders what the rows are. It also checks that every hooked router really ran.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hf_mote.errors import LivenessError, UnsupportedError
from hf_mote.hooks import HookStack, Participant

__all__ = ["Forward", "Phase", "TokenTracker"]

Phase = Literal["prompt", "generation"]


@dataclass(frozen=True)
class Forward:
    """One forward pass of the decoder.

    Attributes:
        batch (`int`): Sequences.
        length (`int`): Tokens of each sequence in this pass.
        generation_from (`int`): Columns from here on are generated tokens, those before are prompt.
        seen (`int`): Columns before this were routed in an earlier pass already (generation without a cache).
        starts (`bool`): Whether the sequences are new.
        real (`torch.Tensor`, *optional*): False for padding, `(batch, length)`; `None` if there is none.
        device (`torch.device`): Where the tokens are.
        ids (`torch.Tensor`, *optional*): Token ids, `(batch, length)`; `None` if the forward was given embeddings.
    """

    batch: int
    length: int
    generation_from: int
    seen: int
    starts: bool
    real: Tensor | None
    device: torch.device
    ids: Tensor | None = None

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases that this pass has tokens of."""
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

    def countable(self, phase: Phase) -> Tensor | None:
        """Return which rows to count for a phase: real tokens, each once; `None` means all of them."""
        masks = [self.tokens_of(phase)]
        if self.real is not None:
            masks.append(self.real.reshape(-1))
        if self.seen:
            masks.append((torch.arange(self.length, device=self.device) >= self.seen).repeat(self.batch))
        present = [mask for mask in masks if mask is not None]
        return torch.stack(present).all(dim=0) if present else None


class TokenTracker(HookStack):
    """The hook on the decoder, shared by all interventions of a model.

    A forward with an empty cache, or of more than one token, reads prompt; a single token on a filled cache is a
    generated one. Without a cache, a forward whose tokens extend those of the one before by exactly one column is the
    next step of a generation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now: Forward | None = None
        self.passes = 0
        self._prompt_length = 0
        self._previous: Tensor | None = None

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
        past = int(cache.get_seq_length()) if cache is not None else 0
        seen, starts, generation_from = 0, past == 0, length
        if past and length == 1:
            generation_from = 0
        elif not past and self._extends_previous(ids, kwargs):
            seen, starts, generation_from = length - 1, False, self._prompt_length
        if starts:
            self._prompt_length = length
        self._previous = ids if cache is None else None
        real = _real_tokens(kwargs.get("attention_mask"), batch, length, past)
        self.now = Forward(batch, length, generation_from, seen, starts, real, tokens.device, ids)
        self.passes += 1
        for participant in self.participants:
            if isinstance(participant, Watcher) and participant.active:
                participant.on_forward(self.now)

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Check that the routers of newly attached interventions ran."""
        for participant in self.participants:
            if isinstance(participant, Watcher):
                participant.check_alive(self.passes)

    def _extends_previous(self, ids: Tensor | None, kwargs: dict[str, Any]) -> bool:
        before = self._previous
        if before is None or ids is None or kwargs.get("use_cache"):
            return False
        grown = ids.shape[0] == before.shape[0] and ids.shape[1] == before.shape[1] + 1
        return grown and torch.equal(ids[:, :-1], before)


class Watcher(Participant):
    """A participant on the decoder: hears of each forward, and knows which routers must run in it."""

    def __init__(self) -> None:
        self.fired: dict[str, int] = {}
        self._proven = False

    def expect(self, path: str) -> None:
        """Expect the router at a path to run in every forward."""
        self.fired[path] = 0

    def on_forward(self, forward: Forward) -> None:
        """Hear of a forward that begins."""

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
                fix="A fused kernel or a graph compiled before attaching bypasses the module: attach first and "
                "compile afterwards, load without use_kernels, and dequantise MXFP4 weights.",
            )
        self._proven = True


def _real_tokens(mask: object, batch: int, length: int, past: int) -> Tensor | None:
    """Return False for padding, `(batch, length)`, from the attention mask of a decoder's forward."""
    if isinstance(mask, dict):
        mask = next(iter(mask.values()), None)
    if mask is None:
        return None
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] >= length:
        return mask[:, -length:].bool()
    if isinstance(mask, Tensor) and mask.ndim == 4:
        # A static cache comes with a ready (batch, 1, length, cache) mask: a token is real if it attends to itself.
        own = mask[:, 0].diagonal(offset=past, dim1=-2, dim2=-1)[:, :length]
        return (own if own.dtype == torch.bool else own > torch.finfo(own.dtype).min / 2).expand(batch, length)
    raise UnsupportedError(
        "attention_mask",
        "cannot tell padding from tokens",
        got=type(mask).__name__ + (str(tuple(mask.shape)) if isinstance(mask, Tensor) else ""),
        expected="a 2-D mask (batch, seq), or none",
        fix='Use attn_implementation="sdpa" or "eager".',
    )
