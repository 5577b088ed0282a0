"""Options by which an SAE command leaves tokens out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from hf_mote.errors import real
from hf_mote.sae.fields import excluded_positions

__all__ = ["Excluding", "splice_call"]


@dataclasses.dataclass(frozen=True)
class Excluding:
    """Which tokens are left out, besides the tokenizer's special ones.

    Attributes:
        exclude_positions (`str`, *optional*): `--exclude-positions`; see [`collect_activations`].
        max_norm (`float`, *optional*): `--max-norm`; see there.
    """

    exclude_positions: Annotated[
        str | None,
        typer.Option(
            help='Positions of each text to leave out: "first:1", or a slice such as "0:4"; none by default.'
        ),
    ] = None
    max_norm: Annotated[
        float | None,
        typer.Option(
            help="Leave out tokens with activations of more than so many times the median length, as attention sinks "
            "have; none by default. The median is that of what is read at a time.",
        ),
    ] = None

    def check(self) -> None:
        """Refuse values out of range.

        Raises:
            [`ConfigError`]: if one is.
        """
        excluded_positions(self.exclude_positions, "--exclude-positions")
        if self.max_norm is not None:
            real("--max-norm", self.max_norm, above=0)

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of [`collect_activations`], [`evaluate_sae`] and [`adapt_to_sae`]."""
        return {
            "exclude_special_tokens": True,
            "exclude_positions": self.exclude_positions,
            "max_norm": self.max_norm,
        }


def splice_call(spliced: Mapping[str, Any]) -> str:
    """Return the line of Python that splices an SAE in where it was trained, for a card.

    Args:
        spliced (`Mapping[str, Any]`): As [`splice_arguments`] returns it.
    """
    said = dict(spliced)
    ids = said.pop("exclude_tokens")
    parts = ["exclude_tokens=tokenizer.all_special_ids"] if ids else []
    parts += [f"{name}={value!r}" for name, value in said.items() if value is not None]
    return f"hf_mote.splice_sae({', '.join(['model', 'sae', *parts])})"
