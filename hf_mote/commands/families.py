"""`hf-mote families`: what is supported, what is not, and why; one list for the documentation and the command line."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import typer
from rich.console import Console
from rich.table import Table

__all__ = ["SupportRow", "families", "support_markdown", "support_table"]


class SupportRow(NamedTuple):
    """A routing rule and the families that follow it.

    Attributes:
        rule (`str`): The rule's name.
        families (`tuple[str, ...]`): Model families.
        cannot (`tuple[str, ...]`): Interventions that its routers do not support.
        id (`str`): The rule's id, as `register_routers(rule=...)` takes it.
    """

    rule: str
    families: tuple[str, ...]
    cannot: tuple[str, ...]
    id: str


def support_table() -> list[SupportRow]:
    """Return the supported families, by routing rule in the order of the table."""
    from hf_mote.routing.rules.families import RULES
    from hf_mote.routing.sites.special_outputs import SPECIAL_OUTPUTS

    return [
        SupportRow(
            rule.name,
            rule.families,
            () if rule.adapter is None else tuple(sorted(SPECIAL_OUTPUTS[rule.adapter].refuses)),
            rule.id,
        )
        for rule in RULES
    ]


def support_markdown() -> str:
    """Return the supported and refused families as the documentation shows them."""
    from hf_mote.routing.rules.families import REFUSED

    lines = ["| routing rule | families | cannot |", "| --- | --- | --- |"]
    for row in support_table():
        cannot = ", ".join(row.cannot).replace("_", " ")
        lines.append(f"| {row.rule} | {', '.join(row.families)} | {cannot} |")
    lines += [f"| refused | {refusal.family} | {refusal.full_reason} |" for refusal in REFUSED.values()]
    return "\n".join(lines)


def families(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of the documentation.")] = False,
) -> None:
    """List the supported model families by routing rule, and those that are refused with the reason."""
    if markdown:
        typer.echo(support_markdown())
        return
    from hf_mote.routing.rules.families import REFUSED

    console = Console()
    table = Table(title="Supported families", show_lines=True)
    for heading in ("routing rule and its id", "families", "cannot"):
        table.add_column(heading)
    for row in support_table():
        table.add_row(f"{row.rule}\n{row.id}", ", ".join(row.families), ", ".join(row.cannot).replace("_", " ") or "-")
    console.print(table)
    for refusal in REFUSED.values():
        console.print(f"[bold]{refusal.family}[/bold] is refused: {refusal.full_reason}.", highlight=False)
