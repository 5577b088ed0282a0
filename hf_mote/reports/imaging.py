"""The page of `hf-mote ftri`: which experts a class of responses uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from hf_mote.links.latent_expert_map import LatentExpertMap
from hf_mote.ranking.expert_ranking import ExpertRanking
from hf_mote.ranking.imaging.result import LENGTH_CONFOUND, FTRIResult
from hf_mote.reports.configs import UNMEASURED, config_part
from hf_mote.reports.explorer import FIRST, Explored, expert_panel, expert_part, explorer_data
from hf_mote.reports.formats import decimals_of_means, isolated, number, percent, quoted
from hf_mote.reports.heat_map import heat_map
from hf_mote.reports.links import latents_of_experts
from hf_mote.reports.markup import Child, Html, chip, join, tag
from hf_mote.reports.page import Section, make_page, provenance_section
from hf_mote.reports.rankings import expert_links, ranking_verdict
from hf_mote.reports.responses import answers_by_class
from hf_mote.reports.tables import table
from hf_mote.reports.tokens import RoutedText, token_section
from hf_mote.statistics.predictability import Predictability
from hf_mote.statistics.stability import Stability

__all__ = ["Imaging", "imaging_page", "imaging_verdict", "visits_of"]

Pair: TypeAlias = tuple[int, int]

MOST_CLASSES = 8  # that get a heat map
MOST_COLUMNS = 3  # classes that get a column in the table of experts
MOST_VISITS = 3  # prompts that are named beside an expert


class Imaging(NamedTuple):
    """The result of imaging.

    Attributes:
        model (`str`): The model's name.
        result (`FTRIResult`): Responses, classes and maps.
        target (`str`): The class of interest.
        rankings (`dict[str, ExpertRanking]`):
            By score; the first is the main one. Empty if no response, or every one, is of the target class.
        top (`int`): How many experts are looked at closely.
        stability (`Stability`, *optional*): How the top holds when prompts are drawn anew.
        texts (`list[RoutedText]`): Texts with the routing weight of `traced`.
        failure (`str`, *optional*): Why there are no rankings, if not for want of classes.
        traced (`Sequence[tuple[int, int]]`): (layer, expert) that are followed, the first `top` of the ranking first.
        alike (`Mapping`): Experts that the same prompts use, as `FTRIResult.alike` gives them.
        config (`Mapping`, *optional*): The config of the first experts, as `MoTEConfig.to_dict` gives it.
        predicted (`Predictability`, *optional*): Whether routing tells the classes of held-out prompts apart.
        latents (`Sequence[LatentExpertMap]`): Which latents of an SAE predict or drive experts.
    """

    model: str
    result: FTRIResult
    target: str
    rankings: dict[str, ExpertRanking]
    top: int
    stability: Stability | None
    texts: list[RoutedText]
    failure: str | None = None
    traced: Sequence[Pair] = ()
    alike: Mapping[Pair, Sequence[tuple[Pair, float]]] = {}
    config: Mapping[str, Any] | None = None
    predicted: Predictability | None = None
    latents: Sequence[LatentExpertMap] = ()

    @property
    def ranking(self) -> ExpertRanking | None:
        """The main ranking."""
        return next(iter(self.rankings.values()), None)


def imaging_verdict(found: Imaging) -> tuple[str, bool]:
    """Return the finding of imaging, and whether it is significant.

    Args:
        found (`Imaging`): What it found.
    """
    sizes, name = found.result.class_sizes, found.target
    if found.ranking is None and name in sizes and len(sizes) > 1:
        return f"Nothing was ranked. {found.failure}", False
    if found.ranking is None:
        all_of_them = "No response is" if name not in sizes else f"All {len(found.result.classes)} responses are"
        others = ", ".join(f"{size} of {quoted(label)}" for label, size in sizes.items())
        there = "" if name in sizes else f"; there are {others}"
        advice = "Look at the responses in the report, then change the prompts, the judge, or the class of interest."
        return f"Nothing to compare: {all_of_them} of class {quoted(name)}{there}. {advice}", False
    verdict = ranking_verdict(found.ranking, relation=f"are used more by prompts of class {quoted(name)}")
    text = verdict.text
    confound = _confound(found)
    if confound and not verdict.significant:
        text += (
            f" Its prompts differ from the others by {confound:+.0%} in length, which shows in every expert's counts "
            "and can hide what is there: try --normalize."
        )
    if found.stability is not None:
        held, n = found.stability, len(found.result.classes)
        text += (
            f" When the prompts are drawn anew, {percent(held.overlap, n)} of the first {held.n} stay among the first "
            f"{held.n} (by chance {percent(held.chance, n)})."
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
        found (`Imaging`): The result of imaging.
        provenance (`Mapping[str, str]`): How it came about, by name.
        files (`Mapping[str, str]`): What lies beside the page, by path.
    """
    verdict, anything = imaging_verdict(found)
    result, ranking = found.result, found.ranking
    explored = None if ranking is None else _explored(found)
    sections = [Section("classes", "Classes of responses", _classes(found))]
    if explored is not None and ranking is not None:
        sections.append(Section("experts", "Experts", _experts(found, ranking, explored)))
    sections.append(Section("maps", "Heat maps", _maps(found, explored)))
    if explored is not None and found.texts:
        body = token_section(found.traced[: found.top], found.texts, found.target)
        sections.append(Section("tokens", "Tokens that route to them", body))
    if ranking is not None and found.latents:
        body = latents_of_experts(found.latents, ranking.top(min(found.top, FIRST)))
        sections.append(Section("latents", "Latents that predict or drive them", body))
    if found.config is not None:
        body = config_part(found.config, note=UNMEASURED, linked=explored is not None)
        sections.append(Section("config", "Config", body))
    answers = answers_by_class(result.prompts, result.responses, result.classes, target=found.target)
    sections += [Section("responses", "Responses", answers), provenance_section(provenance, files)]
    subject = f"{isolated(found.model)}: {len(result.prompts)} prompts, tokens counted: {result.scope}"
    return make_page(
        f"fTRI: {found.target}",
        subject=subject,
        verdict=verdict,
        found=anything,
        sections=sections,
        data=None if explored is None else explorer_data(explored),
    )


