"""Errors and warnings as messages, and the command as it can be typed again."""

from __future__ import annotations

import shlex
import warnings

import pytest
import typer
from typer.testing import CliRunner

from hf_mote.commands.options import numbers_in
from hf_mote.commands.session import command_line, reporting
from hf_mote.errors import ConfigError


def test_numbers_in_are_sorted_and_each_once() -> None:
    assert numbers_in("--experts", "10,1, 2,1", int) == [1, 2, 10]
    assert numbers_in("--strengths", "1,.5", float) == [0.5, 1.0]
    for text in ("", "1,,2", "a", "1.5"):
        with pytest.raises(ConfigError, match="--experts"):
            numbers_in("--experts", text, int)


def test_command_line_can_be_typed_again() -> None:
    app = typer.Typer()
    seen: list[str] = []

    @app.command("try")
    def command(
        context: typer.Context,
        first: str,
        number: int = typer.Option(3, "--number", "-n"),
        many: list[str] = typer.Option(["x"], "--many"),  # noqa: B006, B008
        flag: bool = typer.Option(False, "--flag"),
        left_out: str = typer.Option("usual", "--left-out"),
    ) -> None:
        seen.append(command_line(context))
        assert (first, number, flag, left_out) == ("a b'c", 5, True, "usual")

    words = ["a b'c", "-n", "5", "--many", "y", "--many", "z z", "--flag"]
    assert CliRunner().invoke(app, words).exit_code == 0
    again = shlex.split(seen[0])
    assert again[:2] == ["hf-mote", "try"]
    assert CliRunner().invoke(app, again[2:]).exit_code == 0
    assert seen[0] == seen[1]


def test_reporting_error_with_markup_is_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught, reporting():
        raise ConfigError("x[/red]", "is \x1b[31m wrong")
    assert caught.value.exit_code == 1
    assert "x[/red]: is \\x1b[31m wrong." in capsys.readouterr().err


def test_reporting_warning_is_a_note_without_its_source_line(capsys: pytest.CaptureFixture[str]) -> None:
    with reporting():
        warnings.warn("be [bold]careful", stacklevel=1)
    assert capsys.readouterr().err == "be [bold]careful\n"
