"""How objects print: a readable block in a terminal, a table and a picture in a notebook, rows for pandas."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_mote.errors import UnsupportedError

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Printable", "Summary", "experts_in_words", "frame_of", "short"]

_ROWS = 10  # of a table that is printed
_WIDTH = 60  # characters of a cell
_LISTED = 12  # experts in a line


class Summary(NamedTuple):
    """The printed parts of an object.

    Attributes:
        title (`str`): What it is, in one line.
        facts (`Mapping[str, str]`): Further facts, by name.
        columns (`Mapping[str, Sequence[object]]`): A table of its first rows, by heading; numbers stand flush right.
        rows (`int`): How many rows there are, of which the table has the first.
    """

    title: str
    facts: Mapping[str, str] = {}
    columns: Mapping[str, Sequence[object]] = {}
    rows: int = 0


class Printable:
    """An object that prints as a block, and as HTML in a notebook; a mixin.

    A class says what is printed in `_summary`, and draws its picture, if it has one, in `plot`.
    """

    def _summary(self) -> Summary:
        raise NotImplementedError

    def __repr__(self) -> str:
        return _block(self._summary())

    def _repr_html_(self) -> str:
        plot = getattr(self, "plot", None)
        return _markup(self._summary(), None if plot is None else _picture(plot()))


def short(value: float | None, digits: int = 3) -> str:
    """Return a number with few digits; a dash for one that is not known."""
    return "–" if value is None or value != value else f"{value:.{digits}g}"


def experts_in_words(pairs: Sequence[Sequence[Any]]) -> str:
    """Return experts as layer.expert, the first ones of many.

    Args:
        pairs (`Sequence[Sequence]`): (layer, expert), with more or without.
    """
    shown = [f"{pair[0]}.{pair[1]}" + "".join(f" ({extra})" for extra in pair[2:]) for pair in pairs[:_LISTED]]
    left = len(pairs) - len(shown)
    return " ".join(shown) + (f" and {left} more" if left else "")


def frame_of(columns: Mapping[str, Sequence[object]]) -> DataFrame:
    """Return a `pandas.DataFrame` of columns by name.

    Args:
        columns (`Mapping[str, Sequence]`): Columns of one length.

    Raises:
        [`UnsupportedError`]: if pandas is not installed.
    """
    try:
        from pandas import DataFrame
    except ImportError as error:
        raise UnsupportedError("to_pandas", "pandas is not installed", fix="pip install pandas") from error
    return DataFrame(dict(columns))


def _line(value: object) -> str:
    """Return a text on one line, without characters that could tell a terminal to do something."""
    text = " ".join(str(value).split())
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def _cells(values: Sequence[object]) -> list[str]:
    texts = [_line(value) for value in values]
    return [text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…" for text in texts]


def _is_number(text: str) -> bool:
    return text in ("–", "") or text.lstrip("+-−<> ").replace(".", "", 1).replace("e-", "", 1).rstrip("%").isdigit()


def _table(summary: Summary) -> tuple[list[tuple[str, list[str], bool]], int]:
    """Return heading, cells and whether they are numbers of each column, and how many rows are left out."""
    columns = {name: _cells(values[:_ROWS]) for name, values in summary.columns.items()}
    made = [(name, cells, all(map(_is_number, cells))) for name, cells in columns.items()]
    shown = max((len(cells) for cells in columns.values()), default=0)
    return made, summary.rows - shown


def _block(summary: Summary) -> str:
    lines = [_line(summary.title)]
    wide = max(map(len, summary.facts), default=0)
    lines += [f"  {name:<{wide}}  {_line(value)}" for name, value in summary.facts.items()]
    columns, left = _table(summary)
    if columns and columns[0][1]:
        widths = [max(map(len, [name, *cells])) for name, cells, _ in columns]
        rows = [[name for name, _, _ in columns], *zip(*(cells for _, cells, _ in columns), strict=True)]
        for row in rows:
            parts = [
                f"{cell:>{width}}" if right else f"{cell:<{width}}"
                for cell, width, (_, _, right) in zip(row, widths, columns, strict=True)
            ]
            lines.append(f"  {'  '.join(parts)}".rstrip())
        if left > 0:
            lines.append(f"  … {left:,} more")
    return "\n".join(lines)


def _markup(summary: Summary, picture: str | None) -> str:
    parts = [f"<p><b>{html.escape(summary.title)}</b></p>"]
    if summary.facts:
        rows = "".join(
            f'<tr><th style="text-align:left">{html.escape(name)}</th>'
            f'<td style="text-align:left">{html.escape(value)}</td></tr>'
            for name, value in summary.facts.items()
        )
        parts.append(f"<table>{rows}</table>")
    if picture is not None:
        parts.append(f'<img src="data:image/png;base64,{picture}" alt="{html.escape(summary.title)}">')
    columns, left = _table(summary)
    if columns and columns[0][1]:
        sides = ["right" if right else "left" for _, _, right in columns]
        head = "".join(
            f'<th style="text-align:{side}">{html.escape(name)}</th>'
            for side, (name, _, _) in zip(sides, columns, strict=True)
        )
        body = "".join(_row(row, sides) for row in zip(*(cells for _, cells, _ in columns), strict=True))
        more = f"<p>… {left:,} more</p>" if left > 0 else ""
        parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}")
    return "".join(parts)


def _row(row: Sequence[str], sides: Sequence[str]) -> str:
    cells = (f'<td style="text-align:{side}">{html.escape(cell)}</td>' for side, cell in zip(sides, row, strict=True))
    return f"<tr>{''.join(cells)}</tr>"


def _picture(figure: Any) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=80)
    return base64.b64encode(file.getvalue()).decode("ascii")
