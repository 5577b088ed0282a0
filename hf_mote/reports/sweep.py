"""The page of `hf-mote sweep`: how much the first experts of a ranking do, by their number and the strength."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from hf_mote.evaluation.report import EvaluationReport, reaches, too_few
from hf_mote.reports.charts import Point, dose_chart
from hf_mote.reports.formats import percent, probability, quoted
from hf_mote.reports.markup import Child, Html, join, tag
from hf_mote.reports.page import Section, make_page, provenance_section
from hf_mote.reports.responses import Answer, side_by_side
from hf_mote.reports.tables import table

__all__ = ["Setting", "Sweep", "sweep_page"]

_DONE = {"suppress": "suppressed", "stimulate": "stimulated"}


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
            p = probability(min(p for p in self.adjusted_p if p is not None))
            least_p = "; ".join(filter(None, [f"least adjusted p = {p}", too_few(controls)]))
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
        p = probability(self.adjusted_p[self.settings.index(least)])
        after, mean = least.report.after, fmean(least.report.controls)
        text = (
            f"{len(self.beating)} of {number} settings beat their {controls} random controls. The smallest is {least}:"
            f" {target} goes from {least.report.before} to {after}, under its controls to {percent(mean)} on average "
            f"(p = {p}, adjusted for the {number} settings)."
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


def sweep_page(found: Sweep, *, provenance: Mapping[str, str], files: Mapping[str, str]) -> Html:
    """Return the page.

    Args:
        found (`Sweep`): What the sweep found.
        provenance (`Mapping[str, str]`): How it came about, by name.
        files (`Mapping[str, str]`): What lies beside the page, by path.
    """
    target = found.settings[0].report.target
    most = max(found.settings, key=lambda setting: abs(setting.report.effect))
    report = most.report
    answers = side_by_side(report.prompts, *([Answer(text) for text in texts] for texts in _responses(report)))
    asked = f"{found.model}: {len(report.prompts)} prompts"
    sections = [
        Section("curves", "Dose and response", _curves(found)),
        Section("settings", "All settings", _settings(found)),
        Section("responses", "Responses before and after", join([tag("p", f"With {most}."), answers])),
        provenance_section(provenance, files),
    ]
    return make_page(
        f"Sweep: {target}",
        subject=f"{asked}; ranking: {found.source}; experts {_DONE[found.action]}",
        verdict=found.verdict,
        found=bool(found.beating),
        sections=sections,
    )


def _responses(report: EvaluationReport) -> tuple[list[str], list[str]]:
    return report.responses_before, report.responses_after


def _curves(found: Sweep) -> Html:
    """Return one chart for each strength, along the number; or along the strength where there is but one number."""
    numbers = {setting.num_experts for setting in found.settings}
    strengths = sorted({setting.strength for setting in found.settings})
    before = found.settings[0].report.before.rate
    target = found.settings[0].report.target
    done = _DONE[found.action]

    def chart(settings: Sequence[Setting], title: str, dose_name: str, labels: Sequence[str]) -> Html:
        points = [
            Point(label, s.report.after.rate, s.report.after.low, s.report.after.high, s.report.controls)
            for s, label in zip(settings, labels, strict=True)
        ]
        return dose_chart(points, title=title, rate_name=f"rate of {target}", dose_name=dose_name, before=before)

    if len(numbers) == 1 and len(strengths) > 1:
        ordered = sorted(found.settings, key=lambda setting: setting.strength)
        title = f"The first {ordered[0].num_experts} experts {done}"
        return chart(ordered, title, "strength", [f"{setting.strength:g}" for setting in ordered])
    charts = []
    for strength in strengths:
        chosen = sorted((s for s in found.settings if s.strength == strength), key=lambda s: s.num_experts)
        title = f"Strength {strength:g}"
        charts.append(chart(chosen, title, f"number of experts {done}", [str(s.num_experts) for s in chosen]))
    return tag("div", *charts, class_="figures") if len(charts) > 1 else charts[0]


def _settings(found: Sweep) -> Html:
    rows: list[list[Child]] = []
    for setting, p in zip(found.settings, found.adjusted_p, strict=True):
        after, controls = setting.report.after, setting.report.controls
        rows.append(
            [
                str(setting.num_experts),
                f"{setting.strength:g}",
                percent(after.rate),
                f"{percent(after.low)} to {percent(after.high)}",
                percent(fmean(controls)) if controls else "–",
                f"{percent(min(controls))} to {percent(max(controls))}" if controls else "–",
                probability(setting.report.p_value),
                probability(p),
                "yes" if setting in found.beating else "no",
            ]
        )
    headings = ["experts", "strength", "rate", "interval", "controls, mean", "controls, range", "p", "adjusted p"]
    first = found.settings[0].report
    caption = f"Rate of {quoted(first.target)}; in the untouched model {first.before}"
    return table(caption, [*headings, "beats them"], rows, numeric=range(8))
