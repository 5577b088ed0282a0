"""The commands that run the whole path on a model and prompts of one's own, each with a report to read."""

from __future__ import annotations

import typer

from hf_mote.commands.attribution import attribute_command
from hf_mote.commands.evaluation import evaluate_command
from hf_mote.commands.imaging import ftri_command
from hf_mote.commands.sweep import sweep_command

__all__ = ["add_commands"]


def add_commands(app: typer.Typer) -> None:
    """Add `ftri`, `attribute`, `evaluate` and `sweep` to an application.

    Args:
        app (`typer.Typer`): The application.
    """
    app.command("ftri")(ftri_command)
    app.command("attribute")(attribute_command)
    app.command("evaluate")(evaluate_command)
    app.command("sweep")(sweep_command)
