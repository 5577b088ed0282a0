"""Splits prompts into two halves, one to find experts with and one to prove them by; a group is never in both."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence

__all__ = ["halves", "numbered"]


def numbered(groups: Sequence[Hashable]) -> list[int]:
    """Return keys as numbers: equal keys have one number.

    Args:
        groups (`Sequence[Hashable]`): The keys.

    Example:
        ```python
        from hf_mote.workflow.halves import numbered

        assert numbered(["cooking", "law", "cooking"]) == [0, 1, 0]
        ```
    """
    known: dict[Hashable, int] = {}
    return [known.setdefault(key, len(known)) for key in groups]


def halves(shown: list[int], others: list[int], keys: Sequence[int], seed: int) -> list[list[int]]:
    """Return the prompts to find experts with and those to prove them by, of the class and of others.

    Args:
        shown (`list[int]`): Places of the prompts that show the class.
        others (`list[int]`): Places of the prompts that do not.
        keys (`Sequence[int]`): For each prompt the number of its group; no group is in both halves.
        seed (`int`): Decides which groups are where.

    Returns:
        `list[list[int]]`: four lists of places: the two parts of the class, then the two parts of the others. A half
        has about half of the prompts, or fewer where groups are large.
    """
    first = _half(shown, keys, seed)
    sides = {keys[place]: place in first for place in shown}
    alone = _half([place for place in others if keys[place] not in sides], keys, seed + 1)
    first |= {place for place in others if sides.get(keys[place], place in alone)}
    return [
        [place for place in part if (place in first) == side] for part in (shown, others) for side in (True, False)
    ]


def _half(places: Sequence[int], keys: Sequence[int], seed: int) -> set[int]:
    """Return about half of some prompts, whole groups of them."""
    groups = sorted({keys[place] for place in places})
    random.Random(seed).shuffle(groups)
    chosen: set[int] = set()
    for key in groups:
        members = {place for place in places if keys[place] == key}
        if len(chosen) + len(members) / 2 <= len(places) / 2:
            chosen |= members
    return chosen
