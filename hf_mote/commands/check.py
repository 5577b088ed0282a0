"""`hf-mote check`: tests of all features on a model as it is loaded here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from hf_mote.commands import options as o
from hf_mote.commands.bundles.bundled import bundled
from hf_mote.commands.bundles.loading import Loading
from hf_mote.commands.session import reporting, say, tell
from hf_mote.errors import FileFormatError
from hf_mote.reports.markup import visible

if TYPE_CHECKING:
    from hf_mote.evaluation.model_check import ModelCheck

__all__ = ["check_command"]


@bundled
def check_command(
    *,
    model: o.Model,
    loading: Loading,
    rounds: Annotated[int, typer.Option(min=0, help="Paired runs that measure the cost of patching.")] = 5,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all results to a new JSON file; not by default.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a table to paste into a report.")] = False,
) -> None:
    """Test all features on a model: routers, phases, edits, removal, costs. Exit code 0 if all tests pass."""
    from hf_mote.commands.model import Organisms

    with reporting():
        if json_file is not None and json_file.exists():
            raise FileFormatError(str(json_file), "exists already", fix="Give the name of a new file.")
        loading.check(model)
        from hf_mote.evaluation.model_check import check_model

        subject = loading.subject(model, Organisms(), any_model=True)
        say("checking the model, which takes a minute or two")
        found = check_model(subject.model, subject.tokenizer, rounds=rounds)
        if json_file is not None:
            found.save(json_file)
        if markdown:
            tell(found.to_markdown())
        else:
            Console().print(_table(found))
            tell("All tests passed." if found.passed else "Some tests failed: see the rows above.")
        if not found.passed:
            raise typer.Exit(1)


def _table(found: ModelCheck) -> Table:
    table = Table(title=visible(found.model), show_header=False)
    styles = {True: "green", False: "red", None: "dim"}
    for row in found.rows:
        mark = {True: "ok", False: "FAIL", None: ""}[row.passed]
        table.add_row(mark, visible(row.name), visible(row.detail), style=styles[row.passed])
    table.add_section()
    for name, version in found.versions.items():
        table.add_row("", name, version, style="dim")
    return table
