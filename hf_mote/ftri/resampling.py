"""Bootstrap intervals and permutation p values of a score of two classes, for thousands of columns at once.

Below `contrast`. Prompts are the unit: a resample is a row of weights over prompts, so that one resample of all
experts is one matrix product, and every score is a function of the two class means that come out. scipy draws the
resamples and does the statistics; its data are prompt indices.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import stats

from hf_mote.ftri.scores import ClassMean, Score, mean_difference

__all__ = ["Resampled", "Statistic", "resample_score"]

Array: TypeAlias = npt.NDArray[np.float64]
Indices: TypeAlias = npt.NDArray[np.int64]

RESAMPLES_PER_BATCH = 256  # resamples per matrix product: bounds memory, changes no result


class Resampled(NamedTuple):
    """Score, interval and two-sided permutation p value of each column; arrays of shape `(columns,)`."""

    score: Array
    low: Array
    high: Array
    p: Array


class Statistic:
    """A score of some rows against others, for all columns at once, over any stack of index rows.

    A difference of means is taken of columns shifted by their first row, which it cannot see: a column that never
    varies then gives 0 exactly under every resample, rather than rounding noise that a permutation test would rank.

    Args:
        flat (`np.ndarray` of shape `(prompts, columns)`, float64): One row per prompt. Not modified.
        tokens (`np.ndarray` of shape `(prompts,)`, float64): Tokens counted in each prompt.
        score (`Score`): A function of two class means.
        columns_first (`bool`, *optional*, defaults to `False`):
            scipy's bootstrap stacks resamples last, its permutation test first.
    """

    def __init__(self, flat: Array, tokens: Array, score: Score, *, columns_first: bool = False) -> None:
        shifted = flat - flat[0] if score is mean_difference else flat
        self.values = np.concatenate([shifted, tokens[:, None]], axis=1)
        self.score = score
        self.columns_first = columns_first

    def __call__(self, x: Any, y: Any, axis: int = -1) -> Array:
        """Return the score of rows `x` against rows `y`, `(..., columns)`."""
        found = self.score(self._mean(np.asarray(x)), self._mean(np.asarray(y)))
        return np.moveaxis(found, -1, 0) if self.columns_first else found

    def _mean(self, index: npt.NDArray[Any]) -> ClassMean:
        prompts, columns = self.values.shape
        rows = index.astype(np.int64).reshape(-1, index.shape[-1])
        keys = (np.arange(len(rows))[:, None] * prompts + rows).ravel()
        times = np.bincount(keys, minlength=len(rows) * prompts).reshape(len(rows), prompts).astype(np.float64)
        mean: Array = (times @ self.values / rows.shape[1]).reshape(*index.shape[:-1], columns)
        return ClassMean(mean[..., :-1], mean[..., -1:], rows.shape[1])


def resample_score(
    flat: Array,
    tokens: Array,
    chosen: Indices,
    others: Indices,
    *,
    score: Score,
    paired: bool,
    confidence: float,
    resamples: int,
    seed: int,
) -> Resampled:
    """Return, per column, the score of the `chosen` rows against the `others`, with interval and p value.

    Args:
        flat (`np.ndarray` of shape `(prompts, columns)`, float64): One row per prompt. Not modified.
        tokens (`np.ndarray` of shape `(prompts,)`, float64): Tokens counted in each prompt.
        chosen (`np.ndarray` of int): Rows of the target class.
        others (`np.ndarray` of int): Rows compared with.
        score (`Score`): A function of two class means.
        paired (`bool`): Whether the i-th of `chosen` belongs with the i-th of `others`.
        confidence (`float`): Coverage of the interval, between 0 and 1.
        resamples (`int`): Bootstrap resamples, and random permutations (all of them, where there are no more).
        seed (`int`): Seed of both. Columns handed in separately with one seed see the same resamples.

    Returns:
        [`Resampled`]: `low` and `high` are NaN where a class has one row, which has no spread to resample.

    Source: Hesterberg (2015), "What Teachers Should Know About the Bootstrap" (arXiv 1411.5279), expanded percentile
    interval; what differs here: of two classes the smaller one sets the expansion, which is the cautious choice.
    """
    statistic = Statistic(flat, tokens, score)
    if min(len(chosen), len(others)) < 2:
        return _one_against_all(statistic, flat, tokens, chosen, others)
    test = stats.permutation_test(
        (chosen, others),
        statistic,
        permutation_type="samples" if paired else "independent",
        vectorized=True,
        n_resamples=resamples,
        batch=RESAMPLES_PER_BATCH,
        rng=seed,
    )
    with warnings.catch_warnings():  # a column without spread has an interval of width 0, which is right
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        interval = stats.bootstrap(
            (chosen, others),
            Statistic(flat, tokens, score, columns_first=True),
            n_resamples=resamples,
            batch=RESAMPLES_PER_BATCH,
            paired=paired,
            vectorized=True,
            confidence_level=_expanded(confidence, min(len(chosen), len(others))),
            method="percentile",
            rng=seed,
        ).confidence_interval
    return Resampled(statistic(chosen, others), interval.low, interval.high, test.pvalue)


def _one_against_all(statistic: Statistic, flat: Array, tokens: Array, chosen: Indices, others: Indices) -> Resampled:
    """Return the exact test of a class of one row: its rank among all rows, by what the score looks at."""
    if statistic.score is not mean_difference:
        flat = flat / np.maximum(tokens, 1.0)[:, None]
    single = flat[chosen if len(chosen) == 1 else others]
    p = np.minimum(1.0, 2.0 * np.minimum((flat <= single).mean(axis=0), (flat >= single).mean(axis=0)))
    nothing = np.full_like(p, np.nan)
    return Resampled(statistic(chosen, others), nothing, nothing.copy(), p)


def _expanded(confidence: float, n: int) -> float:
    """Return the level whose normal quantile is Student's, times the bootstrap's missing sqrt(n / (n - 1))."""
    quantile = stats.t.ppf((1.0 + confidence) / 2.0, n - 1) * np.sqrt(n / (n - 1))
    return float(1.0 - 2.0 * stats.norm.sf(quantile))
