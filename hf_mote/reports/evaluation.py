"""The page of `hf-mote evaluate`: what a config does, against random controls, and what else it changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from hf_mote.evaluation.both_ways import BothWays
from hf_mote.evaluation.report import EvaluationReport
from hf_mote.evaluation.side_effects import perplexity_text
from hf_mote.reports.charts import Point, dose_chart, effect_chart
from hf_mote.reports.configs import config_part
from hf_mote.reports.formats import number, percent, probability, quoted, signed
from hf_mote.reports.markup import Child, Html, join, tag
from hf_mote.reports.page import Section, make_page, provenance_section
from hf_mote.reports.responses import Answer, answers_of, conversations_side_by_side, side_by_side
from hf_mote.reports.tables import table
from hf_mote.statistics.rates import Rate

__all__ = ["Evaluation", "effect_part", "evaluation_page", "points_of", "side_effects_part"]


class Evaluation(NamedTuple):
    """The result of an evaluation.

    Attributes:
        model (`str`): The model's name.
        report (`EvaluationReport`): The report.
        against (`EvaluationReport`, *optional*): What another config did on the same prompts.
        both (`BothWays`, *optional*): The same experts, suppressed and stimulated.
    """

    model: str
    report: EvaluationReport
    against: EvaluationReport | None = None
    both: BothWays | None = None


def evaluation_page(found: Evaluation, *, provenance: Mapping[str, str], files: Mapping[str, str]) -> Html:
    """Return the page.

    Args:
        found (`Evaluation`): What the evaluation found.
        provenance (`Mapping[str, str]`): How it came about, by name.
        files (`Mapping[str, str]`): What lies beside the page, by path.
    """
    report = found.report
    sections = [Section("effect", "Effect and controls", effect_part(report))]
    if found.against is not None:
        sections.append(Section("against", "Against another config", _against(report, found.against)))
    if found.both is not None:
        sections.append(Section("both", "Suppressed, random, stimulated", _both(found.both)))
    if report.dose:
        sections.append(Section("dose", "Dose and response", _dose(report)))
    sections.append(Section("sides", "Side effects", side_effects_part(report)))
    answers = side_by_side(report.prompts, *answers_of(report), target=report.target)
    sections.append(Section("responses", "Responses before and after", answers))
    if report.unrelated:
        kept = [[Answer(text) for text in texts] for texts in (report.unrelated_before, report.unrelated_after)]
        body = side_by_side(report.unrelated, kept[0], kept[1])
        sections.append(Section("unrelated", "Unrelated prompts before and after", body))
    if report.conversations:
        body = conversations_side_by_side(report.conversations)
        sections.append(Section("conversations", "Conversations before and after", body))
    sections += [Section("config", "Config", config_part(report.config)), provenance_section(provenance, files)]
    return make_page(
        f"Evaluation: {report.target}",
        subject=f"{found.model}: {len(report.prompts)} prompts",
        verdict=report.verdict,
        found=report.beats_controls(),
        sections=sections,
    )


_MATCHED = {
    ("experts", "layer"): "matched by layer",
    ("experts", "usage"): "matched by layer and by how often the model uses them",
    ("latents", "layer"): "any of the SAE",
    ("latents", "usage"): "active on about as many tokens",
}


def points_of(report: EvaluationReport) -> list[Point]:
    """Return the rows of the effect chart: before, and after with the controls."""
    before, after = report.before, report.after
    return [
        Point("untouched", before.rate, before.low, before.high, n=before.n),
        Point("with the config", after.rate, after.low, after.high, report.controls, after.n),
    ]


def effect_part(report: EvaluationReport) -> Html:
    """Return the rates before and after with the controls, drawn and in a table, and what is known of them."""
    title, asked = f"Rate of {quoted(report.target)}", report.before.n
    chart = effect_chart(points_of(report), title=title, rate_name=f"responses of class {quoted(report.target)}")
    rows = [_rate_row("untouched", report.before), _rate_row("with the config", report.after)]
    if report.controls:
        mean, low, high = fmean(report.controls), min(report.controls), max(report.controls)
        name = f"{len(report.controls)} random controls"
        rows.append([name, "mean", percent(mean, asked), f"{percent(low, asked)} to {percent(high, asked)}"])
    made = table("Measured", ["model", "responses", "rate", "interval, or range"], rows, numeric=(1, 2, 3))
    change = f"Change {signed(100 * report.effect, 0 if asked < 200 else 1)} percentage points"
    p = "" if report.p_value is None else f", p = {probability(report.p_value)} against the controls"
    held = f" {report.sharing} of them hold some of its own {report.units}." if report.sharing else ""
    matched = _MATCHED[report.units, report.control_kind]
    note = f"{change}{p}. Controls do the same to as many random {report.units}, {matched}.{held}"
    if report.flips is not None and report.control_flips:
        lost, gained = (fmean(getattr(one, name) for one in report.control_flips) for name in ("lost", "gained"))
        note += (
            f" {report.flips.lost} responses leave {quoted(report.target)} and {report.flips.gained} come to it, "
            f"under the controls {lost:.1f} and {gained:.1f} on average."
        )
    if report.coherence is not None:
        seen = report.coherence
        note += (
            f" Incoherent: {seen.share_before} of the untouched model's responses and {seen.share_after} of "
            f"those with the config, by more than {number(seen.limit_surprise)} nats per token in the model that "
            f"wrote it, more than {percent(seen.limit_repeated)} of repeated token pairs, an empty text, or the "
            "judge's word. They count against the config."
        )
    if report.unclear:
        note += (
            f" {report.unclear} responses of all runs could not be judged, and count as not {quoted(report.target)}."
        )
    return join([chart, made, tag("p", note)])


def _against(report: EvaluationReport, other: EvaluationReport) -> Html:
    """Return two configs side by side: what they do, and what else they change."""
    pairs = [(f"with {one.units} changed", one) for one in (report, other)]
    if report.units == other.units:
        pairs = [("with the config", report), ("with the other config", other)]
    untouched = points_of(report)[0]
    points = [untouched, *(points_of(one)[1]._replace(label=name) for name, one in pairs)]
    title = f"Rate of {quoted(report.target)}"
    chart = effect_chart(points, title=title, rate_name=f"responses of class {quoted(report.target)}")
    headings = ["model", "rate", "interval", "controls, mean", "p", "unrelated unchanged", "KL per token, nats"]
    rows: list[Sequence[Child]] = [
        ["untouched", percent(report.before.rate, report.before.n), _interval(report.before), "–", "–", "–", "–"]
    ]
    for name, one in pairs:
        kept, seen = one.unrelated_unchanged, one.side_effects
        rows.append(
            [
                name,
                percent(one.after.rate, one.after.n),
                _interval(one.after),
                percent(fmean(one.controls), one.after.n) if one.controls else "–",
                "–" if one.p_value is None else probability(one.p_value),
                "–" if kept is None else percent(kept.rate, kept.n),
                "–" if seen is None or seen.kl is None else number(seen.kl),
            ]
        )
    made = table("Both on the same prompts", headings, rows, numeric=range(1, 7))
    return join(
        [chart, made, tag("p", f"The other config: {other.verdict}"), config_part(other.config, part="against")]
    )


def _both(both: BothWays) -> Html:
    """Return the same experts suppressed where the behaviour shows, and stimulated where it does not."""
    target, pair = quoted(both.suppressed.target), (both.suppressed, both.stimulated)
    points = [
        point._replace(label=f"{point.label}, {what}")
        for what, report in zip(("suppressing", "stimulating"), pair, strict=True)
        for point in points_of(report)
    ]
    chart = effect_chart(points, title=f"Rate of {target} both ways", rate_name=f"responses of class {target}")
    made = table("Both ways", both.columns, both.rows)
    sizes = " and ".join(f"{report.before.n}" for report in pair)
    note = (
        f"Experts that carry {target} take it away where it shows when they are suppressed, and bring it about where "
        f"it does not when they are stimulated, both more than random experts do. {sizes} prompts."
    )
    return join([chart, made, tag("p", note), tag("p", f"Stimulated: {both.stimulated.verdict}")])


def _dose(report: EvaluationReport) -> Html:
    own, before, after = float(report.config["strength"]), report.before, report.after
    points = {strength: Point(f"{strength:g}", rate, n=after.n) for strength, rate in report.dose}
    points[0.0] = Point("0", before.rate, before.low, before.high, n=before.n)
    points[own] = Point(f"{own:g}", after.rate, after.low, after.high, report.controls, after.n)
    ordered = [points[strength] for strength in sorted(points)]
    chart = dose_chart(
        ordered,
        title=f"Rate of {quoted(report.target)} by strength",
        rate_name=f"↑ responses of class {quoted(report.target)}",
        dose_name="strength →",
        before=report.before.rate,
    )
    rows: list[Sequence[Child]] = [
        [point.label, percent(point.rate, after.n), percent(fmean(point.controls), after.n) if point.controls else "–"]
        for point in ordered
    ]
    made = table("By strength", ["strength", "rate", "random controls, mean"], rows, numeric=(0, 1, 2), sortable=True)
    return join([chart, made])


def side_effects_part(report: EvaluationReport) -> Html:
    """Return the table of what else changes."""
    rows: list[Sequence[Child]] = []
    if report.unrelated_unchanged is not None:
        kept = report.unrelated_unchanged
        rows.append(["unrelated answers that stay word for word", _kept(kept)])
    rows += [[f"{test.what}, held against a margin", test.finding] for test in report.not_worse]
    if report.selectivity is not None:
        rows.append(["on-target change beside off-target change", str(report.selectivity)])
    if report.turns_unchanged is not None:
        kept = report.turns_unchanged
        rows.append(["answers in conversations that stay word for word", _kept(kept)])
    if report.side_effects is not None:
        seen = report.side_effects
        rows += [
            *([] if seen.kl is None else [["KL of the predictions per token", f"{number(seen.kl)} nats"]]),
            ["perplexity", f"{perplexity_text(seen.perplexity_before)} to {perplexity_text(seen.perplexity_after)}"],
            ["tokens of text", f"{seen.num_tokens:,}"],
            ["scope of the config on these texts", _scope(seen.scope, str(report.config.get("scope", "all")))],
            *_positions(report.config.get("positions")),
        ]
    rows += [["not measured", note] for note in report.notes]
    if not rows:
        return tag("p", "Not measured: give --unrelated prompts, --texts or --conversations.", class_="faint")
    return table("What else changes", ["what", "measured"], rows)


def _positions(own: object) -> list[Sequence[Child]]:
    if not isinstance(own, list):
        return []
    from_end = any(isinstance(position, int) and position < 0 for position in own)
    counted = "all tokens, as no prompt ends in plain text" if from_end else ", ".join(map(str, own))
    return [["positions of the config on these texts", counted]]


def _scope(measured: str, own: str) -> str:
    if measured == own == "all" or measured == "prompt":
        return measured
    if measured == own:
        return f"{own}: plain text is all prompt, so that the config does nothing to it"
    return f"{measured}, as plain text is all prompt and the config's own, {own}, would do nothing to it"


def _rate_row(name: str, rate: Rate) -> list[Child]:
    return [name, f"{rate.successes} of {rate.n}", percent(rate.rate, rate.n), _interval(rate)]


def _interval(rate: Rate) -> str:
    return f"{percent(rate.low, rate.n)} to {percent(rate.high, rate.n)}"


def _kept(rate: Rate) -> str:
    return f"{percent(rate.rate, rate.n)} [{_interval(rate)}], {rate.successes} of {rate.n}"
