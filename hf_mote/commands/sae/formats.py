"""`hf-mote sae formats`: the file formats that are read and written, for the documentation and the command line."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import typer

__all__ = ["FormatRow", "formats", "formats_markdown", "formats_table"]


class FormatRow(NamedTuple):
    """A file format.

    Attributes:
        name (`str`): The name for `load_sae` and `export_sae`.
        files (`tuple[str, ...]`): Names of its files.
        saes (`int`): How many SAEs of the public list are in it.
        reads (`str`): What is read.
        writes (`str`): What is written, empty if nothing is.
        oracle (`str`): The reference that its numbers are compared with.
    """

    name: str
    files: tuple[str, ...]
    saes: int
    reads: str
    writes: str
    oracle: str


def formats_table() -> list[FormatRow]:
    """Return all formats, sorted by their number of public SAEs."""
    from hf_mote.sae.convert.registry import FORMATS
    from hf_mote.sae.convert.releases import entries, releases

    listed = [entry.known.format for release in releases() for entry in entries(release)]
    rows = [
        FormatRow(format.name, format.files, listed.count(format.name), format.reads, format.writes, format.oracle)
        for format in FORMATS.values()
    ]
    return sorted(rows, key=lambda row: -row.saes)


def formats_markdown() -> str:
    """Return the formats as the documentation shows them."""
    from hf_mote.sae.convert.releases import provenance

    lines = ["| format | files | public SAEs | in | out | compared with |", "| --- | --- | --: | --- | --- | --- |"]
    for row in formats_table():
        files = ", ".join(f"`{name}`" for name in row.files)
        saes = f"{row.saes:,}" if row.saes else "not listed"
        lines.append(f"| `{row.name}` | {files} | {saes} | {row.reads} | {row.writes or 'no'} | {row.oracle or '-'} |")
    lines.append("| a `SAELayout` | one `.safetensors`, `.npz`, `.pt` | - | any, by a mapping of names | no | - |")
    source, date = provenance()
    return "\n".join([*lines, "", f"Counted in the list of {source}, {date}."])


def formats(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of the documentation.")] = False,
) -> None:
    """List the file formats of sparse autoencoders: what is read, what is written, and how many public SAEs use it."""
    if markdown:
        typer.echo(formats_markdown())
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="Formats of sparse autoencoders", show_lines=True)
    table.add_column("format", no_wrap=True)  # a name that is cut cannot be typed
    table.add_column("files", overflow="fold")
    table.add_column("public SAEs", justify="right")
    for heading in ("in", "out", "compared with"):
        table.add_column(heading, overflow="fold")
    for row in formats_table():
        saes = f"{row.saes:,}" if row.saes else "-"
        cells = (row.name, "\n".join(row.files), saes, row.reads, row.writes or "-", row.oracle or "-")
        table.add_row(*map(escape, cells))
    Console().print(table)
