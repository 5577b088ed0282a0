"""The page of `hf-mote demo`: experts found by two methods, and the effects of suppressing and stimulating them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple, TypeAlias

from hf_mote.evaluation.report import EvaluationReport
from hf_mote.ranking.expert_ranking import ExpertRanking
from hf_mote.ranking.imaging.result import FTRIResult
from hf_mote.reports.charts import Point, effect_chart
from hf_mote.reports.configs import config_part
from hf_mote.reports.explorer import Explored, expert_panel, expert_part, explorer_data
from hf_mote.reports.formats import percent, quoted
from hf_mote.reports.heat_map import heat_map
from hf_mote.reports.imaging import visits_of
from hf_mote.reports.markup import Child, Html, join, tag
from hf_mote.reports.page import Section, make_page, provenance_section
from hf_mote.reports.rankings import expert_links
from hf_mote.reports.responses import answers_of, side_by_side
from hf_mote.reports.tables import table
from hf_mote.reports.tokens import RoutedText
from hf_mote.statistics.rates import Rate

__all__ = ["Demonstration", "demo_page"]

Pair: TypeAlias = tuple[int, int]

_RELATION = {
    "ftri": ("Used more by prompts of class", "Used less by prompts of class"),
    "attribution": ("Speaks for responses of class", "Speaks against responses of class"),
}
_TITLES = {"ftri": "fTRI: where the prompts go", "attribution": "Attribution: what speaks for the response"}


class Demonstration(NamedTuple):
    """The measurements of the demo.

    Attributes:
        model (`str`): The organism's name.
        target (`str`): The class of responses that was looked for.
        imaged (`FTRIResult`): Responses, classes and maps.
        rankings (`Mapping[str, ExpertRanking]`): By method, `"ftri"` or `"attribution"`; the best one first.
        reports (`Mapping[str, EvaluationReport]`): By method: its first experts suppressed.
        stimulated (`Mapping[str, Rate]`): By method: the target's rate on neutral prompts, its experts stimulated.
        neutral_before (`Rate`): That rate in the untouched model.
        planted (`Sequence[tuple[int, int]]`): The (layer, expert) pairs that are known to be behind it.
        traced (`Sequence[tuple[int, int]]`): The experts of `RoutedText.weights`.
        texts (`Sequence[RoutedText]`): Texts with their routing weights.
        removed (`ExpertRanking`): Experts taken out one at a time; NaN as p where one was not tried.
        verdict (`str`): What it shows.
        found (`bool`): Whether that is anything.
    """

    model: str
    target: str
    imaged: FTRIResult
    rankings: Mapping[str, ExpertRanking]
    reports: Mapping[str, EvaluationReport]
    stimulated: Mapping[str, Rate]
    neutral_before: Rate
    planted: Sequence[Pair]
    traced: Sequence[Pair]
    texts: Sequence[RoutedText]
    removed: ExpertRanking
    verdict: str
    found: bool


def demo_page(shown: Demonstration, *, provenance: Mapping[str, str], files: Mapping[str, str]) -> Html:
    """Return the page.

    Args:
        shown (`Demonstration`): The measurements of the demo.
        provenance (`Mapping[str, str]`): How it came about, by name.
        files (`Mapping[str, str]`): What lies beside the page, by path.
    """
    best = next(iter(shown.rankings))
    report, explored = shown.reports[best], _explored(shown)
    answers = side_by_side(report.prompts, *answers_of(report), target=shown.target)
    note = f"Made of the first experts by {best}, and measured above."
    sections = [
        Section("effect", "What the experts do", _effect(shown)),
        Section("experts", "Experts", join([tag("p", _how(shown)), expert_part(explored), expert_panel()])),
        Section("maps", "Heat maps", join(_maps(shown, explored))),
        Section("responses", "Responses before and after", answers),
        Section("config", "Config", config_part(report.config, note=note, linked=True)),
        provenance_section(provenance, files),
    ]
    return make_page(
        f"Demo: {shown.target}",
        subject=f"{shown.model}: {len(shown.imaged.prompts)} prompts imaged, {len(report.prompts)} held out",
        verdict=shown.verdict,
        found=shown.found,
        sections=sections,
        data=explorer_data(explored),
    )


def _how(shown: Demonstration) -> str:
    names = " and ".join(shown.rankings)
    truth = " The planted experts are those that training put the behaviour into; no ranking uses this." * bool(
        shown.planted
    )
    return f"Ranked by {names}, the one whose experts do more first.{truth}"


def _explored(shown: Demonstration) -> Explored:
    best, first = next(iter(shown.rankings.items()))
    sizes, maps = shown.imaged.class_sizes, shown.imaged.maps
    order = sorted(sizes, key=lambda name: (name != shown.target, name))
    number = len(shown.reports[best].config["suppress"])
    planted = {"planted": shown.planted} if shown.planted else {}
    tried = [row for row in shown.removed.rows(len(shown.removed)) if row.p is not None and row.p == row.p]
    return Explored(
        rankings=shown.rankings,
        target=shown.target,
        relation=_RELATION[best],
        marked={**planted, f"first {number}, suppressed": first.top(number)},
        maps={name: (sizes[name], maps[name]) for name in order},
        texts=shown.texts,
        traced=shown.traced,
        removed={
            "taken out alone, log p(response) − log p(true answer) changes by": {
                (row.layer, row.expert): f"{-row.score:+.1f} nats".replace("-", "−") for row in tried
            }
        },
        alike=shown.imaged.alike(shown.traced),
        prompts=list(zip(shown.imaged.prompts, shown.imaged.classes, strict=True)),
        visits=visits_of(shown.imaged, shown.traced),
        config=shown.reports[best].config,
    )


def _effect(shown: Demonstration) -> Html:
    before = next(iter(shown.reports.values())).before
    points = [Point("untouched", before.rate, before.low, before.high, n=before.n)]
    rows: list[list[Child]] = []
    for name, report in shown.reports.items():
        after, number = report.after, len(report.config["suppress"])
        label = f"first {number} by {name} suppressed"
        points.append(Point(label, after.rate, after.low, after.high, report.controls, after.n))
        kept, other = report.unrelated_unchanged, shown.stimulated[name]
        rows.append(
            [
                name,
                expert_links(shown.rankings[name].top(number)),
                percent(before.rate, before.n),
                percent(after.rate, after.n),
                percent(fmean(report.controls), after.n),
                percent(shown.neutral_before.rate, shown.neutral_before.n),
                percent(other.rate, other.n),
                "–" if kept is None else percent(kept.rate, kept.n),
            ]
        )
    chart = effect_chart(
        points,
        title=f"Rate of {quoted(shown.target)} on held-out sensitive prompts",
        rate_name="responses of the class",
    )
    headings: list[Child] = ["found by", "experts", "untouched", "suppressed", "random ones suppressed, mean"]
    headings += ["neutral prompts, untouched", "the experts stimulated", "other answers unchanged"]
    return join([chart, table("Rates", headings, rows, numeric=range(2, 8))])


def _maps(shown: Demonstration, explored: Explored) -> list[Html]:
    return [
        heat_map(
            ranking.matrix(),
            ranking.layers,
            title=_TITLES.get(name, name),
            unit=ranking.unit,
            digits=3,
            marked={
                **{known: pairs for known, pairs in explored.marked.items() if known == "planted"},
                "first, suppressed": ranking.top(len(shown.reports[name].config["suppress"])),
            },
            series=f"score:{index}",
        )
        for index, (name, ranking) in enumerate(shown.rankings.items())
    ]
