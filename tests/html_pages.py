"""What any page must be: well-formed, self-contained, with headings in order and tables that say what they show."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import hf_mote.reports

__all__ = ["Element", "check_page", "parse_page"]

PAGES = Path(hf_mote.reports.__file__).parent
VOID = {"br", "col", "hr", "img", "meta"}
REFERENCES = {"action", "data", "formaction", "href", "poster", "src", "srcset", "xlink:href"}
FORBIDDEN = {"base", "embed", "form", "iframe", "link", "object"}


@dataclass
class Element:
    """An element with its attributes, its children and all text in it."""

    name: str
    attributes: dict[str, str]
    children: list[Element] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def all(self, name: str | None = None, class_: str | None = None) -> list[Element]:
        """Return the elements below this one, of a name and a class, in their order."""
        found = []
        for child in self.children:
            if name in (None, child.name) and (class_ is None or class_ in child.attributes.get("class", "").split()):
                found.append(child)
            found += child.all(name, class_)
        return found

    def one(self, identity: str) -> Element:
        (found,) = [element for element in self.all() if element.attributes.get("id") == identity]
        return found


class _Tree(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"{tag} has an attribute twice: {names}"
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].name == tag, f"</{tag}> closes {self.open[-1].name}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.pieces.append(data)


def parse_page(text: str) -> Element:
    """Return the tree of a piece of HTML whose every element is closed."""
    tree = _Tree()
    tree.feed(text)
    tree.close()
    assert tree.open == [tree.root], f"not closed: {[element.name for element in tree.open[1:]]}"
    return tree.root


def check_page(text: str) -> Element:
    """Return the tree of a page, having checked what every page must be."""
    root = parse_page(text)
    elements = root.all()
    names = {element.name for element in elements}
    assert not names & FORBIDDEN, names & FORBIDDEN
    for element in elements:
        for name, value in element.attributes.items():
            assert not name.startswith("on"), (element.name, name)
            if name in REFERENCES:
                assert value.startswith(("#", "data:image/png;base64,")), (element.name, name, value[:60])
            if name == "style":
                assert "url(" not in value
    for style in root.all("style"):
        assert "url(" not in style.text
        assert "@import" not in style.text
    identities = [element.attributes["id"] for element in elements if "id" in element.attributes]
    assert len(identities) == len(set(identities))
    links = [element.attributes["href"] for element in root.all("a")]
    assert {urlsplit(link).fragment for link in links} <= set(identities)
    _check_scripts(root)
    _check_reading(root)
    return root


def _check_scripts(root: Element) -> None:
    """One script runs, the package's own, which the policy names by its digest; data beside it is inert."""
    scripts = root.all("script")
    running = [script for script in scripts if "type" not in script.attributes]
    assert [script.attributes for script in running] == [{}]
    assert running[0].text == (PAGES / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(running[0].text.encode()).digest()).decode()
    (policy,) = [meta for meta in root.all("meta") if meta.attributes.get("http-equiv") == "Content-Security-Policy"]
    allowed = dict(part.strip().split(" ", 1) for part in policy.attributes["content"].split(";"))
    assert allowed["default-src"] == "'none'"
    assert allowed["script-src"] == f"'sha256-{digest}'"
    assert allowed["require-trusted-types-for"] == "'script'"
    data = [script for script in scripts if script not in running]
    assert [script.attributes for script in data] in ([], [{"type": "application/json", "id": "data"}])
    for script in data:
        assert not set("<>&") & set(script.text)
        json.loads(script.text)


def _check_reading(root: Element) -> None:
    (html,) = root.all("html")
    assert html.attributes["lang"]
    assert len(root.all("title")[0].text) > 3
    assert len(root.all("main")) == 1
    levels = [int(element.name[1]) for element in root.all() if re.fullmatch(r"h[1-6]", element.name)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False)), levels
    for picture in root.all("svg"):
        if picture.attributes.get("role") == "presentation":  # within another one
            continue
        assert picture.attributes["role"] == "img"
        assert len(picture.attributes["aria-label"]) > 20
    for table in root.all("table"):
        assert table.all("caption")[0].text.strip()
        head, *rows = table.all("tr")
        assert {cell.attributes.get("scope") for cell in head.children} == {"col"}
        for row in rows:
            assert len(row.children) == len(head.children)
            assert row.children[0].name == "th"
            assert row.children[0].attributes["scope"] == "row"
    for box in root.all(class_="scroll"):
        assert box.attributes["tabindex"] == "0"
        assert box.attributes["aria-label"]
