"""Whether routing separates two classes of prompts at all, measured on held-out prompts before any ranking.

A ranking always has first experts. If a classifier that sees the routing of all experts cannot tell the classes of
prompts that it was not trained on, there is nothing in the routing to rank. If it can, but not within topics, it
only recognises the topic.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from hf_mote.errors import DataError, real

__all__ = ["Predictability", "predictability"]

_FOLDS = 5
_RIDGE = 1.0  # of the mean eigenvalue
_MOST = 2_000  # prompts of a class: memory grows with their square, time with their cube


class Predictability(NamedTuple):
    """How well routing predicts the classes of held-out prompts.

    Attributes:
        auroc (`float`): Chance that a prompt of the class scores above one of the others, of the same held-out part.
        low (`float`): Lower end of its interval, by how far the held-out parts differ.
        high (`float`): Upper end.
        within (`float`, *optional*): The same chance for two prompts of one topic; `None` where no topic has both
            classes, so that class and topic cannot be distinguished.
        pairs (`int`): Pairs that were compared.
        confidence (`float`): Coverage of the interval.
    """

    auroc: float
    low: float
    high: float
    within: float | None
    pairs: int
    confidence: float

    @property
    def shown(self) -> bool:
        """Whether routing significantly separates the classes."""
        return self.low > 0.5

    def __str__(self) -> str:
        said = "tells" if self.shown else "is not shown to tell"
        text = (
            f"routing {said} the classes of held-out prompts: AUROC {self.auroc:.2f} [{self.low:.2f}, {self.high:.2f}]"
        )
        return text if self.within is None else f"{text}, within topics {self.within:.2f}"


def predictability(
    counts: npt.ArrayLike,
    of_class: Sequence[bool],
    *,
    groups: Sequence[int] | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> Predictability:
    """Return how well a linear classifier of routing tells the classes of prompts that it has not seen.

    Ridge regression on each prompt's shares of tokens, standardised; five folds, whole groups in each. Pairs are
    compared within a fold, so that the folds' thresholds play no part. The interval is Student's over the folds, with
    the correction of Nadeau and Bengio (2003), "Inference for the Generalization Error", for training on the same
    prompts. Of a class of more than 2,000 prompts as many are drawn.

    Args:
        counts (`array` of shape `(prompts, ...)`): Tokens, or routing weight, that each expert took.
        of_class (`Sequence[bool]`): Whether each prompt is of the class.
        groups (`Sequence[int]`, *optional*): The number of each prompt's group, such as its topic; each its own by
            default.
        confidence (`float`, *optional*, defaults to 0.95): Coverage of the interval.
        seed (`int`, *optional*, defaults to 0): Of the folds, and of prompts that are drawn.

    Raises:
        [`DataError`]: if there are fewer than four prompts of either class, or fewer than two groups.
        [`ConfigError`]: if a number is out of range.

    Example:
        ```python
        import numpy as np
        from hf_mote.statistics.predictability import predictability

        rng = np.random.default_rng(0)
        of_class = np.arange(40) % 2 == 0
        counts = rng.poisson(5, (40, 16)) + 9 * of_class[:, None] * (np.arange(16) == 3)
        assert predictability(counts, of_class).shown
        ```
    """
    real("predictability.confidence", confidence, above=0, below=1)
    labels = np.asarray(of_class, dtype=bool)
    keys = np.arange(len(labels)) if groups is None else np.asarray(groups)
    given = np.asarray(counts)
    if max(labels.sum(), (~labels).sum()) > _MOST:
        order = np.random.default_rng(seed).permutation(len(labels))
        kept = np.sort(np.concatenate([order[labels[order] == value][:_MOST] for value in (True, False)]))
        labels, keys, given = labels[kept], keys[kept], given[kept]
    values = given.astype(np.float64).reshape(len(labels), -1)
    number = len(np.unique(keys))
    if min(labels.sum(), (~labels).sum()) < 4 or number < 2:
        got = f"{labels.sum()} and {(~labels).sum()} prompts in {number} groups"
        raise DataError("predictability", "too few prompts", got=got, expected="4 of each class, and 2 groups")
    values = values / np.maximum(values.sum(axis=1, keepdims=True), 1e-12)
    fold = _folds(keys, labels, seed)
    scores = np.zeros(len(labels))
    for part in np.unique(fold):
        held = fold == part
        scores[held] = _ridge(values[~held], labels[~held], values[held])
    first, second = np.nonzero(labels[:, None] & ~labels[None, :] & (fold[:, None] == fold[None, :]))
    won = (scores[first] > scores[second]) + 0.5 * (scores[first] == scores[second])
    parts = [float(won[fold[first] == part].mean()) for part in np.unique(fold[first])]
    number = len(parts)
    auroc = float(np.mean(parts))
    # The folds' training sets overlap, for which Nadeau and Bengio's 1 / (folds - 1) is added.
    error = float(np.std(parts, ddof=1)) * math.sqrt(1 / number + 1 / (number - 1)) if number > 1 else math.inf
    reach = float(stats.t.ppf((1 + confidence) / 2, max(1, number - 1))) * error
    same = keys[first] == keys[second]
    within = float(won[same].mean()) if groups is not None and same.any() else None
    low, high = max(0.0, auroc - reach), min(1.0, auroc + reach)
    return Predictability(auroc, low, high, within, len(won), confidence)


def _folds(keys: npt.NDArray[np.int64], labels: npt.NDArray[np.bool_], seed: int) -> npt.NDArray[np.int64]:
    """Return the fold of each prompt: whole groups, with a like number of both classes in each."""
    draw = random.Random(seed)
    groups = [int(key) for key in np.unique(keys)]
    draw.shuffle(groups)
    groups.sort(key=lambda key: float(labels[keys == key].mean()))  # stable: groups of one mix stay in random order
    number = min(_FOLDS, len(groups), int(labels.sum()), int((~labels).sum()))
    place = {key: at % number for at, key in enumerate(groups)}
    return np.array([place[int(key)] for key in keys])


def _ridge(
    seen: npt.NDArray[np.float64], labels: npt.NDArray[np.bool_], held: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return the scores of held-out prompts by ridge regression, in its dual form."""
    middle, spread = seen.mean(axis=0), seen.std(axis=0)
    used = spread > 0
    left, right = ((part[:, used] - middle[used]) / spread[used] for part in (seen, held))
    kernel = left @ left.T
    weight = np.where(labels, 0.5 / labels.sum(), -0.5 / (~labels).sum()) * len(labels)
    kernel[np.diag_indices_from(kernel)] += _RIDGE * max(float(np.trace(kernel)) / len(kernel), 1e-12)
    return np.asarray(right @ left.T @ np.linalg.solve(kernel, weight))
