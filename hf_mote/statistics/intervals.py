"""Confidence intervals of a score of two classes, for thousands of columns at once.

Used by `contrast`. Prompts are the unit. Routing counts of few prompts are skewed and over-dispersed, and a plain
bootstrap of them is too narrow on the side of the larger values. So:

- scores of shares of tokens (`risk_difference`, `log_odds`, `npmi`) combine one interval of each class, which
  Student's t gives on the logit scale from the spread over prompts;
- `mean_difference` and `weight_difference` have an expanded percentile bootstrap, widened to what one interval of each
  class on the log scale gives, where no value is negative;
- pairs of prompts have the expanded percentile bootstrap, of pairs.

Sources: Zou and Donner (2008), "Construction of confidence limits about effect measures", for how two intervals become
one of the difference; Hesterberg (2015), "What Teachers Should Know About the Bootstrap" (arXiv 1411.5279), for the
expanded percentile interval; what differs here: of two classes the smaller one sets the expansion.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from hf_mote.statistics.resampling import Statistic
from hf_mote.statistics.scores import SCORES, ClassMean, npmi

__all__ = ["OF_SHARES", "Limits", "limits"]

Array: TypeAlias = npt.NDArray[np.float64]
Indices: TypeAlias = npt.NDArray[np.int64]

OF_SHARES = ("risk_difference", "log_odds", "npmi")
RESAMPLES_PER_BATCH = 256  # resamples per matrix product: bounds memory, changes no result
LONGEST_LOG = 3.0  # log of the largest factor by which an upper limit of a class exceeds its mean


class Limits(NamedTuple):
    """Ends of an interval, arrays of shape `(columns,)`."""

    low: Array
    high: Array


class _Class(NamedTuple):
    """A class's estimate, its interval, and half of that on the scale where it is symmetric."""

    value: Array
    low: Array
    high: Array
    half: Array


def limits(
    flat: Array,
    tokens: Array,
    chosen: Indices,
    others: Indices,
    *,
    score: str,
    paired: bool,
    confidence: float,
    resamples: int | None,
    seed: int,
) -> Limits:
    """Return the interval of the score of the `chosen` rows against the `others`, per column.

    Args:
        flat (`np.ndarray` of shape `(prompts, columns)`, float64): One row per prompt. Not modified.
        tokens (`np.ndarray` of shape `(prompts,)`, float64): Tokens counted in each prompt.
        chosen (`np.ndarray` of int): Rows of the target class.
        others (`np.ndarray` of int): Rows compared with.
        score (`str`): One of `SCORES`.
        paired (`bool`): Whether the i-th of `chosen` belongs with the i-th of `others`.
        confidence (`float`): Coverage that is aimed at, between 0 and 1.
        resamples (`int`, *optional*):
            Bootstrap resamples; `None` for the normal approximation of it, where rows are many. Not of pairs.
        seed (`int`): Their seed. Columns given separately with one seed have the same resamples.

    Returns:
        [`Limits`]: NaN where a class has one row, which has no spread.
    """
    if min(len(chosen), len(others)) < 2:
        nothing = np.full(flat.shape[1], np.nan)
        return Limits(nothing, nothing.copy())
    if score in OF_SHARES and not paired:
        found = Statistic(flat, tokens, SCORES[score])(chosen, others)
        wide = _of_shares(score, *(_logit_class(flat[rows], tokens[rows], confidence) for rows in (chosen, others)))
        return Limits(np.minimum(wide.low, found), np.maximum(wide.high, found))
    lengths = tokens if score == "weight_difference" else np.ones(len(tokens))
    if resamples is None:
        drawn = _of_difference(*(_normal_class(flat[rows], lengths[rows], confidence) for rows in (chosen, others)))
    else:
        drawn = _bootstrap(flat, tokens, chosen, others, score, paired, confidence, resamples, seed)
    if paired:
        return drawn
    wide = _of_difference(*(_log_class(flat[rows], lengths[rows], confidence) for rows in (chosen, others)))
    positive = (flat >= 0).all(axis=0) & (flat != flat[0]).any(axis=0)
    return Limits(
        np.where(positive, np.minimum(drawn.low, wide.low), drawn.low),
        np.where(positive, np.maximum(drawn.high, wide.high), drawn.high),
    )


