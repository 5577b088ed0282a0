"""The outcome for a config: it beats its controls, does not, is undecided, or breaks the text.

An outcome must not depend on a single control. "undecided" lies between "beats" and "does not beat", so that a change
of one control never leads from one to the other.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from hf_mote.statistics.rates import SIGNIFICANT

__all__ = ["Outcome", "decide", "one_fewer"]

Outcome: TypeAlias = Literal["untested", "breaks the text", "beats", "undecided", "does not beat"]

_ROUNDING = 1e-9


def decide(p: float | None, p_less: float, *, apart: bool, broken: bool) -> Outcome:
    """Return the outcome for a config.

    It beats its controls if the intervals before and after are apart, and p is at most 0.05 and remains so if another
    control is left out: with 19 to 39 controls none comes as far, with 40 one may. It is undecided if p would be at
    most 0.05 did one of those that come as far not do so.

    Args:
        p (`float`, *optional*): Chance that so few controls change as much; `None` without controls.
        p_less (`float`): The same, did one control fewer change as much; `p` where none does.
        apart (`bool`): Whether the intervals of the rate before and after do not overlap.
        broken (`bool`): Whether the text breaks.

    Example:
        ```python
        from hf_mote.evaluation.verdict import decide

        assert decide(2 / 41, 1 / 41, apart=True, broken=False) == "beats"
        assert decide(3 / 41, 2 / 41, apart=True, broken=False) == "undecided"
        assert decide(4 / 41, 3 / 41, apart=True, broken=False) == "does not beat"
        ```
    """
    if broken:
        return "breaks the text"
    if p is None:
        return "untested"
    if not apart:
        return "does not beat"
    most = SIGNIFICANT + _ROUNDING
    # Leaving one control out of n raises (1 + r) / (1 + n) by the factor (1 + n) / n, and p - p_less is 1 / (1 + n).
    # Of controls that overlap each other that step is taken as well.
    if p <= most and (p_less >= p or p / (1 - (p - p_less)) <= most):
        return "beats"
    return "undecided" if p_less < p and p_less <= most else "does not beat"


def one_fewer(p: float | None, controls: int) -> float:
    """Return p with one fewer control that reaches the effect, for [`decide`]; p itself if none does.

    Args:
        p (`float`, *optional*): `(1 + those that come as far) / (1 + controls)`; `None` without controls.
        controls (`int`): How many there are.
    """
    one = 1 / (1 + controls)
    return 0.0 if p is None else max(one, p - one)
