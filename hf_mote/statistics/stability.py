"""How far the top of a ranking depends on which prompts were asked: its members under resampling.

A ranking can have small p values and still name other experts the next time. Prompts are drawn anew with replacement,
within their class, and the best n experts of each draw are compared with the best n of all prompts. Experts of equal
score come in random order in a draw: that a ranking lists them by number is no evidence for the first of them.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from hf_mote.errors import DataError, one_of, whole
from hf_mote.statistics.inputs import checked_maps, checked_tokens
from hf_mote.statistics.resampling import Statistic
from hf_mote.statistics.scores import SCORES

__all__ = ["Stability", "top_stability"]

Array: TypeAlias = npt.NDArray[np.float64]


class Stability(NamedTuple):
    """How the best `n` experts hold under resampled prompts.

    Attributes:
        n (`int`): Size of the top.
        overlap (`float`): Mean share of the top that is in the top of a resample, 0 to 1.
        low (`float`): 5th percentile of that share over the resamples.
        chance (`float`): The share that a random top would have, n / experts.
        frequency (`np.ndarray` of shape `(layers, experts)`, float64): Share of resamples with the expert in the top.
    """

    n: int
    overlap: float
    low: float
    chance: float
    frequency: Array


def top_stability(
    values: npt.ArrayLike,
    is_target: npt.ArrayLike,
    n: int,
    *,
    score: str = "mean_difference",
    tokens: npt.ArrayLike | None = None,
    resamples: int = 200,
    seed: int = 0,
) -> Stability:
    """Return how stable the best `n` experts are when prompts are drawn anew within their class.

    Args:
        values (`np.ndarray` of shape `(prompts, layers, experts)`, any real dtype): One map per prompt.
        is_target (`np.ndarray` of shape `(prompts,)`, bool): Which prompts belong to the target class.
        n (`int`): Size of the top, 1 to layers * experts.
        score (`str`, *optional*, defaults to `"mean_difference"`): One of `hf_mote.statistics.scores.SCORES`.
        tokens (`np.ndarray` of shape `(prompts,)`, *optional*):
            Tokens counted in each prompt; needed by every score but the difference of means.
        resamples (`int`, *optional*, defaults to 200): Draws, 1 or more.
        seed (`int`, *optional*, defaults to 0): Of the draws.

    Returns:
        [`Stability`]

    Raises:
        [`ConfigError`]: if `n`, `resamples` or `seed` is out of range.
        [`UnknownNameError`]: if there is no such score.
        [`DataError`]: if values or tokens are malformed, or a class has fewer than 2 prompts, of which nothing can be
            drawn anew.

    Example:
        ```python
        import numpy as np
        from hf_mote.statistics.stability import top_stability

        values = np.random.default_rng(0).poisson(3.0, size=(40, 2, 8))
        values[:20, 1, 5] += 9
        found = top_stability(values, np.arange(40) < 20, 1)
        assert found.overlap == 1.0 and found.frequency[1, 5] == 1.0
        ```
    """
    maps, target = checked_maps(values, is_target, "top_stability")
    one_of("top_stability.score", score, SCORES)
    flat = maps.reshape(len(maps), -1)
    whole("top_stability.n", n, least=1, most=flat.shape[1])
    whole("top_stability.resamples", resamples, least=1)
    whole("top_stability.seed", seed)
    chosen, others = np.flatnonzero(target), np.flatnonzero(~target)
    if min(len(chosen), len(others)) < 2:
        got = f"{len(chosen)} and {len(others)}"
        raise DataError("top_stability", "too few prompts to draw from", got=got, expected="2 of each class")
    lengths = checked_tokens(tokens, len(maps), score, "top_stability")
    statistic, rng = Statistic(flat, lengths, SCORES[score]), np.random.default_rng(seed)
    top = np.argsort(-statistic(chosen, others), kind="stable")[:n]
    draws = []
    for _ in range(resamples):
        drawn = statistic(rng.choice(chosen, len(chosen)), rng.choice(others, len(others)))
        draws.append(np.lexsort((rng.random(len(drawn)), -drawn))[:n])
    shares = np.array([np.isin(draw, top).mean() for draw in draws])
    frequency = np.bincount(np.concatenate(draws), minlength=flat.shape[1]) / resamples
    return Stability(
        n=n,
        overlap=float(shares.mean()),
        low=float(np.quantile(shares, 0.05)),
        chance=n / flat.shape[1],
        frequency=frequency.reshape(maps.shape[1:]),
    )
