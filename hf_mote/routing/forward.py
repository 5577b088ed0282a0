"""`Forward`: what the rows of one forward pass are, prompt or generated, thinking or answer, token or padding."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from hf_mote.errors import UnsupportedError

__all__ = ["Forward", "Part", "Phase", "all_of", "real_tokens"]

Phase = Literal["prompt", "generation"]
Part = Literal["thinking", "answer"]


@dataclass(frozen=True)
class Forward:
    """One forward pass of the decoder.

    Attributes:
        batch (`int`): Sequences.
        length (`int`): Tokens of each sequence in this pass.
        device (`torch.device`): Where the tokens are.
        run (`int`): Number of the run; passes that continue the same sequences share it.
        generation_from (`int`): Columns from here on are generated tokens, those before are prompt.
        seen (`int`): Columns before this were routed in an earlier pass already (generation without a cache).
        real (`torch.Tensor`, *optional*): False for padding, `(batch, length)`; `None` if there is none.
        ids (`torch.Tensor`, *optional*): Token ids, `(batch, length)`; `None` if the forward was given embeddings.
        unclear (`str`, *optional*): Why prompt and generation cannot be told apart; `None` if they can.
        unread (`str`, *optional*): Why it is not known what was read before, nor in which row; `None` if it is.
        packed (`bool`): Whether a row holds several sequences, one after the other.
        parts (`dict`): For each pair of tokens that open and close the thinking, what each token belongs to,
            `(batch, length)`: 0 neither, 1 thinking, 2 answer.
        moved (`torch.Tensor`, *optional*): The row that each row's sequence was in, in the pass before, `(batch,)`, -1
            for none; `None` if none is known to have moved, as beams do.
    """

    batch: int
    length: int
    device: torch.device
    run: int = 0
    generation_from: int = 0
    seen: int = 0
    real: Tensor | None = None
    ids: Tensor | None = None
    unclear: str | None = None
    unread: str | None = None
    packed: bool = False
    parts: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    moved: Tensor | None = None

    def check_rows(self, where: str) -> None:
        """Refuse a pass whose rows may not be the sequences that they are taken for.

        Args:
            where (`str`): Who takes them for sequences.

        Raises:
            [`UnsupportedError`]: if a row holds several sequences, or it is not known what was read before.
        """
        if self.packed or self.unread is not None:
            raise UnsupportedError(
                where,
                "the rows of the batch may not be sequences"
                + (": position ids start anew in the middle of a row" if self.unread is None else f": {self.unread}"),
                expected="one sequence in each row, padded",
                fix="Give one sequence to each row and use generate, not generate_batch or packed sequences; "
                "or use scope 'all', one config and no record.",
            )

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases that this pass has tokens of.

        Raises:
            [`UnsupportedError`]: if prompt and generation cannot be told apart.
        """
        if self.unclear is not None:
            raise UnsupportedError(
                "forward pass",
                f"prompt and generation cannot be told apart: {self.unclear}",
                got=f"{self.length} tokens in one pass",
                expected="the whole prompt on an empty cache, or one token after all that was read before",
                fix="Generate without prefill_chunk_size, assistant or prompt lookup, and without a cache from "
                "before; or use scope 'all' and no record.",
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

    def tokens_in(self, part: Part, thinking_tokens: tuple[int, int]) -> Tensor:
        """Return which rows are thinking or answer, bool `(batch * length,)`.

        Thinking is what lies between the tokens that open and close it, the opening one included; the answer begins
        with the closing one. A sequence without these tokens has neither.

        Args:
            part (`str`): `"thinking"` or `"answer"`.
            thinking_tokens (`tuple[int, int]`): The tokens that open and close the thinking.

        Raises:
            [`UnsupportedError`]: if the pass was given embeddings, or is a recomputation of gradient checkpointing.
        """
        parts = self.parts.get(thinking_tokens)
        if parts is None:
            raise UnsupportedError(
                "forward pass",
                f"cannot tell which tokens are {part}",
                got=self.unread
                or "embeddings, a cache that was filled unseen, or layers that gradient checkpointing runs again",
                expected="token ids, from the beginning of the text on",
                fix="Give input_ids and the whole text, and train without gradient checkpointing under this scope.",
            )
        return (parts == (1 if part == "thinking" else 2)).reshape(-1)

    def countable(self, phase: Phase) -> Tensor | None:
        """Return which rows to count for a phase: real tokens, each once; `None` means all of them."""
        real = None if self.real is None else self.real.reshape(-1)
        new = None
        if self.seen:
            new = (torch.arange(self.length, device=self.device) >= self.seen).repeat(self.batch)
        return all_of(self.tokens_of(phase), real, new)


def all_of(*masks: Tensor | None) -> Tensor | None:
    """Return where all masks are true; `None` stands for everywhere."""
    found = None
    for mask in masks:
        if mask is not None:
            found = mask if found is None else found & mask
    return found


def real_tokens(mask: object, batch: int, length: int, past: int) -> Tensor | None:
    """Return False for padding, `(batch, length)`, from a decoder's attention mask; `None` if there is no mask.

    Args:
        mask (`object`): The mask, 2-D or as a static cache has it, or a dict of masks.
        batch (`int`): Sequences.
        length (`int`): Tokens of each in this pass.
        past (`int`): Tokens in the cache.

    Raises:
        [`UnsupportedError`]: if the mask is of another kind.
    """
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
