"""`EvaluationReport`: what `evaluate_mote` measured, as plain numbers that can be saved and read again."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

from hf_mote.errors import DataError, FileFormatError
from hf_mote.ftri.contrast import wilson
from hf_mote.ftri.side_effects import SideEffects
from hf_mote.hub import Shareable, card_header, read_json, write_json

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["EvaluationReport", "Rate"]

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Rate:
    """A share with its Wilson interval.

    Attributes:
        successes (`int`): How many.
        n (`int`): Of how many.
        rate (`float`): Their quotient, 0 to 1.
        low (`float`): Lower end of the interval.
        high (`float`): Upper end.
    """

    successes: int
    n: int
    rate: float
    low: float
    high: float

    def __post_init__(self) -> None:
        counts = isinstance(self.n, int) and isinstance(self.successes, int) and 0 <= self.successes <= self.n
        if not counts or self.n == 0 or self.rate != self.successes / self.n or not 0 <= self.low <= self.high <= 1:
            got = f"{self.successes} of {self.n}, rate {self.rate}, interval {self.low} to {self.high}"
            raise DataError("Rate", "is no share with its interval", got=got)

    @classmethod
    def of(cls, successes: int, n: int, confidence: float = 0.95) -> Rate:
        """Return the rate of `successes` in `n`.

        Args:
            successes (`int`): How many.
            n (`int`): Of how many, 1 or more.
            confidence (`float`, *optional*, defaults to 0.95): Coverage of the interval.
        """
        low, high = wilson(successes, n, confidence)
        return cls(successes, n, successes / n, low, high)

    def __str__(self) -> str:
        return f"{self.rate:.1%} [{self.low:.1%}, {self.high:.1%}]"


@dataclass(frozen=True)
class EvaluationReport(Shareable):
    """What a config does, measured.

    Attributes:
        target (`str`): The label whose rate is reported.
        before (`Rate`): Its rate in the untouched model.
        after (`Rate`): Its rate with the config.
        controls (`list[float]`): Its rate under each random control.
        unrelated_unchanged (`Rate`, *optional*): Share of unrelated answers that stay word for word the same.
        dose (`list[tuple[float, float]]`): (strength, rate) pairs.
        config (`dict`): The config.
        prompts (`list[str]`): The prompts.
        responses_before (`list[str]`): The untouched model's responses.
        responses_after (`list[str]`): Those with the config.
        seed (`int`): Seed of the controls.
        control_kind (`str`): What the controls are matched by beside their number: `"layer"`, or `"usage"` too.
        unrelated (`list[str]`): The unrelated prompts.
        unrelated_before (`list[str]`): The untouched model's responses to them.
        unrelated_after (`list[str]`): Those with the config.
        side_effects (`SideEffects`, *optional*): Divergence and perplexity on plain texts.
    """

    target: str
    before: Rate
    after: Rate
    controls: list[float]
    unrelated_unchanged: Rate | None
    config: dict[str, Any]
    dose: list[tuple[float, float]] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    responses_before: list[str] = field(default_factory=list)
    responses_after: list[str] = field(default_factory=list)
    seed: int = 0
    control_kind: str = "layer"
    unrelated: list[str] = field(default_factory=list)
    unrelated_before: list[str] = field(default_factory=list)
    unrelated_after: list[str] = field(default_factory=list)
    side_effects: SideEffects | None = None

    file_name: ClassVar[str] = "evaluation_report.json"

    @property
    def effect(self) -> float:
        """Change of the rate, -1 to 1."""
        return self.after.rate - self.before.rate

    @property
    def p_value(self) -> float | None:
        """Share of controls, itself counted among them, that change the rate at least as much; `None` without any."""
        if not self.controls:
            return None
        as_far = sum(abs(rate - self.before.rate) >= abs(self.effect) for rate in self.controls)
        return (1 + as_far) / (1 + len(self.controls))

    @property
    def verdict(self) -> str:
        """One sentence: whether the config beats its controls, with the numbers.

        It does if the intervals before and after do not overlap and p is at most 0.05, which takes 19 controls or
        more, of which none comes as far.
        """
        change = f"{self.target} goes from {self.before} to {self.after}"
        if self.p_value is None:
            return f"{change}; without random controls that says nothing about these experts."
        mean = fmean(self.controls)
        against = f"under {len(self.controls)} random controls it is {mean:.1%} on average (p = {self.p_value:.3g})"
        apart = self.after.high < self.before.low or self.after.low > self.before.high
        beats = apart and self.p_value <= SIGNIFICANT
        return f"The config {'beats' if beats else 'does not beat'} its controls: {change}, while {against}."

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, the effect, the p value and the verdict, JSON-native."""
        derived = {"effect": self.effect, "p_value": self.p_value, "verdict": self.verdict}
        return {**dataclasses.asdict(self), **derived}

    def _to_file(self, path: Path) -> None:
        write_json(path, self.to_dict())

    @classmethod
    def _from_file(cls, path: Path) -> Self:
        data = read_json(path)
        try:
            names = {f.name for f in dataclasses.fields(cls)}
            unknown = sorted(set(data) - names - {"effect", "p_value", "verdict"})
            if unknown:
                raise DataError("EvaluationReport", "unknown field", got=", ".join(unknown))
            values = {name: data[name] for name in names}
            for name in ("before", "after", "unrelated_unchanged"):
                values[name] = None if values[name] is None else Rate(**values[name])
            if values["side_effects"] is not None:
                values["side_effects"] = SideEffects(**values["side_effects"])
            values["dose"] = [(float(strength), float(rate)) for strength, rate in values["dose"]]
            asked = {len(values[name]) for name in ("prompts", "responses_before", "responses_after")}
            others = {len(values[name]) for name in ("unrelated", "unrelated_before", "unrelated_after")}
            if max(len(asked), len(others)) > 1 or not all(0 <= rate <= 1 for rate in values["controls"]):
                raise DataError("EvaluationReport", "prompts and responses differ in number, or a rate is not 0..1")
            return cls(**values)
        except (KeyError, TypeError, ValueError, DataError) as error:
            raise FileFormatError(str(path), "holds no evaluation report", got=str(error)) from error

    def _card(self) -> str:
        return f"{card_header(tags=['evaluation'])}\n# Evaluation\n\n{self.verdict}\n"
