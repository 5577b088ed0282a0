"""The page of `hf-mote sweep`: how much the first experts of a ranking do, by their number and the strength."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from hf_mote.evaluation.report import EvaluationReport
from hf_mote.evaluation.sweep import Setting, Sweep
from hf_mote.reports.charts import Point, dose_chart
from hf_mote.reports.formats import percent, probability, quoted
from hf_mote.reports.markup import Child, Html, join, tag
from hf_mote.reports.page import Section, make_page, provenance_section
from hf_mote.reports.responses import Answer, side_by_side
from hf_mote.reports.tables import table

__all__ = ["sweep_page"]

_DONE = {"suppress": "suppressed", "stimulate": "stimulated"}


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
