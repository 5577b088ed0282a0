"""Which tokens are imaged: the prompt or parts of it, the generation, the thinking, the answer.

A scope is a name. Some are a phase of the recording; the others narrow it to some rows of each forward
pass, by the prompt's own tokens (`last`, `first:n`, `user`) or by the tokens that open and close the thinking.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, cast

from hf_mote.errors import ConfigError, UnknownNameError

if TYPE_CHECKING:
    from torch import Tensor

    from hf_mote.passes.forward import Forward, Phase, ThinkingPart

__all__ = ["SCOPES", "ImagingScope", "check_scope"]

SCOPES = ("prompt", "generation", "all", "last", "user", "first:<n>", "thinking", "answer")

_FIRST = re.compile(r"first:([1-9][0-9]{0,6})")


def check_scope(where: str, scope: object) -> str:
    """Return a scope's name.

    Raises:
        [`UnknownNameError`]: if there is no such scope.
    """
    if not isinstance(scope, str) or (scope not in SCOPES and not _FIRST.fullmatch(scope)) or scope == "first:<n>":
        raise UnknownNameError.of(where, scope, SCOPES)
    return scope


class ImagingScope:
    """A scope in use: selects the rows of each forward pass that count.

    Args:
        name (`str`): One of [`SCOPES`], with a number in the place of `<n>`.
        thinking_tokens (`tuple[int, int]`, *optional*): The tokens that open and close the thinking.

    Attributes:
        phase (`str`): The phase to read from the recording: `"prompt"`, `"generation"` or `"all"`.

    Raises:
        [`UnknownNameError`]: if there is no such scope.
        [`ConfigError`]: if a scope of thinking or answer lacks the tokens.
    """

    def __init__(self, name: str, thinking_tokens: tuple[int, int] | None = None) -> None:
        self.name = check_scope("ftri.scope", name)
        if name in ("thinking", "answer") and thinking_tokens is None:
            raise ConfigError(
                "ftri.thinking_tokens",
                f"scope {name!r} needs the tokens that open and close the thinking",
                got=None,
                fix="Give their ids, such as tokenizer.convert_tokens_to_ids(['<think>', '</think>']).",
            )
        self.thinking_tokens = thinking_tokens if name in ("thinking", "answer") else None
        of_prompt = name in ("prompt", "last", "user") or _FIRST.fullmatch(name) is not None
        phase = "prompt" if of_prompt else "generation" if name == "generation" else "all"
        self.phase = cast('Phase | Literal["all"]', phase)
        self._marks: list[list[bool]] = []

    @property
    def needs_user_text(self) -> bool:
        """Whether it needs the positions of the user's text."""
        return self.name == "user"

    @property
    def only(self) -> Callable[[Forward], Tensor | None] | None:
        """The filter of the recording, or `None` if the phase suffices."""
        return None if self.name in ("prompt", "generation", "all") else self._rows

    def begin(self, encoded: Sequence[Sequence[int]], user_text: Sequence[Sequence[bool]] | None) -> None:
        """Set the prompts that run next, padded on the left.

        Args:
            encoded (`Sequence[Sequence[int]]`): Token ids of each prompt.
            user_text (`Sequence[Sequence[bool]]`, *optional*): Which of them are the user's text.
        """
        first = _FIRST.fullmatch(self.name)
        if first:
            self._marks = [[place < int(first[1]) for place in range(len(ids))] for ids in encoded]
        elif self.name == "last":
            self._marks = [[place == len(ids) - 1 for place in range(len(ids))] for ids in encoded]
        elif user_text is not None:
            self._marks = [list(marks) for marks in user_text]

    def _rows(self, forward: Forward) -> Tensor:
        if self.thinking_tokens is not None:
            return forward.tokens_in(cast("ThinkingPart", self.name), self.thinking_tokens)
        import torch  # here, since the command line checks a scope's name before it loads torch

        longest = max(map(len, self._marks))
        rows = torch.zeros(forward.batch, forward.length, dtype=torch.bool)
        # Passes after the first hold generated tokens; without a cache the prompt comes again, not counted twice.
        if forward.length >= longest:
            for row, marks in enumerate(self._marks):
                rows[row, longest - len(marks) : longest] = torch.tensor(marks)
        return rows.view(-1).to(forward.device)
