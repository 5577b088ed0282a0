"""`Rate`: a share with its Wilson interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from scipy import stats

from hf_mote.errors import DataError, is_finite, real

__all__ = ["SIGNIFICANT", "Interval", "Rate", "wilson"]

_ROUNDING = 1e-9
SIGNIFICANT = 0.05  # most that p or q can be


class Interval(NamedTuple):
    """A confidence interval: `low <= high`."""

    low: float
    high: float


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Return the Wilson score interval of a rate.

    Args:
        successes (`int`): How often it happened, 0 to `n`.
        n (`int`): Out of how many, 1 or more.
        confidence (`float`, *optional*, defaults to 0.95): Coverage, between 0 and 1.

    Returns:
        [`Interval`]: `low` and `high` as fractions from 0 to 1.

    Raises:
        [`DataError`]: if `n` is below 1 or `successes` is not in 0..n.
        [`ConfigError`]: if `confidence` is not between 0 and 1.

    Example:
        ```python
        from hf_mote.statistics.rates import wilson

        low, high = wilson(0, 50)
        assert low == 0.0 and 0.07 < high < 0.08
        ```
    """
    if n < 1 or not 0 <= successes <= n:
        raise DataError(
            "wilson", "must be a rate", got=f"{successes} of {n}", expected="0 <= successes <= n and n >= 1"
        )
    real("wilson.confidence", confidence, above=0, below=1)
    interval = stats.binomtest(int(successes), int(n)).proportion_ci(confidence, method="wilson")
    return Interval(float(interval.low), float(interval.high))


@dataclass(frozen=True)
class Rate:
    """A share with its Wilson interval.

    Attributes:
        successes (`int`): How many.
        n (`int`): Of how many.
        rate (`float`): Their quotient, 0 to 1.
        low (`float`): Lower end of the interval.
        high (`float`): Upper end.
    """

    successes: int
    n: int
    rate: float
    low: float
    high: float

    def __post_init__(self) -> None:
        # A text or a truth value is not a number, though Python compares True with 1.
        counts = all(isinstance(number, int) and not isinstance(number, bool) for number in (self.successes, self.n))
        numbers = counts and all(is_finite(number) for number in (self.rate, self.low, self.high))
        if (
            not numbers
            or not 0 <= self.successes <= self.n
            or self.n == 0
            or self.rate != self.successes / self.n
            or not 0 <= self.low <= self.high <= 1
            or not self.low - _ROUNDING <= self.rate <= self.high + _ROUNDING
        ):
            got = f"{self.successes!r} of {self.n!r}, rate {self.rate!r}, interval {self.low!r} to {self.high!r}"
            raise DataError("Rate", "must be a share within its interval", got=got)

    @classmethod
    def of(cls, successes: int, n: int, confidence: float = 0.95) -> Rate:
        """Return the rate of `successes` in `n`.

        Args:
            successes (`int`): How many.
            n (`int`): Of how many, 1 or more.
            confidence (`float`, *optional*, defaults to 0.95): Coverage of the interval.
        """
        low, high = wilson(successes, n, confidence)
        return cls(successes, n, successes / n, low, high)

    @classmethod
    def of_groups(cls, outcomes: Sequence[bool], groups: Sequence[int] | None, confidence: float = 0.95) -> Rate:
        """Return the rate of outcomes in groups, within which outcomes may be correlated.

        The interval is Wilson's for the number of independent outcomes that would scatter as much as the groups do,
        never more than there are, with Student's t for so many groups. Where all outcomes are equal, which does not
        show how far groups differ, each group counts as one.

        Args:
            outcomes (`Sequence[bool]`): Whether it happened, one or more.
            groups (`Sequence[int]`, *optional*): The number of each one's group; each its own by default.
            confidence (`float`, *optional*, defaults to 0.95): Coverage of the interval.

        Raises:
            [`DataError`]: if there is a single group, of which no spread between groups is known.

        Source: Korn and Graubard (1998), "Confidence intervals for proportions with small expected number of positive
        counts estimated from survey data", for the effective number; what differs here: Wilson's interval.
        """
        successes, n = sum(map(bool, outcomes)), len(outcomes)
        if groups is None or len(set(groups)) == n:
            return cls.of(successes, n, confidence)
        number = len(set(groups))
        if number < 2:
            raise DataError("Rate.of_groups", "one group does not show how far groups differ", got=f"{n} outcomes")
        real("Rate.of_groups.confidence", confidence, above=0, below=1)
        rate = successes / n
        residuals: dict[int, float] = {}
        for outcome, group in zip(outcomes, groups, strict=True):
            residuals[group] = residuals.get(group, 0.0) + bool(outcome) - rate
        variance = sum(value**2 for value in residuals.values()) * number / (number - 1) / n**2
        if successes in (0, n):
            effective = float(number)
        else:
            effective = float(n) if variance == 0 else min(float(n), rate * (1 - rate) / variance)
        quantile = float(stats.t.ppf((1 + confidence) / 2, number - 1))
        spread = quantile**2 / effective
        middle = (rate + spread / 2) / (1 + spread)
        half = quantile / (1 + spread) * math.sqrt(rate * (1 - rate) / effective + spread / (4 * effective))
        return cls(successes, n, rate, min(max(0.0, middle - half), rate), max(min(1.0, middle + half), rate))

    def __str__(self) -> str:
        return f"{self.rate:.1%} [{self.low:.1%}, {self.high:.1%}]"
