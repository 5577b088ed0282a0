"""Scores of an expert for a class of prompts, each a function of two class means.

Several are offered side by side, because they disagree: a difference of counts sees long prompts, a log odds ratio
sees rare experts, and none of them sees causes. Every score is 0 where the classes use the expert equally and above 0
where the target class uses it more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["SCORES", "ClassMean", "Score", "log_odds", "mean_difference", "npmi", "risk_difference"]

Array: TypeAlias = npt.NDArray[np.float64]


class ClassMean(NamedTuple):
    """The means of a class of prompts.

    Attributes:
        values (`np.ndarray` of shape `(..., experts)`, float64): Mean over prompts of tokens, or of routing weight.
        tokens (`np.ndarray` of shape `(..., 1)`, float64): Mean over prompts of the tokens counted.
        prompts (`int`): Number of prompts.
    """

    values: Array
    tokens: Array
    prompts: int

    @property
    def rate(self) -> Array:
        """Values per token, pooled over the prompts."""
        return np.divide(self.values, self.tokens, out=np.zeros_like(self.values), where=self.tokens > 0)


Score: TypeAlias = Callable[[ClassMean, ClassMean], Array]


def mean_difference(target: ClassMean, rest: ClassMean) -> Array:
    """Return the difference of means per prompt.

    Source: Dahlke et al., arXiv 2502.11096, differential activation maps.
    """
    return target.values - rest.values


def risk_difference(target: ClassMean, rest: ClassMean) -> Array:
    """Return the difference of the shares of tokens that chose the expert (of counts), or of weight per token.

    Source: Fayyaz et al., "Steering MoE LLMs via Expert (De)Activation" (arXiv 2509.09660), which pools tokens too.
    """
    return target.rate - rest.rate


def log_odds(target: ClassMean, rest: ClassMean) -> Array:
    """Return the log odds ratio of an expert being chosen for a token, with half a token added to each cell.

    Source: Haldane (1956) and Anscombe (1956) for the correction, without which an expert that a class never uses is
    infinite.
    """
    ratio = _log_odds_of(target) - _log_odds_of(rest)
    return np.where(target.values + rest.values > 0, ratio, 0.0)


def npmi(target: ClassMean, rest: ClassMean) -> Array:
    """Return the normalised pointwise mutual information of "target class" and "expert chosen", -1 to 1.

    Both classes weigh the same, however many tokens they have: p(class) = 1/2, and p(chosen) is the mean of the two
    rates. Never together is -1, independent 0; an expert that no token chose gets 0.

    Source: Bouma (2009), "Normalized (pointwise) mutual information in collocation extraction"; what differs here:
    with p(class) from the numbers of tokens, longer prompts alone would change it, and its p values with it.
    """
    both, mean = target.rate, (target.rate + rest.rate) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        information, surprise = np.log(both) - np.log(mean), -np.log(both / 2)
        found = np.where(surprise > 0, information / surprise, 0.0)
    return np.where(mean > 0, np.where(both > 0, found, -1.0), 0.0)


SCORES: dict[str, Score] = {
    "mean_difference": mean_difference,
    "risk_difference": risk_difference,
    "log_odds": log_odds,
    "npmi": npmi,
    "weight_difference": risk_difference,
}
"""By name; `weight_difference` is `risk_difference` of routing weights instead of counts."""


def _log_odds_of(group: ClassMean) -> Array:
    chosen, tokens = group.values * group.prompts, group.tokens * group.prompts
    return np.log(chosen + 0.5) - np.log(np.maximum(tokens - chosen, 0.0) + 0.5)
