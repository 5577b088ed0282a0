"""How sure a model is of what it writes: the probability of each chosen token, recorded during generation.

The text of a broken model has low probabilities in that same model, and repeats itself. Both are measured in the
passes that generate, so that a change of routing on generated tokens alone is measured, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from hf_mote.generation.decoding import ends_of, without_padding

__all__ = ["Certainty", "Signs", "signs_of"]


class Signs(NamedTuple):
    """Signs of how sure a model was of a response.

    Attributes:
        surprise (`float`): Mean of -log p of its tokens, the one that ends it included, in the model that chose them,
            before temperature and the like; in nats, 0 or more.
        repeated (`float`): Share of its pairs of neighbouring tokens that are repeated, 0 to 1.
        empty (`bool`): Whether there is no text.
    """

    surprise: float
    repeated: float
    empty: bool


class Certainty:
    """Records the probabilities of the tokens that `generate` chooses.

    Args:
        model (`PreTrainedModel`): The model that generates.
        settings (`Mapping`): What `Decoding.settings` returned: the arguments of `generate`.

    Example:

    ```python
    import torch
    from hf_mote import load_organism
    from hf_mote.generation.asking import Decoding
    from hf_mote.generation.certainty import Certainty

    organism = load_organism("refusal")
    settings = Decoding(max_new_tokens=4).settings(organism.tokenizer)
    certainty = Certainty(organism.model, settings)
    organism.model.generate(torch.tensor([[5, 6, 7]]), **settings, **certainty.processors)
    (signs,) = certainty.take(["its text"])
    assert signs.surprise > 0
    ```
    """

    def __init__(self, model: PreTrainedModel, settings: Mapping[str, Any]) -> None:
        self._ends, self._pad = ends_of(model, settings), int(settings["pad_token_id"])
        self._settings = settings
        self._logs: Tensor | None = None
        self._chosen: list[Tensor] = []
        self._tokens: list[Tensor] = []

    @property
    def processors(self) -> dict[str, Any]:
        """Further arguments of `generate`, which record the probabilities."""
        processors = self._settings.get("logits_processor") or ()
        criteria = self._settings.get("stopping_criteria") or ()
        return {
            # First, before a processor of the caller's changes the scores.
            "logits_processor": LogitsProcessorList([_Before(self), *processors]),
            "stopping_criteria": StoppingCriteriaList([*criteria, _After(self)]),
        }

    def take(self, texts: Sequence[str]) -> list[Signs]:
        """Return the signs of the responses written since the last call, and delete them.

        Args:
            texts (`Sequence[str]`): The responses, one for each row.
        """
        chosen = torch.stack(self._chosen, dim=1).double().cpu()
        rows = torch.stack(self._tokens, dim=1).tolist()
        self._logs, self._chosen, self._tokens = None, [], []
        found = []
        for row, text, logs in zip(rows, texts, chosen, strict=True):
            tokens = without_padding(row, self._ends, self._pad)
            found.append(signs_of(tokens, logs[: len(tokens)], text))
        return found

    def before(self, scores: Tensor) -> None:
        """Copy the scores of the next token, which later processors may overwrite."""
        self._logs = scores.float().log_softmax(dim=-1)

    def after(self, tokens: Tensor) -> None:
        """Take the tokens that were chosen, `(batch,)`."""
        if self._logs is None:
            return
        self._chosen.append(self._logs.gather(-1, tokens[:, None].to(self._logs.device))[:, 0])
        self._tokens.append(tokens)
        self._logs = None


class _Before(LogitsProcessor):
    def __init__(self, certainty: Certainty) -> None:
        self._certainty = certainty

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._certainty.before(scores)
        return scores


class _After(StoppingCriteria):
    def __init__(self, certainty: Certainty) -> None:
        self._certainty = certainty

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        self._certainty.after(input_ids[:, -1])
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def signs_of(tokens: Sequence[int], log_probabilities: Sequence[float] | Tensor, text: str) -> Signs:
    """Return the signs of one response.

    Args:
        tokens (`Sequence[int]`): Its tokens, the one that ends it included.
        log_probabilities (`Sequence[float]` or `torch.Tensor` of shape `(tokens,)`): Of each, in nats.
        text (`str`): Its text.
    """
    logs = torch.as_tensor(log_probabilities, dtype=torch.float64)
    surprise = max(0.0, -float(logs.mean())) if len(tokens) else 0.0
    return Signs(surprise, _repeated(tokens), not text.strip())


def _repeated(tokens: Sequence[int]) -> float:
    pairs = list(zip(tokens, tokens[1:], strict=False))
    return 1 - len(set(pairs)) / len(pairs) if pairs else 0.0
