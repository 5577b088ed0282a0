"""Edits of latents: added, multiplied, clamped or ablated, for all rows of a batch or by row.

Every operation is z' = gain * z + offset, so that several latents, rows and strengths are one expression, and a latent
without an edit changes by exactly 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor

from hf_mote.errors import ConfigError, is_finite

__all__ = ["OPERATIONS", "SCOPES", "EditTable", "Edits", "LatentEdit", "Scope", "as_json", "read_edits", "table_of"]

Scope = Literal["all", "prompt", "generation", "thinking", "answer"]
SCOPES: tuple[str, ...] = get_args(Scope)

Edits: TypeAlias = Mapping[int, Any]
"""From a latent to a number (added), `("multiply", x)`, `("clamp", x)` or `"ablate"`."""

OPERATIONS = ("add", "multiply", "clamp", "ablate")
_FORMS = 'a number, ("add", x), ("multiply", x), ("clamp", x) or "ablate"'


class LatentEdit(NamedTuple):
    """The edit of one latent: `operation` is one of [`OPERATIONS`], `value` its number (0 for "ablate")."""

    latent: int
    operation: str
    value: float


class EditTable(NamedTuple):
    """Edits as tensors.

    Attributes:
        latents (`torch.Tensor` of shape `(edited,)`, int64): The latents that some row edits, ascending.
        gain (`torch.Tensor` of shape `(rows, edited)`, float32): Of each latent; `rows` is 1 where all have the same.
        offset (`torch.Tensor` of shape `(rows, edited)`, float32): Of each latent.
    """

    latents: Tensor
    gain: Tensor
    offset: Tensor

    def to(self, device: torch.device) -> EditTable:
        """Return the table on a device."""
        return EditTable(*(tensor.to(device) for tensor in self))

    def change(self, latents: Tensor, rows: Tensor | None) -> Tensor:
        """Return the changes of latents by edits, `(tokens, edited)` both.

        Args:
            latents (`torch.Tensor` of shape `(tokens, edited)`): The edited latents' values.
            rows (`torch.Tensor` of shape `(tokens,)`, int64, *optional*): The row of each token.
        """
        gain, offset = self.gain.to(latents.dtype), self.offset.to(latents.dtype)
        if rows is not None:
            gain, offset = gain[rows], offset[rows]
        return (gain - 1) * latents + offset


def read_edits(where: str, edits: Edits | Iterable[Any] | None, num_latents: int | None = None) -> list[LatentEdit]:
    """Return edits, by latent, checked.

    Args:
        where (`str`): What an error names.
        edits (`Mapping[int, Any]` or list of `[latent, operation, value]`): The edits; `None` for none.
        num_latents (`int`, *optional*): Latents that there are.

    Raises:
        [`ConfigError`]: if one is malformed, not finite, of a latent that there is not, or there twice.
    """
    if edits is None:
        return []
    pairs: list[tuple[Any, Any]]
    if isinstance(edits, Mapping):
        pairs = list(edits.items())
    elif isinstance(edits, Iterable) and not isinstance(edits, str):
        pairs = []
        for entry in edits:
            if isinstance(entry, str) or not isinstance(entry, Sequence) or len(entry) != 3:
                expected = "[latent, operation, value]"
                raise ConfigError(where, "malformed entry", got=repr(entry), expected=expected)
            latent, operation, value = entry
            if operation == "ablate" and (isinstance(value, bool) or value not in (None, 0)):
                got = repr(value)[:60]
                raise ConfigError(f"{where}[{latent}]", "'ablate' takes no value", got=got, expected="null or 0")
            pairs.append((latent, operation if operation == "ablate" else (operation, value)))
    else:
        raise ConfigError(where, "must be edits", got=type(edits).__name__, expected="a dict from latents to edits")
    found: dict[int, LatentEdit] = {}
    for latent, edit in pairs:
        if isinstance(latent, bool) or not isinstance(latent, int) or latent < 0:
            raise ConfigError(where, "must be a latent", got=repr(latent), expected="an integer, 0 or more")
        if num_latents is not None and latent >= num_latents:
            raise ConfigError(
                f"{where}[{latent}]", "the SAE has no such latent", got=latent, expected=f"0..{num_latents - 1}"
            )
        if latent in found:
            raise ConfigError(f"{where}[{latent}]", "the same latent twice", fix="List it once.")
        found[latent] = LatentEdit(latent, *_operation(f"{where}[{latent}]", edit))
    return [found[latent] for latent in sorted(found)]


def as_json(edits: Iterable[LatentEdit]) -> list[list[Any]]:
    """Return edits as `[latent, operation, value]`, as files hold them."""
    return [[edit.latent, edit.operation, edit.value] for edit in edits]


def table_of(rows: Sequence[Sequence[LatentEdit]], strength: float) -> EditTable:
    """Return the edits of each row as tensors, each change multiplied by `strength`."""
    latents = sorted({edit.latent for row in rows for edit in row})
    place = {latent: index for index, latent in enumerate(latents)}
    gain = torch.ones(len(rows), len(latents), dtype=torch.float64)
    offset = torch.zeros(len(rows), len(latents), dtype=torch.float64)
    for index, row in enumerate(rows):
        for edit in row:
            target = {"add": 1.0, "multiply": edit.value, "clamp": 0.0, "ablate": 0.0}[edit.operation]
            gain[index, place[edit.latent]] = 1 + strength * (target - 1)
            offset[index, place[edit.latent]] = strength * edit.value * (edit.operation in ("add", "clamp"))
    return EditTable(torch.tensor(latents, dtype=torch.long), gain.float(), offset.float())


def _operation(where: str, edit: Any) -> tuple[str, float]:
    if isinstance(edit, str) and edit == "ablate":
        return "ablate", 0.0
    operation, value = "add", edit
    if isinstance(edit, Sequence) and not isinstance(edit, str) and len(edit) == 2:
        operation, value = edit
    if operation not in OPERATIONS or isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(where, "must be an edit", got=repr(edit), expected=_FORMS)
    if operation == "ablate":
        return "ablate", 0.0
    if not is_finite(value) or abs(value) > torch.finfo(torch.float32).max:
        raise ConfigError(where, "is not finite", got=repr(edit), expected=_FORMS)
    return operation, float(value)
