"""`python -m hf_mote`: the `hf-mote` command, for launchers of several processes."""

from __future__ import annotations

from hf_mote.cli import app

__all__: list[str] = []

if __name__ == "__main__":
    app(prog_name="hf-mote")
