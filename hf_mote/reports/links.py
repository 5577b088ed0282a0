"""Latents beside experts: the page of `hf-mote sae experts`, and an expert's latents in the pages of rankings.

A latent that predicts an expert need not drive it. So methods stand side by side, each with what its numbers mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hf_mote.errors import UnknownNameError
from hf_mote.links.latent_expert_map import LatentExpertMap, LatentLink
from hf_mote.reports.formats import isolated, number, percent, signed
from hf_mote.reports.latents import latent_section
from hf_mote.reports.markup import Child, Html, join, tag
from hf_mote.reports.page import Section, make_page, provenance_section
from hf_mote.reports.tables import table
from hf_mote.sae.top_tokens import LatentProfile

__all__ = ["driving_latents", "latents_data", "latents_of_experts", "links_page"]

SHOWN = 5  # latents of an expert, of each map
MOST_LINKS = 5_000  # in the data of a page
LONGEST_NAME = 120  # characters of a place or an edit, which come from a file

_TITLES = {
    "weights": "Latents that drive it, by the router's weights",
    "intervention": "Latents that drive it, by intervention",
    "prediction": "Latents that predict it",
}
_UNITS = {
    "weights": "what a unit of the latent adds to the router logit, against the layer's mean",
    "intervention": "how much more often the expert is chosen, for each token that the latent is changed on",
    "prediction": "correlation of the latent's activation with whether the expert is chosen",
}
_COLUMNS = {"prediction": ["correlation", "precision", "recall", "lift"]}
_EFFECT = ["effect"]
_COUNTED = (
    "Precision: share of the latent's tokens on which the expert is chosen. Recall: share of the expert's tokens that "
    "have the latent. Lift: precision over the share of all tokens on which the expert is chosen."
)


def links_page(
    maps: Sequence[LatentExpertMap],
    profiles: Sequence[LatentProfile],
    *,
    top: int,
    subject: str,
    provenance: Mapping[str, str],
    files_written: Mapping[str, str],
) -> Html:
    """Return the page.

    Args:
        maps (`Sequence[LatentExpertMap]`): The tables, one for each method; the first one orders the page.
        profiles (`Sequence[LatentProfile]`): What is known of latents from a text; perhaps none.
        top (`int`): Links to list, and latents of each expert.
        subject (`str`): Which SAE of which model.
        provenance (`Mapping[str, str]`): How it came about.
        files_written (`Mapping[str, str]`): What the other files of the folder hold.
    """
    strongest = [links.top(top) for links in maps]
    experts = list(dict.fromkeys((link.layer, link.expert) for found in strongest for link in found))
    listed = join([_links(links, found) for links, found in zip(maps, strongest, strict=True)])
    sections = [
        Section("links", "Strongest links", listed),
        *([Section("methods", "Methods side by side", _beside(maps, strongest))] if len(maps) > 1 else []),
        Section("experts", "By expert", latents_of_experts(maps, experts, top)),
        *(latent_section(profile) for profile in profiles),
        provenance_section(provenance, files_written),
    ]
    return make_page(
        "Latents and experts",
        subject=subject,
        verdict=" ".join(_verdict(links, found) for links, found in zip(maps, strongest, strict=True)),
        found=any(strongest),
        sections=sections,
    )


def driving_latents(links: LatentExpertMap, layer: int, expert: int, n: int) -> Html | None:
    """Return the latents that drive or predict an expert as a table, or `None` if it is not in the map.

    Args:
        links (`LatentExpertMap`): The table.
        layer (`int`): Absolute decoder layer.
        expert (`int`): Index within the layer.
        n (`int`): How many.
    """
    found = _of_expert(links, layer, expert, n)
    if not found:
        return None
    columns = _COLUMNS.get(links.method, _EFFECT)
    rows: list[Sequence[Child]] = [[f"latent {link.latent}", *_cells(links, link)] for link in found]
    caption = f"{_TITLES[links.method]}: {_meaning(links)}"
    return table(caption, ["latent", *columns], rows, numeric=range(1, len(columns) + 1))


def latents_of_experts(maps: Sequence[LatentExpertMap], experts: Iterable[tuple[int, int]], n: int = SHOWN) -> Html:
    """Return each expert with its latents by each map, folded but for the first.

    Args:
        maps (`Sequence[LatentExpertMap]`): The tables.
        experts (`Iterable[tuple[int, int]]`): (layer, expert).
        n (`int`, *optional*, defaults to 5): Latents of each, by each map.
    """
    parts: list[Child] = []
    for layer, expert in experts:
        known = [made for links in maps if (made := driving_latents(links, layer, expert, n)) is not None]
        body = join(known) if known else tag("p", "None.", class_="faint")
        heading = tag("summary", tag("h3", f"Layer {layer}, expert {expert}"))
        parts.append(tag("details", heading, body, open=not parts))
    if not parts:
        return tag("p", "None.", class_="faint")
    return join([_key_part(maps), *parts])


def latents_data(maps: Sequence[LatentExpertMap], experts: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Return the latents of experts for the page's script, as text, of as many experts as there is room for.

    Args:
        maps (`Sequence[LatentExpertMap]`): The tables.
        experts (`Sequence[tuple[int, int]]`): (layer, expert), those that matter most first.
    """
    entries: list[dict[str, Any]] = [
        {
            "title": _TITLES[links.method],
            "note": _meaning(links),
            "columns": _COLUMNS.get(links.method, _EFFECT),
            "experts": {},
        }
        for links in maps
    ]
    room, told = MOST_LINKS, 0
    for layer, expert in experts:
        found = [_of_expert(links, layer, expert, SHOWN) for links in maps]
        room -= sum(map(len, found))
        if room < 0:
            break
        told += 1
        for links, entry, some in zip(maps, entries, found, strict=True):
            if some:
                entry["experts"][f"{layer}.{expert}"] = [[link.latent, *_cells(links, link)] for link in some]
    return {"maps": entries, "experts": told, "all": told == len(experts), "key": _key(maps)}


