"""Tables with a caption, column headings and a heading for each row, and folded-away lists."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from hf_mote.reports.markup import Child, Html, join, tag

__all__ = ["folded", "scrolling", "table"]

LONGEST_HEADING = 80  # characters of a column's
LONGEST_WORD = 16  # characters, of a heading's words


def table(
    caption: Child,
    headings: Sequence[Child],
    rows: Sequence[Sequence[Child]],
    *,
    numeric: Collection[int] = (),
    sortable: bool = False,
    identity: str | None = None,
) -> Html:
    """Return a table that scrolls sideways where it is too wide, its first column staying in sight.

    Args:
        caption (`str` or `Html`): What it shows.
        headings (`Sequence[str | Html]`): One for each column.
        rows (`Sequence[Sequence[str | Html]]`): The cells; the first of each row is its heading.
        numeric (`Collection[int]`, *optional*): Columns to set flush right.
        sortable (`bool`, *optional*, defaults to `False`): Whether the page's script lets a reader sort the rows.
        identity (`str`, *optional*): Its id.

    Raises:
        `ValueError`: if a row is not as long as the headings.
    """
    kinds = ["n" if column in numeric else None for column in range(len(headings))]
    body = []
    for row in rows:
        first, *others = zip(row, kinds, strict=True)
        cells = [tag("td", cell, class_=_breaking(cell, kind)) for cell, kind in others]
        body.append(tag("tr", tag("th", first[0], scope="row", class_=_breaking(*first)), *cells))
    heads = [_heading(text, kind) for text, kind in zip(headings, kinds, strict=True)]
    head = tag("thead", tag("tr", *heads))
    kind = "sortable" if sortable else None
    made = tag("table", tag("caption", caption), head, tag("tbody", *body), class_=kind, id=identity)
    return scrolling(made, caption if caption and not isinstance(caption, Html) else "table")


def _heading(text: Child, kind: str | None) -> Html:
    """Return the heading of a column; a long one, as of a class with a long name, cut, and whole where one points."""
    if text is None or isinstance(text, Html):
        return tag("th", text, scope="col", class_=kind)
    kind = _breaking(text, kind)
    if len(text) <= LONGEST_HEADING:
        return tag("th", text, scope="col", class_=kind)
    return tag("th", f"{text[: LONGEST_HEADING - 1]}…", scope="col", class_=kind, title=text)


def _breaking(cell: Child, kind: str | None) -> str | None:
    """Return the class of a cell: a cell with a very long word may be broken within it."""
    long = isinstance(cell, str) and not isinstance(cell, Html) and max(map(len, cell.split()), default=0)
    return " ".join(filter(None, (kind, "long" if long > LONGEST_WORD else None))) or None


def scrolling(content: Html, label: str) -> Html:
    """Return content in a box that scrolls sideways and can be focused by the keyboard.

    Args:
        content (`Html`): What may be too wide.
        label (`str`): Its label for screen readers.
    """
    return tag("div", content, class_="scroll", tabindex=0, role="group", aria_label=label)


def folded(summary: str, items: Sequence[Html], *, shown: int, kind: str, more: str) -> Html:
    """Return a list whose first items are visible and whose others fold out.

    Args:
        summary (`str`): What to press to see the others; `{n}` stands for their number.
        items (`Sequence[Html]`): `li` elements.
        shown (`int`): How many are seen.
        kind (`str`): Class of the lists.
        more (`str`): Text for an empty list.
    """
    if not items:
        return tag("p", more, class_="faint")
    rest = items[shown:]
    others = tag("details", tag("summary", summary.format(n=len(rest))), tag("ul", *rest, class_=kind))
    return join([tag("ul", *items[:shown], class_=kind), others if rest else None])
