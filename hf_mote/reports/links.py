"""The page of `hf-mote sae experts`: which latents drive which experts, and where those latents are active."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hf_mote.links.latent_expert_map import LatentExpertMap, LatentLink
from hf_mote.reports.formats import number, signed
from hf_mote.reports.latents import latent_section
from hf_mote.reports.markup import Child, Html, join, tag
from hf_mote.reports.page import Section, make_page, provenance_section
from hf_mote.reports.tables import table
from hf_mote.sae.top_tokens import LatentProfile

__all__ = ["driving_latents", "links_page"]

_UNITS = {
    "weights": "what a unit of the latent adds to the router logit, against the layer's mean",
    "intervention": "how much more often the expert is chosen, for each token that the latent is changed on",
}


def links_page(
    links: LatentExpertMap,
    profiles: Sequence[LatentProfile],
    *,
    top: int,
    subject: str,
    provenance: Mapping[str, str],
    files_written: Mapping[str, str],
) -> Html:
    """Return the page.

    Args:
        links (`LatentExpertMap`): The table.
        profiles (`Sequence[LatentProfile]`): What is known of latents from a text; perhaps none.
        top (`int`): Links to list, and latents of each expert.
        subject (`str`): Which SAE of which model.
        provenance (`Mapping[str, str]`): How it came about.
        files_written (`Mapping[str, str]`): What the other files of the folder hold.
    """
    strongest = links.top(top)
    experts = list(dict.fromkeys((link.layer, link.expert) for link in strongest))
    parts = [_expert(links, layer, expert, top, place == 0) for place, (layer, expert) in enumerate(experts)]
    sections = [
        Section("links", "Strongest links", _links(strongest, links.method)),
        Section("experts", "By expert", join(parts) if parts else tag("p", "None.", class_="faint")),
        *(latent_section(profile) for profile in profiles),
        provenance_section(provenance, files_written),
    ]
    return make_page(
        "Latents and experts",
        subject=subject,
        verdict=_verdict(links, strongest),
        found=bool(strongest),
        sections=sections,
    )


def driving_latents(links: LatentExpertMap, layer: int, expert: int, n: int) -> Html | None:
    """Return the latents that drive an expert as a table, or `None` if it is not in the map.

    Args:
        links (`LatentExpertMap`): The table.
        layer (`int`): Absolute decoder layer.
        expert (`int`): Index within the layer.
        n (`int`): How many.
    """
    if (
        layer not in links.layers
        or expert >= links.values.shape[2]
        or not (found := links.for_expert(layer, expert, n))
    ):
        return None
    rows: list[Sequence[Child]] = [[f"latent {link.latent}", signed(link.value)] for link in found]
    return table(f"Latents that drive it: {_UNITS[links.method]}", ["latent", "effect"], rows, numeric=[1])


def _verdict(links: LatentExpertMap, strongest: Sequence[LatentLink]) -> str:
    count = f"{len(links.latents):,} latents and {links.values.shape[2]} experts in {len(links.layers)} layers"
    if not strongest:
        return f"Of {count}, no latent drives any expert."
    first = strongest[0]
    way = "for" if first.value > 0 else "against"
    return (
        f"Of {count}, latent {first.latent} drives most: {way} expert {first.expert} of layer {first.layer} "
        f"({number(first.value)}: {_UNITS[links.method]})."
    )


def _links(found: Sequence[LatentLink], method: str) -> Html:
    rows: list[Sequence[Child]] = [
        [str(place), str(link.latent), str(link.layer), str(link.expert), signed(link.value)]
        for place, link in enumerate(found, 1)
    ]
    made = table(
        "Links, whatever their sign", ["rank", "latent", "layer", "expert", "effect"], rows, numeric=range(1, 5)
    )
    return join([made, tag("p", f"Effect: {_UNITS[method]}.", class_="key")])


def _expert(links: LatentExpertMap, layer: int, expert: int, n: int, opened: bool) -> Html:
    body = driving_latents(links, layer, expert, n) or tag("p", "None.", class_="faint")
    return tag("details", tag("summary", tag("h3", f"Layer {layer}, expert {expert}")), body, open=opened)
