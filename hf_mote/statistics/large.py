"""Contrasts of thousands of prompts, a block of experts at a time, from moments where they suffice.

Beside `contrast`, which resamples prompts: with 100,000 of them and 14,848 experts that takes hours, and the maps
alone 12 GB. With so many prompts the distributions that are resampled are known from their moments:

- p values: the sum over a class has, over all relabellings, a known mean, variance and skewness; Pearson's type III
  distribution with these gives the tail. Experts that too few prompts use for that are relabelled, 9,999 times.
- intervals: Student's t from the spread over prompts; of pairs by leaving out each of 200 blocks of pairs.

Time is linear in prompts, and memory that of one block of experts.

Sources: Mielke, Berry and Brier (1981), "Application of multi-response permutation procedures for examining seasonal
changes in monthly mean sea-level pressure patterns", for Pearson's type III as approximation of a permutation
distribution; Cochran (1977), "Sampling Techniques", section 2.13, for the moments of a sum drawn without replacement;
Efron and Stein (1981), "The jackknife estimate of variance".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import stats

from hf_mote.errors import DataError
from hf_mote.statistics.contrast import Contrast, adjusted, check_pairs
from hf_mote.statistics.inputs import checked_tokens
from hf_mote.statistics.intervals import OF_SHARES, Limits, limits
from hf_mote.statistics.permutation import Relabellings, permutation_test, relabellings
from hf_mote.statistics.resampling import Statistic, check_resampling
from hf_mote.statistics.scores import SCORES

__all__ = ["MANY", "contrast_in_blocks", "moments_test"]

Array: TypeAlias = npt.NDArray[np.float64]
Indices: TypeAlias = npt.NDArray[np.int64]

MANY = 2_000  # prompts, or groups, above which a ranking is computed here
LEAST_OF_CLASS = 200  # of the smaller class, for that
VALUES_PER_BLOCK = 2**24  # of float64 in a block of experts: bounds memory
ENOUGH = 25.0  # prompts of the smaller class that use an expert, about, from which moments suffice
RELABELLINGS = 9_999  # for experts that fewer use
JACKKNIFE = 200  # blocks of pairs
LEAST_P = float(np.finfo(np.float64).tiny)


class _Plan(NamedTuple):
    """What is the same for every block of experts."""

    chosen: Indices
    others: Indices
    tokens: Array
    score: str
    paired: bool
    confidence: float
    permutations: int | None
    several: Relabellings | None  # None: scores alone
    seed: int


class _Block(NamedTuple):
    """The results for a block of experts; arrays of shape `(columns,)`."""

    score: Array
    low: Array
    high: Array
    p: Array
    relabelled: npt.NDArray[np.bool_]


def contrast_in_blocks(
    columns: Callable[[int, int], Array],
    grid: tuple[int, int],
    is_target: npt.NDArray[np.bool_],
    *,
    score: str,
    tokens: Array,
    paired: bool,
    confidence: float,
    resamples: int,
    permutations: int | None,
    seed: int,
) -> Contrast:
    """Return what [`contrast`] returns, for many prompts.

    Args:
        columns (`Callable[[int, int], np.ndarray]`):
            Returns the columns from one number to another of the flat grid, `(prompts, columns)`, float64.
        grid (`tuple[int, int]`): Layers and experts.
        is_target (`np.ndarray` of shape `(prompts,)`, bool): Which prompts belong to the target class.
        score (`str`): One of `hf_mote.statistics.scores.SCORES`.
        tokens (`np.ndarray` of shape `(prompts,)`, float64): Tokens counted in each prompt.
        paired (`bool`): Whether the i-th prompt of the class and the i-th other one are a pair.
        confidence (`float`): Coverage of the intervals, between 0 and 1.
        resamples (`int`): 0 for scores alone.
        permutations (`int`, *optional*): Relabellings for every expert; by default moments where they suffice.
        seed (`int`): Of the relabellings.

    Raises:
        [`DataError`]: if a value is not finite, the order shows no pairs, or a score of shares meets negative values.
        [`ConfigError`]: if a number is out of range.
    """
    check_resampling("contrast", confidence, resamples, seed, permutations=permutations)
    lengths = checked_tokens(tokens, len(is_target), score)
    chosen, others = np.flatnonzero(is_target), np.flatnonzero(~is_target)
    if paired:
        check_pairs(chosen, others)
    number = grid[0] * grid[1]
    several = None
    if resamples:
        wanted = permutations or RELABELLINGS
        several = relabellings(len(chosen), len(others), paired=paired, wanted=wanted, columns=number)
    plan = _Plan(chosen, others, lengths, score, paired, confidence, permutations, several, seed)
    width = max(1, VALUES_PER_BLOCK // len(is_target))
    found = [_of_block(columns(start, min(start + width, number)), plan) for start in range(0, number, width)]
    scores, low, high, p, relabelled = (np.concatenate(parts) for parts in zip(*found, strict=True))
    scores = scores.reshape(grid)
    if several is None:
        return Contrast(scores, None, None, None, None, None)
    q = adjusted(p)
    # Moments give no least p value; relabellings do.
    least = several.least_p if relabelled.all() else LEAST_P
    done = several.number if relabelled.any() else None
    return Contrast(
        scores, low.reshape(grid), high.reshape(grid), p.reshape(grid), q.reshape(grid), confidence, least, done
    )


def _of_block(values: Array, plan: _Plan) -> _Block:
    if not np.isfinite(values).all():
        prompt = int(np.argwhere(~np.isfinite(values))[0, 0])
        raise DataError("contrast.values", "not finite", got=f"NaN or infinity in prompt {prompt}")
    if plan.score in OF_SHARES and values.min() < 0:
        what, expected = "a share of tokens cannot be negative", "0 or more"
        raise DataError("contrast.values", what, got=float(values.min()), expected=expected)
    statistic = Statistic(values, plan.tokens, SCORES[plan.score])
    found = statistic(plan.chosen, plan.others)
    nothing = np.full(values.shape[1], np.nan)
    if plan.several is None:
        return _Block(found, nothing, nothing, nothing, np.zeros(len(nothing), dtype=bool))
    if plan.paired:
        ends = _jackknife(statistic, found, plan)
    else:
        ends = limits(
            values,
            plan.tokens,
            plan.chosen,
            plan.others,
            score=plan.score,
            paired=False,
            confidence=plan.confidence,
            resamples=None,
            seed=plan.seed,
        )
    relabelled = np.ones(values.shape[1], dtype=bool)
    p = np.ones(values.shape[1])
    if plan.permutations is None:
        p, enough = moments_test(
            values,
            plan.tokens,
            plan.chosen,
            plan.others,
            per_token=plan.score != "mean_difference",
            paired=plan.paired,
        )
        relabelled = ~enough
    if relabelled.any():
        some = np.flatnonzero(relabelled)
        p[some] = permutation_test(
            statistic.of_columns(some),
            plan.chosen,
            plan.others,
            plan=plan.several,
            paired=plan.paired,
            seed=plan.seed,
            to_the_end=plan.permutations is not None,
        )
    return _Block(found, ends.low, ends.high, p, relabelled)


def moments_test(
    values: Array, tokens: Array, chosen: Indices, others: Indices, *, per_token: bool, paired: bool
) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Return the two-sided p value of each column over all relabellings, from three moments, and where these suffice.

    A score per token is a function of two ratios; it is tested by the sum of `value - rate * tokens`, with the rate of
    all prompts together, to which it is proportional up to second order.

    Args:
        values (`np.ndarray` of shape `(prompts, columns)`, float64): One row for each prompt.
        tokens (`np.ndarray` of shape `(prompts,)`, float64): Tokens counted in each.
        chosen (`np.ndarray` of int): Rows of the target class.
        others (`np.ndarray` of int): Rows compared with.
        per_token (`bool`): Whether the score is one of shares of tokens.
        paired (`bool`): Whether labels change places only within pairs.

    Returns:
        `tuple`: p, `(columns,)`, float64, and whether enough prompts use a column, `(columns,)`, bool. A column that
        never varies has p = 1.
    """
    rest = values
    if per_token:
        rest = values - values.sum(axis=0) / max(float(tokens.sum()), 1.0) * tokens[:, None]
    n, m = len(values), len(chosen)
    if paired:
        apart = rest[chosen] - rest[others]
        squares = apart**2
        total, variance = apart.sum(axis=0), squares.sum(axis=0)
        skew = np.zeros_like(total)
        least, fourth = m, (squares**2).mean(axis=0)
        kurtosis = _ratio(fourth, (variance / m) ** 2)
    else:
        centred = rest - rest.mean(axis=0)
        total = centred[chosen].sum(axis=0)
        squares = centred**2  # numpy multiplies for a square, and takes logarithms for other powers
        second, third, fourth = (part.mean(axis=0) for part in (squares, squares * centred, squares**2))
        variance = m * (n - m) / (n - 1) * second
        third = m * (n - m) * (n - 2 * m) / ((n - 1) * (n - 2)) * third
        skew = _ratio(third, variance**1.5)
        least, kurtosis = min(m, n - m), _ratio(fourth, second**2)
    scale = np.abs(values).max(axis=0) * len(values)
    varies = variance > (1e-12 * scale) ** 2
    z = np.divide(total, np.sqrt(variance), out=np.zeros_like(total), where=varies)
    tails = stats.pearson3(np.where(np.abs(skew) < 1e-6, 0.0, skew))
    p = np.where(varies, np.minimum(1.0, 2.0 * np.minimum(tails.cdf(z), tails.sf(z))), 1.0)
    p = np.maximum(p, LEAST_P)
    return p, ~varies | (least >= ENOUGH * np.maximum(kurtosis, 1.0))


def _ratio(above: Array, below: Array) -> Array:
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def _jackknife(statistic: Statistic, found: Array, plan: _Plan) -> Limits:
    """Return intervals of pairs: Student's t, with the spread of the score as each block of pairs is left out."""
    pairs = len(plan.chosen)
    blocks = min(JACKKNIFE, pairs)
    place = np.random.default_rng(plan.seed).permutation(np.arange(pairs) % blocks)
    sums = [np.zeros((blocks, statistic.values.shape[1])) for _ in range(2)]
    for total, rows in zip(sums, (plan.chosen, plan.others), strict=True):
        np.add.at(total, place, statistic.values[rows])
    sizes = np.bincount(place, minlength=blocks)[:, None]
    left = [(total.sum(axis=0) - total) / (pairs - sizes) for total in sums]
    scores = statistic.of_means(left[0], left[1], pairs)
    spread = np.sqrt((blocks - 1) / blocks * ((scores - scores.mean(axis=0)) ** 2).sum(axis=0))
    half = stats.t.ppf((1.0 + plan.confidence) / 2.0, blocks - 1) * spread
    return Limits(found - half, found + half)
