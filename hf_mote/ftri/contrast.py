"""Do two classes of prompts route differently? Differences, intervals, permutation tests, false-discovery control.

Sits between activation maps and a ranking: it takes one map per prompt and says for each (layer, expert) how much more
the target class uses it, how far that is known, and whether shuffled labels would show as much. Pure functions on
numpy arrays; scipy does the statistics.

A small p value is not evidence that an expert *causes* anything: see `attribution` and `evaluate` for that.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import stats

from hf_mote.errors import ConfigError, DataError, UnknownNameError
from hf_mote.ftri.resampling import Statistic, resample_score
from hf_mote.ftri.scores import SCORES

__all__ = ["Contrast", "Interval", "LengthConfound", "contrast", "length_confound", "wilson"]

Array: TypeAlias = npt.NDArray[np.float64]
RESTS = ("pooled", "paired")
EXPERTS_PER_CHUNK = 2048  # bounds memory; the seed makes all chunks see the same resamples


class Contrast(NamedTuple):
    """What `contrast` found; every array is float64 of shape `(layers, experts)`.

    Attributes:
        score (`np.ndarray`): The score asked for, such as the mean over the target class minus that over the rest.
        low (`np.ndarray`, *optional*): Lower end of the interval of `score`; NaN where a class has one prompt.
        high (`np.ndarray`, *optional*): Upper end of the interval of `score`; NaN where a class has one prompt.
        p (`np.ndarray`, *optional*): Two-sided permutation p value, never 0.
        q (`np.ndarray`, *optional*): Benjamini-Hochberg adjusted p value over all layers and experts.
        confidence (`float`, *optional*): Coverage that the interval aims at, between 0 and 1.

    The five optional ones are `None` when no resampling was asked for.
    """

    score: Array
    low: Array | None
    high: Array | None
    p: Array | None
    q: Array | None
    confidence: float | None


class Interval(NamedTuple):
    """A confidence interval: `low <= high`."""

    low: float
    high: float


class LengthConfound(NamedTuple):
    """How far a difference of counts is a difference of prompt lengths.

    Attributes:
        row_sums (`np.ndarray` of shape `(layers,)`, float64): Sum of the difference over the experts of each layer.
        relative (`float`): The row sum of largest magnitude, as a fraction of the rest's routed tokens in that layer:
            0.25 means that the target's prompts are a quarter longer.
    """

    row_sums: Array
    relative: float


def contrast(
    values: npt.ArrayLike,
    is_target: npt.ArrayLike,
    *,
    score: str = "mean_difference",
    tokens: npt.ArrayLike | None = None,
    rest: Literal["pooled", "paired"] = "pooled",
    confidence: float = 0.95,
    resamples: int = 999,
    seed: int = 0,
) -> Contrast:
    """Return, per expert, how much more the target class uses it than the rest, with interval, p and q value.

    Args:
        values (`np.ndarray` of shape `(prompts, layers, experts)`, any real dtype):
            One map per prompt. Computed in float64; not modified.
        is_target (`np.ndarray` of shape `(prompts,)`, bool):
            Which prompts belong to the target class.
        score (`str`, *optional*, defaults to `"mean_difference"`):
            One of `hf_mote.ftri.scores.SCORES`.
        tokens (`np.ndarray` of shape `(prompts,)`, *optional*):
            Tokens counted in each prompt; needed by every score but the difference of means.
        rest (`str`, *optional*, defaults to `"pooled"`):
            `"pooled"` compares with all other prompts. `"paired"` compares the i-th target prompt with the i-th other
            prompt: pairs are resampled together, and the permutation swaps within pairs.
        confidence (`float`, *optional*, defaults to 0.95):
            Coverage of the intervals, between 0 and 1.
        resamples (`int`, *optional*, defaults to 999):
            Bootstrap resamples, and random permutations (all of them, where there are no more). 0 gives the score
            alone.
        seed (`int`, *optional*, defaults to 0):
            Seed of both. Equal seeds give equal results.

    Returns:
        [`Contrast`]: arrays of shape `(layers, experts)`. A class of one prompt has no spread to resample: `low` and
        `high` are NaN then, while p and q still stand.

    Raises:
        [`DataError`]: if shapes disagree, a value is not finite, a class is empty, or pairs do not come out even.
        [`ConfigError`]: if `confidence` or `resamples` is out of range.
        [`UnknownNameError`]: if there is no such score.

    Example:
        ```python
        import numpy as np
        from hf_mote.ftri.contrast import contrast

        values = np.random.default_rng(0).poisson(3.0, size=(40, 2, 8))
        values[:20, 1, 5] += 4
        found = contrast(values, np.arange(40) < 20)
        assert found.score.argmax() == 1 * 8 + 5 and found.q.min() < 0.05
        ```

    Source: scores, Dahlke et al., "Mixture of Tunable Experts" (arXiv 2502.11096), differential maps. Intervals,
    Hesterberg (2015), "What Teachers Should Know About the Bootstrap" (arXiv 1411.5279), expanded percentile interval;
    what differs here: of two classes the smaller one sets the expansion, which is the cautious choice. p values,
    Phipson and Smyth (2010): the observed labels count among the permutations.
    """
    maps, target = _checked(values, is_target)
    if score not in SCORES:
        raise UnknownNameError.of("contrast: score", score, SCORES)
    if rest not in RESTS:
        raise UnknownNameError.of("contrast: rest", rest, RESTS)
    if not 0.0 < confidence < 1.0:
        raise ConfigError("contrast: confidence", "is not a coverage", got=confidence, expected="0 < confidence < 1")
    if isinstance(resamples, bool) or not isinstance(resamples, int) or resamples < 0:
        raise ConfigError("contrast: resamples", "is not a number of resamples", got=resamples, expected="0 or more")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ConfigError("contrast: seed", "is not a seed", got=repr(seed), expected="an integer, 0 or more")
    chosen, others = np.flatnonzero(target), np.flatnonzero(~target)
    paired = rest == "paired"
    if paired and len(chosen) != len(others):
        raise DataError(
            "contrast: is_target",
            "pairs do not come out even",
            got=f"{len(chosen)} target and {len(others)} other prompts",
            expected="as many of each, in the same order",
        )

    shape = maps.shape[1:]
    flat = maps.reshape(len(maps), -1)
    lengths = _checked_tokens(tokens, len(maps), score)
    # In one way with and without resamples, so that ties fall alike.
    found = Statistic(flat, lengths, SCORES[score])(chosen, others)
    if resamples == 0:
        return Contrast(found.reshape(shape), None, None, None, None, None)
    parts = [
        resample_score(
            flat[:, start : start + EXPERTS_PER_CHUNK],
            lengths,
            chosen,
            others,
            score=SCORES[score],
            paired=paired,
            confidence=confidence,
            resamples=resamples,
            seed=seed,
        )
        for start in range(0, flat.shape[1], EXPERTS_PER_CHUNK)
    ]
    _, low, high, p = (np.concatenate(part).reshape(shape) for part in zip(*parts, strict=True))
    q = np.asarray(stats.false_discovery_control(p.ravel()), dtype=np.float64).reshape(shape)
    return Contrast(found.reshape(shape), low, high, p, q, confidence)


def length_confound(values: npt.ArrayLike, is_target: npt.ArrayLike) -> LengthConfound:
    """Return how much of a difference of counts comes from longer or shorter prompts.

    Every token chooses `top_k` experts in every layer, so that the difference of counts sums, in each layer, to
    `top_k` times the difference of mean lengths. Where that is far from 0, divide the maps by their tokens first.

    Args:
        values (`np.ndarray` of shape `(prompts, layers, experts)`, any real dtype): One map of counts per prompt.
        is_target (`np.ndarray` of shape `(prompts,)`, bool): Which prompts belong to the target class.

    Returns:
        [`LengthConfound`]: the row sums in routed tokens, and the largest as a fraction.

    Raises:
        [`DataError`]: if shapes disagree, a value is not finite or a class is empty.

    Example:
        ```python
        import numpy as np
        from hf_mote.ftri.contrast import length_confound

        counts = np.ones((4, 2, 8))
        counts[:2] *= 1.5
        assert length_confound(counts, np.array([True, True, False, False])).relative == 0.5
        ```
    """
    maps, target = _checked(values, is_target)
    routed = maps.sum(axis=2)
    rest = routed[~target].mean(axis=0)
    row_sums = routed[target].mean(axis=0) - rest
    worst = int(np.abs(row_sums).argmax())
    if row_sums[worst] == 0.0:
        return LengthConfound(row_sums, 0.0)
    relative = row_sums[worst] / rest[worst] if rest[worst] else np.copysign(np.inf, row_sums[worst])
    return LengthConfound(row_sums, float(relative))


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
        from hf_mote.ftri.contrast import wilson

        low, high = wilson(0, 50)
        assert low == 0.0 and 0.07 < high < 0.08
        ```
    """
    if n < 1 or not 0 <= successes <= n:
        raise DataError("wilson", "no rate", got=f"{successes} of {n}", expected="0 <= successes <= n and n >= 1")
    if not 0.0 < confidence < 1.0:
        raise ConfigError("wilson: confidence", "is not a coverage", got=confidence, expected="0 < confidence < 1")
    interval = stats.binomtest(int(successes), int(n)).proportion_ci(confidence, method="wilson")
    return Interval(float(interval.low), float(interval.high))


