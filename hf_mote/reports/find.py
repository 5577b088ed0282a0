"""The page of `hf-mote find`: what was tried to find experts, what came of it, and why no config is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hf_mote.ranking.expert_ranking import ExpertRanking
from hf_mote.reports.configs import config_part
from hf_mote.reports.evaluation import effect_part, side_effects_part
from hf_mote.reports.formats import percent, quoted, signed
from hf_mote.reports.heat_map import heat_map
from hf_mote.reports.markup import Child, Html, chip, join, tag
from hf_mote.reports.page import Section, make_page, provenance_section
from hf_mote.reports.responses import Answer, answers_by_class, answers_of, side_by_side
from hf_mote.reports.tables import table
from hf_mote.workflow.candidates import Candidate
from hf_mote.workflow.find import Found

__all__ = ["find_page"]

MOST_LISTED = 24  # experts of a set, in a cell
FIRST = 5  # experts of a ranking


def find_page(
    found: Found, *, model: str, places: Mapping[str, str], provenance: Mapping[str, str], files: Mapping[str, str]
) -> Html:
    """Return the page.

    Args:
        found (`Found`): What was found, or why nothing was.
        model (`str`): The model's name.
        places (`Mapping[str, str]`): The folder of each ranking beside the page, by the ranking's name.
        provenance (`Mapping[str, str]`): How it came about, by name.
        files (`Mapping[str, str]`): What lies beside the page, by path.
    """
    sections = []
    if found.report is not None:
        parts = [tag("p", "The best candidate on prompts that it was not found with."), effect_part(found.report)]
        sections.append(Section("effect", "Effect and controls", join(parts)))
        sections.append(Section("sides", "Side effects", side_effects_part(found.report)))
    sections.append(Section("tried", "What was tried", _tried(found)))
    if found.best is not None:
        sections.append(Section("responses", "Responses with the best candidate", _responses(found, found.best)))
    if found.imaged is not None:
        seen = found.imaged
        body = answers_by_class(seen.prompts, seen.responses, seen.classes, target=found.target)
        sections.append(Section("classes", "Responses of the untouched model", body))
    sections.append(Section("notes", "Before and on the way", _notes(found)))
    if found.rankings:
        sections.append(Section("rankings", "Rankings", _rankings(found, places)))
    if found.best is not None:
        note = "Proven: it beats its controls, coherently and selectively."
        if found.config is None:
            note = "That of the best candidate: it is not proven, so it is in no file."
        sections.append(Section("config", "Config", config_part(found.best.config.to_dict(), note=note)))
    number = "" if found.imaged is None else f": {len(found.imaged.prompts)} prompts"
    return make_page(
        f"Find: {found.target}",
        subject=f"{model}{number}",
        verdict=found.verdict,
        found=found.config is not None,
        sections=[*sections, provenance_section(provenance, files)],
    )


def _tried(found: Found) -> Html:
    """Return the sets of experts, with what each leaves of the behaviour and of the text."""
    if not found.candidates:
        return tag("p", "No set of experts was tried.", class_="faint")
    number = len(found.candidates[0].responses)
    rows: list[Sequence[Child]] = [
        [
            one.method,
            _experts(one.config.suppress),
            one.config.suppress_mode,
            percent(one.left, number),
            percent(one.broken, number),
            signed(100 * one.effect, 0),
            "yes" if one is found.best else "",
        ]
        for one in found.candidates
    ]
    caption = join(
        [f"Sets of experts, each suppressed on {number} prompts of class ", chip(found.target, found.target)]
    )
    headings = ["found by", "experts", "mode", "left", "incoherent", "coherent effect, points", "best"]
    note = (
        f"Left: responses that are still of class {quoted(found.target)}. Coherent effect: the change in percentage "
        "points when every incoherent response counts against it, and 0 if the text breaks. Best: the largest such "
        "effect, and the fewest experts of those that come as far."
    )
    return join([table(caption, headings, rows, numeric=range(3, 6), sortable=True), tag("p", note)])


def _responses(found: Found, best: Candidate) -> Html:
    """Return the responses before and with the best candidate: held-out ones if it came so far."""
    if found.report is not None:
        shown = side_by_side(found.report.prompts, *answers_of(found.report), target=found.target)
        return join([tag("p", f"With {best.method}, on prompts that it was not found with."), shown])
    said = best.answers
    before = [Answer(*pair) for pair in zip(said.before, said.labels_before, strict=True)]
    after = [Answer(*one) for one in zip(said.after, said.labels_after, best.incoherent, strict=True)]
    where = f"With {best.method}, on prompts that it was found with. report.json has the responses of every set."
    return join([tag("p", where), side_by_side(said.prompts, before, after, target=found.target)])


def _notes(found: Found) -> Html:
    said = [] if found.predicted is None else [f"{found.predicted}"]
    notes = [tag("li", f"{note.removesuffix('.')}.") for note in [*said, *found.notes]]
    return tag("ul", *notes) if notes else tag("p", "Nothing is noted.", class_="faint")


def _rankings(found: Found, places: Mapping[str, str]) -> Html:
    rows: list[Sequence[Child]] = [
        [name, _experts(ranking.top(min(FIRST, len(ranking)))), ranking.verdict, tag("code", places[name])]
        for name, ranking in found.rankings.items()
    ]
    listed = table("All experts, ranked", ["ranking", "first experts", "what it shows", "folder"], rows)
    best = {} if found.best is None else {"best candidate": [(at, of) for at, of in found.best.config.suppress]}
    maps = [_map(name, ranking, best) for name, ranking in found.rankings.items()]
    return join([listed, tag("div", *maps, class_="figures")])


def _map(name: str, ranking: ExpertRanking, marked: Mapping[str, list[tuple[int, int]]]) -> Html:
    return heat_map(
        ranking.matrix(), ranking.layers, title=name, unit=ranking.unit or "score", digits=3, marked=marked
    )  # fmt: skip


def _experts(pairs: Sequence[Sequence[int]]) -> str:
    """Return experts as layer.expert, the first ones of many."""
    shown = "  ".join(f"{layer}.{expert}" for layer, expert in pairs[:MOST_LISTED])
    more = len(pairs) - MOST_LISTED
    return f"{shown}  and {more} more" if more > 0 else shown
