"""Options that travel together: a dataclass in a command's signature is flat on the command line."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import pytest
import typer
from command_runs import ran
from typer.testing import CliRunner

from hf_mote.commands.bundles.bundled import bundled


@dataclasses.dataclass(frozen=True)
class Size:
    """Two options."""

    width: Annotated[int, typer.Option(min=1, help="How wide.")] = 2
    tall: Annotated[bool, typer.Option("--tall", help="Whether it is tall.")] = False


@dataclasses.dataclass(frozen=True)
class Named:
    """An option that has no default."""

    name: Annotated[str, typer.Option(help="What it is called.")]


SMALL = Size()
LARGE = Size(7, tall=True)


def command_line(command: object) -> typer.Typer:
    app = typer.Typer()
    app.command()(command)  # type: ignore[type-var]
    return app


def test_bundled_options_stand_in_their_place_and_come_as_one() -> None:
    seen = []

    @bundled
    def draw(name: Annotated[str, typer.Argument()], size: Size = SMALL, times: int = 1) -> None:
        """Draw."""
        seen.append((name, size, times))

    app = command_line(draw)
    assert CliRunner().invoke(app, ["box"]).exit_code == 0
    assert CliRunner().invoke(app, ["box", "--tall", "--times", "3", "--width", "5"]).exit_code == 0
    assert seen == [("box", Size(), 1), ("box", Size(5, tall=True), 3)]
    assert CliRunner().invoke(app, ["box", "--width", "0"]).exit_code == 2
    shown = CliRunner().invoke(app, ["--help"]).output
    assert "Draw." in shown
    assert shown.index("--width") < shown.index("--tall") < shown.index("--times")
    assert "--size" not in shown


def test_bundled_defaults_are_those_of_the_instance_in_the_signature() -> None:
    seen = []

    @bundled
    def draw(*, size: Size = LARGE) -> None:
        """Draw."""
        seen.append(size)

    app = command_line(draw)
    assert CliRunner().invoke(app, []).exit_code == 0
    assert CliRunner().invoke(app, ["--width", "3"]).exit_code == 0
    assert seen == [LARGE, Size(3, tall=True)]
    assert "[default: 7]" in CliRunner().invoke(app, ["--help"]).output


def test_bundled_field_without_a_default_must_be_given() -> None:
    seen = []

    @bundled
    def draw(*, times: int = 1, named: Named) -> None:
        """Draw."""
        seen.append(named)

    app = command_line(draw)
    assert CliRunner().invoke(app, []).exit_code == 2
    assert CliRunner().invoke(app, ["--name", "box"]).exit_code == 0
    assert seen == [Named("box")]


def test_bundled_option_of_a_name_that_is_taken_is_refused() -> None:
    with pytest.raises(ValueError, match="width"):

        @bundled
        def draw(width: int = 1, size: Size = SMALL) -> None:
            """Draw."""


def test_sae_commands_list_how_a_model_is_loaded() -> None:
    shown = ran("sae", "evaluate", "--help").output
    for option in ("--revision", "--dtype", "--device", "--quantization", "--attn-implementation"):
        assert option in shown
