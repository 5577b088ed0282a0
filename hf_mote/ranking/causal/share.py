"""The share of an effect that is in routed experts: the score with all of their weights reduced together.

This is the positive control of every search for experts. If a model still prefers a response with all routed experts
off, the preference is carried by attention, shared experts or dense layers, and no choice of experts removes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mote.errors import ConfigError, DataError, real
from hf_mote.generation.asking import Chat
from hf_mote.generation.chat import Prompt
from hf_mote.mote.gains import Gains, attach_gains
from hf_mote.ranking.causal.preference import LogitScore, Preference
from hf_mote.routing.sites.routed_model import RoutedModel

__all__ = ["RoutedShare", "routed_share"]


class RoutedShare(NamedTuple):
    """The score at each gain of all routed experts.

    Attributes:
        gains (`list[float]`): From 0, all off, to 1, untouched.
        scores (`list[float]`): The mean score at each.
        unit (`str`): Of the scores.
    """

    gains: list[float]
    scores: list[float]
    unit: str

    @property
    def share(self) -> float:
        """Share of the untouched score that is lost with all routed experts off.

        Above 1 if the score changes its sign, below 0 if it grows.
        """
        return 1 - self.scores[0] / self.scores[-1]

    @property
    def area(self) -> float:
        """Area under the curve of the lost share, 0 to 1 if the score falls monotonically; 0.5 if it falls evenly."""
        gone = [1 - score / self.scores[-1] for score in self.scores]
        pairs = zip(pairwise(self.gains), pairwise(gone), strict=True)
        return sum((b - a) * (one + other) / 2 for (a, b), (one, other) in pairs)

    def __str__(self) -> str:
        said = f"{abs(self.share):.0%} of the preference is gone"
        if self.share > 1:
            said = "the preference turns round"
        elif self.share < 0:
            said = f"the preference grows by {-self.share:.0%}"
        return f"with all routed experts off {said} ({self.scores[-1]:.3g} to {self.scores[0]:.3g} {self.unit})"


def routed_share(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    response: str | Sequence[str] | None = None,
    baseline_response: str | Sequence[str] | None = None,
    *,
    logit_score: LogitScore | None = None,
    gains: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    batch_size: int = 8,
    system_prompt: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> RoutedShare:
    """Return how much of the preference for a response is lost as the weights of all routed experts are reduced.

    Args:
        model (`PreTrainedModel`): A mixture-of-experts language model in evaluation mode; left as it is.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        prompts (`Sequence[str]` or chats): Prompts to which the model gives the response, say.
        response (`str` or `Sequence[str]`, *optional*): As in [`attribute_experts`]; so are the arguments not listed.
        baseline_response (`str` or `Sequence[str]`, *optional*): See there.
        logit_score (`Callable`, *optional*): See there; need not be differentiable.
        gains (`Sequence[float]`, *optional*): Factors on all routing weights, rising from 0 to 1.
        batch_size (`int`, *optional*, defaults to 8): Prompts that run together.
        system_prompt (`str`, *optional*): First message of every prompt that is a text.
        chat_template_kwargs (`Mapping[str, Any]`, *optional*): See [`attribute_experts`].

    Raises:
        [`ConfigError`]: if the gains must rise from 0 to 1.
        [`DataError`]: if the untouched model's mean score is not above 0, so that there is nothing to lose.

    Example:

    ```python
    from hf_mote import load_organism
    from hf_mote.ranking.causal.share import routed_share

    organism = load_organism("refusal")
    prompts = organism.prompts["train"]["sensitive"][:4]
    found = routed_share(
        organism.model, organism.tokenizer, prompts, "I am sorry, but I cannot talk about that.",
        [organism.answers[prompt] for prompt in prompts],
    )
    assert found.share > 0.5
    ```
    """
    where = "routed_share"
    doses = [real(f"{where}.gains", gain, least=0, most=1) for gain in gains]
    if doses != sorted(set(doses)) or not doses or doses[0] != 0 or doses[-1] != 1:
        raise ConfigError(f"{where}.gains", "must rise from 0 to 1", got=doses, expected="as in [0, 0.5, 1]")
    preference = Preference(
        where,
        model,
        Chat(tokenizer, system_prompt, chat_template_kwargs),
        prompts,
        response=response,
        baseline_response=baseline_response,
        logit_score=logit_score,
        batch_size=batch_size,
    )
    routed = RoutedModel(model)
    turned = Gains(routed.sites)
    scores = []
    with attach_gains(routed, turned):
        for dose in doses:
            turned.value = dose
            scores.append(float(preference.scores().mean()))
    if scores[-1] <= 0:
        fix = "Give the prompts that show the response, or exchange response and baseline_response."
        raise DataError(where, "the untouched model does not prefer the response", got=f"{scores[-1]:.3g}", fix=fix)
    return RoutedShare(doses, scores, preference.unit)