def _explored(found: Imaging) -> Explored:
    result, first = found.result, _in_order(found)[:MOST_CLASSES]
    maps = result.maps
    return Explored(
        rankings=found.rankings,
        target=found.target,
        relation=("Used more by prompts of class", "Used less by prompts of class"),
        marked={f"the first {found.top}": next(iter(found.rankings.values())).top(found.top)},
        maps={name: (result.class_sizes[name], maps[name]) for name in first},
        texts=found.texts,
        traced=found.traced,
        alike=found.alike,
        prompts=list(zip(result.prompts, result.classes, strict=True)),
        visits=visits_of(result, found.traced),
        config=found.config,
        latents=found.latents,
    )


def visits_of(result: FTRIResult, experts: Sequence[Pair]) -> dict[Pair, list[tuple[int, float, float]]]:
    """Return the prompts of which most tokens went to each expert, as `Explored.visits` has them.

    Args:
        result (`FTRIResult`): What imaging saw.
        experts (`Sequence[tuple[int, int]]`): (layer, expert).
    """
    rows = {layer: row for row, layer in enumerate(result.layers)}
    totals = result.num_tokens.tolist()
    found = {}
    for layer, expert in experts:
        tokens = result.counts[:, rows[layer], expert].tolist()
        order = sorted(
            (index for index, count in enumerate(tokens) if count and totals[index]),
            key=lambda index: -tokens[index] / totals[index],
        )
        found[layer, expert] = [(index, tokens[index], totals[index]) for index in order[:MOST_VISITS]]
    return found


def _in_order(found: Imaging) -> list[str]:
    """Return the classes, the target first, then from the largest to the smallest."""
    sizes = found.result.class_sizes
    return sorted(sizes, key=lambda name: (name != found.target, -sizes[name], name))