def _checked(values: npt.ArrayLike, is_target: npt.ArrayLike) -> tuple[Array, npt.NDArray[np.bool_]]:
    maps = np.asarray(values, dtype=np.float64)
    target = np.asarray(is_target)
    if maps.ndim != 3 or maps.size == 0:
        raise DataError("contrast: values", "wrong shape", got=maps.shape, expected="(prompts, layers, experts)")
    if target.dtype != np.bool_ or target.shape != maps.shape[:1]:
        raise DataError(
            "contrast: is_target",
            "does not mark the prompts",
            got=f"{target.dtype} of shape {target.shape}",
            expected=f"bool of shape {maps.shape[:1]}",
        )
    if not np.isfinite(maps).all():
        prompt = int(np.argwhere(~np.isfinite(maps))[0, 0])
        raise DataError("contrast: values", "not finite", got=f"NaN or infinity in prompt {prompt}")
    for name, members in (("target class", target), ("rest", ~target)):
        if not members.any():
            raise DataError(
                "contrast: is_target",
                f"the {name} is empty",
                got=f"{int(target.sum())} of {len(target)} prompts in the target class",
                expected="at least one in and one out",
                fix="Look at the responses: the judge may see only one class in them.",
            )
    return maps, target


def _checked_tokens(tokens: npt.ArrayLike | None, prompts: int, score: str) -> Array:
    if tokens is None and score == "mean_difference":
        return np.ones(prompts)
    found = np.asarray(np.nan if tokens is None else tokens, dtype=np.float64)
    if found.shape != (prompts,) or not np.isfinite(found).all() or (found < 0).any():
        raise DataError(
            "contrast: tokens",
            f"the score {score!r} needs the tokens of each prompt",
            got="none" if tokens is None else f"shape {found.shape}",
            expected=f"{prompts} numbers, none negative",
        )
    return found
