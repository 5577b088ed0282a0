"""A score of two classes under resampled or relabelled prompts, for thousands of columns at once.

Used by `contrast`. Prompts are the unit: a resample, or a relabelling, is a row of weights over prompts, so that one
of all experts is one matrix product, and every score is a function of the two class means that come out.
"""

from __future__ import annotations

from copy import copy
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from hf_mote.errors import real, whole
from hf_mote.statistics.scores import ClassMean, Score, mean_difference

__all__ = ["Statistic", "check_resampling"]

Array: TypeAlias = npt.NDArray[np.float64]


def check_resampling(
    where: str, confidence: object, resamples: object, seed: object, *, permutations: object = None
) -> None:
    """Raise [`ConfigError`] unless intervals and permutation tests can be computed with these.

    Args:
        where (`str`): The place, for the error.
        confidence (`object`): Coverage of the intervals, between 0 and 1.
        resamples (`object`): Number of resamples, 0 or more.
        seed (`object`): Their seed, 0 or more.
        permutations (`object`, *optional*): Number of relabellings, 1 or more; `None` for as many as it takes.
    """
    real(f"{where}.confidence", confidence, above=0, below=1)
    whole(f"{where}.resamples", resamples)
    whole(f"{where}.seed", seed)
    if permutations is not None:
        whole(f"{where}.permutations", permutations, least=1)


class Statistic:
    """A score of some rows against others, for all columns at once, over any stack of index rows.

    A difference of means is computed on columns shifted by their first row, which does not change it: a column that
    never varies then gives 0 exactly under every resample, rather than rounding noise that a permutation test would
    rank.

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
        self.whole = bool((self.values == np.rint(self.values)).all())

    def __call__(self, x: Any, y: Any, axis: int = -1) -> Array:
        """Return the score of rows `x` against rows `y`, `(..., columns)`."""
        found = self.score(self._mean(np.asarray(x)), self._mean(np.asarray(y)))
        return np.moveaxis(found, -1, 0) if self.columns_first else found

    @property
    def scale(self) -> Array:
        """How large the score can be, about, `(columns,)`: of the values for a difference of means, else 1."""
        largest: Array = np.abs(self.values[:, :-1]).max(axis=0)
        return largest if self.score is mean_difference else np.ones_like(largest)

    def of_columns(self, columns: npt.NDArray[np.int64]) -> Statistic:
        """Return the statistic of some columns alone."""
        part = copy(self)
        part.values = np.ascontiguousarray(self.values[:, [*columns, -1]])
        return part

    def of_labels(self, labels: Array) -> Array:
        """Return the score under relabellings.

        Args:
            labels (`np.ndarray` of shape `(relabellings, prompts)`, float64):
                1 for the prompts of the target class, 0 for the others.
        """
        size, total = int(labels[0].sum()), self.values.sum(axis=0)
        target = labels @ self.values
        rest = total - target
        if not self.whole:  # exactly 0, without rounding errors
            rest[np.abs(rest) < 1e-12 * np.abs(self.values).sum(axis=0)] = 0.0
        return self.score(_class_mean(target, size), _class_mean(rest, len(self.values) - size))

    def of_means(self, target: Array, rest: Array, prompts: int) -> Array:
        """Return the score of stacks of class means.

        Args:
            target (`np.ndarray` of shape `(..., columns + 1)`, float64): Means over the class, the tokens' last.
            rest (`np.ndarray` of the same shape, float64): Means over the others.
            prompts (`int`): Prompts of each class.
        """
        return self.score(*(ClassMean(mean[..., :-1], mean[..., -1:], prompts) for mean in (target, rest)))

    def _mean(self, index: npt.NDArray[Any]) -> ClassMean:
        prompts, columns = self.values.shape
        rows = index.astype(np.int64).reshape(-1, index.shape[-1])
        keys = (np.arange(len(rows))[:, None] * prompts + rows).ravel()
        times = np.bincount(keys, minlength=len(rows) * prompts).reshape(len(rows), prompts).astype(np.float64)
        mean: Array = (times @ self.values / rows.shape[1]).reshape(*index.shape[:-1], columns)
        return ClassMean(mean[..., :-1], mean[..., -1:], rows.shape[1])


def _class_mean(sums: Array, prompts: int) -> ClassMean:
    sums /= prompts
    return ClassMean(sums[:, :-1], sums[:, -1:], prompts)
