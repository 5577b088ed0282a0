"""The page of an SAE's latents: where each is most active, how often, and which tokens it promotes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hf_mote.reports.formats import isolated, number, share
from hf_mote.reports.markup import Child, Html, join, tag
from hf_mote.reports.page import Section, make_page, provenance_section
from hf_mote.reports.tables import table
from hf_mote.sae.top_tokens import Excerpt, LatentProfile

__all__ = ["latent_section", "latents_page"]


def latents_page(
    profiles: Sequence[LatentProfile],
    subject: str,
    provenance: Mapping[str, str],
    files_written: Mapping[str, str],
    note: str | None = None,
) -> Html:
    """Return the page.

    Args:
        profiles (`Sequence[LatentProfile]`): The latents.
        subject (`str`): Which SAE of which model, on what text.
        provenance (`Mapping[str, str]`): How it came about.
        files_written (`Mapping[str, str]`): What the other files of the folder hold.
        note (`str`, *optional*): How the latents were chosen.
    """
    silent = sum(not profile.excerpts for profile in profiles)
    verdict = f"{len(profiles) - silent} of {len(profiles)} latents are active somewhere in this text."
    if note is not None:
        verdict = f"{verdict} {note}"
    sections = [latent_section(profile) for profile in profiles]
    return make_page(
        "Latents",
        subject=subject,
        verdict=verdict,
        found=silent < len(profiles),
        sections=[*sections, provenance_section(provenance, files_written)],
    )


def latent_section(profile: LatentProfile) -> Section:
    """Return the part of a page on one latent: texts coloured by it, how often it is active, what it promotes.

    Args:
        profile (`LatentProfile`): What is known of it.
    """
    return Section(f"latent-{profile.latent}", f"Latent {profile.latent}", _latent(profile))


def _latent(profile: LatentProfile) -> Html:
    if not profile.excerpts:
        return tag("p", "No token of this text activates it.", class_="faint")
    parts: list[Child] = [
        tag("p", f"Active on {share(profile.density)} of the tokens, at most {number(profile.largest)}."),
        tag("ul", *(tag("li", _excerpt(entry, profile.largest)) for entry in profile.excerpts), class_="texts"),
    ]
    for caption, tokens in (("Tokens it promotes most", profile.promoted), ("suppresses most", profile.suppressed)):
        if tokens:
            rows: list[Sequence[Child]] = [[isolated(piece), number(value)] for piece, value in tokens]
            parts.append(table(caption, ["token", "logit for each unit"], rows, numeric=[1]))
    return join(parts)


def _excerpt(excerpt: Excerpt, largest: float) -> Html:
    spans: list[Child] = []
    for piece, value in zip(excerpt.pieces, excerpt.values, strict=True):
        if value <= 0:
            spans.append(piece)
            continue
        title = f"{isolated(piece)}: {number(value)}"
        spans.append(tag("span", piece or "▯", class_="t", style=f"--w: {value / largest:.2f}", title=title))
    return tag("p", tag("span", *spans, class_="text", dir="auto"), class_="tokens")
