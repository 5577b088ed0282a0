"""Colours, marks and axes shared by pictures in files and in pages, so that a picture looks the same in both."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["CONTROL", "LESS", "MARKS", "MORE", "ShareAxis", "ValueAxis", "log_axis", "share_axis", "value_axis"]

MORE = (214, 98, 32)  # above 0, and what was measured
LESS = (52, 128, 214)  # below 0, and the untouched model
CONTROL = (110, 119, 129)  # random controls
MARKS = ("circle", "square", "diamond", "triangle")  # of the first name that is marked, the second, ...

_STEPS = (1, 2, 5, 10, 20, 25)  # per cent between ticks
_MOST_TICKS = 5
_LEAST_SPAN = 10  # per cent: a smaller change is not made to look large


class ShareAxis(NamedTuple):
    """An axis for shares.

    Attributes:
        low (`float`): Where it begins, 0 to 1.
        high (`float`): Where it ends, above `low`.
        ticks (`list[float]`): Both ends, and evenly spaced values between them.
    """

    low: float
    high: float
    ticks: list[float]

    def along(self, share: float) -> float:
        """Return the place of a share on the axis, 0 at its beginning and 1 at its end."""
        return (share - self.low) / (self.high - self.low)


def share_axis(shares: Iterable[float]) -> ShareAxis:
    """Return the axis that fits some shares, with round ticks.

    Args:
        shares (`Iterable[float]`): 0 to 1, one or more.

    Example:
        ```python
        from hf_mote.drawing import share_axis

        assert share_axis([0.02, 0.19]).ticks == [0.0, 0.05, 0.1, 0.15, 0.2]
        assert share_axis([0.0, 1.0]).high == 1.0
        ```
    """
    known = [100 * share for share in shares]
    lowest, highest = min(known), max(known)
    missing = _LEAST_SPAN - (highest - lowest)
    if missing > 0:
        lowest, highest = lowest - missing / 2, highest + missing / 2
        lowest, highest = (0, _LEAST_SPAN) if lowest < 0 else (lowest, highest)
        lowest, highest = (100 - _LEAST_SPAN, 100) if highest > 100 else (lowest, highest)
    for step in _STEPS:
        # Rounded, as 100 x 0.07 is above 7.
        first, last = math.floor(round(lowest, 6) / step) * step, math.ceil(round(highest, 6) / step) * step
        if (last - first) / step <= _MOST_TICKS:
            break
    last = min(last, 100)
    ticks = [percent / 100 for percent in range(first, last + 1, step)]
    return ShareAxis(first / 100, last / 100, ticks if ticks[-1] == last / 100 else [*ticks, last / 100])


class ValueAxis(NamedTuple):
    """An axis for values of any size.

    Attributes:
        low (`float`): Where it begins.
        high (`float`): Where it ends, above `low`.
        ticks (`list[float]`): Round values between.
        logarithmic (`bool`): Whether equal ratios are equally far apart; `low` is above 0 then.
    """

    low: float
    high: float
    ticks: list[float]
    logarithmic: bool = False

    def along(self, value: float) -> float:
        """Return the place of a value on the axis, 0 at its beginning and 1 at its end."""
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def value_axis(values: Iterable[float]) -> ValueAxis:
    """Return an axis from 0 to the largest of some values, with round ticks.

    Args:
        values (`Iterable[float]`): 0 or more each.

    Example:
        ```python
        from hf_mote.drawing import value_axis

        assert value_axis([3.1, 6.9]).ticks == [0, 2, 4, 6]
        ```
    """
    largest = max(values, default=0.0) or 1.0
    power = 10.0 ** math.floor(math.log10(largest / _MOST_TICKS))
    step = next(power * times for times in (1, 2, 5, 10) if largest / (power * times) <= _MOST_TICKS)
    return ValueAxis(0.0, largest, [round(step * n, 12) for n in range(int(largest / step + 1e-9) + 1)])


def log_axis(values: Iterable[float]) -> ValueAxis:
    """Return a logarithmic axis over whole decades, with a tick at each.

    Args:
        values (`Iterable[float]`): Above 0 each, one or more.

    Example:
        ```python
        from hf_mote.drawing import log_axis

        assert log_axis([0.003, 0.4]).ticks == [0.001, 0.01, 0.1, 1.0]
        ```
    """
    known = list(values)
    first, last = math.floor(math.log10(min(known))), math.ceil(math.log10(max(known)))
    last = max(last, first + 1)
    return ValueAxis(10.0**first, 10.0**last, [10.0**power for power in range(first, last + 1)], logarithmic=True)
