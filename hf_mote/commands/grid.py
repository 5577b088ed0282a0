"""`hf-mote grid`: a file with the prompts of a template, and the values of each as fields to group by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hf_mote.commands.session import reporting, tell
from hf_mote.errors import ConfigError, DataError, FileFormatError, first_line
from hf_mote.files import replacing
from hf_mote.generation.grid import prompt_grid

__all__ = ["grid_command"]

MOST_BYTES = 2**24  # size of a file of values


def grid_command(
    template: Annotated[str, typer.Argument(help="A text with names in braces: 'What happened {time} {place}?'")],
    value: Annotated[
        list[str],
        typer.Option(
            help="Values of a name, as 'place=in Vienna|in Rome' or 'place=@FILE' with one on each line. Once for "
            "each name."
        ),
    ],
    output: Annotated[Path, typer.Option(help="File to write, .jsonl.")] = Path("prompts.jsonl"),
    label: Annotated[
        list[str],
        typer.Option(help="A further field with the same value in every row, as 'class=sensitive'."),
    ] = [],  # noqa: B006 (typer copies it)
    append: Annotated[bool, typer.Option("--append", help="Add to the file instead of refusing one that exists.")] = (
        False
    ),
) -> None:
    """Write the prompts of a template with all combinations of values; each value is a field to group by."""
    with reporting():
        values = {name: _values(name, given) for name, given in map(_name_and_value, value)}
        if len(values) < len(value):
            raise ConfigError("--value", "gives a name twice", got=", ".join(value)[:80])
        more = dict(map(_name_and_value, label))
        duplicates = sorted({*more} & {*values, "prompt"} | ({"prompt"} & {*values}))
        if duplicates:
            raise ConfigError("--label", "is the name of another field", got=", ".join(duplicates))
        if output.exists() and not append:
            fix = "Give --append, or another file."
            raise FileFormatError(f"--output {output}", "exists", expected="a new file", fix=fix)
        grid = prompt_grid(template, **values)
        rows = [
            {"prompt": prompt, **{name: column[place] for name, column in grid.fields.items()}, **more}
            for place, prompt in enumerate(grid.prompts)
        ]
        before = _before(output)
        with replacing(output) as temporary:
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            temporary.write_text(before + text, encoding="utf-8")
        names = ", ".join(f"--group-field {name}" for name in grid.fields)
        tell(f"{len(rows)} prompts: {output}. To count prompts by group, give later commands one of {names}.")


def _before(output: Path) -> str:
    """Return the rows of the file that others are appended to, `""` if it does not exist."""
    if not output.exists():
        return ""
    try:
        text = output.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError(f"--output {output}", "cannot be added to", got=first_line(error)) from error
    _check_text(f"--output {output}", text)
    return text if not text or text.endswith("\n") else f"{text}\n"


def _name_and_value(given: str) -> tuple[str, str]:
    name, mark, text = given.partition("=")
    if not mark or not name.isidentifier():
        raise ConfigError(
            "--value", "must be a name with values", got=repr(given)[:60], expected="as in 'place=Rome|Bonn'"
        )
    return name, text


def _check_text(where: str, content: str) -> None:
    """Refuse a NUL, as a damaged disk leaves, or UTF-16, which can be read as UTF-8."""
    if "\0" in content:
        raise FileFormatError(where, "must be text, and holds a NUL", fix="Save it as UTF-8.")


def _values(name: str, text: str) -> list[str]:
    if not text.startswith("@"):
        return text.split("|")
    path = Path(text[1:])
    try:
        if path.stat().st_size > MOST_BYTES:
            raise FileFormatError(f"--value {name}: {path}", "is too large", expected=f"at most {MOST_BYTES} bytes")
        content = path.read_text(encoding="utf-8-sig")  # Windows begins files with a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError(f"--value {name}: {path}", "cannot be read", got=str(error)) from error
    _check_text(f"--value {name}: {path}", content)
    found = [line.strip() for line in content.splitlines() if line.strip()]
    if not found:
        raise DataError(f"--value {name}: {path}", "holds no values", expected="one on each line")
    return found
