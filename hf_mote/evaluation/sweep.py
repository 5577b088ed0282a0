"""A sweep: a report for each setting of one ranking, with p adjusted for having tried them all."""

from __future__ import annotations

from statistics import fmean
from typing import Any, NamedTuple

from hf_mote.evaluation.report import EvaluationReport, reaches, too_few

__all__ = ["Setting", "Sweep"]


class Setting(NamedTuple):
    """One setting of a sweep and what it did.

    Attributes:
        num_experts (`int`): How many of the first experts were suppressed or stimulated.
        strength (`float`): At which strength.
        report (`EvaluationReport`): What that did.
    """

    num_experts: int
    strength: float
    report: EvaluationReport

    def __str__(self) -> str:
        which = "the first expert" if self.num_experts == 1 else f"the first {self.num_experts} experts"
        return f"{which} at strength {self.strength:g}"


class Sweep(NamedTuple):
    """A sweep over settings of one ranking, each with as many random controls.

    Attributes:
        model (`str`): The model's name.
        source (`str`): Where the ranking comes from: its method and target.
        action (`str`): "suppress" or "stimulate".
        settings (`list[Setting]`): One or more.
    """

    model: str
    source: str
    action: str
    settings: list[Setting]

    @property
    def adjusted_p(self) -> list[float | None]:
        """The p value of each setting, adjusted for having tried them all; `None` without controls.

        A setting is compared with the largest change that each control makes over all settings. Control `b` of every
        setting comes from one exchange of experts, so that its settings hold each other as the ranking's do; see
        [`evaluate_settings`].

        What is guaranteed: if the ranking is random, so that any matched experts could have stood at its places, the
        chance that any setting gets 0.05 or less is at most 0.05. What is not: if the first experts do something, a
        larger setting that holds them does it too, and says nothing about each of its other experts.

        Source: Westfall and Young (1993), "Resampling-Based Multiple Testing", single-step max-T; what differs here:
        random experts in the place of permuted labels.
        """
        changes = [[abs(rate - s.report.before.rate) for rate in s.report.controls] for s in self.settings]
        if not changes[0]:
            return [None] * len(self.settings)
        largest = [max(column) for column in zip(*changes, strict=True)]
        reach = [sum(reaches(most, s.report.effect) for most in largest) for s in self.settings]
        return [(1 + count) / (1 + len(largest)) for count in reach]

    @property
    def beating(self) -> list[Setting]:
        """The settings that beat their controls: intervals before and after apart, adjusted p at most 0.05."""
        pairs = zip(self.settings, self.adjusted_p, strict=True)
        return [setting for setting, p in pairs if setting.report.beats_controls(p)]

    @property
    def verdict(self) -> str:
        """One sentence or two: the smallest setting that beats its controls, or that none does."""
        target, number = self.settings[0].report.target, len(self.settings)
        controls = len(self.settings[0].report.controls)
        most = max(self.settings, key=lambda setting: abs(setting.report.effect))
        change = f"{target} goes from {most.report.before} to {most.report.after}"
        missed = self.settings[0].report.unclear
        unclear = f" {missed} responses of all runs could not be judged." if missed else ""
        if not controls:
            return (
                f"Most is changed by {most}: {change}; without random controls that says nothing about these "
                f"experts.{unclear}"
            )
        if not self.beating:
            lowest = min(p for p in self.adjusted_p if p is not None)
            least_p = "; ".join(filter(None, [f"least adjusted p = {lowest:.3g}", too_few(controls)]))
            sharing = max(setting.report.sharing for setting in self.settings)
            held = (
                f" {sharing} controls hold some of the ranking's own experts; more controls tell more."
                if sharing
                else ""
            )
            return (
                f"No setting of {number} beats its {controls} random controls. Most is changed by {most}: {change} "
                f"({least_p}).{held}{unclear}"
            )
        least = min(self.beating, key=lambda setting: (setting.num_experts, setting.strength))
        p = self.adjusted_p[self.settings.index(least)]
        after, mean = least.report.after, fmean(least.report.controls)
        text = (
            f"{len(self.beating)} of {number} settings beat their {controls} random controls. The smallest is {least}:"
            f" {target} goes from {least.report.before} to {after}, under its controls to {mean:.1%} on average "
            f"(p = {p:.3g}, adjusted for the {number} settings)."
        )
        more = "" if most is least else f" Most is changed by {most}: to {most.report.after}."
        return f"{text}{more}{unclear}"

    def to_dict(self) -> dict[str, Any]:
        """Return the figures, JSON-native."""
        rows = [
            {
                "num_experts": s.num_experts,
                "strength": s.strength,
                "before": s.report.before.rate,
                "after": s.report.after.rate,
                "interval": [s.report.after.low, s.report.after.high],
                "controls": list(s.report.controls),
                "p_value": s.report.p_value,
                "adjusted_p": p,
                "beats_controls": s in self.beating,
            }
            for s, p in zip(self.settings, self.adjusted_p, strict=True)
        ]
        return {"source": self.source, "action": self.action, "verdict": self.verdict, "settings": rows}
