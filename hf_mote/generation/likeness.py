"""Finds prompts that are wordings of one another, by the words that they share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse

__all__ = ["Likeness", "near_duplicates"]

SHARED = 0.5  # of the words of two prompts together
MOST_COMPARED = 5_000  # prompts; of more, the first are compared
_ROWS = 512  # compared with all at a time: bounds memory


class Likeness(NamedTuple):
    """How similar some prompts are.

    Attributes:
        alike (`int`): Prompts that share at least half of their words with another one.
        example (`tuple[str, str]`): The two that share most; two empty texts if none do.
    """

    alike: int
    example: tuple[str, str]


def near_duplicates(texts: Sequence[str]) -> Likeness:
    """Return how many texts share at least half of the words of both with another one (Jaccard index).

    Args:
        texts (`Sequence[str]`): The texts, each once. Only the first 5,000 are compared.

    Example:
        ```python
        from hf_mote.generation.likeness import near_duplicates

        found = near_duplicates(["What happened in May in Rome?", "What happened in May in Oslo?", "Name a river."])
        assert found.alike == 2
        ```
    """
    words = [set(re.findall(r"\w+", text.lower())) for text in texts[:MOST_COMPARED]]
    known = {word: place for place, word in enumerate(dict.fromkeys(word for some in words for word in some))}
    if len(words) < 2 or not known:
        return Likeness(0, ("", ""))
    rows = np.repeat(np.arange(len(words)), [len(some) for some in words])
    columns = np.array([known[word] for some in words for word in some])
    table = sparse.csr_matrix((np.ones(len(columns)), (rows, columns)), shape=(len(words), len(known)))
    sizes = np.array([len(some) for some in words], dtype=np.float64)
    alike, best, example = 0, 0.0, ("", "")
    for start in range(0, len(words), _ROWS):
        common = (table[start : start + _ROWS] @ table.T).toarray()
        together = sizes[start : start + _ROWS, None] + sizes - common
        share = np.divide(common, together, out=np.zeros_like(common), where=together > 0)
        share[np.arange(len(share)), start + np.arange(len(share))] = 0.0
        alike += int((share.max(axis=1) >= SHARED).sum())
        if share.max() > best and share.max() >= SHARED:
            best = float(share.max())
            one, other = np.unravel_index(int(share.argmax()), share.shape)
            example = (texts[start + int(one)], texts[int(other)])
    return Likeness(alike, example)
