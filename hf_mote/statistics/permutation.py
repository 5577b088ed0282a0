"""Permutation tests of a score of two classes, for thousands of columns at once, in bounded memory.

Used by `contrast`. A relabelling of the prompts is a row of zeros and ones, so that a block of them is one matrix
product; only the numbers of exceedances are kept. A column whose p value is plainly not small after 1,000
relabellings needs no more of them: that makes a million affordable for the few columns that do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from hf_mote.statistics.rates import SIGNIFICANT
from hf_mote.statistics.resampling import Statistic

__all__ = ["Relabellings", "permutation_test", "relabellings"]

Array: TypeAlias = npt.NDArray[np.float64]
Indices: TypeAlias = npt.NDArray[np.int64]

FEWEST_RELABELLINGS, MOST_RELABELLINGS = 9_999, 1_000_000  # by default
MOST_EXACT = 20_000  # all relabellings are gone through where there are no more
ELEMENTS_PER_BLOCK = 2**16  # of float64 in each array of a block: bounds memory, and fits a cache
STAGES = (999, 9_999, 99_999)  # relabellings after which columns are looked at
ENOUGH = 50  # exceedances with which a column leaves: p is 0.1 or more at the first stage, 0.01 at the second


class Relabellings(NamedTuple):
    """The relabellings of a test.

    Attributes:
        number (`int`): Relabellings that the observed labels are compared with.
        exact (`bool`): Whether these are all that exist, the observed one among them.
        least_p (`float`): Least two-sided p value that the test can give.
    """

    number: int
    exact: bool
    least_p: float


def relabellings(num_target: int, num_rest: int, *, paired: bool, wanted: int | None, columns: int) -> Relabellings:
    """Return the relabellings of a test.

    Args:
        num_target (`int`): Prompts of the target class.
        num_rest (`int`): Other prompts.
        paired (`bool`): Whether labels change places only within pairs.
        wanted (`int`, *optional*):
            How many are requested; by default as many as it takes for one column alone to reach q = 0.05 among
            `columns`; at least 9,999, at most 1,000,000, and no more than exist.
        columns (`int`): Columns that are tested together.
    """
    existing = 2**num_target if paired else math.comb(num_target + num_rest, num_target)
    enough = max(FEWEST_RELABELLINGS, math.ceil(2 * columns / SIGNIFICANT))
    most = min(MOST_RELABELLINGS, enough, existing) if wanted is None else wanted
    if existing <= min(most, MOST_EXACT):
        return Relabellings(existing, True, min(1.0, 2 / existing))
    return Relabellings(most, False, 2 / min(most + 1, existing))


def permutation_test(
    statistic: Statistic,
    chosen: Indices,
    others: Indices,
    *,
    plan: Relabellings,
    paired: bool,
    seed: int,
    to_the_end: bool = False,
) -> Array:
    """Return the two-sided permutation p value of each column, `(columns,)`; never 0.

    Args:
        statistic (`Statistic`): The score of some rows against others.
        chosen (`np.ndarray` of int): Rows of the target class.
        others (`np.ndarray` of int): Rows compared with.
        plan (`Relabellings`): How many relabellings.
        paired (`bool`): Whether the i-th of `chosen` belongs with the i-th of `others`.
        seed (`int`): Of the random relabellings.
        to_the_end (`bool`, *optional*, defaults to `False`):
            Go through all relabellings for the columns that are not plainly large, even where all of these have
            q <= 0.05 as it is.

    Source: Phipson and Smyth (2010), "Permutation P-values Should Never Be Zero": the observed labels count among the
    relabellings. Besag and Clifford (1991), "Sequential Monte Carlo p-values": a column with many exceedances stops;
    what differs here: it does so after 999, 9,999 or 99,999 relabellings with at least 50 exceedances on each side,
    and then keeps the p value that they give. That one is larger than any with which a column goes on, so that p
    values up to any bound come as seldom as from a test of fixed length. Where so many columns would go on that all of
    them have q <= 0.05 as it is, none does, unless `to_the_end`.
    """
    observed = np.zeros((1, statistic.values.shape[0]))
    observed[0, chosen] = 1.0
    columns = statistic.values.shape[1] - 1
    active, beyond, p, done = np.arange(columns), np.zeros((2, columns)), np.ones(columns), 0
    deal = _AllLabels(chosen, others, paired) if plan.exact else _RandomLabels(chosen, others, paired, seed)
    tolerance: Array | None = None
    for stage in _stages(plan):
        found = statistic.of_columns(active)
        score = found.of_labels(observed)[0]
        while done < stage:
            block = min(stage - done, max(1, ELEMENTS_PER_BLOCK // (len(active) + observed.size)))
            dealt = found.of_labels(deal.take(block))
            if tolerance is None:  # scores that are equal but for rounding are ties
                tolerance = 1e-10 * np.abs(dealt).max(axis=0) + 1e-12 * statistic.scale
            beyond[0, active] += (dealt >= score - tolerance[active]).sum(axis=0)
            beyond[1, active] += (dealt <= score + tolerance[active]).sum(axis=0)
            done += block
        fewest, observed_too = beyond[:, active].min(axis=0), 0 if plan.exact else 1
        p[active] = np.minimum(1.0, 2.0 * (fewest + observed_too) / (done + observed_too))
        active = active[fewest < ENOUGH]
        largest = 2 * ENOUGH / (done + 1)  # no column that goes on has a larger p value
        # None is left, or all have q <= 0.05.
        if not len(active) or (not to_the_end and largest * columns <= SIGNIFICANT * len(active)):
            break
    return p


class _AllLabels:
    """Every relabelling once."""

    def __init__(self, chosen: Indices, others: Indices, paired: bool) -> None:
        self.prompts = len(chosen) + len(others)
        self.targets: Iterator[tuple[int, ...]]
        if paired:
            self.targets = itertools.product(*zip(chosen.tolist(), others.tolist(), strict=True))
        else:
            self.targets = itertools.combinations([*chosen.tolist(), *others.tolist()], len(chosen))

    def take(self, number: int) -> Array:
        """Return the next ones, `(number, prompts)`."""
        targets = np.array(list(itertools.islice(self.targets, number)))
        labels = np.zeros((len(targets), self.prompts))
        np.put_along_axis(labels, targets, 1.0, axis=1)
        return labels


class _RandomLabels:
    """Relabellings drawn at random, the same ones however many are taken at a time."""

    def __init__(self, chosen: Indices, others: Indices, paired: bool, seed: int) -> None:
        self.chosen, self.others, self.paired = chosen, others, paired
        self.rng = np.random.default_rng(seed)

    def take(self, number: int) -> Array:
        """Return the next ones, `(number, prompts)`."""
        size = len(self.chosen)
        labels = np.zeros((number, size + len(self.others)))
        if self.paired:
            kept = self.rng.random((number, size)) < 0.5
            labels[:, self.chosen], labels[:, self.others] = kept, ~kept
        else:
            least = np.argpartition(self.rng.random(labels.shape), size - 1, axis=1)[:, :size]
            np.put_along_axis(labels, least, 1.0, axis=1)
        return labels


def _stages(plan: Relabellings) -> list[int]:
    """Return after how many relabellings columns are looked at, the last one included."""
    return [plan.number] if plan.exact else [*(stage for stage in STAGES if stage < plan.number), plan.number]
