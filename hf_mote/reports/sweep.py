"""The page of `hf-mote sweep`: the effect of the first experts of a ranking, by their number and the strength."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from hf_mote.evaluation.report import EvaluationReport
from hf_mote.evaluation.sweep import Setting, Sweep
from hf_mote.reports.charts import Point, dose_chart
from hf_mote.reports.configs import config_part
from hf_mote.reports.formats import percent, probability, quoted
from hf_mote.reports.markup import Child, Html, chip, join, tag
from hf_mote.reports.page import Section, make_page, provenance_section
from hf_mote.reports.responses import answers_of, side_by_side
from hf_mote.reports.tables import table

__all__ = ["curves_of", "sweep_page"]

_DONE = {"suppress": "suppressed", "stimulate": "stimulated"}


def sweep_page(found: Sweep, *, provenance: Mapping[str, str], files: Mapping[str, str]) -> Html:
    """Return the page.

    Args:
        found (`Sweep`): What the sweep found.
        provenance (`Mapping[str, str]`): How it came about, by name.
        files (`Mapping[str, str]`): What lies beside the page, by path.
    """
    target = found.settings[0].report.target
    most = found.most
    report = most.report
    chosen = found.smallest or most
    why = "the smallest that beats its controls"
    if found.smallest is None:
        why = "which breaks the text" if report.breaks_text else "which changes most and leaves the text whole"
    answers = side_by_side(report.prompts, *answers_of(report), target=target)
    asked = f"{found.model}: {len(report.prompts)} prompts"
    sections = [
        Section("curves", "Dose and response", _curves(found)),
        Section("settings", "All settings", _settings(found)),
        Section("responses", "Responses before and after", join([tag("p", f"With {most}."), answers])),
        Section("config", "Config", config_part(chosen.report.config, note=f"That of {chosen}, {why}.")),
        provenance_section(provenance, files),
    ]
    return make_page(
        f"Sweep: {target}",
        subject=f"{asked}; ranking: {found.source}; experts {_DONE[found.action]}",
        verdict=found.verdict,
        found=bool(found.beating),
        sections=sections,
    )


def curves_of(found: Sweep) -> tuple[str, dict[str, list[tuple[str, Setting]]]]:
    """Return the name of the dose, and the settings of each curve with their doses, by the curve's heading.

    There is one curve for each strength, along the number of experts; or one along the strength, if there is only
    one number.

    Args:
        found (`Sweep`): What the sweep found.
    """
    numbers = {setting.num_experts for setting in found.settings}
    strengths = sorted({setting.strength for setting in found.settings})
    done = _DONE[found.action]
    if len(numbers) == 1 and len(strengths) > 1:
        ordered = sorted(found.settings, key=lambda setting: setting.strength)
        title = f"The first {ordered[0].num_experts} experts {done}"
        return "strength", {title: [(f"{setting.strength:g}", setting) for setting in ordered]}
    curves = {}
    for strength in strengths:
        chosen = sorted((s for s in found.settings if s.strength == strength), key=lambda s: s.num_experts)
        curves[f"Strength {strength:g}"] = [(str(setting.num_experts), setting) for setting in chosen]
    return f"number of experts {done}", curves


def _curves(found: Sweep) -> Html:
    dose_name, curves = curves_of(found)
    first = found.settings[0].report
    points = {
        title: [_point(label, setting.report) for label, setting in settings] for title, settings in curves.items()
    }
    charts = [
        dose_chart(
            each,
            title=title,
            rate_name=f"↑ responses of class {quoted(first.target)}",
            dose_name=f"{dose_name} →",
            before=first.before.rate,
            beside=[point for others in points.values() for point in others],
        )
        for title, each in points.items()
    ]
    drawn = tag("div", *charts, class_="figures") if len(charts) > 1 else charts[0]
    if not found.breaking:
        return drawn
    broken = "; ".join(f"{setting}, {percent(setting.incoherent)} incoherent" for setting in found.breaking)
    return join([drawn, tag("p", f"The text breaks, which is not an effect on the behaviour, with {broken}.")])


def _point(label: str, report: EvaluationReport) -> Point:
    after = report.after
    return Point(label, after.rate, after.low, after.high, report.controls, after.n)


def _settings(found: Sweep) -> Html:
    rows: list[list[Child]] = []
    for setting, p, outcome in zip(found.settings, found.adjusted_p, found.outcomes, strict=True):
        after, controls, n = setting.report.after, setting.report.controls, setting.report.after.n
        rows.append(
            [
                str(setting.num_experts),
                f"{setting.strength:g}",
                percent(after.rate, n),
                f"{percent(after.low, n)} to {percent(after.high, n)}",
                percent(setting.incoherent, n),
                percent(fmean(controls), n) if controls else "–",
                f"{percent(min(controls), n)} to {percent(max(controls), n)}" if controls else "–",
                probability(setting.report.p_value),
                probability(p),
                outcome,
            ]
        )
    headings = ["experts", "strength", "rate", "interval", "incoherent", "controls, mean", "controls, range"]
    headings += ["p", "adjusted p", "outcome"]
    first = found.settings[0].report
    before = percent(first.before.rate, first.before.n)
    caption = join(["Rate of ", chip(first.target, first.target), f" in the untouched model: {before}"])
    note = "p is of the change that is left when every incoherent response counts against it, as are controls'."
    return join([table(caption, headings, rows, numeric=range(9), sortable=True), tag("p", note)])
