"""Records of a prompt file: JSON lines, a JSON list, CSV, TSV, or plain text with one prompt a line.

Each record is a mapping of fields and knows where it stands, so that what is wrong with it can be named by line.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from hf_mote.errors import DataError, FileFormatError, HFMoTEError, first_line
from hf_mote.files import parse_json

__all__ = ["Record", "check_unicode", "read_records"]

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
MOST_IN_A_FIELD = 2**24  # characters of one CSV field; Python's own limit is shorter than some prompts


class Record(NamedTuple):
    """One entry of a prompt file.

    Attributes:
        where (`str`): The file and the line, for errors.
        fields (`dict`): By name; a line of plain text is the field "prompt".
    """

    where: str
    fields: dict[str, Any]


def read_records(path: Path) -> list[Record]:
    """Return the records of a file, told by its ending: `.jsonl`, `.ndjson`, `.json`, `.csv`, `.tsv`, else plain text.

    Args:
        path (`Path`): The file, UTF-8.

    Raises:
        [`FileFormatError`]: if it cannot be read, is not UTF-8, a column with values has no name, or a line is
            malformed or the first one again; the line is named. JSON must be what [`parse_json`] takes. A first
            column without a name may number the rows, as pandas writes it; it is left out.
    """
    suffix = path.suffix.lower()
    try:
        # newline="" as csv wants it; utf-8-sig for spreadsheets, which begin a file with a byte order mark.
        with path.open(encoding="utf-8-sig", newline="") as file:
            _check_text(path, file)
            if suffix in (".jsonl", ".ndjson"):
                return list(_json_lines(path, file.read()))
            if suffix == ".json":
                return list(_json_list(path, file.read()))
            if suffix in _SEPARATORS:
                return _table(path, csv.reader(file, delimiter=_SEPARATORS[suffix], strict=True))
            return list(_text(path, file.read()))
    except UnicodeDecodeError as error:
        got = f"byte {error.object[error.start]: #x} at {error.start}"
        raise FileFormatError(str(path), "must be UTF-8 text", got=got, fix="Save it as UTF-8.") from error
    except HFMoTEError:
        raise
    # ValueError for a path that holds a NUL.
    except (OSError, ValueError) as error:
        raise FileFormatError(str(path), "cannot be read", got=first_line(error)) from error


def check_unicode(where: str, text: str) -> None:
    """Raise [`DataError`] for a text that UTF-8 cannot hold, as JSON escapes can make one.

    Args:
        where (`str`): The place, for the error.
        text (`str`): The text.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        got = repr(text[error.start])
        raise DataError(where, "holds text that is not Unicode: half of a surrogate pair", got=got) from error


def _check_text(path: Path, file: TextIO) -> None:
    """Refuse what is no text but can be read as some: UTF-16, an archive, whatever holds a NUL."""
    while part := file.read(2**20):
        if "\0" in part:
            raise FileFormatError(str(path), "must be text, and holds a NUL", fix="Save it as UTF-8.")
    file.seek(0)


def _json_lines(path: Path, text: str) -> Iterator[Record]:
    # Not splitlines, which also splits at separators that JSON allows within a string.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}: line {number}"
            yield Record(where, _fields(where, parse_json(where, line)))


def _json_list(path: Path, text: str) -> Iterator[Record]:
    entries = parse_json(str(path), text)
    if not isinstance(entries, list):
        raise FileFormatError(
            str(path),
            "must hold a JSON list",
            got=type(entries).__name__,
            fix="One object in each line is a .jsonl file.",
        )
    for number, entry in enumerate(entries, start=1):
        where = f"{path}: entry {number}"
        yield Record(where, _fields(where, entry))


def _fields(where: str, entry: object) -> dict[str, Any]:
    if isinstance(entry, str):
        return {"prompt": entry}
    if not isinstance(entry, dict):
        raise FileFormatError(where, "must be a record", got=type(entry).__name__, expected="an object, or a string")
    return entry


def _table(path: Path, rows: Any) -> list[Record]:
    usual = csv.field_size_limit(MOST_IN_A_FIELD)  # of the whole process, so it is put back
    try:
        return list(_rows(path, rows))
    finally:
        csv.field_size_limit(usual)


def _rows(path: Path, rows: Any) -> Iterator[Record]:
    names: list[str] | None = None
    unnamed: dict[int, list[str]] = {}
    first = ""
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise FileFormatError(f"{path}: line {rows.line_num}", "is malformed", got=str(error)) from error
        if row is None:
            _check_unnamed(first, unnamed)
            return
        if not any(cell.strip() for cell in row):
            continue
        where = f"{path}: line {rows.line_num}"
        if names is None:
            names, first = [name.strip() for name in row], where
            unnamed = {place: [] for place, name in enumerate(names) if not name}
            if len(set(names) - {""}) + len(unnamed) < len(names):
                raise FileFormatError(where, "names a column twice", got=", ".join(names))
            continue
        if [name.strip() for name in row] == names:
            fix = "Files were joined: take the line out."
            raise FileFormatError(where, "holds the names of the columns again", got=", ".join(names), fix=fix)
        if len(row) != len(names):
            raise FileFormatError(
                where,
                "has another number of fields than the first line",
                got=len(row),
                expected=f"{len(names)}: {', '.join(names)}",
                fix="Put fields that hold the separator or a line break in double quotes.",
            )
        for place, cells in unnamed.items():
            cells.append(row[place].strip())
        yield Record(where, {name: cell for name, cell in zip(names, row, strict=True) if name})


def _check_unnamed(where: str, unnamed: Mapping[int, list[str]]) -> None:
    """Refuse columns without a name, but for empty ones, as spreadsheets add, and a first one that numbers the rows.

    Args:
        where (`str`): The line of names, for the error.
        unnamed (`Mapping[int, list[str]]`): The cells of each by its place.
    """
    for place, cells in unnamed.items():
        # One number may be there twice: tables that were put together keep theirs.
        numbers = place == 0 and all(map(str.isdecimal, cells))
        if any(cells) and not numbers:
            held = next(cell for cell in cells if cell)
            got = f"none for column {place + 1}, which holds {held[:60]!r}"
            fix = "Name it in that line, or take the column out."
            raise FileFormatError(where, "must have a name for each column", got=got, fix=fix)


def _text(path: Path, text: str) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield Record(f"{path}: line {number}", {"prompt": line.strip()})
