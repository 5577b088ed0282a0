"""`hf-mote organisms`: the model organisms in the package."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

__all__ = ["organisms"]


def organisms() -> None:
    """List the model organisms in the package: small trained models whose behaviour and its experts are known."""
    from hf_mote.organisms.organism import list_organisms, summarize_organism

    table = Table(title="Model organisms", show_lines=True)
    for heading in ("name", "family", "parameters", "planted", "size"):
        table.add_column(heading, no_wrap=True, justify="left" if heading in ("name", "family") else "right")
    table.add_column("what it does")
    for name in list_organisms():
        row = summarize_organism(name)
        size = f"{row.size / 1e6:.1f} MB"
        table.add_row(name, row.family, f"{row.parameters:,}", str(row.planted), size, row.behaviour)
    Console().print(table)
