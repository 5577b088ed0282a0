"""`hf-mote configs`: the configs and recipes that come with the package."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from hf_mote.commands.session import reporting, tell
from hf_mote.commands.validate import CONFIG, MARKS
from hf_mote.files import read_json
from hf_mote.reports.markup import visible

__all__ = ["configs_command"]


def configs_command() -> None:
    """List the configs and SAE recipes that come with the package; apply_mote and all commands take their names."""
    from hf_mote.sharing.shipped import list_shipped, shipped_root

    with reporting():
        root = shipped_root()
        table = Table(title="Configs", show_lines=True)
        for heading in ("name", "what", "status", "source"):
            table.add_column(heading, overflow="fold")
        for name in list_shipped():
            path = root / name / CONFIG
            if not path.is_file():
                table.add_row(name, "SAE training recipe", MARKS[2], "this package")
                continue
            data = read_json(path)
            provenance = data.get("provenance", {})
            changed = [f"{len(data[kind])} experts {verb}" for kind, verb in _VERBS.items() if data.get(kind)]
            row = (name, ", ".join(changed), str(provenance.get("status")), str(provenance.get("source")))
            table.add_row(*map(visible, row))
        Console().print(table)
        tell(f"They are in {root}. To apply one: apply_mote(model, NAME).")


_VERBS = {"suppress": "suppressed", "stimulate": "stimulated", "bias": "biased", "gain": "multiplied"}
