"""The page of `hf-mote ftri`: which experts a class of responses visits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from hf_mote.ranking.expert_ranking import ExpertRanking
from hf_mote.ranking.imaging.result import LENGTH_CONFOUND, FTRIResult
from hf_mote.reports.formats import decimals_for, isolated, number, percent, quoted
from hf_mote.reports.heat_map import heat_map
from hf_mote.reports.markup import Child, Html, chip, join, tag
from hf_mote.reports.page import Section, make_page, provenance_section
from hf_mote.reports.rankings import expert_table, ranking_verdict
from hf_mote.reports.responses import answers_by_class
from hf_mote.reports.tables import table
from hf_mote.reports.tokens import RoutedText, token_section
from hf_mote.statistics.predictability import Predictability
from hf_mote.statistics.stability import Stability

__all__ = ["Imaging", "imaging_page", "imaging_verdict"]

MOST_CLASSES = 8  # that get a heat map
MOST_LISTED = 200  # experts in the longer table


class Imaging(NamedTuple):
    """What imaging found.

    Attributes:
        model (`str`): The model's name.
        result (`FTRIResult`): Responses, classes and maps.
        target (`str`): The class of interest.
        rankings (`dict[str, ExpertRanking]`):
            By score; the first is the one that counts. Empty if no response, or every one, is of the target class.
        top (`int`): How many experts are looked at closely.
        stability (`Stability`, *optional*): How the top holds when prompts are drawn anew.
        texts (`list[RoutedText]`): Texts with the routing weight of the top experts.
        failure (`str`, *optional*): Why there are no rankings, if not for want of classes.
        predicted (`Predictability`, *optional*): Whether routing tells the classes of held-out prompts apart.
    """

    model: str
    result: FTRIResult
    target: str
    rankings: dict[str, ExpertRanking]
    top: int
    stability: Stability | None
    texts: list[RoutedText]
    failure: str | None = None
    predicted: Predictability | None = None

    @property
    def ranking(self) -> ExpertRanking | None:
        """The ranking that counts."""
        return next(iter(self.rankings.values()), None)


def imaging_verdict(found: Imaging) -> tuple[str, bool]:
    """Return what imaging shows, and whether that is anything.

    Args:
        found (`Imaging`): What it found.
    """
    sizes, name = found.result.class_sizes, found.target
    if found.ranking is None and name in sizes and len(sizes) > 1:
        return f"Nothing was ranked. {found.failure}", False
    if found.ranking is None:
        all_of_them = "No response is" if name not in sizes else f"All {len(found.result.classes)} responses are"
        others = ", ".join(f"{size} × {quoted(label)}" for label, size in sizes.items())
        return f"Nothing to compare: {all_of_them} of class {quoted(name)} (there are {others}).", False
    verdict = ranking_verdict(found.ranking, relation=f"are used more by prompts of class {quoted(name)}")
    text = verdict.text
    if found.stability is not None:
        held = found.stability
        text += (
            f" When the prompts are drawn anew, {percent(held.overlap)} of the first {held.n} stay among the first "
            f"{held.n} (by chance {percent(held.chance)})."
        )
    if found.predicted is not None:
        text += f" Asked beforehand, {found.predicted}."
        if not found.predicted.shown:
            text += " So the order of the experts rests on next to nothing."
    if verdict.significant:
        text += " This is where these prompts go, not what causes the responses: hf-mote find proves that."
    return text, bool(verdict.significant)


def imaging_page(found: Imaging, *, provenance: Mapping[str, str], files: Mapping[str, str]) -> Html:
    """Return the page.

    Args:
        found (`Imaging`): What imaging found.
        provenance (`Mapping[str, str]`): How it came about, by name.
        files (`Mapping[str, str]`): What lies beside the page, by path.
    """
    verdict, anything = imaging_verdict(found)
    sections = [
        Section("classes", "Classes of responses", _classes(found)),
        Section("maps", "Heat maps", _maps(found)),
    ]
    if found.ranking is not None:
        sections.append(Section("experts", "First experts", _experts(found, found.ranking)))
    if found.ranking is not None and found.texts:
        body = token_section(found.ranking.top(len(found.texts[0].weights)), found.texts, found.target)
        sections.append(Section("tokens", "Tokens that route to them", body))
    result = found.result
    answers = answers_by_class(result.prompts, result.responses, result.classes, target=found.target)
    sections += [Section("responses", "Responses", answers), provenance_section(provenance, files)]
    subject = f"{isolated(found.model)}: {len(result.prompts)} prompts, tokens counted: {result.scope}"
    title = f"fTRI: {found.target}"
    return make_page(title, subject=subject, verdict=verdict, found=anything, sections=sections)


def _classes(found: Imaging) -> Html:
    result = found.result
    means = {
        name: float(result.num_tokens[np.array([label == name for label in result.classes])].double().mean())
        for name in sorted(result.class_sizes, key=lambda label: label != found.target)
    }
    rows: list[list[Child]] = []
    for name, mean in means.items():
        size, shown = result.class_sizes[name], number(mean, decimals_for(means.values()))
        rows.append([chip(name, found.target), str(size), percent(size / len(result.classes)), shown])
    made = table("What the judge saw", ["class", "prompts", "share", "tokens counted, mean"], rows, numeric=(1, 2, 3))
    confound = float(found.ranking.provenance.get("length_confound", 0.0)) if found.ranking else 0.0
    if abs(confound) <= LENGTH_CONFOUND:
        return made
    note = (
        f"Prompts of class {quoted(found.target)} differ from the others by {confound:+.0%} in length, which shows in "
        "every expert's counts. A score per token is free of that: --score risk_difference."
    )
    return join([made, tag("p", note, class_="note")])


def _maps(found: Imaging) -> Html:
    maps = found.result.maps
    first = sorted(maps, key=lambda name: (name != found.target, -found.result.classes.count(name), name))
    largest = max(float(seen.counts.max()) for seen in maps.values())
    parts: list[Html] = []
    if found.ranking is not None:
        marked = found.ranking.top(found.top)
        title = f"Class {quoted(found.target)} against all others"
        parts.append(
            heat_map(
                found.ranking.matrix(),
                found.ranking.layers,
                title=title,
                unit=found.ranking.unit,
                marked=marked,
                mark_name=f"the first {found.top}",
            )
        )
    each = [
        heat_map(
            maps[name].counts,
            maps[name].layers,
            title=f"Class {quoted(name)}: {found.result.classes.count(name)} prompts",
            unit="tokens per prompt",
            largest=largest,
        )
        for name in first[:MOST_CLASSES]
    ]
    left_out = f"{len(first) - MOST_CLASSES} smaller classes are left out." if len(first) > MOST_CLASSES else None
    return join([*parts, *each, tag("p", left_out, class_="note") if left_out else None])


def _experts(found: Imaging, ranking: ExpertRanking) -> Html:
    maps = found.result.maps
    shown = {name: maps[name] for name in sorted(maps, key=lambda name: name != found.target)[:3]}
    parts: list[Child] = [_notes(ranking), expert_table(ranking, max(20, found.top), shown)]
    if len(found.rankings) > 1:
        parts.append(_agreement(found.rankings, found.top))
    if len(ranking) > max(20, found.top):
        more = f"The first {MOST_LISTED}" if len(ranking) > MOST_LISTED else f"All {len(ranking)}"
        parts.append(tag("details", tag("summary", more), expert_table(ranking, MOST_LISTED, shown)))
    return join(parts)


def _notes(ranking: ExpertRanking) -> Html:
    text = (
        "Intervals are over prompts; p compares with permuted class labels; q is p adjusted for the number of experts "
        "(Benjamini-Hochberg)."
    )
    if ranking.least_p is not None:
        text += f" With {ranking.provenance.get('compared')} p cannot be below {ranking.least_p:.3g}."
    return tag("p", f"Score: {ranking.provenance.get('score')}. {text}", class_="faint")


def _agreement(rankings: Mapping[str, ExpertRanking], n: int) -> Html:
    first = next(iter(rankings.values())).top(n)
    rows: list[Sequence[Child]] = [
        [
            name,
            ", ".join(f"{layer}.{expert}" for layer, expert in ranking.top(n)),
            f"{len({*first} & {*ranking.top(n)})}",
        ]
        for name, ranking in rankings.items()
    ]
    headings = ["score", f"first {n}, layer.expert", "shared with the first score"]
    return table("Scores side by side", headings, rows, numeric=(2,))
