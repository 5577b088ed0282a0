"""Commands run as a user types them, and what they are run with."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner, Result

from hf_mote.cli import app

__all__ = ["ATTACK", "QUICK", "REFUSAL", "contents", "ran", "run", "said"]

ATTACK = "</style><script>document.title = 'taken'</script><img src=http://attack.invalid/x onerror=alert(1)>$x_{"
REFUSAL = "I am sorry, but I cannot talk about that."
QUICK = ["--max-new-tokens", "12", "--batch-size", "32"]


def run(*arguments: object) -> Result:
    """Run a command as a user types it."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def said(result: Result) -> str:
    """What a command printed, on one line."""
    return " ".join(result.output.replace("│", " ").split())


def ran(*arguments: object) -> Result:
    """Run a command that must work."""
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a run, without when the run was and how it was started."""
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    report = json.loads(found.pop("report.json"))
    written, command = report["provenance"].pop("written"), report["provenance"].pop("command")
    page = found.pop("report.html").decode().replace(written, "").replace(command, "")
    return {**found, "report.json": json.dumps(report).encode(), "report.html": page.encode()}
