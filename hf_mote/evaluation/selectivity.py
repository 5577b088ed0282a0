"""Compares the changes on a config's prompts with those elsewhere, and tests whether other answers stay as good.

There are two tests, against the same random controls or a stated margin. *Selective*: the change on the prompts minus
the change on unrelated ones is larger than it is for random experts. *Not worse*: the quality of unrelated answers
falls by less than a margin that was stated before, which is stronger than that no difference was found.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from scipy import stats

from hf_mote.errors import ConfigError, DataError, is_finite, real
from hf_mote.evaluation.verdict import Outcome, decide, one_fewer
from hf_mote.statistics.rates import Rate

__all__ = [
    "MARGIN",
    "QUALITY_MARGIN",
    "NonInferiority",
    "Quality",
    "Selectivity",
    "changed_class",
    "check_quality",
    "judged_quality",
    "margins",
    "not_inferior",
    "stays_the_same",
]

Quality: TypeAlias = Callable[[str, str], float] | Callable[[str, str, str], float]
"""`(prompt, response) -> score`, or pairwise `(prompt, before, after) -> how much better the second is`."""

_ROUNDING = 1e-9
MARGIN, QUALITY_MARGIN = 0.1, 0.5  # where none is stated


@dataclass(frozen=True)
class Selectivity:
    """The changes of a config on the prompts and on unrelated ones.

    Attributes:
        on (`float`): Coherent change of the rate on the prompts, without its sign, 0 to 1.
        off (`Rate`): Share of unrelated responses that change their class or become incoherent.
        controls_on (`list[float]`): The same as `on`, for each control.
        controls_off (`list[float]`): The same as `off`, for each control.
    """

    on: float
    off: Rate
    controls_on: list[float]
    controls_off: list[float]

    def __post_init__(self) -> None:
        lists = [self.controls_on, self.controls_off]
        right = all(isinstance(one, list) for one in lists) and len(self.controls_on) == len(self.controls_off)
        numbers = [self.on, *self.controls_on, *self.controls_off] if right else [math.nan]
        sane = all(isinstance(n, int | float) and not isinstance(n, bool) and 0 <= n <= 1 for n in numbers)
        if not right or not sane:
            raise DataError(
                "Selectivity", "must be shares", got=repr(numbers)[:80], expected="0..1, two for a control"
            )

    @property
    def difference(self) -> float:
        """On-target minus off-target change, -1 to 1."""
        return self.on - self.off.rate

    @property
    def p_value(self) -> float | None:
        """Share of controls, the config counted among them, whose difference is as large; `None` without controls."""
        if not self.controls_on:
            return None
        pairs = zip(self.controls_on, self.controls_off, strict=True)
        reached = sum(on - off >= self.difference - _ROUNDING for on, off in pairs)
        return (1 + reached) / (1 + len(self.controls_on))

    @property
    def outcome(self) -> Outcome:
        """Whether it is more selective than its controls; "beats" if so. The on-target change must be the larger."""
        apart = self.difference > 0 and self.on > self.off.high
        p = self.p_value
        return decide(p, one_fewer(p, len(self.controls_on)), apart=apart, broken=False)

    def __str__(self) -> str:
        said = {"beats": "selective", "undecided": "perhaps selective", "untested": "untested"}
        word = said.get(self.outcome, "not selective")
        p = "" if self.p_value is None else f", p = {self.p_value:.3g} against the controls"
        return f"{word}: {self.on:.1%} on target, {self.off} off target{p}"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Selectivity:
        """Return it from the values in a file.

        Args:
            values (`dict`): Its fields.
        """
        return cls(**{**values, "off": Rate(**values["off"])})


def changed_class(before: Sequence[str], after: Sequence[str], broken: Sequence[bool]) -> list[bool]:
    """Return which responses changed their class or became incoherent.

    Args:
        before (`Sequence[str]`): Labels of the untouched model's responses.
        after (`Sequence[str]`): Labels with a config.
        broken (`Sequence[bool]`): Which of these are incoherent.
    """
    return [old != new or wrong for old, new, wrong in zip(before, after, broken, strict=True)]


@dataclass(frozen=True)
class NonInferiority:
    """A test that something stays as good as before, within a margin.

    Attributes:
        what (`str`): What was measured.
        before (`float`): Its mean in the untouched model.
        after (`float`): Its mean with the config.
        low (`float`): Lower end of the one-sided interval of the change.
        margin (`float`): The largest loss that would not matter, above 0; in the same unit.
        n (`int`): Of how many answers.
        share (`bool`): Whether it is a share of answers that stay as they are, of which all count as such before.
    """

    what: str
    before: float
    after: float
    low: float
    margin: float
    n: int
    share: bool = False

    def __post_init__(self) -> None:
        numbers = (self.before, self.after, self.margin)
        sane = all(is_finite(n) for n in numbers)
        if not sane or self.margin <= 0 or not (self.low == -math.inf or is_finite(self.low)):
            raise DataError(
                "NonInferiority", "must hold rates, a margin above 0 and an interval", got=f"{numbers}, {self.low}"
            )
        typed = isinstance(self.n, int) and isinstance(self.what, str) and isinstance(self.share, bool)
        if not typed or isinstance(self.n, bool) or self.n < 1:
            raise DataError("NonInferiority", "must be a measurement", got=f"{self.what!r} of {self.n}")

    @property
    def shown(self) -> bool:
        """Whether the loss is surely below the margin."""
        return self.low > -self.margin

    @property
    def finding(self) -> str:
        """What was measured and whether that is within the margin, without what it was measured of."""
        if self.share:
            measured = f"{_percent(self.after)} of {self.n}, at least {_percent(max(0.0, 1 + self.low))} of all such"
            within = f"fewer than {_percent(self.margin)} change"
        else:
            change = f"a change of {self.low:.3g} or better"
            measured = f"{self.before:.3g} before, {self.after:.3g} with the config, {change} (n = {self.n})"
            within = f"it is not worse by the margin of {self.margin:g}"
        return f"{measured}; so {within}" if self.shown else f"{measured}; it is not shown that {within}"

    def __str__(self) -> str:
        return f"{self.what}: {self.finding}"


def not_inferior(
    what: str, before: Sequence[float], after: Sequence[float], margin: float, *, confidence: float = 0.95
) -> NonInferiority:
    """Return the test of paired scores that the mean loss is below a margin.

    The interval of the mean change is Student's, one-sided. Where all changes are equal, and so show no spread, as
    many answers as could have been missed (5 % of 59, say) are taken to be worse by ten margins.

    Args:
        what (`str`): What is scored.
        before (`Sequence[float]`): Scores of the untouched model's answers, two or more.
        after (`Sequence[float]`): Scores with the config, of the same prompts.
        margin (`float`): The largest loss that would not matter, above 0.
        confidence (`float`, *optional*, defaults to 0.95): Of the lower end.

    Raises:
        [`DataError`]: if the numbers differ, there are fewer than two, or one is not finite.
        [`ConfigError`]: if the margin is not above 0.

    Example:
        ```python
        from hf_mote.evaluation.selectivity import not_inferior

        found = not_inferior("quality", [8.0, 7.0, 9.0, 8.0] * 10, [8.0, 7.0, 8.5, 8.0] * 10, margin=0.5)
        assert found.shown
        ```
    """
    real("not_inferior.margin", margin, above=0)
    real("not_inferior.confidence", confidence, above=0, below=1)
    a, b = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2 or not np.isfinite([a, b]).all():
        got = f"{a.shape} and {b.shape}"
        raise DataError("not_inferior", "needs finite scores of the same two or more answers", got=got)
    change = b - a
    if change.std() > 0:
        error = float(change.std(ddof=1)) / math.sqrt(len(change))
        low = float(change.mean()) - float(stats.t.ppf(confidence, len(change) - 1)) * error
    else:
        missed = 1 - (1 - confidence) ** (1 / len(change))
        low = float(change.mean()) - missed * 10 * margin
    return NonInferiority(what, float(a.mean()), float(b.mean()), low, float(margin), len(a))


def stays_the_same(what: str, same: Rate, margin: float) -> NonInferiority:
    """Return the test of a share of answers that stay as they are, that the share of others is surely below a margin.

    Args:
        what (`str`): Which answers.
        same (`Rate`): The share, with its interval.
        margin (`float`): The largest share of others that would not matter, above 0.
    """
    real("stays_the_same.margin", margin, above=0)
    return NonInferiority(what, 1.0, same.rate, same.low - 1.0, float(margin), same.n, share=True)


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"


def judged_quality(
    quality: Quality, prompts: Sequence[str], before: Sequence[str], after: Sequence[str]
) -> tuple[list[float], list[float]]:
    """Return scores of answers before and after by a judge of their quality.

    Args:
        quality (`Callable`): `(prompt, response) -> score`, higher is better, as a grade from 1 to 10; or
            `(prompt, before, after) -> difference`, as 1 if the second is better, -1 if the first is, 0 for a tie.
            Give a pairwise one both orders in turn if it prefers a place.
        prompts (`Sequence[str]`): The prompts.
        before (`Sequence[str]`): The untouched model's answers.
        after (`Sequence[str]`): Those with the config.

    Raises:
        [`ConfigError`]: if it takes neither two nor three arguments.
        [`DataError`]: if a score is not a finite number.
    """
    taken = check_quality(quality)
    judge: Any = quality
    if taken == 3:
        rows = zip(prompts, before, after, strict=True)
        return [0.0] * len(prompts), [_score(judge(*row), row[0]) for row in rows]
    olds = [_score(judge(prompt, answer), prompt) for prompt, answer in zip(prompts, before, strict=True)]
    return olds, [_score(judge(prompt, answer), prompt) for prompt, answer in zip(prompts, after, strict=True)]


def margins(
    where: str, margin: object, quality_margin: object, quality: object, *, unrelated: bool
) -> tuple[float, float]:
    """Return both margins, with defaults for those that were not given.

    Args:
        where (`str`): What an error names.
        margin (`float`, *optional*): Largest share of unrelated answers whose change would not matter, above 0.
        quality_margin (`float`, *optional*): Largest loss of quality that would not matter, above 0.
        quality (`Callable`, *optional*): The judge of quality.
        unrelated (`bool`): Whether there are unrelated prompts.

    Raises:
        [`ConfigError`]: if one is out of range, or stated where nothing is held against it.
    """
    fix = "Give unrelated prompts, to whose answers it applies, or leave it out."
    for name, value in (("margin", margin), ("quality", quality), ("quality_margin", quality_margin)):
        if value is not None and not unrelated:
            raise ConfigError(f"{where}.{name}", "needs unrelated prompts", fix=fix)
    if quality_margin is not None and quality is None:
        what = "needs quality, a judge of quality"
        raise ConfigError(f"{where}.quality_margin", what, fix="Give quality=..., or leave it out.")
    if quality is not None:
        check_quality(quality)
    return (
        real(f"{where}.margin", MARGIN if margin is None else margin, above=0),
        real(f"{where}.quality_margin", QUALITY_MARGIN if quality_margin is None else quality_margin, above=0),
    )


def check_quality(quality: object) -> int:
    """Return how many arguments a judge of quality takes, two or three; raise [`ConfigError`] if it takes others.

    Args:
        quality (`Callable`): What was given.
    """
    if callable(quality):
        signature = inspect.signature(quality)
        for number in (2, 3):
            try:
                signature.bind(*[""] * number)
                return number
            except TypeError:
                continue
    raise ConfigError(
        "evaluate_mote.quality",
        "must be a judge of quality",
        got=repr(quality)[:60],
        expected="(prompt, response) -> score, or (prompt, before, after) -> difference",
    )


def _score(value: object, prompt: str) -> float:
    number: Any = value.item() if isinstance(value, np.number) else value
    if not is_finite(number):
        raise DataError("evaluate_mote.quality", f"gave no score for {prompt[:40]!r}", got=repr(value)[:40])
    return float(number)
