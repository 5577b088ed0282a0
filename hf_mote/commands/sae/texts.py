"""The text that an SAE command reads."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from hf_mote.commands.datasets import dataset_records
from hf_mote.commands.model import ORGANISM, Organisms
from hf_mote.errors import ConfigError, DataError
from hf_mote.files import parse_json

__all__ = ["Text", "TextColumn", "how_cut", "read_texts", "texts_fact"]

Text: TypeAlias = Annotated[
    str,
    typer.Argument(
        help="Text: a file (.txt, .md, .jsonl), a folder of these, a data set NAME[:SUBSET]:SPLIT, or organism:NAME. "
        "JSON lines and rows are a text each; other files are cut at line ends, every 4,000 characters or more."
    ),
]
TextColumn: TypeAlias = Annotated[str, typer.Option(help="Column of a data set, or of JSON lines, that has the text.")]
# Characters after which a text ends at its next line, so that some of a long one can be held out.
_PIECE = 4000
_TABLES = (".csv", ".tsv", ".json", ".parquet", ".xlsx")
_SUFFIXES = (".txt", ".md", ".rst", ".py", ".jsonl")


def read_texts(source: str, column: str, organisms: Organisms) -> list[Any]:
    """Return texts of a file, a folder, a data set or an organism's prompts, long ones in pieces, shuffled.

    The order is always the same one: whatever number is read, it is of all of them.

    Args:
        source (`str`): What was given.
        organisms ([`Organisms`]): Where organisms come from.
        column (`str`): Column of a data set or of JSON lines that has the text.

    Raises:
        [`DataError`]: if there is no text.
        [`FileFormatError`]: if a line of JSON lines is not what [`parse_json`] takes; it is named.
        [`UnknownNameError`]: if there is no such file or data set.
    """
    texts = _read(source, column, organisms)
    random.Random(0).shuffle(texts)
    return texts


def how_cut(source: str) -> str | None:
    """Return how files of text become texts, in words; `None` where each row or prompt is one.

    Args:
        source (`str`): What was given.
    """
    path = Path(source)
    files = _files_in(path) if _is_folder_of_files(path) else [path] if path.is_file() else []
    if all(entry.suffix == ".jsonl" for entry in files):
        return None
    return f"a text file is cut at line ends, into texts of {_PIECE:,} characters or a little more"


def texts_fact(source: str, number: int, held_out: int | None = None) -> str:
    """Return what a dry run says of some texts.

    Args:
        source (`str`): What was given.
        number (`int`): How many are read.
        held_out (`int`, *optional*): How many beside these are held out.
    """
    beside = "" if held_out is None else f", {held_out:,} held out"
    cut = how_cut(source)
    return f"{number:,} from {source}{beside}" + ("" if cut is None else f"; {cut}")


def _is_folder_of_files(path: Path) -> bool:
    """Whether it is a folder, and no saved data set."""
    return path.is_dir() and not any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _files_in(folder: Path) -> list[Path]:
    return [entry for entry in folder.rglob("*") if entry.suffix in _SUFFIXES and entry.is_file()]


def _read(source: str, column: str, organisms: Organisms) -> list[Any]:
    if source.startswith(ORGANISM):
        prompts = organisms.get(source.removeprefix(ORGANISM)).prompts
        asked = [prompt for kinds in prompts.values() for kind in kinds.values() for prompt in kind]
        return [{"messages": [{"role": "user", "content": prompt}]} for prompt in dict.fromkeys(asked)]
    path = Path(source)
    if _is_folder_of_files(path):
        texts = [text for entry in sorted(_files_in(path)) for text in _of_file(entry, column)]
        if not texts:
            raise DataError(source, "holds no text", expected=f"files {', '.join(_SUFFIXES)}")
        return texts
    if path.is_file():
        return _of_file(path, column)
    rows = [record.fields for record in dataset_records(source)]
    if rows and not {column, "messages", "input_ids"} & rows[0].keys():
        columns = ", ".join(map(repr, rows[0]))
        raise ConfigError("--text-column", "is no column", got=repr(column), expected=columns)
    return rows


def _of_file(path: Path, column: str) -> list[Any]:
    if path.suffix.lower() in _TABLES:
        fix = "Write JSON lines, and name the field that has the text: --text-column."
        raise DataError(str(path), "must be a text or JSON lines", expected=f"a file {', '.join(_SUFFIXES)}", fix=fix)
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows begins files with a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError):
            raise DataError(str(path), "cannot be read", got=error.strerror) from error
        raise DataError(str(path), "must be UTF-8 text", fix="Save it as UTF-8.") from error
    if "\0" in text:  # as a damaged disk leaves, or UTF-16, which can be read as UTF-8
        raise DataError(str(path), "must be text, and holds a NUL", fix="Save it as UTF-8.")
    if path.suffix != ".jsonl":
        return _pieces(text)
    rows = []
    # Not splitlines, which also splits at separators that JSON allows within a string.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        row = parse_json(f"{path}:{number}", line)
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}", "must be a JSON object", got=type(row).__name__)
        if not {column, "messages", "input_ids"} & row.keys():
            raise DataError(
                f"{path}:{number}",
                f"has no {column!r}",
                got=", ".join(row) or "no fields",
                expected=f"{column!r}, 'messages' or 'input_ids'",
                fix="Name the field that has the text: --text-column.",
            )
        rows.append(row)
    return rows


def _pieces(text: str) -> list[str]:
    pieces, held = [], ""
    for line in text.splitlines(keepends=True):
        held += line
        if len(held) >= _PIECE:
            pieces.append(held)
            held = ""
    return [piece for piece in (*pieces, held) if piece.strip()]