def _classes(found: Imaging) -> Html:
    result = found.result
    means = {
        name: float(result.num_tokens[np.array([label == name for label in result.classes])].double().mean())
        for name in _in_order(found)
    }
    total = len(result.classes)
    decimals = decimals_of_means(total, means.values())
    rows: list[list[Child]] = []
    for name, mean in means.items():
        size = result.class_sizes[name]
        rows.append([chip(name, found.target), str(size), percent(size / total, total), number(mean, decimals)])
    headings = ["class", "prompts", "share", "tokens counted, mean"]
    made = table("What the judge saw", headings, rows, numeric=(1, 2, 3), sortable=True)
    confound = _confound(found)
    if not confound:
        return made
    note = (
        f"Prompts of class {quoted(found.target)} differ from the others by {confound:+.0%} in length, which shows in "
        "every expert's counts. With --normalize the counts are divided by it."
    )
    return join([made, tag("p", note, class_="note")])


def _confound(found: Imaging) -> float:
    """Return how much longer the target's prompts are if the score depends on it, else 0."""
    known = {} if found.ranking is None else found.ranking.provenance
    confound = float(known.get("length_confound", 0.0))
    counts = known.get("score") == "mean_difference" and not known.get("normalize")
    return confound if counts and abs(confound) > LENGTH_CONFOUND else 0.0


def _maps(found: Imaging, explored: Explored | None) -> Html:
    maps = found.result.maps
    first = _in_order(found)
    largest = max(float(seen.counts.max()) for seen in maps.values())
    parts: list[Html] = []
    if found.ranking is not None and explored is not None:
        parts.append(
            heat_map(
                found.ranking.matrix(),
                found.ranking.layers,
                title=f"Class {quoted(found.target)} against all others",
                heading=join(["Class ", chip(found.target, found.target), " against all others"]),
                unit=found.ranking.unit,
                digits=3,
                marked=explored.marked,
                series="score:0",
            )
        )
    each = []
    for index, name in enumerate(first[:MOST_CLASSES]):
        size = found.result.class_sizes[name]
        prompts = f"{size} prompt{'s' * (size != 1)}"
        each.append(
            heat_map(
                maps[name].counts,
                maps[name].layers,
                title=f"Class {quoted(name)}: {prompts}",
                heading=join(["Class ", chip(name, found.target), f" {prompts}"]),
                unit="tokens per prompt",
                digits=3,
                largest=largest,
                series=None if explored is None else f"class:{index}",
            )
        )
    left_out = f"{len(first) - MOST_CLASSES} smaller classes are left out." if len(first) > MOST_CLASSES else None
    return join([*parts, *each, tag("p", left_out, class_="note") if left_out else None])


def _experts(found: Imaging, ranking: ExpertRanking, explored: Explored) -> Html:
    shown = dict(list(explored.maps.items())[:MOST_COLUMNS])
    parts: list[Child] = [_notes(ranking), expert_part(explored._replace(maps=shown)), expert_panel()]
    if len(found.rankings) > 1:
        parts.append(_agreement(found.rankings, found.top))
    return join(parts)


def _notes(ranking: ExpertRanking) -> Html:
    text = (
        "Intervals are over prompts; p compares with permuted class labels; q is p adjusted for the number of experts "
        "(Benjamini-Hochberg)."
    )
    if ranking.least_p is not None:
        text += f" With {ranking.provenance.get('compared')} p cannot be below {ranking.least_p:.1g}."
    return tag("p", f"Score: {ranking.provenance.get('score')}. {text}", class_="faint")


def _agreement(rankings: Mapping[str, ExpertRanking], n: int) -> Html:
    first = next(iter(rankings.values())).top(n)
    rows: list[Sequence[Child]] = [
        [
            name,
            expert_links(ranking.top(n)),
            f"{len({*first} & {*ranking.top(n)})}",
        ]
        for name, ranking in rankings.items()
    ]
    headings = ["score", f"first {n}, layer.expert", "shared with the first score"]
    return table("Scores side by side", headings, rows, numeric=(2,))
