"""How much the top of a ranking depends on the prompts: its members under resampling.

A ranking can have small p values and still have other top experts with other prompts. Prompts are drawn with
replacement, within their class, and the best n experts of each draw are compared with the best n of all prompts.
Experts of equal score are in random order in a draw, because their order by number in a ranking is not evidence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from hf_mote.errors import ConfigError, DataError, one_of, whole
from hf_mote.statistics.inputs import checked_maps, checked_tokens
from hf_mote.statistics.resampling import Statistic
from hf_mote.statistics.scores import SCORES

__all__ = ["Stability", "top_stability"]

VALUES_PER_BLOCK = 2**24  # of float64 in a block of experts: bounds memory

Array: TypeAlias = npt.NDArray[np.float64]


class Stability(NamedTuple):
    """The best `n` experts under resampled prompts.

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
    values: npt.ArrayLike | Callable[[int, int], Array],
    is_target: npt.ArrayLike,
    n: int,
    *,
    grid: tuple[int, int] | None = None,
    score: str = "mean_difference",
    tokens: npt.ArrayLike | None = None,
    resamples: int = 200,
    seed: int = 0,
) -> Stability:
    """Return how stable the best `n` experts are when prompts are drawn anew within their class.

    Args:
        values (`np.ndarray` of shape `(prompts, layers, experts)`, any real dtype, or `Callable`):
            One map per prompt; or what returns, as float64, the columns from one number to another of the flat
            `(layers, experts)` grid, `(prompts, columns)`, where all at once are too many.
        is_target (`np.ndarray` of shape `(prompts,)`, bool): Which prompts belong to the target class.
        n (`int`): Size of the top, 1 to layers * experts.
        grid (`tuple[int, int]`, *optional*): Layers and experts, if `values` is a function.
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
    if callable(values):
        if grid is None:
            raise ConfigError(
                "top_stability.grid", "is missing", expected="(layers, experts), as values is a function"
            )
        columns, target = values, np.asarray(is_target)
    else:
        maps, target = checked_maps(values, is_target, "top_stability")
        flat, grid = maps.reshape(len(maps), -1), (maps.shape[1], maps.shape[2])

        def columns(start: int, stop: int) -> Array:
            return flat[:, start:stop]

    number = grid[0] * grid[1]
    one_of("top_stability.score", score, SCORES)
    whole("top_stability.n", n, least=1, most=number)
    whole("top_stability.resamples", resamples, least=1)
    whole("top_stability.seed", seed)
    chosen, others = np.flatnonzero(target), np.flatnonzero(~target)
    if min(len(chosen), len(others)) < 2:
        got = f"{len(chosen)} and {len(others)}"
        raise DataError("top_stability", "too few prompts to draw from", got=got, expected="2 of each class")
    lengths = checked_tokens(tokens, len(target), score, "top_stability")
    width = max(1, VALUES_PER_BLOCK // len(target))
    blocks = [range(start, min(start + width, number)) for start in range(0, number, width)]
    found, drawn = np.zeros(number), np.zeros((resamples, number))
    for block in blocks:
        part, _ = checked_maps(columns(block.start, block.stop)[:, None], target, "top_stability")
        statistic, rng = Statistic(part[:, 0], lengths, SCORES[score]), np.random.default_rng(seed)
        found[block.start : block.stop] = statistic(chosen, others)
        for draw in drawn:  # the same prompts for every block
            rows = rng.choice(chosen, len(chosen)), rng.choice(others, len(others))
            draw[block.start : block.stop] = statistic(*rows)
    top = np.argsort(-found, kind="stable")[:n]
    rng = np.random.default_rng([seed, 1])
    draws = [np.lexsort((rng.random(number), -draw))[:n] for draw in drawn]
    shares = np.array([np.isin(draw, top).mean() for draw in draws])
    frequency = np.bincount(np.concatenate(draws), minlength=number) / resamples
    return Stability(
        n=n,
        overlap=float(shares.mean()),
        low=float(np.quantile(shares, 0.05)),
        chance=n / number,
        frequency=frequency.reshape(grid),
    )