def _bootstrap(
    flat: Array,
    tokens: Array,
    chosen: Indices,
    others: Indices,
    score: str,
    paired: bool,
    confidence: float,
    resamples: int,
    seed: int,
) -> Limits:
    """Return the expanded percentile interval."""
    level = _expanded(confidence, min(len(chosen), len(others)))
    statistic = Statistic(flat, tokens, SCORES[score], columns_first=True)
    with warnings.catch_warnings():  # a column without spread has an interval of width 0, which is right
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        drawn = stats.bootstrap(
            (chosen, others),
            statistic,
            n_resamples=resamples,
            batch=RESAMPLES_PER_BATCH,
            paired=paired,
            vectorized=True,
            confidence_level=level,
            method="percentile",
            rng=seed,
        ).confidence_interval
    return Limits(drawn.low, drawn.high)


def _of_shares(score: str, target: _Class, rest: _Class) -> Limits:
    if score == "risk_difference":
        return _of_difference(target, rest)
    if score == "log_odds":
        middle, half = special.logit(target.value) - special.logit(rest.value), np.hypot(target.half, rest.half)
        return Limits(middle - half, middle + half)
    middle = _npmi(target.value, rest.value)
    return Limits(
        middle - np.hypot(middle - _npmi(target.low, rest.value), middle - _npmi(target.value, rest.high)),
        middle + np.hypot(_npmi(target.high, rest.value) - middle, _npmi(target.value, rest.low) - middle),
    )


def _of_difference(target: _Class, rest: _Class) -> Limits:
    difference = target.value - rest.value
    return Limits(
        difference - np.hypot(target.value - target.low, rest.high - rest.value),
        difference + np.hypot(target.high - target.value, rest.value - rest.low),
    )


def _npmi(target: Array, rest: Array) -> Array:
    one = np.ones_like(target)
    return npmi(ClassMean(target, one, 1), ClassMean(rest, one, 1))


def _logit_class(values: Array, tokens: Array, confidence: float) -> _Class:
    """Return the share of tokens, with half a token added to each side; its interval is at least the binomial one."""
    total = max(float(tokens.sum()), 1.0)
    share = np.minimum((values.sum(axis=0) + 0.5) / (total + 1.0), 1.0 - 0.5 / (total + 1.0))
    spread = np.maximum(_spread(values, tokens), np.sqrt(share * (1.0 - share) / total))
    half = _student(confidence, len(values)) * spread / (share * (1.0 - share))
    return _Class(share, special.expit(special.logit(share) - half), special.expit(special.logit(share) + half), half)


def _normal_class(values: Array, tokens: Array, confidence: float) -> _Class:
    """Return the mean per token, with Student's t from the spread over rows."""
    mean = values.sum(axis=0) / max(float(tokens.sum()), 1.0)
    half = _student(confidence, len(values)) * _spread(values, tokens)
    return _Class(mean, mean - half, mean + half, half)


def _log_class(values: Array, tokens: Array, confidence: float) -> _Class:
    """Return the mean per token; without spread where it is 0, as the class has no information on the rate then."""
    mean = values.sum(axis=0) / max(float(tokens.sum()), 1.0)
    half = _student(confidence, len(values)) * _spread(values, tokens)
    half = np.divide(half, mean, out=np.zeros_like(mean), where=mean > 0)
    return _Class(mean, mean * np.exp(-half), mean * np.exp(np.minimum(half, LONGEST_LOG)), half)


def _spread(values: Array, tokens: Array) -> Array:
    """Return the standard error of the mean per token, by linearisation, from the spread over prompts."""
    n, total = len(values), max(float(tokens.sum()), 1.0)
    residuals = values - values.sum(axis=0) / total * tokens[:, None]
    spread: Array = np.sqrt((residuals**2).sum(axis=0) * n / (n - 1)) / total
    return spread


def _student(confidence: float, n: int) -> float:
    return float(stats.t.ppf((1.0 + confidence) / 2.0, n - 1))


def _expanded(confidence: float, n: int) -> float:
    """Return the level whose normal quantile is Student's, times the bootstrap's missing sqrt(n / (n - 1))."""
    quantile = _student(confidence, n) * np.sqrt(n / (n - 1))
    return float(1.0 - 2.0 * stats.norm.sf(quantile))
