"""The page of the commands, made from the command line's own help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typer.main import get_command

from hf_mote.cli import COMMANDS, SAE_COMMANDS, app

__all__ = ["command_page", "write_command_page"]


def write_command_page(path: Path) -> None:
    """Write the page, unless it is as it should be."""
    text = command_page()
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def command_page() -> str:
    """Return every command with its arguments and options, as Markdown.

    Raises:
        `ValueError`: if a command, an argument or an option has no help.
    """
    group: Any = get_command(app)
    sae = group.commands["sae"]
    parts = ["# Commands\n\n`hf-mote COMMAND --help` prints the same.\n"]
    parts += [_described(name, group.commands[name]) for name in COMMANDS]
    parts += [_described(f"sae {name}", sae.commands[name]) for name in SAE_COMMANDS]
    return "\n".join(parts)


def _described(name: str, command: Any) -> str:
    if not command.help:
        raise ValueError(f"hf-mote {name}: no help")
    lines = [f"## hf-mote {name}\n", f"{command.help.strip()}\n", "| | default | |", "| --- | --- | --- |"]
    for parameter in command.params:
        if getattr(parameter, "hidden", False) or parameter.name == "help":
            continue
        if not parameter.help:
            raise ValueError(f"hf-mote {name}: {parameter.name} has no help")
        option = parameter.opts[0].startswith("-")
        written = ", ".join(f"`{opt}`" for opt in [*parameter.opts, *parameter.secondary_opts])
        written = written if option else f"`{parameter.name.upper()}`"
        default = parameter.default
        default = ", ".join(map(str, default)) if isinstance(default, list | tuple) else default
        shown = "" if default is None or default is False or callable(default) else f"`{default}`"
        shown = "required" if parameter.required else shown
        text = " ".join(parameter.help.split()).replace("|", "\\|").replace("<", "&lt;")
        lines.append(f"| {written} | {shown} | {text} |")
    return "\n".join(lines) + "\n"
