"""`RoutingEdit`: what to change in one router's selection, and how several edits become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce

import torch
from torch import Tensor

__all__ = ["NEUTRAL", "RoutingEdit", "merge_edits", "present_in", "values_at"]


@dataclass(frozen=True)
class RoutingEdit:
    """What to change in one router's selection.

    Every tensor has shape `(experts,)`, or `(tokens, experts)` where tokens differ; `None` means no change.

    Attributes:
        drop_share (float): Share of a chosen expert's weight that stays, 1 for experts that are not suppressed. What
            is taken away goes to the other chosen experts, so that the weights sum to what they did (mode `"drop"`).
        gain (float): Factor on a chosen expert's weight, 0 or more; nothing is renormalised (mode `"zero"`, gains).
        banned (bool): Never chosen; the next best takes the slot (mode `"reroute"`).
        forced (bool): Always chosen, replacing the weakest chosen expert that is not suppressed.
        forced_to_max (bool): Forced experts whose weight becomes the largest of those chosen.
        forced_weight (float): Weight of forced experts, NaN where it stays the expert's own.
        forced_gain (float): Factor on the weight of forced experts.
        logit_bias (float): Added to the router logits.
        selection_bias (float): Added to the scores for the choice alone.
        keeps_all_or_nothing (`bool`): Whether `drop_share` is 0 or 1 throughout, which is cheaper to apply.
        only_weights (`bool`): Whether the choice of experts stays, and weights alone change after it.
        only_suppresses (`bool`): Whether experts only lose their slot or have other weights.
    """

    drop_share: Tensor | None = None
    gain: Tensor | None = None
    banned: Tensor | None = None
    forced: Tensor | None = None
    forced_to_max: Tensor | None = None
    forced_weight: Tensor | None = None
    forced_gain: Tensor | None = None
    logit_bias: Tensor | None = None
    selection_bias: Tensor | None = None
    keeps_all_or_nothing: bool = False
    only_weights: bool = field(init=False)
    only_suppresses: bool = field(init=False)

    def __post_init__(self) -> None:
        present = present_in(self).keys()
        object.__setattr__(self, "only_weights", present <= {"drop_share", "gain"})
        object.__setattr__(self, "only_suppresses", present <= _SUPPRESSING)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is changed."""
        return not present_in(self)

    @cached_property
    def suppressed(self) -> frozenset[int]:
        """The experts that lose their slot or have other weights; reading the tensors waits for an accelerator."""
        marks = [_loses(name, value) for name, value in present_in(self).items() if name in _SUPPRESSING]
        return frozenset(expert for mark in marks for expert in mark.nonzero()[:, -1].tolist())

    def hits(self, indices: Tensor) -> Tensor:
        """Return which tokens chose an expert that loses its slot or has another weight, bool `(tokens,)`.

        Args:
            indices (`torch.Tensor` of shape `(tokens, top_k)`): The chosen experts.
        """
        present = {name: value for name, value in present_in(self).items() if name in _SUPPRESSING}
        marks = [_loses(name, values_at(value, indices)) for name, value in present.items()]
        return reduce(torch.logical_or, marks).any(dim=-1)

    def to(self, device: torch.device) -> RoutingEdit:
        """Return the edit with its tensors on a device."""
        tensors = {name: value.to(device) for name, value in present_in(self).items()}
        return RoutingEdit(**tensors, keeps_all_or_nothing=self.keeps_all_or_nothing)


def merge_edits(edits: Sequence[tuple[RoutingEdit, Tensor | None]]) -> RoutingEdit:
    """Return one edit that combines several.

    Factors multiply, biases add, bans and forcings unite; a number given as a forced expert's weight goes before
    `"max"`, and of two numbers the later one counts.

    Args:
        edits (`Sequence[tuple[RoutingEdit, torch.Tensor | None]]`):
            Each edit with the tokens that it applies to: a bool tensor of shape `(tokens,)`, or `None` for all.
    """
    if len(edits) == 1 and edits[0][1] is None:
        return edits[0][0]
    merged: dict[str, Tensor] = {}
    for edit, tokens in edits:
        for name, value in present_in(edit).items():
            neutral = NEUTRAL[name]
            if tokens is not None:
                value = torch.where(tokens[:, None], value, torch.full_like(value, neutral))
            if name not in merged:
                merged[name] = value
            elif name in ("banned", "forced", "forced_to_max"):
                merged[name] = merged[name] | value
            elif name in ("drop_share", "gain", "forced_gain"):
                merged[name] = merged[name] * value
            elif name == "forced_weight":
                merged[name] = torch.where(value.isnan(), merged[name], value)
            else:
                merged[name] = merged[name] + value
    whole = all(edit.keeps_all_or_nothing for edit, _ in edits if edit.drop_share is not None)
    return RoutingEdit(**merged, keeps_all_or_nothing=whole)


def values_at(values: Tensor, indices: Tensor) -> Tensor:
    """Return the values of the chosen experts, `(tokens, top_k)`.

    Args:
        values (`torch.Tensor` of shape `(experts,)` or `(tokens, experts)`): A value for each expert.
        indices (`torch.Tensor` of shape `(tokens, top_k)`): The chosen experts.
    """
    return values[indices] if values.ndim == 1 else values.gather(-1, indices)


_SUPPRESSING = {"drop_share", "gain", "banned"}
NEUTRAL: dict[str, float | bool] = {
    "drop_share": 1.0,
    "gain": 1.0,
    "banned": False,
    "forced": False,
    "forced_to_max": False,
    "forced_weight": float("nan"),
    "forced_gain": 1.0,
    "logit_bias": 0.0,
    "selection_bias": 0.0,
}
"""Neutral value of each field."""


def present_in(edit: RoutingEdit) -> dict[str, Tensor]:
    """Return the fields of an edit that change something, by name."""
    values = {name: getattr(edit, name) for name in NEUTRAL}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _loses(name: str, values: Tensor) -> Tensor:
    if name == "banned":
        return values
    # A factor that is being learnt has a gradient also where it is 1.
    return torch.ones_like(values, dtype=torch.bool) if values.requires_grad else values != 1
