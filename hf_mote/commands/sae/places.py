"""The option that names a place of a model, checked before the model is loaded."""

from __future__ import annotations

import re
from typing import Annotated, TypeAlias

import typer

__all__ = ["NewHookpoint", "OwnHookpoint", "hookpoint_name"]

# Parts between points, one of which has a letter: a number is no place of a model.
_NAME = re.compile(r"(?=.*[^\W\d_])[^\s.]+(\.[^\s.]+)*")


def hookpoint_name(value: object) -> str:
    """Return the name of a place of a model, of which it is not known yet.

    Args:
        value (`object`): What was given: a text or, in a file of settings, anything.

    Raises:
        `typer.BadParameter`: if it is empty or a number, or has an empty part or a space.
    """
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise typer.BadParameter("must name a place of a model, such as model.layers.10.output")
    return value


OwnHookpoint: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Hookpoint of the SAE; by default that of its own config.", parser=hookpoint_name, metavar="TEXT"
    ),
]

NewHookpoint: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Hookpoint of the activations; by default the output of the middle layer.",
        parser=hookpoint_name,
        metavar="TEXT",
    ),
]
