"""What imaging and evaluation both need of an inference engine: answers with the routing that led to them.

Engines are not imported here. Every object that follows [`RecordingEngine`] can be used, such as those of `serving/`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

__all__ = ["RecordingEngine", "RoutedAnswers"]


class RoutedAnswers(Protocol):
    """Answers to a batch of prompts, and the routing that led to them."""

    @property
    def tokens(self) -> Sequence[Sequence[int]]:
        """The tokens of each answer."""
        ...

    @property
    def counts(self) -> Tensor:
        """Tokens for which an expert was chosen, `(prompts, layers, experts)`."""
        ...

    @property
    def weights(self) -> Tensor:
        """Sum of the expert's routing weights, of the same shape."""
        ...

    @property
    def num_tokens(self) -> Tensor:
        """Tokens counted, `(prompts,)`."""
        ...


@runtime_checkable
class RecordingEngine(Protocol):
    """An engine that answers prompts and returns their routing.

    Attributes:
        fingerprint (`dict`): Of its model, as `MoTEConfig.for_model(model).fingerprint` has it.
    """

    fingerprint: dict[str, Any]

    @property
    def base_model(self) -> str:
        """Its model's name."""
        ...

    def image(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        phase: Any,
        max_new_tokens: int,
        seed: int | None,
        sampling: Mapping[str, Any] | None,
    ) -> RoutedAnswers:
        """Answer prompts, given as token ids, and return the routing of the tokens of a phase."""
        ...
