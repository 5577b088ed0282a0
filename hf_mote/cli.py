"""The `hf-mote` command: its applications, and which command is where."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from hf_mote.commands.attribution import attribute_command
from hf_mote.commands.demo import demo
from hf_mote.commands.evaluation import evaluate_command
from hf_mote.commands.families import families
from hf_mote.commands.imaging import ftri_command
from hf_mote.commands.organisms import organisms
from hf_mote.commands.sae.convert import convert
from hf_mote.commands.sae.formats import formats
from hf_mote.commands.sweep import sweep_command
from hf_mote.version import __version__

__all__ = ["app"]

app = typer.Typer(
    name="hf-mote",
    help="Find the experts behind a behaviour in a mixture-of-experts model, and tune them at inference.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
sae_app = typer.Typer(help="Sparse autoencoders.", no_args_is_help=True)
app.add_typer(sae_app, name="sae")


def _version(wanted: bool) -> None:
    if wanted:
        Console().print(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Find the experts behind a behaviour in a mixture-of-experts model, and tune them at inference."""


app.command()(families)
app.command()(organisms)
app.command()(demo)
app.command("ftri")(ftri_command)
app.command("attribute")(attribute_command)
app.command("evaluate")(evaluate_command)
app.command("sweep")(sweep_command)
sae_app.command()(convert)
sae_app.command()(formats)
