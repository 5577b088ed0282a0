"""The page around a report: one file that needs no network and opens from a disk.

Its content security policy lets the browser run one script, `page.js` as it is, and load nothing: even markup that got
in by mistake can do neither. The script makes elements one by one and sets text as text; the policy forbids it to
turn a text into markup.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from hf_mote.drawing import CONTROL, LESS, MORE
from hf_mote.files import replacing
from hf_mote.reports.markup import Html, join, tag
from hf_mote.reports.tables import table

__all__ = ["Section", "make_page", "provenance_section", "write_page"]

_POLICY = (
    "default-src 'none'; script-src 'sha256-{}'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)


class Section(NamedTuple):
    """A part of a page.

    Attributes:
        anchor (`str`): What the table of contents points to: a word, once in the page.
        title (`str`): Its heading.
        body (`Html`): What it holds.
    """

    anchor: str
    title: str
    body: Html


def make_page(
    title: str, *, subject: str, verdict: str, found: bool, sections: Sequence[Section], data: Html | None = None
) -> Html:
    """Return a page: the verdict first, then the sections in their order.

    Args:
        title (`str`): Heading and window title.
        subject (`str`): Which model, on what.
        verdict (`str`): What was found, in a sentence or two.
        found (`bool`): Whether that is an effect rather than none; the verdict's edge is coloured then.
        sections (`Sequence[Section]`): What follows.
        data (`Html`, *optional*): What the page's script knows, as `explorer.explorer_data` gives it.

    Example:
        ```python
        from hf_mote.reports.markup import tag
        from hf_mote.reports.page import Section, make_page

        body = tag("p", "<script>")
        page = make_page("Report", subject="a model", verdict="None.", found=False, sections=[Section("a", "A", body)])
        assert page.startswith("<!doctype html>") and "<p>&lt;script&gt;</p>" in page
        ```
    """
    contents = [tag("li", tag("a", section.title, href=f"#{section.anchor}")) for section in sections]
    script = _own("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY.format(digest)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="generator", content="hf_mote"),
        tag("title", f"{title} · hf_mote"),
        tag("style", Html(_colours() + _own("style.css"))),
    )
    header = tag(
        "header",
        tag("a", "To the report", href="#verdict", class_="skip"),
        tag("h1", title),
        tag("p", subject, class_="subject"),
        tag("p", verdict, class_="verdict found" if found else "verdict", id="verdict"),
        tag("nav", tag("ul", *contents), aria_label="Contents"),
    )
    main = tag("main", *(tag("section", tag("h2", s.title), s.body, id=s.anchor) for s in sections))
    return join(
        [
            Html("<!doctype html>\n"),
            tag("html", head, tag("body", header, main, data, tag("script", Html(script))), lang="en"),
            "\n",
        ]
    )


def _own(name: str) -> str:
    """Return a file of this folder that is part of every page."""
    return files("hf_mote.reports").joinpath(name).read_text(encoding="utf-8")


def _colours() -> str:
    named = {"more": MORE, "less": LESS, "control-light": CONTROL}
    return f":root {{ {' '.join(f'--{name}: {r} {g} {b};' for name, (r, g, b) in named.items())} }}\n"


def provenance_section(provenance: Mapping[str, str], files_written: Mapping[str, str]) -> Section:
    """Return the last section: provenance of the report, and the files beside it.

    Args:
        provenance (`Mapping[str, str]`): By name: versions, model, seed, command.
        files_written (`Mapping[str, str]`): What each file of the folder holds, by its path in the folder.
    """
    how = table("How this was made", ["what", "value"], [[key, tag("code", v)] for key, v in provenance.items()])
    rows = [[tag("code", path), what] for path, what in files_written.items()]
    return Section("provenance", "Provenance", join([how, table("Files beside this report", ["file", "holds"], rows)]))


def write_page(path: Path, page: Html) -> None:
    """Write a page, or leave the file as it was.

    Args:
        path (`Path`): The file; its folder exists.
        page (`Html`): The page.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(page.encode("utf-8"))
