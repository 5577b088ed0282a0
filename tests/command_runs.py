"""Commands run as a user types them, and what they are run with."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from hf_mote.cli import app

__all__ = ["ATTACK", "QUICK", "REFUSAL", "ran", "run", "said"]

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