def _of_expert(links: LatentExpertMap, layer: int, expert: int, n: int) -> list[LatentLink]:
    if layer not in links.layers or expert >= links.values.shape[2]:
        return []
    return links.for_expert(layer, expert, n)


def _cells(links: LatentExpertMap, link: LatentLink) -> list[str]:
    """What stands beside a latent and an expert, as many entries as the method has columns."""
    if links.method != "prediction":
        return [signed(link.value)]
    known = links.prediction(link.latent, link.layer, link.expert)
    return [signed(link.value), percent(known.precision), percent(known.recall), number(known.lift)]


def _told(links: LatentExpertMap, name: str) -> str:
    """Return what a map says of where it comes from, as text that is short and keeps its direction; perhaps none."""
    value = str(links.provenance.get(name, ""))
    return isolated(value if len(value) <= LONGEST_NAME else f"{value[: LONGEST_NAME - 1]}…")


def _meaning(links: LatentExpertMap) -> str:
    """Return what the values of a map are, and of which SAE."""
    text, edit, place = _UNITS[links.method], _told(links, "edit"), _told(links, "hookpoint")
    if links.method == "intervention" and edit:
        text += f" ({edit})"
    if links.num_tokens is not None:
        text += f", over {links.num_tokens:,} tokens"
    return f"{text}; SAE at {place}" if place else text


def _key(maps: Sequence[LatentExpertMap]) -> str:
    """Return how to read the numbers of maps; perhaps nothing."""
    methods = [links.method for links in maps]
    text = f"{_COUNTED} A latent that predicts an expert need not drive it. " if "prediction" in methods else ""
    if "intervention" in methods:
        text += "Where an intervention takes a latent out, a number below 0 says that it drives the expert."
    return text.strip()


def _key_part(maps: Sequence[LatentExpertMap]) -> Html | None:
    text = _key(maps)
    return tag("p", text, class_="key") if text else None


def _verdict(links: LatentExpertMap, strongest: Sequence[LatentLink]) -> str:
    count = f"{len(links.latents):,} latents and {links.values.shape[2]} experts in {len(links.layers)} layers"
    verb = "predicts" if links.method == "prediction" else "drives"
    if not strongest:
        return f"Of {count}, no latent {verb} any expert."
    first = strongest[0]
    above = first.value > 0
    place = f"expert {first.expert} of layer {first.layer}"
    what = f"({number(first.value)}: {_UNITS[links.method]})"
    if links.method == "intervention":
        edit = _told(links, "edit")
        changed = f" where it is changed ({edit})" if edit else " where it is changed"
        often = "more" if above else "less"
        return f"Of {count}, latent {first.latent} drives most:{changed}, {place} is chosen {often} often {what}."
    return f"Of {count}, latent {first.latent} {verb} most: {'for' if above else 'against'} {place} {what}."


def _links(links: LatentExpertMap, found: Sequence[LatentLink]) -> Html:
    columns = _COLUMNS.get(links.method, _EFFECT)
    rows: list[Sequence[Child]] = [
        [str(place), str(link.latent), str(link.layer), str(link.expert), *_cells(links, link)]
        for place, link in enumerate(found, 1)
    ]
    headings = ["rank", "latent", "layer", "expert", *columns]
    made = table(f"Links by {links.method}, whatever their sign", headings, rows, numeric=range(1, len(headings)))
    return join([made, tag("p", f"{columns[0].capitalize()}: {_meaning(links)}.", class_="key")])


def _beside(maps: Sequence[LatentExpertMap], strongest: Sequence[Sequence[LatentLink]]) -> Html:
    """The strongest links by any map, and what each map says of them."""
    pairs = dict.fromkeys(link[:3] for found in strongest for link in found)
    rows: list[Sequence[Child]] = [
        [f"latent {pair[0]}", *map(str, pair[1:]), *(signed(_value(links, *pair)) for links in maps)] for pair in pairs
    ]
    headings = ["latent", "layer", "expert", *(links.method for links in maps)]
    caption = "The strongest links by any method; – where a method was not asked"
    made = table(caption, headings, rows, numeric=range(1, len(headings)), sortable=True)
    return join([made, _key_part(maps)])


def _value(links: LatentExpertMap, latent: int, layer: int, expert: int) -> float | None:
    try:
        return links.at(latent, layer, expert)
    except UnknownNameError:
        return None
