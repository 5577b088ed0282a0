"""p values against controls that overlap each other, as they must where a layer has few experts.

Forty sets of three out of thirteen experts are not forty independent controls: their effects scatter less than those
of forty disjoint sets would, and a config beats all of them too easily. How often it does so by chance follows from
which experts each holds, if the effects of experts are independent draws from one distribution, which add up.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence

import numpy as np

__all__ = ["chance_of_reach"]

_DRAWS = 4000
_SPREAD = 1.0  # standard deviation of the logarithm of an expert's effect


def chance_of_reach(
    own: Collection[Hashable], controls: Sequence[Collection[Hashable]], *, seed: int = 0
) -> list[float]:
    """Return for each number of controls the chance that at most so many reach a config, if no expert is special.

    For controls that share no expert with each other it is `(1 + number) / (1 + controls)`; it is never below that.

    Args:
        own (`Collection`): The config's experts.
        controls (`Sequence[Collection]`): The experts of each control.
        seed (`int`, *optional*, defaults to 0): Of the 4,000 draws.

    Returns:
        `list[float]`: of one more than there are controls; the last is 1.
    """
    number = len(controls)
    exact = [(1 + reached) / (1 + number) for reached in range(number + 1)]
    experts = {one: place for place, one in enumerate(dict.fromkeys([*own, *(e for held in controls for e in held)]))}
    if sum(map(len, controls)) + len(own) == len(experts):
        return exact
    member = np.zeros((1 + number, len(experts)))
    for row, held in enumerate([own, *controls]):
        member[row, [experts[one] for one in held]] = 1
    rng = np.random.default_rng(seed)
    sums = np.exp(_SPREAD * rng.standard_normal((_DRAWS, len(experts)))) @ member.T
    reached = (sums[:, 1:] >= sums[:, :1]).sum(axis=1)
    at_most = np.cumsum(np.bincount(reached, minlength=number + 1)) / _DRAWS
    return [max(found, float(chance)) for found, chance in zip(exact, at_most, strict=True)]
